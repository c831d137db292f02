"""FlashAttention-4, backward on Blackwell.

    for each block of query rows (one CTA of the first kernel):
        D_i = rowsum(dO_i * O_i);  store it, the log-sum-exp in base 2, dQ_i in fp32 = 0
    for each block of 128 keys of each head of each sequence (one CTA of the second):
        load K_j, V_j
        for each block of 128 query rows that sees some of them, first to last:
            load Q_i, dO_i, log-sum-exp, D_i
            S = K_j Q_i^T  (tcgen05, transposed, as dP: P and dS are operands in tensor memory)
            P = exp(S - lse), beside dK_j += dS^T Q and dQ = dS K_j of the block before
            dP = V_j dO_i^T
            dS = P (dP - D), beside dV_j += P^T dO_i
            dQ_i in fp32 += dQ, through SRAM by TMA's reduction
        store dK_j, dV_j; where heads share them, add them in fp32, which were set to 0 before
    for each block (one CTA a kernel): dQ_i, and dK_j and dV_j where they are in fp32, to dtype

Matmuls read their operands from SRAM, but P and dS as those of dV and dK, which are in tensor
memory; dS is written for dQ. From head_dim 128 on two CTAs of neighbouring blocks of keys are a
pair: of Q, dO and K each has half of the rows in one layout and half of the columns in another, so
that it loads as much as alone, and K once more, and reads half; each adds half of dQ for the keys
of both. They go through the rows that either sees.

Source: Dao-AILab/flash-attention, flash_attn/cute: flash_bwd_sm100.py (tiles, warps, stages, order
of matmuls, SingleTileScheduler), flash_bwd_preprocess.py, flash_bwd_postprocess.py, interface.py
(_flash_attn_bwd: 2 CTAs, accumulators). What differs: tensor memory has room and bandwidth enough;
what a matmul runs beside is one step with it, as long as the slower of both; of an odd number of
blocks of keys the last CTA is alone, where the kernel adds one; rows are not rounded up; masking
costs nothing.
"""

from dataclasses import dataclass

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, Tile, blocks, kv_matrix
from sim.schedules.parts import registers
from sim.schedules.parts.backward import of_backward
from sim.schedules.parts.elementwise import elementwise, in_order, rows_of
from sim.schedules.parts.ends import begin
from sim.schedules.parts.flash2_backward import Saved, query_blocks
from sim.schedules.parts.grid import Grid
from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    Op,
    Store,
    Stream,
    Tensor,
    once,
)

SIDE = 128  # query rows, and keys, of a block
THREADS = 512  # 16 warps: 4 that add dQ up, 8 of softmax, others that issue and wait
PAIRED_FROM = 128  # head_dim
WIDE = 192  # head_dim whose K has no second layout's room of its own
# Columns of dQ on their way out (dQ_reduce_ncol, sdQaccum_stage): of a CTA alone, of one of a pair,
# of one of a pair at head_dim 192.
STAGED_COLUMNS, PAIRED_COLUMNS, WIDE_COLUMNS = 2 * 32, 4 * 8, 2 * 24
PREPROCESS_THREADS, POSTPROCESS_THREADS = 256, 128
# Of a score: scale and subtract (one FMA); dP - D, P times it; half a conversion of P, half of dS.
EXP_OPS, DS_OPS, SCORES_A_CONVERSION = 1, 2, 2


