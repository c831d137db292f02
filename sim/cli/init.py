"""`attnsim init`: a scenario and a profile to begin with, which run as they are."""

import os
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from sim.cli.output import make_folder

TEMPLATES = ("question.toml", "my_gpu.toml")  # sim/cli/templates/
SCHEMAS = ("schemas/scenario.json", "schemas/profile.json")  # which they name for editors


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to; made where there is none.")
    ] = Path(),
) -> None:
    """Write a scenario and a profile of one's own to begin with: they say what one may say."""
    from sim.inputs.files import InputError, save_texts

    here = resources.files("sim.cli")
    texts = {name: here / "templates" / name for name in TEMPLATES}
    texts |= {name: here / name for name in SCHEMAS}
    if there := [name for name in texts if os.path.exists(folder / name)]:
        raise InputError(f"init {folder}: {there[0]} is there already; nothing was written")
    make_folder(folder / "schemas", "init")
    save_texts({name: text.read_text(encoding="utf-8") for name, text in texts.items()}, folder)
    print(f"{' and '.join(TEMPLATES)} are in {folder}; editors check them by schemas/ beside them")
    print(f"attnsim run {folder / TEMPLATES[0]}")
