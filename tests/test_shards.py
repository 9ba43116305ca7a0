"""Several containers for one backup: deploy/shards.sh and its recipes, and what docs/SCALE.md computes."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import BOX_SECRET, ROOT, TOKEN, Cli, Result, assert_no_secret
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator

DEPLOY = ROOT / "deploy"
SCALE = (ROOT / "docs" / "SCALE.md").read_text()
SHARDS = (DEPLOY / "shards.sh").read_text()
NUMBERS = [int(number) for number in re.findall(r"^(\d+)\) keyspace=", SHARDS, re.MULTILINE)]
DATABASE = {"shop": ("orders",), "default_keyspace": ("docs", "images", "pages", "a_new_one")}
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", SCALE, re.DOTALL)
    for line in block.splitlines()
    if "deploy/shards.sh" in line
]
WORKERS = (4, 8, 16, 32)
RESTORED = {"shop_restored": DATABASE["shop"], "restored": DATABASE["default_keyspace"]}


@dataclass(frozen=True)
class Recipe:
    """One of the two jobs of a scheduler: how many containers it starts, and the container."""

    count: int
    pod: dict[str, Any]
    index_variable: str

    @property
    def container(self) -> dict[str, Any]:
        """The only container."""
        (container,) = self.pod["containers"]
        return dict(container)

    @property
    def environ(self) -> dict[str, str]:
        """The variables that it sets."""
        return {entry["name"]: entry["value"] for entry in self.container["env"]}


def kubernetes_jobs() -> list[dict[str, Any]]:
    """What the two CronJobs start."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "astra-backup-indexed.yaml").read_text())
    return [document["spec"]["jobTemplate"]["spec"] for document in documents]


def recipes() -> dict[str, list[Recipe]]:
    """The backup and the job that prunes, of each scheduler."""
    tasks = []
    for name in ("tasks-job", "prune-tasks-job"):
        spec = yaml.safe_load((DEPLOY / "cloud-run" / f"{name}.yaml").read_text())["spec"]["template"]["spec"]
        tasks.append(Recipe(spec["taskCount"], spec["template"]["spec"], "CLOUD_RUN_TASK_INDEX"))
    indexed = [Recipe(job["completions"], job["template"]["spec"], "JOB_COMPLETION_INDEX") for job in kubernetes_jobs()]
    return {"kubernetes": indexed, "cloud-run": tasks}


RECIPES = recipes()


class Shards:
    """A database of two keyspaces, a Box folder for each shard, and a directory like the repository's."""

    def __init__(self, cli: Cli, source: DataApiEmulator, box: BoxEmulator) -> None:
        self.cli, self.source, self.box = cli, source, box
        self.folders = [box.create_folder(f"Shard {number}", "0").id for number in NUMBERS]
        for keyspace, names in DATABASE.items():
            source.database.keyspaces[keyspace] = {}
            for name in names:
                source.create(keyspace, name)
                source.put(keyspace, name, f'{{"_id":"the one of {name}"}}')
        self._fill_directory()
        cli.environ |= {"ASTRA_DB_API_ENDPOINT": source.url}
        cli.with_box(box)
        del cli.environ["BOX_FOLDER_ID"]

    def _fill_directory(self) -> None:
        directory, text = self.cli.directory, SHARDS
        for number, folder in zip(NUMBERS, self.folders, strict=True):
            text = text.replace(f"YOUR_BOX_FOLDER_{number} ", f"{folder} ")
        (directory / "deploy").mkdir()
        (directory / "deploy" / "shards.sh").write_text(text)
        (directory / ".venv" / "bin").mkdir(parents=True)
        python = directory / ".venv" / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        for script in ("astra_backup.py", "restore.py", "snapshots.py"):
            (directory / script).symlink_to(ROOT / script)

    def start(self, command: list[str], environ: dict[str, str]) -> subprocess.Popen[str]:
        """Start a command there."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=self.cli.directory, env=self.cli.environ | environ, text=True, **pipes)

    def run(self, *arguments: str, **environ: str) -> Result:
        """Run deploy/shards.sh to its end."""
        return finish(self.start(["sh", "deploy/shards.sh", *arguments], environ))

    def run_all(self, *arguments: str, variable: str = "SHARD", environ: dict[str, str] | None = None) -> None:
        """Run deploy/shards.sh for all shards at once, as a scheduler does; each ends with 0."""
        command = ["sh", "deploy/shards.sh", *arguments]
        running = [self.start(command, (environ or {}) | {variable: str(number)}) for number in NUMBERS]
        for done in [finish(each) for each in running]:
            assert done.code == 0, done.err

    def run_recipe(self, recipe: Recipe, secrets: Path) -> None:
        """Run what a recipe's containers run, each with its number and the recipe's own variables."""
        files = {"ASTRA_DB_APPLICATION_TOKEN_FILE": secrets / "astra", "BOX_CLIENT_SECRET_FILE": secrets / "box"}
        own = {name: value for name, value in recipe.environ.items() if not re.search("YOUR_|DATABASE_ID", value)}
        given = {name: str(files.get(name, value)) for name, value in own.items()}
        hidden = dict.fromkeys(("ASTRA_DB_APPLICATION_TOKEN", "BOX_CLIENT_SECRET"), "")  # the files have to do
        assert recipe.container["command"] == ["sh", "/shards/shards.sh"]
        self.run_all(*recipe.container["args"], variable=recipe.index_variable, environ=hidden | given)

    def snapshot(self, number: int) -> Path:
        """The only snapshot on a shard's disk."""
        (snapshot,) = (self.cli.backups / str(number)).glob("2*")
        return snapshot