@dataclass(frozen=True, eq=False)
class Flash4Backward:
    """The backward pass over what forward saved; `cols` are of the kernel's K, Q and dQ, and V."""

    w: AttentionWorkload
    saved: Saved
    cols: int
    v_cols: int

    @property
    def paired(self) -> int:
        """CTAs that multiply together."""
        return 2 if self.cols >= PAIRED_FROM and self.across > 1 else 1

    @property
    def across(self) -> int:
        """Blocks of keys of a head."""
        return blocks(self.w.seq_kv, SIDE)

    @property
    def _grouped(self) -> bool:
        return self.w.heads != self.w.kv_heads

    def kernels(self) -> list[Kernel]:
        """Three, and where heads share K and V four more: two that set to 0, two that convert."""
        saved = self.saved
        do = like_saved(saved.o, "dO", "input")
        of_rows = (saved.q.groups, saved.q.rows)
        sums = Tensor("D", *of_rows, 1, STATISTICS_BYTES, role="statistics")
        lse = Tensor("LSE in base 2", *of_rows, 1, STATISTICS_BYTES, role="statistics")
        dq = Tensor("dQ in fp32", *of_rows, self.cols, STATISTICS_BYTES)
        results = {
            "dQ": like_saved(saved.q, "dQ", "output"),
            "dK": like_saved(saved.k, "dK", "output"),
            "dV": like_saved(saved.v, "dV", "output"),
        }
        added = {
            name: Tensor(f"{name} in fp32", one.groups, one.rows, cols, STATISTICS_BYTES)
            for name, one, cols in (
                ("dK", results["dK"], self.cols),
                ("dV", results["dV"], self.v_cols),
            )
        }
        dk, dv = (
            (added if self._grouped else results)["dK"],
            (added if self._grouped else results)["dV"],
        )
        zeroed = [
            elementwise(f"zero {one.name}", [], [in_order(one, rows_of(one))], 0)
            for one in added.values()
        ]
        before = elementwise(
            "D = rowsum(dO O)",
            [in_order(one, SIDE) for one in (do, saved.o, saved.lse)],
            [in_order(one, SIDE) for one in (sums, lse, dq)],
            vector_ops=SIDE * self.v_cols,
            footprint=Footprint(0, PREPROCESS_THREADS, registers.BACKWARD_ROWS),
        )
        main = self._main(do, sums, lse, dq, dk, dv)
        converted = [_convert(dq, results["dQ"])]
        if self._grouped:
            converted += [_convert(added[name], results[name]) for name in added]
        return of_backward([*(zeroed if self._grouped else []), before, main, *converted])

    @property
    def _sram_bytes(self) -> int:
        """K, V, Q, dO, dS, dQ on its way; a second block of Q or, of a pair, K's other layout."""
        blocks_of_rows = 2 * (self.cols + self.v_cols) + SIDE
        columns = STAGED_COLUMNS if self.paired == 1 else PAIRED_COLUMNS
        if self.cols < WIDE:
            blocks_of_rows += self.cols
        else:
            columns = WIDE_COLUMNS
        return SIDE * (blocks_of_rows * self.w.dtype_bytes + columns * STATISTICS_BYTES)

    def _main(
        self, do: Tensor, sums: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
    ) -> Kernel:
        w, saved, places = self.w, self.saved, _Places(self.w, self.across, self.paired)
        load_k, load_v = Load(places.keys_of(saved.k)), Load(places.keys_of(saved.v))
        again = [Load(places.keys_of(saved.k))] if self.paired > 1 else []
        kv_elements = SIDE * (self.cols + self.v_cols)
        scale = Compute(
            "scale dK, dV", vector_ops=kv_elements, sram_bytes=2 * kv_elements * dk.element_bytes
        )
        results = tuple(Store(places.keys_of(one), atomic=self._grouped) for one in (dk, dv))
        kv_bytes = kv_elements * w.dtype_bytes
        return Kernel(
            name="dQ, dK, dV",
            ctas=places.grid.size,
            loops=(
                begin("K, V", load_k, load_v, *again, sram_bytes=kv_bytes, trips=once),
                Loop(places.trips, self._trip(places, do, sums, lse, dq)),
                Loop(once, (scale, *results)),
            ),
            footprint=Footprint(self._sram_bytes, THREADS, registers.FLASH4, THREADS - 128),
            tensor_path="asynchronous",
            periods=w.batch * w.heads,
            sharing=w.heads // w.kv_heads,
        )

    def _trip(
        self, places: "_Places", do: Tensor, sums: Tensor, lse: Tensor, dq: Tensor
    ) -> tuple[Op, ...]:
        """What is done with a block of rows; the matmuls beside an elementwise part as one step."""
        paired, size, stages = self.paired, self.w.dtype_bytes, 3 - self.paired
        load_q = Load(places.rows_of(self.saved.q), stages)
        load_lse = Load(places.rows_of(lse), stages)
        load_do, load_sums = Load(places.rows_of(do)), Load(places.rows_of(sums))
        scores = SIDE * SIDE
        q_bytes, do_bytes = SIDE * self.cols * size, SIDE * self.v_cols * size
        k_bytes, v_bytes = q_bytes, do_bytes
        p_bytes, dq_bytes = scores * size, SIDE * self.cols * STATISTICS_BYTES // paired
        of_qk, of_v = 2 * scores * self.cols, 2 * scores * self.v_cols
        converted = scores // SCORES_A_CONVERSION
        return (
            load_q,
            load_lse,
            load_do,
            load_sums,
            Compute(
                "S = K Q^T", (load_q,), of_qk, sram_bytes=q_bytes + k_bytes + q_bytes // paired
            ),
            Compute(
                "P = exp(S - lse), dK += dS^T Q, dQ = dS K",
                (load_q, load_lse),
                2 * of_qk,
                EXP_OPS * scores,
                scores,
                q_bytes // paired + p_bytes + k_bytes + 2 * dq_bytes,
                converted,
            ),
            Compute(
                "dP = V dO^T", (load_do,), of_v, sram_bytes=do_bytes + v_bytes + do_bytes // paired
            ),
            Compute(
                "dS = P (dP - D), dV += P^T dO",
                (load_do, load_sums),
                of_v,
                DS_OPS * scores,
                sram_bytes=do_bytes // paired + p_bytes * (paired + 1) // 2,  # half to the pair's
                other_ops=converted,
            ),
            Store(places.half_of(dq), atomic=True),
        )


