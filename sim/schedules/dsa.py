"""DeepSeek Sparse Attention (DeepSeek-V3.2): an indexer chooses keys, latents of those are read.

    "index scores"   of all keys that a query sees, in fp8     (parts/lightning_indexer.py)
    "choose keys"    the `top` best of each query
    "sparse mla"     latent attention of all its heads to them (parts/sparse_latents.py)
    "combine"        decoding, of sequences in several parts

Scores grow with the square of the context, 2 x index_heads x index_dim FLOPs a pair, in fp8; the
attention itself does not grow beyond `top` keys a query. Which keys are chosen depends on data:
here one pair of neighbours of each of top / 2 equal parts of what a query sees, drawn by `seed`,
the same in all sequences.

Decoding reads a cache in 8 bits with scales (`kv_dtype = "fp8"`). Prefill reads 16 bits: a cache of
8 is widened first, as vLLM's cp_gather_and_upconvert_fp8_kv_cache does.

Source: DeepSeek-V3.2-Exp (deepseek-ai, DeepSeek_V3_2.pdf, section 2): 64 index heads of 128, 2,048
keys; deepseek-ai/FlashMLA and DeepGEMM. Their kernels are for Hopper here; heads of a block beyond
the model's are padding, as frameworks pad them. Left out, as projections are: index Q and K, their
rotation and quantisation, and W_UK and W_UV. Of a call before all layers, which decides who works
on what, nothing is counted.
"""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from sim.inputs.files import InputError, shown
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import CountOrNone, whole
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Schedule, check_arch, check_table
from sim.schedules.parts.elementwise import elementwise, in_order, rows_of
from sim.schedules.parts.latent_parts import cut_in_parts
from sim.schedules.parts.lightning_indexer import Index
from sim.schedules.parts.sparse_latents import (
    KEYS,
    TOGETHER,
    WIDE,
    SparseLatents,
    narrow_row_bytes,
    numbers_of,
)
from sim.tile_program import IntArray, Kernel, Tensor

LATENT_DIM, ROPE_DIM, MOST_HEADS = 512, 64, 128  # that FlashMLA is compiled for
MOST_DECODED = 2  # queries of a sequence (fp8_paged_mqa_logits on Hopper: next_n)
WIDENING_OPS = 6  # of an element: conversions, a product; an estimate


class Dsa(Schedule):
    """DeepSeek Sparse Attention: each query attends to the `top` keys that its indexer scores best.

    The indexer has `index_heads` heads of `index_dim` columns, and one K a token for all.
    """

    name: Literal["dsa"] = "dsa"
    top: Annotated[int, Field(ge=128, multiple_of=128), whole(128, multiple_of=128)] = 2048
    index_heads: Literal[32, 64] = 64
    index_dim: Literal[32, 64, 128] = 128
    seed: CountOrNone = 0

    summary = "DeepSeek-V3.2: an fp8 indexer chooses keys, latent attention reads those alone"
    source = "DeepSeek-V3.2-Exp, section 2; deepseek-ai/FlashMLA, deepseek-ai/DeepGEMM"
    masks = ("causal",)
    takes = frozenset({"latents", "append", "kv_dtype"})

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        decoding = w.phase == "decode"
        cache = w.kv_dtype or w.dtype
        for key, given, is_taken, expected in (
            ("latent_dim", w.latent_dim or 0, w.latent_dim == LATENT_DIM, f"{LATENT_DIM}"),
            ("rope_dim", w.rope_dim, w.rope_dim == ROPE_DIM, f"{ROPE_DIM}"),
            ("heads", w.heads, w.heads <= MOST_HEADS, f"up to {MOST_HEADS}"),
            ("dtype", w.dtype, w.dtype == "bf16", '"bf16"'),
            ("kv_dtype", cache, cache == "fp8" or (not decoding and not w.kv_dtype), '"fp8"'),
            ("seq_q", w.seq_q, not decoding or w.seq_q <= MOST_DECODED, f"up to {MOST_DECODED}"),
        ):
            if not is_taken:
                raise InputError(
                    f"schedule {self.name}: workload.{key} = {shown(given)}: {expected} was "
                    "expected, as its public kernels have"
                )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The indexer's two kernels and the attention's."""
        check_arch(self.name, hw, "sm90")
        check_table(self.name, w.seq_q * self.top // TOGETHER)
        found = numbers_of(w, self.top)
        index = Index(w, self.index_heads, self.index_dim, self.top)
        choice = index.kernels(hw, found)
        seen = index.seen(np.arange(w.seq_q, dtype=np.int64))
        pairs = self.chosen_pairs(seen)
        narrow = Tensor(
            "C, fp8", w.batch, w.seq_kv, narrow_row_bytes(LATENT_DIM, ROPE_DIM), 1, "input", "cache"
        )
        if w.phase == "decode":
            latents = SparseLatents(w, LATENT_DIM, narrow, found, pairs)
            blocks_of_heads = w.seq_q * latents.head_blocks
            steps = [self.top // KEYS] * w.batch
            parts = cut_in_parts(steps, max(1, hw.sm.count // blocks_of_heads))
            return [*choice, *latents.decoding(parts)]
        cache = Tensor("C", w.batch, w.seq_kv, LATENT_DIM + ROPE_DIM, WIDE, "input", "cache")
        widening = []
        if w.kv_dtype:
            cache = replace(cache, lifetime="workspace")
            widening = [_widening_kernel(narrow, cache)]
        latents = SparseLatents(w, LATENT_DIM, cache, found, pairs)
        return [*choice, *widening, *latents.prefill(np.minimum(seen, self.top))]

    def chosen_pairs(self, seen: IntArray) -> IntArray:
        """Which pairs of neighbouring keys each query reads that sees so many.

        Returns shape (queries, top / TOGETHER). Of a query that sees no more than `top` they are
        all, then the first ones again.
        """
        count = self.top // TOGETHER
        pairs, number = -(-seen[:, None] // TOGETHER), np.arange(count)
        low, high = pairs * number // count, pairs * (number + 1) // count
        rng = np.random.default_rng(self.seed)
        drawn = low + (rng.random(low.shape) * (high - low)).astype(np.int64)
        chosen: IntArray = np.where(pairs > count, drawn, number % pairs)
        return chosen


def _widening_kernel(narrow: Tensor, cache: Tensor) -> Kernel:
    rows = rows_of(cache)
    ops = WIDENING_OPS * rows * LATENT_DIM
    return elementwise("widen C", [in_order(narrow, rows)], [in_order(cache, rows)], ops)
