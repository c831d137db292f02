"""What code a result rests on: a module and all of attnsim that it imports, as one stamp.

A stamp changes with any statement of these modules, and with nothing else: neither with a comment
or a docstring in them, nor with a module that they do not import. It is read from the sources, so
that it can be asked before any of them is loaded. What a source says is kept, by a hash of its
bytes: to parse them all takes a quarter of a second.
"""

import ast
import re
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from sim.inputs.kept import KeptTable, folder_beside

_ROOT = Path(__file__).parents[2]  # where the package `sim` lies
_MOST_KEPT = 1000  # sources: some versions of attnsim
_LATER = re.compile(r"(sim(?:\.\w+)+):\w+")  # "sim.schedules.naive:Naive", imported when asked for


@cache
def stamp_of(module: str) -> str:
    """A hash of the module's code and of all that it imports of attnsim."""
    sources = _Sources()
    codes = [sources.said(name).code for name in sources.imported_by(module)]
    sources.table.keep()
    return sha256("\n".join(codes).encode()).hexdigest()


def imported_by(module: str) -> list[str]:
    """The modules of attnsim that are loaded with `module`, itself among them, in order of names.

    Imports within functions count, those for type checkers do not. Only absolute ones are followed.
    """
    return _Sources().imported_by(module)


class _Said(NamedTuple):
    """What a source says: a hash of its code, and all names that it imports."""

    code: str
    imports: list[str]


class _Sources:
    """What sources say, read anew or kept from another time."""

    def __init__(self) -> None:
        folder = folder_beside(Path(__file__))
        tag = sys.implementation.cache_tag  # each Python has its own syntax tree
        file = folder and folder / f"sources.{tag}.json"
        self.table = KeptTable(file, _MOST_KEPT, lambda said: _Said(*said))

    def said(self, module: str) -> _Said:
        """What a module's source says."""
        file = _file(module)
        assert file is not None
        source = file.read_bytes()
        key = sha256(source).hexdigest()
        said = self.table.get(key)
        if said is None:
            said = _read(source)
            self.table.add(key, said)
        return said

    def imported_by(self, module: str) -> list[str]:
        """See the function of that name."""
        found: set[str] = set()
        waiting = [module]
        while waiting:
            name = waiting.pop()
            if name in found or _file(name) is None:
                continue
            found.add(name)
            waiting += _packages(name)
            waiting += self.said(name).imports
        return sorted(found)


def _packages(module: str) -> list[str]:
    """The packages that a module lies in, which are loaded before it."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


@cache
def _file(module: str) -> Path | None:
    """Where a module of attnsim lies; None for a name that is none."""
    if module.split(".")[0] != "sim":
        return None
    path = _ROOT.joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _read(source: bytes) -> _Said:
    """What is left without what does nothing: docstrings, and what type checkers alone import."""
    tree = ast.parse(source)
    imports: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # Each name may be a module too.
            imports += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Constant) and (later := _LATER.fullmatch(str(node.value))):
            imports.append(later[1])
    return _Said(sha256(ast.dump(tree).encode()).hexdigest(), imports)


def _is_text(line: ast.stmt) -> bool:
    """Whether a statement is a string and nothing else, as a docstring is."""
    value = line.value if isinstance(line, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
