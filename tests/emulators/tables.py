"""The tables of the Data API emulator: their definitions, rows, pages and commands.

Everything in `tests/data/tables_transcripts.json.gz` was recorded from the real server (commit ada41bd81, over
Cassandra 5.0) and is replayed against this by `tests/test_tables_emulator.py`: listings, the order of columns, the
digits of values, the order of rows, page states to the byte, warnings and refusals.

What only CQL can make (static columns, counters, tuples, frozen and nested types, `timeuuid`, indexes of its own, a
decimal with its scale) is made with `DataApiEmulator.tables`, a `Kit`; it also fills a table with random rows and
reads all rows as the server would send them.

What it does not do: `alterType`, `$push` and `$pullAll`, sorting by anything but a vector, comparisons in filters,
embedding, time to live: a loud EMULATOR_NOT_IMPLEMENTED error. What it guesses, because nobody recorded it: the
messages that `table_errors.py` marks; the mark in a page state behind a partition of static values only. As
recorded, a filter on more than one column is refused (that server makes CQL of it that Cassandra cannot read); with
`astra` it works. PAGE_STATES are those of tables, too.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
import re
import string
import struct
import uuid
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial, total_ordering
from typing import TYPE_CHECKING, Any, Final, cast

from tests.emulators.cql import (
    COLLECTIONS,
    INTEGER_BITS,
    NOT_FINITE,
    SCALARS,
    BadValue,
    CqlType,
    Value,
    as_float32,
    cql_name,
    days_of,
    from_bytes,
    from_json,
    hash_order,
    java_float,
    order_key,
    parse_type,
    sorted_pairs,
    to_bytes,
    to_json,
)
from tests.emulators.data_api import (
    MAX_INSERTED_DOCUMENTS,
    MAX_NEAREST,
    OK,
    RANKS,
    UNLIMITED_ROWS,
    Number,
    Raw,
    Refusal,
    Reply,
    RequestRefusal,
    Start,
    bad_page_state,
    decode_vint,
    dump,
    encode_answer,
    encode_vint,
    error_reply,
    invalid_field,
    murmur_token,
    not_implemented,
    parse,
    plain,
    quote,
    seal,
    unseal,
)
from tests.emulators.table_errors import TableRefusal, not_done, refusal

if TYPE_CHECKING:
    from tests.emulators.data_api import Answer, Call, Collection, Database, Exchange, Options

Json = Any
Cell = tuple[Value, str]  # a value, and its JSON
Given = Mapping[str, Value]  # the columns of a row; None: null

PARTITION, CLUSTERING, REGULAR, STATIC = range(4)
"""The kinds of columns, in the order in which the server lists them."""
NONE: Final = "[None]"
SUPPORT_NAMES: Final = ("createTable", "insert", "read", "filter")
PLAIN_NAME = re.compile(r"[a-z][a-z0-9_]*")


def listed(names: Iterable[str]) -> str:
    return ", ".join(names) or NONE


def support(answers: Sequence[bool], cql: str) -> dict[str, Json]:
    return {**dict(zip(SUPPORT_NAMES, answers, strict=True)), "cqlDefinition": cql}


# -------------------------------------------------------------------------------------------------- definitions


@dataclass(frozen=True)
class Column:
    """A column of a table; `service` is what vectorises it."""

    name: str
    type: CqlType
    kind: int = REGULAR
    service: Json = None

    @property
    def support(self) -> dict[str, Json] | None:
        """What listTables says in `apiSupport`; None if the Data API can do everything with the column."""
        of, cql = self.type, cql_name(self.type, with_frozen=True)
        if not of.is_supported:
            return support((False, False, False, False), cql)
        if self.kind == STATIC:
            return support((False, True, True, True), f"static {cql}")
        if of.name == "counter":
            return support((False, False, True, True), cql)
        if of.name == "vector" or (of.name == "udt" and not of.frozen):
            return support((True, True, True, False), cql)
        if of.name == "timeuuid" or (of.name in COLLECTIONS and of.frozen):
            return support((False, True, True, True), cql)
        return None

    def describe(self, *, with_fields: bool = False) -> dict[str, Json]:
        """The column in a listing; `with_fields` as in a `projectionSchema`, with the fields of a user's type."""
        made = describe_type(self.type, with_fields=with_fields)
        if self.service is not None:
            made["service"] = self.service
        return {**made, "apiSupport": self.support} if self.support else made

    @property
    def with_cql(self) -> str:
        """As a refusal of a row shows it: `l_text(list<text>)`, `v('org.…VectorType(3)')`."""
        return f"{self.name}({cql_name(self.type)})"

    @property
    def with_api(self) -> str:
        """As a refusal of a projection shows it: `l_text(list)`."""
        return f"{self.name}({self.type.api_name})"

    @property
    def identifier(self) -> str:
        return self.name if PLAIN_NAME.fullmatch(self.name) else '"' + self.name.replace('"', '""') + '"'


def describe_type(of: CqlType, *, with_fields: bool) -> dict[str, Json]:
    if of.api_name == "UNSUPPORTED":
        return {"type": "UNSUPPORTED"}
    if of.name == "udt":
        named = {"type": "userDefined", "udtName": of.udt}
        return {**named, "definition": describe_fields(of)} if with_fields else named
    if of.name == "vector":
        return {"type": "vector", "dimension": of.dimension}
    made: dict[str, Json] = {"type": of.name}
    for name, argument in zip(("keyType", "valueType")[-len(of.arguments) :], of.arguments, strict=False):
        made[name] = argument.name if not argument.udt else describe_type(argument, with_fields=with_fields)
    return made


def describe_fields(of: CqlType) -> dict[str, Json]:
    return {"fields": {name: describe_type(each, with_fields=False) for name, each in of.fields}}


@dataclass(frozen=True)
class Index:
    """An index; `function` is `keys`, `values`, `entries` or nothing, `cql` the statement that made it, if one did."""

    name: str
    kind: str
    column: str
    function: str = ""
    options: Mapping[str, Json] = field(default_factory=dict)
    cql: str = ""

    @property
    def target(self) -> str:
        return f"{self.function}({self.column})" if self.function else self.column

    def describe(self) -> dict[str, Json]:
        if self.cql:
            known = {"createIndex": False, "filter": False, "cqlDefinition": self.cql}
            return {
                "name": self.name,
                "definition": {"column": "UNKNOWN", "apiSupport": known},
                "indexType": "UNKNOWN",
            }
        column = {self.column: f"${self.function}"} if self.function in ("keys", "values") else self.column
        definition = {"column": column, "options": dict(self.options)}
        return {"name": self.name, "definition": definition, "indexType": self.kind}


@total_ordering
@dataclass(frozen=True)
class Descending:
    """A sort key, the other way round."""

    key: Any

    def __lt__(self, other: Descending) -> bool:
        return bool(other.key < self.key)


# -------------------------------------------------------------------------------------------------------- rows


class Partition:
    """The rows that share a partition key, in their order, and the values that they share."""

    def __init__(self, key: bytes, cells: dict[str, Cell]) -> None:
        self.key = key
        self.cells = cells
        self.static: dict[str, Cell] = {}
        self.order: list[tuple[Any, ...]] = []
        self.rows: list[Row] = []

    @property
    def entries(self) -> list[Entry]:
        """What a scan finds here: the rows, or one without clustering columns if there are static values only."""
        return [Entry(self, row) for row in self.rows] or ([Entry(self, None)] if self.static else [])


@dataclass
class Row:
    """The clustering columns and the others, but for the partition's."""

    cells: dict[str, Cell]


@dataclass(frozen=True)
class Entry:
    """A row as it is read; `row` is None for a partition of static values only."""

    partition: Partition
    row: Row | None

    def cell(self, name: str) -> Cell | None:
        found = self.partition.cells.get(name) or self.partition.static.get(name)
        return found or (self.row.cells.get(name) if self.row else None)

    def json(self, names: Sequence[str], more: str = "") -> str:
        cells = ((name, self.cell(name)) for name in names)
        members = [f"{quote(name)}:{cell[1]}" for name, cell in cells if cell]
        return "{" + ",".join([*members, more] if more else members) + "}"

    def value(self, name: str) -> Value:
        cell = self.cell(name)
        return cell and cell[0]


