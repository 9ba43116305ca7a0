#!/usr/bin/env python3
"""Restore a snapshot of `astra_backup.py` into a Data API database, and compare the result with the snapshot.

The order is always the same: verify all of the snapshot, check the whole plan against the target, show it, carry it
out, compare. Nothing is written before the first two are done. docs/FORMAT.md describes a snapshot.

It imports the contract from `astra_backup.py`, never the other way.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":  # the imports take a while: a signal meanwhile ends in its code, not in a traceback
    for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_number) is not signal.SIG_IGN:
            signal.signal(_number, lambda number, _: os._exit(128 + number))

import base64
import contextlib
import dataclasses
import errno
import fcntl
import functools
import gzip
import hashlib
import io
import itertools
import json
import random
import re
import secrets
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple, NoReturn, Self, TypeVar, cast

import click
import msgspec

from astra_backup import (
    CHECKSUMS_NAME,
    INCOMPLETE_SUFFIX,
    MANIFEST_NAME,
    MAX_AGE_HEADER_BYTES,
    RARE,
    READ_BYTES,
    AnyRecord,
    BackupError,
    Box,
    BoxFile,
    CollectionInfo,
    DataApi,
    DataStats,
    Document,
    ExitCode,
    FormatError,
    HashingReader,
    Manifest,
    Patience,
    PipedThread,
    Readable,
    Reply,
    Report,
    RequestError,
    Requests,
    ScanProgress,
    Scope,
    Stored,
    TableInfo,
    TableRecord,
    TableShape,
    await_all,
    await_some,
    check_directory,
    command,
    connection_options,
    describe_error,
    escape_controls,
    in_groups,
    key_of,
    log,
    make_target,
    option,
    parse_snapshot_name,
    plain_number,
    plural,
    print_either,
    read_box_config,
    read_definition,
    read_small_file,
    redactor,
    run_command,
    size_text,
    split_object,
    stop_event,
)

_S = TypeVar("_S")
_T = TypeVar("_T")

# ======================================================================================================================
# Names, limits, exit codes and errors
# ======================================================================================================================

WRITE_COMMANDS = DataApi.READ_COMMANDS | {
    *("createCollection", "deleteCollection", "insertMany", "findOneAndReplace"),
    *("createType", "createTable", "createIndex", "createVectorIndex", "createTextIndex", "dropTable", "dropType"),
}
"""All that may leave this process while it writes; `--dry-run` is held to DataApi.READ_COMMANDS."""

# The server takes documents of at most 4,000,000 characters; wrapping and UTF-8 cannot make 64 MiB of it.
MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_VECTOR_BYTES = 4_000_000  # no vector is longer than the document that it stands in
PROGRESS_DOCUMENTS = 500  # how often a reader of a data file tells how far it is
_AGE_BEGIN, _AGE_HEADER_END = b"age-encryption.org/v1\n", b"\n--- "
MAX_BATCH_DOCUMENTS = 100  # the server refuses more, also ids in an `$in`
MAX_BATCH_BYTES = 4_000_000
MAX_ROUNDS = 5  # how often a document is sent that the server does not make up its mind about
_SCRATCH_NAME = re.compile(r"drill_[0-9a-f]{8}_[0-9]+")
CREATIONS_AT_ONCE = 4
MIN_CREATE_TIMEOUT_S = 120.0  # giving up on a createCollection cancels it
DROP_BUDGET_S = 30.0
CLEANING_S = 5.0  # what dropping scratch collections may take once a signal wants the end
VISIBLE_WITHIN_S = 30.0  # how long a new collection may take to be listed
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others take as much memory as the zip says
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)
"""What zipfile raises for a zip that is not what it says."""


class RestoreExit(ExitCode):
    """Exit codes of `restore.py`."""

    OK = (
        0,
        "restored, and the result was compared with the snapshot;"
        " or `--verify-only`: no damage; `--compare`, `--drill`: equal; `--list`, `--dry-run`, `--show`: printed",
    )
    FAILED = 1, "configuration, usage or connection: nothing was written"
    INCOMPLETE = (
        2,
        "a collection failed to restore (or to be read back); the rest is there;"
        " the same command with `--resume` carries on",
    )
    SNAPSHOT_REFUSED = (
        3,
        "the snapshot is refused (damaged, incomplete, unknown version, unsafe, no or wrong identity):"
        " nothing was written",
    )
    TARGET_REFUSED = (
        4,
        "the target is refused (not empty, other definition, a choice missing), or not confirmed:"
        " nothing was written, or what was created is dropped again",
    )
    DIFFERENT = 5, "restored (or `--compare`), but the comparison found a difference"
    HUNG_UP = 129, "stopped by SIGHUP (the terminal is gone)"
    INTERRUPTED = 130, "stopped by SIGINT (Ctrl-C)"
    TERMINATED = 143, "stopped by SIGTERM"


class SnapshotRefused(BackupError):
    """The snapshot is not what it promises; nothing was written."""

    exit_code = RestoreExit.SNAPSHOT_REFUSED

    def __init__(self, message: str, hint: str = "Use another snapshot: restore.py --list shows them.") -> None:
        super().__init__(message, hint)


class TargetRefused(BackupError):
    """The target cannot take the snapshot as it is; nothing was written."""

    exit_code = RestoreExit.TARGET_REFUSED


class RestoreBrokeOff(BackupError):
    """The restore failed when the target was changed already."""

    exit_code = RestoreExit.INCOMPLETE

    def __init__(self, message: str, hint: str = "", reason: BackupError | None = None) -> None:
        self.reason = reason  # what would be said if nothing stayed behind
        super().__init__(message, f"{hint} Then continue with the same command and --resume.".strip())


class OnExisting(Enum):
    """What to do about a collection that already holds documents."""

    FAIL = "fail"
    SKIP = "skip"
    OVERWRITE = "overwrite"
    DROP = "drop"


class Vectorize(Enum):
    """What to do about documents that carry both `$vector` and `$vectorize`."""

    FAIL = "fail"
    KEEP_VECTORS = "keep-vectors"
    RECOMPUTE = "recompute"


# ======================================================================================================================
# Verify
# ======================================================================================================================


def iter_lines(stream: IO[bytes], *, compressed: bool) -> Iterator[bytes]:
    """Yield the lines of a data file without their newlines. Memory is bound by one line and `READ_BYTES`.

    Raises FormatError for a stream that does not decompress and for a line that no document can be.
    """
    from isal import igzip, igzip_lib

    raw: Any = igzip.open(stream, "rb") if compressed else stream  # type: ignore[no-untyped-call]
    source = io.BufferedReader(raw, READ_BYTES)
    try:
        while line := source.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                raise FormatError(f"a line of more than {MAX_LINE_BYTES} bytes")
            yield line.removesuffix(b"\n")
    except (EOFError, OverflowError, igzip_lib.error, gzip.BadGzipFile) as error:  # type: ignore[misc]  # isal's stub is wrong
        raise FormatError(f"the data does not decompress: {error}") from error
    finally:
        source.detach()  # the stream stays open


def _read_line(line: bytes) -> Document:
    document = Document.parse(line)
    if len(document.get("$vector", b"")) > MAX_VECTOR_BYTES:
        raise FormatError(f"a vector of more than {MAX_VECTOR_BYTES} bytes")
    return document


class DecryptingReader(io.RawIOBase):
    """The unencrypted bytes of an encrypted file; a thread of its own decrypts. Raises FormatError."""

    def __init__(self, stream: IO[bytes], identities: Sequence[Any]) -> None:
        self._stream, self._identities = stream, list(identities)
        self._pipe = PipedThread(self._decrypt, "rb")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; returns the number of bytes, 0 at the end. Raises FormatError."""
        size: int = self._pipe.end.readinto(buffer)
        if not size and (error := self._pipe.ended.exception()):  # a signal that ends the wait is none
            raise FormatError(f"it does not decrypt: {error}") from error
        return size

    def close(self) -> None:
        """End the thread; the stream stays open. May be called twice."""
        self._pipe.close()
        super().close()

    def _decrypt(self, clear: IO[bytes]) -> None:
        import pyrage

        pyrage.decrypt_io(self._stream, clear, self._identities)


class DataReader:
    """Reads an open data file, which stays open: decrypts it (no `identities`: it is in clear), decodes its lines.

    `shape`: it holds the rows of a table.
    """

    def __init__(
        self, stream: IO[bytes], *, compressed: bool, identities: Sequence[Any] = (), shape: TableShape | None = None
    ) -> None:
        self._file: Any = HashingReader(stream)
        self._compressed, self._identities, self._shape = compressed, identities, shape

    def __iter__(self) -> Iterator[tuple[bytes, Document, Document]]:
        """Yield (line, its members, the document as the server held it) for each line, and read the file to its end.

        The members of a row are its columns, named as the definition has them. Raises FormatError with a line's number.
        """
        clear: Any = DecryptingReader(self._file, self._identities) if self._identities else self._file
        shape, number = self._shape, 1
        try:
            for line in iter_lines(clear, compressed=self._compressed):
                members = shape.read_row(line) if shape else _read_line(line)
                yield line, members, members if shape else members.decoded()
                number += 1
        except (FormatError, UnicodeDecodeError) as error:
            raise FormatError(f"line {number}: {error}") from error
        finally:
            if clear is not self._file:
                clear.close()
        self.drain()

    def check_header(self) -> None:
        """Read its beginning: it is encrypted, and an identity, if some are given, fits. Raises FormatError."""
        import pyrage

        beginning = self._file.read(MAX_AGE_HEADER_BYTES)
        if not beginning.startswith(_AGE_BEGIN) or _AGE_HEADER_END not in beginning:
            raise FormatError("it is not in the format age v1")
        if self._identities:
            try:
                pyrage.decrypt_io(io.BytesIO(beginning), io.BytesIO(), list(self._identities))
            except pyrage.DecryptError as error:
                raise FormatError(str(error)) from error
            except OSError:
                pass  # the header is good, what follows is cut off

    def drain(self) -> None:
        """Read what is left, and do not look into it."""
        self._file.drain()

    @property
    def sha256(self) -> str:
        """Of the file, in hex digits, when it was read to its end."""
        return str(self._file.sha256.hexdigest())

    def check(
        self,
        advance: Callable[[int], None] = lambda _count: None,
        look: Callable[[Document], None] = lambda _row: None,
    ) -> DataStats:
        """Read it to its end, prove that every line can be decoded, and return what it holds. Raises FormatError.

        `advance` is told now and then, and at the end, how many documents were read since. `look` is shown the members
        of each; what it raises goes through.
        """
        stats = DataStats()
        for line, members, _ in self:
            stats.count(line, members, self._shape)
            look(members)
            if stats.document_count % PROGRESS_DOCUMENTS == 0:
                advance(PROGRESS_DOCUMENTS)
        advance(stats.document_count % PROGRESS_DOCUMENTS)
        stats.data_sha256, stats.data_size_bytes = self.sha256, self._file.size_bytes
        return stats


class Snapshot:
    """A snapshot in a directory or a zip: its files by name. Whatever a stranger could have put in is refused.

    `identities` decrypt its data files; there are none where these are in clear.
    """

    identities: tuple[Any, ...] = ()

    def __init__(self, path: Path, name: str, sizes: dict[str, int]) -> None:
        self.path = path
        self.label = str(path)  # what it is called in messages
        self.name = name
        self.sizes = sizes

    def open(self, name: str) -> IO[bytes]:
        """Open one of the files in `sizes`."""
        return (self.path / name).open("rb")

    def reader(self, record: AnyRecord, stream: IO[bytes]) -> DataReader:
        """A reader of a record's open data file."""
        shape, identities = record.shape(), self.identities
        return DataReader(stream, compressed=record.is_compressed, identities=identities, shape=shape)

    def lines(self, record: AnyRecord, sha256: str = "") -> Iterator[tuple[bytes, Document, Document]]:
        """Yield (line, its members, the document or row as the server held it) for each line of a data file.

        Raises SnapshotRefused at the end of one that changed after it was verified (`sha256`, unless that is empty).
        """
        with self.open(record.data_file or "") as stream:
            reader = self.reader(record, stream)
            yield from reader
        if sha256 not in ("", reader.sha256):
            raise SnapshotRefused(f"{self.label}: {record.data_file} changed after it was verified.")

    def read(self, name: str, max_bytes: int = Manifest.MAX_BYTES) -> bytes:
        """The content of a small file. Raises SnapshotRefused if it is absent or too large."""
        if name not in self.sizes:
            raise SnapshotRefused(f"{self.label} has no {name}: a run that died, or not a snapshot.")
        if self.sizes[name] > max_bytes:
            raise SnapshotRefused(f"{self.label}: {name} is larger than any can be.")
        try:
            with self.open(name) as stream:
                return stream.read(max_bytes)
        except (FormatError, OSError) as error:
            raise SnapshotRefused(f"{self.label}: {name} cannot be read: {error}.") from error


class ZipFileReader(io.FileIO):
    """The bytes of a zip. zipfile reads the list of entries at once, and believes what the zip says of its size."""

    def read(self, size: int | None = -1) -> bytes:
        """Read; raises BadZipFile for more than the list of entries, or what is read of an entry at once, can have."""
        if size is not None and size > Manifest.MAX_BYTES + 1:
            raise zipfile.BadZipFile(f"a list of entries of {size} bytes")
        return super().read(size) or b""


class ZipEntryReader(io.RawIOBase):
    """An entry of a zip. Whatever zipfile raises while it reads becomes a FormatError."""

    def __init__(self, entry: IO[bytes]) -> None:
        self._entry = entry

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; returns the number of bytes, 0 at the end. Raises FormatError."""
        try:
            chunk = self._entry.read(len(buffer))
        except ZIP_ERRORS as error:
            raise FormatError(f"the zip is damaged: {error or type(error).__name__}") from error
        buffer[: len(chunk)] = chunk
        return len(chunk)


class ZipSnapshot(Snapshot):
    """A snapshot in a zip, its entries under one folder."""

    def __init__(self, path: Path, label: str = "") -> None:
        label = label or str(path)
        try:
            self._zip = zipfile.ZipFile(ZipFileReader(path))
        except ZIP_ERRORS as error:
            raise SnapshotRefused(f"{label} is not a zip that can be read: {error}.") from error
        folder, sizes = self._checked_entries(label)
        super().__init__(path, folder or path.stem, sizes)
        self.label, self._folder = label, folder

    def open(self, name: str) -> IO[bytes]:
        """Open one of the entries."""
        try:
            entry = self._zip.open(f"{self._folder}/{name}" if self._folder else name)
        except ZIP_ERRORS as error:
            raise SnapshotRefused(f"{self.label}: {name} cannot be opened: {error}.") from error
        return cast(IO[bytes], ZipEntryReader(entry))

    def _checked_entries(self, label: str) -> tuple[str, dict[str, int]]:
        folders: set[str] = set()
        sizes: dict[str, int] = {}
        for entry in self._zip.infolist():
            folder, _, name = entry.filename.rpartition("/")
            folders.add(folder)
            if entry.filename.endswith("/") and "/" not in folder:
                continue
            kind = stat.S_IFMT(entry.external_attr >> 16)
            is_plain = kind in (0, stat.S_IFREG) and not entry.flag_bits & 0x1 and entry.compress_type in ZIP_METHODS
            if not is_plain or "/" in folder or not _is_safe_name(name) or (folder and not _is_safe_name(folder)):
                raise SnapshotRefused(f"{label}: unsafe entry {entry.filename!r}.")
            if name in sizes:
                raise SnapshotRefused(f"{label}: the entry {entry.filename!r} is there twice.")
            sizes[name] = entry.file_size
        if len(folders) > 1:
            raise SnapshotRefused(f"{label}: entries in more than one folder: {', '.join(sorted(folders))}.")
        return folders.pop() if folders else "", sizes


def _is_safe_name(name: str) -> bool:
    """Whether a name is a plain file name, with no way out of its directory."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\:\0") and name.isprintable()


def open_snapshot(path: Path) -> Snapshot:
    """Open a snapshot's directory or zip. Raises SnapshotRefused for what is unsafe or unfinished."""
    if path.name.endswith(".inprogress"):
        raise SnapshotRefused(f"{path} is a run in progress, or one that died.")
    if path.is_file():
        return ZipSnapshot(path)
    if not path.is_dir():  # opening a pipe would wait for ever
        raise SnapshotRefused(f"{path} is neither a directory nor a zip.")
    if not os.path.lexists(path / MANIFEST_NAME):
        raise SnapshotRefused(f"{path} has no {MANIFEST_NAME}: a run that died, or not a snapshot.")
    sizes = {}
    for entry in os.scandir(path):
        if not entry.is_file(follow_symlinks=False):
            raise SnapshotRefused(f"{path}: {entry.name} is not a plain file.")
        sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return Snapshot(path, path.resolve().name, sizes)


def find_snapshot(wanted: str, output_dir: Path, sources: tuple[str, ...], report: Report) -> Path:
    """The path for a directory, a zip, a name or `latest`. Raises BackupError when there is none."""
    if wanted == "latest":
        found = Stored.here(output_dir, read_any)
        whole = (one for one in found if not one.name.removesuffix(".zip").endswith(INCOMPLETE_SUFFIX))
        return output_dir / choose_latest(whole, sources, str(output_dir), report)
    names = (wanted, f"{wanted}.zip", f"{wanted}{INCOMPLETE_SUFFIX}")
    for path in (Path(wanted), *(output_dir / name for name in names)):
        if path.exists():
            return path
    check_directory(output_dir)
    raise BackupError(
        f"There is no snapshot {wanted!r}, in the working directory or in {output_dir}.",
        "restore.py --list shows what is there, --from-box --list what is in Box.",
    )


