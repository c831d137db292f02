"""Multi-head latent attention, decoding in its absorbed form, as DeepSeek's FlashMLA.

The cache has latent_dim + rope_dim elements a token, for all heads: K is the whole row, V its first
latent_dim elements, so that one load serves both.

    for each part of the key blocks of all sequences, for each 64 query rows (one CTA):
        for each sequence of the part (one item):
            load the query rows
            for each page of its keys:
                S = Q C^T;  m, P = online softmax of S;  O = rescale(O) + P C[:, :latent_dim]
            store O, or where the sequence is in several parts the partial O and log-sum-exp
    for each 8 rows of O of each sequence in several parts (one CTA): combine them

Source: deepseek-ai/FlashMLA, csrc/sm90/kernels: tile 64 x 64 and a page the same, two buffers of C
and two warp groups (traits.h), as many parts as SMs for each 64 rows, cut so that each has equally
many blocks with 5 for starting a sequence (get_mla_metadata.cu, flash_api.cpp), the combine kernel
(mla_combine.cu). A page is read whole, with the 32-byte sector that has its number. FlashMLA runs
on Hopper; elsewhere its loop runs with the tile that fits. The heads of several query tokens (of
drafts to verify) are rows one token after the other, and share what is loaded of the cache; rows
that a causal mask shows less end earlier (dense_decode.h, splitkv_mla.cuh, get_mask_len).

The matmuls by W_UK and W_UV are left out as all projections are: DeepSeek-V2 (arXiv 2405.04434,
section 2.1.2) absorbs them in those that make the queries and take the output. Prefill is `flash2`
on K and V made of the latents.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, VECTOR_OPS_PER_SCORE, Tile, TiledSchedule, blocks
from sim.schedules.parts import registers
from sim.schedules.parts.combine import combine_kernel
from sim.schedules.parts.ends import begin, finish
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.kv_cache import scattered
from sim.schedules.parts.results import Result
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

BUFFERS = 2
WARP_GROUPS = 2
OVERHEAD_BLOCKS = 5  # what starting on a sequence counts as (config.h, FIXED_OVERHEAD_NUM_BLOCKS)
COMBINED_ROWS = 8
PAGES_SEED = 0


class Mla(TiledSchedule):
    """Multi-head latent attention of a few queries a sequence; a page has tile.kv tokens."""

    name: Literal["mla"] = "mla"

    summary = "multi-head latent attention, absorbed: one latent cache for all heads"
    source = "deepseek-ai/FlashMLA, csrc/sm90; arXiv 2405.04434"
    phases = ("decode",)
    masks = ("full", "causal")
    takes = frozenset({"latents", "append"})

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The split kernel and, where a sequence is in several parts, the combine kernel."""
        if w.latent_dim is None:
            raise InputError(
                "schedule mla: workload.latent_dim is missing: a model with latent attention was "
                "expected, such as deepseek-v3"
            )
        row_bytes = (w.latent_dim + w.rope_dim) * w.dtype_bytes

        def sram_bytes(tile: Tile) -> int:
            """Q, the buffers of C, and P."""
            scores_bytes = tile.q * tile.kv * w.dtype_bytes
            return row_bytes * (tile.q + BUFFERS * tile.kv) + scores_bytes

        tile = self.fit_tile(Tile(q=64, kv=64), sram_bytes, w, hw)
        down = blocks(w.seq_q * w.heads, tile.q)
        parts = cut_in_parts(w.batch, blocks(w.seq_kv, tile.kv), max(1, hw.sm.count // down))
        latents = _Latents(w, w.latent_dim, tile, parts)
        split = latents.split_kernel(hw, sram_bytes(tile))
        return [split, latents.combine_kernel()] if parts.splits.max() > 1 else [split]


@dataclass(frozen=True, eq=False)
class Parts:
    """What each part works on: `slots` sequences, of which the last ones may be none.

    `sequence`, its `first` key block there, the `count` of them (0: none) and where its `partial`
    result lies (-1: the part has all of it) have shape (parts * slots), a part's slots one after
    the other. `splits` and `first_split` are of each sequence.
    """

    slots: int
    sequence: IntArray
    first: IntArray
    count: IntArray
    partial: IntArray
    splits: IntArray
    first_split: IntArray


def cut_in_parts(sequences: int, key_blocks: int, parts: int) -> Parts:
    """FlashMLA's schedule for sequences of `key_blocks` each (get_mla_metadata.cu)."""
    total = sequences * (key_blocks + OVERHEAD_BLOCKS)
    payload = max(blocks(total, parts) + OVERHEAD_BLOCKS, 2 * OVERHEAD_BLOCKS)
    pieces: list[list[tuple[int, int, int]]] = []  # of each part: sequence, first block, count
    sequence = done = 0
    while sequence < sequences:
        left, part = payload, []
        while sequence < sequences and left > OVERHEAD_BLOCKS:
            count = min(key_blocks - done, left - OVERHEAD_BLOCKS)
            part.append((sequence, done, count))
            left -= count + OVERHEAD_BLOCKS
            done += count
            if done == key_blocks:
                sequence, done = sequence + 1, 0
        pieces.append(part)
    slots = max(len(part) for part in pieces)
    filled = [piece for part in pieces for piece in part + [(0, 0, 0)] * (slots - len(part))]
    owner, first, count = np.array(filled, np.int64).T
    splits = np.bincount(owner[count > 0], minlength=sequences)
    # A sequence's partial results lie one after the other, in the order of its parts.
    partial = np.where((count > 0) & (splits[owner] > 1), np.cumsum(count > 0) - 1, -1)
    return Parts(slots, owner, first, count, partial, splits, np.cumsum(splits) - splits)


@dataclass(frozen=True)
class _Ctas:
    """A CTA for each block of query rows of each part; its items are the part's slots.

    `end` is behind the last key block that the mask shows to each block of rows.
    """

    parts: Parts
    end: IntArray

    @property
    def down(self) -> int:
        """Blocks of query rows of a sequence."""
        return len(self.end)

    @property
    def grid(self) -> Grid:
        """Items: (slots, blocks of query rows, parts)."""
        return Grid(self.parts.slots, self.down, len(self.parts.count) // self.parts.slots)

    def slot(self, items: IntArray) -> IntArray:
        """The slot of each item, counted over all parts."""
        slot, _, part = self.grid.at(items)
        return part * self.parts.slots + slot

    def sequence(self, items: IntArray) -> IntArray:
        """The sequence of each item."""
        return self.parts.sequence[self.slot(items)]

    def first(self, items: IntArray) -> IntArray:
        """The first key block of each item."""
        return self.parts.first[self.slot(items)]

    def count(self, items: IntArray) -> IntArray:
        """The key blocks of each item that the mask shows."""
        shown = self.end[self.grid.at(items)[1]] - self.first(items)
        count: IntArray = np.clip(shown, 0, self.parts.count[self.slot(items)])
        return count

    def rows_of_sequence(self, items: IntArray) -> IntArray:
        """The tile of Q, and of O where the part has all of the sequence."""
        return self.sequence(items) * self.down + self.grid.at(items)[1]

    def rows_of_partial(self, items: IntArray) -> IntArray:
        """The tile of the partial O."""
        partial = np.maximum(self.parts.partial[self.slot(items)], 0)
        return partial * self.down + self.grid.at(items)[1]

    def has_keys(self, items: IntArray) -> IntArray:
        """1 where the item is a sequence's, 0 where the slot is empty."""
        return np.minimum(self.parts.count[self.slot(items)], 1)

    def is_split(self, items: IntArray) -> IntArray:
        """1 where its result is partial."""
        return (self.parts.partial[self.slot(items)] >= 0).astype(np.int64)

    def is_whole(self, items: IntArray) -> IntArray:
        """1 where its result is O."""
        return self.has_keys(items) - self.is_split(items)


class _Latents:
    """Attention over the latent cache: its tensors, and the kernels that go through them."""

    def __init__(self, w: AttentionWorkload, latent_dim: int, tile: Tile, parts: Parts) -> None:
        self.w, self.latent_dim, self.tile, self.parts = w, latent_dim, tile, parts
        self.width, self.rows = latent_dim + w.rope_dim, w.seq_q * w.heads
        partials = int(parts.splits.sum())
        self.pages = scattered(w.batch, w.seq_kv, tile.kv, PAGES_SEED)
        self.key_blocks = blocks(w.seq_kv, tile.kv)
        self.q = Tensor("Q", w.batch, self.rows, self.width, w.dtype_bytes, "input", "query")
        self.cache = Tensor(
            "C", 1, self.pages.pool_rows, self.width, w.dtype_bytes, "input", "cache"
        )
        self.whole = Result(
            Tensor("O", w.batch, self.rows, latent_dim, w.dtype_bytes, "output", "result"),
            Tensor("LSE", w.batch, self.rows, 1, STATISTICS_BYTES, "output", "statistics"),
        )
        self.partial = Result(
            Tensor(
                "O of splits", partials, self.rows, latent_dim, STATISTICS_BYTES, role="partial"
            ),
            Tensor("LSE of splits", partials, self.rows, 1, STATISTICS_BYTES, role="partial"),
        )

    def split_kernel(self, hw: HardwareProfile, sram_bytes: int) -> Kernel:
        """The kernel over all parts, with so much SRAM a CTA."""
        w, tile, latent_dim = self.w, self.tile, self.latent_dim
        last_rows = np.minimum(np.arange(tile.q, self.rows + tile.q, tile.q), self.rows) - 1
        shown = [w.visible_keys(0, row // w.heads)[1] for row in last_rows.tolist()]
        ctas = _Ctas(self.parts, -(-np.array(shown, np.int64) // tile.kv))
        load_q = Load(Stream(self.q, tile.q, self.width, ctas.rows_of_sequence))
        load_numbers, load_c = Load(self._numbers(ctas), BUFFERS), Load(self._keys(ctas), BUFFERS)
        q_bytes = tile.q * self.width * w.dtype_bytes

        def store(to: Result, trips: OfItem, rows: OfItem) -> Loop:
            o, lse = Stream(to.o, tile.q, latent_dim, rows), Stream(to.lse, tile.q, 1, rows)
            return finish(tile.q * latent_dim, o, lse, trips=trips)

        return Kernel(
            name="mla",
            ctas=ctas.grid.size // self.parts.slots,
            loops=(
                begin("Q", load_q, trips=ctas.has_keys, sram_bytes=q_bytes),
                Loop(ctas.count, (load_numbers, load_c, *self._trip(load_numbers, load_c))),
                store(self.whole, ctas.is_whole, ctas.rows_of_sequence),
                store(self.partial, ctas.is_split, ctas.rows_of_partial),
            ),
            footprint=Footprint(sram_bytes, 128 * WARP_GROUPS, registers.MLA),
            tensor_path="asynchronous" if hw.matmul_by_warp_group else "mma_sync",
            items_per_cta=self.parts.slots,
        )

    def _numbers(self, ctas: _Ctas) -> Stream:
        """The sectors of the page table that have the numbers of each item's pages."""
        table, entries = self.pages.tensor, self.pages.entries_a_load(self.tile.kv)
        sectors = blocks(table.cols, entries)
        return Stream(
            table,
            1,
            entries,
            base=lambda items: ctas.sequence(items) * sectors,
            table=self.pages.sectors(self.tile.kv, self.key_blocks),
            start=ctas.first,
        )

    def _keys(self, ctas: _Ctas) -> Stream:
        """Each item's pages of the cache."""
        return Stream(
            self.cache,
            self.tile.kv,
            self.width,
            base=np.zeros_like,
            table=self.pages.table.ravel(),
            start=lambda items: ctas.sequence(items) * self.key_blocks + ctas.first(items),
        )

    def _trip(self, load_numbers: Load, load_c: Load) -> tuple[Compute, ...]:
        """The matmuls and the softmax of one block of the cache."""
        tile, element_bytes = self.tile, self.w.dtype_bytes
        q_bytes, c_bytes, v_bytes = (
            elements * element_bytes
            for elements in (
                tile.q * self.width,
                tile.kv * self.width,
                tile.kv * self.latent_dim,
            )
        )
        scores, outputs = tile.q * tile.kv, tile.q * self.latent_dim
        return (
            Compute(
                "S = Q C^T",
                (load_numbers, load_c),
                mma_flops=2 * scores * self.width,
                sram_bytes=q_bytes + 2 * c_bytes,
            ),
            Compute(
                "softmax",
                vector_ops=VECTOR_OPS_PER_SCORE * scores + outputs,
                exp_count=scores + tile.q,
                sram_bytes=2 * scores * element_bytes,  # P to the other warp group
            ),
            Compute(
                "O += P C", (load_c,), mma_flops=2 * scores * self.latent_dim, sram_bytes=v_bytes
            ),
        )

    def combine_kernel(self) -> Kernel:
        """A CTA of 8 warps for 8 rows of a sequence; of one in a single part it ends at once."""
        down = blocks(self.rows, COMBINED_ROWS)
        grid = Grid(self.w.batch, down)  # sequences, blocks of rows
        several = np.where(self.parts.splits > 1, self.parts.splits, 0)

        def rows(items: IntArray) -> IntArray:
            sequence, row = grid.at(items)
            return sequence * down + row

        def first(items: IntArray) -> IntArray:
            sequence, row = grid.at(items)
            return self.parts.first_split[sequence] * down + row

        def of_parts(tensor: Tensor, stages: int) -> Load:
            return Load(Stream(tensor, COMBINED_ROWS, tensor.cols, first, down), stages)

        kernel = combine_kernel(
            "combine",
            lambda items: several[grid.at(items)[0]],
            (of_parts(self.partial.lse, 1), of_parts(self.partial.o, 2)),
            (
                Stream(self.whole.o, COMBINED_ROWS, self.latent_dim, rows),
                Stream(self.whole.lse, COMBINED_ROWS, 1, rows),
            ),
            Footprint(
                COMBINED_ROWS * STATISTICS_BYTES * int(self.parts.splits.max()),
                threads=32 * COMBINED_ROWS,
                registers_per_thread=registers.COMBINE,
            ),
        )
        return replace(kernel, periods=down)
