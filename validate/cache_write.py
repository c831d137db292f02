"""vLLM's write of new tokens' K and V to the cache, played on the device as its kernel goes.

A CTA a token finds where that lies, then moves K, then V: eight elements a lane, 512 threads at
most, V read when K has come, as warps issue in order. Into 8 bits each element is divided by a
scale. Where a head's tokens lie together (HND) a warp takes a head at a time, of whose lanes
head_dim / 8 work.

Source: vLLM 0.24.0, csrc/cache_kernels.cu (reshape_and_cache_flash) and the wheel's machine code.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from sim.device.run import run_on_device
from sim.inputs.hardware import HardwareProfile
from sim.machine import LANES, SUB_PARTITIONS, ctas_per_sm, idle_cta_s
from sim.schedules.base import blocks
from sim.schedules.parts.counted import Counted
from sim.tile_program import (
    Barrier,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    Op,
    Store,
    Stream,
    Tensor,
    in_order,
    once,
)

MOST_THREADS = 512
ELEMENTS_A_LANE = 8
SLOT_BYTES = 8  # of slot_mapping, an element a token
# Registers a thread of the wheel's kernels, from 16 bits to 16 and to 8 (sm_75's lacks the latter;
# what is not here is taken to be as sm_90's).
REGISTERS = {
    "sm75": (64, 64), "sm80": (40, 44), "sm86": (40, 44), "sm89": (40, 54), "sm90": (40, 54),
    "sm100": (32, 46), "sm120": (48, 44),
}  # fmt: skip
# Played through, beside loads: every warp finds the token's place (a division), those that have
# elements their own trips (another). Into 8 bits each element is divided: what that takes a lone
# warp, and its sub-partition among others.
PLACE, TRIPS, NARROWING = Counted(101, 411), Counted(61, 241), Counted(122, 470)
NARROWING_BESIDE_CYCLES = 150


@dataclass(frozen=True)
class CacheWrite:
    """The write of so many tokens' KV heads, of elements of so many bytes to so many."""

    tokens: int
    heads: int
    head_dim: int
    element_bytes: int
    cached_bytes: int
    by_heads: bool = False

    @property
    def bytes(self) -> int:
        """What is read and written of K and V."""
        moved = self.element_bytes + self.cached_bytes
        return 2 * self.tokens * self.heads * self.head_dim * moved

    @property
    def threads(self) -> int:
        """Of a CTA."""
        return min(self.heads * self.head_dim, MOST_THREADS)

    @property
    def heads_a_turn(self) -> int:
        """Heads that a CTA moves at once."""
        warps = max(1, self.threads // LANES)
        return min(self.heads, warps) if self.by_heads else self.heads

    def kernel(self, hw: HardwareProfile) -> Kernel:
        """Its tile program."""
        narrows = self.cached_bytes < self.element_bytes
        footprint = Footprint(0, self.threads, REGISTERS.get(hw.arch, REGISTERS["sm90"])[narrows])
        resident = ctas_per_sm(footprint, hw)
        slots = Tensor("slots", 1, self.tokens, 1, SLOT_BYTES, "input")
        slot = Load(Stream(slots, 1, 1, lambda items: items), 0)
        begin: tuple[Op, ...] = (slot, Barrier((slot,)))
        place = replace(PLACE, warps=max(1, self.threads // LANES))
        placed = place.compute("find the token's place", (slot,), hw, resident)
        turn: list[Op] = []
        for name in ("K", "V"):
            load = Load(self._of(name, self.element_bytes), 0)
            made = self._moving(narrows).compute(f"make {name}", (load,), hw, resident)
            store = Store(self._of(f"cached {name}", self.cached_bytes))
            turn += [load, Barrier((load,)), made, store]
        loops = (Loop(once, (*begin, placed)), Loop(self._turns, tuple(turn)))
        return Kernel("cache write", self.tokens, loops, footprint)

    def _moving(self, narrows: bool) -> Counted:
        """What the warps that have elements execute of K, or of V, a turn."""
        lanes = min(LANES, blocks(self.head_dim, ELEMENTS_A_LANE)) if self.by_heads else LANES
        warps = blocks(self.heads_a_turn * self.head_dim, ELEMENTS_A_LANE * lanes)
        trips = replace(TRIPS, warps=warps)
        if not narrows:
            return trips
        beside = NARROWING_BESIDE_CYCLES * blocks(warps, SUB_PARTITIONS)
        return trips + replace(NARROWING, cycles=max(NARROWING.cycles, beside))

    def _of(self, name: str, element_bytes: int) -> Stream:
        """A token's heads, turn after turn."""
        tensor = Tensor(name, 1, self.tokens, self.heads * self.head_dim, element_bytes, "input")
        cols = self.heads_a_turn * self.head_dim

        def first(items: IntArray) -> IntArray:
            return items * blocks(self.heads, self.heads_a_turn)

        return Stream(tensor, 1, cols, first, stride=1)

    def _turns(self, items: IntArray) -> IntArray:
        turns: IntArray = once(items) * blocks(self.heads, self.heads_a_turn)
        return turns


@lru_cache
def time_s(write: CacheWrite, hw: HardwareProfile) -> float:
    """Seconds that it takes behind one of its like, which leaves in L2 what fits there.

    Its first CTAs start as any kernel's, those that follow in their slots as soon as such as find
    nothing to do.
    """
    kernel, usual_s, next_s = write.kernel(hw), hw.calibration.sm.cta_start, idle_cta_s(hw)
    hw = hw.with_figures({"calibration.sm.cta_start": next_s})
    run = run_on_device(in_order([kernel, kernel]), hw, "bf16", "replay", lambda _: None)
    return float(usual_s - next_s + run.kernels[-1].run.time_s)
