"""Interactive charts of a sweep: one figure of every record, over the swept keys."""

from collections.abc import Callable, Mapping
from itertools import cycle
from math import log10
from typing import Any

from sim.inputs.units import amount, show
from sim.report.axes import Grid, grid_of, key_text, log_ticks, value_text
from sim.report.chart import (
    MOST_TICKS,
    SYMBOLS,
    Chart,
    Trace,
    axis,
    chart,
    colours_of,
    lines_of,
    log_axis,
    si_axis,
    tick_texts,
)
from sim.runs.record import Record


def swept_time(records: list[Record]) -> Chart:
    """Time over what is swept."""
    return _swept("Time", records, lambda record: record.time_s, "s")


def swept_traffic(records: list[Record]) -> Chart:
    """HBM bytes over what is swept."""
    return _swept("HBM traffic", records, lambda record: record.hbm_bytes, "B")


def _swept(
    title: str, records: list[Record], value: Callable[[Record], float | None], unit: str
) -> Chart:
    """`value` over a swept key, which a menu chooses where there are several.

    Points that differ in that key's number alone are joined by lines. Of two keys it is a heat map.
    """
    if grid := grid_of(records):
        return _heat_maps(title, grid, value, unit)
    ran = [record for record in records if value(record)]
    keys = list(dict.fromkeys(key for record in records for key in record.point))
    axes = {key: _key_axis(key, ran) for key in keys}
    colours = colours_of(records)
    symbols = dict(zip(colours, cycle(SYMBOLS), strict=False))
    # Those that come later are smaller, so that one at the same place hides no other.
    sizes = {schedule: max(7, 12 - 2 * row) for row, schedule in enumerate(colours)}
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "markers" if axes[key].get("type") == "category" else "lines+markers",
            "name": lines_of(schedule),
            "visible": key == keys[0],
            "hovertemplate": "%{text}<br>%{y:.4s}" + unit,
            "marker": {"color": colour, "symbol": symbols[schedule], "size": sizes[schedule]},
            "line": {"color": colour, "width": 1.5},
            **_lines([record for record in ran if record.schedule == schedule], key, value),
        }
        for key in keys
        for schedule, colour in colours.items()
    ]
    buttons = [
        {
            "label": key,
            "method": "update",
            "args": [
                {"visible": [other == key for other in keys for _ in colours]},
                {"xaxis": axes[key]},
            ],
        }
        for key in keys
    ]
    menus = {"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
    return chart(
        title,
        traces,
        xaxis=axes[keys[0]] if keys else axis(""),
        yaxis=log_axis("", [value(record) or 0 for record in ran], unit),
        updatemenus=[menus] if len(keys) > 1 else [],
    )


def _lines(own: list[Record], key: str, value: Callable[[Record], float | None]) -> Trace:
    """Coordinates and texts of a schedule's records, a gap between lines."""
    lines: dict[str, list[Record]] = {}
    for record in own:
        rest = str([(k, v) for k, v in record.point.items() if k != key])
        lines.setdefault(rest, []).append(record)
    x: list[Any] = []
    y: list[float | None] = []
    text: list[str] = []
    for line in lines.values():
        x += [*(_coordinate(record.point.get(key)) for record in line), None]
        y += [*(value(record) for record in line), None]
        text += [*(point_words(record.point) for record in line), ""]
    return {"x": x, "y": y, "text": text}


def _coordinate(value: Any) -> Any:
    """A number, also of a quantity such as "25 MiB"; else the value as a text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    known = amount(value)
    return known[0] if known else str(value)


def _key_axis(key: str, records: list[Record]) -> dict[str, Any]:
    """The axis of a swept key: numbers, on a log scale where they span a decade, or categories.

    Few values are its ticks, as they were written.
    """
    of_value = {_coordinate(record.point.get(key)): record.point.get(key) for record in records}
    if not of_value or not all(isinstance(value, int | float) for value in of_value):
        return axis(key, type="category")
    wide = min(of_value) > 0 and max(of_value) >= 8 * min(of_value)
    known = amount(records[0].point.get(key))
    unit = known[1] if known else ""
    scale = log_axis(key, of_value, unit) if wide else si_axis(key, unit) if unit else axis(key)
    if len(of_value) <= MOST_TICKS:
        few = sorted(of_value)
        scale |= {"tickvals": few, "ticktext": [value_text(of_value[value]) for value in few]}
    return scale


def _heat_maps(title: str, grid: Grid, value: Callable[[Record], float | None], unit: str) -> Chart:
    """A panel a schedule on one scale of colours; what did not run is blank, with the reason."""
    schedules = list(dict.fromkeys(schedule for schedule, *_ in grid.cells))
    known = [shown for record in grid.cells.values() if (shown := value(record))] or [1.0]
    ticks = log_ticks(min(known) / 1.1, max(known) * 1.1)
    bar = {"title": {"text": "log scale"}, "tickvals": [*map(log10, ticks)]}
    layout: dict[str, Any] = {
        "coloraxis": {
            "colorscale": "Viridis",
            "cmin": log10(min(known) / 1.01),
            "cmax": log10(max(known) * 1.01),
            "colorbar": bar | {"ticktext": tick_texts(ticks, unit)},
        },
        "grid": {"rows": len(schedules), "columns": 1, "pattern": "independent", "ygap": 0.4},
        "annotations": [],
    }
    traces: list[Trace] = []
    for row, schedule in enumerate(schedules):
        number = str(row + 1) if row else ""
        traces.append(
            _heat_map(grid.of(schedule), grid, value, unit)
            | {
                "name": lines_of(schedule),
                "xaxis": f"x{number}",
                "yaxis": f"y{number}",
            }
        )
        below = key_text(grid.keys[0]) if row == len(schedules) - 1 else ""
        layout[f"xaxis{number}"] = axis(below, type="category", showgrid=False)
        layout[f"yaxis{number}"] = axis(key_text(grid.keys[1]), type="category", showgrid=False)
        layout["annotations"].append(
            {"text": lines_of(schedule), "x": 0, "y": 1, "xref": f"x{number} domain",
             "yref": f"y{number} domain", "xanchor": "left", "yanchor": "bottom",
             "showarrow": False}
        )  # fmt: skip
    height = 140 + len(schedules) * (70 + 34 * len(grid.rows))
    return chart(title, traces, height, **layout)


def _heat_map(
    cells: list[list[Record | None]],
    grid: Grid,
    value: Callable[[Record], float | None],
    unit: str,
) -> Trace:
    """A schedule's cells, each with its figure or why there is none."""

    def text(record: Record | None) -> str:
        shown = value(record) if record else None
        return show(shown, unit) if shown else record.status if record else ""

    def height(record: Record | None) -> float | None:
        shown = value(record) if record else None
        return log10(shown) if shown else None

    return {
        "type": "heatmap",
        "x": [*map(value_text, grid.columns)],
        "y": [*map(value_text, grid.rows)],
        "z": [[*map(height, row)] for row in cells],
        "text": [[*map(text, row)] for row in cells],
        "texttemplate": "%{text}",
        "hovertemplate": "{} %{{x}}, {} %{{y}}: %{{text}}".format(*map(key_text, grid.keys)),
        "hoverongaps": False,
        "coloraxis": "coloraxis",
        "xgap": 1,
        "ygap": 1,
    }


def point_words(point: Mapping[str, Any]) -> str:
    """A swept point, such as "seq_len 4,096, l2.capacity 25 MiB"."""
    return ", ".join(
        f"{key.split('.', 1)[-1]} {f'{value:,}' if type(value) is int else value}"
        for key, value in point.items()
    )
