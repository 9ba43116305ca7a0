"""`--drill`: a restore into scratch collections, which proves it and leaves nothing."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from restore import RestoreExit
from tests.conftest import KEYSPACE, TOKEN, Cli, warm_cli
from tests.emulators.data_api import DataApiEmulator, Reply, Request
from tests.support import (
    EXTRA,
    FEW,
    fill,
    held,
    snapshot_of,
    wait_for,
    writes,
)

VECTORS = [
    f'{{"_id":"v{number:03}","$vector":[{(number * 37 % 101) / 101},{(number * 53 % 97) / 97},{number / 300}]}}'
    for number in range(150)
]
VECTOR3 = {"vector": {"dimension": 3, "metric": "euclidean"}}
SCRATCH = re.compile(r"drill_[0-9a-f]{8}_\d+")


@pytest.fixture(scope="module")
def _vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DataApiEmulator, Path]]:
    with DataApiEmulator(token=TOKEN) as emulator:
        fill(emulator, "points", VECTORS, VECTOR3)
        fill(emulator, "docs", FEW)
        fill(emulator, "nothing", [])
        yield emulator, snapshot_of(emulator, warm_cli(tmp_path_factory, "vectors"))


@pytest.fixture
def vectors(cli: Cli, _vectors: tuple[DataApiEmulator, Path]) -> DataApiEmulator:
    """A server with vectors and without, in a snapshot where `cli` looks for it; collections of others beside."""
    emulator, snapshot = _vectors
    shutil.copytree(snapshot, cli.backups / snapshot.name)
    for name in emulator.collections(KEYSPACE).keys() - {"points", "docs", "nothing"}:
        emulator.drop(KEYSPACE, name)
    fill(emulator, "drill_0000000g_0", [EXTRA])
    fill(emulator, "drill_00000000_0", [EXTRA])
    emulator.database.keyspaces["scratch"] = {}
    emulator.requests.clear()
    emulator.faults = []
    return emulator


def created(emulator: DataApiEmulator) -> list[str]:
    """Names of the collections that a server was asked to make."""
    bodies = [json.loads(request.body) for request in emulator.requests if request.command == "createCollection"]
    return [body["createCollection"]["name"] for body in bodies]


def touched(emulator: DataApiEmulator) -> set[str]:
    """Names of the collections that a writing command was about."""
    names = set()
    for request in emulator.requests:
        if request.command in ("createCollection", "deleteCollection"):
            names.add(json.loads(request.body)[request.command]["name"])
        elif request.command in writes(emulator):
            names.add(request.collection)
    return names


def test_a_drill_proves_a_restore_and_leaves_nothing(vectors: DataApiEmulator, cli: Cli) -> None:
    """Into the source itself, without a question: scratch collections only, recall, times, and all gone again."""
    before = held(vectors)
    result = cli.restore(vectors, "--drill")
    assert result.code == 0, result.err
    assert held(vectors) == before
    assert len(created(vectors)) == 3
    assert all(SCRATCH.fullmatch(name) and len(name) <= 48 for name in touched(vectors))
    assert re.search(r"recall\D*10\D*\b1(\.0+)?\b|recall.*100", result.out + result.err)
    assert re.search(r"\d s\b", result.out)


def test_a_drill_prints_its_steps_as_json(vectors: DataApiEmulator, cli: Cli) -> None:
    """--json has the time of every step and the recall of every collection with vectors."""
    found = cli.restore(vectors, "--drill", "--json").json
    assert found["exit_code"] == 0
    assert found["recall_at_10"] == {"points": 1.0}
    assert [row["name"] for row in found["collections"] if row["equal"]] == ["docs", "nothing", "points"]
    steps = found["steps_seconds"]
    assert {"fetch", "verify", "plan", "compare", "neighbours", "drop"} < steps.keys()
    assert all(isinstance(seconds, float) for seconds in steps.values())


@pytest.mark.parametrize("arguments", [["--collection", "points"], ["--keyspace", "scratch"]], ids=str)
def test_a_drill_takes_a_selection_and_a_keyspace(vectors: DataApiEmulator, cli: Cli, arguments: list[str]) -> None:
    """One collection, or another keyspace, of the operator's choice."""
    before = held(vectors)
    result = cli.restore(vectors, cli.snapshots()[-1].name, "--drill", *arguments)
    assert result.code == 0, result.err
    assert held(vectors) == before
    assert vectors.collections("scratch") == {}
    assert len(created(vectors)) == (1 if "points" in arguments else 3)
    keyspaces = {request.keyspace for request in vectors.requests if request.command == "insertMany"}
    assert keyspaces == {"scratch" if "scratch" in arguments else KEYSPACE}


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"command": "insertMany", "action": "alter_document"}, 5),
        ({"command": "insertMany", "action": "drop_document"}, 5),
        ({"command": "insertMany", "action": "error", "errorCode": "SHRED_BAD_DOCID_TYPE", "times": None}, 2),
        ({"command": "insertMany", "action": "status", "status": 503, "times": None}, 2),
        ({"command": "createCollection", "skip": 1, "action": "error", "errorCode": "TOO_MANY_INDEXES"}, 4),
        ({"command": "deleteCollection", "action": "status", "status": 503}, 0),
        ({"command": "deleteCollection", "action": "reset_after"}, 0),
    ],
    ids=["altered", "lost", "rejected", "down", "no room", "busy at the end", "lost reply at the end"],
)
def test_a_drill_that_fails_says_so_and_leaves_nothing(
    vectors: DataApiEmulator, cli: Cli, fault: dict[str, object], code: int
) -> None:
    """The codes are those of a restore, and the scratch collections are dropped all the same."""
    before = held(vectors)
    vectors.faults = [fault]
    result = cli.restore(vectors, "--drill", BACKUP_RETRY_BUDGET="2")
    assert result.code == code, result.err
    assert vectors.faults[0].fired
    assert held(vectors) == before
    assert all(SCRATCH.fullmatch(name) for name in touched(vectors))


