"""PyTorch's softmax of rows, as eager attention launches it.

    up to WARP_COLS columns:   a warp a row, which it holds in registers (softmax_warp_forward)
        load it, so many elements a lane in flight;  maximum;  exponentials and sum;  divide, store
    as long as a block of 1024 threads holds it in 9 registers each (cunn_SoftMaxForwardReg), beyond
    where it fits SRAM (cunn_SoftMaxForwardSmem): a block a row, the same
    longer:  the row is read three times

Few of its times are those of its bytes: a quotient takes a check and a branch, so that a warp waits
for one element after the other, and a block takes each exponential twice, by some 70 instructions
an element. 16-bit elements are converted as they come, for which a few loads wait at a time.

Source: pytorch/pytorch, aten/src/ATen/native/cuda/SoftMax.cu (host_softmax, PyTorch 2.6 and later)
and PersistentSoftmax.cuh. Counted in what nvcc 13.0 compiles these loops to for sm_75 and sm_90,
played through for one CTA (sim/machine_code/played.py); what CTAs on an SM take from each other is
the pipes' affair. A public series on a B200, of 1,823 rows in fp32, moves 2.51 TB/s of 2,048
columns, 1.61 of 2,176 and 2.42 of 4,096, of 8 that HBM has: here 2.42, 1.59 and 2.48.
"""

from dataclasses import replace

from sim.inputs.hardware import HardwareProfile
from sim.schedules.base import blocks, of_constant
from sim.schedules.parts import registers
from sim.schedules.parts.counted import Counted, resident
from sim.tile_program import (
    Barrier,
    Compute,
    Footprint,
    Kernel,
    Load,
    Loop,
    Store,
    Stream,
    Tensor,
    once,
)

WARP_COLS, WARP_BYTES = 2048, 8192
ROWS = 4  # of a block of 128 threads
BLOCK, MOST_A_THREAD = 1024, 9
# Of a warp's row, by bytes an element: 5 to 10 waits for 1,024 to 2,048 columns, and 1 to 2.
COLS_IN_FLIGHT = {1: 256, 2: 256, 4: 1024}
# Of each element of a lane; of a block beside that what finding two sums and their maximum takes.
OF_WARP = Counted(40, 165)
OF_BLOCK = Counted(69, 738, 32)
BLOCK_SUMS = Counted(62, 745, 32)
FP32_AN_ELEMENT, EXPS_OF_WARP, EXPS_OF_BLOCK = 13, 3, 4  # exponentials, a reciprocal, its check


def softmax_kernel(scores: Tensor, p: Tensor, hw: HardwareProfile) -> Kernel | None:
    """Of rows that are read once; None where they are not."""
    row_bytes = scores.cols * scores.element_bytes
    if scores.cols <= WARP_COLS and row_bytes <= WARP_BYTES:
        return _by_warps(scores, p, hw)
    if scores.cols <= MOST_A_THREAD * BLOCK:
        return _by_blocks(scores, p, hw, 0)
    return _by_blocks(scores, p, hw, row_bytes) if row_bytes <= hw.sram.max_per_cta else None


def _by_warps(scores: Tensor, p: Tensor, hw: HardwareProfile) -> Kernel:
    footprint = Footprint(0, 128, registers.rows_by_warp(scores.cols))
    ctas = scores.groups * blocks(scores.rows, ROWS)
    width = min(scores.cols, COLS_IN_FLIGHT[scores.element_bytes])
    pieces = blocks(scores.cols, width)
    load = Load(Stream(scores, ROWS, width, lambda items: items * pieces, 1), 0)
    a_lane = OF_WARP.times(blocks(scores.cols, 32))
    work = _work(a_lane, ROWS * scores.cols, EXPS_OF_WARP, hw, resident(footprint, ctas, hw))
    arrive = Loop(of_constant(pieces), (load, Barrier((load,)), Compute("arrive", (load,))))
    return _kernel(scores, p, ROWS, footprint, (arrive, _stored(work, p, ROWS)))


def _by_blocks(scores: Tensor, p: Tensor, hw: HardwareProfile, sram_bytes: int) -> Kernel:
    a_thread = blocks(scores.cols, BLOCK)
    held = 0 if sram_bytes else a_thread
    footprint = Footprint(sram_bytes, BLOCK, registers.rows_by_block(held))
    ctas = scores.groups * scores.rows
    load = Load(Stream(scores, 1, scores.cols, lambda items: items))
    counted = OF_BLOCK.times(a_thread) + BLOCK_SUMS
    work = _work(counted, scores.cols, EXPS_OF_BLOCK, hw, resident(footprint, ctas, hw))
    arrive = Loop(once, (load, Compute("arrive", (load,))))
    return _kernel(scores, p, 1, footprint, (arrive, _stored(work, p, 1)))


def _work(
    counted: Counted, elements: int, exps: int, hw: HardwareProfile, together: int
) -> Compute:
    work = counted.compute("softmax", (), hw, together)
    vector_ops, exp_count = FP32_AN_ELEMENT * elements, exps * elements
    others = max(0, work.other_ops - vector_ops - exp_count)
    return replace(work, vector_ops=vector_ops, exp_count=exp_count, other_ops=others)


def _stored(work: Compute, p: Tensor, rows: int) -> Loop:
    return Loop(once, (work, Store(Stream(p, rows, p.cols, lambda items: items))))


def _kernel(
    scores: Tensor, p: Tensor, rows: int, footprint: Footprint, loops: tuple[Loop, ...]
) -> Kernel:
    return Kernel(
        name="P = softmax(S)",
        ctas=scores.groups * blocks(scores.rows, rows),
        loops=loops,
        footprint=footprint,
        periods=scores.groups,
    )
