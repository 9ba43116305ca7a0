"""The documentation says what is so."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

import astra_backup
from tests import demo, docs
from tests.conftest import BOX_SECRET, TOKEN, Cli, load_catalog, warm_cli
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.support import snapshot_of

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ("docs/FORMAT.md", "docs/REFERENCE.md")
README_LINES = 199
NOT_OURS = {".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__"}
NOT_OURS |= {".venv-fuzz", "backups", "build", "demo-backups", "data"}
TEXT_SUFFIXES = {".md", ".py", ".txt", ".in", ".toml", ".yml", ".yaml", ".sh", ".cfg", ".json", ""}

README = (ROOT / "README.md").read_text()
FORMAT = (ROOT / "docs" / "FORMAT.md").read_text()
REFERENCE = (ROOT / "docs" / "REFERENCE.md").read_text()
BOX = (ROOT / "docs" / "BOX.md").read_text()


def text_files(*suffixes: str) -> list[Path]:
    """The repository's own text files, by their suffixes (none given: all)."""
    paths = []
    for directory, directories, files in os.walk(ROOT):
        directories[:] = set(directories) - NOT_OURS
        paths += [Path(directory, name) for name in files if name not in NOT_OURS]
    return sorted(path for path in paths if path.suffix in (suffixes or TEXT_SUFFIXES))


MARKDOWN = text_files(".md")


def options_of(command: click.Command) -> set[str]:
    """Every spelling of every option of a command."""
    context = click.Context(command)
    return {name for option in command.get_params(context) for name in [*option.opts, *option.secondary_opts]}


def test_generated_parts_are_current() -> None:
    """What cog would write is what is there; `make docs` renews it."""
    command = [sys.executable, "-m", "cogapp", "-P", "--check", "-I", ".", *GENERATED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"run `make docs`: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("script", docs.COMMANDS)
def test_every_option_is_in_the_reference(script: str) -> None:
    """Each option of each script stands in docs/REFERENCE.md."""
    options = {name for name in options_of(docs.COMMANDS[script]) if name.startswith("-")}
    assert {name for name in options if not re.search(rf"{re.escape(name)}(?![\w-])", REFERENCE)} == set()


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_every_command_in_the_docs_has_only_options_that_exist(path: Path) -> None:
    """A command line of a script in a document uses options that the script has."""
    pattern = r"(astra_backup\.py|restore\.py|snapshots\.py (?:list|status|prune|upload))((?: +[^ \n`#|&;]+)*)"
    for script, rest in re.findall(pattern, path.read_text()):
        used = set(re.findall(r"(?<= )--?[a-z][\w-]*", rest))
        assert used <= options_of(docs.COMMANDS[script]) | {"--help"}, f"{script}{rest}"


def test_every_variable_is_in_the_reference() -> None:
    """Each variable that the code reads stands in the table of docs/REFERENCE.md."""
    pattern = r"\b(?:ASTRA_DB|BACKUP|BOX)_[A-Z_]+\b"
    read = set(re.findall(rf'"({pattern})"', "".join((ROOT / script).read_text() for script in docs.SCRIPTS)))
    assert read
    told = set(re.findall(rf"^\| `({pattern})` \|", REFERENCE, re.MULTILINE))
    assert read - told == set()
    assert astra_backup.VARIABLES - {""} == told, "what is set and not among these may be misspelt"


def test_every_error_of_box_that_has_a_hint_is_explained() -> None:
    """Each code of Box's for which the code knows what to do stands in the table of errors of docs/BOX.md."""
    assert [code for code in astra_backup.BOX_HINTS if f"| `{code}` |" not in BOX] == []


def test_the_readme_is_short() -> None:
    """The README has under 200 lines, and leads to every document."""
    assert len(README.splitlines()) <= README_LINES
    linked = set(re.findall(r"\]\(([^)#\s]+)", README))
    assert {str(path.relative_to(ROOT)) for path in MARKDOWN if path.parent in (ROOT, ROOT / "docs")} - linked == {
        "README.md"
    }


def test_make_targets_in_the_docs_exist() -> None:
    """Each `make TARGET` that a document names is in the Makefile."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in MARKDOWN:
        assert set(re.findall(r"(?:`|^)make ([a-z0-9-]+)(?=`|$)", path.read_text(), re.MULTILINE)) <= targets, path


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_relative_links_resolve(path: Path) -> None:
    """Each relative link leads to a file, and each fragment to a heading."""
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), link
        if fragment:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert fragment in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


def test_the_image_copies_files_that_exist_and_that_are_let_in() -> None:
    """Each file that the Dockerfile copies exists, and .dockerignore lets it in, and nothing else."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = {
        name for names in re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile, re.MULTILINE) for name in names.split()
    }
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert copied == allowed
    assert all((ROOT / name).is_file() for name in copied)


