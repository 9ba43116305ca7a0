"""What a person sees: runs the real scripts on a pseudo-terminal and keeps the screen, cell by cell.

    python -m tests.screens        draws docs/screen-*.svg anew, with emulators; the tests use `watch`

`Screen` knows what rich and our scripts send (text, line feeds, cursor up, erase, colours) and refuses anything else.
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator

ROOT = Path(__file__).resolve().parent.parent
_ESCAPE = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])")
Cell = tuple[str, str]


class Screen:
    """A terminal of so many columns and lines. `rows` are the lines on it, `scrolled` those that left it at the top."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.rows: list[list[Cell]] = [[]]
        self.scrolled: list[list[Cell]] = []
        self._row = self._column = 0
        self._style = ""

    def feed(self, text: str) -> None:
        """Show what a program sent."""
        position = 0
        while position < len(text):
            escape = _ESCAPE.match(text, position)
            if escape:
                self._control(escape[1], escape[2])
                position = escape.end()
                continue
            self._put(text[position])
            position += 1

    def text(self) -> str:
        """The screen without colours, without blanks at the ends of lines."""
        return "\n".join("".join(char for char, _ in row).rstrip() for row in self.rows).rstrip()

    def ansi(self) -> str:
        """The screen with colours."""
        rows = self.rows if any(self.rows[-1]) else self.rows[:-1]
        return "\n".join("".join(f"\x1b[0m{style}{char}" for char, style in row) + "\x1b[0m" for row in rows)

    def _put(self, char: str) -> None:
        if char == "\r":
            self._column = 0
        elif char == "\n":
            self._line_feed()
        elif char >= " ":
            if self._column == self.columns:
                self._column = 0
                self._line_feed()
            row = self.rows[self._row]
            row += [(" ", "")] * (self._column + 1 - len(row))
            row[self._column] = (char, self._style)
            self._column += 1
        else:
            raise AssertionError(f"a control character that is not known: {char!r}")

    def _line_feed(self) -> None:
        self._row += 1
        if self._row == len(self.rows):
            self.rows.append([])
        if len(self.rows) > self.lines:
            self.scrolled.append(self.rows.pop(0))
            self._row -= 1

    def _control(self, argument: str, command: str) -> None:
        if command == "m":
            self._style = "" if argument in ("", "0") else self._style + f"\x1b[{argument}m"
        elif command == "A":
            wanted = int(argument or 1)
            assert wanted <= self._row, "the cursor would leave the screen: a line above cannot be erased any more"
            self._row -= wanted
        elif command == "K":
            assert argument == "2"
            self.rows[self._row] = []
        elif (command, argument) not in (("h", "?25"), ("l", "?25")):
            raise AssertionError(f"a control sequence that is not known: {argument}{command}")


def watch(
    command: Sequence[str],
    *,
    columns: int,
    lines: int = 24,
    cwd: Path,
    env: Mapping[str, str],
    answers: Mapping[str, str] | None = None,
) -> tuple[int, list[Screen], Screen]:
    """Run a command on a terminal; return its exit code, a screen for each piece that it sent, and the last screen.

    `answers`: what is typed, once, when the screen ends in a text. Ctrl-C (character 3) interrupts.
    """
    open_answers = dict(answers or {})
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environ = {"TERM": "xterm-256color", **env}
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environ,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    decoder = codecs.getincrementaldecoder("utf-8")()
    screen, frames, pending = Screen(columns, lines), [], ""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError as error:
            assert error.errno == errno.EIO  # Linux's way to say that the other side is closed
            piece = b""
        if not piece:
            break
        pending += decoder.decode(piece)
        cut = pending.rfind("\x1b", max(0, len(pending) - 16))
        whole = len(pending) if cut < 0 or _ESCAPE.match(pending, cut) else cut
        screen.feed(pending[:whole])
        pending = pending[whole:]
        frames.append(_copy(screen))
        for question in [question for question in open_answers if screen.text().endswith(question)]:
            os.write(master, open_answers.pop(question).encode())
    os.close(master)
    return process.wait(30), frames, screen


