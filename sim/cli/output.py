"""Where a command's answer goes: the terminal, a folder, a progress bar."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.device.run import EngineName
    from sim.report.present import Answer
    from sim.report.sheet import Format, Sheet
    from sim.runs.job import Progress

COMPILING = "compiling the engine"  # the thread's name


def give(
    answer: "Answer",
    out: Path | None,
    json: bool,
    file: str = "results.json",
    sheet: "Sheet | None" = None,
    **how: bool,
) -> None:
    """Save an answer where asked to, with `file` in the folder, and print it as `how` says."""
    from sim.report.present import save, show
    from sim.report.sheet import AS_DRAWN, in_plain_style

    if out is not None:
        make_folder(out)
        with in_plain_style():
            save(answer, out, sheet or AS_DRAWN)
    if json:
        print(answer.json(), end="")
        return
    show(answer, **how)
    if out is not None:
        print(f"{file} and figures are in {out}")


def sheet_for(out: Path | None, format: "Format | None", size: str | None) -> "Sheet":
    """What figures in the folder `out` are to be; raises InputError, also where it cannot be."""
    from sim.inputs.files import InputError
    from sim.report.sheet import Sheet

    if out is None and (format or size):
        raise InputError("--format and --size are of figures, which --out FOLDER saves")
    sheet = Sheet.of(format, size)
    if out is not None:
        check_folder(out)
    return sheet


def check_folder(out: Path, by: str = "--out") -> None:
    """Raises InputError where the folder `out` could not be made; makes none, to be refused in."""
    import os

    from sim.inputs.files import InputError

    for there in (out, *out.absolute().parents):
        try:
            is_folder = S_ISDIR(there.stat().st_mode)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{by} {out}: cannot be made: {error.strerror}") from None
        if not is_folder or not os.access(there, os.W_OK | os.X_OK):
            raise InputError(f"{by} {out}: a folder that can be written to was expected")
        return


def make_folder(out: Path, by: str = "--out") -> None:
    """The folder `out`, for what is written into it now; raises InputError."""
    from sim.inputs.files import InputError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{by} {out}: cannot be made: {error.strerror}") from None


def check_writable(option: str, path: Path) -> None:
    """Raises InputError where a file at `path`, given by `option`, could not be written."""
    import os

    from sim.inputs.files import InputError

    folder = path.parent
    other = os.path.exists(path) and not os.path.isfile(path)  # a pipe or device would be replaced
    if other or path.name == "" or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise InputError(f"{option} {path}: a file in a writable folder was expected")


def check_apart(*named: "tuple[str, Path | None]") -> None:
    """Raises InputError where two files, each with what it is given as, are one."""
    from sim.inputs.files import InputError

    known: dict[Path, str] = {}
    for name, path in named:
        place = None if path is None else path.resolve()
        if place is not None and place in known:
            raise InputError(f"{name} {path}: it is {known[place]}; a file of its own was expected")
        if place is not None:
            known[place] = name


def _replays_kept(engine: "EngineName | None") -> str:
    """What an interrupted command leaves that writes nothing before its end."""
    if engine == "replay":
        from sim.device.run import REMEMBERED

        if REMEMBERED.disk is not None and REMEMBERED.disk.is_open:
            return "finished replays are kept: run again to go on"
    return "nothing was written"


@contextmanager
def a_bar(engine: "EngineName | None" = "replay", kept: str | None = None) -> "Iterator[Progress]":
    """A progress bar, to be told (what runs, done, total); only where standard error is a terminal.

    Says first if the engine is yet to be compiled, and to whoever interrupts what is `kept`: by
    default the replays that are finished, where the user's cache has them.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    from sim.cli.interrupt import keeping
    from sim.inputs.units import show

    class RateColumn(ProgressColumn):
        """Of what is counted: tile steps of a run, points of a sweep, trials of a search."""

        def render(self, task: Task) -> Text:
            speed = task.speed or 0.0
            return Text(
                (show(speed, "") if speed >= 1 else f"{speed:.2g} ") + "/s" if speed else ""
            )

    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("reading and lowering", total=None)
    with keeping(kept or _replays_kept(engine)), bar:
        if engine == "replay":
            _compile_beside(console.print)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total or None
        )


def _compile_beside(tell: "Callable[[str], None]") -> None:
    """Have the engine compiled, if it is not, while the question is read and lowered."""
    from sim.engine.compiled.replay import advance

    if advance.is_kept:
        return
    from sim.inputs.files import InputError
    from sim.runs.workers import compile_engine

    def compile_it() -> None:
        with suppress(InputError):  # which who needs the engine meets too
            compile_engine()

    kept = "once; later runs read it from disk"
    if advance.folder is None:
        kept = "in each run: its folder cannot be written to; XDG_CACHE_HOME names another"
    tell(f"Compiling the replay engine ({kept}) ...")
    threading.Thread(target=compile_it, name=COMPILING, daemon=True).start()


def is_compiling() -> bool:
    """Whether the engine is still compiled beside a command that ends without it."""
    return any(thread.name == COMPILING for thread in threading.enumerate())
