"""When two engines say the same of a kernel."""

import numpy as np

from sim.device.run import run_on_device
from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Kernel, in_order

TIMES = {"time_s", "busy_s", "path_s", "cta_start_s", "cta_end_s", "bins"}


def assert_same(replay: KernelRun, reference: KernelRun) -> None:
    """Every counter is equal to the bit, every time to rounding."""
    for name in KernelRun.__dataclass_fields__:
        ours, theirs = getattr(replay, name), getattr(reference, name)
        if name in TIMES:
            # A millionth of the kernel's time is the floor for parts that come out near zero.
            floor = 1e-15 * max(1.0, float(np.max(np.abs(theirs))))
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=floor, err_msg=name)
        elif isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        else:
            assert ours == theirs, name


def assert_engines_agree(kernels: list[Kernel], hw: HardwareProfile, dtype: str) -> None:
    """Kernel by kernel, and in the time of all."""
    replay = run_on_device(in_order(kernels), hw, dtype, "replay", lambda _: None)
    reference = run_on_device(in_order(kernels), hw, dtype, "reference", lambda _: None)
    for ours, theirs in zip(replay.kernels, reference.kernels, strict=True):
        assert_same(ours.run, theirs.run)
    np.testing.assert_allclose(replay.time_s, reference.time_s, rtol=1e-9)