def test_the_version_is_the_same_everywhere() -> None:
    """The image's label and the changelog have the tool's version."""
    version = astra_backup.TOOL_VERSION
    assert f'image.version="{version}"' in (ROOT / "Dockerfile").read_text()
    assert re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_ci_runs_what_a_person_runs() -> None:
    """.ci/run is `make test` and can be executed, and GitHub runs it."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().rstrip().endswith("\nmake test")
    assert (ROOT / ".github/workflows/ci.yml").read_text().count("- run: .ci/run\n") == 1


def test_no_registry_is_named() -> None:
    """No text file names the host of a package registry: where packages come from is the machine's business."""
    hosts = ("py" + "pi.", "python" + "hosted", "npm" + "js", "crates" + ".io", "proxy." + "golang", "deb.deb" + "ian")
    for path in text_files():
        text = path.read_text(errors="replace").lower()
        assert not [host for host in hosts if host in text], path


def test_pins_have_hashes() -> None:
    """Each requirement is an exact version with hashes, and every direct one is there."""
    for name in ("requirements", "requirements-dev"):
        pins = (ROOT / f"{name}.txt").read_text()
        entries = re.findall(r"^[a-z0-9].*(?:\n    .*)*", pins, re.MULTILINE)
        assert entries
        assert all(re.match(r"\S+==\S+ ", entry) and "--hash=sha256:" in entry for entry in entries)
        direct = re.findall(r"^([a-z][\w.-]*)", (ROOT / f"{name}.in").read_text(), re.MULTILINE)
        assert {package for package in direct if f"\n{package}==" not in pins} == set()


# ======================================================================================================================
# docs/FORMAT.md
# ======================================================================================================================


def manifest_example() -> Any:
    """The manifest in docs/FORMAT.md."""
    match = re.search(r"<!-- manifest -->\n```json\n(.*?)```", FORMAT, re.DOTALL)
    assert match
    return json.loads(match[1])


def field_names(kind: type[msgspec.Struct]) -> list[str]:
    """The fields of a record of the manifest."""
    return [item.name for item in msgspec.structs.fields(kind)]


def test_the_manifest_example_is_a_manifest() -> None:
    """The example reads, and has the fields that are written, in their order."""
    example = manifest_example()
    astra_backup.Manifest.decode(json.dumps(example).encode())
    optional = {"error", "warnings", "selection", "encryption", "shrunk_from", "types"}
    optional |= {"tables", "tables_ok", "tables_failed", "rows"}  # the example's keyspace has no tables
    assert list(example) == [name for name in field_names(astra_backup.Manifest) if name not in optional]
    assert list(example["source"]) == field_names(astra_backup.Source)
    assert list(example["totals"]) == [name for name in field_names(astra_backup.Totals) if name not in optional]
    (record,) = example["collections"]
    assert list(record) == [name for name in field_names(astra_backup.CollectionRecord) if name not in optional]


@pytest.mark.parametrize(
    "kind", [astra_backup.Manifest, astra_backup.Source, astra_backup.CollectionRecord, astra_backup.TableRecord]
)
def test_every_field_is_described(kind: type[msgspec.Struct]) -> None:
    """Each field of the manifest stands in a table of docs/FORMAT.md."""
    described = "\n".join(line for line in FORMAT.splitlines() if line.startswith("| `"))
    assert [name for name in field_names(kind) if f"`{name}`" not in described] == []


def test_every_wrapped_type_is_described() -> None:
    """Each type that the reader knows has an example in docs/FORMAT.md."""
    described = set(docs.VALUES) | {name.strip("`") for name in docs.OLD_VALUES}
    assert set(astra_backup._DECODERS) <= described


def test_every_example_is_decoded_to_what_the_server_held() -> None:
    """Each example's line reads back as the server's text."""
    for text in docs.VALUES.values():
        assert astra_backup.decode_document(astra_backup.encode_document(text.encode())[0]) == text.encode()


