"""What is kept and what goes: the pure decisions over random histories, and the real deletion on real directories."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import astra_backup
import snapshots
from astra_backup import Scope, parse_snapshot_name, snapshot_name
from snapshots import Decision, Found, KeepRules, plan_retention
from tests.conftest import Cli

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

SCOPE = Scope(ENDPOINT, "default_keyspace")
OTHER = Scope(ENDPOINT, "other")

HISTORIES = 200  # of 25 nights each

ages = st.one_of(
    st.integers(0, 3 * 24 * 3600),
    st.integers(0, 500).map(lambda days: days * 24 * 3600),  # exactly the same time of day: where periods begin
    st.integers(-3 * 24 * 3600, 500 * 24 * 3600),  # some are dated in the future
)
counts = st.none() | st.integers(1, 8)
rules = st.builds(KeepRules, last=counts, daily=counts, weekly=counts, monthly=counts)


@dataclass(frozen=True)
class Made:
    """A snapshot, or a thing that looks like one: its name, what it is here and in Box ("": it is not there), and the
    snapshot that held far more.
    """

    name: str
    kind: str
    shrunk_from: str | None = None
    in_box: str = ""


HERE_KINDS = (
    "good",
    "good",
    "good",
    "",
    "incomplete",
    "damaged",
    "unreadable",
    "busy",
    "other source",
    "other selection",
)
BOX_KINDS = ("good", "good", "good", "", "", "damaged", "unreadable", "other source", "other selection")
READABLE = ("good", "damaged", "busy")
"""What it may be while its manifest still tells that it is of the scope, and that it shrank."""


@st.composite
def histories(draw: st.DrawFn) -> list[Made]:
    """Complete, incomplete, damaged and foreign names in any order, each once, here, in Box, or in both."""
    kinds = st.tuples(st.sampled_from(HERE_KINDS), st.sampled_from(BOX_KINDS))
    things: dict[str, Made] = {}
    for age, (here, in_box) in draw(st.lists(st.tuples(ages, kinds), max_size=14)):
        is_incomplete = here == "incomplete"
        name = snapshot_name(NOW - timedelta(seconds=age)) + (".INCOMPLETE" if is_incomplete else "")
        things.setdefault(name[:15], Made(name, here, in_box="" if is_incomplete else in_box))
    names = draw(st.lists(st.sampled_from(FOREIGN), unique=True, max_size=4))
    for shrunk in draw(st.lists(st.sampled_from(sorted(things)), max_size=3)) if things else []:
        before = draw(st.sampled_from(sorted(things)))
        if before < shrunk and things[shrunk].name == shrunk:
            things[shrunk] = replace(things[shrunk], shrunk_from=before)
    return [*things.values(), *(Made(name, "foreign") for name in names)]


def found_of(name: str, kind: str, shrunk_from: str | None) -> Found:
    """What a survey says of a thing."""
    obstacles = {
        "damaged": "damaged: a bit",
        "unreadable": "damaged: no manifest",
        "busy": "a restore of it has not ended",
        "other source": "of another database",
        "other selection": "of others",
    }
    scope = OTHER if kind.startswith("other") else SCOPE
    return Found(
        name,
        scope if kind not in ("unreadable", "foreign") else None,
        is_good=kind == "good",
        obstacle=obstacles.get(kind, ""),
        is_damaged=kind in ("damaged", "unreadable"),
        shrunk_from=shrunk_from if kind in READABLE else None,
        is_unread=kind == "unreadable",
    )


def found_here(history: list[Made]) -> list[Found]:
    """What a survey of the directory says."""
    return [found_of(made.name, made.kind, made.shrunk_from) for made in history if made.kind]


def found_in_box(history: list[Made]) -> list[Found]:
    """What a survey of the folder says."""
    return [found_of(made.name, made.in_box, made.shrunk_from) for made in history if made.in_box]


def decide(
    history: list[Found], given_rules: KeepRules, days: int = 7, elsewhere: Iterable[Found] | None = ()
) -> dict[str, Decision]:
    """The decisions by name."""
    plan = plan_retention(history, given_rules, incomplete_days=days, now=NOW, elsewhere=elsewhere)
    return {one.name: one for one in plan}


def decide_both(
    history: list[Made], given_rules: KeepRules, days: int = 7
) -> tuple[dict[str, Decision], dict[str, Decision]]:
    """The decisions here and in Box, both places having been looked at."""
    here, in_box = found_here(history), found_in_box(history)
    return decide(here, given_rules, days, in_box), decide(in_box, given_rules, days, here)


def expected_kept(history: list[Made], good: list[str], given_rules: KeepRules) -> set[str]:
    """Which of the good names of one place, newest first, stay: worked out another way."""
    kept = {*good[:1]}
    for count, form in (
        (given_rules.last, "%Y%m%d%H%M%S"),
        (given_rules.daily, "%Y%m%d"),
        (given_rules.weekly, "%G%V"),
        (given_rules.monthly, "%Y%m"),
    ):
        newest: dict[str, str] = {}
        for name in sorted(good):
            newest[datetime.strptime(name, "%Y%m%d_%H%M%S").replace(tzinfo=UTC).strftime(form)] = name
        kept |= {newest[period] for period in sorted(newest)[-count:]} if count else set()
    return kept | kept_by_shrinks(history, set(good))


def kept_by_shrinks(history: list[Made], good: set[str]) -> set[str]:
    """Of a place's good names: the last one before each shrink that is known in any place, and the shrunk one, if
    something from before is left in any place; the last one before each snapshot that nobody can read.
    """
    kept: set[str] = set()
    ours = {*READABLE, "unreadable"}
    there = {made.name for made in history if ours & {made.kind, made.in_box}}
    for made in history:
        before = {name for name in good if name < made.name}
        if "unreadable" in (made.kind, made.in_box):
            kept |= {max(before, default="")}
        if made.shrunk_from and (made.kind in READABLE or made.in_box in READABLE):
            kept |= {max(before, default=""), max((n for n in before if n <= made.shrunk_from), default="")}
            if min(there) < made.name:
                kept |= {made.name} & good
    return kept - {""}


# ------------------------------------------------------------------------------------------------ pure decisions


@given(history=histories(), given_rules=rules, days=st.integers(0, 30))
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_must_survive_survives(history: list[Made], given_rules: KeepRules, days: int) -> None:
    """In 1,000 random histories of two places the newest good snapshot of each, what shrinks keep, foreign, damaged
    and other databases' names stay; no more and no less goes than the rules say; the order of the listing changes
    nothing, and no reason is given twice.
    """
    decisions = decide_both(history, given_rules, days)
    assert decisions == decide_both(history[::-1], given_rules, days)
    kinds = {made.name: made.kind for made in history if made.kind}, {m.name: m.in_box for m in history if m.in_box}
    oldest_incomplete = snapshot_name(NOW - timedelta(days=days))
    for decided, there in zip(decisions, kinds, strict=True):
        assert set(there) == set(decided)
        gone = {name for name, decision in decided.items() if not decision.stays}
        good = sorted((n for n in there if there[n] == "good" and n <= snapshot_name(NOW)), reverse=True)
        if not given_rules.is_on:
            assert gone == set()
            continue
        old = {
            name
            for name in there
            if there[name] == "incomplete" and name[:15] < oldest_incomplete and any(other > name for other in good)
        }
        assert gone == (set(good) - expected_kept(history, good, given_rules)) | old
        assert not gone & set(good[:1])
        reasons = [decision.reason.split("; ") for decision in decided.values()]
        assert all(all(texts) and len(texts) == len(set(texts)) for texts in reasons)


@given(history=histories(), given_rules=rules)
@settings(max_examples=300, deadline=None)
def test_pruning_twice_deletes_nothing_more(history: list[Made], given_rules: KeepRules) -> None:
    """What stays once stays again: a second run over what is left in both places deletes nothing."""
    here, in_box = decide_both(history, given_rules)
    left = [
        replace(
            made,
            kind=made.kind if made.kind and here[made.name].stays else "",
            in_box=made.in_box if made.in_box and in_box[made.name].stays else "",
        )
        for made in history
    ]
    assert all(decision.stays for again in decide_both(left, given_rules) for decision in again.values())


@given(history=histories(), given_rules=rules)
@settings(max_examples=300, deadline=None)
def test_where_nobody_looked_there_may_be_anything(history: list[Made], given_rules: KeepRules) -> None:
    """Without a look into Box, each shrunk snapshot stays here; otherwise it is as with an empty Box."""
    here = found_here(history)
    blind, alone = decide(here, given_rules, 7, None), decide(here, given_rules, 7, [])
    shrunk = {one.name for one in here if one.shrunk_from}
    for name, decision in blind.items():
        assert decision.stays if name in shrunk else decision == alone[name]


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
    decisions = decide([Found(name, SCOPE, is_good=True) for name in nights(100)], given_rules)
    assert [name[:8] for name, decision in decisions.items() if decision.stays] == kept


def test_what_nobody_has_proved_stays() -> None:
    """A complete snapshot of which nobody says that it is good stays, and pushes no good one out."""
    new, old = nights(2)
    decisions = decide([Found(new, SCOPE), Found(old, SCOPE, is_good=True)], KeepRules(last=1))
    assert (decisions[new].stays, decisions[new].reason) == (True, "not proved to be whole")
    assert decisions[old].stays


def test_a_damaged_snapshot_takes_no_place() -> None:
    """With --keep-last 2 and the newest damaged, two good ones stay, and the damaged one stays too."""
    names = nights(4)
    found = [Found(name, SCOPE, is_good=True) for name in names[1:]]
    found += [Found(names[0], SCOPE, obstacle="damaged", is_damaged=True)]
    decisions = decide(found, KeepRules(last=2))
    assert [decision.stays for decision in decisions.values()] == [True, True, True, False]


def test_a_snapshot_from_the_future_pushes_nothing_out() -> None:
    """A clock that was once wrong leaves a snapshot of the future; it stays, and so does the newest of today."""
    future = snapshot_name(NOW + timedelta(days=3650))
    decisions = decide([Found(name, SCOPE, is_good=True) for name in (future, *nights(3))], KeepRules(last=1))
    assert [name for name, decision in decisions.items() if decision.stays] == [future, nights(1)[0]]


def test_what_was_there_before_a_shrink_stays_until_a_person_deletes_it() -> None:
    """After a shrink each night looks fine again, but retention never eats the last copy of what is gone."""
    names = nights(100)
    found = [Found(name, SCOPE, is_good=True, shrunk_from=names[51] if name == names[50] else None) for name in names]
    decisions = decide(found, KeepRules(last=3))
    assert [name for name, decision in decisions.items() if decision.stays] == [*names[:3], *names[50:52]]
    assert decisions[names[51]].reason == f"the last before the shrink in {names[50]}"
    one_deleted = [one for one in found if one.name != names[50]]
    assert not decide(one_deleted, KeepRules(last=3))[names[51]].stays


# ------------------------------------------------------------------------------------------------ many nights


@dataclass
class Copy:
    """A snapshot in one place: the collections in it, the snapshot that held far more, and what it is now."""

    held: frozenset[str]
    shrunk_from: str | None
    kind: str = "good"


class Nights:
    """A backup each night to a directory and to Box, while collections come and go and everything else goes wrong.

    `settled` are collections whose loss a person has settled, by deleting every copy of the snapshot that shrank.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.live = {"a", "b", "c"}
        self.here: dict[str, Copy] = {}
        self.box: dict[str, Copy] = {}
        self.settled: set[str] = set()
        self.now = NOW - timedelta(days=30)
        self.keep_here, self.keep_in_box = KeepRules(last=random.randint(1, 3)), KeepRules(last=random.randint(1, 3))

    def chance(self, one_in: int) -> bool:
        """Whether something happens."""
        return self.random.randrange(one_in) == 0

    def run(self, label: str) -> None:
        """One night. Only after a success something is deleted."""
        self.now += timedelta(days=1)
        name = snapshot_name(self.now)
        here, in_box = ([i for i in place.items() if i[1].kind != "unreadable"] for place in (self.here, self.box))
        last, before = max(here or in_box, default=("", None), key=lambda item: item[0])
        if before is None:  # nothing to compare with: no alarm, and none is promised
            self.settled |= {"a", "b", "c", "d"} - self.live
        is_shrunk = before is not None and not before.held <= self.live
        copy = Copy(frozenset(self.live), last if is_shrunk else None)
        self.here[name] = copy
        is_uploaded = not self.chance(4)
        if is_uploaded:
            self.box[name] = replace(copy)
        if is_uploaded and not is_shrunk:
            self.prune(label)

    def prune(self, label: str) -> None:
        """Prune both places; no collection loses its last good copy in a place, but for those that were settled."""
        here, in_box = self.survey(self.here), self.survey(self.box, fails=self.chance(8))
        for place, found, given_rules, elsewhere in (
            (self.here, here, self.keep_here, in_box),
            (self.box, in_box, self.keep_in_box, here),
        ):
            before = self.held_in(place)
            for one in plan_retention(found, given_rules, incomplete_days=7, now=self.now, elsewhere=elsewhere):
                if not one.stays:
                    del place[one.name]
            assert before - self.held_in(place) <= self.settled, f"{label}: a last good copy was deleted"

    def survey(self, place: dict[str, Copy], *, fails: bool = False) -> list[Found]:
        """What can be seen of a place; sometimes a reading fails."""
        return [
            found_of(name, "unreadable" if fails and self.chance(2) else copy.kind, copy.shrunk_from)
            for name, copy in place.items()
        ]

    @staticmethod
    def held_in(place: dict[str, Copy]) -> set[str]:
        """The collections that a good snapshot of a place holds."""
        return {name for copy in place.values() if copy.kind == "good" for name in copy.held}

    def happen(self) -> None:
        """What a day brings."""
        if self.chance(4) and len(self.live) > 1:
            self.live.remove(self.random.choice(sorted(self.live)))
        if self.chance(6):
            self.live.add(self.random.choice("abcd"))
        place = self.random.choice([self.here, self.box])
        if self.chance(12) and place:
            place[self.random.choice(sorted(place))].kind = self.random.choice(["damaged", "unreadable"])
        if self.chance(10) and self.here:
            name = self.random.choice(sorted(self.here))
            self.box.setdefault(name, replace(self.here[name]))  # uploaded later
        if self.chance(10) and place:
            self.delete(self.random.choice(sorted(place)), self.random.choice([[place], [self.here, self.box]]))
        if self.chance(20) and all(name in self.box for name, copy in self.here.items() if copy.shrunk_from):
            self.here.clear()  # a new machine

    def delete(self, name: str, places: list[dict[str, Copy]]) -> None:
        """A person deletes copies of a snapshot."""
        copies = [place.pop(name) for place in places if name in place]
        if not (name in self.here or name in self.box) and any(copy.shrunk_from for copy in copies):
            self.settled |= {"a", "b", "c", "d"} - copies[0].held


