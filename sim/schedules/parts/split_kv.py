"""The split-KV kernels, as all schedules that decode with them have them.

    for each KV head of each sequence, for each of `splits` ranges of its key blocks (one CTA):
        load the query rows of all heads that share the KV head
        O_s, log-sum-exp_s = the FlashAttention-2 loop over the range, last block first
    combine the ranges, unless there is one

Of one query a sequence the heads of a KV head are packed as rows. Of several (append), and of one
behind a window, each head's queries are rows of their own, tile.q of them a CTA, so that every head
reads its KV head's cache:

    for each tile.q queries of each head of each sequence, for each of `splits` ranges (one CTA)

Ranges are cut of all keys that a sequence has room for, filled and shown or not, of the longest one
where sequences differ: what the host knows. A CTA whose range has no keys to see stores zeros, and
combine adds them too.

Where K and V of a block lie the schedule says: in a matrix a KV head (`contiguous`), in pages, ...

Source: Dao-AILab/flash-attention, csrc/flash_attn: the number of splits (flash_api.cpp,
num_splits_heuristic, set_params_splitkv), query heads packed as rows of one matrix
(mha_fwd_kvcache, seqlenq_ngroups_swapped), the grid and what the mask leaves of a range
(run_flash_splitkv_fwd, compute_attn_1rowblock_splitkv). Combine is told in combine_splits.py.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import whole
from sim.inputs.workload import AttentionWorkload, Phase
from sim.schedules.base import (
    STATISTICS_BYTES,
    blocks,
    kv_matrix,
    matrix_sizes,
    visible_blocks,
)
from sim.schedules.parts.combine import fewest_filling
from sim.schedules.parts.combine_splits import MOST_SPLITS, combine_of_splits
from sim.schedules.parts.counted import Counted, resident
from sim.schedules.parts.flash3_sm8x import check_sm8x, decoding_sm8x
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import Operand, QueryTiles, flash_kernel, key_loop
from sim.schedules.parts.flash_schedule import FlashSchedule
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.kv_cache import QUANTISATIONS, cache_tensors, ops_of_making_ready
from sim.schedules.parts.latent_splits import triton_splits
from sim.schedules.parts.public_tiles import public_split_kv_cta
from sim.schedules.parts.results import Attention, Result
from sim.schedules.parts.sglang_decode import begun_by, own_setup
from sim.schedules.parts.xqa import Xqa, merged_by_last, xqa_of
from sim.schedules.parts.xqa import suits as xqa_suits
from sim.tile_program import (
    Compute,
    IntArray,
    Kernel,
    Kind,
    Loop,
    OfItem,
    Stream,
    Tensor,
)

SPLIT_ROWS = 64  # of the public kernel's tile
# What FlashAttention-2's split kernel executes outside its trips: 480 instructions before the first
# one, 251 after the last (vLLM 0.24.0's wheel, sm_80, head_dim 128, played through: 2,660 cycles,
# of two CTAs 3,745). Lengths, then the number of a page, are read before anything is loaded.
OUTSIDE = Counted(731, 2_660, beside=1_085, l2_reads=2)
BlockEnds = tuple[IntArray, IntArray]  # of each sequence: its first key block, and the end


@dataclass(frozen=True, eq=False)
class SplitKeys:
    """The key blocks that the mask shows, cut in `splits` ranges for each matrix of query rows.

    A CTA each for every tile.q of the rows.
    """

    w: AttentionWorkload
    cta: FlashCta
    shown: BlockEnds  # the blocks that any query of each sequence sees
    cut: BlockEnds  # those that the ranges of each are cut of
    splits: int
    packed: bool = True  # the heads of a KV head, if they have one query each
    combine_sets_up: bool = False
    xqa: Xqa | None = None
    setup: Compute | None = None  # of a CTA, in place of the architecture's

    @property
    def rows(self) -> int:
        """Query rows of a matrix: the heads of a KV head, or the queries of a head."""
        return query_rows(self.w, self.packed)[1]

    @property
    def matrices(self) -> int:
        """Matrices of query rows: KV heads of all sequences, or heads."""
        return query_rows(self.w, self.packed)[0]

    @property
    def a_kv_matrix(self) -> bool:
        """Whether a matrix of query rows has a K/V matrix for itself."""
        return self.packed and self.w.seq_q == 1

    @property
    def range_blocks(self) -> int:
        """Key blocks of a range, the last of which has fewer."""
        return blocks(int((self.cut[1] - self.cut[0]).max()), self.splits)

    @property
    def kv_matrices(self) -> int:
        """KV heads of all sequences."""
        return self.w.batch * self.w.kv_heads

    @property
    def down(self) -> int:
        """Blocks of query rows of a matrix."""
        return blocks(self.rows, self.cta.tile.q)

    @cached_property
    def q(self) -> Tensor:
        """The query rows of each matrix."""
        shape, sizes = (self.matrices, self.rows, self.w.head_dim), self.sizes(self.w.head_dim)
        return Tensor("Q", *shape, self.w.dtype_bytes, "input", "query", sizes)

    def sizes(self, cols: int) -> IntArray | None:
        """Sizes of the matrices of query rows, of so many columns."""
        return matrix_sizes(self.w.queries, cols, self.matrices // self.w.batch)

    @property
    def across(self) -> int:
        """Key blocks of a matrix, shown or not."""
        return blocks(self.w.seq_kv, self.cta.tile.kv)

    @property
    def grid(self) -> Grid:
        """(blocks of query rows, ranges, matrices of query rows)."""
        return Grid(self.down, self.splits, self.matrices)

    def rows_matrix(self, items: IntArray) -> IntArray:
        """The matrix of query rows of each CTA; unsplit, those of all sequences before a head's."""
        matrix = self.grid.at(items)[2]
        if self.a_kv_matrix or self.splits > 1:
            return matrix
        sequence, head = Grid(self.w.batch, self.w.heads).at(matrix)
        return sequence * self.w.heads + head

    def sequence(self, items: IntArray) -> IntArray:
        """The sequence of each CTA."""
        return self.rows_matrix(items) // (self.matrices // self.w.batch)

    def has_rows(self, items: IntArray) -> IntArray:
        """1 where a CTA's sequence has such query rows."""
        queries = np.array(self.w.queries, np.int64)[self.sequence(items)]
        there: IntArray = (self.grid.at(items)[0] * self.cta.tile.q < queries).astype(np.int64)
        return there

    def matrix(self, items: IntArray) -> IntArray:
        """The K/V matrix of each CTA."""
        matrix = self.rows_matrix(items)
        return matrix if self.a_kv_matrix else kv_matrix(self.w, matrix)

    def rows_of_q(self, items: IntArray) -> IntArray:
        """The tile of Q of each CTA."""
        return self.rows_matrix(items) * self.down + self.grid.at(items)[0]

    def rows_of_split(self, items: IntArray) -> IntArray:
        """Where each CTA's rows lie among the partial results, range after range."""
        number = self.grid.at(items)[1]
        return number * self.matrices * self.down + self.rows_of_q(items)

    def statistics_of_split(self, items: IntArray) -> IntArray:
        """Where each CTA's rows lie if all ranges of a row do together, to be read at once."""
        return self.rows_of_split(items) if self.down == 1 else items

    def ends(self, items: IntArray) -> tuple[IntArray, IntArray]:
        """The first key block of each CTA's range that its rows see, and the end."""
        row, number, _ = self.grid.at(items)
        sequence = self.sequence(items)
        start = self.cut[0][sequence] + number * self.range_blocks
        first, end = (edge[sequence] for edge in self.shown)
        if self.w.seq_q > 1:
            place = row if self.w.lengths is None else sequence * self.down + row
            first, end = (edge[place] for edge in self._visible)
        first, end = np.maximum(first, start), np.minimum(end, start + self.range_blocks)
        return first, np.maximum(first, end)

    @cached_property
    def _visible(self) -> tuple[IntArray, IntArray]:
        return visible_blocks(self.w, self.cta.tile)

    def trips(self, items: IntArray) -> IntArray:
        """Key blocks of each CTA."""
        first, end = self.ends(items)
        return end - first

    def has_keys(self, items: IntArray) -> IntArray:
        """1 where a CTA has any."""
        return np.minimum(1, self.trips(items))

    def last_tile(self, items: IntArray) -> IntArray:
        """Each CTA's last tile in a tensor of a matrix a KV head: the first that it visits."""
        return self.matrix(items) * self.across + self.ends(items)[1] - 1

    def loop(self, trips: OfItem, k: Operand, v: Operand) -> Loop:
        """The FlashAttention-2 loop, or XQA's, over so many key blocks of each CTA."""
        if self.xqa:
            return self.xqa.loop(self.w, trips, k, v)
        q_bytes = self.cta.tile.q * self.w.head_dim * self.w.dtype_bytes  # its whole tile is read
        return key_loop(self.w, self.cta, trips, q_bytes, k, v)


