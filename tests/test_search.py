"""Lexical search, rerankers and room that the target may lack."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from restore import RestoreExit
from tests.conftest import KEYSPACE, TOKEN, Cli, warm_cli
from tests.emulators.data_api import NVIDIA_RERANKER, DataApiEmulator
from tests.support import (
    DOCS,
    EXTRA,
    OFF,
    OTHER,
    OTHER_DENY,
    assert_left_as_it_was,
    assert_untouched,
    by_id,
    fill,
    held,
    journals,
    same_documents,
    snapshot_of,
)

LEXICAL_ON = {"lexical": {"enabled": True, "analyzer": "standard"}, "rerank": {"enabled": False}}
TEXTS = [f'{{"_id":"t{number}","n":{number},"$lexical":"words {number}"}}' for number in range(5)]


@pytest.fixture(scope="module")
def _lexical(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DataApiEmulator, Path]]:
    with DataApiEmulator(token=TOKEN, astra=True) as emulator:
        fill(emulator, "words", [*TEXTS, '{"_id":"none","$lexical":null}', '{"_id":"bare"}'], LEXICAL_ON)
        fill(emulator, "plain", OTHER, OFF)
        yield emulator, snapshot_of(emulator, warm_cli(tmp_path_factory, "lexical"))


@pytest.fixture
def lexical(cli: Cli, _lexical: tuple[DataApiEmulator, Path]) -> DataApiEmulator:
    """A server with lexical search, in a snapshot where `cli` looks for it."""
    emulator, snapshot = _lexical
    shutil.copytree(snapshot, cli.backups / snapshot.name)
    return emulator


def test_lexical_comes_back_where_the_target_has_it(lexical: DataApiEmulator, cli: Cli) -> None:
    """The definition and the texts are restored byte for byte."""
    with DataApiEmulator(token=TOKEN, astra=True) as target:
        result = cli.restore(target)
        assert result.code == 0, result.err
        same_documents(lexical, target)


@pytest.mark.parametrize("exists", [False, True], ids=["absent", "exists"])
def test_lexical_that_the_target_lacks_is_refused(
    lexical: DataApiEmulator, target: DataApiEmulator, cli: Cli, exists: bool
) -> None:
    """4 before the first document, how many texts are concerned and what to do; nothing stays behind."""
    if exists:
        fill(target, "words", [], OFF)
    before = held(target)
    result = cli.restore(target)
    assert_left_as_it_was(target, before, result)
    assert "words" in result.err
    assert "--without-lexical" in result.err


@pytest.mark.parametrize("exists", [False, True], ids=["absent", "exists"])
def test_a_reranker_that_the_target_lacks_can_be_done_without(target: DataApiEmulator, cli: Cli, exists: bool) -> None:
    """Astra's default collection has one: the dry run says that it is needed, the refusal what to do, and it works."""
    with DataApiEmulator(token=TOKEN, astra=True) as source:
        options = {"lexical": {"enabled": False}, "rerank": {"enabled": True, "service": NVIDIA_RERANKER}}
        fill(source, "docs", DOCS, options)
        snapshot_of(source, cli)
        if exists:
            fill(target, "docs", [], OFF)
        else:
            assert "needs a reranker" in cli.restore(target, "--dry-run").out
        before = held(target)
        result = cli.restore(target)
        assert_left_as_it_was(target, before, result)
        assert "--without-rerank" in result.err
        assert cli.restore(target, "--without-rerank").code == 0
        assert target.collections(KEYSPACE)["docs"]["rerank"] == {"enabled": False}
        same_documents(source, target, ["docs"])


@pytest.mark.parametrize("exists", [False, True], ids=["absent", "exists"])
def test_a_collection_can_be_made_without_lexical(
    lexical: DataApiEmulator, target: DataApiEmulator, cli: Cli, exists: bool
) -> None:
    """--without-lexical leaves the texts out, says how many, and they are no difference; the rest is equal."""
    if exists:
        fill(target, "words", [], OFF)
    planned = cli.restore(target, "--dry-run", "--without-lexical")
    assert planned.code == 0, planned.err
    assert re.search(r"words:.*\b[56] ", planned.out), planned.out
    result = cli.restore(target, "--without-lexical")
    assert result.code == 0, result.err
    assert target.collections(KEYSPACE)["words"]["lexical"] == {"enabled": False}
    found, wanted = by_id(target, "words"), by_id(lexical, "words")
    assert found.keys() == wanted.keys()
    for name, document in wanted.items():
        assert {**found[name], "$lexical": None} == {**document, "$lexical": None}
    assert not any("$lexical" in found[f"t{number}"] for number in range(5))
    assert cli.restore(target, "--compare", "--without-lexical").code == 0
    again = cli.restore(target, "--on-existing", "overwrite", "--yes", "--without-lexical")
    assert again.code == 0, again.err


def test_without_lexical_still_finds_other_differences(
    lexical: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A document that differs in another field is named: 5."""
    assert cli.restore(target, "--without-lexical").code == 0
    target.put(KEYSPACE, "words", '{"_id":"t3","n":4}')
    result = cli.restore(target, "--compare", "--without-lexical")
    assert result.code == RestoreExit.DIFFERENT
    assert "t3" in result.out


def test_rerank_that_the_target_lacks_is_refused(target: DataApiEmulator, cli: Cli) -> None:
    """4 before the first document, named; nothing stays behind."""
    with DataApiEmulator(token=TOKEN, astra=True) as source:
        fill(source, "a", OTHER, OFF)
        fill(source, "ranked", DOCS, {})
        snapshot_of(source, cli)
    for arguments in ([], ["--without-lexical"]):
        result = cli.restore(target, *arguments)
        assert_left_as_it_was(target, {}, result)
        assert "ranked" in result.err


def test_a_refusal_leaves_no_journal(lexical: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Where nothing was written there is nothing to go on with."""
    assert cli.restore(target).code == RestoreExit.TARGET_REFUSED
    assert journals(cli) == []


@pytest.mark.parametrize("room", [0, 1])
def test_missing_room_is_found_before_the_first_document(kept: Path, cli: Cli, room: int) -> None:
    """No room for all collections is 4; what there was before stays, what was tried is gone."""
    with DataApiEmulator(token=TOKEN, max_collections=1 + room) as target:
        fill(target, "foreign", [EXTRA])
        before = held(target)
        result = cli.restore(target)
        assert_left_as_it_was(target, before, result)
        assert re.search("room|TOO_MANY", result.err)


def test_a_refusal_by_one_collection_stops_all(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """Every reason is named at once, and the collections that could be restored are not begun."""
    fill(target, "docs", [EXTRA], OTHER_DENY)
    fill(target, "other", [EXTRA])
    before = held(target)
    result = cli.restore(target)
    assert_untouched(target, before, result, 4)
    assert "docs" in result.err
    assert "other" in result.err
    assert "indexing" in result.err
