"""Query rows as the kernels of FlashAttention-3 and -4 cut them, and the keys that they visit."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import QKVO, STATISTICS_BYTES, Tile, blocks, kv_matrix
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.traversal import LAST_TO_FIRST, Direction
from sim.tile_program import IntArray, OfItem, Stream, Tensor

O_ELEMENT_BYTES = 2  # O of fp8 inputs is bf16


@dataclass(frozen=True)
class QueryRows:
    """The query rows as a kernel cuts them, and the key blocks that each block of them visits.

    With `packed` > 1 (PackGQA) so many query heads, those of a KV head, are rows of one matrix,
    the heads of a query together. With several `splits` a tile is a block of rows with a range of
    the keys that it sees, each a like share of its key blocks, of which the last may have none.
    Tiles are numbered block by block, then range, then head, then sequence.
    """

    w: AttentionWorkload
    tile: Tile
    packed: int
    splits: int = 1

    @property
    def matrices(self) -> int:
        """Matrices of query rows."""
        return self.w.batch * self.w.heads // self.packed

    @property
    def rows(self) -> int:
        """Query rows of a matrix."""
        return self.w.seq_q * self.packed

    @property
    def down(self) -> int:
        """Blocks of query rows of a matrix."""
        return blocks(self.rows, self.tile.q)

    @property
    def sharing(self) -> int:
        """Matrices that share K and V."""
        return self.matrices // (self.w.batch * self.w.kv_heads)

    @property
    def grid(self) -> Grid:
        """Tiles: (blocks of query rows, range after range; matrices)."""
        return Grid(self.down * self.splits, self.matrices)

    def q_tile(self, tiles: IntArray) -> IntArray:
        """The tile of Q, and of O, of each of these tiles."""
        row, matrix = self.grid.at(tiles)
        return matrix * self.down + row % self.down

    def stored_tile(self, tiles: IntArray) -> IntArray:
        """The tile of O, or of the partial results of the ranges, one range after the other."""
        number = self.grid.at(tiles)[0] // self.down
        return number * self.matrices * self.down + self.q_tile(tiles)

    @cached_property
    def visited(self) -> tuple[IntArray, IntArray]:
        """For each block and range of a matrix, the first key block that it has and the end."""
        top = range(0, self.rows, self.tile.q)
        ranges = [
            self.w.visible_keys(
                row // self.packed, (min(row + self.tile.q, self.rows) - 1) // self.packed
            )
            for row in top
        ]
        low, high = np.array(ranges, np.int64).T
        first, end = low // self.tile.kv, -(-high // self.tile.kv)
        share = -(-(end - first) // self.splits)
        firsts = np.concatenate([first + number * share for number in range(self.splits)])
        ends = np.tile(end, self.splits)
        return np.minimum(firsts, ends), np.minimum(firsts + np.tile(share, self.splits), ends)

    @cached_property
    def masked_share(self) -> float:
        """Of the visited key blocks, but for each tile's first, those that a mask's edge cuts."""
        whole = masked = 0
        top = range(0, self.rows, self.tile.q)
        for begin, end, row in zip(*self.visited, [*top] * self.splits, strict=True):
            last = min(row + self.tile.q, self.rows) - 1
            _, high = self.w.visible_keys(row // self.packed, row // self.packed)
            low, _ = self.w.visible_keys(last // self.packed, last // self.packed)
            trips = max(0, int(end - begin) - 1)
            uncut = min(high // self.tile.kv, int(end) - 1)
            uncut -= max(-(-low // self.tile.kv), int(begin))
            masked += trips - min(trips, max(0, uncut))
            whole += trips
        return masked / whole if whole else 0.0

    def key_blocks(self, tiles: IntArray) -> IntArray:
        """How many key blocks each of these tiles visits."""
        first, end = self.visited
        trips: IntArray = np.maximum(end - first, 0)
        return trips[self.grid.at(tiles)[0]]

    def tensors(self) -> tuple[QKVO, Tensor]:
        """Q, K, V and O, and the log-sum-exp, in HBM."""
        w, matrices, rows = self.w, self.matrices, self.rows
        kv_matrices = w.batch * w.kv_heads
        return (
            QKVO(
                Tensor("Q", matrices, rows, w.head_dim, w.dtype_bytes, "input", "query"),
                Tensor("K", kv_matrices, w.seq_kv, w.head_dim, w.dtype_bytes, "input", "key"),
                Tensor("V", kv_matrices, w.seq_kv, w.head_dim, w.dtype_bytes, "input", "value"),
                Tensor("O", matrices, rows, w.head_dim, O_ELEMENT_BYTES, "output", "result"),
            ),
            Tensor("LSE", matrices, rows, 1, STATISTICS_BYTES, "output", "statistics"),
        )

    def keys_of(
        self,
        tensor: Tensor,
        tiles: OfItem,
        skipped: int,
        shared_by: int,
        way: Direction = LAST_TO_FIRST,
    ) -> Stream:
        """K's or V's blocks that each item's tile visits, all but so many of the first.

        A block that a cluster of CTAs shares comes in as many parts, one by each: here by columns.
        """
        across = blocks(self.w.seq_kv, self.tile.kv)
        begin = way.first_visited(*self.visited) + way.stride * skipped

        def part(items: IntArray) -> IntArray:
            tile = tiles(items)
            row, matrix = self.grid.at(tile)
            first = kv_matrix(self.w, matrix * self.packed) * across
            return (first + begin[row]) * shared_by + tile % shared_by

        cols = blocks(self.w.head_dim, shared_by)
        return Stream(tensor, self.tile.kv, cols, part, way.stride * shared_by)
