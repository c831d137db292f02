"""Figures: functions from records to a matplotlib Figure, one message each.

From Python they are `sim.plots`: `traffic`, `time`, `roofline`, `utilisation` and `memory` take the
records of a run, and a title to stand below what the figure is called; the figure is yours then
(`figure.axes`, `figure.savefig("paper.pdf")`).

    >>> from sim import plots, simulate
    >>> records = simulate("flash_vs_naive", **{"workload.seq_len": 512})
    >>> plots.roofline(records).axes[0].get_xlabel()
    'FLOPs a byte of HBM traffic, log scale'
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.device.run import DeviceRun
from sim.inputs.units import show, show_binary
from sim.report.axes import Grid, grid_of, key_text, time_ends_s, value_text
from sim.report.figure import (
    BELOW,
    COLOURS,
    GREY,
    MARKERS,
    log_axis,
    new_figure,
    on_a_line,
    row_figure,
    si_axis,
)
from sim.report.figure import sized as sized
from sim.runs.job import Outcome
from sim.runs.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

ABSENT = {"out of memory": "x", "failed": "+"}  # by a record's status, its mark
Edges = tuple[float, float]
Value = Callable[[Record], float | None]
CELL, DARK = 0.34, 0.6  # inches of a heat map's row; share of its colours that white stands on
ROW = 0.4  # inches of a dot's row


def _styles(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    schedules = dict.fromkeys(record.schedule for record in records)
    return {
        name: {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
        for k, name in enumerate(schedules)
    }


def _swept(records: Sequence[Record]) -> tuple[str, list[Any]]:
    """The name of what is swept and its values, in order; several keys are told together."""
    keys = [key.split(".", 1)[-1] for key in records[0].point]
    values = list(dict.fromkeys(tuple(record.point.values()) for record in records))
    if len(keys) == 1:
        return keys[0], [value[0] for value in values]
    return ", ".join(keys), [", ".join(map(str, value)) for value in values]


def _lines(records: Sequence[Record], title: str, value: Value, label: str, unit: str) -> "Figure":
    """`value` of every record over a swept number, a line a schedule."""
    figure, (ax,) = new_figure(title)
    styles = _styles(records)
    name, values = _swept(records)
    ax.set_xscale("log", base=2)
    for schedule, style in styles.items():
        own = [record for record in records if record.schedule == schedule]
        heights = [value(record) or math.nan for record in own]
        ax.plot([_first(record) for record in own], heights, label=schedule, linewidth=1.6, **style)
        for record in own:
            _mark_absent(ax, record, (_first(record), FOOT), ax.get_xaxis_transform(), style)
    _value_axis(ax.yaxis, records, value, label, unit)
    ax.set_xticks(values, [value_text(v) for v in values])
    ax.set_xlabel(f"{name}, log scale")
    ax.legend(frameon=False)
    return figure


FOOT = 0.03  # share of an axis at which what has no figure is marked


def _dots(records: Sequence[Record], title: str, value: Value, label: str, unit: str) -> "Figure":
    """`value` of every record, a dot a schedule on a row of its own, or on that of its point.

    Dots, as a log axis has no zero that bars could start from.
    """
    styles = _styles(records)
    name, values = _swept(records)
    rows = [value_text(v) for v in values] if name else list(styles)
    row = ROW * max(1.0, 0.6 * len(styles) if name else 1.0)
    figure, ax = row_figure(title, rows, row, under=BELOW)
    for record in records:
        style = styles[record.schedule]
        place = _row(record, records, list(styles))
        if shown := value(record):
            ax.plot(shown, place, linestyle="none", markersize=8, **style)
            ax.annotate(show(shown, unit), (shown, place), (8, 0), va="center", fontsize=8,
                        textcoords="offset points")  # fmt: skip
        _mark_absent(ax, record, (FOOT, place), ax.get_yaxis_transform(), style)
    _value_axis(ax.xaxis, records, value, label, unit)
    ax.set_ylabel(name)
    if name:
        for schedule, style in styles.items():
            ax.plot([], [], linestyle="none", label=schedule, **style)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    return figure


def _row(record: Record, records: Sequence[Record], schedules: list[str]) -> float:
    """The height of a record's dot: its schedule's row, or about its point's."""
    number = schedules.index(record.schedule)
    if not record.point:
        return float(number)
    points = list(dict.fromkeys(tuple(other.point.values()) for other in records))
    beside = (number + 0.5) / len(schedules) - 0.5
    return points.index(tuple(record.point.values())) + 0.7 * beside


def _first(record: Record) -> Any:
    """The only value of a record's point."""
    return next(iter(record.point.values()))


