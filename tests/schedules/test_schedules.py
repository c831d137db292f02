"""What holds for every schedule: what it says of itself, and which workloads it refuses."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.device.memory import check_memory
from sim.device.program import gpus_of, kernels_of
from sim.device.run import run_on_device
from sim.inputs.files import InputError, shipped_names
from sim.inputs.hardware import load_profile
from sim.inputs.models import MODELS
from sim.inputs.workload import WorkloadTable
from sim.runs.scenario import make_scenario
from sim.schedules import SCHEDULES, make_schedule
from sim.tile_program import Kernel
from tests.support.drawn import cases, devices, lowered

ROOMY = load_profile("h100-sxm", {"hbm": {"capacity": "100 TB"}}, "a test")


def lowered_of(tables):
    """The one schedule of a scenario's one point, and its program."""
    (point,) = make_scenario(tables, "mine", "mine.toml").points
    (schedule,) = point.schedules
    return schedule, schedule.program(point.workload, point.hardware)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_says_what_it_is(name):
    schedule = SCHEDULES[name]
    assert schedule.model_fields["name"].default == name
    assert 10 < len(schedule.summary) < 90
    assert schedule.source
    assert schedule.phases
    assert schedule.masks


@given(
    st.sampled_from(list(SCHEDULES)),
    st.sampled_from(shipped_names("hw_profiles")),
    st.sampled_from(list(MODELS)),
    st.sampled_from(("prefill", "decode", "training")),
    st.sampled_from((512, 1000, 4096)),
    st.sampled_from(("fp16", "bf16", "fp8", "fp32")),
    st.sampled_from((None, "int4", "fp8")),
)
@settings(max_examples=150)
def test_any_schedule_takes_or_refuses_any_model_on_any_device_in_one_line(
    name, profile, model, phase, length, dtype, kv_dtype
):
    workload = {"model": model, "phase": phase, "seq_len": length, "dtype": dtype}
    if kv_dtype:
        workload["kv_dtype"] = kv_dtype
    tables = {
        "workload": workload,
        "hardware": {"profile": profile},
        "schedule": [{"name": name}],
    }
    refused = ""
    try:
        _, commands = lowered_of(tables)
    except InputError as error:
        refused = str(error)
    if refused:
        assert refused.startswith(("mine.toml: ", "profile ", "schedule "))
        assert "\n" not in refused
        return
    assert check_memory(commands, ROOMY) > 0
    for kernel in kernels_of(commands):
        assert kernel.tile_steps >= 0


@given(cases(), devices())
@settings(max_examples=60)
def test_the_steps_of_a_schedule_run_its_kernels(case, hw):
    w, schedule = case
    try:
        commands = schedule.program(w, hw)
    except InputError:
        lowered(schedule, w, hw)  # the drawn tile does not fit
        return
    if gpus_of(commands) > 1 or any(not isinstance(command.work, Kernel) for command in commands):
        hw = load_profile("h100-sxm")
    run = run_on_device(commands, hw, w.dtype, "replay", lambda _: None)
    launched = [k.run.kernel for k in run.kernels]
    assert len(launched) == sum(isinstance(command.work, Kernel) for command in commands)
    assert set(launched) == set(kernels_of(commands))
    assert run.time_s >= max(k.start_s + k.run.time_s for k in run.kernels) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("schedule", "workload", "complaint"),
    [
        ("hip", {"causal": False}, "causal = false: causal = true or a window was"),
        ("hip", {"causal": True, "phase": "training"}, 'workload.phase = "training": prefill or'),
        ("nsa", {"window": 64}, "workload.window = 64: causal = true, without a window, was"),
        ("block_sparse", {"dropout": True}, "workload.dropout = true"),
        ("flash2", {"kv_dtype": "int4", "phase": "decode"}, 'workload.kv_dtype = "int4"'),
        ("flash1", {"window": 64, "causal": False}, "flash2, flash3, flash4, flex, naive take"),
    ],
)
def test_a_workload_that_makes_no_sense_is_one_line(schedule, workload, complaint):
    tables = {
        "workload": {"heads": 4, "head_dim": 64, "seq_len": 256, **workload},
        "hardware": {"profile": "h100-sxm"},
        "schedule": [{"name": schedule}],
    }
    with pytest.raises(InputError, match=f"schedule {schedule}: .*{complaint}"):
        lowered_of(tables)


def test_a_refusal_names_schedules_that_nothing_has_loaded_yet():
    asked = """
from sim.inputs.workload import WorkloadTable
from sim.schedules import SCHEDULES
w = WorkloadTable(heads=2, head_dim=64, seq_len=64, causal=True, alibi=True).workload()
SCHEDULES["flash3"](name="flash3").check(w)
"""
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert "decode, flash2, flash_decoding, flex, " in ran.stderr


@pytest.mark.parametrize("options", [{"implementation": "sglang"}, {"implementation": "fa3"}])
def test_kernels_with_windows_of_the_latest_keys_alone_say_so(options):
    w = WorkloadTable(heads=4, head_dim=64, seq_len=256, causal=False, window=64).workload()
    schedule = make_schedule({"name": "flash2", **options}, "a test")
    with pytest.raises(InputError, match="window = 64, to both sides"):
        schedule.program(w, load_profile("l40s"))


def test_decoding_so_many_tokens_runs_the_kernels_so_many_times():
    workload = {"heads": 4, "head_dim": 64, "seq_len": 1024, "phase": "decode", "tokens": 3}
    tables = {
        "workload": workload,
        "hardware": {"profile": "h100-sxm"},
        "schedule": [{"name": "flash_decoding", "splits": 2}],
    }
    schedule, commands = lowered_of(tables)
    assert [command.work.name for command in commands] == ["flash_decoding", "combine"] * 3
    assert make_schedule({"name": "flash_decoding", "splits": 2}, "a test") == schedule
