"""What a run on the device comes to as a record."""

from dataclasses import asdict
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sim.device.memory import OutOfMemoryError
from sim.device.run import DeviceRun, EngineName, Launched
from sim.engine.compiled import timeline as tl
from sim.engine.kernel_run import KernelRun
from sim.engine.power import joules
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import show
from sim.inputs.workload import AttentionWorkload
from sim.machine import CAUSES, TENSOR, IssueSlots, issue_slots, machine_of, room_on_sm, waves
from sim.runs.record import (
    Asked,
    InMemory,
    KernelResult,
    Record,
    Timeline,
    versions,
)

Bins = NDArray[np.float64]  # of a timeline: (tracks, bins)


def record_of_oom(
    asked: Asked,
    w: AttentionWorkload,
    hw: HardwareProfile,
    error: OutOfMemoryError,
    engine: EngineName,
) -> Record:
    """The record of a schedule whose tensors do not fit."""
    reason = (
        f"{error.tensor.name} needs {show(error.tensor.bytes, 'B')}, "
        f"{show(error.free_bytes, 'B')} of {show(hw.hbm.capacity, 'B')} are free"
    )
    return record_of_none(asked, w, "out of memory", reason, engine)


def record_of_none(
    asked: Asked,
    w: AttentionWorkload | None,
    status: Literal["out of memory", "failed"],
    reason: str,
    engine: EngineName,
) -> Record:
    """The record of a schedule that did not run, perhaps for want of a workload."""
    return Record(
        **vars(asked),
        workload=w.table() if w else {},
        status=status,
        reason=reason,
        engine=engine,
        useful_flops=w.useful_flops if w else None,
        versions=dict(versions()),
    )


def record_of(
    asked: Asked, w: AttentionWorkload, hw: HardwareProfile, run: DeviceRun, engine: EngineName
) -> Record:
    """The record of a schedule that ran."""
    runs = distinct(run)
    kernels = [kernel_result(*first, w, hw) for first in runs]

    def total(amount: str) -> int:
        return sum(getattr(kernel, amount) * kernel.launches for kernel in kernels)

    def mean(share: str) -> float:
        weights = [kernel.time_s * kernel.launches for kernel in kernels]
        return float(np.average([getattr(kernel, share) for kernel in kernels], weights=weights))

    hbm_read_bytes = total("hbm_read_bytes")
    hbm_write_bytes = total("hbm_write_bytes") + run.l2_dirty_bytes
    l2_read_bytes = total("l2_read_bytes")
    l2_bytes = l2_read_bytes + total("l2_write_bytes")
    hit_bytes = sum(first.run.l2_hit_bytes * launches for first, launches in runs)
    die_hit_bytes = sum(first.run.die_hit_bytes * launches for first, launches in runs)
    flops, sram_bytes = total("flops"), total("sram_bytes")
    link_wait_s, idle_s = _waits_s(run)
    shares = _shares(kernels, run, link_wait_s, idle_s)
    gpu_s = run.gpus * run.time_s
    hbm_bytes = hbm_read_bytes + hbm_write_bytes
    energy_j = _energy_j(run, hw, w.dtype)
    skipped = _fast_forward(run, hw)
    if skipped and energy_j and hw.energy is not None:
        of_time_j = skipped["time_error"] * gpu_s * hw.energy.idle
        of_bytes_j = skipped["hbm_error"] * hbm_bytes * hw.energy.hbm_per_byte
        skipped["energy_error"] = (of_time_j + of_bytes_j) / energy_j
    return Record(
        **vars(asked),
        workload=w.table(),
        status="ok",
        time_s=run.time_s,
        flops=flops,
        useful_flops=w.useful_flops,
        hbm_read_bytes=hbm_read_bytes,
        hbm_write_bytes=hbm_write_bytes,
        l2_dirty_bytes=run.l2_dirty_bytes,
        l2_bytes=l2_bytes,
        l2_hit_rate=hit_bytes / max(l2_read_bytes, 1),
        l2_dies=int(hw.l2.dies),
        l2_die_hit_rate=die_hit_bytes / max(l2_read_bytes, 1) if hw.l2.dies > 1 else None,
        sram_bytes=sram_bytes,
        peak_hbm_bytes=max(change.in_use_bytes for change in run.memory),
        tensor_utilisation=sum(_at_peak_s(one.run, w, hw) * n for one, n in runs) / gpu_s,
        hbm_utilisation=(hbm_bytes - run.l2_dirty_bytes) / hw.hbm.bandwidth / gpu_s,
        occupancy=mean("occupancy"),
        bottleneck=next(iter(shares)),
        bottleneck_shares=shares,
        energy_j=energy_j,
        gpus=run.gpus,
        link_bytes=sum(sent.transfer.bytes for sent in run.sent),
        link_wait_s=link_wait_s,
        fast_forward=skipped,
        kernels=kernels,
        timeline=timelines_of(run, w, hw),
        memory=[
            InMemory(time_s=change.time_s, in_use_bytes=change.in_use_bytes, what=change.what)
            for change in run.memory
        ],
        engine=engine,
        versions=dict(versions()),
        peak_flops_per_s=hw.matmul_flops_per_s(w.dtype),
        hbm_bytes_per_s=hw.hbm.bandwidth,
        hbm_capacity_bytes=hw.hbm.capacity,
    )


