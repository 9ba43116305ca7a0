"""The scheduler's and the monitor's side: a month of nights, the shrink alarm, pings, metrics, logs; the terminal."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

import astra_backup
import restore
from tests.clockwork import look_at, names, run_at
from tests.conftest import BOX_SECRET, KEYSPACE, ROOT, TOKEN, Cli, Result, load_catalog
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.screens import Screen, watch
from tests.screens import fill as fill_many
from tests.support import PING_KEY, Monitor, fill

pytestmark = pytest.mark.usefixtures("clockwork")


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
            result = run_at(self.cli, moment, "--json", **environ)
        if result.code == 0:
            pruned = look_at(self.cli, moment + timedelta(minutes=1), "prune", **environ)
            assert pruned.code == 0, pruned.err
        return result


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
    noon = datetime(2026, 6, 30, 12, 0, tzinfo=UTC)
    dry = look_at(cli, noon, "prune", "--dry-run", **SETTINGS, ASTRA_DB_API_ENDPOINT=source.url)
    assert dry.out.count(" stays ") == 13
    assert " goes " not in dry.out
    for snapshot in cli.snapshots():
        subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=snapshot, check=True, capture_output=True)


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
    result = cli.backup(source, "--json", *arguments)
    assert result.code == code, result.err
    assert cli.stored("prune", "--no-box", "--keep-last", "1").code == 0
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
    for arguments in (["--check"], ["--help"], ["--version"]):
        cli.backup(source, *arguments, "--ping-url", monitor.url)
    file.write_text("\n")
    assert cli.backup(source, BACKUP_PING_URL_FILE=str(file)).code == 0
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
    with pytest.raises(astra_backup.RequestError, match="no reply in 0 s") as failed:
        astra_backup._post_ping(monitor.url, b"", 0.5)
    assert failed.value.retryable
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


def stop_when(running: subprocess.Popen[str], happened: Callable[[], bool]) -> str:
    """Stop a run when something has happened; return what it said."""
    deadline = time.monotonic() + 20
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 143
    return said


def test_a_stopped_backup_says_what_there_is(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """Stopped while it reads, nothing counts; stopped while it uploads, the snapshot does, and what to do is said."""
    fill(source, "docs", 120)
    assert cli.backup(source).code == 0
    (older,) = cli.snapshots()
    older = older.rename(older.with_name("20991231_235959"))  # made while the clock was wrong
    cli.with_box(box)
    source.faults = [{"command": "find", "action": "silence", "skip": 1, "times": None}]
    source.requests.clear()
    running = cli.start("astra_backup.py", "--api-endpoint", source.url)
    said = stop_when(running, lambda: sum(request.command == "find" for request in source.requests) > 1)
    assert "No snapshot was made. Run the same command again" in said
    assert cli.snapshots() == [older]
    source.faults = []
    box.faults = [{"api": "upload", "action": "silence", "times": None}]
    running = cli.start("astra_backup.py", "--api-endpoint", source.url)
    said = stop_when(running, lambda: any(request.fault for request in box.requests))
    (snapshot,) = set(cli.snapshots()) - {older}
    assert f"{snapshot.name} was finished before, and is complete." in said
    assert f"snapshots.py upload {snapshot.name}" in said
    assert [path for path in cli.backups.iterdir() if path.name.endswith(".inprogress")] == []


@pytest.mark.parametrize("url", ["ftp://x/y", "hc-ping.com/abc", "http://"])
def test_a_ping_url_that_is_none_is_1(cli: Cli, url: str) -> None:
    """A URL that no ping can be sent to is a mistake in the configuration, found before anything is read."""
    result = cli.run("astra_backup.py", "--no-box", "--ping-url", url)
    assert (result.code, "--ping-url is not an http(s) URL" in result.err) == (1, True)


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


@pytest.mark.cold
def test_metrics_of_other_processes_are_not_ours(source: DataApiEmulator, cli: Cli, tmp_path: Path) -> None:
    """With PROMETHEUS_MULTIPROC_DIR set, as beside a web service, the file is the same and no other is written."""
    fill(source, "docs", ['{"_id":1}'])
    for name in ("there", "missing"):
        (tmp_path / "there").mkdir(exist_ok=True)
        path = tmp_path / f"{name}.prom"
        result = cli.backup(source, "--metrics-file", path, PROMETHEUS_MULTIPROC_DIR=str(tmp_path / name))
        assert result.code == 0, result.err
        assert 'astra_backup_documents{collection="docs"} 1.0' in path.read_text()
    assert list((tmp_path / "there").iterdir()) == []
    assert not (tmp_path / "missing").exists()


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
    result = cli.with_box(box).run("astra_backup.py", "--api-endpoint", source.url, "--json")
    assert result.out.count("\n") == 1
    assert set(result.json) == {
        *("status", "exit_code", "snapshot", "documents", "collections", "upload", "deleted", "warnings"),
        *("duration_seconds", "steps_seconds"),
    }
    assert set(result.json["steps_seconds"]) == {"backup", "upload"}
    assert result.json["deleted"] == {}


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
    assert text.rstrip().endswith("Z ERROR   Stopped by SIGINT.")


def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """Where there is no terminal, log lines say what is at work: phase, documents, rate, and how much is done."""
    source.latency_s = 0.05
    fill_many(source, 2, 1000)
    script = (
        "import functools, sys; sys.path.insert(0, sys.argv.pop(1)); import astra_backup, rich.progress as bars;"
        "bars.Progress = functools.partial(bars.Progress, speed_estimate_period=0.2);"  # 30 s, as the heartbeat is
        "astra_backup.HEARTBEAT_S = 0.25; astra_backup.run_command(astra_backup.main)"
    )
    command = [sys.executable, "-c", script, str(ROOT), "--no-box", "--workers", "2", "--api-endpoint", source.url]
    done = subprocess.run(command, cwd=cli.directory, env=cli.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    one = r"collection_0\d\w* reading: [\d,]+ documents, [\d,]+/s"
    total = r"[01] of 2 collections done: [\d,]+ documents, [1-9][\d,]*/s"
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
    names = "database|collection docs|output directory|encryption|Box account|Box folder|Box upload"
    found = [re.match(rf"(.) ({names}) ", row) for row in rows[:-1]]
    assert [match and match[1] for match in found] == ["✓"] * 6 + ["✗"], rows
    assert rows[-2].split() == ["✗", "Box", "upload", "not", "allowed"]
    assert rows[-1].strip().startswith("→ Make AutomationUser_")
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
    assert any(frame.text().rstrip().endswith("Continue? [y/N]:") for frame in frames)
    assert "Not confirmed" in last.text()


@pytest.mark.parametrize("on_existing", ["skip", "drop"])
def test_a_question_that_is_interrupted_says_that_nothing_was_written(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, on_existing: str
) -> None:
    """Ctrl-D at either question: 130, what is said begins on a line of its own, and it is true."""
    fill_many(source, 1, 30)
    assert cli.backup(source).code == 0
    asked, question = (source, "[y/N]:") if on_existing == "skip" else (target, "(collection_00):")
    if asked is target:
        fill_many(target, 1, 5)
    command = cli.command("restore.py", "--api-endpoint", asked.url, "--on-existing", on_existing)
    code, _, last = watch(command, columns=80, cwd=cli.directory, env=cli.environ, answers={question: "\x04"})
    assert code == 130, last.text()
    (said,) = [line for line in last.text().splitlines() if "Nothing was written." in line]
    assert said.endswith("Nothing was written.")
    assert question not in said
    assert not {"createCollection", "deleteCollection", "insertMany"} & {each.command for each in asked.requests}


def test_a_signal_at_a_question_ends_its_line_and_says_that_nothing_was_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the handler of a signal raises goes on, after a new line and a sentence."""
    place = SimpleNamespace(api_endpoint="http://x", keyspace="k", source="here")
    verified = SimpleNamespace(manifest=SimpleNamespace(source=place), snapshot=SimpleNamespace(name="n"))
    run: Any = SimpleNamespace(verified=verified, api=SimpleNamespace(target=place))

    def stopped(question: str, **_: bool) -> bool:
        click.echo(question, nl=False, err=True)
        raise SystemExit(130)

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(click, "confirm", stopped)
    monkeypatch.setattr(restore.log, "warning", lambda text: click.echo(text, err=True))
    with pytest.raises(SystemExit, match="130"):
        restore.ask_first(run, [], yes=False)
    assert capsys.readouterr().err.endswith("Continue?\nNothing was written.\n")
