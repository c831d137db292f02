"""Latent attention in slices: TensorRT-LLM's decoding where no other kernel of it has latents.

    for each 256 columns of O, each 64 query heads, each sequence (one CTA):
        for each 64 keys (one item):
            for each 64 elements of Q and K:  load both slices;  S += Q C^T
            m, P = online softmax of S;  O = rescale(O)
            for each 16 keys:  load their part of V;  O += P C
        store O

Keys are not split, and every CTA of a block of heads has all of S. Q comes anew for each block of
keys, as its slices are too many for SRAM. Between two barriers a slice is read from SRAM to
registers, then multiplied; the next one arrives meanwhile in the other of two buffers.

Source: NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/common/attentionOp.cpp (mlaGeneration: trtllm-gen on
Blackwell, FlashMLA on Hopper, XQA where it has latents, else fmha with the heads as its query
rows); cpp/kernels/fmha_v2: setup.py (tiled_params_q_kv_step, 576: 64 x 64, 4 warps),
src/fused_multihead_flash_attention_kernel_noloop_tiled.h; slices of 64 elements, of 16 keys and of
256 columns where V has more than that: src/fmha/traits.h (CTA_P_TILE_K, CTA_O_TILE_K,
CTA_O_TILE_N). What it measures as faster there, a first slice on its way before the last of V is
multiplied, is left out: an item's loads begin when the one before is done.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import VECTOR_OPS_PER_SCORE, Tile, blocks
from sim.schedules.parts import registers
from sim.schedules.parts.ends import finish
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.kv_cache import PageTable, scattered
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

SLICE = 64  # elements of Q and K
MOST_COLUMNS = 256  # of O
BUFFERS = 2
WARPS = 4  # a warp has 16 rows, and reads all of K and V


@dataclass(frozen=True)
class SlicedCta:
    """How a CTA works: its tile, the columns of O that it has, and the keys of a slice of V."""

    tile: Tile
    columns: int
    keys: int
    element_bytes: int

    @staticmethod
    def of(w: AttentionWorkload) -> "SlicedCta":
        """As TensorRT-LLM has it for so many latents."""
        latent_dim = w.latent_dim or 0
        keys = 16 if latent_dim > MOST_COLUMNS else 32 if latent_dim > MOST_COLUMNS // 2 else 64
        return SlicedCta(Tile(q=64, kv=64), min(latent_dim, MOST_COLUMNS), keys, w.dtype_bytes)

    def sram_bytes(self, tile: Tile) -> int:
        """Two buffers of a slice each of Q, K and V."""
        elements = (tile.q + tile.kv) * SLICE + min(self.keys, tile.kv) * self.columns
        return BUFFERS * elements * self.element_bytes


@dataclass(frozen=True, eq=False)
class _Items:
    """An item for each block of keys of each CTA; the columns of O run fastest, then the heads."""

    w: AttentionWorkload
    cta: SlicedCta
    latent_dim: int
    pages: PageTable

    @property
    def key_blocks(self) -> int:
        """Of the longest sequence."""
        return blocks(self.w.seq_kv, self.cta.tile.kv)

    @cached_property
    def _own_blocks(self) -> IntArray:
        """Of each sequence."""
        return -(-np.array(self.w.keys, np.int64) // self.cta.tile.kv)

    def times(self, trips: int) -> OfItem:
        """So many trips of items whose sequence has such a block of keys."""

        def of(items: IntArray) -> IntArray:
            block, *_, sequence = self.grid.at(items)
            trips_there: IntArray = trips * (block < self._own_blocks[sequence]).astype(np.int64)
            return trips_there

        return of

    @property
    def down(self) -> int:
        """Blocks of heads."""
        return blocks(self.w.heads, self.cta.tile.q)

    @property
    def grid(self) -> Grid:
        """(blocks of keys, parts of O's columns, blocks of heads, sequences)."""
        across = blocks(self.latent_dim, self.cta.columns)
        return Grid(self.key_blocks, across, self.down, self.w.batch)

    def page(self, items: IntArray) -> IntArray:
        """Where in the pool each item's page lies."""
        block, _, _, sequence = self.grid.at(items)
        page: IntArray = self.pages.table.ravel()[sequence * self.key_blocks + block]
        return page

    def numbers(self) -> Stream:
        """The sector of the page table that has the number of each item's page."""
        table, entries = self.pages.tensor, self.pages.entries_a_load(self.cta.tile.kv)
        sectors = self.pages.sectors(self.cta.tile.kv, self.key_blocks)

        def base(items: IntArray) -> IntArray:
            block, _, _, sequence = self.grid.at(items)
            sector: IntArray = sequence * blocks(table.cols, entries) + sectors[block]
            return sector

        return Stream(table, 1, entries, base)

    def column(self, items: IntArray) -> IntArray:
        """The part of O's columns of each item."""
        return self.grid.at(items)[1]

    def rows(self, items: IntArray) -> IntArray:
        """The tile of whole rows of Q and O of each item."""
        _, _, block, sequence = self.grid.at(items)
        return sequence * self.down + block

    def is_last(self, items: IntArray) -> IntArray:
        """1 of a sequence's last block of keys."""
        block, *_, sequence = self.grid.at(items)
        last: IntArray = (block == self._own_blocks[sequence] - 1).astype(np.int64)
        return last


def sliced_kernel(w: AttentionWorkload, cta: SlicedCta, seed: int) -> Kernel:
    """The kernel, over pages of tile.kv tokens which `seed` scatters."""
    latent_dim = w.latent_dim or 0
    width = latent_dim + w.rope_dim
    pages = scattered(w.keys, cta.tile.kv, seed)
    items = _Items(w, cta, latent_dim, pages)
    q = Tensor("Q", w.batch, w.heads, width, w.dtype_bytes, "input", "query")
    cache = Tensor("C", 1, pages.pool_rows, width, w.dtype_bytes, "input", "cache")
    o = Tensor("O", w.batch, w.heads, latent_dim, w.dtype_bytes, "output", "result")
    stored = Stream(
        o,
        cta.tile.q,
        cta.columns,
        lambda at: items.rows(at) * blocks(latent_dim, cta.columns) + items.column(at),
    )
    return Kernel(
        name="mla",
        ctas=items.grid.size // items.key_blocks,
        loops=(
            _scores(items, q, cache, width),
            _softmax(items),
            _outputs(items, cache, width),
            finish(cta.tile.q * cta.columns, stored, trips=items.is_last),
        ),
        footprint=Footprint(cta.sram_bytes(cta.tile), 32 * WARPS, registers.MLA),
        tensor_path="mma_sync",
        items_per_cta=items.key_blocks,
        irregular=w.lengths is not None,
    )


def _scores(items: _Items, q: Tensor, cache: Tensor, width: int) -> Loop:
    """S, slice after slice."""
    tile, across = items.cta.tile, blocks(width, SLICE)
    load_q = Load(Stream(q, tile.q, SLICE, lambda at: items.rows(at) * across, 1), BUFFERS)
    load_k = Load(Stream(cache, tile.kv, SLICE, lambda at: items.page(at) * across, 1), BUFFERS)
    load_number = Load(items.numbers(), BUFFERS)
    q_bytes, k_bytes = load_q.stream.tile_bytes, load_k.stream.tile_bytes
    return Loop(
        items.times(across),
        (
            load_q,
            load_number,
            load_k,
            Compute(
                "read Q and K",
                (load_q, load_number, load_k),
                sram_bytes=2 * q_bytes + (1 + WARPS) * k_bytes,
            ),
            Compute(
                "S += Q C^T", (load_q, load_k), mma_flops=2 * tile.q * tile.kv * min(SLICE, width)
            ),
        ),
    )


def _softmax(items: _Items) -> Loop:
    cta = items.cta
    scores, outputs = cta.tile.q * cta.tile.kv, cta.tile.q * cta.columns
    work = VECTOR_OPS_PER_SCORE * scores + outputs
    return Loop(
        items.times(1), (Compute("softmax", vector_ops=work, exp_count=scores + cta.tile.q),)
    )


def _outputs(items: _Items, cache: Tensor, width: int) -> Loop:
    """O, from a few keys after the others."""
    cta = items.cta
    keys, across = min(cta.keys, cta.tile.kv), blocks(width, cta.columns)
    trips = cta.tile.kv // keys
    load_v = Load(
        Stream(
            cache,
            keys,
            cta.columns,
            lambda at: items.page(at) * trips * across + items.column(at),
            across,
        ),
        BUFFERS,
    )
    v_bytes = load_v.stream.tile_bytes
    return Loop(
        items.times(trips),
        (
            load_v,
            Compute("read V", (load_v,), sram_bytes=(1 + WARPS) * v_bytes),
            Compute("O += P C", (load_v,), mma_flops=2 * cta.tile.q * keys * cta.columns),
        ),
    )
