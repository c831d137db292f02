"""Parts of latent attention: who works on which blocks of keys, and results of parts made one.

A part has some blocks of keys of one sequence or of several; it is a CTA for each block of query
rows. Of a sequence in several parts each leaves an O and a log-sum-exp, which one more kernel
combines.

Source: deepseek-ai/FlashMLA, csrc/smxx/decode: get_decoding_sched_meta.cu, combine.cu.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim.schedules.base import STATISTICS_BYTES, blocks
from sim.schedules.parts import registers
from sim.schedules.parts.combine import combine_kernel
from sim.schedules.parts.ends import beyond_port_bytes, finish
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.latent_splits import Piece
from sim.schedules.parts.results import Result
from sim.tile_program import (
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Stream,
)

OVERHEAD_BLOCKS = 5  # what starting on a sequence counts as (fixed_overhead_num_blocks)


@dataclass(frozen=True, eq=False)
class Parts:
    """What each part works on: `slots` sequences, of which the last ones may be none.

    `sequence`, its `first` key block there, the `count` of them (0: none) and where its `partial`
    result lies (-1: the part has all of it) have shape (parts * slots), a part's slots one after
    the other. `splits`, how many of them are `combined` (0: none) and `first_split` are of each
    sequence. A block of rows runs for so many parts `together` before the next block does.
    """

    slots: int
    sequence: IntArray
    first: IntArray
    count: IntArray
    partial: IntArray
    splits: IntArray
    combined: IntArray
    first_split: IntArray
    together: int = 1

    @property
    def some_are_idle(self) -> bool:
        """Whether there are parts without any key block."""
        return not bool(self.count.reshape(-1, self.slots).any(axis=1).all())


def cut_in_parts(key_blocks: Sequence[int], parts: int) -> Parts:
    """FlashMLA's schedule for sequences of so many key blocks (get_mla_metadata.cu)."""
    sequences, total = len(key_blocks), sum(own + OVERHEAD_BLOCKS for own in key_blocks)
    payload = max(blocks(total, parts) + OVERHEAD_BLOCKS, 2 * OVERHEAD_BLOCKS)
    pieces: list[list[Piece]] = []
    sequence = done = 0
    while sequence < sequences:
        left, part = payload, []
        while sequence < sequences and left > OVERHEAD_BLOCKS:
            count = min(key_blocks[sequence] - done, left - OVERHEAD_BLOCKS)
            part.append((sequence, done, count))
            left -= count + OVERHEAD_BLOCKS
            done += count
            if done == key_blocks[sequence]:
                sequence, done = sequence + 1, 0
        pieces.append(part)
    return parts_of(pieces, sequences)


def parts_of(
    pieces: list[list[Piece]], sequences: int, *, together: int = 1, always: bool = False
) -> Parts:
    """Parts of those pieces; results are partial of a sequence in several, or `always`."""
    slots = max(len(part) for part in pieces)
    filled = [piece for part in pieces for piece in part + [(0, 0, 0)] * (slots - len(part))]
    owner, first, count = np.array(filled, np.int64).T
    splits = np.bincount(owner[count > 0], minlength=sequences)
    combined = np.where((splits > 1) | always, splits, 0)
    # A sequence's partial results lie one after the other, in the order of its parts.
    place = np.zeros_like(owner)
    of_sequences = np.argsort(np.where(count > 0, owner, sequences), kind="stable")
    place[of_sequences] = np.arange(len(owner))
    partial = np.where((count > 0) & (combined[owner] > 0), place, -1)
    return Parts(
        slots, owner, first, count, partial, splits, combined, np.cumsum(splits) - splits, together
    )


