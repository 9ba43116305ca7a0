"""Runs the two scripts in processes that this machine treats badly: killed at a step, out of space, in a hurry.

`python -m tests.sabotage` imports both scripts once, reads jobs from stdin and forks for each: a tenth of the time of
a new process. What is done to a fork, before the script begins, is listed in SABOTAGES. Nothing of the scripts is
replaced: what is changed is the operating system's answers, the clock, the limits and the user.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import functools
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import IO, Any

from tests.conftest import ROOT, Cli, Result, assert_no_secret
from tests.preload import preload

# ------------------------------------------------------------------------------------------------ in the fork

WRITING = frozenset({"mkdir", "create", "write"})
"""Steps that need space."""


class Steps:
    """Counts what a process does to files below a directory, and lets one step be the last, or go wrong.

    `at` counts from 1. `how`: "kill before", "kill after" and "kill within" (half of a write) end the process,
    "fail" lets the step fail with `error` (its name in errno), "fail on" that step and all later ones that need space.
    `log` is a file that gets a line for each step.
    """

    def __init__(self, directory: str, log: str, at: int = 0, how: str = "", error: str = "ENOSPC") -> None:
        self.directory = os.path.join(os.path.realpath(directory), "")
        self.at, self.how, self.errno = at, how, getattr(errno, error)
        self.count = 0
        self.lock = threading.RLock()
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.write = os.write
        self.names: dict[int, str] = {}

    def install(self) -> None:
        """From now on every step goes through here."""
        plain_open, plain_file = os.open, builtins.open

        def opened(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if not flags & os.O_CREAT:
                descriptor = plain_open(path, flags, *rest, **named)
            else:
                descriptor = self.step("create", path, lambda: plain_open(path, flags, *rest, **named))
            self.names[descriptor] = str(path)
            return descriptor

        def made(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            found = plain_file(file, mode, *rest, **named)
            is_ours = isinstance(file, int) and set(mode) & set("wa+")
            return Written(found, self, self.names.get(file, "")) if is_ours else found

        os.open, builtins.open = opened, made  # type: ignore[assignment]
        for name in ("mkdir", "replace", "rename", "unlink", "rmdir"):
            setattr(os, name, self.wrapped(name, getattr(os, name)))
        plain_fsync = os.fsync
        os.fsync = lambda fd: self.step("fsync", self.names.get(fd, ""), lambda: plain_fsync(fd))  # type: ignore[assignment]

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of `os` whose first argument is a path, as a step."""
        return lambda path, *rest, **named: self.step(name, path, lambda: function(path, *rest, **named))

    def step(self, kind: str, path: Any, act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Do a step, unless it is the one."""
        full = os.path.realpath(os.fspath(path)) if path else ""
        if not full.startswith(self.directory):
            return act()
        with self.lock:
            self.count += 1
            is_due = self.count == self.at
            self.write(self.log, f"{self.count} {kind} {os.path.basename(full)}\n".encode())
            if is_due and self.how.startswith("kill"):
                if self.how == "kill after":
                    act()
                elif self.how == "kill within" and half:
                    half()
                os.kill(os.getpid(), signal.SIGKILL)
            goes_on = self.how == "fail on" and self.at and self.count > self.at
            if (is_due and self.how.startswith("fail")) or (goes_on and kind in WRITING):
                raise OSError(self.errno, os.strerror(self.errno), str(path))
        return act()


class Written:
    """A file that is open for writing; each write is a step."""

    def __init__(self, file: Any, steps: Steps, name: str) -> None:
        self._file, self._steps, self._name = file, steps, name

    def write(self, data: Any) -> Any:
        """Write, or do not."""

        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        return self._steps.step("write", self._name, lambda: self._file.write(data), half)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


def count_steps(**options: Any) -> None:
    """See Steps."""
    Steps(**options).install()


def set_limits(**limits: int) -> None:
    """Resource limits by their names: FSIZE, NOFILE, NPROC, AS."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def set_user(uid: int) -> None:
    """Be another user, with none of root's rights."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def speed_up(factor: float) -> None:
    """Let time pass faster for whoever waits: two minutes of back-off are over in two seconds."""
    monotonic, sleep, begin = time.monotonic, time.sleep, time.monotonic()
    event_wait = threading.Event.wait

    def wait(self: threading.Event, timeout: float | None = None) -> bool:
        return event_wait(self, None if timeout is None else timeout / factor)

    time.monotonic = lambda: begin + (monotonic() - begin) * factor
    time.sleep = lambda seconds: sleep(seconds / factor)
    threading.Event.wait = wait  # type: ignore[method-assign]


def draw_always(value: float) -> None:
    """Chance always draws the same wait: one that is as long as any can be, or longer."""
    random.uniform = lambda _low, _high: value  # type: ignore[assignment]


def turn_back_clock(after: int, seconds: float) -> None:
    """The wall clock jumps back by so many seconds when it has been read so many times."""
    import astra_backup

    reads = 0

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            nonlocal reads
            reads += 1
            return datetime.now(tz) - timedelta(seconds=seconds if reads > after else 0)

    astra_backup.datetime = Clock  # type: ignore[misc]


def close_descriptors(numbers: list[int]) -> None:
    """Begin without stdin, stdout or stderr."""
    for number in numbers:
        os.close(number)
        if number:
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)


def refuse(**errors: str) -> None:
    """A file system that cannot do something: the error, by its name in errno, of each of these calls.

    `flock`, `fsync`, `rename` (of whatever), and `fsync_directory`.
    """

    def refusing(error: str, plain: Callable[..., Any], is_meant: Callable[[Any], bool]) -> Callable[..., Any]:
        def call(subject: Any, *rest: Any, **named: Any) -> Any:
            if is_meant(subject):
                raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))
            return plain(subject, *rest, **named)

        return call

    def is_directory(descriptor: int) -> bool:
        return stat.S_ISDIR(os.fstat(descriptor).st_mode)

    for name, error in errors.items():
        if name == "flock":
            fcntl.flock = refusing(error, fcntl.flock, lambda _: True)
        elif name == "rename":
            os.rename = os.replace = refusing(error, os.rename, lambda _: True)
        else:
            os.fsync = refusing(error, os.fsync, is_directory if name == "fsync_directory" else lambda _: True)


def leave_free(free_bytes: int) -> None:
    """Every file system says that it has so much room left."""
    plain = os.statvfs

    def statvfs(path: Any) -> Any:
        found = plain(path)
        blocks = free_bytes // found.f_frsize
        return os.statvfs_result((*found[:3], blocks, blocks, *found[5:]))

    os.statvfs = statvfs


def break_function(module: str, name: str, message: str) -> None:
    """A bug: a function of the scripts raises what nobody foresaw."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    *owners, name = name.split(".")
    setattr(functools.reduce(getattr, owners, sys.modules[module]), name, broken)


def fix_identity(text: str) -> None:
    """The identity that an encrypted backup makes for itself is this one."""
    import types

    import pyrage

    known = pyrage.x25519.Identity.from_str(text)
    made = types.SimpleNamespace(generate=lambda: known, from_str=pyrage.x25519.Identity.from_str)
    pyrage.x25519 = types.SimpleNamespace(Identity=made, Recipient=pyrage.x25519.Recipient)


SABOTAGES: dict[str, Callable[..., None]] = {
    "umask": lambda mask: os.umask(mask) and None,
    "steps": count_steps,
    "limits": set_limits,
    "uid": set_user,
    "speed": speed_up,
    "draw": draw_always,
    "clock": turn_back_clock,
    "closed": close_descriptors,
    "bug": break_function,
    "identity": fix_identity,
    "refuses": refuse,
    "free": leave_free,
}


def apply(sabotage: dict[str, Any]) -> None:
    """Do to this process what is listed; limits and the user come last."""
    for name, value in sorted(sabotage.items(), key=lambda item: item[0] in ("limits", "uid")):
        function = SABOTAGES[name]
        function(**value) if isinstance(value, dict) else function(value)


def fork_for_each_job() -> None:
    """Read a job a line; print the process's number when it begins and its code when it has ended."""
    sys.path.insert(0, str(ROOT))
    import astra_backup
    import restore
    import snapshots

    modules = {"astra_backup.py": astra_backup, "restore.py": restore, "snapshots.py": snapshots}
    preload()
    for line in sys.stdin:
        job = json.loads(line)
        if (child := os.fork()) == 0:
            os.environ.clear()
            os.environ.update(job["environ"])
            os.chdir(job["directory"])
            for number, path in enumerate([os.devnull, *job["outputs"]]):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), number)
            os.closerange(3, 64)
            sys.argv = job["command"]
            apply(job["sabotage"])
            astra_backup.run_command(modules[sys.argv[0]].main)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


