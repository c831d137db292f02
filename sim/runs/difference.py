"""What changed between two results.json files, by how much, and what accounts for it.

Nothing is inferred: a record splits its time by cause (`bottleneck_shares`) and by kernel, both
without a rest, so that the differences of the parts sum to the difference of the whole.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sim.inputs.files import InputError
from sim.inputs.units import amount
from sim.runs.record import Record
from sim.runs.results_file import load

BETWEEN = "between kernels"  # launches and waits, where time is told by kernel
_TOLD_BY_NAME = ("workload.", "hardware.profile")  # swept keys of which a record says more
LEFT_IN_L2 = "left in L2"  # dirty bytes that no kernel has written to HBM yet


@dataclass(frozen=True)
class Change:
    """One figure in the first file and in the second."""

    before: float
    after: float

    @property
    def difference(self) -> float:
        """How much more it is in the second."""
        return self.after - self.before

    @property
    def ratio(self) -> float | None:
        """The second over the first; None where the first is 0 and the second is not."""
        if self.before == self.after:
            return 1.0
        return self.after / self.before if self.before else None


@dataclass(frozen=True)
class Difference:
    """A schedule that ran in both files: what was asked otherwise, and what came out otherwise.

    `asked` holds what differs of the workload's keys, hardware, engine, the profile's overrides
    (`hardware.l2.capacity`), the schedule's options (`schedule.flash2.stages`) and other swept
    keys; None is what a side leaves to the profile or to the schedule. The errors are those that
    fast-forwarding is estimated to have, of both sides together; 0 where all was replayed. Times
    of kernels are of all their launches, as the mean of the GPUs; bytes are of all GPUs. The parts
    are in the order of how much they changed.
    """

    schedule: str
    point: dict[str, Any]
    asked: dict[str, tuple[Any, Any]]
    time_s: Change
    hbm_bytes: Change
    hbm_read_bytes: Change
    hbm_write_bytes: Change
    l2_hit_rate: Change
    bottleneck: tuple[str, str]
    time_by_cause_s: dict[str, Change]
    time_by_kernel_s: dict[str, Change]
    hbm_bytes_by_kernel: dict[str, Change]
    fast_forwarded: tuple[bool, bool]
    time_error_s: float
    hbm_error_bytes: float


@dataclass(frozen=True)
class Unpaired:
    """A schedule of which no times can be compared, and why."""

    schedule: str
    point: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Two results.json files: what ran in both, and what did not.

    `versions` are the versions of attnsim that wrote the first and the second.
    """

    before: str
    after: str
    versions: tuple[str, str]
    differences: list[Difference]
    unpaired: list[Unpaired]

    def json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"


def compare(before: Path, after: Path) -> Comparison:
    """The records of two results.json files by schedule and point.

    Where each file holds a single point, the schedule alone decides. Raises InputError.
    """
    first, second = load(before), load(after)
    one_point = all(len({_place(record) for record in side}) == 1 for side in (first, second))
    by_key = [_by_key(side, path, one_point) for side, path in ((first, before), (second, after))]
    differences, unpaired = [], []
    for key in dict.fromkeys(key for side in by_key for key in side):
        found = [side.get(key) for side in by_key]
        if (reason := _reason(found, (str(before), str(after)))) is not None:
            known = next(record for record in found if record is not None)
            unpaired.append(Unpaired(known.schedule, known.point, reason))
        else:
            differences.append(difference(*(record for record in found if record is not None)))
    return Comparison(
        str(before), str(after), (_wrote(first), _wrote(second)), differences, unpaired
    )


def _place(record: Record) -> str:
    return json.dumps(record.point, sort_keys=True)


def _wrote(records: list[Record]) -> str:
    return ", ".join(dict.fromkeys(r.versions.get("attnsim", "unknown") for r in records))


def _by_key(records: list[Record], path: Path, one_point: bool) -> dict[tuple[str, str], Record]:
    by_key: dict[tuple[str, str], Record] = {}
    for record in records:
        key = record.schedule, "" if one_point else _place(record)
        if key in by_key:
            raise InputError(
                f"{path}: schedule {record.schedule!r} stands there twice at the same point"
            )
        by_key[key] = record
    return by_key