def _value_axis(
    axis: "Axis", records: Sequence[Record], value: Value, label: str, unit: str
) -> None:
    """A log axis that has room for all values, and for what stands beside them."""
    known = [shown for record in records if (shown := value(record))] or [1.0]
    log_axis(axis, label, unit)
    ax = axis.axes
    (ax.set_xlim if axis is ax.xaxis else ax.set_ylim)(min(known) / 2, max(known) * 3)


def _mark_absent(
    ax: "Axes", record: Record, place: Edges, transform: Any, style: dict[str, Any]
) -> None:
    """A mark at the foot, in its schedule's colour, of a record without figures: it says why."""
    if mark := ABSENT.get(record.status):
        at = {"transform": transform, "linestyle": "none", "marker": mark}
        ax.plot(*place, color=style["color"], **at)
        if record.status not in ax.get_legend_handles_labels()[1]:
            ax.plot([], [], linestyle="none", color=GREY, marker=mark, label=record.status)


def traffic(records: Sequence[Record], title: str = "") -> "Figure":
    """HBM reads and writes together, by schedule; lines over a swept number, else dots.

    Of a sweep over two keys a heat map a schedule.
    """
    return _figure(f"HBM traffic\n{title}", records, lambda r: r.hbm_bytes, "HBM bytes", "B")


def time(records: Sequence[Record], title: str = "") -> "Figure":
    """Time, by schedule; lines over a swept number, else dots.

    Of a sweep over two keys a heat map a schedule.
    """
    return _figure(f"Time\n{title}", records, lambda r: r.time_s, "time", "s")


def _figure(title: str, records: Sequence[Record], value: Value, label: str, unit: str) -> "Figure":
    if (grid := grid_of(records)) and any(map(value, records)):
        return _heat_maps(title, grid, value, label, unit)
    _, values = _swept(records)
    numeric = len(values) > 2 and all(isinstance(v, int | float) for v in values)
    return (_lines if numeric else _dots)(records, title, value, label, unit)


def _heat_maps(title: str, grid: Grid, value: Value, label: str, unit: str) -> "Figure":
    """A panel a schedule, on one scale of colours; what did not run is blank, with the reason."""
    from matplotlib.colors import LogNorm

    schedules = list(dict.fromkeys(schedule for schedule, *_ in grid.cells))
    panel = max(1.3, CELL * len(grid.rows))
    figure, axes = new_figure(title, len(schedules), panel=panel)
    figure.subplots_adjust(left=0.2, right=0.9)
    known = [shown for record in grid.cells.values() if (shown := value(record))]
    norm = LogNorm(min(known) / 1.01, max(known) * 1.01)
    for ax, schedule in zip(axes, schedules, strict=True):
        cells = grid.of(schedule)
        values = [[(record and value(record)) or np.nan for record in row] for row in cells]
        image = ax.pcolormesh(values, norm=norm, cmap="viridis", edgecolor="white", linewidth=1)
        _name_cells(ax, cells, values, norm, unit)
        ax.set_xticks(np.arange(len(grid.columns)) + 0.5, [*map(value_text, grid.columns)])
        ax.set_yticks(np.arange(len(grid.rows)) + 0.5, [*map(value_text, grid.rows)])
        ax.tick_params(length=0, labelsize=8)
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
        ax.set_ylabel(key_text(grid.keys[1]))
        ax.set_title(schedule, fontsize=9, loc="left", pad=4)
    axes[-1].set_xlabel(key_text(grid.keys[0]))
    log_axis(figure.colorbar(image, ax=axes, fraction=0.04, pad=0.03).ax.yaxis, label, unit)
    return figure


def _name_cells(
    ax: "Axes", cells: Sequence[Sequence[Record | None]], values: Any, norm: Any, unit: str
) -> None:
    """Each cell's figure, white on dark colours; of what did not run, why."""
    for row, of_row in enumerate(cells):
        for column, record in enumerate(of_row):
            shown = values[row][column]
            ran = not np.isnan(shown)
            why = record.status.replace(" of ", " of\n") if record else ""
            text = show(shown, unit) if ran else why
            colour = "white" if ran and norm(shown) < DARK else "black"
            place = column + 0.5, row + 0.5
            ax.text(*place, text, ha="center", va="center", fontsize=8, color=colour)


def _kernels_below_roof(ax: "Axes", record: Record, style: dict[str, Any]) -> list[float]:
    """A marker a kernel that has FLOPs, named where there are several; their FLOPs a byte."""
    intensities = []
    for kernel in record.kernels:
        hbm_bytes = kernel.hbm_read_bytes + kernel.hbm_write_bytes
        if not kernel.flops or not hbm_bytes:
            continue
        place = kernel.flops / hbm_bytes, kernel.flops / kernel.time_s / 1e12
        intensities.append(place[0])
        ax.plot(*place, linestyle="none", markersize=8, **style)
        if len(record.kernels) > 1 and not record.point:
            ax.annotate(kernel.name, place, (7, -3), textcoords="offset points", fontsize=8)
    return intensities


