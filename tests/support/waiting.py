"""Waiting for what will happen: nothing here decides a test but whether it happens at all."""

import time
from collections.abc import Callable

GUARD_S = 300.0  # against hanging: no machine is so busy that what is awaited takes as long
POLL_S = 0.01


def until(happened: Callable[[], bool]) -> None:
    """Return when it has happened."""
    end_s = time.monotonic() + GUARD_S
    while not happened():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(POLL_S)
