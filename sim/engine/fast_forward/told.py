"""What a part that was replayed tells of its whole kernel, and how far that may be off."""

from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from sim.engine.compiled.timeline import (
    BINS,
    HBM_BYTES,
    HBM_IN_FLIGHT,
    L2_BYTES,
    L2_HIT_BYTES,
    TENSOR_BUSY,
)
from sim.engine.kernel_run import FastForward, KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.machine import HBM, L2, SM_PIPES, TENSOR, machine_of, service_times_s
from sim.tile_program import Compute, Kernel, Loop, Store

WAVE_TIME_ERROR, WAVE_HBM_ERROR = 0.5, 1.0


@dataclass(frozen=True)
class Measured:
    """Of a part, what lies between two amounts of L2 bytes, and the bytes that it stands for."""

    start: float
    end: float
    stands_for: float


@dataclass(frozen=True)
class Plan:
    """The part of a grid to replay, and what of it to measure.

    With `counts` the part's own time and bytes are of the whole; else all is at the rates measured.
    """

    part: Kernel
    measured: list[Measured]
    counts: bool


@dataclass(frozen=True)
class Whole:
    """Time, HBM bytes and L2 hit bytes of the whole kernel, and the first two's relative errors."""

    time_s: float
    hbm_bytes: float
    hit_bytes: float
    time_error: float
    hbm_error: float


def whole_of(plan: Plan, run: KernelRun, waves: int) -> Whole:
    """The part, of so many waves, and what it stands for at the rates measured.

    What is measured has to end before the part's tail begins, with the first slot that has nothing
    more to run: it is taken from that much earlier.
    """
    times_s = np.arange(run.bins.shape[1] + 1) * run.bin_width_s
    sums = np.concatenate([np.zeros((len(run.bins), 1)), np.cumsum(run.bins, axis=1)], axis=1)
    slots = np.unique(run.cta_sm).size * run.ctas_per_sm
    ends_s = np.sort(run.cta_end_s)
    tail_s = float(ends_s[-min(slots, len(ends_s))])
    moved = float(np.interp(tail_s, times_s, sums[L2_BYTES]))
    own = sum(asked_bytes(run.kernel))
    scale = float(sums[L2_BYTES, -1]) / own  # edges cut tiles
    late = min(0.0, moved / scale - plan.measured[-1].end)

    bounds = [(max(0.0, part.start + late), part.end + late) for part in plan.measured]
    spans = np.interp(np.array(bounds) * scale, sums[L2_BYTES], times_s)

    def added(values: list[float]) -> tuple[float, float]:
        """What all that the measured parts stand for adds, and its error."""
        sizes = np.diff(bounds, axis=1)[:, 0]
        weights = np.array([part.stands_for for part in plan.measured])
        rates = np.array(values) / sizes
        error = 2.0 * np.sqrt((np.diff(rates) ** 2).sum() / (2 * (len(rates) - 1) * len(rates)))
        return float(rates @ weights), float(error * weights.sum())

    def between(track: int) -> list[float]:
        return [
            float(np.interp(end, times_s, sums[track]) - np.interp(start, times_s, sums[track]))
            for start, end in spans
        ]

    time_s, time_off = added([end - start for start, end in spans])
    hbm_bytes, hbm_off = added(between(HBM_BYTES))
    hit_bytes, _ = added(between(L2_HIT_BYTES))
    rest_s, rest_bytes = time_s, hbm_bytes
    if plan.counts:
        time_s += run.time_s
        hbm_bytes += run.hbm_read_bytes + run.hbm_write_bytes
        hit_bytes += run.l2_hit_bytes
    seen = sum(part.end - part.start for part in plan.measured) / own * waves
    return Whole(
        time_s,
        hbm_bytes,
        hit_bytes,
        float(time_off + rest_s * WAVE_TIME_ERROR / seen) / time_s,
        float(hbm_off + rest_bytes * WAVE_HBM_ERROR / seen) / hbm_bytes,
    )


