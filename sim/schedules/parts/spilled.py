"""Registers that do not fit: each trip writes them to local memory and reads them again.

A thread's local memory lies in L2, each resident CTA's in a place of its own. L1 passes what is
written on (of an H100's bytes to L2 under FlashAttention-2, whose registers spill, 612 of 749 MB
are stores to local memory: tfan2437/flash-attention-lab, its counters), and what is read again
comes from L2 where an SM's CTAs together have more than L1 holds beside their shared memory.
"""

from dataclasses import dataclass
from functools import cached_property

from sim.tile_program import Barrier, IntArray, Load, Op, Store, Stream, Tensor

WORD_BYTES = 4


@dataclass(frozen=True)
class Spilled:
    """So many words of each thread, of as many CTAs as the device holds at once."""

    words: float
    threads: int
    resident: int

    @cached_property
    def _stream(self) -> Stream:
        row_bytes = round(self.words * self.threads) * WORD_BYTES
        tensor = Tensor("spilled registers", 1, self.resident, row_bytes, 1, role="spilled")

        def own(items: IntArray) -> IntArray:
            return items % self.resident

        return Stream(tensor, 1, row_bytes, own)

    @cached_property
    def again(self) -> Load:
        """What is read again."""
        return Load(self._stream, 0)

    @property
    def ops(self) -> tuple[Op, ...]:
        """Written, and then asked for."""
        return self.again, Store(self._stream), Barrier((self.again,))
