"""The emulator answers as the real Data API server did when its answers were recorded."""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from astrapy import DataAPIClient
from astrapy.constants import Environment
from astrapy.exceptions import CollectionInsertManyException

from tests.emulators.data_api import (
    ACTIONS,
    DataApiEmulator,
    PageState,
    Rows,
    canonical_number,
    dump,
    murmur_token,
    page_documents,
    parse,
    read_pages,
)
from tests.support import Api, Json, codes, ids

DATA = Path(__file__).parent / "data"
TRANSCRIPTS: list[dict[str, Json]] = json.loads((DATA / "transcripts.json").read_text("utf-8"))
KEYSPACE = "default_keyspace"


# What the replay leaves out or alters, and why.


SHAPE_ONLY = {
    "find keyspaces": "the lab database had keyspaces of other people; only the kinds of values are compared",
}
MESSAGE_ALTERED = {
    "duplicate field in body": "Jackson says where the second field is, the emulator does not know",
}
REBUILT = {  # the recording shortened these requests; "…[N characters]" keeps the length they had
    "insertMany: indexed string too long": '"},{"_id":"y2"}],"options":'
    '{"ordered":false,"returnDocumentResponses":true}}}',
    "insertOne: document over 4,000,000 characters": '"}}}',
    "body over 20 MiB": '"}}}',
}
PLANNED_IDS = {  # generated ids are random: the emulator is told which to make
    "insertOne without id (uuid)": "plain",
    "insertOne without id (objectId)": "denied",
    "insertOne without id (uuidv7)": "u7",
}
UNRECORDED = {  # 120 documents were inserted before this exchange without being recorded
    "find page 1 of 3": [f'{{"_id":"p{n:03}","n":{n}}}' for n in range(120)],
}


# ---------------------------------------------------------------------------------------------------- helpers


def wait_until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def emulator() -> Iterator[DataApiEmulator]:
    with DataApiEmulator() as running:
        yield running


@pytest.fixture
def api(emulator: DataApiEmulator) -> Iterator[Api]:
    made = Api(emulator)
    yield made
    made.client.close()


@pytest.fixture
def filled(api: Api) -> Api:
    """A collection `c` of 120 documents."""
    api.create("c")
    for n in range(120):
        api.emulator.put(KEYSPACE, "c", f'{{"_id":"d{n}","n":{n}}}')
    return api


# ------------------------------------------------------------------------------------------------ conformance


def rebuilt(exchange: dict[str, Json]) -> str:
    """The request as it was before the recording shortened it."""
    request: str = exchange["request"]
    tail = REBUILT.get(exchange["name"])
    if tail is None:
        return request
    match = re.fullmatch(r"(?s)(.*x)…\[(\d+) characters]", request)
    assert match is not None
    head = match.group(1)
    return head + "x" * (int(match.group(2)) - len(head) - len(tail)) + tail


def masked(body: str, name: str) -> Json:
    """The answer without what is random."""
    answer = json.loads(body) if body else None
    for error in (answer or {}).get("errors", []):
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", error["id"])
        error["id"] = "random"
        if name in MESSAGE_ALTERED:
            error["message"] = error["message"].split("\n")[0]
    return answer


def shape(value: Json) -> Json:
    """The names and the kinds of values, nothing else."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(shape(item)) for item in value})
    return type(value).__name__


@pytest.fixture(scope="module")
def replayed() -> dict[str, httpx.Response]:
    """The emulator's answer to each recorded request, sent in the recorded order."""
    answers: dict[str, httpx.Response] = {}
    with DataApiEmulator() as running, httpx.Client(base_url=running.url) as client:
        for exchange in TRANSCRIPTS:
            name = exchange["name"]
            for text in UNRECORDED.get(name, ()):
                running.put("golden", "u7", text)
            if name in PLANNED_IDS:
                running.planned_ids.extend(json.loads(exchange["response"])["status"]["insertedIds"])
            token = {"valid": {"Token": running.token}, "absent": {}}.get(
                exchange["token"], {"Token": exchange["token"]}
            )
            headers = {"Content-Type": "application/json", **token}
            answers[name] = client.post(exchange["path"], content=rebuilt(exchange), headers=headers)
    return answers


@pytest.mark.parametrize("exchange", TRANSCRIPTS, ids=[each["name"] for each in TRANSCRIPTS])
def test_answers_as_recorded(exchange: dict[str, Json], replayed: dict[str, httpx.Response]) -> None:
    """Each recorded request gets the recorded status, type and text, but for the random id of an error."""
    name, answer = exchange["name"], replayed[exchange["name"]]
    assert answer.status_code == exchange["status"]
    assert answer.headers.get("content-type") == exchange["content_type"]
    if name in SHAPE_ONLY:
        assert shape(answer.json()) == shape(json.loads(exchange["response"]))
        return
    got, recorded = masked(answer.text, name), masked(exchange["response"], name)
    assert json.dumps(got) == json.dumps(recorded), "same values, and fields in the same order"
    if "errors" not in (recorded or {}):
        assert answer.text == exchange["response"]


def test_the_exceptions_are_exchanges() -> None:
    """Every exchange that is altered in the replay is one of the transcripts."""
    names = {each["name"] for each in TRANSCRIPTS}
    assert len(names) == len(TRANSCRIPTS) == 72
    assert {*SHAPE_ONLY, *MESSAGE_ALTERED, *REBUILT, *PLANNED_IDS, *UNRECORDED} <= names


@pytest.mark.parametrize("name", ["assets", "settings", "value_zoo", "empty_collection"])
def test_pages_of_the_catalog_come_back_to_the_byte(name: str, api: Api) -> None:
    """A scan of a loaded collection repeats the recorded pages, their order and their page states."""
    api.emulator.load(DATA / "catalog")
    state = None
    for recorded in read_pages(DATA / "catalog", name):
        options = {"pageState": state} if state else {}
        answer = api.post({"find": {"filter": {}, "projection": {"*": True}, "options": options}}, name)
        assert answer.text == recorded.rstrip("\n")
        state = answer.json()["data"]["nextPageState"]
    assert state is None


