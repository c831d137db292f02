"""H2O (heavy-hitter oracle): decoding from a cache of heavy hitters and recent tokens.

The cache has max(1, heavy * seq_kv) + max(1, recent * seq_kv) tokens of each KV head, no more than
seq_kv. A token is decoded by

    flash_decoding over those tokens, whose scores S are stored too
    for each KV head of each sequence (one CTA):
        A += sum over its query heads of exp(S - log-sum-exp)      (A: read, added to, written)
        of all but the recent tokens, store which has least of A: the next token takes its place

Source: Zhang et al. 2023 (arXiv 2306.14048), Algorithm 1; FMInference/H2O: 10% and 10% of the
length (heavy_ratio, recent_ratio), A in the cache's 16 bits, argmin and eviction in place
(h2o_flexgen/flexgen/pytorch_backend.py, mha_gen and _get_light_hitter). That code's attention is
eager; here it is the split-KV kernel. Estimates: its kernel that updates A (1,024 keys a step), and
one A a KV head where query heads share it (the paper's models share none).
"""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from sim.hardware import HardwareProfile
from sim.schedules.base import blocks
from sim.schedules.flash_decoding import SplitKeys, SplitKv, Splits, contiguous, split_kernels
from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    Store,
    Stream,
    Tensor,
    once,
)
from sim.workload import AttentionWorkload

KEYS_A_STEP = 1024
INDEX_BYTES = 4

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
        """The split kernel, combine, and the kernel that updates what keys have accumulated."""
        keys = self.split(replace(w, seq_kv=self.kept(w)), hw, self.splits)
        scores = Tensor("S", keys.matrices, keys.rows, keys.w.seq_kv, w.dtype_bytes)
        of_tile = Stream(scores, keys.rows, keys.cta.tile.kv, keys.last_tile, -1)
        loop = keys.loop(keys.trips, contiguous("K", keys), contiguous("V", keys))
        loop = replace(loop, ops=(*loop.ops, Store(of_tile)))
        kernels = split_kernels("h2o", keys, loop)
        (lse,) = (tensor for tensor in kernels[-1].tensors if tensor.name == "LSE")
        return [*kernels, _update(keys, scores, lse)]


def _update(keys: SplitKeys, scores: Tensor, lse: Tensor) -> Kernel:
    """A CTA a KV head: adds its rows' probabilities to what each key has, and finds the least."""
    accumulated = Tensor("A", keys.matrices, 1, keys.w.seq_kv, keys.w.dtype_bytes, "output")
    evicted = Tensor("evicted", keys.matrices, 1, 1, INDEX_BYTES, "output")
    steps = blocks(keys.w.seq_kv, KEYS_A_STEP)

    def first(items: IntArray) -> IntArray:
        return items * steps

    load_lse = Load(Stream(lse, keys.rows, 1, lambda items: items))
    load_s = Load(Stream(scores, keys.rows, KEYS_A_STEP, first, 1), stages=2)
    of_keys = Stream(accumulated, 1, KEYS_A_STEP, first, 1)
    load_a = Load(of_keys, stages=2)
    probabilities = keys.rows * KEYS_A_STEP
    add = Compute(
        "A += exp(S - lse)",
        (load_s, load_a),
        vector_ops=2 * probabilities + KEYS_A_STEP,  # subtract and add; the least so far
        exp_count=probabilities,
    )
    return Kernel(
        name="update A",
        ctas=keys.matrices,
        loops=(
            Loop(once, (load_lse, Compute("wait for the log-sum-exp", (load_lse,)))),
            Loop(
                lambda items: np.full_like(items, steps),
                (load_s, load_a, add, Store(of_keys)),
            ),
            Loop(once, (Store(Stream(evicted, 1, 1, lambda items: items)),)),
        ),
        footprint=Footprint(0, threads=256, registers_per_thread=64),
    )
