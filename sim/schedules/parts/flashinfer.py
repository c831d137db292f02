"""FlashInfer's attention over a paged cache: query heads packed as rows, few of them a tile.

    for each KV head, sequence, tile of its packed query rows, range of its keys (one CTA):
        load Q_i: row r is query head r % group of token r / group
        the loop of parts/paged_keys.py over the range (FlashInfer goes through it first to last)
        store O and log-sum-exp, of one range of several in the dtype of O
    for each row of O (one CTA of the merge kernel, if keys are in several ranges):
        load log-sum-exp_s of all s
        for each few ranges s (8 of head_dim 128), 4 times as many on their way:
            load O_s;  O += exp(lse_s - lse) O_s

A sequence has `group` rows a query, the query heads of a KV head. 16 rows are the tile of decoding:
the four warps share out the keys, so each reads only its own.

Source: flashinfer-ai/flashinfer, include/flashinfer: the rows of a tile (utils.cuh,
FA2DetermineCtaTileQ), its warps and keys (attention/prefill.cuh, get_num_warps_q, get_num_warps_kv,
BatchPrefillWithPagedKVCacheDispatched), the ranges (attention/scheduler.cuh,
PrefillSplitQOKVIndptr, PrefillBinarySearchKVChunkSize), the merge kernel (attention/cascade.cuh,
PersistentVariableLengthMergeStatesKernel). Differences: merging is a CTA a row, not a persistent
grid; that warps add up their rows of O through SRAM is left out; one query head a KV head runs this
kernel too, where some callers take FlashInfer's decoding on CUDA cores.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import KV_BITS, AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, Tile, blocks, of_constant
from sim.schedules.parts import registers
from sim.schedules.parts.combine import reduction
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import Operand, QueryTiles, flash_kernel, key_loop
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.paged_keys import KeyRanges, loops_over_pages
from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Stream,
    Tensor,
)

CTAS_AN_SM = 2  # that a plan counts on (scheduler.cuh, PrefillPlanImpl)
LEAST_RANGE_TOKENS = 128  # scheduler.cuh, min_kv_chunk_size
MOST_KV_MMAS = 8  # groups of 16 keys a warp, of 16 query rows; of 32 rows half as many
MERGE_THREADS, MERGE_STAGES = 128, 4  # cascade.cuh, VariableLengthMergeStates


def flashinfer_cta(w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
    """The tile of FlashInfer's kernel for a paged cache, by rows, head_dim and SRAM."""
    rows = _tile_rows(w, hw)
    warps_q = 4 if rows > 16 else 1
    warps_kv = 4 // warps_q
    rows_a_warp = 2 if rows > 64 else 1  # times 16
    q_bytes = rows * w.head_dim * w.dtype_bytes
    kv_bytes = 2 * w.head_dim * 16 * warps_kv * _kv_element_bytes(w)
    least = 1
    if w.kv_dtype:  # an fp8 tile is made 16 bits wide in SRAM first, where warps share it
        least = warps_q // 2 or 1
        if rows > 16 and w.head_dim != 64:
            kv_bytes += w.head_dim * 16 * warps_kv * w.dtype_bytes
    capacity = hw.sram.capacity
    ctas = CTAS_AN_SM if capacity >= CTAS_AN_SM * (q_bytes + least * kv_bytes) else 1
    room = min(capacity / ctas, hw.sram.max_per_cta) - q_bytes
    most = min(int(room // kv_bytes), MOST_KV_MMAS // rows_a_warp)
    mmas = next((n for n in (8, 4, 2) if n <= most), 1)
    return FlashCta(Tile(q=rows, kv=16 * mmas * warps_kv), warps=4)


def _tile_rows(w: AttentionWorkload, hw: HardwareProfile) -> int:
    """Packed rows of a tile: 16, 64 or 128 by how many a sequence has."""
    rows = w.seq_q * (w.heads // w.kv_heads)
    if rows > 64 and w.head_dim < 256:
        return 128
    if rows > 16 or hw.arch in ("sm70", "sm75"):
        return 64
    least = w.head_dim * (16 * w.dtype_bytes + 2 * 16 * 4 * _kv_element_bytes(w))
    return 16 if least <= hw.sram.max_per_cta else 64


def _kv_element_bytes(w: AttentionWorkload) -> int:
    return KV_BITS[w.kv_dtype or w.dtype] // 8


def range_tokens(
    w: AttentionWorkload, hw: HardwareProfile, tile_q: int, page_size: int, splits: int | None
) -> int:
    """Tokens of a range of keys: whole pages, and as many as `splits` ranges need, if given.

    Else the fewest, from LEAST_RANGE_TOKENS on, with which CTAS_AN_SM are enough for all. A
    sequence has one range where none are few enough.
    """
    low, high = w.visible_keys(0, w.seq_q - 1)
    held = high if w.window is None else min(high, w.window - 1 + tile_q)
    pages = blocks(held, page_size)
    if splits is not None:
        return blocks(blocks(high - low, page_size), splits) * page_size
    tiles = w.batch * blocks(w.seq_q * (w.heads // w.kv_heads), tile_q)
    most = CTAS_AN_SM * hw.sm.count // w.kv_heads
    least = max(LEAST_RANGE_TOKENS // page_size, 1)
    lengths = range(least, max(least, pages))
    return (least + bisect_left(lengths, True, key=lambda n: tiles * blocks(pages, n) <= most)) * (
        page_size
    )


@dataclass(frozen=True, eq=False)
class PackedAttention:
    """Attention of packed rows over ranges of so many tokens; a CTA each tile of rows and range."""

    w: AttentionWorkload
    cta: FlashCta
    page_size: int
    range_tokens: int

    @property
    def rows(self) -> int:
        """Packed rows of a K/V matrix."""
        return self.w.seq_q * (self.w.heads // self.w.kv_heads)

    @property
    def down(self) -> int:
        """Tiles of them."""
        return blocks(self.rows, self.cta.tile.q)

    @property
    def matrices(self) -> int:
        """KV heads of all sequences."""
        return self.w.batch * self.w.kv_heads

    @property
    def shown(self) -> tuple[int, int]:
        """The keys that any query sees."""
        return self.w.visible_keys(0, self.w.seq_q - 1)

    @property
    def splits(self) -> int:
        """Ranges of a matrix."""
        low, high = self.shown
        return blocks(high - low, self.range_tokens)

    @property
    def grid(self) -> Grid:
        """(ranges, tiles of rows, sequences, KV heads)."""
        return Grid(self.splits, self.down, self.w.batch, self.w.kv_heads)

    @cached_property
    def o(self) -> Tensor:
        """The result."""
        shape = (self.matrices, self.rows, self.w.head_dim)
        return Tensor("O", *shape, self.w.dtype_bytes, "output", "result")

    @cached_property
    def lse(self) -> Tensor:
        """The result's log-sum-exp."""
        return Tensor("LSE", self.matrices, self.rows, 1, STATISTICS_BYTES, "output", "statistics")

    def kernels(self) -> list[Kernel]:
        """The kernel over all ranges and, of more than one, the merge kernel."""
        if self.splits == 1:
            return [self._attention(self._rows_of(self.o), self._rows_of(self.lse))]
        w, shape = self.w, (self.matrices, self.splits)
        o = Tensor("O of splits", *shape, self.rows * w.head_dim, w.dtype_bytes, role="partial")
        lse = Tensor("LSE of splits", *shape, self.rows, STATISTICS_BYTES, role="partial")
        tile_q = self.cta.tile.q

        def of_range(items: IntArray) -> IntArray:
            number, row, *_ = self.grid.at(items)
            return (self._matrix(items) * self.splits + number) * self.down + row

        attention = self._attention(
            Stream(o, 1, tile_q * w.head_dim, of_range), Stream(lse, 1, tile_q, of_range)
        )
        return [attention, self._merge(o, lse)]

    def _matrix(self, items: IntArray) -> IntArray:
        _, _, sequence, head = self.grid.at(items)
        return sequence * self.w.kv_heads + head

    def _rows_of(self, tensor: Tensor) -> Stream:
        """Each CTA's tile of packed rows."""
        return Stream(
            tensor,
            self.cta.tile.q,
            tensor.cols,
            lambda items: self._matrix(items) * self.down + self.grid.at(items)[1],
        )

    def _tiles(self, items: IntArray) -> IntArray:
        """Tiles of keys that each CTA's mask shows of its range."""
        number, row, *_ = self.grid.at(items)
        group = self.rows // self.w.seq_q
        last = np.minimum((row + 1) * self.cta.tile.q, self.rows) - 1
        first = self.shown[0] + number * self.range_tokens
        end = np.minimum(self.shown[1], first + self.range_tokens)
        if self.w.causal:
            end = np.minimum(end, self.w.seq_kv - self.w.seq_q + 1 + last // group)
        return np.maximum(0, -(-(end - first) // self.cta.tile.kv))

    def _attention(self, o: Stream, lse: Stream) -> Kernel:
        w = self.w
        low, high = self.shown
        q = Tensor("Q", self.matrices, self.rows, w.head_dim, w.dtype_bytes, "input", "query")
        ranges = KeyRanges(
            low,
            high,
            self.range_tokens,
            number=lambda items: self.grid.at(items)[0],
            matrix=self._matrix,
            first=np.zeros_like,
            end=self._tiles,
        )
        tiles = QueryTiles(self.grid.size, self._rows_of(q), o, lse, self.matrices, sharing=1)

        def loop(trips: OfItem, k: Operand, v: Operand) -> Loop:
            return key_loop(w, self.cta, trips, tiles.q.tile_bytes, k, v)

        loops = loops_over_pages(w, self.page_size, self.cta.tile.kv, ranges, loop)
        title = f"flashinfer, {w.kv_dtype} cache" if w.kv_dtype else "flashinfer"
        return flash_kernel(title, w, self.cta, tiles, *loops)

    def _merge(self, o: Tensor, lse: Tensor) -> Kernel:
        """A CTA a row of O, which a few threads have of each of several ranges."""
        d, element_bytes = self.w.head_dim, self.w.dtype_bytes
        held = MERGE_THREADS * max(16 // element_bytes, d // 32) // d  # ranges
        at_a_time = min(held, self.splits)
        trips = blocks(self.splits, at_a_time)

        def first(items: IntArray) -> IntArray:
            matrix, row = items // self.rows, items % self.rows
            return matrix * trips * self.rows + row

        weights = Load(Stream(lse, self.splits, 1, lambda items: items))
        load_o = Load(Stream(o, at_a_time, d, first, stride=self.rows), MERGE_STAGES)
        add = Compute(
            "O += exp(lse_s - lse) O_s",
            (load_o,),
            vector_ops=2 * at_a_time * d,  # rescales what is there, adds
            exp_count=2 * MERGE_THREADS,
            sram_bytes=2 * at_a_time * d * element_bytes,
        )
        return reduction(
            "merge",
            of_constant(trips),
            add,
            (in_order(self.o, 1), in_order(self.lse, 1)),
            Footprint(
                MERGE_STAGES * held * d * element_bytes + MERGE_THREADS * STATISTICS_BYTES,
                threads=MERGE_THREADS,
                registers_per_thread=registers.COMBINE,
            ),
            before=Compute("wait for log-sum-exps", (weights,)),
        )
