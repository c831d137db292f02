"""Loops over keys in pages: a CTA's range of a sequence's keys, tile after tile, the last first.

    for each tile of tile.kv keys of the range, the last one as long as is left:
        load the numbers of its pages from the sequence's page table
        load K and V from those pages
        as the FlashAttention-2 loop

Only tokens that are there are read, of the last page of a sequence too: FlashAttention's kernels
and FlashInfer's load a row where it is below the end of the range. Page numbers are int32; reading
one reads its sector of 32 bytes. They come with K, unless `loop` has a trip wait for them.

Where pages lie changes nothing that is modelled: a token of a head is whole sectors, and any chunk
can stand anywhere in L2. So a tile is one load, whatever pages it is of, and a range is a matrix of
its own, whose end cuts the last tile. The room that a last page has left is not counted as held.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import blocks
from sim.schedules.parts.flash_loop import Operand
from sim.schedules.parts.kv_cache import (
    PAGE_NUMBERS_A_SECTOR,
    cache_tensors,
    ops_of_making_ready,
    page_numbers,
)
from sim.tile_program import IntArray, Loop, OfItem, Stream

KeyLoop = Callable[[OfItem, Operand, Operand], Loop]  # of so many trips, of K and V


@dataclass(frozen=True, eq=False)
class KeyRanges:
    """Keys low to high - 1 of each sequence in ranges of `length` tokens, its last one of fewer.

    Of a CTA: the `number` of its range, its K/V `matrix`, and the tiles of its range that it
    visits: from number `first` to `end` - 1.
    """

    low: IntArray
    high: IntArray
    length: int
    number: OfItem
    matrix: OfItem
    first: OfItem
    end: OfItem

    @property
    def count(self) -> IntArray:
        """Ranges of each sequence."""
        return -(-(self.high - self.low) // self.length)


def loops_over_pages(
    w: AttentionWorkload, page_size: int, tile_kv: int, ranges: KeyRanges, loop: KeyLoop
) -> list[Loop]:
    """The loop of the CTAs of each sequence's last range, and that of all others if there are.

    A CTA runs one of them, in tiles of `tile_kv` keys. Sizes are powers of two.
    """
    before = ranges.count - 1
    rest = ranges.high - ranges.low - before * ranges.length
    last = _Part(w, page_size, tile_kv, ranges, before, np.ones_like(before), rest, ranges.low)
    parts = [last]
    if before.any():
        whole = np.full_like(rest, ranges.length)
        nothing = np.zeros_like(before)
        parts.insert(0, _Part(w, page_size, tile_kv, ranges, nothing, before, whole, nothing))
    return [loop(part.trips, *part.operands()) for part in parts]


@dataclass(frozen=True, eq=False)
class _Part:
    """`count` ranges of each sequence from number `first` on, of `rows` tokens each.

    Beside them so many `hidden` tokens are held, which a window hides. All are of each sequence.
    """

    w: AttentionWorkload
    page_size: int
    tile_kv: int
    ranges: KeyRanges
    first: IntArray
    count: IntArray
    rows: IntArray
    hidden: IntArray

    def sequence(self, items: IntArray) -> IntArray:
        """The sequence of each CTA."""
        return self.ranges.matrix(items) // self.w.kv_heads

    def number(self, items: IntArray) -> IntArray:
        """Which of these ranges is each CTA's; of another range's CTA any."""
        sequence = self.sequence(items)
        number = self.ranges.number(items) - self.first[sequence]
        clipped: IntArray = np.clip(number, 0, np.maximum(self.count[sequence] - 1, 0))
        return clipped

    def end(self, items: IntArray) -> IntArray:
        """The end of the tiles that each CTA visits of its range."""
        tiles = -(-self.rows // self.tile_kv)
        return np.minimum(self.ranges.end(items), tiles[self.sequence(items)])

    def trips(self, items: IntArray) -> IntArray:
        """How many tiles each CTA visits here."""
        sequence = self.sequence(items)
        number = self.ranges.number(items) - self.first[sequence]
        is_here = (number >= 0) & (number < self.count[sequence])
        return np.where(is_here, np.maximum(0, self.end(items) - self.ranges.first(items)), 0)

    def last(self, items: IntArray) -> IntArray:
        """The tile that each CTA visits first."""
        sequence, heads = self.sequence(items), self.w.kv_heads
        before = heads * (np.cumsum(self.count) - self.count)  # ranges of the sequences before
        head = self.ranges.matrix(items) % heads
        group = before[sequence] + head * self.count[sequence] + self.number(items)
        return group * blocks(int(self.rows.max()), self.tile_kv) + self.end(items) - 1

    def operands(self) -> tuple[Operand, Operand]:
        """K, with the numbers of its pages, and V."""
        w = self.w
        matrices = self.count * w.kv_heads
        rows, hidden = (np.repeat(own, matrices) for own in (self.rows, self.hidden))
        before = hidden if hidden.any() else None
        ops = ops_of_making_ready(w, self.tile_kv)
        k, v = (
            Stream(tensor, self.tile_kv, tensor.cols, self.last, stride=-1)
            for tensor in cache_tensors(w, rows.tolist(), 1, before)
        )
        return Operand((k, self._numbers()), register_ops=ops), Operand((v,), register_ops=ops)

    def _numbers(self) -> Stream:
        """The sectors of the page table that hold the numbers of each tile's pages.

        Of a range that begins so many tokens behind the first key shown, last tile first.
        """
        w, ranges = self.w, self.ranges
        table = page_numbers(w.batch, blocks(w.seq_kv, self.page_size))
        entries = max(PAGE_NUMBERS_A_SECTOR, self.tile_kv // self.page_size)
        sectors = blocks(table.cols, entries)
        lows, of_low = np.unique(ranges.low, return_inverse=True)
        most, across = int(ranges.count.max()), blocks(int(self.rows.max()), self.tile_kv)
        starts = lows[:, None] + ranges.length * np.arange(most)
        first_keys = starts[..., None] + self.tile_kv * np.arange(across)[::-1]

        def start(items: IntArray) -> IntArray:
            sequence = self.sequence(items)
            number = self.first[sequence] + self.number(items)
            return (of_low[sequence] * most + number + 1) * across - self.end(items)

        return Stream(
            table,
            1,
            entries,
            base=lambda items: self.sequence(items) * sectors,
            table=(first_keys // self.page_size // entries).ravel(),
            start=start,
        )