def _roofs(ax: "Axes", roofs: Collection[tuple[float, float, str]], edges: Edges) -> None:
    """Devices' roofs between two intensities, each of their figures once.

    A roof is HBM bytes a second, FLOPs a second and the dtype that these are of.
    """
    low, high = edges
    x = np.geomspace(low, high, 200)
    for bytes_per_s, flops_per_s, _ in roofs:
        ax.plot(x, np.minimum(x * bytes_per_s, flops_per_s) / 1e12, color=GREY, linewidth=1.5)
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": "#666666"}
    for flops_per_s in dict.fromkeys(rate for _, rate, _ in roofs):
        dtypes = ", ".join(dict.fromkeys(dtype for _, rate, dtype in roofs if rate == flops_per_s))
        peak = (high, flops_per_s / 1e12)
        ax.annotate(f"{peak[1]:.0f} TFLOP/s {dtypes}", peak, (0, 3), ha="right", **style)
    for bytes_per_s in dict.fromkeys(rate for rate, *_ in roofs):
        foot = (low, low * bytes_per_s / 1e12)
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # other roofs cross it
        ax.annotate(f"HBM {bytes_per_s / 1e12:.3g} TB/s", foot, (16, 2), bbox=behind, **style)


def roofline(records: Sequence[Record], title: str = "") -> "Figure":
    """Each kernel's TFLOP/s against its FLOPs a byte of HBM, under the devices' roofs.

    Raises ValueError where nothing ran, or records are of a file that does not say what the
    device's figures were.
    """
    ran = [record for record in records if record.status == "ok"]
    if not ran:
        raise ValueError("roofline: none of these records ran")
    devices = dict.fromkeys(record.hardware for record in ran)
    figure, (ax,) = new_figure(f"Roofline of {', '.join(devices)}\n{title}")
    styles = _styles(records)
    roofs: dict[tuple[float, float, str], None] = {}
    intensities = []  # FLOPs a byte of all kernels, and where the roofs bend
    for record in ran:
        peak, bandwidth = record.peak_flops_per_s, record.hbm_bytes_per_s
        if peak is None or bandwidth is None:
            raise ValueError("roofline: these records do not say what their device's figures were")
        roofs[bandwidth, peak, record.workload["dtype"]] = None
        intensities.append(peak / bandwidth)
        intensities += _kernels_below_roof(ax, record, styles[record.schedule])
    _roofs(ax, roofs, (min(intensities) / 4, max(intensities) * 4))
    log_axis(ax.xaxis, "FLOPs a byte of HBM traffic")
    log_axis(ax.yaxis, "TFLOP/s")
    for schedule in dict.fromkeys(record.schedule for record in ran):
        ax.plot([], [], linestyle="none", label=schedule, **styles[schedule])
    ax.legend(frameon=False)
    return figure


def telling_point(records: Sequence[Record]) -> list[Record]:
    """What ran at the last point where every schedule did or, failing that, where most did."""
    points: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        ran = points.setdefault(tuple(record.point.values()), [])
        if record.status == "ok":
            ran.append(record)
    most = max(len(ran) for ran in points.values())
    return next(ran for ran in reversed(points.values()) if len(ran) == most)


def _shown(records: Sequence[Record], figure: str) -> list[Record]:
    shown = telling_point(records)
    if not shown:
        raise ValueError(f"{figure}: none of these records ran")
    return shown


def _at_point(record: Record) -> str:
    """Where in a sweep the record was made, as part of a title."""
    point = ", ".join(f"{key.split('.', 1)[-1]} {value}" for key, value in record.point.items())
    return f" at {point}" if point else ""


def utilisation(records: Sequence[Record], title: str = "") -> "Figure":
    """HBM bandwidth and tensor rate in use over time, a panel a schedule.

    Of a sweep, at its last point where most schedules ran. Raises ValueError where nothing did.
    """
    shown = _shown(records, "utilisation")
    what = f"In use over time{_at_point(shown[0])}, share of the vendor's figure"
    figure, axes = new_figure(f"{what}\n{title}", len(shown), panel=1.7)
    _time_axes(axes, shown)
    for ax, record in zip(axes, shown, strict=True):
        for timeline in record.timeline:
            bins = np.arange(len(timeline.hbm_utilisation) + 1)
            edges_s = timeline.start_s + timeline.bin_width_s * bins
            for values, style in zip(
                (timeline.hbm_utilisation, timeline.tensor_utilisation), IN_USE, strict=True
            ):
                ax.plot(edges_s, [*values, 0.0], drawstyle="steps-post", linewidth=1.3, **style)
            if len(record.timeline) > 1:
                _name_kernel(ax, timeline.kernel, timeline.start_s)
        ax.set_ylim(0, 1.3)  # room for two lines of kernels' names
        ax.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    for name, style in zip(("HBM bandwidth", "tensor rate"), IN_USE, strict=True):
        axes[0].plot([], [], label=name, **style)
    axes[0].legend(frameon=False)
    return figure