@dataclass(frozen=True)
class Place:
    """Where a scan of a table goes on: behind the row of `mark` (its clustering columns) in the partition of `key`."""

    key: bytes = b""
    mark: bytes = b""
    remaining: int = UNLIMITED_ROWS
    in_partition: int = UNLIMITED_ROWS

    def encode(self, *, opaque: bool = False) -> str:
        """Cassandra's own encoding, or an opaque one (see PAGE_STATES)."""
        numbers = encode_vint(self.remaining) + encode_vint(self.in_partition)
        sized = [encode_vint(len(each)) + each for each in (self.key, self.mark)]
        data = b"".join((*sized, numbers))
        return base64.b64encode(seal(data) if opaque else data).decode()

    @staticmethod
    def decode(text: str, *, opaque: bool = False) -> Place:
        """ValueError or IndexError if the text is not a page state."""
        data, at = base64.b64decode(text, validate=True), 0
        if opaque:
            data = unseal(data)
        parts = []
        for _ in range(2):
            length, at = decode_vint(data, at)
            parts.append(data[at : at + length])
            at += length
        remaining, at = decode_vint(data, at)
        in_partition, at = decode_vint(data, at)
        if at != len(data):
            raise ValueError(text)
        return Place(parts[0], parts[1], remaining, in_partition)


class Table:
    """A table's definition and its rows.

    `has_states` False makes it one of a server of 2024: no page state, the first page and no more.
    """

    def __init__(
        self, keyspace: str, name: str, columns: Iterable[Column], partition_by: Sequence[str], sort: Mapping[str, int]
    ) -> None:
        self.keyspace = keyspace
        self.name = name
        self.partition_by = tuple(partition_by)
        self.sort = dict(sort)
        self.has_states = True
        self.indexes: dict[str, Index] = {}
        self.columns: dict[str, Column] = {}
        self.define(columns)
        self.clear()

    def define(self, columns: Iterable[Column]) -> None:
        """Its columns: those of the primary key in their order, then the others by name, the static ones last."""
        keys = (*self.partition_by, *self.sort)
        given = {column.name: column for column in columns}
        for kind, names in ((PARTITION, self.partition_by), (CLUSTERING, self.sort)):
            given.update({name: replace(given[name], kind=kind) for name in names})
        others = (each for each in given.values() if each.name not in keys)
        rest = sorted(others, key=lambda each: (each.kind, each.name))
        self.columns = {column.name: column for column in (*(given[name] for name in keys), *rest)}
        self.read_order = hash_order(list(self.columns))

    def clear(self) -> None:
        self.places: list[tuple[int, bytes]] = []
        self.partitions: dict[bytes, Partition] = {}
        self.last_page: list[Entry] = []
        self.issued: dict[str, Start] = {}  # the page states that were given, and how the chain of each began
        self.size = 0

    @property
    def full_name(self) -> str:
        return f"{self.keyspace}.{self.name}"

    @property
    def key_columns(self) -> list[Column]:
        return [self.columns[name] for name in (*self.partition_by, *self.sort)]

    @property
    def all_columns(self) -> str:
        return listed(column.with_cql for column in self.columns.values())

    @property
    def key_text(self) -> str:
        return listed(column.with_api for column in self.key_columns)

    @property
    def indexed_text(self) -> str:
        return listed(self.indexes[name].target for name in sorted(self.indexes))

    def describe(self) -> dict[str, Json]:
        key = {"partitionBy": list(self.partition_by), "partitionSort": self.sort}
        columns = {name: column.describe() for name, column in self.columns.items()}
        return {"name": self.name, "definition": {"columns": columns, "primaryKey": key}}

    # keys

    def partition_key(self, given: Given) -> bytes:
        parts = [to_bytes(self.columns[name].type, given[name]) for name in self.partition_by]
        if len(parts) == 1:
            return parts[0]
        return b"".join(struct.pack(">H", len(part)) + part + b"\0" for part in parts)

    def order_of(self, given: Given) -> tuple[Any, ...]:
        keys = [(order_key(self.columns[name].type, given[name]), way) for name, way in self.sort.items()]
        return tuple(key if way > 0 else Descending(key) for key, way in keys)

    def mark(self, row: Row | None) -> bytes:
        """The clustering columns in a page state: two bits a column say whether it is empty, then the values."""
        if row is None or not self.sort:
            return b""
        parts = [to_bytes(self.columns[name].type, row.cells[name][0]) for name in self.sort]
        header = sum(1 << 2 * at for at, part in enumerate(parts) if not part)
        return encode_vint(header) + b"".join(encode_vint(len(part)) + part for part in parts if part)

    def unmark(self, mark: bytes) -> Given:
        """The clustering columns of a mark; ValueError or IndexError if it is none."""
        header, at = decode_vint(mark, 0)
        given = {}
        for number, name in enumerate(self.sort):
            length = 0
            if not header >> 2 * number & 3:
                length, at = decode_vint(mark, at)
            given[name] = from_bytes(self.columns[name].type, mark[at : at + length])
            at += length
        if at != len(mark):
            raise ValueError(mark)
        return given

    # writing

    def put(self, given: Given) -> Entry:
        """An upsert: what is not named stays, null deletes. Without clustering columns only static values are put."""
        partition = self.partition_of(given)
        self.fill_cells(partition.static, given, STATIC)
        if any(given.get(name) is None for name in self.sort):
            return Entry(partition, None)
        order = self.order_of(given)
        at = bisect_left(partition.order, order)
        if at == len(partition.order) or partition.order[at] != order:
            partition.order.insert(at, order)
            partition.rows.insert(at, Row({}))
            self.size += 1
        self.fill_cells(partition.rows[at].cells, given, CLUSTERING)
        self.fill_cells(partition.rows[at].cells, given, REGULAR)
        return Entry(partition, partition.rows[at])

    def partition_of(self, given: Given) -> Partition:
        key = self.partition_key(given)
        if key not in self.partitions:
            cells: dict[str, Cell] = {}
            self.fill_cells(cells, given, PARTITION)
            self.partitions[key] = Partition(key, cells)
            insort(self.places, (murmur_token(key), key))
        return self.partitions[key]

    def fill_cells(self, cells: dict[str, Cell], given: Given, kind: int) -> None:
        for name, value in given.items():
            column = self.columns[name]
            if column.kind != kind:
                continue
            if is_null(column.type, value):
                cells.pop(name, None)
            else:
                cells[name] = (value, to_json(column.type, value) if column.type.is_supported else "")

    def delete(self, entry: Entry) -> None:
        partition = entry.partition
        if entry.row is not None:
            at = next(at for at, row in enumerate(partition.rows) if row is entry.row)
            del partition.rows[at], partition.order[at]
            self.size -= 1
        else:
            partition.static.clear()
        if not partition.entries and partition.key in self.partitions:
            del self.partitions[partition.key]
            del self.places[bisect_left(self.places, (murmur_token(partition.key), partition.key))]

    # reading

    def get(self, given: Given) -> Entry | None:
        """The row with that primary key."""
        partition = self.partitions.get(self.partition_key(given))
        if partition is None:
            return None
        order = self.order_of(given)
        at = bisect_left(partition.order, order)
        return Entry(partition, partition.rows[at]) if partition.order[at : at + 1] == [order] else None

    def scan(self, place: Place = Place()) -> Iterator[Entry]:
        """The rows behind that place, whether or not there is a row in it; all of them without a key."""
        at = 0
        if place.key:
            yield from self.rest_of_partition(place)
            at = bisect_right(self.places, (murmur_token(place.key), place.key))
        for number in range(at, len(self.places)):
            yield from self.partitions[self.places[number][1]].entries

    def rest_of_partition(self, place: Place) -> list[Entry]:
        if place.key not in self.partitions or not place.mark or not place.in_partition:
            return []
        partition = self.partitions[place.key]
        at = bisect_right(partition.order, self.order_of(self.unmark(place.mark)))
        return [Entry(partition, row) for row in partition.rows[at:]]

    def place_behind(self, entries: Sequence[Entry], state: Place) -> Place:
        """Where it goes on behind a page that began at `state`."""
        last = entries[-1]
        here = sum(1 for _ in itertools.takewhile(lambda each: each.partition is last.partition, reversed(entries)))
        goes_on = here == len(entries) and last.partition.key == state.key
        before = state.in_partition if goes_on else UNLIMITED_ROWS
        mark = self.mark(last.row)
        in_partition = before - here if mark else 0
        return Place(last.partition.key, mark, state.remaining - len(entries), in_partition)


