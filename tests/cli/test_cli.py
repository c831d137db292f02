"""The command line as a person meets it."""

import json
import os
import subprocess
import sys
import tomllib

import pytest

from sim.inputs.files import InputError
from sim.runs.scenario import lay_over
from tests.support.commands import GOOD, assert_one_line, attnsim, called, printed_by, scenario

BAD = {
    "unknown key": ({"workload": "sequence = 3"}, ["workload.sequence: unknown key"]),
    "misspelt profile": ({"hardware": 'profile = "h100-smx"'}, ["did you mean 'h100-sxm'?"]),
    "wrong unit": (
        {"hardware": 'profile = "h100-sxm"\nhbm.bandwidth = "3 TB"'},
        ['hardware.hbm.bandwidth = "3 TB"', '"3.35 TB/s"'],
    ),
    "infinite": ({"hardware": 'profile = "t4"\nhbm.bandwidth = "inf TB/s"'}, ["finite"]),
    "nan": ({"hardware": 'profile = "t4"\ncalibration.hbm.read = nan'}, ["finite"]),
    "zero": ({"workload": GOOD["workload"] + "\nbatch = 0"}, ["workload.batch = 0"]),
    "negative": ({"workload": GOOD["workload"] + "\nbatch = -1"}, ["workload.batch = -1"]),
    "heads do not divide": (
        {"workload": GOOD["workload"] + "\nkv_heads = 3"},
        ["multiple of kv_heads = 3"],
    ),
    "tile too large": (
        {"schedule": 'name = "flash2"\ntile = { q = 1024, kv = 1024 }'},
        ["needs 384 KiB of SRAM", "has 227 KiB", "largest that fits is 1024 x 256"],
    ),
    "missing profile": (
        {"hardware": 'profile = "gone.toml"'},
        ["mine.toml: hardware.profile: profile gone.toml: no such file"],
    ),
    "misspelt schedule": ({"schedule": 'name = "flahs2"'}, ["did you mean 'flash2'?"]),
    "misspelt model": ({"workload": 'model = "llama-3-8"'}, ["did you mean 'llama-3-8b'?"]),
    "dtype the device lacks": (
        {"workload": 'model = "gpt2"\ndtype = "fp8"', "hardware": 'profile = "t4"'},
        ['workload.dtype = "fp8"', "fp32, fp16"],
    ),
    "too many steps": ({"limits": "tile_steps = 10"}, ["tile steps", "limits.tile_steps is 10"]),
    "too much memory": ({"limits": 'memory = "1 KiB"'}, ["of memory", "limits.memory is 1 KiB"]),
    "too many SMs": (
        {"hardware": 'profile = "h100-sxm"\nsm.count = 1_000_000_000'},
        ["hardware.sm.count = 1000000000: it must be at most 1000000"],
    ),
    "true for a number": (
        {"workload": 'model = "gpt2"\nbatch = true'},
        ["workload.batch = true", "a whole number was expected"],
    ),
    "missing mask": (
        {"schedule": 'name = "block_sparse"\nmask_file = "nowhere.npz"'},
        ["nowhere.npz: no such file"],
    ),
    "swept key unknown": ({"sweep": '"workload.seqlen" = [1, 2]'}, ["did you mean 'seq_len'?"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_scenario_is_one_line_and_writes_nothing(case, tmp_path):
    changes, parts = BAD[case]
    path = scenario(tmp_path, **changes)
    done = called("run", path, cwd=tmp_path)
    assert_one_line(done, "mine.toml", *parts)
    assert list(tmp_path.iterdir()) == [path]


def test_toml_syntax_error_names_its_line(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('title = "x"\n[workload\n')
    assert_one_line(called("run", path, cwd=tmp_path), "mine.toml", "line 2")


def test_missing_and_binary_files_are_named(tmp_path):
    assert_one_line(called("run", "no.toml", cwd=tmp_path), "no.toml: no such file")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert_one_line(called("run", "binary.toml", cwd=tmp_path), "binary.toml: not a TOML file")


def test_cyclic_extends_shows_the_circle(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "b.toml"')
    (tmp_path / "b.toml").write_text('extends = "a.toml"')
    assert_one_line(called("profiles", "check", "a.toml", cwd=tmp_path), "a -> b -> a")


def test_unwritable_output_is_refused_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    done = called("run", scenario(tmp_path), "--out", "file/out", cwd=tmp_path)
    assert_one_line(done, "--out file/out")


@pytest.mark.parametrize("name", ["", "all.pdf", "all.json"])
def test_a_folder_for_figures_has_the_name_of_one(tmp_path, name):
    done = called("run", scenario(tmp_path), "--out", name, cwd=tmp_path)
    assert_one_line(done, "--out", f"'{name}' is not the name of a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    "command",
    [("run",), ("explore", "sensitivity"), ("explore", "search"), ("validate", "compare")],
)
def test_what_is_refused_leaves_no_folder(tmp_path, command):
    """Before it is begun, or in the middle of it."""
    path = scenario(tmp_path, limits="tile_steps = 10")
    done = called(*command, path, "--out", "out/in", cwd=tmp_path)
    assert_one_line(done)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("option", ["--trace", "--report", "--export"])
def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path, option):
    """As root, /dev/null would be."""
    path, pipe = scenario(tmp_path), tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    assert_one_line(called("run", path, option, pipe), f"{option} {pipe}: a file")
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(5, "Input/output error", "results.json"), "results.json: Input/output error"),
        (MemoryError(), "this computer's memory is full"),
        (MemoryError("Unable to allocate 9 TiB"), "this computer's memory is full: Unable to"),
    ],
)
def test_what_fails_of_this_computer_is_one_line(tmp_path, monkeypatch, error, said):
    def fails(*_):
        raise error

    monkeypatch.setattr("sim.runs.difference.compare", fails)
    assert_one_line(called("compare", tmp_path, tmp_path), f"attnsim: {said}")


def test_a_name_longer_than_any_files_is_one_line(tmp_path):
    long = "f" * 6000
    for command in (("run",), ("run", "--out"), ("profiles", "check"), ("init",), ("fit", "--out")):
        assert_one_line(called(*command, f"{long}/{long}.toml", cwd=tmp_path))
    assert_one_line(called("compare", long, long, cwd=tmp_path), "File name too long")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--report", "mine.toml"], "--report mine.toml: it is the scenario"),
        (["--trace", "x", "--export", "./x"], "--export x: it is --trace"),
    ],
)
def test_what_is_written_takes_no_other_file_s_place(tmp_path, options, says):
    path = scenario(tmp_path)
    before = path.read_bytes()
    assert_one_line(called("run", path, *options, cwd=tmp_path), says)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_a_setting_is_of_the_schedule_with_that_label_else_of_all_of_that_name():
    def tiles(key: str) -> list[object]:
        tables = [{"name": "flash2", "label": label} for label in ("one", "two")]
        lay_over({"schedule": tables}, key, 64)
        return [table.get("tile") for table in tables]

    assert tiles("schedule.two.tile") == [None, 64]
    assert tiles("schedule.flash2.tile") == [64, 64]
    with pytest.raises(InputError, match="no schedule is called so here; known: flash2, one, two"):
        tiles("schedule.xyzzy.tile")


