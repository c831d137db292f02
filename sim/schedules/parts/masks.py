"""Which key blocks each block of query rows visits: by a pattern, or from a file."""

import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.inputs.files import InputError
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks, visible_blocks
from sim.schedules.parts.flash_loop import FlashSchedule, KeyBlocks
from sim.tile_program import IntArray

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
