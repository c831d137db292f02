"""The measuring stick's answer as tables on a terminal, JSON, Markdown and figures."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sim.inputs.files import save_text
from sim.inputs.units import show
from sim.report import present
from sim.report.asked import workload_in_words
from sim.report.figure import COLOURS, GREY, MARKERS, log_axis, new_figure
from sim.report.sheet import AS_DRAWN, Sheet, save_figure
from sim.report.table import new_table, show_table
from validate.judging import HITS, PAIR_DIFFERS, Pairs
from validate.stick import ANY, DRAM, L2, RATE, TIME, Judged, Left, Score, Stick

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

SPLITS = {  # in the order of the tables
    "test": "rows that nothing is fitted to",
    "transfer": "devices that nothing is fitted to: the error of a hypothetical device",
    "fit": "rows that a calibration may use",
}
COLUMNS = (
    "family", "device", "quantity", "points", "mean error", "median", "worst", "bias",
    "within 10%", "within 20%", "roofline", "best constant",
)  # fmt: skip
REGIMES = tuple(
    f"{length}, batch {batch}" for length in ("few", "middle", "long") for batch in ("1", "many")
)


ROW_COLUMNS = (
    "row", "kernel", "device", "workload", "quantity", "measured", "predicted", "error",
    "roofline's error",
)  # fmt: skip
FEW_ROWS = 20  # that a terminal shows one by one


def row_cells(one: Judged) -> tuple[str, ...]:
    """A figure beside its prediction as the text of a table's row."""

    def told(value: float) -> str:
        return f"{value:.1%}" if one.quantity in (HITS, RATE) else show(value, _UNITS[one.quantity])

    figure = one.measured.figure
    return (
        figure.where,
        figure.kernel,
        one.device,
        workload_in_words([one.measured.case.workload.table()]),
        one.quantity,
        told(one.value),
        told(one.predicted),
        f"{one.error:+.0%}",
        "" if one.roofline is None else f"{one.roofline / one.value - 1:+.0%}",
    )


_UNITS = {TIME: "s", DRAM: "B", L2: "B"}


def in_short(stick: Stick) -> str:
    """How near the times are in the mean, in a sentence."""
    errors = [abs(one.error) for one in stick.judged if one.quantity == TIME and not one.is_host]
    if not errors:
        return f"{len(stick.judged)} figures are judged, no times among them."
    mean, worst = sum(errors) / len(errors), max(errors)
    return f"Predicted times are {mean:.0%} off in the mean of {len(errors)}, {worst:.0%} at most."


@present.show.register
def show_stick(stick: Stick) -> None:
    """Few figures one by one; two tables a split, what is left out, which of two is faster."""
    if 0 < len(stick.judged) <= FEW_ROWS:
        table = new_table("Row by row", *ROW_COLUMNS, numeric_from=5)
        for one in stick.judged:
            table.add_row(*row_cells(one))
        show_table(table)
    for split, about in SPLITS.items():
        for host in (False, True):
            chosen = chosen_scores(stick.scores, split, host)
            if chosen:
                table = new_table(_title(split, about, host), *COLUMNS, numeric_from=3)
                for score in chosen:
                    table.add_row(*cells(score))
                show_table(table)
        by_regime = regime_rows(stick.scores, split)
        if by_regime:
            table = new_table(_regime_title(split), "family", *REGIMES)
            for row in by_regime:
                table.add_row(*row)
            show_table(table)
    if not stick.judged:
        print("No figure could be judged.")
    for line in pairs_lines(stick.pairs):
        print(line)
    for line in left_lines(stick.left):
        print(line)
    print(
        f"{len(stick.judged) + len(stick.left)} figures, {len(stick.judged)} judged by "
        f"{stick.cases} predictions, of which {stick.simulated} were not kept from before."
    )


def chosen_scores(
    scores: Iterable[Score], split: str, host: bool, by_regime: bool = False
) -> list[Score]:
    """The scores of a table: of all regimes together, or of each."""
    return [
        score
        for score in scores
        if (score.split, score.host, score.regime != ANY) == (split, host, by_regime)
    ]


def _title(split: str, about: str, host: bool) -> str:
    return f"{split}: {about}" + (", times that the host rules" if host else "")


def cells(score: Score) -> tuple[str, ...]:
    """A score as the text of a table's row."""
    optional = ("" if one is None else f"{one:.1%}" for one in (score.roofline, score.constant))
    return (
        score.family,
        score.device,
        score.quantity,
        str(score.points),
        f"{score.mean:.1%}",
        f"{score.median:.1%}",
        f"{score.worst:.1%}",
        f"{score.bias:+.1%}",
        f"{score.within_10:.0%}",
        f"{score.within_20:.0%}",
        *optional,
    )


