"""A machine that fails: no space, no rights, no descriptors, a wrong clock, signals, a terminal that goes away."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import KEYSPACE, ROOT, TOKEN, Cli, Result
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.sabotage import SabotagedCli
from tests.support import NOBODY, STEPS, needs_root, same_documents, wait_for, watched
from tests.trials.kills import check_final_names, check_next_run, fill, final_names


@pytest.fixture(scope="module")
def source() -> Iterator[DataApiEmulator]:
    """A database with two collections, which no test changes."""
    with DataApiEmulator(token=TOKEN) as emulator:
        fill(emulator)
        yield emulator
    SabotagedCli.stop()


@pytest.fixture
def slow() -> Iterator[DataApiEmulator]:
    """The same database, far away."""
    with DataApiEmulator(token=TOKEN, latency_s=0.05) as emulator:
        fill(emulator)
        yield emulator


@pytest.fixture
def cli(tmp_path: Path) -> SabotagedCli:
    """The two scripts, in a directory of their own."""
    (tmp_path / "cwd").mkdir()
    return SabotagedCli(tmp_path / "cwd")


@pytest.fixture
def snapshot(cli: SabotagedCli, source: DataApiEmulator) -> Path:
    """A snapshot where `cli` looks for it."""
    assert cli.backup(source).code == 0
    return cli.snapshots()[0]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts small file systems, with the options given; skips where that is not allowed."""
    made: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / f"mounted-{len(made)}"
        path.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no mounting here: {done.stderr.strip()}")
        made.append(path)
        return path

    yield mount
    for path in made:
        subprocess.run(["umount", "-l", path], check=True)


def assert_clear(result: Result) -> None:
    """An error is a sentence, not a traceback, and no bug."""
    assert "Traceback" not in result.err
    assert "This is a bug" not in result.err
    assert result.code == 0 or re.search(r"ERROR .*[a-z]{3}", result.err)


def assert_honest(cli: SabotagedCli, result: Result, directory: Path | None = None) -> None:
    """The exit code says what is on the disk, and what has a final name is whole."""
    assert_clear(result)
    output_dir = directory or cli.backups
    names = [path.name for path in final_names(output_dir)]
    assert result.code in (0, 1, 2), result.err
    assert [name.endswith(".INCOMPLETE") for name in names] == {0: [False], 1: [], 2: [True]}[result.code]
    check_final_names(output_dir)


# ------------------------------------------------------------------------------------------------ no space


NEEDS_SPACE = [number for number, step in enumerate(STEPS, 1) if step.split()[0] in ("mkdir", "create", "write")]


@pytest.mark.parametrize("number", NEEDS_SPACE, ids=lambda number: STEPS[number - 1].replace(" ", "-"))
def test_a_disk_that_is_full_from_a_step_on(source: DataApiEmulator, cli: SabotagedCli, number: int) -> None:
    """The disk is full (ENOSPC) from one step of the backup on, whichever: exit 1, no final name, a clear error."""
    cli.sabotage = watched(cli, at=number, how="fail on")
    result = cli.backup(source, "--workers", 1)
    assert result.code == 1
    assert "No space left on device" in result.err
    assert_honest(cli, result)
    check_next_run(cli, source)


@pytest.mark.parametrize("number", range(1, len(STEPS)), ids=lambda number: STEPS[number - 1].replace(" ", "-"))
def test_a_step_that_fails_once(source: DataApiEmulator, cli: SabotagedCli, number: int) -> None:
    """One step fails with EIO: a data file's step is exit 2, any other exit 1; what has a final name is whole."""
    cli.sabotage = watched(cli, at=number, how="fail", error="EIO")
    result = cli.backup(source, "--workers", 1)
    assert result.code == (2 if ".jsonl.gz" in STEPS[number - 1] else 1)
    assert_honest(cli, result)
    check_next_run(cli, source)


def test_a_download_that_cannot_be_written(source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli) -> None:
    """What is wrong with the output directory is not looked for in the network."""
    cli.with_box(box)
    assert cli.run("astra_backup.py", "--api-endpoint", source.url).code == 0
    (cli.backups / f".{cli.snapshots()[-1].name}.zip.part").mkdir()
    result = cli.run("restore.py", "--from-box", "--verify-only")
    assert result.code == 1
    assert "Is a directory" in result.err
    assert "--output-dir" in result.err
    assert "network" not in result.err


