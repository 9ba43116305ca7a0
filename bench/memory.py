"""Peak memory of backup, verify and restore for 20,000 and 200,000 documents of 384 floats.

python -m bench.memory            prints a table and fails if memory is not flat
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.measure import ROOT, Usage, environment, run, script

SIZES = (20_000, 200_000)
PAGE_DOCUMENTS = 50
LIMITS_MIB = {"backup": 150, "verify": 150, "restore": 200}
MAX_GROWTH_MIB = 20


def write_catalog(directory: Path, count: int) -> None:
    """Page files of one collection: documents of 384 random floats in binary form, with some text."""
    options = {"vector": {"dimension": 384, "metric": "cosine"}, "lexical": {"enabled": False}}
    definition = {"name": "docs", "options": options | {"rerank": {"enabled": False}}}
    (directory / "findCollections.json").write_text(json.dumps({"status": {"collections": [definition]}}))
    noise = random.Random(count)
    with (directory / "docs.pages.jsonl").open("w") as file:
        for start in range(0, count, PAGE_DOCUMENTS):
            page = ",".join(document(number, noise) for number in range(start, start + PAGE_DOCUMENTS))
            file.write(f'{{"data":{{"documents":[{page}],"nextPageState":null}}}}\n')


def document(number: int, noise: random.Random) -> str:
    """A document's JSON text."""
    floats = [noise.uniform(-0.2, 0.2) for _ in range(48)] * 8
    vector = base64.b64encode(struct.pack(">384f", *floats)).decode()
    text = f"a title of document number {number} and some words {noise.random()}"
    return f'{{"_id":"d{number}","title":"{text}","$vector":{{"$binary":"{vector}"}}}}'


@contextlib.contextmanager
def emulator(*arguments: str) -> Iterator[str]:
    """A Data API in a process of its own; yields its URL. Our own memory must stay small: a child begins with it."""
    command = [sys.executable, "-m", "tests.emulators.data_api", "--port", "0", "--quiet", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            yield server.stdout.readline().split()[-1]
        finally:
            server.terminate()


def measure(count: int) -> dict[str, Usage]:
    """Back up, verify and restore a collection of that size."""
    with tempfile.TemporaryDirectory() as name:
        cwd = Path(name)
        write_catalog(cwd, count)
        with emulator("--load", str(cwd)) as source, emulator() as target:
            return {
                "backup": run(script("astra_backup.py", "--no-box"), cwd, environment(source)),
                "verify": run(script("restore.py", "--verify-only"), cwd, environment(source)),
                "restore": run(script("restore.py"), cwd, environment(target)),
            }


def main() -> int:
    """Print the table; 1 if a limit is broken."""
    found = {count: measure(count) for count in SIZES}
    small, large = (found[count] for count in SIZES)
    is_flat = True
    print(f"| step | {SIZES[0]:,} documents | {SIZES[1]:,} documents | growth | limit |")
    print("|---|---|---|---|---|")
    for step, limit in LIMITS_MIB.items():
        growth = large[step].peak_rss_mib - small[step].peak_rss_mib
        is_flat &= large[step].peak_rss_mib <= limit and growth <= MAX_GROWTH_MIB
        print(
            f"| {step} | {small[step].peak_rss_mib:.0f} MiB, {small[step].wall_s:.0f} s"
            f" | {large[step].peak_rss_mib:.0f} MiB, {large[step].wall_s:.0f} s | {growth:+.0f} MiB | {limit} MiB |"
        )
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
