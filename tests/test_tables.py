"""Tables are backed up with the collections of a keyspace, and come back: types, tables, rows, indexes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import KEYSPACE, Cli
from tests.emulators.data_api import DataApiEmulator
from tests.emulators.tables import EVERY_TYPE
from tests.support import Api, fill, manifest_of, snapshot_of

Json = Any
ADDRESS = {"street": "text", "zip": "int", "took": "duration"}
USERS = {
    "u": "address",
    "l_u": "list<frozen<address>>",
    "m_u": "map<text, frozen<address>>",
    "l_d": "list<duration>",
    "m_d": "map<int, duration>",
}
COMPOSITE = {"k1": "text", "k2": "date", "k3": "int"}

pytestmark = pytest.mark.warm


def make_zoo(emulator: DataApiEmulator, count: int = 200, name: str = "zoo") -> None:
    """A table of every type that the Data API can create, with random rows and some indexes."""
    kit = emulator.tables
    kit.create_type(KEYSPACE, "address", ADDRESS)
    columns = {**COMPOSITE, **EVERY_TYPE, **USERS}
    kit.create(KEYSPACE, name, columns, ["k1", "k2"], {"k3": -1})
    kit.fill(KEYSPACE, name, count)


def rows_of(snapshot: Path, name: str) -> list[str]:
    """The lines of a table's data file."""
    return gzip.decompress((snapshot / f"{name}.rows.jsonl.gz").read_bytes()).decode().split("\n")[:-1]


def by_columns(line: str) -> dict[str, str]:
    """A row's columns, in any order, each with the server's own digits."""
    parsed: dict[str, str] = {}
    for name, value in json.loads(line, parse_float=_Digits, parse_int=_Digits).items():
        parsed[name] = repr(value)
    return parsed


class _Digits(str):
    """A number as it is spelt."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{self!s}>"


def same_rows(lines: list[str], others: list[str]) -> None:
    """The rows are the same texts, whatever the order of rows and columns."""
    assert len(lines) == len(others)
    first, second = (sorted(sorted(by_columns(line).items()) for line in rows) for rows in (lines, others))
    assert first == second


def test_rows_are_backed_up_to_the_digit(source: DataApiEmulator, cli: Cli) -> None:
    """Each row of a table of every type is in the data file as the server sends it, with all of its columns."""
    make_zoo(source, 500)
    fill(source, "docs", 3)
    snapshot = snapshot_of(source, cli)
    same_rows(rows_of(snapshot, "zoo"), source.tables.rows(KEYSPACE, "zoo"))
    manifest = manifest_of(snapshot)
    (table,) = manifest["tables"]
    assert table["row_count"] == 500
    assert table["definition"] == source.tables.definitions(KEYSPACE)["zoo"]
    assert [of["udtName"] for of in manifest["types"]] == ["address"]
    totals = {"collections_ok": 1, "collections_failed": 0, "documents": 3}
    assert manifest["totals"] == {**totals, "tables_ok": 1, "tables_failed": 0, "rows": 500}


INDEXES = (
    {"createIndex": {"name": "ix_int", "definition": {"column": "a_int"}}},
    {"createIndex": {"name": "ix_text", "definition": {"column": "a_text", "options": {"caseSensitive": False}}}},
    {"createIndex": {"name": "ix_keys", "definition": {"column": {"m_text_int": "$keys"}}}},
    {"createIndex": {"name": "ix_entries", "definition": {"column": "m_int_text"}}},
    {"createVectorIndex": {"name": "ix_v", "definition": {"column": "v", "options": {"metric": "euclidean"}}}},
)


def add_indexes(emulator: DataApiEmulator, table: str = "zoo") -> None:
    """Indexes of each kind."""
    api = Api(emulator)
    for index in INDEXES:
        assert api(index, table) == {"status": {"ok": 1}}


def indexes_of(emulator: DataApiEmulator, table: str) -> list[Json]:
    """A table's indexes, by name."""
    answer = Api(emulator)({"listIndexes": {"options": {"explain": True}}}, table)
    return sorted(answer["status"]["indexes"], key=lambda index: str(index["name"]))


def same_tables(source: DataApiEmulator, target: DataApiEmulator, table: str = "zoo", other: str = "") -> None:
    """Definition, indexes and all rows of a table are the same in both places."""
    other = other or table
    assert source.tables.definitions(KEYSPACE)[table] == target.tables.definitions(KEYSPACE)[other]
    assert indexes_of(source, table) == indexes_of(target, other)
    same_rows(source.tables.rows(KEYSPACE, table), target.tables.rows(KEYSPACE, other))


def test_a_table_of_every_type_comes_back(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Each of many random rows of every type comes back as the same text, with the types and the indexes."""
    make_zoo(source, 5000)
    add_indexes(source)
    fill(source, "docs", 3)
    snapshot = snapshot_of(source, cli)
    result = cli.restore(target, snapshot, "--json")
    assert result.code == 0, result.err
    assert [(row["name"], row["inserted"], row["equal"]) for row in result.json["collections"]] == [
        ("docs", 3, True),
        ("zoo", 5000, True),
    ]
    same_tables(source, target)
    commands = [request.command for request in target.requests]
    first = [command for command in dict.fromkeys(commands) if command.startswith(("create", "insert"))]
    assert first.index("createType") < first.index("createTable") < first.index("insertMany")
    last_insert = len(commands) - 1 - commands[::-1].index("insertMany")
    assert commands.index("createIndex") > last_insert
