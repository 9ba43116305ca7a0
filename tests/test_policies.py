"""What `restore.py` does about a target that is not empty, not equal or not able: every choice, and every refusal."""

from __future__ import annotations

import base64
import json
import re
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from restore import RestoreExit
from tests.conftest import (
    BOX_SECRET,
    KEYSPACE,
    ROOT,
    TOKEN,
    Cli,
    assert_no_secret_in,
    load_catalog,
)
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import NVIDIA_RERANKER, DataApiEmulator, Reply, Request, embed
from tests.support import (
    CHANGED,
    DENY,
    DOCS,
    EXTRA,
    FEW,
    OFF,
    OTHER,
    OTHER_DENY,
    Documents,
    Typed,
    WarmCli,
    assert_left_as_it_was,
    assert_untouched,
    by_id,
    by_id_of,
    fill,
    held,
    journals,
    on_a_terminal,
    same_documents,
    snapshot_of,
    wait_for,
    writes,
)


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The two scripts; afterwards no file they wrote may hold a secret."""
    directory = tmp_path / "cwd"
    directory.mkdir()
    yield WarmCli(directory)
    assert_no_secret_in(tmp_path)


@pytest.fixture(scope="module")
def origin() -> Iterator[DataApiEmulator]:
    """The server that the snapshot of `kept` comes from."""
    with DataApiEmulator(token=TOKEN) as emulator:
        fill(emulator, "docs", DOCS)
        fill(emulator, "other", OTHER)
        yield emulator


@pytest.fixture(scope="module")
def _made(origin: DataApiEmulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return snapshot_of(origin, Cli(tmp_path_factory.mktemp("origin")))


@pytest.fixture
def kept(cli: Cli, _made: Path) -> Path:
    """A snapshot of `docs` and `other` where `cli` looks for it."""
    return Path(shutil.copytree(_made, cli.backups / _made.name))


# ------------------------------------------------------------------------------------------------ --on-existing


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
        yield snapshot_of(emulator, Cli(tmp_path_factory.mktemp("six")))


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


# ------------------------------------------------------------------------------------------------ dropping


def test_dropping_needs_yes_without_a_terminal(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """Nobody is there to type the name: 4, the choice named, nothing touched."""
    fill(target, "docs", [EXTRA], OTHER_DENY)
    before = held(target)
    result = cli.restore(target, "--on-existing", "drop")
    assert_untouched(target, before, result, 4)
    assert "--yes" in result.err
    assert "docs" in result.err
    assert cli.restore(target, "--on-existing", "drop", "--dry-run").code == 0
    assert held(target) == before


def test_dropping_nothing_needs_no_yes(kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Where no collection is in the way there is nothing to confirm."""
    assert cli.restore(target, "--on-existing", "drop").code == 0
    same_documents(origin, target)


@pytest.mark.parametrize("typed", ["y\n", "other\n", "\n\x04"])
def test_another_word_than_the_name_drops_nothing(kept: Path, target: DataApiEmulator, cli: Cli, typed: str) -> None:
    """On a terminal only the collection's own name lets it be dropped."""
    fill(target, "docs", [EXTRA])
    before = held(target)
    result = on_a_terminal(cli, target, typed, "--on-existing", "drop")
    assert_untouched(target, before, result, 130 if "\x04" in typed else 4)


