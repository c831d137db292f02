"""Arguments and options that several commands take."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from sim.cli import complete

_FILES = (".csv", ".gz", ".html", ".json", ".parquet", ".pdf", ".png", ".svg", ".toml")


def folder(name: str) -> Path:
    """The folder that an option names; raises BadParameter for the name of a file, or none."""
    path = Path(name)
    if not name or (path.suffix in _FILES and not os.path.isdir(path)):
        raise typer.BadParameter(f"{name!r} is not the name of a folder for several files")
    return path


ScenarioArgument = Annotated[
    str,
    typer.Argument(
        help="A shipped scenario's name, or a file's path.", autocompletion=complete.scenarios
    ),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE laid over the file, such as workload.seq_len=4096."),
]
AllowCodeOption = Annotated[
    bool,
    typer.Option(
        "--allow-code", help="Let the scenario run the code of schedules in files (FILE.py:CLASS)."
    ),
]
FiguresOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FOLDER", parser=folder, help="A folder for results.json and the figures."
    ),
]
FormatOption = Annotated[
    Literal["png", "svg", "pdf"] | None,
    typer.Option("--format", help="What the figures are saved as; png otherwise."),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size", help="Figures for a paper: WIDTHxHEIGHT of a panel, such as 3.3x2.4in or 8.4x6cm."
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report", help="An .html file: table, interactive charts and what was asked, in one."
    ),
]
ExportOption = Annotated[
    Path | None,
    typer.Option("--export", help="A .parquet or .csv file: a row a schedule and point."),
]
EngineOption = Annotated[
    Literal["replay", "reference"],
    typer.Option("--engine", help="The compiled engine, or the slow SimPy one that checks it."),
]
WideOption = Annotated[
    bool,
    typer.Option(
        "--wide",
        help="All columns; causes: waves, CTAs an SM, splits, padding, L2 misses, power.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print results.json instead.")]
CacheOption = Annotated[
    bool,
    typer.Option(help="Keep what kernels' replays came to in the user's cache, and look there."),
]


def replays_folder(cache: bool) -> Path | None:
    """Where replays are kept: in the user's cache, or not at all."""
    from sim.inputs.files import user_cache

    return user_cache() if cache else None
