"""Results, profiles and scenarios as tables on a terminal, by rich."""

import inspect
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from sim.inputs.files import find_toml, read_toml, shipped_names
from sim.inputs.hardware import HardwareProfile, Section, load_profile
from sim.inputs.models import MODELS
from sim.inputs.shapes import ModelShape
from sim.inputs.units import show, show_binary
from sim.report.answer import answer
from sim.report.known_errors import device_error, known_errors
from sim.report.notes import known_off, notes, point_text, reasons, rough
from sim.runs.record import KernelResult, Record
from sim.schedules import SCHEDULES
from sim.schedules.base import Schedule


def new_table(title: str, *columns: str, numeric_from: int = 1) -> Table:
    """An empty table; columns from number `numeric_from` on are aligned right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(
            column, justify="right" if number >= numeric_from else "left", no_wrap=True
        )
    return table


def _console() -> Console:
    """A terminal of its own width; a pipe or a file has none to keep to."""
    console = Console()
    return console if console.is_terminal else Console(width=_UNLIMITED)


_UNLIMITED = 10_000  # columns


def show_table(table: Table) -> None:
    """Print the table, as wide as it needs to be unless the terminal is narrower."""
    _console().print(table)


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


def columns_of(records: list[Record]) -> list[Column]:
    """The table's columns: of points only in a sweep, of links only where they are used.

    How much of its tile's rows a schedule uses is told of decoding, where they are few.
    """
    dropped = set()
    if not any(record.point for record in records):
        dropped.add("point")
    if not any(record.workload.get("phase") == "decode" for record in records):
        dropped.add("rows used")
    if not any(record.gpus > 1 or record.link_bytes for record in records):
        dropped |= {"GPUs", "over links", "wait for links"}
    return [column for column in _COLUMNS if column.heading not in dropped]


def with_kernels(records: list[Record]) -> bool:
    """Whether the table tells kernels apart: not in a sweep."""
    return not any(record.point for record in records)


def print_records(title: str, records: list[Record]) -> None:
    """A row a record and, where nothing is swept, one a kernel below it; then reasons."""
    table, left_out = _fitting(title, records)
    for line in rough(records):
        print(line)
    show_table(table)
    if left_out:
        print(f"(no room for {', '.join(left_out)})")
    for line in (answer(records), *notes(records), *known_off(records), *reasons(records)):
        print(line)


# The columns that a narrow terminal can do without, those that matter least first.
_SPARED = (
    "peak memory", "rows used", "GPUs", "L2 hits", "HBM", "tensor", "over links", "wait for links",
    "HBM write", "HBM read",
)  # fmt: skip


def _fitting(title: str, records: list[Record]) -> tuple[Table, list[str]]:
    """The records' table as the terminal has room for it, and the columns left out of it.

    Where even that is too wide, schedules and points are folded; figures are never cut.
    """
    console, columns, left_out = _console(), columns_of(records), list[str]()
    table = _table_of(title, records, columns)
    for heading in _SPARED:
        if console.measure(table, options=_any_width(console)).maximum <= console.width:
            return table, left_out
        if any(column.heading == heading for column in columns):
            left_out.append(heading)
            columns = [column for column in columns if column.heading != heading]
            table = _table_of(title, records, columns)
    for column in table.columns:
        if column.justify == "left":
            column.no_wrap, column.overflow = False, "fold"
    return table, left_out


def _any_width(console: Console) -> ConsoleOptions:
    return console.options.update(width=_UNLIMITED)


def _table_of(title: str, records: list[Record], columns: list[Column]) -> Table:
    """A row a record and, where nothing is swept, one a kernel below it."""
    numeric_from = 1 if with_kernels(records) else 2
    table = new_table(title, *(c.heading for c in columns), numeric_from=numeric_from)
    for record in records:
        if record.status != "ok":
            leading = [column.of_record(record) for column in columns[:numeric_from]]
            table.add_row(*leading, record.status, style="red")
            continue
        table.add_row(*(column.of_record(record) for column in columns))
        if len(record.kernels) > 1 and with_kernels(records):
            for kernel in record.kernels:
                table.add_row(*(column.of_kernel(kernel) for column in columns), style="dim")
    return table


_ROWS = 40  # of a sweep that a reader would still look through


def print_sweep(title: str, records: list[Record], replayed: int) -> None:
    """The records if they are few, and how many came to what."""
    if len(records) <= _ROWS:
        print_records(title, records)
    else:
        print(title)
    states = Counter(record.status for record in records)
    problems = Counter(record.reason for record in records if record.status == "failed")
    if len(records) > _ROWS:
        for reason, times in problems.most_common(5):
            print(f"failed, {times:,} times: {reason}")
    counts = ", ".join(f"{times:,} {status}" for status, times in states.most_common())
    print(f"{len(records):,} records: {counts}; {replayed:,} of them replayed now")


def print_profiles() -> None:
    """A row a shipped profile, with the vendor's figures."""
    table = new_table(
        "Hardware profiles (vendor's figures)",
        "name",
        "SMs",
        "SRAM/SM",
        "L2",
        "HBM",
        "bandwidth",
        "fp16 tensor",
        "TDP",
        "times measured",
        "mean error",
    )
    for name in shipped_names("hw_profiles"):
        hw = load_profile(name)
        known = device_error(name)
        table.add_row(
            name,
            str(hw.sm.count),
            show_binary(hw.sram.capacity),
            show_binary(hw.l2.capacity),
            show_binary(hw.hbm.capacity),
            show(hw.hbm.bandwidth, "B/s"),
            show(rate, "FLOP/s") if (rate := hw.tensor_flops_per_s("fp16")) else "",
            show(hw.power.tdp, "W") if hw.power else "",
            str(known.points) if known else "",
            f"{known.mean_error:.0%}{'*' if known.is_never_fitted else ' '}" if known else "",
        )
    show_table(table)
    print("times measured, mean error: by others on that device, and of their predictions")
    print("*: nothing was fitted to that device: its error is that of a hypothetical one")


