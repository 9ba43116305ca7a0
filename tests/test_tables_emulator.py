"""The emulator's tables answer as those of the real Data API server did when its answers were recorded."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import math
import random
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from astrapy import DataAPIClient
from astrapy.constants import Environment

from tests.emulators.cql import (
    CqlType,
    as_float32,
    date_text,
    days_of,
    duration_text,
    from_bytes,
    java_double,
    java_float,
    parse_duration,
    parse_type,
    to_bytes,
)
from tests.emulators.data_api import UNLIMITED_ROWS, DataApiEmulator, murmur_token
from tests.emulators.tables import EVERY_TYPE, Place

Json = Any
DATA = Path(__file__).parent / "data"
TRANSCRIPTS: list[dict[str, str]] = json.loads(gzip.decompress((DATA / "tables_transcripts.json.gz").read_bytes()))
KEYSPACE = "default_keyspace"
ERROR_ID = re.compile(r'"id":"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}","family"')

# ------------------------------------------------------------------------------------------------ conformance


def made_by_cql(emulator: DataApiEmulator) -> None:
    """The tables that were made with CQL beside the recording, with their rows and indexes."""
    tables = emulator.tables
    tables.create_type("tabs", "nested_udt", {"a": "frozen<address>"})
    names = ("Some Column", 'quote"d', "dotted.name", "$dollar")
    tables.create("tabs", "MixedCase", {"Id": "int", **dict.fromkeys(names, "text")}, ["Id"])
    tables.put("tabs", "MixedCase", {"Id": 1, **dict(zip(names, "abcd", strict=True))})
    tables.create("tabs", "c_counter", {"p": "text", "n": "counter"}, ["p"])
    tables.put("tabs", "c_counter", {"p": "x", "n": 5})
    tables.create("tabs", "c_nested", {"p": "int", "u": "frozen<nested_udt>", "un": "nested_udt"}, ["p"])
    tables.create("tabs", "c_onlypk", {"a": "int", "b": "int"}, ["a"], {"b": 1})
    tables.put("tabs", "c_onlypk", {"a": 1, "b": 2})
    tables.create("tabs", "c_static", {"p": "text", "c": "int", "st": "static text", "v": "text"}, ["p"], {"c": 1})
    tables.put("tabs", "c_static", {"p": "a", "st": "S1", "c": 1, "v": "v1"})
    tables.put("tabs", "c_static", {"p": "a", "c": 2, "v": "v2"})
    tables.put("tabs", "c_static", {"p": "only_static", "st": "S0"})
    tables.create_index("tabs", "c_static", "CREATE INDEX legacy_ix ON tabs.c_static (v);")
    tables.create_index("tabs", "c_static", "CREATE CUSTOM INDEX sai_ix ON tabs.c_static (c)\nUSING 'sai'")
    tables.create("tabs", "c_ttl", {"p": "text", "v": "text"}, ["p"])
    tables.put("tabs", "c_ttl", {"p": "t", "v": "gone in an hour"})
    make_odd_table(emulator)


def make_odd_table(emulator: DataApiEmulator) -> None:
    tables = emulator.tables
    columns = {
        "p": "timeuuid",
        "d": "double",
        "dec": "decimal",
        "ds": "set<decimal>",
        "f": "float",
        "fl": "frozen<list<int>>",
        "fu": "frozen<address>",
        "m2": "map<timestamp, double>",
        "mm": "map<text, frozen<map<text, int>>>",
        "ns": "list<frozen<set<int>>>",
        "tt": "timeuuid",
        "tu": "tuple<int, text>",
        "v": "vector<float, 2>",
        "vi": "vector<int, 2>",
    }
    tables.create("tabs", "c_odd", columns, ["p"])
    tables.put(
        "tabs",
        "c_odd",
        '{"p":"fd571730-e9bd-11f1-84be-8b92cbaac795","d":-0.0,"dec":1.10,"ds":[1.10,2],"f":-0.0,"fl":[1,2],'
        '"fu":{"street":"s","zip":1},"m2":[["2024-01-01T00:00:00Z",0.5],["2023-01-01T00:00:00Z","NaN"]],'
        '"tt":"fd57174e-e9bd-11f1-84be-8b92cbaac795","tu":[1,"x"],"v":["NaN",1.5]}',
    )
    tables.put("tabs", "c_odd", '{"p":"fd578c60-e9bd-11f1-84be-8b92cbaac795","d":"NaN","dec":100.00}')
    tables.create_index("tabs", "c_odd", "CREATE CUSTOM INDEX sai_entries ON tabs.c_odd (entries(m2))\nUSING 'sai'")


def put_odd_row(emulator: DataApiEmulator) -> None:
    emulator.tables.put("tabs", "c_odd", '{"p":"50554d6e-29bb-11e5-b345-feff819cdca0","d":0.0,"dec":1.1,"ds":[1.1,2]}')


def copy_keys(emulator: DataApiEmulator) -> None:
    for row in ({"a": 1, "b": 2}, {"a": 3, "b": 4}):
        emulator.tables.put("tabs2", "c_onlypk", row)


# What happened before an exchange without being recorded. None of the 295 exchanges is left out.
UNRECORDED: dict[str, Callable[[DataApiEmulator], None]] = {
    "listTables with tables made by CQL": made_by_cql,
    "find c_odd: only what can be read": put_odd_row,  # recorded again after the row was written
    "alterTable add": copy_keys,  # the rows of c_onlypk were written to its copy, too
}


@pytest.fixture(scope="module")
def replayed() -> list[httpx.Response]:
    """The emulator's answer to each recorded request, sent in the recorded order."""
    answers = []
    with DataApiEmulator(keyspace="src") as emulator, httpx.Client(base_url=emulator.url) as client:
        emulator.create("src", "settings")
        emulator.database.keyspaces["dst"] = {}
        headers = {"Content-Type": "application/json", "Token": emulator.token}
        for exchange in TRANSCRIPTS:
            UNRECORDED.get(exchange["title"], lambda _: None)(emulator)
            answers.append(client.post(exchange["path"], content=exchange["body"], headers=headers))
    return answers


