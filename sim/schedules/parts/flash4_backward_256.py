"""FlashAttention-4, backward of head_dim 256 on Blackwell: two kernels, which make S and dP each.

    for each block of query rows (one CTA of the first kernel):
        D_i = rowsum(dO_i * O_i);  store it and the log-sum-exp in base 2
    for each block of 128 query rows of each head (one CTA of the second), in pairs:
        load Q_i, dO_i
        for each block of 128 keys that either of the pair sees, a half of which each loads:
            S = Q_i K_j^T;  P = exp(S - lse);  dP = dO_i V_j^T;  dS = P (dP - D);  dQ_i += dS K_j
        store dQ_i
    for each block of 64 keys of each KV head (one CTA of the third), in pairs:
        load K_j, V_j
        for each head that shares them, each block of 128 query rows that sees some of the pair's:
            load Q_i, dO_i, a half of their rows and a half of their columns
            S, P, dP, dS as above;  dV_j += P^T dO_i;  dK_j += dS^T Q_i
        store dK_j, dV_j

So nothing is added up in memory, and heads that share K and V need no kernel more.

Source: Dao-AILab/flash-attention, flash_attn/cute: sm100_hd256_2cta_fmha_backward.py,
..._dqkernel.py, ..._dkdvkernel.py (tiles, pairs, stages, warps). What differs: a matmul and what
runs beside it are one step, here P with the last matmul of the block before, dS with that of dV
(an estimate: as in the kernel of smaller heads); masking costs nothing.
"""

from dataclasses import dataclass

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, Tile, blocks, kv_matrix
from sim.schedules.parts import registers
from sim.schedules.parts.backward import of_backward
from sim.schedules.parts.elementwise import elementwise, in_order
from sim.schedules.parts.ends import begin
from sim.schedules.parts.flash2_backward import Saved, query_blocks
from sim.schedules.parts.flash4_backward import (
    DS_OPS,
    EXP_OPS,
    PREPROCESS_THREADS,
    SCORES_A_CONVERSION,
    like_saved,
)
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

ROWS, KEYS, FEW_KEYS = 128, 128, 64  # of query rows, of keys for dQ, and for dK and dV
PAIR = 2
THREADS = 384  # 12 warps


