"""HiP's tree search for the key blocks that matter to a block of query rows.

The blocks between sinks and window are cut in 2 k chunks. Of these the k of highest score are kept
and halved, until each is one block. Source: Lee et al. 2024 (arXiv 2406.09827), Algorithm 1 and its
block approximation.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sim.code.jit import Inner, entry
from sim.tile_program import IntArray

Scores = Callable[[IntArray], NDArray[np.float64]]  # of chunks, by their centre blocks


def search_rounds(count: int | IntArray, keep: int) -> IntArray:
    """How often `keep` of 2 `keep` chunks of `count` blocks are chosen until each is one block."""
    size = -(-np.maximum(count, 1) // (2 * keep))  # of the largest chunk at first
    chosen: IntArray = np.where(np.asarray(count) > keep, 1 + np.ceil(np.log2(size)), 0)
    return chosen.astype(np.int64)


def search(count: int, keep: int, scores: Scores) -> tuple[IntArray, IntArray]:
    """One query block's search by scores of the chunks' centres, as the kernel has it.

    Returns the blocks at the centres of all chunks scored, 2 `keep` a round, and the min(count,
    keep) blocks found, ascending. Of equal scores the first wins.
    """
    if count <= keep:
        return np.empty(0, np.int64), np.arange(count, dtype=np.int64)
    edges = count * np.arange(2 * keep + 1, dtype=np.int64) // (2 * keep)
    low, high = edges[:-1], edges[1:]
    seen = []
    for number in range(int(search_rounds(count, keep))):
        if number:
            middle = (low + high + 1) // 2
            low, high = (np.stack(p, 1).ravel() for p in ((low, middle), (middle, high)))
        seen.append(np.minimum((low + high) // 2, count - 1))  # of an empty chunk too
        ranked = np.where(high > low, scores(seen[-1]), -np.inf)
        best = np.sort(np.argsort(-ranked, kind="stable")[:keep])
        low, high = low[best], high[best]
    return np.concatenate(seen), low


def hot_blocks(
    low: IntArray, high: IntArray, keep: int, reuse: float, rng: np.random.Generator
) -> IntArray:
    """The blocks that matter most to each query block: shape (query blocks, keep).

    Each is the one of the query block before with probability `reuse`, else drawn evenly from
    low to high (shape (query blocks,)).
    """
    shape = (len(low), keep)
    drawn = low[:, None] + (rng.random(shape) * (high - low)[:, None]).astype(np.int64)
    anew = rng.random(shape) >= reuse
    since = np.where(anew, np.arange(len(low))[:, None], 0)
    return np.take_along_axis(drawn, np.maximum.accumulate(since, 0), 0)


def search_for(
    hot: IntArray, low: IntArray, high: IntArray, seed: int
) -> tuple[IntArray, IntArray, IntArray]:
    """The searches of query blocks in which chunks that hold a hot block score highest.

    Each searches the blocks from `low` to `high`, shape (query blocks,), for as many as there are
    hot ones: shape (query blocks, keep). Chunks that hold none are ranked at random. Returns the
    centres of all chunks scored, one query block after the other, where each's begin, and the
    blocks found: shape (query blocks, keep), the last ones not there where it searches fewer.
    """
    keep = hot.shape[1]
    rounds = search_rounds(high - low, keep)
    starts = np.concatenate([[0], np.cumsum(2 * keep * rounds)])
    centres, found = np.empty(starts[-1], np.int32), np.empty(hot.shape, np.int64)
    chunks = np.empty((3, 2 * keep), np.int64)  # first blocks, ends, whether they hold a hot one
    hot = np.sort(hot - low[:, None], 1)
    _search_all(hot, low, high - low, rounds, starts, np.uint64(seed), *chunks, centres, found)
    return centres, starts[:-1], found


@entry
def _search_all(hot, offset, count, rounds, starts, seed, low, high, holds, centres, found):
    keep = hot.shape[1]
    for row in range(len(count)):
        at = starts[row]
        for c in range(keep):
            low[c] = c
        for number in range(rounds[row]):
            if number == 0:
                _cut(count[row], low, high)
            else:
                _halve(low, high)
            for c in range(2 * keep):
                centres[at + c] = offset[row] + min((low[c] + high[c]) // 2, count[row] - 1)
            _look(hot[row], low, high, holds)
            _choose(seed, at, low, high, holds)
            at += 2 * keep
        for c in range(keep):
            found[row, c] = offset[row] + low[c]


@Inner
def _cut(count, low, high):
    """All blocks, in chunks."""
    for c in range(len(low)):
        low[c] = count * c // len(low)
        high[c] = count * (c + 1) // len(low)


@Inner
def _halve(low, high):
    """The first half of the chunks, in halves."""
    for c in range(len(low) // 2 - 1, -1, -1):
        first, end = low[c], high[c]
        middle = (first + end + 1) // 2
        low[2 * c], high[2 * c] = first, middle
        low[2 * c + 1], high[2 * c + 1] = middle, end


@Inner
def _look(hot, low, high, holds):
    """Whether each chunk holds one of the hot blocks; both ascend."""
    h = 0
    for c in range(len(low)):
        while h < len(hot) and hot[h] < low[c]:
            h += 1
        holds[c] = h < len(hot) and hot[h] < high[c]


@Inner
def _choose(seed, at, low, high, holds):
    """Half of the chunks, moved to the front: those that hold, and as many others as it takes."""
    wanted, others = len(low) // 2, 0
    for c in range(len(low)):
        wanted -= holds[c]
        others += holds[c] == 0 and low[c] < high[c]
    kept = 0
    for c in range(len(low)):
        chosen = holds[c] != 0
        if not chosen and low[c] < high[c]:
            chosen = _drawn(seed, at + c) * others < wanted  # each of the others as likely as any
            others -= 1
            wanted -= chosen
        if chosen:
            low[kept], high[kept] = low[c], high[c]
            kept += 1


@Inner
def _drawn(seed, number):
    """Evenly from 0 to 1, for each number of a seed (SplitMix64: doi 10.1145/2660193.2660195)."""
    z = seed + (np.uint64(number) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return float((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
