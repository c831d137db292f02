"""What a trip of a loop takes of a device's pipes, and how many CTAs of a kernel an SM holds.

Cycles are those of one of an SM's sub-partitions, for one warp's trip. Every pipe at the rate that
the profile's datasheet states: which of them binds, not how long it takes; latencies, barriers and
what is lost between matmuls come on top. Nothing is fitted.
"""

from dataclasses import dataclass

from sim.inputs.files import InputError, shipped_names
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.machine import SUB_PARTITIONS, ctas_per_sm
from sim.machine_code.kernel import CompiledKernel
from sim.machine_code.loops import Loop
from sim.machine_code.sass import WARP_LANES
from sim.tile_program import Footprint

# By the names that sim.machine has for causes.
PIPES = ("tensor", "issue", "exp", "sram", "vector")


@dataclass(frozen=True)
class TripOnDevice:
    """A trip's cycles of a sub-partition by pipe, which of them binds, and CTAs on an SM.

    `cycles["tensor"]` is None where a matmul's shape is not told or the profile has no rate of its
    dtype; `ctas` is None where threads are not known. `compiled_for_it` is whether the kernel's
    architecture is the device's.
    """

    profile: str
    cycles: dict[str, float | None]
    binds: str
    ctas: int | None
    compiled_for_it: bool


def profiles_of(arch: str) -> list[HardwareProfile]:
    """The shipped profiles of an architecture."""
    shipped = (load_profile(name) for name in shipped_names("hw_profiles"))
    return [hw for hw in shipped if hw.arch == arch]


def on_device(kernel: CompiledKernel, loop: Loop, hw: HardwareProfile) -> TripOnDevice:
    """What a trip of the kernel's loop takes of the device."""
    cycles = trip_cycles(loop, hw)
    binds = max(PIPES, key=lambda pipe: cycles[pipe] or 0.0)
    return TripOnDevice(hw.name, cycles, binds, ctas_of(kernel, hw), kernel.arch == hw.arch)


def ctas_of(kernel: CompiledKernel, hw: HardwareProfile) -> int | None:
    """CTAs that an SM holds at once: 0 where not one fits, None where threads are not known."""
    if kernel.threads is None:
        return None
    try:
        return ctas_per_sm(Footprint(kernel.sram_bytes, kernel.threads, kernel.registers), hw)
    except InputError:
        return 0


def trip_cycles(loop: Loop, hw: HardwareProfile) -> dict[str, float | None]:
    """Cycles of a sub-partition by pipe, for one warp's trip.

    An instruction takes an issue slot of a cycle; an exponential or reciprocal of a warp 32 lanes
    of the sub-partition's share of `sm.exp_per_clock`; shared memory is one for all sub-partitions,
    which run a trip at once.
    """
    share = 1 / SUB_PARTITIONS
    return {
        "tensor": _tensor_cycles(loop, hw),
        "issue": float(len(loop.body)),
        "exp": loop.mix["mufu"] * WARP_LANES / (hw.sm.exp_per_clock * share),
        "sram": sum(one.sram_bytes for one in loop.body) / (hw.sram.bytes_per_clock * share),
        "vector": sum(one.fp32_lanes for one in loop.body) / (hw.sm.fp32_lanes * share),
    }


def _tensor_cycles(loop: Loop, hw: HardwareProfile) -> float | None:
    """At the dense rates of the profile, by each matmul's dtype."""
    cycles = 0.0
    for matmul in (one for one in loop.body if one.of == "mma"):
        rate = hw.tensor_flops_per_clock(matmul.dtype) if matmul.dtype else None
        if rate is None or matmul.flops is None:
            return None
        cycles += matmul.flops / (rate / SUB_PARTITIONS)
    return cycles