@pytest.mark.parametrize("name", ["assets", "settings", "value_zoo"])
def test_inserting_stored_text_changes_nothing(name: str, api: Api) -> None:
    """Normalisation is idempotent: documents the server has stored are stored again as the same text."""
    api.emulator.load(DATA / "catalog")
    stored = api.emulator.documents(KEYSPACE, name)
    api.emulator.delete_all(KEYSPACE, name)
    for at in range(0, len(stored), 50):
        answer = api(f'{{"insertMany":{{"documents":[{",".join(stored[at : at + 50])}]}}}}', name)
        assert "errors" not in answer
    assert api.emulator.documents(KEYSPACE, name) == stored


def test_definitions_of_the_catalog(api: Api) -> None:
    """The command findCollections reports the loaded definitions as they were recorded."""
    api.emulator.load(DATA / "catalog")
    recorded = json.loads((DATA / "catalog" / "findCollections.json").read_text("utf-8"))
    assert api({"findCollections": {"options": {"explain": True}}}) == recorded


# -------------------------------------------------------------------------------------------- values and keys


NUMBERS = [
    ("0", "0"),
    ("-0", "0"),
    ("-0.0", "0"),
    ("0e5", "0"),
    ("1.0", "1"),
    ("1.10", "1.1"),
    ("10", "10"),
    ("100.0", "1E+2"),
    ("1500.0", "1.5E+3"),
    ("1.5e3", "1.5E+3"),
    ("15e2", "1.5E+3"),
    ("1e400", "1E+400"),
    ("1E-400", "1E-400"),
    ("1.7976931348623157E+308", "1.7976931348623157E+308"),
    ("0.000001", "0.000001"),
    ("0.0000001", "1E-7"),
    ("-0.00000012", "-1.2E-7"),
    ("10.0000001", "10.0000001"),
    ("0.30000000000000004", "0.30000000000000004"),
    ("3.14159265358979323846264338327", "3.14159265358979323846264338327"),
    ("123456789012345678901234567890123456789", "123456789012345678901234567890123456789"),
    ("-9223372036854775809", "-9223372036854775809"),
    ("1" * 100, "1" * 100),
    ("0." + "1" * 99, "0." + "1" * 99),
]


@pytest.mark.parametrize(("written", "stored"), NUMBERS)
def test_numbers_are_stored_like_a_big_decimal(written: str, stored: str) -> None:
    """Integers keep every digit, other numbers print as a stripped BigDecimal, which is stable."""
    assert canonical_number(written) == stored
    assert canonical_number(stored) == stored
    for template in ("{}", "[{}]", "[1.5,{},2]", '{{"n":[0.5,{}]}}'):
        assert dump(parse(template.format(written).encode())) == template.format(stored)


TEXTS = [
    (r'"plain"', r'"plain"'),
    (r'"\u00fc\/"', '"ü/"'),
    ('"\U0001f600"', r'"\uD83D\uDE00"'),
    (r'"\ud83d\ude00"', r'"\uD83D\uDE00"'),
    (r'"\u0001\u001F\b\f\n\r\t"', r'"\u0001\u001F\b\f\n\r\t"'),
    (r'"\\u001f \\ud83d"', r'"\\u001f \\ud83d"'),
    (r'"\u007f\u2028"', '"\x7f\u2028"'),
    (r'"\ud83d"', r'"?"'),
    ('{ "b" : [ ] , "a" : { } }', '{"b":[],"a":{}}'),
]


@pytest.mark.parametrize(("written", "stored"), TEXTS)
def test_text_is_written_like_jackson(written: str, stored: str) -> None:
    """Strings are written raw, but for control characters and characters beyond the basic plane."""
    assert dump(parse(written.encode())) == stored
    assert dump(parse(stored.encode())) == stored


def test_id_comes_first(api: Api) -> None:
    """A stored document begins with its `_id`; its other fields keep their order."""
    api.create("c")
    api.insert("c", {"z": 1, "_id": "x", "a": 2})
    assert api.emulator.documents(KEYSPACE, "c") == ['{"_id":"x","z":1,"a":2}']


SAME = [
    ('{"$uuid":"F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6"}', '"f81d4fae-7dec-11d0-a765-00a0c91e6bf6"'),
    ('{"$uuid":"1-2-3-4-5"}', '"00000001-0002-0003-0004-000000000005"'),
    ('{"$objectId":"507F191E810C19729DE860EA"}', '"507f191e810c19729de860ea"'),
    ("1E+2", "100.0"),
    ("1.50", "1.5"),
    ("1", "1.0"),
]
DIFFERENT = [
    ("100", "100.0"),
    ("1", '"1"'),
    ("null", '"null"'),
    ("true", '"true"'),
    ('{"$date":1}', "1"),
    ('"F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6"', '{"$uuid":"F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6"}'),
]


@pytest.mark.parametrize(("first", "second", "same"), [(*p, True) for p in SAME] + [(*p, False) for p in DIFFERENT])
def test_which_ids_are_one_key(first: str, second: str, same: bool, api: Api) -> None:
    """Two `_id`s are one key if their type tag and text agree, whatever form they were written in."""
    api.create("c")
    assert codes(api(f'{{"insertOne":{{"document":{{"_id":{first}}}}}}}', "c")) == []
    second_answer = api(f'{{"insertOne":{{"document":{{"_id":{second}}}}}}}', "c")
    assert codes(second_answer) == (["DOCUMENT_ALREADY_EXISTS"] if same else [])
    found = api(f'{{"find":{{"filter":{{"_id":{second}}}}}}}', "c")["data"]["documents"]
    assert len(found) == 1


@pytest.mark.parametrize("kind", ["", "objectId", "uuid", "uuidv6", "uuidv7"])
def test_generated_ids(kind: str, api: Api) -> None:
    """A document without `_id` gets one of the kind that the definition names."""
    api.create("c", **({"defaultId": {"type": kind}} if kind else {}))
    answer = api.insert("c", {"n": 1}, {"n": 2})
    made = answer["status"]["insertedIds"]
    assert len({json.dumps(each) for each in made}) == 2
    for each in made:
        text = each if kind == "" else each["$objectId" if kind == "objectId" else "$uuid"]
        pattern = "[0-9a-f]{24}" if kind == "objectId" else rf"[0-9a-f]{{8}}-[0-9a-f]{{4}}-[{kind[5:] or 4}].*"
        assert re.fullmatch(pattern, text)


