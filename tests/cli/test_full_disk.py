"""A full disk: a file is written whole or not at all, and what was there stays."""

import pytest

from sim import simulate
from sim.inputs.files import InputError
from sim.report.frame import export_frame
from tests.support.commands import called, scenario
from tests.support.full_disk import files_of_at_most

# What is asked, and the file that it leaves.
WRITERS = {
    "results": (("run", "--out", "."), "results.json"),
    "a trace": (("run", "--trace", "trace.json"), "trace.json"),
    "a packed trace": (("run", "--trace", "trace.json.gz"), "trace.json.gz"),
    "a page": (("run", "--report", "page.html"), "page.html"),
    "slopes": (("explore sensitivity", "--out", "."), "results.json"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_is_written_whole_or_not_at_all(tmp_path, writer):
    (command, option, given), left = WRITERS[writer]
    asked = scenario(tmp_path)
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / left).write_text("kept")
    with files_of_at_most(50):
        done = called(*command.split(), asked, option, given, cwd=folder)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"{left}: cannot be written: " in done.stderr
    assert {path.name: path.read_text() for path in folder.iterdir()} == {left: "kept"}


@pytest.mark.parametrize("name", ["all.csv", "all.parquet"])
def test_so_is_a_table_of_records(tmp_path, name):
    workload = {"heads": 1, "head_dim": 64, "seq_len": 64}
    records = simulate(workload=workload, hardware="h100-sxm", schedule="flash2")
    kept = tmp_path / name
    kept.write_text("kept")
    with files_of_at_most(50), pytest.raises(InputError, match=f"{name}: cannot be written: "):
        export_frame(records, kept)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]
    export_frame(records, kept)
    assert kept.stat().st_size > 50
