"""Damage a snapshot at random, again and again: each time it is refused before a write, or the damage is harmless.

    python -m tests.trials.damage [--count 10000] [--commands 100] [--seed 1] [--processes N] [--encrypted]

A good snapshot, as a directory and as the zip that goes to Box, is damaged in one of the ways of `KINDS`; some of them
also forge the checksums, so that the checks behind them have to notice. Whether what is accepted holds the same
documents is decided by code that shares nothing with the product (tests/reference.py). Most are verified within this
process; for `--commands` of them `restore.py` itself runs against an emulator, whose log must show no write.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import hashlib
import itertools
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyrage

import astra_backup
import restore
from tests import reference
from tests.conftest import CATALOG, KEYSPACE, ROOT, TOKEN, Cli
from tests.emulators.data_api import DataApiEmulator

NAME = "20260616_085246"
WRITES = {"createCollection", "insertMany", "deleteCollection", "findOneAndReplace"}
FACTS = (
    "document_count",
    "vector_count",
    "vector_binary_count",
    "vectorize_count",
    "lexical_count",
    "content_digest",
    "data_sha256",
    "data_size_bytes",
    "data_file",
    "compressed",
    "status",
)
KEY = ROOT / "tests" / "data" / "frozen-encrypted" / "keys" / "x25519.txt"
IDENTITY = pyrage.x25519.Identity.from_str(KEY.read_text().split()[-1])
RECIPIENT = IDENTITY.to_public()
Files = dict[str, bytes]
Content = dict[str, tuple[Any, list[str]]]

# ======================================================================================================================
# A good snapshot, and what is in it
# ======================================================================================================================


def fill(emulator: DataApiEmulator) -> None:
    """The real small collections, and some documents with vectors."""
    emulator.load(CATALOG)
    vectors = emulator.documents(KEYSPACE, "assets")[:40]
    emulator.delete_all(KEYSPACE, "assets")
    for text in vectors:
        emulator.put(KEYSPACE, "assets", text)


def good_files(directory: Path, *options: object) -> Files:
    """Back up, and return the files of the snapshot."""
    cli = Cli(directory)
    with DataApiEmulator(token=TOKEN) as source:
        fill(source)
        result = cli.backup(source, *options)
    assert result.code == 0, result.err
    (snapshot,) = cli.snapshots()
    files = {path.name: path.read_bytes() for path in snapshot.iterdir()}
    shutil.rmtree(cli.backups)
    return files


def opened(name: str, content: bytes) -> bytes:
    """What a data file holds before it is encrypted."""
    return pyrage.decrypt(content, [IDENTITY]) if name.endswith(".age") else content


def sealed(name: str, content: bytes) -> bytes:
    """A data file that somebody else made, to the same recipient where it is encrypted."""
    return pyrage.encrypt(content, [RECIPIENT]) if name.endswith(".age") else content


@functools.lru_cache(4096)
def decoded(line: bytes) -> str:
    """A document in a form that compares; most lines of a damaged snapshot are those of the good one."""
    return repr(reference.decode_line(line))


def content_of(files: Files) -> Content:
    """Each collection's definition and documents, read with the standard library and tests/reference.py alone."""
    manifest = json.loads(files["manifest.json"])
    found: Content = {}
    for record in manifest["collections"]:
        raw = opened(record["data_file"], files[record["data_file"]])
        by_name = record["data_file"].removesuffix(".age").endswith(".gz")  # tells where `compressed` is null
        is_gzip = by_name if record.get("compressed") is None else record["compressed"]
        lines = (gzip.decompress(raw) if is_gzip else raw).split(b"\n")
        documents = sorted(decoded(line) for line in lines if line)
        found[record["name"]] = (record["definition"], documents)
    return found


def files_in(path: Path) -> Files:
    """The files of a directory or a zip, without their folder."""
    if path.is_dir():
        return {each.name: each.read_bytes() for each in path.iterdir()}
    with zipfile.ZipFile(path) as archive:
        return {each.filename.rpartition("/")[2]: archive.read(each) for each in archive.infolist()}


