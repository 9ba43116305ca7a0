"""The command line as a person meets it: help that fits, durations, -qv, variables."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests import docs
from tests.conftest import KEYSPACE, ROOT, Cli, load_catalog
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator

MOST_LINES = {"astra_backup.py": 80, "restore.py": 95}


@pytest.mark.parametrize("command", docs.COMMANDS)
def test_the_help_fits_the_screen(cli: Cli, command: str) -> None:
    """80 columns, two screens for a backup, 95 lines for a restore; every option has a text; headings are in order."""
    script, *rest = command.split()
    result = cli.run(script, *rest, "-h", COLUMNS="200")
    lines = result.out.splitlines()
    assert result.code == 0, result.err
    assert max(map(len, lines)) <= 80
    assert len(lines) <= MOST_LINES.get(command, 80)
    headings = [line for line in lines if re.fullmatch(r"[A-Z][\w ]+:", line)]
    wanted = ["Where to:", "Database:", "Behaviour:", "Output:", "Rarely needed:"]
    assert [heading for heading in headings if heading in wanted] == [each for each in wanted if each in headings]
    assert "Options:" not in headings
    assert len(headings) >= 3
    assert not [line for line in lines if re.fullmatch(r" +-[^ ]+( [A-Z]+)?", line) and len(line.strip()) < 24]


def test_the_examples_of_the_help_run(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """Each example of each script's help, typed as it stands, ends with 0 against the emulators."""
    load_catalog(source)
    source.create(KEYSPACE, "docs")
    source.database.keyspaces["scratch"] = {}
    cli.with_box(box).environ |= {"ASTRA_DB_API_ENDPOINT": source.url, "BACKUP_WORKERS": "2"}
    done = []
    for script in docs.SCRIPTS:
        text = cli.run(script, "--help").out
        examples = text.split("Examples:")[1].split("\n\n")[0]
        for line in re.findall(r"^ +python (.*?)(?:   .*)?$", examples, re.MULTILINE):
            for command in line.split("&& python "):
                words = shlex.split(command)
                is_restore = words == ["restore.py", "20260616_085246"]  # to where the snapshot came from: it asks
                words = [max(cli.snapshots()).name if word == "20260616_085246" else word for word in words]
                result = cli.run(*words, *(["-y", "--on-existing", "skip"] if is_restore else []))
                assert result.code == 0, (command, result.err)
                done.append(words[0])
    assert {script: done.count(script) >= 3 for script in docs.SCRIPTS} == dict.fromkeys(docs.SCRIPTS, True)


@pytest.mark.parametrize(
    ("options", "lines"),
    [("-qv", "DEBUG"), ("-vq", ""), ("-q -v", "DEBUG"), ("-v --quiet", ""), ("-q", ""), ("-v", "DEBUG")],
)
def test_of_quiet_and_verbose_the_last_one_wins(source: DataApiEmulator, cli: Cli, options: str, lines: str) -> None:
    """Also as -qv: verbose shows more than a line of information, quiet nothing at all after a success."""
    source.create(KEYSPACE, "docs")
    result = cli.backup(source, *options.split())
    assert result.code == 0
    assert bool(result.err) == bool(lines), result.err
    broken = cli.run("astra_backup.py", *options.split(), "--no-box")
    assert ("Traceback" in broken.err) == bool(lines), "a mistake is told in the form that the options ask for"


def test_a_value_that_looks_like_an_option_is_a_value(cli: Cli) -> None:
    """The early look at the command line is the parser's: `--keyspace --json` asks for no JSON."""
    result = cli.run("astra_backup.py", "--no-box", "--keyspace", "--json")
    assert (result.code, result.out) == (1, "")
    result = cli.run("astra_backup.py", "--nonsense", "--json", "--log-format=json")
    assert json.loads(result.err.splitlines()[-1])["level"] == "error"
    assert result.json["exit_code"] == 1


