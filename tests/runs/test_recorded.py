"""A run as a record: what it says of power."""

import pytest

from sim.report.notes import notes
from sim.runs.job import run_scenario
from sim.runs.record import Record
from sim.runs.scenario import make_scenario


def record(tdp: str) -> Record:
    """FlashAttention-2 on an A100 with such a power limit."""
    asked = {
        "workload": {"heads": 16, "head_dim": 128, "seq_len": 4096, "dtype": "bf16"},
        "hardware": {"profile": "a100-sxm-80gb", "power": {"tdp": tdp}},
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
    (line,) = notes([held])
    assert f"held back by power: {ghz:.2f} of 1.41 GHz" in line
    assert notes([record("2 kW")]) == []