def is_null(of: CqlType, value: Value) -> bool:
    """Whether it is stored as a null: an empty collection is, and a user's type of nulls, unless it is frozen."""
    can_be_empty = of.name not in COLLECTIONS and (of.name != "udt" or of.frozen)
    return value is None or (of.is_supported and not can_be_empty and not value)


class Schema:
    """The tables and the types of a keyspace."""

    def __init__(self, keyspace: str) -> None:
        self.keyspace = keyspace
        self.tables: dict[str, Table] = {}
        self.types: dict[str, CqlType] = {}

    def table_of_index(self, name: str) -> Table | None:
        return next((table for table in self.tables.values() if name in table.indexes), None)


def schema_of(database: Database, keyspace: str) -> Schema:
    database.keyspace(keyspace)
    return database.schemas.setdefault(keyspace, Schema(keyspace))


def table_of(call: Call) -> Table | None:
    """The table that the command was sent to; None if it was a collection, or nothing."""
    return schema_of(call.database, call.keyspace).tables.get(call.collection_name)


# ------------------------------------------------------------------------------------------ what is posted where


def run_on_table(name: str, call: Call, table: Table) -> Answer:
    """Carry out a command that was sent to a table."""
    if name not in TABLE_COMMANDS:
        raise refusal("UNSUPPORTED_TABLE_COMMAND/", table=table.full_name, command=name)
    return TABLE_COMMANDS[name](call, table)


def refuse_on_collection(name: str, call: Call) -> None:
    """A command for tables only that was sent to a collection."""
    if name in ONLY_FOR_TABLES:
        raise refusal("UNSUPPORTED_COLLECTION_COMMAND/", table=call.collection.full_name, command=name)


def refuse_name_of_table(call: Call, name: str) -> None:
    """A collection cannot have the name of a table."""
    if name in schema_of(call.database, call.keyspace).tables:
        raise refusal("EXISTING_TABLE_NOT_DATA_API_COLLECTION/SCHEMA", name=name)


def drop_quietly(call: Call, name: str) -> None:
    """What deleteCollection does to a table of that name."""
    schema_of(call.database, call.keyspace).tables.pop(name, None)


# ------------------------------------------------------------------------------------- commands on the keyspace

COLUMN_FIELDS: Final = ("type", "keyType", "valueType", "udtName", "dimension", "service")


def list_tables(call: Call) -> Answer:
    tables = sorted(schema_of(call.database, call.keyspace).tables.items())
    explain = call.options.get("explain") is True
    return {"status": {"tables": [table.describe() if explain else name for name, table in tables]}}


def list_types(call: Call) -> Answer:
    types = sorted(schema_of(call.database, call.keyspace).types.items())
    explain = call.options.get("explain") is True
    return {"status": {"types": [describe_udt(of) if explain else name for name, of in types]}}


def describe_udt(of: CqlType) -> dict[str, Json]:
    known = Column("", of).support
    if not of.is_supported:
        return {"type": "UNSUPPORTED", "apiSupport": known}
    return {**describe_type(of, with_fields=True), "apiSupport": known}


def check_schema_name(kind: str, name: str) -> None:
    if not re.fullmatch(r"[a-zA-Z0-9_]{1,48}", name):
        article = "an" if kind == "Index" else "a"
        raise refusal("UNSUPPORTED_SCHEMA_NAME/SCHEMA", a=f"{article} {kind}", kind=kind, name=name)


def create_table(call: Call) -> Answer:
    schema, name = schema_of(call.database, call.keyspace), str(call.arguments.get("name"))
    definition = call.arguments.get("definition") or {}
    check_schema_name("Table", name)
    columns = [column_of(schema, each, given, call) for each, given in definition.get("columns", {}).items()]
    partition_by, sort = primary_key_of(definition.get("primaryKey"))
    made = [each.type.name for each in columns if each.type.name in ("counter", "timeuuid")]
    if made:
        raise refusal("UNSUPPORTED_DATA_TYPE_TABLE_CREATION/SCHEMA", which=", ".join(made))
    if any(each not in definition["columns"] for each in (*partition_by, *sort)):
        raise not_implemented("a primary key of columns that are not there")
    if name in schema.tables or name in call.database.keyspace(call.keyspace):
        if call.options.get("ifNotExists") is True:
            return OK
        return not_done(refusal("CANNOT_ADD_EXISTING_TABLE/SCHEMA", name=name))
    schema.tables[name] = Table(call.keyspace, name, columns, partition_by, sort)
    return OK


def primary_key_of(given: Json) -> tuple[list[str], dict[str, int]]:
    if given is None:
        java = "io.stargate.sgv2.jsonapi.api.model.command.table.definition"
        why = (
            f'Cannot invoke "{java}.PrimaryKeyDesc.keys()" because the return value of '
            f'"{java}.TableDefinitionDesc.primaryKey()" is null'
        )
        raise refusal("UNEXPECTED_SERVER_ERROR/", java="NullPointerException", why=why)
    if type(given) is str:
        return [given], {}
    return given["partitionBy"], {name: int(way) for name, way in (given.get("partitionSort") or {}).items()}


def column_of(schema: Schema, name: str, given: Json, call: Call) -> Column:
    """The column that a definition asks for."""
    if type(given) is str:
        if given not in SCALARS:
            raise refusal("UNKNOWN_PRIMITIVE_DATA_TYPE/SCHEMA", name=given)
        return Column(name, CqlType(given))
    of = type_of(schema, given)
    for each in given:
        if each not in COLUMN_FIELDS:
            raise refusal("COMMAND_FIELD_UNKNOWN/", field=each, column=name)
    return Column(name, of, service=plain(given.get("service")) if call.database.vectorize else None)


def type_of(schema: Schema, given: Json, *, inside: bool = False) -> CqlType:
    """The type of a column, or of what is inside of it."""
    if type(given) is str:
        given = {"type": given}
    name = given.get("type")
    if name == "userDefined":
        if given.get("udtName") not in schema.types:
            raise refusal("UNKNOWN_USER_DEFINED_TYPE/SCHEMA", name=f"{schema.keyspace}.{given.get('udtName')}")
        return replace(schema.types[given["udtName"]], frozen=inside)
    if name == "vector":
        return CqlType("vector", (CqlType("float"),), dimension=int(given["dimension"]))
    if name in COLLECTIONS:
        parts = [given[part] for part in ("keyType", "valueType") if part in given]
        return CqlType(name, tuple(type_of(schema, part, inside=True) for part in parts))
    if name not in SCALARS:
        raise refusal("UNKNOWN_DATA_TYPE/SCHEMA", name=str(name))
    return CqlType(name)


def create_type(call: Call) -> Answer:
    schema, name = schema_of(call.database, call.keyspace), str(call.arguments.get("name"))
    check_schema_name("Type", name)
    given = (call.arguments.get("definition") or {}).get("fields") or {}
    fields = {each: of if type(of) is str else of.get("type") for each, of in given.items()}
    odd = [of for of in fields.values() if of not in SCALARS]
    if odd:
        raise refusal("UNSUPPORTED_TYPE_FIELDS/SCHEMA", which=", ".join(odd))
    if name in schema.types:
        if call.options.get("ifNotExists") is True:
            return OK
        return not_done(refusal("CANNOT_ADD_EXISTING_TYPE/SCHEMA", name=name))
    made = tuple((each, CqlType(of)) for each, of in fields.items())
    schema.types[name] = CqlType("udt", udt=name, keyspace=call.keyspace, fields=made)
    return OK


def drop(call: Call, kind: str, holder: dict[str, Any] | None) -> Answer:
    """Take a table, a type or an index out of what holds it."""
    name = call.arguments.get("name")
    is_there = bool(holder and holder.pop(str(name), None))
    if not is_there and call.options.get("ifExists") is not True:
        return not_done(refusal(f"CANNOT_DROP_UNKNOWN_{kind.upper()}/SCHEMA", name=str(name)))
    return OK


def drop_table(call: Call) -> Answer:
    return drop(call, "table", schema_of(call.database, call.keyspace).tables)


def drop_index(call: Call) -> Answer:
    table = schema_of(call.database, call.keyspace).table_of_index(call.arguments.get("name", ""))
    return drop(call, "index", cast("dict[str, Any]", table.indexes) if table else None)


def drop_type(call: Call) -> Answer:
    schema, name = schema_of(call.database, call.keyspace), call.arguments.get("name", "")
    users = [
        f'"{table}"'
        for table, each in sorted(schema.tables.items())
        if any(uses(column.type, name) for column in each.columns.values())
    ]
    if users:
        return not_done(refusal("CANNOT_DROP_TYPE_USED_BY_TABLE/SCHEMA", name=name, tables=", ".join(users)))
    return drop(call, "type", schema.types)


