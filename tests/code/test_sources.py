"""The stamps by which compiled code and stored records are found again."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

import sim
from sim.code import sources
from sim.code.sources import imported_by

PACKAGE = Path(sim.__file__).parent
ENGINE = "sim.engine.compiled.replay"  # what decides on compiling it anew
JOB = "sim.runs.job"  # what decides on the address of a stored record
QUESTION = """
from sim.api import simulate
simulate(
    workload={"heads": 2, "head_dim": 64, "seq_len": 256, "causal": True},
    hardware={"profile": "h100-sxm", "sm": {"count": 4}},
    schedule=["naive", "flash2"],
    limits={"replayed_steps": 10},
)
"""


def loaded_by(code: str) -> set[str]:
    """The modules of attnsim that a fresh Python has loaded after `code`."""
    told = f"{code}\nimport sys\nprint(*(m for m in sys.modules if m.split('.')[0] == 'sim'))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", [ENGINE, JOB])
def test_a_stamp_counts_every_module_that_is_loaded(module):
    loaded = loaded_by(f"import {module}")
    assert {module, "sim", "sim.machine", "sim.tile_program"} <= loaded
    assert loaded <= set(imported_by(module))


def test_an_address_counts_what_only_a_run_loads():
    loaded = loaded_by(QUESTION)
    assert "sim.engine.fast_forward.told" in loaded
    # What shows records decides nothing of them.
    above = {module for module in loaded if module.split(".")[1:2] in (["api"], ["report"])}
    assert loaded - above <= set(imported_by(JOB))


def test_a_stamp_counts_no_room_above():
    def rooms(module: str) -> set[str]:
        return {".".join(name.split(".")[:2]) for name in imported_by(module)}

    below = {"sim", "sim.inputs", "sim.code"}
    below |= {"sim.machine", "sim.tile_program", "sim.engine"}
    assert rooms(ENGINE) == below
    assert rooms(JOB) == below | {
        "sim.machine_code",
        "sim.schedules",
        "sim.device",
        "sim.runs",
    }


def test_no_import_is_relative_as_those_are_not_followed():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            assert not isinstance(node, ast.ImportFrom) or node.level == 0, file


@pytest.fixture
def copied(tmp_path) -> Callable[[], tuple[str, str]]:
    """A copy of the package in `tmp_path`; what it returns says the copy's two stamps."""
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "sim", ignore=without)

    def stamps() -> tuple[str, str]:
        file = tmp_path / "sim" / "code" / "sources.py"
        spec = spec_from_file_location("copied_sources", file)
        assert spec is not None
        assert spec.loader is not None
        copy = module_from_spec(spec)
        spec.loader.exec_module(copy)
        return copy.stamp_of(ENGINE), copy.stamp_of(JOB)

    return stamps


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_a_comment_or_a_docstring_changes_no_stamp_and_a_statement_does(copied, tmp_path):
    before = copied()
    machine = tmp_path / "sim" / "machine.py"
    edit(machine, '"""The machine both engines run on', '"""The very machine both engines run on')
    edit(machine, "SUB_PARTITIONS, LANES =", "# A comment,\n\nSUB_PARTITIONS, LANES =")
    edit(machine, '    """Sustained rates and fixed times of a profile, in SI."""\n', "")
    assert copied() == before
    edit(machine, "SRAM_BYTES_AN_INSTRUCTION = 512", "SRAM_BYTES_AN_INSTRUCTION = 256")
    engine, job = copied()
    assert engine != before[0]
    assert job != before[1]


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("device/links.py", "free_s = self.env.now", "free_s = self.env.now + 0.0", (False, True)),
        ("schedules/flash2.py", "\nclass Flash2(", "\nA = 1\n\n\nclass Flash2(", (False, True)),
        ("cli/run.py", 'help="', 'help="Please: ', (False, False)),
        ("engine/compiled/l2.py", "NO_LINE = 0", "NO_LINE = 0 + 0", (True, True)),
    ],
)
def test_a_change_counts_where_it_is_imported(copied, tmp_path, file, old, new, changes):
    before, path = copied(), tmp_path / "sim" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert tuple(a != b for a, b in zip(copied(), before, strict=True)) == changes


def test_what_sources_say_is_read_anew_where_it_is_not_kept_or_damaged(tmp_path, monkeypatch):
    def stamp() -> str:
        return sources.stamp_of.__wrapped__(JOB)

    kept = stamp()
    monkeypatch.setattr(sources, "folder_beside", lambda _: tmp_path)
    assert stamp() == kept
    (file,) = tmp_path.iterdir()
    for damaged in (b"", b"[]", b'{"a": 1}', file.read_bytes()[:-1]):
        file.write_bytes(damaged)
        assert stamp() == kept
    monkeypatch.setattr(sources, "_read", None)
    assert stamp() == kept
