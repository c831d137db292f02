"""What an engine is to all that use one."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Chunking, Kernel, Tensor

L2State = TypeVar("L2State")


class Engine(Protocol[L2State]):
    """Replays kernels one after the other; what L2 holds between them it keeps in its own form.

    Every engine counts the same to the bit, and its times are those of any other to 1e-9 relative.
    The same kernel on the same L2 takes the same to the bit. A module can be an engine.
    """

    def new_l2(self, chunkings: dict[Tensor, Chunking], hw: HardwareProfile) -> L2State:
        """The device's L2, empty, for the chunks of those tensors."""

    def run_kernel(
        self,
        kernel: Kernel,
        chunkings: dict[Tensor, Chunking],
        hw: HardwareProfile,
        l2: L2State,
        dtype: str,
        progress: Callable[[int], None],
    ) -> KernelRun:
        """Run `kernel` on idle SMs from time 0 until its last CTA is over.

        `chunkings` are those that `l2` was made for, the kernel's tensors among them. `l2` holds
        what the kernel before left, all of it arrived; it is changed in place. `progress` is told
        now and then how many tile steps are done; what it raises ends the run. Raises InputError
        where not one CTA fits an SM.
        """
