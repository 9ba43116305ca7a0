"""Backups, measured: kinds of documents, page sizes, latencies, collections at once, cores, memory, start-up."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.data import Collection, generate
from bench.measure import Server, Usage, environment, middle, run, script, server, way

PLAIN, BARE, OURS = "plain way", "bare page loop", "astra_backup.py"
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much to measure: everything is divided by `divisor`, and done `rounds` times."""

    rounds: int = 3
    plain_rounds: int = 2
    divisor: int = 1

    def __call__(self, count: int) -> int:
        """So many documents, but no less than two pages."""
        return max(count // self.divisor, 100)


@dataclass(frozen=True)
class Trial:
    """A server that holds collections, and a directory to run in."""

    api: Server
    cwd: Path

    def ours(self, *names: str, options: tuple[str, ...] = (), cores: set[int] | None = None) -> Usage:
        """Back up with the product; the snapshot before is removed first."""
        shutil.rmtree(self.cwd / "backups", ignore_errors=True)
        chosen = [part for name in names for part in ("--collection", name)]
        command = script("astra_backup.py", "--no-box", "--quiet", *chosen, *options)
        return run(command, self.cwd, environment(self.api.url), watched=self.api, cores=cores)

    def bare(self, name: str, cores: set[int] | None = None) -> Usage:
        """Read with the bare loop; its time is the loop's own, which would not be seen behind its start-up."""
        command = way("bare", self.api.url, name)
        usage = run(command, self.cwd, environment(self.api.url), watched=self.api, cores=cores)
        return replace(usage, wall_s=json.loads(usage.output)["seconds"])

    def plain(self, name: str, count: int) -> Usage:
        """Back up so many documents in the plain way."""
        command = way("plain", self.api.url, name, str(self.cwd / "plain.gz"), str(count))
        return run(command, self.cwd, environment(self.api.url), watched=self.api)

    def snapshot(self) -> Path:
        """The last snapshot."""
        return next((self.cwd / "backups").glob("2*"))

    def written(self) -> int:
        """Bytes of the last snapshot's data files."""
        return sum(path.stat().st_size for path in self.snapshot().glob("*.jsonl*"))


@contextlib.contextmanager
def trial(collections: list[Collection], *options: str) -> Iterator[Trial]:
    """Generate collections and start a server that holds them, and `one` with one document."""
    with tempfile.TemporaryDirectory() as catalog, tempfile.TemporaryDirectory() as cwd:
        generate(Path(catalog), collections)
        with server("data_api", "--load", catalog, *options) as api:
            shutil.rmtree(catalog)
            Path(catalog).mkdir()
            yield Trial(api, Path(cwd))


def in_turns(rounds: int, runs: dict[str, Callable[[], Usage]]) -> dict[str, list[Usage]]:
    """Run all, again and again, so that what disturbs the machine disturbs all of them."""
    found: dict[str, list[Usage]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, once in runs.items():
            found[name].append(once())
    return found


def row(usages: list[Usage], start_up: list[Usage], documents: int) -> Row:
    """What a way does after its start-up: documents a second, CPU seconds per 1,000 documents; MB of memory."""

    def after(field: str) -> float:
        return max(middle(usages, of=field) - middle(start_up, of=field), 0.001)

    return {
        "documents": documents,
        "start_up_s": middle(start_up),
        "work_s": after("wall_s"),
        "rate": documents / after("wall_s"),
        "cpu_s_per_1000": after("cpu_s") / documents * 1000,
        "server_cpu_s_per_1000": after("server_cpu_s") / documents * 1000,
        "rss_mb": max(usage.peak_rss_mib for usage in usages) * 2**20 / 1e6,
    }


def start_ups(there: Trial, rounds: int, *, plain: bool = False) -> dict[str, list[Usage]]:
    """What each way takes for a collection of one document; often, since it is taken off everything."""
    runs: dict[str, Callable[[], Usage]] = {BARE: lambda: there.bare("one"), OURS: lambda: there.ours("one")}
    return in_turns(rounds * 2 - 1, runs | ({PLAIN: lambda: there.plain("one", 1)} if plain else {}))


def against_bare(there: Trial, size: Size, name: str, count: int, cores: set[int] | None = None) -> dict[str, Row]:
    """The product and the bare loop, one collection."""
    start_up = start_ups(there, size.rounds)
    runs = {BARE: lambda: there.bare(name, cores), OURS: lambda: there.ours(name, cores=cores)}
    found = in_turns(size.rounds, runs)
    return {one: row(usages, start_up[one], count) for one, usages in found.items()}


def workload_list(size: Size, real: int) -> list[tuple[str, Collection, int]]:
    """Each kind of documents: its title, the collection, and how many of them the plain way gets."""
    vectors = {
        384: ((12_000, 3_000), (6_000, 3_000)),
        1536: ((6_000, 800), (3_000, 1_000)),
        3072: ((3_000, 400), (1_500, 400)),
    }
    listed = [("assets, 384 floats, real", Collection("assets", "real", 384, real), size(3_000))]
    for floats, counts in vectors.items():
        for kind, (count, plain) in zip(("binary", "array"), counts, strict=True):
            made = Collection(f"{kind}_{floats}", kind, floats, size(count))
            listed.append((f"{floats:,} floats, {kind}", made, size(plain)))
    for kilobytes, count, plain in ((1, 30_000, 10_000), (100, 1_000, 300)):
        made = Collection(f"text_{kilobytes}", "text", kilobytes * 1000, size(count))
        listed.append((f"text of {kilobytes} KB", made, size(plain)))
    return listed


def workloads(size: Size, real: int) -> list[Row]:
    """Plain way, bare loop and product for every kind of documents, at latency 0 and 50 documents a page."""
    listed = workload_list(size, real)
    rows = []
    with trial([each for _, each, _ in listed]) as there:
        start_up = start_ups(there, size.rounds, plain=True)
        for title, each, plain_count in listed:
            rows.append({"title": title, "name": each.name, **workload(there, size, each, plain_count, start_up)})
    return rows


def workload(
    there: Trial, size: Size, each: Collection, plain_count: int, start_up: dict[str, list[Usage]]
) -> dict[str, Row]:
    """One kind of documents."""
    few = min(plain_count, each.count)
    found = in_turns(size.rounds, {BARE: lambda: there.bare(each.name), OURS: lambda: there.ours(each.name)})
    found |= in_turns(size.plain_rounds, {PLAIN: lambda: there.plain(each.name, few)})
    counts = {BARE: each.count, OURS: each.count, PLAIN: few}
    rows = {name: row(found[name], start_up[name], counts[name]) for name in (PLAIN, BARE, OURS)}
    received = json.loads(found[BARE][0].output)["received"] / each.count
    for one in rows.values():
        one["mb_s"] = one["rate"] * received / 1e6
    rows[PLAIN]["written_per_document"] = json.loads(found[PLAIN][0].output)["written"] / few
    rows[OURS]["written_per_document"] = there.written() / each.count
    return rows


def page_sizes(size: Size) -> list[Row]:
    """1,536 floats in binary form, 20 and 50 documents a page, at latency 0."""
    count, rows = size(4_000), []
    for documents in (20, 50):
        with trial([Collection("docs", "binary", 1536, count)], "--page-size", str(documents)) as there:
            rows.append({"page_size": documents, **against_bare(there, size, "docs", count)})
    return rows


def latencies(size: Size, real: int) -> list[Row]:
    """Milliseconds that the server waits before each reply; requests of the start-up wait too."""
    rows = []
    for wait_ms, count in ((0, 6_000), (20, 6_000), (100, 3_000), (250, 1_500)):
        made = Collection("docs", "binary", 1536, size(count))
        with trial([made], "--latency-ms", str(wait_ms)) as there:
            rows.append(
                {"title": "1,536 floats, binary", "ms": wait_ms, **against_bare(there, size, "docs", made.count)}
            )
    with trial([Collection("assets", "real", 384, real)], "--latency-ms", "20") as there:
        rows.append({"title": "assets, real", "ms": 20, **against_bare(there, size, "assets", real)})
    return rows


def collections(size: Size) -> list[Row]:
    """1, 4 and 16 collections of 384 floats at 100 ms a page, one after another and all at once."""
    count = size(1_500)
    made = [Collection(f"docs_{number}", "binary", 384, count) for number in range(16)]
    rows: list[Row] = []
    with trial(made, "--latency-ms", "100") as there:
        start_up = start_ups(there, size.rounds)[OURS]
        for many, workers in ((1, 1), (4, 1), (4, 4), (16, 1), (16, 16)):
            names, options = [each.name for each in made[:many]], ("--workers", str(workers))
            rounds = 1 if many == 16 else size.rounds
            usages = [there.ours(*names, options=options) for _ in range(rounds)]
            rows.append({"collections": many, "workers": workers, **row(usages, start_up, many * count)})
    return rows


def cores(size: Size) -> list[Row]:
    """1,536 floats in binary form, latency 0; the server may use all cores."""
    count, rows = size(6_000), []
    with trial([Collection("docs", "binary", 1536, count)]) as there:
        for many in (1, 2):
            rows.append({"cores": many, **against_bare(there, size, "docs", count, set(range(many)))})
    return rows


def memory(size: Size) -> list[Row]:
    """Peak memory of a backup of few and of many documents of 384 floats."""
    rows = []
    for count in (size(10_000), size(200_000)):
        with trial([Collection("docs", "binary", 384, count)]) as there:
            usage = there.ours("docs")
            rows.append({"documents": count, "rss_mb": usage.peak_rss_mib * 2**20 / 1e6, "seconds": usage.wall_s})
    return rows


def start_up(size: Size) -> list[Row]:
    """CPU and time of `--help`, and of a backup and of a check with almost nothing to do."""
    rows = []
    with trial([]) as there:
        there.ours("one")
        found = in_turns(
            max(size.rounds, 3),
            {
                "astra_backup.py --help": lambda: run(script("astra_backup.py", "--help"), there.cwd, {}),
                "restore.py --help": lambda: run(script("restore.py", "--help"), there.cwd, {}),
                "restore.py --verify-only, one document": lambda: run(
                    script("restore.py", "--verify-only", str(there.snapshot())), there.cwd, {}
                ),
                "astra_backup.py --no-box, one document": lambda: there.ours("one"),
            },
        )
        for name, usages in found.items():
            rows.append({"command": name, "cpu_s": middle(usages, of="cpu_s"), "wall_s": middle(usages)})
    return rows
