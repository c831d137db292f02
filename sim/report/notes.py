"""What is to be said of records beside their figures: a line each, below a table or on a page."""

from dataclasses import dataclass
from math import hypot
from pathlib import Path
from typing import cast

from sim.inputs.hardware import NATIVE_MATMUL, Arch
from sim.inputs.lengths import in_words
from sim.inputs.units import show
from sim.report.asked_in_public import missed_near
from sim.report.known_errors import MeasuredError, known_time_error
from sim.runs.record import KernelResult, Record
from sim.schedules import SCHEDULES
from sim.schedules.base import that_take

# What devices with another such figure usually have otherwise too, and no profile derives from it.
GO_TOGETHER = {
    "sm.count": ("l2.bandwidth", "power.tdp"),
    "sm.clock": ("l2.bandwidth", "power.tdp"),
    "hbm.bandwidth": ("l2.bandwidth",),
}
CAUSES_IN_WORDS = {
    "tensor": "tensor cores",
    "vector": "fp32 lanes",
    "exp": "exponentials",
    "sram": "SRAM",
    "issue": "issue slots",
    "sm_port": "SMs' ports to L2",
    "l2": "L2 bandwidth",
    "hbm": "HBM bandwidth",
    "l2_latency": "L2 latency",
    "hbm_latency": "HBM latency",
    "op_latency": "dependent instructions",
    "cta_start": "starts of CTAs",
    "power": "the power limit",
    "launch": "launches",
    "link": "waiting for links",
    "idle": "idling at the end",
}
ISSUED_IN_WORDS = {
    "matmuls": "matmuls",
    "fp32": "fp32",
    "other": "maxima, conversions, shuffles and addresses",
    "exp": "exponentials",
    "sram": "accesses to SRAM",
}


def notes(records: list[Record]) -> list[str]:
    """Of which sequences they are, and what makes figures less or other, or not worth comparing."""
    return [
        *_ragged(records),
        *_level(records),
        *_missed(records),
        *_copies_of_a_prefix(records),
        *_skipped(records),
        *_compiled(records),
        *_issue_slots(records),
        *_spilled(records),
        *_held_back(records),
        *_caches_of_dies(records),
        *_left_as_they_were(records),
    ]


ROUGH = 0.10  # an estimated error above which an answer is told as rough before anything else


def rough(records: list[Record]) -> list[str]:
    """A line a schedule whose time or bytes may be off by much, as only a part was replayed."""
    told = []
    for record in records:
        errors = record.fast_forward or {}
        of = {"time": errors.get("time_error", 0.0), "HBM bytes": errors.get("hbm_error", 0.0)}
        if off := [f"{what} by {error:.0%}" for what, error in of.items() if error > ROUGH]:
            text = f"rough: {' and '.join(off)} may be off (--exact is not)"
            told.append(_Told(record, max(of.values()), text))
    return _most_of_each(told)


def known_off(records: list[Record]) -> list[str]:
    """A line a schedule whose predictions are known to be off, and one of those nobody measured."""
    ran = [record for record in records if record.status == "ok" and record.options is not None]
    known = [(record.schedule, measured_error(record)) for record in ran if not _is_own(record)]
    off = (f"{name}: {error.sentence()}" for name, error in known if error and error.is_off)
    unmeasured = dict.fromkeys(name for name, error in known if error is None)
    nobody = f"{', '.join(unmeasured)}: no measured times are known to tell the error by"
    return [*dict.fromkeys(off), *([nobody] if unmeasured else [])]


def measured_error(record: Record) -> MeasuredError | None:
    """How near predictions of its time were; None where nobody measured its kernels."""
    if record.status != "ok" or record.options is None or _is_own(record):
        return None
    return known_time_error(record.options, record.hardware, record.workload)


def reasons(records: list[Record]) -> list[str]:
    """Why records have no figures: a line a reason, with the first that has it and how many do."""
    alike: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.reason:
            alike.setdefault((record.status, record.reason), []).append(record)
    return [
        f"{who(first)}{_more(more)}: {status}: {reason}"
        for (status, reason), (first, *more) in alike.items()
    ]


