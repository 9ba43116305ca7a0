"""Histories of collections that change while they are scanned: `python -m tests.trials.histories [--count 200000]`.

Each history is one of tests/simulator.py: the product's own scan, against a server that may mislead it, while documents
come, go and are replaced. Prints how many joined, were read serially and did not join; exits with 1 if one that ended
well lost a document that stayed throughout, or holds one twice. `--first N --count 1` plays one again. `--variants`
plays them with one rule of the scan left out at a time, and prints how many violations each makes.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections import Counter

from tests.simulator import VARIANTS, History, Outcome, play_many

CHUNK = 1000


def play_chunk(seeds: range) -> tuple[Counter[Outcome], list[History]]:
    """What came of some histories, and those that break the promise."""
    histories = list(play_many(seeds))
    return Counter(history.outcome for history in histories), [each for each in histories if each.is_violation]


def play_variants(seeds: range) -> None:
    """Print what each variant of the rules makes of the same histories."""
    for name, rules in VARIANTS.items():
        histories = list(play_many(seeds, rules))
        apart = sum(each.is_calm and each.outcome is Outcome.NOT_JOINED for each in histories)
        print(f"{name}: {sum(each.is_violation for each in histories)} violations, {apart} calm ones did not join")


def main() -> int:
    """Play them all; 1 if one breaks the promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first history")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--variants", action="store_true", help="with one rule left out at a time")
    options = parser.parse_args()
    end = options.first + options.count
    if options.variants:
        play_variants(range(options.first, end))
        return 0
    chunks = [range(at, min(at + CHUNK, end)) for at in range(options.first, end, CHUNK)]
    begun = time.monotonic()
    with multiprocessing.Pool(options.processes) as pool:
        results = pool.map(play_chunk, chunks, chunksize=1)
    outcomes = sum((counts for counts, _ in results), Counter[Outcome]())
    violations = list(itertools.chain.from_iterable(found for _, found in results))
    told = ", ".join(f"{outcomes[outcome]:,} {outcome.value}" for outcome in Outcome)
    print(f"{options.count:,} histories: {told}, {len(violations)} violations; {time.monotonic() - begun:.0f} s")
    for history in violations[:10]:
        print(history, file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
