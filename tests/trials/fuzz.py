"""Throw bytes at everything that reads what a stranger wrote, and see that it is read or refused, and nothing else.

    python -m tests.trials.fuzz [--seconds 600] [TARGET ...]     default: all targets, 600 seconds each, side by side

With atheris (see requirements-fuzz.txt) the bytes are guided by coverage; without it, good inputs are mutated blindly,
and the table says so. A finding is any exception but a refusal, a document that does not come back byte for byte, one
input that takes more than 10 seconds, or more than 1 GiB of memory. It is kept under fuzz-findings/ and the exit code
is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import importlib.util
import io
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = ROOT / "fuzz-findings"
INPUT_TIMEOUT_S = 10
RSS_LIMIT_MIB = 1024
MAX_INPUT_BYTES = {"manifest": 8192, "line": 4096, "document": 4096, "data": 8192, "zip": 8192}

HAS_ATHERIS = importlib.util.find_spec("atheris") is not None
if HAS_ATHERIS and "--child" in sys.argv:
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    instrumented: contextlib.AbstractContextManager[Any] = atheris.instrument_imports(
        include=["astra_backup", "restore", "zipfile"]
    )
else:
    instrumented = contextlib.nullcontext()

with instrumented:
    import astra_backup
    import restore
from tests import reference  # noqa: E402  (what it does is not to guide the fuzzer)

# ======================================================================================================================
# Targets: each takes any bytes; what it raises is a finding
# ======================================================================================================================


def read_manifest(data: bytes) -> None:
    """The manifest's reader, all that looks at a manifest before the data, and the row of `--list`."""
    try:
        manifest = astra_backup.Manifest.decode(data)
    except astra_backup.FormatError:
        return
    once = manifest.encode()  # only white space in a definition may have changed
    assert astra_backup.Manifest.decode(once).encode() == once
    f"{astra_backup.Stored(Path('x'), 0, manifest).row()['documents']:,}"
    names = {record.data_file for record in manifest.records if record.data_file}
    sizes = dict.fromkeys(names | {"manifest.json", "SHA256SUMS"}, 0)
    snapshot = restore.Snapshot(Path("x"), "x", sizes)
    with contextlib.suppress(restore.SnapshotRefused):
        restore._check_status(snapshot, manifest, force_incomplete=False)
        restore._check_files(snapshot, manifest.records, is_old=False)
        manifest.sums()
        for record in manifest.collections:
            restore.plan_collection(record, astra_backup.DataStats(), restore.Choices(without_lexical=True))


def read_line(line: bytes) -> None:
    """A line as a restore takes it: decoded, sent, compared; and the same document by the reference's reader."""
    try:
        document = astra_backup.Document.parse(line).decoded()
        text = document.text()
        for choice in restore.Vectorize:
            view = restore.Choices(vectorize=choice, without_lexical=True)
            view.to_compare(document)
        astra_backup.document_key(text)
        restore.value_digest(text)
    except astra_backup.FormatError:
        return
    if re.search(rb"[eE][+-]?[0-9]{4}", line):  # the reference writes such a number out
        return
    with contextlib.suppress(ValueError, RecursionError, OverflowError):
        wanted = reference.decode_line(line)
        is_same = reference.parse(text) == wanted or has_name_twice(wanted)
        assert is_same, "the reference reads another document"


def has_name_twice(value: reference.Value) -> bool:
    """Whether an object has a name twice, which no server holds and JSON does not give a meaning to."""
    if isinstance(value, list):
        return any(map(has_name_twice, value))
    if not isinstance(value, reference.Members):
        return False
    names = [name for name, _ in value.pairs]
    return len(set(names)) < len(names) or any(has_name_twice(member) for _, member in value.pairs)


def write_document(data: bytes) -> None:
    """A document as a backup takes it: what is written must come back byte for byte."""
    try:
        text = astra_backup.compact_json(data)
        line, _ = astra_backup.encode_document(data)
    except (astra_backup.FormatError, astra_backup.LossyError):
        return
    assert astra_backup.decode_document(line) == text, "the document does not come back"
    assert b"\n" not in line


def read_data(data: bytes) -> None:
    """A data file: as gzip, and as plain lines."""
    for is_compressed in (True, False):
        with contextlib.suppress(astra_backup.FormatError):
            restore.DataReader(io.BytesIO(data), compressed=is_compressed).check()


def read_zip(data: bytes) -> None:
    """A zip: opened and verified to the end."""
    path = Path(SCRATCH, "20260616_085246.zip")
    path.write_bytes(data)
    with contextlib.suppress(restore.SnapshotRefused):
        snapshot = restore.open_snapshot(path)
        restore.verify_snapshot(snapshot, force_incomplete=True, workers=1, report=astra_backup.Report(quiet=True))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "manifest": read_manifest,
    "line": read_line,
    "document": write_document,
    "data": read_data,
    "zip": read_zip,
}
SCRATCH = ""


# ======================================================================================================================
# Good inputs to begin with
# ======================================================================================================================


def corpus(target: str) -> list[bytes]:
    """Inputs that are read well: the value vectors of the tests, and what is made of them."""
    cases = [
        case
        for path in sorted((ROOT / "tests/data/values").glob("*.json"))
        for group in json.loads(path.read_text()).values()
        if isinstance(group, list)
        for case in group
    ]
    lines = [case["line"].encode() for case in cases if "line" in case]
    if target == "line":
        return lines
    if target == "document":
        return [case["document"].encode() for case in cases if "document" in case]
    if target == "data":
        return [gzip.compress(b"\n".join([*lines[start : start + 5], b""]), 1) for start in range(0, 50, 5)] + lines[
            :50
        ]
    files = snapshot_files(lines[:4])
    return [files["manifest.json"]] if target == "manifest" else [zip_of(files, method) for method in (0, 8, 12, 14)]


