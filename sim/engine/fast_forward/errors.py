"""By how much answers that were told were off: shipped, and derived by a command.

`python benchmarks/fast_forward.py --derive` replays a set of questions whole, and leaves in
`errors.json` the lines `floor + slope * scatter` below which nine in ten of their errors lie. Of
times there is one for kernels told by smaller forms of them, and one for those told by a part: a
line for each method would rest on a few questions, and promise less of others (with each schedule
on a device left out in turn, 81% of its errors lay below such lines, 89% below these two). Of HBM
bytes each method has its own, as the same scatter is of little weight in one and all in another.
"""

import json
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
    """Of times, and of HBM bytes."""

    time: Line
    hbm: Line


def kind_of(method: str, quantity: str) -> str:
    """Which of the lines of a quantity, "time" or "hbm", is of that method."""
    if quantity == "hbm":
        return method
    return "smaller forms" if method == "scales" else "a part"


@cache
def shipped() -> dict[str, dict[str, Line]]:
    """What is known of each quantity, by kind."""
    text = (resources.files(__package__) / FILE).read_text(encoding="utf-8")
    return {
        quantity: {kind: Line(line["floor"], line["slope"]) for kind, line in lines.items()}
        for quantity, lines in json.loads(text).items()
    }


def errors_of(method: str) -> Errors:
    """What is known of a method's errors: of one that no question was told by, the worst of all."""
    return Errors(*(line_of(shipped()[of], kind_of(method, of)) for of in ("time", "hbm")))


def line_of(lines: dict[str, Line], kind: str) -> Line:
    """That of the kind; of one without a line, no lower than any."""
    if kind in lines:
        return lines[kind]
    floors, slopes = zip(*((line.floor, line.slope) for line in lines.values()), strict=True)
    return Line(max(floors), max(slopes))
