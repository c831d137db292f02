"""The compiled engine against the SimPy reference."""

import subprocess
import sys

import numpy as np
from hypothesis import given, settings

from sim.device.run import run_on_device
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Kernel, in_order
from tests.support.drawn import cases, devices, kernel_sequences, lowered
from tests.support.same_runs import assert_same


def assert_engines_agree(kernels: list[Kernel], hw: HardwareProfile, dtype: str) -> None:
    replay = run_on_device(in_order(kernels), hw, dtype, "replay", lambda _: None)
    reference = run_on_device(in_order(kernels), hw, dtype, "reference", lambda _: None)
    for ours, theirs in zip(replay.kernels, reference.kernels, strict=True):
        assert_same(ours.run, theirs.run)
    np.testing.assert_allclose(replay.time_s, reference.time_s, rtol=1e-9)


@given(cases(), devices())
@settings(max_examples=300)
def test_both_engines_agree_on_every_counter_and_time(case, hw):
    w, schedule = case
    assert_engines_agree(lowered(schedule, w, hw), hw, w.dtype)


@given(kernel_sequences(), devices())
@settings(max_examples=150)
def test_both_engines_agree_on_kernels_of_any_form(kernels, hw):
    assert_engines_agree(kernels, hw, "fp16")


def test_a_13th_cause_cannot_be_lost():
    a_13th = "import sim.machine as m; m.CAUSES += ('new',); m.N_CAUSES = len(m.CAUSES)"
    code = f"{a_13th}; import sim.engine.compiled.replay"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "AssertionError: set_path copies the causes one by one" in done.stderr
