"""Work that was counted in machine code, of warps that do one thing after the other.

Issue slots alone would say that such a stretch is short: a warp waits for its own results between
most instructions, and few warps share an SM. What it waits is time in which nothing is executed,
so it takes no pipe and no energy.
"""

from dataclasses import dataclass, replace

from sim.inputs.hardware import HardwareProfile
from sim.machine import LANES, SRAM_BYTES_AN_INSTRUCTION, SUB_PARTITIONS, ctas_per_sm
from sim.schedules.base import blocks
from sim.tile_program import Compute, Footprint, Load


@dataclass(frozen=True)
class Counted:
    """A stretch of machine code that each of a CTA's `warps` runs.

    `instructions` are issue slots, without those of matmuls. `cycles` are what the CTA takes of
    them on an SM of its own: stall counts that ptxas writes into each, and the latencies of shared
    memory, shuffles, exponentials and barriers. `beside` are those that each further CTA on the SM
    adds, whose instructions come between: by play the pipes' affair, and yet near what kernels of
    long loops take (docs/causes.md). Of reads of L2 `l2_reads` are waited for one after the
    other, apart from those cycles. `sram_cycles` are what all warps hold shared memory for, one an
    access and 128 bytes. Of the cycles so many are `multiplied` in: a warp's matmuls take the issue
    slots of its sub-partition.
    """

    instructions: float
    cycles: float
    warps: int = 4
    beside: float = 0
    l2_reads: float = 0
    sram_cycles: float = 0
    multiplied: float = 0

    def times(self, count: float) -> "Counted":
        """So many of it, or a part."""
        return replace(
            self,
            instructions=count * self.instructions,
            cycles=count * self.cycles,
            beside=count * self.beside,
            l2_reads=count * self.l2_reads,
            sram_cycles=count * self.sram_cycles,
            multiplied=count * self.multiplied,
        )

    def __add__(self, more: "Counted") -> "Counted":
        """Both one after the other, by the same warps."""
        return Counted(
            self.instructions + more.instructions,
            self.cycles + more.cycles,
            self.warps,
            self.beside + more.beside,
            self.l2_reads + more.l2_reads,
            self.sram_cycles + more.sram_cycles,
            self.multiplied + more.multiplied,
        )

    def compute(
        self,
        name: str,
        reads: tuple[Load, ...],
        hw: HardwareProfile,
        resident: int,
        mma_flops: int = 0,
    ) -> Compute:
        """It as a compute of a CTA of which so many share an SM, with matmuls of so many FLOPs."""
        sram_bytes = self.sram_cycles * hw.sram.bytes_per_clock
        slots = self.warps * self.instructions - sram_bytes / SRAM_BYTES_AN_INSTRUCTION
        issued = self.warps * (self.instructions + self.multiplied) / SUB_PARTITIONS
        executed = max(issued, self.sram_cycles)
        waited_s = (self.cycles + self.beside * (resident - 1) - executed) / hw.sm.clock
        waited_s += self.l2_reads * hw.calibration.l2.latency
        return Compute(
            name,
            reads,
            mma_flops=mma_flops,
            other_ops=round(LANES * max(0.0, slots)),
            sram_bytes=round(sram_bytes),
            latencies=max(1, round(waited_s / hw.calibration.sm.op_latency)),
        )


@dataclass(frozen=True)
class CountedTrip:
    """A trip of a flash loop that was counted whole, on a device where so many CTAs share an SM."""

    counted: Counted
    hw: HardwareProfile
    resident: int

    def compute(self, reads: tuple[Load, ...], mma_flops: int) -> Compute:
        """Both matmuls, of so many FLOPs, and what is between them."""
        name = "S = Q K^T; softmax; O += P V"
        return self.counted.compute(name, reads, self.hw, self.resident, mma_flops)


def resident(footprint: Footprint, ctas: int, hw: HardwareProfile) -> int:
    """CTAs that share an SM where there are so many."""
    return min(ctas_per_sm(footprint, hw), blocks(ctas, hw.sm.count))
