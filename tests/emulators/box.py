"""An emulator of Box, good enough for the real boxsdk to talk to.

    python -m tests.emulators.box --port 8282

serves `BOX_BASE_URL=http://127.0.0.1:8282` and `BOX_UPLOAD_URL=http://127.0.0.1:8282/api` until SIGTERM. In
a test:

    with BoxEmulator(part_size=1 << 20) as box:
        box.url, box.upload_url, box.client_id, box.client_secret, box.enterprise_id, box.folder_id
        box.files()["a.zip"].content, box.sessions, box.requests, box.violations

It serves the Client Credentials Grant, folders, single and chunked uploads, versions, downloads with
ranges, deletion and trash. Contents live in files of a data directory: memory stays flat whatever is
uploaded. `GET /_emulator` answers its state as JSON, for those who started it as a program.

**Every request is validated** against Box's own OpenAPI description (the part of it that is used here is
tests/data/box_openapi.json): what does not conform is served all the same and noted in `violations`; what
the SDK is known to do is noted in `known_deviations` (see SDK_DEVIATIONS). The emulator's own successful
answers are validated too (`reply_violations`). The demo runs without openapi-schema-validator, which is
installed for the tests only: `validator` is then None and nothing is checked.

**Faults** are dictionaries in `faults` (or a JSON list in the file given to --faults), looked at for every
request:

    {"api": "part", "action": "status", "status": 503, "retry_after": 0, "skip": 1, "times": 2, "every": 1}

`api` is a name in ROUTES, a list of names, or "*"; `contains` narrows it to requests whose request line or
Content-Range holds that text. The first `skip` of the matching requests are let through, then each (or each
`every`-th) one is hit, `times` times (1; null: for ever). The first rule that hits wins. The actions and
what they take are in ACTIONS.

What neither Box's specification nor its documentation settles, and what was chosen here (knobs in
brackets):

* `conflicts` of a 409 is one object, as in transcripts and in Box's own web client; the specification says
  an array [conflicts_shape="array"].
* `usemarker=True` with a capital T is honoured [usemarker="lowercase" or "ignored"]. The last page has a
  null `next_marker`. A listing by marker is ordered by id, one by offset by type and name. `offset` beyond
  9999 is a 400.
* `fields` gives `type`, `id`, `etag` and what was asked for, nothing else.
* A stored part is immutable: overlapping it, even with the same bytes, is a 409 `conflict`
  [part_conflict="upload_failed": the session breaks for good, 410].
* A part or file whose digest is wrong is a 400 `bad_digest` [digest_status=412].
* A part off the grid of part sizes, or of another length, is a 400; one outside the file a 416.
* A commit with other parts than the stored ones is a 400 `parts_mismatch`; `part_id`, `offset` and `size`
  are compared.
* A 202 at commit comes after the parts were checked and before the digest is.
* A committed or aborted session is a 404 `not_found` [gone_status=410]; one past its 7 days a 410
  `session_expired`.
* `offset` and `limit` of `list_parts` count parts, ordered by their place in the file (as Box's web client
  assumes).
* Two sessions for the same name may be open at once; the second commit meets a 409. Box's web client also
  knows a 409 `session_conflict` that carries the session [the action "session_conflict"].
* Under 20,000,000 bytes there is no session [min_session_size]; over 50 MiB no single upload (413)
  [max_single_size].
* A 401 has an empty body and a WWW-Authenticate header. A deleted file is a 404 `trashed`.
* Scopes, rate limits, retention, locks, shared links and permissions other than `can_upload` and
  `can_delete` do not exist.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import email.message
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO
from urllib.parse import parse_qsl, unquote, urlsplit

# --- Vocabulary ---------------------------------------------------------------------------------------------

MIB = 1024 * 1024
CHUNK = 256 * 1024
"""Bytes moved at a time, from a socket to a file and back."""
MAX_DOCUMENT = 16 * MIB
"""The longest JSON or form body taken into memory."""
MAX_LIMIT = 1000
MAX_OFFSET = 9999
HELP_URL = "http://developers.box.com/docs/#errors"
SPEC_FILE = Path(__file__).resolve().parents[1] / "data" / "box_openapi.json"

Json = dict[str, Any]
Fault = dict[str, Any]

LOGIN = "AutomationUser_1234567_emulator@boxdevedition.com"
SERVICE_USER = {"type": "user", "id": "20000000001", "name": "Astra Backup", "login": LOGIN}
ROOT = {"type": "folder", "id": "0", "sequence_id": None, "etag": None, "name": "All Files"}

CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    410: "session_expired",
    411: "length_required",
    412: "precondition_failed",
    413: "request_entity_too_large",
    429: "rate_limit_exceeded",
    500: "internal_server_error",
    502: "bad_gateway",
    503: "unavailable",
}
"""The code Box gives with a status when nothing more precise applies."""

SDK_DEVIATIONS = {
    "items: query usemarker: 'True'": "the SDK writes Python's True; the specification wants true",
    "preflight: body size:": "the specification types it int32; the SDK sends any file's size",
    "body attributes: 'size' is not in the specification": "upload_with_preflight_check adds it",
}
"""What boxsdk 10.18 does that Box's specification does not allow, by a part of the violation's text."""


class BoxError(Exception):
    """A refusal, to be answered in Box's ClientError shape."""

    def __init__(self, status: int, code: str = "", message: str = "", context: Json | None = None) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code or CODES.get(status, "error")
        self.message = message or HTTPStatus(status).phrase
        self.context = context

    def reply(self) -> Reply:
        """The answer that says so."""
        return error_reply(self.status, self.code, self.message, self.context)


class Refused(Exception):
    """A refusal whose answer is not in the ClientError shape."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class Hangup(Exception):
    """The connection is to be reset without (further) answer."""


class ClientGone(Exception):
    """The client closed its connection before the body was complete."""


@dataclass
class Reply:
    """An answer: a JSON document, raw bytes, or a piece of a file; and how it is spoilt on its way."""

    status: int
    document: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    source: Blob | None = None
    start: int = 0
    length: int = 0
    cut_at: int | None = None
    trickle: tuple[int, float] | None = None
    flip: bool = False
    close: bool = False

    def body(self) -> bytes:
        """The body of an answer that is not a file."""
        if self.raw is not None:
            return self.raw
        return b"" if self.document is None else json.dumps(self.document).encode()


@dataclass
class Call:
    """A request as an operation sees it. Header names are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Body
    route: Route | None = None
    params: dict[str, str] = field(default_factory=dict)
    document: Any = None
    corrupt: bool = False
    accept: bool = False

    def json(self) -> Json:
        """The body as a JSON object; 400 when it is none."""
        try:
            self.document = json.loads(self.body.all() or b"{}")
        except ValueError:
            raise BoxError(400, message="Could not parse JSON") from None
        if not isinstance(self.document, dict):
            raise BoxError(400, message="The body is no object")
        return self.document

    def fields(self) -> list[str]:
        """The names in the query's `fields`; none when it is absent."""
        return [name for name in self.query.get("fields", "").split(",") if name]


Operation = Callable[["Account", Call], Reply]
Act = Callable[[], Reply]
Action = Callable[["BoxEmulator", Call, Fault, Act], Reply]


@dataclass(frozen=True)
class Route:
    """One operation of the API: its template is the path in Box's specification."""

    method: str
    template: str
    api: str
    operation: Operation
    public: bool = False
    specified: bool = True

    def match(self, path: str) -> dict[str, str] | None:
        """The path's parameters, or None when this is another path."""
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.template)
        found = re.fullmatch(pattern, path)
        return found.groupdict() if found else None


@dataclass
class Request:
    """What is remembered of a request. Status 0: the connection was reset, or the client went away."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    api: str
    size: int
    started: float
    status: int = 0
    code: str = ""
    fault: str = ""
    seconds: float = 0.0


def now() -> datetime:
    """The time, in UTC, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0)  # noqa: UP017


def error_reply(status: int, code: str = "", message: str = "", context: Json | None = None) -> Reply:
    """An answer in Box's ClientError shape."""
    request_id = secrets.token_hex(8)
    document = {
        "type": "error",
        "status": status,
        "code": code or CODES.get(status, "error"),
        "context_info": context,
        "help_url": HELP_URL,
        "message": message or HTTPStatus(status).phrase,
        "request_id": request_id,
    }
    return Reply(status, document, {"Box-Request-Id": request_id})


def not_found(name: str, value: str) -> BoxError:
    """The 404 of an item that does not exist or is not shared with the service account."""
    text = f"Invalid value '{value}'. '{name}' with value '{value}' not found"
    return BoxError(
        404,
        message="Not Found",
        context={"errors": [{"reason": "invalid_parameter", "name": name, "message": text}]},
    )


# --- Contents on disk ---------------------------------------------------------------------------------------