@dataclass(frozen=True, eq=False)
class Flash4Backward256:
    """The backward pass over what forward saved.

    `visited` are the key blocks of each block of query rows of a head, alike within a pair.
    """

    w: AttentionWorkload
    saved: Saved
    visited: IntArray

    def kernels(self) -> list[Kernel]:
        """Three."""
        saved = self.saved
        do = like_saved(saved.o, "dO", "input")
        statistics = (saved.q.groups, saved.q.rows, 1, STATISTICS_BYTES)
        sums = Tensor("D", *statistics, role="statistics")
        lse = Tensor("LSE in base 2", *statistics, role="statistics")
        before = elementwise(
            "D = rowsum(dO O)",
            [in_order(one, ROWS) for one in (do, saved.o, saved.lse)],
            [in_order(one, ROWS) for one in (sums, lse)],
            vector_ops=ROWS * do.cols,
            footprint=Footprint(0, PREPROCESS_THREADS, registers.BACKWARD_ROWS),
        )
        of_rows = (do, sums, lse)
        return of_backward([before, self._query_gradient(*of_rows), self._key_gradients(*of_rows)])

    def _query_gradient(self, do: Tensor, sums: Tensor, lse: Tensor) -> Kernel:
        w, saved, size = self.w, self.saved, self.w.dtype_bytes
        down, across = len(self.visited), blocks(w.seq_kv, KEYS)
        shared = PAIR if down % PAIR == 0 else 1
        grid = Grid(down, saved.q.groups)  # blocks of rows, heads of all sequences
        columns = saved.q.cols

        def first_keys(items: IntArray) -> IntArray:
            block, matrix = grid.at(items)
            return kv_matrix(w, matrix) * across * shared + block % shared

        def keys_of(tensor: Tensor) -> Load:
            return Load(Stream(tensor, KEYS, columns // shared, first_keys, shared))

        loads = [Load(in_order(one, ROWS)) for one in (saved.q, do, lse, sums)]
        load_k, load_v, load_again = keys_of(saved.k), keys_of(saved.v), keys_of(saved.k)
        flops, part = 2 * ROWS * KEYS * columns, KEYS * columns * size // shared
        q_bytes, scores = ROWS * columns * size, ROWS * KEYS
        converted = scores // SCORES_A_CONVERSION
        trip = (
            load_k,
            load_v,
            load_again,
            Compute("S = Q K^T", (load_k,), flops, sram_bytes=q_bytes + 2 * part),
            Compute(
                "P = exp(S - lse), dQ += dS K",
                (load_again,),
                flops,
                EXP_OPS * scores,
                scores,
                2 * part,
                converted,
            ),
            Compute("dP = dO V^T", (load_v,), flops, sram_bytes=q_bytes + 2 * part),
            Compute("dS = P (dP - D)", (), 0, DS_OPS * scores, other_ops=converted),
        )
        dq = like_saved(saved.q, "dQ", "output")
        scale = Compute("scale dQ", vector_ops=ROWS * columns)
        # Q and dO; half the columns of K and V twice, a quarter of those of K's other layout.
        held = 2 * q_bytes + (2 * KEYS * columns + KEYS * columns // 2) * size // PAIR
        return Kernel(
            name="dQ",
            ctas=grid.size,
            loops=(
                begin("Q, dO", *loads, sram_bytes=2 * q_bytes),
                Loop(lambda items: self.visited[grid.at(items)[0]], trip),
                Loop(once, (scale, Store(in_order(dq, ROWS)))),
            ),
            footprint=Footprint(held, THREADS, registers.FLASH3[2], THREADS - 128),
            tensor_path="asynchronous",
            periods=saved.q.groups,
            sharing=w.heads // w.kv_heads,
        )

    def _key_gradients(self, do: Tensor, sums: Tensor, lse: Tensor) -> Kernel:
        w, saved, size = self.w, self.saved, self.w.dtype_bytes
        group, columns = w.heads // w.kv_heads, saved.q.cols
        # Blocks of keys, KV heads of all sequences.
        grid = Grid(blocks(w.seq_kv, FEW_KEYS), saved.k.groups)
        heads = [self._of_head(grid, number, do, sums, lse) for number in range(group)]
        load_k, load_v = (Load(in_order(one, FEW_KEYS)) for one in (saved.k, saved.v))
        scale = Compute("scale dK, dV", vector_ops=2 * FEW_KEYS * columns)
        results = (
            Store(in_order(like_saved(one, name, "output"), FEW_KEYS))
            for one, name in ((saved.k, "dK"), (saved.v, "dV"))
        )
        k_bytes, held_rows = FEW_KEYS * columns * size, FEW_KEYS + ROWS
        return Kernel(
            name="dK, dV",
            ctas=grid.size,
            loops=(
                begin("K, V", load_k, load_v, sram_bytes=2 * k_bytes),
                *heads,
                Loop(once, (scale, *results)),
            ),
            footprint=Footprint(
                2 * size * (held_rows * columns + ROWS * FEW_KEYS),
                THREADS,
                registers.FLASH3[2],
                THREADS - 128,
            ),
            tensor_path="asynchronous",
            periods=saved.k.groups,
        )

    def _of_head(self, grid: Grid, number: int, do: Tensor, sums: Tensor, lse: Tensor) -> Loop:
        """The blocks of rows of one head of those that share K and V, which see the pair's keys."""
        w, saved, size = self.w, self.saved, self.w.dtype_bytes
        group, down, columns = w.heads // w.kv_heads, blocks(w.seq_q, ROWS), saved.q.cols
        pair = query_blocks(w, Tile(q=ROWS, kv=PAIR * FEW_KEYS))
        across = blocks(w.seq_kv, FEW_KEYS)
        first, end = (side.repeat(PAIR)[:across] for side in (pair.first, pair.end))

        def trips(items: IntArray) -> IntArray:
            return (end - first)[grid.at(items)[0]]

        def first_rows(items: IntArray) -> IntArray:
            block, matrix = grid.at(items)
            return (matrix * group + number) * down + first[block]

        def rows_of(tensor: Tensor) -> Load:
            return Load(Stream(tensor, ROWS, tensor.cols, first_rows, 1))

        load_q, load_do, load_lse, load_sums = map(rows_of, (saved.q, do, lse, sums))
        flops, scores = 2 * ROWS * FEW_KEYS * columns, ROWS * FEW_KEYS
        q_bytes, k_bytes = ROWS * columns * size, FEW_KEYS * columns * size
        half, p_bytes, converted = q_bytes // PAIR, scores * size, scores // SCORES_A_CONVERSION
        trip = (
            load_q,
            load_lse,
            load_do,
            load_sums,
            Compute("S = K Q^T", (load_q,), flops, sram_bytes=q_bytes + k_bytes + half),
            Compute(
                "P = exp(S - lse), dK += dS^T Q",
                (load_q, load_lse),
                flops,
                EXP_OPS * scores,
                scores,
                half + 2 * p_bytes,
                converted,
            ),
            Compute("dP = V dO^T", (load_do,), flops, sram_bytes=q_bytes + k_bytes + half),
            Compute(
                "dS = P (dP - D), dV += P^T dO",
                (load_do, load_sums),
                flops,
                DS_OPS * scores,
                sram_bytes=half + 2 * p_bytes,
                other_ops=converted,
            ),
        )
        return Loop(trips, trip)
