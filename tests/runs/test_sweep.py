"""Sweeps: that no point is lost or run twice, and that they say what `run` says."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

import sim
import tests.support.gate as gate_program
from sim.inputs.files import InputError
from sim.runs.record import Record
from sim.runs.scenario import ScenarioText
from sim.runs.store import Store
from sim.runs.sweep import sweep_points
from sim.runs.workers import Workers, processes
from tests.support.commands import assert_one_line, attnsim, called, scenario
from tests.support.gate import Gate
from tests.support.waiting import GUARD_S, until

TABLES = {
    "workload": {"heads": 4, "head_dim": 64, "seq_len": 1024, "causal": True},
    "hardware": {"profile": "h100-sxm"},
    "schedule": [{"name": "flash2"}],
}
SEQ = "workload.seq_len"


def swept(tables, store, engine="replay", replays=None):
    with processes(1, replays) as workers:
        text = ScenarioText(tables, "mine", "mine.toml", None)
        return sweep_points(text, store, workers, engine)


def bare(record):
    return replace(record, timeline=[], memory=[])


def test_records_are_those_of_run_to_the_bit_and_asked_twice_are_free():
    tables = {
        **TABLES,
        "schedule": [{"name": "naive"}, {"name": "flash2"}],
        "sweep": {SEQ: [500, 1024, 65_536], "hardware.hbm.bandwidth": ["1 TB/s", "3.3 TB/s"]},
        "hardware": {"profile": "t4"},
    }
    store = Store()
    first, again = swept(tables, store), swept(tables, store)
    expected = [bare(record) for record in sim.simulate(**tables)]
    assert {record.status for record in expected} == {"ok", "out of memory"}
    assert first.records == again.records == expected
    assert (first.replayed, again.replayed) == (12, 0)


def test_the_longest_points_go_first_and_records_come_as_asked():
    """Else the last worker would be at the longest while the others have nothing left."""
    lengths, begun = [256, 2048, 512, 1024], []

    class Here(Executor):
        def submit(self, work, chunk, *how):
            begun.extend(task.case.point.workload.seq_q for task in chunk)
            done = Future()
            done.set_result(work(chunk, *how))
            return done

    text = ScenarioText({**TABLES, "sweep": {SEQ: lengths}}, "mine", "mine.toml", None)
    records = sweep_points(text, Store(), Workers(Here(), lambda: 1)).records
    assert [*dict.fromkeys(begun)] == sorted(lengths, reverse=True)
    assert [record.workload["seq_q"] for record in records] == lengths


def test_workers_keep_replays_and_find_those_of_others(tmp_path):
    first = swept(TABLES, Store(), replays=tmp_path)
    kept = sqlite3.connect(tmp_path / "replays.sqlite")
    with kept:
        count = kept.execute("UPDATE replays SET used_s = 0").rowcount
    assert count > 0
    assert swept(TABLES, Store(), replays=tmp_path).records == first.records
    used = kept.execute("SELECT used_s > 0 FROM replays").fetchall()
    assert used == [(1,)] * count


def test_a_record_says_what_its_own_scenario_asked_whoever_replayed_it():
    schedule = [{"name": "flash2", "stages": 2, "label": "mine"}]
    first = {**TABLES, "hardware": {"profile": "h100-sxm", "hbm": {"bandwidth": "2 TB/s"}}}
    other = {**TABLES, "schedule": schedule, "sweep": {"hardware.hbm.bandwidth": ["2000 GB/s"]}}
    first["schedule"] = [{"name": "flash2", "stages": 2}]
    store = Store()
    (one,), again = swept(first, store).records, swept(other, store)
    (same,) = again.records
    assert again.replayed == 0
    assert (one.options, same.options) == ({"name": "flash2", "stages": 2},) * 2
    assert one.overrides == {"hbm.bandwidth": "2 TB/s"}
    assert same.overrides == {"hbm.bandwidth": "2000 GB/s"}
    assert same.settings == {**same.point, "schedule.name": "flash2", "schedule.flash2.stages": 2}
    assert same.time_s == one.time_s


def test_what_cannot_be_has_its_reason_and_the_rest_goes_on():
    tables = {
        **TABLES,
        "schedule": [{"name": "flash2"}, {"name": "flash2", "label": "fixed", "tile": {}}],
        "sweep": {
            "workload.kv_heads": [3, 4],
            "schedule.flash2.tile": [{"q": 128, "kv": 64}, {"q": 1024, "kv": 1024}, {"q": 7}],
        },
        "limits": {"tile_steps": 200},
    }
    tables["schedule"].append({"name": "flash_decoding", "label": "decoding"})
    store = Store()
    records = swept(tables, store).records
    reasons = {(record.point["workload.kv_heads"], record.schedule): record for record in records}
    assert len(records) == 18
    assert all("kv_heads = 3" in r.reason for r in records if r.point["workload.kv_heads"] == 3)
    assert reasons[4, "flash2"].status == "failed"
    assert reasons[4, "flash2"].options == {"name": "flash2", "tile": {"q": 7}}
    assert reasons[4, "decoding"].options == {"name": "flash_decoding"}
    small = [r for r in records if r.point["workload.kv_heads"] == 4]
    assert ["SRAM" in (r.reason or "") for r in small[3:5]] == [True, True]
    assert ["tile.q = 7" in (r.reason or "") for r in small[6:9]] == [True, True, False]
    assert ["limits.tile_steps" in (r.reason or "") for r in small[:2]] == [True, True]
    # Other limits ask again for what failed for them, and for nothing else.
    del tables["limits"]
    later = swept(tables, store)
    assert [r.status for r in later.records if r.point["workload.kv_heads"] == 4][:2] == ["ok"] * 2
    limited = {r.workload["heads"] for r in records if "limits." in (r.reason or "")}
    assert limited == {4}
    asked_again = {r.schedule for r in records if "limits." in (r.reason or "")}
    assert later.replayed <= 2 + len(asked_again)


def test_a_sweep_in_which_nothing_can_be_is_one_line_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = called("sweep", scenario(tmp_path, sweep='"workload.seqlen" = [1, 2]'))
    assert_one_line(done, "mine.toml", "workload.seqlen", "did you mean 'seq_len'?")


BAD_OPTIONS = {
    "export": (["--export", "a.xlsx"], ["--export a.xlsx", ".parquet or .csv"]),
    "folder": (["--export", "no/a.csv"], ["--export no/a.csv", "writable folder"]),
    "both": (["--workers", "2", "--dask", "tcp://x:1"], ["--workers", "--dask"]),
    "store": (["--store", "mine.toml"], ["mine.toml: not a store of sweeps"]),
    "other database": (["--store", "other.sqlite"], ["other.sqlite: not a store of sweeps"]),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_one_line(case, tmp_path, monkeypatch):
    options, parts = BAD_OPTIONS[case]
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE mine (x)")
    monkeypatch.chdir(tmp_path)
    scenario(tmp_path)
    assert_one_line(called("sweep", "mine.toml", *options), *parts)


# Stopped in the middle

POINTS = 90
LONG = f'"hardware.hbm.bandwidth" = {{ from = "1 TB/s", to = "4 TB/s", steps = {POINTS} }}'


def long_sweep(folder: Path) -> Path:
    return scenario(folder, workload="heads = 32\nhead_dim = 64\nseq_len = 4096", sweep=LONG)


@pytest.fixture
def gate(tmp_path) -> Iterator[Gate]:
    """What workers need to be let through for each point of a sweep."""
    made = Gate(tmp_path / "gate")
    yield made
    made.close()


def started(path: Path, gate: Gate) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, gate_program.__file__, "sweep", path, "--workers", "2"],
        cwd=path.parent,
        env=os.environ | gate.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stored(folder: Path) -> tuple[int, int]:
    """How many points a store has, and how many were ever written (one replaced counts twice)."""
    try:
        with sqlite3.connect(f"file:{folder / 'sweeps.sqlite'}?mode=ro", uri=True) as db:
            return db.execute("SELECT count(*), ifnull(max(rowid), 0) FROM records").fetchone()
    except sqlite3.OperationalError:  # not there yet
        return 0, 0


def of_session(session: int) -> list[int]:
    """The processes that a sweep started, itself included, but for those that are dead."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory) -> list[Record]:
    """What the long sweep comes to."""
    return sim.simulate(long_sweep(tmp_path_factory.mktemp("unstopped")))


