"""What a program's kernels take, by replaying them on an engine."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Generic

from sim.device.handed_over import HandedOver
from sim.device.program import gpus_of, kernels_of, told_by
from sim.device.side_by_side import SideBySide
from sim.engine.fast_forward import run as fast_forward
from sim.engine.fast_forward.choice import Choice
from sim.engine.kernel_run import KernelRun
from sim.engine.power import held_back
from sim.engine.protocol import Engine, L2State
from sim.inputs.hardware import HardwareProfile
from sim.machine import machine_of
from sim.tile_program import Command, Kernel

Ran = Future[KernelRun]


class Replays(Generic[L2State]):
    """Replays a program's kernels on an engine, as chains that stand side by side.

    On one GPU each finds in L2 what the last one left: these are one chain. Of several GPUs each
    kernel starts from an empty L2, and stands alone. With `most_steps`, of a costly one only about
    so many tile steps are replayed (`sim.engine.fast_forward.choice`), on an L2 of its own: what it
    leaves dirty there the next one writes, and what those before it left stays in theirs. What
    others tell is not replayed (`sim.device.program.told_by`).
    """

    def __init__(
        self,
        commands: list[Command],
        hw: HardwareProfile,
        dtype: str,
        engine: Engine[L2State],
        beside: SideBySide,
        most_steps: int | None,
    ) -> None:
        self.engine, self.hw, self.dtype, self.beside = engine, hw, dtype, beside
        self.choice = Choice.of(kernels_of(commands), hw, most_steps)
        self.told = told_by(commands, self.choice)
        self.one_gpu = gpus_of(commands) == 1
        self.of_command: dict[Command, tuple[Ran, Iterator[None]]] = {}
        self.launched: dict[tuple[Command, Kernel], KernelRun] = {}  # on several GPUs
        self.steps_done: dict[Ran, int] = {}  # of the cost of what has begun
        self.shared_dirty_bytes = 0  # in the L2 of those replayed whole on one GPU
        self.dirty_bytes = 0  # when the last kernel ended, as told
        self.handed_over = HandedOver(hw)
        self._start(commands)

    def _start(self, commands: list[Command]) -> None:
        sharing: list[tuple[Kernel, Ran]] = []
        shared = self._chain(sharing)
        costs: dict[Iterator[None], int] = {}
        for command in commands:
            kernel = command.work
            if not isinstance(kernel, Kernel) or command in self.told:
                continue
            ran = self._awaited()
            if self.one_gpu and kernel not in self.choice.in_part:
                sharing.append((kernel, ran))
                chain = shared
            else:
                chain = self._chain([(kernel, ran)])
            self.of_command[command] = ran, chain
            costs[chain] = costs.get(chain, 0) + self.choice.cost[kernel]
        for chain, cost in costs.items():
            self.beside.start(chain, cost)

    def _awaited(self) -> Ran:
        """A replay to come, of whose cost nothing is done: threads add no key to `steps_done`."""
        ran: Ran = Future()
        self.steps_done[ran] = 0
        return ran

    def run(self, command: Command) -> KernelRun:
        """What the kernel of the next command takes: a GPU's are asked for in their order."""
        kernel = command.work
        assert isinstance(kernel, Kernel)
        told_by = self.told.get(command, (command,))
        again = told_by[0], kernel
        if again in self.launched:
            return self.launched[again]
        run, *before = (self.beside.result(*self.of_command[one]) for one in told_by)
        run = run.of_like(kernel)
        if not self.one_gpu:  # every launch of the kernel is the same
            self.launched[again] = held_back(run, self.hw, self.dtype)
            return self.launched[again]
        if before:
            run = fast_forward.repeated(run, before[0])
        in_part = kernel in self.choice.in_part
        run = self._with_what_was_dirty(run, in_part=in_part)
        run = replace(run, unsure_bytes=self.handed_over.unsure_bytes_of_next(run, in_part=in_part))
        return held_back(run, self.hw, self.dtype)

    @property
    def cost_done(self) -> int:
        """How much of the replays' cost is done so far."""
        return sum(self.steps_done.values())

    def _chain(self, replays: list[tuple[Kernel, Ran]]) -> Iterator[None]:
        """Replay one kernel after the other on one L2; an error is that of all that are left."""
        l2, failed = None, None
        for kernel, ran in replays:
            try:
                if failed is None:
                    if l2 is None and kernel not in self.choice.in_part:
                        l2 = self.engine.new_l2(self.choice.chunkings, self.hw)
                    ran.set_result(self._replayed(kernel, l2, ran))
            except Exception as error:
                failed = error
            if failed is not None:
                ran.set_exception(failed)
            yield

    def _replayed(self, kernel: Kernel, l2: L2State | None, ran: Ran) -> KernelRun:
        hw, dtype, choice = self.hw, self.dtype, self.choice
        cost, most_steps = choice.cost[kernel], choice.in_part.get(kernel)
        a_step = cost / max(kernel.tile_steps, 1) if most_steps is None else 1.0

        def so_far(tile_steps: int) -> None:
            self.steps_done[ran] = int(tile_steps * a_step)
            self.beside.go_on()

        so_far(0)
        if l2 is None:
            run = fast_forward.run_kernel(
                self.engine, kernel, hw, dtype, so_far, choice.in_part[kernel]
            )
        else:
            run = self.engine.run_kernel(kernel, choice.chunkings, hw, l2, dtype, so_far)
        self.steps_done[ran] = cost
        return run

    def _with_what_was_dirty(self, run: KernelRun, *, in_part: bool) -> KernelRun:
        """The run after those before it, so that each byte is written once or dirty at the end.

        What two L2s leave dirty, of which one would leave less, the later of both has written.
        """
        made_dirty = run.hbm_write_bytes + run.l2_dirty_bytes
        left = run.l2_dirty_bytes
        if in_part:
            left += self.shared_dirty_bytes
        else:
            made_dirty -= self.shared_dirty_bytes
            self.shared_dirty_bytes = left
        left = min(left, machine_of(self.hw).l2_most_dirty_bytes)
        written = self.dirty_bytes + made_dirty - left
        self.dirty_bytes = left
        return replace(run, hbm_write_bytes=written, l2_dirty_bytes=left)
