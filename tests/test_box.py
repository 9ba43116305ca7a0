"""Box, through both command lines, against an emulator: on the way up, on the way back, and what may happen on it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest

from astra_backup import MANIFESTS_AT_ONCE, Box, BoxConfig, BoxError, BoxFile, Exit
from restore import RestoreExit
from tests.conftest import BOX_SECRET, KEYSPACE, TOKEN, Cli, Result, assert_no_secret_in, load_catalog, warm_cli
from tests.emulators.box import LOGIN, MIB, BoxEmulator, File
from tests.emulators.data_api import DataApiEmulator
from tests.support import connect, fill, same_documents, wait_for, writes

ROOT = Path(__file__).resolve().parent.parent
LEAST_SESSION = 20_000_000  # bytes; from there on Box takes an upload in parts
PART = 4 * MIB
OLDER = b"what another machine stored under the same name"

# --------------------------------------------------------------------------------------- what may happen on the way


@dataclass(frozen=True)
class Kind:
    """Something that goes wrong: in words, and as the emulator's rule for it."""

    text: str
    rule: dict[str, Any]


def status(number: int, **more: Any) -> dict[str, Any]:
    """The rule for an answer with an error status, nothing done."""
    return {"action": "status", "status": number, **more}


KINDS = {
    "429": Kind("429 with `Retry-After: 1`", status(429, retry_after=1)),
    "429-date": Kind("429 with a date in `Retry-After`", status(429, retry_after="date")),
    "429-day": Kind("429 with `Retry-After: 86400`", status(429, retry_after=86400)),
    "404": Kind("404, though it is there", status(404)),
    "403-full": Kind("403 `storage_limit_exceeded`", status(403, code="storage_limit_exceeded")),
    "409-busy": Kind("409 `name_temporarily_reserved`", status(409, code="name_temporarily_reserved")),
    "412": Kind("412, somebody changed the file", status(412)),
    "500": Kind("500", status(500)),
    "503": Kind("503", status(503)),
    "reset": Kind("connection reset, nothing done", {"action": "reset"}),
    "cut": Kind("connection reset in the middle of the body", {"action": "reset", "after_bytes": 100_000}),
    "lost": Kind("done, and the reply lost", {"action": "reset_after"}),
    "done-500": Kind("done, and answered with 500", {"action": "stored_500"}),
    "202": Kind("202, not yet", {"action": "accepted_202"}),
    "202-bare": Kind("202 without `Retry-After`, not yet", {"action": "accepted_202"}),
    "gone": Kind("the session vanishes: 404", {"action": "session_gone"}),
    "gone-410": Kind("the session vanishes: 410", {"action": "session_gone", "status": 410}),
    "open-409": Kind("409 that names the session it opened", {"action": "session_conflict"}),
    "wrong-sha1": Kind("done, and a wrong SHA-1 told", {"action": "wrong_sha1"}),
    "corrupt": Kind("a bit flips", {"action": "corrupt"}),
    "html": Kind("a page of HTML with status 200", {"action": "html"}),
    "list": Kind("502 with a JSON list", {"action": "list_json"}),
    "expired": Kind("all tokens expire", {"action": "expire_token"}),
    "slow": Kind("the reply comes byte by byte", {"action": "trickle", "chunk": 64, "pause_s": 0.01}),
    "cut-short": Kind("done, and the reply ends in its middle", {"action": "truncate"}),
    "cut-early": Kind("the reply ends after 3 MB", {"action": "truncate", "at": 3_000_000}),
    "silence": Kind("no reply within `--request-timeout-ms`", {"action": "silence"}),
    "whole": Kind("the range is ignored", {"action": "ignore_range"}),
}


@dataclass(frozen=True)
class Trouble:
    """A kind of trouble at one operation: `times` times (None: always), after `skip` requests that go well."""

    api: str
    kind: str
    times: int | None = 1
    skip: int = 0

    @classmethod
    def parse(cls, text: str) -> Trouble:
        """Read `api:kind`, `api:kind*3`, `api:kind*always`, `api:kind@1` (skip one)."""
        found = re.fullmatch(r"(\*|\w+):([\w-]+?)(?:\*(\d+|always))?(?:@(\d+))?", text)
        assert found, text
        times = None if found[3] == "always" else int(found[3] or 1)
        return cls(found[1], found[2], times, int(found[4] or 0))

    def __str__(self) -> str:
        """As it stands in the name of a test."""
        name = f"{self.api.replace('*', 'any')}-{self.kind}"
        name += {None: "-always", 1: ""}.get(self.times, f"-x{self.times}")
        return f"{name}-after{self.skip}" if self.skip else name

    @property
    def rule(self) -> dict[str, Any]:
        """The emulator's rule."""
        return {"api": self.api, "times": self.times, "skip": self.skip, **KINDS[self.kind].rule}

    @property
    def hides_a_session(self) -> bool:
        """Whether the reply to the opening of a session is lost, so that nobody can know its id."""
        return self.api.startswith("session") and self.kind in ("lost", "done-500", "cut-short")

    def has_hit(self, box: BoxEmulator) -> bool:
        """Whether the emulator did it as often as it should."""
        hits = [r for r in box.requests if r.fault == self.rule["action"] and self.api in ("*", r.api)]
        return len(hits) >= (self.times or 1)


@dataclass(frozen=True)
class Row:
    """A test: what is done to an upload or a download, and how it ends."""

    where: str
    recipe: str
    code: int
    knobs: dict[str, Any] = field(default_factory=dict)
    about: str = ""
    budget_s: float = 10

    @cached_property
    def troubles(self) -> list[Trouble]:
        """What is done."""
        return [Trouble.parse(text) for text in self.recipe.split("+") if text]

    @property
    def id(self) -> str:
        """The test's name."""
        knobs = [f"{name}={value}" for name, value in self.knobs.items()]
        return f"{self.where}-{'+'.join([*map(str, self.troubles), *knobs])}"

    @property
    def orphans(self) -> int:
        """How many sessions stay open whose ids nobody can know."""
        return sum(trouble.hides_a_session for trouble in self.troubles)

    @property
    def arguments(self) -> list[str]:
        """Options of the run: silence has to end within the test's patience."""
        short = any(trouble.kind == "silence" for trouble in self.troubles)
        return ["--request-timeout-ms", "1500"] if short else []


def rows(where: str, code: int, recipes: str, **more: Any) -> list[Row]:
    """A row for each of the recipes."""
    return [Row(where, recipe, code, **more) for recipe in recipes.split()]


OK, FAILED = int(Exit.OK), int(Exit.UPLOAD_FAILED)

