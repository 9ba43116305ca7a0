"""`--on-existing`: what each policy does to a target in each state."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from restore import RestoreExit
from tests.conftest import KEYSPACE, TOKEN, Cli, warm_cli
from tests.emulators.data_api import DataApiEmulator
from tests.support import (
    CHANGED,
    DENY,
    DOCS,
    EXTRA,
    FEW,
    OFF,
    OTHER_DENY,
    Documents,
    assert_untouched,
    fill,
    held,
    journals,
    same_documents,
    snapshot_of,
    writes,
)

STATES: dict[str, Documents | None] = {
    "absent": None,
    "empty": [],
    "equal": FEW,
    "different": [*FEW[:1], CHANGED],
    "extra": [*FEW[:20], EXTRA],
    "redefined": [EXTRA],
}
NAMES = ("one", "two", "three", "four", "five", "six")
RUNS = {
    "fail": ["absent empty", "empty equal", "absent different", "extra", "redefined"],
    "skip": ["absent empty equal extra", "equal different", "empty redefined"],
    "overwrite": ["absent empty equal different extra", "extra redefined"],
    "drop": ["absent empty equal different extra redefined"],
}
"""For each policy the states of the target's collections that are met by one restore."""


def expected(policy: str, state: str) -> tuple[int, Documents]:
    """The exit code for a collection in that state, and its documents afterwards if it is not refused."""
    if state in ("absent", "empty") or policy == "drop":
        return 0, FEW
    if policy == "fail" or state == "redefined":
        return 4, []
    if state == "extra":
        return 0, [*FEW, EXTRA]
    if state == "different" and policy == "skip":
        return 5, [*FEW[:1], CHANGED, *FEW[2:]]
    return 0, FEW


@pytest.fixture(scope="module")
def _six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with DataApiEmulator(token=TOKEN) as emulator:
        for name in NAMES:
            fill(emulator, name, FEW)
        yield snapshot_of(emulator, warm_cli(tmp_path_factory, "six"))


@pytest.mark.parametrize("is_renamed", [False, True], ids=["", "renamed"])
@pytest.mark.parametrize("is_selected", [False, True], ids=["", "selected"])
@pytest.mark.parametrize(("policy", "states"), [(policy, states) for policy in RUNS for states in RUNS[policy]])
def test_each_policy_does_to_each_target_what_it_says(
    _six: Path, target: DataApiEmulator, cli: Cli, policy: str, states: str, is_selected: bool, is_renamed: bool
) -> None:
    """Every choice of --on-existing with every state of the target, renamed or not, selected or not."""
    shutil.copytree(_six, cli.backups / _six.name)
    arguments = ["--on-existing", policy, "--yes"]
    wanted = {} if is_selected else dict.fromkeys(NAMES, FEW)
    codes = {0}
    for old, state in zip(NAMES, states.split(), strict=False):
        name = f"new_{old}" if is_renamed else old
        if (documents := STATES[state]) is not None:
            fill(target, name, documents, OTHER_DENY if state == "redefined" else DENY)
        if is_renamed:
            arguments += ["--rename", f"{old}={name}"]
            fill(target, old, [EXTRA], OTHER_DENY)  # in nobody's way
            wanted.pop(old, None)
        if is_selected:
            arguments += ["--collection", old]
        code, wanted[name] = expected(policy, state)
        codes.add(code)
    fill(target, "foreign", [EXTRA])
    before = held(target)
    result = cli.restore(target, *arguments)
    if 4 in codes:
        assert_untouched(target, before, result, 4)
        return
    assert result.code == max(codes), result.err
    after = held(target)
    found = {name: after.pop(name) for name in wanted}
    assert found == {name: ({**DENY, **OFF}, sorted(documents)) for name, documents in wanted.items()}
    assert after == {name: what for name, what in before.items() if name not in wanted}, "something else was touched"
    assert ("deleteCollection" in writes(target)) == (policy == "drop")
    if policy != "drop" and "extra" in states:
        assert '1 extra (first: "extra")' in result.out