def test_no_night_deletes_the_last_good_copy_of_a_dropped_collection() -> None:
    """Collections are dropped and come back, uploads fail and are made up for, disks rot, people delete, machines are
    replaced: until a person has settled the shrink, retention leaves in each place a good copy of what it had there.
    """
    for seed in range(HISTORIES):
        history = Nights(Random(seed))
        for day in range(25):
            history.run(f"seed {seed}, day {day}")
            history.happen()


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
    if made.kind == "busy":
        (directory / f".restore-{made.name}-0123abcd.journal").touch()
    elif made.kind == "unreadable":
        (path / "manifest.json").unlink()
    elif made.kind == "damaged":
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

    def __init__(self, **_: object) -> None:
        super().__init__(quiet=True)
        self.is_live = False


OPTIONS = {"keep_incomplete_days": 7, "to_box": False, "verbosity": None, "as_json": True, "dry_run": False}
OPTIONS |= {f"box_keep_{rule}": None for rule in ("last", "daily", "weekly", "monthly")}
OPTIONS |= {f"keep_{rule}": None for rule in ("last", "daily", "weekly", "monthly")}
OPTIONS |= {"api_endpoint": ENDPOINT, "keyspace": "default_keyspace"}
OURS = Scope(ENDPOINT, "default_keyspace")


