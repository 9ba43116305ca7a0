"""Measure everything side by side and write bench/RESULTS.md, bench/results.json and the plots.

python -m bench                     some 20 minutes on a quiet machine of two cores
python -m bench --quick             tries the tools in two or three minutes; the figures mean nothing
python -m bench --render            only writes RESULTS.md and the plots again, from results.json
python -m bench --only restore      measures that section and puts it into results.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import backup, rest
from bench.backup import Size
from bench.measure import ROOT

PACKAGES = (
    "astrapy",
    "boxsdk",
    "click",
    "httpx",
    "isal",
    "msgspec",
    "numpy",
    "orjson",
    "pybase64",
    "requests",
    "zlib-ng",
)
QUICK = Size(rounds=1, plain_rounds=1, divisor=30)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().split("\n") if line.startswith("model name"))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu.partition(": ")[2],
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{memory_bytes / 1e9:.0f} GB",
        "kernel": platform.release(),
        "load before the run": f"{os.getloadavg()[0]:.1f}",
    }


def versions() -> dict[str, str]:
    """Of Python and the packages."""
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def commit() -> str:
    """The commit that was measured."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    return done.stdout.strip() or "unknown"


def child(code: str) -> Any:
    """What Python code in a process of its own prints as JSON: this process has to stay small."""
    command = [sys.executable, "-c", f"import json\n{code}"]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)


def sections(size: Size) -> dict[str, Callable[[], Any]]:
    """What there is to measure, in the order of the report."""
    real = child("from bench.data import real_count\nprint(real_count())")
    mb = max(12 / size.divisor, 0.5)
    return {
        "workloads": lambda: backup.workloads(size, real),
        "page_sizes": lambda: backup.page_sizes(size),
        "latencies": lambda: backup.latencies(size, real),
        "collections": lambda: backup.collections(size),
        "cores": lambda: backup.cores(size),
        "memory": lambda: backup.memory(size),
        "start_up": lambda: backup.start_up(size),
        "verify": lambda: rest.verify(size),
        "restore": lambda: rest.restore(size),
        "upload": lambda: rest.upload(size),
        "compression": lambda: child(
            f"from bench import compression\nprint(json.dumps(compression.measure({mb * 1e6:.0f})))"
        ),
    }


def measure(options: argparse.Namespace, found: dict[str, Any], kept: Path) -> None:
    """Measure what was asked for; add it to what is there, and keep it after each section."""
    size = QUICK if options.quick else Size()
    words = [word for word in ("--quick",) if options.quick]
    found |= {"command": shlex.join(["python", "-m", "bench", *words]), "quick": options.quick, "rounds": size.rounds}
    found |= {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "commit": commit()}
    found |= {"machine": machine(), "versions": versions()}
    begun = time.monotonic()
    for name, section in sections(size).items():
        if name in (options.only or [name]):
            started = time.monotonic()
            found[name] = section()
            found["seconds"] = time.monotonic() - begun
            kept.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def main() -> int:
    """Measure and write; 1 if a limit is not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--only", action="append", metavar="SECTION")
    parser.add_argument("--output", type=Path, default=ROOT / "bench", metavar="DIR")
    options = parser.parse_args()
    kept = options.output / "results.json"
    found = json.loads(kept.read_text()) if options.render or options.only else {}
    if not options.render:
        measure(options, found, kept)
    from bench import report  # it needs numpy, which would make every measured child begin large

    report.render(found, options.output)
    missed = [row for row in report.checks(found) if not row[3]]
    for name, limit, measured, _, note in missed:
        print(f"not met: {name}: {measured}, {limit}{f' ({note})' if note else ''}", file=sys.stderr)
    return 1 if missed and not found["quick"] else 0


if __name__ == "__main__":
    sys.exit(main())
