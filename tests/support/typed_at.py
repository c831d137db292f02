"""A terminal that a test types at: a command in it has a progress bar, and hears Ctrl-C."""

import os
import pty
import re
import select
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

from tests.support.commands import ATTNSIM
from tests.support.waiting import GUARD_S


class Terminal:
    """Standard output and error of a command, as they are shown."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        """Start the command, its process group in the foreground."""
        self._ours, its = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(its)
        self.shown = ""

    def until_it_shows(self, text: str) -> None:
        """Read on until that was shown."""
        while text not in self.shown:
            assert self._read(), f"{text!r} was not shown: {self.shown}"

    def lines(self) -> list[str]:
        """What was shown, a line each, without colours and what moves the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", self.shown).splitlines()

    def press_ctrl_c(self) -> None:
        """Interrupt all processes of the foreground group."""
        os.write(self._ours, b"\x03")

    def ended(self) -> int:
        """The exit code, when all was shown."""
        while self._read():
            pass
        return self.process.wait(GUARD_S)

    def close(self) -> None:
        """End the command, if it has not."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _read(self) -> bool:
        """Whether there was more to show."""
        assert select.select([self._ours], [], [], GUARD_S)[0], self.shown
        try:
            self.shown += os.read(self._ours, 1 << 16).decode(errors="replace")
        except OSError:  # nobody has it open any more
            return False
        return True


@contextmanager
def typed_at(*arguments: object, cwd: Path) -> Iterator[Terminal]:
    """`attnsim` in a terminal."""
    terminal = Terminal([str(ATTNSIM), *map(str, arguments)], cwd)
    try:
        yield terminal
    finally:
        terminal.close()
