"""The search for devices and tiles, and what a device costs."""

import json
import math
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from sim import simulate
from sim.device.run import REMEMBERED
from sim.explore.cost import COUNTED, DIES, die_area_mm2, dies_per_wafer, price_dollars
from sim.explore.search import Search, SearchAnswer
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.report.search import pareto
from sim.runs.scenario import load_scenario, read_scenario
from tests.support.commands import assert_one_line, called

DEVICE = """
title = "a device"
[workload]
heads = 8
head_dim = 64
seq_len = 1024
dtype = "bf16"
[hardware]
profile = "h100-sxm"
[[schedule]]
name = "flash2"
[search]
objectives = ["time", "price"]
trials = 16
seed = 3
[search.space]
"hardware.sm.count" = { from = 20, to = 140, step = 4 }
"hardware.hbm.bandwidth" = { from = "0.5 TB/s", to = "6 TB/s", log = true }
"hardware.hbm.capacity" = ["48 GiB", "80 GiB"]
"""
GIVEN = DEVICE.split("[search.space]")[0]


def search_file(folder: Path, text: str = DEVICE) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def searched(path: Path, *settings: str, out: Path | None = None) -> SearchAnswer:
    if out is not None:
        out.mkdir(exist_ok=True)
    return Search(read_scenario(str(path), settings)).run(out)


def test_front_is_what_no_other_trial_beats(tmp_path):
    answer = searched(search_file(tmp_path))
    values = {trial.values for trial in answer.trials}
    unbeaten = {
        a for a in values if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in values)
    }
    assert {trial.values for trial in answer.front} == unbeaten
    assert len(answer.trials) + sum(one.count for one in answer.infeasible) == 16
    assert pareto(answer).axes[0].get_ylabel() == "time [ms]"


def test_same_file_and_seed_give_the_same_search_and_another_seed_another(tmp_path):
    path = search_file(tmp_path)
    first, second = searched(path), searched(path)
    assert first.json() == second.json()
    assert searched(path, "search.seed=4").trials != first.trials


def test_it_is_the_same_on_one_core_as_on_several(tmp_path, monkeypatch):
    path, found = search_file(tmp_path), []
    for cores in (1, 4):
        monkeypatch.setattr("sim.runs.job.cores", lambda cores=cores: cores)
        REMEMBERED.forget()
        found.append(searched(path).json())
    assert found[0] == found[1]


def test_trials_are_chosen_and_replayed_eight_at_a_time(tmp_path, monkeypatch):
    chosen: list[int] = []
    evaluate = Search.evaluate

    def counting(search, designs):
        chosen.append(len(designs))
        return evaluate(search, designs)

    monkeypatch.setattr(Search, "evaluate", counting)
    searched(search_file(tmp_path), "search.trials=20")
    assert chosen == [8, 8, 4, 1]  # the last is the device as it is


def test_values_are_those_of_a_run_with_the_design_set(tmp_path):
    answer = searched(search_file(tmp_path), "search.trials=4")
    for trial in answer.front:
        (record,) = simulate(
            workload={"heads": 8, "head_dim": 64, "seq_len": 1024, "dtype": "bf16"},
            hardware={
                "profile": "h100-sxm",
                "sm": {"count": trial.design["hardware.sm.count"]},
                "hbm": {
                    "bandwidth": trial.design["hardware.hbm.bandwidth"],
                    "capacity": trial.design["hardware.hbm.capacity"],
                },
            },
            schedule="flash2",
        )
        assert trial.values[0] == record.time_s


