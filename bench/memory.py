"""Peak memory of backup, verify and restore for 10,000 and 200,000 documents of 384 floats.

python -m bench.memory            prints a table and fails if memory is not flat
"""

from __future__ import annotations

import sys

from bench.backup import trial
from bench.data import Collection
from bench.measure import Usage, environment, run, script, server

SIZES = (10_000, 200_000)
LIMITS_MIB = {"backup": 150, "verify": 150, "restore": 200}
MAX_GROWTH_MIB = 20


def measure(count: int) -> dict[str, Usage]:
    """Back up, verify and restore a collection of that size."""
    with trial([Collection("docs", "binary", 384, count)]) as there, server("data_api") as target:
        return {
            "backup": there.ours("docs"),
            "verify": run(script("restore.py", "--verify-only", str(there.snapshot())), there.cwd, {}),
            "restore": run(script("restore.py", str(there.snapshot())), there.cwd, environment(target.url)),
        }


def main() -> int:
    """Print the table; 1 if a limit is broken."""
    found = {count: measure(count) for count in SIZES}
    small, large = (found[count] for count in SIZES)
    is_flat = True
    print(f"| step | {SIZES[0]:,} documents | {SIZES[1]:,} documents | growth | limit |")
    print("|---|---|---|---|---|")
    for step, limit in LIMITS_MIB.items():
        growth = large[step].peak_rss_mib - small[step].peak_rss_mib
        is_flat &= large[step].peak_rss_mib <= limit and growth <= MAX_GROWTH_MIB
        print(
            f"| {step} | {small[step].peak_rss_mib:.0f} MiB, {small[step].wall_s:.0f} s"
            f" | {large[step].peak_rss_mib:.0f} MiB, {large[step].wall_s:.0f} s | {growth:+.0f} MiB | {limit} MiB |"
        )
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
