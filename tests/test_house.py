"""The house: its rooms, who may import whom, and where its tests stand."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIGURED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]


@cache
def trees(folder: str) -> dict[Path, ast.Module]:
    """The folder's modules, parsed."""
    files = sorted((ROOT / folder).rglob("*.py"))
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}


def test_the_root_of_sim_holds_at_most_five_modules():
    assert len(list((ROOT / "sim").glob("*.py"))) <= 5


@pytest.mark.parametrize("folder", ["sim", "validate"])
def test_every_package_says_what_it_is(folder):
    packages = {f: tree for f, tree in trees(folder).items() if f.name == "__init__.py"}
    assert packages
    assert not [str(file) for file, tree in packages.items() if not ast.get_docstring(tree)]
    modules = {file.parent for file in trees(folder)}
    assert modules == {file.parent for file in packages}


def test_every_folder_of_tests_mirrors_a_room():
    folders = {f.parent.relative_to(ROOT / "tests") for f in (ROOT / "tests").rglob("test_*.py")}
    strangers = [
        str(folder)
        for folder in folders
        if not (ROOT / "sim" / folder).is_dir() and folder.parts[0] not in ("validate", "fuzz")
    ]
    assert not strangers


def test_what_tests_share_stands_in_support():
    """The fuzzer, a program of its own, is shared by nobody."""
    imported = {
        (str(file.relative_to(ROOT)), node.module)
        for file, tree in trees("tests").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests.")
    }
    own = {pair for pair in imported if pair[0].startswith("tests/fuzz/")}
    assert all(module.startswith(("tests.fuzz.", "tests.support.")) for _, module in own)
    assert not [pair for pair in imported - own if not pair[1].startswith("tests.support.")]


def test_schedules_are_asked_by_their_one_door():
    """Only a schedule lowers another; str.lower takes no arguments."""
    files = {f: t for f, t in trees("sim").items() if (ROOT / "sim/schedules") not in f.parents}
    calls = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file, tree in (files | trees("validate")).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("lower", "commands")
        and node.args
    ]
    assert not calls


def test_who_may_import_whom(capsys, monkeypatch):
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)


def test_every_file_of_the_packages_is_in_the_wheel():
    """Modules are found; other files only by the patterns of their package."""
    packages = ("sim", "validate", "hw_profiles", "scenarios")
    files = {f for package in packages for f in (ROOT / package).rglob("*") if f.is_file()}
    data = {f for f in files if f.suffix != ".py" and f.parent.name != "__pycache__"}
    patterns = CONFIGURED["setuptools"]["package-data"]
    shipped = {
        file
        for package, globs in patterns.items()
        for glob in globs
        for file in (ROOT / package.replace(".", "/")).glob(glob)
    }
    assert data == shipped
