#!/usr/bin/env python3
"""Restore a snapshot of `astra_backup.py` into a Data API database, and compare the result with the snapshot.

The order is always the same: verify all of the snapshot, check the whole plan against the target, show it, carry it
out, compare. Nothing is written before the first two are done. docs/FORMAT.md describes a snapshot.

It imports the contract from `astra_backup.py`, never the other way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
import tempfile
import threading
import time
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import Enum, IntEnum
from pathlib import Path
from typing import IO, Any, Self

import click
import msgspec

from astra_backup import (
    CHECKSUMS_NAME,
    INCOMPLETE_SUFFIX,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    READ_COMMANDS,
    RETRYABLE_CODES,
    TOOL_VERSION,
    BackupError,
    Box,
    BoxFile,
    CollectionInfo,
    CollectionRecord,
    DataApi,
    DataStats,
    FormatError,
    HashingReader,
    Manifest,
    Reply,
    Report,
    RequestError,
    Target,
    check_data,
    connection_options,
    decode_document,
    decode_manifest,
    digest_text,
    document_parts,
    iter_documents,
    list_collections,
    log,
    make_target,
    parse_snapshot_name,
    plural,
    print_result,
    read_box_config,
    run_command,
    size_text,
    stop_event,
)

# ======================================================================================================================
# Names, limits, exit codes and errors
# ======================================================================================================================

WRITE_COMMANDS = READ_COMMANDS | {"createCollection", "deleteCollection", "insertMany"}
"""All that may leave this process while it writes; `--dry-run` is held to READ_COMMANDS."""

MAX_BATCH_DOCUMENTS = 100  # DATA_API.md, section 5: the server refuses more
MAX_BATCH_BYTES = 4_000_000
MAX_IN_IDS = 100  # values in one `$in`
COMPARE_PARTITIONS = 64
VISIBLE_WITHIN_S = 30.0  # how long a new collection may take to be listed


class RestoreExit(IntEnum):
    """Exit codes of `restore.py`, each with its meaning; the README's table is made from it."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """Make a member of a number that carries its meaning."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    OK = 0, "restored, and the result was compared with the snapshot"
    FAILED = 1, "configuration, usage or connection: nothing was written"
    INCOMPLETE = 2, "a collection failed to restore; the rest is there; running again carries on"
    SNAPSHOT_REFUSED = (
        3,
        "the snapshot is refused (damaged, incomplete, unknown version, unsafe): nothing was written",
    )
    TARGET_REFUSED = (
        4,
        "the target is refused (not empty, other definition, a choice missing): nothing was written",
    )
    DIFFERENT = 5, "restored, but the comparison found a difference"
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


class OnExisting(Enum):
    """What to do about a collection that already holds documents."""

    FAIL = "fail"
    SKIP = "skip"


class Vectorize(Enum):
    """What to do about documents that carry both `$vector` and `$vectorize`."""

    FAIL = "fail"


# ======================================================================================================================
# Verify
# ======================================================================================================================


class Snapshot:
    """A snapshot in a directory or a zip: its files by name. Whatever a stranger could have put in is refused."""

    def __init__(self, path: Path, name: str, sizes: dict[str, int]) -> None:
        self.path = path
        self.name = name
        self.sizes = sizes

    def open(self, name: str) -> IO[bytes]:
        """Open one of the files in `sizes`."""
        return (self.path / name).open("rb")

    def read(self, name: str, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        """The content of a small file. Raises SnapshotRefused if it is absent or too large."""
        if name not in self.sizes:
            raise SnapshotRefused(f"{self.path} has no {name}: a run that died, or no snapshot.")
        with self.open(name) as stream:
            content = stream.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise SnapshotRefused(f"{self.path}: {name} is larger than any can be.")
        return content


class ZipSnapshot(Snapshot):
    """A snapshot in a zip, its entries under one folder."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
            raise SnapshotRefused(f"{path} is no zip that can be read: {error}.") from error
        folder, sizes = self._checked_entries(path)
        super().__init__(path, folder or path.stem, sizes)
        self._folder = folder

    def open(self, name: str) -> IO[bytes]:
        """Open one of the entries."""
        try:
            return self._zip.open(f"{self._folder}/{name}" if self._folder else name)
        except (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError) as error:
            raise SnapshotRefused(f"{self.path}: {name} cannot be opened: {error}.") from error

    def _checked_entries(self, path: Path) -> tuple[str, dict[str, int]]:
        folders: set[str] = set()
        sizes: dict[str, int] = {}
        for entry in self._zip.infolist():
            folder, _, name = entry.filename.rpartition("/")
            folders.add(folder)
            if entry.is_dir() and "/" not in folder:
                continue
            kind = stat.S_IFMT(entry.external_attr >> 16)
            is_plain = kind in (0, stat.S_IFREG) and not entry.flag_bits & 0x1
            if not is_plain or "/" in folder or not _is_safe_name(name) or (folder and not _is_safe_name(folder)):
                raise SnapshotRefused(f"{path}: unsafe entry {entry.filename!r}.")
            if name.casefold() in {other.casefold() for other in sizes}:
                raise SnapshotRefused(f"{path}: the entry {entry.filename!r} is there twice.")
            sizes[name] = entry.file_size
        if len(folders) > 1:
            raise SnapshotRefused(f"{path}: entries in more than one folder: {', '.join(sorted(folders))}.")
        return folders.pop() if folders else "", sizes


def _is_safe_name(name: str) -> bool:
    """Whether a name is a plain file name, with no way out of its directory."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\:\0") and name.isprintable()


def open_snapshot(path: Path) -> Snapshot:
    """Open a snapshot's directory or zip. Raises SnapshotRefused for what is unsafe or unfinished."""
    if path.name.endswith(".inprogress"):
        raise SnapshotRefused(f"{path} is a run in progress, or one that died.")
    if not path.is_dir():
        return ZipSnapshot(path)
    if not os.path.lexists(path / MANIFEST_NAME):
        raise SnapshotRefused(f"{path} has no {MANIFEST_NAME}: a run that died, or no snapshot.")
    sizes = {}
    for entry in os.scandir(path):
        if not entry.is_file(follow_symlinks=False):
            raise SnapshotRefused(f"{path}: {entry.name} is not a plain file.")
        sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return Snapshot(path, path.resolve().name, sizes)


