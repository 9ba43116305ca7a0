#!/usr/bin/env python3
"""Look after the snapshots that exist: list them, ask whether the newest is young enough, delete old ones, upload one.

`prune` decides with a pure function, `plan_retention`, which the dry run shows and the real run carries out. It runs
behind a backup (`astra_backup.py && snapshots.py prune`) or as a job of its own, with another Box account than the one
that uploads: then who steals the credential of the backup can delete nothing.

It imports from `astra_backup.py`, never the other way.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":  # the imports take a while: a signal meanwhile ends in its code, not in a traceback
    for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_number) is not signal.SIG_IGN:
            signal.signal(_number, lambda number, _: os._exit(128 + number))

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from astra_backup import (
    BEHAVIOUR,
    CHECKSUMS_NAME,
    CONTEXT,
    DATABASE,
    INCOMPLETE_SUFFIX,
    MANIFEST_NAME,
    BackupError,
    BackupResult,
    Box,
    BoxError,
    BoxFile,
    Command,
    Duration,
    Exit,
    ExitCode,
    FormatError,
    Manifest,
    OutputDir,
    Report,
    Scope,
    Source,
    Stored,
    box_option,
    check_directory,
    delete_local,
    describe_error,
    file_sha256,
    is_complete_name,
    is_past,
    log,
    option,
    output_dir_option,
    output_options,
    parse_snapshot_name,
    patience_options,
    plural,
    print_either,
    print_result,
    read_box_config,
    read_sums,
    run_command,
    size_text,
    snapshot_moment,
    stop_event,
    upload_snapshot,
    utc_now,
    version_option,
    with_options,
)

DEFAULT_KEEP_INCOMPLETE_DAYS = 7
TRASH = "what is deleted in Box goes to its trash, and counts against the quota until that is emptied"


class SnapshotsExit(ExitCode):
    """Exit codes of `snapshots.py`."""

    OK = 0, "done; for `status`: there is a snapshot, and it is not too old"
    FAILED = 1, "configuration, usage or connection; for `status`: a snapshot is missing or too old"
    NOT_UPLOADED = 3, "`upload`: the upload failed, or the snapshot is refused (damaged, incomplete); nothing is in Box"
    LOCKED = 4, "another run holds the output directory: nothing was deleted"
    NOT_DELETED = 5, "`prune`: something could not be deleted; the rest is gone"
    HUNG_UP = 129, "stopped by SIGHUP (the terminal is gone)"
    INTERRUPTED = 130, "stopped by SIGINT (Ctrl-C)"
    TERMINATED = 143, "stopped by SIGTERM"


class SnapshotRefused(BackupError):
    """The snapshot is not one that may be uploaded."""

    exit_code = SnapshotsExit.NOT_UPLOADED


# ======================================================================================================================
# What is kept: pure decisions
# ======================================================================================================================


@dataclass(frozen=True)
class KeepRules:
    """How many good snapshots are kept. None: that rule is not given; if none is, nothing is ever deleted."""

    last: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None

    @property
    def is_on(self) -> bool:
        """Whether a rule is given."""
        return any(count is not None for count in (self.last, self.daily, self.weekly, self.monthly))


@dataclass(frozen=True)
class Found:
    """A name among the snapshots of a place, and what was found out about it.

    `scope`: what it is of (None: nobody can tell). `is_good`: proved to be whole. `obstacle`: why it is none of the
    retention's business ("": it is). `is_damaged`: it should be whole, and is not. `shrunk_from`: the snapshot that
    held far more; it counts whether or not this one is good. `is_unread`: the manifest could not be read, so it may be
    one that shrank.
    """

    name: str
    scope: Scope | None = None
    is_good: bool = False
    obstacle: str = ""
    is_damaged: bool = False
    shrunk_from: str | None = None
    is_unread: bool = False


@dataclass(frozen=True)
class Decision:
    """Whether a snapshot stays, and why."""

    name: str
    stays: bool
    reason: str


def plan_retention(
    found: Iterable[Found],
    rules: KeepRules,
    *,
    incomplete_days: int,
    now: datetime,
    elsewhere: Iterable[Found] | None = (),
) -> list[Decision]:
    """Decide about every name in one place, newest first. Pure: the same for a dry run and a real one.

    Each scope (a database's keyspace, and the collections that were asked for) is decided about on its own. Only good
    snapshots count towards the rules; each rule takes the newest of its days, weeks or months. What goes is a good
    snapshot that no rule keeps, and an incomplete one that is too old and has a good one after it. Everything else
    stays: the newest good one, what is not proved good, what is dated in the future, other names, and what an
    unresolved shrink keeps. `elsewhere` is what the other place holds; None: nobody looked, so anything may be there.
    """
    named = sorted(found, key=lambda one: (parse_snapshot_name(one.name) is not None, one.name), reverse=True)
    good = [one for one in named if one.is_good and not one.obstacle and is_past(one.name, now)]
    everywhere = [*named, *(elsewhere or ())]
    reasons: dict[str, list[str]] = {}
    for scope in dict.fromkeys(one.scope for one in good):
        names = [one.name for one in good if one.scope == scope]
        ours = [one for one in everywhere if one.scope in (scope, None)]
        reasons |= _kept_by_rules(names, rules)
        for name, reason in _kept_by_shrinks(names, ours, is_all=elsewhere is not None):
            if reason not in reasons.setdefault(name, []):
                reasons[name].append(reason)
    return [_decide(one, reasons if rules.is_on else None, good, incomplete_days, now) for one in named]


def _decide(
    one: Found, reasons: dict[str, list[str]] | None, good: list[Found], incomplete_days: int, now: datetime
) -> Decision:
    parsed = parse_snapshot_name(one.name)
    if one.obstacle or parsed is None:
        return Decision(one.name, True, one.obstacle or "not the name of a snapshot")
    if reasons is None:
        return Decision(one.name, True, "no --keep option is given")
    if not is_past(one.name, now):
        return Decision(one.name, True, "dated in the future")
    if parsed[1]:
        return _decide_incomplete(one, good, incomplete_days, now)
    if not one.is_good:
        return Decision(one.name, True, "not proved to be whole")
    kept = reasons.get(one.name)
    return Decision(one.name, bool(kept), "; ".join(kept) if kept else "no rule keeps it")


def _decide_incomplete(one: Found, good: list[Found], incomplete_days: int, now: datetime) -> Decision:
    """One that is too old goes, but not while nothing newer holds what it holds: it may be the only copy."""
    is_old = now - snapshot_moment(one.name) > timedelta(days=incomplete_days)
    age = f"incomplete, {'more' if is_old else 'not more'} than {plural(incomplete_days, 'day')} old"
    has_newer = any(
        each.name > one.name and (not one.scope or not each.scope or each.scope.covers(one.scope)) for each in good
    )
    if is_old and not has_newer:
        return Decision(one.name, True, f"{age}, but there is no good one after it")
    return Decision(one.name, not is_old, age)


def _kept_by_shrinks(names: list[str], everywhere: list[Found], *, is_all: bool) -> Iterator[tuple[str, str]]:
    """(name, why) of what stays of these good snapshots of one place, newest first, until a person has looked.

    Every shrunk snapshot counts, wherever it is: the last one in this place from before it may be the only one here
    that still holds what is gone, whether or not the one it was compared with ever came to this place. It is over when
    a person has deleted the shrunk snapshot, or there is nothing left from before it in any place.
    """
    oldest = min(one.name for one in everywhere if is_complete_name(one.name))
    for one in sorted(everywhere, key=lambda one: one.name):
        older = [name for name in names if name < one.name]
        if one.is_unread and older:
            yield older[0], f"the last before {one.name}, which could not be read"
        if not one.shrunk_from:
            continue
        for last in (*older[:1], *[name for name in older if name <= one.shrunk_from][:1]):
            yield last, f"the last before the shrink in {one.name}"
        if one.name in names and (oldest < one.name or not is_all):
            yield one.name, f"shrank since {one.shrunk_from}"


def _kept_by_rules(names: list[str], rules: KeepRules) -> dict[str, list[str]]:
    """Why each of these good snapshots, newest first, is kept; those that no rule keeps are not in it."""
    reasons: dict[str, list[str]] = {name: ["the newest good one"] for name in names[:1]}
    periods: tuple[tuple[str, int | None, str], ...] = (
        ("last", rules.last, "%Y%m%d_%H%M%S"),
        ("daily", rules.daily, "%Y-%m-%d"),
        ("weekly", rules.weekly, "%G-W%V"),
        ("monthly", rules.monthly, "%Y-%m"),
    )
    for rule, count, form in periods:
        taken: list[str] = []
        for name in names:
            period = snapshot_moment(name).strftime(form)
            if period in taken or len(taken) >= (count or 0):
                continue
            taken.append(period)
            of = "" if rule == "last" else f"{period}, "
            reasons.setdefault(name, []).append(f"keep-{rule}: {of}{len(taken)} of {count}")
    return reasons


# ======================================================================================================================
# What is there
# ======================================================================================================================


def wanted_scope(options: dict[str, Any]) -> Scope:
    """What the options ask for: a database, a keyspace, or any of them."""
    return Scope.make(options["api_endpoint"] or "", options["keyspace"] or "")


def verify_files(directory: Path, manifest: Manifest, advance: Callable[[int], None]) -> None:
    """What `sha256sum -c` does, and that no file is missing or extra. Raises FormatError, OSError.

    `advance` is told of the bytes that were read.
    """
    sums = read_sums(directory)
    del sums[CHECKSUMS_NAME]
    expected: dict[str, str | None] = {record.data_file or "": record.data_sha256 for record in manifest.records}
    if sums != {**expected, MANIFEST_NAME: sums.get(MANIFEST_NAME)}:
        raise FormatError(f"{CHECKSUMS_NAME} and {MANIFEST_NAME} name different files")
    if {path.name for path in directory.iterdir()} != {*sums, CHECKSUMS_NAME}:
        raise FormatError("a file is missing or extra")
    for name, digest in sums.items():
        if file_sha256(directory / name, advance) != digest:
            raise FormatError(f"{name} is not what {CHECKSUMS_NAME} says")


def survey_local(output_dir: Path, wanted: Scope, report: Report, *, is_proof: bool = True) -> list[Found]:
    """Everything in a directory but hidden names; `is_proof`: every complete snapshot is read to the last byte."""
    paths = sorted(output_dir.iterdir()) if output_dir.is_dir() else []
    return [_survey_directory(path, wanted, report, is_proof) for path in paths if not path.name.startswith(".")]


def _survey_directory(path: Path, wanted: Scope, report: Report, is_proof: bool) -> Found:
    parsed = parse_snapshot_name(path.name)
    if parsed is None:
        is_zip = path.suffix == ".zip" and parse_snapshot_name(path.stem)
        return Found(path.name, obstacle="a downloaded zip: delete it by hand" if is_zip else "")
    if path.is_symlink() or not path.is_dir():
        return Found(path.name, obstacle="not a directory", is_unread=not parsed[1])
    try:
        one = Stored(path, manifest=Manifest.read(path))
    except (FormatError, OSError) as error:
        one = Stored(path, error=error)
    found = _survey(one, wanted, busy=_busy(path.parent, path.name))
    if one.manifest is None or found.obstacle or parsed[1] or not is_proof:
        return found
    return _prove_local(path, one.manifest, found, report)


def _busy(output_dir: Path, name: str) -> str:
    """Why a snapshot, here or in Box, is still needed: the journal of a restore lies there; empty if none does."""
    return "a restore of it has not ended" if any(output_dir.glob(f".restore-{name}-*.journal")) else ""


def _survey(one: Stored, wanted: Scope, *, busy: str = "") -> Found:
    """What the manifest tells, or that it could not be read; `busy`: why it is not touched, whatever it is."""
    is_incomplete = one.name.endswith(INCOMPLETE_SUFFIX)
    if one.manifest is None:
        if is_incomplete and isinstance(one.error, FormatError):
            return Found(one.name, obstacle=busy)  # no restore would take it
        is_damaged = not busy and not isinstance(one.error, BoxError)
        problem = f"{'damaged' if is_damaged else 'unreadable'}: {describe_error(one.error or OSError())}"
        return Found(one.name, obstacle=busy or problem, is_damaged=is_damaged, is_unread=not is_incomplete)
    scope, damage = Scope.of(one.manifest), ""
    if not wanted.has(scope):
        return Found(one.name, scope, obstacle="of another database or keyspace")
    if is_incomplete:
        return Found(one.name, scope, obstacle=busy)
    if one.error:
        damage = f"damaged: {describe_error(one.error)}"
    elif not one.manifest.is_complete:
        damage = f"damaged: {MANIFEST_NAME} says that it is incomplete"
    is_damaged, shrunk_from = bool(damage and not busy), one.manifest.shrunk_from or None
    return Found(one.name, scope, obstacle=busy or damage, is_damaged=is_damaged, shrunk_from=shrunk_from)


def _prove_local(path: Path, manifest: Manifest, found: Found, report: Report) -> Found:
    """The same with what reading every byte of it says."""
    name = path.name
    try:
        if not (path / CHECKSUMS_NAME).exists() and not any(record.content_digest for record in manifest.records):
            old = f"of an older script: without {CHECKSUMS_NAME} it cannot be proved to be whole"
            return dataclasses.replace(found, obstacle=old)
        report.start(name, sum(file.stat().st_size for file in path.iterdir()), "checking", unit="bytes")
        verify_files(path, manifest, lambda size: report.advance(name, size))
        return dataclasses.replace(found, is_good=True)
    except (FormatError, UnicodeDecodeError, OSError) as error:
        return dataclasses.replace(found, obstacle=f"damaged: {describe_error(error)}", is_damaged=True)
    finally:
        report.finish(name)


def survey_box(box: Box, wanted: Scope, output_dir: Path) -> dict[str, tuple[BoxFile, Found]]:
    """Every file of the folder by its name. Raises BoxError when the folder cannot be listed."""
    files = box.files()
    found = {file.name: (file, Found(file.name)) for file in files if not file.is_snapshot}
    ours = [file for file in files if file.is_snapshot]
    for file, one in zip(ours, Stored.in_box(box, ours, is_tolerant=True), strict=True):
        known = _survey(one, wanted, busy=_busy(output_dir, one.name))
        found[one.name] = (file, dataclasses.replace(known, is_good=not known.obstacle))
    return found


# ======================================================================================================================
# prune
# ======================================================================================================================


@dataclass(frozen=True)
class PrunePlan:
    """What is in each place, and what is decided about it. `files`: those of Box, by the snapshots' names."""

    here: list[Found]
    in_box: list[Found]
    files: dict[str, BoxFile]
    decisions: dict[str, list[Decision]]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each name in each place, newest first."""
        found = {"here": self.here, "in Box": self.in_box}
        scopes = {(place, one.name): one.scope for place, names in found.items() for one in names}
        rows = []
        for place, decisions in self.decisions.items():
            for decision in decisions:
                scope = scopes[place, decision.name]
                row = {"place": place, **dataclasses.asdict(decision)}
                if scope:
                    row |= {"api_endpoint": scope.api_endpoint, "keyspace": scope.keyspace}
                    row |= {"is_selection": not scope.is_whole()}
                rows.append(row)
        return rows


def plan_prune(options: dict[str, Any], box: Box | None, report: Report) -> PrunePlan:
    """Look at both places and decide. Changes nothing. Raises BoxError when Box's folder cannot be listed."""
    wanted, days, now = wanted_scope(options), options["keep_incomplete_days"], utc_now()
    here_rules, box_rules = keep_rules(options, "keep"), keep_rules(options, "box_keep")
    files = survey_box(box, wanted, options["output_dir"]) if box else {}
    in_box = [found for _, found in files.values()]
    here = survey_local(options["output_dir"], wanted, report, is_proof=here_rules.is_on)
    # Where Box is in use and is not looked at, it may hold what a shrunk snapshot here is compared with.
    elsewhere = in_box if box or not os.environ.get("BOX_FOLDER_ID") else None
    decisions = {"here": plan_retention(here, here_rules, incomplete_days=days, now=now, elsewhere=elsewhere)}
    if box:
        decisions["in Box"] = plan_retention(in_box, box_rules, incomplete_days=days, now=now, elsewhere=here)
    return PrunePlan(here, in_box, {name: file for name, (file, _) in files.items()}, decisions)


def keep_rules(options: dict[str, Any], prefix: str) -> KeepRules:
    """The rules that the options `{prefix}_last`, … give."""
    return KeepRules(*(options[f"{prefix}_{rule}"] for rule in ("last", "daily", "weekly", "monthly")))


def run_prune(options: dict[str, Any]) -> int:
    """Delete what no rule keeps, or say what would be deleted and why. Returns the exit code."""
    is_dry, output_dir = options["dry_run"], options["output_dir"]
    is_on = keep_rules(options, "keep").is_on
    box = Box(read_box_config(options), stop_event) if options["to_box"] else None
    if is_on:
        check_directory(output_dir)
    deleted: dict[str, list[str]] = {}
    failed: list[str] = []
    with Report(quiet=options["verbosity"] == "quiet") as report, contextlib.ExitStack() as stack:
        if is_on and not is_dry:
            stack.enter_context(OutputDir(output_dir)).sweep()
        plan = plan_prune(options, box, report)
        _warn(plan, options, report)
        if not is_dry:
            deleted["here"] = _delete(plan, "here", lambda name: delete_local(output_dir, name), failed, report)
        if box and not is_dry:
            deleted["in Box"] = _delete(plan, "in Box", lambda name: box.delete(plan.files[name]), failed, report)
        code = SnapshotsExit.NOT_DELETED if failed else SnapshotsExit.OK
        _print_prune(plan, deleted, report.warnings, code, options)
    return code


def _warn(plan: PrunePlan, options: dict[str, Any], report: Report) -> None:
    for place, found in ((str(options["output_dir"]), plan.here), ("Box", plan.in_box)):
        for one in found:
            if one.is_damaged or (one.is_unread and one.obstacle):
                report.warn(f"{one.name} in {place} is {one.obstacle}. It stays, and does not count towards a rule.")
    if not keep_rules(options, "keep").is_on and not keep_rules(options, "box_keep").is_on:
        report.warn("Nothing is deleted: no --keep or --box-keep option is given.")


def _delete(plan: PrunePlan, place: str, delete: Callable[[str], None], failed: list[str], report: Report) -> list[str]:
    """Delete what goes, the oldest first; return the names of what is gone, and add those that are not to `failed`."""
    deleted = []
    for decision in reversed(plan.decisions[place]):
        if decision.stays:
            continue
        try:
            delete(decision.name)
        except (BackupError, OSError) as error:
            report.warn(f"{decision.name} could not be deleted {place}: {describe_error(error)}")
            failed.append(decision.name)
            continue
        log.info("Deleted %s %s: %s.", decision.name, place, decision.reason)
        deleted.append(decision.name)
    return deleted


def _print_prune(
    plan: PrunePlan, deleted: dict[str, list[str]], warnings: list[str], code: SnapshotsExit, options: dict[str, Any]
) -> None:
    """The dry run: a line for each snapshot; the real run: one line that names what is gone."""
    rows = plan.rows()
    if options["as_json"]:
        status = "dry-run" if options["dry_run"] else "not deleted" if code else "ok"
        fields = {"status": status, "exit_code": int(code), "snapshots": rows, "deleted": deleted, "warnings": warnings}
        print_result(json.dumps(fields))
        return
    if not options["dry_run"]:
        texts = [f"deleted {place}: {', '.join(names) or 'nothing'}" for place, names in deleted.items()]
        print_result("; ".join([*texts, *([TRASH] if deleted.get("in Box") else [])]))
        return
    has_many = len({(row.get("api_endpoint"), row.get("keyspace")) for row in rows if row.get("keyspace")}) > 1
    for row in rows:
        source = f" ({Source(row['api_endpoint'], row['keyspace'])})" if has_many and row.get("keyspace") else ""
        source += " (some collections only)" if row.get("is_selection") else ""
        verb = "stays" if row["stays"] else "goes"
        print_result(f"{row['place']:<7} {verb:<6} {row['name']:<28} {row['reason']}{source}")
    if any(row["place"] == "in Box" and not row["stays"] for row in rows):
        log.info("%s%s.", TRASH[0].upper(), TRASH[1:])
    if not rows:
        log.warning("There are no snapshots in %s%s.", options["output_dir"], " or in Box" * options["to_box"])
    print_result("Nothing was deleted.")


# ======================================================================================================================
# list, status, upload
# ======================================================================================================================


def read_places(options: dict[str, Any]) -> list[Stored]:
    """The snapshots here, and in Box if it is used, of the scopes that were asked for; none is left out unread."""
    found = list(Stored.here(options["output_dir"], must_exist=not options["to_box"]))
    if options["to_box"]:
        found += Stored.in_box(Box(read_box_config(options), stop_event))
    wanted = wanted_scope(options)
    return [one for one in found if one.manifest is None or wanted.has(Scope.of(one.manifest))]


def run_status(options: dict[str, Any]) -> int:
    """Print the newest complete snapshot of each scope in each place, and the shrinks that nobody has resolved.

    Returns 1 if one that counts is missing or too old: the one in Box, or without Box the one here. Where there are
    snapshots of the whole keyspace, those of some collections do not count.
    """
    now = utc_now()
    stored = read_places(options)
    found = [(Scope.of(one.manifest), one) for one in stored if one.manifest and one.counts(now)]
    whole = {scope.source for scope, _ in found if scope.is_whole()}
    scopes = dict.fromkeys(scope for scope, _ in found if scope.is_whole() or scope.source not in whole)
    known = {scope.source for scope in scopes}
    incomplete = (Scope.of(one.manifest) for one in stored if one.manifest)
    scopes |= dict.fromkeys(scope for scope in incomplete if scope.source not in known)
    rows: list[dict[str, Any]] = []
    for scope in scopes or [wanted_scope(options)]:
        ours = [one for other, one in found if other == scope]
        rows += _status_rows(scope, ours, options)
    code = SnapshotsExit.OK if all(row["ok"] for row in rows if row["counts"]) else SnapshotsExit.FAILED
    if options["as_json"]:
        print_result(json.dumps({"ok": not code, "exit_code": int(code), "newest": rows}))
    for row in [] if options["as_json"] else rows:
        print_result(_status_line(row))
    return code


def _status_rows(scope: Scope, ours: list[Stored], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each place, the one that counts last."""
    shrinks = list(unresolved_shrinks(ours))
    for place in ("here", *(["in Box"] if options["to_box"] else [])):
        newest = max((one for one in ours if one.place == place), key=lambda one: one.name, default=None)
        row = _status_row(newest, options["max_age"])
        counts = place == "in Box" or not options["to_box"]
        source = {"api_endpoint": scope.api_endpoint, "keyspace": scope.keyspace, "is_selection": not scope.is_whole()}
        yield {"place": place, "counts": counts, **source, **row, "shrinks": shrinks if counts else []}


def _status_row(newest: Stored | None, max_age_s: float | None) -> dict[str, Any]:
    """The newest in a place. `ok`: there is one, and it is not older than `max_age_s` (None: of any age)."""
    if newest is None or newest.manifest is None:
        return {"name": None, "ok": False, "age_seconds": None}
    age_s = (utc_now() - snapshot_moment(newest.name)).total_seconds()
    facts = {"documents": newest.manifest.totals.documents, "size_bytes": newest.size_bytes}
    facts |= {"rows": newest.manifest.totals.rows or 0} if newest.manifest.tables else {}
    ok = max_age_s is None or age_s <= max_age_s
    return {"name": newest.name, "ok": ok, "age_seconds": int(age_s), **facts}


def unresolved_shrinks(ours: list[Stored]) -> Iterator[str]:
    """What a person has to look at: a snapshot that shrank, while one of its scope from before is left in any place."""
    oldest = min((one.name for one in ours), default="")
    manifests: dict[str, Manifest] = {one.name: one.manifest for one in ours if one.manifest}
    for name in sorted(manifests, reverse=True):
        manifest = manifests[name]
        if manifest.shrunk_from and oldest < name:
            facts = "; ".join(manifest.warnings or []) or f"shrunk since {manifest.shrunk_from}"
            yield f"{name}: {facts}. It and the last one before it stay until you have deleted one of the two"


def _status_line(row: dict[str, Any]) -> str:
    """One line for a place, and one more for each shrink, wherever the snapshot that shrank is."""
    mark = "✓" if row["ok"] else "✗"
    place = Source(row["api_endpoint"], row["keyspace"]) if row["keyspace"] or row["api_endpoint"] else ""
    source = (f" of {place}" if place else "") + (", some collections only" if row["is_selection"] else "")
    line = f"{mark} {row['place']:<7} {_status_facts(row)}{source}"
    return "\n".join([line, *(f"! shrunk  {shrink}" for shrink in row["shrinks"])])


def _status_facts(row: dict[str, Any]) -> str:
    """The newest snapshot of a row: name, age, size."""
    if row["name"] is None:
        return "no complete snapshot"
    minutes = row["age_seconds"] // 60
    age = f"{minutes // 1440} d {minutes // 60 % 24} h" if minutes >= 2880 else f"{minutes // 60} h {minutes % 60} min"
    limit = "" if row["ok"] else " (more than --max-age)"
    text = f"{row['name']}: {age} old{limit}, {plural(row['documents'], 'document')}, {size_text(row['size_bytes'])}"
    return text + (f", {plural(row['rows'], 'row')} of tables" if "rows" in row else "")


def run_upload(name: str, options: dict[str, Any]) -> int:
    """Bring a snapshot that exists to Box, as the backup would have. Returns the exit code."""
    if Path(name).name != name and Path(name).parent.resolve() == options["output_dir"].resolve():
        name = Path(name).name  # as a backup prints it
    directory = options["output_dir"] / name
    source = click.get_current_context().get_parameter_source("to_box")
    if source is ParameterSource.COMMANDLINE and not options["to_box"]:  # BACKUP_BOX=false is of the backups
        raise BackupError("--no-box contradicts `upload`, which brings a snapshot to Box.", "Leave out --no-box.")
    with Report(quiet=options["verbosity"] == "quiet") as report:
        config = read_box_config(options, "Set them.")
        result = existing_snapshot(directory, name, wanted_scope(options), report)
        try:
            result = upload_snapshot(result, config, report)
        except BackupError as error:  # it is damaged
            raise SnapshotRefused(error.message, error.hint) from error
    code = SnapshotsExit.NOT_UPLOADED if result.exit_code is Exit.UPLOAD_FAILED else SnapshotsExit.OK
    verdict = "NOT in Box" if code else "in Box"
    if shrunk_from := result.manifest.shrunk_from:
        verdict += f", but SHRUNK since {shrunk_from}"
    fields = {"snapshot": str(directory), "upload": result.upload, "warnings": result.warnings}
    status = "upload failed" if code else "ok"
    return print_either(options["as_json"], status, code, fields, f"{directory}: {verdict}")


def existing_snapshot(directory: Path, name: str, wanted: Scope, report: Report) -> BackupResult:
    """A complete snapshot that is there. Raises BackupError if it is not, SnapshotRefused if it may not be uploaded."""
    check_directory(directory.parent)
    if Path(name).name != name or not parse_snapshot_name(name) or not directory.is_dir():
        raise BackupError(
            f"There is no snapshot {name} in {directory.parent}.", "snapshots.py list --no-box shows what is there."
        )
    try:
        manifest = Manifest.read(directory)
    except (OSError, FormatError) as error:
        raise SnapshotRefused(f"{directory} cannot be uploaded: {describe_error(error)}.", "It is damaged.") from error
    if not wanted.has(Scope.of(manifest)):
        raise BackupError(
            f"{directory} is of {manifest.source}.",
            "Correct or leave out --api-endpoint and --keyspace (ASTRA_DB_API_ENDPOINT, ASTRA_DB_KEYSPACE).",
        )
    if not is_complete_name(name) or not manifest.is_complete:
        raise SnapshotRefused(f"{directory} is incomplete, and is not uploaded.", "Make a new backup.")
    for warning in manifest.warnings or []:
        report.warn(f"{name}: {warning}")
    return BackupResult(Exit.OK, directory, manifest, report.warnings)


# ======================================================================================================================
# Command line
# ======================================================================================================================

KEEP_HERE, KEEP_IN_BOX = "What to keep here", "What to keep in Box"
_ENDPOINT = "Only snapshots of this database."
_KEYSPACE = "Only snapshots of this keyspace; default: of all."


class Count(click.IntRange):
    """How many snapshots a rule keeps: at least one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a number; for 0, say how a rule is switched off."""
        if str(value).strip() == "0":
            self.fail("a rule keeps at least 1. To switch it off, leave out the option and its variable.", param, ctx)
        return super().convert(value, param, ctx)


def scope_options(function: Any) -> Any:
    """Options of every command."""
    scope = [
        option(DATABASE, "--api-endpoint URL", _ENDPOINT, "ASTRA_DB_API_ENDPOINT"),
        option(DATABASE, "--keyspace NAME", _KEYSPACE, "ASTRA_DB_KEYSPACE"),
    ]
    return with_options([output_dir_option, box_option, *scope, *patience_options, *output_options], function)


def keep_options(function: Any) -> Any:
    """What is kept, here and in Box."""
    options = []
    for group, prefix, place in ((KEEP_HERE, "keep", "here"), (KEEP_IN_BOX, "box-keep", "in Box")):
        for rule, text in {
            "last": f"Keep the newest N {place}.",
            "daily": f"Keep {place} the newest of each of the last N days that have one.",
            "weekly": "The same for weeks (Monday to Sunday, UTC).",
            "monthly": "The same for months.",
        }.items():
            variable = f"BACKUP_{prefix}_{rule}".upper().replace("-", "_")
            options.append(option(group, f"--{prefix}-{rule} N", text, variable, type=Count(1, 100_000)))
    days = option(
        KEEP_HERE,
        "--keep-incomplete-days N",
        "Keep INCOMPLETE ones for N days, and while nothing newer is good.",
        "BACKUP_KEEP_INCOMPLETE_DAYS",
        type=click.IntRange(0, 100_000),
        default=DEFAULT_KEEP_INCOMPLETE_DAYS,
    )
    return with_options([*options, days], function)


@click.group(context_settings=CONTEXT)
@version_option
def main() -> None:
    """Look after the snapshots that exist.

    `.env` in the working directory is read; environment variables override it. `COMMAND --help` has a command's
    options, with an option's variable and its default in brackets.

    \b
    Examples:
      python snapshots.py list
      python snapshots.py status --max-age 26h
      python snapshots.py prune --keep-last 3 --box-keep-daily 14 --dry-run
      python snapshots.py upload 20260616_085246
    """  # noqa: D301  (\b is click's mark for a paragraph that is not wrapped)


@main.command("list", cls=Command, context_settings=CONTEXT)
@scope_options
def list_command(**options: Any) -> int:
    """List all snapshots here, and in Box, newest first."""
    wanted, in_box = wanted_scope(options), " or in Box" * options["to_box"]
    of = f" of keyspace {wanted.keyspace}" if wanted.keyspace else ""
    at = f" of {wanted.api_endpoint}" if wanted.api_endpoint else ""
    otherwise = f"There are no snapshots{of}{at} in {options['output_dir']}{in_box}."
    return Stored.print_list(read_places(options), as_json=options["as_json"], otherwise=otherwise)


@main.command("status", cls=Command, context_settings=CONTEXT)
@option(BEHAVIOUR, "--max-age TIME", "Exit with 1 if it is older: 26h, 2d.", "BACKUP_MAX_AGE", type=Duration())
@scope_options
def status_command(**options: Any) -> int:
    """Show the newest complete snapshots; exit with 1 if there is none.

    The one in Box counts; with --no-box, the one here. A shrink is repeated until it or what was before it is deleted.
    """
    return run_status(options)


@main.command("prune", cls=Command, context_settings=CONTEXT)
@keep_options
@option(BEHAVIOUR, "--dry-run", "Say why each snapshot would stay or go; delete nothing.", is_flag=True)
@scope_options
def prune_command(**options: Any) -> int:
    """Delete the snapshots that no rule keeps.

    Each database, keyspace and selection of collections is looked at on its own. Its newest good snapshot stays, and
    so does what is damaged, or from before a shrink that nobody has resolved. What is deleted in Box goes to its trash,
    and counts against the quota until that is emptied.
    """
    return run_prune(options)


@main.command("upload", cls=Command, context_settings=CONTEXT)
@click.argument("name")
@scope_options
def upload_command(name: str, **options: Any) -> int:
    """Upload the snapshot NAME to Box, as the backup would have."""
    return run_upload(name, options)


def run() -> NoReturn:
    """Run the command line: what the script does and the installed command calls."""
    run_command(main)


if __name__ == "__main__":
    run()
