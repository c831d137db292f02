"""Comparison: errors, pairs and reasons, against numbers worked out by hand."""

import json

import pytest

from sim.inputs.hardware import load_profile
from tests.support.commands import assert_one_line, called
from tests.support.simulated_bench import SimulatedBench
from validate.campaign import load_campaign
from validate.compare import COLD, HBM, WARM, compare, pairs, why, worst
from validate.judging import HITS, counted_hit_rate
from validate.measure import run_campaign
from validate.measurement import Measurement, Shape
from validate.predict import NotPredictedError, predict
from validate.published import published, published_profiles, rows

HW = load_profile("h100-sxm")
CAMPAIGN = """
title = "to compare"
[[group]]
family = "flash2"
split = "test"
schedules = [
    { name = "flash2", implementation = "triton" },
    { name = "flash2", implementation = "triton", tile = { q = 16, kv = 16 } },
]
workload = { heads = 8, head_dim = 64 }
vary = { seq_len = [256, 512, 1024] }
[[group]]
family = "naive"
split = "test"
schedules = [{ name = "naive", mask = false }]
workload = { heads = 8, head_dim = 64 }
vary = { seq_len = [256, 512, 1024] }
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign")
    (folder / "c.toml").write_text(CAMPAIGN)
    campaign = load_campaign(str(folder / "c.toml"))
    return run_campaign(campaign, folder / "m.json", SimulatedBench(HW), lambda _: None)


def scaled(point: Measurement, factor: float) -> Measurement:
    times = {name: [t * factor for t in getattr(point, name)] for name in ("cold_s", "warm_s")}
    return point.model_copy(update=times)


def test_a_device_that_is_the_simulator_is_predicted_without_error(measured):
    comparison = compare(measured, HW)
    assert {(s.family, s.quantity) for s in comparison.scores} == {
        (family, quantity) for family in ("flash2", "naive") for quantity in (COLD, WARM, HBM, HITS)
    }
    for score in comparison.scores:
        assert score.worst_error == pytest.approx(0, abs=1e-12)
        assert score.points == (6 if score.family == "flash2" else 3)
    assert comparison.pairs.right == comparison.pairs.total > 0
    assert not comparison.left


def test_errors_and_bias_are_those_of_a_device_that_is_slower_by_known_factors(measured):
    flash = [p for p in measured.points if p.family == "flash2"]
    factors = [2.0, 1.0, 1.0, 1.0, 1.0, 0.8]
    slower = [scaled(p, f) for p, f in zip(flash, factors, strict=True)]
    comparison = compare(measured.model_copy(update={"points": slower}), HW)
    (cold,) = [s for s in comparison.scores if s.quantity == COLD]
    assert cold.mean_error == pytest.approx((0.5 + 0.25) / 6)
    assert cold.bias == pytest.approx((-0.5 + 0.25) / 6)
    assert cold.worst_error == pytest.approx(0.5)
    first = worst(comparison.judged)[0]
    assert first.error == pytest.approx(-0.5)
    assert "held back by" in why(first)


def test_a_pair_that_comes_out_the_other_way_round_is_counted_wrong(measured):
    judged = [one for one in compare(measured, HW).judged if one.quantity == COLD]
    same_length = [one for one in judged if one.point.workload.seq_len == 512]
    assert len(same_length) == 3
    truth = pairs(same_length)
    swapped = [
        type(one)(one.point, COLD, 1 / one.measured, one.predicted, one.roofline, one.prediction)
        for one in same_length
    ]
    assert (pairs(swapped).total, pairs(swapped).right) == (truth.total, 0)
    equal = [
        type(one)(one.point, COLD, 1.0, one.predicted, one.roofline, one.prediction)
        for one in same_length
    ]
    assert pairs(equal).total == 0


def test_a_warm_run_finds_in_l2_what_a_cold_one_reads_from_hbm():
    shape = Shape(
        runner="attnsim",
        family="flash_decoding",
        split="test",
        workload={"heads": 8, "head_dim": 128, "seq_kv": 8192, "phase": "decode"},
        schedule={"name": "flash_decoding", "implementation": "triton"},
    )
    prediction = predict(shape, HW)
    assert prediction.warm_s < 0.85 * prediction.cold_s
    larger = shape.model_copy(
        update={"workload": shape.workload.model_copy(update={"batch": 64, "heads": 32})}
    )
    prediction = predict(larger, HW)
    assert prediction.warm_s == pytest.approx(prediction.cold_s)


def test_the_roofline_is_bytes_or_flops_of_the_tensors_whichever_takes_longer():
    table = {"heads": 16, "head_dim": 128, "seq_len": 4096}
    shape = Shape(
        runner="attnsim", family="f", split="test", workload=table, schedule={"name": "flash2"}
    )
    flops = 4 * 16 * 4096**2 * 128
    assert predict(shape, HW).roofline_s == pytest.approx(flops / HW.tensor_flops_per_s("fp16"))
    decode = {"heads": 16, "head_dim": 128, "seq_kv": 8192, "phase": "decode"}
    schedule = {"name": "flash_decoding", "splits": 1}
    shape = Shape(runner="attnsim", family="f", split="test", workload=decode, schedule=schedule)
    moved = 2 * 16 * 8192 * 128 * 2 + 2 * 16 * 128 * 2 + 16 * 4
    # All FLOPs of the tile count, whose rows are mostly empty in decoding: still fewer than bytes.
    assert predict(shape, HW).roofline_s == pytest.approx(moved / HW.hbm.bandwidth)


def test_shares_of_the_critical_path_with_power_and_launches_are_all_of_it():
    table = {"heads": 64, "head_dim": 128, "seq_len": 16384, "dtype": "bf16"}
    shape = Shape(
        runner="attnsim", family="f", split="test", workload=table, schedule={"name": "flash3"}
    )
    for tdp in (700.0, 250.0):
        prediction = predict(shape, HW.with_figures({"power.tdp": tdp}))
        assert sum(prediction.shares.values()) == pytest.approx(1.0)
    assert prediction.shares["power"] > 0.1


def test_writes_count_among_the_lookups_that_hit():
    """Nsight Compute's lts__t_sectors_srcunit_tex_lookup_hit is of reads and writes."""
    assert counted_hit_rate(read_bytes=300.0, write_bytes=100.0, hit_bytes=200.0) == 0.75
    assert counted_hit_rate(0.0, 0.0, 0.0) == 0.0


