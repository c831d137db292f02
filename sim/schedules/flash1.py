"""FlashAttention-1, as published.

Forward:

    for each head of each sequence (one CTA), M = SRAM in elements, Bc = M / 4d, Br = min(Bc, d):
        for each block of Bc keys:
            load K_j, V_j
            for each block of Br query rows that sees some of them:
                load Q_i, and from the second j on O_i, l_i, m_i
                S = Q_i K_j^T;  m, l, P = online softmax of S;  O_i = rescale(O_i) + P V_j
                store O_i, l_i, m_i

Backward, in training:

    for each head of each sequence (one CTA):
        for each block of Bc keys:
            load K_j, V_j
            for each block of Br query rows that sees some of them:
                load Q_i, O_i, dO_i, l_i, m_i, and from the second j on dQ_i
                S = Q_i K_j^T;  P = exp(S - m_i) / l_i;  dP = dO_i V_j^T
                dV_j += P^T dO_i;  dS = P (dP - rowsum(dO_i * O_i));  dK_j += dS^T Q_i
                dQ_i += dS K_j;  store dQ_i
            store dK_j, dV_j
    sums of dK and dV over the heads that share a KV head, if any do

Source: Dao et al. 2022 (arXiv 2205.14135), Algorithms 1 and 4. O, l, m and dQ need not be read in
the first pass (the paper's Figure 2, middle, counts so for O); O and dQ are kept in the workload's
dtype. Backward holds twice as many tiles (K, V, dK, dV and Q, O, dO, dQ), so that its Bc is M / 8d
here: with the published M / 4d those of keys alone would fill SRAM.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
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
from sim.schedules.parts import registers
from sim.schedules.parts.backward import (
    DROPOUT_BACKWARD_OPS_PER_SCORE,
    DROPOUT_OPS_PER_SCORE,
    gradients,
    of_backward,
    sums_over_groups,
)
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.ends import begin
from sim.schedules.parts.grid import Grid
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


def published_tile(w: AttentionWorkload, hw: HardwareProfile, kv_tiles: int = 4) -> Tile:
    """Bc = M / 4d keys and Br = min(Bc, d) query rows, whole multiples of the tensor cores' 16.

    `kv_tiles` is how many tiles of keys M would hold.
    """
    sram_elements = hw.sram.max_per_cta / w.dtype_bytes
    keys = max(16, int(sram_elements / (kv_tiles * w.head_dim)) // 16 * 16)
    keys = min(keys, blocks(w.seq_kv, 16) * 16)
    return Tile(q=max(16, min(keys, w.head_dim // 16 * 16)), kv=keys)


class Flash1(TiledSchedule):
    """FlashAttention-1. A tile that is given holds for backward too."""

    name: Literal["flash1"] = "flash1"

    summary = "blocks of K and V outside, of Q inside; O, l and m read and written again and again"
    source = "arXiv 2205.14135, Algorithms 1 and 4"
    phases = ("prefill", "decode", "training")
    takes = frozenset({"dropout", "append"})

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel, a CTA a head, an item a block of keys; in training one for backward too."""
        sram_bytes = sram_bytes_of(w, q_matrices=2, kv_matrices=2)  # Q and O, K and V
        tile = self.fit_tile(published_tile(w, hw), sram_bytes, w, hw)
        q, k, v, o = qkvo(w)
        row_sum = Tensor("l", q.groups, w.seq_q, 1, STATISTICS_BYTES, role="statistics")
        row_max = Tensor("m", q.groups, w.seq_q, 1, STATISTICS_BYTES, role="statistics")
        accumulated = (o, row_sum, row_max)
        visit = _Visit((q,), accumulated, accumulated, _step)
        forward = _kernel("flash1", w, tile, sram_bytes(tile), (k, v), visit)
        if w.phase != "training":
            return [forward]
        g = gradients(w)
        sram_bytes = sram_bytes_of(w, q_matrices=4, kv_matrices=4)
        tile = self.fit_tile(published_tile(w, hw, 8), sram_bytes, w, hw)
        visit = _Visit((q, g.do, o, row_sum, row_max), (g.dq,), (g.dq,), _backward_step)
        results = (g.dk_of_heads, g.dv_of_heads)
        backward = _kernel("flash1 backward", w, tile, sram_bytes(tile), (k, v), visit, results)
        return [forward, *of_backward([backward, *sums_over_groups(g)])]


@dataclass(frozen=True)
class _Visit:
    """What is loaded of a block of query rows (some not the first time), done, and stored."""

    reads: tuple[Tensor, ...]
    reads_again: tuple[Tensor, ...]
    stores: tuple[Tensor, ...]
    work: Callable[[AttentionWorkload, Tile, tuple[Load, ...]], tuple[Compute, ...]]


