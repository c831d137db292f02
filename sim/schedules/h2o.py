"""H2O (heavy-hitter oracle): decoding from a cache of heavy hitters and recent tokens.

The cache has max(1, heavy * seq_kv) + max(1, recent * seq_kv) tokens of each KV head, no more than
seq_kv. A token is decoded by

    flash_decoding over those tokens, whose scores S are stored too
    for each 1,024 keys of each KV head of each sequence (one CTA):
        A += sum over its query heads of exp(S - log-sum-exp)      (A: read, added to, written)
        store which of them, but for the recent tokens, has least of A
    for each KV head of each sequence (one CTA):
        store which key has least of all: the next token takes its place

Source: Zhang et al. 2023 (arXiv 2306.14048), Algorithm 1; FMInference/H2O: 10% and 10% of the
length (heavy_ratio, recent_ratio), A in the cache's 16 bits, argmin and eviction in place
(h2o_flexgen/flexgen/pytorch_backend.py, mha_gen and _get_light_hitter). That code's attention is
eager; here it is the split-KV kernel. Estimates: the kernels that update A and evict (1,024 keys a
CTA, as PyTorch's elementwise kernels), and one A a KV head where query heads share it (the paper's
models share none).
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import blocks
from sim.schedules.parts import registers
from sim.schedules.parts.combine_splits import Splits
from sim.schedules.parts.elementwise import elementwise, in_order
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.kv_cache import cache_tensors
from sim.schedules.parts.split_kv import SplitKeys, SplitKv, contiguous, split_attention
from sim.schedules.parts.top_k import INDEX_BYTES
from sim.tile_program import Footprint, IntArray, Kernel, Store, Stream, Tensor

KEYS_A_CTA = 1024
CANDIDATE_BYTES = 8  # a key's number and what it has of A
FOOTPRINT = Footprint(0, threads=128, registers_per_thread=registers.UPDATE)

Ratio = Annotated[float, Field(gt=0, le=1)]


class H2o(SplitKv):
    """Decoding from the `heavy` and the `recent` shares of the tokens so far."""

    name: Literal["h2o"] = "h2o"
    heavy: Ratio = 0.1
    recent: Ratio = 0.1
    splits: Splits | None = None

    summary = "heavy hitters and recent tokens; scores accumulated a key, the least evicted"
    source = "arXiv 2306.14048; FMInference/H2O"
    masks = ("full", "causal")

    def kept(self, w: AttentionWorkload) -> int:
        """Tokens that the cache has."""
        shares = (max(1, int(share * w.seq_kv)) for share in (self.heavy, self.recent))
        return min(w.seq_kv, sum(shares))

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The split kernel, combine, and the kernels that update A and evict."""
        keys = self.split(replace(w, seq_kv=self.kept(w)), hw, self.splits)
        scores = Tensor("S", keys.matrices, keys.rows, keys.w.seq_kv, w.dtype_bytes)
        of_tile = Stream(scores, keys.rows, keys.cta.tile.kv, keys.last_tile, -1)
        kv = cache_tensors(keys.w, keys.w.keys, keys.w.kv_heads)
        loop = keys.loop(keys.trips, *contiguous(keys, kv))
        loop = replace(loop, ops=(*loop.ops, Store(of_tile)))
        attention = split_attention("h2o", keys, loop)
        return [*attention.kernels, *_update_kernels(keys, scores, attention.result.lse)]


def _update_kernels(keys: SplitKeys, scores: Tensor, lse: Tensor) -> list[Kernel]:
    """A CTA a KV head and 1,024 keys adds its rows' probabilities; then a CTA a KV head evicts."""
    accumulated = Tensor(
        "A", keys.matrices, 1, keys.w.seq_kv, keys.w.dtype_bytes, "output", "cache"
    )
    steps = blocks(keys.w.seq_kv, KEYS_A_CTA)
    least = Tensor("least of each", keys.matrices, 1, steps, CANDIDATE_BYTES)
    evicted = Tensor("evicted", keys.matrices, 1, 1, INDEX_BYTES, "output")

    of_row = Grid(steps, keys.matrices)

    def statistics_tile(items: IntArray) -> IntArray:
        return of_row.at(items)[1]

    of_keys = in_order(accumulated, 1, KEYS_A_CTA)
    probabilities = keys.rows * KEYS_A_CTA
    return [
        elementwise(
            "update A",
            [
                Stream(lse, keys.rows, 1, statistics_tile),
                in_order(scores, keys.rows, KEYS_A_CTA),
                of_keys,
            ],
            [of_keys, in_order(least, 1, 1)],
            vector_ops=2 * probabilities + KEYS_A_CTA,  # subtract and add; the least so far
            exp_count=probabilities,
            footprint=FOOTPRINT,
        ),
        elementwise(
            "evict", [in_order(least, 1)], [in_order(evicted, 1)], steps, footprint=FOOTPRINT
        ),
    ]
