"""Commands that answer a question: run, sweep, fit and compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sim.cli.options import ScenarioArgument, SettingsOption
from sim.cli.output import a_bar, check_writable, give, make_folder

if TYPE_CHECKING:
    from sim.device.run import EngineName
    from sim.runs.scenario import ScenarioText


def run(
    scenario: ScenarioArgument,
    settings: SettingsOption = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for results.json and the figures.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A file for a trace that ui.perfetto.dev opens.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="An .html file: table, interactive charts and what was asked, in one."),
    ] = None,
    engine: Annotated[
        Literal["replay", "reference"],
        typer.Option(help="The compiled engine, or the slow SimPy one that checks it."),
    ] = "replay",
    exact: Annotated[
        bool, typer.Option("--exact", help="Replay every tile step of long kernels too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print results.json instead.")] = False,
) -> None:
    """Run a scenario: what each schedule moves, how long it takes, what holds it back."""
    from sim.cli.kinds import question_in
    from sim.inputs.files import InputError
    from sim.runs.scenario import read_scenario

    whole = ["limits.exact=true"] if exact else []
    text = read_scenario(scenario, (*(settings or ()), *whole))
    if "search" in text.data:
        raise InputError(f"{text.where}: search: attnsim explore search {scenario} runs it")
    make_question = question_in(text.data)
    if make_question is None:
        run_schedules(text, out, report, trace, engine, json)
        return
    question = make_question(text.data, text.name, text.where)
    if trace is not None or report is not None or engine != "replay":
        raise InputError(
            "--report, --trace and --engine go with a scenario that has [[schedule]] tables"
        )
    if out is not None:
        make_folder(out)
    with a_bar("replay") as update:
        answer = question.answer(update)
    give(answer, out, json)


def run_schedules(
    text: "ScenarioText",
    out: Path | None,
    report: Path | None,
    trace: Path | None,
    engine: "EngineName",
    json: bool,
) -> None:
    """Run a scenario of schedules and say what came out."""
    from sim.runs.job import run_scenario
    from sim.runs.results_file import dumps, save
    from sim.runs.scenario import make_scenario

    question = make_scenario(text.data, text.name, text.where, text.folder)
    if out is not None:
        make_folder(out)
    if report is not None:
        check_writable("--report", report)
    if trace is not None:
        check_writable("--trace", trace)
    with a_bar(engine) as update:
        outcomes = list(run_scenario(question, engine, update))
    records = [outcome.record for outcome in outcomes]
    if out is not None:
        from sim.report.plots import save_figures

        save(records, out / "results.json")
        save_figures(outcomes, question.title, out)
    if trace is not None:
        from sim.report.trace import save_trace

        save_trace(outcomes, trace)
    if report is not None:
        from sim.report.page import save_page

        save_page(text, records, report)
    if json:
        print(dumps(records), end="")
    else:
        from sim.report.table import print_records

        print_records(question.title, records)
        if out is not None:
            print(f"results.json and figures are in {out}")
        if report is not None:
            print(f"The report is {report}")


def sweep(
    scenario: ScenarioArgument,
    settings: SettingsOption = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes; as many as cores by default.")
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
    export: Annotated[
        Path | None, typer.Option(help="A .parquet or .csv file: a row a schedule and point.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="An .html file: table, interactive charts and what was asked, in one."),
    ] = None,
    engine: Annotated[
        Literal["replay", "reference"],
        typer.Option(help="The compiled engine, or the slow SimPy one that checks it."),
    ] = "replay",
) -> None:
    """Run many points of a scenario side by side; one that was stopped goes on where it was."""
    from sim.cli.kinds import question_in
    from sim.inputs.files import InputError
    from sim.runs.scenario import read_scenario

    text = read_scenario(scenario, tuple(settings or ()))
    if question_in(text.data) is not None:
        raise InputError(f"{text.where}: a sweep takes a scenario that has [[schedule]] tables")
    if dask is not None and workers is not None:
        raise InputError("--workers: a Dask cluster has its own; leave it out beside --dask")
    check_writable("--store", store)

    from sim.report.frame import check_export, export_frame
    from sim.report.table import print_sweep
    from sim.runs.store import Store
    from sim.runs.sweep import sweep_points
    from sim.runs.workers import WorkersLostError, cluster, processes

    if export is not None:
        check_export(export)
        check_writable("--export", export)
    if report is not None:
        check_writable("--report", report)
    kept = Store(store)
    go_on = f"what is finished is in {store}: run again to go on"
    try:
        with a_bar(engine) as update, cluster(dask) if dask else processes(workers) as found:
            swept = sweep_points(text, kept, found, engine, update)
    except KeyboardInterrupt:
        raise InputError(f"interrupted; {go_on}") from None
    except WorkersLostError as error:
        raise InputError(f"{error}; {go_on}") from None
    finally:
        kept.close()
    if export is not None:
        export_frame(swept.records, export)
    print_sweep(text.data.get("title") or text.name, swept.records, swept.replayed)
    print(f"Records are in {store}{f', and as a table in {export}' if export else ''}")
    if report is not None:
        from sim.report.page import save_page

        with a_bar(engine) as update:
            save_page(text, swept.records, report, update)
        print(f"The report is {report}")


def fit(
    model: Annotated[str, typer.Option(help="A model's name, such as llama-3-8b.")],
    hardware: Annotated[str, typer.Option(help="A profile's name or path.")],
    weights: Annotated[
        str, typer.Option(help="fp16, bf16, fp8, int8 or int4: how parameters are stored.")
    ] = "bf16",
    kv_dtype: Annotated[
        str, typer.Option(help="fp16, bf16, fp8, int8 or int4: the KV cache's.")
    ] = "bf16",
    schedule: Annotated[
        str | None,
        typer.Option(help="The attention of all uses; a usual library's for each otherwise."),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N", help="Sequences.")] = "1",
    context: Annotated[
        str | None,
        typer.Option(metavar="N", help="Where to tell the parts; the model's own otherwise."),
    ] = None,
    gpus: Annotated[str, typer.Option(metavar="N", help="How many GPUs share the work.")] = "1",
    parallel: Annotated[
        str, typer.Option(help="tensor, pipeline or context: how they share it.")
    ] = "tensor",
    chunk: Annotated[
        str | None,
        typer.Option(metavar="N", help="Tokens of a prefill chunk (2048); 0: the whole prompt."),
    ] = None,
    reserve: Annotated[
        str | None, typer.Option(help='What the framework takes of each GPU ("1 GiB").')
    ] = None,
    dropout: Annotated[bool, typer.Option("--dropout", help="Train with dropout.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="A folder for results.json and the figures.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print results.json instead.")] = False,
) -> None:
    """Does it fit: what lives in a GPU's memory, and the longest context there is room for."""
    from sim.whole_model.fit import FitQuestion

    given = {
        "model": model,
        "hardware": hardware,
        "weights": weights,
        "kv_dtype": kv_dtype,
        "schedule": schedule,
        "batch": batch,
        "context": context,
        "gpus": gpus,
        "parallel": parallel,
        "chunk": chunk,
        "reserve": reserve,
        "dropout": dropout,
    }
    row = {key: value for key, value in given.items() if value is not None}
    title = f"Does {model} fit on {hardware}?"
    question = FitQuestion.from_tables({"title": title, "fit": [row]}, "fit", "fit")
    if out is not None:
        make_folder(out)
    give(question.answer(), out, json)


def compare_results(
    before: Annotated[Path, typer.Argument(metavar="A", help="The results.json of a run.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The results.json of another one.")],
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare two runs: what changed from A to B, by how much, and what accounts for it."""
    from sim.report.difference import print_comparison
    from sim.runs.difference import compare

    comparison = compare(before, after)
    if json:
        print(comparison.json(), end="")
    else:
        print_comparison(comparison)
