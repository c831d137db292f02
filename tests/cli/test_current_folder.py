"""A command runs no code from the folder it is started in, nor do the processes it starts."""

import os

import pytest

from sim.runs.workers import processes
from tests.support.commands import attnsim, scenario
from tests.support.tables_of_figures import write

# What attnsim, its workers and the standard library's own start of processes import by name.
NAMES = (
    *("dask", "numba", "numpy", "pydantic", "scipy", "sim", "simpy", "tomli_w", "validate"),
    *("_strptime", "logging", "pickle", "random", "selectors", "socket", "struct", "tempfile"),
)
SWEEP = ("sweep", "mine.toml", "--store", "store", "--workers", "1")
COMMANDS = (
    SWEEP,
    (*SWEEP, "--dask", "nonsense://"),
    ("validate", "compare", "figures.csv"),
    ("calibrate", "figures.csv", "--profile", "h100-sxm", "--out", "mine_h100.toml"),
)


@pytest.fixture
def hostile(tmp_path):
    """A scenario and a table of figures, among modules that leave a file if they are run."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("open(__file__ + '.ran', 'w').close()\n")
    scenario(tmp_path, sweep='"workload.seq_len" = [256, 512]')
    write(tmp_path / "figures.csv", {"split": "fit"})
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_module_of_the_current_folder_is_run(hostile, command):
    done = attnsim(*command, cwd=hostile)
    assert "Traceback" not in done.stderr, done.stderr
    assert not [path.name for path in hostile.glob("*.ran")]


def test_nor_does_a_file_of_settings_there_change_what_is_drawn(tmp_path):
    pictures = []
    for settings in ("", "figure.facecolor: red\nbackend: module://mine\n", "text.usetex: True\n"):
        if settings:
            (tmp_path / "matplotlibrc").write_text(settings)
        done = attnsim("run", scenario(tmp_path), "--out", "out", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        pictures.append((tmp_path / "out/time.png").read_bytes())
    assert pictures[0] == pictures[1] == pictures[2]
    (tmp_path / "matplotlibrc").write_bytes(b"\xff")
    done = attnsim("run", scenario(tmp_path), "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("attnsim: matplotlibrc: not a text file")


def test_the_environment_is_left_as_it_was(monkeypatch):
    for before in (None, "0"):
        if before is None:
            monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
        else:
            monkeypatch.setenv("PYTHONSAFEPATH", before)
        with processes(1) as workers:
            assert workers.executor.submit(os.getenv, "PYTHONSAFEPATH").result()
        assert os.environ.get("PYTHONSAFEPATH") == before
