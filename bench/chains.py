"""One collection read by many chains, against the bare serial page loop: whole processes, start-up included.

python -m bench.chains            prints a table and fails if a limit is broken; some five minutes
python -m bench.chains COUNT      one size only

Pages of 20 documents of 384 floats, 50 ms each; the server is a process of its own on the same cores. The bare loop
asks for one page after the other and keeps nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from bench.backup import Trial
from bench.measure import Usage, environment, run, server, way

PAGE, WAIT_MS, COLLECTION = 20, 50, "docs"
LIMITS = {18_000: {8: 5.5, 16: 9.0}, 6_000: {8: 4.0, 16: 5.5}}
BLIND_COUNT, BLIND_LIMIT = 18_000, 5.0  # a server that estimates 0


def measure(
    count: int, workers: tuple[int, ...], *options: str, bare: Usage | None = None
) -> tuple[Usage, list[Usage]]:
    """The bare loop, unless it is known, and the product with each number of workers."""
    served = ("--generate", str(count), "--page-size", str(PAGE), "--latency-ms", str(WAIT_MS), *options)
    with server("data_api", *served) as api, tempfile.TemporaryDirectory() as directory:
        there = Trial(api, Path(directory))
        if bare is None:
            bare = run(way("bare", api.url, COLLECTION), there.cwd, environment(api.url), watched=api)
        return bare, [backup(there, count, each) for each in workers]


def backup(there: Trial, count: int, workers: int) -> Usage:
    """Back up with so many workers; whatever is not exact raises AssertionError."""
    usage = there.ours(options=("--workers", str(workers)))
    (record,) = json.loads((there.snapshot() / "manifest.json").read_text())["collections"]
    assert record["document_count"] == count
    assert record["chains"] > 1
    return usage


def row(title: str, workers: int, bare: Usage, ours: Usage, limit: float) -> bool:
    """Print a row; whether the limit is met."""
    times = bare.wall_s / ours.wall_s
    print(
        f"| {title} | {workers} | {bare.wall_s:.1f} s | {ours.wall_s:.1f} s | {times:.1f} | {limit:.1f}"
        f" | {ours.peak_rss_mib:.0f} MiB |",
        flush=True,
    )
    return times >= limit


def main() -> int:
    """Print the table; 1 if a limit is broken."""
    chosen = [int(sys.argv[1])] if len(sys.argv) > 1 else list(LIMITS)
    print(
        "| documents | workers | bare loop | backup | times as fast | limit | memory |\n|---|---|---|---|---|---|---|"
    )
    is_good, bare = True, None
    for count in chosen:
        bare, found = measure(count, tuple(LIMITS[count]))
        for (workers, limit), ours in zip(LIMITS[count].items(), found, strict=True):
            is_good &= row(f"{count:,}", workers, bare, ours, limit)
        if count == BLIND_COUNT:
            _, (ours,) = measure(count, (8,), "--estimate-factor", "0", bare=bare)
            is_good &= row(f"{count:,}, estimated as 0", 8, bare, ours, BLIND_LIMIT)
    return not is_good


if __name__ == "__main__":
    sys.exit(main())
