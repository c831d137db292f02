"""What kernels say of their grids: parts that are alike, and how many of them share K and V."""

from collections import Counter

import numpy as np
from hypothesis import given, settings

from sim.schedules.paged import Paged
from sim.tile_program import Kernel, Load, Stream
from tests.support.drawn import cases, devices, lowered


def by_period(kernel: Kernel, numbers: np.ndarray) -> np.ndarray:
    """A number for each CTA: a row for each of the grid's periods."""
    return np.asarray(numbers).reshape(kernel.periods, -1)


def loads_of_keys(kernel: Kernel) -> list[tuple[np.ndarray, Stream]]:
    """The loads of K: how often each CTA makes one, and its stream."""
    return [
        (trips, op.stream)
        for trips, loop in zip(kernel.trips, kernel.loops, strict=True)
        for op in loop.ops
        if isinstance(op, Load) and op.stream.tensor.role == "key"
    ]


@given(cases(), devices())
@settings(max_examples=200)
def test_the_periods_of_a_grid_have_like_trips_and_tiles(case, hw):
    w, schedule = case
    for kernel in lowered(schedule, w, hw):
        if kernel.items_per_cta > 1:  # each CTA goes through all of them
            continue
        assert kernel.ctas % kernel.periods == 0
        for trips in kernel.trips:
            assert (by_period(kernel, trips) == by_period(kernel, trips)[0]).all()
        for stream in kernel.streams:
            tiles = by_period(kernel, stream.base(kernel.items))
            moved = tiles - tiles[:, :1]  # all tiles of a period lie as far from those of the first
            assert (moved == moved[0]).all()


@given(cases(), devices())
@settings(max_examples=200)
def test_each_matrix_of_k_is_read_in_as_many_periods_as_share_it(case, hw):
    w, schedule = case
    for kernel in lowered(schedule, w, hw):
        for trips, stream in loads_of_keys(kernel):
            pooled = stream.tensor.groups == 1 or isinstance(schedule, Paged)  # of all sequences
            if kernel.items_per_cta > 1 or pooled:
                continue
            tiles = 1 if stream.table is not None else stream.tiles_down * stream.tiles_across
            matrix = by_period(kernel, stream.base(kernel.items) // tiles)
            reads = by_period(kernel, trips > 0)
            readers = Counter(
                found
                for row, does in zip(matrix, reads, strict=True)
                for found in set(row[does].tolist())
            )
            assert set(readers.values()) <= {kernel.sharing}
