"""Snapshots and servers of strangers: each is refused with its code, in bounded time and memory, or it works."""

from __future__ import annotations

import base64
import errno
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pty
import random
import re
import resource
import select
import socket
import stat
import struct
import subprocess
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import astra_backup
import restore
from tests.conftest import KEYSPACE, TOKEN, Cli
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.trials import fuzz

NAME = "20260616_085246"
OFF: dict = {"lexical": {"enabled": False}, "rerank": {"enabled": False}}
WRITES = {"createCollection", "insertMany", "deleteCollection", "findOneAndReplace"}
DEEP = 100_000
LONG = b"7" * 1_000_000
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


# ======================================================================================================================
# Helpers: a snapshot made by hand, and a command whose time and memory are measured
# ======================================================================================================================


def build(directory: Path, collections: dict[str, bytes], edit: Callable[[dict], object] | None = None) -> Path:
    """A snapshot of plain data files, every checksum right; `edit` changes the manifest before it is sealed."""
    snapshot = directory / NAME
    snapshot.mkdir(parents=True)
    records = []
    for number, (name, data) in enumerate(collections.items()):
        is_gzip = data[:2] == b"\x1f\x8b"
        file = snapshot / f"c{number}.jsonl{'.gz' * is_gzip}"
        file.write_bytes(data)
        lines = [] if is_gzip else [line for line in data.split(b"\n") if line]
        digest = sum(int.from_bytes(hashlib.sha256(line).digest(), "big") for line in lines) % 2**256
        records.append(
            {
                "name": name,
                "status": "ok",
                "definition": OFF,
                "data_file": file.name,
                "compressed": is_gzip,
                "document_count": len(lines),
                "content_digest": f"{digest:064x}",
                "data_sha256": hashlib.sha256(data).hexdigest(),
                "data_size_bytes": len(data),
            }
        )
    documents = sum(record["document_count"] for record in records)
    totals = {"collections_ok": len(records), "collections_failed": 0, "documents": documents}
    manifest = {"backup_format_version": "1.0", "status": "complete", "totals": totals, "collections": records}
    if edit:
        edit(manifest)
    seal(
        snapshot,
        json.dumps(manifest).encode(),
        [(each["data_sha256"], each["data_file"]) for each in records if "data_sha256" in each],
    )
    return snapshot


def seal(snapshot: Path, manifest: bytes, sums: list[tuple[str, str]] | None = None) -> Path:
    """Write the manifest and a SHA256SUMS that agrees with it."""
    (snapshot / "manifest.json").write_bytes(manifest)
    path = snapshot / "SHA256SUMS"
    old = [line for line in path.read_text().splitlines() if "manifest" not in line] if sums is None else []
    rows = old + [f"{digest}  {name}" for digest, name in sums or []]
    rows.append(f"{hashlib.sha256(manifest).hexdigest()}  manifest.json")
    path.write_text("".join(f"{row}\n" for row in rows))
    return snapshot


def pack(snapshot: Path, method: int = zipfile.ZIP_STORED, **extra: bytes) -> Path:
    """The snapshot as a zip."""
    path = snapshot.parent / f"{NAME}.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(snapshot.iterdir()):
            archive.write(file, f"{NAME}/{file.name}")
        for name, content in extra.items():
            archive.writestr(name, content)
    return path


@dataclass
class Run:
    """What a command did and took. `seconds` are of the processor: how busy the machine is does not count."""

    code: int
    out: str
    err: str
    seconds: float = 0.0
    peak_mib: float = 0.0

    def assert_clean(self, code: int, *, seconds: float = 40, peak_mib: float = 150) -> None:
        """That code, in words that a person can use, within time and memory."""
        assert self.code == code, (self.code, self.err[-2000:])
        assert "Traceback" not in self.err
        assert "This is a bug" not in self.err
        assert code == 0 or self.err.strip()
        assert len(self.err) < 25_000
        assert not CONTROLS.search(self.err + self.out)
        assert self.seconds < seconds
        assert self.peak_mib < peak_mib, self.peak_mib


def run(cli: Cli, script: str, *arguments: object, **environ: str) -> Run:
    """Run a command as a user would and measure it; it may not hang."""
    out, err = cli.directory / "out.txt", cli.directory / "err.txt"
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            cli.command(script, *arguments),
            cwd=cli.directory,
            env=cli.environ | environ,
            stdout=stdout,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
        )
        peak_kib = 0
        while process.poll() is None:
            peak_kib = max(peak_kib, peak_of(process.pid))
            time.sleep(0.01)
            if time.monotonic() - started > 300:
                process.kill()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    texts = [path.read_text(errors="surrogateescape") for path in (out, err)]
    return Run(process.returncode, *texts, seconds, peak_kib / 1024)


def ask(cli: Cli, script: str, *arguments: object) -> Run:
    """The same where time and memory are not the question: much faster, and neither is measured."""
    result = cli.run(script, *arguments)
    return Run(result.code, result.out, result.err)


