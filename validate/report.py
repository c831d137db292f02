"""Comparisons and calibrations as tables, JSON and figures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.inputs.files import save_text
from sim.inputs.units import show
from sim.report import present
from sim.report.figure import COLOURS, GREY, MARKERS, log_axis, new_figure
from sim.report.sheet import AS_DRAWN, Sheet, save_figure
from sim.report.table import new_table, show_table
from validate.calibrate import Calibration
from validate.compare import (
    COLD,
    HBM,
    QUANTITIES,
    WARM,
    Comparison,
    Judged,
    point_text,
    why,
    worst,
)
from validate.judging import HITS, PAIR_DIFFERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@present.show.register
def show_comparison(comparison: Comparison) -> None:
    """A row a family and quantity, the pairs, the worst points, and what was left out."""
    table = new_table(
        f"{comparison.title} ({comparison.split} split) against {comparison.hardware}",
        "schedule family", "quantity", "points", "mean error", "worst", "bias", "rank corr.",
        "roofline's mean error",
        numeric_from=2,
    )  # fmt: skip
    for s in comparison.scores:
        table.add_row(
            s.family,
            s.quantity,
            str(s.points),
            f"{s.mean_error:.1%}",
            f"{s.worst_error:.1%}",
            f"{s.bias:+.1%}",
            "" if s.rank_correlation is None else f"{s.rank_correlation:.2f}",
            "" if s.roofline_error is None else f"{s.roofline_error:.1%}",
        )
    show_table(table)
    pairs = comparison.pairs
    if pairs.total:
        print(
            f"The faster of two schedules: right in {pairs.right} of {pairs.total} pairs that "
            f"differ by more than {PAIR_DIFFERS:.0%} (a roofline: {pairs.roofline_right})."
        )
    print("Worst points:" if comparison.judged else "No point could be judged.")
    for one in worst(comparison.judged):
        print(f"  {one.error:+.0%}  {one.quantity} of {point_text(one.point)}: {_values(one)}")
        print(f"        {why(one)}")
    for text in left_out(comparison):
        print(text)


def left_out(comparison: Comparison) -> list[str]:
    """Why points were not judged, a line a reason."""
    reasons: dict[str, list[str]] = {}
    for left in comparison.left:
        reasons.setdefault(f"{left.point.family}: {left.reason}", []).append(left.point.family)
    return [f"Not judged: {len(points)} of {reason}" for reason, points in reasons.items()]


def _values(one: Judged) -> str:
    if one.quantity == HITS:
        return f"measured {one.measured:.0%}, predicted {one.predicted:.0%}"
    unit = "B" if one.quantity == HBM else "s"
    return f"measured {show(one.measured, unit)}, predicted {show(one.predicted, unit)}"


def _styles(judged: list[Judged]) -> dict[str, dict[str, Any]]:
    families = sorted({one.point.family for one in judged})
    return {
        family: {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
        for k, family in enumerate(families)
    }


def scatter(comparison: Comparison, quantity: str) -> "Figure":
    """Predicted against measured, a marker a family; the roofline's predictions in grey."""
    judged = [one for one in comparison.judged if one.quantity == quantity]
    scale, unit = (1e-9, "GB") if quantity == HBM else (1e3, "ms")
    figure, (ax,) = new_figure(
        f"{quantity}: predicted against measured\n{comparison.title}, {comparison.split} split",
        panel=4.6,
    )
    measured = np.array([one.measured for one in judged]) * scale
    roofline = np.array([one.roofline or np.nan for one in judged]) * scale
    ax.plot(measured, roofline, "x", color=GREY, markersize=4, label="a roofline of the datasheet")
    for family, style in _styles(judged).items():
        own = [one for one in judged if one.point.family == family]
        ax.plot(
            [one.measured * scale for one in own],
            [one.predicted * scale for one in own],
            linestyle="",
            markersize=6,
            alpha=0.85,
            label=family,
            **style,
        )
    ends = np.array([measured.min() / 1.5, measured.max() * 1.5])
    ax.plot(ends, ends, color="black", linewidth=0.8)
    ax.fill_between(ends, ends / 1.1, ends * 1.1, color="black", alpha=0.08, linewidth=0)
    ax.annotate("within 10%", (ends[1] / 1.1, ends[1] / 1.1), fontsize=8, ha="right", va="bottom")
    log_axis(ax.xaxis, f"measured [{unit}]")
    log_axis(ax.yaxis, f"predicted [{unit}]")
    ax.legend(frameon=False, fontsize=8)
    return figure


def errors(comparison: Comparison, quantity: str) -> "Figure":
    """Signed error of every point by its sequence length, a marker a family."""
    judged = [one for one in comparison.judged if one.quantity == quantity]
    figure, (ax,) = new_figure(
        f"{quantity}: error by sequence length\n{comparison.title}, {comparison.split} split",
        panel=3.6,
    )
    styles = _styles(judged)
    for number, (family, style) in enumerate(styles.items()):
        own = [one for one in judged if one.point.family == family]
        aside = 1.06 ** (number - (len(styles) - 1) / 2)  # so that families do not hide each other
        ax.plot(
            [one.point.workload.workload().seq_kv * aside for one in own],
            [one.error * 100 for one in own],
            linestyle="",
            markersize=5,
            alpha=0.85,
            label=family,
            **style,
        )
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.set_xlabel("keys a query may see (seq_kv), log scale")
    ax.set_ylabel("predicted less measured [%]")
    ax.legend(frameon=False, fontsize=8)
    return figure


@present.save.register
def save_comparison(comparison: Comparison, out: Path, sheet: Sheet = AS_DRAWN) -> None:
    """Leave comparison.json and the figures in the folder `out`."""
    save_text(comparison.json(), out / "comparison.json")
    for quantity in QUANTITIES:
        if any(one.quantity == quantity for one in comparison.judged):
            stem = quantity.replace(",", "").replace(" ", "_").lower()
            save_figure(errors(comparison, quantity), out, f"error_{stem}", sheet)
            if quantity in (COLD, WARM, HBM):
                save_figure(scatter(comparison, quantity), out, f"scatter_{stem}", sheet)


@present.show.register
def show_calibration(calibration: Calibration) -> None:
    """A row a parameter, then warnings."""
    table = new_table(
        "Calibration", "parameter", "before", "after", "95%", "identified by", numeric_from=1
    )
    table.columns[-1].justify = "left"
    for one in calibration.parameters:
        unit = one.parameter.unit
        before = show(one.before, unit) if unit else f"{one.before:.3g}"
        interval = "" if one.interval is None else f"± {one.interval:.0%}"
        table.add_row(one.parameter.name, before, one.shown(), interval, one.by or "(kept)")
    show_table(table)
    if calibration.points:
        print(
            f"Fitted to {calibration.points} points: mean error "
            f"{calibration.error_before:.1%} before, {calibration.error_after:.1%} after."
        )
    if calibration.left_out:
        print(
            f"{calibration.left_out} more points were left out: too long to fit, or not predicted."
        )
    for warning in filter(None, (one.warning for one in calibration.parameters)):
        print(f"warning: {warning}")
