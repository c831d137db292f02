"""Radix selection, the k highest of each row of scores, and PyTorch's sort of a few numbers.

    for each row (one CTA):
        for each pass over the digits of the scores, and once more to gather:
            for each piece of the row: load it;  count its digits, or write what is above
        store the numbers of the k highest

Source: RAFT's radix_topk_one_block_kernel (rapidsai/raft, matrix/detail/select_radix.cuh: 512
threads, digits of 8 bits), as Quest runs it (kernels/include/topk/decode_select_k.cuh). PyTorch's
topk is much the same with smaller digits and, on long rows, several blocks a row. A row is read
anew in every pass; of a short one L1, which is not modelled, saves most of that. Two lane
operations a score and pass are an estimate.
"""

import numpy as np

from sim.schedules.base import blocks, of_constant
from sim.schedules.parts import registers
from sim.schedules.parts.elementwise import elementwise, in_order, rows_of
from sim.tile_program import Compute, Footprint, Kernel, Load, Loop, Store, Stream, Tensor, once

DIGIT_BITS = 8
THREADS = 512
PIECE = 8 * THREADS  # scores that the CTA loads at once
INDEX_BYTES = 4
# Lane operations a compare and swap of PyTorch's sort (aten/src/ATen/native/cuda/bitonicSort.cuh):
# an estimate.
SORT_OPS = 20


def top_k_kernel(name: str, scores: Tensor, found: Tensor) -> Kernel:
    """Selection of the columns of `scores` whose numbers `found` holds, row for row."""
    width = min(scores.cols, PIECE)
    across = blocks(scores.cols, width)
    passes = 8 * scores.element_bytes // DIGIT_BITS + 1
    pieces = np.tile(np.arange(across), passes)
    load = Load(Stream(scores, 1, width, lambda items: items * across, table=pieces), stages=2)
    count = Compute("count digits", (load,), vector_ops=2 * width)
    return Kernel(
        name=name,
        ctas=scores.groups * scores.rows,
        periods=scores.groups,
        loops=(
            Loop(of_constant(len(pieces)), (load, count)),
            Loop(once, (Store(in_order(found, 1)),)),
        ),
        footprint=Footprint(0, THREADS, registers.SELECT),
    )


def sort_steps(numbers: int) -> int:
    """Dependent steps of a bitonic sort of so many, or of the next power of two."""
    stages = max(1, numbers - 1).bit_length()
    return stages * (stages + 1) // 2


def sort_kernel(name: str, numbers: Tensor, *positions: Tensor) -> Kernel:
    """PyTorch's sort of each row in place, and where each number stood if `positions` says where.

    Longer rows than some thousand it sorts by radix, in several launches: one here.
    """
    rows = rows_of(numbers)
    moved = in_order(numbers, rows)
    steps = sort_steps(numbers.cols) * rows * numbers.cols // 2
    results = (moved, *(in_order(tensor, rows) for tensor in positions))
    return elementwise(name, (moved,), results, steps * SORT_OPS)
