"""Tables keep to the terminal they are in, and lose nothing there."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from sim import simulate
from sim.report import present
from sim.report.columns import kernels_of
from sim.report.records import print_records
from sim.report.table import (
    new_table,
    print_models,
    print_profiles,
    print_scenarios,
    print_schedules,
    show_table,
)
from sim.runs import results_file
from sim.runs.difference import compare
from sim.whole_model.fit import FitQuestion

WORKLOAD = {"seq_len": 512, "heads": 2, "head_dim": 64, "dtype": "fp16"}


def show_a_comparison(folder):
    paths = [folder / f"{device}.json" for device in ("t4", "a100-sxm-80gb")]
    for path in paths:
        tables = {"workload": WORKLOAD, "hardware": path.stem, "schedules": ["naive", "flash2"]}
        results_file.save(simulate(**tables), path)
    present.show(compare(*paths))


def show_what_fits(_):
    row = {"model": "llama-3-8b", "hardware": ["h100-sxm", "rtx-4090"], "gpus": "2"}
    present.show(FitQuestion.from_tables({"title": "fit?", "fit": [row]}, "fit", "fit").answer())


def show_causes(_):
    sweep = {"hardware.profile": ["h100-sxm", "a100-sxm-80gb"], "workload.heads": [2, 4]}
    records = simulate(workload=WORKLOAD, hardware="t4", schedules=["naive", "flash2"], sweep=sweep)
    print_records("a title", [replace(one, reason=None) for one in records], wide=True)


TABLES: list[Callable[..., None]] = [
    lambda _: print_profiles(),
    lambda _: print_schedules(),
    lambda _: print_scenarios(),
    lambda _: print_models(),
    show_a_comparison,
    show_what_fits,
    show_causes,
]


def table_of(text: str) -> list[str]:
    """The lines of tables: those that begin with their edge."""
    return [line for line in text.splitlines() if line.startswith(" ")]


@pytest.mark.parametrize("show", TABLES)
def test_a_narrow_terminal_has_every_word_of_a_table(show, monkeypatch, capsys, tmp_path):
    printed = {}
    for width in (10_000, 80, 60):
        monkeypatch.setattr("sim.report.table._console", lambda width=width: Console(width=width))
        show(tmp_path)
        printed[width] = table_of(capsys.readouterr().out)
    whole = {word for line in printed[10_000] for word in line.split()}
    for width in (80, 60):
        assert max(map(len, printed[width])) <= width
        kept = {word for line in printed[width] for word in line.split()}
        lost = {word for word in whole - kept if not word.startswith("─")}
        assert not {word for word in lost if len(word) <= width // 2}  # longer ones are broken


def test_kernels_of_each_head_have_one_row_for_all(capsys):
    """MInference's go head by head: hundreds of launches of a score of names."""
    tables = {"workload": WORKLOAD | {"seq_len": 1024, "causal": True}, "hardware": "t4"}
    (record,) = simulate(**tables, schedule="minference")
    print_records("a title", [record])
    rows = [line for line in capsys.readouterr().out.splitlines() if re.match(" {4}\\S", line)]
    assert len(rows) == len({kernel.name for kernel in record.kernels}) < len(record.kernels)
    kernels = kernels_of(record)
    assert sum(k.launches for k in kernels) == sum(k.launches for k in record.kernels)
    for whole in ("all_launches_s", "hbm_read_bytes", "hbm_write_bytes"):
        of_rows = sum(getattr(k, whole) * (1 if "_s" in whole else k.launches) for k in kernels)
        of_all = sum(getattr(k, whole) for k in record.kernels)
        assert of_rows == pytest.approx(of_all, rel=1e-3, abs=len(record.kernels))
    assert all(0 <= k.l2_hit_rate <= 1 and 0 < k.bottleneck_share <= 1 + 1e-9 for k in kernels)


def test_a_pipe_breaks_no_line(capsys):
    table = new_table("a title that is longer than the table below it is wide", "name", "n")
    table.add_row("a name " * 40, "1")
    show_table(table)
    title, *rest = capsys.readouterr().out.splitlines()
    assert title == "a title that is longer than the table below it is wide"
    assert ("a name " * 40).strip() in rest[3]


def test_a_word_that_is_wider_than_the_terminal_is_broken_and_its_figures_are_not(
    monkeypatch, capsys
):
    monkeypatch.setattr("sim.report.table._console", lambda: Console(width=40))
    table = new_table("", "schedule", "time", "HBM read")
    table.add_row("x" * 70, "357 µs", "1.07 GB")
    show_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert sum(line.count("x") for line in lines) % 70 == 0
    assert all(any(figure in line for line in lines) for figure in ("357 µs", "1.07 GB"))


def test_rows_that_say_nothing_in_a_part_are_left_out_of_it(monkeypatch, capsys):
    monkeypatch.setattr("sim.report.table._console", lambda: Console(width=30))
    table = new_table("", "name", "first figure", "second figure")
    table.add_row("both", "1,000,000", "2,000,000")
    table.add_row("first", "1,000,000", "")
    show_table(table)
    assert capsys.readouterr().out.count("first") == 2  # a heading and a name


def test_titles_are_no_markup(capsys):
    show_table(new_table("[bold]what[/] is [it]?", "name"))
    assert capsys.readouterr().out.startswith("[bold]what[/] is [it]?\n")