def regime_rows(scores: Iterable[Score], split: str) -> list[tuple[str, ...]]:
    """A row a family: the mean error of times in each regime, over devices, and of how many."""
    cells: dict[str, dict[str, list[Score]]] = {}
    for score in chosen_scores(scores, split, host=False, by_regime=True):
        if score.quantity == TIME:
            cells.setdefault(score.family, {}).setdefault(score.regime, []).append(score)
    return [
        (family, *(_mean_of(by_regime.get(regime, [])) for regime in REGIMES))
        for family, by_regime in sorted(cells.items())
    ]


def _mean_of(scores: Sequence[Score]) -> str:
    points = sum(score.points for score in scores)
    if not points:
        return ""
    return f"{sum(score.points * score.mean for score in scores) / points:.0%} ({points})"


def _regime_title(split: str) -> str:
    return f"{split}: mean error of times by regime, over devices (points)"


def pairs_lines(pairs: Mapping[str, Pairs]) -> list[str]:
    """Which of two kernels is faster, a line a device."""
    return [
        f"{device}: the faster of two kernels on one shape is named in {own.right} of {own.total} "
        f"pairs that differ by more than {PAIR_DIFFERS:.0%} (a roofline: {own.roofline_right}); in "
        f"{own.alike} one schedule stands for both."
        for device, own in pairs.items()
    ]


def left_lines(left: Iterable[Left]) -> list[str]:
    """Why figures were not judged, a line a reason, the most frequent first."""
    counts = Counter(one.reason for one in left)
    kernels: dict[str, list[str]] = {}
    for one in left:
        if one.figure.kernel not in kernels.setdefault(one.reason, []):
            kernels[one.reason].append(one.figure.kernel)
    return [
        f"Not judged: {count} of {_some(kernels[reason])}: {reason}"
        for reason, count in counts.most_common()
    ]


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def markdown(stick: Stick, by_regime: bool = False) -> str:
    """The tables as Markdown, a heading a split; times that the host rules stand apart."""
    parts = []
    columns = (*COLUMNS[:3], "regime", *COLUMNS[3:]) if by_regime else COLUMNS
    for split, about in SPLITS.items():
        for host in (False, True):
            chosen = chosen_scores(stick.scores, split, host, by_regime)
            if not chosen:
                continue
            rows = [_with_regime(score) if by_regime else cells(score) for score in chosen]
            parts.append(_titled(_title(split, about, host), columns, rows))
        in_short = [] if by_regime else regime_rows(stick.scores, split)
        if in_short:
            parts.append(_titled(_regime_title(split), ("family", *REGIMES), in_short))
    lists = [*pairs_lines(stick.pairs), *left_lines(stick.left)]
    return "\n".join(parts) + "\n" + "".join(f"- {line}\n" for line in lists)


def _titled(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_line(columns), "|" + "---|" * len(columns), *map(_line, rows)]
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def _with_regime(score: Score) -> tuple[str, ...]:
    text = cells(score)
    return (*text[:3], score.regime, *text[3:])


def _line(texts: Iterable[str]) -> str:
    return "|" + "".join(f" {text} |" if text else " |" for text in texts)


def scatter(judged: Sequence[Judged], quantity: str) -> "Picture":
    """Predicted over measured against measured, a marker a family; rooflines in grey."""
    figure, (ax,) = new_figure(f"{quantity}: predicted over measured", panel=5.2)
    unit, scale = ("us", 1e6) if quantity == TIME else ("MB", 1e-6)
    theirs = [one for one in judged if one.roofline]
    ax.plot(
        [one.value * scale for one in theirs],
        [(one.roofline or 0.0) / one.value for one in theirs],
        ".",
        color=GREY,
        markersize=2,
        label="a roofline of the datasheet",
    )
    for number, family in enumerate(sorted({one.measured.family for one in judged})):
        own = [one for one in judged if one.measured.family == family]
        ax.plot(
            [one.value * scale for one in own],
            [one.predicted / one.value for one in own],
            linestyle="",
            marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            markersize=3,
            alpha=0.8,
            label=family,
        )
    ends = np.array([min(one.value for one in judged), max(one.value for one in judged)]) * scale
    ax.fill_between(ends, 1 / 1.1, 1.1, color="black", alpha=0.08, linewidth=0)
    ax.axhline(1, color="black", linewidth=0.8)
    log_axis(ax.xaxis, f"measured [{unit}]")
    log_axis(ax.yaxis, "predicted / measured")
    ax.legend(frameon=False, fontsize=5, ncols=2)
    return figure


@present.save.register
def save_stick(stick: Stick, out: Path, sheet: Sheet = AS_DRAWN) -> None:
    """Write comparison.json, tables.md, regimes.md and a figure a quantity into the folder."""
    save_text(stick.json(), out / "comparison.json")
    save_text(markdown(stick), out / "tables.md")
    save_text(markdown(stick, by_regime=True), out / "regimes.md")
    for quantity in (TIME, DRAM, L2):
        judged = [one for one in stick.judged if one.quantity == quantity and one.predicted > 0]
        if judged:
            stem = quantity.replace(" ", "_").lower()
            save_figure(scatter(judged, quantity), out, stem, sheet)
