"""A Data API that fails, and databases that change under the scan: what both scripts do about each fault."""

from __future__ import annotations

import gzip
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from astra_backup import RETRYABLE_CODES, UNEXPECTED_CODES, Report
from restore import open_snapshot, verify_snapshot
from tests.conftest import KEYSPACE, TOKEN, assert_no_secret_in
from tests.emulators.data_api import DataApiEmulator
from tests.sabotage import SabotagedCli
from tests.support import same_documents, writes

COUNT = 230
DENY = {"indexing": {"deny": ["n"]}}
SPEED = 20.0
PATIENCE_S = 1200.0  # a minute on the wall

# ------------------------------------------------------------------------------------------------ the faults


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with a request: the emulator's rule for it, how it is told, and what is said of it.

    `kind`: "passing" (tried again until the budget ends), "puzzling" (tried again, a few times), "refused" (never),
    "too large" (halved), "unknown" (an error code that nobody knows). `budget_s` is for a fault that stays; one that
    happens once is given all the time that a slow machine needs.
    """

    text: str
    kind: str
    says: str
    rule: dict[str, Any]
    timeout_ms: int = int(60_000 * SPEED)
    speed: float = SPEED
    budget_s: float = 8
    hits_all: bool = False  # every collection, not only the one that the rule names
    places: str = "list page pages | list insert compare"
    is_puzzling: bool = False  # whatever becomes of it in the end

    @property
    def is_retried(self) -> bool:
        """Whether the same request is sent again."""
        return self.is_puzzling or self.kind in ("passing", "puzzling")


def status(number: int, **more: Any) -> dict[str, Any]:
    """The rule for an answer with an error status, nothing done."""
    return {"action": "status", "status": number, **more}


HTML = "<!DOCTYPE html><html><body>Sign in to the guest network</body></html>"
WIDE = {"refused", "reset", "cut-json", "302", "401", "413", "429-seconds", "503", "unknown"}
"""Faults that also meet the places `create` and `inserts`; each kind is among them."""
SHAPE = "not one of the Data API"
FEW = "page | insert"

FAULTS = {
    "refused": Fault(
        "connection refused for 0.3 s (at every time: for good)",
        "passing",
        "No reply",
        {"action": "down", "seconds": 0.3},
        budget_s=30,
        hits_all=True,
    ),
    "reset": Fault("connection reset before the reply", "passing", "No reply", {"action": "reset"}),
    "lost": Fault("done, and connection reset before the reply", "passing", "No reply", {"action": "reset_after"}),
    "reset-inside": Fault("connection reset inside the body", "passing", "No reply", {"action": "reset_inside"}),
    "cut": Fault("connection closed inside the body", "passing", "No reply", {"action": "truncate"}),
    "cut-json": Fault("JSON that ends in its middle", "puzzling", SHAPE, {"action": "invalid_json"}),
    "empty": Fault("200 with an empty body", "puzzling", SHAPE, status(200)),
    "list": Fault("JSON of another shape: `[]`", "puzzling", SHAPE, {"action": "other_json", "json": []}),
    "object": Fault("JSON of another shape: `{}`", "puzzling", "", {"action": "other_json", "json": {}}, places=FEW),
    "no-page": Fault(
        'JSON of another shape: `{"data":{"documents":5}}`',
        "puzzling",
        "",
        {"action": "other_json", "json": {"data": {"documents": 5}}},
        places=FEW,
    ),
    "no-end": Fault(
        "a page that says neither that it is the last nor what comes next",
        "puzzling",
        SHAPE,
        {"action": "other_json", "json": {"data": {"documents": [{"_id": "d00001"}]}}},
        places="page | compare",
    ),
    "page-and-error": Fault(
        "a last page without documents, and beside it a warning and the error `TIMEOUT_READING_DATA`",
        "passing",
        "TIMEOUT_READING_DATA",
        {
            "action": "other_json",
            "json": {
                "data": {"documents": [], "nextPageState": None},
                "status": {"warnings": ["slow"]},
                "errors": [{"errorCode": "TIMEOUT_READING_DATA", "message": "some replicas did not answer"}],
            },
        },
        places="page | compare",
    ),
    "error-and-odd-data": Fault(
        "the error `TIMEOUT_READING_DATA` beside `data` of another shape",
        "passing",
        "TIMEOUT_READING_DATA",
        {"action": "other_json", "json": {"data": 5, "errors": [{"errorCode": "TIMEOUT_READING_DATA"}]}},
        places="page | compare",
    ),
    "html": Fault("an HTML page with 200", "puzzling", SHAPE, {"action": "html", "body": HTML}),
    "302": Fault(
        "302 to a sign-in page",
        "refused",
        "A redirect is not the Data API",
        status(302, headers={"Location": "/login"}),
    ),
    "401": Fault("401", "refused", "HTTP 401", status(401)),
    "403": Fault("403 with an HTML page", "refused", "HTTP 403", status(403, body=HTML)),
    "404": Fault("404", "refused", "HTTP 404", status(404)),
    "408": Fault("408", "passing", "HTTP 408", status(408), places=FEW),
    "413": Fault("413", "too large", "HTTP 413", status(413)),
    "429": Fault("429 without `Retry-After`", "passing", "HTTP 429", status(429)),
    "429-seconds": Fault(
        "429 with `Retry-After: 7`",
        "passing",
        "Trying again in 7.0 s",
        status(429, headers={"Retry-After": "7"}),
        budget_s=30,
    ),
    "429-date": Fault(
        "429 with a date 5 s ahead in `Retry-After`",
        "passing",
        "HTTP 429",
        status(429, retry_after_date=5),
        budget_s=30,
    ),
    "429-odd": Fault(
        "429 with `Retry-After: soon`", "passing", "HTTP 429", status(429, headers={"Retry-After": "soon"}), places=FEW
    ),
    "500": Fault("500", "passing", "HTTP 500", status(500)),
    "500-done": Fault("done, and answered with 500", "passing", "HTTP 500", status(500, done=True), places=FEW),
    "502": Fault("502 with an HTML page", "passing", "HTTP 502", status(502, body=HTML)),
    "503": Fault("503", "passing", "HTTP 503", status(503)),
    "503-latin": Fault(
        "503 with JSON that is not UTF-8",
        "passing",
        "HTTP 503",
        status(503, body='{"errors":[{"errorCode":"X","message":"indispon\udcedvel"}]}'),
        places=FEW,
    ),
    "504": Fault("504", "passing", "HTTP 504", status(504), places=FEW),
    "trickle": Fault(
        "a body that trickles: a byte every 50 ms",
        "passing",
        "No reply",
        {"action": "trickle", "interval": 0.05},
        timeout_ms=int(600 * SPEED),
        budget_s=30,
    ),
    "silence": Fault(
        "a server that accepts the request and is silent",
        "passing",
        "No reply",
        {"action": "silence"},
        timeout_ms=700,
        speed=1.0,
        places="list page | list insert compare",
    ),
    "unknown": Fault(
        "an error code in a 200 that nobody knows, of the family `REQUEST`",
        "unknown",
        "SOMETHING_NEW",
        {"action": "error", "errorCode": "SOMETHING_NEW", "family": "REQUEST"},
    ),
    "unknown-server": Fault(
        "… of the family `SERVER`",
        "passing",
        "SOMETHING_NEW",
        {"action": "error", "errorCode": "SOMETHING_NEW", "family": "SERVER"},
    ),
    "unknown-family": Fault(
        "… of no family",
        "unknown",
        "SOMETHING_NEW",
        {"action": "error", "errorCode": "SOMETHING_NEW", "family": None},
        places=FEW,
        is_puzzling=True,
    ),
    **{
        code: Fault(f"`{code}` in a 200", "passing", code, {"action": "error", "errorCode": code}, places=FEW)
        for code in sorted(RETRYABLE_CODES)
    },
    **{
        code: Fault(f"`{code}` in a 200", "puzzling", code, {"action": "error", "errorCode": code}, places=FEW)
        for code in sorted(UNEXPECTED_CODES)
    },
}

# ------------------------------------------------------------------------------------------------ where they happen


@dataclass(frozen=True)
class Place:
    """Where a fault happens, how often, and the exit code for each kind of fault."""

    text: str
    rule: dict[str, Any]
    codes: dict[str, int]


def codes(passing: int, puzzling: int, refused: int, too_large: int, unknown: int) -> dict[str, int]:
    """Exit codes by the kind of a fault."""
    kinds = ("passing", "puzzling", "refused", "too large", "unknown")
    return dict(zip(kinds, (passing, puzzling, refused, too_large, unknown), strict=True))


DOCS = {"collection": "docs"}
BACKUP_PLACES = {
    "list": Place("first request, once", {"command": "findCollections"}, codes(0, 0, 1, 1, 1)),
    "page": Place("third page, once", {"command": "find", **DOCS, "skip": 2}, codes(0, 0, 2, 2, 0)),
    "pages": Place(
        "third page, every time", {"command": "find", **DOCS, "skip": 2, "times": None}, codes(2, 2, 2, 2, 2)
    ),
}
RESTORE_PLACES = {
    "list": Place("first request, once", {"command": "findCollections"}, codes(0, 0, 1, 1, 1)),
    "create": Place("create, once", {"command": "createCollection", "skip": 1}, codes(0, 0, 1, 1, 4)),
    "insert": Place("insert, once", {"command": "insertMany", **DOCS, "skip": 1}, codes(0, 0, 2, 0, 0)),
    "inserts": Place(
        "insert, every time", {"command": "insertMany", **DOCS, "skip": 1, "times": None}, codes(2, 2, 2, 2, 2)
    ),
    "compare": Place("comparison, once", {"command": "find", **DOCS, "skip": 2}, codes(0, 0, 2, 2, 0)),
}


def is_met(name: str, place: str, script: int) -> bool:
    """Whether a fault is tried at a place of the backup (0) or the restore (1)."""
    places = FAULTS[name].places.split("|")[script].split()
    return place in places or (script == 1 and name in WIDE and place in ("create", "inserts"))


def cases(script: int, places: dict[str, Place]) -> list[Any]:
    """Parameters: each fault at each of its places."""
    return [
        pytest.param(name, place, id=f"{place}-{name}")
        for place in places
        for name in FAULTS
        if is_met(name, place, script)
    ]


# ------------------------------------------------------------------------------------------------ running them


def documents(count: int = COUNT) -> list[str]:
    """Small documents."""
    return [f'{{"_id":"d{number:05}","n":{number}}}' for number in range(count)]


def fill(emulator: DataApiEmulator, **collections: int) -> None:
    """Collections with so many documents."""
    for name, count in collections.items():
        emulator.create(KEYSPACE, name, DENY)
        for text in documents(count):
            emulator.put(KEYSPACE, name, text)


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
def catalog(source: DataApiEmulator) -> DataApiEmulator:
    """A database with two collections, one of five pages."""
    fill(source, docs=COUNT, other=3)
    return source


@pytest.fixture(scope="module")
def origin() -> Iterator[DataApiEmulator]:
    """The database that the snapshot of `kept` comes from."""
    with DataApiEmulator(token=TOKEN) as emulator:
        fill(emulator, docs=COUNT, other=3)
        yield emulator


@pytest.fixture(scope="module")
def _made(origin: DataApiEmulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cli = SabotagedCli(tmp_path_factory.mktemp("origin"))
    assert cli.backup(origin).code == 0
    return cli.backups


@pytest.fixture
def kept(cli: SabotagedCli, _made: Path) -> Path:
    """A snapshot where `cli` looks for it."""
    subprocess.run(["cp", "-r", str(_made), str(cli.backups)], check=True)
    return cli.snapshots()[0]


def lines_of(snapshot: Path, collection: str) -> list[str]:
    """The lines of a data file, in order."""
    return sorted(gzip.decompress((snapshot / f"{collection}.jsonl.gz").read_bytes()).decode().splitlines())


def assert_whole(snapshot: Path) -> None:
    """The snapshot verifies, as restore.py would before it writes."""
    verify_snapshot(open_snapshot(snapshot), force_incomplete=False, workers=1, report=Report(quiet=True))


def left_in(cli: SabotagedCli) -> list[str]:
    """What is in the output directory, but for the lock."""
    return sorted(path.name for path in cli.backups.iterdir() if path.name != ".lock") if cli.backups.exists() else []


def assert_backed_up(cli: SabotagedCli, code: int, wanted: dict[str, list[str]], *, lost: str = "docs") -> None:
    """What an exit code promises is what is on the disk, and nothing else is."""
    left = left_in(cli)
    if code == 1:
        assert left == []
        return
    (name,) = left
    assert name.endswith(".INCOMPLETE") == (code == 2)
    snapshot = cli.backups / name
    if code == 0:
        assert_whole(snapshot)
    for collection, lines in wanted.items():
        if code == 2 and collection == lost:
            assert not (snapshot / f"{collection}.jsonl.gz").exists()
        else:
            assert lines_of(snapshot, collection) == lines


def options_for(fault: Fault, place: Place, cli: SabotagedCli) -> list[str]:
    """How a run is made that meets a fault: in a hurry, and with everything told."""
    budget_s = fault.budget_s if "times" in place.rule else PATIENCE_S
    cli.sabotage = {"speed": fault.speed} if fault.speed != 1 else {}
    return ["-v", "--request-timeout-ms", str(fault.timeout_ms), "--retry-budget", str(budget_s)]


def rule_of(fault: Fault, place: Place) -> dict[str, Any]:
    """The emulator's rule for a fault at a place."""
    rule = {**fault.rule, **place.rule}
    return {**rule, "seconds": None} if fault.hits_all and "times" in place.rule else rule