def choose_latest(candidates: Iterable[Stored], sources: tuple[str, ...], place: str, report: Report) -> str:
    """The name of the newest snapshot of a whole keyspace; `candidates` come newest first.

    Raises BackupError if there is none, or if what is there is of more than one database or keyspace, and
    SnapshotRefused if nothing there can be read. What does not tell its source (older scripts) makes nothing
    ambiguous, unless it is the newest.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    newest: dict[tuple[str, str], str] = {}
    for one in candidates:
        kind, text = _kind_of(one, sources)
        found[kind][one.name] = text
        if kind == "whole" and one.manifest:
            newest.setdefault(source_key(one.manifest), one.name)
            if set(map(normal_source, sources)).issuperset(source_key(one.manifest)):  # nothing else can be meant
                break
    if newest and next(iter(newest)) != _UNKNOWN_SOURCE and (unknown := newest.pop(_UNKNOWN_SOURCE, None)):
        report.warn(f"{unknown} does not say which database it is of, and is left out.")
    if len(newest) != 1:
        raise _no_latest(found, list(newest.values()), sources, place)
    (latest,) = newest.values()
    for name, problem in found["refused"].items():
        if name[:15] > latest[:15]:
            report.warn(f"Newer than {latest}, but it cannot be used: {problem}")
    partial = next(iter(found["partial"]), "")
    if partial[:15] > latest[:15]:
        log.info("%s is newer, but holds only some collections.", partial)
    log.info("The latest in %s is %s, of %s.", place, latest, found["whole"][latest])
    return latest


def _kind_of(one: Stored, sources: tuple[str, ...]) -> tuple[str, str]:
    """Whether something is refused, of another source, partial or whole; and why, or of what it is in words."""
    if isinstance(one.error, SnapshotRefused):
        return "refused", one.error.message
    where = f"{one.at.name} in Box" if isinstance(one.at, BoxFile) else one.at
    if one.manifest is None:
        return "refused", f"{where}: {describe_error(one.error or FormatError())}."
    if not one.manifest.is_complete:
        return "refused", f"{where}: {MANIFEST_NAME} says that it is incomplete."
    if not is_of(one.manifest, sources):
        return "others", str(one.manifest.source)
    return "partial" if one.manifest.selection else "whole", str(one.manifest.source)


def _no_latest(
    found: dict[str, dict[str, str]], newest: list[str], sources: tuple[str, ...], place: str
) -> BackupError:
    """Why nothing is the latest: none that is there counts, or more than one of them does."""
    if newest:
        rows = "".join(f"\n  {name}: {found['whole'][name]}" for name in newest)
        return BackupError(
            f"`latest` is ambiguous: in {place} are snapshots of more than one database or keyspace. The newest:{rows}",
            "Narrow it with --source KEYSPACE or --source ENDPOINT, or name a snapshot.",
        )
    partial, refused, others = found["partial"], found["refused"], dict.fromkeys(found["others"].values())
    if refused and not partial and not others:
        return SnapshotRefused(next(iter(refused.values())))
    facts = [f"There are snapshots of: {', '.join(others)}."] if others else []
    facts += [f"Of some collections only: {', '.join(partial)}."] if partial else []
    facts += [f"Refused: {' '.join(refused.values())}"] if refused else []
    wanted = f" of {' and '.join(sources)}" if sources else ""
    text = f"There is no complete snapshot{wanted} in {place}"
    if not facts:
        return BackupError(f"{text}.", "Check --output-dir; --list shows what is there.")
    hint = "Give one of these keyspaces or endpoints to --source, or name a snapshot." if others else "Name a snapshot."
    return BackupError(f"{text}. {' '.join(facts)}", f"{hint} --list shows them all.")


_UNKNOWN_SOURCE = ("", "")


def normal_source(text: str) -> str:
    """An endpoint or a keyspace, to be compared: one endpoint may be written in several ways."""
    return text.rstrip("/").lower() if "://" in text else text


def source_key(manifest: Manifest) -> tuple[str, str]:
    """The endpoint and the keyspace of a snapshot, to be compared; older scripts did not always write them."""
    key = Scope.of(manifest).source
    return key if all(key) else _UNKNOWN_SOURCE


def is_of(manifest: Manifest, sources: Iterable[str], *, or_unknown: bool = False) -> bool:
    """Whether a snapshot is of all these sources: keyspaces or endpoints; or may be, as it does not say of what."""
    if or_unknown and source_key(manifest) == _UNKNOWN_SOURCE:
        return True
    return all(normal_source(source) in Scope.of(manifest).source for source in sources)


@dataclass
class Verified:
    """A snapshot that was read to the last byte, and what its good collections hold, by name."""

    snapshot: Snapshot
    manifest: Manifest
    stats: dict[str, DataStats]
    warnings: list[str]
    looked_inside: bool = True  # False: without an identity only the encrypted files were checked


def read_manifest(snapshot: Snapshot) -> Manifest:
    """The manifest of a snapshot. Raises SnapshotRefused."""
    try:
        return Manifest.decode(snapshot.read(MANIFEST_NAME))
    except FormatError as error:
        raise SnapshotRefused(f"{snapshot.label}: {error}.") from error


def verify_snapshot(snapshot: Snapshot, *, force_incomplete: bool, workers: int, report: Report) -> Verified:
    """Prove that a snapshot is whole: every checksum, size and count, every line, no file missing, none extra.

    Raises SnapshotRefused.
    """
    manifest = read_manifest(snapshot)
    warnings = _check_status(snapshot, manifest, force_incomplete=force_incomplete)
    good = manifest.good
    has_digests = any(record.content_digest for record in good) or not good
    is_old = CHECKSUMS_NAME not in snapshot.sizes and not has_digests
    if manifest.selection:
        warnings.append("holds only what was asked for when it was made, not the whole keyspace")
    if is_old:
        warnings.append(
            "written by an older script: no SHA256SUMS, no content digests; what can be checked was checked"
        )
    _check_files(snapshot, good, is_old=is_old)
    _check_tables(snapshot, manifest)
    check_encryption(snapshot, manifest)
    looks_inside = not manifest.encryption or bool(snapshot.identities)
    if not looks_inside:
        warnings.append("encrypted, and its contents were not checked: give --identity to prove them")
    if not is_old:
        _check_sums(snapshot, good)
    report.stage({record.name: record.held for record in good})
    types = type_fields(manifest.types or [])
    check = partial(check_record, snapshot=snapshot, types=types, report=report, looks_inside=looks_inside)
    found = dict(zip([record.name for record in good], in_threads(check, good, workers), strict=True))
    for record in good:
        record.document_count = found[record.name].document_count
    if not is_old and manifest.totals != manifest.sums():
        raise SnapshotRefused(f"{snapshot.label}: the manifest's totals are not the sums of its collections.")
    for warning in warnings:
        report.warn(f"{snapshot.label}: {warning}.")
    return Verified(snapshot, manifest, found, warnings, looks_inside)


@contextlib.contextmanager
def stoppable_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are waited for at the end, unless a signal wants it soon."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(wait=not stop_event.is_set(), cancel_futures=True)


def in_threads(function: Callable[[_S], _T], items: list[_S], workers: int) -> list[_T]:
    """Call a function for each item, several at once."""
    with stoppable_pool(max(1, min(workers, len(items)))) as pool:
        return await_all([pool.submit(function, item) for item in items])


def _check_status(snapshot: Snapshot, manifest: Manifest, *, force_incomplete: bool) -> list[str]:
    """Refuse an incomplete snapshot, unless it is forced: then name what is missing."""
    if manifest.is_complete and not snapshot.name.endswith(INCOMPLETE_SUFFIX):
        return []
    failed = ", ".join(f"{record.name} ({record.error})" for record in manifest.records if not record.is_ok)
    failed = failed or "; ".join(manifest.warnings or []) or "unknown"
    if not force_incomplete:
        raise SnapshotRefused(
            f"{snapshot.label} is incomplete; failed: {failed}.",
            "Use a complete snapshot, or --force-incomplete for its good collections.",
        )
    return [f"incomplete, and forced; missing: {failed}"]


def _check_files(snapshot: Snapshot, good: list[AnyRecord], *, is_old: bool) -> None:
    """Every file that should be there, and no other; no name leads out of the snapshot."""
    expected = {MANIFEST_NAME} | (set() if is_old else {CHECKSUMS_NAME})
    names = [record.name for record in good]
    if len(set(names)) != len(names):
        raise SnapshotRefused(f"{snapshot.label}: a collection is in the manifest twice.")
    data_files: set[str] = set()
    for record in good:
        if not record.name or not record.name.isprintable():
            raise SnapshotRefused(f"{snapshot.label}: {record.name!r} is not a collection's name.")
        if not record.data_file or not _is_safe_name(record.data_file) or record.data_file in expected:
            raise SnapshotRefused(f"{snapshot.label}: {record.name} has the unsafe data file {record.data_file!r}.")
        if record.data_file in data_files:
            raise SnapshotRefused(f"{snapshot.label}: two collections have the data file {record.data_file}.")
        data_files.add(record.data_file)
    expected |= data_files
    if missing := sorted(expected - set(snapshot.sizes)):
        raise SnapshotRefused(
            f"{snapshot.label}: missing: {', '.join(missing)}.", "Fetch the snapshot again, or use another one."
        )
    if extra := sorted(set(snapshot.sizes) - expected):
        raise SnapshotRefused(
            f"{snapshot.label}: not in the manifest: {', '.join(extra)}.",
            "If somebody put it there, move it away; otherwise fetch the snapshot again.",
        )


def check_encryption(snapshot: Snapshot, manifest: Manifest) -> None:
    """Every data file is encrypted, or none is, as the manifest says; the identities that were given fit each of them.

    The first thing that is read of data files, and no more than their beginnings. Raises SnapshotRefused.
    """
    encryption = manifest.encryption or None
    if encryption and encryption.format != "age":
        raise SnapshotRefused(f"{snapshot.label} is encrypted as {encryption.format!r}, which this tool does not read.")
    for record in manifest.good:
        name = record.data_file or ""
        if record.is_encrypted != bool(encryption):
            raise SnapshotRefused(
                f"{snapshot.label}: {name} is {'not ' * bool(encryption)}encrypted, {MANIFEST_NAME} says otherwise."
            )
        if not encryption:
            continue
        try:
            with snapshot.open(name) as stream:
                snapshot.reader(record, stream).check_header()
        except (FormatError, OSError) as error:
            raise SnapshotRefused(
                f"{snapshot.label}: {name} cannot be decrypted: {error}. The snapshot is {encryption}.",
                *[IDENTITY_HINT] * (error.__cause__ is not None),  # otherwise no key helps
            ) from error


IDENTITY_HINT = "Give the private key of one of them: --identity FILE (BACKUP_IDENTITY_FILE)."


def _check_sums(snapshot: Snapshot, good: list[AnyRecord]) -> None:
    """SHA256SUMS names the manifest and every data file, with the manifest's own digests."""
    expected = {record.data_file: record.data_sha256 for record in good}
    expected[MANIFEST_NAME] = hashlib.sha256(snapshot.read(MANIFEST_NAME)).hexdigest()
    max_bytes = sum(len(str(name).encode()) + 68 for name in expected)  # a digest, two spaces, the end of a line
    lines = snapshot.read(CHECKSUMS_NAME, max_bytes).decode(errors="replace").splitlines()
    found = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if len(found) != len(lines) or found != expected:
        wrong = sorted(
            str(name) for name in expected.keys() | found.keys() if expected.get(name) != found.get(str(name))
        )
        raise SnapshotRefused(f"{snapshot.label}: {CHECKSUMS_NAME} does not match for: {', '.join(wrong) or 'a line'}.")


def check_record(
    record: AnyRecord, snapshot: Snapshot, types: dict[str, dict[str, Any]], report: Report, *, looks_inside: bool
) -> DataStats:
    """Read a data file to its end, and prove that it is what the manifest says of it; `types`: see `type_fields`.

    What is encrypted, and not looked into, holds what the manifest says. Raises SnapshotRefused.
    """
    name = record.data_file or ""
    size = snapshot.sizes[name]
    if record.data_size_bytes not in (None, size):
        raise SnapshotRefused(f"{snapshot.label}: {name} has {size} bytes instead of {record.data_size_bytes}.")
    report.start(record.name, record.held, "verifying")
    shape = record.shape()
    columns = shape.columns if shape else {}
    converters = {column: convert for column, of in columns.items() if (convert := converter(of, types))}
    try:
        with snapshot.open(name) as stream:
            reader = snapshot.reader(record, stream)
            if looks_inside:
                stats = reader.check(partial(report.advance, record.name), partial(_check_row, converters))
                facts = stats.facts(record)
            else:
                reader.drain()
                stats, facts = DataStats(record.held, record.vector_count or 0), {"data_sha256": reader.sha256}
    except (FormatError, OSError) as error:
        raise SnapshotRefused(f"{snapshot.label}: {name}: {error}.") from error
    report.finish(record.name)
    for fact, value in facts.items():
        if (said := getattr(record, fact)) not in (None, value):
            raise SnapshotRefused(f"{snapshot.label}: {name}: {fact} is {value}, the manifest says {said}.")
    return stats


