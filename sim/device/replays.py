"""What a program's kernels take, by replaying them on an engine."""

from collections.abc import Callable
from dataclasses import replace
from typing import Generic

from sim.device.program import gpus_of, kernels_of
from sim.engine.fast_forward import run as fast_forward
from sim.engine.fast_forward.choice import Choice
from sim.engine.kernel_run import KernelRun
from sim.engine.power import held_back
from sim.engine.protocol import Engine, L2State
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Command, Kernel


class Replays(Generic[L2State]):
    """Replays kernels on an engine, and tells `progress` how much of their cost is done so far.

    On one GPU each finds in L2 what the last one left. Of several GPUs each starts from an empty
    L2, so that one that runs on many of them, or many times, is replayed once. With `most_steps`,
    of a costly one only about so many tile steps are replayed (`sim.engine.fast_forward.choice`),
    on an L2 of its own: what it leaves dirty there the next one writes, and what those before it
    left stays in theirs.
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
        self.progress, self.cost = progress, 0
        self.choice = Choice.of(kernels_of(commands), most_steps)
        self.shared_l2 = self._empty_l2() if gpus_of(commands) == 1 else None
        self.known: dict[Kernel, KernelRun] = {}
        self.dirty_bytes = {"shared": 0, "own": 0}  # in the L2 of one GPU, and of the last in part

    def _empty_l2(self) -> L2State:
        return self.engine.new_l2(self.choice.chunkings, self.hw)

    def run(self, kernel: Kernel) -> KernelRun:
        """What the kernel takes now."""
        if self.shared_l2 is not None or kernel not in self.known:
            self.known[kernel] = self._replay(kernel)
        return self.known[kernel]

    def _replay(self, kernel: Kernel) -> KernelRun:
        hw, dtype, choice = self.hw, self.dtype, self.choice
        before, cost, most_steps = self.cost, choice.cost[kernel], choice.in_part.get(kernel)
        self.cost += cost
        a_step = cost / max(kernel.tile_steps, 1) if most_steps is None else 1.0

        def so_far(tile_steps: int) -> None:
            self.progress(before + int(tile_steps * a_step))

        if most_steps is not None:
            run = fast_forward.run_kernel(self.engine, kernel, hw, dtype, so_far, most_steps)
        else:
            l2 = self._empty_l2() if self.shared_l2 is None else self.shared_l2
            run = self.engine.run_kernel(kernel, choice.chunkings, hw, l2, dtype, so_far)
        if self.shared_l2 is not None:
            run = self._with_what_was_dirty(run, in_part=most_steps is not None)
        return held_back(run, hw, dtype)

    def _with_what_was_dirty(self, run: KernelRun, *, in_part: bool) -> KernelRun:
        """The run after those before it, so that each byte is written once or dirty at the end."""
        dirty_bytes, left = self.dirty_bytes, run.l2_dirty_bytes
        written = run.hbm_write_bytes + dirty_bytes["own"]
        if in_part:
            self.dirty_bytes = {**dirty_bytes, "own": left}
            left += dirty_bytes["shared"]
        else:
            self.dirty_bytes = {"shared": left, "own": 0}
        return replace(run, hbm_write_bytes=written, l2_dirty_bytes=left)
