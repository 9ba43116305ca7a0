"""`restore.py` under pressure, killed and resumed: nothing is lost, nothing is there twice, and it ends."""

from __future__ import annotations

import json
import random
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from restore import RestoreExit
from tests.conftest import KEYSPACE, TOKEN, Cli, Result
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator, Reply, Request
from tests.support import (
    CHANGED,
    DENY,
    EXTRA,
    assert_untouched,
    fill,
    held,
    inserted,
    journals,
    same_documents,
    snapshot_of,
    writes,
)
from tests.trials.resume import SIZES, Deadly, documents, every_tenth_fails, random_moment, run_until_killed

KILLS = 8
BATCH = 100
WORKERS = 4


@pytest.fixture(scope="module")
def origin() -> Iterator[DataApiEmulator]:
    """The server that the snapshot of `kept` comes from."""
    with DataApiEmulator(token=TOKEN, page_size=500) as emulator:
        for name, count in SIZES.items():
            fill(emulator, name, documents(count), DENY)
        yield emulator


@pytest.fixture
def deadly() -> Iterator[Deadly]:
    """A target that kills."""
    with Deadly() as emulator:
        yield emulator


# ------------------------------------------------------------------------------------------------ killed


def test_a_restore_that_is_killed_again_and_again_ends_equal(
    kept: Path, origin: DataApiEmulator, deadly: Deadly, cli: Cli
) -> None:
    """Killed with SIGKILL at random moments and resumed each time, nothing is missing, extra, different or double."""
    chance = random.Random(5)
    kills = 0
    while kills < KILLS:
        if run_until_killed(cli, deadly, random_moment(chance), "--resume") == 0:
            same_documents(origin, deadly)
            deadly.database.keyspaces[KEYSPACE].clear()
        else:
            kills += 1
    result = cli.restore(deadly, "--resume")
    assert result.code == 0, result.err
    same_documents(origin, deadly)
    assert journals(cli) == []


def test_a_resumed_restore_sends_only_what_was_not_acknowledged(
    kept: Path, origin: DataApiEmulator, deadly: Deadly, cli: Cli
) -> None:
    """The journal spares the batches that are done; only those in flight at the kill may go twice."""
    assert run_until_killed(cli, deadly, 23, is_after=True) == -signal.SIGKILL
    before = len(inserted(deadly))
    assert before > 8 * BATCH
    deadly.requests.clear()
    result = cli.restore(deadly, "--resume")
    assert result.code == 0, result.err
    same_documents(origin, deadly)
    again = before + len(inserted(deadly)) - sum(SIZES.values())
    assert 0 <= again <= (WORKERS + 1) * BATCH


@pytest.mark.parametrize("at", [1, 3, 4, 6, 8, 27])
def test_each_step_can_be_the_last(kept: Path, origin: DataApiEmulator, deadly: Deadly, cli: Cli, at: int) -> None:
    """Killed while planning, creating, writing or comparing: the same command with --resume completes it."""
    assert run_until_killed(cli, deadly, at, is_after=at % 2 == 0) == -signal.SIGKILL
    result = cli.restore(deadly, "--resume")
    assert result.code == 0, result.err
    same_documents(origin, deadly)
    assert journals(cli) == []


def test_without_a_journal_skip_completes_it_too(kept: Path, origin: DataApiEmulator, deadly: Deadly, cli: Cli) -> None:
    """Lost journal: --resume refuses a target that holds documents and names --on-existing skip, which completes."""
    assert run_until_killed(cli, deadly, 16, is_after=True) == -signal.SIGKILL
    (journal,) = journals(cli)
    journal.unlink()
    deadly.requests.clear()
    before = held(deadly)
    result = cli.restore(deadly, "--resume")
    assert_untouched(deadly, before, result, 4)
    assert "--on-existing skip" in result.err
    result = cli.restore(deadly, "--on-existing", "skip")
    assert result.code == 0, result.err
    same_documents(origin, deadly)


def test_forgetting_resume_does_not_spoil_it(kept: Path, origin: DataApiEmulator, deadly: Deadly, cli: Cli) -> None:
    """A run without --resume is refused, as is a plan; the journal is still good afterwards."""
    assert run_until_killed(cli, deadly, 18) == -signal.SIGKILL
    deadly.requests.clear()
    before = held(deadly)
    assert_untouched(deadly, before, cli.restore(deadly), 4)
    assert_untouched(deadly, before, cli.restore(deadly, "--dry-run"), 4)
    assert cli.restore(deadly, "--compare").code == 5
    result = cli.restore(deadly, "--resume")
    assert result.code == 0, result.err
    same_documents(origin, deadly)


