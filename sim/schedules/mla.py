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

from sim.files import InputError
from sim.hardware import HardwareProfile
from sim.schedules.base import (
    STATISTICS_BYTES,
    VECTOR_OPS_PER_SCORE,
    Tile,
    TiledSchedule,
    blocks,
)
from sim.schedules.kv_cache import scattered
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
from sim.workload import AttentionWorkload

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
    q = Tensor("Q", w.batch, w.heads, width, w.dtype_bytes, "input")
    cache = Tensor("C", 1, scatter.pool_rows, width, w.dtype_bytes, "input")
    o = Tensor("O", w.batch, w.heads, latent_dim, w.dtype_bytes, "output")
    lse = Tensor("LSE", w.batch, w.heads, 1, STATISTICS_BYTES, "output")
    partial_o = Tensor("O of splits", partials, w.heads, latent_dim, STATISTICS_BYTES)
    partial_lse = Tensor("LSE of splits", partials, w.heads, 1, STATISTICS_BYTES)
    slots = parts.slots

    def at(items: IntArray) -> IntArray:
        """Grid (blocks of heads, parts), the first fastest; a CTA's items are its part's slots."""
        return items // slots // down * slots + items % slots

    def head_block(items: IntArray) -> IntArray:
        return items // slots % down

    def rows_of_sequence(items: IntArray) -> IntArray:
        return parts.sequence[at(items)] * down + head_block(items)

    def rows_of_partial(items: IntArray) -> IntArray:
        return np.maximum(parts.partial[at(items)], 0) * down + head_block(items)

    def some(items: IntArray) -> IntArray:
        return (parts.count[at(items)] > 0).astype(np.int64)

    def split(items: IntArray) -> IntArray:
        return (parts.partial[at(items)] >= 0).astype(np.int64)

    table, entries = scatter.tensor, scatter.entries_a_load(tile.kv)
    sectors = blocks(table.cols, entries)
    load_q = Load(Stream(q, tile.q, width, rows_of_sequence))
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
    q_bytes, c_bytes, v_bytes = (
        elements * w.dtype_bytes
        for elements in (tile.q * width, tile.kv * width, tile.kv * latent_dim)
    )
    scores, outputs = tile.q * tile.kv, tile.q * latent_dim
    wait = Compute("wait for Q", (load_q,), sram_bytes=q_bytes)
    multiply_k = Compute(
        "S = Q C^T",
        (load_numbers, load_c),
        mma_flops=2 * scores * width,
        sram_bytes=q_bytes + 2 * c_bytes,
    )
    softmax = Compute(
        "softmax",
        vector_ops=VECTOR_OPS_PER_SCORE * scores + outputs,
        exp_count=scores + tile.q,
        sram_bytes=2 * scores * w.dtype_bytes,  # P to the other warp group
    )
    multiply_v = Compute(
        "O += P C", (load_c,), mma_flops=2 * scores * latent_dim, sram_bytes=v_bytes
    )

    def stored(to: Tensor, statistics: Tensor, rows: OfItem) -> tuple[Op, ...]:
        return (
            Compute("O / l", vector_ops=outputs),
            Store(Stream(to, tile.q, latent_dim, rows)),
            Store(Stream(statistics, tile.q, 1, rows)),
        )

    kernel = Kernel(
        name="mla",
        ctas=len(parts.count) // slots * down,
        loops=(
            Loop(some, (load_q, wait)),
            Loop(
                lambda items: parts.count[at(items)],
                (load_numbers, load_c, multiply_k, softmax, multiply_v),
            ),
            Loop(lambda items: some(items) - split(items), stored(o, lse, rows_of_sequence)),
            Loop(split, stored(partial_o, partial_lse, rows_of_partial)),
        ),
        footprint=Footprint(sram_bytes, 128 * WARP_GROUPS, 255),
        tensor_path="asynchronous" if hw.matmul_by_warp_group else "mma_sync",
        items_per_cta=slots,
    )
    if parts.splits.max() == 1:
        return [kernel]
    return [kernel, _combine(w, parts, partial_o, partial_lse, o, lse)]


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
