"""Peak memory of backup, verify and restore for 20,000 and 200,000 documents of 384 floats.

python -m bench.memory            prints a table and fails if memory is not flat
"""

from __future__ import annotations

import base64
import random
import sys
import tempfile
from pathlib import Path

from bench.measure import Usage, environment, run, script
from tests.emulators.data_api import DataApiEmulator

KEYSPACE = "default_keyspace"
SIZES = (20_000, 200_000)
LIMITS_MIB = {"backup": 150, "verify": 150, "restore": 200}
MAX_GROWTH_MIB = 20


def fill(emulator: DataApiEmulator, count: int) -> None:
    """Documents of 384 random floats in binary form, with some text."""
    noise = random.Random(count)
    emulator.create(KEYSPACE, "docs", {"vector": {"dimension": 384, "metric": "cosine"}})
    import struct

    for number in range(count):
        floats = [noise.uniform(-0.2, 0.2) for _ in range(8)] * 48
        vector = base64.b64encode(struct.pack(">384f", *floats)).decode()
        text = f"a title of document number {number} and some words {noise.random()}"
        emulator.put(KEYSPACE, "docs", f'{{"_id":"d{number}","title":"{text}","$vector":{{"$binary":"{vector}"}}}}')


def measure(count: int) -> dict[str, Usage]:
    """Back up, verify and restore a collection of that size."""
    with (
        DataApiEmulator(keep_bodies=False) as source,
        DataApiEmulator(keep_bodies=False) as target,
        tempfile.TemporaryDirectory() as name,
    ):
        fill(source, count)
        cwd = Path(name)
        return {
            "backup": run(script("astra_backup.py", "--no-box"), cwd, environment(source.url)),
            "verify": run(script("restore.py", "--verify-only"), cwd, environment(source.url)),
            "restore": run(script("restore.py"), cwd, environment(target.url)),
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
