"""What the L2 evicts: the oldest of a few random lines, from random replacement to LRU."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from sim import simulate
from sim.engine.reference import L2Cache

LINE_BYTES = 64


def read(l2: L2Cache, number: int) -> bool:
    """Read a chunk; return whether it was a miss."""
    fetched, _ = l2.touch(number, LINE_BYTES, False, True)
    return fetched > 0


def cycle_length(misses: float, candidates: int) -> float:
    """Chunks for a line of the L2 of a cyclic read of which a share misses.

    A line at the share u of the lines' ages goes with an eviction at the rate n u^(n - 1), so that
    of those that arrived 1 - m u^n are left at that age, and the cycle is as long as all ages are:
    chunks / lines = the integral of 1 / (1 - m u^n) over u from 0 to 1. Source: the associativity
    distribution u^n of the ZCache paper, Section IV.
    """
    u = (np.arange(2000) + 0.5) / 2000
    return float(np.mean(1 / (1 - misses * u**candidates)))


def cyclic_misses(chunks_per_line: float, candidates: int) -> float:
    """Share of a cyclic read that misses, by how many chunks it has for a line of the L2."""
    return brentq(lambda m: cycle_length(m, candidates) - chunks_per_line, 0.0, 1 - 1e-9)


@pytest.mark.parametrize("candidates", [1, 2, 4])
@pytest.mark.parametrize("chunks_per_line", [1.1, 1.3, 1.6])
def test_a_cyclic_read_that_outgrows_the_l2_slides_and_does_not_fall(candidates, chunks_per_line):
    lines = 1000
    l2 = L2Cache(lines * LINE_BYTES, lines * LINE_BYTES, candidates)
    chunks = int(chunks_per_line * lines)
    missed = [read(l2, number) for _ in range(40) for number in range(chunks)]
    settled = missed[20 * chunks :]
    expected = cyclic_misses(chunks_per_line, candidates)
    assert sum(settled) / len(settled) == pytest.approx(expected, abs=0.02)
    assert expected < 1


@given(st.lists(st.integers(0, 12), max_size=200), st.integers(1, 8))
def test_very_many_candidates_are_an_lru(numbers, lines):
    """A line that is not drawn 300 times in a row is not the oldest: one in 10^17."""
    l2, lru = L2Cache(lines * LINE_BYTES, lines * LINE_BYTES, 300), OrderedDict[int, None]()
    for number in numbers:
        assert read(l2, number) == (number not in lru)
        lru[number] = None
        lru.move_to_end(number)
        if len(lru) > lines:
            lru.popitem(last=False)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=200),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(1, 4),
)
def test_it_holds_no_more_than_fits_and_what_was_written_is_dirty_or_in_hbm(
    touches, capacity, most_dirty, candidates
):
    l2, written, stored = L2Cache(capacity, most_dirty, candidates), 0, set()
    for number, write in touches:
        if write:
            stored.add(number)
        written += l2.touch(number, number + 1, write, not write)[1]
        assert l2.used_bytes == sum(chunk.size for chunk in l2.lines) <= capacity
        assert l2.dirty_bytes == sum(chunk.size for chunk in l2.lines if chunk.dirty) <= most_dirty
        assert [l2.chunks[chunk.number] for chunk in l2.lines] == l2.lines
    assert written + l2.dirty_bytes >= sum(number + 1 for number in stored)
    if min(capacity, most_dirty) >= sum(range(1, 22)):
        assert written == 0


# Working sets read in a cycle [kB of 1024 bytes] and bandwidth [GB/s]; the L2's and HBM's alone.
# Source: te42kyfo/gpu-benches (now RRZE-HPC), gpu-l2-cache/a100_80.txt, h100_pcie.txt, l40.txt.
A100 = "30720 3999.5 33792 3621.8 36864 3004.0 40448 2462.0 44032 2188.0 48128 2026.5 52736 1945.5"
H100 = "40448 5728.6 44032 4253.2 48128 3452.7 52736 2775.3 57856 2244.2 63488 2077.4 69632 2019.4"
L40 = "91648 5242.8 100352 4293.9 110080 1075.4 120832 879.8 132608 850.5 145408 845.8"


@pytest.mark.parametrize(
    ("measured", "l2_gb_s", "hbm_gb_s", "candidates"),
    [(A100, 5411, 1869, 2), (H100, 7034, 1988, 2), (L40, 5198, 842, 16)],
)
def test_published_bandwidths_fall_as_with_so_many_candidates(
    measured, l2_gb_s, hbm_gb_s, candidates
):
    size_kb, gb_s = np.array(measured.split(), float).reshape(-1, 2).T
    misses = np.linspace(0, 0.999, 400)

    def error(number: int) -> float:
        """Of the logarithm of bandwidth, at the capacity that suits best."""
        lengths = [cycle_length(m, number) for m in misses]
        errors = []
        for capacity_kb in np.arange(0.5, 1.1, 0.01) * size_kb[0]:
            missed = np.interp(size_kb / capacity_kb, lengths, misses, left=0.0, right=1.0)
            told = np.minimum(l2_gb_s, hbm_gb_s / np.maximum(missed, 1e-9))
            errors.append(float(np.sqrt(np.mean(np.log(told / gb_s) ** 2))))
        return min(errors)

    assert error(candidates) < 0.1
    assert error(candidates) == min(error(number) for number in (1, 2, 4, 8, 16))


def test_a_die_keeps_copies_of_what_it_reads_until_another_writes_it():
    l2 = L2Cache(100 * LINE_BYTES, 50 * LINE_BYTES, 2, 4 * LINE_BYTES, 4 * LINE_BYTES)

    def past(die: int, write: bool = False) -> tuple[int, int]:
        """(HBM reads, bytes past the die's cache) of a touch of one chunk."""
        read, _, passed = l2.touch_from(die, 7, LINE_BYTES, write, not write)
        return read, passed

    assert past(0) == (LINE_BYTES, LINE_BYTES)  # from HBM
    assert past(0) == (0, 0)  # its own copy
    assert past(1) == (0, LINE_BYTES)  # from the cache that both share
    assert past(1, write=True) == (0, LINE_BYTES)
    assert past(0) == past(1) == (0, LINE_BYTES)  # both copies were dropped
    assert past(0) == past(1) == (0, 0)


def of_dies(order: str, **l2: object):
    """128 heads of 8192 tokens on an MI300X, its grid in that order."""
    (record,) = simulate(
        workload={"heads": 128, "head_dim": 128, "seq_len": 8192, "dtype": "bf16"},
        hardware={"profile": "mi300x", "l2": l2} if l2 else "mi300x",
        schedule=[{"name": "flash2", "grid_order": order}],
    )
    return record


def test_heads_that_stay_on_a_die_are_served_by_its_cache():
    few, many = of_dies("swizzled"), of_dies("head_fast")  # heads at a time
    assert few.l2_die_hit_rate > many.l2_die_hit_rate + 0.25
    assert 0 < many.l2_die_hit_rate <= many.l2_hit_rate
    assert many.hbm_read_bytes > 5 * few.hbm_read_bytes
    assert few.l2_bytes == many.l2_bytes


def test_without_caches_of_dies_all_that_sms_read_comes_from_the_shared_one():
    none = of_dies("swizzled", die_capacity="0 B")
    assert none.l2_die_hit_rate == 0
    assert of_dies("swizzled", dies=1).l2_die_hit_rate is None