IN_USE: tuple[dict[str, Any], ...] = (
    {"color": COLOURS[0], "linestyle": "-"},
    {"color": COLOURS[1], "linestyle": "--"},
)


def _time_axes(axes: "Sequence[Axes]", records: Sequence[Record]) -> None:
    """Time to the right, on all panels to the same end; above each its schedule and its time."""
    times_s = [record.time_s or 0.0 for record in records]
    for ax, record, end_s in zip(axes, records, time_ends_s(times_s), strict=True):
        ax.set_xlim(0, end_s * 1.02)
        time = show(record.time_s or 0.0, "s")
        ax.set_title(f"{on_a_line(record.schedule)}: {time}", loc="left", fontsize=10)
        si_axis(ax.xaxis, "", "s")
    axes[-1].set_xlabel("time")


def _name_kernel(ax: "Axes", kernel: str, start_s: float) -> None:
    """A kernel's name behind a line at its start."""
    ax.axvline(start_s, color=GREY, linewidth=0.7)
    place = (start_s, 1.02)
    ax.annotate(kernel, place, (2, 0), textcoords="offset points", fontsize=8, va="bottom")


def gpus(shown: list[Outcome], title: str) -> "Figure":
    """Which kernel each GPU runs over time, a panel a schedule; where it is white, it waits."""
    from matplotlib.ticker import MaxNLocator

    what = f"What each GPU runs{_at_point(shown[0].record)}"
    figure, axes = new_figure(f"{what}\n{title}", len(shown), panel=2.0)
    _time_axes(axes, [outcome.record for outcome in shown])
    runs = [outcome.run for outcome in shown if outcome.run is not None]
    names = dict.fromkeys(_what(k.run.kernel.name) for run in runs for k in run.kernels)
    colours = dict(zip(names, cycle(COLOURS), strict=False))
    for ax, outcome in zip(axes, shown, strict=True):
        assert outcome.run is not None
        _launches(ax, outcome.run, colours)
        ax.legend(frameon=False, fontsize=8)
        ax.set_ylim(outcome.run.gpus - 0.5, -0.5)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        ax.grid(visible=False)
        ax.set_ylabel("GPU")
    return figure


def _what(kernel: str) -> str:
    """What a kernel does: "merge: O" is a "merge"."""
    return kernel.partition(":")[0]


def _launches(ax: "Axes", run: DeviceRun, colours: Mapping[str, str]) -> None:
    """A bar a launch on the line of its GPU, in the colour of what its kernel does."""
    height = 0.9 if run.gpus <= 16 else 1.0  # gaps thinner than a pixel come and go
    bars: dict[tuple[str, int], list[Edges]] = {}  # by kernel and GPU: starts and widths
    for k in run.kernels:
        row = bars.setdefault((_what(k.run.kernel.name), k.gpu), [])
        row.append((k.start_s, k.run.time_s))
    for (name, gpu), row in bars.items():
        ax.broken_barh(row, (gpu - height / 2, height), color=colours[name], linewidth=0)
    for name in dict.fromkeys(name for name, _ in bars):
        ax.plot([], [], "s", color=colours[name], label=name)


def memory(records: Sequence[Record], title: str = "") -> "Figure":
    """HBM allocated over time, by schedule, against the device's capacity.

    Of a sweep, at its last point where most schedules ran. Raises ValueError where nothing did.
    """
    shown = _shown(records, "memory")
    figure, (ax,) = new_figure(f"Memory in HBM over time{_at_point(shown[0])}\n{title}")
    styles = _styles(shown)
    for record in shown:
        times = [change["time_s"] for change in record.memory]
        used = [change["in_use_bytes"] for change in record.memory]
        times.append(record.time_s or 0.0)
        used.append(used[-1])
        colour = styles[record.schedule]["color"]
        ax.step(times, used, where="post", label=record.schedule, color=colour, linewidth=1.6)
        ax.plot(times[-1], used[-1], styles[record.schedule]["marker"], color=colour)
    if (capacity := shown[0].hbm_capacity_bytes) is not None:
        ax.axhline(capacity, color=GREY, linewidth=1)
        ax.annotate(
            f"capacity {capacity / 1e9:.3g} GB ({show_binary(capacity)})",
            (1, capacity),
            (0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color="#666666",
        )
    log_axis(ax.yaxis, "allocated", "B")
    si_axis(ax.xaxis, "time", "s")
    ax.legend(frameon=False)
    return figure
