"""Interactive charts: functions from records to a Plotly figure as plain tables, one message each.

A page or an app hands them to plotly.js as they are. Colours are those of `sim.report.plots`.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import cycle
from math import log10
from typing import Any

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import amount, show
from sim.report.axes import Grid, grid_of, key_text, log_ticks, time_ends_s, value_text
from sim.report.figure import COLOURS, GREY
from sim.runs.record import KernelResult, Record

Chart = dict[str, Any]  # {"data": [...], "layout": {...}}
Trace = dict[str, Any]
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")
LEGEND_ROW = 19  # pixels
LABEL = 16  # characters of a line beside a bar
DASHES = ("solid", "dash")  # of two devices
INK, LIGHT = "#222222", "#dddddd"

# What time goes to, in words, and the causes that are told as one (`sim.machine.CAUSES`).
CAUSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "HBM": ("#0072B2", ("hbm",)),
    "L2": ("#56B4E9", ("l2", "sm_port")),
    "tensor cores": ("#D55E00", ("tensor",)),
    "vector, exp": ("#E69F00", ("vector", "exp")),
    "SRAM": ("#009E73", ("sram",)),
    "issue slots": ("#CC79A7", ("issue",)),
    "latency": ("#888888", ("hbm_latency", "l2_latency", "op_latency")),
    "power limit": ("#A6761D", ("power",)),
    "launch, start": ("#444444", ("launch", "cta_start")),
    "links, idle": ("#F0E442", ("link", "idle")),
}
MOST_TICKS = 12  # of a swept key
VISIBLE = 0.003  # of a bar: less is not to be seen, and not told
# A legend at the foot of its chart, in the order of the traces. On a telephone it has one column: a
# chart is as much higher, so that what it shows stays to be seen.
BELOW: dict[str, Any] = {
    "orientation": "h",
    "traceorder": "normal",
    "yref": "container",
    "y": 0,
    "yanchor": "bottom",
    "x": 0,
    "xref": "container",
    "font": {"size": 12},
}


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis as all charts have it."""
    return {
        "title": {"text": title},
        "gridcolor": LIGHT,
        "linecolor": GREY,
        "zeroline": False,
        "automargin": True,
        **more,
    }


def si_axis(title: str, unit: str, **more: Any) -> dict[str, Any]:
    """An axis whose ticks have decimal prefixes: 2 ms, 4 GB."""
    return axis(title, tickformat="~s", ticksuffix=unit, hoverformat=".4s", **more)


def _log_axis(title: str, values: Iterable[float], unit: str = "") -> dict[str, Any]:
    """A log axis for the values, which its title says, with ticks in round numbers."""
    known = [value for value in values if value] or [1.0]
    low, high = min(known) / 1.5, max(known) * 1.5
    ticks = log_ticks(low, high)
    return axis(
        f"{title}, log scale" if title else "log scale",
        type="log",
        tickvals=ticks,
        ticktext=_tick_texts(ticks, unit),
        range=[log10(low), log10(high)],
    )


def _tick_texts(ticks: Iterable[float], unit: str) -> list[str]:
    return [show(tick, unit) if unit else show(tick, "").strip() for tick in ticks]


def _lines_of(label: str, width: int = 24, most: int = 3) -> str:
    """A label in lines, as a text: Plotly takes some markup for markup."""
    lines = textwrap.wrap(label, width, max_lines=most, placeholder=" …") or [""]
    return "<br>".join(map(escape, lines))


def chart(title: str, traces: list[Trace], height: int = 380, **layout: Any) -> Chart:
    """A chart as all are, but for what `layout` says."""
    return {
        "data": traces,
        "layout": {
            "title": {
                "text": title,
                "x": 0,
                "xref": "container",
                "pad": {"l": 10},
                "font": {"size": 16},
            },
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
            "height": height,
            "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
            "plot_bgcolor": "white",
            "paper_bgcolor": "white",
            "hovermode": "closest",
            "legend": BELOW,
            **layout,
        },
    }


