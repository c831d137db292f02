"""What a part that was replayed tells of its whole kernel, and how far that may be off.

What was skipped takes time and HBM bytes at the rates a byte that were measured. Its own L2 bytes,
FLOPs and tile steps are counted, not extrapolated, and what of its loads HBM did not bring was hit.

How much what should be alike differs, such as each measured part from the next as far as it bears
on the whole, tells how far that may be off: as far as answers of the same method were, of which the
whole was replayed too (`sim.engine.fast_forward.errors`).
"""

from dataclasses import dataclass, replace
from math import ceil, log

import numpy as np
from numpy.typing import NDArray

from sim.engine.compiled.timeline import (
    BINS,
    HBM_BYTES,
    HBM_IN_FLIGHT,
    L2_BYTES,
    L2_HIT_BYTES,
    TENSOR_BUSY,
    TRACKS,
)
from sim.engine.fast_forward.errors import errors_of
from sim.engine.fast_forward.lanes import touched_bytes
from sim.engine.fast_forward.plan import Method, Plan, asked_bytes
from sim.engine.fast_forward.reduced import Scale
from sim.engine.kernel_run import FastForward, KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.machine import SM_PIPES, TENSOR, machine_of, service_times_s
from sim.tile_program import Action, Compute, Kernel


@dataclass(frozen=True)
class Whole:
    """Time and HBM bytes of the whole kernel, by which method they were told.

    What should be alike differed by the `scatter`s, as shares of time and bytes.
    """

    method: Method
    time_s: float
    hbm_bytes: float
    time_scatter: float = 0.0
    hbm_scatter: float = 0.0
    times_smaller: float = 1.0  # was the device

    def of_a_larger(self, times: float) -> "Whole":
        """Of a kernel of so many times the tile steps."""
        return replace(self, time_s=self.time_s * times, hbm_bytes=self.hbm_bytes * times)


def grown(kernel: Kernel, scales: list[Scale], forms: list[Kernel], wholes: list[Whole]) -> Whole:
    """What three smaller forms tell of the kernel itself, the largest first.

    It is told by the first two, as the first is by the two others: how far that is off, of a form
    that was replayed, tells how far the kernel's may be.
    """
    times = [scale.times for scale in scales]
    # Of very many items what they touch is counted by whole tensors, which may be too much.
    touched = [min(touched_bytes(f), w.hbm_bytes) for f, w in zip(forms, wholes, strict=True)]
    time_s, hbm_bytes = _grown(times, wholes, touched, touched_bytes(kernel))
    beside = [other / times[0] for other in times[1:]]
    again_s, again_bytes = _grown(beside, wholes[1:], touched[1:], touched[0])
    first = wholes[0]
    return Whole(
        "scales",
        time_s,
        hbm_bytes,
        first.time_scatter + abs(again_s / first.time_s - 1.0),
        first.hbm_scatter + abs(again_bytes / first.hbm_bytes - 1.0),
        times[0],
    )


def _grown(
    times: list[float], wholes: list[Whole], touched: list[float], least_bytes: float
) -> tuple[float, float]:
    """Time and HBM bytes by two forms so many times smaller, of what touches `least_bytes`.

    Time grows by the scale but for what each CTA takes however short it is: a share that goes with
    the scale, so the line through both is followed to 1. What HBM has to read once is counted. The
    other bytes grow by the scale where CTAs share what one of them brings, by its square where each
    brings its own, again along a line: in between both rules have their share, by the power that
    the forms show.
    """
    first, second, *_ = wholes
    time_s = _followed(times, (first.time_s, second.time_s), 1)
    more = first.hbm_bytes - touched[0], second.hbm_bytes - touched[1]
    by_scale, by_square = (_followed(times, more, power) for power in (1, 2))
    most = more[0] * times[0] ** 2  # loads ask for no more
    own = _share_by_square(times, more)
    told = (1.0 - own) * min(max(by_scale, 0.0), most) + own * min(max(by_square, 0.0), most)
    return time_s, least_bytes + told


def _followed(times: list[float], of_forms: tuple[float, float], power: int) -> float:
    """The line through what both forms come to at the kernel's size, followed to it."""
    first, second = (one * by**power for one, by in zip(of_forms, times, strict=False))
    return first + (first - second) * (times[0] - 1.0) / (times[1] - times[0])


def _share_by_square(times: list[float], of_forms: tuple[float, float]) -> float:
    """What is more than 1 of the power with which it grows; of nothing, none."""
    if min(of_forms) <= 0.0:
        return 0.0
    power = log(of_forms[0] / of_forms[1]) / log(times[1] / times[0])
    return min(max(power - 1.0, 0.0), 1.0)