@dataclass(frozen=True)
class Ctas:
    """A CTA for each block of query rows of each part; its items are the part's slots.

    `end` is behind the last key block that the mask shows to each block of rows of each sequence:
    shape (sequences, blocks of rows).
    """

    parts: Parts
    end: IntArray

    @property
    def down(self) -> int:
        """Blocks of query rows of a sequence."""
        return int(self.end.shape[1])

    @property
    def grid(self) -> Grid:
        """Items: (slots, parts that go together, blocks of query rows, such groups of parts)."""
        slots, together = self.parts.slots, self.parts.together
        return Grid(slots, together, self.down, len(self.parts.count) // (slots * together))

    def slot(self, items: IntArray) -> IntArray:
        """The slot of each item, counted over all parts."""
        slot, part, _, group = self.grid.at(items)
        return (group * self.parts.together + part) * self.parts.slots + slot

    def row_block(self, items: IntArray) -> IntArray:
        """The block of query rows of each item."""
        return self.grid.at(items)[2]

    def sequence(self, items: IntArray) -> IntArray:
        """The sequence of each item."""
        return self.parts.sequence[self.slot(items)]

    def first(self, items: IntArray) -> IntArray:
        """The first key block of each item."""
        return self.parts.first[self.slot(items)]

    def count(self, items: IntArray) -> IntArray:
        """The key blocks of each item that the mask shows."""
        shown = self.end[self.sequence(items), self.row_block(items)] - self.first(items)
        count: IntArray = np.clip(shown, 0, self.parts.count[self.slot(items)])
        return count

    def rows_of_sequence(self, items: IntArray) -> IntArray:
        """The tile of Q, and of O where the part has all of the sequence."""
        return self.sequence(items) * self.down + self.row_block(items)

    def rows_of_partial(self, items: IntArray) -> IntArray:
        """The tile of the partial O."""
        partial = np.maximum(self.parts.partial[self.slot(items)], 0)
        return partial * self.down + self.row_block(items)

    def has_keys(self, items: IntArray) -> IntArray:
        """1 where the item is a sequence's, 0 where the slot is empty."""
        return np.minimum(self.parts.count[self.slot(items)], 1)

    def is_split(self, items: IntArray) -> IntArray:
        """1 where its result is partial."""
        return (self.parts.partial[self.slot(items)] >= 0).astype(np.int64)

    def is_whole(self, items: IntArray) -> IntArray:
        """1 where its result is O."""
        return self.has_keys(items) - self.is_split(items)

    def stores(
        self, whole: Result, partial: Result, tile_rows: int, stores_sectors: bool = False
    ) -> tuple[Loop, Loop]:
        """What an item ends with: so many rows of O, or of a partial one, perhaps by sectors."""

        def store(to: Result, trips: OfItem, rows: OfItem, by_sectors: bool) -> Loop:
            o, lse = (Stream(one, tile_rows, one.cols, rows) for one in (to.o, to.lse))
            sram_bytes = beyond_port_bytes(o) if by_sectors else 0
            return finish(tile_rows * to.o.cols, o, lse, trips=trips, sram_bytes=sram_bytes)

        return (
            store(whole, self.is_whole, self.rows_of_sequence, False),
            store(partial, self.is_split, self.rows_of_partial, stores_sectors),
        )


@dataclass(frozen=True)
class Combining:
    """A CTA that makes partial results one: its rows and columns of O (all unless given).

    Results of so many parts `at_once` are on their way to it.
    """

    rows: int = 8
    threads: int = 256
    cols: int | None = None
    at_once: int = 1


def combine_of_parts(parts: Parts, whole: Result, partial: Result, cta: Combining) -> Kernel:
    """A CTA for a few rows of a sequence; of one in a single part it ends at once.

    A sequence has as many rows of O as of each of its partial results.
    """
    sequences, cols = len(parts.splits), cta.cols or whole.o.cols
    across = blocks(whole.o.cols, cols)
    down = whole.o.groups // sequences * blocks(whole.o.rows, cta.rows)
    grid = Grid(across, sequences, down)  # blocks of columns, sequences, blocks of rows

    def rows(items: IntArray) -> IntArray:
        _, sequence, row = grid.at(items)
        return sequence * down + row

    def first(items: IntArray) -> IntArray:
        _, sequence, row = grid.at(items)
        return parts.first_split[sequence] * down + row

    def with_cols(of_rows: OfItem) -> OfItem:
        return lambda items: of_rows(items) * across + grid.at(items)[0]

    kernel = combine_kernel(
        "combine",
        lambda items: parts.combined[grid.at(items)[1]],
        (
            Load(Stream(partial.lse, cta.rows, 1, first, down), cta.at_once),
            Load(Stream(partial.o, cta.rows, cols, with_cols(first), down * across), cta.at_once),
        ),
        (
            Stream(whole.o, cta.rows, cols, with_cols(rows)),
            Stream(whole.lse, cta.rows, 1, rows),
        ),
        Footprint(
            cta.rows * STATISTICS_BYTES * int(parts.splits.max()),
            threads=cta.threads,
            registers_per_thread=registers.COMBINE,
        ),
    )
    return replace(kernel, periods=down)