def finish(process: subprocess.Popen[str]) -> Result:
    """Wait for a process."""
    out, err = process.communicate(timeout=120)
    assert_no_secret(out + err)
    return Result(process.returncode, out, err)


@pytest.fixture
def shards(cli: Cli, source: DataApiEmulator, box: BoxEmulator) -> Shards:
    """A database of two keyspaces, and a Box folder for each shard."""
    return Shards(cli, source, box)


# ======================================================================================================================
# The recipes
# ======================================================================================================================


def test_each_container_has_a_shard() -> None:
    """The numbers of deploy/shards.sh go up from 0, and each job starts as many containers as there are shards."""
    assert list(range(len(NUMBERS))) == NUMBERS
    assert {recipe.count for jobs in RECIPES.values() for recipe in jobs} == {len(NUMBERS)}
    assert [int(number) for number in re.findall(r"folder=YOUR_BOX_FOLDER_(\d+) ", SHARDS)] == NUMBERS


@pytest.mark.parametrize("scheduler", RECIPES)
def test_the_shards_hold_everything_once(
    scheduler: str, shards: Shards, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All containers of a recipe at once: each collection is in one snapshot, a new one too, and each folder has one.

    The job that prunes leaves the newest of one day in each folder.
    """
    secrets = tmp_path_factory.mktemp("secrets")
    (secrets / "astra").write_text(f"{TOKEN}\n")
    (secrets / "box").write_text(f"{BOX_SECRET}\n")
    backup, prune = RECIPES[scheduler]
    shards.run_recipe(backup, secrets)
    manifests = [json.loads((shards.snapshot(number) / "manifest.json").read_text()) for number in NUMBERS]
    found = [(each["source"]["keyspace"], record["name"]) for each in manifests for record in each["collections"]]
    assert sorted(found) == sorted((keyspace, name) for keyspace, names in DATABASE.items() for name in names)
    newest = [[f"{shards.snapshot(number).name}.zip"] for number in NUMBERS]
    assert [list(shards.box.files(folder)) for folder in shards.folders] == newest

    made = shards.snapshot(1)
    for name in ("20240101_000000", "20240101_000001"):
        shutil.copytree(made, made.with_name(name))
        assert shards.run("snapshots.py", "upload", name, SHARD="1").code == 0
    shutil.rmtree(shards.cli.backups)  # each container has a disk of its own, and it is empty
    shards.run_recipe(prune, secrets)
    newest[1] = ["20240101_000001.zip", *newest[1]]
    assert [sorted(shards.box.files(folder)) for folder in shards.folders] == newest


@pytest.mark.parametrize("number", ["", "4", "0 1"])
def test_a_number_without_a_shard_is_refused(shards: Shards, number: str) -> None:
    """A container that has no line ends with 1, which no scheduler tries again, and says so."""
    done = shards.run("astra_backup.py", SHARD=number)
    assert done.code == 1
    assert f"There is no shard '{number}'" in done.err


def test_the_exit_code_of_a_shard_is_that_of_its_backup(shards: Shards) -> None:
    """A collection that was dropped ends its shard with 1; the other shards of its keyspace do not mind."""
    shards.source.database.keyspaces["default_keyspace"].pop("docs")
    done = shards.run("astra_backup.py", SHARD="1")
    assert done.code == 1
    assert "No such collection" in done.err
    assert shards.run("astra_backup.py", SHARD="3").code == 0


def test_kubernetes_tries_a_shard_again_where_that_helps() -> None:
    """Each index has its own attempts; 1, 4 and 5 are final for their index only, and none is stopped by another."""
    backup, prune = kubernetes_jobs()
    fail, ignore = backup["podFailurePolicy"]["rules"]
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailIndex", [1, 4, 5])
    assert fail["onExitCodes"]["containerName"] == RECIPES["kubernetes"][0].container["name"]
    assert ignore["action"] == "Ignore"
    assert (backup["backoffLimitPerIndex"], prune["backoffLimitPerIndex"]) == (2, 0)
    for job in (backup, prune):
        assert job["completionMode"] == "Indexed"
        assert "maxFailedIndexes" not in job
        assert job["template"]["spec"]["restartPolicy"] == "Never"  # backoffLimitPerIndex asks for it


@pytest.mark.parametrize("scheduler", RECIPES)
def test_what_is_mounted_is_there(scheduler: str) -> None:
    """Each mount has a volume, and that of /shards holds shards.sh, which the files' commands put there."""
    made = (DEPLOY / "kubernetes" / "astra-backup-indexed.yaml").read_text()
    assert "create configmap astra-shards --from-file=deploy/shards.sh\n" in made
    made = (DEPLOY / "cloud-run" / "tasks-setup.sh").read_text()
    assert "gcloud secrets versions add astra-shards --data-file deploy/shards.sh\n" in made
    secret = {"secretName": "astra-shards", "items": [{"key": "latest", "path": "shards.sh"}]}
    for recipe in RECIPES[scheduler]:
        volumes = {volume["name"]: volume for volume in recipe.pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in recipe.container["volumeMounts"]}
        assert set(mounts.values()) == set(volumes)
        shards = volumes[mounts["/shards"]]
        assert shards.get("configMap") == {"name": "astra-shards"} or shards.get("secret") == secret


# ======================================================================================================================
# docs/SCALE.md
# ======================================================================================================================


@pytest.fixture
def stored(shards: Shards) -> Iterator[Shards]:
    """Shards whose snapshots are in Box, under the names that the document uses, and no longer on the disk."""
    shards.run_all("astra_backup.py", "--no-box")
    for number in NUMBERS:
        named = shards.snapshot(number).rename(shards.cli.backups / str(number) / f"20260616_03170{number}")
        assert shards.run("snapshots.py", "upload", named.name, SHARD=str(number)).code == 0
    shutil.rmtree(shards.cli.backups)
    for keyspace in RESTORED:
        shards.source.database.keyspaces[keyspace] = {}
    yield shards


def test_a_restore_finds_all_shards(stored: Shards) -> None:
    """The document's commands, typed as they stand: each shard is checked and listed, and all collections come back."""
    assert len(COMMANDS) == 3 + len(NUMBERS)
    running = [stored.start(["sh", "-c", command], {"ASTRA_DB_KEYSPACE": "not this one"}) for command in COMMANDS]
    checked, watched, listed, *restored = [finish(each) for each in running]
    assert {done.code for done in (checked, watched, listed, *restored)} == {0}, [done.err for done in restored]
    assert "shard 0:" not in checked.out
    assert [f"shard {number}: 1" in watched.out for number in NUMBERS] == [True] * len(NUMBERS)  # those of June are old
    assert re.findall(r"20260616_03170\d", listed.out) == [f"20260616_03170{number}" for number in NUMBERS]
    for keyspace, names in RESTORED.items():
        assert sorted(stored.source.collections(keyspace)) == sorted(names)
        for name in names:
            assert stored.source.documents(keyspace, name) == [f'{{"_id":"the one of {name}"}}']


def figure(pattern: str) -> float:
    """A figure of the document's text."""
    match = re.search(pattern, SCALE)
    assert match, pattern
    return float(match[1])


def rows(title: str) -> list[list[str]]:
    """The rows of the table whose head begins so."""
    table = re.search(rf"^\|{re.escape(title)}.*\n\|[-|]+\n((?:\|.*\n)+)", SCALE, re.MULTILINE)
    assert table, title
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[1].splitlines()]


