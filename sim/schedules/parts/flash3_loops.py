"""What the kernels of FlashAttention-3's kind load, compute and store of each block of query rows.

In FlashAttention-3 a key block's softmax runs while the tensor pipe serves P V of the one before;
with the sums of vLLM's fork P V is waited for first. In TensorRT-LLM's kernel, and in vLLM's behind
a window at head_dim 64 in 16 bits, a warp group does one after the other, so that only another's
matmuls run beside its softmax.

Source: Dao-AILab/flash-attention, hopper/: mainloop_fwd_sm90_tma_gmma_ws.hpp (mma), mask.h,
paged_kv.h, epilogue_fwd.hpp; vllm-project/flash-attention, hopper/utils.h (gemm);
NVIDIA/TensorRT-LLM, cpp/kernels/fmha_v2/src/fmha/warpspec/compute.h (compute_single_tile).
"""

from copy import copy
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sim.machine_code.played import L1_CYCLES
from sim.schedules.parts.dealing import Dealt
from sim.schedules.parts.ends import beyond_port_bytes, finish
from sim.schedules.parts.flash3_cta import STAGES, Flash3Cta, Implementation
from sim.schedules.parts.instructions import (
    FLASH3_FIXED,
    PLAIN,
    Softmax,
    online_softmax,
)
from sim.schedules.parts.query_rows import O_ELEMENT_BYTES, QueryRows
from sim.schedules.parts.scores import changes
from sim.schedules.parts.traversal import LAST_TO_FIRST, Direction
from sim.tile_program import Compute, IntArray, Load, Loop, OfItem, Op, Stream, Tensor


class MaskedScore(NamedTuple):
    """What masking a score takes of a thread."""

    ops: int
    waited_cycles: int


# Packed by two, P is converted once O += P V is done (convert_type_out in the main loop).
CONVERTED_A_SCORE = 2
# Of a masked score: a comparison, a selection (mask.h, apply; of the first block always, for the
# end of the keys). Behind a window, which has two edges, issue slots, and cycles that a warp waits
# for itself, as no registers are left for what comparisons come to. Masked loops less plain ones:
# SGLang 0.5.14's wheel and vLLM 0.24.0's have 5.7 and 3.9 instructions a score more and by play
# take 15 and 7 cycles of a warp alone on its sub-partition. FlashInfer's copy of fmha_v2, compiled
# for sm_90a, has 3.5 more, most for the ALU, half as fast as they are issued: by play two warps
# that share a sub-partition take 14 cycles for a score of each, as if each were issued for 7.
MASK = MaskedScore(ops=2, waited_cycles=0)
WINDOW_MASK: dict[Implementation, MaskedScore] = {
    "fa3": MaskedScore(6, 9),  # taken to be as its fork's
    "sglang": MaskedScore(6, 9),
    "vllm": MaskedScore(4, 3),
    "trtllm": MaskedScore(7, 0),
}
LATENCY_CYCLES = 36.6  # of calibration.sm.op_latency: Hopper's 20 ns at 1.83 GHz
# Of 16 bytes that the producer copies from a page: the copy, half of shuffling the row's pointer,
# its address (paged_kv.h, load_K). The last is an estimate.
COPY_OPS, COPY_BYTES = 3, 16
WARPS_A_GROUP = 4
MAXIMUM_OPS_A_ROW = 16  # 8 of maxima, and of 16 shuffles half (see instructions)
# The source waits for P V after the softmax, ptxas before most of it: a quarter of a trip's
# exponentials come first where TMA loads K and V and P stays in registers (0 to 43% in 38 kernels
# of 16 bits in the wheels of xformers 0.0.32.post2, sgl-kernel 0.3.21 and vLLM 0.33.0), and hardly
# any where the producer copies pages or P goes through SRAM.
EXPS_A_BESIDE = 4
# Columns that a wgmma of 8-bit operands sums over. vLLM's fork, whose sums stand apart, is compiled
# to wait for each, of S too (all 78 fp8 loops that were read of vLLM 0.24.0's wheel, head_dim 64 to
# 256, from pages and not: as many waits, WARPGROUP.DEPBAR, as QGMMA).
DEPTH_A_MATMUL = 32
# Cycles of the producer's chain for a block of an fp8 V, and of each KiB: it reads the page table,
# waits for V, transposes it (LDSM.T, PRMT, STSM). Played through (sim/machine_code/played.py), with
# the numbers of pages from L1: of vLLM 0.24.0's wheel 1,000 for 12 KiB to 1,570 for 24, of SGLang
# 0.5.14's (sglang-kernel 0.4.4) 2,010 for 20, of FlashInfer's copy of fmha_v2 (warpspec/dma.h)
# 2,785 for 32.
TRANSPOSING_CYCLES: dict[Implementation, int] = {
    "fa3": 1090,
    "sglang": 1090,
    "vllm": 450,
    "trtllm": 1310,
}
TRANSPOSING_CYCLES_A_KIB = 46
# Of a wait for a part of a matmul: with 60 loops of vLLM's wheel played through take 2,450 cycles a
# trip (head_dim 64, three warp groups) and 4,330 to 4,930 (128, two), which its `fit` rows of 4,096
# and 16,384 tokens ask for; with 20 they would take 2,300 and 3,540 to 4,310.
MATMUL_WAIT_CYCLES = 60
# What a warp group does in its turn beside its matmuls, for each score of a thread: O's sum set to
# zero, maxima, differences to them (played through: 880 cycles for 96, 390 for 48).
TURN_CYCLES_A_SCORE = 9
NO_SOFTMAX = Softmax(0, 0, 0)