@pytest.mark.parametrize(("name", "place"), cases(0, BACKUP_PLACES))
def test_backup(catalog: DataApiEmulator, cli: SabotagedCli, name: str, place: str) -> None:
    """A backup that meets a fault ends with the documented code, and the disk holds what that code promises."""
    fault, where = FAULTS[name], BACKUP_PLACES[place]
    catalog.faults = [rule_of(fault, where)]
    result = cli.backup(catalog, *options_for(fault, where, cli))
    assert result.code == where.codes[fault.kind], result.err
    assert catalog.faults[0].fired >= 1
    assert fault.says in result.err
    if not fault.hits_all or place != "pages":
        assert_backed_up(cli, result.code, {"docs": documents(), "other": documents(3)})
    assert ("Trying again" in result.err) == fault.is_retried


def test_who_asks_to_wait_longer_than_we_may_is_quoted(catalog: DataApiEmulator, cli: SabotagedCli) -> None:
    """`Retry-After: 3600` with a budget of 5 s: not waited for, and the message says how long it would have been."""
    catalog.faults = [{"command": "find", **status(429, headers={"Retry-After": "3600"})}]
    result = cli.backup(catalog, "--retry-budget", "5")
    assert result.code == 2
    assert "HTTP 429, and asks to wait 3600 s" in result.err
    assert "Trying again" not in result.err


