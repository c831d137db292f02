"""What the simulator, and a plain roofline, say of a point that was measured."""

import re
from dataclasses import dataclass

from sim.device.memory import OutOfMemoryError, check_memory
from sim.device.program import launches_of
from sim.device.run import Launched, run_on_device
from sim.engine.power import acted
from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.machine import CAUSES
from sim.tile_program import Compute, Kernel, Tensor, in_order
from validate.devices import at_clock
from validate.inline_ecc import counted_dram_bytes
from validate.judging import counted_hit_rate
from validate.measurement import Shape

# Repetitions of a benchmark: 30 in Dao-AILab/flash-attention,
# benchmarks/benchmark_flash_attention.py; in hopper/benchmark_attn.py 30 ms of them, and a second's
# sleep between kernels.
REPEATS = 30
WARM_BELOW = 4  # times the L2's capacity: of more bytes a second run finds next to nothing


@dataclass(frozen=True)
class Prediction:
    """The schedule on the device, from an empty L2 and from the L2 that a run before it left.

    Times are from the first kernel's start to the last one's end and a launch gap a kernel, as back
    to back launches on a stream take; the host's part is left out. `hbm_bytes` and `l2_hit_rate`
    are of the cold run, as a counter sees them: what stays dirty in L2 is not written yet, and ECC
    bits among the data are counted.
    """

    cold_s: float
    warm_s: float
    hbm_bytes: int
    l2_hit_rate: float
    roofline_s: float
    roofline_hbm_bytes: int
    shares: dict[str, float]  # of cold_s, by what was critical, largest first
    waves: float  # of the kernel that takes longest


class NotPredictedError(Exception):
    """The simulator has no prediction for a point; the message says why."""


def predict(shape: Shape, hw: HardwareProfile) -> Prediction:
    """Simulate a point; raises NotPredictedError where the simulator cannot, or it does not fit."""
    w = shape.workload.workload()
    if shape.clock_mhz:
        hw = at_clock(hw, shape.clock_mhz * 1e6)
    try:
        schedule = shape.parsed_schedule("measurement")
        if schedule is None:
            raise NotPredictedError(f"no schedule stands for {shape.family}")
        kernels = launches_of(schedule.program(w, hw))
        check_memory(in_order(kernels), hw)
    except InputError as error:
        raise NotPredictedError(str(error)) from None
    except OutOfMemoryError as error:
        raise NotPredictedError(f"out of memory: {error.tensor.name} does not fit") from None
    if shape.launches:
        kernels = [one for one in kernels if re.fullmatch(shape.launches, one.name)]
    runs = 2 if least_hbm_bytes(*kernels) < WARM_BELOW * hw.l2.capacity else 1
    run = run_on_device(in_order(kernels * runs), hw, w.dtype, "replay", lambda _: None)
    cold, last = run.kernels[: len(kernels)], run.kernels[-len(kernels) :]
    read, write, hits = (
        sum(getattr(k.run, f"l2_{way}_bytes") for k in cold) for way in ("read", "write", "hit")
    )
    longest = max(cold, key=lambda launched: launched.run.time_s).run
    return Prediction(
        cold_s=_stream_s(cold, hw),
        warm_s=_stream_s(last, hw),
        hbm_bytes=sum(sum(counted_dram_bytes(k.run, hw)) for k in cold),
        l2_hit_rate=counted_hit_rate(read, write, hits),
        roofline_s=sum(roofline_s(kernel, w, hw) for kernel in kernels),
        roofline_hbm_bytes=sum(least_hbm_bytes(kernel) for kernel in kernels),
        shares=_shares(cold, hw),
        waves=longest.kernel.ctas / (longest.ctas_per_sm * hw.sm.count),
    )


def _stream_s(kernels: list[Launched], hw: HardwareProfile) -> float:
    """Their time back to back, in the mean of all repetitions."""
    limited_s = sum(k.run.power_s for k in kernels)
    free_s = sum(k.run.time_s for k in kernels) - limited_s
    free_s += len(kernels) * hw.calibration.launch.gap
    return free_s + limited_s * acted(0.0, REPEATS * free_s)


def _shares(kernels: list[Launched], hw: HardwareProfile) -> dict[str, float]:
    total_s = _stream_s(kernels, hw)
    shares = {
        cause: float(sum(k.run.path_s[number] for k in kernels)) / total_s
        for number, cause in enumerate(CAUSES)
    }
    gaps_s = len(kernels) * hw.calibration.launch.gap
    critical_s = float(sum(k.run.path_s.sum() for k in kernels))
    shares["power"] = (total_s - critical_s - gaps_s) / total_s
    shares["launch"] = gaps_s / total_s
    return dict(sorted(shares.items(), key=lambda entry: -entry[1]))


def least_hbm_bytes(*kernels: Kernel) -> int:
    """Bytes of the kernels' tensors once each, or of the tiles they touch where those are fewer."""
    touched: dict[Tensor, int] = {}
    for kernel in kernels:
        for loop, trips in zip(kernel.loops, kernel.trips.sum(axis=1).tolist(), strict=True):
            for stream in loop.streams:
                touched[stream.tensor] = touched.get(stream.tensor, 0) + trips * stream.tile_bytes
    return sum(min(tensor.bytes, moved) for tensor, moved in touched.items())


def roofline_s(kernel: Kernel, w: AttentionWorkload, hw: HardwareProfile) -> float:
    """What a roofline of the vendor's figures gives a kernel: bytes or FLOPs, whichever is longer.

    It knows the kernel's FLOPs and tensors, but no tiles, caches, waves, softmax or launches.
    """
    flops: int = sum(
        action.mma_flops * trips
        for loop, trips in zip(kernel.loops, kernel.trips.sum(axis=1).tolist(), strict=True)
        for action in loop.actions
        if isinstance(action, Compute)
    )
    rate = hw.matmul_flops_per_s(w.dtype)
    return max(least_hbm_bytes(kernel) / hw.hbm.bandwidth, flops / rate)
