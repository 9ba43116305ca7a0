"""The scheduler's and the monitor's side: retention by command line, the shrink alarm, status, pings, metrics, logs,
and what a person sees on a terminal.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import astra_backup
from tests.clockwork import Clockwork
from tests.conftest import BOX_SECRET, KEYSPACE, ROOT, TOKEN, Cli, Result, assert_no_secret, load_catalog
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.screens import Screen, watch
from tests.screens import fill as fill_many
from tests.support import PING_KEY, Monitor

CLOCKWORK: list[Clockwork] = []


def fill(emulator: DataApiEmulator, name: str, count: int) -> None:
    """A collection of small documents."""
    emulator.create(KEYSPACE, name)
    for number in range(count):
        emulator.put(KEYSPACE, name, f'{{"_id":"d{number:05}","n":{number}}}')


@pytest.fixture(scope="module", autouse=True)
def _clockwork() -> Iterator[None]:
    """One process for all runs under another clock."""
    with Clockwork() as clockwork:
        CLOCKWORK.append(clockwork)
        yield
    CLOCKWORK.clear()


def run_at(cli: Cli, moment: datetime, *arguments: object, **environ: str) -> Result:
    """astra_backup.py under a clock that is at `moment` when it starts, and goes on from there."""
    env = cli.environ | environ
    code, out, err = CLOCKWORK[0].run([*map(str, arguments)], moment=moment, cwd=cli.directory, env=env)
    assert_no_secret(out + err)
    assert PING_KEY not in out + err
    return Result(code, out, err)


def names(cli: Cli) -> list[str]:
    """The snapshots here."""
    return [path.name for path in cli.snapshots()]


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    """A monitor that takes pings."""
    made = Monitor()
    yield made
    made.ended.set()
    made.server.shutdown()
    made.server.server_close()


def read_metrics(path: Path) -> dict[str, float]:
    """A metrics file, parsed by the rules of the text format; each sample must have its HELP and TYPE before it."""
    found: dict[str, float] = {}
    announced: set[str] = set()
    text = path.read_text()
    assert text.endswith("\n")
    for line in text.splitlines():
        if match := re.fullmatch(r"# (HELP|TYPE) (\w+) (.+)", line):
            announced.add(f"{match[1]} {match[2]}")
            continue
        match = re.fullmatch(
            r'astra_backup_(\w+)((?:\{collection="(?:[^"\\\n]|\\["\\n])*"\})?) (-?[0-9.]+(?:e\+[0-9]+)?)', line
        )
        assert match, line
        assert {f"HELP astra_backup_{match[1]}", f"TYPE astra_backup_{match[1]}"} <= announced
        assert match[1] + match[2] not in found, "a sample is there twice"
        found[match[1] + match[2]] = float(match[3])
    return found


# ------------------------------------------------------------------------------------------------ a month of nights


SETTINGS = {
    "BACKUP_KEEP_LAST": "3",
    "BACKUP_KEEP_WEEKLY": "3",
    "BACKUP_BOX_KEEP_DAILY": "5",
    "BACKUP_BOX_KEEP_MONTHLY": "2",
    "BACKUP_METRICS_FILE": "metrics/astra.prom",
}
FAILURES = {4: 2, 9: 3, 11: 4, 16: 5, 19: 1, 22: 2, 26: 3}
"""Days of June 2026 on which something goes wrong, and the exit code."""


class Month:
    """Thirty nights, one run each, as a scheduler would start them."""

    def __init__(self, cli: Cli, source: DataApiEmulator, box: BoxEmulator, monitor: Monitor) -> None:
        self.cli, self.source, self.box, self.monitor = cli.with_box(box), source, box, monitor
        self.metrics = cli.directory / "metrics" / "astra.prom"
        self.metrics.parent.mkdir()
        self.documents = {"assets": 0, "docs": 0}

    def night(self, day: int) -> Result:
        """The run of a day, with the failure that the table has for it."""
        moment = datetime(2026, 6, day, 3, 0, 5, tzinfo=UTC)
        environ = SETTINGS | {"ASTRA_DB_API_ENDPOINT": self.source.url, "BACKUP_PING_URL": self.monitor.url}
        code = FAILURES.get(day)
        self.box.can_upload = code != 3
        self.source.faults = []
        if code == 2:
            self.source.add_fault("error", command="find", collection="assets", times=None, errorCode="INVALID_QUERY")
        if code == 1:
            environ["ASTRA_DB_APPLICATION_TOKEN"] = "AstraCS:expired"
        if code == 5:
            self.source.delete_all(KEYSPACE, "docs")
            self.documents["docs"] = 0
        with (self.cli.backups / ".lock").open("w") if code == 4 else open(os.devnull) as lock:
            if code == 4:
                fcntl.flock(lock, fcntl.LOCK_EX)
            return run_at(self.cli, moment, "--json", **environ)


def test_a_month_of_nights(source: DataApiEmulator, box: BoxEmulator, cli: Cli, monitor: Monitor) -> None:
    """Thirty nightly runs, failing in each way: what is left here and in Box, the metrics and the pings are right
    after each night.
    """
    month = Month(cli, source, box, monitor)
    fill(source, "assets", 20)
    fill(source, "docs", 8)
    month.documents |= {"assets": 20, "docs": 8}
    success: float | None = None
    complete: dict[str, float] = {}
    stored: set[str] = set()
    for day in range(1, 31):
        result = month.night(day)
        code = FAILURES.get(day, 0)
        assert result.code == code, f"{day}: {result.err}"
        assert result.json["exit_code"] == code
        # pings
        bodies = [body for _, body in monitor.pings]
        assert monitor.paths() == ["/start", f"/{code}" if code else ""]
        assert bodies[0] == ""
        expected = {2: "INCOMPLETE", 3: "NOT in Box", 4: "Another run", 5: "SHRUNK", 1: "401"}.get(code, "complete, in")
        assert expected in bodies[1]
        # metrics
        metrics = read_metrics(month.metrics)
        night = datetime(2026, 6, day, 3, 0, 5, tzinfo=UTC).timestamp()
        assert night <= metrics["last_run_timestamp_seconds"] <= night + 60
        assert metrics["last_run_exit_code"] == code
        assert 0 < metrics["last_run_duration_seconds"] < 60
        success = metrics["last_run_timestamp_seconds"] if code == 0 else success
        assert metrics["last_success_timestamp_seconds"] == success
        if code in (0, 3, 5):
            snapshot = cli.backups / f"202606{day:02}_030005"
            snapshot = snapshot if snapshot.exists() else max(cli.snapshots())
            complete = {f'documents{{collection="{name}"}}': count for name, count in month.documents.items()}
            complete["bytes"] = sum(path.stat().st_size for path in snapshot.iterdir())
            stored |= {snapshot.name} if code != 3 else set()
        assert {name: metrics[name] for name in complete} == complete
        # nothing is deleted by a run that was no success, and the newest good one is always here
        if code in (0, 3, 5):
            assert result.json["snapshot"] == f"backups/{max(name for name in names(cli) if len(name) == 15)}"
        if code:
            assert not result.json.get("deleted")
        assert os.listdir(month.metrics.parent) == ["astra.prom"]
    # What is left, worked out by hand. Nights that left a complete snapshot: all but 4 and 22 (INCOMPLETE), 11 (locked)
    # and 19 (no token). Here: the last 3; the newest of the last 3 weeks (to 30, Sundays 28 and 21); 15 and 16, because
    # docs was emptied between them. 4.INCOMPLETE went after 7 days; 22's is 8 days old on the 30th and went too.
    assert [name[6:8] for name in names(cli)] == ["15", "16", "21", "28", "29", "30"]
    # In Box, where 9 and 26 are missing: the last 5 days that have one; of months only June; 15 and 16 again.
    assert [name[6:8] for name in sorted(box.files())] == ["15", "16", "25", "27", "28", "29", "30"]
    assert all(name.removesuffix(".zip") in stored for name in box.files())
    dry = run_at(
        cli, datetime(2026, 6, 30, 12, 0, tzinfo=UTC), "--prune-dry-run", **SETTINGS, ASTRA_DB_API_ENDPOINT=source.url
    )
    assert dry.out.count(" stays ") == 13
    assert " goes " not in dry.out
    for snapshot in cli.snapshots():
        subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=snapshot, check=True, capture_output=True)


def test_a_dry_run_predicts_box_too(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """--prune-dry-run lists what is here and in Box with reasons and changes nothing; the real run does just that."""
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    fill(source, "docs", 5)
    for day in range(1, 6):
        assert run_at(cli, datetime(2026, 6, day, tzinfo=UTC)).code == 0
    assert run_at(cli, datetime(2026, 6, 6, tzinfo=UTC), "--collection", "docs").code == 0
    box.add_file("20260501_000000.zip", b"no zip of ours")
    box.add_file("20260509_000000.zip", box.files()[f"{names(cli)[0]}.zip"].content[:-1])  # its manifest promises more
    box.add_file("report.pdf", b"foreign")
    box.add_file("20260502_000000.INCOMPLETE.zip", b"foreign")
    (cli.backups / "20260501_000000").mkdir()
    (cli.backups / "notes").mkdir()
    newest, files = names(cli)[4], set(box.files())
    keep = ("--keep-last", "2", "--box-keep-last", "3")
    now = datetime(2026, 6, 7, tzinfo=UTC)
    nothing = run_at(cli, now, "--prune-dry-run")
    assert " goes " not in nothing.out
    assert nothing.out.count("no --keep option is given") == 10
    dry = run_at(cli, now, "--prune-dry-run", "--json", *keep)
    rows = dry.json["snapshots"]
    goes = {(row["place"], row["name"][6:8]) for row in rows if not row["stays"]}
    assert goes == {("here", "01"), ("here", "02"), ("here", "03"), ("in Box", "01"), ("in Box", "02")}
    assert (set(box.files()), len(names(cli))) == (files, 8)
    real = run_at(cli, now, "--upload-only", newest, "--json", *keep)
    assert real.code == 0, real.err
    assert {(place, name[6:8]) for place, some in real.json["deleted"].items() for name in some} == goes
    assert set(names(cli)) == {row["name"] for row in rows if row["place"] == "here" and row["stays"]}
    left = {row["name"] for row in rows if row["place"] == "in Box" and row["stays"]}
    assert {name.removesuffix(".zip") if len(name) == 19 else name for name in box.files()} == left
    assert "report.pdf" in box.files()
    assert len(box.trash()) == 2
    assert [warning for warning in real.json["warnings"] if "damaged" in warning]


@pytest.mark.parametrize(
    ("knob", "value"), [("can_delete", False), ("faults", [{"api": "delete", "action": "reset_after", "times": 1}])]
)
def test_what_box_does_not_delete_changes_no_result(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli, knob: str, value: Any
) -> None:
    """A deletion that Box refuses is a warning, one whose reply is lost is done; the run is a success both times."""
    cli.with_box(box)
    fill(source, "docs", 2)
    backup = ("--api-endpoint", source.url, "--json", "--box-keep-last", "1")
    assert run_at(cli, datetime(2026, 6, 1, tzinfo=UTC), *backup).code == 0
    setattr(box, knob, value)
    result = run_at(cli, datetime(2026, 6, 2, tzinfo=UTC), *backup)
    assert result.code == 0, result.err
    is_gone = knob == "faults"
    assert len(box.files()) == (1 if is_gone else 2)
    assert bool(result.json["deleted"]["in Box"]) == is_gone
    assert bool(result.json["warnings"]) != is_gone


def test_other_databases_are_left_alone(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Two databases in one directory: retention for one never counts or deletes the other's snapshots."""
    fill(source, "docs", 2)
    fill(target, "docs", 2)
    for day, emulator in ((1, source), (2, target), (3, source), (4, target), (5, target)):
        moment = datetime(2026, 6, day, tzinfo=UTC)
        keep = ("--no-box", "--keep-last", "1") if emulator is target else ("--no-box",)
        assert run_at(cli, moment, "--api-endpoint", emulator.url, *keep).code == 0
    assert [name[6:8] for name in names(cli)] == ["01", "03", "05"]


