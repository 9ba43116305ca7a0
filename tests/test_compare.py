"""`--compare`: every difference is counted, named and written down."""

from __future__ import annotations

import gc
import itertools
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from astra_backup import CollectionRecord, DataStats
from restore import Choices, KeyStore, PlannedCollection, RestoreExit, text_digest
from tests.conftest import KEYSPACE, TOKEN, Cli
from tests.emulators.data_api import DataApiEmulator
from tests.support import (
    CHANGED,
    DOCS,
    EXTRA,
    OTHER,
    assert_untouched,
    by_id,
    by_id_of,
    fill,
    held,
    snapshot_of,
    writes,
)


def damage(emulator: DataApiEmulator) -> None:
    """Lose two documents, change one, add one."""
    for name in ("d003", "d104"):
        emulator.delete(KEYSPACE, "docs", name)
    emulator.put(KEYSPACE, "docs", CHANGED)
    emulator.put(KEYSPACE, "docs", EXTRA)


def differences_in(path: Path) -> list[tuple[str, str, object]]:
    """The rows of a file of differences, sorted."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(set(row) == {"collection", "kind", "id"} for row in rows)
    return sorted((row["collection"], row["kind"], json.dumps(row["id"])) for row in rows)


def test_an_equal_target_compares_equal(kept: Path, origin: DataApiEmulator, cli: Cli) -> None:
    """--compare of the source with its own snapshot is 0, writes nothing and leaves an empty file of differences."""
    origin.requests.clear()
    result = cli.restore(origin, "--compare", "--differences", "found.jsonl")
    assert result.code == 0, result.err
    assert writes(origin) == []
    assert (cli.directory / "found.jsonl").read_text() == ""


def test_differences_are_counted_named_and_listed(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """Missing, different and extra documents: 5, the numbers, the first of each, and all of them in the file."""
    fill(target, "docs", DOCS)
    fill(target, "other", OTHER)
    damage(target)
    target.delete(KEYSPACE, "other", {"$uuid": "0193e1a6-71b7-7c4e-9d55-1f5f0a1b2c3d"})
    before = held(target)
    result = cli.restore(target, kept.name, "--compare", "--differences", "found.jsonl")
    assert_untouched(target, before, result, 5)
    for part in ("2 missing", "1 different", "1 extra", "d001", "extra"):
        assert part in result.out
    assert differences_in(cli.directory / "found.jsonl") == [
        ("docs", "different", '"d001"'),
        ("docs", "extra", '"extra"'),
        ("docs", "missing", '"d003"'),
        ("docs", "missing", '"d104"'),
        ("other", "missing", '{"$uuid": "0193e1a6-71b7-7c4e-9d55-1f5f0a1b2c3d"}'),
    ]
    rows = {row["name"]: row for row in cli.restore(target, "--compare", "--json").json["collections"]}
    assert (rows["docs"]["missing"], rows["docs"]["different"], rows["docs"]["extra"]) == (2, 1, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda target: target.delete(KEYSPACE, "docs", "d003"),
        lambda target: target.put(KEYSPACE, "docs", CHANGED),
        lambda target: target.put(KEYSPACE, "docs", EXTRA),
        lambda target: target.drop(KEYSPACE, "other"),
        lambda target: target.delete_all(KEYSPACE, "docs"),
    ],
    ids=["missing", "different", "extra", "no collection", "empty"],
)
def test_each_kind_of_difference_is_5(
    kept: Path, target: DataApiEmulator, cli: Cli, change: Callable[[DataApiEmulator], object]
) -> None:
    """One difference of any kind is enough; extra documents count too, for nobody said that they may be there."""
    fill(target, "docs", DOCS)
    fill(target, "other", OTHER)
    change(target)
    assert cli.restore(target, "--compare").code == 5
    assert writes(target) == []


def test_a_collection_that_is_not_there_misses_all_its_documents(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """Every document of a collection that the target lacks is in the file of differences."""
    fill(target, "docs", DOCS)
    result = cli.restore(target, "--compare", "--differences", "found.jsonl")
    assert result.code == 5, result.err
    assert "2 missing" in result.out
    found = differences_in(cli.directory / "found.jsonl")
    assert [row[:2] for row in found] == [("other", "missing")] * 2


def test_the_comparison_takes_names_and_a_selection(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """--rename and --collection say what is compared with what; foreign collections do not count."""
    fill(target, "moved", DOCS)
    fill(target, "foreign", [EXTRA])
    assert cli.restore(target, "--compare", "--rename", "docs=moved", "--collection", "docs").code == 0
    assert cli.restore(target, "--compare", "--rename", "docs=moved").code == 5
    target.delete(KEYSPACE, "moved", "d007")
    result = cli.restore(
        target, "--compare", "--rename", "docs=moved", "--collection", "docs", "--differences", "found.jsonl"
    )
    assert result.code == 5
    assert differences_in(cli.directory / "found.jsonl") == [("moved", "missing", '"d007"')]


def test_a_restore_writes_its_differences_down_too(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """--differences with a restore: the documents that --on-existing skip kept are in the file, by their own ids."""
    fill(target, "docs", [CHANGED])
    result = cli.restore(target, "--on-existing", "skip", "--differences", "found.jsonl")
    assert result.code == RestoreExit.DIFFERENT, result.err
    assert differences_in(cli.directory / "found.jsonl") == [("docs", "different", '"d001"')]


def test_the_comparison_finds_another_definition(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """The same documents in a collection with another index are a difference, which is named field by field."""
    fill(target, "docs", DOCS, {"indexing": {"deny": ["*"]}})
    fill(target, "other", OTHER)
    result = cli.restore(target, "--compare")
    assert result.code == RestoreExit.DIFFERENT, result.out
    assert "indexing.deny is" in result.out
    assert "missing" not in result.out


def test_scratch_collections_of_a_killed_drill_are_named(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """What a drill left that could not clean up is in the next run's log."""
    fill(target, "drill_0123abcd_0", [])
    fill(target, "drill_mine", [])
    result = cli.restore(target)
    assert result.code == 0, result.err
    assert "drill_0123abcd_0" in result.err
    assert "drill_mine" not in result.err


