"""Ulysses: all heads of a share of the tokens become all tokens of a share of the heads.

    on each of P GPUs, which holds seq / P tokens' Q, K and V:
        for each of Q, K, V:
            pack it by the heads that go to each GPU;  all-to-all
        flash attention of heads / P heads over all tokens
        all-to-all of O;  unpack it to all heads of seq / P tokens

Of each tensor a GPU keeps 1 / P and sends as much to each other GPU. It packs K while Q is sent.

Source: Jacobs et al. 2023 (arXiv 2309.14509), Section 3; which copies there are as in
microsoft/DeepSpeed, deepspeed/sequence/layer.py (single_all_to_all).
"""

from dataclasses import replace
from typing import Literal

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import qkvo
from sim.schedules.flash2 import Flash2
from sim.schedules.parts.several_gpus import SeveralGpus, copy_kernel
from sim.tile_program import Command, Kernel, Lifetime, Tensor, Transfer

Exchange = tuple[Tensor, Tensor]  # what leaves, 1 / P to each GPU, and where as much arrives


class Ulysses(SeveralGpus):
    """DeepSpeed-Ulysses, forward; heads, KV heads and tokens are multiples of `gpus`."""

    name: Literal["ulysses"] = "ulysses"

    summary = "several GPUs: tokens of all heads exchanged for heads of all tokens"
    source = "arXiv 2309.14509; microsoft/DeepSpeed, deepspeed/sequence/layer.py"
    phases = ("prefill",)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Three packing kernels, attention, one that unpacks."""
        packing, (attention, _), unpacking = self._program(w, hw)
        return [*(kernel for kernel, _ in packing), attention, unpacking]

    def commands(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """All GPUs' kernels and exchanges."""
        self.check_links(hw)
        packing, (attention, o_exchange), unpacking = self._program(w, hw)
        gpus = range(self.gpus)
        commands: list[Command] = []
        arriving: list[tuple[Command, ...]] = [()] * self.gpus
        for kernel, exchange in packing:
            packed = [Command(kernel, gpu) for gpu in gpus]
            sent = self._all_to_all(exchange, packed)
            commands += [*packed, *sent]
            arriving = [(*arriving[gpu], *_to(gpu, sent)) for gpu in gpus]
        attended = [Command(attention, gpu, arriving[gpu]) for gpu in gpus]
        sent = self._all_to_all(o_exchange, attended)
        return [
            *commands,
            *attended,
            *sent,
            *(Command(unpacking, gpu, _to(gpu, sent)) for gpu in gpus),
        ]

    def _program(
        self, w: AttentionWorkload, hw: HardwareProfile
    ) -> tuple[list[tuple[Kernel, Exchange]], tuple[Kernel, Exchange], Kernel]:
        """Packing kernels, attention and unpacking, with what is exchanged after each."""
        local = replace(
            w, heads=self.share("heads", w.heads), kv_heads=self.share("kv_heads", w.kv_heads)
        )
        q, k, v, o = tensors = qkvo(local)
        (attention,) = self.like(Flash2).attention(local, hw, tensors).kernels

        def shard(name: str, whole: Tensor, key: str, lifetime: Lifetime) -> Tensor:
            """All heads of a share of the tokens; `whole` is all tokens of a share of the heads."""
            rows, groups = self.share(key, whole.rows), whole.groups * self.gpus
            return Tensor(name, groups, rows, whole.cols, whole.element_bytes, lifetime)

        packing = []
        for whole, key in ((q, "seq_q"), (k, "seq_kv"), (v, "seq_kv")):
            own = shard(f"{whole.name}, own tokens", whole, key, "input")
            packed = shard(f"{whole.name}, packed", whole, key, "workspace")
            packing.append((copy_kernel(f"pack {whole.name}", own, packed), (packed, whole)))
        received = shard("O, received", o, "seq_q", "workspace")
        unpacked = shard("O, own tokens", o, "seq_q", "output")
        unpacking = copy_kernel("unpack O", received, unpacked)
        return packing, (attention, (o, received)), unpacking

    def _all_to_all(self, exchange: Exchange, after: list[Command]) -> list[Command]:
        """What every GPU sends to every other, once its command of `after` is done.

        The next on the right comes first, so that no two send to the same at once.
        """
        leaving, arriving = exchange
        transfer_bytes = leaving.bytes // self.gpus
        return [
            Command(
                Transfer(leaving.name, transfer_bytes, (gpu + hop) % self.gpus, buffer=arriving),
                gpu,
                (after[gpu],),
            )
            for hop in range(1, self.gpus)
            for gpu in range(self.gpus)
        ]


def _to(gpu: int, sent: list[Command]) -> tuple[Command, ...]:
    """Those of the transfers that go to a GPU."""
    return tuple(s for s in sent if isinstance(s.work, Transfer) and s.work.to == gpu)
