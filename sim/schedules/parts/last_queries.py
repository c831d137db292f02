"""MInference's choice of lines by the last queries, as PyTorch runs it.

    S = Q_last K^T;  P = softmax(S)       the last block of 64 queries against all keys
    verticals = the keys of highest column sums of P
    slashes = the distances (query - key) of highest diagonal sums of P

`passes` are these and nothing else. `launches` are all kernels of the public code up to the index:
microsoft/MInference, minference/modules/minference_forward.py (vertical_and_slash_kernel,
sum_all_diagonal_matrix: the two blocks of zeros beside P, 128 columns, are left out of its bytes)
and minference/ops/pit_sparse_flash_attention_v2.py (vertical_slash_sparse_attention). PyTorch's
topk of a long row takes several CTAs; here one does.
"""

from dataclasses import replace
from functools import cached_property

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, Tile, blocks, of_constant
from sim.schedules.parts import registers
from sim.schedules.parts.eager import eager_pass
from sim.schedules.parts.elementwise import elementwise, in_order
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.top_k import INDEX_BYTES, sort_kernel, top_k_kernel
from sim.schedules.parts.vertical_slash import BLOCK, FORCED, Heads, Lines
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

PIECE = 256  # columns that a CTA of the passes over P takes: an estimate
POSITION_BYTES = 8  # of torch.topk's int64


