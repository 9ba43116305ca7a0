#!/usr/bin/env python3
"""Back up the collections of a DataStax Astra DB keyspace, vectors and ids included, and prove it.

    backups/
      20260616_085246/            complete: the name alone promises it
        manifest.json
        assets.jsonl.gz           one document a line
        SHA256SUMS                `sha256sum -c SHA256SUMS` works with no tool of ours
      20260617_085246.INCOMPLETE/ finished, but a collection failed
      .20260618_085246.inprogress/ a run in progress, or one that died

A document is the dict of its members, each kept as the server's JSON text. Before the manifest is written, what is
wrapped in a line was unwrapped again and compared, the bytes of each file decompress to its lines, and the disk holds
these bytes. docs/FORMAT.md describes the files, docs/DESIGN.md the decisions.

Importing this module promises: no side effect, and that the contract (`encode_document`, `decode_document`,
`Manifest`, `DataStats`) is what `restore.py` uses. `restore.py` and `snapshots.py` import this file, never the other
way.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":  # the imports take a while: a signal meanwhile ends in its code, not in a traceback
    for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_number) is not signal.SIG_IGN:
            signal.signal(_number, lambda number, _: os._exit(128 + number))

import base64
import bisect
import contextlib
import copy
import dataclasses
import difflib
import errno
import fcntl
import functools
import hashlib
import io
import ipaddress
import itertools
import json
import logging
import operator
import random
import re
import resource
import shlex
import shutil
import ssl
import stat
import string
import struct
import sys
import threading
import time
import traceback
import urllib.parse
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import IntEnum
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, Protocol, Self, TypeVar

import click
import msgspec
import pybase64
from isal import isal_zlib

if TYPE_CHECKING:
    import httpx
    import requests
    from rich.live import Live
    from rich.progress import ProgressColumn, Task

# ======================================================================================================================
# Names and limits
# ======================================================================================================================

TOOL_NAME = "astra-backup"
TOOL_VERSION = "1.0.0"
FORMAT_VERSION = "1.1"

MANIFEST_NAME = "manifest.json"
CHECKSUMS_NAME = "SHA256SUMS"
LOCK_NAME = ".lock"
INCOMPLETE_SUFFIX = ".INCOMPLETE"

DEFAULT_KEYSPACE = "default_keyspace"
DEFAULT_OUTPUT_DIR = Path("backups")

MAX_REPLY_BYTES = 256 * 1024 * 1024  # a page of 50 of the largest documents has 200 MB
MIN_ZIP_BYTES = 66  # the header of one entry, its shortest name, and the end of a zip
MAX_DEFINITION_DEPTH = 50
MAX_SETTINGS_BYTES = 64 * 1024  # of `.env`, or of a file with a secret, with recipients or with an identity
MAX_MESSAGE_CHARS = 10_000  # of a message on the terminal or in the log
MAX_AGE_HEADER_BYTES = 64 * 1024  # some 500 recipients; the time to read a header grows with its square
READ_BYTES = 128 * 1024
GROUP_LINES, GROUP_BYTES = 50, 1024 * 1024  # what is written at once
GZIP_LEVEL = 1
GZIP_WBITS = 31  # zlib's number for "with a gzip header"

CONNECT_TIMEOUT_S = 10.0
FIRST_CONTACT_BUDGET_S = 30.0  # how long a host that was never reached is tried
MAX_BACKOFF_S = 30.0
MAX_STALLED_PAGES = 5  # pages in a row that bring nothing and lead nowhere
HEARTBEAT_S = 30.0
SIGNAL_POLL_S = 0.5
NARROW_COLUMNS = 76  # below, there is room for a name and its figures only
REFRESH_S = 0.2  # how often bars are drawn
BARS_MARGIN_LINES, BARS_MARGIN_COLUMNS = 3, 2  # a "^C" must not wrap: the bars above it could not be erased
MANIFESTS_AT_ONCE = 8  # beginnings of zips that are read from Box at once
PING_LINES = 20  # log lines in a ping's body
STOP_GRACE_S = 8.0  # a stopped run ends within 10 seconds
SIDE_QUESTION_BUDGET_S = 5.0  # patience with what a backup can do without: estimates, tables, other keyspaces
LAST_IN_BOX_S = 60.0  # how long the last snapshot is looked for in Box: a run waits for it
MAX_SENTENCES = 100  # about what shrank, in the log and in the manifest

# Known to pass, whatever family the server counts them to: its own list, and an embedding provider that is busy.
RETRYABLE_CODES = frozenset(
    {
        "TIMEOUT_READING_DATA",
        "TIMEOUT_WRITING_DATA",
        "UNAVAILABLE_DATABASE",
        "FAILED_READ_REQUEST",
        "FAILED_WRITE_REQUEST",
        "FAILED_CONCURRENT_OPERATIONS",
        "FAILED_COMPARE_AND_SET",
        "FAILED_TO_CONNECT_TO_DATABASE",
        "FAILED_TO_READ_METADATA",
        "INTERNAL_SERVER_ERROR",
        "EMBEDDING_PROVIDER_RATE_LIMITED",
        "EMBEDDING_PROVIDER_TIMEOUT",
        "EMBEDDING_PROVIDER_UNAVAILABLE",
        "EMBEDDING_PROVIDER_SERVER_ERROR",
    }
)
UNEXPECTED_CODES = frozenset({"UNEXPECTED_DRIVER_ERROR", "UNEXPECTED_SERVER_ERROR"})
NO_TABLES_CODES = frozenset({"COMMAND_UNKNOWN", "NO_COMMAND_MATCHED", "TABLE_FEATURE_NOT_ENABLED"})
"""A server that has no tables, as it is too old for them, answers `listTables` with one of these."""
SYSTEM_KEYSPACES = re.compile(
    "system|system_(auth|schema|distributed|traces|views|virtual_schema|cluster_metadata|backups)"
    "|dse_.*|solr_admin|OpsCenter|datastax_sla|data_endpoint_auth"
)

NO_SPACE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
NOT_SUPPORTED_ERRNOS = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK})
"""How a file system says that it cannot flush a directory, or has no locks."""

log = logging.getLogger("astra_backup")

_S = TypeVar("_S")
_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])
_E = TypeVar("_E", bound=int)


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size_text(size_bytes: float) -> str:
    """A size for people."""
    from rich.filesize import decimal

    return decimal(int(size_bytes))


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def escape_controls(text: str) -> str:
    """The text with control characters written as JSON writes them: a terminal shows them and obeys none."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def safe_text(text: str) -> str:
    """A message that a person can be shown, whatever a stranger wrote into it."""
    rest = len(text) - MAX_MESSAGE_CHARS
    return escape_controls(text[:MAX_MESSAGE_CHARS]) + (f"… ({rest:,} characters more)" if rest > 0 else "")


# ======================================================================================================================
# Exit codes and errors
# ======================================================================================================================


class ExitCode(IntEnum):
    """An exit code with its meaning. Each script has its own members; the tables of the documents are made of them."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """Make a member of a number that carries its meaning."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class Exit(ExitCode):
    """Exit codes of `astra_backup.py`."""

    OK = 0, "complete, and in Box unless `--no-box`; `--check`: no ✗"
    FAILED = 1, "configuration, usage or connection: nothing useful was written"
    INCOMPLETE = 2, "one or more collections failed; the snapshot is `INCOMPLETE` and was not uploaded"
    UPLOAD_FAILED = 3, "the local snapshot is good and is kept, the Box upload failed"
    LOCKED = 4, "another run holds the output directory"
    SHRUNK = 5, "complete, and in Box unless `--no-box`, but a collection shrank beyond what was allowed"
    HUNG_UP = 129, "stopped by SIGHUP (the terminal is gone)"
    INTERRUPTED = 130, "stopped by SIGINT (Ctrl-C)"
    TERMINATED = 143, "stopped by SIGTERM"


class BackupError(click.ClickException):
    """An error with its exit code and a hint that says what to do next."""

    exit_code: ClassVar[int] = Exit.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class LockedError(BackupError):
    """Another run holds the output directory."""

    exit_code = Exit.LOCKED


class LossyError(BackupError):
    """A document holds something that this tool cannot write without loss."""


class FormatError(ValueError):
    """A line, a manifest or a file of a snapshot is not what the format allows."""


class DuplicateNameError(FormatError):
    """An object has a name twice."""


class RequestError(BackupError):
    """A request to the Data API failed.

    `status` is the HTTP status (None: no reply), `code` the server's errorCode (None: it gave none). `retryable` errors
    may pass; `unexpected` ones may also be permanent, so they are tried only a few times, after which those that are
    not `retryable` count as final. `retry_after_s` is what the server asked for, `detail` all that it said.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        status: int | None = None,
        code: str | None = None,
        retryable: bool = False,
        unexpected: bool = False,
        retry_after_s: float | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message, hint)
        self.detail = detail
        self.status = status
        self.code = code
        self.retryable = retryable
        self.unexpected = unexpected
        self.retry_after_s = retry_after_s

    @property
    def is_denied(self) -> bool:
        """Whether the token may not do what was asked."""
        return self.status in (401, 403) or self.code == "UNAUTHORIZED_ACCESS"


class PageStateError(BackupError):
    """The place in the scan is lost: the collection has to be read from its start."""


def describe_error(error: BaseException, *, with_path: bool = True) -> str:
    """One line for an error: what failed, why and what to do. `with_path=False` where the file was named already."""
    if isinstance(error, BackupError):
        return f"{error.message} {error.hint}".strip()
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f' ({error.filename})' if error.filename and with_path else ''}"
    return str(error) if isinstance(error, FormatError) else f"{type(error).__name__}: {error}"


# ======================================================================================================================
# Documents. docs/FORMAT.md is this section and the next one in prose. Uses nothing below.
# ======================================================================================================================
#
# A document is the dict of its top-level members, each kept as the server's JSON text. A value is opened only where
# something to wrap may stand in it, again as members or elements, as deep as needed: a leaf's bytes are never encoded
# again, so escapes, digits and spelling stay.

_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_elements_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_floats_decoder = msgspec.json.Decoder(list[float])

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
# A number of at most 15 digits and a two-digit exponent always survives a 64-bit float; only others are looked at.
_LONG_NUMBER = re.compile(rb"[-0-9](?:[0-9.]{15}|[0-9.]*+[eE][+-]?[0-9]{3})")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*)")
_DATE = re.compile(rb"0|-?[1-9][0-9]*")
_UUID = re.compile(rb'"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"')
_OBJECT_ID = re.compile(rb'"[0-9A-Fa-f]{24}"')
_BASE64 = re.compile(rb'"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"')
_BINARY_BEGIN, _BINARY_END = b'{"$binary":"', b'"}'

_OWN_NAMES = frozenset({"$vector", "$vectorize", "$lexical"})  # at the top level only
_BINARY_MARK = {"$backupVector": b'"binary"'}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MAX_DATE_DIGITS = 19


def compact_json(text: bytes) -> bytes:
    """Return the same JSON with no white space between tokens; strings and the digits of numbers stay as they are.

    May be called twice. Raises FormatError for what is not JSON in UTF-8.
    """
    try:
        if not text.isascii():
            text.decode()
        return msgspec.json.format(text, indent=-1)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}") from error


def split_object(text: bytes) -> dict[str, bytes]:
    """Return the members of a JSON object: names as they are spelt between their quotes, values as compact JSON text.

    `join_object` gives the compact text again. Raises FormatError for what is no object, or has a name twice.
    """
    try:
        found = _members_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"not a JSON object: {error}") from error
    members = {name: bytes(value) for name, value in found.items()}
    # White space, a second member of a name and an escape in a name each make the text longer than this.
    if members and sum(map(len, members)) + sum(map(len, members.values())) + 4 * len(members) + 1 != len(text):
        return _split_exactly(compact_json(text), list(members.values()))
    for name, value in members.items():
        if value[:1] in (b"{", b"[") and (b" " in value or b"\n" in value or b"\r" in value or b"\t" in value):
            members[name] = compact_json(value)
    return members


def _split_exactly(text: bytes, values: list[bytes]) -> dict[str, bytes]:
    """`split_object` of a compact text whose names have escapes; msgspec reads those, and of two names keeps one."""
    members: dict[str, bytes] = {}
    at = 1
    for value in map(compact_json, values):
        name = _STRING.match(text, at)
        if name is None or not text.startswith(b":" + value, name.end()):
            raise DuplicateNameError("an object has a name twice")
        members[name[0][1:-1].decode()] = value
        at = name.end() + len(value) + 2
    if len(members) != len(values) or at != max(len(text), 2):
        raise DuplicateNameError("an object has a name twice")
    return members


def join_object(members: dict[str, bytes]) -> bytes:
    """The JSON text of an object; inverse of `split_object`."""
    return (
        b"{"
        + b",".join([b'"%b":%b' % (name.encode(errors="replace"), value) for name, value in members.items()])
        + b"}"
    )


def _split_array(text: bytes) -> list[bytes]:
    return [bytes(element) for element in _elements_decoder.decode(text)]


class Document(dict[str, bytes]):
    """The top-level members of a document, a row or a line: names as they are spelt, values as compact JSON text."""

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read a document or a line. Raises FormatError for what is none: no JSON object in UTF-8, or without `_id`."""
        try:
            if not text.isascii():
                text.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"not UTF-8: {error}") from error
        document = cls(split_object(text))
        if "_id" not in document:
            raise FormatError("a document has no _id")
        return document

    def text(self) -> bytes:
        """The document's JSON text."""
        return join_object(self)

    @property
    def id(self) -> bytes:
        """The JSON text of `_id`."""
        return self["_id"]

    @property
    def has_vector(self) -> bool:
        """Whether the document carries a vector (null is none)."""
        return self.get("$vector", b"null") != b"null"

    @property
    def has_binary_vector(self) -> bool:
        """Whether the server holds the vector as `{"$binary": …}`."""
        return "$backupVector" in self or self.get("$vector", b"")[:1] == b"{"

    @property
    def has_vectorize(self) -> bool:
        """Whether the document carries a text for an embedding service (null or blank is none)."""
        vectorize = self.get("$vectorize", b"null")
        return vectorize != b"null" and not (vectorize[:1] == b'"' and not json.loads(vectorize).strip())

    @property
    def needs_choice(self) -> bool:
        """Whether it has both `$vector` and `$vectorize`, which no write path takes, and one would be lost."""
        return "$vector" in self and "$vectorize" in self and (self.has_vector or self.has_vectorize)

    @property
    def has_lexical(self) -> bool:
        """Whether the document carries a text for lexical search (null is none)."""
        return self.get("$lexical", b"null") != b"null"

    def decoded(self) -> Document:
        """Return the document as the server held it, for the members of a line; inverse of `encode_document`.

        Also reads what older scripts wrote: `date`, `set` and `datetime` in any form. Raises FormatError for a wrapped
        value that cannot be read.
        """
        mark = self.get("$backupVector")
        if mark is not None and (mark != _BINARY_MARK["$backupVector"] or next(reversed(self)) != "$backupVector"):
            raise FormatError("a $backupVector that cannot be read")
        document = Document()
        for name, value in self.items():
            if name.startswith("$backup") and name != "$backupVector":
                raise FormatError(f"a wrapped value that cannot be read: {name}")
            document[name] = decode_value(value)
        if document.pop("$backupVector", None):
            document["$vector"] = decode_vector(self.get("$vector", b""))
        return document


def encode_document(text: bytes) -> tuple[bytes, Document]:
    """Return the line (without a newline) and the document for the JSON text of a document.

    What is wrapped is unwrapped again and compared; for the text of floats `make float32` has tried each there is.
    Raises LossyError where a line would lose something, FormatError for what is not a document.
    """
    try:
        document = Document.parse(text)
        return _encode_members(document), document
    except DuplicateNameError as error:
        raise _lossy(str(error)) from error
    except RecursionError as error:
        raise FormatError("a document that is nested too deep") from error


def _encode_members(document: Document) -> bytes:
    line, is_binary = dict(document), False
    for name, value in document.items():
        if name == "$vector":
            line[name], is_binary = encode_vector(value)
            continue
        if _is_dollar_name(name) and name not in _OWN_NAMES:
            raise _lossy(name)
        if value[:1] != b'"':
            line[name] = encoded = encode_value(value)
            if encoded is not value and decode_value(encoded) != value:
                raise _lossy(name)
    return join_object(line | _BINARY_MARK if is_binary else line)


def encode_row(text: bytes) -> tuple[bytes, None]:
    """The line of a row of a table: the server's text without white space, to the digit. Raises LossyError."""
    try:
        return join_object(split_object(text)), None
    except DuplicateNameError as error:
        raise _lossy(str(error)) from error
    except RecursionError as error:
        raise FormatError("a row that is nested too deep") from error


def decode_document(line: bytes) -> bytes:
    """`Document.decoded` for the text of a line. Raises FormatError for a line that is no document, too."""
    return Document.parse(line).decoded().text()


def encode_value(text: bytes) -> bytes:
    """Return a value's JSON text as it stands in a line; the very same object where nothing is to be wrapped.

    Raises LossyError for a `$`-name that is not known where it stands.
    """
    first = text[:1]
    if first == b'"' or not (b'"$' in text or b"\\u0024" in text or _LONG_NUMBER.search(text)):
        return text
    if first == b"{":
        return _encode_object(text)
    if first == b"[":
        return b"[" + b",".join(map(encode_value, _split_array(text))) + b"]"
    if _INTEGER.fullmatch(text) or _survives_float(text.decode()):
        return text
    return _envelope("decimal", b'"' + text + b'"')


def _encode_object(text: bytes) -> bytes:
    members = split_object(text)
    kind = next(iter(members), "")
    if kind in _ENCODERS:
        return (len(members) == 1 and _ENCODERS[kind](members[kind])) or _encode_whole(text, members, kind)
    if name := next(filter(_is_dollar_name, members), None):
        raise _lossy(name)
    return join_object({name: encode_value(value) for name, value in members.items()})


def _encode_whole(text: bytes, members: dict[str, bytes], kind: str) -> bytes:
    """A typed value with content that no reader of that type knows, as an unindexed field may hold it."""
    for name, value in members.items():
        if name != kind and _is_dollar_name(name):
            raise _lossy(name)
        encode_value(value)  # raises for what is not known
    return _envelope("wire", json.dumps(text.decode(), ensure_ascii=False).encode())


def _is_dollar_name(name: str) -> bool:
    return name.startswith(("$", "\\u0024"))


def _lossy(name: str) -> LossyError:
    return LossyError(
        f"Refusing to write a lossy backup: {name!r} is not known here.",
        "A type newer than this tool? Extend `_ENCODERS` and `_DECODERS` in astra_backup.py.",
    )


def _envelope(kind: str, value: bytes) -> bytes:
    return b'{"$backupType":"%b","value":%b}' % (kind.encode(), value)


def _encode_date(value: bytes) -> bytes | None:
    if not _DATE.fullmatch(value):
        return None
    try:
        moment = _EPOCH + int(value[: _MAX_DATE_DIGITS + 1]) * _MILLISECOND
    except OverflowError:
        return _envelope("timestamp_ms", value)
    return _envelope("datetime", b'"%b"' % moment.isoformat(timespec="milliseconds").encode())


def _encode_text(kind: str, pattern: re.Pattern[bytes]) -> Callable[[bytes], bytes | None]:
    return lambda value: _envelope(kind, value) if pattern.fullmatch(value) else None


_ENCODERS: dict[str, Callable[[bytes], bytes | None]] = {
    "$date": _encode_date,
    "$uuid": _encode_text("uuid", _UUID),
    "$objectId": _encode_text("objectid", _OBJECT_ID),
    "$binary": _encode_text("bytes_b64", _BASE64),
}
"""What becomes of the value of a typed value; None: it is not of that type's form."""


def _survives_float(number: str) -> bool:
    """Whether a reader that keeps numbers as 64-bit floats gets the same value."""
    try:
        return Decimal(number) == Decimal(repr(float(number)))
    except InvalidOperation:  # an exponent that even Decimal does not hold
        return False


def decode_value(text: bytes) -> bytes:
    """Return the server's JSON text of a value in a line; inverse of `encode_value`. Raises FormatError."""
    if b'"$backup' not in text:
        return text
    try:
        if text[:1] == b"[":
            return b"[" + b",".join(map(decode_value, _split_array(text))) + b"]"
        if text[:1] != b"{":
            return text
        members = split_object(text)
        if not any(name.startswith("$backup") for name in members):
            return join_object({name: decode_value(value) for name, value in members.items()})
        if list(members) != ["$backupType", "value"]:
            raise FormatError(f"a wrapped value that cannot be read: {', '.join(members)}")
        return _decode_envelope(members["$backupType"], members["value"])
    except RecursionError as error:
        raise FormatError("a value that is nested too deep") from error


def _decode_envelope(quoted_kind: bytes, value: bytes) -> bytes:
    kind = quoted_kind[1:-1].decode(errors="replace")
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise FormatError(f"a value of the unknown type {kind!r}: the snapshot was written by a newer tool")
    try:
        return decoder(value)
    except (ValueError, OverflowError, TypeError) as error:
        raise FormatError(f"a {kind} value that cannot be read: {error}") from error


def _decode_datetime(value: bytes) -> bytes:
    moment = datetime.fromisoformat(json.loads(value))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return b'{"$date":%d}' % round((moment - _EPOCH) / _MILLISECOND)


def _decode_timestamp(value: bytes) -> bytes:
    if not _DATE.fullmatch(value):
        raise ValueError("not a whole number of milliseconds")
    return b'{"$date":%b}' % value


def _decode_text(name: bytes) -> Callable[[bytes], bytes]:
    def decode(value: bytes) -> bytes:
        if not value.startswith(b'"'):
            raise ValueError("not a string")
        return b'{"%b":%b}' % (name, value)

    return decode


def _decode_set(value: bytes) -> bytes:
    if not value.startswith(b"["):
        raise ValueError("not an array")
    return decode_value(value)


def _decode_decimal(value: bytes) -> bytes:
    text = json.loads(value)
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise ValueError("not a JSON number")
    return text.encode()


def _decode_wire(value: bytes) -> bytes:
    decoded = json.loads(value)
    text = decoded.encode() if isinstance(decoded, str) else b""
    if not text or compact_json(text) != text or decode_value(text) != text:
        raise ValueError("not the compact JSON of a server's value")
    return text


_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "datetime": _decode_datetime,
    "date": _decode_datetime,
    "timestamp_ms": _decode_timestamp,
    "uuid": _decode_text(b"$uuid"),
    "objectid": _decode_text(b"$objectId"),
    "bytes_b64": _decode_text(b"$binary"),
    "set": _decode_set,
    "decimal": _decode_decimal,
    "wire": _decode_wire,
}


def encode_vector(vector: bytes) -> tuple[bytes, bool]:
    """Return a line's text of `$vector`, and whether it was binary and is an array of floats now.

    An array keeps its digits. A binary vector that an array cannot hold becomes a `wire` value.
    """
    raw = _binary_floats(vector)
    array = None if raw is None else _float32_texts(raw)
    return (_plain_vector(vector), False) if array is None else (array, True)


def decode_vector(array: bytes) -> bytes:
    """Return `{"$binary": …}` (big-endian float32) for the JSON text of an array of numbers. Raises FormatError.

    What `encode_vector` wrote is printed the same again, or else each number is rounded to float32 from its text: a
    64-bit float in between may round it to the neighbour.
    """
    import numpy
    import orjson

    try:
        with numpy.errstate(over="ignore"):
            floats = numpy.array(_floats_decoder.decode(array), dtype="f8").astype("f4")
    except msgspec.DecodeError as error:
        raise FormatError(f"a vector that is not an array of floats: {error}") from error
    if not numpy.isfinite(floats).all():
        raise FormatError("a vector with a number beyond float32")
    if len(floats) and orjson.dumps(floats, option=orjson.OPT_SERIALIZE_NUMPY) != array:
        floats = numpy.array([_nearest_float32(text.decode()) for text in array.strip()[1:-1].split(b",")])
    return _BINARY_BEGIN + pybase64.b64encode(floats.astype(">f4").tobytes()) + _BINARY_END


def _plain_vector(vector: bytes) -> bytes:
    """The text of a vector that is no binary one: an array as it is, any typed value as a `wire` value."""
    if not vector.startswith(b"{"):
        if b'"$' in vector or b"\\u0024" in vector:
            raise _lossy(vector[:40].decode(errors="replace"))
        return vector
    members = split_object(vector)
    kind = next(iter(members), "")
    if kind not in _ENCODERS:
        raise _lossy(vector[:40].decode(errors="replace"))
    return _encode_whole(vector, members, kind)


def _binary_floats(vector: bytes) -> bytes | None:
    """The bytes of a binary vector; None if it is none, or if the same base64 would not come back."""
    if not vector.startswith(_BINARY_BEGIN) or not vector.endswith(_BINARY_END):
        return None
    base64_text = vector[len(_BINARY_BEGIN) : -len(_BINARY_END)]
    try:
        raw = pybase64.b64decode(base64_text)
    except ValueError:
        return None
    return raw if len(raw) % 4 == 0 and pybase64.b64encode(raw) == base64_text else None


def _float32_texts(raw: bytes) -> bytes | None:
    """The array of the shortest texts of big-endian float32; None if NaN or infinity is among them."""
    import numpy
    import orjson

    floats = numpy.frombuffer(raw, dtype=">f4").astype("=f4")
    return orjson.dumps(floats, option=orjson.OPT_SERIALIZE_NUMPY) if numpy.isfinite(floats).all() else None


def _nearest_float32(number: str) -> Any:
    """The float32 nearest to a decimal text, rounded once."""
    import numpy

    guess = numpy.float32(number)
    if not guess and not float(number):  # `1e-99999999` is 0, at once; the sign stays
        return guess
    try:
        exact = Fraction(number.strip())
    except ValueError as error:  # more than 4,300 digits
        raise FormatError(f"a vector with a number that is too long: {error}") from error
    with numpy.errstate(over="ignore"):
        nearby = [guess, numpy.nextafter(guess, numpy.float32("inf")), numpy.nextafter(guess, numpy.float32("-inf"))]
    return min(filter(numpy.isfinite, nearby), key=lambda candidate: abs(Fraction(float(candidate)) - exact))


# ======================================================================================================================
# The contract: names, manifest and data files
# ======================================================================================================================

_SNAPSHOT_NAME = re.compile(r"([0-9]{8}_[0-9]{6})(\.INCOMPLETE)?")
_LEFTOVER_NAME = re.compile(
    r"\.[0-9]{8}_[0-9]{6}(\.inprogress|(\.INCOMPLETE)?\.deleting)|\.probe-[0-9a-f]{8}(\.renamed)?"
)
_DIGEST_MODULUS = 1 << 256
AGE_SUFFIX = ".age"

CONSISTENCY = (
    "A scan, not a point in time: documents written while it ran may be old, new or missing;"
    " each id appears at most once."
)
DOCUMENT_FORMAT = {
    "layout": 'one JSON document a line, as the server holds it, typed values wrapped as {"$backupType", "value"}',
    "vector_field": "$vector",
    "special_types": 'datetime, timestamp_ms, uuid, objectid, bytes_b64, decimal, wire; "$backupVector": "binary"',
}
SERDES_OPTIONS: dict[str, Any] = {"custom_datatypes_in_reading": False, "unroll_iterables_to_lists": True}


class Source(msgspec.Struct):
    """Where a snapshot came from."""

    api_endpoint: str = ""
    keyspace: str = ""
    environment: str = ""

    def __str__(self) -> str:
        return f"keyspace {self.keyspace or '(unknown)'} at {self.api_endpoint or '(unknown)'}"


class Selection(msgspec.Struct):
    """What was asked for when it was not everything: --collection and --exclude."""

    collections: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def short_key(name: str) -> str:
    """A public key for people: the middle of a long one is left out."""
    return " ".join(word if len(word) <= 70 else f"{word[:20]}…{word[-20:]}" for word in name.split())


class EncryptionRecord(msgspec.Struct):
    """How all data files are encrypted, and to whom: public keys only."""

    format: str
    recipients: list[str] = []

    def __str__(self) -> str:
        return f"encrypted to: {', '.join(map(short_key, self.recipients)) or 'nobody who is named'}"


class Record(msgspec.Struct, omit_defaults=False):
    """What the manifest says of a collection and of a table.

    None: not known (older scripts), or not there because it failed. `definition` is the server's own text.
    """

    name: str
    status: str = "ok"
    error: str | msgspec.UnsetType | None = msgspec.UNSET  # absent unless it failed
    definition: msgspec.Raw = msgspec.Raw(b"{}")
    data_file: str | None = None
    compressed: bool | None = None
    document_count: int | None = None
    content_digest: str | None = None
    data_sha256: str | None = None
    data_size_bytes: int | None = None
    started_at_utc: str | None = None
    finished_at_utc: str | None = None
    pages: int = 0
    retries: int = 0
    chains: int = 1
    warnings: list[str] | msgspec.UnsetType = msgspec.UNSET  # absent unless there are some

    @property
    def held(self) -> int:
        """How many documents or rows it says that it has."""
        return self.document_count or 0

    @property
    def is_ok(self) -> bool:
        """Whether all documents or rows are there."""
        return self.status == "ok"

    @property
    def is_encrypted(self) -> bool:
        """Whether its data file is, by its name."""
        return (self.data_file or "").endswith(AGE_SUFFIX)

    @property
    def is_compressed(self) -> bool:
        """Whether its data file is gzipped; older scripts say so by its name only."""
        is_gz = (self.data_file or "").removesuffix(AGE_SUFFIX).endswith(".gz")
        return is_gz if self.compressed is None else self.compressed

    def shape(self) -> TableShape | None:
        """The columns and the key of a table. Raises FormatError."""
        return None


