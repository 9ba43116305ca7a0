"""Page states of the Data API emulator: as recorded from the real server, guessed ones included; and other servers'."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import random
import string
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import KEYSPACE
from tests.emulators.data_api import KNOBS, PAGE_STATES, DataApiEmulator, murmur_token
from tests.support import Api, codes, ids

Json = Any
ROOT = Path(__file__).parent.parent
RECORDED: list[Json] = json.loads(gzip.decompress((ROOT / "tests/data/page_states.json.gz").read_bytes()))[
    "collections"
]
COUNT = 400
MIN_VALUE_KEY = bytes.fromhex("653cbefb85ec3111b4e38fa9bc7cbcae")  # found by going through Murmur3 backwards
ASTRAY = ("reversing", "shuffling")


@pytest.fixture
def emulator() -> Iterator[DataApiEmulator]:
    with DataApiEmulator(page_size=20) as running:
        yield running


@pytest.fixture
def api(emulator: DataApiEmulator) -> Iterator[Api]:
    made = Api(emulator)
    yield made
    made.client.close()


@pytest.fixture
def filled(api: Api) -> Api:
    """A collection `c` whose ids have one length, twenty pages and an empty one."""
    api.create("c")
    for n in range(COUNT):
        api.emulator.put(KEYSPACE, "c", f'{{"_id":"document {n:03}","n":{n}}}')
    return api


def put_key(state: str, old: str, new: str) -> str:
    """The state with another key's text in the place of the one that it has; AssertionError if that is not in it."""
    raw, text = base64.b64decode(state), old.encode()
    place = raw.find(struct.pack(">i", len(text)) + text)
    assert place >= 0
    return base64.b64encode(raw[: place + 4] + new.encode() + raw[place + 4 + len(text) :]).decode()


def position(text: str) -> int:
    """Where a text id stands in the ring."""
    return murmur_token(struct.pack(">IBI", 1, 1, len(text)) + text.encode())


def order(api: Api) -> list[str]:
    """The ids in the server's order."""
    return [json.loads(text)["_id"] for text in api.emulator.documents(KEYSPACE, "c")]


def guess(api: Api, *, low: float = 0.3, high: float = 0.7) -> tuple[str, list[str]]:
    """A state with a key of no document, from that part of the collection, and the ids that stand behind it."""
    (*_, last), state = api.page("c")
    placed = order(api)
    chance = random.Random(7)
    while True:
        text = "".join(chance.choices(string.ascii_letters, k=len(last["_id"])))
        behind = [each for each in placed if position(each) > position(text)]
        if low < 1 - len(behind) / len(placed) < high:
            return put_key(state, last["_id"], text), behind


def refusals(api: Api, state: str) -> list[str]:
    return codes(api({"find": {"options": {"pageState": state}}}, "c"))


# ------------------------------------------------------------------------------------------------ conformance


@pytest.mark.parametrize("recorded", RECORDED, ids=[each["collection"] for each in RECORDED])
def test_scans_and_guesses_are_as_recorded(recorded: Json, api: Api) -> None:
    """Each recorded page, asked for with a state of the server or a guess, has the same ids and next state."""
    api.emulator.page_size = 50
    api.create("c")
    documents = [json.dumps({"_id": each}, ensure_ascii=False, separators=(",", ":")) for each in ids_of(recorded)]
    for text in random.Random(1).sample(documents, len(documents)):
        api.emulator.put(KEYSPACE, "c", text)
    for page in recorded["scan"] + recorded["guesses"]:
        options = {"pageState": page["pageState"]} if page["pageState"] else {}
        data = api({"find": {"options": options}}, "c")["data"]
        assert [json.dumps(each["_id"]) for each in data["documents"]] == [json.dumps(each) for each in page["ids"]]
        assert data["nextPageState"] == page["nextPageState"]


def ids_of(recorded: Json) -> list[Json]:
    return [each for page in recorded["scan"] for each in page["ids"]]


def test_the_recording_is_whole() -> None:
    """There are nine collections, twelve guesses each, and each scan goes from no state to none, state by state."""
    assert [len(each["guesses"]) for each in RECORDED] == [12] * 9
    for each in RECORDED:
        states = [(page["pageState"], page["nextPageState"]) for page in each["scan"]]
        assert states[0][0] is states[-1][1] is None
        assert all(before[1] == after[0] for before, after in itertools.pairwise(states))


def test_the_smallest_token_is_the_largest() -> None:
    """Long.MIN_VALUE is not a token: Cassandra makes Long.MAX_VALUE of it, so such a key stands last."""
    assert murmur_token(MIN_VALUE_KEY) == 2**63 - 1
    assert murmur_token(MIN_VALUE_KEY[:-1] + b"\0") != 2**63 - 1


