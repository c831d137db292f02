"""MInference: sparse prefill along vertical and slash lines that the last queries point to.

    S = Q_last K^T;  P = softmax(S)       the last block of 64 queries against all keys
    verticals = the `vertical` keys of highest column sums of P
    slashes = the `slash` distances (query - key) of highest diagonal sums of P
    "build index"      for each block of 64 query rows (one thread): merge the two sorted lists in
                       key blocks that a slash crosses, and verticals that no such block has
    "sparse attention" for each block of 64 query rows, of each head (one CTA):
                           load Q_i
                           for each of its key blocks: the FlashAttention-2 step
                           for each 64 of its verticals: gather their rows of K and V; the same step
                           store O_i

Source: Jiang et al. 2024 (arXiv 2407.02490), Algorithm 2; microsoft/MInference:
minference/modules/minference_forward.py (vertical_and_slash_kernel, eager PyTorch up to the two
lists; 1,000 verticals and 6,096 slashes where no search has set others: the searched heads of
Llama-3.1 8B mostly have those, or 30 and 800), csrc/vertical_slash_index.cu and
minference/ops/pit_sparse_flash_attention_v2.py (Triton, 64 x 64, 4 warps, 2 stages). The public
patch runs head by head and copies K and V for each query head of a group; here all heads go in one
launch and share K and V.

Which lines matter depends on data. The model here, the same for all heads: the FORCED_VERTICALS
first keys and FORCED_SLASHES least distances, as the public code forces them; the other verticals
anywhere (drawn by `seed`); half of the slashes the least distances, the other half in bands of BAND
at distances anywhere. A slash costs two key blocks if it stands alone, so how far slashes keep
together decides what is saved: bands and halves are estimates.

In the kernel a block's keys begin anywhere; here they are the blocks of K that a slash crosses, at
most one more. All rows of a CTA's verticals are gathered before their steps, where the kernel goes
by 64: other CTAs of the SM fill the time.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count, CountOrNone
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import (
    STATISTICS_BYTES,
    Schedule,
    Tile,
    blocks,
    check_self_attention,
    check_triton_kernel,
    kv_matrix,
    of_constant,
    qkvo,
)
from sim.schedules.parts import registers
from sim.schedules.parts.elementwise import elementwise, in_order
from sim.schedules.parts.ends import begin, finish
from sim.schedules.parts.flash_cta import FlashCta, triton_cta
from sim.schedules.parts.flash_loop import Operand, key_loop
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.top_k import INDEX_BYTES, top_k_kernel
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

BLOCK = 64  # query rows and keys
FORCED_VERTICALS, FORCED_SLASHES = 30, 100
BAND = 64
PIECE = 256  # columns that a CTA of the eager passes takes: an estimate
MERGE_OPS = 8  # lane operations for each number that the index's merge takes: an estimate


class MInference(Schedule):
    """Vertical-slash sparse attention, forward."""

    name: Literal["minference"] = "minference"
    vertical: Count = 1000
    slash: Count = 6096
    seed: CountOrNone = 0

    summary = "prefill along the vertical and slash lines that the last queries point to"
    source = "arXiv 2407.02490; microsoft/MInference"
    phases = ("prefill",)
    masks = ("causal",)

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        check_self_attention(self, w)
        check_triton_kernel(self, w)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Estimation, choice of lines, index and sparse attention."""
        lines = self.lines(w.seq_kv)
        q, k, v, o = qkvo(w)
        rows = w.seq_q - (blocks(w.seq_q, BLOCK) - 1) * BLOCK  # of the last block
        scores = Tensor("S", q.groups, rows, w.seq_kv, w.dtype_bytes)
        p = Tensor("P", q.groups, rows, w.seq_kv, STATISTICS_BYTES)
        padded = replace(p, name="padded P")
        sums = [
            Tensor(f"sums of {of}", q.groups, 1, w.seq_kv, STATISTICS_BYTES)
            for of in ("columns", "diagonals")
        ]
        verticals = Tensor("verticals", q.groups, 1, len(lines.verticals), INDEX_BYTES)
        slashes = Tensor("slashes", q.groups, 1, len(lines.slashes), INDEX_BYTES)
        return [
            _scores_kernel(w, q, k, scores),
            _softmax_kernel(scores, p),
            _column_pass("sum columns", p, sums[0]),
            top_k_kernel("choose verticals", sums[0], verticals),
            _column_pass("pad P", p, padded),
            _column_pass("sum diagonals", padded, sums[1]),
            top_k_kernel("choose slashes", sums[1], slashes),
            _index_kernel(w, verticals, slashes, lines),
            _attention_kernel(w, hw, lines, (q, k, v, o)),
        ]

    def lines(self, length: int) -> "Lines":
        """The verticals and slashes of a sequence of so many tokens, ascending."""
        rng = np.random.default_rng(self.seed)
        count = min(length, max(self.vertical, FORCED_VERTICALS))
        forced = min(length, FORCED_VERTICALS)
        others = forced + rng.choice(length - forced, count - forced, replace=False)
        verticals = np.concatenate([np.arange(forced), np.sort(others)])
        count = min(length, max(self.slash, FORCED_SLASHES))
        near = min(count, blocks(max(self.slash // 2, FORCED_SLASHES), BAND) * BAND)
        bands = blocks(length - near, BAND)
        # One more than needed, as the farthest may be cut.
        drawn = rng.choice(bands, min(bands, blocks(count - near, BAND) + 1), replace=False)
        far = (near + drawn[:, None] * BAND + np.arange(BAND)).ravel()
        far = np.sort(far[far < length][: count - near])
        slashes = np.concatenate([np.arange(near), far])
        return Lines(verticals, slashes)


class Lines:
    """Verticals (keys) and slashes (distances), and what of them a block of query rows visits.

    Block r of query rows visits the key blocks r - b for all `behind` b up to r, and the columns
    columns[starts[r]:starts[r + 1]].
    """

    def __init__(self, verticals: IntArray, slashes: IntArray) -> None:
        self.verticals, self.slashes = verticals, slashes
        # A slash that is no multiple of a block crosses two.
        self.behind: IntArray = np.unique(
            np.concatenate([slashes // BLOCK, blocks_up(slashes, BLOCK)])
        )

    def key_blocks(self, row: IntArray) -> IntArray:
        """How many key blocks each block of query rows visits."""
        return np.searchsorted(self.behind, row, side="right").astype(np.int64)

    def columns(self, rows: int) -> tuple[IntArray, IntArray]:
        """The columns of the blocks of query rows 0 to rows - 1, and where each block's begin."""
        apart = np.arange(rows)[:, None] - self.verticals // BLOCK
        visited = np.zeros(rows, bool)
        visited[self.behind[self.behind < rows]] = True
        kept: NDArray[np.bool_] = (apart >= 0) & ~visited[np.maximum(apart, 0)]
        starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64)
        return np.broadcast_to(self.verticals, kept.shape)[kept], starts


def blocks_up(lengths: IntArray, size: int) -> IntArray:
    """How many blocks of `size` cover each length."""
    return -(-lengths // size)


def _scores_kernel(w: AttentionWorkload, q: Tensor, k: Tensor, scores: Tensor) -> Kernel:
    """The last block of queries times all keys; the tile is an estimate of cuBLAS's."""
    tile, down = Tile(q=BLOCK, kv=128), blocks(w.seq_q, BLOCK)
    across = blocks(w.seq_kv, tile.kv)
    grid = Grid(across, q.groups)  # key blocks, matrices

    def last_q_tile(items: IntArray) -> IntArray:
        _, matrix = grid.at(items)
        return matrix * down + down - 1

    def k_tile(items: IntArray) -> IntArray:
        block, matrix = grid.at(items)
        return kv_matrix(w, matrix) * across + block

    load_q = Load(Stream(q, tile.q, w.head_dim, last_q_tile))
    load_k = Load(Stream(k, tile.kv, w.head_dim, k_tile))
    multiply = Compute(
        "S = Q K^T",
        (load_q, load_k),
        mma_flops=2 * tile.q * tile.kv * w.head_dim,
        sram_bytes=3 * (load_q.stream.tile_bytes + load_k.stream.tile_bytes),
    )
    return Kernel(
        name="S = Q_last K^T",
        ctas=grid.size,
        periods=q.groups,
        sharing=w.heads // w.kv_heads,
        loops=(
            Loop(once, (load_q, load_k, multiply)),
            Loop(once, (Store(in_order(scores, tile.q, tile.kv)),)),
        ),
        footprint=Footprint(
            load_q.stream.tile_bytes + load_k.stream.tile_bytes, 128, registers.SCORES
        ),
    )


def _softmax_kernel(scores: Tensor, p: Tensor) -> Kernel:
    """A CTA a row, which it reads for the maximum, for the sum and to write P (SoftMax.cu)."""
    width = min(scores.cols, 4096)
    across = blocks(scores.cols, width)

    def row(items: IntArray) -> IntArray:
        return items * across

    def sweeps(name: str, count: int, exps: int, *stores: Store) -> Loop:
        load = Load(Stream(scores, 1, width, row, table=np.tile(np.arange(across), count)))
        work = Compute(name, (load,), vector_ops=2 * width, exp_count=exps * width)
        return Loop(of_constant(count * across), (load, work, *stores))

    store = Store(Stream(p, 1, width, row, 1))
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


def _index_kernel(w: AttentionWorkload, verticals: Tensor, slashes: Tensor, lines: Lines) -> Kernel:
    """A thread a block of query rows, BLOCK threads a CTA; all walk both lists at one pace.

    Tables of blocks and of columns are as wide as the longest row.
    """
    down = blocks(w.seq_q, BLOCK)
    grid = Grid(blocks(down, BLOCK), verticals.groups)
    most = int(lines.key_blocks(np.array([down - 1]))[0])
    tables = (
        Tensor("key blocks", verticals.groups, down, most, INDEX_BYTES),
        Tensor("columns", verticals.groups, down, verticals.cols, INDEX_BYTES),
    )

    def walk(numbers: Tensor) -> Loop:
        first = Stream(numbers, 1, 1, lambda items: grid.at(items)[1] * numbers.cols, 1)
        load = Load(first, stages=BLOCK)
        merge = Compute(f"merge {numbers.name}", (load,), vector_ops=BLOCK * MERGE_OPS)
        return Loop(of_constant(numbers.cols), (load, merge))

    stores = (Store(in_order(table, BLOCK)) for table in tables)
    return Kernel(
        name="build index",
        ctas=grid.size,
        periods=verticals.groups,
        loops=(walk(verticals), walk(slashes), Loop(once, tuple(stores))),
        footprint=Footprint(0, threads=BLOCK, registers_per_thread=registers.INDEX),
    )


def _attention_kernel(
    w: AttentionWorkload,
    hw: HardwareProfile,
    lines: Lines,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
) -> Kernel:
    q, k, v, o = tensors
    grid = Grid(blocks(w.seq_q, BLOCK), q.groups)  # blocks of query rows, matrices
    cta = triton_cta(w, hw, Tile(q=BLOCK, kv=BLOCK), warps=4, stages=2)
    load_q = Load(in_order(q, BLOCK))
    q_bytes = load_q.stream.tile_bytes
    return Kernel(
        name="sparse attention",
        ctas=grid.size,
        periods=q.groups,
        sharing=w.heads // w.kv_heads,
        loops=(
            begin("Q", load_q, sram_bytes=q_bytes),
            _slash_loop(w, cta, lines, grid, q_bytes, (k, v)),
            *_vertical_loops(w, cta, lines, grid, q_bytes, (k, v)),
            finish(BLOCK * w.head_dim, in_order(o, BLOCK), sram_bytes=2 * q_bytes),
        ),
        footprint=cta.footprint(w),
        tensor_path=cta.tensor_path,
    )


def _slash_loop(
    w: AttentionWorkload,
    cta: FlashCta,
    lines: Lines,
    grid: Grid,
    q_bytes: int,
    kv: tuple[Tensor, Tensor],
) -> Loop:
    """The key blocks that slashes cross."""

    def key_block(items: IntArray) -> IntArray:
        row, matrix = grid.at(items)
        return kv_matrix(w, matrix) * grid.sides[0] + row

    k, v = (
        Operand((Stream(tensor, BLOCK, w.head_dim, key_block, table=-lines.behind),))
        for tensor in kv
    )
    return key_loop(w, cta, lambda items: lines.key_blocks(grid.at(items)[0]), q_bytes, k, v)


def _vertical_loops(
    w: AttentionWorkload,
    cta: FlashCta,
    lines: Lines,
    grid: Grid,
    q_bytes: int,
    kv: tuple[Tensor, Tensor],
) -> tuple[Loop, Loop]:
    """The gathering of the verticals that no such block has, and the steps over them."""
    columns, starts = lines.columns(grid.sides[0])

    def column_count(items: IntArray) -> IntArray:
        return np.diff(starts)[grid.at(items)[0]]

    k_row, v_row = (
        Load(
            Stream(
                tensor,
                1,
                w.head_dim,
                lambda items: kv_matrix(w, grid.at(items)[1]) * w.seq_kv,
                table=columns,
                start=lambda items: starts[grid.at(items)[0]],
            ),
            BLOCK * cta.stages,
        )
        for tensor in kv
    )
    gathered = Operand(())
    return (
        Loop(column_count, (k_row, v_row, Compute("gather", (k_row, v_row)))),
        key_loop(
            w,
            cta,
            lambda items: blocks_up(column_count(items), BLOCK),
            q_bytes,
            gathered,
            gathered,
        ),
    )