def find_snapshot(wanted: str, output_dir: Path) -> Path:
    """The path for a directory, a zip, a name or `latest`. Raises BackupError when there is none."""
    if wanted == "latest":
        complete = [path for path, (_, incomplete) in local_snapshots(output_dir) if not incomplete]
        if complete:
            return complete[0]
        raise BackupError(
            f"There is no complete snapshot in {output_dir}.",
            "Check --output-dir; --list shows what is there.",
        )
    choices = (
        Path(wanted),
        output_dir / wanted,
        output_dir / f"{wanted}.zip",
        output_dir / f"{wanted}{INCOMPLETE_SUFFIX}",
    )
    for path in choices:
        if path.exists():
            return path
    raise BackupError(
        f"There is no snapshot {wanted!r}, here or in {output_dir}.", "restore.py --list shows what is there."
    )


def local_snapshots(output_dir: Path) -> list[tuple[Path, tuple[str, bool]]]:
    """(path, (timestamp, is_incomplete)) of what has a snapshot's name, newest first by the name."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in output_dir.iterdir():
            parsed = parse_snapshot_name(path.name.removesuffix(".zip") if path.is_file() else path.name)
            if parsed:
                found.append((path, parsed))
    return sorted(found, key=lambda item: (item[1][0], item[0].is_dir()), reverse=True)


@dataclass
class Verified:
    """A snapshot that was read to the last byte, and what its good collections hold, by name."""

    snapshot: Snapshot
    manifest: Manifest
    stats: dict[str, DataStats]
    warnings: list[str]

    def record(self, name: str) -> CollectionRecord:
        """The manifest's record of a collection."""
        return next(record for record in self.manifest.collections if record.name == name)


def read_manifest(snapshot: Snapshot) -> Manifest:
    """The manifest of a snapshot. Raises SnapshotRefused."""
    try:
        return decode_manifest(snapshot.read(MANIFEST_NAME))
    except FormatError as error:
        raise SnapshotRefused(f"{snapshot.path}: {error}.") from error


def verify_snapshot(snapshot: Snapshot, *, force_incomplete: bool, workers: int, report: Report) -> Verified:
    """Prove that a snapshot is whole: every checksum, size and count, every line, no file missing, none extra.

    Raises SnapshotRefused.
    """
    manifest = read_manifest(snapshot)
    warnings = _check_status(snapshot, manifest, force_incomplete=force_incomplete)
    good = [record for record in manifest.collections if record.is_ok]
    has_digests = any(record.content_digest for record in good) or not good
    is_old = CHECKSUMS_NAME not in snapshot.sizes and not has_digests
    if manifest.selection:
        warnings.append("holds only what was asked for when it was made, not the whole keyspace")
    if is_old:
        warnings.append(
            "written by an older script: no SHA256SUMS, no content digests; what can be checked was checked"
        )
    _check_files(snapshot, good, is_old=is_old)
    if not is_old or CHECKSUMS_NAME in snapshot.sizes:
        _check_sums(snapshot, good)
        _check_totals(snapshot, manifest)
    with ThreadPoolExecutor(max(1, min(workers, len(good) or 1))) as pool:
        stats = list(pool.map(lambda record: _check_record(snapshot, record, report), good))
    for warning in warnings:
        report.warn(f"{snapshot.path}: {warning}.")
    return Verified(
        snapshot, manifest, {record.name: found for record, found in zip(good, stats, strict=True)}, warnings
    )


def _check_status(snapshot: Snapshot, manifest: Manifest, *, force_incomplete: bool) -> list[str]:
    """Refuse an incomplete snapshot, unless it is forced: then name what is missing."""
    if manifest.is_complete and not snapshot.name.endswith(INCOMPLETE_SUFFIX):
        return []
    failed = ", ".join(f"{record.name} ({record.error})" for record in manifest.collections if not record.is_ok)
    if not force_incomplete:
        raise SnapshotRefused(
            f"{snapshot.path} is incomplete; failed: {failed or 'unknown'}.",
            "Use a complete snapshot, or --force-incomplete for its good collections.",
        )
    return [f"incomplete, and forced; missing: {failed or 'unknown'}"]


def _check_files(snapshot: Snapshot, good: list[CollectionRecord], *, is_old: bool) -> None:
    """Every file that should be there, and no other; no name leads out of the snapshot."""
    expected = {MANIFEST_NAME} | (set() if is_old else {CHECKSUMS_NAME})
    names = [record.name for record in good]
    if len(set(names)) != len(names):
        raise SnapshotRefused(f"{snapshot.path}: a collection is in the manifest twice.")
    for record in good:
        if not record.data_file or not _is_safe_name(record.data_file) or record.data_file in expected:
            raise SnapshotRefused(f"{snapshot.path}: {record.name} has the unsafe data file {record.data_file!r}.")
        expected.add(record.data_file)
    if missing := sorted(expected - set(snapshot.sizes)):
        raise SnapshotRefused(
            f"{snapshot.path}: missing: {', '.join(missing)}.", "Fetch the snapshot again, or use another one."
        )
    if extra := sorted(set(snapshot.sizes) - expected):
        raise SnapshotRefused(
            f"{snapshot.path}: not in the manifest: {', '.join(extra)}.",
            "If somebody put it there, move it away; otherwise fetch the snapshot again.",
        )


