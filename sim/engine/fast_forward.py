"""Fast-forward: what a long kernel takes, told by its beginning.

A grid runs through its periods (the CTAs of a head, head after head). The first CTAs are replayed
exactly, so many that they have `most_steps` tile steps or so; the rest goes on as their later half:

    waves               where all CTAs have the same trips: each further wave adds what each of the
                        later half added. Trips beyond COARSE_TRIPS are made coarser first: g of
                        them become one of g times the size, on a machine of g times the latencies,
                        which is the same machine seen from further away
    whole periods       where several fit: each further one adds what each of the later half added
    part of a period    else: time = a * tile steps + b * CTAs, fitted to when the later half of the
                        CTAs started; HBM bytes by their rate a tile step over that half

What the tiles add up to (FLOPs, steps, L2 bytes) is counted, not extrapolated. The estimated error
is how much the two quarters of the later half differ, as far as it bears on the whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.engine.kernel_run import FastForward, KernelRun
from sim.engine.machine import HBM, L2, SM_PIPES, TENSOR, ctas_per_sm, machine_of, service_times_s
from sim.engine.timeline import BINS, HBM_BYTES, HBM_IN_FLIGHT, L2_BYTES, L2_HIT_BYTES, TENSOR_BUSY
from sim.hardware import HardwareProfile
from sim.tile_program import (
    Compute,
    IntArray,
    Kernel,
    Load,
    Loop,
    Store,
    Stream,
    chunk_tensors,
)

LONG = 4.5  # times the tile steps that are replayed: shorter kernels are replayed whole
COARSE_TRIPS = 256  # of a CTA: what g trips made one lose is then below 0.2% of its time
WAVES = 6  # of CTAs, at least, for the later half to be past the beginning's transient
PERIODS = 3  # at least: the first, which starts from an empty L2, and two to compare


@dataclass(frozen=True)
class Beginning:
    """The first `ctas` CTAs of a kernel, or of its coarse form, replayed."""

    run: KernelRun
    starts_s: NDArray[np.float64]  # when each CTA started, in grid order

    def bytes_until(self, track: int, time_s: float) -> float:
        """What a track of the timeline has added up to by then."""
        sums = np.concatenate([[0.0], np.cumsum(self.run.bins[track])])
        return float(np.interp(time_s / self.run.bin_width_s, np.arange(len(sums)), sums))


@dataclass(frozen=True)
class Whole:
    """Time, HBM bytes and L2 hit bytes of the whole kernel, and the first two's relative errors."""

    time_s: float
    hbm_bytes: float
    hit_bytes: float
    time_error: float
    hbm_error: float


def can_skip(kernel: Kernel, most_steps: int) -> bool:
    """Whether the kernel is long, and some of its CTAs stand for others.

    Of a pruned kernel, whose CTAs visit what a table says, only whole periods do.
    """
    if kernel.tile_steps <= LONG * most_steps or kernel.items_per_cta > 1:
        return False
    if all(stream.table is None for stream in kernel.streams):
        return True
    trips = kernel.trips.sum(axis=0)
    return PERIODS * int(trips[: _period(kernel, trips)].sum()) <= most_steps


def replayed_steps(kernel: Kernel, most_steps: int | None) -> int:
    """About how many tile steps of the kernel are replayed; all without `most_steps`."""
    if most_steps is None or not can_skip(kernel, most_steps):
        return kernel.tile_steps
    return most_steps


