"""The tiles that a stream touches, and their chunks in L2, compiled.

A tile of one whole chunk, as most are, takes a shorter way than one of several.
"""

from sim.engine.compiled.jit import at, called, inlined
from sim.engine.compiled.l2 import NO_LINE, SHARED, touch, touch_by_die
from sim.engine.compiled.records import INF


@inlined
def tile_at(r, number, item, trip):
    """The tile that a stream touches in a trip of an item."""
    stream = at(r.streams, number)
    base = r.base[number, item]
    if stream.table_at >= 0:
        return base + r.table[stream.table_at + r.start[number, item] + trip]
    return base + stream.stride * trip


@inlined
def size_of(sizes, stream, group):
    """Rows and columns of one of a tensor's matrices."""
    if stream.sizes_at < 0:
        return stream.rows, stream.cols
    return sizes[stream.sizes_at + group, 0], sizes[stream.sizes_at + group, 1]


@inlined
def corners(sizes, stream, tile):
    """A tile's matrix, and its rows and columns in it: (group, row, row_end, col, col_end)."""
    across = tile % stream.tiles_across
    rest = tile // stream.tiles_across
    group, down = rest // stream.tiles_down, rest % stream.tiles_down
    row, col = down * stream.tile_rows, across * stream.tile_cols
    rows, cols = size_of(sizes, stream, group)
    row_end = min(row + stream.tile_rows, rows)
    col_end = min(col + stream.tile_cols, cols)
    return group, row, row_end, col, col_end


@inlined
def first_chunk(stream, group, row, col):
    """The chunk in which a matrix's row and column are: others are counted up from it.

    To divide for each of them takes as long as to touch it.
    """
    down = group * stream.chunks_down + row // stream.chunk_rows
    return stream.first_chunk + down * stream.chunks_across + col // stream.chunk_cols


@inlined
def touch_chunk(l2, die, chunk, size, write, fetch):
    """`touch_by_die`, of a device that is one die (which is 0 then) without it."""
    if die == SHARED:
        line, read, written = touch(l2, SHARED, chunk, size, write, fetch)
        return line, read, written, size
    return touch_by_die(l2, die, chunk, size, write, fetch)


@called
def touch_chunks(l2, die, sizes, stream, tile, write, fetch):
    """`touch_chunk` for all chunks of a tile.

    Returns (bytes, those past the die, HBM reads, HBM writes, when the last of those present
    arrives [s]).
    """
    size, passed, read, written, in_flight_s = 0, 0, 0, 0, 0.0
    group, row, row_end, col_at, col_end = corners(sizes, stream, tile)
    first = first_chunk(stream, group, row, col_at)
    while row < row_end:
        height = min(stream.chunk_rows, row_end - row)  # whole chunks, but for the matrix's end
        chunk, col = first, col_at
        while col < col_end:
            bytes_ = height * min(stream.chunk_cols, col_end - col) * stream.element_bytes
            line, fetched, evicted, past = touch_chunk(l2, die, chunk, bytes_, write, fetch)
            size += bytes_
            passed += past
            read += fetched
            written += evicted
            if fetched and not write:
                at(l2.lines, line).arrival_s = INF  # set_arrivals says when
            elif line != NO_LINE:
                in_flight_s = max(in_flight_s, at(l2.lines, line).arrival_s)
            chunk, col = chunk + 1, col + stream.chunk_cols
        first, row = first + stream.chunks_across, row + stream.chunk_rows
    return size, passed, read, written, in_flight_s


@called
def set_arrivals(l2, sizes, stream, tile, arrival_s):
    """The chunks of the tile that were fetched arrive then."""
    group, row, row_end, col_at, col_end = corners(sizes, stream, tile)
    first = first_chunk(stream, group, row, col_at)
    while row < row_end:
        chunk, col = first, col_at
        while col < col_end:
            line = at(l2.line_of, chunk)
            if at(l2.lines, line).arrival_s == INF:
                at(l2.lines, line).arrival_s = arrival_s
            chunk, col = chunk + 1, col + stream.chunk_cols
        first, row = first + stream.chunks_across, row + stream.chunk_rows


@inlined
def touch_tile(r, sm, stream, tile, write, fetch):
    """`touch_chunk` for a tile, be it a single chunk or many.

    Returns (bytes, those past the die, HBM reads, HBM writes, when the last of those present
    arrives [s], the line of a single chunk).
    """
    line, dies = NO_LINE, r.limits[0].dies
    die = SHARED if dies == 1 else SHARED + 1 + sm % dies
    if stream.whole_bytes:
        size, chunk = stream.whole_bytes, stream.first_chunk + tile
        line, read, written, passed = touch_chunk(r.l2, die, chunk, size, write, fetch)
        in_flight_s = 0.0 if read or line == NO_LINE else at(r.l2.lines, line).arrival_s
    else:
        size, passed, read, written, in_flight_s = touch_chunks(
            r.l2, die, r.sizes, stream, tile, write, fetch
        )
    r.total[0].hbm_read_bytes += read
    r.total[0].hbm_write_bytes += written
    return size, passed, read, written, in_flight_s, line
