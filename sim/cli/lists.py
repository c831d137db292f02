"""Commands that list what there is: scenarios, schedules, models, profiles."""

from pathlib import Path
from typing import Annotated

import typer


def scenarios() -> None:
    """List the scenarios that come with attnsim."""
    from sim.report.table import print_scenarios

    print_scenarios()


def schedules() -> None:
    """List the schedules: what each does, which workloads it takes, where it comes from."""
    from sim.report.table import print_schedules

    print_schedules()


def models() -> None:
    """List the models that files may name: their shapes, and where those were published."""
    from sim.report.table import print_models

    print_models()


def profiles(context: typer.Context) -> None:
    """List the hardware profiles that come with attnsim."""
    if context.invoked_subcommand is None:
        from sim.report.table import print_profiles

        print_profiles()


def show_profile(name: Annotated[str, typer.Argument(help="A profile's name or path.")]) -> None:
    """Show every figure of a profile, and where it comes from."""
    from sim.inputs.hardware import load_profile
    from sim.report.table import print_profile

    print_profile(load_profile(name))


def check_profile(file: Annotated[Path, typer.Argument(help="A profile file.")]) -> None:
    """Say whether a profile of your own is sound."""
    from sim.inputs.hardware import load_profile

    profile = load_profile(str(file if file.suffix == ".toml" else file.absolute()))
    print(f"{file}: sound: {profile.title}")