class _Places:
    """Where a CTA's blocks lie: one of keys, of a head of a sequence, and the rows that see it."""

    def __init__(self, w: AttentionWorkload, across: int, paired: int) -> None:
        self.w, self.across, self.paired = w, across, paired
        self.grid = Grid(across, w.heads, w.batch)  # blocks of keys, heads, sequences
        self.down = blocks(w.seq_q, SIDE)
        pair = query_blocks(w, Tile(q=SIDE, kv=paired * SIDE))
        self.first, self.end = (side.repeat(paired)[:across] for side in (pair.first, pair.end))

    def trips(self, items: IntArray) -> IntArray:
        """Blocks of rows that see some of the pair's keys."""
        seen: IntArray = (self.end - self.first)[self.grid.at(items)[0]]
        return seen

    def rows_of(self, tensor: Tensor) -> Stream:
        """Those blocks of rows, one a trip."""
        return Stream(tensor, SIDE, tensor.cols, self._first_rows, 1)

    def half_of(self, dq: Tensor) -> Stream:
        """The columns of those blocks that a CTA of a pair adds to; all of one alone."""

        def half(items: IntArray) -> IntArray:
            return self._first_rows(items) * self.paired + self.grid.at(items)[0] % self.paired

        return Stream(dq, SIDE, dq.cols // self.paired, half, self.paired)

    def keys_of(self, tensor: Tensor) -> Stream:
        """The block of keys."""

        def tile(items: IntArray) -> IntArray:
            return kv_matrix(self.w, self._matrix(items)) * self.across + self.grid.at(items)[0]

        return Stream(tensor, SIDE, tensor.cols, tile)

    def _matrix(self, items: IntArray) -> IntArray:
        _, head, sequence = self.grid.at(items)
        return sequence * self.w.heads + head

    def _first_rows(self, items: IntArray) -> IntArray:
        first: IntArray = self._matrix(items) * self.down + self.first[self.grid.at(items)[0]]
        return first


def like_saved(tensor: Tensor, name: str, lifetime: str) -> Tensor:
    """Room for what goes with something saved: its gradient, or that of O."""
    role = "query gradient" if name == "dQ" else "key gradient" if name == "dK" else "other"
    shape = (tensor.groups, tensor.rows, tensor.cols, tensor.element_bytes)
    return Tensor(name, *shape, lifetime, role)  # type: ignore[arg-type]


def _convert(wide: Tensor, result: Tensor) -> Kernel:
    """Scaled, to the workload's dtype."""
    elements = SIDE * wide.cols
    return elementwise(
        f"{result.name} to dtype",
        [in_order(wide, SIDE)],
        [in_order(result, SIDE)],
        vector_ops=2 * elements,
        sram_bytes=2 * elements * result.element_bytes,
        footprint=Footprint(0, POSTPROCESS_THREADS, registers.BACKWARD_ROWS),
    )
