"""Random damage to a snapshot; `make soak` does ten thousand, with the same code."""

from __future__ import annotations

import random
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.trials import damage


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> damage.Files:
    """The files of a snapshot that the product made."""
    return damage.good_files(tmp_path_factory.mktemp("good"))


def test_300_random_damages_are_refused_or_harmless(tmp_path: Path) -> None:
    """Each is refused, or holds the same documents; for some of them `restore.py` itself wrote nothing."""
    trials = damage.run_trials(range(300), 12, 20260616, tmp_path)
    assert [trial for trial in trials if trial.is_finding] == []
    verdicts = Counter(trial.verdict for trial in trials)
    assert verdicts["refused"] > 200
    assert verdicts["harmless"] > 3  # or nothing would show that the judge can tell
    assert {trial.kind for trial in trials} == {*damage.KINDS, damage.ZIP_KIND}


def test_compression_is_known_by_the_name_where_the_manifest_does_not_say(tmp_path: Path) -> None:
    """`"compressed": null`, which 10,000 damages brought up, is read by the file's name."""
    trials = damage.run_trials(range(7999, 8000), 1, 1, tmp_path)
    assert [(trial.way, trial.verdict) for trial in trials] == [("compressed", "harmless")]


def test_the_undamaged_snapshot_is_harmless(good: damage.Files, tmp_path: Path) -> None:
    """The judge accepts what is good, as a directory and as the product's zip."""
    content = damage.content_of(good)
    assert sum(len(documents) for _, documents in content.values()) > 40
    (tmp_path / "zip").mkdir()
    for path in (damage.write_files(good, tmp_path), damage.write_zip(good, tmp_path / "zip")):
        assert damage.judge(path, content) == "harmless"


def test_the_judge_notices_other_documents(good: damage.Files, tmp_path: Path) -> None:
    """A snapshot that was forged through and through verifies, and is not called harmless."""
    content = damage.content_of(good)
    name = next(iter(content))
    content[name] = (content[name][0], ["another document"])
    assert damage.judge(damage.write_files(good, tmp_path), content) == "ACCEPTED, with other documents"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_each_byte_of_a_zips_structure_can_be_damaged(good: damage.Files, tmp_path: Path, method: int) -> None:
    """Every byte of a zip's headers and its manifest, turned over, is refused or harmless."""
    small = {name: good[name] for name in good}
    content, path = damage.content_of(small), tmp_path / "20260616_085246.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in small.items():
            archive.writestr(f"20260616_085246/{name}", data)
    packed = path.read_bytes()
    start = packed.index(b"PK\1\2")
    chance = random.Random(5)
    places = [*range(start, len(packed)), *(chance.randrange(start) for _ in range(60))]
    for at in places[:: max(1, len(places) // 60)]:
        path.write_bytes(packed[:at] + bytes([packed[at] ^ 0xFF]) + packed[at + 1 :])
        assert damage.judge(path, content) in ("refused", "harmless"), at
