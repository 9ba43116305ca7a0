"""The demo: back up an emulated database to Box, check the snapshot, restore the one in Box, compare. `make demo`.

It uses the two scripts as a person would, by their command lines. What it says about the result it finds out by
itself: it reads both databases over HTTP and the snapshot from its files, with nothing but the standard library and
docs/FORMAT.md. Box is an emulator too.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from tests.emulators.box import Account

ROOT = Path(__file__).resolve().parent.parent
CATALOG = "tests/data/catalog"
SNAPSHOTS = Path("demo-backups")
KEYSPACE = "default_keyspace"
TOKEN = "AstraCS:demo"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DemoError(Exception):
    """A step of the demo failed."""


# ======================================================================================================================
# Commands and emulators
# ======================================================================================================================


def say(text: str = "") -> None:
    """Print a line at once, so that it stands before what the next command prints."""
    print(text, flush=True)


def run(*command: str, environ: Mapping[str, str] | None = None, directory: Path = ROOT) -> None:
    """Show a command as it would be typed, run it, and fail if it fails."""
    say(f"$ {shlex.join(command)}")
    typed = [sys.executable, *command[1:]] if command[0] == "python" else command
    done = subprocess.run(typed, cwd=directory, env={**base_environ(), **(environ or {})}, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise DemoError(f"it ended with exit code {done.returncode}")
    say()


def base_environ() -> dict[str, str]:
    """What commands need of our environment; nothing that could lead them to a real database."""
    kept = ("PATH", "HOME", "TERM", "LANG", "LC_ALL", "COLUMNS")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"PYTHONDONTWRITEBYTECODE": "1"}


@contextlib.contextmanager
def emulator(name: str, *options: str) -> Iterator[str]:
    """An emulator in a process of its own, on a free port; yields its URL."""
    command = [sys.executable, "-m", f"tests.emulators.{name}", "--port", "0", "--quiet", *options]
    process = subprocess.Popen(command, cwd=ROOT, env=base_environ(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise DemoError(f"the emulator {name} did not start")
        yield line.removeprefix("listening on ").strip()
    finally:
        process.terminate()
        process.wait(10)


def export(variables: Mapping[str, str]) -> None:
    """Show variables as they would be set; Box's secret is not shown."""
    for name, value in variables.items():
        say(f"$ export {name}={'…' if name == 'BOX_CLIENT_SECRET' else shlex.quote(value)}")


# ======================================================================================================================
# An independent look at the result
# ======================================================================================================================


@dataclass(frozen=True)
class Number:
    """A number as its text, so that every digit counts."""

    text: str


@dataclass(frozen=True)
class Content:
    """How many documents, and one digest over all of them, whatever their order."""

    documents: int
    digest: str


def parse(text: str | bytes) -> Any:
    """JSON with numbers as their text."""
    return json.loads(text, parse_int=Number, parse_float=Number)


