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
"""

from collections.abc import Callable
from math import ceil, log2
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sim.files import InputError
from sim.hardware import HardwareProfile
from sim.schedules.base import Tile, blocks, kv_matrix, qkvo, visible_blocks
from sim.schedules.block_sparse import as_table
from sim.schedules.flash2 import Cta, FlashSchedule, forward_kernel, public_cta
from sim.tile_program import (
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
from sim.units import Count, CountOrNone
from sim.workload import AttentionWorkload

REPRESENTATIVE = 16  # keys that stand for a chunk
LOAD_STAGES = 3
# What Triton 3.9 compiles for the search (validate/kernels/hip.py) on sm_90, bf16: 68.
SEARCH_REGISTERS = 72
INDEX_BYTES = 4

Scores = Callable[[IntArray], NDArray[np.float64]]  # of chunks, by their centre blocks


class Hip(FlashSchedule):
    """Hierarchically pruned causal attention forward.

    Each block of query rows attends to `keep` keys that the search finds, `sinks` first and
    `keep_window` latest ones, in whole key blocks. Which keys a search finds depends on the data:
    the simulation has every chunk equally likely to score high (drawn by `seed`, the same for all
    heads), so blocks that are found have no locality beyond that of their query rows.
    """

    name: Literal["hip"] = "hip"
    keep: Count = 512
    sinks: CountOrNone = 16
    keep_window: Count = 256
    seed: CountOrNone = 0

    summary = "tree search for the key blocks that matter, then FlashAttention-2 over them"
    source = "arXiv 2406.09827; DeepAuto-AI/hip-attention"
    masks = ("causal", "window")

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The estimation kernel, and the sparse forward kernel over what it finds."""
        public = public_cta(w, hw, self.implementation)
        cta = self.cta(Cta(Tile(q=64, kv=64), 4, public.stages, public.tensor_path), w, hw)
        tile = cta.tile
        if self.keep % tile.kv:
            raise InputError(
                f"schedule hip: keep = {self.keep}: a multiple of tile.kv = {tile.kv} was expected"
            )
        rng = np.random.default_rng(self.seed)
        found = self.keep // tile.kv
        seen: list[IntArray] = []
        visited: list[IntArray] = []
        for first, low, high, end in self.ranges(w, tile):
            centres, kept = search(high - low, found, lambda chunks: rng.random(len(chunks)))
            seen.append(low + centres)
            latest, sinks = np.arange(high, end)[::-1], np.arange(first, low)[::-1]
            visited.append(np.concatenate([latest, sinks, low + kept]).astype(np.int64))
        tensors = qkvo(w)
        return [
            _estimation_kernel(w, hw, cta, found, seen, *tensors[:2]),
            forward_kernel("hip", w, cta, as_table(visited), tensors),
        ]

    def ranges(self, w: AttentionWorkload, tile: Tile) -> list[tuple[int, int, int, int]]:
        """For each block of query rows the key blocks where sinks, search and window begin, end."""
        offset = w.seq_kv - w.seq_q
        rows = []
        for number, (first, end) in enumerate(zip(*visible_blocks(w, tile), strict=True)):
            window = max(0, offset + number * tile.q + 1 - self.keep_window) // tile.kv
            low = min(max(first, blocks(self.sinks, tile.kv)), end)
            rows.append((int(first), int(low), int(min(max(low, window), end)), int(end)))
        return rows


def search_rounds(count: int, keep: int) -> int:
    """How often `keep` of 2 `keep` chunks of `count` blocks are chosen until each is one block."""
    if count <= keep:
        return 0
    return 1 + ceil(log2(blocks(count, 2 * keep)))


def search(count: int, keep: int, scores: Scores) -> tuple[IntArray, IntArray]:
    """The blocks at the centres of all chunks scored, and the `keep` of `count` blocks found.

    Returns arrays of 2 `keep` a round, and of min(count, keep), ascending. Of equal scores the
    first wins.
    """
    if count <= keep:
        return np.empty(0, np.int64), np.arange(count, dtype=np.int64)
    edges = count * np.arange(2 * keep + 1, dtype=np.int64) // (2 * keep)
    low, high = edges[:-1], edges[1:]
    seen = []
    for _ in range(search_rounds(count, keep)):
        if len(low) == keep:
            middle = (low + high + 1) // 2
            low, high = np.stack([low, middle], 1).ravel(), np.stack([middle, high], 1).ravel()
        centres = np.minimum((low + high) // 2, count - 1)
        seen.append(centres)
        ranked = np.where(high > low, scores(centres), -np.inf)
        best = np.sort(np.argsort(-ranked, kind="stable")[:keep])
        low, high = low[best], high[best]
    return np.concatenate(seen), low


def chunks_a_load(found: int) -> int:
    """How many chunks have their keys loaded and scored together."""
    return min(4, 2 * found)


def _estimation_kernel(
    w: AttentionWorkload,
    hw: HardwareProfile,
    cta: Cta,
    found: int,
    seen: list[IntArray],
    q: Tensor,
    k: Tensor,
) -> Kernel:
    """A CTA a block of query rows; a trip scores a chunk. `seen` are the chunks' centre blocks."""
    tile = cta.tile
    kept = Tensor("blocks found", q.groups, blocks(w.seq_q, tile.q), found, INDEX_BYTES)
    down, across = kept.rows, blocks(w.seq_kv, REPRESENTATIVE)
    a_block = tile.kv // REPRESENTATIVE
    q_bytes, k_bytes = (rows * w.head_dim * w.dtype_bytes for rows in (tile.q, REPRESENTATIVE))
    together = chunks_a_load(found)
    room = (hw.sram.max_per_cta - q_bytes) // (together * k_bytes)
    ahead = together * max(1, min(LOAD_STAGES, int(room)))
    centres = as_table([blocks_seen * a_block + a_block // 2 for blocks_seen in seen])

    def q_tile(items: IntArray) -> IntArray:
        """Grid (blocks of query rows, matrices), the first fastest."""
        return items

    def k_base(items: IntArray) -> IntArray:
        return kv_matrix(w, items // down) * across

    load_q = Load(Stream(q, tile.q, w.head_dim, q_tile))
    load_k = Load(
        Stream(
            k,
            REPRESENTATIVE,
            w.head_dim,
            k_base,
            table=centres.table,
            start=lambda items: centres.first[items % down],
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
        ctas=q.groups * down,
        loops=(
            Loop(once, (load_q, Compute("wait for Q", (load_q,), sram_bytes=q_bytes))),
            Loop(lambda items: centres.trips[items % down], (load_k, score)),
            Loop(once, (Store(Stream(kept, 1, found, q_tile)),)),
        ),
        footprint=Footprint(q_bytes + ahead * k_bytes, 128, SEARCH_REGISTERS),
        tensor_path=cta.tensor_path,
    )
