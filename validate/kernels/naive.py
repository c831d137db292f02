"""Standard attention as three kernels, with S and P in HBM."""

import triton
import triton.language as tl

from validate.kernels.tiles import load_tile, row_of_tile, store_tile, tile_pointers


@triton.jit
def matmul_kernel(
    A,
    B,
    C,
    ctas,
    trips,
    a_rows,
    a_cols,
    b_rows,
    b_cols,
    c_cols,
    b_stride,
    scale,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    WHOLE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A tile of C = scale * A B (A B^T where TRANSPOSED) in `trips` slices of DEPTH.

    A CTA's row of `ctas`: its first tile of A, of B, and its tile of C.
    """
    cta = ctas + tl.program_id(0) * 3
    a_tile, b_tile, c_tile = tl.load(cta), tl.load(cta + 1), tl.load(cta + 2)
    ROWS: tl.constexpr = triton.next_power_of_2(TILE_ROWS)
    COLS: tl.constexpr = triton.next_power_of_2(TILE_COLS)
    acc = tl.zeros([ROWS, COLS], tl.float32)
    for trip in tl.range(0, trips, num_stages=STAGES):
        a = load_tile(A, a_tile + trip, a_rows, a_cols, TILE_ROWS, DEPTH, WHOLE)
        if TRANSPOSED:
            b = tl.trans(load_tile(B, b_tile + trip, b_rows, b_cols, TILE_COLS, DEPTH, WHOLE))
        else:
            b = load_tile(B, b_tile + b_stride * trip, b_rows, b_cols, DEPTH, TILE_COLS, WHOLE)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    store_tile(C, c_tile, a_rows, c_cols, acc * scale, TILE_ROWS, TILE_COLS)


@triton.jit
def masked_scores(
    S,
    number,
    rows,
    cols,
    first_position,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """A tile of S in fp32, -inf where the mask hides or nothing exists."""
    HEIGHT: tl.constexpr = triton.next_power_of_2(TILE_ROWS)
    WIDTH: tl.constexpr = triton.next_power_of_2(TILE_COLS)
    pointers, shown = tile_pointers(S, number, rows, cols, TILE_ROWS, TILE_COLS, HEIGHT, WIDTH)
    s = tl.load(pointers, mask=shown, other=0.0).to(tl.float32)
    across = tl.cdiv(cols, TILE_COLS)
    key = number % across * TILE_COLS + tl.arange(0, WIDTH)[None, :]
    row = row_of_tile(number // across, rows, TILE_ROWS)
    position = first_position + row + tl.arange(0, HEIGHT)[:, None]
    if CAUSAL:
        shown = shown & (key <= position)
    if WINDOW > 0:
        shown = shown & (key > position - WINDOW)
    if WINDOW > 0 and not CAUSAL:
        shown = shown & (key < position + WINDOW)
    return tl.where(shown, s, float("-inf"))


@triton.jit
def softmax_kernel(
    S,
    P,
    rows,
    cols,
    first_position,
    SWEEP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """P of TILE_ROWS rows of S: read once if a row is one tile, else (SWEEP) three times."""
    across = tl.cdiv(cols, TILE_COLS)
    first = tl.program_id(0) * across
    if SWEEP:
        highest = tl.full([triton.next_power_of_2(TILE_ROWS)], float("-inf"), tl.float32)
        for i in range(across):
            s = masked_scores(
                S, first + i, rows, cols, first_position, TILE_ROWS, TILE_COLS, CAUSAL, WINDOW
            )
            highest = tl.maximum(highest, tl.max(s, 1))
        highest = tl.where(highest == float("-inf"), 0.0, highest)
        total = tl.zeros([triton.next_power_of_2(TILE_ROWS)], tl.float32)
        for i in range(across):
            s = masked_scores(
                S, first + i, rows, cols, first_position, TILE_ROWS, TILE_COLS, CAUSAL, WINDOW
            )
            total += tl.sum(tl.exp(s - highest[:, None]), 1)
        total = tl.where(total == 0.0, 1.0, total)
        for i in range(across):
            s = masked_scores(
                S, first + i, rows, cols, first_position, TILE_ROWS, TILE_COLS, CAUSAL, WINDOW
            )
            p = tl.exp(s - highest[:, None]) / total[:, None]
            store_tile(P, first + i, rows, cols, p, TILE_ROWS, TILE_COLS)
    else:
        s = masked_scores(
            S, first, rows, cols, first_position, TILE_ROWS, TILE_COLS, CAUSAL, WINDOW
        )
        highest = tl.max(s, 1)
        p = tl.exp(s - tl.where(highest == float("-inf"), 0.0, highest)[:, None])
        total = tl.sum(p, 1)
        p = p / tl.where(total == 0.0, 1.0, total)[:, None]
        store_tile(P, first, rows, cols, p, TILE_ROWS, TILE_COLS)