@pytest.mark.parametrize("number", range(len(TRANSCRIPTS)), ids=[each["title"] for each in TRANSCRIPTS])
def test_answers_as_recorded(number: int, replayed: list[httpx.Response]) -> None:
    """Each recorded request gets the recorded answer, word for word but for the random id of an error."""
    answer = replayed[number]
    assert answer.status_code == 200
    assert ERROR_ID.sub('"id":"random","family"', answer.text) == TRANSCRIPTS[number]["response"]


def test_nothing_is_left_out() -> None:
    """All exchanges are replayed, and what was made beside them belongs to exchanges that are there."""
    assert len(TRANSCRIPTS) == 295
    assert set(UNRECORDED) <= {each["title"] for each in TRANSCRIPTS}


# ---------------------------------------------------------------------------------------------------- helpers


class Api:
    """Sends commands to an emulator and gives back what its JSON says."""

    def __init__(self, emulator: DataApiEmulator) -> None:
        self.emulator = emulator
        self.tables = emulator.tables
        self.client = httpx.Client(base_url=emulator.url, headers={"Token": emulator.token}, timeout=10)

    def text(self, body: Json, table: str = "") -> str:
        content = body if isinstance(body, str) else json.dumps(body)
        path = "/".join(part for part in ("/v1", KEYSPACE, table) if part)
        return self.client.post(path, content=content, headers={"Content-Type": "application/json"}).text

    def __call__(self, body: Json, table: str = "") -> Json:
        return json.loads(self.text(body, table))

    def page(self, table: str, state: str | None = None, **find: Json) -> tuple[list[Json], str | None]:
        data = self({"find": {**find, "options": {"pageState": state} if state else {}}}, table)["data"]
        return data["documents"], data["nextPageState"]

    def scan(self, table: str, state: str | None = None) -> list[list[Json]]:
        pages = []
        while True:
            rows, state = self.page(table, state)
            pages.append(rows)
            if state is None:
                return pages


def codes(answer: Json) -> list[str]:
    return [error["errorCode"] for error in answer.get("errors", [])]


def all_of(pages: list[list[Json]]) -> list[Json]:
    return list(itertools.chain.from_iterable(pages))


@pytest.fixture
def emulator() -> Iterator[DataApiEmulator]:
    with DataApiEmulator() as running:
        yield running


@pytest.fixture
def api(emulator: DataApiEmulator) -> Iterator[Api]:
    made = Api(emulator)
    yield made
    made.client.close()


# ----------------------------------------------------------------------------------------- pages and their states

KEYS: dict[str, tuple[str, list[Json]]] = {  # a type of keys, and some of them
    "text": ("text", [f"key {n}" for n in range(120)]),
    "uuid": ("uuid", [f"{n * 7919:08x}-1111-4111-8111-{n:012x}" for n in range(120)]),
    "int": ("int", list(range(-60, 60))),
    "bigint": ("bigint", [n * 10**15 for n in range(-60, 60)]),
    "timestamp": ("timestamp", [f"2024-01-01T00:{n // 60:02}:{n % 60:02}Z" for n in range(120)]),
    "boolean": ("boolean", [False, True]),
}