def uses(of: CqlType, udt: str) -> bool:
    return of.udt == udt or any(uses(each, udt) for each in (*of.arguments, *(each for _, each in of.fields)))


# ------------------------------------------------------------------------------------------------------ indexes

TEXT_DEFAULTS: Final = {"ascii": False, "caseSensitive": True, "normalize": False}
UNINDEXABLE: dict[str, str] = {
    "blob": "Unsupported type: blob",
    "duration": "Secondary indexes are not supported on duration columns",
}


def list_indexes(call: Call, table: Table) -> Answer:
    indexes = [table.indexes[name] for name in hash_order(sorted(table.indexes), capacity=4)]  # a copied map
    explain = call.options.get("explain") is True
    return {"status": {"indexes": [index.describe() if explain else index.name for index in indexes]}}


def definition_of(call: Call, table: Table) -> tuple[Column, str, Json]:
    """The column to index, the function (`keys`, `values`, `entries` or nothing), and the options."""
    given = call.arguments.get("definition") or {}
    column, function = given.get("column"), ""
    if type(column) is dict:
        ((column, function),) = column.items()
    if column not in table.columns:
        names = {"table": table.full_name, "columns": table.all_columns}
        raise refusal("UNKNOWN_INDEX_COLUMN/SCHEMA", which=str(column), **names)
    made = table.columns[column]
    default = {"list": "values", "set": "values", "map": "entries"}.get(made.type.name, "")
    return made, function.lstrip("$") or default, plain(given.get("options"))


def create_index(call: Call, table: Table) -> Answer:
    column, function, options = definition_of(call, table)
    parts = column.type.arguments or (column.type,)
    indexed = parts[0] if function in ("", "keys") else parts[-1]
    is_text = indexed.name in ("text", "ascii") and function != "entries"
    chosen = {**TEXT_DEFAULTS, **options} if is_text and options is not None else {}
    cql = {"ascii": "ascii", "caseSensitive": "case_sensitive", "normalize": "normalize"}
    in_cql = {cql[name]: str(value).lower() for name, value in chosen.items()}
    return add_index(call, table, Index(call.arguments["name"], "regular", column.name, function, chosen), in_cql)


def create_vector_index(call: Call, table: Table) -> Answer:
    column, _, given = definition_of(call, table)
    options = given or {}
    chosen = {"metric": options.get("metric", "cosine"), "sourceModel": options.get("sourceModel", "other")}
    in_cql = {"source_model": chosen["sourceModel"].upper()}
    if "metric" in options:
        in_cql = {"similarity_function": chosen["metric"].upper(), **in_cql}
    return add_index(call, table, Index(call.arguments["name"], "vector", column.name, "", chosen), in_cql)


def create_text_index(call: Call, table: Table) -> Answer:
    column, _, given = definition_of(call, table)
    chosen = {"analyzer": (given or {}).get("analyzer", "standard")}
    analyzer = chosen["analyzer"] if type(chosen["analyzer"]) is str else dump(chosen["analyzer"])
    index = Index(call.arguments["name"], "text", column.name, "", chosen)
    return add_index(call, table, index, {"index_analyzer": analyzer})


def add_index(call: Call, table: Table, index: Index, in_cql: Mapping[str, str]) -> Answer:
    check_schema_name("Index", index.name)
    if schema_of(call.database, call.keyspace).table_of_index(index.name) is not None:
        if call.options.get("ifNotExists") is True:
            return OK
        return not_done(refusal("CANNOT_ADD_EXISTING_INDEX/SCHEMA", name=index.name))
    why = why_not_indexed(call, table, index)
    if why is None:
        table.indexes[index.name] = index
        return OK
    target = index.target.replace(index.column, table.columns[index.column].identifier)
    cql = f"CREATE CUSTOM INDEX {index.name} ON {table.full_name} ({target}) USING 'StorageAttachedIndex'"
    if in_cql:
        cql += " WITH OPTIONS={" + ",".join(f"'{name}':'{value}'" for name, value in in_cql.items()) + "}"
    names = {"table": table.full_name, "values": NONE}
    return not_done(refusal("INVALID_DATABASE_QUERY/DATABASE", cql=cql, why=why, **names))


def why_not_indexed(call: Call, table: Table, index: Index) -> str | None:
    """Cassandra's reason; None if it makes the index."""
    column = table.columns[index.column]
    if column.type.name in UNINDEXABLE:
        return UNINDEXABLE[column.type.name]
    if table.partition_by == (index.column,):
        return f"Cannot create secondary index on the only partition key column {index.column}"
    same = [each for each in table.indexes.values() if each.target == index.target]
    if same and (same[0].kind, same[0].options) == (index.kind, index.options):
        return f"Index {index.name} is a duplicate of existing index {same[0].name}"
    if same:
        return f"Cannot create more than one storage-attached index on the same column: {index.target}"
    if index.kind == "text" and not call.database.astra:
        return "Properties specified [index_analyzer] are not understood by StorageAttachedIndex"
    return None


# --------------------------------------------------------------------------------------------------- alterTable


def alter_table(call: Call, table: Table) -> Answer:
    schema = schema_of(call.database, call.keyspace)
    ((operation, given),) = (call.arguments.get("operation") or {"nothing": {}}).items()
    columns = given.get("columns") or {}
    if operation == "add":
        added = [column_of(schema, name, each, call) for name, each in columns.items()]
        table.define([*table.columns.values(), *added])
    elif operation == "drop":
        drop_columns(table, columns)
    elif operation in ("addVectorize", "dropVectorize"):
        if call.database.vectorize:
            services = columns if operation == "addVectorize" else dict.fromkeys(columns)
            table.define(replace(each, service=plain(services.get(name))) for name, each in table.columns.items())
    else:
        raise not_implemented(f"alterTable {operation}")
    return OK


def drop_columns(table: Table, names: Iterable[str]) -> None:
    dropped = frozenset(names)
    table.define([each for each in table.columns.values() if each.name not in dropped])
    for entry in table.scan():
        for cells in (entry.partition.static, entry.row.cells if entry.row else {}):
            for name in dropped & set(cells):
                del cells[name]


# ------------------------------------------------------------------------------------------------------- insert


@dataclass(frozen=True)
class Shredded:
    """A row to be written, or why it cannot be."""

    given: Given = field(default_factory=dict)
    refused: Refusal | None = None


def shred(table: Table, document: Json) -> Shredded:
    if type(document) is not dict:
        raise RequestRefusal("SHRED_BAD_DOCUMENT_TYPE", "Document to shred must be a JSON Object.")
    try:
        check_columns(table, document)
        return Shredded(values_of(table, document))
    except TableRefusal as refused:
        return Shredded(refused=refused)


def check_columns(table: Table, document: Mapping[str, Json]) -> None:
    """The refusals that need no look at the values."""
    names = {"table": table.full_name, "columns": table.all_columns}
    missing = [each.with_cql for each in table.key_columns if document.get(each.name) is None]
    if missing:
        given = [each.with_cql for each in table.key_columns if document.get(each.name) is not None]
        texts = {"key": listed(each.with_cql for each in table.key_columns), "table": table.full_name}
        raise refusal("MISSING_PRIMARY_KEY_COLUMNS/DOCUMENT", given=listed(given), missing=listed(missing), **texts)
    unknown = [name for name in document if name not in table.columns]
    if unknown:
        raise refusal("UNKNOWN_TABLE_COLUMNS/DOCUMENT", which=listed(unknown), **names)
    columns = [table.columns[name] for name in document]
    odd = [each.with_api for each in columns if each.support and not each.support["insert"]]
    if odd:
        raise refusal("UNSUPPORTED_COLUMN_TYPES/DOCUMENT", which=listed(odd), **names)
    to_vectorize = [
        each.with_api for each in columns if each.type.name == "vector" and type(document[each.name]) is str
    ]
    if to_vectorize:
        code = "UNSUPPORTED_VECTORIZE_WHEN_MISSING_VECTORIZE_DEFINITION/DOCUMENT"
        raise refusal(code, table=table.full_name, which=listed(to_vectorize))


