"""Which figures of a GPU matter: elasticities of time, energy and HBM bytes to each of them.

The elasticity of a result to a figure is d ln(result) / d ln(figure): at -0.4, 1% more of the
figure gives 0.4% less of the result. It is taken by central differences of logarithms, from the
figure divided by 1.05 to the figure times 1.05 (`SHIFT`). Whole numbers, such as the SMs' count, go
to the whole numbers nearest to those, at least one away. A share stops at 1, and one that is 1
is only shifted down. Both sides are kept besides, as what a capacity does is often a jump: a tile
that just fits, a working set just above the L2. What fast-forwarding may have made of a slope, by
the estimated errors of the runs that it is taken from, stands beside it (`noise`).

Each figure moves alone, and with it what is stated by it: what an SM does in a clock, on its tensor
cores too, is more with more SMs and a higher clock, while L2, HBM and the power limit stay.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import inf, log

from pydantic import BaseModel

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.runs.cases import Case, Refusal
from sim.runs.job import Outcome, Progress, run_case
from sim.runs.record import Record, versions
from sim.runs.recorded import record_of
from sim.runs.scenario import Limits, Point

SHIFT = 0.05  # up by it, and down by as much in logarithm
# What no result of a run depends on (whether a schedule fits is `attnsim fit`'s question), and how
# many dies there are, of which none is a small share.
WITHOUT_EFFECT = ("hbm.capacity", "l2.dies")
OF_THE_SAME_REPLAY = ("energy.", "power.")  # figures that no replay knows, and so add no error
# Where a fast-forwarded record says how far each result may be off.
ERRORS = {"time_s": "time_error", "energy_j": "energy_error", "hbm_bytes": "hbm_error"}


@dataclass(frozen=True)
class Parameter:
    """One figure of a profile, and where it is shifted to; None where it cannot go that way."""

    key: str
    value: float
    down: float | None
    up: float | None


@dataclass(frozen=True)
class Elasticity:
    """Of one result to one figure: over both shifts, and over each; None where there is none.

    `central` is uncertain by `noise` where runs were fast-forwarded, the others by twice as much.
    """

    central: float | None
    down: float | None
    up: float | None
    noise: float = 0.0


@dataclass(frozen=True)
class Effect:
    """What one figure does to a schedule's time, energy and HBM bytes.

    `energy` is None where the profile has no figures of energy.
    """

    parameter: Parameter
    time: Elasticity
    energy: Elasticity | None
    hbm_bytes: Elasticity


@dataclass(frozen=True)
class ScheduleSensitivity:
    """A schedule's record as the profile is, and the effects, that on time largest first.

    There are none where it cannot be or does not fit the device.
    """

    record: Record
    effects: list[Effect]


@dataclass(frozen=True)
class Sensitivity:
    """All schedules of a scenario's point."""

    title: str
    hardware: HardwareProfile
    shift: float
    schedules: list[ScheduleSensitivity]

    def json(self) -> str:
        """All of it, without the records' kernels and timelines."""
        of_schedules = [
            {
                "schedule": of.record.schedule,
                "options": of.record.options,
                "status": of.record.status,
                "reason": of.record.reason,
                "time_s": of.record.time_s,
                "energy_j": of.record.energy_j,
                "hbm_bytes": of.record.hbm_bytes,
                "fast_forward": of.record.fast_forward,
                "effects": [asdict(effect) for effect in of.effects],
            }
            for of in self.schedules
        ]
        whole = {
            "title": self.title,
            "hardware": self.hardware.name,
            "overrides": next((of.record.overrides for of in self.schedules), None),
            "step": self.shift,
            "schedules": of_schedules,
            "versions": dict(versions()),
        }
        return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def sensitivity(
    cases: Sequence[Case | Refusal],
    title: str,
    where: str,
    limits: Limits,
    progress: Progress = lambda *_: None,
    shift: float = SHIFT,
) -> Sensitivity:
    """Every schedule's sensitivity to every figure of the profile that can have an effect.

    What cannot be has a record with its reason. Raises InputError, naming the file `where`, for
    cases of several points, and where nothing can be.
    """
    points = {str(case.asked.point) for case in cases}
    if len(points) > 1:
        raise InputError(
            f"{where}: sweep: sensitivity is of one point, and here are {len(points)}: --set "
            "sweep={} takes the sweep away, another --set chooses the point"
        )
    found = [_of_case(case, limits, progress, shift) for case in cases]
    if all(of.record.status == "failed" for of in found):
        raise InputError(f"{where}: {found[0].record.reason}")
    hardware = next(case.point.hardware for case in cases if isinstance(case, Case))
    return Sensitivity(title, hardware, shift, found)


