"""What either engine says of one kernel that it ran."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.tile_program import Action, Compute, Kernel, Store


@dataclass(frozen=True)
class FastForward:
    """What of a kernel was not replayed: tile steps, and the relative errors that come of it.

    `replayed_s` is the simulated time of what was replayed, on a device `times_smaller`. By which
    `method` it was told and how much what should be alike differed, as shares of time and of HBM
    bytes, is what the errors are estimated from.
    """

    steps_skipped: int
    time_error: float
    hbm_error: float
    replayed_s: float
    times_smaller: float
    method: str
    time_scatter: float
    hbm_scatter: float


@dataclass(frozen=True)
class KernelRun:
    """Counters, times and timeline of one kernel, from its first CTA to its last.

    `hbm_write_bytes` is what was written by the kernel's end, `l2_dirty_bytes` what was then still
    dirty in L2 (of this kernel or an earlier one). `die_hit_bytes` of those that hit were served by
    the cache of the SM's die. `hbm_reread_bytes` of what was read had been in L2 before: an L2 that
    holds everything would not have read them again. About `unsure_bytes` more or less may have been
    read, as kernels before were replayed on another L2 (`sim.device.handed_over`). `counts` says
    how often each action ran, a compute once a worker.
    `busy_s` holds each pipe's service time in the order of `machine.CAUSES`, summed over SMs;
    `path_s` splits `time_s` by what was critical. `bins` has shape (tracks, bins). With
    `fast_forward` the arrays of CTAs are of those that were replayed.

    `clock_share` of the nominal clock is what the power limit left (`sim.engine.power`), `power_s`
    the time that this added: `path_s`, which then sums to the rest, and `busy_s` are as without it.
    """

    kernel: Kernel
    time_s: float
    ctas_per_sm: int
    counts: dict[Action, int]
    hbm_read_bytes: int
    hbm_write_bytes: int
    l2_read_bytes: int
    l2_write_bytes: int
    l2_hit_bytes: int
    l2_dirty_bytes: int
    busy_s: NDArray[np.float64]
    path_s: NDArray[np.float64]
    cta_sm: NDArray[np.int64]
    cta_start_s: NDArray[np.float64]
    cta_end_s: NDArray[np.float64]
    bins: NDArray[np.float64]
    bin_width_s: float
    die_hit_bytes: int = 0
    hbm_reread_bytes: int = 0
    unsure_bytes: int = 0
    fast_forward: FastForward | None = None
    clock_share: float = 1.0
    power_s: float = 0.0

    def of_like(self, kernel: Kernel) -> "KernelRun":
        """The run of a kernel that does the same."""
        if kernel is self.kernel:
            return self
        counts = dict(zip(kernel.actions, self.counts.values(), strict=True))
        return replace(self, kernel=kernel, counts=counts)

    def executed(self, amount: str) -> int:
        """Total of one amount of the computes (such as "mma_flops") over all that ran."""
        workers = self.kernel.footprint.workers
        return sum(
            getattr(action, amount) * count // workers
            for action, count in self.counts.items()
            if isinstance(action, Compute)
        )

    @property
    def spilled_bytes(self) -> int:
        """Bytes of registers that spilled: written through to L2, and read from there again."""
        return 2 * sum(
            action.stream.tile_bytes * count
            for action, count in self.counts.items()
            if isinstance(action, Store) and action.stream.tensor.role == "spilled"
        )