class SplitKv(FlashSchedule):
    """What all schedules built on the split-KV kernels take.

    `pack_gqa` says whether the query heads of a KV head are rows of one tile where each has one
    query; FlashAttention-2 packs them unless there is a window, Triton's kernels always.
    `room_tokens` is how many keys a sequence has room for (a page table's width, the longest
    sequence of a captured graph), by which ranges are cut; no more than there are unless given.
    """

    pack_gqa: bool | None = None
    room_tokens: Annotated[int, Field(ge=1), whole(1)] | None = None
    phases: ClassVar[tuple[Phase, ...]] = ("decode",)
    takes = frozenset({"kv_dtype", "softcap", "alibi"})
    reads_by_xqa: ClassVar[bool] = False

    @property
    def multiplies_fp8(self) -> bool:
        """As FlashAttention-3's and FlashInfer's decoding, whose place it takes."""
        return True

    def split(self, w: AttentionWorkload, hw: HardwareProfile, splits: int | None) -> SplitKeys:
        """How the keys are cut, by the public heuristic unless `splits` says; raises InputError."""
        self._check_split(w)
        packed = self.packs(w)
        xqa = self._xqa(w, hw, packed)
        cta, ranges = self._public(w, hw, xqa)
        rows = query_rows(w, packed)[1]
        if w.seq_q == 1 and rows > cta.tile.q:
            raise InputError(
                f"schedule {self.name}: tile.q = {cta.tile.q}: the {rows} query heads of a KV head "
                "are its rows; give tile.q at least as many"
            )
        shown, cut = self._blocks(w, cta.tile.kv, xqa, packed)
        key_blocks = cut[1] - cut[0]
        keys = int(key_blocks.max())
        splits = splits or ranges
        if self._is_sglang and splits is None:
            splits = max(triton_splits((key_blocks * cta.tile.kv).tolist(), w.kv_heads, hw))
        splits = min(splits or splits_of(w, hw, keys, cta.tile.q, packed), keys)
        # As many as ranges of that size need.
        splits = blocks(keys, blocks(keys, splits))
        # FlashAttention-2's combine reckons where its rows lie before its first load: some thousand
        # instructions with 14 divisions of 64 bits (vllm-flash-attn 2.6.2, disassembled), as many
        # as the split kernel's own setup.
        sets_up = self.implementation == "cuda" or self._is_fa3
        split = SplitKeys(w, cta, shown, cut, splits, packed, sets_up, xqa)
        if self._is_sglang:
            return replace(split, setup=own_setup(w, hw, cta.footprint(w), split.grid.size))
        if self.implementation == "cuda" and not xqa and w.kv_dtype is None:
            sharing = resident(cta.footprint(w), split.grid.size, hw)
            setup = OUTSIDE.compute("find the range", (), hw, sharing)
            return replace(split, setup=setup)
        return split

    def _check_split(self, w: AttentionWorkload) -> None:
        if w.kv_dtype is not None and w.kv_dtype not in QUANTISATIONS:
            raise InputError(
                f'schedule {self.name}: workload.kv_dtype = "{w.kv_dtype}": '
                f"{', '.join(QUANTISATIONS)}, or workload.dtype, was expected"
            )
        if self.room_tokens is not None and self.room_tokens < w.seq_kv:
            raise InputError(
                f"schedule {self.name}: room_tokens = {self.room_tokens}: room for the {w.seq_kv} "
                "keys of a sequence (workload.seq_kv), or more, was expected"
            )
        if (self._is_sglang or self._is_fa3) and w.seq_q > 1:
            raise InputError(
                f'schedule {self.name}: implementation = "{self.implementation}": workload.seq_q = '
                f"{w.seq_q}: one query a sequence was expected; of several it is that of flash2"
            )

    def _xqa(self, w: AttentionWorkload, hw: HardwareProfile, packed: bool) -> Xqa | None:
        """XQA's kernel, where it is asked for or what reads such a cache."""
        asked = str(self.implementation) == "xqa"  # of those that widen the literal
        suits = packed and self._may_be_xqa and xqa_suits(w, hw)
        return xqa_of(w, hw) if asked or suits else None

    def _public(
        self, w: AttentionWorkload, hw: HardwareProfile, xqa: Xqa | None
    ) -> tuple[FlashCta, int | None]:
        """The CTA, and how many ranges its kernel's own rule makes; None of the common rule."""
        if xqa:
            return xqa.cta, xqa.splits
        if self._is_fa3:
            check_sm8x(self.name, hw)
            public, ranges = decoding_sm8x(w, hw)
            return self.cta(public, w, hw), ranges
        return self.cta(self.public_cta(w, hw), w, hw), None

    def _blocks(
        self, w: AttentionWorkload, tile_keys: int, xqa: Xqa | None, packed: bool
    ) -> tuple[BlockEnds, BlockEnds]:
        """The key blocks of each sequence that queries see, and those that ranges are cut of."""
        low, high = np.array(
            [one.visible_keys(0, one.seq_q - 1) for one in w.sequences], np.int64
        ).T
        low -= low % (xqa.tile_keys if xqa else tile_keys)
        shown = low // tile_keys, -(-high // tile_keys)
        # Behind a window FlashAttention-2 packs no heads. Kernels that do cut what is shown, but
        # for one of XQA's.
        if packed and w.window is not None and (xqa is None or xqa.cuts_shown):
            return shown, shown
        room = blocks(self.room_tokens or w.seq_kv, tile_keys)
        return shown, (np.zeros_like(low), np.full_like(low, room))

    @property
    def _is_sglang(self) -> bool:
        return str(self.implementation) == "sglang"  # of those that widen the literal

    @property
    def _is_fa3(self) -> bool:
        return str(self.implementation) == "fa3"

    def public_cta(self, w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
        """What the split kernel uses unless told otherwise."""
        return public_split_kv_cta(w, hw, self.implementation)

    @property
    def _may_be_xqa(self) -> bool:
        """Whether an fp8 cache is read by XQA where there is one: of no other tile, or kernel."""
        own = (self.tile, self.warps, self.registers, self.stages, self.machine_code, self.rope)
        return self.reads_by_xqa and self.implementation == "cuda" and own == (None,) * len(own)

    def packs(self, w: AttentionWorkload) -> bool:
        """Whether the query heads of a KV head are rows of one tile."""
        if w.seq_q > 1:
            return False
        usual = w.window is None or str(self.implementation) in ("triton", "sglang", "xqa", "fa3")
        return usual if self.pack_gqa is None else self.pack_gqa


def query_rows(w: AttentionWorkload, packed: bool = True) -> tuple[int, int]:
    """Matrices of query rows, and rows of each: one query's heads are rows of their KV head's."""
    if packed and w.seq_q == 1:
        return w.batch * w.kv_heads, w.heads // w.kv_heads
    return w.batch * w.heads, w.seq_q


def contiguous_attention(keys: SplitKeys) -> Attention:
    """Attention over a cache that is a matrix a KV head of a sequence."""
    kv = cache_tensors(keys.w, keys.w.keys, keys.w.kv_heads)
    loop = keys.loop(keys.trips, *contiguous(keys, kv))
    # The kernels of quantised caches, and of sequences of several lengths, are other ones.
    other = keys.w.kv_dtype is not None or keys.w.lengths is not None
    return split_attention("flash_decoding", keys, loop, kind=None if other else "flash")


def contiguous(keys: SplitKeys, kv: tuple[Tensor, Tensor]) -> tuple[Operand, Operand]:
    """K and V, a matrix a KV head of a sequence each, their blocks visited last first."""
    rows = keys.cta.tile.kv
    ops = ops_of_making_ready(keys.w, rows)
    k, v = (
        Operand((Stream(tensor, rows, tensor.cols, keys.last_tile, -1),), register_ops=ops)
        for tensor in kv
    )
    return k, v


def split_attention(
    name: str, keys: SplitKeys, *key_loops: Loop, kind: Kind | None = None
) -> Attention:
    """The split kernel, named with the cache's dtype where it has its own, and combine.

    `kind` is that of the split kernel.
    """
    w, cta, rows = keys.w, keys.cta, min(keys.cta.tile.q, keys.rows)
    # Rows of all matrices lie one after the other, unless a tile would reach into the next.
    groups, group_rows = 1, keys.matrices * keys.rows
    if keys.down > 1 or w.differ_in_queries:
        groups, group_rows = keys.matrices, keys.rows
    o = (groups, group_rows, w.head_dim, w.dtype_bytes)
    lse = (groups, group_rows, 1, STATISTICS_BYTES)
    result = Result(
        Tensor("O", *o, "output", "result", keys.sizes(w.head_dim)),
        Tensor("LSE", *lse, "output", "statistics", keys.sizes(1)),
    )
    o_shape = (keys.splits * groups, group_rows, w.head_dim)
    o_bytes = w.dtype_bytes if keys.xqa else STATISTICS_BYTES
    of_splits = Result(
        Tensor("O of splits", *o_shape, o_bytes, role="partial"),
        Tensor("LSE of splits", groups, keys.splits, group_rows, STATISTICS_BYTES, role="partial"),
    )
    stored, lse_rows = result, Stream(result.lse, rows, 1, keys.rows_of_q)
    if keys.splits > 1:
        stored, lse_rows = of_splits, Stream(of_splits.lse, 1, rows, keys.statistics_of_split)
    tiles = QueryTiles(
        ctas=keys.grid.size,
        q=Stream(keys.q, cta.tile.q, w.head_dim, keys.rows_of_q),
        o=Stream(stored.o, rows, w.head_dim, keys.rows_of_split),
        lse=lse_rows,
        periods=keys.matrices,
        sharing=keys.matrices // keys.kv_matrices,
    )
    if w.differ_in_queries:
        tiles = replace(tiles, has_rows=keys.has_rows)
    title = f"{name}, {w.kv_dtype} cache" if w.kv_dtype else name
    split = replace(_or_zeros(flash_kernel(title, w, cta, tiles, *key_loops), keys), kind=kind)
    if keys.setup:
        split = begun_by(keys.setup, split)
    if keys.xqa and keys.xqa.ends:
        split = keys.xqa.ends(keys.splits).around(split, keys.has_keys)
    if keys.splits == 1:
        return Attention([split], result)
    if keys.xqa:
        place = keys.rows_of_q, lambda items: keys.grid.at(items)[1]
        return Attention([merged_by_last(split, of_splits, result, rows, place)], result)
    combine = replace(combine_of_splits(of_splits, result), sets_up=keys.combine_sets_up)
    return Attention([split, combine], result)


def _or_zeros(kernel: Kernel, keys: SplitKeys) -> Kernel:
    """The kernel, of which a CTA that has no keys to see loads no queries."""
    prologue, *rest = kernel.loops
    seeing = replace(prologue, trips=keys.has_keys)
    return replace(kernel, loops=(seeing, *rest), splits=keys.splits)


def splits_of(
    w: AttentionWorkload,
    hw: HardwareProfile,
    key_blocks: int,
    tile_rows: int = SPLIT_ROWS,
    packed: bool = True,
) -> int:
    """How many ranges the key blocks are split in (flash_api.cpp, num_splits_heuristic).

    The fewest that fill the waves well; two CTAs an SM are counted on.
    """
    matrices, rows = query_rows(w, packed)
    ctas, slots = matrices * blocks(rows, tile_rows), 2 * hw.sm.count
    if ctas >= 0.8 * slots:
        return 1
    most = min(MOST_SPLITS, slots, key_blocks)
    # A count that gives no range fewer blocks than the one below it is no choice of its own.
    counts = [
        n
        for n in range(1, most + 1)
        if n == 1 or blocks(key_blocks, n) != blocks(key_blocks, n - 1)
    ]
    return fewest_filling(counts, ctas, slots)
