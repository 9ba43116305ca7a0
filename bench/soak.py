"""The long run: two million small documents, backed up and restored, with the process watched all the way.

    python -m bench.soak [--documents 2000000] [--svg soak-rss.svg]

Twice a second it reads from /proc what the script takes: resident memory, CPU time, threads, open files. How far the
script is, it reads from the emulator's log. It prints a table, draws the memory over time, and fails if memory grows,
if the last quarter of the documents costs more than the first, or if threads or open files pile up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.data import PAGE_DOCUMENTS
from bench.measure import TICKS, environment, script, server, stat_fields

BATCH_DOCUMENTS = 100
SAMPLE_S = 0.5
MAX_RSS_MIB = {"backup": 150, "restore": 200}
MAX_GROWTH_MIB = 20  # within one step, from its first fifth on
MAX_CPU_RATIO = 1.5  # what the last quarter's documents may cost, in times of what the first's did
MAX_NEW_HANDLES = 2  # threads or open files more in a step's second half than ever in its first


@dataclass(frozen=True)
class Sample:
    """A run at a moment: seconds since its start, MiB, CPU seconds, and the requests answered so far."""

    at_s: float
    rss_mib: float
    cpu_s: float
    threads: int
    files: int
    finds: int
    inserts: int
    commands: int  # of any kind


@dataclass(frozen=True)
class Step:
    """A part of a run in which it does one thing; `done` counts its documents (None: nothing outside tells)."""

    name: str
    samples: list[Sample]
    done: Callable[[Sample], int] | None

    @property
    def duration_s(self) -> float:
        """Wall time from the first sample to the last."""
        return self.samples[-1].at_s - self.samples[0].at_s

    @property
    def growth_mib(self) -> float:
        """The most that memory was after the first fifth of the step, less the most that it was in it."""
        early = max(1, len(self.samples) // 5)
        first = max(sample.rss_mib for sample in self.samples[:early])
        return max((sample.rss_mib for sample in self.samples[early:]), default=first) - first

    @property
    def cpu_quarters(self) -> list[float]:
        """CPU seconds for each quarter of the documents, or [] where they are not counted."""
        if not self.done:
            return []
        low, high = self.done(self.samples[0]), self.done(self.samples[-1])
        marks = [self._cpu_at(low + (high - low) * part / 4) for part in range(5)]
        return [after - before for before, after in itertools.pairwise(marks)]

    def new_handles(self, field: str) -> int:
        """How many threads or open files there were in the second half beyond what the first half had."""
        middle = max(1, len(self.samples) // 2)
        most = [max((getattr(s, field) for s in half), default=0) for half in (self.samples[:middle], self.samples)]
        return most[1] - most[0]

    def most(self, field: str) -> float:
        """The greatest value of a sample's field."""
        return float(max(getattr(sample, field) for sample in self.samples))

    def _cpu_at(self, documents: float) -> float:
        """CPU seconds at the moment when that many documents were done, on a line between two samples."""
        assert self.done
        for before, after in itertools.pairwise(self.samples):
            low, high = self.done(before), self.done(after)
            if high >= documents:
                part = (documents - low) / max(1, high - low)
                return before.cpu_s + max(0.0, part) * (after.cpu_s - before.cpu_s)
        return self.samples[-1].cpu_s


def write_catalog(directory: Path, count: int) -> None:
    """Page files of one collection of small documents."""
    options = {"indexing": {"deny": ["*"]}, "lexical": {"enabled": False}, "rerank": {"enabled": False}}
    definitions = {"status": {"collections": [{"name": "docs", "options": options}]}}
    (directory / "findCollections.json").write_text(json.dumps(definitions))
    with (directory / "docs.pages.jsonl").open("w") as file:
        for start in range(0, count, PAGE_DOCUMENTS):
            page = ",".join(document(number) for number in range(start, min(start + PAGE_DOCUMENTS, count)))
            file.write(f'{{"data":{{"documents":[{page}],"nextPageState":null}}}}\n')


