"""The measuring stick: every row of tables of figures predicted, and how near that comes.

A row's prediction is what its case takes in the simulator, what its call does beside attention and
gaps between launches. Cases run on all cores, each is kept in a store, so that asking again costs
nothing.
"""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from sim.engine.power import acted
from sim.inputs.files import InputError, user_cache
from sim.report.known_errors import regime_of
from sim.runs.job import Progress
from sim.runs.store import Entry, Store
from sim.runs.workers import processes
from validate.figures import Figure, FigureSplit, must_be_fit
from validate.judging import HITS, Pairs, Timed, counted_hit_rate, error_of, pairs_of
from validate.measured import Case, Measured, measured_of
from validate.predict import NotPredictedError
from validate.simulated import Simulated, address_of, simulate

TIME, DRAM, L2, RATE = "time", "DRAM bytes", "L2 bytes", "DRAM rate"
QUANTITIES = (TIME, DRAM, L2, HITS, RATE)
ANY = "all"  # regimes together
# Hit rates of fewer bytes are not judged: L2's counters hold what other units ask for too
# (instructions, constants, the profiler; NVIDIA's developer forum, topic 120341). Of 55,000 sectors
# of a combine kernel on an H100 4,000 were its SMs' (tfan2437/flash-attention-lab,
# flash-attn-decode-b1-ctx32k.csv), the rest 1.6 MB, nearly all of them hits: a tenth of this.
LEAST_L2_BYTES = 16e6


@dataclass(frozen=True)
class Judged:
    """A figure in SI units beside its prediction; `roofline` is None for hit rates and L2 bytes."""

    measured: Measured
    quantity: str
    value: float
    predicted: float
    roofline: float | None
    time_error: float  # what fast-forward may have cost, relative

    @property
    def error(self) -> float:
        """Predicted over measured less one; of hit rates the difference."""
        return error_of(self.quantity, self.predicted, self.value)

    @property
    def is_host(self) -> bool:
        """Whether it is a time so short that the host's part rules it."""
        return self.quantity == TIME and self.value < self.measured.floor_us * 1e-6

    @property
    def device(self) -> str:
        """The profile's name."""
        return self.measured.case.hardware.name

    @property
    def split(self) -> FigureSplit:
        """The row's."""
        return self.measured.figure.split

    @property
    def regime(self) -> str:
        """How many tokens, and whether of one sequence, such as "middle, batch 1"."""
        w = self.measured.case.workload
        return regime_of(w.batch, w.seq_kv if w.phase == "decode" else w.seq_q)


@dataclass(frozen=True)
class Left:
    """A figure that is not judged, and why."""

    figure: Figure
    reason: str


@dataclass(frozen=True)
class Score:
    """How near predictions of a family's quantity are, on a device, in a split and a regime.

    Errors are relative (of hit rates, differences): `mean`, `median` and `worst` by amount, `bias`
    with its sign. `within_10` and `within_20` are shares of the points. `roofline` is the mean
    error of a roofline of the datasheet, `constant` that of the roofline times the one factor that
    suits the family's `fit` rows best; None where there is none. `host` are times so short that
    the host's part rules them.
    """

    family: str
    device: str
    split: str
    quantity: str
    host: bool
    regime: str
    points: int
    mean: float
    median: float
    worst: float
    bias: float
    within_10: float
    within_20: float
    roofline: float | None
    constant: float | None


@dataclass(frozen=True)
class Stick:
    """All that is said of tables of figures."""

    judged: list[Judged]
    left: list[Left]
    scores: list[Score]
    pairs: dict[str, Pairs]  # by device
    constants: dict[str, float]  # by family: measured time over the roofline's
    simulated: int  # cases that were not in the store
    cases: int

    def json(self) -> str:
        """Scores, pairs, every judged figure and every one that is not, as JSON."""
        whole: dict[str, Any] = {
            "scores": [asdict(score) for score in self.scores],
            "pairs": [{"device": one, **asdict(own)} for one, own in self.pairs.items()],
            "constants": self.constants,
            "figures": [_figure_json(one) for one in self.judged],
            "left_out": [
                {"where": one.figure.where, "kernel": one.figure.kernel, "reason": one.reason}
                for one in self.left
            ],
        }
        return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def _figure_json(one: Judged) -> dict[str, Any]:
    case = one.measured.case
    return {
        "where": one.measured.figure.where,
        "source": one.measured.figure.source,
        "kernel": one.measured.figure.kernel,
        "family": one.measured.family,
        "device": one.device,
        "split": one.split,
        "regime": one.regime,
        "host": one.is_host,
        "workload": asdict(case.workload),
        "schedule": case.schedule.model_dump(exclude_unset=True),
        "l2": "warm" if case.warm else "cold",
        "quantity": one.quantity,
        "measured": one.value,
        "predicted": one.predicted,
        "roofline": one.roofline,
        "error": one.error,
        "fast_forward_error": one.time_error,
    }


