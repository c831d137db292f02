"""What a schedule of one's own lowers to, looked over before an engine runs it.

The compiled engine trusts what it is given: of a tile that a tensor has not it would read and write
beyond its arrays. attnsim's own schedules are held to that by tests, those of others here. Of a
vast grid `COUNTED_ITEMS` items are looked at.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from math import inf
from traceback import extract_tb

import numpy as np

from sim.inputs.files import InputError
from sim.tile_program import (
    COUNTED_ITEMS,
    Barrier,
    Command,
    Compute,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Store,
    Stream,
    Transfer,
    spread_over,
)

_AMOUNTS = [field.name for field in fields(Compute) if field.name not in ("name", "reads")]


class _WrongError(Exception):
    """What no engine could run, in words."""


def looked_over(lowered: Callable[[], list[Command]], who: str, file: str | None) -> list[Command]:
    """The commands that `lowered` makes, by the code in `file`.

    Raises InputError, which opens with `who`, for what it raises, with its line in that file, and
    for what is no program.
    """
    try:
        commands = lowered()
        _check(commands)
    except InputError:
        raise
    except _WrongError as wrong:
        raise InputError(f"{who}: {wrong}") from None
    except (Exception, SystemExit) as error:
        lines = [
            f"{file}:{f.lineno}: " for f in extract_tb(error.__traceback__) if f.filename == file
        ]
        raise InputError(f"{who}: {(lines or [''])[-1]}{in_a_line(error)}") from error
    return commands


def in_a_line(error: BaseException) -> str:
    """An error as Python would end its traceback, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _check(commands: Sequence[Command]) -> None:
    works = [command.work for command in commands]
    if not works or not all(isinstance(work, Kernel | Transfer) for work in works):
        raise _WrongError(f"kernels were expected of lower(), not {works}")
    for kernel in dict.fromkeys(work for work in works if isinstance(work, Kernel)):
        try:
            _check_kernel(kernel)
        except _WrongError as wrong:
            raise _WrongError(f"kernel {kernel.name!r}: {wrong}") from None


def _check_kernel(kernel: Kernel) -> None:
    footprint = kernel.footprint
    for what, given, least in (
        ("ctas", kernel.ctas, 1),
        ("items_per_cta", kernel.items_per_cta, 1),
        ("loads and stores", len(kernel.streams), 1),
        ("sram_bytes", footprint.sram_bytes, 0),
        ("threads", footprint.threads, 1),
        ("registers_per_thread", footprint.registers_per_thread, 1),
    ):
        if given < least:
            raise _WrongError(f"{what} = {given}: at least {least} was expected")
    items = spread_over(kernel.ctas * kernel.items_per_cta, COUNTED_ITEMS)
    for number, loop in enumerate(kernel.loops):
        try:
            _check_loop(loop, items)
        except _WrongError as wrong:
            raise _WrongError(f"loop {number}: {wrong}") from None


def _check_loop(loop: Loop, items: IntArray) -> None:
    trips = _of_items("trips", loop.trips, items)
    if trips.min() < 0:
        raise _WrongError(f"trips: item {items[trips.argmin()]} has {trips.min()}")
    computes = [op for op in loop.ops if isinstance(op, Compute)]
    read = {load for compute in computes for load in compute.reads}
    issued = {load for op in loop.ops if isinstance(op, Barrier) for load in op.issues}
    for load in (read | issued) - set(loop.loads):
        raise _WrongError(f"a load of {load.stream.tensor.name} is used that is none of its ops")
    for load in loop.loads:
        if load not in read:
            raise _WrongError(f"no compute reads the load of {load.stream.tensor.name}")
        if load.stages < 1 and load not in issued:
            raise _WrongError(
                f"a load of {load.stream.tensor.name} has no stages, and no barrier issues it"
            )
    for compute in computes:
        for what in _AMOUNTS:
            given = getattr(compute, what)
            if not 0 <= given < inf:
                raise _WrongError(f"compute {compute.name!r}: {what} = {given}")
    for op in loop.ops:
        if isinstance(op, Load | Store):
            kind = type(op).__name__.lower()
            _check_stream(f"{kind} of {op.stream.tensor.name}", op.stream, items, trips)


def _check_stream(what: str, stream: Stream, items: IntArray, trips: IntArray) -> None:
    if min(stream.tile_rows, stream.tile_cols) < 1:
        raise _WrongError(f"{what}: tiles of {stream.tile_rows} x {stream.tile_cols}")
    running = trips > 0
    items, trips = items[running], trips[running]
    if not len(items):
        return
    first, last = _ends(what, stream, items, trips)
    tiles = stream.tensor.groups * stream.tiles_down * stream.tiles_across
    for tile in (first, last):
        beyond = (tile < 0) | (tile >= tiles)
        if beyond.any():
            at = beyond.argmax()
            raise _WrongError(f"{what}: item {items[at]} touches tile {tile[at]} of {tiles}")


def _ends(what: str, stream: Stream, items: IntArray, trips: IntArray) -> tuple[IntArray, IntArray]:
    """The lowest and the highest tile that each item touches, in either order."""
    base = _of_items(f"{what}: base", stream.base, items)
    if stream.table is None:
        return base, base + stream.stride * (trips - 1)
    start = _of_items(f"{what}: start", stream.start, items)
    end = start + trips
    if start.min() < 0 or end.max() > len(stream.table):
        at = (end if start.min() >= 0 else -start).argmax()
        raise _WrongError(
            f"{what}: item {items[at]} reads {start[at]} to {end[at]} of {len(stream.table)} in "
            "the table"
        )
    parts = [stream.table[low:high] for low, high in zip(start, end, strict=True)]
    lowest, highest = (np.array([of(part) for part in parts]) for of in (np.min, np.max))
    return base + lowest, base + highest


def _of_items(what: str, of: OfItem, items: IntArray) -> IntArray:
    """A whole number of each item."""
    found = np.asarray(of(items))
    if found.shape != items.shape or found.dtype.kind not in "iu":
        raise _WrongError(
            f"{what}: a whole number for each of {len(items)} items was expected, not "
            f"{found.dtype} of shape {found.shape}"
        )
    return found
