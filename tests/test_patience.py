"""Errors that pass are waited for, the retry budget is kept to the second, and what is refused is written down."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from restore import RestoreExit
from tests.conftest import KEYSPACE, ROOT, TOKEN, assert_no_secret_in, warm_cli
from tests.emulators.data_api import DataApiEmulator, parse
from tests.sabotage import SabotagedCli
from tests.support import NOBODY, needs_root, same_documents, snapshot_of, writes

HURRY = 50.0
PATIENT = {"BACKUP_RETRY_BUDGET": "3000"}  # a minute on the wall, of which no test needs much
SLOW_MACHINE_MS = "3000000"
DENY = {"indexing": {"deny": ["n"]}}
PASSING = {
    "rate-limited": {"errorCode": "EMBEDDING_PROVIDER_RATE_LIMITED", "family": "REQUEST"},
    "timeout": {"errorCode": "EMBEDDING_PROVIDER_TIMEOUT", "family": "REQUEST"},
    "unavailable": {"errorCode": "EMBEDDING_PROVIDER_UNAVAILABLE", "family": "SERVER"},
    "provider-5xx": {"errorCode": "EMBEDDING_PROVIDER_SERVER_ERROR", "family": None},
    "internal": {"errorCode": "INTERNAL_SERVER_ERROR", "family": None},
    "unheard-of": {"errorCode": "NEVER_HEARD_OF", "family": "SERVER"},
    "timeout-writing": {"errorCode": "TIMEOUT_WRITING_DATA"},
}
SOME = ("rate-limited", "internal", "unheard-of")
passing = pytest.mark.parametrize("error", PASSING.values(), ids=PASSING)
some_passing = pytest.mark.parametrize("error", [PASSING[name] for name in SOME], ids=SOME)


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[SabotagedCli]:
    """The two scripts, in a hurry."""
    directory = tmp_path / "cwd"
    directory.mkdir()
    made = SabotagedCli(directory)
    made.sabotage = {"speed": HURRY}
    made.environ["BACKUP_REQUEST_TIMEOUT_MS"] = SLOW_MACHINE_MS  # whose clock runs as fast
    yield made
    assert_no_secret_in(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _end_of_forks() -> Iterator[None]:
    """The process that forks ends with the module."""
    yield
    SabotagedCli.stop()


@pytest.fixture(scope="module")
def origin() -> Iterator[DataApiEmulator]:
    """A database with a collection of 230 documents, on five pages."""
    with DataApiEmulator(token=TOKEN) as emulator:
        emulator.create(KEYSPACE, "docs", DENY)
        for number in range(230):
            emulator.put(KEYSPACE, "docs", f'{{"_id":"d{number:05}","n":{number}}}')
        yield emulator


@pytest.fixture(scope="module")
def _made(origin: DataApiEmulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return snapshot_of(origin, warm_cli(tmp_path_factory, "origin"))


@pytest.fixture
def kept(cli: SabotagedCli, _made: Path) -> Path:
    """A snapshot of it where `cli` looks."""
    return Path(shutil.copytree(_made, cli.backups / _made.name))


def rejects_in(directory: Path) -> list[Path]:
    """The rejects files below a directory."""
    return sorted(directory.rglob("rejects-*.jsonl"))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What stands in a rejects file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ errors that pass


@passing
def test_a_batch_that_fails_for_a_while_is_waited_for(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, error: dict[str, Any]
) -> None:
    """An error that passes, of a whole insertMany, is waited for, and no document is rejected."""
    target.faults = [{"command": "insertMany", "action": "error", "times": 9, **error}]
    result = cli.restore(target, "--workers", 1, **PATIENT)
    assert result.code == RestoreExit.OK, result.err
    assert "Trying again" in result.err
    assert target.faults[0].fired == 9
    assert rejects_in(cli.directory) == []
    assert len(writes(target)) == 9 + 1 + 3  # one creation, three batches
    same_documents(origin, target)


@some_passing
def test_documents_that_fail_for_a_while_are_waited_for(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, error: dict[str, Any]
) -> None:
    """An error that passes, of single documents or of all of a batch, is waited for, and none is rejected."""
    target.faults = [
        {"command": "insertMany", "action": "document_errors", "ids": ["d00001", "d00007"], "times": 6, **error},
        {"command": "insertMany", "action": "document_errors", "skip": 6, "times": 3, **error},
    ]
    result = cli.restore(target, "--workers", 1, **PATIENT)
    assert result.code == RestoreExit.OK, result.err
    assert rejects_in(cli.directory) == []
    assert all(fault.fired for fault in target.faults)
    same_documents(origin, target)


def test_documents_that_fail_for_good_fail_the_collection(
    kept: Path, target: DataApiEmulator, cli: SabotagedCli
) -> None:
    """A provider that stays down is no refusal of any document: 2, no rejects, and --resume brings the rest."""
    error = PASSING["rate-limited"]
    target.faults = [{"command": "insertMany", "action": "document_errors", "times": None, **error}]
    result = cli.restore(target, BACKUP_RETRY_BUDGET="20")
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert "EMBEDDING_PROVIDER_RATE_LIMITED" in result.err
    assert rejects_in(cli.directory) == []
    target.faults = []
    assert cli.restore(target, "--resume").code == RestoreExit.OK


def test_between_rounds_there_is_a_pause(kept: Path, target: DataApiEmulator, cli: SabotagedCli) -> None:
    """Documents that fail while others go in are sent again after a wait, not in a storm."""
    cli.sabotage = {}
    names = [f"d{number:05}" for number in range(230)]
    rule = {"command": "insertMany", "action": "document_errors", **PASSING["rate-limited"]}
    target.faults = [{**rule, "ids": names[23 * (at + 1) :], "skip": at} for at in range(9)]
    result = cli.restore(target, "--workers", 1)
    assert result.code == RestoreExit.OK, result.err
    assert all(fault.fired for fault in target.faults)
    sent = [request.time for request in target.requests if request.command == "insertMany"]
    assert min(later - earlier for earlier, later in itertools.pairwise(sent[:10])) >= 0.1


def test_a_poisonous_document_is_tried_a_few_times_and_rejected(
    kept: Path, target: DataApiEmulator, cli: SabotagedCli
) -> None:
    """An unexpected error of one document is tried again a few times, then rejected with its reason; others go on."""
    rule = {"command": "insertMany", "action": "document_errors", "ids": ["d00005"], "times": None}
    target.faults = [{**rule, "errorCode": "UNEXPECTED_SERVER_ERROR"}]
    result = cli.restore(target, **PATIENT)
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert len(target.documents(KEYSPACE, "docs")) == 229
    (row,) = rows_of(cli.backups / "rejects-docs.jsonl")
    assert (row["document"]["_id"], row["code"]) == ("d00005", "UNEXPECTED_SERVER_ERROR")
    inserts = [request.body for request in target.requests if request.command == "insertMany"]
    with_it = [body for body in inserts if '"d00005"' in body]
    assert len(with_it) == 4


def test_a_fault_of_a_document_is_rejected_at_once(kept: Path, target: DataApiEmulator, cli: SabotagedCli) -> None:
    """What the server calls a fault of the request is final, also under a code that nobody has heard of."""
    rule = {"command": "insertMany", "action": "document_errors", "ids": ["d00005"], "times": None}
    target.faults = [{**rule, "errorCode": "NEVER_HEARD_OF", "family": "REQUEST"}]
    result = cli.restore(target, **PATIENT)
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert [row["code"] for row in rows_of(cli.backups / "rejects-docs.jsonl")] == ["NEVER_HEARD_OF"]
    assert len([request for request in target.requests if '"d00005"' in request.body]) == 1


@passing
def test_a_first_page_that_fails_for_a_while_is_waited_for(
    source: DataApiEmulator, cli: SabotagedCli, error: dict[str, Any]
) -> None:
    """A backup waits for an error that passes, on its first request and on a first page."""
    source.create(KEYSPACE, "docs")
    source.put(KEYSPACE, "docs", '{"_id":1}')
    source.faults = [
        {"command": "findCollections", "action": "error", **error},
        {"command": "find", "action": "error", "times": 9, **error},
    ]
    result = cli.backup(source, **PATIENT)
    assert result.code == 0, result.err
    assert [fault.fired for fault in source.faults] == [1, 9]


@some_passing
def test_a_check_waits(source: DataApiEmulator, cli: SabotagedCli, error: dict[str, Any]) -> None:
    """--check says that the database is well when it was not for a moment."""
    source.faults = [{"command": "findCollections", "action": "error", "times": 6, **error}]
    result = cli.backup(source, "--check", **PATIENT)
    assert result.code == 0, result.out + result.err
    assert source.faults[0].fired == 6


PLACES = {
    "createCollection": {"command": "createCollection"},
    "findOneAndReplace": {"command": "findOneAndReplace"},
    "read back": {"command": "find", "contains": '"$in"'},
    "compare": {"command": "find", "contains": '"filter":{},', "skip": 1},
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("name", ["rate-limited", "unheard-of"])
def test_every_request_of_a_restore_waits(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, name: str, place: dict[str, Any]
) -> None:
    """Creating, replacing, reading back and comparing wait for an error that passes."""
    if place["command"] != "createCollection":
        target.create(KEYSPACE, "docs", DENY)
        target.put(KEYSPACE, "docs", '{"_id":"d00003","n":-1}')
    target.faults = [{"action": "error", "times": 6, **place, **PASSING[name]}]
    result = cli.restore(target, "--on-existing", "overwrite", "--yes", **PATIENT)
    assert result.code == RestoreExit.OK, result.err
    assert target.faults[0].fired == 6
    assert rejects_in(cli.directory) == []
    same_documents(origin, target)


def test_a_drill_waits_for_its_neighbours(cli: SabotagedCli) -> None:
    """A drill asks for neighbours until the server is well again."""
    with DataApiEmulator(token=TOKEN) as source:
        source.create(KEYSPACE, "docs", {"vector": {"dimension": 2, "metric": "cosine"}})
        for number in range(20):
            source.put(KEYSPACE, "docs", f'{{"_id":{number},"$vector":[1,{number}]}}')
        snapshot_of(source, cli)
        source.faults = [
            {"command": "find", "contains": '"sort"', "action": "error", "times": 6, **PASSING["internal"]}
        ]
        result = cli.restore(source, "--drill", **PATIENT)
        assert result.code == RestoreExit.OK, result.err
        assert source.faults[0].fired == 6


UNKNOWN = {"errorCode": "UNKNOWN_COLLECTION_OR_TABLE", "family": "REQUEST"}


@pytest.mark.parametrize(
    "place",
    [
        {"command": "insertMany", "action": "error"},
        {"command": "insertMany", "action": "document_errors"},
        {"command": "find", "action": "error"},
    ],
    ids=["insert", "documents", "compare"],
)
def test_a_node_that_does_not_know_a_new_collection_yet_is_waited_for(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, place: dict[str, Any]
) -> None:
    """UNKNOWN_COLLECTION_OR_TABLE of a collection that this run has just created passes."""
    target.faults = [{"times": 6, **place, **UNKNOWN}]
    result = cli.restore(target, **PATIENT)
    assert result.code == RestoreExit.OK, result.err
    assert target.faults[0].fired == 6
    assert rejects_in(cli.directory) == []
    same_documents(origin, target)


def test_a_collection_that_is_not_ours_and_gone_is_not_waited_for(
    kept: Path, target: DataApiEmulator, cli: SabotagedCli
) -> None:
    """One that was there before and is dropped meanwhile fails, without a wait and without a reject."""
    target.create(KEYSPACE, "docs", DENY)
    target.faults = [{"command": "insertMany", "action": "drop_collection"}]
    result = cli.restore(target, "--workers", 1, **PATIENT)
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert "UNKNOWN_COLLECTION_OR_TABLE" in result.err
    assert "Trying again" not in result.err
    assert rejects_in(cli.directory) == []


# ------------------------------------------------------------------------------------------------ the budget


def test_a_last_try_is_made_when_the_budget_ends(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """A wait longer than what is left of the budget is cut to that; then comes one last try, and no other."""
    source.create(KEYSPACE, "docs")
    source.faults = [{"command": "find", "action": "status", "status": 503, "times": None}]
    cli.sabotage = {"speed": HURRY, "draw": 500.0}
    result = cli.backup(source, "--retry-budget", 200)
    assert result.code == 2, result.err
    assert source.faults[0].fired == 2
    (wait,) = [float(part.split()[0]) for part in result.err.split("Trying again in ")[1:]]
    assert wait <= 200


def test_a_first_contact_gets_its_half_minute(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """A host that is not there at first is tried once more when the 30 seconds of the first contact end."""
    source.create(KEYSPACE, "docs")
    source.stop()
    cli.sabotage = {"speed": 8.0, "draw": 500.0}
    running = cli.begin("astra_backup.py", "--no-box", "--api-endpoint", source.url, "--retry-budget", 3000)
    err = cli.outputs[1]
    while "Trying again" not in (text := err.read_text()):
        assert "Error" not in text
        time.sleep(0.02)
    source.start()
    result = running.wait()
    assert result.code == 0, result.err
    assert result.err.count("Trying again") == 1


def test_dropping_is_no_more_patient_than_the_budget(kept: Path, target: DataApiEmulator, cli: SabotagedCli) -> None:
    """A collection that cannot be dropped is given up with --retry-budget, not after a time of its own."""
    target.create(KEYSPACE, "docs", DENY)
    target.put(KEYSPACE, "docs", '{"_id":1}')
    target.faults = [{"command": "deleteCollection", "action": "status", "status": 503, "times": None}]
    cli.sabotage = {"speed": HURRY, "draw": 2.0}
    result = cli.restore(target, "--on-existing", "drop", "--yes", "--retry-budget", 5)
    assert result.code != 0
    assert 1 <= target.faults[0].fired <= 5  # of 15 in half a minute
    assert '{"_id":1}' in target.documents(KEYSPACE, "docs")


# ------------------------------------------------------------------------------------------------ rejects


BAD = {"command": "insertMany", "action": "document_errors", "ids": ["d00005"], "times": None}
BAD |= {"errorCode": "NEVER_HEARD_OF", "family": "REQUEST"}


def assert_only_it_is_rejected(result: Any, target: DataApiEmulator, path: Path) -> None:
    """Exit 2, the others are there, and the file that is named holds the document."""
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert "Traceback" not in result.err
    assert len(target.documents(KEYSPACE, "docs")) == 229
    assert str(path) in result.out
    (row,) = rows_of(path)
    assert (row["collection"], row["document"]["_id"]) == ("docs", "d00005")
    assert path.stat().st_mode & 0o777 == 0o600


def test_rejects_go_where_they_are_wanted(kept: Path, target: DataApiEmulator, cli: SabotagedCli) -> None:
    """--rejects names the file, nothing is left beside the snapshot, and the next run replaces what stood in it."""
    wanted = cli.directory / "refused.jsonl"
    for _ in range(2):
        target.delete_all(KEYSPACE, "docs") if "docs" in target.collections(KEYSPACE) else None
        target.faults = [BAD]
        assert_only_it_is_rejected(cli.restore(target, "--rejects", wanted), target, wanted)
    assert rejects_in(cli.directory) == []


def test_all_collections_share_the_file_that_is_wanted(target: DataApiEmulator, cli: SabotagedCli) -> None:
    """The rejects of several collections are all in the file of --rejects, each with the name of its collection."""
    with DataApiEmulator(token=TOKEN) as source:
        for name in ("one", "two"):
            source.create(KEYSPACE, name)
            source.put(KEYSPACE, name, '{"_id":"long","s":"' + "x" * 8001 + '"}')
        snapshot_of(source, cli)
    wanted = cli.directory / "refused.jsonl"
    wanted.write_text("of another run\n")
    assert cli.restore(target, "--rejects", wanted).code == RestoreExit.INCOMPLETE
    assert [row["collection"] for row in rows_of(wanted)] == ["one", "two"]


def test_a_place_for_rejects_that_cannot_be_written_is_found_in_time(
    kept: Path, target: DataApiEmulator, cli: SabotagedCli
) -> None:
    """A bad --rejects ends in 1 before anything is written; a good one leaves no empty file."""
    result = cli.restore(target, "--rejects", cli.directory / "not there" / "rejects.jsonl")
    assert result.code == RestoreExit.FAILED
    assert "--rejects" in result.err
    assert writes(target) == []
    assert cli.restore(target, "--rejects", cli.directory / "fine.jsonl").code == 0
    assert not (cli.directory / "fine.jsonl").exists()


@needs_root
def test_a_snapshot_that_is_read_only_has_its_rejects_elsewhere(_made: Path, target: DataApiEmulator) -> None:
    """Who may only read the snapshot has the rejects in the output directory, and the other documents go on."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        snapshot = Path(shutil.copytree(_made, Path(name, "mount", _made.name)))
        for path in (snapshot.parent, snapshot, *snapshot.iterdir()):
            path.chmod(0o755)
        cli = SabotagedCli(Path(name, "cwd"))
        for directory in (cli.directory, cli.backups):
            directory.mkdir()
            os.chown(directory, NOBODY, NOBODY)
        for path in cli.outputs:
            path.touch()
        cli.sabotage = {"uid": NOBODY, "speed": HURRY}
        target.faults = [BAD]
        result = cli.restore(target, snapshot)
        assert_only_it_is_rejected(result, target, cli.backups / "rejects-docs.jsonl")
        assert "No journal can be kept" in result.err
        assert "--resume" not in result.err


