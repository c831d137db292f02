"""Kernels made smaller: some of a grid's CTAs alone, many trips made one, a shorter sequence.

g trips that become one of g times the size, on a machine of g times the latencies, are the same
machine seen from further away. So is a sequence k times shorter on a device k times smaller.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sim.engine.fast_forward.lanes import goes_down, long_loops_of, streams_of, units_of
from sim.inputs.hardware import HardwareProfile
from sim.machine import ctas_per_sm
from sim.tile_program import (
    Barrier,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Op,
    Store,
    Stream,
    Tensor,
)

GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, are spread evenly
# What of a compute grows with its tiles: not what it waits for, one thing after the other.
AMOUNTS = (
    "mma_flops", "vector_ops", "exp_count", "sram_bytes", "other_ops", "exps_beside", "held_cycles",
)  # fmt: skip


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


def _of_items(kernel: Kernel, items: IntArray, ctas: int, items_per_cta: int) -> Kernel:
    """The kernel of these items alone, in this order."""

    def chosen(of: OfItem) -> OfItem:
        return lambda numbers: of(items[numbers])

    def stream(whole: Stream) -> Stream:
        return replace(whole, base=chosen(whole.base), start=chosen(whole.start))

    loops = tuple(_remade(loop, stream, chosen(loop.trips)) for loop in kernel.loops)
    return replace(
        kernel, ctas=ctas, items_per_cta=items_per_cta, loops=loops, periods=1, sharing=1
    )


def _cut(kernel: Kernel) -> Kernel:
    """The kernel with its tensors cut behind the last tile that it touches."""
    tensors: dict[Tensor, Tensor] = {}
    for whole in kernel.tensors:
        streams = [stream for stream in kernel.streams if stream.tensor is whole]
        if whole.sizes is None and all(stream.table is None for stream in streams):
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
        if any(touched is stream for touched in loop.streams):
            base = stream.base(kernel.items)
            touched = np.maximum(base, base + stream.stride * (trips - 1))[trips > 0]
            return int(touched.max(initial=0))
    raise AssertionError("a stream of no loop")


def can_be_coarse(kernel: Kernel) -> bool:
    """Whether the streams of the long loops go down or across their matrices, tile after tile."""
    return all(
        stream.table is None and abs(stream.stride) in (1, stream.tiles_across)
        for stream in streams_of(long_loops_of(kernel))
    )


def coarse(kernel: Kernel, grain: int) -> Kernel:
    """The kernel with `grain` trips of its long loops made one."""
    if grain == 1:
        return kernel
    rounded = _fewer if kernel.is_uniform else _spread
    long_loops = long_loops_of(kernel)
    by_rows = {stream.tensor: goes_down(stream) for stream in streams_of(long_loops)}

    def stream(fine: Stream) -> Stream:
        if fine.tensor not in by_rows:
            return fine
        if by_rows[fine.tensor]:
            made = replace(fine, tile_rows=fine.tile_rows * grain)
        else:
            made = replace(fine, tile_cols=fine.tile_cols * grain)
        return _on_fewer_tiles(fine, made, grain, by_rows[fine.tensor])

    loops = tuple(
        _remade(loop, stream, rounded(loop.trips, grain), grain)
        if loop in long_loops
        else _remade(loop, stream, loop.trips)
        for loop in kernel.loops
    )
    return replace(kernel, loops=loops)


def _on_fewer_tiles(stream: Stream, made: Stream, times: float, by_rows: bool) -> Stream:
    """`made`, which has so many times fewer tiles down or across, at the same share of the way."""
    across, down = stream.tiles_across, stream.tiles_down
    to_across, to_down = made.tiles_across, made.tiles_down

    def base(items: IntArray) -> IntArray:
        tile = stream.base(items)
        row, col = tile // across, tile % across
        group, row = row // down, row % down
        if by_rows:
            row = (row / times).astype(np.int64)
        else:
            col = (col / times).astype(np.int64)
        return (group * to_down + row) * to_across + col

    stride = int(np.sign(stream.stride)) * (to_across if by_rows else 1)
    return replace(made, base=base, stride=stride)


def _fewer(of: OfItem, times: float) -> OfItem:
    """So many times fewer trips, to the nearest: one, at least, where there are any."""
    return lambda items: np.maximum(np.rint(of(items) / times).astype(np.int64), of(items) > 0)


def _spread(of: OfItem, times: float) -> OfItem:
    """So many times fewer trips, up or down by a phase of their number: one, at least, of any.

    To the nearest, neighbours of nearly as many trips come to the same: CTAs that drift apart would
    keep step from wave to wave, and find in L2 what each has to bring.
    """

    def fewer(items: IntArray) -> IntArray:
        trips = of(items)
        rounded = np.floor(trips / times + trips * GOLDEN % 1.0).astype(np.int64)
        return np.maximum(rounded, trips > 0)

    return fewer


@dataclass(frozen=True)
class Scale:
    """How many times smaller a kernel and its device are made, which then has `sms` SMs."""

    times: float
    sms: int


def smaller(kernel: Kernel, scale: Scale) -> Kernel:
    """The kernel of a shorter sequence: of those of a matrix one CTA in so many, of as few trips.

    On a device that is smaller by as much it is the same, in so many times less time: a CTA's way
    through K and V, the CTAs that are on it at a time and the L2 keep their proportions. CTAs that
    share one of several lanes of a matrix go together, or what one brings would be no other's.
    """
    times, each = scale.times, kernel.items_per_cta
    periods = 1 if each > 1 else kernel.periods
    a_period = kernel.ctas // periods
    chosen = _one_in(times, units_of(kernel, np.arange(a_period) * each)[0])
    ctas = (np.arange(periods)[:, None] * a_period + chosen).ravel()
    items = (ctas[:, None] * each + np.arange(each)).ravel()
    part = _of_items(kernel, items, len(ctas), each)
    long_loops = long_loops_of(part)
    by_rows = {stream.tensor: goes_down(stream) for stream in streams_of(long_loops)}
    short = {tensor: _shortened(tensor, long_loops, times, by_rows[tensor]) for tensor in by_rows}

    def stream(whole: Stream) -> Stream:
        if whole.tensor not in short:
            return whole
        made = replace(whole, tensor=short[whole.tensor])
        return _on_fewer_tiles(whole, made, times, by_rows[whole.tensor])

    loops = tuple(
        _remade(loop, stream, _fewer(loop.trips, times) if loop in long_loops else loop.trips)
        for loop in part.loops
    )
    return replace(part, loops=loops, periods=kernel.periods, sharing=kernel.sharing)


def _one_in(times: float, unit: IntArray) -> IntArray:
    """The places of one unit in so many, in order: as many as are on a device.

    Of CTAs that take items in turn, one more would wait for all of another's.
    """
    units = int(unit.max()) + 1
    number = max(1, round(units / times))
    chosen = ((np.arange(number) + 0.5) * times).astype(np.int64).clip(max=units - 1)
    return np.flatnonzero(np.isin(unit, chosen))


def _shortened(tensor: Tensor, long_loops: list[Loop], times: float, by_rows: bool) -> Tensor:
    """A tensor through which the long loops go, so many times shorter: and a tile, for rounding."""
    through = [s for s in streams_of(long_loops) if s.tensor is tensor]
    tile = max(s.tile_rows if by_rows else s.tile_cols for s in through)
    whole = tensor.rows if by_rows else tensor.cols
    length = min(whole, (int(whole / times / tile) + 2) * tile)
    return replace(tensor, rows=length) if by_rows else replace(tensor, cols=length)


# What a device has of all its SMs together, and what a CTA costs however short its loops are.
_OF_THE_DEVICE = ("l2.capacity", "l2.die_capacity", "l2.bandwidth", "hbm.bandwidth")
_OF_A_CTA = ("calibration.sm.cta_start", "calibration.sm.cta_setup")


def smaller_device(hw: HardwareProfile, scale: Scale) -> HardwareProfile:
    """The device with so many SMs, and as much less of all that they share."""
    figures = {key: hw.figure(key) / scale.times for key in (*_OF_THE_DEVICE, *_OF_A_CTA)}
    return hw.with_figures({**figures, "sm.count": scale.sms})


def _remade(
    loop: Loop, stream: Callable[[Stream], Stream], trips: OfItem, amounts: int = 1
) -> Loop:
    """A loop with other streams and trips, and so many times the work in each."""
    loads = {
        load: replace(
            load,
            stream=stream(load.stream),
            held_cycles=load.held_cycles * amounts,
            held_reads=load.held_reads * amounts,
        )
        for load in loop.loads
    }

    def op_of(op: Op) -> Op:
        if isinstance(op, Load):
            return loads[op]
        if isinstance(op, Store):
            return replace(op, stream=stream(op.stream))
        if isinstance(op, Barrier):
            return Barrier(tuple(loads[load] for load in op.issues))
        return replace(
            op,
            reads=tuple(loads[load] for load in op.reads if load in loads),
            **{amount: getattr(op, amount) * amounts for amount in AMOUNTS},
        )

    return Loop(trips, tuple(op_of(op) for op in loop.ops))


# Of a calibration; a CTA starts once, however coarse its trips are.
LATENCIES = ("hbm.latency", "l2.latency", "sm.op_latency")


def slower(hw: HardwareProfile, grain: int) -> HardwareProfile:
    """The device with latencies so many times as long."""
    keys = [f"calibration.{latency}" for latency in LATENCIES]
    return hw.with_figures({key: hw.figure(key) * grain for key in keys})
