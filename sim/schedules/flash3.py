"""FlashAttention-3, forward on Hopper.

    each persistent CTA: a producer warp group that loads by TMA, and a worker (consumer warp group)
    for every 64 of the tile.q query rows; for each block of query rows that it is given:
        load Q_i;  S_n = Q_i K_n^T;  P_n = softmax of S_n
        for each key block j = n-1 .. 1 that the mask shows, last to first:
            S_j = Q_i K_j^T                              (wgmma, waited for)
            O_i += P_j+1 V_j+1  while  P_j = online softmax of S_j
            convert P_j;  rescale O_i
        O_i += P_1 V_1;  O_i = O_i / l_i;  store O_i through SRAM by TMA, and the log-sum-exp

A worker's softmax runs while the tensor pipe serves its own second matmul and the other workers'
matmuls: the paper's overlap within a warp group, and its ping-pong between them.

Sequences of one length run one kernel; of any lengths (`call = "varlen"`) another, whose query
heads are always packed, whose CTAs share no loads and are dealt tiles on demand, sequence after
sequence; with K and V in pages smaller than a key block ("paged", as vLLM and SGLang call it) a
third, in which the producer copies K and V by cp.async, from smaller tiles.

Such sequences have splits of their own, and those with most key blocks a range are dealt first; the
results of one that is not split are stored at once.

Queries behind a cached prefix are taken as flash_attn_with_kvcache does: where their blocks fill
too few SMs, the keys of each are split in ranges, a CTA each, that write partial results in fp32,
and a second kernel combines them (modelled as FlashAttention-2's).

Source: Shah et al. 2024 (arXiv 2407.08608), Algorithm 2; Dao-AILab/flash-attention, hopper/:
tile_size.h (tile_size_fwd_sm90), mainloop_fwd_sm90_tma_gmma_ws.hpp (mma, RescaleOBeforeGemm),
flash_fwd_launch_template.h (2 stages, clusters), flash_fwd_kernel_sm90.h (SRAM, registers),
tile_scheduler.hpp, flash_prepare_scheduler.cu, heuristics.h (PackGQA, one consumer warp group,
num_splits_heuristic), flash_api.cpp (get_num_splits), flash_attn_interface.py (num_splits), mask.h,
paged_kv.h.

What differs: a CTA's next block of query rows is loaded when the one before is done, where the
producer runs ahead; K_n and V_1 have buffers of their own besides the two stages; a range without
keys stores nothing, where the kernel stores zeros; masks of key blocks that an edge cuts are spread
over a tile's trips but for the first; the page table is not read, nor is the kernel run that counts
the blocks of each sequence before a varlen call; ranges are a CTA each, not dealt.
"""

from dataclasses import replace
from sys import maxsize
from typing import ClassVar, Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload, Mask, Phase
from sim.schedules.base import Tile, TiledSchedule, check_arch
from sim.schedules.parts.dealing import (
    Dealt,
    by_sequence,
    dealt_in_turn,
    dealt_on_demand,
    like_sections,
    longest_first,
    section_of,
    varlen_section,
)
from sim.schedules.parts.ends import finish
from sim.schedules.parts.flash3_cta import (
    HEAD_DIMS,
    Q_SIDES,
    STAGES,
    Call,
    Flash3Cta,
    public_splits,
    public_tile,
)
from sim.schedules.parts.instructions import FLASH3_FIXED, Softmax, online_softmax
from sim.schedules.parts.query_rows import O_ELEMENT_BYTES, QueryRows
from sim.schedules.parts.results import Result
from sim.schedules.parts.split_kv import Splits, combine_of_splits
from sim.tile_program import Compute, IntArray, Kernel, Load, Loop, Stream, Tensor