def test_a_benchmark_that_is_soon_over_is_little_held_back_by_power():
    hot = HW.with_figures({"power.tdp": 250.0})

    def slower(seq_len: int) -> float:
        table = {"heads": 16, "head_dim": 128, "seq_len": seq_len, "dtype": "bf16"}
        shape = Shape(
            runner="attnsim", family="f", split="test", workload=table, schedule={"name": "flash3"}
        )
        return predict(shape, hot).cold_s / predict(shape, HW).cold_s

    short, long = slower(4096), slower(16384)  # 30 times a quarter of a millisecond, and four
    assert 1 < short < 1.1
    assert long > 1.25


def test_what_cannot_be_predicted_says_why():
    shape = Shape(
        runner="published", family="f", split="test", schedule=None,
        workload={"heads": 1, "head_dim": 64, "seq_len": 64},
    )  # fmt: skip
    with pytest.raises(NotPredictedError, match="no schedule stands for f"):
        predict(shape, HW)
    huge = {"heads": 64, "head_dim": 64, "seq_len": 65536}
    naive = shape.model_copy(
        update={
            "schedule": {"name": "naive"},
            "workload": type(shape.workload).model_validate(huge),
        }
    )
    with pytest.raises(NotPredictedError, match="out of memory: S does not fit"):
        predict(naive, HW)


def test_published_rates_are_times_by_the_benchmarks_count_of_flops():
    paper = "arXiv 2407.08608"
    flash = [
        p for p in published("h100-sxm").points
        if p.family == "flash2" and p.source.startswith(paper)
    ]  # fmt: skip
    (point,) = [
        p for p in flash
        if p.workload.head_dim == 128 and p.workload.seq_kv == 8192 and not p.workload.causal
    ]  # fmt: skip
    assert point.warm_s == pytest.approx([4 * 2 * 16 * 8192**2 * 128 / 370e12])
    (causal,) = [
        p for p in flash
        if p.workload.head_dim == 128 and p.workload.seq_kv == 8192 and p.workload.causal
    ]  # fmt: skip
    assert causal.warm_s == pytest.approx([2 * 2 * 16 * 8192**2 * 128 / 333e12])
    (trained,) = [
        p for p in published("rtx-a5000").points
        if p.family == "flash2 fwd+bwd" and p.workload.seq_kv == 8192
    ]  # fmt: skip
    assert trained.workload.phase == "training"
    assert trained.warm_s == pytest.approx([3.5 * 4 * 2 * 32 * 8192**2 * 64 / 78.64e12])


def test_a_point_is_predicted_at_the_clock_that_its_source_held():
    of_paper = [p for p in published("h100-sxm").points if "2407.08608" in (p.source or "")]
    assert {p.clock_mhz for p in of_paper} == {1830}
    others = [p for p in published("h100-sxm").points if p not in of_paper]
    assert {p.clock_mhz for p in others} == {None}
    point = next(p.shape for p in of_paper if p.family == "flash3" and p.workload.seq_q == 2048)
    as_it_is, halved = (
        predict(point.model_copy(update={"clock_mhz": mhz}), HW).warm_s for mhz in (None, 915)
    )
    assert predict(point, HW).warm_s == pytest.approx(as_it_is)
    assert 1.7 < halved / as_it_is < 2.1


def test_published_times_are_judged_from_the_l2_that_the_benchmark_leaves():
    cleared = published("rtx-3090").points  # all by Triton's do_bench
    assert all(p.cold_s and not p.warm_s for p in cleared)
    figures = [p for p in published("h100-pcie").points if p.status == "ok"]
    assert all(p.warm_s and not p.cold_s for p in figures)
    short = min((p for p in cleared if p.family == "flash_decoding"), key=lambda p: p.cold_s)
    hw = load_profile("rtx-3090")
    (judged,) = compare(published("rtx-3090").model_copy(update={"points": [short]}), hw).judged
    prediction = predict(short, hw)
    assert (judged.quantity, judged.predicted) == (COLD, prediction.cold_s)
    assert prediction.cold_s != prediction.warm_s


