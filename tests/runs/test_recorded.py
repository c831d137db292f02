"""A run as a record: what it says of power, and of how a grid fills the device."""

import pytest

from sim.report.notes import notes
from sim.runs.job import run_scenario
from sim.runs.record import KernelResult, Record
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


def kernel_of(schedule: dict[str, object], device: str, **workload: object) -> KernelResult:
    """The longest kernel of a schedule."""
    asked = {
        "workload": {"head_dim": 128, "dtype": "bf16", **workload},
        "hardware": {"profile": device},
        "schedule": [schedule],
    }
    (outcome,) = run_scenario(make_scenario(asked, "a test", "a test"))
    assert outcome.record.longest_kernel is not None
    return outcome.record.longest_kernel


def test_a_turn_s_waits_are_told_as_waits_and_not_as_tensor_time():
    """Of 1,536 + 2 x (600 + 864) cycles of both warp groups' turns a third are matmuls."""
    schedule = {"name": "flash3", "call": "paged", "implementation": "vllm"}
    shape = {"heads": 16, "kv_heads": 2, "seq_len": 8192, "dtype": "fp8"}
    kernel = kernel_of(schedule, "h100-sxm", **shape)
    waits_s, tensor_s = (kernel.critical_time_s[cause] for cause in ("op_latency", "tensor"))
    assert kernel.bottleneck == "op_latency"
    multiplied = 1536 / 0.95  # calibration.tensor.native
    assert tensor_s / waits_s == pytest.approx(multiplied / (2 * (600 + 864)), rel=0.1)
    assert sum(kernel.critical_time_s.values()) == pytest.approx(kernel.time_s)


@pytest.mark.parametrize(("heads", "waves"), [(27, 1.0), (28, 28 / 27)])
def test_waves_are_of_the_ctas_that_sms_hold_at_once(heads, waves):
    kernel = kernel_of({"name": "flash2"}, "a100-sxm-80gb", heads=heads * 2, seq_len=512)
    limits = "SRAM and registers"
    assert (kernel.ctas, kernel.ctas_per_sm, kernel.ctas_limited_by) == (heads * 8, 2, limits)
    assert kernel.waves == pytest.approx(waves)


def test_a_persistent_kernels_waves_are_of_the_tiles_that_it_deals():
    kernel = kernel_of({"name": "flash3"}, "h100-sxm", heads=34, seq_len=1024)
    assert (kernel.ctas, kernel.ctas_limited_by) == (132, "SRAM and registers")
    assert kernel.waves == pytest.approx(34 * 8 / 132)  # tiles of 128 queries, a CTA an SM
    few = kernel_of({"name": "flash3"}, "h100-sxm", heads=2, seq_len=1024)
    assert few.waves == pytest.approx(2 * 8 / 132)


def test_splits_are_as_they_were_asked_for():
    decode = {"heads": 8, "kv_heads": 1, "phase": "decode", "seq_kv": 8192}
    split = kernel_of({"name": "flash_decoding", "splits": 8}, "h100-sxm", **decode)
    assert (split.splits, split.ctas) == (8, 8)
    assert kernel_of({"name": "flash2"}, "h100-sxm", heads=8, seq_len=512).splits == 1
