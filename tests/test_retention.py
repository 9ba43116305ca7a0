"""What is kept and what goes: the pure decisions over random histories, and the real deletion on real directories."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import astra_backup
from astra_backup import Decision, Found, KeepRules, Scope, parse_snapshot_name, plan_retention, snapshot_name

NOW = datetime(2026, 7, 1, 3, 0, 0, tzinfo=UTC)
ENDPOINT = "http://127.0.0.1:8181"
FOREIGN = (
    "notes.txt",
    "20260616_085246.zip",
    "20260616_085246.incomplete",
    "20260616_085246 ",
    "20260616_0852460",
    "20260631_085246",  # no such day
    "20260616_085246.INCOMPLETE.bak",
    "x20260616_085246",
    "２０２６0616_085246",  # digits, but not these
    "latest",
    "20260616_085246.deleting",
)

ages = st.one_of(
    st.integers(0, 3 * 24 * 3600),
    st.integers(0, 500).map(lambda days: days * 24 * 3600),  # exactly the same time of day: where periods begin
    st.integers(-3 * 24 * 3600, 500 * 24 * 3600),  # some are dated in the future
)
counts = st.none() | st.integers(1, 8)
rules = st.builds(KeepRules, last=counts, daily=counts, weekly=counts, monthly=counts)


@dataclass(frozen=True)
class Made:
    """A thing in the output directory: its name, what it is, and the snapshot that held far more."""

    name: str
    kind: str
    shrunk_from: str | None = None


@st.composite
def histories(draw: st.DrawFn) -> list[Made]:
    """Complete, incomplete, damaged and foreign names in any order; each time is there once."""
    kinds = st.sampled_from(["good", "good", "good", "incomplete", "damaged", "other source", "other selection"])
    things: dict[str, Made] = {}
    for age, kind in draw(st.lists(st.tuples(ages, kinds), max_size=14)):
        name = snapshot_name(NOW - timedelta(seconds=age)) + (".INCOMPLETE" if kind == "incomplete" else "")
        things.setdefault(name[:15], Made(name, kind))
    names = draw(st.lists(st.sampled_from(FOREIGN), unique=True, max_size=4))
    history = [*things.values(), *(Made(name, "foreign") for name in names)]
    if things and draw(st.integers(0, 2)) == 0:
        shrunk, before = (draw(st.sampled_from(sorted(things))) for _ in range(2))
        if before < shrunk:
            history = [replace(made, shrunk_from=before) if made.name == shrunk else made for made in history]
    return history


def found_of(made: Made) -> Found:
    """What a survey says of a thing."""
    obstacles = {"damaged": "damaged: a bit", "other source": "of another database", "other selection": "of others"}
    is_good = made.kind == "good"
    return Found(made.name, is_good, obstacles.get(made.kind, ""), made.kind == "damaged", made.shrunk_from)


def decide(history: list[Found], given_rules: KeepRules, days: int = 7) -> dict[str, Decision]:
    """The decisions by name."""
    return {one.name: one for one in plan_retention(history, given_rules, incomplete_days=days, now=NOW)}


def expected_kept(history: list[Made], given_rules: KeepRules) -> set[str]:
    """The good names that stay, worked out another way: the newest of each of the newest N periods, and shrinks."""
    good = {made.name: made for made in history if made.kind == "good" and made.name <= snapshot_name(NOW)}
    names = sorted(good, reverse=True)
    shrunk = [made for made in good.values() if made.shrunk_from in good]
    kept = {*names[:1], *(made.name for made in shrunk), *(str(made.shrunk_from) for made in shrunk)}
    for count, form in (
        (given_rules.last, "%Y%m%d%H%M%S"),
        (given_rules.daily, "%Y%m%d"),
        (given_rules.weekly, "%G%V"),
        (given_rules.monthly, "%Y%m"),
    ):
        newest: dict[str, str] = {}
        for name in sorted(names):
            newest[datetime.strptime(name, "%Y%m%d_%H%M%S").replace(tzinfo=UTC).strftime(form)] = name
        kept |= {newest[period] for period in sorted(newest)[-count:]} if count else set()
    return kept


# ------------------------------------------------------------------------------------------------ pure decisions


@given(history=histories(), given_rules=rules, days=st.integers(0, 30))
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_must_survive_survives(history: list[Made], given_rules: KeepRules, days: int) -> None:
    """In 3,000 random histories the newest good snapshot, foreign, damaged and other databases' names stay; no more
    and no less goes than the rules say; the order of the listing changes nothing.
    """
    found = [found_of(made) for made in history]
    decisions = decide(found, given_rules, days)
    assert decisions == decide(found[::-1], given_rules, days)
    assert {made.name for made in history} == set(decisions)
    gone = {name for name, decision in decisions.items() if not decision.stays}
    good = sorted((m.name for m in history if m.kind == "good" and m.name <= snapshot_name(NOW)), reverse=True)
    if not given_rules.is_on:
        assert gone == set()
        return
    oldest_incomplete = snapshot_name(NOW - timedelta(days=days))
    old = {m.name for m in history if m.kind == "incomplete" and m.name[:15] < oldest_incomplete}
    assert gone == (set(good) - expected_kept(history, given_rules)) | old
    assert not gone & set(good[:1])
    assert all(decision.reason for decision in decisions.values())


@given(history=histories(), given_rules=rules)
@settings(max_examples=300, deadline=None)
def test_pruning_twice_deletes_nothing_more(history: list[Made], given_rules: KeepRules) -> None:
    """What stays once stays again: a second run over what is left deletes nothing."""
    decisions = decide([found_of(made) for made in history], given_rules)
    left = [made for made in history if decisions[made.name].stays]
    again = decide([found_of(made) for made in left], given_rules)
    assert all(decision.stays for decision in again.values())


def nights(count: int) -> list[str]:
    """Names of nightly snapshots, the newest first."""
    return [snapshot_name(NOW - timedelta(days=number)) for number in range(count)]


@pytest.mark.parametrize(
    ("given_rules", "kept"),
    [
        (KeepRules(last=3), ["20260701", "20260630", "20260629"]),
        (KeepRules(daily=2), ["20260701", "20260630"]),
        (KeepRules(weekly=3), ["20260701", "20260628", "20260621"]),  # Sundays end weeks
        (KeepRules(monthly=3), ["20260701", "20260630", "20260531"]),
        (KeepRules(last=1, monthly=2), ["20260701", "20260630"]),
    ],
    ids=str,
)
def test_each_rule_keeps_the_newest_of_its_periods(given_rules: KeepRules, kept: list[str]) -> None:
    """A hundred nights under each rule, counted by hand."""
    decisions = decide([Found(name, is_good=True) for name in nights(100)], given_rules)
    assert [name[:8] for name, decision in decisions.items() if decision.stays] == kept


def test_a_damaged_snapshot_takes_no_place() -> None:
    """With --keep-last 2 and the newest damaged, two good ones stay, and the damaged one stays too."""
    names = nights(4)
    found = [Found(names[0], obstacle="damaged", is_damaged=True), *(Found(name, is_good=True) for name in names[1:])]
    decisions = decide(found, KeepRules(last=2))
    assert [decision.stays for decision in decisions.values()] == [True, True, True, False]


def test_a_snapshot_from_the_future_pushes_nothing_out() -> None:
    """A clock that was once wrong leaves a snapshot of the future; it stays, and so does the newest of today."""
    future = snapshot_name(NOW + timedelta(days=3650))
    decisions = decide([Found(name, is_good=True) for name in (future, *nights(3))], KeepRules(last=1))
    assert [name for name, decision in decisions.items() if decision.stays] == [future, nights(1)[0]]


def test_what_was_there_before_a_shrink_stays_until_a_person_deletes_it() -> None:
    """After a shrink each night looks fine again, but retention never eats the last copy of what is gone."""
    names = nights(100)
    found = [Found(name, is_good=True, shrunk_from=names[51] if name == names[50] else None) for name in names]
    decisions = decide(found, KeepRules(last=3))
    assert [name for name, decision in decisions.items() if decision.stays] == [*names[:3], *names[50:52]]
    assert decisions[names[51]].reason == f"the last before the shrink in {names[50]}"
    one_deleted = [one for one in found if one.name != names[50]]
    assert not decide(one_deleted, KeepRules(last=3))[names[51]].stays


# ------------------------------------------------------------------------------------------------ real directories


def make_snapshot(directory: Path, made: Made) -> None:
    """A small snapshot of the given kind, written without the product's code."""
    path = directory / made.name
    if made.kind == "foreign":
        path.mkdir()
        (path / "manifest.json").write_text("{}")
        return
    path.mkdir()
    line = json.dumps({"_id": made.name}) + "\n"
    (path / "docs.jsonl").write_text(line)
    failed = made.kind == "incomplete"
    record = {
        "name": "docs",
        "status": "failed" if failed else "ok",
        "data_file": "docs.jsonl",
        "data_sha256": hashlib.sha256(line.encode()).hexdigest(),
        "data_size_bytes": len(line),
        "document_count": 1,
        "content_digest": "0" * 64,
    }
    manifest: dict[str, Any] = {
        "backup_format_version": "1.0",
        "status": "incomplete" if failed else "complete",
        "source": {"api_endpoint": ENDPOINT + ("1" * (made.kind == "other source")), "keyspace": "default_keyspace"},
        **({"shrunk_from": made.shrunk_from} if made.shrunk_from else {}),
        "totals": {"collections_ok": 1, "collections_failed": 0, "documents": 1},
        "collections": [record],
    }
    if made.kind == "other selection":
        manifest["selection"] = {"collections": ["docs"], "exclude": []}
    text = json.dumps(manifest)
    (path / "manifest.json").write_text(text)
    sums = {"docs.jsonl": line, "manifest.json": text}
    (path / "SHA256SUMS").write_text(
        "".join(f"{hashlib.sha256(content.encode()).hexdigest()}  {name}\n" for name, content in sums.items())
    )
    if made.kind == "damaged":
        DAMAGES[sorted(DAMAGES)[int(hashlib.sha256(made.name.encode()).hexdigest(), 16) % len(DAMAGES)]](path)


