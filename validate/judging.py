"""By what predictions are judged: their errors, and whether the faster of two is named."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

HITS = "L2 hit rate"
PAIR_DIFFERS = 0.10  # those whose times differ by less are not ranked


def error_of(quantity: str, predicted: float, measured: float) -> float:
    """Predicted over measured less one; of hit rates the difference."""
    return predicted - measured if quantity == HITS else predicted / measured - 1


def counted_hit_rate(read_bytes: float, write_bytes: float, hit_bytes: float) -> float:
    """L2's hit rate as counters of lookups have it: of reads so many hit, and writes always do."""
    return (hit_bytes + write_bytes) / max(read_bytes + write_bytes, 1)


class Timed(NamedTuple):
    """What takes how long [s], measured, predicted and by a roofline: of one kind, as a kernel."""

    kind: str
    measured_s: float
    predicted_s: float
    roofline_s: float


@dataclass(frozen=True)
class Pairs:
    """Pairs whose measured times differ: how many, and how many are ordered right.

    `alike` are those of one prediction, of which neither is said to be faster.
    """

    total: int = 0
    right: int = 0
    alike: int = 0
    roofline_right: int = 0

    def __add__(self, other: "Pairs") -> "Pairs":
        """Both together."""
        return Pairs(
            self.total + other.total,
            self.right + other.right,
            self.alike + other.alike,
            self.roofline_right + other.roofline_right,
        )


def pairs_of(timed: Sequence[Timed]) -> Pairs:
    """All pairs of two kinds on one shape and device."""
    found = Pairs()
    for a, b in combinations(timed, 2):
        slower, faster = sorted((a, b), key=lambda one: -one.measured_s)
        far = slower.measured_s > (1 + PAIR_DIFFERS) * faster.measured_s
        if far and a.kind != b.kind:
            found += Pairs(
                1,
                int(faster.predicted_s < slower.predicted_s),
                int(faster.predicted_s == slower.predicted_s),
                int(faster.roofline_s < slower.roofline_s),
            )
    return found
