"""How near predictions have been to measurements: errors that are shipped as data.

Judging the shipped profiles on all measurements takes a minute, so `python benchmarks/validation.py
--write` does it once and leaves `known_errors.json` beside this module, which only reads it. Those
of published tables stand there by kernel and GPU, those of strangers' thousands of figures
(`measured`) by kernel family, device and regime.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

FILE = "known_errors.json"
# Whose kernels schedules are unless told otherwise, where not "cuda" (asking loads no schedule).
FIRST_IMPLEMENTATION = {
    "flash3": "fa3",
    "flash4": "fa4",
    "flex": "triton",
    "hip": "hip_attention",
    "minference": "minference",
    "mla": "flashmla",
    "nsa": "nsa_triton",
}
# The longest few and the longest middle: of queries in prefill, of cached keys in decoding.
FEW_TOKENS, MIDDLE_TOKENS = 1024, 8192
OFF = 0.20  # a mean error above which predictions are known to be off
FEWEST = 5  # figures by which anything is known


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
    by it. Of training it is not.
    """
    known = [
        one
        for one in all_known_errors()
        if kernel_of(one.schedule) == kernel_of(schedule) and "phase" not in one.schedule
    ]
    return sorted(known, key=lambda one: one.profile != profile)


@dataclass(frozen=True)
class MeasuredError:
    """How near predictions by a schedule were to measured times of a kernel family.

    They are strangers' times in a `regime`, or those of published tables, of any size (None).
    `where` is the profile's name, or how many others there are. Errors are as in `KnownError`;
    `constant_error` is that of the roofline times the one factor that suits the family best.
    """

    family: str  # such as "FA2 paged decode"
    where: str
    regime: str | None
    points: int
    mean_error: float
    worst_error: float
    bias: float
    roofline_error: float | None
    constant_error: float | None

    @property
    def is_off(self) -> bool:
        """Whether predictions there are known to be off; a published table may be short."""
        return self.points >= (FEWEST if self.regime else 1) and self.mean_error > OFF

    def sentence(self) -> str:
        """The error in words."""
        way = "too fast" if self.bias < 0 else "too slow"
        one_way = f", {way}" if abs(self.bias) > self.mean_error / 2 else ""
        sizes = f" at such sizes ({self.regime})" if self.regime else ""
        return (
            f"predicted times of {self.family}{sizes} are "
            f"{self.mean_error:.0%} off on {self.where}{one_way} ({self.points} measured)"
        )


def measured_errors(
    schedule: Mapping[str, Any], profile: str, workload: Mapping[str, Any]
) -> list[MeasuredError]:
    """What is known of a `[[schedule]]` table's kernel in the regime of a workload's table.

    By family, the GPU `profile` first, then all others together. Empty where nobody measured it.
    """
    phase = workload["phase"]
    length = workload["seq_kv" if phase == "decode" else "seq_q"]
    tokens = length if isinstance(length, int) else round(sum(length) / len(length))
    regime = regime_of(workload["batch"], tokens)
    groups: dict[tuple[bool, str], list[dict[str, Any]]] = {}
    for row in measured_times():
        predicted_by = [(kernel_of(one), one["phase"]) for one in row.get("schedules", ())]
        if row["regime"] == regime and (kernel_of(schedule), phase) in predicted_by:
            groups.setdefault((row["device"] != profile, row["family"]), []).append(row)
    return [_together(groups[key], profile) for key in sorted(groups)]


def known_time_error(
    schedule: Mapping[str, Any], profile: str, workload: Mapping[str, Any]
) -> MeasuredError | None:
    """How far a `[[schedule]]` table's predicted time may be off, by what was measured most.

    By strangers' times of that regime on the GPU `profile`, else on others; failing those, by
    published tables. None where nobody measured it.
    """
    known = measured_errors(schedule, profile, workload)
    here = [error for error in known if error.where == profile] or known
    return max(here, key=lambda error: error.points, default=None) or _published(schedule, profile)