@contextlib.contextmanager
def at(moment: datetime) -> Iterator[None]:
    """The product's clock stands still."""
    real = snapshots.utc_now
    snapshots.utc_now = lambda: moment
    try:
        yield
    finally:
        snapshots.utc_now = real


@given(history=histories(), given_rules=st.builds(KeepRules, last=st.integers(1, 2), monthly=st.none() | st.just(2)))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_dry_run_predicts_the_real_run(
    tmp_path_factory: pytest.TempPathFactory, history: list[Made], given_rules: KeepRules
) -> None:
    """On real directories: what the dry run prints is what is left and what goes afterwards, name by name; what
    stays is untouched to the last byte, and no name is left behind that promises more than is there.
    """
    directory = tmp_path_factory.mktemp("backups")
    history = [made for made in history if made.kind]
    for made in history:
        make_snapshot(directory, made)
    options = OPTIONS | {"output_dir": directory, "keep_last": given_rules.last, "keep_monthly": given_rules.monthly}
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    printed: list[str] = []
    with at(NOW), pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "print_result", printed.append)  # where it goes, not what it says
        patch.setattr(snapshots, "Report", Quiet)
        assert snapshots.run_prune(options | {"dry_run": True}) == 0
        assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
        assert snapshots.run_prune(options) == 0
    deleted = json.loads(printed[1])["deleted"]["here"]
    predicted = {row["name"]: row["stays"] for row in json.loads(printed[0])["snapshots"]}
    left = {path.name for path in directory.iterdir() if parse_snapshot_name(path.name) or path.name in FOREIGN}
    assert left == {name for name, stays in predicted.items() if stays}
    assert sorted(deleted) == sorted(name for name, stays in predicted.items() if not stays)
    files = {"manifest.json", "docs.jsonl", "SHA256SUMS", "extra"}
    assert {path.name for path in before if path.parent != directory} <= files
    assert all(path.read_bytes() == content for path, content in before.items() if path.parent.name in left)
    good = sorted(m.name for m in history if m.kind == "good" and m.name <= snapshot_name(NOW))
    assert set(good[-1:]) <= left
    kinds = ("foreign", "damaged", "unreadable", "busy", "other source")
    assert {made.name for made in history if made.kind in kinds} <= left
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
    decisions = decide(snapshots.survey_local(tmp_path, OURS, Quiet()), KeepRules(last=1))
    assert [decision.stays for decision in decisions.values()] == [True, True, False]
    assert decisions[nights(1)[0]].reason.startswith(("damaged: ", "of another"))