def test_the_digest_example_computes_the_content_digest(cli: Cli, source: DataApiEmulator) -> None:
    """The program in docs/FORMAT.md gives the manifest's content digest for every data file of a real snapshot."""
    load_catalog(source)
    assert cli.backup(source).code == 0
    match = re.search(r"```python\n(.*?)```", FORMAT, re.DOTALL)
    assert match
    names: dict[str, Any] = {}
    exec(match[1], names)
    (snapshot,) = cli.snapshots()
    records = json.loads((snapshot / "manifest.json").read_text())["collections"]
    assert len(records) == 4
    for record in records:
        assert names["content_digest"](snapshot / record["data_file"]) == record["content_digest"]


# ======================================================================================================================
# Every command of the README and of docs/BOX.md
# ======================================================================================================================

KEYS = ROOT / "tests" / "data" / "frozen-encrypted" / "keys"
COMMANDS = list(
    dict.fromkeys(
        line.split("  #")[0].strip()
        for text in (README, BOX)
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
        if re.match(r"\.venv/bin/python [a-z_]+\.py ?", line)
    )
)


@pytest.fixture(scope="module")
def _published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DataApiEmulator, BoxEmulator, Cli]]:
    """A database, its snapshot 20260616_085246 in a directory and in Box."""
    cli = warm_cli(tmp_path_factory, "published")
    with DataApiEmulator(token=TOKEN) as emulator, BoxEmulator(retry_after="0", client_secret=BOX_SECRET) as box:
        load_catalog(emulator)
        cli.with_box(box)
        snapshot = snapshot_of(emulator, cli).rename(cli.backups / "20260616_085246")
        assert cli.run("snapshots.py", "upload", snapshot.name).code == 0
        yield emulator, box, cli
    assert box.violations == []


def test_the_commands_are_found() -> None:
    """Both documents have commands of each script that are run below."""
    assert len(COMMANDS) >= 12
    assert {command.split()[1] for command in COMMANDS} == {*docs.SCRIPTS}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_ends_well(command: str, cli: Cli, _published: tuple[DataApiEmulator, BoxEmulator, Cli]) -> None:
    """Typed as it stands, with keys that there are, each command ends with exit code 0."""
    emulator, box, made = _published
    shutil.copytree(made.backups, cli.backups)
    cli.with_box(box)
    emulator.database.keyspaces["scratch"] = {}
    words = shlex.split(
        command.replace("age1…", str(KEYS / "recipients.txt")).replace("~/key.txt", str(KEYS / "x25519.txt"))
    )
    done = cli.run(*words[1:], ASTRA_DB_API_ENDPOINT=emulator.url)
    assert done.code == 0, done.err
    writes_here = "--keyspace scratch" in command and "--dry-run" not in command
    assert len(emulator.collections("scratch")) == (4 if writes_here else 0)


# ======================================================================================================================
# The demo
# ======================================================================================================================


def normal(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"\b(?:[0-9a-f]{16}|[0-9a-f]{40})\b", "#", line)
    return re.sub(r"[\d.,:]*\d|(?<=#)[kM]?B", "#", " ".join(line.split()))


def test_the_demo_shows_what_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The demo ends well, and every line of it in the README is one that it printed."""
    monkeypatch.setattr(demo, "SNAPSHOTS", tmp_path / "demo-backups")
    demo.demo()
    out, err = capfd.readouterr()
    printed = {normal(line) for line in (out + err).replace(str(tmp_path) + "/", "").splitlines()}
    match = re.search(r"<!-- demo -->\n```text\n(.*?)```", README, re.DOTALL)
    assert match
    assert [line for line in match[1].splitlines() if normal(line) not in printed] == []


def test_the_demo_fails_when_a_document_is_lost(
    cli: Cli, source: DataApiEmulator, target: DataApiEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's own comparison finds a restored database that lacks a document."""
    monkeypatch.setattr(demo, "TOKEN", TOKEN)
    load_catalog(source)
    assert cli.backup(source).code == 0
    (snapshot,) = cli.snapshots()
    assert cli.restore(target).code == 0
    demo.compare(source.url, snapshot, target.url)
    command = {"deleteOne": {"filter": {"_id": "plain"}}}
    demo.post(f"{target.url}/v1/{demo.KEYSPACE}/value_zoo", command)
    with pytest.raises(demo.DemoError):
        demo.compare(source.url, snapshot, target.url)
