"""Encrypted data files: others' age reads ours and we read theirs, no damage gets through, no private key gets out.

tests/data/frozen-encrypted holds two snapshots of the same documents that are restored for ever: `20261126_195820` as a
backup left it, and `20261126_195823`, whose data files the `age` command of Debian encrypted (version 1.1.1). The keys
beside them are for tests only: nothing else was ever encrypted to them. `documents.txt` and `definitions.json` come
from the emulator of the server, not from a snapshot.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyrage
import pytest

from tests.conftest import KEYSPACE, ROOT, Cli, Result, load_catalog
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.sabotage import SabotagedCli
from tests.trials import damage

FROZEN = ROOT / "tests" / "data" / "frozen-encrypted"
FROZEN_SHA256 = "10d566e33831f1d229fcebfedb2428c00fef443165e1fd04d38419ed6f6ad44b"
SNAPSHOTS = {"ours": FROZEN / "20261126_195820", "by the age command": FROZEN / "20261126_195823"}
KEYS = FROZEN / "keys"
IDENTITIES = ("x25519.txt", "ssh_ed25519", "ssh_rsa")
RECIPIENTS_FILE = KEYS / "recipients.txt"
RECIPIENTS = [line for line in RECIPIENTS_FILE.read_text().splitlines() if line and not line.startswith("#")]
RECIPIENT = RECIPIENTS[0]
KEY = KEYS / "x25519.txt"
STRANGER = KEYS / "stranger.txt"
PASSPHRASE = "for tests only"

needs_age = pytest.mark.skipif(not shutil.which("age"), reason="the age command is not installed")


def frozen_sha256() -> str:
    """A digest of the names and bytes of all that is frozen."""
    paths = sorted(path for path in FROZEN.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(FROZEN)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture(autouse=True)
def _never_written_again() -> Iterator[None]:
    assert frozen_sha256() == FROZEN_SHA256
    yield
    assert frozen_sha256() == FROZEN_SHA256


@pytest.fixture(scope="module", autouse=True)
def _end_of_forks() -> Iterator[None]:
    """The process that forks ends with the module."""
    yield
    SabotagedCli.stop()


@pytest.fixture(params=SNAPSHOTS)
def frozen(request: pytest.FixtureRequest, cli: Cli) -> Path:
    """A copy of each frozen snapshot, where a restore may write beside it."""
    cli.backups.mkdir()
    source = SNAPSHOTS[request.param]
    return Path(shutil.copytree(source, cli.backups / source.name))


def frozen_documents() -> dict[str, list[str]]:
    """The documents of the frozen snapshots as the server held them, in the order of their texts."""
    found: dict[str, list[str]] = {name: [] for name in json.loads((FROZEN / "definitions.json").read_bytes())}
    for line in (FROZEN / "documents.txt").read_bytes().decode().split("\n")[:-1]:
        name, text = line.split("\t")
        found[name].append(text)
    return {name: sorted(texts) for name, texts in found.items()}


def all_documents(emulator: DataApiEmulator) -> dict[str, list[str]]:
    """What a server holds."""
    return {name: sorted(emulator.documents(KEYSPACE, name)) for name in emulator.collections(KEYSPACE)}


def put_some(emulator: DataApiEmulator, count: int = 3) -> None:
    """A collection with a few documents."""
    emulator.create(KEYSPACE, "docs")
    for number in range(count):
        emulator.put(KEYSPACE, "docs", f'{{"_id":{number},"text":"in clear {number}"}}')


def encrypted(source: DataApiEmulator, cli: Cli, *arguments: object) -> Path:
    """An encrypted snapshot of a few documents."""
    if not source.collections(KEYSPACE):
        put_some(source)
    result = cli.backup(source, "--encrypt-to", RECIPIENT, *arguments)
    assert result.code == 0, result.err
    return cli.snapshots()[-1]


def manifest_of(snapshot: Path) -> Any:
    """The manifest."""
    return json.loads((snapshot / "manifest.json").read_bytes())


def reseal(snapshot: Path, manifest: Any) -> None:
    """Write a manifest that says of the data files what they are now, and SHA256SUMS; content digests stay."""
    for record in manifest["collections"]:
        content = (snapshot / record["data_file"]).read_bytes()
        record["data_sha256"], record["data_size_bytes"] = hashlib.sha256(content).hexdigest(), len(content)
    (snapshot / "manifest.json").write_text(json.dumps(manifest))
    names = [*(record["data_file"] for record in manifest["collections"]), "manifest.json"]
    sums = [f"{hashlib.sha256((snapshot / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (snapshot / "SHA256SUMS").write_text("".join(sums))


def assert_refused(result: Result, target: DataApiEmulator) -> None:
    """Exit 3, no bug, and nothing was asked of the target."""
    assert result.code == 3, result.err
    assert "Traceback" not in result.err
    assert "This is a bug" not in result.err
    assert [request.command for request in target.requests if request.command in damage.WRITES] == []


# ------------------------------------------------------------------------------------------------ others' age, and ours


@pytest.mark.parametrize("identity", IDENTITIES)
def test_frozen_snapshots_come_back_to_the_digit(
    frozen: Path, target: DataApiEmulator, cli: Cli, identity: str
) -> None:
    """What we encrypted once, and what the age command did, restores with each of the three kinds of keys."""
    result = cli.restore(target, frozen, "--yes", "--identity", KEYS / identity)
    assert result.code == 0, result.err
    assert all_documents(target) == frozen_documents()
    assert target.collections(KEYSPACE) == json.loads((FROZEN / "definitions.json").read_bytes())


@needs_age
@pytest.mark.parametrize("compress", ["--compress", "--no-compress"])
def test_the_age_command_reads_our_files(source: DataApiEmulator, cli: Cli, compress: str) -> None:
    """`age -d` gives, with each key, the very bytes that a backup in clear has in its files."""
    load_catalog(source)
    assert cli.backup(source, compress).code == 0
    assert cli.backup(source, compress, "--encrypt-to", RECIPIENTS_FILE).code == 0
    plain, sealed = cli.snapshots()
    for path in sealed.glob("*.age"):
        for identity in IDENTITIES:
            key = cli.directory / identity
            shutil.copy(KEYS / identity, key)
            key.chmod(0o600)
            done = subprocess.run(["age", "-d", "-i", key, path], capture_output=True, check=True)
            content = (plain / path.stem).read_bytes()
            lines = [gzip.decompress(each) if path.stem.endswith(".gz") else each for each in (done.stdout, content)]
            assert sorted(lines[0].split(b"\n")) == sorted(lines[1].split(b"\n")), path.name


@needs_age
def test_we_read_a_large_file_of_the_age_command(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """A data file of several megabytes that the age command encrypted in place of ours restores."""
    source.create(KEYSPACE, "docs", {"indexing": {"deny": ["*"]}})
    for number in range(40):
        source.put(KEYSPACE, "docs", f'{{"_id":{number},"text":"{os.urandom(60_000).hex()}"}}')
    snapshot = encrypted(source, cli)
    (path,) = snapshot.glob("docs*")
    content = pyrage.decrypt(path.read_bytes(), [damage.IDENTITY])
    subprocess.run(["age", "-r", RECIPIENT, "-o", path], input=content, check=True)
    reseal(snapshot, manifest_of(snapshot))
    result = cli.restore(target, "--identity", KEY)
    assert result.code == 0, result.err
    assert all_documents(target) == all_documents(source)


@pytest.mark.parametrize("compress", ["--compress", "--no-compress"])
def test_a_snapshot_goes_there_and_back(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, compress: str
) -> None:
    """Real collections, encrypted to three recipients, restore to the digit and compare as equal with any key."""
    load_catalog(source)
    result = cli.backup(source, compress, "--encrypt-to", RECIPIENTS_FILE)
    assert result.code == 0, result.err
    result = cli.restore(target, "--yes", "--identity", KEYS / "ssh_ed25519")
    assert result.code == 0, result.err
    assert all_documents(target) == all_documents(source)
    assert cli.restore(target, "--compare", BACKUP_IDENTITY_FILE=str(KEYS / "ssh_rsa")).code == 0


def test_what_an_outsider_sees(source: DataApiEmulator, cli: Cli) -> None:
    """File names, the manifest with the public keys as they were given, sums that hold; no document in clear."""
    put_some(source)
    result = cli.backup(source, "--encrypt-to", RECIPIENT, "--encrypt-to", RECIPIENTS[1])
    assert result.code == 0, result.err
    (snapshot,) = cli.snapshots()
    assert {path.name for path in snapshot.iterdir()} == {"docs.jsonl.gz.age", "manifest.json", "SHA256SUMS"}
    manifest = manifest_of(snapshot)
    assert manifest["encryption"] == {"format": "age", "recipients": RECIPIENTS[:2]}
    (record,) = manifest["collections"]
    content = (snapshot / record["data_file"]).read_bytes()
    assert (record["data_sha256"], record["data_size_bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=snapshot, check=True)
    assert b"clear" not in b"".join(path.read_bytes() for path in snapshot.iterdir())
    assert content.startswith(b"age-encryption.org/v1\n")
    assert content.count(b"-> X25519 ") == 2  # one of them is the run's own


def test_the_same_documents_have_the_same_digest_in_clear(source: DataApiEmulator, cli: Cli) -> None:
    """The content digest is of the lines, so that an encrypted snapshot can be compared with a plain one."""
    encrypted(source, cli)
    assert cli.backup(source).code == 0
    sealed, plain = map(manifest_of, cli.snapshots())
    assert "encryption" not in plain
    assert sealed["collections"][0]["content_digest"] == plain["collections"][0]["content_digest"]


# ------------------------------------------------------------------------------------------------ recipients


def test_recipients_come_from_options_files_and_the_variable(source: DataApiEmulator, cli: Cli) -> None:
    """A file has comments and empty lines, the variable commas; one that is given twice counts once."""
    put_some(source)
    (cli.directory / "to.txt").write_text(f"# of the team\r\n\r\n{RECIPIENTS[1]}\r\n  {RECIPIENT}\r\n")
    keys = [" ".join(name.split()[:2]) for name in RECIPIENTS]
    given: list[tuple[list[str], dict[str, str], list[str]]] = [
        (["--encrypt-to", "to.txt", "--encrypt-to", RECIPIENT], {}, [RECIPIENTS[1], RECIPIENT]),
        ([], {"BACKUP_ENCRYPT_TO": f"{RECIPIENT}, to.txt"}, [RECIPIENT, RECIPIENTS[1]]),
        ([], {"BACKUP_ENCRYPT_TO": " , ".join(keys)}, keys),
        (["--encrypt-to", RECIPIENT], {"BACKUP_ENCRYPT_TO": "to.txt"}, [RECIPIENT]),
    ]
    for arguments, environ, wanted in given:
        result = cli.backup(source, *arguments, **environ)
        assert result.code == 0, result.err
        assert manifest_of(cli.snapshots()[-1])["encryption"]["recipients"] == wanted
    (cli.directory / ".env").write_text(f"BACKUP_ENCRYPT_TO={RECIPIENT}\n")
    assert cli.backup(source).code == 0
    assert manifest_of(cli.snapshots()[-1])["encryption"]["recipients"] == [RECIPIENT]


MISTAKES = {
    "empty": ("", "empty value"),
    "a space": (" ", "empty value"),
    "mistyped": (RECIPIENT[:-1] + "q", RECIPIENT[:-1] + "q"),
    "cut off": (RECIPIENT[:20], RECIPIENT[:20]),
    "of a plugin": ("age1yubikey1qwerty", "age1yubikey1qwerty"),
    "SSH, cut off": ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC", "'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC'"),
    "SSH, another kind": ("ssh-dss AAAAB3NzaC1kc3M=", "ssh-dss"),
    "a file that is not there": ("no-such-file", "'no-such-file'"),
    "a directory": ("/tmp", "'/tmp'"),
    "no recipients": ("/dev/null", "/dev/null"),
    "an endless file": ("/dev/zero", "/dev/zero"),
    "binary": (sys.executable, sys.executable),
    "two in one": (f"{RECIPIENT} {RECIPIENT}", "neither a recipient nor a file"),
    "two of SSH, with a comma": (",".join([RECIPIENTS[1]] * 2), "more than one recipient"),
    "two of SSH, with a comma and comments": (f"{RECIPIENTS[1]} a@b,{RECIPIENTS[1]} c@d", "more than one recipient"),
    "two of SSH, on two lines": (f"{RECIPIENTS[1]}\n{RECIPIENTS[1]}", "more than one recipient"),
    "age in the comment of SSH": (f"{RECIPIENTS[1]} a@b;{RECIPIENT}", "more than one recipient"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_recipient_that_is_none(source: DataApiEmulator, cli: Cli, mistake: str) -> None:
    """Exit 1, naming it, before anything is read or made, also when others are good; --check finds it, too."""
    value, named = MISTAKES[mistake]
    result = cli.backup(source, "--encrypt-to", RECIPIENT, "--encrypt-to", value, "--json")
    assert result.code == 1
    assert named in result.err
    assert result.json["exit_code"] == 1
    assert source.requests == []
    assert not cli.backups.exists()
    check = cli.backup(source, "--check", "--encrypt-to", value)
    assert check.code == 1
    assert re.search("^✗ encryption", check.out, re.MULTILINE)


def test_a_line_of_a_file_that_is_no_recipient(source: DataApiEmulator, cli: Cli) -> None:
    """The file and the number of the line are named."""
    (cli.directory / "to.txt").write_text(f"# two\n{RECIPIENT}\nage1wrong\n")
    result = cli.backup(source, BACKUP_ENCRYPT_TO="to.txt")
    assert result.code == 1
    assert "line 3 of to.txt is not a recipient" in result.err
    assert cli.backup(source, BACKUP_ENCRYPT_TO=",").code == 1
    assert cli.backup(source, BACKUP_ENCRYPT_TO=f"{RECIPIENT},").code == 1
    os.mkfifo(cli.directory / "pipe")
    assert "not a regular file" in cli.backup(source, BACKUP_ENCRYPT_TO="pipe").err
    assert source.requests == []


def test_a_private_key_in_the_place_of_a_public_one(source: DataApiEmulator, cli: Cli) -> None:
    """Said, and never repeated, whether the value, the variable or a file holds it."""
    private = STRANGER.read_text().split()[-1]
    ssh_lines = (KEYS / "ssh_ed25519").read_text().splitlines()[1:-1]
    for value in (private, private.lower(), STRANGER, KEYS / "ssh_ed25519", f" {private}"):
        result = cli.backup(source, "-v", "--json", "--encrypt-to", value)
        assert result.code == 1
        assert "private key" in result.err
        assert private.lower() not in (result.err + result.out).lower()
        assert not [line for line in ssh_lines if line in result.err + result.out]
    result = cli.backup(source, "-v", "--json", BACKUP_ENCRYPT_TO=f"{RECIPIENT},x{private}")
    assert result.code == 1
    assert private not in result.err + result.out


def test_check_says_to_whom(source: DataApiEmulator, cli: Cli) -> None:
    """--check names the recipients, or says that data files are not encrypted."""
    put_some(source)
    rows = cli.backup(source, "--check", "--json", "--encrypt-to", RECIPIENTS_FILE).json["checks"]
    (detail,) = [row["detail"] for row in rows if row["name"] == "encryption"]
    assert RECIPIENT in detail
    assert RECIPIENTS[1] in detail
    assert "ssh-rsa" in detail
    assert "off: data files are not encrypted" in cli.backup(source, "--check").out


# ------------------------------------------------------------------------------------------------ with and without


MODES = [[], ["--dry-run"], ["--compare"], ["--drill"], ["--show", "1"], ["--on-existing", "overwrite", "--yes"]]


@pytest.mark.parametrize("identity", [[], ["--identity", STRANGER]], ids=["none", "another"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode[0] if mode else "restore")
def test_without_the_right_identity(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, mode: list[str], identity: list[Any]
) -> None:
    """All that reads documents is refused with 3, the recipients named, before a request is sent."""
    encrypted(source, cli, "--encrypt-to", RECIPIENTS[1])
    result = cli.restore(target, *mode, *identity, "--json")
    assert_refused(result, target)
    assert target.requests == []
    assert RECIPIENT in result.err
    assert RECIPIENTS[1] in result.err
    assert "--identity" in result.json["hint"]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode[0] if mode else "restore")
def test_with_the_right_identity(source: DataApiEmulator, target: DataApiEmulator, cli: Cli, mode: list[str]) -> None:
    """All that reads documents works with one identity of several that fits."""
    encrypted(source, cli)
    if mode == ["--compare"]:
        put_some(target)
    result = cli.restore(target, *mode, "--identity", STRANGER, "--identity", KEY)
    assert result.code == 0, result.err
    if mode[:1] == ["--show"]:
        assert result.out == '{"_id":1,"text":"in clear 1"}\n'
    if mode in ([], MODES[-1]):
        assert all_documents(target) == all_documents(source)


def test_verify_only_with_and_without(source: DataApiEmulator, cli: Cli) -> None:
    """Without an identity each file's digest is checked, and it is said that nothing was looked into; 0 both times."""
    snapshot = encrypted(source, cli)
    looked = cli.run("restore.py", "--verify-only", "--json", "--identity", KEY)
    assert (looked.code, looked.json["looked_inside"], looked.json["warnings"]) == (0, True, [])
    result = cli.run("restore.py", "--verify-only", "--json")
    assert (result.code, result.json["looked_inside"], result.json["documents"]) == (0, False, 3)
    assert "its contents were not checked" in result.json["warnings"][0]
    assert "the contents were not checked (no --identity)" in cli.run("restore.py", "--verify-only").out
    assert cli.run("restore.py", "--verify-only", "--identity", STRANGER).code == 3
    path = snapshot / "docs.jsonl.gz.age"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert cli.run("restore.py", "--verify-only").code == 3