def test_a_table_does_not_replace_the_store_that_it_is_of(tmp_path):
    path = scenario(tmp_path)
    done = called("sweep", path, "--store", "s.csv", "--export", "s.csv", cwd=tmp_path)
    assert_one_line(done, "--export s.csv: it is --store; a file of its own was expected")


def test_run_leaves_figures_results_and_trace(tmp_path):
    done = called(
        "run", scenario(tmp_path), "--out", "out", "--trace", "t.json", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    assert json.loads((tmp_path / "out/results.json").read_text()) == [record]
    assert record["status"] == "ok"
    assert record["bottleneck"] == max(
        record["bottleneck_shares"], key=record["bottleneck_shares"].get
    )
    assert sum(record["bottleneck_shares"].values()) == pytest.approx(1)
    assert record["energy_j"] > 0
    names = {"hbm_traffic", "time", "roofline", "utilisation", "memory"}
    assert {p.stem for p in (tmp_path / "out").glob("*.png")} == names


def test_same_input_gives_the_same_bytes_of_output(tmp_path):
    path = scenario(tmp_path)
    first, second = (attnsim("run", path, "--json", cwd=tmp_path).stdout for _ in range(2))
    assert first == second != ""


def test_set_changes_the_hardware(tmp_path):
    path = scenario(tmp_path)
    slow = called("run", path, "--json", "--set", "hardware.sm.count=4", cwd=tmp_path)
    fast = called("run", path, "--json", cwd=tmp_path)
    assert json.loads(slow.stdout)[0]["time_s"] > 4 * json.loads(fast.stdout)[0]["time_s"]


def test_out_of_memory_is_a_result_that_names_the_tensor(tmp_path):
    path = scenario(
        tmp_path,
        workload="heads = 32\nhead_dim = 128\nseq_len = 131072",
        schedule='name = "naive"',
    )
    done = called("run", path, "--json", cwd=tmp_path)
    (record,) = json.loads(done.stdout)
    assert record["status"] == "out of memory"
    assert record["reason"].startswith("S needs 1.1 TB")


def test_words_of_ones_own_are_shown_as_they_are(tmp_path):
    """What stands in brackets is no style, a pair of $ no formula."""
    title, label = "What [bold] and [/red] cost: $5 to $6 :fire:", "$\\frac{ [x] one$"
    path = scenario(tmp_path, schedule=f"name = 'flash2'\nlabel = '{label}'")
    path.write_text(f"title = '{title}'\n{path.read_text()}")
    done = called("run", path, "--out", "out", "--report", "page.html", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert title in done.stdout.splitlines()
    assert done.stdout.count(label) >= 2
    profile = tmp_path / "mine_too.toml"
    profile.write_text(f"extends = 'h100-sxm'\ntitle = '{title}'\n")
    assert f"mine_too: {title} (sm90)" in printed_by("profiles", "show", profile)


TWO = 'name = "flash2"\n[[schedule]]\nname = "{}"\n{}'


def test_a_schedule_that_cannot_be_is_told_in_a_line_and_the_others_are_answered(tmp_path):
    path = scenario(tmp_path, schedule=TWO.format("hip", ""), sweep='"workload.batch" = [1, 2]')
    done = called("run", path, "--out", "out", "--report", "page.html", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("workload.causal = false: ") == 1
    assert "hip batch 1 and 1 more: failed: schedule hip: " in done.stdout
    records = json.loads((tmp_path / "out/results.json").read_text())
    assert [record["status"] for record in records] == ["ok", "failed"] * 2
    assert (tmp_path / "page.html").read_text().count("workload.causal = false: causal = true") == 1


def test_a_point_of_a_sweep_that_cannot_be_does_not_stop_the_others(tmp_path):
    path = scenario(
        tmp_path,
        workload=GOOD["workload"] + '\ndtype = "bf16"',
        sweep='"hardware.profile" = ["h100-sxm", "t4", "h100-smx"]',
    )
    records = json.loads(called("run", path, "--json", cwd=tmp_path).stdout)
    assert [record["status"] for record in records] == ["ok", "failed", "failed"]
    assert "t4 has no tensor rate for it" in records[1]["reason"]
    assert "did you mean 'h100-sxm'?" in records[2]["reason"]


def test_where_nothing_can_be_it_is_one_line(tmp_path):
    path = scenario(
        tmp_path,
        workload=GOOD["workload"] + "\ncausal = false",
        schedule='name = "hip"\n[[schedule]]\nname = "nsa"',
        sweep='"workload.batch" = [1, 2]',
    )
    assert_one_line(called("run", path, cwd=tmp_path), "mine.toml: schedule hip: ")


@pytest.mark.parametrize("command", [["profiles"], ["scenarios"], ["profiles", "show", "h200-sxm"]])
def test_listings_run_from_any_folder(command, tmp_path):
    done = called(*command, cwd=tmp_path)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("run", "--frobnicate"), "No such option: --frobnicate"),
        (
            ("run", "flash_vs_naive", "--engine", "fast"),
            "'--engine': 'fast' is not one of 'replay'",
        ),
        (("run", "flash_vs_naive", "--set", "schedule.tile=64x64"), "schedule.flash2.tile"),
        (("schedules", "show", "flash22"), '"flash22": no such schedule; did you mean'),
        (("run",), "Missing argument"),
        (("sweep", "sweep_l2", "--workers", "0"), "--workers"),
        (("frob",), "frob"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, arguments, complaint):
    assert_one_line(called(*arguments, cwd=tmp_path), complaint)


def test_without_a_command_help_is_shown(tmp_path):
    done = called("explore", cwd=tmp_path)
    assert "sensitivity" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_scenario_shown_is_a_file_to_run_and_a_schedule_has_its_options():
    assert tomllib.loads(printed_by("scenarios", "show", "flash_vs_naive"))["schedule"]
    shown = printed_by("schedules", "show", "quest")
    assert shown.startswith("Quest: decoding over the pages")
    assert "  budget = " in shown


@pytest.mark.parametrize(
    ("name", "hardware", "says"),
    [
        # hdim 128, causal, sm80: 128 x 64, four warps (flash_fwd_launch_template.h).
        ("flash2", "a100-sxm-80gb", ["Q 128x128, K 64x128, V 64x128", "64 KiB", "registers"]),
        ("ring", "h100-sxm", ["flash2, causal", "merge: O"]),
        ("dsa", "h100-sxm", ["shape of deepseek-v3"]),
        ("flash3", "a100-sxm-80gb", ['On a100-sxm-80gb: schedule flash3: hardware.arch = "sm80"']),
    ],
)
def test_a_schedule_shows_what_its_kernels_are_on_a_device(name, hardware, says):
    shown = printed_by("schedules", "show", name, "--hardware", hardware)
    for part in says:
        assert part in shown


def test_it_is_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "attnsim", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == printed_by("--version")


def test_a_command_that_ends_while_the_engine_compiles_keeps_its_code(tmp_path):
    """Python's own end would cut a compiler in C++ off, which aborts the process at times."""
    refused = """
import atexit, sys, time
from unittest.mock import patch
from sim.cli.app import main
from sim.code.jit import Entry
atexit.register(print, "ended as Python ends")
sys.argv = ["attnsim", "run", "mine.toml"]
with (
    patch.object(Entry, "is_kept", False),
    patch("sim.runs.workers.compile_engine", lambda: time.sleep(1000)),
):
    main()
"""
    scenario(tmp_path, workload="heads = 1")
    command = [sys.executable, "-c", refused]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    told = "Compiling the replay engine (once; later runs read it from disk) ...\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{told}attnsim: mine.toml: workload")
    assert done.stderr.count("\n") == 2
