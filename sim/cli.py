"""The command line. A command imports what it needs when it runs, so that --help is quick."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from sim.engine.device import EngineName
    from sim.scenario import Outcome, Scenario

app = typer.Typer(
    help="Simulate the memory traffic of attention schedules on a GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
profiles_app = typer.Typer(help="List, show or check hardware profiles.")
app.add_typer(profiles_app, name="profiles")


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2."""
    from sim.files import InputError

    try:
        app()
    except InputError as error:
        print(f"attnsim: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="A shipped scenario's name, or a file's path.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE laid over the file, such as workload.seq_len=4096."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for results.json and the figures.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A file for a trace that ui.perfetto.dev opens.")
    ] = None,
    engine: Annotated[
        Literal["replay", "reference"],
        typer.Option(help="The compiled engine, or the slow SimPy one that checks it."),
    ] = "replay",
    json: Annotated[bool, typer.Option("--json", help="Print results.json instead.")] = False,
) -> None:
    """Run a scenario: what each schedule moves, how long it takes, what holds it back."""
    from sim.result import dumps, save
    from sim.scenario import load_scenario

    question = load_scenario(scenario, tuple(settings or ()))
    if out is not None:
        make_folder(out)
    if trace is not None:
        check_writable(trace)
    outcomes = run_with_progress(question, engine)
    records = [outcome.record for outcome in outcomes]
    if out is not None:
        from sim.report.plots import save_figures

        save(records, out / "results.json")
        save_figures(outcomes, question.title, out)
    if trace is not None:
        from sim.report.trace import save_trace

        save_trace(outcomes, trace)
    if json:
        print(dumps(records), end="")
    else:
        from sim.report.table import print_records

        print_records(question.title, records)
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


def check_writable(path: Path) -> None:
    """Raises InputError where a file at `path` could not be written."""
    import os

    from sim.files import InputError

    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--trace {path}: a file in a writable folder was expected")


def run_with_progress(question: "Scenario", engine: "EngineName") -> "list[Outcome]":
    """All outcomes of a scenario, with a bar meanwhile where standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from sim.engine.replay import is_compiled
    from sim.scenario import run_scenario

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
    task = bar.add_task("", total=None)
    to_compile = engine == "replay" and not is_compiled()

    def update(what: str, done: int, total: int) -> None:
        nonlocal to_compile
        if to_compile:
            console.print("Compiling the replay engine (once; later runs read it from disk) ...")
            to_compile = False
        bar.update(task, description=what, completed=done, total=total)

    with bar:
        return list(run_scenario(question, engine, update))


@app.command()
def scenarios() -> None:
    """List the scenarios that come with attnsim."""
    from sim.report.table import print_scenarios

    print_scenarios()


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


if __name__ == "__main__":
    main()
