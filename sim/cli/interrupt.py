"""Ctrl-C: a command ends at once, whatever it is in the middle of, and says what is kept.

Python's own KeyboardInterrupt comes first, so that workers end and files are closed. It may come
late, as compiled code and threads are waited for, or be lost in a library's callback: a thread that
the signal wakes ends the process then. What is kept is as after a kill: stores are transactions,
and files are written whole or not at all.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

CODE = 130  # what shells take for ended by Ctrl-C: 128 + SIGINT
GRACE_S = 1.0  # for the command to end by itself
_kept: list[str] = []


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """Whoever interrupts meanwhile is told `what` is kept."""
    _kept.append(what)
    yield
    _kept.pop()  # after an interrupt it stays, to be said


def say() -> None:
    """Tell of the interruption on standard error."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.show_cursor()  # which a progress bar hides
    console.print("; ".join(["attnsim: interrupted", *_kept[-1:]]))


@contextmanager
def watched() -> Iterator[None]:
    """Within, Ctrl-C ends the process in GRACE_S at the latest."""
    _kept.clear()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    threading.Thread(target=_end_when_interrupted, args=(read_end,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write_end)


def _end_when_interrupted(read_end: int) -> None:
    while (number := os.read(read_end, 1)) and number[0] != signal.SIGINT:
        pass
    if number:
        time.sleep(GRACE_S)
        say()
        os._exit(CODE)
    os.close(read_end)
