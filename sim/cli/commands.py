"""The commands. Each imports what it needs when it runs, so that --help is quick."""

from typing import Annotated

import typer

from sim.cli import explore, fit, init, kernel, lists, run, schema, validate


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"attnsim {version('attnsim')}")
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # in "rich" a word in brackets is a style, and is not shown
)
profiles_app = typer.Typer(help="List, show or check hardware profiles.")
app.add_typer(profiles_app, name="profiles")
scenarios_app = typer.Typer(help="List scenarios, or show one as a template to copy.")
app.add_typer(scenarios_app, name="scenarios")
schedules_app = typer.Typer(help="List schedules, or show one: its algorithm, options and source.")
app.add_typer(schedules_app, name="schedules")
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


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Simulate the memory traffic of attention schedules on a GPU."""


app.command()(run.run)
app.command()(run.sweep)
app.command()(fit.fit)
app.command("compare")(run.compare_results)
app.command()(init.init)
app.command()(lists.models)
app.command()(schema.schema)
app.command()(validate.calibrate)
app.command()(kernel.kernel)

scenarios_app.callback(invoke_without_command=True)(lists.scenarios)
scenarios_app.command("show")(lists.show_scenario)
schedules_app.callback(invoke_without_command=True)(lists.schedules)
schedules_app.command("show")(lists.show_schedule)

profiles_app.callback(invoke_without_command=True)(lists.profiles)
profiles_app.command("show")(lists.show_profile)
profiles_app.command("check")(lists.check_profile)

explore_app.command()(explore.sensitivity)
explore_app.command()(explore.serve)
explore_app.command()(explore.search)

validate_app.command()(validate.measure)
validate_app.command("run")(validate.validate_run)
validate_app.command()(validate.compare)
validate_app.command("import")(validate.import_set)
