"""PyTorch's and xFormers' memory-efficient attention, forward: two CUTLASS matmuls a key block.

    for each block of query rows (one CTA), for each block of keys, first to last:
        for each slice of 32 columns:  load Q_i's and K_j's slice;  S += Q_i K_j^T of the slice
        m, P = online softmax of S, row by row through SRAM;  O_i = rescale(O_i);  P to SRAM
        for each slice of 32 keys:     load V_j's slice;  O_i += P V_j of the slice
    O_i = O_i / l_i;  store O_i and the log-sum-exp

A bias comes tile by tile through SRAM once S is there. A warp has 32 x 32 scores, so that warps
share rows and keys: each reads its part of both operands from SRAM. Q is not kept: its slices come
again with every key block. A slice is loaded while the one before is multiplied, and waited for
after it; the first of a matmul by itself. Warps meet wherever a slice is loaded.

Tiles, rows x keys, with O in registers: 64 x 64 up to head_dim 64, beyond 64 x 128 of 16 bits from
sm80 on, else 32 x 128. Beyond head_dim 128 O is summed in HBM, which is left out.

Source: pytorch/pytorch, aten/src/ATen/native/transformers/cuda/mem_eff_attention/:
kernel_forward.h (attention_kernel, iterative_softmax, getWarpsPerSmFw), gemm_kernel_utils.h
(DefaultGemmType: ThreadK), kernels/cutlassF.h (which tiles are compiled).

What differs: in fp32 on sm80 and later the kernel multiplies three times in TF32, here FMAs do it;
from sm80 on 16-bit slices come three ahead, not one; V's slices are as large, but cut by columns.
Masks cost nothing.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.machine import LANES
from sim.schedules.base import QKVO, Tile, blocks, visible_blocks
from sim.schedules.parts import registers
from sim.schedules.parts.ends import finish
from sim.schedules.parts.flash_loop import QueryBlocks, log_sum_exp
from sim.schedules.parts.results import Attention, Result
from sim.schedules.parts.scores import bias_matrix, bias_tensor
from sim.tile_program import (
    Barrier,
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    Op,
    Stream,
    Tensor,
    once,
)

MOST_HEAD_DIM = 128
SLICE = 32  # ThreadK: columns of Q and K, keys of P and V
SLICE_BUFFERS = 2
WARP_SIDE = 32  # rows and keys of a warp's scores
# Instructions of a warp, of 32 x 32 scores, by the machine code in xformers 0.0.24's wheel
# (_C.so, sm_75 and sm_80, head_dim 64 and 128, within a few of each other); what is skipped
# without bias, dropout and masked keys is left out. Of a slice beside its HMMA and LDSM; of a key
# block beside its slices.
SLICE_OPS = 45
SOFTMAX_FP32, SOFTMAX_EXPS, SOFTMAX_CONVERSIONS, SOFTMAX_OTHERS = 170, 33, 32, 480
# Results that wait for each other. Of a slice: its way from registers to SRAM, from there to
# registers, its matmul. Of a softmax four go round through SRAM, the maximum, what O is rescaled
# by, the sum, P: each a write, a barrier and a read.
SLICE_LATENCIES, SOFTMAX_LATENCIES = 3, 4 * 3
BEFORE_SM80 = ("sm70", "sm75")  # P is converted by the unit of exponentials, an element at a time


def mem_efficient_tile(w: AttentionWorkload, hw: HardwareProfile) -> Tile:
    """The public kernel's rows and keys."""
    if w.head_dim <= 64:
        return Tile(q=64, kv=64)
    wide = w.dtype_bytes == 2 and hw.arch not in BEFORE_SM80
    return Tile(q=64 if wide else 32, kv=128)


