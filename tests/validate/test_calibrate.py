"""Calibration finds a device's true parameters again, and never looks at the test split."""

import pytest

from sim.inputs.files import InputError, find_toml
from sim.inputs.hardware import load_profile
from tests.support.simulated_bench import SimulatedBench
from validate.calibrate import BY_NAME, calibrate, profile_toml, value_of, with_values
from validate.campaign import load_campaign
from validate.measure import run_campaign
from validate.measurement import FORMAT, Device, Measurements, Micro
from validate.published import published

HW = load_profile("h100-sxm")
H100_FILE = find_toml("h100-sxm", "hw_profiles", "profile")
TRUTH = {
    "tensor.native": 0.35,
    "sm.mma_issue_cycles": 12.0,
    "sm.cta_setup": 3.4e-6,
    "launch.gap": 1.5e-6,
}
CAMPAIGN = """
title = "to calibrate on"
[[group]]
family = "flash2"
split = "train"
schedules = [
    { name = "flash2", implementation = "triton" },
    { name = "flash2", implementation = "triton", tile = { q = 64, kv = 64 }, warps = 4 },
    { name = "flash2" },
]
workload = { heads = 16 }
cases = [{ batch = 1, seq_len = 256 }, { batch = 8, seq_len = 512 }, { batch = 1, seq_len = 2048 }]
vary = { head_dim = [64, 128] }
"""


def measured(tmp_path, noise=0.0, micro=()):
    path = tmp_path / "campaign.toml"
    path.write_text(CAMPAIGN)
    bench = SimulatedBench(with_values(HW, TRUTH), micro, noise)
    return run_campaign(load_campaign(str(path)), tmp_path / "m.json", bench, lambda _: None)


# What 18 noisy shapes say of the issue share is vague: its 95% interval is some 15 to 20% wide.
@pytest.mark.parametrize(("noise", "issue_error"), [(0.0, 0.05), (0.02, 0.25)])
def test_the_true_rates_are_found_again_and_times_come_right(tmp_path, noise, issue_error):
    calibration = calibrate(measured(tmp_path, noise), HW)
    assert calibration.error_after < 0.02 + noise < 0.1 < calibration.error_before
    found = {one.parameter.name: one for one in calibration.parameters}
    most_errors = {
        "tensor.native": 0.05,
        "sm.mma_issue_cycles": issue_error,
    }
    for name, most in most_errors.items():
        assert found[name].by is not None
        assert found[name].value == pytest.approx(TRUTH[name], rel=most)
    assert found["sm.vector"].by is None
    assert found["sm.vector"].value == HW.calibration.sm.vector


def test_a_micro_benchmark_fixes_its_parameter_and_the_fit_leaves_it_alone(tmp_path):
    tile = {"m": 128, "n": 128, "k": 64, "warps": 8, "dtype": "fp16", "path": "native"}
    micro = [Micro(name="tensor", settings=tile, unit="FLOP/s", samples=[0.6 * HW.tensor.fp16])]
    calibration = calibrate(measured(tmp_path, micro=micro), HW)
    (native,) = [c for c in calibration.parameters if c.parameter.name == "tensor.native"]
    assert native.value == pytest.approx(0.6, rel=1e-9)
    assert native.by.startswith("tensor")


@pytest.fixture(scope="module")
def on_published():
    return calibrate(published("h100-sxm"), HW)


def test_the_test_split_is_never_looked_at(on_published):
    whole = published("h100-sxm")
    spoilt = whole.model_copy(
        update={
            "points": [
                p if p.split == "train" else p.model_copy(update={"warm_s": [1.0]})
                for p in whole.points
            ]
        }
    )
    assert on_published.parameters == calibrate(spoilt, HW).parameters


def test_what_the_data_does_not_determine_is_kept_and_said():
    train = [p for p in published("h100-sxm").points if p.split == "train"]
    one = [p for p in train if p.family == "flash2"][:1]
    few = published("h100-sxm").model_copy(update={"points": one})
    calibration = calibrate(few, HW)
    native = next(c for c in calibration.parameters if c.parameter.name == "tensor.native")
    assert (native.value, native.by) == (HW.calibration.tensor.native, None)
    assert "the data does not determine it" in native.warning


def test_the_profile_that_is_written_is_the_one_that_was_fitted(on_published, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(profile_toml(on_published, H100_FILE, "Mine", "a test", path))
    loaded = load_profile(str(path))
    for name in BY_NAME:
        assert value_of(loaded, name) == pytest.approx(value_of(on_published.hardware, name), 1e-5)
    assert "Calibrated by attnsim on a test" in loaded.calibration.tensor.source


def test_nothing_to_calibrate_on_is_said():
    empty = Measurements(
        format=FORMAT, title="nothing", taken="2026-01-01", device=Device(name="x", profile="x")
    )
    with pytest.raises(InputError, match="nothing to calibrate on"):
        calibrate(empty, HW)
    test_only = [p for p in published("h100-sxm").points if p.split == "test"]
    with pytest.raises(InputError, match="nothing to calibrate on"):
        calibrate(empty.model_copy(update={"points": test_only}), HW)