def test_incomplete_ones_of_other_databases_stay(tmp_path: Path) -> None:
    """An old INCOMPLETE snapshot goes, but not one of another keyspace or database: it was not asked for."""
    make_snapshot(tmp_path, Made(nights(1)[0], "good"))
    ours, theirs = (name + ".INCOMPLETE" for name in nights(30)[-2:])
    make_snapshot(tmp_path, Made(ours, "incomplete"))
    make_snapshot(tmp_path, Made(theirs, "incomplete"))
    change(tmp_path / theirs / "manifest.json", '"keyspace": "default_keyspace"', '"keyspace": "other"')
    decisions = decide(snapshots.survey_local(tmp_path, OURS, Quiet()), KeepRules(last=1))
    assert {name: decision.stays for name, decision in decisions.items()} == {
        nights(1)[0]: True,
        ours: False,
        theirs: True,
    }


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
    found = snapshots.survey_local(output, OURS, Quiet())
    assert decide(found, KeepRules(last=1))[old] == Decision(old, True, "not a directory")


def test_a_snapshot_that_is_being_restored_stays(tmp_path: Path) -> None:
    """While a restore's journal lies beside it, a snapshot is not deleted: the restore would need it to go on."""
    for name in nights(3):
        make_snapshot(tmp_path, Made(name, "good"))
    (tmp_path / f".restore-{nights(3)[2]}-0123abcd.journal").touch()
    decisions = decide(snapshots.survey_local(tmp_path, OURS, Quiet()), KeepRules(last=1))
    assert [decision.stays for decision in decisions.values()] == [True, False, True]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_stays(tmp_path: Path) -> None:
    """A snapshot without the right to read it is not taken for a bad one that may go."""
    for name in nights(3):
        make_snapshot(tmp_path, Made(name, "good"))
    (tmp_path / nights(3)[2]).chmod(0)
    decisions = decide(snapshots.survey_local(tmp_path, OURS, Quiet()), KeepRules(last=1))
    (tmp_path / nights(3)[2]).chmod(0o700)
    assert [decision.stays for decision in decisions.values()] == [True, False, True]


