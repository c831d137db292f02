"""The command line. A command imports what it needs when it runs, so that --help is quick."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from sim.engine.device import EngineName
    from sim.question import Answer
    from sim.scenario import Progress, ScenarioText
    from validate.campaign import Campaign
    from validate.measurement import Measurements

app = typer.Typer(
    help="Simulate the memory traffic of attention schedules on a GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
profiles_app = typer.Typer(help="List, show or check hardware profiles.")
app.add_typer(profiles_app, name="profiles")
validate_app = typer.Typer(
    help="Measure real kernels, and hold the simulator's predictions against them.",
    no_args_is_help=True,
)
app.add_typer(validate_app, name="validate")
explore_app = typer.Typer(
    help="Ask what a device should be like: what its figures matter, and which to choose.",
    no_args_is_help=True,
)
app.add_typer(explore_app, name="explore")

MeasurementsArgument = Annotated[
    str,
    typer.Argument(
        metavar="MEASUREMENTS",
        help='A measurement file, or "published" for the tables of papers on the profile\'s GPU '
        '("published/h100-sxm": on that GPU).',
    ),
]
ScenarioArgument = Annotated[
    str, typer.Argument(help="A shipped scenario's name, or a file's path.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE laid over the file, such as workload.seq_len=4096."),
]
CampaignOption = Annotated[str, typer.Option(help="A shipped campaign's name, or a file's path.")]
DeviceProfileOption = Annotated[
    str | None,
    typer.Option("--profile", help="The profile nearest to the device, where it is not known."),
]
ProfileOption = Annotated[str, typer.Option("--profile", help="A profile's name or path.")]


# What wrong options raise; typer brings its own copy of click, or uses the installed one.
UsageError: Any = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2."""
    from sim.files import InputError

    try:
        sys.exit(app(standalone_mode=False))
    except typer.Abort:
        print("attnsim: interrupted", file=sys.stderr)
        sys.exit(130)
    except UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # which has printed the help
            text = " ".join(error.format_message().split()).rstrip(".")
            print(f"attnsim: {text}; --help says what is accepted", file=sys.stderr)
    except InputError as error:
        print(f"attnsim: {error}", file=sys.stderr)
    sys.exit(2)


@app.command()
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
    from sim.files import InputError
    from sim.question import question_in
    from sim.scenario import read_scenario

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
    from sim.result import dumps, save
    from sim.scenario import make_scenario, run_scenario

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


@app.command()
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
    from sim.files import InputError
    from sim.question import question_in
    from sim.scenario import read_scenario

    text = read_scenario(scenario, tuple(settings or ()))
    if question_in(text.data) is not None:
        raise InputError(f"{text.where}: a sweep takes a scenario that has [[schedule]] tables")
    if dask is not None and workers is not None:
        raise InputError("--workers: a Dask cluster has its own; leave it out beside --dask")
    check_writable("--store", store)

    from sim.report.frame import check_export, export_frame
    from sim.report.table import print_sweep
    from sim.store import Store
    from sim.sweeps import WorkersLostError, cluster, processes, sweep_points

    if export is not None:
        check_export(export)
        check_writable("--export", export)
    if report is not None:
        check_writable("--report", report)
    kept = Store(store)
    go_on = f"what is finished is in {store}: run again to go on"
    try:
        with a_bar(engine) as update, cluster(dask) if dask else processes(workers) as found:
            swept = sweep_points(text.data, text.where, text.folder, kept, found, engine, update)
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


def give(answer: "Answer", out: Path | None, json: bool) -> None:
    """Save an answer where asked to, and print it."""
    if out is not None:
        answer.save(out)
    if json:
        print(answer.json(), end="")
        return
    answer.show()
    if out is not None:
        print(f"results.json and figures are in {out}")


def make_folder(out: Path) -> None:
    """The folder `out`, writable; raises InputError."""
    import os

    from sim.files import InputError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made: {error.strerror}") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: cannot be written to")


def check_writable(option: str, path: Path) -> None:
    """Raises InputError where a file at `path`, given by `option`, could not be written."""
    import os

    from sim.files import InputError

    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{option} {path}: a file in a writable folder was expected")


