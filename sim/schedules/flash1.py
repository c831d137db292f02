"""FlashAttention-1, forward, as published.

    for each head of each sequence (one CTA), M = SRAM in elements, Bc = M / 4d, Br = min(Bc, d):
        for each block of Bc keys:
            load K_j, V_j
            for each block of Br query rows that sees some of them:
                load Q_i, and from the second j on O_i, l_i, m_i
                S = Q_i K_j^T;  m, l, P = online softmax of S;  O_i = rescale(O_i) + P V_j
                store O_i, l_i, m_i

Source: Dao et al. 2022 (arXiv 2205.14135), Algorithm 1. O, l and m need not be read in the first
pass (the paper's Figure 2, middle, counts so); O is kept in the workload's dtype.
"""

from typing import Literal

import numpy as np

from sim.hardware import HardwareProfile
from sim.schedules.base import (
    STATISTICS_BYTES,
    VECTOR_OPS_PER_SCORE,
    Tile,
    TiledSchedule,
    blocks,
    kv_matrix,
    qkvo,
    sram_bytes_of,
    visible_blocks,
)
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
from sim.workload import AttentionWorkload


def published_tile(w: AttentionWorkload, hw: HardwareProfile) -> Tile:
    """Bc = M / 4d keys and Br = min(Bc, d) query rows, whole multiples of the tensor cores' 16."""
    sram_elements = hw.sram.max_per_cta / w.dtype_bytes
    keys = max(16, int(sram_elements / (4 * w.head_dim)) // 16 * 16)
    keys = min(keys, blocks(w.seq_kv, 16) * 16)
    return Tile(q=max(16, min(keys, w.head_dim // 16 * 16)), kv=keys)


class Flash1(TiledSchedule):
    """FlashAttention-1 forward, Algorithm 1."""

    name: Literal["flash1"] = "flash1"

    summary = "blocks of K and V outside, of Q inside; O, l and m read and written again and again"
    source = "arXiv 2205.14135, Algorithms 1 and 4"

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel: a CTA a head, an item a block of keys."""
        sram_bytes = sram_bytes_of(w, q_matrices=2, kv_matrices=2)  # Q and O, K and V
        tile = self.fit_tile(published_tile(w, hw), sram_bytes, w, hw)
        q, k, v, o = qkvo(w)
        row_sum = Tensor("l", q.groups, w.seq_q, 1, STATISTICS_BYTES, "workspace")
        row_max = Tensor("m", q.groups, w.seq_q, 1, STATISTICS_BYTES, "workspace")
        down, across = blocks(w.seq_q, tile.q), blocks(w.seq_kv, tile.kv)
        first, new, end = _rows_of_key_blocks(w, tile)

        def kv_tile(items: IntArray) -> IntArray:
            return kv_matrix(w, items // across) * across + items % across

        def loop(start: IntArray, stop: IntArray, *read_again: Tensor) -> Loop:
            """Over the blocks of query rows start[j] .. stop[j] - 1 of key block j."""

            def q_tile(items: IntArray) -> IntArray:
                return items // across * down + start[items % across]

            def stream(tensor: Tensor) -> Stream:
                return Stream(tensor, tile.q, tensor.cols, q_tile, 1)

            return Loop(
                lambda items: np.maximum(stop - start, 0)[items % across],
                (
                    *(loads := tuple(Load(stream(tensor)) for tensor in (q, *read_again))),
                    *_step(w, tile, loads),
                    *(Store(stream(tensor)) for tensor in (o, row_sum, row_max)),
                ),
            )

        load_k, load_v = (Load(Stream(tensor, tile.kv, w.head_dim, kv_tile)) for tensor in (k, v))
        copied = load_k.stream.tile_bytes + load_v.stream.tile_bytes
        wait = Compute("wait for K, V", (load_k, load_v), sram_bytes=copied)
        return [
            Kernel(
                name="flash1",
                ctas=q.groups,
                loops=(
                    Loop(once, (load_k, load_v, wait)),
                    loop(first, new, o, row_sum, row_max),
                    loop(new, end),
                ),
                footprint=Footprint(sram_bytes(tile), threads=128),
                tensor_path="mma_sync",
                items_per_cta=across,
            )
        ]


def _rows_of_key_blocks(w: AttentionWorkload, tile: Tile) -> tuple[IntArray, IntArray, IntArray]:
    """For each key block: the first block of query rows that sees it, the first for which it is
    the first it sees, and the end. Both ends of what a row sees rise with the row."""
    first_key, end_key = visible_blocks(w, tile)
    key_blocks = np.arange(blocks(w.seq_kv, tile.kv))
    first = np.searchsorted(end_key, key_blocks, "right").astype(np.int64)
    new = np.searchsorted(first_key, key_blocks, "left").astype(np.int64)
    end = np.searchsorted(first_key, key_blocks, "right").astype(np.int64)
    return first, np.maximum(new, first), np.maximum(end, first)


def _step(w: AttentionWorkload, tile: Tile, loads: tuple[Load, ...]) -> tuple[Compute, ...]:
    """The matmuls and the softmax of one block of scores, by 4 warps."""
    scores, q_elements = tile.q * tile.kv, tile.q * w.head_dim
    q_bytes, kv_bytes = q_elements * w.dtype_bytes, tile.kv * w.head_dim * w.dtype_bytes
    flops = 2 * scores * w.head_dim
    softmax_ops = VECTOR_OPS_PER_SCORE * scores + 2 * q_elements  # and rescale O, divide by l
    return (
        Compute(
            "S = Q K^T",
            loads[:1],
            mma_flops=flops,
            sram_bytes=2 * q_bytes + 4 * kv_bytes,
        ),
        Compute("softmax", loads[1:], vector_ops=softmax_ops, exp_count=scores + 2 * tile.q),
        Compute("O += P V", mma_flops=flops, sram_bytes=2 * q_bytes + 4 * kv_bytes),
    )