def _check_sums(snapshot: Snapshot, good: list[CollectionRecord]) -> None:
    """SHA256SUMS names the manifest and every data file, with the manifest's own digests."""
    expected = {record.data_file: record.data_sha256 for record in good}
    expected[MANIFEST_NAME] = hashlib.sha256(snapshot.read(MANIFEST_NAME)).hexdigest()
    lines = snapshot.read(CHECKSUMS_NAME).decode(errors="replace").splitlines()
    found = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if len(found) != len(lines) or found != expected:
        wrong = sorted(
            str(name) for name in expected.keys() | found.keys() if expected.get(name) != found.get(str(name))
        )
        raise SnapshotRefused(f"{snapshot.path}: {CHECKSUMS_NAME} does not match for: {', '.join(wrong) or 'a line'}.")


def _check_totals(snapshot: Snapshot, manifest: Manifest) -> None:
    good = [record for record in manifest.collections if record.is_ok]
    totals = (
        len(good),
        len(manifest.collections) - len(good),
        sum(record.document_count for record in manifest.collections),
    )
    found = manifest.totals
    if totals != (found.collections_ok, found.collections_failed, found.documents):
        raise SnapshotRefused(f"{snapshot.path}: the manifest's totals are not the sums of its collections.")


def _check_record(snapshot: Snapshot, record: CollectionRecord, report: Report) -> DataStats:
    """Read a data file to its end and compare with all that the manifest says of it."""
    name = record.data_file or ""
    if record.data_size_bytes is not None and snapshot.sizes[name] != record.data_size_bytes:
        raise SnapshotRefused(
            f"{snapshot.path}: {name} has {snapshot.sizes[name]} bytes instead of {record.data_size_bytes}."
        )
    report.start(record.name, record.document_count, "verifying")
    try:
        with snapshot.open(name) as stream:
            stats = check_data(stream, compressed=is_compressed(record), decode=True)
    except (FormatError, zipfile.BadZipFile, OSError) as error:
        raise SnapshotRefused(f"{snapshot.path}: {name}: {error}.") from error
    report.finish(record.name)
    facts = {
        "data_sha256": stats.data_sha256,
        "document_count": stats.document_count,
        "content_digest": digest_text(stats.content_digest),
        "vector_count": stats.vector_count,
        "vector_binary_count": stats.vector_binary_count,
        "vectorize_count": stats.vectorize_count,
        "lexical_count": stats.lexical_count,
    }
    for fact, value in facts.items():
        if getattr(record, fact) not in (None, value):
            raise SnapshotRefused(
                f"{snapshot.path}: {name}: {fact} is {value}, the manifest says {getattr(record, fact)}."
            )
    return stats


def is_compressed(record: CollectionRecord) -> bool:
    """Whether a collection's data file is gzipped."""
    return (record.data_file or "").endswith(".gz") if record.compressed is None else record.compressed


# ======================================================================================================================
# Plan: pure but for reading the target; also what --dry-run prints
# ======================================================================================================================


@dataclass(frozen=True)
class Choices:
    """What the operator chose."""

    collections: tuple[str, ...] = ()
    on_existing: OnExisting = OnExisting.FAIL
    vectorize: Vectorize = Vectorize.FAIL
    workers: int = 4


@dataclass
class PlannedCollection:
    """One collection of the plan."""

    record: CollectionRecord
    stats: DataStats
    target_name: str
    options: dict[str, Any]
    exists: bool = False
    had_documents: bool = False

    @property
    def action(self) -> str:
        """What is going to happen, in words."""
        count = f"{self.record.document_count:,} documents"
        if not self.exists:
            return f"create, insert {count}"
        return f"keep what is there, insert what is missing of {count}" if self.had_documents else f"insert {count}"


def make_plan(verified: Verified, api: DataApi, choices: Choices) -> list[PlannedCollection]:
    """Check everything against the target. Raises TargetRefused with all the reasons; writes nothing."""
    existing = {info.name: info for info in list_collections(api)}
    plan, refusals = [], []
    for record in select_records(verified, choices):
        planned = PlannedCollection(
            record, verified.stats[record.name], record.name, explicit_options(record.options())
        )
        plan.append(planned)
        refusals += _check_target(planned, existing.get(planned.target_name), api, choices)
    if refusals:
        raise TargetRefused("The target cannot take this snapshot:\n  " + "\n  ".join(refusals), "Nothing was written.")
    return plan


def select_records(verified: Verified, choices: Choices) -> list[CollectionRecord]:
    """The good collections that were asked for. Raises BackupError for a name that is not there."""
    good = [record for record in verified.manifest.collections if record.name in verified.stats]
    names = {record.name for record in good}
    if missing := [name for name in choices.collections if name not in names]:
        raise BackupError(
            f"Not in the snapshot: {', '.join(missing)}.", f"It has: {', '.join(sorted(names)) or 'nothing'}."
        )
    return [record for record in good if not choices.collections or record.name in choices.collections]


def _check_target(planned: PlannedCollection, info: CollectionInfo | None, api: DataApi, choices: Choices) -> list[str]:
    """Reasons why a collection cannot be restored; fills in what is found."""
    name, refusals = planned.target_name, []
    if planned.stats.both_count and choices.vectorize is Vectorize.FAIL:
        refusals.append(
            f"{name}: {planned.stats.both_count:,} documents carry both $vector and $vectorize,"
            " which the server refuses: choose --vectorize keep-vectors or --vectorize recompute."
        )
    if info is None:
        return refusals
    planned.exists = True
    planned.had_documents = has_documents(api, name)
    there = explicit_options(msgspec.json.decode(info.options))
    if differences := definition_differences(planned.options, there):
        refusals.append(f"{name}: exists with another definition: {'; '.join(differences)}.")
    if planned.had_documents and choices.on_existing is OnExisting.FAIL:
        refusals.append(f"{name}: already holds documents: choose --on-existing skip, or another keyspace.")
    return refusals


def has_documents(api: DataApi, collection: str) -> bool:
    """Whether a collection holds any document."""
    state: str | None = None
    while True:
        documents, state = api.find_page(collection, state)
        if documents or state is None:
            return bool(documents)


