"""What several test files share: filling emulators, reading what is there, running scripts in other ways."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from box_sdk_gen import (
    BaseUrls,
    BoxCCGAuth,
    BoxClient,
    BoxRetryStrategy,
    CCGConfig,
    NetworkSession,
    TimeoutConfig,
)

from restore import RestoreExit
from tests.conftest import (
    KEYSPACE,
    ROOT,
    Cli,
    Result,
)
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import (
    DataApiEmulator,
    Reply,
    Request,
)
from tests.sabotage import SabotagedCli

WRITES = {"createCollection", "insertMany", "deleteCollection", "findOneAndReplace", "deleteMany", "deleteOne"}
OFF = {"lexical": {"enabled": False}, "rerank": {"enabled": False}}
PING_KEY = "3f2b8c1e-7d54-4f0a-9a55-0a1b2c3d4e5f"
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount and be another user")
STEPS = (
    "mkdir backups",
    "create .lock",
    "mkdir .probe",
    "create probe",
    "write probe",
    "fsync probe",
    "fsync .probe",
    "replace .probe",
    "unlink probe",
    "rmdir .probe.renamed",
    "mkdir .NAME.inprogress",
    "create docs.jsonl.gz",
    "write docs.jsonl.gz",
    "fsync docs.jsonl.gz",
    "create other.jsonl.gz",
    "write other.jsonl.gz",
    "fsync other.jsonl.gz",
    "create manifest.json",
    "write manifest.json",
    "fsync manifest.json",
    "create SHA256SUMS",
    "write SHA256SUMS",
    "fsync SHA256SUMS",
    "fsync .NAME.inprogress",
    "replace .NAME.inprogress",
    "fsync backups",
)
"""All that a backup of two small collections does to the file system, in order."""
Json = Any
DENY = {"indexing": {"deny": ["n"]}}
OTHER_DENY = {"indexing": {"deny": ["m"]}}
DOCS = [f'{{"_id":"d{number:03}","n":{number}}}' for number in range(110)]
FEW = DOCS[:30]
CHANGED = '{"_id":"d001","n":"changed since"}'
EXTRA = '{"_id":"extra","n":1}'
OTHER = ['{"_id":"o1"}', '{"_id":{"$uuid":"0193e1a6-71b7-7c4e-9d55-1f5f0a1b2c3d"},"n":0.125}']
Documents = list[str]


def manifest_of(snapshot: Path) -> dict[str, Any]:
    """A snapshot's manifest."""
    return dict(json.loads((snapshot / "manifest.json").read_text()))


def lines_of(snapshot: Path, collection: str) -> list[str]:
    path = snapshot / f"{collection}.jsonl.gz"
    return gzip.decompress(path.read_bytes()).decode().split("\n")[:-1] if path.exists() else []


def wait_for(condition: object, timeout_s: float = 20) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def assert_ends_in_time(running: subprocess.Popen[str], number: signal.Signals, code: int) -> None:
    """A process that gets a signal ends within 10 seconds, with that code."""
    started = time.monotonic()
    running.send_signal(number)
    running.communicate(timeout=12)
    assert running.returncode == code
    assert time.monotonic() - started < 10


def writes(emulator: DataApiEmulator) -> list[str]:
    """The writing commands that reached a server."""
    return [request.command for request in emulator.requests if request.command in WRITES]


def same_documents(one: DataApiEmulator, other: DataApiEmulator, names: list[str] | None = None) -> None:
    """The stored texts are equal, byte for byte, whatever the order of a scan, and no index is missing."""
    missing = other.missing_indexes(KEYSPACE)
    assert missing == {}, missing
    assert names or one.collections(KEYSPACE) == other.collections(KEYSPACE)
    for name in names or one.collections(KEYSPACE):
        assert sorted(one.documents(KEYSPACE, name)) == sorted(other.documents(KEYSPACE, name)), name


def snapshot_of(source: DataApiEmulator, cli: Cli, *arguments: object) -> Path:
    """Back up and return the snapshot."""
    assert cli.backup(source, *arguments).code == 0
    return cli.snapshots()[-1]


