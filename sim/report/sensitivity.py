"""The tables and the figure of `attnsim explore sensitivity`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.explore.sensitivity import Effect, Elasticity, ScheduleSensitivity, Sensitivity
from sim.inputs.files import save_text
from sim.inputs.units import show
from sim.report import present
from sim.report.figure import COLOURS, GREY, new_figure
from sim.report.notes import CAUSES_IN_WORDS, filled_by
from sim.report.sheet import AS_DRAWN, Sheet, save_figure
from sim.report.table import figure_text, new_table, show_table
from sim.runs.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST = 0.005  # an elasticity that two digits show as 0
JUMP = 0.05, 0.25  # sides differ much: by more than this, and this share of the larger one
MOST_BARS = 12
LEAST_CAUSE = 0.05  # of the time: what is told of what holds a schedule back
BAR_INCHES = 0.27
HBM_BYTES: dict[str, Any] = {
    "linestyle": "none",
    "marker": "D",
    "color": COLOURS[4],
    "markersize": 6,
    "markeredgecolor": "white",
}


@present.show.register
def show_sensitivity(answer: Sensitivity) -> None:
    """A table a schedule, of the figures that matter to it, and how to read it."""
    for of in answer.schedules:
        if of.record.status != "ok":
            print(f"{of.record.schedule}: {of.record.status}: {of.record.reason}")
            continue
        _print_schedule(of, answer)
    print(
        f"What 1% more of a figure does, in %: the slope between {answer.shift:.0%} more and as "
        "much less, whole numbers at least 1 away.\n"
        "In brackets, where they differ much, the slopes below and above the figure as it is. Each "
        "moves alone: with\nsm.count and sm.clock what SMs do, tensor cores too, but neither L2 "
        "and HBM nor the power limit."
    )


def _print_schedule(of: ScheduleSensitivity, answer: Sensitivity) -> None:
    results = [show(of.record.time_s or 0, "s"), f"{show(of.record.hbm_bytes or 0, 'B')} of HBM"]
    if of.record.energy_j is not None:
        results.insert(1, show(of.record.energy_j, "J"))
    table = new_table(
        f"{of.record.schedule} on {answer.hardware.title}: {', '.join(results)}",
        "figure",
        "is",
        "from",
        "to",
        "time",
        "energy",
        "HBM bytes",
    )
    told = [effect for effect in of.effects if _matters(effect)]
    for effect in told:
        parameter = effect.parameter
        values = (parameter.value, parameter.down, parameter.up)
        table.add_row(
            parameter.key,
            *("" if v is None else figure_text(_last(effect), _rounded(v)) for v in values),
            *(
                "" if elasticity is None else _text(elasticity)
                for elasticity in (effect.time, effect.energy, effect.hbm_bytes)
            ),
        )
    if of.record.energy_j is None:
        table.columns = [column for column in table.columns if column.header != "energy"]
    show_table(table)
    print(f"  held back by {_held_back_by(of.record)}")
    if fixed := [e.parameter.key for e in of.effects if e.time.central is None]:
        print(f"  cannot run with another {', '.join(fixed)}")
    change = "nothing by 0.005%"
    if skipped := of.record.fast_forward:
        print(
            f"  fast-forwarded, with an estimated error of {skipped['time_error']:.2%} of time and "
            f"{skipped['hbm_error']:.2%} of HBM bytes: what that alone\n  may make of a slope is "
            "told as ±, or left out; limits.exact = true replays all"
        )
        change += ", or no more than that error may"
    print(f"  {len(of.effects) - len(told)} other figures change {change}\n")


def _held_back_by(record: Record) -> str:
    """Its largest causes in words, and what fills issue slots where they are among them."""
    causes = [(c, share) for c, share in record.bottleneck_shares.items() if share >= LEAST_CAUSE]
    kernel = record.longest_kernel
    return ", ".join(
        f"{CAUSES_IN_WORDS[cause]} {share:.0%}"
        + (f" (filled by {filled_by(kernel)})" if cause == "issue" and kernel else "")
        for cause, share in causes
    )


def _rounded(value: float) -> float:
    """A figure as it is looked at; whole numbers are counts, and stay as they are."""
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _last(effect: Effect) -> str:
    return effect.parameter.key.rpartition(".")[2]


def _matters(effect: Effect) -> bool:
    return any(map(_shows, (effect.time, effect.energy, effect.hbm_bytes)))


def _shows(elasticity: Elasticity | None) -> bool:
    """Whether two digits show any of it."""
    if elasticity is None:
        return False
    noise = elasticity.noise
    slopes = ((elasticity.central, noise), (elasticity.down, 2 * noise), (elasticity.up, 2 * noise))
    return any(abs(slope or 0) >= max(SMALLEST, unsure) for slope, unsure in slopes)


def jumps(elasticity: Elasticity) -> bool:
    """Whether the two sides differ much, so that the slope between them says little."""
    down, up = elasticity.down, elasticity.up
    if down is None or up is None:
        return False
    at_least, share = JUMP
    unsure = 4 * elasticity.noise  # of the difference
    return abs(down - up) > max(at_least, unsure, share * max(abs(down), abs(up)))


def _text(elasticity: Elasticity) -> str:
    if elasticity.central is None:
        return ""
    if jumps(elasticity):
        sides = f"{_signed(elasticity.down)}, {_signed(elasticity.up)}"
        return f"{_signed(elasticity.central)} ({sides})"
    if SMALLEST <= abs(elasticity.central) < elasticity.noise:
        return f"±{elasticity.noise:.2f}"
    return _signed(_central(elasticity))


def _central(elasticity: Elasticity) -> float:
    """The slope between both shifts; 0 where it may be noise alone."""
    slope = elasticity.central or 0.0
    return 0.0 if abs(slope) < elasticity.noise else slope


def _signed(slope: float | None) -> str:
    text = f"{slope or 0:+.2f}".replace("-", "−")
    return "0" if text[1:] == "0.00" else text


@present.save.register
def save_sensitivity(answer: Sensitivity, out: Path, sheet: Sheet = AS_DRAWN) -> None:
    """Leave results.json and, where anything ran, the figure in the folder `out`."""
    save_text(answer.json(), out / "results.json")
    if any(of.effects for of in answer.schedules):
        save_figure(tornado(answer), out, "sensitivity", sheet)


def tornado(answer: Sensitivity) -> "Figure":
    """A panel a schedule: bars of the time's elasticities, the largest on top.

    Markers say the same of HBM bytes; a line spans the two sides where they differ much. Energy is
    left to the table.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown = [of for of in answer.schedules if of.effects]
    bars = [
        [e for e in of.effects if _shows(e.time) or _shows(e.hbm_bytes)][:MOST_BARS] for of in shown
    ]
    most = max(1, *map(len, bars))
    figure, axes = new_figure(
        f"What 1% more of each figure changes ({answer.hardware.title})\n{answer.title}",
        len(shown),
        panel=BAR_INCHES * most + 0.2,
    )
    figure.subplots_adjust(left=0.36)
    slopes = [slope for effects in bars for effect in effects for slope in _told(effect.time)]
    low, high = min(0.0, *slopes), max(0.0, *slopes)
    margin = 0.08 * (high - low or 1)
    for ax, of, effects in zip(axes, shown, bars, strict=True):
        ax.set_xlim(low - margin, high + margin)
        _panel(ax, of, effects, (low, high))
    axes[-1].set_xlabel(f"change in %, steps of {answer.shift:.0%}")
    handles = [
        Patch(color=COLOURS[0], label="time"),
        Line2D([], [], color="black", linewidth=1, marker="|", label="time, down and up apart"),
        Line2D([], [], label="HBM bytes", **HBM_BYTES),
    ]
    axes[0].legend(handles=handles, frameon=False, fontsize=8)
    return figure