REFUSED = [
    ({"_id": ""}, "SHRED_BAD_DOCID_VALUE"),
    ({"_id": []}, "SHRED_BAD_DOCID_TYPE"),
    ({"_id": {"$uuid": "x"}}, "SHRED_BAD_DOCID_VALUE"),
    ({"_id": 1, "d": {"$date": "abc"}}, "SHRED_BAD_EJSON_VALUE"),
    ({"_id": 1, "d": {"$uuid": "hello"}}, "SHRED_BAD_EJSON_VALUE"),
    ({"_id": 1, "d": {"$binary": 5}}, "SHRED_BAD_EJSON_VALUE"),
    ({"_id": 1, "d": {"$objectId": "12"}}, "SHRED_BAD_EJSON_VALUE"),
    ({"_id": 1, "d": {"$date": 1, "x": 2}}, "SHRED_BAD_FIELD_NAME"),
    ({"_id": 1, "raw": {"$date": 1, "x": 2}}, "SHRED_BAD_FIELD_NAME"),
    ({"_id": 1, "raw": {"": 1}}, "SHRED_BAD_FIELD_NAME"),
    ({"_id": 1, "a": "x" * 8001}, "SHRED_DOC_LIMIT_VIOLATION"),
    ({"_id": 1, "a": list(range(1001))}, "SHRED_DOC_LIMIT_VIOLATION"),
    ({"_id": 1, "a": {f"f{n}": n for n in range(1001)}}, "SHRED_DOC_LIMIT_VIOLATION"),
    ({"_id": 1, "$vector": []}, "SHRED_BAD_VECTOR_SIZE"),
    ({"_id": 1, "$vector": "x"}, "SHRED_BAD_VECTOR_VALUE"),
    ({"_id": 1, "$vector": {"$binary": "AAA="}}, "SHRED_BAD_BINARY_VECTOR_VALUE"),
    ({"_id": 1, "$vector": {"$binary": "AAAAAA=="}}, "INVALID_VECTOR_LENGTH"),
    ({"_id": 1, "raw": {"$date": "abc"}}, None),
    ({"_id": 1, "raw": [{"$uuid": "hello"}, {"$binary": 5}]}, None),
    ({"_id": 1, "raw": "x" * 9000}, None),
    ({"_id": 1, "raw": list(range(1001))}, None),
    ({"_id": 1, "raw": {f"f{n}": n for n in range(1001)}}, None),
    ({"_id": 1, "d": {"$uuid": "1-2-3-4-5"}}, None),
    ({"_id": 1, "$vector": None}, None),
    ({"_id": 1, "a.b": 1, "a&c": {"x.y": 2}}, None),
]


@pytest.mark.parametrize(("document", "code"), REFUSED)
def test_limits_hold_for_indexed_fields(document: Json, code: str | None, api: Api) -> None:
    """A value that the server refuses in an indexed field is accepted in a denied one."""
    api.create("c", vector={"dimension": 3}, indexing={"deny": ["raw"]})
    answer = api.insert("c", document, {"_id": "fine"}, returnDocumentResponses=True)
    assert codes(answer) == ([code] if code else [])
    assert [each["status"] for each in answer["status"]["documentResponses"]][1] == "OK"


def test_an_allow_list_indexes_nothing_else(api: Api) -> None:
    """With an allow list only the named paths, and what is under them, have limits."""
    api.create("c", indexing={"allow": ["a.b"]})
    long = "x" * 8001
    assert codes(api.insert("c", {"_id": 1, "a": {"c": long}, "d": long})) == []
    assert codes(api.insert("c", {"_id": 2, "a": {"b": {"c": long}}})) == ["SHRED_DOC_LIMIT_VIOLATION"]


# ----------------------------------------------------------------------------------------- paging and finding


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, [0]), (49, [49]), (50, [50, 0]), (100, [50, 50, 0]), (101, [50, 50, 1])]
)
def test_page_sizes(count: int, sizes: list[int], api: Api) -> None:
    """The last page is empty if the number of documents is a multiple of the page size."""
    api.create("c")
    for n in range(count):
        api.emulator.put(KEYSPACE, "c", f'{{"_id":{n}}}')
    assert [len(page) for page in api.scan("c")] == sizes


def test_a_page_state_outlives_inserts_and_deletes(filled: Api) -> None:
    """A page state goes on behind its document even if that was deleted; what is inserted ahead is seen."""
    first, state = filled.page("c")
    order = ids(filled.scan("c"))
    for document_id in order[40:60]:
        filled.emulator.delete(KEYSPACE, "c", document_id)
    for n in range(60):
        filled.emulator.put(KEYSPACE, "c", f'{{"_id":"new{n}"}}')
    rest = ids(filled.scan("c", state))
    now = ids(filled.scan("c"))
    boundary = [each for each in now if each in rest]
    assert rest == boundary == now[-len(rest) :]
    assert [each for each in rest if each in order] == order[60:]
    assert 0 < sum(str(each).startswith("new") for each in rest) < 60
    assert len(first) == 50


def test_a_page_state_dies_with_its_collection(filled: Api) -> None:
    """A page state of a collection that was made anew is refused, and so is any garbage."""
    _, state = filled.page("c")
    filled({"deleteCollection": {"name": "c"}})
    filled.create("c")
    for bad in (state, "AAAA", "", "????", "x" * 40, 5):
        answer = filled({"find": {"options": {"pageState": bad}}}, "c")
        assert codes(answer) == ["UNEXPECTED_DRIVER_ERROR"], bad


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 2**21, 2**31 - 1])
def test_page_states_are_read_back(size: int) -> None:
    """A page state decodes to what was encoded, for numbers of every length."""
    state = PageState(b"k" * min(size, 20000), size, size % 1000)
    assert PageState.decode(state.encode()) == state


def test_rows_stay_in_token_order() -> None:
    """Rows behave as a sorted list of tokens through thousands of inserts, replacements and deletes."""
    rows, mirror = Rows(), {}
    for n in range(6000):
        key = f"key{n * 7919 % 3000}".encode()
        if n % 3 == 2:
            assert rows.delete(key) == (mirror.pop(key, None) is not None)
        else:
            rows.put(key, mirror.setdefault(key, b"%d" % n))
    expected = sorted((murmur_token(key), key, text) for key, text in mirror.items())
    assert list(rows) == expected
    assert len(rows) == len(expected)
    for at in range(0, len(expected), 97):
        assert rows.after(expected[at][1], 60) == expected[at + 1 : at + 61]
        assert rows.get(expected[at][1]) == expected[at]