class Monitor:
    """A check on healthchecks.io, on loopback: notes each ping's path and body, answers as it is told."""

    def __init__(self) -> None:
        self.pings: list[tuple[str, str]] = []
        self.statuses: list[int] = []  # of the next answers; 200 when it is empty; 0: none at all
        monitor = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                monitor.pings.append((self.path.removeprefix(f"/ping/{PING_KEY}"), body))
                status = monitor.statuses.pop(0) if monitor.statuses else 200
                if status:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    monitor.ended.wait(60)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.ended = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/ping/{PING_KEY}"

    def paths(self) -> list[str]:
        """What was pinged since the last call, without the check's own address."""
        found = [path for path, _ in self.pings]
        self.pings.clear()
        return found


def watched(cli: SabotagedCli, **options: object) -> dict[str, object]:
    """The sabotage that counts steps."""
    return {"steps": {"directory": str(cli.directory), "log": f"{cli.directory}.steps", **options}}


class Api:
    """Sends commands to an emulator and gives back what its JSON says."""

    def __init__(self, emulator: DataApiEmulator, prefix: str = "/v1") -> None:
        self.emulator = emulator
        self.prefix = prefix
        self.client = httpx.Client(base_url=emulator.url, headers={"Token": emulator.token}, timeout=10)

    def post(self, body: Json, collection: str = "", timeout: float = 10) -> httpx.Response:
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        path = "/".join(part for part in (self.prefix, KEYSPACE, collection) if part)
        headers = {"Content-Type": "application/json"}
        return self.client.post(path, content=content, headers=headers, timeout=timeout)

    def __call__(self, body: Json, collection: str = "") -> Json:
        return self.post(body, collection).json()

    def create(self, name: str, **options: Json) -> None:
        assert self({"createCollection": {"name": name, "options": options}}) == {"status": {"ok": 1}}

    def insert(self, collection: str, *documents: Json, **options: Json) -> Json:
        return self({"insertMany": {"documents": list(documents), "options": options}}, collection)

    def page(self, collection: str, state: str | None = None, **find: Json) -> tuple[list[Json], str | None]:
        options = {"pageState": state} if state else {}
        answer = self({"find": {"projection": {"*": True}, **find, "options": options}}, collection)
        return answer["data"]["documents"], answer["data"]["nextPageState"]

    def scan(self, collection: str, state: str | None = None) -> list[list[Json]]:
        pages = []
        while True:
            documents, state = self.page(collection, state)
            pages.append(documents)
            if state is None:
                return pages


def codes(answer: Json) -> list[str]:
    return [error["errorCode"] for error in answer.get("errors", [])]


def ids(pages: list[list[Json]]) -> list[Json]:
    return [document["_id"] for page in pages for document in page]


def connect(box: BoxEmulator, attempts: int = 1, read_ms: int = 30_000, **config: Any) -> BoxClient:
    """A client as the product makes it; with one attempt it does not retry."""
    subject = config or {"enterprise_id": box.enterprise_id}
    given = {"client_id": box.client_id, "client_secret": box.client_secret, **subject}
    session = NetworkSession(
        base_urls=BaseUrls(base_url=box.url, upload_url=box.upload_url, oauth_2_url=f"{box.url}/oauth2"),
        timeout_config=TimeoutConfig(connection_timeout_ms=5000, read_timeout_ms=read_ms),
        retry_strategy=BoxRetryStrategy(
            max_attempts=attempts, max_retries_on_exception=min(2, attempts - 1), retry_base_interval=0.01
        ),
    )
    return BoxClient(auth=BoxCCGAuth(CCGConfig(**given)), network_session=session)


def fill(emulator: DataApiEmulator, name: str, documents: int | Documents, definition: object = None) -> None:
    """Make a collection behind the server's back, with these documents, or with that many small ones.

    Without a definition a number gets the defaults, and a list DENY.
    """
    if isinstance(documents, int):
        emulator.create(KEYSPACE, name, definition)  # type: ignore[arg-type]
        documents = [f'{{"_id":"d{number:05}","n":{number}}}' for number in range(documents)]
    else:
        emulator.create(KEYSPACE, name, DENY if definition is None else definition)  # type: ignore[arg-type]
    for document in documents:
        emulator.put(KEYSPACE, name, document)


