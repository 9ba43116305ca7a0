"""What `pip install .`, `pipx install .` and `uv tool install .` give, and what stands in the way of a clean clone."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import astra_backup
from tests.conftest import ROOT
from tests.support import install_command

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = [name for name, entry in PROJECT["scripts"].items() if (ROOT / f"{entry.partition(':')[0]}.py").exists()]
FILES = ("pyproject.toml", "README.md", "LICENSE", "requirements.in")


def run(command: list[object], directory: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a clean environment."""
    clean = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(directory)}
    return subprocess.run(list(map(str, command)), cwd=directory, env=clean | environ, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """What pip builds from a copy of the repository's own files, without a network."""
    copy = tmp_path_factory.mktemp("copy")
    for name in (*FILES, *(path.name for path in ROOT.glob("*.py"))):
        shutil.copy(ROOT / name, copy)
    done = run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "."], copy)
    assert done.returncode == 0, done.stderr
    (path,) = copy.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    """A file of the wheel's description of itself."""
    (path,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_the_wheel_holds_the_scripts_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """The modules, and the description."""
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == {path.name for path in ROOT.glob("*.py")}


def test_the_wheel_says_what_it_is_and_needs(wheel: zipfile.ZipFile) -> None:
    """Version of the code, Python 3.11, and what requirements.in names."""
    text = metadata(wheel, "METADATA")
    assert f"\nVersion: {astra_backup.TOOL_VERSION}\n" in text
    assert "\nRequires-Python: >=3.11\n" in text
    wanted = re.findall(r"^[a-z].*$", (ROOT / "requirements.in").read_text(), re.MULTILINE)
    assert re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE) == wanted


def test_the_wheel_has_the_commands(wheel: zipfile.ZipFile) -> None:
    """Three commands, each the entry point of one script."""
    assert sorted(PROJECT["scripts"]) == ["astra-backup", "astra-restore", "astra-snapshots"]
    text = metadata(wheel, "entry_points.txt")
    assert dict(re.findall(r"^(\S+) = (\S+)$", text, re.MULTILINE)) == PROJECT["scripts"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_usage_error_of_a_command_is_1(command: str, tmp_path: Path) -> None:
    """Click's own 2 would say that a collection failed: an installed command ends as the script does."""
    path = install_command(command, tmp_path)
    done = run([path, "--nonsense"], tmp_path)
    assert done.returncode == 1, done.stderr
    assert "--nonsense" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_calls_itself_by_its_name(command: str, tmp_path: Path) -> None:
    """--version and --help name what was typed."""
    path = install_command(command, tmp_path)
    assert run([path, "--version"], tmp_path).stdout == f"{command}, version {astra_backup.TOOL_VERSION}\n"
    assert run([path, "--help"], tmp_path).stdout.startswith(f"Usage: {command} ")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_completes_itself(command: str, tmp_path: Path) -> None:
    """The shell asks through click's variable, and no wrapper is needed."""
    path = install_command(command, tmp_path)
    variable = f"_{command.replace('-', '_').upper()}_COMPLETE"
    asked = {variable: "bash_complete", "COMP_WORDS": f"{command} --vers", "COMP_CWORD": "1"}
    assert run([path], tmp_path, **asked).stdout.split() == ["plain,--version"]
    assert f"complete -o nosort -F _{command.replace('-', '_')}_completion {command}" in (
        run([path], tmp_path, **{variable: "bash_source"}).stdout
    )


def test_git_ignores_what_a_build_leaves(tmp_path: Path) -> None:
    """build/, dist/ and *.egg-info/ are no changes."""
    run(["git", "init", "-q", "."], tmp_path)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for name in ("build/lib/restore.py", "dist/x.whl", "astra_backup.egg-info/PKG-INFO"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert run(["git", "status", "--short"], tmp_path).stdout == "?? .gitignore\n"


# ======================================================================================================================
# The clone is complete
# ======================================================================================================================

ELSEWHERE = r"\.\./share" + r"d|\b(DATA_" + r"API|HOU" + r"SE|SPE" + r"C|PEER" + r"S|WORD" + r"S)\.md\b"


def repository_files() -> list[Path]:
    """The text files of the repository that a person wrote."""
    left_out = {".git", ".venv", ".venv-fuzz", "build", "backups", "demo-backups", "__pycache__", "data"}
    paths = [path for path in ROOT.rglob("*") if path.is_file() and not left_out & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.suffix in (".py", ".md", ".toml", ".in", ".yml", ".yaml", ".sh", "")]


def test_nothing_refers_to_a_file_that_is_not_in_the_clone() -> None:
    """No comment, document or setting names what only its author has."""
    found = [path for path in repository_files() if re.search(ELSEWHERE, path.read_text(errors="replace"))]
    assert found == []


def imported(path: Path) -> set[str]:
    """The modules that a file imports, at its top or within."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_no_test_file_is_imported() -> None:
    """What tests share stands in tests/support.py; tests and benchmarks do not import each other."""
    for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("bench/*.py")]:
        names = imported(path)
        assert [name for name in names if name.startswith("tests.test_")] == [], path
        if path.name.startswith("test_"):
            assert [name for name in names if name.split(".")[0] == "bench"] == [], path
