"""What people measured and asked about in public, where predictions miss it: shipped as data."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import log
from typing import Any

from sim.inputs.workload import WorkloadTable
from sim.report.known_errors import kernel_of
from sim.runs.record import Record

FILE = "asked_in_public.toml"
NEAR = 2.0  # numbers within such a factor of one another are near
COUNTS = ("batch", "heads", "kv_heads", "seq_q", "seq_kv")


@dataclass(frozen=True)
class Missed:
    """A measured time, the `share` of it that is predicted, and the cause as far as it is known.

    `schedule`, `hardware` and `workload` are tables of a scenario.
    """

    schedule: dict[str, Any]
    hardware: dict[str, Any]
    workload: dict[str, Any]
    measured_us: float
    share: float
    cause: str

    @property
    def measured_s(self) -> float:
        """The measured time in seconds."""
        return self.measured_us * 1e-6

    def distance(self, record: Record) -> float | None:
        """How far a run is from it, by ratios of their numbers; None where that is not near.

        Near is the same kernel and device, phase, mask and head_dim, and counts within `NEAR`.
        Options that the run leaves open may be any.
        """
        given = record.options or {}
        if self.hardware["profile"] != record.hardware:  # of most, so before all that takes long
            return None
        own = WorkloadTable(**self.workload).workload().table()
        alike = [
            (kernel_of(self.schedule), kernel_of(given)),
            *((own[key], record.workload.get(key)) for key in ("phase", "causal", "head_dim")),
            *((value, given[key]) for key, value in self.schedule.items() if given.get(key)),
        ]
        counts = [(own[key], record.workload.get(key)) for key in COUNTS]
        if any(ours != theirs for ours, theirs in alike):
            return None
        if any(not isinstance(theirs, int) for _, theirs in counts):  # lists of lengths
            return None
        ratios = [abs(log(theirs / ours)) for ours, theirs in counts]
        return sum(ratios) if max(ratios) <= log(NEAR) else None


@cache
def missed() -> tuple[Missed, ...]:
    """All of the data file, in its order."""
    text = resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    return tuple(Missed(**table) for table in tomllib.loads(text)["missed"])


def missed_near(record: Record) -> Missed | None:
    """The measured time nearest to a run that predictions miss; None where none is near."""
    if record.status != "ok":
        return None
    near = [(far, one) for one in missed() if (far := one.distance(record)) is not None]
    return min(near, key=lambda pair: pair[0])[1] if near else None
