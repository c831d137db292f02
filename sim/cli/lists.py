"""Commands that list what there is: scenarios, schedules, models, profiles."""

from pathlib import Path
from typing import Annotated

import typer

from sim.cli import complete


def scenarios(context: typer.Context) -> None:
    """List the scenarios that come with attnsim."""
    if context.invoked_subcommand is None:
        from sim.report.table import print_scenarios

        print_scenarios()


def schedules(context: typer.Context) -> None:
    """List the schedules: what each does, which workloads it takes, where it comes from."""
    if context.invoked_subcommand is None:
        from sim.report.table import print_schedules

        print_schedules()


def show_scenario(
    name: Annotated[
        str,
        typer.Argument(
            help="A shipped scenario's name.", autocompletion=complete.shipped_scenarios
        ),
    ],
) -> None:
    """Show a scenario's file: a template for one of your own."""
    from sim.inputs.files import find_toml

    print(find_toml(name, "scenarios", "scenario").read_text(encoding="utf-8"), end="")


def show_schedule(
    name: Annotated[
        str, typer.Argument(help="A schedule's name.", autocompletion=complete.schedules)
    ],
    hardware: Annotated[
        str,
        typer.Option(
            help="A profile's name or path: what the kernels are there by default.",
            autocompletion=complete.profiles,
        ),
    ] = "h100-sxm",
) -> None:
    """Show a schedule: its algorithm, its options with their defaults, its known errors."""
    from sim.inputs.files import InputError, meant, shown
    from sim.inputs.hardware import load_profile
    from sim.report.schedule_kernels import print_kernels
    from sim.report.table import print_schedule
    from sim.schedules import SCHEDULES

    try:
        kind = SCHEDULES[meant(name, list(SCHEDULES), "schedule")]
    except ValueError as error:
        raise InputError(f"schedule {shown(name)}: {error}") from None
    profile = load_profile(hardware)
    print_schedule(kind)
    print_kernels(kind, profile)


def models() -> None:
    """List the models that files may name: their shapes, and where those were published."""
    from sim.report.table import print_models

    print_models()


def profiles(context: typer.Context) -> None:
    """List the hardware profiles that come with attnsim."""
    if context.invoked_subcommand is None:
        from sim.report.table import print_profiles

        print_profiles()


def show_profile(
    name: Annotated[
        str, typer.Argument(help="A profile's name or path.", autocompletion=complete.profiles)
    ],
) -> None:
    """Show every figure of a profile, and where it comes from."""
    from sim.inputs.hardware import load_profile
    from sim.report.table import print_profile

    print_profile(load_profile(name))


def check_profile(
    file: Annotated[
        Path, typer.Argument(help="A profile file.", autocompletion=complete.toml_files)
    ],
) -> None:
    """Say whether a profile of your own is sound."""
    from sim.inputs.hardware import load_profile

    profile = load_profile(str(file if file.suffix == ".toml" else file.absolute()))
    print(f"{file}: sound: {profile.title}")
