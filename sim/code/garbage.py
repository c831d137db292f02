"""How often Python looks for garbage: seldom, as commands and events are many and hardly cycles.

By default it looks at 700 new objects more: two fifths of what 64 GPUs of a ring take to run.
"""

import gc

NEW_OBJECTS = 100_000


def look_seldom() -> None:
    """In this process, from now on."""
    gc.set_threshold(NEW_OBJECTS)


def leave_all() -> None:
    """Before this process ends: all of its memory goes at once, where Python looks through it."""
    gc.freeze()