def write_files(files: Files, directory: Path) -> Path:
    """A snapshot's directory."""
    path = directory / NAME
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def write_zip(files: Files, directory: Path) -> Path:
    """The zip that the product would upload; a stored one by the standard library where the product refuses."""
    folder = write_files(files, directory)
    path = directory / f"{NAME}.zip"
    try:
        stream = astra_backup.ZipStream(folder)
        path.write_bytes(stream.read(0, stream.size_bytes))
    except (astra_backup.FormatError, OSError, ValueError, KeyError):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(f"{NAME}/{name}", content)
    shutil.rmtree(folder)
    return path


# ======================================================================================================================
# Ways to damage
# ======================================================================================================================


def flip(chance: random.Random, data: bytes) -> bytes:
    """Turn one to eight bits."""
    changed = bytearray(data or b"\0")
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def truncate(chance: random.Random, data: bytes) -> bytes:
    """Lose the end, or all."""
    return data[: chance.choice((0, chance.randrange(len(data) + 1), max(0, len(data) - chance.randint(1, 30))))]


def append(chance: random.Random, data: bytes) -> bytes:
    """Gain an end: noise, zeros, a newline, the file once more."""
    return data + chance.choice((chance.randbytes(chance.randint(1, 40)), bytes(chance.randint(1, 600)), b"\n", data))


def overwrite(chance: random.Random, data: bytes) -> bytes:
    """A block of zeros, of ones, or from elsewhere in the file, as a disk loses one."""
    size, at = chance.choice((1, 16, 512, 4096)), chance.randrange(len(data) + 1)
    start = chance.randrange(len(data) + 1)
    block = chance.choice((bytes(size), b"\xff" * size, data[start : start + size]))
    return data[:at] + block + data[at + len(block) :]


def cut_out(chance: random.Random, data: bytes) -> bytes:
    """Lose or double a block."""
    at, size = chance.randrange(len(data) + 1), chance.choice((1, 16, 512))
    return data[:at] + data[at + size :] if chance.random() < 0.5 else data[: at + size] + data[at:]


BYTES = (flip, truncate, append, overwrite, cut_out)


def damage_file(chance: random.Random, files: Files) -> str:
    """Damage the bytes of one file."""
    name, way = chance.choice(sorted(files)), chance.choice(BYTES)
    files[name] = way(chance, files[name])
    return way.__name__


def move_files(chance: random.Random, files: Files) -> str:
    """Swap two files, lose one, or have one more."""
    one, other = chance.sample(sorted(files), 2)
    way = chance.choice(("swap", "lose", "overwrite with another", "add"))
    if way == "swap":
        files[one], files[other] = files[other], files[one]
    elif way == "lose":
        del files[one]
    elif way == "add":
        files[chance.choice(("x.jsonl.gz", f"{one}~", ".DS_Store", one.upper()))] = files[one]
    else:
        files[one] = files[other]
    return way


def edit_manifest(chance: random.Random, files: Files) -> str:
    """Change a value somewhere in the manifest, and leave the checksums alone."""
    manifest = json.loads(files["manifest.json"])
    place, key = chance.choice(list(places(manifest)))
    place[key] = other_value(chance, place[key])
    files["manifest.json"] = json.dumps(manifest, indent=2).encode() + b"\n"
    return str(key)


def forge_fact(chance: random.Random, files: Files) -> str:
    """Change what the manifest says of a data file, and make SHA256SUMS agree."""
    manifest = json.loads(files["manifest.json"])
    record = chance.choice(manifest["collections"])
    place, key = chance.choice(((record, chance.choice(FACTS)), (manifest["totals"], "documents")))
    place[key] = other_value(chance, place[key])
    files["manifest.json"] = json.dumps(manifest).encode()
    reseal(files)
    return str(key)


def forge_bytes(chance: random.Random, files: Files) -> str:
    """Damage a data file and forge its size and SHA-256 everywhere: gzip, parser and content digest are left."""
    record = chance.choice(json.loads(files["manifest.json"])["collections"])
    way, name = chance.choice(BYTES), record["data_file"]
    files[name] = way(chance, files[name])
    forge_record(files, record["name"])
    return way.__name__