def change(path: Path, old: str, new: str) -> None:
    """Replace something in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a byte of the data": lambda path: change(path / "docs.jsonl", "_id", "_ix"),
    "a byte of the manifest": lambda path: change(path / "manifest.json", "docs", "docz"),
    "the manifest cut short": lambda path: change(path / "manifest.json", "}", ""),
    "no data": lambda path: (path / "docs.jsonl").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "no checksums": lambda path: (path / "SHA256SUMS").unlink(),
    "checksums of less": lambda path: change(path / "SHA256SUMS", (path / "SHA256SUMS").read_text().split("\n")[0], ""),
    "an extra file": lambda path: (path / "extra").touch(),
}
"""What can be wrong with a snapshot whose name says that it is complete."""


class Quiet(astra_backup.Report):
    """A report that nobody watches."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.is_live = False


OPTIONS = {"keep_incomplete_days": 7, **{f"box_keep_{rule}": None for rule in ("last", "daily", "weekly", "monthly")}}
SCOPE = Scope(ENDPOINT, "default_keyspace")


@contextlib.contextmanager
def at(moment: datetime) -> Iterator[None]:
    """The product's clock stands still."""
    real = astra_backup.utc_now
    astra_backup.utc_now = lambda: moment
    try:
        yield
    finally:
        astra_backup.utc_now = real


