"""The FlashAttention-2 loop: dense, over a table of key blocks, or over a range of a split cache.

Which tiles a CTA takes stands in its row of `ctas`: its tile of Q; the number from which its key
blocks count; where its part of `table` starts; how many key blocks; how many of these, the first
ones, the mask cuts; its tile of O.
"""

import triton
import triton.language as tl

from validate.kernels.tiles import load_tile, row_of_tile, store_tile

CTA_COLUMNS = tl.constexpr(6)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def key_loop(
    acc,
    l,  # noqa: E741  the papers' name
    m,
    q,
    position,
    K,
    V,
    table,
    key_base,
    first,
    end,
    kv_rows,
    stride,
    scale,
    HEAD_DIM: tl.constexpr,
    TILE_KV: tl.constexpr,
    TABLE: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    WHOLE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Online softmax over the key blocks [first, end) of a CTA. `scale` is for powers of two."""
    for trip in tl.range(first, end, num_stages=STAGES):
        if TABLE:
            number = key_base + tl.load(table + trip)
        else:
            number = key_base + stride * trip
        k = load_tile(K, number, kv_rows, HEAD_DIM, TILE_KV, HEAD_DIM, WHOLE)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if MASKED:
            key = row_of_tile(number, kv_rows, TILE_KV) + tl.arange(0, TILE_KV)[None, :]
            shown = key < kv_rows
            if CAUSAL:
                shown = shown & (key <= position)
            if WINDOW > 0:
                shown = shown & (key > position - WINDOW)
            if WINDOW > 0 and not CAUSAL:
                shown = shown & (key < position + WINDOW)
            s = tl.where(shown, s, float("-inf"))
        highest = tl.maximum(m, tl.max(s, 1))
        above = tl.where(highest == float("-inf"), 0.0, highest)  # a row that sees no key yet
        p = tl.exp2(s - above[:, None])
        shrink = tl.exp2(m - above)
        l = l * shrink + tl.sum(p, 1)  # noqa: E741
        m = highest
        v = load_tile(V, number, kv_rows, HEAD_DIM, TILE_KV, HEAD_DIM, WHOLE)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, l, m


@triton.jit
def flash_kernel(
    Q,
    K,
    V,
    O,  # noqa: E741
    LSE,
    ctas,
    table,
    q_rows,
    kv_rows,
    o_rows,
    first_position,
    stride,
    scale,
    HEAD_DIM: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_KV: tl.constexpr,
    TILE_O: tl.constexpr,
    ROWS_A_POSITION: tl.constexpr,
    TABLE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    WHOLE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """O and the log-sum-exp of a tile of query rows over the key blocks of its CTA.

    Row r of Q stands at position first_position + r // ROWS_A_POSITION among the keys.
    """
    cta = ctas + tl.program_id(0) * CTA_COLUMNS
    q_tile, key_base, start = tl.load(cta), tl.load(cta + 1), tl.load(cta + 2)
    trips, masked, o_tile = tl.load(cta + 3), tl.load(cta + 4), tl.load(cta + 5)
    q = load_tile(Q, q_tile, q_rows, HEAD_DIM, TILE_Q, HEAD_DIM, False)
    row = row_of_tile(q_tile, q_rows, TILE_Q) + tl.arange(0, TILE_Q)
    position = (first_position + row // ROWS_A_POSITION)[:, None]
    acc = tl.zeros([TILE_Q, triton.next_power_of_2(HEAD_DIM)], tl.float32)
    l = tl.zeros([TILE_Q], tl.float32)  # noqa: E741
    m = tl.full([TILE_Q], float("-inf"), tl.float32)
    acc, l, m = key_loop(  # noqa: E741
        acc, l, m, q, position, K, V, table + start, key_base, 0, masked, kv_rows, stride,
        scale / LN2, HEAD_DIM, TILE_KV, TABLE, True, CAUSAL, WINDOW, WHOLE, STAGES,
    )  # fmt: skip
    acc, l, m = key_loop(  # noqa: E741
        acc, l, m, q, position, K, V, table + start, key_base, masked, trips, kv_rows, stride,
        scale / LN2, HEAD_DIM, TILE_KV, TABLE, False, CAUSAL, WINDOW, WHOLE, STAGES,
    )  # fmt: skip
    sees = l > 0
    acc = acc / tl.where(sees, l, 1.0)[:, None]
    lse = tl.where(sees, m * LN2 + tl.log(tl.where(sees, l, 1.0)), float("-inf"))
    # A tile of O may be shorter than one of Q: the query heads of one KV head.
    store_tile(O, o_tile, o_rows, HEAD_DIM, acc, TILE_O, HEAD_DIM)
    store_tile(LSE, o_tile, o_rows, 1, lse[:, None], TILE_O, 1)


@triton.jit
def combine_kernel(
    PARTIAL_O,
    PARTIAL_LSE,
    O,  # noqa: E741
    LSE,
    o_rows,
    SPLITS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE_O: tl.constexpr,
):
    """O of a few rows from the O and log-sum-exp of each split."""
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    split = tl.arange(0, triton.next_power_of_2(SPLITS))
    row = tile * TILE_O + tl.arange(0, TILE_O)
    known = (split < SPLITS)[:, None] & (row < o_rows)[None, :]
    lse = tl.load(
        PARTIAL_LSE + split[:, None] * o_rows + row[None, :], mask=known, other=float("-inf")
    )
    highest = tl.max(lse, 0)
    above = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.sum(tl.exp(lse - above[None, :]), 0)
    combined = above + tl.log(tl.where(total > 0, total, 1.0))
    combined = tl.where(total > 0, combined, float("-inf"))
    weight = tl.where(known, tl.exp(lse - tl.where(total > 0, combined, 0.0)[None, :]), 0.0)
    acc = tl.zeros([TILE_O, triton.next_power_of_2(HEAD_DIM)], tl.float32)
    for s in range(SPLITS):
        own = tl.sum(tl.where((split == s)[:, None], weight, 0.0), 0)
        part = load_tile(PARTIAL_O, s * tiles + tile, o_rows, HEAD_DIM, TILE_O, HEAD_DIM, False)
        acc += own[:, None] * part
    store_tile(O, tile, o_rows, HEAD_DIM, acc, TILE_O, HEAD_DIM)
    store_tile(LSE, tile, o_rows, 1, combined[:, None], TILE_O, 1)
