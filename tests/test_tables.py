"""Tables are backed up with the collections of a keyspace, and come back: types, tables, rows, indexes."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.conftest import KEYSPACE, TOKEN, Cli
from tests.emulators.data_api import DataApiEmulator, Reply, Request
from tests.emulators.tables import EVERY_TYPE
from tests.support import WRITES, Api, before, fill, make_kind, manifest_of, snapshot_of, swap_kind, wait_for

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


# ------------------------------------------------------------------------------------------------------- backup


def test_a_column_that_cannot_be_read_fails_its_table(source: DataApiEmulator, cli: Cli) -> None:
    """A table with a tuple is a failed one, which says the column and what to do; --exclude leaves it out."""
    source.tables.create(KEYSPACE, "odd", {"id": "text", "tu": "tuple<int, text>"}, ["id"])
    source.tables.create(KEYSPACE, "good", {"id": "text"}, ["id"])
    fill(source, "docs", 3)
    result = cli.backup(source)
    assert result.code == 2
    (snapshot,) = cli.snapshots()
    manifest = manifest_of(snapshot)
    assert [(table["name"], table["status"]) for table in manifest["tables"]] == [("good", "ok"), ("odd", "failed")]
    error = manifest["tables"][1]["error"]
    assert "cannot read tu" in error
    assert "--exclude odd" in error
    assert manifest["tables"][1]["data_file"] is None
    assert manifest["totals"]["tables_failed"] == 1
    check = cli.backup(source, "--check")
    assert check.code == 1
    assert "cannot read tu" in check.out
    assert cli.backup(source, "--exclude", "odd").code == 0
    assert cli.restore(source, snapshot, "--verify-only", "--force-incomplete").code == 0


def test_tables_that_cannot_be_listed_make_the_snapshot_incomplete(source: DataApiEmulator, cli: Cli) -> None:
    """A listTables that fails throughout costs no collection, and no snapshot without tables is called complete."""
    fill(source, "docs", 3)
    source.faults = [{"action": "error", "status": 503, "command": "listTables", "times": None}]
    result = cli.backup(source, "--retry-budget", "1")
    assert result.code == 2
    assert "INCOMPLETE, its tables could not be listed" in result.out
    (snapshot,) = cli.snapshots()
    manifest = manifest_of(snapshot)
    assert manifest["status"] == "incomplete"
    assert "could not ask whether the keyspace has tables" in manifest["warnings"][0]
    assert [record["status"] for record in manifest["collections"]] == ["ok"]
    assert cli.backup(source, "--retry-budget", "1", "--collection", "docs").code == 0
    named = cli.backup(source, "--retry-budget", "1", "--collection", "settings")
    assert named.code == 1
    assert "may have tables that could not be listed" in named.err


@pytest.mark.parametrize(
    "fault", [{"action": "status", "status": 403}, {"action": "error", "errorCode": "UNAUTHORIZED_ACCESS"}]
)
def test_a_token_that_may_not_list_tables_makes_no_complete_snapshot(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, fault: Json
) -> None:
    """There may be tables: 2, in --check too, and a restore names what may be missing; --collection needs none."""
    fill(source, "docs", 3)
    source.faults = [{**fault, "command": "listTables", "times": None}]
    result = cli.backup(source, "--exclude", "other")
    assert result.code == 2, result.err
    assert "INCOMPLETE, its tables could not be listed" in result.out
    assert "--exclude other: there is no such collection, and the tables could not be listed." in result.err
    check = cli.backup(source, "--check")
    assert check.code == 1
    assert "✗ tables" in check.out
    (snapshot,) = cli.snapshots()
    refused = cli.restore(target, snapshot)
    assert refused.code == 3
    assert "failed: could not ask whether the keyspace has tables" in refused.err
    forced = cli.restore(target, snapshot, "--force-incomplete")
    assert forced.code == 0
    assert "missing: could not ask whether the keyspace has tables" in forced.err
    assert cli.backup(source, "--collection", "docs").code == 0


def test_what_the_result_line_and_a_hint_say_of_a_refusal(source: DataApiEmulator, cli: Cli) -> None:
    """A listTables that is refused is a warning, which the result counts; where nothing was repeated, no hint speaks of
    repeating.
    """
    fill(source, "docs", 3)
    source.faults = [{"action": "status", "status": 418, "command": "listTables", "times": None}]
    result = cli.backup(source)
    assert result.code == 0, result.err
    assert ": complete, with 1 warning; 1 collection, 3 documents" in result.out
    assert "Check --api-endpoint, and any proxy in between." in result.err
    assert "--retry-budget" not in result.err


def test_a_number_beyond_any_float_in_an_index_is_no_bug(source: DataApiEmulator, cli: Cli) -> None:
    """What a server says of an index may hold such a number: the JSON result leaves indexes out."""
    with Escaping(token=TOKEN) as server:
        server.index_facts = '"weight":1E+400,'
        small(server, 3)
        assert Api(server)({"createIndex": {"name": "ix", "definition": {"column": "a"}}}, "t") == {"status": {"ok": 1}}
        result = cli.backup(server, "--json")
    assert result.code == 0, result.err
    assert result.json["status"] == "complete"


@pytest.mark.parametrize("page_size", [20, 50])
@pytest.mark.parametrize("more", [0, 1])
def test_a_server_without_page_states_fails_its_tables(cli: Cli, page_size: int, more: int) -> None:
    """A full page behind which nothing follows is no backup of a table; one that is not full is."""
    with DataApiEmulator(token=TOKEN, page_size=page_size) as source:
        table = source.tables.create(KEYSPACE, "t", {"id": "int"}, ["id"])
        source.tables.fill(KEYSPACE, "t", page_size + more)
        table.has_states = False
        source.faults = [{"action": "error", "errorCode": "COMMAND_UNKNOWN", "command": "listTypes", "times": None}]
        result = cli.backup(source)
        assert result.code == 2, result.err
        assert "a full page" in result.err
        for row in source.tables.rows(KEYSPACE, "t")[: 1 + more]:
            source.tables.delete(KEYSPACE, "t", row)
        assert cli.backup(source).code == 0


@pytest.mark.parametrize("rows", [20, 40, 50, 100])
def test_a_last_page_that_is_full_is_no_matter_where_states_are(source: DataApiEmulator, cli: Cli, rows: int) -> None:
    """As many rows as fit onto whole pages are backed up, also of a table that is alone in its keyspace."""
    source.tables.create(KEYSPACE, "t", {"id": "int"}, ["id"])
    source.tables.fill(KEYSPACE, "t", rows)
    assert cli.backup(source, "--workers", 1).code == 0
    assert len(rows_of(cli.snapshots()[0], "t")) == rows


@pytest.mark.parametrize("kind", ["text", "uuid", "int", "bigint"])
def test_a_table_is_read_at_several_places_at_once(source: DataApiEmulator, cli: Cli, kind: str) -> None:
    """A table with a key of one such column is read by several chains, and holds each row once."""
    source.tables.create(KEYSPACE, "t", {"id": kind, "n": "int"}, ["id"])
    if kind == "text":
        for number in range(3000):
            source.tables.put(KEYSPACE, "t", {"id": f"r{number:06}", "n": number})
    else:
        source.tables.fill(KEYSPACE, "t", 3000)
    snapshot = snapshot_of(source, cli)
    (table,) = manifest_of(snapshot)["tables"]
    assert table["chains"] > 4
    same_rows(rows_of(snapshot, "t"), source.tables.rows(KEYSPACE, "t"))


@pytest.mark.parametrize("kind", ["refusing", "restarting", "reversing", "shuffling", "skipping"])
def test_guesses_that_mislead_cost_no_row(source: DataApiEmulator, cli: Cli, kind: str) -> None:
    """Where states that were made lead elsewhere, the table is read serially, and nothing is missing or there twice."""
    source.tables.create(KEYSPACE, "t", {"id": "uuid", "n": "int"}, ["id"])
    source.tables.fill(KEYSPACE, "t", 1000)
    source.database.page_states = kind
    snapshot = snapshot_of(source, cli)
    same_rows(rows_of(snapshot, "t"), source.tables.rows(KEYSPACE, "t"))


def test_a_keyspace_without_tables_has_the_manifest_of_before(source: DataApiEmulator, cli: Cli) -> None:
    """Collections only: nothing in the manifest says anything of tables."""
    fill(source, "docs", 3)
    manifest = manifest_of(snapshot_of(source, cli))
    assert not {"tables", "types"} & manifest.keys()
    assert manifest["totals"] == {"collections_ok": 1, "collections_failed": 0, "documents": 3}


def test_rows_that_vanish_are_a_shrink(source: DataApiEmulator, cli: Cli) -> None:
    """A table that lost most of its rows, or is gone, ends the run with 5."""
    source.tables.create(KEYSPACE, "t", {"id": "int"}, ["id"])
    source.tables.fill(KEYSPACE, "t", 300)
    fill(source, "docs", 3)
    assert cli.backup(source).code == 0
    for row in source.tables.rows(KEYSPACE, "t")[:200]:
        source.tables.delete(KEYSPACE, "t", row)
    result = cli.backup(source)
    assert result.code == 5, result.err
    assert "300" in result.err.split("Shrunk since")[1]
    assert "rows" in result.err.split("Shrunk since")[1]
    source.tables.drop(KEYSPACE, "t")
    result = cli.backup(source, "--max-shrink", 10)
    assert result.code == 5, result.err
    assert "the table is gone" in result.err


def test_an_altered_table_is_read_again(source: DataApiEmulator, cli: Cli) -> None:
    """A column that is added during the scan is in the definition and in the rows."""
    source.tables.create(KEYSPACE, "t", {"id": "int"}, ["id"])
    source.tables.fill(KEYSPACE, "t", 100)
    source.faults = [{"action": "alter_definition", "add": {"n": "int"}, "command": "find", "skip": 1, "times": 1}]
    snapshot = snapshot_of(source, cli)
    (table,) = manifest_of(snapshot)["tables"]
    assert set(table["definition"]["columns"]) == {"id", "n"}
    assert len(rows_of(snapshot, "t")) == 100


def test_an_encrypted_table_comes_back(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Rows are encrypted as documents are, and `--show` prints one by its key."""
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    (cli.directory / "key").write_text(f"{identity}\n")
    source.tables.create(KEYSPACE, "t", {"id": "int", "d": "decimal"}, ["id"])
    source.tables.put(KEYSPACE, "t", {"id": 7, "d": 1.5})
    snapshot = snapshot_of(source, cli, "--encrypt-to", str(identity.to_public()))
    assert (snapshot / "t.rows.jsonl.gz.age").exists()
    assert cli.restore(target, snapshot, "--show", "7", "--identity", "key").out == '{"id":7,"d":1.5}\n'
    assert cli.restore(target, snapshot, "--identity", "key").code == 0
    same_tables(source, target, "t")


