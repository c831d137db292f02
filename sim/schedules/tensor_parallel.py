"""Tensor parallelism: each GPU computes a share of the heads, then all sum their projections.

    on each of P GPUs, which holds heads / P heads' Q, K and V of all tokens:
        flash attention, or split-KV decoding
        ring all-reduce of the output projection's partial result, tokens x (heads x head_dim):
            2 (P - 1) times a GPU passes 1 / P of it to the next

Source: Shoeybi et al. 2019 (arXiv 1909.08053), Section 3; the ring of NCCL, whose bytes its own
performance tests count so (NVIDIA/nccl-tests, doc/PERFORMANCE.md). The projection's matmul is not
simulated, nor the sums, which NCCL computes as the bytes arrive. Deviation: NCCL takes a tree or
one shot for what is small, where a ring costs 2 (P - 1) latencies.
"""

from dataclasses import replace
from typing import Literal

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import blocks, qkvo
from sim.schedules.flash2 import Flash2
from sim.schedules.flash_decoding import FlashDecoding
from sim.schedules.parts.several_gpus import SeveralGpus, run_kernels
from sim.tile_program import Command, Kernel, Tensor, Transfer


class TensorParallel(SeveralGpus):
    """Attention by heads, forward; heads and KV heads are multiples of `gpus`."""

    name: Literal["tensor_parallel"] = "tensor_parallel"

    summary = "several GPUs, each its heads; then an all-reduce of the projected result"
    source = "arXiv 1909.08053, Section 3; NVIDIA/nccl-tests, doc/PERFORMANCE.md"
    takes = frozenset({"append"})

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """FlashAttention-2, or split-KV decoding, of a GPU's heads."""
        local = replace(
            w, heads=self.share("heads", w.heads), kv_heads=self.share("kv_heads", w.kv_heads)
        )
        if w.phase == "decode":
            return self.like(FlashDecoding).attention(local, hw).kernels
        return self.like(Flash2).attention(local, hw, qkvo(local)).kernels

    def commands(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """All GPUs' kernels and transfers, for each token that is decoded."""
        self.check_links(hw)
        kernels, gpus = self.lower(w, hw), range(self.gpus)
        rows, hidden = w.batch * w.seq_q, w.heads * w.head_dim
        projected = Tensor("projected", 1, rows, hidden, w.dtype_bytes, "output")
        part_bytes = blocks(projected.bytes, self.gpus)
        commands: list[Command] = []
        ready: list[tuple[Command, ...]] = [()] * self.gpus
        for _ in range(w.tokens):
            ran = [run_kernels(kernels, gpu, ready[gpu]) for gpu in gpus]
            commands += [command for of_gpu in ran for command in of_gpu]
            ready = [tuple(of_gpu[-1:]) for of_gpu in ran]
            for _ in range(2 * (self.gpus - 1)):
                sent = [
                    Command(
                        Transfer("all-reduce", part_bytes, (gpu + 1) % self.gpus, buffer=projected),
                        gpu,
                        ready[gpu],
                    )
                    for gpu in gpus
                ]
                commands += sent
                ready = [(sent[gpu - 1], ran[gpu][-1]) for gpu in gpus]
        return commands