@contextmanager
def a_bar(engine: "EngineName" = "replay") -> "Iterator[Progress]":
    """A progress bar, to be told (what runs, done, total); only where standard error is a terminal.

    Says first if the engine is yet to be compiled.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from sim.engine.replay import is_compiled

    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    if engine == "replay" and not is_compiled():
        console.print("Compiling the replay engine (once; later runs read it from disk) ...")
    task = bar.add_task("", total=None)
    with bar:
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total or None
        )


@app.command()
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
    from sim.fit import FitQuestion

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


@app.command("compare")
def compare_results(
    before: Annotated[Path, typer.Argument(metavar="A", help="The results.json of a run.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The results.json of another one.")],
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare two runs: what changed from A to B, by how much, and what accounts for it."""
    from sim.difference import compare
    from sim.report.difference import print_comparison

    comparison = compare(before, after)
    if json:
        print(comparison.json(), end="")
    else:
        print_comparison(comparison)


@explore_app.command("sensitivity")
def sensitivity(
    scenario: ScenarioArgument,
    settings: SettingsOption = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for results.json and the figure.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print results.json instead.")] = False,
) -> None:
    """How much 1% more of each figure of the device changes time, energy and HBM bytes."""
    from sim.explore.sensitivity import sensitivity as sensitivity_of
    from sim.files import InputError
    from sim.question import question_in
    from sim.scenario import make_scenario, read_scenario

    text = read_scenario(scenario, tuple(settings or ()))
    if question_in(text.data) is not None:
        raise InputError(f"{text.where}: schedule: sensitivity is of [[schedule]] tables")
    question = make_scenario(text.data, text.name, text.where, text.folder)
    if out is not None:
        make_folder(out)
    with a_bar() as update:
        answer = sensitivity_of(question, update)
    give(answer, out, json)


@explore_app.command()
def serve(
    scenario: ScenarioArgument = "flash_vs_naive",
    settings: SettingsOption = None,
    port: Annotated[int, typer.Option(help="Where to listen; 0: where there is room.")] = 8050,
    out: Annotated[Path, typer.Option(help="Where the page's button makes its folders.")] = Path(),
) -> None:
    """Serve a page on this computer whose sliders change the device and the workload."""
    from sim.files import InputError
    from sim.question import question_in
    from sim.scenario import read_scenario

    try:
        from sim.explore.app import Explorer
        from sim.explore.app import serve as serve_page
    except ModuleNotFoundError as error:
        raise InputError(
            f"the page needs {error.name}, which is not installed: pip install 'attnsim[explore]'"
        ) from None
    text = read_scenario(scenario, tuple(settings or ()))
    if question_in(text.data) is not None or "search" in text.data:
        raise InputError(f"{text.where}: schedule: the explorer is of [[schedule]] tables")
    explorer = Explorer(text, out)
    try:
        serve_page(
            explorer,
            port,
            lambda address: print(f"The explorer is at {address}", flush=True),
        )
    except KeyboardInterrupt:
        print()


@app.command()
def scenarios() -> None:
    """List the scenarios that come with attnsim."""
    from sim.report.table import print_scenarios

    print_scenarios()


@app.command()
def schedules() -> None:
    """List the schedules: what each does, which workloads it takes, where it comes from."""
    from sim.report.table import print_schedules

    print_schedules()


@profiles_app.callback(invoke_without_command=True)
def profiles(context: typer.Context) -> None:
    """List the hardware profiles that come with attnsim."""
    if context.invoked_subcommand is None:
        from sim.report.table import print_profiles

        print_profiles()


@profiles_app.command("show")
def show_profile(name: Annotated[str, typer.Argument(help="A profile's name or path.")]) -> None:
    """Show every figure of a profile, and where it comes from."""
    from sim.hardware import load_profile
    from sim.report.table import print_profile

    print_profile(load_profile(name))


@profiles_app.command("check")
def check_profile(file: Annotated[Path, typer.Argument(help="A profile file.")]) -> None:
    """Say whether a profile of your own is sound."""
    from sim.hardware import load_profile

    profile = load_profile(str(file if file.suffix == ".toml" else file.absolute()))
    print(f"{file}: sound: {profile.title}")


@explore_app.command()
def search(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A scenario with [search]: a shipped name, or a path."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE laid over the file, such as search.trials=500."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for results.json, the figure and profiles; a search there is resumed."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print results.json instead.")] = False,
) -> None:
    """Search devices and tiles for the best: what no other beats in everything."""
    from sim.explore.search import Search
    from sim.scenario import read_scenario

    question = Search(read_scenario(file, tuple(settings or ())))
    if out is not None:
        make_folder(out)
    with a_bar() as update:
        answer = question.run(out, update)
    give(answer, out, json)


@validate_app.command()
def measure(
    out: Annotated[Path, typer.Option(help="The measurement file; one that exists is resumed.")],
    campaign: CampaignOption = "h100",
    profile: DeviceProfileOption = None,
) -> None:
    """Time the kernels of a campaign on this machine's GPU, and count their bytes."""
    from validate.campaign import load_campaign

    planned = load_campaign(campaign)
    check_writable("--out", out)
    measured = measure_here(planned, out, profile)
    print(f"{len(measured.points)} points are in {out}")


