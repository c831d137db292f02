"""FlashAttention-2, forward.

    for each block of tile.q query rows, of each head of each sequence (one CTA):
        load Q_i
        for each block of tile.kv keys that the mask shows, last to first:
            load K_j, V_j
            S = Q_i K_j^T;  m, P = online softmax of S;  O_i = rescale(O_i) + P V_j
        O_i = O_i / l_i;  store O_i and the log-sum-exp

Source: Dao 2023 (arXiv 2307.08691), Algorithm 1; tiles, grid order and loop order as in
Dao-AILab/flash-attention, csrc/flash_attn/src/flash_fwd_launch_template.h and flash_fwd_kernel.h.
Q, K and V have one buffer each there, so K_j-1 comes during the softmax and the second matmul of j.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sim.hardware import HardwareProfile
from sim.schedules.base import (
    STATISTICS_BYTES,
    VECTOR_OPS_PER_SCORE,
    Schedule,
    Tile,
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


@dataclass(frozen=True)
class PublicTile:
    """Tile and warps of the public kernel up to a head_dim."""

    head_dim: int
    tile: Tile
    warps: int


def _tiles(*rows: tuple[int, int, int, int]) -> tuple[PublicTile, ...]:
    return tuple(PublicTile(d, Tile(q=q, kv=kv), warps) for d, q, kv, warps in rows)


# flash_fwd_launch_template.h, run_mha_fwd_hdim*, without dropout:
# (head_dim, kBlockM, kBlockN, warps). head_dim 160 and 224 run the next larger kernel.
_SM80 = _tiles(
    (32, 128, 128, 4),
    (64, 128, 128, 4),
    (96, 128, 64, 4),
    (128, 128, 64, 4),
    (192, 128, 64, 8),
)
_SM8X = _tiles(
    (32, 128, 128, 4),
    (64, 128, 128, 4),
    (96, 128, 64, 4),
    (128, 128, 32, 4),
    (192, 128, 64, 8),
)
_SM8X_CAUSAL = _tiles(
    (32, 128, 128, 4),
    (64, 128, 128, 4),
    (96, 64, 64, 4),
    (128, 64, 64, 4),
    (192, 128, 64, 8),
)


def public_tile(w: AttentionWorkload, hw: HardwareProfile) -> PublicTile:
    """What the public kernel would use; for head_dim 256 by SRAM, as run_mha_fwd_hdim256."""
    table = _SM80
    if hw.arch in ("sm86", "sm89"):
        table = _SM8X_CAUSAL if w.causal else _SM8X
    for row in table:
        if w.head_dim <= row.head_dim:
            return row
    roomy = hw.sram.max_per_cta >= 128 * 1024 and hw.sram.capacity < 192 * 1024
    return PublicTile(256, Tile(q=128 if roomy else 64, kv=64), 8 if roomy else 4)


@dataclass(frozen=True)
class KeyBlocks:
    """The key blocks that each block of query rows visits, the same for all heads or by head.

    Row r visits first[r] + stride * i or, with a table, table[first[r] + i], for i < trips[r].
    """

    trips: IntArray
    first: IntArray
    stride: int = 0
    table: IntArray | None = None


class Flash2(Schedule):
    """FlashAttention-2 forward."""

    name: Literal["flash2"] = "flash2"

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel: a CTA a block of query rows."""
        public = public_tile(w, hw)
        tile = self.fit_tile(public.tile, sram_bytes_of(w), w, hw)
        first, end = visible_blocks(w, tile)
        visits = KeyBlocks(trips=end - first, first=end - 1, stride=-1)
        return [forward_kernel("flash2", w, tile, public.warps, visits)]


def forward_kernel(
    name: str, w: AttentionWorkload, tile: Tile, warps: int, visits: KeyBlocks
) -> Kernel:
    """The FlashAttention-2 loop over the key blocks that `visits` names."""
    q, k, v, o = qkvo(w)
    lse = Tensor("LSE", q.groups, w.seq_q, 1, STATISTICS_BYTES, "output")
    down, across = blocks(w.seq_q, tile.q), blocks(w.seq_kv, tile.kv)
    shared = len(visits.trips) == down  # one list of blocks for all heads

    def q_matrix(items: IntArray) -> IntArray:
        """Grid (blocks of query rows, sequences, heads), the first fastest."""
        head, sequence = items // (down * w.batch), items // down % w.batch
        return sequence * w.heads + head

    def q_tile(items: IntArray) -> IntArray:
        return q_matrix(items) * down + items % down

    def row(items: IntArray) -> IntArray:
        return items % down if shared else q_tile(items)

    def kv_base(items: IntArray) -> IntArray:
        matrix = kv_matrix(w, q_matrix(items)) * across
        return matrix if visits.table is not None else matrix + visits.first[row(items)]

    def table_start(items: IntArray) -> IntArray:
        return visits.first[row(items)]

    def kv_stream(tensor: Tensor) -> Stream:
        stride, table = visits.stride, visits.table
        return Stream(tensor, tile.kv, w.head_dim, kv_base, stride, table, table_start)

    load_q = Load(Stream(q, tile.q, w.head_dim, q_tile))
    load_k, load_v = Load(kv_stream(k)), Load(kv_stream(v))
    q_bytes, kv_bytes = load_q.stream.tile_bytes, load_k.stream.tile_bytes
    q_elements, scores = tile.q * w.head_dim, tile.q * tile.kv
    matmul_flops = 2 * scores * w.head_dim
    # Written once by the copy, then read whole by every warp, each for its own query rows.
    kv_sram_bytes = (1 + warps) * kv_bytes
    prologue = Loop(once, (load_q, Compute("wait for Q", (load_q,), sram_bytes=q_bytes)))
    loop = Loop(
        lambda items: np.maximum(visits.trips[row(items)], 0),
        (
            load_k,
            load_v,
            Compute(
                "S = Q K^T",
                (load_k,),
                mma_flops=matmul_flops,
                sram_bytes=q_bytes + kv_sram_bytes,
            ),
            Compute(
                "softmax",
                vector_ops=VECTOR_OPS_PER_SCORE * scores + q_elements,  # and rescale O
                exp_count=scores + tile.q,
            ),
            Compute("O += P V", (load_v,), mma_flops=matmul_flops, sram_bytes=kv_sram_bytes),
        ),
    )
    epilogue = Loop(
        once,
        (
            Compute("O / l", vector_ops=q_elements, sram_bytes=2 * q_bytes),
            Store(Stream(o, tile.q, w.head_dim, q_tile)),
            Store(Stream(lse, tile.q, 1, q_tile)),
        ),
    )
    return Kernel(
        name=name,
        ctas=q.groups * down,
        loops=(prologue, loop, epilogue),
        footprint=Footprint(sram_bytes_of(w)(tile), threads=32 * warps),
        tensor_path="mma_sync",
    )
