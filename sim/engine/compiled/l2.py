"""The L2 at chunk granularity, compiled: fully associative, LRU, write-back.

Chunks are numbered from 0. One that is present has a line; lines form a doubly linked list from the
most to the least recently used, so that a touch costs a few loads. What is absent costs four bytes.
A chunk larger than the cache passes it by.
"""

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.engine.compiled.jit import aligned, called, inlined
from sim.tile_program import Chunking, Tensor

NO_LINE = 0
# Line 0 is no chunk's: the list's ends hang on it, its `older` being the newest.
LINE = aligned(
    [
        ("newer", "i4"),
        ("older", "i4"),
        ("chunk", "i4"),
        ("dirty", "i4"),
        ("size", "i8"),
        ("arrival_s", "f8"),  # when the load that fetched it brings it
    ]
)
# Bytes present, of what capacity, how many of them dirty; the lines used so far, and the first of
# those that are free again, a list linked by `older`.
LEVEL = aligned([(name, "i8") for name in ("used", "capacity", "dirty", "lines", "free")])


class L2Lines(NamedTuple):
    """What is in L2: each chunk's line or NO_LINE, the lines, and a record of the whole."""

    line_of: NDArray[np.int32]
    lines: NDArray[np.void]
    level: NDArray[np.void]


def sizes_of(chunkings: dict[Tensor, Chunking], capacity_bytes: int) -> tuple[int, int]:
    """(chunks, lines that can be in use at once) of an L2 for those tensors."""
    chunks, smallest_bytes = 0, capacity_bytes + 1
    for tensor, chunking in chunkings.items():
        chunks += prod((tensor.groups, chunking.down, chunking.across))
        height = tensor.rows - (chunking.down - 1) * chunking.rows
        width = tensor.cols - (chunking.across - 1) * chunking.cols
        smallest_bytes = min(smallest_bytes, height * width * tensor.element_bytes)
    return chunks, min(chunks, capacity_bytes // smallest_bytes)


def new_l2(chunkings: dict[Tensor, Chunking], capacity_bytes: int) -> L2Lines:
    """An empty L2 for the chunks of those tensors."""
    chunks, lines = sizes_of(chunkings, capacity_bytes)
    level = np.zeros(1, LEVEL)
    level["capacity"] = capacity_bytes
    return L2Lines(np.zeros(chunks, np.int32), np.zeros(lines + 1, LINE), level)


def l2_bytes(chunkings: dict[Tensor, Chunking], capacity_bytes: int) -> int:
    """What `new_l2` takes of this computer's memory."""
    chunks, lines = sizes_of(chunkings, capacity_bytes)
    return chunks * 4 + lines * LINE.itemsize


@inlined
def unlink(lines, line):
    """Take a line out of the list."""
    newer, older = lines[line].newer, lines[line].older
    lines[newer].older = older
    lines[older].newer = newer


@inlined
def link_newest(lines, line):
    """Put a line at the most recently used end."""
    newest = lines[NO_LINE].older
    lines[line].newer = NO_LINE
    lines[line].older = newest
    lines[newest].newer = line
    lines[NO_LINE].older = line


@called
def make_room(l2, size):
    """Evict the least recently used until `size` bytes fit; return the dirty bytes evicted."""
    lines, level = l2.lines, l2.level[0]
    written = 0
    while level.used + size > level.capacity:
        oldest = lines[NO_LINE].newer
        victim = lines[oldest]
        unlink(lines, oldest)
        level.used -= victim.size
        if victim.dirty:
            written += victim.size
            level.dirty -= victim.size
        l2.line_of[victim.chunk] = NO_LINE
        victim.older = level.free
        level.free = oldest
    return written


@inlined
def touch(l2, chunk, size, write, fetch):
    """Use a chunk of `size` bytes; return (its line, bytes read from HBM, bytes written to HBM).

    `write` leaves it dirty; `fetch` says whether it must be read where it is absent.
    """
    lines, level = l2.lines, l2.level[0]
    line = l2.line_of[chunk]
    if line != NO_LINE:
        present = lines[line]
        if present.newer != NO_LINE:
            unlink(lines, line)
            link_newest(lines, line)
        if write and not present.dirty:
            present.dirty = 1
            level.dirty += size
        return line, 0, 0
    read = size if fetch else 0
    if size > level.capacity:
        return line, read, (size if write else 0)
    written = 0
    if level.used + size > level.capacity:
        written = make_room(l2, size)
    if level.free != NO_LINE:
        line = np.int32(level.free)
        level.free = lines[line].older
    else:
        level.lines += 1
        line = np.int32(level.lines)
    l2.line_of[chunk] = line
    link_newest(lines, line)
    arrived = lines[line]
    arrived.chunk, arrived.size, arrived.dirty, arrived.arrival_s = chunk, size, 0, 0.0
    level.used += size
    if write:
        arrived.dirty = 1
        level.dirty += size
    return line, read, written