def _fast_forward(run: DeviceRun, hw: HardwareProfile) -> dict[str, float] | None:
    """Tile steps that were not replayed, and the estimated relative errors that come of it.

    What kernels that were replayed apart might have found of each other's in L2 counts in full, as
    if they had waited for all of it.
    """
    runs = distinct(run)
    skipped = [
        (first.run, first.run.fast_forward, launches)
        for first, launches in runs
        if first.run.fast_forward is not None
    ]
    unsure_bytes = sum(first.run.unsure_bytes * launches for first, launches in runs)
    if not skipped and not unsure_bytes:
        return None
    time_s, hbm_bytes = run.gpus * run.time_s, sum(_hbm_bytes(k.run) for k in run.kernels)
    time_off_s = sum(part.time_error * one.time_s * n for one, part, n in skipped)
    bytes_off = sum(part.hbm_error * _hbm_bytes(one) * n for one, part, n in skipped)
    return {
        "steps_skipped": sum(part.steps_skipped for _, part, _ in skipped),
        "time_error": (time_off_s + unsure_bytes / machine_of(hw).hbm_read_bytes_per_s) / time_s,
        "hbm_error": (bytes_off + unsure_bytes) / max(hbm_bytes, 1),
    }


def _hbm_bytes(run: KernelRun) -> int:
    return run.hbm_read_bytes + run.hbm_write_bytes


def distinct(run: DeviceRun) -> list[tuple[Launched, int]]:
    """The first launch of every replay, and how many launches it stands for."""
    launches: dict[int, list[Launched]] = {}
    for launched in run.kernels:
        launches.setdefault(id(launched.run), []).append(launched)
    return [(same[0], len(same)) for same in launches.values()]


