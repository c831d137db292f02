"""Lanes: the rows and columns of tiles along which a kernel's streams go.

What is brought for one CTA is there for the others that go along the same lane: so which CTAs are
left out together when a kernel is made smaller, and what HBM brings at least.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from sim.tile_program import IntArray, Kernel, Loop, Stream, Tensor

MOST_ITEMS = 2**17  # whose tiles are counted


def long_loops_of(kernel: Kernel) -> list[Loop]:
    """The loops of more than one trip."""
    return [
        loop for loop, most in zip(kernel.loops, kernel.most_loop_trips, strict=True) if most > 1
    ]


def streams_of(loops: list[Loop]) -> list[Stream]:
    """All of them, loop by loop."""
    return [stream for loop in loops for stream in loop.streams]


def goes_down(stream: Stream) -> bool:
    """Whether its tiles follow each other down a matrix, not across."""
    return abs(stream.stride) == stream.tiles_across


def units_of(kernel: Kernel, items: IntArray) -> tuple[IntArray, IntArray]:
    """Which items go together, (items,), and through which matrix each such unit goes, (units,).

    Units are numbered matrix by matrix. Where the items of a matrix go along different lanes of a
    tensor, as the blocks of a matmul's result do along the rows of P, those of a lane are a unit;
    else those that go the same way through it, such as the query heads of a KV head; where all do,
    or CTAs have several items, each is its own.
    """
    long_loops = long_loops_of(kernel)
    streams = streams_of(long_loops)
    matrix = streams[0].base(items) // (streams[0].tiles_down * streams[0].tiles_across)
    lanes = (_lane_of(stream, stream.base(items), goes_down(stream)) for stream in streams)
    pairs = [_pairs(matrix, lane) for lane in lanes]
    of_units, unit = max(pairs, key=lambda pair: len(pair[0]))
    matrices = np.unique(matrix).size
    if len(of_units) == matrices and kernel.items_per_cta == 1:
        trips = np.sum([loop.trips(items) for loop in long_loops], axis=0)
        _, way = _pairs(streams[0].base(items), trips)
        of_units, unit = _pairs(matrix, way)
    if len(of_units) == matrices:
        of_units, unit = _pairs(matrix, np.arange(len(items)))
    return unit, of_units


def _pairs(first: IntArray, second: IntArray) -> tuple[IntArray, IntArray]:
    """`first` of each pair that occurs, in order, and the number of each item's pair."""
    width = int(second.max()) + 1
    pairs, number = np.unique(first * width + second, return_inverse=True)
    return pairs // width, number


def _lane_of(stream: Stream, tiles: IntArray, down: bool) -> IntArray:
    """The number, of all matrices, of the column of tiles that each is in, or of the row."""
    row, col = np.divmod(tiles, stream.tiles_across)
    return row // stream.tiles_down * stream.tiles_across + col if down else row


def touched_bytes(kernel: Kernel) -> int:
    """Bytes that loads touch, each counted once: HBM reads no less from an empty L2.

    Of a lane it is all from the first tile that an item touches to the last; of more than
    MOST_ITEMS, such as of a row each, the tensors are taken to be loaded whole.
    """
    if kernel.ctas * kernel.items_per_cta > MOST_ITEMS:
        tensors = {load.stream.tensor for loop in kernel.loops for load in loop.loads}
        return sum(tensor.bytes for tensor in tensors)
    touches: dict[tuple[Tensor, int, int], list[_Touches]] = defaultdict(list)
    for loop, trips in zip(kernel.loops, kernel.trips, strict=True):
        for load in loop.loads:
            stream = load.stream
            key = (stream.tensor, stream.tile_rows, stream.tile_cols)
            touches[key].append(_touches_of(stream, kernel.items[trips > 0], trips[trips > 0]))
    by_tensor: dict[Tensor, int] = defaultdict(int)
    for (tensor, *_), of_tensor in touches.items():
        by_tensor[tensor] = max(by_tensor[tensor], _bytes_of(of_tensor))
    return sum(by_tensor.values())


@dataclass(frozen=True)
class _Touches:
    """The first and the last tile that each item touches, (2, items), of a stream of loads."""

    stream: Stream
    ends: IntArray
    down: bool


def _touches_of(stream: Stream, items: IntArray, trips: IntArray) -> _Touches:
    """Of a stream whose table, if it has one, is of single trips."""
    first = stream.base(items)
    if stream.table is not None:
        first = first + stream.table[stream.start(items)]
    last = first + stream.stride * (trips - 1)
    return _Touches(stream, np.stack([first, last]), goes_down(stream) and trips.max(initial=0) > 1)


def _bytes_of(touches: list[_Touches]) -> int:
    """Of the tiles of streams that cut a tensor alike."""
    stream, down = touches[0].stream, any(own.down for own in touches)
    tensor, across = stream.tensor, stream.tiles_across
    ends = np.concatenate([own.ends for own in touches], axis=1)
    if ends.size == 0:
        return 0
    lanes, number = np.unique(_lane_of(stream, ends[0], down), return_inverse=True)
    places = ends // across % stream.tiles_down if down else ends % across
    low, high = np.full(len(lanes), places.max()), np.zeros(len(lanes), np.int64)
    np.minimum.at(low, number, places.min(axis=0))
    np.maximum.at(high, number, places.max(axis=0))
    rows, cols = (tensor.rows, stream.tile_rows), (tensor.cols, stream.tile_cols)
    (length, tile), (breadth, width) = (rows, cols) if down else (cols, rows)
    beside = lanes % across if down else lanes % stream.tiles_down
    along = np.minimum((high + 1) * tile, length) - low * tile
    aside = np.minimum(width, breadth - beside * width)
    return int((along * aside).sum()) * tensor.element_bytes
