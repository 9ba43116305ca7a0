"""`--vectorize`: documents whose vector the server makes from a text, on targets with and without the provider."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from restore import RestoreExit
from tests.conftest import KEYSPACE, TOKEN, Cli, warm_cli
from tests.emulators.data_api import DataApiEmulator, embed
from tests.support import (
    OFF,
    OTHER,
    assert_left_as_it_was,
    assert_untouched,
    by_id,
    fill,
    held,
    snapshot_of,
    writes,
)

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
        yield emulator, snapshot_of(emulator, warm_cli(tmp_path_factory, "embedding"))


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
    about = " ".join(result.out[result.out.index("embedded:") : result.out.index("plain:")].split())
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


def test_a_drill_does_not_measure_vectors_that_are_computed_anew(provider: DataApiEmulator, cli: Cli) -> None:
    """What is near in the snapshot need not be near in the target: that was chosen, and is no fault of the index."""
    texts = [f'{{"_id":{number},"$vectorize":"text {number}","$vector":[{number},1,0.5]}}' for number in range(40)]
    with DataApiEmulator(token=TOKEN, vectorize=True) as source:
        fill(source, "embedded", texts, EMBEDDED)
        snapshot_of(source, cli)
    result = cli.restore(provider, "--drill", "--vectorize", "recompute")
    assert result.code == 0, result.out
    assert "embedded: 40 documents, equal, but for what the plan leaves out, vectors computed anew" in result.out
