"""Flash attention over some of the key blocks: which ones, by a pattern or from a file.

    for each block of tile.q query rows, of each head of each sequence (one CTA):
        load Q_i
        for each of the key blocks that a table names for those rows:
            the step of FlashAttention-2 (flash_loop.py)
        O_i = O_i / l_i;  store O_i and the log-sum-exp

What the workload's own mask hides is in no table. A mask file has the block indices of a real mask
in the CSR form of sparse matrices, and its tile.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from lzma import LZMAError
from pathlib import Path
from tokenize import TokenError
from typing import Self
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from sim.inputs.files import InputError
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import MOST_ENTRIES, QKVO, Tile, blocks, check_table, visible_blocks
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import (
    Operand,
    QueryBlocks,
    flash_kernel,
    key_loop,
    log_sum_exp,
)
from sim.schedules.parts.flash_schedule import FlashSchedule
from sim.schedules.parts.scores import bias_matrix, bias_tensor
from sim.tile_program import IntArray, Kernel, Kind, Loop, Stream, Tensor

# (position among the keys of a block's first query and of its last, key blocks) -> which are kept
Kept = Callable[[int, int, IntArray], NDArray[np.bool_]]


@dataclass(frozen=True)
class KeyBlocks:
    """The key blocks that each block of query rows visits, the same for all heads or by head.

    Row r visits table[first[r] + i], for i < trips[r].
    """

    trips: IntArray
    first: IntArray
    table: IntArray

    def are_alike(self, grid: QueryBlocks) -> bool:
        """Whether all heads visit the same."""
        return len(self.trips) == grid.down


class MaskedSchedule(FlashSchedule):
    """A schedule whose key blocks may come from a `mask_file` of real ones."""

    mask_file: Path | None = None

    def relative_to(self, folder: Path | None) -> Self:
        """The schedule with `mask_file` and `machine_code` looked up from `folder`."""
        here = super().relative_to(folder)
        if folder is None or self.mask_file is None or self.mask_file.is_absolute():
            return here
        return here.model_copy(update={"mask_file": folder / self.mask_file})


def sparse_kernel(
    name: str,
    w: AttentionWorkload,
    cta: FlashCta,
    visits: KeyBlocks,
    tensors: QKVO,
    kind: Kind | None = None,
    grid: QueryBlocks | None = None,
) -> Kernel:
    """The kernel over the key blocks that `visits` names, on Q, K, V and O.

    `grid` is FlashAttention-2's unless given.
    """
    grid = grid or QueryBlocks(w, cta.tile)
    rows = grid.tiles(tensors.q, tensors.o, log_sum_exp(tensors.q))
    if not visits.are_alike(grid):
        rows = replace(rows, periods=1)
    loop = visiting_loop(w, cta, visits, grid, tensors)
    return replace(flash_kernel(name, w, cta, rows, loop), kind=kind)


def visiting_loop(
    w: AttentionWorkload,
    cta: FlashCta,
    visits: KeyBlocks,
    grid: QueryBlocks,
    tensors: QKVO,
    named_by: tuple[Stream, ...] = (),
) -> Loop:
    """The loop over the key blocks that `visits` names; with K come the numbers that name them."""
    alike = visits.are_alike(grid)

    def row(items: IntArray) -> IntArray:
        return grid.row(items) if alike else grid.tile_of(items)

    def trips(items: IntArray) -> IntArray:
        return visits.trips[row(items)]

    def start(items: IntArray) -> IntArray:
        return visits.first[row(items)]

    def visited(tensor: Tensor, beside: tuple[Stream, ...] = ()) -> Operand:
        tile = (cta.tile.kv, w.head_dim)
        keys = Stream(tensor, *tile, grid.first_key_block, table=visits.table, start=start)
        return Operand((keys, *beside))

    def of_bias(items: IntArray) -> IntArray:
        place = bias_matrix(w, grid.matrix(items)) * grid.down + grid.row(items)
        return place * blocks(w.seq_kv, cta.tile.kv)

    bias = None
    if w.bias:
        sides = (cta.tile.q, cta.tile.kv)
        bias = Stream(bias_tensor(w), *sides, of_bias, table=visits.table, start=start)
    q_bytes = Stream(tensors.q, cta.tile.q, w.head_dim, grid.tile_of).tile_bytes
    return key_loop(w, cta, trips, q_bytes, visited(tensors.k, named_by), visited(tensors.v), bias)


def keys_between(low: int, high: int, shown: IntArray, tile: Tile) -> NDArray[np.bool_]:
    """Which key blocks hold any of the keys low to high - 1."""
    return (shown * tile.kv + tile.kv > low) & (shown * tile.kv < high)


def pattern(
    name: str, w: AttentionWorkload, tile: Tile, kept: Kept, random_blocks: int, seed: int
) -> KeyBlocks:
    """The key blocks of each block of query rows, last first, within what the mask shows.

    Those that are `kept`, and `random_blocks` of the rest, drawn by `seed`.
    """
    rng = np.random.default_rng(seed)
    offset = w.seq_kv - w.seq_q
    rows: list[IntArray] = []
    ranges = visible_blocks(w, tile)
    check_table(name, int((ranges[1] - ranges[0]).sum()))
    numbers = np.arange(int(ranges[1].max(initial=0)), dtype=np.int64)
    for number, (first, end) in enumerate(zip(*ranges, strict=True)):
        shown = numbers[first : max(end, first)][::-1]
        top, bottom = number * tile.q, min((number + 1) * tile.q, w.seq_q) - 1
        keep = kept(offset + top, offset + bottom, shown)
        if random_blocks:
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


HEADER_BYTES = 2**16  # of an array, at most
# What zipfile, its decompressors, NumPy's reader of headers and a member of another shape raise.
_DAMAGED = (
    *(AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError, TypeError),
    *(ValueError, LZMAError, TokenError, BadZipFile, struct.error, zlib.error),
)


class _TooManyError(Exception):
    """An array has more numbers than the workload has use for."""


def _numbers(arrays: NpzFile, key: str, most: int) -> IntArray:
    """An array of at most so many; a small file may hold far more, and is told before it is read.

    Raises _TooManyError, KeyError and any of _DAMAGED.
    """
    assert arrays.zip is not None  # it is open
    if arrays.zip.getinfo(f"{key}.npy").file_size > most * np.int64().nbytes + HEADER_BYTES:
        raise _TooManyError(key)
    return np.asarray(arrays[key], np.int64)


def read_mask(path: Path, w: AttentionWorkload) -> tuple[Tile, KeyBlocks]:
    """The tile and the key blocks of a mask file; raises InputError where it does not suit `w`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            q, kv = _numbers(arrays, "tile", 2).tolist()
            tile = Tile(q=q, kv=kv)
            down, across = blocks(w.seq_q, tile.q), blocks(w.seq_kv, tile.kv)
            rows = down * w.batch * w.heads
            indptr = _numbers(arrays, "indptr", rows + 1)
            indices = _numbers(arrays, "indices", min(rows * across, MOST_ENTRIES))
            if indptr.ndim != 1 or indices.ndim != 1 or not len(indptr):
                raise ValueError("lists were expected")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except KeyError as error:
        raise InputError(
            f"{path}: array {error} is missing; expected indptr, indices, tile"
        ) from None
    except _TooManyError as error:
        raise InputError(
            f"{path}: array '{error}' has more numbers than this workload has blocks"
        ) from None
    except (MemoryError, OverflowError):
        raise InputError(f"{path}: not a mask: its header states more than memory holds") from None
    except _DAMAGED:
        raise InputError(
            f"{path}: not a mask: an .npz with integer arrays indptr, indices and tile = [q, kv] "
            "(multiples of 16) was expected"
        ) from None
    accepted = (down, rows)
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
    visited = [indices[a:b][shown[a:b]] for a, b in pairwise(indptr)]
    return tile, as_table(visited)
