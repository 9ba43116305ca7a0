"""What may not cost a backup, and what may not be kept silent: the last snapshot, Box, monitors, disks, tables."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest

from astra_backup import BackupError, DataApi, Target
from tests.conftest import KEYSPACE, TOKEN, Result, load_catalog
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.sabotage import SabotagedCli
from tests.support import fill, lines_of, manifest_of, same_documents


@pytest.fixture(scope="module", autouse=True)
def _one_server() -> Iterator[None]:
    """The process that forks ends with the module."""
    yield
    SabotagedCli.stop()


@pytest.fixture
def cli(tmp_path: Path) -> SabotagedCli:
    """The two scripts, in a directory of their own."""
    (tmp_path / "cwd").mkdir()
    return SabotagedCli(tmp_path / "cwd")


def names(cli: SabotagedCli) -> list[str]:
    """The snapshots here."""
    return [path.name for path in cli.snapshots()]


def commands(source: DataApiEmulator) -> list[str]:
    """What the server was asked."""
    return [request.command for request in source.requests]


def fail(source: DataApiEmulator, *collections: str) -> None:
    """From now on, reading these collections fails, and no others."""
    source.faults = [
        {"action": "error", "command": "find", "collection": name, "times": None, "errorCode": "INVALID_QUERY"}
        for name in collections
    ]


# ------------------------------------------------------------------------------------------------ names of data files


def test_a_command_that_only_a_restore_may_send_never_leaves_a_backup(source: DataApiEmulator) -> None:
    """A mistake that would write raises before anything is sent."""
    api = DataApi(Target(source.url, KEYSPACE, "hcd", TOKEN), DataApi.READ_COMMANDS)
    with pytest.raises(BackupError, match="must not send the command 'insertMany'"):
        api.call("insertMany", b'{"documents":[]}', "docs", read=lambda reply: reply)
    assert source.requests == []


def test_names_that_differ_in_case_only_have_files_of_their_own(
    source: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli
) -> None:
    """`Docs`, `docs` and `DOCS` go to files that no file system takes for one; all of them are restored."""
    for name in ("docs", "Docs", "other", "DOCS"):
        fill(source, name, 3)
        source.put(KEYSPACE, name, f'{{"_id":"x","from":"{name}"}}')
    assert cli.backup(source).code == 0
    (snapshot,) = cli.snapshots()
    files = {record["name"]: record["data_file"] for record in manifest_of(snapshot)["collections"]}  # type: ignore[attr-defined]
    assert files == {
        "DOCS": "DOCS.jsonl.gz",  # the server's order is the alphabet's
        "Docs": "Docs~2.jsonl.gz",
        "docs": "docs~3.jsonl.gz",
        "other": "other.jsonl.gz",
    }
    for name, file in files.items():
        assert f'"from":"{name}"' in "".join(lines_of(snapshot, file.removesuffix(".jsonl.gz")))
    assert cli.restore(target).code == 0
    same_documents(source, target)
    assert cli.backup(source, "--collection", "docs").code == 0
    assert (cli.snapshots()[-1] / "docs.jsonl.gz").exists(), "alone it keeps its name"


def test_a_name_that_looks_like_a_second_one_takes_no_file(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """Of a server with names that no Data API has, `docs~2` gets a file of its own too."""
    for name in ("Docs", "docs", "docs~2"):
        fill(source, name, 1)
    assert cli.backup(source).code == 0
    (snapshot,) = cli.snapshots()
    files = [record["data_file"] for record in manifest_of(snapshot)["collections"]]  # type: ignore[attr-defined]
    assert len({file.casefold() for file in files}) == 3
    assert files[2] == "docs%7E2.jsonl.gz"


# ------------------------------------------------------------------------------------------------ after the last page


def unreadable(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("no directory")


LAST_DAMAGES: dict[str, Callable[[Path], None]] = {
    "no directory": unreadable,
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "no JSON": lambda path: (path / "manifest.json").write_bytes(b"\xff\x00"),
    "another version": lambda path: (path / "manifest.json").write_text('{"backup_format_version":"9.0"}'),
    "a pipe": lambda path: ((path / "manifest.json").unlink(), os.mkfifo(path / "manifest.json"))[0],
    "a loop of links": lambda path: (
        (path / "manifest.json").unlink(),
        (path / "manifest.json").symlink_to("manifest.json"),
    )[0],
}


@pytest.mark.parametrize("damage", LAST_DAMAGES)
def test_a_damaged_last_snapshot_costs_a_warning(source: DataApiEmulator, cli: SabotagedCli, damage: str) -> None:
    """Whatever became of the last snapshot, the new one is complete, and what cannot be compared is said."""
    fill(source, "docs", 3)
    assert cli.backup(source).code == 0
    LAST_DAMAGES[damage](cli.snapshots()[0])
    result = cli.backup(source)
    assert result.code == 0, result.err
    assert f"{names(cli)[0]} cannot be read, nothing is compared with it" in result.err
    assert manifest_of(cli.snapshots()[1])["status"] == "complete"


@pytest.mark.parametrize("name", ["find_shrinkage", "Stored.here", "superseded_names"])
def test_a_bug_beside_the_backup_costs_a_warning(source: DataApiEmulator, cli: SabotagedCli, name: str) -> None:
    """An error that nobody foresaw, in comparing or deleting, is a warning: exit 0, and the snapshot has its name."""
    fill(source, "docs", 3)
    assert cli.backup(source).code == 0
    cli.sabotage = {"bug": {"module": "astra_backup", "name": name, "message": "nobody foresaw this"}}
    result = cli.backup(source, "--json")
    assert result.code == 0, result.err
    assert "nobody foresaw this" in "".join(result.json["warnings"])
    assert len(names(cli)) == 2


@pytest.mark.parametrize("name", ["write_metrics", "_post_ping"])
def test_a_bug_in_telling_the_monitors_changes_nothing(source: DataApiEmulator, cli: SabotagedCli, name: str) -> None:
    """Metrics and pings that raise what nobody foresaw change no result, and are said."""
    fill(source, "docs", 3)
    cli.sabotage = {"bug": {"module": "astra_backup", "name": name, "message": "nobody foresaw this"}}
    result = cli.backup(source, "--metrics-file", "astra.prom", "--ping-url", "http://127.0.0.1:1/ping")
    assert result.code == 0, result.err
    assert "RuntimeError" in result.err or "nobody foresaw this" in result.err
    assert len(re.findall("The ping to .* failed|No ping was sent", result.err)) == 2, "at both ends of the run"
    assert len(names(cli)) == 1


def without_box(cli: SabotagedCli, url: str) -> SabotagedCli:
    """Box's variables, leading to where nobody is."""
    cli.environ |= dict.fromkeys(("BOX_CLIENT_ID", "BOX_CLIENT_SECRET", "BOX_ENTERPRISE_ID", "BOX_FOLDER_ID"), "1")
    cli.environ |= {"BOX_BASE_URL": url, "BOX_UPLOAD_URL": url, "BACKUP_RETRY_BUDGET": "1"}
    return cli


