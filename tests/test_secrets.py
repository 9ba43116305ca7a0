"""No secret is printed or written, whatever happens; what is written is for its owner only, whatever the umask.

Every test of this suite looks at what its commands print, and at every file they leave: see tests/conftest.py. Here are
the places that were made for leaking: echoing servers, tracebacks, bugs, odd secrets, secrets in the wrong place.
"""

from __future__ import annotations

import base64
import json
import stat
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BOX_SECRET, KEYSPACE, TOKEN, assert_no_secret, secret_forms
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.sabotage import SabotagedCli

FORMS = {
    "clear": lambda secret: secret,
    "url": lambda secret: urllib.parse.quote(secret, safe=""),
    "url-path": urllib.parse.quote,
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "json": lambda secret: json.dumps(secret)[1:-1],
}


@pytest.fixture(scope="module", autouse=True)
def _end_of_forks() -> Iterator[None]:
    """The process that forks ends with the module."""
    yield
    SabotagedCli.stop()


@pytest.fixture
def cli(tmp_path: Path) -> SabotagedCli:
    """The two scripts; what they print and leave is looked at."""
    (tmp_path / "cwd").mkdir()
    return SabotagedCli(tmp_path / "cwd")


def put_some(emulator: DataApiEmulator) -> None:
    """A collection with a few documents."""
    emulator.create(KEYSPACE, "docs")
    for number in range(3):
        emulator.put(KEYSPACE, "docs", f'{{"_id":{number}}}')


@pytest.mark.parametrize("form", FORMS)
def test_the_tests_notice_a_leak(form: str) -> None:
    """The search that all tests do finds a secret in every form."""
    for secret in (TOKEN, BOX_SECRET):
        with pytest.raises(AssertionError):
            assert_no_secret(f"before {FORMS[form](secret)} after")


@pytest.mark.parametrize("prefix", ["", "a", "ab", "abc:"])
def test_the_tests_notice_a_leak_inside_base64(prefix: str) -> None:
    """A secret that was encoded together with something else, as HTTP's Basic does, is found too."""
    with pytest.raises(AssertionError):
        assert_no_secret(base64.b64encode(f"{prefix}{TOKEN}:and more".encode()).decode())
    assert all(len(form) > 20 for form in secret_forms())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("script", ["astra_backup.py", "restore.py"])
def test_a_server_that_echoes_the_token(
    source: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, script: str, form: str
) -> None:
    """A server says the token, in every form, in its errors: `***` in the output, the manifest, the rejects."""
    put_some(source)
    echo = f"no such token: {FORMS[form](TOKEN)}"
    fault = {"action": "error", "errorCode": "INVALID_QUERY", "message": echo, "times": None}
    if script == "astra_backup.py":
        source.faults = [{"command": "find", "collection": "docs", **fault}]
        result = cli.backup(source, "-v", "--json")
        assert "***" in (cli.snapshots()[0] / "manifest.json").read_text()
        assert "***" in result.out
    else:
        assert cli.backup(source).code == 0
        target.faults = [{"command": "insertMany", "collection": "docs", **fault}]
        result = cli.restore(target, "-v")
        assert "***" in (cli.backups / "rejects-docs.jsonl").read_text()
    assert result.code == 2, result.err


@pytest.mark.parametrize("name", ["DataApi.list_collections", "make_target"])
@pytest.mark.parametrize("script", ["astra_backup.py", "restore.py"])
def test_a_bug_whose_message_has_the_token(
    source: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli, script: str, name: str
) -> None:
    """With -v an uncaught exception is printed with its traceback, and without the token that is in its message."""
    put_some(source)
    assert cli.backup(source).code == 0
    module = {"astra_backup.py": "astra_backup", "restore.py": "restore"}[script]
    cli.sabotage = {"bug": {"module": module, "name": name, "message": f"headers: Token {TOKEN}, Box {BOX_SECRET}"}}
    run = cli.backup if script == "astra_backup.py" else cli.restore
    result = run(target, "-v", "--json", BOX_CLIENT_SECRET=BOX_SECRET)
    assert result.code == 1
    assert "Traceback" in result.err
    assert "***" in result.err
    assert "***" in result.out