def test_a_disk_that_is_full_during_a_download(source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli) -> None:
    """The disk is to blame, not the network, and what came of the file does not keep the room from the next backup."""
    cli.with_box(box)
    backup = cli.run("astra_backup.py", "--api-endpoint", source.url)
    assert backup.code == 0, backup.err
    shutil.rmtree(cli.backups)
    cli.backups.mkdir()
    cli.sabotage = watched(cli, at=2, how="fail on")
    result = cli.run("restore.py", "--from-box", "--keep-download", "--verify-only")
    assert_clear(result)
    assert result.code == 1
    assert "No space left on device" in result.err
    assert "Free some space" in result.err
    assert list(cli.backups.iterdir()) == []


@needs_root
@pytest.mark.parametrize("options", [f"size={pages * 4}k" for pages in range(1, 7)] + ["nr_inodes=3", "nr_inodes=5"])
def test_a_small_file_system(
    source: DataApiEmulator, cli: SabotagedCli, mounted: Callable[[str], Path], options: str
) -> None:
    """A real file system of 4 kB to 24 kB, or with 2 or 4 files: exit 0, 1 or 2, and the disk holds what it says."""
    directory = mounted(options)
    result = cli.backup(source, "--output-dir", directory)
    assert_honest(cli, result, directory)
    assert result.code == 0 or "No space left on device" in result.err
    assert result.code == 0 or options != "size=24k"


@pytest.mark.parametrize("kib", [1, 2, 3, 5])
def test_a_limit_on_file_sizes(source: DataApiEmulator, cli: SabotagedCli, kib: int) -> None:
    """`ulimit -f` of 1, 2, 3 and 5 kB: the data does not fit (2), nor the manifest (1), or all does (0)."""
    cli.sabotage = {"limits": {"FSIZE": kib * 1024}}
    result = cli.backup(source)
    assert_honest(cli, result)
    assert result.code == 0 or "File too large" in result.err


def test_a_full_disk_under_a_restore_costs_the_journal_only(
    snapshot: Path, source: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli
) -> None:
    """The disk is full from the journal's second line on: the restore goes on without it, exit 0, equal."""
    cli.sabotage = {
        "steps": {"directory": str(cli.backups), "log": f"{cli.directory}.steps", "at": 3, "how": "fail on"}
    }
    result = cli.restore(target)
    assert result.code == 0, result.err
    assert_clear(result)
    assert "journal" in result.err
    same_documents(source, target)
    assert list(cli.backups.glob(".restore-*")) == []


@needs_root
def test_no_room_for_the_comparison_of_a_restore(
    snapshot: Path, source: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, mounted: Callable[[str], Path]
) -> None:
    """TMPDIR is a full file system: everything is restored, the comparison is not made, exit 2; the next run: 0."""
    result = cli.restore(target, TMPDIR=str(mounted("size=4k")))
    assert result.code == 2
    assert_clear(result)
    assert "No space left on device" in result.err
    same_documents(source, target)
    assert cli.restore(target, "--on-existing", "skip").code == 0


# ------------------------------------------------------------------------------------------------ no rights


@needs_root
@pytest.mark.parametrize("run", ["backup", "restore"])
def test_a_read_only_file_system(
    source: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, mounted: Callable[[str], Path], run: str
) -> None:
    """A read-only output directory: a backup is exit 1; a restore works, without a journal, and says so."""
    directory = mounted("size=1m")
    assert cli.backup(source, "--output-dir", directory).code == 0
    subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
    if run == "backup":
        result = cli.backup(source, "--output-dir", directory)
        assert result.code == 1
        assert "Read-only file system" in result.err
    else:
        result = cli.restore(target, "--output-dir", directory)
        assert result.code == 0
        assert "No journal" in result.err
        same_documents(source, target)
    assert_clear(result)
    assert check_final_names(directory) == 1


@needs_root
@pytest.mark.parametrize("mode", [0o000, 0o500, 0o444])
def test_no_permission_for_the_output_directory(source: DataApiEmulator, tmp_path: Path, mode: int) -> None:
    """Another user may not write to the output directory, may not enter it, may not see it: exit 1, and named."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own directories are closed to other users
        os.chmod(name, 0o755)
        cli = SabotagedCli(Path(name, "cwd"))
        cli.directory.mkdir()
        cli.backups.mkdir(mode=0o700)
        os.chown(cli.backups, NOBODY, NOBODY)
        cli.backups.chmod(mode)
        cli.sabotage = {"uid": NOBODY}
        result = cli.backup(source)
        assert result.code == 1
        assert_clear(result)
        assert "backups" in result.err
        assert "Permission denied" in result.err or "not readable" in result.err
        assert list(cli.backups.iterdir()) == []


@needs_root
def test_another_user_makes_and_restores_snapshots(source: DataApiEmulator, target: DataApiEmulator) -> None:
    """A user without root's rights, as in the image, backs up and restores: exit 0."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        cli = SabotagedCli(Path(name, "cwd"))
        cli.directory.mkdir()
        os.chown(cli.directory, NOBODY, NOBODY)
        cli.sabotage = {"uid": NOBODY}
        assert cli.backup(source).code == 0
        assert cli.restore(target).code == 0
        same_documents(source, target)
        cli.snapshots()[0].joinpath("manifest.json").chmod(0)
        result = cli.run("restore.py", "--verify-only")
        assert result.code in (1, 3), result.err
        assert_clear(result)


