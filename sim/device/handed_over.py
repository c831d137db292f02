"""What kernels that are replayed apart might have found of each other's in L2.

A kernel that is told by a part has an L2 of its own, which is empty before it. What those before it
left, it would have found; and of what they left to others, it would have taken the place.
"""

from math import exp

from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.machine import machine_of
from sim.tile_program import Tensor


class HandedOver:
    """Follows the kernels of one GPU in their order.

    Evictions being random, of what a kernel touched exp(-f) is left once f fillings of L2 came
    after it.
    """

    def __init__(self, hw: HardwareProfile) -> None:
        self.l2_bytes = machine_of(hw).l2_capacity_bytes  # of some devices none
        self.one_l2 = _Fillings()  # were all kernels replayed on one
        self.shared = _Fillings()  # of those that are

    def unsure_bytes_of_next(self, run: KernelRun, *, in_part: bool) -> int:
        """By about how much what the next kernel reads from HBM may be off."""
        loaded = {load.stream.tensor for loop in run.kernel.loops for load in loop.loads}
        found = sum(
            abs(self.one_l2.left_of(t) - (0.0 if in_part else self.shared.left_of(t))) * t.bytes
            for t in loaded
        )
        filled = (run.hbm_read_bytes + run.l2_write_bytes) / max(self.l2_bytes, 1)
        for l2 in (self.one_l2,) if in_part else (self.one_l2, self.shared):
            l2.touched(run.kernel.tensors, filled)
        return int(min(found, self.l2_bytes, run.l2_read_bytes))


class _Fillings:
    """How often an L2 was filled anew, and how often it had been when each tensor was touched."""

    def __init__(self) -> None:
        self.fillings = 0.0
        self.at: dict[Tensor, float] = {}

    def touched(self, tensors: list[Tensor], fillings: float) -> None:
        self.fillings += fillings
        self.at |= dict.fromkeys(tensors, self.fillings)

    def left_of(self, tensor: Tensor) -> float:
        """The share of what was touched of it that is there still."""
        return exp(self.at[tensor] - self.fillings) if tensor in self.at else 0.0
