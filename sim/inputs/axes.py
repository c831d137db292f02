"""What a `[sweep]` table varies: lists and ranges in a grid, and samples of a space.

    [sweep]
    "workload.seq_len" = [4096, 8192]
    "workload.batch" = { from = 1, to = 64, steps = 7, log = true }
    "hardware.l2.capacity" = { from = "25 MiB", to = "200 MiB", step = "25 MiB" }

    [sweep.sample]
    method = "sobol"                     # or "latin_hypercube"
    points = 256
    seed = 1

    [sweep.sample.bounds]
    "hardware.hbm.bandwidth" = { from = "2 TB/s", to = "16 TB/s", log = true }
    "workload.kv_heads" = [1, 2, 4, 8]

Every list and range is an axis of the grid; the samples together are one more. A range from a
whole number to another is of whole numbers, each once; other values between its ends are rounded
to 6 digits. Designs: scipy.stats.qmc, whose Sobol sequence is scrambled (Owen 1998).
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from sim.inputs.files import InputError, checked, shown
from sim.inputs.quantities import LONGEST_QUANTITY
from sim.inputs.units import CountOrNone

MOST_POINTS = 2**16  # of a scenario: lowered, they take some 15 kB each
MOST_WHOLE = 2**53  # beyond, not every whole number is a float
_QUANTITY = re.compile(r"\s*([-+]?[\d_.]+(?:[eE][-+]?\d+)?)\s*(\D.*?)\s*")  # "3.35 TB/s"


def _number(value: Any) -> tuple[float, str]:
    """A number, and the unit behind it; raises ValueError where there is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        number, unit = float(value), ""
    else:
        short = isinstance(value, str) and len(value) <= LONGEST_QUANTITY
        found = _QUANTITY.fullmatch(value) if short else None
        if found is None:
            raise ValueError('a number was expected, or one with a unit such as "3.35 TB/s"')
        number, unit = float(found[1]), found[2]
    if not math.isfinite(number):
        raise ValueError("it must be finite")
    return number, unit


def _checked_number(value: Any) -> Any:
    _number(value)
    return value


Amount = Annotated[int | float | str, BeforeValidator(_checked_number)]


class Range(BaseModel):
    """Values from one end to the other, or so many of them evenly apart.

    `steps` is how many: apart by difference or, with `log`, by ratio. `step` is the difference.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    first: Amount = Field(alias="from")
    last: Amount = Field(alias="to")
    steps: int | None = Field(default=None, ge=2, le=MOST_POINTS)
    step: Amount | None = None
    log: bool = False

    @model_validator(mode="before")
    @classmethod
    def _not_low_and_high(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and {"low", "high"} & set(given):
            raise ValueError("low and high are spelt from and to: { from = 1, to = 64 }")
        return given

    @model_validator(mode="after")
    def _go_together(self) -> "Range":
        given = [self.first, self.last] + ([] if self.step is None else [self.step])
        if len({_number(value)[1] for value in given}) > 1:
            shown = " and ".join(f'"{value}"' for value in given)
            raise ValueError(f"{shown} must have the same unit")
        if self.log and min(_number(self.first)[0], _number(self.last)[0]) <= 0:
            raise ValueError("a log range starts and ends above zero")
        if self.whole and max(abs(_number(value)[0]) for value in given) > MOST_WHOLE:
            raise ValueError(f"whole numbers of at most {MOST_WHOLE:,} were expected")
        if self.step is None:
            return self
        if self.log or self.steps is not None:
            raise ValueError("step goes neither with steps nor with log")
        if _number(self.step)[0] <= 0:
            raise ValueError("step must be above zero")
        if self._steps_apart > MOST_POINTS:
            raise ValueError(f"a range of at most {MOST_POINTS:,} values was expected")
        return self

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(value, int) for value in (self.first, self.last, self.step or 1))

    @property
    def values(self) -> Sequence[Any] | None:
        """Each once, in order; None where any between the ends may be taken."""
        if self.steps is not None:
            return list(dict.fromkeys(self.at(n / (self.steps - 1)) for n in range(self.steps)))
        if self.log or (self.step is None and not self.whole):
            return None
        (first, _), (last, _), (step, _) = map(_number, (self.first, self.last, self.step or 1))
        if self.whole:
            ahead = 1 if first <= last else -1
            return range(int(first), int(last) + ahead, ahead * int(step))
        length, count = abs(last - first), int(self._steps_apart) + 1
        return [self.at(min(n * step / (length or 1.0), 1.0)) for n in range(count)]

    @property
    def _steps_apart(self) -> float:
        """How many whole steps lie between the ends."""
        (first, _), (last, _), (step, _) = map(_number, (self.first, self.last, self.step or 1))
        return abs(last - first) / step + 1e-9

    def at(self, share: float) -> Any:
        """The value at that share of the way: the ends as they were written at 0 and 1."""
        if share in (0.0, 1.0):
            return self.last if share else self.first
        (first, unit), (last, _) = _number(self.first), _number(self.last)
        value = first + share * (last - first)
        if self.log:
            value = first * (last / first) ** share
        if self.whole:
            return round(value)
        return f"{value:.6g} {unit}" if unit else float(f"{value:.6g}")


RANGE_KEYS = {field.alias or key for key, field in Range.model_fields.items()} | {"low", "high"}
Axis = Range | list[Any]


def axis_of(given: Any, where: str, key: str) -> Axis:
    """The list or range that stands under a key of the file `where`; raises InputError."""
    if isinstance(given, Mapping):
        return checked(Range, given, where, key)
    if not isinstance(given, list):
        raise InputError(
            f"{where}: {key} = {shown(given)}: a list of values or a range was expected, such as "
            "{ from = 1, to = 64, steps = 7 }"
        )
    if not given:
        raise InputError(f"{where}: {key}: at least one value was expected")
    return given


def values_of(axis: Axis) -> Sequence[Any] | None:
    """All that an axis has, in order; None for a range of which any value may be taken."""
    return axis.values if isinstance(axis, Range) else axis


def _at_share(axis: Axis) -> Callable[[float], Any]:
    """The axis's value at a share below 1; each of a list, or of whole numbers, has as much."""
    values = values_of(axis)
    if values is not None:
        return lambda share: values[int(share * len(values))]
    assert isinstance(axis, Range)
    return axis.at


