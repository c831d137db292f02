"""The device (SimPy): hosts launch kernels, HBM holds their tensors, links carry transfers.

A host launches a GPU's kernels on one stream. Inputs, outputs and what arrives over links stay in
HBM throughout; any other workspace tensor is there from the first kernel that touches it to the
last. On one GPU, what the L2 holds at a kernel's end the next kernel may find there. Of several
GPUs each kernel starts from an empty L2, so that a kernel that runs on many of them, or many times,
is replayed once. A transfer starts as soon as what it waits for is done and its ports are free
(`sim.engine.links`); the HBM bandwidth that it takes from kernels is not counted.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

import simpy

from sim.engine import fast_forward, reference, replay
from sim.engine.kernel_run import KernelRun
from sim.engine.links import Links, Sent
from sim.engine.machine import machine_of
from sim.hardware import HardwareProfile
from sim.tile_program import Kernel, Step, Tensor, Transfer, chunk_tensors

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
    """A kernel that ran, on which GPU, and when it began after waiting so long for transfers."""

    start_s: float
    run: KernelRun
    gpu: int = 0
    waited_s: float = 0.0


@dataclass(frozen=True)
class DeviceRun:
    """A schedule that ran to its end. `time_s` is from the first launch on.

    `kernels` and `sent` are in the order of their starts, `memory` is the fullest GPU's.
    `l2_dirty_bytes` is what the run left dirty in L2, of all GPUs.
    """

    time_s: float
    kernels: list[Launched]
    memory: list[MemoryChange]
    l2_dirty_bytes: int
    sent: list[Sent]
    gpus: int


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
    """What one GPU of a program runs: its kernels' steps, with what to allocate and free around.

    `resident` is there throughout.
    """

    steps: list[Step]
    resident: list[Tensor]
    before: list[list[Tensor]]
    after: list[list[Tensor]]


def plans_of(steps: list[Step]) -> list[GpuPlan]:
    """Each GPU's kernels, and the lifetimes of its tensors and of what arrives over links."""
    gpus = gpus_of(steps)
    own: list[list[Step]] = [[] for _ in range(gpus)]
    arriving: list[dict[Tensor, None]] = [{} for _ in range(gpus)]
    for step in steps:
        work = step.work
        if isinstance(work, Kernel):
            own[step.gpu].append(step)
        elif work.buffer is not None:
            receiver = step.gpu if work.from_host or work.to == "host" else work.to
            arriving[receiver][work.buffer] = None
    return [_plan_of(*of_gpu) for of_gpu in zip(own, arriving, strict=True)]


def _plan_of(own: list[Step], arriving: dict[Tensor, None]) -> GpuPlan:
    tensors_of = {kernel: kernel.tensors for kernel in kernels_of(own)}
    first: dict[Tensor, int] = {}
    last: dict[Tensor, int] = {}
    for number, step in enumerate(own):
        for tensor in tensors_of[step.work] if isinstance(step.work, Kernel) else ():
            first.setdefault(tensor, number)
            last[tensor] = number
    resident = {t: None for t in first if t.role != "workspace"} | arriving
    before: list[list[Tensor]] = [[] for _ in own]
    after: list[list[Tensor]] = [[] for _ in own]
    for tensor in first:
        if tensor not in resident:
            before[first[tensor]].append(tensor)
            after[last[tensor]].append(tensor)
    return GpuPlan(own, list(resident), before, after)


def gpus_of(steps: list[Step]) -> int:
    """How many GPUs the steps run on or send to."""
    receivers = [step.work.to for step in steps if isinstance(step.work, Transfer)]
    return 1 + max(*(step.gpu for step in steps), *(to for to in receivers if to != "host"), 0)


def kernels_of(steps: list[Step]) -> list[Kernel]:
    """Every kernel of the steps, once each, in order."""
    return list(dict.fromkeys(step.work for step in steps if isinstance(step.work, Kernel)))


def replays_of(steps: list[Step]) -> list[Kernel]:
    """The kernels that must be replayed: of several GPUs, one that repeats only once."""
    if gpus_of(steps) > 1:
        return kernels_of(steps)
    return [step.work for step in steps if isinstance(step.work, Kernel)]


def check_memory(steps: list[Step], hw: HardwareProfile) -> int:
    """Peak bytes in a GPU's HBM; raises OutOfMemoryError as the run itself would, unrun."""
    peaks = []
    for plan in plans_of(steps):
        hbm = Hbm(hw.hbm.capacity)
        hbm.allocate(plan.resident, 0.0)
        for allocated, freed in zip(plan.before, plan.after, strict=True):
            hbm.allocate(allocated, 0.0)
            hbm.free(freed, 0.0)
        peaks.append(hbm.peak_bytes)
    return max(peaks)