def forge_lines(chance: random.Random, files: Files) -> str:
    """Damage lines within a data file, pack it well and forge size and SHA-256: parser and content digest are left."""
    records = [record for record in json.loads(files["manifest.json"])["collections"] if record["document_count"] > 1]
    record = chance.choice(records)
    name = record["data_file"]
    lines = gzip.decompress(opened(name, files[name])).split(b"\n")[:-1]
    at, other = chance.sample(range(len(lines)), 2)
    way = chance.choice(("swap", "lose", "double", "join", *(way.__name__ for way in BYTES)))
    if way == "swap":
        lines[at], lines[other] = lines[other], lines[at]
    elif way == "lose":
        del lines[at]
    elif way == "double":
        lines[at] = lines[other]
    elif way == "join":
        lines[at] += lines.pop(other) if other > at else b""
    else:
        lines[at] = next(each for each in BYTES if each.__name__ == way)(chance, lines[at])
    files[name] = sealed(name, gzip.compress(b"\n".join([*lines, b""]), 1))
    forge_record(files, record["name"])
    return way


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each (container, key) of a JSON value that holds a scalar or a list."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    found = [(value, key) for key, member in items if not isinstance(member, dict)]
    for _, member in items:
        if isinstance(member, (dict, list)):
            found += places(member)
    return found


def other_value(chance: random.Random, value: Any) -> Any:
    """Another value, of the same type or not."""
    near: list[Any] = [None, "", -1, 2**63, 10**40, "../x", [], {}, True, 0.5]
    if isinstance(value, int):
        near += [value + 1, value - 1, -value - 1, value * 10] * 3
    if isinstance(value, str) and value:
        near += [value[::-1] + "0", value[:-1], value + "0"] * 4
    return chance.choice([each for each in near if each != value or type(each) is not type(value)])


def forge_record(files: Files, collection: str) -> None:
    """Make the manifest and SHA256SUMS agree with a data file as it is now."""
    manifest = json.loads(files["manifest.json"])
    for record in manifest["collections"]:
        if record["name"] == collection:
            content = files[record["data_file"]]
            record["data_sha256"], record["data_size_bytes"] = hashlib.sha256(content).hexdigest(), len(content)
    files["manifest.json"] = json.dumps(manifest).encode()
    reseal(files)


def reseal(files: Files) -> None:
    """SHA256SUMS anew, with what the manifest says of the data files."""
    manifest = json.loads(files["manifest.json"])
    rows = [(record.get("data_sha256"), record.get("data_file")) for record in manifest["collections"]]
    rows.append((hashlib.sha256(files["manifest.json"]).hexdigest(), "manifest.json"))
    files["SHA256SUMS"] = "".join(f"{digest}  {name}\n" for digest, name in rows).encode()


KINDS: dict[str, Callable[[random.Random, Files], str]] = {
    "bytes of a file": damage_file,
    "files swapped, lost, added": move_files,
    "manifest edited": edit_manifest,
    "manifest forged": forge_fact,
    "data forged": forge_bytes,
    "lines forged": forge_lines,
}
ZIP_KIND = "bytes of the zip"


def damaged(chance: random.Random, good: Files, directory: Path) -> tuple[str, str, Path]:
    """A damaged snapshot in `directory`: (kind, in what way, path)."""
    kind = chance.choice([*KINDS, ZIP_KIND])
    files = dict(good)
    if kind == ZIP_KIND:
        path, way = write_zip(files, directory), chance.choice(BYTES)
        content = path.read_bytes()
        # Half of them where the zip's own structure is: at the end.
        start = chance.choice((0, max(0, len(content) - 1500)))
        path.write_bytes(content[:start] + way(chance, content[start:]))
        return kind, way.__name__, path
    way_name = KINDS[kind](chance, files)
    as_zip = chance.random() < 0.3
    return kind, f"{way_name}{', zipped' * as_zip}", (write_zip if as_zip else write_files)(files, directory)


# ======================================================================================================================
# Verdicts
# ======================================================================================================================


@dataclass(frozen=True)
class Trial:
    """A damage and what came of it: `refused`, `harmless`, or a finding."""

    number: int
    kind: str
    way: str
    verdict: str

    @property
    def is_finding(self) -> bool:
        """Whether it should not have come to this."""
        return self.verdict not in ("refused", "harmless")