UPLOADS = [
    # Alone, for a while: the upload succeeds.
    *rows("small", OK, "token:429 token:503*2 token:reset token:html token:list token:cut-short token:silence"),
    *rows("small", OK, "me:503 me:reset me:html me:list me:expired me:cut-short"),
    *rows("small", OK, "upload:429 upload:429-date upload:500 upload:503*2 upload:reset upload:cut upload:lost"),
    *rows("small", OK, "upload:done-500 upload:wrong-sha1 upload:html upload:list upload:expired upload:slow"),
    *rows(
        "small",
        OK,
        "upload:409-busy upload:cut-short upload:silence file:503 file:html file:reset file:wrong-sha1 file:expired",
    ),
    *rows("chunked", OK, "session:429 session:503*2 session:reset session:lost session:done-500 session:409-busy"),
    *rows(
        "chunked", OK, "session:html session:list session:expired session:cut-short session:silence session:open-409"
    ),
    *rows("chunked", OK, "part:429 part:429-date part:503*2 part:500@2 part:reset part:cut part:lost part:lost*3"),
    *rows("chunked", OK, "part:done-500 part:wrong-sha1 part:html part:list part:expired@1 part:slow part:cut-short"),
    *rows("chunked", OK, "part:silence part:gone@3 part:gone-410 part:404"),
    *rows("chunked", OK, "commit:429 commit:503 commit:reset commit:lost commit:done-500 commit:202*2 commit:html"),
    *rows("chunked", OK, "commit:list commit:expired commit:cut-short commit:silence commit:gone commit:gone-410"),
    *rows("chunked", OK, "commit:wrong-sha1 file:503 file:html file:wrong-sha1"),
    *rows("chunked", OK, "commit:202-bare*2", knobs={"retry_after": None}),
    # In pairs.
    *rows("small", OK, "upload:503+upload:lost upload:lost+upload:503 upload:lost+file:503 upload:lost+upload:html"),
    *rows("small", OK, "upload:expired+upload:lost@1 token:503+upload:reset upload:done-500+file:cut-short"),
    *rows("chunked", OK, "part:lost+parts:503 part:lost+parts:html part:done-500+parts:reset part:lost+parts:expired"),
    *rows("chunked", OK, "part:lost+commit:lost part:gone+part:lost commit:lost+items:503 commit:lost+items:html"),
    *rows("chunked", OK, "session:503+part:429 part:503*2+commit:202*2 part:expired+commit:gone token:503+part:lost"),
    *rows("chunked", OK, "commit:202+commit:lost@1 commit:gone+session:503@1 session:lost+part:reset"),
    # What Box's specification leaves open.
    *rows("chunked", OK, "part:lost", knobs={"part_conflict": "upload_failed"}, about="a second copy ends a session"),
    *rows("chunked", OK, "commit:lost", knobs={"gone_status": 410}, about="a session that is gone is a 410"),
    *rows("chunked", OK, "commit:lost", knobs={"usemarker": "ignored"}, about="the list knows no markers"),
    # For ever, and no look tells more: nothing half-done is left.
    *rows("small", FAILED, "*:503*always *:reset*always *:silence*always token:html*always me:list*always", budget_s=1),
    *rows("small", FAILED, "upload:429*always upload:503*always upload:reset*always upload:cut*always", budget_s=1),
    *rows("small", FAILED, "upload:html*always upload:429-day upload:corrupt upload:corrupt*always", budget_s=1),
    *rows("small", FAILED, "file:wrong-sha1*always", budget_s=1),
    *rows("chunked", FAILED, "session:503*always session:html*always session:429-day", budget_s=1),
    *rows("chunked", FAILED, "part:503*always@2 part:reset*always@1 part:corrupt*always part:404*always", budget_s=1),
    *rows("chunked", FAILED, "part:html*always part:gone*always part:429*always@3 file:wrong-sha1*always", budget_s=1),
    *rows("chunked", FAILED, "commit:503*always commit:202*always commit:html*always commit:gone*always", budget_s=1),
    *rows(
        "chunked",
        FAILED,
        "commit:corrupt part:403-full@2 commit:403-full part:503*always@2+abort:503*2 commit:503*always+abort:reset",
        budget_s=1,
    ),
    # For ever, but a look at what Box holds tells that it is done.
    *rows("small", OK, "upload:lost*always upload:done-500*always upload:cut-short*always file:503*always", budget_s=1),
    *rows(
        "chunked", OK, "commit:lost*always commit:wrong-sha1*always part:wrong-sha1*always part:lost*always", budget_s=1
    ),
]

VERSIONS = [
    *rows("small", OK, "upload_version:503 upload_version:lost upload_version:done-500 upload_version:html"),
    *rows("small", OK, "upload_version:cut-short upload_version:lost+file:503 upload:lost"),
    *rows("chunked", OK, "session_version:503 part:lost commit:lost commit:202*2 commit:gone"),
    *rows(
        "small",
        FAILED,
        "upload_version:503*always upload_version:412 upload_version:corrupt",
        budget_s=1,
    ),
    *rows("small", OK, "file:503*always", budget_s=1),
    *rows("chunked", FAILED, "session_version:503*always commit:412 commit:corrupt part:503*always@2", budget_s=1),
]

DOWNLOADS = [
    *rows(
        "small", 0, "token:503 items:503 items:html items:expired content:429 content:503 content:reset content:list"
    ),
    *rows(
        "small", 0, "content:expired download:503 download:reset download:429-date download:silence download:corrupt"
    ),
    *rows("chunked", 0, "download:cut-early*3 download:cut-early+download:whole@1 download:cut-early+content:503@1"),
    *rows("small", int(RestoreExit.FAILED), "items:503*always items:html*always content:503*always", budget_s=1),
    *rows("small", int(RestoreExit.FAILED), "download:reset*always download:cut-short*always", budget_s=1),
    *rows("chunked", int(RestoreExit.SNAPSHOT_REFUSED), "download:corrupt*always", budget_s=1),
]


# ------------------------------------------------------------------------------------------------ snapshots to send


@dataclass
class Kept:
    """Snapshots that all tests of a process upload, and the zips that Box has to have then."""

    directory: Path
    zips: dict[str, bytes] = field(default_factory=dict, repr=False)

    NAMES: ClassVar = {"small": "20260301_000000", "below": "20260302_000000", "chunked": "20260303_000000"}
    """A small one, one whose zip is a byte below the least size of a session, and one of exactly that size."""

    def path(self, where: str) -> Path:
        """A snapshot."""
        return self.directory / self.NAMES[where]

    def file_name(self, where: str) -> str:
        """Its name in Box."""
        return f"{self.NAMES[where]}.zip"

    def upload(self, cli: Cli, where: str, *arguments: object, **environ: str) -> Result:
        """Upload one of them; it is untouched afterwards."""
        before = self.state()
        result = cli.stored("upload", self.NAMES[where], "--output-dir", self.directory, *arguments, **environ)
        assert self.state() == before, "the local snapshots are not what they were"
        return result

    def state(self) -> dict[str, tuple[int, int, int]]:
        """What is in the directory: whatever is written changes it."""
        stats = {path: path.stat() for path in self.directory.rglob("*")}
        return {str(path): (found.st_ino, found.st_mtime_ns, found.st_size) for path, found in stats.items()}


def pad(snapshot: Path, size: int) -> None:
    """Make a snapshot larger by so many bytes: a field in its manifest that no reader knows, and a new checksum."""
    manifest, sums = snapshot / "manifest.json", snapshot / "SHA256SUMS"
    old = manifest.read_bytes()
    new = old.replace(b"{", b'{"padding":"' + b"x" * (size - len(b'"padding":"",')) + b'",', 1)
    digests = [hashlib.sha256(content).hexdigest() for content in (old, new)]
    text = sums.read_text().replace(*digests)
    for path, content in ((manifest, new), (sums, text.encode())):
        path.unlink()
        path.write_bytes(content)


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """The snapshots, made by a backup, and their zips, as an upload that meets no trouble leaves them in Box."""
    cli = warm_cli(tmp_path_factory, "kept")
    found = Kept(cli.backups)
    with DataApiEmulator(token=TOKEN) as source, BoxEmulator(client_secret=BOX_SECRET) as box:
        cli.with_box(box)
        load_catalog(source)
        assert cli.backup(source).code == 0
        cli.snapshots()[-1].rename(found.path("small"))
        for name in list(source.collections(KEYSPACE)):
            source.drop(KEYSPACE, name)
        source.create(KEYSPACE, "noise", {"indexing": {"deny": ["*"]}})
        for number in range(6):
            noise = hashlib.shake_256(bytes([number])).hexdigest(1_665_000)
            source.put(KEYSPACE, "noise", f'{{"_id":{number},"s":"{noise}"}}')
        assert cli.backup(source, "--no-compress", "--max-shrink", "100").code == 0
        cli.snapshots()[-1].rename(found.path("chunked"))
        shutil.copytree(found.path("chunked"), found.path("below"))
        assert found.upload(cli, "below").code == 0
        missing = LEAST_SESSION - box.files()[found.file_name("below")].size
        pad(found.path("chunked"), missing)
        pad(found.path("below"), missing - 1)
        for where in Kept.NAMES:
            result = found.upload(cli, where)
            assert result.code == 0, result.err
            found.zips[where] = box.files()[found.file_name(where)].content
    yield found
    assert_no_secret_in(cli.directory)