def box_run(cli: SabotagedCli, source: DataApiEmulator, *arguments: object) -> Result:
    """A backup that is to end in Box."""
    return cli.run("astra_backup.py", "--api-endpoint", source.url, *arguments)


def test_box_that_is_not_reached_costs_the_upload_only(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """Nobody listens, and there is no snapshot here to compare with: the new one is complete and kept, exit 3."""
    fill(source, "docs", 3)
    result = box_run(without_box(cli, "http://127.0.0.1:1"), source)
    assert result.code == 3, result.err
    assert "Could not look at the last snapshot" in result.err
    assert [len(name) for name in names(cli)] == [15]


def test_a_ca_file_of_box_that_is_gone_costs_the_upload_only(cli: SabotagedCli) -> None:
    """REQUESTS_CA_BUNDLE names a file that vanishes while the database is read: complete and kept, exit 3."""
    bundle = cli.directory / "ca.pem"
    shutil.copy(certifi.where(), bundle)

    def remove(request: Any) -> None:
        if request.command == "find":
            bundle.unlink(missing_ok=True)

    with DataApiEmulator(token=TOKEN, on_request=remove) as source:
        fill(source, "docs", 3)
        cli.environ["REQUESTS_CA_BUNDLE"] = str(bundle)
        result = box_run(without_box(cli, "https://127.0.0.1:1"), source)
    assert result.code == 3, result.err
    assert "ca.pem" in result.err
    assert "Free some space" not in result.err
    assert [len(name) for name in names(cli)] == [15]


def test_looking_for_the_last_snapshot_in_box_ends(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli
) -> None:
    """Box does not list its folder, and patience is long: given up after a minute, and the backup is made and sent."""
    fill(source, "docs", 3)
    box.faults = [{"api": "items", "action": "silence", "times": None}]
    cli.with_box(box).sabotage = {"speed": 60.0}
    result = box_run(cli, source, "--retry-budget", "100000", "--request-timeout-ms", "10000000")
    assert result.code == 0, result.err
    assert "not found in Box within 60 s" in result.err
    assert [len(name) for name in names(cli)] == [15]


def test_a_directory_that_cannot_be_flushed_after_the_name_costs_nothing(
    source: DataApiEmulator, cli: SabotagedCli
) -> None:
    """Flushing the output directory fails after the rename: the snapshot is there, exit 0, and the risk is said."""
    fill(source, "docs", 3)
    steps = {"directory": str(cli.directory), "log": f"{cli.directory}.steps"}
    cli.sabotage = {"steps": steps}
    assert cli.backup(source).code == 0
    last = len(Path(f"{cli.directory}.steps").read_text().splitlines())
    Path(f"{cli.directory}.steps").unlink()
    cli.sabotage = {"steps": {**steps, "at": last, "how": "fail", "error": "EIO"}}
    result = cli.backup(source)
    log = Path(f"{cli.directory}.steps").read_text()
    assert log.splitlines()[-1].endswith("fsync backups"), log
    assert result.code == 0, result.err
    assert "a power failure could undo its name" in result.err
    assert len(names(cli)) == 2


# ------------------------------------------------------------------------------------------------ INCOMPLETE snapshots


def nights(cli: SabotagedCli, source: DataApiEmulator, *failing: str) -> list[str]:
    """A night for each text of failing collections; the names of the snapshots afterwards, with a letter a night."""
    letters: dict[str, str] = {}
    for night, failed in zip("abcdefgh", failing, strict=False):
        fail(source, *failed.split())
        assert cli.backup(source).code == (2 if failed else 0)
        letters |= {name: night for name in names(cli) if name not in letters}
    return [letters[name] for name in names(cli)]


@pytest.mark.parametrize(
    ("failing", "left"),
    [
        (["b", "b", "b"], "c"),
        (["b", "a"], "ab"),
        (["c", "b c", "a c"], "bc"),  # a is in b, b is in c: all of the first is in newer ones
        (["b", "a b c", "b"], "c"),
        (["b", ""], "b"),
        (["", "b"], "ab"),
        (["", "b", "a b"], "abc"),
    ],
)
def test_incomplete_snapshots_go_when_newer_ones_hold_all_that_is_good_in_them(
    source: DataApiEmulator, cli: SabotagedCli, failing: list[str], left: str
) -> None:
    """Nights with failing collections: what no newer snapshot holds stays, complete ones stay, the others go."""
    for name in ("a", "b", "c"):
        fill(source, name, 3)
    assert "".join(nights(cli, source, *failing)) == left


def test_a_removed_incomplete_snapshot_is_named(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """The JSON result, the line on stdout and the log name it."""
    for name in ("a", "b"):
        fill(source, name, 3)
    fail(source, "b")
    assert cli.backup(source).code == 2
    (first,) = names(cli)
    result = cli.backup(source)
    assert (result.code, f"deleted here: {first}" in result.out) == (2, True)
    assert f"Deleted {first}: all that is good in it is good in a newer snapshot" in result.err
    (second,) = names(cli)
    fail(source)
    assert cli.backup(source, "--json").json["deleted"] == {"here": [second]}


TOUCHES: dict[str, Callable[[Path], Any]] = {
    "a manifest that cannot be read": lambda path: (path / "manifest.json").write_text("?"),
    "a note of a person": lambda path: (path / "why.txt").write_text("look at this"),
    "a file that is gone": lambda path: (path / "a.jsonl.gz").unlink(),
    "a restore that has begun": lambda path: (path.parent / f".restore-{path.name}-01234567.journal").touch(),
    "another keyspace": lambda path: (path / "manifest.json").write_text(
        (path / "manifest.json").read_text().replace(KEYSPACE, "other")
    ),
    "a name of another": lambda path: path.rename(path.with_name(f"{path.name}.bak")),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_an_incomplete_snapshot_that_somebody_may_need_stays(
    source: DataApiEmulator, cli: SabotagedCli, touch: str
) -> None:
    """One that is damaged, that was touched, that a restore is at, or that is of another keyspace is not deleted."""
    for name in ("a", "b"):
        fill(source, name, 3)
    fail(source, "b")
    assert cli.backup(source).code == 2
    TOUCHES[touch](cli.snapshots()[0])
    assert cli.backup(source).code == 2
    assert len(names(cli)) == 2


def test_no_incomplete_snapshot_goes_for_a_copy_that_is_less(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """A newer copy with far fewer documents, or whose file is damaged, replaces none."""
    for name in ("a", "b", "c"):
        fill(source, name, 9)
    fail(source, "c")
    assert cli.backup(source).code == 2
    source.delete_all(KEYSPACE, "a")
    assert cli.backup(source).code == 2
    assert len(names(cli)) == 2, "what was in a is in the first one only"
    fill(source, "a", 9)
    fail(source, "b", "c")
    assert cli.backup(source).code == 2
    assert len(names(cli)) == 2, "a is in the third, b in the second: the first may go"
    shutil.rmtree(cli.backups)
    fail(source, "c")
    assert cli.backup(source).code == 2
    fail(source, "a", "b", "c")
    assert cli.backup(source).code == 2
    first, last = cli.snapshots()
    assert manifest_of(last)["totals"] == {"collections_ok": 0, "collections_failed": 3, "documents": 0}
    assert (first / "a.jsonl.gz").exists()


def test_the_file_is_looked_at_before_another_copy_goes(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """Of the two snapshots that together hold what the first one does, one is damaged: the first one stays."""
    for name in ("a", "b", "c"):
        fill(source, name, 9)
    fail(source, "c")
    assert cli.backup(source).code == 2
    fail(source, "b", "c")
    assert cli.backup(source).code == 2
    data = cli.snapshots()[1] / "a.jsonl.gz"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    fail(source, "a", "c")
    assert cli.backup(source).code == 2
    assert len(names(cli)) == 3


def test_what_is_not_listed_has_no_other_definition(
    source: DataApiEmulator, target: DataApiEmulator, cli: SabotagedCli
) -> None:
    """A collection that the server confirms and does not list is refused for that, after half a minute."""
    fill(source, "docs", 3)
    assert cli.backup(source).code == 0
    target.faults = [
        {"command": "findCollections", "action": "other_json", "json": {"status": {"collections": []}}, "times": None}
    ]
    cli.sabotage = {"speed": 20.0}
    result = cli.restore(target)
    assert "docs: the server has not listed it for 30 s." in result.err
    assert "another definition" not in result.err


def test_a_full_disk_leaves_no_run_in_progress(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """The manifest finds no room: exit 1, the run's directory is gone at once, and it is said."""
    fill(source, "docs", 3)
    log = Path(f"{cli.directory}.steps")
    steps = {"directory": str(cli.directory), "log": str(log)}
    cli.sabotage = {"steps": steps}
    assert cli.backup(source).code == 0
    number = next(number for number, line in enumerate(log.read_text().splitlines(), 1) if "write manifest" in line)
    shutil.rmtree(cli.backups)
    cli.sabotage = {"steps": {**steps, "at": number, "how": "fail on", "error": "ENOSPC"}}
    result = cli.backup(source)
    assert result.code == 1
    assert "No space left on device" in result.err
    assert "has been removed" in result.err
    assert "Free some space" in result.err
    assert [path.name for path in cli.backups.iterdir()] == [".lock"]


# ------------------------------------------------------------------------------------------------ tables


def add_tables(source: DataApiEmulator, *tables: str) -> None:
    """Tables without rows."""
    for name in tables:
        source.tables.create(KEYSPACE, name, {"id": "text"}, ["id"])


def test_tables_are_backed_up_and_checked(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """Tables are backed up with the collections, --check has a row for each, and no other command is sent for them."""
    fill(source, "docs", 3)
    add_tables(source, "events", "users")
    result = cli.backup(source, "--json")
    assert (result.code, result.json["warnings"]) == (0, [])
    assert [table["name"] for table in manifest_of(cli.snapshots()[0])["tables"]] == ["events", "users"]
    check = cli.backup(source, "--check", "--json")
    assert check.code == 0
    rows = [row for row in check.json["checks"] if row["name"].startswith("table ")]
    assert [(row["name"], row["ok"]) for row in rows] == [("table events", True), ("table users", True)]
    assert set(commands(source)) <= {
        "findCollections",
        "listTables",
        "listIndexes",
        "estimatedDocumentCount",
        "find",
        "findKeyspaces",
    }


@pytest.mark.parametrize("mode", [[], ["--check"]])
def test_a_table_can_be_asked_for(source: DataApiEmulator, cli: SabotagedCli, mode: list[str]) -> None:
    """--collection takes the name of a table, too."""
    fill(source, "docs", 3)
    add_tables(source, "users")
    assert cli.backup(source, "--collection", "users", *mode).code == 0
    if not mode:
        assert [table["name"] for table in manifest_of(cli.snapshots()[0])["tables"]] == ["users"]
        assert manifest_of(cli.snapshots()[0])["collections"] == []


def test_tables_that_nobody_wants_are_not_named(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """What --exclude leaves out, and what --collection does not ask for, is no warning."""
    fill(source, "docs", 3)
    add_tables(source, "users")
    for choice in (["--exclude", "users"], ["--collection", "docs"]):
        result = cli.backup(source, "--json", *choice)
        assert (result.code, result.json["warnings"]) == (0, [])


@pytest.mark.parametrize(
    ("fault", "is_said"),
    [
        ({"action": "error", "errorCode": "COMMAND_UNKNOWN"}, False),
        ({"action": "error", "errorCode": "INVALID_QUERY"}, True),
        ({"action": "status", "status": 404, "body": "<html>"}, True),
    ],
)
def test_a_server_that_lists_no_tables_is_backed_up(
    source: DataApiEmulator, cli: SabotagedCli, fault: dict[str, Any], is_said: bool
) -> None:
    """An old server has no tables; one that refuses to list them may have some, which is said; both are exit 0."""
    fill(source, "docs", 3)
    source.faults = [{**fault, "command": "listTables", "times": None}]
    result = cli.backup(source, "--json")
    assert result.code == 0, result.err
    assert ["has tables" in warning for warning in result.json["warnings"]] == [True] * is_said
    assert cli.backup(source, "--check").code == 0


# ------------------------------------------------------------------------------------------------ file systems


@pytest.mark.parametrize(
    ("refuses", "says"),
    [
        ({"fsync_directory": "EINVAL"}, "cannot flush directories"),
        ({"flock": "ENOLCK"}, "has no locks"),
        ({"flock": "EOPNOTSUPP"}, "has no locks"),
    ],
)
def test_a_file_system_that_promises_less_is_warned_of(
    source: DataApiEmulator, cli: SabotagedCli, refuses: dict[str, str], says: str
) -> None:
    """Without flushed directories, or without locks, a backup is made: exit 0; the run and --check say what is weak."""
    load_catalog(source)
    cli.sabotage = {"refuses": refuses}
    check = cli.backup(source, "--check")
    assert check.code == 0, check.out
    assert [line[0] for line in check.out.splitlines() if says in line] == ["!"]
    result = cli.backup(source, "--json")
    assert result.code == 0, result.err
    assert [says in warning for warning in result.json["warnings"]] == [True]
    assert cli.run("restore.py", "--verify-only").code == 0


def test_without_locks_nothing_of_a_run_that_may_live_is_removed(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """Where nobody can know whether a run is alive, its directory stays; with locks, it is swept."""
    fill(source, "docs", 3)
    other = cli.backups / ".20260601_000000.inprogress"
    other.mkdir(parents=True)
    cli.sabotage = {"refuses": {"flock": "ENOLCK"}}
    assert cli.backup(source).code == 0
    assert other.exists()
    cli.sabotage = {}
    assert cli.backup(source).code == 0
    assert not other.exists()


@pytest.mark.parametrize(
    ("refuses", "says"),
    [
        ({"rename": "EPERM"}, "could not rename a directory: Operation not permitted"),
        ({"fsync": "EINVAL"}, "could not write and flush a file: Invalid argument"),
        ({"fsync": "EIO"}, "could not write and flush a file: Input/output error"),
    ],
)
def test_a_file_system_that_cannot_hold_a_snapshot_is_found_before_anything_is_read(
    source: DataApiEmulator, cli: SabotagedCli, refuses: dict[str, str], says: str
) -> None:
    """Exit 1 before the database is asked, with what failed and no word of space; --check finds it too."""
    fill(source, "docs", 3)
    cli.sabotage = {"refuses": refuses}
    result = cli.backup(source)
    assert result.code == 1
    assert commands(source) == []
    check = cli.backup(source, "--check")
    assert check.code == 1
    for text in (result.err, check.out):
        assert says in text
        assert "Free some space" not in text
    assert [path.name for path in cli.backups.iterdir()] == [".lock"]


def test_check_leaves_nothing_behind(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """Trying the file system leaves no file: not in the directory, and not where it would be made."""
    fill(source, "docs", 3)
    assert cli.backup(source, "--check").code == 0
    assert list(cli.directory.iterdir()) == []
    cli.backups.mkdir()
    assert cli.backup(source, "--check").code == 0
    assert list(cli.backups.iterdir()) == []


# ------------------------------------------------------------------------------------------------ --check


def check_row(result: Result, name: str) -> tuple[bool, str]:
    """A row of --check --json."""
    return next((row["ok"], row["detail"]) for row in result.json["checks"] if row["name"] == name)


@pytest.mark.parametrize("is_in_box", [False, True])
def test_check_compares_the_free_space_with_the_last_snapshot(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli, is_in_box: bool
) -> None:
    """Less room than the last snapshot took, here or in Box if none is here, is a failing row with both sizes."""
    load_catalog(source)
    cli.with_box(box)
    assert box_run(cli, source).code == 0
    (snapshot,) = cli.snapshots()
    data_bytes = sum(path.stat().st_size for path in snapshot.glob("*.jsonl.gz"))
    if is_in_box:
        shutil.rmtree(cli.backups)
    arguments = ["--check", "--json"] + ["--no-box"] * (not is_in_box)
    cli.sabotage = {"free": data_bytes - 8192}
    result = box_run(cli, source, *arguments)
    ok, detail = check_row(result, "output directory")
    assert (result.code, ok) == (1, False)
    assert f"free, the last snapshot ({snapshot.name}) took" in detail
    assert "Free some space" in detail
    assert box_run(cli, source, *arguments, "--collection", "empty_collection").code == 0, "that has room"
    cli.sabotage = {"free": data_bytes + 8192}
    assert box_run(cli, source, *arguments).code == 0


def test_check_names_the_other_keyspaces(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """The keyspaces that are not backed up are named, the system's own are not; that is no failure."""
    fill(source, "docs", 3)
    assert "other keyspaces" not in cli.backup(source, "--check").out
    for name in ("shop", "system_of_ours"):
        source.database.keyspaces[name] = {}
    result = cli.backup(source, "--check", "--json")
    assert result.code == 0
    assert check_row(result, "other keyspaces") == (True, "not backed up: shop, system_of_ours")
    source.faults = [{"action": "status", "status": 403, "command": "findKeyspaces", "times": None}]
    refused = cli.backup(source, "--check")
    assert (refused.code, "keyspaces" in refused.out) == (0, False)


def test_an_estimate_of_nothing_is_no_count(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """The server says 0 for documents that it has not flushed yet: --check says that there is no estimate."""
    fill(source, "docs", 60)
    source.database.collection(KEYSPACE, "docs").loaded = 0
    out = cli.backup(source, "--check").out
    assert "no estimate" in out
    assert "0 documents" not in out


def test_the_manifest_is_json_with_warnings_a_reader_can_skip(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """However much shrank, the manifest holds a hundred sentences and the number of the rest."""
    for number in range(110):
        fill(source, f"c{number:03}", 1)
    assert cli.backup(source).code == 0
    for number in range(110):
        source.delete_all(KEYSPACE, f"c{number:03}")
    assert cli.backup(source).code == 5
    manifest: Any = json.loads((cli.snapshots()[1] / "manifest.json").read_text())
    assert len(manifest["warnings"]) == 101
    assert manifest["warnings"][-1].endswith("10 more")