@validate_app.command("run")
def validate_run(
    out: Annotated[
        Path, typer.Option(help="A folder for measurements, profile, comparison and figures.")
    ],
    campaign: CampaignOption = "h100",
    profile: DeviceProfileOption = None,
) -> None:
    """Measure, calibrate and compare in one go; leaves a profile of this machine's GPU."""
    from validate.campaign import load_campaign

    planned = load_campaign(campaign)
    make_folder(out)
    measurements, calibrated = out / "measurements.json", out / "profile.toml"
    measured = measure_here(planned, measurements, profile)
    calibrate(str(measurements), profile or measured.device.profile, calibrated)
    compare(str(measurements), str(calibrated), out=out)


def measure_here(campaign: "Campaign", out: Path, profile: str | None) -> "Measurements":
    """Run a campaign on this machine's GPU; raises InputError where there is none to use."""
    from sim.files import InputError

    try:
        import torch
        import triton  # noqa: F401  the kernels' compiler
    except ImportError as error:
        raise InputError(
            f"measuring needs {error.name}, which is not installed: pip install 'attnsim[validate]'"
        ) from None
    if not torch.cuda.is_available():
        raise InputError("measuring needs a CUDA device, and PyTorch finds none here")
    from validate.gpu import GpuBench, nearest_profile
    from validate.measure import DeviceLostError, run_campaign

    bench = GpuBench(profile or nearest_profile())
    try:
        return run_campaign(campaign, out, bench, lambda line: print(line, file=sys.stderr))
    except DeviceLostError as error:
        raise InputError(f"{error}; what was measured is in {out}: run again to go on") from None
    except KeyboardInterrupt:
        raise InputError(
            f"interrupted; what was measured is in {out}: run again to go on"
        ) from None


@validate_app.command()
def compare(
    measurements: MeasurementsArgument,
    profile: ProfileOption,
    split: Annotated[
        Literal["test", "train", "all"],
        typer.Option(help="Which points; only those of the test split are predictions."),
    ] = "test",
    out: Annotated[
        Path | None, typer.Option(help="A folder for comparison.json and the figures.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print comparison.json instead.")] = False,
) -> None:
    """Predicted against measured, beside what a plain roofline would have said."""
    from sim.hardware import load_profile
    from validate.compare import compare as compared
    from validate.report import comparison_json, print_comparison, save_comparison

    hw = load_profile(profile)
    measured = find_measurements(measurements, hw.name)
    if out is not None:
        make_folder(out)
    with a_bar() as update:
        comparison = compared(
            measured, hw, None if split == "all" else split, lambda n, of: update("", n, of)
        )
    if out is not None:
        save_comparison(comparison, out)
    if json:
        print(comparison_json(comparison), end="")
    else:
        print_comparison(comparison)
        if out is not None:
            print(f"comparison.json and figures are in {out}")


@app.command()
def calibrate(
    measurements: MeasurementsArgument,
    profile: ProfileOption,
    out: Annotated[Path, typer.Option(help="The profile file to write.")],
) -> None:
    """Fit a profile's calibration to micro-benchmarks and the train split of a measurement file."""
    from sim.hardware import find_toml, load_profile
    from validate.calibrate import calibrate as calibrated
    from validate.calibrate import profile_toml
    from validate.report import print_calibration

    hw = load_profile(profile)
    measured = find_measurements(measurements, hw.name)
    check_writable("--out", out)
    with a_bar() as update:
        calibration = calibrated(measured, hw, lambda what: update(what, 0, 0))
    parent = find_toml(profile, "hw_profiles", "profile")
    out.write_text(profile_toml(calibration, parent, hw.title, measured.title, out))
    print_calibration(calibration)
    print(f"The calibrated profile is in {out}")


def find_measurements(name: str, profile: str) -> "Measurements":
    """What a measurement file holds, or what was published of a GPU; raises InputError."""
    from sim.files import InputError
    from validate.measurement import load_measurements
    from validate.published import published, published_profiles

    source, _, gpu = name.partition("/")
    if source != "published" or name.endswith(".json"):
        return load_measurements(Path(name))
    measured = published(gpu or profile)
    if not measured.points:
        raise InputError(
            f"{name}: there are no published figures of {gpu or profile}; there are of "
            f"{', '.join(published_profiles())} (published/NAME)"
        )
    return measured


if __name__ == "__main__":
    main()
