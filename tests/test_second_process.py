"""The second process, which reads back and reads ahead: a run that loses it, and what becomes of it without a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli
from tests.emulators.data_api import DataApiEmulator
from tests.test_backup import fill, wait_for
from tests.test_local import print_table
from tests.test_restore import same_documents, snapshot_of, writes


def children(pid: int) -> list[int]:
    """The processes that one started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def the_child(pid: int) -> int:
    """The second process of a run, as soon as there is one."""
    wait_for(lambda: len(children(pid)) == 1)
    return children(pid)[0]


def is_alive(pid: int) -> bool:
    """Whether a process still runs."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except FileNotFoundError:
        return False


@pytest.fixture
def slow(source: DataApiEmulator) -> DataApiEmulator:
    """A server with 600 documents that takes its time for each page."""
    fill(source, "docs", 600)
    source.latency_s = 0.15
    return source


def reads(emulator: DataApiEmulator) -> int:
    """How many pages were asked for."""
    return sum(request.command == "find" for request in emulator.requests)


@pytest.mark.parametrize("pages", [1, 5])
def test_a_backup_that_loses_it_is_whole_nevertheless(slow: DataApiEmulator, cli: Cli, pages: int) -> None:
    """SIGKILL to the second process of a backup: the first reads back itself, says so; exit 0, and it verifies."""
    running = cli.start("astra_backup.py", "--no-box", "--api-endpoint", slow.url)
    child = the_child(running.pid)
    wait_for(lambda: reads(slow) >= pages)
    os.kill(child, signal.SIGKILL)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 0, said
    assert "is gone; reading it again" in said
    assert cli.run("restore.py", "--verify-only").code == 0


@pytest.mark.parametrize("command", ["insertMany", "find"])
def test_a_restore_that_loses_it_is_whole_nevertheless(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, command: str
) -> None:
    """SIGKILL to that of a restore that writes or compares: the first reads on where it was; exit 0, equal."""
    fill(source, "docs", 1500)
    snapshot_of(source, cli)
    target.latency_s = 0.1
    running = cli.start("restore.py", "--api-endpoint", target.url, "--workers", 1)
    child = the_child(running.pid)
    wait_for(lambda: any(request.command == command for request in target.requests))
    os.kill(child, signal.SIGKILL)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 0, said
    if command == "insertMany":  # it is missed twice; by the first page of the comparison it may have done its work
        assert "going on without it" in said
        assert "reading it here" in said
    same_documents(source, target)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_ends_with_the_run(slow: DataApiEmulator, cli: Cli, number: signal.Signals) -> None:
    """SIGKILL, SIGTERM, SIGINT or SIGHUP to the first: the second ends at once, and the next run has the directory."""
    running = cli.start("astra_backup.py", "--no-box", "--api-endpoint", slow.url)
    child = the_child(running.pid)
    wait_for(lambda: reads(slow) >= 2)
    running.send_signal(number)
    started = time.monotonic()
    running.communicate(timeout=12)  # waits for whoever holds its standard error
    assert time.monotonic() - started < 10
    wait_for(lambda: not is_alive(child), 2)
    slow.latency_s = 0
    assert cli.backup(slow).code == 0


def test_a_signal_to_the_group_is_the_first_ones_business(slow: DataApiEmulator, cli: Cli) -> None:
    """SIGINT to both, as Ctrl-C sends it: 130, said once, and none of them is left."""
    command = cli.command("astra_backup.py", "--no-box", "--api-endpoint", slow.url)
    running = subprocess.Popen(
        command, cwd=cli.directory, env=cli.environ, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    child = the_child(running.pid)
    wait_for(lambda: reads(slow) >= 2)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=12)
    assert running.returncode == 130
    assert said.count("Stopped by signal") == 1
    assert "Traceback" not in said
    wait_for(lambda: not is_alive(child), 2)


def test_on_one_core_there_is_none(slow: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """On one core there is no second process: a thread does its work, with the same result."""
    one = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    command = [*one, *cli.command("astra_backup.py", "--no-box", "--api-endpoint", slow.url)]
    running = subprocess.Popen(command, cwd=cli.directory, env=cli.environ, stderr=subprocess.PIPE)
    wait_for(lambda: reads(slow) >= 2)
    assert children(running.pid) == []
    running.communicate(timeout=60)
    assert running.returncode == 0
    slow.latency_s = 0
    restore = [*one, *cli.command("restore.py", "--api-endpoint", target.url)]
    assert subprocess.run(restore, cwd=cli.directory, env=cli.environ, timeout=60).returncode == 0
    same_documents(slow, target)
    assert writes(target)


FINALIZES_WHILE_IT_SENDS = """
import multiprocessing, sys, threading
sys.path.insert(0, sys.argv[1])
from astra_backup import Switchboard

