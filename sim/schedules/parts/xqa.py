"""XQA's decoding over an fp8 cache on Hopper, as TensorRT-LLM, vLLM and FlashInfer run it there.

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

Source: flashinfer-ai/flashinfer, csrc/xqa/mha_sm90.cu: the tile (gemm0CtaTileNbTokens), buffers
(SharedMem), registers (kernel_mha's launch bounds), the merge (MultiBlockSMem); how many ranges:
NVIDIA/TensorRT-LLM, decoderXQAImplJIT (FlashInfer's launcher takes far fewer, a quarter of what
three CTAs an SM would be). Differences: the second warp group, which is a tile behind the first, is
not so at either end of the loop. The last CTA does not wait for the others.
"""

from dataclasses import replace
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


def suits(w: AttentionWorkload, hw: HardwareProfile) -> bool:
    """Whether there is such a kernel: one query of up to 32 heads a KV head, no window."""
    return (
        hw.arch == "sm90"
        and w.kv_dtype == "fp8"
        and w.dtype in ("fp16", "bf16")
        and w.seq_q == 1
        and w.window is None
        and w.lengths is None
        and w.heads // w.kv_heads <= MOST_ROWS
        and w.head_dim in (64, 128, 256)
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
