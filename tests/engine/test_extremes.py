"""Whatever figures a profile may state, a run's are finite, and the engine stays in its arrays."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import simulate
from sim.inputs.files import InputError

# Key, least, most and unit: to the bounds that `sim.inputs.units` sets.
QUANTITIES = {
    "hbm.bandwidth": (1e4, 1e18, "B/s"),
    "hbm.capacity": (1.0, 1e18, "B"),
    "l2.bandwidth": (1e4, 1e18, "B/s"),
    "l2.capacity": (1.0, 1e18, "B"),
    "sm.clock": (1e6, 1e12, "Hz"),
    "tensor.fp16": (1.0, 1e9, "FLOP/clock"),
    "power.tdp": (1e-3, 1e6, "W"),
    "energy.hbm_per_byte": (1e-21, 1.0, "J/B"),
    "energy.tensor_per_flop": (1e-21, 1.0, "J/FLOP"),
    "energy.lane_op": (1e-21, 1.0, "J"),
    "energy.clock": (1e6, 1e12, "Hz"),
    "calibration.hbm.latency": (1e-15, 1.0, "s"),
    "calibration.l2.latency": (1e-15, 1.0, "s"),
    "calibration.sm.op_latency": (1e-15, 1.0, "s"),
    "calibration.sm.cta_setup": (1e-15, 1.0, "s"),
    "calibration.launch.latency": (1e-15, 1.0, "s"),
}
NUMBERS = {
    "sm.exp_per_clock": (1, 10**6),
    "sm.l2_bytes_per_clock": (1, 10**6),
    "sm.fp32_lanes": (1, 10**6),
    "sram.bytes_per_clock": (1, 10**6),
    "calibration.l2.candidates": (1, 10**6),
    "sm.count": (1, 300),  # more are slow, not wrong
    "sm.max_ctas": (1, 32),
}
SHARES = [
    f"calibration.{key}"
    for key in ("hbm.read", "hbm.write", "l2.effective_capacity", "tensor.mma_sync", "sm.vector")
]


def within(least: float, most: float, unit: str) -> st.SearchStrategy[str]:
    """A quantity between the bounds, often one of them."""
    return st.one_of(st.sampled_from([least, most]), st.floats(least, most, allow_nan=False)).map(
        lambda amount: f"{amount!r} {unit}"
    )


FIGURES = st.fixed_dictionaries(
    {},
    optional={key: within(*bounds) for key, bounds in QUANTITIES.items()}
    | {key: st.integers(*bounds) for key, bounds in NUMBERS.items()}
    | {key: st.floats(1e-3, 1.0) for key in SHARES},
)


def nested(figures):
    tables = {"profile": "h100-sxm"}
    for key, value in figures.items():
        *path, last = key.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return tables


@pytest.mark.parametrize("schedule", ["naive", "flash2", "flash3", "flash_decoding"])
@settings(max_examples=25)
@given(figures=FIGURES)
def test_a_run_within_bounds_is_finite_or_refused(schedule, figures):
    phase = "decode" if schedule == "flash_decoding" else "prefill"
    workload = {"heads": 2, "head_dim": 64, "seq_len": 512, "phase": phase}
    try:
        (record,) = simulate(workload=workload, hardware=nested(figures), schedule=schedule)
    except InputError:  # such as too few registers for a CTA
        return
    json.dumps(asdict(record), allow_nan=False)
    if record.status == "ok":
        assert record.time_s > 0
        assert 0 <= record.l2_hit_rate <= 1


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("calibration.hbm.latency", "1e308 s", "it must be between 0 and 1 s"),
        ("hbm.bandwidth", "1e-300 B/s", "it must be between 10 kB/s and 1e+03 PB/s"),
        ("l2.capacity", "1e300 B", "it must be between 0 and 1e+03 PB"),
        ("tensor.fp16", "1e-300 FLOP/s", "it must be between 1 FLOP/clock"),
        ("calibration.hbm.read", 5e-324, "it must be at least 0.001"),
        ("sm.clock", "1 Hz", "it must be between 1 MHz and 1 THz"),
        pytest.param("sm.count", 10**400, "it must be at most 1000000", id="vast"),
    ],
)
def test_figures_of_no_device_are_refused(key, value, says):
    workload = {"heads": 2, "head_dim": 64, "seq_len": 512}
    with pytest.raises(InputError) as error:
        simulate(workload=workload, hardware=nested({key: value}), schedule="flash2")
    assert key in str(error.value)
    assert says in str(error.value)