class CollectionRecord(Record):
    """One collection in the manifest."""

    kind: ClassVar[str] = "collection"
    noun: ClassVar[str] = "document"  # what it holds

    estimated_document_count: int | None = None
    vector_count: int | None = None
    vector_binary_count: int | None = None
    vectorize_count: int | None = None
    lexical_count: int | None = None


class TableRecord(Record):
    """One table in the manifest, with the server's own text of its indexes."""

    kind: ClassVar[str] = "table"
    noun: ClassVar[str] = "row"

    document_count: int | None = msgspec.field(name="row_count", default=0)
    indexes: msgspec.Raw = msgspec.Raw(b"[]")

    estimated_document_count: ClassVar[None] = None  # no server estimates rows
    vector_count: ClassVar[int] = 0  # vectors of tables are columns, and not counted

    def shape(self) -> TableShape:
        """The columns and the key. Raises FormatError."""
        return TableShape.read(self.name, self.definition)


AnyRecord = CollectionRecord | TableRecord


@dataclass(frozen=True)
class TableShape:
    """What a table's definition says that is needed to read its rows: the columns, and which of them are the key."""

    columns: dict[str, dict[str, Any]]
    partition_by: tuple[str, ...]
    sort: tuple[str, ...]

    @classmethod
    def read(cls, name: str, definition: msgspec.Raw) -> Self:
        """The shape in a definition. Raises FormatError for one that no server has."""
        found = read_definition(name, definition)
        columns, key = found.get("columns"), found.get("primaryKey")
        if isinstance(key, str):  # as createTable takes it
            key = {"partitionBy": [key]}
        if not isinstance(columns, dict) or not isinstance(key, dict):
            raise FormatError(f"the definition of {name} has no columns or no primary key")
        columns = {each: {"type": of} if isinstance(of, str) else of for each, of in columns.items()}
        partition_by, sort = key.get("partitionBy") or [], key.get("partitionSort") or {}
        is_sane = isinstance(partition_by, list) and isinstance(sort, dict) and partition_by
        if not is_sane or not all(isinstance(of, dict) for of in columns.values()):
            raise FormatError(f"the definition of {name} cannot be read")
        if not all(isinstance(each, str) and each in columns for each in (*partition_by, *sort)):
            raise FormatError(f"the definition of {name} has a key of columns that are not there")
        return cls(columns, tuple(partition_by), tuple(sort))

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns of the primary key."""
        return self.partition_by + self.sort

    def unreadable(self) -> list[str]:
        """The columns that no `find` returns."""
        return [
            name
            for name, of in self.columns.items()
            if of.get("type") == "UNSUPPORTED" or (of.get("apiSupport") or {}).get("read") is False
        ]

    def read_row(self, line: bytes) -> Document:
        """The columns of a line of the data file. Raises FormatError, UnicodeDecodeError."""
        if not line.isascii():
            line.decode()
        split_object(line)  # raises for a column that is there twice
        row = Document({name: bytes(value) for name, value in _members_decoder.decode(line).items()})
        if unknown := row.keys() - self.columns.keys():
            raise FormatError(f"columns that the table does not have: {', '.join(sorted(unknown))}")
        if any(row.get(name, b"null") == b"null" for name in self.partition_by):
            raise FormatError("a row without its partition key")
        return row

    def is_static_only(self, row: dict[str, bytes]) -> bool:
        """Whether a row stands for a partition that has static values and no rows."""
        return any(row.get(name, b"null") == b"null" for name in self.sort)

    def key(self, row: msgspec.Raw | bytes) -> bytes:
        """The primary key of a row: a JSON array of the server's text of each column."""
        members = _members_decoder.decode(row)
        return b"[" + b",".join([bytes(members.get(name, b"null")) for name in self.keys]) + b"]"

    def type_names(self) -> set[str]:
        """The user-defined types of its columns."""
        return {name for of in self.columns.values() for name in _udt_names(of)}


def _udt_names(of: Any) -> Iterator[str]:
    """The user-defined types in the definition of a column, which may be inside of a list, a set or a map."""
    if isinstance(of, dict):
        if of.get("type") == "userDefined" and isinstance(of.get("udtName"), str):
            yield of["udtName"]
        for part in ("keyType", "valueType"):
            yield from _udt_names(of.get(part))


_definition_decoder = json.JSONDecoder(parse_float=Decimal)  # no digit is lost on the way to a target


def read_definition(name: str, definition: msgspec.Raw) -> dict[str, Any]:
    """A collection's definition as a dictionary. Raises FormatError for one that no server has."""
    try:
        options = _definition_decoder.decode(bytes(definition).decode())
    except (ValueError, InvalidOperation, RecursionError) as error:
        raise FormatError(f"the definition of {name} cannot be read: {error}") from error
    if not isinstance(options, dict):
        raise FormatError(f"the definition of {name} is not an object")
    if not all(isinstance(options.get(part, {}), dict) for part in ("vector", "lexical")):
        raise FormatError(f"the definition of {name} has a part that is not an object")
    level: list[Any] = [options]
    for _ in range(MAX_DEFINITION_DEPTH):
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
        level = [child for child in level if isinstance(child, (dict, list))]
        if not level:
            return options
    raise FormatError(f"the definition of {name} is nested too deep")


class Totals(msgspec.Struct):
    """Sums over the collections, and over the tables: absent where there are none."""

    collections_ok: int = 0
    collections_failed: int = 0
    documents: int = 0
    tables_ok: int | msgspec.UnsetType = msgspec.UNSET
    tables_failed: int | msgspec.UnsetType = msgspec.UNSET
    rows: int | msgspec.UnsetType = msgspec.UNSET

    def __str__(self) -> str:
        text = f"{plural(self.collections_ok, 'collection')}, {plural(self.documents, 'document')}"
        if not self.tables_ok:
            return text
        return f"{text}, {plural(self.tables_ok, 'table')}, {plural(self.rows or 0, 'row')}"


