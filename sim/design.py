"""What a `[sweep]` table varies: lists and ranges in a grid, and samples of a space.

    [sweep]
    "workload.seq_len" = [4096, 8192]
    "workload.batch" = { from = 1, to = 64, steps = 7, log = true }
    "hardware.l2.capacity" = { from = "25 MiB", to = "200 MiB", steps = 8 }

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
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.files import InputError, checked
from sim.units import Count, CountOrNone

_QUANTITY = re.compile(r"\s*([-+]?[\d_.]+(?:[eE][-+]?\d+)?)\s*(\D.*?)\s*")  # "3.35 TB/s"


class Bounds(BaseModel):
    """From where to where a key goes; both ends belong to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    first: int | float | str = Field(alias="from")
    last: int | float | str = Field(alias="to")
    log: bool = False

    @model_validator(mode="after")
    def _go_together(self) -> "Bounds":
        (first, unit), (last, other) = _number(self.first), _number(self.last)
        if unit != other:
            raise ValueError(f'"{self.first}" and "{self.last}" must have the same unit')
        if not (math.isfinite(first) and math.isfinite(last)):
            raise ValueError("both ends must be finite")
        if self.log and min(first, last) <= 0:
            raise ValueError("a log range starts and ends above zero")
        return self

    def at(self, share: float) -> Any:
        """The value at that share of the way: the ends as they were written at 0 and 1."""
        if share in (0.0, 1.0):
            return self.last if share else self.first
        (first, unit), (last, _) = _number(self.first), _number(self.last)
        value = first + share * (last - first)
        if self.log:
            value = first * (last / first) ** share
        if isinstance(self.first, int) and isinstance(self.last, int):
            return round(value)
        return f"{value:.6g} {unit}" if unit else float(f"{value:.6g}")


class Range(Bounds):
    """So many values, evenly apart: by difference or, with `log`, by ratio."""

    steps: int = Field(ge=2)

    def values(self) -> list[Any]:
        """Each once, in order."""
        return list(dict.fromkeys(self.at(n / (self.steps - 1)) for n in range(self.steps)))


class Sample(BaseModel):
    """Points spread over a space: bounds or a list of values for each key."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: Literal["sobol", "latin_hypercube"]
    points: Count
    seed: CountOrNone = 0
    bounds: dict[str, Any] = Field(min_length=1)

    def draw(self, where: str) -> list[dict[str, Any]]:
        """The points; raises InputError."""
        axes = {
            key: _choices(values, where, key)
            if isinstance(values, list)
            else checked(Bounds, _table(values, where, key), where, f"sweep.{key}")
            for key, values in self.bounds.items()
        }
        return [
            {
                key: axis.at(share) if isinstance(axis, Bounds) else axis[int(share * len(axis))]
                for (key, axis), share in zip(axes.items(), row, strict=True)
            }
            for row in self._unit_cube(len(axes)).tolist()
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
    axes: list[list[dict[str, Any]]] = []
    for key, values in sweep.items():
        if key == "sample":
            axes.append(
                checked(Sample, _table(values, where, key), where, "sweep.sample").draw(where)
            )
        elif isinstance(values, list):
            axes.append([{key: value} for value in _choices(values, where, key)])
        else:
            swept = checked(Range, _table(values, where, key), where, f"sweep.{key}").values()
            axes.append([{key: value} for value in swept])
    keys = [key for axis in axes for key in axis[0]]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"{where}: sweep.{key}: it is swept and sampled; keep one")
    for parts in itertools.product(*axes):
        yield {key: value for part in parts for key, value in part.items()}


def _choices(values: list[Any], where: str, key: str) -> list[Any]:
    if not values:
        raise InputError(f"{where}: sweep.{key}: at least one value was expected")
    return values


def _table(values: Any, where: str, key: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise InputError(
            f"{where}: sweep.{key} = {values}: a list of values or a range was expected, such as "
            "{ from = 1, to = 64, steps = 7 }"
        )
    return values


def _number(value: float | str) -> tuple[float, str]:
    """A number, and the unit behind it; raises ValueError where there is none."""
    if not isinstance(value, str):
        return float(value), ""
    found = _QUANTITY.fullmatch(value)
    if found is None:
        raise ValueError(f'"{value}" is not a number, or one with a unit such as "3.35 TB/s"')
    return float(found[1]), found[2]
