"""Restores, measured: the comparison at the end, and the writes against plain writers."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from bench.backup import SLOW_SERVER, Row, Size, row, trial
from bench.data import Collection
from bench.measure import environment, run, script, server, way

COMPARED_DOCUMENTS = 50_000
WRITTEN = ((50, 20_000, (1, 4, 16)), (400, 10_000, (4, 16)))
"""Milliseconds a request, documents, and how many requests at once."""


def comparison(size: Size) -> list[Row]:
    """`restore.py --compare` at 50 ms a page of 20 with one worker and with 8; whole processes."""
    made, rows = Collection("assets", "assets", 384, size(COMPARED_DOCUMENTS)), []
    with trial([made], *SLOW_SERVER) as there:
        there.ours(made.name, workers=32)
        for workers in (1, 8):
            command = script("restore.py", "--compare", str(there.snapshot()), "-q", "--workers", str(workers))
            usage = run(command, there.cwd, environment(there.api.url), watched=there.api)
            rows.append({"workers": workers} | row([usage], made.count))
    return rows


def writes(size: Size) -> list[Row]:
    """Documents of 384 floats written by `restore.py`, and by plain writers."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for wait_ms, count, workers in WRITTEN:
            cwd = Path(name, str(wait_ms))
            cwd.mkdir()
            with trial([Collection("docs", "binary", 384, size(count))]) as there:
                there.ours("docs")
                shutil.move(there.cwd / "backups", cwd)
            rows += [written(cwd, wait_ms, at_once, size(count)) for at_once in workers]
    return rows


def written(cwd: Path, wait_ms: int, at_once: int, count: int) -> Row:
    """One latency and number of writers. Large pages, since the comparison at the end is not what is timed."""
    snapshot, log = next((cwd / "backups").glob("2*")), cwd / f"{at_once}.jsonl"
    with server("data_api", "--latency-ms", str(wait_ms), "--page-size", "1000", "--log", str(log)) as api:
        environ = environment(api.url)
        plain = run(way("writers", api.url, str(snapshot), str(at_once)), cwd, environ)
        command = script("restore.py", str(snapshot), "--yes", "-q", "--workers", str(at_once))
        ours = run(command, cwd, environ, watched=api)
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    inserted = [request["time"] for request in requests if request["command"] == "insertMany"][-count // 100 :]
    before = [request["time"] for request in requests if request["command"] == "findCollections"]
    ours_s = inserted[-1] - max(moment for moment in before if moment < inserted[0])  # it was created and read back
    figures = {"plain": count / json.loads(plain.output)["seconds"], "ours": count / ours_s}
    return {"ms": wait_ms, "at_once": at_once} | row([ours], count) | figures
