"""Tree decoding: the cache is split over GPUs, and what each finds is merged in a tree.

    on each of P GPUs, which has the query and seq / P keys and values:
        O_g, LSE_g = split-KV decoding over its keys, in fp32
    for r = 0, 1, .. while 2^r < P:
        each GPU g of (odd) 2^r sends its O_g and LSE_g to g - 2^r, which merges them with its own
    GPU 0 sends O back down the same tree, in the workload's dtype

So 2 ceil(log2 P) times a few kB a head are sent one after the other, whatever the length; the first
rounds stay within a node.

Source: Shyam et al. 2024 (arXiv 2408.04093), Algorithm 3, and Zyphra/tree_attention
(tree_shard_test.py), which leave the tree to the all-reduces of maximum, numerator and denominator;
here it is one reduction of (O, LSE) pairs, which carry the same, and one broadcast.
"""

from dataclasses import dataclass, replace
from typing import Literal

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.flash_decoding import FlashDecoding
from sim.schedules.parts.results import Result
from sim.schedules.parts.several_gpus import (
    SeveralGpus,
    finish_kernel,
    merge_kernel,
    merged_like,
    run_kernels,
    start_kernel,
)
from sim.tile_program import Command, Kernel, Tensor, Transfer


@dataclass(frozen=True)
class TreeKernels:
    """Attention in fp32, merging, conversion back; what merging is sent, and O as it is at last."""

    attention: list[Kernel]
    merge: Kernel
    finish: Kernel
    received: Result
    o: Tensor


class TreeDecoding(SeveralGpus):
    """Tree decoding of one query a sequence."""

    name: Literal["tree_decoding"] = "tree_decoding"

    summary = "several GPUs, each its part of the cache; results merged in a tree"
    source = "arXiv 2408.04093, Algorithm 3; Zyphra/tree_attention"
    phases = ("decode",)
    masks = ("full", "causal")

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Attention, conversion to fp32, merging, conversion back."""
        tree = self._kernels(w, hw)
        return [*tree.attention, tree.merge, tree.finish]

    def commands(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """All GPUs' kernels and transfers, for each token that is decoded."""
        self.check_links(hw)
        tree = self._kernels(w, hw)
        received, o = tree.received, tree.o
        gpus = range(self.gpus)
        strides = [2**r for r in range((self.gpus - 1).bit_length())]
        commands: list[Command] = []
        ready: list[tuple[Command, ...]] = [()] * self.gpus
        for _ in range(w.tokens):
            ran = [run_kernels(tree.attention, gpu, ready[gpu]) for gpu in gpus]
            commands += [command for of_gpu in ran for command in of_gpu]
            last = [of_gpu[-1] for of_gpu in ran]
            for stride in strides:
                for gpu in range(stride, self.gpus, 2 * stride):
                    to = gpu - stride
                    transfer = Transfer("O, LSE", received.bytes, to, buffer=received.o)
                    up = Command(transfer, gpu, (last[gpu], last[to]))
                    last[to] = Command(tree.merge, to, (up,))
                    commands += [up, last[to]]
            has_o = {0: Command(tree.finish, 0)}
            for stride in reversed(strides):
                for gpu in range(stride, self.gpus, 2 * stride):
                    parent = gpu - stride
                    down = Transfer("O", o.bytes, gpu, buffer=o)
                    has_o[gpu] = Command(down, parent, (has_o[parent],))
            commands += has_o.values()
            ready = [(has_o[gpu],) for gpu in gpus]
        return commands

    def _kernels(self, w: AttentionWorkload, hw: HardwareProfile) -> TreeKernels:
        local = replace(w, seq_kv=self.share("seq_kv", w.seq_kv), causal=False)
        attention = self.like(FlashDecoding).attention(local, hw)
        part = attention.result
        merged = merged_like(part)
        received = Result(
            replace(merged.o, name="received O"), replace(merged.lse, name="received LSE")
        )
        o = replace(part.o, name="O", lifetime="output", role="result")
        return TreeKernels(
            [*attention.kernels, start_kernel(part, merged)],
            merge_kernel(received, merged),
            finish_kernel(merged, o),
            received,
            o,
        )