def content(documents: Iterable[Any]) -> Content:
    """Count and digest parsed documents: the sum of the SHA-256 of each, keys sorted, digits as they stand."""
    count = total = 0
    for document in documents:
        text = json.dumps(document, sort_keys=True, default=lambda number: {"a number": number.text})
        total = (total + int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")) % 2**256
        count += 1
    return Content(count, f"{total:064x}")


def post(url: str, command: dict[str, Any]) -> Any:
    """Send a command to the Data API."""
    headers = {"Token": TOKEN, "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(command).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return parse(response.read())


def collections_of(url: str) -> list[str]:
    """Names of a database's collections."""
    names = post(f"{url}/v1/{KEYSPACE}", {"findCollections": {}})["status"]["collections"]
    return sorted(names)


def documents_of(url: str, collection: str) -> Iterator[Any]:
    """All documents of a collection, page by page: countDocuments stops at 1,000."""
    options: dict[str, Any] = {}
    while True:
        command = {"find": {"filter": {}, "projection": {"*": True}, "options": options}}
        data = post(f"{url}/v1/{KEYSPACE}/{collection}", command)["data"]
        yield from data["documents"]
        if data["nextPageState"] is None:
            return
        options = {"pageState": data["nextPageState"]}


def documents_in(snapshot: Path, data_file: str) -> Iterator[Any]:
    """All documents of a data file, as the server holds them: docs/FORMAT.md in a few lines."""
    with gzip.open(snapshot / data_file, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            document = unwrap(parse(line))
            if document.pop("$backupVector", None) == "binary":
                floats = [float(number.text) for number in document["$vector"]]
                packed = struct.pack(f">{len(floats)}f", *floats)
                document["$vector"] = {"$binary": base64.b64encode(packed).decode()}
            yield document


def unwrap(value: Any) -> Any:
    """Turn `$backupType` values back into the server's."""
    if isinstance(value, list):
        return [unwrap(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$backupType" in value:
        return UNWRAP[value["$backupType"]](value["value"])
    return {name: unwrap(item) for name, item in value.items()}


def milliseconds(moment: str) -> Number:
    """An ISO time as milliseconds since 1970."""
    return Number(str((datetime.fromisoformat(moment) - EPOCH) // timedelta(milliseconds=1)))


UNWRAP: dict[str, Callable[[Any], Any]] = {
    "datetime": lambda value: {"$date": milliseconds(value)},
    "timestamp_ms": lambda value: {"$date": value},
    "uuid": lambda value: {"$uuid": value},
    "objectid": lambda value: {"$objectId": value},
    "bytes_b64": lambda value: {"$binary": value},
    "decimal": Number,
    "wire": parse,
}


def compare(source: str, snapshot: Path, restored: str) -> None:
    """Print a row for each collection; fail unless source, snapshot and restored database hold the same."""
    manifest = json.loads((snapshot / "manifest.json").read_text())
    files = {row["name"]: row["data_file"] for row in manifest["collections"]}
    names = collections_of(source)
    if not names or names != sorted(files) or names != collections_of(restored):
        raise DemoError("the source, the snapshot and the restored database have different collections")
    form = "{:<18}{:>10}{:>10}{:>10}  {}"
    say(form.format("collection", "source", "snapshot", "restored", "digest of the documents"))
    is_equal = True
    for name in names:
        here = content(documents_of(source, name))
        kept = content(documents_in(snapshot, files[name]))
        back = content(documents_of(restored, name))
        verdict = f"equal  {here.digest[:16]}" if here == kept == back else "DIFFERENT"
        is_equal = is_equal and here == kept == back
        say(form.format(name, here.documents, kept.documents, back.documents, verdict))
    say()
    if not is_equal:
        raise DemoError("documents were lost or changed")


# ======================================================================================================================
# The demo
# ======================================================================================================================


def snapshots() -> set[Path]:
    """The complete snapshots that are there."""
    return set((ROOT / SNAPSHOTS).glob("[0-9]*_*[0-9]"))


def shown(path: Path) -> str:
    """A path as a person at the root of the repository would type it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def show_tree(snapshot: Path) -> None:
    """Print a snapshot's files and their sizes."""
    say(f"{shown(snapshot)}/")
    for path in sorted(snapshot.iterdir()):
        say(f"  {path.name:<28}{path.stat().st_size:>10,} bytes")
    say()


def database_variables(url: str) -> dict[str, str]:
    """What both scripts need to know of the database."""
    return {
        "ASTRA_DB_ENVIRONMENT": "hcd",
        "ASTRA_DB_API_ENDPOINT": url,
        "ASTRA_DB_KEYSPACE": KEYSPACE,
        "ASTRA_DB_APPLICATION_TOKEN": TOKEN,
        "BACKUP_OUTPUT_DIR": str(SNAPSHOTS),
    }


def box_variables(url: str) -> dict[str, str]:
    """What both scripts need to know of Box; the last two only because it is an emulator."""
    return {
        "BOX_CLIENT_ID": Account.client_id,
        "BOX_CLIENT_SECRET": Account.client_secret,
        "BOX_ENTERPRISE_ID": Account.enterprise_id,
        "BOX_FOLDER_ID": Account.folder_id,
        "BOX_BASE_URL": url,
        "BOX_UPLOAD_URL": f"{url}/api",
    }


def demo() -> None:
    """Run all steps."""
    token = ("--token", TOKEN)
    with (
        emulator("data_api", *token, "--load", CATALOG) as source,
        emulator("data_api", *token) as empty,
        emulator("box") as box,
    ):
        variables = {**database_variables(source), **box_variables(box)}
        say("A database with four collections, an empty one and Box are running, all emulated; no account is needed.\n")
        export(variables)
        before = snapshots()
        run("python", "astra_backup.py", environ=variables)
        (snapshot,) = snapshots() - before
        show_tree(snapshot)

        say(f"$ cd {shown(snapshot)}")
        run("sha256sum", "-c", "SHA256SUMS", directory=snapshot)
        say("$ cd -")
        run("python", "restore.py", "--verify-only", environ=variables)
        run("python", "restore.py", "--from-box", "--list", environ=variables)
        run("python", "restore.py", "--from-box", "--api-endpoint", empty, environ=variables)

        say("Read again by the demo itself, from both databases and from the snapshot's files:\n")
        compare(source, snapshot, empty)
        say(f"The snapshot is in {shown(snapshot)}; make clean removes it.")


def main() -> NoReturn:
    """Run the demo; exit 0 if everything went well."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        demo()
    except (DemoError, OSError, ValueError, KeyError) as error:
        sys.exit(f"The demo failed: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


if __name__ == "__main__":
    main()