class Work:
    """What the loops load, compute and store of each item's block of query rows."""

    def __init__(self, cta: Flash3Cta, rows: QueryRows, dealt: Dealt) -> None:
        self.cta, self.rows, self.dealt, self.way = cta, rows, dealt, LAST_TO_FIRST
        w, tile, d, d_v = cta.w, cta.tile, cta.head_dim, cta.value_dim
        self.tensors, self.lse = rows.tensors()
        self.partial = rows.partial()
        self.o_elements, self.scores = tile.q * d_v, tile.q * tile.kv
        k_bytes, v_bytes = (tile.kv * cols * w.dtype_bytes for cols in (d, d_v))
        self.s_flops, self.pv_flops = 2 * self.scores * d, 2 * self.scores * d_v
        # Written once by TMA, then read whole by every warp group; Q's rows are read again each
        # time.
        read = 1 + cta.workers
        p_bytes = self.scores * w.dtype_bytes if cta.p_in_sram else 0
        self.qk_sram_bytes = tile.q * d * w.dtype_bytes + read * k_bytes
        self.pv_sram_bytes = read * v_bytes + 2 * p_bytes
        self.transpose_ops = self.transposed_bytes = 0
        self.k_copy_ops, self.v_copy_ops = (
            COPY_OPS * copied // COPY_BYTES if cta.copies else 0 for copied in (k_bytes, v_bytes)
        )
        if w.dtype_bytes == 1:
            # The producer transposes V, by LDSM.T and STSM with a permutation of bytes for every 4.
            self.transpose_ops = tile.kv * d_v // 4
            self.transposed_bytes = 2 * v_bytes

    def going(self, way: Direction) -> "Work":
        """The same of the items that go this way through their keys."""
        same = copy(self)
        same.way = way
        return same

    def key_blocks(self, items: IntArray) -> IntArray:
        """Key blocks of each item; none of one without a tile, or that goes another way."""
        here = self.dealt.has_tile(items) * self.way.goes(items)
        return here * self.rows.key_blocks(self.dealt.tile(items))

    def has_keys(self, items: IntArray) -> IntArray:
        """1 where an item has key blocks."""
        return np.minimum(self.key_blocks(items), 1)

    def trips(self, items: IntArray) -> IntArray:
        """All key blocks but the first."""
        return self.key_blocks(items) - self.has_keys(items)

    def load_q(self) -> Load:
        """Q's block."""
        return Load(self._rows_of(self.tensors.q))

    def load(self, tensor: Tensor, skipped: int = 0, stages: int = STAGES) -> Load:
        """K's or V's blocks, all but so many of the first."""
        return self._brought(tensor, self._keys_of(tensor, skipped), stages)

    def _brought(self, tensor: Tensor, stream: Stream, stages: int) -> Load:
        """A load of K or V, by a producer that copies nothing while it transposes V."""
        if tensor is not self.tensors.v or self.cta.w.dtype_bytes > 1:
            return Load(stream, stages)
        kib = self.cta.tile.kv * self.cta.value_dim // 1024
        cycles = TRANSPOSING_CYCLES[self.cta.implementation] + TRANSPOSING_CYCLES_A_KIB * kib
        if not self.cta.copies:
            return Load(stream, stages, cycles)
        return Load(stream, stages, cycles - L1_CYCLES, held_reads=1)

    def load_first_of(self, tensor: Tensor) -> Load:
        """The block that is visited last."""

        def base(items: IntArray) -> IntArray:
            trips = self.rows.key_blocks(self.dealt.tile(items)) - 1
            return visited.base(items) + visited.stride * trips

        visited = self._keys_of(tensor, 0)
        stream = Stream(tensor, visited.tile_rows, visited.tile_cols, base)
        return self._brought(tensor, stream, stages=1)

    def scored(self, *reads: Load, vector_ops: int = 0) -> Compute:
        """S = Q K^T, and so much beside it."""
        return Compute(
            "S = Q K^T",
            reads,
            self.s_flops,
            vector_ops,
            sram_bytes=self.qk_sram_bytes,
            other_ops=self.k_copy_ops,
            latencies=self._waits(self.cta.head_dim),
        )

    def accumulated(self, load_v: Load, softmax: Softmax = NO_SOFTMAX) -> Compute:
        """O += P V, and so much of a softmax while the tensor pipe serves it."""
        return self.beside_producer(self.multiplied(load_v, softmax))

    def multiplied(self, load_v: Load, softmax: Softmax = NO_SOFTMAX) -> Compute:
        """The same, without what the producer does meanwhile."""
        return Compute(
            "O += P V",
            (load_v,),
            self.pv_flops,
            softmax.fp32_ops,
            softmax.exps,
            self.pv_sram_bytes,
            softmax.other_ops + self.v_copy_ops,
            exps_beside=softmax.exps // EXPS_A_BESIDE if self.cta.begins_beside_pv else 0,
            latencies=self._waits(self.cta.tile.kv),
        )

    def beside_producer(self, op: Compute) -> Compute:
        """The op, and the producer's transposing of a block of V for a trip to come."""
        return replace(
            op,
            other_ops=op.other_ops + self.transpose_ops,
            sram_bytes=op.sram_bytes + self.transposed_bytes,
        )

    def _waits(self, depth: int) -> int:
        """The latencies that a warp group waits in a matmul that sums over so many columns."""
        if not self.cta.adds_apart:
            return 1
        return round(self.waited_cycles(depth) / LATENCY_CYCLES)

    def waited_cycles(self, depth: int) -> int:
        """For how long it waits where it does for each part of such a matmul."""
        return depth // DEPTH_A_MATMUL * MATMUL_WAIT_CYCLES

    def added(self) -> Compute:
        """P V, summed from zeros, is added to O."""
        of_o = self.o_elements
        return Compute("O += sum, sum = 0", vector_ops=of_o, other_ops=of_o)

    def finishes(self) -> list[Loop]:
        """O goes out: whole through SRAM, of a range as it lies in registers.

        Of sequences of which none is split, or all are, there is only one of both.
        """
        # All ranges of a row lie together, tile after tile.
        lse_of_range = Stream(self.partial.lse, 1, self.cta.tile.q, self.dealt.tile)
        ends: list[tuple[OfItem, Stream, Stream, int]] = []
        if min(self.rows.of_each) == 1:
            o, sram_bytes = self._rows_of(self.tensors.o), 2 * self.o_elements * O_ELEMENT_BYTES
            ends.append((self._is_whole, o, self._rows_of(self.lse), sram_bytes))
        if self.rows.splits > 1:
            o = self._rows_of(self.partial.o)
            ends.append((self._is_split, o, lse_of_range, beyond_port_bytes(o)))
        return [
            finish(self.o_elements, o, lse, trips=trips, sram_bytes=sram_bytes)
            for trips, o, lse, sram_bytes in ends
        ]

    def _is_split(self, items: IntArray) -> IntArray:
        """1 where an item has key blocks, of a sequence in several ranges."""
        split: IntArray = self.rows.is_split(self.dealt.tile(items)) * self.has_keys(items)
        return split

    def _is_whole(self, items: IntArray) -> IntArray:
        """1 where an item has all key blocks of its rows."""
        return self.has_keys(items) - self._is_split(items)

    def _rows_of(self, tensor: Tensor) -> Stream:
        """Each item's block of rows, of partial results those of its range."""
        tile_of = self.rows.stored_tile if tensor.role == "partial" else self.rows.q_tile
        return Stream(
            tensor, self.cta.tile.q, tensor.cols, lambda items: tile_of(self.dealt.tile(items))
        )

    def _keys_of(self, tensor: Tensor, skipped: int) -> Stream:
        return self.rows.keys_of(tensor, self.dealt.tile, skipped, self.cta.shared_by, self.way)


