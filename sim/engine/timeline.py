"""What the device did over time, in a fixed number of bins that widen as the kernel goes on."""

import numpy as np
from numpy.typing import NDArray

from sim.engine.jit import called

HBM_BYTES, L2_BYTES, L2_HIT_BYTES, HBM_IN_FLIGHT, TENSOR_BUSY = range(5)
TRACKS = 5
BINS = 512
FIRST_WIDTH_S = 2.0**-30  # a power of two, so that widening is exact


def new_timeline() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Empty bins of shape (TRACKS, BINS), and the width of one in seconds (an array of one)."""
    return np.zeros((TRACKS, BINS)), np.array([FIRST_WIDTH_S])


@called
def widen(bins, width_s, end_s):
    """Join neighbouring bins until `end_s` falls into one."""
    while end_s >= width_s[0] * BINS:
        for track in range(TRACKS):
            for k in range(BINS // 2):
                bins[track, k] = bins[track, 2 * k] + bins[track, 2 * k + 1]
            bins[track, BINS // 2 :] = 0.0
        width_s[0] *= 2.0


@called
def add(bins, width_s, track, start_s, end_s, amount):
    """Spread `amount` evenly over [start_s, end_s]."""
    if end_s >= width_s[0] * BINS:
        widen(bins, width_s, end_s)
    width = width_s[0]
    first, last = int(start_s / width), int(end_s / width)
    if first == last:
        bins[track, last] += amount
        return
    rate = amount / (end_s - start_s)
    bins[track, first] += rate * ((first + 1) * width - start_s)
    for k in range(first + 1, last):
        bins[track, k] += rate * width
    bins[track, last] += rate * (end_s - last * width)