@pytest.mark.parametrize(("name", "place"), cases(1, RESTORE_PLACES))
def test_restore(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, name: str, place: str
) -> None:
    """A restore that meets a fault ends with the documented code; a run after it completes what is missing."""
    fault, where = FAULTS[name], RESTORE_PLACES[place]
    target.faults = [rule_of(fault, where)]
    result = cli.restore(target, *options_for(fault, where, cli))
    assert result.code == where.codes[fault.kind], result.err
    assert target.faults[0].fired >= 1
    is_halved = place.startswith("insert") and fault.kind in ("too large", "unknown")
    rejects = cli.backups / "rejects-docs.jsonl"
    assert rejects.exists() == (is_halved and result.code == 2)
    assert is_halved or fault.says in result.err
    if rejects.exists():
        assert all(fault.says in line for line in rejects.read_text().splitlines())
    if result.code in (1, 4):
        assert not {"insertMany", "findOneAndReplace"} & set(writes(target))
        assert target.collections(KEYSPACE) == {}
    if result.code != 0:
        target.faults = []
        if not target.is_up:
            target.start()
        again = cli.restore(target, *(["--on-existing", "skip"] if result.code == 2 else ["--resume"]))
        assert again.code == 0, again.err
    same_documents(origin, target)
    assert [path.name for path in cli.backups.glob(".restore-*")] == []