def test_the_typed_name_drops(kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Each collection that is dropped is typed by its name in the target; one that is absent is not asked for."""
    fill(target, "docs", [EXTRA])
    fill(target, "second", [EXTRA])
    result = on_a_terminal(cli, target, "docs\nsecond\n", "--on-existing", "drop", "--rename", "other=second")
    assert result.code == 0, result.out
    assert held(target) == {"docs": held(origin)["docs"], "second": held(origin)["other"]}


def test_one_name_of_two_is_not_enough(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """If the second name is not typed, the first collection is not dropped either."""
    fill(target, "docs", [EXTRA])
    fill(target, "other", [EXTRA])
    before = held(target)
    result = on_a_terminal(cli, target, "docs\nno\n", "--on-existing", "drop")
    assert_untouched(target, before, result, 4)


@pytest.mark.parametrize("action", ["reset_after", "reset"])
@pytest.mark.parametrize("command", ["deleteCollection", "createCollection"])
def test_an_unknown_outcome_of_dropping_or_creating_is_asked_again(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli, command: str, action: str
) -> None:
    """A lost reply to a drop or a creation is no failure and loses nothing."""
    fill(target, "docs", [EXTRA], OTHER_DENY)
    target.faults = [{"command": command, "action": action}]
    result = cli.restore(target, "--on-existing", "drop", "--yes")
    assert result.code == 0, result.err
    same_documents(origin, target)


def test_a_service_that_fails_after_the_drop_is_no_code_1(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """1 would say that nothing was written: once a collection is dropped it is 2, and --resume completes it."""
    fill(target, "docs", [EXTRA])
    fill(target, "other", [EXTRA])
    target.faults = [{"command": "createCollection", "action": "status", "status": 503, "times": None}]
    command = ["--on-existing", "drop", "--yes"]
    result = cli.restore(target, *command, BACKUP_RETRY_BUDGET="1")
    assert "deleteCollection" in writes(target)
    assert result.code == RestoreExit.INCOMPLETE, result.err
    target.faults = []
    assert cli.restore(target, *command, "--resume").code == 0
    same_documents(origin, target)


def test_nothing_is_dropped_where_the_new_one_cannot_be_made(cli: Cli, target: DataApiEmulator) -> None:
    """A definition that the target cannot give is found before the old collection is gone."""
    with DataApiEmulator(token=TOKEN, astra=True) as source:
        fill(source, "docs", DOCS, {"lexical": {"enabled": True, "analyzer": "standard"}, "rerank": {"enabled": False}})
        snapshot_of(source, cli)
    fill(target, "docs", [EXTRA])
    before = held(target)
    assert_left_as_it_was(target, before, cli.restore(target, "--on-existing", "drop", "--yes"))


def test_nothing_is_dropped_where_there_is_no_room(kept: Path, cli: Cli) -> None:
    """Room that is missing for one collection is found before another one is dropped."""
    with DataApiEmulator(token=TOKEN, max_collections=1) as target:
        fill(target, "docs", [EXTRA])
        before = held(target)
        assert_left_as_it_was(target, before, cli.restore(target, "--on-existing", "drop", "--yes"))


@pytest.mark.parametrize("definition", [DENY, OTHER_DENY], ids=["same definition", "another definition"])
def test_a_full_database_has_room_for_what_is_dropped(
    kept: Path, origin: DataApiEmulator, cli: Cli, definition: object
) -> None:
    """Dropping and making the same needs no further room; where room for a trial is missing, nothing is dropped."""
    with DataApiEmulator(token=TOKEN, max_collections=2) as target:
        fill(target, "docs", [EXTRA], definition)
        fill(target, "other", [EXTRA])
        before = held(target)
        result = cli.restore(target, "--on-existing", "drop", "--yes")
        if result.code == RestoreExit.TARGET_REFUSED:
            assert definition == OTHER_DENY
            assert_left_as_it_was(target, before, result)
        else:
            assert result.code == 0, result.err
            same_documents(origin, target)


# ------------------------------------------------------------------------------------------------ nonsense


TOO_LONG = "n" * 49
NONSENSE = {
    "no equals sign": ["--rename", "docs"],
    "no old name": ["--rename", "=moved"],
    "no new name": ["--rename", "docs="],
    "unknown": ["--rename", "nope=moved"],
    "not selected": ["--collection", "docs", "--rename", "other=moved"],
    "renamed into one": ["--rename", "docs=same", "--rename", "other=same"],
    "renamed onto another": ["--rename", "docs=other"],
    "renamed twice": ["--rename", "docs=one", "--rename", "docs=two"],
    "bad character": ["--rename", "docs=mo-ved"],
    "a line break": ["--rename", "docs=moved\n"],
    "too long": ["--rename", f"docs={TOO_LONG}"],
    "unknown policy": ["--on-existing", "perhaps"],
    "unknown way": ["--vectorize", "perhaps"],
    "text field without a choice": ["--vectorize-text-field", "text"],
    "text field with recompute": ["--vectorize", "recompute", "--vectorize-text-field", "text"],
    "text field with a dollar": ["--vectorize", "keep-vectors", "--vectorize-text-field", "$text"],
    "text field _id": ["--vectorize", "keep-vectors", "--vectorize-text-field", "_id"],
    "text field empty": ["--vectorize", "keep-vectors", "--vectorize-text-field", ""],
    "recompute without a service": ["--vectorize", "recompute", "--without-vectorize-service"],
    "drill and compare": ["--drill", "--compare"],
    "drill and dry run": ["--drill", "--dry-run"],
    "drill and resume": ["--drill", "--resume"],
    "drill and rename": ["--drill", "--rename", "docs=moved"],
    "drill and drop": ["--drill", "--on-existing", "drop", "--yes"],
    "compare and dry run": ["--compare", "--dry-run"],
    "compare and resume": ["--compare", "--resume"],
    "compare and show": ["--compare", "--show", "d001"],
    "compare and drop": ["--compare", "--on-existing", "drop", "--yes"],
    "show and drill": ["--show", "d001", "--drill"],
    "show and list": ["--show", "d001", "--list"],
    "list and drill": ["--list", "--drill"],
    "list and compare": ["--list", "--compare"],
    "differences without a comparison": ["--dry-run", "--differences", "differences.jsonl"],
}


@pytest.mark.parametrize("case", NONSENSE)
def test_what_makes_no_sense_is_refused_before_anything_is_touched(
    kept: Path, target: DataApiEmulator, cli: Cli, case: str
) -> None:
    """A contradiction on the command line ends in 1, and the target sees no write."""
    fill(target, "docs", [EXTRA])
    before = held(target)
    arguments = NONSENSE[case]
    extra = [] if "--on-existing" in arguments or "--drill" in arguments else ["--on-existing", "skip"]
    if {"--compare", "--show", "--list"} & set(arguments):
        extra = []
    assert_untouched(target, before, cli.restore(target, *arguments, *extra), 1)


def test_two_collections_can_change_names(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A swap of names is no collision, and a name of 48 characters is a name."""
    assert cli.restore(target, "--rename", "docs=other", "--rename", "other=docs").code == 0
    assert held(target) == {"docs": held(origin)["other"], "other": held(origin)["docs"]}
    assert cli.restore(target, "--rename", f"docs={TOO_LONG[:48]}", "--collection", "docs").code == 0
    assert sorted(target.documents(KEYSPACE, TOO_LONG[:48])) == DOCS


# ------------------------------------------------------------------------------------------------ the same place


@pytest.fixture
def home(cli: Cli) -> Iterator[DataApiEmulator]:
    """A server that has lost documents since its snapshot was made, which is where `cli` looks for it."""
    with DataApiEmulator(token=TOKEN) as emulator:
        fill(emulator, "docs", DOCS)
        snapshot_of(emulator, cli)
        for number in range(20, 40):
            emulator.delete(KEYSPACE, "docs", f"d{number:03}")
        emulator.requests.clear()
        yield emulator


@pytest.mark.parametrize("arguments", [[], ["--on-existing", "skip"], ["--rename", "docs=beside"]], ids=str)
def test_the_source_itself_needs_yes(home: DataApiEmulator, cli: Cli, arguments: list[str]) -> None:
    """Restoring into the very endpoint and keyspace of the snapshot is refused with 4 without a terminal or --yes."""
    before = held(home)
    result = cli.restore(home, *arguments)
    assert_untouched(home, before, result, 4)
    if arguments:
        assert "--yes" in result.err
        result = cli.restore(home, *arguments, "--yes")
        assert result.code == 0, result.err
        assert sorted(home.documents(KEYSPACE, "beside" if "docs=beside" in arguments else "docs")) == DOCS


def test_the_source_is_known_by_other_spellings(home: DataApiEmulator, cli: Cli) -> None:
    """A slash at the end of the endpoint, or capitals in its host, do not make it another database."""
    before = held(home)
    assert_untouched(home, before, cli.run("restore.py", "--api-endpoint", f"{home.url}/", "--on-existing", "skip"), 4)
    for path in cli.snapshots():
        shutil.rmtree(path)
    port = home.url.rpartition(":")[2]
    assert cli.run("astra_backup.py", "--no-box", "--api-endpoint", f"http://LOCALHOST:{port}").code == 0
    result = cli.run("restore.py", "--api-endpoint", f"http://localhost:{port}", "--on-existing", "skip")
    assert_untouched(home, before, result, 4)


@pytest.mark.parametrize(("typed", "code"), [("n\n", 4), ("\n", 4), ("\x04", 130), ("y\n", 0)])
def test_on_a_terminal_it_asks(home: DataApiEmulator, cli: Cli, typed: str, code: int) -> None:
    """Somebody at a terminal is asked, and anything but yes leaves the source alone."""
    before = held(home)
    result = on_a_terminal(cli, home, typed, "--on-existing", "skip")
    assert result.code == code, result.out
    if code:
        assert_untouched(home, before, result, code)
    else:
        assert sorted(home.documents(KEYSPACE, "docs")) == DOCS


def test_reading_the_source_needs_no_yes(home: DataApiEmulator, cli: Cli) -> None:
    """What does not write into the source's collections asks nothing."""
    before = held(home)
    for arguments, code in (
        (["--dry-run", "--on-existing", "skip"], 0),
        (["--compare"], 5),
        (["--verify-only"], 0),
        (["--show", "d001"], 0),
    ):
        assert cli.restore(home, *arguments).code == code
        assert writes(home) == []
    assert cli.restore(home, "--drill").code == 0
    assert held(home) == before


def test_another_keyspace_of_the_source_is_another_place(home: DataApiEmulator, cli: Cli) -> None:
    """The same database with another keyspace is restored into without a question."""
    home.database.keyspaces["scratch"] = {}
    assert cli.restore(home, "--keyspace", "scratch").code == 0
    assert sorted(home.documents("scratch", "docs")) == DOCS


# ------------------------------------------------------------------------------------------------ $vectorize


SERVICE = {"provider": "openai", "modelName": "text-embedding-3-small"}
EMBEDDED = {"vector": {"dimension": 3, "metric": "cosine", "sourceModel": "other", "service": SERVICE}, **OFF}
NOT_EMBEDDED = {"vector": {"dimension": 3, "metric": "cosine", "sourceModel": "other"}, **OFF}
LOSSLESS = [
    '{"_id":"null","t":1,"$vectorize":null,"$vector":null}',
    '{"_id":"blank","$vectorize":"  ","$vector":null}',
    '{"_id":"no text","$vector":[1,2.5,3E-7]}',
    '{"_id":"no vector","n":0}',
]
PAIRED = [
    '{"_id":"pair 1","t":"a","$vectorize":"a \\"text\\" of €","$vector":[0.1,0.25,1E-7]}',
    f'{{"_id":"pair 2","$vectorize":"other","$vector":{{"$binary":"{embed("old model", 3)}"}}}}',
]


@pytest.fixture(scope="module")
def _embedding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DataApiEmulator, Path]]:
    with DataApiEmulator(token=TOKEN, vectorize=True) as emulator:
        fill(emulator, "embedded", [*LOSSLESS, *PAIRED], EMBEDDED)
        fill(emulator, "plain", OTHER)
        yield emulator, snapshot_of(emulator, Cli(tmp_path_factory.mktemp("embedding")))


