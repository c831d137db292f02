"""Which part of a long kernel to replay, what of it to measure, and how coarse.

A grid is replayed in *waves*: the CTAs that run at a time or, of a persistent kernel, an item of
each CTA. It runs through its periods (the CTAs of a head, head after head). Replayed is, in about
`most_steps` tile steps,

    smaller forms       where a CTA goes tile after tile through long matrices: the same kernel of a
                        shorter sequence on a smaller device, of one half and of one a quarter as
                        long, which says how well two forms tell a larger one
    its first waves     else, where all items have the same trips
    its first periods   where several fit
    blocks of waves     else, of a pruned kernel or one that goes by waves: spread evenly over the
                        period, one after the other
    two thin periods    else: every n-th CTA of them

and measured is what the later half of the waves, of the periods, or of each block took, from when
so many bytes had gone through L2 to when so many more had.

Trips beyond COARSE_TRIPS are made coarser first, as far as needed; where all of the coarser kernel
is no more than such a part, it is replayed whole.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sim.engine.fast_forward.lanes import long_loops_of, units_of
from sim.engine.fast_forward.reduced import GOLDEN, Grid, Scale, can_be_coarse
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import IntArray, Kernel, Load, Loop, Store

FEWEST_SMS, FEWEST_SHARE = 8, 6  # of the second form: so many, or one in so many
FEWEST_TRIPS = 16  # of its longest CTA
FEWEST_UNITS = 2  # of CTAs that go through a matrix
LEAST_TIMES = 2.0  # smaller is the first form, or it takes long beside the whole
FIRST_TWO = 1.25  # times the steps of the first form: the third, a sixteenth, is not counted
COARSE_TRIPS = 192  # of a CTA, or more
STAGGER = 4  # trips, at least, that lie between CTAs which start one after the other
KEPT_TRIPS = 16  # at least, whose loads L2 has room for where CTAs are not in step
WAVES, MOST_WAVES = 8, 128  # for the later half to be past the beginning's transient
PERIODS = 3  # at least: the first, which starts from an empty L2, and two to compare
THIN_WAVES = 4  # of a period, at least
BLOCKS = 4  # at least
BLOCK_WAVES = 4  # two to get going, two that are measured


def scales_of(kernel: Kernel, hw: HardwareProfile, most_steps: int) -> list[Scale]:
    """How much smaller to make it, thrice; none where that is no smaller or another kernel."""
    if kernel.items_per_cta > 1 and kernel.is_uniform:  # its CTAs keep step, as waves show
        return []
    sms, trips = hw.sm.count, kernel.most_trips
    times = max(LEAST_TIMES, (FIRST_TWO * kernel.tile_steps / most_steps) ** 0.5)
    fewest = max(2, min(FEWEST_SMS, sms // FEWEST_SHARE))
    largest = max(2 * fewest, int(sms / times))
    scales = [Scale(sms / fewer, fewer) for fewer in (largest, largest // 2, largest // 4)]
    if scales[0].times < LEAST_TIMES or trips < FEWEST_TRIPS * scales[1].times:
        return []
    if not can_be_coarse(kernel):
        return []
    first = np.arange(_period(kernel)) * kernel.items_per_cta
    of_a_matrix = np.unique(units_of(kernel, first)[1], return_counts=True)[1]
    return scales if of_a_matrix.min() >= FEWEST_UNITS * scales[1].times else []


def _period(kernel: Kernel) -> int:
    """CTAs until the grid repeats itself; all, of CTAs that have several items, of any period."""
    return kernel.ctas if kernel.items_per_cta > 1 else kernel.ctas // kernel.periods


def grain_of(grid: Grid, hw: HardwareProfile, most_steps: int) -> int:
    """How many trips to make one.

    CTAs of different trips run staggered: each reads what the one before read a while ago. That
    while must stay long beside a trip, or they find in L2 what they would not; and L2 must have
    room for many trips, or they do not find what they would.
    """
    kernel = grid.kernel
    if not can_be_coarse(kernel):
        return 1
    coarsest = kernel.most_trips // COARSE_TRIPS
    if kernel.is_uniform:
        waves = min(grid.waves, MOST_WAVES) * kernel.footprint.workers
        needed = waves * kernel.tile_steps // (grid.waves * most_steps)
    else:
        needed = PERIODS * kernel.tile_steps * _period(kernel) // kernel.ctas // most_steps
        loaded_bytes = max((trip_bytes(loop)[0] for loop in long_loops_of(kernel)), default=0)
        coarsest = min(coarsest, int(hw.l2.capacity) // max(1, KEPT_TRIPS * loaded_bytes))
        if not grid.persistent:
            spread = kernel.ctas * grid.wide * STAGGER
            coarsest = min(coarsest, kernel.tile_steps // spread)
    coarsest = 1 << max(0, coarsest.bit_length() - 1)  # powers of two cut most lengths evenly
    return int(min(coarsest, 1 << needed.bit_length()))


@dataclass(frozen=True)
class Measured:
    """Of a part, what lies between two amounts of L2 bytes, and the bytes that it stands for."""

    start: float
    end: float
    stands_for: float


Method = Literal["whole", "coarse", "scales", "waves", "periods", "blocks", "thinned"]


@dataclass(frozen=True)
class Plan:
    """The part of a grid to replay, by which method, and what of it to measure.

    With `counts` the part's own time and bytes are of the whole; else all is at the rates measured.
    """

    method: Method
    part: Kernel
    measured: list[Measured]
    counts: bool


def plan_of(grid: Grid, hw: HardwareProfile, most_steps: int) -> Plan:
    """The part of a grid to replay in about so many tile steps."""
    kernel = grid.kernel
    is_pruned = any(stream.table is not None for stream in kernel.streams)
    if kernel.is_uniform and not is_pruned:
        return _first_waves(grid, most_steps)
    if grid.persistent:  # its periods are of heads that share keys: it runs these side by side
        periods, together = kernel.periods // kernel.sharing, 1
    else:
        periods = kernel.ctas // _period(kernel)
        together = kernel.sharing if _keeps_what_is_shared(kernel, hw) else 1
    replayed = most_steps * periods // kernel.tile_steps
    if together > 1:  # a part of those that go together tells nothing of what they share
        replayed = max(replayed, together + 1)
    if replayed >= (2 if grid.persistent else PERIODS):
        if not grid.persistent:  # few long CTAs are hardly begun by a wave of them
            replayed = max(replayed, -(-WAVES * grid.wide * periods // kernel.ctas))
        return _first_periods(grid, periods, min(replayed, periods), together)
    if is_pruned or kernel.in_waves:
        return _blocks(grid, most_steps)
    return _thinned(grid, periods, most_steps)


def _keeps_what_is_shared(kernel: Kernel, hw: HardwareProfile) -> bool:
    """Whether L2 has room for what a period loads, so that the next that shares it finds it."""
    loaded = {op.stream.tensor for loop in kernel.loops for op in loop.ops if isinstance(op, Load)}
    return sum(tensor.bytes / tensor.groups for tensor in loaded) <= hw.l2.capacity


def _first_waves(grid: Grid, most_steps: int) -> Plan:
    """The first waves, a multiple of four, and the last one, which may not be full."""
    kernel = grid.kernel
    a_wave = max(1, kernel.tile_steps // grid.waves)
    affordable = most_steps // a_wave
    waves = min(min(max(WAVES, affordable), MOST_WAVES) // 4 * 4, grid.waves)
    if grid.persistent:
        part = grid.part(np.append(np.arange(waves - 1), grid.waves - 1))
    else:
        lacking = min(kernel.ctas, waves * grid.wide + kernel.ctas % grid.wide)
        part = grid.of_ctas(np.arange(lacking))
    later, a_period = max(2.0, waves / 2), grid.waves / kernel.periods
    if 0.0 < (whole := round(later / a_period) * a_period) <= waves - WAVES / 2:
        later = whole  # a wave in which a period begins brings what the next ones find
    stretch = a_period if later >= 2 * a_period else later / 2
    return _beginning("waves", kernel, part, waves, later, stretch)


def _first_periods(grid: Grid, periods: int, replayed: int, together: int) -> Plan:
    """Two halves of whole groups that go together; at least one such group, not the first head."""
    kernel = grid.kernel
    halves = replayed // (2 * together) * 2 * together
    replayed = halves or min(together + 1, periods)
    if grid.persistent:
        part = grid.part(np.arange(-(-grid.waves * replayed // periods)))
    else:
        part = grid.of_ctas(np.arange(kernel.ctas // periods * replayed))
    later = max(1, replayed // 2, min(max(together, 2), replayed - 1))
    units = max(2, replayed)  # of a single one, its halves
    stretch = together if 2 * together <= units else later / 2
    return _beginning("periods", kernel, part, units, later, stretch)


def _beginning(
    method: Method, kernel: Kernel, part: Kernel, units: int, later: float, stretch: float
) -> Plan:
    """So many waves or periods, of which the later ones, in like stretches, stand for the rest.

    A single one is set beside the stretch before, which stands for nothing.
    """
    end = sum(asked_bytes(part))
    more = sum(asked_bytes(kernel)) - end
    number, length = round(later / stretch), stretch * end / units
    measured = [
        Measured(end - (k + 1) * length, end - k * length, more / number if k < number else 0.0)
        for k in reversed(range(max(2, number)))
    ]
    return Plan(method, part, measured, counts=True)


def _thinned(grid: Grid, periods: int, most_steps: int) -> Plan:
    """Two periods, or one twice, of every n-th CTA. The second stands for the rest.

    Of a persistent kernel, which deals the long and the short in turn, it is some waves in a row.
    """
    kernel = grid.kernel
    run, a_period = (THIN_WAVES, grid.waves) if grid.persistent else (1, kernel.ctas)
    a_period = max(1, a_period // periods)
    most_apart = a_period // (run if grid.persistent else THIN_WAVES * grid.wide)
    apart = -(-2 * kernel.tile_steps // (periods * most_steps))
    apart = max(1, min(apart, most_apart))
    numbers = np.arange(a_period)
    first = numbers[numbers // run % apart == 0]
    second = numbers[numbers // run % apart == apart // 2]
    chosen = np.append(first, second + (a_period if periods > 1 else 0))
    part = grid.part(chosen) if grid.persistent else grid.of_ctas(chosen)
    return _beginning("thinned", kernel, part, 2, 1, 0.5)


def _blocks(grid: Grid, most_steps: int) -> Plan:
    """Blocks of waves from the strata of a period, each from another one of the periods."""
    kernel = grid.kernel
    period = _period(kernel)
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
    weights *= sum(asked_bytes(kernel)) / weights.sum()
    measured = [Measured(*of_block) for of_block in zip(middles, ends, weights, strict=True)]
    return Plan("blocks", part, measured, counts=False)


def _bytes_by_wave(grid: Grid, waves: IntArray) -> NDArray[np.float64]:
    """L2 bytes of each of these waves."""
    kernel = grid.kernel
    bytes_by_loop = np.array([sum(trip_bytes(loop)) for loop in kernel.loops])
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


def asked_bytes(kernel: Kernel) -> tuple[int, int]:
    """Bytes that loads and stores ask for if no edge cuts a tile."""
    read = write = 0
    for loop, trips in zip(kernel.loops, kernel.loop_trips, strict=True):
        loaded, stored = trip_bytes(loop)
        read += trips * loaded
        write += trips * stored
    return read, write


def most_hbm_bytes(kernel: Kernel) -> int:
    """What HBM reads and writes at most; an atomic store also reads what L2 lacks."""
    atomic = [
        trips * sum(op.stream.tile_bytes for op in loop.ops if isinstance(op, Store) and op.atomic)
        for loop, trips in zip(kernel.loops, kernel.loop_trips, strict=True)
    ]
    return sum(asked_bytes(kernel)) + sum(atomic)


def trip_bytes(loop: Loop) -> tuple[int, int]:
    """What a trip loads and stores."""
    loads = sum(load.stream.tile_bytes for load in loop.loads)
    stores = sum(op.stream.tile_bytes for op in loop.ops if isinstance(op, Store))
    return loads, stores
