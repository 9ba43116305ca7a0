"""Run a command to its end and account for it as the operating system does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Usage:
    """What a process took: seconds and MiB."""

    wall_s: float
    cpu_s: float
    peak_rss_mib: float


def run(arguments: list[str], cwd: Path, environ: dict[str, str]) -> Usage:
    """Run a command; a code other than 0 raises RuntimeError with what it said."""
    started = time.monotonic()
    with (cwd / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            arguments, cwd=cwd, env=os.environ | environ, stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{arguments} ended with {process.returncode}: {output.read()}")
    return Usage(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def script(name: str, *arguments: str) -> list[str]:
    """The command line of one of the two scripts."""
    return [sys.executable, str(ROOT / name), *arguments]


def environment(url: str) -> dict[str, str]:
    """The variables that both scripts need for an emulator."""
    return {
        "ASTRA_DB_API_ENDPOINT": url,
        "ASTRA_DB_APPLICATION_TOKEN": "AstraCS:bench",
        "ASTRA_DB_ENVIRONMENT": "hcd",
        "PYTHONPATH": str(ROOT),
    }
