"""Ulysses: all heads of a share of the tokens become all tokens of a share of the heads.

    on each of P GPUs, which holds seq / P tokens' Q, K and V:
        for each of Q, K, V:
            pack it by the heads that go to each GPU;  all-to-all;  unpack it by sequence
        flash attention of heads / P heads over all tokens
        pack O by the tokens that go to each GPU;  all-to-all
        unpack it to all heads of seq / P tokens

Of each tensor a GPU keeps 1 / P and sends as much to each other. An exchange is waited for before
the next tensor is packed (all_to_all_single, not asynchronous). What arrives lies by GPU, then by
sequence: of one sequence Q, K and V need not be unpacked, nor O packed.

Source: Jacobs et al. 2023 (arXiv 2309.14509), Section 3; which copies there are as in
microsoft/DeepSpeed, deepspeed/sequence/layer.py (single_all_to_all; feifeibear/
long-context-attention, yunchang/comm/all_to_all.py, copies the same).
"""

from dataclasses import dataclass, replace
from typing import Literal

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import qkvo
from sim.schedules.flash2 import Flash2
from sim.schedules.parts.several_gpus import SeveralGpus, copy_kernel
from sim.tile_program import Command, Kernel, Lifetime, Tensor, Transfer


@dataclass(frozen=True)
class Exchange:
    """What leaves, 1 / P to each GPU, where as much arrives, and the copies before and after."""

    packing: tuple[Kernel, ...]
    leaving: Tensor
    arriving: Tensor
    unpacking: tuple[Kernel, ...]


class Ulysses(SeveralGpus):
    """DeepSpeed-Ulysses, forward; heads, KV heads and tokens are multiples of `gpus`."""

    name: Literal["ulysses"] = "ulysses"

    summary = "several GPUs: tokens of all heads exchanged for heads of all tokens"
    source = "arXiv 2309.14509; microsoft/DeepSpeed, deepspeed/sequence/layer.py"
    phases = ("prefill",)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Packing kernels, attention, and those that unpack, in order."""
        exchanges, attention = self._program(w, hw)
        *inputs, o = exchanges
        before = [kernel for one in inputs for kernel in (*one.packing, *one.unpacking)]
        return [*before, attention, *o.packing, *o.unpacking]

    def commands(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """All GPUs' kernels and exchanges."""
        self.check_links(hw)
        (*inputs, o), attention = self._program(w, hw)
        gpus = range(self.gpus)
        commands: list[Command] = []
        arrived: list[tuple[Command, ...]] = [()] * self.gpus
        for one in inputs:
            packed = [Command(kernel, gpu, arrived[gpu]) for kernel in one.packing for gpu in gpus]
            sent = self._all_to_all(one, packed)
            arrived = [_to(gpu, sent) for gpu in gpus]
            commands += [*packed, *sent]
            commands += [
                Command(kernel, gpu, arrived[gpu]) for kernel in one.unpacking for gpu in gpus
            ]
        attended = [Command(attention, gpu, arrived[gpu]) for gpu in gpus]
        packed = [Command(kernel, gpu) for kernel in o.packing for gpu in gpus]
        sent = self._all_to_all(o, packed or attended)
        return [
            *commands,
            *attended,
            *packed,
            *sent,
            *(Command(kernel, gpu, _to(gpu, sent)) for kernel in o.unpacking for gpu in gpus),
        ]

    def _program(self, w: AttentionWorkload, hw: HardwareProfile) -> tuple[list[Exchange], Kernel]:
        """The exchanges of Q, K, V and O with the copies around them, and attention."""
        local = replace(
            w, heads=self.share("heads", w.heads), kv_heads=self.share("kv_heads", w.kv_heads)
        )
        q, k, v, o = tensors = qkvo(local)
        (attention,) = self.like(Flash2).attention(local, hw, tensors).kernels

        def shard(name: str, whole: Tensor, lifetime: Lifetime) -> Tensor:
            """All heads of a share of the tokens; `whole` is all tokens of a share of the heads."""
            rows = self.share("seq_kv" if whole in (k, v) else "seq_q", whole.rows)
            groups = whole.groups * self.gpus
            return Tensor(name, groups, rows, whole.cols, whole.element_bytes, lifetime)

        def copied(what: str, whole: Tensor) -> tuple[Tensor, tuple[Kernel, ...]]:
            """What is exchanged for `whole`, and the copy from or to it, of several sequences."""
            if w.batch == 1:
                return whole, ()
            beside = replace(whole, name=f"{whole.name}, by GPU", lifetime="workspace", sizes=None)
            ends = (whole, beside) if what == "pack" else (beside, whole)
            return beside, (copy_kernel(f"{what} {whole.name}", *ends),)

        exchanges = []
        for whole in (q, k, v):
            own = shard(f"{whole.name}, own tokens", whole, "input")
            packed = shard(f"{whole.name}, packed", whole, "workspace")
            arriving, unpacking = copied("unpack", whole)
            packing = (copy_kernel(f"pack {whole.name}", own, packed),)
            exchanges.append(Exchange(packing, packed, arriving, unpacking))
        received = shard("O, received", o, "workspace")
        unpacked = shard("O, own tokens", o, "output")
        leaving, packing_o = copied("pack", o)
        to_own = copy_kernel("unpack O", received, unpacked)
        return [*exchanges, Exchange(packing_o, leaving, received, (to_own,))], attention

    def _all_to_all(self, exchange: Exchange, after: list[Command]) -> list[Command]:
        """What every GPU sends to every other, once its command of `after` is done.

        The next on the right comes first, so that no two send to the same at once.
        """
        leaving, arriving = exchange.leaving, exchange.arriving
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
