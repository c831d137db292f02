"""Lengths of the sequences of a batch: one for all, a list, or a file with one a line.

A text or CSV file holds a whole number a line; blank lines are skipped, as is a first line that
begins with a letter (a column's name).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from operator import index
from pathlib import Path
from typing import Annotated, Any, SupportsIndex

from pydantic import BeforeValidator, Field, PositiveInt

from sim.inputs.files import InputError, file_of, shown
from sim.inputs.units import LONGEST, Count, spelt_count

LENGTH_KEYS = ("seq_len", "seq_q", "seq_kv")
LONGEST_NAME = 40  # characters of a list that is told as it is written
MOST_SEQUENCES = 2**16  # of a batch: CUDA launches no more of them side by side (gridDim.z)
Batch = Annotated[Count, Field(le=MOST_SEQUENCES)]
EXPECTED = "a whole number above zero, or a list of them, one a sequence, was expected"


def _length(value: Any) -> int:
    """A whole number above zero, NumPy's too; raises ValueError."""
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if not isinstance(whole, SupportsIndex) or isinstance(whole, bool) or index(whole) < 1:
        raise ValueError(f"{EXPECTED}, not {shown(value)}")
    if index(whole) > LONGEST:
        raise ValueError(f"a sequence has at most {LONGEST:,} tokens, not {shown(value)}")
    return index(whole)


def _checked(value: Any) -> int | tuple[int, ...]:
    """A length, or a tuple of them; raises ValueError."""
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        return _length(value)
    lengths = tuple(map(_length, value))
    if not lengths:
        raise ValueError(EXPECTED)
    if len(lengths) > MOST_SEQUENCES:
        raise ValueError(f"a list of at most {MOST_SEQUENCES:,} lengths was expected")
    return lengths


# As a file has it: a text is a number in groups of thousands, or names a file.
_Written = PositiveInt | Annotated[list[PositiveInt], Field(min_length=1)] | str
Lengths = Annotated[
    int | tuple[int, ...], BeforeValidator(_checked, json_schema_input_type=_Written)
]


def with_files_read(
    table: Mapping[str, Any], where: str, folder: Path | None = None
) -> dict[str, Any]:
    """A `[workload]` table with the lists that its lengths name files of; raises InputError.

    A relative path is looked up from `folder` first.
    """
    return {
        key: _told(value, f"{where}: workload.{key}", folder)
        if key in LENGTH_KEYS and isinstance(value, str)
        else value
        for key, value in table.items()
    }


def _told(text: str, key: str, folder: Path | None) -> int | list[int]:
    """What "12,288" says, or the file of that name."""
    try:
        spelt = spelt_count(text)
    except ValueError as error:
        raise InputError(f"{key} = {shown(text)}: {error} {EXPECTED}") from None
    return _read(text, key, folder) if spelt is None else spelt


def _read(name: str, key: str, folder: Path | None) -> list[int]:
    path = file_of(name, folder)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        is_file = name != "" and ("." in name or os.path.exists(path))  # else no file was meant
        reason = f"cannot be read: {why}; " if is_file else ""
        raise InputError(f"{key} = {shown(name)}: {reason}{EXPECTED}") from None
    told = [(number, text) for number, line in enumerate(lines, 1) if (text := line.strip())]
    if told and told[0][1].lstrip('"')[:1].isalpha():
        told = told[1:]
    for number, text in told:
        if not text.isdecimal() or int(text) == 0:
            raise InputError(
                f"{path}: line {number}: {shown(text)}: a whole number above zero expected"
            )
    if not told:
        raise InputError(f"{path}: it holds no lengths: one a line was expected")
    return [int(text) for _, text in told]


def name_of(values: list[Any]) -> str:
    """A list of a sweep as text: as it is written or, of many lengths, what tells it from others.

    >>> name_of([1024, 8192])
    '[1024, 8192]'
    >>> name_of([1024] * 15 + [65536])
    '16 of 1,024 to 65,536, 80,896 together (7ccd)'
    """
    if len(text := str(values)) <= LONGEST_NAME or not all(map(_is_number, values)):
        return text
    mark = sha256(text.encode()).hexdigest()[:4]
    least, most = min(values), max(values)
    ends = f"{least:,} to {most:,}, {sum(values):,} together" if least < most else f"{most:,}"
    return f"{len(values):,} of {ends} ({mark})"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def in_words(queries: int | Sequence[int], keys: int | Sequence[int]) -> str | None:
    """Sequences of several lengths in a few words; None where all are of one.

    >>> in_words(1, [1024, 8192, 4096])
    '3 sequences of 1,024 to 8,192 keys, 13,312 together'
    """
    sides = {"queries": queries, "keys": keys}
    lists = {name: side for name, side in sides.items() if not isinstance(side, int)}
    if not lists:
        return None
    told = " and ".join(
        f"{min(side):,} to {max(side):,} {name}, {sum(side):,} together,"
        for name, side in lists.items()
    )
    return f"{len(next(iter(lists.values())))} sequences of {told.rstrip(',')}"
