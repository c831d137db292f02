"""The kernels as a compiler sees them: footprints that the schedules state, and which matmuls."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from sim.device.program import kernels_of
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.machine import ctas_per_sm
from sim.schedules import make_schedule
from sim.tile_program import Footprint

TRITON = {"implementation": "triton"}


def flash2(head_dim: int, **options: Any) -> tuple[dict[str, Any], dict[str, Any], int]:
    shape = {"head_dim": head_dim, "seq_len": 512, "causal": True}
    return {"name": "flash2", **TRITON, **options}, shape, 90


CASES = {
    "flash2 64": flash2(64),
    "flash2 128": flash2(128),
    "flash2 64 x 64": flash2(64, tile={"q": 64, "kv": 64}, stages=2, warps=4),
    "flash2 128 x 64": flash2(128, tile={"q": 128, "kv": 64}, stages=3, warps=8),
    "flash2 64 x 32": flash2(128, tile={"q": 64, "kv": 32}, stages=4, warps=4),
    "flash2 128 x 32": flash2(64, tile={"q": 128, "kv": 32}, stages=3, warps=4),
    "naive 128": ({"name": "naive", "mask": False}, {"head_dim": 128, "seq_len": 512}, 90),
    "naive 64": ({"name": "naive", "mask": False}, {"head_dim": 64, "seq_len": 4096}, 90),
    "flash_decoding": (
        {"name": "flash_decoding", **TRITON, "splits": 4},
        {"heads": 32, "kv_heads": 4, "head_dim": 128, "seq_kv": 4096, "phase": "decode"},
        90,
    ),
    "hip": ({"name": "hip", **TRITON}, {"head_dim": 128, "seq_len": 4096, "causal": True}, 90),
    "flash2 on sm_80": (*flash2(64)[:2], 80),
}


def stated_kernels(case: str) -> list[Any]:
    schedule, workload, capability = CASES[case]
    hw = load_profile({80: "a100-sxm-80gb", 90: "h100-sxm"}[capability])
    w = WorkloadTable.model_validate({"heads": 1, "dtype": "bf16", **workload}).workload()
    return kernels_of(make_schedule(schedule, "a test").program(w, hw))


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[dict[str, Any]]]:
    cases = [
        (schedule, {"heads": 1, "dtype": "bf16", **workload}, capability)
        for schedule, workload, capability in CASES.values()
    ]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_for_gpu"],
        input=json.dumps(cases),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


# Their schedules state PyTorch's and FlashAttention's footprints; so many CTAs fit either way that
# HBM, not occupancy, limits them.
STREAMING = ("P = softmax(S)", "combine")
SM90 = [case for case, (*_, capability) in CASES.items() if capability == 90]


@pytest.mark.parametrize("case", SM90)
def test_an_sm_holds_as_many_ctas_of_the_compiled_kernel_as_the_schedule_states(case, compiled):
    hw = load_profile("h100-sxm")
    for stated, found in zip(stated_kernels(case), compiled[case], strict=True):
        footprint = Footprint(found["sram_bytes"], stated.footprint.threads, found["registers"])
        if stated.name not in STREAMING:
            assert ctas_per_sm(footprint, hw) == ctas_per_sm(stated.footprint, hw), stated.name


@pytest.mark.parametrize("case", [case for case in SM90 if "flash2" in case])
def test_registers_are_within_a_sixth_of_what_the_schedule_states(case, compiled):
    (stated,), (found,) = stated_kernels(case), compiled[case]
    assert found["registers"] == pytest.approx(stated.footprint.registers_per_thread, rel=1 / 6)


@pytest.mark.parametrize("case", SM90)
def test_sram_is_what_the_schedule_states_but_for_reductions(case, compiled):
    for stated, found in zip(stated_kernels(case), compiled[case], strict=True):
        if stated.name not in STREAMING:
            assert 0 <= found["sram_bytes"] - stated.footprint.sram_bytes <= 512


@pytest.mark.parametrize("case", CASES)
def test_matmuls_are_wgmma_on_hopper_and_mma_sync_before_and_spill_nothing(case, compiled):
    for stated, found in zip(stated_kernels(case), compiled[case], strict=True):
        assert found["stack_bytes"] == 0
        multiplies = any(getattr(step, "mma_flops", 0) for step in stated.actions)
        assert bool(found["wgmma"]) == (multiplies and CASES[case][2] == 90)
        assert bool(found["mma_sync"]) == (multiplies and CASES[case][2] == 80)