def test_scratch_collections_that_cannot_be_dropped_are_named(vectors: DataApiEmulator, cli: Cli) -> None:
    """If dropping fails it is no success, and what stayed behind is named."""
    vectors.faults = [{"command": "deleteCollection", "action": "status", "status": 403, "times": None}]
    result = cli.restore(vectors, "--drill", "--collection", "docs", "--quiet")
    (left,) = created(vectors)
    assert left in vectors.collections(KEYSPACE)
    assert result.code != 0
    assert left in result.err + result.out


def test_a_drill_that_cannot_clean_up_says_also_why_it_failed(vectors: DataApiEmulator, cli: Cli) -> None:
    """What was wrong with the target is in the error itself, before the names of what stays."""
    vectors.faults = [
        {"command": "createCollection", "skip": 1, "action": "error", "errorCode": "TOO_MANY_INDEXES"},
        {"command": "deleteCollection", "action": "status", "status": 403, "times": None},
    ]
    error = cli.restore(vectors, "--drill", "--json").json["error"]
    assert "TOO_MANY_INDEXES" in error
    assert "scratch collections stay: drill_" in error


STEPS = {
    "writing": {"command": "insertMany", "action": "delay", "seconds": 1.0, "times": None},
    "comparing": {"command": "find", "action": "silence", "times": None},
    "dropping": {"command": "deleteCollection", "action": "delay", "seconds": 1.0},
}


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("writing", signal.SIGTERM),
        ("writing", signal.SIGINT),
        ("comparing", signal.SIGTERM),
        ("dropping", signal.SIGTERM),
    ],
)
def test_a_drill_that_is_stopped_leaves_nothing(
    vectors: DataApiEmulator, cli: Cli, step: str, number: signal.Signals
) -> None:
    """SIGTERM and Ctrl-C drop the scratch collections, whatever is going on, within the ten seconds of a stop."""
    before = held(vectors)
    vectors.faults = [STEPS[step]]
    running = cli.start("restore.py", "--api-endpoint", vectors.url, "--drill")
    try:
        wait_for(lambda: vectors.faults[0].fired)
        started = time.monotonic()
        running.send_signal(number)
        _, err = running.communicate(timeout=15)
    finally:
        running.kill()
    assert time.monotonic() - started < 10
    assert running.returncode == 128 + number
    assert ("All scratch collections were dropped." in err) != ("scratch collections may be there: drill_" in err)
    wait_for(lambda: held(vectors) == before, 3)  # a delayed drop may still be on its way


