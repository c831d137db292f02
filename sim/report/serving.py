"""The table and the figure of a `[serving]` question."""

from pathlib import Path
from typing import TYPE_CHECKING

from sim.inputs.files import save_text
from sim.inputs.units import show
from sim.report import present
from sim.report.figure import COLOURS, GREY, log_axis, new_figure
from sim.report.sheet import AS_DRAWN, Sheet, save_figure
from sim.report.table import new_table, show_table
from sim.whole_model.serving import ServingAnswer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@present.show.register
def show_serving(answer: ServingAnswer) -> None:
    """A row a load, and where the server is saturated."""
    profile = answer.hardware.profile
    table = new_table(
        f"{answer.title} ({answer.model} on {profile.title})",
        "requests/s",
        "output tokens/s",
        "time to first token",
        "first token, p95",
        "time per output token",
        "output token, p95",
        "batch",
        "KV cache in use",
        "KV cache, most",
        "preemptions",
        "a million tokens",
        numeric_from=0,
    )
    for load in answer.loads:
        price = load.price_per_million_tokens
        table.add_row(
            f"{load.requests_per_s:g}",
            f"{load.tokens_per_s:,.0f}",
            show(load.ttft_median_s, "s"),
            show(load.ttft_p95_s, "s"),
            show(load.tpot_median_s, "s"),
            show(load.tpot_p95_s, "s"),
            f"{load.batch:.1f}",
            f"{load.cache_use:.0%}",
            f"{load.most_cache_use:.0%}",
            str(load.preemptions),
            "" if price is None else f"${price:.3g}",
        )
    if answer.hardware.price_per_hour is None:
        table.columns.pop()
    show_table(table)
    print(f"The KV cache holds {answer.cache_tokens:,} tokens. {saturation(answer)}")


def saturation(answer: ServingAnswer) -> str:
    """One sentence on the saturation point."""
    tokens, requests = answer.saturation_tokens_per_s, answer.saturation_requests_per_s
    if requests is None:
        return f"No load saturates the server: raise requests_per_s beyond {tokens:,.0f} tokens/s."
    return f"It is saturated at {tokens:,.0f} tokens/s, which is {requests:.3g} requests/s."


@present.save.register
def save_serving(answer: ServingAnswer, out: Path, sheet: Sheet = AS_DRAWN) -> None:
    """Leave results.json and the figure in the folder `out`."""
    save_text(answer.json(), out / "results.json")
    save_figure(latency_figure(answer), out, "latency", sheet)


def latency_figure(answer: ServingAnswer) -> "Figure":
    """Latencies against throughput, a point a load, named by its requests a second."""
    title = f"{answer.model} served by one {answer.hardware.profile.title}\n{answer.title}"
    figure, axes = new_figure(title, panels=2)
    tokens = [load.tokens_per_s for load in answer.loads]
    panels = (
        (
            "time to first token [s]",
            [load.ttft_median_s for load in answer.loads],
            [load.ttft_p95_s for load in answer.loads],
        ),
        (
            "time per output token [ms]",
            [load.tpot_median_s * 1e3 for load in answer.loads],
            [load.tpot_p95_s * 1e3 for load in answer.loads],
        ),
    )
    # Names stand where the other line is not: below the medians of a linear axis.
    for ax, (_, median, p95), names_up in zip(axes, panels, (6, -13), strict=True):
        ax.plot(tokens, median, "o-", color=COLOURS[0], label="median")
        ax.plot(tokens, p95, "s--", color=COLOURS[1], label="95th percentile")
        ax.axvline(
            answer.saturation_tokens_per_s, color=GREY, linewidth=1, label="most tokens a second"
        )
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.set_xlim(left=0)
        for load, x, y in zip(answer.loads, tokens, median, strict=True):
            ax.annotate(
                f"{load.requests_per_s:g}",
                (x, y),
                (0, names_up),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color="#666666",
            )
    log_axis(axes[0].yaxis, panels[0][0])
    axes[1].set_ylabel(panels[1][0])
    axes[1].set_ylim(bottom=0)
    axes[1].set_xlabel("output tokens a second\n(points are named by their requests a second)")
    axes[0].legend(frameon=False)
    return figure
