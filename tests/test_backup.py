"""`astra_backup.py` as its user runs it, against an emulator that behaves like the real server."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from astra_backup import Exit
from tests.conftest import KEYSPACE, ROOT, TOKEN, Cli, load_catalog
from tests.emulators.data_api import DataApiEmulator
from tests.support import assert_ends_in_time, fill, lines_of, manifest_of, wait_for

VECTOR3 = {"vector": {"dimension": 3, "metric": "cosine"}}
READ_ONLY = {"findCollections", "listTables", "find", "estimatedDocumentCount", "findKeyspaces"}


def ids_of(snapshot: Path, collection: str) -> list[object]:
    return [json.loads(line)["_id"] for line in lines_of(snapshot, collection)]


# ------------------------------------------------------------------------------------------------ a good run


def test_a_backup_is_complete_and_checkable_without_our_tools(source: DataApiEmulator, cli: Cli) -> None:
    """A run leaves one directory whose SHA256SUMS `sha256sum -c` accepts, and says on stdout where it is."""
    load_catalog(source)
    result = cli.backup(source)
    assert result.code == 0, result.err
    (snapshot,) = cli.snapshots()
    assert str(snapshot.name) in result.out
    assert result.out.count("\n") == 1
    subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=snapshot, check=True, capture_output=True)
    listed = {line.split("  ")[1] for line in (snapshot / "SHA256SUMS").read_text().splitlines()}
    assert listed | {"SHA256SUMS"} == {path.name for path in snapshot.iterdir()}


def test_the_manifest_says_what_is_there(source: DataApiEmulator, cli: Cli) -> None:
    """Counts, digests and definitions in the manifest are those of the files and of the server."""
    load_catalog(source)
    assert cli.backup(source).code == 0
    (snapshot,) = cli.snapshots()
    manifest = manifest_of(snapshot)
    assert manifest["status"] == "complete"
    assert manifest["backup_format_version"] == "1.1"
    assert manifest["source"] == {"api_endpoint": source.url, "keyspace": KEYSPACE, "environment": "hcd"}
    definitions = source.collections(KEYSPACE)
    for record in manifest["collections"]:  # type: ignore[attr-defined]
        lines = lines_of(snapshot, record["name"])
        data = (snapshot / record["data_file"]).read_bytes()
        assert record["definition"] == definitions[record["name"]]
        assert record["document_count"] == len(lines)
        assert record["data_size_bytes"] == len(data)
        assert record["data_sha256"] == hashlib.sha256(data).hexdigest()
        digest = sum(int(hashlib.sha256(line.encode()).hexdigest(), 16) for line in lines) % 2**256
        assert record["content_digest"] == f"{digest:064x}"
        assert "error" not in record
    by_name = {record["name"]: record for record in manifest["collections"]}  # type: ignore[attr-defined]
    assert by_name["assets"]["vector_binary_count"] == 300
    assert by_name["value_zoo"]["vector_count"] == 4
    assert by_name["empty_collection"]["document_count"] == 0


def test_only_reading_commands_reach_the_server(source: DataApiEmulator, cli: Cli) -> None:
    """Nothing but the allow-list leaves the process during a backup, and every find asks for everything."""
    load_catalog(source)
    assert cli.backup(source).code == 0
    assert {request.command for request in source.requests} <= READ_ONLY
    finds = [json.loads(request.body)["find"] for request in source.requests if request.command == "find"]
    assert finds
    assert all(find["projection"] == {"*": True} for find in finds)


def test_files_are_private(source: DataApiEmulator, cli: Cli) -> None:
    """Snapshots are 0600 files in 0700 directories, whatever the umask."""
    fill(source, "docs", 3)
    command = cli.command("astra_backup.py", "--no-box", "--api-endpoint", source.url)
    subprocess.run(command, cwd=cli.directory, env=cli.environ, check=True, capture_output=True, umask=0)
    (snapshot,) = cli.snapshots()
    assert stat.S_IMODE(snapshot.stat().st_mode) == 0o700
    assert stat.S_IMODE(cli.backups.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in snapshot.iterdir()} == {0o600}


def test_without_compression_the_lines_are_plain(source: DataApiEmulator, cli: Cli) -> None:
    """--no-compress writes .jsonl files."""
    fill(source, "docs", 3)
    assert cli.backup(source, "--no-compress").code == 0
    (snapshot,) = cli.snapshots()
    assert (snapshot / "docs.jsonl").read_text().count("\n") == 3


@pytest.mark.parametrize("page_size", [7, 50, 500])
def test_the_page_size_is_the_servers_business(source: DataApiEmulator, cli: Cli, page_size: int) -> None:
    """Pages of any size give all documents, once each."""
    source.page_size = page_size
    fill(source, "docs", 700)
    assert cli.backup(source).code == 0
    (snapshot,) = cli.snapshots()
    assert sorted(map(str, ids_of(snapshot, "docs"))) == [f"d{number:05}" for number in range(700)]


def test_forty_collections_and_a_long_name(source: DataApiEmulator, cli: Cli) -> None:
    """Many collections, one with a name of 48 characters, are all there."""
    names = [f"c{number:02}" for number in range(39)] + ["n" * 48]
    for name in names:
        fill(source, name, 5)
    result = cli.backup(source, "--json")
    assert result.code == 0
    assert sorted(record["name"] for record in result.json["collections"]) == sorted(names)
    assert result.json["documents"] == 200


def test_a_document_of_almost_four_megabytes(source: DataApiEmulator, cli: Cli) -> None:
    """The largest document that the server holds is backed up."""
    source.create(KEYSPACE, "big")
    source.put(KEYSPACE, "big", '{"_id":"big","s":"' + "x" * 3_900_000 + '"}')
    assert cli.backup(source).code == 0
    (snapshot,) = cli.snapshots()
    assert len(lines_of(snapshot, "big")[0]) > 3_900_000


def test_a_keyspace_without_collections_is_a_snapshot_with_a_warning(source: DataApiEmulator, cli: Cli) -> None:
    """Nothing to back up is complete, and said."""
    result = cli.backup(source, "--json")
    assert result.code == 0
    assert "no collections" in result.json["warnings"][0]


def test_some_collections_only(source: DataApiEmulator, cli: Cli) -> None:
    """--collection and --exclude choose."""
    for name in ("a", "b", "c"):
        fill(source, name, 2)
    only = cli.backup(source, "--collection", "a", "--collection", "b", "--json")
    assert [record["name"] for record in only.json["collections"]] == ["a", "b"]
    rest = cli.backup(source, "--exclude", "a", "--json")
    assert [record["name"] for record in rest.json["collections"]] == ["b", "c"]


def test_excluding_what_is_not_there_leaves_nothing_out(source: DataApiEmulator, cli: Cli) -> None:
    """A warning, and a snapshot of the whole keyspace, `latest` as any other; with one that is there, of some only."""
    for name in ("a", "b"):
        fill(source, name, 2)
    result = cli.backup(source, "--exclude", "dropped", "--json")
    assert result.code == 0
    assert "--exclude dropped: there is no such collection or table." in result.json["warnings"]
    whole = cli.snapshots()[-1]
    assert "selection" not in manifest_of(whole)
    assert cli.backup(source, "--exclude", "a", "--exclude", "dropped").code == 0
    assert manifest_of(cli.snapshots()[-1])["selection"] == {"collections": [], "exclude": ["a", "dropped"]}
    latest = cli.run("restore.py", "--verify-only", "--json")
    assert Path(latest.json["snapshot"]).name == whole.name


def test_a_typo_in_exclude_does_not_switch_the_shrink_alarm_off(source: DataApiEmulator, cli: Cli) -> None:
    """What is whole is compared with the last whole one."""
    fill(source, "a", 30)
    assert cli.backup(source).code == 0
    source.delete_all(KEYSPACE, "a")
    assert cli.backup(source, "--exclude", "typo").code == 5


def test_what_may_be_an_unlisted_table_stays_excluded(source: DataApiEmulator, cli: Cli) -> None:
    """Where tables cannot be listed, an excluded name may be one of them: the snapshot is not called whole."""
    fill(source, "a", 2)
    source.faults = [{"command": "listTables", "action": "status", "status": 403, "times": None}]
    cli.backup(source, "--exclude", "table")
    assert manifest_of(cli.snapshots()[-1])["selection"] == {"collections": [], "exclude": ["table"]}


def test_two_runs_in_one_second_have_two_names(source: DataApiEmulator, cli: Cli) -> None:
    """A name that is taken is not used again."""
    fill(source, "docs", 1)
    assert [cli.backup(source).code for _ in range(3)] == [0, 0, 0]
    assert len(cli.snapshots()) == 3


# ------------------------------------------------------------------------------------------------ configuration: 1


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        (["--nonsense"], {}, "--nonsense"),
        (["--workers", "0"], {}, "workers"),
        (["--no-box", "--api-endpoint", ""], {}, "ASTRA_DB_API_ENDPOINT"),
        (["--no-box", "--api-endpoint", "ftp://x"], {}, "http"),
        (
            ["--no-box", "--api-endpoint", "http://127.0.0.1:1"],
            {"ASTRA_DB_APPLICATION_TOKEN": ""},
            "ASTRA_DB_APPLICATION_TOKEN",
        ),
        (["--api-endpoint", "http://127.0.0.1:1"], {}, "--no-box"),
        (["--no-box", "--api-endpoint", "http://127.0.0.1:1"], {"BACKUP_RETRY_BUDGET": "0"}, "No reply"),
        (["--no-box", "--api-endpoint", "http://127.0.0.1:1", "--environment", "prod2"], {}, "environment"),
        (["stray"], {}, "stray"),
    ],
)
def test_mistakes_end_in_1(cli: Cli, arguments: list[str], environ: dict[str, str], says: str) -> None:
    """Usage, configuration and connection errors exit with 1, also click's own, and name what is wrong."""
    result = cli.run("astra_backup.py", *arguments, **environ)
    assert result.code == Exit.FAILED
    assert says in result.err
    assert result.out == ""
    assert not cli.backups.exists() or not cli.snapshots()


