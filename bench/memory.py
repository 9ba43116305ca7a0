"""Peak memory with 16 workers: of backup, verify and restore of few and many documents, and of backups of large ones.

python -m bench.memory            prints two tables and fails if a limit is broken
"""

from __future__ import annotations

import sys

from bench.backup import Row, Size, row, trial
from bench.data import Collection
from bench.measure import Usage, environment, run, script, server

WORKERS = 16
SIZES = (20_000, 200_000)
LIMITS_MB = {"backup": 150, "verify": 150, "restore": 200}
MAX_GROWTH_MB = 20
LARGE = (("20 KB", 20_000, 4_000, 150), ("100 KB", 100_000, 1_000, 220), ("4 MB", 3_999_000, 60, 220))
"""Documents of a backup: their size as it is called and in bytes, how many, and the limit in MB."""


def large(size: Size) -> list[Row]:
    """Backups of large documents, 20 a page, as many requests at once as is usual at most."""
    made = [Collection(f"text_{each}", "text", each, max(size(count), 60)) for _, each, count, _ in LARGE]
    with trial(made, "--page-size", "20") as there:
        rows = [row([there.ours(each.name, workers=WORKERS)], each.count) for each in made]
    return [{"title": title, "limit": limit} | one for (title, _, _, limit), one in zip(LARGE, rows, strict=True)]


def growth(size: Size) -> list[Row]:
    """Backups of few and of many documents of 384 floats."""
    rows = []
    for count in map(size, SIZES):
        with trial([Collection("docs", "binary", 384, count)]) as there:
            rows.append(row([there.ours("docs", workers=WORKERS)], count))
    return rows


def measure(count: int) -> dict[str, Usage]:
    """Back up, verify and restore a collection of that size."""
    with trial([Collection("docs", "binary", 384, count)]) as there, server("data_api") as target:
        backup = there.ours("docs", workers=WORKERS)
        restore = script("restore.py", str(there.snapshot()), "--workers", str(WORKERS))
        return {
            "backup": backup,
            "verify": run(script("restore.py", "--verify-only", str(there.snapshot())), there.cwd, {}),
            "restore": run(restore, there.cwd, environment(target.url)),
        }


def main() -> int:
    """Print the tables; 1 if a limit is broken."""
    small, most = (measure(count) for count in SIZES)
    is_good = True
    print(f"| step | {SIZES[0]:,} documents | {SIZES[1]:,} documents | growth | limit |\n|---|---|---|---|---|")
    for step, limit in LIMITS_MB.items():
        first, last = small[step].peak_rss_mb, most[step].peak_rss_mb
        is_good &= last <= limit and last - first <= MAX_GROWTH_MB
        print(f"| {step} | {first:.0f} MB | {last:.0f} MB | {last - first:+.0f} MB | {limit} MB |")
    print("\n| documents of a backup | peak RSS | limit |\n|---|---|---|")
    for found in large(Size()):
        is_good &= found["rss_mb"] <= found["limit"]
        print(f"| {found['documents']:,} of {found['title']} | {found['rss_mb']:.0f} MB | {found['limit']} MB |")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
