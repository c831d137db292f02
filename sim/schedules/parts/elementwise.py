"""Elementwise kernels: each CTA loads a tile of every operand once, computes, stores its results.

As PyTorch has them: 128 threads of 8 elements (aten/src/ATen/native/cuda/CUDALoops.cuh), whole rows
where a row is shorter.
"""

from collections.abc import Sequence
from dataclasses import replace

from sim.schedules.base import blocks
from sim.schedules.parts import registers
from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    Store,
    Stream,
    Tensor,
    once,
)

THREADS = 128
ELEMENTS_A_CTA = 8 * THREADS
SIDE_BY_SIDE = 4  # so that such a pass cuts tensors no finer than others do
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


def one_by_one(
    name: str,
    reads: Sequence[Stream],
    write: Stream,
    a_thread: int,
    line: int,
    *,
    vector_ops: int,
    other_ops: int,
) -> Kernel:
    """CTAs of THREADS, each thread with `a_thread` elements: the next is loaded after a store.

    Of SIDE_BY_SIDE such CTAs, which do the same, one stands for all, with their elements of a trip
    as its tile. Streams number those tiles; the tiles of a CTA are in one `line` of so many, where
    a stream's next tile is as far on as its stride says.
    """
    a_line = blocks(line, a_thread)

    def first(items: IntArray) -> IntArray:
        tile: IntArray = items // a_line * line + items % a_line * a_thread
        return tile

    def trips(items: IntArray) -> IntArray:
        left: IntArray = (line - items % a_line * a_thread).clip(max=a_thread)
        return left

    def of_cta(stream: Stream) -> Stream:
        return replace(stream, base=lambda items: stream.base(first(items)))

    loads = tuple(Load(of_cta(stream)) for stream in reads)
    work = Compute(name, loads, 0, vector_ops, other_ops=other_ops)
    tiles = write.tensor.groups * write.tiles_down * write.tiles_across
    return Kernel(
        name=name,
        ctas=tiles // line * a_line,
        loops=(Loop(trips, (*loads, work, Store(of_cta(write)))),),
        footprint=Footprint(0, SIDE_BY_SIDE * THREADS, registers.ELEMENTWISE),
        periods=write.tensor.groups,
    )


def rows_of(tensor: Tensor, elements: int = ELEMENTS_A_CTA) -> int:
    """Rows of the tensor that have about so many elements: one at least."""
    return min(tensor.rows, max(1, elements // tensor.cols))


def in_order(tensor: Tensor, rows: int, cols: int | None = None) -> Stream:
    """CTA c's tile is tile c, of so many rows and all columns unless `cols` says how many."""
    return Stream(tensor, rows, cols or tensor.cols, lambda items: items)