def _copy(screen: Screen) -> Screen:
    copy = Screen(screen.columns, screen.lines)
    copy.rows = [list(row) for row in screen.rows]
    return copy


def save_svg(screen: Screen, path: Path, title: str) -> None:
    """Draw a screen."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(
            record=True, width=screen.columns, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        console.print(Text.from_ansi(screen.ansi()))
        drawn = console.export_svg(title=title)
    # Without the fonts that it would fetch from elsewhere: any monospaced one does.
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL), encoding="utf-8")


def fill(emulator: DataApiEmulator, collections: int, documents: int) -> None:
    """Collections of small documents, of which the server knows the number; every third has a long name."""
    for number in range(collections):
        name = f"collection_{number:02}" + "_whose_name_is_rather_long" * (number % 3 == 1)
        made = emulator.create("default_keyspace", name)
        for document in range(documents):
            emulator.put("default_keyspace", name, f'{{"_id":"d{document:05}","n":{document}}}')
        made.loaded = documents


def busiest(frames: list[Screen]) -> Screen:
    """The frame with most bars that count documents, of those the last but a few: rates are settled by then."""
    bars = [len(re.findall(r" docs .*/s", frame.text())) for frame in frames]
    best = [frame for frame, count in zip(frames, bars, strict=True) if count == max(bars)]
    return best[len(best) * 2 // 3]


def draw(name: str, script: str, *arguments: str, columns: int, cwd: Path, env: Mapping[str, str]) -> None:
    """Run a script and draw it at work, or, when no bar was seen, at its end; say what was drawn."""
    command = [sys.executable, str(ROOT / script), *arguments]
    _, frames, last = watch(command, columns=columns, cwd=cwd, env=env)
    is_busy = any("/s" in frame.text() for frame in frames)
    screen = busiest(frames) if is_busy else last
    save_svg(screen, ROOT / "docs" / f"screen-{name}.svg", " ".join(["python", script, *arguments]))
    sys.stdout.write(f"--- {name}\n{screen.text()}\n")
    if is_busy:
        sys.stdout.write(f"--- {name}, at the end\n{last.text()}\n")


def main() -> None:
    """Draw all screens of the documentation."""
    for collections, documents in ((1, 4000), (40, 300)):
        with (
            DataApiEmulator(token="AstraCS:demo", latency_s=0.03) as source,
            DataApiEmulator(token="AstraCS:demo", latency_s=0.03) as target,
            BoxEmulator() as box,
            tempfile.TemporaryDirectory() as directory,
        ):
            fill(source, collections, documents)
            cwd = Path(directory)
            env = {
                "PATH": os.environ["PATH"],
                "ASTRA_DB_APPLICATION_TOKEN": "AstraCS:demo",
                "ASTRA_DB_ENVIRONMENT": "hcd",
                "ASTRA_DB_API_ENDPOINT": source.url,
                "BOX_CLIENT_ID": box.client_id,
                "BOX_CLIENT_SECRET": box.client_secret,
                "BOX_ENTERPRISE_ID": box.enterprise_id,
                "BOX_FOLDER_ID": box.folder_id,
                "BOX_BASE_URL": box.url,
                "BOX_UPLOAD_URL": box.upload_url,
            }
            for columns in (80, 120):
                draw(f"backup-{collections}-{columns}", "astra_backup.py", columns=columns, cwd=cwd, env=env)
            env["ASTRA_DB_API_ENDPOINT"] = target.url
            draw(f"restore-{collections}-80", "restore.py", columns=80, cwd=cwd, env=env)
            box.can_upload = False
            if collections == 1:
                env["ASTRA_DB_API_ENDPOINT"] = source.url
                draw("check-80", "astra_backup.py", "--check", columns=80, cwd=cwd, env=env)


if __name__ == "__main__":
    main()