def test_rejects_that_fit_nowhere_else_are_in_tmpdir(kept: Path, target: DataApiEmulator, cli: SabotagedCli) -> None:
    """Where neither the snapshot's directory nor the output directory takes them, TMPDIR does, in a private place."""
    (cli.backups / "rejects-docs.jsonl").mkdir()
    temporary = cli.directory / "tmp"
    temporary.mkdir()
    target.faults = [BAD]
    result = cli.restore(target, TMPDIR=str(temporary))
    (path,) = [path for path in rejects_in(temporary) if path.is_file()]
    assert_only_it_is_rejected(result, target, path)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_for_rejects_that_is_full_is_left_for_another(
    kept: Path, target: DataApiEmulator, cli: SabotagedCli
) -> None:
    """When the file of --rejects takes no more, the default place does, and the result names the file that has it."""
    target.faults = [BAD]
    result = cli.restore(target, "--rejects", "/dev/full")
    assert_only_it_is_rejected(result, target, cli.backups / "rejects-docs.jsonl")
    assert "/dev/full" not in result.out


def test_a_reject_that_fits_nowhere_is_named(target: DataApiEmulator, cli: SabotagedCli) -> None:
    """Where no place takes a rejected document its id and the reason are logged, and the others go on."""
    with DataApiEmulator(token=TOKEN) as source:
        source.create(KEYSPACE, "docs")
        source.put(KEYSPACE, "docs", '{"_id":"long","s":"' + "x" * 60_000 + '"}')
        source.put(KEYSPACE, "docs", '{"_id":"short"}')
        snapshot_of(source, cli)
    cli.sabotage = {"limits": {"FSIZE": 50_000}}
    result = cli.restore(target)
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert target.documents(KEYSPACE, "docs") == ['{"_id":"short"}']
    assert '"long"' in result.err
    assert "SHRED_DOC_LIMIT_VIOLATION" in result.err
    assert "no place" in result.out
    assert all(path.read_text() == "" for path in rejects_in(cli.directory))