def test_limit_ends_a_scan(filled: Api) -> None:
    """A limit holds over all pages of a find."""
    find = {"find": {"options": {"limit": 60}}}
    answer = filled(find, "c")["data"]
    assert len(answer["documents"]) == 50
    find["find"]["options"] = {"limit": 60, "pageState": answer["nextPageState"]}
    answer = filled(find, "c")["data"]
    assert len(answer["documents"]) == 10
    assert answer["nextPageState"] is None


def test_find_by_ids(filled: Api) -> None:
    """`_id $in` finds at most 100 values, page by page, each document once."""
    wanted = [f"d{n}" for n in range(99)]
    find: Json = {"filter": {"_id": {"$in": [*wanted, "d1"]}}}
    first, state = filled.page("c", **find)
    second, last = filled.page("c", state, **find)
    assert sorted(ids([first, second])) == sorted(wanted)
    assert (len(first), last) == (50, None)
    refused = filled({"find": {"filter": {"_id": {"$in": list(range(101))}}}}, "c")
    assert codes(refused) == ["FILTER_INVALID_EXPRESSION"]


@pytest.mark.parametrize(
    ("projection", "expected"),
    [
        (None, {"_id": "x", "a": 1, "b": 2}),
        ({}, {"_id": "x", "a": 1, "b": 2}),
        ({"*": 1}, {"_id": "x", "$vector": [1, 0, 0], "a": 1, "b": 2}),
        ({"_id": 1}, {"_id": "x"}),
        ({"a": True}, {"_id": "x", "a": 1}),
        ({"a": 1, "_id": 0}, {"a": 1}),
        ({"$vector": 1}, {"_id": "x", "$vector": [1, 0, 0]}),
        ({"a": 0}, {"_id": "x", "b": 2}),
    ],
)
def test_projections(projection: Json, expected: Json, api: Api) -> None:
    """A projection includes or excludes top-level fields; without one the `$` fields stay out."""
    api.create("c", vector={"dimension": 3})
    api.insert("c", {"_id": "x", "$vector": [1, 0, 0], "a": 1, "b": 2})
    assert api({"findOne": {"projection": projection}}, "c") == {"data": {"document": expected}}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("cosine", [1.0, 0.5, 0.0]), ("dot_product", [1.0, 0.5, 0.0]), ("euclidean", [1.0, 1 / 3, 0.2])],
)
def test_nearest(metric: str, expected: list[float], api: Api) -> None:
    """A sort by vector gives the nearest first, in both forms of vectors."""
    api.create("c", vector={"dimension": 2, "metric": metric})
    api.insert("c", {"_id": "far", "$vector": [-1, 0]}, {"_id": "none"}, {"_id": "side", "$vector": [0, 1]})
    api.insert("c", {"_id": "near", "$vector": {"$binary": "P4AAAAAAAAA="}})
    for vector in ([1, 0], {"$binary": "P4AAAAAAAAA="}):
        found = api({"find": {"sort": {"$vector": vector}, "options": {"includeSimilarity": True}}}, "c")["data"]
        assert [each["_id"] for each in found["documents"]] == ["near", "side", "far"]
        assert [each["$similarity"] for each in found["documents"]] == pytest.approx(expected)


def test_sorted_find_stops_at_fifty(filled: Api) -> None:
    """A find sorted by a field gives 50 documents and no page state."""
    found = filled({"find": {"sort": {"n": -1}}}, "c")["data"]
    assert [each["n"] for each in found["documents"]] == list(range(119, 69, -1))
    assert found["nextPageState"] is None


def test_counts(api: Api) -> None:
    """The command countDocuments stops at 1000; estimatedDocumentCount knows what was loaded."""
    api.emulator.load(DATA / "catalog")
    assert api({"countDocuments": {}}, "assets") == {"status": {"count": 300}}
    assert api({"estimatedDocumentCount": {}}, "assets") == {"status": {"count": 300}}
    api.create("c")
    for n in range(1001):
        api.emulator.put(KEYSPACE, "c", f'{{"_id":{n}}}')
    assert api({"countDocuments": {}}, "c") == {"status": {"moreData": True, "count": 1000}}
    assert api({"estimatedDocumentCount": {}}, "c") == {"status": {"count": 0}}
    api.emulator.delete(KEYSPACE, "c", 0)
    assert api({"countDocuments": {}}, "c") == {"status": {"count": 1000}}


def test_planted_documents_are_given_back_as_they_are(api: Api) -> None:
    """What was put behind the server's back is found with the text it was put with, however odd."""
    api.create("c", vector={"dimension": 1})
    texts = [
        '{"_id":"nan","$vector":{"$binary":"f8AAAA=="}}',
        '{"_id":"sp", "x" : 1.0 }',
        '{"_id":{"$date":1},"$x":"\\u0041","":1e5}',
        '{"_id":"q\\"uote","a":1}',
        '{"_id":[1],"a":1}',
    ]
    for text in texts:
        api.emulator.put(KEYSPACE, "c", text)
    assert sorted(api.emulator.documents(KEYSPACE, "c")) == sorted(texts)
    body = api.post({"find": {"projection": {"*": True}}}, "c").text
    assert all(text in body for text in texts)
    with pytest.raises(ValueError, match="begins with"):
        api.emulator.put(KEYSPACE, "c", '{"a":1,"_id":2}')


# ------------------------------------------------------------------------------------- replacing and deleting


def test_replacing(filled: Api) -> None:
    """The command findOneAndReplace keeps exact numbers, reports what it did, and refuses another `_id`."""
    replace = '{{"findOneAndReplace":{{"filter":{{"_id":"d1"}},"replacement":{},"options":{{"upsert":true}}}}}}'
    answer = filled(replace.format('{"_id":"d1","n":1.00000000000000000001}'), "c")
    assert answer["data"]["document"] == {"_id": "d1", "n": 1}
    assert answer["status"] == {"matchedCount": 1, "modifiedCount": 1}
    assert filled(replace.format('{"n":1.00000000000000000001}'), "c")["status"]["modifiedCount"] == 0
    assert '{"_id":"d1","n":1.00000000000000000001}' in filled.emulator.documents(KEYSPACE, "c")
    assert codes(filled(replace.format('{"_id":"d2"}'), "c")) == ["DOCUMENT_REPLACE_DIFFERENT_DOCID"]
    both = filled(replace.format('{"_id":"d1","$vector":null,"$vectorize":null}'), "c")
    assert codes(both) == ["INVALID_USAGE_OF_VECTORIZE"]