def kernel_result(
    launched: Launched, launches: int, w: AttentionWorkload, hw: HardwareProfile
) -> KernelResult:
    """What is said of one kernel."""
    run, kernel = launched.run, launched.run.kernel
    slots = issue_slots(run.counts, kernel, hw, w.dtype)
    critical = _critical_s(run, slots, hw)
    issued_s = sum(slots.filled_s.values())
    resident_s = float((run.cta_end_s - run.cta_start_s).sum())
    if run.fast_forward is not None:  # of the CTAs that were replayed
        resident_s *= run.time_s / run.fast_forward.replayed_s * run.fast_forward.times_smaller
    flops = run.executed("mma_flops")
    return KernelResult(
        name=kernel.name,
        launches=launches,
        start_s=launched.start_s,
        time_s=run.time_s,
        ctas=kernel.ctas,
        ctas_per_sm=run.ctas_per_sm,
        tile_steps=kernel.tile_steps,
        flops=flops,
        vector_ops=run.executed("vector_ops"),
        exp_count=run.executed("exp_count"),
        sram_bytes=run.executed("sram_bytes"),
        hbm_read_bytes=run.hbm_read_bytes,
        hbm_write_bytes=run.hbm_write_bytes,
        l2_dirty_bytes=run.l2_dirty_bytes,
        l2_read_bytes=run.l2_read_bytes,
        l2_write_bytes=run.l2_write_bytes,
        l2_hit_rate=run.l2_hit_bytes / max(run.l2_read_bytes, 1),
        tensor_utilisation=_at_peak_s(run, w, hw) / run.time_s,
        hbm_utilisation=(run.hbm_read_bytes + run.hbm_write_bytes) / hw.hbm.bandwidth / run.time_s,
        occupancy=resident_s
        * kernel.footprint.threads
        / (hw.sm.count * hw.sm.max_threads * run.time_s),
        bottleneck=max(critical, key=lambda cause: critical[cause]),
        critical_time_s=critical,
        rows_used=kernel.rows_used,
        compiled_from=asdict(kernel.compiled_from) if kernel.compiled_from else None,
        issue_filled_by={what: s / issued_s for what, s in slots.filled_s.items() if s},
        clock_hz=hw.sm.clock * run.clock_share,
        clock_share=run.clock_share,
        ctas_limited_by=room_on_sm(kernel.footprint, hw)[1],
        waves=waves(kernel, hw),
        splits=kernel.splits,
        hbm_reread_bytes=run.hbm_reread_bytes,
        spilled_bytes=run.spilled_bytes,
    )


def _critical_s(run: KernelRun, slots: IssueSlots, hw: HardwareProfile) -> dict[str, float]:
    """What was critical for how long; what the exponentials' unit sets the pace of is its.

    Tensor cores that a warp group holds through what it waits for in its turn are such a wait.
    """
    path_s = (*run.path_s, run.power_s)
    critical = {c: float(s) for c, s in zip((*CAUSES, "power"), path_s, strict=True) if s > 0}
    if "issue" in critical and slots.exp_bound_s:
        of_exp_s = critical["issue"] * slots.exp_bound_s / slots.busy_s
        critical["issue"] -= of_exp_s
        critical["exp"] = critical.get("exp", 0.0) + of_exp_s
    held_s = run.executed("held_cycles") / hw.sm.clock
    if held_s and "tensor" in critical:
        of_waits_s = critical["tensor"] * held_s / float(run.busy_s[TENSOR])
        critical["tensor"] -= of_waits_s
        critical["op_latency"] = critical.get("op_latency", 0.0) + of_waits_s
    return critical


def _waits_s(run: DeviceRun) -> tuple[float, float]:
    """How long a GPU waited for transfers, and how long it idled once it was done, in the mean."""
    worked_s, ended_s = [0.0] * run.gpus, [0.0] * run.gpus
    for launched in run.kernels:
        worked_s[launched.gpu] = launched.start_s + launched.run.time_s
    for sent in run.sent:
        transfer = sent.transfer
        if (
            isinstance(transfer.to, int)
            and transfer.buffer
            and transfer.buffer.lifetime == "output"
        ):
            ended_s[transfer.to] = max(ended_s[transfer.to], sent.end_s)
    ended_s = [max(times_s) for times_s in zip(worked_s, ended_s, strict=True)]
    waited_s = sum(launched.waited_s for launched in run.kernels) + sum(ended_s) - sum(worked_s)
    return waited_s / run.gpus, run.time_s - sum(ended_s) / run.gpus


def _shares(
    kernels: list[KernelResult], run: DeviceRun, link_wait_s: float, idle_s: float
) -> dict[str, float]:
    """Shares of the GPUs' time by what was critical, largest first; launches are the rest."""
    totals: dict[str, float] = {}
    for kernel in kernels:
        for cause, critical_s in kernel.critical_time_s.items():
            totals[cause] = totals.get(cause, 0.0) + critical_s * kernel.launches
    if run.sent:
        totals["link"] = link_wait_s * run.gpus
        totals["idle"] = idle_s * run.gpus
    totals["launch"] = run.gpus * run.time_s - sum(totals.values())
    ordered = sorted(totals.items(), key=lambda entry: -entry[1])
    return {cause: critical_s / (run.gpus * run.time_s) for cause, critical_s in ordered}


