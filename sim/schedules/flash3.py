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
keys stores nothing, where the kernel stores zeros; splits of sequences of any lengths are chosen as
of one length; masks of key blocks that an edge cuts are spread over a tile's trips but for the
first; the page table is not read, nor is the kernel run that counts the blocks of each sequence
before a varlen call.
"""

from copy import copy
from dataclasses import replace
from sys import maxsize
from typing import ClassVar, Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload, Mask, Phase
from sim.schedules.base import STATISTICS_BYTES, Tile, TiledSchedule, check_arch
from sim.schedules.parts.dealing import (
    Dealt,
    dealt_in_turn,
    dealt_on_demand,
    like_parts,
    ordered,
    section_of,
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
from sim.schedules.parts.traversal import (
    LAST_TO_FIRST,
    Direction,
    GridOrder,
    KeyOrder,
    directions,
)
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
# flash_prepare_scheduler.cu: size_l2, get_nheads_in_l2.
VARLEN_SECTION_BYTES, MOST_VARLEN_SECTION = 8 * 2**20, 16


class Flash3(TiledSchedule):
    """FlashAttention-3. A `tile` that is given has 64, 128 or 192 query rows: a worker each 64.

    `call` says what it is called on: sequences of one length, of any, or of any in pages. `splits`
    are of the keys: unless given, 1 of a whole prompt, and behind a cached prefix as the public
    heuristic. `grid_order` and `key_order` are the order of traversal (traversal.py); unless given,
    tiles come as the scheduler deals them, masked ones swizzled.
    """

    name: Literal["flash3"] = "flash3"
    call: Call = "batch"
    splits: Splits | None = None
    grid_order: GridOrder | None = None
    key_order: KeyOrder = "descending"

    summary = "Hopper: warp groups that take turns at softmax and matmul, fed by TMA"
    source = "arXiv 2407.08608; Dao-AILab/flash-attention, hopper/"
    phases: ClassVar[tuple[Phase, ...]] = ("prefill", "decode")
    takes = frozenset({"append"})

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload, or such a tile."""
        super().check(w)
        if w.dtype == "fp32":
            raise InputError(
                'schedule flash3: workload.dtype = "fp32": it takes fp16, bf16 and fp8'
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
        splits = self.splits or 1
        if self.splits is None and w.seq_q != w.seq_kv:
            splits = public_splits(w, self.call, hw.sm.count)
        default, packed = public_tile(w, self.call, packs=splits > 1)

        def sram_bytes(tile: Tile) -> int:
            """Of a tile; of one whose rows no warp groups have, more than any device has."""
            return (
                Flash3Cta(w, tile, packed, self.call).sram_bytes if tile.q in Q_SIDES else maxsize
            )

        tile = self.fit_tile(default, sram_bytes, w, hw)
        cta = Flash3Cta(w, tile, packed, self.call, splits)
        if splits > 1:
            if self.grid_order or self.key_order != "descending":
                raise InputError(
                    f"schedule flash3: splits = {splits}: a CTA a range has no order of traversal: "
                    "no grid_order and no key_order was expected"
                )
            return _split_kernels(cta)
        return [_forward_kernel(cta, hw.sm.count, self.grid_order, self.key_order)]


def _forward_kernel(
    cta: Flash3Cta, sms: int, grid_order: GridOrder | None, key_order: KeyOrder
) -> Kernel:
    """The persistent kernel: masked tiles longest first on demand, others in turn."""
    rows = QueryRows(cta.w, cta.tile, cta.packed)
    ctas = min(sms, rows.grid.size)
    periods, sharing = rows.matrices, rows.sharing
    section, every = _section(cta, rows), np.arange(rows.grid.size, dtype=np.int64)
    chosen = grid_order or ("head_slow" if cta.w.mask == "full" else "swizzled")
    order = ordered(rows, chosen, section)
    if cta.call == "batch" and cta.w.mask == "full":
        dealt = dealt_in_turn(rows.grid.size, ctas).in_order(order)
    else:
        dealt = dealt_on_demand(order, rows.key_blocks(every), ctas, STAGES)
        if dealt.items_per_cta == 1:  # else long and short tiles of all heads are dealt in turn
            periods, sharing = like_parts(rows, chosen, section), 1
    if grid_order:
        periods, sharing = like_parts(rows, chosen, section), 1
    ways = directions(key_order, lambda items: dealt.turn(items, sms))
    if len(ways) > 1:
        periods, sharing = 1, 1
    work = _Work(cta, rows, dealt)
    kernel = _kernel([work.going(way) for way in ways], periods, sharing)
    return replace(kernel, in_waves=chosen == "head_fast" or len(ways) > 1)


def _split_kernels(cta: Flash3Cta) -> list[Kernel]:
    """The kernel over all ranges, a CTA each, and combine."""
    rows = QueryRows(cta.w, cta.tile, cta.packed, cta.splits)
    work = _Work(cta, rows, dealt_in_turn(rows.grid.size, rows.grid.size))
    combine = combine_of_splits(work.stored, Result(work.tensors.o, work.lse))
    return [_kernel([work], rows.matrices, rows.sharing), combine]


def _kernel(works: "list[_Work]", periods: int, sharing: int) -> Kernel:
    """The kernel of the loops of each way through the keys."""
    work = works[0]
    return Kernel(
        name="flash3",
        ctas=work.dealt.ctas,
        loops=tuple(loop for one in works for loop in _loops(one)),
        footprint=work.cta.footprint,
        tensor_path="asynchronous",
        items_per_cta=work.dealt.items_per_cta,
        periods=periods,
        sharing=sharing,
    )


def _section(cta: Flash3Cta, rows: QueryRows) -> int:
    """Matrices whose longest tiles go before all shorter ones; with varlen of one sequence."""
    if cta.call == "batch":
        return section_of(rows, L2_SECTION_BYTES)
    of_a_sequence = rows.matrices // cta.w.batch
    return min(section_of(rows, VARLEN_SECTION_BYTES), MOST_VARLEN_SECTION, of_a_sequence)


class _Work:
    """What the loops load, compute and store of each item's block of query rows."""

    def __init__(self, cta: Flash3Cta, rows: QueryRows, dealt: Dealt) -> None:
        self.cta, self.rows, self.dealt, self.way = cta, rows, dealt, LAST_TO_FIRST
        w, tile, d = cta.w, cta.tile, cta.head_dim
        self.tensors, self.lse = rows.tensors()
        self.stored = Result(self.tensors.o, self.lse)
        if rows.splits > 1:
            o_shape = (rows.splits * rows.matrices, rows.rows, w.head_dim)
            lse_shape = (rows.matrices, rows.splits, rows.rows)
            self.stored = Result(
                Tensor("O of splits", *o_shape, STATISTICS_BYTES, role="partial"),
                Tensor("LSE of splits", *lse_shape, STATISTICS_BYTES, role="partial"),
            )
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

    def going(self, way: Direction) -> "_Work":
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

    def load_q(self) -> Load:
        """Q's block."""
        return Load(self._rows_of(self.tensors.q))

    def load(self, tensor: Tensor, skipped: int = 0, stages: int = STAGES) -> Load:
        """K's or V's blocks, all but so many of the first."""
        return Load(self._keys_of(tensor, skipped), stages)

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

    def finish(self) -> Loop:
        """O goes out through SRAM by TMA."""
        lse = self._rows_of(self.lse)
        if self.rows.splits > 1:  # all ranges of a row lie together, tile after tile
            lse = Stream(self.stored.lse, 1, self.cta.tile.q, self.dealt.tile)
        return finish(
            self.q_elements,
            self._rows_of(self.stored.o),
            lse,
            trips=self.has_keys,
            sram_bytes=2 * self.q_elements * O_ELEMENT_BYTES,
        )

    def _rows_of(self, tensor: Tensor) -> Stream:
        """Each item's block of rows, of partial results those of its range."""
        tile_of = self.rows.stored_tile if tensor.role == "partial" else self.rows.q_tile
        return Stream(
            tensor, self.cta.tile.q, tensor.cols, lambda items: tile_of(self.dealt.tile(items))
        )

    def _keys_of(self, tensor: Tensor, skipped: int) -> Stream:
        return self.rows.keys_of(tensor, self.dealt.tile, skipped, self.cta.shared_by, self.way)


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
    load_k, load_v = work.load(k, skipped=1), work.load(v)
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

    last_v = work.load_first_of(v)
    epilogue = (last_v, work.accumulated(last_v), *work.finish().ops)
    return (
        Loop(work.has_keys, prologue),
        Loop(trips, trip),
        Loop(work.has_keys, epilogue),
    )