def values_of(table: Table, document: Mapping[str, Json]) -> Given:
    given, bad = {}, []
    for name, value in document.items():
        column = table.columns[name]
        try:
            given[name] = None if value is None else from_json(column.type, value)
        except BadValue as error:
            bad.append(f"{column.with_api} - Cause: {error}")
    if bad:
        names = {"table": table.full_name, "columns": table.all_columns}
        raise refusal("INVALID_COLUMN_VALUES/DOCUMENT", which=", ".join(bad), **names)
    return given


def row_id(table: Table, shredded: Shredded) -> Json:
    """The values of the primary key, as the answer has them; empty for a row that was not understood."""
    if shredded.refused is not None:
        return []
    return [Raw(to_json(each.type, shredded.given[each.name])) for each in table.key_columns]


def insert_one(call: Call, table: Table) -> Answer:
    return insert_rows(call, table, [call.arguments.get("document")], ordered=False)


def insert_many(call: Call, table: Table) -> Answer:
    documents = call.arguments.get("documents")
    if type(documents) is not list or not documents:
        raise invalid_field("command.documents", documents or [], "must not be empty")
    if len(documents) > MAX_INSERTED_DOCUMENTS:
        over = f"{len(documents)} vs {MAX_INSERTED_DOCUMENTS}"
        why = f"amount of documents to insert is over the max limit ({over})"
        raise invalid_field("command.documents", documents, why)
    return insert_rows(call, table, documents, ordered=call.options.get("ordered") is True)


def insert_rows(call: Call, table: Table, documents: Sequence[Json], *, ordered: bool) -> Answer:
    shredded = [shred(table, document) for document in documents]
    done = len(shredded)
    if ordered:
        done = next((at + 1 for at, each in enumerate(shredded) if each.refused), done)
    for each in shredded[:done]:
        if each.refused is None:
            call.inserted.append((table, table.put(each.given)))
    if call.options.get("returnDocumentResponses") is True:
        return with_responses(table, shredded, done)
    ids = [row_id(table, each) for each in shredded[:done] if each.refused is None]
    errors = [each.refused.as_json() for each in shredded[:done] if each.refused]
    answer: Answer = {"status": {"primaryKeySchema": key_schema(table), "insertedIds": ids}} if ids else {}
    return {**answer, "errors": errors} if errors else answer


def key_schema(table: Table) -> dict[str, Json]:
    return {column.name: column.describe() for column in table.key_columns}


def with_responses(table: Table, shredded: Sequence[Shredded], done: int) -> Answer:
    """A line a row; rows that were refused with the same words share an error."""
    responses: list[Json] = []
    errors: list[Refusal] = []
    for at, each in enumerate(shredded):
        made: dict[str, Json] = {"_id": row_id(table, each), "status": "OK" if at < done else "SKIPPED"}
        if each.refused is not None and at < done:
            same = [one for one, error in enumerate(errors) if error.message == each.refused.message]
            if not same:
                errors.append(each.refused)
            made |= {"status": "ERROR", "errorsIdx": same[0] if same else len(errors) - 1}
        responses.append(made)
    answer: Answer = {"status": {"primaryKeySchema": key_schema(table), "documentResponses": responses}}
    return {**answer, "errors": [each.as_json() for each in errors]} if errors else answer


# --------------------------------------------------------------------------------------------------------- find


@dataclass(frozen=True)
class Condition:
    """A column must have one of these values."""

    column: Column
    values: tuple[Value, ...]
    is_in: bool

    def holds(self, entry: Entry) -> bool:
        cell = entry.cell(self.column.name)
        keys = [order_key(self.column.type, value) for value in self.values]
        return cell is not None and order_key(self.column.type, cell[0]) in keys


def conditions_of(call: Call, table: Table) -> list[Condition]:
    return [condition_of(table, name, value) for name, value in (call.arguments.get("filter") or {}).items()]


def condition_of(table: Table, name: str, value: Json) -> Condition:
    names = {"table": table.full_name, "columns": table.all_columns}
    if name.startswith("$") and name not in table.columns:
        raise not_implemented(f"{name} in a filter on a table")
    if name not in table.columns:
        raise refusal("UNKNOWN_TABLE_COLUMNS/FILTER", which=name, **names)
    column, values, is_in = table.columns[name], [value], False
    if type(value) is dict and next(iter(value), "").startswith("$") and not {"$date", "$binary"} & set(value):
        if list(value) not in (["$eq"], ["$in"]):
            raise not_implemented(f"the filter {dump(value)} on a column")
        is_in = "$in" in value
        values = value["$in"] if is_in else [value["$eq"]]
    try:
        return Condition(column, tuple(from_json(column.type, each) for each in values), is_in)
    except BadValue:
        texts = {"which": name, "type": cql_name(column.type), **names}
        raise refusal("INVALID_FILTER_COLUMN_VALUES/FILTER", **texts) from None


def refuse_conjunction(call: Call, table: Table, conditions: Sequence[Condition], cql: str) -> None:
    """The recorded server puts several conditions in brackets, which Cassandra cannot read. Astra can."""
    if len(conditions) < 2 or call.database.astra:
        return
    by_name = {each.column.name: each for each in conditions}
    ordered = [by_name[name] for name in hash_order(list(by_name))]
    terms = [f"{each.column.identifier} {'IN' if each.is_in else '='} ?" for each in ordered]
    text = cql.format(where=f"({' AND '.join(terms)})")
    values = [plain_text(each.column, value) for each in ordered for value in each.values]
    at = text.index(" AND ") + 1
    seen = f"(... WHERE ({terms[0]} [AND] {ordered[1].column.identifier}...)"
    raise refusal(
        "UNSUPPORTED_DATABASE_QUERY/DATABASE",
        table=table.full_name,
        cql=text,
        values=", ".join(values),
        why=f"line 1:{at} mismatched input 'AND' expecting ')' {seen}",
    )


def plain_text(column: Column, value: Value) -> str:
    text = to_json(column.type, value)
    return str(json.loads(text)) if text.startswith('"') else text


def warnings_of(table: Table, conditions: Sequence[Condition]) -> list[Json]:
    names = {"table": table.full_name, "key": table.key_text, "indexed": table.indexed_text}
    if not conditions:
        return [refusal("ZERO_FILTER_OPERATIONS/WARNING", **names).as_json()]
    indexed = {index.column for index in table.indexes.values()}
    used = [each.column for each in conditions]
    unindexed = [each.name for each in used if each.kind not in (PARTITION, CLUSTERING) and each.name not in indexed]
    if unindexed:
        return [refusal("MISSING_INDEX/WARNING", which=listed(unindexed), **names).as_json()]
    missing = [each for each in table.key_columns if each.kind == PARTITION and each not in used]
    if missing and all(each.kind in (PARTITION, CLUSTERING) for each in used):
        which = listed(each.with_api for each in missing)
        return [refusal("INCOMPLETE_PRIMARY_KEY_FILTER/WARNING", missing=which, **names).as_json()]
    return []


def projected(call: Call, table: Table) -> list[str]:
    """The columns to send, in their order; a refusal if one of them cannot be read."""
    wanted = plain(call.arguments.get("projection") or {})
    chosen = [name for name, value in wanted.items() if value and name != "*"]
    names = [name for name in table.read_order if wanted.get(name, True)]
    if chosen:
        names = [name for name in chosen if name in table.columns]
    texts = {"table": table.full_name, "columns": table.all_columns}
    if not names:
        raise refusal("UNKNOWN_TABLE_COLUMNS/PROJECTION", which=listed(chosen), **texts)
    odd = [each.with_api for name, each in table.columns.items() if name in names and not each.type.is_supported]
    if odd:
        texts["columns"] = listed(each.with_api for each in table.columns.values())
        raise refusal("UNSUPPORTED_COLUMN_TYPES/PROJECTION", which=listed(odd), **texts)
    return names


def selected(table: Table, conditions: Sequence[Condition], place: Place) -> Iterator[Entry]:
    """The rows behind that place for which all conditions hold: by their keys if these are given, else a scan."""
    by_name = {each.column.name: each for each in conditions}
    if not all(name in by_name for name in table.partition_by):
        return (each for each in table.scan(place) if all(condition.holds(each) for condition in conditions))
    keys = [sorted_values(by_name[name]) for name in table.partition_by]
    found = [table.partition_key(dict(zip(table.partition_by, each, strict=True))) for each in itertools.product(*keys)]
    if place.key in found:
        found = found[found.index(place.key) :]
    entries = itertools.chain.from_iterable(
        table.rest_of_partition(place) if key == place.key else table.partitions[key].entries
        for key in found
        if key in table.partitions
    )
    return (each for each in entries if all(condition.holds(each) for condition in conditions))