def _energy_j(run: DeviceRun, hw: HardwareProfile, dtype: str) -> float | None:
    """Energy of all GPUs: kernels', of writing back what they left in L2, and idle power's."""
    if hw.energy is None:
        return None
    of_kernels_j = sum(sum(joules(first.run, hw, dtype)) * n for first, n in distinct(run))
    left_j = run.l2_dirty_bytes * hw.energy.hbm_per_byte
    return of_kernels_j + left_j + run.gpus * run.time_s * hw.energy.idle


def timelines_of(run: DeviceRun, w: AttentionWorkload, hw: HardwareProfile) -> list[Timeline]:
    """One a kernel; of several GPUs one, of what they did in the mean."""
    if run.gpus == 1:
        return [
            _timeline(k.run.kernel.name, k.start_s, k.run.bin_width_s, _bins(k.run, w, hw), hw)
            for k, _ in distinct(run)
        ]
    edges_s = np.linspace(0.0, run.time_s, tl.BINS + 1)
    width_s = float(edges_s[1])
    bins = np.zeros((tl.TRACKS, tl.BINS))
    starts_s: dict[int, list[float]] = {}
    for k in run.kernels:
        starts_s.setdefault(id(k.run), []).append(k.start_s)
    for k, _ in distinct(run):
        # The bins that each launch runs in, one launch after the other.
        start_s = np.array(starts_s[id(k.run)])
        first = (start_s / width_s).astype(np.int64)
        last = ((start_s + k.run.time_s) / width_s).astype(np.int64).clip(max=tl.BINS - 1)
        launch = np.repeat(np.arange(len(start_s)), last + 1 - first)
        number = first[launch] + np.arange(len(launch)) - np.searchsorted(launch, launch)
        up_to = np.cumsum(np.pad(_bins(k.run, w, hw), ((0, 0), (1, 0))), axis=1)
        before, after = (
            (edges_s[number + end] - start_s[launch]) / k.run.bin_width_s for end in (0, 1)
        )
        for track, so_far in enumerate(up_to):
            at = np.arange(len(so_far))
            share = np.interp(after, at, so_far) - np.interp(before, at, so_far)
            np.add.at(bins[track], number, share)
    return [_timeline(f"{run.gpus} GPUs", 0.0, width_s, bins / run.gpus, hw)]


def _at_peak_s(run: KernelRun, w: AttentionWorkload, hw: HardwareProfile) -> float:
    """How long a kernel's matmuls take at the peak rate of their dtype."""
    flops_per_s = hw.matmul_flops_per_s(run.kernel.matmul_dtype or w.dtype)
    return run.executed("mma_flops") / flops_per_s


def _bins(run: KernelRun, w: AttentionWorkload, hw: HardwareProfile) -> Bins:
    """A kernel's bins up to its end, with seconds at the peak rate on the tensor pipes' track."""
    bins = run.bins[:, : max(1, int(np.ceil(run.time_s / run.bin_width_s)))].copy()
    if run.busy_s[TENSOR]:
        bins[tl.TENSOR_BUSY] *= _at_peak_s(run, w, hw) / run.busy_s[TENSOR]
    return bins


def _timeline(
    name: str,
    start_s: float,
    width_s: float,
    bins: Bins,
    hw: HardwareProfile,
) -> Timeline:
    """The bins as shares."""
    l2_bytes = np.maximum(bins[tl.L2_BYTES], 1.0)
    return Timeline(
        kernel=name,
        start_s=start_s,
        bin_width_s=width_s,
        hbm_utilisation=_rounded(bins[tl.HBM_BYTES] / width_s / hw.hbm.bandwidth),
        tensor_utilisation=_rounded(bins[tl.TENSOR_BUSY] / width_s),
        l2_hit_rate=_rounded(np.minimum(bins[tl.L2_HIT_BYTES] / l2_bytes, 1.0)),
        hbm_bytes_in_flight=_rounded(bins[tl.HBM_IN_FLIGHT] / width_s),
    )


def _rounded(values: Bins) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