@dataclass
class Blob:
    """Bytes in a file on disk. `received` is the digest of what came, `sha1` of what is kept."""

    path: Path
    size: int
    sha1: str
    received: bytes

    def chunks(self, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` on, `length` of them, a chunk at a time."""
        left = self.size - start if length is None else length
        with self.path.open("rb") as stream:
            stream.seek(start)
            while left > 0 and (chunk := stream.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk


class BlobWriter:
    """Streams bytes into a new file, hashing them. `corrupt` flips one bit of what is stored."""

    def __init__(self, path: Path, algorithm: str = "sha1", corrupt: bool = False) -> None:
        self.path = path
        self.size = 0
        self._corrupt = corrupt
        self._received = hashlib.new(algorithm)
        self._stored = self._received if algorithm == "sha1" and not corrupt else hashlib.sha1()
        self._stream: IO[bytes] = path.open("wb")

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._received.update(data)
        if self._corrupt and self.size == 0 and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        if self._stored is not self._received:
            self._stored.update(data)
        self.size += len(data)
        self._stream.write(data)

    def close(self) -> Blob:
        """Finish the file."""
        self._stream.close()
        return Blob(self.path, self.size, self._stored.hexdigest(), self._received.digest())

    def discard(self) -> None:
        """Forget the file."""
        self._stream.close()
        self.path.unlink(missing_ok=True)


class Body:
    """The body of a request, read from its socket and not a byte further."""

    def __init__(self, stream: BinaryIO | BufferedIOBase, length: int) -> None:
        self.length = length
        self.left = length
        self._stream = stream

    def read(self, size: int = CHUNK) -> bytes:
        """The next bytes, at most `size`; none at the end. Raises ClientGone when it ends early."""
        if not self.left:
            return b""
        data = self._stream.read(min(size, self.left))
        if not data:
            raise ClientGone
        self.left -= len(data)
        return data

    def chunks(self, limit: int | None = None) -> Iterator[bytes]:
        """The rest, or the next `limit` bytes of it, a chunk at a time."""
        left = self.left if limit is None else min(limit, self.left)
        while left and (data := self.read(min(CHUNK, left))):
            left -= len(data)
            yield data

    def all(self) -> bytes:
        """The whole of a short body."""
        if self.left > MAX_DOCUMENT:
            raise BoxError(413)
        return b"".join(self.chunks())

    def skip(self, size: int | None = None) -> None:
        """Throw away the rest, or the next `size` bytes."""
        for _ in self.chunks(size):
            pass


class Multipart:
    """The parts of a multipart/form-data body, one after the other, never whole in memory."""

    def __init__(self, body: Body, content_type: str) -> None:
        message = email.message.Message()
        message["Content-Type"] = content_type
        boundary = message.get_param("boundary")
        if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
            raise BoxError(400, message="multipart/form-data with a boundary is expected")
        self._body = body
        self._delimiter = b"\r\n--" + boundary.encode()
        self._buffer = b"\r\n"
        self._until(self._delimiter, lambda data: None)

    def next_name(self) -> str | None:
        """The field name of the next part, or None after the last one."""
        mark = bytearray()
        self._until(b"\r\n", mark.extend)
        if mark.startswith(b"--"):
            return None
        head = bytearray(b"\r\n")
        self._until(b"\r\n\r\n", head.extend)
        found = re.search(rb'\r\nContent-Disposition:[^\r]*[; ]name="([^"]*)"', bytes(head), re.IGNORECASE)
        return found[1].decode() if found else ""

    def content(self, sink: Callable[[bytes], object]) -> None:
        """Hand the bytes of the part last named to `sink`."""
        self._until(self._delimiter, sink)

    def _until(self, delimiter: bytes, sink: Callable[[bytes], object]) -> None:
        while (place := self._buffer.find(delimiter)) < 0:
            keep = len(delimiter) - 1
            if len(self._buffer) > keep:
                sink(self._buffer[:-keep])
                self._buffer = self._buffer[-keep:]
            if not (data := self._body.read()):
                raise BoxError(400, message="The multipart body is not complete")
            self._buffer += data
        sink(self._buffer[:place])
        self._buffer = self._buffer[place + len(delimiter) :]


# --- What Box holds -----------------------------------------------------------------------------------------


@dataclass
class Version:
    """One version of a file's content."""

    id: str
    name: str
    blob: Blob
    created_at: datetime

    def mini(self) -> Json:
        """As it is nested in a file."""
        return {"type": "file_version", "id": self.id, "sha1": self.blob.sha1}

    def full(self, number: int) -> Json:
        """As it is listed."""
        date = self.created_at.isoformat()
        more = {"name": self.name, "size": self.blob.size, "created_at": date, "modified_at": date}
        return {**self.mini(), **more, "version_number": str(number)}


@dataclass
class File:
    """A file: its versions, the current one last."""

    id: str
    name: str
    folder_id: str
    versions: list[Version]
    etag: int = 0
    trashed_at: datetime | None = None

    type = "file"

    @property
    def current(self) -> Version:
        """The version that a download gives."""
        return self.versions[-1]

    @property
    def path(self) -> Path:
        """Where the emulator keeps the current content."""
        return self.current.blob.path

    @property
    def content(self) -> bytes:
        """The current content."""
        return self.path.read_bytes()

    @property
    def size(self) -> int:
        """The current content's size in bytes."""
        return self.current.blob.size

    @property
    def sha1(self) -> str:
        """The current content's SHA-1 in hex."""
        return self.current.blob.sha1

    def mini(self) -> Json:
        """What a listing shows when no fields are asked for."""
        return {
            "type": "file",
            "id": self.id,
            "sequence_id": str(self.etag),
            "etag": str(self.etag),
            "sha1": self.sha1,
            "name": self.name,
            "file_version": self.current.mini(),
        }

    def full(self) -> Json:
        """Everything the emulator knows of it."""
        changed = self.current.created_at.isoformat()
        trashed = self.trashed_at.isoformat() if self.trashed_at else None
        return {
            **self.mini(),
            "size": self.size,
            "description": "",
            "created_at": self.versions[0].created_at.isoformat(),
            "modified_at": changed,
            "content_modified_at": changed,
            "trashed_at": trashed,
            "modified_by": SERVICE_USER,
            "owned_by": SERVICE_USER,
            "parent": {"type": "folder", "id": self.folder_id},
            "path_collection": {"total_count": 1, "entries": [ROOT]},
            "item_status": "trashed" if self.trashed_at else "active",
            "version_number": str(len(self.versions)),
        }


@dataclass
class Folder:
    """A folder. The account's own root is "0"."""

    id: str
    name: str
    parent_id: str | None
    etag: int = 0

    type = "folder"

    def mini(self) -> Json:
        """What a listing shows."""
        tag = str(self.etag) if self.parent_id is not None else None
        return {"type": "folder", "id": self.id, "sequence_id": tag, "etag": tag, "name": self.name}


@dataclass
class Part:
    """A stored part of an upload session."""

    part_id: str
    offset: int
    blob: Blob

    def document(self) -> Json:
        """As Box shows it."""
        place = {"part_id": self.part_id, "offset": self.offset, "size": self.blob.size}
        return {**place, "sha1": self.blob.sha1}


@dataclass
class Session:
    """An open upload session; `file_id` when it makes a new version of a file."""

    id: str
    folder_id: str
    name: str
    size: int
    part_size: int
    expires_at: datetime
    file_id: str | None = None
    parts: dict[int, Part] = field(default_factory=dict)
    accepted: int = 0
    first_commit: float = 0.0
    whole: Blob | None = None
    failed: bool = False

    @property
    def total_parts(self) -> int:
        """How many parts the file has."""
        return -(-self.size // self.part_size)

    def ordered(self) -> list[Part]:
        """The stored parts by their place in the file."""
        return [self.parts[offset] for offset in sorted(self.parts)]

    def part_length(self, offset: int) -> int:
        """How long the part at `offset` has to be."""
        return min(self.part_size, self.size - offset)


def project(document: Json, mini: Json, fields: list[str]) -> Json:
    """What an answer shows: the mini representation, or the fields asked for with `type`, `id` and `etag`."""
    if not fields:
        return mini
    wanted = ["type", "id", "etag", *fields]
    return {name: document[name] for name in wanted if name in document}


@dataclass(eq=False)
class Account:
    """An enterprise's account: its knobs first, then what it holds. A knob may be turned at any time."""

    folder_id: str = "123456"
    client_id: str = "emulator-client-id"
    client_secret: str = "emulator-client-secret"
    enterprise_id: str = "999999"
    user_id: str = "20000000001"
    token_lifetime_s: float = 3600.0
    app_authorized: bool = True
    folder_shared: bool = True
    can_upload: bool = True
    can_delete: bool = True
    part_size: int = 8 * MIB
    min_session_size: int = 20_000_000
    max_single_size: int = 50 * MIB
    max_upload_size: int = 5 * 1024 * MIB
    space_amount: int = 10**13
    usemarker: str = "any"
    conflicts_shape: str = "object"
    part_conflict: str = "conflict"
    commit_202_times: int = 0
    retry_after: str | None = "1"
    digest_status: int = 400
    gone_status: int = 404
    session_lifetime_s: float = 7 * 86400.0
    latency_s: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    data_dir: Path | None = None

    url: str = field(default="", init=False)
    sessions: dict[str, Session] = field(default_factory=dict, init=False)
    closed_sessions: set[str] = field(default_factory=set, init=False)
    lock: threading.RLock = field(default_factory=threading.RLock, init=False)
    _files: dict[str, File] = field(default_factory=dict, init=False)
    _folders: dict[str, Folder] = field(default_factory=dict, init=False)
    _tokens: dict[str, float] = field(default_factory=dict, init=False)
    _links: dict[str, Blob] = field(default_factory=dict, init=False)
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1), init=False)
    _work: Path = field(default=Path(), init=False)

    def __post_init__(self) -> None:
        self._folders["0"] = Folder("0", "All Files", None)
        self._folders[self.folder_id] = Folder(self.folder_id, "Backups", "0")

    @property
    def upload_url(self) -> str:
        """What BOX_UPLOAD_URL has to be."""
        return f"{self.url}/api"

    @property
    def space_used(self) -> int:
        """Bytes of all versions of all files, those in the trash too."""
        with self.lock:
            return sum(version.blob.size for file in self._files.values() for version in file.versions)

    # Files, for operations and for tests

    def files(self, folder_id: str | None = None) -> dict[str, File]:
        """The files of a folder (the shared one) by name; what is in the trash is not there."""
        wanted = folder_id or self.folder_id
        with self.lock:
            kept = [file for file in self._files.values() if file.folder_id == wanted and not file.trashed_at]
        return {file.name: file for file in kept}

    def trash(self) -> list[File]:
        """The files that were deleted and not purged."""
        with self.lock:
            return [file for file in self._files.values() if file.trashed_at]

    def add_file(self, name: str, content: bytes = b"", folder_id: str | None = None) -> File:
        """Put a file there, or a new version of it, without a request."""
        writer = BlobWriter(self.new_path())
        writer.write(content)
        with self.lock:
            found = self.find(folder_id or self.folder_id, name)
            if isinstance(found, File):
                return self.add_version(found, name, writer.close())
            return self.create_file(folder_id or self.folder_id, name, writer.close())

    def new_id(self, base: int) -> str:
        """An identifier no other item has."""
        return str(base + next(self._ids))

    def new_path(self) -> Path:
        """A path for a new content."""
        return self._work / f"{next(self._ids):08d}.blob"

    def store(self, chunks: Iterable[bytes], algorithm: str = "sha1", corrupt: bool = False) -> Blob:
        """Write the chunks into a new file; nothing stays behind when they fail."""
        writer = BlobWriter(self.new_path(), algorithm, corrupt)
        try:
            for chunk in chunks:
                writer.write(chunk)
        except BaseException:
            writer.discard()
            raise
        return writer.close()

    def create_file(self, folder_id: str, name: str, blob: Blob) -> File:
        """A new file with its first version."""
        version = Version(self.new_id(3_000_000_000), name, blob, now())
        file = File(self.new_id(1_000_000_000), name, folder_id, [version])
        self._files[file.id] = file
        return file

    def add_version(self, file: File, name: str, blob: Blob) -> File:
        """A new current version."""
        file.versions.append(Version(self.new_id(3_000_000_000), name, blob, now()))
        file.name = name
        file.etag += 1
        return file

    def create_folder(self, name: str, parent_id: str) -> Folder:
        """A new folder."""
        folder = Folder(self.new_id(200_000_000), name, parent_id)
        self._folders[folder.id] = folder
        return folder

    def purge(self, file: File) -> None:
        """Remove a file for good."""
        del self._files[file.id]
        for version in file.versions:
            version.blob.path.unlink(missing_ok=True)

    def items(self, folder_id: str) -> list[File | Folder]:
        """What is in a folder: folders, then files, by name."""
        folders = [folder for folder in self._folders.values() if folder.parent_id == folder_id]
        files = [file for file in self._files.values() if file.folder_id == folder_id and not file.trashed_at]
        by_name = lambda item: item.name.lower()  # noqa: E731
        return [*sorted(folders, key=by_name), *sorted(files, key=by_name)]

    def find(self, folder_id: str, name: str) -> File | Folder | None:
        """The item of that name in a folder; case does not count."""
        key = name.lower()
        for file in self._files.values():
            if file.folder_id == folder_id and file.name.lower() == key and not file.trashed_at:
                return file
        for folder in self._folders.values():
            if folder.parent_id == folder_id and folder.name.lower() == key:
                return folder
        return None

    # Lookups that refuse

    def folder(self, folder_id: str, name: str = "folder") -> Folder:
        """A folder the service account can see; 404 otherwise."""
        hidden = folder_id == self.folder_id and not self.folder_shared
        if hidden or folder_id not in self._folders:
            raise not_found(name, f"d_{folder_id}")
        return self._folders[folder_id]

    def file(self, file_id: str) -> File:
        """A file that is not in the trash; 404 otherwise."""
        file = self._files.get(file_id)
        if file is None or (file.folder_id == self.folder_id and not self.folder_shared):
            raise not_found("item", f"f_{file_id}")
        if file.trashed_at:
            raise BoxError(404, "trashed", "Item is trashed")
        return file

    def trashed(self, file_id: str) -> File:
        """A file in the trash; 404 otherwise."""
        file = self._files.get(file_id)
        if file is None:
            raise not_found("item", f"f_{file_id}")
        if not file.trashed_at:
            raise BoxError(404, "not_trashed", "Item is not trashed")
        return file

    def session(self, call: Call) -> Session:
        """The session in the path, if it is open."""
        session_id = call.params["upload_session_id"]
        if not re.fullmatch(r"[0-9A-F]{32}", session_id):
            raise BoxError(400, "invalid_upload_session_id", "The upload session ID is not of a valid format")
        session = self.sessions.get(session_id)
        if session is None:
            raise self.gone(session_id)
        if session.expires_at <= datetime.now(timezone.utc):  # noqa: UP017
            raise BoxError(410, "session_expired", "The upload session has expired")
        if session.failed:
            raise BoxError(410, "upload_failed", "The upload session is in an unrecoverable state")
        return session

    def gone(self, session_id: str) -> BoxError:
        """The refusal for a session that is not (or no longer) there."""
        if self.gone_status == 410 and session_id in self.closed_sessions:
            return BoxError(410, "session_expired", "The upload session has ended")
        return BoxError(404, message="The upload session does not exist")

    def close_session(self, session: Session) -> None:
        """End a session and drop what it stored, except an assembled file."""
        self.sessions.pop(session.id, None)
        self.closed_sessions.add(session.id)
        for part in session.parts.values():
            part.blob.path.unlink(missing_ok=True)

    def expire_tokens(self) -> None:
        """Make all tokens there are invalid."""
        with self.lock:
            self._tokens.clear()


# --- Refusals shared by operations --------------------------------------------------------------------------


def check_name(name: object) -> str:
    """The name, if Box takes it."""
    if not isinstance(name, str) or not name:
        raise BoxError(400, message="The name is missing")
    if len(name) > 255:
        raise BoxError(400, "item_name_too_long", "Item name too long")
    odd = re.search(r'[\x00-\x1f/\\<>:"|?*]', name)
    if odd or name != name.strip(" ") or name in (".", ".."):
        raise BoxError(400, "item_name_invalid", "Item name invalid")
    return name


def check_free(box: Account, folder_id: str, name: str, own: File | None = None) -> None:
    """Refuse a name that another item of the folder has."""
    found = box.find(folder_id, name)
    if found is None or found is own:
        return
    conflict: Any = found.mini()
    if box.conflicts_shape == "array":
        conflict = [conflict]
    raise BoxError(409, "item_name_in_use", "Item with the same name already exists", {"conflicts": conflict})


def check_room(box: Account, size: int) -> None:
    """Refuse what is too large for the account or for what is left of it."""
    if size > box.max_upload_size:
        raise BoxError(403, "file_size_limit_exceeded", "File size exceeds the folder owner's file size limit")
    if box.space_used + size > box.space_amount:
        raise BoxError(403, "storage_limit_exceeded", "Account storage limit reached")


def check_target(box: Account, folder_id: str) -> None:
    """Refuse a folder that is not there or may not be written to."""
    folder = box.folder(folder_id, "parent")
    if not box.can_upload and folder.id == box.folder_id:
        raise BoxError(403, "access_denied_insufficient_permissions", "Access denied - insufficient permission")


def check_etag(call: Call, file: File) -> None:
    """Refuse a stale If-Match."""
    wanted = call.headers.get("if-match")
    if wanted is not None and wanted.strip('"') != str(file.etag):
        text = "The resource has been modified. Retrieve the resource again and retry"
        raise BoxError(412, "precondition_failed", text)


def number(call: Call, name: str, default: int) -> int:
    """A whole number of the query."""
    text = call.query.get(name, str(default))
    if not re.fullmatch(r"\d{1,18}", text):
        raise BoxError(400, f"invalid_{name}", f"{name.capitalize()} is not a valid number")
    return int(text)


def bad_digest(box: Account) -> BoxError:
    """The refusal of contents that are not what their digest says."""
    code = "bad_digest" if box.digest_status == 400 else ""
    return BoxError(box.digest_status, code, "The specified digest did not match what we received")


# --- Operations: token, account, folders --------------------------------------------------------------------


def oauth_error(code: str, text: str) -> Refused:
    """A refusal of the token endpoint, which has its own shape."""
    return Refused(Reply(400, {"error": code, "error_description": text}))


def op_token(box: Account, call: Call) -> Reply:
    """Give a token for the Client Credentials Grant."""
    form = dict(parse_qsl(call.body.all().decode(), keep_blank_values=True))
    call.document = form
    if form.get("grant_type") != "client_credentials":
        raise oauth_error("invalid_request", "Invalid grant_type parameter or parameter missing")
    if (form.get("client_id"), form.get("client_secret")) != (box.client_id, box.client_secret):
        raise oauth_error("invalid_client", "The client credentials are invalid")
    if not box.app_authorized:
        raise oauth_error("unauthorized_client", "This app is not authorized by the enterprise admin")
    subjects = {"enterprise": box.enterprise_id, "user": box.user_id}
    if subjects.get(form.get("box_subject_type", "")) != form.get("box_subject_id", "?"):
        raise oauth_error("invalid_grant", "Grant credentials are invalid")
    token = secrets.token_urlsafe(24)
    with box.lock:
        box._tokens[token] = time.monotonic() + box.token_lifetime_s
    life = int(box.token_lifetime_s)
    return Reply(200, {"access_token": token, "expires_in": life, "restricted_to": [], "token_type": "bearer"})


def authorize(box: Account, call: Call) -> None:
    """Refuse a request without a token that is still good."""
    scheme, _, token = call.headers.get("authorization", "").partition(" ")
    challenge = 'Bearer realm="Service"'
    if scheme.lower() == "bearer" and token:
        with box.lock:
            if box._tokens.get(token, 0.0) > time.monotonic():
                return
        challenge += ', error="invalid_token", error_description="The access token provided is invalid."'
    raise Refused(Reply(401, headers={"WWW-Authenticate": challenge}, raw=b""))


def op_me(box: Account, call: Call) -> Reply:
    """Show the service account."""
    user = {
        "type": "user",
        "id": box.user_id,
        "name": "Astra Backup",
        "login": LOGIN,
        "created_at": "2026-01-01T00:00:00+00:00",
        "modified_at": "2026-01-01T00:00:00+00:00",
        "language": "en",
        "timezone": "Etc/UTC",
        "space_amount": box.space_amount,
        "space_used": box.space_used,
        "max_upload_size": box.max_upload_size,
        "status": "active",
    }
    return Reply(200, project(user, user, call.fields()))


def permissions(box: Account, folder: Folder) -> Json:
    """What the service account may do in a folder."""
    names = ("can_download", "can_rename", "can_share", "can_invite_collaborator", "can_set_share_access")
    allowed = dict.fromkeys(names, True)
    uploads = box.can_upload or folder.id != box.folder_id
    return {**allowed, "can_upload": uploads, "can_delete": box.can_delete}


def op_folder(box: Account, call: Call) -> Reply:
    """Show a folder, and with the field `permissions` what may be done in it."""
    with box.lock:
        folder = box.folder(call.params["folder_id"])
        entries = [item.mini() for item in box.items(folder.id)]
    limit = number(call, "limit", 100)
    page = {"total_count": len(entries), "entries": entries[:limit], "offset": 0, "limit": limit}
    shown = {**folder.mini(), "size": 0, "item_status": "active", "item_collection": page}
    return Reply(200, project({**shown, "permissions": permissions(box, folder)}, shown, call.fields()))


def marker_wanted(box: Account, call: Call) -> bool:
    """Whether the listing goes by marker."""
    honoured = {"any": ("true", "True"), "lowercase": ("true",), "ignored": ()}[box.usemarker]
    return call.query.get("usemarker") in honoured


def op_items(box: Account, call: Call) -> Reply:
    """List a folder, by marker or by offset."""
    limit = max(1, min(number(call, "limit", 100), MAX_LIMIT))
    with box.lock:
        items = box.items(box.folder(call.params["folder_id"]).id)
        page = by_marker if marker_wanted(box, call) else by_offset
        kept, more = page(call, items, limit)
        entries = [project(item_full(item), item.mini(), call.fields()) for item in kept]
    return Reply(200, {"entries": entries, "limit": limit, **more})


def item_full(item: File | Folder) -> Json:
    """All there is to show of an item in a listing."""
    return item.full() if isinstance(item, File) else item.mini()


def by_marker(call: Call, items: list[File | Folder], limit: int) -> tuple[list[File | Folder], Json]:
    """The page after the marker, ordered by id."""
    last = 0
    if marker := call.query.get("marker"):
        try:
            last = int(base64.urlsafe_b64decode(marker))
        except (ValueError, binascii.Error):
            raise BoxError(400, message="The marker is not valid") from None
    rest = sorted((item for item in items if int(item.id) > last), key=lambda item: int(item.id))
    kept = rest[:limit]
    following = base64.urlsafe_b64encode(kept[-1].id.encode()).decode() if len(rest) > limit else None
    return kept, {"next_marker": following}


def by_offset(call: Call, items: list[File | Folder], limit: int) -> tuple[list[File | Folder], Json]:
    """The page at the offset."""
    offset = number(call, "offset", 0)
    if offset > MAX_OFFSET:
        raise BoxError(400, message=f"The offset is over {MAX_OFFSET}; use a marker")
    order = [{"by": "type", "direction": "ASC"}, {"by": "name", "direction": "ASC"}]
    return items[offset : offset + limit], {"total_count": len(items), "offset": offset, "order": order}


def op_folder_create(box: Account, call: Call) -> Reply:
    """Make a folder."""
    wanted = call.json()
    name, parent_id = check_name(wanted.get("name")), str(wanted.get("parent", {}).get("id", ""))
    with box.lock:
        check_target(box, parent_id)
        check_free(box, parent_id, name)
        return Reply(201, box.create_folder(name, parent_id).mini())


# --- Operations: single uploads -----------------------------------------------------------------------------


def files_reply(status: int, file: File, fields: list[str]) -> Reply:
    """The answer to an upload."""
    full = file.full()
    return Reply(status, {"total_count": 1, "entries": [project(full, full, fields)]})


def op_preflight(box: Account, call: Call) -> Reply:
    """Say whether a file could be uploaded."""
    wanted = call.json()
    name, parent_id = check_name(wanted.get("name")), str(wanted.get("parent", {}).get("id", ""))
    with box.lock:
        check_target(box, parent_id)
        check_room(box, int(wanted.get("size") or 0))
        check_free(box, parent_id, name)
    return Reply(200, {"upload_url": f"{box.upload_url}/2.0/files/content", "upload_token": "unused"})


def receive_form(box: Account, call: Call) -> tuple[Json, Blob]:
    """The attributes and the stored content of a multipart upload."""
    if call.body.length > box.max_single_size + MIB:
        raise BoxError(413)
    form = Multipart(call.body, call.headers.get("content-type", ""))
    if form.next_name() != "attributes":
        raise BoxError(400, "metadata_after_file_contents", "Metadata is included after file contents")
    attributes = bytearray()
    form.content(attributes.extend)
    call.document = {"attributes": parse_attributes(bytes(attributes))}
    if form.next_name() != "file":
        raise BoxError(400, message="The part 'file' is missing")
    call.document["file"] = "..."
    writer = BlobWriter(box.new_path(), corrupt=call.corrupt)
    try:
        form.content(writer.write)
        form.next_name()
    except BaseException:
        writer.discard()
        raise
    return call.document["attributes"], writer.close()


def parse_attributes(text: bytes) -> Json:
    """The JSON of the part `attributes`."""
    try:
        attributes = json.loads(text)
    except ValueError:
        raise BoxError(400, message="The attributes are no JSON") from None
    if not isinstance(attributes, dict):
        raise BoxError(400, message="The attributes are no object")
    return attributes


def check_content(box: Account, call: Call, blob: Blob) -> None:
    """Refuse a single upload that is too large or not what its Content-MD5 (a SHA-1 in hex) says."""
    if blob.size > box.max_single_size:
        raise BoxError(413)
    digest = call.headers.get("content-md5")
    if digest is not None and digest.lower() != blob.received.hex():
        raise BoxError(400, "bad_digest", "The specified content-md5 did not match what we received")
    check_room(box, blob.size)


def upload(box: Account, call: Call, keep: Callable[[Json, Blob], File], status: int) -> Reply:
    """Receive a single upload and hand it to `keep` under the lock; a refused content is dropped."""
    attributes, blob = receive_form(box, call)
    try:
        with box.lock:
            check_content(box, call, blob)
            return files_reply(status, keep(attributes, blob), call.fields())
    except BaseException:
        blob.path.unlink(missing_ok=True)
        raise


def op_upload(box: Account, call: Call) -> Reply:
    """Upload a new file."""

    def keep(attributes: Json, blob: Blob) -> File:
        name, parent_id = check_name(attributes.get("name")), str(attributes.get("parent", {}).get("id", ""))
        check_target(box, parent_id)
        check_free(box, parent_id, name)
        return box.create_file(parent_id, name, blob)

    return upload(box, call, keep, 201)


def op_upload_version(box: Account, call: Call) -> Reply:
    """Upload a new version of a file."""

    def keep(attributes: Json, blob: Blob) -> File:
        file = box.file(call.params["file_id"])
        check_etag(call, file)
        name = check_name(attributes.get("name", file.name))
        check_target(box, file.folder_id)
        check_free(box, file.folder_id, name, own=file)
        return box.add_version(file, name, blob)

    return upload(box, call, keep, 200)


# --- Operations: files --------------------------------------------------------------------------------------


def op_file(box: Account, call: Call) -> Reply:
    """Show a file."""
    with box.lock:
        full = box.file(call.params["file_id"]).full()
    return Reply(200, project(full, full, call.fields()))


def op_rename(box: Account, call: Call) -> Reply:
    """Rename or move a file."""
    wanted = call.json()
    with box.lock:
        file = box.file(call.params["file_id"])
        check_etag(call, file)
        name = check_name(wanted.get("name", file.name))
        folder_id = str(wanted.get("parent", {}).get("id", file.folder_id))
        check_target(box, folder_id)
        check_free(box, folder_id, name, own=file)
        file.name, file.folder_id, file.etag = name, folder_id, file.etag + 1
        return Reply(200, project(file.full(), file.full(), call.fields()))


def op_delete(box: Account, call: Call) -> Reply:
    """Move a file to the trash."""
    with box.lock:
        file = box.file(call.params["file_id"])
        check_etag(call, file)
        check_delete(box)
        file.trashed_at = now()
    return Reply(204)


def check_delete(box: Account) -> None:
    """Refuse a deletion the service account may not make."""
    if not box.can_delete:
        raise BoxError(403, "access_denied_insufficient_permissions", "Access denied - insufficient permission")


def op_trash(box: Account, call: Call) -> Reply:
    """Show a file in the trash."""
    with box.lock:
        full = box.trashed(call.params["file_id"]).full()
    return Reply(200, project(full, full, call.fields()))


def op_purge(box: Account, call: Call) -> Reply:
    """Remove a file from the trash for good."""
    with box.lock:
        box.purge(box.trashed(call.params["file_id"]))
    return Reply(204)


def op_versions(box: Account, call: Call) -> Reply:
    """List a file's past versions, the latest first; the current one is not among them."""
    limit, offset = number(call, "limit", MAX_LIMIT), number(call, "offset", 0)
    with box.lock:
        past = box.file(call.params["file_id"]).versions[:-1]
        entries = [version.full(place) for place, version in enumerate(past, 1)][::-1]
    page = entries[offset : offset + limit]
    return Reply(200, {"total_count": len(entries), "offset": offset, "limit": limit, "entries": page})


def find_version(file: File, version_id: str) -> Version:
    """A file's version; 404 when there is none of that id."""
    for version in file.versions:
        if version.id == version_id:
            return version
    raise not_found("file_version", version_id)


def op_version_delete(box: Account, call: Call) -> Reply:
    """Delete one version; the one before becomes current when it was the current one."""
    with box.lock:
        file = box.file(call.params["file_id"])
        check_etag(call, file)
        check_delete(box)
        version = find_version(file, call.params["version_id"])
        if len(file.versions) == 1:
            raise BoxError(403, message="The only version of a file cannot be deleted")
        file.versions.remove(version)
        version.blob.path.unlink(missing_ok=True)
        file.etag += 1
    return Reply(204)


def op_content(box: Account, call: Call) -> Reply:
    """Answer a download with the address of the content."""
    with box.lock:
        file = box.file(call.params["file_id"])
        wanted = call.query.get("version")
        version = find_version(file, wanted) if wanted else file.current
        token = secrets.token_urlsafe(16)
        box._links[token] = version.blob
    return Reply(302, headers={"Location": f"{box.url}/dl/{token}"}, raw=b"")


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header; None when it is to be ignored. 416 past the end."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", text.strip())
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:
        first, last = max(0, size - int(found[2])), size - 1
    else:
        first, last = int(found[1]), min(int(found[2] or size), size - 1)
        if found[2] and int(found[2]) < first:
            return None
    if first > last:
        raise Refused(Reply(416, headers={"Content-Range": f"bytes */{size}"}, raw=b""))
    return first, last


def op_download(box: Account, call: Call) -> Reply:
    """Give the content behind a download address, or a range of it."""
    with box.lock:
        blob = box._links.get(call.params["token"])
    if blob is None or not blob.path.exists():
        raise BoxError(404)
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    span = parse_range(call.headers.get("range", ""), blob.size)
    if span is None:
        return Reply(200, headers=headers, source=blob, length=blob.size)
    headers["Content-Range"] = f"bytes {span[0]}-{span[1]}/{blob.size}"
    return Reply(206, headers=headers, source=blob, start=span[0], length=span[1] - span[0] + 1)


# --- Operations: upload sessions ----------------------------------------------------------------------------


def session_document(box: Account, session: Session) -> Json:
    """A session as Box shows it."""
    here = f"{box.upload_url}/2.0/files/upload_sessions/{session.id}"
    return {
        "id": session.id,
        "type": "upload_session",
        "session_expires_at": session.expires_at.isoformat(),
        "part_size": session.part_size,
        "total_parts": session.total_parts,
        "num_parts_processed": len(session.parts),
        "session_endpoints": {
            "upload_part": here,
            "commit": f"{here}/commit",
            "abort": here,
            "list_parts": f"{here}/parts",
            "status": here,
            "log_event": f"{here}/log",
        },
    }


def session_size(box: Account, wanted: Json) -> int:
    """The size a session is asked for, if it is large enough for one."""
    size = wanted.get("file_size")
    if size is None:
        raise BoxError(400, "missing_file_size", "file_size was not provided")
    if not isinstance(size, int) or size < 0:
        raise BoxError(400, "invalid_file_size", "file_size was not a valid number")
    if size < box.min_session_size:
        raise BoxError(400, "file_size_too_small", "The file is below the minimum size for chunked uploads")
    return size


def open_session(box: Account, folder_id: str, name: str, size: int, file: File | None = None) -> Reply:
    """Open a session, after the checks that a preflight makes."""
    check_target(box, folder_id)
    check_room(box, size)
    check_free(box, folder_id, name, own=file)
    expires = now() + timedelta(seconds=box.session_lifetime_s)
    file_id = file.id if file else None
    session = Session(secrets.token_hex(16).upper(), folder_id, name, size, box.part_size, expires, file_id)
    box.sessions[session.id] = session
    return Reply(201, session_document(box, session))


def op_session(box: Account, call: Call) -> Reply:
    """Open a session for a new file."""
    wanted = call.json()
    for name, code in (("folder_id", "missing_destination"), ("file_name", "missing_file_name")):
        if not wanted.get(name):
            raise BoxError(400, code, f"{name} was not provided")
    with box.lock:
        name = check_name(wanted["file_name"])
        return open_session(box, str(wanted["folder_id"]), name, session_size(box, wanted))


def op_session_version(box: Account, call: Call) -> Reply:
    """Open a session for a new version of a file."""
    wanted = call.json()
    with box.lock:
        file = box.file(call.params["file_id"])
        name = check_name(wanted.get("file_name") or file.name)
        return open_session(box, file.folder_id, name, session_size(box, wanted), file)


def op_status(box: Account, call: Call) -> Reply:
    """Show a session."""
    with box.lock:
        return Reply(200, session_document(box, box.session(call)))


def op_abort(box: Account, call: Call) -> Reply:
    """End a session; what it stored is gone."""
    with box.lock:
        session = box.sessions.get(call.params["upload_session_id"]) or box.session(call)
        box.close_session(session)
        if session.whole:
            session.whole.path.unlink(missing_ok=True)
    return Reply(204)


def op_log_event(box: Account, call: Call) -> Reply:
    """Take a log event and forget it."""
    call.body.skip()
    return Reply(204)


def parse_digest(call: Call, algorithms: dict[str, str]) -> tuple[str, bytes]:
    """The hash algorithm and the value of the Digest header."""
    name, _, value = call.headers.get("digest", "").partition("=")
    try:
        digest = base64.b64decode(value, validate=True)
    except binascii.Error:
        digest = b""
    if name.lower() not in algorithms or not digest:
        raise BoxError(400, message="The header digest is missing or not valid")
    return algorithms[name.lower()], digest


def parse_place(session: Session, call: Call) -> int:
    """The offset of a part, if its Content-Range is one that the session has."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", call.headers.get("content-range", ""))
    if not found:
        raise BoxError(400, message="The header content-range is missing or not valid")
    first, last, total = map(int, found.groups())
    if total != session.size or last >= session.size or first > last:
        raise BoxError(416, message="The range is not one of this session's file")
    if first % session.part_size or last - first + 1 != session.part_length(first):
        raise BoxError(400, message=f"Parts begin at multiples of {session.part_size} and have that size")
    if call.body.length != last - first + 1:
        raise BoxError(400, message="The body is not as long as its range")
    return first


def refuse_stored(box: Account, session: Session, offset: int) -> None:
    """Refuse a part that is already there."""
    if offset not in session.parts:
        return
    if box.part_conflict == "upload_failed":
        session.failed = True
        raise BoxError(410, "upload_failed", "Overlapping parts were uploaded")
    raise BoxError(409, "conflict", "The part conflicts with a part uploaded before")


def op_part(box: Account, call: Call) -> Reply:
    """Store a part; once stored it cannot be replaced."""
    with box.lock:
        session = box.session(call)
        offset = parse_place(session, call)
        refuse_stored(box, session, offset)
    algorithm, digest = parse_digest(call, {"sha": "sha1", "sha-512": "sha512"})
    blob = box.store(call.body.chunks(), algorithm, call.corrupt)
    try:
        if blob.received != digest:
            raise bad_digest(box)
        with box.lock:
            refuse_stored(box, box.session(call), offset)
            part = Part(secrets.token_hex(4).upper(), offset, blob)
            session.parts[offset] = part
    except BoxError:
        blob.path.unlink(missing_ok=True)
        raise
    return Reply(200, {"part": part.document()})


def op_parts(box: Account, call: Call) -> Reply:
    """List the stored parts by their place in the file."""
    limit, offset = min(number(call, "limit", MAX_LIMIT), MAX_LIMIT), number(call, "offset", 0)
    with box.lock:
        parts = [part.document() for part in box.session(call).ordered()]
    page = parts[offset : offset + limit]
    order = [{"by": "offset", "direction": "ASC"}]
    return Reply(200, {"total_count": len(parts), "offset": offset, "limit": limit, "order": order, "entries": page})


def check_parts(session: Session, listed: object) -> None:
    """Refuse a commit whose parts are not exactly those stored, or that do not make the file."""
    if not isinstance(listed, list) or not all(isinstance(part, dict) for part in listed):
        raise BoxError(400, message="The parts are missing")
    given = sorted((str(p.get("part_id")), p.get("offset"), p.get("size")) for p in listed)
    stored = sorted((p.part_id, p.offset, p.blob.size) for p in session.parts.values())
    if given != stored or len(stored) != session.total_parts:
        text = f"{len(stored)} of {session.total_parts} parts are stored, {len(given)} are listed"
        raise BoxError(400, "parts_mismatch", text)


def still_processing(box: Account, call: Call, session: Session) -> bool:
    """Whether a commit is to be answered with a 202."""
    session.first_commit = session.first_commit or time.monotonic()
    if not call.accept and session.accepted >= box.commit_202_times:
        return False
    session.accepted += 1
    return True


def accepted(box: Account) -> Reply:
    """The answer to a commit while the parts are being processed."""
    return Reply(202, headers={"Retry-After": box.retry_after} if box.retry_after is not None else {}, raw=b"")


def op_commit(box: Account, call: Call) -> Reply:
    """Make a file, or a version, of the stored parts. The session is gone afterwards."""
    listed = call.json().get("parts")
    _, digest = parse_digest(call, {"sha": "sha1"})
    with box.lock:
        session = box.session(call)
        check_parts(session, listed)
        if still_processing(box, call, session):
            return accepted(box)
        if session.whole is None:
            pieces = (chunk for part in session.ordered() for chunk in part.blob.chunks())
            session.whole = box.store(pieces, corrupt=call.corrupt)
        if session.whole.received != digest:
            raise bad_digest(box)
        file = committed(box, call, session, session.whole)
        box.close_session(session)
    return files_reply(201, file, [])


def committed(box: Account, call: Call, session: Session, whole: Blob) -> File:
    """The file that a session makes."""
    if session.file_id is None:
        check_target(box, session.folder_id)
        check_free(box, session.folder_id, session.name)
        return box.create_file(session.folder_id, session.name, whole)
    file = box.file(session.file_id)
    check_etag(call, file)
    check_free(box, file.folder_id, session.name, own=file)
    return box.add_version(file, session.name, whole)


ROUTES = (
    Route("POST", "/oauth2/token", "token", op_token, public=True),
    Route("GET", "/2.0/users/me", "me", op_me),
    Route("GET", "/2.0/folders/{folder_id}", "folder", op_folder),
    Route("GET", "/2.0/folders/{folder_id}/items", "items", op_items),
    Route("POST", "/2.0/folders", "folder_create", op_folder_create, specified=False),
    Route("OPTIONS", "/2.0/files/content", "preflight", op_preflight),
    Route("POST", "/api/2.0/files/content", "upload", op_upload),
    Route("POST", "/api/2.0/files/{file_id}/content", "upload_version", op_upload_version),
    Route("GET", "/2.0/files/{file_id}", "file", op_file),
    Route("PUT", "/2.0/files/{file_id}", "rename", op_rename),
    Route("DELETE", "/2.0/files/{file_id}", "delete", op_delete),
    Route("GET", "/2.0/files/{file_id}/trash", "trash", op_trash),
    Route("DELETE", "/2.0/files/{file_id}/trash", "purge", op_purge),
    Route("GET", "/2.0/files/{file_id}/versions", "versions", op_versions),
    Route(
        "DELETE",
        "/2.0/files/{file_id}/versions/{version_id}",
        "version_delete",
        op_version_delete,
        specified=False,
    ),
    Route("GET", "/2.0/files/{file_id}/content", "content", op_content),
    Route("GET", "/dl/{token}", "download", op_download, public=True, specified=False),
    Route("POST", "/api/2.0/files/upload_sessions", "session", op_session),
    Route("POST", "/api/2.0/files/{file_id}/upload_sessions", "session_version", op_session_version),
    Route("PUT", "/api/2.0/files/upload_sessions/{upload_session_id}", "part", op_part),
    Route("GET", "/api/2.0/files/upload_sessions/{upload_session_id}", "status", op_status),
    Route("DELETE", "/api/2.0/files/upload_sessions/{upload_session_id}", "abort", op_abort),
    Route("GET", "/api/2.0/files/upload_sessions/{upload_session_id}/parts", "parts", op_parts),
    Route("POST", "/api/2.0/files/upload_sessions/{upload_session_id}/commit", "commit", op_commit),
    Route(
        "POST",
        "/api/2.0/files/upload_sessions/{upload_session_id}/log",
        "log_event",
        op_log_event,
        specified=False,
    ),
)
"""The operations. Their names are what a fault's `api` refers to. Those not `specified` are not in SPEC_FILE
(`download` is no part of Box's description at all), and are not validated."""


def find_route(call: Call) -> Route:
    """The operation that a request is for; its parameters are put into the call."""
    known = False
    for route in ROUTES:
        params = route.match(call.path)
        if params is not None and route.method == call.method:
            call.params = {name: unquote(value) for name, value in params.items()}
            return route
        known = known or params is not None
    raise BoxError(405 if known else 404)


# --- Faults -------------------------------------------------------------------------------------------------


def fault_status(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """`status`; optionally `headers`, `retry_after` (seconds, or "date"), `code`, `body` (text, or JSON)."""
    reply = error_reply(fault["status"], fault.get("code", ""))
    body = fault.get("body", ...)
    if isinstance(body, str):
        reply.raw = body.encode()
    elif body is not ...:
        reply.document = body
    reply.headers.update(fault.get("headers", {}))
    after = fault.get("retry_after")
    if after is not None:
        reply.headers["Retry-After"] = formatdate(time.time() + 1, usegmt=True) if after == "date" else str(after)
    return reply


def fault_reset(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """Reset the connection, nothing done; after `after_bytes` of the body (0)."""
    call.body.skip(fault.get("after_bytes", 0))
    raise Hangup


def fault_reset_after(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """Act, then reset the connection: the lost reply."""
    act()
    call.body.skip()
    raise Hangup


def fault_stored_500(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """Act, then answer `status` (500)."""
    act()
    return error_reply(fault.get("status", 500))


def fault_accepted_202(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """A valid commit answers 202; with `for_s`, until so long after the session's first commit."""
    session = box.sessions.get(call.params["upload_session_id"])
    since = time.monotonic() - session.first_commit if session and session.first_commit else 0.0
    call.accept = since < fault.get("for_s", float("inf"))
    return act()


def fault_session_gone(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """The session vanishes: `status` 404, or 410."""
    with box.lock:
        session = box.sessions.get(call.params.get("upload_session_id", ""))
        if session:
            box.close_session(session)
    return error_reply(fault.get("status", 404), fault.get("code", ""))


def fault_session_conflict(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """A session is opened, but the answer is a 409 that carries it in `context_info.session`."""
    reply = act()
    if reply.status != 201:
        return reply
    return error_reply(409, "session_conflict", context={"session": reply.document})


def fault_wrong_sha1(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """The answer echoes a SHA-1 that is not that of what is stored."""
    reply = act()
    text = json.dumps(reply.document)
    reply.document = json.loads(re.sub(r'("sha1": ")[0-9a-f]{40}', r"\g<1>" + "0" * 40, text))
    return reply


def fault_corrupt(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """A bit flips in what is stored (the answer tells the SHA-1 of just that), or in what is downloaded."""
    call.corrupt = True
    reply = act()
    reply.flip = reply.source is not None
    return reply


def fault_html(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """`status` (200) with a page of HTML, as a captive portal would."""
    page = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
    return Reply(fault.get("status", 200), headers={"Content-Type": "text/html; charset=utf-8"}, raw=page)


def fault_flood(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """`bytes` zeros with status 200, whatever was asked for."""
    return Reply(200, headers={"Content-Type": "application/octet-stream"}, raw=bytes(fault["bytes"]))


def fault_list_json(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """`status` (502) whose body is a JSON list."""
    return Reply(fault.get("status", 502), ["upstream connect error"])


def fault_expire_token(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """The token and all others become invalid."""
    box.expire_tokens()
    return act()


def fault_delay(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """Act after `seconds`."""
    box.pause(fault["seconds"])
    return act()


def fault_trickle(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """The body comes `chunk` bytes (1) at a time, `pause_s` (0.05) apart."""
    reply = act()
    reply.trickle = (fault.get("chunk", 1), fault.get("pause_s", 0.05))
    return reply


def fault_silence(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """No answer at all for `seconds` (until the emulator stops), then a reset. Nothing is done."""
    call.body.skip()
    box.pause(fault.get("seconds", 86400.0))
    raise Hangup


def fault_truncate(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """The body ends after `at` bytes (half of it), though its length was announced."""
    reply = act()
    size = reply.length if reply.source else len(reply.body())
    reply.cut_at = min(fault.get("at", size // 2), size)
    return reply


def fault_ignore_range(box: BoxEmulator, call: Call, fault: Fault, act: Act) -> Reply:
    """The whole content is sent whatever range was asked for."""
    call.headers.pop("range", None)
    return act()


ACTIONS: dict[str, Action] = {
    "status": fault_status,
    "reset": fault_reset,
    "reset_after": fault_reset_after,
    "stored_500": fault_stored_500,
    "accepted_202": fault_accepted_202,
    "session_gone": fault_session_gone,
    "session_conflict": fault_session_conflict,
    "wrong_sha1": fault_wrong_sha1,
    "corrupt": fault_corrupt,
    "flood": fault_flood,
    "html": fault_html,
    "list_json": fault_list_json,
    "expire_token": fault_expire_token,
    "delay": fault_delay,
    "trickle": fault_trickle,
    "silence": fault_silence,
    "truncate": fault_truncate,
    "ignore_range": fault_ignore_range,
}
"""What a fault's `action` may be. To add one, write a function like these: `act` does what was asked for."""


class FaultCounter:
    """How often each rule has matched and hit; rules are told apart by identity."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: list[tuple[Fault, list[int]]] = []

    def take(self, rules: list[Fault], call: Call, api: str) -> Fault | None:
        """The first rule that hits this request; every rule that matches it counts it."""
        with self._lock:
            hit = None
            for rule in [rule for rule in rules if self._matches(rule, call, api)]:
                count = self._count(rule)
                count[0] += 1
                if hit is None and self._hits(rule, *count):
                    count[1] += 1
                    hit = rule
            return hit

    def _count(self, rule: Fault) -> list[int]:
        for known, count in self._counts:
            if known is rule:
                return count
        self._counts.append((rule, [0, 0]))
        return self._counts[-1][1]

    @staticmethod
    def _matches(rule: Fault, call: Call, api: str) -> bool:
        wanted = rule["api"]
        names = [wanted] if isinstance(wanted, str) else wanted
        query = "&".join(f"{name}={value}" for name, value in call.query.items())
        text = f"{call.method} {call.path}?{query} {call.headers.get('content-range', '')}"
        return ("*" in names or api in names) and rule.get("contains", "") in text

    @staticmethod
    def _hits(rule: Fault, seen: int, hits: int) -> bool:
        late = seen - rule.get("skip", 0) - 1
        times = rule.get("times", 1)
        return late >= 0 and late % rule.get("every", 1) == 0 and (times is None or hits < times)


# --- Box's specification ------------------------------------------------------------------------------------


def sample(document: Json) -> Json:
    """The document with its first few entries, which are as good as a thousand."""
    return {name: value[:20] if name == "entries" else value for name, value in document.items()}


class SpecValidator:
    """Checks requests, and our own answers, against Box's OpenAPI description."""

    def __init__(self, spec: Json, engine: Any) -> None:
        self._spec = spec
        self._engine = engine

    @classmethod
    def load(cls) -> SpecValidator | None:
        """The validator, or None without the library that it needs."""
        try:
            from openapi_schema_validator import OAS30Validator
        except ImportError:
            return None
        return cls(json.loads(SPEC_FILE.read_bytes()), OAS30Validator)

    def request(self, call: Call, route: Route) -> Iterator[str]:
        """What is wrong with a request; its body is looked at when the operation has read it."""
        operation = self._operation(route)
        if operation is None:
            return
        parameters = operation.get("parameters", [])
        for parameter in parameters:
            yield from self._parameter(call, parameter)
        known = {parameter["name"] for parameter in parameters if parameter["in"] == "query"}
        for name in call.query.keys() - known:
            yield f"query {name}: is not in the specification"
        content = operation.get("requestBody", {}).get("content", {})
        if call.document is not None and content:
            schema = next(iter(content.values()))["schema"]
            yield from self._document(call.document, schema, "body")

    def reply(self, route: Route, reply: Reply) -> Iterator[str]:
        """What is wrong with one of our successful answers."""
        operation = self._operation(route)
        if operation is None or reply.status >= 300:
            return
        if str(reply.status) not in operation["responses"]:
            yield f"status {reply.status} is not in the specification"
            return
        for content in operation["responses"][str(reply.status)].get("content", {}).values():
            if reply.document is not None:
                yield from self._errors(sample(reply.document), content["schema"], "reply")

    def _operation(self, route: Route) -> Json | None:
        found: Json | None = self._spec["paths"].get(route.template, {}).get(route.method.lower())
        return found if route.specified else None

    def _parameter(self, call: Call, parameter: Json) -> Iterator[str]:
        where, name = parameter["in"], parameter["name"]
        values = {"query": call.query, "header": call.headers, "path": call.params}[where]
        key = name.lower() if where == "header" else name
        if key not in values:
            if parameter.get("required"):
                yield f"{where} {name}: is required"
            return
        value = self._coerce(values[key], parameter["schema"])
        if value is ...:
            yield f"{where} {name}: {values[key]!r} is no {parameter['schema']['type']}"
            return
        yield from self._errors(value, parameter["schema"], f"{where} {name}")

    @staticmethod
    def _coerce(text: str, schema: Json) -> Any:
        kind = schema.get("type")
        if kind == "integer":
            return int(text) if re.fullmatch(r"-?\d+", text) else ...
        if kind == "boolean":
            return {"true": True, "false": False}.get(text, ...)
        return text.split(",") if kind == "array" else text

    def _document(self, document: Any, schema: Json, where: str) -> Iterator[str]:
        schema = self._resolve(schema)
        yield from self._errors(document, schema, where)
        yield from self._strangers(document, schema, where)

    def _strangers(self, document: Any, schema: Json, where: str) -> Iterator[str]:
        """Properties the specification does not list, one level deep, and in a form's attributes."""
        known = self._resolve(schema).get("properties")
        if not known or not isinstance(document, dict):
            return
        for name in document.keys() - known.keys():
            yield f"{where}: '{name}' is not in the specification"
        if "attributes" in document and "attributes" in known:
            yield from self._strangers(document["attributes"], known["attributes"], f"{where} attributes")

    def _resolve(self, schema: Json) -> Json:
        while "$ref" in schema:
            schema = self._spec["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        return schema

    def _errors(self, value: Any, schema: Json, where: str) -> Iterator[str]:
        rooted = {**self._resolve(schema), "components": self._spec["components"]}
        checker = self._engine(rooted, format_checker=self._engine.FORMAT_CHECKER)
        for error in checker.iter_errors(value):
            place = ".".join(str(step) for step in error.absolute_path)
            yield f"{where}{' ' if place else ''}{place}: {error.message[:200]}"


# --- The wire -----------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Reads requests off a connection and writes answers onto it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """The emulator keeps its own records."""

    def serve(self) -> None:
        """Answer one request."""
        emulator = self.server.emulator
        call = self._call()
        try:
            reply = emulator.handle(call)
            call.body.skip()
            self._send(reply)
        except (Hangup, ClientGone, ConnectionError):
            self._reset()

    do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = serve

    def _call(self) -> Call:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = Body(self.rfile, int(headers.get("content-length") or 0))
        return Call(self.command, parts.path, dict(parse_qsl(parts.query, True)), headers, body)

    def _send(self, reply: Reply) -> None:
        body = b"" if reply.source else reply.body()
        length = reply.length if reply.source else len(body)
        head = self._head(reply, length)
        if reply.source is None and reply.cut_at is None and reply.trickle is None:
            self.wfile.write(head + body)
            return
        self.wfile.write(head)
        source = reply.source.chunks(reply.start, reply.length) if reply.source else iter([body])
        for chunk in spoilt(reply, source):
            self.wfile.write(chunk)
            if reply.trickle:
                self.server.emulator.pause(reply.trickle[1])
        self.close_connection = self.close_connection or reply.cut_at is not None

    def _head(self, reply: Reply, length: int) -> bytes:
        headers = {"Date": self.date_time_string(), "Cache-Control": "no-cache, no-store", **reply.headers}
        if reply.document is not None and reply.raw is None:
            headers.setdefault("Content-Type", "application/json")
        if reply.status != 204:
            headers["Content-Length"] = str(length)
        if reply.close:
            headers["Connection"] = "close"
            self.close_connection = True
        lines = [
            f"HTTP/1.1 {reply.status} {phrase(reply.status)}",
            *(f"{k}: {v}" for k, v in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _reset(self) -> None:
        """Close the connection so that the client sees a reset, not an end."""
        self.close_connection = True
        try:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.server.connections.discard(self.connection)
            os.close(self.connection.detach())
        except OSError:
            return


def phrase(status: int) -> str:
    """The reason that goes with a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def spoilt(reply: Reply, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The body as it is sent: with a bit flipped, cut off, or in small pieces."""
    left = reply.length if reply.cut_at is None else reply.cut_at
    if reply.source is None and reply.cut_at is None:
        left = sys.maxsize
    step = reply.trickle[0] if reply.trickle else CHUNK
    flip = reply.flip
    for chunk in chunks:
        data = bytes([chunk[0] ^ 1]) + chunk[1:] if flip else chunk
        flip = False
        data = data[:left]
        left -= len(data)
        for place in range(0, len(data), step):
            yield data[place : place + step]


class Server(ThreadingHTTPServer):
    """The emulator's socket; it listens on the loopback interface only."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, emulator: BoxEmulator, port: int) -> None:
        self.emulator = emulator
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Note a failure of the emulator itself; a connection that ends is none."""
        if not isinstance(sys.exc_info()[1], OSError):
            self.emulator.errors.append(traceback.format_exc())

    def drop_connections(self) -> None:
        """End all open connections."""
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


# --- The emulator -------------------------------------------------------------------------------------------


@dataclass(eq=False)
class BoxEmulator(Account):
    """Box on a port of this machine. A context manager; `start` and `stop` do the same by hand."""

    port: int = 0
    log: Path | None = None
    quiet: bool = True

    requests: list[Request] = field(default_factory=list, init=False)
    violations: list[str] = field(default_factory=list, init=False)
    known_deviations: list[str] = field(default_factory=list, init=False)
    reply_violations: list[str] = field(default_factory=list, init=False)
    errors: list[str] = field(default_factory=list, init=False)
    validator: SpecValidator | None = field(default_factory=SpecValidator.load, init=False)
    _counter: FaultCounter = field(default_factory=FaultCounter, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _server: Server | None = field(default=None, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def __enter__(self) -> BoxEmulator:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> BoxEmulator:
        """Begin to serve; `url` is known afterwards."""
        parent = str(self.data_dir) if self.data_dir else None
        if self.data_dir:
            self.data_dir.mkdir(parents=True, exist_ok=True)
        self._work = Path(tempfile.mkdtemp(prefix="box-emulator-", dir=parent))
        self._server = Server(self, self.port)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving, cut all connections, and remove the contents unless a data directory was given."""
        self._stopping.set()
        if self._server and self._thread:
            self._server.shutdown()
            self._server.server_close()
            self._server.drop_connections()
            self._thread.join()
        if not self.data_dir:
            shutil.rmtree(self._work, ignore_errors=True)

    def pause(self, seconds: float) -> None:
        """Sleep, unless the emulator stops."""
        self._stopping.wait(seconds)

    def calls(self, api: str) -> list[Request]:
        """The requests to one operation so far."""
        return [request for request in list(self.requests) if request.api == api]

    # One request

    def handle(self, call: Call) -> Reply:
        """The answer to a request. Raises Hangup when there is to be none."""
        if call.path == "/_emulator":
            return Reply(200, self.state())
        record = self._record(call)
        try:
            reply = self._answer(call, record)
            record.status = reply.status
            if isinstance(reply.document, dict):
                record.code = str(reply.document.get("code") or reply.document.get("error") or "")
            return reply
        finally:
            record.seconds = time.monotonic() - record.started
            self._write_log(record)

    def _record(self, call: Call) -> Request:
        headers = {name: "***" if name == "authorization" else text for name, text in call.headers.items()}
        record = Request(call.method, call.path, call.query, headers, "", call.body.length, time.monotonic())
        with self.lock:
            self.requests.append(record)
        return record

    def _answer(self, call: Call, record: Request) -> Reply:
        try:
            route = find_route(call)
        except BoxError as error:
            self.violations.append(f"{call.method} {call.path}: is no operation of Box")
            return error.reply()
        call.route, record.api = route, route.api
        if self.latency_s:
            self.pause(self.latency_s)
        if "chunked" in call.headers.get("transfer-encoding", "").lower():
            reply = error_reply(411, message="content-length header was required, but not provided")
            reply.close = True
            return reply
        return self._faulty(call, route, record)

    def _faulty(self, call: Call, route: Route, record: Request) -> Reply:
        """Act, or do what a fault says instead."""
        try:
            fault = self._counter.take(self.faults, call, route.api)
            if fault is None:
                reply = self._act(call, route)
                self._validate_reply(route, reply)
                return reply
            record.fault = fault["action"]
            return ACTIONS[fault["action"]](self, call, fault, lambda: self._act(call, route))
        except (Hangup, ClientGone, ConnectionError):
            raise
        except Exception:
            self.errors.append(traceback.format_exc())
            return error_reply(500, "emulator_failed")
        finally:
            self._validate(call, route)

    def _act(self, call: Call, route: Route) -> Reply:
        try:
            if not route.public:
                authorize(self, call)
            return route.operation(self, call)
        except BoxError as error:
            return error.reply()
        except Refused as refused:
            return refused.reply

    def _validate(self, call: Call, route: Route) -> None:
        for text in self.validator.request(call, route) if self.validator else ():
            full = f"{route.api}: {text}"
            known = any(mark in full for mark in SDK_DEVIATIONS)
            (self.known_deviations if known else self.violations).append(full)

    def _validate_reply(self, route: Route, reply: Reply) -> None:
        if self.validator:
            self.reply_violations += [f"{route.api}: {text}" for text in self.validator.reply(route, reply)]

    # What others may know

    def state(self) -> Json:
        """What is here, for those who started the emulator as a program."""
        with self.lock:
            files = [
                {"name": f.name, "id": f.id, "size": f.size, "sha1": f.sha1, "versions": len(f.versions)}
                for f in self.files().values()
            ]
            return {
                "files": files,
                "sessions": list(self.sessions),
                "requests": [f"{r.api} {r.status} {r.code}".strip() for r in self.requests],
                "validated": self.validator is not None,
                "violations": self.violations,
                "known_deviations": self.known_deviations,
                "reply_violations": self.reply_violations,
                "errors": self.errors,
            }

    def _write_log(self, record: Request) -> None:
        if not self.log and self.quiet:
            return
        if not self.quiet:
            what = f"{record.api or '?'} {record.method} {record.path}"
            why = " ".join(filter(None, (record.code, record.fault)))
            print(f"{record.status} {record.seconds * 1000:.0f}ms {what} {why}", file=sys.stderr)
        if self.log:
            with self.lock, self.log.open("a") as stream:
                print(json.dumps(vars(record)), file=stream)


# --- The program --------------------------------------------------------------------------------------------


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    defaults = Account()
    account = f"{defaults.client_id} / {defaults.client_secret}, enterprise {defaults.enterprise_id}"
    parser = argparse.ArgumentParser("tests.emulators.box", description=f"A Box emulator. Its app: {account}.")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--folder-id", default=defaults.folder_id)
    parser.add_argument("--part-size", type=int, default=defaults.part_size, metavar="BYTES")
    parser.add_argument("--latency-ms", type=float, default=0.0, metavar="N", help="before every answer")
    parser.add_argument("--max-upload-size", type=int, default=defaults.max_upload_size, metavar="BYTES")
    parser.add_argument("--faults", type=Path, metavar="FILE.json", help="a list of faults")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where contents are kept; a temporary directory")
    parser.add_argument("--log", type=Path, metavar="FILE", help="one JSON object a request")
    parser.add_argument("--quiet", action="store_true", help="no line per request on stderr")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    given = arguments(argv)
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    emulator = BoxEmulator(
        folder_id=given.folder_id,
        part_size=given.part_size,
        latency_s=given.latency_ms / 1000,
        max_upload_size=given.max_upload_size,
        faults=json.loads(given.faults.read_text()) if given.faults else [],
        data_dir=given.data,
        port=given.port,
        log=given.log,
        quiet=given.quiet,
    )
    with emulator:
        print(f"listening on {emulator.url}", flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
