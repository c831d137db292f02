"""By how much answers that a part told were off, by method: shipped, and derived by a command.

`python benchmarks/fast_forward.py --derive` replays a set of questions whole, and leaves in
`errors.json` for each method the line `floor + slope * scatter` below which nine in ten of its
errors lie.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

FILE = "errors.json"


@dataclass(frozen=True)
class Line:
    """An error as it goes with how much what should be alike differed; shares both."""

    floor: float
    slope: float

    def estimate(self, scatter: float) -> float:
        """The error that nine in ten stay below."""
        return self.floor + self.slope * scatter


@dataclass(frozen=True)
class Errors:
    """Of a method's time, and of its HBM bytes."""

    time: Line
    hbm: Line


@cache
def shipped() -> dict[str, Errors]:
    """What is known, by method."""
    text = (resources.files(__package__) / FILE).read_text(encoding="utf-8")
    return {
        method: Errors(Line(**lines["time"]), Line(**lines["hbm"]))
        for method, lines in json.loads(text)["methods"].items()
    }


def errors_of(method: str) -> Errors:
    """What is known of a method's errors: of one that no question was told by, the worst of all."""
    known = shipped()
    if method in known:
        return known[method]
    return Errors(
        _worst(errors.time for errors in known.values()),
        _worst(errors.hbm for errors in known.values()),
    )


def _worst(lines: Iterable[Line]) -> Line:
    floors, slopes = zip(*((line.floor, line.slope) for line in lines), strict=True)
    return Line(max(floors), max(slopes))