def _in_one_step(softmax: Softmax) -> Compute:
    return Compute(
        "softmax",
        vector_ops=softmax.fp32_ops,
        exp_count=softmax.exps,
        other_ops=softmax.other_ops,
    )


class _Softmax:
    """The softmax of a key block: the first of a tile, and of others what stands where.

    Beside P V it is one step. Where a warp group has waited for its matmuls it is two: no
    exponential of a row begins before the row's maximum is there. (Not of the first block where all
    sequences have one length: that kernel's time is what `calibration.sm.async_issue_cycles` was
    fitted to, and with two steps fast-forward's coarse forms miss 2.5% of its HBM bytes.)
    """

    def __init__(self, work: Work) -> None:
        cta, scores, of_o = work.cta, work.scores, work.o_elements
        mask = WINDOW_MASK[cta.implementation] if cta.w.mask == "window" else MASK
        warps, mask_ops = WARPS_A_GROUP * cta.workers, mask.ops * scores
        mask_waits = mask.waited_cycles * cta.scores_a_thread / LATENCY_CYCLES
        a_score = PLAIN + changes(cta.w, by_column=True)
        whole = online_softmax(cta.tile.q, cta.tile.kv, cta.value_dim, warps, FLASH3_FIXED, a_score)
        self.maxima_ops = scores + MAXIMUM_OPS_A_ROW * cta.tile.q
        # There is no O yet, and nothing to rescale.
        first = Softmax(whole.fp32_ops - of_o, whole.other_ops + mask_ops, whole.exps - cta.tile.q)
        one_step: tuple[Compute, ...] = (_in_one_step(first),)
        self.first = (
            one_step if cta.of_one_length else self._alone(first, mask_ops, round(mask_waits))
        )
        converted = scores // CONVERTED_A_SCORE
        share = work.rows.masked_share
        masked, self.waits = round(share * mask_ops), round(share * mask_waits)
        self.beside = replace(
            whole,
            fp32_ops=whole.fp32_ops - of_o,
            other_ops=whole.other_ops - converted + masked,
        )
        self.alone = self._alone(self.beside, masked, self.waits)
        after = 0 if cta.rescales_first else of_o
        self.convert = Compute("convert P, rescale O", vector_ops=after, other_ops=converted)
        self.rescaled_first = of_o - after

    def _alone(self, softmax: Softmax, mask_ops: int, waits: int) -> tuple[Compute, Compute]:
        before = self.maxima_ops + mask_ops
        after = replace(softmax, other_ops=softmax.other_ops - before)
        masked = Compute("mask S, maxima", other_ops=before, latencies=1 + waits)
        return masked, _in_one_step(after)


