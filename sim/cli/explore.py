"""`attnsim explore`: what a device's figures matter, which to choose, and a page to try them on."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sim.cli import complete
from sim.cli.options import (
    AllowCodeOption,
    CacheOption,
    FormatOption,
    JsonOption,
    ScenarioArgument,
    SettingsOption,
    SizeOption,
    folder,
    replays_folder,
)
from sim.cli.output import a_bar, give, make_folder, sheet_for


def sensitivity(
    scenario: ScenarioArgument,
    settings: SettingsOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", parser=folder, help="A folder for results.json and the figure."
        ),
    ] = None,
    format: FormatOption = None,
    size: SizeOption = None,
    json: JsonOption = False,
    allow_code: AllowCodeOption = False,
    cache: CacheOption = True,
) -> None:
    """How much 1% more of each figure of the device changes time, energy and HBM bytes."""
    from sim.cli.kinds import WHOLE_MODEL, refuse
    from sim.device.run import keep_replays
    from sim.explore.sensitivity import sensitivity as sensitivity_of
    from sim.runs.cases import cases_of
    from sim.runs.scenario import check_tables, read_scenario

    keep_replays(replays_folder(cache))
    text = read_scenario(scenario, tuple(settings or ()), allow_code)
    refuse(text, WHOLE_MODEL, "schedule: sensitivity is of [[schedule]] tables")
    cases, limits = cases_of(text), check_tables(text.data, text.where).limits
    sheet = sheet_for(out, format, size)
    with a_bar() as update:
        answer = sensitivity_of(cases, text.title, text.where, limits, update)
    give(answer, out, json, sheet=sheet)


def serve(
    scenario: ScenarioArgument = "flash_vs_naive",
    settings: SettingsOption = None,
    port: Annotated[int, typer.Option(help="Where to listen; 0: where there is room.")] = 8050,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", parser=folder, help="Where the page's button makes its folders."
        ),
    ] = Path(),
    cache: CacheOption = True,
) -> None:
    """Serve a page on this computer whose sliders change the device and the workload."""
    from sim.cli.kinds import WHOLE_MODEL, refuse
    from sim.device.run import keep_replays
    from sim.inputs.files import InputError
    from sim.runs.scenario import read_scenario

    try:
        from sim.web.app import serve as serve_page
        from sim.web.explorer import Explorer
    except ModuleNotFoundError as error:
        raise InputError(
            f"the page needs {error.name}, which is not installed: pip install 'attnsim[explore]'"
        ) from None
    keep_replays(replays_folder(cache))
    text = read_scenario(scenario, tuple(settings or ()))
    refuse(text, (*WHOLE_MODEL, "search"), "schedule: the explorer is of [[schedule]] tables")
    explorer = Explorer(text, out)
    try:
        serve_page(
            explorer,
            port,
            lambda address: print(f"The explorer is at {address}", flush=True),
        )
    except KeyboardInterrupt:
        print()


EARLIER = "study.db"  # where searches kept their trials once


def search(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A scenario with [search]: a shipped name, or a path.",
            autocompletion=complete.scenarios,
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE laid over the file, such as search.trials=500."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=folder,
            help="A folder for results.json, the figure and profiles; a search there is resumed.",
        ),
    ] = None,
    format: FormatOption = None,
    size: SizeOption = None,
    json: JsonOption = False,
    allow_code: AllowCodeOption = False,
    cache: CacheOption = True,
) -> None:
    """Search devices and tiles for the best: what no other beats in everything."""
    from sim.device.run import keep_replays
    from sim.explore.search import KEPT, Search
    from sim.runs.scenario import read_scenario

    keep_replays(replays_folder(cache))
    question = Search(read_scenario(file, tuple(settings or ()), allow_code))
    sheet = sheet_for(out, format, size)
    if out is not None:
        make_folder(out)
        if (out / EARLIER).exists() and not (out / KEPT).exists():
            left = "an earlier version's trials are not read: the search begins anew"
            print(f"attnsim: {out / EARLIER}: {left}", file=sys.stderr)
    kept = f"its trials are in {out}: run again to go on" if out else None
    with a_bar(kept=kept) as update:
        answer = question.run(out, update)
    give(answer, out, json, sheet=sheet)