def document(number: int) -> str:
    """A document's JSON text: an id, a date, numbers, some words."""
    moment = 1_700_000_000_000 + number * 977
    return (
        f'{{"_id":"d{number:07}","at":{{"$date":{moment}}},"n":{number},"price":{number % 9973}.25,'
        f'"words":"document number {number} of a long run","tags":["a","b{number % 17}"]}}'
    )


class RequestCounter:
    """Counts the requests in an emulator's log, which grows meanwhile."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.finds = self.inserts = self.commands = 0

    def update(self) -> None:
        """Read what is new."""
        new = self._file.read()
        self.finds += new.count(b'"command": "find",')
        self.inserts += new.count(b'"command": "insertMany",')
        self.commands += new.count(b'"command": "')


def sample(process_id: int, started: float, requests: RequestCounter) -> Sample | None:
    """What /proc says of a process now; None when it has ended."""
    try:
        rss_mib = int(stat_fields(process_id)[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        cpu_s, threads, files = figures(process_id)
    except OSError:
        return None
    requests.update()
    at_s = time.monotonic() - started
    return Sample(at_s, rss_mib, cpu_s, threads, files, requests.finds, requests.inserts, requests.commands)


def figures(process_id: int) -> tuple[float, int, int]:
    """CPU seconds, threads and open files of a process."""
    fields = stat_fields(process_id)
    files = len(list(Path(f"/proc/{process_id}/fd").iterdir()))
    return (int(fields[11]) + int(fields[12])) / TICKS, int(fields[17]), files


def watch(arguments: list[str], cwd: Path, environ: dict[str, str], log: Path) -> list[Sample]:
    """Run a command and sample it to its end. A code other than 0 raises RuntimeError with what it said."""
    samples: list[Sample] = []
    requests = RequestCounter(log)
    with (cwd / "output.txt").open("w+") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            arguments, cwd=cwd, env=os.environ | environ, stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
        waiter = threading.Thread(target=process.wait, daemon=True)
        waiter.start()
        while waiter.is_alive():
            if found := sample(process.pid, started, requests):
                samples.append(found)
            waiter.join(SAMPLE_S)
        output.seek(0)
        said = output.read()
        if process.returncode:
            raise RuntimeError(f"{arguments} ended with {process.returncode}: {said}")
    print(said.strip().splitlines()[-1], file=sys.stderr, flush=True)
    return samples


def backup_steps(samples: list[Sample]) -> list[Step]:
    """Reading the collection, then reading the file back."""
    most = samples[-1].finds
    reading = [each for each in samples if 0 < each.finds < most]
    back = [each for each in samples if each.finds == most]
    return [
        Step("backup: read and write", reading, lambda each: each.finds * PAGE_DOCUMENTS),
        Step("backup: prove", back, None),
    ]


def restore_steps(samples: list[Sample]) -> list[Step]:
    """Verifying, writing, and comparing."""
    most = samples[-1].inserts
    return [
        Step("restore: verify", [each for each in samples if not each.commands], None),
        Step(
            "restore: write",
            [each for each in samples if 0 < each.inserts < most],
            lambda each: each.inserts * BATCH_DOCUMENTS,
        ),
        Step("restore: compare", [each for each in samples if each.finds], lambda each: each.finds * PAGE_DOCUMENTS),
    ]


def problems(step: Step, limit_mib: int) -> list[str]:
    """What of a step breaks a limit."""
    quarters = step.cpu_quarters
    checks = {
        f"{step.most('rss_mib'):.0f} MiB": step.most("rss_mib") > limit_mib,
        f"memory grew by {step.growth_mib:.0f} MiB": step.growth_mib > MAX_GROWTH_MIB,
        "the last quarter cost more CPU than the first": quarters and quarters[3] > MAX_CPU_RATIO * quarters[0],
        "threads pile up": step.new_handles("threads") > MAX_NEW_HANDLES,
        "open files pile up": step.new_handles("files") > MAX_NEW_HANDLES,
    }
    return [f"{step.name}: {what}" for what, is_broken in checks.items() if is_broken]


def print_table(steps: list[Step]) -> None:
    """A row for each step."""
    print("| step | wall time | peak RSS | growth | CPU s by quarters | threads | open files |")
    print("|---|---|---|---|---|---|---|")
    for step in steps:
        quarters = ", ".join(f"{seconds:.1f}" for seconds in step.cpu_quarters) or "–"
        print(
            f"| {step.name} | {step.duration_s:.0f} s | {step.most('rss_mib'):.0f} MiB | {step.growth_mib:+.0f} MiB"
            f" | {quarters} | {step.most('threads'):.0f} | {step.most('files'):.0f} |"
        )


WIDTH, HEIGHT, LEFT, BOTTOM = 760, 300, 50, 40
COLOURS = {"backup": "#1f77b4", "restore": "#d95f02"}


def draw(runs: dict[str, list[Sample]], documents: int) -> str:
    """RSS over time as an SVG: a line for each script, both from their own start."""
    longest = max(samples[-1].at_s for samples in runs.values())
    top = 50 * (1 + int(max(s.rss_mib for samples in runs.values() for s in samples) // 50))
    width, height = WIDTH - LEFT - 20, HEIGHT - BOTTOM - 30

    def place(at_s: float, mib: float) -> str:
        return f"{LEFT + at_s / longest * width:.1f},{HEIGHT - BOTTOM - mib / top * height:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18">Resident memory over time, {documents:,} documents</text>',
    ]
    for mib in range(0, top + 1, 50):
        x, y = place(0, mib).split(",")
        parts.append(
            f'<path d="M{x} {y}h{width}" stroke="#ddd"/><text x="{LEFT - 6}" y="{y}" text-anchor="end">{mib}</text>'
        )
    for number in range(5):
        x, _ = place(longest * number / 4, 0).split(",")
        parts.append(
            f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{longest * number / 4:.0f} s</text>'
        )
    for number, (name, samples) in enumerate(runs.items()):
        line = " ".join(place(each.at_s, each.rss_mib) for each in samples)
        parts.append(f'<polyline fill="none" stroke="{COLOURS[name]}" stroke-width="1.5" points="{line}"/>')
        parts.append(f'<text x="{WIDTH - 150 + 75 * number}" y="18" fill="{COLOURS[name]}">{name}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">MiB; seconds since each script began</text></svg>')
    return "\n".join(parts) + "\n"


def run_both(count: int) -> dict[str, list[Sample]]:
    """Back up a generated collection and restore it into an empty server."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        cwd = Path(name)
        write_catalog(cwd, count)
        logs = {run: cwd / f"{run}.log" for run in ("backup", "restore")}
        with server("data_api", "--load", str(cwd), "--log", str(logs["backup"])) as source:
            (cwd / "docs.pages.jsonl").unlink()
            backup = watch(script("astra_backup.py", "--no-box"), cwd, environment(source.url), logs["backup"])
        with server("data_api", "--log", str(logs["restore"])) as target:
            restore = watch(script("restore.py"), cwd, environment(target.url), logs["restore"])
        return {"backup": backup, "restore": restore}


def main() -> int:
    """Run, print, draw; 1 if a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2_000_000)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    runs = run_both(options.documents)
    if options.svg:
        options.svg.write_text(draw(runs, options.documents))
    steps = {"backup": backup_steps(runs["backup"]), "restore": restore_steps(runs["restore"])}
    steps = {
        run: [step for step in found if len(step.samples) > 1] for run, found in steps.items()
    }  # too short to tell
    print(f"{options.documents:,} documents\n")
    print_table(steps["backup"] + steps["restore"])
    found = [text for run in steps for step in steps[run] for text in problems(step, MAX_RSS_MIB[run])]
    print("\n" + ("\n".join(found) or "memory flat, time linear, threads and open files constant"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
