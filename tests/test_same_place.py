"""A restore into the very place that the snapshot comes from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.conftest import KEYSPACE, TOKEN, Cli
from tests.emulators.data_api import DataApiEmulator
from tests.support import (
    DOCS,
    assert_untouched,
    fill,
    held,
    on_a_terminal,
    snapshot_of,
    writes,
)


@pytest.fixture
def home(cli: Cli) -> Iterator[DataApiEmulator]:
    """A server that has lost documents since its snapshot was made, which is where `cli` looks for it."""
    with DataApiEmulator(token=TOKEN) as emulator:
        fill(emulator, "docs", DOCS)
        snapshot_of(emulator, cli)
        for number in range(20, 40):
            emulator.delete(KEYSPACE, "docs", f"d{number:03}")
        emulator.requests.clear()
        yield emulator


@pytest.mark.parametrize("arguments", [[], ["--on-existing", "skip"], ["--rename", "docs=beside"]], ids=str)
def test_the_source_itself_needs_yes(home: DataApiEmulator, cli: Cli, arguments: list[str]) -> None:
    """Restoring into the very endpoint and keyspace of the snapshot is refused with 4 without a terminal or --yes."""
    before = held(home)
    result = cli.restore(home, *arguments)
    assert_untouched(home, before, result, 4)
    if arguments:
        assert "--yes" in result.err
        result = cli.restore(home, *arguments, "--yes")
        assert result.code == 0, result.err
        assert sorted(home.documents(KEYSPACE, "beside" if "docs=beside" in arguments else "docs")) == DOCS


def test_the_source_is_known_by_other_spellings(home: DataApiEmulator, cli: Cli) -> None:
    """A slash at the end of the endpoint, or capitals in its host, do not make it another database."""
    before = held(home)
    assert_untouched(home, before, cli.run("restore.py", "--api-endpoint", f"{home.url}/", "--on-existing", "skip"), 4)
    for path in cli.snapshots():
        shutil.rmtree(path)
    port = home.url.rpartition(":")[2]
    assert cli.run("astra_backup.py", "--no-box", "--api-endpoint", f"http://LOCALHOST:{port}").code == 0
    result = cli.run("restore.py", "--api-endpoint", f"http://localhost:{port}", "--on-existing", "skip")
    assert_untouched(home, before, result, 4)


@pytest.mark.parametrize(("typed", "code"), [("n\n", 4), ("\n", 4), ("\x04", 130), ("y\n", 0)])
def test_on_a_terminal_it_asks(home: DataApiEmulator, cli: Cli, typed: str, code: int) -> None:
    """Somebody at a terminal is asked, and anything but yes leaves the source alone."""
    before = held(home)
    result = on_a_terminal(cli, home, typed, "--on-existing", "skip")
    assert result.code == code, result.out
    if code:
        assert_untouched(home, before, result, code)
    else:
        assert sorted(home.documents(KEYSPACE, "docs")) == DOCS


def test_reading_the_source_needs_no_yes(home: DataApiEmulator, cli: Cli) -> None:
    """What does not write into the source's collections asks nothing."""
    before = held(home)
    for arguments, code in (
        (["--dry-run", "--on-existing", "skip"], 0),
        (["--compare"], 5),
        (["--verify-only"], 0),
        (["--show", "d001"], 0),
    ):
        assert cli.restore(home, *arguments).code == code
        assert writes(home) == []
    assert cli.restore(home, "--drill").code == 0
    assert held(home) == before


def test_another_keyspace_of_the_source_is_another_place(home: DataApiEmulator, cli: Cli) -> None:
    """The same database with another keyspace is restored into without a question."""
    home.database.keyspaces["scratch"] = {}
    assert cli.restore(home, "--keyspace", "scratch").code == 0
    assert sorted(home.documents("scratch", "docs")) == DOCS
