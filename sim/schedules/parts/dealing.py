"""The order in which the flash kernels of Hopper and Blackwell go through their tiles.

A persistent kernel deals tiles to its CTAs: in turn, or the next one to whoever is done. Masked
tiles come longest first, in sections of as many heads as K and V fit the L2 of. Source:
Dao-AILab/flash-attention, hopper/tile_scheduler.hpp and flash_attn/cute/tile_scheduler.py.
"""

from dataclasses import dataclass
from heapq import heapreplace

import numpy as np

from sim.code.jit import entry
from sim.schedules.base import blocks
from sim.schedules.parts.query_rows import QueryRows
from sim.schedules.parts.traversal import GridOrder, kv_heads_in
from sim.tile_program import IntArray

# flash_prepare_scheduler.cu: size_l2, get_nheads_in_l2.
VARLEN_SECTION_BYTES, MOST_VARLEN_SECTION = 8 * 2**20, 16


def longest_first(rows: QueryRows, section: int, first: int = 0, count: int = 0) -> IntArray:
    """All tiles, `section` matrices after the other, in each the longest blocks of all first.

    With `count` just those of so many matrices from number `first` on.
    """
    a_matrix = rows.grid.sides[0]
    tiles = np.arange(a_matrix * (count or rows.matrices), dtype=np.int64)
    block, matrix = rows.grid.at(tiles)
    return first * a_matrix + np.lexsort((matrix, -block, matrix // section))


def ordered(rows: QueryRows, order: GridOrder, section: int) -> IntArray:
    """All tiles in that order; of "swizzled" in sections of so many matrices."""
    if order == "swizzled":
        return longest_first(rows, section)
    every = np.arange(rows.grid.size, dtype=np.int64)
    if order == "head_slow":
        return every
    block, matrix = rows.grid.at(every)
    return np.lexsort((matrix, block))


def like_parts(rows: QueryRows, order: GridOrder, section: int) -> int:
    """Like parts that a grid in that order goes through one after the other."""
    if order == "swizzled":
        return like_sections(rows, section, rows.matrices)
    return rows.matrices if order == "head_slow" else 1


def section_of(rows: QueryRows, l2_bytes: int, seq_kv: int | None = None) -> int:
    """Matrices whose K and V fit so much L2, a power of two of KV heads (tile_scheduler.hpp)."""
    w = rows.w
    heads = kv_heads_in(w, l2_bytes, seq_kv)
    return heads * (w.heads // w.kv_heads // rows.packed)


def like_sections(rows: QueryRows, section: int, among: int) -> int:
    """Like parts that tiles are gone through one after the other: sections among so many matrices.

    Where they do not fill those it is those.
    """
    like = among if among % section else section
    return rows.matrices // like


def varlen_section(rows: QueryRows, seq_kv: int) -> int:
    """Matrices of a sequence whose longest tiles go before all shorter ones."""
    fitting = section_of(rows, VARLEN_SECTION_BYTES, seq_kv)
    return min(fitting, MOST_VARLEN_SECTION, rows.of_a_sequence)


def by_sequence(rows: QueryRows) -> IntArray:
    """The tiles of sequences of any lengths in the order in which they are dealt.

    Sequences with most key blocks a range come first, of a causal mask those with most more keys
    than queries; with a window they come as they are (flash_prepare_scheduler.cu).
    """
    w, tile = rows.w, rows.tile
    splits = rows.of_each
    a_range = [blocks(blocks(k, tile.kv), n) for k, n in zip(w.keys, splits, strict=True)]
    down = [blocks(queries * rows.packed, tile.q) for queries in w.queries]
    rank = {
        "full": np.array(a_range),
        "causal": np.array(a_range) * tile.kv - np.array(down) * tile.q,
        "window": np.zeros(w.batch),
    }[w.mask]
    a_matrix, of_a_sequence = rows.grid.sides[0], rows.of_a_sequence
    order = []
    for sequence in np.argsort(-rank, kind="stable").tolist():
        first = sequence * of_a_sequence
        if w.mask == "full" or splits[sequence] > 1:
            own = first * a_matrix + np.arange(of_a_sequence * a_matrix)
        else:
            section = varlen_section(rows, w.keys[sequence])
            own = longest_first(rows, section, first, of_a_sequence)
        order.append(own)
    tiles = np.concatenate(order)
    return tiles[rows.is_there[rows.place(tiles)]]


@dataclass(frozen=True, eq=False)
class Dealt:
    """The tile that each item of `ctas` CTAs works on, -1 where it has none."""

    ctas: int
    tile_of_item: IntArray

    @property
    def items_per_cta(self) -> int:
        """Items of each CTA."""
        return len(self.tile_of_item) // self.ctas

    @property
    def dealt_tiles(self) -> int:
        """Tiles that CTAs take one after the other; 0 where each has one of its own."""
        return int((self.tile_of_item >= 0).sum()) if self.items_per_cta > 1 else 0

    def in_order(self, order: IntArray) -> "Dealt":
        """The same, tile number i being the one that stands there in `order`."""
        has_tile = self.tile_of_item >= 0
        return Dealt(self.ctas, np.where(has_tile, order[self.tile_of_item], -1))

    def turn(self, items: IntArray, ctas_at_a_time: int) -> IntArray:
        """The number of each item in its CTA; of CTAs of one, how many ran before on its place."""
        each = self.items_per_cta
        return items % each if each > 1 else items // ctas_at_a_time

    def tile(self, items: IntArray) -> IntArray:
        """The tile of each item, any where it has none."""
        return np.maximum(self.tile_of_item[items], 0)

    def has_tile(self, items: IntArray) -> IntArray:
        """1 where an item has a tile."""
        return (self.tile_of_item[items] >= 0).astype(np.int64)


def dealt_in_turn(tiles: int, ctas: int) -> Dealt:
    """CTA c takes tiles c, c + ctas, ..."""
    rounds = blocks(tiles, ctas)
    numbers = np.arange(rounds * ctas, dtype=np.int64)
    numbers[tiles:] = -1
    return Dealt(ctas, numbers.reshape(rounds, ctas).T.ravel())


def dealt_on_demand(
    order: IntArray, key_blocks: IntArray, ctas: int, ahead: int, *, early: bool = False
) -> Dealt:
    """Each CTA takes the next tile in `order` when it has loaded the last key block of its own.

    So the producer does (hopper/mainloop_fwd_sm90_tma_gmma_ws.hpp, load: scheduler_prefetch), which
    is `ahead` blocks before the tile is done: as many as its buffers hold. `early` is a tile
    sooner, when it begins to load its own: so does cluster launch control (trtllm-gen's machine
    code: the warp that asks for a tile waits for the load warp to arrive at the one before). A tile
    is taken to last as long as its key blocks and one more, for what stands before and after them
    (an estimate).
    """
    ctas = min(ctas, len(order))
    cta_of, times = np.empty(len(order), np.int64), np.empty((3, ctas), np.int64)
    _deal_on_demand(key_blocks[order], ahead, int(early), *times, cta_of)
    return _dealt(order, cta_of, ctas)


@entry
def _deal_on_demand(trips, ahead, early, asks, loaded, done, cta_of):
    """Of each CTA: when it asks for its next tile, when its latest is loaded, and when done."""
    ctas = len(asks)
    for number in range(len(trips)):
        cta, start, loads_from = number, 0, 0
        if number >= ctas:
            cta = 0
            for other in range(1, ctas):
                if asks[other] < asks[cta]:
                    cta = other
            start, loads_from = done[cta], loaded[cta]
        cta_of[number] = cta
        loaded[cta], done[cta] = start + max(0, trips[number] - ahead), start + trips[number] + 1
        asks[cta] = loads_from if early else loaded[cta]


def dealt_by_plan(order: IntArray, key_blocks: IntArray, ctas: int) -> Dealt:
    """Each tile in `order` to the CTA that has the fewest key blocks so far, before the launch.

    Source: flashinfer-ai/flashinfer, include/flashinfer/attention/blackwell/plan.cuh (plan_kernel).
    """
    queue = [(0, cta) for cta in range(ctas)]
    cta_of = np.empty(len(order), np.int64)
    for number, trips in enumerate(key_blocks[order].tolist()):
        planned, cta = queue[0]
        cta_of[number] = cta
        heapreplace(queue, (planned + trips, cta))
    return _dealt(order, cta_of, ctas)


def _dealt(tiles: IntArray, cta_of: IntArray, ctas: int) -> Dealt:
    """Tiles and their CTAs, in the order of taking them; those with fewer are filled up with -1."""
    each = np.bincount(cta_of, minlength=ctas)
    by_cta = np.argsort(cta_of, kind="stable")
    turn = np.arange(len(tiles)) - np.repeat(np.cumsum(each) - each, each)
    items = np.full((ctas, each.max()), -1, np.int64)
    items[cta_of[by_cta], turn] = tiles[by_cta]
    return Dealt(ctas, items.ravel())