def test_a_failed_request_stores_nothing(api: Api) -> None:
    """A refusal of the whole request leaves none of its documents behind."""
    api.create("c")
    for document in ({"$vector": [1]}, {"$vectorize": "text"}, {"$vector": None, "$vectorize": None}):
        answer = api.insert("c", {"_id": "before"}, document, {"_id": "after"})
        assert list(answer) == ["errors"]
    assert api.emulator.documents(KEYSPACE, "c") == []


# ------------------------------------------------------------------------------- definitions and environments


def test_a_table_is_in_the_way_of_a_collection(api: Api) -> None:
    """A table is listed, refuses a collection of its name as recorded, and deleteCollection drops it."""
    api.emulator.tables.create(KEYSPACE, "c_onlypk", {"id": "text"}, ["id"])
    assert api({"listTables": {}}) == {"status": {"tables": ["c_onlypk"]}}
    assert [row["name"] for row in api({"listTables": {"options": {"explain": True}}})["status"]["tables"]] == [
        "c_onlypk"
    ]
    assert api({"findCollections": {}}) == {"status": {"collections": []}}
    (error,) = api({"createCollection": {"name": "c_onlypk"}})["errors"]
    assert {**error, "id": ""} == {
        "id": "",
        "family": "REQUEST",
        "scope": "SCHEMA",
        "errorCode": "EXISTING_TABLE_NOT_DATA_API_COLLECTION",
        "title": "Existing table not a valid Data API collection",
        "message": "Attempt to create new collection failed: table 'c_onlypk' already exists and it is not a valid "
        "Data API collection.\n\nRecommend deleting the table and resending the command.",
    }
    assert api({"deleteCollection": {"name": "c_onlypk"}}) == {"status": {"ok": 1}}
    assert api({"listTables": {}}) == {"status": {"tables": []}}


def test_a_client_that_leaves_leaves_indexes_out(api: Api) -> None:
    """A createCollection is cancelled with its client: the definition is whole, some indexes are not there."""
    api.emulator.create_s = 1.0
    command = {"createCollection": {"name": "c", "options": {"vector": {"dimension": 2}}}}
    with pytest.raises(httpx.ReadTimeout):
        api.post(command, timeout=0.4)
    wait_until(lambda: api.emulator.requests)
    missing = api.emulator.missing_indexes(KEYSPACE)["c"]
    assert "query_vector_value" in missing
    (found,) = api({"findCollections": {"options": {"explain": True}}})["status"]["collections"]
    assert found["options"]["vector"]["dimension"] == 2
    api.insert("c", {"_id": "a", "n": 1, "$vector": [1, 2]}, {"_id": "b", "n": 7, "$vector": [2, 1]})
    nearest: Json = {"find": {"sort": {"$vector": [1, 2]}, "options": {"limit": 1}}}
    assert codes(api(nearest, "c")) == ["CORRUPTED_COLLECTION_SCHEMA"]
    api.emulator.create_s = 0.0
    assert api(command) == {"status": {"ok": 1}}
    assert api.emulator.missing_indexes(KEYSPACE) == {}
    assert [document["_id"] for document in api(nearest, "c")["data"]["documents"]] == ["a"]


def test_ranges_of_numbers_need_their_index(filled: Api) -> None:
    """A range of a field with numbers finds them; without the index of numbers it is an invalid query."""
    search: Json = {"find": {"filter": {"n": {"$gte": 117, "$lt": 119}}}}
    assert sorted(document["n"] for document in filled(search, "c")["data"]["documents"]) == [117, 118]
    filled.emulator.database.collection(KEYSPACE, "c").indexes.discard("query_dbl_values")
    assert codes(filled(search, "c")) == ["INVALID_DATABASE_QUERY"]


def test_astra_turns_lexical_and_rerank_on(api: Api) -> None:
    """With `astra` on, lexical and rerank are enabled unless the definition says no."""
    api.emulator.astra = True
    api.create("on")
    api.create("off", lexical={"enabled": False}, rerank={"enabled": False})
    definitions = api.emulator.collections(KEYSPACE)
    assert definitions["on"]["lexical"] == {"enabled": True, "analyzer": "standard"}
    assert definitions["on"]["rerank"]["service"]["provider"] == "nvidia"
    assert definitions["off"] == {"lexical": {"enabled": False}, "rerank": {"enabled": False}}
    assert codes(api.insert("on", {"_id": 1, "$lexical": "words"})) == []
    assert api({"findOne": {"projection": {"*": 1}}}, "on")["data"]["document"]["$lexical"] == "words"


def test_vectorize_makes_a_vector_beside_the_text(api: Api) -> None:
    """With a service, text gets a vector that depends on the text alone; blank text gets null."""
    api.emulator.vectorize = True
    service = {
        "provider": "openai",
        "modelName": "m",
        "authentication": {"providerKey": "k"},
        "parameters": {},
    }
    api.create("c", vector={"dimension": 3, "metric": "cosine", "service": service})
    assert api.emulator.collections(KEYSPACE)["c"]["vector"]["service"] == service
    api.insert("c", {"_id": 1, "$vectorize": "text"}, {"_id": 2, "$vectorize": "text", "n": 1})
    api.insert("c", {"_id": 3, "$vectorize": " "}, {"_id": 4, "$vectorize": None})
    stored = {each["_id"]: each for each in map(json.loads, api.emulator.documents(KEYSPACE, "c"))}
    assert list(stored[2]) == ["_id", "$vectorize", "n", "$vector"]
    assert stored[1]["$vector"] == stored[2]["$vector"]
    assert list(stored[1]["$vector"]) == ["$binary"]
    assert stored[3] == {"_id": 3, "$vectorize": " ", "$vector": None}
    found = api({"find": {"sort": {"$vectorize": "text"}, "options": {"includeSimilarity": True}}}, "c")
    assert found["data"]["documents"][0]["$similarity"] == pytest.approx(1)


