"""The compiled engine against the SimPy reference."""

import subprocess
import sys

from hypothesis import given, settings

from tests.support.drawn import cases, devices, kernel_sequences, lowered
from tests.support.same_runs import assert_engines_agree


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
