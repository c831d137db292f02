"""Ctrl-C: a command ends at once, whatever it is in the middle of, and says what is kept.

Python's own KeyboardInterrupt comes first, so that workers end and files are closed. It may come
late, as compiled code and threads are waited for, or be lost in a library's callback: a thread that
the signal wakes ends the process then. What is kept is as after a kill: stores are transactions,
and files are written whole or not at all.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CODE = 130  # what shells take for ended by Ctrl-C: 128 + SIGINT
GRACE_S = 1.0  # for the command to end by itself
_kept: list[str] = []
_ending = threading.Lock()


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """Whoever interrupts meanwhile is told `what` is kept."""
    _kept.append(what)
    yield
    _kept.pop()  # after an interrupt it stays, to be said


@contextmanager
def watched() -> Iterator[None]:
    """Within, Ctrl-C ends the process in GRACE_S at the latest."""
    _kept.clear()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else a shell's job in the background: it stays so
        signal.signal(signal.SIGINT, _once)
    wakes = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    threading.Thread(target=_end_when_interrupted, args=(read_end,), daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        _end()
    finally:
        signal.set_wakeup_fd(wakes)
        signal.signal(signal.SIGINT, before)
        os.close(write_end)


def _once(*_: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed again, it ends nothing sooner
    raise KeyboardInterrupt


def _end_when_interrupted(read_end: int) -> None:
    while (number := os.read(read_end, 1)) and number[0] != signal.SIGINT:
        pass
    if number:
        time.sleep(GRACE_S)
        _end()
    os.close(read_end)


def _end() -> None:
    """Tell of the interruption on standard error, and wait for no thread that still replays."""
    from rich.console import Console
    from rich.control import Control
    from rich.segment import ControlType

    _ending.acquire()  # of two threads only the first tells
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    bar_left = (
        ControlType.SHOW_CURSOR,
        ControlType.CARRIAGE_RETURN,
        (ControlType.ERASE_IN_LINE, 2),
    )
    console.control(Control(*bar_left))  # which hides the cursor, and may not have ended its line
    console.print("; ".join(["attnsim: interrupted", *_kept[-1:]]))
    sys.stderr.flush()
    os._exit(CODE)