# ------------------------------------------------------------------------------------------------ while others write


@dataclass(frozen=True)
class Change:
    """What others do to a database meanwhile: rules, the exit code, what is said, and how it ended, for a person."""

    text: str
    code: int
    outcome: str
    rules: list[dict[str, Any]]
    says: str = ""
    holds: Callable[[list[str]], bool] | None = None  # of the lines of `docs`; None: exactly what was there before


def find(action: str, skip: int = 2, **more: Any) -> dict[str, Any]:
    """A rule for a page of `docs`."""
    return {"command": "find", **DOCS, "action": action, "skip": skip, **more}


FOREVER: dict[str, Any] = {"times": None}
OTHER_DENY = {"indexing": {"deny": ["m"]}}
WHOLE = "exit 0; each document once"
LOST = "exit 2; `INCOMPLETE`, no file for it, the other collection whole"
NEW = [f'{{"_id":"new{number}"}}' for number in range(40)]
GONE = [f"d{number:05}" for number in range(0, COUNT, 9)]


def has_all_but_new(lines: list[str]) -> bool:
    """Every document that was there all the time, once; of the new ones some."""
    old = [line for line in lines if '"new' not in line]
    return sorted(old) == documents() and len(set(lines)) == len(lines) and set(lines) <= {*documents(), *NEW}


