"""Snapshots of the past are restored for ever: those in tests/data/frozen were written once and never will be again.

`20261126_190610` is a directory as a backup left it, `20261126_190612.zip` what Box received from a run with
`--no-compress`, `20250301_021500` has the form of the older scripts. Beside each of them:

* `NAME.documents.txt`: the documents as the server held them, one a line, behind their collection's name and a tab.
  They come from the emulator of the server, not from the snapshot; those of the older one were written by hand
  and taken from tests/data/values.
* `NAME.definitions.json`: the definition of each collection.

A change of the format adds a snapshot to these. A test that is red here is a reader that has forgotten something.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import KEYSPACE, ROOT, TOKEN, Cli
from tests.emulators.data_api import DataApiEmulator
from tests.reference import decode_line, parse

FROZEN = ROOT / "tests" / "data" / "frozen"


@dataclass(frozen=True)
class Form:
    """A snapshot that was written once, in one of the forms that there are."""

    id: str
    file_name: str
    sha256: str  # of the list of its files' digests
    options: tuple[str, ...] = ()  # what its documents need to be restored

    @property
    def name(self) -> str:
        """The snapshot's name."""
        return self.file_name.removesuffix(".zip")

    def files(self, place: Path) -> dict[str, bytes]:
        """The snapshot in a place: its files by their names."""
        path = place / self.file_name
        if path.is_dir():
            return {file.name: file.read_bytes() for file in path.iterdir()}
        with zipfile.ZipFile(path) as archive:
            return {name.removeprefix(f"{self.name}/"): archive.read(name) for name in archive.namelist()}

    def definitions(self) -> dict[str, Any]:
        """The definitions, as the server gave them."""
        return json.loads((FROZEN / f"{self.name}.definitions.json").read_bytes())

    def documents(self) -> dict[str, list[str]]:
        """The documents of each collection, as the server held them, in the order of their texts."""
        found: dict[str, list[str]] = {name: [] for name in self.definitions()}
        for line in (FROZEN / f"{self.name}.documents.txt").read_bytes().decode().split("\n")[:-1]:
            collection, text = line.split("\t")
            found[collection].append(text)
        return {name: sorted(texts) for name, texts in found.items()}


RECOMPUTE = ("--vectorize", "recompute")  # the server makes the same vector of a text again
DIRECTORY = Form(
    "directory", "20261126_190610", "3223b9fe45e510d572f54aa5898636e59afa110b6e9243ac4c9c2d35e00778b4", RECOMPUTE
)
ZIP = Form("zip", "20261126_190612.zip", "f5a72eea6e11c243e669f149ef60373bf2ac6fe8852e7ecfa526db30d4291f31", RECOMPUTE)
OLDER = Form("older", "20250301_021500", "fb8cb6cc2a87adfc08125d9819d45511d7b905d821c6c18973cb0f8072394c18")
FORMS = (DIRECTORY, ZIP, OLDER)


def digest_of(form: Form) -> str:
    """A digest of the names and bytes of a snapshot and of what is recorded beside it."""
    paths = sorted(path for path in FROZEN.rglob("*") if path.is_file())
    paths = [path for path in paths if path.relative_to(FROZEN).parts[0].split(".")[0] == form.name]
    digests = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(FROZEN)}\n" for path in paths]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def assert_as_committed() -> None:
    """Every frozen byte is what it was when it was committed, and nothing was written beside."""
    assert {form.id: digest_of(form) for form in FORMS} == {form.id: form.sha256 for form in FORMS}
    beside = {path.name.split(".")[0] for path in FROZEN.iterdir()}
    assert beside == {form.name for form in FORMS}


@pytest.fixture(autouse=True)
def _never_written_again() -> Iterator[None]:
    assert_as_committed()
    yield
    assert_as_committed()


@pytest.fixture(params=FORMS, ids=lambda form: form.id)
def form(request: pytest.FixtureRequest) -> Form:
    """Each frozen snapshot."""
    return request.param


@pytest.fixture
def copy(form: Form, cli: Cli) -> Path:
    """A copy of it, where a restore may write beside it."""
    cli.backups.mkdir()
    path = cli.backups / form.file_name
    if form is ZIP:
        return Path(shutil.copyfile(FROZEN / form.file_name, path))
    return Path(shutil.copytree(FROZEN / form.file_name, path))


@pytest.fixture
def astra() -> Iterator[DataApiEmulator]:
    """An empty target with all that the collections need: embedding, lexical search, a reranker."""
    with DataApiEmulator(token=TOKEN, astra=True, vectorize=True) as emulator:
        yield emulator


def content_digest(lines: list[bytes]) -> str:
    """The sum of the lines' digests."""
    return f"{sum(int(hashlib.sha256(line).hexdigest(), 16) for line in lines) % (1 << 256):064x}"


def records_and_lines(form: Form) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """Each collection's record in the manifest and the lines of its data file."""
    files = form.files(FROZEN)
    for record in json.loads(files["manifest.json"])["collections"]:
        data = files[record["data_file"]]
        yield record, (gzip.decompress(data) if record["compressed"] else data).split(b"\n")[:-1]


def test_it_is_good(form: Form, copy: Path, cli: Cli) -> None:
    """--verify-only finds no fault, and only the older form is said to be one."""
    result = cli.run("restore.py", copy, "--verify-only")
    assert result.code == 0, result.err
    assert ("older script" in result.err) == (form is OLDER)


def test_it_comes_back_to_the_digit(form: Form, copy: Path, astra: DataApiEmulator, cli: Cli) -> None:
    """It restores into an empty database, which then holds what the server held, and --compare agrees."""
    result = cli.restore(astra, copy, "--json", "--yes", *form.options)  # its port may be the source's by chance
    assert result.code == 0, result.err
    rows = result.json["collections"]
    assert {row["name"] for row in rows} == set(form.definitions())
    assert [row["name"] for row in rows if not row["equal"]] == []
    assert astra.collections(KEYSPACE) == form.definitions()
    assert {name: sorted(astra.documents(KEYSPACE, name)) for name in form.definitions()} == form.documents()
    compared = cli.restore(astra, copy, "--compare", *form.options)
    assert compared.code == 0, compared.out + compared.err


def test_another_reader_finds_the_same(form: Form) -> None:
    """A reader that knows the description of the format alone gets the server's documents from the lines."""
    recorded, definitions = form.documents(), form.definitions()
    for record, lines in records_and_lines(form):
        read = Counter(map(repr, map(decode_line, lines)))
        assert read == Counter(repr(parse(text.encode())) for text in recorded[record["name"]]), record["name"]
        if form is not OLDER:
            assert record["definition"] == definitions[record["name"]]


@pytest.mark.parametrize("form", [DIRECTORY, ZIP], ids=lambda form: form.id)
def test_the_digests_are_what_they_say(form: Form) -> None:
    """Each content digest and count in the manifest, and each line of SHA256SUMS, comes out of the bytes again."""
    for record, lines in records_and_lines(form):
        assert record["content_digest"] == content_digest(lines), record["name"]
        assert record["document_count"] == len(lines) == len(form.documents()[record["name"]])
    files = form.files(FROZEN)
    sums = dict(line.split("  ")[::-1] for line in files.pop("SHA256SUMS").decode().splitlines())
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