def completed(
    kernel: Kernel, run: KernelRun, whole: Whole, hw: HardwareProfile, dtype: str
) -> KernelRun:
    """What was replayed, made to stand for the whole kernel."""
    machine, workers = machine_of(hw), kernel.footprint.workers
    counts = {
        action: trips * (workers if isinstance(action, Compute) else 1)
        for loop, trips in zip(kernel.loops, kernel.loop_trips, strict=True)
        for action in loop.actions
    }
    busy_s = np.zeros_like(run.busy_s)
    for action, count in counts.items():
        if isinstance(action, Compute):
            busy_s[:SM_PIPES] += service_times_s(action, kernel, hw, dtype) * count
    read, write = asked_bytes(kernel)
    replayed_read, replayed_write = asked_bytes(run.kernel)
    l2_read_bytes = int(run.l2_read_bytes * read / max(replayed_read, 1))
    l2_write_bytes = int(run.l2_write_bytes * write / max(replayed_write, 1))
    hbm_write_bytes = run.hbm_write_bytes + l2_write_bytes - run.l2_write_bytes
    busy_s[L2] = (l2_read_bytes + l2_write_bytes) / machine.l2_bytes_per_s
    busy_s[HBM] = whole.hbm_bytes / machine.hbm_bytes_per_s
    roof_s = max(float(busy_s[:SM_PIPES].max()) / machine.sms, float(busy_s[SM_PIPES:].max()))
    whole = replace(whole, time_s=max(whole.time_s, roof_s))
    bin_width_s = 2.0 ** ceil(np.log2(whole.time_s / BINS))
    totals = {
        HBM_BYTES: whole.hbm_bytes,
        L2_BYTES: float(l2_read_bytes + l2_write_bytes),
        L2_HIT_BYTES: whole.hit_bytes,
        TENSOR_BUSY: float(busy_s[TENSOR]),
        HBM_IN_FLIGHT: float(run.bins[HBM_IN_FLIGHT].sum()) * whole.time_s / run.time_s,
    }
    bins = np.array([_stretched(run, track, totals[track], whole, bin_width_s) for track in totals])
    return replace(
        run,
        kernel=kernel,
        time_s=whole.time_s,
        counts=counts,
        hbm_read_bytes=int(whole.hbm_bytes) - hbm_write_bytes,
        hbm_write_bytes=hbm_write_bytes,
        l2_read_bytes=l2_read_bytes,
        l2_write_bytes=l2_write_bytes,
        l2_hit_bytes=int(whole.hit_bytes),
        busy_s=busy_s,
        path_s=run.path_s * (whole.time_s / run.time_s),
        bins=bins[np.argsort(list(totals))],
        bin_width_s=bin_width_s,
        fast_forward=FastForward(
            steps_skipped=max(0, kernel.tile_steps - run.kernel.tile_steps),
            time_error=whole.time_error,
            hbm_error=whole.hbm_error,
            replayed_s=run.time_s,
        ),
    )


def asked_bytes(kernel: Kernel) -> tuple[int, int]:
    """Bytes that loads and stores ask for if no edge cuts a tile."""
    read = write = 0
    for loop, trips in zip(kernel.loops, kernel.loop_trips, strict=True):
        loaded, stored = trip_bytes(loop)
        read += trips * loaded
        write += trips * stored
    return read, write


def trip_bytes(loop: Loop) -> tuple[int, int]:
    """What a trip loads and stores."""
    loads = sum(load.stream.tile_bytes for load in loop.loads)
    stores = sum(op.stream.tile_bytes for op in loop.ops if isinstance(op, Store))
    return loads, stores


def _stretched(
    run: KernelRun, track: int, total: float, whole: Whole, bin_width_s: float
) -> NDArray[np.float64]:
    """A track as it was replayed, then evenly up to its total at the end."""
    sums = np.concatenate([[0.0], np.cumsum(run.bins[track])])
    times_s = np.arange(len(sums)) * run.bin_width_s
    until = min(run.time_s, whole.time_s) / 2  # the end of what was replayed is its own tail
    shown = times_s < until
    known_s = np.concatenate([times_s[shown], [whole.time_s]])
    known = np.concatenate([np.minimum(sums[shown], total), [total]])
    return np.diff(np.interp(np.arange(BINS + 1) * bin_width_s, known_s, known))