def before(emulator: DataApiEmulator, command: str, act: Callable[[], object]) -> None:
    """Do something before the first request of a command is answered."""
    reply_to, acts = emulator.reply_to, iter([act])

    def reply(request: Request) -> Reply:
        if f'"{command}"'.encode() in request.body[:60]:
            next(acts, lambda: None)()
        return reply_to(request)

    emulator.reply_to = reply  # type: ignore[method-assign]


def make_kind(emulator: DataApiEmulator, kind: str) -> None:
    """`docs`, a collection or a table, with three documents or rows."""
    if kind == "collection":
        fill(emulator, "docs", 3)
    else:
        emulator.tables.create(KEYSPACE, "docs", {"id": "text"}, ["id"])
        emulator.tables.fill(KEYSPACE, "docs", 3)


def swap_kind(emulator: DataApiEmulator, was: str) -> None:
    """`docs` becomes a table if it was a collection, and the reverse."""
    if was == "table":
        emulator.tables.drop(KEYSPACE, "docs")
    else:
        with emulator.database.lock:
            emulator.database.keyspaces[KEYSPACE].pop("docs")
    make_kind(emulator, "collection" if was == "table" else "table")


def held(emulator: DataApiEmulator) -> dict[str, tuple[object, Documents]]:
    """All that a server holds: each collection's definition and documents."""
    return {
        name: (options, sorted(emulator.documents(KEYSPACE, name)))
        for name, options in emulator.collections(KEYSPACE).items()
    }


def inserted(emulator: DataApiEmulator) -> list[dict[str, Any]]:
    """The documents that insertMany brought to a server, as they were sent."""
    bodies = [json.loads(request.body) for request in emulator.requests if request.command == "insertMany"]
    return [document for body in bodies for document in body["insertMany"]["documents"]]


def assert_untouched(emulator: DataApiEmulator, before: object, result: Result, code: int) -> None:
    """It was refused with that code and a reason, no writing command came, and all is as it was."""
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    assert re.search(r"[a-z]{3}", result.err)
    assert writes(emulator) == []
    assert held(emulator) == before


def assert_left_as_it_was(emulator: DataApiEmulator, before: object, result: Result) -> None:
    """It was refused with 4 before the first document; what had been tried is not there any more."""
    assert result.code == RestoreExit.TARGET_REFUSED, result.err
    assert "Traceback" not in result.err
    assert not {"insertMany", "findOneAndReplace"} & set(writes(emulator))
    assert held(emulator) == before


def journals(cli: Cli) -> list[Path]:
    """The journals beside the snapshots."""
    return sorted(cli.backups.glob(".restore-*.journal"))


class Typed:
    """A command on a terminal of its own, where somebody types."""

    def __init__(self, cli: Cli, command: list[str]) -> None:
        self._master, slave = pty.openpty()
        environ = {**cli.environ, "TERM": "dumb"}
        self._process = subprocess.Popen(
            command, cwd=cli.directory, env=environ, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)

    def answer(self, typed: str) -> Result:
        """Type everything at once; what is not asked for is ignored."""
        os.write(self._master, typed.encode())
        shown = b""
        try:
            while piece := os.read(self._master, 4096):
                shown += piece
        except OSError:  # the terminal was closed at the other end
            pass
        os.close(self._master)
        return Result(self._process.wait(60), shown.decode(), shown.decode())


def on_a_terminal(cli: Cli, emulator: DataApiEmulator, typed: str, *arguments: object) -> Result:
    """Run a restore on a terminal, where somebody types."""
    return Typed(cli, cli.command("restore.py", "--api-endpoint", emulator.url, *arguments)).answer(typed)


def by_id(emulator: DataApiEmulator, name: str) -> dict[str, dict[str, Any]]:
    """The documents of a collection by their ids."""
    documents = [json.loads(text, parse_float=str) for text in emulator.documents(KEYSPACE, name)]
    return {document["_id"]: document for document in documents}


def by_id_of(texts: Documents) -> dict[str, dict[str, Any]]:
    """Documents by their ids."""
    return {document["_id"]: document for document in map(json.loads, texts)}


def install_command(command: str, directory: Path) -> Path:
    """Write the file that pip, pipx and uv install for an entry point of pyproject.toml."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts[command].partition(":")
    path = directory / command
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"from {module} import {function}\nif __name__ == '__main__':\n    sys.exit({function}())\n"
    )
    path.chmod(0o755)
    return path
