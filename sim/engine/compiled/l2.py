"""The L2 at chunk granularity, compiled: write-back, evicting the oldest of a few random lines.

Chunks are numbered from 0. One that is present has a line, and lines 1 up to the number of chunks
present are in use, so that a random one costs a multiplication. To make room some are drawn, the
*candidates*, and the one used longest ago goes. One candidate is random replacement, very many are
LRU. What is absent costs five bytes. A chunk larger than the cache passes it by. Where more are
dirty than may be, dirty lines drawn at random are written, and stay.

Where each die has a cache below the one that all share, they are kept alike, one behind the other
in the same arrays. A load asks its die's first; a store goes to the shared one, and the dies'
copies of it are dropped.

Sources: Sanchez and Kozyrakis, "The ZCache: Decoupling Ways and Associativity" (MICRO 2010),
Section IV: a cache of well hashed sets evicts like the best of n random candidates, and n is its
associativity. Park, Miller and Stockmeyer, "Remarks on Choosing and Implementing Random Number
Generators" (CACM 36(7), 1993): the draws.
"""

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.engine.compiled.jit import aligned, at, called, inlined
from sim.inputs.hardware import HardwareProfile
from sim.machine import machine_of
from sim.tile_program import Chunking, Tensor

NO_LINE = 0
LINE = aligned(
    [
        ("chunk", "i4"),
        ("dirty", "i4"),
        ("size", "i8"),
        ("used_at", "i8"),  # by the level's count of touches
        ("arrival_s", "f8"),  # when the load that fetched it brings it
    ]
)
# Bytes present, of what capacity, how many of them dirty, of how many that may be; the lines in
# use; how many an eviction draws; touches so far; the last draw; bytes fetched of chunks that had
# been there; where its chunks and its lines begin.
OF_BYTES = ("used", "capacity", "dirty", "most_dirty")
LEVEL_FIELDS = (*OF_BYTES, "lines", "candidates", "touches", "draw", "reread")
LEVEL = aligned([(name, "i8") for name in (*LEVEL_FIELDS, "first_chunk", "first_line")])
SHARED = 0  # the cache that all SMs share; those of dies come after it
DRAW_FACTOR, DRAW_MODULUS, FIRST_DRAW = 48_271, 2**31 - 1, 1


class L2Lines(NamedTuple):
    """What is in L2: each chunk's line or NO_LINE, the lines, and a record of each cache.

    `known` is 1 of the chunks that were used before.
    """

    line_of: NDArray[np.int32]
    known: NDArray[np.uint8]
    lines: NDArray[np.void]
    level: NDArray[np.void]


