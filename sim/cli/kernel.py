"""`attnsim kernel`: what compiled kernels are made of, and what would bind their main loop."""

from pathlib import Path
from typing import Annotated

import typer

from sim.cli import complete
from sim.cli.options import JsonOption
from sim.cli.output import give


def kernel(
    file: Annotated[
        Path, typer.Argument(help="A cubin, a fatbin, or a library with CUDA kernels in it.")
    ],
    function: Annotated[
        str, typer.Option(help="Only kernels in whose (mangled) name this regular expression is.")
    ] = "",
    arch: Annotated[
        str | None, typer.Option(help="Only kernels compiled for this, such as sm90.")
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="A profile's name or path; may be given several times [its arch's].",
            autocompletion=complete.profiles,
        ),
    ] = None,
    sram: Annotated[
        str | None,
        typer.Option(help='Dynamic shared memory that the launch gives a CTA, such as "160 KiB".'),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads of a CTA, where the launch says.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Take compiled kernels apart: footprint, loops, what a trip executes and what binds it."""
    from sim.inputs.hardware import load_profile
    from sim.report.machine_code import read_machine_code

    launched = (threads, None if sram is None else _bytes(sram))
    profiles = [load_profile(name) for name in profile or []]
    give(read_machine_code(file, function, arch, profiles, launched), None, json)


def _bytes(text: str) -> int:
    """Bytes of an option; raises InputError."""
    from pydantic import TypeAdapter, ValidationError

    from sim.inputs.files import InputError
    from sim.inputs.units import BytesOrNone

    try:
        return int(TypeAdapter(BytesOrNone).validate_python(text))
    except ValidationError:
        raise InputError(f'--sram {text}: bytes were expected, such as "160 KiB"') from None
