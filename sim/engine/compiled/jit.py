"""How the engine's functions are compiled (those that Python calls: `sim.code.jit`).

They do without Numba's reference counts, and their records are aligned: measured, 0.8 million tile
steps a second with the counts, 7.5 without, 10.2 with both.
"""

from functools import partial
from typing import Any

import numpy as np

from sim.code.jit import Inner

called = Inner
inlined = partial(Inner, forceinline=True)


@inlined
def at(records, number):
    """The record of a number, which is never negative: so none is counted from the end."""
    return records[np.uint64(number)]


def aligned(fields: list[Any]) -> np.dtype[np.void]:
    """The type of a record with those fields, each on a multiple of its size."""
    return np.dtype(fields, align=True)
