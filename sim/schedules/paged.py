"""Decoding from a paged KV cache: the split-KV kernels of `flash_decoding` with a page table.

    for each KV head of each sequence, for each of `splits` ranges of its key blocks (one CTA):
        for each block of tile.kv keys of the range, last first:
            load the numbers of its pages from the sequence's page table
            load K and V from those pages
            as the FlashAttention-2 loop
    combine the splits as `flash_decoding`

Several queries a sequence (chunks of a prompt over a cached prefix, drafts to verify, a whole
prompt) run the same kernel on all keys at once: vLLM's has no splits for them (flash_api.cpp,
mha_varlen_fwd), upstream's mha_fwd_kvcache those of `flash_decoding` (give `splits`).

Pages lie scattered over a pool (a seeded permutation). A page is read whole, the last one of a
sequence too, as vLLM's paged_attention does; of pages larger than a tile only the tiles that hold
keys. Page numbers are int32; reading one reads its sector of 32 bytes. That a page cannot be loaded
before its number is there is not modelled.

Source: vLLM's fork vllm-project/flash-attention, csrc/flash_attn/src: flash_fwd_kernel.h
(compute_attn_1rowblock_splitkv with block_table) and utils.h (resolve_thread_kv_page_slice_offset).
Pages: 16 tokens as vLLM's block_size; upstream FlashAttention-2 takes multiples of 256
(flash_api.cpp), FlashInfer any, often 1 or 16 (arXiv 2309.06180 evaluates 8 to 128, section 7.2).
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import CountOrNone
from sim.inputs.workload import AttentionWorkload, Phase
from sim.schedules.base import blocks
from sim.schedules.parts.flash_loop import Operand
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.kv_cache import PageTable, cache_tensors, ops_of_making_ready, scattered
from sim.schedules.parts.split_kv import SplitKeys, SplitKv, Splits, split_attention
from sim.tile_program import IntArray, Kernel, Loop, Stream, Tensor

MOST_PAGES_A_TILE = 16  # K's and V's are a load each, and a loop has up to 63


class Paged(SplitKv):
    """Attention over a cache in pages of `page_size` tokens, split among CTAs for one query.

    `seed` draws where the pages lie.
    """

    name: Literal["paged"] = "paged"
    splits: Splits | None = None
    phases: ClassVar[tuple[Phase, ...]] = ("prefill", "decode")
    takes = SplitKv.takes | {"append"}
    page_size: int = Field(default=16, ge=16, le=4096)
    seed: CountOrNone = 0

    summary = "split-KV decoding from a paged cache, by a page table"
    source = "vllm-project/flash-attention, csrc/flash_attn (block_table)"

    @field_validator("page_size")
    @classmethod
    def _power_of_two(cls, page_size: int) -> int:
        if page_size & (page_size - 1):
            raise ValueError("a power of two was expected, such as 16")
        return page_size

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The split kernel and, of more than one split, the combine kernel."""
        keys = self.split(w, hw, self.splits or (None if w.seq_q == 1 else 1))
        tile_rows = keys.cta.tile.kv
        if tile_rows & (tile_rows - 1) or tile_rows > MOST_PAGES_A_TILE * self.page_size:
            raise InputError(
                f"schedule paged: tile.kv = {tile_rows}: a power of two, and at most "
                f"{MOST_PAGES_A_TILE} pages of {self.page_size} tokens, was expected"
            )
        pages = scattered(w.batch, w.seq_kv, self.page_size, self.seed)
        pools = cache_tensors(w, w.kv_heads, pages.pool_rows)
        # The last tile, visited first, is a loop of its own where it has fewer pieces of pages.
        pieces_a_tile = tile_rows // pages.piece_rows(tile_rows)
        pieces = pages.pieces(tile_rows, w.seq_kv)
        whole_tiles, rest = divmod(pieces.shape[1], pieces_a_tile)
        loops = [_loop(keys, pages, pools, pieces, 0, whole_tiles, pieces_a_tile)]
        if rest:
            loops.insert(0, _loop(keys, pages, pools, pieces, whole_tiles, whole_tiles + 1, rest))
        return split_attention("paged", keys, *loops).kernels


def _loop(
    keys: SplitKeys,
    pages: PageTable,
    pools: tuple[Tensor, Tensor],
    pieces: IntArray,
    low: int,
    high: int,
    pieces_a_tile: int,
) -> Loop:
    """Each CTA's loop over its tiles in [low, high), last first, of so many pieces of pages."""
    w, rows = keys.w, keys.cta.tile.kv
    piece_rows = pages.piece_rows(rows)
    stride = rows // piece_rows

    def end(items: IntArray) -> IntArray:
        return np.minimum(keys.ends(items)[1], high)

    def trips(items: IntArray) -> IntArray:
        return np.maximum(0, end(items) - np.maximum(keys.ends(items)[0], low))

    matrices = Grid(w.kv_heads, w.batch)

    def head(items: IntArray) -> IntArray:
        return matrices.at(keys.matrix(items))[0]

    def sequence(items: IntArray) -> IntArray:
        return matrices.at(keys.matrix(items))[1]

    def first_visited(items: IntArray) -> IntArray:
        return high - end(items)

    def pieces_of(pool: Tensor) -> list[Stream]:
        """A load for each of a tile's pieces: the n-th of each tile, last tile first."""
        in_pool = pool.rows // piece_rows
        return [
            Stream(
                pool,
                piece_rows,
                pool.cols,
                base=lambda items: head(items) * in_pool,
                table=pieces[:, low * stride + n : high * stride : stride][:, ::-1].ravel(),
                start=lambda items: sequence(items) * (high - low) + first_visited(items),
            )
            for n in range(pieces_a_tile)
        ]

    table, entries = pages.tensor, pages.entries_a_load(rows)
    loads_a_sequence = blocks(table.cols, entries)
    numbers = Stream(
        table,
        1,
        entries,
        base=lambda items: sequence(items) * loads_a_sequence,
        table=pages.sectors(rows, high)[low:][::-1],
        start=first_visited,
    )
    ops = ops_of_making_ready(w, piece_rows * pieces_a_tile)
    k = Operand((*pieces_of(pools[0]), numbers), register_ops=ops)
    v = Operand(tuple(pieces_of(pools[1])), register_ops=ops)
    return keys.loop(trips, k, v)