IDENTITY_MISTAKES = {
    "not there": lambda cli: "no-such-file",
    "a directory": lambda cli: cli.directory,
    "endless": lambda cli: "/dev/zero",
    "empty": lambda cli: "/dev/null",
    "public": lambda cli: RECIPIENTS_FILE,
    "binary": lambda cli: SNAPSHOTS["ours"] / "settings.jsonl.gz.age",
}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (RECIPIENT, "line 2 is a public key"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJustText somebody@host", "line 2 is a public key"),
        ("no key at all", "line 2 is not an age private key"),
        (STRANGER.read_text().split()[-1][:-1], "line 2 is not an age private key"),
    ],
    ids=["age", "ssh", "text", "cut off"],
)
def test_a_bad_line_of_an_identity_file(cli: Cli, line: str, says: str) -> None:
    """The file and the line are named, and what belongs there; nothing of the line is printed."""
    (cli.directory / "key.txt").write_text(f"# created\n{line}\n")
    result = cli.run("restore.py", "--verify-only", "--identity", "key.txt", "-v")
    assert result.code == 1
    assert f"--identity key.txt: {says}: an identity file holds private keys (AGE-SECRET-KEY-…)." in result.err
    assert line[:20] not in result.out + result.err


@pytest.mark.parametrize("mistake", IDENTITY_MISTAKES)
def test_an_identity_file_that_is_none(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, mistake: str
) -> None:
    """Exit 1, the file named, and nothing was read or written."""
    encrypted(source, cli)
    path = IDENTITY_MISTAKES[mistake](cli)
    result = cli.restore(target, "--identity", path)
    assert result.code == 1, result.err
    assert f"--identity {path}" in result.err
    assert target.requests == []


