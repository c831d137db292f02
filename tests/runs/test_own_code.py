"""Sweeps over schedules of one's own: by worker processes, and stored by what their code says."""

import subprocess
import sys
from dataclasses import replace

import pytest

import sim
from sim.inputs.files import InputError
from sim.runs.address import address, code_of
from sim.runs.cases import Case
from sim.runs.scenario import Limits, ScenarioText
from sim.runs.store import Store
from sim.runs.sweep import sweep_points
from sim.runs.work import Task, work
from sim.runs.workers import processes
from sim.schedules.own import CodeRefusedError
from tests.support.packages import importable, install

MINE = """
from pydantic import BaseModel
from sim.schedules.flash2 import Flash2

class Options(BaseModel):
    half: bool = False

class Mine(Flash2):
    name: str = "mine"
    summary = "FlashAttention-2 with half the query rows a CTA, or twice that half"
    options: Options = Options()

    def lower(self, w, hw):
        options = {"tile": {"q": 64 if self.options.half else 128, "kv": 64}}
        return Flash2(**options).lower(w, hw)
"""
SEQ = "workload.seq_len"


def text_of(folder, allow_code=True, **changes):
    tables = {
        "workload": {"heads": 4, "head_dim": 64, "seq_len": 512},
        "hardware": {"profile": "t4"},
        "schedule": [{"name": "flash2"}, {"name": "mine.py:Mine", "options": {"half": True}}],
        "sweep": {SEQ: [256, 512, 1024]},
    }
    return ScenarioText({**tables, **changes}, "mine", "mine.toml", folder, allow_code)


@pytest.fixture
def folder(tmp_path):
    """A folder with a schedule of one's own."""
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_worker_processes_run_a_file_and_an_edit_runs_it_again(folder, monkeypatch):
    text, store = text_of(folder), Store()
    monkeypatch.chdir(folder)
    with processes(2) as workers:
        first, again = (sweep_points(text, store, workers) for _ in range(2))
        (folder / "mine.py").write_text(MINE.replace("64 if", "32 if"))
        edited = sweep_points(text, store, workers)
        (folder / "mine.py").write_text(MINE)
        back = sweep_points(text, store, workers)
    expected = [
        replace(r, timeline=[], memory=[]) for r in sim.simulate(**text.data, allow_code=True)
    ]
    assert first.records == again.records == back.records == expected
    assert [swept.replayed for swept in (first, again, edited, back)] == [6, 0, 3, 0]
    changed = [a.time_s != b.time_s for a, b in zip(edited.records, expected, strict=True)]
    assert changed == [False, True] * 3


def test_a_sweep_is_refused_whole_where_code_may_not_run(folder):
    with pytest.raises(CodeRefusedError, match="--allow-code"):
        sweep_points(text_of(folder, allow_code=False), Store(), None)


def test_a_file_that_cannot_be_used_leaves_the_other_schedules_their_rows(folder):
    (folder / "mine.py").write_text("Mine = 1")
    with processes(1) as workers:
        records = sweep_points(text_of(folder), Store(), workers).records
    assert {(r.schedule, r.status) for r in records} == {
        ("flash2", "ok"),
        ("mine.py:Mine", "failed"),
    }
    assert all("mine.py: Mine is no class" in r.reason for r in records if r.reason)


def address_of(table, folder):
    text = text_of(folder, schedule=[table], sweep={})
    (point,) = text.scenario().points
    return address(point, point.schedules[0], "replay", text.scenario().limits)


def test_an_address_knows_a_file_by_what_is_in_it(folder):
    table = {"name": "mine.py:Mine"}
    before = address_of(table, folder)
    (folder / "mine.py").write_text(MINE + "# a comment may be all that differs\n")
    assert address_of(table, folder) != before
    (folder / "mine.py").write_text(MINE)
    assert address_of(table, folder) == before


OF_PACKAGE = """
from sim.runs.address import code_of
from sim.schedules import make_schedule
for name in ("flash2", "mine"):
    print(code_of(make_schedule({"name": name}, "a test")))
"""


def test_an_address_knows_a_package_by_all_its_files(folder, monkeypatch):
    files = {f"attnsim_mine/{name}.py": "" for name in ("__init__", "tiles")}
    files["attnsim_mine/mine.py"] = MINE
    install(folder, "attnsim_mine", files, "mine = attnsim_mine.mine:Mine")
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def codes():
        command = [sys.executable, "-c", OF_PACKAGE]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    before = codes()
    (folder / "attnsim_mine/tiles.py").write_text("TILE = 32")
    after = codes()
    assert before[:2] == after[:2] == [before[0]] * 2
    assert before[2] != after[2]


def test_worker_processes_import_a_package(folder):
    install(folder, "attnsim_swept", {"attnsim_swept.py": MINE}, "mine = attnsim_swept:Mine")
    text = text_of(folder, schedule=[{"name": "mine"}])
    with importable(folder), processes(1) as workers:
        records = sweep_points(text, Store(), workers).records
    assert [record.status for record in records] == ["ok"] * 3


def test_a_worker_with_other_code_of_a_schedule_is_refused(folder):
    text = text_of(folder)
    (point, *_) = text.scenario().points
    tasks = [Task("a key", Case(point, schedule)) for schedule in point.schedules]
    (folder / "mine.py").write_text(MINE + "# edited")
    _, edited = text.scenario().points[0].schedules
    with pytest.raises(InputError, match=r"another attnsim, .* or a schedule's package"):
        work(tasks, Limits(), "replay", code_of(tasks[0].case.schedule, edited))
