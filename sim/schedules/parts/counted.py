"""Work that was counted in machine code, of warps that do one thing after the other.

Issue slots alone would say that such a stretch is short: a warp waits for its own results between
most instructions, and few warps share an SM. So it takes the longer of both.
"""

from dataclasses import dataclass

from sim.inputs.hardware import HardwareProfile
from sim.machine import LANES, SUB_PARTITIONS, ctas_per_sm
from sim.schedules.base import blocks
from sim.tile_program import Footprint


@dataclass(frozen=True)
class Counted:
    """A stretch of machine code, of each of `warps`, without its matmuls.

    `instructions` are issue slots; `cycles` are what a warp takes of them alone, by the stall
    counts that ptxas writes into each: what it waits for loads, shuffles and barriers is beside.
    """

    instructions: float
    cycles: float
    warps: int = 4

    def lane_ops(self, resident: int) -> int:
        """Lane operations that take as long, of each of so many CTAs on an SM."""
        issued = self.warps * self.instructions
        return round(LANES * max(issued, SUB_PARTITIONS * self.cycles / resident))


def resident(footprint: Footprint, ctas: int, hw: HardwareProfile) -> int:
    """CTAs that share an SM where there are so many."""
    return min(ctas_per_sm(footprint, hw), blocks(ctas, hw.sm.count))
