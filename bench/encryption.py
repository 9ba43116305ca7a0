"""What encryption costs: CPU and peak memory of a backup, a verification and a restore of 50,000 documents.

python -m bench.encryption [COUNT [ROUNDS]]       prints a table and fails if a limit is broken

In clear and encrypted in turns, so that what disturbs the machine disturbs both; CPU is the median, memory the worst.
"""

from __future__ import annotations

import sys

from bench.backup import Trial, trial
from bench.data import Collection
from bench.measure import ROOT, Usage, environment, middle, run, script, server

COUNT, ROUNDS, FLOATS = 50_000, 3, 384
MAX_CPU_PERCENT, MAX_GROWTH_MIB = 30, 20
KEYS = ROOT / "tests" / "data" / "frozen-encrypted" / "keys"
RECIPIENT = next(line for line in (KEYS / "recipients.txt").read_text().splitlines() if line.startswith("age1"))
TO, KEY = ("--encrypt-to", RECIPIENT), ("--identity", str(KEYS / "x25519.txt"))


def measure(count: int, rounds: int) -> dict[str, list[Usage]]:
    """Every step in both forms, by its name."""
    with trial([Collection("docs", "binary", FLOATS, count)]) as there:
        found: dict[str, list[Usage]] = {}
        for _ in range(rounds):
            for form, to, key in (("clear", (), ()), ("encrypted", TO, KEY)):
                found.setdefault(f"backup {form}", []).append(there.ours("docs", options=to))
                found.setdefault(f"verify {form}", []).append(
                    run(script("restore.py", "--verify-only", str(there.snapshot()), *key), there.cwd, {})
                )
                found.setdefault(f"restore {form}", []).append(restore(there, key))
        return found


def restore(there: Trial, key: tuple[str, ...]) -> Usage:
    """Restore into an empty server."""
    with server("data_api") as target:
        return run(script("restore.py", str(there.snapshot()), *key), there.cwd, environment(target.url))


def main() -> int:
    """Print the table; 1 if a limit is broken."""
    given = [int(argument) for argument in sys.argv[1:3]]
    count, rounds = given + [COUNT, ROUNDS][len(given) :]
    found = measure(count, rounds)
    is_good = True
    print(f"{count:,} documents of {FLOATS} floats, {rounds} rounds\n")
    print(
        "| step | CPU in clear | encrypted | more | memory in clear | encrypted | more |\n|---|---|---|---|---|---|---|"
    )
    for step in ("backup", "verify", "restore"):
        clear, encrypted = found[f"{step} clear"], found[f"{step} encrypted"]
        cpu = [middle(usages, of="cpu_s") for usages in (clear, encrypted)]
        rss = [max(usage.peak_rss_mib for usage in usages) for usages in (clear, encrypted)]
        percent, growth = (cpu[1] / cpu[0] - 1) * 100, rss[1] - rss[0]
        is_good &= percent <= MAX_CPU_PERCENT and growth <= MAX_GROWTH_MIB
        print(
            f"| {step} | {cpu[0]:.2f} s | {cpu[1]:.2f} s | {percent:+.0f} %"
            f" | {rss[0]:.0f} MiB | {rss[1]:.0f} MiB | {growth:+.0f} MiB |"
        )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