def has_all_but_gone(lines: list[str]) -> bool:
    """Every document that was not deleted, once; of the deleted ones some."""
    stayed = [line for line in documents() if json.loads(line)["_id"] not in GONE]
    return set(stayed) <= set(lines) <= set(documents()) and len(set(lines)) == len(lines)


BACKUP_CHANGES = {
    "dropped-before": Change(
        "the collection is dropped before its scan", 2, LOST, [find("drop_collection", 0)], "UNKNOWN_COLL"
    ),
    "dropped": Change("the collection is dropped during its scan", 2, LOST, [find("drop_collection")], "UNKNOWN_COLL"),
    "dropped-after": Change(
        "the collection is dropped after its last page",
        0,
        WHOLE,
        [{"command": "findCollections", "skip": 1, "action": "drop_collection", "target": "docs"}],
    ),
    "created": Change(
        "another collection is created during the run",
        0,
        f"{WHOLE}; the new collection is not in the snapshot",
        [find("create_collection", name="new")],
    ),
    "recreated": Change(
        "the collection is dropped and made anew, with the same documents",
        0,
        f"{WHOLE}; the scan was begun anew",
        [find("recreate_collection", keep_documents=True)],
        "Starting the collection over",
    ),
    "redefined": Change(
        "the collection is dropped and made anew with another definition",
        0,
        f"{WHOLE}; the definition is the new one; the scan was begun anew",
        [find("recreate_collection", keep_documents=True, definition=OTHER_DENY)],
        "Starting the collection over",
    ),
    "altered": Change(
        "its definition changes, the page states go on working",
        0,
        f"{WHOLE}; the definition is the new one; the scan was begun anew",
        [find("alter_definition", definition=OTHER_DENY)],
        "its definition has changed",
    ),
    "recreated-always": Change(
        "the collection is made anew at every page",
        2,
        LOST,
        [find("recreate_collection", 0, contains="pageState", keep_documents=True, **FOREVER)],
        "page state no longer works",
    ),
    "inserted": Change(
        "40 documents are inserted during the scan",
        0,
        "exit 0; each old document once, no new one twice",
        [find("insert", documents=NEW)],
        holds=has_all_but_new,
    ),
    "deleted": Change(
        "26 documents are deleted during the scan",
        0,
        "exit 0; each document that stayed once, no deleted one twice",
        [find("delete", ids=GONE)],
        holds=has_all_but_gone,
    ),
    "state": Change(
        "a page state no longer works, once",
        0,
        f"{WHOLE}; the scan was begun anew",
        [find("bad_page_state", times=4)],
        "Starting the collection over",
    ),
    "state-always": Change(
        "page states never work", 2, LOST, [find("bad_page_state", 0, contains="pageState", **FOREVER)], "page state"
    ),
    "repeat": Change("the same page twice", 0, WHOLE, [find("repeat_page")], "a page twice"),
    "repeat-always": Change("the same page for ever", 2, LOST, [find("repeat_page", **FOREVER)], "does not move on"),
    "empty": Change("an empty page in the middle", 0, WHOLE, [find("empty_page")]),
    "empty-always": Change("empty pages for ever", 2, LOST, [find("empty_page", **FOREVER)], "does not move on"),
    "back": Change(
        "a page state leads back to the start, once",
        0,
        f"{WHOLE}; the scan was begun anew",
        [find("first_page", 3)],
        "Starting the collection over",
    ),
    "circle": Change(
        "pages that lead in a circle", 2, LOST, [find("first_page", 1, every=3, **FOREVER)], "that was there before"
    ),
}


