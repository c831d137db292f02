"""What a run came to, in a sentence or two."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from math import log
from statistics import median
from typing import Any

from sim.inputs.units import amount, show
from sim.report.asked import where
from sim.report.causes import losses, why
from sim.report.notes import CAUSES_IN_WORDS, who
from sim.runs.record import Record

LEVEL = 1.02  # times nearer than this are told as the same
STEEP = 1.1  # a step of a sweep that takes or moves so many times as much is looked at
MISSES = 0.05  # of HBM reads, beyond the compulsory: so many more are told
Points = dict[str, list[Record]]


def answer(records: list[Record]) -> str:
    """Which schedule is fastest, where, by how much and why; what a sweep's values change."""
    points: Points = {}
    for record in records:
        points.setdefault(str(record.point), []).append(record)
    ran = [[r for r in at_point if r.time_s] for at_point in points.values()]
    ran = [at_point for at_point in ran if at_point]
    left = [record for record in records if not record.time_s]
    if not ran:
        first = records[0]
        return f"Nothing ran: {first.schedule}: {first.status}: {first.reason}."
    text = _of_point(ran[0]) if len(ran) == 1 else _of_sweep(ran, len(points))
    if left:
        such_as = "such as " if len(left) > 1 else ""
        why_not = f"{such_as}{who(left[0])}: {left[0].status}"
        text += f" {len(left):,} of {len(records):,} did not run ({why_not})."
    return text


def _time_s(record: Record) -> float:
    return record.time_s or float("inf")


def _of_point(ran: list[Record]) -> str:
    best = min(ran, key=_time_s)
    cause, share = next(iter(best.bottleneck_shares.items()))
    lost = f" ({'; '.join(told)})" if (told := losses(best)) else ""
    held = f"held back by {CAUSES_IN_WORDS[cause]} for {share:.0%} of it{lost}"
    took = f"{show(_time_s(best), 's')} and {show(best.hbm_bytes or 0, 'B')} through HBM"
    if len(ran) == 1:
        return f"{best.schedule} takes {took}{where(ran)}, {held}."
    text = f"{best.schedule} is fastest{where(ran)}: {took}, {held}."
    slowest = max((record for record in ran if record is not best), key=_time_s)
    if _ratio(slowest, best) < LEVEL:
        others = "The others are" if len(ran) > 2 else f"{slowest.schedule} is"
        return f"{text} {others} within 2% of it."
    times = _times_as_long(slowest, best)
    return f"{text} {slowest.schedule} takes {times} as long{_because(slowest, best)}."


def _because(slow: Record, fast: Record) -> str:
    return f": {'; '.join(reasons)}" if (reasons := why(slow, fast)) else ""


def _times_as_long(slow: Record, fast: Record) -> str:
    return f"{_time_s(slow) / _time_s(fast):.3g} times"


def _of_sweep(ran: list[list[Record]], points: int) -> str:
    every = [record for at_point in ran for record in at_point]
    schedules = dict.fromkeys(record.schedule for record in every)
    times_s = [_time_s(record) for record in every]
    span = f"from {show(min(times_s), 's')} to {show(max(times_s), 's')}"
    if len(schedules) == 1:
        (first,) = schedules
        told = [f"{first} takes {span} over {points:,} points{where(every)}."]
    else:
        wins = Counter(min(at_point, key=_time_s).schedule for at_point in ran)
        first = wins.most_common(1)[0][0]
        told = [_of_wins(ran, points, wins, list(schedules)), f"Times go {span}."]
    own = [record for record in every if record.schedule == first]
    compared = [one for key in own[0].point if (one := _of_key(key, own))]
    if compared and len(schedules) > 1:
        compared[0] = f"Of {first}, {compared[0]}"
    return " ".join(told + compared)


def _of_wins(ran: list[list[Record]], points: int, wins: Counter[str], schedules: list[str]) -> str:
    """How often each schedule is fastest, how far the first is ahead, and why where it is most.

    Where it is behind by more, that is told instead.
    """
    (first, count), *others = wins.most_common()
    of = f"{len(ran):,} points" if len(ran) == points else f"the {len(ran):,} points where one ran"
    text = f"{first} is fastest at {count:,} of {of}"
    text += "".join(f", {schedule} at {often:,}" for schedule, often in others)
    text += where([record for at_point in ran for record in at_point]) + "."
    pairs = [
        (max((rival for rival in at_point if rival is not record), key=_time_s), record)
        for at_point in ran
        for record in at_point
        if record.schedule == first and len(at_point) > 1
    ]
    if not pairs:
        return text
    least, most = (pick(pairs, key=lambda pair: _ratio(*pair)) for pick in (min, max))
    behind, ahead = least[::-1], most
    slow, fast = max(ahead, behind, key=lambda pair: _ratio(*pair))
    if _ratio(slow, fast) < LEVEL:
        return f"{text} It is within 2% of the others."
    rival = next(s for s in schedules if s != first) if len(schedules) == 2 else "the slowest other"
    span = dict.fromkeys(f"{_ratio(*pair):.3g}" for pair in (least, most))
    text += f" It is {' to '.join(span)} times as fast as {rival}."
    at = ", ".join(_name(key, value) for key, value in fast.point.items())
    than = f" as {fast.schedule}" if slow.schedule == first else ""
    times = f"{_times_as_long(slow, fast)} as long{than}{_because(slow, fast)}"
    return f"{text} At {at} {slow.schedule} takes {times}."


