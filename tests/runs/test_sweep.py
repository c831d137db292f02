"""Sweeps: what they vary, that no point is lost or run twice, and that they say what `run` says."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sim
from sim.cli.app import main
from sim.inputs.axes import design_of
from sim.inputs.files import InputError
from sim.report.frame import export_frame, frame_of
from sim.runs.address import address
from sim.runs.record import Record
from sim.runs.scenario import ScenarioText, make_scenario, read_scenario
from sim.runs.store import Store
from sim.runs.sweep import sweep_points
from sim.runs.workers import processes
from tests.cli.test_cli import ATTNSIM, assert_one_line, attnsim, scenario

TABLES = {
    "workload": {"heads": 4, "head_dim": 64, "seq_len": 1024, "causal": True},
    "hardware": {"profile": "h100-sxm"},
    "schedule": [{"name": "flash2"}],
}
SEQ = "workload.seq_len"


def values_of(sweep):
    return list(design_of(sweep, "mine.toml"))


# What a sweep varies


def test_lists_and_ranges_make_a_grid_whose_last_key_varies_fastest():
    points = values_of({"a.x": [1, 2], "a.y": {"from": 10, "to": 30, "steps": 3}})
    assert [tuple(p.values()) for p in points] == [
        (1, 10), (1, 20), (1, 30), (2, 10), (2, 20), (2, 30)
    ]  # fmt: skip


@given(st.integers(1, 10**6), st.integers(2, 1000), st.integers(2, 40), st.booleans())
def test_ranges_keep_their_ends_and_are_even(first, ratio, steps, log):
    last = first * ratio
    whole = [p[SEQ] for p in values_of({SEQ: bounds(first, last, steps, log)})]
    spaced = (np.geomspace if log else np.linspace)(first, last, steps)
    assert (whole[0], whole[-1]) == (first, last)
    assert whole == list(dict.fromkeys(whole))
    assert set(whole) <= {v for x in spaced for v in (int(x), int(x) + 1, first, last)}
    text = values_of({SEQ: bounds(f"{first} MB", f"{last} MB", steps, log)})
    assert [float(p[SEQ].removesuffix(" MB")) for p in text] == pytest.approx(
        list(spaced), rel=1e-5
    )


@given(st.integers(-1000, 1000), st.integers(-1000, 1000), st.integers(1, 300))
def test_steps_of_a_size_start_at_the_first_end_and_stop_at_the_other_or_short_of_it(a, b, step):
    ahead = 1 if a <= b else -1
    expected = list(range(a, b + ahead, ahead * step))
    assert [p[SEQ] for p in values_of({SEQ: {"from": a, "to": b, "step": step}})] == expected
    text = {"from": f"{a / 10} MB", "to": f"{b / 10} MB", "step": f"{step / 10} MB"}
    tenths = [float(p[SEQ].removesuffix(" MB")) * 10 for p in values_of({SEQ: text})]
    assert tenths == pytest.approx(expected)


def bounds(first, last, steps, log):
    return {"from": first, "to": last, "steps": steps, "log": log}


@pytest.mark.parametrize("method", ["sobol", "latin_hypercube"])
def test_samples_fill_every_stratum_once(method):
    sample = {"method": method, "points": 64, "seed": 3}
    sample["bounds"] = {
        "a.x": {"from": 0.0, "to": 1.0},
        "a.y": {"from": 1.0, "to": 1e6, "log": True},
    }
    points = values_of({"sample": sample})
    assert points == values_of({"sample": sample})
    assert points != values_of({"sample": {**sample, "seed": 4}})
    for shares in (
        [p["a.x"] for p in points],
        [np.log(p["a.y"]) / np.log(1e6) for p in points],
    ):
        assert sorted(int(share * 64 - 1e-4) for share in shares) == list(range(64))


def test_the_sweep_that_the_guide_shows_is_one():
    guide = (Path(__file__).parents[2] / "docs/cluster.md").read_text(encoding="utf-8")
    shown = guide.partition("```toml\n")[2].partition("```")[0]
    points = values_of(tomllib.loads(shown)["sweep"])
    assert len(points) == 2 * 8 * 7 * 256
    assert all(64 <= point["hardware.sm.count"] <= 256 for point in points)


def test_samples_of_whole_numbers_and_steps_are_of_all_of_them_alike():
    sample = {"method": "sobol", "points": 32}
    sample["bounds"] = {
        "a.x": {"from": 1, "to": 4},
        "a.y": {"from": "1 MB", "to": "8 MB", "steps": 8},
    }
    points = values_of({"sample": sample})
    assert Counter(p["a.x"] for p in points) == dict.fromkeys(range(1, 5), 8)
    assert Counter(p["a.y"] for p in points) == {f"{n} MB": 4 for n in range(1, 9)}


def test_samples_choose_from_lists_and_go_with_a_grid():
    sample = {"method": "sobol", "points": 6, "bounds": {"a.x": ["p", "q"]}}
    points = values_of({"a.z": [1, 2], "sample": sample})
    assert len(points) == 12
    assert {(p["a.z"], p["a.x"]) for p in points} == {(1, "p"), (1, "q"), (2, "p"), (2, "q")}


BAD_SWEEPS = {
    "one step": ({SEQ: {"from": 1, "to": 2, "steps": 1}}, ["sweep.workload.seq_len.steps = 1"]),
    "log of zero": (
        {SEQ: {"from": 0, "to": 2, "steps": 3, "log": True}},
        ["sweep.workload.seq_len", "above zero"],
    ),
    "two units": ({"a.x": {"from": "1 MB", "to": "2 GB", "steps": 3}}, ["the same unit"]),
    "no number": ({"a.x": {"from": "small", "to": "large", "steps": 3}}, ['"small"']),
    "infinite": ({"a.x": {"from": 1.0, "to": float("inf"), "steps": 3}}, ["finite"]),
    "no steps": ({SEQ: {"from": 1, "to": 2}}, ["seq_len: steps or step: missing"]),
    "steps and step": ({SEQ: {"from": 1, "to": 2, "steps": 2, "step": 1}}, ["neither with steps"]),
    "log and step": ({SEQ: {"from": 1, "to": 2, "step": 1, "log": True}}, ["nor with log"]),
    "backward step": ({SEQ: {"from": 1, "to": 2, "step": -1}}, ["step must be above zero"]),
    "unit of step": ({"a.x": {"from": "1 MB", "to": "2 MB", "step": 1}}, ["the same unit"]),
    "true": ({SEQ: {"from": True, "to": 2, "steps": 2}}, ["a number was expected"]),
    "old spelling": ({SEQ: {"low": 1, "high": 2, "steps": 2}}, ["spelt from and to"]),
    "no table": ({"sample": 3}, ["sweep.sample = 3: a table"]),
    "misspelt": ({SEQ: {"from": 1, "to": 2, "steps": 3, "lg": True}}, ["unknown key"]),
    "neither": ({SEQ: 4096}, ["a list of values or a range"]),
    "method": (
        {"sample": {"method": "halton", "points": 4, "bounds": {SEQ: [1]}}},
        ["sweep.sample.method", "'sobol' or 'latin_hypercube'"],
    ),
    "twice": (
        {SEQ: [1], "sample": {"method": "sobol", "points": 4, "bounds": {SEQ: [1]}}},
        ["swept and sampled"],
    ),
}


@pytest.mark.parametrize("case", BAD_SWEEPS)
def test_a_bad_sweep_is_one_line(case):
    sweep, parts = BAD_SWEEPS[case]
    with pytest.raises(InputError) as raised:
        values_of(sweep)
    message = str(raised.value)
    assert "\n" not in message
    for part in ("mine.toml: sweep", *parts):
        assert part in message


# What comes out


def swept(tables, store, engine="replay"):
    with processes(1) as workers:
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


def in_process(monkeypatch, capsys, folder, *options):
    """`attnsim sweep` of a folder's scenario, without starting another Python."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["attnsim", "sweep", "mine.toml", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    return subprocess.CompletedProcess(sys.argv, ended.value.code, *capsys.readouterr())