class Sample(BaseModel):
    """Points spread over a space: bounds or a list of values for each key."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: Literal["sobol", "latin_hypercube"]
    points: Annotated[PositiveInt, Field(le=MOST_POINTS)]
    seed: CountOrNone = 0
    bounds: dict[str, Any] = Field(min_length=1)

    def draw(self, where: str) -> list[dict[str, Any]]:
        """The points; raises InputError."""
        value_of = {
            key: _at_share(axis_of(given, where, f"sweep.sample.bounds.{key}"))
            for key, given in self.bounds.items()
        }
        return [
            {key: of(share) for (key, of), share in zip(value_of.items(), row, strict=True)}
            for row in self._unit_cube(len(value_of)).tolist()
        ]

    def _unit_cube(self, keys: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Shares in [0, 1): a row a point, a column a key."""
        from scipy.stats import qmc  # slow to import

        if self.method == "latin_hypercube":
            return np.asarray(qmc.LatinHypercube(keys, rng=self.seed).random(self.points))
        power = math.ceil(math.log2(self.points))
        return np.asarray(qmc.Sobol(keys, rng=self.seed).random_base2(power)[: self.points])


def design_of(sweep: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """The points of a `[sweep]` table, the last key varying fastest; raises InputError."""
    axes: list[Sequence[dict[str, Any]]] = []
    points = 1
    for key, given in sweep.items():
        if key == "sample":
            if not isinstance(given, Mapping):
                raise InputError(f"{where}: sweep.sample = {shown(given)}: a table was expected")
            axes.append(checked(Sample, given, where, "sweep.sample").draw(where))
            points *= len(axes[-1])
            continue
        axis = axis_of(given, where, f"sweep.{key}")
        if isinstance(axis, Range) and axis.steps is None and axis.step is None:
            raise InputError(f"{where}: sweep.{key}: steps or step: missing")
        values = values_of(axis) or ()
        points *= len(values)
        if points > MOST_POINTS:
            raise InputError(f"{where}: sweep: at most {MOST_POINTS:,} points were expected")
        axes.append([{key: value} for value in values])
    keys = Counter(key for axis in axes for key in axis[0])
    if twice := next((key for key, times in keys.items() if times > 1), None):
        raise InputError(f"{where}: sweep.{twice}: it is swept and sampled; keep one")
    for parts in itertools.product(*axes):
        yield {key: value for part in parts for key, value in part.items()}
