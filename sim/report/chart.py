"""What all interactive charts share: a Plotly figure as plain tables, its axes and colours.

A page or an app hands them to plotly.js as they are. Colours are those of `sim.report.figure`.
"""

import textwrap
from collections.abc import Iterable
from html import escape
from itertools import cycle
from math import log10
from typing import Any

from sim.inputs.units import show
from sim.report.axes import log_ticks
from sim.report.figure import COLOURS, GREY
from sim.runs.record import Record

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
        "title": {"text": title, "standoff": 12},
        "gridcolor": LIGHT,
        "linecolor": GREY,
        "zeroline": False,
        "automargin": True,
        **more,
    }


def si_axis(title: str, unit: str, **more: Any) -> dict[str, Any]:
    """An axis whose ticks have decimal prefixes: 2 ms, 4 GB."""
    return axis(title, tickformat="~s", ticksuffix=unit, hoverformat=".4s", **more)


def log_axis(title: str, values: Iterable[float], unit: str = "") -> dict[str, Any]:
    """A log axis for the values, which its title says, with ticks in round numbers."""
    known = [value for value in values if value] or [1.0]
    low, high = min(known) / 1.5, max(known) * 1.5
    ticks = log_ticks(low, high)
    return axis(
        f"{title}, log scale" if title else "log scale",
        type="log",
        tickvals=ticks,
        ticktext=tick_texts(ticks, unit),
        range=[log10(low), log10(high)],
    )


def tick_texts(ticks: Iterable[float], unit: str) -> list[str]:
    """What stands at ticks: numbers with decimal prefixes."""
    return [show(tick, unit) if unit else show(tick, "").strip() for tick in ticks]


def lines_of(label: str, width: int = 24, most: int = 3) -> str:
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