def test_a_sweep_in_which_nothing_can_be_is_one_line_and_runs_nothing(
    tmp_path, monkeypatch, capsys
):
    scenario(tmp_path, sweep='"workload.seqlen" = [1, 2]')
    done = in_process(monkeypatch, capsys, tmp_path)
    assert_one_line(done, "mine.toml", "workload.seqlen", "did you mean 'seq_len'?")


def address_of(folder=None, engine="replay", **changes):
    scenario = make_scenario({**TABLES, **changes}, "x", "x", folder)
    point = scenario.points[0]
    return address(point, point.schedules[0], engine, scenario.limits)


def test_an_address_tells_figures_apart_and_nothing_else(tmp_path):
    (tmp_path / "twin.toml").write_text('title = "Other name"\nextends = "h100-sxm"\n')
    (tmp_path / "other.toml").write_text(
        'extends = "h100-sxm"\n[l2]\ncapacity = "51 MB"\nsource = "x"\n'
    )
    same = [
        address_of(),
        address_of(schedule=[{"name": "flash2", "label": "mine"}]),
        address_of(tmp_path, hardware={"profile": "twin.toml"}),
        address_of(sweep={SEQ: [1024]}),
        address_of(limits={"tile_steps": 7}),
    ]
    differing = [
        address_of(tmp_path, hardware={"profile": "other.toml"}),
        address_of(engine="reference"),
        address_of(limits={"exact": True}),
        address_of(limits={"replayed_steps": 10**6}),
        address_of(schedule=[{"name": "flash2", "stages": 3}]),
        address_of(workload={**TABLES["workload"], "batch": 2}),
    ]
    assert len({*same}) == 1
    assert len({*same, *differing}) == 1 + len(differing)