def test_too_many_collections(api: Api) -> None:
    """The number of collections is limited over all keyspaces together."""
    api.emulator.max_collections = 2
    api.emulator.create("other", "one")
    api.create("two")
    api.create("two")
    assert codes(api({"createCollection": {"name": "three"}})) == ["TOO_MANY_COLLECTIONS"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"vector": {"dimension": 3, "wrong": 1}}, "INVALID_CREATE_COLLECTION_FIELD"),
        ({"vector": {"dimension": 5000}}, "COMMAND_FIELD_VALUE_INVALID"),
        ({"defaultId": {"type": "serial"}}, "COMMAND_FIELD_VALUE_INVALID"),
        ({"indexing": {"allow": ["a"], "deny": ["b"]}}, "INVALID_INDEXING_DEFINITION"),
        ({"rerank": {"enabled": True}}, "RERANKING_FEATURE_NOT_ENABLED"),
    ],
)
def test_refused_definitions(options: Json, code: str, api: Api) -> None:
    """A definition that is not valid makes no collection."""
    assert codes(api({"createCollection": {"name": "c", "options": options}})) == [code]
    assert api({"findCollections": {}})["status"]["collections"] == []


@pytest.mark.parametrize("command", ["updateOne", "findOneAndUpdate", "findAndRerank"])
def test_what_is_not_emulated_says_so(command: str, filled: Api) -> None:
    """A command the server has and the emulator has not is a loud error."""
    assert codes(filled({command: {}}, "c")) == ["EMULATOR_NOT_IMPLEMENTED"]
    assert codes(filled({"find": {"filter": {"n": 1}}}, "c")) == ["EMULATOR_NOT_IMPLEMENTED"]


def test_requests_refused_before_their_body() -> None:
    """A wrong token is 401, another method 405, another path 404, another content type 415."""
    with DataApiEmulator(token="right") as running:
        url = running.url + "/v1/default_keyspace"
        wrong = httpx.post(url, json={"findCollections": {}}, headers={"Token": "wrong"})
        assert (wrong.status_code, codes(wrong.json())) == (401, ["UNAUTHENTICATED_REQUEST"])
        token = {"Token": "right"}
        assert httpx.post(url, json={"findCollections": {}}, headers=token).status_code == 200
        assert httpx.get(url, headers=token).status_code == 405
        assert httpx.post(running.url + "/v2/x", json={}, headers=token).status_code == 404
        assert httpx.post(url, content="x", headers={**token, "Content-Type": "text/plain"}).status_code == 415
        assert [each.token_ok for each in running.requests][:2] == [False, True]


def test_chunked_bodies_and_records(api: Api) -> None:
    """A body sent in chunks is read whole, and every request is recorded with its command and body."""
    body = [b'{"findColl', b'ections":{}}']
    url = api.emulator.url + f"/api/json/v1/{KEYSPACE}"
    headers = {"Token": "t", "Content-Type": "application/json"}
    assert httpx.post(url, content=iter(body), headers=headers).json() == {"status": {"collections": []}}
    record = api.emulator.requests[-1]
    assert (record.command, record.keyspace, record.collection) == ("findCollections", KEYSPACE, "")
    assert record.body == '{"findCollections":{}}'
    assert record.status == 200


@pytest.mark.parametrize(("environment", "prefix"), [(Environment.HCD, "/v1"), (Environment.PROD, "/api/json/v1")])
def test_the_real_client_goes_round(environment: str, prefix: str, emulator: DataApiEmulator) -> None:
    """The client astrapy creates, fills, counts, finds, replaces, deletes and drops, in both environments."""
    database = DataAPIClient(environment=environment).get_database(
        emulator.url, token=emulator.token, keyspace=KEYSPACE
    )
    collection = database.create_collection(
        "c", definition={"vector": {"dimension": 3, "metric": "cosine"}, "defaultId": {"type": "objectId"}}
    )
    documents = [{"_id": f"d{n}", "n": n, "$vector": [n, 1, 0]} for n in range(120)]
    assert len(collection.insert_many(documents, ordered=False).inserted_ids) == 120
    with pytest.raises(CollectionInsertManyException):
        collection.insert_many(documents[:3], ordered=True)
    assert collection.count_documents({}, upper_bound=500) == 120
    assert sorted(each["n"] for each in collection.find({}, projection={"*": True})) == list(range(120))
    nearest = collection.find({}, sort={"$vector": [0, 1, 0]}, limit=1, include_similarity=True).to_list()
    assert nearest == [{"_id": "d0", "n": 0, "$similarity": pytest.approx(1)}]
    assert collection.find_one({"_id": "d7"}) == {"_id": "d7", "n": 7}
    collection.find_one_and_replace({"_id": "d7"}, {"_id": "d7", "m": 1}, upsert=True)
    assert collection.delete_one({"_id": "d7"}).deleted_count == 1
    assert collection.delete_many({}).deleted_count == -1
    assert [each.name for each in database.list_collections()] == ["c"]
    database.drop_collection("c")
    assert database.list_collection_names() == []
    assert {each.keyspace for each in emulator.requests} == {KEYSPACE}


# -------------------------------------------------------------------------------------------- scripted faults


def test_a_rule_waits_counts_and_stops(filled: Api) -> None:
    """A rule meets its command and collection, lets `skip` pass, then fires `times` times or every Nth."""
    filled.create("other")
    find: Json = {"find": {}}

    def statuses(how_many: int, collection: str = "c", body: Json = find) -> list[int]:
        return [filled.post(body, collection).status_code for _ in range(how_many)]

    filled.emulator.faults = [
        {"action": "status", "status": 503, "command": "find", "collection": "c", "skip": 1, "times": 2}
    ]
    assert statuses(2, "other") == statuses(2, body={"findOne": {}}) == [200, 200]
    assert statuses(5) == [200, 503, 503, 200, 200]
    filled.emulator.faults = [{"action": "status", "status": 500, "command": ["find", "findOne"], "every": 3}]
    assert statuses(7) == [200, 200, 500, 200, 200, 500, 200]
    filled.emulator.faults = [{"action": "status", "status": 500, "times": None}]
    assert statuses(3) == [500, 500, 500]
    rule = filled.emulator.add_fault("status", status=400, contains="nothing like it")
    assert rule.fired == 0
    with pytest.raises(ValueError, match="unknown fault action"):
        filled.emulator.faults = [{"action": "explode"}]


def fault(api: Api, action: str, **rule: Json) -> None:
    api.emulator.faults = [{"action": action, **rule}]


def test_fault_status(filled: Api) -> None:
    """The gateway answers with a status, headers and a body."""
    fault(filled, "status", status=429, headers={"Retry-After": "3"}, body="slow down")
    answer = filled.post({"find": {}}, "c")
    assert (answer.status_code, answer.headers["retry-after"], answer.text) == (429, "3", "slow down")