# What Plotly's bar above a chart has: nothing that sends the chart anywhere.
CONFIG: Any = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["sendChartToCloud"],
}
EMPTY: Chart = {
    "data": [],
    "layout": {"xaxis": {"visible": False}, "yaxis": {"visible": False}},
}


def colours_of(records: Iterable[Record]) -> dict[str, str]:
    """A colour for each schedule, in the order in which they come."""
    schedules = dict.fromkeys(record.schedule for record in records)
    return dict(zip(schedules, cycle(COLOURS), strict=False))


# One point: what the schedules come to beside one another.


def time_by_cause(records: list[Record]) -> Chart:
    """A bar a schedule, as long as its time, split by what held it back."""
    ran = [record for record in records if record.time_s]
    names = [_lines_of(record.schedule, LABEL) for record in ran]
    traces = []
    for words, (colour, causes) in CAUSES.items():
        times_s = [
            sum(record.bottleneck_shares.get(cause, 0.0) for cause in causes) * (record.time_s or 0)
            for record in ran
        ]
        shares = [t / (r.time_s or 1) for t, r in zip(times_s, ran, strict=True)]
        if any(share > VISIBLE for share in shares):
            traces.append(
                _bar(words, times_s, names, colour)
                | {"customdata": shares, "hovertemplate": "%{y}: %{x}s, %{customdata:.0%}"}
            )
    totals = [show(record.time_s or 0, "s") for record in ran]
    return _bars("Time, by what held it back", traces, ran, totals, "s")


def hbm_traffic(records: list[Record]) -> Chart:
    """A bar a schedule, as long as its HBM bytes: read and written."""
    ran = [record for record in records if record.hbm_bytes is not None]
    names = [_lines_of(record.schedule, LABEL) for record in ran]
    traces = [
        _bar("read", [r.hbm_read_bytes or 0 for r in ran], names, COLOURS[0]),
        _bar("written", [r.hbm_write_bytes or 0 for r in ran], names, COLOURS[4]),
    ]
    for trace in traces:
        trace["hovertemplate"] = "%{y}: %{x}B"
    totals = [show(record.hbm_bytes or 0, "B") for record in ran]
    return _bars("HBM traffic", traces, ran, totals, "B")


def _bar(name: str, values: Sequence[float], names: list[str], colour: str) -> Trace:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": values,
        "y": names,
        "marker": {"color": colour},
    }


def _bars(
    title: str, traces: list[Trace], ran: list[Record], totals: list[str], unit: str
) -> Chart:
    """Bars stacked to the right, the first schedule on top, each total at its end."""
    names = [_lines_of(record.schedule, LABEL) for record in ran]
    ends = [sum(trace["x"][row] for trace in traces) for row in range(len(ran))]
    labels = {
        "type": "scatter",
        "mode": "text",
        "x": ends,
        "y": names,
        "text": [f" {total}" for total in totals],
        "textposition": "middle right",
        "hoverinfo": "skip",
        "showlegend": False,
        "cliponaxis": False,
    }
    return chart(
        title,
        [*traces, labels],
        height=150 + 34 * len(ran) + LEGEND_ROW * len(traces),
        barmode="stack",
        bargap=0.35,
        xaxis=si_axis("", unit, range=[0, 1.35 * max(ends, default=1.0)], nticks=5),
        yaxis=axis("", autorange="reversed", type="category", showgrid=False),
    )