def test_while_another_run_holds_the_directory_nothing_is_deleted(tmp_path: Path, cli: Cli) -> None:
    """A prune that finds the directory locked is 4 and deletes nothing; a dry run needs no lock."""
    for name in nights(3):
        make_snapshot(tmp_path, Made(name, "good"))
    arguments = ("prune", "--no-box", "--keep-last", "1", "--output-dir", tmp_path)
    with astra_backup.OutputDir(tmp_path):
        assert cli.stored(*arguments).code == 4
        dry = cli.stored(*arguments, "--dry-run")
    assert (dry.code, dry.out.count("goes")) == (0, 2)
    assert len([path for path in tmp_path.iterdir() if parse_snapshot_name(path.name)]) == 3
    assert cli.stored(*arguments).code == 0
    assert len([path for path in tmp_path.iterdir() if parse_snapshot_name(path.name)]) == 1


def of_scope(history: list[Made], scope: Scope) -> list[Found]:
    """What a survey of the directory says, of one scope's snapshots; what nobody can read may be of any."""
    return [
        replace(one, scope=scope) if one.scope else one for one in found_here(history) if one.scope in (SCOPE, None)
    ]


@given(ours=histories(), theirs=histories(), given_rules=rules)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_each_scope_is_decided_about_on_its_own(ours: list[Made], theirs: list[Made], given_rules: KeepRules) -> None:
    """Two scopes in one place are pruned as each would be alone, with what nobody can read counted in both."""
    own = of_scope(ours, SCOPE)
    other = [one for one in of_scope(theirs, OTHER) if one.name[:15] not in {each.name[:15] for each in own}]
    unread = [one for one in (*own, *other) if one.scope is None]
    both = decide([*own, *other], given_rules)
    for part in (own, other):
        alone = decide([*(one for one in part if one.scope), *unread], given_rules)
        assert {one.name: both[one.name] for one in part if one.scope} == {
            one.name: alone[one.name] for one in part if one.scope
        }


def test_an_incomplete_one_stays_while_it_may_be_the_only_copy() -> None:
    """However old, it goes only when a good one of all that it could hold was made after it."""
    old, newer = nights(30)[-1] + ".INCOMPLETE", nights(20)[-1]
    some = Scope(ENDPOINT, "default_keyspace", frozenset({"docs"}))
    for scope, after, stays in (
        (SCOPE, None, True),
        (SCOPE, OTHER, True),
        (SCOPE, some, True),
        (SCOPE, SCOPE, False),
        (some, SCOPE, False),
        (some, some, False),
    ):
        found = [Found(old, scope), Found(nights(31)[-1], SCOPE, is_good=True)]
        found += [Found(newer, after, is_good=True)] if after else []
        assert decide(found, KeepRules(last=1))[old].stays == stays, (scope, after)
