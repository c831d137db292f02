"""What a calibration is fitted to: something that was timed, simulated with other figures.

A point of a measurement file is of the profile that is calibrated. A row of a table is of its own
device: several devices of one architecture are fitted to at once, each on its datasheet.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import log
from statistics import median
from typing import Protocol

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile, load_profile
from validate.figures import Figure, must_be_fit
from validate.measured import Measured, measured_of
from validate.measurement import Measurement, Measurements
from validate.predict import NotPredictedError, predict
from validate.simulated import simulate
from validate.stick import TIME, judge, quantity_of


class Sample(Protocol):
    """One thing that was timed. `values` are calibration figures by name, such as "sm.exp"."""

    def tile_steps(self) -> int:
        """How many it takes to replay it whole; raises InputError where that cannot be."""

    def log_ratios(self, values: Mapping[str, float]) -> list[float]:
        """log(predicted / measured) of each of its times; none where it is not predicted."""


def with_values(hw: HardwareProfile, values: Mapping[str, float]) -> HardwareProfile:
    """The profile with those calibration figures."""
    return hw.with_figures({f"calibration.{name}": value for name, value in values.items()})


@dataclass(frozen=True)
class PointSample:
    """A point of a measurement file."""

    point: Measurement
    hw: HardwareProfile

    def tile_steps(self) -> int:
        """See `Sample`."""
        schedule = self.point.parsed_schedule("measurement")
        if schedule is None:
            raise InputError(f"no schedule stands for {self.point.family}")
        program = schedule.program(self.point.workload.workload(), self.hw)
        return sum(kernel.tile_steps for kernel in kernels_of(program))

    def log_ratios(self, values: Mapping[str, float]) -> list[float]:
        """See `Sample`."""
        try:
            prediction = predict(self.point.shape, with_values(self.hw, values))
        except NotPredictedError:
            return []
        cold, warm = self.point.cold_s, self.point.warm_s
        pairs = ((cold, prediction.cold_s), (warm, prediction.warm_s))
        return [log(predicted / median(measured)) for measured, predicted in pairs if measured]


@dataclass(frozen=True)
class RowSample:
    """A row of a table of figures; raises InputError for one that nothing may be fitted to."""

    measured: Measured

    def __post_init__(self) -> None:
        must_be_fit(self.measured.figure)

    def tile_steps(self) -> int:
        """See `Sample`."""
        case = self.measured.case
        program = case.schedule.program(case.workload, case.hardware)
        return sum(kernel.tile_steps for kernel in kernels_of(program))

    def log_ratios(self, values: Mapping[str, float]) -> list[float]:
        """See `Sample`."""
        case = self.measured.case
        case = replace(case, hardware=with_values(case.hardware, values))
        try:
            judged = judge(replace(self.measured, case=case), simulate(case))
        except NotPredictedError:
            return []
        return [log(judged.predicted / judged.value)]


def points_of(measurements: Measurements, hw: HardwareProfile) -> list[PointSample]:
    """The timed points of a file's train split."""
    return [
        PointSample(point, hw)
        for point in measurements.points
        if point.split == "train" and (point.cold_s or point.warm_s)
    ]


def rows_of(figures: Iterable[Figure], profile: str) -> list[RowSample]:
    """The times of the `fit` split, on devices of the profile's architecture, above the floor.

    A device that no profile is of is taken to be the one of `profile`.
    """
    arch = load_profile(profile).arch
    found = []
    for figure in figures:
        if figure.split != "fit":
            continue
        try:
            measured = measured_of(figure, profile)
        except NotPredictedError:
            continue
        quantity, value = quantity_of(figure)
        is_above = value >= measured.floor_us * 1e-6
        if measured.case.hardware.arch == arch and quantity == TIME and is_above:
            found.append(RowSample(measured))
    return found
