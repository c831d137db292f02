"""Figures: functions from records to a matplotlib Figure, one message each.

From Python they are `sim.plots`: `traffic`, `time`, `roofline`, `utilisation` and `memory` take the
records of a run, and a title to stand below what the figure is called; the figure is yours then
(`figure.axes`, `figure.savefig("paper.pdf")`).

    >>> from sim import plots, simulate
    >>> records = simulate("flash_vs_naive", **{"workload.seq_len": 512})
    >>> plots.roofline(records).axes[0].get_xlabel()
    'FLOPs a byte of HBM traffic, log scale'

Colours are Okabe and Ito's, which people with colour-blindness can tell apart; each schedule also
has its own marker.
"""

import math
from collections.abc import Callable, Sequence
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.device.run import DeviceRun
from sim.inputs.units import show_binary
from sim.report.axes import Grid, grid_of, key_text, log_ticks, value_text
from sim.runs.job import Outcome
from sim.runs.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.text import Text

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
ABSENT = {"out of memory": "x", "failed": "+"}  # by a record's status, its mark
GREY = "#999999"
Edges = tuple[float, float]
Value = Callable[[Record], float | None]
CELL, DARK = 0.34, 0.6  # inches of a heat map's row; share of its colours that white stands on


WIDTH, ABOVE, BELOW, BETWEEN = 7.5, 0.75, 0.65, 0.65  # inches
PANEL = 3.0  # inches of one panel's height


def new_figure(title: str, panels: int = 1, panel: float = PANEL) -> "tuple[Figure, list[Axes]]":
    """Panels below one another. Margins are fixed: working them out takes longer than drawing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to load, and few runs draw
    from matplotlib.figure import Figure

    height = ABOVE + panel * panels + BETWEEN * (panels - 1) + BELOW
    figure = Figure(figsize=(WIDTH, height), dpi=100)
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(panels, 1, number + 1) for number in range(panels)]
    figure.subplots_adjust(0.11, BELOW / height, 0.97, 1 - ABOVE / height, hspace=BETWEEN / panel)
    figure.suptitle(title.rstrip(), fontsize=11, y=1 - 0.12 / height, va="top", wrap=True)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


LEAST_SCALE, SMALLEST_TEXT = 0.75, 6.5  # of texts, lines and markers in a column; points


def sized(figure: "Figure", width: float, height: float) -> None:
    """Fit a figure onto a page: `width` inches wide, of one panel `height` inches high.

    One of more panels or rows is as much taller as it was. Its title goes, as a caption says it;
    texts, lines and markers get smaller, but stay legible; legends stand beside what is drawn.
    """
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    scale = min(1.0, max(LEAST_SCALE, width / WIDTH))
    figure.set_size_inches(width, height * figure.get_figheight() / (ABOVE + PANEL + BELOW))
    figure.suptitle("")
    for text in figure.findobj(Text):
        text.set_fontsize(max(SMALLEST_TEXT, scale * _points(text)))
    for line in figure.findobj(Line2D):
        line.set_markersize(scale * float(line.get_markersize()))
        line.set_linewidth(scale * float(line.get_linewidth()))
    for legend in figure.legends:
        _in_columns(legend, figure, figure.bbox.width, loc="outside lower center")
    for ax in figure.axes:
        if (legend_of_panel := ax.get_legend()) is not None:
            above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0)}
            _in_columns(legend_of_panel, ax, figure.bbox.width, **above)
    _work_out_margins(figure)


def _in_columns(legend: "Legend", of: "Figure | Axes", room: float, **where: Any) -> None:
    """Replace a legend by one with as many columns as `room` [dots] is wide enough for."""
    handles = [handle for handle in legend.legend_handles if handle is not None]
    names = [text.get_text() for text in legend.get_texts()]
    size = _points(legend.get_texts()[0])
    legend.remove()
    for columns in range(len(names), 0, -1):
        fits = of.legend(
            handles, names, ncols=columns, fontsize=size, frameon=False, handlelength=1.6,
            columnspacing=1.2, borderaxespad=0.2, **where,
        )  # fmt: skip
        if fits.get_window_extent().width < room:
            return
        if columns > 1:
            fits.remove()


def _work_out_margins(figure: "Figure") -> None:
    """Have margins as labels and legends need them."""
    figure.suptitle(figure.get_suptitle(), fontsize=11, wrap=True)  # no longer where it was put
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)


TURNED = 30.0  # degrees, at least
LONGEST_NAME = 36  # letters of a name that is turned; it would leave no room for what is drawn


def uncrowd(figure: "Figure") -> None:
    """Turn names below an axis, and raise those beside what is drawn, that run into each other."""
    figure.draw_without_rendering()
    for ax in figure.axes:
        _hide_crowded(ax)
        _raise_overlapping(ax)
        named = [label for label in ax.get_xticklabels() if label.get_text()]
        boxes = sorted((label.get_window_extent() for label in named), key=lambda box: box.x0)
        line = _points(named[0]) * figure.dpi / 72 if named else 0.0
        if all(box.x1 + line / 3 < after.x0 for box, after in pairwise(boxes)):
            continue
        apart = min(after.x1 - box.x1 + after.x0 - box.x0 for box, after in pairwise(boxes)) / 2
        texts = [label.get_text() for label in named]
        if any("\n" in text or len(text) > LONGEST_NAME for text in texts):
            ax.set_xticks(ax.get_xticks(), [_on_a_line(text) for text in texts])
        angle = max(TURNED, math.degrees(math.asin(min(1.0, 1.2 * line / max(apart, 1.0)))))
        for label in ax.get_xticklabels():
            label.set(rotation=angle, ha="right", rotation_mode="anchor")
        _work_out_margins(figure)


def _on_a_line(name: str) -> str:
    name = name.replace("\n", " ")
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _hide_crowded(ax: "Axes") -> None:
    """Figures of a heat map's cells go where they run into each other: colours tell them too."""
    from matplotlib.text import Annotation

    in_cells = [text for text in ax.texts if not isinstance(text, Annotation)]
    boxes = sorted(
        (text.get_window_extent() for text in in_cells), key=lambda box: (box.y0, box.x0)
    )
    if any(box.overlaps(after) for box, after in pairwise(boxes)):
        for text in in_cells:
            text.remove()