def test_fault_error(filled: Api) -> None:
    """The server answers with an error of a given code in HTTP 200."""
    fault(filled, "error", errorCode="TIMEOUT_READING_DATA", family="SERVER")
    answer = filled.post({"find": {}}, "c")
    assert (answer.status_code, codes(answer.json())) == (200, ["TIMEOUT_READING_DATA"])


def test_fault_reset(filled: Api) -> None:
    """The connection is reset before anything was done."""
    fault(filled, "reset")
    with pytest.raises(httpx.TransportError):
        filled.insert("c", {"_id": "lost"})
    assert codes(filled.insert("c", {"_id": "lost"})) == []


def test_fault_reset_after(filled: Api) -> None:
    """The request is done but its reply is lost."""
    fault(filled, "reset_after")
    with pytest.raises(httpx.TransportError):
        filled.insert("c", {"_id": "lost"})
    assert codes(filled.insert("c", {"_id": "lost"})) == ["DOCUMENT_ALREADY_EXISTS"]


def test_fault_truncate(filled: Api) -> None:
    """The body ends before its announced length."""
    fault(filled, "truncate")
    with pytest.raises(httpx.RemoteProtocolError):
        filled.post({"find": {}}, "c")


def test_fault_invalid_json(filled: Api) -> None:
    """The body is cut short and its length agrees."""
    fault(filled, "invalid_json")
    answer = filled.post({"find": {}}, "c")
    assert answer.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        answer.json()


def test_fault_html(filled: Api) -> None:
    """A page of HTML comes with status 200."""
    fault(filled, "html")
    answer = filled.post({"find": {}}, "c")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.text.startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("given", [[], {}, {"data": None}, "text", None])
def test_fault_other_json(given: Json, filled: Api) -> None:
    """The body is JSON of another shape."""
    fault(filled, "other_json", json=given)
    assert filled({"find": {}}, "c") == given


def test_fault_delay(filled: Api) -> None:
    """The answer is right but late."""
    fault(filled, "delay", seconds=0.2)
    began = time.monotonic()
    assert len(filled({"find": {}}, "c")["data"]["documents"]) == 50
    assert time.monotonic() - began >= 0.2


def test_fault_trickle(filled: Api) -> None:
    """The answer comes byte by byte."""
    fault(filled, "trickle", interval=0.005)
    began = time.monotonic()
    assert filled({"countDocuments": {}}, "c") == {"status": {"count": 120}}
    assert time.monotonic() - began >= 0.1


def test_fault_silence(filled: Api) -> None:
    """No answer comes at all."""
    fault(filled, "silence")
    with pytest.raises(httpx.ReadTimeout):
        filled.post({"find": {}}, "c", timeout=0.2)
    assert filled({"countDocuments": {}}, "c") == {"status": {"count": 120}}


def test_stopping_ends_a_silence() -> None:
    """Stopping the server lets go of clients that wait."""
    running = DataApiEmulator(faults=[{"action": "silence"}]).start()
    errors: list[Exception] = []

    def wait() -> None:
        try:
            httpx.post(running.url + "/v1", json={"findKeyspaces": {}}, headers={"Token": "t"}, timeout=10)
        except httpx.HTTPError as error:
            errors.append(error)

    client = threading.Thread(target=wait)
    client.start()
    while not running.requests:
        time.sleep(0.01)
    running.stop()
    client.join(3)
    assert len(errors) == 1
    assert not client.is_alive()


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_fault_empty_page(skip: int, filled: Api) -> None:
    """A page is empty although it is not the last; the scan then goes on where it was."""
    whole = ids(filled.scan("c"))
    fault(filled, "empty_page", skip=skip)
    pages = filled.scan("c")
    assert [len(page) for page in pages].index(0) == skip
    assert ids(pages) == whole


def test_fault_repeat_page(filled: Api) -> None:
    """A page comes a second time, with the state that goes on behind it."""
    pages = filled.scan("c")
    fault(filled, "repeat_page", skip=1)
    assert filled.scan("c") == [pages[0], pages[0], *pages[1:]]


def test_fault_bad_page_state(filled: Api) -> None:
    """A page state that was good is refused."""
    _, state = filled.page("c")
    fault(filled, "bad_page_state", command="find")
    assert codes(filled({"find": {"options": {"pageState": state}}}, "c")) == ["UNEXPECTED_DRIVER_ERROR"]
    assert len(filled.page("c", state)[0]) == 50


def test_fault_alter_document(filled: Api) -> None:
    """An insert is acknowledged but one document is stored otherwise than it was sent."""
    fault(filled, "alter_document", index=1)
    assert codes(filled.insert("c", {"_id": "x", "a": 1}, {"_id": "y", "a": 1})) == []
    fault(filled, "alter_document", find='"a":1', replace='"a":2')
    assert codes(filled.insert("c", {"_id": "z", "a": 1})) == []
    stored = filled.emulator.documents(KEYSPACE, "c")
    assert {'{"_id":"x","a":1}', '{"_id":"y","a":1,"altered":true}', '{"_id":"z","a":2}'} <= set(stored)


def test_fault_drop_document(filled: Api) -> None:
    """An insert is acknowledged but one document is not stored."""
    fault(filled, "drop_document")
    answer = filled.insert("c", {"_id": "x"}, {"_id": "y"})
    assert answer == {"status": {"insertedIds": ["x", "y"]}}
    assert '{"_id":"x"}' not in filled.emulator.documents(KEYSPACE, "c")
    assert '{"_id":"y"}' in filled.emulator.documents(KEYSPACE, "c")


def test_fault_drop_collection(filled: Api) -> None:
    """The collection disappears between two pages."""
    _, state = filled.page("c")
    fault(filled, "drop_collection")
    answer = filled({"find": {"options": {"pageState": state}}}, "c")
    assert codes(answer) == ["UNKNOWN_COLLECTION_OR_TABLE"]


def test_fault_recreate_collection(filled: Api) -> None:
    """The collection is made anew between two pages, with or without its documents."""
    _, state = filled.page("c")
    fault(filled, "recreate_collection", keep_documents=True)
    assert codes(filled({"find": {"options": {"pageState": state}}}, "c")) == ["UNEXPECTED_DRIVER_ERROR"]
    assert len(ids(filled.scan("c"))) == 120
    fault(filled, "recreate_collection")
    assert ids(filled.scan("c")) == []


