"""Schedules of one's own, in files and in installed packages: found, run, or refused in a line."""

import pickle
import subprocess
import sys

import pytest

import sim
from sim.cli.app import main
from sim.inputs.files import InputError
from sim.runs.scenario import make_scenario
from sim.schedules import SCHEDULES, make_schedule
from sim.schedules.own import CodeRefusedError
from tests.support.packages import importable, install

MINE = """
from pydantic import BaseModel
from sim.schedules import base
from sim.schedules.flash2 import Flash2

class Options(BaseModel):
    depth: int = 1

class Mine(Flash2):
    name: str = "mine"
    summary = "FlashAttention-2 under another name"
    options: Options = Options()

class Unfinished(base.Schedule):
    pass
"""
WORKLOAD = {"heads": 4, "head_dim": 64, "seq_len": 512}
SCENARIO = """
[workload]
heads = 4
head_dim = 64
seq_len = 512

[hardware]
profile = "a100-sxm-80gb"

[[schedule]]
name = "flash2"

[[schedule]]
name = "mine.py:Mine"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a scenario and the file that it names, where commands run."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "question.toml").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def attnsim(capsys, monkeypatch, *arguments):
    """Exit code, standard output and the line on standard error."""
    monkeypatch.setattr("sys.argv", ["attnsim", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return ended.value.code or 0, said.out, said.err


# In a file


COMMANDS = {
    "run": ("run", "question.toml"),
    "sweep": ("sweep", "question.toml"),
    "sensitivity": ("explore", "sensitivity", "question.toml"),
    "serve": ("explore", "serve", "question.toml"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_does_not_run_unless_that_is_allowed(folder, capsys, monkeypatch, command):
    (folder / "mine.py").write_text("raise SystemExit('it ran')")
    code, out, line = attnsim(capsys, monkeypatch, *COMMANDS[command])
    assert (code, out, line.count("\n")) == (2, "", 1)
    assert 'question.toml: schedule.name = "mine.py:Mine": ' in line
    assert "the code in mine.py: with --allow-code" in line
    with pytest.raises(CodeRefusedError, match="allow_code=True"):
        sim.simulate("question.toml")


def test_only_scenarios_of_schedules_run_files(folder, capsys, monkeypatch):
    row = '[[fit]]\nmodel = "gpt2"\nhardware = "t4"\nschedule = "mine.py:Mine"'
    (folder / "question.toml").write_text(row)
    code, out, line = attnsim(capsys, monkeypatch, "run", "question.toml")
    assert (code, out) == (2, "")
    assert "of [[schedule]] tables" in line
    refused = "attnsim: --allow-code goes with a scenario that has [[schedule]] tables\n"
    command = ("run", "question.toml", "--allow-code")
    assert attnsim(capsys, monkeypatch, *command) == (2, "", refused)


def test_a_file_beside_the_scenario_says_what_its_class_does(folder, capsys, monkeypatch):
    monkeypatch.chdir("/")
    flash2, mine = sim.simulate(folder / "question.toml", allow_code=True)
    assert (mine.schedule, mine.options) == ("mine.py:Mine", {"name": "mine.py:Mine"})
    assert (mine.time_s, mine.hbm_bytes) == (flash2.time_s, flash2.hbm_bytes)
    question = str(folder / "question.toml")
    for command in (("run", question), ("explore", "sensitivity", question)):
        code, out, line = attnsim(capsys, monkeypatch, *command, "--allow-code")
        assert (code, line) == (0, "")
        assert "mine.py:Mine" in out


def test_tables_in_python_name_files_in_the_working_directory(folder):
    tables = {"workload": WORKLOAD, "hardware": "t4", "schedule": "mine.py:Mine"}
    (record,) = sim.simulate(**tables, allow_code=True)
    assert record.status == "ok"
    with pytest.raises(CodeRefusedError):
        sim.simulate(**tables)


def test_its_options_are_set_and_swept_by_its_name(folder, capsys, monkeypatch):
    key = "schedule.mine.py:Mine.tile"
    table = {"name": "mine.py:Mine", "tile": {"q": 64, "kv": 64}}
    tables = {
        "workload": WORKLOAD,
        "hardware": {"profile": "t4"},
        "schedule": [table],
        "sweep": {f"{key}.kv": [32, 64]},
    }
    scenario = make_scenario(tables, "mine", "mine.toml", folder, allow_code=True)
    tiles = [str(schedule.tile) for point in scenario.points for schedule in point.schedules]
    assert tiles == ["64 x 32", "64 x 64"]
    setting = f"{key}={{ q = 64, kv = 7 }}"
    code, said, _ = attnsim(
        capsys, monkeypatch, "run", "question.toml", "--allow-code", "--set", setting
    )
    assert code == 0  # for the other schedule
    assert f"mine.py:Mine: failed: {key}.kv = 7" in said


BAD_FILES = {
    "no file": ("none.py:Mine", MINE, "none.py: no such file"),
    "a folder": (".py:Mine", MINE, ".py: cannot be read: Is a directory"),
    "no class named": ("mine.py", MINE, "mine.py: FILE.py:CLASS: no class '' in it; known: Mine"),
    "misspelt": ("mine.py:Mind", MINE, "no class 'Mind' in it; did you mean 'Mine'?"),
    "none in it": ("mine.py:Mine", "x = 1", "no class 'Mine' in it; it defines no schedule"),
    "a number": ("mine.py:Mine", "Mine = 1", "mine.py: Mine is no class that the file makes of"),
    "another's": ("mine.py:Flash2", MINE, "Flash2 is no class that the file makes of"),
    "no lowering": ("mine.py:Unfinished", MINE, "mine.py: Unfinished has no lower"),
    "syntax": ("mine.py:Mine", "x = 1\nclass Mine(:\n", "mine.py:2: invalid syntax"),
    "null": ("mine.py:Mine", "x = '\0'", "mine.py: source code string cannot contain null bytes"),
    "raises": ("mine.py:Mine", "\n1 / 0", "mine.py:2: ZeroDivisionError: division by zero"),
    "exits": ("mine.py:Mine", "exit('so')", "mine.py:1: SystemExit: so"),
    "imports": (
        "mine.py:Mine",
        "import not_there",
        "mine.py:1: ModuleNotFoundError: No module named 'not_there'",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_used_is_one_line(folder, capsys, monkeypatch, case):
    name, source, problem = BAD_FILES[case]
    (folder / ".py").mkdir()
    (folder / "mine.py").write_text(source)
    alone = SCENARIO.replace('[[schedule]]\nname = "flash2"', "").replace("mine.py:Mine", name)
    (folder / "question.toml").write_text(alone)
    code, out, line = attnsim(capsys, monkeypatch, "run", "question.toml", "--allow-code")
    assert (code, out, line.count("\n")) == (2, "", 1)
    assert f'question.toml: schedule.name = "{name}": ' in line
    assert problem in line


def test_an_unknown_option_is_told_as_of_any_schedule(folder):
    table = {"name": "mine.py:Mine", "stage": 2}
    with pytest.raises(InputError, match=r"mine.py:Mine\.stage: unknown key; did you mean 'stag"):
        make_schedule(table, "a test", folder, allow_code=True)


def test_an_edited_file_is_read_anew(folder):
    def summary():
        return make_schedule({"name": "mine.py:Mine"}, "a test", folder, True).summary

    assert "another name" in summary()
    (folder / "mine.py").write_text(MINE.replace("another name", "a third name"))
    assert "third name" in summary()


def test_it_is_pickled_with_its_file_for_a_process_that_never_saw_it(folder):
    table = {"name": "mine.py:Mine", "options": {"depth": 3}}
    schedule = make_schedule(table, "a test", folder, allow_code=True)
    (folder / "schedule.pickle").write_bytes(pickle.dumps([schedule, schedule]))
    (folder / "mine.py").unlink()
    program = (
        "import pickle; same, schedule = pickle.load(open('schedule.pickle', 'rb'))\n"
        "assert same is schedule\n"
        "print(repr(schedule))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.strip() == repr(schedule), ran.stderr


# In an installed package


@pytest.fixture
def installed(tmp_path):
    """Installs a package of one module, offering these entry points."""

    def install_module(package, source, *entries):
        install(tmp_path, package, {f"{package}.py": source}, *entries)

    with importable(tmp_path):
        yield install_module


def test_a_package_offers_a_schedule_by_name(installed, capsys, monkeypatch):
    installed("attnsim_mine", MINE, "mine = attnsim_mine:Mine")
    monkeypatch.setenv("COLUMNS", "200")
    assert list(SCHEDULES)[-1] == "mine"
    tables = {"workload": WORKLOAD, "hardware": "t4"}
    flash2, mine = sim.simulate(**tables, schedule=["flash2", "mine"])
    assert (mine.schedule, mine.time_s) == ("mine", flash2.time_s)
    code, out, _ = attnsim(capsys, monkeypatch, "schedules")
    assert code == 0
    assert "FlashAttention-2 under another name" in out
    with pytest.raises(InputError, match="did you mean 'mine'"):
        make_schedule({"name": "mien"}, "a test")


def test_a_package_is_not_imported_before_it_is_asked_for(installed):
    installed("attnsim_mine", MINE, "mine = attnsim_mine:Mine")
    make_schedule({"name": "flash2"}, "a test")
    with pytest.raises(InputError, match="no such schedule"):
        make_schedule({"name": "flash7"}, "a test")
    assert "attnsim_mine" not in sys.modules
    make_schedule({"name": "mine"}, "a test")
    assert "attnsim_mine" in sys.modules


BAD_PACKAGES = {
    "no module": ("mine = not_there:Mine", "mine", "ModuleNotFoundError"),
    "no class": ("mine = attnsim_mine:Mind", "mine", "AttributeError"),
    "no schedule": ("mine = attnsim_mine:Options", "mine", "is no class made of sim.schedules"),
    "no lowering": ("mine = attnsim_mine:Unfinished", "mine", "has no lower"),
    "says nothing": ("mine = attnsim_mine:Silent", "mine", "does not say its summary and source"),
    "one of attnsim's": ("flash2 = attnsim_mine:Mine", "flash2", "attnsim has one of that name"),
}


@pytest.mark.parametrize("case", BAD_PACKAGES)
def test_a_package_that_cannot_be_used_is_one_line(installed, capsys, monkeypatch, case):
    entry, name, problem = BAD_PACKAGES[case]
    silent = "class Silent(base.Schedule):\n    def lower(self, w, hw): return []\n"
    installed("attnsim_mine", MINE + silent, entry)
    tables = {"workload": WORKLOAD, "hardware": "t4", "schedule": name}
    with pytest.raises(InputError, match=problem) as raised:
        sim.simulate(**tables)
    assert str(raised.value).startswith(f'package attnsim_mine: schedule "{name}"')
    code, out, line = attnsim(capsys, monkeypatch, "schedules")
    assert (code, out, line) == (2, "", f"attnsim: {raised.value}\n")
    assert sim.simulate(**{**tables, "schedule": "naive"})[0].status == "ok"


def test_two_packages_that_offer_the_same_name_are_both_named(installed):
    installed("attnsim_mine", MINE, "mine = attnsim_mine:Mine")
    installed("attnsim_yours", MINE, "mine = attnsim_yours:Mine")
    with pytest.raises(InputError, match=r"packages attnsim_\w+ and attnsim_\w+: each has a"):
        make_schedule({"name": "mine"}, "a test")


def test_the_command_line_starts_without_looking_for_packages():
    program = (
        "import sys; from sim.cli.commands import app\n"
        "print({'sim.schedules', 'importlib.metadata'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.strip() == "set()", ran.stdout + ran.stderr
