"""Commands that run scenarios and compare what came out: run, sweep and compare."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.options import (
    AllowCodeOption,
    CacheOption,
    EngineOption,
    ExportOption,
    FiguresOption,
    FormatOption,
    JsonOption,
    ReportOption,
    ScenarioArgument,
    SettingsOption,
    SizeOption,
    WideOption,
    replays_folder,
)
from sim.cli.output import a_bar, check_apart, check_writable, give, sheet_for

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sim.device.run import EngineName
    from sim.report.sheet import Sheet
    from sim.runs.record import Record
    from sim.runs.scenario import ScenarioText
    from sim.runs.sweep import Swept
    from sim.runs.workers import Workers


def run(
    scenario: ScenarioArgument,
    settings: SettingsOption = None,
    out: FiguresOption = None,
    format: FormatOption = None,
    size: SizeOption = None,
    trace: Annotated[
        Path | None, typer.Option(help="A file for a trace that ui.perfetto.dev opens.")
    ] = None,
    report: ReportOption = None,
    export: ExportOption = None,
    engine: EngineOption = "replay",
    exact: Annotated[
        bool, typer.Option("--exact", help="Replay every tile step of long kernels too.")
    ] = False,
    wide: WideOption = False,
    json: JsonOption = False,
    allow_code: AllowCodeOption = False,
    cache: CacheOption = True,
) -> None:
    """Run a scenario: what each schedule moves, how long it takes, what holds it back."""
    from sim.cli.kinds import kind_of, question_of, refuse
    from sim.device.run import keep_replays
    from sim.inputs.files import InputError
    from sim.runs.scenario import read_scenario

    keep_replays(replays_folder(cache))
    whole = ["limits.exact=true"] if exact else []
    text = read_scenario(scenario, (*(settings or ()), *whole), allow_code)
    refuse(text, ["search"], f"search: attnsim explore search {scenario} runs it")
    sheet = sheet_for(out, format, size)
    if kind_of(text.data) == "scenario":
        outputs = ("--report", report), ("--trace", trace), ("--export", export)
        check_apart(("the scenario", Path(scenario)), *outputs)
        run_schedules(text, out, sheet, report, trace, export, engine, wide, json)
        return
    if allow_code:
        raise InputError("--allow-code goes with a scenario that has [[schedule]] tables")
    question = question_of(text)
    if trace or report or export or wide or engine != "replay":
        raise InputError(
            "--report, --trace, --export, --engine and --wide go with a scenario of [[schedule]] "
            "tables"
        )
    with a_bar() as update:
        answer = question.answer(update)
    give(answer, out, json, sheet=sheet)


def run_schedules(
    text: "ScenarioText",
    out: Path | None,
    sheet: "Sheet",
    report: Path | None,
    trace: Path | None,
    export: Path | None,
    engine: "EngineName",
    wide: bool,
    json: bool,
) -> None:
    """Run a scenario of schedules and say what came out."""
    from sim.report.asked import layers_in_words
    from sim.runs.answer import ScenarioAnswer
    from sim.runs.job import run_what_can_be

    if report is not None:
        check_writable("--report", report)
    if trace is not None:
        check_writable("--trace", trace)
    if export is not None:
        from sim.report.frame import check_export  # pandas takes its time to load

        check_export(export)
        check_writable("--export", export)
    with a_bar(engine) as update:
        outcomes = list(run_what_can_be(text, engine, update))
    answer = ScenarioAnswer(text.title, outcomes)
    give(answer, out, json, sheet=sheet, wide=wide)
    if not json:
        for line in layers_in_words(text):
            print(line)
    if export is not None:
        from sim.report.frame import export_frame

        export_frame(answer.records, export)
        if not json:
            print(f"A row a record is in {export}")
    if trace is not None:
        from sim.report.trace import save_trace

        save_trace(answer.outcomes, trace)
    if report is not None:
        write_report(text, answer.records, report, engine)
        if not json:
            print(f"The report is {report}")


def write_report(
    text: "ScenarioText", records: "list[Record]", report: Path, engine: "EngineName"
) -> None:
    """Write the page of records, after a replay of those that lack timelines."""
    from sim.report.page import CHARTED, save_page
    from sim.runs.again import whole_points

    with a_bar(engine) as update:
        charted = whole_points(text, records, CHARTED, update)
    save_page(text, records, charted, report)


MOST_WORKERS = 4096  # processes that one computer may have for a sweep


def sweep(
    scenario: ScenarioArgument,
    settings: SettingsOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=MOST_WORKERS, help="Processes; as many as cores by default."
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="A Dask cluster's scheduler, such as tcp://host:8786."
        ),
    ] = None,
    store: Annotated[
        Path, typer.Option(help="Where finished points are kept; what is in it is not run again.")
    ] = Path("sweeps.sqlite"),
    export: ExportOption = None,
    report: ReportOption = None,
    engine: EngineOption = "replay",
    wide: WideOption = False,
    allow_code: AllowCodeOption = False,
    cache: CacheOption = True,
) -> None:
    """Run many points of a scenario side by side; one that was stopped goes on where it was."""
    if dask is None:
        from sim.runs import fork_server

        fork_server.start()  # which takes as long to import as this process does

    from sim.cli.kinds import WHOLE_MODEL, refuse
    from sim.inputs.files import InputError
    from sim.runs.scenario import read_scenario

    text = read_scenario(scenario, tuple(settings or ()), allow_code)
    refuse(text, WHOLE_MODEL, "a sweep takes a scenario that has [[schedule]] tables")
    if dask is not None and workers is not None:
        raise InputError("--workers: a Dask cluster has its own; leave it out beside --dask")
    outputs = ("--export", export), ("--report", report)
    check_apart(("the scenario", Path(scenario)), *outputs)
    check_apart(("--store", store), *outputs)
    if not os.path.isfile(store):  # one that cannot be written to can be read
        check_writable("--store", store)

    from sim.report.records import print_sweep
    from sim.runs.workers import cluster, processes

    if export is not None:
        from sim.report.frame import check_export, export_frame  # pandas takes its time to load

        check_export(export)
        check_writable("--export", export)
    if report is not None:
        check_writable("--report", report)
    swept = sweep_file(
        text, store, cluster(dask) if dask else processes(workers, replays_folder(cache)), engine
    )
    if export is not None:
        export_frame(swept.records, export)
    print_sweep(text.title, swept.records, swept.replayed, wide)
    print(f"Records are in {store}{f', and as a table in {export}' if export else ''}")
    if report is not None:
        write_report(text, swept.records, report, engine)
        print(f"The report is {report}")


def sweep_file(
    text: "ScenarioText",
    store: Path,
    workers: "AbstractContextManager[Workers]",
    engine: "EngineName",
) -> "Swept":
    """Run what the store lacks; raises InputError where workers are lost."""
    from sim.inputs.files import InputError
    from sim.runs.store import Store
    from sim.runs.sweep import sweep_points
    from sim.runs.workers import WorkersLostError

    kept = Store(store)
    go_on = f"what is finished is in {store}: run again to go on"
    try:
        with a_bar(engine, go_on) as update, workers as found:
            swept = sweep_points(text, kept, found, engine, update)
    except WorkersLostError as error:
        raise InputError(f"{error}; {go_on}") from None
    finally:
        kept.close()
    if kept.damaged:
        found_again = f"{len(kept.damaged):,} damaged records were left out and run again"
        print(f"attnsim: {store}: {found_again}", file=sys.stderr)
    return swept


def compare_results(
    before: Annotated[Path, typer.Argument(metavar="A", help="A run's folder or results.json.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another one's.")],
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare two runs: what changed from A to B, by how much, and what accounts for it."""
    from sim.runs.difference import compare

    files = (path / "results.json" if os.path.isdir(path) else path for path in (before, after))
    give(compare(*files), None, json)