def peak_of(process_id: int) -> int:
    """The peak of a process's resident memory so far, in KiB; what wait4 tells begins with its parent's."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc", str(process_id), "status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def verify(cli: Cli, path: object) -> Run:
    """`restore.py --verify-only`."""
    return run(cli, "restore.py", path, "--verify-only")


DOCUMENTS = b'{"_id":"1","a":1}\n{"_id":"2","a":2}\n'


def test_a_snapshot_made_by_hand_is_good(cli: Cli, target: DataApiEmulator) -> None:
    """What the other tests damage restores, as a directory and as a zip, stored and deflated."""
    snapshot = build(cli.directory, {"docs": DOCUMENTS, "more": gzip.compress(b"")})
    for path in (snapshot, pack(snapshot), pack(snapshot, zipfile.ZIP_DEFLATED)):
        verify(cli, path).assert_clean(0)
    run(cli, "restore.py", snapshot, "--api-endpoint", target.url).assert_clean(0)
    assert len(target.documents(KEYSPACE, "docs")) == 2


# ======================================================================================================================
# What is no plain file
# ======================================================================================================================


def as_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def as_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path has at most 107 characters
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": as_socket,
    "link": as_link,
    "directory": Path.mkdir,
    "dangling link": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("name", ["c0.jsonl", "manifest.json", "SHA256SUMS", "extra"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "link"])
def test_a_special_file_in_a_snapshot_is_refused(cli: Cli, kind: str, name: str) -> None:
    """Nothing but plain files is opened: a pipe would wait for ever, a link lead elsewhere."""
    snapshot = build(cli.directory, {"docs": DOCUMENTS})
    (snapshot / name).unlink(missing_ok=True)
    SPECIAL[kind](snapshot / name)
    verify(cli, snapshot).assert_clean(3, seconds=20)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_special_file_with_a_snapshots_name_is_no_snapshot(cli: Cli, kind: str) -> None:
    """A pipe in the output directory is not opened: not when it is named, not by `latest`, not by `--list`."""
    good = build(cli.backups, {"docs": DOCUMENTS})
    SPECIAL[kind](cli.backups / "20990101_000000")
    SPECIAL[kind](cli.backups / "20990101_000001.zip")

    verify(cli, cli.backups / "20990101_000000").assert_clean(3, seconds=20)
    latest = verify(cli, "latest")
    latest.assert_clean(0, seconds=20)
    assert good.name in latest.out
    run(cli, "restore.py", "--list").assert_clean(0, seconds=20)


def test_a_device_is_no_snapshot(cli: Cli) -> None:
    """/dev/zero never ends; it is not read."""
    verify(cli, "/dev/zero").assert_clean(3, seconds=20)


# ======================================================================================================================
# Zips
# ======================================================================================================================


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_other_compression_methods_are_refused(cli: Cli, method: int) -> None:
    """LZMA takes as much memory as the zip says, 4 GB if it likes; nothing of ours uses it."""
    verify(cli, pack(build(cli.directory, {"docs": DOCUMENTS}), method)).assert_clean(3)


def test_a_zip_with_data_descriptors_is_read(cli: Cli) -> None:
    """A zip that was written to a pipe has its sizes behind the data; that is no damage."""
    snapshot = build(cli.directory, {"docs": DOCUMENTS})

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: object) -> int:
            raise io.UnsupportedOperation

        tell = seek  # type: ignore[assignment]

    packed = Pipe()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(snapshot.iterdir()):
            archive.writestr(f"{NAME}/{file.name}", file.read_bytes())
        assert archive.infolist()[0].flag_bits & 8
    path = cli.directory / "piped.zip"
    path.write_bytes(packed.getvalue())
    verify(cli, path).assert_clean(0)


def test_collections_whose_names_differ_by_case_come_back_from_a_zip(cli: Cli, target: DataApiEmulator) -> None:
    """`Docs` and `docs` are two collections; nothing is unpacked, so a zip of both can be restored."""
    with DataApiEmulator(token=TOKEN) as source:
        for name in ("Docs", "docs"):
            source.create(KEYSPACE, name, OFF)
            source.put(KEYSPACE, name, f'{{"_id":"1","from":"{name}"}}')
        assert cli.backup(source).code == 0
    (snapshot,) = cli.snapshots()
    path = cli.directory / f"{snapshot.name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(snapshot.iterdir()):
            archive.write(file, f"{snapshot.name}/{file.name}")

    run(cli, "restore.py", path, "--api-endpoint", target.url).assert_clean(0)
    assert target.documents(KEYSPACE, "Docs") == ['{"_id":"1","from":"Docs"}']
    assert target.documents(KEYSPACE, "docs") == ['{"_id":"1","from":"docs"}']


def central(packed: bytes) -> int:
    """Where the first entry of the central directory is."""
    return packed.index(b"PK\1\2")


def lies(packed: bytearray) -> Iterator[tuple[str, bytearray]]:
    """A zip, and each lie that its list of entries can tell."""
    start = central(packed)
    fields = {
        "needs version": (6, "<H", 99),
        "encrypted": (8, "<H", 1),
        "strongly encrypted": (8, "<H", 0x41),
        "patched": (8, "<H", 0x20),
        "method": (10, "<H", 77),
        "crc": (16, "<I", 1),
        "packed size": (20, "<I", 2**31),
        "size": (24, "<I", 2**31),
        "packed size 0": (20, "<I", 0),
        "size 0": (24, "<I", 0),
        "ZIP64 without its field": (24, "<I", 2**32 - 1),
        "name size": (28, "<H", 60000),
        "name size 0": (28, "<H", 0),
        "extra size": (30, "<H", 60000),
        "comment size": (32, "<H", 60000),
        "a device": (38, "<I", (stat.S_IFCHR | 0o600) << 16),
        "a pipe": (38, "<I", (stat.S_IFIFO | 0o600) << 16),
        "a link": (38, "<I", (stat.S_IFLNK | 0o777) << 16),
        "offset": (42, "<I", 2**31),
        "another entry's offset": (42, "<I", 300),
    }
    for name, (at, form, value) in fields.items():
        told = bytearray(packed)
        struct.pack_into(form, told, start + at, value)
        yield name, told
    end = packed.rindex(b"PK\5\6")
    for name, (at, form, value) in {
        "size of the list": (12, "<I", 2**31),
        "its offset": (16, "<I", 2**31),
        "one entry more": (10, "<H", 9999),
        "comment": (20, "<H", 5),
        "ZIP64": (16, "<I", 2**32 - 1),
        "disk": (4, "<H", 3),
    }.items():
        told = bytearray(packed)
        struct.pack_into(form, told, end + at, value)
        yield name, told


def test_each_lie_of_a_zip_is_refused_or_harmless(cli: Cli) -> None:
    """No field of a zip makes a verification end in anything but a refusal, or in what the zip really holds."""
    snapshot = build(cli.directory, {"docs": DOCUMENTS})
    refused = set()
    for number, (lie, content) in enumerate(lies(bytearray(pack(snapshot).read_bytes()))):
        path = cli.directory / f"lie{number}.zip"
        path.write_bytes(content)
        try:
            opened = restore.open_snapshot(path)
            report = astra_backup.Report(quiet=True)
            found = restore.verify_snapshot(opened, force_incomplete=False, workers=1, report=report)
            assert found.stats["docs"].document_count == 2, lie
        except restore.SnapshotRefused:
            refused.add(lie)
    assert refused >= {"encrypted", "method", "crc", "size", "size 0", "a device", "a pipe", "a link", "offset"}


def test_a_file_that_cannot_be_opened_is_not_called_encrypted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data file in clear that cannot be opened is refused with the system's reason, and no key is asked for."""
    snapshot = build(cli.directory, {"docs": DOCUMENTS})
    opened = restore.open_snapshot(snapshot)

    def open_others(name: str) -> IO[bytes]:
        if name == "c0.jsonl":
            raise PermissionError(errno.EACCES, "Permission denied")
        return (snapshot / name).open("rb")

    monkeypatch.setattr(opened, "open", open_others)
    with pytest.raises(restore.SnapshotRefused, match="Permission denied") as refused:
        report = astra_backup.Report(quiet=True)
        restore.verify_snapshot(opened, force_incomplete=False, workers=1, report=report)
    assert "decrypt" not in refused.value.message
    assert "identity" not in refused.value.hint


