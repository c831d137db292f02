"""The FlashAttention-2 loop over key blocks, as all schedules that are built on it have it.

    load Q_i                                            (the prologue; rotates Q if RoPE is fused)
    for each key block that the schedule visits:        (`key_loop`)
        load K_j, V_j
        S = Q_i K_j^T;  m, P = online softmax of S;  O_i = rescale(O_i) + P V_j
    O_i = O_i / l_i;  store O_i and the log-sum-exp     (the epilogue)

Source: Dao 2023 (arXiv 2307.08691), Algorithm 1; loop order as in Dao-AILab/flash-attention,
csrc/flash_attn/src/flash_fwd_kernel.h. Q, K and V have one buffer each there, so K_j-1 comes during
the softmax and the second matmul of j. Triton's compiler gives K and V as many buffers as the loop
has stages, and on Hopper wgmma; of a loop of one stage it loads K when a trip begins and waits.

Where a CTA has more than four warps, they meet before S, when K is there and all are done with the
last trip, and after it, before a buffer is written again: __syncthreads in that file and in
flashinfer's prefill.cuh. So do those of Triton's on sm_90 (three BAR.SYNC a trip by `attnsim
kernel`); on sm_80 and sm_89 they meet between trips alone (two), of one stage four times, 10 to 18
times where warps share keys.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.machine import machine_of
from sim.schedules.base import STATISTICS_BYTES, Tile, blocks, kv_matrix, visible_blocks
from sim.schedules.parts.backward import DROPOUT_OPS_PER_SCORE
from sim.schedules.parts.ends import begin, finish
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.instructions import LANES, online_softmax
from sim.schedules.parts.kv_cache import row_bytes
from sim.schedules.parts.operands import multiplied
from sim.schedules.parts.own_kernel import OwnTrip
from sim.schedules.parts.rope import ROPE_OPS_PER_ELEMENT
from sim.schedules.parts.traversal import GridOrder, kv_heads_in, swizzled
from sim.tile_program import (
    Barrier,
    Compute,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Op,
    Stream,
    Tensor,
    once,
)

Loads = tuple[Load, ...]

WARPS_A_WORKER = 4  # which run together without a barrier


@dataclass(frozen=True)
class QueryTiles:
    """The tiles of query rows of a kernel, one a CTA: Q comes in, O and log-sum-exp go out.

    `periods`, `sharing` and `in_waves` are those of the kernel's grid. A CTA that `has_rows` says
    has none ends at once.
    """

    ctas: int
    q: Stream
    o: Stream
    lse: Stream
    periods: int
    sharing: int
    has_rows: OfItem = once
    in_waves: bool = False


@dataclass(frozen=True, eq=False)
class QueryBlocks:
    """FlashAttention-2's grid: a CTA for each tile.q query rows of each head of each sequence.

    Of sequences that differ it is as large as the longest needs for each (run_flash_fwd); CTAs
    behind a sequence's end return at once (flash_fwd_kernel.h, actual_seqlen_q). Its own order is
    "head_slow"; of "swizzled" `section` heads go together.
    """

    w: AttentionWorkload
    tile: Tile
    order: GridOrder = "head_slow"
    section: int = 1

    @property
    def down(self) -> int:
        """Blocks of query rows of a head."""
        return blocks(self.w.seq_q, self.tile.q)

    @property
    def size(self) -> int:
        """CTAs."""
        return self.down * self.w.batch * self.w.heads

    def at(self, items: IntArray) -> tuple[IntArray, IntArray]:
        """The block of query rows of each CTA, and its matrix of queries: a head of a sequence."""
        w, matrices = self.w, self.w.batch * self.w.heads
        if self.order == "swizzled":
            return swizzled(items, self.down, matrices, self.section)
        if self.order == "head_slow":
            row, sequence, head = Grid(self.down, w.batch, w.heads).at(items)
        else:
            sequence, head, row = Grid(w.batch, w.heads, self.down).at(items)
        return row, sequence * w.heads + head

    def row(self, items: IntArray) -> IntArray:
        """The block of query rows of each CTA, in its head; as `visible_blocks` has them."""
        row, matrix = self.at(items)
        return row if self.w.lengths is None else matrix // self.w.heads * self.down + row

    def has_rows(self, items: IntArray) -> IntArray:
        """1 where a CTA's sequence has such query rows."""
        row, matrix = self.at(items)
        rows = self._queries[matrix // self.w.heads]
        there: IntArray = (row * self.tile.q < rows).astype(np.int64)
        return there

    @cached_property
    def _queries(self) -> IntArray:
        return np.array(self.w.queries, np.int64)

    def matrix(self, items: IntArray) -> IntArray:
        """The matrix of queries of each CTA: a head of a sequence."""
        return self.at(items)[1]

    def tile_of(self, items: IntArray) -> IntArray:
        """The tile of Q, and of O, of each CTA."""
        row, matrix = self.at(items)
        return matrix * self.down + row

    def first_key_block(self, items: IntArray) -> IntArray:
        """The first block of tile.kv keys of the K/V matrix of each CTA."""
        return kv_matrix(self.w, self.matrix(items)) * blocks(self.w.seq_kv, self.tile.kv)

    @cached_property
    def shown(self) -> tuple[IntArray, IntArray]:
        """The first and the end of the key blocks that the mask shows to each `row`."""
        return visible_blocks(self.w, self.tile)

    def trips(self, items: IntArray) -> IntArray:
        """How many key blocks the mask shows to each CTA."""
        first, end = self.shown
        shown: IntArray = np.maximum(end - first, 0)[self.row(items)]
        return shown

    def first_shown(self, items: IntArray) -> IntArray:
        """The first of them."""
        return self.first_key_block(items) + self.shown[0][self.row(items)]

    def tiles(self, q: Tensor, o: Tensor, lse: Tensor) -> QueryTiles:
        """The tiles of Q, O and the log-sum-exp; heads are alike, groups share K and V."""
        w, rows = self.w, self.tile.q
        periods, sharing = w.batch * w.heads, w.heads // w.kv_heads
        if self.order == "swizzled":
            periods, sharing = (1 if periods % self.section else periods // self.section), 1
        elif self.order == "head_fast":
            periods = sharing = 1
        return QueryTiles(
            ctas=self.size,
            q=Stream(q, rows, w.head_dim, self.tile_of),
            o=Stream(o, rows, w.value_columns, self.tile_of),
            lse=Stream(lse, rows, 1, self.tile_of),
            periods=periods,
            sharing=sharing,
            has_rows=once if w.lengths is None else self.has_rows,
            in_waves=self.order == "head_fast",
        )


def query_blocks(
    w: AttentionWorkload, tile: Tile, order: GridOrder, hw: HardwareProfile
) -> QueryBlocks:
    """The grid in that order; of "swizzled" as many heads go together as K and V fit the L2 of."""
    heads = kv_heads_in(w, machine_of(hw).l2_capacity_bytes) * (w.heads // w.kv_heads)
    return QueryBlocks(w, tile, order, heads)


def log_sum_exp(q: Tensor) -> Tensor:
    """Room for the log-sum-exp of every row of Q."""
    shape = (q.groups, q.rows, 1)
    sizes = None if q.sizes is None else np.stack([q.sizes[:, 0], np.ones(q.groups, int)], axis=1)
    return Tensor("LSE", *shape, STATISTICS_BYTES, "output", "statistics", sizes)


@dataclass(frozen=True)
class Operand:
    """K or V of a trip: its tiles, with whatever comes with them (a page table, angles).

    `vector_ops` are the lane operations that make a trip's tile ready for the matmul (such as
    rotating), which also write it to SRAM again. `register_ops` are those that every reader takes
    on its way from SRAM, where the tile lies as it was loaded (such as dequantising). `numbers` are
    those of pages, which a trip waits for before anything else, to make addresses of them.
    """

    streams: tuple[Stream, ...]
    numbers: Stream | None = None
    vector_ops: int = 0
    register_ops: int = 0

    def made_ready(
        self, name: str, loads: tuple[Load, ...], tile_bytes: int, readers: int
    ) -> list[Compute]:
        """The compute that makes a tile of so many bytes ready, if it needs one."""
        work = self.vector_ops + readers * self.register_ops
        if not work:
            return []
        loaded = sum(load.stream.tile_bytes for load in loads)
        moved = loaded + tile_bytes if self.vector_ops else 0
        return [Compute(f"make {name} ready", loads, 0, work, 0, moved)]


def flash_kernel(
    name: str, w: AttentionWorkload, cta: FlashCta, rows: QueryTiles, *key_loops: Loop
) -> Kernel:
    """A flash kernel of those loops over key blocks: loads Q before, stores O after them."""
    filled = cta.filled(w)
    load_q, o_elements = Load(rows.q), cta.tile.q * filled.value_columns
    q_bytes = rows.q.tile_bytes * filled.head_dim // w.head_dim
    o_bytes = q_bytes * filled.value_columns // filled.head_dim
    prologue = begin("Q", load_q, trips=rows.has_rows, sram_bytes=q_bytes)
    if cta.angles:
        loads = (load_q, Load(cta.angles.beside_q(rows.q)))
        work = ROPE_OPS_PER_ELEMENT * cta.tile.q * w.head_dim
        rotate = Compute("rotate Q", loads, vector_ops=work, sram_bytes=3 * q_bytes)
        prologue = Loop(once, (*loads, rotate))
    return Kernel(
        name=name,
        ctas=rows.ctas,
        loops=(
            prologue,
            *key_loops,
            finish(o_elements, rows.o, rows.lse, trips=rows.has_rows, sram_bytes=2 * o_bytes),
        ),
        footprint=cta.footprint(w),
        tensor_path=cta.tensor_path,
        periods=rows.periods if w.lengths is None else 1,
        sharing=rows.sharing if w.lengths is None else 1,
        irregular=w.lengths is not None,
        in_waves=rows.in_waves,
        compiled_from=cta.own.source if cta.own else None,
    )


@dataclass(frozen=True)
class _Moved:
    """Bytes of a trip: of K's and V's tiles, and those through SRAM for each matmul and beside it.

    Tiles are read whole by every reader, each for its own query rows, and written as they come.
    """

    k_bytes: int
    v_bytes: int
    for_s: int
    for_o: int
    beside_s: int
    beside_o: int

    @staticmethod
    def of(w: AttentionWorkload, cta: FlashCta, q_bytes: int) -> "_Moved":
        """`q_bytes` are those of Q's tile."""
        tile, filled = cta.tile, cta.filled(w)
        k_bytes, v_bytes = (
            tile.kv * row_bytes(filled, cols) for cols in (filled.head_dim, filled.value_columns)
        )
        q_read = 0 if cta.q_in_registers else cta.sharers * q_bytes * filled.head_dim // w.head_dim
        return _Moved(
            k_bytes,
            v_bytes,
            for_s=q_read + cta.kv_readers * k_bytes,
            for_o=cta.kv_readers * v_bytes,
            beside_s=k_bytes,
            beside_o=v_bytes + _p_bytes(w, cta),
        )

    def of_k_and_v(self, cta: FlashCta) -> int:
        """As they come, and read by all."""
        return (cta.kv_readers + 1) * (self.k_bytes + self.v_bytes)

    def without_k_and_v(self, w: AttentionWorkload, cta: FlashCta) -> "_Moved":
        """What is left where all operands are in registers before a matmul."""
        return replace(self, for_s=0, for_o=0, beside_s=0, beside_o=_p_bytes(w, cta))


def _p_bytes(w: AttentionWorkload, cta: FlashCta) -> int:
    """P stays in registers, but goes to all warps that share keys, and O, by way of SRAM."""
    if not cta.shares_keys or cta.sums_apart:
        return 0
    return (1 + cta.sharers) * cta.tile.q * cta.tile.kv * w.dtype_bytes


def key_loop(
    w: AttentionWorkload,
    cta: FlashCta,
    trips: OfItem,
    q_bytes: int,
    k: Operand,
    v: Operand,
    of_scores: Stream | None = None,
) -> Loop:
    """The loop over key blocks, `q_bytes` being those of Q's tile.

    `of_scores` is what is added to the scores, or masks them, which a trip loads as it begins.
    """
    k = _turned(w, cta, k)
    loads_k = tuple(Load(stream, cta.stages) for stream in k.streams)
    loads_v = tuple(Load(stream, cta.stages) for stream in v.streams)
    added = (Load(of_scores, 0),) if of_scores else ()
    both: Loads = (*loads_k, *loads_v)
    if cta.own:
        return Loop(trips, _own_ops(cta, cta.own, loads_k, loads_v, added))
    tile, filled = cta.tile, cta.filled(w)
    s_flops, pv_flops = (
        2 * tile.q * tile.kv * cols for cols in (filled.head_dim, filled.value_columns)
    )
    if cta.counted:
        loads = (*both, *added)
        issued = (Barrier(loads),) if not cta.stages else _issued(added)
        return Loop(trips, (*loads, *issued, cta.counted.compute(loads, s_flops + pv_flops)))
    before_s, after_s, after_softmax = _meetings(cta, loads_k, loads_v)
    moved = _Moved.of(w, cta, q_bytes)
    operands: tuple[Op, ...] = ()
    if cta.operands_first:
        operands = (Compute("K and V", both, sram_bytes=moved.of_k_and_v(cta)),)
        moved, loads_k, loads_v = moved.without_k_and_v(w, cta), (), ()
    s_flops = s_flops * cta.scored_keys // tile.kv
    s = _matmul(cta, "S = Q K^T", loads_k, s_flops, moved.for_s, filled.head_dim, moved.beside_s)
    keys = tile.kv // cta.sharers
    o = _matmul(cta, "O += P V", loads_v, pv_flops, moved.for_o, keys, moved.beside_o)
    spilled, again = (cta.spilled.ops, (cta.spilled.again,)) if cta.spilled else ((), ())
    softmax = _softmax(w, cta, (*(loads_k if cta.k_until_softmax else ()), *added, *again))
    return Loop(
        trips,
        (
            *both,
            *added,
            *operands,
            *before_s,
            *_addressing(cta, k),
            *_issued(added),
            *k.made_ready("K", loads_k, moved.k_bytes, cta.kv_readers),
            *s,
            *after_s,
            *spilled,
            softmax,
            *after_softmax,
            *v.made_ready("V", loads_v, moved.v_bytes, cta.kv_readers),
            *o,
        ),
    )


def _matmul(
    cta: FlashCta,
    name: str,
    reads: Loads,
    flops: int,
    read_bytes: int,
    summed: int,
    written_bytes: int,
) -> tuple[Compute, ...]:
    """A matmul that reads so many bytes of SRAM, whose every sum is of `summed` products a warp."""
    if cta.tensor_path == "mma_sync":
        return multiplied(
            name,
            reads,
            flops,
            read_bytes,
            summed,
            rows_a_warp=cta.tile.q // cta.warps,
            written_bytes=written_bytes,
        )
    return (Compute(name, reads, flops, sram_bytes=read_bytes + written_bytes),)


def _turned(w: AttentionWorkload, cta: FlashCta, k: Operand) -> Operand:
    """K with the angles by which the loop turns it, where it does."""
    if not cta.angles:
        return k
    work = ROPE_OPS_PER_ELEMENT * cta.tile.kv * w.head_dim
    streams = (*k.streams, cta.angles.beside_k(k.streams[0]))
    return replace(k, streams=streams, vector_ops=k.vector_ops + work)


def _softmax(w: AttentionWorkload, cta: FlashCta, reads: Loads) -> Compute:
    """The online softmax of a tile of scores, with dropout where there is any."""
    tile, filled = cta.tile, cta.filled(w)
    counts = online_softmax(
        tile.q, tile.kv, filled.value_columns, cta.warps, cta.instructions, cta.a_score
    )
    dropout = DROPOUT_OPS_PER_SCORE * tile.q * tile.kv if w.dropout else 0
    return Compute(
        "softmax",
        reads,
        vector_ops=counts.fp32_ops + dropout,
        other_ops=counts.other_ops,
        exp_count=counts.exps,
        latencies=cta.softmax_latencies,
    )


def _own_ops(
    cta: FlashCta, own: OwnTrip, loads_k: Loads, loads_v: Loads, added: Loads
) -> tuple[Op, ...]:
    """A trip whose counts are those of one's own machine code."""
    before_s, after_s, after_softmax = _meetings(cta, loads_k, loads_v)
    scored, weighed, summed = own.computes(loads_k, loads_v)
    weighed = replace(weighed, reads=(*weighed.reads, *added))
    ops: tuple[Op, ...] = (*before_s, scored, *after_s, weighed, *after_softmax, summed)
    return (*loads_k, *loads_v, *added, *_issued(added), *ops)


def _addressing(cta: FlashCta, k: Operand) -> tuple[Op, ...]:
    """Where the keys lie is read and worked out first, where they are not in a row."""
    if not k.numbers:
        return ()
    numbers, made = Load(k.numbers, 0), cta.address_instructions * LANES * cta.warps
    return numbers, Barrier((numbers,)), Compute("addresses", (numbers,), other_ops=made)


def _issued(loads: Loads) -> tuple[Barrier, ...]:
    """A place for each of these loads at which it is issued."""
    return tuple(Barrier((load,)) for load in loads)


def _meetings(
    cta: FlashCta, loads_k: Loads, loads_v: Loads
) -> tuple[tuple[Barrier, ...], tuple[Barrier, ...], tuple[Barrier, ...]]:
    """Where a trip's workers meet: before S, after it, after the softmax.

    Without stages V comes at the last barrier before it is needed, which is within the softmax
    where warps share keys.
    """
    if not cta.stages and cta.shares_keys:
        return (Barrier(loads_k),), (Barrier(),), (Barrier(loads_v),)
    if not cta.stages:
        return (Barrier(loads_k),), (Barrier(loads_v),), ()
    if cta.warps <= WARPS_A_WORKER:
        return (), (), ()
    before_s, after_s, after_softmax = ((Barrier(),) * (cta.meetings > k) for k in range(3))
    return before_s, after_s, after_softmax