# ------------------------------------------------------------------------------------------------ the shrink alarm


@pytest.mark.parametrize(
    ("before", "after", "arguments", "code"),
    [
        (10, 5, (), 0),  # exactly half is not more than half
        (10, 4, (), 5),
        (10, 0, (), 5),
        (0, 10, (), 0),
        (10, 9, ("--max-shrink", "0"), 5),
        (10, 0, ("--max-shrink", "100"), 0),
        (10, 10, ("--max-shrink", "0"), 0),
    ],
)
def test_the_shrink_alarm(
    source: DataApiEmulator, cli: Cli, before: int, after: int, arguments: tuple[str, ...], code: int
) -> None:
    """More documents gone than allowed: the snapshot is complete and kept, 5, and the manifest says why."""
    fill(source, "docs", before)
    assert cli.backup(source).code == 0
    source.delete_all(KEYSPACE, "docs")
    for number in range(after):
        source.put(KEYSPACE, "docs", f'{{"_id":{number}}}')
    result = cli.backup(source, "--json", "--keep-last", "1", *arguments)
    assert result.code == code, result.err
    assert len(cli.snapshots()) == (2 if code else 1)
    manifest = json.loads((max(cli.snapshots()) / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    if code:
        assert manifest["shrunk_from"] == names(cli)[0]
        assert manifest["warnings"] == [
            f"shrunk since {names(cli)[0]}: docs: {before} documents before, {after} now"
            f" (-{(before - after) / before:.1%})"
        ]
        assert result.json["status"] == "shrunk"
        assert len(result.json["warnings"]) == 1
        assert cli.run("restore.py", "--verify-only").code == 0
    else:
        assert "warnings" not in manifest


def test_lost_vectors_are_a_shrink(source: DataApiEmulator, cli: Cli) -> None:
    """Documents that lost their vectors, though all are there, raise the alarm."""
    source.create(KEYSPACE, "docs", {"vector": {"dimension": 3, "metric": "cosine"}})
    for number in range(10):
        source.put(KEYSPACE, "docs", f'{{"_id":{number},"$vector":[0.1,0.2,0.3]}}')
    assert cli.backup(source).code == 0
    for number in range(8):
        source.put(KEYSPACE, "docs", f'{{"_id":{number}}}')
    result = cli.backup(source)
    assert result.code == 5
    assert "docs: 10 vectors before, 2 now" in result.err


def test_a_collection_that_is_gone_is_a_shrink_unless_it_was_not_asked_for(source: DataApiEmulator, cli: Cli) -> None:
    """A dropped collection raises the alarm; one that --exclude or --collection leaves out does not."""
    for name in ("a", "b"):
        fill(source, name, 4)
    assert cli.backup(source).code == 0
    assert cli.backup(source, "--exclude", "b").code == 0
    assert cli.backup(source, "--collection", "a").code == 0
    source.drop(KEYSPACE, "b")
    result = cli.backup(source)
    assert result.code == 5
    assert "b: the collection is gone; it had 4 documents" in result.err
    assert cli.backup(source).code == 0, "the next run compares with that snapshot"


def test_a_partial_backup_does_not_hide_a_shrink(source: DataApiEmulator, cli: Cli) -> None:
    """A whole backup is compared with the last whole one, not with one of some collections in between."""
    for name in ("a", "b"):
        fill(source, name, 4)
    assert cli.backup(source).code == 0
    source.delete_all(KEYSPACE, "b")
    assert cli.backup(source, "--collection", "a").code == 0
    assert cli.backup(source).code == 5


def test_without_local_snapshots_the_one_in_box_is_compared(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """In a container whose disk is empty each time the new snapshot is compared with the last one in Box."""
    cli.with_box(box)
    fill(source, "docs", 10)
    backup = ("--api-endpoint", source.url, "--json", "--box-keep-last", "1")
    assert run_at(cli, datetime(2026, 6, 1, tzinfo=UTC), *backup).code == 0
    source.delete_all(KEYSPACE, "docs")
    for path in cli.snapshots():
        path.rename(cli.directory / path.name)
    result = run_at(cli, datetime(2026, 6, 2, tzinfo=UTC), *backup)
    assert result.code == 5
    assert result.json["upload"]["sent"]
    assert len(box.files()) == 2
    third = run_at(cli, datetime(2026, 6, 3, tzinfo=UTC), *backup)
    assert (third.code, len(box.files())) == (0, 3), "the last one before the shrink stays until somebody has looked"


def test_a_shrunk_snapshot_that_could_not_be_uploaded(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """The failed upload decides: 3; when it is uploaded later, the alarm is there again: 5, and nothing is deleted."""
    cli.with_box(box).environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_KEEP_LAST": "1"}
    fill(source, "docs", 10)
    assert run_at(cli, datetime(2026, 6, 1, tzinfo=UTC)).code == 0
    source.delete_all(KEYSPACE, "docs")
    box.can_upload = False
    assert run_at(cli, datetime(2026, 6, 2, tzinfo=UTC)).code == 3
    box.can_upload = True
    later = run_at(cli, datetime(2026, 6, 2, 9, tzinfo=UTC), "--upload-only", names(cli)[-1])
    assert later.code == 5
    assert "SHRUNK" in later.out
    assert (len(box.files()), len(names(cli))) == (2, 2)


def test_a_shrink_whose_upload_failed_protects_the_last_good_one_in_box(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """The night after compares with the shrunk one and ends in 0: what was there before the shrink stays in Box."""
    cli.with_box(box).environ |= {"ASTRA_DB_API_ENDPOINT": source.url}
    cli.environ |= {"BACKUP_KEEP_LAST": "1", "BACKUP_BOX_KEEP_LAST": "1"}
    fill(source, "docs", 10)
    assert run_at(cli, datetime(2026, 6, 1, tzinfo=UTC)).code == 0
    (good,) = box.files()
    source.delete_all(KEYSPACE, "docs")
    box.can_upload = False
    assert run_at(cli, datetime(2026, 6, 2, tzinfo=UTC)).code == 3
    box.can_upload = True
    assert run_at(cli, datetime(2026, 6, 3, tzinfo=UTC)).code == 0
    dry = run_at(cli, datetime(2026, 6, 3, 1, tzinfo=UTC), "--prune-dry-run")
    assert good in box.files()
    assert re.search(rf"in Box +stays +{good[:-4]} .*shrink", dry.out), dry.out
    shutil.rmtree(cli.backups / "20260602_000000")
    assert run_at(cli, datetime(2026, 6, 4, tzinfo=UTC)).code == 0
    assert good not in box.files(), "once a person has deleted the shrunk one, the rules decide again"


def night(cli: Cli, day: int, code: int, *arguments: object) -> Result:
    """The run of a night in June, and what it must end with."""
    result = run_at(cli, datetime(2026, 6, day, tzinfo=UTC), *arguments)
    assert result.code == code, result.err
    return result


def days(snapshots: Iterable[str]) -> list[str]:
    """The days in June of some names."""
    return sorted(name[6:8] for name in snapshots)


def prune_predicted(cli: Cli, box: BoxEmulator, day: int, *keep: object) -> tuple[list[str], list[str]]:
    """Prune once more, with the newest snapshot, after a dry run that must predict it: the days left here, in Box."""
    moment = datetime(2026, 6, day, tzinfo=UTC)
    rows = run_at(cli, moment, "--prune-dry-run", "--json", *keep).json["snapshots"]
    result = run_at(cli, moment, "--upload-only", names(cli)[-1], "--json", *keep)
    assert result.code == 0, result.err
    gone = {(place, name) for place, some in result.json["deleted"].items() for name in some}
    assert gone == {(row["place"], row["name"]) for row in rows if not row["stays"]}
    assert set(names(cli)) == {row["name"] for row in rows if row["stays"] and row["place"] == "here"}
    assert {name[:-4] for name in box.files()} == {
        row["name"] for row in rows if row["stays"] and row["place"] != "here"
    }
    for row in rows:
        reasons = row["reason"].split("; ")
        assert len(set(reasons)) == len(reasons), f"a reason is given twice: {row}"
    return days(names(cli)), days(box.files())


KEEP_TWO = ("--keep-last", "2", "--box-keep-last", "2")


def test_a_shrink_since_a_snapshot_that_never_came_to_box(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """The snapshot before the shrink is only here: in Box, too, the last one that holds the dropped collection stays,
    until a person has deleted the shrunk one; once the one before has come to Box, that one stays instead.
    """
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    fill(source, "docs", 3)
    fill(source, "gone", 3)
    night(cli, 1, 0, *KEEP_TWO)
    night(cli, 2, 0, *KEEP_TWO)
    box.can_upload = False
    night(cli, 3, 3, *KEEP_TWO)
    box.can_upload = True
    source.drop(KEYSPACE, "gone")
    night(cli, 4, 5, *KEEP_TWO)
    for day in (5, 6, 7):
        night(cli, day, 0, *KEEP_TWO)
        assert "02" in days(box.files()), "the only snapshot in Box with the dropped collection was deleted"
    assert days(names(cli)) == ["03", "04", "06", "07"]
    assert days(box.files()) == ["02", "04", "06", "07"]
    assert prune_predicted(cli, box, 8, *KEEP_TWO) == (["03", "04", "06", "07"], ["02", "04", "06", "07"])
    run_at(cli, datetime(2026, 6, 8, tzinfo=UTC), "--upload-only", "20260603_000000")
    assert prune_predicted(cli, box, 8, *KEEP_TWO) == (["03", "04", "06", "07"], ["03", "04", "06", "07"])
    shutil.rmtree(cli.backups / "20260604_000000")
    assert prune_predicted(cli, box, 8, *KEEP_TWO)[1] == ["03", "04", "06", "07"], "Box still has the shrunk one"
    box.purge(box.files()["20260604_000000.zip"])
    assert prune_predicted(cli, box, 8, *KEEP_TWO) == (["06", "07"], ["06", "07"])


def test_two_shrinks_of_which_one_is_settled(source: DataApiEmulator, cli: Cli) -> None:
    """Two collections vanish night after night; deleting the first shrunk snapshot settles the first shrink only, and
    what both had before stays for the second.
    """
    cli.environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_KEEP_LAST": "1"}
    for name in ("docs", "first", "second"):
        fill(source, name, 3)
    night(cli, 1, 0, "--no-box")
    source.drop(KEYSPACE, "first")
    night(cli, 2, 5, "--no-box")
    source.drop(KEYSPACE, "second")
    night(cli, 3, 5, "--no-box")
    night(cli, 4, 0, "--no-box")
    assert days(names(cli)) == ["01", "02", "03", "04"]
    shutil.rmtree(cli.backups / "20260602_000000")
    night(cli, 5, 0, "--no-box")
    assert days(names(cli)) == ["01", "03", "05"]
    shutil.rmtree(cli.backups / "20260603_000000")
    night(cli, 6, 0, "--no-box")
    assert days(names(cli)) == ["06"]


def test_a_shrink_is_not_forgotten_while_the_snapshot_before_is_restored(source: DataApiEmulator, cli: Cli) -> None:
    """A restore's journal beside the snapshot before the shrink, or beside the shrunk one, lets neither go."""
    cli.environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_KEEP_LAST": "1"}
    fill(source, "docs", 3)
    night(cli, 1, 0, "--no-box")
    source.delete_all(KEYSPACE, "docs")
    night(cli, 2, 5, "--no-box")
    for day, restored in ((3, "20260601_000000"), (4, "20260602_000000")):
        journal = cli.backups / f".restore-{restored}-0123abcd.journal"
        journal.touch()
        night(cli, day, 0, "--no-box")
        assert days(names(cli)) == ["01", "02", f"{day:02}"]
        journal.unlink()
    night(cli, 5, 0, "--no-box")
    assert days(names(cli)) == ["01", "02", "05"]


@pytest.mark.parametrize(("rotten", "file"), [(2, "docs.jsonl.gz"), (3, "docs.jsonl.gz"), (3, "manifest.json")])
def test_a_disk_that_rots_settles_no_shrink(source: DataApiEmulator, cli: Cli, rotten: int, file: str) -> None:
    """The snapshot before the shrink rots: the one before that stays. The shrunk one rots: what was before it stays,
    even if nobody can read any more that it shrank.
    """
    cli.environ |= {"ASTRA_DB_API_ENDPOINT": source.url}
    fill(source, "docs", 3)
    night(cli, 1, 0, "--no-box")
    night(cli, 2, 0, "--no-box")
    source.delete_all(KEYSPACE, "docs")
    night(cli, 3, 5, "--no-box")
    night(cli, 4, 0, "--no-box")
    path = cli.backups / f"2026060{rotten}_000000" / file
    path.write_bytes(path.read_bytes()[:-20])
    for day in (5, 6):
        night(cli, day, 0, "--no-box", "--keep-last", "1")
        left = ["01", "02", "03"] if rotten == 2 else ["02", "03"]
        assert days(names(cli)) == [*left, f"{day:02}"]


def test_a_box_that_cannot_be_listed_costs_nothing_here(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """Box is to be pruned and does not list what it holds: nothing is deleted in either place, what was deleted before
    is named once, and the run is a success.
    """
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    fill(source, "docs", 3)
    night(cli, 1, 0)
    source.add_fault("error", command="find", times=1, errorCode="INVALID_QUERY")
    night(cli, 2, 2)
    source.faults.clear()
    box.faults.append({"api": "items", "action": "status", "status": 403, "times": None})
    result = night(cli, 3, 0, "--keep-last", "1", "--box-keep-last", "1", "--json")
    assert result.json["deleted"] == {"here": ["20260602_000000.INCOMPLETE"]}
    assert [warning for warning in result.json["warnings"] if "here or in Box" in warning]
    assert (days(names(cli)), days(box.files())) == (["01", "03"], ["01", "03"])


def test_what_box_does_not_show_is_a_reason_to_keep(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """In a container whose disk is empty each time the shrunk snapshot is in Box alone: a night on which Box does not
    give its beginning deletes nothing from before it.
    """
    cli.with_box(box).environ |= {"ASTRA_DB_API_ENDPOINT": source.url}
    fill(source, "docs", 3)
    for day, code in ((1, 0), (2, 5), (3, 0)):
        night(cli, day, code)
        source.delete_all(KEYSPACE, "docs")
        shutil.rmtree(cli.snapshots()[0])
    hidden = f"/files/{box.files()['20260602_000000.zip'].id}/"
    box.faults.append({"api": "content", "contains": hidden, "action": "status", "status": 403, "times": None})
    result = night(cli, 4, 0, "--box-keep-last", "1")
    assert days(box.files()) == ["01", "02", "04"], result.err


# ------------------------------------------------------------------------------------------------ --status


def test_an_empty_file_with_a_snapshots_name_is_none(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """Box refuses to read a range of it: it counts as nothing, for --status, the list, the alarm and the retention."""
    cli.with_box(box).environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_BOX_KEEP_LAST": "1"}
    box.add_file("20260501_000000.zip", b"")
    fill(source, "docs", 3)
    status = run_at(cli, datetime(2026, 6, 1, tzinfo=UTC), "--status")
    assert (status.code, status.out.count("no complete snapshot")) == (1, 2)
    listed = cli.run("restore.py", "--from-box", "--list", "--json")
    assert [row["status"] for row in listed.json] == ["unreadable"]
    result = run_at(cli, datetime(2026, 6, 1, 1, tzinfo=UTC))
    assert result.code == 0, result.err
    assert "Could not" not in result.err
    assert "20260501_000000.zip" in box.files()


def test_status_says_what_is_newest_and_whether_it_is_too_old(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """--status names the newest complete snapshot here and in Box; with --max-age 1 when the one that counts is old."""
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    first, second = datetime(2026, 6, 1, 3, tzinfo=UTC), datetime(2026, 6, 2, 3, tzinfo=UTC)
    nothing = run_at(cli, first, "--status")
    assert (nothing.code, nothing.out.count("no complete snapshot")) == (1, 2)
    fill(source, "docs", 1234)
    assert run_at(cli, first).code == 0
    assert run_at(cli, second, "--no-box").code == 0
    assert run_at(cli, second + timedelta(hours=1), "--no-box", "--collection", "docs").code == 0
    now = second + timedelta(hours=20)
    status = run_at(cli, now, "--status")
    assert status.code == 0
    here, there = status.out.splitlines()
    assert re.fullmatch(r"✓ here +20260602_030000: (19 h 59|20 h 0) min old, 1,234 documents, [0-9.]+ kB", here)
    assert re.fullmatch(r"✓ in Box +20260601_030000: (43 h 59|44 h 0) min old, 1,234 documents, [0-9.]+ kB", there)
    limits = {("26h",): 1, ("3d",): 0, ("26h", "--no-box"): 0, ("1190m", "--no-box"): 1, ("90000s", "--no-box"): 0}
    for arguments, code in limits.items():
        result = run_at(cli, now, "--status", "--max-age", *arguments)
        assert result.code == code, arguments
    assert "✗ in Box" in run_at(cli, now, "--status", "--max-age", "26h").out
    assert run_at(cli, now, "--status", BACKUP_MAX_AGE="26h").code == 1
    rows = run_at(cli, now, "--status", "--json").json["newest"]
    assert [(row["place"], row["name"], row["documents"]) for row in rows] == [
        ("here", "20260602_030000", 1234),
        ("in Box", "20260601_030000", 1234),
    ]
    other = run_at(cli, now, "--status", "--no-box", "--keyspace", "other")
    assert (other.code, "no complete snapshot" in other.out) == (1, True)
    assert "is no duration" in run_at(cli, now, "--status", "--max-age", "26").err


def test_status_does_not_count_what_is_damaged_or_incomplete(source: DataApiEmulator, cli: Cli) -> None:
    """An INCOMPLETE snapshot, and a directory without a manifest, are not the newest complete one."""
    fill(source, "docs", 3)
    cli.environ["ASTRA_DB_API_ENDPOINT"] = source.url
    assert run_at(cli, datetime(2026, 6, 1, tzinfo=UTC), "--no-box").code == 0
    source.add_fault("error", command="find", collection="docs", times=None, errorCode="INVALID_QUERY")
    assert run_at(cli, datetime(2026, 6, 2, tzinfo=UTC), "--no-box").code == 2
    (cli.backups / "20260603_000000").mkdir()
    result = run_at(cli, datetime(2026, 6, 4, tzinfo=UTC), "--status", "--no-box", "--max-age", "2d")
    assert (result.code, "20260601_000000" in result.out) == (1, True)


def test_a_snapshot_from_the_future_hides_nothing(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """A snapshot of a night with a wrong clock makes no monitor content, and a shrink is still found."""
    fill(source, "docs", 10)
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    assert run_at(cli, datetime(2026, 6, 1, tzinfo=UTC)).code == 0
    source.delete_all(KEYSPACE, "docs")
    assert run_at(cli, datetime(2036, 6, 1, tzinfo=UTC), "--max-shrink", "100").code == 0
    status = run_at(cli, datetime(2026, 6, 5, tzinfo=UTC), "--status", "--max-age", "2d")
    assert (status.code, status.out.count("20260601_000000"), status.out.count("2036")) == (1, 2, 0)
    assert run_at(cli, datetime(2026, 6, 5, tzinfo=UTC)).code == 5


# ------------------------------------------------------------------------------------------------ pings and metrics


def test_pings_tell_start_and_end(source: DataApiEmulator, cli: Cli, monitor: Monitor, tmp_path: Path) -> None:
    """Start, then success, with the last log lines and the result; the URL may be in a file; it is never said."""
    fill(source, "docs", 3)
    file = tmp_path / "ping"
    file.write_text(monitor.url + "\n")
    result = cli.backup(source, BACKUP_PING_URL_FILE=str(file))
    assert result.code == 0
    (start, first), (end, last) = monitor.pings
    assert (start, first, end) == ("/start", "", "")
    assert "docs: 3 documents" in last
    assert last.endswith(result.out.strip())
    monitor.pings.clear()
    for arguments in (["--check"], ["--status"], ["--prune-dry-run"], ["--help"], ["--version"]):
        cli.backup(source, *arguments, "--ping-url", monitor.url)
    assert monitor.paths() == []


def test_a_mistake_in_the_configuration_is_pinged(cli: Cli, monitor: Monitor) -> None:
    """A run that ends before it reaches the database is told to the monitor with its reason."""
    result = cli.run("astra_backup.py", "--no-box", "--ping-url", monitor.url)
    assert result.code == 1
    assert "No database is named" in monitor.pings[1][1]
    assert monitor.paths() == ["/start", "/1"]


@pytest.mark.parametrize(
    ("statuses", "paths", "fails"),
    [
        ([500, 503], ["/start", "/start", "/start", ""], False),
        ([500] * 20, ["/start"] * 3 + [""] * 3, True),
        ([404, 404], ["/start", ""], True),  # a check that does not exist will not exist in a second either
    ],
)
def test_a_failed_ping_changes_nothing(
    source: DataApiEmulator, cli: Cli, monitor: Monitor, statuses: list[int], paths: list[str], fails: bool
) -> None:
    """A monitor that fails is tried three times; the run is the success that it is, and the URL is not said."""
    fill(source, "docs", 3)
    monitor.statuses = statuses
    result = cli.backup(source, "--ping-url", monitor.url)
    assert result.code == 0
    assert monitor.paths() == paths
    assert ("The ping to 127.0.0.1 failed" in result.err) == fails
    assert PING_KEY not in result.err + result.out


def test_a_monitor_that_is_not_there_changes_nothing(source: DataApiEmulator, cli: Cli, monitor: Monitor) -> None:
    """Nobody listens: warnings, and a success."""
    fill(source, "docs", 3)
    url = monitor.url
    monitor.server.server_close()
    monitor.server.shutdown()
    result = cli.backup(source, "--ping-url", url, "-v")
    assert result.code == 0
    assert result.err.count("The ping to 127.0.0.1 failed") == 2
    assert PING_KEY not in result.err


def test_a_monitor_that_does_not_answer_holds_nobody_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ping ends at its time limit, also when the reply trickles."""
    monitor = Monitor()
    monitor.statuses = [0]
    started = time.monotonic()
    assert astra_backup._post_ping(monitor.url, b"", 0.5) == ("no reply in 0 s", True)
    assert time.monotonic() - started < 5
    monitor.ended.set()
    monitor.server.shutdown()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_is_pinged(
    source: DataApiEmulator, cli: Cli, monitor: Monitor, number: signal.Signals, code: int
) -> None:
    """A run that is stopped says so to the monitor and to the metrics, within the 10 seconds that it has."""
    fill(source, "docs", 120)
    source.faults = [{"command": "find", "action": "silence", "skip": 1, "times": None}]
    arguments = ("--no-box", "--api-endpoint", source.url, "--ping-url", monitor.url, "--metrics-file", "m.prom")
    running = cli.start("astra_backup.py", *arguments)
    deadline = time.monotonic() + 20
    while sum(request.command == "find" for request in source.requests) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    started = time.monotonic()
    running.send_signal(number)
    running.communicate(timeout=20)
    assert running.returncode == code
    assert time.monotonic() - started < 10
    assert monitor.paths() == ["/start", f"/{code}"]
    assert read_metrics(cli.directory / "m.prom")["last_run_exit_code"] == code


@pytest.mark.parametrize("url", ["ftp://x/y", "hc-ping.com/abc", "http://"])
def test_a_ping_url_that_is_none_is_1(cli: Cli, url: str) -> None:
    """A URL that no ping can be sent to is a mistake in the configuration, found before anything is read."""
    result = cli.run("astra_backup.py", "--no-box", "--ping-url", url)
    assert (result.code, "--ping-url is no http(s) URL" in result.err) == (1, True)


def test_metrics_that_cannot_be_written_change_nothing(source: DataApiEmulator, cli: Cli) -> None:
    """A metrics file in a directory that is not there is a warning; --check finds it beforehand."""
    fill(source, "docs", 3)
    result = cli.backup(source, "--metrics-file", "/proc/nowhere/astra.prom")
    assert result.code == 0
    assert "Cannot write /proc/nowhere/astra.prom" in result.err


def test_metrics_keep_what_a_failing_run_cannot_know(tmp_path: Path) -> None:
    """What a run does not know stays as the file had it; labels are escaped; junk in the old file is dropped."""
    path = tmp_path / "m.prom"
    first = {
        "last_run_exit_code": {"": 0.0},
        "last_success_timestamp_seconds": {"": 1781000000.25},
        "documents": {'a"\\\nb': 3.0, "c": 4.0},
    }
    astra_backup.write_metrics(path, first)
    text = path.read_text()
    assert read_metrics(path)["last_success_timestamp_seconds"] == 1781000000.25
    assert 'astra_backup_documents{collection="a\\"\\\\\\nb"} 3.0\n' in text
    assert astra_backup.decode_metrics(text) == (first, 0)
    path.write_text(text + "junk\nastra_backup_documentsx 5\n")
    astra_backup.write_metrics(path, {"last_run_exit_code": {"": 1}})
    assert path.read_text() == text.replace("last_run_exit_code 0.0", "last_run_exit_code 1.0")
    assert b"collection=" not in astra_backup.encode_metrics(first | {"documents": {}})


def test_an_old_metrics_file_that_cannot_be_parsed_is_a_warning(source: DataApiEmulator, cli: Cli) -> None:
    """Lines of the old file that are no metrics are dropped with a warning; what else it says stays."""
    fill(source, "docs", 3)
    path = cli.directory / "m.prom"
    assert cli.backup(source, "--metrics-file", path).code == 0
    before = read_metrics(path)
    assert path.stat().st_mode & 0o777 == 0o644
    text = path.read_bytes()
    for old, count in (
        (b'\xff\x00{"\n' + text + b"astra_backup_bytes 1" + b"0" * 400 + b"\n# TYPE\n}\n", "4 lines"),
        (text, ""),
    ):
        path.write_bytes(old)
        result = cli.run("astra_backup.py", "--no-box", "--metrics-file", path)
        assert result.code == 1
        assert ("could not be parsed" in result.err) == bool(count)
        assert not count or f"{path}: {count} could not be parsed" in result.err
        after = read_metrics(path)
        assert after["last_run_exit_code"] == 1
        assert {name for name in before if before[name] != after[name]} == {
            "last_run_timestamp_seconds",
            "last_run_duration_seconds",
            "last_run_exit_code",
        }


# ------------------------------------------------------------------------------------------------ logs


def test_json_logs_are_one_object_a_line(source: DataApiEmulator, cli: Cli) -> None:
    """With --log-format json each line on stderr is an object with time, level, message, and a collection's name."""
    fill(source, "docs", 60)
    source.add_fault("status", command="find", skip=1, times=1, status=503)
    for arguments, environ in ((("--log-format", "json"), {}), ((), {"BACKUP_LOG_FORMAT": "json"})):
        result = cli.backup(source, "-v", *arguments, **environ)
        assert result.code == 0, result.err
        rows = [json.loads(line) for line in result.err.splitlines()]
        assert all(datetime.fromisoformat(row["time"]).tzinfo and row["level"] and row["message"] for row in rows)
        assert {row["collection"] for row in rows if "collection" in row} == {"docs"}
    assert any(row.get("collection") == "docs" and row["level"] == "info" for row in rows)


def test_json_logs_are_json_when_it_fails(source: DataApiEmulator, cli: Cli) -> None:
    """Mistakes on the command line, refused tokens and tracebacks are objects too, and hold no secret."""
    for arguments in (["--no-such-option"], ["--workers", "x"], ["--api-endpoint", source.url, "-v"]):
        environ = {"ASTRA_DB_APPLICATION_TOKEN": f'quo"te{TOKEN}'}
        result = cli.run("astra_backup.py", "--no-box", "--log-format=json", *arguments, **environ)
        assert result.code == 1
        assert [json.loads(line)["level"] for line in result.err.splitlines()][-1] == "error"
        assert "quo" not in result.err or '"te' not in result.err


def test_restore_logs_json_too(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """restore.py has the same option; its lines name the collection."""
    fill(source, "docs", 5)
    assert cli.backup(source).code == 0
    result = cli.restore(target, "--log-format", "json")
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in result.err.splitlines()]
    assert [row["message"] for row in rows if row.get("collection") == "docs"]


def test_a_secret_with_quotes_is_hidden_in_json() -> None:
    """A secret whose JSON form differs from itself is found in JSON as well."""
    hidden = astra_backup.Redactor()
    hidden.add('pass"wo\\rd')
    assert hidden.redact(json.dumps({"a": 'x pass"wo\\rd y'})) == '{"a": "x *** y"}'


def test_quiet_says_nothing_when_all_is_well_but_pings_all(source: DataApiEmulator, cli: Cli, monitor: Monitor) -> None:
    """-q leaves stderr empty after a success, and the ping's body is the same as ever."""
    fill(source, "docs", 5)
    result = cli.backup(source, "-q", "--ping-url", monitor.url)
    assert (result.code, result.err) == (0, "")
    assert "docs: 5 documents" in monitor.pings[1][1]


def test_the_json_result_has_everything(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """--json prints one object: status, code, snapshot, collections, upload, what was deleted, warnings, durations."""
    load_catalog(source)
    result = cli.with_box(box).run("astra_backup.py", "--api-endpoint", source.url, "--json", "--keep-last", "2")
    assert result.out.count("\n") == 1
    assert set(result.json) == {
        *("status", "exit_code", "snapshot", "documents", "collections", "upload", "deleted", "warnings"),
        *("duration_seconds", "steps_seconds"),
    }
    assert set(result.json["steps_seconds"]) == {"backup", "upload", "prune"}
    assert result.json["deleted"] == {"here": []}


@pytest.mark.parametrize("modes", [("--check", "--status"), ("--prune-dry-run", "--upload-only", "x")])
def test_one_thing_at_a_time(cli: Cli, modes: tuple[str, ...]) -> None:
    """Two modes at once are a mistake."""
    result = cli.run("astra_backup.py", *modes)
    assert (result.code, "Only one of" in result.err) == (1, True)


# ------------------------------------------------------------------------------------------------ at a terminal


def on_terminal(
    cli: Cli, script: str, *arguments: object, columns: int = 80, lines: int = 24, **environ: str
) -> tuple[int, list[Screen], Screen]:
    """Run a script on a terminal. `Screen` itself fails when bars do not fit: they could not be erased any more."""
    env = cli.environ | environ
    return watch(cli.command(script, *arguments), columns=columns, lines=lines, cwd=cli.directory, env=env)


def bars(screen: Screen) -> list[str]:
    """The lines that show a bar."""
    return [line for line in screen.text().splitlines() if "━" in line or "docs" in line]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(("collections", "workers"), [(1, 4), (40, 4), (40, 40)])
def test_the_terminal_shows_bars_that_fit(
    source: DataApiEmulator, cli: Cli, columns: int, collections: int, workers: int
) -> None:
    """Bars for what is at work and one for all of it, on 24 lines, however many collections; the result comes last."""
    source.latency_s = 0.1
    fill_many(source, collections, 220 if collections == 1 else 110)
    code, frames, last = on_terminal(
        cli, "astra_backup.py", "--no-box", "--api-endpoint", source.url, "--workers", workers, columns=columns
    )
    assert code == 0, last.text()
    busy = [frame for frame in frames if bars(frame)]
    assert any("reading " in line and "/s" in line for frame in busy for line in bars(frame))
    assert all(len(line) <= columns for frame in frames for line in frame.text().splitlines())
    assert max(len(bars(frame)) for frame in busy) <= 22
    totals = [line for frame in busy for line in bars(frame) if f"of {collections} collections" in line]
    assert bool(totals) == (collections > 1)
    mores = [line for frame in frames for line in frame.text().splitlines() if re.match(r"and \d+ more", line)]
    assert bool(mores) == (workers == 40)
    assert bars(last) == [] or "━" not in last.text(), "bars are gone at the end"
    ending = last.text().replace("\n", "")
    assert re.search(rf"backups/\d{{8}}_\d{{6}}: complete; {collections} collections?, [\d,]+ documents", ending)


def test_the_terminal_shows_each_phase(
    source: DataApiEmulator, target: DataApiEmulator, box: BoxEmulator, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup reads, proves and uploads; a restore verifies, creates, writes and compares: the bars say so."""
    source.latency_s = target.latency_s = 0.05
    box.faults = [{"api": "upload", "action": "delay", "seconds": 1.0, "times": 1}]
    fill_many(source, 1, 4_000)
    source.page_size = 1000
    code, frames, last = on_terminal(
        cli.with_box(box), "astra_backup.py", "--api-endpoint", source.url, "--no-compress"
    )
    assert code == 0, last.text()
    text = "\n".join(line for frame in frames for line in bars(frame))
    assert {phase for phase in ("reading ", "proving ", "uploading ") if phase in text} == {
        "reading ",
        "proving ",
        "uploading ",
    }
    code, frames, last = on_terminal(cli, "restore.py", "--api-endpoint", target.url)
    assert code == 0, last.text()
    text = "\n".join(line for frame in frames for line in bars(frame))
    assert {phase for phase in ("verifying ", "creating ", "writing ", "comparing ") if phase in text} == {
        "verifying ",
        "creating ",
        "writing ",
        "comparing ",
    }
    assert re.search(r"writing .*\d+% +[\d,]+ docs +[\d,]+/s +0:\d\d:\d\d", text), "per cent, count, rate, time left"


@pytest.mark.parametrize("columns", [30, 60])
def test_a_narrow_terminal_shows_names_and_figures(source: DataApiEmulator, cli: Cli, columns: int) -> None:
    """Where bars have no room, each collection's name, per cent and count are still there, one line each."""
    source.latency_s = 0.1
    fill_many(source, 3, 110)
    arguments = ("astra_backup.py", "--no-box", "--api-endpoint", source.url)
    code, frames, last = on_terminal(cli, *arguments, columns=columns)
    assert code == 0, last.text()
    lines = [line for frame in frames for line in frame.text().splitlines()]
    assert max(map(len, lines)) <= columns
    assert any(re.fullmatch(r"collection.* +\d+% +[\d,]+ docs", line) for line in lines)
    assert any(re.fullmatch(r"\d of 3.* +\d+% +[\d,]+ docs", line) for line in lines)


def test_no_color_is_respected(source: DataApiEmulator, cli: Cli) -> None:
    """With NO_COLOR there are bars without colours; with TERM=dumb there are lines only."""
    source.latency_s = 0.1
    fill_many(source, 2, 110)
    arguments = ("astra_backup.py", "--no-box", "--api-endpoint", source.url)
    colour = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3|4|9|10)[0-9](?:;|m)")
    for environ, is_coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        _, frames, _ = on_terminal(cli, *arguments, **environ)
        assert any(bars(frame) for frame in frames)
        assert any(colour.search(frame.ansi()) for frame in frames) == is_coloured
    _, frames, last = on_terminal(cli, *arguments, TERM="dumb")
    assert "━" not in "".join(frame.text() for frame in frames)
    assert "INFO" in last.text()


@pytest.mark.parametrize("columns", [30, 80])
@pytest.mark.parametrize("collections", [1, 40])
def test_ctrl_c_leaves_no_bars_on_the_terminal(
    source: DataApiEmulator, cli: Cli, columns: int, collections: int
) -> None:
    """Ctrl-C at a terminal erases all bars, and the ^C that the terminal shows behind them; what was logged stays."""
    source.latency_s = 0.3
    fill_many(source, collections, 400)
    command = cli.command("astra_backup.py", "--no-box", "--api-endpoint", source.url, "--workers", 10)
    code, frames, last = watch(
        command,
        columns=columns,
        cwd=cli.directory,
        env=cli.environ,
        answers={" docs" if columns == 30 else "-:--:--": "\x03"},
    )
    assert code == 130, last.text()
    assert any(bars(frame) for frame in frames)
    assert bars(last) == []
    assert "^C" not in last.text()
    text = "".join("".join(char for char, _ in row) for row in last.scrolled + last.rows)
    assert "Backing up" in text
    assert text.rstrip().endswith("Z ERROR   Stopped by signal 2.")


def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """Where there is no terminal, log lines say what is at work: phase, documents, rate, and how much is done."""
    source.latency_s = 0.05
    fill_many(source, 2, 400)
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import astra_backup;"
        "astra_backup.HEARTBEAT_S = 0.02; astra_backup.run_command(astra_backup.main)"
    )
    command = [sys.executable, "-c", script, str(ROOT), "--no-box", "--workers", "2", "--api-endpoint", source.url]
    done = subprocess.run(command, cwd=cli.directory, env=cli.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    one = r"collection_0\d\w* reading: [\d,]+ documents, [\d,]+/s"
    total = r"[01] of 2 collections done: [\d,]+ documents, [\d,]+/s"
    assert re.search(rf"INFO    At work: {total}; {one}; {one}\.\n", done.stderr), done.stderr
    assert "━" not in done.stderr + done.stdout
    assert "\x1b" not in done.stderr + done.stdout


def test_check_is_a_table_with_what_to_do(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """--check marks each row with ✓ or ✗, and says below each ✗ what to do; on a narrow terminal too."""
    fill(source, "docs", 3)
    box.can_upload = False
    result = cli.with_box(box).run("astra_backup.py", "--check", "--api-endpoint", source.url)
    assert result.code == 1
    rows = result.out.splitlines()
    assert [row[0] for row in rows] == ["✓", "✓", "✓", "✓", "✓", "✗", " "]
    assert rows[5].split() == ["✗", "Box", "upload", "not", "allowed"]
    assert rows[6].strip().startswith("→ Make AutomationUser_")
    code, _, last = on_terminal(cli, "astra_backup.py", "--check", "--api-endpoint", source.url, columns=60)
    assert code == 1
    assert all(len(line) <= 60 for line in last.text().splitlines())
    assert "✗ Box upload" in last.text()
    assert BOX_SECRET not in last.text()


def test_the_result_leaves_the_terminal_when_it_is_sent_elsewhere(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """With bars on the terminal and stdout in a file, the file holds the result, and the terminal does not."""
    source.latency_s = 0.05
    fill_many(source, 2, 60)
    for script, emulator, says in (
        ("astra_backup.py", source, "complete"),
        ("restore.py", target, "ok"),
    ):
        arguments = ["--api-endpoint", emulator.url, "--json", *(["--no-box"] if emulator is source else [])]
        command = " ".join(cli.command(script, *arguments))
        environ = cli.environ
        code, frames, last = watch(["sh", "-c", f"{command} > out.json"], columns=80, cwd=cli.directory, env=environ)
        assert code == 0, last.text()
        assert json.loads((cli.directory / "out.json").read_text())["status"] == says
        assert '"exit_code"' not in "".join(frame.text() for frame in frames)


def test_a_question_can_be_read_before_it_is_answered(source: DataApiEmulator, cli: Cli) -> None:
    """The question whether to write to where the snapshot came from is on the screen, whole, below what was logged."""
    fill_many(source, 2, 60)
    assert cli.backup(source).code == 0
    command = cli.command("restore.py", "--api-endpoint", source.url, "--on-existing", "skip")
    code, frames, last = watch(command, columns=80, cwd=cli.directory, env=cli.environ, answers={"[y/N]:": "n\n"})
    assert code == 4, last.text()
    assert any(frame.text().rstrip().endswith("Go on? [y/N]:") for frame in frames)
    assert "Not confirmed" in last.text()
