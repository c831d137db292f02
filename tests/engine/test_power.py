"""The clock under the power limit: what it holds back, by how much, and what it leaves alone."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.device.program import kernels_of
from sim.device.run import run_on_device
from sim.engine.kernel_run import KernelRun
from sim.engine.power import REGULATOR_S, acted, joules, large_matmul_flops_per_s
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.schedules import make_schedule
from sim.tile_program import in_order

H100, A100 = load_profile("h100-sxm"), load_profile("a100-sxm-80gb")
LONG = WorkloadTable(
    batch=1, heads=16, seq_len=4096, head_dim=128, dtype="bf16", phase="prefill"
).workload()
DECODE = WorkloadTable(
    batch=16, heads=16, seq_len=4096, head_dim=128, dtype="bf16", phase="decode"
).workload()
FLASH2 = {"name": "flash2"}


def longest(
    hw: HardwareProfile, w: AttentionWorkload = LONG, engine="replay", **options
) -> KernelRun:
    """The kernel of flash2, or of flash_decoding, that takes longest."""
    name = "flash2" if w.phase == "prefill" else "flash_decoding"
    kernels = kernels_of(make_schedule({"name": name, **options}, "a test").program(w, hw))
    run = run_on_device(in_order(kernels), hw, w.dtype, engine, lambda _: None)
    return max((launched.run for launched in run.kernels), key=lambda one: one.time_s)


def limited(hw: HardwareProfile, watts: float) -> HardwareProfile:
    """The device with another power limit."""
    return hw.with_figures({"power.tdp": watts})


def drawn_watts(run: KernelRun, hw: HardwareProfile) -> float:
    """What the board draws in the mean."""
    assert hw.energy is not None
    return sum(joules(run, hw, "bf16")) / run.time_s + hw.energy.idle


def test_a_kernel_that_is_held_back_draws_what_the_limit_allows():
    run = longest(limited(A100, 250))
    assert 0.5 < run.clock_share < 0.9
    assert drawn_watts(run, limited(A100, 250)) == pytest.approx(250, rel=1e-6)


def test_a_kernel_below_the_limit_runs_at_the_nominal_clock():
    run = longest(limited(A100, 2000))
    assert (run.clock_share, run.power_s) == (1.0, 0.0)
    assert drawn_watts(run, A100) < 2000


@pytest.mark.parametrize("section", ["power", "energy"])
def test_a_device_that_states_no_limit_or_no_energies_is_not_held_back(section):
    bare = limited(A100, 250).model_copy(update={section: None})
    assert longest(bare).clock_share == 1.0


def test_what_power_adds_to_the_time_is_told_apart_from_the_path():
    free, held = longest(limited(A100, 2000)), longest(limited(A100, 250))
    assert held.path_s.tolist() == free.path_s.tolist()
    assert held.path_s.sum() + held.power_s == pytest.approx(held.time_s)
    assert held.time_s == pytest.approx(free.time_s / held.clock_share, rel=0.02)  # hardly any HBM


def test_decoding_waits_for_hbm_and_so_less_for_the_clock():
    free, held = longest(limited(A100, 2000), DECODE), longest(limited(A100, 230), DECODE)
    assert held.clock_share < 0.9
    assert held.time_s < 1.05 * free.time_s


def test_the_energy_of_a_decode_is_that_of_the_rows_that_are_there_and_of_all_bytes():
    """One query in a tile of 64 rows: 11 pJ a lane's operation, 1.1 a FLOP, 6, 40, 80 a byte."""
    run = longest(A100, DECODE)
    assert run.kernel.rows_used == 1 / 64
    lane_ops = sum(map(run.executed, ("vector_ops", "other_ops", "exp_count")))
    of_rows = (11 * lane_ops + 1.1 * run.executed("mma_flops")) / 64
    moved = 6 * run.executed("sram_bytes") + 40 * (run.l2_read_bytes + run.l2_write_bytes)
    core_j, hbm_j = joules(run, A100, "bf16")
    assert core_j == pytest.approx((of_rows + moved) * 1e-12)
    assert hbm_j == pytest.approx(80e-12 * (run.hbm_read_bytes + run.hbm_write_bytes))


