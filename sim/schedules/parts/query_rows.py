"""Query rows as the kernels of FlashAttention-3 and -4 cut them, and the keys that they visit."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import QKVO, STATISTICS_BYTES, Tile, blocks, kv_matrix, matrix_sizes
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.results import Result
from sim.schedules.parts.traversal import LAST_TO_FIRST, Direction
from sim.tile_program import IntArray, OfItem, Stream, Tensor

O_ELEMENT_BYTES = 2  # O of fp8 inputs is bf16


@dataclass(frozen=True)
class QueryRows:
    """The query rows as a kernel cuts them, and the key blocks that each block of them visits.

    With `packed` > 1 (PackGQA) so many query heads, those of a KV head, are rows of one matrix,
    the heads of a query together. With several `splits` a tile is a block of rows with a range of
    the keys that it sees, each a like share of its key blocks, of which the last may have none.
    Tiles are numbered block by block, then range, then head, then sequence; where sequences differ,
    in length or in `splits_each`, as if all were the largest. Key blocks of a tile that counts them
    `from_first_key` begin at the first key that it sees, before which K and V of a sequence of one
    block of rows have nothing that is touched. Of several blocks, which begin at keys of their own,
    as many key blocks are taken to lie where those counted from key 0 do: what a tile brings is off
    by less than a block.
    """

    w: AttentionWorkload
    tile: Tile
    packed: int
    splits_each: tuple[int, ...] = ()  # of each sequence; none: 1
    from_first_key: bool = False

    @property
    def splits(self) -> int:
        """Ranges of the sequence that has most."""
        return max(self.splits_each, default=1)

    @property
    def of_each(self) -> tuple[int, ...]:
        """Ranges of each sequence."""
        return self.splits_each or (1,) * self.w.batch

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

    def is_split(self, tiles: IntArray) -> IntArray:
        """1 where a tile is a range of several of its rows."""
        splits = np.array(self.of_each)[self.grid.at(tiles)[1] // self.of_a_sequence]
        several: IntArray = (splits > 1).astype(np.int64)
        return several

    def q_tile(self, tiles: IntArray) -> IntArray:
        """The tile of Q, and of O, of each of these tiles."""
        row, matrix = self.grid.at(tiles)
        return matrix * self.down + row % self.down

    def stored_tile(self, tiles: IntArray) -> IntArray:
        """The tile of O, or of the partial results of the ranges, one range after the other."""
        number = self.grid.at(tiles)[0] // self.down  # of the range
        return number * self.matrices * self.down + self.q_tile(tiles)

    @property
    def of_a_sequence(self) -> int:
        """Matrices of a sequence."""
        return self.matrices // self.w.batch

    @cached_property
    def are_alike(self) -> bool:
        """Whether all sequences have the same tiles."""
        return self.w.lengths is None and len(set(self.splits_each)) <= 1

    @cached_property
    def _each(self) -> list[tuple[AttentionWorkload, int]]:
        """Each sequence and its splits; where all are alike just one."""
        every = list(zip(self.w.sequences, self.of_each, strict=True))
        return every[:1] if self.are_alike else every

    def place(self, tiles: IntArray) -> IntArray:
        """Where each tile stands in `visited`."""
        row, matrix = self.grid.at(tiles)
        if self.are_alike:
            return row
        return matrix // self.of_a_sequence * (self.down * self.splits) + row

    @cached_property
    def is_there(self) -> NDArray[np.bool_]:
        """Which tiles a sequence has, ordered as `visited`."""
        there = np.zeros((len(self._each), self.splits, self.down), bool)
        for own, (w, splits) in zip(there, self._each, strict=True):
            own[:splits, : blocks(w.seq_q * self.packed, self.tile.q)] = True
        return there.ravel()

    @cached_property
    def visited(self) -> tuple[IntArray, IntArray]:
        """The first key block that each tile has and the end, sequence by sequence.

        Of those that are alike just one's: of each range, for each block of rows.
        """
        sides = np.zeros((2, len(self._each), self.splits, self.down), np.int64)
        found: dict[tuple[int, int, int], tuple[IntArray, IntArray]] = {}
        for number, (w, splits) in enumerate(self._each):
            key = (w.seq_q, w.seq_kv, splits)
            if key not in found:
                found[key] = self._visited_of(w, splits)
            down = found[key][0].shape[1]
            sides[:, number, :splits, :down] = found[key]
        return sides[0].ravel(), sides[1].ravel()

    def _visited_of(self, w: AttentionWorkload, splits: int) -> tuple[IntArray, IntArray]:
        """Of one sequence: arrays of (ranges, blocks of rows)."""
        top, last = self._edges(w)
        low, high = w.visible_ranges(top, last)
        beyond = self._beyond(low)
        first, end = (low - beyond) // self.tile.kv, -(-(high - beyond) // self.tile.kv)
        share = -(-(end - first) // splits)
        firsts = first + np.arange(splits)[:, None] * share
        return np.minimum(firsts, end), np.minimum(firsts + share, end)

    def cut_share(self, least: int = 0) -> float:
        """Of the visited key blocks those that a mask's edge cuts; of a tile's at least so many."""
        return self._cut(0, least)

    @cached_property
    def masked_share(self) -> float:
        """Of the visited key blocks, but for each tile's first, those that a mask's edge cuts."""
        return self._cut(1, 0)

    def _cut(self, skipped: int, least: int) -> float:
        whole = masked = 0
        tables = (side.reshape(len(self._each), self.splits, self.down) for side in self.visited)
        for (w, splits), *own in zip(self._each, *tables, strict=True):
            top, last = self._edges(w)
            beyond = self._beyond(w.visible_ranges(top, last)[0])
            begin, end = (side[:splits, : len(top)] for side in own)
            # keys that all rows of a tile see: from the last's first to the first's last
            low, high = (
                w.visible_ranges(row, row)[side] - beyond for side, row in enumerate((last, top))
            )
            trips = np.maximum(0, end - begin - skipped)
            uncut = np.minimum(high // self.tile.kv, end - skipped)
            uncut = uncut - np.maximum(-(-low // self.tile.kv), begin)
            cut = np.minimum(np.maximum(trips - uncut.clip(0, trips), least), trips)
            masked += int(cut.sum())
            whole += int(trips.sum())
        return masked / whole if whole else 0.0

    def _edges(self, w: AttentionWorkload) -> tuple[IntArray, IntArray]:
        """The first and the last query of each block of rows of a sequence."""
        rows = w.seq_q * self.packed
        top = np.arange(0, rows, self.tile.q, dtype=np.int64)
        last = np.minimum(top + self.tile.q, rows) - 1
        return top // self.packed, last // self.packed

    def _beyond(self, low: IntArray) -> IntArray:
        """By how much the first key of a tile lies beyond the block that is counted for it."""
        if not self.from_first_key:
            return np.zeros_like(low)
        return low if len(low) == 1 else low % self.tile.kv

    @cached_property
    def first_keys(self) -> IntArray:
        """The key of each sequence at which the first of its key blocks begins."""
        firsts = np.zeros(self.w.batch, np.int64)
        lows = (w.visible_ranges(*self._edges(w))[0] for w, _ in self._each)
        firsts[:] = [self._beyond(low)[0] if len(low) == 1 else 0 for low in lows]
        return firsts

    def key_blocks(self, tiles: IntArray) -> IntArray:
        """How many key blocks each of these tiles visits."""
        first, end = self.visited
        trips: IntArray = np.maximum(end - first, 0)
        return trips[self.place(tiles)]

    def tensors(self) -> tuple[QKVO, Tensor]:
        """Q, K, V and O, and the log-sum-exp, in HBM."""
        w, of_q = self.w, (self.matrices, self.rows)
        keys = np.array(w.keys) - self.first_keys
        of_kv, size = (w.batch * w.kv_heads, int(keys.max())), w.dtype_bytes
        before = self.first_keys.repeat(w.kv_heads) if self.first_keys.any() else None

        def of_keys(cols: int) -> tuple[IntArray | None, IntArray | None]:
            return matrix_sizes(keys.tolist(), cols, w.kv_heads), before

        d, d_v = w.head_dim, w.value_columns
        return (
            QKVO(
                Tensor("Q", *of_q, d, size, "input", "query", self.sizes(d)),
                Tensor("K", *of_kv, d, size, "input", "key", *of_keys(d)),
                Tensor("V", *of_kv, d_v, size, "input", "value", *of_keys(d_v)),
                Tensor("O", *of_q, d_v, O_ELEMENT_BYTES, "output", "result", self.sizes(d_v)),
            ),
            Tensor("LSE", *of_q, 1, STATISTICS_BYTES, "output", "statistics", self.sizes(1)),
        )

    def sizes(self, cols: int) -> IntArray | None:
        """Sizes of the matrices of query rows, of so many columns."""
        rows = [queries * self.packed for queries in self.w.queries]
        return matrix_sizes(rows, cols, self.of_a_sequence)

    def partial(self) -> Result:
        """Room for the partial results of sequences in several ranges."""
        cols = self.w.value_columns
        o = (self.splits * self.matrices, self.rows, cols)
        lse = (self.matrices, self.splits, self.rows)
        if self.are_alike:
            sizes = lse_sizes = None
        else:
            rows = np.array(self.w.queries) * self.packed
            each = np.array(self.of_each)
            splits = np.where(each > 1, each, 0)
            rows, splits = (side.repeat(self.of_a_sequence) for side in (rows, splits))
            in_range = rows * (np.arange(self.splits)[:, None] < splits)
            sizes = np.stack([in_range.ravel(), np.full(o[0], cols)], axis=1)
            lse_sizes = np.stack([splits, rows], axis=1)
        return Result(
            Tensor("O of splits", *o, STATISTICS_BYTES, role="partial", sizes=sizes),
            Tensor("LSE of splits", *lse, STATISTICS_BYTES, role="partial", sizes=lse_sizes),
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
        across = blocks(tensor.rows, self.tile.kv)
        begin = way.first_visited(*self.visited) + way.stride * skipped

        def part(items: IntArray) -> IntArray:
            tile = tiles(items)
            matrix = self.grid.at(tile)[1]
            first = kv_matrix(self.w, matrix * self.packed) * across
            return (first + begin[self.place(tile)]) * shared_by + tile % shared_by

        cols = blocks(tensor.cols, shared_by)
        return Stream(tensor, self.tile.kv, cols, part, way.stride * shared_by)
