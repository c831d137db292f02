"""What code a result rests on: a module and all of attnsim that it imports, as one stamp.

A stamp changes with any statement of these modules, and with nothing else: neither with a comment
or a docstring in them, nor with a module that they do not import. It is read from the sources, so
that it can be asked before any of them is loaded.
"""

import ast
from functools import cache
from hashlib import sha256
from pathlib import Path

_ROOT = Path(__file__).parents[2]  # where the package `sim` lies


@cache
def stamp_of(module: str) -> str:
    """A hash of the module's code and of all that it imports of attnsim."""
    codes = (ast.dump(_code(name)) for name in imported_by(module))
    return sha256("\n".join(codes).encode()).hexdigest()


def imported_by(module: str) -> list[str]:
    """The modules of attnsim that are loaded with `module`, itself among them, in order of names.

    Imports within functions count, those for type checkers do not. Only absolute ones are followed.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or _file(name) is None:
            continue
        found.add(name)
        waiting += _packages(name)
        for node in ast.walk(_code(name)):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                # Each name may be a module too.
                waiting += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
    return sorted(found)


def _packages(module: str) -> list[str]:
    """The packages that a module lies in, which are loaded before it."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _file(module: str) -> Path | None:
    """Where a module of attnsim lies; None for a name that is none."""
    if module.split(".")[0] != "sim":
        return None
    path = _ROOT.joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@cache
def _code(module: str) -> ast.Module:
    """A module without what does nothing: docstrings, and what type checkers alone import."""
    file = _file(module)
    assert file is not None
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]
    return tree


def _is_text(line: ast.stmt) -> bool:
    """Whether a statement is a string and nothing else, as a docstring is."""
    value = line.value if isinstance(line, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
