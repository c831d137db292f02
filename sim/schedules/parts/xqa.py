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
        the last tile's P V, with nothing beside it
        store O and log-sum-exp; the last CTA merges

A trip here is as many keys as a buffer of V holds, which slices of K come to as well. Its buffers
leave room for one CTA an SM. A window's first tile is read whole. Ranges are cut of all keys, shown
or not, so that behind a window most CTAs begin, have nothing to do and store that; an fp8 cache is
not split before Hopper (common/attentionOp.cpp: multi_block_mode). Hopper's kernel cuts the tiles
that are shown: its other CTAs return as soon as they know.

Source: flashinfer-ai/flashinfer, csrc/xqa/mha_sm90.cu: the tile (gemm0CtaTileNbTokens), buffers
(SharedMem), registers (kernel_mha's launch bounds), the merge (MultiBlockSMem); how many ranges:
NVIDIA/TensorRT-LLM, decoderXQAImplJIT (FlashInfer's launcher takes far fewer, a quarter of what
three CTAs an SM would be). Differences: the second warp group of Hopper's, which is a tile behind
the first, is not so at either end of the loop. The last CTA does not wait for the others. CTAs that
return at once are not there. A CTA's tiles lie as far apart as there are ranges, here one after the
other.
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
from sim.schedules.parts.counted import Counted
from sim.schedules.parts.ends import finish
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import Operand
from sim.schedules.parts.instructions import LANES, online_softmax
from sim.schedules.parts.results import Result
from sim.tile_program import Compute, IntArray, Kernel, Load, Loop, OfItem, Stream, once

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
# Its code, compiled by nvcc 13.0 and played through (sim/machine_code/played.py; one side of each
# branch), in 16 bits with larger slices, in 16 bits with smaller ones, and in 8. Of a tile and an
# element of head_dim, both kinds of warps side by side: of sm_90 2,303 and 3,684 cycles at head_dim
# 64 and 128 (sm_80: 4,168 at 128), of sm_89 2,855 and 5,261, in 8 bits, where each element is cast
# twice, 4,219 and 8,478. The second kind alone takes 1,376 and 2,648; 2,258 and 4,386; 3,065 and
# 6,436: so long goes on the last tile's P V, whose instructions are counted in its trip.
OF_MATMULS = 8  # cycles of a sub-partition an element that a tile's matmuls hold issue slots for
LARGE_TILE = (Counted(538, 920), Counted(12.9, 21.6, multiplied=OF_MATMULS))
SMALL_TILE = (Counted(573, 450), Counted(15.6, 37.6, multiplied=OF_MATMULS))
FP8_TILE = (Counted(509, -40), Counted(31.2, 66.5, multiplied=OF_MATMULS))
LARGE_LAST, SMALL_LAST, FP8_LAST = (
    (Counted(1, 104), Counted(0, 19.9)),
    (Counted(1, 130), Counted(0, 33.3)),
    (Counted(1, -306), Counted(0, 52.7)),
)
# Outside its loop a CTA finds out how long the sequence is and where its first page lies (a read of
# L2 each) and copies its first tile; then sums of four warps, O by way of SRAM; of one range of
# several, that all see what it stored, and a counter (two more round trips to L2). The way of a
# warp of the second kind that has no keys: of sm_90 868 and 762 instructions in 2,094 and 1,970
# cycles at head_dim 64 and 128, of sm_89, in 16 bits and in 8, 440 to 570 in 1,280 to 1,480.
LARGE_OUTSIDE, SMALL_OUTSIDE = Counted(820, 2_030), Counted(520, 1_400)
READS_BEFORE, READS_OF_A_RANGE = 2, 2


@dataclass(frozen=True)
class Ends:
    """What each CTA begins with, and what one that had keys waits for when they are read."""

    outside: Compute
    last: Compute

    def around(self, kernel: Kernel, has_keys: OfItem) -> Kernel:
        """The kernel with them, in place of its architecture's setup."""
        *loops, end = kernel.loops
        begin, last = Loop(once, (self.outside,)), Loop(has_keys, (self.last,))
        return replace(kernel, loops=(begin, *loops, last, end), sets_up=False)


@dataclass(frozen=True)
class Xqa:
    """One of XQA's two kernels: its CTA, ranges, loop, and the keys at which it begins to read.

    It cuts what is shown or all keys; `ends` are by how many ranges there are, if it has its own.
    """

    cta: FlashCta
    splits: int
    tile_keys: int
    loop: Callable[[AttentionWorkload, OfItem, Operand, Operand], Loop]
    cuts_shown: bool
    ends: Callable[[int], Ends] | None = None


def xqa_of(w: AttentionWorkload, hw: HardwareProfile) -> Xqa:
    """The kernel that reads such a cache on such a device, cut as TensorRT-LLM cuts it."""
    splits = xqa_splits(w, hw)
    if hw.arch == "sm90" and w.kv_dtype == "fp8":
        return Xqa(xqa_cta(w), splits, KEYS, xqa_loop, cuts_shown=True)
    cta, played = _warp_cta(w, hw), Played.of(w, hw)
    splits = splits if w.kv_dtype is None or hw.arch == "sm100" else 1
    loop = _warp_loop(cta.tile.kv, played.tile, hw)
    return Xqa(cta, splits, TILE_KEYS, loop, cuts_shown=False, ends=lambda n: played.ends(n, hw))


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


@dataclass(frozen=True)
class Played:
    """What its code takes: a tile, the last tile's P V, and all outside the loop."""

    tile: Counted
    last: Counted
    outside: Counted

    @staticmethod
    def of(w: AttentionWorkload, hw: HardwareProfile) -> "Played":
        """Of such a cache on such a device."""
        is_small = hw.arch in SMALL_SRAM
        tile, last = (SMALL_TILE, SMALL_LAST) if is_small else (LARGE_TILE, LARGE_LAST)
        if w.kv_dtype:
            tile, last = FP8_TILE, FP8_LAST
        of_tile, of_last = (
            base + an_element.times(w.head_dim) for base, an_element in (tile, last)
        )
        return Played(of_tile, of_last, SMALL_OUTSIDE if is_small else LARGE_OUTSIDE)

    def ends(self, splits: int, hw: HardwareProfile) -> Ends:
        """Of a CTA, where the keys are in so many ranges."""
        reads = READS_BEFORE + (READS_OF_A_RANGE if splits > 1 else 0)
        outside = replace(self.outside, l2_reads=reads)
        return Ends(
            outside.compute("find the range", (), hw, resident=1),
            self.last.compute("O += P V of the last tile", (), hw, resident=1),
        )


def _warp_loop(
    keys: int, tile: Counted, hw: HardwareProfile
) -> Callable[[AttentionWorkload, OfItem, Operand, Operand], Loop]:
    """The loop of trips of so many keys, both kinds of warps at work in each."""

    def loop(w: AttentionWorkload, trips: OfItem, k: Operand, v: Operand) -> Loop:
        rows = -(-w.heads // w.kv_heads // 16) * 16
        numbers = (k.numbers,) if k.numbers else ()
        loads = tuple(Load(stream, STAGES) for stream in (*numbers, *k.streams, *v.streams))
        row_bytes = w.head_dim * (1 if w.kv_dtype else w.dtype_bytes)
        sram_bytes = 4 * keys * row_bytes + 2 * rows * keys * w.dtype_bytes
        counted = replace(
            tile.times(keys / TILE_KEYS), sram_cycles=sram_bytes / hw.sram.bytes_per_clock
        )
        flops = 4 * rows * keys * w.head_dim
        both = counted.compute("S = Q K^T, softmax; O += P V", loads, hw, 1, flops)
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