def test_box_that_is_not_configured_names_what_is_missing(cli: Cli) -> None:
    """Without --no-box and without Box's variables nothing is read, and each of them is named."""
    result = cli.run("astra_backup.py", "--api-endpoint", "http://127.0.0.1:1")
    assert result.code == 1
    for name in ("BOX_CLIENT_ID", "BOX_CLIENT_SECRET", "BOX_ENTERPRISE_ID", "BOX_FOLDER_ID", "--no-box"):
        assert name in result.err


def test_an_unknown_collection_is_1(source: DataApiEmulator, cli: Cli) -> None:
    """A collection that is asked for and not there ends the run before anything is written."""
    fill(source, "docs", 1)
    result = cli.backup(source, "--collection", "dosc")
    assert result.code == 1
    assert "docs" in result.err
    assert cli.snapshots() == []


def test_an_unknown_keyspace_is_1_and_names_those_there_are(source: DataApiEmulator, cli: Cli) -> None:
    """A wrong keyspace is explained."""
    result = cli.backup(source, "--keyspace", "nope")
    assert result.code == 1
    assert KEYSPACE in result.err


def test_a_wrong_token_is_1_at_once(source: DataApiEmulator, cli: Cli) -> None:
    """401 is not retried."""
    started = time.monotonic()
    result = cli.backup(source, ASTRA_DB_APPLICATION_TOKEN="AstraCS:wrong", BACKUP_RETRY_BUDGET="60")
    assert result.code == 1
    assert "401" in result.err
    assert "ASTRA_DB_APPLICATION_TOKEN, or the file that ASTRA_DB_APPLICATION_TOKEN_FILE names" in result.err
    assert time.monotonic() - started < 20
    assert len(source.requests) == 1


