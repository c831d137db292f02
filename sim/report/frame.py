"""Records as a pandas DataFrame, and as Parquet or CSV files."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sim.inputs.files import InputError, whole_file
from sim.runs.record import Record

_NESTED = (
    "point",
    "workload",
    "bottleneck_shares",
    "kernels",
    "timeline",
    "memory",
    "options",
    "overrides",
    "versions",
)
_SUFFIXES = (".parquet", ".csv")


def frame_of(records: list[Record]) -> pd.DataFrame:
    """A row a record: its swept keys, its workload, its figures (units are in their names).

    What a scenario sets of the device and of a schedule stands under its key there, such as
    `hardware.l2.capacity` and `schedule.flash2.tile.q`.
    `share.hbm` and the like are the parts of time by what was critical. Kernels, timelines and
    memory are left out.
    """
    rows = [_row(record) for record in records]
    keys = dict.fromkeys(key for row in rows for key in row)
    return pd.DataFrame({key: _column([row.get(key) for row in rows]) for key in keys})


def _row(record: Record) -> dict[str, Any]:
    flat = asdict(replace(record, kernels=[], timeline=[], memory=[]))
    figures = {f.name: flat[f.name] for f in fields(Record) if f.name not in _NESTED}
    workload = {f"workload.{key}": value for key, value in record.workload.items()}
    shares = {f"share.{cause}": share for cause, share in record.bottleneck_shares.items()}
    return {**record.point, **workload, **record.settings, **figures, **shares}


def _column(values: list[Any]) -> Any:
    """Whole numbers stay so where some are missing; values of several kinds become text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int} and all(abs(value) < 2**63 for value in values if value is not None):
        return pd.array(values, dtype="Int64")
    if kinds <= {int, float}:
        return pd.array([None if v is None else float(v) for v in values], dtype="float64")
    if kinds == {bool}:
        return pd.array(values, dtype="boolean")
    return pd.array([v if v is None or kinds == {str} else json.dumps(v) for v in values], "str")


def check_export(path: Path) -> None:
    """Raises InputError where the name does not say which kind of file it is."""
    if path.suffix not in _SUFFIXES:
        raise InputError(f"--export {path}: a name ending in {' or '.join(_SUFFIXES)} was expected")


def export_frame(records: list[Record], path: Path) -> None:
    """Write the records' DataFrame, whole or not at all."""
    frame = frame_of(records)
    with whole_file(path) as partial:
        if path.suffix == ".parquet":
            frame.to_parquet(partial, index=False)
        else:
            frame.to_csv(partial, index=False)
