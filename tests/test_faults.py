"""A Data API that fails, and databases that change under the scan: what both scripts do about each fault.

The tables of docs/RELIABILITY.md are the parameters of these tests; `make docs` prints them.
"""

from __future__ import annotations

import gzip
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from astra_backup import RETRYABLE_CODES, UNEXPECTED_CODES, Report
from restore import open_snapshot, verify_snapshot
from tests.conftest import KEYSPACE, TOKEN, assert_no_secret_in
from tests.emulators.data_api import DataApiEmulator
from tests.sabotage import SabotagedCli
from tests.test_restore import same_documents, writes

COUNT = 230
DENY = {"indexing": {"deny": ["n"]}}
SPEED = 20.0

# ------------------------------------------------------------------------------------------------ the faults


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with a request: the emulator's rule for it, how it is told, and what is said of it.

    `kind`: "passing" (tried again until the budget ends), "puzzling" (tried again, a few times), "refused" (never),
    "too large" (halved), "unknown" (an error code that nobody knows).
    """

    text: str
    kind: str
    says: str
    rule: dict[str, Any]
    timeout_ms: int = 60_000
    speed: float = SPEED
    budget_s: float = 8
    hits_all: bool = False  # every collection, not only the one that the rule names
    places: str = "list page pages | list create insert inserts compare"

    @property
    def is_retried(self) -> bool:
        """Whether the same request is sent again."""
        return self.kind in ("passing", "puzzling")


def status(number: int, **more: Any) -> dict[str, Any]:
    """The rule for an answer with an error status, nothing done."""
    return {"action": "status", "status": number, **more}


HTML = "<!DOCTYPE html><html><body>Sign in to the guest network</body></html>"
SHAPE = "not one of the Data API"
FEW = "page | insert"
DONE_TOO = "insert"  # what was done before the reply was lost matters for writes

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
    "empty": Fault("200 with an empty body", "puzzling", SHAPE, {"action": "other_json", "json": ""}),
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
    "html": Fault("an HTML page with 200", "puzzling", SHAPE, {"action": "html", "body": HTML}),
    "302": Fault("302 to a sign-in page", "refused", "HTTP 302", status(302, headers={"Location": "/login"})),
    "401": Fault("401", "refused", "HTTP 401", status(401)),
    "403": Fault("403 with an HTML page", "refused", "HTTP 403", status(403, body=HTML)),
    "404": Fault("404", "refused", "HTTP 404", status(404)),
    "408": Fault("408", "passing", "HTTP 408", status(408), places=FEW),
    "413": Fault("413", "too large", "HTTP 413", status(413)),
    "429": Fault("429 without `Retry-After`", "passing", "HTTP 429", status(429)),
    "429-seconds": Fault(
        "429 with `Retry-After: 7`", "passing", "Trying again in 7.0 s", status(429, headers={"Retry-After": "7"})
    ),
    "429-date": Fault(
        "429 with a date 5 s ahead in `Retry-After`", "passing", "HTTP 429", status(429, retry_after_date=5)
    ),
    "429-odd": Fault(
        "429 with `Retry-After: soon`", "passing", "HTTP 429", status(429, headers={"Retry-After": "soon"}), places=FEW
    ),
    "500": Fault("500", "passing", "HTTP 500", status(500)),
    "500-done": Fault("done, and answered with 500", "passing", "HTTP 500", status(500, done=True), places=FEW),
    "502": Fault("502 with an HTML page", "passing", "HTTP 502", status(502, body=HTML)),
    "503": Fault("503", "passing", "HTTP 503", status(503)),
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
        "an error code in a 200 that nobody knows",
        "unknown",
        "SOMETHING_NEW",
        {"action": "error", "errorCode": "SOMETHING_NEW"},
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


def cases(script: int, places: dict[str, Place]) -> list[Any]:
    """Parameters: each fault at each of its places."""
    return [
        pytest.param(name, place, id=f"{place}-{name}")
        for place in places
        for name, fault in FAULTS.items()
        if place in fault.places.split("|")[script].split()
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


def options_for(fault: Fault, cli: SabotagedCli) -> list[str]:
    """How a run is made that meets a fault: in a hurry, and with everything told."""
    cli.sabotage = {"speed": fault.speed} if fault.speed != 1 else {}
    return ["-v", "--request-timeout-ms", str(fault.timeout_ms), "--retry-budget", str(fault.budget_s)]


def rule_of(fault: Fault, place: Place) -> dict[str, Any]:
    """The emulator's rule for a fault at a place."""
    rule = {**fault.rule, **place.rule}
    return {**rule, "seconds": None} if fault.hits_all and "times" in place.rule else rule


@pytest.mark.parametrize(("name", "place"), cases(0, BACKUP_PLACES))
def test_backup(catalog: DataApiEmulator, cli: SabotagedCli, name: str, place: str) -> None:
    """A backup that meets a fault ends with the code that SPEC demands, and the disk holds what that code promises."""
    fault, where = FAULTS[name], BACKUP_PLACES[place]
    catalog.faults = [rule_of(fault, where)]
    result = cli.backup(catalog, *options_for(fault, cli))
    assert result.code == where.codes[fault.kind], result.err
    assert catalog.faults[0].fired >= 1
    assert fault.says in result.err
    if not fault.hits_all or place != "pages":
        assert_backed_up(cli, result.code, {"docs": documents(), "other": documents(3)})
    assert ("Trying again" in result.err) == fault.is_retried


@pytest.mark.parametrize(("name", "place"), cases(1, RESTORE_PLACES))
def test_restore(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, name: str, place: str
) -> None:
    """A restore that meets a fault ends with the code that SPEC demands; a run after it completes what is missing."""
    fault, where = FAULTS[name], RESTORE_PLACES[place]
    target.faults = [rule_of(fault, where)]
    result = cli.restore(target, *options_for(fault, cli))
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