# ------------------------------------------------------------------------------------------------------ restore

SCHEMA_WRITES = {"createTable", "createType", "createIndex", "createVectorIndex", "dropTable", "dropType", *WRITES}


def sent(emulator: DataApiEmulator) -> list[str]:
    """The writing commands that reached a server."""
    return [request.command for request in emulator.requests if request.command in SCHEMA_WRITES]


def small(emulator: DataApiEmulator, rows: int = 120, name: str = "t", first: int = 0) -> None:
    """A table of a few small rows."""
    emulator.tables.create(KEYSPACE, name, {"id": "int", "a": "text", "b": "text"}, ["id"])
    for number in range(first, first + rows):
        emulator.tables.put(KEYSPACE, name, {"id": number, "a": f"a{number}"})


def test_a_table_with_rows_is_refused(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """An insert would change what is there: without a choice nothing is written."""
    small(source)
    small(target, 1)
    result = cli.restore(target, snapshot_of(source, cli))
    assert result.code == 4, result.err
    assert "already holds rows" in result.err
    assert sent(target) == []


def test_skipping_keeps_the_rows_that_are_there(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """With --on-existing skip no row that is there changes, what is missing goes in, and a difference ends in 5."""
    small(source, 300)
    snapshot = snapshot_of(source, cli)
    small(target, 150)
    result = cli.restore(target, snapshot, "--on-existing", "skip", "--json")
    assert result.code == 0, result.err
    (row,) = result.json["collections"]
    assert (row["inserted"], row["already_there"]) == (150, 150)
    same_tables(source, target, "t")
    target.tables.put(KEYSPACE, "t", {"id": 5, "a": "kept", "b": "kept"})
    target.tables.delete(KEYSPACE, "t", {"id": 6})
    result = cli.restore(target, snapshot, "--on-existing", "skip", "--json")
    assert result.code == 5, result.err
    (row,) = result.json["collections"]
    assert (row["inserted"], row["already_there"], row["different"], row["missing"]) == (1, 299, 1, 0)
    assert any('"kept"' in text for text in target.tables.rows(KEYSPACE, "t"))


class Escaping(DataApiEmulator):
    """A server that writes letters beyond ASCII as escapes, and says of an index something that is new."""

    index_facts = '"sinceVersion":9,'

    def reply_to(self, request: Request) -> Reply:
        """The same answer in another spelling."""
        reply = super().reply_to(request)
        text = reply.body.decode().replace('"indexType":', f'{self.index_facts}"indexType":')
        return replace(reply, body="".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text).encode())


def test_a_key_is_the_same_however_it_is_spelt(source: DataApiEmulator, cli: Cli) -> None:
    """A text key that the target's server escapes is the key of the snapshot: skip keeps the row, and all compares.
    What else a server says of its indexes is no difference.
    """
    with Escaping(token=TOKEN) as target:
        for emulator in (source, target):
            emulator.tables.create(KEYSPACE, "t", {"id": "text", "a": "text"}, ["id"])
            add = {"createIndex": {"name": "ix", "definition": {"column": "a"}}}
            assert Api(emulator)(add, "t") == {"status": {"ok": 1}}
            emulator.tables.put(KEYSPACE, "t", {"id": "ü😀/", "a": "ß"})
        source.tables.put(KEYSPACE, "t", {"id": "é", "a": "new"})
        snapshot = snapshot_of(source, cli)
        result = cli.restore(target, snapshot, "--on-existing", "skip", "--json")
        assert result.code == 0, result.err
        (row,) = result.json["collections"]
        assert (row["inserted"], row["already_there"]) == (1, 1)
        assert cli.restore(target, snapshot, "--compare").code == 0
        assert cli.restore(target, snapshot_of(target, cli), "--compare").code == 0


def test_overwriting_leaves_nothing_of_the_old_rows(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """With --on-existing overwrite a row becomes the snapshot's, also in columns that it lacks; other rows stay."""
    small(source)
    small(target, 1)
    target.tables.put(KEYSPACE, "t", {"id": 5, "a": "old", "b": "old"})
    target.tables.put(KEYSPACE, "t", {"id": 999, "b": "of somebody else"})
    result = cli.restore(target, snapshot_of(source, cli), "--on-existing", "overwrite")
    assert result.code == 0, result.err
    other = '{"b":"of somebody else","id":999}'
    same_rows(target.tables.rows(KEYSPACE, "t"), [*source.tables.rows(KEYSPACE, "t"), other])


def test_dropping_takes_the_table_and_makes_it_anew(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """With --on-existing drop a table of another definition goes; that the new one can be made is proved before."""
    small(source)
    target.tables.create(KEYSPACE, "t", {"id": "text"}, ["id"])
    target.tables.put(KEYSPACE, "t", {"id": "x"})
    result = cli.restore(target, snapshot_of(source, cli), "--on-existing", "drop", "--yes")
    assert result.code == 0, result.err
    same_tables(source, target, "t")
    assert sent(target)[:4] == ["createTable", "dropTable", "dropTable", "createTable"]


def test_names_clash_with_the_other_kind(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """A collection of a table's name, and a table of a collection's, are refusals whatever was chosen."""
    small(source)
    fill(source, "docs", 3)
    snapshot = snapshot_of(source, cli)
    fill(target, "t", 2)
    target.tables.create(KEYSPACE, "docs", {"id": "text"}, ["id"])
    target.tables.put(KEYSPACE, "docs", {"id": "x"})
    for how in ([], ["--on-existing", "drop", "--yes"], ["--on-existing", "overwrite"]):
        result = cli.restore(target, snapshot, *how)
        assert result.code == 4, result.err
        assert "t: there is a collection of that name" in result.err
        assert "docs: there is a table of that name" in result.err
    assert sent(target) == []
    assert target.tables.rows(KEYSPACE, "docs") == ['{"id":"x"}']


def make_lossy(emulator: DataApiEmulator) -> None:
    """Tables with what only CQL can make."""
    kit = emulator.tables
    kit.create(KEYSPACE, "counters", {"p": "text", "n": "counter"}, ["p"])
    kit.put(KEYSPACE, "counters", {"p": "x", "n": 5})
    kit.create(KEYSPACE, "statics", {"p": "text", "c": "int", "st": "static text", "v": "text"}, ["p"], {"c": 1})
    kit.put(KEYSPACE, "statics", {"p": "a", "st": "S1", "c": 1, "v": "v1"})
    kit.put(KEYSPACE, "statics", {"p": "alone", "st": "S0"})
    kit.create(KEYSPACE, "cql", {"p": "text", "t": "timeuuid", "fl": "frozen<list<int>>"}, ["p"])
    kit.put(KEYSPACE, "cql", {"p": "x", "t": "fd571730-e9bd-11f1-84be-8b92cbaac795", "fl": [1, 2]})
    kit.create_index(KEYSPACE, "cql", f"CREATE INDEX legacy_ix ON {KEYSPACE}.cql (t);")


def test_what_cannot_come_back_is_refused_and_named(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Counters, static and CQL-only columns are exit 4; with --allow-lossy-tables the rest comes back."""
    make_lossy(source)
    snapshot = snapshot_of(source, cli)
    for mode in ([], ["--dry-run"]):
        result = cli.restore(target, snapshot, *mode)
        assert result.code == 4, result.err
        for said in ("the counter n", "the static column st", "1 partition with static values only", "t (timeuuid)"):
            assert said in result.err
    plan = cli.restore(target, snapshot, "--dry-run", "--allow-lossy-tables")
    assert plan.code == 0
    assert "the index legacy_ix was made by CQL" in plan.out
    assert "TTL" in plan.out
    assert sent(target) == []
    result = cli.restore(target, snapshot, "--allow-lossy-tables")
    assert result.code == 0, result.err
    assert "compared with the snapshot: equal, but for what the plan leaves out" in result.out
    drill = cli.restore(target, snapshot, "--allow-lossy-tables", "--drill")
    assert "cql: 1 row, equal, but for what the plan leaves out, no vectors with an index" in drill.out
    drill = cli.restore(target, snapshot, "--allow-lossy-tables", "--drill", "--json")
    assert drill.json["snapshot"] == str(snapshot)
    left_out = {row["name"]: row["left_out"] for row in drill.json["collections"]}
    assert "which only CQL can create, becomes an ordinary column" in str(left_out["cql"])
    assert target.tables.rows(KEYSPACE, "counters") == ['{"p":"x"}']
    same_rows(target.tables.rows(KEYSPACE, "statics"), ['{"p":"a","c":1,"st":"S1","v":"v1"}'])
    same_rows(target.tables.rows(KEYSPACE, "cql"), source.tables.rows(KEYSPACE, "cql"))


def test_decimals_lose_their_scale_and_nothing_else(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """The plan says so for the table; the comparison takes 1.10 and 1.1 for equal, -0.0 and 0.0 too."""
    source.tables.create(KEYSPACE, "t", {"id": "int", "d": "decimal", "f": "double", "v": "vector<float, 2>"}, ["id"])
    source.tables.put(KEYSPACE, "t", '{"id":1,"d":1.10,"f":-0.0,"v":["NaN",1.5]}')
    snapshot = snapshot_of(source, cli)
    plan = cli.restore(target, snapshot, "--dry-run").out
    assert "decimals lose their scale" in plan
    assert "-0.0 becomes 0.0" in plan
    result = cli.restore(target, snapshot)
    assert result.code == 0, result.err
    same_rows(target.tables.rows(KEYSPACE, "t"), ['{"id":1,"d":1.1,"f":0.0,"v":["NaN",1.5]}'])


def test_keys_that_become_one_are_told(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Two rows whose decimal keys differ in their scale only are one in the target: that is a difference."""
    source.tables.create(KEYSPACE, "t", {"id": "decimal"}, ["id"])
    for text in ('{"id":1.10}', '{"id":1.1}'):
        source.tables.put(KEYSPACE, "t", text)
    result = cli.restore(target, snapshot_of(source, cli))
    assert result.code == 5, result.err
    assert "1 missing" in result.out


def test_a_dry_run_writes_nothing(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """--dry-run plans tables, types and indexes, and sends no command that writes."""
    make_zoo(source, 20)
    add_indexes(source)
    result = cli.restore(target, snapshot_of(source, cli), "--dry-run")
    assert result.code == 0, result.err
    assert "zoo: create, insert 20 rows" in result.out
    assert sent(target) == []


def test_a_rename_into_the_same_keyspace(source: DataApiEmulator, cli: Cli) -> None:
    """Under another name a table comes back beside itself; its indexes get names that are free."""
    make_zoo(source, 60)
    add_indexes(source)
    snapshot = snapshot_of(source, cli)
    result = cli.restore(source, snapshot, "--rename", "zoo=copy", "--yes")
    assert result.code == 0, result.err
    same_rows(source.tables.rows(KEYSPACE, "zoo"), source.tables.rows(KEYSPACE, "copy"))
    renamed = [{**index, "name": f"copy_{index['name']}"} for index in indexes_of(source, "zoo")]
    assert indexes_of(source, "copy") == renamed


def test_an_index_of_a_renamed_table_gets_a_free_name(source: DataApiEmulator, cli: Cli) -> None:
    """Names that are taken, or that are one when they are cut, are not promised: the indexes are made, twice too."""
    long = "x" * 46
    source.tables.create(KEYSPACE, "t", {"id": "text", "a": "int", "b": "int", "c": "int"}, ["id"])
    source.tables.create(KEYSPACE, "else", {"id": "text", "a": "int"}, ["id"])
    api = Api(source)
    for table, name, column in (
        ("t", "ix", "a"),
        ("t", f"{long}1", "b"),
        ("t", f"{long}2", "c"),
        ("else", "copy_ix", "a"),
    ):
        command = {"createIndex": {"name": name, "definition": {"column": column}}}
        assert api(command, table) == {"status": {"ok": 1}}
    snapshot = snapshot_of(source, cli)
    options = ("--collection", "t", "--rename", "t=copy", "--yes")
    for mode in ((), ("--on-existing", "overwrite"), ("--compare",)):
        result = cli.restore(source, snapshot, *options, *mode)
        assert result.code == 0, result.err
        listed = api({"listIndexes": {"options": {"explain": True}}}, "copy")["status"]["indexes"]
        assert {index["definition"]["column"] for index in listed} == {"a", "b", "c"}
        assert len({index["name"] for index in listed}) == 3


def test_an_index_name_of_another_table_is_refused(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """The names of indexes are the keyspace's: one that another table has is exit 4 before anything is written."""
    small(source)
    small(target, 1, name="other")
    index = {"createIndex": {"name": "ix", "definition": {"column": "a"}}}
    Api(source)(index, "t")
    Api(target)(index, "other")
    target.requests.clear()
    result = cli.restore(target, snapshot_of(source, cli))
    assert result.code == 4, result.err
    assert "the table other has an index ix already" in result.err
    assert sent(target) == []


def test_a_type_with_other_fields_is_refused(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """A type of that name that is another is exit 4; one that is the same is used."""
    make_zoo(source, 20)
    snapshot = snapshot_of(source, cli)
    target.tables.create_type(KEYSPACE, "address", {"street": "text"})
    result = cli.restore(target, snapshot)
    assert result.code == 4, result.err
    assert "the type address exists with other fields" in result.err
    assert sent(target) == []
    target.tables.create_type(KEYSPACE, "address", ADDRESS)
    assert cli.restore(target, snapshot).code == 0
    assert "createType" not in sent(target)


def test_comparing_names_each_difference(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """--compare finds a row that is missing, one that is another, one too many, and a missing index; by their keys."""
    small(source, 300)
    Api(source)({"createIndex": {"name": "ix", "definition": {"column": "a"}}}, "t")
    snapshot = snapshot_of(source, cli)
    assert cli.restore(target, snapshot).code == 0
    assert cli.restore(target, snapshot, "--compare").code == 0
    target.tables.delete(KEYSPACE, "t", {"id": 1})
    target.tables.put(KEYSPACE, "t", {"id": 2, "a": "another"})
    target.tables.put(KEYSPACE, "t", {"id": 1000, "a": "new"})
    Api(target)({"dropIndex": {"name": "ix"}})
    before = len(target.requests)
    result = cli.restore(target, snapshot, "--compare", "--differences", "found.jsonl")
    assert result.code == 5, result.err
    assert "the index ix is missing" in result.out
    found = [json.loads(line) for line in (cli.directory / "found.jsonl").read_text().splitlines()]
    assert sorted((each["kind"], each["id"]) for each in found) == [
        ("different", [2]),
        ("extra", [1000]),
        ("missing", [1]),
    ]
    assert not SCHEMA_WRITES & {request.command for request in target.requests[before:]}


def test_a_drill_leaves_nothing(source: DataApiEmulator, cli: Cli) -> None:
    """A drill restores tables under scratch names, finds their neighbours again, and drops what it made."""
    make_zoo(source, 150)
    add_indexes(source)
    fill(source, "docs", 3)
    before = (source.tables.definitions(KEYSPACE), source.tables.rows(KEYSPACE, "zoo"), indexes_of(source, "zoo"))
    result = cli.restore(source, snapshot_of(source, cli), "--drill", "--json")
    assert result.code == 0, result.err
    assert result.json["recall_at_10"]["zoo"] == 1.0
    after = (source.tables.definitions(KEYSPACE), source.tables.rows(KEYSPACE, "zoo"), indexes_of(source, "zoo"))
    assert after == before


def test_a_drill_in_an_empty_keyspace_takes_its_types_away(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """The types that a drill made go with its tables."""
    make_zoo(source, 20)
    result = cli.restore(target, snapshot_of(source, cli), "--drill")
    assert result.code == 0, result.err
    assert target.tables.definitions(KEYSPACE) == {}
    assert Api(target)({"listTypes": {}}) == {"status": {"types": []}}


def test_a_table_that_cannot_be_created_leaves_nothing(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """What this run had created before is dropped again, types too, and the exit code is 4."""
    make_zoo(source, 20)
    small(source)
    target.faults = [{"action": "error", "errorCode": "TOO_MANY_TABLES", "command": "createTable", "skip": 1}]
    result = cli.restore(target, snapshot_of(source, cli))
    assert result.code == 4, result.err
    assert target.tables.definitions(KEYSPACE) == {}
    assert Api(target)({"listTypes": {}}) == {"status": {"types": []}}
    assert "insertMany" not in sent(target)


def test_a_table_of_somebody_else_is_not_dropped(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """A table that appears between the plan and its creation stays, with its rows."""
    small(source)
    snapshot = snapshot_of(source, cli)
    target.faults = [{"action": "error", "errorCode": "CANNOT_ADD_EXISTING_TABLE", "command": "createTable"}]
    result = cli.restore(target, snapshot)
    assert result.code == 4, result.err
    assert "made by somebody else" in result.err
    assert not {"dropTable", "insertMany"} & set(sent(target))


@pytest.mark.parametrize("lost", ["createTable", "createType", "createIndex", "insertMany"])
def test_a_reply_that_is_lost_costs_nothing(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, lost: str
) -> None:
    """A command that was carried out and whose reply did not come is sent again, and the table comes back."""
    make_zoo(source, 30)
    add_indexes(source)
    snapshot = snapshot_of(source, cli)
    target.faults = [{"action": "reset_after", "command": lost, "times": 1}]
    result = cli.restore(target, snapshot)
    assert result.code == 0, result.err
    same_tables(source, target)


def test_a_refused_row_is_written_down(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """A row that the server refuses goes to the rejects file with the reason, the others and the indexes go in."""
    small(source, 10)
    snapshot = snapshot_of(source, cli)
    fault = {"action": "error", "errorCode": "INVALID_COLUMN_VALUES", "family": "REQUEST", "contains": '"a7"'}
    target.faults = [{**fault, "command": "insertMany", "times": None}]
    result = cli.restore(target, snapshot, "--json")
    assert result.code == 2, result.err
    (row,) = result.json["collections"]
    assert (row["inserted"], row["rejected"]) == (9, 1)
    (rejects,) = cli.backups.glob("rejects-t.jsonl")
    assert "id" in json.loads(rejects.read_text())["document"]
    target.faults = []
    assert cli.restore(target, snapshot, "--resume").code == 0
    same_tables(source, target, "t")


@pytest.mark.parametrize("seed", range(3))
def test_a_restore_that_is_killed_goes_on(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, seed: int
) -> None:
    """Killed again and again, and resumed each time: all rows and all indexes are there in the end."""
    make_zoo(source, 150)
    add_indexes(source)
    small(source, 700)
    snapshot = snapshot_of(source, cli)
    random = Random(seed)
    for attempt in range(6):
        wanted = len(target.requests) + random.randrange(1, 14)
        arguments = ["--api-endpoint", target.url, snapshot, *(["--resume"] if attempt else [])]
        running = Cli.start(cli, "restore.py", *arguments)
        wait_for(lambda: len(target.requests) >= wanted or running.poll() is not None)  # noqa: B023
        running.kill()
        running.communicate(timeout=20)
    result = cli.restore(target, snapshot, "--resume")
    assert result.code == 0, result.err
    for name in ("zoo", "t"):
        same_tables(source, target, name)


# ------------------------------------------------------------------------------------------------------ strangers


def forge(snapshot: Path, change: Callable[[Json], None], lines: list[str] | None = None) -> None:
    """Change a snapshot's manifest, or the rows of its table, so that all digests and counts fit."""
    manifest = manifest_of(snapshot)
    (table,) = manifest["tables"]
    if lines is not None:
        content = gzip.compress("".join(f"{line}\n" for line in lines).encode())
        (snapshot / table["data_file"]).write_bytes(content)
        digests = [int.from_bytes(sha256(line.encode()).digest(), "big") for line in lines]
        table |= {"content_digest": f"{sum(digests) % 2**256:064x}", "row_count": len(lines)}
        table |= {"data_sha256": sha256(content).hexdigest(), "data_size_bytes": len(content)}
        manifest["totals"]["rows"] = len(lines)
    change(manifest)
    text = json.dumps(manifest)
    (snapshot / "manifest.json").write_text(text)
    sums = {table["data_file"]: table["data_sha256"], "manifest.json": sha256(text.encode()).hexdigest()}
    (snapshot / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def table_of(manifest: Json) -> Json:
    """The only table of a manifest."""
    return manifest["tables"][0]


FORGERIES: dict[str, Callable[[Json], None]] = {
    "no columns": lambda manifest: table_of(manifest)["definition"].pop("columns"),
    "no key": lambda manifest: table_of(manifest)["definition"].pop("primaryKey"),
    "a key of nothing": lambda manifest: table_of(manifest)["definition"].update(primaryKey={"partitionBy": ["x"]}),
    "a column of no type": lambda manifest: table_of(manifest)["definition"]["columns"].update(l_d=5),
    "a list of a number": lambda manifest: table_of(manifest)["definition"]["columns"]["l_d"].update(valueType=5),
    "support of a number": lambda manifest: table_of(manifest)["definition"]["columns"]["v"].update(apiSupport=5),
    "indexes of no list": lambda manifest: table_of(manifest).update(indexes=5),
    "an index of no object": lambda manifest: table_of(manifest).update(indexes=[5]),
    "no types": lambda manifest: manifest.pop("types"),
    "a type of a number": lambda manifest: manifest.update(types=[5]),
    "another count": lambda manifest: manifest["totals"].update(rows=1),
    "a name twice": lambda manifest: manifest["tables"].append(dict(table_of(manifest))),
    "another number of rows": lambda manifest: table_of(manifest).update(row_count=7),
}


def test_a_forged_table_is_refused(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """A manifest that says of a table what no server says is exit 3, without a traceback; nothing is written."""
    make_zoo(source, 8)
    snapshot = snapshot_of(source, cli)
    before = snapshot.parent / "before"
    shutil.copytree(snapshot, before)
    for what, change in FORGERIES.items():
        forge(snapshot, change)
        result = cli.restore(target, snapshot)
        assert (what, result.code) == (what, 3), result.err
        assert "Traceback" not in result.err, what
        shutil.rmtree(snapshot)
        shutil.copytree(before, snapshot)
    assert sent(target) == []


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "5",
        '{"id":1',
        '{"id":1,"id":2}',
        '{"id":1,"other":2}',
        '{"d":"PT1S"}',
        '{"id":null}',
        '{"id":1,"l":5}',
        '{"id":1,"v":["x",1]}',
        '{"id":1,"v":[[],"NaN"]}',
    ],
)
def test_a_forged_row_is_refused(source: DataApiEmulator, target: DataApiEmulator, cli: Cli, line: str) -> None:
    """A line that is no row of the table is exit 3 before anything is written, however well the digests fit."""
    columns = {"id": "int", "d": "duration", "l": "list<duration>", "v": "vector<float, 2>"}
    source.tables.create(KEYSPACE, "t", columns, ["id"])
    source.tables.put(KEYSPACE, "t", {"id": 1, "d": "1h", "v": [1, 2]})
    snapshot = snapshot_of(source, cli)
    forge(snapshot, lambda _manifest: None, ['{"id":7}', line])
    result = cli.restore(target, snapshot)
    assert result.code == 3, result.err
    assert "Traceback" not in result.err
    assert sent(target) == []


# ---------------------------------------------------------------------------------- what changes while a backup runs


def alter_type(emulator: DataApiEmulator, name: str, fields: dict[str, str], table: str) -> None:
    """What ALTER TYPE does to a type and to the table that uses it."""
    with emulator.database.lock:
        emulator.tables.create_type(KEYSPACE, name, fields)
        made = emulator.tables.schema(KEYSPACE).types[name]
        altered = emulator.tables.table(KEYSPACE, table)
        columns = altered.columns.values()
        altered.define([replace(of, type=made) if of.type.udt == name else of for of in columns])


def test_a_type_that_is_altered_meanwhile_is_read_again(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A field that is added while a table is read is in the snapshot's type, or the rows could not be restored."""
    source.tables.create_type(KEYSPACE, "address", {"street": "text"})
    for table in ("t", "other"):
        source.tables.create(KEYSPACE, table, {"id": "int", "u": "address"}, ["id"])
        for number in range(60):
            source.tables.put(KEYSPACE, table, {"id": number, "u": {"street": "s"}})

    def act() -> None:
        for table in ("t", "other"):
            alter_type(source, "address", {"street": "text", "took": "duration"}, table)
            source.tables.put(KEYSPACE, table, {"id": 5000, "u": {"street": "x", "took": "1h"}})

    before(source, "find", act)
    snapshot = snapshot_of(source, cli)
    (found,) = manifest_of(snapshot)["types"]
    assert set(found["definition"]["fields"]) == {"street", "took"}
    assert cli.restore(target, snapshot).code == 0
    for table in ("t", "other"):
        same_rows(source.tables.rows(KEYSPACE, table), target.tables.rows(KEYSPACE, table))


def test_a_type_that_is_altered_after_a_table_was_read_fails_that_table(source: DataApiEmulator, cli: Cli) -> None:
    """A snapshot has one definition of a type: rows that were read with another one are not called good."""
    source.tables.create_type(KEYSPACE, "address", {"street": "text"})
    for table in ("t1", "t2"):
        source.tables.create(KEYSPACE, table, {"id": "int", "u": "address"}, ["id"])
        source.tables.put(KEYSPACE, table, {"id": 1, "u": {"street": "s"}})
    reply_to, acts = source.reply_to, iter([1])

    def reply(request: Request) -> Reply:
        if request.path.endswith("/t2") and b'"find"' in request.body[:60] and next(acts, 0):
            for table in ("t1", "t2"):
                alter_type(source, "address", {"street": "text", "took": "duration"}, table)
        return reply_to(request)

    source.reply_to = reply
    result = cli.backup(source, "--workers", "1")
    assert result.code == 2
    assert "t1 failed: t1: its type address was altered meanwhile. Run again." in " ".join(result.err.split())
    manifest = manifest_of(cli.snapshots()[0])
    assert {record["name"]: record["status"] for record in manifest["tables"]} == {"t1": "failed", "t2": "ok"}
    assert set(manifest["types"][0]["definition"]["fields"]) == {"street", "took"}


@pytest.mark.parametrize("stays", [False, True])
def test_a_name_is_never_in_a_snapshot_twice(source: DataApiEmulator, cli: Cli, stays: bool) -> None:
    """A collection that becomes a table between the two lists is looked at again; a manifest names nothing twice."""
    fill(source, "docs", 3)
    fill(source, "other", 3)

    def act() -> None:
        if not stays:
            with source.database.lock:
                source.database.keyspaces[KEYSPACE].pop("docs")
        source.tables.create(KEYSPACE, "docs", {"id": "text"}, ["id"])

    before(source, "listTables", act)
    result = cli.backup(source)
    assert result.code == stays
    if stays:
        assert "docs as a collection and as a table" in result.err
        return
    manifest = manifest_of(cli.snapshots()[0])
    assert [record["name"] for record in manifest["collections"]] == ["other"]
    assert [record["name"] for record in manifest["tables"]] == ["docs"]
    assert cli.restore(source, "--verify-only").code == 0


@pytest.mark.parametrize("was", ["collection", "table"])
def test_what_changes_its_kind_during_the_scan_is_told(source: DataApiEmulator, cli: Cli, was: str) -> None:
    """A collection that becomes a table fails as one that is none any more, and so does a table."""
    make_kind(source, was)
    before(source, "find", lambda: swap_kind(source, was))
    result = cli.backup(source)
    assert result.code == 2
    assert f"docs failed: docs is no longer a {was}. Run again" in " ".join(result.err.split())


def test_a_collection_is_no_copy_of_a_table(source: DataApiEmulator, cli: Cli) -> None:
    """A table that is gone has shrunk, and its last copy stays, though a collection has its name now."""
    fill(source, "docs", 3)
    fill(source, "bad", 3)
    source.tables.create(KEYSPACE, "t", {"id": "int"}, ["id"])
    source.tables.fill(KEYSPACE, "t", 50)
    source.faults = [{"action": "error", "status": 403, "command": "find", "collection": "bad", "times": None}]
    assert cli.backup(source).code == 2
    (only_copy,) = cli.snapshots()
    source.faults = []
    assert cli.backup(source, "--exclude", "bad").code == 0
    source.tables.drop(KEYSPACE, "t")
    fill(source, "t", 60)
    shrunk = cli.backup(source, "--exclude", "bad")
    assert shrunk.code == 5
    assert "t: the table is gone; it had 50 rows" in shrunk.err
    assert cli.backup(source).code == 0
    assert only_copy in cli.snapshots()