def test_an_identity_does_not_hurt_a_plain_snapshot(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """The variable may be set for good: a snapshot in clear restores, and no passphrase is asked for."""
    put_some(source)
    assert cli.backup(source).code == 0
    result = cli.restore(target, BACKUP_IDENTITY_FILE=str(KEYS / "ssh_ed25519_protected"))
    assert result.code == 0, result.err
    assert all_documents(target) == all_documents(source)


# ------------------------------------------------------------------------------------------------ passphrases


def at_terminal(cli: Cli, answer: str, *arguments: object) -> tuple[int, str]:
    """Run restore.py at a terminal of its own and type an answer to each passphrase that is asked for."""
    command = cli.command("restore.py", *arguments)
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(cli.directory)
        os.execve(command[0], command, cli.environ)
    said, answered = b"", 0
    with contextlib.suppress(OSError):  # the terminal goes with the process
        while chunk := os.read(master, 4096):
            said += chunk
            if len(re.findall(rb"assphrase[^\n]*: $", said)) and said.count(b"assphrase") > answered:
                answered = said.count(b"assphrase")
                os.write(master, answer.encode() + b"\n")
    os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode()


PROTECTED = ["x25519_protected.age"] + ["ssh_ed25519_protected"] * bool(shutil.which("ssh-keygen"))


@pytest.mark.parametrize("name", PROTECTED)
def test_a_passphrase_is_asked_for_at_a_terminal(source: DataApiEmulator, cli: Cli, name: str) -> None:
    """The right one opens the key, another is exit 1; no passphrase and no key is shown or on a command line."""
    encrypted(source, cli, "--encrypt-to", RECIPIENTS[1])
    shims = cli.directory / "shims"
    shims.mkdir()
    if real := shutil.which("ssh-keygen"):
        shim = f'#!/bin/sh\necho "$@" >>"{cli.directory}/arguments"\nexec {real} "$@"\n'
        (shims / "ssh-keygen").write_text(shim)
        (shims / "ssh-keygen").chmod(0o755)
    cli.environ["PATH"] = f"{shims}:{cli.environ['PATH']}"
    code, said = at_terminal(cli, PASSPHRASE, "--verify-only", "-v", "--identity", KEYS / name)
    assert code == 0, said
    assert "whole" in said
    wrong, complaint = at_terminal(cli, "another", "--verify-only", "-v", "--identity", KEYS / name)
    assert wrong == 1, complaint
    assert name in complaint
    arguments = cli.directory / "arguments"
    text = said + complaint + (arguments.read_text() if arguments.exists() else "")
    assert PASSPHRASE not in text
    assert "AGE-SECRET-KEY" not in text
    assert "PRIVATE KEY" not in text


@pytest.mark.parametrize("name", ["x25519_protected.age", "ssh_ed25519_protected"])
def test_a_passphrase_without_a_terminal(source: DataApiEmulator, target: DataApiEmulator, cli: Cli, name: str) -> None:
    """Exit 1 with what to do, and nothing hangs."""
    encrypted(source, cli)
    result = cli.restore(target, "--identity", KEYS / name)
    assert result.code == 1
    assert name in result.err
    assert "terminal" in result.err
    assert target.requests == []


# ------------------------------------------------------------------------------------------------ damage


def test_150_random_damages_are_refused_or_harmless(tmp_path: Path) -> None:
    """Each kind of damage that plain snapshots are tried with, on encrypted ones; `restore.py` itself for some."""
    trials = damage.run_trials(range(150), 6, 20260616, tmp_path, is_encrypted=True)
    assert [trial for trial in trials if trial.is_finding] == []
    verdicts = Counter(trial.verdict for trial in trials)
    assert verdicts["refused"] > 90
    assert verdicts["harmless"] > 1
    assert {trial.kind for trial in trials} == {*damage.KINDS, damage.ZIP_KIND}


def foreign(content: bytes) -> bytes:
    """Other documents, encrypted to the same recipient by somebody else."""
    lines = gzip.decompress(pyrage.decrypt(content, [damage.IDENTITY]))
    return pyrage.encrypt(gzip.compress(lines.replace(b"clear 1", b"other 1")), [damage.RECIPIENT])


def of_another_recipient(content: bytes) -> bytes:
    """The same documents, encrypted to somebody else only."""
    stranger = pyrage.x25519.Identity.from_str(STRANGER.read_text().split()[-1])
    return pyrage.encrypt(pyrage.decrypt(content, [damage.IDENTITY]), [stranger.to_public()])


def flipped(at: int) -> Any:
    """A bit turned over."""
    return lambda content: content[:at] + bytes([content[at] ^ 1]) + content[at:][1:]


FORGERIES: dict[str, Any] = {
    "foreign documents": foreign,
    "of another recipient": of_another_recipient,
    "in clear": lambda content: pyrage.decrypt(content, [damage.IDENTITY]),
    "armored": lambda content: pyrage.encrypt(
        pyrage.decrypt(content, [damage.IDENTITY]), [damage.RECIPIENT], armored=True
    ),
    "truncated": lambda content: content[:-20],
    "truncated within the header": lambda content: content[:80],
    "empty": lambda content: b"",
    "with something behind": lambda content: content + b"\0",
    "a flipped bit of the header": flipped(60),
    "a flipped bit of the data": flipped(-30),
    "a header without end": lambda content: b"age-encryption.org/v1\n-> X25519 a\n" + b"A" * 64 + b"\nB" * 200_000,
    "no documents": lambda content: pyrage.encrypt(gzip.compress(b""), [damage.RECIPIENT]),
    "not compressed": lambda content: pyrage.encrypt(b'{"_id":1}\n' * 3, [damage.RECIPIENT]),
}


@pytest.mark.parametrize(
    ("forgery", "form"),
    [*((name, "directory") for name in FORGERIES), ("foreign documents", "zip"), ("truncated", "zip")],
)
def test_a_forged_file_with_matching_sums(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, forgery: str, form: str
) -> None:
    """Size and SHA-256 were made to match everywhere, the content digest was not: refused before the first write."""
    snapshot = encrypted(source, cli)
    path = snapshot / "docs.jsonl.gz.age"
    path.write_bytes(FORGERIES[forgery](path.read_bytes()))
    reseal(snapshot, manifest_of(snapshot))
    wanted: Path = snapshot
    if form == "zip":
        wanted = cli.directory / f"{snapshot.name}.zip"
        with zipfile.ZipFile(wanted, "w") as archive:
            for each in snapshot.iterdir():
                archive.write(each, f"{snapshot.name}/{each.name}")
    assert_refused(cli.restore(target, wanted, "--identity", KEY), target)


def test_no_key_is_asked_for_where_none_would_help(source: DataApiEmulator, cli: Cli) -> None:
    """A file that is cut off within its header is damaged, whatever the identity."""
    snapshot = encrypted(source, cli)
    path = snapshot / "docs.jsonl.gz.age"
    path.write_bytes(path.read_bytes()[:100])
    result = cli.run("restore.py", "--verify-only", "--json")
    assert result.code == 3
    assert "Use another snapshot" in result.json["hint"]


def test_a_mix_of_both_is_refused(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """The manifest says encrypted and a file is not called so, or the other way round, or another format: refused."""
    good = encrypted(source, cli)
    plain_name = "docs.jsonl.gz"
    changes: dict[str, Any] = {
        "says plain": lambda manifest: manifest.pop("encryption"),
        "says another format": lambda manifest: manifest["encryption"].update(format="gpg"),
        "a plain name": lambda manifest: manifest["collections"][0].update(data_file=plain_name),
        "names nobody": lambda manifest: manifest.update(encryption=None),
    }
    for number, (change, apply) in enumerate(changes.items()):
        snapshot = Path(shutil.copytree(good, cli.backups / f"20260101_00000{number}"))
        manifest = manifest_of(snapshot)
        apply(manifest)
        if change == "a plain name":
            (snapshot / "docs.jsonl.gz.age").rename(snapshot / plain_name)
        reseal(snapshot, manifest)
        for arguments in (["--identity", KEY], ["--verify-only"]):
            assert_refused(cli.restore(target, snapshot, *arguments), target)
    assert cli.backup(source).code == 0
    snapshot = cli.snapshots()[-1]
    manifest = manifest_of(snapshot)
    manifest["encryption"] = {"format": "age", "recipients": [RECIPIENT]}
    reseal(snapshot, manifest)
    assert_refused(cli.restore(target, snapshot, "--identity", KEY), target)


# ------------------------------------------------------------------------------------------------ side by side


def test_encrypted_and_plain_side_by_side(source: DataApiEmulator, cli: Cli) -> None:
    """Without an identity: status, list, `latest`, the shrink alarm and retention take both kinds alike."""
    put_some(source, 10)
    assert cli.backup(source).code == 0
    encrypted(source, cli)
    status = cli.stored("status", "--no-box", "--json").json
    newest = cli.snapshots()[-1]
    assert status["newest"][0]["name"] == newest.name
    assert status["newest"][0]["documents"] == 10
    assert status["newest"][0]["size_bytes"] == sum(path.stat().st_size for path in newest.iterdir())
    listed = cli.run("restore.py", "--list", "--json").json["snapshots"]
    assert [(row["status"], row["is_encrypted"]) for row in listed] == [("complete", True), ("complete", False)]
    for command in (("restore.py", "--list"), ("snapshots.py", "list", "--no-box")):
        lines = cli.run(*command).out.splitlines()
        assert ["encrypted" in line[:80] for line in lines] == [True, False]
    assert json.loads(cli.run("restore.py", "--verify-only", "--json").out)["looked_inside"] is False
    source.delete_all(KEYSPACE, "docs")
    shrunk = cli.backup(source, "--encrypt-to", RECIPIENT)
    assert shrunk.code == 5, shrunk.err
    shutil.rmtree(cli.snapshots()[-1])
    put_some(source, 10)
    assert cli.backup(source, "--encrypt-to", RECIPIENT).code == 0
    kept = cli.stored("prune", "--no-box", "--keep-last", "1", "--json")
    assert kept.code == 0, kept.err
    assert len(kept.json["deleted"]["here"]) == 2
    assert len(cli.snapshots()) == 1


def test_box_holds_and_gives_back_what_is_encrypted(
    source: DataApiEmulator, target: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """Upload, the size that the list adds up, status and retention in Box; without an identity nothing is fetched."""
    cli.with_box(box)
    put_some(source)
    for _ in range(2):
        result = cli.run("astra_backup.py", "--api-endpoint", source.url, "--encrypt-to", RECIPIENT)
        assert result.code == 0, result.err
    rows = cli.run("restore.py", "--from-box", "--list", "--json").json["snapshots"]
    assert [row["status"] for row in rows] == ["complete", "complete"]
    status = cli.stored("status", "--json", "--api-endpoint", source.url)
    assert (status.code, status.json["newest"][1]["documents"]) == (0, 3)
    refused = cli.restore(target, "--from-box")
    assert_refused(refused, target)
    assert RECIPIENT in refused.err
    assert "Downloading" not in refused.err
    result = cli.restore(target, "--from-box", "--identity", KEY)
    assert result.code == 0, result.err
    assert all_documents(target) == all_documents(source)
    assert cli.run("restore.py", "--from-box", "--verify-only").code == 0
    pruned = cli.stored("prune", "--box-keep-last", "1", "--json")
    assert len(pruned.json["deleted"]["in Box"]) == 1, pruned.err


# ------------------------------------------------------------------------------------------------ the proof


FAILING_MACHINE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
fault = sys.argv.pop(1)
import io, astra_backup, pyrage
prove, encrypt = astra_backup.EncryptedFile.prove, pyrage.encrypt_io

def flipped(text, at):
    return text[:at] + bytes([text[at] ^ 1]) + text[at:][1:]

def damage_the_file(self, *arguments):
    path = self._file._path
    content = path.read_bytes()
    path.write_bytes(flipped(content, -20) if fault == "disk" else content[:-20] if fault == "cut" else b"")
    prove(self, *arguments)

def flip_a_bit(reader, *arguments):
    encrypt(io.BytesIO(flipped(reader.read(), -1)), *arguments)

if fault == "memory":
    pyrage.encrypt_io = flip_a_bit
else:
    astra_backup.EncryptedFile.prove = damage_the_file
astra_backup.run_command(astra_backup.main)
"""


@pytest.mark.parametrize("fault", ["disk", "cut", "gone", "memory"])
def test_what_does_not_decrypt_to_what_was_encrypted(source: DataApiEmulator, cli: Cli, fault: str) -> None:
    """A disk that changes or loses bytes, and bytes that change on their way to the encryption: a failed collection."""
    put_some(source, 30)
    command = [sys.executable, "-c", FAILING_MACHINE, str(ROOT), fault, "--no-box", "--encrypt-to", RECIPIENT]
    environ = cli.environ | {"ASTRA_DB_API_ENDPOINT": source.url}
    done = subprocess.run(command, cwd=cli.directory, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "does not read back as it was written" in done.stderr
    (snapshot,) = cli.snapshots()
    assert not list(snapshot.glob("docs*"))


def test_a_full_disk_is_named_as_one(source: DataApiEmulator, tmp_path: Path) -> None:
    """What the encrypting thread cannot write is the same error, with the same words, as without encryption."""
    source.create(KEYSPACE, "docs", {"indexing": {"deny": ["*"]}})
    for number in range(40):
        source.put(KEYSPACE, "docs", f'{{"_id":{number},"text":"{os.urandom(30_000).hex()}"}}')
    errors = []
    for name, options in (("plain", []), ("encrypted", ["--encrypt-to", RECIPIENT])):
        (tmp_path / name).mkdir()
        cli = SabotagedCli(tmp_path / name)
        cli.sabotage = {"limits": {"FSIZE": 200_000}}
        result = cli.backup(source, *options)
        errors.append((result.code, re.sub(r"\S*jsonl\S*", "FILE", result.err.splitlines()[-1].split(maxsplit=1)[1])))
        assert "EncryptError" not in result.err
    assert errors[0] == errors[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_no_snapshot(source: DataApiEmulator, cli: Cli, number: int) -> None:
    """While an encrypted backup waits for a page it ends as any other, and the next run is good."""
    put_some(source, 100)
    source.faults = [{"command": "find", "collection": "docs", "action": "silence", "times": None, "skip": 1}]
    running = cli.start("astra_backup.py", "--no-box", "--api-endpoint", source.url, "--encrypt-to", RECIPIENT)
    while not any(request.command == "find" for request in source.requests):
        assert running.poll() is None
    running.send_signal(number)
    running.communicate(timeout=20)
    assert running.returncode in (143, -9)
    assert cli.snapshots() == []
    source.faults = []
    encrypted(source, cli)
    assert cli.run("restore.py", "--verify-only", "--identity", KEY).code == 0


# ------------------------------------------------------------------------------------------------ secrets


def secret_bytes(identity: str) -> bytes:
    """The 32 bytes of an age identity: Bech32 without its checksum."""
    letters = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    number = 0
    for letter in identity.lower().removeprefix("age-secret-key-1")[:-6]:
        number = number << 5 | letters.index(letter)
    return (number >> 4).to_bytes(32, "big")  # 52 letters have 260 bits


def forms_of(identity: str) -> list[bytes]:
    """How an identity could leak: its text, its bytes, and both encoded."""
    raw = secret_bytes(identity)
    forms = [identity.encode(), identity.lower().encode(), raw, raw.hex().encode()]
    for offset in range(3):
        for secret in (raw, identity.encode()):
            forms.append(base64.b64encode(b"x" * offset + secret)[4 if offset else 0 : -4])
    return forms


def test_secret_bytes_are_the_right_ones() -> None:
    """The tests' own reading of an identity is good: it says of ssh's key what ssh-keygen would, for X25519."""
    identity = KEY.read_text().split()[-1]
    raw = secret_bytes(identity)
    nacl = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.x25519")
    public = nacl.X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
    letters = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    number = 0
    for letter in RECIPIENT.removeprefix("age1")[:-6]:
        number = number << 5 | letters.index(letter)
    assert (number >> 4).to_bytes(32, "big") == public


@pytest.mark.parametrize("trouble", ["none", "bug", "server"])
def test_nothing_of_the_runs_own_identity_gets_out(source: DataApiEmulator, tmp_path: Path, trouble: str) -> None:
    """With -v, after a bug and after a failed collection: in no file, no output and no request, in no form."""
    (tmp_path / "cwd").mkdir()
    cli = SabotagedCli(tmp_path / "cwd")
    identity = str(pyrage.x25519.Identity.generate())
    put_some(source)
    cli.sabotage = {"identity": identity}
    if trouble == "bug":
        cli.sabotage |= {"bug": {"module": "astra_backup", "name": "_make_manifest", "message": f"at {identity}"}}
    if trouble == "server":
        source.faults = [{"command": "find", "collection": "docs", "action": "status", "status": 401, "times": None}]
    result = cli.backup(source, "-v", "--json", "--encrypt-to", RECIPIENT)
    assert result.code == {"none": 0, "bug": 1, "server": 2}[trouble], result.err
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    contents += [str(vars(request)).encode() for request in source.requests]
    for form in forms_of(identity):
        assert not [content for content in contents if form in content]
    if trouble == "none":
        (path,) = cli.snapshots()[0].glob("docs*")
        own = pyrage.x25519.Identity.from_str(identity)
        assert b"clear" in gzip.decompress(pyrage.decrypt(path.read_bytes(), [own]))  # it was this one indeed


def test_the_runs_own_identity_is_another_each_time(source: DataApiEmulator, cli: Cli) -> None:
    """Two runs write files that have nothing in common but the recipients, though the documents are the same."""
    for _ in range(2):
        encrypted(source, cli)
    one, other = ((snapshot / "docs.jsonl.gz.age").read_bytes() for snapshot in cli.snapshots())
    assert one.split(b"\n---")[1] != other.split(b"\n---")[1]
    assert not set(re.findall(rb"-> X25519 (\S+)", one)) & set(re.findall(rb"-> X25519 (\S+)", other))


def test_nothing_of_an_identity_file_gets_out(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """After a restore, a refusal and a mistake, all with -v: in no file and no output."""
    snapshot = encrypted(source, cli)
    said = [cli.restore(target, "-v", "--json", "--identity", KEY)]
    said.append(cli.restore(target, "-v", "--json", "--identity", STRANGER))
    broken = cli.directory / "broken"
    private = STRANGER.read_text().split()[-1]
    broken.write_text(f"{private}x\n")
    said.append(cli.restore(target, "-v", "--json", "--identity", broken))
    (snapshot / "docs.jsonl.gz.age").write_bytes(b"age-encryption.org/v1\n")
    said.append(cli.restore(target, "-v", "--json", "--identity", KEY))
    said.append(cli.restore(target, "-v", "--json", "--identity", private))
    assert [result.code for result in said] == [0, 3, 1, 3, 1]
    broken.unlink()
    contents = [result.out + result.err for result in said]
    contents += [path.read_text(errors="replace") for path in cli.directory.rglob("*") if path.is_file()]
    assert not [content for content in contents if "AGE-SECRET-KEY-1" in content]


def test_a_crash_leaves_no_core(source: DataApiEmulator, cli: Cli) -> None:
    """The process forbids core files: in one there would be its identity."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("this machine forbids core files already")
    put_some(source, 100)
    source.faults = [{"command": "find", "collection": "docs", "action": "silence", "times": None}]
    backup = cli.command("astra_backup.py", "--no-box", "--api-endpoint", source.url, "--encrypt-to", RECIPIENT)
    with_cores = ["sh", "-c", 'ulimit -S -c 100000; exec "$@"', "sh", *backup]
    running = subprocess.Popen(with_cores, cwd=cli.directory, env=cli.environ, stderr=subprocess.PIPE)
    while not any(request.command == "find" for request in source.requests):
        assert running.poll() is None
    limits = Path(f"/proc/{running.pid}/limits").read_text()
    command = Path(f"/proc/{running.pid}/cmdline").read_bytes() + Path(f"/proc/{running.pid}/environ").read_bytes()
    running.send_signal(signal.SIGABRT)
    running.communicate(timeout=20)
    assert re.search(r"^Max core file size +0 ", limits, re.MULTILINE)
    assert b"AGE-SECRET-KEY" not in command
    assert not list(cli.directory.rglob("core*"))