# Packed by two, P is converted once O += P V is done (convert_type_out in the main loop).
CONVERTED_A_SCORE = 2
# Of a masked score: a comparison with each edge, a selection (mask.h, apply; of the first block
# always, for the end of the keys).
MASK_OPS: dict[Mask, int] = {"full": 2, "causal": 2, "window": 3}
# Of 16 bytes that the producer copies from a page: the copy, half of shuffling the row's pointer,
# its address (paged_kv.h, load_K). The last is an estimate.
COPY_OPS, COPY_BYTES = 3, 16
WARPS_A_GROUP = 4
NO_SOFTMAX = Softmax(0, 0, 0)
L2_SECTION_BYTES = 32 * 2**20  # of K and V (tile_scheduler.hpp, DynamicPersistentTileScheduler)


class Flash3(TiledSchedule):
    """FlashAttention-3. A `tile` that is given has 64, 128 or 192 query rows: a worker each 64.

    `call` says what it is called on: sequences of one length, of any, or of any in pages. `splits`
    are of the keys: unless given, 1 of a whole prompt, and behind a cached prefix as the public
    heuristic.
    """

    name: Literal["flash3"] = "flash3"
    call: Call = "batch"
    splits: Splits | None = None

    summary = "Hopper: warp groups that take turns at softmax and matmul, fed by TMA"
    source = "arXiv 2407.08608; Dao-AILab/flash-attention, hopper/"
    phases: ClassVar[tuple[Phase, ...]] = ("prefill", "decode")
    takes = frozenset({"append", "lengths", "query lengths"})

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload, or such a tile."""
        super().check(w)
        if w.dtype == "fp32":
            raise InputError(
                'schedule flash3: workload.dtype = "fp32": it takes fp16, bf16 and fp8'
            )
        if w.lengths is not None and self.call == "batch":
            raise InputError(
                'schedule flash3: call = "batch": it is of sequences of one length; of lists of '
                'lengths "varlen" or "paged" was expected'
            )
        if w.head_dim > HEAD_DIMS[-1]:
            raise InputError(
                f"schedule flash3: workload.head_dim = {w.head_dim}: it takes up to {HEAD_DIMS[-1]}"
            )
        if self.tile and self.tile.q not in Q_SIDES:
            raise InputError(
                f"schedule flash3: tile.q = {self.tile.q}: 64, 128 or 192 query rows were expected"
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel of at most a CTA an SM; of several splits one of a CTA each, and combine."""
        check_arch(self.name, hw, "sm90")
        splits = (self.splits or 1,) * w.batch
        if self.splits is None and w.queries != w.keys:
            splits = public_splits(w, self.call, hw.sm.count)
        default, packed = public_tile(w, self.call, packs=max(splits) > 1)

        def sram_bytes(tile: Tile) -> int:
            """Of a tile; of one whose rows no warp groups have, more than any device has."""
            return (
                Flash3Cta(w, tile, packed, self.call).sram_bytes if tile.q in Q_SIDES else maxsize
            )

        tile = self.fit_tile(default, sram_bytes, w, hw)
        cta = Flash3Cta(w, tile, packed, self.call, max(splits))
        if cta.splits == 1:
            return [_forward_kernel(cta, hw.sm.count)]
        return _split_kernels(cta, splits)


def _forward_kernel(cta: Flash3Cta, sms: int) -> Kernel:
    """The persistent kernel: masked tiles longest first on demand, others in turn."""
    rows = QueryRows(cta.w, cta.tile, cta.packed)
    periods, sharing = rows.matrices, rows.sharing
    if cta.call == "batch" and cta.w.mask == "full":
        dealt = dealt_in_turn(rows.grid.size, min(sms, rows.grid.size))
    else:
        if cta.call == "batch":
            section, among = section_of(rows, L2_SECTION_BYTES), rows.matrices
            order = longest_first(rows, section)
        else:
            section, among = varlen_section(rows, cta.w.seq_kv), rows.of_a_sequence
            order = by_sequence(rows)
        every = np.arange(rows.grid.size, dtype=np.int64)
        dealt = dealt_on_demand(order, rows.key_blocks(every), min(sms, len(order)), STAGES)
        if dealt.items_per_cta == 1:  # else long and short tiles of all heads are dealt in turn
            periods, sharing = like_sections(rows, section, among), 1
    return _kernel(_Work(cta, rows, dealt), periods, sharing)