def _check_tables(snapshot: Snapshot, manifest: Manifest) -> None:
    """Whether what a stranger could have written of tables, types and indexes can be read. Raises SnapshotRefused."""
    try:
        types = type_fields(manifest.types or [])
        for record in manifest.tables or []:
            if not record.is_ok:
                continue
            shape, columns = record.shape(), table_definition(record.name, record.definition)["columns"]
            _adapt_columns(shape, columns, Choices())
            for of in columns.values():
                converter(of, types)
            read_indexes(record.name, record.indexes)
            if unknown := sorted(shape.type_names() - types.keys()):
                raise FormatError(f"{record.name} has columns of types that are not there: {', '.join(unknown)}")
    except (FormatError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise SnapshotRefused(f"{snapshot.label}: a table cannot be read from {MANIFEST_NAME}: {error}.") from error


def _check_row(converters: dict[str, Convert], row: dict[str, bytes]) -> None:
    """Raise FormatError for a value that cannot be made into what is to be sent."""
    try:
        for name in converters.keys() & row.keys():
            converters[name](row[name])
    except (AttributeError, TypeError, ValueError, OverflowError, struct.error, msgspec.MsgspecError) as error:
        raise FormatError(f"a value of the column {name} cannot be read: {error}") from error


# ======================================================================================================================
# Identities: the private keys that decrypt a snapshot. None of them is ever printed or written
# ======================================================================================================================

_AGE_FILE = (b"age-encryption.org/", b"-----BEGIN AGE ENCRYPTED FILE-----")
KEY_HINT = "It takes files of `age-keygen`, and SSH private keys (ed25519, rsa)."


class KeyFile(NamedTuple):
    """A file of --identity, as it was read."""

    path: Path
    content: bytes

    def error(self, reason: str, hint: str = KEY_HINT) -> BackupError:
        """Why nothing can be decrypted with it."""
        return BackupError(f"--identity {self.path}: {reason}.", hint)


def read_identity_files(paths: Iterable[Path]) -> list[KeyFile]:
    """Read the files of --identity. Raises BackupError for one that cannot be read, or can hold no key."""
    found = []
    for path in paths:
        try:
            found.append(KeyFile(path, read_small_file(path)))
        except (OSError, ValueError) as error:
            raise BackupError(
                f"--identity {path}: {describe_error(error, with_path=False)}.",
                "Check the path and its rights: `~` is not expanded.",
            ) from error
        _parse_identities(found[-1])
    return found


def unlock(files: Iterable[KeyFile]) -> tuple[Any, ...]:
    """The identities in files; the passphrases of those that have one are asked for. Raises BackupError."""
    found: list[Any] = []
    for file in files:
        if (identities := _parse_identities(file)) is None:
            identities = _parse_identities(file._replace(content=_unlocked(file)))
        if not identities:
            raise file.error("there is no identity in it")
        found += identities
    return tuple(found)


def _is_ssh(file: KeyFile) -> bool:
    return file.content.startswith(b"-----BEGIN ") and not file.content.startswith(_AGE_FILE)


def _parse_identities(file: KeyFile) -> list[Any] | None:
    """The identities in a file; None where a passphrase protects it. What is in it stays out of the errors."""
    import pyrage

    if file.content.startswith(_AGE_FILE):
        return None
    try:
        if _is_ssh(file):
            return [pyrage.ssh.Identity.from_buffer(file.content)]
        lines = [line.strip() for line in file.content.decode("utf-8-sig").splitlines()]
        found = []
        for line in lines:
            if line and not line.startswith("#"):
                found.append(pyrage.x25519.Identity.from_str(line))
    except UnicodeDecodeError as error:
        raise file.error("it is neither text nor an SSH private key") from error
    except pyrage.IdentityError as error:
        if _is_ssh(file):
            if "decrypted first" in str(error) or "Encrypted" in str(error):
                return None
            raise file.error("it is not an SSH private key that can be read") from error
        what = "is a public key" if line.startswith(("age1", "ssh-")) else "is not an age private key"
        what = f"line {lines.index(line) + 1} {what}"
        raise file.error(f"{what}: an identity file holds private keys (AGE-SECRET-KEY-…)") from error
    if not found:
        raise file.error("there is no identity in it")
    return found


def _unlocked(file: KeyFile) -> bytes:
    """What a passphrase protects; whoever sits at the terminal is asked for it."""
    import pyrage

    if not sys.stdin.isatty():
        raise file.error(
            "it has a passphrase, and there is no terminal to ask for it",
            "Run it on a terminal, or give a key without one.",
        )
    if Report.current:
        Report.current.end_bars()
    if _is_ssh(file):
        return _unlocked_by_ssh_keygen(file)
    passphrase = click.prompt(f"Passphrase of {file.path}", hide_input=True, err=True)
    try:
        return bytes(pyrage.passphrase.decrypt(file.content, passphrase))
    except pyrage.DecryptError as error:
        raise file.error(f"it cannot be decrypted: {error}", "Is it the right passphrase?") from error


def _unlocked_by_ssh_keygen(file: KeyFile) -> bytes:
    """An SSH key without its passphrase: `ssh-keygen` asks for it, and takes it away in a file that is only memory."""
    try:
        descriptor = os.memfd_create("identity")
        os.fchmod(descriptor, 0o600)
        with open(descriptor, "w+b", buffering=0) as memory:
            memory.write(file.content)
            place = f"/proc/{os.getpid()}/fd/{descriptor}"
            log.info("ssh-keygen asks for the passphrase of %s:", file.path)
            command = ["ssh-keygen", "-q", "-p", "-N", "", "-f", place]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  (nothing of it is a stranger's)
            memory.seek(0)
            return memory.read()
    except (AttributeError, OSError, subprocess.CalledProcessError) as error:
        raise file.error(
            "its passphrase could not be taken away by `ssh-keygen`",
            "Is it the right one? Otherwise give a copy of the key without: `ssh-keygen -p -N '' -f COPY`.",
        ) from error


# ======================================================================================================================
# Plan: pure but for reading the target; also what --dry-run prints
# ======================================================================================================================


@dataclass(frozen=True)
class Choices:
    """What the operator chose, and what that makes of a document.

    Both sides of a comparison go through `to_compare`: what was chosen to be left out is no difference.
    """

    collections: tuple[str, ...] = ()
    renames: dict[str, str] = field(default_factory=dict)
    on_existing: OnExisting = OnExisting.FAIL
    vectorize: Vectorize = Vectorize.FAIL
    vectorize_text_field: str | None = None
    without_vectorize_service: bool = False
    without_lexical: bool = False
    without_rerank: bool = False
    workers: int = 4
    allow_lossy_tables: bool = False

    def target_name(self, name: str) -> str:
        """What a collection of the snapshot is called in the target."""
        return self.renames.get(name, name)

    def to_send(self, document: Document) -> Document:
        """A snapshot's document as the target takes it; the very same one where nothing was chosen."""
        if not ("$vectorize" in document or "$lexical" in document) or self._is_open(document):
            return document
        sent = Document(document)
        if self.without_lexical:
            sent.pop("$lexical", None)
        if "$vectorize" not in sent or not ("$vector" in sent or self.without_vectorize_service):
            return sent
        is_chosen = self.vectorize is Vectorize.RECOMPUTE or not document.needs_choice  # or nothing is lost
        if is_chosen and not self.without_vectorize_service:
            del sent["$vector"]
            return sent
        text = sent.pop("$vectorize")
        if self.vectorize_text_field and document.has_vectorize:
            sent[msgspec.json.encode(self.vectorize_text_field)[1:-1].decode()] = text
        return sent

    def to_compare(self, document: Document) -> Document:
        """A document of the snapshot, or of the target, without what was not sent, or what the server makes by itself.

        One of the target that still has all equals what is sent of it.
        """
        sent = self.to_send(document)
        if "$vectorize" in sent and "$vector" in sent and not self._is_open(sent):
            return Document({name: value for name, value in sent.items() if name != "$vector"})
        return sent

    def _is_open(self, document: Document) -> bool:
        """Whether nothing was chosen for a document that needs it: it is only ever compared, as a whole."""
        return document.needs_choice and self.vectorize is Vectorize.FAIL


@dataclass
class PlannedCollection:
    """One collection of the plan."""

    is_table: ClassVar[bool] = False
    holds: ClassVar[str] = "documents"

    record: AnyRecord
    stats: DataStats
    target_name: str
    options: dict[str, Any]  # the definition that it is created with
    choices: Choices
    losses: list[str] = field(default_factory=list)  # what does not come back, by choice
    notes: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)  # why it cannot be restored, whatever the target has
    exists: bool = False
    had_documents: bool = False
    is_resumed: bool = False

    @property
    def is_dropped(self) -> bool:
        """Whether what is there now goes first."""
        return self.exists and not self.is_resumed and self.choices.on_existing is OnExisting.DROP

    @property
    def keeps_documents(self) -> bool:
        """Whether documents that were there before may remain."""
        return self.had_documents and not self.is_dropped

    @property
    def is_recomputed(self) -> bool:
        """Whether the target computes vectors that the snapshot has, too: what is near may be another."""
        return bool(self.stats.both_count) and self.choices.vectorize is Vectorize.RECOMPUTE

    def source(self, api: DataApi) -> Readable:  # noqa: ARG002
        """What the target has of that name, to be read page by page."""
        return Readable(self.target_name)

    def keys_only(self) -> Readable:
        """The same, but of the documents no more than what identifies them."""
        return Readable(self.target_name, projection=b'{"_id":1}')

    def vector_columns(self) -> list[tuple[str, str]]:
        """What the target searches for neighbours that the snapshot knows, and by which metric."""
        metric = self.options.get("vector", {}).get("metric")
        return [("$vector", metric)] if metric and self.stats.vector_count and not self.is_recomputed else []

    def lines(self, snapshot: Snapshot) -> Iterator[tuple[bytes, Document, Document]]:
        """The lines of the snapshot's data file that can be written: see `Snapshot.lines`."""
        return snapshot.lines(self.record, self.stats.data_sha256)

    def id_in(self, line: bytes, document: Document) -> bytes:  # noqa: ARG002
        """What identifies a document of the snapshot, as JSON."""
        return document.id

    def to_send(self, document: Document) -> bytes:
        """The text of a document of the snapshot as it is to be sent."""
        return self.choices.to_send(document).text()

    def to_compare(self, line: bytes, document: Document) -> bytes:  # noqa: ARG002
        """The text of a document of the snapshot as the target should have it."""
        return self.choices.to_compare(document).text()

    def as_found(self, text: bytes) -> tuple[bytes, bytes]:
        """The id and the text of a document of the target, to be compared with `to_compare`."""
        document = Document.parse(text)
        return document.id, self.choices.to_compare(document).text()

    def key_of(self, document_id: bytes) -> bytes:
        """What the target takes for the key of an id."""
        return key_of(document_id)

    def send_creation(self, api: DataApi) -> bool:
        """Create it, or what it lacks. Whether the answer is to the only request. Raises TargetRefused."""
        command, part = ("createTable", "definition") if self.is_table else ("createCollection", "options")
        return send_schema(api, command, {"name": self.target_name, part: self.options})

    @property
    def label(self) -> str:
        """Its name in the snapshot, and the one in the target if that is another."""
        name = self.record.name
        return name if name == self.target_name else f"{name} as {self.target_name}"

    def describe(self) -> str:
        """What is going to happen, in words."""
        count = plural(self.record.held, self.record.noun)
        if self.is_resumed:
            action = f"go on inserting {count}"
        elif self.is_dropped:
            action = f"DROP what is there, create, insert {count}"
        elif not self.exists:
            action = f"create, insert {count}"
        elif not self.had_documents:
            action = f"exists, empty: insert {count}"
        elif self.choices.on_existing is OnExisting.OVERWRITE:
            action = f"overwrite with {count}, keep others"
        else:
            action = f"keep what is there, insert what is missing of {count}"
        return "; ".join([f"{self.label}: {action}", *self.losses, *self.notes])


@dataclass
class Existing:
    """What the target has. Collections and tables share their names; types and indexes have theirs in the keyspace."""

    infos: dict[str, CollectionInfo | TableInfo]
    types: dict[str, dict[str, Any]] = field(default_factory=dict)
    indexes: dict[str, str] = field(default_factory=dict)  # by name: whose

    @classmethod
    def read(cls, api: DataApi, *, has_tables: bool) -> Self:
        """Read it; no types and indexes where no table is to be restored or compared."""
        infos: dict[str, CollectionInfo | TableInfo] = {info.name: info for info in api.list_collections()}
        tables = {info.name: info for info in api.describe_tables()}
        if not has_tables:
            return cls({**infos, **tables})
        with reading_reply():
            found = [(name, index) for name in tables for index in read_indexes(name, api.describe_indexes(name))]
            indexes = {str(index.get("name")): name for name, index in found}
            return cls({**infos, **tables}, type_fields(api.describe_types().values()), indexes)

    def has(self, planned: PlannedCollection) -> bool:
        """Whether there is something of that name and kind."""
        info = self.infos.get(planned.target_name)
        return info is not None and isinstance(info, TableInfo) == planned.is_table


def plan_records(run: RestoreRun) -> tuple[list[PlannedCollection], Existing]:
    """What is to become of all that was chosen, before anything is looked at in the target but names; and these."""
    records = select_records(run.verified, run.choices)
    existing = Existing.read(run.api, has_tables=any(isinstance(record, TableRecord) for record in records))
    plan: list[PlannedCollection] = []
    for record in records:
        stats = run.verified.stats[record.name]
        if isinstance(record, TableRecord):
            plan.append(plan_table(record, stats, run.choices, run.verified.manifest, existing))
        else:
            plan.append(plan_collection(record, stats, run.choices))
    return plan, existing


def make_plan(run: RestoreRun) -> list[PlannedCollection]:
    """Check everything against the target. Raises TargetRefused with all the reasons; writes nothing.

    The journal says which of the target's collections an earlier run of the same restore began, and whether they held
    documents before it.
    """
    plan, existing = plan_records(run)
    if left := [name for name in existing.infos if _SCRATCH_NAME.fullmatch(name)]:
        log.warning("Scratch collections of a drill: %s. If none is running now, drop them by hand.", ", ".join(left))
    refusals: dict[str, list[str]] = {}
    for planned in plan:
        planned.is_resumed = planned.target_name in run.journal.begun
        planned.had_documents = run.journal.begun.get(planned.target_name, False)
        for reason in _check_target(planned, existing, run.api):
            refusals.setdefault(reason, []).append(planned.label)
    if refusals:
        rows = "".join(f"\n  {', '.join(names)}: {reason}" for reason, names in refusals.items())
        raise TargetRefused(f"The target cannot take this snapshot:{rows}", "Nothing was written.")
    return plan


def plan_collection(record: AnyRecord, stats: DataStats, choices: Choices) -> PlannedCollection:
    """What is to become of a collection, whatever the target has."""
    options = explicit_options(read_definition(record.name, record.definition))
    planned = PlannedCollection(record, stats, choices.target_name(record.name), options, choices)
    if choices.without_vectorize_service and "service" in options.get("vector", {}):
        options["vector"] = {name: value for name, value in options["vector"].items() if name != "service"}
        planned.losses.append("without its embedding service")
    if choices.without_lexical and options["lexical"].get("enabled"):
        options["lexical"] = {"enabled": False}
        texts = f", {plural(stats.lexical_count, 'text')} left out" if stats.lexical_count else ""
        planned.losses.append(f"without lexical search{texts}")
    if choices.without_rerank and options["rerank"].get("enabled"):
        options["rerank"] = {"enabled": False}
        planned.losses.append("without its reranker")
    if stats.both_count and choices.vectorize is Vectorize.FAIL:
        planned.conflicts.append(
            f"{plural(stats.both_count, 'document')} with both $vector and $vectorize,"
            " which the server refuses: choose --vectorize keep-vectors or --vectorize recompute."
        )
    elif stats.both_count:
        planned.losses.append(f"{plural(stats.both_count, 'document')} with vector and text: {_sent_of_both(choices)}")
    return planned


def _sent_of_both(choices: Choices) -> str:
    if choices.vectorize is Vectorize.RECOMPUTE:
        return "the texts are sent, the vectors are computed anew"
    field_name = choices.vectorize_text_field
    return f"the vectors are sent, the texts {f'go to the field {field_name}' if field_name else 'are left out'}"


def select_records(verified: Verified, choices: Choices) -> list[AnyRecord]:
    """The good collections that were asked for. Raises BackupError for names that make no sense."""
    good = [record for record in verified.manifest.records if record.name in verified.stats]
    names = {record.name for record in good}
    if missing := [name for name in choices.collections if name not in names]:
        raise BackupError(
            f"Not in the snapshot: {', '.join(missing)}.", f"It has: {', '.join(sorted(names)) or 'nothing'}."
        )
    selected = [record for record in good if not choices.collections or record.name in choices.collections]
    if unused := sorted(choices.renames.keys() - {record.name for record in selected}):
        raise BackupError(
            f"--rename names what is not restored: {', '.join(unused)}.",
            f"Check --rename and --collection. The snapshot has: {', '.join(sorted(names)) or 'nothing'}.",
        )
    targets = [choices.target_name(record.name) for record in selected]
    if len(set(targets)) != len(targets):
        raise BackupError("--rename gives two collections the same name.", "Give each its own.")
    return selected


def _check_target(planned: PlannedCollection, existing: Existing, api: DataApi) -> list[str]:
    """Reasons why it cannot be restored; fills in what is found."""
    refusals = [*planned.conflicts]
    info = existing.infos.get(planned.target_name)
    if info is None:
        planned.is_resumed = planned.had_documents = False
        planned.notes += _unproved(planned.options)
        return refusals
    if not existing.has(planned):
        other = "collection" if planned.is_table else "table"
        return [f"there is a {other} of that name: choose --rename or another keyspace."]
    planned.exists = True
    if planned.is_dropped:
        return refusals
    if differences := definition_differences(planned.options, server_options(info)):
        refusals.append(f"exists with another definition: {'; '.join(differences)}.{_feature_hint(differences)}")
    if planned.is_resumed:
        return refusals
    planned.had_documents = has_documents(api, info)
    if planned.had_documents and planned.choices.on_existing is OnExisting.FAIL:
        refusals.append(
            f"already holds {planned.holds}: choose --on-existing skip, overwrite or drop,"
            " --rename, or another keyspace; --resume continues a restore that was interrupted."
        )
    return refusals


def _unproved(options: dict[str, Any]) -> list[str]:
    """What the server tells only when it creates the collection; it is asked before any document is written."""
    service = options.get("vector", {}).get("service", {}).get("provider")
    needs = {
        "lexical search": options.get("lexical", {}).get("enabled"),
        "a reranker": options.get("rerank", {}).get("enabled"),
        f"the embedding service {service}": service,
    }
    found = [need for need, is_needed in needs.items() if is_needed]
    return [f"needs {' and '.join(found)}, which only creating it proves"] if found else []


def _feature_hint(differences: list[str]) -> str:
    """What to do about a difference that a choice can do without."""
    hints = {
        "lexical.enabled is false": " --without-lexical",
        "rerank.enabled is false": " --without-rerank",
        "vector.service": " --without-vectorize-service",
    }
    found = [hint for start, hint in hints.items() if any(difference.startswith(start) for difference in differences)]
    return f" To do without:{''.join(found)}." if found else ""


def has_documents(api: DataApi, info: CollectionInfo | TableInfo) -> bool:
    """Whether a collection or table holds anything."""
    source = Readable(info.name)
    if isinstance(info, TableInfo):
        with reading_reply():
            source = keys_only(info.name, TableShape.read(info.name, info.definition))
    return any(page.documents for page in api.pages(source))


def find_info(api: DataApi, planned: PlannedCollection) -> CollectionInfo | TableInfo | None:
    """What the target has of that name and kind."""
    infos: Sequence[CollectionInfo | TableInfo] = api.describe_tables() if planned.is_table else api.list_collections()
    return next((info for info in infos if info.name == planned.target_name), None)


def server_options(info: CollectionInfo | TableInfo) -> dict[str, Any]:
    """A definition that the target reports, made explicit. Raises RequestError for one that no server has."""
    with reading_reply():
        if isinstance(info, TableInfo):
            return table_definition(info.name, info.definition)
        return explicit_options(read_definition(info.name, info.options))


@contextlib.contextmanager
def reading_reply() -> Iterator[None]:
    """A FormatError in what the target says is no Data API's reply: RequestError."""
    try:
        yield
    except FormatError as error:
        raise RequestError(f"The reply is not one of the Data API: {error}.", "Check --api-endpoint.") from error


def explicit_options(options: dict[str, Any]) -> dict[str, Any]:
    """A definition with what a server would fill in made explicit: left out, `lexical` and `rerank` are turned on."""
    explicit = {"lexical": {"enabled": False}, "rerank": {"enabled": False}, **options}
    if "vector" in explicit:
        explicit["vector"] = {"metric": "cosine", "sourceModel": "other", **explicit["vector"]}
    return explicit


_definition_encoder = msgspec.json.Encoder(decimal_format="number")  # its numbers are Decimals: no digit is lost


def definition_differences(wanted: Any, found: Any, path: str = "") -> list[str]:
    """Field by field, what differs between two definitions."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        differences = []
        for key in sorted(wanted.keys() | found.keys()):
            differences += definition_differences(wanted.get(key), found.get(key), f"{path}.{key}".lstrip("."))
        return differences
    if wanted == found:
        return []
    there, here = (_definition_encoder.encode(value).decode() for value in (found, wanted))
    return [f"{path} is {there}, the snapshot has {here}"]


# ======================================================================================================================
# Tables: what of them comes back, and how. Types first, then tables, rows, and their indexes
# ======================================================================================================================

_ISO_DURATION = re.compile(
    r"(-?)P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.(\d{1,9}))?S)?)?", re.ASCII
)
INDEX_COMMANDS = {"regular": "createIndex", "vector": "createVectorIndex", "text": "createTextIndex"}
MAX_NAME_CHARS = 48
ALWAYS_LOST = "TTL, write times and table options are not in a snapshot"
Convert = Callable[[bytes], bytes]


def duration_in_units(text: bytes) -> bytes:
    """A duration's JSON text in the form that servers take: they refuse fractions, which they send. Exact."""
    found = _ISO_DURATION.fullmatch(text[1:-1].decode())
    if found is None:
        return text  # in units already
    years, months, days, hours, minutes, seconds = (int(part or 0) for part in found.groups()[1:7])
    nanoseconds = ((hours * 60 + minutes) * 60 + seconds) * 10**9 + int((found[8] or "").ljust(9, "0"))
    parts = ((12 * years + months, "mo"), (days, "d"), (nanoseconds, "ns"))
    units = "".join(f"{amount}{unit}" for amount, unit in parts if amount)
    return f'"{found[1] if units else ""}{units or "0s"}"'.encode()


def vector_to_send(text: bytes) -> bytes:
    """A vector's JSON text in a form that servers take: NaN and the infinities only as bytes."""
    if text[:1] != b"[" or b'"' not in text:
        return text
    floats = [float(each) for each in json.loads(text)]
    return b'{"$binary":"%b"}' % base64.b64encode(struct.pack(f">{len(floats)}f", *floats))


def converter(of: Any, types: dict[str, dict[str, Any]]) -> Convert | None:
    """What makes of a column's value, as it was read, what can be written; None where that is the same."""
    of = explicit_type(of)
    kind = of.get("type")
    if kind in ("duration", "vector"):
        return duration_in_units if kind == "duration" else vector_to_send
    if kind == "userDefined":
        fields = types.get(of.get("udtName", ""), {})
        by_field = {name: convert for name, each in fields.items() if (convert := converter(each, types))}
        return partial(_convert_members, by_field) if by_field else None
    convert = converter(of["valueType"], types) if "valueType" in of else None
    if convert is None:
        return None
    return partial(_convert_values if kind == "map" else _convert_elements, convert)


def _convert_members(by_field: dict[str, Convert], text: bytes) -> bytes:
    if text[:1] != b"{":
        return text
    members = split_object(text)
    return Document({name: by_field[name](v) if name in by_field else v for name, v in members.items()}).text()


def _convert_elements(convert: Convert, text: bytes) -> bytes:
    elements = msgspec.json.decode(text, type=list[msgspec.Raw])
    return b"[" + b",".join([convert(bytes(element)) for element in elements]) + b"]"


def _convert_values(convert: Convert, text: bytes) -> bytes:
    """A map: an object, or pairs where its keys are no texts."""
    if text[:1] == b"{":
        return Document({name: convert(value) for name, value in split_object(text).items()}).text()
    pairs = msgspec.json.decode(text, type=list[tuple[msgspec.Raw, msgspec.Raw]])
    return b"[" + b",".join([b"[%b,%b]" % (bytes(key), convert(bytes(value))) for key, value in pairs]) + b"]"


def explicit_type(of: Any) -> Any:
    """The type of a column or field as an object: one that is no more than a name is told as a text, too."""
    return {"type": of} if isinstance(of, str) else of


def without_support(value: Any) -> Any:
    """A definition as it can be sent: no `apiSupport` at any level."""
    if isinstance(value, dict):
        return {name: without_support(each) for name, each in value.items() if name != "apiSupport"}
    return [without_support(each) for each in value] if isinstance(value, list) else value


def table_definition(name: str, definition: msgspec.Raw) -> dict[str, Any]:
    """What is to be sent to create a table of that definition. Raises FormatError."""
    found = without_support({**read_definition(name, definition)})
    columns = {each: explicit_type(of) for each, of in found.get("columns", {}).items()}
    return {"columns": columns, "primaryKey": found.get("primaryKey")}


def type_fields(texts: Iterable[msgspec.Raw]) -> dict[str, dict[str, Any]]:
    """The fields of user-defined types, by the types' names. Raises FormatError."""
    found = {}
    for text in texts:
        of = without_support(read_definition("a type", text))
        fields = (of.get("definition") or {}).get("fields") or {}
        found[str(of.get("udtName"))] = {name: explicit_type(each) for name, each in fields.items()}
    return found


def read_indexes(name: str, text: msgspec.Raw) -> list[dict[str, Any]]:
    """A table's indexes as they are to be sent, without empty options. Raises FormatError."""
    found = read_definition(name, msgspec.Raw(b'{"indexes":%b}' % bytes(text)))["indexes"]
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise FormatError(f"the indexes of {name} cannot be read")
    for index in found:
        definition = without_support(index.get("definition") or {})
        if not definition.get("options"):
            definition.pop("options", None)
        index["definition"] = definition
    return found


@dataclass(kw_only=True)
class PlannedTable(PlannedCollection):
    """One table of the plan."""

    is_table: ClassVar[bool] = True
    holds: ClassVar[str] = "rows, and an insert would change them"

    shape: TableShape  # of the snapshot's rows
    types: dict[str, dict[str, Any]]
    indexes: list[dict[str, Any]]

    def __post_init__(self) -> None:
        columns = self.options["columns"]
        self._converters = {name: converter(of, self.types) for name, of in columns.items()}
        self._spelt = {name: msgspec.json.encode(name)[1:-1].decode() for name in columns}
        self._is_whole = columns.keys() == self.shape.columns.keys()

    def source(self, api: DataApi) -> Readable:
        """What the target has of that name, to be read page by page."""
        shape = dataclasses.replace(self.shape, columns=self.options["columns"])
        return Readable.of_table(api, self.target_name, shape)

    def keys_only(self) -> Readable:
        """The same, but of the rows no more than their key."""
        return keys_only(self.target_name, self.shape)

    def vector_columns(self) -> list[tuple[str, str]]:
        """What the target searches for neighbours, and by which metric."""
        definitions = [index["definition"] for index in self.indexes if index["indexType"] == "vector"]
        metrics = [(each.get("column"), each.get("options", {}).get("metric", "cosine")) for each in definitions]
        return [(column, metric) for column, metric in metrics if isinstance(column, str)]

    def lines(self, snapshot: Snapshot) -> Iterator[tuple[bytes, Document, Document]]:
        """The lines of the snapshot's data file that can be written: rows."""
        return (each for each in super().lines(snapshot) if not self.shape.is_static_only(each[1]))

    def id_in(self, line: bytes, document: Document) -> bytes:  # noqa: ARG002
        """The primary key of a row of the snapshot."""
        return self.shape.key(line)

    def to_send(self, document: Document) -> bytes:
        """A row as it is to be sent. Where others are overwritten, what is absent is sent as null: it goes."""
        members = {}
        is_over_others = self.keeps_documents and self.choices.on_existing is OnExisting.OVERWRITE
        for name, convert in self._converters.items():
            value = document.get(name, b"null" if is_over_others else b"")
            if value:
                members[self._spelt[name]] = convert(value) if convert and value != b"null" else value
        return Document(members).text()

    def to_compare(self, line: bytes, document: Document) -> bytes:
        """The text of a row, as a server sends it."""
        if self._is_whole:
            return line
        return Document({spelt: document[name] for name, spelt in self._spelt.items() if name in document}).text()

    def as_found(self, text: bytes) -> tuple[bytes, bytes]:
        """The key and the text of a row of the target."""
        return self.shape.key(text), text

    def key_of(self, document_id: bytes) -> bytes:
        """The primary key, equal for equal values: another server may spell a number in another way."""
        parts = [bytes(part) for part in msgspec.json.decode(document_id, type=list[msgspec.Raw])]
        return b",".join([_plain_key(part) for part in parts])


@contextlib.contextmanager
def kept_rows(run: RestoreRun, planned: PlannedCollection) -> Iterator[KeyStore | None]:
    """The keys of the rows that are to be kept, since an insert would change them; None where there are none."""
    if not (planned.is_table and planned.keeps_documents and planned.choices.on_existing is OnExisting.SKIP):
        yield None
        return
    name = planned.target_name
    log.info("%s: reading the keys of the rows that are kept.", name)
    with tempfile.TemporaryDirectory(prefix="restore-keys-", ignore_cleanup_errors=True) as directory:
        new_store = partial(KeyStore, directory, planned, text_digest)
        kept = run.requests.scan(planned.source(run.api), new_store, ScanProgress())
        kept.sort()
        yield kept


def _plain_key(value: bytes) -> bytes:
    """A column of a key: of a number its value, of a text its letters, however the server spells them."""
    return "E".join(plain_number(value.decode())).encode() if value[:1] in b"-0123456789" else key_of(value)


def keys_only(name: str, shape: TableShape) -> Readable:
    """A table to be read by its key, whatever columns it has."""
    return Readable(name, shape.key, None, msgspec.json.encode(dict.fromkeys(shape.keys, 1)))


def plan_table(
    record: TableRecord, stats: DataStats, choices: Choices, manifest: Manifest, existing: Existing
) -> PlannedTable:
    """What is to become of a table, before anything is looked at in the target but names."""
    shape, types = record.shape(), type_fields(manifest.types or [])
    options = table_definition(record.name, record.definition)
    losses = _adapt_columns(shape, options["columns"], choices)
    if stats.static_only_count:
        losses.append(
            f"{plural(stats.static_only_count, 'partition')} with static values only, which nothing can write"
        )
    planned = PlannedTable(
        record=record,
        stats=stats,
        target_name=choices.target_name(record.name),
        options=options,
        choices=choices,
        losses=losses,
        shape=shape,
        types={name: types[name] for name in sorted(shape.type_names())},
        indexes=[],
    )
    _plan_indexes(planned, existing)
    for name, fields in planned.types.items():
        if existing.types.get(name, fields) != fields:
            planned.conflicts.append(f"the type {name} exists with other fields: choose another keyspace.")
    if losses and not choices.allow_lossy_tables:
        planned.conflicts.append(
            f"cannot come back as it was: {'; '.join(losses)}."
            " --allow-lossy-tables restores it nevertheless, --collection leaves it out."
        )
    planned.notes += _spelt_anew(planned)
    planned.notes.append(ALWAYS_LOST)
    return planned


def _spelt_anew(planned: PlannedTable) -> list[str]:
    """Which values of a table come back equal, but spelt in another way."""
    types_in_use = [planned.options["columns"], *planned.types.values()]
    scalars = {kind for fields in types_in_use for of in fields.values() for kind in scalar_types(of)}
    notes = ["decimals lose their scale (1.10 becomes 1.1)"] if "decimal" in scalars else []
    return notes + (["-0.0 becomes 0.0"] if scalars & {"float", "double", "vector"} else [])


def _adapt_columns(shape: TableShape, columns: dict[str, Any], choices: Choices) -> list[str]:
    """Make of a table's columns what the Data API can create; what is lost by that."""
    losses = []
    for name, of in shape.columns.items():
        support = of.get("apiSupport") or {}
        cql = str(support.get("cqlDefinition", ""))
        if of.get("type") == "counter":
            losses.append(f"the counter {name}, which nothing can write, is left out")
            del columns[name]
            continue
        if cql.startswith("static "):
            losses.append(f"the static column {name} becomes an ordinary one")
        elif support.get("createTable") is False:
            losses.append(f"{name} ({cql}), which only CQL can create, becomes an ordinary column")
        if of.get("type") == "timeuuid":
            columns[name] = {"type": "uuid"}
        if choices.without_vectorize_service:
            columns[name].pop("service", None)
    return losses


def _plan_indexes(planned: PlannedTable, existing: Existing) -> None:
    """Fill in the indexes to make, and what is to be said of those that are not made, or get another name."""
    record, target_name = planned.record, planned.target_name
    assert isinstance(record, TableRecord)
    used = set[str]()
    for index in read_indexes(record.name, record.indexes):
        name, kind = str(index.get("name")), index.get("indexType", "regular")
        if kind not in INDEX_COMMANDS:
            planned.notes.append(f"the index {name} was made by CQL, and is not made")
            continue
        if (owner := existing.indexes.get(name, target_name)) != target_name:
            if target_name == record.name:
                planned.conflicts.append(f"the table {owner} has an index {name} already: choose another keyspace.")
            own_names = (each for each in _index_names(f"{target_name}_{name}") if each not in used)
            name = next(each for each in own_names if existing.indexes.get(each, target_name) == target_name)
            planned.notes.append(f"the index {index['name']} is called {name}: its own name is taken")
        used.add(name)
        existing.indexes.setdefault(name, target_name)
        planned.indexes.append({"name": name, "definition": index["definition"], "indexType": kind})


def _index_names(wanted: str) -> Iterator[str]:
    """That name, and others like it, in an order that is always the same: a resumption finds the same free one."""
    yield wanted[:MAX_NAME_CHARS]
    for number in itertools.count(2):
        yield f"{wanted[: MAX_NAME_CHARS - len(str(number)) - 1]}_{number}"


def scalar_types(of: Any) -> Iterator[str]:
    """The types of which the values of a column's type are made."""
    if isinstance(of, str):
        yield of
    elif isinstance(of, dict):
        for part in ("type", "keyType", "valueType"):
            yield from scalar_types(of.get(part))


def create_types(run: RestoreRun, plan: list[PlannedCollection]) -> None:
    """Make the user-defined types that are missing. Raises TargetRefused if somebody else makes another meanwhile."""
    wanted = {name: of for planned in plan if isinstance(planned, PlannedTable) for name, of in planned.types.items()}
    there = type_fields(run.api.describe_types().values()) if wanted else {}
    for name, fields in wanted.items():
        if name in there:
            continue
        log.info("The type %s: creating.", name)
        run.changes.types[name] = False
        try:
            run.changes.types[name] = send_schema(
                run.api, "createType", {"name": name, "definition": {"fields": fields}}
            )
        except TargetRefused:  # it may be the very same
            del run.changes.types[name]
        is_confirmed = run.changes.types.get(name, False)
        if not is_confirmed and type_fields(run.api.describe_types().values()).get(name) != fields:
            raise made_by_somebody_else(f"The type {name}")


def drop_types(api: DataApi, changes: Changes) -> None:
    """Drop the types that the server confirmed as created by this very run; what is not there is forgotten."""
    for name, is_confirmed in list(changes.types.items()):
        with contextlib.suppress(BackupError, FormatError):
            if is_confirmed:
                with contextlib.suppress(BackupError):
                    send_schema(api, "dropType", {"name": name})
            if name not in type_fields(api.describe_types().values()):
                del changes.types[name]


def complete_table(run: RestoreRun, planned: PlannedTable, outcome: Outcome) -> None:
    """Make the indexes that a table lacks, and read them back; what fails stands in the outcome."""
    name = planned.target_name
    try:
        there = {index.get("name") for index in read_indexes(name, run.api.describe_indexes(name))}
        for index in planned.indexes:
            if index["name"] not in there:
                log.info("%s: making the index %s.", name, index["name"], extra={"collection": name})
                body = {each: index[each] for each in ("name", "definition")}
                with contextlib.suppress(TargetRefused):  # whatever has that name is looked at below
                    send_schema(run.api, INDEX_COMMANDS[index["indexType"]], body, name)
        if differences := index_differences(run.api, planned):
            raise BackupError(f"{'; '.join(differences)}.")
    except (BackupError, FormatError) as error:
        outcome.error = f"its rows are there, but not its indexes: {describe_error(error)}"
        log.error("%s: %s", name, outcome.error, extra={"collection": name})


def index_differences(api: DataApi, planned: PlannedTable) -> list[str]:
    """Which of the planned indexes the target lacks, or has with another definition."""
    name = planned.target_name
    with reading_reply():
        there = {index.get("name"): index for index in read_indexes(name, api.describe_indexes(name))}
    differences = []
    for index in planned.indexes:
        what = f"the index {index['name']}"
        if index["name"] in there:
            known = {part: of for part, of in there[index["name"]].items() if part in index}
            differences += definition_differences(index, known, what)
        else:
            differences.append(f"{what} is missing")
    return differences


# ======================================================================================================================
# Write
# ======================================================================================================================


def counts_text(what: str, inserted: int, more: dict[str, int]) -> str:
    """How many documents (`what`: with their noun) were inserted, and what else became of some; without zeros."""
    rest = [f"{count:,} {kind}" for kind, count in more.items() if count]
    return ", ".join([f"{what} inserted"] * bool(inserted or not rest) + rest)


@dataclass
class Outcome:
    """What became of one collection."""

    planned: PlannedCollection
    inserted: int = 0
    already_there: int = 0
    replaced: int = 0
    rejected: int = 0
    rejects_files: list[Path] = field(default_factory=list)
    lost_rejects: int = 0
    error: str | None = None
    comparison: Comparison | None = None
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, **changes: int) -> None:
        """Add to the counters; thread-safe."""
        with self.lock:
            for name, change in changes.items():
                setattr(self, name, getattr(self, name) + change)

    def reject(self, file: Path | None) -> None:
        """Count a document that the server refused, and where it is; thread-safe."""
        self.count(rejected=1)
        with self.lock:
            if file is None:
                self.lost_rejects += 1
            elif file not in self.rejects_files:
                self.rejects_files.append(file)

    def describe_rejects(self) -> str:
        """The documents that the server refused, in words."""
        text = f"{plural(self.rejected, self.planned.record.noun)} refused by the server"
        if self.rejects_files:
            text += f", in {', '.join(map(str, self.rejects_files))}"
        if self.lost_rejects:
            text += f"; no place took {self.lost_rejects:,} of them, the log names them"
        return f"{text}."

    def describe(self) -> str:
        """What was done, in words."""
        more = {"replaced": self.replaced, "there already": self.already_there, "rejected": self.rejected}
        return counts_text(plural(self.inserted, self.planned.record.noun), self.inserted, more)


