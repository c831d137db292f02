"""FlashAttention-2, forward.

    for each block of tile.q query rows, of each head of each sequence (one CTA):
        load Q_i
        for each block of tile.kv keys that the mask shows, last to first:
            load K_j, V_j
            S = Q_i K_j^T;  m, P = online softmax of S;  O_i = rescale(O_i) + P V_j
        O_i = O_i / l_i;  store O_i and the log-sum-exp

Source: Dao 2023 (arXiv 2307.08691), Algorithm 1; tiles, grid order and loop order as in
Dao-AILab/flash-attention, csrc/flash_attn/src/flash_fwd_launch_template.h and flash_fwd_kernel.h.
Sequences of several lengths are flash_attn_varlen_func's (mha_varlen_fwd): see QueryBlocks.
What one step of the loop does is in parts/flash_loop.py, as many schedules have it; the backward
pass of training is in parts/flash2_backward.py.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import QKVO, qkvo, visible_blocks
from sim.schedules.parts.flash2_backward import Saved, backward_kernels
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import (
    Operand,
    QueryBlocks,
    flash_kernel,
    key_loop,
    log_sum_exp,
)
from sim.schedules.parts.flash_schedule import FlashSchedule, Implementation
from sim.schedules.parts.public_tiles import public_backward_cta, public_cta
from sim.schedules.parts.results import Attention, Result
from sim.tile_program import IntArray, Kernel, Kind, Stream, Tensor


class Flash2(FlashSchedule):
    """FlashAttention-2. A tile, or warps, that are given hold for backward too.

    "sglang" is SGLang's prefill in Triton, which loads nothing ahead.
    """

    name: Literal["flash2"] = "flash2"
    implementation: Implementation = "cuda"  # type: ignore[assignment]

    summary = "a CTA a block of query rows; O stays in registers"
    source = "arXiv 2307.08691; Dao-AILab/flash-attention, csrc/flash_attn"
    phases = ("prefill", "decode", "training")
    takes = frozenset({"dropout", "append", "lengths", "query lengths"})

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        if self.compiled_by_triton and (w.dropout or w.phase == "training"):
            key = "dropout = true" if w.dropout else 'phase = "training"'
            raise InputError(
                f'schedule flash2: implementation = "{self.implementation}": workload.{key}: '
                '"cuda" was expected'
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel, a CTA a block of query rows; in training those of backward after it."""
        tensors = qkvo(w)
        forward = self.attention(w, hw, tensors)
        if w.phase != "training":
            return forward.kernels
        public = public_backward_cta(w, hw)
        tile = self.fit_tile(public.tile, public.sram_bytes(w), w, hw)
        cta = replace(public, tile=tile, warps=self.warps or public.warps)
        saved = Saved(*tensors, forward.result.lse)
        return [*forward.kernels, *backward_kernels(w, cta, saved)]

    def attention(self, w: AttentionWorkload, hw: HardwareProfile, tensors: QKVO) -> Attention:
        """The forward kernel on Q, K, V and O; raises InputError as `lower` does."""
        cta = self.cta(public_cta(w, hw, self.implementation), w, hw)
        return flash_attention("flash2", w, cta, tensors, "flash" if w.lengths is None else None)


def flash_attention(
    name: str,
    w: AttentionWorkload,
    cta: FlashCta,
    tensors: QKVO,
    kind: Kind | None = None,
) -> Attention:
    """The forward kernel on Q, K, V and O, by that name; it makes the log-sum-exp."""
    q, k, v, o = tensors
    lse = log_sum_exp(q)
    grid = QueryBlocks(w, cta.tile)
    first, end = visible_blocks(w, cta.tile)

    def trips(items: IntArray) -> IntArray:
        """How many key blocks the mask shows to each block of query rows."""
        shown: IntArray = np.maximum(end - first, 0)
        return shown[grid.row(items)]

    def last(items: IntArray) -> IntArray:
        return grid.first_key_block(items) + end[grid.row(items)] - 1

    def last_to_first(tensor: Tensor) -> Operand:
        return Operand((Stream(tensor, cta.tile.kv, w.head_dim, last, stride=-1),))

    rows = grid.tiles(q, o, lse)
    loop = key_loop(w, cta, trips, rows.q.tile_bytes, last_to_first(k), last_to_first(v))
    kernel = replace(flash_kernel(name, w, cta, rows, loop), kind=kind)
    return Attention([kernel], Result(o, lse))
