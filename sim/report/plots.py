"""Figures: functions from records to a matplotlib Figure, one message each.

Colours are Okabe and Ito's, which people with colour-blindness can tell apart; each schedule also
has its own marker.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from sim.hardware import HardwareProfile
from sim.result import Record
from sim.scenario import Outcome

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
GREY = "#999999"


WIDTH, PANEL, ABOVE, BELOW, BETWEEN = 7.5, 3.0, 0.75, 0.65, 0.7  # inches


def _figure(title: str, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Panels below one another. Margins are fixed: working them out takes longer than drawing."""
    height = ABOVE + PANEL * panels + BETWEEN * (panels - 1) + BELOW
    figure = Figure(figsize=(WIDTH, height), dpi=120)
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(panels, 1, number + 1) for number in range(panels)]
    figure.subplots_adjust(0.11, BELOW / height, 0.97, 1 - ABOVE / height, hspace=BETWEEN / PANEL)
    figure.suptitle(title, fontsize=11, y=1 - 0.12 / height, va="top", wrap=True)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def _plain_decades(axis: Axis) -> None:
    """Have a logarithmic axis mark its decades, as plain numbers."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
    axis.set_minor_locator(NullLocator())


def _styles(records: list[Record]) -> dict[str, dict[str, Any]]:
    schedules = dict.fromkeys(record.schedule for record in records)
    return {
        name: {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
        for k, name in enumerate(schedules)
    }


def _swept(records: list[Record]) -> tuple[str, list[Any]]:
    """The name of what is swept and its values, in order; several keys are told together."""
    keys = [key.split(".", 1)[-1] for key in records[0].point]
    values = list(dict.fromkeys(tuple(record.point.values()) for record in records))
    if len(keys) == 1:
        return keys[0], [value[0] for value in values]
    return ", ".join(keys), [", ".join(map(str, value)) for value in values]


def _by_schedule(
    ax: Axes, records: list[Record], value: Callable[[Record], float | None], label: str
) -> None:
    """`value` of every record: lines over a swept number, else bars."""
    styles = _styles(records)
    name, values = _swept(records)
    ax.set_ylabel(label)
    ax.set_yscale("log")
    _plain_decades(ax.yaxis)
    numeric = len(values) > 2 and all(isinstance(v, int | float) for v in values)
    if numeric:
        for schedule, style in styles.items():
            own = [r for r in records if r.schedule == schedule]
            done = [(r.point[next(iter(r.point))], value(r)) for r in own if value(r)]
            if done:
                ax.plot(*zip(*done, strict=True), label=schedule, linewidth=1.6, **style)
            for r in own:
                if r.status != "ok":
                    x = r.point[next(iter(r.point))]
                    ax.axvline(x, color=style["color"], linewidth=0.8, linestyle=":")
                    ax.annotate(
                        f"{schedule}: out of memory",
                        (x, 0.98),
                        xycoords=("data", "axes fraction"),
                        rotation=90,
                        va="top",
                        ha="right",
                        fontsize=8,
                        color=style["color"],
                    )
        ax.set_xscale("log", base=2)
        ax.set_xticks(values, [f"{v:,}" for v in values])
        ax.set_xlabel(name)
        ax.legend(frameon=False)
        return
    _bars(ax, records, value, values, styles)
    if name:
        ax.set_xlabel(name)
    if name and len(styles) > 1:
        ax.legend(frameon=False)


def _bars(
    ax: Axes,
    records: list[Record],
    value: Callable[[Record], float | None],
    values: list[Any],
    styles: dict[str, dict[str, Any]],
) -> None:
    """Bars in groups by point; without a sweep one bar a schedule, named below it."""
    swept = bool(records[0].point)
    width = 0.8 / (len(styles) if swept else 1)
    heights = [value(record) or 0.0 for record in records]
    top = max(heights) if any(heights) else 1.0
    low = min((h for h in heights if h), default=1.0) / 3
    for k, (schedule, style) in enumerate(styles.items()):
        own = [record for record in records if record.schedule == schedule]
        places = [n - 0.4 + (k + 0.5) * width for n in range(len(own))] if swept else [float(k)]
        shown = [value(record) or low for record in own]
        ax.bar(places, shown, width * 0.92, label=schedule, color=style["color"])
        for place, record, height in zip(places, own, shown, strict=True):
            text = _short(height) if record.status == "ok" else "out of\nmemory"
            ax.annotate(
                text,
                (place, height),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=9,
            )
    ax.set_ylim(low, top * 3)
    if swept:
        ax.set_xticks(range(len(values)), [str(v) for v in values])
    else:
        ax.set_xticks(range(len(styles)), list(styles))


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def traffic(records: list[Record], title: str) -> Figure:
    """HBM reads and writes together, by schedule."""
    figure, (ax,) = _figure(f"HBM traffic\n{title}")
    _by_schedule(
        ax, records, lambda r: r.hbm_bytes / 1e9 if r.hbm_bytes else None, "HBM bytes [GB]"
    )
    return figure


def time(records: list[Record], title: str) -> Figure:
    """Time, by schedule."""
    figure, (ax,) = _figure(f"Time\n{title}")
    _by_schedule(ax, records, lambda r: r.time_s * 1e3 if r.time_s else None, "time [ms]")
    return figure


def roofline(records: list[Record], hw: HardwareProfile, title: str) -> Figure:
    """Each kernel's FLOP/s against its FLOPs a byte of HBM, under the device's roofs."""
    figure, (ax,) = _figure(f"Roofline of {hw.title}\n{title}")
    styles = _styles(records)
    dtype = records[0].workload["dtype"]
    peak = hw.tensor_flops_per_s(dtype) or 2 * hw.vector_ops_per_s
    intensities = []
    for record in records:
        style = styles[record.schedule]
        for kernel in record.kernels:
            hbm_bytes = kernel.hbm_read_bytes + kernel.hbm_write_bytes
            if not kernel.flops or not hbm_bytes:
                continue
            intensity = kernel.flops / hbm_bytes
            intensities.append(intensity)
            rate = kernel.flops / kernel.time_s / 1e12
            ax.plot(intensity, rate, linestyle="none", markersize=8, **style)
            if len(record.kernels) > 1 and not record.point:
                ax.annotate(
                    kernel.name, (intensity, rate), (7, -3), textcoords="offset points", fontsize=8
                )
    ridge = peak / hw.hbm.bandwidth
    low, high = min([*intensities, ridge]) / 4, max([*intensities, ridge]) * 4
    x = np.geomspace(low, high, 200)
    ax.plot(x, np.minimum(x * hw.hbm.bandwidth, peak) / 1e12, color=GREY, linewidth=1.5)
    ax.annotate(
        f"{peak / 1e12:.0f} TFLOP/s {dtype}",
        (high, peak / 1e12),
        (0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="#666666",
    )
    ax.annotate(
        f"HBM {hw.hbm.bandwidth / 1e12:.3g} TB/s",
        (low, low * hw.hbm.bandwidth / 1e12),
        (16, 2),
        textcoords="offset points",
        fontsize=8,
        color="#666666",
    )
    ax.set_xscale("log")
    _plain_decades(ax.xaxis)
    ax.set_yscale("log")
    _plain_decades(ax.yaxis)
    ax.set_xlabel("FLOPs a byte of HBM traffic")
    ax.set_ylabel("TFLOP/s")
    for schedule, style in styles.items():
        ax.plot([], [], linestyle="none", label=schedule, **style)
    ax.legend(frameon=False, loc="lower right")
    return figure


def _last_point(records: list[Record]) -> list[Record]:
    """The records that ran at the last point of a sweep where any did."""
    done = [record for record in records if record.status == "ok"]
    return [record for record in done if record.point == done[-1].point] if done else []


def utilisation(records: list[Record], title: str) -> Figure:
    """HBM bandwidth and tensor rate in use over time, a panel a schedule."""
    shown = _last_point(records)
    figure, axes = _figure(f"In use over time, share of the vendor's figure\n{title}", len(shown))
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
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="lower right", ncols=2)
    return figure


def memory(records: list[Record], hw: HardwareProfile, title: str) -> Figure:
    """HBM allocated over time, by schedule, against the device's capacity."""
    shown = _last_point(records)
    figure, (ax,) = _figure(f"Memory in HBM over time\n{title}")
    styles = _styles(records)
    for record in shown:
        times = [change["time_s"] * 1e3 for change in record.memory]
        used = [change["in_use_bytes"] / 2**30 for change in record.memory]
        times.append((record.time_s or 0.0) * 1e3)
        used.append(used[-1])
        colour = styles[record.schedule]["color"]
        ax.step(times, used, where="post", label=record.schedule, color=colour, linewidth=1.6)
        ax.plot(times[-1], used[-1], styles[record.schedule]["marker"], color=colour)
    ax.axhline(hw.hbm.capacity / 2**30, color=GREY, linewidth=1)
    ax.annotate(
        f"capacity {hw.hbm.capacity / 2**30:.0f} GiB",
        (1, hw.hbm.capacity / 2**30),
        (0, 2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="#666666",
    )
    ax.set_yscale("log")
    _plain_decades(ax.yaxis)
    ax.set_xlabel("time [ms]")
    ax.set_ylabel("allocated [GiB]")
    ax.legend(frameon=False)
    return figure


def save_figures(outcomes: list[Outcome], title: str, out: Path) -> None:
    """Draw all figures of a run into the folder `out`."""
    records = [outcome.record for outcome in outcomes]
    figures = {"hbm_traffic": traffic(records, title), "time": time(records, title)}
    if _last_point(records):
        last = [o.point.hardware for o in outcomes if o.run is not None][-1]
        figures["roofline"] = roofline(records, last, title)
        figures["utilisation"] = utilisation(records, title)
        figures["memory"] = memory(records, last, title)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png")