def test_the_token_can_come_from_a_file_and_from_dotenv(source: DataApiEmulator, cli: Cli) -> None:
    """…_FILE and .env are read, and real variables win over .env."""
    fill(source, "docs", 1)
    (cli.directory / "token").write_text(TOKEN + "\n")
    environ = {"ASTRA_DB_APPLICATION_TOKEN": "", "ASTRA_DB_APPLICATION_TOKEN_FILE": "token"}
    assert cli.backup(source, **environ).code == 0
    (cli.directory / "token").unlink()
    (cli.directory / ".env").write_text(f"ASTRA_DB_API_ENDPOINT={source.url}\nASTRA_DB_KEYSPACE=nope\n")
    assert cli.run("astra_backup.py", "--no-box").code == 1
    assert cli.run("astra_backup.py", "--no-box", ASTRA_DB_KEYSPACE=KEYSPACE).code == 0
    (cli.directory / ".env").unlink()


@pytest.mark.parametrize(
    ("content", "path", "says"),
    [(None, "~/token", "`~` is not expanded here: write the full path."), (" \n", "token", "it is empty")],
)
def test_a_token_file_that_is_none_says_why(
    source: DataApiEmulator, cli: Cli, content: str | None, path: str, says: str
) -> None:
    """A path that only a shell would expand, and a file without a token: 1, with the way out."""
    if content:
        (cli.directory / path).write_text(content)
    result = cli.backup(source, ASTRA_DB_APPLICATION_TOKEN="", ASTRA_DB_APPLICATION_TOKEN_FILE=path)
    assert (result.code, source.requests) == (1, [])
    assert "which ASTRA_DB_APPLICATION_TOKEN_FILE names" in result.err
    assert says in result.err
    (cli.directory / path).unlink(missing_ok=True)