def test_a_resumption_names_the_file_that_has_the_rejects(
    kept: Path, target: DataApiEmulator, cli: SabotagedCli
) -> None:
    """A document that is refused again is in the file that the last run was given, once, and only that is named."""
    first, second = (cli.directory / name for name in ("first.jsonl", "second.jsonl"))
    target.faults = [BAD]
    assert cli.restore(target, "--rejects", first).code == RestoreExit.INCOMPLETE
    for file, other in ((second, first), (first, second)):
        result = cli.restore(target, "--resume", "--rejects", file)
        assert_only_it_is_rejected(result, target, file)
        assert str(other) not in result.out


def test_a_device_for_rejects_stays(kept: Path, target: DataApiEmulator, cli: SabotagedCli) -> None:
    """What --rejects names is removed, once all is taken, only if it is a file: a pipe or a device is not."""
    pipe = cli.directory / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    target.faults = [BAD]
    assert cli.restore(target, "--rejects", pipe).code == RestoreExit.INCOMPLETE
    assert b'"d00005"' in os.read(reader, 100_000)
    target.faults = []
    assert cli.restore(target, "--resume", "--rejects", cli.directory / "file").code == RestoreExit.OK
    assert pipe.is_fifo()
    os.close(reader)


# ------------------------------------------------------------------------------------------------ numbers


