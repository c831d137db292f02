"""What changed between two results.json files, in sentences and as a table."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from sim.inputs.units import show
from sim.report import present
from sim.report.notes import CAUSES_IN_WORDS
from sim.report.table import new_table, show_table
from sim.runs.difference import Change, Comparison, Difference

_NOT_ASKED = {"hardware.": "the profile's", "schedule.": "the default"}
OF_THE_ORDER = 2  # differences below so many estimated errors may be the errors'
SAME = 5e-4  # a relative change below this is none
WORTH_SAYING = 0.1  # a part that changed by less than this share of the largest one is left out
MOST_PARTS = 3


@present.show.register
def show_comparison(comparison: Comparison) -> None:
    """What all pairs were asked otherwise, a sentence a pair, what has no pair, and a table."""
    shared = _shared(comparison.differences)
    if shared:
        print(f"B has {_asked(shared)}.")
    for d in comparison.differences:
        print(sentence(d, known=shared))
    for lone in comparison.unpaired:
        print(f"{_who(lone.schedule, lone.point)}: {lone.reason}.")
    if len(set(comparison.versions)) > 1:
        first, second = comparison.versions
        print(f"attnsim {first} wrote A, {second} wrote B.")
    if comparison.differences:
        print()
        show_table(_table(comparison))


def _shared(differences: list[Difference]) -> dict[str, tuple[Any, Any]]:
    """What every pair was asked otherwise, and alike."""
    if not differences:
        return {}
    first, *others = (d.asked for d in differences)
    return {key: pair for key, pair in first.items() if all(o.get(key) == pair for o in others)}


def _asked(asked: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(
        f"{key} {_plain(key, after)} instead of {_plain(key, before)}"
        for key, (before, after) in asked.items()
    )


def sentence(d: Difference, known: Mapping[str, tuple[Any, Any]] | None = None) -> str:
    """What an engineer would say of one pair: how much time, on what, which bytes.

    What was asked otherwise stands in it unless it is `known`.
    """
    own = {key: pair for key, pair in d.asked.items() if key not in (known or {})}
    who = _who(d.schedule, d.point) + (f" with {_asked(own)}" if own else "")
    said = [f"{who} takes {_time(d)}"]
    kernels = _parts(d.time_by_kernel_s, d.time_s.before, "s")
    if kernels and _has_kernels(d):
        said.append(f"By kernel: {', '.join(kernels)}")
    said.append(_traffic(d))
    was, now = (CAUSES_IN_WORDS[cause] for cause in d.bottleneck)
    said.append(
        f"What holds it back most is still {now}"
        if was == now
        else f"What holds it back most is now {now}, no longer {was}"
    )
    if doubt := _doubt(d):
        said.append(doubt)
    return ". ".join(said) + "."


def _has_kernels(d: Difference) -> bool:
    """Whether kernels tell more than the whole: there are several, and what is between them."""
    return len(d.time_by_kernel_s) > 2


def _who(schedule: str, point: Mapping[str, Any]) -> str:
    at = ", ".join(f"{key.split('.', 1)[-1]} {value}" for key, value in point.items())
    return f"{schedule} at {at}" if at else schedule


def _plain(key: str, value: Any) -> str:
    section, dot, _ = key.partition(".")
    return _NOT_ASKED.get(section + dot, "none") if value is None else str(value)


def _time(d: Difference) -> str:
    after, before = show(d.time_s.after, "s"), show(d.time_s.before, "s")
    if _relative(d.time_s) == "the same":
        return f"as long as before, {after}"
    in_words = {CAUSES_IN_WORDS.get(c, c): change for c, change in d.time_by_cause_s.items()}
    parts = [f"{text} on {cause}" for cause, text in _texts(in_words, d.time_s.before, "s")]
    return f"{after} instead of {before}, {_relative(d.time_s)}: {', '.join(parts)}"


def _traffic(d: Difference) -> str:
    bytes_, hits = d.hbm_bytes, d.l2_hit_rate
    if _relative(bytes_) == "the same":
        said = f"HBM traffic stays {show(bytes_.after, 'B')}"
    else:
        said = (
            f"HBM traffic goes from {show(bytes_.before, 'B')} to {show(bytes_.after, 'B')}, "
            f"{_relative(bytes_)}"
        )
        if _has_kernels(d):
            said += f" ({', '.join(_parts(d.hbm_bytes_by_kernel, bytes_.before, 'B'))})"
    if abs(hits.difference) >= 0.01:
        said += f", L2 hits from {hits.before:.0%} to {hits.after:.0%}"
    return said


def _doubt(d: Difference) -> str:
    """What of the difference fast-forwarding alone may have made, if anything."""
    small = [
        f"{what} (estimated error {show(error, unit)})"
        for what, change, error, unit in (
            ("time", d.time_s, d.time_error_s, "s"),
            ("HBM traffic", d.hbm_bytes, d.hbm_error_bytes, "B"),
        )
        if _relative(change) != "the same" and abs(change.difference) < OF_THE_ORDER * error
    ]
    if not small:
        return ""
    sides = [side for side, skipped in zip("AB", d.fast_forwarded, strict=True) if skipped]
    return (
        f"{' and '.join(sides)} {'were' if len(sides) == 2 else 'was'} fast-forwarded, which alone "
        f"may make such a difference in {' and '.join(small)}; limits.exact = true replays all"
    )


def _relative(change: Change) -> str:
    """The change as a share or, where it is large, a factor: "21% less", "3.2 times as much"."""
    ratio = change.ratio
    if ratio is None:
        return "from nothing"
    if abs(ratio - 1) < SAME:
        return "the same"
    if ratio >= 1.995:
        return f"{ratio:.3g} times as much"
    share = abs(ratio - 1)
    return f"{share:.{0 if share >= 0.0995 else 1}%} {'more' if ratio > 1 else 'less'}"


def _parts(changes: Mapping[str, Change], whole: float, unit: str) -> list[str]:
    return [f"{name} {text}" for name, text in _texts(changes, whole, unit)]


def _texts(changes: Mapping[str, Change], whole: float, unit: str) -> list[tuple[str, str]]:
    """The parts that changed most, each with its change in words; `changes` come in that order."""
    most = max((abs(change.difference) for change in changes.values()), default=0.0)
    told = [
        (name, f"{show(abs(c.difference), unit)} {'more' if c.difference > 0 else 'less'}")
        for name, c in changes.items()
        if abs(c.difference) >= max(WORTH_SAYING * most, SAME * whole)
    ]
    return told[:MOST_PARTS]


def _table(comparison: Comparison) -> Table:
    """A row a pair and, if all are of one point, its kernels and what causes changed below it."""
    table = new_table(
        f"A: {comparison.before}, B: {comparison.after}",
        "schedule",
        "point",
        "time A",
        "time B",
        "B − A",
        "B / A",
        "HBM A",
        "HBM B",
        "B − A",
        "B / A",
        "held back by",
        numeric_from=2,
    )
    one_point = len({str(d.point) for d in comparison.differences}) == 1
    for d in comparison.differences:
        point = ", ".join(f"{key.split('.', 1)[-1]} {value}" for key, value in d.point.items())
        table.add_row(
            d.schedule,
            point,
            *_cells(d.time_s, "s"),
            *_cells(d.hbm_bytes, "B"),
            " → ".join(dict.fromkeys(d.bottleneck)),
        )
        if not one_point:
            continue
        kernels = {**d.time_by_kernel_s, **d.hbm_bytes_by_kernel}
        for name in kernels if _has_kernels(d) else ():
            spent, moved = (
                changes.get(name, Change(0, 0))
                for changes in (d.time_by_kernel_s, d.hbm_bytes_by_kernel)
            )
            cells = *_cells(spent, "s"), *_cells(moved, "B")
            table.add_row(f"  {name}", "", *cells, "", style="dim")
        for cause, change in d.time_by_cause_s.items():
            if abs(change.difference) > SAME * d.time_s.before:
                name = f"  on {CAUSES_IN_WORDS[cause]}"
                table.add_row(name, "", *_cells(change, "s"), style="dim")
    if all(not d.point for d in comparison.differences):
        table.columns = [column for column in table.columns if column.header != "point"]
    return table


def _cells(change: Change, unit: str) -> tuple[str, str, str, str]:
    if not change.before and not change.after:
        return ("", "", "", "")
    sign = "−" if change.difference < 0 else "+"
    changed = abs(change.difference) > 1e-9 * max(change.before, change.after)
    return (
        show(change.before, unit),
        show(change.after, unit),
        f"{sign}{show(abs(change.difference), unit)}" if changed else "",
        "" if change.ratio is None else f"{change.ratio:.2f}",
    )
