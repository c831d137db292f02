"""Decoding with the KV cache split among CTAs, FlashAttention-2's split-KV kernels."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload, Phase
from sim.schedules.base import STATISTICS_BYTES, Tile, blocks
from sim.schedules.parts.flash_loop import Cta, FlashSchedule, Operand, around_key_loops, key_loop
from sim.schedules.parts.kv_cache import QUANTISATIONS, cache_tensors, ops_of_making_ready
from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Store,
    Stream,
    Tensor,
    once,
)

MOST_SPLITS = 128
Splits = Annotated[int, Field(ge=1, le=MOST_SPLITS)]


@dataclass(frozen=True, eq=False)
class SplitKeys:
    """The key blocks that the mask shows, cut in `splits` ranges for each K/V matrix.

    A CTA each, in the grid (1, splits, matrices), the first fastest. `rows` query heads share a
    matrix.
    """

    w: AttentionWorkload
    cta: Cta
    first_block: int
    end_block: int
    splits: int

    @property
    def rows(self) -> int:
        """Query heads of a KV head."""
        return self.w.heads // self.w.kv_heads

    @property
    def matrices(self) -> int:
        """KV heads of all sequences."""
        return self.w.batch * self.w.kv_heads

    @property
    def across(self) -> int:
        """Key blocks of a matrix, shown or not."""
        return blocks(self.w.seq_kv, self.cta.tile.kv)

    def matrix(self, items: IntArray) -> IntArray:
        """The K/V matrix of each CTA."""
        return items // self.splits

    def rows_of_split(self, items: IntArray) -> IntArray:
        """Where each CTA's rows lie among the partial results: (splits, matrices)."""
        return items % self.splits * self.matrices + self.matrix(items)

    def ends(self, items: IntArray) -> tuple[IntArray, IntArray]:
        """The first key block of each CTA's range, and the one behind its last."""
        size = blocks(self.end_block - self.first_block, self.splits)
        first = self.first_block + items % self.splits * size
        return first, np.minimum(self.end_block, first + size)

    def trips(self, items: IntArray) -> IntArray:
        """Key blocks of each CTA."""
        first, end = self.ends(items)
        return end - first

    def last_tile(self, items: IntArray) -> IntArray:
        """Each CTA's last tile in a tensor of a matrix a KV head: the first that it visits."""
        return self.matrix(items) * self.across + self.ends(items)[1] - 1

    def loop(self, trips: OfItem, k: Operand, v: Operand) -> Loop:
        """The FlashAttention-2 loop over so many key blocks of each CTA."""
        rows = min(self.cta.tile.q, self.rows)
        return key_loop(self.w, self.cta, trips, rows * self.w.head_dim * self.w.dtype_bytes, k, v)


class SplitKv(FlashSchedule):
    """What all schedules built on the split-KV kernels take."""

    phases: ClassVar[tuple[Phase, ...]] = ("decode",)
    takes = frozenset({"kv_dtype"})

    def split(self, w: AttentionWorkload, hw: HardwareProfile, splits: int | None) -> SplitKeys:
        """How the keys are cut, by the public heuristic unless `splits` says; raises InputError."""
        if w.seq_q != 1:
            raise InputError(
                f"schedule {self.name}: workload.seq_q = {w.seq_q}: it decodes one query (seq_q = "
                '1, as phase = "decode" has it)'
            )
        if w.kv_dtype is not None and w.kv_dtype not in QUANTISATIONS:
            raise InputError(
                f'schedule {self.name}: workload.kv_dtype = "{w.kv_dtype}": '
                f"{', '.join(QUANTISATIONS)}, or workload.dtype, was expected"
            )
        rows = w.heads // w.kv_heads
        cta = self.cta(_public(w, hw, self.implementation == "triton"), w, hw)
        if rows > cta.tile.q:
            raise InputError(
                f"schedule {self.name}: tile.q = {cta.tile.q}: the {rows} query heads of a KV head "
                "are its rows; give tile.q at least as many"
            )
        low, high = w.visible_keys(0, 0)
        first_block, end_block = low // cta.tile.kv, blocks(high, cta.tile.kv)
        keys = end_block - first_block
        splits = min(splits or splits_of(w, hw, keys), keys)
        # As many as ranges of that size need.
        splits = blocks(keys, blocks(keys, splits))
        return SplitKeys(w, cta, first_block, end_block, splits)


def contiguous_kernels(keys: SplitKeys) -> list[Kernel]:
    """The kernels over a cache that is a matrix a KV head of a sequence."""
    k, v = contiguous(keys)
    return split_kernels("flash_decoding", keys, keys.loop(keys.trips, k, v))


