"""Predictions held against measurements: errors by schedule family, and which is faster."""

import json
import operator
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean, median
from typing import Any

from scipy.stats import spearmanr

from sim.inputs.hardware import HardwareProfile
from sim.runs.job import Progress
from sim.runs.workers import processes
from validate.judging import HITS, Pairs, Timed, error_of, pairs_of
from validate.measurement import Measurement, Measurements, Split
from validate.predict import NotPredictedError, Prediction, predict

COLD, WARM, HBM = "time, cold L2", "time, warm L2", "HBM bytes"
QUANTITIES = (COLD, WARM, HBM, HITS)
_UNSAID = ("name", "label", "implementation", "mask")  # of a schedule's options, about a point


@dataclass(frozen=True)
class Judged:
    """One quantity of one point, measured and predicted. `roofline` is None for hit rates."""

    point: Measurement
    quantity: str
    measured: float
    predicted: float
    roofline: float | None
    prediction: Prediction

    @property
    def error(self) -> float:
        """Predicted over measured less one; of hit rates the difference."""
        return error_of(self.quantity, self.predicted, self.measured)

    @property
    def roofline_error(self) -> float | None:
        """The same for the roofline."""
        if self.roofline is None:
            return None
        return error_of(self.quantity, self.roofline, self.measured)


@dataclass(frozen=True)
class Left:
    """A point that is not judged, and why."""

    point: Measurement
    reason: str


@dataclass(frozen=True)
class Score:
    """How well a family's quantity is predicted; errors are relative (of hit rates, differences).

    `rank_correlation` (Spearman) is None for fewer than three points.
    """

    family: str
    quantity: str
    points: int
    mean_error: float
    worst_error: float
    bias: float
    rank_correlation: float | None
    roofline_error: float | None


@dataclass(frozen=True)
class Comparison:
    """All that is said of a measurement file and a profile."""

    title: str
    hardware: str
    split: str
    judged: list[Judged]
    left: list[Left]
    scores: list[Score]
    pairs: Pairs

    def json(self) -> str:
        """Scores, pairs and every judged point as JSON."""
        points = [
            {
                "point": one.point.shape.model_dump(exclude_defaults=True),
                "quantity": one.quantity,
                "measured": one.measured,
                "predicted": one.predicted,
                "roofline": one.roofline,
                "error": one.error,
                "bottleneck_shares": one.prediction.shares,
                "source": one.point.source,
            }
            for one in self.judged
        ]
        whole: dict[str, Any] = {
            "title": self.title,
            "hardware": self.hardware,
            "split": self.split,
            "scores": [asdict(score) for score in self.scores],
            "pairs": asdict(self.pairs),
            "points": points,
            "left_out": [
                {"family": left.point.family, "reason": left.reason} for left in self.left
            ],
        }
        return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def compare(
    measurements: Measurements,
    hw: HardwareProfile,
    split: Split | None = "test",
    progress: Progress = lambda *_: None,
) -> Comparison:
    """Judge the points of a split (None: all); `progress` is told how many are done."""
    points = [p for p in measurements.points if split is None or p.split == split]
    judged: list[Judged] = []
    left: list[Left] = []
    for done, (point, outcome) in enumerate(zip(points, _predictions(points, hw), strict=True)):
        if point.status == "failed":
            left.append(Left(point, point.reason or "failed"))
        elif isinstance(outcome, str):
            left.append(Left(point, outcome))
        elif point.status == "out of memory":
            left.append(Left(point, "ran out of memory; the prediction fits"))
        else:
            judged += judge(point, outcome)
        progress("points", done + 1, len(points))
    return Comparison(
        measurements.title, hw.name, split or "all", judged, left, scores(judged), pairs(judged)
    )


def _predictions(points: list[Measurement], hw: HardwareProfile) -> Iterator[Prediction | str]:
    with processes() as workers:
        yield from workers.executor.map(partial(_prediction, hw=hw), points)


def _prediction(point: Measurement, hw: HardwareProfile) -> Prediction | str:
    """The prediction, or why there is none."""
    try:
        return predict(point, hw)
    except NotPredictedError as error:
        return str(error)


