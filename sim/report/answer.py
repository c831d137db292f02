"""What a run came to, in a sentence or two."""

from collections import Counter

from sim.inputs.units import show
from sim.report.notes import CAUSES_IN_WORDS
from sim.runs.record import Record


def answer(records: list[Record]) -> str:
    """Which schedule is fastest, by how much, and what holds it back; over a sweep, how often."""
    points: dict[str, list[Record]] = {}
    for record in records:
        points.setdefault(str(record.point), []).append(record)
    ran = [[r for r in at_point if r.time_s] for at_point in points.values()]
    ran = [at_point for at_point in ran if at_point]
    left = [record for record in records if not record.time_s]
    if not ran:
        first = records[0]
        return f"Nothing ran: {first.schedule}: {first.status}: {first.reason}."
    text = _of_point(ran[0]) if len(points) == 1 else _of_sweep(ran, len(points))
    if left:
        why = f"{left[0].schedule}: {left[0].status}"
        text += f" {len(left):,} of {len(records):,} did not run (such as {why})."
    return text


def _time_s(record: Record) -> float:
    return record.time_s or float("inf")


def _of_point(ran: list[Record]) -> str:
    best = min(ran, key=_time_s)
    cause, share = next(iter(best.bottleneck_shares.items()))
    took = (
        f"{show(_time_s(best), 's')}, held back by {CAUSES_IN_WORDS[cause]} for {share:.0%} of it"
    )
    moves = f"{show(best.hbm_bytes or 0, 'B')} through HBM"
    if len(ran) == 1:
        return f"{best.schedule} takes {took}, and moves {moves}."
    slowest = max(ran, key=_time_s)
    ratio = _time_s(slowest) / _time_s(best)
    most = max(ran, key=lambda record: record.hbm_bytes or 0)
    others = "" if most is best else f", {most.schedule} {show(most.hbm_bytes or 0, 'B')}"
    return (
        f"{best.schedule} is fastest: {took}; {ratio:.3g} times as fast as {slowest.schedule}. "
        f"It moves {moves}{others}."
    )


def _of_sweep(ran: list[list[Record]], points: int) -> str:
    schedules = dict.fromkeys(record.schedule for at_point in ran for record in at_point)
    times_s = [_time_s(record) for at_point in ran for record in at_point]
    span = f"from {show(min(times_s), 's')} to {show(max(times_s), 's')}"
    if len(schedules) == 1:
        return f"{next(iter(schedules))} takes {span} over {points:,} points."
    wins = Counter(min(at_point, key=_time_s).schedule for at_point in ran)
    (first, times), *others = wins.most_common()
    of = f"{len(ran):,} points" if len(ran) == points else f"the {len(ran):,} points where one ran"
    text = f"{first} is fastest at {times:,} of {of}"
    text += "".join(f", {schedule} at {count:,}" for schedule, count in others) + "."
    ratios = [
        max(_time_s(rival) for rival in at_point if rival is not record) / _time_s(record)
        for at_point in ran
        for record in at_point
        if record.schedule == first and len(at_point) > 1
    ]
    if ratios:
        rival = next(s for s in schedules if s != first) if len(schedules) == 2 else "the slowest"
        text += f" It is {min(ratios):.3g} to {max(ratios):.3g} times as fast as {rival}."
    return f"{text} Times go {span}."
