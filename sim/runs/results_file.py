"""results.json: records written, and read again."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sim.inputs.files import InputError, check_texts, expected_of, save_text, shown
from sim.runs.record import Record, versions

LEAST, MOST = 1e-100, 1e100  # of any figure that is not zero
# What every schedule that ran has.
_MEASURED = ("time_s", "hbm_read_bytes", "hbm_write_bytes", "l2_hit_rate", "bottleneck")


def save(records: list[Record], path: Path) -> None:
    """Write the records as JSON, whole or not at all."""
    save_text(dumps(records), path)


def dumps(records: list[Record]) -> str:
    """The records as JSON."""
    return json.dumps([asdict(record) for record in records], indent=1, allow_nan=False) + "\n"


def load(path: Path) -> list[Record]:
    """The records of a results.json that `save` wrote, of this version of attnsim or another.

    Raises InputError for a file that holds anything else, with the first key that is wrong.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        records = TypeAdapter(list[Record]).validate_json(text)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error)}{_other_version(text)}") from None
    if not records:
        raise InputError(f"{path}: it holds no records")
    for number, record in enumerate(records):
        try:
            check_texts(asdict(record))
            _check_numbers(asdict(record))
        except ValueError as error:
            raise InputError(f"{path}: record {number}: {error}") from None
        missing = [key for key in _MEASURED if getattr(record, key) is None]
        if record.status == "ok" and missing:
            raise InputError(f"{path}: record {number}: {missing[0]}: missing")
    return records


def _check_numbers(value: Any) -> None:
    """Raises ValueError where products and ratios of a record's numbers may not be finite."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            _check_numbers(one)
    elif isinstance(value, int | float) and value and not LEAST <= abs(value) <= MOST:
        raise ValueError(f"{shown(value)}: a number of {LEAST:g} to {MOST:g} was expected")


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    if not problem["loc"]:
        return "not a results.json of schedules (attnsim run SCENARIO --out FOLDER leaves one)"
    number, *location = problem["loc"]
    where = f"record {number}: {'.'.join(map(str, location))}".removesuffix(": ")
    if problem["type"] in ("missing", "unexpected_keyword_argument"):
        return f"{where}: {'missing' if problem['type'] == 'missing' else 'unknown key'}"
    return f"{where}: {expected_of(problem)}"


def _other_version(text: bytes) -> str:
    """Who wrote the text, if that was another version of attnsim: to be said with a problem."""
    try:
        wrote = json.loads(text)[0]["versions"]["attnsim"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    here = versions()["attnsim"]
    return "" if wrote == here else f" (attnsim {wrote} wrote it, this is {here})"
