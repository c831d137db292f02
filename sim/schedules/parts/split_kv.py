"""The split-KV kernels, as all schedules that decode with them have them.

    for each KV head of each sequence, for each of `splits` ranges of its key blocks (one CTA):
        load the query rows of all heads that share the KV head
        O_s, log-sum-exp_s = the FlashAttention-2 loop over the range, last block first
    for each few rows of O (one CTA of the combine kernel, unless there is one range):
        load log-sum-exp_s of all s;  lse of all,  w_s = exp(lse_s - lse)
        for each s:  load O_s;  O += w_s O_s

Where K and V of a block lie the schedule says: in a matrix a KV head (`contiguous`), in pages, ...

Source: Dao-AILab/flash-attention, csrc/flash_attn: the number of splits (flash_api.cpp,
num_splits_heuristic, set_params_splitkv), query heads packed as rows of one matrix
(mha_fwd_kvcache, seqlenq_ngroups_swapped), rows a CTA of the combine kernel
(flash_fwd_launch_template.h, run_flash_splitkv_fwd), its order (flash_fwd_kernel.h,
combine_attn_seqk_parallel). One O_s is on its way at a time: the loads do not depend on each other,
but as compiled (the wheel of xformers 0.0.24, sm_80 and sm_90) each goes into the registers of the
one before, after it was added. O_s is fp32.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload, Phase
from sim.schedules.base import STATISTICS_BYTES, blocks, of_constant
from sim.schedules.parts import registers
from sim.schedules.parts.combine import reduction
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.flash_cta import FlashCta, compiled_head_dim
from sim.schedules.parts.flash_loop import Operand, QueryTiles, flash_kernel, key_loop
from sim.schedules.parts.flash_schedule import FlashSchedule
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.kv_cache import QUANTISATIONS, cache_tensors, ops_of_making_ready
from sim.schedules.parts.public_tiles import public_split_kv_cta
from sim.schedules.parts.results import Attention, Result
from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Kind,
    Load,
    Loop,
    OfItem,
    Stream,
    Tensor,
)

MOST_SPLITS = 128
VECTOR_OPS_PER_WEIGHT = 4  # running maximum, difference, sum; difference from their log-sum-exp
Splits = Annotated[int, Field(ge=1, le=MOST_SPLITS)]


@dataclass(frozen=True, eq=False)
class SplitKeys:
    """The key blocks that the mask shows, cut in `splits` ranges for each K/V matrix.

    A CTA each. `rows` query heads share a matrix.
    """

    w: AttentionWorkload
    cta: FlashCta
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

    @cached_property
    def q(self) -> Tensor:
        """The query rows of each K/V matrix."""
        shape = (self.matrices, self.rows, self.w.head_dim)
        return Tensor("Q", *shape, self.w.dtype_bytes, "input", "query")

    @property
    def across(self) -> int:
        """Key blocks of a matrix, shown or not."""
        return blocks(self.w.seq_kv, self.cta.tile.kv)

    @property
    def grid(self) -> Grid:
        """(ranges, K/V matrices)."""
        return Grid(self.splits, self.matrices)

    def matrix(self, items: IntArray) -> IntArray:
        """The K/V matrix of each CTA."""
        return self.grid.at(items)[1]

    def rows_of_split(self, items: IntArray) -> IntArray:
        """Where each CTA's rows lie among the partial results, range after range."""
        number, matrix = self.grid.at(items)
        return number * self.matrices + matrix

    def ends(self, items: IntArray) -> tuple[IntArray, IntArray]:
        """The first key block of each CTA's range, and the one behind its last."""
        size = blocks(self.end_block - self.first_block, self.splits)
        first = self.first_block + self.grid.at(items)[0] * size
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
    multiplies_fp8 = True  # as FlashAttention-3's and FlashInfer's decoding, whose place it takes

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
        cta = self.cta(public_split_kv_cta(w, hw, self.implementation), w, hw)
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


