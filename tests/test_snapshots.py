"""snapshots.py by its command line: what is kept and what goes in both places, status, list, upload."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.clockwork import look_at, names, run_at
from tests.conftest import KEYSPACE, Cli, Result
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.support import fill

pytestmark = pytest.mark.usefixtures("clockwork")


def test_a_dry_run_predicts_box_too(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """`prune --dry-run` lists what is here and in Box with reasons and changes nothing; the real run does just that."""
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    fill(source, "docs", 5)
    for day in range(1, 6):
        assert run_at(cli, datetime(2026, 6, day, tzinfo=UTC)).code == 0
    assert run_at(cli, datetime(2026, 6, 6, tzinfo=UTC), "--collection", "docs").code == 0
    box.add_file("20260501_000000.zip", b"no zip of ours")
    box.add_file("20260509_000000.zip", box.files()[f"{names(cli)[0]}.zip"].content[:-1])  # its manifest promises more
    box.add_file("report.pdf", b"foreign")
    box.add_file("20260502_000000.INCOMPLETE.zip", b"foreign")
    (cli.backups / "20260501_000000").mkdir()
    (cli.backups / "notes").mkdir()
    files = set(box.files())
    keep = ("--keep-last", "2", "--box-keep-last", "3")
    now = datetime(2026, 6, 7, tzinfo=UTC)
    nothing = look_at(cli, now, "prune", "--dry-run")
    assert " goes " not in nothing.out
    assert nothing.out.endswith("\nNothing was deleted.\n")
    assert nothing.out.count("no --keep option is given") == 12
    dry = look_at(cli, now, "prune", "--dry-run", "--json", *keep)
    rows = dry.json["snapshots"]
    goes = {(row["place"], row["name"][6:8]) for row in rows if not row["stays"]}
    assert goes == {("here", "01"), ("here", "02"), ("here", "03"), ("in Box", "01"), ("in Box", "02")}
    assert (set(box.files()), len(names(cli))) == (files, 8)
    real = look_at(cli, now, "prune", "--json", *keep)
    assert real.code == 0, real.err
    assert {(place, name[6:8]) for place, some in real.json["deleted"].items() for name in some} == goes
    assert set(names(cli)) == {row["name"] for row in rows if row["place"] == "here" and row["stays"]}
    left = {row["name"] for row in rows if row["place"] == "in Box" and row["stays"]}
    assert {name.removesuffix(".zip") if len(name) == 19 else name for name in box.files()} == left
    assert "report.pdf" in box.files()
    assert len(box.trash()) == 2
    assert [warning for warning in real.json["warnings"] if "damaged" in warning]


@pytest.mark.parametrize(
    ("knob", "value"), [("can_delete", False), ("faults", [{"api": "delete", "action": "reset_after", "times": 1}])]
)
def test_what_box_does_not_delete_is_told(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli, knob: str, value: Any
) -> None:
    """A deletion that Box refuses is 5 and named, one whose reply is lost is done: 0."""
    cli.with_box(box)
    fill(source, "docs", 2)
    for day in (1, 2):
        assert run_at(cli, datetime(2026, 6, day, tzinfo=UTC), "--api-endpoint", source.url).code == 0
    setattr(box, knob, value)
    result = look_at(cli, datetime(2026, 6, 2, 1, tzinfo=UTC), "prune", "--json", "--box-keep-last", "1")
    is_gone = knob == "faults"
    assert result.code == (0 if is_gone else 5), result.err
    assert result.json["exit_code"] == result.code
    assert len(box.files()) == (1 if is_gone else 2)
    assert bool(result.json["deleted"]["in Box"]) == is_gone
    assert ["20260601_000000 could not be deleted" in text for text in result.json["warnings"]] == [True] * (
        not is_gone
    )


def test_other_databases_are_left_alone(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Two databases in one directory: pruning one never counts or deletes the other's snapshots."""
    fill(source, "docs", 2)
    fill(target, "docs", 2)
    for day, emulator in ((1, source), (2, target), (3, source), (4, target), (5, target)):
        moment = datetime(2026, 6, day, tzinfo=UTC)
        assert run_at(cli, moment, "--api-endpoint", emulator.url, "--no-box").code == 0
    now, keep = datetime(2026, 6, 6, tzinfo=UTC), ("prune", "--no-box", "--keep-last", "1")
    assert look_at(cli, now, *keep, "--api-endpoint", target.url + "/").code == 0
    assert days(names(cli)) == ["01", "03", "05"]
    assert look_at(cli, now, *keep, "--keyspace", "other").code == 0
    assert days(names(cli)) == ["01", "03", "05"]
    assert look_at(cli, now, *keep).code == 0, "without a scope, each database is decided about on its own"
    assert days(names(cli)) == ["03", "05"]


