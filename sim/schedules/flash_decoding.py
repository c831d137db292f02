"""Decoding one token with the KV cache split among CTAs, FlashAttention-2's split-KV kernels.

    for each KV head of each sequence, for each of `splits` ranges of its key blocks (one CTA):
        load the query rows of all heads that share the KV head
        O_s, log-sum-exp_s = the FlashAttention-2 loop over the range
    for each few rows of O (one CTA of the combine kernel):
        O = sum over s of exp(lse_s - lse) O_s

Source: Dao-AILab/flash-attention, csrc/flash_attn: tiles 64 x 256, 128 or 64 by head_dim
(flash_fwd_launch_template.h, run_mha_fwd_splitkv_dispatch), the number of splits
(flash_api.cpp, num_splits_heuristic, set_params_splitkv), query heads packed as rows of one matrix
(mha_fwd_kvcache, seqlenq_ngroups_swapped), rows a CTA of the combine kernel
(run_flash_splitkv_fwd). Without splits there is no combine kernel.
"""

from dataclasses import replace
from math import ceil
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from sim.files import InputError
from sim.hardware import HardwareProfile
from sim.schedules.base import STATISTICS_BYTES, Tile, blocks
from sim.schedules.flash2 import Cta, FlashSchedule, Operand, flash_kernel
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

MOST_SPLITS = 128


class FlashDecoding(FlashSchedule):
    """Split-KV decoding of one query a sequence. `splits`: as the public heuristic unless given."""

    name: Literal["flash_decoding"] = "flash_decoding"
    splits: Annotated[int, Field(ge=1, le=MOST_SPLITS)] | None = None

    summary = "split-KV decoding: a CTA a range of the cache, then a combine kernel"
    source = "Dao-AILab/flash-attention, csrc/flash_attn (flash_fwd_splitkv_kernel)"
    phases = ("decode",)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The split kernel and, of more than one split, the combine kernel."""
        if w.seq_q != 1:
            raise InputError(
                f"schedule {self.name}: workload.seq_q = {w.seq_q}: it decodes one query (seq_q = "
                '1, as phase = "decode" has it)'
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
        splits = min(self.splits or splits_of(w, hw, keys), keys)
        a_split = blocks(keys, splits)
        splits = blocks(keys, a_split)
        matrices = w.batch * w.kv_heads
        q = Tensor("Q", matrices, rows, w.head_dim, w.dtype_bytes, "input")
        k = Tensor("K", matrices, w.seq_kv, w.head_dim, w.dtype_bytes, "input")
        v = Tensor("V", matrices, w.seq_kv, w.head_dim, w.dtype_bytes, "input")
        o = Tensor("O", 1, matrices * rows, w.head_dim, w.dtype_bytes, "output")
        lse = Tensor("LSE", 1, matrices * rows, 1, STATISTICS_BYTES, "output")
        partial_o = Tensor("O of splits", splits, matrices * rows, w.head_dim, STATISTICS_BYTES)
        partial_lse = Tensor("LSE of splits", splits, matrices * rows, 1, STATISTICS_BYTES)
        across = blocks(w.seq_kv, cta.tile.kv)

        def matrix(items: IntArray) -> IntArray:
            """Grid (1, splits, matrices), the first fastest."""
            return items // splits

        def last_key_block(items: IntArray) -> IntArray:
            end = np.minimum(end_block, first_block + (items % splits + 1) * a_split)
            return matrix(items) * across + end - 1

        def trips(items: IntArray) -> IntArray:
            return np.minimum(a_split, keys - items % splits * a_split)

        def rows_of_split(items: IntArray) -> IntArray:
            return items % splits * matrices + matrix(items)

        out, statistics = (partial_o, partial_lse) if splits > 1 else (o, lse)
        split = flash_kernel(
            "flash_decoding",
            w,
            cta,
            ctas=matrices * splits,
            trips=trips,
            q=Stream(q, cta.tile.q, w.head_dim, matrix),
            k=Operand((Stream(k, cta.tile.kv, w.head_dim, last_key_block, -1),)),
            v=Operand((Stream(v, cta.tile.kv, w.head_dim, last_key_block, -1),)),
            o=Stream(out, rows, w.head_dim, rows_of_split),
            lse=Stream(statistics, rows, 1, rows_of_split),
        )
        if splits == 1:
            return [split]
        return [split, _combine(w, partial_o, partial_lse, o, lse)]


def _public(w: AttentionWorkload, hw: HardwareProfile, triton: bool) -> Cta:
    """run_mha_fwd_splitkv_dispatch; Triton's: smaller tiles in 3 stages, 2 where SRAM is short."""
    if triton:
        deep = Cta(Tile(q=64, kv=64), 4, stages=3, tensor_path="native")
        return deep if deep.sram_bytes(w) <= hw.sram.max_per_cta else replace(deep, stages=2)
    rows = max(64, -(-(w.heads // w.kv_heads) // 16) * 16)
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
