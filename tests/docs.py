"""Prints the generated parts of docs/REFERENCE.md and docs/FORMAT.md; `make docs` runs it through cog."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

import click

import astra_backup
import restore
import snapshots

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("astra_backup.py", "restore.py", "snapshots.py")
COMMANDS: dict[str, click.Command] = {
    "astra_backup.py": astra_backup.main,
    "restore.py": restore.main,
    **{f"snapshots.py {name}": command for name, command in snapshots.main.commands.items()},
}
EXITS: dict[str, type[IntEnum]] = {
    "astra_backup.py": astra_backup.Exit,
    "restore.py": restore.RestoreExit,
    "snapshots.py": snapshots.SnapshotsExit,
}
HELP_WIDTH = 80
GROUPS = ("ASTR", "BACK", "BOX_")  # how variables begin, in the order of the table

NO_OPTION = {
    "ASTRA_DB_APPLICATION_TOKEN": "The token. Required for a backup and a restore.",
    "ASTRA_DB_APPLICATION_TOKEN_FILE": "A file that holds the token, instead.",
    "BACKUP_PING_URL_FILE": "A file that holds the URL, instead.",
    "BOX_CLIENT_ID": "The Box application's client id; needed with Box.",
    "BOX_CLIENT_SECRET": "The application's secret; needed with Box.",
    "BOX_CLIENT_SECRET_FILE": "A file that holds the secret, instead.",
    "BOX_ENTERPRISE_ID": "The enterprise whose service account uploads; needed with Box, or `BOX_USER_ID`.",
    "BOX_USER_ID": "The user who uploads, instead.",
    "BOX_FOLDER_ID": "The number of the folder for the snapshots; needed with Box.",
    "BOX_BASE_URL": "Another address of Box's API, for gateways and tests.",
    "BOX_UPLOAD_URL": "Another address for uploads, likewise.",
}
"""Variables that no option sets: secrets never stand on a command line."""

VALUES = {
    "datetime": '{"_id":"1","at":{"$date":1073692800123}}',
    "timestamp_ms": '{"_id":"1","at":{"$date":253402300800000}}',
    "uuid": '{"_id":{"$uuid":"0193e1a6-71b7-7c4e-9d55-1f5f0a1b2c3d"}}',
    "objectid": '{"_id":{"$objectId":"507f1f77bcf86cd799439011"}}',
    "bytes_b64": '{"_id":"1","raw":{"$binary":"AAECAwT/"}}',
    "decimal": '{"_id":"1","n":12345678901234567890.5,"max":1E+400}',
    "wire": '{"_id":"1","at":{"$date":"abc"}}',
    "`$vector`, binary": '{"_id":"1","$vector":{"$binary":"PczMzT5MzM0+mZma"}}',
    "`$vector`, array": '{"_id":"1","$vector":[0.1,0.20000000298023224,1E-7]}',
    "everything else": '{"_id":1E+2,"n":123456789012345678901234567890,"s":"\\u00fc","t":[true,null,0.10]}',
}
"""A document of each type, as the server holds it."""

OLD_VALUES = {
    "`date`": '{"_id":"1","day":{"$backupType":"date","value":"2004-01-10"}}',
    "`set`": '{"_id":"1","tags":{"$backupType":"set","value":["a","b"]}}',
    "naive `datetime`": '{"_id":"1","at":{"$backupType":"datetime","value":"2004-01-10T00:00:00.123"}}',
    "another offset": '{"_id":"1","at":{"$backupType":"datetime","value":"2004-01-10T02:00:00+02:00"}}',
}
"""Lines of older scripts."""


def print_help(script: str) -> None:
    """Print a script's `--help`, in a block of code."""
    command = COMMANDS[script]
    with command.make_context(script, [], resilient_parsing=True, terminal_width=HELP_WIDTH) as context:
        print(f"```text\n{command.get_help(context)}\n```")


def print_exit_codes(script: str) -> None:
    """Print a script's exit codes and their meanings, from its enum."""
    _print_table(("code", "meaning"), ((str(int(code)), _meaning(code)) for code in EXITS[script]))


def print_variables() -> None:
    """Print every environment variable: those of the options of all scripts, and those that no option sets."""
    rows: list[tuple[str, ...]] = []
    options: dict[str | None, click.Parameter] = {}
    for command in COMMANDS.values():
        for option in command.params:
            options.setdefault(option.name, option)
    for each in options.values():
        if isinstance(each, click.Option) and isinstance(each.envvar, str):
            shown = str(each.default).lower() if each.is_flag else each.default
            default = "" if each.default in (None, ()) or not each.show_default else f"`{shown}`"
            rows.append((f"`{each.envvar}`", f"`{each.opts[0]}`", each.help or "", default))
    rows += [(f"`{variable}`", "", meaning, "") for variable, meaning in NO_OPTION.items()]
    _print_table(("variable", "option", "meaning", "default"), sorted(rows, key=lambda row: GROUPS.index(row[0][1:5])))


def print_metrics() -> None:
    """Print the metrics and what they mean."""
    rows = ((f"`{astra_backup.METRICS_PREFIX}{name}`", meaning) for name, meaning in astra_backup.METRICS.items())
    _print_table(("metric", "meaning"), rows)


def print_values() -> None:
    """Print a document of each type and the line that it becomes."""
    for kind, text in VALUES.items():
        line = astra_backup.encode_document(text.encode())[0].decode()
        print(f"**{kind.strip()}**\n\n```text\nserver  {text}\nline    {line}\n```\n")


def print_old_values() -> None:
    """Print lines of older scripts and the documents that they become."""
    rows = (
        (kind, f"`{line}`", f"`{astra_backup.decode_document(line.encode()).decode()}`")
        for kind, line in OLD_VALUES.items()
    )
    _print_table(("in an older line", "line", "restored as"), rows)


def print_make_targets() -> None:
    """Print the Makefile's targets and what they do, from its own comments."""
    rows = re.findall(r"^([a-z0-9-]+):.*?## (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    _print_table(("command", "what it does"), ((f"`make {name}`", text) for name, text in rows))


def _meaning(code: IntEnum) -> str:
    return str(getattr(code, "meaning"))  # noqa: B009  (both enums add it to their members)


def _print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |")
