"""A run or a sweep as one HTML page that holds all it needs and opens offline.

The answer in a sentence, the table, charts to zoom and point at (Plotly, whose script is in the
page), how near predictions of these schedules were, and what was asked: scenario and profile.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from sim.inputs.files import save_text
from sim.inputs.hardware import HardwareProfile
from sim.report import charts
from sim.report.answer import answer
from sim.report.known_errors import KnownError, known_errors
from sim.report.table import columns_of, sections_of, skipped, with_kernels
from sim.runs.again import replayed_again
from sim.runs.job import Progress
from sim.runs.record import Record
from sim.runs.scenario import ScenarioText, variations
from sim.schedules import title_of

CHARTED = 8  # points of a sweep of which the page has all charts


@dataclass(frozen=True)
class Shown:
    """A point of which the page has all charts: its device, and a record a schedule."""

    values: dict[str, Any]  # the swept keys
    hardware: HardwareProfile
    records: list[Record]

    @property
    def device(self) -> str:
        """The device's title, and what is swept of it."""
        changes = {k: v for k, v in self.values.items() if k.startswith("hardware.")}
        changes.pop("hardware.profile", None)
        with_changes = f", {charts.point_words(changes)}" if changes else ""
        return self.hardware.title + with_changes

    def charts(self) -> dict[str, charts.Chart]:
        """By the names that the page gives their places."""
        return {
            "time": charts.time_by_cause(self.records),
            "traffic": charts.hbm_traffic(self.records),
            "roofline": charts.roofline(self.records, self.hardware),
            "timeline": charts.timeline(self.records),
            "memory": charts.memory(self.records, self.hardware),
        }


def save_page(
    text: ScenarioText, records: list[Record], path: Path, progress: Progress = lambda *_: None
) -> None:
    """Write the page of the records that `text` came to, whole or not at all.

    Records of a store have no timelines: those of points that are charted are replayed.
    """
    save_text(page(text, records, progress), path)


def page(text: ScenarioText, records: list[Record], progress: Progress = lambda *_: None) -> str:
    """The page as HTML."""
    points: dict[str, list[Record]] = {}
    for record in records:
        points.setdefault(_address(record.point), []).append(record)
    shown = list(_shown(text, points, progress))
    ran = [record for record in records if record.time_s]
    swept = {}
    if len(points) > 1 and ran:
        swept = {
            "swept_time": charts.swept_time(records),
            "swept_traffic": charts.swept_traffic(records),
        }
    environment = Environment(
        loader=PackageLoader("sim.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=text.data.get("title") or text.name,
        answer=answer(records),
        columns=columns_of(records),
        records=records,
        with_kernels=with_kernels(records),
        notes=skipped(records),
        points=len(points),
        shown=[charts.point_words(one.values) for one in shown],
        telling=_telling(shown),
        swept=swept,
        charts=_script({"swept": swept, "points": [one.charts() for one in shown]}),
        errors=_errors(records),
        scenario=tomli_w.dumps(text.data),
        devices={one.device: sections_of(one.hardware) for one in shown},
        versions=ran[0].versions | {"plotly": version("plotly")} if ran else {},
        engine=records[0].engine,
        plotly=get_plotlyjs(),
    )


def _address(point: dict[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def _shown(
    text: ScenarioText, points: dict[str, list[Record]], progress: Progress
) -> Iterator[Shown]:
    """The points where something ran, or as many of them as the page has room for."""
    ran = [address for address, own in points.items() if any(record.time_s for record in own)]
    room = min(CHARTED, len(ran))
    chosen = {ran[number * (len(ran) - 1) // max(room - 1, 1)] for number in range(room)}
    for swept, varied in variations(text.data, text.where):
        if (address := _address(swept)) in chosen:
            chosen.remove(address)
            tables = {title_of(table): table for table in varied["schedule"]}
            replayed = {
                record.schedule: replayed_again(
                    record, {**varied, "schedule": [tables[record.schedule]]}, text, progress
                )
                for record in points[address]
                if record.time_s
            }
            own = [replayed[r.schedule][0] if r.time_s else r for r in points[address]]
            hardware = next(hw for _, hw in replayed.values())
            yield Shown(swept, hardware, own)


def _errors(records: list[Record]) -> dict[str, list[KnownError]]:
    """What is known of each schedule's error, by its title; of the records' GPU first."""
    return {
        record.schedule: known_errors(record.options, record.hardware)
        for record in records
        if record.options is not None
    }


def _telling(shown: list[Shown]) -> int:
    """The number of the last point where most schedules ran."""
    ran = [sum(record.status == "ok" for record in one.records) for one in shown]
    return max(range(len(ran)), key=lambda number: (ran[number], number), default=0)


def _script(value: Any) -> str:
    """JSON that may stand in a page's script: nothing in it can end the script."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
