"""A look inside a schedule: its attention kernel's beginning, watched on one SM."""

from sim.device.program import kernels_of
from sim.engine.watched import Watched, watch
from sim.runs.scenario import Point
from sim.tile_program import Kernel


def inside_of(point: Point) -> Watched:
    """What was watched of a point's one schedule; raises InputError where it cannot be."""
    (schedule,) = point.schedules
    kernels = kernels_of(schedule.program(point.workload, point.hardware))
    return watch(attention_of(kernels), point.hardware, point.workload.dtype)


def attention_of(kernels: list[Kernel]) -> Kernel:
    """The longest of the kernels that load queries and keys, else of those that multiply."""
    both = [kernel for kernel in kernels if {"query", "key"} <= {t.role for t in kernel.tensors}]
    multiply = [kernel for kernel in kernels if kernel.multiplies]
    return max(both or multiply or kernels, key=lambda kernel: kernel.tile_steps)