def roofline(records: list[Record], *devices: HardwareProfile) -> Chart:
    """Each kernel's FLOP/s against its FLOPs a byte of HBM, under the roof of each device."""
    colours = colours_of(records)
    traces: list[Trace] = []
    intensities: list[float] = []
    for (schedule, colour), symbol in zip(colours.items(), cycle(SYMBOLS), strict=False):
        kernels = [
            kernel
            for record in records
            if record.schedule == schedule
            for kernel in record.kernels
            if kernel.flops and kernel.hbm_read_bytes + kernel.hbm_write_bytes
        ]
        if kernels:
            intensities += [_intensity(kernel) for kernel in kernels]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": _lines_of(schedule),
                    "x": [_intensity(kernel) for kernel in kernels],
                    "y": [kernel.flops / kernel.time_s for kernel in kernels],
                    "text": [kernel.name for kernel in kernels],
                    "hovertemplate": "%{text}: %{y}FLOP/s at %{x} FLOPs a byte",
                    "marker": {"color": colour, "symbol": symbol, "size": 12},
                }
            )
    dtype = str(next(r for r in records if r.time_s).workload["dtype"])
    peaks = [hw.matmul_flops_per_s(dtype) for hw in devices]
    ridges = [peak / hw.hbm.bandwidth for peak, hw in zip(peaks, devices, strict=True)]
    low, high = min([*intensities, *ridges]) / 3, max([*intensities, *ridges]) * 3
    roofs = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": _lines_of(
                f"roof of {hw.title}: {show(peak, 'FLOP/s')} {dtype}, "
                f"HBM {show(hw.hbm.bandwidth, 'B/s')}",
                width=48,
            ),
            "x": [low, ridge, high],
            "y": [low * hw.hbm.bandwidth, peak, peak],
            "hovertemplate": "%{y}FLOP/s at %{x} FLOPs a byte<extra></extra>",
            "line": {"color": GREY, "dash": dash},
        }
        for hw, peak, ridge, dash in zip(devices, peaks, ridges, DASHES, strict=False)
    ]
    return chart(
        "Roofline, a mark a kernel",
        [*roofs, *traces],
        height=320 + LEGEND_ROW * len([*roofs, *traces]),
        xaxis=_log_axis("FLOPs a byte of HBM", [low, high]),
        yaxis=_log_axis("", [*peaks, *(y for t in traces for y in t["y"])], "FLOP/s"),
    )


def _intensity(kernel: KernelResult) -> float:
    return kernel.flops / (kernel.hbm_read_bytes + kernel.hbm_write_bytes)


TRACKS = (  # of a timeline: its name here, its field, its colour, and whether it is shown at first
    ("HBM bandwidth", "hbm_utilisation", COLOURS[0], True),
    ("tensor rate", "tensor_utilisation", COLOURS[1], True),
    ("L2 hit rate of loads", "l2_hit_rate", COLOURS[2], "legendonly"),
)


def timeline(records: list[Record]) -> Chart:
    """A panel a schedule: bandwidth and tensor rate in use over time, kernel by kernel."""
    ran = [record for record in records if record.timeline]
    traces: list[Trace] = []
    layout: dict[str, Any] = {"shapes": [], "annotations": []}
    ends_s = time_ends_s([record.time_s or 0.0 for record in ran] or [1.0])
    for row, (record, end_s) in enumerate(zip(ran, ends_s, strict=False)):
        number = str(row + 1) if row else ""
        traces += _tracks(record, number)
        layout[f"xaxis{number}"] = si_axis(
            "time" if row == len(ran) - 1 else "",
            "s",
            range=[0, end_s],
            anchor=f"y{number}",
        )
        layout[f"yaxis{number}"] = axis(
            _lines_of(record.schedule, 14, 2),
            range=[0, 1.2],
            tickvals=[0, 0.5, 1],
            tickformat=".0%",
            anchor=f"x{number}",
        )
        if len(record.timeline) > 1:
            for part in record.timeline:
                _name_kernel(layout, part.kernel, part.start_s, number)
    layout["grid"] = {"rows": max(len(ran), 1), "columns": 1, "pattern": "independent", "ygap": 0.3}
    height = 150 + 150 * max(len(ran), 1)
    return chart("In use over time, of the vendor's figure", traces, height, **layout)


def _tracks(record: Record, number: str) -> list[Trace]:
    """A schedule's tracks on the panel of that number; the first panel's stand in the legend."""
    traces: list[Trace] = []
    for name, track, colour, visible in TRACKS:
        x, y = _edges(record, track)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "legendgroup": name,
                "showlegend": not number,
                "visible": visible,
                "x": x,
                "y": y,
                "xaxis": f"x{number}",
                "yaxis": f"y{number}",
                "line": {"shape": "hv", "width": 1.4, "color": colour},
                "hovertemplate": "%{y:.0%} at %{x}s",
            }
        )
    return traces


