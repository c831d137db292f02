"""Multi-head latent attention, decoding in its absorbed form, as DeepSeek's FlashMLA.

The cache has latent_dim + rope_dim elements a token, for all heads: K is the whole row, V its first
latent_dim elements, so that one load serves both.

    for each part of the key blocks of all sequences, for each 64 query heads (one CTA):
        for each sequence of the part (one item):
            load the query rows
            for each page of its keys:
                S = Q C^T;  m, P = online softmax of S;  O = rescale(O) + P C[:, :latent_dim]
            store O, or where the sequence is in several parts the partial O and log-sum-exp
    for each 8 rows of O of each sequence in several parts (one CTA): combine them

Source: deepseek-ai/FlashMLA, csrc/sm90/kernels: tile 64 x 64 and a page the same, two buffers of C
and two warp groups (traits.h), as many parts as SMs for each 64 heads, cut so that each has equally
many blocks with 5 for starting a sequence (get_mla_metadata.cu, flash_api.cpp), the combine kernel
(mla_combine.cu). A page is read whole, with the 32-byte sector that has its number. FlashMLA runs
on Hopper; elsewhere its loop runs with the tile that fits.

The matmuls by W_UK and W_UV are left out as all projections are: DeepSeek-V2 (arXiv 2405.04434,
section 2.1.2) absorbs them in those that make the queries and take the output. Prefill is `flash2`
on K and V made of the latents.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, VECTOR_OPS_PER_SCORE, Tile, TiledSchedule, blocks
from sim.schedules.parts.kv_cache import scattered
from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Op,
    Store,
    Stream,
    Tensor,
)

BUFFERS = 2
WARP_GROUPS = 2
OVERHEAD_BLOCKS = 5  # what starting on a sequence counts as (config.h, FIXED_OVERHEAD_NUM_BLOCKS)
COMBINED_ROWS = 8
PAGES_SEED = 0


class Mla(TiledSchedule):
    """Multi-head latent attention of one query a sequence; a page has tile.kv tokens."""

    name: Literal["mla"] = "mla"

    summary = "multi-head latent attention, absorbed: one latent cache for all heads"
    source = "deepseek-ai/FlashMLA, csrc/sm90; arXiv 2405.04434"
    phases = ("decode",)
    masks = ("full", "causal")
    takes = frozenset({"latents"})

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The split kernel and, where a sequence is in several parts, the combine kernel."""
        if w.latent_dim is None:
            raise InputError(
                "schedule mla: workload.latent_dim is missing: a model with latent attention was "
                "expected, such as deepseek-v3"
            )
        if w.seq_q != 1:
            raise InputError(
                f"schedule mla: workload.seq_q = {w.seq_q}: it decodes one query (seq_q = 1, as "
                'phase = "decode" has it)'
            )
        row_bytes = (w.latent_dim + w.rope_dim) * w.dtype_bytes

        def sram_bytes(tile: Tile) -> int:
            """Q, the buffers of C, and P."""
            scores_bytes = tile.q * tile.kv * w.dtype_bytes
            return row_bytes * (tile.q + BUFFERS * tile.kv) + scores_bytes

        tile = self.fit_tile(Tile(q=64, kv=64), sram_bytes, w, hw)
        down = blocks(w.heads, tile.q)
        parts = cut_in_parts(w.batch, blocks(w.seq_kv, tile.kv), max(1, hw.sm.count // down))
        return _kernels(w, hw, w.latent_dim, tile, parts, sram_bytes(tile))


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
    """Grid (blocks of heads, parts), the first fastest; a CTA's items are its part's slots."""

    parts: Parts
    down: int

    def slot(self, items: IntArray) -> IntArray:
        """The slot of each item, counted over all parts."""
        slots = self.parts.slots
        return items // slots // self.down * slots + items % slots

    def _head_block(self, items: IntArray) -> IntArray:
        return items // self.parts.slots % self.down

    def rows_of_sequence(self, items: IntArray) -> IntArray:
        """The tile of Q, and of O where the part has all of the sequence."""
        return self.parts.sequence[self.slot(items)] * self.down + self._head_block(items)

    def rows_of_partial(self, items: IntArray) -> IntArray:
        """The tile of the partial O."""
        partial = np.maximum(self.parts.partial[self.slot(items)], 0)
        return partial * self.down + self._head_block(items)

    def has_keys(self, items: IntArray) -> IntArray:
        """1 where the slot is filled."""
        return (self.parts.count[self.slot(items)] > 0).astype(np.int64)

    def is_split(self, items: IntArray) -> IntArray:
        """1 where its result is partial."""
        return (self.parts.partial[self.slot(items)] >= 0).astype(np.int64)

    def is_whole(self, items: IntArray) -> IntArray:
        """1 where its result is O."""
        return self.has_keys(items) - self.is_split(items)


def _kernels(
    w: AttentionWorkload,
    hw: HardwareProfile,
    latent_dim: int,
    tile: Tile,
    parts: Parts,
    sram_bytes: int,
) -> list[Kernel]:
    width = latent_dim + w.rope_dim
    down, pages = blocks(w.heads, tile.q), blocks(w.seq_kv, tile.kv)
    scatter = scattered(w.batch, w.seq_kv, tile.kv, PAGES_SEED)
    partials = int(parts.splits.sum())
    q = Tensor("Q", w.batch, w.heads, width, w.dtype_bytes, "input", "query")
    cache = Tensor("C", 1, scatter.pool_rows, width, w.dtype_bytes, "input", "cache")
    o = Tensor("O", w.batch, w.heads, latent_dim, w.dtype_bytes, "output", "result")
    lse = Tensor("LSE", w.batch, w.heads, 1, STATISTICS_BYTES, "output", "statistics")
    partial_o = Tensor(
        "O of splits", partials, w.heads, latent_dim, STATISTICS_BYTES, role="partial"
    )
    partial_lse = Tensor("LSE of splits", partials, w.heads, 1, STATISTICS_BYTES, role="partial")
    ctas = _Ctas(parts, down)
    at = ctas.slot
    table, entries = scatter.tensor, scatter.entries_a_load(tile.kv)
    sectors = blocks(table.cols, entries)
    load_q = Load(Stream(q, tile.q, width, ctas.rows_of_sequence))
    load_numbers = Load(
        Stream(
            table,
            1,
            entries,
            base=lambda items: parts.sequence[at(items)] * sectors,
            table=scatter.sectors(tile.kv, pages),
            start=lambda items: parts.first[at(items)],
        ),
        BUFFERS,
    )
    load_c = Load(
        Stream(
            cache,
            tile.kv,
            width,
            base=np.zeros_like,
            table=scatter.table.ravel(),
            start=lambda items: parts.sequence[at(items)] * pages + parts.first[at(items)],
        ),
        BUFFERS,
    )
    wait = Compute("wait for Q", (load_q,), sram_bytes=tile.q * width * w.dtype_bytes)

    def stored(to: Tensor, statistics: Tensor, rows: OfItem) -> tuple[Op, ...]:
        return (
            Compute("O / l", vector_ops=tile.q * latent_dim),
            Store(Stream(to, tile.q, latent_dim, rows)),
            Store(Stream(statistics, tile.q, 1, rows)),
        )

    kernel = Kernel(
        name="mla",
        ctas=len(parts.count) // parts.slots * down,
        loops=(
            Loop(ctas.has_keys, (load_q, wait)),
            Loop(
                lambda items: parts.count[at(items)],
                (load_numbers, load_c, *_trip(w, tile, latent_dim, load_numbers, load_c)),
            ),
            Loop(ctas.is_whole, stored(o, lse, ctas.rows_of_sequence)),
            Loop(ctas.is_split, stored(partial_o, partial_lse, ctas.rows_of_partial)),
        ),
        footprint=Footprint(sram_bytes, 128 * WARP_GROUPS, 255),
        tensor_path="asynchronous" if hw.matmul_by_warp_group else "mma_sync",
        items_per_cta=parts.slots,
    )
    if parts.splits.max() == 1:
        return [kernel]
    return [kernel, _combine(w, parts, partial_o, partial_lse, o, lse)]


def _trip(
    w: AttentionWorkload, tile: Tile, latent_dim: int, load_numbers: Load, load_c: Load
) -> tuple[Compute, ...]:
    """The matmuls and the softmax of one block of the cache."""
    width = latent_dim + w.rope_dim
    q_bytes, c_bytes, v_bytes = (
        elements * w.dtype_bytes
        for elements in (tile.q * width, tile.kv * width, tile.kv * latent_dim)
    )
    scores, outputs = tile.q * tile.kv, tile.q * latent_dim
    return (
        Compute(
            "S = Q C^T",
            (load_numbers, load_c),
            mma_flops=2 * scores * width,
            sram_bytes=q_bytes + 2 * c_bytes,
        ),
        Compute(
            "softmax",
            vector_ops=VECTOR_OPS_PER_SCORE * scores + outputs,
            exp_count=scores + tile.q,
            sram_bytes=2 * scores * w.dtype_bytes,  # P to the other warp group
        ),
        Compute("O += P C", (load_c,), mma_flops=2 * scores * latent_dim, sram_bytes=v_bytes),
    )


def _combine(
    w: AttentionWorkload,
    parts: Parts,
    partial_o: Tensor,
    partial_lse: Tensor,
    o: Tensor,
    lse: Tensor,
) -> Kernel:
    """A CTA of 8 warps for 8 rows of a sequence; of one split it ends at once."""
    down = blocks(w.heads, COMBINED_ROWS)

    def sequence(items: IntArray) -> IntArray:
        """Grid (sequences, blocks of rows), the first fastest."""
        return items % w.batch

    def splits(items: IntArray) -> IntArray:
        return np.where(parts.splits > 1, parts.splits, 0)[sequence(items)]

    def first(items: IntArray) -> IntArray:
        return parts.first_split[sequence(items)] * down + items // w.batch

    def rows(items: IntArray) -> IntArray:
        return sequence(items) * down + items // w.batch

    load_lse = Load(Stream(partial_lse, COMBINED_ROWS, 1, first, down))
    load_o = Load(Stream(partial_o, COMBINED_ROWS, partial_o.cols, first, down), stages=2)
    weigh = Compute(
        "O += exp(lse_s - lse) O_s",
        (load_lse, load_o),
        vector_ops=COMBINED_ROWS * partial_o.cols,
        exp_count=COMBINED_ROWS,
    )
    stores = (
        Store(Stream(o, COMBINED_ROWS, o.cols, rows)),
        Store(Stream(lse, COMBINED_ROWS, 1, rows)),
    )
    return Kernel(
        name="combine",
        ctas=w.batch * down,
        loops=(
            Loop(splits, (load_lse, load_o, weigh)),
            Loop(lambda items: np.minimum(splits(items), 1), stores),
        ),
        footprint=Footprint(
            COMBINED_ROWS * STATISTICS_BYTES * int(parts.splits.max()),
            threads=32 * COMBINED_ROWS,
            registers_per_thread=64,
        ),
    )