# ------------------------------------------------------------------------------------------------ another place


def test_an_output_directory_that_vanishes(slow: DataApiEmulator, cli: SabotagedCli) -> None:
    """Somebody removes the output directory in the middle: exit 1, nothing is left, and the next run works."""
    running = cli.begin("astra_backup.py", "--no-box", "--api-endpoint", slow.url)
    wait_for(lambda: any(request.command == "find" for request in slow.requests))
    shutil.rmtree(cli.backups)
    result = running.wait()
    assert result.code == 1
    assert_honest(cli, result)
    slow.latency_s = 0
    check_next_run(cli, slow)


def test_a_snapshot_that_vanishes_under_a_restore(snapshot: Path, target: DataApiEmulator, cli: SabotagedCli) -> None:
    """Somebody removes the snapshot in the middle: exit 2, with the reason."""
    target.latency_s = 0.05
    running = cli.begin("restore.py", "--api-endpoint", target.url)
    wait_for(lambda: any(request.command == "insertMany" for request in target.requests))
    shutil.rmtree(snapshot)
    result = running.wait()
    assert result.code == 2
    assert_clear(result)
    assert "No such file" in result.err


def test_an_output_directory_on_another_device(source: DataApiEmulator, cli: SabotagedCli, tmp_path: Path) -> None:
    """The output directory is a link to another file system: exit 0, all there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        assert os.stat(name).st_dev != os.stat(tmp_path).st_dev
        cli.backups.symlink_to(name)
        assert cli.backup(source).code == 0
        assert check_final_names(Path(name)) == 1
        assert cli.run("restore.py", "--verify-only").code == 0


# ------------------------------------------------------------------------------------------------ the clock


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_clock_that_jumps_back(source: DataApiEmulator, cli: SabotagedCli, after: int) -> None:
    """The clock jumps back an hour before or during a run: exit 0, whole, no duration is negative."""
    assert cli.backup(source).code == 0
    cli.sabotage = {"clock": {"after": after, "seconds": 3600}}
    result = cli.backup(source)
    assert result.code == 0, result.err
    assert check_final_names(cli.backups) == 2
    manifests = [json.loads((path / "manifest.json").read_text()) for path in cli.snapshots()]
    assert all(0 <= manifest["duration_seconds"] < 60 for manifest in manifests)
    assert all(manifest["created_at_utc"] <= manifest["finished_at_utc"] for manifest in manifests)
    assert ("from the future" in result.err) == (cli.snapshots()[-1].name not in result.out)


# ------------------------------------------------------------------------------------------------ two at once


def test_two_backups_at_once(slow: DataApiEmulator, cli: SabotagedCli) -> None:
    """Two backups into one directory: one is exit 0, the other exit 4 and has touched nothing."""
    first = Cli(cli.directory).start("astra_backup.py", "--no-box", "--api-endpoint", slow.url)
    wait_for(lambda: any(request.command == "find" for request in slow.requests))
    seen = len(slow.requests)
    slow.latency_s = 2.0
    second = cli.run("astra_backup.py", "--no-box", "--api-endpoint", "http://127.0.0.1:1")
    assert second.code == 4
    assert_clear(second)
    slow.latency_s = 0
    first.communicate(timeout=30)
    assert first.returncode == 0
    assert seen
    assert check_final_names(cli.backups) == 1


def test_five_backups_at_once(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """Five start at the same moment: each ends in 0 or 4, and there are as many snapshots as zeros."""
    command = ("astra_backup.py", "--no-box", "--api-endpoint", source.url)
    running = [Cli(cli.directory).start(*command) for _ in range(5)]
    for process in running:
        process.communicate(timeout=60)
    codes = [process.returncode for process in running]
    assert set(codes) <= {0, 4}
    assert check_final_names(cli.backups) == codes.count(0) >= 1


# ------------------------------------------------------------------------------------------------ signals


SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
STAGES = {
    "first request": {"command": "findCollections"},
    "a count": {"command": "estimatedDocumentCount"},
    "a page": {"command": "find", "skip": 1},
    "the last look": {"command": "findCollections", "skip": 1},
}
RESTORE_STAGES = {
    "first request": {"command": "findCollections"},
    "a creation": {"command": "createCollection"},
    "an insert": {"command": "insertMany", "skip": 1},
    "the comparison": {"command": "find"},
}


def stop_at(cli: SabotagedCli, emulator: DataApiEmulator, rule: dict[str, Any], name: str, script: str) -> None:
    """A script that waits for the reply to a request gets a signal, ends in time with the right code."""
    emulator.faults = [{**rule, "action": "silence", "times": None}]
    more = ["--no-box"] if script == "astra_backup.py" else []
    running = cli.begin(script, *more, "--api-endpoint", emulator.url)
    wait_for(lambda: emulator.faults[0].fired)
    started = time.monotonic()
    running.kill(getattr(signal, name))
    result = running.wait()
    assert time.monotonic() - started < 10
    assert result.code == SIGNALS[name], result.err
    assert_clear(result)
    emulator.faults = []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_stops_a_backup(cli: SabotagedCli, stage: str, name: str) -> None:
    """SIGINT, SIGTERM or SIGHUP at each stage of a backup: 130, 143 or 129 within 10 s, no final name; next run: 0."""
    with DataApiEmulator(token=TOKEN) as emulator:
        fill(emulator)
        stop_at(cli, emulator, STAGES[stage], name, "astra_backup.py")
        assert final_names(cli.backups) == []
        check_next_run(cli, emulator)


@pytest.mark.parametrize("stage", RESTORE_STAGES)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_stops_a_restore(
    snapshot: Path, source: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, stage: str, name: str
) -> None:
    """SIGINT, SIGTERM or SIGHUP at each stage of a restore: 130, 143 or 129 within 10 s; `--resume` completes it."""
    stop_at(cli, target, RESTORE_STAGES[stage], name, "restore.py")
    result = cli.restore(target, "--resume")
    assert result.code == 0, result.err
    same_documents(source, target)


def test_a_signal_at_any_moment(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """SIGTERM at twelve random moments of a backup: 143 or, too late, 0; within 10 s; final names are whole."""
    chance = random.Random(3)
    for _ in range(12):
        running = cli.begin("astra_backup.py", "--no-box", "--api-endpoint", source.url)
        time.sleep(chance.uniform(0.02, 0.2))
        started = time.monotonic()
        running.kill(signal.SIGTERM)
        assert running.wait().code in (143, 0, -signal.SIGTERM)  # the last before the first line of ours
        assert time.monotonic() - started < 10
        check_final_names(cli.backups)
    check_next_run(cli, source)


STOPS_ITSELF = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import astra_backup

def stop():
    os.kill(os.getpid(), int(sys.argv[2]))
    sum(range(1000))  # a handler runs between two steps

class Finalized:
    def __del__(self):
        stop()

def in_the_event():
    with astra_backup.stop_event._cond:
        stop()

def in_a_finalizer():
    Finalized()
    raise astra_backup.BackupError("stopped")

command = astra_backup.click.Command("command")
command.main = lambda **_: globals()[sys.argv[1]]()
astra_backup.run_command(command)
"""