def test_both_engines_are_held_back_alike():
    short = replace(LONG, heads=2, kv_heads=2, seq_q=512, seq_kv=512)
    hw = limited(A100.with_figures({"sm.count": 2}), 62)
    ours, reference = longest(hw, short), longest(hw, short, "reference")
    assert ours.clock_share < 1
    assert ours.clock_share == pytest.approx(reference.clock_share, rel=1e-9)
    assert ours.time_s == pytest.approx(reference.time_s, rel=1e-9)


def test_the_nominal_clock_makes_no_difference_to_one_that_the_limit_holds_below_it():
    slow, fast = limited(A100, 200), limited(A100.with_figures({"sm.clock": 1.6e9}), 200)
    clocks_hz = [hw.sm.clock * longest(hw).clock_share for hw in (slow, fast)]
    assert clocks_hz[0] == pytest.approx(clocks_hz[1], rel=0.03)


@given(
    st.sampled_from(["power.tdp", "hbm.bandwidth", "l2.bandwidth", "tensor.bf16", "sm.clock"]),
    st.floats(100, 500),
    st.floats(1.02, 2),
)
@settings(max_examples=25, deadline=None)
def test_a_better_figure_makes_no_kernel_slower_at_its_power_limit(key, watts, better):
    short = replace(LONG, heads=4, kv_heads=4, seq_q=1024, seq_kv=1024)
    hw = limited(A100, watts)
    faster = hw.with_figures({key: hw.figure(key) * better})
    before, after = longest(hw, short), longest(faster, short)
    assert after.time_s <= before.time_s * 1.03  # a tail's worth


@pytest.mark.parametrize(
    ("profile", "tflops"),
    [
        ("a100-sxm-80gb", 255), ("h100-sxm", 715), ("l40s", 191), ("b200", 1400),
        ("rtx-4090", 158), ("rtx-a6000", 121.5), ("rtx-5090", 235), ("t4", 42),
    ],
)  # fmt: skip
def test_a_large_matmul_sustains_what_the_energies_were_taken_from(profile, tflops):
    hw = load_profile(profile)
    rate = large_matmul_flops_per_s(hw, "bf16" if hw.tensor.bf16 else "fp16")
    assert rate == pytest.approx(tflops * 1e12, rel=0.03)


@pytest.mark.parametrize(
    ("profile", "tflops"),
    [("rtx-3090", 76), ("rtx-pro-6000-blackwell", 413), ("h20", 142), ("v100-sxm-32gb", 94.8)],
)
def test_a_large_matmul_sustains_what_it_does_on_devices_it_was_not_taken_from(profile, tflops):
    """Measured: zzc0721/torch-performance-test-data, database.md."""
    hw = load_profile(profile)
    rate = large_matmul_flops_per_s(hw, "bf16" if hw.tensor.bf16 else "fp16")
    assert rate == pytest.approx(tflops * 1e12, rel=0.04)


def test_an_h20_has_the_power_for_its_slower_tensor_cores():
    hw = load_profile("h20")
    unheld = hw.tensor_flops_per_s("bf16") * hw.calibration.tensor.native
    assert large_matmul_flops_per_s(hw, "bf16") == pytest.approx(unheld)


def test_a_regulator_comes_down_to_the_limit_and_stays_there():
    early, late = acted(0.0, 0.01), acted(0.05, 0.06)
    assert 0 < early < late < 1
    assert acted(0.0, 1e-6) == pytest.approx(1e-6 / (2 * REGULATOR_S), rel=1e-3)
    assert acted(0.0, 100.0) == pytest.approx(1.0, abs=1e-3)
    halves = (acted(0.0, 0.02) + acted(0.02, 0.04)) / 2
    assert acted(0.0, 0.04) == pytest.approx(halves)
