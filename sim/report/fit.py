"""Whether it fits: the table, and figures of what lives in HBM and of how far contexts go."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.inputs.files import save_text
from sim.inputs.units import show_binary
from sim.report import present
from sim.report.figure import COLOURS, GREY, MARKERS, log_axis, new_figure, row_figure
from sim.report.sheet import AS_DRAWN, Sheet, save_figure
from sim.report.table import new_table, show_table
from sim.whole_model.capacity import MOST_TOKENS, memory
from sim.whole_model.fit import FitAnswer, RowAnswer, UseAnswer
from sim.whole_model.moments import Memory, Part, Use
from sim.whole_model.setting import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In the order in which bars stack them.
PARTS: dict[Part, str] = {
    "parameters": COLOURS[0],
    "gradients": COLOURS[5],
    "optimiser": COLOURS[6],
    "KV cache": COLOURS[1],
    "activations": COLOURS[2],
    "attention": COLOURS[3],
    "logits": COLOURS[4],
    "framework reserve": GREY,
}
FIRST = 1024  # tokens from which a figure shows what grows with the context
GROWING: tuple[Part, ...] = ("activations", "attention", "logits")
TRAINING: tuple[Use, ...] = ("training", "training with checkpointing")
Bars = dict[str, tuple[RowAnswer, Memory]]  # what has a bar, by its label


@present.show.register
def show_fit(answer: FitAnswer) -> None:
    """A row a setting with its longest contexts; below, what lives in HBM if it is the only one.

    Of several cards, the smallest that reaches the rule is named.
    """
    rule = [f"{answer.rule:,} tokens?"] if answer.rule else []
    table = new_table(
        f"{answer.title}\nThe longest context that fits, in tokens",
        "setting",
        "GPU",
        *answer.uses,
        "model's own",
        *rule,
        numeric_from=2,
    )
    for row in answer.rows:
        table.add_row(
            row.title,
            _gpu(row.setting),
            *(_tokens(use) for use in row.uses.values()),
            f"{row.setting.model.context:,}",
            *([_verdict(row, answer.rule)] if answer.rule else []),
        )
    show_table(table)
    if len(answer.rows) == 1:
        _print_parts(answer.rows[0])
    for line in smallest(answer):
        print(line)
    refusals = dict.fromkeys(u.refused for row in answer.rows for u in row.uses.values())
    for refusal in filter(None, refusals):
        print(f"–: {refusal}")


def _gpu(setting: Setting) -> str:
    """The GPUs, and what may be used of the memory of each."""
    gpus = f"{setting.gpus} × " if setting.gpus > 1 else ""
    share = f"{setting.utilisation:.3g} of " if setting.utilisation < 1 else ""
    return f"{gpus}{setting.hardware.name}, {share}{show_binary(setting.hardware.hbm.capacity)}"


def smallest(answer: FitAnswer) -> list[str]:
    """Of several cards, with the least memory in all, that which reaches the rule, by use."""
    if answer.rule is None or len({row.setting.hardware.name for row in answer.rows}) == 1:
        return []
    uses_of: dict[str, list[Use]] = {}
    for use in answer.uses:
        reach = [row for row in answer.rows if (row.uses[use].longest_tokens or 0) >= answer.rule]
        least = min(reach, key=lambda row: row.setting.gpus * row.capacity_bytes, default=None)
        told = f"the smallest is {least.title}" if least else "none holds them"
        uses_of.setdefault(told, []).append(use)
    return [
        f"{answer.rule:,} tokens in {', '.join(uses)}: {told}" for told, uses in uses_of.items()
    ]


def _tokens(answer: UseAnswer) -> str:
    if answer.longest_tokens is None:
        return "–"
    if answer.unlimited:
        return "no limit"
    return f"{answer.longest_tokens:,}" if answer.longest_tokens else "does not fit"


def _verdict(row: RowAnswer, rule: int) -> str:
    """Whether every use that can be reaches so many tokens; else those that do."""
    able = {use: told.longest_tokens for use, told in row.uses.items() if not told.refused}
    reaching = [use for use, tokens in able.items() if tokens and tokens >= rule]
    if reaching and len(reaching) == len(able):
        return "yes"
    return ", ".join(reaching) or "no"


def _print_parts(row: RowAnswer) -> None:
    needs = {use: answer.at_context for use, answer in row.uses.items() if answer.at_context}
    batch = f", batch {row.row.batch}" if row.row.batch > 1 else ""
    title = f"In a GPU's HBM at {row.context:,} tokens{batch}, at the fullest moment"
    table = new_table(title, "", *needs)
    for part in PARTS:
        if any(part in need.parts for need in needs.values()):
            cells = [need.parts.get(part) for need in needs.values()]
            table.add_row(part, *("" if cell is None else show_binary(cell) for cell in cells))
    table.add_row("all", *(show_binary(need.bytes) for need in needs.values()), style="bold")
    fits = [need.bytes <= row.capacity_bytes for need in needs.values()]
    capacity = f"of {show_binary(row.capacity_bytes)}"
    table.add_row(capacity, *("fits" if fit else "does not fit" for fit in fits))
    table.add_row("fullest in", *(need.moment for need in needs.values()), style="dim")
    show_table(table)


@present.save.register
def save_fit(answer: FitAnswer, out: Path, sheet: Sheet = AS_DRAWN) -> None:
    """Leave results.json and the figures in the folder `out`."""
    save_text(answer.json(), out / "results.json")
    figures = {"memory": parts(answer)}
    if len(answer.rows) > 1:
        figures["longest_context"] = longest(answer)
    if any(
        row.uses[use].longest_tokens for row in answer.rows for use in row.uses if use in TRAINING
    ):
        figures["training"] = training(answer)
    for name, figure in figures.items():
        save_figure(figure, out, name, sheet)


def parts(answer: FitAnswer) -> "Figure":
    """What lives in HBM, a bar a setting and use, against the GPU's capacity.

    Of several settings decoding is left out where prefill is asked for too, which needs more. The
    axis ends at twice the largest capacity, if anything comes as far.
    """
    bars = _bars(answer)
    contexts = {row.context for row in answer.rows}
    where = f" at {contexts.pop():,} tokens" if len(contexts) == 1 else ""
    figure, ax = row_figure(f"What lives in a GPU's HBM{where}\n{answer.title}", list(bars), 0.32)
    capacity_bytes = max(row.capacity_bytes for row in answer.rows)
    longest_bytes = max(capacity_bytes, *(needed.bytes for _, needed in bars.values()))
    most = min(2 * capacity_bytes, 1.1 * longest_bytes) / 2**30
    for place, (row, needed) in enumerate(bars.values()):
        _bar(ax, place, needed, row.capacity_bytes / 2**30, most)
    shown = {part for _, needed in bars.values() for part in needed.parts}
    for part in (part for part in PARTS if part in shown):
        ax.bar(0, 0, color=PARTS[part], label=part)
    ax.plot([], [], color="black", linewidth=2, label="capacity")
    ax.set_xlabel("GiB at the fullest moment")
    ax.set_xlim(0, most)
    _legend(figure, ax)
    return figure


def _bars(answer: FitAnswer) -> Bars:
    """What has a bar, under a label that tells it from the others."""
    alone = len(answer.rows) == 1
    uses = [use for use in answer.uses if alone or use != "decode" or "prefill" not in answer.uses]
    contexts = {row.context for row in answer.rows}
    bars: Bars = {}
    for row in answer.rows:
        for use in uses:
            if needed := row.uses[use].at_context:
                label = [] if alone else [row.title]
                label += [use.removeprefix("training with ")] if len(uses) > 1 else []
                label += [f"{row.context:,} tokens"] if len(contexts) > 1 else []
                bars[", ".join(label) or row.title] = (row, needed)
    return bars


def _bar(ax: "Axes", place: int, needed: Memory, capacity: float, most: float) -> None:
    """The parts beside one another, a line at the capacity, and their sum; `most` ends the axis.

    Capacity and axis are in GiB.
    """
    end = 0.0
    for part, colour in PARTS.items():
        width = needed.parts.get(part, 0) / 2**30
        ax.barh(place, width, 0.66, end, color=colour, edgecolor="white", linewidth=0.4)
        end += width
    edges = [place - 0.5, place + 0.5]
    ax.plot([capacity] * 2, edges, color="white", linewidth=4, solid_capstyle="butt")
    ax.plot([capacity] * 2, edges, color="black", linewidth=2, solid_capstyle="butt")
    hides_line = end <= capacity < end + 0.1 * most
    beside = capacity if hides_line else min(end, most)
    ax.annotate(
        f"{end:.3g} GiB" if end <= capacity else f"{end:.3g} GiB: does not fit",
        (beside, place),
        (5 if end < 0.8 * most else -5, 0),
        textcoords="offset points",
        ha="left" if end < 0.8 * most else "right",
        va="center",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
    )


def longest(answer: FitAnswer) -> "Figure":
    """The longest context that fits, a line a setting and a marker a use."""
    labels = [row.title for row in answer.rows]
    figure, ax = row_figure(f"The longest context that fits\n{answer.title}", labels, 0.3)
    reached = [use.longest_tokens for row in answer.rows for use in row.uses.values()]
    bounded = [tokens for tokens in reached if tokens and tokens < MOST_TOKENS]
    bounded = bounded or [answer.rule or 1]
    low, high = min(bounded) / 3, max(bounded) * 2
    for number, use in enumerate(answer.uses):
        colour, marker = COLOURS[number], MARKERS[number]
        style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none"}
        fill = colour if number % 2 == 0 else "none"
        ax.plot([], [], label=use, markersize=7, markerfacecolor=fill, **style)
        for place, row in enumerate(answer.rows):
            if tokens := row.uses[use].longest_tokens:
                shown = min(tokens, high / 1.1)
                ax.plot(shown, place, markersize=7, markerfacecolor=fill, **style)
    for place, row in enumerate(answer.rows):
        _name_ends(ax, place, row)
    log_axis(ax.xaxis, "tokens")
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlim(low, high)
    if answer.rule:
        ax.axvline(answer.rule, color="black", linewidth=1, linestyle="--", zorder=0)
        ax.plot([], [], "--", color="black", linewidth=1, label=f"{answer.rule:,} tokens")
    _legend(figure, ax)
    return figure


def _name_ends(ax: "Axes", place: int, row: RowAnswer) -> None:
    """Says at the ends of a row's line that a use has no limit, or does not fit."""
    words = [_tokens(use) for use in row.uses.values()]
    for word, edge, side in (("no limit", 1.0, "right"), ("does not fit", 0.0, "left")):
        if word in words:
            ax.annotate(
                word,
                (edge, place),
                (-14 if side == "right" else 4, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=8,
                color="#666666",
            )


def training(answer: FitAnswer) -> "Figure":
    """What grows with the context in training, without and with checkpointing, as far as it fits.

    These are activations, attention and logits together.
    """
    figure, (ax,) = new_figure(f"What grows with the context, as far as it fits\n{answer.title}")
    for number, row in enumerate(answer.rows):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        style: dict[str, Any] = {"color": colour, "marker": marker, "markerfacecolor": "none"}
        ax.plot([], [], label=row.title, **style)
        for use, line in zip(TRAINING, ("-", "--"), strict=True):
            last = row.uses[use].longest_tokens if use in row.uses else None
            if last:
                contexts = [int(n) for n in np.geomspace(min(last, FIRST), last, 20)]
                gib = [_growing_bytes(row, use, context) / 2**30 for context in contexts]
                ax.plot(contexts, gib, linestyle=line, markevery=[-1], markersize=8, **style)
    ax.plot([], [], "-", color=GREY, label="all kept")
    ax.plot([], [], "--", color=GREY, label="checkpointing")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.set_xlabel("context [tokens], log scale")
    log_axis(ax.yaxis, "activations, attention, logits [GiB]")
    ax.legend(frameon=False, fontsize=8)
    return figure


def _growing_bytes(row: RowAnswer, use: Use, context: int) -> int:
    needed = memory(row.setting, use, context).parts
    return sum(needed.get(part, 0) for part in GROWING)


def _legend(figure: "Figure", ax: "Axes") -> None:
    handles = ax.get_legend_handles_labels()
    figure.legend(*handles, frameon=False, loc="outside lower center", ncols=5, fontsize=8)