def test_a_real_file_of_a_token_wins_over_a_token_in_dotenv(source: DataApiEmulator, cli: Cli) -> None:
    """Real variables win over .env, also when one names a file and the other holds the token itself."""
    fill(source, "docs", 1)
    (cli.directory / ".env").write_text("ASTRA_DB_APPLICATION_TOKEN=AstraCS:read-only\n")
    (cli.directory / "token").write_text(TOKEN + "\n")
    del cli.environ["ASTRA_DB_APPLICATION_TOKEN"]
    assert cli.backup(source, ASTRA_DB_APPLICATION_TOKEN_FILE="token").code == 0
    (cli.directory / "token").unlink()
    assert cli.backup(source).code == 1
    (cli.directory / ".env").unlink()


def test_check_writes_nothing(source: DataApiEmulator, cli: Cli) -> None:
    """--check tells what there is and leaves no trace; exit 1 when something is wrong."""
    load_catalog(source)
    result = cli.backup(source, "--check")
    assert result.code == 0
    assert "assets" in result.out
    assert "free" in result.out
    assert not cli.backups.exists()
    assert {request.command for request in source.requests} <= READ_ONLY
    assert cli.backup(source, "--check", ASTRA_DB_APPLICATION_TOKEN="AstraCS:wrong").code == 1


def test_help_and_version_work_without_configuration(cli: Cli) -> None:
    """-h and --version answer on stdout with 0."""
    for script in ("astra_backup.py", "restore.py"):
        assert "Examples" in cli.run(script, "-h").out
        assert cli.run(script, "--version").code == 0


# ------------------------------------------------------------------------------------------------ failed collections: 2


def test_one_failed_collection_does_not_stop_the_others(source: DataApiEmulator, cli: Cli) -> None:
    """The snapshot is INCOMPLETE, exit 2, the others are in it, the failed one leaves no data file."""
    for name in ("a", "b", "c"):
        fill(source, name, 120)
    source.add_fault("error", command="find", collection="b", skip=1, times=None, errorCode="INVALID_QUERY")
    result = cli.backup(source, "--json")
    assert result.code == Exit.INCOMPLETE
    (snapshot,) = cli.snapshots()
    assert snapshot.name.endswith(".INCOMPLETE")
    states = {record["name"]: record["status"] for record in result.json["collections"]}
    assert states == {"a": "ok", "b": "failed", "c": "ok"}
    assert not (snapshot / "b.jsonl.gz").exists()
    assert manifest_of(snapshot)["totals"] == {"collections_ok": 2, "collections_failed": 1, "documents": 240}
    subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=snapshot, check=True, capture_output=True)


@pytest.mark.parametrize(
    "document",
    [
        '{"_id":1,"x":{"$newType":"1"}}',
        '{"_id":1,"$new":1}',
        '{"_id":1,"x":[{"y":1,"$date":5}]}',
        '{"_id":1,"x":{"$vector":[1,2,3]}}',
        '{"_id":1,"x":{"$backupType":"uuid","value":"x"}}',
    ],
)
def test_a_type_that_is_not_known_is_refused(source: DataApiEmulator, cli: Cli, document: str) -> None:
    """A `$`-name that this tool does not know fails the collection rather than being guessed at."""
    source.create(KEYSPACE, "docs")
    source.put(KEYSPACE, "docs", document)
    result = cli.backup(source)
    assert result.code == Exit.INCOMPLETE
    assert "Refusing to write a lossy backup" in result.err