def _level(records: list[Record]) -> list[str]:
    """A line a schedule and those that are nearer to it, the fastest, than errors are known."""
    points: dict[str, list[Record]] = {}
    for record in records:
        if record.time_s:
            points.setdefault(str(record.point), []).append(record)
    found: dict[tuple[str, str], list[Record]] = {}
    for at_point in points.values():
        best = min(at_point, key=lambda record: record.time_s or 0.0)
        rivals = (record for record in at_point if record is not best)
        if level := [rival.schedule for rival in rivals if _cannot_be_told_apart(best, rival)]:
            found.setdefault((best.schedule, ", ".join(level)), []).append(best)
    return [
        f"{who(first)}{_more(more)}: level with {level}, as far as errors are known"
        for (_, level), (first, *more) in found.items()
    ]


def _missed(records: list[Record]) -> list[str]:
    """A line a schedule near which predictions miss a time that somebody measured."""
    told = [
        _Told(
            record,
            1 / one.share,
            f"{show(one.measured_s, 's')} were measured in public of something near it, of which "
            f"{one.share:.0%} are predicted: {one.cause}",
        )
        for record in records
        if not _is_own(record) and (one := missed_near(record))
    ]
    return _most_of_each(told)


def _more(others: list[Record]) -> str:
    return f" and {len(others):,} more" if others else ""


@dataclass(frozen=True)
class _Told:
    """Something to be said of a record; `amount` is how much of it there is."""

    record: Record
    amount: float
    text: str


def _most_of_each(told: list[_Told]) -> list[str]:
    """A line a schedule: of the point that has most of it, and of how many points it could be."""
    of: dict[str, list[_Told]] = {}
    for one in told:
        of.setdefault(one.record.schedule, []).append(one)
    lines = []
    for points in of.values():
        most = max(points, key=lambda one: one.amount)
        among = f" (the most of {len(points):,} such points)" if len(points) > 1 else ""
        lines.append(f"{who(most.record)}: {most.text}{among}")
    return lines


def _cannot_be_told_apart(best: Record, rival: Record) -> bool:
    """Whether their times differ by less than both together are known to be off."""
    known = [measured_error(record) for record in (best, rival)]
    apart = (rival.time_s or 0.0) / (best.time_s or 1.0) - 1.0
    off = [error.mean_error for error in known if error is not None]
    return len(off) == len(known) and apart < hypot(*off)


def _is_own(record: Record) -> bool:
    """Whether its kernels are one's own, which nobody measured."""
    return any(kernel.compiled_from for kernel in record.kernels)


def _compiled(records: list[Record]) -> list[str]:
    """A line a schedule and kernel whose counts are those of machine code."""
    lines: dict[str, None] = {}
    for record in records:
        for kernel in record.kernels:
            if (code := kernel.compiled_from) and record.options is not None:
                file = Path(record.options.get("machine_code", "")).name
                lines[f"{record.schedule}: a trip of {file}, {_compiled_for(code)}"] = None
    return list(lines)


def _compiled_for(code: dict[str, str]) -> str:
    """Which kernel, and what it means that it was compiled for another architecture."""
    arch, device = code["arch"], code["device_arch"]
    told = f"{code['function']} ({arch}, {code['matmul']}; sha256 {code['sha256'][:12]})"
    if arch == device:
        return told
    native = NATIVE_MATMUL[cast(Arch, device)]
    if native != code["matmul"]:
        return f"{told}; {device} runs {code['matmul']} slower than its own {native}"
    return f"{told}; compiled for {device} it may be otherwise"


def who(record: Record) -> str:
    """Its schedule, and where it stands in a sweep."""
    return f"{record.schedule} {point_text(record)}".strip()


def point_text(record: Record) -> str:
    """The swept values of a record, such as "seq_len 4096"."""
    return ", ".join(f"{key.split('.', 1)[-1]} {value}" for key, value in record.point.items())


def _ragged(records: list[Record]) -> list[str]:
    """A line a batch of sequences of several lengths."""
    told = (in_words(r.workload.get("seq_q", 1), r.workload.get("seq_kv", 1)) for r in records)
    return list(dict.fromkeys(words for words in told if words))


def _copies_of_a_prefix(records: list[Record]) -> list[str]:
    """A line a schedule that reads a copy of the prefix that sequences share for each of them."""
    lines: dict[str, None] = {}
    for record in records:
        shared, kind = record.workload.get("shared_prefix"), SCHEDULES.get(_name_of(record))
        if shared and kind and "shared prefix" not in kind.takes:
            copies = f"{record.schedule}: each sequence has a copy of the tokens that all share"
            lines[f"{copies}; one copy for all: {that_take('shared prefix')}"] = None
    return list(lines)