@pytest.mark.parametrize(
    "secret", ["""quo"te'back\\slash and more""", "with space/and+plus=and&amp", "ü-ñ-漢字-secret"]
)
def test_an_odd_secret_is_hidden_in_every_form(source: DataApiEmulator, cli: SabotagedCli, secret: str) -> None:
    """Secrets with quotes, backslashes, spaces or other scripts are hidden in clear, in URLs, in base64 and in JSON."""
    for form in (*FORMS.values(), repr, json.dumps, urllib.parse.quote_plus):
        cli.sabotage = {"bug": {"module": "astra_backup", "name": "make_target", "message": f"<{form(secret)}>"}}
        result = cli.backup(source, "-v", "--json", BOX_CLIENT_SECRET=secret)
        assert result.code == 1
        for other in (secret, *(form(secret).strip("'\"") for form in FORMS.values()), repr(secret)[1:-1]):
            assert other not in result.err + result.out
            assert json.dumps(other)[1:-1] not in result.err + result.out


@pytest.mark.parametrize(
    "arguments",
    [
        [TOKEN],
        ["--token", TOKEN],
        ["--api-endpoint", TOKEN],
        ["--api-endpoint", f"http://token:{TOKEN}@127.0.0.1:1"],
        ["--api-endpoint", f"http://{urllib.parse.quote(TOKEN, safe='')}@127.0.0.1:1"],
        ["--environment", TOKEN],
        ["--keyspace", TOKEN, "--api-endpoint", "http://127.0.0.1:1"],
        ["--collection", TOKEN, "--api-endpoint", "http://127.0.0.1:1"],
        ["--workers", TOKEN],
        ["--output-dir", f"/dev/null/{TOKEN}", "--api-endpoint", "http://127.0.0.1:1"],
    ],
    ids=lambda arguments: arguments[0] if len(arguments) < 3 else "-".join(arguments[::2]),
)
@pytest.mark.parametrize("script", ["astra_backup.py", "restore.py"])
def test_a_token_in_the_wrong_place(cli: SabotagedCli, script: str, arguments: list[str]) -> None:
    """A token on the command line, while the variable has another, is a mistake that is not repeated in the output."""
    more = ["--no-box"] if script == "astra_backup.py" else []
    environ = {"ASTRA_DB_APPLICATION_TOKEN": "AstraCS:another"}
    cli.backups.mkdir()
    cli.sabotage = {"speed": 100.0}
    assert cli.run(script, "-v", "--json", *more, *arguments, **environ).code == 1


@pytest.mark.parametrize("url", ["http://user:pass-word-9@127.0.0.1:1", "http://user@127.0.0.1:1"])
def test_an_endpoint_with_a_password_is_refused(cli: SabotagedCli, url: str) -> None:
    """A password in the endpoint would end up in the manifest: exit 1, and it is not repeated."""
    result = cli.run("astra_backup.py", "-v", "--json", "--no-box", "--api-endpoint", url)
    assert result.code == 1
    assert "pass-word-9" not in result.err + result.out
    assert "password" in result.err


@pytest.mark.parametrize(
    "url", ["http://[", "http://[::1", "http://127.0.0.1:99999", "http://127.0.0.1:x", "http://:80"]
)
@pytest.mark.parametrize("script", ["astra_backup.py", "restore.py"])
def test_an_endpoint_that_is_none_is_no_bug(cli: SabotagedCli, script: str, url: str) -> None:
    """An endpoint that cannot be parsed is exit 1 and a sentence."""
    cli.backups.mkdir()
    result = cli.run(script, *(["--no-box"] if script == "astra_backup.py" else []), "--api-endpoint", url)
    assert result.code == 1
    assert "This is a bug" not in result.err
    assert "not an http(s) URL" in result.err or script == "restore.py"


def test_a_token_in_a_file_that_cannot_be_read(cli: SabotagedCli, source: DataApiEmulator) -> None:
    """A token file that is binary, or a token with line breaks inside, is refused without being shown."""
    path = cli.directory / "token"
    for content in (TOKEN.encode() + b"\xff\xfe", f"{TOKEN}\n{TOKEN}\n".encode(), f"{TOKEN}\x00".encode()):
        path.write_bytes(content)
        environ = {"ASTRA_DB_APPLICATION_TOKEN": "", "ASTRA_DB_APPLICATION_TOKEN_FILE": "token"}
        result = cli.backup(source, "-v", "--json", **environ)
        assert result.code == 1
        assert "This is a bug" not in result.err
    path.unlink()