def test_fault_alter_definition(filled: Api) -> None:
    """The definition changes while the collection is being read."""
    fault(filled, "alter_definition", definition={"indexing": {"deny": ["*"]}})
    filled.page("c")
    assert filled.emulator.collections(KEYSPACE)["c"]["indexing"] == {"deny": ["*"]}


def test_fault_insert_and_delete(filled: Api) -> None:
    """Documents come and go while the collection is being read."""
    filled.emulator.faults = [
        {"action": "insert", "documents": [{"_id": "dict"}, '{"_id":"text", "odd" : 1.0}']},
        {"action": "delete", "ids": ["dict", "d1"], "count": 3, "skip": 1},
    ]
    filled.page("c")
    assert len(filled.emulator.documents(KEYSPACE, "c")) == 122
    filled.page("c")
    left = filled.emulator.documents(KEYSPACE, "c")
    assert '{"_id":"dict"}' not in left
    assert len(left) in (117, 118)


def test_a_reset_inside_the_body(filled: Api) -> None:
    """`reset_inside` sends half of a reply and resets; the next request is answered."""
    filled.emulator.faults = [{"action": "reset_inside"}]
    with pytest.raises(httpx.HTTPError):
        filled.page("c")
    assert filled.page("c")


def test_down_and_up_again(filled: Api) -> None:
    """`down` refuses connections for so many seconds."""
    filled.emulator.faults = [{"action": "down", "seconds": 0.2}]
    with pytest.raises(httpx.HTTPError):
        filled.page("c")
    time.sleep(0.5)
    while not filled.emulator.is_up:
        time.sleep(0.05)
    assert filled.page("c")


def test_others_create_and_lead_back(filled: Api) -> None:
    """`create_collection` makes another collection; `first_page` forgets the page state."""
    filled.emulator.faults = [
        {"action": "create_collection", "name": "new"},
        {"action": "first_page", "skip": 1},
    ]
    assert filled.page("c")
    assert "new" in filled.emulator.collections(KEYSPACE)
    assert filled.page("c")


def test_documents_fail_one_by_one(filled: Api) -> None:
    """`document_errors` refuses some documents of an insertMany, each with its error, and stores the others."""
    filled.emulator.faults = [
        {"action": "document_errors", "ids": ["x2"], "errorCode": "NEW", "family": "REQUEST"},
        {"action": "document_errors", "errorCode": "NEW", "family": None, "skip": 1},
    ]
    body = {"documents": [{"_id": "x1"}, {"_id": "x2"}], "options": {"returnDocumentResponses": True}}
    reply = filled({"insertMany": body}, "c")
    assert [row["status"] for row in reply["status"]["documentResponses"]] == ["OK", "ERROR"]
    (error,) = reply["errors"]
    assert (error["errorCode"], error["family"], error["documentIds"]) == ("NEW", "REQUEST", ["x2"])
    assert '{"_id":"x1"}' in filled.emulator.documents(KEYSPACE, "c")
    reply = filled({"insertMany": body}, "c")
    assert [row["errorsIdx"] for row in reply["status"]["documentResponses"]] == [0, 1]
    assert "family" not in reply["errors"][0]


def test_a_reply_with_fields_that_nobody_knows(filled: Api) -> None:
    """`add_fields` adds to each part of a reply, and does what was asked."""
    filled.emulator.faults = [{"action": "add_fields", "fields": '{"x":5}', "times": None}]
    reply = filled({"find": {}}, "c")
    assert (reply["x"], reply["status"]["x"], reply["data"]["x"]) == (5, 5, 5)
    assert reply["data"]["documents"]


def test_every_fault_is_tested() -> None:
    """Each scripted fault has a test."""
    tests = (Path(__file__), Path(__file__).with_name("test_page_states.py"))
    source = "".join(path.read_text("utf-8") for path in tests)
    assert [action for action in ACTIONS if f'"{action}"' not in source] == []


# ------------------------------------------------------------------------------------------------ the program


def test_the_program_serves_and_stops(tmp_path: Path) -> None:
    """As a program it says where it listens, loads, logs each request, and stops on SIGTERM with status 0."""
    log, faults = tmp_path / "log", tmp_path / "faults.json"
    faults.write_text('[{"action":"status","status":503,"command":"countDocuments"}]')
    command = [sys.executable, "-m", "tests.emulators.data_api", "--port", "0", "--quiet", "--token", "T"]
    command += [
        "--load",
        str(DATA / "catalog"),
        "--log",
        str(log),
        "--faults",
        str(faults),
        "--keyspace",
        "k",
    ]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("listening on ").strip()
        with httpx.Client(headers={"Token": "T"}) as client:
            assert client.post(f"{url}/v1/k/assets", json={"countDocuments": {}}).status_code == 503
            answer = client.post(f"{url}/v1/k/assets", json={"countDocuments": {}}).json()
            assert answer == {"status": {"count": 300}}
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["command"], line["status"], line["token_ok"]) for line in lines] == [
        ("countDocuments", 503, True),
        ("countDocuments", 200, True),
    ]


def test_a_scan_is_quick(api: Api) -> None:
    """A page costs the server the same wherever it is, also among thirty thousand documents."""
    api.create("c")
    for n in range(30_000):
        api.emulator.put(KEYSPACE, "c", f'{{"_id":"{n}"}}')
    began = time.process_time()
    assert sum(map(len, api.scan("c"))) == 30_000
    assert time.process_time() - began < 10


def test_requests_from_many_threads(api: Api) -> None:
    """Of several clients that insert the same documents at once, exactly one succeeds for each."""
    api.create("c")
    done: list[int] = []

    def insert() -> None:
        for at in range(0, 500, 50):
            answer = api.insert("c", *({"_id": n} for n in range(at, at + 50)), ordered=False)
            done.append(len(answer["status"]["insertedIds"]))

    threads = [threading.Thread(target=insert) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == len(api.emulator.documents(KEYSPACE, "c")) == 500


def test_the_cut_catalog_is_whole() -> None:
    """The catalog in the tests has the 300 assets of six pages and an empty last page."""
    pages = [list(page_documents(line)) for line in read_pages(DATA / "catalog", "assets")]
    assert [len(page) for page in pages] == [50] * 6 + [0]
    with gzip.open(DATA / "catalog" / "assets.pages.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line, page in zip(lines, pages, strict=True):
            assert [json.loads(text) for text in page] == json.loads(line)["data"]["documents"]