@pytest.fixture
def embedding(cli: Cli, _embedding: tuple[DataApiEmulator, Path]) -> DataApiEmulator:
    """A server with an embedding provider and a collection that uses it, in a snapshot where `cli` looks for it."""
    emulator, snapshot = _embedding
    shutil.copytree(snapshot, cli.backups / snapshot.name)
    return emulator


@pytest.fixture
def provider() -> Iterator[DataApiEmulator]:
    """An empty target that has the embedding provider."""
    with DataApiEmulator(token=TOKEN, vectorize=True) as emulator:
        yield emulator


def test_pairs_are_refused_with_their_number(embedding: DataApiEmulator, provider: DataApiEmulator, cli: Cli) -> None:
    """By default documents with both are found in the plan: 4, how many, and both choices."""
    result = cli.restore(provider)
    assert_untouched(provider, {}, result, 4)
    (line,) = [line for line in result.err.splitlines() if "2 documents" in line]
    assert "embedded" in line
    assert "keep-vectors" in result.err
    assert "recompute" in result.err


@pytest.mark.parametrize("choice", ["keep-vectors", "recompute"])
def test_the_plan_says_how_many_documents_are_concerned(
    embedding: DataApiEmulator, provider: DataApiEmulator, cli: Cli, choice: str
) -> None:
    """--dry-run names the collection, the number of its pairs and what is going to happen to them."""
    result = cli.restore(provider, "--dry-run", "--vectorize", choice)
    assert result.code == 0, result.err
    for stream in (result.out, result.err):
        about = " ".join(stream[stream.index("embedded:") : stream.index("plain:")].split())
        assert re.search(r"\b2 documents|\b2 with|\b2 of", about), about
        assert re.search("vectorize|text", about), about
    assert writes(provider) == []


def test_null_blank_and_single_come_back_without_a_choice(provider: DataApiEmulator, cli: Cli) -> None:
    """Where no document has both a text and a vector nothing has to be chosen and nothing is lost."""
    with DataApiEmulator(token=TOKEN, vectorize=True) as source:
        fill(source, "embedded", LOSSLESS, EMBEDDED)
        snapshot_of(source, cli)
        result = cli.restore(provider)
        assert result.code == 0, result.err
        assert by_id(provider, "embedded") == by_id(source, "embedded")
        assert provider.collections(KEYSPACE) == source.collections(KEYSPACE)


