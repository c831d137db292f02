"""What another figure of a device may do to a kernel, and what it may not."""

import math

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.machine import (
    EXP,
    ISSUE,
    TENSOR,
    VECTOR,
    cta_start_s,
    item_setup_s,
    service_times_s,
)
from sim.tile_program import Compute, Kernel
from tests.support.drawn import cases, devices, lowered
from tests.support.formulas import run

FASTER = (
    "hbm.bandwidth", "l2.bandwidth", "l2.capacity", "sm.count", "sm.clock", "sm.fp32_lanes",
    "sm.exp_per_clock", "sm.l2_bytes_per_clock", "sram.bytes_per_clock", "tensor.fp16",
    "tensor.bf16", "power.tdp",
)  # fmt: skip
LESS = (
    "calibration.hbm.latency", "calibration.l2.latency", "calibration.sm.op_latency",
    "calibration.sm.cta_start", "calibration.sm.cta_setup", "calibration.sm.mma_issue_cycles",
    "energy.idle", "energy.lane_op", "energy.hbm_per_byte",
)  # fmt: skip
PIPE_OF = {"sm.exp_per_clock": EXP, "sm.fp32_lanes": VECTOR, "tensor.fp16": TENSOR}


def with_figure(hw: HardwareProfile, key: str, times: float) -> HardwareProfile:
    """The device with so many times a figure; whole numbers stay whole."""
    value = hw.figure(key) * times
    return hw.with_figures({key: round(value) if key.startswith("sm.") else value})


def computes(kernel: Kernel) -> list[Compute]:
    """All that a kernel computes."""
    return [action for action in kernel.actions if isinstance(action, Compute)]


def tail_s(ran: KernelRun, hw: HardwareProfile) -> float:
    """By how much a kernel may end later for the order of its CTAs alone.

    The longest CTA, as the last may come to stand alone; and in each wave a CTA's start, which
    hides behind what its neighbours do unless they all begin together.
    """
    waves = math.ceil(ran.kernel.ctas / (ran.ctas_per_sm * hw.sm.count))
    starts_s = waves * (cta_start_s(ran.kernel, hw) + item_setup_s(ran.kernel, hw))
    return float((ran.cta_end_s - ran.cta_start_s).max()) + starts_s


@given(cases(), devices(), st.sampled_from(FASTER + LESS), st.floats(1.02, 4))
@settings(max_examples=150, deadline=None)
def test_a_better_figure_makes_no_kernel_slower_by_more_than_a_tail(case, hw, key, times):
    w, schedule = case
    kernels = lowered(schedule, w, hw)
    better = with_figure(hw, key, times if key in FASTER else 1 / times)
    for before, after in zip(run(kernels, hw, w), run(kernels, better, w), strict=True):
        assert after.time_s <= before.time_s + tail_s(before, hw)


@given(cases(), devices(), st.sampled_from(sorted(PIPE_OF)), st.sampled_from((0.25, 0.5, 4.0)))
@settings(max_examples=40, deadline=None)
def test_a_pipe_that_is_not_needed_changes_nothing(case, hw, key, times):
    w, schedule = case
    pipe = PIPE_OF[key]
    idle = [
        kernel
        for kernel in lowered(schedule, w, hw)
        if not any(service_times_s(op, kernel, hw, w.dtype)[pipe] for op in computes(kernel))
    ]
    if not idle:
        reject()
    other = with_figure(hw, key, times)
    for before, after in zip(run(idle, hw, w), run(idle, other, w), strict=True):
        assert after.time_s == before.time_s
        assert after.path_s.tolist() == before.path_s.tolist()
        assert after.busy_s.tolist() == before.busy_s.tolist()


@given(cases(), devices(), st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_issue_time_does_not_depend_on_the_tensor_rate(case, hw, times):
    w, schedule = case
    key = f"tensor.{w.dtype if w.dtype in ('fp16', 'bf16') else 'fp16'}"
    other = with_figure(hw, key, times)
    for kernel in lowered(schedule, w, hw):
        for op in computes(kernel):
            before, after = (service_times_s(op, kernel, of, w.dtype) for of in (hw, other))
            assert after[ISSUE] == before[ISSUE]
            if w.dtype == key[-4:]:
                assert after[TENSOR] == pytest.approx(before[TENSOR] / times, rel=1e-9)
