"""A program's run: hosts launch kernels, GPUs run them, links carry transfers.

A host launches its GPU's kernels on one stream, mostly without waiting for them; what each takes
an engine says (`sim.device.replays`). A transfer starts as soon as what it waits for is done and
its ports are free (`sim.device.links`); the HBM bandwidth that it takes from kernels is not
counted.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import simpy

from sim.device.links import Links, Sent
from sim.device.memory import GpuPlan, Hbm, MemoryChange, plans_of
from sim.device.replays import Replays
from sim.device.side_by_side import SideBySide
from sim.engine import reference
from sim.engine.kept import Disk
from sim.engine.kernel_run import KernelRun
from sim.engine.protocol import Engine
from sim.engine.remembered import Remembered, RememberedL2
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Command, Transfer

Events = Generator[simpy.Event, Any, None]
EngineName = Literal["replay", "reference"]
REMEMBERED = Remembered()  # of this process
_REPLAY: Engine[RememberedL2] = REMEMBERED
_REFERENCE: Engine[reference.L2Cache] = reference
# Any: by an engine's name alone it is not known in which form that keeps L2.
ENGINES: dict[EngineName, Engine[Any]] = {"replay": _REPLAY, "reference": _REFERENCE}


def keep_replays(folder: Path | None) -> None:
    """From now on this process keeps replays in the folder, and looks there; or in none."""
    REMEMBERED.disk = Disk(folder / "replays.sqlite") if folder else None


@dataclass(frozen=True)
class Launched:
    """A kernel that ran, on which GPU, and when it began after waiting so long for transfers."""

    start_s: float
    run: KernelRun
    gpu: int = 0
    waited_s: float = 0.0


@dataclass(frozen=True)
class DeviceRun:
    """A program that ran to its end. `time_s` is from the first launch on.

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
    """Run the commands in this thread; `progress` is told how much of the replays' cost is done.

    Raises OutOfMemoryError, and InputError where a transfer needs a link that there is not.
    """
    with SideBySide(1, lambda: progress(replays.cost_done)) as alone:
        replays = Replays(commands, hw, dtype, ENGINES[engine], alone, most_steps)
        return run_of(commands, hw, replays)


def run_of(commands: list[Command], hw: HardwareProfile, replays: Replays[Any]) -> DeviceRun:
    """Run the commands, whose replays have been started. Raises as `run_on_device` does."""
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


class _Later(simpy.Event):
    """An event whose time becomes known after others wait for it."""

    def happens_in(self, delay_s: float) -> "_Later":
        """Itself, to wait for."""
        self._ok, self._value = True, None
        self.env.schedule(self, delay=delay_s)
        return self


class _Run:
    """A program under way: a process for each host, GPU and transfer.

    `over` happens when all is done. What has started so far is in `launched` and `sent`, what is in
    each GPU's HBM in `memories`.
    """

    def __init__(self, commands: list[Command], hw: HardwareProfile, replays: Replays[Any]) -> None:
        self.env = simpy.Environment(0.0)
        self.hw, self.replays, self.links = hw, replays, Links(self.env, hw)
        self.launched: list[Launched] = []
        self.sent: list[Sent] = []
        self.memories: list[Hbm] = []
        self.asked = {command: _Later(self.env) for command in commands}
        self.done = {command: _Later(self.env) for command in commands}
        processes = []
        for plan in plans_of(commands):
            hbm = Hbm(hw.hbm.capacity)
            self.memories.append(hbm)
            self.env.process(self.host(plan))
            processes.append(self.env.process(self.gpu(plan, hbm)))
        processes += [
            self.env.process(self.sender(command, command.work))
            for command in commands
            if isinstance(command.work, Transfer)
        ]
        self.over = self.env.all_of(processes)

    def host(self, plan: GpuPlan) -> Events:
        """Launches one kernel after the other; it waits for the GPU only where it is told to."""
        last: Command | None = None
        latency_s = self.hw.calibration.launch.latency
        for command in plan.commands:
            if command.host_waits and last:
                yield self.done[last]
            last = command
            yield self.asked[command].happens_in(command.host_s + latency_s)

    def gpu(self, plan: GpuPlan, hbm: Hbm) -> Events:
        """Runs what was launched, each after the one before."""
        env, gap_s = self.env, self.hw.calibration.launch.gap
        hbm.allocate(plan.resident, env.now)
        for command, allocated, freed in zip(plan.commands, plan.before, plan.after, strict=True):
            hbm.allocate(allocated, env.now)
            yield self.asked[command]
            if command is not plan.commands[0]:
                yield env.timeout(gap_s)
            ready_s = env.now
            yield from self.after(command)
            run = self.replays.run(command)
            self.launched.append(Launched(env.now, run, command.gpu, env.now - ready_s))
            yield self.done[command].happens_in(run.time_s)
            hbm.free(freed, env.now)

    def sender(self, command: Command, transfer: Transfer) -> Events:
        """Makes a transfer as soon as what it waits for is done."""
        yield from self.after(command)
        self.sent.append((yield from self.links.send(command.gpu, transfer)))
        self.done[command].happens_in(0.0)

    def after(self, command: Command) -> Events:
        """Waits until all that the command waits for is done."""
        for earlier in command.after:
            yield self.done[earlier]
