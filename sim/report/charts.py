"""Interactive charts of one point: functions from records to a `chart`, one message each."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import show
from sim.report.axes import time_ends_s
from sim.report.chart import (
    CAUSES,
    DASHES,
    LABEL,
    LEGEND_ROW,
    SYMBOLS,
    VISIBLE,
    Chart,
    Trace,
    axis,
    chart,
    colours_of,
    lines_of,
    log_axis,
    si_axis,
)
from sim.report.figure import COLOURS, GREY
from sim.runs.record import KernelResult, Record

# One point: what the schedules come to beside one another.


def time_by_cause(records: list[Record]) -> Chart:
    """A bar a schedule, as long as its time, split by what held it back."""
    ran = [record for record in records if record.time_s]
    names = [lines_of(record.schedule, LABEL) for record in ran]
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
    names = [lines_of(record.schedule, LABEL) for record in ran]
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
    names = [lines_of(record.schedule, LABEL) for record in ran]
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
                    "name": lines_of(schedule),
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
            "name": lines_of(
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
        xaxis=log_axis("FLOPs a byte of HBM", [low, high]),
        yaxis=log_axis("", [*peaks, *(y for t in traces for y in t["y"])], "FLOP/s"),
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
            lines_of(record.schedule, 14, 2),
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
                    "name": lines_of(schedule),
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
        yaxis=log_axis("", [*capacities, *(y for t in traces for y in t["y"])], "B"),
    )
