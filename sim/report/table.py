"""Tables on a terminal, by rich; those of what is shipped: profiles, schedules, scenarios."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from sim.inputs.files import find_toml, read_toml, shipped_names
from sim.inputs.hardware import HardwareProfile, Section, load_profile
from sim.inputs.models import MODELS
from sim.inputs.shapes import ModelShape
from sim.inputs.units import show, show_binary
from sim.report.known_errors import device_error, known_errors
from sim.schedules import SCHEDULES
from sim.schedules.base import Schedule


def new_table(title: str, *columns: str, numeric_from: int = 1) -> Table:
    """An empty table; columns from number `numeric_from` on are aligned right.

    Those before it name a row.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(
            column, justify="right" if number >= numeric_from else "left", no_wrap=True
        )
    return table


def _console() -> Console:
    """A terminal of its own width; a pipe or a file has none to keep to.

    Titles and labels are people's own words: what stands in brackets there is no style.
    """
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _UNLIMITED
    return console


_UNLIMITED = 10_000  # columns
_SHORTEST_LINE = 8  # letters of a heading's line
_BETWEEN, _EDGES = 3, 1  # columns of the terminal that a column has beside its own, and a table


def show_table(table: Table) -> None:
    """Print the table; what a terminal has no room for beside the rest goes on below.

    Every part begins with the columns that name the rows. No figure is cut.
    """
    console, title = _console(), table.title
    table.title = None
    if title:
        console.print(title, style="italic", markup=False, highlight=False)
    for part in [table] if fits(table) else _parts(table, console):
        console.print(part)


def fits(table: Table) -> bool:
    """Whether the terminal has room for the table, no line of which is broken."""
    console = _console()
    return _width(table, console) <= console.width


def _width(table: Table, console: Console) -> int:
    """Columns of the terminal that the table would take."""
    return console.measure(table, options=console.options.update(width=_UNLIMITED)).maximum


def _parts(table: Table, console: Console) -> list[Table]:
    """As many tables as the columns need, each with those that name its rows.

    Names and texts are broken between words, figures are not.
    """
    columns = table.columns
    names = next((n for n, one in enumerate(columns) if one.justify == "right"), 0) or 1
    for number, column in enumerate(columns):
        column.no_wrap, column.overflow = column.justify == "right", "fold"
        if number >= names:
            column.header = _in_lines(column)
        whole = _longest(column, str.splitlines)
        word = whole if column.no_wrap else min(_longest(column, str.split), console.width // 2)
        column.min_width, column.max_width = word, whole
    named, parts = columns[:names], list[list[Column]]()
    for column in columns[names:]:
        if parts and _spare([*named, *parts[-1], column], console) >= 0:
            parts[-1].append(column)
        else:
            parts.append([column])
    return [_part(table, [*named, *part], names, console) for part in parts]


def _in_lines(column: Column) -> str:
    """A heading in lines as long as the cells below it."""
    longest = max((cell_len(str(cell)) for cell in column.cells), default=0)
    width = max(longest, _SHORTEST_LINE)
    return "\n".join(wrap(str(column.header), width, break_long_words=False))


def _longest(column: Column, pieces: Callable[[str], list[str]]) -> int:
    """The longest of the pieces of what stands in a column."""
    texts = map(str, (column.header, *column.cells))
    return max((cell_len(piece) for text in texts for piece in pieces(text)), default=0)


def _spare(columns: list[Column], console: Console) -> int:
    """What a table of these columns, each as narrow as it can be, leaves of the terminal."""
    return console.width - sum((one.min_width or 0) + _BETWEEN for one in columns) - _EDGES


def _part(table: Table, columns: list[Column], names: int, console: Console) -> Table:
    """The table with these of its columns, and the rows that have anything there but names.

    Columns that want least come first to share what the narrowest leave.
    """
    part, spare = Table(box=table.box), max(0, _spare(columns, console))
    wants = {id(one): (one.max_width or 0) - (one.min_width or 0) for one in columns}
    widths = {}
    for done, one in enumerate(sorted(columns, key=lambda one: wants[id(one)])):
        more = min(wants[id(one)], spare // (len(columns) - done))
        widths[id(one)], spare = (one.min_width or 0) + more, spare - more
    for one in columns:
        part.add_column(
            one.header,
            justify=one.justify,
            no_wrap=one.no_wrap,
            overflow=one.overflow,
            width=widths[id(one)],
        )
    for row, *cells in zip(table.rows, *(one.cells for one in columns), strict=True):
        if any(map(str, cells[names:])):
            part.add_row(*cells, style=row.style)
    return part


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
    console = _console()
    console.print(Text.assemble((hw.name, "bold"), f": {hw.title} ({hw.arch})"))
    for section in sections_of(hw):
        console.print(f"\n[{section.name}]", style="bold")
        for key, text in section.figures.items():
            console.print(f"  {key} = {text}")
        console.print(f"  {section.source}", style="dim")


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
    own = {key: one for key, one in kind.model_fields.items() if key not in ("name", "label")}
    defaults = ", and their defaults:" if own else ": none"
    print(f"Source: {kind.source}\nOptions of its [[schedule]] table{defaults}")
    for key, option in own.items():
        default = "not set" if option.default is None else option.default
        print(f"  {key} = {'must be given' if option.is_required() else default}")
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
