"""How near predictions have been to measurements: errors that are shipped as data.

Judging the shipped profiles on all measurements takes a minute, so `python benchmarks/validation.py
--write` does it once and leaves `known_errors.json` beside this module, which only reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

FILE = "known_errors.json"
FIRST_IMPLEMENTATION = "cuda"  # what the flash schedules are unless told otherwise


@dataclass(frozen=True)
class KnownError:
    """How near a schedule's predictions on a shipped profile were to one set of measurements.

    Errors are predicted over measured less one (of hit rates, differences): `mean_error` and
    `worst_error` by amount, `bias` with its sign, below 0 where predictions are too small.
    `roofline_error` is the mean error of a roofline of the datasheet. `rank_correlation` (Spearman)
    is None for fewer than three points.
    """

    profile: str
    family: str  # the measured kernel, such as "triton_flash2"
    schedule: dict[str, Any]  # what it was predicted by: name, implementation, framework
    quantity: str  # such as "time, warm L2"
    points: int
    mean_error: float
    worst_error: float
    bias: float
    rank_correlation: float | None
    roofline_error: float | None
    title: str  # of the measurements
    sources: tuple[str, ...]  # whose figures they are; none where they are our own


def known_errors(schedule: Mapping[str, Any], profile: str) -> list[KnownError]:
    """What is known of a `[[schedule]]` table's kernel, on the GPU `profile` first.

    The kernel is the schedule's name, implementation and framework: other options, such as a tile
    that is not the public one, may make predictions worse. Empty where no measurement was predicted
    by it.
    """
    known = [one for one in all_known_errors() if _kernel(one.schedule) == _kernel(schedule)]
    return sorted(known, key=lambda one: one.profile != profile)


def all_known_errors() -> list[KnownError]:
    """Every error in the data file, in its order."""
    return [KnownError(**row | {"sources": tuple(row["sources"])}) for row in shipped()["errors"]]


def shipped() -> dict[str, Any]:
    """The data file: `attnsim` (a version), `compared` (sets of measurements) and `errors`."""
    path = resources.files("sim.report") / FILE
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def _kernel(schedule: Mapping[str, Any]) -> tuple[str, str, str | None]:
    implementation = schedule.get("implementation", FIRST_IMPLEMENTATION)
    return schedule["name"], implementation, schedule.get("framework")