@pytest.mark.parametrize("name", BACKUP_CHANGES)
def test_a_database_that_changes(catalog: DataApiEmulator, cli: SabotagedCli, name: str) -> None:
    """Whatever others do during a backup, a complete snapshot holds what its definition and its counts say."""
    change = BACKUP_CHANGES[name]
    catalog.faults = change.rules
    cli.sabotage = {"speed": SPEED}
    result = cli.backup(catalog, "-v", "--workers", 1)
    assert result.code == change.code, result.err
    assert all(fault.fired for fault in catalog.faults)
    assert change.says in result.err
    if change.holds:
        (snapshot,) = cli.snapshots()
        assert_whole(snapshot)
        assert change.holds(lines_of(snapshot, "docs"))
    else:
        assert_backed_up(cli, change.code, {"docs": documents(), "other": documents(3)})
    if change.code == 0:
        definitions = catalog.collections(KEYSPACE)
        manifest = json.loads((cli.snapshots()[0] / "manifest.json").read_text())
        assert [record["name"] for record in manifest["collections"]] == ["docs", "other"]
        for record in manifest["collections"]:
            assert record["definition"] == definitions.get(record["name"], record["definition"])


def insert(action: str, **more: Any) -> dict[str, Any]:
    """A rule for the second batch of `docs`."""
    return {"command": "insertMany", **DOCS, "action": action, "skip": 1, **more}


EQUAL = "exit 0; equal to the snapshot"
RESTORE_CHANGES = {
    "dropped": Change(
        "the target's collection is dropped meanwhile",
        2,
        "exit 2; the other collection is there; the next run completes it",
        [insert("drop_collection")],
        "UNKNOWN_COLL",
    ),
    "recreated": Change(
        "the target's collection is dropped and made anew meanwhile",
        5,
        "exit 5; what is missing is counted and named",
        [insert("recreate_collection")],
        "missing (first",
    ),
    "created": Change("somebody makes another collection", 0, EQUAL, [insert("create_collection", name="new")]),
    "inserted": Change(
        "somebody else's documents are inserted meanwhile",
        5,
        "exit 5; what is extra is counted and named",
        [insert("insert", documents=NEW)],
        "40 extra (first",
    ),
    "deleted": Change(
        "documents are deleted meanwhile",
        5,
        "exit 5; what is missing is counted and named",
        [find("delete", 0, count=7)],
        "7 missing (first",
    ),
    "altered": Change(
        "a document is altered meanwhile",
        5,
        "exit 5; it is counted and named",
        [insert("alter_document")],
        "1 different (first",
    ),
    "state": Change(
        "a page state of the comparison no longer works",
        0,
        EQUAL,
        [find("bad_page_state", times=4)],
        "Starting the collection over",
    ),
    "state-always": Change(
        "page states of the comparison never work",
        2,
        "exit 2; all documents are there; the next run ends in 0",
        [find("bad_page_state", 0, contains="pageState", **FOREVER)],
        "page state",
    ),
    "repeat": Change("the comparison gets a page twice", 0, EQUAL, [find("repeat_page")], "a page twice"),
    "repeat-always": Change(
        "the comparison gets the same page for ever",
        2,
        "exit 2; all documents are there; the next run ends in 0",
        [find("repeat_page", **FOREVER)],
        "does not move on",
    ),
    "empty": Change("the comparison gets an empty page in the middle", 0, EQUAL, [find("empty_page")]),
    "empty-always": Change(
        "the comparison gets empty pages for ever",
        2,
        "exit 2; all documents are there; the next run ends in 0",
        [find("empty_page", **FOREVER)],
        "does not move on",
    ),
    "circle": Change(
        "the comparison is led in a circle",
        2,
        "exit 2; all documents are there; the next run ends in 0",
        [find("first_page", 1, every=3, **FOREVER)],
        "that was there before",
    ),
}


