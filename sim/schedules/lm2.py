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
from sim.schedules.base import QKVO, qkvo
from sim.schedules.flash2 import flash_attention
from sim.schedules.parts.elementwise import elementwise, in_order
from sim.schedules.parts.flash_schedule import FlashSchedule
from sim.schedules.parts.public_tiles import public_cta
from sim.tile_program import Kernel, Tensor

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
            _weighed_sum("gate output", (o, read), o),
            _weighed_sum("write memory", (keys, values), keys),
        ]


def _weighed_sum(name: str, sources: tuple[Tensor, Tensor], target: Tensor) -> Kernel:
    """Two tensors of one shape, each times a gate; a CTA ROWS rows."""
    elements = min(ROWS, target.rows) * target.cols
    reads = [in_order(tensor, ROWS) for tensor in sources]
    return elementwise(name, reads, [in_order(target, ROWS)], vector_ops=2 * elements)