def test_a_file_of_differences_that_cannot_be_written_is_1(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """It is named, without a traceback."""
    result = cli.restore(target, "--compare", "--differences", "no/such/directory/found.jsonl")
    assert_untouched(target, {}, result, 1)
    assert "found.jsonl" in result.err


@pytest.mark.parametrize("action", ["alter_document", "drop_document"])
@pytest.mark.parametrize("command", ["insertMany", "findOneAndReplace"])
def test_a_silent_alteration_or_loss_is_found_and_named(
    kept: Path, target: DataApiEmulator, cli: Cli, action: str, command: str
) -> None:
    """A server that acknowledges and stores something else, or nothing: 5, and the very id."""
    fill(target, "docs", [CHANGED])
    target.faults = [{"command": command, "collection": "docs", "action": action}]
    result = cli.restore(target, "--on-existing", "overwrite")
    assert result.code == RestoreExit.DIFFERENT, result.err
    assert cli.restore(target, "--compare", "--differences", "found.jsonl").code == 5
    (found,) = differences_in(cli.directory / "found.jsonl")
    stored = by_id(target, "docs")
    (wrong,) = [name for name in by_id_of(DOCS) if stored.get(name) != by_id_of(DOCS)[name]]
    assert found == ("docs", "different" if action == "alter_document" else "missing", json.dumps(wrong))
    assert wrong in result.out


def test_a_comparison_speaks_of_what_it_compared(kept: Path, origin: DataApiEmulator, cli: Cli) -> None:
    """--compare says how many documents the snapshot has and that the target equals it; nothing was inserted."""
    result = cli.restore(origin, kept, "--compare")
    assert result.code == 0
    assert f"{len(DOCS) + len(OTHER)} documents in the snapshot, " in result.out
    assert "inserted" not in result.out
    assert "compared with the snapshot: equal" in result.out


def test_a_comparison_does_not_hold_the_documents(tmp_path: Path) -> None:
    """Of 40,000 documents less is held than their digests alone, 32 bytes each; all of them are told apart."""
    planned = PlannedCollection(CollectionRecord("docs"), DataStats(), "docs", {}, Choices())

    count = 40_000
    gc.collect()
    tracemalloc.start()
    wanted, found = (KeyStore(str(tmp_path), planned, text_digest) for _ in range(2))
    for store, text in ((wanted, b"{}"), (found, b"[]")):
        documents = ((b"%d" % number, text) for number in range(count))
        while store.add(itertools.islice(documents, 100)):
            pass
    assert Counter(kind for kind, _ in wanted.differences(found)) == {"different": count}
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 32 * count


def test_a_comparison_never_calls_equal_what_is_not_there(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """--compare of an empty collection that the target lacks, or has otherwise: the log says what the result says."""
    with DataApiEmulator(token=TOKEN) as source:
        fill(source, "none", [], {"indexing": {"deny": ["a"]}})
        fill(source, "other", [], {"indexing": {"deny": ["a"]}})
        snapshot = snapshot_of(source, cli)
    fill(target, "other", [], {"indexing": {"deny": ["b"]}})
    result = cli.restore(target, snapshot, "--compare")
    assert result.code == RestoreExit.DIFFERENT
    assert "none: compared with the snapshot: the definition: there is no such collection." in result.err
    assert "other: compared with the snapshot: the definition: " in result.err
    assert "compared with the snapshot: equal" not in result.out + result.err
