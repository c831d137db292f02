"""What a scenario of schedules came to: a table on a terminal, a results.json and figures."""

from collections import Counter
from pathlib import Path

from rich.table import Table

from sim.inputs.files import save_text
from sim.report import plots, present
from sim.report.answer import answer
from sim.report.columns import Column, causes_of, columns_of, kernels_of, with_kernels
from sim.report.notes import known_off, notes, reasons, rough
from sim.report.sheet import AS_DRAWN, Sheet, save_figure
from sim.report.table import fits, new_table, show_table
from sim.runs.answer import ScenarioAnswer
from sim.runs.job import Outcome
from sim.runs.record import Record


@present.show.register
def show_records(found: ScenarioAnswer, wide: bool = False) -> None:
    """Print a row a schedule and point; if `wide` all columns, and causes."""
    print_records(found.title, found.records, wide)


@present.save.register
def save_records(found: ScenarioAnswer, out: Path, sheet: Sheet = AS_DRAWN) -> None:
    """Leave results.json and the figures of a run in the folder `out`."""
    save_text(found.json(), out / "results.json")
    save_figures(found.outcomes, found.title, out, sheet)


def print_records(title: str, records: list[Record], wide: bool = False) -> None:
    """A row a record and, where nothing is swept, one a kernel below it; then reasons.

    If `wide`, the table goes on below where it must, and one of causes comes after it; else columns
    are left out where the terminal has no room for them, which is said.
    """
    for line in rough(records):
        print(line)
    if wide:
        show_table(_table_of(title, records, columns_of(records)))
        ran = [record for record in records if record.status == "ok"]
        show_table(_table_of("Causes", ran, causes_of(records)))
    else:
        table, left_out = _fitting(title, records)
        show_table(table)
        if left_out:
            print(f"(no room for {', '.join(left_out)}: --wide shows them)")
    for line in (answer(records), *notes(records), *known_off(records), *reasons(records)):
        print(line)


# The columns that a narrow terminal can do without, those that matter least first.
_SPARED = (
    "peak memory", "rows used", "GPUs", "L2 hits", "HBM", "tensor", "over links", "wait for links",
    "HBM write", "HBM read",
)  # fmt: skip


def _fitting(title: str, records: list[Record]) -> tuple[Table, list[str]]:
    """The records' table as the terminal has room for it, and the columns left out of it."""
    columns, left_out = columns_of(records), list[str]()
    table = _table_of(title, records, columns)
    for heading in _SPARED:
        if fits(table):
            break
        if any(column.heading == heading for column in columns):
            left_out.append(heading)
            columns = [column for column in columns if column.heading != heading]
            table = _table_of(title, records, columns)
    return table, left_out


def _table_of(title: str, records: list[Record], columns: list[Column]) -> Table:
    """A row a record and, where nothing is swept, one a kernel's name below it."""
    numeric_from = 1 if with_kernels(records) else 2
    table = new_table(title, *(c.heading for c in columns), numeric_from=numeric_from)
    for record in records:
        if record.status != "ok":
            leading = [column.of_record(record) for column in columns[:numeric_from]]
            table.add_row(*leading, record.status, style="red")
            continue
        table.add_row(*(column.of_record(record) for column in columns))
        if len(record.kernels) > 1 and with_kernels(records):
            for kernel in kernels_of(record):
                table.add_row(*(column.of_kernel(kernel) for column in columns), style="dim")
    return table


_ROWS = 40  # of a sweep that a reader would still look through


def print_sweep(title: str, records: list[Record], replayed: int, wide: bool) -> None:
    """The records if they are few, else the answer, and how many came to what."""
    if len(records) <= _ROWS:
        print_records(title, records, wide)
    else:
        print(f"{title}\n{answer(records)}")
        problems = Counter(record.reason for record in records if record.status == "failed")
        for reason, times in problems.most_common(5):
            print(f"failed, {times:,} times: {reason}")
    states = Counter(record.status for record in records)
    counts = ", ".join(f"{times:,} {status}" for status, times in states.most_common())
    print(f"{len(records):,} records: {counts}; {replayed:,} of them replayed now")


def save_figures(outcomes: list[Outcome], title: str, out: Path, sheet: Sheet = AS_DRAWN) -> None:
    """Draw all figures of a run into the folder `out`."""
    records = [outcome.record for outcome in outcomes]
    figures = {"hbm_traffic": plots.traffic(records, title), "time": plots.time(records, title)}
    if shown := plots.telling_point(records):
        figures["roofline"] = plots.roofline(records, title)
        figures["utilisation"] = plots.utilisation(records, title)
        figures["memory"] = plots.memory(records, title)
        kept = {id(record) for record in shown}
        at_point = [outcome for outcome in outcomes if id(outcome.record) in kept]
        if several := [outcome for outcome in at_point if outcome.record.gpus > 1]:
            figures["gpus"] = plots.gpus(several, title)
    for name, figure in figures.items():
        save_figure(figure, out, name, sheet)