def snapshot_files(lines: list[bytes]) -> dict[str, bytes]:
    """The files of a small good snapshot."""
    content = b"\n".join([*lines, b""])
    data = gzip.compress(content, 1, mtime=0)
    stats = restore.DataReader(io.BytesIO(data), compressed=True).check()
    record = astra_backup.CollectionRecord(name="docs", data_file="docs.jsonl.gz", compressed=True)
    for name, value in stats.facts(record).items():
        setattr(record, name, value)
    totals = astra_backup.Totals(1, 0, stats.document_count)
    manifest = astra_backup.Manifest(backup_format_version="1.0", totals=totals, collections=[record])
    files = {"docs.jsonl.gz": data, "manifest.json": manifest.encode()}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    return {**files, "SHA256SUMS": sums.encode()}


def zip_of(files: dict[str, bytes], method: int) -> bytes:
    """A zip with these files, compressed by that method."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(f"20260616_085246/{name}", content)
    return packed.getvalue()


# ======================================================================================================================
# Running
# ======================================================================================================================


@dataclass(frozen=True)
class Found:
    """What a target's run came to."""

    executions: int
    seconds: float
    peak_rss_mib: int
    findings: int


def fuzz_guided(target: str, seconds: int, directory: Path) -> None:
    """Let atheris run a target in this process; it never returns."""
    seeds = directory / "corpus"
    seeds.mkdir()
    for text in corpus(target):
        (seeds / hashlib.sha256(text).hexdigest()[:16]).write_bytes(text)
    FINDINGS.mkdir(exist_ok=True)
    flags = {
        "max_total_time": seconds,
        "max_len": MAX_INPUT_BYTES[target],
        "timeout": INPUT_TIMEOUT_S,
        "rss_limit_mb": RSS_LIMIT_MIB,
        "print_final_stats": 1,
        "verbosity": 1,
        "artifact_prefix": f"{FINDINGS}/{target}-",
    }
    for text in corpus(target):  # what is imported when it is first needed is not the input's fault
        TARGETS[target](text)
    arguments = [sys.argv[0], *(f"-{name}={value}" for name, value in flags.items()), str(seeds)]
    atheris.Setup(arguments, TARGETS[target])
    atheris.Fuzz()


def fuzz_blindly(target: str, seconds: int) -> None:
    """Mutate good inputs without coverage; prints the same figures as libFuzzer."""
    seeds, chance, executions = corpus(target), random.Random(os.urandom(8)), 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        data = mutated(chance, seeds)
        started = time.monotonic()
        try:
            TARGETS[target](data)
            if time.monotonic() - started > INPUT_TIMEOUT_S:
                raise TimeoutError("one input took too long")
        except Exception:
            FINDINGS.mkdir(exist_ok=True)
            (FINDINGS / f"{target}-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            traceback.print_exc()
            print("ERROR: a finding", file=sys.stderr)
            break
        executions += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"stat::number_of_executed_units: {executions}\nstat::peak_rss_mb: {peak}", file=sys.stderr)


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A good input with one to eight things wrong with it."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data) + 1)
        size = chance.choice((1, 1, 2, 4, 16, 64))
        kind = chance.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = chance.randbytes(size)
        elif kind == 3:
            other = chance.choice(seeds)
            start = chance.randrange(len(other) + 1)
            data[at:at] = other[start : start + size]
        else:
            data[at : at + size] = chance.choice((b"\0", b"\xff", b"9", b'"', b"{", b"]")) * size
    return bytes(data)


def run_target(target: str, seconds: int) -> tuple[subprocess.Popen[str], float]:
    """Start a target in a process of its own."""
    command = [sys.executable, "-m", "tests.trials.fuzz", "--child", "--seconds", str(seconds), target]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return process, time.monotonic()


def collect(process: subprocess.Popen[str], started: float, target: str) -> Found:
    """Wait for a target and read its figures from what it said."""
    said, _ = process.communicate()
    figures = {name: int(value) for name, value in re.findall(r"stat::(\w+):\s*(\d+)", said)}
    is_broken = process.returncode != 0 or "ERROR:" in said
    if is_broken:
        print(f"---- {target}:\n{said[-6000:]}", file=sys.stderr)
    seconds = time.monotonic() - started
    return Found(figures.get("number_of_executed_units", 0), seconds, figures.get("peak_rss_mb", 0), int(is_broken))


def main() -> int:
    """Run the targets; 1 if one has a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    targets = options.targets or list(TARGETS)
    if options.child:
        global SCRATCH
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
            SCRATCH = name
            if HAS_ATHERIS:
                fuzz_guided(targets[0], options.seconds, Path(name))
            fuzz_blindly(targets[0], options.seconds)
        return 0
    running = {target: run_target(target, options.seconds) for target in targets}
    found = {target: collect(*running[target], target) for target in targets}
    print(f"{'guided by coverage (atheris)' if HAS_ATHERIS else 'mutations without coverage (no atheris)'}\n")
    print("| target | executions | seconds | peak RSS | findings |\n|---|---|---|---|---|")
    for target, row in found.items():
        print(f"| {target} | {row.executions:,} | {row.seconds:.0f} | {row.peak_rss_mib} MiB | {row.findings} |")
    return 1 if any(row.findings for row in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