def explicit_options(options: dict[str, Any]) -> dict[str, Any]:
    """A definition with what a server would fill in made explicit: left out, `lexical` and `rerank` are turned on."""
    explicit = {"lexical": {"enabled": False}, "rerank": {"enabled": False}, **options}
    if "vector" in explicit:
        explicit["vector"] = {"metric": "cosine", "sourceModel": "other", **explicit["vector"]}
    return explicit


def definition_differences(wanted: Any, found: Any, path: str = "") -> list[str]:
    """Field by field, what differs between two definitions."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        differences = []
        for key in sorted(wanted.keys() | found.keys()):
            differences += definition_differences(wanted.get(key), found.get(key), f"{path}.{key}".lstrip("."))
        return differences
    if wanted == found:
        return []
    return [f"{path} is {json.dumps(found)}, the snapshot has {json.dumps(wanted)}"]


# ======================================================================================================================
# Write
# ======================================================================================================================


@dataclass
class Outcome:
    """What became of one collection."""

    planned: PlannedCollection
    inserted: int = 0
    already_there: int = 0
    kept_different: int = 0
    rejected: int = 0
    rejects_file: Path | None = None
    error: str | None = None
    comparison: Comparison | None = None
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, **changes: int) -> None:
        """Add to the counters; thread-safe."""
        with self.lock:
            for name, change in changes.items():
                setattr(self, name, getattr(self, name) + change)

    @property
    def is_failed(self) -> bool:
        """Whether something of it is not in the target for a reason that was reported."""
        return self.error is not None or self.rejected > 0


def create_collections(api: DataApi, plan: list[PlannedCollection]) -> None:
    """Create what is missing and read it back, before any document is written.

    If one cannot be had as it was, those just created are dropped again and TargetRefused is raised.
    """
    created: list[str] = []
    try:
        for planned in plan:
            if not planned.exists:
                log.info("%s: creating.", planned.target_name)
                created.append(planned.target_name)
                _create(api, planned)
    except RequestError as error:
        _drop(api, created)
        if error.code is None or error.retryable:
            raise
        raise TargetRefused(
            f"{created[-1]} cannot be created: {error.message}",
            "Nothing was written; what had just been created was dropped.",
        ) from error
    except TargetRefused:
        _drop(api, created)
        raise


def _create(api: DataApi, planned: PlannedCollection) -> None:
    body = {"name": planned.target_name, "options": planned.options}
    api.call("createCollection", msgspec.json.encode(body), read=_ignore_reply)
    deadline = time.monotonic() + VISIBLE_WITHIN_S
    while True:
        found = [info for info in api.list_collections() if info.name == planned.target_name]
        if found or time.monotonic() > deadline:
            break
        stop_event.wait(0.5)
    there = explicit_options(msgspec.json.decode(found[0].options)) if found else {}
    if differences := definition_differences(planned.options, there):
        raise TargetRefused(
            f"{planned.target_name}: the server made it with another definition: {'; '.join(differences)}.",
            "The target cannot give what the collection had. It was dropped again; nothing was written.",
        )


def _ignore_reply(_reply: Reply) -> None:
    """For commands of which it is enough that they succeed."""


def _drop(api: DataApi, names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(BackupError):
            api.call("deleteCollection", msgspec.json.encode({"name": name}), budget_s=30.0, read=_ignore_reply)


class Rejects:
    """Documents that the server refused, in a file that is made with the first of them. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def add(self, outcome: Outcome, text: bytes, code: str, message: str) -> None:
        """Write a document with the server's reason."""
        row = b'{"code":%b,"message":%b,"document":%b}\n' % (
            msgspec.json.encode(code),
            msgspec.json.encode(message),
            text,
        )
        with self._lock:
            mode = os.O_APPEND if outcome.rejects_file else os.O_TRUNC
            with open(os.open(self._path, os.O_WRONLY | os.O_CREAT | mode, 0o600), "ab") as file:
                file.write(row)
            outcome.rejects_file = self._path
        outcome.count(rejected=1)


