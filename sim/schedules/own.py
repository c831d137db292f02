"""Schedules of one's own: in an installed package, or in a file that a scenario names.

    [project.entry-points."attnsim.schedules"]     of the package's pyproject.toml
    two_pass = "my_package.two_pass:TwoPass"       goes by schedule.name = "two_pass"

    schedule.name = "two_pass.py:TwoPass"          the class in a file beside the scenario's

A package was installed to be run; a scenario may come from anywhere, so the code that it names runs
only where that is allowed. A file stands alone: what it imports is attnsim's or installed. So its
content is all that tells a sweep's store one version of it from another, and all that a worker
process is sent.
"""

import copyreg
import re
import sys
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any, NamedTuple

from sim.inputs.files import InputError, nearest
from sim.schedules.base import Schedule
from sim.schedules.own_program import in_a_line

_GROUP = "attnsim.schedules"
_IN_FILE = re.compile(r"(.*\.py)(?::(.*))?")  # such as two_pass.py:TwoPass


class CodeRefusedError(InputError):
    """A scenario names code that may not run."""


@cache
def offered() -> Mapping[str, tuple[EntryPoint, ...]]:
    """What installed packages offer, by a schedule's name; none of it is loaded."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=_GROUP):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


@cache
def of_package(name: str) -> type[Schedule]:
    """The schedule that one installed package offers under that name.

    Raises InputError, with the package's name, where several do or where it cannot be loaded.
    """
    point, *others = offered()[name]
    if others:
        packages = " and ".join(map(_package, (point, *others)))
        raise InputError(f'packages {packages}: each has a schedule "{name}": keep only one')
    here = f'package {_package(point)}: schedule "{name}" ({point.value})'
    try:
        kind = point.load()
    except Exception as error:
        raise InputError(f"{here}: cannot be loaded: {in_a_line(error)}") from None
    problem = _why_no_schedule(kind)
    if not problem and not all(hasattr(kind, said) for said in ("summary", "source")):
        problem = "does not say its summary and source"
    if problem:
        raise InputError(f"{here}: {problem}")
    return kind  # type: ignore[no-any-return]  # which was checked


def clash(name: str) -> InputError:
    """What to raise where a package offers a schedule under the name of one of attnsim's."""
    packages = " and ".join(map(_package, offered()[name]))
    return InputError(f'package {packages}: schedule "{name}": attnsim has one of that name')


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def _why_no_schedule(kind: Any) -> str:
    """Why it is none that could run; empty for one that could."""
    if not (isinstance(kind, type) and issubclass(kind, Schedule)):
        return "is no class made of sim.schedules.base.Schedule"
    missing = sorted(kind.__abstractmethods__) if isabstract(kind) else []
    return f"has no {' and no '.join(missing)}" if missing else ""


def is_in_file(name: str) -> bool:
    """Whether a schedule's name means a class in a file."""
    return _IN_FILE.fullmatch(name) is not None


def of_file(name: str, folder: Path | None, allow_code: bool) -> type[Schedule]:
    """The schedule that FILE.py:CLASS means, its file looked up from `folder`.

    Raises CodeRefusedError where its code may not run, InputError where it holds no such schedule.
    """
    found = _IN_FILE.fullmatch(name)
    assert found is not None
    path = (folder or Path()) / found[1]
    if not allow_code:
        raise CodeRefusedError(
            f"this would run the code in {path}: with --allow-code (in Python allow_code=True) "
            "attnsim run, sweep, explore sensitivity and explore search do so, of [[schedule]] "
            "tables"
        )
    module = _module_of(path)
    kinds: dict[str, type[Schedule]] = {
        key: kind for key, kind in vars(module).items() if _is_own(kind, module)
    }
    asked = found[2] or ""
    if asked in kinds:
        problem = _why_no_schedule(kinds[asked])
    elif asked in vars(module):
        problem = "is no class that the file makes of sim.schedules.base.Schedule"
    else:
        known = nearest(asked, kinds) if kinds else "it defines no schedule"
        raise InputError(f"{path}: FILE.py:CLASS: no class {asked!r} in it; {known}")
    if problem:
        raise InputError(f"{path}: {asked} {problem}")
    copyreg.pickle(kinds[asked], _reduced)
    return kinds[asked]


def _is_own(kind: Any, module: ModuleType) -> bool:
    """Whether it is a schedule that this module defines."""
    is_schedule = isinstance(kind, type) and issubclass(kind, Schedule)
    return is_schedule and kind.__module__ == module.__name__


class _File(NamedTuple):
    """A file as it was read."""

    path: str
    source: bytes


_FILES: dict[str, _File] = {}  # by the names of their modules


def _module_of(path: Path) -> ModuleType:
    """The module in a file; raises InputError where there is none that can be run."""
    try:
        return _module(str(path.absolute()), path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _module(path: str, source: bytes) -> ModuleType:
    """The module of that source, run once; raises InputError where it cannot be."""
    name = f"attnsim_file_{sha256(path.encode() + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        code = compile(source, path, "exec")
    except (SyntaxError, ValueError) as error:  # a null byte is either, and in no line
        line, problem = getattr(error, "lineno", None), getattr(error, "msg", error)
        raise InputError(f"{path}{f':{line}' if line else ''}: {problem}") from None
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = path
    try:
        exec(code, vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [f.lineno for f in extract_tb(error.__traceback__) if f.filename == path]
        raise InputError(f"{path}:{lines[-1]}: {in_a_line(error)}") from None
    _FILES[name] = _File(path, source)
    return module


def _reduced(schedule: Schedule) -> tuple[Any, ...]:
    """How one of a file is pickled: with the file's content, as no worker could import it."""
    kind = type(schedule)
    return _blank, (*_FILES[kind.__module__], kind.__name__), schedule.__getstate__()


def _blank(path: str, source: bytes, kind: str) -> Schedule:
    """A schedule of a file before its options are set."""
    made = getattr(_module(path, source), kind)
    return made.__new__(made)  # type: ignore[no-any-return]


def stamp_of_own(kind: type[Schedule]) -> str:
    """A hash of the code of a schedule of one's own: of its file or package; empty of attnsim's."""
    if kind.__module__ in _FILES:
        return sha256(_FILES[kind.__module__].source).hexdigest()
    package = kind.__module__.partition(".")[0]
    return "" if package == "sim" else _stamp_of_package(package)


@cache
def _stamp_of_package(package: str) -> str:
    """A hash of all Python files of a package that is imported."""
    module = sys.modules[package]
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    if not folders and module.__file__:
        files = [Path(module.__file__)]
    return sha256(b"\n".join(file.read_bytes() for file in files)).hexdigest()