BOX_TROUBLES: list[dict[str, Any]] = [
    {"api": "token", "action": "status", "status": 401, "times": None},
    {"api": "token", "action": "html", "times": None},
    {"api": "upload", "action": "status", "status": 403, "times": None},
    {"api": "*", "action": "reset", "times": None},
    {"api": "folder", "action": "list_json", "times": None},
]


@pytest.mark.parametrize("fault", BOX_TROUBLES, ids=lambda fault: f"{fault['api']}-{fault['action']}")
def test_nothing_of_box_is_told(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli, fault: dict[str, Any]
) -> None:
    """With -v and a Box that fails, neither the secret nor a token that Box gave is in the output or the files."""
    source.create(KEYSPACE, "docs")
    box.faults = [fault]
    cli.with_box(box)
    cli.sabotage = {"speed": 20.0}
    upload = cli.run("astra_backup.py", "-v", "--json", "--api-endpoint", source.url, BACKUP_RETRY_BUDGET="2")
    check = cli.run("astra_backup.py", "-v", "--check", "--api-endpoint", source.url, BACKUP_RETRY_BUDGET="2")
    listed = cli.run("restore.py", "-v", "--from-box", "--list", BACKUP_RETRY_BUDGET="2")
    assert upload.code in (0, 3)
    said = "".join(result.out + result.err for result in (upload, check, listed))
    assert not [token for token in box._tokens if token in said]


# ------------------------------------------------------------------------------------------------ file modes


def modes(directory: Path) -> dict[str, int]:
    """The mode of each file and directory below a directory."""
    return {str(path.relative_to(directory)): stat.S_IMODE(path.lstat().st_mode) for path in directory.rglob("*")}


def assert_private(directory: Path) -> None:
    """Directories are 0700 and files 0600."""
    for path in directory.rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.lstat().st_mode) == wanted, path


def test_whatever_is_written_is_private(
    source: DataApiEmulator, target: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli
) -> None:
    """Under umask 000: snapshots, directories above them, the lock, journals, rejects, downloads, differences."""
    put_some(source)
    cli.sabotage = {"umask": 0}
    cli.with_box(box)
    deep = ("--output-dir", "a/b/c")
    assert cli.run("astra_backup.py", "--api-endpoint", source.url, *deep).code == 0
    source.faults = [{"command": "find", "collection": "docs", "action": "status", "status": 401, "times": None}]
    assert cli.run("astra_backup.py", "--no-box", "--api-endpoint", source.url, *deep).code == 2
    assert cli.run("restore.py", "--from-box", "--keep-download", "--verify-only", "--output-dir", "d/e").code == 0
    target.faults = [{"command": "insertMany", "collection": "docs", "action": "status", "status": 413, "times": None}]
    result = cli.restore(target, "--from-box", *deep)
    assert result.code == 2, result.err
    result = cli.restore(target, "--compare", "--differences", "differences", *deep)
    assert result.code == 5, result.err
    written = set(modes(cli.directory))
    assert {"a/b/c/rejects-docs.jsonl", "differences", "a/b/c/.lock"} <= written
    assert any(name.endswith(".zip") for name in written)
    assert any(name.endswith(".journal") for name in written)
    assert_private(cli.directory)


@pytest.mark.parametrize("number", [5, 8, 11, 14])
def test_what_a_killed_run_leaves_is_private(source: DataApiEmulator, cli: SabotagedCli, number: int) -> None:
    """A run that is killed under umask 000 leaves nothing that others may read."""
    put_some(source)
    log = f"{cli.directory}.steps"
    cli.sabotage = {
        "umask": 0,
        "steps": {"directory": str(cli.directory), "log": log, "at": number, "how": "kill after"},
    }
    assert cli.backup(source).code == -9
    assert modes(cli.directory)
    assert_private(cli.directory)