class CollectionWriter:
    """Inserts the documents of one collection, several batches in flight. Memory is bound by those batches."""

    def __init__(self, api: DataApi, outcome: Outcome, rejects: Rejects, choices: Choices, report: Report) -> None:
        self._api = api
        self._outcome = outcome
        self._rejects = rejects
        self._workers = choices.workers
        self._report = report
        self._name = outcome.planned.target_name

    def run(self, snapshot: Snapshot) -> None:
        """Send every document; errors end up in the outcome. Only a stop request is raised."""
        record = self._outcome.planned.record
        self._report.start(self._name, record.document_count, "writing")
        pool = ThreadPoolExecutor(self._workers)
        try:
            with snapshot.open(record.data_file or "") as stream:
                reader = HashingReader(stream)
                self._send_all(pool, make_batches(self._texts(reader, record)))
                reader.drain()
            if reader.sha256.hexdigest() != self._outcome.planned.stats.data_sha256:
                raise SnapshotRefused(f"{snapshot.path}: {record.data_file} changed after it was verified.")
        except (BackupError, FormatError, zipfile.BadZipFile, OSError) as error:
            self._outcome.error = f"{getattr(error, 'message', error)} {getattr(error, 'hint', '')}".strip()
            log.error("%s failed: %s", self._name, self._outcome.error)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        self._report.finish(self._name)
        log.info(
            "%s: %s inserted, %d there already.",
            self._name,
            plural(self._outcome.inserted, "document"),
            self._outcome.already_there,
        )

    def _texts(self, reader: HashingReader, record: CollectionRecord) -> Iterator[bytes]:
        for line, _ in iter_documents(reader, compressed=is_compressed(record)):  # type: ignore[arg-type]
            yield decode_document(line)

    def _send_all(self, pool: ThreadPoolExecutor, batches: Iterable[list[bytes]]) -> None:
        pending: set[Future[None]] = set()
        for batch in batches:
            while len(pending) >= self._workers:
                pending = self._wait(pending)
            pending.add(pool.submit(self._send, batch))
        while pending:
            pending = self._wait(pending)

    def _wait(self, pending: set[Future[None]]) -> set[Future[None]]:
        done, left = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        return left

    def _send(self, batch: list[bytes]) -> None:
        """Insert a batch until each document is in, was there, or is rejected. May be called twice for a batch."""
        retry, existing = self._insert(batch)
        if existing:
            self._settle_existing(existing)
        self._report.advance(self._name, len(batch) - len(retry))
        if retry:
            self._send(retry)

    def _insert(self, batch: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Insert once, patiently; return the documents to send again and those whose id is there already."""
        body = b'{"documents":[%b],"options":{"ordered":false,"returnDocumentResponses":true}}' % b",".join(batch)
        try:
            errors = self._api.call("insertMany", body, self._name, read=lambda reply: reply_errors(reply, len(batch)))
        except RequestError as error:
            if error.retryable or error.status not in (200, 413):
                raise
            return self._divide(batch, error)
        return self._sort_out(batch, errors)

    def _divide(self, batch: list[bytes], error: RequestError) -> tuple[list[bytes], list[bytes]]:
        """The server refused a request as a whole: halve it until the bad document is alone."""
        if len(batch) == 1:
            self._rejects.add(self._outcome, batch[0], error.code or f"HTTP {error.status}", error.message)
            return [], []
        middle = len(batch) // 2
        first, second = self._insert(batch[:middle]), self._insert(batch[middle:])
        return first[0] + second[0], first[1] + second[1]

    def _sort_out(self, batch: list[bytes], errors: list[dict[str, Any] | None]) -> tuple[list[bytes], list[bytes]]:
        retry, existing = [], []
        for text, error in zip(batch, errors, strict=True):
            if error is None:
                self._outcome.count(inserted=1)
            elif error.get("errorCode") == "DOCUMENT_ALREADY_EXISTS":
                existing.append(text)
            elif error.get("errorCode") in RETRYABLE_CODES:
                retry.append(text)
            else:
                self._rejects.add(self._outcome, text, str(error.get("errorCode")), str(error.get("message")))
        return retry, existing

    def _settle_existing(self, texts: list[bytes]) -> None:
        """Read back what is there already: equal is done, different is kept, and found by the comparison."""
        there = find_by_ids(self._api, self._name, texts)
        for text in texts:
            found = there.get(id_key(text))
            if found is not None and same_document(text, found):
                self._outcome.count(already_there=1)
            else:
                self._outcome.count(kept_different=1)


def make_batches(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Group documents so that no group has more than 100 documents or 4 MB (one document may have more)."""
    batch: list[bytes] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == MAX_BATCH_DOCUMENTS or size + len(text) > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text) + 1
    if batch:
        yield batch


class InsertStatus(msgspec.Struct):
    """The `status` of an insertMany reply."""

    documentResponses: list[dict[str, Any]]  # noqa: N815  (the server's name)


def reply_errors(reply: Reply, count: int) -> list[dict[str, Any] | None]:
    """For each document of an insertMany None or its error. Raises RequestError where all of them may pass later."""
    try:
        responses = msgspec.json.decode(reply.status, type=InsertStatus).documentResponses
    except msgspec.DecodeError as error:
        raise _unclear(str(error)) from error
    if len(responses) != count:
        raise _unclear(f"{len(responses)} results for {count} documents")
    errors = [None if row.get("status") == "OK" else _response_error(row, reply.errors) for row in responses]
    codes = [str(error.get("errorCode")) if error else "" for error in errors]
    if all(code in RETRYABLE_CODES for code in codes):
        raise RequestError(f"insertMany failed with {codes[0]} for each document.", retryable=True, status=200)
    return errors


def _unclear(reason: str) -> RequestError:
    return RequestError(f"The reply to insertMany is not clear: {reason}.", retryable=True, unexpected=True, status=200)


def _response_error(response: dict[str, Any], errors: list[dict[str, Any]]) -> dict[str, Any]:
    index = response.get("errorsIdx")
    if isinstance(index, int) and 0 <= index < len(errors):
        return errors[index]
    return {
        "errorCode": "FAILED_WRITE_REQUEST",
        "message": "skipped by the server",
    }  # retryable: it was not tried


def find_by_ids(api: DataApi, collection: str, texts: list[bytes]) -> dict[bytes, bytes]:
    """The target's documents with the ids of `texts`, by `id_key`. Reads in groups that the server takes."""
    found: dict[bytes, bytes] = {}
    for start in range(0, len(texts), MAX_IN_IDS):
        ids = b",".join(bytes(document_parts(text).id) for text in texts[start : start + MAX_IN_IDS])
        state: str | None = None
        while True:
            documents, state = api.find_page(collection, state, filter_json=b'{"_id":{"$in":[' + ids + b"]}}")
            found.update((id_key(text), text) for text in documents)
            if state is None:
                break
    return found


def id_key(text: bytes) -> bytes:
    """What the server takes for the key of a document: a UUID or ObjectId is the same key as its string."""
    value = bytes(document_parts(text).id)
    for name in (b'{"$uuid":', b'{"$objectId":'):
        if value.startswith(name):
            return value[len(name) : -1].lower()
    return value


# ======================================================================================================================
# Compare
# ======================================================================================================================


@dataclass
class Comparison:
    """How a target differs from the snapshot; the ids are JSON texts, of the first of each kind."""

    documents: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    first_missing: str = ""
    first_extra: str = ""
    first_different: str = ""

    def add(self, kind: str, key: bytes) -> None:
        """Count a difference of a kind."""
        if not getattr(self, kind):
            setattr(self, f"first_{kind}", key.decode(errors="replace"))
        setattr(self, kind, getattr(self, kind) + 1)

    def describe(self) -> str:
        """The differences in words."""
        kinds = [kind for kind in ("missing", "different", "extra") if getattr(self, kind)]
        parts = [f"{getattr(self, kind):,} {kind} (first: {getattr(self, f'first_{kind}')})" for kind in kinds]
        return ", ".join(parts) or "equal"


