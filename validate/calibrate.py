"""Fit a profile's calibration to measurements: few, physical, bounded parameters.

Two steps: each micro-benchmark fixes the parameter that it isolates; what no micro-benchmark fixes
is fitted to times (`validate.samples`), by least squares on log ratios with a robust loss. A
measurement file's test split and a table's rows but for those of `fit` are never looked at.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, least_squares

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile, variation_toml
from sim.inputs.units import show
from sim.runs.job import Progress
from sim.runs.workers import processes
from validate.measurement import Micro
from validate.readings import Reading, readings
from validate.samples import Sample, with_values

MOST_STEPS = 4_000_000  # tile steps of all points that are fitted to: each is replayed 150 times
STEP = 0.04  # of a finite difference, relative: events move in jumps, so smaller steps see noise
ROBUST_SCALE = 0.05  # a log ratio beyond which a point pulls less and less
# A fitted parameter is thought to be within a factor of two of where it stands (one standard
# deviation of its logarithm), the times right to 3%; so data that says little moves little.
PRIOR, NOISE = log(2), 0.03
# From where else the fit is tried: regimes in which other pipes hold kernels back, and from one of
# which a search does not come over to the next by itself.
REGIMES = (
    {"sm.mma_issue_cycles": 14.0},
    {"tensor.native": 0.4, "tensor.mma_sync": 0.4},
)
UNDETERMINED = 0.8  # of the prior's width left: the data has said next to nothing
UNCERTAIN = 0.3  # a 95% interval wider than this is worth a warning


@dataclass(frozen=True)
class Parameter:
    """A calibration figure "section.name", its bounds, and what it is read off by."""

    name: str
    low: float
    high: float
    unit: str = ""
    seen_in: str = ""  # what about kernels' times shows it, where it is fitted


PARAMETERS = (
    Parameter("hbm.read", 0.3, 1.0, seen_in="kernels that stream from HBM"),
    Parameter("hbm.write", 0.3, 1.0, seen_in="kernels that stream to HBM"),
    Parameter("hbm.latency", 1e-7, 3e-6, "s", "short kernels that wait for HBM"),
    Parameter("l2.sustained", 0.2, 1.0, seen_in="kernels that stream from L2"),
    Parameter("l2.effective_capacity", 0.2, 1.0, seen_in="working sets about the L2's size"),
    Parameter("l2.latency", 5e-8, 2e-6, "s", "short kernels that wait for L2"),
    Parameter("tensor.native", 0.1, 1.0, seen_in="Triton's flash kernels"),
    Parameter("tensor.mma_sync", 0.1, 1.0, seen_in="FlashAttention-2's CUDA kernels"),
    Parameter("sm.vector", 0.2, 1.0, seen_in="softmax of kernels by head_dim"),
    Parameter("sm.exp", 0.2, 1.0, seen_in="softmax of kernels by head_dim"),
    Parameter("sm.sram", 0.2, 1.0, seen_in="kernels by tile shape"),
    Parameter(
        "sm.mma_issue_cycles", 0.1, 40.0, seen_in="overlap of softmax with matmuls, by head_dim"
    ),
    Parameter("sm.op_latency", 1e-9, 5e-7, "s", "tile steps with one CTA an SM"),
    Parameter("sm.cta_start", 1e-8, 2e-5, "s", "kernels of many CTAs that do next to nothing"),
    Parameter("sm.cta_setup", 1e-8, 2e-5, "s", "short sequences: many CTAs of few trips"),
    Parameter(
        "launch.latency", 1e-7, 5e-5, "s", "the host's part, which is no part of these times"
    ),
    Parameter("launch.gap", 1e-8, 2e-5, "s", "kernels of a few microseconds"),
)
# What kernels' times are asked for where no micro-benchmark says it.
FITTED = (
    "tensor.native", "tensor.mma_sync", "sm.mma_issue_cycles", "sm.op_latency", "sm.cta_setup",
    "launch.gap",
)  # fmt: skip
BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


@dataclass(frozen=True)
class Calibrated:
    """A parameter before and after. `interval` is the relative half width of a 95% interval.

    `by` says what identified it, None where nothing did and it keeps its value.
    """

    parameter: Parameter
    before: float
    value: float
    interval: float | None
    by: str | None

    @property
    def section(self) -> str:
        """The calibration table in which it stands."""
        return self.parameter.name.split(".")[0]

    @property
    def field(self) -> str:
        """Its key there."""
        return self.parameter.name.split(".")[1]

    @property
    def warning(self) -> str | None:
        """What is doubtful about it."""
        if self.by is None and self.parameter.name in FITTED:
            return f"{self.parameter.name}: the data does not determine it; kept at {self.shown()}"
        if self.interval is not None and self.interval > UNCERTAIN:
            return f"{self.parameter.name}: hardly determined: ± {self.interval:.0%}"
        if self.by and self.value >= 0.999 * self.parameter.high and self.parameter.high != 1.0:
            return f"{self.parameter.name}: at its bound, {self.shown()}"
        return None

    def shown(self) -> str:
        """The value as files have it."""
        return show(self.value, self.parameter.unit) if self.parameter.unit else f"{self.value:.3g}"


@dataclass(frozen=True)
class Calibration:
    """All parameters, the profile with them, and how near what it is fitted to it then is."""

    parameters: list[Calibrated]
    hardware: HardwareProfile
    points: int
    left_out: int  # of what was timed: too long to be replayed again and again
    error_before: float  # mean absolute log ratio over what it is fitted to
    error_after: float


def value_of(hw: HardwareProfile, name: str) -> float:
    """A calibration figure by its dotted name."""
    return hw.figure(f"calibration.{name}")


def calibrate(
    samples: Sequence[Sample],
    hw: HardwareProfile,
    micro: Iterable[Micro] = (),
    progress: Progress = lambda *_: None,
) -> Calibration:
    """Fit `hw` to micro-benchmarks and to what was timed; raises InputError without either."""
    read = readings(micro, hw)
    known = {name: reading.value for name, reading in read.items()}
    affordable = _affordable(samples)
    if not read and not affordable:
        raise InputError(
            "nothing to calibrate on: no micro-benchmarks, and no times of the train split (of "
            'tables: of the split "fit") on such a device'
        )
    names = [name for name in FITTED if name not in read]
    with processes() as workers:
        start, run = {name: value_of(hw, name) for name in names}, workers.executor.map
        fit = _Fit(known, start, affordable, lambda f, xs: list(run(f, xs)), progress)
        fitted = fit.solve() if affordable else {}
        calibrated = [_calibrated(p, hw, read, fitted) for p in PARAMETERS]
        values = {one.parameter.name: one.value for one in calibrated if one.by is not None}
        before, after = (fit.log_ratios(values) for values in ({}, values))
    return Calibration(
        calibrated,
        with_values(hw, values),
        len(affordable),
        len(samples) - len(affordable),
        float(np.abs(before).mean()) if affordable else 0.0,
        float(np.abs(after).mean()) if affordable else 0.0,
    )


def _calibrated(
    parameter: Parameter,
    hw: HardwareProfile,
    read: dict[str, Reading],
    fitted: dict[str, tuple[float, float]],
) -> Calibrated:
    before = value_of(hw, parameter.name)
    if parameter.name in read:
        reading = read[parameter.name]
        return Calibrated(parameter, before, reading.value, reading.spread, reading.micro)
    if parameter.name in fitted:
        value, interval = fitted[parameter.name]
        return Calibrated(parameter, before, value, interval, parameter.seen_in)
    return Calibrated(parameter, before, before, None, None)


def _affordable(samples: Sequence[Sample]) -> list[Sample]:
    """Those that can be simulated, the shortest first, as many as may be replayed over and over."""
    by_steps = []
    for number, sample in enumerate(samples):
        with suppress(InputError):
            by_steps.append((sample.tile_steps(), number))
    by_steps.sort()
    total = np.cumsum([steps for steps, _ in by_steps])
    return [samples[n] for (_, n), t in zip(by_steps, total, strict=True) if t <= MOST_STEPS]


def _log_ratios(sample: Sample, values: Mapping[str, float]) -> list[float]:
    return sample.log_ratios(values)


@dataclass
class _Fit:
    """Least squares over the logarithms of those parameters that the samples determine.

    `known` are figures that micro-benchmarks say, `begin` where the others stand.
    """

    known: Mapping[str, float]
    begin: Mapping[str, float]
    samples: Sequence[Sample]
    map: Callable[[Any, Any], list[list[float]]]
    progress: Progress
    _last: tuple[NDArray[np.float64], NDArray[np.float64]] = (np.empty(0), np.empty(0))

    @property
    def names(self) -> list[str]:
        """The parameters that are searched for."""
        return list(self.begin)

    def log_ratios(self, values: Mapping[str, float]) -> NDArray[np.float64]:
        """Of all times of all samples."""
        found = self.map(partial(_log_ratios, values=values), self.samples)
        return np.array([ratio for ratios in found for ratio in ratios])

    def residuals(self, logs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log ratios with the parameters at exp(logs), and how far those went from the prior."""
        values = dict(zip(self.names, map(exp, logs.tolist()), strict=True))
        ratios = self.log_ratios({**self.known, **values})
        self.progress(f"fitting: mean error {np.abs(ratios).mean():.1%}", 0, 0)
        found = np.concatenate([ratios, (logs - self.start()) * NOISE / PRIOR])
        self._last = (logs.copy(), found)
        return found

    def jacobian(self, logs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Finite differences, inwards where a bound is near: shape (residuals, parameters).

        Least squares asks for it where it has just asked for the residuals.
        """
        at = self._last[1] if np.array_equal(self._last[0], logs) else self.residuals(logs)
        columns = []
        for number, name in enumerate(self.names):
            step = -STEP if logs[number] + STEP > log(BY_NAME[name].high) else STEP
            moved = logs.copy()
            moved[number] += step
            columns.append((self.residuals(moved) - at) / step)
        return np.stack(columns, axis=1)

    def start(self) -> NDArray[np.float64]:
        """Where the profile stands, well within the bounds: at one, the search makes no headway."""
        values = list(self.begin.values())
        bounds = [(BY_NAME[name].low, BY_NAME[name].high) for name in self.names]
        inside = [
            min(max(v, 1.1 * low), 0.9 * high)
            for v, (low, high) in zip(values, bounds, strict=True)
        ]
        return np.log(inside)

    def starts(self) -> list[NDArray[np.float64]]:
        """The profile, and it moved to other regimes."""
        starts = [self.start()]
        for regime in REGIMES:
            moved = self.start()
            for number, name in enumerate(self.names):
                if name in regime:
                    moved[number] = log(regime[name])
            starts.append(moved)
        return starts

    def solve(self) -> dict[str, tuple[float, float]]:
        """Value and relative 95% interval of each parameter that the points determine."""
        if not self.names:
            return {}
        low, high = (
            np.log([getattr(BY_NAME[name], side) for name in self.names])
            for side in ("low", "high")
        )

        def search(start: NDArray[np.float64]) -> OptimizeResult:
            return least_squares(
                self.residuals,
                start,
                jac=self.jacobian,
                bounds=(low, high),
                loss="soft_l1",
                f_scale=ROBUST_SCALE,
                xtol=1e-3,
                ftol=1e-3,
                max_nfev=14,
            )

        solution = min(map(search, self.starts()), key=lambda found: found.cost)
        ratios = solution.fun[: -len(self.names)]
        noise = max(NOISE, 1.48 * float(np.median(np.abs(ratios))))  # as robust as the loss
        covariance = noise**2 * np.linalg.inv(solution.jac.T @ solution.jac)
        deviations = np.sqrt(np.diag(covariance)).tolist()
        return {
            name: (exp(value), 1.96 * deviation)
            for name, value, deviation in zip(self.names, solution.x, deviations, strict=True)
            if deviation < UNDETERMINED * PRIOR
        }


def profile_toml(calibration: Calibration, parent: Path, title: str, where: str, path: Path) -> str:
    """A profile file, to stand at `path`, that lays what was calibrated over the one at `parent`.

    `where` names the data for the sources.
    """
    tables: dict[str, dict[str, float | str]] = {}
    said: dict[str, list[str]] = {}
    for one in calibration.parameters:
        if one.by is not None:
            tables.setdefault(one.section, {})[one.field] = _as_written(one)
            said.setdefault(f"calibration.{one.section}", []).append(f"{one.field}: {_said(one)}")

    def source(section: str, _: list[str]) -> str:
        return f"Calibrated by attnsim on {where}. {'; '.join(said[section])}"

    return variation_toml(title, parent, path.parent, {"calibration": tables}, source)


def _as_written(one: Calibrated) -> str | float:
    return f"{one.value * 1e9:.6g} ns" if one.parameter.unit else float(f"{one.value:.6g}")


def _said(one: Calibrated) -> str:
    return str(one.by) if one.interval is None else f"{one.by} (± {one.interval:.0%})"
