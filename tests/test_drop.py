"""`--on-existing drop`: what is asked first, and when nothing is dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from restore import RestoreExit
from tests.conftest import KEYSPACE, TOKEN, Cli
from tests.emulators.data_api import DataApiEmulator
from tests.support import (
    CHANGED,
    DENY,
    DOCS,
    EXTRA,
    OTHER_DENY,
    assert_left_as_it_was,
    assert_untouched,
    fill,
    held,
    on_a_terminal,
    same_documents,
    snapshot_of,
    writes,
)


def test_dropping_needs_yes_without_a_terminal(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """Nobody is there to type the name: 4, the choice named, nothing touched."""
    fill(target, "docs", [EXTRA], OTHER_DENY)
    before = held(target)
    result = cli.restore(target, "--on-existing", "drop")
    assert_untouched(target, before, result, 4)
    assert "--yes" in result.err
    assert "docs" in result.err
    assert cli.restore(target, "--on-existing", "drop", "--dry-run").code == 0
    assert held(target) == before


def test_dropping_nothing_needs_no_yes(kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Where no collection is in the way there is nothing to confirm."""
    assert cli.restore(target, "--on-existing", "drop").code == 0
    same_documents(origin, target)


@pytest.mark.parametrize("typed", ["y\n", "other\n", "\n\x04"])
def test_another_word_than_the_name_drops_nothing(kept: Path, target: DataApiEmulator, cli: Cli, typed: str) -> None:
    """On a terminal only the collection's own name lets it be dropped."""
    fill(target, "docs", [EXTRA])
    before = held(target)
    result = on_a_terminal(cli, target, typed, "--on-existing", "drop")
    assert_untouched(target, before, result, 130 if "\x04" in typed else 4)


def test_the_typed_name_drops(kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Each collection that is dropped is typed by its name in the target; one that is absent is not asked for."""
    fill(target, "docs", [EXTRA])
    fill(target, "second", [EXTRA])
    result = on_a_terminal(cli, target, "docs\nsecond\n", "--on-existing", "drop", "--rename", "other=second")
    assert result.code == 0, result.out
    assert held(target) == {"docs": held(origin)["docs"], "second": held(origin)["other"]}


def test_dropping_where_the_snapshot_came_from_is_said(kept: Path, origin: DataApiEmulator, cli: Cli) -> None:
    """With a terminal and without, whoever is about to drop the original is told that it is."""
    origin.put(KEYSPACE, "docs", CHANGED)
    before = held(origin)
    origin.requests.clear()
    for result in (
        cli.restore(origin, "--on-existing", "drop"),
        on_a_terminal(cli, origin, "n\n", "--on-existing", "drop"),
    ):
        assert_untouched(origin, before, result, 4)
        said = " ".join(result.err.split())
        assert "This drops docs, other. The target is the database that the snapshot came from." in said
    origin.put(KEYSPACE, "docs", DOCS[1])


def test_one_name_of_two_is_not_enough(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """If the second name is not typed, the first collection is not dropped either."""
    fill(target, "docs", [EXTRA])
    fill(target, "other", [EXTRA])
    before = held(target)
    result = on_a_terminal(cli, target, "docs\nno\n", "--on-existing", "drop")
    assert_untouched(target, before, result, 4)


@pytest.mark.parametrize("action", ["reset_after", "reset"])
@pytest.mark.parametrize("command", ["deleteCollection", "createCollection"])
def test_an_unknown_outcome_of_dropping_or_creating_is_asked_again(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli, command: str, action: str
) -> None:
    """A lost reply to a drop or a creation is no failure and loses nothing."""
    fill(target, "docs", [EXTRA], OTHER_DENY)
    target.faults = [{"command": command, "action": action}]
    result = cli.restore(target, "--on-existing", "drop", "--yes")
    assert result.code == 0, result.err
    same_documents(origin, target)


def test_a_service_that_fails_after_the_drop_is_no_code_1(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """1 would say that nothing was written: once a collection is dropped it is 2, and --resume completes it."""
    fill(target, "docs", [EXTRA])
    fill(target, "other", [EXTRA])
    target.faults = [{"command": "createCollection", "action": "status", "status": 503, "times": None}]
    command = ["--on-existing", "drop", "--yes"]
    result = cli.restore(target, *command, BACKUP_RETRY_BUDGET="1")
    assert "deleteCollection" in writes(target)
    assert result.code == RestoreExit.INCOMPLETE, result.err
    target.faults = []
    assert cli.restore(target, *command, "--resume").code == 0
    same_documents(origin, target)


def test_nothing_is_dropped_where_the_new_one_cannot_be_made(cli: Cli, target: DataApiEmulator) -> None:
    """A definition that the target cannot give is found before the old collection is gone."""
    with DataApiEmulator(token=TOKEN, astra=True) as source:
        fill(source, "docs", DOCS, {"lexical": {"enabled": True, "analyzer": "standard"}, "rerank": {"enabled": False}})
        snapshot_of(source, cli)
    fill(target, "docs", [EXTRA])
    before = held(target)
    assert_left_as_it_was(target, before, cli.restore(target, "--on-existing", "drop", "--yes"))


def test_nothing_is_dropped_where_there_is_no_room(kept: Path, cli: Cli) -> None:
    """Room that is missing for one collection is found before another one is dropped."""
    with DataApiEmulator(token=TOKEN, max_collections=1) as target:
        fill(target, "docs", [EXTRA])
        before = held(target)
        assert_left_as_it_was(target, before, cli.restore(target, "--on-existing", "drop", "--yes"))


@pytest.mark.parametrize("definition", [DENY, OTHER_DENY], ids=["same definition", "another definition"])
def test_a_full_database_has_room_for_what_is_dropped(
    kept: Path, origin: DataApiEmulator, cli: Cli, definition: object
) -> None:
    """Dropping and making the same needs no further room; where room for a trial is missing, nothing is dropped."""
    with DataApiEmulator(token=TOKEN, max_collections=2) as target:
        fill(target, "docs", [EXTRA], definition)
        fill(target, "other", [EXTRA])
        before = held(target)
        result = cli.restore(target, "--on-existing", "drop", "--yes")
        if result.code == RestoreExit.TARGET_REFUSED:
            assert definition == OTHER_DENY
            assert_left_as_it_was(target, before, result)
        else:
            assert result.code == 0, result.err
            same_documents(origin, target)
