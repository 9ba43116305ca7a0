"""A collection read at several places at once: the rules, servers that mislead, faults on any page of any chain."""

from __future__ import annotations

import base64
import gc
import gzip
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_backup import (
    MAX_KEPT_PAGES,
    Chains,
    DataApi,
    DataFileWriter,
    KeptPage,
    Memory,
    Page,
    Patience,
    Place,
    Readable,
    Report,
    Requests,
    ScanProgress,
    Target,
    are_joined,
    decode_document,
    find_calibration,
    guess_count,
    murmur3_token,
    spread_evenly,
    token_of,
)
from restore import open_snapshot, verify_snapshot
from tests.conftest import KEYSPACE, ROOT, TOKEN, Result, assert_no_secret_in
from tests.emulators.data_api import PAGE_STATES, DataApiEmulator, PageState, Record, murmur_token
from tests.sabotage import SabotagedCli
from tests.simulator import VARIANTS, History, Outcome, Rules, play_many

COUNT = 590  # documents: 30 pages of 20
PAGES = 30
WORKERS = 4
GUESSES = 3 * WORKERS - 1  # where the server has no estimate
CALIBRATION = MAX_KEPT_PAGES  # how many requests come before it
HISTORIES = 3000
RECORDED = json.loads(gzip.decompress((ROOT / "tests/data/page_states.json.gz").read_bytes()))["collections"]
END = -1

SERIALLY = "reading one page after the other"
OVER = "Starting the collection over"
NOT_JOINED = "the chains of pages do not join"
NO_ENTRANCE = "none of the trial starting points could be used"
REASONS = {
    "opaque": [f"docs: {SERIALLY}: its page states do not allow starting elsewhere"],
    "refusing": [f"docs: {SERIALLY}: {NO_ENTRANCE}"],
    "restarting": [f"docs: {SERIALLY}: {NO_ENTRANCE}"],
    "reversing": [f"docs: {NOT_JOINED} into one scan. {OVER}, one page after the other."],
    "shuffling": [
        f"docs: {NOT_JOINED} into one scan. {OVER}, one page after the other.",
        f"docs: {SERIALLY}: {NO_ENTRANCE}",
    ],
    "skipping": [f"docs: {SERIALLY}: a trial start at a known document did not lead to those that follow it"],
}
"""Why a collection is read serially, by the emulator's kinds of page states."""


