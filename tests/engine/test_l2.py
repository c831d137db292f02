"""What the L2 evicts: the oldest of a few random lines, from random replacement to LRU."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from sim.engine.reference import L2Cache

LINE_BYTES = 64


def read(l2: L2Cache, number: int) -> bool:
    """Read a chunk; return whether it was a miss."""
    fetched, _ = l2.touch(number, LINE_BYTES, False, True)
    return fetched > 0


def cyclic_misses(chunks_per_line: float, candidates: int) -> float:
    """Share of a cyclic read that misses, by how many chunks it has for a line of the L2.

    A line at the share u of the lines' ages goes with an eviction at the rate n u^(n - 1), so that
    of those that arrived 1 - m u^n are left at that age, and the cycle is as long as all ages are:
    chunks / lines = the integral of 1 / (1 - m u^n) over u from 0 to 1. Source: the associativity
    distribution u^n of the ZCache paper, Section IV.
    """
    u = (np.arange(20_000) + 0.5) / 20_000

    def too_long(misses: float) -> float:
        return float(np.mean(1 / (1 - misses * u**candidates))) - chunks_per_line

    return brentq(too_long, 0.0, 1 - 1e-9)


@pytest.mark.parametrize("candidates", [1, 2, 4])
@pytest.mark.parametrize("chunks_per_line", [1.1, 1.3, 1.6])
def test_a_cyclic_read_that_outgrows_the_l2_slides_and_does_not_fall(candidates, chunks_per_line):
    lines = 1000
    l2 = L2Cache(lines * LINE_BYTES, candidates)
    chunks = int(chunks_per_line * lines)
    missed = [read(l2, number) for _ in range(40) for number in range(chunks)]
    settled = missed[20 * chunks :]
    expected = cyclic_misses(chunks_per_line, candidates)
    assert sum(settled) / len(settled) == pytest.approx(expected, abs=0.02)
    assert expected < 1


@given(st.lists(st.integers(0, 12), max_size=200), st.integers(1, 8))
def test_very_many_candidates_are_an_lru(numbers, lines):
    """A line that is not drawn 300 times in a row is not the oldest: one in 10^17."""
    l2, lru = L2Cache(lines * LINE_BYTES, 300), OrderedDict[int, None]()
    for number in numbers:
        assert read(l2, number) == (number not in lru)
        lru[number] = None
        lru.move_to_end(number)
        if len(lru) > lines:
            lru.popitem(last=False)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=200),
    st.integers(0, 40),
    st.integers(1, 4),
)
def test_it_holds_no_more_than_fits_and_what_was_written_is_dirty_or_in_hbm(
    touches, capacity, candidates
):
    l2, written, stored = L2Cache(capacity, candidates), 0, set()
    for number, write in touches:
        if write:
            stored.add(number)
        written += l2.touch(number, number + 1, write, not write)[1]
        assert l2.used_bytes == sum(chunk.size for chunk in l2.lines) <= capacity
        assert [l2.chunks[chunk.number] for chunk in l2.lines] == l2.lines
    assert written + l2.dirty_bytes >= sum(number + 1 for number in stored)
    if capacity >= sum(range(1, 22)):
        assert written == 0
