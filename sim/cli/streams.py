"""Standard output and error: an ASCII terminal, a pipe that its reader closed, a full disk.

A command goes on without them, as files may have been asked for too. What standard output lost is
told at the end; what standard error did, nobody can be told.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import IO, Any, cast

CLOSED = 141  # what shells take for ended by a closed pipe: 128 + SIGPIPE
UNWRITTEN = 2
# What is printed beyond ASCII, for terminals that do not have it; the rest is escaped.
_PLAIN = str.maketrans({"µ": "u", "−": "-", "×": "x", "±": "+-", "–": "-", "→": "->", "…": "..."})


class Stream:
    """A stream whose writes raise nothing; `lost` is why it has not all of them."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written, in the stream's own encoding."""
        with self._kept():
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                plain = text.translate(_PLAIN).encode(error.encoding, "backslashreplace")
                self._stream.write(plain.decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        """Flush what can be written."""
        with self._kept():
            self._stream.flush()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is buffered and what comes goes there
            os.close(nowhere)

    def code(self) -> int:
        """The exit code of a command that did all else, told on standard error if need be."""
        self.flush()
        if self.lost is None:
            return 0
        if isinstance(self.lost, BrokenPipeError):
            return CLOSED
        reason = self.lost.strerror
        print(f"attnsim: standard output: cannot be written: {reason}", file=sys.stderr)
        return UNWRITTEN


@contextmanager
def guarded() -> Iterator[Stream]:
    """Within, both streams are such; gives standard output."""
    _open_the_closed()
    out, err = (Stream(stream or io.StringIO()) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(cast(IO[str], out)), redirect_stderr(cast(IO[str], err)):
        yield out


def _open_the_closed() -> None:
    """Let standard streams that are closed lead nowhere, so that no file gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