# ------------------------------------------------------------------------------------------------------- running


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[SabotagedCli]:
    """The two scripts; afterwards no file they wrote may hold a secret."""
    directory = tmp_path / "cwd"
    directory.mkdir()
    yield SabotagedCli(directory)
    assert_no_secret_in(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _end_of_forks() -> Iterator[None]:
    """The process that forks ends with the module."""
    yield
    SabotagedCli.stop()


@pytest.fixture
def server() -> Iterator[DataApiEmulator]:
    """A Data API with pages of 20 documents, and `docs`, which has 30 of them."""
    with DataApiEmulator(token=TOKEN, page_size=20) as emulator:
        fill(emulator, "docs", COUNT)
        yield emulator


def fill(emulator: DataApiEmulator, name: str, count: int) -> None:
    put(emulator, name, [f"{name} {number:04}" for number in range(count)])


def put(emulator: DataApiEmulator, name: str, ids: Sequence[Any]) -> None:
    """Documents with those ids, and digits that no 64-bit float holds."""
    emulator.create(KEYSPACE, name)
    for number, document_id in enumerate(ids):
        text = json.dumps(document_id, ensure_ascii=False, separators=(",", ":"))
        emulator.put(KEYSPACE, name, f'{{"_id":{text},"n":{number}.12345678901234567891}}')


def backup(cli: SabotagedCli, emulator: DataApiEmulator, *arguments: object) -> Result:
    return cli.backup(emulator, "--workers", WORKERS, *arguments)


def entry(cli: SabotagedCli, name: str = "docs") -> dict[str, Any]:
    """The manifest's entry of a collection."""
    manifest = json.loads((cli.snapshots()[0] / "manifest.json").read_text())
    return next(each for each in manifest["collections"] if each["name"] == name)


def texts(cli: SabotagedCli, name: str = "docs") -> list[str]:
    """The documents in the snapshot, as the server wrote them."""
    lines = gzip.decompress((cli.snapshots()[0] / f"{name}.jsonl.gz").read_bytes()).splitlines()
    return [decode_document(line).decode() for line in lines]


def assert_exact(cli: SabotagedCli, emulator: DataApiEmulator, result: Result, name: str = "docs") -> dict[str, Any]:
    """The snapshot is whole, and holds each document of the server once, to the digit."""
    assert result.code == 0, result.err
    verify_snapshot(open_snapshot(cli.snapshots()[0]), force_incomplete=False, workers=1, report=Report(quiet=True))
    assert sorted(texts(cli, name)) == sorted(emulator.documents(KEYSPACE, name)), result.err
    return entry(cli, name)


def ids_of(documents: Sequence[str]) -> list[Any]:
    return [json.loads(text)["_id"] for text in documents]


def finds(emulator: DataApiEmulator, name: str = "docs") -> list[Record]:
    return [record for record in emulator.requests if record.command == "find" and record.collection == name]


def meter(emulator: DataApiEmulator, **rule: Any) -> Any:
    """A rule that does nothing but count the requests that it meets."""
    return emulator.add_fault("delay", seconds=0, times=None, command="find", **rule)


# -------------------------------------------------------------------------- 1: first pages serially, calibration


@pytest.mark.parametrize("count", [0, 1, 20, 79])
def test_a_small_collection_costs_its_pages(count: int, server: DataApiEmulator, cli: SabotagedCli) -> None:
    """Up to four pages are read one after the other: each is asked for once, and nothing is guessed."""
    server.drop(KEYSPACE, "docs")
    fill(server, "docs", count)
    guesses = meter(server, guess=True)
    found = assert_exact(cli, server, backup(cli, server))
    assert len(finds(server)) == found["pages"] == count // 20 + 1
    assert guesses.seen == 0
    assert found["chains"] == 1


def test_an_estimate_saves_guesses(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """Where the server promises few pages more, they are read without a guess."""
    server.drop(KEYSPACE, "docs")
    fill(server, "docs", 110)
    server.estimate_factor = 1
    assert assert_exact(cli, server, backup(cli, server))["pages"] == len(finds(server)) == 6


@pytest.mark.parametrize("kind", REASONS)
def test_servers_that_mislead(kind: str, server: DataApiEmulator, cli: SabotagedCli) -> None:
    """Whatever a server makes of guesses, the snapshot is exact; the log says when and why it was read serially."""
    server.page_states = kind
    server.page_size = 5
    result = backup(cli, server)
    found = assert_exact(cli, server, result)
    assert found["chains"] == 1
    assert found["pages"] == COUNT // 5 + 1
    assert any(reason in result.err for reason in REASONS[kind]), result.err
    assert found["retries"] == result.err.count(OVER)
    assert kind != "reversing" or found["retries"] == 2


def test_every_kind_of_server_is_tried() -> None:
    """The emulator has no page states that the test above leaves out."""
    assert set(REASONS) == set(PAGE_STATES) - {"cassandra"}


def test_a_server_that_begins_to_mislead(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """A server that becomes another one in mid-scan is found out as well."""
    server.faults = [{"action": "turn", "command": "find", "skip": GUESSES, "knobs": {"page_states": "shuffling"}}]
    assert_exact(cli, server, backup(cli, server))


def test_calibration_takes_a_document_from_the_middle() -> None:
    """The place that is tried is known on both sides; where the first page's state has no such key, another's has."""
    state = "AAAAAQEAAAACZDMA8H////fNAA=="  # of the string `d3`

    def page(ids: list[str], next_state: str) -> KeptPage:
        return KeptPage([one.encode() for one in ids], [Place("string", one.encode()) for one in ids], next_state)

    good, opaque = page(["d0", "d1", "d2", "d3"], state), page(["a0", "a1"], "b3BhcXVl")
    for kept, behind in (([good], [b"d3"]), ([opaque, good], [b"d2", b"d3"])):
        found = find_calibration(kept)
        assert found
        assert found.behind == behind
        assert found.last.key == b"d3"
    assert find_calibration([opaque]) is None
    assert find_calibration([page(["d3"], state)]) is None
    assert find_calibration([page(["longer", "d3"], state)]) is None


def test_how_many_places_are_guessed() -> None:
    """None for one worker; so many that each chain has four pages, and the chains are a multiple of the workers."""
    kept = [KeptPage([b"k"] * 20, [], "s")] * 4
    found = [guess_count(4, kept, expected) for expected in (None, 0, 80, 81, 180, 400, 480, 560, 800, 10**6)]
    assert found == [11, 11, 11, 0, 1, 3, 3, 3, 7, 11]
    assert guess_count(1, kept, 10**6) == 0


def test_tokens_are_the_servers_own_order() -> None:
    """The token of each page state that a real server gave is larger than that of the one before."""
    for collection in RECORDED:
        tokens = [token_of(page["nextPageState"]) for page in collection["scan"] if page["nextPageState"]]
        assert tokens == sorted(tokens)


@given(st.binary(max_size=70))
def test_tokens_are_those_of_cassandra(key: bytes) -> None:
    """Keys of any length and bytes have the token that the emulator, and the recorded order, have for them."""
    assert murmur3_token(key) == murmur_token(key)


def test_places_cut_a_collection_evenly() -> None:
    """Of random places those are taken that are next to equal parts; without enough of them, what there is."""
    states = [PageState(f"{number:032x}".encode(), 1, 0).encode() for number in range(8 * 31)]
    chosen = spread_evenly(states, 31)
    tokens = [-(1 << 63), *sorted(map(token_of, chosen)), 1 << 63]
    shares = [(later - earlier) / 2**64 * 32 for earlier, later in itertools.pairwise(tokens)]
    assert len(chosen) == 31
    lengths = [tokens[tokens.index(token_of(state)) + 1] - token_of(state) for state in chosen]
    assert lengths == sorted(lengths, reverse=True)
    assert min(shares) > 0.6
    assert max(shares) < 1.4
    assert sorted(spread_evenly(states[:2] * 3, 31)) == sorted(states[:2])
    assert spread_evenly([], 5) == []


def test_places_of_another_server_are_taken_as_they_come() -> None:
    """Where page states do not begin with their key, nothing is known of their order, and there are as many guesses."""
    states = [base64.b64encode(b"\0\0\0\1" + f"{number:032x}".encode()).decode() for number in range(100)]
    assert spread_evenly(states, 31) == states[:31]


# ------------------------------------------------------------------------- 2: which guesses are dropped, patience


def test_a_guess_that_shares_a_document_is_dropped() -> None:
    """A first page that shares a document with a kept or an accepted page is no chain; nor is an empty one."""
    chains = Chains()
    assert chains.keep([b"a", b"b"])
    assert chains.enter([b"m", b"n"]) == 1
    assert [chains.enter(keys) for keys in ([b"b", b"c"], [b"l", b"m"], [b"n", b"o"], [])] == [None] * 4
    assert chains.enter([b"o", b"p"]) == 2
    assert len(chains) == 3


def test_guesses_get_little_patience(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """A guess that fails is not repeated: the scan goes on without it, and a service that is slow is not blamed."""
    server.faults = [{"action": "status", "status": 503, "command": "find", "guess": True, "skip": 1, "times": None}]
    result = backup(cli, server)
    found = assert_exact(cli, server, result)
    assert (found["chains"], found["retries"]) == (1, 0)
    assert server.faults[0].fired == GUESSES
    assert REASONS["refusing"][0] in result.err


def test_guesses_that_are_not_answered_end_soon(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """Guesses that time out hold a collection up for some one timeout, not for one each; patience is whole after it."""
    server.faults = [
        {"action": "silence", "command": "find", "guess": True, "skip": 1, "times": None},
        {"action": "status", "command": "find", "status": 503, "guess": False, "skip": MAX_KEPT_PAGES},
    ]
    found = assert_exact(cli, server, backup(cli, server, "--request-timeout-ms", 1500, "--retry-budget", 1.4))
    assert server.faults[0].fired < GUESSES
    assert found["chains"] == found["retries"] == 1


# ---------------------------------------------------------------------------------------------- 3: the barrier


def test_no_chain_goes_on_before_all_guesses_are_answered(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """While one guess is out, nobody asks for another page, the ordinary chain included."""
    late = server.add_fault("delay", seconds=1.5, command="find", guess=True, skip=3)
    own = meter(server, guess=False)
    seen: list[tuple[int, int]] = []
    server.on_request = lambda _: seen.append((late.seen, own.seen))
    assert_exact(cli, server, backup(cli, server))
    assert late.fired == 1
    answered = [guesses for guesses, pages in seen if guesses and pages == MAX_KEPT_PAGES]
    assert len(answered) == GUESSES + 1
    assert seen[-1] == (GUESSES + 1, own.seen)


# -------------------------------------------------------------------------------------------- 4: the landmarks


def when_a_chain_begins(server: DataApiEmulator, act: Callable[[list[str]], None]) -> None:
    """Call with the texts of the ids of the first page of each guess, once, before the page is sent."""
    known, lock = 1, threading.Lock()  # the ordinary chain

    def look(record: Record) -> None:
        nonlocal known
        with lock:
            chains = server.database.collection(KEYSPACE, "docs").chains
            while record.command == "find" and known < len(chains):
                act([key[9:].decode() for key in chains[known].first_page])
                known += 1

    server.on_request = look


def test_one_document_of_a_first_page_is_enough(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """Chains join although all documents but the last of each first page are deleted as soon as it was read."""
    before = set(ids_of(server.documents(KEYSPACE, "docs")))
    looked_at = set(ids_of(server.documents(KEYSPACE, "docs"))[: MAX_KEPT_PAGES * 20])
    gone: set[str] = set()

    def delete_all_but_one(first_page: list[str]) -> None:
        if not looked_at & set(first_page):  # others are dropped
            gone.update(first_page[:-1])
            for document_id in first_page[:-1]:
                server.delete(KEYSPACE, "docs", document_id)
        looked_at.update(first_page)

    when_a_chain_begins(server, delete_all_but_one)
    result = backup(cli, server)
    assert result.code == 0, result.err
    assert OVER not in result.err
    assert entry(cli)["chains"] > 1
    assert gone
    assert_promise(cli, before, gone)


def assert_promise(cli: SabotagedCli, before: set[str], gone: set[str]) -> None:
    """Each document that stayed was read once, and no other one twice."""
    found = Counter(ids_of(texts(cli)))
    assert before - gone <= found.keys() <= before
    assert set(found.values()) == {1}


def test_a_uuid_is_the_same_landmark_as_its_text(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """Documents of first pages that are replaced, their UUIDs spelt as strings, are met again; none is held twice."""
    server.drop(KEYSPACE, "docs")
    texts_of_ids = [f"00000000-0000-4000-8000-{number:012x}" for number in range(COUNT)]
    put(server, "docs", [{"$uuid": text} for text in texts_of_ids])

    def respell(first_page: list[str]) -> None:
        for text in first_page:
            server.put(KEYSPACE, "docs", f'{{"_id":"{text}","replaced":true}}')

    when_a_chain_begins(server, respell)
    result = backup(cli, server)
    assert result.code == 0, result.err
    assert OVER not in result.err
    assert entry(cli)["chains"] > 1
    found = [json.loads(text)["_id"] for text in texts(cli)]
    assert sorted(one if isinstance(one, str) else one["$uuid"] for one in found) == texts_of_ids


# ------------------------------------------------------------------------------------------ 5: how chains end


def test_a_chain_ends_at_the_first_landmark() -> None:
    """What stands before another chain's landmark on a page is its own; any document of a first page will do."""
    chains = Chains()
    chains.keep([b"a"])
    assert (chains.enter([b"m", b"n", b"o"]), chains.enter([b"t", b"u"])) == (1, 2)
    assert chains.follow(0, [b"c", b"d"]) == 2
    assert chains.follow(0, [b"e", b"n", b"o"]) == 1
    assert chains.follow(1, [b"u"]) == 0
    assert not chains.are_joined()
    chains.finish(2)
    assert chains.are_joined()


def test_all_chains_together_read_each_page_once(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """A collection that nobody changes is read by several chains, and begun once; the manifest says how many."""
    result = backup(cli, server)
    found = assert_exact(cli, server, result)
    assert 1 < found["chains"] <= GUESSES + 1
    assert OVER not in result.err
    assert SERIALLY not in result.err
    assert PAGES <= found["pages"] < len(finds(server))  # the calibration does not count
    assert found["retries"] == 0


# ----------------------------------------------------------------------------------------------- 6: the proof


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([END], True),
        ([2, END, 1], True),
        ([1, 2, 3, END], True),
        ([None], False),  # it did not end
        ([0], False),  # it met a kept page
        ([END, END], False),  # nobody led to the other one
        ([1, 1], False),  # in a circle
        ([1, 2, 1], False),
        ([1, 0], False),
        ([2, END, END], False),
        ([1, None], False),
    ],
)
def test_when_chains_are_joined(ends: list[int | None], expected: bool) -> None:
    """From the ordinary chain on each leads to the next and to the end, and each was visited once."""
    assert are_joined(ends) is expected


def test_a_kept_id_disproves_the_scan() -> None:
    """A chain that meets a page which was read before anything was guessed has not joined, whichever it is."""
    for chain in (0, 1):
        chains = Chains()
        chains.keep([b"a", b"b"])
        chains.enter([b"m"])
        assert chains.follow(chain, [b"x", b"b"]) == 1
        chains.finish(1 - chain)
        assert not chains.are_joined()
    assert not chains.keep([b"c", b"a"])


@pytest.mark.parametrize("guess", [0, 1, 2, GUESSES - 1])
def test_a_first_page_that_is_deleted(guess: int, server: DataApiEmulator, cli: SabotagedCli) -> None:
    """When all landmarks of a chain are gone, what is read is nevertheless each document that stayed, once."""
    number, before = itertools.count(), set(ids_of(server.documents(KEYSPACE, "docs")))
    gone: set[str] = set()

    def delete_one_page(first_page: list[str]) -> None:
        if next(number) == guess:
            gone.update(first_page)
            for document_id in first_page:
                server.delete(KEYSPACE, "docs", document_id)

    when_a_chain_begins(server, delete_one_page)
    result = backup(cli, server)
    assert result.code == 0, result.err
    assert gone
    assert_promise(cli, before, gone)


# -------------------------------------------------------------------------------------------------- the simulator


@pytest.fixture(scope="module")
def histories() -> list[History]:
    """Some histories of the product."""
    return list(play_many(range(HISTORIES)))


def test_whatever_joins_is_whole(histories: list[History]) -> None:
    """While others write and servers mislead, each document that stayed throughout is read, and none twice."""
    assert [history for history in histories if history.is_violation] == []


def test_histories_of_every_outcome(histories: list[History]) -> None:
    """Histories join, are read serially, do not join and lose the place: none of these is left untried."""
    outcomes = Counter(history.outcome for history in histories)
    assert min(outcomes[outcome] for outcome in Outcome) > 0
    assert outcomes[Outcome.JOINED] > HISTORIES / 5


def test_a_collection_that_nobody_changes_is_joined_at_once(histories: list[History]) -> None:
    """On an honest server, with pages that are empty or come twice, chains always join."""
    calm = Counter(history.outcome for history in histories if history.is_calm)
    assert calm[Outcome.JOINED] > 50
    assert set(calm) == {Outcome.JOINED, Outcome.SERIAL}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_simulator_finds_what_a_rule_is_for(name: str) -> None:
    """With one rule left out, a history loses or repeats a document, or one where nothing changed does not join."""
    assert caught(VARIANTS[name])


def caught(rules: Rules) -> bool:
    return any(
        history.is_violation or (history.is_calm and history.outcome is Outcome.NOT_JOINED)
        for history in play_many(range(5 * HISTORIES), rules)
    )


# --------------------------------------------------------------------------- faults on any page of any chain

REQUESTS = (0, 2, CALIBRATION, CALIBRATION + 3, CALIBRATION + GUESSES, CALIBRATION + GUESSES + 3, 40, 44)
"""Which requests a fault meets: first pages, the calibration, guesses, later pages of any chain."""
PASSING = {
    "500": {"action": "status", "status": 500},
    "429": {"action": "status", "status": 429, "headers": {"Retry-After": "1"}},
    "timeout": {"action": "silence"},
    "reset": {"action": "reset"},
    "lost reply": {"action": "reset_after"},
    "truncated": {"action": "truncate"},
    "half JSON": {"action": "invalid_json"},
    "driver": {"action": "error", "errorCode": "UNEXPECTED_DRIVER_ERROR"},
}


@pytest.mark.parametrize("name", PASSING)
def test_faults_on_any_page(name: str, server: DataApiEmulator, cli: SabotagedCli) -> None:
    """A fault that passes, on first pages, guesses and later pages, costs a repetition and no document."""
    server.faults = [{**PASSING[name], "command": "find", "skip": skip} for skip in REQUESTS]
    cli.sabotage = {"speed": 20}
    timeout_ms = 4_000 if name == "timeout" else 600_000  # of real time; what no fault meets must be answered in it
    result = backup(cli, server, "--request-timeout-ms", timeout_ms, "--retry-budget", 600)
    found = assert_exact(cli, server, result)
    assert all(fault.fired for fault in server.faults[:5])
    assert found["retries"] >= 3 + ("Starting" in result.err)
    assert result.err.count("Trying again") == found["retries"]


DEAD = {"action": "bad_page_state", "command": "find", "times": None}


@pytest.mark.parametrize(
    "rules",
    [
        [{**DEAD, "chain": 0, "skip": MAX_KEPT_PAGES - 1}],
        [{**DEAD, "chain": 0, "skip": 1}],
        [{**DEAD, "chain": number, "skip": 1} for number in range(1, 3 * 8)],
    ],
    ids=["the ordinary one", "a first page", "guesses"],
)
def test_a_dead_page_state(rules: list[dict[str, Any]], server: DataApiEmulator, cli: SabotagedCli) -> None:
    """When a chain's page states go dead while seven others have pages on their way, the collection starts over."""
    server.latency_s = 0.02
    server.faults = rules
    cli.sabotage = {"speed": 20}
    result = backup(cli, server, "--workers", 8, "--retry-budget", 100)
    found = assert_exact(cli, server, result)
    assert any(fault.fired for fault in server.faults)
    assert "the page state no longer works" in result.err
    assert OVER in result.err
    assert found["retries"] >= 1


def test_guesses_whose_chains_always_die(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """A server that takes guesses, but not the states that follow them, has its collection read serially at last."""
    second = GUESSES + 1  # the number of the chain that the second scan begins with
    numbers = (*range(1, second), *range(second + 1, second + 1 + GUESSES))
    server.faults = [{**DEAD, "chain": number} for number in numbers]
    cli.sabotage = {"speed": 20}
    result = backup(cli, server, "--retry-budget", 100)
    found = assert_exact(cli, server, result)
    assert found["chains"] == 1
    assert f"{OVER}, one page after the other." in result.err


@pytest.mark.parametrize("skip", [2, MAX_KEPT_PAGES, MAX_KEPT_PAGES + 4])
def test_a_page_that_comes_twice(skip: int, server: DataApiEmulator, cli: SabotagedCli) -> None:
    """One page sent twice is kept once, where the first pages end too; nothing is begun anew."""
    server.faults = [{"action": "repeat_page", "command": "find", "skip": skip}]
    result = backup(cli, server, "--workers", 1)
    assert_exact(cli, server, result)
    assert "sent a page twice" in result.err
    assert OVER not in result.err


def test_a_serial_scan_that_is_led_back_for_ever(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """A collection whose pages always lead back to the first one is given up after three scans."""
    server.faults = [
        {"action": "first_page", "command": "find", "contains": "pageState", "skip": 4, "every": 5, "times": None}
    ]
    result = backup(cli, server, "--workers", 1)
    assert result.code == 2
    assert result.err.count(OVER) == 2
    assert "the server leads back to a page that was there before" in entry(cli)["error"]


# ------------------------------------------------------------------------------------------- estimates and ids


@pytest.mark.parametrize("factor", [0, 0.01, 0.5, 1, 30])
def test_estimates_are_hints(factor: float, server: DataApiEmulator, cli: SabotagedCli) -> None:
    """Whatever the server estimates, 0 included, the snapshot is exact, and read by several chains."""
    server.estimate_factor = factor
    guesses = meter(server, guess=True)
    found = assert_exact(cli, server, backup(cli, server))
    assert found["chains"] > 1
    assert guesses.seen == 1 + {0.5: 2, 1: 3}.get(factor, GUESSES)


IDS: dict[str, list[Any]] = {
    "recorded " + each["collection"]: [one for page in each["scan"] for one in page["ids"]] for each in RECORDED
} | {
    "one character": [chr(number) for number in itertools.chain(range(33, 127), range(0x3B1, 0x3C9))],
    "capital UUIDs": [{"$uuid": f"ABCDEF00-0000-4000-8000-{number:012X}"} for number in range(200)],
    "capital ObjectIds": [{"$objectId": f"ABCDEF00000000000000{number:04X}"} for number in range(200)],
    "decimals": [number / 8 + 100 for number in range(0, 1600, 3)],
    "negative dates": [{"$date": -1_700_000_000_000 - number} for number in range(200)],
    "odd strings": [f'"\\/\n\t😀é {number:03}' for number in range(200)],
    "long strings": [f"{number:03}" * 900 for number in range(120)],
    "every kind": [
        *(True, False, None, "x", {"$date": 0}),
        *(number for number in range(150)),
        *(str(number) for number in range(150)),
        *({"$date": number} for number in range(150)),
    ],
}
SERIAL_IDS = {"recorded ids_short", "recorded settings"}  # too few to be sure that a guess can be entered


def test_ids_of_every_kind(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """Strings, numbers, UUIDs, ObjectIds, dates, booleans, null, a mix of them: several chains are exact."""
    server.drop(KEYSPACE, "docs")
    server.page_size = 5
    names = {f"c{number}": name for number, name in enumerate(IDS)}
    for name, kind in names.items():
        put(server, name, IDS[kind])
    result = backup(cli, server)
    for name, kind in names.items():
        found = assert_exact(cli, server, result, name)
        assert kind in SERIAL_IDS or found["chains"] > 1, (kind, result.err)
    assert OVER not in result.err


# ------------------------------------------------------------------------------------- workers, waiting, patience


def test_a_guess_that_is_forbidden_is_told_as_such(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """A 403 to the first guess is the reason that the log gives, not what the guess would have shown."""
    server.faults = [{"command": "find", "action": "status", "status": 403, "skip": MAX_KEPT_PAGES}]
    result = backup(cli, server)
    assert_exact(cli, server, result)
    assert f"docs: {SERIALLY}: The server answered HTTP 403" in result.err


def test_workers_are_never_exceeded(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """`--workers` is the number of requests in flight, over several collections, whatever is asked for."""
    for name, count in (("more", 300), ("small", 30), ("tiny", 1), ("empty", 0)):
        fill(server, name, count)
    server.latency_s = 0.03
    server.faults = [{"action": "delay", "seconds": 0.3, "command": "findCollections", "skip": 1, "times": None}]
    result = backup(cli, server, "--workers", 3)
    for name in ("docs", "more", "small", "tiny", "empty"):
        assert_exact(cli, server, result, name)
    assert server.most_in_flight <= 3


def test_one_large_collection_gets_all_workers(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """A single collection has as many requests in flight as there are workers, and no more."""
    server.latency_s = 0.15
    assert_exact(cli, server, backup(cli, server, "--workers", 6))
    assert server.most_in_flight == 6


@pytest.mark.parametrize("place", [{"guess": False, "skip": MAX_KEPT_PAGES + 2}, {"guess": True, "skip": 4}])
def test_a_retry_after_holds_all_chains(place: dict[str, Any], server: DataApiEmulator, cli: SabotagedCli) -> None:
    """While the server wants one chain to wait, the others wait too, and so do guesses."""
    server.page_size = 10
    server.latency_s = 0.1
    server.faults = [
        {"action": "status", "status": 429, "headers": {"Retry-After": "2"}, "command": "find", **place},
    ]
    assert_exact(cli, server, backup(cli, server, "--retry-budget", 60))
    (held_from,) = (record.time for record in finds(server) if record.status == 429)
    meanwhile = [record for record in finds(server) if held_from < record.time < held_from + 1.8]
    assert len(meanwhile) < 20  # each other worker has one request on its way, and a moment passes until all know


def test_one_chain_that_fails_is_waited_for_while_others_bring_pages(
    server: DataApiEmulator, cli: SabotagedCli
) -> None:
    """Patience is time in which no page of the collection came: a chain may fail for longer than the budget."""
    server.latency_s = 0.2
    server.faults = [{"action": "status", "status": 503, "chain": 0, "skip": 3, "times": None, "for_s": 5}]
    found = assert_exact(cli, server, backup(cli, server, "--workers", 2, "--retry-budget", 2))
    assert server.faults[0].fired > 1
    assert found["retries"] == server.faults[0].fired


def test_one_chain_that_fails_for_good_ends_the_collection(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """A chain that goes on failing when the others are done fails its collection after the budget, and no other."""
    fill(server, "other", 100)
    server.faults = [{"action": "status", "status": 503, "chain": 0, "collection": "docs", "skip": 3, "times": None}]
    cli.sabotage = {"speed": 20}
    result = backup(cli, server, "--retry-budget", 20)
    assert result.code == 2
    assert "HTTP 503" in entry(cli)["error"]
    assert entry(cli, "other")["document_count"] == 100


def test_waiting_for_a_worker_costs_no_patience(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """A collection that had to wait for another one's chains longer than the budget still repeats what fails."""
    fill(server, "late", 18)
    server.page_size = 5
    server.latency_s = 0.05
    server.faults = [
        {"action": "delay", "seconds": 0.7, "collection": "late", "command": "find"},
        *({"action": "status", "status": 503, "collection": "late", "command": "find", "skip": n} for n in (1, 3, 5)),
    ]
    result = backup(cli, server, "--workers", 2, "--retry-budget", 1)
    assert_exact(cli, server, result)
    assert assert_exact(cli, server, result, "late")["retries"] == 3


def test_a_wait_longer_than_the_budget_holds_nobody() -> None:
    """A chain whose collection will fail, since the server wants to be left alone for longer, sleeps no worker away."""
    patience = Patience(1)
    patience.hold(300)
    begun = time.monotonic()
    patience.await_turn(threading.Event())
    assert time.monotonic() - begun < 100
    assert patience.held_s > 200


def test_a_stop_ends_all_chains(server: DataApiEmulator, cli: SabotagedCli) -> None:
    """A signal while every worker waits for a page ends the run in time, and nothing gets a final name."""
    server.faults = [{"action": "delay", "seconds": 300, "command": "find", "skip": CALIBRATION + 1, "times": None}]
    running = cli.begin("astra_backup.py", "--no-box", "--api-endpoint", server.url, "--workers", 8)
    patience = time.monotonic() + 60
    while server.in_flight < 8 and time.monotonic() < patience:
        time.sleep(0.02)
    assert server.in_flight == 8
    begun = time.monotonic()
    running.kill(15)
    assert running.wait().code == 143
    assert time.monotonic() - begun < 30
    assert cli.snapshots() == []


# ------------------------------------------------------------------------------------------------------- memory


def test_memory_lets_one_in_when_nothing_is_held() -> None:
    """A page larger than the limit is read alone; the next one waits until it is gone."""
    memory, stop, order = Memory(100), threading.Event(), list[str]()

    def second() -> None:
        with memory.reserved(1, stop):
            order.append("second")

    with memory.reserved(1000, stop):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_a_stop_ends_waiting_for_memory() -> None:
    """Who waits for room does so no longer when the run is to end."""
    memory, stop = Memory(100), threading.Event()
    stop.set()
    with memory.reserved(100, threading.Event()):
        with memory.reserved(50, stop):
            pass
        with memory.reserved(0, threading.Event()):
            pass


class WatchedApi(DataApi):
    """Counts, before each request for a page, the pages that somebody still holds."""

    def __init__(self, target: Target) -> None:
        super().__init__(target, DataApi.READ_COMMANDS)
        self.held: list[int] = []

    def find_page(self, *arguments: Any, **named: Any) -> Page:
        self.held.append(sum(isinstance(each, Page) for each in gc.get_objects()))
        return super().find_page(*arguments, **named)


def test_a_page_is_gone_when_the_next_is_asked_for(server: DataApiEmulator, tmp_path: Path) -> None:
    """A chain holds one page and not two: a page of the largest documents is 80 MB."""
    fill(server, "few", 50)
    api = WatchedApi(Target(server.url, KEYSPACE, "hcd", TOKEN))
    requests = Requests(api, 1)

    open_sink = partial(DataFileWriter, tmp_path / "docs.jsonl", compressed=False)
    writer = requests.scan(Readable("few"), open_sink, ScanProgress())
    requests.close()

    assert writer.close().document_count == 50
    assert api.held == [0, 0, 0]


# ------------------------------------------------------------------------------------------- beginning anew


def test_a_writer_that_was_given_up_writes_to_no_other_file(tmp_path: Path) -> None:
    """A scan that begins anew gets a file of its own, while what is on its way for the old one may still be written."""
    documents = [f'{{"_id":{number},"t":"{"x" * 200_000}"}}'.encode() for number in range(12)]
    for number in range(40):
        path = tmp_path / str(number)
        old = DataFileWriter(path, compressed=False)
        thread = threading.Thread(target=old.write, args=[documents])
        thread.start()
        time.sleep(0.002 * (number % 10))
        old.abandon()
        new = DataFileWriter(path, compressed=False)
        new.write([b'{"_id":1}'])
        thread.join(60)
        assert new.close().document_count == 1
        assert path.read_bytes() == b'{"_id":1}\n'
