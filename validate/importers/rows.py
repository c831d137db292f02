"""Rows of other people's tables: CSV and Parquet files, with every cell checked as it is read."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from sim.inputs.files import InputError

LFS = b"version https://git-lfs.github.com/spec/"


class LeftOutError(Exception):
    """A row that no figure says; the message says why."""


@dataclass(frozen=True)
class Row:
    """One row, by its columns; `where` is the file and line (of Parquet, the row's number)."""

    where: str
    cells: Mapping[str, Any]

    def text(self, column: str, otherwise: str | None = None) -> str:
        """What stands there; `otherwise` where the column is missing or empty, if it is given."""
        given = self.cells.get(column)
        if given is not None and given != "":
            return str(given)
        if otherwise is not None:
            return otherwise
        if column in self.cells:
            raise InputError(f'{self.where}: {column} = "": a value was expected')
        raise InputError(f"{self.where}: {column}: no such column; there are {self._columns()}")

    def count(self, column: str, otherwise: str | None = None) -> int:
        """A whole number, 0 or more."""
        number = self._number(column, "a whole number, 0 or more,", otherwise)
        if number < 0 or number != int(number):
            raise self._wrong(column, "a whole number, 0 or more,")
        return int(number)

    def positive(self, column: str) -> float:
        """A number above 0."""
        number = self._number(column, "a number above 0")
        if not 0 < number < float("inf"):
            raise self._wrong(column, "a number above 0")
        return number

    def flag(self, column: str, otherwise: str | None = None) -> bool:
        """True or False, as Python writes them, or 1 or 0."""
        flags = {"true": True, "1": True, "false": False, "0": False, "1.0": True, "0.0": False}
        flag = flags.get(self.text(column, otherwise).lower())
        if flag is None:
            raise self._wrong(column, "True or False")
        return flag

    def _number(self, column: str, expected: str, otherwise: str | None = None) -> float:
        try:
            return float(self.text(column, otherwise))
        except ValueError:
            raise self._wrong(column, expected) from None

    def _wrong(self, column: str, expected: str) -> InputError:
        return InputError(
            f'{self.where}: {column} = "{self.cells.get(column)}": {expected} was expected'
        )

    def _columns(self) -> str:
        return ", ".join(self.cells)


@dataclass(frozen=True)
class Source:
    """A public set: its repository, patterns of the files that are read, and what a row says.

    `figure` gives the cells of a `validate.figures.Figure`, but `source`. It raises LeftOutError
    for a row that no figure says, InputError for one that cannot be read. `headers` stand in for
    the first line of files that have none.
    """

    repository: str
    files: tuple[str, ...]
    figure: Callable[[Path, Row], dict[str, Any]]
    headers: tuple[tuple[str, ...], ...] = ()


def rows_of(file: Path, headers: tuple[tuple[str, ...], ...] = ()) -> Iterator[Row]:
    """The rows of a CSV or Parquet file; raises InputError."""
    try:
        start = file.open("rb").read(len(LFS))
        if start == LFS:
            raise InputError(
                f"{file}: a Git LFS pointer, not the file itself: "
                "fetch it with git lfs pull in the clone"
            )
        yield from _parquet(file) if start[:4] == b"PAR1" else _csv(file, headers)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None


def _parquet(file: Path) -> Iterator[Row]:
    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a Parquet file: {str(error).splitlines()[0]}") from None
    for number, cells in enumerate(table.to_pylist(), 1):
        yield Row(f"{file}, row {number}", cells)


def _csv(file: Path, headers: tuple[tuple[str, ...], ...]) -> Iterator[Row]:
    try:
        lines = csv.reader(file.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError:
        raise InputError(f"{file}: not a CSV file (it is not UTF-8 text)") from None
    first = next(lines, [])
    own = next((h for h in headers if len(h) == len(first) and not set(h) & set(first)), None)
    header = own or first
    if own is not None:
        yield Row(f"{file}, line 1", dict(zip(header, first, strict=True)))
    for cells in lines:
        where = f"{file}, line {lines.line_num}"
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise InputError(f"{where}: {len(cells)} cells; {len(header)} columns were expected")
        yield Row(where, dict(zip(header, cells, strict=True)))


def split_at(file: Path, folder: str) -> tuple[Path, tuple[str, ...]]:
    """What holds the innermost `folder` of a file's path, and the folders from there down to it."""
    parts = file.absolute().parts[:-1]
    at = len(parts) - 1 - parts[::-1].index(folder)
    return Path(*parts[:at]), parts[at + 1 :]


@lru_cache(64)
def model_config(file: Path) -> dict[str, Any]:
    """A model's config.json, empty where there is none; raises InputError."""
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return config
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