def _split_kernels(cta: Flash3Cta, splits: tuple[int, ...]) -> list[Kernel]:
    """The kernel over all ranges, a CTA each, and combine."""
    rows = QueryRows(cta.w, cta.tile, cta.packed, splits)
    order = np.arange(rows.grid.size) if rows.are_alike else by_sequence(rows)
    work = _Work(cta, rows, Dealt(len(order), order))
    whole = Result(work.tensors.o, work.lse)
    each = None if rows.are_alike else np.array(splits).repeat(rows.of_a_sequence)
    kernel = _kernel(work, rows.matrices, rows.sharing)
    return [kernel, combine_of_splits(work.partial, whole, each)]


def _kernel(work: "_Work", periods: int, sharing: int) -> Kernel:
    """The kernel of these loops."""
    return Kernel(
        name="flash3",
        ctas=work.dealt.ctas,
        loops=_loops(work),
        footprint=work.cta.footprint,
        tensor_path="asynchronous",
        items_per_cta=work.dealt.items_per_cta,
        periods=periods if work.rows.are_alike else 1,
        sharing=sharing if work.rows.are_alike else 1,
        irregular=not work.rows.are_alike,
    )


class _Work:
    """What the loops load, compute and store of each item's block of query rows."""

    def __init__(self, cta: Flash3Cta, rows: QueryRows, dealt: Dealt) -> None:
        self.cta, self.rows, self.dealt = cta, rows, dealt
        w, tile, d = cta.w, cta.tile, cta.head_dim
        self.tensors, self.lse = rows.tensors()
        self.partial = rows.partial()
        self.q_elements, self.scores = tile.q * d, tile.q * tile.kv
        q_bytes, kv_bytes = self.q_elements * w.dtype_bytes, tile.kv * d * w.dtype_bytes
        self.flops = 2 * self.scores * d
        # Written once by TMA, then read whole by every warp group; Q's rows are read again each
        # time.
        kv_sram_bytes = (1 + cta.workers) * kv_bytes
        p_bytes = self.scores * w.dtype_bytes if cta.p_in_sram else 0
        self.qk_sram_bytes = q_bytes + kv_sram_bytes
        self.pv_sram_bytes = kv_sram_bytes + 2 * p_bytes
        self.transpose_ops = 0
        self.copy_ops = COPY_OPS * kv_bytes // COPY_BYTES if cta.call == "paged" else 0
        if w.dtype_bytes == 1:
            # The producer transposes V, by LDSM.T and STSM with a permutation of bytes for every 4.
            # Its amounts are taken with those of the matmul that it works ahead of.
            self.transpose_ops = tile.kv * d // 4
            self.pv_sram_bytes += 2 * kv_bytes

    def key_blocks(self, items: IntArray) -> IntArray:
        """Key blocks of each item; none of one without a tile."""
        return self.dealt.has_tile(items) * self.rows.key_blocks(self.dealt.tile(items))

    def has_keys(self, items: IntArray) -> IntArray:
        """1 where an item has key blocks."""
        return np.minimum(self.key_blocks(items), 1)

    def load_q(self) -> Load:
        """Q's block."""
        return Load(self._rows_of(self.tensors.q))

    def load(self, tensor: Tensor, behind_last: int = 0, stages: int = STAGES) -> Load:
        """K's or V's blocks, from so many before the last on."""
        return Load(self._keys_of(tensor, behind_last), stages)

    def load_first_of(self, tensor: Tensor) -> Load:
        """The block that is visited last."""

        def base(items: IntArray) -> IntArray:
            trips = self.rows.key_blocks(self.dealt.tile(items)) - 1
            return visited.base(items) + visited.stride * trips

        visited = self._keys_of(tensor, 0)
        return Load(Stream(tensor, visited.tile_rows, visited.tile_cols, base))

    def scored(self, *reads: Load, vector_ops: int = 0) -> Compute:
        """S = Q K^T, and so much beside it."""
        return Compute(
            "S = Q K^T",
            reads,
            self.flops,
            vector_ops,
            sram_bytes=self.qk_sram_bytes,
            other_ops=self.copy_ops,
        )

    def accumulated(self, load_v: Load, softmax: Softmax = NO_SOFTMAX) -> Compute:
        """O += P V, and so much of a softmax while the tensor pipe serves it."""
        return Compute(
            "O += P V",
            (load_v,),
            self.flops,
            softmax.fp32_ops,
            softmax.exps,
            self.pv_sram_bytes,
            softmax.other_ops + self.transpose_ops + self.copy_ops,
        )

    def epilogues(self) -> list[Loop]:
        """The last O += P V, then O goes out through SRAM by TMA: whole, and of a range.

        Of sequences of which none is split, or all are, there is only one of both.
        """
        o, partial = self.tensors.o, self.partial
        # All ranges of a row lie together, tile after tile.
        lse_of_range = Stream(partial.lse, 1, self.cta.tile.q, self.dealt.tile)
        ends = []
        if min(self.rows.of_each) == 1:
            ends.append((self._is_whole, self._rows_of(o), self._rows_of(self.lse)))
        if self.rows.splits > 1:
            ends.append((self._is_split, self._rows_of(partial.o), lse_of_range))
        sram_bytes = 2 * self.q_elements * O_ELEMENT_BYTES
        loops = []
        for trips, *results in ends:
            last_v = self.load_first_of(self.tensors.v)
            store = finish(self.q_elements, *results, sram_bytes=sram_bytes)
            loops.append(Loop(trips, (last_v, self.accumulated(last_v), *store.ops)))
        return loops

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

    def _keys_of(self, tensor: Tensor, behind_last: int) -> Stream:
        return self.rows.keys_of(tensor, self.dealt.tile, behind_last, self.cta.shared_by)


