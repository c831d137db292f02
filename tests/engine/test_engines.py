"""The compiled engine against the SimPy reference."""

import subprocess
import sys

import numpy as np
from hypothesis import given, settings

from sim.device.run import run_on_device
from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Kernel, in_order
from tests.support.drawn import cases, devices, kernel_sequences, lowered

TIMES = {"time_s", "busy_s", "path_s", "cta_start_s", "cta_end_s", "bins"}


def assert_same(replay: KernelRun, reference: KernelRun) -> None:
    for name in KernelRun.__dataclass_fields__:
        ours, theirs = getattr(replay, name), getattr(reference, name)
        if name in TIMES:
            # A millionth of the kernel's time is the floor for parts that come out near zero.
            floor = 1e-15 * max(1.0, float(np.max(np.abs(theirs))))
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=floor, err_msg=name)
        elif isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        else:
            assert ours == theirs, name


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
