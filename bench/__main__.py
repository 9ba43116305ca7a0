"""Measure everything side by side and write bench/RESULTS.md, bench/results.json and the plots.

python -m bench                            at most 20 minutes on a quiet machine of two cores
python -m bench --only chains              measures that section again and puts it into results.json; repeatable
python -m bench --only chains --output -   prints the report of what it measures, and writes nothing
python -m bench --quick                    tries the tools in a few minutes, likewise; the figures mean nothing
python -m bench --render                   only writes RESULTS.md and the plots again, from results.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import backup, memory, report, restore
from bench.backup import QUICK, Size
from bench.measure import ROOT

PACKAGES = ("astrapy", "click", "httpx", "isal", "msgspec", "numpy", "orjson", "pybase64")
SECTIONS: dict[str, Callable[[Size], list[dict[str, Any]]]] = {
    "chains": backup.chains,
    "kinds": backup.kinds,
    "large": memory.large,
    "growth": memory.growth,
    "comparison": restore.comparison,
    "small": backup.small,
    "grid": backup.grid,
    "start_up": backup.start_up,
    "writes": restore.writes,
}


def machine() -> dict[str, Any]:
    """What it was measured on."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().split("\n") if line.startswith("model name"))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu.partition(": ")[2],
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{memory_bytes / 1e9:.0f} GB",
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """Of Python and the packages."""
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def commit() -> str:
    """The commit that was measured."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    return done.stdout.strip() or "unknown"


def measure(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Measure what was asked for and add it to what is there; each section notes when and on what it was measured."""
    found |= {"quick": options.quick, "machine": machine(), "versions": versions()}
    for name in options.only or SECTIONS:
        moment, load = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), os.getloadavg()[0]
        about, started = {"at": moment, "commit": commit(), "load": load}, time.monotonic()
        rows = SECTIONS[name](QUICK if options.quick else Size())
        found[name] = about | {"seconds": time.monotonic() - started, "rows": rows}
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def main() -> int:
    """Measure and write; 1 if a limit is not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--output", metavar="DIR", help="where the results are kept; -: nowhere, print them")
    options = parser.parse_args()
    output = options.output or ("-" if options.quick else str(ROOT / "bench"))
    kept = None if output == "-" else Path(output, "results.json")
    found = json.loads(kept.read_text()) if kept and (options.render or options.only) and kept.exists() else {}
    if not options.render:
        measure(options, found)
    if kept:
        kept.write_text(json.dumps(found, indent=1) + "\n")
        report.write(found, kept.parent)
    else:
        print(report.text_of(found))
    missed = [] if found["quick"] else [check for check in report.checks(found) if not check.is_met]
    for check in missed:
        print(f"not met: {check.name}: {check.measured}, {check.limit}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