def test_the_vector_guard(source: DataApiEmulator, cli: Cli) -> None:
    """A vector collection without a vector in any document fails; with a service it only warns; empty is fine."""
    source.create(KEYSPACE, "lost", VECTOR3)
    source.put(KEYSPACE, "lost", '{"_id":1}')
    source.create(KEYSPACE, "nothing", VECTOR3)
    service = {"vector": {"dimension": 3, "metric": "cosine", "service": {"provider": "openai", "modelName": "m"}}}
    source.create(KEYSPACE, "served", service | {"lexical": {"enabled": False}, "rerank": {"enabled": False}})
    source.put(KEYSPACE, "served", '{"_id":1,"$vectorize":"text"}')
    result = cli.backup(source, "--json")
    states = {record["name"]: record["status"] for record in result.json["collections"]}
    assert states == {"lost": "failed", "nothing": "ok", "served": "ok"}
    assert any("served" in warning for warning in result.json["warnings"])


# ------------------------------------------------------------------------------------------------ a failing service


RETRIED = [
    {"action": "reset"},
    {"action": "reset_after"},
    {"action": "truncate"},
    {"action": "invalid_json"},
    {"action": "html"},
    {"action": "other_json", "json": []},
    {"action": "other_json", "json": {}},
    {"action": "other_json", "json": {"data": {"documents": 5}}},
    {"action": "status", "status": 429, "headers": {"Retry-After": "1"}},
    {"action": "status", "status": 429, "headers": {"Retry-After": "Mon, 01 Jan 2024 00:00:00 GMT"}},
    {"action": "status", "status": 500},
    {"action": "status", "status": 502, "body": "<html>"},
    {"action": "status", "status": 503},
    {"action": "error", "errorCode": "TIMEOUT_READING_DATA"},
    {"action": "error", "errorCode": "UNEXPECTED_SERVER_ERROR"},
    {"action": "empty_page"},
    {"action": "repeat_page"},
    {"action": "bad_page_state", "times": 6},
]


@pytest.mark.parametrize("fault", RETRIED, ids=lambda fault: "-".join(map(str, fault.values()))[:40])
def test_a_passing_fault_costs_nothing_but_time(source: DataApiEmulator, cli: Cli, fault: dict[str, object]) -> None:
    """After a fault in the middle of a collection every document is there exactly once."""
    fill(source, "docs", 230)
    source.faults = [{"command": "find", "skip": 2, **fault}]
    result = cli.backup(source, BACKUP_RETRY_BUDGET="30")
    assert result.code == 0, result.err
    (snapshot,) = cli.snapshots()
    assert sorted(map(str, ids_of(snapshot, "docs"))) == [f"d{number:05}" for number in range(230)]


def test_a_trickling_reply_and_a_silent_server_time_out(source: DataApiEmulator, cli: Cli) -> None:
    """--request-timeout-ms ends a reply as a whole, also one that comes byte by byte."""
    fill(source, "docs", 120)
    source.faults = [
        {"command": "find", "action": "trickle", "interval": 0.05},
        {"command": "find", "skip": 1, "action": "silence"},
    ]
    result = cli.backup(source, "--request-timeout-ms", 1000)
    assert result.code == 0, result.err
    assert manifest_of(cli.snapshots()[0])["totals"]["documents"] == 120  # type: ignore[index]


def test_patience_ends_with_the_budget(source: DataApiEmulator, cli: Cli) -> None:
    """A service that stays down fails the collection after the budget, and a Retry-After beyond it at once."""
    fill(source, "docs", 120)
    source.faults = [{"command": "find", "action": "status", "status": 503, "skip": 1, "times": None}]
    started = time.monotonic()
    assert cli.backup(source, BACKUP_RETRY_BUDGET="3").code == Exit.INCOMPLETE
    assert time.monotonic() - started < 12
    source.faults = [
        {
            "command": "find",
            "action": "status",
            "status": 429,
            "times": None,
            "headers": {"Retry-After": "86400"},
        }
    ]
    started = time.monotonic()
    assert cli.backup(source, BACKUP_RETRY_BUDGET="60").code == Exit.INCOMPLETE
    assert time.monotonic() - started < 12


def test_a_page_state_that_never_works_gives_up(source: DataApiEmulator, cli: Cli) -> None:
    """The collection starts over a few times and then fails; no half collection survives."""
    fill(source, "docs", 120)
    source.faults = [{"command": "find", "action": "bad_page_state", "contains": "pageState", "times": None}]
    result = cli.backup(source, BACKUP_RETRY_BUDGET="60")
    assert result.code == Exit.INCOMPLETE
    assert not list(cli.snapshots()[0].glob("*.jsonl*"))