def assert_stored(box: BoxEmulator, kept: Kept, where: str, *, versions: int = 1) -> File:
    """The zip is in Box, byte for byte, and is the only thing there."""
    assert list(box.files()) == [kept.file_name(where)]
    file = box.files()[kept.file_name(where)]
    assert file.content == kept.zips[where]
    assert len(file.versions) == versions
    return file


# ------------------------------------------------------------------------------------------------ the rows


def run_row(row: Row, kept: Kept, box: BoxEmulator, cli: Cli) -> Result:
    """Upload while what the row says happens; it did happen, and the run ended as the row says."""
    box.part_size = PART
    for name, value in row.knobs.items():
        setattr(box, name, value)
    box.faults = [trouble.rule for trouble in row.troubles]
    cli.environ["BACKUP_RETRY_BUDGET"] = str(row.budget_s)
    result = kept.upload(cli.with_box(box), row.where, "--json", *row.arguments)
    assert [str(trouble) for trouble in row.troubles if not trouble.has_hit(box)] == [], "it did not happen"
    assert result.code == row.code == result.json["exit_code"], result.err
    assert len(box.sessions) == row.orphans, "an upload session stays open"
    if row.code == OK:
        upload = result.json["upload"]
        assert (upload["name"], upload["size_bytes"]) == (kept.file_name(row.where), len(kept.zips[row.where]))
        assert upload["sha1"] == hashlib.sha1(kept.zips[row.where]).hexdigest()
    else:
        assert f"snapshots.py upload {Kept.NAMES[row.where]}" in result.err
    return result