def test_a_published_kernel_that_no_schedule_is_like_is_not_judged():
    points = [p for p in published("rtx-4090").points if p.family == "triton_paged_gather"]
    comparison = compare(published("rtx-4090").model_copy(update={"points": points}), HW)
    assert not comparison.judged
    assert {left.reason for left in comparison.left} == {
        "no schedule stands for triton_paged_gather"
    }


def test_every_published_row_is_read_and_no_shape_trains_and_tests():
    by_profile = {profile: published(profile).points for profile in published_profiles()}
    points = [point for of_one in by_profile.values() for point in of_one]
    assert len(points) == len(rows())
    assert all(p.source for p in points)
    train, test = (
        [
            (profile, p.family, p.workload)
            for profile, of_one in by_profile.items()
            for p in of_one
            if p.split == split
        ]
        for split in ("train", "test")
    )
    assert len(test) >= len(train) > 0
    assert not any(shape in test for shape in train)


def test_flash_attention_2_on_h100_is_predicted_better_than_by_a_roofline():
    points = [p for p in published("h100-sxm").points if p.family == "flash2" and p.warm_s]
    comparison = compare(published("h100-sxm").model_copy(update={"points": points}), HW)
    (score,) = comparison.scores
    assert score.mean_error < score.roofline_error / 6


def test_flash_attention_3_on_h100_is_named_faster_than_2_wherever_both_were_published():
    both = [
        p
        for p in published("h100-sxm").points
        if p.family in ("flash2", "flash3") and p.source.startswith("arXiv 2407.08608")
        if p.workload.seq_kv <= 2048
    ]
    comparison = compare(published("h100-sxm").model_copy(update={"points": both}), HW, split=None)
    assert comparison.pairs.right == comparison.pairs.total == 9
    (score,) = [s for s in comparison.scores if s.family == "flash3"]
    assert score.mean_error < 0.2
    assert score.mean_error < score.roofline_error / 2


def test_the_command_prints_writes_and_draws(measured, tmp_path):
    (tmp_path / "m.json").write_text(measured.model_dump_json(exclude_defaults=True))
    done = called(
        "validate", "compare", "m.json", "--profile", "a100-sxm-80gb", "--out", "o", "--json",
        "--format", "svg", "--size", "3.3x2.4in", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said == json.loads((tmp_path / "o/comparison.json").read_text())
    assert said["hardware"] == "a100-sxm-80gb"
    assert {s["family"] for s in said["scores"]} == {"flash2", "naive"}
    drawn = {path.stem for path in (tmp_path / "o").glob("*.svg")}
    assert 'width="237.6pt"' in (tmp_path / "o/error_hbm_bytes.svg").read_text()
    assert drawn == {
        "error_time_cold_l2", "error_time_warm_l2", "error_hbm_bytes", "error_l2_hit_rate",
        "scatter_time_cold_l2", "scatter_time_warm_l2", "scatter_hbm_bytes",
    }  # fmt: skip
    table = called("validate", "compare", "m.json", "--profile", "h100-sxm", cwd=tmp_path)
    assert "Worst points:" in table.stdout


def test_unknown_published_gpu_and_missing_file_are_one_line(tmp_path):
    done = called("validate", "compare", "published", "--profile", "mi300x", cwd=tmp_path)
    assert_one_line(done, "no published figures of mi300x", "h100-sxm")
    done = called("validate", "compare", "none.json", "--profile", "h100-sxm", cwd=tmp_path)
    assert_one_line(done, "none.json: no such file")
    done = called(
        "calibrate", "published", "--profile", "h100-sxm", "--out", "no/where.toml", cwd=tmp_path
    )
    assert_one_line(done, "--out no/where.toml")


def test_one_command_measures_calibrates_and_compares(tmp_path, monkeypatch, capsys):
    from sim.cli import validate as cli

    table = CAMPAIGN.replace('split = "test"', 'split = "train"', 1)
    (tmp_path / "c.toml").write_text(table)
    bench = SimulatedBench(HW)

    def measure_here(campaign, out, _):
        out.parent.mkdir()
        return run_campaign(campaign, out, bench, lambda _: None)

    monkeypatch.setattr(cli, "measure_here", measure_here)
    cli.validate_run(tmp_path / "mine", str(tmp_path / "c.toml"))
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert names >= {"measurements.json", "profile.toml", "comparison.json"}
    assert load_profile(str(tmp_path / "mine/profile.toml")).arch == "sm90"
    (score, *_) = json.loads((tmp_path / "mine/comparison.json").read_text())["scores"]
    assert score["family"] == "naive"
    assert score["mean_error"] < 0.1
    assert "Fitted to 6 points" in capsys.readouterr().out
