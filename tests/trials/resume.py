"""The two long trials of a restore: killed at 50 random moments, and 50,000 documents where every tenth request fails.

    python -m tests.trials.resume [--kills 50] [--documents 50000] [--seed 1]

The suite does the same with fewer. Both end with the same question: is the target what the source is, byte for byte?
Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.conftest import KEYSPACE, TOKEN, Cli
from tests.emulators.data_api import INDEXES, Collection, DataApiEmulator, Reply, Request
from tests.support import DENY, fill, snapshot_of

SIZES = {"many": 1500, "some": 450, "few": 3, "none": 0}


def documents(count: int) -> list[str]:
    """Small documents."""
    return [f'{{"_id":"d{number:05}","n":{number}}}' for number in range(count)]


class Deadly(DataApiEmulator):
    """A server that kills its client at the request whose turn has come, before or after it has done what was asked.

    Or in the middle of it: when it has made the index whose turn has come.
    """

    def __init__(self) -> None:
        super().__init__(token=TOKEN, page_size=500)
        self.victim: subprocess.Popen[str] | None = None
        self.at = 0
        self.is_after = False
        self.seen = 0
        self.index = 0
        self.lock = threading.Lock()

    def await_victim(self, process: subprocess.Popen[str]) -> None:
        """From now on requests are this process's."""
        self.victim = process

    def arm(self, at: int, *, is_after: bool, index: int = 0) -> None:
        """Kill at that request, or at that index that is made, counted from now."""
        self.victim, self.at, self.is_after, self.seen, self.index = None, at, is_after, 0, index

    def reply_to(self, request: Request) -> Reply:
        """Count, kill, or answer."""
        with self.lock:
            self.seen += 1
            is_due = self.seen == self.at
        if is_due and not self.is_after:
            self.kill()
            return Reply(delivery="reset")
        reply = super().reply_to(request)
        if is_due:
            self.kill()
        return reply

    def make_index(self, collection: Collection, name: str) -> None:
        """Make it, and wait for the end of the client if it was the one."""
        super().make_index(collection, name)
        self.index -= 1
        if self.index == 0:
            self.kill()
            while self.victim and self.victim.poll() is None:
                time.sleep(0.001)

    def settle(self) -> None:
        """Wait until what the client had sent before it died has been done."""
        done = -1
        while done != len(self.requests):
            done = len(self.requests)
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is flushed."""
        while self.victim is None:
            time.sleep(0.001)
        self.victim.send_signal(signal.SIGKILL)


class Moment(NamedTuple):
    """When to kill: before or after a request, or, if `creation` is not 0, in the middle of a creation."""

    at: int
    is_after: bool = False
    creation: int = 0


def random_moment(chance: random.Random) -> Moment:
    """Every third time in the middle of a creation."""
    if chance.random() < 1 / 3:
        return Moment(0, creation=chance.randint(1, len(SIZES) * len(INDEXES)))
    return Moment(chance.randint(1, 30), is_after=chance.random() < 0.5)


def run_until_killed(cli: Cli, target: Deadly, at: int | Moment, *arguments: object, is_after: bool = False) -> int:
    """Run a restore that is killed at a request, or at that moment, if it lives that long; return its code."""
    moment = at if isinstance(at, Moment) else Moment(at, is_after)
    target.arm(moment.at, is_after=moment.is_after, index=moment.creation)
    process = cli.start("restore.py", "--api-endpoint", target.url, *arguments)
    target.await_victim(process)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), err
    target.settle()
    target.arm(0, is_after=False)
    return process.returncode


SIX_WAYS: list[dict[str, object]] = [
    {"action": "status", "status": 429, "headers": {"Retry-After": "0"}},
    {"action": "status", "status": 503},
    {"action": "reset"},
    {"action": "reset_after"},
    {"action": "truncate"},
    {"action": "error", "errorCode": "TIMEOUT_WRITING_DATA"},
]


def every_tenth_fails(command: str) -> list[dict[str, object]]:
    """Rules by which every tenth request fails, in the six ways in turn."""
    return [{"command": command, "every": 60, "skip": 10 * number - 50, **way} for number, way in enumerate(SIX_WAYS)]


def is_equal(source: DataApiEmulator, target: DataApiEmulator) -> bool:
    """Whether two servers hold the same collections with the same texts, each once, and the target every index."""
    names = source.collections(KEYSPACE)
    is_whole = names == target.collections(KEYSPACE) and not target.missing_indexes(KEYSPACE)
    return is_whole and all(
        sorted(source.documents(KEYSPACE, name)) == sorted(target.documents(KEYSPACE, name)) for name in names
    )


def kill_and_resume(kills: int, seed: int) -> bool:
    """Kill a restore at random requests, resume it each time, compare; begin anew whenever one ends before its kill."""
    chance, moments, ended = random.Random(seed), Counter[str](), 0
    target = Deadly()
    with tempfile.TemporaryDirectory() as name, DataApiEmulator(token=TOKEN, page_size=500) as source, target:
        for collection, count in SIZES.items():
            fill(source, collection, documents(count), DENY)
        cli = Cli(Path(name))
        snapshot_of(source, cli)
        while moments.total() < kills:
            moment = random_moment(chance)
            target.requests.clear()
            if run_until_killed(cli, target, moment, "--resume"):
                last = next((record.command for record in reversed(target.requests) if record.command), "nothing")
                when = (
                    "in the middle of"
                    if moment.creation
                    else "after"
                    if moment.is_after
                    else "before the request after"
                )
                moments[f"{when} {last}"] += 1
                continue
            ended += 1
            if not is_equal(source, target):
                return False
            target.database.keyspaces[KEYSPACE].clear()
        code = cli.restore(target, "--resume").code
        print(f"killed {kills} times, {ended + 1} restores came to their end, exit code {code}")
        for text, count in moments.most_common():
            print(f"  {count:3} {text}")
        return code == 0 and is_equal(source, target)


def restore_under_pressure(count: int) -> bool:
    """Restore through a server that fails every tenth request in one of six ways, and compare."""
    with tempfile.TemporaryDirectory() as name, DataApiEmulator(token=TOKEN, page_size=500) as source:
        fill(source, "docs", documents(count), DENY)
        cli = Cli(Path(name))
        snapshot_of(source, cli)
        with DataApiEmulator(token=TOKEN, page_size=100) as target:
            target.faults = every_tenth_fails("insertMany") + every_tenth_fails("find")
            started = time.monotonic()
            result = cli.restore(target, BACKUP_RETRY_BUDGET="300")
            seconds = time.monotonic() - started
            fired = Counter(
                fault.options.get("status", fault.action) for fault in target.faults for _ in range(fault.fired)
            )
            print(f"{count:,} documents, {len(target.requests):,} requests, exit code {result.code}, {seconds:.0f} s")
            print("  failed: " + ", ".join(f"{times} {action}" for action, times in fired.items()))
            return result.code == 0 and is_equal(source, target)


def main() -> int:
    """Run both trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    verdicts = [kill_and_resume(options.kills, options.seed), restore_under_pressure(options.documents)]
    print("equal" if all(verdicts) else "DIFFERENT")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
