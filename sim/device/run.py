"""A program's run: hosts launch kernels, GPUs run them, links carry transfers.

A host launches its GPU's kernels on one stream, without waiting for them. On one GPU, what the L2
holds at a kernel's end the next kernel may find there. Of several GPUs each kernel starts from an
empty L2, so that a kernel that runs on many of them, or many times, is replayed once. A transfer
starts as soon as what it waits for is done and its ports are free (`sim.device.links`); the HBM
bandwidth that it takes from kernels is not counted.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, Literal

import simpy

from sim.device.links import Links, Sent
from sim.device.memory import GpuPlan, Hbm, MemoryChange, plans_of
from sim.device.program import gpus_of, kernels_of
from sim.engine import reference
from sim.engine.compiled import replay
from sim.engine.compiled.l2 import L2Lines
from sim.engine.fast_forward import run as fast_forward
from sim.engine.fast_forward.plan import can_skip, replayed_steps
from sim.engine.kernel_run import KernelRun
from sim.engine.protocol import Engine, L2State
from sim.inputs.hardware import HardwareProfile
from sim.machine import machine_of
from sim.tile_program import Command, Kernel, Transfer, chunk_tensors

EngineName = Literal["replay", "reference"]
_REPLAY: Engine[L2Lines] = replay
_REFERENCE: Engine[reference.L2Cache] = reference
# Any: which form of L2 an engine keeps, only who named it knows.
ENGINES: dict[EngineName, Engine[Any]] = {"replay": _REPLAY, "reference": _REFERENCE}


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


def run_on_device(
    commands: list[Command],
    hw: HardwareProfile,
    dtype: str,
    engine: EngineName,
    progress: Callable[[int], None],
    *,
    most_steps: int | None = None,
) -> DeviceRun:
    """Run the commands; `progress` and `most_steps` are of `Replays`.

    Raises OutOfMemoryError, and InputError where a transfer needs a link that there is not.
    """
    replays = Replays(commands, hw, dtype, ENGINES[engine], progress, most_steps)
    run = _Run(commands, hw, replays)
    run.env.run(run.over)
    gpus = len(run.memories)
    left_dirty = run.launched[-1:] if gpus == 1 else run.launched
    return DeviceRun(
        time_s=float(run.env.now),
        kernels=run.launched,
        memory=max(run.memories, key=lambda hbm: hbm.peak_bytes).changes,
        l2_dirty_bytes=sum(kernel.run.l2_dirty_bytes for kernel in left_dirty),
        sent=sorted(run.sent, key=lambda s: s.start_s),
        gpus=gpus,
    )


class Replays(Generic[L2State]):
    """Replays kernels on an engine, and tells `progress` how many tile steps are done so far.

    On one GPU each finds in L2 what the last one left. Of several GPUs each starts from an empty
    L2, and one that repeats is replayed once. With `most_steps`, of a long one only about so many
    tile steps are replayed (`sim.engine.fast_forward`).
    """

    def __init__(
        self,
        commands: list[Command],
        hw: HardwareProfile,
        dtype: str,
        engine: Engine[L2State],
        progress: Callable[[int], None],
        most_steps: int | None,
    ) -> None:
        self.engine, self.hw, self.dtype = engine, hw, dtype
        self.most_steps = most_steps
        self.progress, self.tile_steps = progress, 0
        self.chunkings = chunk_tensors(
            [
                kernel
                for kernel in kernels_of(commands)
                if most_steps is None or not can_skip(kernel, most_steps)
            ]
        )
        self.shared_l2 = self._empty_l2() if gpus_of(commands) == 1 else None
        self.known: dict[Kernel, KernelRun] = {}

    def _empty_l2(self) -> L2State:
        return self.engine.new_l2(self.chunkings, machine_of(self.hw).l2_capacity_bytes)

    def run(self, kernel: Kernel) -> KernelRun:
        """What the kernel takes now."""
        if self.shared_l2 is not None or kernel not in self.known:
            self.known[kernel] = self._replay(kernel)
        return self.known[kernel]

    def _replay(self, kernel: Kernel) -> KernelRun:
        before, hw, dtype, most_steps = self.tile_steps, self.hw, self.dtype, self.most_steps
        self.tile_steps += replayed_steps(kernel, most_steps)

        def so_far(tile_steps: int) -> None:
            self.progress(before + tile_steps)

        if most_steps is not None and can_skip(kernel, most_steps):
            return fast_forward.run_kernel(self.engine, kernel, hw, dtype, so_far, most_steps)
        l2 = self._empty_l2() if self.shared_l2 is None else self.shared_l2
        return self.engine.run_kernel(kernel, self.chunkings, hw, l2, dtype, so_far)


Events = Generator[simpy.Event, Any, None]


class _Run:
    """A program under way: a process for each host, GPU and transfer.

    `over` happens when all is done. What has started so far is in `launched` and `sent`, what is in
    each GPU's HBM in `memories`.
    """

    def __init__(self, commands: list[Command], hw: HardwareProfile, replays: Replays[Any]) -> None:
        self.env = simpy.Environment()
        self.hw, self.replays, self.links = hw, replays, Links(self.env, hw)
        self.launched: list[Launched] = []
        self.sent: list[Sent] = []
        self.memories: list[Hbm] = []
        self.done = {command: self.env.event() for command in commands}
        processes = []
        for plan in plans_of(commands):
            stream, hbm = simpy.Store(self.env), Hbm(hw.hbm.capacity)
            self.memories.append(hbm)
            self.env.process(self.host(plan, stream))
            processes.append(self.env.process(self.gpu(plan, stream, hbm)))
        processes += [
            self.env.process(self.sender(command, command.work))
            for command in commands
            if isinstance(command.work, Transfer)
        ]
        self.over = self.env.all_of(processes)

    def host(self, plan: GpuPlan, stream: simpy.Store) -> Events:
        """Launches one kernel after the other, without waiting for the GPU."""
        for command in plan.commands:
            yield self.env.timeout(self.hw.calibration.launch.latency)
            yield stream.put(command)

    def gpu(self, plan: GpuPlan, stream: simpy.Store, hbm: Hbm) -> Events:
        """Runs what was launched, each after the one before."""
        env = self.env
        hbm.allocate(plan.resident, env.now)
        for number, (allocated, freed) in enumerate(zip(plan.before, plan.after, strict=True)):
            hbm.allocate(allocated, env.now)
            command = yield stream.get()
            if number:
                yield env.timeout(self.hw.calibration.launch.gap)
            ready_s = env.now
            yield self.after(command)
            run = self.replays.run(command.work)
            self.launched.append(Launched(env.now, run, command.gpu, env.now - ready_s))
            yield env.timeout(run.time_s)
            hbm.free(freed, env.now)
            self.done[command].succeed()

    def sender(self, command: Command, transfer: Transfer) -> Events:
        """Makes a transfer as soon as what it waits for is done."""
        yield self.after(command)
        self.sent.append((yield from self.links.send(command.gpu, transfer)))
        self.done[command].succeed()

    def after(self, command: Command) -> simpy.Event:
        """All that the command waits for is done."""
        return self.env.all_of([self.done[earlier] for earlier in command.after])