def judge(path: Path, good: Content) -> str:
    """Verify a snapshot as a restore does; what is accepted must hold what the good one holds."""
    try:
        snapshot = restore.open_snapshot(path)
        if restore.read_manifest(snapshot).encryption:
            snapshot.identities = (IDENTITY,)
        restore.verify_snapshot(snapshot, force_incomplete=False, workers=2, report=astra_backup.Report(quiet=True))
    except restore.SnapshotRefused:
        return "refused"
    except Exception as error:
        return f"crashed with {type(error).__name__}: {error}"
    return "harmless" if is_same(path, good) else "ACCEPTED, with other documents"


def is_same(path: Path, good: Content) -> bool:
    """Whether a snapshot holds the same, by code that shares nothing with the product."""
    try:
        return content_of(files_in(path)) == good
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, pyrage.DecryptError):
        return False


def judge_command(path: Path, good: Content, cli: Cli) -> str:
    """The same by `restore.py` itself: exit code 3 and no write, or 0 and the same documents in the target."""
    with DataApiEmulator(token=TOKEN) as target:
        result = cli.restore(target, path, "--identity", KEY)
        writes = [request.command for request in target.requests if request.command in WRITES]
        if result.code == restore.RestoreExit.SNAPSHOT_REFUSED:
            return "refused" if not writes and "Traceback" not in result.err else "refused, with writes or a traceback"
        stored = {name: len(target.documents(KEYSPACE, name)) for name in target.collections(KEYSPACE)}
        counts = {name: len(documents) for name, (_, documents) in good.items()}
        is_whole = result.code == 0 and stored == counts and is_same(path, good)
        return "harmless" if is_whole else f"ended with {result.code}: {result.err[-300:]}"


def run_trials(numbers: range, commands: int, seed: int, directory: Path, *, is_encrypted: bool = False) -> list[Trial]:
    """Damage once for each number; every so often `restore.py` itself is asked too."""
    files = good_files(directory, *(["--encrypt-to", RECIPIENT] if is_encrypted else []))
    good, cli = content_of(files), Cli(directory)
    trials = []
    for number in numbers:
        chance = random.Random(f"{seed}-{number}")
        with tempfile.TemporaryDirectory(dir=directory) as name:
            kind, way, path = damaged(chance, files, Path(name))
            verdict = judge(path, good)
            if commands and number % max(1, len(numbers) // commands) == 0:
                told = judge_command(path, good, cli)
                verdict = verdict if told == verdict else f"{verdict}, but the command: {told}"
        trials.append(Trial(number, kind, way, verdict))
    return trials


def run_parts(count: int, commands: int, seed: int, processes: int, *, is_encrypted: bool) -> list[Trial]:
    """The trials in several processes; which damage a number stands for does not depend on how many."""
    bounds = [count * part // processes for part in range(processes + 1)]
    with tempfile.TemporaryDirectory(prefix="damage-") as name, ProcessPoolExecutor(processes) as pool:
        futures = []
        for start, end in itertools.pairwise(bounds):
            directory = Path(name, str(start))
            directory.mkdir(exist_ok=True)
            part = functools.partial(run_trials, is_encrypted=is_encrypted)
            futures.append(pool.submit(part, range(start, end), commands // processes, seed, directory))
        return [trial for future in futures for trial in future.result()]


def main() -> int:
    """Run, print a table; 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--commands", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--encrypted", action="store_true")
    options = parser.parse_args()
    logging.getLogger("astra_backup").setLevel(logging.CRITICAL)
    started = time.monotonic()
    counts = options.count, options.commands, options.seed, options.processes
    trials = run_parts(*counts, is_encrypted=options.encrypted)
    print("| what was damaged | how often | refused | harmless | findings |\n|---|---|---|---|---|")
    for kind in [*KINDS, ZIP_KIND]:
        verdicts = Counter("finding" if each.is_finding else each.verdict for each in trials if each.kind == kind)
        print(
            f"| {kind} | {verdicts.total():,} | {verdicts['refused']:,} | {verdicts['harmless']:,}"
            f" | {verdicts['finding']} |"
        )
    findings = [each for each in trials if each.is_finding]
    print(
        f"\n{len(trials):,} damages, seed {options.seed}, {time.monotonic() - started:.0f} s, findings: {len(findings)}"
    )
    for each in findings[:20]:
        print(f"  {each}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