HUGE = ['{"_id":1E+400,"n":1}', '{"_id":-2.5E-400,"n":2}', '{"_id":12345678901234567890123456789,"n":3}']


def test_ids_that_no_float_holds_come_back(target: DataApiEmulator, cli: SabotagedCli) -> None:
    """Documents whose `_id` no float holds are restored, also when they are there already."""
    with DataApiEmulator(token=TOKEN) as source:
        source.create(KEYSPACE, "docs", DENY)
        for text in HUGE:
            source.put(KEYSPACE, "docs", text)
        snapshot_of(source, cli)
        result = cli.restore(target)
        assert result.code == RestoreExit.OK, result.err
        same_documents(source, target)
        target.delete(KEYSPACE, "docs", parse(b"1E+400"))
        result = cli.restore(target, "--on-existing", "skip")
        assert result.code == RestoreExit.OK, result.err
        same_documents(source, target)


def test_a_refused_id_that_no_float_holds_is_a_reject(target: DataApiEmulator, cli: SabotagedCli) -> None:
    """The server's error names the `_id`; the document is in the rejects file, the others are there."""
    with DataApiEmulator(token=TOKEN) as source:
        source.create(KEYSPACE, "docs")
        source.put(KEYSPACE, "docs", '{"_id":1E+400,"s":"' + "x" * 8001 + '"}')
        source.put(KEYSPACE, "docs", '{"_id":2E+400}')
        snapshot_of(source, cli)
    result = cli.restore(target)
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert target.documents(KEYSPACE, "docs") == ['{"_id":2E+400}']
    assert '"_id":1E+400' in (cli.backups / "rejects-docs.jsonl").read_text()