def test_tiles_searched_whole_give_the_exhaustive_optimum(tmp_path):
    sides = (32, 64, 128, 256, 1024)
    text = GIVEN.replace('"time", "price"', '"time"').replace("trials = 16", "trials = 25") + (
        f'[search.space]\n"schedule.flash2.tile.q" = {list(sides)}\n'
        f'"schedule.flash2.tile.kv" = {list(sides)}\n'
    )
    answer = searched(search_file(tmp_path, text))
    times = {}
    for q, kv in product(sides, sides):
        try:
            (record,) = simulate(
                workload={"heads": 8, "head_dim": 64, "seq_len": 1024, "dtype": "bf16"},
                hardware="h100-sxm",
                schedule={"name": "flash2", "tile": {"q": q, "kv": kv}},
            )
        except InputError:
            continue
        times[q, kv] = record.time_s
    best = min(times, key=lambda tile: times[tile])
    assert tuple(answer.front[0].design.values()) == best
    assert answer.front[0].values == (times[best],)
    (too_large,) = answer.infeasible
    assert too_large.count == 25 - len(times) > 0
    assert "of SRAM" in too_large.reason
    assert pareto(answer).axes[0].get_xlabel() == "trial"


def test_out_of_memory_and_dies_beyond_a_reticle_are_counted_with_reasons(tmp_path):
    text = GIVEN + (
        '[search.space]\n"hardware.hbm.capacity" = ["1 MiB", "80 GiB"]\n'
        '"hardware.sm.count" = [132, 400]\n'
    )
    answer = searched(search_file(tmp_path, text))
    assert len(answer.trials) == 1
    assert [one.count for one in answer.infeasible] == [2, 1]
    assert "out of memory: " in answer.infeasible[0].reason
    assert "exceeds the 858 mm2" in answer.infeasible[1].reason


def test_front_profiles_are_sound_and_run_to_the_time_of_their_trial(tmp_path):
    text = DEVICE.replace("trials = 16", "trials = 6")
    text = text.replace('"h100-sxm"', '"sub/parent.toml"\nsm.registers = 131072')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/parent.toml").write_text(
        'title = "p"\nextends = "h100-sxm"\n[l2]\ncapacity = "20 MiB"\nsource = "x"\n'
    )
    path, out = search_file(tmp_path, text), tmp_path / "out"
    done = called("explore", "search", path, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "only ratios mean something" in done.stdout
    assert (out / "pareto.png").stat().st_size > 10_000
    front = json.loads((out / "results.json").read_text())["front"]
    files = sorted((out / "front").iterdir())
    assert {file.name for file in files} == {f"trial_{t['number']}.toml" for t in front}
    assert called("profiles", "check", files[0], cwd=tmp_path).returncode == 0
    for trial in front:
        file = out / "front" / f"trial_{trial['number']}.toml"
        hw = load_profile(str(file))
        assert hw.l2.capacity == 20 * 2**20
        assert hw.sm.registers == 131072
        assert hw.sm.source.startswith(f"search of {path}, trial {trial['number']}")
        plain = text.split("[search]")[0]
        run = load_scenario(
            str(search_file(tmp_path / "sub", plain.replace("sub/parent", "parent"))),
            (f"hardware.profile={file}",),
        )
        assert run.points[0].hardware.sm.count == trial["design"]["hardware.sm.count"]
    scenario = search_file(tmp_path / "sub", plain.replace("sub/parent", "parent"))
    ran = called("run", scenario, "--json", "--set", f"hardware.profile={file}", cwd=tmp_path)
    assert json.loads(ran.stdout)[0]["time_s"] == front[-1]["values"][0]


KILLED = """
import os, signal, sys
from pathlib import Path
from sim.explore.search import Search
from sim.runs.scenario import read_scenario
from sim.runs.store import Store

put, ended = Store.put, []

def put_until_it_is_killed(store, entries):
    put(store, entries)
    ended.append(entries)
    if len(ended) == 12:  # in the middle of a batch
        os.kill(os.getpid(), signal.SIGKILL)

Store.put = put_until_it_is_killed
Search(read_scenario(sys.argv[1], ())).run(Path(sys.argv[2]))
"""


def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path):
    path = search_file(tmp_path, DEVICE.replace("trials = 16", "trials = 30"))
    out = tmp_path / "out"
    out.mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, path, out], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert tried_in(out) == 12
    resumed, whole = searched(path, out=out), searched(path)
    assert resumed.trials == whole.trials


def tried_in(out: Path) -> int:
    with sqlite3.connect(f"file:{out}/trials.sqlite?mode=ro", uri=True) as database:
        query = "select count(*) from records where key != 'search'"
        return int(database.execute(query).fetchone()[0])


