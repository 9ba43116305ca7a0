"""Restore throughput against plain writers that send the same prepared batches.

    python -m bench.writers [--latency-ms 50]

Plain writers have all batches ready in memory and only post them, 1, 2, 4, 8 and 16 at once; nothing is checked. The
product reads and decodes the snapshot, and is timed from creating the collection to the last acknowledged batch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

import restore
from astra_backup import iter_decoded
from bench.measure import environment, run, script
from bench.memory import emulator, write_catalog

COUNT = 20_000
KEYSPACE = "default_keyspace"


def plain_writers(url: str, batches: list[bytes], writers: int) -> float:
    """Seconds that so many threads take to post all batches."""
    client = httpx.Client(headers={"Token": "AstraCS:bench", "Content-Type": "application/json"})
    options = {"vector": {"dimension": 384, "metric": "cosine"}, "lexical": {"enabled": False}}
    create = {"createCollection": {"name": f"plain{writers}", "options": options}}
    client.post(f"{url}/v1/{KEYSPACE}", json=create).raise_for_status()
    started = time.monotonic()
    with ThreadPoolExecutor(writers) as pool:
        where = f"{url}/v1/{KEYSPACE}/plain{writers}"
        for reply in pool.map(lambda body: client.post(where, content=body), batches):
            assert b'"errors"' not in reply.content
    return time.monotonic() - started


def our_writers(url: str, cwd: Path, workers: int) -> float:
    """Seconds of the step that creates and writes, as the drill tells them."""
    command = script("restore.py", "--drill", "--json", "-q", "--workers", str(workers))
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment(url), capture_output=True, check=True)
    return float(json.loads(done.stdout)["steps_seconds"]["create and write"])


def prepared_batches(snapshot: Path) -> list[bytes]:
    """The bodies of the requests, ready to be sent."""
    with restore.open_snapshot(snapshot).open("docs.jsonl.gz") as stream:
        texts = [text for _, _, text in iter_decoded(stream, compressed=True)]
    head, tail = b'{"insertMany":{"documents":[', b'],"options":{"ordered":false,"returnDocumentResponses":true}}}'
    return [head + b",".join(batch) + tail for batch in restore.make_batches(texts)]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", default="50")
    latency = parser.parse_args().latency_ms
    with tempfile.TemporaryDirectory() as name:
        cwd = Path(name)
        write_catalog(cwd, COUNT)
        with emulator("--load", str(cwd)) as source:
            run(script("astra_backup.py", "--no-box"), cwd, environment(source))
        batches = prepared_batches(next((cwd / "backups").glob("2*")))
        print(f"{COUNT:,} documents of 384 floats, {latency} ms a request\n")
        print("| at once | plain writers, documents/s | restore.py --workers, documents/s |\n|---|---|---|")
        for at_once in (1, 2, 4, 8, 16):
            with emulator("--latency-ms", latency) as target:
                plain_s = plain_writers(target, batches, at_once)
                ours_s = our_writers(target, cwd, at_once)
            print(f"| {at_once} | {COUNT / plain_s:,.0f} | {COUNT / ours_s:,.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