@pytest.mark.parametrize("policy", ["skip", "overwrite", "drop"])
def test_keep_vectors_sends_the_vector_as_it_was(
    embedding: DataApiEmulator, provider: DataApiEmulator, cli: Cli, policy: str
) -> None:
    """The vector comes back to the digit, the text stays in the snapshot; a second run finds nothing to do."""
    wanted = by_id(embedding, "embedded")
    for name in ("pair 1", "pair 2"):
        del wanted[name]["$vectorize"]
    choices = ["--vectorize", "keep-vectors", "--yes"]
    first = cli.restore(provider, *choices)
    assert first.code == 0, first.err
    assert by_id(provider, "embedded") == wanted
    again = cli.restore(provider, *choices, "--on-existing", policy)
    assert again.code == 0, again.err
    assert by_id(provider, "embedded") == wanted
    assert cli.restore(provider, "--compare", "--vectorize", "keep-vectors").code == 0


def test_the_text_goes_into_a_field_of_that_name(
    embedding: DataApiEmulator, provider: DataApiEmulator, cli: Cli
) -> None:
    """--vectorize-text-field keeps the text as an ordinary field of the documents that had both."""
    wanted = by_id(embedding, "embedded")
    for name in ("pair 1", "pair 2"):
        wanted[name]["source_text"] = wanted[name].pop("$vectorize")
    choices = ["--vectorize", "keep-vectors", "--vectorize-text-field", "source_text"]
    result = cli.restore(provider, *choices)
    assert result.code == 0, result.err
    assert by_id(provider, "embedded") == wanted
    assert cli.restore(provider, "--compare", *choices).code == 0
    assert cli.restore(provider, "--on-existing", "skip", *choices).code == 0


def test_a_text_field_that_a_document_has_already_is_not_overwritten(
    embedding: DataApiEmulator, provider: DataApiEmulator, cli: Cli
) -> None:
    """A text that has no place is found before anything is written."""
    result = cli.restore(provider, "--vectorize", "keep-vectors", "--vectorize-text-field", "t")
    assert result.code in (1, 4), result.err
    assert held(provider) == {}


def test_a_server_with_pairs_compares_equal_with_its_own_snapshot(embedding: DataApiEmulator, cli: Cli) -> None:
    """--compare without a choice asks whether the very documents are there: nothing has to be left out."""
    result = cli.restore(embedding, "--compare")
    assert result.code == 0, result.out


@pytest.mark.parametrize("policy", ["skip", "overwrite", "drop"])
def test_recompute_sends_the_text(embedding: DataApiEmulator, provider: DataApiEmulator, cli: Cli, policy: str) -> None:
    """The target's provider makes the vector anew, which is no difference; a second run finds nothing to do."""
    wanted = by_id(embedding, "embedded")
    for name in ("pair 1", "pair 2"):
        wanted[name]["$vector"] = {"$binary": embed(wanted[name]["$vectorize"], 3)}
    choices = ["--vectorize", "recompute", "--yes"]
    first = cli.restore(provider, *choices)
    assert first.code == 0, first.err
    assert by_id(provider, "embedded") == wanted
    again = cli.restore(provider, *choices, "--on-existing", policy)
    assert again.code == 0, again.err
    assert by_id(provider, "embedded") == wanted
    assert cli.restore(provider, "--compare", "--vectorize", "recompute").code == 0


@pytest.mark.parametrize(
    "choice",
    ["keep-vectors", "recompute"],
)
@pytest.mark.parametrize("policy", ["skip", "overwrite"])
def test_intact_pairs_are_left_alone(cli: Cli, policy: str, choice: str) -> None:
    """In place, a document that still is what the snapshot holds is equal and keeps its text; the lost one is sent."""
    with DataApiEmulator(token=TOKEN, vectorize=True) as source:
        fill(source, "embedded", [*LOSSLESS, *PAIRED], EMBEDDED)
        snapshot_of(source, cli)
        before = by_id(source, "embedded")
        source.delete(KEYSPACE, "embedded", "pair 2")
        result = cli.restore(source, "--vectorize", choice, "--on-existing", policy, "--yes")
        assert result.code == 0, result.out
        assert by_id(source, "embedded")["pair 1"] == before["pair 1"]


@pytest.mark.parametrize("choice", ["keep-vectors", "recompute"])
def test_a_difference_beside_what_was_left_out_is_found(
    embedding: DataApiEmulator, provider: DataApiEmulator, cli: Cli, choice: str
) -> None:
    """What --vectorize leaves out is no difference; any other field of such a document still is."""
    names = [json.loads(text)["_id"] for text in embedding.documents(KEYSPACE, "embedded")]
    rule = {"command": "insertMany", "collection": "embedded", "action": "alter_document"}
    provider.faults = [{**rule, "index": names.index("pair 1")}]
    result = cli.restore(provider, "--vectorize", choice)
    assert result.code == RestoreExit.DIFFERENT, result.err
    assert "pair 1" in result.out


@pytest.mark.parametrize("choice", [[], ["--vectorize", "keep-vectors"], ["--vectorize", "recompute"]], ids=str)
def test_a_provider_that_the_target_lacks_is_found_in_time(
    embedding: DataApiEmulator, target: DataApiEmulator, cli: Cli, choice: list[str]
) -> None:
    """Without the provider it ends in 4 before the first document, with what to do, and nothing stays behind."""
    result = cli.restore(target, *choice)
    assert_left_as_it_was(target, {}, result)
    assert "--without-vectorize-service" in result.err or not choice or "recompute" in choice


