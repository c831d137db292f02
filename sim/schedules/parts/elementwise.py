"""Elementwise kernels: each CTA loads a tile of every operand once, computes, stores its results.

As PyTorch has them: 128 threads of 8 elements (aten/src/ATen/native/cuda/CUDALoops.cuh), whole rows
where a row is shorter.
"""

from collections.abc import Sequence

from sim.schedules.parts import registers
from sim.tile_program import Compute, Footprint, Kernel, Load, Loop, Store, Stream, Tensor, once

THREADS = 128
ELEMENTS_A_CTA = 8 * THREADS
FOOTPRINT = Footprint(0, THREADS, registers.ELEMENTWISE)


def elementwise(
    name: str,
    reads: Sequence[Stream],
    writes: Sequence[Stream],
    vector_ops: int,
    exp_count: int = 0,
    *,
    other_ops: int = 0,
    sram_bytes: int = 0,
    footprint: Footprint = FOOTPRINT,
) -> Kernel:
    """A CTA for each tile of the first result, with so much work; operands arrive in order."""
    result = writes[0]
    loads = tuple(map(Load, reads))
    work = Compute(name, loads, 0, vector_ops, exp_count, sram_bytes, other_ops)
    return Kernel(
        name=name,
        ctas=result.tensor.groups * result.tiles_down * result.tiles_across,
        loops=(Loop(once, (*loads, work, *map(Store, writes))),),
        footprint=footprint,
        periods=result.tensor.groups,
    )


def rows_of(tensor: Tensor, elements: int = ELEMENTS_A_CTA) -> int:
    """Rows of the tensor that have about so many elements: one at least."""
    return min(tensor.rows, max(1, elements // tensor.cols))


def in_order(tensor: Tensor, rows: int, cols: int | None = None) -> Stream:
    """CTA c's tile is tile c, of so many rows and all columns unless `cols` says how many."""
    return Stream(tensor, rows, cols or tensor.cols, lambda items: items)