def sorted_values(condition: Condition) -> list[Value]:
    return [value for value, _ in sorted_pairs(condition.column.type, [(each, None) for each in condition.values])]


def asked_place(call: Call, table: Table, warnings: Sequence[Json]) -> Place | Answer:
    """Where the page begins; the answer if the page state is none."""
    text = call.state_text
    if not text:
        limit = call.options.get("limit")
        return Place(remaining=int(limit) if limit else UNLIMITED_ROWS)
    try:
        place = Place.decode(text, opaque=call.database.is_opaque)
        if place.mark:
            table.unmark(place.mark)
    except (ValueError, IndexError, TypeError):
        status: Answer = {"status": {"warnings": list(warnings)}} if warnings else {}
        return {**status, "errors": [bad_state(table).as_json()]}
    return place


def bad_state(table: Table) -> Refusal:
    refused = bad_page_state(cast("Collection", table))
    return Refusal(refused.code, refused.message.replace("the COLLECTION", "the TABLE"))


def find(call: Call, table: Table) -> Answer:
    names, conditions = projected(call, table), conditions_of(call, table)
    if call.arguments.get("sort"):
        return find_nearest(call, table, names, conditions)
    limit = call.options.get("limit") or UNLIMITED_ROWS
    columns = ",".join(table.columns[name].identifier for name in names)
    cql = f"SELECT {columns} FROM {table.full_name} WHERE {{where}} LIMIT {limit}"
    refuse_conjunction(call, table, conditions, cql)
    warnings = warnings_of(table, conditions)
    place = asked_place(call, table, warnings)
    if isinstance(place, dict):
        return place
    size = min(call.database.page_size, place.remaining)
    if conditions:
        start, entries = Start.SCAN, list(itertools.islice(selected(table, conditions, place), size))
    else:
        start, entries = scanned(call, table, place, size)
    table.last_page = entries
    following = None
    if entries and len(entries) == size and place.remaining > size and table.has_states:
        following = table.place_behind(entries, place).encode(opaque=call.database.is_opaque)
        if start is Start.SCAN or following not in table.issued:
            table.issued[following] = start
    return found(table, names, entries, following, warnings)


