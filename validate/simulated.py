"""What the simulator says of a case: its kernels' times and bytes, as plain numbers to be kept.

Of a kernel longer than a few times MOST_STEPS a part is replayed, as in a scenario. A case from a
warm L2 is run twice where what it touches is little enough to be found again.
"""

import json
import re
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from sim.device.memory import OutOfMemoryError, check_memory
from sim.device.program import launches_of
from sim.device.run import run_on_device
from sim.engine.fast_forward.choice import Choice
from sim.engine.kernel_run import KernelRun
from sim.inputs.files import InputError
from sim.runs.address import address
from sim.runs.scenario import Limits, Point
from sim.schedules.parts.elementwise import FOOTPRINT
from sim.schedules.parts.elementwise import in_order as in_rows
from sim.tile_program import Kernel, Loop, Store, Tensor, in_order, once
from validate.inline_ecc import counted_dram_bytes
from validate.measured import Case
from validate.predict import WARM_BELOW, NotPredictedError, least_hbm_bytes, roofline_s

WRITTEN_A_CTA = 16 * 1024  # bytes, of what is written before the kernels
# Nsight Compute leaves as many bytes of its own dirty in L2 before a kernel: an A10G's DRAM counter
# has 2.36 to 2.43 MB written by a sum of 67 MB, which are these, 64 KB of sums and an eighth of ECC
# (tungsheng/cuda-kernel-lab, profiling/reports, memory-reduction-*.md).
PROFILERS_BYTES = 2 * 1024**2
MOST_STEPS = 1_000_000  # of a kernel's tile steps; a few tenths of a second
WHOLE_STEPS = 100_000_000  # where bytes are asked for


@dataclass(frozen=True)
class KernelFigures:
    """One kernel: what it took and moved, and what a roofline of the datasheet gives it.

    DRAM bytes are those that a profiler counts. Of its time the power limit adds `power_s`.
    """

    name: str
    time_s: float
    power_s: float
    dram_read_bytes: int
    dram_write_bytes: int
    l2_read_bytes: int
    l2_write_bytes: int
    l2_hit_bytes: int
    roofline_s: float
    roofline_dram_bytes: int
    time_error: float  # that fast-forward estimates of itself, relative


@dataclass(frozen=True)
class Simulated:
    """The kernels of a case that count, in order; `why` says why there are none."""

    kernels: tuple[KernelFigures, ...]
    why: str = ""

    def json(self) -> str:
        """As a store keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> "Simulated":
        """From what a store kept."""
        data = json.loads(text)
        return cls(tuple(KernelFigures(**kernel) for kernel in data["kernels"]), data["why"])


def simulate(case: Case, only_roofline: bool = False) -> Simulated:
    """The case simulated, or with `only_roofline` just lowered (times and bytes are then 0)."""
    try:
        return Simulated(tuple(_figures(case, only_roofline)))
    except NotPredictedError as error:
        return Simulated((), str(error))
    except InputError as error:
        return Simulated((), str(error))
    except OutOfMemoryError as error:
        return Simulated((), f"out of memory: {error.tensor.name} does not fit")


def _figures(case: Case, only_roofline: bool) -> list[KernelFigures]:
    kernels = launches_of(case.schedule.program(case.workload, case.hardware))
    check_memory(in_order(kernels), case.hardware)
    counted = [
        kernel
        for kernel in kernels
        if case.launches is None or re.fullmatch(case.launches, kernel.name)
    ]
    if not counted:
        raise NotPredictedError(f"none of its kernels is {case.launches}")
    if only_roofline:
        return [_of(case, kernel, None) for kernel in counted]
    before = _left_dirty(case)
    if case.launches is not None and not case.warm:
        return [_of(case, kernel, _run(case, [*before, kernel])[-1]) for kernel in counted]
    is_small = least_hbm_bytes(*kernels) < WARM_BELOW * case.hardware.l2.capacity
    again = (
        case.warm and is_small and not Choice.of(kernels, case.hardware, _most_steps(case)).in_part
    )
    runs = _run(case, [*(kernels if again else before), *kernels])[-len(kernels) :]
    return [
        _of(case, kernel, run)
        for kernel, run in zip(kernels, runs, strict=True)
        if kernel in counted
    ]


def _left_dirty(case: Case) -> list[Kernel]:
    """What wrote into L2 before: a flush of all of it, or the profiler where bytes are counted."""
    if not case.dirty and not case.whole:
        return []
    bytes_written = int(case.hardware.l2.capacity) if case.dirty else PROFILERS_BYTES
    written = Tensor("before", 1, bytes_written // WRITTEN_A_CTA, WRITTEN_A_CTA, 1)
    return [Kernel("before", written.rows, (Loop(once, (Store(in_rows(written, 1)),)),), FOOTPRINT)]


def _run(case: Case, kernels: list[Kernel]) -> list[KernelRun]:
    dtype = case.workload.dtype
    run = run_on_device(
        in_order(kernels),
        case.hardware,
        dtype,
        "replay",
        lambda _: None,
        most_steps=_most_steps(case),
    )
    return [launched.run for launched in run.kernels]


def _most_steps(case: Case) -> int:
    return WHOLE_STEPS if case.whole else MOST_STEPS


def _of(case: Case, kernel: Kernel, run: KernelRun | None) -> KernelFigures:
    w, hw = case.workload, case.hardware
    skipped = run.fast_forward if run else None
    dram_read_bytes, dram_write_bytes = counted_dram_bytes(run, hw) if run else (0, 0)
    return KernelFigures(
        name=kernel.name,
        time_s=float(run.time_s) if run else 0.0,
        power_s=float(run.power_s) if run else 0.0,
        dram_read_bytes=dram_read_bytes,
        dram_write_bytes=dram_write_bytes,
        l2_read_bytes=int(run.l2_read_bytes) if run else 0,
        l2_write_bytes=int(run.l2_write_bytes) if run else 0,
        l2_hit_bytes=int(run.l2_hit_bytes) if run else 0,
        roofline_s=float(roofline_s(kernel, w, hw)),
        roofline_dram_bytes=int(least_hbm_bytes(kernel)),
        time_error=float(skipped.time_error) if skipped else 0.0,
    )


def address_of(case: Case, only_roofline: bool = False) -> str:
    """Where a store keeps it: a hash of the case, of the simulator's code and of this module's."""
    point = Point({}, case.workload, case.hardware, (case.schedule,), {})
    whole = address(point, case.schedule, "replay", Limits(replayed_steps=_most_steps(case)))
    rest = f"{whole} {case.launches} {case.warm} {case.dirty} {only_roofline} {_own_code()}"
    return sha256(rest.encode()).hexdigest()


@cache
def _own_code() -> str:
    folder = Path(__file__).parent
    return sha256(
        b"".join((folder / f"{m}.py").read_bytes() for m in ("simulated", "predict", "inline_ecc"))
    ).hexdigest()