def test_a_folder_takes_more_trials_but_not_another_search(tmp_path):
    path, out = search_file(tmp_path), tmp_path / "out"
    few = searched(path, "search.trials=3", out=out)
    more = searched(path, "search.trials=5", out=out)
    assert more.trials[: len(few.trials)] == few.trials
    with pytest.raises(InputError, match="holds another search"):
        searched(path, "workload.seq_len=512", out=out)


def test_two_searches_at_once_in_a_folder_leave_what_one_does(tmp_path):
    path, out = search_file(tmp_path), tmp_path / "out"
    out.mkdir()
    with ThreadPoolExecutor() as threads:
        both = [threads.submit(searched, path, out=out) for _ in range(2)]
    assert {one.result().json() for one in both} == {searched(path).json()}
    assert tried_in(out) == 16


def test_trials_of_an_earlier_version_are_said_not_to_be_read(tmp_path):
    path, out = search_file(tmp_path, DEVICE.replace("trials = 16", "trials = 1")), tmp_path / "out"
    out.mkdir()
    (out / "study.db").touch()
    done = called("explore", "search", path, "--out", out)
    said = "study.db: an earlier version's trials are not read: the search begins anew\n"
    assert (done.returncode, done.stderr.endswith(said)) == (0, True)
    assert called("explore", "search", path, "--out", out).stderr == ""


def test_a_schedule_in_a_file_is_searched_where_code_may_run_and_edited_another_search(tmp_path):
    text = DEVICE.replace("flash2", "mine.py:Mine").replace("trials = 16", "trials = 1")
    path, mine, out = search_file(tmp_path, text), tmp_path / "mine.py", tmp_path / "out"
    source = (
        "from sim.schedules.flash2 import Flash2\nclass Mine(Flash2):\n    name: str = 'mine'\n"
    )
    mine.write_text(source)
    out.mkdir()
    with pytest.raises(InputError, match="--allow-code"):
        searched(path)
    assert len(Search(read_scenario(str(path), (), True)).run(out).trials) == 1
    mine.write_text(source + "# edited")
    with pytest.raises(InputError, match="holds another search"):
        Search(read_scenario(str(path), (), True)).run(out)


