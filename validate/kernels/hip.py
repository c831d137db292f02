"""HiP's mask estimation: a tree search for the key blocks that query rows score highest."""

import triton
import triton.language as tl

from sim.schedules import hip as schedule
from validate.kernels.tiles import load_tile, row_of_tile

CTA_COLUMNS = tl.constexpr(6)
REPRESENTATIVE = tl.constexpr(schedule.REPRESENTATIVE)  # keys that stand for a chunk


@triton.jit
def estimate_kernel(
    Q,
    K,
    TABLE,
    ctas,
    q_rows,
    kv_rows,
    HEAD_DIM: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_KV: tl.constexpr,
    KEEP: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The KEEP best of `count` key blocks from block `low` on, into TABLE (-1: none).

    A CTA's row of `ctas`: its tile of Q, its matrix of K, low, count, how many rounds of choosing
    there are, and where in TABLE to put them. All arrays over chunks have 2 KEEP entries; GROUP
    chunks are loaded and scored together.
    """
    cta = ctas + tl.program_id(0) * CTA_COLUMNS
    q_tile, matrix, low = tl.load(cta), tl.load(cta + 1), tl.load(cta + 2)
    count, rounds, found_at = tl.load(cta + 3), tl.load(cta + 4), tl.load(cta + 5)
    CHUNKS: tl.constexpr = 2 * KEEP
    KEYS: tl.constexpr = GROUP * REPRESENTATIVE
    D: tl.constexpr = triton.next_power_of_2(HEAD_DIM)
    q = load_tile(Q, q_tile, q_rows, HEAD_DIM, TILE_Q, HEAD_DIM, False)
    asks = row_of_tile(q_tile, q_rows, TILE_Q) + tl.arange(0, TILE_Q) < q_rows
    keys = K + matrix.to(tl.int64) * kv_rows * HEAD_DIM
    dim = tl.arange(0, D)
    chunk = tl.arange(0, CHUNKS)
    nth = tl.arange(0, KEYS)
    member = tl.arange(0, GROUP)
    # Chunk c is [begin, end), block `best` the first of the chosen chunk that c is a half of.
    begin, end = count * chunk // CHUNKS, count * (chunk + 1) // CHUNKS
    best = chunk // 2
    for _ in range(rounds):
        centre = tl.minimum((begin + end) // 2, count - 1)
        score = tl.full([CHUNKS], float("-inf"), tl.float32)
        for first in tl.range(0, CHUNKS, GROUP, num_stages=STAGES):
            its_chunk = first + nth // REPRESENTATIVE
            is_its = its_chunk[:, None] == chunk[None, :]
            its_block = low + tl.sum(tl.where(is_its, centre[None, :], 0), 1)
            offset = TILE_KV // REPRESENTATIVE // 2 * REPRESENTATIVE + nth % REPRESENTATIVE
            row = (its_block * TILE_KV + offset).to(tl.int64)
            pointers = keys + row[:, None] * HEAD_DIM + dim[None, :]
            k = tl.load(pointers, mask=(dim < HEAD_DIM)[None, :], other=0.0)
            s = tl.dot(q, tl.trans(k), input_precision="ieee")
            s = tl.max(tl.where(asks[:, None], s, float("-inf")), 0)
            s = tl.max(tl.reshape(s, [GROUP, REPRESENTATIVE]), 1)
            is_own = chunk[:, None] == first + member[None, :]
            score = tl.maximum(score, tl.max(tl.where(is_own, s[None, :], float("-inf")), 1))
        score = tl.where(end > begin, score, float("-inf"))
        # Its rank is how many chunks come before it: those of higher score, or as high and earlier.
        ahead = (score[None, :] > score[:, None]) | (
            (score[None, :] == score[:, None]) & (chunk[None, :] < chunk[:, None])
        )
        chosen = tl.sum(ahead.to(tl.int32), 1) < KEEP
        earlier = (chunk[None, :] < chunk[:, None]) & chosen[None, :]
        place = tl.where(chosen, tl.sum(earlier.to(tl.int32), 1), CHUNKS)
        is_parent = place[None, :] == (chunk // 2)[:, None]
        best = tl.sum(tl.where(is_parent, begin[None, :], 0), 1)
        last = tl.sum(tl.where(is_parent, end[None, :], 0), 1)
        middle = (best + last + 1) // 2
        begin, end = tl.where(chunk % 2 == 0, best, middle), tl.where(chunk % 2 == 0, middle, last)
    found = tl.where(chunk // 2 < count, low + best, -1)
    tl.store(TABLE + found_at + chunk // 2, found, mask=chunk % 2 == 0)