def _kernel(
    name: str,
    w: AttentionWorkload,
    tile: Tile,
    sram_bytes: int,
    kv: tuple[Tensor, Tensor],
    visit: _Visit,
    results: tuple[Tensor, ...] = (),
) -> Kernel:
    """Blocks of K and V outside, of query rows inside; after each of keys, `results` are stored."""
    down, across = blocks(w.seq_q, tile.q), blocks(w.seq_kv, tile.kv)
    first, new, end = _rows_of_key_blocks(w, tile)
    matrices = w.batch * w.heads
    grid = Grid(across, matrices)  # items: key blocks, of each CTA's matrix

    def kv_tile(items: IntArray) -> IntArray:
        block, matrix = grid.at(items)
        return kv_matrix(w, matrix) * across + block

    def loop(start: IntArray, stop: IntArray, reads: tuple[Tensor, ...]) -> Loop:
        """Over the blocks of query rows start[j] .. stop[j] - 1 of key block j."""

        def trips(items: IntArray) -> IntArray:
            rows: IntArray = np.maximum(stop - start, 0)
            return rows[grid.at(items)[0]]

        def q_tile(items: IntArray) -> IntArray:
            block, matrix = grid.at(items)
            return matrix * down + start[block]

        def stream(tensor: Tensor) -> Stream:
            return Stream(tensor, tile.q, tensor.cols, q_tile, 1)

        loads = tuple(Load(stream(tensor)) for tensor in reads)
        stores = tuple(Store(stream(tensor)) for tensor in visit.stores)
        return Loop(trips, (*loads, *visit.work(w, tile, loads), *stores))

    load_k, load_v = (Load(Stream(tensor, tile.kv, w.head_dim, kv_tile)) for tensor in kv)
    copied = load_k.stream.tile_bytes + load_v.stream.tile_bytes
    loops = [
        begin("K, V", load_k, load_v, sram_bytes=copied),
        loop(first, new, (*visit.reads, *visit.reads_again)),
        loop(new, end, visit.reads),
    ]
    if results:
        loops.append(Loop(once, tuple(Store(in_order(t, tile.kv)) for t in results)))
    return Kernel(
        name=name,
        ctas=matrices,
        loops=tuple(loops),
        footprint=Footprint(sram_bytes, 128, registers.FLASH1),
        tensor_path="mma_sync",
        items_per_cta=across,
        periods=matrices,
        sharing=w.heads // w.kv_heads,
    )


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
    softmax_ops += DROPOUT_OPS_PER_SCORE * scores if w.dropout else 0
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


def _backward_step(
    w: AttentionWorkload, tile: Tile, loads: tuple[Load, ...]
) -> tuple[Compute, ...]:
    """The five matmuls of one block of scores, by 4 warps; `loads`: Q, dO, O, l, m, and dQ again.

    The warps share out the rows of a result, and all read the other operand whole. P and dS go
    through SRAM, for which Algorithm 4 sets no room aside.
    """
    load_q, load_do, load_o, *statistics_and_dq = loads
    statistics, dq = tuple(statistics_and_dq[:2]), tuple(statistics_and_dq[2:])
    scores, q_elements = tile.q * tile.kv, tile.q * w.head_dim
    q_bytes, kv_bytes = q_elements * w.dtype_bytes, tile.kv * w.head_dim * w.dtype_bytes
    p_bytes = scores * w.dtype_bytes
    flops = 2 * scores * w.head_dim
    dropout = DROPOUT_BACKWARD_OPS_PER_SCORE * scores if w.dropout else 0
    # Of P: scale and subtract (one FMA), divide, convert; of dS: subtract, multiply, convert.
    return (
        Compute("S = Q K^T", (load_q,), flops, sram_bytes=2 * q_bytes + 4 * kv_bytes),
        Compute("P = exp(S - m) / l", statistics, 0, 3 * scores + dropout, scores, p_bytes),
        Compute("dV += P^T dO", (load_do,), flops, sram_bytes=p_bytes + 5 * q_bytes),
        Compute("dP = dO V^T", (load_do,), flops, sram_bytes=q_bytes + 4 * kv_bytes),
        Compute(
            "dS = P (dP - rowsum(dO O))",
            (load_do, load_o),
            vector_ops=3 * scores + q_elements,
            sram_bytes=p_bytes + 3 * q_bytes,
        ),
        Compute("dQ += dS K", dq, flops, q_elements, 0, p_bytes + 4 * kv_bytes),
        Compute("dK += dS^T Q", (load_q,), flops, sram_bytes=p_bytes + 4 * q_bytes),
    )