def test_a_collection_can_be_made_without_its_provider(
    embedding: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """--without-vectorize-service keeps dimension and metric; vectors come back, and the comparison is content."""
    choices = ["--vectorize", "keep-vectors", "--without-vectorize-service"]
    result = cli.restore(target, *choices)
    assert result.code == 0, result.err
    assert target.collections(KEYSPACE)["embedded"] == NOT_EMBEDDED
    found, wanted = by_id(target, "embedded"), by_id(embedding, "embedded")
    assert {name: document.get("$vector") for name, document in found.items()} == {
        name: document.get("$vector") for name, document in wanted.items()
    }
    assert found["no text"] == wanted["no text"]
    assert cli.restore(target, "--on-existing", "skip", *choices).code == 0
    assert cli.restore(target, "--compare", *choices).code == 0


def test_without_a_provider_pairs_still_need_a_choice(
    embedding: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """--without-vectorize-service alone does not decide what becomes of the texts."""
    assert_untouched(target, {}, cli.restore(target, "--without-vectorize-service"), 4)


# ------------------------------------------------------------------------------------------------ lexical, rerank, room


LEXICAL_ON = {"lexical": {"enabled": True, "analyzer": "standard"}, "rerank": {"enabled": False}}
TEXTS = [f'{{"_id":"t{number}","n":{number},"$lexical":"words {number}"}}' for number in range(5)]


@pytest.fixture(scope="module")
def _lexical(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DataApiEmulator, Path]]:
    with DataApiEmulator(token=TOKEN, astra=True) as emulator:
        fill(emulator, "words", [*TEXTS, '{"_id":"none","$lexical":null}', '{"_id":"bare"}'], LEXICAL_ON)
        fill(emulator, "plain", OTHER, OFF)
        yield emulator, snapshot_of(emulator, Cli(tmp_path_factory.mktemp("lexical")))


@pytest.fixture
def lexical(cli: Cli, _lexical: tuple[DataApiEmulator, Path]) -> DataApiEmulator:
    """A server with lexical search, in a snapshot where `cli` looks for it."""
    emulator, snapshot = _lexical
    shutil.copytree(snapshot, cli.backups / snapshot.name)
    return emulator


def test_lexical_comes_back_where_the_target_has_it(lexical: DataApiEmulator, cli: Cli) -> None:
    """The definition and the texts are restored byte for byte."""
    with DataApiEmulator(token=TOKEN, astra=True) as target:
        result = cli.restore(target)
        assert result.code == 0, result.err
        same_documents(lexical, target)


@pytest.mark.parametrize("exists", [False, True], ids=["absent", "exists"])
def test_lexical_that_the_target_lacks_is_refused(
    lexical: DataApiEmulator, target: DataApiEmulator, cli: Cli, exists: bool
) -> None:
    """4 before the first document, how many texts are concerned and what to do; nothing stays behind."""
    if exists:
        fill(target, "words", [], OFF)
    before = held(target)
    result = cli.restore(target)
    assert_left_as_it_was(target, before, result)
    assert "words" in result.err
    assert "--without-lexical" in result.err


@pytest.mark.parametrize("exists", [False, True], ids=["absent", "exists"])
def test_a_reranker_that_the_target_lacks_can_be_done_without(target: DataApiEmulator, cli: Cli, exists: bool) -> None:
    """Astra's default collection has one: the dry run says that it is needed, the refusal what to do, and it works."""
    with DataApiEmulator(token=TOKEN, astra=True) as source:
        options = {"lexical": {"enabled": False}, "rerank": {"enabled": True, "service": NVIDIA_RERANKER}}
        fill(source, "docs", DOCS, options)
        snapshot_of(source, cli)
        if exists:
            fill(target, "docs", [], OFF)
        else:
            assert "needs a reranker" in cli.restore(target, "--dry-run").out
        before = held(target)
        result = cli.restore(target)
        assert_left_as_it_was(target, before, result)
        assert "--without-rerank" in result.err
        assert cli.restore(target, "--without-rerank").code == 0
        assert target.collections(KEYSPACE)["docs"]["rerank"] == {"enabled": False}
        same_documents(source, target, ["docs"])


@pytest.mark.parametrize("exists", [False, True], ids=["absent", "exists"])
def test_a_collection_can_be_made_without_lexical(
    lexical: DataApiEmulator, target: DataApiEmulator, cli: Cli, exists: bool
) -> None:
    """--without-lexical leaves the texts out, says how many, and they are no difference; the rest is equal."""
    if exists:
        fill(target, "words", [], OFF)
    planned = cli.restore(target, "--dry-run", "--without-lexical")
    assert planned.code == 0, planned.err
    assert re.search(r"words:.*\b[56] ", planned.out), planned.out
    result = cli.restore(target, "--without-lexical")
    assert result.code == 0, result.err
    assert target.collections(KEYSPACE)["words"]["lexical"] == {"enabled": False}
    found, wanted = by_id(target, "words"), by_id(lexical, "words")
    assert found.keys() == wanted.keys()
    for name, document in wanted.items():
        assert {**found[name], "$lexical": None} == {**document, "$lexical": None}
    assert not any("$lexical" in found[f"t{number}"] for number in range(5))
    assert cli.restore(target, "--compare", "--without-lexical").code == 0
    again = cli.restore(target, "--on-existing", "overwrite", "--yes", "--without-lexical")
    assert again.code == 0, again.err


def test_without_lexical_still_finds_other_differences(
    lexical: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A document that differs in another field is named: 5."""
    assert cli.restore(target, "--without-lexical").code == 0
    target.put(KEYSPACE, "words", '{"_id":"t3","n":4}')
    result = cli.restore(target, "--compare", "--without-lexical")
    assert result.code == RestoreExit.DIFFERENT
    assert "t3" in result.out


def test_rerank_that_the_target_lacks_is_refused(target: DataApiEmulator, cli: Cli) -> None:
    """4 before the first document, named; nothing stays behind."""
    with DataApiEmulator(token=TOKEN, astra=True) as source:
        fill(source, "a", OTHER, OFF)
        fill(source, "ranked", DOCS, {})
        snapshot_of(source, cli)
    for arguments in ([], ["--without-lexical"]):
        result = cli.restore(target, *arguments)
        assert_left_as_it_was(target, {}, result)
        assert "ranked" in result.err


def test_a_refusal_leaves_no_journal(lexical: DataApiEmulator, target: DataApiEmulator, cli: Cli) -> None:
    """Where nothing was written there is nothing to go on with."""
    assert cli.restore(target).code == RestoreExit.TARGET_REFUSED
    assert journals(cli) == []


@pytest.mark.parametrize("room", [0, 1])
def test_missing_room_is_found_before_the_first_document(kept: Path, cli: Cli, room: int) -> None:
    """No room for all collections is 4; what there was before stays, what was tried is gone."""
    with DataApiEmulator(token=TOKEN, max_collections=1 + room) as target:
        fill(target, "foreign", [EXTRA])
        before = held(target)
        result = cli.restore(target)
        assert_left_as_it_was(target, before, result)
        assert re.search("room|TOO_MANY", result.err)


def test_a_refusal_by_one_collection_stops_all(kept: Path, target: DataApiEmulator, cli: Cli) -> None:
    """Every reason is named at once, and the collections that could be restored are not begun."""
    fill(target, "docs", [EXTRA], OTHER_DENY)
    fill(target, "other", [EXTRA])
    before = held(target)
    result = cli.restore(target)
    assert_untouched(target, before, result, 4)
    assert "docs" in result.err
    assert "other" in result.err
    assert "indexing" in result.err


# ------------------------------------------------------------------------------------------------ --compare


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


# ------------------------------------------------------------------------------------------------ --drill


VECTORS = [
    f'{{"_id":"v{number:03}","$vector":[{(number * 37 % 101) / 101},{(number * 53 % 97) / 97},{number / 300}]}}'
    for number in range(150)
]
VECTOR3 = {"vector": {"dimension": 3, "metric": "euclidean"}}
SCRATCH = re.compile(r"drill_[0-9a-f]{8}_\d+")


@pytest.fixture(scope="module")
def _vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DataApiEmulator, Path]]:
    with DataApiEmulator(token=TOKEN) as emulator:
        fill(emulator, "points", VECTORS, VECTOR3)
        fill(emulator, "docs", FEW)
        fill(emulator, "nothing", [])
        yield emulator, snapshot_of(emulator, Cli(tmp_path_factory.mktemp("vectors")))


@pytest.fixture
def vectors(cli: Cli, _vectors: tuple[DataApiEmulator, Path]) -> DataApiEmulator:
    """A server with vectors and without, in a snapshot where `cli` looks for it; collections of others beside."""
    emulator, snapshot = _vectors
    shutil.copytree(snapshot, cli.backups / snapshot.name)
    for name in emulator.collections(KEYSPACE).keys() - {"points", "docs", "nothing"}:
        emulator.drop(KEYSPACE, name)
    fill(emulator, "drill_0000000g_0", [EXTRA])
    fill(emulator, "drill_00000000_0", [EXTRA])
    emulator.database.keyspaces["scratch"] = {}
    emulator.requests.clear()
    emulator.faults = []
    return emulator


def created(emulator: DataApiEmulator) -> list[str]:
    """Names of the collections that a server was asked to make."""
    bodies = [json.loads(request.body) for request in emulator.requests if request.command == "createCollection"]
    return [body["createCollection"]["name"] for body in bodies]


def touched(emulator: DataApiEmulator) -> set[str]:
    """Names of the collections that a writing command was about."""
    names = set()
    for request in emulator.requests:
        if request.command in ("createCollection", "deleteCollection"):
            names.add(json.loads(request.body)[request.command]["name"])
        elif request.command in writes(emulator):
            names.add(request.collection)
    return names


def test_a_drill_proves_a_restore_and_leaves_nothing(vectors: DataApiEmulator, cli: Cli) -> None:
    """Into the source itself, without a question: scratch collections only, recall, times, and all gone again."""
    before = held(vectors)
    result = cli.restore(vectors, "--drill")
    assert result.code == 0, result.err
    assert held(vectors) == before
    assert len(created(vectors)) == 3
    assert all(SCRATCH.fullmatch(name) and len(name) <= 48 for name in touched(vectors))
    assert re.search(r"recall\D*10\D*\b1(\.0+)?\b|recall.*100", result.out + result.err)
    assert re.search(r"\d s\b", result.out)


def test_a_drill_prints_its_steps_as_json(vectors: DataApiEmulator, cli: Cli) -> None:
    """--json has the time of every step and the recall of every collection with vectors."""
    found = cli.restore(vectors, "--drill", "--json").json
    assert found["exit_code"] == 0
    assert found["recall_at_10"] == {"points": 1.0}
    assert [row["name"] for row in found["collections"] if row["equal"]] == ["docs", "nothing", "points"]
    steps = found["steps_seconds"]
    assert {"fetch", "verify", "plan", "compare", "neighbours", "drop"} < steps.keys()
    assert all(isinstance(seconds, float) for seconds in steps.values())


@pytest.mark.parametrize("arguments", [["--collection", "points"], ["--keyspace", "scratch"]], ids=str)
def test_a_drill_takes_a_selection_and_a_keyspace(vectors: DataApiEmulator, cli: Cli, arguments: list[str]) -> None:
    """One collection, or another keyspace, of the operator's choice."""
    before = held(vectors)
    result = cli.restore(vectors, cli.snapshots()[-1].name, "--drill", *arguments)
    assert result.code == 0, result.err
    assert held(vectors) == before
    assert vectors.collections("scratch") == {}
    assert len(created(vectors)) == (1 if "points" in arguments else 3)
    keyspaces = {request.keyspace for request in vectors.requests if request.command == "insertMany"}
    assert keyspaces == {"scratch" if "scratch" in arguments else KEYSPACE}


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"command": "insertMany", "action": "alter_document"}, 5),
        ({"command": "insertMany", "action": "drop_document"}, 5),
        ({"command": "insertMany", "action": "error", "errorCode": "SHRED_BAD_DOCID_TYPE", "times": None}, 2),
        ({"command": "insertMany", "action": "status", "status": 503, "times": None}, 2),
        ({"command": "createCollection", "skip": 1, "action": "error", "errorCode": "TOO_MANY_INDEXES"}, 4),
        ({"command": "deleteCollection", "action": "status", "status": 503}, 0),
        ({"command": "deleteCollection", "action": "reset_after"}, 0),
    ],
    ids=["altered", "lost", "rejected", "down", "no room", "busy at the end", "lost reply at the end"],
)
def test_a_drill_that_fails_says_so_and_leaves_nothing(
    vectors: DataApiEmulator, cli: Cli, fault: dict[str, object], code: int
) -> None:
    """The codes are those of a restore, and the scratch collections are dropped all the same."""
    before = held(vectors)
    vectors.faults = [fault]
    result = cli.restore(vectors, "--drill", BACKUP_RETRY_BUDGET="2")
    assert result.code == code, result.err
    assert vectors.faults[0].fired
    assert held(vectors) == before
    assert all(SCRATCH.fullmatch(name) for name in touched(vectors))