def test_resuming_nothing_is_a_first_run(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """--resume with no journal and empty collections restores everything."""
    fill(target, "some", [], DENY)
    result = cli.restore(target, "--resume")
    assert result.code == 0, result.err
    same_documents(origin, target)


@pytest.mark.parametrize("place", [[], ["--from-box"]], ids=["here", "box"])
def test_latest_is_not_another_snapshot_when_resumed(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, box: BoxEmulator, cli: Cli, place: list[str]
) -> None:
    """A backup between a restore that gave up and its --resume: `latest` is refused with the name to give, and that
    name resumes. Where nothing is unfinished, `latest` is the latest.
    """
    assert cli.with_box(box).run("snapshots.py", "upload", kept.name).code == 0
    target.faults = [{"command": "insertMany", "skip": 6, "action": "status", "status": 503, "times": None}]
    assert cli.restore(target, *place, BACKUP_RETRY_BUDGET="1").code == RestoreExit.INCOMPLETE
    target.faults = []
    backup = cli.run("astra_backup.py", "--api-endpoint", origin.url)
    assert backup.code == 0, backup.err
    before = held(target)
    target.requests.clear()
    refused = cli.restore(target, *place, "--resume")
    assert_untouched(target, before, refused, 1)
    assert f"what has not ended is a restore of {kept.name}." in refused.err
    assert f"restore.py {kept.name} --resume" in refused.err
    resumed = cli.restore(target, kept.name, *place, "--resume")
    assert resumed.code == 0, resumed.err
    same_documents(origin, target)
    assert cli.restore(target, *place, "--resume").code == 0


def test_a_copy_is_named_whole_when_latest_is_resumed(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """The name to give is that of the directory, whatever is in it."""
    copy = shutil.copytree(kept, kept.with_name("my-copy"))
    target.faults = [{"command": "insertMany", "skip": 6, "action": "status", "status": 503, "times": None}]
    assert cli.restore(target, copy, BACKUP_RETRY_BUDGET="1").code == RestoreExit.INCOMPLETE
    target.faults = []
    refused = cli.restore(target, "--resume")
    assert refused.code == 1
    assert "a restore of my-copy." in refused.err
    assert "restore.py my-copy --resume" in refused.err
    assert cli.restore(target, "my-copy", "--resume").code == 0


# ------------------------------------------------------------------------------------------------ with other choices


@pytest.mark.parametrize("at", [8, 20], ids=["early", "late"])
@pytest.mark.parametrize("policy", ["skip", "overwrite", "drop"])
def test_each_policy_can_be_resumed(
    kept: Path, origin: DataApiEmulator, deadly: Deadly, cli: Cli, policy: str, at: int
) -> None:
    """What was there before the first run is treated after the kill as it would have been without it."""
    old = [*documents(120)[:-1], EXTRA]
    fill(deadly, "moved", old, DENY)
    fill(deadly, "many", [EXTRA], DENY)  # in nobody's way
    command = [
        "--on-existing",
        policy,
        "--yes",
        "--collection",
        "many",
        "--collection",
        "few",
        "--rename",
        "many=moved",
    ]
    assert run_until_killed(cli, deadly, at, *command) == -signal.SIGKILL
    result = cli.restore(deadly, *command, "--resume")
    assert result.code == 0, result.err
    kept_extra = [] if policy == "drop" else [EXTRA]
    assert sorted(deadly.documents(KEYSPACE, "moved")) == sorted([*documents(SIZES["many"]), *kept_extra])
    assert deadly.documents(KEYSPACE, "many") == [EXTRA]
    same_documents(origin, deadly, ["few"])


def test_a_restore_that_was_killed_when_all_was_done(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """The journal was gone already: --resume finds the target equal and inserts nothing: 0; one that differs: 4."""
    assert cli.restore(target).code == 0
    target.requests.clear()
    before = held(target)
    result = cli.restore(target, "--resume")
    assert result.code == RestoreExit.OK, result.err
    assert set(writes(target)) == {"createCollection"}  # which makes the indexes that are missing
    assert held(target) == before
    target.requests.clear()
    assert "equal" in result.out
    target.put(KEYSPACE, "few", EXTRA)
    before = held(target)
    assert_untouched(target, before, cli.restore(target, "--resume"), RestoreExit.TARGET_REFUSED)


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_a_restore_that_was_killed_when_its_journal_began(
    kept: Path, target: DataApiEmulator, origin: DataApiEmulator, cli: Cli, part: float
) -> None:
    """The journal is empty, or its first line is cut off: nothing was done, and --resume restores all."""
    target.faults = [{"command": "insertMany", "action": "status", "status": 503, "times": None}]
    assert cli.restore(target, BACKUP_RETRY_BUDGET="1").code == RestoreExit.INCOMPLETE
    (journal,) = journals(cli)
    first = journal.read_text().splitlines()[0]
    journal.write_text(first[: round(len(first) * part)])
    target.faults = []
    target.database.keyspaces[KEYSPACE].clear()
    result = cli.restore(target, "--resume")
    assert result.code == 0, result.err
    same_documents(origin, target)
    assert journals(cli) == []


def test_resume_is_no_yes(kept: Path, target: DataApiEmulator, origin: DataApiEmulator, cli: Cli) -> None:
    """--resume confirms nothing that nobody confirmed: no drop, and no writing to where the snapshot came from."""
    fill(target, "few", [EXTRA], DENY)
    before = held(target)
    assert_untouched(target, before, cli.restore(target, "--resume", "--on-existing", "drop"), 4)
    origin.put(KEYSPACE, "few", '{"_id":"d00000","n":"other"}')
    origin.requests.clear()
    before = held(origin)
    assert_untouched(origin, before, cli.restore(origin, "--resume", "--on-existing", "overwrite"), 4)
    origin.put(KEYSPACE, "few", documents(1)[0])


def test_what_was_dropped_once_is_not_dropped_again(kept: Path, deadly: Deadly, cli: Cli) -> None:
    """After the kill a resumed restore keeps what the first run has written."""
    fill(deadly, "many", [EXTRA], DENY)
    command = ["--on-existing", "drop", "--yes", "--collection", "many"]
    assert run_until_killed(cli, deadly, 18, *command) == -signal.SIGKILL
    assert deadly.documents(KEYSPACE, "many")
    deadly.requests.clear()
    assert cli.restore(deadly, *command, "--resume").code == 0
    assert "deleteCollection" not in writes(deadly)


def test_a_journal_elsewhere(kept: Path, origin: DataApiEmulator, deadly: Deadly, cli: Cli) -> None:
    """--journal FILE is used instead, is readable for its owner only, holds no secret, and goes when all is done."""
    journal = cli.directory / "state" / "journal"
    journal.parent.mkdir()
    assert run_until_killed(cli, deadly, 18, "--journal", journal) == -signal.SIGKILL
    assert journals(cli) == []
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    assert TOKEN not in journal.read_text()
    assert all(isinstance(json.loads(line), dict) for line in journal.read_text().splitlines()[:-1])
    deadly.requests.clear()
    result = cli.restore(deadly, "--resume", "--journal", journal)
    assert result.code == 0, result.err
    same_documents(origin, deadly)
    assert not journal.exists()
    assert len(inserted(deadly)) < sum(SIZES.values())


def test_a_journal_that_cannot_be_written_is_found_in_time(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """A bad --journal ends in 1 before anything is written."""
    assert_untouched(target, {}, cli.restore(target, "--journal", "no/such/directory/journal"), 1)
    assert_untouched(target, {}, cli.restore(target, "--journal", "."), 1)


def test_a_journal_without_an_end_is_not_read(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """--resume with a device in the place of the journal ends in 1, not when the memory ends."""
    command = cli.command("restore.py", "--api-endpoint", target.url, "--journal", "/dev/zero", "--resume")
    limited = ["sh", "-c", 'ulimit -v 4000000 && exec "$@"', "sh", *command]
    done = subprocess.run(limited, cwd=cli.directory, env=cli.environ, capture_output=True, text=True)
    assert_untouched(target, {}, Result(done.returncode, done.stdout, done.stderr), 1)
    assert "Cannot write /dev/zero" in done.stderr


def test_nothing_is_all_of_an_empty_snapshot(target: DataApiEmulator, cli: Cli) -> None:
    """--resume of a snapshot without collections finds that the target holds it."""
    with DataApiEmulator(token=TOKEN) as source:
        snapshot_of(source, cli)
    result = cli.restore(target, "--resume")
    assert result.code == 0
    assert "does not hold the whole snapshot" not in result.err


@pytest.mark.parametrize("other", ["keyspace", "snapshot", "choices"])
def test_a_journal_of_another_restore_is_not_believed(
    kept: Path, origin: DataApiEmulator, deadly: Deadly, cli: Cli, other: str
) -> None:
    """Another target, snapshot or choice with the same --journal: refused, or everything is sent; never a gap."""
    journal = cli.directory / "journal"
    assert run_until_killed(cli, deadly, 18, "--journal", journal) == -signal.SIGKILL
    deadly.database.keyspaces["second"] = {}
    arguments: list[object] = ["--keyspace", "second", "--resume", "--journal", journal]
    if other == "snapshot":
        shutil.rmtree(kept)
        snapshot_of(origin, cli)
        arguments = arguments[2:]
        deadly.database.keyspaces[KEYSPACE].clear()
    elif other == "choices":
        arguments = ["--collection", "many", "--rename", "many=second", *arguments[2:]]
    deadly.requests.clear()
    result = cli.restore(deadly, *arguments)
    assert "Traceback" not in result.err
    if result.code != 0:
        assert result.code in (1, 4)
        assert writes(deadly) == []
        assert journal.exists()
    else:
        assert len(inserted(deadly)) >= SIZES["many"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) - 7],
        lambda text: text + '{"collection": "ma',
        lambda text: text[: text.rindex("{")] + "\0" * 40,
        lambda text: "",
        lambda text: text + '{"collection":"many","batch":"x"}\n[]\n7\n{"batch":1}\n',
    ],
    ids=["cut", "half a line", "zeros", "empty", "other rows"],
)
def test_a_damaged_journal_loses_no_document(
    kept: Path, origin: DataApiEmulator, deadly: Deadly, cli: Cli, damage: object
) -> None:
    """A journal cut off by a power failure, or worse: equal in the end, or a refusal that says what to do."""
    assert run_until_killed(cli, deadly, 14) == -signal.SIGKILL
    (journal,) = journals(cli)
    journal.write_text(damage(journal.read_text()))  # type: ignore[operator]
    result = cli.restore(deadly, "--resume")
    assert "Traceback" not in result.err
    if result.code != 0:
        assert result.code in (1, 4), result.err
        result = cli.restore(deadly, "--on-existing", "skip")
        assert result.code == 0, result.err
    same_documents(origin, deadly)


@pytest.mark.parametrize("loss", ["drop", "empty"])
def test_a_target_that_was_cleared_meanwhile_is_noticed(
    kept: Path, origin: DataApiEmulator, deadly: Deadly, cli: Cli, loss: str
) -> None:
    """The journal is no proof: what it takes for done and is not there is restored, or missing and named."""
    assert run_until_killed(cli, deadly, 14) == -signal.SIGKILL
    if loss == "drop":
        deadly.drop(KEYSPACE, "many")
    else:
        deadly.delete_all(KEYSPACE, "many")
    result = cli.restore(deadly, "--resume")
    if result.code == 0:
        same_documents(origin, deadly)
    else:
        assert result.code == RestoreExit.DIFFERENT
        assert "missing" in result.out
        assert cli.restore(deadly, "--on-existing", "skip").code == 0
        same_documents(origin, deadly)


def test_rejects_survive_a_resumption(deadly: Deadly, cli: Cli) -> None:
    """Documents refused before the kill are still in the rejects file afterwards, and it still ends in 2."""
    texts = documents(600)
    texts[5] = '{"_id":"long 1","s":"' + "x" * 8001 + '"}'
    texts[-5] = '{"_id":"long 2","s":"' + "x" * 8001 + '"}'
    with DataApiEmulator(token=TOKEN) as source:
        fill(source, "docs", [], {})
        for text in texts:
            source.put(KEYSPACE, "docs", text)
        snapshot_of(source, cli)
        order = [json.loads(text)["_id"] for text in source.documents(KEYSPACE, "docs")]
    batches = sorted(order.index(name) // BATCH for name in ("long 1", "long 2"))
    rejects = cli.backups / "rejects-docs.jsonl"
    for at in range(6, 12):  # until the first is rejected and the second is not
        deadly.database.keyspaces[KEYSPACE].clear()
        rejects.unlink(missing_ok=True)
        for journal in journals(cli):
            journal.unlink()
        assert run_until_killed(cli, deadly, at, "--workers", 1, is_after=True) == -signal.SIGKILL
        if rejects.exists():
            break
    assert batches[0] < batches[1]
    result = cli.restore(deadly, "--resume", "--workers", 1)
    assert result.code == RestoreExit.INCOMPLETE, result.out
    found = [json.loads(line)["document"]["_id"] for line in rejects.read_text().splitlines()]
    assert sorted(set(found)) == ["long 1", "long 2"]
    assert len(deadly.documents(KEYSPACE, "docs")) == 598


def test_refused_documents_are_sent_again(target: DataApiEmulator, cli: Cli) -> None:
    """--resume sends what was refused once more; counts and the rejects file are those of the documents, each once."""
    texts = documents(250)
    with DataApiEmulator(token=TOKEN) as source:
        fill(source, "docs", texts, DENY)
        snapshot_of(source, cli)
        refusal = {"command": "insertMany", "action": "error", "errorCode": "SHRED_DOC_LIMIT_VIOLATION", "times": None}
        rules = [refusal | {"contains": f'"{name}"'} for name in ("d00005", "d00205")]
        rejects = cli.backups / "rejects-docs.jsonl"
        for refused, inserted_now, arguments in (
            (2, 248, []),
            (2, 0, ["--resume"]),
            (1, 1, ["--resume"]),
            (0, 1, ["--resume"]),
        ):
            target.faults = rules[:refused]
            result = cli.restore(target, "--json", *arguments)
            assert result.code == (RestoreExit.INCOMPLETE if refused else RestoreExit.OK), result.err
            (row,) = result.json["collections"]
            assert (row["rejected"], row["inserted"]) == (refused, inserted_now)
            assert row["already_there"] == 250 - refused - inserted_now
            found = (
                [json.loads(line)["document"]["_id"] for line in rejects.read_text().splitlines()] if refused else []
            )
            assert sorted(found) == ["d00005", "d00205"][:refused]
        assert not rejects.exists()
        same_documents(source, target)


def test_a_stopped_restore_is_resumed(kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """SIGTERM leaves a journal to go on with."""
    target.faults = [{"command": "insertMany", "skip": 3, "action": "delay", "seconds": 0.5, "times": None}]
    running = cli.start("restore.py", "--api-endpoint", target.url)
    deadline = time.monotonic() + 20
    while len(inserted(target)) < 3 * BATCH and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=12)
    assert running.returncode == RestoreExit.TERMINATED
    target.faults = []
    result = cli.restore(target, "--resume")
    assert result.code == 0, result.err
    same_documents(origin, target)


def test_a_service_that_was_down_is_gone_on_with(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A restore that gave up with 2 keeps its journal; --resume sends the rest."""
    target.faults = [{"command": "insertMany", "skip": 6, "action": "status", "status": 503, "times": None}]
    assert cli.restore(target, BACKUP_RETRY_BUDGET="1").code == RestoreExit.INCOMPLETE
    assert len(journals(cli)) == 1
    target.faults = []
    target.requests.clear()
    result = cli.restore(target, "--resume")
    assert result.code == 0, result.err
    same_documents(origin, target)
    assert len(inserted(target)) < sum(SIZES.values())
    assert journals(cli) == []


# ------------------------------------------------------------------------------------------------ unknown outcomes


def test_every_lost_reply_is_asked_again_and_equal_is_done(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """Every second insert is stored and its reply lost: no document is different, and none is asked for in a crowd."""
    target.faults = [{"command": "insertMany", "action": "reset_after", "every": 2}]
    result = cli.restore(target, "--json", BACKUP_RETRY_BUDGET="60")
    assert result.code == 0, result.err
    same_documents(origin, target)
    asked = [json.loads(request.body)["find"] for request in target.requests if request.command == "find"]
    groups = [len(find["filter"]["_id"]["$in"]) for find in asked if find["filter"]]
    assert groups
    assert max(groups) <= 100


def test_a_reply_that_never_comes_is_given_up(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A request without an answer is sent again after --request-timeout-ms."""
    target.faults = [{"command": "insertMany", "action": "silence", "skip": 1, "times": 2}]
    result = cli.restore(target, "--request-timeout-ms", "700", BACKUP_RETRY_BUDGET="30")
    assert result.code == 0, result.err
    same_documents(origin, target)


def test_ids_in_another_spelling_end(target: DataApiEmulator, cli: Cli) -> None:
    """Snapshots of older scripts spell ids as Python does; the server's spelling is the same id, twice over."""
    import gzip

    snapshot = cli.backups / "20250101_000000"
    snapshot.mkdir(parents=True)
    lines = ['{"_id": "\\u00fc", "n": 1}', '{"_id": 100.0}', '{"_id": 1.50}', '{"_id": "a\\/b"}']
    (snapshot / "docs.jsonl.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    record = {"name": "docs", "status": "ok", "definition": {}, "data_file": "docs.jsonl.gz", "compressed": True}
    record["document_count"] = len(lines)
    (snapshot / "manifest.json").write_text(json.dumps({"backup_format_version": "1.0", "collections": [record]}))
    for arguments in ([], ["--on-existing", "skip"], ["--on-existing", "overwrite"]):
        running = cli.start("restore.py", "--api-endpoint", target.url, *arguments)
        try:
            out, err = running.communicate(timeout=15)
        finally:
            running.kill()
        assert running.returncode == 0, out + err
    assert sorted(target.documents(KEYSPACE, "docs")) == [
        '{"_id":"a/b"}',
        '{"_id":"ü","n":1}',
        '{"_id":1.5}',
        '{"_id":1E+2}',
    ]


def test_a_document_that_comes_and_goes_does_not_hold_up_the_rest(
    kept: Path, target: DataApiEmulator, cli: Cli
) -> None:
    """A server that says "exists" and never shows the document is not asked for ever."""
    refusal = {"id": "x", "family": "REQUEST", "scope": "DOCUMENT", "errorCode": "DOCUMENT_ALREADY_EXISTS"}
    reply = {
        "status": {"documentResponses": [{"status": "ERROR", "errorsIdx": 0}] * SIZES["few"]},
        "errors": [{**refusal, "title": "exists", "message": "it exists"}],
    }
    rule = {"command": "insertMany", "collection": "few", "action": "other_json", "json": reply, "times": None}
    target.faults = [rule]
    running = cli.start("restore.py", "--api-endpoint", target.url, "--collection", "few", BACKUP_RETRY_BUDGET="2")
    try:
        running.communicate(timeout=20)
    finally:
        running.kill()
    assert running.returncode in (2, 5)


# ------------------------------------------------------------------------------------------------ pressure


def test_every_tenth_request_may_fail(target: DataApiEmulator, cli: Cli) -> None:
    """Six thousand documents through a server that fails every tenth request in one of six ways: 0, and equal."""
    with DataApiEmulator(token=TOKEN, page_size=500) as source:
        fill(source, "docs", documents(6000), DENY)
        snapshot_of(source, cli)
        target.page_size = 100
        target.faults = every_tenth_fails("insertMany") + every_tenth_fails("find")
        result = cli.restore(target, "--workers", 8, BACKUP_RETRY_BUDGET="120")
        assert result.code == 0, result.err
        assert all(fault.fired for fault in target.faults)
        same_documents(source, target)


class Crowded(DataApiEmulator):
    """A server that takes so many inserts at once and answers 429 to more; counts how many were in flight at most."""

    def __init__(self, room: int) -> None:
        super().__init__(token=TOKEN, page_size=500, latency_s=0.03)
        self.room = room
        self.inserting = self.most = self.refused = 0
        self.lock = threading.Lock()

    def reply_to(self, request: Request) -> Reply:
        """Answer, or refuse."""
        if not request.body.startswith(b'{"insertMany"'):
            return super().reply_to(request)
        with self.lock:
            self.inserting += 1
            self.most = max(self.most, self.inserting)
            is_refused = self.inserting > self.room
            self.refused += is_refused
        try:
            return Reply(429) if is_refused else super().reply_to(request)
        finally:
            with self.lock:
                self.inserting -= 1


def test_batches_in_flight_adapt_to_the_server(kept: Path, origin: DataApiEmulator, cli: Cli) -> None:
    """A server with room for two is found by a restore that may send sixteen at once; few requests are in vain."""
    with Crowded(room=2) as target:
        result = cli.restore(target, "--workers", 16, BACKUP_RETRY_BUDGET="60")
        assert result.code == 0, result.err
        same_documents(origin, target)
        assert target.refused <= sum(SIZES.values()) / BATCH


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_bound_the_batches_in_flight(kept: Path, cli: Cli, workers: int) -> None:
    """Never more than --workers inserts are under way, and an unpressed server sees more than one."""
    with Crowded(room=99) as target:
        assert cli.restore(target, "--workers", workers).code == 0
        assert target.most <= workers
        assert target.most > 1 or workers == 1


class Narrow(DataApiEmulator):
    """A server behind a gateway that takes no body of more than so many bytes."""

    limit = 20_000

    def reply_to(self, request: Request) -> Reply:
        """413, or an answer."""
        return Reply(413) if len(request.body) > self.limit else super().reply_to(request)


def test_a_413_halves_the_batch(cli: Cli) -> None:
    """Batches shrink until they pass; a document that alone is too large is rejected, the others are there: 2."""
    texts = [f'{{"_id":"d{number:03}","s":"{"x" * 1000}"}}' for number in range(150)]
    with DataApiEmulator(token=TOKEN) as source, Narrow(token=TOKEN) as target:
        fill(source, "docs", texts, {"indexing": {"deny": ["*"]}})
        snapshot_of(source, cli)
        assert cli.restore(target).code == 0
        same_documents(source, target)
        source.put(KEYSPACE, "docs", '{"_id":"large","s":"' + "x" * 30_000 + '"}')
        target.drop(KEYSPACE, "docs")
        shutil.rmtree(cli.snapshots()[-1])
        snapshot_of(source, cli)
        result = cli.restore(target)
        assert result.code == RestoreExit.INCOMPLETE, result.err
        assert sorted(target.documents(KEYSPACE, "docs")) == texts
        (row,) = [json.loads(line) for line in (cli.backups / "rejects-docs.jsonl").read_text().splitlines()]
        assert row["document"]["_id"] == "large"
        assert "413" in row["code"] + row["message"]


def test_requests_stay_within_the_limits(cli: Cli, target: DataApiEmulator) -> None:
    """No insert has more than 100 documents or 4 MB, whatever the size of the documents; one alone may be larger."""
    with DataApiEmulator(token=TOKEN) as source:
        texts = [f'{{"_id":{number},"s":"{"x" * (number % 7 * 300_000)}"}}' for number in range(30)]
        fill(source, "big", texts, {"indexing": {"deny": ["*"]}})
        fill(source, "small", documents(250))
        snapshot_of(source, cli)
        assert cli.restore(target).code == 0
        same_documents(source, target)
    bodies = [request.body for request in target.requests if request.command == "insertMany"]
    assert max(map(len, bodies)) <= 4_000_200
    assert max(len(json.loads(body)["insertMany"]["documents"]) for body in bodies) <= 100


def test_a_refused_request_is_bisected_to_its_document(cli: Cli, target: DataApiEmulator) -> None:
    """One document for which the server refuses the whole request is found in some twenty requests, not a hundred."""
    with DataApiEmulator(token=TOKEN) as source:
        fill(source, "docs", [*documents(99), '{"_id":"bad","n":' + "1" * 101 + "}"])
        snapshot_of(source, cli)
    result = cli.restore(target)
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert len(target.documents(KEYSPACE, "docs")) == 99
    assert writes(target).count("insertMany") < 20
    path = cli.backups / "rejects-docs.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (row,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert row["document"]["_id"] == "bad"
    assert row["code"]
    assert row["message"]


def run_result(cli: Cli, process: subprocess.Popen[str]) -> Result:
    """What a started command did."""
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


def test_a_database_that_goes_away_is_an_error_that_can_be_resumed(
    kept: Path, origin: DataApiEmulator, cli: Cli
) -> None:
    """The server stops in the middle and is back later: 2, then --resume ends in 0."""
    with DataApiEmulator(token=TOKEN, latency_s=0.02, page_size=500) as target:
        process = cli.start("restore.py", "--api-endpoint", target.url, BACKUP_RETRY_BUDGET="1")
        deadline = time.monotonic() + 20
        while len(inserted(target)) < 3 * BATCH and time.monotonic() < deadline:
            time.sleep(0.01)
        target.stop()
        result = run_result(cli, process)
        assert result.code in (1, 2), result.err
        assert "Traceback" not in result.err
        target.start()
        target.latency_s = 0
        result = cli.restore(target, "--resume")
        assert result.code == 0, result.err
        same_documents(origin, target)


def test_two_restores_at_once_do_no_harm(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """Somebody else runs the same restore: both end, and every document is there once."""
    target.latency_s = 0.005
    processes = [
        cli.start("restore.py", "--api-endpoint", target.url, "--on-existing", "skip", "--journal", f"journal {number}")
        for number in range(2)
    ]
    results = [run_result(cli, process) for process in processes]
    assert [result.code for result in results] == [0, 0], results[0].err + results[1].err
    same_documents(origin, target)


def test_a_second_restore_leaves_the_journal_of_the_first_alone(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, deadly: Deadly, cli: Cli
) -> None:
    """While one runs, another of the same snapshot, to wherever, ends in 4 and is told what to do."""
    deadly.latency_s = 0.1
    process = cli.start("restore.py", "--api-endpoint", deadly.url)
    while not inserted(deadly):
        time.sleep(0.01)
    deadly.latency_s = 1.0
    result = cli.restore(target)
    assert_untouched(target, {}, result, 4)
    assert "--journal" in result.err
    assert_untouched(target, {}, cli.restore(target, "--resume"), 1)
    assert cli.restore(target, "--journal", "other").code == 0
    deadly.victim = process
    deadly.kill()
    process.communicate(timeout=60)
    assert journals(cli)
    deadly.latency_s = 0
    result = cli.restore(deadly, "--resume")
    assert result.code == 0, result.err
    same_documents(origin, deadly)


def test_a_changed_document_is_overwritten_after_a_kill(kept: Path, deadly: Deadly, cli: Cli) -> None:
    """What overwrite had not reached when it was killed is overwritten by the resumed run."""
    fill(deadly, "some", [CHANGED.replace("d001", "d00001"), *documents(3)[2:]], DENY)
    command = ["--on-existing", "overwrite", "--collection", "some"]
    assert run_until_killed(cli, deadly, 5, *command) == -signal.SIGKILL
    result = cli.restore(deadly, *command, "--resume")
    assert result.code == 0, result.err
    assert sorted(deadly.documents(KEYSPACE, "some")) == documents(SIZES["some"])


# ------------------------------------------------------------------------------------------------ somebody else


class Busy(DataApiEmulator):
    """A server on which somebody makes a collection in the moment before a certain command arrives (the n-th time)."""

    def __init__(self, name: str, definition: dict, *, before: bytes, time: int = 1) -> None:
        super().__init__(token=TOKEN, page_size=500)
        self.theirs = (name, definition)
        self.before, self.times = before, time
        self.busy = threading.Lock()

    def reply_to(self, request: Request) -> Reply:
        """Make it, or answer."""
        with self.busy:
            self.times -= request.body.startswith(self.before)
            if self.times == 0:
                self.times = -1
                fill(self, *self.theirs[:1], ['{"_id":"theirs"}'], self.theirs[1])
        return super().reply_to(request)


OTHER = {"indexing": {"deny": ["x"]}}
CREATE_MANY = b'{"createCollection":{"name":"many"'


@pytest.mark.parametrize("policy", ["fail", "skip", "overwrite", "drop"])
@pytest.mark.parametrize("definition", [OTHER, DENY], ids=["other", "same"])
def test_what_somebody_made_since_the_plan_is_never_dropped(
    kept: Path, cli: Cli, policy: str, definition: dict
) -> None:
    """A collection that appears after the plan was made stays, with its documents; filled only if that was asked."""
    with Busy("some", definition, before=b'{"findCollections"', time=2) as target:  # the first look after the plan's
        result = cli.restore(target, "--on-existing", policy, "--yes")
        theirs = target.documents(KEYSPACE, "some")
        assert '{"_id":"theirs"}' in theirs
        if definition == DENY and policy in ("skip", "overwrite"):
            assert result.code == RestoreExit.OK, result.err
            assert len(theirs) == SIZES["some"] + 1
        else:
            assert result.code == RestoreExit.TARGET_REFUSED, result.err
            assert "somebody else" in result.err
            assert list(held(target)) == ["some"]
            assert theirs == ['{"_id":"theirs"}']


@pytest.mark.parametrize("definition", [OTHER, DENY], ids=["other", "same"])
def test_what_appears_with_the_very_request_is_never_dropped(kept: Path, cli: Cli, definition: dict) -> None:
    """Made by somebody between the last look and our request, and the restore is refused: it stays as it is."""
    with Busy("many", definition, before=CREATE_MANY) as target:
        target.max_collections = 2  # theirs does not count: it is made behind the server's back
        result = cli.restore(target)
        assert result.code == RestoreExit.TARGET_REFUSED, result.err
        assert target.documents(KEYSPACE, "many") == ['{"_id":"theirs"}']
        assert list(held(target)) == ["many"]


def test_a_collection_that_is_gone_is_restored_from_its_start(
    kept: Path, origin: DataApiEmulator, deadly: Deadly, cli: Cli
) -> None:
    """What the journal says of a collection that was dropped after the kill is forgotten, also by a run after that."""
    assert run_until_killed(cli, deadly, 24) == -signal.SIGKILL
    assert inserted(deadly)
    for name in held(deadly):
        deadly.drop(KEYSPACE, name)
    assert run_until_killed(cli, deadly, 24, "--resume") == -signal.SIGKILL
    result = cli.restore(deadly, "--resume")
    assert result.code == RestoreExit.OK, result.err
    same_documents(origin, deadly)


def test_a_resumed_restore_that_is_refused_can_be_resumed(
    kept: Path, origin: DataApiEmulator, deadly: Deadly, cli: Cli
) -> None:
    """A collection cannot be made anew: 4; what the first run has inserted is not sent again when there is room."""
    assert run_until_killed(cli, deadly, 24) == -signal.SIGKILL
    assert len(inserted(deadly)) > BATCH
    deadly.drop(KEYSPACE, "some")
    deadly.max_collections = 3
    assert cli.restore(deadly, "--resume").code == RestoreExit.TARGET_REFUSED
    deadly.max_collections = 5
    deadly.requests.clear()
    result = cli.restore(deadly, "--resume")
    assert result.code == RestoreExit.OK, result.err
    assert "nothing to resume" not in result.err
    same_documents(origin, deadly)


def test_what_a_refused_run_took_away_is_not_ours_any_more(kept: Path, deadly: Deadly, cli: Cli) -> None:
    """Two collections are gone, only one could be made; somebody makes the other: the next --resume leaves it alone."""
    assert run_until_killed(cli, deadly, 24) == -signal.SIGKILL
    for name in ("few", "some"):
        deadly.drop(KEYSPACE, name)
    deadly.max_collections = 3
    assert cli.restore(deadly, "--resume").code == RestoreExit.TARGET_REFUSED
    deadly.max_collections = 5
    fill(deadly, "few", ['{"_id":"theirs"}'], DENY)
    result = cli.restore(deadly, "--resume")
    assert result.code == RestoreExit.TARGET_REFUSED, result.err
    assert deadly.documents(KEYSPACE, "few") == ['{"_id":"theirs"}']


# ------------------------------------------------------------------------------------------------ some of a batch


class Weak(DataApiEmulator):
    """A server that fails for documents of an insert with an error that may pass, for each another number of times."""

    def __init__(self, failures: int) -> None:
        super().__init__(token=TOKEN, page_size=500)
        self.failures = failures
        self.tried: dict[object, int] = {}

    def reply_to(self, request: Request) -> Reply:
        """Insert those whose time has come, and put the others' errors into the reply."""
        if not request.body.startswith(b'{"insertMany"'):
            return super().reply_to(request)
        body = json.loads(request.body)
        documents = body["insertMany"]["documents"]
        weak = []
        for document in documents:
            self.tried[document["_id"]] = self.tried.get(document["_id"], 0) + 1
            weak.append(self.tried[document["_id"]] <= document["n"] % (self.failures + 1))
        body["insertMany"]["documents"] = [each for each, is_weak in zip(documents, weak, strict=True) if not is_weak]
        rows, errors = iter([]), []
        if body["insertMany"]["documents"]:
            reply = json.loads(super().reply_to(Request(**{**vars(request), "body": json.dumps(body).encode()})).body)
            rows, errors = iter(reply["status"]["documentResponses"]), reply.get("errors", [])
        failed = {"status": "ERROR", "errorsIdx": len(errors)}
        errors += [{"errorCode": "TIMEOUT_WRITING_DATA", "message": "the replicas did not answer"}] * any(weak)
        responses = [
            {"_id": each["_id"], **failed} if is_weak else next(rows)
            for each, is_weak in zip(documents, weak, strict=True)
        ]
        found = {"status": {"documentResponses": responses}} | ({"errors": errors} if errors else {})
        return Reply(body=json.dumps(found).encode())


def test_documents_that_fail_for_a_while_are_waited_for(kept: Path, origin: DataApiEmulator, cli: Cli) -> None:
    """Documents fail up to nine times with a timeout, while others go in: they are sent again, and none is rejected."""
    with Weak(failures=9) as target:
        result = cli.restore(target, "--collection", "some", BACKUP_RETRY_BUDGET="60")
        assert result.code == RestoreExit.OK, result.err
        assert len(target.documents(KEYSPACE, "some")) == SIZES["some"]
        assert not list(cli.backups.glob("rejects-*"))


def test_documents_that_fail_until_the_budget_ends_are_resumed(kept: Path, cli: Cli) -> None:
    """The service stays weak: 2 and no rejects, for nothing was refused; --resume brings the rest when it is well."""
    with Weak(failures=10**6) as target:
        target.tried = {f"d{number:05}": -number % 30 for number in range(300)}
        result = cli.restore(target, "--collection", "some", BACKUP_RETRY_BUDGET="1")
        assert result.code == RestoreExit.INCOMPLETE, result.err
        assert not list(cli.backups.glob("rejects-*"))
        target.failures = 0
        result = cli.restore(target, "--collection", "some", "--resume")
        assert result.code == RestoreExit.OK, result.err
        assert len(target.documents(KEYSPACE, "some")) == SIZES["some"]


class Grudging(DataApiEmulator):
    """A server that answers findOneAndReplace with a status and an error."""

    def __init__(self, code: str, times: int) -> None:
        super().__init__(token=TOKEN, page_size=500)
        self.code, self.times = code, times

    def reply_to(self, request: Request) -> Reply:
        """Refuse so many times."""
        if not request.body.startswith(b'{"findOneAndReplace"') or self.times == 0:
            return super().reply_to(request)
        self.times -= 1
        status = {"matchedCount": 0, "modifiedCount": 0}
        error = {"errorCode": self.code, "message": "not now"}
        return Reply(body=json.dumps({"data": {"document": None}, "status": status, "errors": [error]}).encode())


@pytest.mark.parametrize(
    ("code", "times", "expected"),
    [
        ("FAILED_CONCURRENT_OPERATIONS", 2, RestoreExit.OK),
        ("SHRED_DOC_LIMIT_VIOLATION", -1, RestoreExit.INCOMPLETE),
    ],
)
def test_an_error_beside_a_status_is_an_error(
    kept: Path, cli: Cli, code: str, times: int, expected: RestoreExit
) -> None:
    """A replacement that failed is tried again, or is in the rejects file with the server's reason."""
    with Grudging(code, times) as target:
        fill(target, "few", ['{"_id":"d00001","n":-1}'], DENY)
        result = cli.restore(target, "--collection", "few", "--on-existing", "overwrite", "--yes")
        assert result.code == expected, result.err
        assert (cli.backups / "rejects-few.jsonl").exists() == (expected is RestoreExit.INCOMPLETE)
        assert ('{"_id":"d00001","n":1}' in target.documents(KEYSPACE, "few")) == (expected is RestoreExit.OK)


# ------------------------------------------------------------------------------------------------ digits and keys


def test_numbers_of_a_definition_keep_their_digits(cli: Cli, target: DataApiEmulator) -> None:
    """A definition's long number is sent as it was, and a target that keeps another one is refused."""
    long = "12345678901234567890.123456789"
    with DataApiEmulator(token=TOKEN) as source:
        fill(source, "docs", ['{"_id":1}'], {"indexing": {"deny": ["*"]}})
        snapshot = snapshot_of(source, cli)
    manifest = snapshot / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"deny":', f'"x": {long}, "deny":', 1))
    sums = snapshot / "SHA256SUMS"
    subprocess.run(f"sha256sum $(cut -c67- {sums}) > new && mv new {sums.name}", shell=True, check=True, cwd=snapshot)
    cli.restore(target)
    (sent,) = [request.body for request in target.requests if request.command == "createCollection"]
    assert long.encode() in (sent if isinstance(sent, bytes) else str(sent).encode())


def test_an_id_is_the_same_however_it_is_spelt(cli: Cli, target: DataApiEmulator) -> None:
    """A UUID that a server spells with an escape is the same id: a restore of it ends equal."""
    uuid = "6f1ed0a1-1f0d-4b3b-9d9f-5b3c1d2e3f40"
    with DataApiEmulator(token=TOKEN) as source:
        fill(source, "docs", ['{"_id":{"$uuid":"\\u0036' + uuid[1:] + '"},"a":1}'], DENY)
        snapshot_of(source, cli)
    fill(target, "docs", ['{"_id":{"$uuid":"' + uuid + '"},"a":1}'], DENY)
    result = cli.restore(target, "--on-existing", "skip", "--yes")
    assert result.code == RestoreExit.OK, result.err


# ------------------------------------------------------------------------------------------------ one document


def test_a_document_is_shown_to_the_byte_or_not_at_all(cli: Cli) -> None:
    """--show writes what the server held, whatever the locale and the token; output that is cut off is an error."""
    text = '{"_id":"x","text":"😀ü cassandra test ' + "x" * 300_000 + '"}'
    with DataApiEmulator(token=TOKEN) as source:
        fill(source, "docs", [text], DENY)
        snapshot_of(source, cli)
    odd = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": "1", "ASTRA_DB_APPLICATION_TOKEN": "test"}
    command = cli.command("restore.py", "--show", "x")

    def show(stdout: int) -> subprocess.CompletedProcess[bytes]:
        environ = cli.environ | odd
        return subprocess.run(
            command, env=environ, cwd=cli.directory, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=60
        )

    shown = show(subprocess.PIPE)
    assert shown.returncode == RestoreExit.OK
    assert shown.stdout == text.encode() + b"\n"
    with open("/dev/full", "wb") as full:
        cut = show(full.fileno())
    assert cut.returncode == RestoreExit.FAILED
    assert b"could not be printed" in cut.stderr