class Manifest(msgspec.Struct):
    """manifest.json. Unknown fields are ignored, missing ones take the values given here."""

    # Some 12,000 collections; reading takes some 20 times that memory at worst.
    MAX_BYTES: ClassVar[int] = 16 * 1024 * 1024

    backup_format_version: str
    status: str = "complete"
    created_at_utc: str = ""
    finished_at_utc: str = ""
    duration_seconds: float = 0.0
    tool_version: str = ""
    astrapy_version: str = ""
    source: Source = msgspec.field(default_factory=Source)
    selection: Selection | msgspec.UnsetType = msgspec.UNSET  # absent when all collections were asked for
    encryption: EncryptionRecord | msgspec.UnsetType = msgspec.UNSET  # absent when data files are in clear
    warnings: list[str] | msgspec.UnsetType = msgspec.UNSET  # absent unless there are some
    shrunk_from: str | msgspec.UnsetType = msgspec.UNSET  # absent unless more vanished than was allowed
    serdes_options: dict[str, Any] = msgspec.field(default_factory=lambda: dict(SERDES_OPTIONS))
    document_format: dict[str, Any] = msgspec.field(default_factory=lambda: dict(DOCUMENT_FORMAT))
    consistency: str = CONSISTENCY
    totals: Totals = msgspec.field(default_factory=Totals)
    collections: list[CollectionRecord] = []
    tables: list[TableRecord] | msgspec.UnsetType = msgspec.UNSET  # absent when the keyspace has none
    types: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET  # the users' types of the tables, absent without

    @property
    def records(self) -> list[AnyRecord]:
        """The collections and the tables."""
        return [*self.collections, *(self.tables or [])]

    @property
    def good(self) -> list[AnyRecord]:
        """Those of which all is there."""
        return [record for record in self.records if record.is_ok]

    def sums(self) -> Totals:
        """What its totals should be."""
        good = sum(record.is_ok for record in self.collections)
        found = Totals(good, len(self.collections) - good, sum(record.held for record in self.collections))
        if tables := self.tables or []:
            found.tables_ok = sum(record.is_ok for record in tables)
            found.tables_failed = len(tables) - found.tables_ok
            found.rows = sum(record.held for record in tables)
        return found

    @property
    def is_complete(self) -> bool:
        """Whether every collection and every table is in it."""
        return self.status == "complete" and all(record.is_ok for record in self.records)

    def encode(self) -> bytes:
        """The text of manifest.json."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def decode(cls, text: bytes) -> Manifest:
        """Read manifest.json. Raises FormatError for what is none, or has an unknown major version."""
        try:
            text.decode()
            manifest = _manifest_decoder.decode(text)
            for record in manifest.good:
                read_definition(record.name, record.definition)
                record.shape()
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise FormatError(f"{MANIFEST_NAME} cannot be read: {error}") from error
        major = manifest.backup_format_version.partition(".")[0]
        if major != FORMAT_VERSION.partition(".")[0]:
            found = f"{MANIFEST_NAME} has format version {manifest.backup_format_version!r}"
            raise FormatError(f"{found}; this tool reads {FORMAT_VERSION}")
        return manifest

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """The manifest of a local snapshot. Raises FormatError, OSError."""
        path = directory / MANIFEST_NAME
        if path.exists() and not path.is_file():  # reading a FIFO would wait for ever
            raise FormatError(f"{MANIFEST_NAME} is not a file")
        return cls.decode(path.read_bytes())


# Made here, as all decoders of a Struct: msgspec crashes where two threads are the first to decode a type.
_manifest_decoder = msgspec.json.Decoder(Manifest)


@dataclass
class DataStats:
    """What a data file holds. Two are equal when the files and the documents are.

    `content_digest` sums the lines' SHA-256 modulo 2^256; `data_sha256` and `data_size_bytes` are of the file.
    """

    document_count: int = 0
    vector_count: int = 0
    vector_binary_count: int = 0
    vectorize_count: int = 0
    lexical_count: int = 0
    both_count: int = 0  # documents with $vector and $vectorize, which no write path takes
    content_digest: int = 0
    static_only_count: int = 0  # rows that are a partition's static values and nothing else
    data_sha256: str = ""
    data_size_bytes: int = 0

    def count(self, line: bytes, document: Document | None, shape: TableShape | None = None) -> None:
        """Count a document, or a row (`shape`: its table's; None while it is written); add its line to the digest."""
        self.document_count += 1
        digest = int.from_bytes(hashlib.sha256(line).digest(), "big")
        self.content_digest = (self.content_digest + digest) % _DIGEST_MODULUS
        if document is not None and shape:
            self.static_only_count += shape.is_static_only(document)
        elif document is not None:
            self.vector_count += document.has_vector
            self.vector_binary_count += document.has_binary_vector
            self.vectorize_count += document.has_vectorize
            self.lexical_count += document.has_lexical
            self.both_count += document.needs_choice

    def facts(self, record: AnyRecord) -> dict[str, Any]:
        """What the manifest's record of such a file says, by its fields."""
        facts = {"data_sha256": self.data_sha256} | vars(self) | {"content_digest": f"{self.content_digest:064x}"}
        return {name: value for name, value in facts.items() if name in record.__struct_fields__}


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def utc_text(moment: datetime) -> str:
    """ISO 8601 with an offset, to the millisecond."""
    return moment.isoformat(timespec="milliseconds")


def snapshot_name(moment: datetime) -> str:
    """The name of a snapshot that starts at `moment` (UTC)."""
    return moment.strftime("%Y%m%d_%H%M%S")


def snapshot_moment(name: str) -> datetime:
    """The time in a snapshot's name; inverse of `snapshot_name`. Raises ValueError for one that has none."""
    return datetime.strptime(name[:15], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)


def parse_snapshot_name(name: str) -> tuple[str, bool] | None:
    """Return (timestamp, is_incomplete) for a name that is exactly ours, None for any other."""
    match = _SNAPSHOT_NAME.fullmatch(name)
    with contextlib.suppress(ValueError):
        if match and snapshot_name(snapshot_moment(name)) == match[1]:
            return match[1], match[2] is not None
    return None


def is_complete_name(name: str) -> bool:
    """Whether it is the name of a complete snapshot."""
    parsed = parse_snapshot_name(name)
    return parsed is not None and not parsed[1]


def is_past(name: str, now: datetime) -> bool:
    """Whether it is the name of a snapshot that is not from the future."""
    return parse_snapshot_name(name) is not None and snapshot_moment(name) <= now


def data_file_names(collections: Iterable[str], *, compressed: bool, encrypted: bool) -> list[str]:
    """The data files of a run's collections, in the server's order. No file system takes two of them for one.

    The server allows letters, digits and `_`; anything else is escaped, `~` too: it marks the second of two names that
    are equal when case is ignored.
    """
    seen: Counter[str] = Counter()
    files = []
    for name in collections:
        number = seen[name.casefold()] = seen[name.casefold()] + 1
        stem = urllib.parse.quote(name, safe="").replace("~", "%7E") + (f"~{number}" if number > 1 else "")
        files.append(stem + (".jsonl.gz" if compressed else ".jsonl") + (AGE_SUFFIX if encrypted else ""))
    return files


class HashingReader(io.RawIOBase):
    """A binary stream that hashes and counts what is read through it. `advance` is told how many bytes were read."""

    def __init__(self, stream: IO[bytes], advance: Callable[[int], None] | None = None) -> None:
        self._stream, self._advance = stream, advance
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; returns the number of bytes, 0 at the end."""
        size: int = self._stream.readinto(buffer)  # type: ignore[attr-defined]
        self.sha256.update(memoryview(buffer)[:size])
        self.size_bytes += size
        if self._advance:
            self._advance(size)
        return size

    def drain(self) -> None:
        """Read what is left."""
        while self.read(READ_BYTES):
            pass


def in_groups(items: Iterable[_T], size_of: Callable[[_T], int], max_items: int, max_bytes: int) -> Iterator[list[_T]]:
    """Cut a sequence into lists of at most so many items and bytes; an item that is larger stands alone."""
    group: list[_T] = []
    size = 0
    for item in items:
        if group and (len(group) == max_items or size + size_of(item) > max_bytes):
            yield group
            group, size = [], 0
        group.append(item)
        size += size_of(item)
    if group:
        yield group


def file_crc32(path: Path, expected_sha256: str | None) -> int:
    """CRC-32 of a file as it is on the disk now. Raises FormatError if its SHA-256 is another; None: any will do."""
    crc, found = 0, hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(READ_BYTES):
            crc = isal_zlib.crc32(chunk, crc)
            found.update(chunk)
    if expected_sha256 not in (None, found.hexdigest()):
        raise FormatError(f"{path} is not what {CHECKSUMS_NAME} says")
    return crc


def await_some(futures: set[Future[_T]]) -> set[Future[_T]]:
    """Wait until some are done, return the others; raises what one of those that are done raised.

    In short turns: a signal that comes just before the main thread begins to wait is noticed only when it is over.
    """
    done: set[Future[_T]] = set()
    while futures and not done:
        done, futures = wait(futures, timeout=SIGNAL_POLL_S, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return futures


def await_all(futures: Iterable[Future[_T]]) -> list[_T]:
    """Wait for all, as `await_some` does, and return their results in order. Raises the first error that there is."""
    ordered = list(futures)
    pending = set(ordered)
    while pending:
        pending = await_some(pending)
    return [future.result() for future in ordered]


def _fsync_directory(path: Path) -> bool:
    """Flush a directory to the disk; False where the file system cannot. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _is_supported(lambda: os.fsync(descriptor))
    finally:
        os.close(descriptor)


def _is_supported(call: Callable[[], None]) -> bool:
    """Make a system call; False when the file system has nothing like it. Raises OSError for any other failure."""
    try:
        call()
    except OSError as error:
        if error.errno not in NOT_SUPPORTED_ERRNOS:
            raise
        return False
    return True


def in_time(function: Callable[[], _T], seconds: float) -> _T:
    """What a function returns or raises. Raises TimeoutError when it takes longer; then it goes on in its thread."""
    pool = ThreadPoolExecutor(1)
    try:
        future = pool.submit(function)
        deadline = time.monotonic() + seconds
        while not future.done() and (left := deadline - time.monotonic()) > 0:
            wait([future], timeout=min(left, SIGNAL_POLL_S))  # in short turns, as in `await_some`
        return future.result(0)
    finally:
        pool.shutdown(wait=False)


# ======================================================================================================================
# Network: one CA and one choice of proxy for all that is sent. No library looks at the environment by itself.
# ======================================================================================================================

CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
CA_HINT = "A server or a TLS proxy with a CA of its own? SSL_CERT_FILE has to name the file of that CA's certificate."
PROXY_HINT = (
    "Write http://USER:PASSWORD@HOST:PORT, with # / ? @ in the password as %23 %2F %3F %40; SOCKS is not supported."
)
DEFAULT_PORTS = {"http": 80, "https": 443}

_NO_PROXY_ENTRY = re.compile(r"(?:\[([^]]*)]|([^:]*))(/\d+)?(?::(\d+))?")  # [IPv6] or name, bits, port
_PERMANENT = re.compile(r"certificate verify failed[^(]*|407 Proxy Authentication Required", re.IGNORECASE)


def ca_bundle() -> tuple[str, str]:
    """The variable that names the CA bundle, and the bundle's path; "" and certifi's if none is set."""
    import certifi

    found = ((name, os.environ.get(name, "")) for name in CA_VARIABLES)
    return next(((name, path) for name, path in found if path), ("", certifi.where()))


@functools.cache
def tls_context(variable: str, path: str) -> ssl.SSLContext:
    """What checks certificates against a bundle (see `ca_bundle`). Raises BackupError for what is no bundle."""
    try:
        if Path(path).is_dir():
            return ssl.create_default_context(capath=path)
        if not Path(path).is_file():
            raise FileNotFoundError("there is no such file")
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        if not variable or error.filename:  # of another file: SSLKEYLOGFILE's
            raise
        raise BackupError(
            f"{variable} names {path}, which holds no CA certificates: {getattr(error, 'reason', '') or error}.",
            f"Correct or unset {variable}: it has to name a file of certificates in PEM form.",
        ) from error


def proxy_for(url: str) -> str | None:
    """The proxy on the way to `url`, by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY (None: there is none).

    Raises BackupError that names the variable and never its value: a piece of that may be a piece of a password.
    """
    import urllib.request

    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies_environment()
    scheme = next((each for each in (parts.scheme, "all") if proxies.get(each)), None)
    port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    if not scheme or _needs_no_proxy(parts.hostname or "", port, proxies.get("no", "")):
        return None
    proxy = _proxy_url(proxies[scheme])
    if proxy is None:
        name = f"{scheme}_proxy" if os.environ.get(f"{scheme}_proxy") else f"{scheme}_PROXY".upper()
        raise BackupError(f"{name} is not the URL of an HTTP proxy.", f"{PROXY_HINT} NO_PROXY lists exceptions.")
    return proxy


def _proxy_url(text: str) -> str | None:
    """A proxy's URL as every library reads it alike; None for what is none."""
    import httpx

    text = text.strip() if "://" in text else f"http://{text.strip()}"
    try:
        parts = urllib.parse.urlsplit(text)
        host, port = parts.hostname or "", parts.port
        if parts.scheme not in DEFAULT_PORTS or not host or "@" in parts.path + parts.query + parts.fragment:
            return None
        user_info = ":".join(urllib.parse.quote(each or "", safe="%") for each in (parts.username, parts.password))
        address = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
        return str(httpx.URL(f"{parts.scheme}://{f'{user_info}@' if parts.username else ''}{address}"))
    except (ValueError, httpx.InvalidURL):
        return None


def _needs_no_proxy(host: str, port: int | None, no_proxy: str) -> bool:
    """Whether NO_PROXY lists a host: as a name, a domain, an address, a network or `*`, each with a port or without."""
    for entry in no_proxy.lower().replace(",", " ").split():
        match = _NO_PROXY_ENTRY.fullmatch(entry)  # an IPv6 address without brackets has no port
        address, name, bits, wanted_port = match.groups() if match else (None, entry, None, None)
        if wanted_port and int(wanted_port) != port:
            continue
        name = f"{address or name or ''}{bits or ''}"
        if name == "*" or _is_named(host, name):
            return True
    return False


def _is_named(host: str, name: str) -> bool:
    """Whether a name is that of a host or of its domain, or a network is the host's."""
    domain, is_address = name.lstrip("*."), ":" in host or host.rpartition(".")[2].isdecimal()
    if domain and not is_address and f".{host}".endswith(f".{domain}"):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    return False


def httpx_options(url: str) -> dict[str, Any]:
    """How httpx reaches `url`. Raises BackupError if a variable keeps it from doing so."""
    import certifi
    import httpx

    proxy = proxy_for(url) or ""
    is_tls = url.lower().startswith("https:") or proxy.startswith("https:")
    context = tls_context(*(ca_bundle() if is_tls else ("", certifi.where())))
    proxy_context = context if proxy.startswith("https:") else None
    return {
        "trust_env": False,
        "verify": context,
        "proxy": httpx.Proxy(proxy, ssl_context=proxy_context) if proxy else None,
    }


def requests_session() -> requests.Session:
    """A session that reaches each URL, those of redirects too, as `httpx_options` says, and reads no `~/.netrc`."""
    import requests

    def proxies_for(url: Any) -> dict[str, str]:
        proxy = proxy_for(str(url))
        return {urllib.parse.urlsplit(str(url)).scheme: proxy} if proxy else {}

    class Session(requests.Session):
        def merge_environment_settings(self, url: Any, _proxies: Any, stream: Any, _verify: Any, cert: Any) -> Any:
            bundle = ca_bundle()
            if str(url).lower().startswith("https:"):
                tls_context(*bundle)
            return {"proxies": proxies_for(url), "verify": bundle[1], "stream": stream, "cert": cert}

        def rebuild_proxies(self, prepared_request: Any, _proxies: Any) -> Any:
            return super().rebuild_proxies(prepared_request, proxies_for(prepared_request.url))  # type: ignore[no-untyped-call]

    session = Session()
    session.trust_env = False
    return session


def permanent_failure(error: BaseException) -> tuple[str, str]:
    """Why no repetition will bring a connection about, and what to do; "" and "" if one may."""
    match = _PERMANENT.search(str(error))
    if not match:
        return "", ""
    is_proxy = match[0].startswith("407")
    return match[0].strip(), f"HTTPS_PROXY (HTTP_PROXY, ALL_PROXY): {PROXY_HINT}" if is_proxy else CA_HINT


# ======================================================================================================================
# Encryption: data files in the format age v1; restore.py has the other direction. docs/FORMAT.md, SECURITY.md
# ======================================================================================================================


@dataclass(frozen=True)
class Encryption:
    """To whom a run encrypts its data files.

    `names` are the public keys as they were given, `recipients` what pyrage makes of them and of the public key of
    `identity`: made for this run, in memory only, it proves the files and is then forgotten.
    """

    names: tuple[str, ...]
    recipients: list[Any] = field(repr=False)
    identity: Any = field(repr=False)


class PipedThread:
    """A thread at one end of a pipe; `end` is ours: pyrage takes a reader and a writer and runs until all is done.

    `mode`: what we do with our end. Who gives up closes an end: the other side's next call fails or finds the end.
    `ended` has what the thread raised.
    """

    def __init__(self, work: Callable[[IO[bytes]], None], mode: str) -> None:
        reader, writer = (open(fd, how, READ_BYTES) for fd, how in zip(os.pipe(), ("rb", "wb"), strict=True))  # noqa: SIM115
        self.end: Any = reader if mode == "rb" else writer
        self.ended: Future[None] = Future()
        its = writer if mode == "rb" else reader
        threading.Thread(target=self._run, args=(work, its), daemon=True).start()

    def _run(self, work: Callable[[IO[bytes]], None], end: IO[bytes]) -> None:
        try:
            with end:
                work(end)
            self.ended.set_result(None)
        except BaseException as error:  # noqa: BLE001  (a panic of pyrage is no Exception)
            self.ended.set_exception(error)

    def close(self) -> None:
        """Close our end, and wait until the thread has ended. May be called twice."""
        with contextlib.suppress(OSError):
            self.end.close()
        wait([self.ended])


class HashedFile:
    """A file, emptied, that hashes what is written to it. `error`: why a write failed."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._file = open(descriptor, "wb", buffering=0)  # noqa: SIM115  (closed by `close`)
        self._path = path
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0
        self.error: OSError | None = None

    def write(self, chunk: bytes) -> int:
        """Append bytes. Raises OSError."""
        try:
            view = memoryview(chunk)
            while view:  # an unbuffered file may take less than all
                view = view[self._file.write(view) :]
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(chunk)
        self.size_bytes += len(chunk)
        return len(chunk)

    def finish(self) -> None:
        """Flush to the disk. Raises OSError."""
        os.fsync(self._file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that the last look goes to the disk, where the file system lets go of it
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file as it is. May be called twice."""
        self._file.close()

    def prove(self, advance: Callable[[int], None] | None = None) -> None:
        """Read the file once more. Raises FormatError if it does not hold what was written, OSError."""
        if file_sha256(self._path, advance) != self.sha256.hexdigest():
            raise FormatError("the disk does not hold the bytes that were written")

    def open(self) -> IO[bytes]:
        """Open the file to read it from its beginning. Raises OSError."""
        return self._path.open("rb", buffering=0)


def file_sha256(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file as it is on the disk now; `advance` is told how many bytes were read. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        reader = HashingReader(file, advance)
        reader.drain()
    return reader.sha256.hexdigest()


class HashingWriter(io.RawIOBase):
    """Hashes what is written to it, and keeps nothing."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, chunk: Any) -> int:
        """Hash bytes."""
        self.sha256.update(chunk)
        return len(chunk)


class EncryptedFile:
    """Encrypts into a file what is written to it, in a thread of its own."""

    def __init__(self, file: HashedFile, encryption: Encryption) -> None:
        self._file = file
        self._encryption = encryption
        self._clear_sha256 = hashlib.sha256()
        self._pipe = PipedThread(self._encrypt, "wb")

    def write(self, chunk: bytes) -> int:
        """Append unencrypted bytes. Raises what failed since."""
        self._clear_sha256.update(chunk)
        try:
            self._pipe.end.write(chunk)
        except OSError:  # nobody reads: the thread has ended
            self._pipe.ended.result()
            raise
        return len(chunk)

    def finish(self) -> None:
        """Encrypt what is left, and flush to the disk. Raises what failed since."""
        self._pipe.close()
        self._pipe.ended.result()
        self._file.finish()

    def close(self) -> None:
        """End the thread, and close the file as it is. May be called twice."""
        self._pipe.close()
        self._file.close()

    def prove(self, advance: Callable[[int], None] | None = None) -> None:
        """Read the file once more, and decrypt it with the run's own identity.

        Raises FormatError if its bytes are not those that were written, or what is in them is not what was encrypted.
        """
        import pyrage

        clear = HashingWriter()
        with self._file.open() as raw:
            reader = HashingReader(raw, advance)
            try:
                pyrage.decrypt_io(io.BufferedReader(reader, READ_BYTES), clear, [self._encryption.identity])
            except (pyrage.DecryptError, OSError) as error:
                raise FormatError(f"what the disk holds does not decrypt: {error}") from error
            reader.drain()
        if reader.sha256.digest() != self._file.sha256.digest():
            raise FormatError("the disk does not hold the bytes that were written")
        if clear.sha256.digest() != self._clear_sha256.digest():
            raise FormatError("the file does not decrypt to what was encrypted")

    def _encrypt(self, clear: IO[bytes]) -> None:
        import pyrage

        try:
            pyrage.encrypt_io(clear, self._file, self._encryption.recipients)
        except pyrage.EncryptError as error:
            raise self._file.error or error from None  # pyrage makes a text of what the file raised


# ======================================================================================================================
# The Data API
# ======================================================================================================================


@dataclass(frozen=True)
class Target:
    """A keyspace of a database, and how to reach it. The token is never printed."""

    api_endpoint: str
    keyspace: str
    environment: str
    token: str = field(repr=False)
    request_timeout_s: float = 60.0
    retry_budget_s: float = 300.0

    @property
    def source(self) -> Source:
        """What the manifest says of it."""
        return Source(self.api_endpoint, self.keyspace, self.environment)


class PageData(msgspec.Struct):
    """The `data` of a find reply: each document's own text, and where to go on (None: the end)."""

    documents: list[msgspec.Raw] | None = None
    nextPageState: str | msgspec.UnsetType | None = msgspec.UNSET  # noqa: N815  (the server's name)


class Page(NamedTuple):
    """A page of a `find`: documents as the server wrote them, their keys, and where to go on (None: the end)."""

    documents: list[msgspec.Raw]
    keys: list[bytes]
    next_state: str | None

    @property
    def size_bytes(self) -> int:
        """How much text it is."""
        return sum(map(len, self.documents))


class Identified(msgspec.Struct):
    """A document of which nothing but the id is looked at."""

    id: msgspec.Raw = msgspec.field(name="_id", default=msgspec.Raw(b""))


_identified_decoder = msgspec.json.Decoder(Identified)


def document_key(document: msgspec.Raw | bytes) -> bytes:
    """`key_of` the id of a document."""
    return key_of(bytes(_identified_decoder.decode(document).id))


def key_of(value: bytes) -> bytes:
    """What the server takes for the key of an id's JSON text: a UUID or ObjectId is the same key as its string."""
    for name in (b'{"$uuid":', b'{"$objectId":'):
        if value.startswith(name):
            return key_of(value[len(name) : -1]).lower()
    if value[:1] == b'"' and (b"\\" in value or not value.isascii()):
        return json.dumps(json.loads(value), ensure_ascii=False).encode(errors="surrogatepass")
    if value[:1] in b"-0123456789" and set(value) & set(b".eE"):  # 100.0 is 1E+2 to the server, and not 100
        sign, digits, exponent = (*plain_number(value.decode()), "0", "0")[:3]
        return f"{sign}{digits or '0'}E{exponent}".encode()
    return value


def plain_number(text: str) -> tuple[str, ...]:
    """A number as its sign, its digits without zeros at the ends, and its exponent: equal for equal values."""
    try:
        sign, digits, exponent = Decimal(text).as_tuple()
    except InvalidOperation:  # an exponent beyond what Decimal holds
        return (text,)
    significant = "".join(map(str, digits)).lstrip("0")
    stripped = significant.rstrip("0")
    if not stripped:
        return ("", "", "0")
    return ("-" if sign else "", stripped, str(int(exponent) + len(significant) - len(stripped)))


def document_place(document: msgspec.Raw) -> Place:
    """The place of a document of a collection: a UUID or ObjectId is its text in lower case, a date its number."""
    return _place_of(bytes(_identified_decoder.decode(document).id))


@dataclass(frozen=True)
class Readable:
    """What can be read page by page: a collection or a table. `key` tells what the server takes for a document's key.

    `place` tells where a document stands in the order of a scan; None: a scan cannot be entered at guessed places.
    `check` looks at a page's reply, and is told whether it is the first page; it raises BackupError.
    """

    name: str
    key: Callable[[msgspec.Raw], bytes] = document_key
    place: Callable[[msgspec.Raw], Place] | None = document_place
    projection: bytes = b'{"*":true}'
    check: Callable[[Page, Reply, bool], None] | None = None

    @classmethod
    def of_table(cls, api: DataApi, name: str, shape: TableShape) -> Self:
        """A table as it can be read page by page. Raises BackupError if it has columns that cannot be read."""
        if unreadable := shape.unreadable():
            raise BackupError(
                f"{name}: the Data API cannot read {', '.join(unreadable)}: a backup without would be incomplete.",
                f"Back the table up by CQL, and leave it out here: --exclude {name}.",
            )
        projection = b'{"*":true}'  # what other names mean to a projection nobody has said
        if all(map(_PLAIN_COLUMN.fullmatch, shape.columns)):
            projection = msgspec.json.encode(dict.fromkeys(shape.columns, 1))
        place = partial(_row_place, shape) if _can_be_guessed(shape) else None
        return cls(name, shape.key, place, projection, partial(_check_table_page, api=api, name=name, shape=shape))


class Patience:
    """How much longer a failing service is put up with: `budget_s` of wall time in which nothing came. Thread-safe.

    The chains of a collection share one: what comes on one of them renews it, and a wait that the server asks of one
    holds all of them.
    """

    # For errors that may be permanent: the server's "unexpected" ones, a reply that is not JSON.
    UNEXPECTED_ATTEMPTS: ClassVar[int] = 4

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s
        self._renewed = time.monotonic()
        self._held_until = 0.0

    @property
    def left_s(self) -> float:
        """Seconds until it is over."""
        return self._renewed + self._budget_s - time.monotonic()

    @property
    def held_s(self) -> float:
        """Seconds until the next request may be sent."""
        return max(0.0, self._held_until - time.monotonic())

    def renew(self) -> None:
        """Something came."""
        self._renewed = time.monotonic()

    def hold(self, wait_s: float) -> None:
        """The server asked to wait."""
        self._held_until = max(self._held_until, time.monotonic() + wait_s)

    def await_turn(self, stop: threading.Event) -> None:
        """Wait as long as the server asked to; not at all if that is longer than the patience."""
        while 0 < self.held_s <= self.left_s and not stop.is_set():
            stop.wait(self.held_s)

    def retry(
        self,
        request: Callable[[], _T],
        stop: threading.Event,
        on_retry: Callable[[], None] | None = None,
        collection: str | None = None,
        *,
        max_s: Callable[[], float] = lambda: float("inf"),
    ) -> _T:
        """Repeat what raises a RequestError that may pass, with back-off and jitter, as long as there is time left.

        A wait is cut to the time that is left, so that the last attempt comes at its end. `Retry-After` is obeyed; one
        beyond the time that is left ends it at once. `max_s`: less time than the patience has. The last error is let
        through, at once after `stop`.
        """
        attempt = 0
        while True:
            attempt += 1
            self.await_turn(stop)
            try:
                return request()
            except RequestError as error:
                if not (attempt < self.UNEXPECTED_ATTEMPTS if error.unexpected else error.retryable):
                    raise
                asked_s = error.retry_after_s or 0.0
                self.hold(asked_s)
                left_s = min(self.left_s, max_s())
                if left_s <= 0 or self.held_s > left_s:
                    raise
                backoff_s = 0.1 + random.uniform(0, min(MAX_BACKOFF_S, 0.5 * 2 ** min(attempt - 1, 10)))  # noqa: S311
                wait_s = max(asked_s, self.held_s, min(backoff_s, left_s))
                message = f"{error.message.rstrip('.')}."
                log.warning("%s Trying again in %.1f s.", message, wait_s, extra={"collection": collection})
                if on_retry:
                    on_retry()
                if stop.wait(wait_s):
                    raise


class ApiError(msgspec.Struct):
    """One of a reply's errors. What else stands in it is not decoded: no float holds the numbers of some ids."""

    errorCode: msgspec.Raw = msgspec.Raw(b'""')  # noqa: N815  (the server's name)
    family: msgspec.Raw = msgspec.Raw(b'""')
    title: msgspec.Raw = msgspec.Raw(b'""')
    message: msgspec.Raw = msgspec.Raw(b'""')

    @property
    def code(self) -> str:
        """What names the error."""
        return _text_of(self.errorCode) or _text_of(self.title) or "unknown error"

    @property
    def text(self) -> str:
        """All that the server says."""
        return _text_of(self.message)

    @property
    def first_line(self) -> str:
        """What a person is told; the rest is advice to programmers."""
        return _first_line(self.text)

    @property
    def is_of_server(self) -> bool | None:
        """Whether the server, not the request, is at fault; None: it does not say."""
        return {"SERVER": True, "REQUEST": False}.get(_text_of(self.family).upper())


def _text_of(value: msgspec.Raw) -> str:
    """A string, or the JSON of what should be one; nothing for null."""
    with contextlib.suppress(ValueError):  # no string, or not UTF-8
        return msgspec.json.decode(value, type=str | None) or ""
    return bytes(value).decode(errors="replace")


class Errors(msgspec.Struct):
    """What every reply can have."""

    errors: list[ApiError] = []


class Reply(Errors):
    """The envelope of every reply."""

    data: PageData | None = None  # only `find` has data
    status: msgspec.Raw = msgspec.Raw(b"")

    def page(self, source: Readable) -> Page:
        """The page of a find reply. Raises RequestError for a reply that has none."""
        data = self.data
        if data is None or data.documents is None or data.nextPageState is msgspec.UNSET:
            raise _unexpected_reply("it has no page of documents")
        try:
            return Page(data.documents, [source.key(document) for document in data.documents], data.nextPageState)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise _unexpected_reply(f"a document without an id that can be read: {error}") from error


class CollectionInfo(msgspec.Struct):
    """What `findCollections` says of a collection."""

    name: str
    options: msgspec.Raw = msgspec.Raw(b"{}")


class TableInfo(msgspec.Struct):
    """What `listTables` with `explain` says of a table."""

    name: str
    definition: msgspec.Raw = msgspec.Raw(b"{}")


class Status(msgspec.Struct):
    """The `status` of a reply: each command has a field of its own."""

    collections: list[CollectionInfo] | msgspec.UnsetType = msgspec.UNSET
    tables: list[TableInfo | str] | msgspec.UnsetType = msgspec.UNSET  # names: of servers without `explain`
    indexes: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    types: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    keyspaces: list[str] | msgspec.UnsetType = msgspec.UNSET
    count: int | None = None  # the estimate of a collection's documents
    projectionSchema: dict[str, msgspec.Raw] | None = None  # noqa: N815  (the server's name; columns that were read)


class TypeName(msgspec.Struct):
    """A user's type of which nothing but the name is looked at; one that the Data API does not support has none."""

    udtName: str = ""  # noqa: N815  (the server's name)


# Made here, in one thread: msgspec crashes where several threads are the first to decode the same class.
_reply_decoder = msgspec.json.Decoder(Reply)
_errors_decoder = msgspec.json.Decoder(Errors)
_status_decoder = msgspec.json.Decoder(Status)
_type_name_decoder = msgspec.json.Decoder(TypeName)
_EXPLAIN = b'{"options":{"explain":true}}'


class DataApi:
    """The one way to the database: posts commands as text, returns replies as text, retries transient errors.

    Only the commands in `allowed` leave this process. Thread-safe. `on_retry` is called
    before a request is repeated.
    """

    READ_COMMANDS: ClassVar[frozenset[str]] = frozenset(
        {"findCollections", "find", "estimatedDocumentCount", "findKeyspaces", "listTables", "listIndexes", "listTypes"}
    )
    """All that may leave this process during a backup."""

    def __init__(self, target: Target, allowed: frozenset[str], stop: threading.Event | None = None) -> None:
        import httpx

        self.target = target
        self.allowed = allowed
        self.stop = stop or threading.Event()
        self.was_reached = False
        self.largest_page = 0  # documents of the largest page that came: what the server puts on one
        self.created: dict[str, float] = {}  # when this process created a collection, by the monotonic clock
        self._base_url, headers = _connection_facts(target)
        tls_context(*ca_bundle())  # also for http: a mistake is told before anything is read, not when Box is reached
        self._http = httpx.Client(
            **httpx_options(target.api_endpoint),
            headers=headers,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    def list_keyspaces(self) -> list[str]:
        """The database's keyspaces but the system's own. Raises RequestError where they are not to be told."""
        read, patience = _read_status(lambda status: status.keyspaces), Patience(SIDE_QUESTION_BUDGET_S)
        found = self.call("findKeyspaces", b"{}", patience=patience, read=read)
        return [name for name in sorted(found) if not SYSTEM_KEYSPACES.fullmatch(name)]

    def list_collections(self) -> list[CollectionInfo]:
        """All collections with their definitions, the server's own text.

        Where there is no such keyspace, the error names those that there are.
        """
        try:
            return self.call("findCollections", _EXPLAIN, read=_read_status(lambda status: status.collections))
        except RequestError as error:
            if error.code == "UNKNOWN_KEYSPACE":
                with contextlib.suppress(BackupError):
                    names = ", ".join(self.list_keyspaces())
                    error.hint = (
                        f"No keyspace {self.target.keyspace!r}: check --keyspace (ASTRA_DB_KEYSPACE); it has to exist."
                        f" Existing keyspaces: {names}."
                    )
            raise

    def describe_tables(self, *, patience: Patience | None = None) -> list[TableInfo]:
        """All tables with their definitions, the server's own text; none where no server knows of tables."""
        read = _read_status(lambda status: status.tables)
        try:
            found = self.call("listTables", _EXPLAIN, patience=patience, read=read)
        except RequestError as error:
            if error.code in NO_TABLES_CODES:
                return []
            raise
        return [TableInfo(each) if isinstance(each, str) else each for each in found]

    def describe_indexes(self, table: str) -> msgspec.Raw:
        """A table's indexes with their definitions, the server's own text."""
        return self.call("listIndexes", _EXPLAIN, table, read=_read_status(lambda status: status.indexes))

    def describe_types(self) -> dict[str, msgspec.Raw]:
        """The keyspace's user-defined types by their names, the server's own text."""
        found = self.call("listTypes", _EXPLAIN, read=_read_status(lambda status: status.types))
        return {name: each for each in found if (name := _type_name_decoder.decode(each).udtName)}

    @functools.cached_property
    def has_large_pages(self) -> bool:
        """Whether pages have more than 20 documents: not on Astra, nor on servers of 2024, which know no types."""
        from astrapy.constants import Environment

        if self.target.environment in Environment.astra_db_values:
            return False
        with contextlib.suppress(RequestError):
            self.describe_types()
            return True
        return False

    def estimated_count(self, collection: str) -> int | None:
        """The server's estimate, a hint for progress only; None when it gives none."""
        try:
            read, patience = _read_status(lambda status: status.count), Patience(SIDE_QUESTION_BUDGET_S)
            return self.call("estimatedDocumentCount", b"{}", collection, patience=patience, read=read)
        except RequestError:
            return None

    def find_page(
        self,
        source: Readable,
        page_state: str | None,
        *,
        filter_json: bytes = b"{}",
        patience: Patience | None = None,
        on_retry: Callable[[], None] | None = None,
    ) -> Page:
        """Return a page: the first one for a page state of None.

        Raises PageStateError when the state no longer works, RequestError for everything else.
        """
        options = b"" if page_state is None else b',"options":' + msgspec.json.encode({"pageState": page_state})
        body = b'{"filter":%b,"projection":%b%b}' % (filter_json, source.projection, options)

        def read(reply: Reply) -> Page:
            page = reply.page(source)
            self.largest_page = max(self.largest_page, len(page.documents))
            if source.check:
                source.check(page, reply, page_state is None)
            return page

        try:
            return self.call("find", body, source.name, patience=patience, on_retry=on_retry, read=read)
        except RequestError as error:
            if page_state is not None and _means_lost_place(error):
                raise PageStateError(f"the page state no longer works: {error.message}", error.hint) from error
            raise

    def pages(self, source: Readable, *, filter_json: bytes = b"{}") -> Iterator[Page]:
        """Yield the pages of a small `find`, one after the other. The end is a page state of null and nothing else.

        When the server has lost the place, they come once more, from the first; after MAX_SCANS times it is raised.
        """
        for attempts_left in reversed(range(MAX_SCANS)):
            reader = Reader(source.name)
            try:
                while True:
                    page = self.find_page(source, reader.state, filter_json=filter_json)
                    if not reader.is_repeated(page):
                        yield page
                    if reader.state is None:
                        return
            except PageStateError as error:
                if not attempts_left:
                    raise
                name = source.name
                log.warning("%s: %s Starting the collection over.", name, error.message, extra={"collection": name})

    def call(
        self,
        command: str,
        body: bytes,
        collection: str | None = None,
        *,
        read: Callable[[Reply], _T],
        patience: Patience | None = None,
        timeout_s: float | None = None,
        on_retry: Callable[[], None] | None = None,
    ) -> _T:
        """Send a command until it succeeds and return what `read` makes of the reply.

        `body` is the JSON text of the command's arguments, `patience` that with a failing service (None: the target's
        retry budget), `timeout_s` that with one request (None: the target's). A reply that `read` refuses counts as a
        failure too. Raises RequestError.
        """

        def send() -> _T:
            reply = self.exchange(command, body, collection, timeout_s=timeout_s)
            # An insertMany may succeed for some documents and fail for others; a page with errors is no page.
            if reply.errors and not (reply.status and command == "insertMany"):
                raise self.request_error(reply.errors[0], command, collection)
            return read(reply)

        patience = patience or Patience(self.target.retry_budget_s)
        first_contact = Patience(FIRST_CONTACT_BUDGET_S)

        def max_s() -> float:
            return float("inf") if self.was_reached else first_contact.left_s

        found = patience.retry(send, self.stop, on_retry, collection, max_s=max_s)
        patience.renew()
        return found

    def request_error(self, error: ApiError, command: str, collection: str | None) -> RequestError:
        """The exception for one of a reply's errors. Final is only what the server calls a fault of the request.

        Servers that name no family get a few more requests. A node may not know yet what another has just created.
        """
        code, hint = error.code, _HINTS.get(error.code, "")
        retryable = code in RETRYABLE_CODES | UNEXPECTED_CODES or error.is_of_server is True
        if code == "UNKNOWN_COLLECTION_OR_TABLE" and collection in self.created:
            retryable = time.monotonic() - self.created[collection] < self.target.retry_budget_s
        where = f" on {collection}" if collection else ""
        return RequestError(
            f"{command}{where} failed with {code}: {error.first_line}",
            hint or ("" if retryable else "The full text is in the server's documentation."),
            status=200,
            code=code,
            retryable=retryable,
            unexpected=code in UNEXPECTED_CODES or (code not in RETRYABLE_CODES and error.is_of_server is None),
            detail=error.text,
        )

    def exchange(
        self, command: str, body: bytes, collection: str | None = None, *, timeout_s: float | None = None
    ) -> Reply:
        """Send a command once and return the reply with its errors. Raises RequestError when there is none."""
        import httpx

        if command not in self.allowed:
            raise BackupError(f"This program must not send the command {command!r}; allowed: {sorted(self.allowed)}.")
        path = [self.target.keyspace] * (command != "findKeyspaces") + ([collection] if collection else [])
        url = "/".join([self._base_url, *(urllib.parse.quote(part, safe="") for part in path)])
        try:
            what = f"{command} on {collection}" if collection else command
            text = self._post(url, what, b'{"' + command.encode() + b'":' + body + b"}", timeout_s)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _transport_error(error, self.target) from error
        except httpx.HTTPError as error:
            self.was_reached = True  # something is there, and may be about to wake up
            raise _transport_error(error, self.target) from error
        return decode_reply(text)

    def _post(self, url: str, what: str, content: bytes, timeout_s: float | None) -> bytearray:
        """The body of a 200. The timeout is for the whole reply, so that one that trickles ends too; so is the size.

        `what` is what an error says was asked.
        """
        import httpx

        timeout_s = timeout_s or self.target.request_timeout_s
        deadline = time.monotonic() + timeout_s
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        body = bytearray()  # it grows in place: a page of large documents is in memory once
        with self._http.stream("POST", url, content=content, timeout=timeout) as response:
            self.was_reached = True  # with an error too: a database that hibernates answers 503
            encoding = response.headers.get("content-encoding", "")
            # What was compressed more than once: a few kB of that unpack to more than any memory in one piece.
            if encoding.strip().lower() not in ("", "identity", "gzip", "deflate"):
                raise _unexpected_reply(f"its Content-Encoding is {encoding!r}, which was not asked for")
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_REPLY_BYTES:
                    raise _unexpected_reply(f"it has more than {MAX_REPLY_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the reply did not end in time")
                if self.stop.is_set():
                    raise BackupError("stopped")
        if response.status_code != 200:
            error = _status_error(what, response.status_code, response.headers.get("retry-after"), body)
            if response.status_code == 401 and self.target.environment == "prod":
                error.hint += _token_hint(self.target.token)
            raise error
        return body


_HINTS = {
    "UNKNOWN_KEYSPACE": "Check --keyspace (ASTRA_DB_KEYSPACE).",
    "UNKNOWN_COLLECTION_OR_TABLE": "It was dropped or renamed meanwhile; run again for what is there now.",
}
_LED_BACK = "the server leads back to a page that was there before."


class Reader:
    """Where a chain of pages goes on: `state`, None before the first page and at the end.

    Notices that a server does not move on from a page, or leads back to one: it has lost the place in the scan.
    """

    def __init__(self, collection: str, chain: int = 0, state: str | None = None) -> None:
        self.chain = chain
        self.state = state
        self._collection = collection
        self._last: list[bytes] = []
        self._stalled = 0
        self._anchor, self._steps, self._limit = "", 0, 1  # Brent's way to find circles, with one state kept

    def is_repeated(self, page: Page) -> bool:
        """Go on to where a page that came leads; True for one that came twice and is to be dropped.

        Raises PageStateError.
        """
        asked, self.state = self.state, page.next_state
        is_repeated = bool(page.keys) and page.keys == self._last
        is_stalled = is_repeated or (page.next_state is not None and page.next_state == asked)
        self._stalled = self._stalled + 1 if is_stalled else 0
        if self._stalled > MAX_STALLED_PAGES or (self._stalled and page.keys and not is_repeated):
            raise PageStateError("the server does not move on from a page.")
        if not self._stalled and page.next_state is not None:
            self._step(page.next_state)
        if is_repeated:
            name = self._collection
            log.warning("%s: the server sent a page twice; it is kept once.", name, extra={"collection": name})
        self._last = page.keys or self._last
        return is_repeated

    def _step(self, state: str) -> None:
        if state == self._anchor:
            raise PageStateError(_LED_BACK)
        self._steps += 1
        if self._steps == self._limit:
            self._anchor, self._steps, self._limit = state, 0, 2 * self._limit


# A placeholder of a document (DATABASE_ID, <id>, …), and a path where none belongs: behind Astra's own names, or one
# that is appended anyway. A domain of one's own may have another one.
_NOT_AN_ASTRA_ENDPOINT = re.compile(r"DATABASE_ID|-REGION\.|[<>…?#]|\.\.|(?i:datastax\.com)(:\d+)?/.|/api/json|/v1$")


def _connection_facts(target: Target) -> tuple[str, dict[str, str]]:
    """The URL before the keyspace, and the headers: astrapy knows the environments and how each takes its token."""
    import astrapy
    from astrapy.admin import endpoints
    from astrapy.api_options import APIOptions, SerdesOptions
    from astrapy.constants import Environment

    # Its Database would make HTTP clients, which read the environment.
    options = astrapy.DataAPIClient(
        target.token,
        environment=target.environment,
        api_options=APIOptions(serdes_options=SerdesOptions(**SERDES_OPTIONS)),
    ).api_options
    if target.environment in Environment.astra_db_values:
        parsed, form = endpoints.parse_api_endpoint(target.api_endpoint), endpoints.api_endpoint_description
        is_ours = parsed is None or parsed.environment == target.environment  # None: a domain of one's own
        is_ours = is_ours and not _NOT_AN_ASTRA_ENDPOINT.search(target.api_endpoint)
    else:
        is_ours = endpoints.parse_generic_api_url(target.api_endpoint) is not None
        form = endpoints.generic_api_url_descriptor
    if not is_ours:
        raise BackupError(
            f"{target.api_endpoint} is not an endpoint of the environment {target.environment!r}.",
            f"It has the form {form}, without a path."
            " Check --api-endpoint (ASTRA_DB_API_ENDPOINT) and --environment (ASTRA_DB_ENVIRONMENT).",
        )
    paths = (options.data_api_url_options.api_path, options.data_api_url_options.api_version)
    base_url = "/".join([target.api_endpoint.rstrip("/"), *(p.strip("/") for p in paths if p and p.strip("/"))])
    headers = {
        "Token": options.token.get_token() or "",
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": f"{TOOL_NAME}/{TOOL_VERSION} astrapy/{astrapy.__version__}",
    }
    return base_url, headers


def decode_reply(text: bytes | bytearray) -> Reply:
    """The reply in a response's body. Raises RequestError for what is none."""
    try:
        reply = _reply_decoder.decode(text)
        if reply.data is None and not text.isascii():  # documents are looked at when each is parsed
            text.decode()
        return reply
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        if errors := _errors_in(text):  # whatever stands beside them
            return Reply(errors=errors)
        raise _unexpected_reply(str(error)) from error


def _errors_in(text: bytes | bytearray) -> list[ApiError]:
    with contextlib.suppress(UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return _errors_decoder.decode(text).errors
    return []


def _read_status(field_of: Callable[[Status], _T | msgspec.UnsetType]) -> Callable[[Reply], _T]:
    """A reader of a field of a reply's `status`."""

    def read(reply: Reply) -> _T:
        try:
            found = field_of(_status_decoder.decode(reply.status))
        except (msgspec.DecodeError, RecursionError) as error:
            raise _unexpected_reply(str(error)) from error
        if isinstance(found, msgspec.UnsetType):
            raise _unexpected_reply("its status lacks what was asked for")
        return found

    return read


def _unexpected_reply(reason: str) -> RequestError:
    return RequestError(
        f"The reply is not one of the Data API: {reason}.",
        "A proxy or a captive portal in between? Check --api-endpoint and --environment.",
        retryable=True,
        unexpected=True,
    )


def _transport_error(error: httpx.HTTPError, target: Target) -> RequestError:
    reason, hint = permanent_failure(error)
    return RequestError(
        f"No reply from {target.api_endpoint}: {reason or error or 'no reason given'} ({type(error).__name__}).",
        hint or "Check the endpoint, the network and any proxy. A database that hibernates wakes within minutes.",
        retryable=not reason,
    )


def _status_error(what: str, status: int, retry_after: str | None, body: bytearray) -> RequestError:
    errors = _errors_in(body)
    detail = f" ({errors[0].code}: {errors[0].first_line})" if errors else ""
    hints = {
        401: "The token is wrong, expired or lacks rights: check ASTRA_DB_APPLICATION_TOKEN, or the file that"
        " ASTRA_DB_APPLICATION_TOKEN_FILE names.",
        403: "The token may not do this: check its role and the database's access list.",
        404: "The server has no such path: check --api-endpoint, --environment and --keyspace.",
        407: f"The proxy wants a user and a password, or others. HTTP_PROXY (ALL_PROXY): {PROXY_HINT}",
        413: "A request was too large for the server.",
        **dict.fromkeys(
            range(300, 400), "A redirect is not the Data API: check --api-endpoint, and any proxy or sign-in page."
        ),
    }
    busy = "The service is failing or busy; try again later, or raise --retry-budget."
    passes = status in (408, 425, 429) or status >= 500
    retry_after_s = _retry_after_s(retry_after)
    wish = f", and asks to wait {retry_after_s:.0f} s" if retry_after_s else ""
    return RequestError(
        f"The server answered HTTP {status}{detail}{wish}; the request was {what}.",
        hints.get(status, busy if passes else "Check --api-endpoint, and any proxy in between."),
        status=status,
        retryable=passes,
        retry_after_s=retry_after_s,
    )


def _token_hint(token: str) -> str:
    """What is odd about a token for Astra; nothing of it is told."""
    if re.search(r"[\s'\"]", token):
        return " There are quotes or spaces in it: copy it again without."
    return "" if token.startswith("AstraCS:") else ' It does not begin with "AstraCS:", as tokens of Astra do.'


def _retry_after_s(header: str | None) -> float | None:
    """Seconds to wait for a Retry-After header, which is a number or a date; None for neither."""
    from email.utils import parsedate_to_datetime

    if not header:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(header) - utc_now()).total_seconds())
    return None


def _first_line(message: Any) -> str:
    return " ".join(str(message or "").split("\n\n")[0].split())[:300]


def _means_lost_place(error: RequestError) -> bool:
    """Whether an error to a request with a page state may mean that the state, not the service, is bad.

    The same request without a state worked, so every complaint but these is about the state.
    """
    if error.status != 200 or error.code is None or error.code in RETRYABLE_CODES:
        return False
    return error.code not in ("UNKNOWN_COLLECTION_OR_TABLE", "UNKNOWN_KEYSPACE")


# ======================================================================================================================
# Scan: one collection, read at several places at once. The starting points are guesses, the proof is in the meeting.
# ======================================================================================================================
#
# A page state holds the key of the last document of its page in clear, and the server goes on behind any key, whether
# or not it exists, in the order of its hash. So a collection can be entered anywhere. What is read counts only if the
# chains, each following the server's own page states, are proved to join into the one serial scan (docs/DESIGN.md).

MAX_KEPT_PAGES = 4  # read serially before anything is guessed: a small collection is done by then
CHAINS_PER_WORKER = 3  # of one length, and a multiple of the workers: they end together
PAGES_PER_CHAIN = 4  # at least, of those that the server's estimate promises
CANDIDATES_PER_GUESS = 8  # places of which the one that cuts the collection most evenly is taken
MAX_GUESSED_SCANS = 2
MAX_SCANS = 3  # how often a collection is begun anew because the place in it was lost
MAX_BYTES_IN_FLIGHT = 48_000_000  # of pages, over all collections
_END = -1


class NotJoinedError(BackupError):
    """The chains of a scan do not join into one serial scan."""


def are_joined(ends: list[int | None]) -> bool:
    """Whether chain 0 leads, through each other chain exactly once, to the end: the proof of a scan.

    `ends[n]` is the chain that chain n led to, _END for the end of the collection, None for a chain that did not end.
    """
    visited: list[int] = []
    at: int | None = 0
    while at != _END:
        if at is None or at in visited:
            return False
        visited.append(at)
        at = ends[at]
    return len(visited) == len(ends)


class Chains:
    """Which chain reads where, and where each ended. Pure: does no request and has no lock.

    All keys of the pages that were read before anything was guessed are landmarks of chain 0, those of an accepted
    first page are landmarks of its chain. A chain ends at the first landmark that it meets.
    """

    def __init__(self) -> None:
        self._landmarks: dict[bytes, int] = {}
        self._ends: list[int | None] = [None]

    def __len__(self) -> int:
        return len(self._ends)

    def keep(self, keys: list[bytes]) -> bool:
        """A page of the ordinary chain, read before anything was guessed; False for one that leads back to another."""
        if any(key in self._landmarks for key in keys):
            return False
        self._landmarks.update(dict.fromkeys(keys, 0))
        return True

    def enter(self, keys: list[bytes]) -> int | None:
        """The first page of a guess; returns the number of its chain, None for one that is dropped.

        One that shares a document with a kept page, or with one that was accepted before, cannot be told from them.
        """
        if not keys or any(key in self._landmarks for key in keys):
            return None
        number = len(self._ends)
        self._ends.append(None)
        self._landmarks.update(dict.fromkeys(keys, number))
        return number

    def follow(self, chain: int, keys: list[bytes]) -> int:
        """A later page of a chain; returns how many of its documents are the chain's own. Fewer than all: it ended."""
        for place, key in enumerate(keys):
            if key in self._landmarks:
                self._ends[chain] = self._landmarks[key]
                return place
        return len(keys)

    def finish(self, chain: int) -> None:
        """The server says that nothing follows."""
        self._ends[chain] = _END

    def are_joined(self) -> bool:
        """Whether all that was read is what one serial scan reads."""
        return are_joined(self._ends)


class Place(NamedTuple):
    """Where a document stands in the server's order: the kind of its key, and the key's text as page states have it."""

    kind: str
    key: bytes

    def replaced_by(self, key: bytes, page_state: str) -> str | None:
        """A page state that ends at this place, with another key of the same length; None if it cannot be made.

        The key stands behind its length in four bytes, which nothing else in a page state does.
        """
        with contextlib.suppress(ValueError):
            raw = base64.b64decode(page_state, validate=True)
            length = struct.pack(">i", len(self.key))
            if len(key) == len(self.key) and raw.count(length + self.key) == 1:
                return base64.b64encode(raw.replace(length + self.key, length + key)).decode()
        return None

    def random_key(self) -> bytes:
        """Some key of the same length; of digits only, where this one has nothing else."""
        alphabet = string.digits if self.key.isdigit() else string.ascii_letters + string.digits
        return "".join(random.choices(alphabet, k=len(self.key))).encode()  # noqa: S311  (a place, not a secret)


def _place_of(document_id: bytes) -> Place:
    if document_id[:1] == b"{":
        name, value = next(iter(split_object(document_id).items()), ("", b"null"))
        return Place("date", value) if name == "$date" else _place_of(value.lower())
    if document_id[:1] == b'"':
        return Place("string", str(json.loads(document_id)).encode(errors="replace"))
    return Place("number" if document_id[:1] in b"-0123456789" else "literal", document_id)


class KeptPage(NamedTuple):
    """What a scan remembers of a page that was read before anything was guessed: keys and places in order."""

    keys: list[bytes]
    places: list[Place]
    next_state: str | None


class Calibration(NamedTuple):
    """A state that was made for a place whose surroundings are known: what has to follow; and how it was made."""

    state: str
    behind: list[bytes]
    last: Place
    next_state: str


def find_calibration(kept: list[KeptPage]) -> Calibration | None:
    """A state for a document in the middle of the kept pages; None where none can be made."""
    keys = [key for page in kept for key in page.keys]
    places = [place for page in kept for place in page.places]
    for page in kept:
        if not page.places or page.next_state is None:
            continue
        last = page.places[-1]
        for number in sorted(range(len(keys) - 1), key=lambda number: abs(number - len(keys) // 2)):
            known = places[number]
            if known != last and (known.kind, len(known.key)) == (last.kind, len(last.key)):
                state = last.replaced_by(known.key, page.next_state)
                if state is not None:
                    return Calibration(state, keys[number + 1 :], last, page.next_state)
                break
    return None


def guess_count(workers: int, kept: list[KeptPage], expected: int | None) -> int:
    """How many places are guessed. `expected`: the server's estimate; None, 0 or too few: nobody knows."""
    documents = sum(len(page.keys) for page in kept)
    if workers == 1:
        return 0
    chains = CHAINS_PER_WORKER * workers
    if expected and expected > documents:
        pages_left = (expected - documents) * len(kept) // max(1, documents)
        chains = min(chains, 1 + pages_left // PAGES_PER_CHAIN)
    return (chains - chains % workers if chains > workers else chains) - 1


def spread_evenly(states: Iterable[str], count: int) -> list[str]:
    """Those of the page states that cut a collection into parts of one size, as near as they can: at most `count`.

    The longest part comes first: what is left at the end is short.
    """
    places = list(dict.fromkeys(states))
    by_token = {token_of(place): place for place in places}
    if len(by_token) <= count:  # there are few, or another server made them
        return places[:count]
    ring, chosen = sorted(by_token), set[int]()
    for number in range(1, count + 1):
        wanted = (number << 64) // (count + 1) - (1 << 63)
        at = bisect.bisect(ring, wanted)
        chosen.add(min(ring[max(0, at - 1) : at + 1], key=lambda token: abs(token - wanted)))
    parts = itertools.pairwise([*sorted(chosen), 1 << 63])
    return [by_token[begin] for begin, end in sorted(parts, key=lambda part: part[0] - part[1])]


def token_of(page_state: str) -> int:
    """Where in the server's order a page state stands, if the server has Cassandra's own: the token of its key.

    A state begins with the key behind its length, a vint. For anything else the result is some number: it decides how
    evenly the work is shared out, and nothing else.
    """
    raw = base64.b64decode(page_state)
    if raw[0] < 0x80:
        return murmur3_token(raw[1 : 1 + raw[0]])
    return murmur3_token(raw[2 : 2 + ((raw[0] & 0x3F) << 8 | raw[1])])


_64_BITS = (1 << 64) - 1
_LOW, _HIGH = 0x87C37B91114253D5, 0x4CF5AD432745937F


def murmur3_token(key: bytes) -> int:
    """The token of a partition key: the first half of MurmurHash3 (x64, 128 bits), as a signed number.

    As Cassandra's Murmur3Partitioner has it, whose bytes are signed in the tail: public implementations differ there.
    """
    first = second = 0
    body, tail = key[: len(key) & ~15], key[len(key) & ~15 :]
    for low, high in struct.iter_unpack("<QQ", body):
        first = (_rotate(first ^ _mix(low, _LOW, 31, _HIGH), 27) + second) * 5 + 0x52DCE729 & _64_BITS
        second = (_rotate(second ^ _mix(high, _HIGH, 33, _LOW), 31) + first) * 5 + 0x38495AB5 & _64_BITS
    signed = [byte - ((byte & 0x80) << 1) << 8 * (place & 7) for place, byte in enumerate(tail)]
    first ^= _mix(functools.reduce(operator.xor, signed[:8], 0), _LOW, 31, _HIGH) ^ len(key)
    second ^= _mix(functools.reduce(operator.xor, signed[8:], 0), _HIGH, 33, _LOW) ^ len(key)
    first = first + second & _64_BITS
    second = second + first & _64_BITS
    token = _finish_mix(first) + _finish_mix(second) & _64_BITS
    return token - (1 << 64) if token >> 63 else token


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & _64_BITS


def _mix(value: int, factor: int, bits: int, other: int) -> int:
    return _rotate(value * factor & _64_BITS, bits) * other & _64_BITS


def _finish_mix(value: int) -> int:
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & _64_BITS
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & _64_BITS
    return value ^ value >> 33


class Memory:
    """Bytes of pages that are held, over all collections. Thread-safe."""

    def __init__(self, limit_bytes: int = MAX_BYTES_IN_FLIGHT) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserved(self, size: int, stop: threading.Event) -> Iterator[None]:
        """Wait until so many bytes fit, or nothing is held, and hold them."""
        with self._changed:
            while self._held_bytes and self._held_bytes + size > self._limit_bytes and not stop.is_set():
                self._changed.wait(SIGNAL_POLL_S)
            self._held_bytes += size
        try:
            yield
        finally:
            with self._changed:
                self._held_bytes -= size
                self._changed.notify_all()


class Sink(Protocol):
    """What takes the documents of one attempt to read a collection."""

    def write(self, documents: list[msgspec.Raw]) -> None:
        """Take some documents, in no order. Called by several threads at once, and also after `abandon`."""

    def abandon(self) -> None:
        """The attempt was given up: whatever was taken does not count. May be called twice."""


_K = TypeVar("_K", bound=Sink)


class Requests:
    """The requests in flight: at most `workers`, over all collections; and the bytes that their replies take."""

    def __init__(self, api: DataApi, workers: int) -> None:
        self.api = api
        self.workers = workers
        self.memory = Memory()
        self._pool = ThreadPoolExecutor(workers)

    def map(self, function: Callable[[_S], _T], items: Iterable[_S]) -> list[_T]:
        """Call a function, which does requests, for each item, as many at once as there may be. In order.

        Raises the first error that there is, without waiting for the others.
        """
        return await_all([self._pool.submit(function, item) for item in items])

    def repeat(self, step: Callable[[_S], bool], items: Iterable[_S]) -> None:
        """Call a function, which does a request, for each item until it returns False; else as `map`."""

        def steps(item: _S) -> None:
            while step(item):
                pass

        self.map(steps, items)

    def scan(
        self,
        source: Readable,
        open_sink: Callable[[], _K],
        progress: ScanProgress,
        expected: int | None = None,
    ) -> _K:
        """Read a collection until one attempt is whole, and return the sink that took it; the others were abandoned.

        Where an attempt with guesses fails, others are guessed once, then the collection is read serially. Raises what
        the requests and the sink raise, and PageStateError when the place in the scan is lost too often.
        """
        attempts = lost = 0
        while True:
            progress.restart()
            sink = open_sink()
            scan = CollectionScan(self, source, sink, progress)
            try:
                progress.chains = scan.run(expected, is_serial=attempts >= MAX_GUESSED_SCANS)
                return sink
            except (NotJoinedError, PageStateError) as error:
                attempts += 1
                lost += isinstance(error, PageStateError)
                if lost == MAX_SCANS:
                    raise
                how = ", one page after the other" if attempts == MAX_GUESSED_SCANS and self.workers > 1 else ""
                log.warning(
                    "%s: %s Starting the collection over%s.",
                    source.name,
                    error.message,
                    how,
                    extra={"collection": source.name},
                )
            finally:
                if not scan.is_whole:
                    sink.abandon()
            progress.count_retry()

    def close(self) -> None:
        """End when what runs has ended; nothing new begins."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class CollectionScan:
    """One attempt to read a collection. Documents go to the sink as their pages come."""

    def __init__(self, requests: Requests, source: Readable, sink: Sink, progress: ScanProgress) -> None:
        self._requests = requests
        self._api = requests.api
        self._source = source
        self._sink = sink
        self._progress = progress
        self._chains = Chains()
        self._lock = threading.Lock()
        self._patience = Patience(self._api.target.retry_budget_s)
        self._asked = 0  # requests on their way
        self._page_bytes = 0  # of the largest so far
        self._guess_until = 0.0
        self._refusal = ""  # the error that the last guess met
        self._is_over = False
        self.is_whole = False

    def run(self, expected: int | None, *, is_serial: bool = False) -> int:
        """Read everything; return how many chains it took. `expected`: the server's estimate; None or 0: it has none.

        Raises NotJoinedError if the chains do not join, and what a request raised.
        """
        try:
            kept, ordinary = self._read_first_pages()
            is_serial = is_serial or ordinary.state is None or self._source.place is None
            count = 0 if is_serial else guess_count(self._requests.workers, kept, expected)
            states = self._guess(kept, count) if count else []
            entered = [reader for reader in self._requests.map(self._enter, states) if reader]  # the barrier
            if states and not entered:
                self._tell_serial("none of the trial starting points could be used")
            self._requests.repeat(self._advance, [ordinary, *entered])
            if not self._chains.are_joined():
                if len(self._chains) == 1:  # no guess is to blame
                    raise PageStateError(_LED_BACK)
                raise NotJoinedError("the chains of pages do not join into one scan.")
            self.is_whole = True
            return len(self._chains)
        finally:
            with self._lock:
                self._is_over = True

    def _read_first_pages(self) -> tuple[list[KeptPage], Reader]:
        """The pages that are read one after the other, before anything is guessed; and where they lead."""
        kept, reader = list[KeptPage](), Reader(self._source.name)
        while len(kept) < MAX_KEPT_PAGES and (not kept or reader.state is not None):
            page = self._requests.map(self._read, [reader.state])[0]
            if not reader.is_repeated(page):
                if not self._chains.keep(page.keys):
                    raise PageStateError(_LED_BACK)
                places = list(map(self._source.place, page.documents)) if self._source.place else []
                kept.append(KeptPage(page.keys, places, page.next_state))
                self._take(page, len(page.keys))
            del page  # or it would be in memory beside the next one: 80 MB of the largest documents
        return kept, reader

    def _guess(self, kept: list[KeptPage], count: int) -> list[str]:
        """Page states that lead to places all over the collection; none where they cannot be made or trusted."""
        calibration = find_calibration(kept)
        if calibration is None:
            self._tell_serial("its page states do not allow starting elsewhere")
            return []
        found = self._requests.map(self._try_read, [calibration.state])[0]
        if (
            found is None
            or not found.keys
            or found.keys[: len(calibration.behind)] != calibration.behind[: len(found.keys)]
        ):
            self._tell_serial(self._refusal or "a trial start at a known document did not lead to those that follow it")
            return []
        self._guess_until = time.monotonic() + self._api.target.request_timeout_s
        last, next_state = calibration.last, calibration.next_state
        guesses = [last.replaced_by(last.random_key(), next_state) for _ in range(CANDIDATES_PER_GUESS * count)]
        return spread_evenly(filter(None, guesses), count)

    def _tell_serial(self, reason: str) -> None:
        name = self._source.name
        log.info("%s: reading one page after the other: %s.", name, reason, extra={"collection": name})

    def _try_read(self, state: str) -> Page | None:
        """A page of a guessed state; None if the server refuses it or does not answer at once."""
        with self._reserved(), self._asking():
            self._patience.await_turn(self._api.stop)
            try:
                return self._api.find_page(self._source, state, patience=Patience(0.0))
            except RequestError as error:
                self._refusal = error.message.rstrip(".")
                self._patience.hold(error.retry_after_s or 0.0)
            except PageStateError:
                pass
        return None

    def _enter(self, state: str) -> Reader | None:
        """Read the first page of a guess; return the reader of its chain, None if it is dropped."""
        page = None if self._is_over or time.monotonic() > self._guess_until else self._try_read(state)
        if page is None or page.next_state == state:
            return None
        with self._lock:
            chain = self._chains.enter(page.keys)
        if chain is None:
            return None
        reader = Reader(self._source.name, chain, state)
        reader.is_repeated(page)
        self._take(page, len(page.keys))
        return reader

    def _advance(self, reader: Reader) -> bool:
        """Read the next page of a chain; False when it has ended."""
        if self._is_over:
            return False
        if reader.state is None:
            with self._lock:
                self._chains.finish(reader.chain)
            return False
        with self._reserved():
            page = self._read(reader.state)
            if reader.is_repeated(page):
                return True
            with self._lock:
                own = self._chains.follow(reader.chain, page.keys)
            self._take(page, own)
        return own == len(page.keys)

    def _reserved(self) -> contextlib.AbstractContextManager[None]:
        return self._requests.memory.reserved(self._page_bytes, self._api.stop)

    def _read(self, state: str | None) -> Page:
        with self._asking():
            page = self._api.find_page(
                self._source, state, patience=self._patience, on_retry=self._progress.count_retry
            )
        self._page_bytes = max(self._page_bytes, page.size_bytes)
        return page

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """A request. Patience begins anew when there was none: who waits for a worker waits for no service."""
        with self._lock:
            if not self._asked:
                self._patience.renew()
            self._asked += 1
        try:
            yield
        finally:
            with self._lock:
                self._asked -= 1

    def _take(self, page: Page, own: int) -> None:
        """Hand on the first documents of a page; they count at once."""
        self._sink.write(page.documents[:own])
        with self._lock:
            if not self._is_over:
                self._progress.count_page(own)


@dataclass
class ScanProgress:
    """What reading a collection took so far. Thread-safe.

    `on_read` is told how many documents came, `on_restart` that a scan begins, or begins anew.
    """

    on_restart: Callable[[], None] = lambda: None
    on_read: Callable[[int], None] = lambda _count: None
    pages: int = 0
    retries: int = 0
    chains: int = 1
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def restart(self) -> None:
        """The collection is begun anew: only retries stay."""
        self.pages = 0
        self.on_restart()

    def count_page(self, documents: int) -> None:
        """A page counts."""
        with self._lock:
            self.pages += 1
        self.on_read(documents)

    def count_retry(self) -> None:
        """A request is repeated, or a scan."""
        with self._lock:
            self.retries += 1


# ---------------------------------------------------------------------------------------------------- tables

_PLAIN_COLUMN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_FULL_PAGES = (20, 50)  # rows: what servers put on a page; 20 on Astra, and on all that are too old to know of types
_GUESSED_TYPES = ("text", "uuid", "int", "bigint")


class RowPlace(Place):
    """Where a row stands whose table has a partition key of one column: the key's bytes begin a page state."""

    __slots__ = ()

    def replaced_by(self, key: bytes, page_state: str) -> str | None:
        """A page state that ends at this place, with another key of the same length; None if it cannot be made."""
        with contextlib.suppress(ValueError):
            raw, length = base64.b64decode(page_state, validate=True), bytes([len(self.key) & 0x7F])
            is_understood = len(key) == len(self.key) < 0x80 and raw.startswith(length + self.key)
            if is_understood:
                return base64.b64encode(length + key + raw[len(key) + 1 :]).decode()
        return None

    def random_key(self) -> bytes:
        """Some key of the same length."""
        return super().random_key() if self.kind == "text" else os.urandom(len(self.key))


def _row_place(shape: TableShape, row: msgspec.Raw) -> Place:
    """The place of a row, by the bytes that Cassandra has for the key. Raises FormatError for what is no row of it."""
    (column,) = shape.partition_by
    kind = str(shape.columns[column]["type"])
    try:
        value = msgspec.json.decode(_members_decoder.decode(row)[column])
        if kind == "text":
            return RowPlace(kind, str(value).encode(errors="replace"))
        if kind == "uuid":
            return RowPlace(kind, uuid.UUID(str(value)).bytes)
        return RowPlace(kind, struct.pack(">i" if kind == "int" else ">q", value))
    except (KeyError, ValueError, struct.error) as error:
        raise FormatError(f"a row without its key: {column} is missing or no {kind}") from error


def _can_be_guessed(shape: TableShape) -> bool:
    """Whether a scan of the table can be entered at guessed places."""
    return (
        len(shape.partition_by) == 1
        and not shape.sort
        and shape.columns[shape.partition_by[0]].get("type") in _GUESSED_TYPES
    )


def _check_table_page(page: Page, reply: Reply, is_first: bool, *, api: DataApi, name: str, shape: TableShape) -> None:
    """Raise BackupError for a page that lacks columns, or behind which rows may be missing.

    Servers of 2024 send no page state for tables: one page of rows, and no more.
    """
    with contextlib.suppress(msgspec.DecodeError):
        schema = _status_decoder.decode(reply.status).projectionSchema if reply.status else None
        if schema is not None and (missing := [each for each in shape.columns if each not in schema]):
            raise BackupError(
                f"{name}: the server did not return the columns {', '.join(missing)}.",
                f"Was the table altered meanwhile? Then run again; otherwise leave it out: --exclude {name}.",
            )
    count = len(page.documents)
    is_full = count in _FULL_PAGES and api.largest_page <= count
    if is_first and page.next_state is None and is_full and not (count == _FULL_PAGES[0] and api.has_large_pages):
        raise BackupError(
            f"{name}: the server sent {count} rows, a full page, and says that nothing follows:"
            " servers of 2024 do that however many rows there are, so it is not known whether these are all.",
            f"Use a newer Data API; or leave the table out: --exclude {name}.",
        )


# ======================================================================================================================
# Report: logic tells it what happened, the command line decides how that looks
# ======================================================================================================================


_SECRET_LIKE = re.compile(r"""AstraCS(?::|%3A)[^\s'"<>]+|(?i:AGE-SECRET-KEY-)\w+""")


class Redactor(logging.Formatter):
    """Formats log lines and takes every secret out of them: in clear, URL-encoded, base64, JSON-escaped.

    `as_json`: one object a line. `is_short`: the time of day only, and no level but a warning's: for a narrow terminal.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime
        self.as_json = False
        self.is_short = False
        self._secrets: set[str] = set()

    def add(self, secret: str) -> None:
        """Hide `secret` from now on."""
        if len(secret) >= 4:
            secret = secret.encode(errors="surrogateescape").decode(errors="replace")
            encoded = base64.b64encode(secret.encode()).decode()
            self._secrets |= {secret, urllib.parse.quote(secret), urllib.parse.quote(secret, safe="")}
            self._secrets |= {urllib.parse.quote_plus(secret)}
            self._secrets |= {encoded, encoded.rstrip("="), json.dumps(secret)[1:-1], repr(secret)[1:-1]}

    def redact(self, text: str) -> str:
        """Return `text` without secrets."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def redact_error(self, text: str) -> str:
        """Return `text` without secrets, and without what looks like one that somebody gave in the wrong place."""
        return _SECRET_LIKE.sub("***", self.redact(text))

    def format(self, record: logging.LogRecord) -> str:
        """One log line, redacted, tracebacks included; what a stranger named cannot steer the terminal."""
        if not self.as_json:
            text = super().format(record)
            if self.is_short:
                text = text[11:].replace(" INFO    ", " ", 1)
            return safe_text(self.redact_error(text))
        moment = datetime.fromtimestamp(record.created, UTC)
        message = safe_text(self.redact_error(record.getMessage()))
        row = {"time": utc_text(moment), "level": record.levelname.lower(), "message": message}
        if collection := getattr(record, "collection", None):
            row["collection"] = collection
        return self.redact_error(json.dumps(row, ensure_ascii=False))


redactor = Redactor()


terminal_lock = threading.RLock()
"""Held by whoever writes to the terminal: rich mixes up lines and bars when two threads draw at once."""


last_lines: deque[str] = deque(maxlen=PING_LINES)
"""The last log lines, for a ping's body: also those that `--quiet` does not show."""


class _LogHandler(logging.Handler):
    """Writes to what `sys.stderr` is at the time: bars on a terminal put themselves in its place, and stay below."""

    def __init__(self, shown_from: int) -> None:
        super().__init__()
        self.setFormatter(redactor)
        self._shown_from = shown_from

    def emit(self, record: logging.LogRecord) -> None:
        with terminal_lock, contextlib.suppress(OSError, ValueError):  # nobody reads it; the exit code still tells
            text = self.format(record)
            if record.levelno >= logging.INFO:
                last_lines.append(text)
            if record.levelno >= self._shown_from:
                encoding = sys.stderr.encoding or "utf-8"
                sys.stderr.write(text.encode(encoding, "replace").decode(encoding) + "\n")
                sys.stderr.flush()


class Report:
    """Progress of a run: bars on a terminal, a heartbeat elsewhere. Thread-safe; a context manager."""

    current: ClassVar[Report | None] = None

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.progress import Progress

        self._progress = Progress(disable=True)  # counts and measures; `_draw` draws
        self._tasks: dict[str, Task] = {}
        self._total = self._add_task("", phase="done", unit="documents")
        self._collections = 0  # of the stage
        self._unfinished: dict[str, int] = {}  # those of them at work or still to come, and the documents expected
        self._documents: Counter[str] = Counter()  # read or written so far, by collection of the stage
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._live: Live | None = None
        is_dumb = os.environ.get("TERM", "") in ("dumb", "unknown")
        self.is_live = sys.stderr.isatty() and not quiet and not redactor.as_json and not is_dumb
        self.warnings: list[str] = []

    def __enter__(self) -> Self:
        Report.current = self
        redactor.is_short = self.is_live
        threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.end_bars()

    def stage(self, expected: dict[str, int | None]) -> None:
        """A stage begins: its collections, and how many documents each should have. 0 and None: nobody knows."""
        with self._lock:
            self._collections = len(expected)
            self._unfinished = {name: count or 0 for name, count in expected.items()}
            self._documents.clear()
            self._progress.reset(self._total.id)

    def start(self, name: str, expected: int | None = None, phase: str = "reading", *, unit: str = "documents") -> None:
        """A collection or a transfer begins, or begins anew, or comes to its next phase. `unit`: documents or bytes."""
        with self._lock:
            self._remove_task(name)
            self._tasks[name] = self._add_task(safe_text(name), phase=phase, unit=unit, expected=expected or 0)
            if unit == "documents":
                self._documents[name] = 0
        if self.is_live:
            self._draw(begin=True)

    def advance(self, name: str, done: int) -> None:
        """More documents of a collection are done, or more bytes; of one that is finished, nothing counts."""
        with self._lock:
            if task := self._tasks.get(name):
                self._progress.advance(task.id, done)
                if task.fields["unit"] == "documents":
                    self._documents[name] += done
                    self._progress.advance(self._total.id, done)

    def finish(self, name: str) -> None:
        """A collection or a transfer is done, well or not."""
        with self._lock:
            self._remove_task(name)
            self._unfinished.pop(name, None)

    def warn(self, message: str) -> None:
        """Something a person should know, though nothing failed."""
        self.warnings.append(redactor.redact(message))
        log.warning("%s", message)

    def end_bars(self) -> None:
        """Leave the terminal to a question or a result; bars come back with the next `start`."""
        with self._drawing():
            live, self._live = self._live, None
            if live:
                live.stop()

    def _add_task(self, name: str, **fields: Any) -> Task:
        self._progress.advance(self._progress.add_task(name, total=None, **fields), 0)  # the rate counts from here
        return self._progress.tasks[-1]

    def _remove_task(self, name: str) -> None:
        if task := self._tasks.pop(name, None):
            self._progress.remove_task(task.id)

    def _at_work(self) -> list[Task]:
        """What is at work, to be shown; in front the total, where there is more than one collection."""
        with self._lock:
            rows = [self._row(task, task.fields["expected"]) for task in self._tasks.values()]
            if self._collections > 1 and self._unfinished:
                rows.insert(0, self._total_row())
        return rows

    def _total_row(self) -> Task:
        """The stage's row, in documents. Nobody knows its end once what was not expected outweighs what is left."""
        done = sum(self._documents.values())
        self._progress.update(self._total.id, completed=done)
        differences = [count - self._documents[name] for name, count in self._unfinished.items()]
        left, unexpected = sum(max(0, each) for each in differences), sum(max(0, -each) for each in differences)
        row = self._row(self._total, done + left if left >= unexpected else 0)
        row.description = f"{self._collections - len(self._unfinished):,} of {plural(self._collections, 'collection')}"
        return row

    def _row(self, task: Task, expected: float) -> Task:
        """A copy to be shown: with texts, and with a total where one is known and was not passed."""
        self._progress.advance(task.id, 0)  # so that the rate falls while nothing comes
        row, speed = copy.copy(task), task.speed or 0
        row.total = expected if expected and expected >= task.completed else None
        texts = size_text(task.completed), size_text(speed)
        if task.fields["unit"] == "documents":
            texts = f"{task.completed:,.0f} docs", f"{speed:,.0f}"
        row.fields = task.fields | {"count": texts[0], "rate": f"{texts[1]}/s"}
        return row

    def _tell(self) -> None:
        while not self._ended.wait(REFRESH_S if self.is_live else HEARTBEAT_S):
            if self.is_live:
                self._draw()
                continue
            rows = ["{} {phase}: {count}, {rate}".format(row.description, **row.fields) for row in self._at_work()]
            log.info("At work: %s.", "; ".join(rows).replace(" docs, ", " documents, ") or "waiting")

    def _draw(self, *, begin: bool = False) -> None:
        """Draw the bars anew, if there are any. `begin`: if there are none yet, they begin."""
        from rich.console import Console
        from rich.live import Live

        with self._drawing():
            if self._live:
                self._live.refresh()
            elif begin and not self._ended.is_set():
                console = Console(stderr=True)
                bars: Callable[[], Any] = lambda: self._bars(console.width, console.height)  # noqa: E731
                # stdout is left alone: it may lead elsewhere. Only we refresh, under the one lock.
                self._live = Live(
                    console=console, get_renderable=bars, auto_refresh=False, transient=True, redirect_stdout=False
                )
                self._live.start(refresh=True)

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        """The terminal is ours; if it is gone, the run goes on without bars."""
        with terminal_lock:
            try:
                yield
            except OSError:
                self._live, self.is_live = None, False

    def _bars(self, width: int, height: int) -> Any:
        """A bar for what is at work: never more than fit the terminal."""
        from rich.console import Group

        rows = self._at_work()
        room = max(1, height - BARS_MARGIN_LINES)
        shown = rows if len(rows) <= room else rows[: room - 1]
        self._progress.columns = _bar_columns(is_narrow=width < NARROW_COLUMNS)
        table = self._progress.make_tasks_table(shown)
        table.width = max(1, width - BARS_MARGIN_COLUMNS)
        return Group(table, f"and {len(rows) - len(shown)} more") if len(shown) < len(rows) else table


def _bar_columns(*, is_narrow: bool) -> tuple[ProgressColumn, ...]:
    """Name, phase, bar, per cent, count, rate, time left; on a narrow terminal name and figures only."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    name_column = Column(ratio=2, no_wrap=True, overflow="ellipsis", min_width=0 if is_narrow else 20)
    name = TextColumn("{task.description}", markup=False, table_column=name_column)
    percent = TaskProgressColumn(text_format_no_percentage=" " * 4)
    count, rate = (TextColumn(form, justify="right") for form in ("{task.fields[count]:>11}", "{task.fields[rate]:>9}"))
    if is_narrow:
        return name, percent, count
    bar = BarColumn(None, table_column=Column(ratio=1, min_width=6))
    left = TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7))
    return name, TextColumn("{task.fields[phase]:11}"), bar, percent, count, rate, left


def start_logging(*, verbose: bool, quiet: bool, as_json: bool) -> None:
    """Send our log, and nobody else's, to stderr. May be called twice."""
    redactor.as_json = as_json
    log.handlers[:] = [_LogHandler(logging.WARNING if quiet else logging.NOTSET)]
    log.propagate = False
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


# ======================================================================================================================
# Box. Each repetition first looks whether the lost request did its work.
# ======================================================================================================================

BOX_MIN_SESSION_BYTES = 20_000_000  # below, Box refuses sessions
BOX_PARALLEL_PARTS = 3
BOX_PARTS_BYTES = 32 * 1024 * 1024  # of parts in flight, unless one alone is larger
BOX_MAX_SESSIONS = 3  # how many sessions may vanish under one upload
BOX_PAGE_ITEMS = 1000
BOX_TOKEN_AGE = 0.75  # of its life; from then on a token is renewed before a request
DOWNLOAD_BYTES = 1024 * 1024

BOX_HINTS = {
    "invalid_client": "BOX_CLIENT_ID or BOX_CLIENT_SECRET (BOX_CLIENT_SECRET_FILE) is wrong: copy both again from Box.",
    "unauthorized_client": "A Box admin has to authorise the app: Admin Console, Integrations, Platform Apps Manager.",
    "invalid_grant": "Check BOX_ENTERPRISE_ID (or BOX_USER_ID), and that an admin authorised the app since it changed.",
    "insufficient_scope": "Give the app the scope to read and write all files, and have an admin authorise it again.",
    "not_found": "Check BOX_FOLDER_ID, and invite the app's service account (--check prints its login) to that folder.",
    "access_denied_insufficient_permissions": "Make the service account Editor of that folder (see --check).",
    "storage_limit_exceeded": "Box is full (its trash counts too): empty the trash, or get more room.",
    "file_size_limit_exceeded": "The file exceeds the account's size limit: split the backup with --collection.",
}
BOX_TEMPORARY_CODES = frozenset(
    {"name_temporarily_reserved", "operation_blocked_temporary", "rate_limit_exceeded", "parts_mismatch"}
)


@dataclass(frozen=True)
class BoxConfig:
    """Whose Box, and which folder of it; "" is what is not set."""

    client_id: str
    client_secret: str = field(repr=False)
    enterprise_id: str
    user_id: str
    folder_id: str
    base_url: str
    upload_url: str
    request_timeout_s: float
    retry_budget_s: float


@dataclass(frozen=True)
class BoxFile:
    """A file in Box."""

    id: str
    name: str
    size_bytes: int
    sha1: str
    etag: str | None = None
    version_id: str | None = None

    @property
    def stem(self) -> str:
        """Its name without `.zip`: a snapshot's, if it is one."""
        return self.name.removesuffix(".zip")

    @property
    def is_snapshot(self) -> bool:
        """Whether its name is exactly one of ours."""
        return self.name.endswith(".zip") and is_complete_name(self.stem)


class BoxError(RequestError):
    """Box refused, or did not answer. `conflict` is the file that has the name already, `session` an upload's."""

    conflict: BoxFile | None = None
    session: Any = None


class DamagedDownload(BoxError):
    """What Box has, or what arrives of it, is not the snapshot."""

    exit_code = 3  # for restore.py: the snapshot is refused


class ZipStream:
    """A snapshot's directory as a stored ZIP64 archive that is never written: any range of it can be read.

    The same snapshot gives the same bytes, so the same `sha1`. `manifest.json` comes first, so that the beginning of
    the archive tells what is in it. Thread-safe. Raises FormatError if a file is not what SHA256SUMS says.
    """

    def __init__(self, directory: Path) -> None:
        self.name = directory.name
        self.file_name = f"{directory.name}.zip"
        self._pieces: list[tuple[int, int, bytes | Path]] = []  # (offset, size, bytes or the file that has them)
        self.size_bytes = 0
        central = b""
        sums = read_sums(directory)
        for name in sorted(sums, key=lambda name: (name != MANIFEST_NAME, name != CHECKSUMS_NAME, name)):
            central += self._add_file(directory / name, sums[name])
        self._add(central + self._end(len(sums), len(central)))
        sha1 = hashlib.sha1(usedforsecurity=False)
        for offset in range(0, self.size_bytes, DOWNLOAD_BYTES):
            sha1.update(self.read(offset, DOWNLOAD_BYTES))
        self.sha1 = sha1.hexdigest()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from `offset` on, fewer than `size` only at the end."""
        end, found = offset + size, []
        for start, length, content in self._pieces:
            first, last = max(offset - start, 0), min(end - start, length)
            if first < last and isinstance(content, bytes):
                found.append(content[first:last])
            elif first < last:
                with open(content, "rb") as file:
                    file.seek(first)
                    found.append(file.read(last - first))
        return b"".join(found)

    def _add(self, content: bytes | Path, size: int | None = None) -> None:
        length = len(content) if isinstance(content, bytes) else size or 0
        self._pieces.append((self.size_bytes, length, content))
        self.size_bytes += length

    def _add_file(self, path: Path, sha256: str | None) -> bytes:
        """Add a local header and a file; return its entry of the central directory."""
        size, crc = path.stat().st_size, file_crc32(path, sha256)
        name, offset = f"{self.name}/{path.name}".encode(), self.size_bytes
        common = struct.pack("<HHHHHIIIHH", 45, 0x800, 0, *self._dos_time(), crc, *(0xFFFFFFFF,) * 2, len(name), 20)
        self._add(b"PK\3\4" + common + name + struct.pack("<HHQQ", 1, 16, size, size))
        self._add(path, size)
        made = struct.pack(
            "<HHHHHHIIIHH", 0x32D, 45, 0x800, 0, *self._dos_time(), crc, *(0xFFFFFFFF,) * 2, len(name), 28
        )
        rest = struct.pack("<HHHII", 0, 0, 0, 0o100600 << 16, 0xFFFFFFFF)
        return b"PK\1\2" + made + rest + name + struct.pack("<HHQQQ", 1, 24, size, size, offset)

    def _end(self, count: int, central_size: int) -> bytes:
        """The end of the central directory, in ZIP64 form and, pointing to it, in the old one."""
        at = self.size_bytes + central_size
        end64 = struct.pack("<QHHIIQQQQ", 44, 0x32D, 45, 0, 0, count, count, central_size, self.size_bytes)
        locator = struct.pack("<IQI", 0, at, 1)
        end = struct.pack("<HHHHIIH", 0, 0, count, count, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        return b"PK\6\6" + end64 + b"PK\6\7" + locator + b"PK\5\6" + end

    def _dos_time(self) -> tuple[int, int]:
        """The snapshot's time from its name, in MS-DOS form."""
        moment = snapshot_moment(self.name)
        time_of_day = moment.hour << 11 | moment.minute << 5 | moment.second // 2
        return time_of_day, (moment.year - 1980) << 9 | moment.month << 5 | moment.day


def zip_size_bytes(name: str, manifest_size_bytes: int, manifest: Manifest) -> int:
    """The size of the zip that `ZipStream` makes of a complete snapshot."""
    sizes = {record.data_file or "": record.data_size_bytes or 0 for record in manifest.records}
    sizes[MANIFEST_NAME] = manifest_size_bytes
    sizes[CHECKSUMS_NAME] = sum(64 + len(f"  {file}\n".encode()) for file in sizes)
    headers = 30 + 20 + 46 + 28  # of a file: local header and entry of the central directory, each with ZIP64's part
    return sum(headers + 2 * len(f"{name}/{file}".encode()) + size for file, size in sizes.items()) + 56 + 20 + 22


def read_sums(directory: Path) -> dict[str, str | None]:
    """The names in SHA256SUMS with their digests, and SHA256SUMS itself with None."""
    lines = (directory / CHECKSUMS_NAME).read_text(encoding="utf-8").splitlines()
    return {CHECKSUMS_NAME: None, **{name: digest for digest, _, name in (line.partition("  ") for line in lines)}}


class Box:
    """One folder in Box: what is in it, uploads and downloads. Thread-safe.

    Every failure is a BoxError; transient errors are retried for `retry_budget_s`.
    """

    def __init__(self, config: BoxConfig, stop: threading.Event) -> None:
        import box_sdk_gen as sdk

        self.config = config
        self.stop = stop
        # The SDK's own repetition sends bodies again without looking, and obeys any Retry-After.
        once = sdk.BoxRetryStrategy(max_attempts=1, max_retries_on_exception=0)
        timeout_ms = int(config.request_timeout_s * 1000)
        connect_ms = min(timeout_ms, int(CONNECT_TIMEOUT_S * 1000))
        urls = {"base_url": config.base_url, "upload_url": config.upload_url}
        network = sdk.NetworkSession(
            network_client=sdk.BoxNetworkClient(requests_session()),
            base_urls=sdk.BaseUrls(**{name: url.rstrip("/") for name, url in urls.items() if url}),
            timeout_config=sdk.TimeoutConfig(connection_timeout_ms=connect_ms, read_timeout_ms=timeout_ms),
            retry_strategy=once,
        )
        kind = "user_id" if config.user_id else "enterprise_id"
        who: dict[str, Any] = {kind: getattr(config, kind)}
        auth = sdk.BoxCCGAuth(sdk.CCGConfig(config.client_id, config.client_secret, **who))
        self._client: Any = sdk.BoxClient(auth=auth, network_session=network)  # most of its fields are Optional
        self._token_lock = threading.Lock()
        self._token_until = 0.0

    # ------------------------------------------------------------------------------------------------- what is there

    def whoami(self) -> Any:
        """The service account: `login`, `max_upload_size`, `space_amount`, `space_used`."""
        return self._call("log in", lambda: _having(self._client.users.get_user_me(), "login", "max_upload_size"))

    def folder(self) -> Any:
        """The folder: its `name` and `permissions`."""
        fields = ["id", "name", "permissions"]
        get = self._client.folders.get_folder_by_id
        return self._call("open the folder", lambda: _having(get(self.config.folder_id, fields=fields), "name"))

    def file(self, file_id: str) -> BoxFile:
        """A file as it is now."""
        fields = ["id", "name", "size", "sha1", "etag"]
        get = self._client.files.get_file_by_id
        return self._call("look at the file", lambda: _box_file(get(file_id, fields=fields)))

    def files(self) -> list[BoxFile]:
        """All files of the folder. Never an empty list for a page that was no answer."""
        found: list[BoxFile] = []
        place: dict[str, Any] = {"usemarker": True}
        for offset in itertools.count(BOX_PAGE_ITEMS, BOX_PAGE_ITEMS):
            items = self._list_page(place)
            found += [_box_file(entry) for entry in items.entries if entry.type == "file"]
            if items.next_marker:
                place = {"usemarker": True, "marker": items.next_marker}
            elif offset < (items.total_count or 0):
                place = {"offset": offset}  # this server does not honour markers
            else:
                break
        return found

    def _list_page(self, place: dict[str, Any]) -> Any:
        fields = ["id", "type", "name", "size", "sha1", "etag"]
        get = partial(self._client.folders.get_folder_items, self.config.folder_id, limit=BOX_PAGE_ITEMS)
        return self._call("list the folder", lambda: _having(get(fields=fields, **place), "entries"))

    def snapshots(self) -> list[BoxFile]:
        """The zips whose names are exactly ours, newest first by the name."""
        return sorted(filter(lambda file: file.is_snapshot, self.files()), key=lambda file: file.name, reverse=True)

    def find(self, name: str) -> BoxFile | None:
        """The file of that name, None if there is none."""
        return next((file for file in self.files() if file.name.casefold() == name.casefold()), None)

    # ------------------------------------------------------------------------------------------------- upload

    def upload(self, content: ZipStream, report: Report) -> tuple[BoxFile, bool]:
        """Bring a snapshot to Box; return the file, confirmed by size and SHA-1, and whether it had to be sent.

        May be called again for the same snapshot. Leaves nothing half-done behind when it raises BoxError.
        """
        name = content.file_name
        self._check_room(content)
        report.start(name, content.size_bytes, "uploading", unit="bytes")
        send: Callable[[ZipStream, BoxFile | None], BoxFile] = self._upload_whole
        if content.size_bytes >= BOX_MIN_SESSION_BYTES:
            send = partial(self._upload_in_parts, report)
        replaced = None
        try:
            stored = send(content, None)
        except BoxError as error:
            replaced = error.conflict
            if not replaced:
                raise
            if replaced.name not in ("", name):  # Box takes names that differ in case for the same
                message = f"Box: the folder has a file {replaced.name!r}, which is in the way."
                raise BoxError(message, "Rename or move that file.") from error
            stored = replaced if replaced.sha1 == content.sha1 else send(content, replaced)
        report.finish(name)
        is_new = stored is not replaced
        try:
            return self._confirm(stored, content), is_new
        except BoxError:
            if is_new:
                self._remove(stored, replaced)
            raise

    def _check_room(self, content: ZipStream) -> None:
        """Refuse what Box will not take before the first byte is sent."""
        account, size = self.whoami(), content.size_bytes
        limit, amount = account.max_upload_size, account.space_amount or 0
        free = amount - (account.space_used or 0)
        if size > limit:
            code, detail = "file_size_limit_exceeded", f"{size_text(size)}, at most {size_text(limit)}"
        elif amount > 0 and size > free:
            code, detail = "storage_limit_exceeded", f"{size_text(free)} are free"
        else:
            return
        raise BoxError(f"Box cannot take the snapshot ({code}): {detail}.", BOX_HINTS[code], code=code)

    def _upload_whole(self, content: ZipStream, replaced: BoxFile | None) -> BoxFile:
        """One request: a new file, or a new version of one. Raises BoxError, with the `conflict` if there is one."""
        from box_sdk_gen.managers import uploads

        name, body = content.file_name, content.read(0, content.size_bytes)
        file: dict[str, Any] = {
            "file_file_name": name,
            "file_content_type": "application/zip",
            "content_md_5": content.sha1,
        }
        parent = uploads.UploadFileAttributesParentField(id=self.config.folder_id)

        def send() -> BoxFile:
            if replaced:
                version = uploads.UploadFileVersionAttributes(name=name)
                send_version = self._client.uploads.upload_file_version
                files = send_version(replaced.id, version, io.BytesIO(body), if_match=replaced.etag, **file)
            else:
                attributes = uploads.UploadFileAttributes(name=name, parent=parent)
                files = self._client.uploads.upload_file(attributes, io.BytesIO(body), **file)
            return _box_file(files.entries[0])

        def find_stored() -> BoxFile | None:
            found = self.file(replaced.id) if replaced else self.find(name)
            return found if found and found.sha1 == content.sha1 else None

        try:
            return self._call("upload", send, recover=find_stored if replaced else None)
        except BoxError as error:
            if error.status is None or error.status >= 500 or error.status == 412:  # nobody knows what it did
                with contextlib.suppress(BoxError):
                    if stored := find_stored():
                        return stored
            raise

    def _upload_in_parts(self, report: Report, content: ZipStream, replaced: BoxFile | None) -> BoxFile:
        """A session, several parts in flight; starts over when the session vanishes, and aborts it when it fails."""
        for attempt in itertools.count(1):
            session = self._open_session(content, replaced)
            try:
                return self._commit(session, self._send_parts(session, content, report), content, replaced)
            except BaseException as error:
                self._abort(session)  # a session that "failed" is gone for us, but not for Box
                is_gone = isinstance(error, BoxError) and error.status in (404, 410)
                if not is_gone or attempt == BOX_MAX_SESSIONS:
                    raise
                log.warning("%s Starting the upload over.", describe_error(error))
        raise AssertionError("unreachable")

    def _open_session(self, content: ZipStream, replaced: BoxFile | None) -> Any:
        """The SDK's upload session."""
        sessions, size = self._client.chunked_uploads, content.size_bytes

        def create() -> Any:
            if replaced:
                opened = sessions.create_file_upload_session_for_existing_file(replaced.id, size)
            else:
                opened = sessions.create_file_upload_session(self.config.folder_id, size, content.file_name)
            return _having(opened, "part_size", "session_endpoints")

        try:
            return self._call("open an upload session", create)
        except BoxError as error:
            if error.session:
                return error.session
            raise

    def _send_parts(self, session: Any, content: ZipStream, report: Report) -> list[Any]:
        """All parts, in order. No part is in flight any more when it returns or raises."""

        def send(offset: int) -> Any:
            part: Any = self._send_part(session, content, offset)
            report.advance(content.file_name, part.size)
            return part

        at_once = max(1, min(BOX_PARALLEL_PARTS, BOX_PARTS_BYTES // session.part_size))
        with ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(send, offset) for offset in range(0, content.size_bytes, session.part_size)]
            try:
                return await_all(futures)
            except BaseException:
                pool.shutdown(wait=not self.stop.is_set(), cancel_futures=True)
                raise

    def _send_part(self, session: Any, content: ZipStream, offset: int) -> Any:
        """One part; stored parts cannot be sent again, so each repetition first looks for it."""
        data = content.read(offset, session.part_size)
        sha1 = hashlib.sha1(data, usedforsecurity=False)
        digest = "sha=" + base64.b64encode(sha1.digest()).decode()
        place = f"bytes {offset}-{offset + len(data) - 1}/{content.size_bytes}"

        def find_stored() -> Any:
            parts = self._stored_parts(session)
            return next(
                (p for p in parts if p.offset == offset and p.size == len(data) and _sha1(p) == sha1.hexdigest()), None
            )

        def send() -> Any:
            url = session.session_endpoints.upload_part
            part = self._client.chunked_uploads.upload_file_part_by_url(url, io.BytesIO(data), digest, place).part
            if _sha1(part) != sha1.hexdigest() or part.size != len(data) or part.offset != offset:
                raise ValueError("Box confirmed another part")
            return part

        try:
            return self._call("send a part", send, recover=find_stored)
        except BoxError as error:
            stored = self._call("look for a part", find_stored) if error.status in (409, 416) else None
            if stored is None:
                raise
            return stored

    def _stored_parts(self, session: Any) -> list[Any]:
        """What the session holds so far."""
        get = self._client.chunked_uploads.get_file_upload_session_parts_by_url
        found: list[Any] = []
        while True:
            url = session.session_endpoints.list_parts
            page = _having(get(url, offset=len(found), limit=BOX_PAGE_ITEMS), "entries")
            found += page.entries
            if len(page.entries) < BOX_PAGE_ITEMS:
                return found

    def _commit(self, session: Any, parts: list[Any], content: ZipStream, replaced: BoxFile | None) -> BoxFile:
        """Make a file of the parts. Box may say "not yet" for minutes, or be done and say that the session is gone."""
        digest = "sha=" + base64.b64encode(bytes.fromhex(content.sha1)).decode()
        etag, url = replaced.etag if replaced else None, session.session_endpoints.commit
        commit = self._client.chunked_uploads.create_file_upload_session_commit_by_url

        def send() -> BoxFile:
            files = commit(url, parts, digest, if_match=etag)
            if files is None:  # 202
                hint = "Try again later, or raise --retry-budget."
                raise BoxError("Box has not finished the upload yet.", hint, retryable=True)
            return _box_file(files.entries[0])

        try:
            return self._call("commit the upload", send)
        except BoxError as error:
            found = self.find(content.file_name) if error.status != 400 else None
            if found is None or found.sha1 != content.sha1:
                raise
            self._abort(session)  # another process may have been first
            return found

    def _confirm(self, stored: BoxFile, content: ZipStream) -> BoxFile:
        """Box's own word on the size and SHA-1 of what it holds; its reply to the upload counts if it says no other."""
        sent = content.size_bytes, content.sha1

        def look() -> BoxFile:
            file = self.file(stored.id)
            if (file.size_bytes, file.sha1) != sent:
                message = "Box: could not confirm the upload: Box holds other bytes than were sent."
                raise BoxError(message, code="other_bytes", retryable=True, unexpected=True)
            return file

        try:
            return self._call("confirm the upload", look)
        except BoxError as error:
            if error.code == "other_bytes" or (stored.size_bytes, stored.sha1) != sent:
                raise
            log.warning("%s Its reply to the upload had the right size and SHA-1.", error.message)
            return stored

    def _abort(self, session: Any) -> None:
        """Drop a session with all its parts."""
        abort = self._client.chunked_uploads.delete_file_upload_session_by_url
        with contextlib.suppress(BoxError):
            self._call("abort the upload", lambda: abort(session.session_endpoints.abort), budget_s=STOP_GRACE_S / 2)

    def _remove(self, file: BoxFile, replaced: BoxFile | None) -> None:
        """Delete what we brought and is not what we sent: the file, or the version, so that the old one is back."""

        def remove() -> None:
            if replaced is None:
                self._client.files.delete_file_by_id(file.id)
            elif file.version_id:
                self._client.file_versions.delete_file_version_by_id(file.id, file.version_id)

        with contextlib.suppress(BoxError):
            self._call("remove the upload", remove)

    def delete(self, file: BoxFile) -> None:
        """Delete a snapshot, as `files` listed it; it goes to Box's trash. Raises BoxError, also if it has changed."""
        if not file.is_snapshot:
            raise BoxError(f"Box: {file.name} is not the name of a snapshot; it is not deleted.")
        delete = self._client.files.delete_file_by_id
        try:
            self._call("delete a snapshot", lambda: delete(file.id, if_match=file.etag))
        except BoxError as error:
            if error.status != 404:  # it is gone: an earlier request did it, and its reply was lost
                raise

    # ------------------------------------------------------------------------------------------------- download

    def download(self, file: BoxFile, path: Path, report: Report) -> None:
        """Fetch a file to `path`; goes on where an earlier call broke off, and checks size and SHA-1.

        What is there so far stays in `path` with `.part` behind its name, unless the disk is full. Raises BoxError.
        """
        part = path.with_name(path.name + ".part")
        report.start(file.name, file.size_bytes, "downloading", unit="bytes")
        for is_last in (False, True):
            self._download_patiently(file, part, report)
            if part.stat().st_size == file.size_bytes and _file_sha1(part) == file.sha1:
                break
            part.unlink()
            if is_last:
                raise DamagedDownload(f"{file.name} is not what Box says it is: its SHA-1 differs.", "Use another one.")
            log.warning("%s arrived damaged; downloading it again.", file.name)
        part.replace(path)
        report.finish(file.name)

    def _download_patiently(self, file: BoxFile, part: Path, report: Report) -> None:
        """Fetch what is missing; a line that breaks but brings something each time is never given up."""
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                return self._call("download", lambda: self._download_rest(file, part, report))
            except BoxError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_SPACE_ERRNOS:
                    part.unlink(missing_ok=True)  # the next backup needs the room
                if not part.exists() or part.stat().st_size <= before:
                    raise

    def read_beginning(self, file: BoxFile, size: int) -> bytes:
        """The first bytes of a file."""

        def fetch() -> bytes:
            found = bytearray()
            for _, chunk in self._stream(file, 0, size):
                found += chunk
                if len(found) >= size:
                    break
            return bytes(found[:size])

        return self._call("download", fetch)

    def _download_rest(self, file: BoxFile, part: Path, report: Report) -> None:
        with open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as output:
            start = output.seek(0, os.SEEK_END)
            if start > file.size_bytes:
                start = 0
            if start == file.size_bytes:
                return
            for position, chunk in self._stream(file, start, file.size_bytes - start):
                if position + len(chunk) > file.size_bytes:
                    raise _box_error("download", ValueError(f"the reply has more than {file.size_bytes} bytes"))
                output.seek(position)
                output.write(chunk)
                output.truncate()
                report.advance(file.name, len(chunk))
            if output.tell() != file.size_bytes:
                raise _box_error(
                    "download", ValueError(f"the reply ended at {output.tell()} of {file.size_bytes} bytes")
                )
            os.fsync(output.fileno())

    def _stream(self, file: BoxFile, start: int, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield (position, bytes) from `start` on; from 0 where the server ignores ranges."""
        import httpx

        url = self._client.downloads.get_download_file_url(file.id)
        wanted = {"Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
        timeout_s = self.config.request_timeout_s
        with httpx.stream("GET", url, headers=wanted, timeout=timeout_s, **httpx_options(url)) as response:
            if response.status_code not in (200, 206):
                raise _download_error(response.status_code, response.headers.get("retry-after"))
            position = start if response.status_code == 206 else 0
            for chunk in response.iter_raw():
                yield position, chunk
                position += len(chunk)

    # ------------------------------------------------------------------------------------------------- one request

    def _call(
        self,
        what: str,
        function: Callable[[], _T],
        *,
        recover: Callable[[], _T | None] | None = None,
        budget_s: float | None = None,
    ) -> _T:
        """Do a request until it succeeds. `recover` looks, before a repetition, whether an earlier one did the work."""
        attempts = 0

        def attempt() -> _T:
            nonlocal attempts
            attempts += 1
            try:
                self._renew_token()
                found = recover() if recover and attempts > 1 else None
                return function() if found is None else found
            except RequestError:
                raise
            except Exception as error:  # the SDK raises anything for a reply that it does not understand
                failure = _box_error(what, error)
                if failure.status == 401:  # the next attempt begins with a new token
                    self._token_until = 0.0
                raise failure from error

        budget = self.config.retry_budget_s if budget_s is None else budget_s
        return Patience(budget).retry(attempt, self.stop)

    def _renew_token(self) -> None:
        """A token is renewed well before its end: the SDK would only notice after a whole body was sent in vain."""
        with self._token_lock:
            if time.monotonic() < self._token_until:
                return
            token = self._client.auth.refresh_token(network_session=self._client.network_session)
            if not token.access_token:
                raise ValueError("no token in the reply")
            redactor.add(token.access_token)
            self._token_until = time.monotonic() + BOX_TOKEN_AGE * (token.expires_in or 3600)


def first_zip_entry(read: Callable[[int], bytes]) -> bytes:
    """The content of the first entry of a stored zip; `read(n)` gives the first n bytes. Raises FormatError."""
    head = read(4096)
    if head[:4] != b"PK\3\4" or len(head) < MIN_ZIP_BYTES:
        raise FormatError("no zip of ours")
    method, (name_size, extra_size) = head[8:10], struct.unpack_from("<HH", head, 26)
    extra = head[30 + name_size :][:extra_size]
    if method != b"\0\0" or extra[:4] != struct.pack("<HH", 1, 16) or len(extra) < 12:
        raise FormatError("no zip of ours")
    (size,) = struct.unpack_from("<Q", extra, 4)
    start = 30 + name_size + extra_size
    if size > Manifest.MAX_BYTES:
        raise FormatError("its first entry is not a manifest")
    return (head if start + size <= len(head) else read(start + size))[start : start + size]


def _having(found: Any, *names: str) -> Any:
    """The SDK's object, which must have these fields: an HTML page gives one in which all are None."""
    if any(getattr(found, name, None) is None for name in names):
        raise ValueError(f"the reply lacks {' or '.join(names)}")
    return found


def _file_sha1(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def _sha1(found: Any) -> str:
    return str(found.sha_1 or "").lower()


def _box_file(found: Any) -> BoxFile:
    _having(found, "id", "name", "size", "sha_1")
    version_id = getattr(found.file_version, "id", None)
    return BoxFile(found.id, found.name, int(found.size), _sha1(found), found.etag, version_id)


def _download_error(status: int, retry_after: str | None) -> BoxError:
    """A refused download link is worth asking for anew: it lives for a short time only."""
    return BoxError(
        f"Box: could not download: its download host answered HTTP {status}.",
        "Check that a proxy or firewall lets *.boxcloud.com through, and that the account may download.",
        status=status,
        retryable=True,
        unexpected=status < 500 and status != 429,
        retry_after_s=_retry_after_s(retry_after),
    )


def _box_error(what: str, error: Exception) -> BoxError:
    """Translate what the SDK raises; its attributes hold the token in clear, so only chosen parts are taken."""
    info = getattr(error, "response_info", None)
    if info is None:
        return _unanswered(what, error)
    body = info.body if isinstance(info.body, dict) else {}
    headers = {name.lower(): value for name, value in info.headers.items()}
    code = info.code or body.get("error") or ""
    detail = body.get("message") or body.get("error_description") or headers.get("www-authenticate") or ""
    if "insufficient_scope" in str(detail):
        code = "insufficient_scope"
    status = int(info.status_code)
    found = BoxError(
        f"Box: could not {what}: HTTP {status} {code} {_first_line(detail)}".rstrip() + ".",
        BOX_HINTS.get(code, "Try again later; if it stays, look for the code in Box's documentation."),
        status=status,
        code=code,
        retryable=status in (401, 429) or status >= 500 or code in BOX_TEMPORARY_CODES,
        unexpected=status == 401,
        retry_after_s=_retry_after_s(headers.get("retry-after")),
    )
    if status == 409 and isinstance(info.context_info, dict):
        _add_conflict(found, info.context_info)
    if code == "item_name_in_use" and not found.conflict:
        found.hint = "The folder has a sub-folder of that name: rename or move it, then run it again."
    return found


def _unanswered(what: str, error: Exception) -> BoxError:
    """There is no reply, or one that nobody understands."""
    import httpx
    import requests
    from box_sdk_gen import BoxSDKError

    what, hint = f"Box: could not {what}", "Check the network and any proxy; docs/BOX.md names the hosts."
    if isinstance(error, BackupError):  # a variable is in the way
        return BoxError(f"{what}: {error.message}", error.hint)
    permanent, remedy = permanent_failure(error)
    if permanent:
        return BoxError(f"{what}: {permanent}.", remedy)
    if isinstance(error, (BoxSDKError, requests.RequestException, httpx.HTTPError)):
        cause = getattr(error, "error", None) or error
        is_silent = isinstance(error, OSError) or cause is not error
        reason = f"no reply ({type(cause).__name__})" if is_silent else _first_line(getattr(error, "message", error))
        return BoxError(f"{what}: {reason}.", hint, retryable=True)
    if isinstance(error, OSError) and error.errno in NO_SPACE_ERRNOS:
        return BoxError(f"{what}: {describe_error(error)}.", "Free some space, or give another --output-dir.")
    if str(getattr(error, "filename", "")).endswith(".part"):
        return BoxError(f"{what}: {describe_error(error)}.", "Make it writable, or give another --output-dir.")
    if isinstance(error, OSError):  # what the SDK and its libraries let through: a CA file that is gone
        hint = "Check the network and the CA files that variables name."
        return BoxError(f"{what}: {describe_error(error)}.", hint)
    return BoxError(f"{what}: {_first_line(error)}.", hint, retryable=True, unexpected=True)


def _add_conflict(error: BoxError, context: dict[str, Any]) -> None:
    """What a 409 names: the file that has the name (Box sends one object, its specification a list), or a session."""
    from box_sdk_gen import FileFull, UploadSession

    conflicts = context.get("conflicts")
    first = conflicts[0] if isinstance(conflicts, list) and conflicts else conflicts
    if isinstance(first, dict) and first.get("type") == "file" and first.get("id"):
        file = FileFull.from_dict(first)
        error.conflict = BoxFile(file.id, file.name or "", int(file.size or 0), _sha1(file), file.etag)
    if isinstance(context.get("session"), dict):
        error.session = UploadSession.from_dict(context["session"])


# ======================================================================================================================
# Operations: the shrink alarm, what is there, pings, metrics.
# ======================================================================================================================

PING_TIMEOUT_S = 10.0
PING_ATTEMPTS = 3
PING_BODY_BYTES = 10_000
MIN_SECRET_SEGMENT = 16  # a part of a ping URL's path of that length is a key, a shorter one may be an ordinary word
METRICS_PREFIX = "astra_backup_"


@dataclass(frozen=True)
class Scope:
    """What a snapshot is of. Snapshots of other databases, keyspaces or selections never compete."""

    api_endpoint: str
    keyspace: str
    collections: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()

    @classmethod
    def of(cls, manifest: Manifest) -> Scope:
        """The scope of a snapshot."""
        source, chosen = manifest.source, manifest.selection or Selection()
        return cls.make(source.api_endpoint, source.keyspace, chosen.collections, chosen.exclude)

    @classmethod
    def make(
        cls, api_endpoint: str, keyspace: str, collections: Iterable[str] = (), exclude: Iterable[str] = ()
    ) -> Scope:
        """The scope of what is asked for; one endpoint may be written in several ways."""
        return cls(api_endpoint.rstrip("/").lower(), keyspace, frozenset(collections), frozenset(exclude))

    @property
    def source(self) -> tuple[str, str]:
        """The keyspace of the database that it is of."""
        return self.api_endpoint, self.keyspace

    def is_whole(self) -> bool:
        """Whether all collections were asked for."""
        return not self.collections and not self.exclude

    def has(self, other: Scope) -> bool:
        """Whether another scope is of its database and keyspace; "" is any."""
        return self.api_endpoint in ("", other.api_endpoint) and self.keyspace in ("", other.keyspace)

    def covers(self, other: Scope) -> bool:
        """Whether it holds all that a snapshot of the other scope can hold."""
        return self.source == other.source and (self.is_whole() or self == other)


def find_shrinkage(old: Manifest, new: Manifest, max_percent: float) -> list[str]:
    """A sentence for each collection of which more than `max_percent` of the documents or vectors are gone.

    Only what both were asked for is compared; 100 switches the alarm off. A collection that vanished is one of those.
    """
    chosen = new.selection or Selection()
    found = {(type(record), record.name): record for record in new.records}
    sentences = []
    for before in old.records if max_percent < 100 else []:
        name = before.name
        if name in chosen.exclude or (chosen.collections and name not in chosen.collections):
            continue
        now = found.get((type(before), name))
        if now is None:
            sentences.append(f"{name}: the {before.kind} is gone; it had {plural(before.held, before.noun)}")
        elif now.is_ok:
            sentences += _losses(before, now, max_percent)
    return sentences


def _losses(before: AnyRecord, now: AnyRecord, max_percent: float) -> list[str]:
    counts = (
        (before.noun, before.held, now.held),
        ("vector", before.vector_count or 0, now.vector_count or 0),
    )
    return [
        f"{before.name}: {plural(had, what)} before, {has:,} now (-{(had - has) / had:.1%})"
        for what, had, has in counts
        if had > 0 and (had - has) * 100 > max_percent * had
    ]


# ------------------------------------------------------------------------------------------------- what is there


def read_stored(path: Path) -> tuple[Manifest, int]:
    """The manifest of a local snapshot, a directory or a zip of ours, and its size. Raises FormatError, OSError."""
    if path.is_dir():
        return Manifest.read(path), directory_size(path)
    with path.open("rb") as file:
        return Manifest.decode(first_zip_entry(lambda size: os.pread(file.fileno(), size, 0))), path.stat().st_size


@dataclass(frozen=True)
class Stored:
    """What has a snapshot's name in a place: its manifest, or why it cannot be read; both: what is wrong with it."""

    at: Path | BoxFile
    size_bytes: int = 0
    manifest: Manifest | None = None
    error: Exception | None = None

    @property
    def name(self) -> str:
        """Its name: in Box without `.zip`."""
        return self.at.stem if isinstance(self.at, BoxFile) else self.at.name

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return "in Box" if isinstance(self.at, BoxFile) else "here"

    @property
    def status(self) -> str:
        """Complete, incomplete, unreadable, or of another size than it should have."""
        if self.manifest is None:
            return "unreadable"
        is_complete = self.manifest.is_complete and not self.name.endswith(INCOMPLETE_SUFFIX)
        return "incomplete" if not is_complete else "damaged" if self.error else "complete"

    def counts(self, now: datetime) -> bool:
        """Whether it is a complete snapshot that is not from the future; a zip on the disk is none."""
        return self.status == "complete" and is_past(self.name, now)

    def row(self) -> dict[str, Any]:
        """What a list says of it."""
        manifest = self.manifest or Manifest("")
        return {
            "name": self.name,
            "place": self.place,
            "created_at_utc": manifest.created_at_utc,
            "documents": sum(record.held for record in manifest.collections),
            **({"rows": sum(record.held for record in manifest.tables)} if manifest.tables else {}),
            "size_bytes": self.size_bytes,
            "status": self.status,
            "is_selection": manifest.selection is not msgspec.UNSET,
            "is_encrypted": manifest.encryption is not msgspec.UNSET,
            **({"shrunk_from": manifest.shrunk_from} if manifest.shrunk_from else {}),
            "api_endpoint": manifest.source.api_endpoint,
            "keyspace": manifest.source.keyspace,
        }

    @classmethod
    def here(
        cls, output_dir: Path, read: Callable[[Path], tuple[Manifest, int]] = read_stored, *, must_exist: bool = True
    ) -> Iterator[Self]:
        """The snapshots of a directory, newest first. Raises BackupError if it is not there, but for `must_exist`."""
        if must_exist:
            check_directory(output_dir)
        for path in local_snapshots(output_dir):
            try:
                manifest, size_bytes = read(path)
                yield cls(path, size_bytes, manifest)
            except (FormatError, OSError, BackupError) as error:
                yield cls(path, error=error)

    @classmethod
    def look(cls, box: Box, file: BoxFile, *, is_tolerant: bool = False) -> Self:
        """What a zip in Box is. Raises BoxError; `is_tolerant`: what Box does not show of it is its `error`.

        Checked are the manifest itself and that the zip has, to the byte, the size that a zip of the files in the
        manifest has. That the bytes are the right ones Box itself confirmed, by SHA-1, when they were uploaded.
        """
        manifest, problem = None, None
        try:
            if file.size_bytes < MIN_ZIP_BYTES:  # Box refuses to read a range of an empty file
                raise FormatError("too small for a zip of ours")
            text = first_zip_entry(lambda size: box.read_beginning(file, size))
            manifest = Manifest.decode(text)
            if manifest.is_complete and zip_size_bytes(file.stem, len(text), manifest) != file.size_bytes:
                raise FormatError(f"{file.size_bytes} bytes are not what {MANIFEST_NAME} adds up to")
        except (FormatError, BoxError) as error:
            if isinstance(error, BoxError) and not is_tolerant:
                raise
            problem = error
        return cls(file, file.size_bytes, manifest, problem)

    @classmethod
    def in_box(cls, box: Box, files: list[BoxFile] | None = None, *, is_tolerant: bool = False) -> Iterator[Self]:
        """The snapshots in Box, newest first, or these files; several are looked at at once, each by `look`."""
        pool = ThreadPoolExecutor(MANIFESTS_AT_ONCE)
        look = partial(cls.look, box, is_tolerant=is_tolerant)
        waiting = iter(box.snapshots() if files is None else files)
        try:
            running = deque(pool.submit(look, file) for file in itertools.islice(waiting, MANIFESTS_AT_ONCE))
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(look, file) for file in itertools.islice(waiting, 1))
        finally:  # who asked may have seen enough
            pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def print_list(found: Iterable[Stored], *, as_json: bool, otherwise: str) -> int:
        """Print a list of snapshots, newest first: source, time (the name), documents, size, status. Returns 0."""
        rows = [one.row() for one in sorted(found, key=lambda one: (one.name[:15], one.place), reverse=True)]
        if as_json:
            print_result(json.dumps({"status": "ok", "exit_code": 0, "snapshots": rows}))
            return Exit.OK
        is_place_needed = len({row["place"] for row in rows}) > 1
        for row in rows:
            place = f"{row['place']:<7}" if is_place_needed else ""
            source = "" if row["status"] == "unreadable" else f"  {Source(row['api_endpoint'], row['keyspace'])}"
            mark = f", {plural(row['rows'], 'row')} of tables" if "rows" in row else ""
            mark += ", some collections only" if row["is_selection"] else ""
            mark += f", SHRUNK since {row['shrunk_from']}" if "shrunk_from" in row else ""
            number, noun = plural(row["documents"], "document").split()
            documents, size = f"{number:>10} {noun:<9}", f"{size_text(row['size_bytes']):>10}"
            size += " encrypted" if row["is_encrypted"] else ""  # within the first 80 columns
            print_result(f"{row['name']:<26} {place}{row['status']:<11} {documents} {size}{source}{mark}")
        if not rows:
            log.warning("%s", otherwise)
        return Exit.OK


def local_snapshots(output_dir: Path) -> list[Path]:
    """What has a snapshot's name, newest first by the name."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in output_dir.iterdir():
            name = path.name.removesuffix(".zip") if path.is_file() else path.name
            if parse_snapshot_name(name) and (path.is_file() or path.is_dir()):
                found.append(path)
    return sorted(found, key=lambda path: (path.name[:15], path.is_dir()), reverse=True)


def check_directory(output_dir: Path) -> None:
    """Raise BackupError if there is no such directory."""
    if not output_dir.is_dir():
        raise BackupError(f"There is no directory {output_dir}.", "Check --output-dir (BACKUP_OUTPUT_DIR).")


def delete_local(output_dir: Path, name: str) -> None:
    """Delete a snapshot's directory. First it loses its name: whatever has the name is whole, also after a crash.

    The caller holds the directory's lock. Raises OSError, and BackupError for a name that is not exactly ours.
    """
    if parse_snapshot_name(name) is None:
        raise BackupError(f"{name} is not the name of a snapshot.")
    grave = output_dir / f".{name}.deleting"
    (output_dir / name).rename(grave)
    _fsync_directory(output_dir)
    shutil.rmtree(grave)


def find_last(
    output_dir: Path, scope: Scope, box_config: BoxConfig | None, report: Report
) -> tuple[str, Manifest] | None:
    """The newest complete snapshot here, or in Box if there is none here, that holds all that one of the scope would.

    Whatever goes wrong is a warning: no backup depends on it. In Box it is looked for during LAST_IN_BOX_S at most.
    """
    now = utc_now()
    try:
        for one in Stored.here(output_dir, must_exist=False):
            if one.error and is_past(one.name, now) and is_complete_name(one.name):
                report.warn(f"{one.at} cannot be read, nothing is compared with it: {describe_error(one.error)}")
            if one.manifest and one.counts(now) and Scope.of(one.manifest).covers(scope):
                return one.name, one.manifest
        return _last_in_box(box_config, scope) if box_config else None
    except Exception as error:  # noqa: BLE001  (a bug in here must not cost a backup)
        report.warn(f"Could not look at the last snapshot, so nothing is compared with it: {describe_error(error)}")
        return None


def _last_in_box(config: BoxConfig, scope: Scope) -> tuple[str, Manifest] | None:
    """Raises BackupError, also when it takes too long: a folder may hold thousands of other databases' snapshots."""
    config = dataclasses.replace(config, retry_budget_s=min(config.retry_budget_s, LAST_IN_BOX_S / 2))
    is_over = threading.Event()

    def find() -> tuple[str, Manifest] | None:
        box, now = Box(config, is_over), utc_now()
        for file in box.snapshots():
            if is_over.is_set():
                break
            one = Stored.look(box, file) if is_past(file.stem, now) else None
            if one and one.manifest and one.counts(now) and Scope.of(one.manifest).covers(scope):
                return one.name, one.manifest
        return None

    try:
        return in_time(find, LAST_IN_BOX_S)
    except TimeoutError as error:
        raise BackupError(f"it was not found in Box within {LAST_IN_BOX_S:.0f} s.") from error
    finally:
        is_over.set()


def remove_superseded(result: BackupResult, max_shrink_percent: float, report: Report) -> None:
    """Delete the older INCOMPLETE snapshots that newer ones make superfluous. What cannot be deleted is a warning.

    The caller holds the directory's lock.
    """
    output_dir, newest = result.snapshot_dir.parent, result.snapshot_dir.name
    try:
        for name in list(superseded_names(output_dir, newest, Scope.of(result.manifest), max_shrink_percent)):
            delete_local(output_dir, name)
            log.info("Deleted %s: all that is good in it is good in a newer snapshot.", name)
            result.deleted.setdefault("here", []).append(name)
    except Exception as error:  # noqa: BLE001  (the new snapshot stands)
        report.warn(f"Older INCOMPLETE snapshots could not be deleted: {describe_error(error)}")


def superseded_names(output_dir: Path, newest: str, scope: Scope, max_shrink_percent: float) -> Iterator[str]:
    """INCOMPLETE snapshots of a scope of which every good collection is good in a newer one, up to `newest`.

    Neither one in which anything is not as it was written, nor one that a restore is at. A copy with far fewer
    documents does not replace one, and a file's digest is looked at before another is deleted on its strength.
    """
    names = sorted(path.name for path in output_dir.iterdir() if parse_snapshot_name(path.name))
    names = names[: names.index(newest) + 1]
    oldest = next((number for number, name in enumerate(names) if name.endswith(INCOMPLETE_SUFFIX)), len(names))
    newer: dict[tuple[str, str], list[tuple[Path, AnyRecord]]] = defaultdict(list)
    for name in reversed(names[oldest:]):
        directory = output_dir / name
        manifest = _own_manifest(directory, scope)
        good = manifest.good if manifest else []
        may_go = manifest and name != newest and name.endswith(INCOMPLETE_SUFFIX) and _is_at_rest(directory, good)
        if may_go and all(_is_held(each, newer[each.kind, each.name], max_shrink_percent, newest) for each in good):
            yield name
            continue
        for record in good:
            newer[record.kind, record.name].append((directory, record))


def _own_manifest(directory: Path, scope: Scope) -> Manifest | None:
    """The manifest of a snapshot of that very scope, None for any other and for one that cannot be read."""
    with contextlib.suppress(FormatError, OSError):
        manifest = Manifest.read(directory)
        return manifest if Scope.of(manifest) == scope and not directory.is_symlink() else None
    return None


def _is_at_rest(directory: Path, good: list[AnyRecord]) -> bool:
    """Whether a snapshot holds what it was written with, all of it readable, and no restore of it has begun."""
    expected = {MANIFEST_NAME, CHECKSUMS_NAME, *(record.data_file for record in good)}
    with contextlib.suppress(OSError):
        is_whole = {path.name for path in directory.iterdir() if os.access(path, os.R_OK)} == expected
        return is_whole and not any(directory.parent.glob(f".restore-{directory.name[:15]}*.journal"))
    return False


def _is_held(record: AnyRecord, holders: list[tuple[Path, AnyRecord]], max_shrink_percent: float, newest: str) -> bool:
    """Whether a newer snapshot holds a collection too, no less of it, in a file that is as it was written."""
    for directory, other in holders:
        if _losses(record, other, max_shrink_percent):
            continue
        with contextlib.suppress(OSError):
            if directory.name == newest or file_sha256(directory / str(other.data_file)) == other.data_sha256:
                return True
    return False


# ------------------------------------------------------------------------------------------------- pings


class Pinger:
    """Tells a monitor, by the conventions of healthchecks.io, that a run began and how it ended. Never raises.

    The URL is a secret: whoever has it can say that all is well.
    """

    def __init__(self, url: str) -> None:
        redactor.add(url)
        try:
            parts = urllib.parse.urlsplit(url)
        except ValueError:
            log.warning("No pings are sent: --ping-url cannot be read as a URL. Nothing else changes.")
            self._parts = None
            return
        for secret in (parts.path, parts.query, *parts.path.split("/")):
            if len(secret) >= MIN_SECRET_SEGMENT:
                redactor.add(secret)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise BackupError("--ping-url is not an http(s) URL.", "Copy it from the check's page (BACKUP_PING_URL).")
        self._parts = parts if url else None

    def start(self) -> None:
        """A run begins."""
        self._send("/start", "")

    def finish(self, code: int, text: str) -> None:
        """A run ended. The end of `text` goes along."""
        self._send(f"/{code}" if code else "", redactor.redact(text))

    def _send(self, suffix: str, text: str) -> None:
        if self._parts is None:
            return
        is_broken = "@" in self._parts.path + self._parts.query + self._parts.fragment  # by what stands in a password
        place = "the monitor" if is_broken else self._parts.hostname
        try:
            url = urllib.parse.urlunsplit(self._parts._replace(path=self._parts.path.rstrip("/") + suffix))
            _post_patiently(url, text.encode(errors="replace")[-PING_BODY_BYTES:])
        except Exception as error:  # noqa: BLE001  (nothing that has to do with a monitor changes the result)
            reason = error.message.rstrip(".") if isinstance(error, BackupError) else type(error).__name__
            log.warning("The ping to %s failed: %s. Nothing else changes.", place, reason)


def _post_patiently(url: str, body: bytes) -> None:
    """Send a ping, several times if that may help; only once, and for a shorter time, when the run was stopped."""
    is_stopped = stop_event.is_set()
    timeout_s = STOP_GRACE_S / 2 if is_stopped else PING_TIMEOUT_S
    for attempts_left in reversed(range(1 if is_stopped else PING_ATTEMPTS)):
        try:
            return _post_ping(url, body, timeout_s)
        except RequestError as error:
            if not error.retryable or not attempts_left or stop_event.wait(1.0):
                raise
    return None


def _post_ping(url: str, body: bytes, timeout_s: float) -> None:
    """Send a ping once. Raises RequestError, `retryable` if another attempt may help, or whatever a URL makes raise."""
    import httpx

    try:  # a reply that trickles must not hold the run: httpx's limit is for each piece
        status = in_time(
            lambda: httpx.post(url, content=body, timeout=timeout_s, **httpx_options(url)).status_code, timeout_s
        )
    except (TimeoutError, httpx.TimeoutException) as error:
        raise RequestError(f"no reply in {timeout_s:.0f} s", retryable=True) from error
    except httpx.TransportError as error:
        raise RequestError(type(error).__name__, retryable=True) from error
    if not 200 <= status < 300:
        raise RequestError(f"HTTP {status}", retryable=status == 429 or status >= 500)


# ------------------------------------------------------------------------------------------------- metrics

METRICS = {
    "last_run_timestamp_seconds": "When the last run ended, as Unix time.",
    "last_run_exit_code": "Exit code of the last run: only 0 means success.",
    "last_run_duration_seconds": "How long the last run took.",
    "last_success_timestamp_seconds": "When the last run that ended with exit code 0 ended, as Unix time.",
    "last_snapshot_timestamp_seconds": "Start of the newest complete snapshot, as Unix time.",
    "bytes": "Size of the newest complete snapshot.",
    "documents": "Documents of each collection in the newest complete snapshot.",
    "vectors": "Vectors of each collection in the newest complete snapshot.",
    "rows": "Rows of each table in the newest complete snapshot.",
}
"""Names without their prefix, with their meanings. The first three are of the last run, the others outlive failures."""


Samples = dict[str, dict[str, float]]
"""By metric: values by collection; "" is for a metric that has one value."""


def encode_metrics(samples: Samples) -> bytes:
    """Prometheus text."""
    from prometheus_client import generate_latest
    from prometheus_client.metrics_core import GaugeMetricFamily
    from prometheus_client.registry import Collector

    class Families(Collector):
        def collect(self) -> Iterator[GaugeMetricFamily]:
            for metric, meaning in METRICS.items():
                family = GaugeMetricFamily(METRICS_PREFIX + metric, meaning)
                for collection, value in samples.get(metric, {}).items():
                    family.add_sample(family.name, {"collection": collection} if collection else {}, value)
                if family.samples:
                    yield family

    return generate_latest(Families())


def decode_metrics(text: str) -> tuple[Samples, int]:
    """The samples of a metrics file, and how many of its lines could not be parsed."""
    from prometheus_client.parser import text_string_to_metric_families

    samples: Samples = {}
    bad_lines = 0
    for line in text.split("\n"):  # one by one: a bad line costs no other
        try:
            for family in text_string_to_metric_families(line):
                for sample in family.samples:
                    metric, collection = sample.name.removeprefix(METRICS_PREFIX), sample.labels.get("collection", "")
                    samples.setdefault(metric, {})[collection] = float(sample.value)
        except (ValueError, IndexError, OverflowError):
            bad_lines += 1
    return samples, bad_lines


def write_metrics(path: Path, samples: Samples) -> None:
    """Renew a metrics file atomically; samples that are not given stay. Readable for everybody. Raises OSError."""
    old_text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    old_samples, bad_lines = decode_metrics(old_text)
    if bad_lines:
        log.warning("%s: %s could not be parsed and were dropped.", path, plural(bad_lines, "line"))
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        new.write_bytes(encode_metrics(old_samples | samples))
        new.chmod(0o644)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


# ======================================================================================================================
# Backup
# ======================================================================================================================


@dataclass(frozen=True)
class BackupPlan:
    """What a run is to do."""

    target: Target
    output_dir: Path
    collections: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    compressed: bool = True
    workers: int = 4
    max_shrink_percent: float = 50.0
    box_config: BoxConfig | None = None
    encryption: Encryption | None = None

    @property
    def scope(self) -> Scope:
        """What the snapshot will be of."""
        return Scope.make(self.target.api_endpoint, self.target.keyspace, self.collections, self.exclude)


@dataclass
class BackupResult:
    """What a run left behind. `deleted`: names of old snapshots, by their place."""

    exit_code: Exit
    snapshot_dir: Path
    manifest: Manifest
    warnings: list[str]
    upload: dict[str, Any] | None = None
    deleted: dict[str, list[str]] = field(default_factory=dict)


class OutputDir:
    """The directory of snapshots, held by one run at a time. A context manager; the lock ends with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_locked = False  # where the file system has no locks
        self._lock_fd = -1

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.is_locked = _is_supported(lambda: fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise LockedError(
                f"Another run holds {self.path}.", "Wait for it, or give this run another --output-dir."
            ) from error
        except OSError as error:
            raise BackupError(
                f"Cannot write to {self.path}: {error.strerror or error}.",
                "Choose another --output-dir (BACKUP_OUTPUT_DIR); it is made if it is not there.",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            os.close(self._lock_fd)

    def sweep(self) -> None:
        """Remove what dead runs left. Only we hold the lock, so no run is alive in there; without one, nobody knows."""
        for path in self.path.iterdir() if self.is_locked else []:
            if _LEFTOVER_NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                log.info("Removing %s, left by a run that died.", path)
                shutil.rmtree(path, ignore_errors=True)

    def new_snapshot(self, stop: threading.Event) -> tuple[Path, datetime]:
        """Make the directory of a new run, named after this second, or after the next one that is free."""
        while True:
            moment = utc_now()
            name = snapshot_name(moment)
            taken = (name, name + INCOMPLETE_SUFFIX, f".{name}.inprogress")
            if not any(os.path.lexists(self.path / other) for other in taken):
                break
            stop.wait(0.1)
        directory = self.path / f".{name}.inprogress"
        directory.mkdir(mode=0o700)
        return directory, moment

    def names_after(self, moment: datetime) -> list[str]:
        """Complete snapshots whose names are later than `moment`: the clock was, or is, wrong."""
        names = sorted(path.name for path in self.path.iterdir() if is_complete_name(path.name))
        return [name for name in names if name > snapshot_name(moment)]


def probe_file_system(directory: Path, prefix: str) -> list[str]:
    """Do once, with a small file, what making a snapshot does; return what cannot be promised there.

    Leaves nothing behind. Raises BackupError that names what failed.
    """
    begun = directory / f".{prefix}-{os.urandom(4).hex()}"
    ended = begun.with_name(f"{begun.name}.renamed")
    step, weaknesses = "make a directory", []
    try:
        begun.mkdir(mode=0o700)
        step = "write and flush a file"
        _write_file(begun / "probe", b"probe\n")
        step = "lock a file"
        with (begun / "probe").open("rb") as file:
            if not _is_supported(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)):
                weaknesses.append(
                    "this file system has no locks: never start two runs at once; what a killed run left is not removed"
                )
        step = "flush a directory"
        if not _fsync_directory(begun):
            weaknesses.append("this file system cannot flush directories: a power failure may cost the newest snapshot")
        step = "rename a directory"
        begun.replace(ended)
        step = "remove a file"
        (ended / "probe").unlink()
        ended.rmdir()
    except OSError as error:
        raise BackupError(
            f"{directory} cannot be used for snapshots: could not {step}: {error.strerror or error}.", disk_hint(error)
        ) from error
    finally:
        for path in (begun, ended):
            shutil.rmtree(path, ignore_errors=True)
    return [f"{directory}: {weakness}." for weakness in weaknesses]


def disk_hint(error: OSError) -> str:
    """What to do about an error of the file system."""
    if error.errno in NO_SPACE_ERRNOS:
        return "Free some space, or choose another --output-dir (BACKUP_OUTPUT_DIR)."
    return "Check the disk, or choose another --output-dir (BACKUP_OUTPUT_DIR)."


class DataFileWriter:
    """Writes documents to a data file and proves the file: the sink of a scan. Thread-safe.

    Those who call `write` encode one at a time, compress, append, hash, and decompress again at once what was appended.
    A writer that was abandoned drops what comes. `encode` makes the line of what the server sent, with None for a row,
    which is no document.
    """

    def __init__(
        self,
        path: Path,
        *,
        compressed: bool,
        encryption: Encryption | None = None,
        encode: Callable[[bytes], tuple[bytes, Document | None]] = encode_document,
    ) -> None:
        self._path = path
        self._encode = encode
        self._stats = DataStats()
        self._lock = threading.Lock()
        self._is_abandoned = False
        self._compressor = isal_zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WBITS) if compressed else None
        self._decompressor = isal_zlib.decompressobj(wbits=GZIP_WBITS) if compressed else None
        self._made_crc32 = self._found_crc32 = 0  # of the lines as they were made, and as the file has them
        self._file = HashedFile(path)
        self._output = EncryptedFile(self._file, encryption) if encryption else self._file

    def write(self, documents: Sequence[bytes | msgspec.Raw]) -> None:
        """Append documents, given as the server's text. Raises what could not be encoded or written."""
        for group in in_groups(documents, len, GROUP_LINES, GROUP_BYTES):
            with self._lock:  # for the encoding, too: threads that fight for the interpreter are slower than one
                if self._is_abandoned:
                    return
                lines = []
                for line, document in map(self._encode, map(bytes, group)):
                    self._stats.count(line, document)
                    lines.append(line)
                text = b"\n".join([*lines, b""])
                self._made_crc32 = isal_zlib.crc32(text, self._made_crc32)
                self._append(self._compress(text))

    def close(
        self, begin: Callable[[int], None] | None = None, advance: Callable[[int], None] | None = None
    ) -> DataStats:
        """Flush the file to the disk, read it once more, and return what it holds.

        `begin` is told the file's size before it is read, `advance` how many bytes were read. Raises OSError, and
        FormatError for a file that is not what was written.
        """
        with self._lock, contextlib.closing(self._output):
            self._finish()
        self._stats.data_sha256, self._stats.data_size_bytes = self._file.sha256.hexdigest(), self._file.size_bytes
        if begin:
            begin(self._stats.data_size_bytes)
        self._output.prove(advance)
        return self._stats

    def abandon(self) -> None:
        """Drop what comes from now on, and close the file as it is. May be called twice."""
        self._is_abandoned = True
        with self._lock:
            self._output.close()

    def _compress(self, text: bytes) -> bytes:
        return self._compressor.compress(text) if self._compressor else text

    def _append(self, chunk: bytes) -> None:
        self._output.write(chunk)
        for found in self._decompress(chunk):
            self._found_crc32 = isal_zlib.crc32(found, self._found_crc32)

    def _decompress(self, chunk: bytes) -> Iterator[bytes]:
        """What a piece of the file decompresses to, in pieces: some text becomes a thousandth of its size."""
        if self._decompressor is None:
            yield chunk
            return
        is_more = True
        while is_more:
            found = self._decompressor.decompress(chunk, READ_BYTES)
            chunk = self._decompressor.unconsumed_tail
            is_more = bool(chunk) or len(found) == READ_BYTES
            yield found

    def _finish(self) -> None:
        if self._compressor:
            self._append(self._compressor.flush())
        if self._decompressor and not self._decompressor.eof:
            raise FormatError("its bytes do not decompress to their end")
        if self._found_crc32 != self._made_crc32:
            raise FormatError("its bytes do not decompress to the lines that were written")
        self._output.finish()


@dataclass(frozen=True)
class BackupRun:
    """What the steps of one backup share."""

    plan: BackupPlan
    requests: Requests
    report: Report


class CollectionBackup:
    """Backs up one collection: reads it, writes it, proves the file."""

    encode: Callable[[bytes], tuple[bytes, Document | None]] = staticmethod(encode_document)

    def __init__(self, run: BackupRun, record: AnyRecord, path: Path) -> None:
        self.record = record
        self._about = {"collection": record.name}  # of a log line, for `--log-format json`
        self._plan, self._requests, self._report = run.plan, run.requests, run.report
        self._path = path

    def run(self) -> None:
        """Fill in the manifest's record, of a failed collection too. Only a stop request is raised."""
        record = self.record
        try:
            stats = self._read()
            self._check_vectors(stats)
            record.data_file = self._path.name
            for name, value in stats.facts(record).items():
                setattr(record, name, value)
            held = plural(stats.document_count, record.noun)
            vectors = f", {plural(stats.vector_count, 'vector')}" if isinstance(record, CollectionRecord) else ""
            log.info("%s: %s%s, proved.", record.name, held, vectors, extra=self._about)
        except Exception as error:
            if self._requests.api.stop.is_set():  # no failure of the collection; and nothing that could be complete
                raise
            self._fail(self._explain(error))
        record.finished_at_utc = utc_text(utc_now())
        self._report.finish(record.name)

    def _read(self) -> DataStats:
        """Scan it and write its data file; once more if it was recreated meanwhile."""
        record, estimate = self.record, self.record.estimated_document_count

        def restart() -> None:
            self._report.start(record.name, estimate)

        progress = ScanProgress(restart, lambda count: self._report.advance(record.name, count))
        for _ in range(MAX_SCANS):
            source = self._source()  # of what it is now
            writer = self._requests.scan(source, self._open_writer, progress, estimate)
            stats = self._prove(writer)
            if not self._was_recreated():
                record.pages, record.retries, record.chains = progress.pages, progress.retries, progress.chains
                return stats
            log.warning(
                "%s: its definition has changed during the scan. Starting over.", record.name, extra=self._about
            )
            progress.count_retry()
        raise BackupError(
            f"{record.name}: its definition changed during each of {MAX_SCANS} scans.", "Run again later."
        )

    def _open_writer(self) -> DataFileWriter:
        plan, encode = self._plan, type(self).encode
        return DataFileWriter(self._path, compressed=plan.compressed, encryption=plan.encryption, encode=encode)

    def _prove(self, writer: DataFileWriter) -> DataStats:
        name = self.record.name
        try:
            begin = partial(self._report.start, name, phase="proving", unit="bytes")
            return writer.close(begin, partial(self._report.advance, name))
        except FormatError as error:
            raise BackupError(
                f"{self.record.name}: the file does not read back as it was written: {error}.",
                "The disk or the memory is failing: do not trust this machine, run the backup on another.",
            ) from error

    def _source(self) -> Readable:
        """What is read, by its definition of now."""
        return Readable(self.record.name)

    def _definitions(self) -> dict[str, msgspec.Raw]:
        (found,) = self._requests.map(DataApi.list_collections, [self._requests.api])
        return {info.name: info.options for info in found}

    def _was_recreated(self) -> bool:
        """Whether it has another definition than before the scan. One that is gone was read to its end."""
        now = self._definitions().get(self.record.name, self.record.definition)
        is_same = _is_same_json(now, self.record.definition)
        self.record.definition = self.record.definition if is_same else now
        return not is_same

    def _check_vectors(self, stats: DataStats) -> None:
        """The vector guard: a vector collection whose documents carry no vector is a failed backup."""
        vector = read_definition(self.record.name, self.record.definition).get("vector")
        if not vector or not stats.document_count or stats.vector_count:
            return
        message = "the collection declares vectors, but none of its documents carries one."
        if not vector.get("service"):
            raise BackupError(message, "If that is so in the database, leave the collection out with --exclude.")
        self.record.warnings = ["no document carries a vector; a restore has to recompute them"]
        self._report.warn(f"{self.record.name}: {message} A restore has to recompute them from $vectorize.")

    def _explain(self, error: Exception) -> Exception:
        """The error; for what does not read as its documents or rows: whether it is still of this kind."""
        with contextlib.suppress(BackupError):
            if isinstance(error, FormatError) and self.record.name not in self._definitions():
                message = f"{self.record.name} is no longer a {self.record.kind}."
                return BackupError(message, "Run again for what is there now.")
        return error

    def _fail(self, error: Exception) -> None:
        """Record the failure; the file goes, also to give a full disk its space back."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(self._path)
        self.record.status = "failed"
        self.record.error = redactor.redact(describe_error(error))
        log.error("%s failed: %s", self.record.name, describe_error(error), extra=self._about)
        log.debug("%s", "".join(traceback.format_exception(error)), extra=self._about)


class TableBackup(CollectionBackup):
    """Backs up one table, and its indexes."""

    encode = staticmethod(encode_row)
    record: TableRecord

    def __init__(self, run: BackupRun, record: TableRecord, path: Path, types: dict[str, msgspec.Raw]) -> None:
        super().__init__(run, record, path)
        self._types = types.copy()

    @property
    def used_types(self) -> dict[str, msgspec.Raw]:
        """The user-defined types of its columns, as they were throughout its scan."""
        return {name: self._types[name] for name in sorted(self.record.shape().type_names())}

    def fail_for(self, altered: str) -> None:
        """Fail, as a type was altered after this table was read: a snapshot has one definition of each."""
        self._fail(BackupError(f"{self.record.name}: its type {altered} was altered meanwhile.", "Run again."))
        self.record.data_file = self.record.content_digest = self.record.data_sha256 = None
        self.record.data_size_bytes, self.record.document_count = None, 0

    def _source(self) -> Readable:
        name, shape = self.record.name, self.record.shape()
        if unknown := sorted(shape.type_names() - set(self._types)):
            raise BackupError(
                f"{name}: the server does not tell what its types are: {', '.join(unknown)}.",
                f"Run again later; or leave the table out: --exclude {name}.",
            )
        return Readable.of_table(self._requests.api, name, shape)

    def _definitions(self) -> dict[str, msgspec.Raw]:
        api, name = self._requests.api, self.record.name
        (found,) = self._requests.map(DataApi.describe_tables, [api])
        if any(info.name == name for info in found):
            (self.record.indexes,) = self._requests.map(api.describe_indexes, [name])
        return {info.name: info.definition for info in found}

    def _was_recreated(self) -> bool:
        return self._were_types_altered() | super()._was_recreated()

    def _were_types_altered(self) -> bool:
        """Whether a type of its columns has another definition than before the scan."""
        used = self.used_types
        (now,) = self._requests.map(DataApi.describe_types, [self._requests.api] if used else []) or [used]
        altered = {name: now[name] for name in used if name in now and not _is_same_json(now[name], used[name])}
        self._types |= now
        return bool(altered)


def _is_same_json(one: msgspec.Raw, other: msgspec.Raw) -> bool:
    def read(text: msgspec.Raw) -> Any:  # numbers stay text: no float holds all of them
        return json.loads(bytes(text), parse_float=lambda number: (number,), parse_int=lambda number: (number,))

    return bool(one == other or read(one) == read(other))


def run_backup(plan: BackupPlan, report: Report, stop: threading.Event) -> BackupResult:
    """Back up a keyspace into a new snapshot. Raises BackupError where nothing useful can be written.

    All that could fail beside the backup itself comes before the first page, or when the snapshot has its name.
    """
    run = BackupRun(plan, Requests(DataApi(plan.target, DataApi.READ_COMMANDS, stop), plan.workers), report)
    with OutputDir(plan.output_dir) as output:
        directory: Path | None = None
        try:
            output.sweep()
            for weakness in probe_file_system(plan.output_dir, "probe"):
                report.warn(weakness)
            found = list_keyspace(run.requests.api, report)
            selected = select(found, plan, report)
            if not (found.warning or found.names.intersection(plan.exclude)):
                plan = dataclasses.replace(plan, exclude=())  # nothing is left out: it is of the whole keyspace
            has_alarm = plan.max_shrink_percent < 100
            last = find_last(plan.output_dir, plan.scope, plan.box_config, report) if has_alarm else None
            begun = time.monotonic()
            directory, started = output.new_snapshot(stop)
            _tell_beginning(plan, selected, output.names_after(started), report)
            collections, tables = _run_records(run, selected, directory)
            manifest = _make_manifest(plan, selected, collections, tables)
            manifest.created_at_utc = utc_text(started)
            manifest.duration_seconds = round(time.monotonic() - begun, 3)
            # The clock may have been set meanwhile.
            manifest.finished_at_utc = utc_text(started + timedelta(seconds=manifest.duration_seconds))
            if last:
                _add_shrinkage(manifest, *last, plan.max_shrink_percent, report)
            result = _finish_snapshot(directory, manifest, report)
        except OSError as error:
            raise _cannot_write(error, directory) from error
        remove_superseded(result, plan.max_shrink_percent, report)
        return result


def _tell_beginning(plan: BackupPlan, selected: Contents, future_names: list[str], report: Report) -> None:
    for name in future_names:
        report.warn(f"{plan.output_dir / name} is from the future: `latest` will not be this run's snapshot.")
    log.info("Backing up %s of keyspace %s at %s.", selected, plan.target.keyspace, plan.target.api_endpoint)
    if plan.encryption:
        log.info("Encrypting to %s.", plural(len(plan.encryption.names), "recipient"))


def _cannot_write(error: OSError, directory: Path | None) -> BackupError:
    """The error of a run that ends without a snapshot. On a full disk, what it had written is removed."""
    message, hint = f"Cannot write the snapshot: {describe_error(error)}.", disk_hint(error)
    if directory and error.errno in NO_SPACE_ERRNOS:
        shutil.rmtree(directory, ignore_errors=True)
        message += " What was written is of no use and has been removed."
    return BackupError(message, hint)


@dataclass
class Contents:
    """What a keyspace holds, or what of it is to be backed up. `types` are the user-defined ones, by name."""

    collections: list[CollectionInfo]
    tables: list[TableInfo]
    types: dict[str, msgspec.Raw] = field(default_factory=dict)
    warning: str = ""
    lacks_tables: bool = False  # there may be some, and they could not be listed: a snapshot without them is INCOMPLETE

    @property
    def names(self) -> set[str]:
        """Collections and tables; a keyspace has no two of one name."""
        return {info.name for info in self.collections} | {info.name for info in self.tables}

    @property
    def doubles(self) -> set[str]:
        """Names that are in both lists."""
        return {info.name for info in self.collections} & {info.name for info in self.tables}

    def __str__(self) -> str:
        text = plural(len(self.collections), "collection")
        return f"{text} and {plural(len(self.tables), 'table')}" if self.tables else text


def list_keyspace(api: DataApi, report: Report) -> Contents:
    """All that is in the keyspace. Raises RequestError where not even the collections can be listed."""
    found = _list_keyspace(api)
    if found.doubles:  # one became the other between the two lists
        found = _list_keyspace(api)
    if doubles := found.doubles:
        raise BackupError(
            f"The server lists {', '.join(sorted(doubles))} as a collection and as a table.",
            "Was it dropped and made again meanwhile? Run again.",
        )
    if found.warning:
        report.warn(found.warning[0].upper() + found.warning[1:])
    if any(b'"userDefined"' in bytes(info.definition) for info in found.tables):
        try:
            found.types = api.describe_types()
        except RequestError as error:  # the tables that use one fail, and say so
            log.warning("%s", error.message)
    return found


def _list_keyspace(api: DataApi) -> Contents:
    found = Contents(api.list_collections(), [])
    try:
        found.tables = api.describe_tables()
    except RequestError as error:  # a server that does not know the command is warned of; another may have tables
        found.lacks_tables = error.retryable or error.is_denied
        found.warning = f"could not ask whether the keyspace has tables; none is backed up: {describe_error(error)}"
    return found


def select(found: Contents, plan: BackupPlan, report: Report) -> Contents:
    """The collections and tables to back up. Raises BackupError for a name that is not there."""
    names = found.names
    if missing := [name for name in plan.collections if name not in names]:
        hint = f"The keyspace {plan.target.keyspace} has: {', '.join(sorted(names)) or 'no collections'}."
        if found.lacks_tables:
            hint += " It may have tables that could not be listed; try again."
        raise BackupError(f"No such collection or table: {', '.join(missing)}.", hint)
    for name in plan.exclude:
        if name not in names:
            what = "collection, and the tables could not be listed" if found.lacks_tables else "collection or table"
            report.warn(f"--exclude {name}: there is no such {what}.")

    def is_wanted(info: CollectionInfo | TableInfo) -> bool:
        return info.name not in plan.exclude and (not plan.collections or info.name in plan.collections)

    selected = Contents(list(filter(is_wanted, found.collections)), list(filter(is_wanted, found.tables)))
    selected.types = found.types
    if not plan.collections:
        selected.warning, selected.lacks_tables = found.warning, found.lacks_tables
    if names and not selected.names:
        raise BackupError("Nothing is left to back up.", "Check --collection and --exclude.")
    if not names:
        report.warn(f"The keyspace {plan.target.keyspace} has no collections; the snapshot is empty.")
    return selected


def _run_records(
    run: BackupRun, selected: Contents, directory: Path
) -> tuple[list[CollectionRecord], list[TableRecord]]:
    """Back up several collections and tables at once, large ones first; the records come in the server's order."""
    plan, api = run.plan, run.requests.api
    common: dict[str, Any] = {"compressed": plan.compressed, "document_count": 0, "started_at_utc": utc_text(utc_now())}
    collections = [CollectionRecord(info.name, definition=info.options, **common) for info in selected.collections]
    tables = [TableRecord(info.name, definition=info.definition, **common) for info in selected.tables]
    names = [record.name for record in collections] + [f"{record.name}.rows" for record in tables]
    files = data_file_names(names, compressed=plan.compressed, encrypted=plan.encryption is not None)
    paths = iter([directory / file for file in files])
    estimates = run.requests.map(api.estimated_count, [record.name for record in collections])
    for record, estimate in zip(collections, estimates, strict=True):
        record.estimated_document_count = estimate
    jobs = [CollectionBackup(run, record, next(paths)) for record in collections]
    table_jobs = [TableBackup(run, record, next(paths), selected.types) for record in tables]
    jobs = sorted([*jobs, *table_jobs], key=lambda job: -(job.record.estimated_document_count or 0))
    run.report.stage({job.record.name: job.record.estimated_document_count for job in jobs})
    pool = ThreadPoolExecutor(max(1, min(plan.workers, len(jobs))))  # they wait for the threads of the requests
    try:
        await_all([pool.submit(job.run) for job in jobs])
        selected.types = _merge_types(table_jobs)
        return collections, tables
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        run.requests.close()


def _merge_types(jobs: list[TableBackup]) -> dict[str, msgspec.Raw]:
    """The user-defined types of the tables that are good; who was read with another definition of one fails."""
    types: dict[str, msgspec.Raw] = {}
    for job in sorted(jobs, key=lambda job: job.record.finished_at_utc or "", reverse=True):
        used = job.used_types if job.record.is_ok else {}
        if altered := next((name for name in used if not _is_same_json(types.get(name, used[name]), used[name])), None):
            job.fail_for(altered)
        else:
            types = used | types
    return types


def _make_manifest(
    plan: BackupPlan, selected: Contents, collections: list[CollectionRecord], tables: list[TableRecord]
) -> Manifest:
    """The manifest but for its times."""
    import astrapy

    encryption = plan.encryption
    is_complete = not selected.lacks_tables and all(record.is_ok for record in (*collections, *tables))
    manifest = Manifest(
        backup_format_version=FORMAT_VERSION,
        status="complete" if is_complete else "incomplete",
        tool_version=TOOL_VERSION,
        astrapy_version=astrapy.__version__,
        source=plan.target.source,
        selection=Selection(plan.collections, plan.exclude) if plan.collections or plan.exclude else msgspec.UNSET,
        encryption=EncryptionRecord("age", list(encryption.names)) if encryption else msgspec.UNSET,
        warnings=[selected.warning] if selected.warning else msgspec.UNSET,
        collections=collections,
        tables=tables or msgspec.UNSET,
        types=list(selected.types.values()) if tables else msgspec.UNSET,
    )
    manifest.totals = manifest.sums()
    return manifest


def _add_shrinkage(manifest: Manifest, name: str, old: Manifest, max_percent: float, report: Report) -> None:
    """Write into the manifest, which can hold so much of it, what shrank; an error in it is a warning."""
    try:
        sentences = find_shrinkage(old, manifest, max_percent)
    except Exception as error:  # noqa: BLE001  (a bug in here must not cost a whole snapshot)
        report.warn(f"Could not compare with {name}: {describe_error(error)}")
        return
    more = len(sentences) - MAX_SENTENCES
    if more > 0:
        sentences[MAX_SENTENCES:] = [f"{more:,} more"]
    for sentence in sentences:
        report.warn(f"Shrunk since {name}: {sentence}.")
    if sentences:
        manifest.shrunk_from = name
        shrunk = [f"shrunk since {name}: {sentence}" for sentence in sentences]
        manifest.warnings = [*(manifest.warnings or []), *shrunk]


def _finish_snapshot(directory: Path, manifest: Manifest, report: Report) -> BackupResult:
    """Manifest, then checksums, then the directory, then the name: whatever has the name is whole."""
    text = manifest.encode()
    if len(text) > Manifest.MAX_BYTES:
        raise BackupError(
            f"The manifest has {len(text)} bytes; a restore reads {Manifest.MAX_BYTES}.", "Split it with --collection."
        )
    _write_file(directory / MANIFEST_NAME, text)
    sums = [(record.data_sha256, record.data_file) for record in manifest.records if record.data_file]
    sums.append((hashlib.sha256(text).hexdigest(), MANIFEST_NAME))
    _write_file(directory / CHECKSUMS_NAME, "".join(f"{digest}  {name}\n" for digest, name in sums).encode())
    _fsync_directory(directory)
    name = directory.name.removeprefix(".").removesuffix(".inprogress")
    final = directory.with_name(name if manifest.is_complete else name + INCOMPLETE_SUFFIX)
    directory.replace(final)
    try:
        _fsync_directory(final.parent)
    except OSError as error:  # it is whole and has its name: that nothing was written would be untrue
        report.warn(f"{final} is there, but a power failure could undo its name: {describe_error(error)}")
    code = Exit.INCOMPLETE if not manifest.is_complete else Exit.SHRUNK if manifest.shrunk_from else Exit.OK
    return BackupResult(code, final, manifest, report.warnings)


def _write_file(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


# ======================================================================================================================
# Command line
# ======================================================================================================================

ENVIRONMENTS = ("prod", "dev", "test", "hcd", "dse", "cassandra", "other")


def read_secret(name: str, *, may_be_empty: bool = False) -> str:
    """A secret from the variable `name`, or from the file that `name`_FILE names; "" when there is neither."""
    value = os.environ.get(name, "").strip()
    file_name = os.environ.get(f"{name}_FILE", "").strip()
    if not value and file_name:
        try:
            value = read_settings(Path(file_name)).strip()
            if not value and not may_be_empty:
                raise FormatError("it is empty")
        except (OSError, FormatError) as error:
            hint = "Check the path: it has to be a small file of UTF-8 text that this user can read."
            raise BackupError(
                f"Cannot read {file_name}, which {name}_FILE names: {describe_error(error, with_path=False)}.",
                "`~` is not expanded here: write the full path." if file_name.startswith("~") else hint,
            ) from error
    redactor.add(value)
    return value


def read_small_file(path: Path) -> bytes:
    """The content of a small file. Never waits. Raises OSError, or FormatError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):  # the latter: /dev/null is an empty file
            raise FormatError("it is not a regular file")
        content = open(descriptor, "rb", closefd=False).read(MAX_SETTINGS_BYTES + 1)  # noqa: SIM115
    finally:
        os.close(descriptor)
    if len(content) > MAX_SETTINGS_BYTES:
        raise FormatError(f"it has more than {size_text(MAX_SETTINGS_BYTES)}")
    return content


def read_settings(path: Path) -> str:
    """The text of a small file, a byte order mark left out. Never waits. Raises OSError, or FormatError."""
    content = read_small_file(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"it is not UTF-8 text (see byte {error.start})") from None
    if "\0" in text:
        raise FormatError("it holds a NUL character; is it UTF-16?")
    return text


def _check_url(name: str, url: str, source: str) -> None:
    """Raise BackupError for what is no http(s) URL, or holds a credential, which would end up in the manifest."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its port is no port, its host no host
        is_web = False
    if "@" in url:
        raise BackupError(f"{name} holds a user name or a password.", "Leave out what stands before the @.")
    if not is_web:
        raise BackupError(f"{name} {url!r} is not an http(s) URL.", source)


def make_target(options: dict[str, Any]) -> Target:
    """Check the connection's options (those of `connection_options`). Raises BackupError that names what is missing."""
    api_endpoint = options["api_endpoint"]
    token = read_secret("ASTRA_DB_APPLICATION_TOKEN")
    if not api_endpoint:
        raise BackupError("No database is named.", "Set ASTRA_DB_API_ENDPOINT, or give --api-endpoint URL.")
    _check_url("--api-endpoint", api_endpoint, "It begins with http:// or https://; the Astra portal shows it.")
    if not token:
        raise BackupError(
            "No token.",
            "Set ASTRA_DB_APPLICATION_TOKEN, or ASTRA_DB_APPLICATION_TOKEN_FILE to a file that holds it.",
        )
    if not options["keyspace"]:
        raise BackupError("--keyspace is empty.", f"Leave it out for {DEFAULT_KEYSPACE}.")
    if not token.isascii() or not token.isprintable():
        raise BackupError("The token holds characters that no token has.", "Copy it again, without line breaks.")
    return Target(
        api_endpoint.rstrip("/"),
        options["keyspace"],
        options["environment"],
        token,
        options["request_timeout_ms"] / 1000,
        options["retry_budget"],
    )


_RECIPIENT = re.compile(r"age1[a-z0-9]*|ssh-[a-z0-9-]+\s.*", re.DOTALL)
_PRIVATE_KEY = re.compile(r"AGE-SECRET-KEY-|-----BEGIN ", re.IGNORECASE)
_KEY_IN_COMMENT = re.compile(r"\bAAAA[BC]3NzaC1|\bage1[a-z0-9]{58}\b")


def read_encryption(values: Sequence[str]) -> Encryption | None:
    """Read the values of --encrypt-to; None if there are none. Raises BackupError that names what is no recipient."""
    import pyrage

    if not values:
        return None
    found: dict[tuple[str, ...], tuple[str, Any]] = {}
    for value in values:
        for place, text in _recipient_texts(value.strip()):
            found.setdefault(tuple(text.split()[:2]), (text, _parse_recipient(place, text)))
    identity = pyrage.x25519.Identity.generate()
    recipients = [*(recipient for _, recipient in found.values()), identity.to_public()]
    if len(pyrage.encrypt(b"", recipients)) > MAX_AGE_HEADER_BYTES:
        raise BackupError(f"--encrypt-to: {len(found)} recipients are too many.", "Some 500 of age, or 80 of SSH, fit.")
    return Encryption(tuple(text for text, _ in found.values()), recipients, identity)


def _recipient_texts(value: str) -> list[tuple[str, str]]:
    """(where it stands, recipient) for each one that a value of --encrypt-to gives: itself, or the lines of a file."""
    if not value:
        raise BackupError("--encrypt-to (BACKUP_ENCRYPT_TO) has an empty value.", "Is a variable not set?")
    is_secret = bool(_PRIVATE_KEY.match(value))
    if is_secret or _RECIPIENT.fullmatch(value):
        return [("a value" if is_secret else repr(value), value)]
    try:
        lines = read_settings(Path(value)).splitlines()
    except (OSError, ValueError) as error:
        raise BackupError(
            f"--encrypt-to: {value!r} is neither a recipient nor a file of them:"
            f" {describe_error(error, with_path=False)}.",
            "A recipient begins with age1, ssh-ed25519 or ssh-rsa.",
        ) from error
    texts = [(f"line {number} of {value}", line.strip()) for number, line in enumerate(lines, 1)]
    texts = [(place, text) for place, text in texts if text and not text.startswith("#")]
    if not texts:
        raise BackupError(f"--encrypt-to: there is no recipient in {value}.", "It takes one a line.")
    return texts


def _parse_recipient(place: str, text: str) -> Any:
    import pyrage

    if _PRIVATE_KEY.match(text):
        raise BackupError(
            f"--encrypt-to: {place} is a private key; a backup needs the public one.",
            "`age-keygen -y FILE` prints it, that of an SSH key is in its .pub file. The private one must not be here.",
        )
    comment = " ".join(text.split()[2:])
    if _KEY_IN_COMMENT.search(comment):  # nothing would be encrypted to that one, without a word
        raise BackupError(
            f"--encrypt-to: {place} holds more than one recipient.",
            "Repeat the option, put commas between them in BACKUP_ENCRYPT_TO, or give a file with one a line.",
        )
    kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
    try:
        recipient = kind.Recipient.from_str(text)
        pyrage.encrypt(b"", [recipient])  # some keys are well written and of no use
    except (pyrage.RecipientError, pyrage.EncryptError) as error:
        raise BackupError(
            f"--encrypt-to: {place} is not a recipient: {error}.", "It takes age1…, ssh-ed25519 … and ssh-rsa …"
        ) from error
    return recipient


WHAT, WHERE, DATABASE, BEHAVIOUR = "What to back up", "Where to", "Database", "Behaviour"
OUTPUT, RARE = "Output", "Rarely needed"
GROUPS = (WHAT, WHERE, DATABASE, BEHAVIOUR, OUTPUT, RARE)
HELP_COLUMN = 24
CONTEXT = {"help_option_names": ["-h", "--help"]}


class Option(click.Option):
    """An option with the heading that it stands under in the help, and a short help of its variable and default."""

    def __init__(self, *arguments: Any, group: str = OUTPUT, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The left and the right column."""
        record = super().get_help_record(ctx)
        if not record:
            return None
        default = "" if self.default is None or not self.show_default else str(self.default)
        if isinstance(self.default, bool):
            default = (self.opts if self.default else self.secondary_opts)[0]
        facts = "; ".join(fact for fact in (self.envvar, default) if isinstance(fact, str) and fact)
        return record[0].replace(" / ", "/"), f"{self.help} [{facts}]" if facts else str(self.help)


class Command(click.Command):
    """A command whose help has its options under headings: its own ones first, then `GROUPS`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them, what has no heading under the last one."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                rows = groups.setdefault(getattr(param, "group", OUTPUT), [])
                rows.append((record[0].ljust(HELP_COLUMN), record[1]))
        for group in sorted(groups, key=lambda group: GROUPS.index(group) if group in GROUPS else -1):
            with formatter.section(group):
                formatter.write_dl(groups[group], col_max=HELP_COLUMN + 2)


def command(function: Callable[..., Any]) -> click.Command:
    """Make a command of a function; `--version` is its last option."""
    return version_option(click.command(cls=Command, context_settings=CONTEXT)(function))


VARIABLES = {  # those that no option has; `option` adds its own
    *("ASTRA_DB_APPLICATION_TOKEN", "ASTRA_DB_APPLICATION_TOKEN_FILE", "BACKUP_PING_URL_FILE", "BOX_BASE_URL"),
    *("BOX_CLIENT_ID", "BOX_CLIENT_SECRET", "BOX_CLIENT_SECRET_FILE", "BOX_ENTERPRISE_ID", "BOX_FOLDER_ID"),
    *("BOX_UPLOAD_URL", "BOX_USER_ID"),
}


def option(group: str, names: str, text: str, variable: str = "", **settings: Any) -> Callable[[_F], _F]:
    """An option, named as in the help: `--keyspace NAME`, `-q, --quiet`. `variable`: what can set it too."""
    words = names.replace(",", " ").split()
    flags, metavars = [word for word in words if word[0] == "-"], [word for word in words if word[0] != "-"]
    declared = [*flags, *([settings.pop("dest")] if "dest" in settings else [])]
    settings |= {"metavar": metavars[0]} if metavars else {}
    settings |= {"show_default": "default" in settings, "envvar": variable or None, "show_envvar": True, "help": text}
    VARIABLES.add(variable)
    return click.option(*declared, cls=Option, group=group, **settings)


def with_options(options: Iterable[Callable[[Any], Any]], function: _F) -> _F:
    """Put options on a command, in their order."""
    for each in reversed([*options]):
        function = each(function)
    return function


class Duration(click.ParamType[float]):
    """A time span: a number and one of s, m, h, d; a bare number is in `unit` ("": there has to be one).

    Converted to a number of `unit`s, or of seconds where a unit has to be given.
    """

    name = "duration"
    SECONDS: ClassVar = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}

    def __init__(self, unit: str = "", *, may_be_zero: bool = True) -> None:
        self.unit, self.may_be_zero = unit, may_be_zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read `90s`, `5m`, `26h`, `7d`."""
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|[smhd])?", str(value))
        unit = match and (match[2] or self.unit)
        if not match or not unit or (unit == "ms" and "." in match[1]):
            self.fail(f"{value!r} is not a duration: a number and one of s, m, h, d, as in 26h.", param, ctx)
        amount = float(match[1]) * self.SECONDS[unit] / self.SECONDS[self.unit or "s"]
        if not amount and not self.may_be_zero:
            self.fail(f"{value!r} is too short: give more than 0.", param, ctx)
        return amount


DIRECTORY, FILE = click.Path(path_type=Path, file_okay=False), click.Path(path_type=Path, dir_okay=False)

output_dir_option = option(
    WHERE, "--output-dir DIR", "Directory of the snapshots.", "BACKUP_OUTPUT_DIR", type=DIRECTORY, default="backups"
)


class TrueOrFalse(click.types.BoolParamType):
    """A variable that switches an option on or off."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        """Read what click takes for a boolean; its own message lists fourteen words."""
        try:
            return bool(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r} is neither true nor false.", param, ctx)


box_option = option(
    WHERE, "--box/--no-box", "Whether to use Box.", "BACKUP_BOX", dest="to_box", default=True, type=TrueOrFalse()
)
_KINDS = f"Kind of database: {', '.join(ENVIRONMENTS)}."
_RETRY = "How long to keep retrying a collection or Box; a bare number: seconds."
_REQUEST = "Time for one request; a bare number: milliseconds."
_TIMEOUT: dict[str, Any] = {"type": Duration("ms", may_be_zero=False), "default": "60s"}
_FORM = "Log on stderr: text, or json, an object a line."
_FORMS = click.Choice(["text", "json"])
patience_options = [
    option(BEHAVIOUR, "--retry-budget SECONDS", _RETRY, "BACKUP_RETRY_BUDGET", type=Duration("s"), default="5m"),
    option(BEHAVIOUR, "--request-timeout-ms MS", _REQUEST, "BACKUP_REQUEST_TIMEOUT_MS", **_TIMEOUT),
]
output_options = [
    option(OUTPUT, "-q, --quiet", "Print warnings and errors only.", dest="verbosity", flag_value="quiet"),
    option(OUTPUT, "-v, --verbose", "Print more; the last of -q and -v wins.", dest="verbosity", flag_value="verbose"),
    option(OUTPUT, "--json", "Print one JSON object on stdout at the end.", dest="as_json", is_flag=True),
    option(OUTPUT, "--log-format FORM", _FORM, "BACKUP_LOG_FORMAT", type=_FORMS, default="text"),
]


version_option: Callable[[_F], _F] = click.version_option(TOOL_VERSION, cls=Option, help="Print the version.")


def connection_options(function: _F) -> _F:
    """Options of what talks to a database, for the backup and the restore."""
    kinds, workers = click.Choice(ENVIRONMENTS), click.IntRange(1, 64)
    options = [
        option(DATABASE, "--api-endpoint URL", "Its Data API endpoint.", "ASTRA_DB_API_ENDPOINT"),
        option(DATABASE, "--keyspace NAME", "The keyspace.", "ASTRA_DB_KEYSPACE", default=DEFAULT_KEYSPACE),
        option(DATABASE, "--environment NAME", _KINDS, "ASTRA_DB_ENVIRONMENT", type=kinds, default="prod"),
        output_dir_option,
        option(BEHAVIOUR, "--workers N", "Requests in flight.", "BACKUP_WORKERS", type=workers, default=4),
        *patience_options,
        *output_options,
    ]
    return with_options(options, function)


_SHRINK = "Exit with 5 if a collection lost more of its documents or vectors; 100 disables this."
_PING = "Ping this check (of healthchecks.io, or alike) at start and end."


class CommaSeparated(click.ParamType[str]):
    """Any text; a variable holds several, separated by commas."""

    name = "text"
    envvar_list_splitter = ","


_ENCRYPT = "Encrypt to an age or SSH public key, or to those in a file. Repeatable; the variable takes commas."


@command
@option(WHAT, "--collection NAME", "Only this collection or table. Repeatable.", dest="collections", multiple=True)
@option(WHAT, "--exclude NAME", "Leave this collection or table out. Repeatable.", multiple=True)
@option(WHAT, "--check", "Back up nothing: test credentials, rights, disk, sizes.", is_flag=True)
@box_option
@option(WHERE, "--compress/--no-compress", "Whether to gzip the data files.", default=True)
@option(WHERE, "--encrypt-to RECIPIENT", _ENCRYPT, "BACKUP_ENCRYPT_TO", multiple=True, type=CommaSeparated())
@connection_options
@option(BEHAVIOUR, "--max-shrink PERCENT", _SHRINK, "BACKUP_MAX_SHRINK", type=click.FloatRange(0, 100), default=50)
@option(OUTPUT, "--ping-url URL", _PING, "BACKUP_PING_URL")
@option(OUTPUT, "--metrics-file FILE", "Write metrics for Prometheus.", "BACKUP_METRICS_FILE", type=FILE)
def main(**options: Any) -> int:
    """Back up one keyspace, its collections and tables, vectors and ids included, to a directory and to Box.

    The token comes from ASTRA_DB_APPLICATION_TOKEN, or from the file named by ASTRA_DB_APPLICATION_TOKEN_FILE.
    `.env` in the working directory is read; environment variables override it. In brackets below: an option's
    variable, and its default. A duration takes s, m, h or d: 90s, 5m.

    \b
    Examples:
      python astra_backup.py --check              test everything, change nothing
      python astra_backup.py --no-box             keep it on this machine
      python astra_backup.py --collection docs    back up one collection
      python astra_backup.py && python snapshots.py prune --keep-daily 7
    """  # noqa: D301  (\b is click's mark for a paragraph that is not wrapped)
    if options["check"]:
        return run_check(options)
    ping_url = options["ping_url"] or read_secret("BACKUP_PING_URL", may_be_empty=True)
    record = RunRecord(ping_url, options["metrics_file"])
    at_exit.append(record.finish)
    with _telling_a_stop(options), Report(quiet=options["verbosity"] == "quiet") as report:
        record.pinger.start()
        plan = make_plan(options)
        result = run_backup(plan, report, stop_event)
        record.step("backup", result)
        if plan.box_config and result.exit_code in (Exit.OK, Exit.SHRUNK):
            result = upload_snapshot(result, plan.box_config, report)
            record.step("upload", result)
    _print_result(record, result, as_json=options["as_json"])
    return result.exit_code


def make_plan(options: dict[str, Any]) -> BackupPlan:
    """What the options and the environment ask for. Raises BackupError that names what is missing or wrong."""
    return BackupPlan(
        box_config=read_box_config(options) if options["to_box"] else None,
        encryption=read_encryption(options["encrypt_to"]),
        target=make_target(options),
        output_dir=options["output_dir"],
        collections=options["collections"],
        exclude=options["exclude"],
        compressed=options["compress"],
        workers=options["workers"],
        max_shrink_percent=options["max_shrink"],
    )


@contextlib.contextmanager
def _telling_a_stop(options: dict[str, Any]) -> Iterator[None]:
    """A run that a signal ends says what there is now, and what to do."""
    output_dir = options["output_dir"]
    known: set[Path] = set()
    with contextlib.suppress(OSError):  # the run itself says it better
        known = set(local_snapshots(output_dir))
    try:
        yield
    except SystemExit:
        made = [path for path in local_snapshots(output_dir) if path.is_dir() and path not in known]
        log.warning("Interrupted. %s", _describe_stop(made[-1] if made else None, to_box=options["to_box"]))
        raise


def _describe_stop(made: Path | None, *, to_box: bool) -> str:
    """What a stopped run leaves: the snapshot if it was finished before, else nothing that counts."""
    if made is None:
        return "No snapshot was made. Run the same command again; where files can be locked, it removes what is left."
    if made.name.endswith(INCOMPLETE_SUFFIX):
        return f"{made} was finished before, with failed collections. Run it again."
    upload = f" To make sure that it is in Box: {_upload_command(made)}" if to_box else ""
    return f"{made} was finished before, and is complete.{upload}"


class RunRecord:
    """What the monitors of a run are told: a ping at both ends, metrics at the end. No failure changes the result."""

    def __init__(self, ping_url: str, metrics_file: Path | None) -> None:
        self.metrics_file = metrics_file
        self.result: BackupResult | None = None
        self.steps_s: dict[str, float] = {}
        self._started = time.monotonic()
        self.pinger = Pinger(ping_url)

    @property
    def duration_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    @property
    def result_s(self) -> float:
        """Seconds from the beginning to the end of the last step: whoever is told of the result is told the same."""
        return sum(self.steps_s.values())

    def step(self, name: str, result: BackupResult) -> None:
        """A step of the run ended, and this is what there is now."""
        self.result = result
        self.steps_s[name] = round(self.duration_s - self.result_s, 3)

    def finish(self, code: int) -> None:
        """The run ended, well or not."""
        if self.metrics_file:
            try:
                write_metrics(self.metrics_file, self._samples(code))
            except Exception as error:  # noqa: BLE001  (the ping comes after it)
                reason = describe_error(error, with_path=False)
                log.warning("Cannot write %s: %s. The result stands.", self.metrics_file, reason)
        result = [_result_line(self.result, self.result_s)] if self.result else []
        self.pinger.finish(code, "\n".join([*last_lines, *result]))

    def _samples(self, code: int) -> Samples:
        """The metrics that this run can tell; the others stay as they were."""
        ended = utc_now().timestamp()
        samples: Samples = {
            "last_run_timestamp_seconds": {"": ended},
            "last_run_exit_code": {"": code},
            "last_run_duration_seconds": {"": self.duration_s},
        }
        if code == Exit.OK:
            samples["last_success_timestamp_seconds"] = {"": ended}
        if self.result and self.result.manifest.is_complete:
            records = self.result.manifest.collections
            started = snapshot_moment(self.result.snapshot_dir.name).timestamp()
            samples["last_snapshot_timestamp_seconds"] = {"": started}
            samples["bytes"] = {"": directory_size(self.result.snapshot_dir)}
            samples["documents"] = {record.name: record.held for record in records}
            samples["vectors"] = {record.name: record.vector_count or 0 for record in records}
            samples["rows"] = {table.name: table.held for table in self.result.manifest.tables or []}
        return samples


def directory_size(path: Path) -> int:
    """Bytes of the files in a snapshot's directory; 0 if it is gone."""
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in path.iterdir())
    return 0


def read_box_config(options: dict[str, Any], hint: str = "Set them, or give --no-box.") -> BoxConfig:
    """Box's settings from the environment. Raises BackupError that names every variable that is missing."""
    config = BoxConfig(
        client_secret=read_secret("BOX_CLIENT_SECRET"),
        request_timeout_s=options["request_timeout_ms"] / 1000,
        retry_budget_s=options["retry_budget"],
        **{
            name: os.environ.get(f"BOX_{name.upper()}", "").strip()
            for name in ("client_id", "enterprise_id", "user_id", "folder_id", "base_url", "upload_url")
        },
    )
    needed = {
        "BOX_CLIENT_ID": config.client_id,
        "BOX_CLIENT_SECRET": config.client_secret,
        "BOX_ENTERPRISE_ID (or BOX_USER_ID)": config.enterprise_id or config.user_id,
        "BOX_FOLDER_ID": config.folder_id,
    }
    if missing := [name for name, value in needed.items() if not value]:
        raise BackupError(f"Box is not configured: not set: {', '.join(missing)}.", hint)
    if config.folder_id == "0":
        raise BackupError(
            "BOX_FOLDER_ID is 0: that is the service account's own root, which nobody else sees.",
            "Make a folder, invite the service account to it, and take the number from the folder's URL.",
        )
    if bool(config.base_url) != bool(config.upload_url):
        raise BackupError("BOX_BASE_URL and BOX_UPLOAD_URL go together.", "Set both, or neither for Box itself.")
    for name, url in (("BOX_BASE_URL", config.base_url), ("BOX_UPLOAD_URL", config.upload_url)):
        if url:
            _check_url(name, url, "Set both to the URLs of your gateway, or unset both for Box itself.")
    return config


def upload_snapshot(result: BackupResult, config: BoxConfig, report: Report) -> BackupResult:
    """Bring a complete snapshot to Box. A failure is exit 3: the local copy stays, and the message says what to do."""
    directory = result.snapshot_dir
    try:
        content = ZipStream(directory)
    except (FormatError, OSError, ValueError, KeyError) as error:
        raise BackupError(
            f"{directory} cannot be uploaded: {describe_error(error)}.", "It is damaged: make a new backup."
        ) from error
    try:
        log.info("Uploading %s, %s, to Box.", content.file_name, size_text(content.size_bytes))
        file, is_new = Box(config, stop_event).upload(content, report)
    except Exception as error:  # noqa: BLE001  (whatever it is, the local snapshot stands: exit 3)
        log.error("The upload failed: %s", describe_error(error))  # noqa: TRY400
        log.debug("%s", traceback.format_exc())
        log.error("%s is kept. Upload it with: %s", directory, _upload_command(directory))  # noqa: TRY400
        failure = {"error": redactor.redact(describe_error(error))}
        return dataclasses.replace(result, exit_code=Exit.UPLOAD_FAILED, upload=failure)
    log.info("%s in Box: %s, SHA-1 %s confirmed.", "Stored" if is_new else "Already", file.name, file.sha1)
    upload = {"file_id": file.id, "name": file.name, "size_bytes": file.size_bytes, "sha1": file.sha1, "sent": is_new}
    return dataclasses.replace(result, upload=upload)


def _upload_command(directory: Path) -> str:
    """The command that brings a local snapshot to Box."""
    where = "" if directory.parent == DEFAULT_OUTPUT_DIR else f" --output-dir {shlex.quote(str(directory.parent))}"
    return f"snapshots.py upload {directory.name}{where}"


@dataclass(frozen=True)
class Check:
    """One thing that a run needs: what was found, and what to do if it is not as it should be."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    is_warning: bool = False  # nothing that stops a backup, but a person should know it


def run_check(options: dict[str, Any]) -> int:
    """Test what a run needs, print a line for each thing, write nothing. Returns 0, or 1 if something is missing."""
    last = _last_size(options)
    rows = [
        *_checked("database", _check_database(options)),
        *_checked("encryption", _check_encryption(options["encrypt_to"])),
        *_checked("output directory", _check_output_dir(options["output_dir"], last)),
        *_checked("metrics file", _check_metrics_file(options["metrics_file"])),
        *_checked("Box", _check_box(options, last) if options["to_box"] else ()),
    ]
    is_ok = all(row.ok for row in rows)
    if options["as_json"]:
        checks = [
            {
                "name": row.name,
                "ok": row.ok,
                "warning": row.is_warning,
                "detail": redactor.redact(f"{row.detail} {row.hint}".strip()),
            }
            for row in rows
        ]
        print_result(json.dumps({"ok": is_ok, "exit_code": int(not is_ok), "checks": checks}))
    else:
        print_result(check_table(rows), is_styled=True)
    return Exit.OK if is_ok else Exit.FAILED


def _checked(name: str, rows: Iterable[Check]) -> Iterator[Check]:
    """These rows; an error in making one is the last row, of this name: what comes after it is not tried."""
    try:
        yield from rows
    except BackupError as error:
        yield Check(name, False, error.message, error.hint)


def check_table(rows: list[Check]) -> str:
    """A table of ✓, ! and ✗, with what to do below each ✗; as wide as the terminal, or as needed without one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    is_terminal = sys.stdout.isatty()
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=None if is_terminal else 1000)
    table = Table.grid(padding=(0, 1))
    for row in rows:
        mark, style = ("!", "yellow") if row.is_warning else ("✓", "green") if row.ok else ("✗", "red")
        detail = Text(safe_text(redactor.redact(row.detail)))
        if row.hint:
            detail.append(f"\n→ {safe_text(redactor.redact(row.hint))}", "bold")
        table.add_row(Text(mark, style), Text(safe_text(row.name)), detail)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _check_database(options: dict[str, Any]) -> Iterator[Check]:
    target, report = make_target(options), Report(quiet=True)
    plan = BackupPlan(target, options["output_dir"], options["collections"], options["exclude"])
    api = DataApi(target, DataApi.READ_COMMANDS, stop_event)
    found = list_keyspace(api, report)
    yield Check("database", True, f"{target.api_endpoint}, keyspace {target.keyspace}")
    for warning in report.warnings:
        yield Check("tables", not found.lacks_tables, warning, is_warning=not found.lacks_tables)
    yield from _checked("collections", _check_contents(api, found, plan))
    yield from _check_keyspaces(api)


def _check_contents(api: DataApi, found: Contents, plan: BackupPlan) -> Iterator[Check]:
    selected = select(found, plan, Report(quiet=True))
    for info in selected.collections:
        count = api.estimated_count(info.name)
        # A server says 0 as long as it has not flushed anything, however many documents there are.
        yield Check(f"collection {info.name}", True, f"about {plural(count, 'document')}" if count else "no estimate")
    for table in selected.tables:
        yield from _checked(f"table {table.name}", _check_table(api, table))


def _check_table(api: DataApi, info: TableInfo) -> Iterator[Check]:
    """Whether a table can be read."""
    try:
        shape = TableShape.read(info.name, info.definition)
        Readable.of_table(api, info.name, shape)
    except FormatError as error:
        raise BackupError(f"{error}.", f"Leave the table out: --exclude {info.name}.") from error
    yield Check(f"table {info.name}", True, plural(len(shape.columns), "column"))


def _check_keyspaces(api: DataApi) -> Iterator[Check]:
    """Other keyspaces, which nobody may know of. A token that must not list them is no mistake."""
    with contextlib.suppress(BackupError):
        if others := [name for name in api.list_keyspaces() if name != api.target.keyspace]:
            yield Check("other keyspaces", True, f"not backed up: {', '.join(others)}", is_warning=True)


def _check_encryption(values: Sequence[str]) -> Iterator[Check]:
    encryption = read_encryption(values)
    recipients = f"to {', '.join(map(short_key, encryption.names))}" if encryption else ""
    yield Check("encryption", True, recipients or "off: data files are not encrypted")


def _check_box(options: dict[str, Any], last: tuple[str, int] | None) -> Iterator[Check]:
    """Token, who we are, the folder, the right to upload, and whether a snapshot like the last one is not too large."""
    box = Box(read_box_config(options), stop_event)
    account = box.whoami()
    yield Check("Box account", True, f"{account.login} (the login to invite to the folder)")
    folder = box.folder()
    yield Check("Box folder", True, f"{folder.name} ({box.config.folder_id})")
    if folder.permissions and folder.permissions.can_upload:
        yield Check("Box upload", True, "allowed")
    else:
        yield Check("Box upload", False, "not allowed", f"Make {account.login} an Editor of the folder.")
    if last and last[1] > account.max_upload_size:
        detail = f"at most {size_text(account.max_upload_size)}, the last snapshot ({last[0]}) has {size_text(last[1])}"
        yield Check("Box file size", False, detail, BOX_HINTS["file_size_limit_exceeded"])


def _check_output_dir(path: Path, last: tuple[str, int] | None) -> Iterator[Check]:
    """What the file system can do, and whether there is room for a snapshot as large as the last one."""
    existing, name = _writable(path, "--output-dir (BACKUP_OUTPUT_DIR)"), "output directory"
    weaknesses = probe_file_system(existing, "check")  # which no run sweeps
    free_bytes = shutil.disk_usage(existing).free
    detail = f"{path}, {size_text(free_bytes)} free"
    if last and last[1] > free_bytes:
        detail += f", the last snapshot ({last[0]}) took {size_text(last[1])}"
        yield Check(name, False, detail, "Free some space, or choose another --output-dir (BACKUP_OUTPUT_DIR).")
    else:
        yield Check(name, True, detail)
    for weakness in weaknesses:
        yield Check("file system", True, weakness, is_warning=True)


def _check_metrics_file(path: Path | None) -> Iterator[Check]:
    if path:
        existing = _writable(path.absolute().parent, "--metrics-file")
        yield Check("metrics file", True, f"{path}, {size_text(shutil.disk_usage(existing).free)} free")


def _writable(path: Path, option: str) -> Path:
    """The directory itself, or the nearest one in which it would be made. Raises BackupError if it is not writable."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise BackupError(f"{existing} cannot be written.", f"Give it to this user, or choose another {option}.")
    return existing


def _last_size(options: dict[str, Any]) -> tuple[str, int] | None:
    """Name of the last snapshot, and the bytes that what is asked for had in it; None if there is none."""
    try:
        plan = make_plan(options)
    except BackupError:  # another row says so
        return None
    last = find_last(plan.output_dir, plan.scope, plan.box_config, Report(quiet=True))
    if last is None:
        return None
    wanted = [each for each in last[1].records if not plan.collections or each.name in plan.collections]
    return last[0], sum(each.data_size_bytes or 0 for each in wanted if each.name not in plan.exclude)


def _print_result(record: RunRecord, result: BackupResult, *, as_json: bool) -> None:
    status = {Exit.UPLOAD_FAILED: "upload failed", Exit.SHRUNK: "shrunk"}
    totals, tables = result.manifest.totals, result.manifest.tables
    fields = {
        "snapshot": str(result.snapshot_dir),
        "documents": totals.documents,
        "collections": [_record_row(each) for each in result.manifest.collections],
        **({"rows": totals.rows, "tables": [_record_row(each) for each in tables]} if tables else {}),
        "upload": result.upload,
        "deleted": result.deleted,
        "warnings": result.warnings,
        "duration_seconds": round(record.result_s, 3),
        "steps_seconds": record.steps_s,
    }
    text = _result_line(result, record.result_s)
    print_either(as_json, status.get(result.exit_code, result.manifest.status), result.exit_code, fields, text)


def _result_line(result: BackupResult, duration_s: float) -> str:
    """What exists now, and where."""
    totals = result.manifest.totals
    failed = [each.name for each in result.manifest.records if not each.is_ok]
    if failed:
        verdict = f"INCOMPLETE, failed: {', '.join(failed)}"
    else:
        verdict = "complete" if result.manifest.is_complete else "INCOMPLETE, its tables could not be listed"
    if result.exit_code is Exit.OK and result.manifest.warnings:
        verdict += f", with {plural(len(result.manifest.warnings), 'warning')}"
    if result.upload:
        verdict += ", NOT in Box" if result.exit_code is Exit.UPLOAD_FAILED else ", in Box"
    if result.exit_code is Exit.SHRUNK:
        verdict += f", but SHRUNK since {result.manifest.shrunk_from}"
    text = (
        f"{result.snapshot_dir}: {verdict}; {totals},"
        f" {size_text(directory_size(result.snapshot_dir))},"
        f" {duration_s:.1f} s"
    )
    for place, names in result.deleted.items():
        text += f"; deleted {place}: {', '.join(names)}" if names else ""
    if result.exit_code is Exit.INCOMPLETE:
        last = next((one.name for one in Stored.here(result.snapshot_dir.parent) if one.counts(utc_now())), None)
        text += f"; the newest complete one here is {last}" if last else "; there is no complete one here"
    return text


def _record_row(record: AnyRecord) -> dict[str, Any]:
    """A collection or a table in the JSON result: the manifest's record without its definition and its indexes."""
    row: dict[str, Any] = msgspec.to_builtins(record, builtin_types=(msgspec.Raw,))
    return {name: value for name, value in row.items() if not isinstance(value, msgspec.Raw)}


has_printed = threading.Event()
"""Set when stdout has a result: an error that comes later is no second one."""


def print_result(text: str, *, is_styled: bool = False) -> None:
    """Print to stdout, which carries the result and nothing else; `is_styled`: its control characters are ours."""
    if Report.current:
        Report.current.end_bars()
    has_printed.set()
    text = redactor.redact(text)
    if not is_styled:
        text = escape_controls(text)
    try:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        sys.stdout.flush()
    except OSError as error:  # nobody reads it, the terminal is gone, the disk is full: the exit code still tells
        log.warning("The result could not be printed: %s.", error.strerror)


def print_either(as_json: bool, status: str, code: _E, fields: dict[str, Any], text: str) -> _E:
    """Print the result as a JSON object or for a person. Returns the exit code."""
    print_result(json.dumps({"status": status, "exit_code": int(code), **fields}) if as_json else text)
    return code


class StopEvent(threading.Event):
    """Set when a signal wants the run to end."""

    signal_number = 0  # which one; 0: none yet


stop_event = StopEvent()
at_exit: list[Callable[[int], None]] = []
"""Called with the exit code when a command line ended; they never change it."""


def _stop(signal_number: int, _frame: object) -> NoReturn:
    """End within 10 seconds: `finally` blocks run, and a watchdog ends what hangs. A second signal ends at once."""
    if stop_event.is_set():
        _exit_at_once(128 + signal_number)
    stop_event.signal_number = signal_number
    watchdog = threading.Timer(STOP_GRACE_S, _exit_at_once, [128 + signal_number])
    watchdog.daemon = True
    watchdog.start()
    stop_event.set()  # waits for ever if the signal came within the few steps that hold the event's lock
    raise SystemExit(128 + signal_number)


def _exit_at_once(code: int) -> NoReturn:
    if os.isatty(2):
        os.write(2, b"\x1b[?25h")  # bars hide the cursor
    os._exit(code)


early: dict[str, Any] = {}
"""What `read_early` found on the command line: how a mistake in it is told."""


def read_early(command: click.Command, arguments: list[str]) -> dict[str, Any]:
    """What the command's own parser makes of a command line, unknown options and mistakes passed over, by name.

    The form of an error has to be known before there can be one: in the other options, in `.env`, in a value.
    """
    if isinstance(command, click.Group):
        name = arguments[0] if arguments and arguments[0] in command.commands else next(iter(command.commands))
        return read_early(command.commands[name], [each for each in arguments if each != name])
    settings = {**command.context_settings, "resilient_parsing": True, "ignore_unknown_options": True}
    context = click.Context(command, **settings)
    found, _, _ = command.make_parser(context).parse_args([*arguments])
    return dict(found)


def run_command(command: click.Command) -> NoReturn:
    """Run a command line and end the process: the one place where errors become exit codes."""
    _open_standard_streams()
    os.umask(0o077)  # whatever is written is for its owner only, parents of the output directory too
    with contextlib.suppress(OSError, ValueError):  # in a core there would be secrets, keys and documents
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    hide_secrets()
    early.update(read_early(command, sys.argv[1:]))
    start_logging(
        verbose=early.get("verbosity") == "verbose",
        quiet=early.get("verbosity") == "quiet",
        as_json=_is_json_wanted(),
    )
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads would spin, and have nothing to do here
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
        signal.signal(signal.SIGHUP, _stop)
    code = _run_guarded(command)
    for function in at_exit:
        try:
            function(code)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (the result stands, whatever the monitors meet)
            log.warning("After the run: %s", describe_error(error))
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # worker threads may hang in a request; they must not keep the process


_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # how Python represents such bytes


def read_environment() -> None:
    """Read `.env`, check what the environment holds, and hide the secrets in it."""
    read_dotenv()
    hide_secrets()
    redactor.as_json = _is_json_wanted()
    ours = {name: value for name, value in os.environ.items() if name.startswith(("ASTRA_DB_", "BOX_", "BACKUP_"))}
    for name, value in ours.items():
        is_path = name.endswith(("_DIR", "_FILE"))  # may be any bytes
        if not is_path and _NOT_UTF8.search(value):
            raise BackupError(f"The value of {name} is not UTF-8 text.", "Set it again, in a UTF-8 locale.")
    _warn_of_misspelt(set(ours))


def _warn_of_misspelt(names: set[str]) -> None:
    """A misspelt variable is one that is not set: another keyspace would be backed up, without a word."""
    for name in sorted(names - VARIABLES):
        for meant in difflib.get_close_matches(name, VARIABLES - names, n=1, cutoff=0.9):
            log.warning("%s is set, which means nothing here. Is %s meant?", name, meant)


def read_dotenv() -> None:
    """Read `.env` in the working directory. Environment variables override it, NAME_FILE a NAME in the file too."""
    from dotenv import dotenv_values

    try:
        path = Path.cwd() / ".env"
    except OSError as error:
        raise BackupError("The working directory is gone.", "Change to a directory that exists.") from error
    real = dict(os.environ)
    try:
        text = read_settings(path) if os.path.lexists(path) else ""
        for name, value in dotenv_values(stream=io.StringIO(text)).items():
            other = name.removesuffix("_FILE") if name.endswith("_FILE") else f"{name}_FILE"
            if value is not None and name not in real and not real.get(other):
                os.environ[name] = value
    except (OSError, ValueError) as error:
        raise BackupError(
            f"Cannot read {path}: {describe_error(error, with_path=False)}.",
            "It has to be a small file of UTF-8 text, NAME=value on each line, that this user can read.",
        ) from error


def _is_json_wanted() -> bool:
    """Whether the log is JSON, by the options or else by the environment."""
    return bool(early.get("log_format", os.environ.get("BACKUP_LOG_FORMAT")) == "json")


def _open_standard_streams() -> None:
    """Make up for streams that we were started without, so that no data file gets the number of one of them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), "r+" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115  (to the end)


def hide_secrets() -> None:
    """Make the environment's secrets known to the redactor before anything can be printed."""
    for name in ("ASTRA_DB_APPLICATION_TOKEN", "BOX_CLIENT_SECRET", "BACKUP_PING_URL"):
        with contextlib.suppress(BackupError):
            read_secret(name)
    for name, value in os.environ.items():
        if name.lower().endswith("_proxy") and "@" in value:
            _hide_proxy_password(value)


def _hide_proxy_password(url: str) -> None:
    """Hide a proxy's credential and its password, which may break the URL. Its user alone may be any word of ours."""
    user_info = (url.partition("://")[2] or url).rpartition("@")[0]
    for text in (user_info, urllib.parse.unquote(user_info)):
        _, _, password = text.partition(":")
        for secret in (text, password, *re.split(r"[/?#@:]", password)):
            redactor.add(secret)


def _run_guarded(command: click.Command) -> int:
    code = _run_to_its_end(command)
    if not (code and stop_event.signal_number):  # when all was done before it, 0 is true
        return code
    return _show_error(f"Stopped by {signal.Signals(stop_event.signal_number).name}.", "", _true_code(code))


def _true_code(code: int) -> int:
    """A signal's after one, also where Python ignores what its handler raised, as in a finalizer."""
    return 128 + stop_event.signal_number if stop_event.signal_number else int(code)


def _run_to_its_end(command: click.Command) -> int:
    try:
        read_environment()
        return int(command.main(standalone_mode=False) or 0)
    except BackupError as error:
        return _show_error(error.message, error.hint, error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return Exit.FAILED
    except click.ClickException as error:
        return _show_error(error.format_message(), "Run it with --help for the options.", Exit.FAILED)
    except (click.Abort, KeyboardInterrupt):
        return _show_error("The question was not answered.", "", Exit.INTERRUPTED)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else Exit.FAILED
    except OSError as error:
        hint = "Check that it is there and readable; what is written to must be writable and have room."
        return _show_error(f"{describe_error(error)}.", hint, Exit.FAILED)
    except Exception as error:  # noqa: BLE001  (the last boundary: what comes here is a bug)
        return _show_error(
            f"{type(error).__name__}: {error}", "This is a bug: run it with -v and report it.", Exit.FAILED
        )


def _show_error(message: str, hint: str, code: int) -> int:
    if log.isEnabledFor(logging.DEBUG) and sys.exc_info()[0]:
        log.debug("%s", traceback.format_exc())
    log.error("%s%s", message, f"\n  {hint}" if hint else "")
    if early.get("as_json") and not has_printed.is_set():
        message, hint = (safe_text(redactor.redact_error(text)) for text in (message, hint))  # before JSON escapes it
        print_result(json.dumps({"status": "error", "exit_code": _true_code(code), "error": message, "hint": hint}))
    return int(code)


def run() -> NoReturn:
    """Run the command line: what the script does and the installed command calls."""
    run_command(main)


if __name__ == "__main__":
    run()
