"""The table and the figure of a `[[model]]` question."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.inputs.files import save_text
from sim.inputs.units import show, show_binary
from sim.report import present
from sim.report.figure import COLOURS, GREY, MARKERS, log_axis, new_figure
from sim.report.sheet import AS_DRAWN, Sheet, save_figure
from sim.report.table import new_table, show_table
from sim.whole_model.model import ModelAnswer, ModelRow
from sim.whole_model.passes import PassTime

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Five passes of docs/schedules.md ("Whole models", "Asked in public, and off").
LEFT_OUT = (
    "Gaps between kernels, norms and the host are left out: published times of such passes were "
    "1.0 to 1.5 times as long"
)


@dataclass(frozen=True)
class Column:
    """Of the table: its heading, a row's text there, and whether it is left out where all agree."""

    heading: str
    text: Callable[[ModelRow], str]
    plain: str | None = None  # what is not worth a column, where every row has it


def _of_time(text: Callable[[PassTime], str]) -> Callable[[ModelRow], str]:
    return lambda row: text(row.time) if row.time else ""


def _model(row: ModelRow) -> str:
    """Whose shape it is, where the label does not say it."""
    return f"{row.model}, a proxy" if row.proxy_of else row.model if row.model != row.label else ""


def _attention(time: PassTime) -> str:
    return f"{show(time.attention_s, 's')} ({time.attention_share:.0%})"


def _shared(row: ModelRow) -> str:
    return f"{row.gpus}, {row.parallel}" if row.gpus > 1 else "1"


def _price(row: ModelRow) -> str:
    price = row.price_per_million_tokens
    return "" if price is None else f"${price:.3g}"


_COLUMNS = (
    Column("setting", lambda row: row.label),
    Column("model", _model, ""),
    Column("phase", lambda row: row.phase, "prefill"),
    Column("batch", lambda row: f"{row.batch:,}", "1"),
    Column("context", lambda row: f"{row.seq_len:,}"),
    Column("weights", lambda row: show(row.parameter_bytes, "B")),
    Column("KV cache", lambda row: show(row.kv_bytes, "B"), "0 B"),
    Column("GPUs needed", lambda row: str(row.gpus_needed)),
    Column("GPUs", _shared, "1"),
    Column("time", lambda row: show(row.time.time_s, "s") if row.time else row.status),
    Column("attention", _of_time(_attention)),
    Column("matrices", _of_time(lambda time: show(time.dense_s, "s"))),
    Column("exchanges", _of_time(lambda time: show(time.exchange_s, "s")), "0 s"),
    Column("optimiser", _of_time(lambda time: show(time.update_s, "s")), "0 s"),
    Column("tokens/s", lambda row: f"{row.tokens_per_s:,.0f}" if row.tokens_per_s else ""),
    Column("a million tokens", _price, ""),
)


@present.show.register
def show_passes(answer: ModelAnswer) -> None:
    """A row a model; what stands for another one says so."""
    texts = {c: [c.text(row) for row in answer.rows] for c in _COLUMNS}
    told = [c for c in _COLUMNS if c.plain is None or set(texts[c]) - {c.plain, ""}]
    table = new_table(
        f"{answer.title} ({answer.hardware.profile.title})",
        *(column.heading for column in told),
        numeric_from=2,
    )
    for number in range(len(answer.rows)):
        table.add_row(*(texts[column][number] for column in told))
    show_table(table)
    reasons: dict[str, list[str]] = {}
    for row in answer.rows:
        if row.reason:
            reasons.setdefault(f"{row.status}: {row.reason}", []).append(row.label)
    for reason, labels in reasons.items():
        print(f"{', '.join(labels)}: {reason}")
    if beyond := [row.label for row in answer.rows if row.time and row.gpus_needed > row.gpus]:
        print(
            f"{', '.join(beyond)}: does not fit; its times are those of GPUs that had the memory "
            "(gpus says over how many it runs)"
        )
    errors = {row.label: row.time.attention_error for row in answer.rows if row.time}
    if skipped := [label for label, error in errors.items() if error]:
        most = max(errors.values())
        print(
            f"{', '.join(skipped)}: attention is fast-forwarded, with an estimated error of "
            f"{'at most ' if len(skipped) > 1 else ''}{most:.1%}"
        )
    if errors:
        print(LEFT_OUT)


@present.save.register
def save_passes(answer: ModelAnswer, out: Path, sheet: Sheet = AS_DRAWN) -> None:
    """Leave results.json and the figure in the folder `out`."""
    save_text(answer.json(), out / "results.json")
    save_figure(passes_figure(answer), out, "passes", sheet)


def passes_figure(answer: ModelAnswer) -> "Figure":
    """Above, what times are made of; below, weights and cache against HBM's capacity."""
    profile = answer.hardware.profile
    figure, (above, below) = new_figure(
        f"Whole models on {profile.title}\n{answer.title}", panels=2
    )
    times = [row.time for row in answer.rows]
    parts = {
        "attention": [time.attention_s if time else 0.0 for time in times],
        "matrices": [time.dense_s if time else 0.0 for time in times],
        "exchanges": [time.exchange_s if time else 0.0 for time in times],
        "optimiser": [time.update_s if time else 0.0 for time in times],
    }
    _points(above, "time [s]", {name: parts[name] for name in parts if any(parts[name])})
    held = {
        "KV cache": [row.kv_bytes / 1e9 for row in answer.rows],
        "weights": [row.parameter_bytes / 1e9 for row in answer.rows],
    }
    _points(below, "in HBM [GB]", held)
    capacity = profile.hbm.capacity / 1e9
    below.axhline(capacity, color=GREY, linewidth=1)
    below.annotate(
        f"one GPU {capacity:.3g} GB ({show_binary(profile.hbm.capacity)})",
        (0, capacity),
        (2, 2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
        color="#666666",
    )
    above.set_xticklabels([])
    below.set_xticks(range(len(answer.rows)), [_name(row) for row in answer.rows], fontsize=7)
    return figure


def _name(row: ModelRow) -> str:
    proxy = f"\n({row.model})" if row.proxy_of else ""
    return f"{row.label}\n{row.seq_len:,}{proxy}"


def _points(ax: "Axes", label: str, parts: dict[str, list[float]]) -> None:
    """Each row's parts above one another, on a logarithmic axis."""
    for number, (name, heights) in enumerate(parts.items()):
        style: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number]}
        places = [n for n, height in enumerate(heights) if height]
        ax.plot(places, [heights[n] for n in places], linestyle="none", label=name, **style)
    ax.set_xticks(range(max(map(len, parts.values()), default=0)))
    if parts:
        log_axis(ax.yaxis, label)
        ax.margins(x=0.08)
        ax.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=4)
