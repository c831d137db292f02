"""An engine that remembers says what the engine itself says, and replays what it does not know."""

import pytest

from sim.device.run import REMEMBERED
from sim.engine.compiled import replay
from sim.engine.kept import Disk
from sim.engine.remembered import Remembered, values_of
from sim.inputs.hardware import load_profile
from sim.runs.answer import ScenarioAnswer
from sim.runs.job import run_scenario
from sim.runs.scenario import make_scenario
from sim.schedules import SCHEDULES
from sim.tile_program import chunk_tensors

H100 = load_profile("h100-sxm")
TABLES = {
    "workload": {"heads": 4, "head_dim": 64, "seq_len": 512},
    "hardware": {"profile": "h100-sxm"},
    "schedule": [{"name": "naive"}, {"name": "flash2"}, {"name": "flash1"}],
    "sweep": {"workload.seq_len": [256, 512]},
}


def kernels(seq_len=512):
    tables = {**TABLES, "sweep": {}, "workload": {**TABLES["workload"], "seq_len": seq_len}}
    (point,) = make_scenario(tables, "", "a test").points
    commands = SCHEDULES["naive"]().program(point.workload, H100)
    return [command.work for command in commands]


def ran(engine, of, *, times=1):
    """Every figure of the kernels' runs, one after the other on one L2, so many times over."""
    chunkings = chunk_tensors(of)
    l2 = engine.new_l2(chunkings, H100)
    runs = [
        engine.run_kernel(kernel, chunkings, H100, l2, "float16", lambda _: None)
        for kernel in of * times
    ]
    return [{name: array.tolist() for name, array in values_of(run).items()} for run in runs]


def test_what_is_remembered_is_what_the_engine_says():
    engine, of = Remembered(), kernels()
    truth = ran(replay, of)
    assert ran(engine, of) == truth
    replayed = engine.replayed
    assert ran(engine, of) == truth
    assert engine.replayed == replayed == len(of)


def test_an_l2_catches_up_before_what_is_not_known():
    engine, of = Remembered(), kernels()
    ran(engine, of[:-1])  # of another numbering of chunks: nothing of it may be taken for the same
    ran(engine, of)
    assert ran(engine, of, times=2) == ran(replay, of, times=2)


def test_another_process_finds_what_one_left_on_disk(tmp_path):
    of = kernels()
    truth = ran(Remembered(Disk(tmp_path / "kept.sqlite")), of)
    other = Remembered(Disk(tmp_path / "kept.sqlite"))
    assert ran(other, of) == truth
    assert other.replayed == 0


@pytest.mark.parametrize("damage", ["no database", "no arrays", "a bit"])
def test_a_damaged_file_is_as_if_there_were_none(tmp_path, damage):
    path, of = tmp_path / "kept.sqlite", kernels()
    disk = Disk(path)
    truth = ran(Remembered(disk), of)
    if damage == "no database":
        disk._db.close()
        path.write_bytes(b"not SQLite" * 1000)
    elif damage == "no arrays":
        with disk._db:
            disk._db.execute("UPDATE replays SET arrays = x'00'")
    else:
        rows = disk._db.execute("SELECT key, arrays FROM replays").fetchall()
        with disk._db:
            for key, arrays in rows:
                damaged = arrays[:-1] + bytes([arrays[-1] ^ 1])
                disk._db.execute("UPDATE replays SET arrays = ? WHERE key = ?", (damaged, key))
    other = Remembered(Disk(path))
    assert ran(other, of) == truth
    assert other.replayed == len(of)


def test_a_place_that_cannot_be_written_is_as_if_there_were_none(tmp_path):
    (tmp_path / "file").touch()
    engine = Remembered(Disk(tmp_path / "file" / "kept.sqlite"))
    assert ran(engine, kernels()) == ran(replay, kernels())


def test_a_full_disk_keeps_the_last_used(tmp_path):
    of = kernels()
    disk = Disk(tmp_path / "kept.sqlite", most_bytes=100_000)
    ran(Remembered(disk), of)
    (held,) = disk._db.execute("SELECT sum(size) FROM replays").fetchone()
    assert 0 < held <= 100_000


def test_three_threads_come_to_the_same_bytes_as_one():
    def answer(threads):
        REMEMBERED.forget()
        scenario = make_scenario(TABLES, "", "a test")
        return ScenarioAnswer("", list(run_scenario(scenario, threads=threads))).json()

    assert answer(1) == answer(3)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_progress_raises_ends_the_run(threads):
    def enough(_title, done, _of):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_scenario(make_scenario(TABLES, "", "a test"), "replay", enough, threads))
