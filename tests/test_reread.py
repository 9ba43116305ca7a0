"""What a last reading of the scripts found: each was wrong once."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import astra_backup
from astra_backup import BackupError, BackupPlan, Report, RequestError, TableInfo, Target, run_backup
from restore import DecryptingReader, Existing, index_differences
from tests.conftest import KEYSPACE, TOKEN, Cli
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.support import EXTRA, before, fill, make_kind, on_a_terminal, snapshot_of, swap_kind


def test_a_stop_that_python_swallows_makes_no_snapshot(source: DataApiEmulator, tmp_path: Path) -> None:
    """Python ignores what a signal handler raises in a finalizer: what was not read must not be called complete."""
    fill(source, "docs", 100)
    stop = threading.Event()
    before(source, "find", stop.set)
    plan = BackupPlan(Target(source.url, KEYSPACE, "hcd", TOKEN), tmp_path)
    with pytest.raises(BackupError, match="stopped"):
        run_backup(plan, Report(quiet=True), stop)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_a_signal_while_decrypting_stays_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for the thread that decrypts, and is told to end, does not say that the file is damaged."""
    monkeypatch.setattr(DecryptingReader, "_decrypt", lambda _self, clear: (clear.close(), time.sleep(0.5)))
    reader = DecryptingReader(open(os.devnull, "rb"), [])  # noqa: SIM115

    def interrupted(*_: object) -> None:
        raise SystemExit(130)

    monkeypatch.setattr(reader._pipe.ended, "result", interrupted)
    monkeypatch.setattr(reader._pipe.ended, "exception", interrupted)
    with pytest.raises(SystemExit):
        reader.readinto(bytearray(10))


@pytest.mark.parametrize("was", ["collection", "table"])
def test_what_changes_its_kind_before_it_is_compared_is_told(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, was: str
) -> None:
    """A table that is a collection when it is compared, or the reverse: a sentence, and no bug."""
    make_kind(source, was)
    make_kind(target, was)
    snapshot = snapshot_of(source, cli)
    before(target, "find", lambda: swap_kind(target, was))
    result = cli.restore(target, snapshot, "--compare")
    assert result.code == 2, result.err
    assert "bug" not in result.err
    assert "docs: the comparison failed" in result.err


def test_a_zip_of_box_is_called_what_it_is_called_there(box: BoxEmulator, cli: Cli) -> None:
    """No message names the hidden file of a download that is gone when the message is read."""
    box.add_file("20260616_085246.zip", b"no zip at all" * 10)
    result = cli.with_box(box).run("restore.py", "--from-box", "20260616_085246", "--verify-only")
    assert result.code == 3
    assert "20260616_085246.zip in Box is not a zip" in result.err
    assert "/.2026" not in result.err


def test_an_interrupted_question_is_one_json_object(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """Ctrl-D at a question ends in 130, and `--json` says so."""
    fill(target, "docs", [EXTRA])
    result = on_a_terminal(cli, target, "\x04", "--on-existing", "drop", "--json")
    assert result.code == 130
    assert result.out.count('"exit_code": 130') == 1, result.out


def test_an_error_after_a_signal_has_the_code_of_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What fails because a run was stopped is told with the code that the process ends with."""
    monkeypatch.setattr(astra_backup, "early", {"as_json": True})
    monkeypatch.setattr(astra_backup.stop_event, "signal_number", 15)
    monkeypatch.setattr(astra_backup, "has_printed", threading.Event(), raising=False)
    monkeypatch.setattr(astra_backup, "_run_to_its_end", lambda _: astra_backup._show_error("stopped", "", 1))
    assert astra_backup._run_guarded(astra_backup.main) == 143
    assert capsys.readouterr().out.count('"exit_code": 143') == 1


@pytest.mark.parametrize("has_result", [False, True])
def test_a_signal_is_told_in_the_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has_result: bool
) -> None:
    """Ctrl-C before there is a result: an object with its code. After one: no second object."""
    monkeypatch.setattr(astra_backup, "early", {"as_json": True})
    monkeypatch.setattr(astra_backup.stop_event, "signal_number", 2)
    monkeypatch.setattr(astra_backup, "has_printed", threading.Event(), raising=False)

    def run_to_its_end(_: object) -> int:
        if has_result:
            astra_backup.print_result("{}")
        return 130

    monkeypatch.setattr(astra_backup, "_run_to_its_end", run_to_its_end)
    assert astra_backup._run_guarded(astra_backup.main) == 130
    out = capsys.readouterr().out
    assert out == "{}\n" if has_result else '"exit_code": 130' in out


@pytest.mark.parametrize("script", ["astra_backup.py", "snapshots.py list"])
def test_a_wrong_word_for_box_is_told_in_few(cli: Cli, script: str) -> None:
    """The message says which two words there are, not the fourteen that a library knows."""
    result = cli.run(*script.split(), BACKUP_BOX="maybe")
    assert result.code == 1
    assert "'maybe' is neither true nor false" in result.err
    assert "t, true" not in result.err


def test_differences_that_cannot_be_written_are_no_failed_start(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """A full disk under --differences is told after a restore, with 2: not with 1, which says that nothing was done."""
    fill(target, "docs", [EXTRA])
    result = cli.restore(target, "--on-existing", "skip", "--differences", "/dev/full", "--yes")
    assert result.code == 2, result.err
    assert "the file of --differences" in result.err
    assert cli.restore(target, "--compare", "--differences", "/dev/full").code == 2


def test_a_journal_that_is_none_is_told(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """Any bytes behind --journal: another restore's, and no bug."""
    journal = cli.directory / "journal"
    journal.write_bytes(b"\xff\xfe\n")
    result = cli.restore(target, "--resume", "--journal", journal)
    assert result.code == 1
    assert "belongs to another restore" in result.err


def test_indexes_that_nobody_understands_are_no_bug() -> None:
    """What a target says of its tables, and is no reply of a Data API, is told as that."""
    api: Any = SimpleNamespace(
        list_collections=list,
        describe_tables=lambda: [TableInfo("t")],
        describe_indexes=lambda _: msgspec.Raw(b"[5]"),
        describe_types=dict,
    )
    with pytest.raises(RequestError, match="not one of the Data API"):
        Existing.read(api, has_tables=True)
    planned: Any = SimpleNamespace(target_name="t", indexes=[])
    with pytest.raises(RequestError, match="not one of the Data API"):
        index_differences(api, planned)


def test_two_downloads_into_one_directory_do_not_meet(box: BoxEmulator, source: DataApiEmulator, cli: Cli) -> None:
    """They would write to the same file, or remove each other's: the second one says so, and brings nothing."""
    fill(source, "docs", 3)
    assert cli.with_box(box).run("astra_backup.py", "--api-endpoint", source.url).code == 0
    command = ("restore.py", "--from-box", "--verify-only")
    there = os.open(cli.backups, os.O_RDONLY)
    try:
        fcntl.flock(there, fcntl.LOCK_EX)
        result = cli.run(*command)
    finally:
        os.close(there)
    assert result.code == 1
    assert "Another restore uses a snapshot from Box in" in result.err
    assert [path for path in cli.backups.iterdir() if path.suffix == ".part"] == []
    assert cli.run(*command).code == 0