FEATURE_HINTS = {
    "LEXICAL_FEATURE_NOT_ENABLED": "The target has no lexical search: --without-lexical restores without it.",
    "RERANKING_FEATURE_NOT_ENABLED": "The target has no reranker: --without-rerank restores without it.",
    "VECTORIZE_FEATURE_NOT_AVAILABLE": "The target has no embedding service: see --without-vectorize-service.",
    "TOO_MANY_COLLECTIONS": "Its collections count over all keyspaces: drop some, or use another database.",
    "TOO_MANY_INDEXES": "Its indexes count over all keyspaces: drop some collections, or use another database.",
}


class Step(Enum):
    """How far this run has got with a collection of the target; the value says so, behind its name."""

    DROPPING = "may be dropped: the server did not confirm it"
    DROPPED = "is dropped, and not created again"
    CREATING = "may be there, without all of its indexes: its creation was not confirmed"
    CREATED = "stays: this run created it, and it is empty"
    FOUND = "stays: whether this run created it is not certain"
    COMPLETING = "may still lack indexes, as before: completing it was not confirmed"


@dataclass
class Changes:
    """What creating collections has done to the target so far, as far as the server has said it."""

    steps: dict[str, Step] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    scratch: set[str] = field(default_factory=set)  # names that this run made up: nobody else has them
    tables: set[str] = field(default_factory=set)  # which of the names are those of tables
    types: dict[str, bool] = field(default_factory=dict)  # created: whether the server confirmed it
    is_over: bool = False  # all are created, documents are being written

    def refused(self, name: str) -> None:
        """The server did not do what it was asked: what has that name is not of this run."""
        if self.steps.get(name) in (Step.CREATING, Step.DROPPING):
            del self.steps[name]
            if name in self.dropped:
                self.steps[name] = Step.DROPPED

    def look(self, there: set[str] | None) -> None:
        """Settle what is settled by the names of the collections that are there; None: nobody knows them."""
        for name, step in list(self.steps.items()):
            if step is Step.COMPLETING or (there and name in there and step is Step.DROPPING):
                del self.steps[name]
            elif there is None or name in there:
                continue
            elif name in self.dropped or step is Step.DROPPING:
                self.dropped.add(name)
                self.steps[name] = Step.DROPPED
            else:
                del self.steps[name]

    def describe(self) -> str:
        """What is to be known of each collection, in words."""
        texts = [f"{name} {step.value}" for name, step in list(self.steps.items())]
        return "; ".join(texts + [f"the type {name} stays, or may be there" for name in list(self.types)])


def create_collections(run: RestoreRun, plan: list[PlannedCollection]) -> None:
    """Make what is missing, and what is to be dropped anew, and read it back, before any document is written.

    What exists is created once more, which makes the indexes that a cut-off creation has left out. If one cannot be had
    as it was, those just created are dropped again and TargetRefused is raised. A collection that is to be dropped goes
    only when the target has proved, under another name, that it can make the new one. If something stays behind
    nevertheless, or one is gone, RestoreBrokeOff says so.
    """
    changes = run.changes
    name = ""
    try:
        create_types(run, plan)
        for planned in plan:
            name = planned.target_name
            if planned.is_dropped:
                _prove_definition(run.api, planned, changes)
        # What may be refused comes before a drop; and nothing more is dropped when the one before failed.
        kept = [planned for planned in plan if not planned.is_dropped]
        for several in (kept, *([planned] for planned in plan if planned.is_dropped)):
            if failed := _make_several(run, several):
                name, error = failed
                raise error
    except Exception as error:  # whatever it is: what was made must not stay without a word
        raise _given_up(run, name, error) from error
    changes.is_over = True


def _make_several(run: RestoreRun, several: list[PlannedCollection]) -> tuple[str, Exception] | None:
    """Make several collections at once; each waits some ten seconds until all nodes agree. Returns the first failure.

    None is left on its way: giving up would cancel it. Those that servers refuse to make at once are made one by one.
    """
    with stoppable_pool(CREATIONS_AT_ONCE) as pool:
        errors = await_all([pool.submit(_try_make, run, planned) for planned in several])
    for planned, error in zip(several, errors, strict=True):
        is_in_the_way = (
            isinstance(error, RequestError) and error.status == 200 and (error.retryable or error.unexpected)
        )
        if is_in_the_way and len(several) > 1:
            log.warning("%s: creating it once more, alone.", planned.target_name)
            error = _try_make(run, planned)  # noqa: PLW2901
        if error:
            return planned.target_name, error
    return None