def test_zip64_sizes_that_lie_are_refused(cli: Cli) -> None:
    """A ZIP64 field that claims 2^63 bytes is not believed, and costs nothing."""
    snapshot = build(cli.directory, {"docs": DOCUMENTS})
    path = cli.directory / "huge.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(snapshot.iterdir()):
            archive.write(file, f"{NAME}/{file.name}")
        for entry in archive.infolist():
            if entry.filename.endswith(".jsonl"):
                entry.file_size = entry.compress_size = 2**62
    verify(cli, path).assert_clean(3)


def test_a_list_of_entries_larger_than_any_is_refused(cli: Cli) -> None:
    """300 MB that call themselves the list of entries are not read into memory."""
    size = 300_000_000
    path = cli.directory / "list.zip"
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, size, 0, 0))
    verify(cli, path).assert_clean(3, peak_mib=100)


def test_a_zip_of_a_hundred_thousand_entries_is_refused_in_time(cli: Cli) -> None:
    """The time that entries take does not grow with their square."""
    snapshot = build(cli.directory, {"docs": DOCUMENTS})
    path = pack(snapshot, **{f"{NAME}/{number}": b"" for number in range(100_000)})
    verify(cli, path).assert_clean(3, seconds=40, peak_mib=300)


def test_a_zip_bomb_is_refused_with_little_memory(cli: Cli) -> None:
    """A deflated manifest of 400 MB is not unpacked, whatever size it claims."""
    path = cli.directory / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{NAME}/manifest.json", "w") as entry,
    ):
        for _ in range(400):
            entry.write(b" " * 1_000_000)
    verify(cli, path).assert_clean(3)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, central(content) + 24, 1000)  # and now it claims to be small
    path.write_bytes(content)
    verify(cli, path).assert_clean(3)


# ======================================================================================================================
# Data files
# ======================================================================================================================


@functools.cache
def gzip_of(begin: bytes, block: bytes, times: int) -> bytes:
    """A gzip file of `begin` and a block repeated, made without holding it."""
    packer = zlib.compressobj(1, wbits=31)
    return b"".join([packer.compress(begin), *(packer.compress(block) for _ in range(times)), packer.flush()])


