"""A full disk: a file is written whole or not at all, and what was there stays."""

from contextlib import suppress

import pytest

from sim import simulate
from sim.explore.search import Search
from sim.inputs.files import InputError, save_texts, whole_file
from sim.inputs.kept import write_whole
from sim.report.frame import export_frame
from sim.report.search import save_search
from sim.runs.scenario import ScenarioText
from sim.runs.store import Entry, Store
from tests.support.commands import called, scenario
from tests.support.full_disk import PAGE_BYTES, files_of_at_most
from tests.support.tables_of_figures import write

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


# Of a model, and of measurements; a table of one figure is beside the folder.
OTHERS = {
    "a fit": (
        ("fit", "--model", "gpt-2", "--context", "512", "--hardware", "t4", "--out", "."),
        "results.json",
    ),
    "a comparison": (
        ("validate", "compare", "../figures.csv", "--profile", "h100-sxm", "--out", "."),
        "comparison.json",
    ),
    "exported records": (("run", "../mine.toml", "--export", "all.csv"), "all.csv"),
}


@pytest.mark.parametrize("writer", OTHERS)
def test_so_is_what_other_commands_leave(tmp_path, writer):
    command, left = OTHERS[writer]
    write(tmp_path / "figures.csv", {})
    scenario(tmp_path)
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / left).write_text("kept")
    with files_of_at_most(50):
        done = called(*command, cwd=folder)
    assert done.returncode == 2
    assert f"{left}: cannot be written: " in done.stderr.splitlines()[-1]
    assert {path.name: path.read_text() for path in folder.iterdir()} == {left: "kept"}


def test_of_several_files_those_that_had_room_are_whole(tmp_path):
    asked, whole, full = scenario(tmp_path), tmp_path / "whole", tmp_path / "full"
    assert called("run", asked, "--out", whole).returncode == 0
    sizes = sorted(path.stat().st_size for path in whole.iterdir())
    with files_of_at_most(sizes[len(sizes) // 2]):
        done = called("run", asked, "--out", full)
    assert done.returncode == 2
    assert ": cannot be written: " in done.stderr.splitlines()[-1]
    for path in full.iterdir():
        assert path.read_bytes() == (whole / path.name).read_bytes()


@pytest.mark.parametrize("size", [50, 3000])
def test_of_files_that_belong_together_all_are_written_or_none(tmp_path, size):
    (tmp_path / "b.toml").write_text("kept")
    with files_of_at_most(size), pytest.raises(InputError, match=r"c\.toml: cannot be written: "):
        save_texts({"a.toml": "a", "b.toml": "b", "c.toml": 3001 * "c"}, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b.toml": "kept"}


def test_a_beginning_can_be_made_again_when_the_disk_has_room(tmp_path):
    with files_of_at_most(50):
        done = called("init", "mine", cwd=tmp_path)
    assert done.returncode == 2
    assert ": cannot be written: " in done.stderr
    assert not [path for path in (tmp_path / "mine").rglob("*") if path.is_file()]
    assert called("init", "mine", cwd=tmp_path).returncode == 0


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


def test_of_what_is_compiled_no_part_is_left(tmp_path):
    with files_of_at_most(50):
        write_whole(tmp_path / "engine.o", b"x" * 51)
    assert not [*tmp_path.iterdir()]


def test_two_who_write_a_file_at_once_leave_what_one_of_them_wrote(tmp_path):
    path = tmp_path / "results.json"
    with whole_file(path) as one, whole_file(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["one"]


def test_a_calibrated_profile_is_not_lost_to_its_next_calibration(tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "mine.toml").write_text("kept")
    rows = write(tmp_path / "figures.csv", {"split": "fit"})
    with files_of_at_most(50):
        done = called("calibrate", rows, "--profile", "h100-sxm", "--out", folder / "mine.toml")
    assert done.returncode == 2
    assert "mine.toml: cannot be written: " in done.stderr
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"mine.toml": "kept"}


def filled(path, entries, took):
    """Put them in a store one by one; those that it took are kept in `took`."""
    store = Store(path)
    for entry in entries:
        store.put([entry])
        took.append(entry)


@pytest.mark.parametrize("pages", range(50))
def test_a_store_has_all_that_it_took_before_the_disk_was_full(tmp_path, pages):
    path, took = tmp_path / "store", []
    entries = [Entry(f"point {n}", str(n) * 3000) for n in range(25)]
    with files_of_at_most(pages * PAGE_BYTES), pytest.raises(InputError) as refused:
        filled(path, entries, took)
    assert len(str(refused.value).splitlines()) == 1
    again = Store(path)
    assert [again.get(entry.key, "") for entry in took] == [entry.record for entry in took]
    again.put(entries)
    assert [again.get(entry.key, "") for entry in entries] == [entry.record for entry in entries]
    again.close()


SEARCHED = {
    "workload": {"heads": 1, "head_dim": 64, "seq_len": 64},
    "hardware": {"profile": "t4"},
    "schedule": [{"name": "flash2"}],
    "search": {
        "objectives": ["time"],
        "trials": 3,
        "space": {"hardware.l2.capacity": ["4 MiB", "5 MiB", "6 MiB"]},
    },
}


def as_long_as_they_are(self, designs):
    return [(float(len(str(design))),) for design in designs]


@pytest.mark.parametrize("pages", range(0, 28, 3))
def test_a_search_goes_on_when_the_disk_has_room_again(tmp_path, monkeypatch, pages):
    monkeypatch.setattr(Search, "evaluate", as_long_as_they_are)
    search = Search(ScenarioText(SEARCHED, "searched", "a test", tmp_path))
    with files_of_at_most(pages * PAGE_BYTES), suppress(InputError):
        search.run(tmp_path)
    assert len(search.run(tmp_path).trials) == 3


def test_the_profiles_of_the_last_search_are_there_until_the_next_ones_are(tmp_path, monkeypatch):
    monkeypatch.setattr(Search, "evaluate", as_long_as_they_are)
    answer = Search(ScenarioText(SEARCHED, "searched", "a test", tmp_path)).run(tmp_path)
    monkeypatch.setattr("sim.report.search.save_figure", lambda *_: None)
    monkeypatch.setattr("sim.report.search.save_text", lambda *_: None)
    old = tmp_path / "front" / "trial_99.toml"
    old.parent.mkdir()
    old.write_text("kept")
    with files_of_at_most(50), pytest.raises(InputError, match="cannot be written: "):
        save_search(answer, tmp_path)
    assert [path.read_text() for path in old.parent.iterdir()] == ["kept"]
    save_search(answer, tmp_path)
    assert {path.name for path in old.parent.iterdir()} == set(answer.profiles)