def measure_up(
    figures: Sequence[Figure],
    split: FigureSplit | None = None,
    profile: str | None = None,
    store: Store | None = None,
    progress: Progress = lambda *_: None,
) -> Stick:
    """Judge the figures of a split (None: all); `profile` is for devices that have none.

    The rows of `fit` give their rooflines to the constant factors in any case. Raises InputError.
    """
    chosen, for_constants, left = _sorted_out(figures, split, profile)
    wanted = {address_of(one.case): (one.case, False) for one in chosen}
    wanted |= {address_of(one.case, True): (one.case, True) for one in for_constants}
    store = store or Store()
    new = _simulate_all(wanted, store, progress)
    kept = {key: Simulated.of_json(store.get(key, "") or "") for key in wanted}
    judged: list[Judged] = []
    for one in chosen:
        try:
            judged.append(judge(one, kept[address_of(one.case)]))
        except NotPredictedError as error:
            left.append(Left(one.figure, str(error)))
    fitted = [one for one in judged if one.split == "fit"]
    for one in for_constants:
        simulated = kept[address_of(one.case, True)]
        if simulated.kernels and one.figure.value:
            fitted.append(judge(one, simulated))
    factors = constants(fitted)
    return Stick(judged, left, scores(judged, factors), pairs(judged), factors, new, len(wanted))


def _sorted_out(
    figures: Iterable[Figure], split: FigureSplit | None, profile: str | None
) -> tuple[list[Measured], list[Measured], list[Left]]:
    """What is to be judged, what only gives a roofline, and what cannot be predicted."""
    chosen: list[Measured] = []
    for_constants: list[Measured] = []
    left: list[Left] = []
    for figure in figures:
        is_asked = split is None or figure.split == split
        if not is_asked and figure.split != "fit":
            continue
        try:
            measured = measured_of(figure, profile)
        except NotPredictedError as error:
            if is_asked:
                left.append(Left(figure, str(error)))
            continue
        (chosen if is_asked else for_constants).append(measured)
    return chosen, for_constants, left


def _simulate_all(wanted: dict[str, tuple[Case, bool]], store: Store, progress: Progress) -> int:
    """Have every case in the store; returns how many were not."""
    new = {key: case for key, case in wanted.items() if store.get(key, "") is None}
    progress("cases", len(wanted) - len(new), len(wanted))
    if not new:
        return 0
    with processes() as workers:
        futures = {workers.executor.submit(simulate, *case): key for key, case in new.items()}
        for done, future in enumerate(as_completed(futures), len(wanted) - len(new) + 1):
            store.put([Entry(futures[future], future.result().json())])
            progress("cases", done, len(wanted))
    return len(new)


def user_store() -> Store:
    """The user's store of predictions, in their cache folder; in memory where that cannot be."""
    folder = user_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Store(folder / "predictions.sqlite")
    except (OSError, InputError):
        return Store()


def judge(measured: Measured, simulated: Simulated) -> Judged:
    """One figure held against its prediction; raises NotPredictedError where there is none."""
    if simulated.why:
        raise NotPredictedError(simulated.why)
    kernels = simulated.kernels
    seconds, roofline_s = times(measured, simulated)
    read, write = (
        sum(getattr(k, f"dram_{way}_bytes") for k in kernels) for way in ("read", "write")
    )
    l2_read, l2_write = (
        sum(getattr(k, f"l2_{way}_bytes") for k in kernels) for way in ("read", "write")
    )
    least = sum(kernel.roofline_dram_bytes for kernel in kernels)
    hits = sum(kernel.l2_hit_bytes for kernel in kernels)
    quantity, value = quantity_of(measured.figure)
    if value == 0 and quantity != HITS:
        raise NotPredictedError("0 bytes were counted: no relative error")
    if quantity == HITS and l2_read + l2_write < LEAST_L2_BYTES:
        raise NotPredictedError("most of what L2 counts then is not asked for by its SMs")
    everything = "all L2 traffic" in measured.figure.extra
    predicted: dict[str, tuple[float, float | None]] = {
        TIME: (seconds, roofline_s),
        L2: (l2_read + (l2_write if everything else 0), None),
        HITS: (counted_hit_rate(l2_read, l2_write, hits), None),
        RATE: ((read + write) / seconds if seconds else 0.0, None),
        DRAM: {
            "dram_read_bytes": (read, None),
            "dram_write_bytes": (write, None),
        }.get(measured.figure.metric, (read + write, least)),
    }
    time_error = max(kernel.time_error for kernel in kernels)
    return Judged(measured, quantity, value, *predicted[quantity], time_error)