def _loops(work: _Work) -> tuple[Loop, ...]:
    """The softmax of each key block beside P V of the one before."""
    k, v, scores = work.tensors.k, work.tensors.v, work.scores
    rescale_first, rescale_after = 0, work.q_elements
    if work.cta.rescales_first:
        rescale_first, rescale_after = work.q_elements, 0

    mask_ops = MASK_OPS[work.cta.w.mask] * scores
    tile, warps = work.cta.tile, WARPS_A_GROUP * work.cta.workers
    softmax = online_softmax(tile.q, tile.kv, work.cta.head_dim, warps, FLASH3_FIXED)
    load_q, first_k = work.load_q(), work.load(k, stages=1)
    prologue = (
        load_q,
        first_k,
        work.scored(load_q, first_k),
        Compute(
            "softmax",
            vector_ops=softmax.fp32_ops - work.q_elements,  # there is no O yet
            exp_count=scores,  # nothing is rescaled
            other_ops=softmax.other_ops + mask_ops,
        ),
    )

    converted = scores // CONVERTED_A_SCORE
    masked = round(work.rows.masked_share * mask_ops)
    beside = replace(
        softmax,
        fp32_ops=softmax.fp32_ops - work.q_elements,
        other_ops=softmax.other_ops - converted + masked,
    )
    load_k, load_v = work.load(k, behind_last=1), work.load(v)
    trip = (
        load_k,
        load_v,
        work.scored(load_k, vector_ops=rescale_first),
        work.accumulated(load_v, beside),
        Compute("convert P, rescale O", vector_ops=rescale_after, other_ops=converted),
    )

    def trips(items: IntArray) -> IntArray:
        """All key blocks but the first of which S is computed."""
        return work.key_blocks(items) - work.has_keys(items)

    return (Loop(work.has_keys, prologue), Loop(trips, trip), *work.epilogues())