def assert_each_once(folder: Path, records: list[Record]) -> None:
    assert stored(folder) == (POINTS, POINTS)
    exported = pd.read_csv(folder / "a.csv")
    assert list(exported.time_s) == [record.time_s for record in records]
    with sqlite3.connect(folder / "sweeps.sqlite") as db:
        texts = [text for (text,) in db.execute("SELECT record FROM records")]
    ours = {json.dumps(asdict(bare(record))) for record in records}
    assert set(texts) == ours


def killed(sweep: subprocess.Popen[str], worker: int) -> None:
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.communicate(timeout=GUARD_S)


def interrupted(sweep: subprocess.Popen[str], worker: int) -> None:
    os.killpg(sweep.pid, signal.SIGINT)  # Ctrl-C, as a terminal has it
    out, err = sweep.communicate(timeout=GUARD_S)
    assert (sweep.returncode, out) == (130, "")
    where = "sweeps.sqlite"
    assert err == f"attnsim: interrupted; what is finished is in {where}: run again to go on\n"


def robbed_of_a_worker(sweep: subprocess.Popen[str], worker: int) -> None:
    os.kill(worker, signal.SIGKILL)
    out, err = sweep.communicate(timeout=GUARD_S)
    assert (sweep.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "a worker process died" in err
    assert "run again to go on" in err


def test_a_sweep_stopped_again_and_again_resumes_without_losing_or_repeating_a_point(
    tmp_path, unstopped
):
    """In each way once, in any order; benchmarks/sweep.py --kills 20 kills one twenty times.

    Some points are let through and the sweep is stopped when the first of them is stored: of the
    others any number may be by then, and the last ones never begin.
    """
    path, moments = long_sweep(tmp_path), random.Random(int.from_bytes(os.urandom(4)))
    had = 0
    for stopped in moments.sample([killed, interrupted, robbed_of_a_worker], 3):
        gate = Gate(tmp_path / stopped.__name__)
        sweep = started(path, gate)
        until(lambda sweep=sweep, gate=gate: sweep.poll() is not None or len(set(gate.begun)) == 2)
        gate.let(more := moments.randrange(1, POINTS // 4))
        until(lambda had=had, sweep=sweep: sweep.poll() is not None or stored(tmp_path)[0] > had)
        stopped(sweep, gate.begun[-1])
        until(lambda sweep=sweep: not of_session(sweep.pid))  # nor do workers outlive it
        gate.close()
        has, written = stored(tmp_path)
        assert had < has == written <= had + more
        had = has
    assert had < POINTS
    done = attnsim("sweep", path, "--export", "a.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{POINTS - had} of them replayed now" in done.stdout
    assert_each_once(tmp_path, unstopped)


def test_a_dask_worker_killed_in_mid_sweep_loses_nothing(tmp_path, unstopped, gate, monkeypatch):
    """Both workers wait in the middle of a point when one is killed; then all are let through."""
    import dask
    from dask.distributed import LocalCluster

    def kill_one(cluster: LocalCluster) -> None:
        try:
            until(lambda: len(set(gate.begun)) == 2)
            gate.let(POINTS // 8)
            until(lambda: stored(tmp_path)[0] == POINTS // 8 and len(gate.begun) == POINTS // 8 + 2)
            os.kill(cluster.workers[0].pid, signal.SIGKILL)
        finally:
            gate.let(2 * POINTS)

    path = long_sweep(tmp_path)
    monkeypatch.setattr("sim.runs.workers.CLUSTER_S", GUARD_S)
    patient = {f"distributed.comm.timeouts.{what}": GUARD_S for what in ("connect", "tcp")}
    with (
        dask.config.set(patient),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            preload=[gate_program.__name__],
            env=gate.environment,
        ) as cluster,
        ThreadPoolExecutor(1) as pool,
    ):
        killing = pool.submit(kill_one, cluster)
        frame = sim.sweep(path, dask=cluster.scheduler_address, store=tmp_path / "sweeps.sqlite")
        killing.result()
    frame.to_csv(tmp_path / "a.csv")
    assert_each_once(tmp_path, unstopped)


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr("sim.runs.workers.CLUSTER_S", 0.3)
    with pytest.raises(InputError, match=r"--dask tcp://127\.0\.0\.1:9: no cluster with workers"):
        sim.sweep(**TABLES, dask="tcp://127.0.0.1:9")


def test_without_dask_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    done = called("sweep", scenario(tmp_path), "--dask", "tcp://localhost:1")
    assert_one_line(done, "--dask needs dask.distributed", "pip install 'attnsim[cluster]'")


def test_a_run_is_exported_as_a_sweep_is(tmp_path):
    path = scenario(tmp_path, sweep='"workload.seq_len" = [64, 128]')
    for command in ("run", "sweep"):
        done = called(command, path, "--export", f"{command}.csv", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    of_run, of_sweep = (pd.read_csv(tmp_path / f"{command}.csv") for command in ("run", "sweep"))
    assert len(of_run) >= 2
    pd.testing.assert_frame_equal(of_run, of_sweep)
    assert_one_line(
        called("run", path, "--export", "a.xlsx"), "--export a.xlsx", ".parquet or .csv"
    )