@pytest.mark.parametrize("action", ["empty_page", "repeat_page"])
def test_a_server_that_never_moves_on_is_given_up(source: DataApiEmulator, cli: Cli, action: str) -> None:
    """Pages that bring nothing and lead nowhere fail the collection; they are not asked for, or written, for ever."""
    fill(source, "docs", 120)
    source.faults = [{"command": "find", "action": action, "skip": 1, "times": None}]
    assert cli.backup(source).code == Exit.INCOMPLETE
    assert not list(cli.snapshots()[0].glob("*.jsonl*"))


def test_a_collection_that_is_recreated_meanwhile_starts_over(source: DataApiEmulator, cli: Cli) -> None:
    """The old page state dies with the old collection; the snapshot holds the new one."""
    fill(source, "docs", 120)
    source.faults = [{"command": "find", "action": "recreate_collection", "skip": 1, "keep_documents": True}]
    assert cli.backup(source, BACKUP_RETRY_BUDGET="60").code == 0
    assert len(ids_of(cli.snapshots()[0], "docs")) == 120


def test_a_collection_that_vanishes_fails(source: DataApiEmulator, cli: Cli) -> None:
    """A collection that is dropped during its scan is a failed one, the others are there."""
    fill(source, "docs", 120)
    fill(source, "other", 3)
    source.faults = [{"command": "find", "collection": "docs", "action": "drop_collection", "skip": 1}]
    result = cli.backup(source)
    assert result.code == Exit.INCOMPLETE
    assert "UNKNOWN_COLLECTION" in result.err
    assert len(ids_of(cli.snapshots()[0], "other")) == 3


def test_a_hibernated_database_is_waited_for(source: DataApiEmulator, cli: Cli) -> None:
    """A service that answers 503 at first is asked again."""
    fill(source, "docs", 3)
    source.faults = [{"action": "status", "status": 503, "times": 3}]
    assert cli.backup(source, BACKUP_RETRY_BUDGET="30").code == 0


# ------------------------------------------------------------------------------------------------ this machine


def test_a_second_run_is_locked_out(source: DataApiEmulator, cli: Cli) -> None:
    """While a run holds the output directory another one exits with 4; afterwards it works."""
    fill(source, "docs", 60)
    source.faults = [{"command": "find", "action": "silence", "times": None}]
    running = cli.start("astra_backup.py", "--no-box", "--api-endpoint", source.url)
    wait_for(lambda: any(request.command == "find" for request in source.requests))
    result = cli.backup(source)
    running.kill()
    running.communicate()
    assert result.code == Exit.LOCKED
    source.faults = []
    assert cli.backup(source).code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_run_in_time(source: DataApiEmulator, cli: Cli, number: signal.Signals, code: int) -> None:
    """A run that hangs in a request ends within 10 seconds, leaves no final name, and the next run sweeps."""
    fill(source, "docs", 120)
    source.faults = [{"command": "find", "action": "silence", "skip": 1, "times": None}]
    running = cli.start("astra_backup.py", "--no-box", "--api-endpoint", source.url)
    wait_for(lambda: sum(request.command == "find" for request in source.requests) >= 1)
    time.sleep(0.5)
    assert_ends_in_time(running, number, code)
    assert cli.snapshots() == []
    assert [path.name for path in cli.backups.iterdir() if path.name.endswith(".inprogress")]
    source.faults = []
    assert cli.backup(source).code == 0
    assert not [path.name for path in cli.backups.iterdir() if path.name.endswith(".inprogress")]


def test_foreign_names_survive_the_sweep(source: DataApiEmulator, cli: Cli) -> None:
    """Only directories that are exactly ours are swept."""
    fill(source, "docs", 1)
    foreign = [".x.inprogress", ".20260101_000000.inprogress.bak", "20260101_000000.inprogress"]
    for name in [*foreign, ".20260101_000000.inprogress"]:
        (cli.backups / name).mkdir(parents=True)
    assert cli.backup(source).code == 0
    left = {path.name for path in cli.backups.iterdir()}
    assert left >= set(foreign)
    assert ".20260101_000000.inprogress" not in left


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_1(source: DataApiEmulator, cli: Cli) -> None:
    """A read-only output directory is named, with what to do."""
    cli.backups.mkdir(mode=0o500)
    assert cli.backup(source).code == 1


