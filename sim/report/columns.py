"""The columns of the records' table, on a terminal, a page and in a notebook."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from sim.inputs.units import show
from sim.report.causes import last_wave, room_text, wave_text
from sim.report.notes import point_text
from sim.runs.record import KernelResult, Record


@dataclass(frozen=True)
class Column:
    """Of the records' table: its heading, what a record has there, and what a kernel has."""

    heading: str
    of_record: Callable[[Record], str]
    of_kernel: Callable[[KernelResult], str] = lambda _: ""


def _causes(record: Record) -> str:
    return ", ".join(f"{c} {s:.0%}" for c, s in list(record.bottleneck_shares.items())[:2])


def _rows_used(result: Record | KernelResult) -> str:
    return "" if result.rows_used is None else f"{result.rows_used:.0%}"


def _last_wave(kernel: KernelResult) -> str:
    return "" if (fill := last_wave(kernel)) is None else f"{fill:.0%}"


def _splits(kernel: KernelResult) -> str:
    return "" if kernel.splits is None else str(kernel.splits)


def _reread(kernel: KernelResult) -> str:
    if kernel.hbm_reread_bytes is None:
        return ""
    return f"{kernel.hbm_reread_bytes / max(kernel.hbm_read_bytes, 1):.0%}"


def _clock(kernel: KernelResult) -> str:
    return "" if kernel.clock_hz is None else f"{kernel.clock_share:.0%}"


def _of_longest(text: Callable[[KernelResult], str]) -> Callable[[Record], str]:
    """What its longest kernel has there."""
    return lambda record: text(kernel) if (kernel := record.longest_kernel) else ""


def _cause(heading: str, text: Callable[[KernelResult], str]) -> Column:
    return Column(heading, _of_longest(text), text)


def _kernel_name(kernel: KernelResult) -> str:
    return f"  {kernel.name}{f' ×{kernel.launches}' if kernel.launches > 1 else ''}"


_COLUMNS = (
    Column("schedule", lambda r: r.schedule, _kernel_name),
    Column("point", point_text),
    Column("time", lambda r: show(r.time_s or 0, "s"), lambda k: show(k.time_s, "s")),
    Column(
        "HBM read",
        lambda r: show(r.hbm_read_bytes or 0, "B"),
        lambda k: show(k.hbm_read_bytes, "B"),
    ),
    Column(
        "HBM write",
        lambda r: show(r.hbm_write_bytes or 0, "B"),
        lambda k: show(k.hbm_write_bytes, "B"),
    ),
    Column("L2 hits", lambda r: f"{r.l2_hit_rate:.0%}", lambda k: f"{k.l2_hit_rate:.0%}"),
    Column("peak memory", lambda r: show(r.peak_hbm_bytes or 0, "B")),
    Column(
        "tensor",
        lambda r: f"{r.tensor_utilisation:.0%}",
        lambda k: f"{k.tensor_utilisation:.0%}",
    ),
    Column("rows used", _rows_used, _rows_used),
    Column("HBM", lambda r: f"{r.hbm_utilisation:.0%}", lambda k: f"{k.hbm_utilisation:.0%}"),
    Column("GPUs", lambda r: str(r.gpus)),
    Column("over links", lambda r: show(r.link_bytes, "B")),
    Column("wait for links", lambda r: show(r.link_wait_s, "s")),
    Column("held back by", _causes, lambda k: f"{k.bottleneck} {k.bottleneck_share:.0%}"),
)
_CAUSES = (
    _cause("waves", wave_text),
    _cause("last wave full", _last_wave),
    _cause("CTAs an SM", room_text),
    _cause("splits", _splits),
    _cause("rows used", _rows_used),
    _cause("read again", _reread),
    _cause("clock", _clock),
)


def columns_of(records: list[Record]) -> list[Column]:
    """The table's columns: of points only in a sweep, of links only where they are used.

    How much of its tile's rows a schedule uses is told of decoding, where they are few.
    """
    dropped = set()
    if not with_points(records):
        dropped.add("point")
    if not any(record.workload.get("phase") == "decode" for record in records):
        dropped.add("rows used")
    if not any(record.gpus > 1 or record.link_bytes for record in records):
        dropped |= {"GPUs", "over links", "wait for links"}
    return [column for column in _COLUMNS if column.heading not in dropped]


def causes_of(records: list[Record]) -> list[Column]:
    """Of a second table: what people look for as causes; a record has its longest kernel's."""
    return [*_COLUMNS[: 2 if with_points(records) else 1], *_CAUSES]


def kernels_of(record: Record) -> list[KernelResult]:
    """The rows below a record: kernels of one name, as of each head or token, are one.

    Its figures are of one launch, as a `KernelResult`'s are: the mean of all.
    """
    named: dict[str, list[KernelResult]] = {}
    for kernel in record.kernels:
        named.setdefault(kernel.name, []).append(kernel)
    return [own[0] if len(own) == 1 else _mean(own) for own in named.values()]


def _mean(kernels: list[KernelResult]) -> KernelResult:
    """One for all: the mean launch, whose rates are those of all together."""
    launches = sum(kernel.launches for kernel in kernels)
    total_s = sum(kernel.all_launches_s for kernel in kernels)
    loaded = sum(kernel.launches * kernel.l2_read_bytes for kernel in kernels)
    causes_s: Counter[str] = Counter()
    for kernel in kernels:
        causes_s.update({c: kernel.launches * s for c, s in kernel.critical_time_s.items()})

    def mean(value: Callable[[KernelResult], float]) -> float:
        return sum(kernel.launches * value(kernel) for kernel in kernels) / launches

    def over_time(value: Callable[[KernelResult], float]) -> float:
        return sum(kernel.all_launches_s * value(kernel) for kernel in kernels) / total_s

    return replace(
        kernels[0],
        launches=launches,
        time_s=total_s / launches,
        hbm_read_bytes=round(mean(lambda k: k.hbm_read_bytes)),
        hbm_write_bytes=round(mean(lambda k: k.hbm_write_bytes)),
        l2_hit_rate=mean(lambda k: k.l2_hit_rate * k.l2_read_bytes) * launches / max(loaded, 1),
        tensor_utilisation=over_time(lambda k: k.tensor_utilisation),
        hbm_utilisation=over_time(lambda k: k.hbm_utilisation),
        hbm_reread_bytes=round(mean(lambda k: k.hbm_reread_bytes or 0)),
        critical_time_s={cause: time_s / launches for cause, time_s in causes_s.items()},
        bottleneck=max(causes_s, key=lambda cause: causes_s[cause]),
    )


def with_points(records: list[Record]) -> bool:
    """Whether records are points of a sweep."""
    return any(record.point for record in records)


def with_kernels(records: list[Record]) -> bool:
    """Whether the table tells kernels apart: not in a sweep."""
    return not with_points(records)
