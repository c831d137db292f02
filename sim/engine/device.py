"""The device (SimPy): hosts launch kernels, HBM holds their tensors, links carry transfers.

A host launches a GPU's kernels on one stream. Inputs and outputs stay in HBM throughout; a
workspace tensor is there from the first kernel that touches it to the last. On one GPU, what the L2
holds at a kernel's end the next kernel may find there. Of several GPUs each kernel starts from an
empty L2, so that a kernel that runs on many of them, or many times, is replayed once.

A link is a port out of the sender and one into the receiver, each a FIFO server; a transfer holds
both for bytes / bandwidth and arrives a latency later.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

import simpy

from sim.engine import reference, replay
from sim.engine.kernel_run import KernelRun
from sim.engine.machine import machine_of
from sim.files import InputError
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
class Sent:
    """A transfer that GPU `gpu` made, from its first byte's leaving to its last one's arrival."""

    start_s: float
    end_s: float
    transfer: Transfer
    gpu: int


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
    """What one GPU of a program runs: its kernels' steps, with what to allocate and free around."""

    steps: list[Step]
    before: list[list[Tensor]]
    after: list[list[Tensor]]


def plan_of(steps: list[Step], gpu: int) -> GpuPlan:
    """The kernels of a GPU, and the lifetimes of its tensors and of what arrives over links."""
    own = [step for step in steps if step.gpu == gpu and isinstance(step.work, Kernel)]
    first: dict[Tensor, int] = {}
    last: dict[Tensor, int] = {}
    for k, step in enumerate(own):
        for tensor in step.work.tensors if isinstance(step.work, Kernel) else ():
            first.setdefault(tensor, k)
            last[tensor] = k
    arriving = [
        step.work.buffer
        for step in steps
        if isinstance(step.work, Transfer)
        and step.work.buffer is not None
        and (step.gpu if step.work.from_host else step.work.to) == gpu
    ]
    resident = list(dict.fromkeys([*(t for t in first if t.role != "workspace"), *arriving]))
    workspace = [t for t in first if t.role == "workspace" and t not in resident]
    before = [[t for t in workspace if first[t] == k] for k in range(len(own))]
    after = [[t for t in workspace if last[t] == k] for k in range(len(own))]
    if before:
        before[0] = resident + before[0]
    return GpuPlan(own, before, after)


def gpus_of(steps: list[Step]) -> int:
    """How many GPUs the steps run on."""
    return 1 + max(step.gpu for step in steps)


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
    for gpu in range(gpus_of(steps)):
        hbm, plan = Hbm(hw.hbm.capacity), plan_of(steps, gpu)
        for allocated, freed in zip(plan.before, plan.after, strict=True):
            hbm.allocate(allocated, 0.0)
            hbm.free(freed, 0.0)
        peaks.append(hbm.peak_bytes)
    return max(peaks)


class Links:
    """The ports that transfers go through. Raises InputError where the profile has no such link."""

    def __init__(self, env: simpy.Environment, hw: HardwareProfile) -> None:
        self.env, self.hw = env, hw
        self.ports: dict[tuple[str, int | str], simpy.Resource] = {}

    def port(self, direction: str, owner: int | str) -> simpy.Resource:
        """A port, one transfer at a time."""
        return self.ports.setdefault((direction, owner), simpy.Resource(self.env))

    def send(
        self, gpu: int, transfer: Transfer
    ) -> Generator[simpy.Event, Any, tuple[float, float]]:
        """Make the transfer; returns when it began and when its last byte arrived."""
        if transfer.from_host or transfer.to == "host":
            bytes_per_s, latency_s = host_link(self.hw)
            way = "from host" if transfer.from_host else "to host"
            out, into = self.port(way, gpu), None
        else:
            bytes_per_s, latency_s = peer_link(self.hw, gpu, transfer.to)
            out, into = self.port("out", gpu), self.port("in", transfer.to)
        with out.request() as sending:
            yield sending
            receiving = into.request() if into else None
            if receiving is not None:
                yield receiving
            start_s = self.env.now
            yield self.env.timeout(transfer.bytes / bytes_per_s)
            if into and receiving is not None:
                into.release(receiving)
        yield self.env.timeout(latency_s)
        return start_s, self.env.now