def contiguous_attention(keys: SplitKeys) -> Attention:
    """Attention over a cache that is a matrix a KV head of a sequence."""
    kv = cache_tensors(keys.w, keys.matrices, keys.w.seq_kv)
    loop = keys.loop(keys.trips, *contiguous(keys, kv))
    # The quantised kernel is another one.
    return split_attention("flash_decoding", keys, loop, kind=None if keys.w.kv_dtype else "flash")


def contiguous(keys: SplitKeys, kv: tuple[Tensor, Tensor]) -> tuple[Operand, Operand]:
    """K and V, a matrix a KV head of a sequence each, their blocks visited last first."""
    rows = keys.cta.tile.kv
    ops = ops_of_making_ready(keys.w, rows)
    k, v = (
        Operand((Stream(tensor, rows, tensor.cols, keys.last_tile, -1),), register_ops=ops)
        for tensor in kv
    )
    return k, v


def split_attention(
    name: str, keys: SplitKeys, *key_loops: Loop, kind: Kind | None = None
) -> Attention:
    """The split kernel, named with the cache's dtype where it has its own, and combine.

    `kind` is that of the split kernel.
    """
    w, cta, rows, all_rows = keys.w, keys.cta, keys.rows, keys.matrices * keys.rows
    result = Result(
        Tensor("O", 1, all_rows, w.head_dim, w.dtype_bytes, "output", "result"),
        Tensor("LSE", 1, all_rows, 1, STATISTICS_BYTES, "output", "statistics"),
    )
    shape = (keys.splits, all_rows)
    of_splits = Result(
        Tensor("O of splits", *shape, w.head_dim, STATISTICS_BYTES, role="partial"),
        Tensor("LSE of splits", 1, *shape, STATISTICS_BYTES, role="partial"),
    )
    stored, lse_tile = (of_splits, (1, rows)) if keys.splits > 1 else (result, (rows, 1))
    tiles = QueryTiles(
        ctas=keys.grid.size,
        q=Stream(keys.q, cta.tile.q, w.head_dim, keys.matrix),
        o=Stream(stored.o, rows, w.head_dim, keys.rows_of_split),
        lse=Stream(stored.lse, *lse_tile, keys.rows_of_split),
        periods=keys.matrices,
        sharing=1,
    )
    title = f"{name}, {w.kv_dtype} cache" if w.kv_dtype else name
    split = replace(flash_kernel(title, w, cta, tiles, *key_loops), kind=kind)
    if keys.splits == 1:
        return Attention([split], result)
    return Attention([split, _combine(of_splits, result)], result)


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


def _combine(parts: Result, whole: Result) -> Kernel:
    """run_flash_splitkv_fwd: 4, 8 or 16 rows a CTA of 128 threads, by head_dim."""
    splits, head_dim = parts.o.groups, compiled_head_dim(whole.o.cols)
    rows = 4 if head_dim % 128 == 0 else 8 if head_dim % 64 == 0 else 16
    weights, down = splits * rows, blocks(whole.o.rows, rows)
    weigh = Compute(
        "w_s = exp(lse_s - lse)",
        (Load(Stream(parts.lse, splits, rows, lambda items: items)),),
        vector_ops=VECTOR_OPS_PER_WEIGHT * weights,
        exp_count=2 * weights,  # for their sum, then for the weights
        sram_bytes=3 * STATISTICS_BYTES * weights,  # they come in, are transposed, go back
    )
    o = Load(Stream(parts.o, rows, head_dim, lambda items: items, stride=down))
    add = Compute("O += w_s O_s", (o,), vector_ops=rows * head_dim)
    kernel = reduction(
        "combine",
        of_constant(splits),
        add,
        (in_order(whole.o, rows), in_order(whole.lse, rows)),
        Footprint(
            rows * STATISTICS_BYTES * MOST_SPLITS,
            threads=128,
            registers_per_thread=registers.COMBINE,
        ),
        before=weigh,
    )
    return replace(kernel, kind="combine")