def times(measured: Measured, simulated: Simulated) -> tuple[float, float]:
    """Seconds that a row's time is predicted to be, and that a roofline of the datasheet gives."""
    hw = measured.case.hardware
    kernels = simulated.kernels
    seconds = sum(kernel.time_s for kernel in kernels)
    if measured.has_gaps:
        seconds += len(kernels) * (hw.calibration.launch.gap + measured.apart_s)
    roofline_s = sum(kernel.roofline_s for kernel in kernels)
    beside_s, beside_roofline_s = measured.beside.times(
        measured.case.workload, hw, measured.apart_s
    )
    seconds += beside_s
    if measured.calls:
        limited_s = sum(kernel.power_s for kernel in kernels)
        seconds -= limited_s
        begin_s, end_s = (calls * seconds for calls in measured.calls)
        seconds += limited_s * acted(begin_s, end_s)
    return max(seconds, measured.host_s), roofline_s + beside_roofline_s


def quantity_of(figure: Figure) -> tuple[str, float]:
    """What a figure is of, in SI units: rates of FLOPs, and of all tensors' bytes, are times.

    Raises NotPredictedError.
    """
    f, metric = figure, figure.metric
    if metric == "time_us":
        return TIME, f.value * 1e-6
    if metric == "l2_hit_pct":
        return HITS, f.value / 100
    if metric.endswith("_bytes"):
        return (DRAM if metric.startswith("dram") else L2), f.value
    stated = (f.batch, f.heads, f.kv_heads, f.seq_q, f.seq_kv, f.head_dim)
    batch, heads, kv_heads, seq_q, seq_kv, head_dim = (number or 0 for number in stated)
    if metric == "tflops":
        flops = 4 * batch * heads * seq_q * seq_kv * head_dim / (2 if f.causal else 1)
        return TIME, flops / (f.value * 1e12)
    if "of peak" in f.extra:
        return RATE, f.value * 1e9
    rows = heads * seq_q + kv_heads * seq_kv  # Q and O, K and V
    element_bytes = {"fp32": 4, "fp8": 1}.get(f.dtype, 2)
    return TIME, 2 * batch * rows * head_dim * element_bytes / (f.value * 1e9)


def constants(fitted: Iterable[Judged]) -> dict[str, float]:
    """By family, the factor on the roofline's times with the least mean error on `fit` rows.

    Raises InputError for a row of another split.
    """
    ratios: dict[str, list[float]] = {}
    for one in fitted:
        must_be_fit(one.measured.figure)
        if one.quantity == TIME and one.roofline and not one.is_host:
            ratios.setdefault(one.measured.family, []).append(one.value / one.roofline)
    return {family: _best_factor(np.array(own)) for family, own in ratios.items()}


def _best_factor(ratios: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float:
    """The c of least sum of |c / ratio - 1|: a median, weighted by 1 / ratio."""
    order = np.sort(ratios)
    weights = np.cumsum(1 / order)
    return float(order[np.searchsorted(weights, weights[-1] / 2)])


def scores(judged: Iterable[Judged], factors: dict[str, float]) -> list[Score]:
    """A score for each family, device, split and quantity: of all regimes, then of each."""
    groups: dict[tuple[str, str, str, str, bool, str], list[Judged]] = {}
    for one in judged:
        of = (one.measured.family, one.device, one.split, one.quantity, one.is_host)
        for regime in (ANY, one.regime):
            groups.setdefault((*of, regime), []).append(one)
    order = sorted(groups, key=lambda key: (QUANTITIES.index(key[3]), key[4], *key[:3], key[5]))
    return [_score(key, groups[key], factors) for key in order]


def _score(
    key: tuple[str, str, str, str, bool, str], group: list[Judged], factors: dict[str, float]
) -> Score:
    family, quantity = key[0], key[3]
    errors = [one.error for one in group]
    sizes = [abs(error) for error in errors]
    rooflines = [(one.roofline, one.value) for one in group if one.roofline is not None]
    factor = factors.get(family) if quantity == TIME else None

    def mean_error(factor: float) -> float:
        return fmean(abs(factor * theirs / value - 1) for theirs, value in rooflines)

    return Score(
        *key,
        points=len(group),
        mean=fmean(sizes),
        median=median(sizes),
        worst=max(sizes),
        bias=fmean(errors),
        within_10=sum(size <= 0.10 for size in sizes) / len(sizes),
        within_20=sum(size <= 0.20 for size in sizes) / len(sizes),
        roofline=mean_error(1.0) if rooflines else None,
        constant=mean_error(factor) if rooflines and factor is not None else None,
    )


def pairs(judged: Iterable[Judged]) -> dict[str, Pairs]:
    """By device, kernels on one shape whose times differ: are they named in the right order?"""
    groups: dict[tuple[object, ...], list[Timed]] = {}
    for one in judged:
        if one.quantity == TIME and not one.is_host:
            case = one.measured.case
            shape = (one.device, case.workload, case.hardware.sm.clock, case.warm, one.split)
            timed = Timed(one.measured.figure.kernel, one.value, one.predicted, one.roofline or 0.0)
            groups.setdefault(shape, []).append(timed)
    found: dict[str, Pairs] = {}
    for (device, *_), group in groups.items():
        found[str(device)] = found.get(str(device), Pairs()) + pairs_of(group)
    return {device: found[device] for device in sorted(found) if found[device].total}
