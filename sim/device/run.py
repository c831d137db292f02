"""The device (SimPy): hosts launch kernels, HBM holds their tensors, links carry transfers.

A host launches a GPU's kernels on one stream. Inputs, outputs and what arrives over links stay in
HBM throughout; any other workspace tensor is there from the first kernel that touches it to the
last. On one GPU, what the L2 holds at a kernel's end the next kernel may find there. Of several
GPUs each kernel starts from an empty L2, so that a kernel that runs on many of them, or many times,
is replayed once. A transfer starts as soon as what it waits for is done and its ports are free
(`sim.device.links`); the HBM bandwidth that it takes from kernels is not counted.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

import simpy

from sim.device.links import Links, Sent
from sim.device.memory import GpuPlan, Hbm, MemoryChange, gpus_of, kernels_of, plans_of
from sim.engine import reference
from sim.engine.compiled import replay
from sim.engine.fast_forward.plan import can_skip, replayed_steps
from sim.engine.fast_forward.run import run_kernel
from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.machine import machine_of
from sim.tile_program import Command, Kernel, Transfer, chunk_tensors

EngineName = Literal["replay", "reference"]
ENGINES: dict[EngineName, Any] = {"replay": replay, "reference": reference}


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


class Replays:
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
        engine: EngineName,
        progress: Callable[[int], None],
        most_steps: int | None,
    ) -> None:
        self.engine, self.hw, self.dtype = ENGINES[engine], hw, dtype
        self.most_steps = most_steps
        self.progress, self.tile_steps = progress, 0
        self.chunkings = chunk_tensors(
            [kernel for kernel in kernels_of(commands) if not self._skips(kernel)]
        )
        self.shared_l2 = self._empty_l2() if gpus_of(commands) == 1 else None
        self.known: dict[Kernel, KernelRun] = {}

    def _skips(self, kernel: Kernel) -> bool:
        return self.most_steps is not None and can_skip(kernel, self.most_steps)

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
        self.tile_steps += replayed_steps(kernel, most_steps)
        if most_steps is not None and can_skip(kernel, most_steps):
            return run_kernel(self.engine, kernel, self.hw, self.dtype, so_far, most_steps)
        l2 = self._empty_l2() if self.shared_l2 is None else self.shared_l2
        run: KernelRun = self.engine.run_kernel(
            kernel, self.chunkings, self.hw, l2, self.dtype, so_far
        )
        return run


def run_on_device(
    commands: list[Command],
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
    gpus, replays = gpus_of(commands), Replays(commands, hw, dtype, engine, progress, most_steps)
    env = simpy.Environment()
    links = Links(env, hw)
    memories = [Hbm(hw.hbm.capacity) for _ in range(gpus)]
    launched: list[Launched] = []
    sent: list[Sent] = []
    done = {command: env.event() for command in commands}

    def host(plan: GpuPlan, stream: simpy.Store) -> Generator[simpy.Event, Any, None]:
        """Launches one kernel after the other, without waiting for the device."""
        for command in plan.commands:
            yield env.timeout(hw.calibration.launch.latency)
            yield stream.put(command)

    def device(plan: GpuPlan, stream: simpy.Store, hbm: Hbm) -> Generator[simpy.Event, Any, None]:
        """Runs what was launched, each after the one before."""
        hbm.allocate(plan.resident, env.now)
        for number, (allocated, freed) in enumerate(zip(plan.before, plan.after, strict=True)):
            hbm.allocate(allocated, env.now)
            command = yield stream.get()
            if number:
                yield env.timeout(hw.calibration.launch.gap)
            ready_s = env.now
            yield env.all_of([done[earlier] for earlier in command.after])
            run = replays.run(command.work)
            launched.append(Launched(env.now, run, command.gpu, env.now - ready_s))
            yield env.timeout(run.time_s)
            hbm.free(freed, env.now)
            done[command].succeed()

    def sender(command: Command, transfer: Transfer) -> Generator[simpy.Event, Any, None]:
        """Makes a transfer as soon as what it waits for is done."""
        yield env.all_of([done[earlier] for earlier in command.after])
        sent.append((yield from links.send(command.gpu, transfer)))
        done[command].succeed()

    processes = []
    for plan, hbm in zip(plans_of(commands), memories, strict=True):
        stream = simpy.Store(env)
        env.process(host(plan, stream))
        processes.append(env.process(device(plan, stream, hbm)))
    transfers = [
        (command, command.work) for command in commands if isinstance(command.work, Transfer)
    ]
    processes += [env.process(sender(command, transfer)) for command, transfer in transfers]
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
