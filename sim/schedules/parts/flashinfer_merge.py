"""FlashInfer's merge kernel: results over ranges of keys made one, a row of O at a time.

    each of as many CTAs as the SMs have room for, for each row of O that it is given:
        read where its ranges lie
        for each few ranges s (8 of head_dim 128), 4 times as many on their way:
            load O_s;  O += exp(lse_s - lse) O_s           (each few threads those of one range)
        add up what those have, one after the other
        store O and log-sum-exp

Source: flashinfer-ai/flashinfer 0.6.12, include/flashinfer/attention/cascade.cuh
(PersistentVariableLengthMergeStatesKernel, VariableLengthMergeStates), as nvcc 13.0 compiles it: a
row of one turn executes 820, 538 and 397 instructions on sm_90 at head_dims of 64, 128 and 256, in
2,198, 1,597 and 1,317 cycles of a CTA alone; on sm_89 743, 493 and 368 in 1,755, 1,592 and 1,327.
Difference: CTAs without a row are left out.
"""

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.machine import ctas_per_sm
from sim.schedules.base import STATISTICS_BYTES, blocks
from sim.schedules.parts import registers
from sim.schedules.parts.counted import Counted
from sim.schedules.parts.dealing import dealt_in_turn
from sim.schedules.parts.results import Result
from sim.tile_program import Footprint, IntArray, Kernel, Load, Loop, Store, Stream, Tensor

THREADS, STAGES = 128, 4
ALONE = 1  # CTAs that cycles are of: what others take beside is the pipes'
OF_A_ROW = Counted(60, 170)
OF_A_TURN = Counted(88, 430)
OF_SEVERAL = Counted(100, 450)
OF_A_RANGE_HELD = Counted(33, 65)


def merge_kernel(
    parts: Result, whole: Result, rows: IntArray, ranges: IntArray, hw: HardwareProfile
) -> Kernel:
    """Of each matrix so many rows in so many ranges; `parts` has a row a range of each matrix."""
    d, most_rows = whole.o.cols, whole.o.rows
    held = THREADS * max(16 // whole.o.element_bytes, d // 32) // d  # ranges
    splits = parts.lse.rows
    at_a_time = min(held, splits)
    most_turns = blocks(splits, at_a_time)
    matrix = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(len(matrix)) - np.repeat(np.cumsum(rows) - rows, rows)
    footprint = Footprint(
        STAGES * held * d * whole.o.element_bytes + THREADS * STATISTICS_BYTES,
        threads=THREADS,
        registers_per_thread=registers.MERGE,
    )
    dealt = dealt_in_turn(len(row), min(len(row), hw.sm.count * ctas_per_sm(footprint, hw)))

    def result_row(items: IntArray) -> IntArray:
        place = dealt.tile(items)
        at: IntArray = matrix[place] * most_rows + row[place]
        return at

    def first_ranges(items: IntArray) -> IntArray:
        place = dealt.tile(items)
        tile: IntArray = matrix[place] * most_turns * most_rows + row[place]
        return tile

    def turns(items: IntArray) -> IntArray:
        there: IntArray = -(-ranges[matrix[dealt.tile(items)]] // at_a_time)
        return there * dealt.has_tile(items)

    def several(items: IntArray) -> IntArray:
        return np.where(ranges[matrix[dealt.tile(items)]] > 1, dealt.has_tile(items), 0)

    def result(tensor: Tensor) -> Store:
        return Store(Stream(tensor, 1, tensor.cols, result_row))

    weights = Load(Stream(parts.lse, splits, 1, result_row))
    o = Load(Stream(parts.o, at_a_time, d, first_ranges, stride=most_rows), STAGES)
    added_up = OF_SEVERAL + OF_A_RANGE_HELD.times(held)
    find = OF_A_ROW.compute("find its ranges", (weights,), hw, ALONE)
    merge = OF_A_TURN.compute("O += exp(lse_s - lse) O_s", (o,), hw, ALONE)
    return Kernel(
        name="merge",
        ctas=dealt.ctas,
        loops=(
            Loop(dealt.has_tile, (weights, find)),
            Loop(turns, (o, merge)),
            Loop(several, (added_up.compute("add up", (), hw, ALONE),)),
            Loop(dealt.has_tile, (result(whole.o), result(whole.lse))),
        ),
        footprint=footprint,
        items_per_cta=dealt.items_per_cta,
        dealt_tiles=dealt.dealt_tiles,
        irregular=bool((ranges != ranges[0]).any()),
    )