@pytest.mark.parametrize(
    ("value", "is_good"),
    [
        *((value, True) for value in ("90", "90s", "5m", "1h", "1d", "0.5", "1500ms")),
        *((value, False) for value in ("5 m", "m", "-1", "1w", "inf", "nan", "1e3", "５")),
    ],
)
def test_durations_take_units_everywhere(source: DataApiEmulator, cli: Cli, value: str, is_good: bool) -> None:
    """Seconds, minutes, hours, days; a bare number keeps the unit in the option's name."""
    source.create(KEYSPACE, "docs")
    for name in ("BACKUP_RETRY_BUDGET", "BACKUP_REQUEST_TIMEOUT_MS"):
        if value == "0.5" and name.endswith("MS"):
            continue  # of a millisecond
        result = cli.backup(source, "--check", **{name: value if value != "90" else "90000"})
        assert result.code == (0 if is_good else 1), (name, result.err)
        if not is_good:
            assert "is not a duration" in result.err
    assert cli.backup(source, "--check", BACKUP_REQUEST_TIMEOUT_MS="0").code == 1
    assert cli.stored("status", "--no-box", "--max-age", value).code == 1


def test_a_bare_number_is_in_the_options_own_unit(source: DataApiEmulator, cli: Cli) -> None:
    """--request-timeout-ms 300 is 300 milliseconds, and 0.3s the same; a slow page fails the collection."""
    source.create(KEYSPACE, "docs")
    source.put(KEYSPACE, "docs", '{"_id":1}')
    source.latency_s = 0.8
    for value in ("300", "0.3s", "300ms"):
        assert cli.backup(source, "--request-timeout-ms", value, "--retry-budget", "0").code != 0, value
    assert cli.backup(source, "--request-timeout-ms", "1m").code == 0


def test_backup_box_switches_box_off(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """BACKUP_BOX=false instead of --no-box, in `.env` too; an option wins over it; nonsense is 1."""
    source.create(KEYSPACE, "docs")
    cli.environ["ASTRA_DB_API_ENDPOINT"] = source.url
    (cli.directory / ".env").write_text("BACKUP_BOX=false\n")
    assert cli.run("astra_backup.py").code == 0
    assert cli.stored("list").code == 0
    assert cli.run("astra_backup.py", "--box").code == 1, "Box is not configured"
    assert cli.run("astra_backup.py", BACKUP_BOX="perhaps").code == 1
    assert cli.with_box(box).run("astra_backup.py", BACKUP_BOX="true").code == 0
    assert len(box.files()) == 1


def test_check_finds_that_box_takes_no_file_of_that_size(source: DataApiEmulator, box: BoxEmulator, cli: Cli) -> None:
    """Before anything is read: the last snapshot is larger than the largest file of the account."""
    load_catalog(source)
    cli.with_box(box).environ["ASTRA_DB_API_ENDPOINT"] = source.url
    assert cli.run("astra_backup.py").code == 0
    assert cli.run("astra_backup.py", "--check").code == 0
    box.max_upload_size = 1000
    result = cli.run("astra_backup.py", "--check")
    assert result.code == 1
    assert re.search(r"✗ Box file size +at most 1\.0 kB, the last snapshot", result.out)
    assert "--collection" in result.out


def test_y_is_yes(source: DataApiEmulator, cli: Cli) -> None:
    """-y answers the question that a restore to where the snapshot came from asks."""
    source.create(KEYSPACE, "docs")
    assert cli.backup(source).code == 0
    assert cli.restore(source, "--on-existing", "skip").code == 4
    assert cli.restore(source, "--on-existing", "skip", "-y").code == 0


def test_a_variable_means_the_same_everywhere() -> None:
    """One variable, one option, in all commands; what is a flag here is no value there."""
    seen: dict[str, str] = {}
    for command in docs.COMMANDS.values():
        for param in command.params:
            if isinstance(param.envvar, str):
                assert seen.setdefault(param.envvar, param.opts[0]) == param.opts[0]
    assert seen["BACKUP_BOX"] == "--box"


def test_nothing_searches_the_command_line_as_text() -> None:
    """sys.argv is given to the parser, and nothing else looks into it."""
    for script in docs.SCRIPTS:
        uses = re.findall(r"[^\n]*sys\.argv[^\n]*", (ROOT / script).read_text())
        assert [use.strip() for use in uses] in ([], ["early.update(read_early(command, sys.argv[1:]))"])
