"""When two engines say the same of a kernel."""

import numpy as np

from sim.engine.kernel_run import KernelRun

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
