"""Block-sparse attention: the FlashAttention-2 loop over the key blocks that a mask keeps.

The mask is made of a sliding window, sinks and random blocks, or read from a file of block indices.
What the workload's own mask hides is never visited. Source of the patterns: StreamingLLM (arXiv
2309.17453; 4 sink tokens and a window), BigBird (arXiv 2007.14062; window, global and random blocks
of 64). The loop and its default tile are those of `flash2`.
"""

import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import model_validator

from sim.files import InputError
from sim.hardware import HardwareProfile
from sim.schedules.base import Tile, blocks, qkvo, visible_blocks
from sim.schedules.flash2 import FlashSchedule, KeyBlocks, forward_kernel, public_cta
from sim.tile_program import IntArray, Kernel
from sim.units import Count, CountOrNone
from sim.workload import AttentionWorkload


class BlockSparse(FlashSchedule):
    """Block-sparse attention forward.

    `keep_window` latest keys, `sinks` first keys and `random_blocks` of the rest (drawn by `seed`,
    the same for all heads) are visited by each block of query rows, whole key blocks each. With
    none of the three, all that the workload's mask shows. `mask_file` names an .npz instead:
    `indptr` and `indices` (CSR; a row for each block of query rows, or for each such block of each
    head of each sequence) and `tile` (its query rows and keys).
    """

    name: Literal["block_sparse"] = "block_sparse"
    keep_window: Count | None = None
    sinks: CountOrNone = 0
    random_blocks: CountOrNone = 0
    seed: CountOrNone = 0
    mask_file: Path | None = None

    summary = "FlashAttention-2 over the key blocks of a pattern, or of a file"
    source = "arXiv 2309.17453 (window and sinks), arXiv 2007.14062 (BigBird)"

    @model_validator(mode="after")
    def _one_mask(self) -> "BlockSparse":
        if self.mask_file and (self.keep_window or self.sinks or self.random_blocks or self.tile):
            raise ValueError("mask_file excludes keep_window, sinks, random_blocks and tile")
        return self

    def relative_to(self, folder: Path | None) -> "BlockSparse":
        """The schedule with `mask_file` looked up from `folder`."""
        if folder is None or self.mask_file is None or self.mask_file.is_absolute():
            return self
        return self.model_copy(update={"mask_file": folder / self.mask_file})

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel: a CTA a block of query rows, with a table of key blocks."""
        public = public_cta(w, hw, self.implementation)
        if self.mask_file is not None:
            tile, visits = read_mask(self.mask_file, w)
            cta = self.model_copy(update={"tile": tile}).cta(public, w, hw)
        else:
            cta = self.cta(public, w, hw)
            visits = self._pattern(w, cta.tile)
        return [forward_kernel("block_sparse", w, cta, visits, qkvo(w))]

    def _pattern(self, w: AttentionWorkload, tile: Tile) -> KeyBlocks:
        """Rows of key blocks, last first, each within what the workload's mask shows."""
        rng = np.random.default_rng(self.seed)
        dense = self.keep_window is None and not self.sinks and not self.random_blocks
        offset = w.seq_kv - w.seq_q
        rows: list[IntArray] = []
        for number, (first, end) in enumerate(zip(*visible_blocks(w, tile), strict=True)):
            shown = np.arange(first, max(end, first), dtype=np.int64)[::-1]
            if dense:
                rows.append(shown)
                continue
            kept = shown * tile.kv < self.sinks
            if self.keep_window is not None:
                top, bottom = number * tile.q, min((number + 1) * tile.q, w.seq_q) - 1
                low = offset + top + 1 - self.keep_window
                high = offset + bottom + (1 if w.causal else self.keep_window)
                kept |= (shown * tile.kv + tile.kv > low) & (shown * tile.kv < high)
            rest = np.flatnonzero(~kept)
            kept[rng.permutation(rest)[: self.random_blocks]] = True
            rows.append(shown[kept])
        return as_table(rows)


def as_table(rows: list[IntArray]) -> KeyBlocks:
    """The key blocks of each row, laid one after the other."""
    trips = np.array([len(row) for row in rows], np.int64)
    return KeyBlocks(
        trips=trips,
        first=np.concatenate([[0], np.cumsum(trips)[:-1]]).astype(np.int64),
        table=np.concatenate([np.empty(0, np.int64), *rows]),
    )


def read_mask(path: Path, w: AttentionWorkload) -> tuple[Tile, KeyBlocks]:
    """The tile and the key blocks of a mask file; raises InputError where it does not suit `w`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            indptr = np.asarray(arrays["indptr"], np.int64)
            indices = np.asarray(arrays["indices"], np.int64)
            q, kv = (int(side) for side in arrays["tile"])
            tile = Tile(q=q, kv=kv)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except KeyError as error:
        raise InputError(
            f"{path}: array {error} is missing; expected indptr, indices, tile"
        ) from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        raise InputError(
            f"{path}: not a mask: an .npz with integer arrays indptr, indices and tile = [q, kv] "
            "(multiples of 16) was expected"
        ) from None
    down, across = blocks(w.seq_q, tile.q), blocks(w.seq_kv, tile.kv)
    accepted = (down, down * w.batch * w.heads)
    if len(indptr) - 1 not in accepted:
        raise InputError(
            f"{path}: indptr has {len(indptr) - 1} rows; {accepted[0]} (one a block of query rows) "
            f"or {accepted[1]} (one for each head of each sequence too) were expected"
        )
    if indptr[0] != 0 or np.any(np.diff(indptr) < 0) or indptr[-1] != len(indices):
        raise InputError(
            f"{path}: indptr must rise from 0 to the length of indices ({len(indices)})"
        )
    if len(indices) and (indices.min() < 0 or indices.max() >= across):
        raise InputError(f"{path}: indices must be key blocks 0 to {across - 1}")
    first, end = (np.resize(side, len(indptr) - 1) for side in visible_blocks(w, tile))
    trips = np.diff(indptr)
    row = np.repeat(np.arange(len(trips)), trips)
    shown = (indices >= first[row]) & (indices < end[row])
    rows = [indices[a:b][shown[a:b]] for a, b in pairwise(indptr)]
    return tile, as_table(rows)