def _name_of(record: Record) -> str:
    return str((record.options or {}).get("name"))


def _round(count: float) -> int:
    """A count in two digits."""
    return int(float(f"{count:.2g}"))


def _skipped(records: list[Record]) -> list[str]:
    """A line a schedule that was fast-forwarded, or of which kernels were replayed apart."""
    return _most_of_each(
        [
            _Told(
                record,
                errors["time_error"] + errors["hbm_error"],
                f"{_how_told(errors['steps_skipped'])}; estimated "
                f"error {errors['time_error']:.1%} of time, {errors['hbm_error']:.1%} of HBM bytes "
                "(--exact replays all)",
            )
            for record in records
            if (errors := record.fast_forward)
        ]
    )


def _how_told(steps_skipped: float) -> str:
    if not steps_skipped:
        return "long kernels replayed each from an empty L2"
    return f"fast-forwarded over {_round(steps_skipped):,} tile steps"


def _issue_slots(records: list[Record]) -> list[str]:
    """A line a schedule that issue slots hold back: what fills them in its longest kernel."""
    return _most_of_each(
        [
            _Told(
                record,
                record.bottleneck_shares.get("issue", 0.0),
                f"issue slots are filled by {filled_by(kernel)}",
            )
            for record in records
            if record.bottleneck == "issue"
            and (kernel := record.longest_kernel)
            and kernel.issue_filled_by
        ]
    )


def filled_by(kernel: KernelResult) -> str:
    """What fills a kernel's issue slots, most first: "matmuls 54%, fp32 23%, ..."."""
    filled = sorted(kernel.issue_filled_by.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{ISSUED_IN_WORDS[what]} {share:.0%}" for what, share in filled)


def _spilled(records: list[Record]) -> list[str]:
    """A line a schedule whose longest kernel spills registers: how much of L2's bytes these are."""
    told = []
    for record in records:
        kernel = record.longest_kernel
        if kernel and kernel.spilled_bytes:
            moved_bytes = kernel.l2_read_bytes + kernel.l2_write_bytes
            text = (
                f"{show(kernel.spilled_bytes, 'B')} of the {show(moved_bytes, 'B')} that L2 "
                "moves are registers that spill"
            )
            told.append(_Told(record, kernel.spilled_bytes / moved_bytes, text))
    return _most_of_each(told)


def _held_back(records: list[Record]) -> list[str]:
    """A line a schedule whose longest kernel ran at a lower clock, for the board's power limit."""
    told = []
    for record in records:
        kernel = record.longest_kernel
        if kernel and kernel.clock_hz and kernel.clock_share < 1:
            nominal_hz = kernel.clock_hz / kernel.clock_share
            which = f"{kernel.name} " if len(record.kernels) > 1 else ""
            text = (
                f"{which}held back by power: {kernel.clock_hz / 1e9:.2f} of "
                f"{nominal_hz / 1e9:.2f} GHz, as under a sustained load"
            )
            told.append(_Told(record, 1 - kernel.clock_share, text))
    return _most_of_each(told)


def _caches_of_dies(records: list[Record]) -> list[str]:
    """A line a schedule on a device whose dies have caches of their own: what these hit."""
    return _most_of_each(
        [
            _Told(
                record,
                record.l2_die_hit_rate,
                f"the cache of their own die serves {record.l2_die_hit_rate:.1%} of loads "
                f"({record.l2_dies} dies; L2 is the cache that they share)",
            )
            for record in records
            if record.l2_die_hit_rate is not None
        ]
    )


def _left_as_they_were(records: list[Record]) -> list[str]:
    """A line a changed figure of the device that left others as they were."""
    lines: dict[str, None] = {}
    for record in records:
        overrides = record.overrides or {}
        for key in GO_TOGETHER.keys() & overrides.keys():
            if left := [other for other in GO_TOGETHER[key] if other not in overrides]:
                told = f"left as {record.hardware} has it: {', '.join(left)}"
                lines[f"{key} is changed; {told}"] = None
    return sorted(lines)
