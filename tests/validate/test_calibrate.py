"""Calibration finds a device's true parameters again, and never looks at the test split."""

from dataclasses import replace
from itertools import product

import pytest

from sim.inputs.files import InputError, find_toml
from sim.inputs.hardware import load_profile
from tests.support.simulated_bench import SimulatedBench
from validate.calibrate import BY_NAME, calibrate, profile_toml, value_of
from validate.campaign import load_campaign
from validate.figures import Figure
from validate.measure import run_campaign
from validate.measured import measured_of
from validate.measurement import FORMAT, Device, Measurements, Micro
from validate.published import published
from validate.samples import RowSample, points_of, rows_of, with_values
from validate.simulated import simulate
from validate.stick import judge

HW = load_profile("h100-sxm")
A_TENTH = load_profile("h100-sxm", {"sm": {"count": 13}}, "a test")  # replays take a tenth too
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
workload = { heads = 2 }
cases = [{ batch = 1, seq_len = 256 }, { batch = 8, seq_len = 512 }, { batch = 1, seq_len = 2048 }]
vary = { head_dim = HEAD_DIMS }
"""


def measured(tmp_path, head_dims, noise=0.0, micro=()):
    path = tmp_path / "campaign.toml"
    path.write_text(CAMPAIGN.replace("HEAD_DIMS", str(head_dims)))
    bench = SimulatedBench(with_values(A_TENTH, TRUTH), micro, noise)
    return run_campaign(load_campaign(str(path)), tmp_path / "m.json", bench, lambda _: None)


def fitted_to(measurements, hw=HW):
    return calibrate(points_of(measurements, hw), hw, measurements.micro)


# What 18 noisy shapes say of both shares is vague: the issue share's 95% interval is some 15 to 20%
# wide, and one makes up for the other.
@pytest.mark.parametrize(
    ("head_dims", "noise", "tensor_error", "issue_error"),
    [([128], 0.0, 0.05, 0.05), ([64, 128], 0.02, 0.1, 0.25)],
)
def test_the_true_rates_are_found_again_and_times_come_right(
    tmp_path, head_dims, noise, tensor_error, issue_error
):
    calibration = fitted_to(measured(tmp_path, head_dims, noise), A_TENTH)
    assert calibration.error_after < 0.02 + noise < 0.1 < calibration.error_before
    found = {one.parameter.name: one for one in calibration.parameters}
    most_errors = {
        "tensor.native": tensor_error,
        "sm.mma_issue_cycles": issue_error,
    }
    for name, most in most_errors.items():
        assert found[name].by is not None
        assert found[name].value == pytest.approx(TRUTH[name], rel=most)
    assert found["sm.vector"].by is None
    assert found["sm.vector"].value == HW.calibration.sm.vector


def test_a_micro_benchmark_fixes_its_parameter_and_the_fit_leaves_it_alone(tmp_path):
    tile = {"m": 128, "n": 128, "k": 64, "warps": 8, "dtype": "fp16", "path": "native"}
    micro = [
        Micro(
            name="tensor",
            settings=tile,
            unit="FLOP/s",
            samples=[0.6 * A_TENTH.tensor_flops_per_s("fp16")],
        )
    ]
    calibration = fitted_to(measured(tmp_path, [128], micro=micro), A_TENTH)
    (native,) = [c for c in calibration.parameters if c.parameter.name == "tensor.native"]
    assert native.value == pytest.approx(0.6, rel=1e-9)
    assert native.by.startswith("tensor")


def short():
    """Published rows of 1,024 tokens: a fit replays each some hundred times."""
    whole = published("h100-sxm")
    points = [point for point in whole.points if point.workload.seq_q == 1024]
    assert {point.split for point in points} == {"train", "test"}
    return whole.model_copy(update={"points": points})


@pytest.fixture(scope="module")
def on_published():
    return fitted_to(short())


def test_the_test_split_is_never_looked_at(on_published):
    whole = short()
    spoilt = whole.model_copy(
        update={
            "points": [
                p if p.split == "train" else p.model_copy(update={"warm_s": [1.0]})
                for p in whole.points
            ]
        }
    )
    assert on_published.parameters == fitted_to(spoilt).parameters


def test_what_the_data_does_not_determine_is_kept_and_said():
    train = [p for p in published("h100-sxm").points if p.split == "train"]
    one = [p for p in train if p.family == "flash2"][:1]
    few = published("h100-sxm").model_copy(update={"points": one})
    calibration = fitted_to(few)
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
        fitted_to(empty)
    test_only = [p for p in published("h100-sxm").points if p.split == "test"]
    with pytest.raises(InputError, match="nothing to calibrate on"):
        fitted_to(empty.model_copy(update={"points": test_only}))


# -- Tables of figures --


def figure(**columns):
    row = {"gpu": "L40S", "kernel": "sglang triton", "pass": "fwd", "dtype": "bf16"}
    row |= {"batch": 4, "heads": 16, "kv_heads": 16, "causal": "1", "metric": "time_us"}
    return Figure.model_validate(row | {"value": 1000.0, "where": "a table"} | columns)


def table(truth, split="fit"):
    """Rows as devices with that calibration would take, on two devices of Ada."""
    rows = []
    for gpu, seq, head_dim in product(("L40S", "RTX 4090"), (512, 2048), (64, 128)):
        asked = figure(gpu=gpu, seq_q=seq, seq_kv=seq, head_dim=head_dim, split=split)
        measured = measured_of(asked)
        case = measured.case
        device = with_values(case.hardware, truth)
        truly = replace(measured, case=replace(case, hardware=device))
        seconds = judge(truly, simulate(truly.case)).predicted
        rows.append(asked.model_copy(update={"value": seconds * 1e6}))
    return rows


def test_rows_of_all_devices_of_an_architecture_give_its_figures_and_others_are_not_looked_at():
    truth = {"tensor.native": 0.5, "sm.cta_setup": 5e-6}
    spoilt = [row.model_copy(update={"value": 9e9, "split": "test"}) for row in table({})]
    ampere = figure(gpu="A100", seq_q=512, seq_kv=512, head_dim=64, split="fit")
    samples = rows_of([*table(truth), *spoilt, ampere], "l40s")
    assert len(samples) == 8
    calibration = calibrate(samples, load_profile("l40s"))
    assert calibration.error_after < 0.03 < 0.2 < calibration.error_before
    found = {one.parameter.name: one for one in calibration.parameters}
    for name, value in truth.items():
        assert found[name].by is not None
        assert found[name].value == pytest.approx(value, rel=0.1)


def test_a_row_that_is_held_back_is_no_sample():
    held_back = figure(seq_q=512, seq_kv=512, head_dim=64, split="transfer")
    with pytest.raises(InputError, match="nothing is fitted to such a row"):
        RowSample(measured_of(held_back))