class Replays:
    """Replays kernels on an engine, and tells `progress` how many tile steps are done so far.

    On one GPU each finds in L2 what the last one left. Of several GPUs each starts from an empty
    L2, and one that repeats is replayed once. With `most_steps`, of a long one only about so many
    tile steps are replayed (`sim.engine.fast_forward`).
    """

    def __init__(
        self,
        steps: list[Step],
        hw: HardwareProfile,
        dtype: str,
        engine: EngineName,
        progress: Callable[[int], None],
        most_steps: int | None,
    ) -> None:
        self.engine, self.hw, self.dtype = ENGINES[engine], hw, dtype
        self.most_steps = most_steps
        self.progress, self.tile_steps = progress, 0
        self.chunkings = chunk_tensors(
            [kernel for kernel in kernels_of(steps) if not self._skips(kernel)]
        )
        self.shared_l2 = self._empty_l2() if gpus_of(steps) == 1 else None
        self.known: dict[Kernel, KernelRun] = {}

    def _skips(self, kernel: Kernel) -> bool:
        return self.most_steps is not None and fast_forward.can_skip(kernel, self.most_steps)

    def _empty_l2(self) -> Any:
        return self.engine.new_l2(self.chunkings, machine_of(self.hw).l2_capacity_bytes)

    def run(self, kernel: Kernel) -> KernelRun:
        """What the kernel takes now."""
        if self.shared_l2 is not None or kernel not in self.known:
            self.known[kernel] = self._replay(kernel)
        return self.known[kernel]

    def _replay(self, kernel: Kernel) -> KernelRun:
        before = self.tile_steps

        def so_far(tile_steps: int) -> None:
            self.progress(before + tile_steps)

        most_steps = self.most_steps
        self.tile_steps += fast_forward.replayed_steps(kernel, most_steps)
        if most_steps is not None and fast_forward.can_skip(kernel, most_steps):
            return fast_forward.run_kernel(
                self.engine, kernel, self.hw, self.dtype, so_far, most_steps
            )
        l2 = self._empty_l2() if self.shared_l2 is None else self.shared_l2
        run: KernelRun = self.engine.run_kernel(
            kernel, self.chunkings, self.hw, l2, self.dtype, so_far
        )
        return run


def run_on_device(
    steps: list[Step],
    hw: HardwareProfile,
    dtype: str,
    engine: EngineName,
    progress: Callable[[int], None],
    *,
    most_steps: int | None = None,
) -> DeviceRun:
    """Run the steps; `engine`, `progress` and `most_steps` are of `Replays`.

    Raises OutOfMemoryError, and InputError where a transfer needs a link that there is not.
    """
    gpus, replays = gpus_of(steps), Replays(steps, hw, dtype, engine, progress, most_steps)
    env = simpy.Environment()
    links = Links(env, hw)
    memories = [Hbm(hw.hbm.capacity) for _ in range(gpus)]
    launched: list[Launched] = []
    sent: list[Sent] = []
    done = {step: env.event() for step in steps}

    def host(plan: GpuPlan, stream: simpy.Store) -> Generator[simpy.Event, Any, None]:
        """Launches one kernel after the other, without waiting for the device."""
        for step in plan.steps:
            yield env.timeout(hw.calibration.launch.latency)
            yield stream.put(step)

    def device(plan: GpuPlan, stream: simpy.Store, hbm: Hbm) -> Generator[simpy.Event, Any, None]:
        """Runs what was launched, each after the one before."""
        hbm.allocate(plan.resident, env.now)
        for number, (allocated, freed) in enumerate(zip(plan.before, plan.after, strict=True)):
            hbm.allocate(allocated, env.now)
            step = yield stream.get()
            if number:
                yield env.timeout(hw.calibration.launch.gap)
            ready_s = env.now
            yield env.all_of([done[earlier] for earlier in step.after])
            run = replays.run(step.work)
            launched.append(Launched(env.now, run, step.gpu, env.now - ready_s))
            yield env.timeout(run.time_s)
            hbm.free(freed, env.now)
            done[step].succeed()

    def sender(step: Step, transfer: Transfer) -> Generator[simpy.Event, Any, None]:
        """Makes a transfer as soon as what it waits for is done."""
        yield env.all_of([done[earlier] for earlier in step.after])
        sent.append((yield from links.send(step.gpu, transfer)))
        done[step].succeed()

    processes = []
    for plan, hbm in zip(plans_of(steps), memories, strict=True):
        stream = simpy.Store(env)
        env.process(host(plan, stream))
        processes.append(env.process(device(plan, stream, hbm)))
    transfers = [(step, step.work) for step in steps if isinstance(step.work, Transfer)]
    processes += [env.process(sender(step, transfer)) for step, transfer in transfers]
    env.run(env.all_of(processes))
    left_dirty = launched[-1:] if gpus == 1 else launched
    return DeviceRun(
        time_s=float(env.now),
        kernels=launched,
        memory=max(memories, key=lambda hbm: hbm.peak_bytes).changes,
        l2_dirty_bytes=sum(kernel.run.l2_dirty_bytes for kernel in left_dirty),
        sent=sorted(sent, key=lambda s: s.start_s),
        gpus=gpus,
    )