def host_link(hw: HardwareProfile) -> tuple[float, float]:
    """Sustained bytes a second to or from the host, and latency; raises InputError without one."""
    if hw.links is None or hw.links.host is None:
        raise InputError(f"{hw.name} has no links.host: the link to the host's memory")
    return hw.links.host * hw.calibration.links.sustained, hw.calibration.links.latency


def peer_link(hw: HardwareProfile, gpu: int, to: int) -> tuple[float, float]:
    """Sustained bytes a second from one GPU to another, and latency.

    Within a node of `links.node_gpus` by links.peer, else by links.network. Raises InputError where
    the profile has no such link.
    """
    links, calibration = hw.links, hw.calibration.links
    if links is None or links.peer is None:
        raise InputError(f"{hw.name} has no links.peer: the link to other GPUs")
    if links.node_gpus is None or gpu // links.node_gpus == to // links.node_gpus:
        return links.peer * calibration.sustained, calibration.latency
    if links.network is None:
        raise InputError(
            f"{hw.name} has no links.network: beyond {links.node_gpus} GPUs (links.node_gpus) the "
            "network between nodes must carry what they exchange"
        )
    return links.network * calibration.sustained, calibration.network_latency


def run_on_device(
    steps: list[Step],
    hw: HardwareProfile,
    dtype: str,
    engine: EngineName,
    progress: Callable[[int], None],
) -> DeviceRun:
    """Run the steps; `progress` is told how many tile steps are done so far.

    Raises OutOfMemoryError, and InputError where a transfer needs a link that there is not.
    """
    simulated, gpus = ENGINES[engine], gpus_of(steps)
    chunkings = chunk_tensors(kernels_of(steps))
    capacity_bytes = machine_of(hw).l2_capacity_bytes
    l2 = simulated.new_l2(chunkings, capacity_bytes)

    env = simpy.Environment()
    links = Links(env, hw)
    memories = [Hbm(hw.hbm.capacity) for _ in range(gpus)]
    launched: list[Launched] = []
    sent: list[Sent] = []
    replayed: dict[Kernel, KernelRun] = {}
    steps_done = 0
    done = {step: env.event() for step in steps}

    def replay_kernel(kernel: Kernel) -> KernelRun:
        nonlocal steps_done
        if gpus > 1 and kernel in replayed:
            return replayed[kernel]
        cache = l2 if gpus == 1 else simulated.new_l2(chunkings, capacity_bytes)
        before = steps_done
        replayed[kernel] = simulated.run_kernel(
            kernel, chunkings, hw, cache, dtype, lambda n: progress(before + n)
        )
        steps_done += kernel.tile_steps
        return replayed[kernel]

    def host(plan: GpuPlan, stream: simpy.Store) -> Generator[simpy.Event, Any, None]:
        """Launches one kernel after the other, without waiting for the device."""
        for step in plan.steps:
            yield env.timeout(hw.calibration.launch.latency)
            yield stream.put(step)

    def device(plan: GpuPlan, stream: simpy.Store, hbm: Hbm) -> Generator[simpy.Event, Any, None]:
        """Runs what was launched, each after the one before."""
        for number, (allocated, freed) in enumerate(zip(plan.before, plan.after, strict=True)):
            hbm.allocate(allocated, env.now)
            step = yield stream.get()
            if number:
                yield env.timeout(hw.calibration.launch.gap)
            ready_s = env.now
            yield env.all_of([done[earlier] for earlier in step.after])
            run = replay_kernel(step.work)
            launched.append(Launched(env.now, run, step.gpu, env.now - ready_s))
            yield env.timeout(run.time_s)
            hbm.free(freed, env.now)
            done[step].succeed()

    def sender(step: Step, transfer: Transfer) -> Generator[simpy.Event, Any, None]:
        """Makes a transfer as soon as what it waits for is done."""
        yield env.all_of([done[earlier] for earlier in step.after])
        start_s, end_s = yield from links.send(step.gpu, transfer)
        sent.append(Sent(start_s, end_s, transfer, step.gpu))
        done[step].succeed()

    processes = []
    for gpu in range(gpus):
        plan, stream = plan_of(steps, gpu), simpy.Store(env)
        env.process(host(plan, stream))
        processes.append(env.process(device(plan, stream, memories[gpu])))
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
