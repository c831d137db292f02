"""Tiles by their numbers, as `sim.tile_program.Stream` counts them: row by row, matrix by matrix.

Here T is a contiguous tensor of shape (matrices, rows, cols). A tile's block in registers is padded
to powers of two; what is outside the tile or the matrix is never loaded or stored.
"""

import triton
import triton.language as tl


@triton.jit
def tile_pointers(
    T,
    number,
    rows,
    cols,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Pointers to a tile's elements in a block of HEIGHT x WIDTH, and which of them exist."""
    across = tl.cdiv(cols, TILE_COLS)
    tiles = tl.cdiv(rows, TILE_ROWS) * across
    within = number % tiles
    down = tl.arange(0, HEIGHT)
    right = tl.arange(0, WIDTH)
    row = within // across * TILE_ROWS + down
    col = within % across * TILE_COLS + right
    exists = ((down < TILE_ROWS) & (row < rows))[:, None]
    exists &= ((right < TILE_COLS) & (col < cols))[None, :]
    matrix = T + (number // tiles).to(tl.int64) * rows * cols
    return matrix + row[:, None].to(tl.int64) * cols + col[None, :], exists


@triton.jit
def load_tile(
    T,
    number,
    rows,
    cols,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The tile, zero where it does not exist. WHOLE promises that no tile is padded or cut."""
    HEIGHT: tl.constexpr = triton.next_power_of_2(TILE_ROWS)
    WIDTH: tl.constexpr = triton.next_power_of_2(TILE_COLS)
    pointers, exists = tile_pointers(T, number, rows, cols, TILE_ROWS, TILE_COLS, HEIGHT, WIDTH)
    if WHOLE:
        return tl.load(pointers)
    return tl.load(pointers, mask=exists, other=0.0)


@triton.jit
def store_tile(T, number, rows, cols, values, TILE_ROWS: tl.constexpr, TILE_COLS: tl.constexpr):
    """Store the part of `values` that is in the tile and exists, in the tensor's dtype."""
    HEIGHT: tl.constexpr = values.shape[0]
    WIDTH: tl.constexpr = values.shape[1]
    pointers, exists = tile_pointers(T, number, rows, cols, TILE_ROWS, TILE_COLS, HEIGHT, WIDTH)
    tl.store(pointers, values.to(T.dtype.element_ty), mask=exists)


@triton.jit
def row_of_tile(number, rows, TILE_ROWS: tl.constexpr):
    """The matrix row at which a tile as wide as its matrix begins."""
    return number % tl.cdiv(rows, TILE_ROWS) * TILE_ROWS
