"""What axes of figures show: ticks of logarithmic ones, ends of time, a grid of swept keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from sim.runs.record import Record

FEWEST_TICKS, MOST_STEPS = 3, 6
LEGIBLE = 0.08  # share of a time axis that is long enough to read what goes on in it


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a log axis in round numbers: decades and, where these are few, what is between them.

    >>> log_ticks(0.5, 300)
    [1.0, 10.0, 100.0]
    >>> log_ticks(20, 300)
    [20.0, 50.0, 100.0, 200.0]
    >>> log_ticks(0.75, 1.6)
    [0.8, 1.0, 1.2, 1.4, 1.6]
    """
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= FEWEST_TICKS:
            return ticks
    exponent = floor(log10((high - low) / MOST_STEPS))
    step = next(s for s in (1, 2, 5, 10) if (high - low) / MOST_STEPS <= s * 10.0**exponent)
    numbers = range(ceil(low / (step * 10.0**exponent)), floor(high / (step * 10.0**exponent)) + 1)
    return [float(f"{number * step}e{exponent}") for number in numbers]


def time_ends_s(times_s: Sequence[float]) -> list[float]:
    """Where the time axis of each run's panel ends [s]: all at one time, so that lengths compare.

    Where the shortest run would be too small to read, each axis ends with its run.

    >>> time_ends_s([4e-3, 1e-3]), time_ends_s([4e-3, 1e-6])
    ([0.004, 0.004], [0.004, 1e-06])
    """
    longest_s = max(times_s)
    return [longest_s if min(times_s) >= LEGIBLE * longest_s else time_s for time_s in times_s]


@dataclass(frozen=True)
class Grid:
    """Records over two swept keys, all values of the one at all of the other."""

    keys: tuple[str, str]
    columns: list[Any]  # values of the first key
    rows: list[Any]  # of the second
    cells: dict[tuple[str, str, str], Record]  # by schedule and both values as texts

    def of(self, schedule: str) -> list[list[Record | None]]:
        """A schedule's records, row by row."""
        return [
            [self.cells.get((schedule, str(column), str(row))) for column in self.columns]
            for row in self.rows
        ]


def grid_of(records: Sequence[Record]) -> Grid | None:
    """The grid of a sweep over two keys; None of any other."""
    points = [tuple(record.point.values()) for record in records]
    keys = tuple(records[0].point) if records else ()
    if len(keys) != 2:
        return None
    columns, rows = (list({str(p[k]): p[k] for p in points}.values()) for k in (0, 1))
    if min(len(columns), len(rows)) < 2 or len(set(map(str, points))) < len(columns) * len(rows):
        return None
    cells = {
        (record.schedule, str(point[0]), str(point[1])): record
        for record, point in zip(records, points, strict=True)
    }
    return Grid((keys[0], keys[1]), columns, rows, cells)


def value_text(value: Any) -> str:
    """A swept value: 4,096, 25 MiB, h100-sxm."""
    return f"{value:,}" if type(value) is int else str(value)


def key_text(key: str) -> str:
    """A swept key without its table: l2.capacity."""
    return key.split(".", 1)[-1]