class KeySpool:
    """Digests by document id, spread over files by the id's checksum, so that one part fits into memory at any size."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._paths = [directory / str(number) for number in range(COMPARE_PARTITIONS)]
        self._buffers = [bytearray() for _ in self._paths]

    def add(self, key: bytes, digest: bytes) -> None:
        """Note a document."""
        number = zlib.crc32(key) % COMPARE_PARTITIONS
        self._buffers[number] += digest.hex().encode() + b" " + key + b"\n"
        if len(self._buffers[number]) > 32 * 1024:
            self._flush(number)

    def part(self, number: int) -> dict[bytes, bytes]:
        """One part: id to digest. An id that is there twice keeps its last digest."""
        self._flush(number)
        with self._paths[number].open("rb") as file:
            return {key: digest for digest, _, key in (line.rstrip(b"\n").partition(b" ") for line in file)}

    def _flush(self, number: int) -> None:
        with self._paths[number].open("ab") as file:
            file.write(self._buffers[number])
        self._buffers[number].clear()


def compare_collection(planned: PlannedCollection, snapshot: Snapshot, api: DataApi, report: Report) -> Comparison:
    """Scan the target once and compare with the snapshot, by text; where texts differ, once more by value.

    Another server may write the same number in another way: that is no difference.
    """
    comparison = _compare(planned, snapshot, api, report, text_digest)
    if comparison.different:
        comparison = _compare(planned, snapshot, api, report, value_digest)
    return comparison


def _compare(
    planned: PlannedCollection,
    snapshot: Snapshot,
    api: DataApi,
    report: Report,
    digest: Callable[[bytes], bytes],
) -> Comparison:
    name, record = planned.target_name, planned.record
    report.start(name, record.document_count, "comparing")
    comparison = Comparison()
    with tempfile.TemporaryDirectory(prefix="restore-compare-") as directory:
        wanted, found = KeySpool(Path(directory, "snapshot")), KeySpool(Path(directory, "target"))
        with snapshot.open(record.data_file or "") as stream:
            for line, _ in iter_documents(stream, compressed=is_compressed(record)):
                text = decode_document(line)
                wanted.add(id_key(text), digest(text))
        for text in scan(api, name, report):
            comparison.documents += 1
            found.add(id_key(text), digest(text))
        for number in range(COMPARE_PARTITIONS):
            _compare_part(wanted.part(number), found.part(number), comparison)
    report.finish(name)
    return comparison


def _compare_part(wanted: dict[bytes, bytes], found: dict[bytes, bytes], comparison: Comparison) -> None:
    for key, digest in wanted.items():
        if key not in found:
            comparison.add("missing", key)
        elif found[key] != digest:
            comparison.add("different", key)
    for key in found.keys() - wanted.keys():
        comparison.add("extra", key)


def scan(api: DataApi, collection: str, report: Report) -> Iterator[bytes]:
    """All documents of a collection, page by page."""
    state: str | None = None
    while True:
        documents, state = api.find_page(collection, state)
        yield from documents
        report.advance(collection, len(documents))
        if state is None:
            return


def same_document(one: bytes, other: bytes) -> bool:
    """Whether two documents are the same, with the same digits and the same vector form."""
    return one == other or value_digest(one) == value_digest(other)


def text_digest(text: bytes) -> bytes:
    """A digest of a document's text."""
    return hashlib.sha256(text).digest()


def value_digest(text: bytes) -> bytes:
    """A digest of a document's value: `1E+2` and `100.0` are the same number; keys may come in any order."""
    value = json.loads(text, parse_float=_plain_number, parse_int=_plain_number)
    return hashlib.sha256(repr(_sorted_value(value)).encode()).digest()


def _sorted_value(value: Any) -> Any:
    """The value with its keys in order; numbers are tuples already, which nothing else becomes."""
    if isinstance(value, dict):
        return {key: _sorted_value(value[key]) for key in sorted(value)}
    return [_sorted_value(item) for item in value] if isinstance(value, list) else value


def _plain_number(text: str) -> tuple[str, ...]:
    """A number as its sign, its digits without zeros at the ends, and its exponent."""
    try:
        sign, digits, exponent = Decimal(text).as_tuple()
    except InvalidOperation:  # an exponent beyond what Decimal holds
        return (text,)
    significant = "".join(map(str, digits)).lstrip("0")
    stripped = significant.rstrip("0")
    if not stripped:
        return ("", "", "0")
    return ("-" if sign else "", stripped, str(int(exponent) + len(significant) - len(stripped)))


# ======================================================================================================================
# Restore
# ======================================================================================================================


def restore(
    verified: Verified, plan: list[PlannedCollection], api: DataApi, choices: Choices, report: Report
) -> list[Outcome]:
    """Carry out a plan and compare the result. Returns what became of each collection."""
    create_collections(api, plan)
    outcomes = []
    for planned in plan:
        outcome = Outcome(planned)
        outcomes.append(outcome)
        rejects = Rejects(
            verified.snapshot.path.parent / f"rejects-{urllib.parse.quote(planned.target_name, safe='')}.jsonl"
        )
        CollectionWriter(api, outcome, rejects, choices, report).run(verified.snapshot)
    with ThreadPoolExecutor(max(1, min(choices.workers, len(outcomes) or 1))) as pool:
        list(pool.map(lambda outcome: _compare_outcome(outcome, verified.snapshot, api, report), outcomes))
    return outcomes


def _compare_outcome(outcome: Outcome, snapshot: Snapshot, api: DataApi, report: Report) -> None:
    name = outcome.planned.target_name
    try:
        outcome.comparison = compare_collection(outcome.planned, snapshot, api, report)
        log.info("%s: compared with the snapshot: %s.", name, outcome.comparison.describe())
    except BackupError as error:
        outcome.error = outcome.error or f"the comparison failed: {error.message}"
        log.error("%s: %s", name, outcome.error)