def test_the_hours_are_those_of_the_formula() -> None:
    """Each cell is the longer of waiting and computing, with the figures that the text names."""
    page, efficiency = figure(r"(\d+) documents a page, an"), figure(r"an efficiency of ([\d.]+)")
    client_s = figure(r"and ([\d.]+) ms of CPU a document") / 1000
    table = rows(" documents | seconds a page ")
    assert len(table) == 6
    for millions, seconds, *cells in table:
        count = int(millions.split()[0]) * 1_000_000
        for workers, cell in zip(WORKERS, cells, strict=True):
            waiting = count / page * float(seconds) / (workers * efficiency) / 3600
            client = count * client_s / 3600
            hours = max(waiting, client)
            digits = 0 if hours >= 9.5 else 1 if hours >= 1 else 2
            assert cell == f"{hours:.{digits}f} h{'*' if client > waiting else ''}", (millions, seconds, workers)


def test_the_number_of_shards_is_what_the_largest_file_asks_for() -> None:
    """Sizes follow from the measured size of a document, plans and shards from the plans' largest files."""
    kilobytes = figure(r"takes some ([\d.]+) kB for a document")
    text = re.search(r"largest file \(.*?\): (.*?)\. Computed", SCALE, re.DOTALL)
    assert text
    named = re.findall(r"([A-Z]\w+(?: [A-Z]\w+)*) ([\d.]+)", " ".join(text[1].split()))
    limits = {name: float(gb) for name, gb in named}
    assert len(limits) == 7
    sizes = [millions * kilobytes for millions in (1, 10, 100)]
    table = {row[0]: row[1:] for row in rows(" | 1 million ")}
    assert table.pop("disk, and the file in Box") == [f"{size:.3g} GB" for size in sizes]
    for size, plan in zip(sizes, table.pop("smallest plan for one file"), strict=True):
        fitting = [name for name in sorted(limits, key=lambda name: limits[name]) if limits[name] >= size]
        assert plan == (fitting[0] if fitting else "none")
    for name, cells in table.items():
        limit = limits[name.removeprefix("shards with ")]
        assert [int(cell) for cell in cells] == [math.ceil(size / limit) for size in sizes]
    assert len(table) == 4
