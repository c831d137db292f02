"""What a sweep is to give: a record of every schedule on every point, each under its address."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sim.device.run import EngineName
from sim.inputs.files import InputError
from sim.runs.address import address
from sim.runs.record import Asked, flat
from sim.runs.scenario import Limits, Point, ScenarioText, check_titles, make_point, variations
from sim.schedules import title_of
from sim.schedules.base import Schedule
from sim.schedules.own import CodeRefusedError


@dataclass(frozen=True)
class Task:
    """One schedule to be replayed on one point, and the address of its record."""

    key: str
    point: Point
    schedule: Schedule


@dataclass(frozen=True)
class Wanted:
    """One record that a sweep is to give: of a task, or with the problem why there is none."""

    asked: Asked
    task: Task | None
    problem: str = ""


def wanted_of(text: ScenarioText, engine: EngineName, limits: Limits) -> Iterator[Wanted]:
    """Every schedule of every point, in order; raises InputError for what is wrong in all."""

    def point_of(tables: Mapping[str, Any], swept: dict[str, Any]) -> Point:
        return make_point(tables, swept, text.where, text.folder, text.allow_code)

    check_titles([title_of(table) for table in text.data["schedule"]], text.where)
    for swept, varied in variations(text.data, text.where):
        try:
            points = [point_of(varied, swept)]
        except InputError:  # of one schedule alone, perhaps
            points = []
        for table in [] if points else varied["schedule"]:
            try:
                points.append(point_of({**varied, "schedule": [table]}, swept))
            except CodeRefusedError:
                raise
            except InputError as error:
                yield Wanted(_as_written(table, varied["hardware"], swept), None, str(error))
        for point in points:
            for schedule in point.schedules:
                task = Task(address(point, schedule, engine, limits), point, schedule)
                yield Wanted(point.asked(schedule), task)


def _as_written(
    schedule: Mapping[str, Any], hardware: Mapping[str, Any], swept: dict[str, Any]
) -> Asked:
    """What tables ask that cannot be."""
    options, overrides = dict(schedule), dict(hardware)
    options.pop("label", None)
    profile = overrides.pop("profile", None)
    return Asked(title_of(schedule), options, swept, str(profile), flat(overrides))
