"""PyTorch's softmax of rows, as eager attention launches it.

    up to WARP_COLS columns:   a warp a row, which it holds in registers (softmax_warp_forward)
        load it, so many elements a lane in flight;  maximum;  exponentials and sum;  divide, store
    as long as a block of 1024 threads holds it in 9 registers each (cunn_SoftMaxForwardReg), beyond
where it fits 48 KiB of SRAM (cunn_SoftMaxForwardSmem): a block a row, the same
    longer:  the row is read three times

Until release 2.3 only WARP_COLS_2_3 columns went to a warp. Every longer row had a block of as few
threads as have 16 to 32 bytes each, up to 512 (cunn_SoftMaxForward), which reads it three times,
twice of them in L1, and whose first warp adds up what the threads found: far less an element.

Few of its times are those of its bytes: a quotient takes a check and a branch, so that a warp waits
for one element after the other, and a block takes each exponential twice, by some 70 instructions
an element. 16-bit elements are converted as they come, for which a few loads wait at a time.

Source: pytorch/pytorch, aten/src/ATen/native/cuda/SoftMax.cu (host_softmax, SoftMax_getBlockSize)
and PersistentSoftmax.cuh, after pull request 144679 of January 2025 (so 2.7) and before 122970 of
April 2024 (2.4). Counted in what nvcc 13.0 compiles these loops to for sm_75 and sm_90, played
through for one CTA (sim/machine_code/played.py); what CTAs on an SM take from each other is the
pipes' affair. A public series on a B200, of 1,823 rows in fp32, moves 2.51 TB/s of 2,048 columns,
1.61 of 2,176 and 2.42 of 4,096, of 8 that HBM has: here 2.42, 1.59 and 2.48. SRAM takes as much an
element as registers by that series (3.3 TB/s of 12,160 columns; by its machine code, which has half
of the instructions, it would be 4.8). Releases 2.4 to 2.6, which had it from 1,025 columns on, are
not told.
"""

from dataclasses import replace
from typing import Literal

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
WARP_COLS_2_3, WARP_BYTES_2_3 = 1024, 4096
ACCESS_BYTES, MOST_THREADS_2_3 = 16, 512
ROWS = 4  # of a block of 128 threads
BLOCK, MOST_A_THREAD = 1024, 9
SRAM_ROW_BYTES = 48 * 1024 - 128  # of what a kernel has unasked all but the sums of 32 warps
# Of a warp's row, by bytes an element: 5 to 10 waits for 1,024 to 2,048 columns, and 1 to 2.
COLS_IN_FLIGHT = {1: 256, 2: 256, 4: 1024}
# Of each element of a lane; of a block beside that what finding two sums and their maximum takes.
OF_WARP = Counted(40, 165)
OF_BLOCK = Counted(69, 738, 32)
BLOCK_SUMS = Counted(62, 745, 32)
# Of blocks of 4 to 16 warps until 2.3.
OF_BLOCK_2_3, BLOCK_SUMS_2_3 = Counted(36.5, 170), Counted(60, 1100)
FP32_AN_ELEMENT, EXPS_OF_WARP, EXPS_OF_BLOCK = 13, 3, 4  # exponentials, a reciprocal, its check


def softmax_kernel(
    scores: Tensor, p: Tensor, hw: HardwareProfile, release: Literal["2.3"] | None
) -> Kernel | None:
    """Of rows that are read once from L2; None where they are not. "2.3" is all until that."""
    row_bytes = scores.cols * scores.element_bytes
    if release:
        if scores.cols <= WARP_COLS_2_3 and row_bytes <= WARP_BYTES_2_3:
            return _by_warps(scores, p, hw)
        return _by_small_blocks(scores, p, hw)
    if scores.cols <= WARP_COLS and row_bytes <= WARP_BYTES:
        return _by_warps(scores, p, hw)
    if scores.cols <= MOST_A_THREAD * BLOCK:
        return _by_blocks(scores, p, hw, 0)
    fits = row_bytes <= min(SRAM_ROW_BYTES, hw.sram.max_per_cta)
    return _by_blocks(scores, p, hw, row_bytes) if fits else None


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
    counted = OF_BLOCK.times(a_thread) + BLOCK_SUMS
    return _of_block(scores, p, hw, footprint, counted)


def _by_small_blocks(scores: Tensor, p: Tensor, hw: HardwareProfile) -> Kernel | None:
    """None where the rows on an SM are more than its L1 holds."""
    an_access = ACCESS_BYTES // scores.element_bytes
    accesses = blocks(scores.cols, an_access)
    threads = min(max(1 << (accesses // 2 - 1).bit_length(), 32), MOST_THREADS_2_3)
    footprint = Footprint(4 * threads, threads, registers.rows_by_block(0))
    together = resident(footprint, scores.groups * scores.rows, hw)
    if together * scores.cols * scores.element_bytes > hw.sram.capacity:
        return None
    counted = OF_BLOCK_2_3.times(an_access * blocks(accesses, threads)) + BLOCK_SUMS_2_3
    return _of_block(scores, p, hw, footprint, replace(counted, warps=threads // 32))


def _of_block(
    scores: Tensor, p: Tensor, hw: HardwareProfile, footprint: Footprint, counted: Counted
) -> Kernel:
    ctas = scores.groups * scores.rows
    load = Load(Stream(scores, 1, scores.cols, lambda items: items))
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