def run_kernel(
    simulated: Any,
    kernel: Kernel,
    hw: HardwareProfile,
    dtype: str,
    progress: Callable[[int], None],
    most_steps: int,
) -> KernelRun:
    """A kernel that `can_skip`, from an empty L2, on the engine `simulated`."""
    trips = kernel.trips.sum(axis=0)
    slots = hw.sm.count * ctas_per_sm(kernel.footprint, hw)
    period = _period(kernel, trips)
    a_period = int(trips[:period].sum())

    def begin(form: Kernel, device: HardwareProfile, ctas: int) -> Beginning:
        first = replace(form, ctas=ctas)
        chunkings = chunk_tensors([first])
        l2 = simulated.new_l2(chunkings, machine_of(device).l2_capacity_bytes)
        run = simulated.run_kernel(first, chunkings, device, l2, dtype, progress)
        return Beginning(run, np.sort(run.cta_start_s))

    if (trips == trips[0]).all():
        grain = max(1, int(trips[0]) // COARSE_TRIPS) if can_be_coarse(kernel) else 1
        waves = max(WAVES, most_steps * grain // (slots * int(trips[0])))
        ctas = kernel.ctas % slots + min(waves, kernel.ctas // slots) * slots
        beginning = begin(coarse(kernel, grain), slower(hw, grain), ctas)
        whole = _by_waves(beginning, kernel.ctas, slots)
    elif PERIODS * a_period <= most_steps:
        periods = _periods(kernel, most_steps // a_period)
        beginning = begin(kernel, hw, periods * period)
        whole = _by_periods(beginning, kernel.ctas // period, periods, period)
    else:
        ctas = int(np.searchsorted(np.cumsum(trips[:period]), most_steps))
        beginning = begin(kernel, hw, ctas)
        whole = _by_steps(beginning, trips[:period], kernel.ctas // period, slots)
    return _completed(kernel, beginning.run, whole, hw, dtype)


def _period(kernel: Kernel, trips: IntArray) -> int:
    """CTAs until the grid repeats itself: those of one matrix, if all matrices have like trips."""
    matrices = max(tensor.groups for tensor in kernel.tensors)
    if kernel.ctas % matrices:
        return kernel.ctas
    period = kernel.ctas // matrices
    return period if (trips[:-period] == trips[period:]).all() else kernel.ctas


def _periods(kernel: Kernel, most: int) -> int:
    """How many periods to replay: halves that hold whole groups of heads that share K and V."""
    groups = [tensor.groups for tensor in kernel.tensors]
    both_halves = 2 * max(1, max(groups) // min(groups))
    return most // both_halves * both_halves or most


def _by_periods(beginning: Beginning, periods: int, replayed: int, period: int) -> Whole:
    """So many more periods like the later half of those replayed."""
    last = replayed * period - 1
    half = max(2, replayed // 2)
    ends = [last, last - (half - half // 2) * period, last - half * period]
    return _going_on(beginning, ends, (half - half // 2, half // 2), periods - replayed)


def _by_waves(beginning: Beginning, ctas: int, slots: int) -> Whole:
    """So many more waves like the later half of those replayed."""
    last = len(beginning.starts_s) - 1
    half = max(2, (last + 1) // slots // 2)
    ends = [last, last - (half - half // 2) * slots, last - half * slots]
    more = (ctas - last - 1) / slots
    return _going_on(beginning, ends, (half - half // 2, half // 2), more)


def _going_on(beginning: Beginning, ends: list[int], counts: tuple[int, int], more: float) -> Whole:
    """`more` of what lies between the CTAs `ends` (last one first), of which there are `counts`."""
    at_s = [float(beginning.starts_s[end]) for end in ends]
    run = beginning.run

    def rate(values: list[float]) -> tuple[float, float]:
        """What each one added, and by how much the two quarters differ."""
        first, second = ((values[k] - values[k + 1]) / counts[k] for k in (0, 1))
        return (values[0] - values[2]) / sum(counts), abs(first - second)

    time_s, time_off = rate(at_s)
    hbm, hbm_off = rate([beginning.bytes_until(HBM_BYTES, t) for t in at_s])
    hits, _ = rate([beginning.bytes_until(L2_HIT_BYTES, t) for t in at_s])
    whole_s = run.time_s + more * time_s
    hbm_bytes = run.hbm_read_bytes + run.hbm_write_bytes + more * hbm
    return Whole(
        whole_s,
        hbm_bytes,
        run.l2_hit_bytes + more * hits,
        more * time_off / whole_s,
        more * hbm_off / hbm_bytes,
    )


def _by_steps(beginning: Beginning, trips: IntArray, periods: int, slots: int) -> Whole:
    """Part of a period, and what the rest takes by its tile steps and CTAs; then all periods.

    When a CTA starts, those before it are done but for about half of the ones in flight.
    """
    ctas = len(beginning.starts_s)
    before = np.cumsum(trips) - trips - slots * trips / 2
    quarter = ctas // 4
    later = slice(2 * quarter, ctas)

    def fitted(part: slice) -> tuple[float, float, float]:
        numbers = np.arange(ctas)[part]
        columns = np.stack([before[:ctas][part], numbers, np.ones(len(numbers))], axis=1)
        size = np.abs(columns).max(axis=0)
        solution = np.linalg.lstsq(columns / size, beginning.starts_s[part], rcond=1e-3)[0] / size
        return float(solution[0]), float(solution[1]), float(solution[2])

    def whole_s(a_step_s: float, a_cta_s: float, first_s: float) -> float:
        in_flight_s = a_step_s * slots * float(trips[-1]) / 2
        of_period_s = a_step_s * float(trips.sum()) + a_cta_s * len(trips)
        return periods * of_period_s + first_s + in_flight_s

    def whole_bytes(track: int, start: int, end: int) -> float:
        at_s = [float(beginning.starts_s[cta]) for cta in (start, end)]
        low, high = (beginning.bytes_until(track, t) for t in at_s)
        a_step = (high - low) / float(before[end] - before[start])
        return periods * (high + a_step * float(trips.sum() - before[end]))

    time_s = whole_s(*fitted(later))
    hbm_bytes = whole_bytes(HBM_BYTES, 2 * quarter, ctas - 1)
    sooner_s = whole_s(*fitted(slice(quarter, 3 * quarter)))
    sooner_bytes = whole_bytes(HBM_BYTES, quarter, 3 * quarter)
    return Whole(
        time_s,
        hbm_bytes,
        whole_bytes(L2_HIT_BYTES, 2 * quarter, ctas - 1),
        abs(sooner_s - time_s) / time_s,
        abs(sooner_bytes - hbm_bytes) / hbm_bytes,
    )


def coarse(kernel: Kernel, grain: int) -> Kernel:
    """The kernel with `grain` trips of its long loops made one; rounded to the nearest."""
    if grain == 1:
        return kernel
    loops = tuple(
        _coarse_loop(loop, grain) if trips.max() > 1 else loop
        for loop, trips in zip(kernel.loops, kernel.trips, strict=True)
    )
    return replace(kernel, loops=loops)


def can_be_coarse(kernel: Kernel) -> bool:
    """Whether the streams of the long loops go down their matrices, tile after tile."""
    return all(
        op.stream.table is None and abs(op.stream.stride) == op.stream.tiles_across
        for loop, trips in zip(kernel.loops, kernel.trips, strict=True)
        if trips.max() > 1
        for op in loop.ops
        if not isinstance(op, Compute)
    )


def _coarse_loop(loop: Loop, grain: int) -> Loop:
    loads = {load: Load(_coarse_stream(load.stream, grain), load.stages) for load in loop.loads}

    def coarse_op(op: Load | Compute | Store) -> Load | Compute | Store:
        if isinstance(op, Load):
            return loads[op]
        if isinstance(op, Store):
            return Store(_coarse_stream(op.stream, grain), op.atomic)
        return Compute(
            op.name,
            tuple(loads[load] for load in op.reads if load in loads),
            op.mma_flops * grain,
            op.vector_ops * grain,
            op.exp_count * grain,
            op.sram_bytes * grain,
        )

    def trips(items: IntArray) -> IntArray:
        fine = loop.trips(items)
        rounded: IntArray = np.maximum(np.rint(fine / grain).astype(np.int64), fine > 0)
        return rounded

    return Loop(trips, tuple(coarse_op(op) for op in loop.ops))


def _coarse_stream(stream: Stream, grain: int) -> Stream:
    """`grain` tiles that follow each other down a matrix as one."""
    across, down = stream.tiles_across, stream.tiles_down
    coarse_down = -(-down // grain)

    def base(items: IntArray) -> IntArray:
        tile = stream.base(items)
        row = tile // across
        coarse_row = row // down * coarse_down + np.minimum(row % down // grain, coarse_down - 1)
        return coarse_row * across + tile % across

    return Stream(stream.tensor, stream.tile_rows * grain, stream.tile_cols, base, stream.stride)


def slower(hw: HardwareProfile, grain: int) -> HardwareProfile:
    """The device with latencies so many times as long."""
    c = hw.calibration
    latencies = {
        "hbm": c.hbm.model_copy(update={"latency": c.hbm.latency * grain}),
        "l2": c.l2.model_copy(update={"latency": c.l2.latency * grain}),
        "sm": c.sm.model_copy(
            update={
                "op_latency": c.sm.op_latency * grain,
                "cta_start": c.sm.cta_start * grain,
            }
        ),
    }
    return hw.model_copy(update={"calibration": c.model_copy(update=latencies)})


def _completed(
    kernel: Kernel, run: KernelRun, whole: Whole, hw: HardwareProfile, dtype: str
) -> KernelRun:
    """What was replayed, made to stand for the whole kernel."""
    machine, workers = machine_of(hw), kernel.footprint.workers
    of_loop = kernel.trips.sum(axis=1).tolist()
    counts = {
        step: trips * workers
        for loop, trips in zip(kernel.loops, of_loop, strict=True)
        for step in loop.steps
    }
    busy_s = np.zeros_like(run.busy_s)
    for step, count in counts.items():
        if isinstance(step, Compute):
            busy_s[:SM_PIPES] += service_times_s(step, kernel, hw, dtype) * count
    read, write = _l2_bytes(kernel)
    replayed_read, replayed_write = _l2_bytes(run.kernel)
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


def _l2_bytes(kernel: Kernel) -> tuple[int, int]:
    """Bytes that loads and stores ask for if no edge cuts a tile."""
    read = write = 0
    for loop, trips in zip(kernel.loops, kernel.trips.sum(axis=1).tolist(), strict=True):
        for op in loop.ops:
            if isinstance(op, Load):
                read += trips * op.stream.tile_bytes
            elif isinstance(op, Store):
                write += trips * op.stream.tile_bytes
    return read, write


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
