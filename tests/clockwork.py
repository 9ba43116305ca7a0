"""Runs a script at another time of the calendar, without waiting for it and without starting Python each time.

    python -m tests.clockwork

imports what the scripts import, then forks for each job that it reads from stdin, one JSON object a line: `script`,
`argv`, `cwd`, `env`, `moment` (the clock's time for the first looks at it; then it goes on), `out` and `err` (files).
The child is the script's own `main` in a process of its own; the answer is its exit code. Only the clock is not real.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import astra_backup
import snapshots
from tests.conftest import Cli, Result, assert_no_secret
from tests.preload import preload
from tests.support import PING_KEY

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"astra_backup.py": astra_backup, "snapshots.py": snapshots}
LOOKS = 30  # how often the clock is looked at before it moves: on a slow machine a snapshot has the same name


def run_job(job: dict[str, Any]) -> NoReturn:
    """Become the script."""
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    for descriptor, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, job["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        os.dup2(os.open(name, flags, 0o600), descriptor)
    moment = datetime.fromisoformat(job["moment"])
    gap, looks = moment - datetime.now(UTC), itertools.count()
    for module in (astra_backup, snapshots):
        module.utc_now = lambda: moment if next(looks) < LOOKS else datetime.now(UTC) + gap
    sys.argv = [job["script"], *job["argv"]]
    astra_backup.run_command(SCRIPTS[job["script"]].main)


def serve() -> None:
    """Fork for each job; answer with its exit code."""
    preload()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run_job(json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


class Clockwork:
    """The client of such a process; a context manager."""

    def __enter__(self) -> Clockwork:
        command = [sys.executable, "-m", "tests.clockwork"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def run(
        self, script: str, argv: Sequence[str], *, moment: datetime, cwd: Path, env: Mapping[str, str]
    ) -> tuple[int, str, str]:
        """Run to the end: exit code, stdout, stderr."""
        assert self._process.stdin
        assert self._process.stdout
        files = {"out": cwd / ".clockwork-out", "err": cwd / ".clockwork-err"}
        job = {"script": script, "argv": argv, "moment": moment.isoformat(), "cwd": str(cwd), "env": dict(env)}
        self._process.stdin.write(json.dumps(job | {name: str(path) for name, path in files.items()}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, files["out"].read_text(), files["err"].read_text()


RUNNING: list[Clockwork] = []
"""The one of the module that is tested; the fixture `clockwork` starts it."""


def run_at(cli: Cli, moment: datetime, *arguments: object, script: str = "astra_backup.py", **environ: str) -> Result:
    """A script under a clock that is at `moment` when it starts, and goes on from there."""
    env = cli.environ | environ
    code, out, err = RUNNING[0].run(script, [*map(str, arguments)], moment=moment, cwd=cli.directory, env=env)
    assert_no_secret(out + err)
    assert PING_KEY not in out + err
    return Result(code, out, err)


def look_at(cli: Cli, moment: datetime, command: str, *arguments: object, **environ: str) -> Result:
    """A command of snapshots.py under such a clock."""
    return run_at(cli, moment, command, *arguments, script="snapshots.py", **environ)


def names(cli: Cli) -> list[str]:
    """The snapshots here."""
    return [path.name for path in cli.snapshots()]


if __name__ == "__main__":
    serve()
