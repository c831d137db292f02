"""Limits on what a test may take of this computer: beyond them it fails, and nothing else does."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_of_at_most(size_bytes: int) -> Iterator[None]:
    """Until the end of the block: what would take so much more raises MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + size_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class TooLongError(BaseException):
    """A block took longer than it may; no handler of errors within catches it."""


def progress_is_shown() -> None:
    """The seconds of the block begin anew: whoever waits for a command sees that it goes on."""
    _, seconds = signal.getitimer(signal.ITIMER_VIRTUAL)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)


@contextmanager
def seconds_of_at_most(seconds: float) -> Iterator[None]:
    """Until the end of the block, of the main thread: raises TooLongError then.

    Of processor time, as a loaded machine is no fault of the block's.
    """

    def too_long(*_: object) -> None:
        raise TooLongError(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