def loops(work: Work) -> tuple[Loop, ...]:
    """Of each tile; of those kernels that go through a key block in order, or overlap two."""
    return _in_order(work) if work.cta.in_order else _overlapped(work)


def _in_order(work: Work) -> tuple[Loop, ...]:
    """Each key block's scores, softmax, P V, one after the other."""
    k, v, softmax = work.tensors.k, work.tensors.v, _Softmax(work)
    load_q, first_k, first_v = work.load_q(), work.load(k, stages=1), work.load(v, stages=1)
    scored = work.scored(load_q, first_k)
    last = work.accumulated(first_v)
    first: tuple[Op, ...] = (load_q, first_k, first_v, scored, *softmax.first, last)
    load_k, load_v = work.load(k, skipped=1), work.load(v, skipped=1)
    alone: tuple[Op, ...] = (*softmax.alone, softmax.convert)
    trip: tuple[Op, ...] = (load_k, load_v, work.scored(load_k), *alone, work.accumulated(load_v))
    return (Loop(work.has_keys, first), Loop(work.trips, trip), *work.finishes())


def _overlapped(work: Work) -> tuple[Loop, ...]:
    """The softmax of each key block beside P V of the one before."""
    k, v, softmax = work.tensors.k, work.tensors.v, _Softmax(work)
    load_q, first_k = work.load_q(), work.load(k, stages=1)
    prologue: tuple[Op, ...] = (load_q, first_k, work.scored(load_q, first_k), *softmax.first)

    load_k, load_v = work.load(k, skipped=1), work.load(v)
    trip = _summed_apart if work.cta.adds_apart else _summed
    epilogues = []
    for end in work.finishes():
        last_v = work.load_first_of(v)
        last: tuple[Op, ...] = (work.accumulated(last_v),)
        if work.cta.adds_apart:
            last = (*last, work.added())
        epilogues.append(Loop(end.trips, (last_v, *last, *end.ops)))
    trips = Loop(work.trips, (load_k, load_v, *trip(work, softmax, load_k, load_v)))
    return (Loop(work.has_keys, prologue), trips, *epilogues)