def _of_case(
    case: Case | Refusal, limits: Limits, progress: Progress, shift: float
) -> ScheduleSensitivity:
    """One schedule's; without effects where it cannot be."""
    if isinstance(case, Refusal):
        return ScheduleSensitivity(case.record("replay"), [])
    title = case.schedule.title
    progress(title, 0, 0)
    try:
        base = run_case(case, limits, "replay")
    except InputError as error:
        return ScheduleSensitivity(case.refused(error).record("replay"), [])
    if base.run is None:
        return ScheduleSensitivity(base.record, [])
    varied = [
        p
        for p in parameters(case.point.hardware, shift)
        if _can_matter(p.key, case.point, base.record)
    ]
    sides = [(p.key, value) for p in varied for value in (p.down, p.up)]
    records: list[Record | None] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as cores:  # the engine holds no GIL
        for record in cores.map(lambda side: _shifted(case, limits, base, *side), sides):
            records.append(record)
            progress(title, len(records), len(sides))
    effects = [
        effect(parameter, base.record, down, up)
        for parameter, down, up in zip(varied, records[::2], records[1::2], strict=True)
    ]
    effects.sort(key=lambda e: -abs(e.time.central or 0))
    return ScheduleSensitivity(base.record, effects)


def _shifted(
    case: Case, limits: Limits, base: Outcome, key: str, value: float | None
) -> Record | None:
    """The record with one figure at `value`; None where it cannot be, or not run there."""
    if value is None:
        return None
    point = case.point
    hw = point.hardware.with_figures({key: value})
    if key.startswith(OF_THE_SAME_REPLAY) and hw.power is None:  # of which no time depends either
        assert base.run is not None
        return record_of(case.asked, point.workload, hw, base.run, base.record.engine)
    try:
        record = run_case(replace(case, point=replace(point, hardware=hw)), limits, "replay").record
    except InputError:  # a tile that no longer fits, say
        return None
    return record if record.status == "ok" else None


def _can_matter(key: str, point: Point, record: Record) -> bool:
    """Whether a figure can have an effect: it belongs to what the schedule uses."""
    if key in WITHOUT_EFFECT or (key == "power.tdp" and point.hardware.energy is None):
        return False
    if key.startswith("tensor."):
        return key == f"tensor.{point.workload.dtype}"
    if key.startswith(("links.", "calibration.links.")):
        return record.link_bytes > 0
    return True


def parameters(section: BaseModel, shift: float = SHIFT, prefix: str = "") -> Iterator[Parameter]:
    """Every number of a profile that is not 0 (from which no share of it leads away)."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from parameters(value, shift, f"{prefix}{name}.")
        elif isinstance(value, int | float) and value and value is not True:
            most = min((getattr(limit, "le", inf) for limit in field.metadata), default=inf)
            yield _parameter(f"{prefix}{name}", value, most, shift)


def _parameter(key: str, value: float, most: float, shift: float) -> Parameter:
    down, up = value / (1 + shift), value * (1 + shift)
    if isinstance(value, int):
        down, up = min(value - 1, round(down)), max(value + 1, round(up))
    up = min(up, most)
    return Parameter(key, value, down if down > 0 else None, up if up > value else None)


def effect(parameter: Parameter, base: Record, down: Record | None, up: Record | None) -> Effect:
    """The elasticities, from the record as it is and those at the two shifts."""

    def of(result: str) -> Elasticity:
        at = {
            value: record
            for value, record in (
                (parameter.down, down),
                (parameter.value, base),
                (parameter.up, up),
            )
            if value is not None and record is not None
        }

        def slope(x0: float | None, x1: float | None) -> float | None:
            if x0 == x1 or x0 not in at or x1 not in at:
                return None
            return log(getattr(at[x1], result) / getattr(at[x0], result)) / log(x1 / x0)

        first, last = min(at), max(at)
        error = _error(at[first], result) + _error(at[last], result)
        if parameter.key.startswith(OF_THE_SAME_REPLAY):
            error = 0.0
        return Elasticity(
            central=slope(first, last),
            down=slope(parameter.down, parameter.value),
            up=slope(parameter.value, parameter.up),
            noise=error / log(last / first) if error and first != last else 0.0,
        )

    return Effect(
        parameter,
        time=of("time_s"),
        energy=None if base.energy_j is None else of("energy_j"),
        hbm_bytes=of("hbm_bytes"),
    )


def _error(record: Record, result: str) -> float:
    """The estimated relative error of a result; 0 where all was replayed."""
    return (record.fast_forward or {}).get(ERRORS[result], 0.0)
