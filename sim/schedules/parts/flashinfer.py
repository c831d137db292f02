"""FlashInfer's attention over a paged cache: query heads packed as rows, few of them a tile.

    for each KV head, for each sequence, tile of its packed rows, range of its keys (one CTA):
        load Q_i: row r is query head r % group of token r / group
        the loop of parts/paged_keys.py over the range (FlashInfer goes through it first to last)
        store O and log-sum-exp, of one range of several in the dtype of O
    merge all ranges' results (parts/flashinfer_merge.py), if keys are in several

A tree of drafted tokens has a mask of a bit a query and key (custom_mask), which all trips apply:
no key is left out for it, and the rule of ranges does not know of it.

A sequence has `group` rows a query, the query heads of a KV head. 16 rows are the tile of decoding:
the four warps share out the keys, so each reads only its own and has an O to itself. A trip begins
with the numbers of the next tile's pages and the addresses made of them, which it waits for, and
K's buffer is filled again once the softmax is done. The plan lists what there is to do,
so that sequences of other lengths have as many CTAs as they need; the rows that sequences have in
the mean say which tile. If any sequence has several ranges, the results of all are merged; a plan
for a captured graph, which is to serve any lengths, merges one range too. Behind a window the plan
counts the keys that a whole tile of queries would see: of one query's 128 the last range may be
empty, whose CTA loads Q and stores zeros.

Source: flashinfer-ai/flashinfer, include/flashinfer: the rows of a tile (utils.cuh,
FA2DetermineCtaTileQ), its warps and keys (attention/prefill.cuh, get_num_warps_q, get_num_warps_kv,
BatchPrefillWithPagedKVCacheDispatched), the ranges (attention/scheduler.cuh,
PrefillSplitQOKVIndptr, PrefillBinarySearchKVChunkSize). Differences: that warps add up their rows
of O through SRAM is left out, and so are the CTAs of a captured graph that end at once; one query
head a KV head runs this kernel too, where some callers take FlashInfer's decoding on CUDA cores.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import KV_BITS, AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, Tile, blocks, matrix_sizes
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import Operand, QueryTiles, flash_kernel, key_loop
from sim.schedules.parts.flashinfer_merge import merge_kernel
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.instructions import FP32_OPS_A_ROW, LANES, OTHER_OPS_A_ROW
from sim.schedules.parts.paged_keys import KeyRanges, loops_over_pages
from sim.schedules.parts.results import Result
from sim.schedules.parts.scores import tree_mask
from sim.tile_program import (
    IntArray,
    Kernel,
    Loop,
    OfItem,
    Stream,
    Tensor,
    once,
)

CTAS_AN_SM = 2  # that a plan counts on (scheduler.cuh, PrefillPlanImpl)
LEAST_RANGE_TOKENS = 128  # scheduler.cuh, min_kv_chunk_size
MOST_KV_MMAS = 8  # groups of 16 keys a warp, of 16 query rows; of 32 rows half as many
# Of the loops as nvcc 13.5 compiles v0.3.1's for sm_90 (16, 64 and 128 rows of head_dim 128, 16 of
# 256), beside FlashAttention-2's own fixed instructions: a warp's for the address of a row of K and
# V, 16 of which the CTA copies at once, and for each copy; an element in fp8 until it is bf16.
OPS_A_ROW_COPIED, ROWS_AT_ONCE, OPS_A_COPY, OPS_OF_CASTING = 45, 16, 2, 3.5
COPIED_AT_ONCE = 2048  # bytes, 16 a thread


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
    tile_kv = 16 * mmas * warps_kv
    copies = 2 * tile_kv * w.head_dim * _kv_element_bytes(w) // COPIED_AT_ONCE
    # Four lanes have a row of 64 bytes, eight any other (KernelTraits, KV_THR_LAYOUT_COL).
    rows_at_once = ROWS_AT_ONCE * (2 if w.head_dim * _kv_element_bytes(w) == 64 else 1)
    addresses = OPS_A_ROW_COPIED * tile_kv // rows_at_once + OPS_A_COPY * copies
    # Each warp that shares keys has an O of all rows to itself.
    row_ops = w.head_dim + FP32_OPS_A_ROW + OTHER_OPS_A_ROW
    own_o = (warps_kv - 1) * blocks(rows * row_ops, 4 * LANES)
    return FlashCta(
        Tile(q=rows, kv=tile_kv),
        warps=4,
        k_until_softmax=True,
        kv_readers=warps_q,
        address_instructions=addresses,
        sharing_instructions=own_o,
        sums_apart=True,
    )


def _tile_rows(w: AttentionWorkload, hw: HardwareProfile) -> int:
    """Packed rows of a tile: 16, 64 or 128 by how many a sequence has."""
    rows = sum(w.queries) * (w.heads // w.kv_heads) // w.batch
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
    sequence has one range where none are few enough. Of several queries behind a window each tile's
    ranges begin where its own window does.
    """
    pages = -(-keys_planned(w, tile_q) // page_size)
    if splits is not None:
        return blocks(int(pages.max()), splits) * page_size
    tiles = -(-np.array(w.queries) * (w.heads // w.kv_heads) // tile_q)
    most = CTAS_AN_SM * hw.sm.count // w.kv_heads
    least = max(LEAST_RANGE_TOKENS // page_size, 1)
    lengths = range(least, max(least, int(pages.max())))

    def suffices(length: int) -> bool:
        """Whether ranges of so many pages are few enough."""
        return int((tiles * -(-pages // length)).sum()) <= most

    return (least + bisect_left(lengths, True, key=suffices)) * page_size


def keys_planned(w: AttentionWorkload, tile_q: int) -> IntArray:
    """Keys of each sequence that a plan for tiles of `tile_q` rows cuts in ranges."""
    _, high = keys_shown(w)
    return high if w.window is None else np.minimum(high, w.window - 1 + tile_q)


def keys_shown(w: AttentionWorkload) -> tuple[IntArray, IntArray]:
    """The keys low to high - 1 that any query of each sequence sees."""
    low, high = np.array([one.visible_keys(0, one.seq_q - 1) for one in w.sequences], np.int64).T
    return low, high


def check_flashinfer(where: str, w: AttentionWorkload) -> None:
    """Raises InputError, which begins with `where`, of a workload that it has no kernel for."""
    for key, given, is_taken, expected in (
        ("dtype", w.dtype, w.dtype in ("fp16", "bf16"), "fp16 or bf16 was"),
        ("kv_dtype", w.kv_dtype, w.kv_dtype in (None, "fp8"), "fp8, or workload.dtype, was"),
    ):
        if not is_taken:
            raise InputError(f'{where}: workload.{key} = "{given}": {expected} expected')


@dataclass(frozen=True, eq=False)
class PackedAttention:
    """Attention of packed rows over ranges of so many tokens; a CTA each tile of rows and range.

    What it makes is the result unless its keys are only `part` of all. A plan for a `captured`
    graph has all results merged.
    """

    w: AttentionWorkload
    cta: FlashCta
    page_size: int
    range_tokens: int
    part: str = ""  # what the tensors are of, as tables show it
    captured: bool = False

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.w.heads // self.w.kv_heads

    @cached_property
    def rows(self) -> IntArray:
        """Packed rows of each sequence."""
        return np.array(self.w.queries, np.int64) * self.group

    @property
    def most_rows(self) -> int:
        """Of any sequence."""
        return int(self.rows.max())

    @property
    def down(self) -> int:
        """Tiles of rows of the sequence that has most."""
        return blocks(self.most_rows, self.cta.tile.q)

    @property
    def matrices(self) -> int:
        """KV heads of all sequences."""
        return self.w.batch * self.w.kv_heads

    @cached_property
    def shown(self) -> tuple[IntArray, IntArray]:
        """The keys that any query of each sequence sees."""
        return keys_shown(self.w)

    @cached_property
    def ranges(self) -> IntArray:
        """Ranges of each sequence."""
        return -(-keys_planned(self.w, self.cta.tile.q) // self.range_tokens)

    @property
    def splits(self) -> int:
        """Ranges of the sequence that has most."""
        return int(self.ranges.max())

    @cached_property
    def plan(self) -> tuple[IntArray, IntArray, IntArray]:
        """The sequence, tile of rows and range of each CTA of a KV head, ranges running fastest."""
        tiles = -(-self.rows // self.cta.tile.q)
        ctas = tiles * self.ranges
        sequence = np.repeat(np.arange(self.w.batch), ctas)
        place = np.arange(int(ctas.sum())) - np.repeat(np.cumsum(ctas) - ctas, ctas)
        return sequence, place // self.ranges[sequence], place % self.ranges[sequence]

    @property
    def grid(self) -> Grid:
        """(what the plan lists, KV heads)."""
        return Grid(len(self.plan[0]), self.w.kv_heads)

    @cached_property
    def o(self) -> Tensor:
        """The result."""
        shape = (self.matrices, self.most_rows, self.w.head_dim)
        sizes = self._sizes(self.w.head_dim)
        if self.part:
            name = f"O of {self.part}"
            return Tensor(name, *shape, self.w.dtype_bytes, role="partial", sizes=sizes)
        return Tensor("O", *shape, self.w.dtype_bytes, "output", "result", sizes)

    @cached_property
    def lse(self) -> Tensor:
        """The result's log-sum-exp."""
        shape, sizes = (self.matrices, self.most_rows, 1), self._sizes(1)
        if self.part:
            name = f"LSE of {self.part}"
            return Tensor(name, *shape, STATISTICS_BYTES, role="partial", sizes=sizes)
        return Tensor("LSE", *shape, STATISTICS_BYTES, "output", "statistics", sizes)

    def _sizes(self, cols: int) -> IntArray | None:
        """Of the matrices of packed rows."""
        return matrix_sizes(self.rows.tolist(), cols, self.w.kv_heads)

    def _partial(self, name: str, cols: int, element_bytes: int) -> Tensor:
        """Partial results: of a KV head a row a range, with so many columns a packed row."""
        sizes = np.stack([self.ranges, self.rows * cols], axis=1).repeat(self.w.kv_heads, axis=0)
        shape = (self.matrices, self.splits, self.most_rows * cols)
        alike = bool((sizes == sizes[0]).all())
        return Tensor(name, *shape, element_bytes, role="partial", sizes=None if alike else sizes)

    def kernels(self, hw: HardwareProfile) -> list[Kernel]:
        """The kernel over all ranges and, of more than one or of a graph, the merge kernel."""
        if self.splits == 1 and not self.captured:
            return [self._attention(self._rows_of(self.o), self._rows_of(self.lse))]
        w, tile_q = self.w, self.cta.tile.q
        o = self._partial("O of splits", w.head_dim, w.dtype_bytes)
        lse = self._partial("LSE of splits", 1, STATISTICS_BYTES)

        def of_range(items: IntArray) -> IntArray:
            _, row, number = self._place(items)
            return (self._matrix(items) * self.splits + number) * self.down + row

        attention = self._attention(
            Stream(o, 1, tile_q * w.head_dim, of_range), Stream(lse, 1, tile_q, of_range)
        )
        ranges, rows = (side.repeat(w.kv_heads) for side in (self.ranges, self.rows))
        whole = Result(self.o, self.lse)
        return [attention, merge_kernel(Result(o, lse), whole, rows, ranges, hw)]

    def _listed(self, items: IntArray) -> tuple[IntArray, ...]:
        """Where in the plan each item stands, and its KV head: an item is a CTA's."""
        return self.grid.at(items)

    def _has_tile(self, items: IntArray) -> IntArray:
        """1 where an item has a tile."""
        return once(items)

    def _place(self, items: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """The sequence, the tile of its rows and the range of its keys of each CTA."""
        listed = self._listed(items)[0]
        sequence, row, number = (side[listed] for side in self.plan)
        return sequence, row, number

    def _matrix(self, items: IntArray) -> IntArray:
        return self._place(items)[0] * self.w.kv_heads + self._listed(items)[1]

    def _rows_of(self, tensor: Tensor) -> Stream:
        """Each CTA's tile of packed rows."""
        return Stream(
            tensor,
            self.cta.tile.q,
            tensor.cols,
            lambda items: self._matrix(items) * self.down + self._place(items)[1],
        )

    @property
    def slides(self) -> bool:
        """Whether ranges begin where each tile's window does, not where the sequence's does."""
        return self.w.window is not None and self.w.seq_q > 1

    def _keys(self, items: IntArray) -> tuple[IntArray, IntArray]:
        """The first key that each CTA visits and the end, from its sequence's first shown on."""
        sequence, row, number = self._place(items)
        (low, high), tile_q = self.shown, self.cta.tile.q
        before = (np.array(self.w.keys) - np.array(self.w.queries))[sequence]  # the first query
        begin = number * self.range_tokens
        if self.w.window is not None and self.slides:
            shown = before + row * tile_q // self.group + 1 - self.w.window
            begin = begin + np.maximum(shown, 0) - low[sequence]
        end = np.minimum((high - low)[sequence], begin + self.range_tokens)
        if self.w.causal and not self.w.tree:
            last = np.minimum((row + 1) * tile_q, self.rows[sequence]) - 1
            end = np.minimum(end, before + 1 + last // self.group - low[sequence])
        return begin, np.maximum(begin, end)

    def _tiles(self, items: IntArray) -> IntArray:
        """Tiles of keys that each CTA visits."""
        begin, end = self._keys(items)
        tiles: IntArray = -(-(end - begin) // self.cta.tile.kv)
        return tiles * self._has_tile(items)

    def _first_tile(self, items: IntArray) -> IntArray:
        """The first of them, of those that its range is cut in."""
        first: IntArray = self._keys(items)[0] // self.cta.tile.kv
        return first if self.slides else np.zeros_like(items)

    def _attention(self, o: Stream, lse: Stream) -> Kernel:
        w = self.w
        low, high = self.shown
        shape, sizes = (self.matrices, self.most_rows, w.head_dim), self._sizes(w.head_dim)
        q = Tensor("Q", *shape, w.dtype_bytes, "input", "query", sizes)
        ranges = KeyRanges(
            low,
            high,
            int((high - low).max()) if self.slides else self.range_tokens,
            number=lambda items: self._place(items)[2] * (not self.slides),
            matrix=self._matrix,
            first=self._first_tile,
            end=lambda items: self._first_tile(items) + self._tiles(items),
        )
        tiles = QueryTiles(
            self.grid.size,
            self._rows_of(q),
            o,
            lse,
            self.matrices,
            sharing=1,
            has_rows=self._has_tile,
        )

        def loop(trips: OfItem, k: Operand, v: Operand) -> Loop:
            if self.cta.address_instructions:  # by the warps that multiply
                (keys, numbers), casting = k.streams, int(OPS_OF_CASTING * k.register_ops)
                k = Operand((keys,), numbers, register_ops=casting)
                v = replace(v, register_ops=casting)
            return key_loop(w, self.cta, trips, tiles.q.tile_bytes, k, v, self._tree())

        loops = loops_over_pages(w, self.page_size, self.cta.tile.kv, ranges, loop)
        cache = f", {w.kv_dtype} cache" if w.kv_dtype else ""
        kernel = flash_kernel(f"{self.part or 'flashinfer'}{cache}", w, self.cta, tiles, *loops)
        return replace(kernel, splits=self.splits)

    def _tree(self) -> Stream | None:
        """The bits that mask each trip's scores, if there is a tree: those of a tile's queries.

        Of a range that begins within a tile of the mask, the tiles from that one on.
        """
        if not self.w.tree:
            return None
        mask, tile = tree_mask(self.w), self.cta.tile
        queries = min(self.w.seq_q, blocks(tile.q, self.group))
        down, across = blocks(self.w.seq_q, queries), blocks(self.w.seq_kv, tile.kv)

        def last(items: IntArray) -> IntArray:
            sequence, row, number = self._place(items)
            first = self.shown[0][sequence] + number * self.range_tokens
            at = np.minimum(first // tile.kv + self._tiles(items), across) - 1
            place = sequence * down + row * tile.q // self.group // queries
            tiles: IntArray = place * across + at
            return tiles

        return Stream(mask, queries, tile.kv // 8, last, stride=-1)
