"""Verifying, restoring and uploading, measured against what is least: coreutils, plain writers, a plain stream."""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from astra_backup import iter_lines
from bench.backup import Row, Size, Trial, in_turns, trial
from bench.data import Collection
from bench.measure import Usage, environment, middle, run, script, server, way
from tests.demo import box_variables

KEPT = {"compressed": (), "not compressed": ("--no-compress",)}


def igzip() -> tuple[str, str]:
    """The igzip to compare with and how to call it: the program, or what Python's isal brings."""
    if shutil.which("igzip"):
        return "igzip -d", "igzip -dc"
    return "python -m isal.igzip -d", f"{shlex.quote(sys.executable)} -m isal.igzip -dc"


def verify(size: Size) -> list[Row]:
    """`restore.py --verify-only` against coreutils: 1,536 floats in binary form, CPU seconds without the start-up."""
    count, rows = size(10_000), []
    with trial([Collection("docs", "binary", 1536, count)]) as there:
        for form, options in KEPT.items():
            there.ours("one", options=options)
            start_up = in_turns(size.rounds, checks(there))
            there.ours("docs", options=options)
            lines_mb = data_bytes(there, compressed=form == "compressed") / 1e6
            found = in_turns(size.rounds, checks(there))
            for name, usages in found.items():
                cpu_s = max(middle(usages, of="cpu_s") - middle(start_up[name], of="cpu_s"), 0.001)
                wall_s = max(middle(usages) - middle(start_up[name]), 0.001)
                mb = there.written() / 1e6
                rss_mb = max(usage.peak_rss_mib for usage in usages) * 2**20 / 1e6
                rates = {"mb_per_core_s": mb / cpu_s, "lines_mb_per_core_s": lines_mb / cpu_s, "mb_s": mb / wall_s}
                figures = {"cpu_s": cpu_s, **rates, "rss_mb": rss_mb}
                rows.append({"form": form, "command": name, "documents": count, "mb": mb, **figures})
    return rows


def data_bytes(there: Trial, *, compressed: bool) -> int:
    """The size of the lines in the snapshot that is there."""
    with next(there.snapshot().glob("*.jsonl*")).open("rb") as stream:
        return sum(len(line) + 1 for line in iter_lines(stream, compressed=compressed))


def checks(there: Trial) -> dict[str, Callable[[], Usage]]:
    """The commands that check the snapshot that is there."""
    data = next(there.snapshot().glob("*.jsonl*"))

    def shell(command: str) -> Callable[[], Usage]:
        return lambda: run(["bash", "-c", command], there.cwd, {})

    found = {
        "restore.py --verify-only": lambda: run(
            script("restore.py", "--verify-only", str(there.snapshot())), there.cwd, {}
        ),
        "sha256sum": shell(f"sha256sum {data}; :"),  # a second command, so that the shell does not become the first
    }
    if data.suffix != ".gz":
        return found | {"wc -l": shell(f"wc -l {data}; :")}
    name, call = igzip()
    return found | {"zcat, wc -l": shell(f"zcat {data} | wc -l"), name: shell(f"{call} {data} > /dev/null; :")}


def restore(size: Size) -> list[Row]:
    """Documents of 384 floats written by `restore.py`, and by plain writers."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for wait_ms, count, workers in ((50, 40_000, (1, 2, 4, 8, 16)), (400, 20_000, (4, 16))):
            cwd = Path(name, str(wait_ms))
            cwd.mkdir()
            with trial([Collection("docs", "binary", 384, size(count))]) as there:
                there.ours("docs")
                shutil.move(there.cwd / "backups", cwd)
            rows += [restored(cwd, wait_ms, at_once, size(count)) for at_once in workers]
    return rows


def restored(cwd: Path, wait_ms: int, at_once: int, count: int) -> Row:
    """One latency and number of writers. Large pages, since the comparison at the end is not what is timed."""
    snapshot, log = next((cwd / "backups").glob("2*")), cwd / f"{at_once}.jsonl"
    with server("data_api", "--latency-ms", str(wait_ms), "--page-size", "1000", "--log", str(log)) as api:
        environ = environment(api.url)
        plain = run(way("writers", api.url, str(snapshot), str(at_once)), cwd, environ)
        ours = run(script("restore.py", str(snapshot), "--yes", "-q", "--workers", str(at_once)), cwd, environ)
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    inserted = [request["time"] for request in requests if request["command"] == "insertMany"][-count // 100 :]
    before = [request["time"] for request in requests if request["command"] == "findCollections"]
    ours_s = inserted[-1] - max(moment for moment in before if moment < inserted[0])  # it was created and read back
    plain_s = json.loads(plain.output)["seconds"]
    rss_mb = ours.peak_rss_mib * 2**20 / 1e6
    figures = {"plain": count / plain_s, "ours": count / ours_s, "rss_mb": rss_mb}
    return {"ms": wait_ms, "at_once": at_once, "documents": count, **figures}


def upload(size: Size) -> list[Row]:
    """`snapshots.py upload` of a snapshot that is not compressed against one plain stream of its data file."""
    count = max(size(12_000), 1_500)  # Box takes less than 20 MB in another way
    with tempfile.TemporaryDirectory() as name, trial([Collection("docs", "binary", 1536, count)]) as there:
        for each in ("one", "docs"):
            there.ours(each, options=("--no-compress",))
            shutil.move(there.cwd / "backups", Path(name, each))
        return [row for wait_ms in (0, 100) for row in uploads(Path(name), wait_ms, size)]


def uploads(cwd: Path, wait_ms: int, size: Size) -> list[Row]:
    """One latency: every upload goes to a Box that has nothing."""
    content = next((cwd / "docs").glob("2*/*.jsonl"))
    mb = content.stat().st_size / 1e6

    def ours(each: str) -> Usage:
        snapshot = next((cwd / each).glob("2*")).name
        with server("box", "--latency-ms", str(wait_ms)) as box:
            command = script("snapshots.py", "upload", "-q", snapshot, "--output-dir", str(cwd / each))
            return run(command, cwd, box_variables(box.url))

    def plain() -> Usage:
        with server("box", "--latency-ms", str(wait_ms)) as box:
            return run(way("upload", box.url, str(content)), cwd, environment(box.url))

    found = in_turns(size.rounds, {"plain": plain, "ours": lambda: ours("docs"), "one": lambda: ours("one")})
    plain_s = statistics.median(json.loads(usage.output)["seconds"] for usage in found["plain"])
    ours_s = middle(found["ours"]) - middle(found["one"])
    rows = []
    for title, usages, seconds in (
        ("requests, part after part", found["plain"], plain_s),
        ("snapshots.py upload", found["ours"], ours_s),
    ):
        rss_mb = max(usage.peak_rss_mib for usage in usages) * 2**20 / 1e6
        figures = {"mb_s": mb / max(seconds, 0.001), "cpu_s": middle(usages, of="cpu_s"), "rss_mb": rss_mb}
        rows.append({"way": title, "ms": wait_ms, "mb": mb, "seconds": seconds, **figures})
    return rows