def test_overwrite_says_how_many(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """--json tells replaced, extra and different documents apart."""
    fill(target, "docs", [*DOCS[:1], CHANGED, EXTRA])
    result = cli.restore(target, "--on-existing", "overwrite", "--yes", "--collection", "docs", "--json")
    (row,) = result.json["collections"]
    assert (row["inserted"], row["extra"], row["missing"], row["different"]) == (108, 1, 0, 0)
    assert 1 in [value for key, value in row.items() if re.search("overw|replac", key)], row


def test_overwrite_replaces_what_changes_under_its_hands(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """A document that somebody writes between the plan and the insert is settled by the policy too."""
    fill(target, "docs", [])
    target.faults = [{"command": "insertMany", "collection": "docs", "action": "insert", "documents": [CHANGED, EXTRA]}]
    result = cli.restore(target, "--on-existing", "overwrite", "--collection", "docs")
    assert sorted(target.documents(KEYSPACE, "docs")) == sorted([*DOCS, EXTRA])
    assert result.code in (0, 5), result.err
    assert "extra" in result.out + result.err


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_document_written_meanwhile_is_kept_and_found(
    kept: Path, target: DataApiEmulator, cli: Cli, policy: str
) -> None:
    """Without overwrite, a document that appears between plan and insert stays as it is: 5, named."""
    fill(target, "docs", [])
    target.faults = [{"command": "insertMany", "collection": "docs", "action": "insert", "documents": [CHANGED]}]
    result = cli.restore(target, "--on-existing", policy)
    assert result.code == RestoreExit.DIFFERENT, result.err
    assert "d001" in result.out
    assert CHANGED in target.documents(KEYSPACE, "docs")


def test_a_restore_that_ends_with_a_difference_has_ended(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """Nothing is left to go on with after a 5: no journal, and prune does not take the snapshot for one in use."""
    fill(target, "docs", [CHANGED])
    assert cli.restore(target, "--on-existing", "skip").code == RestoreExit.DIFFERENT
    assert journals(cli) == []
    assert "has not ended" not in cli.stored("prune", "--no-box", "--keep-last", 1, "--dry-run").out


def test_an_unknown_outcome_of_a_replacement_is_sent_again(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """Lost replies and passing errors on a replacement leave the snapshot's version, once."""
    fill(target, "docs", [text[:-1] + ',"old":true}' for text in DOCS[:20]])
    rules = [
        {"action": "reset_after"},
        {"action": "reset"},
        {"action": "truncate"},
        {"action": "status", "status": 503},
        {"action": "error", "errorCode": "TIMEOUT_WRITING_DATA"},
    ]
    target.faults = [{"command": "findOneAndReplace", "skip": 2 + 3 * at, **rule} for at, rule in enumerate(rules)]
    result = cli.restore(
        target, "--on-existing", "overwrite", "--yes", "--collection", "docs", BACKUP_RETRY_BUDGET="30"
    )
    assert result.code == 0, result.err
    assert [fault.fired for fault in target.faults] == [1] * 5
    same_documents(origin, target, ["docs"])


def test_overwrite_keeps_digits_ids_and_vector_forms(target: DataApiEmulator, cli: Cli) -> None:
    """What is replaced is the snapshot's to the digit, whatever kind of id it has."""
    vector = base64.b64encode(struct.pack(">3f", 0.1, -0.0, 3.4e38)).decode()
    documents = [
        '{"_id":1E+2,"n":12345678901234567890.5}',
        '{"_id":100,"n":1E+400}',
        '{"_id":null,"n":[]}',
        '{"_id":true}',
        '{"_id":{"$date":2197097373173},"n":{"$date":253402300800000}}',
        '{"_id":{"$uuid":"0193E1A6-71b7-7c4e-9d55-1f5f0a1b2c3d"}}',
        '{"_id":{"$objectId":"507f1f77bcf86cd799439011"},"$vector":[0.1,0.25,1E-7]}',
        f'{{"_id":"binary","$vector":{{"$binary":"{vector}"}}}}',
        '{"_id":"a\\"b\\\\$ü"}',
    ]
    definition = {**DENY, "vector": {"dimension": 3, "metric": "cosine"}}
    with DataApiEmulator(token=TOKEN) as source:
        fill(source, "docs", documents, definition)
        snapshot_of(source, cli)
        fill(target, "docs", [text[:-1] + ',"old":1}' for text in documents], definition)
        result = cli.restore(target, "--on-existing", "overwrite", "--yes")
        assert result.code == 0, result.err
        same_documents(source, target)


def test_a_replacement_that_the_server_refuses_is_a_reject(target: DataApiEmulator, cli: Cli) -> None:
    """The old version stays, the new one lands in the rejects file with the reason: 2."""
    with DataApiEmulator(token=TOKEN) as source:
        fill(source, "docs", ['{"_id":"a","s":1}', '{"_id":"b","s":"' + "x" * 8001 + '"}'])
        snapshot_of(source, cli)
        fill(target, "docs", ['{"_id":"a"}', '{"_id":"b"}'])
        result = cli.restore(target, "--on-existing", "overwrite", "--yes")
    assert result.code == RestoreExit.INCOMPLETE, result.err
    assert sorted(target.documents(KEYSPACE, "docs")) == ['{"_id":"a","s":1}', '{"_id":"b"}']
    (row,) = [json.loads(line) for line in (cli.backups / "rejects-docs.jsonl").read_text().splitlines()]
    assert row["document"]["_id"] == "b"
    assert row["code"] == "SHRED_DOC_LIMIT_VIOLATION"
