"""Fixtures: emulators, a clean environment, and a network that ends at this machine."""

from __future__ import annotations

import base64
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator

ROOT = Path(__file__).resolve().parent.parent
CATALOG = ROOT / "tests" / "data" / "catalog"
TOKEN = "AstraCS:tests-only:0123456789abcdef/+=&"
KEYSPACE = "default_keyspace"
BOX_SECRET = "box-tests-only:0123456789abcdef/+=&"


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection but loopback raises: a test that forgets its emulator must not reach a real service."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to connect to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _no_secret_anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test runs may print no secret, and whatever is left in its directory may hold none."""
    communicate = subprocess.Popen.communicate

    def checked(self: subprocess.Popen[Any], *arguments: Any, **named: Any) -> tuple[Any, Any]:
        outputs = communicate(self, *arguments, **named)
        for output in outputs:
            assert_no_secret(output.decode(errors="replace") if isinstance(output, bytes) else output or "")
        return outputs

    monkeypatch.setattr(subprocess.Popen, "communicate", checked)  # subprocess.run uses it too
    directory = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if directory:
        assert_no_secret_in(directory)


@pytest.fixture
def source() -> Iterator[DataApiEmulator]:
    """A Data API emulator with nothing in it but the keyspace."""
    with DataApiEmulator(token=TOKEN) as emulator:
        yield emulator


@pytest.fixture
def target() -> Iterator[DataApiEmulator]:
    """A second, empty Data API emulator."""
    with DataApiEmulator(token=TOKEN) as emulator:
        yield emulator


@pytest.fixture
def box() -> Iterator[BoxEmulator]:
    """A Box emulator with an empty folder; afterwards it must have seen nothing that Box's specification forbids."""
    with BoxEmulator(retry_after="0", client_secret=BOX_SECRET) as emulator:
        assert emulator.validator, "nothing would be validated"
        yield emulator
    assert emulator.violations == []
    assert emulator.reply_violations == []
    assert emulator.errors == []


for _number, _action in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(_number) is signal.SIG_IGN:  # under nohup, or in the background: what is started inherits it
        signal.signal(_number, _action)


@dataclass
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


