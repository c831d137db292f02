"""MInference's lines, their index, and the kernel that attends along them.

    "build index"      for each block of 64 query rows (one thread): merge the two sorted lists in
                       ranges of 64 keys that slashes cross, and verticals that no range has
    "sparse attention" for each block of 64 query rows (one CTA):
                           load Q_i
                           for each of its ranges of keys: the FlashAttention-2 step
                           for each 64 of its verticals: gather their rows of K and V; the same step
                           store O_i

Source: microsoft/MInference, csrc/vertical_slash_index.cu (the merge: a range begins 64 keys before
the slash at the block's last row, and grows by 64 while slashes lie within 64 keys of its end) and
minference/ops/pit_sparse_flash_attention_v2.py.

In the kernel a range's keys begin anywhere; here they are the block of K where it begins. All rows
of a CTA's verticals are gathered before their steps, where the kernel goes by 64: other CTAs of the
SM fill the time. A slash that reaches beyond the first key has its range left out.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import QKVO, blocks, check_table, of_constant
from sim.schedules.parts import registers
from sim.schedules.parts.counted import Counted, resident
from sim.schedules.parts.ends import begin, finish
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import Operand, key_loop
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.kv_cache import SECTOR_BYTES
from sim.schedules.parts.top_k import INDEX_BYTES
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

BLOCK = 64  # query rows and keys, and threads of a CTA that builds the index
NUMBERS = SECTOR_BYTES // INDEX_BYTES  # of a list that one read brings to L1
# Of a warp that merges (nvcc 13.0, sm_80): instructions, and the cycles that it takes alone by
# their stall counts and a read of L1 (33 cycles: arXiv 2208.11174, recalled), for each number.
# Lanes of a warp that stand apart in the lists execute both, 10 to 30% more: not modelled.
FORCED = {"verticals": 30, "slashes": 100}  # first keys and least distances, always kept
MERGE = {"verticals": Counted(21, 82 + 33, warps=2), "slashes": Counted(32, 137 + 33, warps=2)}


@dataclass(frozen=True)
class Heads:
    """The heads of sequences that a launch has: `count` matrices of Q from `first` on.

    `sharing` of them in a row have the same K and V, the first those of matrix `first_kv`.
    """

    count: int
    first: int = 0
    first_kv: int = 0
    sharing: int = 1

    def q(self, number: IntArray) -> IntArray:
        """The matrix of Q, and of O, of each of the launch's heads."""
        return self.first + number

    def kv(self, number: IntArray) -> IntArray:
        """The matrix of K, and of V."""
        return self.first_kv + number // self.sharing


class Lines:
    """Verticals (keys) and slashes (distances), and what of them a block of query rows visits.

    Block r of query rows visits the key blocks r - b for all `behind` b up to r, and the columns
    columns[starts[r]:starts[r + 1]]; there are `rows` such blocks.
    """

    def __init__(self, verticals: IntArray, slashes: IntArray, rows: int) -> None:
        """Raises InputError where the columns would be too many."""
        check_table("minference", rows * len(verticals))
        self.verticals, self.slashes, self.rows = verticals, slashes, rows
        self.behind = np.sort(blocks_up(_begins(slashes), BLOCK)) - 1

    def key_blocks(self, row: IntArray) -> IntArray:
        """How many key blocks each block of query rows visits."""
        return np.searchsorted(self.behind, row, side="right").astype(np.int64)

    @cached_property
    def columns(self) -> tuple[IntArray, IntArray]:
        """The columns of all blocks of query rows, and where each block's begin."""
        apart = np.arange(self.rows)[:, None] - self.verticals // BLOCK
        visited = np.zeros(self.rows, bool)
        visited[self.behind[self.behind < self.rows]] = True
        kept: NDArray[np.bool_] = (apart >= 0) & ~visited[np.maximum(apart, 0)]
        starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64)
        return np.broadcast_to(self.verticals, kept.shape)[kept], starts


def _begins(slashes: IntArray) -> IntArray:
    """How far before the end of a block of query rows each range of BLOCK keys begins."""
    begins: list[int] = []
    end = -np.inf  # of the last range, counted from the end of the block of query rows
    for last in (-np.sort(slashes)[::-1]).tolist():
        if last > end + BLOCK:
            begins.append(BLOCK - last)
            end = last
        elif last > end:
            begins.append(int(-end))
            end += BLOCK
    return np.array(begins, np.int64)


