"""A run or a sweep as one HTML page that holds all it needs and opens offline.

The answer in a sentence, the table, charts to zoom and point at (Plotly, whose script is in the
page), how near predictions of these schedules were, and what was asked: scenario and profile. What
it needs is handed to it (sim/runs/again.py): it runs nothing.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from plotly.offline import get_plotlyjs

from sim.inputs.files import save_text
from sim.report import charts, one_sm, swept_charts, tile_walk
from sim.report.answer import answer
from sim.report.asked import layers_in_words
from sim.report.chart import CONFIG, Chart
from sim.report.columns import causes_of, columns_of, kernels_of, with_kernels
from sim.report.known_errors import KnownError, MeasuredError, known_errors, measured_errors
from sim.report.notes import notes, reasons, rough
from sim.report.table import sections_of
from sim.runs.again import WholePoint
from sim.runs.record import Record
from sim.runs.scenario import ScenarioText

CHARTED = 8  # points of a sweep of which the page has all charts


def save_page(
    text: ScenarioText, records: list[Record], charted: list[WholePoint], path: Path
) -> None:
    """Write the page of the records that `text` came to, whole or not at all."""
    save_text(page(text, records, charted), path)


def template(name: str, package: str) -> Template:
    """The template of that name that lies in a package; all stand in the frame that lies here."""
    loaders = [PackageLoader(one, ".") for one in (package, "sim.report")]
    environment = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def page(text: ScenarioText, records: list[Record], charted: list[WholePoint]) -> str:
    """The page as HTML, with all charts of the points that are `charted`."""
    ran = [record for record in records if record.time_s]
    points = len({str(record.point) for record in records})
    swept = {}
    if points > 1 and ran:
        swept = {
            "swept_time": swept_charts.swept_time(records),
            "swept_traffic": swept_charts.swept_traffic(records),
        }
    inside = next((_inside(one) for one in charted if one.inside), [])
    return template("page.html", "sim.report").render(
        title=text.title,
        answer=answer(records),
        tables={"results": columns_of(records), "causes": causes_of(records)},
        records=records,
        kernels_of=kernels_of,
        with_kernels=with_kernels(records),
        notes=[*rough(records), *layers_in_words(text), *notes(records), *reasons(records)],
        points=points,
        shown=[swept_charts.point_words(one.values) for one in charted],
        telling=next((number for number, one in enumerate(charted) if one.inside), 0),
        swept=swept,
        inside=[one["schedule"] for one in inside],
        fastest=_fastest(records),
        config=script(CONFIG),
        charts=script(
            {"swept": swept, "points": [_charts(one) for one in charted], "inside": inside}
        ),
        errors=_errors(records),
        measured=_measured(records),
        scenario=tomli_w.dumps(text.data),
        devices={_device(one): sections_of(one.hardware) for one in charted},
        versions=ran[0].versions | {"plotly": version("plotly")} if ran else {},
        engine=records[0].engine,
        plotly=get_plotlyjs(),
    )


def _charts(point: WholePoint) -> dict[str, Chart]:
    """A point's charts, by the names that the page gives their places."""
    return {
        "time": charts.time_by_cause(point.records),
        "traffic": charts.hbm_traffic(point.records),
        "roofline": charts.roofline(point.records, point.hardware),
        "timeline": charts.timeline(point.records),
        "memory": charts.memory(point.records, point.hardware),
    }


def _device(point: WholePoint) -> str:
    """The title of a point's device, and what is swept of it."""
    changes = {k: v for k, v in point.values.items() if k.startswith("hardware.")}
    changes.pop("hardware.profile", None)
    with_changes = f", {swept_charts.point_words(changes)}" if changes else ""
    return point.hardware.title + with_changes


def _errors(records: list[Record]) -> dict[str, list[KnownError]]:
    """What is known of each schedule's error, by its title; of the records' GPU first."""
    return {
        record.schedule: known_errors(record.options, record.hardware)
        for record in records
        if record.options is not None
    }


def _measured(records: list[Record]) -> dict[str, list[MeasuredError]]:
    """What is known of each schedule's error in the regimes of its records, by its title."""
    found: dict[str, dict[MeasuredError, None]] = {}
    for record in records:
        if record.options is not None:
            known = measured_errors(record.options, record.hardware, record.workload)
            found.setdefault(record.schedule, {}).update(dict.fromkeys(known))
    return {schedule: list(known) for schedule, known in found.items() if known}


def _inside(point: WholePoint) -> list[dict[str, Any]]:
    """What was watched of one SM, in words and as charts, schedule by schedule."""
    return [
        {
            "schedule": title,
            "said": one_sm.said(seen),
            "walked": tile_walk.said(seen),
            "charts": {"sm": one_sm.one_sm(seen), **tile_walk.tile_walk(seen)},
        }
        for title, seen in point.inside.items()
    ]


def _fastest(records: list[Record]) -> str:
    """The schedule of the fastest record."""
    ran = [record for record in records if record.time_s]
    return min(ran, key=lambda record: record.time_s or 0.0).schedule if ran else ""


def script(value: Any) -> str:
    """JSON that may stand in a page's script: nothing in it can end the script."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
