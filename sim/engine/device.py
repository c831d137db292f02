"""The device (SimPy): a host launches a schedule's kernels on one stream, HBM holds their tensors.

Inputs and outputs stay in HBM throughout; a workspace tensor is there from the first kernel that
touches it to the last. What the L2 holds at a kernel's end the next kernel may find there.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

import simpy

from sim.engine import reference, replay
from sim.engine.kernel_run import KernelRun
from sim.engine.machine import machine_of
from sim.hardware import HardwareProfile
from sim.tile_program import Kernel, Tensor, chunk_tensors

EngineName = Literal["replay", "reference"]
ENGINES: dict[EngineName, Any] = {"replay": replay, "reference": reference}


class OutOfMemoryError(Exception):
    """A tensor that does not fit beside those already in HBM."""

    def __init__(self, tensor: Tensor, free_bytes: int) -> None:
        super().__init__(tensor.name)
        self.tensor, self.free_bytes = tensor, free_bytes


@dataclass(frozen=True)
class MemoryChange:
    """HBM in use from `time_s` on."""

    time_s: float
    in_use_bytes: int
    what: str


@dataclass(frozen=True)
class Launched:
    """A kernel that ran, and when it began."""

    start_s: float
    run: KernelRun


@dataclass(frozen=True)
class DeviceRun:
    """A schedule that ran to its end. `time_s` is from the first launch on."""

    time_s: float
    kernels: list[Launched]
    memory: list[MemoryChange]

    @property
    def l2_dirty_bytes(self) -> int:
        """Bytes that the run left dirty in L2 and a later one would have to write."""
        return self.kernels[-1].run.l2_dirty_bytes


class Hbm:
    """HBM as an allocator: what is in it, since when."""

    def __init__(self, capacity_bytes: float) -> None:
        self.free_bytes = self.capacity_bytes = int(capacity_bytes)
        self.changes: list[MemoryChange] = []

    def allocate(self, tensors: list[Tensor], now_s: float) -> None:
        """Make room for each; raises OutOfMemoryError."""
        for tensor in tensors:
            if tensor.bytes > self.free_bytes:
                raise OutOfMemoryError(tensor, self.free_bytes)
            self.free_bytes -= tensor.bytes
            self._note(now_s, f"+ {tensor.name}")

    def free(self, tensors: list[Tensor], now_s: float) -> None:
        """Give each one's room back."""
        for tensor in tensors:
            self.free_bytes += tensor.bytes
            self._note(now_s, f"- {tensor.name}")

    def _note(self, now_s: float, what: str) -> None:
        self.changes.append(MemoryChange(now_s, self.capacity_bytes - self.free_bytes, what))


def lifetimes(kernels: list[Kernel]) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """For each kernel the tensors to allocate before it, and those to free after it."""
    first: dict[Tensor, int] = {}
    last: dict[Tensor, int] = {}
    for k, kernel in enumerate(kernels):
        for tensor in kernel.tensors:
            first.setdefault(tensor, k)
            last[tensor] = k
    resident = [t for t in first if t.role != "workspace"]
    workspace = [t for t in first if t.role == "workspace"]
    before = [[t for t in workspace if first[t] == k] for k in range(len(kernels))]
    after = [[t for t in workspace if last[t] == k] for k in range(len(kernels))]
    before[0] = resident + before[0]
    return before, after


def check_memory(kernels: list[Kernel], hw: HardwareProfile) -> int:
    """Peak bytes in HBM; raises OutOfMemoryError as the run itself would, without running it."""
    hbm = Hbm(hw.hbm.capacity)
    for allocated, freed in zip(*lifetimes(kernels), strict=True):
        hbm.allocate(allocated, 0.0)
        hbm.free(freed, 0.0)
    return max(change.in_use_bytes for change in hbm.changes)


def run_on_device(
    kernels: list[Kernel],
    hw: HardwareProfile,
    dtype: str,
    engine: EngineName,
    progress: Callable[[int], None],
) -> DeviceRun:
    """Run the kernels in order; `progress` is told how many tile steps are done so far.

    Raises OutOfMemoryError.
    """
    simulated = ENGINES[engine]
    chunkings = chunk_tensors(kernels)
    l2 = simulated.new_l2(chunkings, machine_of(hw).l2_capacity_bytes)

    env = simpy.Environment()
    hbm = Hbm(hw.hbm.capacity)
    launched: list[Launched] = []
    stream = simpy.Store(env)

    def so_far(steps: int) -> None:
        progress(sum(ran.run.kernel.tile_steps for ran in launched) + steps)

    def host() -> Generator[simpy.Event, Any, None]:
        """Launches one kernel after the other, without waiting for the device."""
        for kernel in kernels:
            yield env.timeout(hw.calibration.launch.latency)
            yield stream.put(kernel)

    def device() -> Generator[simpy.Event, Any, None]:
        """Runs what was launched, each after the one before."""
        for number, (allocated, freed) in enumerate(zip(*lifetimes(kernels), strict=True)):
            hbm.allocate(allocated, env.now)
            kernel = yield stream.get()
            if number:
                yield env.timeout(hw.calibration.launch.gap)
            run = simulated.run_kernel(kernel, chunkings, hw, l2, dtype, so_far)
            launched.append(Launched(env.now, run))
            yield env.timeout(run.time_s)
            hbm.free(freed, env.now)

    env.process(host())
    env.run(env.process(device()))
    return DeviceRun(float(env.now), launched, hbm.changes)
