"""Many faults at once, and signals, at random: `python -m tests.trials.chaos [--count 300] [--seed N] [--processes 2]`.

Each round backs up a small database and restores it, each with some faults of the server drawn at random, and with a
signal to it in every second run: SIGKILL, SIGTERM, SIGINT, or SIGSTOP and a while later SIGCONT.
A run must end, without a traceback, with a documented exit code; 0 must be true; what has a final name must verify;
and the next run, with a server that is well, must complete what is missing. Raises AssertionError at the first round
that is otherwise, with its number: `--first N --count 1` plays it again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from astra_backup import RETRYABLE_CODES
from tests.conftest import KEYSPACE, TOKEN, Cli, Result
from tests.emulators.data_api import DataApiEmulator
from tests.support import held
from tests.trials.kills import check_final_names, final_names

MAX_RUN_S = 90  # what a run may take; the retry budget is 2 s
READS = ("findCollections", "find")
WRITES = (*READS, "createCollection", "insertMany")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
STOPPED = {-signal.SIGKILL, *(128 + number for number in (signal.SIGTERM, signal.SIGINT))}
DEFINITIONS: tuple[dict[str, Any], ...] = ({"indexing": {"deny": ["n"]}}, {"vector": {"dimension": 4}})

# ======================================================================================================================
# What may happen
# ======================================================================================================================


def actions(chance: random.Random) -> Iterator[dict[str, Any]]:
    """One of each fault that may pass."""
    for status in (429, 500, 502, 503, 504):
        yield {"action": "status", "status": status, "done": chance.random() < 0.3}
    yield {"action": "status", "status": 429, "headers": {"Retry-After": "1"}}
    for code in sorted(RETRYABLE_CODES):
        yield {"action": "error", "errorCode": code}
    for name in ("reset", "reset_after", "truncate", "reset_inside", "invalid_json", "html", "silence"):
        yield {"action": name}
    yield {"action": "delay", "seconds": chance.uniform(0, 1.5)}
    yield {"action": "trickle", "interval": 0.001}
    yield {"action": "down", "seconds": chance.uniform(0, 1)}
    for name in ("empty_page", "repeat_page", "bad_page_state"):
        yield {"action": name, "command": "find"}


def random_faults(chance: random.Random, commands: tuple[str, ...], names: list[str]) -> list[dict[str, Any]]:
    """Up to four rules for the emulator."""
    rules = []
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        rule = {"command": chance.choice(commands), **chance.choice(list(actions(chance)))}
        if rule["command"] in ("find", "insertMany") and chance.random() < 0.5:
            rule["collection"] = chance.choice(names)
        how_often: list[dict[str, Any]] = [
            {"times": chance.randint(1, 4), "skip": chance.randint(0, 9)},
            {"every": chance.randint(2, 6)},
            {"for_s": chance.uniform(0, 3), "times": None, "skip": chance.randint(0, 9)},
            {"times": None, "skip": chance.randint(0, 20)},
        ]
        rules.append(rule | ({"times": 1} if rule["action"] == "down" else chance.choice(how_often)))
    return rules


def fill(emulator: DataApiEmulator, chance: random.Random) -> list[str]:
    """Make one to four collections of up to 400 documents; return their names."""
    names = [f"c{number}" for number in range(chance.randint(1, 4))]
    for name in names:
        definition = chance.choice(DEFINITIONS)
        emulator.create(KEYSPACE, name, definition)
        vector = ',"$vector":{"$binary":"PoAAAD8AAAA/QAAAP4AAAA=="}' if "vector" in definition else ""
        for number in range(chance.choice((0, 3, 60, 400))):
            emulator.put(KEYSPACE, name, f'{{"_id":"d{number:05}"{vector},"n":{number}}}')
    return names


def is_ready(pid: int) -> bool:
    """Whether a run handles signals already."""
    (caught,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def disturb(running: subprocess.Popen[str], number: signal.Signals, chance: random.Random) -> None:
    """Send a signal to a run at some moment."""
    after_s, pause_s = chance.uniform(0, 1), chance.uniform(0.1, 3)
    try:
        while not is_ready(running.pid):
            time.sleep(0.02)
        time.sleep(after_s)
        os.kill(running.pid, number)
        if number is signal.SIGSTOP:
            time.sleep(pause_s)
            os.kill(running.pid, signal.SIGCONT)
    except (ProcessLookupError, FileNotFoundError, ValueError):  # it has ended
        pass


# ======================================================================================================================
# A round
# ======================================================================================================================


def run(cli: Cli, chance: random.Random, *command: object) -> Result:
    """Run a script to its end, with a signal or without. Raises AssertionError if it hangs, with its stacks."""
    running = cli.start(*command, "--retry-budget", 2, "--request-timeout-ms", 1000)  # type: ignore[arg-type]
    if chance.random() < 0.5:
        number, own = chance.choice(SIGNALS), random.Random(chance.random())
        threading.Thread(target=disturb, args=(running, number, own), daemon=True).start()
    try:
        out, err = running.communicate(timeout=MAX_RUN_S)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGABRT)
        raise AssertionError(f"{command} hangs: {running.communicate()[1]}") from None
    assert "Traceback" not in err, err
    assert "This is a bug" not in err, err
    return Result(running.returncode, out, err)


def heal(emulator: DataApiEmulator) -> None:
    """From now on the server is well."""
    emulator.faults = []
    while not emulator.is_up:  # it comes back by itself
        time.sleep(0.05)


def back_up(cli: Cli, chance: random.Random, source: DataApiEmulator, names: list[str]) -> str:
    """A backup that is disturbed, and one that is not; return how the first ended."""
    source.faults = random_faults(chance, READS, names)
    result = run(cli, chance, "astra_backup.py", "--no-box", "--api-endpoint", source.url)
    assert result.code in {0, 1, 2} | STOPPED, result
    found = check_final_names(cli.backups)
    assert found == (result.code in (0, 2)) or result.code in STOPPED, result
    heal(source)
    again = cli.backup(source)
    assert again.code in ((0, 5) if result.code else (0,)), (result, again)
    for path in final_names(cli.backups)[:-1]:
        shutil.rmtree(path)
    return f"backup {result.code}"


def restore(cli: Cli, chance: random.Random, source: DataApiEmulator, names: list[str]) -> str:
    """A restore that is disturbed, and one that goes on; return how the first ended."""
    with DataApiEmulator(token=TOKEN, latency_s=chance.choice((0, 0.01)), create_s=0.1) as target:
        target.faults = random_faults(chance, WRITES, names)
        policy = ["--on-existing", chance.choice(("fail", "skip", "overwrite", "drop")), "--yes"]
        command = ["restore.py", "--api-endpoint", target.url, *policy]
        result = run(cli, chance, *command, "--workers", chance.randint(1, 6))
        assert result.code in {0, 1, 2, 4} | STOPPED, result
        time.sleep(0.05)  # what was under way reaches the server
        heal(target)
        if result.code:
            again = cli.run(*command, *(["--resume"] if result.code not in (1, 4) else []))
            assert again.code == 0, (result, again)
        assert held(target) == held(source), result
        assert target.missing_indexes(KEYSPACE) == {}, result
        assert not list(cli.backups.glob(".restore-*")), result
    return f"restore {result.code}"


def play(seed: int, number: int) -> list[str]:
    """One round; the same seed and number draw the same."""
    chance = random.Random(f"{seed} {number}")
    with (
        tempfile.TemporaryDirectory() as directory,
        DataApiEmulator(token=TOKEN, latency_s=chance.choice((0, 0.01, 0.1))) as source,
    ):
        cli = Cli(Path(directory))
        cli.environ["PYTHONFAULTHANDLER"] = "1"  # SIGABRT prints the stacks of all threads
        names = fill(source, chance)
        try:
            return [step(cli, chance, source, names) for step in (back_up, restore)]
        except Exception as error:
            raise AssertionError(f"round {number}: {type(error).__name__}: {error}") from error


def main() -> None:
    """Print how the disturbed runs ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.trials.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="rounds")
    parser.add_argument("--first", type=int, default=0, help="the number of the first round")
    parser.add_argument("--seed", type=int, default=20260616)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    started = time.monotonic()
    ended: Counter[str] = Counter()
    with ProcessPoolExecutor(options.processes) as pool:
        numbers = range(options.first, options.first + options.count)
        for steps in pool.map(play, itertools.repeat(options.seed), numbers):
            ended.update(steps)
    print(f"{options.count} rounds: {dict(sorted(ended.items()))}; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