def print_profile(hw: HardwareProfile) -> None:
    """Every figure of a profile with its section's source below."""
    console = Console()
    console.print(f"[bold]{hw.name}[/bold]: {hw.title} ({hw.arch})")
    for section in sections_of(hw):
        console.print(f"\n[bold]\\[{section.name}][/bold]")
        for key, text in section.figures.items():
            console.print(f"  {key} = {text}")
        console.print(f"  [dim]{section.source}[/dim]")


@dataclass(frozen=True)
class ProfileSection:
    """A table of a profile, such as calibration.hbm: its figures as texts, and their source."""

    name: str
    figures: dict[str, str]
    source: str


def sections_of(hw: HardwareProfile) -> list[ProfileSection]:
    """All sections of a profile, the calibration's last; beside tensor rates the device's total."""

    def text(name: str, key: str, value: Any) -> str:
        total = hw.tensor_flops_per_s(key) if name == "tensor" else None
        return figure_text(key, value) + (f" ({show(total, 'FLOP/s')})" if total else "")

    tables = [(key, value) for key, value in hw if isinstance(value, Section)]
    tables += [(f"calibration.{key}", value) for key, value in hw.calibration]
    return [
        ProfileSection(
            name,
            {
                key: text(name, key, value)
                for key, value in table
                if value is not None and key != "source"
            },
            table.source,
        )
        for name, table in tables
    ]


_UNITS = {
    "capacity": "B", "reserved_per_cta": "B", "bandwidth": "B/s", "host": "B/s", "peer": "B/s",
    "network": "B/s", "network_latency": "s",
    "fp16": "FLOP/clock", "bf16": "FLOP/clock", "fp8": "FLOP/clock",
    "clock": "Hz", "tdp": "W", "idle": "W",
    "latency": "s", "gap": "s", "op_latency": "s", "cta_start": "s", "cta_setup": "s",
    "hbm_per_byte": "J/B", "l2_per_byte": "J/B", "sram_per_byte": "J/B",
    "tensor_per_flop": "J/FLOP", "lane_op": "J",
}  # fmt: skip


def unit_of(key: str) -> str | None:
    """The unit of a profile's figure, by the last part of its key; None for plain numbers."""
    return _UNITS.get(key.rsplit(".", 1)[-1])


def figure_text(key: str, value: Any) -> str:
    """A figure of a profile in the unit that the last part of its key stands for."""
    unit = unit_of(key)
    if unit is None:
        return f"{value:g}"
    return show_binary(value) if unit == "B" else show(value, unit)


def print_schedules() -> None:
    """A row a schedule: what it does, which workloads it takes, where it comes from."""
    table = new_table("Schedules", "name", "what it does", "phases", "masks", "source")
    for column in table.columns:
        column.justify, column.no_wrap = "left", False
    table.columns[0].no_wrap = True
    for name, schedule in SCHEDULES.items():
        table.add_row(
            name,
            schedule.summary,
            ", ".join(schedule.phases),
            ", ".join(schedule.masks),
            schedule.source,
        )
    show_table(table)


def print_schedule(kind: type[Schedule]) -> None:
    """Its module's algorithm box, its options with their defaults, and its known errors."""
    print(inspect.cleandoc(sys.modules[kind.__module__].__doc__ or ""), end="\n\n")
    print(f"Source: {kind.source}\nOptions of its [[schedule]] table, and their defaults:")
    for key, option in kind.model_fields.items():
        if key not in ("name", "label"):
            default = "not set" if option.default is None else option.default
            print(f"  {key} = {default}")
    known = known_errors({"name": kind.model_fields["name"].default}, "")
    for one in known:
        error = f"{one.mean_error:.0%} off in the mean of {one.points}"
        print(f"Known error, {one.profile}, {one.family}, {one.quantity}: {error}")
    if not known:
        print("Known error: none is kept of published tables")


def print_models() -> None:
    """A row a model: its shape in words, and where that was published."""
    table = new_table("Models", "name", "shape, KV cache of a token in 16 bits, context; source")
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    for name, shape in MODELS.items():
        if name == shape.name:  # and not another name of a model that has its row
            table.add_row(name, Text.assemble(f"{_shape(shape)}\n", (shape.source, "dim")))
    show_table(table)


def _shape(shape: ModelShape) -> str:
    """A model's shape in words."""
    parameters = f"{show(shape.parameters, '')} parameters"
    width = f"{shape.mlp:,}"
    if shape.experts > 1:
        parameters += f" ({show(shape.active_parameters, '')} a token)"
        width = f"{shape.experts_per_token} experts a token of {width}"
    kv_heads = "latent KV" if shape.latent_dim else f"{shape.kv_heads} KV heads"
    cached = show_binary(2 * shape.layers * shape.cached_elements, digits=3)
    context = f"{shape.context:,} tokens"
    if shape.local_window:
        context += f", {shape.local_window:,} in {shape.local_layers} of the layers"
    if shape.window:
        context += f", a window of {shape.window:,}"
    return (
        f"{parameters}, {shape.layers} layers of {shape.hidden:,}, {shape.heads} heads of "
        f"{shape.head_dim}, {kv_heads}, MLP {width}; {cached}; {context}"
    )


def print_scenarios() -> None:
    """A row a shipped scenario."""
    table = new_table("Scenarios", "name", "question", numeric_from=2)
    for name in shipped_names("scenarios"):
        path = find_toml(name, "scenarios", "scenario")
        table.add_row(name, read_toml(path).get("title", ""))
    show_table(table)
