"""What `restore.py` creates, completes and drops: never what is somebody else's; what stays behind is named."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from restore import RestoreExit
from tests.conftest import KEYSPACE, TOKEN, Cli, Result
from tests.emulators.data_api import Collection, DataApiEmulator, Reply, Request
from tests.support import (
    DENY,
    DOCS,
    EXTRA,
    OTHER_DENY,
    assert_untouched,
    fill,
    held,
    journals,
    same_documents,
    snapshot_of,
    wait_for,
)

VECTOR = {"vector": {"dimension": 2}, "indexing": {"deny": ["n"]}}
DOWN = {"action": "status", "status": 503, "times": None}


@pytest.fixture(scope="module")
def origin() -> Iterator[DataApiEmulator]:
    """The server that the snapshot of `kept` comes from."""
    with DataApiEmulator(token=TOKEN) as emulator:
        fill(emulator, "points", ['{"_id":"p1","$vector":[0.5,0.25]}'], VECTOR)
        fill(emulator, "settings", DOCS, DENY)
        fill(emulator, "zero", [], DENY)
        yield emulator


def made_by_hand(emulator: DataApiEmulator) -> None:
    """The three collections of the snapshot without documents, each without two of its indexes."""
    for name, definition in (("points", VECTOR), ("settings", DENY), ("zero", DENY)):
        fill(emulator, name, [], definition)
        cripple(emulator, name)


def cripple(emulator: DataApiEmulator, name: str) -> None:
    """What a createCollection leaves whose client has gone."""
    collection = emulator.database.collection(KEYSPACE, name)
    collection.indexes -= set(collection.all_indexes[-2:])


class Interfering(DataApiEmulator):
    """A server on which somebody does something in the moment before a certain request first arrives."""

    def __init__(self, before: bytes, act: Callable[[DataApiEmulator], None]) -> None:
        super().__init__(token=TOKEN)
        self.before: bytes | None = before
        self.act = act

    def reply_to(self, request: Request) -> Reply:
        """Let somebody act, or answer."""
        if self.before and request.body.startswith(self.before):
            self.before = None
            self.act(self)
        return super().reply_to(request)


def add_tables(emulator: DataApiEmulator, *names: str) -> None:
    """Make tables without rows."""
    for name in names:
        emulator.tables.create(KEYSPACE, name, {"id": "text"}, ["id"])


def tables(emulator: DataApiEmulator) -> set[str]:
    """The names of the tables that are there."""
    return set(emulator.tables.schema(KEYSPACE).tables)


def make_table(emulator: DataApiEmulator) -> None:
    """Somebody puts a table where a collection was, or is to be."""
    emulator.drop(KEYSPACE, "settings")
    add_tables(emulator, "settings")


# ------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("policy", ["fail", "skip", "overwrite", "drop"])
@pytest.mark.parametrize("mode", [[], ["--resume"], ["--dry-run"]], ids=["restore", "resume", "dry-run"])
def test_a_table_of_that_name_is_refused_in_the_plan(
    kept: Path, target: DataApiEmulator, cli: Cli, policy: str, mode: list[str]
) -> None:
    """A table with a collection's name: 4, the table named and untouched, nothing sent that writes."""
    add_tables(target, "settings", "unrelated")
    result = cli.restore(target, "--on-existing", policy, "--yes", *mode)
    assert_untouched(target, {}, result, RestoreExit.TARGET_REFUSED)
    assert re.search(r"settings: .*table", result.err)
    assert tables(target) == {"settings", "unrelated"}


