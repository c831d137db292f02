"""L2s that no device has: what they move stays within what can be, told whole or by a part."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.device.run import run_on_device
from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.inputs.workload import AttentionWorkload
from sim.machine import machine_of
from sim.schedules import make_schedule
from sim.tile_program import Kernel, Store, in_order
from tests.support.drawn import cases, devices, lowered
from tests.support.formulas import workload

# None, less than a sector, less than a tile, a few tiles, all; of dies more than there are SMs, and
# each die's cache larger than the one that all share.
ODD = st.fixed_dictionaries(
    {
        "l2.capacity": st.sampled_from([0.0, 1.0, 31.0, 2.0**12, 2.0**15, 2.0**17, 2.0**40]),
        "l2.dies": st.integers(1, 12),
        "l2.die_capacity": st.sampled_from([0.0, 1.0, 2.0**12, 2.0**16, 2.0**40]),
        "sm.count": st.integers(1, 9),
        "calibration.l2.candidates": st.sampled_from([1, 2, 16, 1000]),
        "calibration.l2.effective_capacity": st.sampled_from([0.001, 0.5, 1.0]),
    }
)


def runs_of(
    kernels: list[Kernel], hw: HardwareProfile, w: AttentionWorkload, most_steps: int | None = None
) -> list[KernelRun]:
    """The kernels' runs one after the other, the long ones told by parts of so many steps."""
    ran = run_on_device(
        in_order(kernels), hw, w.dtype, "replay", lambda _: None, most_steps=most_steps
    )
    return [one.run for one in ran.kernels]


def check_bounds(runs: list[KernelRun], hw: HardwareProfile, off_by: float = 0.0) -> None:
    """Hits and reads are of what was asked for; a byte that was stored is written or dirty."""
    stored = written = 0
    for ran in runs:
        assert 0 <= ran.die_hit_bytes <= ran.l2_hit_bytes <= ran.l2_read_bytes
        assert 0 <= ran.hbm_reread_bytes <= ran.hbm_read_bytes
        if not any(isinstance(step, Store) and step.atomic for step in ran.kernel.actions):
            assert ran.hbm_read_bytes == ran.l2_read_bytes - ran.l2_hit_bytes
        assert 0 <= ran.l2_dirty_bytes <= machine_of(hw).l2_most_dirty_bytes
        assert ran.hbm_write_bytes >= 0
        written += ran.hbm_write_bytes
        stored += ran.l2_write_bytes
        assert written + ran.l2_dirty_bytes <= stored * (1.0 + off_by)


@given(cases(), devices(), ODD)
@settings(max_examples=60, deadline=None)
def test_bytes_of_odd_caches_stay_within_what_was_asked_for(case, hw, odd):
    w, schedule = case
    device = hw.with_figures(odd)
    check_bounds(runs_of(lowered(schedule, w, device), device, w), device)


@given(cases(), devices(), ODD, st.sampled_from([1.25, 2.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_a_larger_l2_reads_no_more_than_chance_makes_it(case, hw, odd, times):
    """What is evicted is drawn: a larger L2 may draw worse, by some tiles."""
    w, schedule = case
    device = hw.with_figures(odd)
    larger = hw.with_figures(odd | {"l2.capacity": odd["l2.capacity"] * times})
    kernels = lowered(schedule, w, device)
    tile_bytes = max(stream.tile_bytes for kernel in kernels for stream in kernel.streams)
    before, after = (
        sum(ran.hbm_read_bytes for ran in runs_of(kernels, one, w)) for one in (device, larger)
    )
    assert after <= before * 1.03 + 2 * tile_bytes


def kernels_of(name: str, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
    """What a schedule launches."""
    return lowered(make_schedule({"name": name}, "a test"), w, hw)


@pytest.mark.parametrize(
    ("name", "tokens", "capacity"),
    [("minference", 3850, 2.0**16), ("minference", 500, 2.0**16), ("naive", 895, 0.0)],
)
def test_what_is_told_by_parts_on_an_l2_of_its_own_stays_within_the_one_there_is(
    name, tokens, capacity
):
    """Kernels told by parts leave one L2 dirty, those between them another; waves read edges."""
    hw = load_profile("h100-sxm").with_figures({"l2.capacity": capacity, "sm.count": 1})
    w = workload(heads=8 if capacity else 1, head_dim=64, seq_len=tokens, causal=capacity > 0)
    kernels = kernels_of(name, w, hw)
    told = runs_of(kernels, hw, w, most_steps=300)
    assert any(ran.fast_forward for ran in told)
    check_bounds(told, hw, off_by=0.005)