def blocks_up(lengths: IntArray, size: int) -> IntArray:
    """How many blocks of `size` cover each length."""
    return -(-lengths // size)


def index_tables(w: AttentionWorkload, lines: Lines, heads: Heads) -> tuple[Tensor, Tensor]:
    """Room for the key blocks and the columns of each block of query rows: all that there are."""
    down = blocks(w.seq_q, BLOCK)
    return (
        Tensor("key blocks", heads.count, down, len(lines.slashes), INDEX_BYTES),
        Tensor("columns", heads.count, down, len(lines.verticals), INDEX_BYTES),
    )


def index_kernel(
    hw: HardwareProfile,
    lists: tuple[Tensor, Tensor],
    lines: Lines,
    tables: tuple[Tensor, Tensor],
) -> Kernel:
    """A thread a block of query rows; all of a CTA walk both lists at one pace.

    Every row is taken to have as many key blocks and columns as the longest.
    """
    key_blocks, columns = tables
    down = key_blocks.rows
    grid = Grid(blocks(down, BLOCK), key_blocks.groups)
    footprint = Footprint(0, threads=BLOCK, registers_per_thread=registers.INDEX)
    together = resident(footprint, grid.size, hw)

    def walk(numbers: Tensor) -> Loop:
        trips = blocks(numbers.cols, NUMBERS)
        load = Load(Stream(numbers, 1, NUMBERS, lambda items: grid.at(items)[1] * trips, 1))
        counted = MERGE[numbers.name].times(NUMBERS)
        merge = counted.compute(f"merge {numbers.name}", (load,), hw, together)
        return Loop(of_constant(trips), (load, merge))

    def first_columns(table: Tensor, cols: int) -> Store:
        width = min(cols, table.cols)
        across = blocks(table.cols, width)
        return Store(Stream(table, BLOCK, width, lambda items: items * across))

    most = int(lines.key_blocks(np.array([down - 1]))[0])
    stores = (first_columns(key_blocks, most), first_columns(columns, columns.cols))
    return Kernel(
        name="build index",
        ctas=grid.size,
        periods=key_blocks.groups,
        loops=(*map(walk, lists), Loop(once, stores)),
        footprint=footprint,
    )


@dataclass(frozen=True, eq=False)
class SparseAttention:
    """The kernel over the lines of some heads."""

    w: AttentionWorkload
    cta: FlashCta
    lines: Lines
    heads: Heads

    @property
    def grid(self) -> Grid:
        """(blocks of query rows, heads)."""
        return Grid(blocks(self.w.seq_q, BLOCK), self.heads.count)

    def kernel(self, tensors: QKVO) -> Kernel:
        """It, on Q, K, V and O."""
        q, k, v, o = tensors
        grid, down = self.grid, self.grid.sides[0]

        def rows(items: IntArray) -> IntArray:
            row, head = grid.at(items)
            return self.heads.q(head) * down + row

        def of_rows(tensor: Tensor) -> Stream:
            return Stream(tensor, BLOCK, self.w.head_dim, rows)

        q_bytes = of_rows(q).tile_bytes
        return Kernel(
            name="sparse attention",
            ctas=grid.size,
            periods=self.heads.count,
            sharing=self.heads.sharing,
            loops=(
                begin("Q", Load(of_rows(q)), sram_bytes=q_bytes),
                self._slash_loop(q_bytes, (k, v)),
                *self._vertical_loops(q_bytes, (k, v)),
                finish(BLOCK * self.w.head_dim, of_rows(o), sram_bytes=2 * q_bytes),
            ),
            footprint=self.cta.footprint(self.w),
            tensor_path=self.cta.tensor_path,
        )

    def _slash_loop(self, q_bytes: int, kv: tuple[Tensor, Tensor]) -> Loop:
        """The key blocks that slashes cross."""
        grid, lines = self.grid, self.lines

        def key_block(items: IntArray) -> IntArray:
            row, head = grid.at(items)
            return self.heads.kv(head) * grid.sides[0] + row

        k, v = (
            Operand((Stream(tensor, BLOCK, self.w.head_dim, key_block, table=-lines.behind),))
            for tensor in kv
        )

        def trips(items: IntArray) -> IntArray:
            return lines.key_blocks(grid.at(items)[0])

        return key_loop(self.w, self.cta, trips, q_bytes, k, v)

    def _vertical_loops(self, q_bytes: int, kv: tuple[Tensor, Tensor]) -> tuple[Loop, Loop]:
        """The gathering of the verticals that no such block has, and the steps over them."""
        w, cta, grid = self.w, self.cta, self.grid
        columns, starts = self.lines.columns

        def column_count(items: IntArray) -> IntArray:
            return np.diff(starts)[grid.at(items)[0]]

        k_row, v_row = (
            Load(
                Stream(
                    tensor,
                    1,
                    w.head_dim,
                    lambda items: self.heads.kv(grid.at(items)[1]) * w.seq_kv,
                    table=columns,
                    start=lambda items: starts[grid.at(items)[0]],
                ),
                BLOCK * cta.stages,
            )
            for tensor in kv
        )
        gathered = Operand(())

        def steps(items: IntArray) -> IntArray:
            return blocks_up(column_count(items), BLOCK)

        return (
            Loop(column_count, (k_row, v_row, Compute("gather", (k_row, v_row)))),
            key_loop(w, cta, steps, q_bytes, gathered, gathered),
        )