def test_scratch_collections_that_cannot_be_dropped_are_named(vectors: DataApiEmulator, cli: Cli) -> None:
    """If dropping fails it is no success, and what stayed behind is named."""
    vectors.faults = [{"command": "deleteCollection", "action": "status", "status": 403, "times": None}]
    result = cli.restore(vectors, "--drill", "--collection", "docs", "--quiet")
    (left,) = created(vectors)
    assert left in vectors.collections(KEYSPACE)
    assert result.code != 0
    assert left in result.err + result.out


STEPS = {
    "writing": {"command": "insertMany", "action": "delay", "seconds": 1.0, "times": None},
    "comparing": {"command": "find", "action": "silence", "times": None},
    "dropping": {"command": "deleteCollection", "action": "delay", "seconds": 1.0},
}


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("writing", signal.SIGTERM),
        ("writing", signal.SIGINT),
        ("comparing", signal.SIGTERM),
        ("dropping", signal.SIGTERM),
    ],
)
def test_a_drill_that_is_stopped_leaves_nothing(
    vectors: DataApiEmulator, cli: Cli, step: str, number: signal.Signals
) -> None:
    """SIGTERM and Ctrl-C drop the scratch collections, whatever is going on, within the ten seconds of a stop."""
    before = held(vectors)
    vectors.faults = [STEPS[step]]
    running = cli.start("restore.py", "--api-endpoint", vectors.url, "--drill")
    try:
        wait_for(lambda: vectors.faults[0].fired)
        started = time.monotonic()
        running.send_signal(number)
        running.communicate(timeout=15)
    finally:
        running.kill()
    assert time.monotonic() - started < 10
    assert running.returncode == 128 + number
    wait_for(lambda: held(vectors) == before, 3)  # a delayed drop may still be on its way


