"""Block-sparse attention: the FlashAttention-2 loop over the key blocks that a mask keeps.

The mask is made of a sliding window, sinks and random blocks, or read from a file of block indices.
What the workload's own mask hides is never visited. Source of the patterns: StreamingLLM (arXiv
2309.17453; 4 sink tokens and a window) and BigBird's random blocks; BigBird itself and Longformer,
whose global rows attend to everything, are in patterns.py. The loop and its default tile are those
of `flash2`.
"""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from sim.files import InputError
from sim.hardware import HardwareProfile
from sim.schedules.base import Schedule, Tile, blocks, qkvo, visible_blocks
from sim.schedules.flash2 import (
    Cta,
    FlashSchedule,
    KeyBlocks,
    forward_kernel,
    public_cta,
    triton_registers,
)
from sim.tile_program import IntArray, Kernel
from sim.units import Count, CountOrNone
from sim.workload import AttentionWorkload

# (position among the keys of a block's first query and of its last, key blocks) -> which are kept
Kept = Callable[[int, int, IntArray], NDArray[np.bool_]]


class MaskedSchedule(FlashSchedule):
    """A schedule whose key blocks may come from a `mask_file` of real ones."""

    mask_file: Path | None = None

    def relative_to(self, folder: Path | None) -> "MaskedSchedule":
        """The schedule with `mask_file` looked up from `folder`."""
        if folder is None or self.mask_file is None or self.mask_file.is_absolute():
            return self
        return self.model_copy(update={"mask_file": folder / self.mask_file})


class BlockSparse(MaskedSchedule):
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
        return [forward_kernel("block_sparse", w, cta, visits, qkvo(w))]

    def _visits(self, w: AttentionWorkload, tile: Tile) -> KeyBlocks:
        dense = self.keep_window is None and not self.sinks and not self.random_blocks
        window = self.keep_window or 0
        ahead = 1 if w.causal else window

        def kept(first: int, last: int, shown: IntArray) -> NDArray[np.bool_]:
            in_window = keys_between(first + 1 - window, last + ahead, shown, tile)
            return dense | (shown * tile.kv < self.sinks) | (in_window & bool(window))

        return pattern(w, tile, kept, self.random_blocks, self.seed)


def keys_between(low: int, high: int, shown: IntArray, tile: Tile) -> NDArray[np.bool_]:
    """Which key blocks hold any of the keys low to high - 1."""
    return (shown * tile.kv + tile.kv > low) & (shown * tile.kv < high)


def pattern(
    w: AttentionWorkload, tile: Tile, kept: Kept, random_blocks: int, seed: int
) -> KeyBlocks:
    """The key blocks of each block of query rows, last first, within what the mask shows.

    Those that are `kept`, and `random_blocks` of the rest, drawn by `seed`.
    """
    rng = np.random.default_rng(seed)
    offset = w.seq_kv - w.seq_q
    rows: list[IntArray] = []
    for number, (first, end) in enumerate(zip(*visible_blocks(w, tile), strict=True)):
        shown = np.arange(first, max(end, first), dtype=np.int64)[::-1]
        top, bottom = number * tile.q, min((number + 1) * tile.q, w.seq_q) - 1
        keep = kept(offset + top, offset + bottom, shown)
        rest = np.flatnonzero(~keep)
        keep[rng.choice(rest, min(random_blocks, len(rest)), replace=False)] = True
        rows.append(shown[keep])
    return as_table(rows)


def check_self_attention(schedule: Schedule, w: AttentionWorkload) -> None:
    """Raises InputError unless all tokens are queries, or one is decoded."""
    if w.seq_q != (1 if w.phase == "decode" else w.seq_kv):
        raise InputError(
            f"schedule {schedule.name}: workload.seq_q = {w.seq_q}: seq_q = seq_kv = {w.seq_kv}, "
            "or decoding of one token, was expected"
        )


def check_triton_kernel(schedule: Schedule, w: AttentionWorkload) -> None:
    """Raises InputError unless dtype and head_dim are those that the public kernels assert."""
    if w.dtype not in ("fp16", "bf16") or w.head_dim > 128:
        raise InputError(
            f'schedule {schedule.name}: workload.dtype = "{w.dtype}", head_dim = {w.head_dim}: '
            "fp16 or bf16 and a head_dim of at most 128 were expected"
        )


def triton_cta(
    w: AttentionWorkload, hw: HardwareProfile, tile: Tile, warps: int, stages: int
) -> Cta:
    """A CTA of a Triton kernel of that tile, with as many of the stages as fit SRAM.

    wgmma takes 64 query rows a warp group; of fewer, a warp takes 16 by mma.sync, and warps that
    have no rows of their own share keys.
    """
    by_group = hw.matmul_by_warp_group and tile.q >= 64
    whole = Cta(
        tile,
        warps,
        stages,
        tensor_path="native" if by_group else "mma_sync",
        registers_per_thread=triton_registers(w, tile, warps),
        kv_readers=max(1, warps // 4) if by_group else min(warps, tile.q // 16),
    )
    fewer = (replace(whole, stages=count) for count in range(stages, 1, -1))
    fitting = (cta for cta in fewer if cta.sram_bytes(w) <= hw.sram.max_per_cta)
    return next(fitting, replace(whole, stages=1))


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
