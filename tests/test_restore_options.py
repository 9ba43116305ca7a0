"""Options of a restore that make no sense together, and names that are given with `--rename`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import KEYSPACE, Cli
from tests.emulators.data_api import DataApiEmulator
from tests.support import (
    DOCS,
    EXTRA,
    assert_untouched,
    fill,
    held,
)

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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--compare", "--drill"], "--compare and --drill cannot be combined."),
        (["--compare", "--resume"], "--compare and --resume cannot be combined."),
        (["--rename", "docs"], "--rename 'docs' is not OLD=NEW.\n  Write it as --rename docs=NEW_NAME."),
    ],
)
def test_what_makes_no_sense_is_named(target: DataApiEmulator, cli: Cli, arguments: list[str], says: str) -> None:
    """The message has the very options, and what to write instead."""
    result = cli.restore(target, *arguments)
    assert (result.code, target.requests) == (1, [])
    assert says in result.err


@pytest.mark.parametrize("option", ["--differences", "--rejects"])
def test_a_resumed_restore_takes_its_files(kept: Path, target: DataApiEmulator, cli: Cli, option: str) -> None:
    """--resume is a restore: what goes with a restore goes with it."""
    assert cli.restore(target, "--resume", option, "out.jsonl").code == 0


def test_two_collections_can_change_names(
    kept: Path, origin: DataApiEmulator, target: DataApiEmulator, cli: Cli
) -> None:
    """A swap of names is no collision, and a name of 48 characters is a name."""
    assert cli.restore(target, "--rename", "docs=other", "--rename", "other=docs").code == 0
    assert held(target) == {"docs": held(origin)["other"], "other": held(origin)["docs"]}
    assert cli.restore(target, "--rename", f"docs={TOO_LONG[:48]}", "--collection", "docs").code == 0
    assert sorted(target.documents(KEYSPACE, TOO_LONG[:48])) == DOCS