def is_different(outcome: Outcome) -> bool:
    """Whether the target is not what the snapshot says; documents that were there before are no difference."""
    found = outcome.comparison
    if found is None:
        return False
    return bool(found.missing or found.different or (found.extra and not outcome.planned.had_documents))


def exit_code(outcomes: list[Outcome]) -> RestoreExit:
    """The exit code for what became of the collections."""
    if any(outcome.is_failed for outcome in outcomes):
        return RestoreExit.INCOMPLETE
    return RestoreExit.DIFFERENT if any(map(is_different, outcomes)) else RestoreExit.OK


# ======================================================================================================================
# Command line
# ======================================================================================================================


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("snapshot", default="latest")
@connection_options
@click.option("--from-box", is_flag=True, help="The snapshot is in the Box folder.")
@click.option("--keep-download", is_flag=True, help="With --from-box: keep the zip in --output-dir.")
@click.option("--list", "show_list", is_flag=True, help="Show the snapshots there are, newest first.")
@click.option("--verify-only", is_flag=True, help="Check the snapshot and stop; needs no credentials.")
@click.option("--dry-run", is_flag=True, help="Everything but writing; prints the plan.")
@click.option(
    "--collection",
    "collections",
    metavar="NAME",
    multiple=True,
    help="Restore this collection only. Repeatable.",
)
@click.option(
    "--on-existing",
    type=click.Choice([choice.value for choice in OnExisting]),
    default="fail",
    show_default=True,
    help="What to do about a collection that already holds documents.",
)
@click.option(
    "--vectorize",
    type=click.Choice([choice.value for choice in Vectorize]),
    default="fail",
    show_default=True,
    help="What to do about documents with both $vector and $vectorize.",
)
@click.option("--force-incomplete", is_flag=True, help="Use an INCOMPLETE snapshot's good collections.")
@click.version_option(TOOL_VERSION, prog_name="restore.py")
def main(snapshot: str, show_list: bool, verify_only: bool, dry_run: bool, **options: Any) -> int:
    """Restore SNAPSHOT: a directory, a zip, a snapshot's name, or `latest` (the default).

    All of the snapshot is verified and the plan is checked against the target before anything is written. At the end
    the target is compared with the snapshot.

    \b
    Examples:
      python restore.py --list                        what there is
      python restore.py --verify-only                 is the latest whole?
      python restore.py --dry-run --keyspace scratch  what would happen
      python restore.py 20260616_085246               restore that one
    """  # noqa: D301  (\b is click's mark for a paragraph that is not wrapped)
    if show_list:
        return list_snapshots(options)
    with Report(quiet=options["quiet"]) as report:
        started = time.monotonic()
        target = None if verify_only else make_target(options)
        choices = Choices(
            options["collections"],
            OnExisting(options["on_existing"]),
            Vectorize(options["vectorize"]),
            options["workers"],
        )
        with fetched_snapshot(snapshot, options, report) as path:
            verified = verify_snapshot(
                open_snapshot(path),
                force_incomplete=options["force_incomplete"],
                workers=choices.workers,
                report=report,
            )
            select_records(verified, choices)
            if target is None:
                return _print_verified(verified, time.monotonic() - started, as_json=options["as_json"])
            return run_restore(verified, target, choices, report, dry_run=dry_run, as_json=options["as_json"])


def run_restore(
    verified: Verified, target: Target, choices: Choices, report: Report, *, dry_run: bool, as_json: bool
) -> int:
    """Plan, show, carry out, compare, print. Returns the exit code."""
    started = time.monotonic()
    plan = make_plan(verified, DataApi(target, READ_COMMANDS, stop_event), choices)
    rows = [f"{planned.target_name}: {planned.action}" for planned in plan]
    log.info(
        "Plan for keyspace %s of %s:\n  %s",
        target.keyspace,
        target.api_endpoint,
        "\n  ".join(rows) or "nothing",
    )
    if dry_run:
        print_result(json.dumps({"status": "dry-run", "exit_code": 0, "plan": rows}) if as_json else "\n".join(rows))
        return RestoreExit.OK
    outcomes = restore(verified, plan, DataApi(target, WRITE_COMMANDS, stop_event), choices, report)
    code = exit_code(outcomes)
    duration_s = time.monotonic() - started
    _print_outcomes(verified, target, outcomes, code, warnings=report.warnings, duration_s=duration_s, as_json=as_json)
    return code


@contextlib.contextmanager
def fetched_snapshot(wanted: str, options: dict[str, Any], report: Report) -> Iterator[Path]:
    """The path of a snapshot; for --from-box it is downloaded, and removed when it is not needed any more."""
    output_dir: Path = options["output_dir"]
    if not options["from_box"]:
        yield find_snapshot(wanted, output_dir)
        return
    box = Box(read_box_config(options), stop_event)
    file = find_in_box(box, wanted)
    output_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = output_dir / (file.name if options["keep_download"] else f".{file.name}")
    log.info("Downloading %s, %s, from Box.", file.name, size_text(file.size_bytes))
    box.download(file, path, report)
    try:
        yield path
    finally:
        if not options["keep_download"]:
            path.unlink(missing_ok=True)


def find_in_box(box: Box, wanted: str) -> BoxFile:
    """The file for a snapshot's name, or the latest. Raises BackupError when there is none."""
    found = box.snapshots()
    if wanted == "latest" and found:
        return found[0]
    for file in found:
        if file.name in (wanted, f"{wanted}.zip"):
            return file
    what = "no complete snapshot" if wanted == "latest" else f"no snapshot {wanted!r}"
    raise BackupError(f"There is {what} in the Box folder.", "restore.py --from-box --list shows what is there.")