class Forgetful(DataApiEmulator):
    """A server whose nearest neighbours are not the nearest: it answers a vector search with what comes first."""

    def reply_to(self, request: Request) -> Reply:
        """Turn a vector search into a search for nothing in particular."""
        if b'"sort"' in request.body:
            body = json.loads(request.body)
            (arguments,) = body.values()
            arguments.pop("sort")
            request = Request(**{**vars(request), "body": json.dumps(body).encode()})
        return super().reply_to(request)


def test_a_drill_notices_neighbours_that_are_not_the_nearest(vectors: DataApiEmulator, cli: Cli) -> None:
    """The documents may be equal: an index that does not find them is seen in the recall."""
    with Forgetful(token=TOKEN) as target:
        found = cli.restore(target, "--drill", "--json", "--collection", "points")
        assert held(target) == {}
    assert found.json["recall_at_10"]["points"] < 0.9
    assert found.code == RestoreExit.DIFFERENT


def test_a_drill_makes_the_choices_of_a_restore(
    embedding: DataApiEmulator, provider: DataApiEmulator, cli: Cli
) -> None:
    """Documents with both vector and text are drilled with their vectors, or as chosen; nothing stays behind."""
    for choice in ([], ["--vectorize", "keep-vectors"], ["--vectorize", "recompute"]):
        result = cli.restore(provider, "--drill", *choice)
        assert result.code in ((0, 5) if "recompute" in choice else (0,)), result.err
        assert held(provider) == {}


