"""The L2 at chunk granularity, compiled: fully associative, LRU, write-back.

Chunks are numbered from 0. Those present form a doubly linked list from the most to the least
recently used, kept in arrays so that a touch costs a few loads. A chunk larger than the cache
passes it by.
"""

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.engine.jit import aligned, called, inlined
from sim.tile_program import Chunking, Tensor

ABSENT, CLEAN, DIRTY = 0, 1, 2
CHUNK = aligned(
    [
        ("newer", "i4"),
        ("older", "i4"),
        ("size", "i4"),
        ("state", "i4"),
        ("arrival_s", "f8"),
    ]
)
LEVEL = aligned([("used", "i8"), ("capacity", "i8"), ("dirty", "i8"), ("sentinel", "i8")])


class Cache(NamedTuple):
    """L2 contents: a record a chunk and, last, the sentinel on which the list's ends hang.

    `level` is one record: bytes used, of what capacity, how many of them dirty.
    """

    chunks: NDArray[np.void]
    level: NDArray[np.void]


def new_l2(chunkings: dict[Tensor, Chunking], capacity_bytes: int) -> Cache:
    """An empty L2 for the chunks of those tensors."""
    chunks = sum(prod((t.groups, c.down, c.across)) for t, c in chunkings.items())
    records = np.zeros(chunks + 1, CHUNK)
    records[chunks]["newer"] = records[chunks]["older"] = chunks
    return Cache(records, np.array([(0, capacity_bytes, 0, chunks)], LEVEL))


@inlined
def unlink(chunks, number):
    """Take a chunk out of the list."""
    newer, older = chunks[number].newer, chunks[number].older
    chunks[newer].older = older
    chunks[older].newer = newer


@inlined
def link_newest(chunks, sentinel, number):
    """Put a chunk at the most recently used end."""
    newest = chunks[sentinel].older
    chunks[number].newer = sentinel
    chunks[number].older = newest
    chunks[newest].newer = number
    chunks[sentinel].older = number


@called
def make_room(chunks, level, size):
    """Evict the least recently used until `size` bytes fit; return the dirty bytes evicted."""
    written = 0
    while level.used + size > level.capacity:
        oldest = chunks[level.sentinel].newer
        victim = chunks[oldest]
        unlink(chunks, oldest)
        level.used -= victim.size
        if victim.state == DIRTY:
            written += victim.size
            level.dirty -= victim.size
        victim.state = ABSENT
    return written


@inlined
def touch(chunks, level, number, size, write, fetch):
    """Use a chunk of `size` bytes; return (bytes read from HBM, bytes written to HBM).

    `write` leaves it dirty; `fetch` says whether it must be read where it is absent.
    """
    chunk = chunks[number]
    if chunk.state != ABSENT:
        if chunk.newer != level.sentinel:
            unlink(chunks, number)
            link_newest(chunks, level.sentinel, number)
        if write and chunk.state == CLEAN:
            chunk.state = DIRTY
            level.dirty += size
        return 0, 0
    read = size if fetch else 0
    if size > level.capacity:
        return read, (size if write else 0)
    written = 0
    if level.used + size > level.capacity:
        written = make_room(chunks, level, size)
    link_newest(chunks, level.sentinel, number)
    chunk.size, chunk.arrival_s = size, 0.0
    level.used += size
    chunk.state = CLEAN
    if write:
        chunk.state = DIRTY
        level.dirty += size
    return read, written