def whole_of(plan: Plan, run: KernelRun) -> Whole:
    """The part, and what it stands for at the rates measured."""
    times_s = np.arange(run.bins.shape[1] + 1) * run.bin_width_s
    nothing = np.zeros((len(run.bins), 1))
    sums = np.concatenate([nothing, np.cumsum(run.bins, axis=1)], axis=1)
    own = sum(asked_bytes(run.kernel))
    scale = float(sums[L2_BYTES, -1]) / own  # edges cut tiles
    # What is measured has to end before the part's tail begins: it is taken from that much earlier.
    before_tail = float(np.interp(_tail_s(run), times_s, sums[L2_BYTES]))
    late = min(0.0, before_tail / scale - plan.measured[-1].end)
    bounds = np.array([(max(0.0, part.start + late), part.end + late) for part in plan.measured])
    spans_s = np.interp(bounds * scale, sums[L2_BYTES], times_s)

    sizes = _lengths(bounds)
    stand_for = np.array([part.stands_for for part in plan.measured])
    hbm = _lengths(np.interp(spans_s, times_s, sums[HBM_BYTES]))
    time_s, time_off = _extrapolated(_lengths(spans_s) / sizes, stand_for)
    hbm_bytes, hbm_off = _extrapolated(hbm / sizes, stand_for)
    if plan.counts:
        time_s += run.time_s
        hbm_bytes += hbm_bytes_of(run)
    return Whole(plan.method, time_s, hbm_bytes, time_off / time_s, hbm_off / hbm_bytes)


def hbm_bytes_of(run: KernelRun) -> int:
    """What it read and wrote."""
    return run.hbm_read_bytes + run.hbm_write_bytes


def _tail_s(run: KernelRun) -> float:
    """When its tail begins: the first slot has nothing more to run."""
    slots = np.unique(run.cta_sm).size * run.ctas_per_sm
    ends_s = np.sort(run.cta_end_s)
    return float(ends_s[-min(slots, len(ends_s))])


def _lengths(spans: NDArray[np.float64]) -> NDArray[np.float64]:
    """From the starts to the ends of spans: shape (n, 2) to (n,)."""
    return spans[:, 1] - spans[:, 0]


def _extrapolated(
    rates: NDArray[np.float64], stand_for: NDArray[np.float64]
) -> tuple[float, float]:
    """What the bytes that each rate stands for come to, and by how much that may be off."""
    scatter = (np.diff(rates) ** 2).sum() / (2 * (len(rates) - 1) * len(rates))
    return float(rates @ stand_for), float(2.0 * np.sqrt(scatter) * stand_for.sum())


def completed(
    kernel: Kernel,
    replayed: list[KernelRun],
    whole: Whole,
    hw: HardwareProfile,
    dtype: str,
) -> KernelRun:
    """What was replayed, the largest part first, made to stand for the whole kernel."""
    if whole.method == "whole":
        return replayed[0]
    run = _with_all_bytes(replayed[0], kernel, whole)
    counts, machine = _counts_of(kernel), machine_of(hw)
    sm_busy_s = _sm_busy_s(kernel, counts, hw, dtype)
    l2_bytes = run.l2_read_bytes - run.die_hit_bytes + run.l2_write_bytes
    l2_busy_s = l2_bytes / machine.l2_bytes_per_s
    hbm_busy_s = machine.hbm_s(run.hbm_read_bytes, run.hbm_write_bytes)
    roof_s = max(float(sm_busy_s.max()) / machine.sms, l2_busy_s, hbm_busy_s)
    whole = replace(whole, time_s=max(whole.time_s, roof_s))
    longer = whole.time_s / run.time_s
    totals = {
        HBM_BYTES: float(hbm_bytes_of(run)),
        L2_BYTES: float(run.l2_read_bytes + run.l2_write_bytes),
        L2_HIT_BYTES: float(run.l2_hit_bytes),
        HBM_IN_FLIGHT: float(run.bins[HBM_IN_FLIGHT].sum()) * longer * whole.times_smaller,
        TENSOR_BUSY: float(sm_busy_s[TENSOR]),
    }
    bins, bin_width_s = _timeline_of(run, whole.time_s, totals)
    return replace(
        run,
        kernel=kernel,
        time_s=whole.time_s,
        counts=counts,
        busy_s=np.array([*sm_busy_s, l2_busy_s, hbm_busy_s]),
        path_s=run.path_s * longer,
        bins=bins,
        bin_width_s=bin_width_s,
        fast_forward=_promise(kernel, replayed, whole),
    )