def _reason(found: list[Record | None], names: tuple[str, str]) -> str | None:
    """Why there are no two times to compare, or None where there are."""
    for record, other in zip(found, reversed(names), strict=True):
        if record is None:
            return f"only in {other}"
    lacking = [
        f"{record.status} in {name} ({record.reason})"
        for record, name in zip(found, names, strict=True)
        if record is not None and record.status != "ok"
    ]
    return ", ".join(lacking) or None


def difference(before: Record, after: Record) -> Difference:
    """What changed from one record that ran to another."""
    return Difference(
        schedule=before.schedule,
        point=before.point,
        asked=_asked(before, after),
        time_s=Change(before.time_s or 0.0, after.time_s or 0.0),
        hbm_bytes=Change(before.hbm_bytes or 0, after.hbm_bytes or 0),
        hbm_read_bytes=Change(before.hbm_read_bytes or 0, after.hbm_read_bytes or 0),
        hbm_write_bytes=Change(before.hbm_write_bytes or 0, after.hbm_write_bytes or 0),
        l2_hit_rate=Change(before.l2_hit_rate or 0.0, after.l2_hit_rate or 0.0),
        bottleneck=(before.bottleneck or "", after.bottleneck or ""),
        time_by_cause_s=_changes(_time_by_cause_s(before), _time_by_cause_s(after)),
        time_by_kernel_s=_changes(_time_by_kernel_s(before), _time_by_kernel_s(after)),
        hbm_bytes_by_kernel=_changes(_bytes_by_kernel(before), _bytes_by_kernel(after)),
        fast_forwarded=(before.fast_forward is not None, after.fast_forward is not None),
        time_error_s=sum(_error(r, "time_error") * (r.time_s or 0.0) for r in (before, after)),
        hbm_error_bytes=sum(_error(r, "hbm_error") * (r.hbm_bytes or 0) for r in (before, after)),
    )


def _asked(before: Record, after: Record) -> dict[str, tuple[Any, Any]]:
    """What the two were asked otherwise, each once; of options what both files say."""
    with_settings = before.options is not None and after.options is not None
    first, second = (_question(record, with_settings) for record in (before, after))
    pairs = {key: (first.get(key), second.get(key)) for key in {**first, **second}}
    return {key: pair for key, pair in pairs.items() if not _same(*pair)}


def _question(record: Record, with_settings: bool) -> dict[str, Any]:
    told = ("workload.", "hardware.", "schedule.") if with_settings else _TOLD_BY_NAME
    return {
        **record.workload,
        "hardware": record.hardware,
        "engine": record.engine,
        **(record.settings if with_settings else {}),
        **_machine_code(record),
        **{key: value for key, value in record.point.items() if not key.startswith(told)},
    }


def _machine_code(record: Record) -> dict[str, str]:
    """The machine code whose counts each kernel has: a file of one name may hold another."""
    return {
        f"machine code of {kernel.name}": f"{code['function']} {code['arch']} {code['sha256'][:12]}"
        for kernel in record.kernels
        if (code := kernel.compiled_from)
    }


def _same(first: Any, second: Any) -> bool:
    """Whether two values are the same, perhaps in other units."""
    return first == second or (amount(first) is not None and amount(first) == amount(second))


def _error(record: Record, of: str) -> float:
    return (record.fast_forward or {}).get(of, 0.0)


def _changes(before: dict[str, float], after: dict[str, float]) -> dict[str, Change]:
    changes = {
        name: Change(before.get(name, 0), after.get(name, 0)) for name in {**before, **after}
    }
    return dict(sorted(changes.items(), key=lambda item: -abs(item[1].difference)))


def _time_by_cause_s(record: Record) -> dict[str, float]:
    assert record.time_s is not None
    return {cause: share * record.time_s for cause, share in record.bottleneck_shares.items()}


def _time_by_kernel_s(record: Record) -> dict[str, float]:
    """Kernels of the same name together, and what is left of the time."""
    assert record.time_s is not None
    times_s = _sums((k.name, k.time_s * k.launches / record.gpus) for k in record.kernels)
    return {**times_s, BETWEEN: record.time_s - sum(times_s.values())}


def _bytes_by_kernel(record: Record) -> dict[str, float]:
    moved = _sums(
        (k.name, (k.hbm_read_bytes + k.hbm_write_bytes) * k.launches) for k in record.kernels
    )
    return {**moved, LEFT_IN_L2: (record.hbm_bytes or 0) - sum(moved.values())}


def _sums(amounts: Iterable[tuple[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, one in amounts:
        sums[name] = sums.get(name, 0) + one
    return sums