@pytest.mark.parametrize("kind", KEYS)
def test_any_key_is_a_position(kind: str, api: Api) -> None:
    """A state with a key that was never given leads to the rows behind it in token order, there or not."""
    of, keys = KEYS[kind]
    api.tables.create(KEYSPACE, "t", {"k": of}, ["k"])
    for key in keys:
        api.tables.put(KEYSPACE, "t", {"k": key})
    whole = all_of(api.scan("t"))
    assert sorted(map(str, whole)) == sorted(str({"k": key}) for key in keys)
    serialised = [entry.partition.key for entry in api.tables.table(KEYSPACE, "t").scan()]
    assert serialised == sorted(serialised, key=murmur_token)
    for at in (0, len(keys) // 2, len(keys) - 1):
        state = Place(serialised[at], in_partition=0).encode()
        assert all_of(api.scan("t", state)) == whole[at + 1 :]
        assert api.tables.delete(KEYSPACE, "t", whole[at])
        assert all_of(api.scan("t", state)) == whole[at + 1 :], "also when the row is gone"
        api.tables.put(KEYSPACE, "t", whole[at])


def test_rows_come_in_token_order_and_clustering_order(api: Api) -> None:
    """Partitions are read by the tokens of their serialised keys, rows in the clustering order of each column."""
    api.tables.create(KEYSPACE, "t", {"a": "text", "b": "int", "c": "int", "d": "text"}, ["a", "b"], {"c": -1, "d": 1})
    api.tables.fill(KEYSPACE, "t", 300, seed=1)
    rows = all_of(api.scan("t"))
    assert len(rows) == 300
    partitions = [key for key, _ in itertools.groupby((row["a"], row["b"]) for row in rows)]
    assert len(set(partitions)) == len(partitions) > 20
    tokens = [murmur_token(composite(a, b)) for a, b in partitions]
    assert tokens == sorted(tokens)
    for _, group in itertools.groupby(rows, key=lambda row: (row["a"], row["b"])):
        inside = [(-row["c"], row["d"].encode()) for row in group]
        assert inside == sorted(inside)


def composite(a: str, b: int) -> bytes:
    parts = (a.encode(), struct.pack(">i", b))
    return b"".join(struct.pack(">H", len(part)) + part + b"\0" for part in parts)


@pytest.mark.parametrize("page_size", [1, 7, 50])
def test_pages_join_whatever_their_size(page_size: int, api: Api) -> None:
    """Pages of a table with large partitions hold each row once, in one order, and end with a null state."""
    api.emulator.page_size = page_size
    api.tables.create(KEYSPACE, "t", {"p": "smallint", "c": "text", "v": "text"}, ["p"], {"c": -1})
    for n in range(210):
        api.tables.put(KEYSPACE, "t", {"p": n % 3, "c": f"c{n:03}" if n > 2 else "", "v": "x"})
    pages = api.scan("t")
    assert [len(page) for page in pages[:-1]] == [page_size] * (len(pages) - 1)
    expected = [json.loads(row) for row in api.tables.rows(KEYSPACE, "t")]
    assert all_of(pages) == expected
    assert len(expected) == 210


def test_a_state_counts_the_rows_left_in_the_partition(api: Api) -> None:
    """A partition that goes on over pages has as many rows less left as were read of it on all of them."""
    api.tables.create(KEYSPACE, "t", {"p": "int", "c": "int"}, ["p"], {"c": 1})
    for n in range(130):
        api.tables.put(KEYSPACE, "t", {"p": 1, "c": n})
    _, first = api.page("t")
    _, second = api.page("t", first)
    assert [Place.decode(state).in_partition for state in (first, second)] == [
        UNLIMITED_ROWS - 50,
        UNLIMITED_ROWS - 100,
    ]
    assert Place.decode(second).mark == b"\0\x04" + struct.pack(">i", 99)


def test_a_mark_of_no_row_is_a_position_in_its_partition(api: Api) -> None:
    """A state may name clustering columns that no row has."""
    api.tables.create(KEYSPACE, "t", {"p": "int", "c": "int"}, ["p"], {"c": -1})
    for n in range(0, 20, 2):
        api.tables.put(KEYSPACE, "t", {"p": 1, "c": n})
    state = Place(struct.pack(">i", 1), b"\0\x04" + struct.pack(">i", 7)).encode()
    assert [row["c"] for row in all_of(api.scan("t", state))] == [6, 4, 2, 0]


def guess_of(keys: list[int]) -> str:
    """A state with the key of no row, in the middle of the ring."""
    ordered = sorted((struct.pack(">i", key) for key in keys), key=murmur_token)
    middle = murmur_token(ordered[len(ordered) // 2])
    absent = (struct.pack(">i", n) for n in range(10**6, 2 * 10**6))
    return Place(
        min(itertools.islice(absent, 5000), key=lambda key: abs(murmur_token(key) - middle)), b"", in_partition=0
    ).encode()


def test_servers_with_other_page_states_have_them_for_tables_too(api: Api) -> None:
    """A guess is refused, starts anew, goes backwards, elsewhere or has gaps; states that were given stay good."""
    api.tables.create(KEYSPACE, "t", {"id": "int"}, ["id"])
    for n in range(200):
        api.tables.put(KEYSPACE, "t", {"id": n})
    whole, guess = all_of(api.scan("t")), guess_of(list(range(200)))
    behind = all_of(api.scan("t", guess))
    assert 80 < len(behind) < 120
    assert behind == whole[-len(behind) :]
    brought = {}
    for kind in ("restarting", "reversing", "shuffling", "skipping"):
        api.emulator.page_states = kind
        assert all_of(api.scan("t")) == whole
        brought[kind] = [api.page("t", guess)[0]] if kind == "shuffling" else api.scan("t", guess)
    assert all_of(brought["restarting"]) == whole
    assert all_of(brought["reversing"]) == whole[: -len(behind)][::-1]
    assert len(brought["shuffling"][0]) == 50
    assert brought["shuffling"][0] != behind[:50]
    assert all_of(brought["skipping"]) == [row for row in behind if row in all_of(brought["skipping"])]
    assert len(all_of(brought["skipping"])) < len(behind)
    for kind in ("refusing", "opaque"):
        api.emulator.page_states = kind
        assert all_of(api.scan("t")) == whole
        assert codes(api({"find": {"options": {"pageState": guess}}}, "t")) == ["UNEXPECTED_DRIVER_ERROR"]


@pytest.mark.parametrize("state", ["garbage", "AAAA", base64.b64encode(b"\x04\0\0\0\1\x02\0\x63\0\0").decode(), 5])
def test_a_bad_state_is_refused(state: Json, api: Api) -> None:
    """What is no page state, or has a mark that is none of the table's, is a driver's error."""
    api.tables.create(KEYSPACE, "t", {"p": "int", "c": "int"}, ["p"], {"c": 1})
    answer = api({"find": {"options": {"pageState": state}}}, "t")
    assert codes(answer) == ["UNEXPECTED_DRIVER_ERROR"]
    assert "the TABLE default_keyspace.t" in answer["errors"][0]["message"]


def test_a_partition_of_static_values_is_a_row_without_clustering_columns(api: Api) -> None:
    """It is counted as a row of its page, and the scan goes on behind it."""
    api.emulator.page_size = 1
    api.tables.create(KEYSPACE, "t", {"p": "int", "c": "int", "s": "static text"}, ["p"], {"c": 1})
    for n in range(4):
        api.tables.put(KEYSPACE, "t", {"p": n, "s": f"s{n}"})
    api.tables.put(KEYSPACE, "t", {"p": 2, "c": 5})
    rows = all_of(api.scan("t"))
    assert sorted(rows, key=lambda row: row["p"]) == [
        {"p": 0, "s": "s0"},
        {"p": 1, "s": "s1"},
        {"p": 2, "c": 5, "s": "s2"},
        {"p": 3, "s": "s3"},
    ]


# ------------------------------------------------------------------------------------------------------- values


def in_units(text: str) -> str:
    """A duration as it may be inserted, from the form in which it is sent."""
    match = re.fullmatch(r"(-?)P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)D)?T?(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.(\d+))?S)?", text)
    assert match
    *parts, fraction = match.groups()[1:]
    amounts = [*parts, str(int((fraction or "0").ljust(9, "0")))]
    units = ("y", "mo", "d", "h", "m", "s", "ns")
    return match[1] + ("".join(f"{a}{u}" for a, u in zip(amounts, units, strict=True) if a and int(a)) or "0s")


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_every_type_come_back_to_the_digit(seed: int, api: Api) -> None:
    """Random rows, inserted as they were read but for their durations, are read again as the same text."""
    api.tables.create_type(KEYSPACE, "address", {"street": "text", "zip": "int", "seen": "timestamp"})
    columns = {"id": "uuid", "at": "timestamp", **EVERY_TYPE, "home": "address", "homes": "list<frozen<address>>"}
    for name in ("source", "target"):
        api.tables.create(KEYSPACE, name, columns, ["id"], {"at": -1})
    api.tables.fill(KEYSPACE, "source", 150, seed)
    rows = api.tables.rows(KEYSPACE, "source")
    assert len(rows) == 150
    assert {name for row in rows for name in json.loads(row)} == set(columns)
    ready = [re.sub(r'"a_duration":"(.*?)"', lambda match: f'"a_duration":"{in_units(match[1])}"', row) for row in rows]
    for at in range(0, len(ready), 50):
        answer = api(f'{{"insertMany":{{"documents":[{",".join(ready[at : at + 50])}]}}}}', "target")
        assert "errors" not in answer
    assert api.tables.rows(KEYSPACE, "target") == rows
    bodies = [api.text({"find": {"options": {"pageState": state}}}, "source") for state in states_of(api, "source")]
    assert ",".join(body.partition("[")[2].partition('],"nextPageState"')[0] for body in bodies) == ",".join(rows)


def states_of(api: Api, table: str) -> list[str]:
    states: list[str] = [""]
    while rows_and_state := api.page(table, states[-1] or None):
        if rows_and_state[1] is None:
            return states if rows_and_state[0] else states[:-1]
        states.append(rows_and_state[1])
    raise AssertionError


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('"a_decimal":1.10', '"a_decimal":1.1'),
        ('"a_decimal":100.0', '"a_decimal":1E+2'),
        ('"a_decimal":-0.0', '"a_decimal":0'),
        ('"a_double":-0.0', '"a_double":0.0'),
        ('"a_float":16777217', '"a_float":1.6777216E7'),
        ('"a_bigint":1e3', '"a_bigint":1000'),
        ('"a_time":"12:30:00.100"', '"a_time":"12:30:00.100"'),
        ('"a_time":"12:30:00"', '"a_time":"12:30"'),
        ('"a_timestamp":"2024-02-29T12:34:56.789+02:00"', '"a_timestamp":"2024-02-29T10:34:56.789Z"'),
        ('"a_uuid":"550E8400-E29B-41D4-A716-44665544000A"', '"a_uuid":"550e8400-e29b-41d4-a716-44665544000a"'),
        ('"a_inet":"2001:DB8::1"', '"a_inet":"2001:db8:0:0:0:0:0:1"'),
        ('"s_varint":[3,1,3,-2]', '"s_varint":[-2,1,3]'),
        ('"m_int_text":[[2,"b"],[1,"a"],[2,"c"]]', '"m_int_text":[[1,"a"],[2,"c"]]'),
        ('"l_text":[]', ""),
        ('"m_text_int":{}', ""),
        ('"a_text":null', ""),
        ('"v":{"$binary":"f8AAAD/AAAA+mZma"}', '"v":["NaN",1.5,0.3]'),
    ],
)
def test_what_an_insert_makes_of_a_value(written: str, read: str, api: Api) -> None:
    """Values are normalised on their way in, as recorded."""
    api.tables.create(KEYSPACE, "t", {"id": "int", **EVERY_TYPE}, ["id"])
    assert "errors" not in api(f'{{"insertOne":{{"document":{{"id":1,{written}}}}}}}', "t")
    column = (read or written).split('"')[1]
    assert api.tables.rows(KEYSPACE, "t", ["id", column]) == ['{"id":1' + ("," + read if read else "") + "}"]


@pytest.mark.parametrize(
    "value", [0.1, 1e7, 9999999.0, 1e-3, 9.999e-4, 5e-324, 2e-323, 1e22, 2**63, 123456789.5, -7e20]
)
def test_java_writes_doubles_with_a_digit_on_either_side(value: float) -> None:
    """A double's text is the number again, has a point, and is scientific outside 10^-3 to 10^7."""
    text = java_double(float(value))
    assert float(text) == value
    assert "." in text
    assert ("E" in text) == (not 1e-3 <= abs(value) < 1e7)


def test_java_writes_floats_shortly() -> None:
    """A float's text is the number again as a 32-bit float, with at most nine digits."""
    source = random.Random(1)
    for _ in range(2000):
        (value,) = struct.unpack(">f", source.randbytes(4))
        if math.isfinite(value):
            text = java_float(value)
            assert as_float32(float(text)) == value
            assert len(re.sub(r"E.*|[-.]", "", text).strip("0")) <= 9


def test_dates_of_any_year() -> None:
    """Days and dates are inverse over all years that Cassandra knows."""
    for days in (*range(-(2**31), 2**31, 98_765_432), -719_528, -719_529, 0, 2_932_896, 2_932_897):
        year, month, day = re.fullmatch(r"([+-]?\d+)-(\d\d)-(\d\d)", date_text(days)).groups()
        assert days_of(int(year), int(month), int(day)) == days


def test_durations_are_read_in_both_forms() -> None:
    """Units and ISO's forms without a fraction make the same duration; a fraction is refused."""
    assert parse_duration("1y2mo3d4h5m6s") == parse_duration("P1Y2M3DT4H5M6S") == parse_duration("P0001-02-03T04:05:06")
    assert parse_duration("2w") == parse_duration("P2W") == (0, 14, 0)
    for text in ("PT0.5S", "1h -30m", "1h1d", "", "-", "5", "1h1h", "P1.5D"):
        with pytest.raises(ValueError, match="Unable to convert"):
            parse_duration(text)
    source = random.Random(2)
    for _ in range(500):
        value = (source.randrange(2**31), source.randrange(2**31), source.randrange(2**63))
        assert parse_duration(in_units(duration_text(value))) == value


@pytest.mark.parametrize("text", ["text", "decimal", "varint", "date", "inet", "uuid", "double", "tinyint", "time"])
def test_bytes_and_values_are_inverse(text: str, api: Api) -> None:
    """The bytes of a clustering column in a page state are its value again."""
    api.tables.create(KEYSPACE, "t", {"id": text}, ["id"])
    api.tables.fill(KEYSPACE, "t", 50, seed=3)
    of = CqlType(text)
    for entry in api.tables.table(KEYSPACE, "t").scan():
        assert entry.partition.key == to_bytes(of, entry.value("id"))
        assert to_bytes(of, from_bytes(of, entry.partition.key)) == entry.partition.key


# --------------------------------------------------------------------------------------------------- commands


def test_a_table_and_a_collection_cannot_share_a_name(api: Api) -> None:
    """Whichever comes second is refused, in the words for its kind."""
    table = {"name": "t", "definition": {"columns": {"id": "int"}, "primaryKey": "id"}}
    assert api({"createTable": table}) == {"status": {"ok": 1}}
    assert codes(api({"createCollection": {"name": "t"}})) == ["EXISTING_TABLE_NOT_DATA_API_COLLECTION"]
    assert api({"createCollection": {"name": "c"}}) == {"status": {"ok": 1}}
    assert codes(api({"createTable": {**table, "name": "c"}})) == ["CANNOT_ADD_EXISTING_TABLE"]
    assert api({"findCollections": {}}) == {"status": {"collections": ["c"]}}
    assert api({"listTables": {}}) == {"status": {"tables": ["t"]}}


def test_dropping_a_keyspace_takes_its_tables(api: Api) -> None:
    """A keyspace made anew has no tables of the former one."""
    api.tables.create(KEYSPACE, "t", {"id": "int"}, ["id"])
    for command in ("dropKeyspace", "createKeyspace"):
        headers = {"Content-Type": "application/json"}
        api.client.post("/v1", content=json.dumps({command: {"name": KEYSPACE}}), headers=headers)
    assert api({"listTables": {}}) == {"status": {"tables": []}}


def test_a_column_that_cannot_be_read_fails_the_page_unless_others_are_named(api: Api) -> None:
    """One column of an unsupported type is enough; a projection of the others works."""
    api.tables.create(KEYSPACE, "t", {"id": "int", "t": "tuple<int, text>", "v": "text"}, ["id"])
    api.tables.put(KEYSPACE, "t", {"id": 1, "t": [1, "x"], "v": "y"})
    for projection in ({}, {"*": True}, {"v": 0}, {"id": 1, "t": 1}):
        assert codes(api({"find": {"projection": projection}}, "t")) == ["UNSUPPORTED_COLUMN_TYPES"]
    assert api.page("t", projection={"id": 1, "v": 1}) == ([{"id": 1, "v": "y"}], None)
    assert api.page("t", projection={"t": 0}) == ([{"id": 1, "v": "y"}], None)


def test_responses_name_each_row_and_equal_refusals_once(api: Api) -> None:
    """With document responses every row has a line; rows refused in the same words share an error."""
    api.tables.create(KEYSPACE, "t", {"id": "int", "v": "int"}, ["id"])
    rows = [{"id": 1, "v": "no"}, {"id": 2}, {"id": 3, "v": "no"}, {"id": 4, "v": 1.5}]
    options = {"returnDocumentResponses": True}
    answer = api({"insertMany": {"documents": rows, "options": options}}, "t")
    states = [(each["status"], each.get("errorsIdx")) for each in answer["status"]["documentResponses"]]
    assert states == [("ERROR", 0), ("OK", None), ("ERROR", 0), ("ERROR", 1)]
    assert len(answer["errors"]) == 2
    answer = api({"insertMany": {"documents": rows[1:], "options": {**options, "ordered": True}}}, "t")
    responses = answer["status"]["documentResponses"]
    assert [each["status"] for each in responses] == ["OK", "ERROR", "SKIPPED"]


def test_conjunctions_work_on_astra_only(api: Api) -> None:
    """The recorded server cannot filter by two columns; with `astra` a row is found by its whole key."""
    api.tables.create(KEYSPACE, "t", {"a": "text", "b": "int", "c": "int"}, ["a", "b"], {"c": 1})
    api.tables.fill(KEYSPACE, "t", 100, seed=4)
    rows = [json.loads(row) for row in api.tables.rows(KEYSPACE, "t")]
    find = {"find": {"filter": rows[40]}}
    assert codes(api(find, "t")) == ["UNSUPPORTED_DATABASE_QUERY"]
    api.emulator.astra = True
    assert api(find, "t")["data"]["documents"] == [rows[40]]
    same = [row for row in rows if (row["a"], row["b"]) == (rows[40]["a"], rows[40]["b"])]
    assert api.page("t", filter={"a": rows[40]["a"], "b": rows[40]["b"]})[0] == same[:50]


def test_filtered_rows_come_in_pages_too(api: Api) -> None:
    """A scan with a condition, and keys that are named with $in, go on behind their page states."""
    api.emulator.page_size = 3
    api.tables.create(KEYSPACE, "t", {"id": "int", "v": "text"}, ["id"])
    for n in range(20):
        api.tables.put(KEYSPACE, "t", {"id": n, "v": "even" if n % 2 == 0 else "odd"})
    for conditions in ({"v": "even"}, {"id": {"$in": list(range(0, 20, 2))}}):
        pages, state = [], None
        while state is not None or not pages:
            rows, state = api.page("t", state, filter=conditions)
            pages.append(rows)
        assert [len(page) for page in pages] == [3, 3, 3, 1]
        assert sorted(row["id"] for row in all_of(pages)) == list(range(0, 20, 2))


@pytest.mark.parametrize(("metric", "first"), [("cosine", 2), ("euclidean", 1), ("dot_product", 3)])
def test_the_nearest_come_first_by_the_index_metric(metric: str, first: int, api: Api) -> None:
    """A vector sort needs an index and goes by its metric."""
    columns = {"id": "int", "v": {"type": "vector", "dimension": 2}}
    api({"createTable": {"name": "t", "definition": {"columns": columns, "primaryKey": "id"}}})
    rows = [{"id": 1, "v": [1, 0.5]}, {"id": 2, "v": [3, 0]}, {"id": 3, "v": [9, 9]}]
    api({"insertMany": {"documents": rows}}, "t")
    find = {"find": {"sort": {"v": [1, 0]}, "projection": {"id": 1}, "options": {"limit": 1}}}
    assert codes(api(find, "t")) == ["CANNOT_VECTOR_SORT_NON_INDEXED_VECTOR_COLUMNS"]
    api({"createVectorIndex": {"name": "ix", "definition": {"column": "v", "options": {"metric": metric}}}}, "t")
    assert api(find, "t")["data"]["documents"] == [{"id": first}]


def test_text_indexes_are_astras(api: Api) -> None:
    """A text index can be made with `astra`, and is listed with its analyzer."""
    api.tables.create(KEYSPACE, "t", {"id": "int", "v": "text"}, ["id"])
    create = {"createTextIndex": {"name": "ix", "definition": {"column": "v"}}}
    assert codes(api(create, "t")) == ["INVALID_DATABASE_QUERY"]
    api.emulator.astra = True
    assert api(create, "t") == {"status": {"ok": 1}}
    listed = api({"listIndexes": {"options": {"explain": True}}}, "t")["status"]["indexes"]
    definition = {"column": "v", "options": {"analyzer": "standard"}}
    assert listed == [{"name": "ix", "definition": definition, "indexType": "text"}]


def test_cql_types_are_read_as_they_are_written() -> None:
    """Nested, frozen and tuple types keep their parts."""
    of = parse_type("map<text, frozen<list<tuple<int, uuid>>>>", "ks", {})
    assert [each.name for each in of.arguments] == ["text", "list"]
    assert of.arguments[1].frozen
    assert [each.name for each in of.arguments[1].arguments[0].arguments] == ["int", "uuid"]
    assert not of.is_supported
    for text in ("nope", "list<int>>", "map<text, nope>"):
        with pytest.raises(ValueError, match="no CQL type"):
            parse_type(text, "ks", {})


# ------------------------------------------------------------------------------------------- faults and clients


def test_faults_meet_tables(api: Api) -> None:
    """Faults that look at a collection's documents have a table's rows, too."""
    api.tables.create(KEYSPACE, "t", {"id": "int", "v": "text"}, ["id"])
    for n in range(60):
        api.tables.put(KEYSPACE, "t", {"id": n, "v": "x"})
    api.emulator.add_fault("empty_page", command="find")
    assert api.page("t")[0] == []
    first, state = api.page("t")
    api.emulator.add_fault("repeat_page", command="find")
    assert api.page("t", state) == (first, state)
    api.emulator.add_fault("bad_page_state", command="find")
    assert codes(api({"find": {}}, "t")) == ["UNEXPECTED_DRIVER_ERROR"]
    api.emulator.add_fault("alter_document", command="insertOne", set={"v": "altered"})
    api({"insertOne": {"document": {"id": 100, "v": "y"}}}, "t")
    api.emulator.add_fault("drop_document", command="insertOne")
    api({"insertOne": {"document": {"id": 101, "v": "y"}}}, "t")
    api.emulator.add_fault("insert", command="find", documents=[{"id": 102, "v": "y"}])
    rows = {row["id"]: row["v"] for row in all_of(api.scan("t"))}
    assert rows == {**dict.fromkeys(range(60), "x"), 100: "altered", 102: "y"}
    before = all_of(api.scan("t"))
    api.emulator.add_fault("delete", command="find", count=2)
    assert all_of(api.scan("t")) == before[2:]
    api.emulator.add_fault("drop_collection", command="find")
    assert codes(api({"find": {}}, "t")) == ["UNKNOWN_COLLECTION_OR_TABLE"]


def test_a_table_changes_under_a_scan(api: Api) -> None:
    """Columns come and go between two pages, and a table that was made anew is empty behind a state of the old one."""
    api.tables.create(KEYSPACE, "t", {"id": "int", "v": "text"}, ["id"])
    for n in range(60):
        api.tables.put(KEYSPACE, "t", {"id": n, "v": "x"})
    _, state = api.page("t")
    api.emulator.add_fault("alter_definition", command="find", add={"w": "list<int>"}, drop=["v"])
    answer = api({"find": {"options": {"pageState": state}}}, "t")
    assert list(answer["status"]["projectionSchema"]) == ["id", "w"]
    assert [list(row) for row in answer["data"]["documents"]] == [["id"]] * 10
    api.emulator.add_fault("recreate_collection", command="find")
    assert api.page("t", state) == ([], None)


def test_older_servers_give_the_first_page_only(api: Api) -> None:
    """Without page states a table ends with its first page, however many rows there are."""
    api.tables.create(KEYSPACE, "t", {"id": "int"}, ["id"]).has_states = False
    api.tables.fill(KEYSPACE, "t", 60)
    assert [len(page) for page in api.scan("t")] == [50]


def test_astrapy_understands_the_tables(emulator: DataApiEmulator) -> None:
    """The client library makes a table, writes rows and reads them as its own types."""
    client = DataAPIClient(environment=Environment.HCD)
    database = client.get_database(emulator.url, keyspace=KEYSPACE, token=emulator.token)
    columns = {"id": "text", "n": "varint", "at": "timestamp", "tags": {"type": "set", "valueType": "text"}}
    table = database.create_table("t", definition={"columns": columns, "primaryKey": "id"})
    table.insert_many([{"id": f"k{n}", "n": 10**30 + n, "tags": {"b", "a"}} for n in range(120)])
    rows = list(table.find({}))
    assert sorted(row["id"] for row in rows) == sorted(f"k{n}" for n in range(120))
    assert {row["n"] for row in rows} == {10**30 + n for n in range(120)}
    assert all(set(row["tags"]) == {"a", "b"} and row["at"] is None for row in rows)
    assert [each.name for each in database.list_tables()] == ["t"]


def test_the_program_has_tables(tmp_path: Path) -> None:
    """Started as a program it makes tables and refuses in words, too."""
    command = [sys.executable, "-m", "tests.emulators.data_api", "--port", "0", "--quiet"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        headers = {"Token": "x", "Content-Type": "application/json"}
        body = {"createTable": {"name": "t", "definition": {"columns": {"id": "int"}, "primaryKey": "id"}}}
        answers = [httpx.post(f"{url}/v1/{KEYSPACE}", json=body, headers=headers).json() for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert answers[0] == {"status": {"ok": 1}}
    assert codes(answers[1]) == ["CANNOT_ADD_EXISTING_TABLE"]
