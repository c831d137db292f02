"""BigBird and Longformer: fixed patterns whose global tokens attend to all and are attended by all.

    BigBird      for each block of 64 query rows (one CTA): the key blocks of the window of 3 around
                 its own, the first and the last of the sequence, and 3 of the others at random
    Longformer   for each block of query rows (one CTA): the keys up to `keep_window` / 2 to either
                 side, and the `global_tokens` first ones
    global rows  visit all key blocks

BigBird: Zaheer et al. 2020 (arXiv 2007.14062), section 2 and Appendix D; defaults as in
huggingface/transformers, models/big_bird (block_size = 64, num_random_blocks = 3; 3 window and 2
global blocks are fixed there). Longformer: Beltagy et al. 2020 (arXiv 2004.05150), section 3.1;
window 512 and no dilation as in longformer-base-4096; one global token is its [CLS].

Both run on the loop of `flash2` in whole blocks, so that a CTA of global rows walks the whole
sequence while others are long done; the public implementations stack gathered blocks for dense
matmuls and do the global rows apart. Longformer's own projections for its global tokens are taken
to be K and V. Under a causal mask, what it shows of the pattern is visited.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count, CountOrNone
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks, check_self_attention, qkvo
from sim.schedules.parts.flash_schedule import FlashSchedule
from sim.schedules.parts.masks import keys_between, pattern, sparse_kernel
from sim.schedules.parts.public_tiles import public_cta
from sim.tile_program import IntArray, Kernel


class BigBird(FlashSchedule):
    """BigBird forward, in blocks of tile.kv keys.

    Half of `global_blocks`, rounded up, are the first of the sequence, the other half the last.
    Random blocks are drawn by `seed`, the same for all heads.
    """

    name: Literal["bigbird"] = "bigbird"
    window_blocks: Count = 3
    global_blocks: CountOrNone = 2
    random_blocks: CountOrNone = 3
    seed: CountOrNone = 0

    summary = "window, global and random blocks of 64; global rows attend to all"
    source = "arXiv 2007.14062; huggingface/transformers, models/big_bird"
    phases = ("prefill",)
    masks = ("full", "causal")

    @field_validator("window_blocks")
    @classmethod
    def _odd(cls, window_blocks: int) -> int:
        if window_blocks % 2 == 0:
            raise ValueError("an odd number was expected: the block itself and as many either side")
        return window_blocks

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        check_self_attention(self, w)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel: a CTA a block of query rows."""
        public = replace(public_cta(w, hw, self.implementation), tile=Tile(q=64, kv=64), warps=4)
        cta = self.cta(public, w, hw)
        size, count = cta.tile.kv, blocks(w.seq_kv, cta.tile.kv)
        first_global, side = -(-self.global_blocks // 2), self.window_blocks // 2
        last_global = count - self.global_blocks // 2

        def kept(first: int, last: int, shown: IntArray) -> NDArray[np.bool_]:
            own, own_end = first // size, last // size + 1
            if own < first_global or own_end > last_global:
                return np.ones(len(shown), bool)
            in_window = (shown >= own - side) & (shown < own_end + side)
            return in_window | (shown < first_global) | (shown >= last_global)

        visits = pattern(self.name, w, cta.tile, kept, self.random_blocks, self.seed)
        return [sparse_kernel("bigbird", w, cta, visits, qkvo(w))]


class Longformer(FlashSchedule):
    """Longformer forward."""

    name: Literal["longformer"] = "longformer"
    keep_window: Count = 512
    global_tokens: CountOrNone = 1

    summary = "a window to both sides and global tokens, which attend to all"
    source = "arXiv 2004.05150; allenai/longformer"
    phases = ("prefill",)
    masks = ("full", "causal")

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        check_self_attention(self, w)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel: a CTA a block of query rows."""
        cta = self.cta(public_cta(w, hw, self.implementation), w, hw)
        tile, side = cta.tile, self.keep_window // 2

        def kept(first: int, last: int, shown: IntArray) -> NDArray[np.bool_]:
            if first < self.global_tokens:
                return np.ones(len(shown), bool)
            in_window = keys_between(first - side, last + side + 1, shown, tile)
            return in_window | (shown * tile.kv < self.global_tokens)

        visits = pattern(self.name, w, tile, kept, random_blocks=0, seed=0)
        return [sparse_kernel("longformer", w, cta, visits, qkvo(w))]