def _of_key(key: str, own: list[Record]) -> str:
    """What a swept key changes for a schedule: its slowest value beside its fastest, and why.

    Where other keys are swept too, at their values at which it changes most. Of a number that
    takes several values also the step that costs most, where one stands out.
    """
    lines: dict[str, list[Record]] = {}
    for record in own:
        rest = str([(k, v) for k, v in record.point.items() if k != key])
        lines.setdefault(rest, []).append(record)
    line = max(lines.values(), key=lambda one: _ratio(*_ends(one)))
    slow, fast = _ends(line)
    if len(line) < 2:
        return ""
    at = "".join(f" at {_name(k, v)}" for k, v in fast.point.items() if k != key)
    if _ratio(slow, fast) < LEVEL:
        names = " and ".join(_name(key, record.point[key]) for record in (fast, slow))
        return f"{names} are within 2% of one another{at}."
    text = _compared(key, slow, fast, at)
    if (step := _steep_step(key, line, _time_s)) and set(map(id, step)) != {id(slow), id(fast)}:
        text += f" The steepest step: {_compared(key, *step, '')}"
    return text + _of_misses(key, line)


def _of_misses(key: str, line: list[Record]) -> str:
    """Between which neighbours an L2 no longer keeps what is read again; empty if it always does.

    It is told of any line, as who waits for other things loses no time by it yet.
    """
    if not all(record.hbm_bytes for record in line):
        return ""
    step = _steep_step(key, line, lambda record: float(record.hbm_bytes or 0))
    if step is None:
        return ""
    shares = [record.hbm_reread_share or 0.0 for record in step]
    if shares[0] < shares[1] + MISSES:
        return ""
    more, fewer = _name(key, step[0].point[key]), _value(step[1].point[key])
    times = f"{(step[0].hbm_bytes or 0) / (step[1].hbm_bytes or 1):.3g} times the HBM bytes"
    share, before = (f"{share:.0%}" for share in shares)
    of_reads = f"{share} of HBM reads are L2 misses beyond the compulsory instead of {before}"
    return f" {more} moves {times} of {fewer}: {of_reads}."


def _compared(key: str, slow: Record, fast: Record, at: str) -> str:
    slower, faster = _name(key, slow.point[key]), _value(fast.point[key])
    times = f"{_times_as_long(slow, fast)} as long as {faster}{at}"
    return f"{slower} takes {times}{_because(slow, fast)}."


def _ends(line: list[Record]) -> tuple[Record, Record]:
    """The slowest and the fastest."""
    ordered = sorted(line, key=_time_s)
    return ordered[-1], ordered[0]


def _ratio(slow: Record, fast: Record) -> float:
    return _time_s(slow) / _time_s(fast)


def _steep_step(
    key: str, line: list[Record], value: Callable[[Record], float]
) -> tuple[Record, Record] | None:
    """The neighbours (more, less) where the value, above 0, grows fastest with the key's number.

    None unless that is by more than one power of it beyond what is usual of the others.
    """
    known = [(_number(record.point[key]), record) for record in line]
    numbered = sorted(((n, r) for n, r in known if n and n > 0), key=lambda one: one[0] or 0)
    steps = [
        (log(value(after) / value(before)) / log(n / m), after, before)
        for (m, before), (n, after) in pairwise(numbered)
        if m and n and n > m
    ]
    if len(steps) < 2:
        return None
    power, after, before = max(steps, key=lambda step: step[0])
    stands_out = power > median(step[0] for step in steps) + 1
    return (after, before) if stands_out and value(after) > STEEP * value(before) else None


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    known = amount(value)
    return known[0] if known else None


def _key(key: str) -> str:
    return key.split(".", 1)[-1]


def _value(value: Any) -> str:
    return f"{value:,}" if type(value) is int else str(value)


def _name(key: str, value: Any) -> str:
    """A value of a swept key: "batch 55", "fp8"."""
    speaks_for_itself = isinstance(value, str) and amount(value) is None
    return value if speaks_for_itself else f"{_key(key)} {_value(value)}"