def _edges(record: Record, track: str) -> tuple[list[float | None], list[float | None]]:
    """Edges and values of all kernels' bins, one after another, with gaps between kernels.

    Bins that repeat the one before are left out: a value holds until the next.
    """
    x: list[float | None] = []
    y: list[float | None] = []
    for part in record.timeline:
        last = None
        values = getattr(part, track)
        for number, value in enumerate(values):
            if value != last:
                x.append(part.start_s + number * part.bin_width_s)
                y.append(value)
                last = value
        x += [min(part.start_s + len(values) * part.bin_width_s, record.time_s or 0), None]
        y += [last, None]
    return x, y


def _name_kernel(layout: dict[str, Any], kernel: str, start_s: float, number: str) -> None:
    """A kernel's name where it starts, behind a line."""
    place = {"xref": f"x{number}", "yref": f"y{number}"}
    line = {"color": GREY, "width": 1, "dash": "dot"}
    layout["shapes"].append(
        {"type": "line", "x0": start_s, "x1": start_s, "y0": 0, "y1": 1.2, "line": line, **place}
    )
    layout["annotations"].append(
        {
            "text": kernel,
            "x": start_s,
            "y": 1.2,
            "showarrow": False,
            "xanchor": "left",
            "yanchor": "top",
            "font": {"size": 11},
            **place,
        }
    )


def memory(records: list[Record], *devices: HardwareProfile) -> Chart:
    """HBM allocated over time, a line a schedule, against the capacity of each device."""
    ran = [record for record in records if record.memory]
    traces: list[Trace] = []
    for schedule, colour in colours_of(records).items():
        for record in (r for r in ran if r.schedule == schedule):
            changes = record.memory
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": _lines_of(schedule),
                    "x": [*(c["time_s"] for c in changes), record.time_s],
                    "y": [*(c["in_use_bytes"] for c in changes), changes[-1]["in_use_bytes"]],
                    "text": [*(c["what"] for c in changes), "end"],
                    "hovertemplate": "%{text}: %{y}B from %{x}s on",
                    "line": {"shape": "hv", "color": colour},
                    "marker": {"size": 5},
                }
            )
    end_s = max((record.time_s or 0.0 for record in ran), default=1.0)
    capacities = sorted({hw.hbm.capacity for hw in devices})
    lines = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"capacity, {show(capacity, 'B')}",
            "x": [0, end_s],
            "y": [capacity] * 2,
            "hoverinfo": "skip",
            "line": {"color": GREY, "dash": dash},
        }
        for capacity, dash in zip(capacities, reversed(DASHES), strict=False)
    ]
    return chart(
        "HBM allocated over time",
        [*traces, *lines],
        height=320 + LEGEND_ROW * len([*lines, *traces]),
        xaxis=si_axis("time", "s"),
        yaxis=_log_axis("", [*capacities, *(y for t in traces for y in t["y"])], "B"),
    )


# A sweep: one figure of every record.


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
            "name": _lines_of(schedule),
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
        yaxis=_log_axis("", [value(record) or 0 for record in ran], unit),
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
    scale = _log_axis(key, of_value, unit) if wide else si_axis(key, unit) if unit else axis(key)
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
            "colorbar": bar | {"ticktext": _tick_texts(ticks, unit)},
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
                "name": _lines_of(schedule),
                "xaxis": f"x{number}",
                "yaxis": f"y{number}",
            }
        )
        below = key_text(grid.keys[0]) if row == len(schedules) - 1 else ""
        layout[f"xaxis{number}"] = axis(below, type="category", showgrid=False)
        layout[f"yaxis{number}"] = axis(key_text(grid.keys[1]), type="category", showgrid=False)
        layout["annotations"].append(
            {"text": _lines_of(schedule), "x": 0, "y": 1, "xref": f"x{number} domain",
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