ours, theirs = multiprocessing.Pipe()
here, there = Switchboard(ours), Switchboard(theirs)
call, other = here.call(1), there.call(1)
threading.Thread(target=there.run, daemon=True).start()

class Message:
    def __init__(self, when):
        self.when = when

    def __getstate__(self):  # as when Python finds garbage in the middle of sending, and what it finalizes sends
        if self.when == "pickled":
            call.send("finalized")
        return {"when": "arrived"}

send_bytes = ours.send_bytes

def send(text):
    if b"garbage" in text:
        call.send("finalized")
    send_bytes(text)

ours.send_bytes = send
call.send(Message(sys.argv[2]) if sys.argv[2] == "pickled" else "garbage")
print(sorted([type(other.receive()).__name__, type(other.receive()).__name__]))
"""


@pytest.mark.parametrize(("when", "kinds"), [("pickled", ["Message", "str"]), ("written", ["str", "str"])])
def test_what_is_finalized_while_a_message_is_sent_may_send_one(when: str, kinds: list[str]) -> None:
    """Python may finalize something at any allocation; should that send, both messages arrive, and nothing hangs."""
    command = [sys.executable, "-c", FINALIZES_WHILE_IT_SENDS, str(ROOT), when]
    assert subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout == f"{kinds}\n"


def test_who_reads_ahead_for_a_collection_that_failed_stops_at_once(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A collection fails, no garbage is ever collected: its reader is gone while the next is restored."""
    fill(source, "docs", 1500)
    fill(source, "other", 1500)
    snapshot_of(source, cli)
    target.faults = [{"command": "insertMany", "collection": "docs", "action": "status", "status": 503, "times": None}]
    target.latency_s = 0.1
    command = [sys.executable, "-c", NO_GARBAGE, str(ROOT), "--workers", "1"]
    environ = cli.environ | {"ASTRA_DB_API_ENDPOINT": target.url, "BACKUP_RETRY_BUDGET": "1"}
    running = subprocess.Popen(command, cwd=cli.directory, env=environ, stderr=subprocess.PIPE, text=True)
    child = the_child(running.pid)
    wait_for(lambda: sum(r.command == "insertMany" and r.collection == "other" for r in target.requests) > 2)
    wait_for(lambda: len(os.listdir(f"/proc/{child}/task")) == 2, 1)  # its own, and that for the other collection
    assert running.poll() is None
    assert "docs failed" in running.communicate(timeout=60)[1]


NO_GARBAGE = """
import gc, sys
sys.path.insert(0, sys.argv.pop(1))
gc.disable()
import restore
restore.run_command(restore.main)
"""


NO_ROOM = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))

def fork():
    raise BlockingIOError(11, "Resource temporarily unavailable")

os.fork = fork
import astra_backup
astra_backup.run_command(astra_backup.main)
"""


def test_where_no_process_can_be_made_a_thread_does_its_work(source: DataApiEmulator, cli: Cli) -> None:
    """No process can be made (EAGAIN): a thread does its work, exit 0, and it verifies."""
    fill(source, "docs", 120)
    command = [sys.executable, "-c", NO_ROOM, str(ROOT), "--no-box"]
    environ = cli.environ | {"ASTRA_DB_API_ENDPOINT": source.url}
    done = subprocess.run(command, cwd=cli.directory, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert cli.run("restore.py", "--verify-only").code == 0


def print_rows() -> None:
    """Print the table of docs/RELIABILITY.md."""
    print_table(globals(), "tests/test_second_process.py")
