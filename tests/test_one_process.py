"""One process does it all: on one core, without room for another, on Ctrl-C, with garbage collection off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli
from tests.emulators.data_api import DataApiEmulator
from tests.support import fill, same_documents, snapshot_of, wait_for, writes


def children(pid: int) -> list[str]:
    """The processes that one started."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.fixture
def slow(source: DataApiEmulator) -> DataApiEmulator:
    """A server with 600 documents that takes its time for each page."""
    fill(source, "docs", 600)
    source.latency_s = 0.15
    return source


def reads(emulator: DataApiEmulator) -> int:
    """How many pages were asked for."""
    return sum(request.command == "find" for request in emulator.requests)


def test_a_signal_to_the_group_ends_the_run_once(slow: DataApiEmulator, cli: Cli) -> None:
    """SIGINT to the process group, as Ctrl-C sends it: 130, said once, no traceback, and no other process starts."""
    command = cli.command("astra_backup.py", "--no-box", "--api-endpoint", slow.url)
    running = subprocess.Popen(
        command, cwd=cli.directory, env=cli.environ, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: reads(slow) >= 2)
    assert children(running.pid) == []
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=12)
    assert running.returncode == 130
    assert said.count("Stopped by SIG") == 1
    assert "Traceback" not in said
    slow.latency_s = 0
    assert cli.backup(slow).code == 0


def test_one_core_is_enough(slow: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """On one core a backup and a restore do what they do on two."""
    one = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    backup = [*one, *cli.command("astra_backup.py", "--no-box", "--api-endpoint", slow.url)]
    assert subprocess.run(backup, cwd=cli.directory, env=cli.environ, timeout=60).returncode == 0
    slow.latency_s = 0
    restore = [*one, *cli.command("restore.py", "--api-endpoint", target.url)]
    assert subprocess.run(restore, cwd=cli.directory, env=cli.environ, timeout=60).returncode == 0
    same_documents(slow, target)
    assert writes(target)


NO_GARBAGE = """
import gc, sys
sys.path.insert(0, sys.argv.pop(1))
gc.disable()
import restore
restore.run_command(restore.main)
"""


def test_a_collection_that_failed_leaves_the_others_alone(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A collection fails and no garbage is ever collected: the next one is restored to its end, exit 2."""
    fill(source, "docs", 1500)
    fill(source, "other", 1500)
    snapshot_of(source, cli)
    target.faults = [{"command": "insertMany", "collection": "docs", "action": "status", "status": 503, "times": None}]
    command = [sys.executable, "-c", NO_GARBAGE, str(ROOT), "--workers", "1"]
    environ = cli.environ | {"ASTRA_DB_API_ENDPOINT": target.url, "BACKUP_RETRY_BUDGET": "1"}
    done = subprocess.run(command, cwd=cli.directory, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "docs failed" in done.stderr
    assert len(target.documents("default_keyspace", "other")) == 1500
