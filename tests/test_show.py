"""`--show`: one document of a snapshot, as the server held it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import TOKEN, Cli, warm_cli
from tests.emulators.data_api import DataApiEmulator, embed
from tests.support import (
    DENY,
    DOCS,
    fill,
    snapshot_of,
)

SHOWN = [
    '{"_id":"a b","n":12345678901234567890.5,"$vector":[0.1,0.25,1E-7]}',
    f'{{"_id":"binary","$vector":{{"$binary":"{embed("x", 3)}"}}}}',
    '{"_id":5,"n":1E+2}',
    '{"_id":{"$uuid":"0193e1a6-71b7-7c4e-9d55-1f5f0a1b2c3d"},"at":{"$date":1073692800123}}',
    '{"_id":{"$objectId":"507f1f77bcf86cd799439011"}}',
    '{"_id":{"$date":2197097373173}}',
    '{"_id":true}',
    '{"_id":"7"}',
    '{"_id":"-dash"}',
    '{"_id":"ü\\"\\\\"}',
]


@pytest.fixture(scope="module")
def _shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with DataApiEmulator(token=TOKEN) as emulator:
        fill(emulator, "docs", [*DOCS, *SHOWN], {**DENY, "vector": {"dimension": 3, "metric": "cosine"}})
        fill(emulator, "other", ['{"_id":"only here"}', '{"_id":"a b","in":"other"}'])
        return snapshot_of(emulator, warm_cli(tmp_path_factory, "shown"))


@pytest.fixture
def shown(cli: Cli, _shown: Path) -> Path:
    """A snapshot with ids of every kind; `cli` has no credentials any more."""
    for name in ("ASTRA_DB_APPLICATION_TOKEN", "ASTRA_DB_ENVIRONMENT"):
        cli.environ.pop(name, None)
    return Path(shutil.copytree(_shown, cli.backups / _shown.name))


@pytest.mark.parametrize("text", SHOWN)
def test_a_document_is_shown_as_the_server_held_it(shown: Path, cli: Cli, text: str) -> None:
    """--show finds an id of any kind, and prints the document and nothing else, to the digit, without credentials."""
    document_id = json.loads(text)["_id"]
    wanted = document_id if isinstance(document_id, str) else json.dumps(document_id)
    result = cli.run("restore.py", f"--show={wanted}", "--collection", "docs")
    assert result.code == 0, result.err
    assert result.out == text + "\n"


def test_show_looks_into_all_collections(shown: Path, cli: Cli) -> None:
    """Without --collection the document is found wherever it is; with the same id in two, both are told apart."""
    assert cli.run("restore.py", "--show", "only here").out == '{"_id":"only here"}\n'
    both = cli.run("restore.py", "--show", "a b")
    assert both.code == 0
    assert SHOWN[0] in both.out
    assert '{"_id":"a b","in":"other"}' in both.out
    chosen = cli.run("restore.py", shown.name, "--show", "a b", "--collection", "other")
    assert chosen.out == '{"_id":"a b","in":"other"}\n'


@pytest.mark.parametrize(
    "arguments",
    [
        ["--show", "nope"],
        ["--show", "500"],
        ["--show", '{"$uuid":"00000000-0000-0000-0000-000000000000"}'],
        ["--show", "d001", "--collection", "other"],
        ["--show", "d001", "--collection", "nope"],
        ["--show", ""],
    ],
    ids=str,
)
def test_a_document_that_is_not_there_is_1(shown: Path, cli: Cli, arguments: list[str]) -> None:
    """Nothing on stdout, the reason on stderr."""
    result = cli.run("restore.py", *arguments)
    assert result.code == 1
    assert result.out == ""
    assert "Traceback" not in result.err


def test_show_reads_a_zip(shown: Path, cli: Cli) -> None:
    """A snapshot in a zip is read just the same."""
    archive = shutil.make_archive(str(cli.directory / "moved"), "zip", cli.backups, shown.name)
    assert cli.run("restore.py", archive, "--show", "only here").out == '{"_id":"only here"}\n'
