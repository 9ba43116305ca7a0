"""Backups, measured: latencies and workers, one collection read by many chains, kinds of documents, start-up."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.data import Collection, generate
from bench.measure import Server, Usage, environment, middle, run, script, server, way

PLAIN, BARE, OURS = "plain way", "bare serial loop", "astra_backup.py"
PAGE_SIZES, LATENCIES_MS, WORKERS = (20, 50), (0, 20, 50, 100, 250), (1, 2, 4, 8, 16, 32)
GRID_DOCUMENTS = 3_000
CHAIN_LIMITS = {18_000: {8: 5.5, 16: 9.0}, 6_000: {8: 4.0, 16: 5.5}}
BLIND_DOCUMENTS, BLIND_LIMIT = 18_000, 5.0  # a server that estimates 0
SMALL = (50, 200, 500)
SLOW_SERVER = ("--page-size", "20", "--latency-ms", "50")
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much to measure: documents are divided by `divisor`, and what is short is done `rounds` times."""

    rounds: int = 3
    divisor: int = 1

    def __call__(self, count: int) -> int:
        """So many documents, but no fewer than what is read before guesses are made."""
        return max(count // self.divisor, min(count, 200))

    def some(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """All values, or the first and the last of them where little is to be measured."""
        return values if self.divisor == 1 else (values[0], values[-1])


QUICK = Size(rounds=1, divisor=30)


@dataclass(frozen=True)
class Trial:
    """A server that holds collections, and a directory to run in."""

    api: Server
    cwd: Path

    def ours(self, *names: str, options: tuple[str, ...] = (), workers: int | None = None) -> Usage:
        """Back up with the product; the snapshot before is removed first."""
        shutil.rmtree(self.cwd / "backups", ignore_errors=True)
        chosen = [part for name in names for part in ("--collection", name)]
        chosen += ["--workers", str(workers)] if workers else []
        command = script("astra_backup.py", "--no-box", "--quiet", *chosen, *options)
        return run(command, self.cwd, environment(self.api.url), watched=self.api)

    def bare(self, name: str) -> Usage:
        """Read with the bare loop."""
        return run(way("bare", self.api.url, name), self.cwd, environment(self.api.url), watched=self.api)

    def plain(self, name: str, count: int) -> Usage:
        """Back up so many documents in the plain way."""
        command = way("plain", self.api.url, name, str(self.cwd / "plain.gz"), str(count))
        return run(command, self.cwd, environment(self.api.url), watched=self.api)

    def snapshot(self) -> Path:
        """The last snapshot."""
        return next((self.cwd / "backups").glob("2*"))

    def record(self) -> Row:
        """What the last snapshot's manifest says of its one collection."""
        (record,) = json.loads((self.snapshot() / "manifest.json").read_text())["collections"]
        return dict(record)


@contextlib.contextmanager
def trial(collections: list[Collection], *options: str) -> Iterator[Trial]:
    """Generate collections and start a server that holds them, and `one` with one document."""
    with tempfile.TemporaryDirectory() as catalog, tempfile.TemporaryDirectory() as cwd:
        generate(Path(catalog), collections)
        with server("data_api", "--load", catalog, *options) as api:
            shutil.rmtree(catalog)
            Path(catalog).mkdir()
            yield Trial(api, Path(cwd))


def in_turns(rounds: int, runs: Mapping[str, Callable[[], Usage]]) -> dict[str, list[Usage]]:
    """Run all, again and again, so that what disturbs the machine disturbs all of them."""
    found: dict[str, list[Usage]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, once in runs.items():
            found[name].append(once())
    return found


def loops(usages: list[Usage]) -> list[Usage]:
    """Of the ways that are no product of ours: the time and the CPU of their own loop, without imports."""
    own = [json.loads(usage.output) for usage in usages]
    return [
        replace(usage, wall_s=each["seconds"], cpu_s=each["cpu_s"]) for usage, each in zip(usages, own, strict=True)
    ]


def row(usages: list[Usage], documents: int, start_up: list[Usage] | None = None) -> Row:
    """What so many documents take, beyond the start-up if that is given."""

    def after(field: str) -> float:
        return max(middle(usages, of=field) - (middle(start_up, of=field) if start_up else 0.0), 0.001)

    return {
        "documents": documents,
        "seconds": after("wall_s"),
        "rate": documents / after("wall_s"),
        "cpu_s_per_1000": after("cpu_s") / documents * 1000,
        "server_cpu_s_per_1000": after("server_cpu_s") / documents * 1000,
        "rss_mb": max(usage.peak_rss_mb for usage in usages),
    }


def grid(size: Size) -> list[Row]:
    """One collection at each latency and page size: the plain way, the bare loop, and the product with more workers."""
    made, rows = Collection("assets", "assets", 384, size(GRID_DOCUMENTS)), []
    for page_size in PAGE_SIZES:
        for wait_ms in size.some(LATENCIES_MS):
            options = ("--page-size", str(page_size), "--latency-ms", str(wait_ms))
            with trial([made], *options) as there:
                cell = {"page_size": page_size, "ms": wait_ms}
                rows += [cell | found for found in column(there, made, wait_ms, size.some(WORKERS))]
    return rows


def column(there: Trial, made: Collection, wait_ms: int, workers: tuple[int, ...]) -> Iterator[Row]:
    """One server of the grid. The wait for a first page is not start-up: the bare loop has it, too."""
    yield {"way": PLAIN, "workers": 1} | row(loops([there.plain(made.name, made.count)]), made.count)
    yield {"way": BARE, "workers": 1} | row(loops([there.bare(made.name)]), made.count)
    start_up = [replace(each, wall_s=each.wall_s - wait_ms / 1000) for each in (there.ours("one"), there.ours("one"))]
    for each in workers:
        yield {"way": OURS, "workers": each} | row([there.ours(made.name, workers=each)], made.count, start_up)


def chains(size: Size) -> list[Row]:
    """One collection at 50 ms a page of 20 against the bare loop, whole processes; then one estimated as 0."""
    made = [Collection(f"assets_{count}", "assets", 384, size(count)) for count in CHAIN_LIMITS]
    rows, bare = [], {}
    with trial(made, *SLOW_SERVER) as there:
        for each, limits in zip(made, CHAIN_LIMITS.values(), strict=True):
            bare[each.name] = there.bare(each.name)
            for workers, limit in limits.items():
                rows.append(against_bare(there, each, workers, bare[each.name]) | {"limit": limit})
    with trial(made[:1], *SLOW_SERVER, "--estimate-factor", "0") as there:
        found = against_bare(there, made[0], 8, bare[made[0].name])
        return [*rows, found | {"limit": BLIND_LIMIT, "note": "estimated as 0"}]


def against_bare(there: Trial, each: Collection, workers: int, bare: Usage) -> Row:
    """A backup with so many workers; what is not exact, or was read by one chain only, raises AssertionError."""
    usage = there.ours(each.name, workers=workers)
    record = there.record()
    assert record["document_count"] == each.count
    assert record["chains"] > 1
    return {"workers": workers, "bare_s": bare.wall_s, "note": ""} | row([usage], each.count)


def small(size: Size) -> list[Row]:
    """Small collections at 50 ms a page of 20: whole processes with 8 workers against those with one."""
    made, rows = [Collection(f"assets_{count}", "assets", 384, count) for count in SMALL], []
    with trial(made, *SLOW_SERVER) as there:
        for each in made:
            found = in_turns(size.rounds, {str(many): partial(there.ours, each.name, workers=many) for many in (1, 8)})
            rows.append({"serial_s": middle(found["1"])} | row(found["8"], each.count))
    return rows


def kinds(size: Size) -> list[Row]:
    """Every kind of documents without latency, 50 a page, 4 workers: the plain way, the bare loop, the product."""
    listed = [
        ("`assets`", Collection("assets", "assets", 384, size(12_000)), size(1_500)),
        ("1,536 floats, binary", Collection("binary", "binary", 1536, size(6_000)), size(500)),
        ("1,536 floats, array", Collection("array", "array", 1536, size(2_000)), size(500)),
        ("text of 1 KB", Collection("text_1", "text", 1_000, size(20_000)), size(5_000)),
        ("text of 100 KB", Collection("text_100", "text", 100_000, size(600)), size(200)),
    ]
    rows = []
    with trial([each for _, each, _ in listed]) as there:
        start_up = [there.ours("one", workers=4) for _ in range(size.rounds * 2 - 1)]
        for title, each, few in listed:
            ours = [there.ours(each.name, workers=4) for _ in range(size.rounds)]
            written = there.record()["data_size_bytes"] / each.count
            found = {
                PLAIN: row(loops([there.plain(each.name, few)]), few),
                BARE: row(loops([there.bare(each.name) for _ in range(size.rounds)]), each.count),
                OURS: row(ours, each.count, start_up) | {"written": written},
            }
            rows += [{"name": each.name, "title": title, "way": name} | one for name, one in found.items()]
    return rows


def start_up(size: Size) -> list[Row]:
    """CPU and time of each script: `--version`, and a command with almost nothing to do."""
    rows = []
    with trial([]) as there:
        there.ours("one")
        kept = there.cwd / "kept"
        shutil.copytree(there.cwd / "backups", kept)
        commands = [[name, "--version"] for name in ("astra_backup.py", "restore.py", "snapshots.py")]
        commands += [["restore.py", "--verify-only", str(next(kept.glob("2*")))]]
        commands += [["snapshots.py", "list", "--no-box", "--output-dir", str(kept)]]
        runs = {" ".join(each[:2]): partial(run, script(*each), there.cwd, {}) for each in commands}
        runs["astra_backup.py --no-box"] = partial(there.ours, "one")
        for name, usages in in_turns(size.rounds * 2 - 1, runs).items():
            found = {"cpu_s": middle(usages, of="cpu_s"), "wall_s": middle(usages)}
            rows.append({"command": name, "rss_mb": max(usage.peak_rss_mb for usage in usages)} | found)
    return rows