@pytest.mark.parametrize("name", RESTORE_CHANGES)
def test_a_target_that_changes(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, name: str
) -> None:
    """Whatever others do during a restore, 0 means that the target equals the snapshot; after 2 a second run ends."""
    change = RESTORE_CHANGES[name]
    target.faults = change.rules
    cli.sabotage = {"speed": SPEED}
    result = cli.restore(target, "-v", "--workers", 1, "--collection", "docs", "--collection", "other")
    assert result.code == change.code, result.err
    assert all(fault.fired for fault in target.faults)
    assert change.says in result.err
    same_documents(origin, target, ["other"])
    if change.code == 2:
        target.faults = []
        assert cli.restore(target, "--on-existing", "skip").code == 0
    if change.code in (0, 2):
        same_documents(origin, target, ["docs"])


# ------------------------------------------------------------------------------------------------ never reached


RUNS: dict[str, Callable[..., Any]] = {
    "backup": lambda cli, url, *more: cli.run("astra_backup.py", "--no-box", "--api-endpoint", url, *more),
    "restore": lambda cli, url, *more: cli.run("restore.py", "--api-endpoint", url, *more),
}


def assert_not_reached(cli: SabotagedCli, result: Any) -> None:
    """It ended in 1, said so in a sentence, and made nothing."""
    assert result.code == 1, result.err
    assert "No reply from" in result.err
    assert "Traceback" not in result.err
    assert not [name for name in left_in(cli) if name.startswith(".")]


@pytest.mark.parametrize("run", RUNS)
def test_a_host_without_a_name_ends_in_1(kept: Path, cli: SabotagedCli, run: str) -> None:
    """DNS knows no such host: 1 after half a minute at most, however great the budget is."""
    cli.sabotage = {"speed": 100.0}
    result = RUNS[run](cli, "http://no-such-host.invalid")
    assert_not_reached(cli, result)
    assert "Trying again" in result.err


@pytest.mark.parametrize("run", RUNS)
def test_a_port_nobody_listens_on_ends_in_1(kept: Path, cli: SabotagedCli, run: str) -> None:
    """Connection refused from the start: 1 after half a minute at most."""
    cli.sabotage = {"speed": 100.0}
    assert_not_reached(cli, RUNS[run](cli, "http://127.0.0.1:1"))


@pytest.mark.parametrize("run", RUNS)
def test_a_server_that_speaks_no_tls_ends_in_1(
    kept: Path, target: DataApiEmulator, cli: SabotagedCli, run: str
) -> None:
    """An https address of a server that only knows http: 1."""
    cli.sabotage = {"speed": 100.0}
    assert_not_reached(cli, RUNS[run](cli, target.url.replace("http", "https"), "--request-timeout-ms", 1000))


@pytest.fixture(scope="module")
def impostor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server whose certificate nobody vouches for; whoever gets through is counted."""
    directory = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    command += " -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("run", RUNS)
def test_a_certificate_nobody_vouches_for_ends_in_1_at_once(
    kept: Path, cli: SabotagedCli, impostor: str, run: str
) -> None:
    """A certificate that cannot be verified will not be better in a minute: 1, without another try."""
    started = time.monotonic()
    result = RUNS[run](cli, impostor)
    assert_not_reached(cli, result)
    assert "certificate verify failed" in result.err.lower()
    assert "Trying again" not in result.err
    assert time.monotonic() - started < 10


HIBERNATED_S = 120
HURRY = 120.0


@pytest.mark.parametrize(
    ("how", "skip"),
    [(status(503), 0), ({"action": "reset"}, 0), (status(503, body=HTML), 4)],
    ids=["503-at-the-start", "reset-at-the-start", "html-in-the-middle"],
)
def test_a_hibernated_database_is_waited_for(
    catalog: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, how: dict[str, Any], skip: int
) -> None:
    """A database that wakes after two minutes (of a clock that runs 120 times as fast) is backed up and restored."""
    rule = {**how, "skip": skip, "for_s": HIBERNATED_S / HURRY, "times": None}
    cli.sabotage = {"speed": HURRY}
    for emulator, run in ((catalog, cli.backup), (target, cli.restore)):
        emulator.faults = [rule]
        result = run(emulator, "--retry-budget", 3000)
        assert result.code == 0, result.err
        assert emulator.faults[0].fired >= 3
    same_documents(catalog, target)
