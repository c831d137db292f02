"""The table and the figure of a search."""

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.explore.search import Objective, SearchAnswer, Trial
from sim.inputs.files import save_text, save_texts
from sim.inputs.units import show
from sim.report import present
from sim.report.figure import COLOURS, GREY, new_figure
from sim.report.sheet import AS_DRAWN, Sheet, save_figure
from sim.report.table import new_table, show_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNITS: dict[Objective, str] = {"time": "s", "energy": "J", "hbm_bytes": "B"}
_PLOTTED: dict[Objective, tuple[float, str]] = {
    "time": (1e3, "time [ms]"),
    "energy": (1.0, "energy [J]"),
    "hbm_bytes": (1e-9, "HBM traffic [GB]"),
    "area": (1.0, "area of the die"),
    "price": (1.0, "price of the parts"),
}
_SHOWN = 30  # rows
COSTS = "Areas and prices are estimates of which only ratios mean something (sim/explore/cost.py)."


@present.show.register
def show_search(answer: SearchAnswer) -> None:
    """A row a member of the front (some, where they are many), by its objectives and figures."""
    keys = list(answer.front[0].design) if answer.front else []
    names = [key.removeprefix("hardware.").removeprefix("schedule.") for key in keys]
    table = new_table(answer.title, "trial", *map(_column, answer.objectives), *names)
    if not isinstance(answer.base, str):
        cells = [_cell(answer, k, answer.base) for k in range(len(answer.objectives))]
        table.add_row("as given", *cells, style="dim")
    for trial in _spread(answer.front):
        cells = [_cell(answer, k, trial.values) for k in range(len(answer.objectives))]
        table.add_row(str(trial.number), *cells, *(str(trial.design[key]) for key in keys))
    show_table(table)
    counted = sum(one.count for one in answer.infeasible)
    print(
        f"{len(answer.trials) + counted} trials, {counted} of them infeasible; the front has "
        f"{len(answer.front)}."
    )
    for one in answer.infeasible:
        print(f"{one.count} infeasible: {one.reason}")
    if isinstance(answer.base, str):
        print(f"{answer.hardware} as given is infeasible: {answer.base}")
    if {"area", "price"} & set(answer.objectives):
        print(COSTS)


def _column(objective: Objective) -> str:
    return "HBM bytes" if objective == "hbm_bytes" else objective


def _cell(answer: SearchAnswer, k: int, values: tuple[float, ...]) -> str:
    """An objective: areas and prices as a multiple of those that the device has as given."""
    objective = answer.objectives[k]
    if objective in _UNITS:
        return show(values[k], _UNITS[objective])
    if isinstance(answer.base, str):
        return f"{values[k]:.4g} {'mm2' if objective == 'area' else 'dollars'}"
    return f"{values[k] / answer.base[k]:.3f} x"


def _spread(front: list[Trial]) -> list[Trial]:
    """At most so many as a table holds, evenly along the front."""
    if len(front) <= _SHOWN:
        return front
    return [front[round(n * (len(front) - 1) / (_SHOWN - 1))] for n in range(_SHOWN)]


@present.save.register
def save_search(answer: SearchAnswer, out: Path, sheet: Sheet = AS_DRAWN) -> None:
    """Leave results.json, the figure and the front's profiles (`front/`) in the folder `out`."""
    save_text(answer.json(), out / "results.json")
    save_figure(pareto(answer), out, "pareto", sheet)
    front = out / "front"
    front.mkdir(exist_ok=True)
    save_texts(answer.profiles, front)
    for old in front.glob("trial_*.toml"):
        if old.name not in answer.profiles:
            old.unlink(missing_ok=True)


def pareto(answer: SearchAnswer) -> "Figure":
    """Every pair of objectives: what was tried, the front, and the device as given.

    A single objective is drawn by trial, with the best so far.
    """
    if len(answer.objectives) == 1:
        return best_so_far(answer)
    pairs = list(combinations(range(len(answer.objectives)), 2))
    panel = 4.0 if len(pairs) == 1 else 3.0
    title = f"Designs that no other beats in everything\n{answer.title}"
    figure, axes = new_figure(title, len(pairs), panel=panel)
    for ax, (y, x) in zip(axes, pairs, strict=True):
        (x_scale, x_label), (y_scale, y_label) = _scale(answer, x), _scale(answer, y)
        for trials, colour, size, label in (
            (answer.trials, GREY, 3, "tried"),
            (answer.front, COLOURS[0], 5, "front"),
        ):
            points = sorted((t.values[x] * x_scale, t.values[y] * y_scale) for t in trials)
            line = "-" if label == "front" and len(pairs) == 1 else "none"
            ax.plot(
                [point[0] for point in points],
                [point[1] for point in points],
                marker="o",
                markersize=size,
                color=colour,
                linestyle=line,
                linewidth=1.2,
                drawstyle="steps-post",
                label=label,
            )
        if not isinstance(answer.base, str):
            place = answer.base[x] * x_scale, answer.base[y] * y_scale
            ax.plot(*place, "D", color=COLOURS[1], markersize=8, label="as given")
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False)
    return figure


def best_so_far(answer: SearchAnswer) -> "Figure":
    """The only objective by trial, with the best so far and the device as given."""
    figure, (ax,) = new_figure(f"Best so far\n{answer.title}", panel=4.0)
    scale, label = _scale(answer, 0)
    numbers = [trial.number for trial in answer.trials]
    tried = [trial.values[0] * scale for trial in answer.trials]
    ax.plot(numbers, tried, "o", color=GREY, markersize=4, label="tried")
    best = [min(tried[: number + 1]) for number in range(len(tried))]
    ax.step(numbers, best, where="post", color=COLOURS[0], label="best so far")
    if not isinstance(answer.base, str):
        style: dict[str, Any] = {"color": COLOURS[1], "linewidth": 1, "linestyle": "--"}
        ax.axhline(answer.base[0] * scale, label="as given", **style)
    ax.set_xlabel("trial")
    ax.set_ylabel(label)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return figure


def _scale(answer: SearchAnswer, k: int) -> tuple[float, str]:
    """By what to multiply an objective for an axis, and the axis's label."""
    objective = answer.objectives[k]
    scale, label = _PLOTTED[objective]
    if objective in _UNITS:
        return scale, label
    if isinstance(answer.base, str):
        return scale, f"{label} [{'mm2' if objective == 'area' else 'dollars'}]"
    return scale / answer.base[k], f"{label} [{answer.hardware} as given = 1]"