def mem_efficient_attention(w: AttentionWorkload, hw: HardwareProfile, tensors: QKVO) -> Attention:
    """The kernel on Q, K, V and O; it makes the log-sum-exp."""
    q, k, v, o = tensors
    tile, lse = mem_efficient_tile(w, hw), log_sum_exp(q)
    grid = QueryBlocks(w, tile)
    rows = grid.tiles(q, o, lse)
    first, end = visible_blocks(w, tile)

    def trips(items: IntArray) -> IntArray:
        """How many key blocks the mask shows."""
        shown: IntArray = np.maximum(end - first, 0)[grid.row(items)]
        return shown

    across = blocks(w.head_dim, SLICE)

    def of_rows(number: int) -> Load:
        stream = Stream(q, tile.q, SLICE, lambda items: grid.tile_of(items) * across + number)
        return Load(stream, 0)

    def of_keys(tensor: Tensor, number: int) -> Load:
        def base(items: IntArray) -> IntArray:
            block: IntArray = grid.first_key_block(items) + first[grid.row(items)]
            return block * across + number

        return Load(Stream(tensor, tile.kv, SLICE, base, stride=across), 0)

    slices_of_s = [(of_rows(number), of_keys(k, number)) for number in range(across)]
    slices_of_o = [(of_keys(v, number),) for number in range(across)]

    def of_bias(items: IntArray) -> IntArray:
        row = grid.row(items)
        block: IntArray = bias_matrix(w, grid.matrix(items)) * grid.down + row
        return block * blocks(w.seq_kv, tile.kv) + first[row]

    bias = (Load(Stream(bias_tensor(w), tile.q, tile.kv, of_bias, 1), 0),) if w.bias else ()
    loads = [load for each in (*slices_of_s, bias, *slices_of_o) for load in each]
    loop = Loop(trips, (*loads, *_trip(w, hw, tile, slices_of_s, slices_of_o, bias)))
    o_bytes = 2 * tile.q * w.head_dim * w.dtype_bytes
    kernel = Kernel(
        name="mem_efficient",
        ctas=rows.ctas,
        loops=(loop, finish(tile.q * w.head_dim, rows.o, rows.lse, trips=once, sram_bytes=o_bytes)),
        footprint=_footprint(w, hw, tile),
        tensor_path="mma_sync",
        periods=rows.periods,
        sharing=rows.sharing,
    )
    return Attention([kernel], Result(o, lse))


def _trip(
    w: AttentionWorkload,
    hw: HardwareProfile,
    tile: Tile,
    slices_of_s: Sequence[tuple[Load, ...]],
    slices_of_o: Sequence[tuple[Load, ...]],
    bias: tuple[Load, ...],
) -> Iterator[Op]:
    """S slice after slice, its softmax, O slice after slice."""
    element, scores = w.dtype_bytes, tile.q * tile.kv
    down, across = tile.q // WARP_SIDE, tile.kv // WARP_SIDE  # warps
    row_bytes, key_bytes = tile.q * SLICE * element, tile.kv * SLICE * element
    # Slices of Q and K are written, then read by every warp of a row, and of a column.
    s_bytes = (1 + across) * row_bytes + (1 + down) * key_bytes
    lanes = LANES * down * across
    yield from _sliced("S += Q K^T", slices_of_s, 2 * scores * SLICE, s_bytes, SLICE_OPS * lanes)
    if bias:
        yield Barrier(bias)
        yield Compute("S += bias", bias, vector_ops=scores, sram_bytes=2 * scores * element)
    by_the_unit = SOFTMAX_CONVERSIONS * (hw.arch in BEFORE_SM80)
    yield Compute(
        "softmax",
        vector_ops=SOFTMAX_FP32 * lanes,
        exp_count=(SOFTMAX_EXPS + by_the_unit) * lanes,
        sram_bytes=scores * element,
        other_ops=(SOFTMAX_OTHERS + SOFTMAX_CONVERSIONS - by_the_unit) * lanes,
        latencies=SOFTMAX_LATENCIES,
    )
    # O has as many columns as there are keys, P is read by every warp of a row.
    whole, p_bytes = 2 * scores * tile.kv, across * scores * element
    count = len(slices_of_o)
    o_bytes = (1 + down) * key_bytes + p_bytes // count
    yield from _sliced("O += P V", slices_of_o, whole // count, o_bytes, SLICE_OPS * lanes)


def _sliced(
    name: str, slices: Sequence[tuple[Load, ...]], mma_flops: int, sram_bytes: int, other_ops: int
) -> Iterator[Op]:
    """A matmul whose next slice is on its way while one is multiplied."""
    yield Barrier(slices[0])
    for number, loads in enumerate(slices):
        yield Barrier(slices[number + 1] if number + 1 < len(slices) else ())
        yield Compute(
            name,
            loads,
            mma_flops,
            sram_bytes=sram_bytes,
            other_ops=other_ops,
            latencies=SLICE_LATENCIES,
        )


def _footprint(w: AttentionWorkload, hw: HardwareProfile, tile: Tile) -> Footprint:
    """Slices of Q and K, then P and slices of V in the same place."""
    warps = tile.q * tile.kv // WARP_SIDE**2
    of_s = SLICE_BUFFERS * (tile.q + tile.kv) * SLICE
    of_o = tile.q * tile.kv + SLICE_BUFFERS * SLICE * tile.kv
    taken = registers.mem_efficient(w.dtype_bytes == 2 and hw.arch not in BEFORE_SM80)
    return Footprint(max(of_s, of_o) * w.dtype_bytes, 32 * warps, taken)