def _raise_overlapping(ax: "Axes") -> None:
    """A name that stands on the one before it goes up a line."""
    from matplotlib.text import Annotation

    for before, name in pairwise(sorted(ax.texts, key=lambda text: text.get_window_extent().x0)):
        on_it = name.get_window_extent().overlaps(before.get_window_extent())
        if on_it and isinstance(name, Annotation):
            x, y = name.xyann
            name.xyann = x, y + 1.3 * _points(name)


def _points(text: "Text") -> float:
    """The size of a text's letters."""
    return float(text.get_fontsize())


def log_axis(axis: "Axis", label: str) -> None:
    """Make an axis logarithmic, which its label says; its few ticks are plain numbers."""
    from matplotlib.ticker import FuncFormatter, Locator, NullLocator

    class Ticks(Locator):
        def __call__(self) -> list[float]:
            return self.tick_values(*sorted(axis.get_view_interval()))

        def tick_values(self, vmin: float, vmax: float) -> list[float]:
            return log_ticks(vmin, vmax)

    ax = axis.axes
    (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log")
    axis.set_label_text(f"{label}, log scale")
    axis.set_major_locator(Ticks())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
    axis.set_minor_locator(NullLocator())


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


def _by_schedule(ax: "Axes", records: Sequence[Record], value: Value, label: str) -> None:
    """`value` of every record: lines over a swept number, else dots, as a log axis has no zero."""
    styles = _styles(records)
    name, values = _swept(records)
    numeric = len(values) > 2 and all(isinstance(v, int | float) for v in values)
    places = [next(iter(r.point.values())) for r in records] if numeric else _dots(records)
    drawn: dict[str, Any] = (
        {"linewidth": 1.6} if numeric else {"linestyle": "none", "markersize": 9}
    )
    for schedule, style in styles.items():
        own = [(x, r) for x, r in zip(places, records, strict=True) if r.schedule == schedule]
        heights = [value(r) or math.nan for _, r in own]
        ax.plot([x for x, _ in own], heights, label=schedule, **drawn, **style)
    heights = [height for record in records if (height := value(record))] or [1.0]
    log_axis(ax.yaxis, label)
    ax.set_ylim(min(heights) / 3, max(heights) * 3)
    if numeric:
        ax.set_xscale("log", base=2)
        ax.set_xticks(values, [f"{v:,}" for v in values])
        ax.set_xlabel(f"{name}, log scale")
    else:
        named = [str(v) for v in values] if name else list(styles)
        ax.set_xticks(range(len(named)), named)
        ax.set_xlim(-0.6, len(named) - 0.4)
        ax.set_xlabel(name)
    if not numeric and len(records) <= MOST_NUMBERS:
        _number(ax, [(x, y) for x, r in zip(places, records, strict=True) if (y := value(r))])
    _mark_absent(ax, records, places, styles)
    if name or len(ax.get_legend_handles_labels()[0]) > len(styles):
        ax.legend(frameon=False)


MOST_NUMBERS = 8  # dots that have room for their figures


def _dots(records: Sequence[Record]) -> list[float]:
    """Where dots stand: in groups by point or, without a sweep, one a schedule."""
    schedules = list(dict.fromkeys(record.schedule for record in records))
    points = list(dict.fromkeys(tuple(record.point.values()) for record in records))
    if not records[0].point:
        return [float(schedules.index(record.schedule)) for record in records]
    width = 0.8 / len(schedules)
    return [
        points.index(tuple(record.point.values()))
        - 0.4
        + (schedules.index(record.schedule) + 0.5) * width
        for record in records
    ]


def _number(ax: "Axes", dots: list[tuple[float, float]]) -> None:
    """Each dot's height above it."""
    for x, y in dots:
        ax.annotate(
            short(y),
            (x, y),
            (0, 7),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
        )


def _mark_absent(
    ax: "Axes",
    records: Sequence[Record],
    places: Sequence[float],
    styles: dict[str, dict[str, Any]],
) -> None:
    """A mark at the foot, in its schedule's colour, for a record without figures: it says why."""
    rows = {schedule: 0.03 + 0.04 * row for row, schedule in enumerate(styles)}
    for why, mark in ABSENT.items():
        absent = [(x, r) for x, r in zip(places, records, strict=True) if r.status == why]
        for x, record in absent:
            style = {"color": styles[record.schedule]["color"], "marker": mark}
            at = ax.get_xaxis_transform()
            ax.plot(x, rows[record.schedule], linestyle="none", transform=at, **style)
        if absent:
            ax.plot([], [], linestyle="none", color=GREY, marker=mark, label=why)


def short(value: float) -> str:
    """A figure beside a dot: three digits, or a whole number."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def traffic(records: Sequence[Record], title: str = "") -> "Figure":
    """HBM reads and writes together [GB], by schedule; lines over what is swept, else dots.

    Of a sweep over two keys a heat map a schedule.
    """

    def gb(record: Record) -> float | None:
        return record.hbm_bytes / 1e9 if record.hbm_bytes else None

    return _figure(f"HBM traffic\n{title}", records, gb, "HBM bytes [GB]")


def time(records: Sequence[Record], title: str = "") -> "Figure":
    """Time [ms], by schedule; lines over what is swept, else dots.

    Of a sweep over two keys a heat map a schedule.
    """

    def ms(record: Record) -> float | None:
        return record.time_s * 1e3 if record.time_s else None

    return _figure(f"Time\n{title}", records, ms, "time [ms]")


def _figure(title: str, records: Sequence[Record], value: Value, label: str) -> "Figure":
    if (grid := grid_of(records)) and any(map(value, records)):
        return _heat_maps(title, grid, value, label)
    figure, (ax,) = new_figure(title)
    _by_schedule(ax, records, value, label)
    return figure


def _heat_maps(title: str, grid: Grid, value: Value, label: str) -> "Figure":
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
        _name_cells(ax, cells, values, norm)
        ax.set_xticks(np.arange(len(grid.columns)) + 0.5, [*map(value_text, grid.columns)])
        ax.set_yticks(np.arange(len(grid.rows)) + 0.5, [*map(value_text, grid.rows)])
        ax.tick_params(length=0, labelsize=8)
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
        ax.set_ylabel(key_text(grid.keys[1]))
        ax.set_title(schedule, fontsize=9, loc="left", pad=4)
    axes[-1].set_xlabel(key_text(grid.keys[0]))
    log_axis(figure.colorbar(image, ax=axes, fraction=0.04, pad=0.03).ax.yaxis, label)
    return figure


def _name_cells(
    ax: "Axes", cells: Sequence[Sequence[Record | None]], values: Any, norm: Any
) -> None:
    """Each cell's figure, white on dark colours; of what did not run, why."""
    for row, of_row in enumerate(cells):
        for column, record in enumerate(of_row):
            shown = values[row][column]
            ran = not np.isnan(shown)
            text = short(shown) if ran else record.status.replace(" of ", " of\n") if record else ""
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


def _roof(ax: "Axes", bytes_per_s: float, flops_per_s: float, dtype: str, edges: Edges) -> None:
    """A device's roof between two intensities, with its two figures."""
    low, high = edges
    x = np.geomspace(low, high, 200)
    ax.plot(x, np.minimum(x * bytes_per_s, flops_per_s) / 1e12, color=GREY, linewidth=1.5)
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": "#666666"}
    peak = (high, flops_per_s / 1e12)
    ax.annotate(f"{peak[1]:.0f} TFLOP/s {dtype}", peak, (0, 3), ha="right", **style)
    foot = (low, low * bytes_per_s / 1e12)
    ax.annotate(f"HBM {bytes_per_s / 1e12:.3g} TB/s", foot, (16, 2), **style)


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
    for roof in roofs:
        _roof(ax, *roof, (min(intensities) / 4, max(intensities) * 4))
    log_axis(ax.xaxis, "FLOPs a byte of HBM traffic")
    log_axis(ax.yaxis, "TFLOP/s")
    for schedule, style in styles.items():
        ax.plot([], [], linestyle="none", label=schedule, **style)
    ax.legend(frameon=False, loc="lower right")
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
    for ax, record in zip(axes, shown, strict=True):
        for timeline in record.timeline:
            bins = np.arange(len(timeline.hbm_utilisation) + 1)
            edges_ms = (timeline.start_s + timeline.bin_width_s * bins) * 1e3
            for line, (values, style) in enumerate(
                ((timeline.hbm_utilisation, "-"), (timeline.tensor_utilisation, "--"))
            ):
                ax.plot(
                    edges_ms,
                    [*values, 0.0],
                    drawstyle="steps-post",
                    color=COLOURS[line],
                    linestyle=style,
                    linewidth=1.3,
                )
            if len(record.timeline) > 1:
                ax.axvline(timeline.start_s * 1e3, color=GREY, linewidth=0.7)
                ax.annotate(
                    timeline.kernel,
                    (timeline.start_s * 1e3, 1.02),
                    (2, 0),
                    textcoords="offset points",
                    fontsize=8,
                    va="bottom",
                )
        ax.set_ylim(0, 1.15)
        ax.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
        ax.set_xlim(left=0)
        ax.set_ylabel(record.schedule)
        ax.set_xlabel("time [ms]")
    axes[0].plot([], [], color=COLOURS[0], label="HBM bandwidth")
    axes[0].plot([], [], color=COLOURS[1], linestyle="--", label="tensor rate")
    figure.legend(
        *axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower right", ncols=2
    )
    return figure


def gpus(shown: list[Outcome], title: str) -> "Figure":
    """Which kernel each GPU runs over time, a panel a schedule; where it is white, it waits."""
    from matplotlib.ticker import MaxNLocator

    what = f"What each GPU runs{_at_point(shown[0].record)}"
    figure, axes = new_figure(f"{what}\n{title}", len(shown), panel=2.0)
    for ax, outcome in zip(axes, shown, strict=True):
        assert outcome.run is not None
        _launches(ax, outcome.run)
        ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=7, fontsize=8,
                  handletextpad=0, columnspacing=1, borderpad=0)  # fmt: skip
        ax.set_ylim(outcome.run.gpus - 0.5, -0.5)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        ax.grid(visible=False)
        ax.set_xlim(0, outcome.run.time_s * 1e3)
        ax.set_ylabel(f"{outcome.record.schedule}: GPU")
        ax.set_xlabel("time [ms]")
    return figure


