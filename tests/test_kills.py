"""Backups that are killed: whatever is left, a directory with a final name is whole, and the next run cleans up.

`python -m tests.trials.kills` does the same a thousand times.
"""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TOKEN
from tests.emulators.data_api import DataApiEmulator
from tests.sabotage import SabotagedCli
from tests.support import STEPS, watched
from tests.trials.chaos import play
from tests.trials.kills import check_final_names, check_next_run, fill, final_names, kill_backups, kill_restores

KILLS = 50
RENAMED = STEPS.index("replace .NAME.inprogress")
HOWS = {"before": "kill before", "within": "kill within", "after": "kill after"}


def kill_points() -> list[tuple[int, str]]:
    """Each step's number, counted from 1, and how: before it, and in the middle of a write; after the last one."""
    points = [(number, "before") for number in range(1, len(STEPS) + 1)]
    points += [(number, "within") for number, step in enumerate(STEPS, 1) if step.startswith("write")]
    return [*points, (len(STEPS), "after")]


@pytest.fixture(scope="module")
def source() -> Iterator[DataApiEmulator]:
    """A database with two collections."""
    with DataApiEmulator(token=TOKEN, latency_s=0.002) as emulator:
        fill(emulator)
        yield emulator
    SabotagedCli.stop()


@pytest.fixture
def cli(tmp_path: Path) -> SabotagedCli:
    """The two scripts, in a directory of their own."""
    (tmp_path / "cwd").mkdir()
    return SabotagedCli(tmp_path / "cwd")


def test_a_snapshot_is_made_in_these_steps(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """Each file is flushed before the next one, all of them before the name, and the name at last."""
    cli.sabotage = watched(cli)
    assert cli.backup(source, "--workers", 1).code == 0
    log = Path(f"{cli.directory}.steps").read_text()
    log = re.sub(r"\d{8}_\d{6}", "NAME", re.sub(r"(?<=\.probe)-\w{8}", "", log))
    assert tuple(re.findall(r"^\d+ (.*)$", log, re.MULTILINE)) == STEPS


@pytest.mark.parametrize(("number", "how"), kill_points(), ids=lambda value: str(value))
def test_killed_at_a_step(source: DataApiEmulator, cli: SabotagedCli, number: int, how: str) -> None:
    """SIGKILL at each step of making a snapshot leaves no final name that is not whole, and the next run succeeds."""
    cli.sabotage = watched(cli, at=number, how=HOWS[how])
    assert cli.backup(source, "--workers", 1).code == -signal.SIGKILL
    assert check_final_names(cli.backups) == (number - 1 > RENAMED)
    check_next_run(cli, source)


@pytest.mark.parametrize(
    ("number", "names"), [(RENAMED, 0), (RENAMED + 1, 1)], ids=["before-the-name", "after-the-name"]
)
def test_an_incomplete_snapshot_gets_its_name_last(
    source: DataApiEmulator, cli: SabotagedCli, number: int, names: int
) -> None:
    """A snapshot with a failed collection is named `INCOMPLETE` only when its good collections are whole."""
    source.faults = [{"command": "find", "collection": "docs", "action": "status", "status": 401, "times": None}]
    try:
        # Of the steps above, docs.jsonl.gz is not written and not flushed; it is removed.
        cli.sabotage = watched(cli, at=number, how="kill before")
        assert cli.backup(source, "--workers", 1).code == -signal.SIGKILL
    finally:
        source.faults = []
    assert [path.name[-11:] for path in final_names(cli.backups)] == [".INCOMPLETE"] * names
    check_next_run(cli, source)


def test_fifty_kills_at_random_moments(source: DataApiEmulator, tmp_path: Path) -> None:
    """SIGKILL at fifty moments, every second one while the snapshot is being finished."""
    left = kill_backups(KILLS, source, tmp_path, random.Random(7))
    assert left.total() == KILLS
    assert left["a run in progress"] > KILLS / 10


def test_ten_killed_restores_are_resumed(source: DataApiEmulator, tmp_path: Path) -> None:
    """A restore that is killed at a random moment is completed with --resume, whatever it had done."""
    assert kill_restores(10, source, tmp_path, random.Random(7)).total() == 10


@pytest.mark.parametrize("number", range(4))
def test_everything_at_once(number: int) -> None:
    """Random faults and a signal, in a backup and in a restore: each ends as it must, and the next run completes it."""
    assert len(play(20260616, number)) == 2
