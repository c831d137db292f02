"""Fast-forward: what a long kernel takes, told by a part of it.

A grid is replayed in *waves*: the CTAs that run at a time or, of a persistent kernel, an item of
each CTA. It runs through its periods (the CTAs of a head, head after head). Replayed is, in about
`most_steps` tile steps,

    its first waves     where all items have the same trips
    its first periods   where several fit
    blocks of waves     else: so many, spread evenly over the period, one after the other

and measured is what the later half of the waves, of the periods, or of each block took, from when
so many bytes had gone through L2 to when so many more had: what is skipped takes time, HBM bytes
and L2 hits at those rates a byte. Its own L2 bytes, FLOPs and steps are counted, not extrapolated.

Trips beyond COARSE_TRIPS are made coarser first, as far as needed: g of them become one of g times
the size, on a machine of g times the latencies, which is the same machine seen from further away.

The estimated error is twice the standard error of the mean rate, told by how much each measured
part differs from the next, as far as it bears on the whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.engine.kernel_run import FastForward, KernelRun
from sim.engine.machine import HBM, L2, SM_PIPES, TENSOR, ctas_per_sm, machine_of, service_times_s
from sim.engine.timeline import BINS, HBM_BYTES, HBM_IN_FLIGHT, L2_BYTES, L2_HIT_BYTES, TENSOR_BUSY
from sim.hardware import HardwareProfile
from sim.tile_program import (
    COUNTED_ITEMS,
    Compute,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Store,
    Stream,
    Tensor,
    chunk_tensors,
    spread_over,
)

LONG = 4.5  # times the tile steps that are replayed: shorter kernels are replayed whole
COARSE_TRIPS = 192  # of a CTA, or more
STAGGER = 4  # trips, at least, that lie between CTAs which start one after the other
WAVES, MOST_WAVES = 8, 128  # for the later half to be past the beginning's transient
PERIODS = 3  # at least: the first, which starts from an empty L2, and two to compare
THIN_WAVES = 4  # of a period, at least
BLOCKS = 4  # at least
BLOCK_WAVES = 4  # two to get going, two that are measured
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, are spread evenly
# What the scatter does not show, by comparisons with exact replays: what trips made one add to the
# time, and by how much of one wave of those measured their time and HBM bytes are off.
COARSE_ERROR = 0.003
WAVE_TIME_ERROR, WAVE_HBM_ERROR = 0.5, 1.0


@dataclass(frozen=True)
class Grid:
    """A kernel's items as waves of `wide`: its CTAs or, of a persistent kernel, an item of each."""

    kernel: Kernel
    wide: int
    persistent: bool

    @classmethod
    def of(cls, kernel: Kernel, hw: HardwareProfile) -> "Grid":
        """As the device runs it."""
        slots = hw.sm.count * ctas_per_sm(kernel.footprint, hw)
        persistent = kernel.items_per_cta > 1 and kernel.ctas <= slots
        return cls(kernel, min(slots, kernel.ctas), persistent)

    @property
    def waves(self) -> int:
        """How many, the last one perhaps not full."""
        return self.kernel.items_per_cta if self.persistent else -(-self.kernel.ctas // self.wide)

    def part(self, waves: IntArray) -> Kernel:
        """The kernel of these waves alone, without what they do not touch."""
        kernel = self.kernel
        if self.persistent:
            own = np.arange(kernel.ctas)[:, None] * kernel.items_per_cta + waves
            return _cut(_of_items(kernel, own.ravel(), kernel.ctas, len(waves)))
        ctas = (waves[:, None] * self.wide + np.arange(self.wide)).ravel()
        return self.of_ctas(ctas[ctas < kernel.ctas])

    def of_ctas(self, ctas: IntArray) -> Kernel:
        """The kernel of these CTAs alone, without what they do not touch."""
        each = self.kernel.items_per_cta
        items = (ctas[:, None] * each + np.arange(each)).ravel()
        return _cut(_of_items(self.kernel, items, len(ctas), each))

    def items_of(self, wave: int) -> IntArray:
        """The numbers of a wave's items."""
        kernel, each = self.kernel, self.kernel.items_per_cta
        if self.persistent:
            return np.arange(kernel.ctas, dtype=np.int64) * each + wave
        first, end = wave * self.wide, min((wave + 1) * self.wide, kernel.ctas)
        return np.arange(first * each, end * each, dtype=np.int64)


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


def can_skip(kernel: Kernel, most_steps: int) -> bool:
    """Whether the kernel is long."""
    return kernel.tile_steps > LONG * most_steps


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
    period = _period(kernel)
    grain = _grain(Grid.of(kernel, hw), period, most_steps)
    form, device = coarse(kernel, grain), slower(hw, grain)
    plan = _plan(Grid.of(form, hw), period, most_steps)
    if plan.part.tile_steps >= kernel.tile_steps:  # so few CTAs stand for no others
        form, device, plan = kernel, hw, Plan(kernel, [], counts=True)
    chunkings = chunk_tensors([plan.part])
    l2 = simulated.new_l2(chunkings, machine_of(device).l2_capacity_bytes)
    run: KernelRun = simulated.run_kernel(plan.part, chunkings, device, l2, dtype, progress)
    if not plan.measured:
        return run
    whole = _whole(plan, run, Grid.of(plan.part, hw).waves)
    rounded = max(kernel.loop_trips) / (max(form.loop_trips) * grain)
    whole = replace(
        whole,
        time_s=whole.time_s * rounded,
        hbm_bytes=whole.hbm_bytes * rounded,
        hit_bytes=whole.hit_bytes * rounded,
        time_error=whole.time_error + (COARSE_ERROR if grain > 1 else 0.0),
    )
    return _completed(kernel, run, whole, hw, dtype)


def _period(kernel: Kernel) -> int:
    """CTAs until the grid repeats itself: those of one matrix, if all matrices have like trips.

    Of a persistent kernel, whose CTAs each see all matrices, all.
    """
    matrices = max(tensor.groups for tensor in kernel.tensors)
    if kernel.ctas % matrices or kernel.items_per_cta > 1:
        return kernel.ctas
    period = kernel.ctas // matrices
    ctas = spread_over(kernel.ctas, COUNTED_ITEMS)
    alike = (kernel.trips_of(ctas) == kernel.trips_of(ctas % period)).all()
    return period if alike else kernel.ctas


def _sharing(kernel: Kernel) -> int:
    """Periods that go together: heads that share K and V."""
    groups = [tensor.groups for tensor in kernel.tensors]
    return max(1, max(groups) // min(groups))


def _grain(grid: Grid, period: int, most_steps: int) -> int:
    """How many trips to make one.

    CTAs of different trips run staggered: each reads what the one before read a while ago. That
    while must stay long beside a trip, or they find in L2 what they would not.
    """
    kernel = grid.kernel
    if not can_be_coarse(kernel):
        return 1
    coarsest = int(_sampled_steps(kernel).max()) // COARSE_TRIPS
    if _is_uniform(kernel):
        waves = min(grid.waves, MOST_WAVES) * kernel.footprint.workers
        needed = waves * kernel.tile_steps // (grid.waves * most_steps)
    else:
        needed = PERIODS * kernel.tile_steps * period // kernel.ctas // most_steps
        if not grid.persistent:
            spread = kernel.ctas * grid.wide * STAGGER
            coarsest = min(coarsest, kernel.tile_steps // spread)
    coarsest = 1 << max(0, coarsest.bit_length() - 1)  # powers of two cut most lengths evenly
    return int(min(coarsest, 1 << needed.bit_length()))


def _sampled_steps(kernel: Kernel) -> IntArray:
    """Tile steps of the items, or of as many as are looked at."""
    sample = spread_over(kernel.ctas * kernel.items_per_cta, COUNTED_ITEMS)
    steps: IntArray = kernel.trips_of(sample).sum(axis=0)
    return steps


def _is_uniform(kernel: Kernel) -> bool:
    """Whether all items that do anything have the same trips."""
    steps = _sampled_steps(kernel)
    return bool(steps[steps > 0].min() == steps.max())


def _plan(grid: Grid, period: int, most_steps: int) -> Plan:
    kernel = grid.kernel
    is_pruned = any(stream.table is not None for stream in kernel.streams)
    if _is_uniform(kernel) and not is_pruned:
        return _first_waves(grid, most_steps)
    if grid.persistent:  # its periods are of heads that share keys: it runs these side by side
        periods, together = min(tensor.groups for tensor in kernel.tensors), 1
    else:
        periods, together = kernel.ctas // period, _sharing(kernel)
    replayed = most_steps * periods // kernel.tile_steps
    if replayed >= (2 if grid.persistent else PERIODS):
        return _first_periods(grid, periods, min(replayed, periods), together)
    if is_pruned:
        return _blocks(grid, period, most_steps)
    return _thinned(grid, periods, most_steps)


def _first_waves(grid: Grid, most_steps: int) -> Plan:
    """The first waves, a multiple of four, and the last one, which may not be full."""
    kernel = grid.kernel
    a_wave = max(1, kernel.tile_steps // grid.waves)
    affordable = most_steps // (a_wave * kernel.footprint.workers)  # each runs all steps
    waves = min(min(max(WAVES, affordable), MOST_WAVES) // 4 * 4, grid.waves)
    if grid.persistent:
        part = grid.part(np.append(np.arange(waves - 1), grid.waves - 1))
    else:
        lacking = min(kernel.ctas, waves * grid.wide + kernel.ctas % grid.wide)
        part = grid.of_ctas(np.arange(lacking))
    return _beginning(kernel, part, waves, max(2, waves // 2))


def _first_periods(grid: Grid, periods: int, replayed: int, together: int) -> Plan:
    """Two halves of whole groups that go together; at least one such group, not the first head."""
    kernel = grid.kernel
    halves = replayed // (2 * together) * 2 * together
    if halves:
        replayed = halves
    elif 4 * replayed >= 3 * (together + 1):
        replayed = min(together + 1, periods)
    if grid.persistent:
        part = grid.part(np.arange(-(-grid.waves * replayed // periods)))
    else:
        part = grid.of_ctas(np.arange(kernel.ctas // periods * replayed))
    later = max(replayed // 2, min(max(together, 2), replayed - 1))
    return _beginning(kernel, part, max(2, replayed), max(1, later))  # of a single one, its halves


def _beginning(kernel: Kernel, part: Kernel, units: int, later: int) -> Plan:
    """So many waves or periods, of which the later ones stand, in two stretches, for the rest."""
    end = sum(_l2_bytes(part))
    more = sum(_l2_bytes(kernel)) - end
    a_unit, last = end / units, max(1, later // 2)
    before = max(1, later - last)
    measured = [
        Measured(
            end - (last + before) * a_unit, end - last * a_unit, more * (later - last) / later
        ),
        Measured(end - last * a_unit, end, more * last / later),
    ]
    return Plan(part, measured, counts=True)


def _thinned(grid: Grid, periods: int, most_steps: int) -> Plan:
    """Two periods, or one twice, of every n-th CTA. The second stands for the rest.

    Of a persistent kernel, which deals the long and the short in turn, it is some waves in a row.
    """
    kernel = grid.kernel
    run, a_period = (THIN_WAVES, grid.waves) if grid.persistent else (1, kernel.ctas)
    a_period //= periods
    most_apart = a_period // (run if grid.persistent else THIN_WAVES * grid.wide)
    apart = -(-2 * kernel.tile_steps // (periods * most_steps))
    apart = max(1, min(apart, most_apart))
    numbers = np.arange(a_period)
    first = numbers[numbers // run % apart == 0]
    second = numbers[numbers // run % apart == apart // 2]
    chosen = np.append(first, second + (a_period if periods > 1 else 0))
    part = grid.part(chosen) if grid.persistent else grid.of_ctas(chosen)
    return _beginning(kernel, part, 2, 1)


def _blocks(grid: Grid, period: int, most_steps: int) -> Plan:
    """Blocks of waves from the strata of a period, each from another one of the periods."""
    kernel = grid.kernel
    periods = kernel.ctas // period
    waves = grid.waves // periods
    a_wave = kernel.tile_steps / grid.waves
    number = max(BLOCKS, int(most_steps / (a_wave * BLOCK_WAVES)))
    if number * BLOCK_WAVES > waves:  # hardly any less than a period, of which two tell the others
        return _first_periods(grid, periods, min(2, periods), 1)
    strata = np.linspace(0, waves, number + 1)
    phases = (np.arange(number) + 0.5) * GOLDEN % 1.0
    first = (strata[:-1] + phases * (np.diff(strata) - BLOCK_WAVES)).astype(np.int64)
    first += np.arange(number) * periods // number * period // grid.wide
    picked = (first[:, None] + np.arange(BLOCK_WAVES)).ravel()
    part = grid.part(np.concatenate([[0], picked, [picked[-1] + 1]]))
    own = _bytes_by_wave(grid, np.append(0, picked))
    ends = np.cumsum(own)[BLOCK_WAVES::BLOCK_WAVES]
    middles = np.cumsum(own)[BLOCK_WAVES // 2 :: BLOCK_WAVES]
    weights = _stratum_bytes(grid, strata, waves)
    weights *= sum(_l2_bytes(kernel)) / weights.sum()
    measured = [Measured(*of_block) for of_block in zip(middles, ends, weights, strict=True)]
    return Plan(part, measured, counts=False)


def _bytes_by_wave(grid: Grid, waves: IntArray) -> NDArray[np.float64]:
    """L2 bytes of each of these waves."""
    kernel = grid.kernel
    bytes_by_loop = np.array([sum(_loop_bytes(loop)) for loop in kernel.loops])
    return np.array(
        [bytes_by_loop @ kernel.trips_of(grid.items_of(w)).sum(axis=1) for w in waves.tolist()],
        np.float64,
    )


def _stratum_bytes(grid: Grid, strata: NDArray[np.float64], waves: int) -> NDArray[np.float64]:
    """L2 bytes of the strata of the first `waves`, told by at most 16 waves of each."""
    of_stratum = []
    for start, end in pairwise(strata):
        seen = np.unique(np.linspace(start, min(end, waves - 1), 16).astype(np.int64))
        of_stratum.append(float(_bytes_by_wave(grid, seen).mean()) * (end - start))
    return np.array(of_stratum)


def _whole(plan: Plan, run: KernelRun, waves: int) -> Whole:
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
    own = sum(_l2_bytes(run.kernel))
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


def _remade(
    loop: Loop, stream: Callable[[Stream], Stream], trips: OfItem, amounts: int = 1
) -> Loop:
    """A loop with other streams and trips, and so many times the work in each."""
    loads = {load: Load(stream(load.stream), load.stages) for load in loop.loads}

    def op_of(op: Load | Compute | Store) -> Load | Compute | Store:
        if isinstance(op, Load):
            return loads[op]
        if isinstance(op, Store):
            return Store(stream(op.stream), op.atomic)
        return Compute(
            op.name,
            tuple(loads[load] for load in op.reads if load in loads),
            op.mma_flops * amounts,
            op.vector_ops * amounts,
            op.exp_count * amounts,
            op.sram_bytes * amounts,
        )

    return Loop(trips, tuple(op_of(op) for op in loop.ops))


def _of_items(kernel: Kernel, items: IntArray, ctas: int, items_per_cta: int) -> Kernel:
    """The kernel of these items alone, in this order."""

    def chosen(of: OfItem) -> OfItem:
        return lambda numbers: of(items[numbers])

    def stream(whole: Stream) -> Stream:
        return replace(whole, base=chosen(whole.base), start=chosen(whole.start))

    loops = tuple(_remade(loop, stream, chosen(loop.trips)) for loop in kernel.loops)
    return replace(kernel, ctas=ctas, items_per_cta=items_per_cta, loops=loops)


def _cut(kernel: Kernel) -> Kernel:
    """The kernel with its tensors cut behind the last tile that it touches."""
    tensors: dict[Tensor, Tensor] = {}
    for whole in kernel.tensors:
        streams = [stream for stream in kernel.streams if stream.tensor is whole]
        if all(stream.table is None for stream in streams):
            last = [(s, _last_tile(kernel, s)) for s in streams]
            groups = 1 + max(t // (s.tiles_down * s.tiles_across) for s, t in last)
            rows = max((t // s.tiles_across + 1) * s.tile_rows for s, t in last)
            tensors[whole] = replace(
                whole, groups=groups, rows=min(rows, whole.rows) if groups == 1 else whole.rows
            )

    def stream(whole: Stream) -> Stream:
        return replace(whole, tensor=tensors.get(whole.tensor, whole.tensor))

    return replace(kernel, loops=tuple(_remade(loop, stream, loop.trips) for loop in kernel.loops))


def _last_tile(kernel: Kernel, stream: Stream) -> int:
    """The highest number of a tile that it touches in any trip."""
    for loop, trips in zip(kernel.loops, kernel.trips, strict=True):
        if any(not isinstance(op, Compute) and op.stream is stream for op in loop.ops):
            base = stream.base(kernel.items)
            touched = np.maximum(base, base + stream.stride * (trips - 1))[trips > 0]
            return int(touched.max(initial=0))
    raise AssertionError("a stream of no loop")


def coarse(kernel: Kernel, grain: int) -> Kernel:
    """The kernel with `grain` trips of its long loops made one; rounded to the nearest."""
    if grain == 1:
        return kernel
    long_loops = _long_loops(kernel)
    by_rows = {stream.tensor: _by_rows(stream) for stream in _streams_of(long_loops)}

    def stream(fine: Stream) -> Stream:
        if fine.tensor not in by_rows:
            return fine
        return _coarse_stream(fine, grain, by_rows[fine.tensor])

    def trips(of: OfItem) -> OfItem:
        return lambda items: np.maximum(np.rint(of(items) / grain).astype(np.int64), of(items) > 0)

    loops = tuple(
        _remade(loop, stream, trips(loop.trips), grain)
        if loop in long_loops
        else _remade(loop, stream, loop.trips)
        for loop in kernel.loops
    )
    return replace(kernel, loops=loops)


def can_be_coarse(kernel: Kernel) -> bool:
    """Whether the streams of the long loops go down or across their matrices, tile after tile."""
    return all(
        stream.table is None and abs(stream.stride) in (1, stream.tiles_across)
        for stream in _streams_of(_long_loops(kernel))
    )


def _long_loops(kernel: Kernel) -> list[Loop]:
    """The loops of more than one trip."""
    trips = kernel.trips_of(spread_over(kernel.ctas * kernel.items_per_cta, COUNTED_ITEMS))
    return [loop for loop, own in zip(kernel.loops, trips, strict=True) if own.max() > 1]


def _streams_of(loops: list[Loop]) -> list[Stream]:
    return [op.stream for loop in loops for op in loop.ops if not isinstance(op, Compute)]


def _by_rows(stream: Stream) -> bool:
    """Whether its tiles follow each other down a matrix, not across."""
    return abs(stream.stride) == stream.tiles_across


def _coarse_stream(stream: Stream, grain: int, by_rows: bool) -> Stream:
    """`grain` tiles that follow each other down or across a matrix as one."""
    across, down = stream.tiles_across, stream.tiles_down
    coarse_down = -(-down // grain) if by_rows else down
    coarse_across = across if by_rows else -(-across // grain)

    def base(items: IntArray) -> IntArray:
        tile = stream.base(items)
        row, col = tile // across, tile % across
        group, row = row // down, row % down
        if by_rows:
            row = row // grain
        else:
            col = col // grain
        return (group * coarse_down + row) * coarse_across + col

    return replace(
        stream,
        tile_rows=stream.tile_rows * grain if by_rows else stream.tile_rows,
        tile_cols=stream.tile_cols if by_rows else stream.tile_cols * grain,
        base=base,
        stride=int(np.sign(stream.stride)) * (coarse_across if by_rows else 1),
    )


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
    counts = {
        step: trips * (workers if isinstance(step, Compute) else 1)
        for loop, trips in zip(kernel.loops, kernel.loop_trips, strict=True)
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
    for loop, trips in zip(kernel.loops, kernel.loop_trips, strict=True):
        loaded, stored = _loop_bytes(loop)
        read += trips * loaded
        write += trips * stored
    return read, write


def _loop_bytes(loop: Loop) -> tuple[int, int]:
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