class LastQueries:
    """The choice for some heads; `verticals` and `slashes` are what it finds."""

    def __init__(
        self, w: AttentionWorkload, heads: Heads, lines: Lines, q: Tensor, k: Tensor
    ) -> None:
        self.w, self.heads, self.q, self.k = w, heads, q, k
        self.rows = w.seq_q - (blocks(w.seq_q, BLOCK) - 1) * BLOCK  # of the last block
        self.scores = self._matrix("S", w.dtype_bytes)
        self.p = self._matrix("P", STATISTICS_BYTES)
        self.verticals = self._row("verticals", len(lines.verticals), INDEX_BYTES)
        self.slashes = self._row("slashes", len(lines.slashes), INDEX_BYTES)

    def passes(self) -> list[Kernel]:
        """From the last queries to both lists, each pass over P once."""
        columns, diagonals = self._sums
        padded = replace(self.p, name="padded P")
        return [
            self._scores_kernel(self.heads),
            self._softmax_kernel(self.scores),
            _column_pass("sum columns", self.p, columns),
            top_k_kernel("choose verticals", columns, self.verticals),
            _column_pass("pad P", self.p, padded),
            _column_pass("sum diagonals", padded, diagonals),
            top_k_kernel("choose slashes", diagonals, self.slashes),
        ]

    def launches(self, heads: Heads) -> list[list[Kernel]]:
        """The same for one of as many heads, every kernel that PyTorch launches for it.

        In two parts: between them the host waits for its copy of zeros.
        """
        first, then = self._after_scores
        return [[self._scores_kernel(heads), *first], then]

    @cached_property
    def _after_scores(self) -> tuple[list[Kernel], list[Kernel]]:
        """What touches nothing but what heads have in common; the lists are sorted last."""
        scaled, padded = replace(self.scores, name="S / sqrt(d)"), replace(self.p, name="padded P")
        columns, diagonals = self._sums
        corner = Tensor("last columns of S", self.heads.count, self.rows, BLOCK, self.w.dtype_bytes)
        zeros = Tensor("zeros beside P", self.heads.count, self.rows, BLOCK, STATISTICS_BYTES)
        first = [
            eager_pass("scale", [self.scores], [scaled]),
            eager_pass("mask", [corner], [corner]),
            eager_pass("put mask back", [corner], [corner]),
            self._softmax_kernel(scaled),
            _column_pass("sum columns", self.p, columns),
            *self._chosen(columns, self.verticals),
            eager_pass("zeros", [], [zeros]),
        ]
        then = [
            _column_pass("pad P", self.p, padded),
            _column_pass("sum diagonals", padded, diagonals),
            *self._chosen(diagonals, self.slashes),
            eager_pass("distances", [self.slashes], [self.slashes]),
            *self._sorted(self.verticals),
            *self._sorted(self.slashes),
        ]
        return first, then

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor]:
        cols = self.w.seq_kv
        return (
            self._row("sums of columns", cols, STATISTICS_BYTES),
            self._row("sums of diagonals", cols, STATISTICS_BYTES),
        )

    def _matrix(self, name: str, element_bytes: int) -> Tensor:
        return Tensor(name, self.heads.count, self.rows, self.w.seq_kv, element_bytes)

    def _row(self, name: str, cols: int, element_bytes: int) -> Tensor:
        return Tensor(name, self.heads.count, 1, cols, element_bytes)

    def _chosen(self, sums: Tensor, found: Tensor) -> list[Kernel]:
        """Some lines forced, the best chosen, and these in the order of their sums."""
        forced = self._row(f"forced {found.name}", FORCED[found.name], STATISTICS_BYTES)
        best = self._row(f"best {sums.name}", found.cols, STATISTICS_BYTES)
        return [
            eager_pass(f"force {found.name}", [], [forced]),
            top_k_kernel(f"choose {found.name}", sums, found),
            sort_kernel(f"order {found.name}", best, found),
        ]

    def _sorted(self, found: Tensor) -> list[Kernel]:
        positions = self._row(f"positions of {found.name}", found.cols, POSITION_BYTES)
        return [
            eager_pass(f"{found.name} to int32", [found], [found]),
            sort_kernel(f"sort {found.name}", found, positions),
        ]

    def _scores_kernel(self, heads: Heads) -> Kernel:
        """The last block of queries times all keys; the tile is an estimate of cuBLAS's."""
        w, scores = self.w, self.scores
        tile, down = Tile(q=BLOCK, kv=128), blocks(w.seq_q, BLOCK)
        across = blocks(w.seq_kv, tile.kv)
        grid = Grid(across, heads.count)  # key blocks, heads

        def last_q_tile(items: IntArray) -> IntArray:
            return heads.q(grid.at(items)[1]) * down + down - 1

        def k_tile(items: IntArray) -> IntArray:
            block, head = grid.at(items)
            return heads.kv(head) * across + block

        load_q = Load(Stream(self.q, tile.q, w.head_dim, last_q_tile))
        load_k = Load(Stream(self.k, tile.kv, w.head_dim, k_tile))
        loaded_bytes = load_q.stream.tile_bytes + load_k.stream.tile_bytes
        multiply = Compute(
            "S = Q K^T",
            (load_q, load_k),
            mma_flops=2 * tile.q * tile.kv * w.head_dim,
            sram_bytes=3 * loaded_bytes,
        )
        return Kernel(
            name="S = Q_last K^T",
            ctas=grid.size,
            periods=heads.count,
            sharing=heads.sharing,
            loops=(
                Loop(once, (load_q, load_k, multiply)),
                Loop(once, (Store(in_order(scores, tile.q, tile.kv)),)),
            ),
            footprint=Footprint(loaded_bytes, 128, registers.SCORES),
        )

    def _softmax_kernel(self, scores: Tensor) -> Kernel:
        """A CTA a row, which it reads for the maximum, for the sum and to write P (SoftMax.cu)."""
        width = min(scores.cols, 4096)
        across = blocks(scores.cols, width)

        def row(items: IntArray) -> IntArray:
            return items * across

        def sweeps(name: str, count: int, exps: int, *stores: Store) -> Loop:
            load = Load(Stream(scores, 1, width, row, table=np.tile(np.arange(across), count)))
            work = Compute(name, (load,), vector_ops=2 * width, exp_count=exps * width)
            return Loop(of_constant(count * across), (load, work, *stores))

        store = Store(Stream(self.p, 1, width, row, 1))
        return Kernel(
            name="P = softmax(S)",
            ctas=scores.groups * scores.rows,
            periods=scores.groups,
            loops=(
                sweeps("maximum", 1, 0),
                sweeps("sum", 1, 1),
                sweeps("normalise", 1, 1, store),
            ),
            footprint=Footprint(0, threads=1024, registers_per_thread=registers.LONG_ROWS),
        )


def _column_pass(name: str, source: Tensor, target: Tensor) -> Kernel:
    """Reads `source` and writes `target` (its sums, if that is one row), PIECE columns a CTA."""
    return elementwise(
        name,
        (in_order(source, source.rows, PIECE),),
        (in_order(target, target.rows, PIECE),),
        vector_ops=2 * source.rows * PIECE,
        footprint=Footprint(0, threads=256, registers_per_thread=registers.ELEMENTWISE),
    )
