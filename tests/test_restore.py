"""`restore.py` as its user runs it: from an emulator, through a snapshot, into another emulator."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import shutil
import signal
import struct
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restore import RestoreExit
from tests.conftest import KEYSPACE, TOKEN, Cli, load_catalog
from tests.emulators.data_api import DataApiEmulator
from tests.support import OFF, assert_ends_in_time, fill, same_documents, snapshot_of, wait_for, writes

# ------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("arguments", [[], ["--no-compress"]], ids=["gzip", "plain"])
def test_the_catalog_comes_back_to_the_digit(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, arguments: list[str]
) -> None:
    """Real collections, every kind of value among them, are restored byte for byte, with their definitions."""
    load_catalog(source)
    snapshot_of(source, cli, *arguments)
    result = cli.restore(target, "--json")
    assert result.code == 0, result.err
    assert all(row["equal"] for row in result.json["collections"])
    same_documents(source, target)


def binary_vector(*floats: float) -> str:
    """The stored form of a vector that astrapy writes."""
    return base64.b64encode(struct.pack(f">{len(floats)}f", *floats)).decode()


def test_odd_documents_come_back_as_they_were(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Mixed vector forms, NaN in a vector, dates beyond year 9999 and values of no type survive."""
    definition = {"vector": {"dimension": 3, "metric": "cosine"}, "indexing": {"deny": ["raw"]}}
    source.create(KEYSPACE, "odd", definition)
    documents = [
        '{"_id":"array","$vector":[0.1,0.25,1E-7]}',
        f'{{"_id":"binary","$vector":{{"$binary":"{binary_vector(0.1, -0.0, 3.4e38)}"}}}}',
        f'{{"_id":"nan","$vector":{{"$binary":"{binary_vector(math.nan, 1, 2)}"}}}}',
        '{"_id":"year-10000","raw":{"$date":253402300800000}}',
        '{"_id":"no-date","raw":{"$date":"abc"}}',
        '{"_id":"no-uuid","raw":[{"$uuid":"hello"},{"$uuid":"1-2-3-4-5"},{"$binary":5},{"$objectId":""}]}',
        '{"_id":"page-end","raw":"],\\"nextPageState\\":null}}","s":"{\\"data\\":{\\"documents\\":["}',
        '{"_id":"look-alike","s":"{\\"$backupType\\":\\"uuid\\",\\"value\\":\\"x\\"}","k\\"$vector":[1]}',
        *(f'{{"_id":{{"$date":{ms}}}}}' for ms in (268358400123, 536500800007, 1073692800123, 2147472000999, -1)),
    ]
    for document in documents:
        source.put(KEYSPACE, "odd", document)
    snapshot_of(source, cli)
    result = cli.restore(target)
    assert result.code == 0, result.err
    assert sorted(target.documents(KEYSPACE, "odd")) == sorted(documents)


