"""Arguments and options that several commands take."""

from typing import Annotated

import typer

ScenarioArgument = Annotated[
    str, typer.Argument(help="A shipped scenario's name, or a file's path.")
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
