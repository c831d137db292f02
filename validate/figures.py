"""Tables of measured figures: one CSV row a figure, checked and read from files and folders.

The columns are those of `docs/measurements.md`. What a row leaves empty was not stated by who
measured it; whether it can be predicted all the same is decided later (`validate.measured`).
"""

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from sim.inputs.files import InputError, expected_of, nearest

Pass = Literal["fwd", "bwd", "decode"]
Metric = Literal[
    "time_us",
    "tflops",
    "gbps",
    "dram_read_bytes",
    "dram_write_bytes",
    "dram_total_bytes",
    "l2_read_bytes",
    "l2_hit_pct",
]
FigureSplit = Literal["fit", "test", "transfer"]


def _or_none(text: Any) -> Any:
    return None if text == "" else text


def _flag(text: Any) -> Any:
    flags = {"": None, "0": False, "1": True}
    if text not in flags:
        raise ValueError("1, 0, or nothing where it is not stated, was expected")
    return flags[text]


Stated = Annotated[PositiveInt | None, BeforeValidator(_or_none)]


class Figure(BaseModel):
    """One figure that was measured: of what, on which device, by which metric.

    None stands for what was not stated. `extra` is free text: page size, window, how it was timed,
    whether L2 was cold or warm, what else is in the time. `where` is the file and line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    source: str = ""
    gpu: str = Field(min_length=1)
    kernel: str = Field(min_length=1)
    pass_: Pass = Field(alias="pass")
    dtype: str = Field(min_length=1)
    kv_dtype: str = ""  # `dtype` where it is empty
    batch: Stated
    heads: Stated
    kv_heads: Stated = None
    seq_q: Stated
    seq_kv: Stated
    head_dim: Stated
    causal: Annotated[bool | None, BeforeValidator(_flag)] = None
    extra: str = ""
    metric: Metric
    value: NonNegativeFloat
    split: FigureSplit = "test"
    where: str = Field(exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _heads_for_kv_heads(cls, row: Any) -> Any:
        """A table without the column has as many KV heads as heads; without `kv_dtype`, one."""
        return {"kv_heads": row.get("heads"), "kv_dtype": row.get("dtype")} | row

    @model_validator(mode="after")
    def _takes_time(self) -> "Figure":
        """Nothing takes no time; bytes and hits may be none."""
        if self.value == 0 and self.metric in ("time_us", "tflops", "gbps"):
            raise ValueError(f"a {self.metric} above 0 was expected")
        return self


COLUMNS = tuple(
    field.alias or name for name, field in Figure.model_fields.items() if name != "where"
)
REQUIRED = tuple(
    field.alias or name
    for name, field in Figure.model_fields.items()
    if field.is_required() and name != "where"
)


def is_table(path: Path) -> bool:
    """Whether a path is read as tables of figures: a CSV file, or a folder."""
    return os.path.isdir(path) or path.suffix == ".csv"


def read_figures(paths: Iterable[Path]) -> list[Figure]:
    """The figures of CSV files, and of all CSV files that lie in folders; raises InputError."""
    return [figure for path in paths for file in _files(path) for figure in _read(file)]


def must_be_fit(figure: Figure) -> None:
    """Raises InputError for a row that nothing may be fitted to."""
    if figure.split != "fit":
        raise InputError(
            f'{figure.where}: split = "{figure.split}": nothing is fitted to such a row; '
            'calibrating takes rows of the split "fit" alone'
        )


def _files(path: Path) -> list[Path]:
    if not os.path.isdir(path):
        return [path]
    files = sorted(path.glob("*.csv"))
    if not files:
        raise InputError(f"{path}: no CSV file lies in this folder")
    return files


def _read(file: Path) -> Iterator[Figure]:
    try:
        lines = csv.reader(file.read_text(encoding="utf-8-sig").splitlines())
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: not a CSV file (it is not UTF-8 text)") from None
    header = [column.strip() for column in next(lines, [])]
    _check_header(file, header)
    for line in lines:
        cells = [cell.strip() for cell in line]
        where = f"{file}, line {lines.line_num}"
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise InputError(f"{where}: {len(cells)} cells; {len(header)} columns were expected")
        yield _figure(where, dict(zip(header, cells, strict=True)))


def _check_header(file: Path, header: list[str]) -> None:
    for column in header:
        if column not in COLUMNS:
            raise InputError(
                f"{file}, line 1: {column}: unknown column; {nearest(column, COLUMNS)}"
            )
        if header.count(column) > 1:
            raise InputError(f"{file}, line 1: {column}: stands there twice")
    for column in REQUIRED:
        if column not in header:
            raise InputError(f"{file}, line 1: {column}: missing; needed are {', '.join(REQUIRED)}")


def _figure(where: str, cells: dict[str, str]) -> Figure:
    try:
        return Figure.model_validate({**cells, "where": where})
    except ValidationError as error:
        column, message = problem_of(error)
        raise InputError(f'{where}: {column} = "{cells.get(column, "")}": {message}') from None


def problem_of(error: ValidationError) -> tuple[str, str]:
    """The first column that is wrong, and what was expected."""
    problem = error.errors(include_url=False)[0]
    return str(problem["loc"][0]) if problem["loc"] else "value", expected_of(problem)