BAD = {
    "no search": (DEVICE.split("[search]")[0], ["search: missing"]),
    "no space": (GIVEN + "[search.space]", ["search.space"]),
    "no values": (GIVEN + '[search.space]\n"hardware.sm.count" = []', ["at least one value"]),
    "unknown figure": (
        GIVEN.replace(', "price"', "") + '[search.space]\n"hardware.sm.counts" = [1]',
        ["did you mean 'count'?"],
    ),
    "unknown schedule": (
        GIVEN + '[search.space]\n"schedule.flash9.tile.q" = [16]',
        ["schedule.flash9.tile.q", "did you mean 'flash2'?"],
    ),
    "workload": (GIVEN + '[search.space]\n"workload.batch" = [1]', ["a figure of the hardware"]),
    "wrong unit": (
        GIVEN + '[search.space]\n"hardware.l2.capacity" = { from = "1 MiB", to = "2 GiB" }',
        ["search.space.hardware.l2.capacity", "same unit"],
    ),
    "old spelling": (
        GIVEN + '[search.space]\n"hardware.sm.count" = { low = 3, high = 9 }',
        ["search.space.hardware.sm.count: low and high are spelt from and to"],
    ),
    "no range": (
        GIVEN + '[search.space]\n"hardware.sm.count" = 3',
        ["search.space.hardware.sm.count = 3: a list of values or a range"],
    ),
    "a list in a list": (
        GIVEN + '[search.space]\n"hardware.sm.count" = ["a", [true]]',
        ['search.space.hardware.sm.count = ["a", [true]]: numbers, texts or true'],
    ),
    "free figure": (
        GIVEN + '[search.space]\n"hardware.sm.clock" = ["1 GHz", "2 GHz"]',
        ["hardware.sm.clock: would be free", "sm.count"],
    ),
    "no energy": (
        DEVICE.replace("h100-sxm", "mi300x").replace('"price"', '"energy"'),
        ['"energy": mi300x has no [energy] figures'],
    ),
    "no area": (DEVICE.replace("h100-sxm", "rtx-4090"), ['"price": rtx-4090 is sm89']),
    "unknown objective": (DEVICE.replace('"price"', '"cost"'), ["search.objectives"]),
    "twice": (DEVICE.replace('"price"', '"time"'), ["each was expected once"]),
    "two schedules": (
        DEVICE.replace("[search]", '[[schedule]]\nname = "naive"\n[search]'),
        ["schedule: a search takes one"],
    ),
    "sweep": (DEVICE + '[sweep]\n"workload.batch" = [1, 2]', ["sweep: a search varies"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_search_is_one_line(case, tmp_path):
    text, parts = BAD[case]
    path = search_file(tmp_path, text)
    with pytest.raises(InputError) as error:
        Search(read_scenario(str(path)))
    assert "\n" not in str(error.value)
    for part in ("mine.toml", *parts):
        assert part in str(error.value)


def test_bad_search_leaves_no_folder_and_run_names_the_command(tmp_path):
    path = search_file(tmp_path, BAD["no values"][0])
    assert_one_line(called("explore", "search", path, "--out", "out", cwd=tmp_path), "one value")
    assert list(tmp_path.iterdir()) == [path]
    assert_one_line(called("run", path, cwd=tmp_path), "attnsim explore search")


@pytest.mark.parametrize(("profile", "area_mm2"), [("h100-sxm", 814), ("a100-sxm-80gb", 826)])
def test_areas_of_dies_that_exist_are_the_published_ones(profile, area_mm2):
    """The L2 bandwidths in bytes a clock differ from 5120 in the third digit."""
    assert die_area_mm2(load_profile(profile), "fp16") == pytest.approx(area_mm2, rel=2e-3)


@pytest.mark.parametrize("arch", DIES)
def test_what_is_left_for_an_sm_is_much_of_it(arch):
    die = DIES[arch]
    parts = die.sm_parts_mm2(die.sm_sram_bytes, die.sm_flops_per_clock)
    assert 0.5 < die.sm_rest_mm2 / (die.sm_rest_mm2 + parts) < 0.9
    # The annotated SM of GA100 is 3.72 to 3.75 mm2 (LLMCompass, Figure 6).
    assert die.sm_rest_mm2 + parts == pytest.approx(3.72, rel=0.02)


@pytest.mark.parametrize("key", [key for key in COUNTED if key != "tensor.fp8"])
def test_more_of_whatever_is_counted_costs_more(key):
    section, figure = key.split(".")
    hw = load_profile("a100-sxm-80gb")
    before = getattr(getattr(hw, section), figure)
    changed = getattr(hw, section).model_copy(update={figure: before * 1.02})
    more = hw.model_copy(update={section: changed})
    dtype = figure if section == "tensor" else "bf16"
    assert price_dollars(more, dtype) > price_dollars(hw, dtype)


def test_dies_per_wafer_agree_with_those_counted_on_a_grid():
    """Square dies whose corners lie 3 mm within the edge, on the best of a few grids."""
    for area_mm2 in (100, 400, 814):
        side = math.sqrt(area_mm2)
        counts = []
        for shift_x, shift_y in product((0, 0.25, 0.5), repeat=2):
            lines = range(-40, 40)
            counts.append(
                sum(
                    math.hypot(
                        max(abs(i + shift_x), abs(i + 1 + shift_x)),
                        max(abs(j + shift_y), abs(j + 1 + shift_y)),
                    )
                    * side
                    <= 147
                    for i, j in product(lines, lines)
                )
            )
        assert 0.9 * max(counts) < dies_per_wafer(area_mm2) < 1.05 * max(counts)


@pytest.mark.parametrize("name", ["search_h100_successor", "search_tiles"])
def test_shipped_searches_are_sound(name):
    settings = ("search.trials=2",) if name == "search_h100_successor" else ()
    answer = searched(Path(name), *settings)
    assert answer.front or answer.infeasible