# ------------------------------------------------------------------------------------------------ in the test


class Running:
    """A command under way."""

    def __init__(self, cli: SabotagedCli, pid: int) -> None:
        self.pid = pid
        self._cli = cli

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Result:
        """What it did; what it said holds no secret."""
        code = int(self._cli.ask())
        out, err = (path.read_text(errors="replace") for path in self._cli.outputs)
        assert_no_secret(out + err)
        return Result(code, out, err)


class SabotagedCli(Cli):
    """Runs the scripts in forks of one process, one at a time; `sabotage` says what is done to the next ones."""

    _server: subprocess.Popen[str] | None = None

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.sabotage: dict[str, Any] = {}
        self.outputs = [directory.with_name(f"{directory.name}.{name}") for name in ("out", "err")]

    def begin(self, script: str, *arguments: object, **environ: str) -> Running:
        """Start a command; the one before must have ended."""
        for path in self.outputs:
            path.write_bytes(b"")
        job = {
            "command": [script, *map(str, arguments)],
            "environ": self.environ | environ,
            "directory": str(self.directory),
            "outputs": [str(path) for path in self.outputs],
            "sabotage": self.sabotage,
        }
        stdin = self.server().stdin
        assert stdin
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        return Running(self, int(self.ask()))

    def run(self, script: str, *arguments: object, **environ: str) -> Result:
        """Run to the end; a secret in what it says is a failure of every test."""
        running = self.begin(script, *arguments, **environ)
        try:
            return running.wait()
        except BaseException:  # a command that hangs must not hold up the next one
            self.stop()
            raise

    def ask(self) -> str:
        """The next line from the server."""
        stdout: IO[str] | None = self.server().stdout
        assert stdout
        return stdout.readline()

    @classmethod
    def server(cls) -> subprocess.Popen[str]:
        """The process that forks."""
        if SabotagedCli._server is None:
            command = [sys.executable, "-m", "tests.sabotage"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            SabotagedCli._server = subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
        assert SabotagedCli._server
        return SabotagedCli._server

    @classmethod
    def stop(cls) -> None:
        """End it and its fork."""
        if SabotagedCli._server:
            os.killpg(SabotagedCli._server.pid, signal.SIGKILL)
            SabotagedCli._server.wait()
            SabotagedCli._server = None


if __name__ == "__main__":
    fork_for_each_job()