def test_a_table_of_another_name_is_in_nobodys_way(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """--rename gets around the table, which stays; so do tables that have nothing to do with it."""
    add_tables(target, "settings")
    result = cli.restore(target, "--rename", "settings=settings2")
    assert result.code == RestoreExit.OK, result.err
    assert tables(target) == {"settings"}
    assert len(target.documents(KEYSPACE, "settings2")) == len(DOCS)
    assert cli.restore(target, "--drill").code == RestoreExit.OK
    assert tables(target) == {"settings"}


def test_a_server_that_knows_no_tables_has_none(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """An older server does not recognize listTables: there is no table in the way."""
    target.faults = [{"command": "listTables", "action": "error", "errorCode": "COMMAND_UNKNOWN", "times": None}]
    assert cli.restore(target).code == RestoreExit.OK
    same_documents(origin, target)


@pytest.mark.parametrize("policy", ["fail", "skip", "overwrite", "drop"])
def test_a_table_that_appears_after_the_plan_stays(kept: Path, cli: Cli, policy: str) -> None:
    """Somebody makes the table in the moment before createCollection: 4, the table stays, ours are gone again."""
    with Interfering(b'{"createCollection":{"name":"settings"', make_table) as target:
        result = cli.restore(target, "--on-existing", policy, "--yes")
        assert result.code == RestoreExit.TARGET_REFUSED, result.err
        assert tables(target) == {"settings"}
        assert held(target) == {}


def test_a_table_that_takes_the_place_of_what_is_to_be_dropped_stays(kept: Path, cli: Cli) -> None:
    """The collection went and a table came since the plan: --on-existing drop drops no table, and says what it did."""
    with Interfering(b'{"deleteCollection":{"name":"points"', make_table) as target:
        for name, definition in (("points", VECTOR), ("settings", DENY)):
            fill(target, name, [EXTRA], definition)
        result = cli.restore(target, "--on-existing", "drop", "--yes")
        assert tables(target) == {"settings"}
        assert result.code == RestoreExit.INCOMPLETE, result.err
        assert re.search(r"settings\b.*table", result.err)
        assert not re.search(r"settings (is|may be) dropped", result.err)


# ------------------------------------------------------------------------------------------------ indexes


@pytest.mark.parametrize("policy", ["fail", "skip", "overwrite"])
def test_missing_indexes_of_what_exists_are_made(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli, policy: str
) -> None:
    """Collections that a creation had left without indexes are completed, in every mode that writes."""
    made_by_hand(target)
    if policy != "fail":
        fill(target, "settings", DOCS[:20], DENY)
        cripple(target, "settings")
    result = cli.restore(target, "--on-existing", policy)
    assert result.code == RestoreExit.OK, result.err
    same_documents(origin, target)


def test_reading_makes_no_indexes(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """A plan and a comparison leave a collection as it is."""
    made_by_hand(target)
    before = held(target)
    assert_untouched(target, before, cli.restore(target, "--dry-run"), RestoreExit.OK)
    assert_untouched(target, before, cli.restore(target, "--compare"), RestoreExit.DIFFERENT)


class Cancelling(DataApiEmulator):
    """A server that ends its client in the middle of a creation: at an index, with a signal."""

    def __init__(self, at: int, number: signal.Signals) -> None:
        super().__init__(token=TOKEN)
        self.at, self.number = at, number
        self.made = 0
        self.making = threading.Lock()
        self.is_over = False
        self.victim: subprocess.Popen[str] | None = None

    def make_index(self, collection: Collection, name: str) -> None:
        """Make it, and end the client if it was the one: then nothing that waits meanwhile is made."""
        is_late = self.is_over
        with self.making:
            if is_late != self.is_over:
                raise ConnectionAbortedError("nobody waits")
            super().make_index(collection, name)
            self.made += 1
            if self.made == self.at:
                wait_for(lambda: self.victim)
                assert self.victim
                self.victim.send_signal(self.number)
                wait_for(lambda: self.victim.poll() is not None)  # type: ignore[union-attr]
                self.is_over = True


def stopped_in(cli: Cli, target: Cancelling, *arguments: object) -> Result:
    """A restore that is ended in the middle of a creation."""
    process = cli.start("restore.py", "--api-endpoint", target.url, *arguments)
    target.victim = process
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


@pytest.mark.parametrize("at", [1, 4, 12, 24])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_creation_that_was_cut_off_is_completed(
    kept: Path, origin: DataApiEmulator, cli: Cli, number: signal.Signals, at: int
) -> None:
    """Ended while the server makes an index: what a signal leaves is told, and --resume makes every index."""
    with Cancelling(at, number) as target:
        result = stopped_in(cli, target)
        assert result.code == (-number if number == signal.SIGKILL else 128 + number)
        assert target.missing_indexes(KEYSPACE)
        if number != signal.SIGKILL:
            for unfinished in target.missing_indexes(KEYSPACE):  # several are on their way at once
                assert re.search(rf"\b{unfinished}\b.*index", result.err)
            assert all(re.search(rf"\b{name}\b", result.err) for name in held(target))
            assert "--resume" in result.err
        result = cli.restore(target, "--resume")
        assert result.code == RestoreExit.OK, result.err
        same_documents(origin, target)
        assert journals(cli) == []


@pytest.mark.parametrize("arguments", [["--resume"], ["--on-existing", "skip"], []], ids=str)
def test_a_creation_that_was_cut_off_is_completed_without_a_journal(
    kept: Path, origin: DataApiEmulator, cli: Cli, arguments: list[str]
) -> None:
    """The journal is lost, and the collection that lacks indexes equals the snapshot: they are made all the same."""
    with Cancelling(4, signal.SIGKILL) as target:
        stopped_in(cli, target, "--collection", "zero")
        for journal in journals(cli):
            journal.unlink()
        result = cli.restore(target, "--collection", "zero", *arguments)
        assert result.code == RestoreExit.OK, result.err
        assert target.missing_indexes(KEYSPACE) == {}
        assert held(target) == {"zero": held(origin)["zero"]}


def test_a_creation_is_waited_for(kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """--request-timeout-ms is for pages and batches: giving up on a creation would cancel it."""
    target.create_s = 2.0
    result = cli.restore(target, "--request-timeout-ms", 400, BACKUP_RETRY_BUDGET="1")
    assert result.code == RestoreExit.OK, result.err
    same_documents(origin, target)
    names = [json.loads(each.body)["createCollection"]["name"] for each in target.requests if "create" in each.command]
    assert sorted(names) == ["points", "settings", "zero"]


# ------------------------------------------------------------------------------------------------ what stays behind


def test_what_may_have_been_created_is_named(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """Creation is done and answered 503 throughout, and so is the clean-up: 2, with the name of what stays."""
    target.faults = [
        {"command": "createCollection", **DOWN, "done": True},
        {"command": "deleteCollection", **DOWN},
    ]
    result = cli.restore(target, "--collection", "settings", BACKUP_RETRY_BUDGET="1")
    assert list(held(target)) == ["settings"]
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert re.search(r"\bsettings\b.*(stay|there)", result.err)
    target.faults = []
    result = cli.restore(target, "--collection", "settings", "--resume")
    assert result.code == RestoreExit.OK, result.err
    assert target.missing_indexes(KEYSPACE) == {}


@pytest.mark.parametrize("look", [False, True], ids=["deaf", "listing"])
def test_what_cannot_be_dropped_again_is_named(kept: Path, target: DataApiEmulator, cli: Cli, look: bool) -> None:
    """Others are refused and the one that was created cannot be dropped, nor looked for: 2, and its name."""
    target.max_collections = 1
    target.faults = [{"command": ["deleteCollection"] if look else ["deleteCollection", "listTables"], **DOWN}]
    if not look:
        target.faults[0].skip = 1
        target.add_fault("status", command="findCollections", status=503, times=None, skip=5)
    result = cli.restore(target, BACKUP_RETRY_BUDGET="1")
    (created,) = held(target)  # whichever came first: several are on their way at once
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert re.search(rf"\b{created}\b.*(stay|there)", result.err)


def test_an_unknown_outcome_is_no_confirmation(kept: Path, cli: Cli) -> None:
    """The request is lost, somebody makes the same, and ours is repeated: refused afterwards, theirs stays."""
    with Interfering(
        b'{"createCollection":{"name":"points"', lambda emulator: fill(emulator, "points", [], VECTOR)
    ) as target:
        target.max_collections = 1
        target.faults = [{"command": "createCollection", "contains": '"name":"points"', "action": "reset"}]
        result = cli.restore(target)
        assert list(held(target)) == ["points"]
        assert result.code == RestoreExit.INCOMPLETE, result.err
        assert re.search(r"\bpoints\b.*(stay|there)", result.err)


@pytest.mark.parametrize("status", [401, 403])
def test_what_was_refused_leaves_nothing(kept: Path, target: DataApiEmulator, cli: Cli, status: int) -> None:
    """A token that may not create: 1 is true, for nothing stays, the first collection included; no journal either."""
    target.faults = [{"command": "createCollection", "skip": 1, "action": "status", "status": status, "times": None}]
    result = cli.restore(target)
    assert result.code == RestoreExit.FAILED, result.err
    assert held(target) == {}
    assert journals(cli) == []


def test_a_trial_that_cannot_be_dropped_again_is_named(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """Before a drop the definition is tried under another name; if that cannot be dropped it is 2, and it is named."""
    fill(target, "settings", [EXTRA], OTHER_DENY)
    target.faults = [{"command": "deleteCollection", **DOWN}]
    result = cli.restore(target, "--on-existing", "drop", "--yes", BACKUP_RETRY_BUDGET="1")
    (scratch,) = held(target).keys() - {"settings"}
    assert target.documents(KEYSPACE, "settings") == [EXTRA]
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert re.search(rf"\b{scratch}\b.*(stay|there)", result.err)


def test_a_drop_that_fails_says_what_is_there(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """The drop never happened: nobody says that the collection is gone, and what was created beside it is named."""
    fill(target, "settings", [EXTRA], DENY)
    target.faults = [{"command": "deleteCollection", **DOWN}]
    result = cli.restore(target, "--on-existing", "drop", "--yes", BACKUP_RETRY_BUDGET="1")
    assert target.documents(KEYSPACE, "settings") == [EXTRA]
    assert "settings dropped" not in result.err
    left = held(target).keys() - {"settings"}
    assert result.code == (RestoreExit.INCOMPLETE if left else RestoreExit.FAILED), result.err
    assert all(re.search(rf"\b{name}\b.*(stay|there)", result.err) for name in left)
    target.faults = []
    assert cli.restore(target, "--on-existing", "drop", "--yes", "--resume").code == RestoreExit.OK


@pytest.mark.parametrize("commands", [["deleteCollection"], ["deleteCollection", "findCollections"]], ids=str)
def test_what_stays_of_a_drill_is_named(kept: Path, target: DataApiEmulator, cli: Cli, commands: list[str]) -> None:
    """A drill that cannot drop its scratch collections, or not even look for them: 2, each by its name."""
    target.faults = [{"command": "deleteCollection", "action": "status", "status": 403, "times": None}]
    if "findCollections" in commands:
        target.add_fault("status", command="findCollections", status=403, times=None, skip=8)
    result = cli.restore(target, "--drill", "-q")
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert len(held(target)) == 3
    assert all(name in result.err for name in held(target))


@pytest.mark.parametrize("command", ["insertMany", "createCollection"])
def test_a_drill_that_is_stopped_names_what_stays(kept: Path, target: DataApiEmulator, cli: Cli, command: str) -> None:
    """SIGTERM while nothing answers any more: within ten seconds, with the names of the scratch collections."""
    target.faults = [{"command": command, "skip": 1, "action": "silence", "times": None}]
    target.add_fault("silence", command="deleteCollection", times=None)
    if command == "insertMany":
        target.faults[0].skip = 0
    running = cli.start("restore.py", "--api-endpoint", target.url, "--drill")
    wait_for(lambda: target.faults[0].fired)
    started = time.monotonic()
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert running.returncode == RestoreExit.TERMINATED
    assert held(target)
    assert all(name in err for name in held(target))


# ------------------------------------------------------------------------------------------------ signals


def many(emulator: DataApiEmulator) -> None:
    """Twenty collections, one of two thousand documents."""
    for number in range(19):
        fill(emulator, f"few{number}", DOCS, DENY)
    fill(emulator, "many", [f'{{"_id":"d{number:05}","n":{number}}}' for number in range(2000)], DENY)


def stopped_with_hanging(process: subprocess.Popen[str], emulator: DataApiEmulator, count: int) -> str:
    """Wait until so many requests hang, send SIGTERM; it ends in time. Returns what it said."""
    wait_for(lambda: emulator.faults[0].fired >= count, 30)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert process.returncode == RestoreExit.TERMINATED
    return err


def test_a_signal_stops_a_backup_while_sixteen_requests_hang(source: DataApiEmulator, cli: Cli) -> None:
    """SIGTERM with sixteen pages under way that never come: 143 within ten seconds, no snapshot."""
    many(source)
    source.faults = [{"command": "find", "action": "silence", "times": None}]
    process = cli.start("astra_backup.py", "--no-box", "--api-endpoint", source.url, "--workers", 16)
    stopped_with_hanging(process, source, 16)
    assert cli.snapshots() == []


@pytest.mark.parametrize("command", ["insertMany", "find"])
def test_a_signal_stops_a_restore_while_sixteen_requests_hang(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, command: str
) -> None:
    """SIGTERM with sixteen batches, or pages of the comparison, under way: 143 in time, and --resume completes it."""
    many(source)
    snapshot_of(source, cli)
    rule = {"command": command, "action": "silence", "times": None}
    target.faults = [rule | ({"collection": "many"} if command == "insertMany" else {})]
    process = cli.start("restore.py", "--api-endpoint", target.url, "--workers", 16)
    err = stopped_with_hanging(process, target, 16)
    assert "--resume" in err
    target.faults = []
    result = cli.restore(target, "--resume")
    assert result.code == RestoreExit.OK, result.err
    same_documents(source, target)


def test_collections_are_created_several_at_once(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Each creation waits for the nodes to agree, so four are on their way at once, never more, and all are whole."""
    for number in range(6):
        fill(source, f"docs{number}", DOCS[:3])
    snapshot_of(source, cli)
    target.create_s = 0.5
    result = cli.restore(target, "--workers", 1)
    assert result.code == 0, result.err
    assert target.most_in_flight == 4
    assert target.missing_indexes(KEYSPACE) == {}
    same_documents(source, target)


def test_creations_that_are_in_each_others_way_are_made_one_by_one(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A server that fails while several collections are created is asked for one after the other: exit 0, all whole."""
    for number in range(3):
        fill(source, f"docs{number}", DOCS[:3])
    snapshot_of(source, cli)
    target.create_s = 0.3
    fault = {"command": "createCollection", "action": "error", "errorCode": "UNEXPECTED_DRIVER_ERROR", "times": 12}
    target.faults = [fault]  # four attempts for each of three
    result = cli.restore(target)
    assert result.code == 0, result.err
    assert "alone" in result.err
    assert target.missing_indexes(KEYSPACE) == {}
    same_documents(source, target)