class Forgetful(DataApiEmulator):
    """A server whose nearest neighbours are not the nearest: it answers a vector search with what comes first."""

    def reply_to(self, request: Request) -> Reply:
        """Turn a vector search into a search for nothing in particular."""
        if b'"sort"' in request.body:
            body = json.loads(request.body)
            (arguments,) = body.values()
            arguments.pop("sort")
            request = Request(**{**vars(request), "body": json.dumps(body).encode()})
        return super().reply_to(request)


def test_a_drill_notices_neighbours_that_are_not_the_nearest(vectors: DataApiEmulator, cli: Cli) -> None:
    """The documents may be equal: an index that does not find them is seen in the recall."""
    with Forgetful(token=TOKEN) as target:
        found = cli.restore(target, "--drill", "--json", "--collection", "points")
        assert held(target) == {}
        told = cli.restore(target, "--drill", "--collection", "points")
    assert found.json["recall_at_10"]["points"] < 0.8
    assert (found.code, told.code) == (RestoreExit.DIFFERENT, RestoreExit.DIFFERENT)
    assert "TOO LOW" in told.out


def test_a_drill_measures_vectors_whose_products_are_large(cli: Cli, target: DataApiEmulator) -> None:
    """Components near the end of float32: their products fit, and stderr holds log lines only."""
    vectors = {"vector": {"dimension": 2, "metric": "dot_product"}}
    with DataApiEmulator(token=TOKEN) as source:
        rows = [f'{{"_id":"{n}","$vector":[{3.4e38 - n * 1e36},{n}.5]}}' for n in range(30)]
        fill(source, "large", rows, vectors)
        snapshot_of(source, cli)
    result = cli.restore(target, "--drill", "--log-format", "json")
    assert result.code == 0, result.err
    assert all(line.startswith("{") for line in result.err.splitlines())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the emulator's
def test_a_drill_searches_no_vector_beyond_a_float(cli: Cli, target: DataApiEmulator) -> None:
    """A number that no float holds is stored and restored; nobody can say what is near it."""
    vectors = ["[1E+400,0]", "[4e38,0]", "[0,1]"]
    documents = [f'{{"_id":{number},"$vector":{vector}}}' for number, vector in enumerate(vectors)]
    fill(target, "points", documents, {"vector": {"dimension": 2, "metric": "dot_product"}})
    cli.backup(target)
    found = cli.restore(target, "--drill")
    assert "This is a bug" not in found.err
    assert "RuntimeWarning" not in found.err
    assert found.code in (0, 5), found.err


def test_a_drill_that_is_refused_names_the_collections(cli: Cli, target: DataApiEmulator) -> None:
    """Nobody knows the scratch names: what cannot be restored is called what it is called in the snapshot."""
    with DataApiEmulator(token=TOKEN) as source:
        source.tables.create(KEYSPACE, "counters", {"p": "text", "n": "counter"}, ["p"])
        snapshot_of(source, cli)
    refused = cli.restore(target, "--drill")
    assert refused.code == RestoreExit.TARGET_REFUSED
    assert re.search(r"^  counters as drill_\w+: cannot come back", refused.err, re.MULTILINE)


def test_a_drill_searches_no_vector_of_another_length(cli: Cli, target: DataApiEmulator) -> None:
    """The server refuses such a document, which is 2; the neighbours of the others are measured all the same."""
    documents = [*VECTORS[:20], '{"_id":"short","$vector":[1,2]}']
    with DataApiEmulator(token=TOKEN) as source:
        fill(source, "points", documents, VECTOR3)
        snapshot_of(source, cli)
    found = cli.restore(target, "--drill", "--json")
    assert (found.code, found.json["recall_at_10"]) == (RestoreExit.INCOMPLETE, {"points": 1.0}), found.err


def test_a_drill_leaves_nothing_beside_the_snapshot(vectors: DataApiEmulator, cli: Cli) -> None:
    """No journal, no rejects, no download."""
    before = sorted(cli.backups.iterdir())
    assert cli.restore(vectors, "--drill").code == 0
    assert sorted(cli.backups.iterdir()) == before
