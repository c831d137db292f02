"""What the device did over time, in a fixed number of bins that widen as the kernel goes on."""

import numpy as np
from numpy.typing import NDArray

from sim.engine.compiled.jit import called

HBM_BYTES, L2_BYTES, L2_HIT_BYTES, HBM_IN_FLIGHT, TENSOR_BUSY = range(5)
TRACKS = 5
BINS = 512
FIRST_BINS_PER_S = 2.0**30  # a power of two, so that widening and multiplying by it are exact


def new_timeline() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Empty bins of shape (TRACKS, BINS), and how many make a second (an array of one)."""
    return np.zeros((TRACKS, BINS)), np.array([FIRST_BINS_PER_S])


@called
def widen(bins, bins_per_s, end_s):
    """Join neighbouring bins until `end_s` falls into one."""
    while end_s * bins_per_s[0] >= BINS:
        for track in range(TRACKS):
            for k in range(BINS // 2):
                joined = bins[track, 2 * k] + bins[track, 2 * k + 1]
                bins[track, 2 * k] = bins[track, 2 * k + 1] = 0.0
                bins[track, k] = joined
        bins_per_s[0] /= 2.0


@called
def add(bins, bins_per_s, track, start_s, end_s, amount):
    """Spread `amount` evenly over [start_s, end_s]."""
    start, end = start_s * bins_per_s[0], end_s * bins_per_s[0]  # in bins
    if end >= BINS:
        widen(bins, bins_per_s, end_s)
        start, end = start_s * bins_per_s[0], end_s * bins_per_s[0]
    first, last = int(start), int(end)
    if first == last:
        bins[track, np.uint64(last)] += amount  # unsigned: see `at`
        return
    a_bin = amount / (end - start)
    bins[track, first] += a_bin * (first + 1 - start)
    for k in range(first + 1, last):
        bins[track, k] += a_bin
    bins[track, last] += a_bin * (end - last)