def test_the_largest_document_and_an_empty_collection_come_back(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """3.9 MB in one document, and nothing at all, are restored."""
    source.create(KEYSPACE, "big", {"indexing": {"deny": ["*"]}})
    for number in range(3):
        source.put(KEYSPACE, "big", f'{{"_id":{number},"s":"{"é" * 1_900_000}"}}')
    source.create(KEYSPACE, "nothing")
    source.create(KEYSPACE, "n" * 48)
    snapshot_of(source, cli)
    assert cli.restore(target).code == 0
    same_documents(source, target)


TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
NUMBERS = st.one_of(
    st.integers(-(10**40), 10**40).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.from_regex(r"-?[1-9]\.[0-9]{1,40}[1-9]E[+-][1-9][0-9]{0,2}", fullmatch=True),
)
TYPED = st.one_of(
    st.integers(-(10**15), 10**15).map(lambda ms: f'{{"$date":{ms}}}'),
    st.uuids().map(lambda uuid: f'{{"$uuid":"{uuid}"}}'),
    st.binary(min_size=12, max_size=12).map(lambda raw: f'{{"$objectId":"{raw.hex()}"}}'),
    st.binary(max_size=20).map(lambda raw: f'{{"$binary":"{base64.b64encode(raw).decode()}"}}'),
)
SCALARS = st.one_of(NUMBERS, TYPED, TEXT.map(json.dumps), st.sampled_from(["true", "false", "null"]))
NAMES = TEXT.filter(lambda name: name and not name.startswith("$") and name != "_id").map(
    lambda name: json.dumps(name, ensure_ascii=False)
)


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON objects as text."""
    pairs = st.dictionaries(NAMES, values, max_size=4)
    return pairs.map(lambda fields: "{" + ",".join(f"{name}:{value}" for name, value in fields.items()) + "}")


VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=4).map(lambda vs: f"[{','.join(vs)}]") | objects(v), max_leaves=8
)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
VECTORS = st.lists(FLOAT32, min_size=4, max_size=4).flatmap(
    lambda fs: st.sampled_from([f'{{"$binary":"{binary_vector(*fs)}"}}', f"[{','.join(map(repr, fs))}]", "null", ""])
)


def random_documents(count: int) -> list[str]:
    """Documents of every kind, drawn one by one: one example of hypothesis may not hold that many."""
    found: list[str] = []

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(value=VALUES, vector=VECTORS)
    def collect(value: str, vector: str) -> None:
        found.append(f'{{"_id":{len(found)},"raw":{value}' + (f',"$vector":{vector}' if vector else "") + "}")

    collect()
    return found


def test_random_documents_come_back_to_the_digit(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Documents of every kind that the server takes go out and come back as the same text."""
    source.create(KEYSPACE, "docs", {"vector": {"dimension": 4, "metric": "cosine"}, "indexing": {"deny": ["raw"]}})
    documents = random_documents(1500)
    assert insert(source, documents) > len(documents) / 2
    snapshot_of(source, cli)
    result = cli.restore(target)
    assert result.code == 0, result.err
    same_documents(source, target)


def insert(emulator: DataApiEmulator, documents: list[str]) -> int:
    """Insert as a client would, so that the server normalises; returns how many it took."""
    import urllib.request

    for start in range(0, len(documents), 50):
        body = (
            '{"insertMany":{"documents":[' + ",".join(documents[start : start + 50]) + '],"options":{"ordered":false}}}'
        )
        request = urllib.request.Request(
            f"{emulator.url}/v1/{KEYSPACE}/docs", body.encode(), {"Token": TOKEN, "Content-Type": "application/json"}
        )
        urllib.request.urlopen(request).read()
    return len(emulator.documents(KEYSPACE, "docs"))


def test_definitions_are_made_explicit(source: DataApiEmulator, cli: Cli) -> None:
    """A definition without lexical and rerank does not turn them on in a target that would."""
    source.create(KEYSPACE, "plain")
    snapshot_of(source, cli)
    with DataApiEmulator(token=TOKEN, astra=True) as target:
        assert cli.restore(target).code == 0
        assert target.collections(KEYSPACE)["plain"] == OFF


# ------------------------------------------------------------------------------------------------ finding a snapshot


def test_a_snapshot_is_found_by_directory_name_zip_and_latest(source: DataApiEmulator, cli: Cli) -> None:
    """The greatest timestamp in the name is the latest, whatever a file's time; incomplete ones never are."""
    fill(source, "docs", 3)
    snapshot = snapshot_of(source, cli)
    newer = snapshot.with_name("20990101_000000")
    shutil.copytree(snapshot, newer)
    shutil.copytree(snapshot, snapshot.with_name("20990102_000000.INCOMPLETE"))
    shutil.copytree(snapshot, snapshot.with_name("20990103_000000-mine"))
    archive = shutil.make_archive(str(cli.directory / "moved"), "zip", cli.backups, snapshot.name)
    for wanted, found in [
        ("latest", newer.name),
        (snapshot.name, snapshot.name),
        (str(snapshot), snapshot.name),
        (archive, "moved.zip"),
    ]:
        result = cli.run("restore.py", wanted, "--verify-only", "--json")
        assert result.code == 0, result.err
        assert Path(result.json["snapshot"]).name == found
    assert cli.run("restore.py", "nope", "--verify-only").code == 1
    assert cli.run("restore.py", "--verify-only", "--output-dir", "elsewhere").code == 1


def test_the_list_is_newest_first(source: DataApiEmulator, cli: Cli) -> None:
    """--list shows name, status, documents and size, and does not stumble over what is broken."""
    fill(source, "docs", 3)
    snapshot = snapshot_of(source, cli)
    (cli.backups / "20990101_000000").mkdir()
    (cli.backups / "foreign").mkdir()
    rows = cli.run("restore.py", "--list", "--json").json["snapshots"]
    assert [row["name"] for row in rows] == ["20990101_000000", snapshot.name]
    assert [row["status"] for row in rows] == ["unreadable", "complete"]
    assert rows[1]["documents"] == 3
    assert snapshot.name in cli.run("restore.py", "--list").out


# ------------------------------------------------------------------------------------------------ several databases


def dated(cli: Cli, emulator: DataApiEmulator, name: str, *arguments: object) -> Path:
    """A snapshot made now, under a name of another time."""
    before = set(cli.backups.iterdir()) if cli.backups.exists() else set()
    result = cli.backup(emulator, *arguments)
    assert result.code == 0, result.err
    (made,) = {path for path in cli.backups.iterdir() if not path.name.startswith(".")} - before
    return made.rename(cli.backups / name)


def latest(cli: Cli, *arguments: object) -> str:
    """The name of what `latest` takes."""
    result = cli.run("restore.py", "--verify-only", "--json", *arguments)
    assert result.code == 0, result.err
    return Path(result.json["snapshot"]).name


def test_the_latest_of_two_databases_is_ambiguous(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Two databases, and two keyspaces of one, in one directory: `latest` is 1 and names the newest of each; --source
    narrows it, whatever the case of an endpoint and the slash behind it; nothing was asked of the target.
    """
    for emulator, keyspace in ((source, "default_keyspace"), (source, "other"), (target, "default_keyspace")):
        emulator.create(keyspace, "docs")
    old = dated(cli, source, "20260101_000000")
    ours = dated(cli, source, "20260102_000000")
    other = dated(cli, source, "20260103_000000", "--keyspace", "other")
    theirs = dated(cli, target, "20260104_000000")
    for command in (["--dry-run"], ["--verify-only"], ["--compare"], []):
        before = len(target.requests)
        result = cli.restore(target, *command)
        assert (result.code, len(target.requests)) == (1, before)
        assert "ambiguous" in result.err
        for snapshot, emulator, keyspace in (
            (ours, source, "default_keyspace"),
            (other, source, "other"),
            (theirs, target, "default_keyspace"),
        ):
            assert f"{snapshot.name}: keyspace {keyspace} at {emulator.url}" in result.err
        assert old.name not in result.err
    assert latest(cli, "--source", "other") == other.name
    assert latest(cli, "--source", target.url.upper() + "/") == theirs.name
    still = cli.run("restore.py", "--verify-only", "--source", source.url)
    assert (still.code, ours.name in still.err, other.name in still.err, theirs.name in still.err) == (
        1,
        True,
        True,
        False,
    )
    assert latest(cli, "--source", source.url, "--source", "default_keyspace") == ours.name
    none = cli.run("restore.py", "--verify-only", "--source", "nobody")
    assert none.code == 1
    assert "no complete snapshot of nobody" in none.err
    assert f"keyspace other at {source.url}" in none.err


def test_the_list_and_the_plan_name_the_source(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """--list and --dry-run say of which keyspace of which database a snapshot is; --source narrows the list."""
    for emulator in (source, target):
        emulator.create(KEYSPACE, "docs")
    ours = dated(cli, source, "20260102_000000")
    theirs = dated(cli, target, "20260103_000000")
    rows = cli.run("restore.py", "--list", "--json").json["snapshots"]
    assert [(row["name"], row["api_endpoint"], row["keyspace"]) for row in rows] == [
        (theirs.name, target.url, KEYSPACE),
        (ours.name, source.url, KEYSPACE),
    ]
    (line,) = cli.run("restore.py", "--list", "--source", source.url + "/").out.splitlines()
    assert line.startswith(ours.name)
    assert line.endswith(f"keyspace {KEYSPACE} at {source.url}")
    planned = cli.restore(target, ours.name, "--dry-run")
    route = f"snapshot {ours.name} of keyspace {KEYSPACE} at {source.url} into keyspace {KEYSPACE} at {target.url}"
    assert planned.out.splitlines()[0] == f"{route}:"
    fields = cli.restore(target, ours.name, "--dry-run", "--json").json
    assert fields["source"] == {"api_endpoint": source.url, "keyspace": KEYSPACE}
    assert fields["target"] == {"api_endpoint": target.url, "keyspace": KEYSPACE}
    asked = cli.restore(source, ours.name)
    assert asked.code == 4
    assert f"of keyspace {KEYSPACE} at {source.url} into keyspace {KEYSPACE} at {source.url}" in asked.err
    named = cli.restore(target, ours.name, "--source", KEYSPACE)
    assert (named.code, "--source" in named.err) == (1, True)


def test_the_latest_is_of_a_whole_keyspace(source: DataApiEmulator, cli: Cli) -> None:
    """A newer snapshot of some collections is not the latest, and the log says so; if there is no other, it is 1."""
    for name in ("a", "b"):
        source.create(KEYSPACE, name)
    some = dated(cli, source, "20260103_000000", "--collection", "a")
    alone = cli.run("restore.py", "--verify-only")
    assert alone.code == 1
    assert some.name in alone.err
    whole = dated(cli, source, "20260102_000000")
    dated(cli, source, "20260101_000000", "--exclude", "a")
    result = cli.run("restore.py", "--verify-only")
    assert (result.code, f"{whole.name}: whole" in result.out) == (0, True)
    assert some.name in result.err


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_bytes((path / "manifest.json").read_bytes()[:-9]),
        lambda path: edit_manifest(path, lambda manifest: manifest.update(status="incomplete")),
        lambda path: edit_manifest(path, lambda manifest: manifest.update(backup_format_version="2.0")),
    ],
    ids=["no manifest", "half a manifest", "incomplete", "of a later version"],
)
def test_what_cannot_be_read_is_not_the_latest(
    source: DataApiEmulator, cli: Cli, damage: Callable[[Path], object]
) -> None:
    """A newer snapshot that cannot be read does not stand in the way of the newest good one, and is named in a
    warning; an older one is not mentioned. Where nothing else is there it is refused.
    """
    source.create(KEYSPACE, "docs")
    good = dated(cli, source, "20260102_000000")
    for name in ("20260101_000000", "20260103_000000"):
        damage(dated(cli, source, name))
    result = cli.run("restore.py", "--verify-only")
    assert (result.code, f"{good.name}: whole" in result.out) == (0, True), result.err
    assert "WARNING" in result.err
    assert "20260103_000000" in result.err
    assert "20260101_000000" not in result.err
    shutil.rmtree(good)
    refused = cli.run("restore.py", "--verify-only")
    assert (refused.code, "20260103_000000" in refused.err) == (3, True)


def test_an_older_script_that_named_no_source(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Without a source a snapshot is the latest where nothing else is there; an older one is left out with a warning;
    a newer one makes `latest` ambiguous.
    """

    def strip(path: Path) -> None:
        edit_manifest(path, lambda manifest: manifest.pop("source"), reseal=True)

    source.create(KEYSPACE, "docs")
    old = dated(cli, source, "20260101_000000")
    strip(old)
    assert latest(cli) == old.name
    new = dated(cli, source, "20260102_000000")
    assert latest(cli) == new.name
    assert old.name in cli.run("restore.py", "--verify-only").err
    strip(dated(cli, source, "20260103_000000"))
    result = cli.run("restore.py", "--verify-only")
    assert (result.code, "20260103_000000" in result.err, new.name in result.err) == (1, True, True)
    assert latest(cli, "--source", KEYSPACE) == new.name
    assert len(cli.run("restore.py", "--list", "--source", KEYSPACE).out.splitlines()) == 3


# ------------------------------------------------------------------------------------------------ damage: 3


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_manifest(snapshot: Path, edit: Callable[[dict], None], *, reseal: bool = False) -> None:
    """Change the manifest; `reseal` makes SHA256SUMS agree, as a forger would."""
    path = snapshot / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    if reseal:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        sums = [line for line in (snapshot / "SHA256SUMS").read_text().splitlines() if "manifest.json" not in line]
        (snapshot / "SHA256SUMS").write_text("".join(f"{line}\n" for line in [*sums, f"{digest}  manifest.json"]))


def collection(manifest: dict, **changes: object) -> None:
    """Change the first collection's record."""
    manifest["collections"][0].update(changes)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped data": lambda s: flip(s / "docs.jsonl.gz"),
    "flipped manifest": lambda s: flip(s / "manifest.json"),
    "flipped sums": lambda s: flip(s / "SHA256SUMS"),
    "truncated data": lambda s: (s / "docs.jsonl.gz").write_bytes((s / "docs.jsonl.gz").read_bytes()[:-9]),
    "appended data": lambda s: (s / "docs.jsonl.gz").write_bytes((s / "docs.jsonl.gz").read_bytes() + b"\0"),
    "missing data": lambda s: (s / "docs.jsonl.gz").unlink(),
    "missing manifest": lambda s: (s / "manifest.json").unlink(),
    "missing sums": lambda s: (s / "SHA256SUMS").unlink(),
    "extra file": lambda s: (s / "extra.jsonl.gz").write_bytes(b""),
    "extra directory": lambda s: (s / "sub").mkdir(),
    "link": lambda s: (s / "docs.jsonl.gz").rename(s.parent / "x") and (s / "docs.jsonl.gz").symlink_to(s.parent / "x"),
    "path outside": lambda s: edit_manifest(s, lambda m: collection(m, data_file="../x"), reseal=True),
    "absolute path": lambda s: edit_manifest(s, lambda m: collection(m, data_file="/etc/passwd"), reseal=True),
    "no data file": lambda s: edit_manifest(s, lambda m: collection(m, data_file=None), reseal=True),
    "forged count": lambda s: edit_manifest(s, lambda m: collection(m, document_count=2), reseal=True),
    "forged digest": lambda s: edit_manifest(s, lambda m: collection(m, content_digest="0" * 64), reseal=True),
    "forged size": lambda s: edit_manifest(s, lambda m: collection(m, data_size_bytes=5), reseal=True),
    "forged vectors": lambda s: edit_manifest(s, lambda m: collection(m, vector_count=5), reseal=True),
    "twice": lambda s: edit_manifest(s, lambda m: m["collections"].append(m["collections"][0]), reseal=True),
    "collection removed": lambda s: edit_manifest(s, lambda m: m["collections"].clear(), reseal=True),
    "newer version": lambda s: edit_manifest(s, lambda m: m.update(backup_format_version="2.0"), reseal=True),
    "status incomplete": lambda s: edit_manifest(s, lambda m: m.update(status="incomplete"), reseal=True),
    "edited manifest": lambda s: edit_manifest(s, lambda m: m.update(consistency="x")),
    "not JSON": lambda s: (s / "manifest.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_snapshot_is_refused_before_a_single_write(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, damage: str
) -> None:
    """Whatever is wrong with a snapshot ends in 3, and the target has seen no write; the same within a zip."""
    fill(source, "docs", 3)
    snapshot = snapshot_of(source, cli)
    DAMAGE[damage](snapshot)
    result = cli.restore(target)
    assert result.code == RestoreExit.SNAPSHOT_REFUSED, result.err
    assert cli.run("restore.py", "--verify-only").code == 3
    if damage not in ("link",):
        archive = shutil.make_archive(str(cli.directory / "moved"), "zip", cli.backups, snapshot.name)
        assert cli.restore(target, archive).code == 3
    assert writes(target) == []
    assert target.collections(KEYSPACE) == {}


def make_zip(snapshot: Path, path: Path, extra: list[tuple[str, bytes]] = [], mode: int = 0) -> Path:  # noqa: B006
    """A zip of a snapshot with further entries."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(snapshot.iterdir()):
            archive.write(file, f"{snapshot.name}/{file.name}")
        for name, content in extra:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/evil",
        "{name}/../evil",
        "{name}/sub/evil",
        "other/evil",
        "evil",
        "{name}/a\\b",
        "{name}/MANIFEST.json",
        "{name}/manifest.json",
        "C:evil",
    ],
)
def test_a_zip_that_could_reach_out_is_refused(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, name: str
) -> None:
    """Entries with `..`, other folders, or a name that is there already are refused."""
    fill(source, "docs", 3)
    snapshot = snapshot_of(source, cli)
    good = make_zip(snapshot, cli.directory / "good.zip")
    assert cli.run("restore.py", good, "--verify-only").code == 0
    bad = make_zip(snapshot, cli.directory / "bad.zip", [(name.format(name=snapshot.name), b"{}")])
    assert cli.restore(target, bad).code == 3
    assert writes(target) == []


def test_a_zip_with_a_link_or_of_nonsense_is_refused(source: DataApiEmulator, cli: Cli) -> None:
    """A symbolic link as an entry, and a file that is no zip, are refused."""
    fill(source, "docs", 1)
    snapshot = snapshot_of(source, cli)
    link = make_zip(snapshot, cli.directory / "link.zip", [(f"{snapshot.name}/x", b"/etc/passwd")], mode=0o120777)
    assert cli.run("restore.py", link, "--verify-only").code == 3
    (cli.directory / "no.zip").write_bytes(b"nonsense")
    assert cli.run("restore.py", "no.zip", "--verify-only").code == 3


def test_an_incomplete_snapshot_needs_force(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """INCOMPLETE is refused; --force-incomplete restores the good collections and names what is missing."""
    fill(source, "good", 3)
    fill(source, "bad", 60)
    source.faults = [{"command": "find", "collection": "bad", "action": "error", "errorCode": "X_Y", "times": None}]
    assert cli.backup(source).code == 2
    (snapshot,) = cli.snapshots()
    assert cli.restore(target, snapshot.name).code == 3
    assert writes(target) == []
    result = cli.restore(target, snapshot.name, "--force-incomplete")
    assert result.code == 0, result.err
    assert "bad" in result.err
    same_documents(source, target, ["good"])


def test_a_run_in_progress_is_no_snapshot(source: DataApiEmulator, cli: Cli) -> None:
    """What has the name of a run in progress is refused, whatever is in it."""
    fill(source, "docs", 1)
    snapshot = snapshot_of(source, cli)
    hidden = snapshot.rename(snapshot.with_name(f".{snapshot.name}.inprogress"))
    assert cli.run("restore.py", hidden, "--verify-only").code == 3


# ------------------------------------------------------------------------------------------------ older snapshots


def test_an_older_snapshot_is_restored_with_a_warning(target: DataApiEmulator, cli: Cli) -> None:
    """No SHA256SUMS, no digests, other spellings of dates, sets: restored, and said."""
    snapshot = cli.backups / "20250101_000000"
    snapshot.mkdir(parents=True)
    lines = [
        '{"_id": {"$backupType": "uuid", "value": "0193e1a6-71b7-7c4e-9d55-1f5f0a1b2c3d"}, "$vector": [0.5, 1, -2.25]}',
        '{"_id": "dates", "raw": [{"$backupType": "date", "value": "2024-02-29"},'
        ' {"$backupType": "datetime", "value": "2004-01-10T00:00:00"},'
        ' {"$backupType": "datetime", "value": "2004-01-10T01:00:00.123456+01:00"}]}',
        '{"_id": "set", "raw": {"$backupType": "set", "value": [1, {"$backupType": "bytes_b64", "value": "AAE="}]}}',
    ]
    (snapshot / "docs.jsonl.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    record = {
        "name": "docs",
        "status": "ok",
        "definition": {"vector": {"dimension": 3, "metric": "cosine"}, "indexing": {"deny": ["raw"]}},
        "data_file": "docs.jsonl.gz",
        "compressed": True,
        "document_count": 3,
        "vector_count": 1,
    }
    (snapshot / "manifest.json").write_text(json.dumps({"backup_format_version": "1.0", "collections": [record]}))
    result = cli.restore(target)
    assert result.code == 0, result.err
    assert "older script" in result.err
    assert sorted(target.documents(KEYSPACE, "docs")) == sorted(
        [
            '{"_id":{"$uuid":"0193e1a6-71b7-7c4e-9d55-1f5f0a1b2c3d"},"$vector":[0.5,1,-2.25]}',
            '{"_id":"dates","raw":[{"$date":1709164800000},{"$date":1073692800000},{"$date":1073692800123}]}',
            '{"_id":"set","raw":[1,{"$binary":"AAE="}]}',
        ]
    )
    (snapshot / "docs.jsonl.gz").write_bytes(gzip.compress(b'{"_id": 1}\n'))
    assert cli.restore(target, "--on-existing", "skip").code == 3


def test_a_count_that_an_older_manifest_lacks_is_not_known(target: DataApiEmulator, cli: Cli) -> None:
    """What the file holds is then verified, planned and restored; a count that is there, also of 0, must be right."""
    snapshot = cli.backups / "20250101_000000"
    snapshot.mkdir(parents=True)
    (snapshot / "docs.jsonl").write_text('{"_id": 1}\n{"_id": 2}\n')
    (snapshot / "broken.jsonl").write_text('{"_id": 1}\n')
    broken = {"name": "broken", "data_file": "broken.jsonl", "document_count": 0}

    def write_manifest(*records: dict) -> None:
        text = json.dumps({"backup_format_version": "1.0", "collections": records})
        (snapshot / "manifest.json").write_text(text)

    write_manifest({"name": "docs", "data_file": "docs.jsonl"}, broken)
    result = cli.restore(target)
    assert result.code == RestoreExit.SNAPSHOT_REFUSED
    assert "broken.jsonl: document_count is 1, the manifest says 0" in result.err
    (snapshot / "broken.jsonl").unlink()
    write_manifest({"name": "docs", "data_file": "docs.jsonl"})
    assert cli.run("restore.py", "--verify-only", "--json").json["documents"] == 2
    assert "docs: create, insert 2 documents" in cli.restore(target, "--dry-run").out
    result = cli.restore(target, "--json")
    assert result.code == RestoreExit.OK, result.err
    (row,) = result.json["collections"]
    assert (row["documents"], row["inserted"], row["equal"]) == (2, 2, True)
    assert sorted(target.documents(KEYSPACE, "docs")) == ['{"_id":1}', '{"_id":2}']


# ------------------------------------------------------------------------------------------------ the target: 1, 4


def test_a_target_that_is_not_empty_is_left_alone(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """By default a collection that holds documents is refused with 4 and nothing is written, anywhere."""
    fill(source, "a", 3)
    fill(source, "b", 3)
    snapshot_of(source, cli)
    fill(target, "b", 1)
    result = cli.restore(target)
    assert result.code == RestoreExit.TARGET_REFUSED
    assert "b: already holds documents" in result.err
    assert writes(target) == []


def test_one_reason_for_several_collections_is_said_once(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """The names stand in front of the reason that they share; a collection that is there and empty is planned so."""
    for name in ("a", "b", "c", "empty"):
        fill(source, name, 3)
    snapshot_of(source, cli)
    fill(target, "a", 1)
    fill(target, "b", 1)
    target.create(KEYSPACE, "empty")
    result = cli.restore(target)
    assert result.code == RestoreExit.TARGET_REFUSED
    assert "\n  a, b: already holds documents" in result.err
    assert result.err.count("--on-existing") == 1
    plan = cli.restore(target, "--dry-run", "--on-existing", "skip").out
    assert "\nempty: exists, empty: insert 3 documents\n" in plan
    assert "\nc: create, insert 3 documents" in plan


def test_another_definition_is_refused_field_by_field(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A collection with the same name and another definition is refused, naming the field."""
    source.create(KEYSPACE, "docs", {"vector": {"dimension": 3, "metric": "cosine"}})
    target.create(KEYSPACE, "docs", {"vector": {"dimension": 4, "metric": "cosine"}})
    snapshot_of(source, cli)
    result = cli.restore(target)
    assert result.code == 4
    assert "vector.dimension is 4, the snapshot has 3" in result.err


def test_documents_with_vector_and_vectorize_need_a_choice(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """The pair that no server takes is found before anything is written."""
    service = {"vector": {"dimension": 3, "metric": "cosine", "service": {"provider": "p", "modelName": "m"}}}
    source.create(KEYSPACE, "docs", service | OFF)
    source.put(KEYSPACE, "docs", '{"_id":1,"$vectorize":"text","$vector":[1,2,3]}')
    snapshot_of(source, cli)
    result = cli.restore(target)
    assert result.code == 4
    assert "--vectorize" in result.err
    assert writes(target) == []


def test_no_room_for_the_collections_leaves_nothing_behind(source: DataApiEmulator, cli: Cli) -> None:
    """When the last collection cannot be created, those just created are dropped again."""
    for name in ("a", "b", "c"):
        fill(source, name, 2)
    snapshot_of(source, cli)
    with DataApiEmulator(token=TOKEN, max_collections=2) as target:
        result = cli.restore(target)
        assert result.code == 4
        assert "TOO_MANY" in result.err
        assert target.collections(KEYSPACE) == {}
        assert "insertMany" not in writes(target)


def test_a_target_that_makes_something_else_is_refused(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A created collection is read back; a difference is a refusal and it is dropped again."""
    fill(source, "docs", 2)
    snapshot_of(source, cli)
    target.faults = [
        {"command": "findCollections", "skip": 1, "action": "alter_definition", "collection": None, "times": None,
         "definition": {"rerank": {"enabled": True}}}
    ]  # fmt: skip
    target.faults[0].options["target"] = "docs"
    result = cli.restore(target)
    assert result.code in (4, 1)
    assert "insertMany" not in writes(target)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--nonsense"], 1),
        (["--on-existing", "perhaps"], 1),
        (["--collection", "nope"], 1),
        (["--keyspace", "nope"], 1),
    ],
)
def test_mistakes_write_nothing(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, arguments: list[str], code: int
) -> None:
    """Usage errors end in 1, before anything is written."""
    fill(source, "docs", 2)
    snapshot_of(source, cli)
    assert cli.restore(target, *arguments).code == code
    assert writes(target) == []


def test_a_dry_run_writes_nothing(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """--dry-run prints the plan, once, says that nothing was written, and sends reading commands only."""
    fill(source, "docs", 2)
    snapshot_of(source, cli)
    result = cli.restore(target, "--dry-run")
    assert result.code == 0
    assert (result.out + result.err).count("docs: create, insert 2 documents") == 1
    assert result.out.endswith("\nNothing was written.\n")
    assert "docs: create, insert 2 documents" in cli.restore(target, "--dry-run", "--json").json["plan"][0]
    assert writes(target) == []


@pytest.mark.parametrize("snapshot", [[], ["20260616_085246"]], ids=["latest", "named"])
def test_a_directory_that_is_not_there_is_named(cli: Cli, snapshot: list[str]) -> None:
    """A typo in --output-dir is told as such, not as a lack of snapshots."""
    result = cli.run("restore.py", *snapshot, "--output-dir", "typo", "--verify-only")
    assert result.code == 1
    assert "There is no directory typo." in result.err
    assert "--output-dir (BACKUP_OUTPUT_DIR)" in result.err


def test_verifying_needs_no_credentials(source: DataApiEmulator, cli: Cli) -> None:
    """--verify-only asks for no token and no database."""
    fill(source, "docs", 2)
    snapshot_of(source, cli)
    assert cli.run("restore.py", "--verify-only", ASTRA_DB_APPLICATION_TOKEN="").code == 0


# ------------------------------------------------------------------------------------------------ writing


def test_skip_completes_and_keeps(source: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """--on-existing skip inserts what is missing; equal documents are fine, extra ones are named, no failure."""
    fill(source, "docs", 120)
    snapshot_of(source, cli)
    fill(target, "docs", 60)
    target.put(KEYSPACE, "docs", '{"_id":"extra"}')
    result = cli.restore(target, "--on-existing", "skip", "--json")
    assert result.code == 0, result.err
    (row,) = result.json["collections"]
    assert (row["inserted"], row["already_there"], row["extra"], row["missing"]) == (60, 60, 1, 0)
    assert "extra" in row["problem"]


def test_skip_that_keeps_another_version_is_a_difference(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A kept document that differs from the snapshot ends in 5 and is named."""
    fill(source, "docs", 3)
    snapshot_of(source, cli)
    fill(target, "docs", 2)
    target.put(KEYSPACE, "docs", '{"_id":"d00001","n":77}')
    result = cli.restore(target, "--on-existing", "skip")
    assert result.code == RestoreExit.DIFFERENT
    assert "d00001" in result.out
    assert '{"_id":"d00001","n":77}' in target.documents(KEYSPACE, "docs")


def test_a_document_that_the_server_refuses_is_2_and_the_others_go_on(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """Refused documents land in a rejects file with the server's reason, one by one or with their whole request."""
    source.create(KEYSPACE, "docs")
    for number in range(150):
        source.put(KEYSPACE, "docs", f'{{"_id":{number}}}')
    source.put(KEYSPACE, "docs", '{"_id":"long","s":"' + "x" * 8001 + '"}')
    source.put(KEYSPACE, "docs", '{"_id":"digits","n":' + "1" * 101 + "}")
    snapshot_of(source, cli)
    result = cli.restore(target)
    assert result.code == RestoreExit.INCOMPLETE
    assert len(target.documents(KEYSPACE, "docs")) == 150
    rejects = [json.loads(line) for line in (cli.backups / "rejects-docs.jsonl").read_text().splitlines()]
    assert sorted(row["document"]["_id"] for row in rejects) == ["digits", "long"]
    assert all(row["code"] and row["message"] for row in rejects)


INSERT_FAULTS = [
    {"action": "reset"},
    {"action": "reset_after"},
    {"action": "truncate"},
    {"action": "status", "status": 503},
    {"action": "status", "status": 429, "headers": {"Retry-After": "1"}},
    {"action": "status", "status": 413, "times": 3},
    {"action": "html"},
    {"action": "other_json", "json": {"status": {"documentResponses": []}}},
    {"action": "error", "errorCode": "TIMEOUT_WRITING_DATA"},
]


@pytest.mark.parametrize("fault", INSERT_FAULTS, ids=lambda fault: "-".join(map(str, fault.values()))[:40])
def test_an_unknown_outcome_is_sent_again(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, fault: dict[str, object]
) -> None:
    """Lost replies and passing errors on insert leave each document there exactly once."""
    fill(source, "docs", 450)
    snapshot_of(source, cli)
    target.faults = [{"command": "insertMany", "skip": 1, **fault}]
    result = cli.restore(target, BACKUP_RETRY_BUDGET="30")
    assert result.code == 0, result.err
    same_documents(source, target)


@pytest.mark.parametrize("action", ["alter_document", "drop_document"])
def test_a_silent_loss_is_found(source: DataApiEmulator, target: DataApiEmulator, cli: Cli, action: str) -> None:
    """A server that acknowledges and stores something else, or nothing, is caught: 5, with the id."""
    fill(source, "docs", 250)
    snapshot_of(source, cli)
    target.faults = [{"command": "insertMany", "skip": 1, "action": action}]
    result = cli.restore(target)
    assert result.code == RestoreExit.DIFFERENT
    assert '"d00' in result.out


def test_a_service_that_stays_down_is_2_and_running_again_carries_on(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """What could not be written is reported; the same command with --on-existing skip completes it."""
    fill(source, "docs", 450)
    snapshot_of(source, cli)
    target.faults = [{"command": "insertMany", "skip": 2, "action": "status", "status": 503, "times": None}]
    assert cli.restore(target, "--workers", 1, BACKUP_RETRY_BUDGET="2").code == RestoreExit.INCOMPLETE
    target.faults = []
    assert cli.restore(target, "--on-existing", "skip").code == 0
    same_documents(source, target)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_restore_in_time(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli, number: signal.Signals, code: int
) -> None:
    """A restore that hangs in a request ends within 10 seconds."""
    fill(source, "docs", 450)
    snapshot_of(source, cli)
    target.faults = [{"command": "insertMany", "action": "silence", "skip": 1, "times": None}]
    running = cli.start("restore.py", "--api-endpoint", target.url)
    wait_for(lambda: "insertMany" in writes(target))
    time.sleep(0.3)
    assert_ends_in_time(running, number, code)


def test_other_writings_of_a_number_are_no_difference(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A server that spells the same numbers in another way holds the same documents; another value is found."""
    source.create(KEYSPACE, "docs", {"indexing": {"deny": ["n"]}})
    target.create(KEYSPACE, "docs", {"indexing": {"deny": ["n"]}})
    source.put(KEYSPACE, "docs", '{"_id":1,"n":[1E+2,1.5,0]}')
    snapshot_of(source, cli)
    target.put(KEYSPACE, "docs", '{"_id":1,"n":[100.0,15e-1,-0.0]}')
    assert cli.restore(target, "--on-existing", "skip").code == 0
    target.put(KEYSPACE, "docs", '{"_id":1,"n":[100.1,15e-1,-0.0]}')
    assert cli.restore(target, "--on-existing", "skip").code == 5


def test_an_empty_collection_that_is_not_there_is_a_difference(
    source: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """No document is missing, but the collection is: --compare ends in 5 and says so."""
    source.create(KEYSPACE, "nothing")
    snapshot_of(source, cli)
    result = cli.restore(target, "--compare")
    assert result.code == RestoreExit.DIFFERENT
    assert "there is no such collection" in result.out + result.err
    assert cli.restore(target).code == 0
    assert cli.restore(target, "--compare").code == 0


def test_sha256sum_notices_damage(source: DataApiEmulator, cli: Cli) -> None:
    """The proof works with no tool of ours."""
    fill(source, "docs", 3)
    snapshot = snapshot_of(source, cli)
    flip(snapshot / "docs.jsonl.gz")
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=snapshot, capture_output=True, check=False)
    assert done.returncode == 1
