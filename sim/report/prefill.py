"""The table and the figure of a `[[model]]` question."""

from pathlib import Path
from typing import TYPE_CHECKING

from sim.inputs.files import save_text
from sim.inputs.units import show, show_binary
from sim.report import present
from sim.report.plots import COLOURS, GREY, new_figure, plain_decades, save_figure
from sim.report.table import new_table, show_table
from sim.whole_model.passes import PassTime
from sim.whole_model.prefill import ModelAnswer, ModelRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@present.show.register
def show_prefill(answer: ModelAnswer) -> None:
    """A row a model; what stands for another one says so."""
    hardware = answer.hardware
    table = new_table(
        f"{answer.title} ({hardware.profile.title})",
        "context",
        "model",
        "tokens",
        "weights",
        "KV cache",
        "GPUs to hold both",
        "prefill",
        "attention",
        "matrices",
        "attention's share",
        "attention HBM",
        "a million tokens",
        numeric_from=2,
    )
    for row in answer.rows:
        table.add_row(
            row.label,
            f"{row.model}, a proxy" if row.proxy_of else row.model,
            f"{row.seq_len:,}",
            show(row.parameter_bytes, "B"),
            show(row.kv_bytes, "B"),
            str(row.gpus),
            *_times(row.time),
            _price(row.price_per_million_tokens),
        )
    if hardware.price_per_hour is None:
        table.columns.pop()
    show_table(table)
    for row in answer.rows:
        if row.reason:
            print(f"{row.label}: out of memory: {row.reason}")
        if row.time and row.time.attention_error:
            error = row.time.attention_error
            print(
                f"{row.label}: attention is fast-forwarded, with an estimated error of {error:.1%}"
            )


def _times(time: PassTime | None) -> tuple[str, ...]:
    if time is None:
        return ("out of memory", "", "", "", "")
    return (
        show(time.time_s, "s"),
        show(time.attention_s, "s"),
        show(time.dense_s, "s"),
        f"{time.attention_share:.0%}",
        show(time.attention_hbm_bytes, "B"),
    )


def _price(price: float | None) -> str:
    return "" if price is None else f"${price:.3g}"


@present.save.register
def save_prefill(answer: ModelAnswer, out: Path) -> None:
    """Leave results.json and the figure in the folder `out`."""
    save_text(answer.json(), out / "results.json")
    save_figure(prefill_figure(answer), out / "prefill.png")


def prefill_figure(answer: ModelAnswer) -> "Figure":
    """Above, times of attention and matrices; below, weights and cache against HBM's capacity."""
    profile = answer.hardware.profile
    figure, (above, below) = new_figure(
        f"Whole models' prefill on {profile.title}\n{answer.title}", panels=2
    )
    times = [row.time for row in answer.rows]
    _bars(above, "attention", 0, [time.attention_s if time else 0.0 for time in times])
    _bars(above, "matrices", 1, [time.dense_s if time else 0.0 for time in times])
    above.legend(frameon=False, loc="upper left")
    _bars(below, "KV cache", 0, [row.kv_bytes / 2**30 for row in answer.rows])
    _bars(below, "weights", 1, [row.parameter_bytes / 2**30 for row in answer.rows])
    below.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    above.set_ylabel("time [s]")
    below.set_ylabel("in HBM [GiB]")
    capacity = profile.hbm.capacity / 2**30
    below.axhline(capacity, color=GREY, linewidth=1)
    below.annotate(
        f"one GPU {show_binary(profile.hbm.capacity)}",
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


def _bars(ax: "Axes", name: str, number: int, heights: list[float]) -> None:
    """The first or the second bar of every row's pair, on a logarithmic axis."""
    places = [n - 0.2 + 0.4 * number for n in range(len(heights))]
    ax.bar(places, heights, 0.38, label=name, color=COLOURS[number])
    ax.set_xticks(range(len(heights)))
    if any(heights):
        ax.set_yscale("log")
        plain_decades(ax.yaxis)