def _try_make(run: RestoreRun, planned: PlannedCollection) -> Exception | None:
    """Drop a collection, if that is planned, and create it; the error if it fails."""
    name, changes = planned.target_name, run.changes
    try:
        if planned.is_dropped and name not in changes.dropped:
            log.info("%s: dropping.", name)
            _begin_step(run, name, Step.DROPPING)
            drop(run.api, name, is_table=planned.is_table)
            changes.dropped.add(name)
            changes.steps[name] = Step.DROPPED
        run.report.start(name, planned.record.held, "creating")
        _make(run, planned)
        run.report.finish(name)
    except Exception as error:  # noqa: BLE001  (raised when all that were begun have ended)
        if _is_refusal(error):
            changes.refused(name)
        return error
    return None


def _is_refusal(error: Exception) -> bool:
    """Whether the server did not do what it was asked, and nothing of it."""
    if isinstance(error, RequestError):
        return not error.retryable and (error.code or "EXISTING").startswith("EXISTING")
    return isinstance(error, TargetRefused)


def _make(run: RestoreRun, planned: PlannedCollection) -> None:
    """Create one collection if it is not there, or what it lacks."""
    name, journal, steps = planned.target_name, run.journal, run.changes.steps
    if not planned.exists:
        _look_again(run.api, planned, is_ours=name in journal.begun)
    is_new = planned.is_dropped or not planned.exists
    if is_new:
        journal.forget(name)
    journal.begin(name, had_documents=planned.keeps_documents)
    if planned.is_table:
        run.changes.tables.add(name)
        if not is_new:  # what its creation has left out nothing can have
            _check_created(run.api, planned)
            return
    log.info("%s: %s.", planned.label, "creating" if is_new else "checking its indexes")
    was_asked = steps.get(name) is Step.CREATING  # an earlier request may have created it
    _begin_step(run, name, Step.CREATING if is_new else Step.COMPLETING)
    is_confirmed = planned.send_creation(run.api) and not was_asked
    if is_new or planned.is_resumed:
        run.api.created[name] = time.monotonic()
    if is_new:
        steps[name] = Step.CREATED if is_confirmed else Step.FOUND
    else:
        del steps[name]
    _check_created(run.api, planned)


def _begin_step(run: RestoreRun, name: str, step: Step) -> None:
    """Note a step that is about to begin. Raises BackupError after a stop: what was begun may have been told."""
    before = run.changes.steps.get(name)
    run.changes.steps[name] = step
    if run.api.stop.is_set():
        del run.changes.steps[name]
        if before:
            run.changes.steps[name] = before
        raise BackupError("stopped")


def _names(api: DataApi, changes: Changes) -> set[str] | None:
    """The target's collections, and its tables if there may be some of ours; None if it does not say."""
    with contextlib.suppress(BackupError):
        tables = api.describe_tables() if changes.tables else []
        return {info.name for info in api.list_collections()} | {info.name for info in tables}
    return None


def _look_again(api: DataApi, planned: PlannedCollection, *, is_ours: bool) -> None:
    """One that appeared since the plan is somebody else's. Raises TargetRefused unless it may be filled."""
    info = find_info(api, planned)
    if info is None:
        return
    is_welcome = is_ours or planned.choices.on_existing in (OnExisting.SKIP, OnExisting.OVERWRITE)
    if not is_welcome or definition_differences(planned.options, server_options(info)):
        raise made_by_somebody_else(planned.target_name)
    planned.exists, planned.is_resumed, planned.had_documents = True, is_ours, has_documents(api, info)


def made_by_somebody_else(name: str) -> TargetRefused:
    """What to say of a collection, a table, a type or an index that was not there when it was planned."""
    return TargetRefused(
        f"{name} was made by somebody else since the plan.", "It was not touched. Look at it, then run again."
    )


def _given_up(run: RestoreRun, name: str, error: Exception) -> BackupError:
    """Drop what this run created, and nothing else; the error that is true afterwards."""
    changes, reason = run.changes, _reason(name, error)
    if _is_refusal(error):
        changes.refused(name)
    before = set(changes.steps)
    changes.look(_names(run.api, changes))
    if not changes.dropped and Step.DROPPING not in changes.steps.values():  # nothing from before is gone, or may be
        for unmade, step in list(changes.steps.items()):
            if step is Step.CREATED or unmade in changes.scratch:  # confirmed, or a name that nobody else has
                _unmake(run.api, unmade, changes)
        changes.look(_names(run.api, changes) if changes.steps else set())
        drop_types(run.api, changes)
    for unmade in before - set(changes.steps):
        run.journal.forget(unmade)
    if changes.steps or changes.types:
        return RestoreBrokeOff(f"{reason.message} {changes.describe()}.", reason.hint, reason)
    if isinstance(reason, TargetRefused):
        reason.hint += " What had just been created was dropped again; no document was written."
    return reason


def _reason(name: str, error: Exception) -> BackupError:
    """Why something was not created, as a person should read it."""
    if not isinstance(error, RequestError) or error.code is None or error.retryable:
        return error if isinstance(error, BackupError) else BackupError(f"{describe_error(error)}.")
    hint = FEATURE_HINTS.get(error.code, "The target cannot give what the collection had.")
    if "mbedding" in error.message or "rovider" in error.message:
        hint = FEATURE_HINTS["VECTORIZE_FEATURE_NOT_AVAILABLE"]
    return TargetRefused(f"{name} cannot be created: {error.message}", hint)


def _unmake(api: DataApi, name: str, changes: Changes) -> None:
    """Drop what was just made, if it can be done, unless somebody writes to it already."""
    is_table = name in changes.tables
    with contextlib.suppress(BackupError):
        infos = api.describe_tables() if is_table else [CollectionInfo(name)]
        if any(has_documents(api, info) for info in infos if info.name == name):
            log.warning("%s: it was just made, and holds documents that are not ours: it stays.", name)
        else:
            drop(api, name, is_table=is_table)
            log.info("%s: dropped again.", name)
        del changes.steps[name]


def _prove_definition(api: DataApi, planned: PlannedCollection, changes: Changes) -> None:
    """Make a collection of that definition under a scratch name and drop it again, unless the target has it now."""
    info = find_info(api, planned)
    if info is not None and not definition_differences(planned.options, server_options(info)):
        return
    name = f"drill_{secrets.token_hex(4)}_0"
    scratch = dataclasses.replace(planned, target_name=name)
    changes.scratch.add(name)
    if planned.is_table:
        changes.tables.add(name)
    changes.steps[name] = Step.CREATING
    scratch.send_creation(api)
    changes.steps[name] = Step.CREATED
    _check_created(api, scratch)
    drop(api, name, is_table=planned.is_table)
    del changes.steps[name]


def send_schema(api: DataApi, command: str, body: dict[str, Any], table: str | None = None) -> bool:
    """Change a definition. Whether the answer is to the only request: otherwise another may have done it.

    It is waited for: one that is given up may be carried out half. Raises TargetRefused for what is there already,
    unless that may be of our own request whose answer was lost.
    """
    repeated = threading.Event()
    timeout_s = max(MIN_CREATE_TIMEOUT_S, api.target.request_timeout_s)
    text = _definition_encoder.encode(body)
    try:
        api.call(command, text, table, timeout_s=timeout_s, read=_ignore_reply, on_retry=repeated.set)
    except RequestError as error:
        if not (error.code or "").startswith("CANNOT_ADD_EXISTING_"):
            raise
        if not repeated.is_set():
            raise made_by_somebody_else(body["name"]) from error
    return not repeated.is_set()


def _check_created(api: DataApi, planned: PlannedCollection) -> None:
    """Wait until it is listed. Raises TargetRefused if it is another than was wanted."""
    deadline = time.monotonic() + VISIBLE_WITHIN_S
    while (info := find_info(api, planned)) is None and time.monotonic() <= deadline:
        stop_event.wait(0.5)
    if info is None:
        reason = f"{planned.target_name}: the server has not listed it for {VISIBLE_WITHIN_S:.0f} s."
        raise TargetRefused(reason, "Run again later.")
    if differences := definition_differences(planned.options, server_options(info)):
        raise TargetRefused(
            f"{planned.target_name}: the server made it with another definition: {'; '.join(differences)}.",
            "The target cannot give what the snapshot had.",
        )


def _ignore_reply(_reply: Reply) -> None:
    """For commands of which it is enough that they succeed."""


def drop(api: DataApi, name: str, *, is_table: bool) -> None:
    """Drop a collection or a table. Raises TargetRefused for the other kind: deleteCollection drops tables too."""

    def drop_it() -> None:
        tables = [info.name for info in api.describe_tables(patience=Patience(0.0))]
        others = [info.name for info in api.list_collections()] if is_table else tables
        if name in others:
            kind = "collection" if is_table else "table"
            raise TargetRefused(f"{name} is a {kind} now: it is not dropped.", "Look at it first.")
        if name in tables or not is_table:
            command, body = "dropTable" if is_table else "deleteCollection", msgspec.json.encode({"name": name})
            api.call(command, body, patience=Patience(0.0), read=_ignore_reply)

    Patience(min(DROP_BUDGET_S, api.target.retry_budget_s)).retry(drop_it, api.stop)


def lock_or_refuse(descriptor: int, path: Path, refusal: BackupError) -> None:
    """Lock what is open, if its file system has locks; while another process holds it, close it and raise `refusal`."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise refusal from error
    except OSError:
        log.debug("%s cannot be locked.", path)


class Journal:
    """Which batches the target has acknowledged, in a file, so that a restore that was killed can go on. Thread-safe.

    The file belongs to one snapshot, target and set of choices. A path of None keeps nothing.
    """

    def __init__(self, path: Path | None, key: dict[str, str], *, resume: bool) -> None:
        self.path = path
        self.begun: dict[str, bool] = {}  # collection of the target: whether it held documents before
        self.rejected: dict[str, set[Path]] = {}  # by an earlier run: where each collection's are
        self._key = key
        self._done: dict[str, set[int]] = {}
        self._lock = threading.Lock()
        self.is_kept = False  # whether a run can go on with it
        self._file: IO[str] | None = None
        self._goes_on = resume and path is not None and path.is_file()
        if path and self._goes_on:
            self._load(path, key)

    def open(self) -> None:
        """Begin to write. Only now an older journal of a run that is not resumed goes.

        Raises OSError, and TargetRefused while another restore writes to it.
        """
        if self.path:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            refusal = TargetRefused(
                f"Another restore of this snapshot is running, with the journal {self.path}.",
                "Wait for it; or, for another target, give this one another --journal. Nothing was written.",
            )
            lock_or_refuse(descriptor, self.path, refusal)
            if not self._goes_on:
                os.ftruncate(descriptor, 0)
            self._file = open(descriptor, "a", encoding="utf-8")  # noqa: SIM115  (closed by remove, or by the end)
            self.is_kept = True
            self._write({} if self._goes_on else self._key)  # an empty row ends a line that was cut off

    def begin(self, collection: str, *, had_documents: bool) -> None:
        """A collection of the target is about to be changed."""
        if collection not in self.begun:
            self.begun[collection] = had_documents
            self._write({"begin": collection, "had_documents": had_documents})

    def forget(self, collection: str) -> None:
        """A collection of the target is gone, with whatever it held."""
        if collection in self.begun:
            del self.begun[collection]
            self._done.pop(collection, None)
            self.rejected.pop(collection, None)
            self._write({"forget": collection})

    def reject(self, collection: str, file: Path | None) -> None:
        """The target refused a document, which is in a rejects file until a later run sends it again."""
        self._write({"reject": collection, "file": file and str(file)})

    def has(self, collection: str, batch: int) -> bool:
        """Whether a batch was acknowledged by an earlier run."""
        return batch in self._done.get(collection, ())

    def done(self, collection: str, batch: int) -> None:
        """Each document of a batch is in the target."""
        self._write({"collection": collection, "batch": batch})

    def remove(self) -> None:
        """The restore is over."""
        if self._file and self.path:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
                self._file.close()

    def _load(self, path: Path, key: dict[str, str]) -> None:
        text = path.read_text(encoding="utf-8", errors="replace")
        if json.dumps(key).startswith(text):  # it was killed when it began: nothing was done
            self._goes_on = False
            return
        rows: list[dict[str, Any]] = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # the last line of a process that was killed
                rows.append(json.loads(line))
        if not rows or rows[0] != key:
            raise BackupError(
                f"{path} belongs to another restore: another snapshot, target or other options.",
                "Run the very command that broke off, plus --resume; or run without --resume to start over.",
            )
        for row in rows[1:]:
            if "begin" in row:
                self.begun[row["begin"]] = bool(row.get("had_documents"))
            elif "forget" in row:
                self.forget(row["forget"])
            elif "reject" in row:
                files = self.rejected.setdefault(row["reject"], set())
                files |= {Path(row["file"])} if row.get("file") else set()
            elif "batch" in row:
                self._done.setdefault(row["collection"], set()).add(row["batch"])

    def _write(self, row: dict[str, Any]) -> None:
        with self._lock:
            if self._file and self.is_kept:
                try:
                    self._file.write(json.dumps(row) + "\n" if row else "\n")
                    self._file.flush()
                except OSError as error:  # what it says so far is true
                    log.warning("The journal cannot be kept any more (%s): the restore goes on.", error.strerror)
                    self.is_kept = False


class Throttle:
    """How many batches may be in flight: half under pressure, one more after each round that went well. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._in_flight = 0
        self._backed_off = 0.0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Wait for a place, and hold it."""
        with self._changed:
            while self._in_flight >= int(self._limit) and not stop_event.is_set():
                self._changed.wait(0.5)
            self._in_flight += 1
        try:
            yield
            with self._changed:
                self._limit = min(self._most, self._limit + 1 / self._limit)
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    def back_off(self) -> None:
        """The server is under pressure. Many batches notice at once: that counts once a second."""
        with self._changed:
            if time.monotonic() - self._backed_off > 1.0:
                self._backed_off = time.monotonic()
                self._limit = max(1.0, self._limit / 2)
                log.debug("Batches in flight: at most %d.", self._limit)


class Rejects:
    """Documents that the server refused, in files that are made with the first of them. Thread-safe.

    They go to the chosen file, or into one of the collection's own in the first of `directories` that takes it, or,
    where none does, to TMPDIR. A file of an earlier run is overwritten: --resume sends its documents again.
    """

    def __init__(self, chosen: Path | None, directories: list[Path]) -> None:
        self._chosen = chosen
        self._directories = directories
        self._begun: set[Path] = set()
        self._told: set[Path] = set()
        self._lock = threading.Lock()

    def add(self, collection: str, text: bytes, code: str, message: str) -> Path | None:
        """Write a document with the server's reason; the file it is in, None if no place takes it."""
        fields = {"collection": collection, "code": code, "message": redactor.redact(message)}
        row = msgspec.json.encode({**fields, "document": msgspec.Raw(text)}) + b"\n"
        with self._lock:
            for path in self._paths(f"rejects-{urllib.parse.quote(collection, safe='')}.jsonl"):
                try:
                    append_row(path, row, is_new=path not in self._begun)
                except OSError as error:
                    if path not in self._told:
                        log.warning("Refused documents cannot be written to %s: %s.", path, error.strerror)
                    self._told.add(path)
                else:
                    self._begun.add(path)
                    return path
        return None

    def forget(self, files: Iterable[Path]) -> None:
        """Remove an earlier run's files: the server takes their documents now."""
        for path in set(files) - self._begun:
            with contextlib.suppress(OSError):
                if path.is_file():  # --rejects may name a device
                    path.unlink()

    def _paths(self, name: str) -> Iterator[Path]:
        if self._chosen:
            yield self._chosen
        yield from (directory / name for directory in self._directories)
        with contextlib.suppress(OSError):
            yield self._private_directory / name

    @functools.cached_property
    def _private_directory(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="restore-rejects-"))  # others may write to TMPDIR, and must not read this