# ------------------------------------------------------------------------------------- any key is a position


def test_a_guess_enters_anywhere(filled: Api) -> None:
    """A state with the key of no document brings what follows that key in token order, to the end."""
    state, behind = guess(filled)
    assert ids(filled.scan("c", state)) == behind
    before, _ = guess(filled, low=-0.1, high=0.02)
    assert ids(filled.scan("c", before))[-300:] == order(filled)[-300:]


def test_the_key_of_a_document_is_as_good_as_the_servers_own(filled: Api) -> None:
    """A state made for a document in the middle of a page goes on behind it."""
    first, state = filled.page("c")
    made = put_key(state, first[-1]["_id"], first[9]["_id"])
    assert ids(filled.scan("c", made)) == order(filled)[10:]


def delete(api: Api, behind: list[str]) -> list[str]:
    for each in behind[:30]:
        api.emulator.delete(KEYSPACE, "c", each)
    return behind[30:]


def insert(api: Api, behind: list[str]) -> list[str]:
    for n in range(50):
        api.emulator.put(KEYSPACE, "c", f'{{"_id":"inserted {n:03}"}}')
    now = order(api)
    return now[now.index(behind[0]) :]


def replace(api: Api, behind: list[str]) -> list[str]:
    for each in behind:
        api.emulator.put(KEYSPACE, "c", f'{{"_id":"{each}","replaced":true}}')
    return behind


@pytest.mark.parametrize("change", [delete, insert, replace])
@pytest.mark.parametrize("kind", [each for each in PAGE_STATES if each != "skipping"])
@pytest.mark.parametrize("at", [1, 7])
def test_the_servers_states_outlive_changes(
    kind: str, change: Callable[[Api, list[str]], list[str]], at: int, filled: Api
) -> None:
    """A state that the server gave goes on behind its key, whatever becomes of the documents there, on every server."""
    filled.emulator.page_states = kind
    state = None
    for _ in range(at):
        documents, state = filled.page("c", state)
    last = documents[-1]["_id"]
    behind = change(filled, order(filled)[order(filled).index(last) :])
    expected = [each for each in behind if position(each) > position(last)]
    assert ids(filled.scan("c", state)) == expected


@pytest.mark.parametrize("change", [delete, insert, replace])
def test_guesses_outlive_changes(change: Callable[[Api, list[str]], list[str]], filled: Api) -> None:
    """A guess goes on from where its key would be, whatever becomes of the documents there."""
    state, behind = guess(filled)
    kept = change(filled, behind)
    found = ids(filled.scan("c", state))
    assert found[-len(kept) :] == kept
    assert len(found) < COUNT


# ---------------------------------------------------------------------------------- servers that are otherwise


@pytest.mark.parametrize("kind", PAGE_STATES)
def test_an_ordinary_scan_is_whole_on_every_server(kind: str, filled: Api) -> None:
    """Who follows the server's own states reads everything in order, also after guesses were made."""
    filled.emulator.page_states = kind
    assert ids(filled.scan("c")) == order(filled)
    filled.emulator.page_states = "cassandra"
    state, _ = guess(filled)
    filled.emulator.page_states = kind
    for _ in range(10):
        answer = filled({"find": {"options": {"pageState": state}}}, "c")
        state = (answer.get("data") or {}).get("nextPageState")
        if state is None:
            break
    assert ids(filled.scan("c")) == order(filled)


def test_opaque_states_hold_no_key(filled: Api) -> None:
    """In an opaque state there is no key to be found, and one changed byte spoils it."""
    filled.emulator.page_states = "opaque"
    state: Any = None
    for _ in range(3):
        documents, state = filled.page("c", state)
        raw = base64.b64decode(state)
        assert documents[-1]["_id"].encode() not in raw
        assert b"\0\0\0\x01\x01" not in raw
        for at in range(len(raw)):
            changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
            assert refusals(filled, base64.b64encode(changed).decode()) == ["UNEXPECTED_DRIVER_ERROR"]
    assert refusals(filled, "AAAA") == ["UNEXPECTED_DRIVER_ERROR"]


def test_a_refusing_server_knows_its_documents(filled: Api) -> None:
    """A guess is refused like garbage; the key of a document that is there is taken."""
    filled.emulator.page_states = "refusing"
    first, state = filled.page("c")
    guessed, _ = guess(filled)
    assert refusals(filled, guessed) == refusals(filled, "AAAA") == ["UNEXPECTED_DRIVER_ERROR"]
    made = put_key(state, first[-1]["_id"], first[3]["_id"])
    assert filled.page("c", made)[0][:16] == first[4:]


