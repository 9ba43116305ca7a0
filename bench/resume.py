"""The two long trials of a restore: killed at 50 random moments, and 50,000 documents where every tenth request fails.

    python -m bench.resume [--kills 50] [--documents 50000] [--seed 1]

The suite does the same with fewer. Both end with the same question: is the target what the source is, byte for byte?
Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.conftest import KEYSPACE, TOKEN, Cli
from tests.emulators.data_api import DataApiEmulator
from tests.test_policies import DENY, fill
from tests.test_restore import snapshot_of
from tests.test_resume import SIZES, Deadly, documents, every_tenth_fails, random_moment, run_until_killed


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
                    "in the middle of" if moment.index else "after" if moment.is_after else "before the request after"
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
