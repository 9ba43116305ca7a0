"""Kill the two scripts with SIGKILL, again and again, and see what they leave.

    python -m tests.trials.kills --count 1000

Three ways: backups at random moments, restores at random moments, and, where strace works, a backup at each of its
calls of write, fsync, mkdir and rename. After each kill every directory with a final name must verify, and the next run
must sweep what was left and succeed; a restore must be resumed to a target that equals the snapshot. Raises
AssertionError at the first that does not.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from astra_backup import INCOMPLETE_SUFFIX, Report, parse_snapshot_name
from restore import open_snapshot, verify_snapshot
from tests.conftest import KEYSPACE, TOKEN
from tests.emulators.data_api import DataApiEmulator
from tests.sabotage import SabotagedCli

SIZES = {"docs": 230, "other": 3}
RESTORES = 5  # kills of a backup for each of a restore
SYSCALLS = ("mkdir", "write", "fsync", "rename")
FINISHING_S = 0.04  # about what it takes to finish a snapshot


def fill(emulator: DataApiEmulator) -> None:
    """Two small collections, one of five pages."""
    for name, count in SIZES.items():
        emulator.create(KEYSPACE, name, {"indexing": {"deny": ["n"]}})
        for number in range(count):
            emulator.put(KEYSPACE, name, f'{{"_id":"d{number:05}","n":{number}}}')


def final_names(output_dir: Path) -> list[Path]:
    """What has the name of a snapshot, complete or not."""
    found = output_dir.iterdir() if output_dir.exists() else []
    return sorted(path for path in found if parse_snapshot_name(path.name))


def check_final_names(output_dir: Path) -> int:
    """Verify, as restore.py would, everything with a final name; return how many there are. Raises BackupError."""
    found = final_names(output_dir)
    for path in found:
        forced = path.name.endswith(INCOMPLETE_SUFFIX)
        verify_snapshot(open_snapshot(path), force_incomplete=forced, workers=1, report=Report(quiet=True))
    return len(found)


def check_next_run(cli: SabotagedCli, source: DataApiEmulator) -> None:
    """The next backup sweeps and succeeds, and only whole snapshots are left: INCOMPLETE ones are superseded by it."""
    check_final_names(cli.backups)
    complete = sum(not path.name.endswith(INCOMPLETE_SUFFIX) for path in final_names(cli.backups))
    cli.sabotage = {}
    result = cli.backup(source)
    assert result.code == 0, result.err
    assert check_final_names(cli.backups) == complete + 1
    left = [path.name for path in cli.backups.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    assert left == [], left


def new_cli(directory: Path, name: str) -> SabotagedCli:
    """The scripts in an empty directory of their own."""
    shutil.rmtree(directory / name, ignore_errors=True)
    (directory / name).mkdir(parents=True)
    return SabotagedCli(directory / name)


def wait_for_last_page(source: DataApiEmulator) -> None:
    """Wait until a backup has asked for all it reads, so that it is about to finish."""
    pages = sum(-(-count // source.page_size) for count in SIZES.values())
    deadline = time.monotonic() + 5
    while sum(request.command == "find" for request in source.requests) < pages and time.monotonic() < deadline:
        time.sleep(0.001)


def kill_backups(count: int, source: DataApiEmulator, directory: Path, chance: random.Random) -> Counter[str]:
    """Kill backups, every second one while it finishes; return how often each thing was left.

    A run that ends before is no kill.
    """
    cli = new_cli(directory, "timing")
    assert cli.backup(source).code == 0
    started = time.monotonic()
    assert cli.backup(source, "--output-dir", "other").code == 0
    usual_s = time.monotonic() - started
    left: Counter[str] = Counter()
    while left.total() < count:
        cli = new_cli(directory, "killed")
        source.requests.clear()
        running = cli.begin("astra_backup.py", "--no-box", "--api-endpoint", source.url)
        if left.total() % 2:
            wait_for_last_page(source)
            time.sleep(chance.uniform(0, FINISHING_S))
        else:
            time.sleep(chance.uniform(0, usual_s))
        running.kill()
        if running.wait().code != -signal.SIGKILL:
            continue
        is_begun = any(path.name.endswith(".inprogress") for path in cli.backups.glob(".*"))
        left["a run in progress" if is_begun else "a snapshot" if final_names(cli.backups) else "nothing"] += 1
        check_next_run(cli, source)
    return left


def kill_restores(count: int, source: DataApiEmulator, directory: Path, chance: random.Random) -> Counter[str]:
    """Kill restores at random moments and resume each; return how many had begun to write."""
    cli = new_cli(directory, "restored")
    assert cli.backup(source).code == 0
    left: Counter[str] = Counter()
    with DataApiEmulator(token=TOKEN, create_s=0.1) as target:
        started = time.monotonic()
        assert cli.restore(target).code == 0
        usual_s = time.monotonic() - started
        while left.total() < count:
            target.database.keyspaces[KEYSPACE].clear()
            running = cli.begin("restore.py", "--api-endpoint", target.url)
            time.sleep(chance.uniform(0, usual_s))
            running.kill()
            if running.wait().code != -signal.SIGKILL:
                continue
            time.sleep(0.05)  # what was under way reaches the server
            is_cut_off = bool(target.missing_indexes(KEYSPACE))
            left["indexes missing" if is_cut_off else "collections" if target.collections(KEYSPACE) else "nothing"] += 1
            result = cli.restore(target, "--resume")
            assert result.code == 0, result.err
            for name in SIZES:
                assert sorted(target.documents(KEYSPACE, name)) == sorted(source.documents(KEYSPACE, name))
            assert target.missing_indexes(KEYSPACE) == {}
            assert not list(cli.backups.glob(".restore-*"))
    return left


def has_strace() -> bool:
    """Whether strace is there and may trace."""
    try:
        return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def kill_at_each_call(source: DataApiEmulator, directory: Path) -> Counter[str]:
    """Kill a backup at its first call of each kind that changes a file, at its second, …; return how many there are."""
    killed: Counter[str] = Counter()
    for name in SYSCALLS:
        while True:
            cli = new_cli(directory, "traced")
            inject = f"inject={name}:signal=KILL:when={killed[name] + 1}"
            command = cli.command("astra_backup.py", "-q", "--no-box", "--workers", 1, "--api-endpoint", source.url)
            traced = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={name}", "-e", inject, *command]
            done = subprocess.run(traced, cwd=cli.directory, env=cli.environ, capture_output=True, check=False)
            if done.returncode == 0:
                break
            assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
            killed[name] += 1
            check_next_run(cli, source)
    return killed


def main() -> None:
    """Print how often it was done and what was left."""
    parser = argparse.ArgumentParser(prog="python -m tests.trials.kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="kills of backups; of restores a fifth of it")
    parser.add_argument("--seed", type=int, default=20260616)
    options = parser.parse_args()
    started = time.monotonic()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name, DataApiEmulator(token=TOKEN, latency_s=0.002) as source:
        fill(source)
        try:
            backups = kill_backups(options.count, source, Path(name), chance)
            print(f"{options.count} backups killed; left: {dict(backups)}; each final name verified", flush=True)
            restores = kill_restores(options.count // RESTORES, source, Path(name), chance)
            print(f"{options.count // RESTORES} restores killed and resumed; left: {dict(restores)}", flush=True)
            if has_strace():
                print(f"a backup killed at each of its calls: {dict(kill_at_each_call(source, Path(name)))}")
            else:
                print("no strace here: not killed at each system call", file=sys.stderr)
        finally:
            SabotagedCli.stop()
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