@given(history=histories(), given_rules=st.builds(KeepRules, last=st.integers(1, 2), monthly=st.none() | st.just(2)))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_dry_run_predicts_the_real_run(
    tmp_path_factory: pytest.TempPathFactory, history: list[Made], given_rules: KeepRules
) -> None:
    """On real directories: what --prune-dry-run prints is what is left and what goes afterwards, name by name; what
    stays is untouched to the last byte, and no name is left behind that promises more than is there.
    """
    directory = tmp_path_factory.mktemp("backups")
    for made in history:
        make_snapshot(directory, made)
    options = OPTIONS | {
        "output_dir": directory,
        "api_endpoint": ENDPOINT,
        "keyspace": "default_keyspace",
        "quiet": True,
        "as_json": True,
        "keep_last": given_rules.last,
        "keep_daily": given_rules.daily,
        "keep_weekly": given_rules.weekly,
        "keep_monthly": given_rules.monthly,
    }
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    printed: list[str] = []
    with at(NOW), pytest.MonkeyPatch.context() as patch:
        patch.setattr(astra_backup, "print_result", printed.append)  # where it goes, not what it says
        assert astra_backup.run_prune_dry_run(options, (), (), to_box=False) == 0
        assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
        source = astra_backup.Source(ENDPOINT, "default_keyspace")
        manifest = astra_backup.Manifest("1.0", source=source)
        result = astra_backup.BackupResult(astra_backup.Exit.OK, directory, manifest, [])
        deleted = astra_backup.prune(result, options, None, Quiet()).deleted.get("here", [])
    predicted = {row["name"]: row["stays"] for row in json.loads(printed[0])["snapshots"]}
    left = {path.name for path in directory.iterdir()} - {".lock"}
    assert left == {name for name, stays in predicted.items() if stays}
    assert sorted(deleted) == sorted(name for name, stays in predicted.items() if not stays)
    assert {path.name for path in before} <= {"manifest.json", "docs.jsonl", "SHA256SUMS", "extra"}
    assert all(path.read_bytes() == content for path, content in before.items() if path.parent.name in left)
    good = sorted(m.name for m in history if m.kind == "good" and m.name <= snapshot_name(NOW))
    assert set(good[-1:]) <= left
    assert {made.name for made in history if made.kind in ("foreign", "damaged", "other source")} <= left
    shutil.rmtree(directory)


