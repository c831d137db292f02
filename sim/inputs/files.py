"""TOML files found by name, read, and checked; what is wrong is one line: where, what, accepted."""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args
from uuid import uuid4

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound=BaseModel)

DEEPEST = 32  # levels of tables and lists in each other: no file that means anything has ten
LONGEST_MESSAGE = 1500  # characters: the names of all that is known are shown, a vast key is not


class InputError(Exception):
    """Something in what the user gave cannot be used; the message is one line for them."""

    def __str__(self) -> str:
        """The message on one line, cut to what is readable; what no terminal shows is escaped."""
        line = "".join(map(_readable, super().__str__()))
        if len(line) <= LONGEST_MESSAGE:
            return line
        head, tail = line[: LONGEST_MESSAGE - 500], line[-450:]  # a vast key, and why
        return f"{head}... ({len(line):,} characters) ...{tail}"


def _readable(character: str) -> str:
    """A character as it is or, such as the end of a line or a terminal's commands, escaped."""
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def find_toml(name: str, package: str, kind: str, beside: Path | None = None) -> Path:
    """The file that `name` means: a path if it looks like one, else a shipped name.

    A relative path is looked up from the folder `beside` first. Raises InputError, also for a name
    that is no text: what is called after it could be neither written nor drawn.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{kind} {name}: its name is no text (UTF-8)") from None
    if name.endswith(".toml") or os.sep in name:
        path = Path(name)
        if beside is not None and not path.is_absolute() and os.path.exists(beside / path):
            path = beside / path
        if not os.path.exists(path):
            raise InputError(f"{kind} {path}: no such file")
        return path
    try:
        shipped = meant(name, shipped_names(package), kind)
    except ValueError as error:
        raise InputError(f"{kind} {shown(name)}: {error}") from None
    return Path(str(resources.files(package) / f"{shipped}.toml"))


def meant(name: str, names: Collection[str], kind: str) -> str:
    """The one of `names` that is meant: "RTX 4090", "RTX4090", "4090" and "rtx-4090" are the same.

    That is `name` itself, or the only one with all of its words. Raises ValueError, which lists
    those that have them or begin so; else those that have its first words, as of
    "NVIDIA A100-SXM4-80GB".
    """
    spelt = _spelt(name)
    words = _words(name)
    alike = [one for one in names if _spelt(one) == spelt]
    alike = alike or [one for one in names if _joined(one) == _joined(name)]
    alike = alike or [one for one in names if words <= _words(one)]
    if len(alike) == 1:
        return alike[0]
    near = [
        one for one in names if one in alike or (spelt and _joined(one).startswith(_joined(name)))
    ]
    near = near or _spelt_nearly(name, names, 0.85) or _with_its_words(name, names)
    raise ValueError(f"no such {kind}; {_hint(name, near, names)}")


def _hint(name: str, near: Collection[str], names: Collection[str]) -> str:
    """Those that are near, if there are any, else what is nearest in its letters."""
    if len(near) == 1:
        return f"did you mean {next(iter(near))!r}?"
    return f"there are {', '.join(near)}" if near else nearest(name, names)


def _with_its_words(name: str, names: Collection[str]) -> list[str]:
    """The names that have its words with a digit, which tell devices apart: the first of them most.

    A word may go on with letters: "3090Ti" has 3090.
    """
    apart = re.sub(r"\b(\d{2,})([A-Za-z]+)\b", r"\1\2 \1", name)
    numbered = [word for word in _spelt(apart).split("-") if re.search(r"\d", word)]
    shared = {one: [word in _words(one) for word in numbered] for one in names}
    most = max(shared.values(), default=[])
    return [one for one, has in shared.items() if any(has) and has == most]


def file_of(name: str, folder: Path | None) -> Path:
    """The file that `name` means: beside the scenario or, if none is there, from where one is."""
    here, beside = Path(name), (folder or Path()) / name
    return here if os.path.exists(here) and not os.path.exists(beside) else beside


def _spelt(name: str) -> str:
    """The name in small letters, a hyphen between its words."""
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())


def _words(name: str) -> set[str]:
    return set(_spelt(name).split("-"))


def _joined(name: str) -> str:
    return _spelt(name).replace("-", "")


def shipped_names(package: str) -> list[str]:
    """Names of the TOML files that come with the `package` folder."""
    files = resources.files(package).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file, with or without a byte order mark, as Windows' editors write.

    Raises InputError for a missing or unreadable file, one that is not text, or a syntax error.
    """
    try:
        return deepcopy(_parsed(path.read_bytes().decode("utf-8-sig")))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a TOML file (it is not UTF-8 text)") from None
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits
        raise InputError(f"{path}: not valid TOML: {error}") from None


_NAME = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
# Looked for where keys are: a parser takes the square of their names, minutes of 100 kB.
_LONG_KEY = re.compile(
    rf"(?:^|[\[{{,])[ \t]*+(?:{_NAME}[ \t]*+\.[ \t]*+){{{DEEPEST}}}", re.MULTILINE
)


@lru_cache(64)  # a sweep reads the same profile for every point
def _parsed(text: str) -> dict[str, Any]:
    long_key = _LONG_KEY.search(text)
    tables = {} if long_key else tomllib.loads(text)
    if long_key or _levels(tables) > DEEPEST:
        raise ValueError(f"tables nested deeper than {DEEPEST} levels")
    check_texts(tables)
    return tables


