"""Results, profiles and scenarios as tables on a terminal, by rich."""

from collections import Counter
from typing import Any

from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Table

from sim.files import read_toml
from sim.hardware import HardwareProfile, find_toml, load_profile, shipped_names
from sim.result import KernelResult, Record
from sim.schedules import SCHEDULES
from sim.units import show, show_binary


def new_table(title: str, *columns: str, numeric_from: int = 1) -> Table:
    """An empty table; columns from number `numeric_from` on are aligned right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(
            column, justify="right" if number >= numeric_from else "left", no_wrap=True
        )
    return table


def show_table(table: Table) -> None:
    """Print the table, as wide as it needs to be unless the terminal is narrower."""
    console = Console()
    if not console.is_terminal:  # a pipe or a file has no width to keep to
        console = Console(width=200)
    console.print(table)


def point_text(record: Record) -> str:
    """The swept values of a record, such as "seq_len 4096"."""
    return ", ".join(f"{key.split('.', 1)[-1]} {value}" for key, value in record.point.items())


def print_records(title: str, records: list[Record]) -> None:
    """A row a record and, where nothing is swept, one a kernel below it.

    Where a schedule runs on several GPUs or uses links, columns tell of that.
    """
    table = new_table(
        title,
        "schedule",
        "point",
        "time",
        "HBM read",
        "HBM write",
        "L2 hits",
        "peak memory",
        "tensor",
        "HBM",
        "GPUs",
        "over links",
        "wait for links",
        "held back by",
        numeric_from=2,
    )
    swept = any(record.point for record in records)
    linked = any(record.gpus > 1 or record.link_bytes for record in records)
    for record in records:
        if record.status != "ok":
            table.add_row(record.schedule, point_text(record), record.status, style="red")
            continue
        table.add_row(*_record_cells(record))
        if len(record.kernels) > 1 and not swept:
            for kernel in record.kernels:
                table.add_row(*_kernel_cells(kernel), style="dim")
    dropped = [] if swept else ["point"]
    if not linked:
        dropped += ["GPUs", "over links", "wait for links"]
    table.columns = [column for column in table.columns if column.header not in dropped]
    show_table(table)
    for record in records:
        who = f"{record.schedule} {point_text(record)}".strip()
        if skipped := record.fast_forward:
            print(
                f"{who}: fast-forwarded over {skipped['steps_skipped']:.2g} tile steps; estimated "
                f"error {skipped['time_error']:.1%} of time, {skipped['hbm_error']:.1%} of HBM "
                "bytes (--exact replays all)"
            )
        if record.reason:
            print(f"{who}: {record.status}: {record.reason}")


def _record_cells(record: Record) -> list[str]:
    causes = [f"{c} {s:.0%}" for c, s in list(record.bottleneck_shares.items())[:2]]
    return [
        record.schedule,
        point_text(record),
        show(record.time_s or 0, "s"),
        show(record.hbm_read_bytes or 0, "B"),
        show(record.hbm_write_bytes or 0, "B"),
        f"{record.l2_hit_rate:.0%}",
        show(record.peak_hbm_bytes or 0, "B"),
        f"{record.tensor_utilisation:.0%}",
        f"{record.hbm_utilisation:.0%}",
        str(record.gpus),
        show(record.link_bytes, "B"),
        show(record.link_wait_s, "s"),
        ", ".join(causes),
    ]


def _kernel_cells(kernel: KernelResult) -> list[str]:
    times = f" ×{kernel.launches}" if kernel.launches > 1 else ""
    return [
        f"  {kernel.name}{times}",
        "",
        show(kernel.time_s, "s"),
        show(kernel.hbm_read_bytes, "B"),
        show(kernel.hbm_write_bytes, "B"),
        f"{kernel.l2_hit_rate:.0%}",
        "",
        f"{kernel.tensor_utilisation:.0%}",
        f"{kernel.hbm_utilisation:.0%}",
        *[""] * 3,
        f"{kernel.bottleneck} {kernel.bottleneck_share:.0%}",
    ]


_ROWS = 40  # of a sweep that a reader would still look through


def print_sweep(title: str, records: list[Record], replayed: int) -> None:
    """The records if they are few, and how many came to what."""
    if len(records) <= _ROWS:
        print_records(title, records)
    else:
        print(title)
    states = Counter(record.status for record in records)
    reasons = Counter(record.reason for record in records if record.status == "failed")
    if len(records) > _ROWS:
        for reason, times in reasons.most_common(5):
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
    )
    for name in shipped_names("hw_profiles"):
        hw = load_profile(name)
        table.add_row(
            name,
            str(hw.sm.count),
            show_binary(hw.sram.capacity),
            show_binary(hw.l2.capacity),
            show_binary(hw.hbm.capacity),
            show(hw.hbm.bandwidth, "B/s"),
            show(hw.tensor.fp16, "FLOP/s") if hw.tensor.fp16 else "",
            show(hw.power.tdp, "W") if hw.power else "",
        )
    show_table(table)


def print_profile(hw: HardwareProfile) -> None:
    """Every figure of a profile with its section's source below."""
    console = Console()
    console.print(f"[bold]{hw.name}[/bold]: {hw.title} ({hw.arch})")
    _print_section(console, "", hw)


def _print_section(console: Console, path: str, section: BaseModel) -> None:
    for key, value in section:
        if isinstance(value, BaseModel):
            heading = f"{path}{key}"
            if hasattr(value, "source"):
                console.print(f"\n[bold]\\[{heading}][/bold]")
            _print_section(console, f"{heading}.", value)
        elif path and value is not None and key != "source":
            console.print(f"  {key} = {figure_text(key, value)}")
    source = getattr(section, "source", None)
    if source:
        console.print(f"  [dim]{source}[/dim]")


def figure_text(key: str, value: Any) -> str:
    """A figure of a profile in the unit that the last part of its key stands for."""
    units = {
        "capacity": "B", "reserved_per_cta": "B", "bandwidth": "B/s", "host": "B/s", "peer": "B/s",
        "network": "B/s", "network_latency": "s",
        "clock": "Hz", "fp16": "FLOP/s", "bf16": "FLOP/s", "fp8": "FLOP/s", "tdp": "W", "idle": "W",
        "latency": "s", "gap": "s", "op_latency": "s", "cta_start": "s",
        "hbm_per_byte": "J/B", "l2_per_byte": "J/B", "sram_per_byte": "J/B",
        "tensor_per_flop": "J/FLOP",
    }  # fmt: skip
    unit = units.get(key)
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


def print_scenarios() -> None:
    """A row a shipped scenario."""
    table = new_table("Scenarios", "name", "question", numeric_from=2)
    for name in shipped_names("scenarios"):
        path = find_toml(name, "scenarios", "scenario")
        table.add_row(name, read_toml(path).get("title", ""))
    show_table(table)