HOSTILE_DATA: dict[str, tuple[Callable[[], bytes], int]] = {
    "a line of 1 GB": (lambda: gzip_of(b'{"_id":"', b"x" * 1_000_000, 1000), 350),
    "1 GB of zeros": (lambda: gzip_of(b"", bytes(1_000_000), 1000), 350),
    "100 MB of newlines": (lambda: gzip_of(b"", b"\n" * 1_000_000, 100), 150),
    "a gzip header of 50 MB": (lambda: b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"n" * 50_000_000, 300),
    "a gzip header that claims more": (lambda: b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\xff\xff" + b"n" * 10, 150),
    "a document of brackets": (lambda: b'{"_id":1,"a":' + b"[" * DEEP + b"]" * DEEP + b"}\n", 150),
    "a document of objects": (lambda: b'{"_id":1,"a":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}\n", 150),
    "a bracket without end": (lambda: b'{"_id":1,"a":' + b"[" * 10_000_000 + b"\n", 250),
    "sets in sets": (lambda: b'{"_id":1,"a":' + b'{"$backupType":"set","value":[' * DEEP + b"\n", 150),
    "invalid UTF-8": (lambda: b'{"_id":"\xff"}\n', 150),
    "a lone surrogate in UTF-8": (lambda: b'{"_id":"\xed\xa0\x80"}\n', 150),
    "NaN": (lambda: b'{"_id":1,"a":NaN}\n', 150),
    "Infinity": (lambda: b'{"_id":1,"a":-Infinity}\n', 150),
    "a raw escape": (lambda: b'{"_id":"\x1b[31m"}\n', 150),
    "a NUL": (lambda: b'{"_id":"1"}\0\n', 150),
    "a long number in a vector": (lambda: b'{"_id":1,"$vector":[' + LONG + b'],"$backupVector":"binary"}\n', 150),
    "a long fraction in a vector": (
        lambda: b'{"_id":1,"$vector":[1.000000059604644775390625' + b"0" * 5000 + b'],"$backupVector":"binary"}\n',
        150,
    ),
    "ten million floats": (
        lambda: b'{"_id":1,"$vector":[' + b"0," * 10_000_000 + b'0],"$backupVector":"binary"}\n',
        250,
    ),
    "an unknown type": (lambda: b'{"_id":1,"a":{"$backupType":"\\u001b[31m","value":1}}\n', 150),
    "a wire value of brackets": (
        lambda: b'{"_id":1,"a":{"$backupType":"wire","value":"' + b"[" * DEEP + b'"}}\n',
        150,
    ),
    "a million digits for a date": (lambda: b'{"_id":1,"a":{"$backupType":"datetime","value":' + LONG + b"}}\n", 150),
}


@pytest.mark.parametrize("what", HOSTILE_DATA)
def test_hostile_data_is_refused_in_bounded_time_and_memory(cli: Cli, what: str) -> None:
    """Each checksum is right, and still nothing of it gets past the verification."""
    make, peak_mib = HOSTILE_DATA[what]
    snapshot = build(cli.directory, {"docs": make()})
    result = verify(cli, snapshot)
    result.assert_clean(3, peak_mib=peak_mib)
    assert "line 1: " in result.err


def test_many_empty_gzip_members_are_an_empty_file(cli: Cli) -> None:
    """300,000 times nothing is nothing, in seconds."""
    snapshot = build(cli.directory, {"docs": gzip.compress(b"") * 300_000})
    verify(cli, snapshot).assert_clean(0)


def test_a_number_of_a_million_digits_is_carried_to_the_last_digit(cli: Cli) -> None:
    """Long numbers are text: verified and shown as they stand, in seconds."""
    line = b'{"_id":"1","a":%b,"b":{"$backupType":"decimal","value":"%b.5"},"c":-%bE+999999}' % (LONG, LONG, LONG)
    snapshot = build(cli.directory, {"docs": line + b"\n"})
    verify(cli, snapshot).assert_clean(0, peak_mib=200)
    shown = ask(cli, "restore.py", snapshot, "--show", "1")
    shown.assert_clean(0, peak_mib=200)
    assert shown.out.encode() == b'{"_id":"1","a":%b,"b":%b.5,"c":-%bE+999999}\n' % (LONG, LONG, LONG)


def test_a_minus_zero_keeps_its_sign(cli: Cli) -> None:
    """`-0` is -0.0 in a binary vector, though it looks like an integer; another writer may put it so."""
    line = b'{"_id":"1","$vector":[-0,0,-0.0, -0 ,1],"$backupVector":"binary"}\n'
    snapshot = build(cli.directory, {"docs": line})
    vector = base64.b64encode(struct.pack(">5f", -0.0, 0.0, -0.0, -0.0, 1.0)).decode()
    assert ask(cli, "restore.py", snapshot, "--show", "1").out == f'{{"_id":"1","$vector":{{"$binary":"{vector}"}}}}\n'


def test_long_ids_and_deep_documents_can_be_compared(cli: Cli, target: DataApiEmulator) -> None:
    """A comparison with documents that no server takes ends in differences or a refusal, not in a traceback."""
    deep = b'{"_id":"2","a":' + b"[" * 600 + b"]" * 600 + b"}"
    snapshot = build(cli.directory, {"docs": b'{"_id":%b}\n%b\n{"_id":"3","a":%b}\n' % (LONG, deep, LONG)})
    target.create(KEYSPACE, "docs", OFF)
    target.put(KEYSPACE, "docs", '{"_id":"3","a":7}')
    differences = cli.directory / "differences.jsonl"
    arguments = (snapshot, "--compare", "--differences", differences, "--api-endpoint", target.url)
    run(cli, "restore.py", *arguments).assert_clean(2, peak_mib=300)

    other = build(cli.directory / "other", {"docs": b'{"_id":%b}\n' % LONG})
    arguments = (other, "--compare", "--differences", differences, "--api-endpoint", target.url)
    run(cli, "restore.py", *arguments).assert_clean(5, peak_mib=300)
    assert b'"kind": "missing", "id": %b}' % LONG in differences.read_bytes()


# ======================================================================================================================
# Manifests
# ======================================================================================================================


def collection(**changes: object) -> Callable[[dict], object]:
    """An edit of the first collection's record."""
    return lambda manifest: manifest["collections"][0].update(changes)


def nested(depth: int) -> dict:
    """An object in an object, so many times."""
    value: dict = {}
    for _ in range(depth):
        value = {"a": value}
    return value


EDITS: dict[str, Callable[[dict], object]] = {
    "a count of 30 digits": collection(document_count=10**30),
    "a count of 4,000 digits": collection(document_count=10**4000),
    "a negative count": collection(document_count=-1),
    "a negative size": collection(data_size_bytes=-1),
    "a size of 2^63": collection(data_size_bytes=2**63),
    "a fraction for a count": collection(document_count=2.5),
    "a path outside": collection(data_file="../../../../etc/passwd"),
    "an absolute path": collection(data_file="/etc/passwd"),
    "a device of Windows": collection(data_file="NUL"),
    "a stream of Windows": collection(data_file="c0.jsonl:x"),
    "the manifest for data": collection(data_file="manifest.json"),
    "an empty data file name": collection(data_file=""),
    "an escape in the data file": collection(data_file="\x1b[2J"),
    "an escape in the name": collection(name="\x1b]0;owned\x07"),
    "a C1 control in the name": collection(name="\x9b2J"),
    "a name written backwards": collection(name="\u202egnp.sj"),
    "an empty name": collection(name=""),
    "a newline in the name": collection(name="docs\nERROR   all is well"),
    "a name of a megabyte": collection(name="\x07" * 1_000_000),
    "a definition that is a list": collection(definition=[]),
    "a vector that is a number": collection(definition={"vector": 5}),
    "a vector that is null": collection(definition={"vector": None}),
    "lexical that is a text": collection(definition={"lexical": "on"}),
    "a deep definition": collection(definition=nested(60)),
    "a data file of two collections": lambda manifest: (
        manifest["collections"].append(manifest["collections"][0] | {"name": "other"}),
        manifest["totals"].update(collections_ok=2, documents=4),
    ),
    "an unknown status": collection(status="\x1b[32mok"),
    "a failed collection with escapes": lambda manifest: (
        collection(status="failed", error="\x1b[2J\x9b1m" + "x" * 100_000)(manifest),
        manifest.update(status="incomplete"),
    ),
    "another version": lambda manifest: manifest.update(backup_format_version="\x1b[31m2.0"),
    "no version": lambda manifest: manifest.pop("backup_format_version"),
    "collections that are no list": lambda manifest: manifest.update(collections={}),
    "20,000 collections without files": lambda manifest: (
        manifest["collections"].extend({"name": f"c{n}", "data_file": f"f{n}.jsonl"} for n in range(20_000)),
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_a_hostile_manifest_is_refused_before_a_write(cli: Cli, target: DataApiEmulator, what: str) -> None:
    """SHA256SUMS agrees with it, and still it is refused; what it says cannot steer the terminal."""
    snapshot = build(cli.directory, {"docs": DOCUMENTS}, EDITS[what])
    result = ask(cli, "restore.py", snapshot, "--api-endpoint", target.url)
    result.assert_clean(3)
    assert not WRITES & {request.command for request in target.requests}


MANIFESTS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a byte order mark": lambda: b"\xef\xbb\xbf{}",
    "UTF-16": lambda: '{"backup_format_version":"1.0"}'.encode("utf-16"),
    "invalid UTF-8": lambda: b'{"backup_format_version":"1.0","consistency":"\xff"}',
    "NaN": lambda: b'{"backup_format_version":"1.0","duration_seconds":NaN}',
    "a number of a million digits": lambda: b'{"backup_format_version":"1.0","duration_seconds":' + LONG + b"}",
    "a definition with such a number": lambda: (
        b'{"backup_format_version":"1.0","collections":[{"name":"a","definition":{"a":' + LONG + b"}}]}"
    ),
    "brackets": lambda: b"[" * 10_000_000,
    "a deep definition": lambda: (
        b'{"backup_format_version":"1.0","collections":[{"name":"a","definition":' + b'{"a":' * DEEP + b"}]}"
    ),
    "64 MB of spaces": lambda: b'{"backup_format_version":"1.0"' + b" " * 64_000_000 + b"}",
    "100,000 collections": lambda: (
        b'{"backup_format_version":"1.0","collections":['
        + b",".join(
            b'{"name":"c%d","data_file":"%064d.jsonl","definition":{"indexing":{"deny":["*"]}}}' % (n, n)
            for n in range(100_000)
        )
        + b"]}"
    ),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_what_is_no_manifest_is_refused_with_little_memory(cli: Cli, what: str) -> None:
    """The reader is strict, and its memory bounded."""
    snapshot = seal(build(cli.directory, {"docs": DOCUMENTS}), MANIFESTS[what]())
    verify(cli, snapshot).assert_clean(3, peak_mib=250)
    run(cli, "restore.py", "--list", "--output-dir", snapshot.parent).assert_clean(0, peak_mib=250)


LARGEST_MANIFESTS: dict[str, Callable[[], bytes]] = {
    "lists": lambda: b'{"backup_format_version":"1.0","serdes_options":{"a":[' + b"[]," * 5_500_000 + b"[]]}}",
    "records": lambda: (
        b'{"backup_format_version":"1.0","collections":[' + b'{"name":"a"},' * 1_280_000 + b'{"name":"a"}]}'
    ),
}


@pytest.mark.parametrize("what", LARGEST_MANIFESTS)
def test_the_largest_manifest_is_read_in_bounded_memory(cli: Cli, what: str) -> None:
    """16 MB of the emptiest values there are: what is read of them stays under 600 MiB."""
    text = LARGEST_MANIFESTS[what]()
    assert 16_000_000 < len(text) < 16 * 2**20
    verify(cli, seal(build(cli.directory, {"docs": DOCUMENTS}), text)).assert_clean(3, peak_mib=600)


def test_types_are_read_once_whatever_the_number_of_collections(cli: Cli) -> None:
    """Three thousand types beside a thousand collections: read for each of them, they take a minute of a processor."""
    fields = {f"f{number}": "text" for number in range(5)}
    types = [{"udtName": f"t{number}", "definition": {"fields": fields}} for number in range(3000)]
    collections = {f"c{number}": b"" for number in range(1000)}
    verify(cli, build(cli.directory, collections, lambda manifest: manifest.update(types=types))).assert_clean(0)


def test_checksums_larger_than_any_are_refused(cli: Cli) -> None:
    """60 MB of newlines are not SHA256SUMS."""
    snapshot = build(cli.directory, {"docs": DOCUMENTS})
    (snapshot / "SHA256SUMS").write_bytes(b"\n" * 60_000_000)
    verify(cli, snapshot).assert_clean(3)


# ======================================================================================================================
# Names, and the terminal
# ======================================================================================================================


def test_a_collection_whose_name_is_an_option_is_a_name(cli: Cli, target: DataApiEmulator) -> None:
    """`--yes` as a name is asked for with `=`, is refused by the server, and can be renamed."""
    snapshot = build(cli.directory, {"--yes": DOCUMENTS})
    ask(cli, "restore.py", snapshot, "--verify-only", "--collection=--yes").assert_clean(0)
    target.create(KEYSPACE, "docs", OFF)
    target.put(KEYSPACE, "docs", '{"_id":"kept"}')
    endpoint = ("--api-endpoint", target.url)
    ask(cli, "restore.py", snapshot, *endpoint, "--collection=--yes").assert_clean(4)
    assert set(target.collections(KEYSPACE)) == {"docs"}
    ask(cli, "restore.py", snapshot, *endpoint, "--collection=--yes", "--rename=--yes=yes").assert_clean(0)
    assert len(target.documents(KEYSPACE, "yes")) == 2


@pytest.mark.parametrize("name", ["../../x", "a/b", "--drop", "-rf *", "$(reboot)", "[/red]", "%s%n", "a" * 5000])
def test_a_collection_whose_name_is_something_else_is_a_name(cli: Cli, target: DataApiEmulator, name: str) -> None:
    """No name leads out of the directory of rejects and journals, or is taken for anything but a name."""
    snapshot = build(cli.directory / "in", {name: DOCUMENTS})
    before = sorted(cli.directory.rglob("*"))
    ask(cli, "restore.py", snapshot, "--api-endpoint", target.url).assert_clean(4)
    after = {path for path in cli.directory.rglob("*") if path.name not in ("out.txt", "err.txt")}
    assert after <= set(before)
    assert target.collections(KEYSPACE) == {}


STEERS = '{"_id":"1","a":"\u009b31m\u202e\x7f\u2028"}'


def test_show_prints_no_control_characters_on_a_terminal(cli: Cli) -> None:
    """A document that would steer the terminal is shown there as the same JSON, with the characters escaped."""
    snapshot = build(cli.directory, {"docs": STEERS.encode() + b"\n"})
    code, shown = on_terminal(cli, "restore.py", snapshot, "--show", "1", stream="stdout")
    assert code == 0
    assert json.loads(shown) == json.loads(STEERS)
    assert shown.isascii()
    assert not CONTROLS.search(shown.replace("\r\n", ""))


def test_show_into_a_file_is_the_document_byte_for_byte(cli: Cli) -> None:
    """What is no terminal gets what the server held."""
    snapshot = build(cli.directory, {"docs": STEERS.encode() + b"\n"})
    shown = ask(cli, "restore.py", snapshot, "--show", "1")
    assert shown.code == 0
    assert shown.out == STEERS + "\n"
    assert not CONTROLS.search(shown.err)


def on_terminal(cli: Cli, *arguments: object, stream: str = "stderr") -> tuple[int, str]:
    """Run with a terminal for one of the output streams; (code, what was on it)."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        cli.command(*map(str, arguments)),
        cwd=cli.directory,
        env=cli.environ | {"TERM": "xterm"},
        **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL) | {stream: slave},  # type: ignore[call-overload]
    )
    os.close(slave)
    said = b""
    try:
        while select.select([master], [], [], 60)[0]:
            said += os.read(master, 65536)
    except OSError:  # the other side is gone
        pass
    os.close(master)
    return process.wait(10), said.decode(errors="replace")


@pytest.mark.parametrize("name", ["[/red]", "[bold", "[link=http://x]x"])
def test_a_name_with_brackets_is_a_name_on_a_terminal(cli: Cli, name: str) -> None:
    """The progress bars show names, and take nothing in them for markup."""
    snapshot = build(cli.directory, {name: DOCUMENTS * 1})
    code, said = on_terminal(cli, "restore.py", snapshot, "--verify-only")
    assert code == 0, said
    assert "Traceback" not in said


# ======================================================================================================================
# Servers
# ======================================================================================================================


class HostileServer(http.server.ThreadingHTTPServer):
    """A Data API with one collection, whose `find` answers what a test wants."""

    daemon_threads = True

    def __init__(self, find: Callable[[http.server.BaseHTTPRequestHandler], None], collections: bytes = b"") -> None:
        super().__init__(("127.0.0.1", 0), HostileHandler)
        self.find = find
        self.collections = collections or b'[{"name":"docs","options":%b}]' % json.dumps(OFF).encode()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """The client may hang up."""


class HostileHandler(http.server.BaseHTTPRequestHandler):
    """Answers a command."""

    protocol_version = "HTTP/1.1"
    server: HostileServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if b'"findCollections"' in body[:30]:
            answer(self, b'{"status":{"collections":%b}}' % self.server.collections)
        elif b'"listTables"' in body[:30]:
            answer(self, b'{"status":{"tables":[]}}')
        elif b'"estimatedDocumentCount"' in body[:40]:
            answer(self, b'{"status":{"count":1}}')
        else:
            self.server.find(self)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def answer(
    handler: http.server.BaseHTTPRequestHandler, body: bytes, status: int = 200, encoding: str | None = None
) -> None:
    """Send a reply."""
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    if encoding:
        handler.send_header("Content-Encoding", encoding)
    handler.end_headers()
    handler.wfile.write(body)


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    """A reply without an end."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    block = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    while True:
        handler.wfile.write(block)


def page(*documents: bytes) -> bytes:
    """A page of documents, the last."""
    return b'{"data":{"documents":[%b],"nextPageState":null}}' % b",".join(documents)


BOMB = functools.cache(lambda: gzip_of(b'{"data":"', b" " * 1_000_000, 1000))
DEEP_JSON = b"[" * DEEP + b"]" * DEEP

FINDS: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {
    "a gzip bomb of 1 GB": lambda handler: answer(handler, BOMB(), encoding="gzip"),
    "a gzip bomb in gzip": lambda handler: answer(handler, gzip.compress(BOMB(), 1), encoding="gzip, gzip"),
    "gzip that is none": lambda handler: answer(handler, b"x" * 1000, encoding="gzip"),
    "an unknown encoding": lambda handler: answer(handler, page(), encoding="x-bomb"),
    "a reply without an end": endless,
    "a deep document": lambda handler: answer(handler, page(b'{"_id":1,"a":' + DEEP_JSON + b"}")),
    "a deep reply": lambda handler: answer(handler, DEEP_JSON),
    "a deep error": lambda handler: answer(handler, b'{"errors":[{"a":' + DEEP_JSON + b"}]}"),
    "a deep error with 500": lambda handler: answer(handler, b'{"errors":[{"a":' + DEEP_JSON + b"}]}", 500),
    "an error with escapes": lambda handler: answer(
        handler, b'{"errors":[{"errorCode":"\\u001b[2J","message":"\\u009b31m' + b"x" * 1_000_000 + b'"}]}'
    ),
    "an error code that is a list": lambda handler: answer(handler, b'{"errors":[{"errorCode":[1],"message":{}}]}'),
    "invalid UTF-8": lambda handler: answer(handler, page(b'{"_id":"\xff"}')),
    "NaN": lambda handler: answer(handler, page(b'{"_id":NaN}')),
    "a document without an id": lambda handler: answer(handler, page(b'{"a":1}')),
    "a document that is a list": lambda handler: answer(handler, page(b"[]")),
}


@pytest.mark.parametrize("what", FINDS)
def test_a_hostile_server_fails_its_collection_and_nothing_else(cli: Cli, what: str) -> None:
    """The collection fails with words, within memory; the snapshot is INCOMPLETE and says why."""
    with HostileServer(FINDS[what]) as server:
        arguments = ("--no-box", "--api-endpoint", server.url, "--retry-budget", "2")
        result = run(cli, "astra_backup.py", *arguments)
        server.shutdown()
    result.assert_clean(2, peak_mib=650)
    (snapshot,) = cli.snapshots()
    assert snapshot.name.endswith(".INCOMPLETE")
    assert json.loads((snapshot / "manifest.json").read_text())["collections"][0]["error"]


def test_a_binary_vector_with_surplus_padding_comes_back_as_it_is(cli: Cli) -> None:
    """Base64 that Python reads and nobody would write is kept as text, not as an array that loses it."""
    document = b'{"_id":"1","$vector":{"$binary":"PwAAAABBBBBBBBBB=="}}'
    with HostileServer(lambda handler: answer(handler, page(document))) as server:
        run(cli, "astra_backup.py", "--no-box", "--api-endpoint", server.url).assert_clean(0)
        server.shutdown()
    shown = ask(cli, "restore.py", "--show", "1")
    assert shown.out.encode() == document + b"\n"


def test_numbers_of_a_million_digits_come_back_from_a_server(cli: Cli) -> None:
    """Each form of a long number is backed up and shown to the last digit."""
    document = b'{"_id":"1","a":%b,"b":%b.5,"c":-%bE+999999,"d":0.%b}' % (LONG, LONG, LONG, LONG)
    with HostileServer(lambda handler: answer(handler, page(document))) as server:
        run(cli, "astra_backup.py", "--no-box", "--api-endpoint", server.url).assert_clean(0, peak_mib=200)
        server.shutdown()
    shown = ask(cli, "restore.py", "--show", "1")
    assert shown.out.encode() == document + b"\n"


def test_a_page_of_the_largest_documents_is_backed_up(cli: Cli) -> None:
    """A page of 80 MB, 20 documents of 4,000,000 characters, comes through whole."""
    documents = page(*(b'{"_id":"%d","a":"%b"}' % (number, b"x" * 3_999_000) for number in range(20)))
    with HostileServer(lambda handler: answer(handler, documents)) as server:
        run(cli, "astra_backup.py", "--no-box", "--api-endpoint", server.url).assert_clean(0, peak_mib=800)
        server.shutdown()
    (snapshot,) = cli.snapshots()
    verify(cli, snapshot).assert_clean(0, peak_mib=300)


COLLECTIONS: dict[str, tuple[bytes, int]] = {
    "options that are a number": (b'[{"name":"docs","options":5}]', 2),
    "a vector that is a number": (b'[{"name":"docs","options":{"vector":5}}]', 2),
    "options that are deep": (b'[{"name":"docs","options":' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}]", 2),
    "options deeper than Python": (b'[{"name":"docs","options":' + DEEP_JSON + b"}]", 1),
    "a name that is a number": (b'[{"name":5}]', 1),
    "a lone surrogate": (b'[{"name":"\\ud800"}]', 1),
    "a name of 5,000 characters": (b'[{"name":"%b"}]' % (b"n" * 5000), 2),
    "no list": (b"5", 1),
}


@pytest.mark.parametrize("what", COLLECTIONS)
def test_a_hostile_list_of_collections_is_refused(cli: Cli, what: str) -> None:
    """What no server says of its collections ends in words, for a backup and for a restore."""
    collections, code = COLLECTIONS[what]
    with HostileServer(lambda handler: answer(handler, page(b'{"_id":1}')), collections) as server:
        endpoint = ("--api-endpoint", server.url, "--retry-budget", "2")
        ask(cli, "astra_backup.py", "--no-box", *endpoint).assert_clean(code)
        if code == 2 and b'"docs"' in collections:
            snapshot = build(cli.directory, {"docs": DOCUMENTS})
            ask(cli, "restore.py", snapshot, *endpoint).assert_clean(1)
        server.shutdown()


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "..", ".", "a/b", "--yes", "\\u001b[2J", "manifest.json"])
def test_a_hostile_name_from_a_server_stays_in_the_snapshot(cli: Cli, name: str) -> None:
    """A name is never a path: the data file is in the snapshot's directory, and nothing is outside."""
    collections = b'[{"name":"%b","options":%b}]' % (name.encode(), json.dumps(OFF).encode())
    with HostileServer(lambda handler: answer(handler, page(b'{"_id":1}')), collections) as server:
        run(cli, "astra_backup.py", "--no-box", "--api-endpoint", server.url).assert_clean(0)
        server.shutdown()
    (snapshot,) = cli.snapshots()
    assert len(list(snapshot.iterdir())) == 3
    assert {path.name for path in cli.directory.iterdir()} == {"backups", "out.txt", "err.txt"}


def test_a_hostile_reply_to_an_insert_is_a_failure_with_words(cli: Cli, target: DataApiEmulator) -> None:
    """An error code that is no text does not end a restore in a traceback."""
    snapshot = build(cli.directory, {"docs": DOCUMENTS})
    reply = {
        "status": {"documentResponses": [{"status": "ERROR", "errorsIdx": 0}] * 2},
        "errors": [{"errorCode": ["x"], "message": "\x1b[2J"}],
    }
    target.add_fault("other_json", command="insertMany", json=reply, times=None)
    run(cli, "restore.py", snapshot, "--api-endpoint", target.url).assert_clean(2)


def test_a_download_that_is_longer_than_its_file_is_given_up(cli: Cli, box: BoxEmulator) -> None:
    """What a hostile gateway sends beyond the size that Box told does not go to the disk."""
    archive = pack(build(cli.directory, {"docs": DOCUMENTS})).read_bytes()
    box.add_file(f"{NAME}.zip", archive)
    box.faults = [{"api": "download", "action": "flood", "bytes": 50_000_000, "times": None}]
    result = run(cli.with_box(box), "restore.py", "--from-box", NAME, "--verify-only", "--retry-budget", "1")
    result.assert_clean(1)
    assert sum(path.stat().st_size for path in cli.backups.iterdir()) <= len(archive)


# ======================================================================================================================
# Fuzzing, shortly; `make fuzz` does it for long
# ======================================================================================================================


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("target", fuzz.TARGETS)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_mutated_inputs_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, target: str, seed: int) -> None:
    """No mutation of a good manifest, line, document, data file or zip raises anything but a refusal."""
    fuzz.SCRATCH = str(tmp_path_factory.getbasetemp())
    fuzz.TARGETS[target](fuzz.mutated(random.Random(seed), corpus(target)))


@functools.cache
def corpus(target: str) -> list[bytes]:
    """Good inputs."""
    return fuzz.corpus(target)
