"""Ctrl-C and SIGTERM: a command ends at once, in the middle of whatever, and says what is kept.

A KeyboardInterrupt comes first, so that workers end, files are closed, and what is written in part
is removed. It may come late, as compiled code and threads are waited for, or be lost in a library's
callback, which Python would tell with a traceback: a thread that the signal wakes ends the process
then. What is kept is as after a kill: stores are transactions, and files are written whole or not
at all.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # as shells tell who is ended by a signal
CODE = CODES[signal.SIGINT]
AT_FIRST = (signal.default_int_handler, signal.SIG_DFL)  # what Python does on them
GRACE_S = 1.0  # for the command to end by itself
_kept: list[str] = []
_by: list[int] = [signal.SIGINT]  # the signal that came, last
_ending = threading.Lock()


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """Whoever interrupts meanwhile is told `what` is kept."""
    _kept.append(what)
    yield
    _kept.pop()  # after an interrupt it stays, to be said


@contextmanager
def watched() -> Iterator[None]:
    """Within, Ctrl-C or SIGTERM ends the process in GRACE_S at the latest."""
    _kept.clear()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = {number: signal.getsignal(number) for number in CODES}
    wakes = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    told, sys.unraisablehook = sys.unraisablehook, _tell_others
    try:
        for number, handler in before.items():
            if handler in AT_FIRST:  # else a shell's job in the background: it stays so
                signal.signal(number, _once)
        threading.Thread(target=_end_when_interrupted, args=(read_end,), daemon=True).start()
        yield
    except KeyboardInterrupt:
        _end()
    finally:
        sys.unraisablehook = told
        signal.set_wakeup_fd(wakes)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write_end)


def _once(number: int, _: Any) -> None:
    for each in CODES:
        signal.signal(each, signal.SIG_IGN)  # pressed again, it ends nothing sooner
    _by.append(number)
    raise KeyboardInterrupt


def _tell_others(lost: "sys.UnraisableHookArgs") -> None:
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)


def _end_when_interrupted(read_end: int) -> None:
    while (number := os.read(read_end, 1)) and number[0] not in CODES:
        pass
    if number:
        _by.append(number[0])
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
    os._exit(CODES[signal.Signals(_by[-1])])