def judge(point: Measurement, prediction: Prediction) -> list[Judged]:
    """Every quantity that was measured of a point."""
    p = prediction
    hits = [c for c in point.counters if c.l2_hit_rate is not None and c.l2_read_bytes]
    quantities: list[tuple[str, float | None, float, float | None]] = [
        (COLD, median(point.cold_s) if point.cold_s else None, p.cold_s, p.roofline_s),
        (WARM, median(point.warm_s) if point.warm_s else None, p.warm_s, p.roofline_s),
        (HBM, point.hbm_bytes, p.hbm_bytes, p.roofline_hbm_bytes),
    ]
    if hits and len(hits) == len(point.counters):
        looked_up = [(c.l2_read_bytes or 0.0) + (c.l2_write_bytes or 0.0) for c in hits]
        rates = [c.l2_hit_rate or 0.0 for c in hits]
        rate = sum(map(operator.mul, rates, looked_up)) / sum(looked_up)
        quantities.append((HITS, rate, p.l2_hit_rate, None))
    return [
        Judged(point, quantity, measured, predicted, roofline, p)
        for quantity, measured, predicted, roofline in quantities
        if measured is not None
    ]


def scores(judged: Iterable[Judged]) -> list[Score]:
    """A score for each family and quantity."""
    groups: dict[tuple[str, str], list[Judged]] = {}
    for one in judged:
        groups.setdefault((one.point.family, one.quantity), []).append(one)
    order = sorted(groups, key=lambda key: (QUANTITIES.index(key[1]), key[0]))
    return [_score(*key, groups[key]) for key in order]


def _score(family: str, quantity: str, group: list[Judged]) -> Score:
    errors = [one.error for one in group]
    roofline = [abs(one.roofline_error) for one in group if one.roofline_error is not None]
    correlation = None
    if len({one.measured for one in group}) > 2 and len({one.predicted for one in group}) > 1:
        ranks = spearmanr([one.predicted for one in group], [one.measured for one in group])
        correlation = float(ranks.statistic)
    return Score(
        family=family,
        quantity=quantity,
        points=len(group),
        mean_error=fmean(map(abs, errors)),
        worst_error=max(map(abs, errors)),
        bias=fmean(errors),
        rank_correlation=correlation,
        roofline_error=fmean(roofline) if roofline else None,
    )


def pairs(judged: Iterable[Judged]) -> Pairs:
    """Pairs of families on one workload whose times differ: are they named in the right order?"""
    groups: dict[tuple[str, str], list[Timed]] = {}
    for one in judged:
        if one.quantity in (COLD, WARM):
            shape = (one.point.workload.model_dump_json(), one.quantity)
            timed = Timed(one.point.family, one.measured, one.predicted, one.roofline or 0.0)
            groups.setdefault(shape, []).append(timed)
    return sum(map(pairs_of, groups.values()), Pairs())


def worst(judged: Iterable[Judged], count: int = 5) -> list[Judged]:
    """The points that are predicted worst."""
    return sorted(judged, key=lambda one: -abs(one.error))[:count]


def why(one: Judged) -> str:
    """What the prediction rests on: the first place to look where it is wrong."""
    p = one.prediction
    parts = [f"{cause} {share:.0%}" for cause, share in list(p.shares.items())[:2]]
    text = f"predicted to be held back by {', '.join(parts)}; {p.waves:.3g} waves"
    hits = f"; {p.l2_hit_rate:.0%} L2 hits" if one.quantity in (HBM, HITS) else ""
    return text + hits


def point_text(point: Measurement) -> str:
    """A point in a few words, such as "flash2 4 x 16 heads, 512 tokens, d 128, causal, fp16"."""
    w = point.workload.workload()
    heads = f"{w.heads} heads" if w.heads == w.kv_heads else f"{w.heads}:{w.kv_heads} heads"
    length = f"{w.seq_kv} tokens" if w.seq_q == w.seq_kv else f"{w.seq_q} of {w.seq_kv} tokens"
    mask = ", causal" if w.causal and w.seq_q > 1 else ""
    options = {k: v for k, v in (point.schedule or {}).items() if k not in _UNSAID}
    extra = "".join(f", {k} {_shown(v)}" for k, v in options.items())
    return f"{point.family} {w.batch} x {heads}, {length}, d {w.head_dim}{mask}, {w.dtype}{extra}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " x ".join(str(side) for side in value.values())
    return str(value)
