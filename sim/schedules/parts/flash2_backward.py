"""FlashAttention-2, backward.

    for each block of query rows (one CTA of the first kernel):
        D_i = rowsum(dO_i * O_i);  dQ_i in fp32 = 0
    for each block of tile.kv keys, of each head of each sequence (one CTA of the second):
        load K_j, V_j
        for each block of tile.q query rows that sees some of them, last to first:
            load Q_i, dO_i, log-sum-exp, D_i
            S = Q_i K_j^T;  P = exp(S - lse);  dP = dO_i V_j^T;  dS = P (dP - D)
            dV_j += P^T dO_i;  dQ_i in fp32 += dS K_j (atomically);  dK_j += dS^T Q_i
        store dK_j, dV_j
    for each block of query rows (one CTA of the third):
        dQ_i = dQ_i in fp32
    sums of dK and dV over the heads that share a KV head, if any do

Source: Dao 2023 (arXiv 2307.08691), Algorithm 2; kernels, tiles, grid and loop order as in
Dao-AILab/flash-attention, csrc/flash_attn/src: flash_bwd_launch_template.h (run_mha_bwd_hdim*,
run_flash_bwd_seqk_parallel), flash_bwd_kernel.h (compute_dq_dk_dv_1colblock),
flash_bwd_preprocess_kernel.h, kernel_traits.h (Flash_bwd_kernel_traits). Q has two buffers there,
dO one; P and dS go through SRAM; a block of keys that no query sees is not loaded. Between two
compiled head_dims the larger one runs (flash_cta.py), which has dQ in fp32 too. Deviation: that is
padded there to 128 rows, here not. Estimates: registers; an atomic addition counts as one lane
operation an element.
"""

from dataclasses import dataclass

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, SramBytes, Tile, blocks, kv_matrix
from sim.schedules.parts import registers
from sim.schedules.parts.backward import (
    DROPOUT_BACKWARD_OPS_PER_SCORE,
    Gradients,
    gradients,
    of_backward,
    sums_over_groups,
)
from sim.schedules.parts.elementwise import elementwise, in_order
from sim.schedules.parts.ends import begin
from sim.schedules.parts.flash_cta import compiled_head_dim
from sim.schedules.parts.grid import Grid
from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Store,
    Stream,
    Tensor,
    once,
)


@dataclass(frozen=True)
class BackwardCta:
    """How a CTA of the main kernel works.

    `warps_down` is how many of the warps share out the rows of S and dP, of dK and dV, and of dQ;
    the others share out the columns. `v_in_registers` has V leave its SRAM to P and dS.
    """

    tile: Tile
    warps_down: tuple[int, int, int]
    v_in_registers: bool = False
    q_stages: int = 2
    warps: int = 8

    def sram_bytes(self, w: AttentionWorkload) -> SramBytes:
        """SRAM by tile (kSmemSize1colblock): buffers of Q and dO; K, V, P and dS."""

        d = compiled_head_dim(w.head_dim)

        def bytes_of(tile: Tile) -> int:
            rows = (self.q_stages + 1) * tile.q * d
            k = v = tile.kv * d
            p_and_ds = 2 * tile.q * tile.kv
            held = max(k + v, k + p_and_ds) if self.v_in_registers else k + v + p_and_ds
            return w.dtype_bytes * (rows + held)

        return bytes_of


@dataclass(frozen=True, eq=False)
class Seen:
    """For each block of keys of a head, the blocks of query rows that see any of it.

    A head has `down` blocks of query rows, and as many of keys as `first` and `end` are long; the
    end is not below the first. Its tokens lie in so many `ranges`, each a matrix, through which
    blocks are counted.
    """

    down: int
    first: IntArray
    end: IntArray
    ranges: int = 1


