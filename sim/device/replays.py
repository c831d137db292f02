"""What a program's kernels take, by replaying them on an engine."""

from collections.abc import Callable
from typing import Generic

from sim.device.program import gpus_of, kernels_of
from sim.engine.fast_forward import run as fast_forward
from sim.engine.fast_forward.plan import can_skip, replayed_steps
from sim.engine.kernel_run import KernelRun
from sim.engine.power import held_back
from sim.engine.protocol import Engine, L2State
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Command, Kernel, chunk_tensors


class Replays(Generic[L2State]):
    """Replays kernels on an engine, and tells `progress` how many tile steps are done so far.

    On one GPU each finds in L2 what the last one left. Of several GPUs each starts from an empty
    L2, so that one that runs on many of them, or many times, is replayed once. With `most_steps`,
    of a long one only about so many tile steps are replayed (`sim.engine.fast_forward`).
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
        return self.engine.new_l2(self.chunkings, self.hw)

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
            run = fast_forward.run_kernel(self.engine, kernel, hw, dtype, so_far, most_steps)
        else:
            l2 = self._empty_l2() if self.shared_l2 is None else self.shared_l2
            run = self.engine.run_kernel(kernel, self.chunkings, hw, l2, dtype, so_far)
        return held_back(run, hw, dtype)
