"""TOML files found by name, read, and checked; what is wrong is one line: where, what, accepted."""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class InputError(Exception):
    """Something in what the user gave cannot be used; the message is one line for them."""


def find_toml(name: str, package: str, kind: str, beside: Path | None = None) -> Path:
    """The file that `name` means: a path if it looks like one, else a shipped name.

    A relative path is looked up from the folder `beside` first. Raises InputError.
    """
    if name.endswith(".toml") or os.sep in name:
        path = Path(name)
        if beside is not None and not path.is_absolute() and (beside / path).exists():
            return beside / path
        return path
    names = shipped_names(package)
    if name not in names:
        raise InputError(f"{kind} {name!r}: no such {kind}; {nearest(name, names)}")
    return Path(str(resources.files(package) / f"{name}.toml"))


def shipped_names(package: str) -> list[str]:
    """Names of the TOML files that come with the `package` folder."""
    files = resources.files(package).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file.

    Raises InputError for a missing or unreadable file, one that is not text, or a syntax error.
    """
    try:
        return deepcopy(_parsed(path.read_bytes().decode("utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a TOML file (it is not UTF-8 text)") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


@lru_cache(64)  # a sweep reads the same profile for every point
def _parsed(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def checked(model: type[Model], data: Mapping[str, Any], where: str, prefix: str = "") -> Model:
    """`data` as a `model`.

    Raises InputError naming `where`, the key, the value and what is accepted. `prefix` is the key
    under which `data` stands in the file.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {_first_problem(model, error, prefix)}") from None


def _first_problem(model: type[BaseModel], error: ValidationError, prefix: str) -> str:
    problem = error.errors(include_url=False)[0]
    location = [str(part) for part in problem["loc"]]
    key = ".".join(filter(None, [prefix, *location]))
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; {nearest(location[-1], _keys_at(model, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
        return f"{key}: {message}" if key else message
    return f"{key} = {_shown(problem['input'])}: {message[0].lower() + message[1:]}"


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _keys_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that `model` accepts in the table at `location`."""
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the known name most like `name`, or all of them if none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def save_text(text: str, path: Path) -> None:
    """Write the text, whole or not at all; raises InputError where that cannot be."""
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