def test_fields_that_nobody_knows_are_ignored_in_a_backup(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """Warnings and numbers of any size beside what is read change nothing: the estimate is there, the backup is 0."""
    docs = source.create(KEYSPACE, "docs")
    for number in range(60):
        source.put(KEYSPACE, "docs", f'{{"_id":{number}}}')
    docs.loaded = 60
    source.faults = [{"action": "add_fields", "times": None}]
    result = cli.backup(source)
    assert result.code == 0, result.err
    (record,) = json.loads((cli.snapshots()[0] / "manifest.json").read_text())["collections"]
    assert record["estimated_document_count"] == 60
    result = cli.backup(source, "--check")
    assert result.code == 0, result.out
    assert "no estimate" not in result.out


def test_fields_that_nobody_knows_are_ignored_in_a_restore(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli
) -> None:
    """So it is while it creates, inserts, replaces, reads back and compares."""
    target.create(KEYSPACE, "docs", DENY)
    target.put(KEYSPACE, "docs", '{"_id":"d00003","n":-1}')
    target.faults = [{"action": "add_fields", "times": None}]
    result = cli.restore(target, "--on-existing", "overwrite", "--yes")
    assert result.code == RestoreExit.OK, result.err
    same_documents(origin, target)
    assert "findOneAndReplace" in writes(target)


def test_other_keyspaces_are_named_beside_fields_that_nobody_knows(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """A keyspace that is not there is answered with those that are, whatever else the reply holds."""
    source.faults = [{"action": "add_fields", "times": None}]
    result = cli.backup(source, "--keyspace", "nope")
    assert result.code == 1
    assert "Existing keyspaces: default_keyspace" in result.err


def test_a_definition_keeps_a_number_that_no_float_holds(target: DataApiEmulator, cli: SabotagedCli) -> None:
    """A definition with such a number is backed up, also with --json, and sent to the digit."""
    with DataApiEmulator(token=TOKEN) as source:
        made = source.create(KEYSPACE, "docs")
        made.options["later"] = {"limit": parse(b"1E+400")}
        result = cli.backup(source, "--json")
        assert result.code == 0, result.err
        assert result.json["collections"][0]["name"] == "docs"
        made.options["later"] = {"limit": parse(b"2E+400")}
        assert cli.restore(source, "--compare").code == RestoreExit.DIFFERENT
    cli.restore(target)
    (sent,) = [request.body for request in target.requests if request.command == "createCollection"]
    assert "1E+400" in sent


def test_threads_that_decode_their_first_replies_at_once_do_not_crash() -> None:
    """No process dies when several threads are the first to decode an error, and the first to decode an insert."""
    script = """
import os, sys, threading
import astra_backup, restore
sys.setswitchinterval(1e-6)
error = b'{"data":5,"errors":[{"errorCode":"X"}]}'
status = b'{"status":{"documentResponses":[{"_id":1,"status":"OK"}]}}'
def decode(barrier):
    barrier.wait()
    assert astra_backup.decode_reply(error).errors[0].code == "X"
    assert restore.reply_errors(None, "docs", astra_backup.decode_reply(status), 1) == [None]
for _ in range(60):
    if not (child := os.fork()):
        barrier = threading.Barrier(8)
        threads = [threading.Thread(target=decode, args=[barrier]) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=100)
