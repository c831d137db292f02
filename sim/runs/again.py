"""Points of a run or a sweep with all that a record can say, and their devices.

A store leaves timelines out: records that lack theirs are replayed.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

from sim.engine.watched import Watched
from sim.inputs.hardware import HardwareProfile
from sim.runs.inside import inside_of
from sim.runs.job import Progress, run_scenario
from sim.runs.record import Record
from sim.runs.scenario import Scenario, ScenarioText, variations
from sim.schedules import title_of


@dataclass(frozen=True)
class WholePoint:
    """A point where something ran: the swept keys, its device, and a whole record a schedule.

    `inside` is what was watched of its schedules, by their titles; of one of several points alone.
    """

    values: dict[str, Any]
    hardware: HardwareProfile
    records: list[Record]
    inside: dict[str, Watched]


def whole_points(
    text: ScenarioText,
    records: list[Record],
    most: int,
    progress: Progress = lambda *_: None,
) -> list[WholePoint]:
    """The points where something ran or, of more, `most` of them, evenly spread.

    `records` are all that the scenario `text` came to. The last of them where most schedules ran
    is looked into. Raises InputError as a run does.
    """
    by_point: dict[str, list[Record]] = {}
    for record in records:
        by_point.setdefault(_address(record.point), []).append(record)
    ran = [address for address, own in by_point.items() if any(record.time_s for record in own)]
    room = min(most, len(ran))
    chosen = [ran[number * (len(ran) - 1) // max(room - 1, 1)] for number in range(room)]
    counts = [sum(bool(record.time_s) for record in by_point[address]) for address in chosen]
    looked_into = max(zip(counts, range(room), chosen, strict=True), default=(0, 0, ""))[2]
    found = []
    for swept, varied in variations(text.data, text.where):
        if (address := _address(swept)) in chosen:
            chosen.remove(address)
            look = address == looked_into
            found.append(_whole_point(text, swept, varied, by_point[address], progress, look))
    return found


def _address(point: dict[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def _whole_point(
    text: ScenarioText,
    swept: dict[str, Any],
    varied: dict[str, Any],
    records: list[Record],
    progress: Progress,
    look: bool,
) -> WholePoint:
    """A point's records; `varied` are its tables, of which a schedule may be wrong alone."""
    tables = {title_of(table): table for table in varied["schedule"]}
    ran = {
        record.schedule: replace(
            text, data={**varied, "schedule": [tables[record.schedule]]}
        ).scenario()
        for record in records
        if record.time_s
    }
    whole = [
        _with_timeline(record, ran[record.schedule], progress) if record.time_s else record
        for record in records
    ]
    (point,) = next(iter(ran.values())).points
    inside = {}
    for title, scenario in ran.items() if look else ():
        progress(f"{title}, one SM", 0, 0)
        inside[title] = inside_of(*scenario.points)
    return WholePoint(swept, point.hardware, whole, inside)


def _with_timeline(record: Record, scenario: Scenario, progress: Progress) -> Record:
    """The record, replayed unless it has its timeline; the scenario is of its schedule alone."""
    if record.timeline:
        return record
    (outcome,) = run_scenario(scenario, record.engine, progress)
    return replace(outcome.record, point=record.point)
