"""Latent attention in slices: TensorRT-LLM's decoding where no other kernel of it has latents.

A CTA has 64 query heads of a sequence, 256 of O's columns, and all keys: they are not split, and
every CTA of a block of heads has all of S. Its loop is that of `sliced_loop`, with V from the
latents: a page of the cache is loaded twice, in slices of 64 columns for S, in parts of 16 keys and
256 columns for O.

Source: NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/common/attentionOp.cpp (mlaGeneration: trtllm-gen on
Blackwell, FlashMLA on Hopper, XQA where it has latents, else fmha with the heads as its query
rows); cpp/kernels/fmha_v2/setup.py (tiled_params_q_kv_step, 576: 64 x 64, 4 warps).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks
from sim.schedules.parts.ends import finish
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.kv_cache import PageTable, scattered
from sim.schedules.parts.sliced_loop import SLICE, SlicedCta
from sim.tile_program import IntArray, Kernel, Load, Loop, Stream, Tensor

TILE = Tile(q=64, kv=64)


def sliced_kernel(w: AttentionWorkload, cta: SlicedCta, seed: int) -> Kernel:
    """The kernel, over pages of tile.kv tokens which `seed` scatters."""
    latent_dim, tile = w.latent_dim or 0, cta.tile
    width = latent_dim + w.rope_dim
    ctas = _Ctas(w, cta, latent_dim, scattered(w.keys, tile.kv, seed))
    q = Tensor("Q", w.batch, w.heads, width, w.dtype_bytes, "input", "query")
    cache = Tensor("C", 1, ctas.pages.pool_rows, width, w.dtype_bytes, "input", "cache")
    o = Tensor("O", w.batch, w.heads, latent_dim, w.dtype_bytes, "output", "result")
    slices: list[tuple[Load, ...]] = [
        (Load(ctas.slice_of_q(q, at), at == 0), Load(ctas.slice_of_k(cache, at), at == 0))
        for at in range(blocks(width, SLICE))
    ]
    slices[0] = (Load(ctas.numbers()), *slices[0])
    parts = [(Load(ctas.part_of_v(cache, at), 0),) for at in range(cta.parts)]
    loads = [load for each in (*slices, *parts) for load in each]
    o_elements = tile.q * cta.columns
    stored = Stream(o, tile.q, cta.columns, ctas.tile_of_o)
    return Kernel(
        name="mla",
        ctas=ctas.grid.size,
        loops=(
            Loop(ctas.key_blocks, (*loads, *cta.trip(slices, parts, width))),
            finish(o_elements, stored, sram_bytes=2 * o_elements * w.dtype_bytes),
        ),
        footprint=cta.footprint,
        tensor_path="mma_sync",
        irregular=w.lengths is not None,
    )


@dataclass(frozen=True, eq=False)
class _Ctas:
    """What each CTA works on; the parts of O's columns run fastest, then the blocks of heads."""

    w: AttentionWorkload
    cta: SlicedCta
    latent_dim: int
    pages: PageTable

    @cached_property
    def grid(self) -> Grid:
        """(parts of O's columns, blocks of heads, sequences)."""
        heads = blocks(self.w.heads, self.cta.tile.q)
        return Grid(blocks(self.latent_dim, self.cta.columns), heads, self.w.batch)

    @cached_property
    def _own_blocks(self) -> IntArray:
        """Blocks of keys of each sequence."""
        return -(-np.array(self.w.keys, np.int64) // self.cta.tile.kv)

    @property
    def _most_blocks(self) -> int:
        """Of the longest sequence."""
        return blocks(self.w.seq_kv, self.cta.tile.kv)

    def key_blocks(self, items: IntArray) -> IntArray:
        """Blocks of keys of each CTA's sequence."""
        own: IntArray = self._own_blocks[self.grid.at(items)[2]]
        return own

    def tile_of_o(self, items: IntArray) -> IntArray:
        """Each CTA's rows and columns of O."""
        column, row, sequence = self.grid.at(items)
        return (sequence * self.grid.sides[1] + row) * self.grid.sides[0] + column

    def slice_of_q(self, q: Tensor, number: int) -> Stream:
        """The same in every trip."""
        across = blocks(q.cols, SLICE)

        def base(items: IntArray) -> IntArray:
            _, row, sequence = self.grid.at(items)
            return (sequence * self.grid.sides[1] + row) * across + number

        return Stream(q, self.cta.tile.q, SLICE, base)

    def slice_of_k(self, cache: Tensor, number: int) -> Stream:
        """Of each trip's page those columns."""
        table = self.pages.table.ravel() * blocks(cache.cols, SLICE) + number
        return Stream(
            cache, self.cta.tile.kv, SLICE, np.zeros_like, table=table, start=self._first_page
        )

    def part_of_v(self, cache: Tensor, number: int) -> Stream:
        """Of each trip's page those keys, of the columns that the CTA has."""
        across = blocks(cache.cols, self.cta.columns)
        table = (self.pages.table.ravel() * self.cta.parts + number) * across
        keys = self.cta.tile.kv // self.cta.parts
        return Stream(
            cache, keys, self.cta.columns, self._column, table=table, start=self._first_page
        )

    def numbers(self) -> Stream:
        """The sector of the page table that has the number of each trip's page."""
        table, entries = self.pages.tensor, self.pages.entries_a_load(self.cta.tile.kv)
        across = blocks(table.cols, entries)
        sectors = self.pages.sectors(self.cta.tile.kv, self._most_blocks)
        return Stream(
            table, 1, entries, lambda items: self.grid.at(items)[2] * across, table=sectors
        )

    def _column(self, items: IntArray) -> IntArray:
        return self.grid.at(items)[0]

    def _first_page(self, items: IntArray) -> IntArray:
        """Where a sequence's pages begin in the table."""
        return self.grid.at(items)[2] * self._most_blocks