def test_a_restarting_server_begins_anew(filled: Api) -> None:
    """A guess brings the first page and its state."""
    filled.emulator.page_states = "restarting"
    guessed, _ = guess(filled)
    filled.emulator.database.collection(KEYSPACE, "c").issued.clear()  # no page was asked for before
    found, state = [], guessed
    for _ in range(COUNT // 20):
        documents, state = filled.page("c", state)
        found += ids([documents])
    assert found == order(filled)
    assert filled.page("c", guessed) == filled.page("c")


def test_a_reversing_server_goes_back(filled: Api) -> None:
    """A guess brings the documents before its key, and its chain goes back to the first one and ends."""
    filled.emulator.page_states = "reversing"
    guessed, behind = guess(filled)
    before = order(filled)[: -len(behind)]
    assert ids(filled.scan("c", guessed)) == before[::-1]


def test_a_shuffling_server_goes_in_a_circle(filled: Api) -> None:
    """The chain of a guess goes through all documents in an order of its own, and around again."""
    filled.emulator.page_states = "shuffling"
    state, behind = guess(filled)
    found: list[str] = []
    for _ in range(2 * COUNT // 20):
        documents, state = filled.page("c", state)
        found += ids([documents])
    assert found[:COUNT] == found[COUNT:]
    assert sorted(found[:COUNT]) == sorted(order(filled))
    assert found[:20] != behind[:20]


@pytest.mark.parametrize("known", [False, True])
def test_a_skipping_server_leaves_documents_out(known: bool, filled: Api) -> None:
    """Each page after a state that the server did not give lacks one document, also if it has a document's key."""
    filled.emulator.page_states = "skipping"
    state, behind = guess(filled)
    if known:
        first, own = filled.page("c")
        state, behind = put_key(own, first[-1]["_id"], first[9]["_id"]), order(filled)[10:]
    pages = filled.scan("c", state)
    found = ids(pages)
    assert [each for each in behind if each in found] == found
    assert len(behind) - len(found) == len([page for page in pages if page])
    assert found[:10] + found[10:20] == behind[:10] + behind[11:21]


@pytest.mark.parametrize("kind", ASTRAY)
def test_chains_go_astray_only_after_a_guess(kind: str, filled: Api) -> None:
    """The key of a document that is there goes on as it should, also where guesses lead astray."""
    filled.emulator.page_states = kind
    first, own = filled.page("c")
    made = put_key(own, first[-1]["_id"], first[9]["_id"])
    assert ids(filled.scan("c", made)) == order(filled)[10:]


@pytest.mark.parametrize(("factor", "expected"), [(None, 0), (0, 0), (1, COUNT), (0.01, 4), (30, 12_000)])
def test_estimates(factor: float | None, expected: int, filled: Api) -> None:
    """The estimate is that of fresh documents, 0, or wrong by a factor."""
    filled.emulator.estimate_factor = factor
    assert filled({"estimatedDocumentCount": {}}, "c") == {"status": {"count": expected}}


def test_knobs_are_turned_by_a_rule(filled: Api) -> None:
    """A rule makes the server another one in mid-scan; an unknown knob or kind of states is refused."""
    filled.emulator.faults = [
        {"action": "turn", "skip": 1, "knobs": {"page_states": "opaque", "page_size": 7, "estimate_factor": 2}}
    ]
    _, state = filled.page("c")
    assert refusals(filled, state) == ["UNEXPECTED_DRIVER_ERROR"]
    assert len(filled.page("c")[0]) == 7
    assert filled({"estimatedDocumentCount": {}}, "c") == {"status": {"count": 2 * COUNT}}
    filled.emulator.faults = [{"action": "turn", "knobs": {"port": 1}}]
    assert codes(filled({"find": {}}, "c")) == ["UNEXPECTED_SERVER_ERROR"]
    with pytest.raises(ValueError, match="unknown page states"):
        filled.emulator.page_states = "clairvoyant"
    assert all(hasattr(filled.emulator, knob) for knob in KNOBS)


# ------------------------------------------------------------------------------------------ changes in mid-scan


def test_documents_come_and_go_when_a_page_is_asked_for(filled: Api) -> None:
    """A rule deletes what was read and what was not, and inserts, when the N-th page is asked for."""
    placed = order(filled)
    filled.emulator.faults = [
        {"action": "delete", "command": "find", "skip": 2, "ids": [placed[5], placed[39], placed[40]]},
        {
            "action": "insert",
            "command": "find",
            "skip": 3,
            "documents": [{"_id": f"inserted {n:03}"} for n in range(60)],
        },
    ]
    found = ids(filled.scan("c"))
    came = [each for each in found if each.startswith("inserted")]
    assert [each for each in found if each not in came] == placed[:40] + placed[41:]
    assert 0 < len(came) < 60
    assert min(map(position, came)) > position(placed[60])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_first_page_is_deleted(number: int, filled: Api) -> None:
    """A rule deletes all documents of one first page; the chains go on."""
    guesses = [guess(filled, low=low, high=low + 0.2)[0] for low in (0.3, 0.6)]
    filled.emulator.database.collection(KEYSPACE, "c").chains.clear()
    pages = [filled.page("c"), *(filled.page("c", state) for state in guesses)]
    filled.emulator.faults = [{"action": "delete", "first_page": number}]
    placed = order(filled)
    gone = ids([pages[number][0]])
    found = ids(filled.scan("c", pages[0][1]))
    assert found == [each for each in placed[20:] if each not in gone]
    assert sorted(set(placed) - set(order(filled))) == sorted(gone)
    assert ids(filled.scan("c", pages[2][1])) == found[-len(ids(filled.scan("c", pages[2][1]))) :]


def test_the_states_of_a_chain_go_dead(filled: Api) -> None:
    """After two pages the states of one chain are refused, also those that it had before; the others go on."""
    _, own = filled.page("c")
    state, _ = guess(filled)
    number = len(filled.emulator.database.collection(KEYSPACE, "c").chains)
    filled.emulator.faults = [
        {"action": "bad_page_state", "command": "find", "chain": number, "skip": 2, "times": None}
    ]
    states = [filled.page("c", state)[1]]
    for _ in range(2):
        states.append(filled.page("c", states[-1])[1])
    assert [refusals(filled, each) for each in states] == [["UNEXPECTED_DRIVER_ERROR"]] * 3
    assert ids(filled.scan("c", own)) == order(filled)[20:]
    assert filled.emulator.faults[0].fired == 3


def test_rules_that_meet_guesses(filled: Api) -> None:
    """With `guess` a rule meets only states that the server did not give, or all requests but those."""
    _, own = filled.page("c")
    guessed, _ = guess(filled)
    found = {}
    for wanted in (True, False):
        filled.emulator.faults = [{"action": "error", "guess": wanted, "times": None}]
        answers = [
            filled({"find": {"options": {"pageState": each} if each else {}}}, "c") for each in (None, own, guessed)
        ]
        found[wanted] = [bool(codes(each)) for each in answers]
    assert found == {True: [False, False, True], False: [True, True, False]}


# ------------------------------------------------------------------------------------------------ many at once


def test_requests_are_held_at_the_same_time(filled: Api) -> None:
    """Sixteen connections wait for their pages side by side, not one after the other."""
    filled.emulator.latency_s = 60
    url, token = f"{filled.emulator.url}/v1/{KEYSPACE}/c", filled.emulator.token
    statuses: list[int] = []

    def ask() -> None:
        try:
            statuses.append(httpx.post(url, json={"find": {}}, headers={"Token": token}, timeout=60).status_code)
        except httpx.HTTPError:
            statuses.append(0)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    patience = time.monotonic() + 30
    while filled.emulator.in_flight < 16 and time.monotonic() < patience:
        time.sleep(0.01)
    assert filled.emulator.in_flight == filled.emulator.most_in_flight == 16
    filled.emulator.stop()
    for thread in threads:
        thread.join(30)
    assert len(statuses) == 16
    assert filled.emulator.in_flight == 0


@pytest.mark.parametrize(("extra", "vector"), [([], dict), (["--arrays"], list), (["--dimension", "0"], type(None))])
def test_the_program_generates(extra: list[str], vector: type) -> None:
    """As a program it makes documents with 384 floats, the same ones each time, and takes the other knobs."""
    command = [sys.executable, "-m", "tests.emulators.data_api", "--port", "0", "--quiet", "--generate", "50"]
    command += ["--page-size", "20", "--latency-ms", "20", "--estimate-factor", "3", "--page-states", "opaque", *extra]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("listening on ").strip() + f"/v1/{KEYSPACE}/docs"
        try:
            with httpx.Client(headers={"Token": "T"}) as client:
                began = time.monotonic()
                find = {"find": {"projection": {"*": True}}}
                data = client.post(url, json=find).json()["data"]
                assert time.monotonic() - began >= 0.02
                assert client.post(url, json={"estimatedDocumentCount": {}}).json() == {"status": {"count": 150}}
        finally:
            process.terminate()
    twin = DataApiEmulator()
    twin.generate("docs", 50, 0 if vector is type(None) else 384, arrays=vector is list)
    assert data["documents"] == [json.loads(text) for text in twin.documents(KEYSPACE, "docs")[:20]]
    assert isinstance(data["documents"][0].get("$vector"), vector)
    assert b"\0\0\0\x01\x01" not in base64.b64decode(data["nextPageState"])
