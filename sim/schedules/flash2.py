"""FlashAttention-2, forward.

    for each block of tile.q query rows, of each head of each sequence (one CTA):
        load Q_i
        for each block of tile.kv keys that the mask shows, last to first:
            load K_j, V_j
            S = Q_i K_j^T;  m, P = online softmax of S;  O_i = rescale(O_i) + P V_j
        O_i = O_i / l_i;  store O_i and the log-sum-exp

Source: Dao 2023 (arXiv 2307.08691), Algorithm 1; tiles, grid order and loop order as in
Dao-AILab/flash-attention, csrc/flash_attn/src/flash_fwd_launch_template.h and flash_fwd_kernel.h.
Q, K and V have one buffer each there, so K_j-1 comes during the softmax and the second matmul of j.
Triton's compiler gives K and V as many buffers as the loop has stages, and on Hopper wgmma.
The backward pass of training is in flash2_backward.py.
"""

from dataclasses import replace
from typing import Literal

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import qkvo
from sim.schedules.parts.flash2_backward import Saved, backward_kernels, public_backward_cta
from sim.schedules.parts.flash_loop import FlashSchedule, all_visible, forward_kernel
from sim.schedules.parts.public_tiles import public_cta
from sim.tile_program import Kernel


class Flash2(FlashSchedule):
    """FlashAttention-2. A tile, or warps, that are given hold for backward too."""

    name: Literal["flash2"] = "flash2"

    summary = "a CTA a block of query rows; O stays in registers"
    source = "arXiv 2307.08691; Dao-AILab/flash-attention, csrc/flash_attn"
    phases = ("prefill", "decode", "training")
    takes = frozenset({"dropout"})

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        if self.implementation == "triton" and (w.dropout or w.phase == "training"):
            key = "dropout = true" if w.dropout else 'phase = "training"'
            raise InputError(
                f'schedule flash2: implementation = "triton": workload.{key}: "cuda" was expected'
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel, a CTA a block of query rows; in training those of backward after it."""
        cta = self.cta(public_cta(w, hw, self.implementation), w, hw)
        visits = all_visible(w, cta.tile)
        q, k, v, o = tensors = qkvo(w)
        forward = forward_kernel("flash2", w, cta, visits, tensors)
        if w.phase != "training":
            return [forward]
        public = public_backward_cta(w, hw)
        tile = self.fit_tile(public.tile, public.sram_bytes(w), w, hw)
        backward = replace(public, tile=tile, warps=self.warps or public.warps)
        lse = forward.tensors[-1]
        return [forward, *backward_kernels(w, backward, Saved(q, k, v, o, lse))]
