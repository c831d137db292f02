"""Block-sparse attention: FlashAttention-2 over the key blocks that a mask keeps.

    for each block of tile.q query rows, of each head of each sequence (one CTA):
        load Q_i
        for each block of tile.kv keys that holds a key of the window or a sink, or was drawn, or
                that a file names for these rows:
            load K_j, V_j
            S = Q_i K_j^T;  m, P = online softmax of S;  O_i = rescale(O_i) + P V_j
        O_i = O_i / l_i;  store O_i and the log-sum-exp

What the workload's own mask hides is never visited. Source of the patterns: StreamingLLM (arXiv
2309.17453; 4 sink tokens and a window) and BigBird's random blocks (arXiv 2007.14062); BigBird
itself and Longformer, whose global rows attend to everything, are in patterns.py. The loop and its
default tile are those of `flash2`; how a kernel goes by a table of blocks is in parts/masks.py.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count, CountOrNone
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, qkvo
from sim.schedules.parts.flash_loop import query_blocks
from sim.schedules.parts.masks import (
    KeyBlocks,
    MaskedSchedule,
    keys_between,
    pattern,
    read_mask,
    sparse_kernel,
)
from sim.schedules.parts.public_tiles import public_cta
from sim.schedules.parts.traversal import GridOrder
from sim.tile_program import IntArray, Kernel


class BlockSparse(MaskedSchedule):
    """Block-sparse attention forward.

    `keep_window` latest keys, `sinks` first keys and `random_blocks` of the rest (drawn by `seed`,
    the same for all heads) are visited by each block of query rows, whole key blocks each. With
    none of the three, all that the workload's mask shows. `mask_file` names an .npz instead:
    `indptr` and `indices` (CSR; a row for each block of query rows, or for each such block of each
    head of each sequence) and `tile` (its query rows and keys). `grid_order` is which CTA comes
    after which (traversal.py).
    """

    name: Literal["block_sparse"] = "block_sparse"
    keep_window: Count | None = None
    sinks: CountOrNone = 0
    random_blocks: CountOrNone = 0
    seed: CountOrNone = 0
    grid_order: GridOrder = "head_slow"

    summary = "FlashAttention-2 over the key blocks of a pattern, or of a file"
    source = "arXiv 2309.17453 (window and sinks), arXiv 2007.14062 (random blocks)"

    @model_validator(mode="after")
    def _one_mask(self) -> "BlockSparse":
        if self.mask_file and (self.keep_window or self.sinks or self.random_blocks or self.tile):
            raise ValueError("mask_file excludes keep_window, sinks, random_blocks and tile")
        return self

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel: a CTA a block of query rows, with a table of key blocks."""
        public = public_cta(w, hw, self.implementation)
        if self.mask_file is not None:
            tile, visits = read_mask(self.mask_file, w)
            cta = self.model_copy(update={"tile": tile}).cta(public, w, hw)
        else:
            cta = self.cta(public, w, hw)
            visits = self._visits(w, cta.tile)
        grid = query_blocks(w, cta.tile, self.grid_order, hw)
        return [sparse_kernel("block_sparse", w, cta, visits, qkvo(w), "flash", grid=grid)]

    def _visits(self, w: AttentionWorkload, tile: Tile) -> KeyBlocks:
        dense = self.keep_window is None and not self.sinks and not self.random_blocks
        window = self.keep_window or 0
        ahead = 1 if w.causal else window

        def kept(first: int, last: int, shown: IntArray) -> NDArray[np.bool_]:
            in_window = keys_between(first + 1 - window, last + ahead, shown, tile)
            return dense | (shown * tile.kv < self.sinks) | (in_window & bool(window))

        return pattern(self.name, w, tile, kept, self.random_blocks, self.seed)