def _with_all_bytes(run: KernelRun, kernel: Kernel, whole: Whole) -> KernelRun:
    """The part's run with what the whole kernel moves."""
    read, write = asked_bytes(kernel)
    replayed_read, replayed_write = asked_bytes(run.kernel)
    l2_read_bytes = int(run.l2_read_bytes * read / max(replayed_read, 1))
    l2_write_bytes = int(run.l2_write_bytes * write / max(replayed_write, 1))
    l2_dirty_bytes = int(run.l2_dirty_bytes * whole.times_smaller)
    if run.hbm_write_bytes + run.l2_dirty_bytes == run.l2_write_bytes:  # each byte once
        hbm_write_bytes = max(0, l2_write_bytes - l2_dirty_bytes)
    else:
        hbm_write_bytes = int(whole.hbm_bytes * run.hbm_write_bytes / hbm_bytes_of(run))
    for_loads = (run.l2_read_bytes - run.l2_hit_bytes) / max(run.hbm_read_bytes, 1)
    most = int(l2_read_bytes / for_loads) if for_loads else l2_write_bytes  # asked for
    hbm_read_bytes = min(max(0, int(whole.hbm_bytes) - hbm_write_bytes), most)
    return replace(
        run,
        hbm_read_bytes=hbm_read_bytes,
        hbm_write_bytes=hbm_write_bytes,
        l2_read_bytes=l2_read_bytes,
        l2_write_bytes=l2_write_bytes,
        l2_hit_bytes=max(0, l2_read_bytes - int(hbm_read_bytes * for_loads)),
        l2_dirty_bytes=l2_dirty_bytes,
        die_hit_bytes=int(run.die_hit_bytes * l2_read_bytes / max(run.l2_read_bytes, 1)),
        hbm_reread_bytes=int(run.hbm_reread_bytes * hbm_read_bytes / max(run.hbm_read_bytes, 1)),
    )


def _promise(kernel: Kernel, replayed: list[KernelRun], whole: Whole) -> FastForward:
    """What was left out, and by how much the answer may be off."""
    steps, errors = sum(part.kernel.tile_steps for part in replayed), errors_of(whole.method)
    return FastForward(
        steps_skipped=max(0, kernel.tile_steps - steps),
        time_error=errors.time.estimate(whole.time_scatter),
        hbm_error=errors.hbm.estimate(whole.hbm_scatter),
        replayed_s=replayed[0].time_s,
        times_smaller=whole.times_smaller,
        method=whole.method,
        time_scatter=whole.time_scatter,
        hbm_scatter=whole.hbm_scatter,
    )


def _counts_of(kernel: Kernel) -> dict[Action, int]:
    """How often each action runs: a compute once a worker."""
    workers = kernel.footprint.workers
    return {
        action: trips * (workers if isinstance(action, Compute) else 1)
        for loop, trips in zip(kernel.loops, kernel.loop_trips, strict=True)
        for action in loop.actions
    }


def _sm_busy_s(
    kernel: Kernel, counts: dict[Action, int], hw: HardwareProfile, dtype: str
) -> NDArray[np.float64]:
    """Service time of each SM pipe for so many of the computes, summed over SMs."""
    busy_s = np.zeros(SM_PIPES)
    for action, count in counts.items():
        if isinstance(action, Compute):
            busy_s += service_times_s(action, kernel, hw, dtype) * count
    return busy_s


def _timeline_of(
    run: KernelRun, time_s: float, totals: dict[int, float]
) -> tuple[NDArray[np.float64], float]:
    """The whole kernel's bins, with those totals by track, and how wide they are [s]."""
    bin_width_s = 2.0 ** ceil(np.log2(time_s / BINS))
    tracks = [_stretched(run, k, totals[k], time_s, bin_width_s) for k in range(TRACKS)]
    return np.array(tracks), bin_width_s


def _stretched(
    run: KernelRun, track: int, total: float, time_s: float, bin_width_s: float
) -> NDArray[np.float64]:
    """A track as it was replayed, then evenly up to its total at the end."""
    sums = np.concatenate([[0.0], np.cumsum(run.bins[track])])
    times_s = np.arange(len(sums)) * run.bin_width_s
    until = min(run.time_s, time_s) / 2  # the end of what was replayed is its own tail
    shown = times_s < until
    known_s = np.concatenate([times_s[shown], [time_s]])
    known = np.concatenate([np.minimum(sums[shown], total), [total]])
    return np.diff(np.interp(np.arange(BINS + 1) * bin_width_s, known_s, known))