def append_row(path: Path, row: bytes, *, is_new: bool) -> None:
    """Write a line to the end of a file, or nothing of it. Raises OSError."""
    mode = os.O_TRUNC if is_new else os.O_APPEND
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o600), "ab", buffering=0) as file:
        before = file.tell() if file.seekable() else 0  # a pipe has no place
        try:
            left = memoryview(row)
            while left:
                left = left[file.write(left) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


@dataclass
class Batch:
    """What is known of the documents that one thread sends: those of this round, and how many were refused in all."""

    again: list[bytes] = field(default_factory=list)  # to be sent once more
    existing: list[bytes] = field(default_factory=list)  # their id is there already
    error: RequestError | None = None  # why some are sent once more
    unexpected: int = 0  # rounds with an unexpected error
    refused: int = 0


class CollectionWriter:
    """Inserts the documents of one collection, several batches in flight. Memory is bound by those batches."""

    def __init__(self, run: RestoreRun, outcome: Outcome) -> None:
        self._run = run
        self._api = run.api
        self._outcome = outcome
        self._throttle = run.throttle
        self._name = outcome.planned.target_name

    def run(self) -> None:
        """Send every document; errors end up in the outcome. Only a stop request is raised."""
        planned = self._outcome.planned
        self._run.report.start(self._name, planned.record.held, "writing")
        try:
            workers = self._run.choices.workers
            with kept_rows(self._run, planned) as kept, stoppable_pool(workers) as pool:
                lines = planned.lines(self._run.verified.snapshot)
                batches = make_batches(planned.to_send(document) for _, _, document in lines)
                self._send_all(pool, self._without(kept, batches) if kept else batches)
        except (BackupError, FormatError, OSError, sqlite3.Error) as error:
            self._outcome.error = describe_error(error)
            log.error("%s failed: %s", self._name, self._outcome.error, extra={"collection": self._name})
        else:
            if not self._outcome.rejected:
                self._run.rejects.forget(self._run.journal.rejected.get(self._name, ()))
        self._run.report.finish(self._name)
        log.info("%s: %s.", self._name, self._outcome.describe(), extra={"collection": self._name})

    def _without(self, kept: KeyStore, batches: Iterable[list[bytes]]) -> Iterator[list[bytes]]:
        """The batches without the rows that are there already, which stay as they are. None goes away as a whole."""
        for batch in batches:
            left = [text for text in batch if not kept.has(text)]
            self._outcome.count(already_there=len(batch) - len(left))
            self._run.report.advance(self._name, len(batch) - len(left))
            yield left

    def _send_all(self, pool: ThreadPoolExecutor, batches: Iterable[list[bytes]]) -> None:
        pending: set[Future[None]] = set()
        for number, batch in enumerate(batches):
            if self._run.journal.has(self._name, number):
                self._outcome.count(already_there=len(batch))
                self._run.report.advance(self._name, len(batch))
                continue
            while len(pending) > self._run.choices.workers:  # one more than are sent: the next is ready
                pending = await_some(pending)
            pending.add(pool.submit(self._send, number, batch))
        await_all(pending)

    def _send(self, number: int, documents: list[bytes]) -> None:
        """Insert a batch until each document is in, was there, or is rejected. May be called twice for a batch.

        One with a rejected document is not done: --resume sends it again, since the server may take it then.
        """
        batch, todo, rounds_in_vain = Batch(), documents, 0
        with self._throttle.slot():
            while todo and rounds_in_vain < MAX_ROUNDS:  # where all of them fail, `_insert` waits
                batch.again, batch.existing, batch.error = [], [], None
                self._insert(batch, todo)
                left = batch.again + self._settle_existing(batch)
                rounds_in_vain = rounds_in_vain + 1 if len(left) == len(todo) else 0
                todo = left
                if batch.error:
                    batch.unexpected += batch.error.unexpected
                    self._throttle.back_off()
                    stop_event.wait(random.uniform(0.1, 0.6))  # noqa: S311  (no secret)
            if todo and batch.error:
                raise batch.error
            for text in todo:
                self._reject(batch, text, "UNSETTLED", "the server says now that it is there and now that it is not")
        if not batch.refused:
            self._run.journal.done(self._name, number)
        self._run.report.advance(self._name, len(documents))

    def _insert(self, batch: Batch, texts: list[bytes]) -> None:
        """Insert once, patiently. What the server refuses as a whole is halved until the bad document is alone."""
        body = b'{"documents":[%b],"options":{"ordered":false,"returnDocumentResponses":true}}' % b",".join(texts)
        try:
            errors = self._api.call(
                "insertMany",
                body,
                self._name,
                read=lambda reply: reply_errors(self._api, self._name, reply, len(texts)),
                on_retry=self._throttle.back_off,
            )
        except RequestError as error:
            is_of_the_documents = not error.retryable and error.status in (200, 413)
            if not is_of_the_documents or error.code == "UNKNOWN_COLLECTION_OR_TABLE":
                raise
            if len(texts) == 1:
                self._reject(batch, texts[0], error.code or f"HTTP {error.status}", error.message)
                return
            middle = len(texts) // 2
            self._insert(batch, texts[:middle])
            self._insert(batch, texts[middle:])
        else:
            self._sort_out(batch, texts, errors)

    def _sort_out(self, batch: Batch, texts: list[bytes], errors: list[RequestError | None]) -> None:
        """What became of each document. In the end those with an unexpected error are rejected, not sent again."""
        is_last = batch.unexpected >= Patience.UNEXPECTED_ATTEMPTS - 1
        for text, error in zip(texts, errors, strict=True):
            if error is None:
                continue
            if error.code == "DOCUMENT_ALREADY_EXISTS":
                batch.existing.append(text)
            elif error.code == "UNKNOWN_COLLECTION_OR_TABLE" and not error.retryable:
                raise error
            elif not is_last if error.unexpected else error.retryable:
                batch.again.append(text)
                batch.error = error if batch.error is None or error.unexpected else batch.error
            else:
                self._reject(batch, text, str(error.code), error.detail)
        self._outcome.count(inserted=errors.count(None))

    def _settle_existing(self, batch: Batch) -> list[bytes]:
        """Read back what is there already: equal is done, different is replaced or kept. Returns what is gone again."""
        there, as_found = find_by_ids(self._api, self._name, batch.existing), self._outcome.planned.as_found
        gone = []
        for text in batch.existing:
            document_id, wanted = as_found(text)
            found = there.get(key_of(document_id))
            if found is None:
                gone.append(text)
            elif same_document(wanted, as_found(found)[1]):
                self._outcome.count(already_there=1)
            elif self._run.choices.on_existing is OnExisting.OVERWRITE:
                self._replace(batch, text)  # otherwise it is kept, and the comparison names it
        return gone

    def _reject(self, batch: Batch, text: bytes, code: str, message: str) -> None:
        file = self._run.rejects.add(self._name, text, code, message)
        if file is None:
            shown = self._outcome.planned.as_found(text)[0].decode()
            log.error("%s: no place takes the refused document %s: %s: %s", self._name, shown, code, message)
        self._run.journal.reject(self._name, file)
        self._outcome.reject(file)
        batch.refused += 1

    def _replace(self, batch: Batch, text: bytes) -> None:
        """The snapshot's version takes the place of the target's."""
        body = b'{"filter":{"_id":%b},"replacement":%b,"projection":{"_id":1},"options":{"upsert":true}}' % (
            Document.parse(text).id,
            text,
        )
        try:
            self._api.call("findOneAndReplace", body, self._name, read=_ignore_reply, on_retry=self._throttle.back_off)
        except RequestError as error:
            if error.retryable or error.status != 200 or error.code == "UNKNOWN_COLLECTION_OR_TABLE":
                raise
            self._reject(batch, text, str(error.code), error.message)
        else:
            self._outcome.count(replaced=1)


def make_batches(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Group documents so that no group has more than 100 documents or 4 MB (one document may have more)."""
    return in_groups(
        texts, lambda text: len(text) + 1, MAX_BATCH_DOCUMENTS, MAX_BATCH_BYTES + 1
    )  # the last has no comma


class DocumentResponse(msgspec.Struct):
    """What an insertMany did with one document; its `_id` is not decoded: it may be a number that no float holds."""

    status: str | None = None
    errorsIdx: int | None = None  # noqa: N815  (the server's name)


class InsertStatus(msgspec.Struct):
    """The `status` of an insertMany reply; None: the request was refused as a whole."""

    documentResponses: list[DocumentResponse] | None = None  # noqa: N815  (the server's name)


_insert_decoder = msgspec.json.Decoder(InsertStatus)  # made before there are threads


def reply_errors(api: DataApi, collection: str, reply: Reply, count: int) -> list[RequestError | None]:
    """For each document of an insertMany None or its error. Raises RequestError where all of them may pass later."""
    try:
        responses = _insert_decoder.decode(reply.status).documentResponses
    except msgspec.DecodeError as error:
        raise _unclear(str(error)) from error
    if responses is None and reply.errors:
        raise api.request_error(reply.errors[0], "insertMany", collection)
    if responses is None or len(responses) != count:
        raise _unclear(f"{len(responses or ())} results for {count} documents")
    found = [None if row.status == "OK" else _response_error(api, collection, reply, row) for row in responses]
    if (first := found[0]) and all(error and error.retryable and not error.unexpected for error in found):
        raise RequestError(f"{first.message} So it was for each document.", retryable=True, status=200)
    return found


def _unclear(reason: str) -> RequestError:
    return RequestError(f"The reply to insertMany is not clear: {reason}.", retryable=True, unexpected=True, status=200)


def _response_error(api: DataApi, collection: str, reply: Reply, response: DocumentResponse) -> RequestError:
    index = response.errorsIdx
    if index is not None and 0 <= index < len(reply.errors):
        return api.request_error(reply.errors[index], "insertMany", collection)
    code = "FAILED_WRITE_REQUEST"  # to be sent again
    message = f"insertMany on {collection} failed with {code}: skipped by the server"
    return RequestError(message, status=200, code=code, retryable=True)


def find_by_ids(api: DataApi, collection: str, texts: list[bytes]) -> dict[bytes, bytes]:
    """The target's documents with the ids of `texts`, by `key_of`: no more than a batch has, as many as `$in` takes."""
    found: dict[bytes, bytes] = {}
    chosen = b'{"_id":{"$in":[%b]}}' % b",".join(Document.parse(text).id for text in texts)
    for page in api.pages(Readable(collection), filter_json=chosen) if texts else ():
        found.update(zip(page.keys, map(bytes, page.documents), strict=True))
    return found


# ======================================================================================================================
# Compare
# ======================================================================================================================


KINDS = ("missing", "different", "extra")
Digest = Callable[[bytes], bytes]


@dataclass
class Comparison:
    """How a target differs from the snapshot; the ids are JSON texts, of the first of each kind."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    first: dict[str, str] = field(default_factory=dict)
    definition: list[str] = field(default_factory=list)

    def add(self, kind: str, document_id: str) -> None:
        """Count a difference."""
        self.counts[kind] += 1
        self.first.setdefault(kind, document_id)

    def describe(self) -> str:
        """The differences in words; empty where there are none."""
        parts = [f"the definition: {difference}" for difference in self.definition]
        parts += [f"{self.counts[kind]:,} {kind} (first: {self.first[kind]})" for kind in KINDS if self.counts[kind]]
        return ", ".join(parts)


class KeyStore:
    """Keys of documents, each with a digest of its text, in a temporary database: memory is flat. The sink of a scan.

    Thread-safe. The database is closed when nobody has the store any more.
    """

    def __init__(self, directory: str, planned: PlannedCollection, digest: Digest) -> None:
        self._planned, self._digest = planned, digest
        self._lock = threading.Lock()
        self._path = f"{directory}/{secrets.token_hex(8)}"
        self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE documents (key BLOB, digest BLOB, id BLOB)")
        self._database.execute("BEGIN")
        self.is_abandoned = False

    def write(self, documents: Iterable[msgspec.Raw]) -> None:
        """Note documents of the target."""
        self.add(self._planned.as_found(bytes(document)) for document in documents)

    def abandon(self) -> None:
        """What was noted will not be looked at; who reads for it may stop."""
        self.is_abandoned = True

    def add(self, documents: Iterable[tuple[bytes, bytes]]) -> int:
        """Note documents: each one's id, as compact JSON text, and text. Returns how many they were."""
        rows = []
        for document_id, text in documents:
            key = self._planned.key_of(document_id)
            rows.append((key, self._digest(text), None if key == document_id else document_id))
        with self._lock:
            self._database.executemany("INSERT INTO documents VALUES (?, ?, ?)", rows)
        return len(rows)

    def sort(self) -> None:
        """Everything was noted: it is going to be asked for key by key."""
        self._database.execute("CREATE INDEX keys ON documents (key)")

    def has(self, document: bytes) -> bool:
        """Whether a document of that key was noted."""
        key = self._planned.key_of(self._planned.as_found(document)[0])
        with self._lock:
            return self._database.execute("SELECT 1 FROM documents WHERE key = ?", (key,)).fetchone() is not None

    def differences(self, found: KeyStore) -> Iterator[tuple[str, bytes]]:
        """(kind, id) of each difference between the snapshot and what was `found`; of one key the last counts."""
        for store in (self, found):
            store._database.execute("COMMIT")
        self._database.execute("ATTACH ? AS found", (os.fsencode(found._path),))  # TMPDIR may be any bytes
        rows = self._database.execute(
            "SELECT key, 0, rowid, digest, coalesce(id, key) FROM main.documents"
            " UNION ALL SELECT key, 1, rowid, digest, coalesce(id, key) FROM found.documents ORDER BY 1, 2, 3"
        )
        for _, of_key in itertools.groupby(rows, lambda row: row[0]):
            last: dict[int, tuple[bytes, bytes]] = {}
            for _, side, _, digest, document_id in of_key:
                if side == 0 and last:  # a decimal has lost its scale
                    yield "missing", b'"of a key that the target takes for that of another row"'
                last[side] = digest, document_id
            if len(last) == 1:
                yield ("missing", last[0][1]) if 0 in last else ("extra", last[1][1])
            elif last[0][0] != last[1][0]:
                yield "different", last[0][1]


def compare_collection(run: RestoreRun, planned: PlannedCollection, differences: IO[str] | None = None) -> Comparison:
    """Scan the target once and compare with the snapshot, by text; where texts differ, once more by value.

    Another server may write the same number in another way: that is no difference. All differences go to a file, too.
    """
    comparison = _compare(run, planned, text_digest, None)
    if comparison.counts["different"] or (differences and any(comparison.counts.values())):
        comparison = _compare(run, planned, value_digest, differences)
    return comparison


def _compare(run: RestoreRun, planned: PlannedCollection, digest: Digest, differences: IO[str] | None) -> Comparison:
    """Read the snapshot in a thread while the target is scanned."""
    name, expected = planned.target_name, planned.record.held
    progress = ScanProgress(partial(run.report.start, name, expected, "comparing"), partial(run.report.advance, name))
    comparison = Comparison()
    with tempfile.TemporaryDirectory(prefix="restore-compare-", ignore_cleanup_errors=True) as directory:
        new_store = partial(KeyStore, directory, planned, digest)
        wanted = new_store()
        with stoppable_pool(1) as pool:
            reading = pool.submit(_note_snapshot, run, planned, wanted)
            try:
                if planned.exists:
                    found = run.requests.scan(planned.source(run.api), new_store, progress, expected)
                else:
                    progress.restart()
                    found = new_store()
                await_all([reading])
            finally:
                wanted.abandon()
        for kind, document_id in wanted.differences(found):
            id_text = document_id.decode(errors="replace")
            comparison.add(kind, id_text)
            if differences:
                differences.write(f'{{"collection": {json.dumps(name)}, "kind": "{kind}", "id": {id_text}}}\n')
        if differences:
            differences.flush()
    run.report.finish(name)
    return comparison


def _note_snapshot(run: RestoreRun, planned: PlannedCollection, store: KeyStore) -> None:
    """Note the documents of a data file as they were to be sent."""
    lines = planned.lines(run.verified.snapshot)
    documents = ((planned.id_in(line, document), planned.to_compare(line, document)) for line, _, document in lines)
    while not store.is_abandoned and store.add(itertools.islice(documents, MAX_BATCH_DOCUMENTS)):
        pass


def same_document(one: bytes, other: bytes) -> bool:
    """Whether two documents are the same, with the same digits and the same vector form."""
    return one == other or value_digest(one) == value_digest(other)


def text_digest(text: bytes) -> bytes:
    """A digest of a document's text."""
    return hashlib.sha256(text).digest()


def value_digest(text: bytes) -> bytes:
    """A digest of a document's value: `1E+2` and `100.0` are the same number; keys may come in any order.

    Raises FormatError for one that is nested deeper than any document can be.
    """
    try:
        value = json.loads(text, parse_float=plain_number, parse_int=plain_number)
        plain = repr(_sorted_value(value))
    except (RecursionError, ValueError) as error:
        raise FormatError(f"a document that cannot be compared: {error}") from error
    return hashlib.sha256(plain.encode(errors="surrogatepass")).digest()


def _sorted_value(value: Any) -> Any:
    """The value with its keys in order; numbers are tuples already, which nothing else becomes."""
    if isinstance(value, dict):
        return {key: _sorted_value(value[key]) for key in sorted(value)}
    return [_sorted_value(item) for item in value] if isinstance(value, list) else value


# ======================================================================================================================
# Restore
# ======================================================================================================================


@dataclass(frozen=True)
class RestoreRun:
    """What the steps of one restore share. What only reads has no journal."""

    verified: Verified
    api: DataApi
    choices: Choices
    report: Report
    options: dict[str, Any]  # of the command line
    journal: Journal = field(default_factory=lambda: Journal(None, {}, resume=False))
    changes: Changes = field(default_factory=Changes)
    started: float = field(default_factory=time.monotonic)

    @functools.cached_property
    def rejects(self) -> Rejects:
        """Where refused documents go."""
        directories = [self.verified.snapshot.path.absolute().parent, self.options["output_dir"].absolute()]
        return Rejects(self.options["rejects"] and self.options["rejects"].absolute(), directories)

    @functools.cached_property
    def requests(self) -> Requests:
        """The requests in flight while the target is scanned."""
        return Requests(self.api, self.choices.workers)

    @functools.cached_property
    def throttle(self) -> Throttle:
        """How many requests may be on their way at once."""
        return Throttle(self.choices.workers)


def write_collections(run: RestoreRun, plan: list[PlannedCollection]) -> list[Outcome]:
    """Create what is missing and insert the documents; what fails stands in the outcomes."""
    create_collections(run, plan)
    run.report.stage({planned.target_name: planned.record.held for planned in plan})
    outcomes = [Outcome(planned) for planned in plan]
    for outcome in outcomes:
        CollectionWriter(run, outcome).run()
        outcome.planned.exists = True
        if isinstance(outcome.planned, PlannedTable) and not outcome.error:
            complete_table(run, outcome.planned, outcome)
    return outcomes


def compare_outcomes(
    run: RestoreRun, outcomes: list[Outcome], differences: IO[str] | None = None, existing: Existing | None = None
) -> None:
    """Compare several collections at once; one at a time where differences are written down.

    `existing`: what the target has, where definitions are to be compared, too.
    """
    workers = 1 if differences else run.choices.workers
    run.report.stage({each.planned.target_name: each.planned.record.held for each in outcomes})
    in_threads(lambda outcome: _compare_outcome(run, outcome, differences, existing), outcomes, workers)


def _compare_outcome(run: RestoreRun, outcome: Outcome, differences: IO[str] | None, existing: Existing | None) -> None:
    name = outcome.planned.target_name
    try:
        outcome.comparison = compare_collection(run, outcome.planned, differences)
        if existing:
            outcome.comparison.definition = find_differences(run.api, outcome.planned, existing)
        found = outcome.comparison.describe() or equal_text(is_less=bool(outcome.planned.losses))
        log.info("%s: compared with the snapshot: %s.", name, found, extra={"collection": name})
    except (BackupError, FormatError, OSError, sqlite3.Error) as error:
        files = "the file of --differences, or " * bool(differences)
        where = f" ({files}a temporary one: TMPDIR says where they go)" * isinstance(error, (OSError, sqlite3.Error))
        is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        reason = os.strerror(errno.ENOSPC) if is_full else describe_error(error)
        outcome.error = outcome.error or f"the comparison failed: {reason}{where}"
        log.error("%s: %s", name, outcome.error, extra={"collection": name})


def is_different(outcome: Outcome) -> bool:
    """Whether the target is not what the snapshot says; documents that were there before are no difference."""
    found = outcome.comparison or Comparison()
    has_extra = found.counts["extra"] and not outcome.planned.keeps_documents
    return bool(found.definition or found.counts["missing"] or found.counts["different"] or has_extra)


def exit_code(outcomes: list[Outcome]) -> RestoreExit:
    """The exit code for what became of the collections."""
    if any(outcome.error is not None or outcome.rejected for outcome in outcomes):
        return RestoreExit.INCOMPLETE
    return RestoreExit.DIFFERENT if any(map(is_different, outcomes)) else RestoreExit.OK


# ======================================================================================================================
# Drill
# ======================================================================================================================

NEIGHBOURS = 10
DRILL_QUERIES = 5
MIN_RECALL = 0.8


def run_drill(run: RestoreRun, steps: dict[str, float]) -> tuple[list[Outcome], dict[str, float]]:
    """Restore into scratch collections, compare, ask for neighbours, drop them again. Adds the seconds of each step.

    Returns the outcome of each collection, and the recall of each that has vectors, by its name in the snapshot.
    The scratch collections are dropped whatever happens; their names are new, so nothing else can be.
    """
    taken = Existing.read(run.api, has_tables=False).infos
    prefix = next(
        p for p in iter(lambda: f"drill_{secrets.token_hex(4)}_", "") if not any(n.startswith(p) for n in taken)
    )
    records = select_records(run.verified, run.choices)
    renames = {record.name: f"{prefix}{number}" for number, record in enumerate(records)}
    vectorize = Vectorize.KEEP_VECTORS if run.choices.vectorize is Vectorize.FAIL else run.choices.vectorize
    choices = dataclasses.replace(run.choices, vectorize=vectorize, renames=renames, on_existing=OnExisting.FAIL)
    run = dataclasses.replace(with_writing(run), choices=choices)
    try:
        with timed(steps, "plan"):
            plan = make_plan(run)
        with timed(steps, "create and write"):
            outcomes = write_collections(run, plan)
        with timed(steps, "compare"):
            compare_outcomes(run, outcomes)
        with timed(steps, "neighbours"):
            recalls = {p.record.name: found for p in plan if (found := measure_recall(run, p)) is not None}
    except RestoreBrokeOff as error:
        raise error.reason or error from error  # what it says that stays may be gone in a moment
    finally:
        with timed(steps, "drop"):
            _clean_up(run, sorted(renames.values()))
    return outcomes, recalls


class ScratchStays(BackupError):
    """A drill could not take away what it made."""

    exit_code = RestoreExit.INCOMPLETE

    def __init__(self, names: Iterable[str], *, is_sure: bool, failed: BaseException | None = None) -> None:
        stay = "stay" if is_sure else "may be there"
        why = f"{failed.message} " if isinstance(failed, BackupError) else ""
        super().__init__(f"{why}The drill's scratch collections {stay}: {', '.join(names)}.", "Drop them by hand.")


def _clean_up(run: RestoreRun, names: list[str]) -> None:
    """Drop the scratch collections, in a thread, which no signal ends. Raises ScratchStays, in time after a signal."""
    cleaner = DataApi(run.api.target, WRITE_COMMANDS, threading.Event())
    cleaning = ThreadPoolExecutor(1).submit(_drop_scratch, cleaner, names, run.changes, sys.exception())
    stopped: SystemExit | None = None
    while True:
        try:
            cleaning.result(CLEANING_S if stop_event.is_set() else None)
            break
        except TimeoutError as error:
            raise ScratchStays(names, is_sure=False) from error
        except SystemExit as error:  # the signal came just now
            stopped = error
    (log.warning if stop_event.is_set() else log.info)("All scratch collections were dropped.")
    if stopped:
        raise stopped


def _drop_scratch(api: DataApi, names: list[str], changes: Changes, failed: BaseException | None) -> None:
    """Drop the scratch collections and tables that are there, and the types that were made. Raises ScratchStays.

    `failed`: what ended the drill before.
    """
    there = _names(api, changes)
    for name in names if there is None else sorted(there.intersection(names)):
        with contextlib.suppress(BackupError):
            drop(api, name, is_table=name in changes.tables)
    there = _names(api, changes)
    if left := names if there is None else sorted(there.intersection(names)):
        raise ScratchStays(left, is_sure=there is not None, failed=failed)
    drop_types(api, changes)
    if changes.types:
        raise ScratchStays((f"the type {name}" for name in changes.types), is_sure=False, failed=failed)


def drill_exit_code(outcomes: list[Outcome], recalls: dict[str, float]) -> RestoreExit:
    """As for a restore; neighbours that are not found are a difference."""
    code = exit_code(outcomes)
    is_poor = any(recall < MIN_RECALL for recall in recalls.values())
    return RestoreExit.DIFFERENT if code is RestoreExit.OK and is_poor else code


@contextlib.contextmanager
def timed(steps: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that a step takes."""
    started = time.monotonic()
    try:
        yield
    finally:
        steps[name] = round(time.monotonic() - started, 3)


def measure_recall(run: RestoreRun, planned: PlannedCollection) -> float | None:
    """Which part of the nearest neighbours, found by brute force in the snapshot, the server finds too.

    The poorest of several columns; None where no vectors are searched. Memory is flat: the snapshot is read thrice.
    """
    recalls = []
    for column, metric in planned.vector_columns():
        count = sum(1 for _ in snapshot_vectors(run, planned, column))
        vectors = (vector for _, vector in snapshot_vectors(run, planned, column))
        queries = list(itertools.islice(vectors, 0, None, max(1, count // DRILL_QUERIES)))[:DRILL_QUERIES]
        if queries:
            nearest = brute_force_neighbours(snapshot_vectors(run, planned, column), queries, metric)
            found = [server_neighbours(run.api, planned, column, query) for query in queries]
            hits = [len(ours & theirs) / min(NEIGHBOURS, count) for ours, theirs in zip(nearest, found, strict=True)]
            recalls.append(min(1.0, sum(hits) / len(hits)))
    return min(recalls, default=None)


def snapshot_vectors(run: RestoreRun, planned: PlannedCollection, column: str) -> Iterator[tuple[bytes, list[float]]]:
    """(key, vector) of each document that has a vector in that column, as long as the index wants it."""
    of = planned.options["columns"].get(column, {}) if planned.is_table else planned.options["vector"]
    for line, members, document in planned.lines(run.verified.snapshot):
        value = members.get(column, b"")
        with contextlib.suppress(msgspec.DecodeError):  # no array, or with numbers beyond any float: none is searched
            vector = msgspec.json.decode(value, type=list[float])
            if len(vector) == of.get("dimension", len(vector)):
                yield planned.key_of(planned.id_in(line, document)), vector


def server_neighbours(api: DataApi, planned: PlannedCollection, column: str, query: list[float]) -> set[bytes]:
    """The keys of the documents that the server takes for the nearest."""
    source = planned.keys_only()
    body = b'{"sort":%b,"projection":%b,"options":{"limit":%d}}' % (
        json.dumps({column: query}).encode(),
        source.projection,
        NEIGHBOURS,
    )
    found = api.call("find", body, source.name, read=lambda reply: reply.page(source))
    return set(map(planned.key_of, found.keys))


def brute_force_neighbours(
    vectors: Iterator[tuple[bytes, list[float]]], queries: list[list[float]], metric: str
) -> list[set[bytes]]:
    """For each query the keys of its nearest documents; those as near as the last of them belong to them."""
    import numpy

    wanted = numpy.array(queries)
    best: list[list[tuple[float, bytes]]] = [[] for _ in queries]
    while chunk := list(itertools.islice(vectors, 1000)):
        scores = similarities(wanted, numpy.array([vector for _, vector in chunk]), metric)
        for row, kept in zip(scores, best, strict=True):
            kept += [(float(score), key) for score, (key, _) in zip(row, chunk, strict=True)]
            kept.sort(key=lambda item: -item[0])
            del kept[5 * NEIGHBOURS :]
    nearest = []
    for kept in best:
        limit = kept[min(NEIGHBOURS, len(kept)) - 1][0] - 1e-6
        nearest.append({key for score, key in kept if score >= limit})
    return nearest


def similarities(queries: Any, vectors: Any, metric: str) -> Any:
    """How near each vector is to each query: greater is nearer. In 64 bits, since products of 32 bits may not fit."""
    import numpy

    if metric == "euclidean":
        return -numpy.linalg.norm(queries[:, None, :] - vectors[None, :, :], axis=2)
    products = queries @ vectors.T
    if metric == "cosine":
        lengths = numpy.linalg.norm(queries, axis=1)[:, None] * numpy.linalg.norm(vectors, axis=1)[None, :]
        products = products / numpy.maximum(lengths, 1e-30)
    return products


# ======================================================================================================================
# Command line
# ======================================================================================================================


_SNAPSHOT, _MODE, _TARGET = "Which snapshot", "What to do instead", "What to restore"
_FILE = click.Path(path_type=Path)
_IDENTITY = "Decrypt with this age identity or SSH private key. Repeatable."
_SOURCE = "`latest` and --list: only of this keyspace or database. Given twice, both must match."
_BOTH = "Documents with $vector and $vectorize: fail, keep-vectors or recompute."
_EXISTING = "Collections that hold documents: fail, skip, overwrite or drop."
_EXISTING_CHOICES = click.Choice([choice.value for choice in OnExisting])
_BOTH_CHOICES = click.Choice([choice.value for choice in Vectorize])


@command
@click.argument("snapshot", default="latest")
@option(_SNAPSHOT, "--from-box", "Take it from Box.", is_flag=True)
@option(_SNAPSHOT, "--source KEYSPACE|URL", _SOURCE, dest="sources", multiple=True)
@option(_SNAPSHOT, "--force-incomplete", "Use an INCOMPLETE snapshot's good collections.", is_flag=True)
@option(_SNAPSHOT, "--identity FILE", _IDENTITY, "BACKUP_IDENTITY_FILE", multiple=True, type=_FILE)
@option(_SNAPSHOT, "--keep-download", "With --from-box: keep the zip in --output-dir.", is_flag=True)
@option(_MODE, "--list", "List the snapshots there are, newest first.", dest="show_list", is_flag=True)
@option(_MODE, "--verify-only", "Check the snapshot; needs no credentials.", is_flag=True)
@option(_MODE, "--dry-run", "Do everything but write; print the plan.", is_flag=True)
@option(_MODE, "--compare", "Compare the target with the snapshot.", dest="compare_only", is_flag=True)
@option(_MODE, "--drill", "Restore into scratch collections, compare, drop them.", is_flag=True)
@option(_MODE, "--show ID", "Print a document of the snapshot.")
@option(_TARGET, "--collection NAME", "Only this collection or table. Repeatable.", dest="collections", multiple=True)
@option(_TARGET, "--rename OLD=NEW", "Restore under another name. Repeatable.", dest="renames", multiple=True)
@option(_TARGET, "--on-existing HOW", _EXISTING, type=_EXISTING_CHOICES, default="fail")
@option(_TARGET, "--vectorize HOW", _BOTH, type=_BOTH_CHOICES, default="fail")
@option(_TARGET, "-y, --yes", "Do not ask for confirmation.", is_flag=True)
@option(_TARGET, "--resume", "Continue a restore that was interrupted.", is_flag=True)
@connection_options
@option(RARE, "--vectorize-text-field NAME", "With keep-vectors: the field that takes the text.")
@option(RARE, "--without-vectorize-service", "Create collections without embedding services.", is_flag=True)
@option(RARE, "--without-lexical", "Create collections without lexical search.", is_flag=True)
@option(RARE, "--without-rerank", "Create collections without rerankers.", is_flag=True)
@option(RARE, "--allow-lossy-tables", "Restore tables that cannot come back as they were.", is_flag=True)
@option(RARE, "--differences FILE", "Write a line for each difference.", type=_FILE)
@option(RARE, "--rejects FILE", "Where to write refused documents.", type=_FILE)
@option(RARE, "--journal FILE", "Where to note what is done.", type=_FILE)
def main(snapshot: str, **options: Any) -> int:
    """Restore SNAPSHOT: a directory, a zip, a snapshot's name, or `latest` (the default).

    All of the snapshot is verified and the plan is checked against the target before anything is written. At the end
    the target is compared with the snapshot.

    \b
    Examples:
      python restore.py --list                                  what there is
      python restore.py --verify-only                           is it whole?
      python restore.py --dry-run --keyspace scratch            what would happen
      python restore.py 20260616_085246                         restore that one
      python restore.py --from-box --drill --keyspace scratch   prove a restore
    """  # noqa: D301  (\b is click's mark for a paragraph that is not wrapped)
    choices = read_choices(options)
    if options["sources"] and not options["show_list"] and snapshot != "latest":
        raise BackupError("--source goes with `latest` or --list: a named snapshot needs none.", "Nothing was touched.")
    return list_snapshots(options) if options["show_list"] else run_on_snapshot(snapshot, choices, options)


def open_with_keys(path: Path, key_files: Iterable[KeyFile], options: dict[str, Any]) -> Snapshot:
    """Open a snapshot with the identities that it needs. Its manifest is let go of: the largest one takes 300 MB."""
    is_hidden = options["from_box"] and not options["keep_download"]  # and goes again
    opened = ZipSnapshot(path, f"{path.name[1:]} in Box") if is_hidden else open_snapshot(path)
    manifest = read_manifest(opened)
    if needs_clear(options):
        refuse_locked(opened.label, manifest)
    opened.identities = unlock(key_files) if manifest.encryption else ()
    return opened


def run_on_snapshot(snapshot: str, choices: Choices, options: dict[str, Any]) -> int:
    """Fetch and verify a snapshot, and do with it what was chosen. Returns the exit code."""
    started = time.monotonic()
    needs_target = not options["verify_only"] and options["show"] is None
    with Report(quiet=options["verbosity"] == "quiet") as report:
        # What is wrong with the endpoint or a key is told before a download and a verification that may take hours.
        key_files = read_identity_files(options["identity"])
        api = DataApi(make_target(options), DataApi.READ_COMMANDS, stop_event) if needs_target else None
        if options["rejects"]:
            check_rejects_file(options["rejects"])
        steps: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            with timed(steps, "fetch"):
                path = stack.enter_context(fetched_snapshot(snapshot, options, report))
            opened = open_with_keys(path, key_files, options)
            if options["show"] is not None:
                return show_document(opened, options["show"], choices)
            with timed(steps, "verify"):
                is_forced, workers = options["force_incomplete"], choices.workers
                verified = verify_snapshot(opened, force_incomplete=is_forced, workers=workers, report=report)
            select_records(verified, choices)
            if api is None:
                return _print_verified(verified, time.monotonic() - started, as_json=options["as_json"])
            run = RestoreRun(verified, api, choices, report, options)
            if options["drill"]:
                return _print_drill(run, *run_drill(run, steps), steps)
            return run_compare(run) if options["compare_only"] else run_restore(run)


MODES = {
    "show_list": "--list",
    "verify_only": "--verify-only",
    "show": "--show",
    "dry_run": "--dry-run",
    "compare_only": "--compare",
    "drill": "--drill",
    "resume": "--resume",
}


def read_choices(options: dict[str, Any]) -> Choices:
    """The operator's choices. Raises BackupError for combinations that make no sense."""
    vectorize = Vectorize(options["vectorize"])
    modes = [MODES[name] for name in MODES if options[name] not in (False, None)]
    wrong = {
        "--vectorize-text-field goes with --vectorize keep-vectors": options["vectorize_text_field"]
        and vectorize is not Vectorize.KEEP_VECTORS,
        "--without-vectorize-service leaves nothing that could recompute vectors": options["without_vectorize_service"]
        and vectorize is Vectorize.RECOMPUTE,
        "--compare and --drill leave what exists alone: no --on-existing": (options["compare_only"] or options["drill"])
        and options["on_existing"] != "fail",
        "--differences goes with --compare, or with a restore": options["differences"]
        and set(modes) - {"--compare", "--resume"},
        "--rejects goes with a restore, or with --drill": options["rejects"] and set(modes) - {"--drill", "--resume"},
        "--keep-download goes with --from-box": options["keep_download"] and not options["from_box"],
        "--drill chooses its own names: no --rename": options["drill"] and options["renames"],
        f"{' and '.join(modes)} cannot be combined": len(modes) > 1,
        "--vectorize-text-field must be an ordinary field name": (options["vectorize_text_field"] or "x").startswith(
            "$"
        )
        or options["vectorize_text_field"] in ("", "_id"),
    }
    if mistakes := [message for message, is_wrong in wrong.items() if is_wrong]:
        raise BackupError(f"{mistakes[0]}.", "Nothing was touched.")
    chosen = {each.name: options[each.name] for each in dataclasses.fields(Choices)}
    chosen |= {"renames": read_renames(options["renames"]), "on_existing": OnExisting(options["on_existing"])}
    return Choices(**chosen | {"vectorize": vectorize})


def read_renames(renames: tuple[str, ...]) -> dict[str, str]:
    """OLD=NEW, as a dictionary. Raises BackupError for what is none."""
    found: dict[str, str] = {}
    for rename in renames:
        old, equals, new = rename.partition("=")
        if not old or not equals or not re.fullmatch(r"[A-Za-z0-9_]{1,48}", new):
            raise BackupError(
                f"--rename {rename!r} is not OLD=NEW.",
                f"Write it as --rename {old or 'OLD'}=NEW_NAME. A name has 1 to 48 letters, digits and underscores.",
            )
        if old in found:
            raise BackupError(f"--rename names {old} twice.", "Give one new name.")
        found[old] = new
    return found


def run_restore(run: RestoreRun) -> int:
    """Plan, show, ask, carry out, compare, print. Returns the exit code."""
    options = run.options
    if not options["dry_run"]:
        run = dataclasses.replace(run, journal=open_journal(run))
    journal = run.journal
    if options["resume"] and not journal.begun:
        log.warning("There is nothing to resume in %s. Comparing, since the restore may have ended.", journal.path)
        if (ended := finish_ended(run)) is not None:
            return _print_outcomes(run, ended, RestoreExit.OK)
        log.warning(
            "The target does not hold the whole snapshot; starting from the beginning."
            " If that is refused, --on-existing skip completes what is there."
        )
    plan = make_plan(run)
    if run.choices.vectorize_text_field:
        _check_text_field(run.verified, plan, run.choices.vectorize_text_field)
    rows = [planned.describe() for planned in plan]
    if options["dry_run"]:
        return _print_plan(run, rows)
    log.info("Plan: %s:\n  %s", route_text(run), "\n  ".join(rows) or "nothing")
    run.report.end_bars()
    ask_first(run, plan, yes=options["yes"] or bool(journal.begun))
    outcomes = carry_out(run, plan)
    code = exit_code(outcomes)
    if code is not RestoreExit.INCOMPLETE:
        journal.remove()
    elif journal.is_kept:
        log.warning("Continue with the same command and --resume: it sends what failed or was refused again.")
    else:
        log.warning("Continue with the same command and --on-existing skip.")
    return _print_outcomes(run, outcomes, code)


def carry_out(run: RestoreRun, plan: list[PlannedCollection]) -> list[Outcome]:
    """Restore what was planned, with a journal. From here on the target is written to."""
    with differences_file(run.options["differences"]) as differences:
        try:
            run.journal.open()
        except OSError as error:
            if path := run.options["journal"]:
                raise BackupError(f"Cannot write {path}: {error.strerror}.", "Give another --journal.") from error
            log.warning("No journal can be kept (%s); --journal FILE names another place.", error.strerror)
        try:
            writing = with_writing(run)
            outcomes = write_collections(writing, plan)
            compare_outcomes(writing, outcomes, differences)
            return outcomes
        except SystemExit:
            how = "--resume" if run.journal.is_kept else "--on-existing skip"
            left = "" if run.changes.is_over else run.changes.describe()
            log.warning("Interrupted.%s Continue with the same command and %s.", f" {left}." if left else "", how)
            raise
        except Exception as error:
            if run.changes.is_over:
                names = ", ".join(planned.target_name for planned in plan)
                raise RestoreBrokeOff(f"{describe_error(error)}. Written to, and not finished: {names}.") from error
            if not isinstance(error, RestoreBrokeOff) and not run.options["resume"]:  # nothing was written
                run.journal.remove()
            raise


def with_writing(run: RestoreRun) -> RestoreRun:
    """The run with a way to the target that may write."""
    return dataclasses.replace(run, api=DataApi(run.api.target, WRITE_COMMANDS, stop_event))


def check_rejects_file(path: Path) -> None:
    """Raise BackupError if a file cannot be written; one that is not there yet is not left behind."""
    is_new = not os.path.lexists(path)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        if is_new:
            path.unlink()
    except OSError as error:
        raise BackupError(f"Cannot write {path}: {error.strerror}.", "Give another --rejects.") from error


def finish_ended(run: RestoreRun) -> list[Outcome] | None:
    """The outcomes of a restore that was killed after it had ended, when its journal was gone; None if it had not.

    Makes the indexes that collections may lack, however equal their documents are.
    """
    there = Existing.read(run.api, has_tables=False).infos
    if not all(run.choices.target_name(record.name) in there for record in select_records(run.verified, run.choices)):
        return None
    outcomes = compare_target(run)
    if exit_code(outcomes) is not RestoreExit.OK:
        return None
    plan = [outcome.planned for outcome in outcomes]
    for planned in plan:
        planned.is_resumed = True
    ask_first(run, plan, yes=run.options["yes"])
    create_collections(with_writing(run), plan)
    return outcomes


def _check_text_field(verified: Verified, plan: list[PlannedCollection], name: str) -> None:
    """The field that is to take the texts must be free in each document that has one. Raises BackupError."""
    for planned in plan:
        if not planned.stats.vectorize_count:
            continue
        for line, members, document in verified.snapshot.lines(planned.record):
            if members.has_vectorize and name in msgspec.json.decode(line, type=dict[str, msgspec.Raw]):
                raise BackupError(
                    f"{planned.record.name}: the document {document.id.decode()} has a field {name!r} already.",
                    "Choose another name for --vectorize-text-field. Nothing was written.",
                )


def open_journal(run: RestoreRun) -> Journal:
    """The journal of this snapshot, target and set of choices. Without one the restore works, but cannot be resumed."""
    snapshot, target = run.verified.snapshot, run.api.target
    digest = hashlib.sha256(snapshot.read(MANIFEST_NAME)).hexdigest()
    key = {
        "snapshot": digest,
        "api_endpoint": target.api_endpoint,
        "keyspace": target.keyspace,
        "choices": repr(dataclasses.replace(run.choices, workers=0)),
    }
    name = f".restore-{snapshot.name}-{digest[:8]}.journal"
    return Journal(run.options["journal"] or snapshot.path.absolute().parent / name, key, resume=run.options["resume"])


def route_text(run: RestoreRun) -> str:
    """Which snapshot of what goes where, in words."""
    source, snapshot = run.verified.manifest.source, run.verified.snapshot
    return f"snapshot {snapshot.name} of {source} into {run.api.target.source}"


def ask_first(run: RestoreRun, plan: list[PlannedCollection], *, yes: bool) -> None:
    """Ask before a drop, and before writing to where the snapshot came from. Raises TargetRefused for a no."""
    source, target = run.verified.manifest.source, run.api.target
    is_origin = Scope.make(source.api_endpoint, source.keyspace) == Scope.make(target.api_endpoint, target.keyspace)
    dropped = [planned.target_name for planned in plan if planned.is_dropped]
    if yes or not (is_origin or dropped):
        return
    what = f"Restore {route_text(run)}." + (f" This drops {', '.join(dropped)}." if dropped else "")
    what += " The target is the database that the snapshot came from." if is_origin else ""
    if not sys.stdin.isatty():
        raise TargetRefused(
            f"{what} Not a terminal: cannot ask for confirmation.", "Give --yes if that is meant. Nothing was written."
        )
    try:
        if not is_origin:
            click.echo(what, err=True)
        elif not click.confirm(f"{what} Continue?", err=True):
            raise TargetRefused("Not confirmed.", "Nothing was written.")
        for planned in plan:
            question = f"Type the name of the {planned.record.kind} to drop ({planned.target_name})"
            if planned.is_dropped and click.prompt(question, err=True) != planned.target_name:
                raise TargetRefused("The name does not match.", "Nothing was written.")
    except (SystemExit, click.Abort):
        click.echo(err=True)  # ends the line of the question
        log.warning("Nothing was written.")
        raise


def run_compare(run: RestoreRun) -> int:
    """Compare the target with the snapshot and print; writes nothing. Extra documents count as differences here."""
    with differences_file(run.options["differences"]) as file:
        outcomes = compare_target(run, file)
    return _print_outcomes(run, outcomes, exit_code(outcomes), did_write=False)


def compare_target(run: RestoreRun, differences: IO[str] | None = None) -> list[Outcome]:
    """Compare what was chosen with what is in the target, definitions too."""
    plan, existing = plan_records(run)
    for planned in plan:
        planned.exists = existing.has(planned)
    outcomes = [Outcome(planned) for planned in plan]
    compare_outcomes(run, outcomes, differences, existing)
    return outcomes


def find_differences(api: DataApi, planned: PlannedCollection, existing: Existing) -> list[str]:
    """What differs between the target's definition, types and indexes included, and the snapshot's."""
    if not planned.exists:
        return [f"there is no such {planned.record.kind}"]
    differences = definition_differences(planned.options, server_options(existing.infos[planned.target_name]))
    if isinstance(planned, PlannedTable):
        others = [name for name, fields in planned.types.items() if existing.types.get(name) != fields]
        differences += [f"the type {name} is another" for name in others] + index_differences(api, planned)
    return differences


@contextlib.contextmanager
def differences_file(path: Path | None) -> Iterator[IO[str] | None]:
    """The file of --differences, open; None if there is to be none. Raises BackupError if it cannot be written."""
    if path is None:
        yield None
        return
    try:
        file = path.open("w", encoding="utf-8", errors="replace")
    except OSError as error:
        raise BackupError(f"Cannot write {path}: {error.strerror}.", "Give another --differences.") from error
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # a comparison flushes it: what it could not write is told
            file.close()


def print_document(text: bytes) -> None:
    """Write a document to stdout, byte for byte but for a terminal. Raises BackupError if not all of it got out."""
    if sys.stdout.isatty():
        text = escape_controls(text.decode()).encode()
    try:
        sys.stdout.buffer.write(text + b"\n")
        sys.stdout.buffer.flush()
    except OSError as error:
        raise BackupError(
            f"The document could not be printed: {error.strerror}.", "What got out is cut off."
        ) from error


def show_document(snapshot: Snapshot, wanted: str, choices: Choices) -> int:
    """Print a document or row as the server held it. Raises BackupError when the snapshot has none of that id."""
    keys = {msgspec.json.encode(wanted)}
    with contextlib.suppress(FormatError, ValueError):
        keys.add(key_of(Document.parse(b'{"_id":%b}' % wanted.encode()).id))
    found = False
    manifest = read_manifest(snapshot)
    _check_files(snapshot, manifest.good, is_old=CHECKSUMS_NAME not in snapshot.sizes)
    check_encryption(snapshot, manifest)
    for record in manifest.good:
        if choices.collections and record.name not in choices.collections:
            continue
        try:
            for text in _texts_of(snapshot, record, keys):
                log.info("In %s:", record.name)
                print_document(text)
                found = True
        except FormatError as error:
            raise SnapshotRefused(f"{snapshot.label}: {record.data_file}: {error}.") from error
    if not found:
        raise BackupError(
            f"No document {wanted} in {snapshot.label}.",
            'An id that is not a string is given as JSON: 5, {"$uuid":"…"}; a key of several columns as an array.',
        )
    return RestoreExit.OK


def _texts_of(snapshot: Snapshot, record: AnyRecord, keys: set[bytes]) -> Iterator[bytes]:
    """The documents of such an id, or the rows of such a primary key: an array, or the value of its only column."""
    shape = record.shape()
    for line, _, document in snapshot.lines(record):
        if shape is None and key_of(document.id) in keys:
            yield document.text()
        elif shape:
            key = shape.key(line)
            if key in keys or (len(shape.keys) == 1 and key[1:-1] in keys):
                yield line


def needs_clear(options: dict[str, Any]) -> bool:
    """Whether documents are going to be read, and no identity is given: only an unencrypted snapshot will do."""
    return not options["identity"] and not options["verify_only"]


def refuse_locked(place: object, manifest: Manifest) -> None:
    """Refuse an encrypted snapshot, since there is no identity for it."""
    if manifest.encryption:
        raise SnapshotRefused(f"{place}: no identity is given. The snapshot is {manifest.encryption}.", IDENTITY_HINT)


BOX_HINT = "Set them, or leave --from-box out for a snapshot of this machine."


@contextlib.contextmanager
def fetched_snapshot(wanted: str, options: dict[str, Any], report: Report) -> Iterator[Path]:
    """The path of a snapshot; for --from-box it is downloaded, and removed when it is not needed any more."""
    output_dir: Path = options["output_dir"]
    if not options["from_box"]:
        found = find_snapshot(wanted, output_dir, options["sources"], report)
        check_resumed(wanted, found.name, options)
        yield found
        return
    box = Box(read_box_config(options, BOX_HINT), stop_event)
    file = find_in_box(box, wanted, options["sources"], report)
    check_resumed(wanted, file.name, options)
    if needs_clear(options):
        manifest = Stored.look(box, file).manifest
        if manifest:  # what is damaged is told when it is here
            refuse_locked(f"{file.name} in Box", manifest)
    output_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = output_dir / (file.name if options["keep_download"] else f".{file.name}")
    with sole_download(output_dir):
        for old in output_dir.glob(".*.zip.part"):  # of a download that broke off, and that nobody goes on with
            if old.name != f"{path.name}.part" and parse_snapshot_name(old.name[1:-9]):
                old.unlink(missing_ok=True)
        log.info("Downloading %s, %s, from Box.", file.name, size_text(file.size_bytes))
        box.download(file, path, report)
        try:
            yield path
        finally:
            if not options["keep_download"]:
                path.unlink(missing_ok=True)


def check_resumed(wanted: str, found: str, options: dict[str, Any]) -> None:
    """Refuse to resume `latest` where another snapshot is the latest by now: its documents would be mixed in."""
    if wanted != "latest" or not options["resume"] or options["journal"]:
        return
    journals = options["output_dir"].glob(".restore-*-*.journal")
    begun = sorted({path.name.removeprefix(".restore-").rpartition("-")[0] for path in journals})
    if begun and found.removesuffix(".zip") not in begun:
        raise BackupError(
            f"The latest snapshot is {found.removesuffix('.zip')} now, and what has not ended is a restore of"
            f" {' and '.join(begun)}.",
            f"Name the snapshot: restore.py {begun[-1]} --resume, and the options as before. Nothing was written.",
        )


@contextlib.contextmanager
def sole_download(output_dir: Path) -> Iterator[None]:
    """Hold a directory for the only restore that downloads to it: two would write to one file, or remove each other's.

    Raises BackupError while another does. The lock is the directory's own, and ends with the process.
    """
    descriptor = os.open(output_dir, os.O_RDONLY | os.O_CLOEXEC)
    refusal = BackupError(
        f"Another restore uses a snapshot from Box in {output_dir}.",
        "Wait for it, or give this one another --output-dir.",
    )
    lock_or_refuse(descriptor, output_dir, refusal)
    try:
        yield
    finally:
        os.close(descriptor)


def find_in_box(box: Box, wanted: str, sources: tuple[str, ...], report: Report) -> BoxFile:
    """The file for a snapshot's name, or the latest. Raises BackupError when there is none."""
    found = box.snapshots()
    if wanted == "latest" and found:
        wanted = choose_latest(Stored.in_box(box, found), sources, "Box", report)
    for file in found:
        if file.name in (wanted, f"{wanted}.zip"):
            return file
    what = "no complete snapshot" if wanted == "latest" else f"no snapshot {wanted!r}"
    raise BackupError(f"There is {what} in the Box folder.", "restore.py --from-box --list shows what is there.")


def list_snapshots(options: dict[str, Any]) -> int:
    """Print the snapshots there are, newest first. Raises BackupError if the directory is not there."""
    if options["from_box"]:
        found = list(Stored.in_box(Box(read_box_config(options, BOX_HINT), stop_event)))
    else:
        found = list(Stored.here(options["output_dir"], read_any))
    sources = options["sources"]
    wanted = [one for one in found if one.manifest is None or is_of(one.manifest, sources, or_unknown=True)]
    nothing = f"There are no snapshots in {'Box' if options['from_box'] else options['output_dir']}."
    otherwise = f"No snapshot is of {' and '.join(sources)}." if found else nothing
    return Stored.print_list(wanted, as_json=options["as_json"], otherwise=otherwise)


def read_any(path: Path) -> tuple[Manifest, int]:
    """The manifest and the size of a snapshot, also of a zip that another tool made. Raises SnapshotRefused."""
    snapshot = open_snapshot(path)
    return read_manifest(snapshot), sum(snapshot.sizes.values())


def _print_plan(run: RestoreRun, rows: list[str]) -> RestoreExit:
    source, target = run.verified.manifest.source, run.api.target
    fields = {
        "snapshot": run.verified.snapshot.label,
        "source": {"api_endpoint": source.api_endpoint, "keyspace": source.keyspace},
        "target": {"api_endpoint": target.api_endpoint, "keyspace": target.keyspace},
        "plan": rows,
    }
    text = "\n".join([f"{route_text(run)}:", *rows, "Nothing was written."])
    return print_either(run.options["as_json"], "dry-run", RestoreExit.OK, fields, text)


def _print_verified(verified: Verified, duration_s: float, *, as_json: bool) -> RestoreExit:
    totals = verified.manifest.sums()
    vectors = sum(stats.vector_count for stats in verified.stats.values())
    size = sum(verified.snapshot.sizes.values())
    fields = {
        "snapshot": verified.snapshot.label,
        "documents": totals.documents,
        **({"tables": totals.tables_ok, "rows": totals.rows} if totals.tables_ok else {}),
        "vectors": vectors,
        "size_bytes": size,
        "looked_inside": verified.looked_inside,
        "warnings": verified.warnings,
    }
    unproved = "encrypted; all digests match; the contents were not checked (no --identity)"
    verdict = "whole" if verified.looked_inside else unproved
    figures = f"{totals}, {vectors:,} vectors, {size_text(size)}, {duration_s:.1f} s"
    text = f"{verified.snapshot.label}: {verdict}; {figures}"
    return print_either(as_json, "verified", RestoreExit.OK, fields, text)


def _print_outcomes(
    run: RestoreRun, outcomes: list[Outcome], code: RestoreExit, *, did_write: bool = True
) -> RestoreExit:
    duration_s = time.monotonic() - run.started
    rows = [_outcome_row(outcome) for outcome in outcomes]
    fields = {
        "snapshot": run.verified.snapshot.label,
        "keyspace": run.api.target.keyspace,
        "collections": rows,
        "warnings": run.report.warnings,
        "duration_seconds": round(duration_s, 3),
    }
    sums = {name: sum(row[name] for row in rows) for name in ("inserted", "replaced", "already_there")}
    more = {"replaced": sums["replaced"], "there already": sums["already_there"]}
    problems = [f"{row['target']}: {row['problem']}" for row in rows if row["problem"]]
    is_less = any(outcome.planned.losses for outcome in outcomes)
    verdict = "; ".join(problems) or f"compared with the snapshot: {equal_text(is_less=is_less)}"
    tables = sum(outcome.planned.is_table for outcome in outcomes)
    what = plural(len(outcomes) - tables, "collection") + (f", {plural(tables, 'table')}" if tables else "")
    count = sums["inserted"] if did_write else sum(row["documents"] for row in rows)
    counted = plural(count, "document") + (" or row" if count == 1 else " and rows") * bool(tables)
    done = counts_text(counted, count, more) if did_write else f"{counted} in the snapshot"
    text = f"{what} in keyspace {run.api.target.keyspace}: {done}, {duration_s:.1f} s; {verdict}"
    return print_either(run.options["as_json"], code.name.lower(), code, fields, text)


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    found = outcome.comparison or Comparison()
    problem = outcome.error or ""
    if outcome.rejected:
        problem = f"{outcome.describe_rejects()} {problem}".strip()
    if found.definition or any(found.counts.values()):
        problem = f"{problem} {found.describe()}".strip()
    return {
        "name": outcome.planned.record.name,
        "target": outcome.planned.target_name,
        **({"kind": "table"} if outcome.planned.is_table else {}),
        "documents": outcome.planned.record.held,
        "inserted": outcome.inserted,
        "replaced": outcome.replaced,
        "already_there": outcome.already_there,
        "rejected": outcome.rejected,
        **found.counts,
        "definition_differences": found.definition,
        "equal": outcome.comparison is not None and not is_different(outcome),
        "left_out": outcome.planned.losses,
        "error": outcome.error,
        "problem": problem,
    }


def equal_text(*, is_less: bool) -> str:
    """What is said of a target that has all that the plan has; `is_less`: which is not all of the snapshot."""
    return "equal, but for what the plan leaves out" if is_less else "equal"


def _print_drill(
    run: RestoreRun, outcomes: list[Outcome], recalls: dict[str, float], steps: dict[str, float]
) -> RestoreExit:
    rows = [_outcome_row(outcome) for outcome in outcomes]
    texts = [f"Drill of {route_text(run)}:"]
    for row, planned in zip(rows, [outcome.planned for outcome in outcomes], strict=True):
        recall = recalls.get(row["name"])
        none = "no vectors with an index" if planned.is_table else "no vectors"
        none = "vectors computed anew" if planned.is_recomputed else none
        neighbours = none if recall is None else f"recall at {NEIGHBOURS}: {recall:.2f}"
        if recall is not None and recall < MIN_RECALL:
            neighbours += f", TOO LOW: the index does not find what is near (at least {MIN_RECALL} is expected)"
        count = plural(row["documents"], planned.record.noun)
        found = row["problem"] or equal_text(is_less=bool(planned.losses))
        texts.append(f"{row['name']}: {count}, {found}, {neighbours}")
    parts = [f"{name} {seconds:.1f} s" for name, seconds in steps.items()]
    texts.append(f"{', '.join(parts)}; {sum(steps.values()):.1f} s in all")
    fields = {
        "snapshot": run.verified.snapshot.label,
        "keyspace": run.api.target.keyspace,
        "collections": rows,
        "recall_at_10": recalls,
        "steps_seconds": steps,
        "warnings": run.report.warnings,
        "duration_seconds": round(time.monotonic() - run.started, 3),
    }
    code = drill_exit_code(outcomes, recalls)
    return print_either(run.options["as_json"], code.name.lower(), code, fields, "\n".join(texts))


def run() -> NoReturn:
    """Run the command line: what the script does and the installed command calls."""
    run_command(main)


if __name__ == "__main__":
    run()
