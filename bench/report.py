"""Turn measured figures into bench/RESULTS.md and its plots. No figure is written here that was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench import compression, plot
from bench.backup import BARE, OURS, PLAIN, Row

Table = Iterator[str]


def table(head: str, rows: Iterable[Iterable[str]]) -> Table:
    """A Markdown table; `head` has its columns separated by bars."""
    yield f"\n| {head} |\n|{'---|' * len(head.split('|'))}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def percent(row: Row) -> float:
    """The product's rate as a part of the bare loop's."""
    return float(row[OURS]["rate"] / row[BARE]["rate"])


def ceiling(row: Row, cores: int) -> float:
    """The product's highest rate if all of both its CPU and the server's ran on so many cores without a pause."""
    ours = row[OURS]
    return float(cores * 1000 / (ours["cpu_s_per_1000"] + ours["server_cpu_s_per_1000"]))


def render(found: Row, directory: Path) -> None:
    """Write RESULTS.md and the plots into a directory."""
    parts = [about, limits, workloads, page_sizes, latencies, collections, cores, memory, start_up]
    parts += [verify, restore, upload, compressed]
    text = "\n".join(line for part in parts for line in part(found))
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    (directory / "RESULTS.md").write_text(text.rstrip() + "\n")
    for name, picture in plots(found).items():
        (directory / f"{name}.svg").write_text(picture)


def about(found: Row) -> Table:
    """The machine, the versions, and how to read the rest."""
    yield "# Results\n"
    if found["quick"]:
        yield "**A quick trial of the tools: too little was measured, so the figures mean nothing.**\n"
    yield f"`{found['command']}`, {found['date']}, commit {found['commit']}, {found['seconds'] / 60:.0f} minutes."
    yield "Generated; `python -m bench --render` writes it again from `results.json`."
    yield from table("what | which", ((name, str(value)) for name, value in found["machine"].items()))
    yield "Versions: " + ", ".join(f"{name} {value}" for name, value in found["versions"].items()) + ".\n"
    yield (
        "The server is the emulator in `tests/emulators` in a process of its own, on the same cores. Whole processes"
        f" are timed, in turns, rounds: {found['rounds']}; figures are medians. What the same command takes for a"
        " collection of one document is its start-up; it is shown and taken off. The bare loop times itself: imports"
        " are not in it. MB are 10^6 bytes; MB/s are of the JSON that the server sends. One thing at a time differs"
        " from the base: one collection, 50 documents a page, latency 0, two cores."
    )


def limits(found: Row) -> Table:
    """What had to hold, and whether it does."""
    yield "\n## What had to hold\n"
    rows = (
        (name, limit, value, "met" if met else "**not met**", note) for name, limit, value, met, note in checks(found)
    )
    yield from table("what | limit | measured | verdict | why", rows)


def checks(found: Row) -> Iterator[tuple[str, str, str, bool, str]]:
    """Each limit: its name, the limit, the measured figure, whether it is met, a note of what was counted."""
    by_name = {row["name"]: row for row in found["workloads"]}
    vectors, assets, many = by_name["binary_1536"], by_name["assets"], found["machine"]["cores"]
    for row, least in ((vectors, 25), (assets, 10)):
        times = row[OURS]["rate"] / row[PLAIN]["rate"]
        yield f"{row['title']}: rate against the plain way", f"≥ {least} ×", f"{times:.1f} ×", times >= least, ""
    for row in (vectors, assets):
        note = at_most(row, many)
        yield f"{row['title']}: of the bare loop, latency 0", "≥ 80 %", f"{percent(row):.0%}", percent(row) >= 0.8, note
    for row in found["latencies"]:
        if row["ms"]:
            name = f"{row['title']}: of the bare loop, {row['ms']} ms a page"
            yield name, "≥ 95 %", f"{percent(row):.1%}", percent(row) >= 0.95, lag(row)
    times = times_at_once(found["collections"], 4)
    yield "4 collections, 100 ms a page: against one after another", "≥ 3.8 ×", f"{times:.2f} ×", times >= 3.8, ""
    for row in (vectors, by_name["array_1536"]):
        cpu_s = row[OURS]["cpu_s_per_1000"]
        yield f"{row['title']}: CPU per 1,000 documents", "≤ 0.25 s", f"{cpu_s:.3f} s", cpu_s <= 0.25, ""
    highest = max(row[OURS]["rss_mb"] for row in found["workloads"])
    yield "peak RSS of a backup, highest row", "≤ 150 MB", f"{highest:.0f} MB", highest <= 150, ""
    few, most = found["memory"]
    growth = most["rss_mb"] - few["rss_mb"]
    name = f"growth of peak RSS from {few['documents']:,} to {most['documents']:,} documents"
    yield name, "≤ 10 MB", f"{growth:+.0f} MB", growth <= 10, ""
    help_s = found["start_up"][0]["cpu_s"]
    yield "`astra_backup.py --help`, CPU", "< 0.3 s", f"{help_s:.2f} s", help_s < 0.3, ""
    for ms in sorted({row["ms"] for row in found["restore"]}):
        rows = [row for row in found["restore"] if row["ms"] == ms]
        ours, plain = (max(row[way] for row in rows) for way in ("ours", "plain"))
        name = f"restore, {ms} ms a request: against the best of the plain writers"
        yield name, "≥ 100 %", f"{ours / plain:.0%}", ours >= plain, f"{ours:,.0f} of {plain:,.0f} documents/s"
    for form in ("compressed", "not compressed"):
        yield verify_check(form, [row for row in found["verify"] if row["form"] == form])


def at_most(row: Row, cores: int) -> str:
    """What the cores could do if nothing ever waited: the server takes its part of them."""
    ours, bare, best = row[OURS], row[BARE]["rate"], ceiling(row, cores)
    return (
        f"server {ours['server_cpu_s_per_1000']:.3f} s and product {ours['cpu_s_per_1000']:.3f} s of CPU per 1,000 on"
        f" {cores} cores: at most {min(best / bare, 9.99):.0%} of the bare loop's {bare:,.0f} documents/s"
    )


def lag(row: Row) -> str:
    """How much longer the product took, in time and by document."""
    more_s = row[OURS]["work_s"] - row[BARE]["work_s"]
    return (
        f"{more_s:+.2f} s over {row[BARE]['work_s']:.2f} s, {more_s / row[OURS]['documents'] * 1e6:+.0f} µs a document"
    )


def times_at_once(rows: list[Row], many: int) -> float:
    """How many times the rate of one collection; runs one after another would have their start-ups on top."""
    rates = {(row["collections"], row["workers"]): row["rate"] for row in rows}
    return float(rates[many, many] / rates[1, 1])


def verify_check(form: str, rows: list[Row]) -> tuple[str, str, str, bool, str]:
    """Either limit is enough: the rate, or the share of what the plain tools take."""
    by_command = {row["command"]: row for row in rows}
    ours = by_command.pop("restore.py --verify-only")
    # What is least to check a file: its sum, and to unpack it or count its lines.
    least = [row for name, row in by_command.items() if not name.startswith("zcat")]
    share, rate = sum(row["cpu_s"] for row in least) / ours["cpu_s"], ours["mb_per_core_s"]
    note = " + ".join(f"{row['command']} {row['cpu_s']:.2f} s" for row in least) + f" against {ours['cpu_s']:.2f} s"
    note += f"; {ours['lines_mb_per_core_s']:.0f} MB/s of lines" if form == "compressed" else ""
    measured = f"{rate:.0f} MB/s, {share:.0%}"
    return f"verify, {form}: data file a core", "≥ 200 MB/s or ≥ 80 %", measured, rate >= 200 or share >= 0.8, note


def workloads(found: Row) -> Table:
    """Section A."""
    yield "\n## Kinds of documents\n\n![Documents a second](rates.svg)\n"
    head = "documents | way | how many | start-up s | documents/s | MB/s | × plain | of bare | CPU s per 1,000"
    cells = []
    for row in found["workloads"]:
        for name in (PLAIN, BARE, OURS):
            one = row[name]
            size = f"{one['written_per_document']:,.0f}" if "written_per_document" in one else "–"
            cells.append(
                [
                    row["title"],
                    name,
                    f"{one['documents']:,}",
                    f"{one['start_up_s']:.2f}",
                    f"{one['rate']:,.0f}",
                    f"{one['mb_s']:.1f}",
                    f"{one['rate'] / row[PLAIN]['rate']:.1f}",
                    f"{one['rate'] / row[BARE]['rate']:.0%}",
                    f"{one['cpu_s_per_1000']:.3f}",
                    f"{one['server_cpu_s_per_1000']:.3f}",
                    f"{one['rss_mb']:.0f}",
                    size,
                ]
            )
    yield from table(f"{head} | server's | peak RSS MB | bytes written a document", cells)


def pair_table(rows: list[Row], first: str, label: Any) -> Table:
    """Rows of the product against the bare loop."""
    head = f"{first} | bare loop, documents/s | product, documents/s | of bare | CPU s per 1,000"
    head += " | server's | start-up s | peak RSS MB"
    cells = []
    for row in rows:
        ours = row[OURS]
        rates = [f"{row[BARE]['rate']:,.0f}", f"{ours['rate']:,.0f}", f"{percent(row):.1%}"]
        costs = [f"{ours['cpu_s_per_1000']:.3f}", f"{ours['server_cpu_s_per_1000']:.3f}"]
        cells.append([label(row), *rates, *costs, f"{ours['start_up_s']:.2f}", f"{ours['rss_mb']:.0f}"])
    yield from table(head, cells)


def page_sizes(found: Row) -> Table:
    """Section B."""
    yield "\n## Page sizes\n\n1,536 floats in binary form, latency 0.\n"
    yield from pair_table(found["page_sizes"], "documents a page", lambda row: str(row["page_size"]))


def latencies(found: Row) -> Table:
    """Section C."""
    yield "\n## Latencies\n\n![Part of the bare loop's rate](latencies.svg)\n"
    yield from pair_table(found["latencies"], "documents, ms a page", lambda row: f"{row['title']}, {row['ms']} ms")


def collections(found: Row) -> Table:
    """Section D."""
    rows = found["collections"]
    yield f"\n## Collections at once\n\n{rows[0]['documents']:,} documents of 384 floats each, 100 ms a page.\n"
    one = rows[0]["rate"]
    head = "collections | --workers | seconds after start-up | documents/s | × one collection | peak RSS MB"
    cells = (
        [
            str(row["collections"]),
            str(row["workers"]),
            f"{row['work_s']:.2f}",
            f"{row['rate']:,.0f}",
            f"{row['rate'] / one:.2f}",
            f"{row['rss_mb']:.0f}",
        ]
        for row in rows
    )
    yield from table(head, cells)


def cores(found: Row) -> Table:
    """Section E."""
    yield "\n## Cores\n\n1,536 floats in binary form, latency 0; only the client is bound to so many cores.\n"
    yield from pair_table(found["cores"], "cores", lambda row: str(row["cores"]))


def memory(found: Row) -> Table:
    """Peak memory."""
    yield "\n## Memory\n\nBackup of documents of 384 floats. `make memory` measures verify and restore as well.\n"
    rows = ([f"{row['documents']:,}", f"{row['rss_mb']:.0f}", f"{row['seconds']:.1f}"] for row in found["memory"])
    yield from table("documents | peak RSS MB | seconds", rows)


def start_up(found: Row) -> Table:
    """Time before anything is done."""
    yield "\n## Start-up\n"
    rows = ([f"`{row['command']}`", f"{row['cpu_s']:.2f}", f"{row['wall_s']:.2f}"] for row in found["start_up"])
    yield from table("command | CPU s | wall s", rows)


def verify(found: Row) -> Table:
    """Section F."""
    first = found["verify"][0]
    yield f"\n## Verify\n\n{first['documents']:,} documents of 1,536 floats; MB of the data file on the disk.\n"
    cells = (
        [
            row["form"],
            f"`{row['command']}`",
            f"{row['mb']:.0f}",
            f"{row['cpu_s']:.2f}",
            f"{row['mb_per_core_s']:,.0f}",
            f"{row['lines_mb_per_core_s']:,.0f}",
            f"{row['mb_s']:,.0f}",
            f"{row['rss_mb']:.0f}",
        ]
        for row in found["verify"]
    )
    yield from table(
        "file | command | MB | CPU s | MB per CPU second | MB of lines per CPU second | MB per second | peak RSS MB",
        cells,
    )


def restore(found: Row) -> Table:
    """Section G."""
    yield "\n## Restore\n\n![Documents written a second](restore.svg)\n"
    yield (
        "Documents of 384 floats in batches of 100. The plain writers have all requests ready in memory and only post"
        " them. The product reads and decodes the snapshot meanwhile, timed from when the collection was there to the"
        " last reply. A real server of one node took 48 documents of 1,536 floats a second from one writer, 1 s for a"
        " batch of 50; 400 ms is nearer to that than 50.\n"
    )
    cells = (
        [
            str(row["ms"]),
            str(row["at_once"]),
            f"{row['documents']:,}",
            f"{row['plain']:,.0f}",
            f"{row['ours']:,.0f}",
            f"{row['ours'] / row['plain']:.0%}",
        ]
        for row in found["restore"]
    )
    yield from table("ms a request | at once | documents | plain writers, documents/s | restore.py | of plain", cells)


def upload(found: Row) -> Table:
    """Section H."""
    yield "\n## Upload\n"
    yield (
        "To the emulated Box. The plain way opens an upload session and sends one part after the other; the product"
        " reads the snapshot twice before it sends it, and sends several parts at once.\n"
    )
    cells = (
        [
            str(row["ms"]),
            f"`{row['way']}`",
            f"{row['mb']:.0f}",
            f"{row['seconds']:.2f}",
            f"{row['mb_s']:.0f}",
            f"{row['cpu_s']:.2f}",
            f"{row['rss_mb']:.0f}",
        ]
        for row in found["upload"]
    )
    yield from table("ms a request | way | MB | seconds | MB/s | CPU s, start-up included | peak RSS MB", cells)


def compressed(found: Row) -> Table:
    """The tables of bench.compression."""
    yield "\n## Compression\n\n![Compression of vectors](compression.svg)\n"
    yield from compression.tables(found["compression"])


def plots(found: Row) -> dict[str, str]:
    """Each plot by its file's name."""
    names = (PLAIN, BARE, OURS)
    rates = [(row["title"], [row[name]["rate"] for name in names]) for row in found["workloads"]]
    parts = [(f"{row['title']}, {row['ms']} ms", [percent(row) * 100]) for row in found["latencies"]]
    base = [row for row in found["restore"] if row["ms"] == found["restore"][0]["ms"]]
    written = [
        ("plain writers", [(row["at_once"], row["plain"]) for row in base]),
        ("restore.py", [(row["at_once"], row["ours"]) for row in base]),
    ]
    packed: dict[str, list[tuple[float, float]]] = {}
    for row in found["compression"]["levels"]:
        one = row["vectors"]
        packed.setdefault(f"{row['library']}, {row['threads']} thr.", []).append((one["ratio"] * 100, one["mb_s"]))
    return {
        "rates": plot.bars("Documents a second at latency 0 (logarithmic)", rates, names, log=True),
        "latencies": plot.bars("The product's rate, % of the bare page loop's", parts, [OURS], log=False),
        "restore": plot.lines(
            f"Documents written a second, {base[0]['ms']} ms each", written, ("at once", "/s"), log=True
        ),
        "compression": plot.lines(
            "Vectors", list(packed.items()), ("% of the original that is left", "MB/s"), log=True
        ),
    }
