"""docs/RUNBOOK.md: every command, typed as it stands."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import BOX_SECRET, KEYSPACE, ROOT, TOKEN, Cli, load_catalog, warm_cli
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.support import (
    Typed,
    snapshot_of,
)

RUNBOOK = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "RUNBOOK.md").read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith(".venv/bin/python ")
]
"""The runbook's commands, word by word."""
RUNBOOK_CODES = {"--compare --differences": 5, "--compare --keyspace": 5, "--compare --collection": 5, " skip": 5}
"""How a command of the runbook ends whose code is not 0, where documents are missing and one was changed."""


@pytest.fixture(scope="module")
def _incident(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DataApiEmulator, BoxEmulator, Cli]]:
    """A database, its snapshot 20260616_085246 in the directory and in Box, and a directory like the repository's."""
    cli = warm_cli(tmp_path_factory, "incident")
    with (
        DataApiEmulator(token=TOKEN) as emulator,
        BoxEmulator(retry_after="0", client_secret=BOX_SECRET) as box,
    ):
        load_catalog(emulator)
        cli.with_box(box)
        snapshot = snapshot_of(emulator, cli).rename(cli.backups / "20260616_085246")
        assert cli.run("snapshots.py", "upload", snapshot.name).code == 0
        yield emulator, box, cli
    assert box.violations == []


@pytest.fixture
def incident(_incident: tuple[DataApiEmulator, BoxEmulator, Cli], cli: Cli) -> DataApiEmulator:
    """The database of the runbook, damaged: documents of `assets` are missing, one was changed, one is new."""
    emulator, box, made = _incident
    shutil.copytree(made.backups, cli.backups)
    cli.with_box(box)
    for keyspace in (KEYSPACE, "restored", "scratch"):
        emulator.database.keyspaces[keyspace] = {}
    load_catalog(emulator)
    for name in ("i810switch", "nitrocli"):
        emulator.delete(KEYSPACE, "assets", name)
    emulator.put(KEYSPACE, "assets", '{"_id":"lxi-tools","title":"spoilt"}')
    emulator.put(KEYSPACE, "assets", '{"_id":"written since"}')
    cli.environ["ASTRA_DB_API_ENDPOINT"] = emulator.url
    (cli.directory / ".venv" / "bin").mkdir(parents=True)
    python = cli.directory / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for script in ("restore.py", "astra_backup.py"):
        (cli.directory / script).symlink_to(ROOT / script)
    return emulator


def test_the_runbook_has_commands() -> None:
    """The commands are found in its text, and every step has one."""
    assert len(RUNBOOK) >= 15
    for option in ("--list", "--from-box", "--verify-only", "--dry-run", "--show", "--rename", "--resume", "--drill"):
        assert any(option in command for command in RUNBOOK), option


@pytest.mark.parametrize("command", RUNBOOK)
def test_each_command_of_the_runbook_does_what_it_says(incident: DataApiEmulator, cli: Cli, command: str) -> None:
    """Typed as it stands, at a terminal, with the answers that it asks for."""
    shown = Typed(cli, ["sh", "-c", command]).answer("y\nassets\n")
    wanted = next((code for part, code in RUNBOOK_CODES.items() if part in command), 0)
    assert shown.code == (0 if "--dry-run" in command else wanted), shown.out
    assert "Traceback" not in shown.out
    assets = incident.documents(KEYSPACE, "assets")
    if "drop" in command:
        assert len(assets) == 300
    elif "skip" in command or "overwrite" in command:
        assert len(assets) == (299 if "--dry-run" in command else 301)
        assert ('{"_id":"lxi-tools","title":"spoilt"}' in assets) == ("overwrite" not in command)
    else:
        assert len(assets) == 299
    if "assets_restored" in incident.collections(KEYSPACE):
        assert len(incident.documents(KEYSPACE, "assets_restored")) == 300
    if "--keyspace restored" in command and "--compare" not in command:
        assert len(incident.documents("restored", "assets")) == 300
    assert incident.collections("scratch") == {}