def _launches(ax: "Axes", run: DeviceRun) -> None:
    """A bar a launch on the line of its GPU, in its kernel's colour."""
    height = 0.9 if run.gpus <= 16 else 1.0  # gaps thinner than a pixel come and go
    bars: dict[tuple[str, int], list[Edges]] = {}  # by kernel and GPU: starts and widths
    for k in run.kernels:
        row = bars.setdefault((k.run.kernel.name, k.gpu), [])
        row.append((k.start_s * 1e3, k.run.time_s * 1e3))
    colours = dict(zip(dict.fromkeys(name for name, _ in bars), cycle(COLOURS), strict=False))
    for (name, gpu), row in bars.items():
        ax.broken_barh(row, (gpu - height / 2, height), color=colours[name], linewidth=0)
    for name, colour in colours.items():
        ax.plot([], [], "s", color=colour, label=name)


def memory(records: Sequence[Record], title: str = "") -> "Figure":
    """HBM allocated over time [GB], by schedule, against the device's capacity.

    Of a sweep, at its last point where most schedules ran. Raises ValueError where nothing did.
    """
    shown = _shown(records, "memory")
    figure, (ax,) = new_figure(f"Memory in HBM over time{_at_point(shown[0])}\n{title}")
    styles = _styles(shown)
    for record in shown:
        times = [change["time_s"] * 1e3 for change in record.memory]
        used = [change["in_use_bytes"] / 1e9 for change in record.memory]
        times.append((record.time_s or 0.0) * 1e3)
        used.append(used[-1])
        colour = styles[record.schedule]["color"]
        ax.step(times, used, where="post", label=record.schedule, color=colour, linewidth=1.6)
        ax.plot(times[-1], used[-1], styles[record.schedule]["marker"], color=colour)
    if (capacity := shown[0].hbm_capacity_bytes) is not None:
        ax.axhline(capacity / 1e9, color=GREY, linewidth=1)
        ax.annotate(
            f"capacity {capacity / 1e9:.3g} GB ({show_binary(capacity)})",
            (1, capacity / 1e9),
            (0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color="#666666",
        )
    log_axis(ax.yaxis, "allocated [GB]")
    ax.set_xlabel("time [ms]")
    ax.legend(frameon=False)
    return figure
