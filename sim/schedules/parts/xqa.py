"""XQA's decoding, as TensorRT-LLM, vLLM and FlashInfer run it: a kernel of Hopper's, and another.

Over an fp8 cache on Hopper (mha_sm90.cu):

    for each KV head of each sequence, for each of `splits` ranges of its keys (one CTA):
        load the query rows of all heads that share the KV head, and make fp8 of them
        for each 64 keys, K and V in two buffers each, by TMA:
            S = K Q^T, softmax, P to SRAM                 (the first warp group)
            O += V^T P                                    (the second)
        store O and log-sum-exp, of one range of several in the dtype of O
        the last CTA of a KV head: for each of its ranges, four on their way:
            load O_s, log-sum-exp_s;  O += exp(lse_s - lse) O_s

Keys are the rows of its matmuls, so that 8 query heads are not filled up to 64, and none of the
cache is made wider. A tile is short (16 KB of K and V) and its work a long chain of few operations:
one CTA an SM leaves half of HBM's rate, three (as many as there is room for) reach it.

Everywhere else, and over a cache of 16 bits (mha.cu), by mma.sync:

    for each KV head of each sequence, for each of `splits` ranges of its keys (one CTA):
        load the query rows
        for each 256 keys:
            four warps, 64 keys each, K in slices of 64 or 128 bytes:  S = Q K^T, softmax, P to SRAM
            four others, 64 columns of O each, V a few keys at a time:  O += P V
        store O and log-sum-exp; the last CTA merges

A trip here is as many keys as a buffer of V holds, which slices of K come to as well. Its buffers
leave room for one CTA an SM. A window's first tile is read whole. Ranges are cut of all keys, shown
or not, so that behind a window most CTAs begin and have nothing to do; an fp8 cache is not split
before Hopper (common/attentionOp.cpp: multi_block_mode).

Source: flashinfer-ai/flashinfer, csrc/xqa/mha_sm90.cu: the tile (gemm0CtaTileNbTokens), buffers
(SharedMem), registers (kernel_mha's launch bounds), the merge (MultiBlockSMem); how many ranges:
NVIDIA/TensorRT-LLM, decoderXQAImplJIT (FlashInfer's launcher takes far fewer, a quarter of what
three CTAs an SM would be). Differences: the second warp group, which is a tile behind the first, is
not so at either end of the loop. The last CTA does not wait for the others.
csrc/xqa/mha.cu: tiles (ctaTile, cacheVTileSeqLen, preferedKHeadPartBytes), buffers (SharedMem).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile
from sim.schedules.parts import registers
from sim.schedules.parts.ends import finish
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import Operand
from sim.schedules.parts.instructions import LANES, online_softmax
from sim.schedules.parts.results import Result
from sim.tile_program import Compute, IntArray, Kernel, Load, Loop, OfItem, Stream

KEYS, STAGES, GROUP_ROWS, MOST_ROWS = 64, 2, 8, 32
THREADS, WARPS = 3 * 128, 4  # two warp groups that compute, one that loads; see above
# Results that the first warp group waits for, one after the other, with each tile. K; maxima by
# three shuffles, the atomic one in SRAM, a barrier, what comes back, a barrier; exp; sums by three
# shuffles; fp8; room for P, P stored, a fence. And S: a matmul for each 32 of head_dim, on one
# accumulator. The second waits for fewer: P, maxima, exp, a barrier, sums, rescaling, and for each
# 32 keys V transposed, a fence, O (rescaleGemm1AccForNewColMax_sync, loadVTileTransposed).
LATENCIES, DEPTH_A_MATMUL = 17, 32
BYTES_PERMUTED = 4  # of V by a lane, between LDSM.T and its matmul (loadVTileTransposed)
FIXED = 50  # instructions of a warp and tile beside those, an estimate: barriers, addresses
MERGE_STAGES = 4  # MultiBlockSMem::nbBuf
LEAST_RANGE_KEYS, MOST_WAVES = 128, 8  # kMinHistoryTokensPerBlock, kTargetWaveFactor
HEAD_DIMS = (64, 128, 256)

# The other kernel's: keys of its tile; of a slice of V and bytes of one of K on SMs of 100 KB, and
# on larger ones; columns of O of a warp.
TILE_KEYS, V_KEYS, K_BYTES, COLUMNS = 256, (32, 64), (64, 128), 64
SMALL_SRAM = ("sm86", "sm89", "sm120")
# Instructions of a warp of either kind and tile together: 32 an element of head_dim and 300, within
# 8% of four compiled by nvcc 13.0 for sm_89 and sm_90, of bf16 and fp8, head_dim 64 and 128.
OPS_AN_ELEMENT, OPS_A_TILE = 32, 300
# Results that a warp of the first kind waits for: for each 16 of head_dim an LDSM and a matmul; K,
# a barrier, the maximum so far, 2 shuffles of maxima and what comes back, exp, sums by a matmul, P
# stored, a barrier.
LATENCIES_A_TILE, DEPTH_A_WARP_MATMUL = 10, 16


@dataclass(frozen=True)
class Xqa:
    """One of XQA's two kernels: its CTA, ranges, loop, and the keys at which it begins to read."""

    cta: FlashCta
    splits: int
    tile_keys: int
    loop: Callable[[AttentionWorkload, OfItem, Operand, Operand], Loop]


