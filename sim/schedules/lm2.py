"""LM2: FlashAttention-2, and beside it a bank of memory slots that every layer reads and writes.

    "flash2"         the layer's own attention
    "read memory"    the FlashAttention-2 loop of the same queries over the bank's `slots` keys and
                     values, without a mask
    "gate output"    O = O + gate * (what the memory gave), an elementwise pass
    "write memory"   bank = forget gate * bank + input gate * new, an elementwise pass

Source: Kang et al. 2025 (arXiv 2502.06049), section 2: a bank of 2,048 slots, cross-attention, and
input, forget and output gates. The projections that make gates, keys and values are matmuls of
the model like any other's and not counted here; the bank is taken to hold head_dim elements a slot
and head, which is an estimate.
"""

from dataclasses import replace
from typing import Literal

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import QKVO, blocks, qkvo
from sim.schedules.flash2 import flash_attention
from sim.schedules.parts.flash_schedule import FlashSchedule
from sim.schedules.parts.public_tiles import public_cta
from sim.tile_program import Compute, Footprint, Kernel, Load, Loop, Store, Stream, Tensor, once

ROWS = 16  # of an elementwise pass's CTA


class Lm2(FlashSchedule):
    """Attention with a memory bank of `slots`."""

    name: Literal["lm2"] = "lm2"
    slots: Count = 2048

    summary = "FlashAttention-2 and a bank of 2,048 memory slots, read and written"
    source = "arXiv 2502.06049"
    of_other_models = True

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Attention, reading, gating and writing."""
        cta = self.cta(public_cta(w, hw, self.implementation), w, hw)
        q, _, _, o = tensors = qkvo(w)
        bank = replace(w, kv_heads=w.heads, seq_kv=self.slots, causal=False, window=None)
        keys, values = (
            Tensor(name, q.groups, self.slots, w.head_dim, w.dtype_bytes, "input")
            for name in ("memory K", "memory V")
        )
        read = Tensor("read from memory", q.groups, w.seq_q, w.head_dim, w.dtype_bytes)
        return [
            *flash_attention("flash2", w, cta, tensors, "flash").kernels,
            *flash_attention("read memory", bank, cta, QKVO(q, keys, values, read)).kernels,
            _elementwise("gate output", (o, read), o),
            _elementwise("write memory", (keys, values), keys),
        ]


def _elementwise(name: str, sources: tuple[Tensor, ...], target: Tensor) -> Kernel:
    """A CTA ROWS rows of all tensors, which are of one shape."""
    loads = tuple(Load(Stream(t, ROWS, t.cols, lambda items: items)) for t in sources)
    elements = min(ROWS, target.rows) * target.cols
    merge = Compute(name, loads, vector_ops=2 * elements)
    store = Store(Stream(target, ROWS, target.cols, lambda items: items))
    return Kernel(
        name=name,
        ctas=target.groups * blocks(target.rows, ROWS),
        loops=(Loop(once, (*loads, merge, store)),),
        footprint=Footprint(0, threads=128, registers_per_thread=32),
    )