def test_a_file_that_a_schedule_reads_counts_by_its_content(tmp_path):
    def of(mask):
        np.savez(tmp_path / "mask.npz", mask)
        return address_of(tmp_path, schedule=[{"name": "block_sparse", "mask_file": "mask.npz"}])

    assert of(np.eye(8)) == of(np.eye(8)) != of(np.ones((8, 8)))


def test_the_frame_has_a_row_a_record_and_exports_as_it_is(tmp_path):
    tables = {**TABLES, "hardware": {"profile": "t4"}, "schedule": [{"name": "naive"}]}
    tables["sweep"] = {SEQ: [512, 100_000], "workload.causal": [True, False]}
    tables["workload"] = {**TABLES["workload"], "heads": 16}
    frame = sim.sweep(**tables, workers=1)
    records = sim.simulate(**tables)
    assert list(frame.status) == ["ok", "ok", "out of memory", "out of memory"]
    for row, record in zip(frame.to_dict("records"), records, strict=True):
        assert row["workload.seq_len"] == record.point[SEQ]
        if record.status == "ok":
            assert row["hbm_read_bytes"] == record.hbm_read_bytes
            assert row["time_s"] == record.time_s
            assert row["share.hbm"] == record.bottleneck_shares["hbm"]
            assert row["schedule.name"] == row["schedule"] == "naive"
    assert str(frame.hbm_read_bytes.dtype) == "Int64"
    for name, read in (("a.parquet", pd.read_parquet), ("a.csv", pd.read_csv)):
        export_frame([bare(record) for record in records], tmp_path / name)
        exported = read(tmp_path / name)
        assert list(exported.columns) == list(frame.columns)
        assert list(exported.hbm_read_bytes.dropna()) == list(frame.hbm_read_bytes.dropna())
        assert list(exported.time_s.dropna()) == list(frame.time_s.dropna())