def xqa_of(w: AttentionWorkload, hw: HardwareProfile) -> Xqa:
    """The kernel that reads such a cache on such a device, cut as TensorRT-LLM cuts it."""
    splits = xqa_splits(w, hw)
    if hw.arch == "sm90" and w.kv_dtype == "fp8":
        return Xqa(xqa_cta(w), splits, KEYS, xqa_loop)
    cta = _warp_cta(w, hw)
    is_split = w.kv_dtype is None or hw.arch == "sm100"
    return Xqa(cta, splits if is_split else 1, TILE_KEYS, _warp_loop(cta.tile.kv))


def why_not(w: AttentionWorkload) -> str | None:
    """The key of a workload that neither kernel takes, and what was expected."""
    for key, is_taken, expected in (
        ("seq_q", w.seq_q == 1, "1"),
        ("dtype", w.dtype in ("fp16", "bf16"), "fp16 or bf16"),
        ("kv_dtype", w.kv_dtype in (None, "fp8"), "fp8, or workload.dtype,"),
        ("head_dim", w.head_dim in HEAD_DIMS, "64, 128 or 256"),
        ("heads", w.heads // w.kv_heads <= MOST_ROWS, "up to 32 a KV head"),
    ):
        if not is_taken:
            return f"workload.{key} = {getattr(w, key)}: {expected} was expected"
    return None if w.lengths is None else "workload.seq_kv: one length of all was expected"


def suits(w: AttentionWorkload, hw: HardwareProfile) -> bool:
    """Whether there is such a kernel: one query of up to 32 heads a KV head, no window."""
    return (
        hw.arch == "sm90"
        and w.kv_dtype == "fp8"
        and w.dtype in ("fp16", "bf16")
        and w.seq_q == 1
        and w.window is None
        and w.lengths is None
        and w.softcap is None
        and not w.alibi
        and w.heads // w.kv_heads <= MOST_ROWS
        and w.head_dim in HEAD_DIMS
    )


def xqa_cta(w: AttentionWorkload) -> FlashCta:
    """Its tile: 64 keys, and rows for the heads of a KV head (16 stand for 8)."""
    return FlashCta(
        Tile(q=-(-w.heads // w.kv_heads // 16) * 16, kv=KEYS),
        warps=WARPS,
        stages=STAGES,
        tensor_path="native",
        registers_per_thread=registers.XQA,
        producer_threads=THREADS - LANES * WARPS,
        head_dim_of=lambda head_dim: head_dim,
    )


def xqa_loop(w: AttentionWorkload, trips: OfItem, k: Operand, v: Operand) -> Loop:
    """The loop over tiles, a step each: both warp groups at work, on a tile and the one before."""
    rows = -(-w.heads // w.kv_heads // GROUP_ROWS) * GROUP_ROWS
    numbers = (k.numbers,) if k.numbers else ()
    loads = tuple(Load(stream, STAGES) for stream in (*numbers, *k.streams, *v.streams))
    cache, p = 2 * KEYS * w.head_dim, rows * KEYS  # bytes, of K and V and of P
    softmax = online_softmax(rows, KEYS, w.head_dim, 2 * WARPS, FIXED)
    both = Compute(
        "S = K Q^T, softmax; O += V^T P",
        loads,
        mma_flops=4 * rows * KEYS * w.head_dim,
        vector_ops=softmax.fp32_ops,
        exp_count=softmax.exps,
        sram_bytes=2 * cache + 2 * p + rows * w.head_dim,
        other_ops=softmax.other_ops + cache // 2 // BYTES_PERMUTED,
        latencies=LATENCIES + w.head_dim // DEPTH_A_MATMUL,
    )
    return Loop(trips, (*loads, both))


@dataclass(frozen=True)
class _WarpCta(FlashCta):
    """The other kernel's CTA, whose slices of K are of other sizes than those of V."""

    k_bytes: int = 0

    def sram_bytes(self, w: AttentionWorkload) -> int:
        """Q, two slices of K and of V for each warp, and P."""
        row = w.head_dim * (1 if w.kv_dtype else w.dtype_bytes)
        k, v = TILE_KEYS * min(self.k_bytes, row), self.tile.kv * row
        return self.tile.q * (w.head_dim + TILE_KEYS) * w.dtype_bytes + STAGES * (k + v)


def _warp_cta(w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
    is_large = hw.arch not in SMALL_SRAM
    groups = WARPS * COLUMNS // w.head_dim  # of warps, which share out the keys of V
    return _WarpCta(
        Tile(q=-(-w.heads // w.kv_heads // 16) * 16, kv=groups * V_KEYS[is_large]),
        warps=WARPS,
        stages=STAGES,
        registers_per_thread=registers.XQA_BY_WARP,
        producer_threads=LANES * WARPS,
        head_dim_of=lambda head_dim: head_dim,
        k_bytes=K_BYTES[is_large],
    )


def _warp_loop(keys: int) -> Callable[[AttentionWorkload, OfItem, Operand, Operand], Loop]:
    """The loop of trips of so many keys, both kinds of warps at work in each."""

    def loop(w: AttentionWorkload, trips: OfItem, k: Operand, v: Operand) -> Loop:
        rows = -(-w.heads // w.kv_heads // 16) * 16
        numbers = (k.numbers,) if k.numbers else ()
        loads = tuple(Load(stream, STAGES) for stream in (*numbers, *k.streams, *v.streams))
        row_bytes = w.head_dim * (1 if w.kv_dtype else w.dtype_bytes)
        instructions = WARPS * (OPS_AN_ELEMENT * w.head_dim + OPS_A_TILE)
        waits = 2 * w.head_dim // DEPTH_A_WARP_MATMUL + LATENCIES_A_TILE
        both = Compute(
            "S = Q K^T, softmax; O += P V",
            loads,
            mma_flops=4 * rows * keys * w.head_dim,
            exp_count=rows * keys,
            sram_bytes=4 * keys * row_bytes + 2 * rows * keys * w.dtype_bytes,
            other_ops=instructions * LANES * keys // TILE_KEYS,
            latencies=max(1, waits * keys // TILE_KEYS),
        )
        return Loop(trips, (*loads, both))

    return loop


def xqa_splits(w: AttentionWorkload, hw: HardwareProfile) -> int:
    """Ranges of each KV head's keys as TensorRT-LLM cuts them (computeMultiBlockCount)."""
    ranges = w.seq_kv // LEAST_RANGE_KEYS
    ranges = max(1, min(ranges, round(sqrt(8 * ranges))))
    waves = w.batch * w.kv_heads * ranges / hw.sm.count
    return max(1, int(ranges * min(1, MOST_WAVES / waves)))


def merged_by_last(
    kernel: Kernel, parts: Result, whole: Result, rows: int, place: tuple[OfItem, OfItem]
) -> Kernel:
    """The kernel, in which the CTA of each last range merges all ranges of its `rows` rows.

    `place` says which tile of rows, and which range, each CTA has.
    """
    splits, d = parts.lse.rows, whole.o.cols
    tiles = whole.o.rows // rows
    tile, number = place

    def is_last(items: IntArray) -> IntArray:
        last: IntArray = (number(items) == splits - 1).astype(np.int64)
        return last

    def ranges(items: IntArray) -> IntArray:
        return splits * is_last(items)

    o_s = Load(Stream(parts.o, rows, d, tile, stride=tiles), MERGE_STAGES)
    lse_s = Load(Stream(parts.lse, 1, rows, tile, stride=tiles), MERGE_STAGES)
    add = Compute(
        "O += exp(lse_s - lse) O_s",
        (o_s, lse_s),
        vector_ops=2 * rows * d,
        exp_count=rows,
        sram_bytes=2 * o_s.stream.tile_bytes,
    )
    results = (Stream(whole.o, rows, d, tile), Stream(whole.lse, rows, 1, tile))
    merge = Loop(ranges, (o_s, lse_s, add))
    return replace(kernel, loops=(*kernel.loops, merge, finish(rows * d, *results, trips=is_last)))
