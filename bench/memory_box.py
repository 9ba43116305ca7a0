"""Peak memory and disk of a backup to Box and of a check of the snapshot in Box, for a snapshot of some 300 MB.

python -m bench.memory_box            prints a table and fails if a limit is broken
python -m bench.memory_box 33554432   the same, with parts of that many bytes
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from bench.data import Collection, generate
from bench.measure import Usage, environment, run, script, server
from tests.demo import box_variables

DOCUMENTS = 68_000
PART_BYTES = 8 * 1024 * 1024
RSS_LIMIT_MIB = 200
DISK_LIMIT = 1.05
POLL_S = 0.02


@dataclass(frozen=True)
class Measured:
    """What a step took, and what it had on the disk at its worst: bytes."""

    usage: Usage
    peak_disk: int
    left_disk: int


def measure(name: str, *arguments: str, environ: dict[str, str]) -> Measured:
    """Run a script in an empty directory that holds its snapshots and its temporary files, and watch the directory."""
    with tempfile.TemporaryDirectory() as created:
        cwd = Path(created)
        (cwd / "tmp").mkdir()
        peak, ended = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(POLL_S):
                peak = max(peak, disk_use(cwd))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            usage = run(script(name, *arguments), cwd, environ | {"TMPDIR": str(cwd / "tmp")})
        finally:
            ended.set()
            watcher.join()
        left = disk_use(cwd)
        return Measured(usage, max(peak, left), left)


def disk_use(directory: Path) -> int:
    """Bytes of all files under a directory, as far as they are still there when looked at."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def measure_both(part_bytes: int) -> dict[str, Measured]:
    """Back up a collection to Box, then check what is there from a machine that has nothing."""
    with tempfile.TemporaryDirectory() as name:
        catalog, stored = Path(name, "catalog"), Path(name, "box")
        for directory in (catalog, stored):
            directory.mkdir()
        generate(catalog, [Collection("docs", "binary", 384, DOCUMENTS)])
        with (
            server("data_api", "--load", str(catalog)) as source,
            server("box", "--data", str(stored), "--part-size", str(part_bytes)) as box,
        ):
            environ = environment(source.url) | box_variables(box.url)
            return {
                "backup and upload": measure("astra_backup.py", "--no-compress", environ=environ),
                "download and verify": measure("restore.py", "--from-box", "--verify-only", environ=environ),
            }


def main() -> int:
    """Print the table; 1 if a limit is broken."""
    part_bytes = int(sys.argv[1]) if len(sys.argv) > 1 else PART_BYTES
    found = measure_both(part_bytes)
    snapshot = found["backup and upload"].left_disk
    is_kept = True
    print(f"{DOCUMENTS:,} documents, a snapshot of {snapshot / 1e6:.0f} MB, parts of {part_bytes / 2**20:.0f} MiB\n")
    print("| step | wall time | CPU | peak RSS | limit | peak disk, of the snapshot | limit |")
    print("|---|---|---|---|---|---|---|")
    for step, measured in found.items():
        usage, disk = measured.usage, measured.peak_disk / snapshot
        is_kept &= usage.peak_rss_mib <= RSS_LIMIT_MIB and disk <= DISK_LIMIT
        print(
            f"| {step} | {usage.wall_s:.0f} s | {usage.cpu_s:.0f} s | {usage.peak_rss_mib:.0f} MiB"
            f" | {RSS_LIMIT_MIB} MiB | {disk:.3f} × | {DISK_LIMIT} × |"
        )
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