def contiguous(keys: SplitKeys) -> tuple[Operand, Operand]:
    """K and V as a matrix a KV head of a sequence each, its blocks visited last first."""
    rows = keys.cta.tile.kv
    ops = ops_of_making_ready(keys.w, rows)
    k, v = (
        Operand((Stream(tensor, rows, tensor.cols, keys.last_tile, -1),), register_ops=ops)
        for tensor in cache_tensors(keys.w, keys.matrices, keys.w.seq_kv)
    )
    return k, v


def split_kernels(name: str, keys: SplitKeys, *key_loops: Loop) -> list[Kernel]:
    """The split kernel, named with the cache's dtype where it has its own, and combine."""
    w, cta, rows, all_rows = keys.w, keys.cta, keys.rows, keys.matrices * keys.rows
    q = Tensor("Q", keys.matrices, rows, w.head_dim, w.dtype_bytes, "input", "query")
    o = Tensor("O", 1, all_rows, w.head_dim, w.dtype_bytes, "output", "result")
    lse = Tensor("LSE", 1, all_rows, 1, STATISTICS_BYTES, "output", "statistics")
    partial_o, partial_lse = (
        Tensor(name, keys.splits, all_rows, cols, STATISTICS_BYTES, role="partial")
        for name, cols in (("O of splits", w.head_dim), ("LSE of splits", 1))
    )
    out, statistics = (partial_o, partial_lse) if keys.splits > 1 else (o, lse)
    split = around_key_loops(
        f"{name}, {w.kv_dtype} cache" if w.kv_dtype else name,
        w,
        cta,
        key_loops,
        ctas=keys.matrices * keys.splits,
        q=Stream(q, cta.tile.q, w.head_dim, keys.matrix),
        o=Stream(out, rows, w.head_dim, keys.rows_of_split),
        lse=Stream(statistics, rows, 1, keys.rows_of_split),
    )
    if keys.splits == 1:
        return [split]
    return [split, _combine(w, partial_o, partial_lse, o, lse)]


def _public(w: AttentionWorkload, hw: HardwareProfile, triton: bool) -> Cta:
    """run_mha_fwd_splitkv_dispatch, of a quantised cache with FlashInfer's rows (CTA_TILE_Q).

    Triton's: smaller tiles in 3 stages, 2 where SRAM is short.
    """
    if triton:
        deep = Cta(Tile(q=64, kv=64), 4, stages=3, tensor_path="native")
        return deep if deep.sram_bytes(w) <= hw.sram.max_per_cta else replace(deep, stages=2)
    shared = w.heads // w.kv_heads
    rows = 16 if w.kv_dtype and shared <= 16 else max(64, -(-shared // 16) * 16)
    kv = 256 if w.head_dim <= 64 else 128 if w.head_dim <= 128 else 64
    return Cta(Tile(q=rows, kv=kv), 4)


def splits_of(w: AttentionWorkload, hw: HardwareProfile, key_blocks: int) -> int:
    """How many ranges the key blocks are split in (flash_api.cpp, num_splits_heuristic).

    The fewest whose waves are at least 85% as full as the fullest; two CTAs an SM are counted on.
    """
    matrices, slots = w.batch * w.kv_heads, 2 * hw.sm.count
    if matrices >= 0.8 * slots:
        return 1
    most = min(MOST_SPLITS, slots, key_blocks)
    # A count that gives no range fewer blocks than the one below it is no choice of its own.
    counts = [
        n
        for n in range(1, most + 1)
        if n == 1 or blocks(key_blocks, n) != blocks(key_blocks, n - 1)
    ]
    waves = {n: matrices * n / slots for n in counts}
    fullness = {n: waves[n] / ceil(waves[n]) for n in counts}
    return next(n for n in counts if fullness[n] >= 0.85 * max(fullness.values()))


def _combine(
    w: AttentionWorkload, partial_o: Tensor, partial_lse: Tensor, o: Tensor, lse: Tensor
) -> Kernel:
    """run_flash_splitkv_fwd: 4, 8 or 16 rows a CTA of 128 threads, by head_dim."""
    rows = 4 if w.head_dim % 128 == 0 else 8 if w.head_dim % 64 == 0 else 16
    down = blocks(o.rows, rows)
    load_lse = Load(Stream(partial_lse, rows, 1, lambda items: items, down))
    load_o = Load(Stream(partial_o, rows, w.head_dim, lambda items: items, down))
    elements = rows * w.head_dim
    weigh = Compute(
        "O += exp(lse_s - lse) O_s",
        (load_lse, load_o),
        vector_ops=elements,
        exp_count=rows,
    )
    return Kernel(
        name="combine",
        ctas=down,
        loops=(
            Loop(lambda items: np.full_like(items, partial_o.groups), (load_lse, load_o, weigh)),
            Loop(
                once,
                (
                    Store(Stream(o, rows, w.head_dim, lambda items: items)),
                    Store(Stream(lse, rows, 1, lambda items: items)),
                ),
            ),
        ),
        footprint=Footprint(rows * 4 * MOST_SPLITS, threads=128, registers_per_thread=64),
    )