def _told(elasticity: Elasticity) -> list[float]:
    """The slopes that the figure draws."""
    sides = (elasticity.down, elasticity.up) if jumps(elasticity) else ()
    return [slope or 0 for slope in (_central(elasticity), *sides)]


def _panel(
    ax: "Axes", of: ScheduleSensitivity, effects: list[Effect], reach: tuple[float, float]
) -> None:
    """One schedule's bars; a marker beyond the `reach` of all times stands at its end, named."""
    places = range(len(effects))
    ax.barh(places, [_central(e.time) for e in effects], 0.7, color=COLOURS[0])
    for place, effect in enumerate(effects):
        if jumps(effect.time):
            ax.plot(
                _told(effect.time)[1:],
                [place, place],
                "|-",
                color="black",
                linewidth=1,
                markersize=7,
            )
        slope = _central(effect.hbm_bytes)
        if abs(slope) >= SMALLEST:
            within = min(max(slope, reach[0]), reach[1])
            ax.plot(within, place, **HBM_BYTES)
            if within != slope:
                ax.annotate(
                    _signed(slope),
                    (within, place),
                    (-6 if slope < 0 else 6, 0),
                    textcoords="offset points",
                    ha="right" if slope < 0 else "left",
                    va="center",
                    fontsize=7,
                )
    ax.axvline(0, color=GREY, linewidth=1)
    ax.set_yticks(places, [e.parameter.key for e in effects], fontsize=8)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_title(
        f"{of.record.schedule}: {show(of.record.time_s or 0, 's')}", fontsize=9, loc="left", pad=4
    )