def sizes_of(chunkings: dict[Tensor, Chunking], capacity_bytes: int) -> tuple[int, int]:
    """(chunks, lines that can be in use at once) of an L2 for those tensors."""
    chunks, smallest_bytes = 0, capacity_bytes + 1
    for tensor, chunking in chunkings.items():
        chunks += prod((tensor.groups, chunking.down, chunking.across))
        last_bytes = _last_chunk_bytes(tensor, chunking)
        smallest_bytes = int(last_bytes.min(initial=smallest_bytes))
    return chunks, min(chunks, capacity_bytes // smallest_bytes)


def _last_chunk_bytes(tensor: Tensor, chunking: Chunking) -> NDArray[np.int64]:
    """Bytes of the smallest chunk, in the last corner, of each matrix that has any."""
    whole = np.array((chunking.rows, chunking.cols))
    sizes = np.array([(tensor.rows, tensor.cols)]) if tensor.sizes is None else tensor.sizes
    there = sizes[sizes.all(axis=1)]
    corners = there - (-(-there // whole) - 1) * whole
    last_bytes: NDArray[np.int64] = corners.prod(axis=1) * tensor.element_bytes
    return last_bytes


def new_l2(chunkings: dict[Tensor, Chunking], hw: HardwareProfile) -> L2Lines:
    """A device's L2, empty, for the chunks of those tensors."""
    capacities = _capacities_of(hw)
    sizes = [sizes_of(chunkings, capacity_bytes) for capacity_bytes in capacities]
    chunks, lines = (np.cumsum([0, *of]) for of in zip(*sizes, strict=True))
    level = np.zeros(len(capacities), LEVEL)
    level["capacity"], level["draw"] = capacities, FIRST_DRAW
    level["most_dirty"] = machine_of(hw).l2_most_dirty_bytes
    level["candidates"] = hw.calibration.l2.candidates
    level["first_chunk"], level["first_line"] = chunks[:-1], lines[:-1]
    line_of, known = np.zeros(chunks[-1], np.int32), np.zeros(chunks[-1], np.uint8)
    return L2Lines(line_of, known, np.zeros(lines[-1] + 1, LINE), level)


def let_arrive(l2: L2Lines) -> None:
    """What the last kernel left has arrived: times start anew. Only lines in use are looked at."""
    l2.lines["arrival_s"][: int(l2.level["lines"][SHARED]) + 1] = 0.0


def l2_bytes(chunkings: dict[Tensor, Chunking], hw: HardwareProfile) -> int:
    """What `new_l2` takes of this computer's memory."""
    sizes = [sizes_of(chunkings, capacity_bytes) for capacity_bytes in _capacities_of(hw)]
    return sum(chunks * 5 + lines * LINE.itemsize for chunks, lines in sizes)


def _capacities_of(hw: HardwareProfile) -> tuple[int, ...]:
    """Bytes of the cache that all SMs share, and of each die's."""
    machine = machine_of(hw)
    return machine.l2_capacity_bytes, *machine.die_capacities_bytes


@inlined
def drawn(level):
    """A line in use, each as likely as any other."""
    level.draw = level.draw * DRAW_FACTOR % DRAW_MODULUS
    return level.first_line + 1 + (level.draw * level.lines >> 31)


@called
def remove(l2, cache, line):
    """Take a line out; return its dirty bytes."""
    lines, level = l2.lines, at(l2.level, cache)
    victim, last = at(lines, line), at(lines, level.first_line + level.lines)
    level.used -= victim.size
    written = victim.size if victim.dirty else 0
    level.dirty -= written
    l2.line_of[level.first_chunk + last.chunk] = line  # the last line moves to the victim's place
    l2.line_of[level.first_chunk + victim.chunk] = NO_LINE
    victim.chunk, victim.dirty, victim.size = last.chunk, last.dirty, last.size
    victim.used_at, victim.arrival_s = last.used_at, last.arrival_s
    level.lines -= 1
    return written


@called
def make_room(l2, cache, size):
    """Evict until `size` bytes fit; return the dirty bytes evicted."""
    lines, level = l2.lines, at(l2.level, cache)
    written = 0
    while level.used + size > level.capacity:
        oldest = drawn(level)
        for _ in range(level.candidates - 1):
            other = drawn(level)
            if at(lines, other).used_at < at(lines, oldest).used_at:
                oldest = other
        written += remove(l2, cache, oldest)
    return written


@called
def clean(l2, cache):
    """Write dirty lines, which stay, until no more are dirty than may be; return their bytes."""
    level = at(l2.level, cache)
    written = 0
    while level.dirty > level.most_dirty:
        line = at(l2.lines, drawn(level))
        if line.dirty:
            line.dirty = 0
            level.dirty -= line.size
            written += line.size
    return written


@inlined
def touch(l2, cache, chunk, size, write, fetch):
    """Use a chunk of `size` bytes; return (its line, bytes fetched, dirty bytes evicted).

    `write` leaves it dirty; `fetch` says whether it must be read where it is absent.
    """
    lines, level = l2.lines, at(l2.level, cache)
    level.touches += 1
    line = at(l2.line_of, level.first_chunk + chunk)
    if line != NO_LINE:
        present = at(lines, line)
        present.used_at = level.touches
        cleaned = 0
        if write and not present.dirty:
            present.dirty = 1
            level.dirty += size
            cleaned = clean(l2, cache)
        return line, 0, cleaned
    read = size if fetch else 0
    if at(l2.known, level.first_chunk + chunk):
        level.reread += read
    l2.known[level.first_chunk + chunk] = 1
    if size > level.capacity:
        return line, read, (size if write else 0)
    written = 0
    if level.used + size > level.capacity:
        written = make_room(l2, cache, size)
    level.lines += 1
    line = np.int32(level.first_line + level.lines)
    l2.line_of[level.first_chunk + chunk] = line
    arrived = at(lines, line)
    arrived.chunk, arrived.size, arrived.dirty = chunk, size, 0
    arrived.used_at, arrived.arrival_s = level.touches, 0.0
    level.used += size
    if write:
        arrived.dirty = 1
        level.dirty += size
        written += clean(l2, cache)
    return line, read, written


@called
def touch_by_die(l2, die, chunk, size, write, fetch):
    """`touch` of the shared cache, unless it is a load that the die's cache serves.

    Returns (the shared cache's line, HBM reads, HBM writes, bytes that went past the die's cache).
    """
    if write:
        for cache in range(SHARED + 1, l2.level.size):
            copy = at(l2.line_of, at(l2.level, cache).first_chunk + chunk)
            if copy != NO_LINE:
                remove(l2, cache, copy)
    else:
        _, missed, _ = touch(l2, die, chunk, size, False, True)
        if not missed:
            return at(l2.line_of, chunk), 0, 0, 0
    line, read, written = touch(l2, SHARED, chunk, size, write, fetch)
    return line, read, written, size
