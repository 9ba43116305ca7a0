"""Prints the tables of docs/SCALE.md from bench/results.json; `make docs` runs it through cog."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from bench.backup import OURS, Row
from bench.measure import ROOT

COUNTS = (1_000_000, 10_000_000, 100_000_000)
ASTRA_PAGE = 20  # documents, by Astra's documentation
BOX_FILE_GB = {
    "Free personal": 0.25,
    "Starter": 2,
    "Business": 5,
    "Business Plus": 15,
    "Enterprise": 50,
    "Enterprise Plus": 150,
    "Enterprise Advanced": 500,
}
"""The largest file by plan, from https://developer.box.com/guides/uploads/direct/."""
LINE_MB_S = 12.5  # 100 Mbit/s


def results() -> Any:
    """What was measured last."""
    return json.loads((ROOT / "bench" / "results.json").read_text())


def rounded(value: float) -> str:
    """Two significant digits: more would promise too much."""
    digits = max(1 - math.floor(math.log10(value)), 0) if value > 0 else 0
    return f"{value:,.{digits}f}"


def print_table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> None:
    """A Markdown table."""
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def vectors(found: Row) -> Row:
    """The product's row for 1,536 floats in binary form."""
    return next(row[OURS] for row in found["workloads"] if row["name"] == "binary_1536")


def print_origin() -> None:
    """Say when and on what it was measured."""
    found = results()
    machine = found["machine"]
    if found["quick"]:
        print("**A quick trial of the tools: too little was measured, so the figures below mean nothing.**\n")
    print(f"Measured {found['date']} on {machine['cores']} cores of {machine['cpu']}, {machine['memory']}.")


def print_hours() -> None:
    """Hours of a backup of one collection: each latency, both page sizes."""
    found = results()
    rows = []
    for row in found["latencies"]:
        if not row["title"].startswith("1,536"):
            continue
        rate = row[OURS]["rate"]
        wait = f"{row['ms']} ms a page" if row["ms"] else "no wait: the client's limit"
        rows.append([wait, "50", *rate_cells(rate)])
        if row["ms"]:  # a page of 20 is taken to last as long as one of 50
            rows.append([wait, str(ASTRA_PAGE), *rate_cells(rate * ASTRA_PAGE / 50)])
    print_table(("the server takes", "documents a page", "documents/s", "1 million", "10 million", "100 million"), rows)


def rate_cells(rate: float) -> list[str]:
    """A rate, and the hours that the three sizes take at it."""
    return [f"{rate:,.0f}", *(f"{rounded(count / rate / 3600)} h" for count in COUNTS)]


def print_sizes() -> None:
    """Disk, plan, memory, CPU and time of the other steps."""
    found = results()
    ours = vectors(found)
    packed = ours["written_per_document"]
    checks = [row for row in found["verify"] if row["command"] == "restore.py --verify-only"]
    kept = {row["form"]: row for row in checks}
    loose = kept["not compressed"]["mb"] * 1e6 / kept["not compressed"]["documents"]
    sent = [row for row in found["upload"] if "upload" in row["way"]]
    rows = [
        ["disk, GB", *(rounded(count * packed / 1e9) for count in COUNTS)],
        ["disk with `--no-compress`, GB", *(rounded(count * loose / 1e9) for count in COUNTS)],
        ["Box takes the zip from this plan on", *(plan_for(count * packed / 1e9) for count in COUNTS)],
        ["CPU of the backup, hours of a core", *(rounded(count * ours["cpu_s_per_1000"] / 3.6e6) for count in COUNTS)],
        ["peak memory of the backup, MB", *[f"{ours['rss_mb']:.0f}"] * 3],
        ["peak memory of the upload, MB", *[f"{max(row['rss_mb'] for row in sent):.0f}"] * 3],
        hours("upload at 100 Mbit/s, hours", packed, LINE_MB_S),
        hours("upload to the emulated Box, hours", packed, sent[0]["mb_s"]),
        hours("`--verify-only`, hours", packed, kept["compressed"]["mb_s"]),
    ]
    print_table(("", "1 million", "10 million", "100 million"), rows)


def hours(title: str, document_bytes: float, mb_s: float) -> list[str]:
    """How long the three sizes take at a rate."""
    return [title, *(rounded(count * document_bytes / 1e6 / mb_s / 3600) for count in COUNTS)]


def plan_for(size_gb: float) -> str:
    """The first plan that takes a file of that size."""
    return next((f"{plan} ({most:g} GB)" for plan, most in BOX_FILE_GB.items() if most >= size_gb), "none")


def print_plans() -> None:
    """Documents that fit into one zip, by plan."""
    document_bytes = vectors(results())["written_per_document"]
    cells = (
        [plan, f"{most:g} GB", f"{most * 1e9 / document_bytes / 1e6:,.2f} million"]
        for plan, most in BOX_FILE_GB.items()
    )
    print_table(("plan", "largest file", "documents of 1,536 floats in it"), cells)