class Cli:
    """Runs the scripts as a user would: another process, a directory of its own, a clean environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environ = {
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "ASTRA_DB_APPLICATION_TOKEN": TOKEN,
            "ASTRA_DB_ENVIRONMENT": "hcd",
            "BACKUP_RETRY_BUDGET": "5",
        }

    def with_box(self, box: BoxEmulator) -> Cli:
        """The same, with Box's variables set to an emulator."""
        self.environ |= {
            "BOX_CLIENT_ID": box.client_id,
            "BOX_CLIENT_SECRET": box.client_secret,
            "BOX_ENTERPRISE_ID": box.enterprise_id,
            "BOX_FOLDER_ID": box.folder_id,
            "BOX_BASE_URL": box.url,
            "BOX_UPLOAD_URL": box.upload_url,
        }
        return self

    @property
    def backups(self) -> Path:
        """Where snapshots go by default."""
        return self.directory / "backups"

    def snapshots(self) -> list[Path]:
        """What is in the output directory under a name that is not hidden, by name."""
        return sorted(path for path in self.backups.iterdir() if not path.name.startswith("."))

    def command(self, script: str, *arguments: object) -> list[str]:
        """The command line."""
        return [sys.executable, str(ROOT / script), *map(str, arguments)]

    def run(self, script: str, *arguments: object, **environ: str) -> Result:
        """Run to the end; a secret in what it says is a failure of every test."""
        done = subprocess.run(
            self.command(script, *arguments),
            cwd=self.directory,
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert_no_secret(done.stdout + done.stderr)
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, script: str, *arguments: object, **environ: str) -> subprocess.Popen[str]:
        """Start without waiting."""
        return subprocess.Popen(
            self.command(script, *arguments),
            cwd=self.directory,
            env=self.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def backup(self, emulator: DataApiEmulator, *arguments: object, **environ: str) -> Result:
        """astra_backup.py against an emulator, without Box."""
        return self.run("astra_backup.py", "--no-box", "--api-endpoint", emulator.url, *arguments, **environ)

    def stored(self, command: str, *arguments: object, **environ: str) -> Result:
        """A command of snapshots.py."""
        return self.run("snapshots.py", command, *arguments, **environ)

    def restore(self, emulator: DataApiEmulator, *arguments: object, **environ: str) -> Result:
        """restore.py into an emulator."""
        return self.run("restore.py", "--api-endpoint", emulator.url, *arguments, **environ)


WARM = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import astra_backup, restore, snapshots
from tests.preload import preload
preload()
for line in sys.stdin:
    directory, environ, sys.argv, outputs = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environ)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(outputs, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        module = {"restore.py": restore, "astra_backup.py": astra_backup, "snapshots.py": snapshots}[sys.argv[0]]
        astra_backup.run_command(module.main)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""A process that has imported what both scripts need and forks for each command: a tenth of the time of a new one."""


class WarmCli(Cli):
    """Runs the scripts as processes of their own that need not import everything anew."""

    warm: ClassVar[subprocess.Popen[str] | None] = None

    def run(self, script: str, *arguments: object, **environ: str) -> Result:
        """Run to the end; a secret in what it says is a failure of every test."""
        outputs = [self.directory.with_name(f"{self.directory.name}.{name}") for name in ("out", "err")]
        argv = [script, *map(str, arguments)]
        request = [str(self.directory), self.environ | environ, argv, [str(path) for path in outputs]]
        code = int(self._ask(json.dumps(request)))
        out, err = (path.read_text() for path in outputs)
        assert_no_secret(out + err)
        return Result(code, out, err)

    def _ask(self, request: str) -> str:
        if WarmCli.warm is None:
            WarmCli.warm = subprocess.Popen(
                [sys.executable, "-c", WARM, str(ROOT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        process = WarmCli.warm
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            return process.stdout.readline()
        except BaseException:  # a command that hangs must not hold up the next test
            os.killpg(process.pid, signal.SIGKILL)
            WarmCli.warm = None
            raise


def warm_cli(tmp_path_factory: pytest.TempPathFactory, name: str) -> Cli:
    """The scripts for what several tests share, which `cli` is not for."""
    return WarmCli(tmp_path_factory.mktemp(name))


@functools.cache
def secret_forms() -> tuple[str, ...]:
    """The ways in which a secret could leak: as it is, in a URL, in JSON, in base64, alone or inside something else."""
    forms = []
    for secret in (TOKEN, BOX_SECRET):
        forms += [secret, urllib.parse.quote(secret), urllib.parse.quote(secret, safe=""), json.dumps(secret)[1:-1]]
        for offset in range(3):  # of the secret in the text that was encoded
            text = base64.b64encode(b"x" * offset + secret.encode()).decode()[4 if offset else 0 : -4]
            forms += [text, text.replace("+", "-").replace("/", "_")]
    return tuple(dict.fromkeys(forms))


def assert_no_secret(text: str) -> None:
    """Fail if the token or Box's secret stands in a text."""
    for form in secret_forms():
        assert form not in text, "a secret leaked"


def assert_no_secret_in(directory: Path) -> None:
    """Fail if a file somewhere in a directory holds the token or Box's secret."""
    for path in directory.rglob("*"):
        if path.is_file() and path.stat().st_size < 50_000_000:
            content = path.read_bytes()
            assert not any(form.encode() in content for form in secret_forms()), f"a secret leaked into {path}"


@pytest.fixture(scope="module")
def clockwork() -> Iterator[None]:
    """One process for all of a module's runs under another clock: `tests.clockwork.run_at`."""
    from tests.clockwork import RUNNING, Clockwork

    with Clockwork() as running:
        RUNNING.append(running)
        yield
    RUNNING.clear()


@pytest.fixture
def cli(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cli]:
    """The scripts; afterwards no file they wrote may hold a secret. With the mark `cold` each has an interpreter."""
    if request.node.get_closest_marker("cold"):
        yield Cli(tmp_path)
    else:
        (tmp_path / "cwd").mkdir()
        yield WarmCli(tmp_path / "cwd")
    assert_no_secret_in(tmp_path)


@pytest.fixture(scope="module")
def origin() -> Iterator[DataApiEmulator]:
    """The server that the snapshot of `kept` comes from."""
    from tests.support import DOCS, OTHER, fill

    with DataApiEmulator(token=TOKEN) as emulator:
        fill(emulator, "docs", DOCS)
        fill(emulator, "other", OTHER)
        yield emulator


@pytest.fixture(scope="module")
def _made(origin: DataApiEmulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support import snapshot_of

    return snapshot_of(origin, warm_cli(tmp_path_factory, "origin"))


@pytest.fixture
def kept(cli: Cli, _made: Path) -> Path:
    """A snapshot of `docs` and `other` where `cli` looks for it."""
    return Path(shutil.copytree(_made, cli.backups / _made.name))


def load_catalog(emulator: DataApiEmulator) -> None:
    """Fill an emulator with the real collections of tests/data/catalog."""
    emulator.load(CATALOG)