def query_blocks(w: AttentionWorkload, tile: Tile) -> Seen:
    """What the mask shows."""
    down = blocks(w.seq_q, tile.q)
    first_key = tile.kv * np.arange(blocks(w.seq_kv, tile.kv), dtype=np.int64)
    end_key = np.minimum(first_key + tile.kv, w.seq_kv)
    offset = w.seq_kv - w.seq_q
    first, end = np.zeros_like(first_key), np.full_like(first_key, down)
    if w.causal or w.has_two_sides:
        ahead = 0 if w.causal or w.window is None else w.window - 1
        first = np.maximum(0, first_key - ahead - offset) // tile.q
    if w.window is not None:
        end_row = end_key - 1 + w.window - offset
        end = np.clip(-(-end_row // tile.q), first, down)
    return Seen(down, first, end)


@dataclass(frozen=True)
class Saved:
    """What the forward pass leaves for backward."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    lse: Tensor


@dataclass(frozen=True)
class _Tensors:
    """All that the kernels go through: what forward saved, the gradients, and between kernels D.

    `dq` is dQ in fp32, to which the main kernel adds.
    """

    saved: Saved
    g: Gradients
    sums: Tensor
    dq: Tensor


def backward_kernels(
    w: AttentionWorkload,
    cta: BackwardCta,
    saved: Saved,
    g: Gradients | None = None,
    seen: Seen | None = None,
) -> list[Kernel]:
    """The kernels of the backward pass: three, and two sums where heads share K and V.

    Rows of Q, O and dO may have all heads of a token side by side. Gradients go to `g`. What is
    `seen` is what the mask shows unless given.
    """
    g, seen = g or gradients(w), seen or query_blocks(w, cta.tile)
    sums = Tensor("D", g.dq.groups, g.dq.rows, 1, STATISTICS_BYTES, role="statistics")
    width = compiled_head_dim(w.head_dim)  # head_size_rounded of mha_bwd
    accumulated = Tensor("dQ in fp32", g.dq.groups, g.dq.rows, width, 4)
    tensors = _Tensors(saved, g, sums, accumulated)
    return of_backward(
        [
            _preprocess(cta, tensors),
            _main(w, cta, tensors, seen),
            _convert(w, cta, tensors),
            *sums_over_groups(g, seen.ranges),
        ]
    )


def _by_rows(cta: BackwardCta) -> Footprint:
    """A CTA for each block of query rows, its tile in registers."""
    return Footprint(0, 32 * cta.warps, registers.BACKWARD_ROWS)


def _preprocess(cta: BackwardCta, of: _Tensors) -> Kernel:
    sums, zeros = (in_order(tensor, cta.tile.q) for tensor in (of.sums, of.dq))
    do, o = (in_order(tensor, cta.tile.q, of.g.dq.cols) for tensor in (of.g.do, of.saved.o))
    return elementwise(
        "D = rowsum(dO O)",
        [do, o],
        [sums, zeros],
        vector_ops=cta.tile.q * do.tile_cols,
        footprint=_by_rows(cta),
    )


def _convert(w: AttentionWorkload, cta: BackwardCta, of: _Tensors) -> Kernel:
    """dQ is scaled, and goes out through SRAM."""
    elements = cta.tile.q * of.dq.cols
    return elementwise(
        "dQ to dtype",
        [in_order(of.dq, cta.tile.q)],
        [in_order(of.g.dq, cta.tile.q)],
        vector_ops=2 * elements,
        sram_bytes=2 * elements * w.dtype_bytes,
        footprint=_by_rows(cta),
    )


@dataclass(frozen=True, eq=False)
class _KeyBlocks:
    """The main kernel's grid: a CTA for each tile.kv keys of each head of each sequence."""

    w: AttentionWorkload
    across: int  # blocks of keys of a head

    @property
    def grid(self) -> Grid:
        """(key blocks, sequences, heads)."""
        return Grid(self.across, self.w.batch, self.w.heads)

    def block(self, items: IntArray) -> IntArray:
        """The block of keys of each CTA, in its head."""
        return self.grid.at(items)[0]

    def matrix(self, items: IntArray) -> IntArray:
        """The matrix of queries of each CTA: a head of a sequence."""
        _, sequence, head = self.grid.at(items)
        return sequence * self.w.heads + head

    def kv_tile(self, items: IntArray) -> IntArray:
        """The tile of K and of V of each CTA."""
        return kv_matrix(self.w, self.matrix(items)) * self.across + self.block(items)

    def own_tile(self, items: IntArray) -> IntArray:
        """The tile of the head's own dK and dV of each CTA."""
        return self.matrix(items) * self.across + self.block(items)


@dataclass(frozen=True)
class _Rows:
    """What a trip of the main kernel loads of its query rows, and where it adds their dQ."""

    q: Load
    do: Load
    lse: Load
    sums: Load
    dq: Store


def _main(w: AttentionWorkload, cta: BackwardCta, of: _Tensors, seen: Seen) -> Kernel:
    """A CTA a block of keys of a head."""
    tile, keys = cta.tile, _KeyBlocks(w, len(seen.first))
    down, first, end = seen.down, seen.first, seen.end

    def trips(items: IntArray) -> IntArray:
        return (end - first)[keys.block(items)]

    def if_seen(items: IntArray) -> IntArray:
        return np.minimum(trips(items), 1)

    def rows_of(tensor: Tensor) -> Stream:
        beside = w.heads if tensor.groups == w.batch else 1  # heads side by side in a row

        def last_q_tile(items: IntArray) -> IntArray:
            matrix = keys.matrix(items)
            last = matrix // beside * down + end[keys.block(items)] - 1
            return last * beside + matrix % beside

        return Stream(tensor, tile.q, tensor.cols // beside, last_q_tile, -beside)

    def keys_of(tensor: Tensor, at: OfItem) -> Stream:
        return Stream(tensor, tile.kv, w.head_dim, at)

    rows = _Rows(
        q=Load(rows_of(of.saved.q), cta.q_stages),
        do=Load(rows_of(of.g.do)),
        lse=Load(rows_of(of.saved.lse)),
        sums=Load(rows_of(of.sums)),
        dq=Store(rows_of(of.dq), atomic=True),
    )
    load_k, load_v = (Load(keys_of(t, keys.kv_tile)) for t in (of.saved.k, of.saved.v))
    dk, dv = (keys_of(t, keys.own_tile) for t in (of.g.dk_of_heads, of.g.dv_of_heads))
    kv_elements = tile.kv * compiled_head_dim(w.head_dim)
    kv_bytes = kv_elements * w.dtype_bytes
    scale = Compute("scale dK, dV", vector_ops=2 * 2 * kv_elements, sram_bytes=2 * 2 * kv_bytes)
    return Kernel(
        name="dQ, dK, dV",
        ctas=keys.grid.size,
        loops=(
            begin("K, V", load_k, load_v, trips=if_seen, sram_bytes=2 * kv_bytes),
            Loop(trips, _trip(w, cta, rows)),
            Loop(once, (scale, Store(dk), Store(dv))),
        ),
        footprint=Footprint(cta.sram_bytes(w)(tile), 32 * cta.warps, registers.FLASH_BACKWARD),
        tensor_path="mma_sync",
        periods=w.batch * w.heads,
        sharing=w.heads // w.kv_heads,
    )


def _trip(
    w: AttentionWorkload, cta: BackwardCta, rows: _Rows
) -> tuple[Load | Compute | Store, ...]:
    """Five matmuls on one block of scores. Each warp reads its rows and columns of the operands."""
    tile, d = cta.tile, compiled_head_dim(w.head_dim)
    scores, q_elements = tile.q * tile.kv, tile.q * d
    q_bytes, kv_bytes, p_bytes = (
        elements * w.dtype_bytes for elements in (q_elements, tile.kv * d, scores)
    )
    v_bytes = 0 if cta.v_in_registers else kv_bytes
    dropout = DROPOUT_BACKWARD_OPS_PER_SCORE * scores if w.dropout else 0
    s_down, dkv_down, dq_down = cta.warps_down

    def matmul(
        name: str,
        reads: tuple[Load, ...],
        operand_bytes: tuple[int, int],
        down: int,
        arriving_bytes: int = 0,
        vector_ops: int = 0,
    ) -> Compute:
        a_bytes, b_bytes = operand_bytes
        read_bytes = max(1, cta.warps // down) * a_bytes + down * b_bytes
        return Compute(name, reads, 2 * scores * d, vector_ops, 0, arriving_bytes + read_bytes)

    return (
        rows.q,
        rows.do,
        rows.lse,
        rows.sums,
        matmul("S = Q K^T", (rows.q,), (q_bytes, kv_bytes), s_down, q_bytes),
        # Scale and subtract (one FMA), convert.
        Compute("P = exp(S - lse)", (rows.lse,), 0, 2 * scores + dropout, scores, p_bytes),
        matmul("dP = dO V^T", (rows.do,), (q_bytes, v_bytes), s_down, q_bytes),
        # Subtract, multiply, convert.
        Compute("dS = P (dP - D)", (rows.sums,), 0, 3 * scores, 0, p_bytes),
        matmul("dV += P^T dO", (rows.do,), (p_bytes, q_bytes), dkv_down),
        matmul("dQ += dS K", (), (p_bytes, kv_bytes), dq_down, vector_ops=q_elements),
        rows.dq,
        matmul("dK += dS^T Q", (rows.q,), (p_bytes, q_bytes), dkv_down),
    )