def test_without_local_snapshots_the_one_in_box_is_compared(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """In a container whose disk is empty each time the new snapshot is compared with the last one in Box."""
    cli.with_box(box)
    fill(source, "docs", 10)
    cli.environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_BOX_KEEP_LAST": "1"}
    night(cli, 1, 0)
    source.delete_all(KEYSPACE, "docs")
    for path in cli.snapshots():
        path.rename(cli.directory / path.name)
    assert night(cli, 2, 5, "--json").json["upload"]["sent"]
    assert len(box.files()) == 2
    night(cli, 3, 0)
    assert len(box.files()) == 3, "the last one before the shrink stays until somebody has looked"


def test_a_shrunk_snapshot_that_could_not_be_uploaded(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """The failed upload decides: 3; when it is uploaded later, that is a success, which says what shrank: 0."""
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    fill(source, "docs", 10)
    assert run_at(cli, datetime(2026, 6, 1, tzinfo=UTC)).code == 0
    source.delete_all(KEYSPACE, "docs")
    box.can_upload = False
    assert run_at(cli, datetime(2026, 6, 2, tzinfo=UTC)).code == 3
    box.can_upload = True
    later = look_at(cli, datetime(2026, 6, 2, 9, tzinfo=UTC), "upload", names(cli)[-1])
    assert later.code == 0, later.err
    assert "SHRUNK since 20260601_000000" in later.out
    assert [", SHRUNK since 20260601_000000" in row for row in cli.stored("list", "--no-box").out.splitlines()] == [
        True,
        False,
    ]
    listed = cli.restore(source, "--list", "--json").json["snapshots"]
    assert [row.get("shrunk_from") for row in listed] == ["20260601_000000", None]
    assert "docs: 10 documents before, 0 now" in later.err
    assert (len(box.files()), len(names(cli))) == (2, 2)


def test_a_shrink_whose_upload_failed_protects_the_last_good_one_in_box(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """The night after compares with the shrunk one and ends in 0: what was there before the shrink stays in Box."""
    cli.with_box(box).environ |= {"ASTRA_DB_API_ENDPOINT": source.url}
    cli.environ |= {"BACKUP_KEEP_LAST": "1", "BACKUP_BOX_KEEP_LAST": "1"}
    fill(source, "docs", 10)
    night(cli, 1, 0)
    (good,) = box.files()
    source.delete_all(KEYSPACE, "docs")
    box.can_upload = False
    night(cli, 2, 3)
    box.can_upload = True
    night(cli, 3, 0)
    dry = look_at(cli, datetime(2026, 6, 3, 1, tzinfo=UTC), "prune", "--dry-run")
    assert good in box.files()
    assert re.search(rf"in Box +stays +{good[:-4]} .*shrink", dry.out), dry.out
    shutil.rmtree(cli.backups / "20260602_000000")
    night(cli, 4, 0)
    assert good not in box.files(), "once a person has deleted the shrunk one, the rules decide again"


def night(cli: Cli, day: int, code: int, *arguments: object) -> Result:
    """The run of a night in June, and what it must end with; after a success, prune with the options that say what to
    keep, or with the variables that do.
    """
    words = [*map(str, arguments)]
    keep = [word for at, word in enumerate(words) if "keep-" in word or (at and "keep-" in words[at - 1])]
    own = [word for word in words if word not in keep]
    moment = datetime(2026, 6, day, tzinfo=UTC)
    result = run_at(cli, moment, *own)
    assert result.code == code, result.err
    if code == 0 and (keep or any("KEEP_" in name for name in cli.environ)):
        done = look_at(
            cli, moment + timedelta(minutes=1), "prune", *keep, *(word for word in own if word == "--no-box")
        )
        assert done.code == 0, done.err
    return result


def days(snapshots: Iterable[str]) -> list[str]:
    """The days in June of some names."""
    return sorted(name[6:8] for name in snapshots)


def prune_predicted(cli: Cli, box: BoxEmulator, day: int, *keep: object) -> tuple[list[str], list[str]]:
    """Prune once more, after a dry run that must predict it: the days left here, in Box."""
    moment = datetime(2026, 6, day, tzinfo=UTC)
    rows = look_at(cli, moment, "prune", "--dry-run", "--json", *keep).json["snapshots"]
    result = look_at(cli, moment, "prune", "--json", *keep)
    assert result.code == 0, result.err
    gone = {(place, name) for place, some in result.json["deleted"].items() for name in some}
    assert gone == {(row["place"], row["name"]) for row in rows if not row["stays"]}
    assert set(names(cli)) == {row["name"] for row in rows if row["stays"] and row["place"] == "here"}
    assert {name[:-4] for name in box.files()} == {
        row["name"] for row in rows if row["stays"] and row["place"] != "here"
    }
    for row in rows:
        reasons = row["reason"].split("; ")
        assert len(set(reasons)) == len(reasons), f"a reason is given twice: {row}"
    return days(names(cli)), days(box.files())


KEEP_TWO = ("--keep-last", "2", "--box-keep-last", "2")


def test_a_shrink_since_a_snapshot_that_never_came_to_box(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """The snapshot before the shrink is only here: in Box, too, the last one that holds the dropped collection stays,
    until a person has deleted the shrunk one; once the one before has come to Box, that one stays instead.
    """
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    fill(source, "docs", 3)
    fill(source, "gone", 3)
    night(cli, 1, 0, *KEEP_TWO)
    night(cli, 2, 0, *KEEP_TWO)
    box.can_upload = False
    night(cli, 3, 3, *KEEP_TWO)
    box.can_upload = True
    source.drop(KEYSPACE, "gone")
    night(cli, 4, 5, *KEEP_TWO)
    for day in (5, 6, 7):
        night(cli, day, 0, *KEEP_TWO)
        assert "02" in days(box.files()), "the only snapshot in Box with the dropped collection was deleted"
    assert days(names(cli)) == ["03", "04", "06", "07"]
    assert days(box.files()) == ["02", "04", "06", "07"]
    assert prune_predicted(cli, box, 8, *KEEP_TWO) == (["03", "04", "06", "07"], ["02", "04", "06", "07"])
    assert look_at(cli, datetime(2026, 6, 8, tzinfo=UTC), "upload", "20260603_000000").code == 0
    assert prune_predicted(cli, box, 8, *KEEP_TWO) == (["03", "04", "06", "07"], ["03", "04", "06", "07"])
    shutil.rmtree(cli.backups / "20260604_000000")
    assert prune_predicted(cli, box, 8, *KEEP_TWO)[1] == ["03", "04", "06", "07"], "Box still has the shrunk one"
    box.purge(box.files()["20260604_000000.zip"])
    assert prune_predicted(cli, box, 8, *KEEP_TWO) == (["06", "07"], ["06", "07"])


def test_two_shrinks_of_which_one_is_settled(source: DataApiEmulator, cli: Cli) -> None:
    """Two collections vanish night after night; deleting the first shrunk snapshot settles the first shrink only, and
    what both had before stays for the second.
    """
    cli.environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_KEEP_LAST": "1"}
    for name in ("docs", "first", "second"):
        fill(source, name, 3)
    night(cli, 1, 0, "--no-box")
    source.drop(KEYSPACE, "first")
    night(cli, 2, 5, "--no-box")
    source.drop(KEYSPACE, "second")
    night(cli, 3, 5, "--no-box")
    night(cli, 4, 0, "--no-box")
    assert days(names(cli)) == ["01", "02", "03", "04"]
    shutil.rmtree(cli.backups / "20260602_000000")
    night(cli, 5, 0, "--no-box")
    assert days(names(cli)) == ["01", "03", "05"]
    shutil.rmtree(cli.backups / "20260603_000000")
    night(cli, 6, 0, "--no-box")
    assert days(names(cli)) == ["06"]


def test_a_shrink_is_not_forgotten_while_the_snapshot_before_is_restored(source: DataApiEmulator, cli: Cli) -> None:
    """A restore's journal beside the snapshot before the shrink, or beside the shrunk one, lets neither go."""
    cli.environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_KEEP_LAST": "1"}
    fill(source, "docs", 3)
    night(cli, 1, 0, "--no-box")
    source.delete_all(KEYSPACE, "docs")
    night(cli, 2, 5, "--no-box")
    for day, restored in ((3, "20260601_000000"), (4, "20260602_000000")):
        journal = cli.backups / f".restore-{restored}-0123abcd.journal"
        journal.touch()
        night(cli, day, 0, "--no-box")
        assert days(names(cli)) == ["01", "02", f"{day:02}"]
        journal.unlink()
    night(cli, 5, 0, "--no-box")
    assert days(names(cli)) == ["01", "02", "05"]


@pytest.mark.parametrize(("rotten", "file"), [(2, "docs.jsonl.gz"), (3, "docs.jsonl.gz"), (3, "manifest.json")])
def test_a_disk_that_rots_settles_no_shrink(source: DataApiEmulator, cli: Cli, rotten: int, file: str) -> None:
    """The snapshot before the shrink rots: the one before that stays. The shrunk one rots: what was before it stays,
    even if nobody can read any more that it shrank.
    """
    cli.environ |= {"ASTRA_DB_API_ENDPOINT": source.url}
    fill(source, "docs", 3)
    night(cli, 1, 0, "--no-box")
    night(cli, 2, 0, "--no-box")
    source.delete_all(KEYSPACE, "docs")
    night(cli, 3, 5, "--no-box")
    night(cli, 4, 0, "--no-box")
    (path,) = cli.backups.glob(f"2026060{rotten}_*/{file}")
    path.write_bytes(path.read_bytes()[:-20])
    for day in (5, 6):
        night(cli, day, 0, "--no-box", "--keep-last", "1")
        left = ["01", "02", "03"] if rotten == 2 else ["02", "03"]
        assert days(names(cli)) == [*left, f"{day:02}"]


def test_what_box_does_not_show_is_a_reason_to_keep(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """In a container whose disk is empty each time the shrunk snapshot is in Box alone: a night on which Box does not
    give its beginning deletes nothing from before it.
    """
    cli.with_box(box).environ |= {"ASTRA_DB_API_ENDPOINT": source.url}
    fill(source, "docs", 3)
    for day, code in ((1, 0), (2, 5), (3, 0)):
        night(cli, day, code)
        source.delete_all(KEYSPACE, "docs")
        shutil.rmtree(cli.snapshots()[0])
    hidden = f"/files/{box.files()['20260602_000000.zip'].id}/"
    box.faults.append({"api": "content", "contains": hidden, "action": "status", "status": 403, "times": None})
    result = night(cli, 4, 0, "--box-keep-last", "1")
    assert days(box.files()) == ["01", "02", "04"], result.err


def test_an_empty_file_with_a_snapshots_name_is_none(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """Box refuses to read a range of it: it counts as nothing, for status, list, alarm and retention."""
    cli.with_box(box).environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_BOX_KEEP_LAST": "1"}
    box.add_file("20260501_000000.zip", b"")
    fill(source, "docs", 3)
    status = look_at(cli, datetime(2026, 6, 1, tzinfo=UTC), "status")
    assert (status.code, status.out.count("no complete snapshot")) == (1, 2)
    for listed in (cli.run("restore.py", "--from-box", "--list", "--json"), cli.stored("list", "--json")):
        assert [row["status"] for row in listed.json["snapshots"]] == ["unreadable"]
    assert "Could not" not in night(cli, 1, 0).err
    assert "20260501_000000.zip" in box.files()


def test_status_says_what_is_newest_and_whether_it_is_too_old(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """Status names the newest complete snapshot here and in Box; with --max-age 1 when the one that counts is old."""
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    first, second = datetime(2026, 6, 1, 3, tzinfo=UTC), datetime(2026, 6, 2, 3, tzinfo=UTC)
    nothing = look_at(cli, first, "status")
    assert (nothing.code, nothing.out.count("no complete snapshot")) == (1, 2)
    fill(source, "docs", 1234)
    assert run_at(cli, first).code == 0
    assert run_at(cli, second, "--no-box").code == 0
    assert run_at(cli, second + timedelta(hours=1), "--no-box", "--collection", "docs").code == 0
    now = second + timedelta(hours=20)
    status = look_at(cli, now, "status")
    assert status.code == 0
    here, there = status.out.splitlines()
    of = re.escape(f" of keyspace {KEYSPACE} at {source.url}")
    assert re.fullmatch(rf"✓ here +20260602_030000: (19 h 59|20 h 0) min old, 1,234 documents, [0-9.]+ kB{of}", here)
    assert re.fullmatch(rf"✓ in Box +20260601_030000: (43 h 59|44 h 0) min old, 1,234 documents, [0-9.]+ kB{of}", there)
    limits = {("26h",): 1, ("3d",): 0, ("26h", "--no-box"): 0, ("1190m", "--no-box"): 1, ("90000s", "--no-box"): 0}
    for arguments, code in limits.items():
        result = look_at(cli, now, "status", "--max-age", *arguments)
        assert result.code == code, arguments
    assert "✗ in Box" in look_at(cli, now, "status", "--max-age", "26h").out
    assert look_at(cli, now, "status", BACKUP_MAX_AGE="26h").code == 1
    rows = look_at(cli, now, "status", "--json").json["newest"]
    assert [(row["place"], row["name"], row["documents"]) for row in rows] == [
        ("here", "20260602_030000", 1234),
        ("in Box", "20260601_030000", 1234),
    ]
    other = look_at(cli, now, "status", "--no-box", "--keyspace", "other")
    assert (other.code, "no complete snapshot" in other.out) == (1, True)
    assert "is not a duration" in look_at(cli, now, "status", "--max-age", "26").err


def test_status_and_prune_say_what_is_of_some_collections_only(source: DataApiEmulator, cli: Cli) -> None:
    """As the list does; and a directory that is not there is named where the local copy counts."""
    cli.environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_BOX": "false"}
    fill(source, "docs", 3)
    first, second = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 2, tzinfo=UTC)
    assert run_at(cli, first, "--collection", "docs").code == 0
    status = look_at(cli, second, "status")
    assert (status.code, status.out.endswith(", some collections only\n")) == (0, True)
    assert run_at(cli, second).code == 0
    assert "some collections only" not in look_at(cli, second, "status").out
    dry = look_at(cli, second, "prune", "--dry-run", "--keep-last", "1").out.splitlines()
    assert ["20260602" in row for row in dry if "some collections only" in row] == [False]
    assert [row.count("keep-last: 1 of 1") for row in dry] == [1, 1, 0]
    for command in ("status", "list"):
        missing = look_at(cli, second, command, "--output-dir", "typo")
        assert (missing.code, missing.out) == (1, "")
        assert "There is no directory typo.\n  Check --output-dir" in missing.err


def test_a_list_of_nothing_says_where_it_looked(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """The directory, and Box where it is used; of a scope only what is not there of it."""
    cli.with_box(box)
    assert "There are no snapshots in backups or in Box." in cli.stored("list").err
    assert "There are no snapshots in backups or in Box." in cli.stored("prune", "--dry-run").err
    assert cli.backup(source).code == 0
    wanted = cli.stored("list", "--no-box", "--keyspace", "other")
    assert "There are no snapshots of keyspace other in backups." in wanted.err


def test_status_does_not_count_what_is_damaged_or_incomplete(source: DataApiEmulator, cli: Cli) -> None:
    """An INCOMPLETE snapshot, and a directory without a manifest, are not the newest complete one."""
    fill(source, "docs", 3)
    cli.environ["ASTRA_DB_API_ENDPOINT"] = source.url
    assert run_at(cli, datetime(2026, 6, 1, tzinfo=UTC), "--no-box").code == 0
    source.add_fault("error", command="find", collection="docs", times=None, errorCode="INVALID_QUERY")
    assert run_at(cli, datetime(2026, 6, 2, tzinfo=UTC), "--no-box").code == 2
    (cli.backups / "20260603_000000").mkdir()
    result = look_at(cli, datetime(2026, 6, 4, tzinfo=UTC), "status", "--no-box", "--max-age", "2d")
    assert (result.code, "20260601_000000" in result.out) == (1, True)


def test_a_snapshot_from_the_future_hides_nothing(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """A snapshot of a night with a wrong clock makes no monitor content, and a shrink is still found."""
    fill(source, "docs", 10)
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    assert run_at(cli, datetime(2026, 6, 1, tzinfo=UTC)).code == 0
    source.delete_all(KEYSPACE, "docs")
    assert run_at(cli, datetime(2036, 6, 1, tzinfo=UTC), "--max-shrink", "100").code == 0
    status = look_at(cli, datetime(2026, 6, 5, tzinfo=UTC), "status", "--max-age", "2d")
    assert (status.code, status.out.count("20260601_000000"), status.out.count("2036")) == (1, 2, 0)
    assert run_at(cli, datetime(2026, 6, 5, tzinfo=UTC)).code == 5


def test_status_names_each_scope_and_repeats_a_shrink_until_it_is_settled(
    source: DataApiEmulator, target: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """Two databases: each has its rows; a shrink is told night after night, until the shrunk one or what is from before
    it is gone from both places; one that is too old fails for both, unless the scope is narrowed.
    """
    cli.with_box(box)
    fill(source, "docs", 10)
    fill(target, "docs", 2)
    ours = ("--api-endpoint", source.url)
    night(cli, 1, 0, *ours)
    night(cli, 2, 0, "--api-endpoint", target.url)
    source.delete_all(KEYSPACE, "docs")
    night(cli, 3, 5, *ours)
    for day in (4, 5):
        night(cli, day, 0, *ours)
        status = look_at(cli, datetime(2026, 6, day, 1, tzinfo=UTC), "status", "--json", "--max-age", "30h")
        rows = {(row["place"], row["api_endpoint"]): row for row in status.json["newest"]}
        assert len(rows) == len(status.json["newest"]) == 4
        shrinks = {key: row["shrinks"] for key, row in rows.items() if row["shrinks"]}
        assert list(shrinks) == [("in Box", source.url)]
        assert shrinks["in Box", source.url][0].startswith(
            "20260603_000000: shrunk since 20260601_000000: docs: 10 doc"
        )
        assert (status.code, rows["in Box", target.url]["ok"]) == (1, False), "the other database is two days old"
    now = datetime(2026, 6, 5, 1, tzinfo=UTC)
    assert look_at(cli, now, "status", "--max-age", "30h", *ours).code == 0
    assert look_at(cli, now, "status", "--max-age", "30h", *ours, "--no-box").out.count("! shrunk") == 1
    shutil.rmtree(cli.backups / "20260603_000000")
    assert "! shrunk" in look_at(cli, now, "status").out, "Box still has the pair"
    box.purge(box.files()["20260603_000000.zip"])
    assert "! shrunk" not in look_at(cli, now, "status").out


def test_a_shrink_is_settled_when_nothing_from_before_is_left(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """Deleting what is from before the shrink ends the reminder, too, and the shrunk one obeys the rules again; where
    Box counts and has nothing, the reminder stands all the same.
    """
    cli.environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_BOX": "false"}
    fill(source, "docs", 10)
    night(cli, 1, 0)
    source.delete_all(KEYSPACE, "docs")
    night(cli, 2, 5)
    night(cli, 3, 0)
    now = datetime(2026, 6, 3, 1, tzinfo=UTC)
    assert "! shrunk  20260602_000000" in look_at(cli, now, "status").out
    in_box = look_at(cli.with_box(box), now, "status", "--box")
    assert (in_box.code, in_box.out.count("! shrunk  20260602_000000")) == (1, 1)
    del cli.environ["BOX_FOLDER_ID"]
    assert look_at(cli, now, "prune", "--keep-last", "1").code == 0
    assert days(names(cli)) == ["01", "02", "03"]
    shutil.rmtree(cli.backups / "20260601_000000")
    assert "! shrunk" not in look_at(cli, now, "status").out
    assert look_at(cli, now, "prune", "--keep-last", "1").code == 0
    assert days(names(cli)) == ["03"]


def test_where_box_is_in_use_and_not_looked_at_a_shrunk_one_stays(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """With --no-box where Box is configured, nobody knows what the shrunk snapshot is compared with: it stays."""
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    fill(source, "docs", 10)
    night(cli, 1, 0)
    source.delete_all(KEYSPACE, "docs")
    shutil.rmtree(cli.backups / "20260601_000000")  # a new machine
    box.can_upload = False
    night(cli, 2, 3)
    box.can_upload = True
    night(cli, 3, 0)
    now = datetime(2026, 6, 3, 1, tzinfo=UTC)
    assert look_at(cli, now, "prune", "--no-box", "--keep-last", "1").code == 0
    assert days(names(cli)) == ["02", "03"]
    assert look_at(cli, now, "prune", "--keep-last", "1", "--box-keep-last", "1").code == 0
    assert (days(names(cli)), days(box.files())) == (["02", "03"], ["01", "03"])


def test_an_old_incomplete_one_that_is_the_only_copy_is_not_pruned(source: DataApiEmulator, cli: Cli) -> None:
    """Nights that all fail, and then none: prune as a job of its own deletes nothing that nothing newer replaces."""
    cli.environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_BOX": "0"}
    fill(source, "docs", 3)
    fill(source, "bad", 3)
    source.add_fault("error", command="find", collection="bad", times=None, errorCode="INVALID_QUERY")
    night(cli, 1, 2)
    prune = ("prune", "--keep-last", "1", "--keep-incomplete-days", "7")
    assert look_at(cli, datetime(2026, 6, 20, tzinfo=UTC), *prune).code == 0
    assert names(cli) == ["20260601_000000.INCOMPLETE"]


def test_the_list_has_both_places_newest_first(
    source: DataApiEmulator, target: DataApiEmulator, box: BoxEmulator, cli: Cli
) -> None:
    """List shows source, time, documents, size and status, here and in Box; a scope narrows it; JSON is one object."""
    cli.with_box(box)
    fill(source, "docs", 3)
    fill(target, "docs", 7)
    night(cli, 1, 0, "--api-endpoint", source.url)
    night(cli, 2, 0, "--api-endpoint", target.url, "--no-box")
    listed = cli.stored("list")
    assert listed.code == 0, listed.err
    assert [line.split()[:3] for line in listed.out.splitlines()] == [
        ["20260602_000000", "here", "complete"],
        ["20260601_000000", "in", "Box"],
        ["20260601_000000", "here", "complete"],
    ]
    assert "7 documents" in listed.out.splitlines()[0]
    assert listed.out.splitlines()[0].endswith(f"keyspace {KEYSPACE} at {target.url}")
    narrowed = cli.stored("list", "--json", "--api-endpoint", source.url).json
    assert narrowed["exit_code"] == 0
    assert [(row["place"], row["documents"]) for row in narrowed["snapshots"]] == [("in Box", 3), ("here", 3)]
    (row,) = cli.stored("list", "--json", "--no-box", "--keyspace", KEYSPACE, "--api-endpoint", source.url).json[
        "snapshots"
    ]
    assert row == cli.run("restore.py", "--list", "--source", source.url, "--json").json["snapshots"][0]


def test_prune_says_where_what_goes_goes(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """What is deleted in Box is in its trash, and the dry run and the real run say that it counts against the quota."""
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    source.create(KEYSPACE, "docs")
    night(cli, 1, 0)
    night(cli, 2, 0)
    now = datetime(2026, 6, 2, 1, tzinfo=UTC)
    dry = look_at(cli, now, "prune", "--dry-run", "--box-keep-last", "1")
    real = look_at(cli, now, "prune", "--box-keep-last", "1")
    assert "counts against the quota" in dry.err
    assert "counts against the quota" in real.out
    assert len(box.trash()) == 1


@pytest.mark.parametrize("command", ["list", "status", "prune"])
def test_box_that_is_not_reached_is_1_and_nothing_is_deleted(
    source: DataApiEmulator, box: BoxEmulator, cli: Cli, command: str
) -> None:
    """What is in Box may be a reason to keep something here: without it, no command pretends to know."""
    cli.with_box(box).environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_KEEP_LAST": "1"}
    source.create(KEYSPACE, "docs")
    for _ in range(2):
        assert cli.run("astra_backup.py").code == 0
    box.folder_shared = False
    result = cli.stored(command, "--json")
    assert (result.code, result.json["exit_code"]) == (1, 1)
    assert "BOX_FOLDER_ID" in result.json["hint"]
    assert len(cli.snapshots()) == 2


@pytest.mark.parametrize("arguments", [["prune", "--keep-last", "0"], ["status", "--max-age", "26"], ["nothing"], []])
def test_a_mistake_in_the_command_line_is_1(cli: Cli, arguments: list[str]) -> None:
    """Click's own mistakes are 1, and an object with --json, wherever that stands."""
    assert cli.stored(*arguments).code == 1 if arguments else cli.run("snapshots.py").code == 1
    if arguments:
        result = cli.stored(*arguments, "--json")
        assert (result.code, result.json["exit_code"]) == (1, 1)


def test_a_list_of_another_source_says_so(source: DataApiEmulator, cli: Cli) -> None:
    """Where no snapshot is of the source that was named, the list says that, and not that there is none."""
    fill(source, "docs", 3)
    cli.backup(source)
    listed = cli.run("restore.py", "--list", "--source", "nowhere")
    assert "No snapshot is of nowhere." in listed.err


@pytest.mark.parametrize("given", [{"BACKUP_KEEP_LAST": "0"}, {}], ids=["variable", "option"])
def test_a_rule_that_would_keep_nothing_says_how_to_switch_it_off(cli: Cli, given: dict[str, str]) -> None:
    """0 is no number of snapshots to keep: exit 1, and what to do instead."""
    result = cli.stored("prune", "--no-box", *([] if given else ["--keep-last", "0"]), **given)
    assert result.code == 1
    assert "a rule keeps at least 1. To switch it off, leave out the option and its variable." in result.err


def test_without_a_command_the_help_is_printed_as_it_is(cli: Cli) -> None:
    """Exit 1, since nothing was done, and the help without a log line around it."""
    result = cli.run("snapshots.py")
    assert result.code == 1
    assert result.err.startswith("Usage: ")
    assert "ERROR" not in result.err
    assert result.err == cli.run("snapshots.py", "--help").out


def test_the_list_of_commands_is_not_cut_off(cli: Cli) -> None:
    """Each command has a whole sentence beside it, at 80 columns."""
    commands = cli.run("snapshots.py", "-h", COLUMNS="80").out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in commands] == ["list", "prune", "status", "upload"]
    assert all(line.endswith(".") and not line.endswith("..") for line in commands)


def test_a_zip_that_was_kept_is_named_as_one(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """A zip of --keep-download is never deleted, and the reason says whose task that is; Box keeps its capital."""
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    fill(source, "docs", 3)
    night(cli, 1, 0)
    night(cli, 2, 0)
    assert cli.run("restore.py", "--from-box", "20260602_000000", "--keep-download", "--verify-only").code == 0
    moment = datetime(2026, 6, 3, tzinfo=UTC)
    planned = look_at(cli, moment, "prune", "--keep-last", 1, "--box-keep-last", 1, "--dry-run")
    assert re.search(
        r"here +stays +20260602_000000\.zip +a downloaded zip: delete it by hand$", planned.out, re.MULTILINE
    )
    assert "What is deleted in Box goes to its trash" in planned.err
    assert look_at(cli, moment, "prune", "--keep-last", 1, "--box-keep-last", 1).code == 0
    assert names(cli) == ["20260602_000000", "20260602_000000.zip"]


def test_what_a_restore_from_box_still_needs_stays_there(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """Its journal lies in the directory that prune looks at, though the snapshot is in Box only."""
    fill(source, "docs", 1)
    cli.with_box(box)
    for day in (1, 2, 3):
        night(cli, day, 0, "--api-endpoint", source.url)
    cli.environ["ASTRA_DB_API_ENDPOINT"] = source.url
    journal = cli.backups / ".restore-20260601_000000-0123abcd.journal"
    journal.touch()
    now = datetime(2026, 6, 4, tzinfo=UTC)
    assert "a restore of it has not ended" in look_at(cli, now, "prune", "--box-keep-last", "1", "--dry-run").out
    assert look_at(cli, now, "prune", "--box-keep-last", "1").code == 0
    assert sorted(box.files()) == ["20260601_000000.zip", "20260603_000000.zip"]
    journal.unlink()
    assert look_at(cli, now, "prune", "--box-keep-last", "1").code == 0
    assert sorted(box.files()) == ["20260603_000000.zip"]


def test_status_counts_a_keyspace_that_has_only_incomplete_snapshots(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """Beside another one that is complete, too: each scope needs a complete snapshot."""
    cli.environ |= {"BACKUP_BOX": "false"}
    for emulator in (source, target):
        fill(emulator, "docs", 1)
    target.faults = [{"command": "find", "action": "status", "status": 403, "times": None}]
    night(cli, 1, 0, "--api-endpoint", source.url)
    night(cli, 2, 2, "--api-endpoint", target.url)
    status = look_at(cli, datetime(2026, 6, 2, tzinfo=UTC), "status")
    assert status.code == 1
    assert f"at {source.url}" in status.out.splitlines()[0]
    assert f"✗ here    no complete snapshot of keyspace {KEYSPACE} at {target.url}" in status.out


def test_status_names_the_source_of_what_is_only_incomplete(source: DataApiEmulator, cli: Cli) -> None:
    """Where there are but INCOMPLETE snapshots, status says of which database none is complete; one document is one."""
    cli.environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_BOX": "false"}
    fill(source, "docs", 1)
    fill(source, "bad", 1)
    source.faults = [{"command": "find", "collection": "bad", "action": "status", "status": 403, "times": None}]
    night(cli, 1, 2)
    status = look_at(cli, datetime(2026, 6, 2, tzinfo=UTC), "status")
    assert status.code == 1
    assert f"no complete snapshot of keyspace {KEYSPACE} at {source.url}" in status.out
    assert re.search(r" 1 document  ", look_at(cli, datetime(2026, 6, 2, tzinfo=UTC), "list").out)
