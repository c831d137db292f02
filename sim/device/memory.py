"""HBM as an allocator, and when a program's tensors are in it.

Inputs, outputs and what arrives over links stay in HBM throughout; any other workspace tensor is
there from the first kernel that touches it to the last.
"""

from dataclasses import dataclass

from sim.device.program import gpus_of, kernels_of
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Command, Kernel, Tensor


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

    @property
    def peak_bytes(self) -> int:
        """The most that was in use."""
        return max((change.in_use_bytes for change in self.changes), default=0)


@dataclass(frozen=True)
class GpuPlan:
    """The kernels that one GPU of a program runs, with what to allocate before and free after each.

    `resident` is there throughout.
    """

    commands: list[Command]
    resident: list[Tensor]
    before: list[list[Tensor]]
    after: list[list[Tensor]]


def plans_of(commands: list[Command]) -> list[GpuPlan]:
    """Each GPU's kernels, and the lifetimes of its tensors and of what arrives over links."""
    gpus = gpus_of(commands)
    own: list[list[Command]] = [[] for _ in range(gpus)]
    arriving: list[dict[Tensor, None]] = [{} for _ in range(gpus)]
    for command in commands:
        work = command.work
        if isinstance(work, Kernel):
            own[command.gpu].append(command)
        elif work.buffer is not None:
            receiver = command.gpu if work.from_host or work.to == "host" else work.to
            arriving[receiver][work.buffer] = None
    return [_plan_of(*of_gpu) for of_gpu in zip(own, arriving, strict=True)]


def _plan_of(own: list[Command], arriving: dict[Tensor, None]) -> GpuPlan:
    tensors_of = {kernel: kernel.tensors for kernel in kernels_of(own)}
    first: dict[Tensor, int] = {}
    last: dict[Tensor, int] = {}
    for number, command in enumerate(own):
        for tensor in tensors_of[command.work] if isinstance(command.work, Kernel) else ():
            first.setdefault(tensor, number)
            last[tensor] = number
    resident = {t: None for t in first if t.lifetime != "workspace"} | arriving
    before: list[list[Tensor]] = [[] for _ in own]
    after: list[list[Tensor]] = [[] for _ in own]
    for tensor in first:
        if tensor not in resident:
            before[first[tensor]].append(tensor)
            after[last[tensor]].append(tensor)
    return GpuPlan(own, list(resident), before, after)


def check_memory(commands: list[Command], hw: HardwareProfile) -> int:
    """Peak bytes in a GPU's HBM; raises OutOfMemoryError as the run itself would, unrun."""
    peaks = []
    for plan in plans_of(commands):
        hbm = Hbm(hw.hbm.capacity)
        hbm.allocate(plan.resident, 0.0)
        for allocated, freed in zip(plan.before, plan.after, strict=True):
            hbm.allocate(allocated, 0.0)
            hbm.free(freed, 0.0)
        peaks.append(hbm.peak_bytes)
    return max(peaks)