def test_an_output_path_that_is_a_file_is_1(source: DataApiEmulator, cli: Cli) -> None:
    """A file in the place of the output directory is a usage error."""
    (cli.directory / "backups").write_text("")
    assert cli.backup(source).code == 1


def test_a_full_disk_fails_the_collection_and_leaves_no_half(source: DataApiEmulator, cli: Cli) -> None:
    """When a file cannot grow, its collection fails and its file goes; what fitted is kept."""
    fill(source, "small", 3)
    source.create(KEYSPACE, "large")
    for number in range(200):
        noise = hashlib.sha512(str(number).encode()).hexdigest() * 20
        source.put(KEYSPACE, "large", f'{{"_id":{number},"s":"{noise}{number}"}}')
    command = cli.command("astra_backup.py", "--no-box", "--no-compress", "--api-endpoint", source.url)
    limited = ["bash", "-c", 'ulimit -f 64; exec "$@"', "-", *command]
    done = subprocess.run(limited, cwd=cli.directory, env=cli.environ, capture_output=True, text=True)
    assert done.returncode == Exit.INCOMPLETE, done.stderr
    (snapshot,) = cli.snapshots()
    assert {path.name for path in snapshot.iterdir()} == {"manifest.json", "SHA256SUMS", "small.jsonl"}


def test_nothing_secret_is_said_when_everything_fails(source: DataApiEmulator, cli: Cli) -> None:
    """With -v and an error that echoes the token, neither output nor files hold it."""
    fill(source, "docs", 60)
    source.faults = [
        {
            "command": "find",
            "action": "error",
            "errorCode": "INVALID_QUERY",
            "message": f"bad {TOKEN}",
            "times": None,
        }
    ]
    result = cli.backup(source, "-v")
    assert result.code == Exit.INCOMPLETE
    assert "INVALID_QUERY" in result.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--exclude", "docs"], "Nothing is left to back up"),
        (["--keyspace", ""], "--keyspace is empty"),
    ],
)
def test_what_leaves_nothing_to_back_up_is_1(
    source: DataApiEmulator, cli: Cli, arguments: list[str], said: str
) -> None:
    """Whoever asks for nothing is told so, and no empty snapshot is made."""
    fill(source, "docs", 3)
    result = cli.backup(source, *arguments)
    assert result.code == 1
    assert said in result.err
    assert not cli.backups.exists() or cli.snapshots() == []


FAILING_MACHINE = """
import pathlib, sys
sys.path.insert(0, sys.argv.pop(1))
fault = sys.argv.pop(1)
import astra_backup
compress, read = astra_backup.DataFileWriter._compress, astra_backup.file_sha256

def forget_a_line(self, text):
    return compress(self, text[: text.rindex(b"\\n", 0, -1) + 1])

def flip_a_bit(self, text):
    return compress(self, text.replace(b'"_id":"', b'"_id":"x', 1))

def damage_the_file(path, advance):
    with path.open("r+b") as file:
        file.seek(30)
        byte = file.read(1)
        file.seek(30)
        file.write(bytes([byte[0] ^ 1]))
    return read(path, advance)

if fault == "disk":
    astra_backup.file_sha256 = damage_the_file
else:
    astra_backup.DataFileWriter._compress = forget_a_line if fault == "lost" else flip_a_bit
astra_backup.run_command(astra_backup.main)
"""


@pytest.mark.parametrize("compress", ["--compress", "--no-compress"])
@pytest.mark.parametrize("fault", ["lost", "memory", "disk"])
def test_what_does_not_read_back_as_it_was_sent_is_a_failed_collection(
    source: DataApiEmulator, cli: Cli, fault: str, compress: str
) -> None:
    """A line that never reaches the file, one that is another, a disk that changes a bit at last: 2, and it is said."""
    fill(source, "docs", 30)
    command = [sys.executable, "-c", FAILING_MACHINE, str(ROOT), fault, "--no-box", compress]
    environ = cli.environ | {"ASTRA_DB_API_ENDPOINT": source.url}
    done = subprocess.run(command, cwd=cli.directory, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "does not read back as it was written" in done.stderr
    (snapshot,) = cli.snapshots()
    assert snapshot.name.endswith(".INCOMPLETE")
    assert not list(snapshot.glob("docs*"))