def _levels(tables: dict[str, Any]) -> int:
    """How deep tables and lists lie in each other."""
    levels, here = 0, [list(tables.values())]
    while here:
        levels += 1
        inner = [value for values in here for value in values]
        here = [
            list(v.values()) if isinstance(v, dict) else v
            for v in inner
            if isinstance(v, dict | list)
        ]
    return levels


_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # of terminals: all but tab and line feed
_NO_TEXT = re.compile(r"[\ud800-\udfff]")  # bytes of an argument as Python has them


def check_texts(value: Any) -> None:
    """Raises ValueError where a text in a file's tables has commands for the terminal it meets."""
    if isinstance(value, dict):
        check_texts([*value.keys(), *value.values()])
    elif isinstance(value, list):
        for one in value:
            check_texts(one)
    elif isinstance(value, str) and _NO_TEXT.search(value):
        raise ValueError(f"{shown(value)} is no text (UTF-8)")
    elif isinstance(value, str) and (found := _COMMANDS.search(value)):
        raise ValueError(f"a text has the control character {ord(found[0]):#04x}: {shown(value)}")


def checked(model: type[Model], data: Mapping[str, Any], where: str, prefix: str = "") -> Model:
    """`data` as a `model`.

    Raises InputError naming `where`, the key, the value and what is accepted. `prefix` is the key
    under which `data` stands in the file.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {_first_problem(model, error, prefix)}") from None
    except (OverflowError, RecursionError) as error:
        what = f"{where}: {prefix}" if prefix else where
        raise InputError(f"{what}: too large a number, or too deep: {error}") from None


def _first_problem(model: type[BaseModel], error: ValidationError, prefix: str) -> str:
    problems = error.errors(include_url=False)
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    problem = next(iter(unknown or problems))  # a key that is misspelt is also missing
    location = [str(part) or '""' for part in problem["loc"]]
    key = ".".join(filter(None, [prefix, *location]))
    if unknown:
        return f"{key}: unknown key; {nearest(location[-1], _keys_at(model, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    expected = expected_of(problem)
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
        return f"{key}: {expected}" if key else expected
    if keys := problem["type"] == "model_type" and _keys_at(model, location):
        expected += f": {{ {', '.join(f'{key} = ...' for key in keys)} }}"
    return f"{key} = {shown(problem['input'])}: {expected}"


def expected_of(problem: ErrorDetails) -> str:
    """What was expected where this problem is, in the words of a person who fills in a file."""
    if problem["type"] in _EXPECTED:
        return _EXPECTED[problem["type"]].format(**problem.get("ctx", {}))
    message = problem["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:]


# By pydantic's type of error.
_EXPECTED = {
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
        "a whole number was expected",
    ),
    **dict.fromkeys(("float_type", "float_parsing"), "a number was expected"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false was expected"),
    **dict.fromkeys(("model_type", "dict_type", "mapping_type"), "a table was expected"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list was expected"),
    "string_type": "text was expected",
    "path_type": "a path was expected",
    "finite_number": "it must be finite",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
    "too_long": "at most {max_length} were expected",
    "too_short": "at least {min_length} was expected",
    "string_too_short": "a text that is not empty was expected",
    "multiple_of": "it must be a multiple of {multiple_of}",
    "literal_error": "{expected} was expected",
}
LONGEST_SHOWN = 80  # characters of a value in a message


def shown(value: Any) -> str:
    """A value as it may stand in a file, on one line and cut to what is readable."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # such as a number of thousands of digits
        text = type(value).__name__
    if len(text) <= LONGEST_SHOWN:
        return text
    return f"{text[:LONGEST_SHOWN]}... ({len(text):,} characters)"


def _keys_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that `model` accepts in the table at `location`; a number is a place in a list."""
    for part in (name for name in location if not name.isdigit()):
        field = model.model_fields.get(part)
        if field is None:
            return []
        candidates = [field.annotation, *get_args(field.annotation)]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return [field.alias or key for key, field in model.model_fields.items()]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the known name most like `name`, or all of them if none is near."""
    names = sorted(known)
    close = _spelt_nearly(name, names, 0.6)
    if close or not names:
        return f"did you mean {close[0]!r}?" if close else "none is known here"
    return f"known: {', '.join(names)}"


def _spelt_nearly(name: str, names: Collection[str], share: float) -> list[str]:
    """The name whose letters are most like those of `name`, if so great a share of them is."""
    return difflib.get_close_matches(name, names, n=1, cutoff=share)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to: it takes that place once written, else nothing is left.

    Whoever reads `path` meanwhile, or writes it too, sees all of one content. Raises InputError
    where that cannot be, as on a full disk.
    """
    partial = path.with_name(f".{uuid4().hex}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    except UnicodeEncodeError:
        raise InputError(f"{path}: cannot be written: a name in it is no text (UTF-8)") from None
    finally:
        partial.unlink(missing_ok=True)


def save_text(text: str, path: Path) -> None:
    """Write the text, whole or not at all; raises InputError where that cannot be."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save_texts(texts: Mapping[str, str], folder: Path) -> None:
    """Write files of a folder, by their names: all of them or none. Raises InputError."""
    with ExitStack() as files:
        for name, text in texts.items():
            partial = files.enter_context(whole_file(folder / name))
            partial.write_text(text, encoding="utf-8")


def user_cache() -> Path:
    """The user's folder for what attnsim can make again; it need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnsim"