def test_a_drill_where_the_provider_is_missing_is_refused(
    embedding: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """4 as for a restore, and 0 with the collection made without its provider; nothing stays behind."""
    assert_left_as_it_was(target, {}, cli.restore(target, "--drill"))
    assert cli.restore(target, "--drill", "--without-vectorize-service").code == 0
    assert held(target) == {}


def test_a_drill_leaves_nothing_beside_the_snapshot(vectors: DataApiEmulator, cli: Cli) -> None:
    """No journal, no rejects, no download."""
    before = sorted(cli.backups.iterdir())
    assert cli.restore(vectors, "--drill").code == 0
    assert sorted(cli.backups.iterdir()) == before


# ------------------------------------------------------------------------------------------------ --show


SHOWN = [
    '{"_id":"a b","n":12345678901234567890.5,"$vector":[0.1,0.25,1E-7]}',
    f'{{"_id":"binary","$vector":{{"$binary":"{embed("x", 3)}"}}}}',
    '{"_id":5,"n":1E+2}',
    '{"_id":{"$uuid":"0193e1a6-71b7-7c4e-9d55-1f5f0a1b2c3d"},"at":{"$date":1073692800123}}',
    '{"_id":{"$objectId":"507f1f77bcf86cd799439011"}}',
    '{"_id":{"$date":2197097373173}}',
    '{"_id":true}',
    '{"_id":"7"}',
    '{"_id":"-dash"}',
    '{"_id":"ü\\"\\\\"}',
]


@pytest.fixture(scope="module")
def _shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with DataApiEmulator(token=TOKEN) as emulator:
        fill(emulator, "docs", [*DOCS, *SHOWN], {**DENY, "vector": {"dimension": 3, "metric": "cosine"}})
        fill(emulator, "other", ['{"_id":"only here"}', '{"_id":"a b","in":"other"}'])
        return snapshot_of(emulator, Cli(tmp_path_factory.mktemp("shown")))


@pytest.fixture
def shown(cli: Cli, _shown: Path) -> Path:
    """A snapshot with ids of every kind; `cli` has no credentials any more."""
    for name in ("ASTRA_DB_APPLICATION_TOKEN", "ASTRA_DB_ENVIRONMENT"):
        cli.environ.pop(name, None)
    return Path(shutil.copytree(_shown, cli.backups / _shown.name))


@pytest.mark.parametrize("text", SHOWN)
def test_a_document_is_shown_as_the_server_held_it(shown: Path, cli: Cli, text: str) -> None:
    """--show finds an id of any kind, and prints the document and nothing else, to the digit, without credentials."""
    document_id = json.loads(text)["_id"]
    wanted = document_id if isinstance(document_id, str) else json.dumps(document_id)
    result = cli.run("restore.py", f"--show={wanted}", "--collection", "docs")
    assert result.code == 0, result.err
    assert result.out == text + "\n"


def test_show_looks_into_all_collections(shown: Path, cli: Cli) -> None:
    """Without --collection the document is found wherever it is; with the same id in two, both are told apart."""
    assert cli.run("restore.py", "--show", "only here").out == '{"_id":"only here"}\n'
    both = cli.run("restore.py", "--show", "a b")
    assert both.code == 0
    assert SHOWN[0] in both.out
    assert '{"_id":"a b","in":"other"}' in both.out
    chosen = cli.run("restore.py", shown.name, "--show", "a b", "--collection", "other")
    assert chosen.out == '{"_id":"a b","in":"other"}\n'


@pytest.mark.parametrize(
    "arguments",
    [
        ["--show", "nope"],
        ["--show", "500"],
        ["--show", '{"$uuid":"00000000-0000-0000-0000-000000000000"}'],
        ["--show", "d001", "--collection", "other"],
        ["--show", "d001", "--collection", "nope"],
        ["--show", ""],
    ],
    ids=str,
)
def test_a_document_that_is_not_there_is_1(shown: Path, cli: Cli, arguments: list[str]) -> None:
    """Nothing on stdout, the reason on stderr."""
    result = cli.run("restore.py", *arguments)
    assert result.code == 1
    assert result.out == ""
    assert "Traceback" not in result.err


def test_show_reads_a_zip(shown: Path, cli: Cli) -> None:
    """A snapshot in a zip is read just the same."""
    archive = shutil.make_archive(str(cli.directory / "moved"), "zip", cli.backups, shown.name)
    assert cli.run("restore.py", archive, "--show", "only here").out == '{"_id":"only here"}\n'


# ------------------------------------------------------------------------------------------------ docs/RUNBOOK.md


RUNBOOK = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "RUNBOOK.md").read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith(".venv/bin/python ")
]
"""The runbook's commands, word by word."""
RUNBOOK_CODES = {"--compare --differences": 5, "--compare --keyspace": 5, "--compare --collection": 5, " skip": 5}
"""How a command of the runbook ends whose code is not 0, where documents are missing and one was changed."""


@pytest.fixture(scope="module")
def _incident(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DataApiEmulator, BoxEmulator, Cli]]:
    """A database, its snapshot 20260616_085246 in the directory and in Box, and a directory like the repository's."""
    cli = Cli(tmp_path_factory.mktemp("incident"))
    with (
        DataApiEmulator(token=TOKEN) as emulator,
        BoxEmulator(retry_after="0", client_secret=BOX_SECRET) as box,
    ):
        load_catalog(emulator)
        cli.with_box(box)
        snapshot = snapshot_of(emulator, cli).rename(cli.backups / "20260616_085246")
        assert cli.run("astra_backup.py", "--upload-only", snapshot.name).code == 0
        yield emulator, box, cli
    assert box.violations == []


@pytest.fixture
def incident(_incident: tuple[DataApiEmulator, BoxEmulator, Cli], cli: Cli) -> DataApiEmulator:
    """The database of the runbook, damaged: documents of `assets` are missing, one was changed, one is new."""
    emulator, box, made = _incident
    shutil.copytree(made.backups, cli.backups)
    cli.with_box(box)
    for keyspace in (KEYSPACE, "restored", "scratch"):
        emulator.database.keyspaces[keyspace] = {}
    load_catalog(emulator)
    for name in ("i810switch", "nitrocli"):
        emulator.delete(KEYSPACE, "assets", name)
    emulator.put(KEYSPACE, "assets", '{"_id":"lxi-tools","title":"spoilt"}')
    emulator.put(KEYSPACE, "assets", '{"_id":"written since"}')
    cli.environ["ASTRA_DB_API_ENDPOINT"] = emulator.url
    (cli.directory / ".venv" / "bin").mkdir(parents=True)
    python = cli.directory / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for script in ("restore.py", "astra_backup.py"):
        (cli.directory / script).symlink_to(ROOT / script)
    return emulator


def test_the_runbook_has_commands() -> None:
    """The commands are found in its text, and every step has one."""
    assert len(RUNBOOK) >= 15
    for option in ("--list", "--from-box", "--verify-only", "--dry-run", "--show", "--rename", "--resume", "--drill"):
        assert any(option in command for command in RUNBOOK), option


@pytest.mark.parametrize("command", RUNBOOK)
def test_each_command_of_the_runbook_does_what_it_says(incident: DataApiEmulator, cli: Cli, command: str) -> None:
    """Typed as it stands, at a terminal, with the answers that it asks for."""
    shown = Typed(cli, ["sh", "-c", command]).answer("y\nassets\n")
    wanted = next((code for part, code in RUNBOOK_CODES.items() if part in command), 0)
    assert shown.code == (0 if "--dry-run" in command else wanted), shown.out
    assert "Traceback" not in shown.out
    assets = incident.documents(KEYSPACE, "assets")
    if "drop" in command:
        assert len(assets) == 300
    elif "skip" in command or "overwrite" in command:
        assert len(assets) == (299 if "--dry-run" in command else 301)
        assert ('{"_id":"lxi-tools","title":"spoilt"}' in assets) == ("overwrite" not in command)
    else:
        assert len(assets) == 299
    if "assets_restored" in incident.collections(KEYSPACE):
        assert len(incident.documents(KEYSPACE, "assets_restored")) == 300
    if "--keyspace restored" in command and "--compare" not in command:
        assert len(incident.documents("restored", "assets")) == 300
    assert incident.collections("scratch") == {}
