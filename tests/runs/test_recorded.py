"""A run as a record: what it says of power."""

import pytest

from sim.report.notes import notes
from sim.runs.job import run_scenario
from sim.runs.record import Record
from sim.runs.scenario import make_scenario


def record(tdp: str, **overrides: dict[str, object]) -> Record:
    """FlashAttention-2 on an A100 with such a power limit, and other figures than its own."""
    asked = {
        "workload": {"heads": 16, "head_dim": 128, "seq_len": 4096, "dtype": "bf16"},
        "hardware": {"profile": "a100-sxm-80gb", "power": {"tdp": tdp}, **overrides},
        "schedule": [{"name": "flash2"}],
    }
    (outcome,) = run_scenario(make_scenario(asked, "a test", "a test"))
    return outcome.record


def test_a_record_says_to_which_clock_power_holds_a_kernel_and_what_time_that_adds():
    free, held = record("2 kW"), record("250 W")
    (kernel,) = held.kernels
    assert kernel.clock_hz == pytest.approx(kernel.clock_share * 1410e6)
    assert sum(kernel.critical_time_s.values()) == pytest.approx(kernel.time_s)
    assert kernel.critical_time_s["power"] == pytest.approx(kernel.time_s - free.kernels[0].time_s)
    assert held.bottleneck_shares["power"] > 0.1
    assert "power" not in free.bottleneck_shares


def test_a_kernel_that_is_held_back_takes_the_energy_of_the_limits_watts():
    held = record("250 W")
    (kernel,) = held.kernels
    launch_j = (held.time_s - kernel.time_s) * 60  # idle while it is launched
    dirty_j = held.l2_dirty_bytes * 80e-12
    assert held.energy_j == pytest.approx(kernel.time_s * 250 + launch_j + dirty_j)


def test_the_table_says_what_clock_power_leaves():
    held = record("250 W")
    ghz = held.kernels[0].clock_hz / 1e9
    (line,) = (line for line in notes([held]) if "power" in line)
    assert f"held back by power: {ghz:.2f} of 1.41 GHz" in line
    assert not any("power" in line for line in notes([record("2 kW")]))


def test_issue_slots_are_told_by_what_fills_them_and_hold_no_tensor_time():
    free = record("2 kW")
    slower = record("2 kW", tensor={"bf16": "512 FLOP/clock"})
    (kernel,), (slow,) = free.kernels, slower.kernels
    assert sum(kernel.issue_filled_by.values()) == pytest.approx(1)
    assert slow.issue_filled_by == kernel.issue_filled_by
    assert slower.bottleneck == "tensor"
    busy = kernel.flops / 4096 * 8, kernel.vector_ops / 32  # 8 slots a HMMA.16816, one a lane op
    told = kernel.issue_filled_by["matmuls"], kernel.issue_filled_by["fp32"]
    assert told[0] / told[1] == pytest.approx(busy[0] / busy[1])


def test_waiting_for_the_exponentials_unit_is_its_time_and_not_that_of_issue_slots():
    free, rare = record("2 kW"), record("2 kW", sm={"exp_per_clock": 2})
    assert free.bottleneck_shares["exp"] < 0.4
    assert rare.bottleneck == "exp"
    (line,) = (line for line in notes([free]) if "issue" in line)
    assert "issue slots are filled by matmuls" in line