def scanned(call: Call, table: Table, place: Place, size: int) -> tuple[Start, list[Entry]]:
    """The next page of a scan, and how its chain began (see PAGE_STATES)."""
    kind, given = call.database.page_states, table.issued.get(call.state_text or "")
    start = given or start_of(table, place)
    is_new_guess = given is None and start is Start.GUESS
    if is_new_guess and kind == "refusing":
        raise bad_state(table)
    if is_new_guess and kind == "restarting":
        place = Place()
    if kind in ("reversing", "shuffling") and start is Start.GUESS:
        return start, (reversed_from if kind == "reversing" else shuffled_from)(table, place)[:size]
    is_skipping = kind == "skipping" and start is not Start.SCAN
    entries = list(itertools.islice(table.scan(place), size + is_skipping))
    if is_skipping:
        del entries[len(entries) // 2 : len(entries) // 2 + 1]
    return start, entries


def start_of(table: Table, place: Place) -> Start:
    """How a chain begins with a state that the server did not give."""
    if not place.key:
        return Start.SCAN
    entries = table.partitions[place.key].entries if place.key in table.partitions else []
    return Start.KNOWN if any(table.mark(each.row) == place.mark for each in entries) else Start.GUESS


def reversed_from(table: Table, place: Place) -> list[Entry]:
    """The rows before that place, the nearest first."""
    entries = list(table.scan())
    before = entries[: len(entries) - len(list(table.scan(place)))]
    if before and (before[-1].partition.key, table.mark(before[-1].row)) == (place.key, place.mark):
        before.pop()
    return before[::-1]


def shuffled_from(table: Table, place: Place) -> list[Entry]:
    """All rows in an order of its own that goes in a circle, from somewhere."""
    rank = partial(RANKS["shuffling"], 0)
    by_rank = {rank(each.partition.key + table.mark(each.row)): each for each in table.scan()}
    ranks = sorted(by_rank)
    at = bisect_right(ranks, rank(place.key + place.mark))
    return [by_rank[each] for each in (*ranks[at:], *ranks[:at])]


def found(
    table: Table, names: Sequence[str], entries: Sequence[Entry], following: str | None, warnings: Sequence[Json] = ()
) -> Answer:
    documents = ",".join(entry.json(names) for entry in entries).encode("utf-8", "replace")
    return {"data": {"documents": documents, "nextPageState": following}, "status": status_of(table, names, warnings)}


def status_of(table: Table, names: Sequence[str], warnings: Sequence[Json]) -> dict[str, Json]:
    schema = {name: each.describe(with_fields=True) for name, each in table.columns.items() if name in names}
    return {**({"warnings": list(warnings)} if warnings else {}), "projectionSchema": schema}


def find_one(call: Call, table: Table) -> Answer:
    options = {**call.options, "limit": Number("1")}
    answer = find(replace(call, arguments={**call.arguments, "options": options}), table)
    if "data" not in answer:
        return answer
    return {"data": {"document": answer["data"]["documents"] or None}, "status": answer["status"]}


def find_nearest(call: Call, table: Table, names: Sequence[str], conditions: Sequence[Condition]) -> Answer:
    ((name, given),) = call.arguments["sort"].items()
    column = table.columns.get(name)
    if column is None or column.type.name != "vector" or type(given) is str:
        raise not_implemented("sorting a table by anything but a vector")
    index = vector_index(table, column)
    vector = from_json(column.type, given)
    limit = min(int(call.options.get("limit") or MAX_NEAREST), MAX_NEAREST)
    entries = [each for each in selected(table, conditions, Place()) if each.cell(name)]
    scored = nearest(entries, name, index.options["metric"], vector)[:limit]
    with_scores = call.options.get("includeSimilarity") is True
    scores = [f'"$similarity":{java_float(score)}' if with_scores else "" for _, score in scored]
    documents = ",".join(entry.json(names, more) for (entry, _), more in zip(scored, scores, strict=True)).encode()
    status = status_of(table, names, warnings_of(table, conditions) if conditions else ())
    if call.options.get("includeSortVector") is True:
        status = {"sortVector": given, **status}
    return {"data": {"documents": documents, "nextPageState": None}, "status": status}


def vector_index(table: Table, column: Column) -> Index:
    for index in table.indexes.values():
        if index.kind == "vector" and index.column == column.name:
            return index
    vectors = [each for each in table.columns.values() if each.type.name == "vector"]
    indexed = [index.column for index in table.indexes.values() if index.kind == "vector"]
    raise refusal(
        "CANNOT_VECTOR_SORT_NON_INDEXED_VECTOR_COLUMNS/SORT",
        table=table.full_name,
        columns=listed(each.with_api for each in vectors),
        indexed=listed(indexed),
        sorted=column.name,
    )


def nearest(entries: Sequence[Entry], name: str, metric: str, vector: Value) -> list[tuple[Entry, float]]:
    """The rows and their similarities, the most similar first."""
    import numpy

    if not entries:
        return []
    vectors = numpy.array([entry.value(name) for entry in entries], dtype=numpy.float64)
    scores = similarities(metric, vectors, numpy.array(vector, dtype=numpy.float64))
    return [(entries[at], float(scores[at])) for at in (-scores).argsort(kind="stable")]


def similarities(metric: str, vectors: Any, vector: Any) -> Any:
    """As Cassandra has them: the measure in 64 bits, what is made of it in 32."""
    import numpy

    one = numpy.float32(1)
    if metric == "euclidean":
        return one / (one + ((vectors - vector) ** 2).sum(axis=1).astype(numpy.float32))
    products = vectors @ vector
    if metric == "cosine":
        with numpy.errstate(all="ignore"):
            products = products / numpy.sqrt((vectors**2).sum(axis=1) * (vector**2).sum())
    return (one + products.astype(numpy.float32)) / numpy.float32(2)


# --------------------------------------------------------------------------------------------- update and delete


def delete_one(call: Call, table: Table) -> Answer:
    return delete_many(call, table)


def delete_many(call: Call, table: Table) -> Answer:
    conditions = conditions_of(call, table)
    refuse_conjunction(call, table, conditions, f"DELETE FROM {table.full_name} WHERE {{where}}")
    if not conditions:
        table.clear()
    for entry in list(selected(table, conditions, Place())):
        table.delete(entry)
    return {"status": {"deletedCount": -1}}


def update_one(call: Call, table: Table) -> Answer:
    update, conditions = call.arguments.get("update") or {}, conditions_of(call, table)
    odd = [name for name in update if name not in ("$set", "$unset", "$push", "$pullAll")]
    if odd:
        raise refusal("UNSUPPORTED_UPDATE_OPERATIONS_FOR_TABLE/UPDATE", which=", ".join(odd))
    for operator, values in update.items():
        counters = [table.columns[name].with_cql for name in values if table.columns[name].type.name == "counter"]
        if counters:
            names = {"table": table.full_name, "columns": table.all_columns}
            raise refusal("UNSUPPORTED_UPDATE_OPERATOR/UPDATE", operator=operator, which=listed(counters), **names)
        if operator in ("$push", "$pullAll"):
            raise not_implemented(f"{operator} on a table")
    refuse_conjunction(call, table, conditions, f"UPDATE {table.full_name} SET ... WHERE {{where}}")
    keys = {each.column.name: each.values[0] for each in conditions}
    changed = values_of(table, {**dict.fromkeys(update.get("$unset") or {}), **(update.get("$set") or {})})
    table.put({**keys, **changed})
    return {"status": {"matchedCount": 1, "modifiedCount": 1}}


TableCommand = Callable[["Call", Table], "Answer"]
KEYSPACE_COMMANDS: dict[str, Callable[[Call], Answer]] = {
    "createTable": create_table,
    "createType": create_type,
    "dropIndex": drop_index,
    "dropTable": drop_table,
    "dropType": drop_type,
    "listTables": list_tables,
    "listTypes": list_types,
}
ONLY_FOR_TABLES: dict[str, TableCommand] = {
    "alterTable": alter_table,
    "createIndex": create_index,
    "createTextIndex": create_text_index,
    "createVectorIndex": create_vector_index,
    "listIndexes": list_indexes,
}
TABLE_COMMANDS: dict[str, TableCommand] = {
    **ONLY_FOR_TABLES,
    "deleteMany": delete_many,
    "deleteOne": delete_one,
    "find": find,
    "findOne": find_one,
    "insertMany": insert_many,
    "insertOne": insert_one,
    "updateOne": update_one,
}
ARGUMENTS: dict[str, frozenset[str]] = {
    "alterTable": frozenset({"operation"}),
    **dict.fromkeys(("createTable", "createType"), frozenset({"name", "definition", "options"})),
    **dict.fromkeys(("dropIndex", "dropTable", "dropType"), frozenset({"name", "options"})),
    **dict.fromkeys(("listIndexes", "listTables", "listTypes"), frozenset({"options"})),
    **dict.fromkeys(
        ("createIndex", "createTextIndex", "createVectorIndex"),
        frozenset({"name", "definition", "indexType", "options"}),
    ),
    "updateOne": frozenset({"filter", "update"}),
}


# ------------------------------------------------------------------------------------------------------- faults


def act_empty_page(exchange: Exchange, table: Table, options: Options) -> Reply:
    if exchange.command != "find":
        return exchange.act()
    state = exchange.call.state_text or Place().encode(opaque=exchange.call.database.is_opaque)
    return Reply(body=encode_answer(found(table, projected(exchange.call, table), [], state)))


def act_repeat_page(exchange: Exchange, table: Table, options: Options) -> Reply:
    if exchange.command != "find" or not table.last_page:
        return exchange.act()
    state = exchange.call.state_text or Place().encode(opaque=exchange.call.database.is_opaque)
    return Reply(body=encode_answer(found(table, projected(exchange.call, table), table.last_page, state)))


def act_alter_row(exchange: Exchange, table: Table, options: Options) -> Reply:
    """Give the columns in `set` other values, behind the back of the client that inserts."""
    reply = exchange.act()
    for each, entry in inserted_at(exchange, options):
        keys = {column.name: entry.value(column.name) for column in each.key_columns}
        each.put({**keys, **exact_values(each, as_wire(options["set"]))})
    return reply


def act_drop_row(exchange: Exchange, table: Table, options: Options) -> Reply:
    reply = exchange.act()
    for each, entry in inserted_at(exchange, options):
        each.delete(entry)
    return reply


def inserted_at(exchange: Exchange, options: Options) -> list[tuple[Table, Entry]]:
    at, done = options.get("index", 0), exchange.call.inserted
    return [done[at]] if -len(done) <= at < len(done) else []


def act_drop_table(exchange: Exchange, table: Table, options: Options) -> Reply:
    with exchange.emulator.database.lock:
        drop_quietly(exchange.call, options.get("target") or table.name)
    return exchange.act()


def act_insert(exchange: Exchange, table: Table, options: Options) -> Reply:
    for row in options["documents"]:
        table.put(exact_values(table, as_wire(row)))
    return exchange.act()


def act_delete(exchange: Exchange, table: Table, options: Options) -> Reply:
    """Delete the first rows of the scan, `count` of them."""
    with exchange.emulator.database.lock:
        for entry in list(itertools.islice(table.scan(), options.get("count", 0))):
            table.delete(entry)
    return exchange.act()


def act_recreate_table(exchange: Exchange, table: Table, options: Options) -> Reply:
    """Somebody drops the table and makes it again; Cassandra's page states stay what they are."""
    with exchange.emulator.database.lock:
        table.indexes.clear()
        if not options.get("keep_documents"):
            table.clear()
    return exchange.act()


def act_alter_definition(exchange: Exchange, table: Table, options: Options) -> Reply:
    """Add the columns in `add`, types as CQL writes them; drop those in `drop`."""
    with exchange.emulator.database.lock:
        types = schema_of(exchange.emulator.database, table.keyspace).types
        added = {name: parse_type(of, table.keyspace, types) for name, of in options.get("add", {}).items()}
        drop_columns(table, options.get("drop", ()))
        table.define([*table.columns.values(), *(Column(name, of) for name, of in added.items())])
    return exchange.act()


def act_bad_page_state(exchange: Exchange, table: Table, options: Options) -> Reply:
    return error_reply(bad_state(table))


TABLE_ACTIONS: dict[str, Callable[[Exchange, Table, Options], Reply]] = {
    "alter_definition": act_alter_definition,
    "alter_document": act_alter_row,
    "bad_page_state": act_bad_page_state,
    "delete": act_delete,
    "drop_collection": act_drop_table,
    "drop_document": act_drop_row,
    "empty_page": act_empty_page,
    "insert": act_insert,
    "recreate_collection": act_recreate_table,
    "repeat_page": act_repeat_page,
}


# ------------------------------------------------------------------------------- tables behind the server's back

EVERY_TYPE: dict[str, str] = {
    **{f"a_{name}": name for name in SCALARS if name not in ("counter", "timeuuid")},
    **{f"l_{name}": f"list<{name}>" for name in ("text", "int", "double", "timestamp", "decimal")},
    **{f"s_{name}": f"set<{name}>" for name in ("text", "uuid", "varint", "float", "date")},
    "m_text_int": "map<text, int>",
    "m_int_text": "map<int, text>",
    "m_timestamp_double": "map<timestamp, double>",
    "m_uuid_blob": "map<uuid, blob>",
    "v": "vector<float, 3>",
}
"""Columns of every type that createTable can make, but for users' types."""


def as_wire(row: Json) -> dict[str, Json]:
    """The row as the server would parse it, every digit kept."""
    made = parse((row if isinstance(row, str) else json.dumps(row)).encode())
    return cast("dict[str, Json]", made)


def exact_values(table: Table, row: Mapping[str, Json]) -> Given:
    types = {name: table.columns[name].type for name in row}
    return {name: None if value is None else from_json(types[name], value, exact=True) for name, value in row.items()}


class Kit:
    """Makes, fills and reads tables as CQL would, without the Data API's limits."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def schema(self, keyspace: str) -> Schema:
        return schema_of(self.database, keyspace)

    def table(self, keyspace: str, name: str) -> Table:
        return self.schema(keyspace).tables[name]

    def create_type(self, keyspace: str, name: str, fields: Mapping[str, str]) -> None:
        """Make a type; the fields' types as CQL writes them."""
        with self.database.lock:
            schema = self.schema(keyspace)
            made = tuple((each, parse_type(of, keyspace, schema.types)) for each, of in fields.items())
            schema.types[name] = CqlType("udt", udt=name, keyspace=keyspace, fields=made)

    def create(
        self,
        keyspace: str,
        name: str,
        columns: Mapping[str, str],
        partition_by: Sequence[str],
        partition_sort: Mapping[str, int] | None = None,
    ) -> Table:
        """Make a table; types as CQL writes them, with `static` in front of a static column's."""
        with self.database.lock:
            schema, made = self.schema(keyspace), []
            for each, text in columns.items():
                is_static = text.startswith("static ")
                of = parse_type(text.removeprefix("static "), keyspace, schema.types)
                made.append(Column(each, of, STATIC if is_static else REGULAR))
            schema.tables[name] = Table(keyspace, name, made, partition_by, partition_sort or {})
            return schema.tables[name]

    def create_index(self, keyspace: str, table: str, cql: str) -> None:
        """Make an index as CQL would: `CREATE INDEX name ON keyspace.table (column)`."""
        match = re.fullmatch(r"CREATE (?:CUSTOM )?INDEX (\w+) ON \S+ \((?:(\w+)\()?(\w+)\)?\)(?s:.*)", cql)
        if match is None:
            raise ValueError(cql)
        index = Index(match[1], "UNKNOWN", match[3], match[2] or "", cql=cql)
        self.table(keyspace, table).indexes[index.name] = index

    def put(self, keyspace: str, table: str, row: Json) -> None:
        """Write a row, given as JSON (a text or an object), as CQL would: decimals keep their scale."""
        with self.database.lock:
            of = self.table(keyspace, table)
            of.put(exact_values(of, as_wire(row)))

    def fill(self, keyspace: str, table: str, count: int, seed: int = 0) -> None:
        """Write so many random rows of all the column's types; the same for the same seed."""
        with self.database.lock:
            of, source = self.table(keyspace, table), random.Random(seed)
            made = RandomRows(of, source)
            wanted = of.size + count
            for _ in range(20 * count):  # keys may repeat, and of some types there are not many
                if of.size < wanted:
                    of.put(made.row())

    def delete(self, keyspace: str, table: str, key: Json) -> bool:
        """Delete the row with that primary key, given as for `put`; whether there was one."""
        with self.database.lock:
            of = self.table(keyspace, table)
            entry = of.get(exact_values(of, as_wire(key)))
            if entry is not None:
                of.delete(entry)
            return entry is not None

    def rows(self, keyspace: str, table: str, columns: Sequence[str] | None = None) -> list[str]:
        """All rows in the order of a scan, each as the server would send it; those columns, or all that can be read."""
        with self.database.lock:
            of = self.table(keyspace, table)
            names = columns or [name for name in of.read_order if of.columns[name].type.is_supported]
            return [entry.json(names) for entry in of.scan()]

    def definitions(self, keyspace: str) -> dict[str, Json]:
        """Each table's definition by its name."""
        with self.database.lock:
            tables = self.schema(keyspace).tables
            return {name: table.describe()["definition"] for name, table in sorted(tables.items())}

    def drop(self, keyspace: str, table: str) -> None:
        with self.database.lock:
            self.schema(keyspace).tables.pop(table, None)


# -------------------------------------------------------------------------------------------------- random rows

WORDS: Final = ("", "a", "Grüße 👋", 'quote " back \\ slash', "\u0000\u001f\x7f", "日本語", "null", "{}", "x" * 300)
LAST_TIMESTAMP: Final = 2**63 - 1
EDGES: dict[str, tuple[Value, ...]] = {
    "ascii": ("", " ", "~", "null"),
    "blob": (b"", b"\0", bytes(range(256))),
    "date": (0, -1, days_of(1, 1, 1), days_of(9999, 12, 31), days_of(10000, 1, 1), days_of(-44, 3, 15), -(2**31)),
    "decimal": tuple(map(Decimal, ("0", "1E+400", "1E-400", "-0.1", "100", "1E+2", "12345678901234567890.123456789"))),
    "double": tuple(map(float, (*NOT_FINITE, "0", "5e-324", "1.7976931348623157e308", "0.1", "1e7", "1e-3"))),
    "duration": ((0, 0, 0), (12, 0, 0), (-1, -2, -3), (2**31 - 1, 2**31 - 1, 2**63 - 1), (0, 14, 36 * 3600 * 10**9)),
    "float": tuple(as_float32(float(each)) for each in (*NOT_FINITE, "0", "1e-45", "3.4028235e38", "0.1", "1e7")),
    "inet": (b"\x7f\0\0\1", bytes(15) + b"\1", bytes.fromhex("20010db8000000000000000000000001")),
    "text": WORDS,
    "time": (0, 1, 86_399_999_999_999, 45_000_000_000_000, 1_000_000),
    "timestamp": (0, -1, LAST_TIMESTAMP, -LAST_TIMESTAMP - 1, 253_402_300_800_000, 1_709_210_096_789),
    "uuid": ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
    "varint": (0, -1, 10**60, -(10**60)),
    **{name: (0, 1, -1, 2 ** (bits - 1) - 1, -(2 ** (bits - 1))) for name, bits in INTEGER_BITS.items()},
}


class RandomRows:
    """Random rows of one table."""

    def __init__(self, table: Table, source: random.Random) -> None:
        self.table = table
        self.source = source
        self.partitions: list[Given] = []

    def row(self) -> Given:
        made: dict[str, Value] = {}
        if self.table.sort and self.partitions and self.source.random() < 0.8:
            made.update(self.source.choice(self.partitions))
        for name, column in self.table.columns.items():
            is_key = column.kind in (PARTITION, CLUSTERING)
            if name in made or (not is_key and self.source.random() < 0.2):
                continue
            made[name] = self.key(column.type) if is_key else self.value(column.type)
        if self.table.sort:
            self.partitions.append({name: made[name] for name in self.table.partition_by})
        return made

    def key(self, of: CqlType) -> Value:
        """No empty one: Cassandra has none."""
        return self.value(of) or self.key(of) if of.name in ("text", "ascii", "blob") else self.value(of)

    def value(self, of: CqlType) -> Value:
        if not of.is_supported:
            return "of a type that the Data API cannot read"
        if of.name == "udt":
            return {name: self.value(each) for name, each in of.fields if self.source.random() < 0.8}
        if of.name == "vector":
            return tuple(as_float32(self.source.uniform(-1, 1)) for _ in range(of.dimension))
        if of.name in COLLECTIONS:
            return self.collection(of)
        if of.name in EDGES and self.source.random() < 0.3:
            return self.source.choice(EDGES[of.name])
        return self.scalar(of.name)

    def collection(self, of: CqlType) -> Value:
        rows = [[self.value(each) for each in of.arguments] for _ in range(self.source.randrange(5))]
        if of.name == "list":
            return [each for (each,) in rows]
        pairs = sorted_pairs(of.arguments[0], [(row[0], row[-1]) for row in rows])
        return pairs if of.name == "map" else [first for first, _ in pairs]

    def scalar(self, name: str) -> Value:
        source = self.source
        if name in INTEGER_BITS:
            bits = INTEGER_BITS[name]
            return source.randrange(-(1 << bits - 1), 1 << bits - 1)
        makers: dict[str, Callable[[], Value]] = {
            "ascii": lambda: "".join(source.choices(string.printable, k=source.randrange(20))),
            "blob": lambda: source.randbytes(source.randrange(40)),
            "boolean": lambda: source.random() < 0.5,
            "date": lambda: source.randrange(-1_000_000, 1_000_000),
            "decimal": lambda: Decimal(f"{source.randrange(-(10**30), 10**30) * 10 + 1}E-{source.randrange(1, 40)}"),
            "double": lambda: source.gauss(0, 1) * 10 ** source.randrange(-9, 9),
            "duration": lambda: (source.randrange(100), source.randrange(100), source.randrange(10**15)),
            "float": lambda: as_float32(source.gauss(0, 1) * 10 ** source.randrange(-9, 9)),
            "inet": lambda: source.randbytes(source.choice((4, 16))),
            "text": lambda: "".join(source.choices(string.printable + "äöü€👋", k=source.randrange(30))),
            "time": lambda: source.randrange(86_400 * 10**9),
            "timestamp": lambda: source.randrange(-(10**14), 10**14),
            "timeuuid": lambda: time_uuid(source),
            "uuid": lambda: str(uuid.UUID(int=source.getrandbits(128), version=4)),
            "varint": lambda: source.randrange(-(10**40), 10**40),
        }
        return makers[name]()


def time_uuid(source: random.Random) -> str:
    return str(uuid.UUID(int=source.getrandbits(128), version=1))