@pytest.mark.parametrize("row", UPLOADS, ids=lambda row: row.id)
def test_upload(row: Row, kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """Whatever happens on the way to Box, either the file there is the zip, or nothing is left there."""
    run_row(row, kept, box, cli)
    if row.code == OK:
        assert_stored(box, kept, row.where)
    else:
        assert box.files() == {}


@pytest.mark.parametrize("row", VERSIONS, ids=lambda row: row.id)
def test_version(row: Row, kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """Whatever happens on the way to a new version, the current one is either the zip or what it was before."""
    older = box.add_file(kept.file_name(row.where), OLDER)
    run_row(row, kept, box, cli)
    if row.code == OK:
        file = assert_stored(box, kept, row.where, versions=2)
        assert file.versions[0].blob.path.read_bytes() == OLDER
    else:
        assert list(box.files().values()) == [older]
        assert older.content == OLDER


@pytest.mark.parametrize("row", DOWNLOADS, ids=lambda row: row.id)
def test_download(row: Row, kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """Whatever happens on the way back, either the whole snapshot is verified, or the exit code says that it is not."""
    box.add_file(kept.file_name(row.where), kept.zips[row.where])
    box.faults = [trouble.rule for trouble in row.troubles]
    cli.environ["BACKUP_RETRY_BUDGET"] = str(row.budget_s)
    command = ("restore.py", "--from-box", Kept.NAMES[row.where], "--verify-only", "--json")
    result = cli.with_box(box).run(*command, *row.arguments)
    assert [str(trouble) for trouble in row.troubles if not trouble.has_hit(box)] == [], "it did not happen"
    assert result.code == row.code == result.json["exit_code"], result.err
    assert_stored(box, kept, row.where)
    left = [path.name for path in cli.backups.iterdir()] if cli.backups.exists() else []
    if row.code == RestoreExit.FAILED:
        assert all(name.startswith(".") for name in left)
    else:
        assert left == []


# ------------------------------------------------------------------------------------------------ going up


def box_run(cli: Cli, source: DataApiEmulator, *arguments: object, **environ: str) -> Result:
    """astra_backup.py against the Data API emulator and, unless told otherwise, Box."""
    return cli.run("astra_backup.py", "--api-endpoint", source.url, *arguments, **environ)


def test_a_backup_ends_in_box(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """A run without --no-box leaves the snapshot here and its zip in Box, and says so."""
    load_catalog(source)
    result = box_run(cli.with_box(box), source, "--json")
    assert result.code == 0, result.err
    (snapshot,) = cli.snapshots()
    (file,) = box.files().values()
    assert file.name == f"{snapshot.name}.zip"
    upload = result.json["upload"]
    assert (upload["file_id"], upload["name"]) == (file.id, file.name)
    assert (upload["size_bytes"], upload["sha1"]) == (file.size, file.sha1)
    with zipfile.ZipFile(io.BytesIO(file.content)) as archive:
        assert {name.removeprefix(f"{snapshot.name}/") for name in archive.namelist()} == {
            path.name for path in snapshot.iterdir()
        }


def test_the_line_for_a_person_tells_of_box(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """The result is one line, which says whether the snapshot is in Box."""
    fill(source, "docs", 3)
    good = box_run(cli.with_box(box), source)
    assert (good.code, good.out.count("\n")) == (0, 1)
    assert ", in Box" in good.out
    box.can_upload = False
    bad = box_run(cli, source)
    assert (bad.code, bad.out.count("\n")) == (FAILED, 1)
    assert "NOT in Box" in bad.out


@pytest.mark.parametrize("where", ["small", "below", "chunked"])
def test_the_zip_holds_the_snapshot_and_nothing_else(kept: Kept, where: str) -> None:
    """The stored object is a ZIP64 with every file of the snapshot under its name, none deflated."""
    content, snapshot = kept.zips[where], kept.path(where)
    assert b"PK\6\6" in content[-400:]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == len(set(archive.namelist())) == len(list(snapshot.iterdir()))
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert entry.extra[:2] == b"\1\0", "no ZIP64 sizes"
            folder, name = entry.filename.split("/")
            assert folder == snapshot.name
            assert archive.read(entry) == (snapshot / name).read_bytes()


@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
@pytest.mark.parametrize("where", ["small", "chunked"])
def test_unzip_accepts_it(kept: Kept, tmp_path: Path, where: str) -> None:
    """`unzip -t` finds no fault, and what it extracts passes `sha256sum -c`."""
    path = tmp_path / "it.zip"
    path.write_bytes(kept.zips[where])
    done = subprocess.run(["unzip", "-t", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "No errors detected" in done.stdout
    subprocess.run(["unzip", "-q", path], cwd=tmp_path, check=True)
    extracted = tmp_path / Kept.NAMES[where]
    subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=extracted, check=True, capture_output=True)


def test_the_zip_restores(kept: Kept, source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """`restore.py FILE.zip` brings back from the stored object what was backed up."""
    load_catalog(source)
    (cli.directory / "it.zip").write_bytes(kept.zips["small"])
    result = cli.restore(target, "it.zip")
    assert result.code == 0, result.err
    same_documents(source, target)


@pytest.mark.parametrize(("where", "calls"), [("small", "upload"), ("below", "upload"), ("chunked", "session")])
def test_the_size_decides_how_it_is_sent(kept: Kept, box: BoxEmulator, cli: Cli, where: str, calls: str) -> None:
    """Below 20,000,000 bytes a zip goes up in one request, from there on in a session, nothing sent twice."""
    box.part_size = PART
    assert kept.upload(cli.with_box(box), where).code == 0
    assert_stored(box, kept, where)
    assert len(box.calls(calls)) == 1
    assert {"upload", "session"} & {request.api for request in box.requests} == {calls}
    assert len(box.calls("part")) == (-(-len(kept.zips[where]) // PART) if calls == "session" else 0)
    assert {request.status // 100 for request in box.requests} == {2}


def test_several_parts_are_in_flight(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """Parts overlap in time, but only a few of them, so that memory is bounded."""
    box.part_size, box.latency_s = 2 * MIB, 0.15
    assert kept.upload(cli.with_box(box), "chunked").code == 0
    assert_stored(box, kept, "chunked")
    spans = [(request.started, request.started + request.seconds) for request in box.calls("part")]
    at_once = max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)
    assert 2 <= at_once <= 6


def test_the_last_part_may_be_one_byte(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """A part size that leaves one byte for the last part is obeyed."""
    box.part_size = LEAST_SESSION - 1
    assert kept.upload(cli.with_box(box), "chunked").code == 0
    assert_stored(box, kept, "chunked")
    assert sorted(request.size for request in box.calls("part")) == [1, LEAST_SESSION - 1]


def test_a_token_is_renewed_before_it_is_stale(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """With tokens that live a second no part is sent in vain."""
    box.part_size, box.latency_s, box.token_lifetime_s = 2 * MIB, 0.25, 1
    assert kept.upload(cli.with_box(box), "chunked").code == 0
    assert len(box.calls("token")) > 1
    assert [request for request in box.calls("part") if request.status == 401] == []


def test_upload_needs_no_database(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """`snapshots.py upload` works without any variable of Astra's."""
    cli.environ = {name: value for name, value in cli.environ.items() if not name.startswith("ASTRA")}
    result = kept.upload(cli.with_box(box), "small")
    assert result.code == 0, result.err
    assert Kept.NAMES["small"] in result.out
    assert_stored(box, kept, "small")


def test_upload_takes_a_snapshot_by_the_path_that_a_backup_prints(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """A name with the output directory before it is the name."""
    path = kept.path("small")
    result = cli.with_box(box).stored("upload", path, "--output-dir", path.parent)
    assert result.code == 0, result.err
    assert_stored(box, kept, "small")


def test_what_broken_downloads_have_left_goes(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """A part of another snapshot, which nobody goes on with, goes with the next download; other files stay."""
    assert kept.upload(cli.with_box(box), "small").code == 0
    old, other = cli.backups / ".20260101_000000.zip.part", cli.backups / ".notes.zip.part"
    cli.backups.mkdir(exist_ok=True)
    for path in (old, other):
        path.write_bytes(b"x")
    result = cli.run("restore.py", "--from-box", "--verify-only")
    assert result.code == 0, result.err
    assert (old.exists(), other.exists()) == (False, True)


def test_what_box_lists_under_another_name_is_never_deleted(box: BoxEmulator) -> None:
    """A mistake that would delete what is no snapshot raises before anything is sent."""
    config = BoxConfig(*["x"] * 5, box.url, box.upload_url, request_timeout_s=1, retry_budget_s=0)
    with pytest.raises(BoxError, match=r"notes\.zip is not the name of a snapshot"):
        Box(config, threading.Event()).delete(BoxFile("1", "notes.zip", 1, ""))
    assert box.requests == []


@pytest.mark.parametrize(
    "name", ["20270101_000000", "latest", "20260304_000000.INCOMPLETE", ".", "..", "manifest.json"]
)
def test_upload_refuses_what_is_no_complete_snapshot(kept: Kept, box: BoxEmulator, cli: Cli, name: str) -> None:
    """A name that is not there is 1, one of an incomplete snapshot 3, and Box is not even asked."""
    shutil.copytree(kept.path("small"), cli.backups / "20260304_000000.INCOMPLETE")
    result = cli.with_box(box).stored("upload", name)
    assert result.code == (3 if name.endswith("INCOMPLETE") else 1)
    assert name in result.err
    assert box.requests == []


def test_upload_refuses_another_scope_and_no_box(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """A snapshot of another keyspace is 1, and so is --no-box; BACKUP_BOX=false, which is for backups, is not."""
    cli.with_box(box)
    for arguments, reason in (
        (["--keyspace", "other"], "is of keyspace"),
        (["--api-endpoint", "http://elsewhere"], "is of keyspace"),
        (["--no-box"], "--no-box contradicts `upload`"),
    ):
        result = kept.upload(cli, "small", "--json", *arguments)
        assert (result.code, result.json["exit_code"]) == (1, 1)
        assert reason in result.json["error"]
    assert box.requests == []
    result = kept.upload(cli, "small", "--keyspace", KEYSPACE, BACKUP_BOX="false")
    assert result.code == 0, result.err
    assert_stored(box, kept, "small")


def test_upload_does_not_take_another_of_the_same_name(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """A path to a snapshot that is not in the output directory does not upload its namesake that is."""
    shutil.copytree(kept.path("small"), cli.backups / Kept.NAMES["small"])
    result = cli.with_box(box).stored("upload", f"elsewhere/{Kept.NAMES['small']}")
    assert result.code == Exit.FAILED
    assert box.requests == []


def flip(path: Path) -> None:
    """Change a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["a bit", "a file", "the manifest", "the checksums"])
def test_a_damaged_snapshot_is_not_uploaded(kept: Kept, box: BoxEmulator, cli: Cli, damage: str) -> None:
    """A snapshot that is not what its checksums say is refused: exit 3, nothing in Box, no word of praise."""
    snapshot = cli.backups / Kept.NAMES["small"]
    shutil.copytree(kept.path("small"), snapshot)
    if damage == "a bit":
        flip(snapshot / "assets.jsonl.gz")
    else:
        name = {"a file": "assets.jsonl.gz", "the manifest": "manifest.json", "the checksums": "SHA256SUMS"}[damage]
        (snapshot / name).unlink()
    result = cli.with_box(box).stored("upload", snapshot.name)
    assert box.files() == {}
    assert "is good" not in result.err
    assert result.code == 3, result.err


def test_an_incomplete_snapshot_is_not_uploaded(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """When a collection fails, the run ends in 2 and nothing is sent to Box."""
    fill(source, "docs", 30)
    fill(source, "bad", 30)
    refusal = {"action": "error", "errorCode": "INVALID_QUERY", "message": "no", "times": None}
    source.faults = [{"command": "find", "collection": "bad", **refusal}]
    result = box_run(cli.with_box(box), source, "--json")
    assert result.code == Exit.INCOMPLETE, result.err
    assert result.json["upload"] is None
    assert box.files() == {}
    assert not {"upload", "session"} & {request.api for request in box.requests}


def test_without_box_nothing_reaches_box(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """--no-box sends nothing to Box, even when it is configured."""
    fill(source, "docs", 3)
    assert cli.with_box(box).backup(source, "--json").json["upload"] is None
    assert box.requests == []


@pytest.mark.parametrize("where", ["small", "chunked"])
@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"max_upload_size": 1000}, "--collection"),
        ({"space_amount": 1000}, "trash"),
        ({"folder_shared": False}, "BOX_FOLDER_ID"),
        ({"can_upload": False}, "Editor"),
        ({"app_authorized": False}, "authorise"),
        ({"enterprise_id": "1"}, "BOX_ENTERPRISE_ID"),
        ({"client_secret": "another"}, "BOX_CLIENT_SECRET"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_box_refuses_is_explained(
    kept: Kept, box: BoxEmulator, cli: Cli, where: str, knobs: dict[str, Any], says: str
) -> None:
    """A refusal is exit 3 at once, with what to do about it and how to go on; no byte of the snapshot is wasted."""
    cli.with_box(box)
    for name, value in knobs.items():
        setattr(box, name, value)
    started = time.monotonic()
    result = kept.upload(cli, where, "--json")
    assert result.code == FAILED, result.err
    assert says in result.err
    assert f"snapshots.py upload {Kept.NAMES[where]}" in result.err
    assert time.monotonic() - started < 5
    assert (box.files(), box.sessions, box.calls("part")) == ({}, {}, [])
    if "max_upload_size" in knobs or "space_amount" in knobs:
        assert not {"upload", "session"} & {request.api for request in box.requests}


def test_what_it_says_to_do_works(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """The command that a failed upload names, typed as it stands, puts the snapshot into Box."""
    fill(source, "docs", 30)
    box.folder_shared = False
    failed = box_run(cli.with_box(box), source)
    assert failed.code == FAILED
    (snapshot,) = cli.snapshots()
    box.folder_shared = True
    (arguments,) = re.findall(r"snapshots\.py (upload \S+)", failed.err)
    assert cli.run("snapshots.py", *arguments.split()).code == 0
    assert list(box.files()) == [f"{snapshot.name}.zip"]


def test_what_it_says_to_do_works_in_another_directory(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """The command that a failed upload names has the output directory where it is not the default one."""
    fill(source, "docs", 3)
    box.folder_shared = False
    failed = box_run(cli.with_box(box), source, "--output-dir", "elsewhere")
    assert failed.code == FAILED
    box.folder_shared = True
    (arguments,) = re.findall(r"snapshots\.py (upload .*)", failed.err)
    assert cli.run("snapshots.py", *arguments.split()).code == 0
    assert len(box.files()) == 1


@pytest.mark.parametrize("where", ["small", "chunked"])
def test_a_run_that_is_stopped_ends_in_time(kept: Kept, box: BoxEmulator, cli: Cli, where: str) -> None:
    """SIGTERM during an upload ends it within 10 seconds and leaves no file; the next upload succeeds."""
    box.part_size = PART
    box.faults = [{"api": ["upload", "part"], "action": "silence", "times": None, "skip": 0 if where == "small" else 2}]
    cli.with_box(box)
    running = cli.start("snapshots.py", "upload", Kept.NAMES[where], "--output-dir", kept.directory)
    wait_for(lambda: any(request.fault == "silence" for request in box.requests))
    started = time.monotonic()
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=15)
    assert running.returncode == Exit.TERMINATED, said
    assert time.monotonic() - started < 10
    assert box.files() == {}
    box.faults = []
    assert kept.upload(cli, where).code == 0
    assert_stored(box, kept, where)


# ------------------------------------------------------------------------------------------------ the same name

SHAPES = [("small", "object"), ("small", "array"), ("chunked", "array")]
"""How Box shows the file that has the name already: the one is what it does, the other what its specification says."""


@pytest.mark.parametrize(("where", "shape"), SHAPES)
def test_the_same_snapshot_twice_is_one_file(kept: Kept, box: BoxEmulator, cli: Cli, where: str, shape: str) -> None:
    """A second upload of the same content succeeds and makes no version."""
    box.conflicts_shape = shape
    assert kept.upload(cli.with_box(box), where).code == 0
    parts = len(box.calls("part"))
    again = kept.upload(cli, where, "--json")
    assert again.code == 0, again.err
    file = assert_stored(box, kept, where)
    assert (file.etag, again.json["upload"]["file_id"]) == (0, file.id)
    assert len(box.calls("part")) == parts


@pytest.mark.parametrize("where", ["small", "chunked"])
def test_a_failure_leaves_what_an_earlier_run_stored(kept: Kept, box: BoxEmulator, cli: Cli, where: str) -> None:
    """When the same snapshot is in Box already and cannot be confirmed again, it is still there afterwards."""
    assert kept.upload(cli.with_box(box), where).code == 0
    box.faults = [{"api": "file", "action": "status", "status": 503, "times": None}]
    kept.upload(cli, where, BACKUP_RETRY_BUDGET="1")
    assert_stored(box, kept, where)


@pytest.mark.parametrize(("where", "shape"), SHAPES)
def test_other_content_becomes_a_version(kept: Kept, box: BoxEmulator, cli: Cli, where: str, shape: str) -> None:
    """A second machine's snapshot of the same name becomes the current version; both can be downloaded."""
    box.conflicts_shape = shape
    older = box.add_file(kept.file_name(where), kept.zips["below"])
    result = kept.upload(cli.with_box(box), where, "--json")
    assert result.code == 0, result.err
    file = assert_stored(box, kept, where, versions=2)
    assert file.id == older.id == result.json["upload"]["file_id"]
    download = connect(box).downloads.download_file
    assert download(file.id).read() == kept.zips[where]
    assert download(file.id, version=file.versions[0].id).read() == kept.zips["below"]


@pytest.mark.parametrize("where", ["small", "chunked"])
def test_a_version_that_changes_meanwhile_is_not_overwritten(
    kept: Kept, box: BoxEmulator, cli: Cli, where: str
) -> None:
    """When somebody else stores a version between our look and our upload, theirs is not replaced unseen."""
    box.add_file(kept.file_name(where), OLDER)
    box.part_size, box.latency_s = PART, 0.3
    running = cli.with_box(box).start("snapshots.py", "upload", Kept.NAMES[where], "--output-dir", kept.directory)
    wait_for(lambda: box.calls("upload_version" if where == "small" else "session_version"))
    box.add_file(kept.file_name(where), b"theirs")
    running.communicate(timeout=60)
    (file,) = box.files().values()
    contents = [version.blob.path.read_bytes() for version in file.versions]
    assert contents[:2] == [OLDER, b"theirs"]
    assert running.returncode == (FAILED if len(contents) == 2 else OK)
    assert contents[2:] in ([], [kept.zips[where]])
    assert box.sessions == {}


@pytest.mark.parametrize("where", ["small", "chunked"])
def test_a_sub_folder_of_that_name_is_explained(kept: Kept, box: BoxEmulator, cli: Cli, where: str) -> None:
    """A folder in Box that has the zip's name is exit 3, and the folder stays."""
    box.create_folder(kept.file_name(where), box.folder_id)
    result = kept.upload(cli.with_box(box), where)
    assert result.code == FAILED, result.err
    assert "folder" in result.err
    assert (box.files(), box.sessions) == ({}, {})
    assert [item.name for item in box.items(box.folder_id)] == [kept.file_name(where)]


@pytest.mark.parametrize("where", ["small", "chunked"])
def test_a_name_that_differs_in_case_is_not_ours(kept: Kept, box: BoxEmulator, cli: Cli, where: str) -> None:
    """Names that differ only in case are the same to Box: a stranger's file is neither written to nor taken as ours."""
    stranger = box.add_file(kept.file_name(where).replace(".zip", ".ZIP"), OLDER)
    result = kept.upload(cli.with_box(box), where)
    assert result.code == FAILED, result.err
    assert (stranger.content, stranger.etag) == (OLDER, 0)


@pytest.mark.parametrize("where", ["small", "chunked"])
def test_two_uploads_at_once_make_one_file(kept: Kept, box: BoxEmulator, cli: Cli, where: str) -> None:
    """The same snapshot uploaded by two processes at the same time is one file, and no session stays open."""
    box.part_size, box.latency_s = PART, 0.2
    command = ("snapshots.py", "upload", Kept.NAMES[where], "--output-dir", kept.directory)
    running = [cli.with_box(box).start(*command) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert_stored(box, kept, where)
    assert box.sessions == {}


# ------------------------------------------------------------------------------------------------ coming back

FOREIGN = [
    "20260101_000000.zip.bak",
    "x.zip",
    "20260101_000000.INCOMPLETE.zip",
    ".20260101_000000.zip",
    "20260101_000000",
    "99999999_999999.zip",
    "20260101_000000 (1).zip",
]


@pytest.fixture
def stocked(kept: Kept, box: BoxEmulator, cli: Cli) -> BoxEmulator:
    """Box with three snapshots, the newest uploaded first, among strangers' files; the command line knows it."""
    for where in ("chunked", "below", "small"):
        box.add_file(kept.file_name(where), kept.zips[where])
    for name in FOREIGN:
        box.add_file(name, b"not ours")
    box.create_folder("20290101_000000.zip", box.folder_id)
    cli.with_box(box)
    return box


def strangers(box: BoxEmulator) -> dict[str, tuple[bytes, int]]:
    """The foreign files with their contents and how often they were changed."""
    return {name: (file.content, file.etag) for name, file in box.files().items() if name in FOREIGN}


def test_a_backup_goes_to_box_and_comes_back(
    source: DataApiEmulator, target: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """What one machine put into Box another one, with an empty disk, restores; the download is gone afterwards."""
    load_catalog(source)
    assert box_run(cli.with_box(box), source).code == 0
    shutil.rmtree(cli.backups)
    result = cli.restore(target, "--from-box", "--json")
    assert result.code == 0, result.err
    assert all(row["equal"] for row in result.json["collections"])
    same_documents(source, target)
    assert list(cli.backups.iterdir()) == []


def test_the_list_has_our_snapshots_newest_first(stocked: BoxEmulator, kept: Kept, cli: Cli) -> None:
    """--from-box --list shows each snapshot by its name, with documents and size, and no foreign file."""
    result = cli.run("restore.py", "--from-box", "--list", "--json")
    assert result.code == 0, result.err
    rows = result.json["snapshots"]
    assert [row["name"] for row in rows] == [Kept.NAMES[where] for where in ("chunked", "below", "small")]
    documents = json.loads((kept.path("small") / "manifest.json").read_text())["totals"]["documents"]
    assert [row["documents"] for row in rows] == [6, 6, documents]
    assert [row["size_bytes"] for row in rows] == [
        LEAST_SESSION,
        LEAST_SESSION - 1,
        len(kept.zips["small"]),
    ]
    assert {row["status"] for row in rows} == {"complete"}
    lines = cli.run("restore.py", "--from-box", "--list").out.splitlines()
    assert [line.split()[0] for line in lines] == [row["name"] for row in rows]
    assert strangers(stocked) == dict.fromkeys(FOREIGN, (b"not ours", 0))
    assert {request.method for request in stocked.requests if request.api != "token"} == {"GET"}
    assert sum(request.api == "download" for request in stocked.requests) >= 3
    assert not cli.backups.exists()


def test_the_latest_is_the_one_with_the_greatest_name(stocked: BoxEmulator, cli: Cli) -> None:
    """Without a name the newest by its name comes, whatever was uploaded last."""
    result = cli.run("restore.py", "--from-box", "--verify-only", "--json")
    assert result.code == 0, result.err
    assert Kept.NAMES["chunked"] in result.json["snapshot"]
    assert result.json["documents"] == 6


def of_source(content: bytes, name: str, **source: str) -> bytes:
    """The zip of a snapshot under another name, of another database; its files stay as they are."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.infolist():
            text = old.read(entry)
            if entry.filename.endswith("/manifest.json"):
                manifest = json.loads(text)
                manifest["source"] |= source
                text = json.dumps(manifest).encode()
            with new.open(zipfile.ZipInfo(f"{name}/{entry.filename.split('/')[1]}"), "w", force_zip64=True) as file:
                file.write(text)
    return made.getvalue()


def test_the_latest_of_two_databases_in_box_is_ambiguous(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """Two databases in one folder: `latest` is 1, names the newest of each and downloads nothing but beginnings; with
    --source it is found, and where the source says all, no more beginnings are read than it takes.
    """
    for day in range(1, 26):
        name = f"202701{day:02}_000000"
        other = {"api_endpoint": "https://Other.example.com/"} if day % 2 else {}
        box.add_file(f"{name}.zip", of_source(kept.zips["small"], name, **other))
    before = len(box.calls("download"))
    result = cli.with_box(box).run("restore.py", "--from-box", "--dry-run", "--api-endpoint", "http://127.0.0.1:9")
    assert result.code == 1
    assert "ambiguous" in result.err
    assert "20270125_000000: keyspace default_keyspace at https://Other.example.com/" in result.err
    assert "20270124_000000: keyspace default_keyspace at http://127.0.0.1" in result.err
    assert "20270123_000000" not in result.err
    assert len(box.calls("download")) == before + 25
    assert not cli.backups.exists()
    source = ("--source", "https://other.EXAMPLE.com", "--source", "default_keyspace")
    listed = cli.run("restore.py", "--from-box", "--list", "--json", *source)
    assert [row["name"][6:8] for row in listed.json["snapshots"]] == [f"{day:02}" for day in range(25, 0, -2)]
    assert {row["api_endpoint"] for row in listed.json["snapshots"]} == {"https://Other.example.com/"}
    before = len(box.calls("download"))
    found = cli.run("restore.py", "--from-box", "--verify-only", *source)
    assert "Downloading 20270125_000000.zip" in found.err
    assert len(box.calls("download")) - before <= MANIFESTS_AT_ONCE + 1


def test_an_unreadable_zip_is_not_the_latest(stocked: BoxEmulator, kept: Kept, cli: Cli) -> None:
    """Newer files whose manifest cannot be read are named in warnings, and the newest good one is taken."""
    stocked.add_file("20270201_000000.zip", b"no zip")
    stocked.add_file("20270202_000000.zip", kept.zips["small"][:1000])
    result = cli.run("restore.py", "--from-box", "--verify-only", "--json")
    assert result.code == 0, result.err
    assert result.json["snapshot"] == f"{Kept.NAMES['chunked'].removesuffix('.zip')}.zip in Box"
    assert "20270201_000000.zip in Box" in result.err
    assert "20270202_000000.zip in Box" in result.err


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_a_named_snapshot_comes_back(
    stocked: BoxEmulator, source: DataApiEmulator, target: DataApiEmulator, cli: Cli, suffix: str
) -> None:
    """--from-box NAME restores that one, and touches no foreign file."""
    load_catalog(source)
    result = cli.restore(target, "--from-box", Kept.NAMES["small"] + suffix)
    assert result.code == 0, result.err
    same_documents(source, target)
    assert strangers(stocked) == dict.fromkeys(FOREIGN, (b"not ours", 0))


@pytest.mark.parametrize("name", ["20270101_000000", "x", "x.zip", "20260101_000000.INCOMPLETE", "20290101_000000"])
def test_a_name_that_is_not_there_is_1(stocked: BoxEmulator, target: DataApiEmulator, cli: Cli, name: str) -> None:
    """A snapshot that Box does not hold is 1, and the message says how to see what there is."""
    result = cli.restore(target, "--from-box", name)
    assert result.code == RestoreExit.FAILED
    assert name in result.err
    assert "--from-box --list" in result.err
    assert stocked.calls("download") == writes(target) == []


def test_an_empty_folder_is_1(box: BoxEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """With nothing in Box a restore is 1 and the list is empty."""
    assert cli.with_box(box).restore(target, "--from-box").code == RestoreExit.FAILED
    listed = cli.run("restore.py", "--from-box", "--list", "--json")
    assert (listed.code, listed.json["snapshots"]) == (0, [])


def test_the_download_can_be_kept(stocked: BoxEmulator, kept: Kept, cli: Cli) -> None:
    """With --keep-download the zip stays in the output directory under its name, private, and works from there."""
    name = Kept.NAMES["small"]
    for _ in range(2):
        result = cli.run("restore.py", "--from-box", name, "--verify-only", "--keep-download")
        assert result.code == 0, result.err
        (path,) = cli.backups.iterdir()
        assert (path.name, path.read_bytes()) == (f"{name}.zip", kept.zips["small"])
        assert path.stat().st_mode & 0o777 == 0o600
        assert cli.backups.stat().st_mode & 0o777 == 0o700
    assert cli.run("restore.py", path, "--verify-only").code == 0


def test_a_dry_run_from_box_writes_nothing(stocked: BoxEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """--dry-run with --from-box shows the plan, writes nothing, and removes the download."""
    result = cli.restore(target, "--from-box", Kept.NAMES["small"], "--dry-run")
    assert result.code == 0, result.err
    assert "assets" in result.out
    assert (writes(target), list(cli.backups.iterdir())) == ([], [])


def test_a_wrong_endpoint_is_told_before_the_download(stocked: BoxEmulator, cli: Cli) -> None:
    """An address that cannot be a database of this environment: 1 at once, and Box is not asked for anything."""
    wrong = "https://id.apps.astra.datastax.com/api/json"
    result = cli.run("restore.py", "--from-box", "--api-endpoint", wrong)
    assert result.code == RestoreExit.FAILED
    assert "is not an endpoint of the environment" in result.err
    assert stocked.requests == []


def test_a_restore_from_box_that_broke_off_goes_on(
    stocked: BoxEmulator, source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """The download is gone, its journal is not: --resume fetches the zip again and sends what is missing only."""
    load_catalog(source)
    target.faults = [{"command": "insertMany", "skip": 2, "action": "status", "status": 503, "times": None}]
    command = ["--from-box", Kept.NAMES["small"], "--workers", "1"]
    result = cli.restore(target, *command, BACKUP_RETRY_BUDGET="1")
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert "--resume" in result.err
    assert [path.suffix for path in cli.backups.iterdir()] == [".journal"]
    target.faults = []
    assert cli.restore(target, *command, "--resume").code == 0
    same_documents(source, target)
    assert list(cli.backups.iterdir()) == []


def test_a_drill_from_box_proves_what_is_there(stocked: BoxEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """--drill --from-box fetches, restores, compares, asks for neighbours and leaves nothing, here or there."""
    result = cli.restore(target, "--from-box", Kept.NAMES["small"], "--drill", "--json")
    assert result.code == 0, result.err
    assert all(row["equal"] for row in result.json["collections"])
    assert set(result.json["steps_seconds"]) >= {"fetch", "verify", "create and write", "compare", "neighbours", "drop"}
    assert target.collections(KEYSPACE) == {}
    assert list(cli.backups.iterdir()) == []


@pytest.mark.parametrize("at", [9_000_000, 900_000])
def test_a_download_goes_on_where_it_broke_off(kept: Kept, box: BoxEmulator, cli: Cli, at: int) -> None:
    """After a break the rest is asked for, not the whole."""
    box.add_file(kept.file_name("chunked"), kept.zips["chunked"])
    box.faults = [{"api": "download", "action": "truncate", "at": at}]
    assert cli.with_box(box).run("restore.py", "--from-box", Kept.NAMES["chunked"], "--verify-only").code == 0
    first, second = box.calls("download")
    assert first.headers["range"].startswith("bytes=0-")
    start = int(re.findall(r"bytes=(\d+)-", second.headers["range"])[0])
    assert at * 0.7 < start <= at


def test_breaks_that_make_progress_are_survived(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """A line that breaks again and again, but brings a piece each time, brings the whole: patience begins anew."""
    box.add_file(kept.file_name("chunked"), kept.zips["chunked"])
    box.faults = [{"api": "download", "action": "truncate", "at": 2_000_000, "times": None}]
    command = ("restore.py", "--from-box", Kept.NAMES["chunked"], "--verify-only")
    result = cli.with_box(box).run(*command, BACKUP_RETRY_BUDGET="1.5")
    assert result.code == 0, result.err


def interrupted_download(kept: Kept, box: BoxEmulator, cli: Cli) -> Path:
    """Kill a restore in the middle of its download; return what it left."""
    box.add_file(kept.file_name("chunked"), kept.zips["chunked"])
    box.faults = [{"api": "download", "action": "trickle", "chunk": 1_000_000, "pause_s": 0.1, "times": None}]
    running = cli.with_box(box).start("restore.py", "--from-box", Kept.NAMES["chunked"], "--verify-only")
    wait_for(
        lambda: sum(path.stat().st_size for path in cli.backups.glob(".*")) > 3_000_000 if cli.backups.exists() else 0
    )
    running.kill()
    running.communicate()
    box.faults = []
    (left,) = cli.backups.iterdir()
    assert left.name.startswith(".")
    return left


def test_the_next_run_goes_on_with_a_download(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """A restore that was killed while downloading is carried on by the next one, which leaves nothing behind."""
    size = interrupted_download(kept, box, cli).stat().st_size
    result = cli.run("restore.py", "--from-box", "--verify-only")
    assert result.code == 0, result.err
    assert box.calls("download")[-1].headers["range"].startswith(f"bytes={size}-")
    assert list(cli.backups.iterdir()) == []


def test_a_damaged_piece_is_not_built_upon(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """When what an earlier run left is not the beginning of the file, the whole is fetched again."""
    flip(interrupted_download(kept, box, cli))
    result = cli.run("restore.py", "--from-box", "--verify-only")
    assert result.code == 0, result.err
    assert list(cli.backups.iterdir()) == []


def unsafe_zip(name: str) -> bytes:
    """A zip whose entry would leave the directory."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{name}/../../evil", "x")
    return out.getvalue()


@pytest.mark.parametrize("how", ["a bit", "the end", "no zip", "nothing", "unsafe"])
def test_a_damaged_file_in_box_is_refused(
    kept: Kept, box: BoxEmulator, target: DataApiEmulator, cli: Cli, how: str
) -> None:
    """A file in Box that is no whole snapshot is 3; nothing is written to the database, nothing stays on the disk."""
    content, name = kept.zips["small"], Kept.NAMES["small"]
    place = len(content) // 2
    damaged = {
        "a bit": content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
        "the end": content[:-100],
        "no zip": b"hello",
        "nothing": b"",
        "unsafe": unsafe_zip(name),
    }[how]
    box.add_file(kept.file_name("small"), damaged)
    result = cli.with_box(box).restore(target, "--from-box", name)
    assert result.code == RestoreExit.SNAPSHOT_REFUSED, result.err
    assert writes(target) == []
    assert list(cli.backups.iterdir()) == []
    assert box.files()[kept.file_name("small")].content == damaged


def test_one_bad_file_does_not_hide_the_others(stocked: BoxEmulator, kept: Kept, cli: Cli) -> None:
    """The list shows files of our names that hold no snapshot as unreadable, and the good ones as ever."""
    name, extra = b"20270102_000000/manifest.json", b"\1\0\20\0"
    header = b"PK\3\4" + bytes(22) + len(name).to_bytes(2, "little") + (20).to_bytes(2, "little") + name + extra
    bad = {
        "20270101_000000.zip": b"",
        "20270102_000000.zip": header + bytes([255] * 16),
        "20270103_000000.zip": b"<!DOCTYPE html>" * 500,
        "20270104_000000.zip": unsafe_zip("20270104_000000"),
        "20270105_000000.zip": kept.zips["small"][:1000],
        "20270106_000000.zip": header + (50).to_bytes(8, "little") * 2 + b"{" * 50,
        "20270107_000000.zip": header + bytes(2),
    }
    for name, content in bad.items():
        stocked.add_file(name, content)
    result = cli.run("restore.py", "--from-box", "--list", "--json")
    assert result.code == 0, result.err
    rows = {row["name"]: row["status"] for row in result.json["snapshots"]}
    assert {name: status for name, status in rows.items() if status == "complete"}.keys() == set(Kept.NAMES.values())
    assert {f"{name}.zip" for name, status in rows.items() if status == "unreadable"} == bad.keys()


@pytest.mark.parametrize("usemarker", ["any", "lowercase", "ignored"])
def test_a_folder_of_many_pages_is_read_to_its_end(kept: Kept, box: BoxEmulator, cli: Cli, usemarker: str) -> None:
    """Among 1,100 files ours are found, whether Box pages by marker or by offset."""
    box.usemarker = usemarker
    box.add_file(kept.file_name("small"), kept.zips["small"])
    blob = box.add_file("0 a file.txt", b"not ours").current.blob
    for number in range(1100):
        box.create_file(box.folder_id, f"0 file {number:04}.txt", blob)
    box.add_file("20250101_000000.zip", kept.zips["small"])
    result = cli.with_box(box).run("restore.py", "--from-box", "--list", "--json")
    assert result.code == 0, result.err
    assert [row["name"] for row in result.json["snapshots"]] == [Kept.NAMES["small"], "20250101_000000"]


# ------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("script", ["backup", "upload", "restore", "list"])
def test_every_missing_variable_is_named(
    kept: Kept, box: BoxEmulator, target: DataApiEmulator, cli: Cli, script: str
) -> None:
    """Box that is asked for and not configured is 1, names each missing variable, and nothing is read."""
    command: dict[str, list[object]] = {
        "backup": ["astra_backup.py", "--api-endpoint", target.url],
        "upload": ["snapshots.py", "upload", Kept.NAMES["small"], "--output-dir", kept.directory],
        "restore": ["restore.py", "--api-endpoint", target.url, "--from-box"],
        "list": ["restore.py", "--from-box", "--list"],
    }
    result = cli.run(*map(str, command[script]))
    assert result.code == 1
    for name in ("BOX_CLIENT_ID", "BOX_CLIENT_SECRET", "BOX_ENTERPRISE_ID", "BOX_USER_ID", "BOX_FOLDER_ID"):
        assert name in result.err
    assert ("--no-box" in result.err) == (script == "backup")
    assert target.requests == []
    cli.with_box(box)
    del cli.environ["BOX_FOLDER_ID"]
    result = cli.run(*map(str, command[script]))
    assert result.code == 1
    assert "BOX_FOLDER_ID" in result.err
    assert "BOX_CLIENT_ID" not in result.err
    assert target.requests == box.requests == []


def test_the_secret_may_be_in_a_file(kept: Kept, box: BoxEmulator, cli: Cli, tmp_path_factory: Any) -> None:
    """BOX_CLIENT_SECRET_FILE works, for upload and restore, and needs no BOX_CLIENT_SECRET."""
    file = tmp_path_factory.mktemp("secret") / "secret"
    file.write_text(BOX_SECRET + "\n")
    del cli.with_box(box).environ["BOX_CLIENT_SECRET"]
    cli.environ["BOX_CLIENT_SECRET_FILE"] = str(file)
    assert kept.upload(cli, "small").code == 0
    assert cli.run("restore.py", "--from-box", "--verify-only").code == 0
    file.write_text(f"not-{BOX_SECRET}\n")
    assert kept.upload(cli, "small").code == FAILED
    missing = kept.upload(cli, "small", BOX_CLIENT_SECRET_FILE=str(file.with_name("nothing")))
    assert missing.code == 1
    assert "BOX_CLIENT_SECRET_FILE" in missing.err


def test_a_user_may_upload(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """BOX_USER_ID instead of BOX_ENTERPRISE_ID uploads as that user."""
    del cli.with_box(box).environ["BOX_ENTERPRISE_ID"]
    assert kept.upload(cli, "small", BOX_USER_ID=box.user_id).code == 0
    assert_stored(box, kept, "small")


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"client_secret": "another"}, "BOX_CLIENT_SECRET"),
        ({"client_id": "another"}, "BOX_CLIENT_ID"),
        ({"enterprise_id": "1"}, "BOX_ENTERPRISE_ID"),
        ({"app_authorized": False}, "authorise"),
        ({"folder_shared": False}, "BOX_FOLDER_ID"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("option", ["--list", "--dry-run"])
def test_a_box_that_refuses_a_restore_is_1(
    stocked: BoxEmulator, target: DataApiEmulator, cli: Cli, option: str, knobs: dict[str, Any], says: str
) -> None:
    """Wrong credentials or a folder that is not shared are 1, with what to do, and nothing is written."""
    for name, value in knobs.items():
        setattr(stocked, name, value)
    result = cli.restore(target, "--from-box", option)
    assert result.code == RestoreExit.FAILED, result.err
    assert says in result.err
    assert result.out == ""
    assert target.requests == []


# ------------------------------------------------------------------------------------------------ --check


def check_rows(result: Result) -> dict[str, tuple[bool, str]]:
    """The rows about Box."""
    rows = {row["name"]: (row["ok"], row["detail"]) for row in result.json["checks"]}
    return {name: row for name, row in rows.items() if "Box" in name}


def test_check_shows_box(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """--check tells who we are, the login to invite, the folder, and that it can be uploaded to; it writes nothing."""
    fill(source, "docs", 3)
    result = box_run(cli.with_box(box), source, "--check", "--json")
    assert result.code == 0, result.out
    rows = check_rows(result)
    assert rows
    assert all(ok for ok, _ in rows.values())
    details = " ".join(detail for _, detail in rows.values())
    assert LOGIN in details
    assert "Backups" in details
    assert box.folder_id in details
    assert {request.method for request in box.requests if request.api != "token"} == {"GET"}
    lines = box_run(cli, source, "--check").out
    assert all(
        re.search(rf"^✓ {name} +{re.escape(detail)}$", lines, re.MULTILINE) for name, (_, detail) in rows.items()
    )
    assert not cli.backups.exists()


@pytest.mark.parametrize(
    ("knobs", "says", "good"),
    [
        ({"client_secret": "another"}, "BOX_CLIENT_SECRET", 0),
        ({"enterprise_id": "1"}, "BOX_ENTERPRISE_ID", 0),
        ({"app_authorized": False}, "authorise", 0),
        ({"folder_shared": False}, "BOX_FOLDER_ID", 1),
        ({"can_upload": False}, LOGIN, 2),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_check_says_what_to_do(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli, knobs: dict[str, Any], says: str, good: int
) -> None:
    """A mistake in Box's configuration is a failing row that says what to do, and exit 1; what is right stays right."""
    cli.with_box(box)
    for name, value in knobs.items():
        setattr(box, name, value)
    result = box_run(cli, source, "--check", "--json")
    assert result.code == 1
    rows = list(check_rows(result).values())
    assert [ok for ok, _ in rows] == [*[True] * good, False]
    assert says in rows[-1][1]
    if knobs == {"folder_shared": False}:
        assert LOGIN in rows[0][1]


def test_check_names_what_is_not_configured(source: DataApiEmulator, cli: Cli) -> None:
    """--check without Box's variables names them in a failing row; with --no-box there is no such row."""
    result = box_run(cli, source, "--check", "--json")
    assert result.code == 1
    ((ok, detail),) = check_rows(result).values()
    assert not ok
    assert "BOX_FOLDER_ID" in detail
    assert "--no-box" in detail
    without = box_run(cli, source, "--check", "--json", "--no-box")
    assert (without.code, check_rows(without)) == (0, {})


@pytest.mark.parametrize("recipe", ["token:503", "token:html", "token:list", "me:reset", "me:html", "folder:html"])
def test_check_with_a_service_that_fails_is_1(source: DataApiEmulator, box: BoxEmulator, cli: Cli, recipe: str) -> None:
    """While Box fails for good, --check ends in 1 with a row about it, within the retry budget; nothing is a bug."""
    box.faults = [Trouble.parse(f"{recipe}*always").rule]
    result = box_run(cli.with_box(box), source, "--check", "--json", BACKUP_RETRY_BUDGET="1")
    assert result.code == 1
    assert list(check_rows(result).values())[-1][0] is False
    assert "bug" not in result.out


# ------------------------------------------------------------------------------------------------ secrets


@pytest.mark.parametrize("recipe", ["upload:503*always", "upload:reset*always", "*:list*always", "me:html*always", ""])
def test_nothing_secret_is_said(kept: Kept, box: BoxEmulator, cli: Cli, recipe: str) -> None:
    """With -v and an error that carries request and headers, neither the secret nor an access token is printed."""
    box.faults = [Trouble.parse(text).rule for text in recipe.split()]
    result = kept.upload(cli.with_box(box), "small", "-v", BACKUP_RETRY_BUDGET="1")
    assert result.code == (FAILED if recipe else OK)
    assert [token for token in box._tokens if token in result.out + result.err] == []


def test_nothing_secret_is_said_on_the_way_back(stocked: BoxEmulator, cli: Cli) -> None:
    """With -v a restore prints neither an access token nor the address of a download, which needs no token."""
    stocked.faults = [{"api": "download", "action": "reset"}]
    name = Kept.NAMES["small"]
    result = cli.run("restore.py", "--from-box", name, "--verify-only", "-v", BACKUP_RETRY_BUDGET="2")
    assert result.code == 0, result.err
    secrets = [*stocked._tokens, *stocked._links]
    assert [text for text in secrets if text in result.out + result.err] == []


def test_an_echoed_secret_is_not_said(kept: Kept, box: BoxEmulator, cli: Cli) -> None:
    """An error of Box's that echoes the secret is printed without it."""
    body = {"error": "invalid_client", "error_description": f"bad secret {BOX_SECRET}"}
    box.faults = [{"api": "token", "action": "status", "status": 400, "body": body, "times": None}]
    result = kept.upload(cli.with_box(box), "small", "-v", "--json")
    assert result.code == FAILED
    assert "invalid_client" in result.err
    assert json.loads(result.out)["exit_code"] == FAILED