def _summed(work: Work, softmax: _Softmax, load_k: Load, load_v: Load) -> tuple[Op, ...]:
    """The softmax runs while the tensor pipe serves P V, which is summed on O."""
    scored = work.scored(load_k, vector_ops=softmax.rescaled_first)
    pv = work.accumulated(load_v, softmax.beside)
    return scored, replace(pv, latencies=pv.latencies + softmax.waits), softmax.convert


def _summed_apart(work: Work, softmax: _Softmax, load_k: Load, load_v: Load) -> tuple[Op, ...]:
    """Each part of a matmul is waited for; P V is added to O then."""
    scored, pv = work.scored(load_k), work.multiplied(load_v)
    masked, rest = softmax.alone
    until_maxima: tuple[Op, ...] = (scored, pv, masked)
    if work.cta.takes_turns:
        until_maxima = (_turn(work, scored, pv, masked),)
    return (*until_maxima, work.added(), work.beside_producer(rest), softmax.convert)


def _turn(work: Work, scored: Compute, pv: Compute, masked: Compute) -> Compute:
    """All three, while a warp group holds the tensor cores for itself."""
    cta = work.cta
    held_cycles = work.waited_cycles(cta.head_dim) + work.waited_cycles(cta.tile.kv)
    held_cycles += TURN_CYCLES_A_SCORE * cta.scores_a_thread
    return replace(
        masked,
        name="S = Q K^T; O += P V; maxima",
        reads=(*scored.reads, *pv.reads),
        mma_flops=scored.mma_flops + pv.mma_flops,
        sram_bytes=scored.sram_bytes + pv.sram_bytes,
        other_ops=scored.other_ops + pv.other_ops + masked.other_ops,
        held_cycles=cta.workers * held_cycles,
    )