def stop_itself(where: str, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Run a command that sends itself a signal there."""
    command = [sys.executable, "-c", STOPS_ITSELF, str(ROOT), where, str(int(number))]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=12)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_looking_for_one(number: signal.Signals) -> None:
    """SIGINT or SIGTERM while the main thread holds the lock that the handler wants: 130 or 143 within 12 s."""
    assert stop_itself("in_the_event", number).returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_finalizer(number: signal.Signals) -> None:
    """SIGINT or SIGTERM where Python ignores what a handler raises: 130 or 143 all the same, and it is said."""
    done = stop_itself("in_a_finalizer", number)
    assert done.returncode == 128 + number
    assert f"Stopped by {number.name}." in done.stderr


def test_a_signal_while_it_waits_for_a_retry(slow: DataApiEmulator, cli: SabotagedCli) -> None:
    """SIGTERM during a back-off of minutes ends it at once."""
    slow.faults = [{"action": "status", "status": 429, "headers": {"Retry-After": "200"}, "times": None}]
    running = cli.begin("astra_backup.py", "--no-box", "--api-endpoint", slow.url, BACKUP_RETRY_BUDGET="300")
    wait_for(lambda: slow.faults[0].fired)
    time.sleep(0.3)
    started = time.monotonic()
    running.kill(signal.SIGTERM)
    assert running.wait().code == 143
    assert time.monotonic() - started < 5


# ------------------------------------------------------------------------------------------------ no descriptors


@pytest.mark.parametrize("limit", [4, 6, 7, 8, 9, 10, 12, 16, 24])
def test_out_of_file_descriptors(
    source: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, limit: int
) -> None:
    """`ulimit -n` from 4 to 24: exit 0, 1 or 2 in time, a clear error, and the disk holds what the code says."""
    cli.sabotage = {"limits": {"NOFILE": limit}, "speed": 50.0}
    result = cli.backup(source)
    assert_honest(cli, result)
    cli.sabotage = {}
    check_next_run(cli, source)
    cli.sabotage = {"limits": {"NOFILE": limit}, "speed": 50.0}
    result = cli.restore(target)
    assert_clear(result)
    assert result.code in (0, 1, 2, 3), result.err
    if result.code in (1, 3):
        assert target.collections(KEYSPACE) == {}, result.err


# ------------------------------------------------------------------------------------------------ the terminal


def take_terminal(ignore_hangup: bool) -> None:
    """Make stdin the terminal of this process, whose end is a SIGHUP, which `nohup` lets be ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if ignore_hangup:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def run_on_terminal(cli: SabotagedCli, emulator: DataApiEmulator, script: str, ignore_hangup: bool) -> int:
    """Run a script on a terminal that is closed in the middle; return its exit code."""
    controller, terminal = pty.openpty()
    command = cli.command(
        script, *(["--no-box"] if script == "astra_backup.py" else []), "--api-endpoint", emulator.url
    )
    running = subprocess.Popen(
        command,
        cwd=cli.directory,
        env=cli.environ | {"TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: take_terminal(ignore_hangup),
    )
    os.close(terminal)
    seen = b""
    deadline = time.monotonic() + 20
    while b"docs" not in seen and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            seen += os.read(controller, 4096)
    os.close(controller)
    return running.wait(timeout=30)


@pytest.mark.parametrize("script", ["astra_backup.py", "restore.py"])
def test_a_terminal_that_closes_stops_a_run(
    snapshot: Path, slow: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, script: str
) -> None:
    """The terminal is closed in the middle: 129 (SIGHUP), nothing half; the next run works."""
    target.latency_s = slow.latency_s = 0.3
    emulator = slow if script == "astra_backup.py" else target
    assert run_on_terminal(cli, emulator, script, ignore_hangup=False) == 129
    assert check_final_names(cli.backups) == 1
    target.latency_s = slow.latency_s = 0
    assert (cli.backup(slow) if script == "astra_backup.py" else cli.restore(target, "--resume")).code == 0


@pytest.mark.parametrize("script", ["astra_backup.py", "restore.py"])
def test_a_terminal_that_closes_under_nohup_stops_nothing(
    snapshot: Path,
    source: DataApiEmulator,
    slow: DataApiEmulator,
    target: DataApiEmulator,
    cli: SabotagedCli,
    script: str,
) -> None:
    """With `nohup`, progress bars lose their terminal and the run goes on: exit 0, whole."""
    target.latency_s = slow.latency_s = 0.2
    emulator = slow if script == "astra_backup.py" else target
    assert run_on_terminal(cli, emulator, script, ignore_hangup=True) == 0
    assert check_final_names(cli.backups) == (2 if script == "astra_backup.py" else 1)
    if script == "restore.py":
        same_documents(source, target)


@pytest.mark.parametrize("script", ["astra_backup.py", "restore.py"])
@pytest.mark.parametrize("out", ["full", "closed pipe", "no stdout", "no streams"])
def test_output_that_goes_nowhere(
    snapshot: Path, source: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, out: str, script: str
) -> None:
    """Stdout and stderr are full, a closed pipe, or not there at all: exit 0, and the files are whole."""
    emulator = source if script == "astra_backup.py" else target
    command = cli.command(script, "--api-endpoint", emulator.url, *(["--no-box"] if emulator is source else []))
    shell = {
        "full": '"$@" >/dev/full 2>/dev/full',
        "closed pipe": '{ "$@" 2>&1; echo $? >code; } | true; exit $(cat code)',
        "no stdout": '"$@" >&-',
        "no streams": '"$@" <&- >&- 2>&-',
    }[out]
    done = subprocess.run(["bash", "-c", shell, "-", *command], cwd=cli.directory, env=cli.environ, timeout=60)
    assert done.returncode == 0
    assert check_final_names(cli.backups) == (2 if emulator is source else 1)
    if emulator is target:
        same_documents(source, target)
