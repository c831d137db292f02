"""A clone's files read into one table of figures, row by row, and the table written.

Nothing says which split an imported row has, so the table has no such column: all of it counts as
`test`, and nothing is ever fitted to it.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sim.inputs.files import InputError, whole_file
from sim.runs.job import Progress
from validate.figures import COLUMNS, Figure, problem_of
from validate.importers import aiconfigurator, frontier, infersim, llmservingsim, vidur
from validate.importers.rows import LeftOutError, Source, rows_of

SOURCES = {
    "aiconfigurator": aiconfigurator.SOURCE,
    "infersim": infersim.SOURCE,
    "frontier": frontier.SOURCE,
    "llmservingsim": llmservingsim.SOURCE,
    "vidur": vidur.SOURCE,
}
WRITTEN = tuple(column for column in COLUMNS if column != "split")


@dataclass(frozen=True)
class Imported:
    """What came of a clone: files read, rows written, and why others were left out."""

    files: int
    rows: int
    left: Counter[str]


def save_imported(
    source: Source, path: Path, out: Path, progress: Progress = lambda *_: None
) -> Imported:
    """Read a clone, a folder or a file of it, and write its figures as CSV, whole or not at all.

    Raises InputError.
    """
    files = files_of(source, path)
    left: Counter[str] = Counter()
    rows = 0
    with (
        whole_file(out) as partial,
        partial.open("w", newline="", encoding="utf-8") as opened,
    ):
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(WRITTEN)
        for done, file in enumerate(files):
            progress(file.name, done, len(files))
            for figure in figures_of(source, file, path, left):
                cells = figure.model_dump(by_alias=True)
                table.writerow(_cell(cells[column]) for column in WRITTEN)
                rows += 1
    return Imported(len(files), rows, left)


def files_of(source: Source, path: Path) -> list[Path]:
    """The files that a source reads of what is at `path`; raises InputError if there are none."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file or folder")
    found = sorted(path.rglob("*.*")) if path.is_dir() else [path]
    files = [
        file
        for file in found
        if any(file.absolute().match(pattern) for pattern in source.files) and file.is_file()
    ]
    if not files:
        raise InputError(
            f"{path}: no file that is read of {source.repository} ({', '.join(source.files)})"
        )
    return files


def figures_of(source: Source, file: Path, path: Path, left: Counter[str]) -> Iterator[Figure]:
    """The figures of a file; reasons why rows say none are counted. Raises InputError."""
    name = file.relative_to(path) if path.is_dir() else Path(file.name)
    for row in rows_of(file, source.headers):
        try:
            cells = source.figure(file, row)
        except LeftOutError as reason:
            left[str(reason)] += 1
            continue
        cells |= {"source": f"{source.repository} {name.as_posix()}", "where": row.where}
        try:
            yield Figure.model_validate(cells)
        except ValidationError as error:
            column, message = problem_of(error)
            raise InputError(f'{row.where}: {column} = "{cells.get(column)}": {message}') from None


def _cell(value: object) -> object:
    """A cell's text: flags are 1 and 0, times have 7 digits."""
    if isinstance(value, bool):
        return int(value)
    return f"{value:.7g}" if isinstance(value, float) else value