def test_a_prune_that_is_killed_leaves_no_half_under_a_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When deleting dies at its first file, the snapshot has lost its name already; the next run sweeps the rest."""
    make_snapshot(tmp_path, Made(nights(1)[0], "good"))

    def die(path: Path, **_: object) -> None:
        raise KeyboardInterrupt(str(path))

    monkeypatch.setattr(shutil, "rmtree", die)  # the operating system's part, not ours
    with pytest.raises(KeyboardInterrupt):
        astra_backup.delete_local(tmp_path, nights(1)[0])
    monkeypatch.undo()
    assert [parse_snapshot_name(path.name) for path in tmp_path.iterdir()] == [None]
    with astra_backup.OutputDir(tmp_path) as output:
        output.sweep()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_name_is_never_deleted(tmp_path: Path, name: str) -> None:
    """The one function that deletes refuses a name that is not exactly ours."""
    (tmp_path / name).mkdir()
    with pytest.raises(astra_backup.BackupError):
        astra_backup.delete_local(tmp_path, name)
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_found_stays_and_takes_no_place(tmp_path: Path, damage: str) -> None:
    """Whatever is wrong with the newest of three snapshots, it counts as nothing: the one before it is kept."""
    for name in nights(3):
        make_snapshot(tmp_path, Made(name, "good"))
    DAMAGES[damage](tmp_path / nights(1)[0])
    decisions = decide(astra_backup.survey_local(tmp_path, SCOPE, Quiet()), KeepRules(last=1))
    assert [decision.stays for decision in decisions.values()] == [True, True, False]
    assert decisions[nights(1)[0]].reason.startswith(("damaged: ", "of another"))


def test_incomplete_ones_of_other_databases_stay(tmp_path: Path) -> None:
    """An old INCOMPLETE snapshot goes, but not one of another keyspace or database: that is another job's business."""
    ours, theirs = (name + ".INCOMPLETE" for name in nights(30)[-2:])
    make_snapshot(tmp_path, Made(ours, "incomplete"))
    make_snapshot(tmp_path, Made(theirs, "incomplete"))
    change(tmp_path / theirs / "manifest.json", '"keyspace": "default_keyspace"', '"keyspace": "other"')
    decisions = decide(astra_backup.survey_local(tmp_path, SCOPE, Quiet()), KeepRules(last=1))
    assert {name: decision.stays for name, decision in decisions.items()} == {ours: False, theirs: True}


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link with a snapshot's name is none of ours: it stays, and what it leads to stays."""
    elsewhere = tmp_path / "elsewhere"
    output = tmp_path / "backups"
    elsewhere.mkdir()
    output.mkdir()
    old, new = nights(2)[1], nights(1)[0]
    make_snapshot(elsewhere, Made(old, "good"))
    (output / old).symlink_to(elsewhere / old)
    make_snapshot(output, Made(new, "good"))
    found = astra_backup.survey_local(output, SCOPE, Quiet())
    assert decide(found, KeepRules(last=1))[old] == Decision(old, True, "not a directory")


def test_a_snapshot_that_is_being_restored_stays(tmp_path: Path) -> None:
    """While a restore's journal lies beside it, a snapshot is not deleted: the restore would need it to go on."""
    for name in nights(3):
        make_snapshot(tmp_path, Made(name, "good"))
    (tmp_path / f".restore-{nights(3)[2]}-0123abcd.journal").touch()
    decisions = decide(astra_backup.survey_local(tmp_path, SCOPE, Quiet()), KeepRules(last=1))
    assert [decision.stays for decision in decisions.values()] == [True, False, True]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_stays(tmp_path: Path) -> None:
    """A snapshot without the right to read it is not taken for a bad one that may go."""
    for name in nights(3):
        make_snapshot(tmp_path, Made(name, "good"))
    (tmp_path / nights(3)[2]).chmod(0)
    decisions = decide(astra_backup.survey_local(tmp_path, SCOPE, Quiet()), KeepRules(last=1))
    (tmp_path / nights(3)[2]).chmod(0o700)
    assert [decision.stays for decision in decisions.values()] == [True, False, True]


def test_while_another_run_holds_the_directory_nothing_is_deleted(tmp_path: Path) -> None:
    """A prune that finds the directory locked deletes nothing and says so; the backup's result stands."""
    for name in nights(3):
        make_snapshot(tmp_path, Made(name, "good"))
    manifest = astra_backup.Manifest("1.0", source=astra_backup.Source(ENDPOINT, "default_keyspace"))
    result = astra_backup.BackupResult(astra_backup.Exit.OK, tmp_path, manifest, [])
    options = OPTIONS | {"output_dir": tmp_path, "keep_last": 1}
    options |= dict.fromkeys(("keep_daily", "keep_weekly", "keep_monthly"))
    report = Quiet()
    with astra_backup.OutputDir(tmp_path):
        thread = threading.Thread(target=lambda: astra_backup.prune(result, options, None, report))
        thread.start()
        thread.join(20)
    assert len(report.warnings) == 1
    assert len([path for path in tmp_path.iterdir() if parse_snapshot_name(path.name)]) == 3
