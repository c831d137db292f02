"""PyTorch's topk of many short rows: radix selection by digits of two bits, a CTA a row.

    for each row (one CTA of as many threads as it has elements, 1,024 at most):
        for each two bits of the scores, from the highest:
            count the row's elements of each digit, by votes of each warp;  go on with one digit
        twice: write those above the k-th, then as many equal to it; thread 0 sums the warps' counts
    sort the k by scores

Source: pytorch/pytorch, aten/src/ATen/native/cuda/SortingRadixSelect.cuh (radixSelect),
TensorTopK.cu (gatherTopK), ScanUtils.cuh. The instructions of a warp were counted in what nvcc 13.0
makes of these loops for sm_80. A row is read once here: after that it is in L1.
"""

from sim.inputs.hardware import HardwareProfile
from sim.schedules.base import blocks
from sim.schedules.parts import registers
from sim.schedules.parts.counted import Counted, resident
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.top_k import sort_kernel
from sim.tile_program import Compute, Footprint, Kernel, Load, Loop, Store, Tensor, once

MOST_THREADS, LANES = 1024, 32
DIGIT_BITS = 2
PASS_INSTRUCTIONS, ELEMENT_INSTRUCTIONS = 70, 50  # of a digit, and of each element of a thread
GATHER_INSTRUCTIONS = 100
SUM_CYCLES = 90  # of thread 0 for each warp's count: 13 instructions, one after the other


def row_select_kernels(
    name: str, hw: HardwareProfile, scores: Tensor, found: Tensor
) -> list[Kernel]:
    """Selection of the columns of `scores` whose numbers `found` holds, row for row, in order."""
    threads = min(MOST_THREADS, LANES * blocks(scores.cols, LANES))
    warps, rounds = threads // LANES, blocks(scores.cols, threads)
    footprint = Footprint(0, threads, registers.SELECT)
    together = resident(footprint, scores.groups * scores.rows, hw)
    digits = 8 * scores.element_bytes // DIGIT_BITS
    count = digits * LANES * warps * (PASS_INSTRUCTIONS + rounds * ELEMENT_INSTRUCTIONS)
    gather = Counted(GATHER_INSTRUCTIONS, SUM_CYCLES * warps, warps).times(2 * rounds)
    load = Load(in_order(scores, 1))
    select = Kernel(
        name=name,
        ctas=scores.groups * scores.rows,
        periods=scores.groups,
        loops=(
            Loop(once, (load, Compute("count digits", (load,), other_ops=count))),
            Loop(once, (gather.compute("gather", (), hw, together),)),
            Loop(once, (Store(in_order(found, 1)),)),
        ),
        footprint=footprint,
    )
    return [select, sort_kernel(f"{name}: by scores", found)]