def _published(schedule: Mapping[str, Any], profile: str) -> MeasuredError | None:
    """The error over published times, those of the GPU `profile` if there are any."""
    known = [one for one in known_errors(schedule, profile) if one.quantity.startswith("time")]
    if not known:
        return None
    here = [one for one in known if one.profile == profile] or known
    rows = [
        {
            "device": one.profile,
            "family": schedule["name"],
            "regime": None,
            "points": one.points,
            "mean": one.mean_error,
            "worst": one.worst_error,
            "bias": one.bias,
            "roofline": one.roofline_error,
            "constant": None,
        }
        for one in here
    ]
    return _together(rows, profile)


def _together(rows: list[dict[str, Any]], profile: str) -> MeasuredError:
    devices = {row["device"] for row in rows}
    others = f"{len(devices)} other devices" if len(devices) > 1 else next(iter(devices))
    return MeasuredError(
        family=rows[0]["family"],
        where=profile if devices == {profile} else others,
        regime=rows[0]["regime"],
        points=sum(row["points"] for row in rows),
        mean_error=mean_over(rows, "mean") or 0.0,
        worst_error=max(row["worst"] for row in rows),
        bias=mean_over(rows, "bias") or 0.0,
        roofline_error=mean_over(rows, "roofline"),
        constant_error=mean_over(rows, "constant"),
    )


def mean_over(rows: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """The mean of an error over the points of rows of `measured`; None where one has none."""
    rows = list(rows)
    if not rows or any(row[key] is None for row in rows):
        return None
    points = sum(row["points"] for row in rows)
    return float(sum(row["points"] * row[key] for row in rows) / points)


@dataclass(frozen=True)
class DeviceError:
    """How near predicted times are on a device, over all kernels that others measured on it."""

    points: int
    mean_error: float
    is_never_fitted: bool  # whether its profile is a datasheet on its architecture's calibration


def device_error(profile: str) -> DeviceError | None:
    """What is known of a shipped profile's predictions; None where nobody measured the device."""
    rows = [row for row in measured_times() if row["device"] == profile]
    published = [
        {"points": one.points, "mean": one.mean_error}
        for one in all_known_errors()
        if one.profile == profile and one.quantity.startswith("time")
    ]
    error = mean_over([*rows, *published], "mean")
    if error is None:
        return None
    points = sum(row["points"] for row in [*rows, *published])
    return DeviceError(points, error, any(row["split"] == "transfer" for row in rows))


def measured_times() -> list[dict[str, Any]]:
    """The rows of `measured` in the data file that are of times."""
    return [row for row in shipped().get("measured", []) if row["quantity"] == "time"]


def regime_of(batch: int, tokens: int) -> str:
    """How many tokens, and whether of one sequence, such as "middle, batch 1".

    `tokens` are a sequence's queries, in decoding the keys that it has cached.
    """
    length = "few" if tokens <= FEW_TOKENS else "middle" if tokens <= MIDDLE_TOKENS else "long"
    return f"{length}, batch {'1' if batch == 1 else 'many'}"


def all_known_errors() -> list[KnownError]:
    """Every error in the data file, in its order."""
    return [KnownError(**row | {"sources": tuple(row["sources"])}) for row in shipped()["errors"]]


@cache
def shipped() -> dict[str, Any]:
    """The data file: `attnsim` (a version), `compared` (what was), `errors` and `measured`.

    A row of `measured` is a `validate.stick.Score` with the `schedules` that predicted it: name,
    implementation and framework, and the phase of the workload.
    """
    path = resources.files("sim.report") / FILE
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def kernel_of(schedule: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """Whose kernel a `[[schedule]]` table means: its name, implementation and framework."""
    name = schedule.get("name", "")
    implementation = schedule.get("implementation") or FIRST_IMPLEMENTATION.get(name, "cuda")
    return name, implementation, schedule.get("framework")
