"""Run commands and servers, and account for them as the operating system does."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What a process took: seconds and MiB."""

    wall_s: float
    cpu_s: float
    peak_rss_mib: float
    server_cpu_s: float = 0.0  # of the server that was named, meanwhile
    output: str = ""  # what it printed on stdout

    @property
    def peak_rss_mb(self) -> float:
        """Peak memory in 10^6 bytes."""
        return self.peak_rss_mib * 2**20 / 1e6


@dataclass(frozen=True)
class Server:
    """An emulator in a process of its own."""

    url: str
    pid: int

    def cpu_s(self) -> float:
        """CPU seconds that it has taken so far."""
        fields = stat_fields(self.pid)
        return (int(fields[11]) + int(fields[12])) / TICKS


@contextlib.contextmanager
def server(name: str, *arguments: str) -> Iterator[Server]:
    """Start an emulator, `data_api` or `box`, on a free port; end it at last."""
    command = [sys.executable, "-m", f"tests.emulators.{name}", "--port", "0", "--quiet", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield Server(process.stdout.readline().split()[-1], process.pid)
        finally:
            process.terminate()


def run(
    arguments: list[str],
    cwd: Path,
    environ: dict[str, str],
    *,
    watched: Server | None = None,
) -> Usage:
    """Run a command; a code other than 0 raises RuntimeError with what it said.

    A child's peak memory begins with ours, so this process has to stay small: whatever is large belongs into a child.
    """
    server_s = watched.cpu_s() if watched else 0.0
    started = time.monotonic()
    with (cwd / "output.txt").open("w+") as output, (cwd / "errors.txt").open("w+") as errors:
        process = subprocess.Popen(
            arguments, cwd=cwd, env=os.environ | environ, stdout=output, stderr=errors, stdin=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{arguments} ended with {process.returncode}: {said}{errors.read()}")
    server_s = watched.cpu_s() - server_s if watched else 0.0
    return Usage(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, server_s, said)


def stat_fields(pid: int) -> list[str]:
    """What /proc/PID/stat says behind the name."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def middle(usages: Iterable[Usage], *, of: str = "wall_s") -> float:
    """The median of one field."""
    return float(statistics.median(getattr(usage, of) for usage in usages))


def script(name: str, *arguments: str) -> list[str]:
    """The command line of one of the scripts."""
    return [sys.executable, str(ROOT / name), *arguments]


def way(name: str, *arguments: str) -> list[str]:
    """The command line of one of bench.ways."""
    return [sys.executable, "-m", "bench.ways", name, *arguments]


def environment(url: str) -> dict[str, str]:
    """The variables that the scripts need for an emulator."""
    return {
        "ASTRA_DB_API_ENDPOINT": url,
        "ASTRA_DB_APPLICATION_TOKEN": "AstraCS:bench",
        "ASTRA_DB_ENVIRONMENT": "hcd",
        "PYTHONPATH": str(ROOT),
    }