BAD_OPTIONS = {
    "export": (["--export", "a.xlsx"], ["--export a.xlsx", ".parquet or .csv"]),
    "folder": (["--export", "no/a.csv"], ["--export no/a.csv", "writable folder"]),
    "both": (["--workers", "2", "--dask", "tcp://x:1"], ["--workers", "--dask"]),
    "store": (["--store", "mine.toml"], ["mine.toml: not a store of sweeps"]),
    "other database": (["--store", "other.sqlite"], ["other.sqlite: not a store of sweeps"]),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_one_line(case, tmp_path, monkeypatch, capsys):
    options, parts = BAD_OPTIONS[case]
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE mine (x)")
    scenario(tmp_path)
    assert_one_line(in_process(monkeypatch, capsys, tmp_path, *options), *parts)


# Stopped in the middle

POINTS = 90
LONG = f'"hardware.hbm.bandwidth" = {{ from = "1 TB/s", to = "4 TB/s", steps = {POINTS} }}'


def long_sweep(folder: Path) -> Path:
    return scenario(folder, workload="heads = 32\nhead_dim = 64\nseq_len = 4096", sweep=LONG)


def started(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [ATTNSIM, "sweep", path, "--workers", "2"],
        cwd=path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stored(folder: Path) -> tuple[int, int]:
    """How many points a store has, and how many were ever written (one replaced counts twice)."""
    try:
        with sqlite3.connect(f"file:{folder / 'sweeps.sqlite'}?mode=ro", uri=True) as db:
            return db.execute("SELECT count(*), ifnull(max(rowid), 0) FROM points").fetchone()
    except sqlite3.OperationalError:  # not there yet
        return 0, 0


def until(condition, timeout_s=60.0):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.01)


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
        texts = [text for (text,) in db.execute("SELECT record FROM points")]
    ours = {json.dumps(asdict(bare(record))) for record in records}
    assert set(texts) == ours


def killed(sweep: subprocess.Popen[str]) -> None:
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.communicate(timeout=30)


def interrupted(sweep: subprocess.Popen[str]) -> None:
    os.killpg(sweep.pid, signal.SIGINT)  # Ctrl-C, as a terminal has it
    out, err = sweep.communicate(timeout=30)
    assert (sweep.returncode, out) == (2, "")
    where = "sweeps.sqlite"
    assert err == f"attnsim: interrupted; what is finished is in {where}: run again to go on\n"


def robbed_of_a_worker(sweep: subprocess.Popen[str]) -> None:
    os.kill(max(of_session(sweep.pid)), signal.SIGKILL)  # the youngest process
    out, err = sweep.communicate(timeout=30)
    assert (sweep.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "a worker process died" in err
    assert "run again to go on" in err


def test_a_sweep_stopped_again_and_again_resumes_without_losing_or_repeating_a_point(
    tmp_path, unstopped
):
    """In each way once, in any order; benchmarks/sweep.py --kills 20 kills one twenty times."""
    path, moments = long_sweep(tmp_path), random.Random(int.from_bytes(os.urandom(4)))
    had = 0
    for stopped in moments.sample([killed, interrupted, robbed_of_a_worker], 3):
        sweep = started(path)
        goal = had + moments.randrange(POINTS // 9)
        until(lambda goal=goal, sweep=sweep: stored(tmp_path)[0] > goal or sweep.poll() is not None)
        time.sleep(moments.uniform(0, 0.02))
        stopped(sweep)
        until(lambda sweep=sweep: not of_session(sweep.pid), 20)  # nor do workers outlive it
        has, written = stored(tmp_path)
        assert has == written > had
        had = has
    assert had < POINTS
    done = attnsim("sweep", path, "--export", "a.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{POINTS - had} of them replayed now" in done.stdout
    assert_each_once(tmp_path, unstopped)


def test_a_dask_worker_killed_in_mid_sweep_loses_nothing(tmp_path, unstopped):
    from dask.distributed import LocalCluster

    path = long_sweep(tmp_path)
    os.chdir(tmp_path)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:

        def kill_one():
            until(lambda: stored(tmp_path)[0] > POINTS // 8)
            os.kill(cluster.workers[0].pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        frame = sim.sweep(path, dask=cluster.scheduler_address, store="sweeps.sqlite")
        killer.join()
    frame.to_csv(tmp_path / "a.csv")
    assert_each_once(tmp_path, unstopped)


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr("sim.runs.workers.CLUSTER_S", 0.3)
    with pytest.raises(InputError, match=r"--dask tcp://127\.0\.0\.1:9: no cluster with workers"):
        sim.sweep(**TABLES, dask="tcp://127.0.0.1:9")


def test_the_frame_of_a_shipped_scenario_names_every_swept_key():
    text = read_scenario("sweep_l2")
    points = values_of(text.data["sweep"])
    assert len(points) == 18
    assert {"workload.seq_len", "hardware.l2.capacity"} == set(points[0])
    assert frame_of([]).empty
