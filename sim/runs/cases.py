"""What a scenario asks, case by case: one schedule on one point, or why there can be none.

What is wrong with one schedule or at one point of a sweep is theirs alone: the others are answered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sim.device.run import EngineName
from sim.inputs.files import InputError
from sim.inputs.workload import AttentionWorkload
from sim.runs.record import Asked, Record, flat
from sim.runs.recorded import record_of_none
from sim.runs.scenario import Point, ScenarioText, check_tables, make_point, variations
from sim.schedules import title_of
from sim.schedules.base import Schedule
from sim.schedules.own import CodeRefusedError


@dataclass(frozen=True)
class Case:
    """One schedule on one point."""

    point: Point
    schedule: Schedule

    @property
    def asked(self) -> Asked:
        """What is asked, in the scenario's words."""
        return self.point.asked(self.schedule)

    def refused(self, why: InputError) -> "Refusal":
        """The same, which cannot be."""
        return Refusal(self.asked, self.point.workload, str(why), str(why))


@dataclass(frozen=True)
class Refusal:
    """What is asked that cannot be, and why: the `reason` in a row, the `message` of it alone.

    The workload is None where tables are wrong; then the message names the file, as the row's need
    not.
    """

    asked: Asked
    workload: AttentionWorkload | None
    reason: str
    message: str

    def record(self, engine: EngineName) -> Record:
        """What is said of it."""
        return record_of_none(self.asked, self.workload, "failed", self.reason, engine)


def cases_of(text: ScenarioText) -> list[Case | Refusal]:
    """Every schedule of every point, in order; raises InputError where none can be."""
    check_tables(text.data, text.where)
    found = [
        case
        for swept, varied in variations(text.data, text.where)
        for case in _cases_at(text, swept, varied)
    ]
    refusals = [case for case in found if isinstance(case, Refusal)]
    if len(refusals) == len(found):
        raise InputError(refusals[0].message)
    return found


def _cases_at(
    text: ScenarioText, swept: dict[str, Any], varied: Mapping[str, Any]
) -> Iterator[Case | Refusal]:
    """Those of a point; `varied` are its tables, of which a schedule's may be wrong alone."""

    def point_of(schedules: list[Mapping[str, Any]]) -> Point:
        tables = {**varied, "schedule": schedules}
        return make_point(tables, swept, text.where, text.folder, text.allow_code)

    try:
        point = point_of(varied["schedule"])
    except CodeRefusedError:
        raise
    except InputError:
        for table in varied["schedule"]:
            try:
                alone = point_of([table])
            except InputError as error:
                asked = _as_written(table, varied["hardware"], swept)
                reason = str(error).removeprefix(f"{text.where}: ")
                yield Refusal(asked, None, reason, str(error))
            else:
                yield Case(alone, *alone.schedules)
    else:
        for schedule in point.schedules:
            yield Case(point, schedule)


def _as_written(
    schedule: Mapping[str, Any], hardware: Mapping[str, Any], swept: dict[str, Any]
) -> Asked:
    """What tables ask that cannot be."""
    options, overrides = dict(schedule), dict(hardware)
    options.pop("label", None)
    profile = overrides.pop("profile", None)
    return Asked(title_of(schedule), options, swept, str(profile), flat(overrides))