def list_box(options: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each snapshot in Box, newest first; the beginning of each zip has its manifest."""
    box = Box(read_box_config(options), stop_event)
    rows = []
    for file in box.snapshots():
        row = _list_row(file.name.removesuffix(".zip")) | {"size_bytes": file.size_bytes}
        with contextlib.suppress(FormatError):
            manifest = decode_manifest(first_zip_entry(lambda size, file=file: box.read_beginning(file, size)))  # type: ignore[misc]
            row |= _manifest_row(manifest)
        rows.append(row)
    return rows


def first_zip_entry(read: Callable[[int], bytes]) -> bytes:
    """The content of the first entry of a stored zip; `read(n)` gives the first n bytes. Raises FormatError."""
    head = read(4096)
    if head[:4] != b"PK\3\4" or len(head) < 66:
        raise FormatError("no zip of ours")
    method, (name_size, extra_size) = head[8:10], struct.unpack_from("<HH", head, 26)
    extra = head[30 + name_size :][:extra_size]
    if method != b"\0\0" or extra[:4] != struct.pack("<HH", 1, 16):
        raise FormatError("no zip of ours")
    (size,) = struct.unpack_from("<Q", extra, 4)
    start = 30 + name_size + extra_size
    if size > MAX_MANIFEST_BYTES:
        raise FormatError("its first entry is no manifest")
    return (head if start + size <= len(head) else read(start + size))[start : start + size]


def list_snapshots(options: dict[str, Any]) -> int:
    """Print the snapshots there are, newest first. Raises BackupError if the directory is not there."""
    place = "Box" if options["from_box"] else options["output_dir"]
    rows = list_box(options) if options["from_box"] else list_local(options["output_dir"])
    if options["as_json"]:
        print_result(json.dumps(rows))
    for row in [] if options["as_json"] else rows:
        size = size_text(row["size_bytes"])
        mark = "  some collections only" if row["is_selection"] else ""
        print_result(f"{row['name']:<28} {row['status']:<11} {row['documents']:>12,} documents {size:>10}{mark}")
    if not rows:
        log.warning("There are no snapshots in %s.", place)
    return RestoreExit.OK


def list_local(output_dir: Path) -> list[dict[str, Any]]:
    """A row for each snapshot in a directory, newest first."""
    if not output_dir.is_dir():
        raise BackupError(f"There is no directory {output_dir}.", "Check --output-dir (BACKUP_OUTPUT_DIR).")
    rows = []
    for path, (_, incomplete) in local_snapshots(output_dir):
        row = _list_row(path.name)
        with contextlib.suppress(SnapshotRefused, OSError):
            snapshot = open_snapshot(path)
            row |= _manifest_row(read_manifest(snapshot)) | {"size_bytes": sum(snapshot.sizes.values())}
        if incomplete and row["status"] == "complete":
            row["status"] = "incomplete"
        rows.append(row)
    return rows


def _list_row(name: str) -> dict[str, Any]:
    """A row of the list for a snapshot of which nothing is known yet."""
    row: dict[str, Any] = {"name": name, "created_at_utc": "", "documents": 0, "size_bytes": 0}
    return row | {"status": "unreadable", "is_selection": False}


def _manifest_row(manifest: Manifest) -> dict[str, Any]:
    """What a manifest has to say in the list."""
    return {
        "created_at_utc": manifest.created_at_utc,
        "documents": sum(record.document_count for record in manifest.collections),
        "status": "complete" if manifest.is_complete else "incomplete",
        "is_selection": manifest.selection is not msgspec.UNSET,
    }


def _print_verified(verified: Verified, duration_s: float, *, as_json: bool) -> int:
    documents = sum(stats.document_count for stats in verified.stats.values())
    vectors = sum(stats.vector_count for stats in verified.stats.values())
    size = sum(verified.snapshot.sizes.values())
    if as_json:
        fields = {
            "status": "verified",
            "exit_code": 0,
            "snapshot": str(verified.snapshot.path),
            "documents": documents,
        }
        print_result(json.dumps({**fields, "vectors": vectors, "size_bytes": size, "warnings": verified.warnings}))
    else:
        print_result(
            f"{verified.snapshot.path}: whole; {len(verified.stats)} collections, {documents:,} documents,"
            f" {vectors:,} vectors, {size_text(size)}, {duration_s:.1f} s"
        )
    return RestoreExit.OK


def _print_outcomes(
    verified: Verified,
    target: Target,
    outcomes: list[Outcome],
    code: RestoreExit,
    *,
    warnings: list[str],
    duration_s: float,
    as_json: bool,
) -> None:
    rows = [_outcome_row(outcome) for outcome in outcomes]
    if as_json:
        print_result(
            json.dumps(
                {
                    "status": code.name.lower(),
                    "exit_code": int(code),
                    "snapshot": str(verified.snapshot.path),
                    "keyspace": target.keyspace,
                    "collections": rows,
                    "warnings": warnings,
                    "duration_seconds": round(duration_s, 3),
                }
            )
        )
        return
    inserted = sum(outcome.inserted for outcome in outcomes)
    kept = sum(outcome.already_there for outcome in outcomes)
    problems = [f"{row['target']}: {row['problem']}" for row in rows if row["problem"]]
    verdict = "; ".join(problems) or "compared with the snapshot: equal"
    print_result(
        f"{len(outcomes)} collections into keyspace {target.keyspace}: {inserted:,} documents inserted,"
        f" {kept:,} were there already, {duration_s:.1f} s; {verdict}"
    )


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    found = outcome.comparison or Comparison()
    problem = outcome.error or ""
    if outcome.rejected:
        problem = f"{outcome.rejected:,} documents refused by the server, in {outcome.rejects_file}. {problem}".strip()
    if is_different(outcome) or found.extra:
        problem = f"{problem} {found.describe()}".strip()
    return {
        "name": outcome.planned.record.name,
        "target": outcome.planned.target_name,
        "documents": outcome.planned.record.document_count,
        "inserted": outcome.inserted,
        "already_there": outcome.already_there,
        "rejected": outcome.rejected,
        "missing": found.missing,
        "extra": found.extra,
        "different": found.different,
        "equal": outcome.comparison is not None and not is_different(outcome),
        "error": outcome.error,
        "problem": problem,
    }


if __name__ == "__main__":
    run_command(main)
