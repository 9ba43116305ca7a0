"""Documents a second, side by side in one run: the plain way, the bare page loop, and this product.

    python -m bench.speed [--catalog DIR] [--rounds 3]

The server is the emulator in a process of its own, at zero latency, with the real `assets` collection. Whole processes
are timed, in turns; what each takes for a collection of one document is taken off as its start-up.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.measure import ROOT, Usage, environment, run, script

FULL_CATALOG = ROOT.parent / "shared" / "data_api" / "catalog"
CUT_CATALOG = ROOT / "tests" / "data" / "catalog"


def plain(url: str, collection: str, path: str) -> None:
    """The plain way: astrapy's cursor, json.dumps with a default, gzip.open."""
    from astrapy import DataAPIClient
    from astrapy.api_options import APIOptions, SerdesOptions

    plain_types = APIOptions(serdes_options=SerdesOptions(custom_datatypes_in_reading=False))
    client = DataAPIClient(environment="hcd", api_options=plain_types)
    database = client.get_database(url, token="AstraCS:bench", keyspace="default_keyspace")
    with gzip.open(path, "wt") as file:
        for document in database.get_collection(collection).find({}, projection={"*": True}):
            file.write(json.dumps(document, default=str) + "\n")


def bare(url: str, collection: str, path: str) -> None:
    """The limit: ask for page after page and throw them away."""
    import httpx

    del path
    state: str | None = None
    find: dict[str, object] = {"filter": {}, "projection": {"*": True}}
    with httpx.Client(headers={"Token": "AstraCS:bench"}) as client:
        while True:
            options: dict[str, object] = {"options": {"pageState": state}} if state else {}
            reply = client.post(f"{url}/v1/default_keyspace/{collection}", json={"find": find | options})
            marker = reply.content.rindex(b'"nextPageState":')
            state = json.loads(b"{" + reply.content[marker:].rstrip(b"}") + b"}")["nextPageState"]
            if state is None:
                return


WAYS: dict[str, Callable[[str, str, str], None]] = {"plain": plain, "bare": bare}


def commands(url: str, collection: str, cwd: Path) -> dict[str, list[str]]:
    """What is compared, as command lines."""
    here = [sys.executable, "-m", "bench.speed", "--way"]
    return {
        "plain way (astrapy cursor, json.dumps, gzip.open)": [*here, "plain", url, collection, str(cwd / "plain.gz")],
        "bare page loop (httpx, nothing kept)": [*here, "bare", url, collection, ""],
        "astra_backup.py --no-box": script("astra_backup.py", "--no-box", "--collection", collection),
    }


def measure(catalog: Path, rounds: int) -> None:
    """Run all in turns and print the table."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.emulators.data_api", "--port", "0", "--quiet", "--load", str(catalog)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout
        url = server.stdout.readline().split()[-1]
        with tempfile.TemporaryDirectory() as name:
            cwd = Path(name)
            add_one_document(url)
            start_up, found = (run_in_turns(url, name, cwd, rounds) for name in ("one", "assets"))
            count, sizes = results(cwd)
    finally:
        server.terminate()
        server.wait()
    print_table(start_up, found, count, sizes)


def add_one_document(url: str) -> None:
    """A collection of one document with a binary vector, so that every library is loaded for it."""
    import httpx

    document = {"_id": "one", "$vector": {"$binary": "PczMzT5MzM0+mZma"}}
    options = {"vector": {"dimension": 3, "metric": "cosine"}}
    with httpx.Client(headers={"Token": "AstraCS:bench"}) as client:
        create = {"createCollection": {"name": "one", "options": options}}
        client.post(f"{url}/v1/default_keyspace", json=create).raise_for_status()
        client.post(f"{url}/v1/default_keyspace/one", json={"insertOne": {"document": document}}).raise_for_status()


def run_in_turns(url: str, collection: str, cwd: Path, rounds: int) -> dict[str, list[Usage]]:
    """Every way, again and again."""
    found: dict[str, list[Usage]] = {}
    for _ in range(rounds):
        for way, command in commands(url, collection, cwd).items():
            found.setdefault(way, []).append(run(command, cwd, environment(url)))
    return found


def median_s(usages: list[Usage]) -> float:
    """The middle one of the wall times."""
    return statistics.median(usage.wall_s for usage in usages)


def results(cwd: Path) -> tuple[int, dict[str, int]]:
    """How many documents there were, and the bytes that each way wrote."""
    with gzip.open(cwd / "plain.gz", "rb") as file:
        count = sum(1 for _ in file)
    written = max((cwd / "backups").glob("2*/assets.jsonl.gz")).stat().st_size
    return count, {"plain": (cwd / "plain.gz").stat().st_size, "astra": written}


def print_table(
    start_up: dict[str, list[Usage]], found: dict[str, list[Usage]], count: int, sizes: dict[str, int]
) -> None:
    """Medians; start-up is what the same command takes for one document."""
    rounds = len(next(iter(found.values())))
    print(f"{count:,} documents of 384 floats, zero latency, medians of {rounds} rounds\n")
    print("| way | start-up s | documents/s after it | × the plain way | CPU s per 1,000 | peak RSS MiB | MB written |")
    print("|---|---|---|---|---|---|---|")
    work_s = {way: median_s(usages) - median_s(start_up[way]) for way, usages in found.items()}
    base = next(iter(work_s.values()))
    for way, usages in found.items():
        cpu_s = statistics.median(u.cpu_s for u in usages) - statistics.median(u.cpu_s for u in start_up[way])
        rss = max(usage.peak_rss_mib for usage in usages)
        size = next((f"{size / 1e6:.1f}" for key, size in sizes.items() if way.startswith(key)), "–")
        print(
            f"| {way} | {median_s(start_up[way]):.2f} | {count / work_s[way]:,.0f} | {base / work_s[way]:.1f}"
            f" | {cpu_s / count * 1000:.3f} | {rss:.0f} | {size} |"
        )


def main() -> int:
    """Compare, or be one of the compared ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", type=Path, default=FULL_CATALOG if FULL_CATALOG.is_dir() else CUT_CATALOG)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", nargs=4, metavar=("WAY", "URL", "NAME", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        way, *arguments = options.way
        WAYS[way](*arguments)
    else:
        measure(options.catalog, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
