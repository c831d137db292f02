"""HiP, hierarchically pruned attention: a tree search for the keys that matter, then attention.

    for each block of tile.q query rows, of each head of each sequence (one CTA):
        load Q_i; cut the key blocks between sinks and window in 2 k chunks
        repeat until a chunk is one block:
            load REPRESENTATIVE keys of the centre of each of the 2 k chunks; score = max of Q_i K^T
            keep the k chunks of highest score; cut each in two halves
        store the k blocks found
    the FlashAttention-2 loop over the window and the sinks, last first, and the blocks found

where k = keep / tile.kv. Source: Lee et al. 2024 (arXiv 2406.09827), Algorithm 1 and its block
approximation: chunks of tokens, each stood for by its centre. Here the tree ends at blocks of
tile.kv keys, and a chunk's centre is 16 keys, the least that tensor cores take.

Decoding is the same with one query row a head: a CTA a query head, neither packed by KV head nor
split (DeepAuto-AI/hip-attention, v1_1/attention2_draft_prefetch.py, grid (heads, blocks of query
rows, sequences)). The mask is searched anew every `refresh` tokens and used until then.

Which blocks a search finds depends on the data. The model here: each query block has k hot blocks,
a chunk scores high if it holds one, and equal chunks are ranked at random. A hot block is that of
the query block before (of the refresh before, in decoding) with probability `reuse`, else drawn
evenly over the keys between sinks and window.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import model_validator

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count, CountOrNone, FractionBelowOne
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks, check_table, kv_matrix, qkvo, visible_blocks
from sim.schedules.parts import hip_attention, registers
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.ends import begin
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.hip_search import hot_blocks, search_for
from sim.schedules.parts.masks import KeyBlocks, MaskedSchedule, read_mask, sparse_kernel
from sim.schedules.parts.public_tiles import public_cta
from sim.schedules.parts.top_k import INDEX_BYTES
from sim.tile_program import (
    Command,
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    Store,
    Stream,
    Tensor,
    once,
)

REPRESENTATIVE = 16  # keys that stand for a chunk
LOAD_STAGES = 3


class Hip(MaskedSchedule):
    """Hierarchically pruned causal attention: prefill, and decoding with a mask used repeatedly.

    Each block of query rows attends to `keep` keys that the search finds, `sinks` first and
    `keep_window` latest ones, in whole key blocks; all heads to the same. Decoding searches every
    `refresh` tokens. `reuse` is the share of hot blocks in common with the query block before, or
    in decoding with the mask before; its default is an estimate: of what a search after 32 tokens
    finds, 51 to 59% was in a cache little larger than a mask (arXiv 2502.08910, Table 4). A
    `mask_file` (as of `block_sparse`) says which blocks the attention visits instead.

    `implementation` is "hip_attention", the authors' kernels and what PyTorch does between them
    (parts/hip_attention.py), or the one search kernel above, as a port to tensor cores would be:
    "triton" (validate/kernels/hip.py) or "cuda".
    """

    name: Literal["hip"] = "hip"
    implementation: Literal["hip_attention", "cuda", "triton"] = "hip_attention"  # type: ignore[assignment]
    keep: Count = 512
    sinks: CountOrNone = 16
    keep_window: Count = 256
    refresh: Count = 8
    reuse: FractionBelowOne = 0.5
    seed: CountOrNone = 0

    summary = "tree search for the key blocks that matter, then FlashAttention-2 over them"
    source = "arXiv 2406.09827; DeepAuto-AI/hip-attention"
    masks = ("causal", "window")
    rotates = False

    @model_validator(mode="after")
    def _one_tile(self) -> "Hip":
        if self.mask_file and self.tile:
            raise ValueError("mask_file excludes tile: the file has its own")
        return self

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """What estimates the mask, and the sparse forward kernel over what it finds."""
        ((estimation, attention),) = self._refreshed(w, hw, 1)
        return [*estimation, attention]

    def commands(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """Of each token the sparse kernel, with the estimation before that of every refresh."""
        masks = self._refreshed(w, hw, blocks(w.tokens, self.refresh))
        kernels: list[Kernel] = []
        for token in range(w.tokens):
            estimation, attention = masks[token // self.refresh]
            kernels += [attention] if token % self.refresh else [*estimation, attention]
        return [Command(kernel) for kernel in kernels]

    def _refreshed(
        self, w: AttentionWorkload, hw: HardwareProfile, refreshes: int
    ) -> list[tuple[list[Kernel], Kernel]]:
        """What estimates it, and the sparse kernel, of each of so many masks."""
        default = self._public(w, hw)
        real: KeyBlocks | None = None
        schedule = self
        if self.mask_file is not None:
            tile, real = read_mask(self.mask_file, w)
            schedule = self.model_copy(update={"tile": tile})
        cta = schedule.cta(default, w, hw)
        tile = cta.tile
        if self.keep % tile.kv:
            raise InputError(
                f"schedule hip: keep = {self.keep}: a multiple of tile.kv = {tile.kv} was expected"
            )
        found = self.keep // tile.kv
        count = blocks(w.seq_q, tile.q) * refreshes
        rounds = 1 + max(0, w.seq_kv // self.keep).bit_length()
        check_table(self.name, count * (2 * found * rounds + blocks(self.keep_window, tile.kv)))
        ranges = np.tile(self.ranges(w, tile), (refreshes, 1))
        seen, visited = self._searched(ranges, found)
        q, k, *_ = tensors = qkvo(w)
        down = blocks(w.seq_q, tile.q)
        authors = self.implementation == "hip_attention"
        if authors:
            cta = replace(cta, counted=hip_attention.counted_trip(w, hw, cta))
        masks = []
        for rows in (slice(n * down, (n + 1) * down) for n in range(refreshes)):
            its_seen, its_visited = _of_rows(seen, rows), real or _of_rows(visited, rows)
            estimation = (
                hip_attention.Search(w, hw, tile, found, its_seen, q, k).kernels()
                if authors
                else [_estimation_kernel(w, hw, cta, found, its_seen, q, k)]
            )
            attention = sparse_kernel("hip", w, cta, its_visited, tensors, "flash")
            masks.append((estimation, attention))
        return masks

    def _public(self, w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
        """The CTA of the attention kernel, its tile too, unless others are asked for."""
        if self.implementation == "hip_attention":
            return hip_attention.attention_cta(w, hw)
        public = public_cta(w, hw, self.implementation)
        rows = 64 if w.seq_q > 16 else 16
        return replace(public, tile=Tile(q=rows, kv=64), warps=4)

    def ranges(self, w: AttentionWorkload, tile: Tile) -> IntArray:
        """For each block of query rows the key blocks where sinks, search and window begin, end."""
        offset = w.seq_kv - w.seq_q
        first, end = visible_blocks(w, tile)
        position = offset + tile.q * np.arange(len(first))  # of a block's first row
        window = np.maximum(0, position + 1 - self.keep_window) // tile.kv
        low = np.minimum(np.maximum(first, blocks(self.sinks, tile.kv)), end)
        return np.stack([first, low, np.minimum(np.maximum(low, window), end), end], 1)

    def _searched(self, ranges: IntArray, keep: int) -> tuple[KeyBlocks, KeyBlocks]:
        """The centre blocks that each query block scores, and the key blocks that it visits."""
        _, low, high, _ = ranges.T
        rng = np.random.default_rng(self.seed)
        hot = hot_blocks(low, high, keep, self.reuse, rng)
        centres, starts, found = search_for(hot, low, high, self.seed)
        trips = np.diff(starts, append=len(centres))
        return KeyBlocks(trips, starts, table=centres), _visited(ranges, found)


def _visited(ranges: IntArray, found: IntArray) -> KeyBlocks:
    """The key blocks of window and sinks, last first, then those found, of each query block."""
    first, low, high, end = ranges.T
    parts = [
        (end[:, None] - 1 - np.arange(max(end - high)), (end - high)[:, None]),
        (low[:, None] - 1 - np.arange(max(low - first)), (low - first)[:, None]),
        (found, (high - low)[:, None]),
    ]
    visited = np.concatenate([part for part, _ in parts], 1)
    there = np.concatenate([np.arange(part.shape[1]) < count for part, count in parts], 1)
    visits = there.sum(1)
    return KeyBlocks(visits, np.cumsum(visits) - visits, table=visited[there])


def _of_rows(key_blocks: KeyBlocks, rows: slice) -> KeyBlocks:
    return KeyBlocks(key_blocks.trips[rows], key_blocks.first[rows], table=key_blocks.table)


def chunks_a_load(found: int) -> int:
    """How many chunks have their keys loaded and scored together."""
    return min(4, 2 * found)


def _chunks_ahead(hw: HardwareProfile, found: int, q_bytes: int, k_bytes: int) -> int:
    """Of how many chunks the keys are on their way: of LOAD_STAGES loads, or as many as fit."""
    together = chunks_a_load(found)
    room = (hw.sram.max_per_cta - q_bytes) // (together * k_bytes)
    return together * max(1, min(LOAD_STAGES, int(room)))


def _estimation_kernel(
    w: AttentionWorkload,
    hw: HardwareProfile,
    cta: FlashCta,
    found: int,
    seen: KeyBlocks,
    q: Tensor,
    k: Tensor,
) -> Kernel:
    """A CTA a block of query rows; a trip scores a chunk. `seen` are the chunks' centre blocks."""
    tile = cta.tile
    kept = Tensor("blocks found", q.groups, blocks(w.seq_q, tile.q), found, INDEX_BYTES)
    grid = Grid(kept.rows, q.groups)  # blocks of query rows, matrices
    across, a_block = blocks(w.seq_kv, REPRESENTATIVE), tile.kv // REPRESENTATIVE
    q_bytes, k_bytes = (rows * w.head_dim * w.dtype_bytes for rows in (tile.q, REPRESENTATIVE))
    ahead = _chunks_ahead(hw, found, q_bytes, k_bytes)
    load_q = Load(in_order(q, tile.q))
    load_k = Load(
        Stream(
            k,
            REPRESENTATIVE,
            w.head_dim,
            lambda items: kv_matrix(w, grid.at(items)[1]) * across,
            table=seen.table * a_block + a_block // 2,
            start=lambda items: seen.first[grid.at(items)[0]],
        ),
        ahead,
    )
    scores = tile.q * REPRESENTATIVE
    score = Compute(
        "score a chunk, rank it among the others",
        (load_k,),
        mma_flops=2 * scores * w.head_dim,
        vector_ops=scores + 2 * 2 * found,
        sram_bytes=2 * k_bytes + q_bytes * REPRESENTATIVE // tile.kv,
    )
    return Kernel(
        name="estimate mask",
        ctas=grid.size,
        periods=q.groups,
        sharing=w.heads // w.kv_heads,
        loops=(
            begin("Q", load_q, sram_bytes=q_bytes),
            Loop(lambda items: seen.trips[grid.at(items)[0]], (load_k, score)),
            Loop(once, (Store(in_order(kept, 1)),)),
        ),
        footprint=Footprint(q_bytes + ahead * k_bytes, 128, registers.HIP_SEARCH),
        tensor_path=cta.tensor_path,
        kind="block search",
    )
