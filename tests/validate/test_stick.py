"""The measuring stick: predictions, scores and pairs, against numbers worked out by hand."""

import json
import re
from dataclasses import replace

import pytest

from sim.engine.power import acted
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.machine import machine_of
from sim.runs.store import Store
from tests.support.commands import assert_one_line, called
from tests.support.tables_of_figures import DECODE, figure, write
from validate.figures import read_figures
from validate.measured import IN_A_STREAM_S, measured_of
from validate.predict import NotPredictedError
from validate.simulated import KernelFigures, Simulated, address_of, simulate
from validate.stick import (
    ANY,
    DRAM,
    HITS,
    L2,
    RATE,
    TIME,
    constants,
    judge,
    measure_up,
    pairs,
    quantity_of,
    scores,
    times,
)
from validate.stick_report import REGIMES, markdown, regime_rows, save_stick

KERNEL = KernelFigures(
    name="a kernel",
    time_s=80e-6,
    power_s=0.0,
    dram_read_bytes=600,
    dram_write_bytes=200,
    l2_read_bytes=10_000_000,
    l2_write_bytes=2_000_000,
    l2_hit_bytes=4_000_000,
    roofline_s=50e-6,
    roofline_dram_bytes=700,
    time_error=0.0,
)
TWO = Simulated((KERNEL, KERNEL))


def judged(folder, simulated=TWO, **row):
    return judge(measured_of(figure(folder, **row)), simulated)


# --- one figure ------------------------------------------------------------------------------


def test_a_stream_of_kernels_has_a_gap_each_and_a_profiler_sees_none(tmp_path):
    stream, profiled = (
        measured_of(figure(tmp_path, extra=extra)) for extra in ("warm", "ncu cold")
    )
    gap_s = stream.case.hardware.calibration.launch.gap + IN_A_STREAM_S
    assert times(stream, TWO) == (pytest.approx(160e-6 + 2 * gap_s), pytest.approx(100e-6))
    assert times(profiled, TWO) == (pytest.approx(160e-6), pytest.approx(100e-6))


def test_the_power_limit_has_acted_as_long_as_the_calls_that_were_timed(tmp_path):
    """A kernel of 10 ms at the nominal clock, to which the limit adds 5."""
    limited = Simulated((replace(KERNEL, time_s=15e-3, power_s=5e-3),))
    row = {"kernel": "vllm vllm_flash_attn", "gpu": "A100", "extra": "warm"}
    ours, lasts, once = (
        times(measured, limited)[0] - measured.beside.host_s
        for change in ({"source": "ai-dynamo/aiconfigurator"}, {}, {"extra": "ncu, warm"})
        for measured in [measured_of(figure(tmp_path, **row | change))]
    )
    gap_s = lasts - 15e-3
    assert 0 < gap_s < 10e-6
    assert ours == pytest.approx(lasts - 5e-3 * (1 - acted(60e-3, 120e-3)), rel=1e-4)
    assert once == pytest.approx(10e-3 + 5e-3 * acted(0.0, 10e-3), rel=1e-4)
    assert once < ours < lasts


def test_what_the_call_does_beside_attention_is_in_its_time(tmp_path):
    plain, writes = (
        measured_of(figure(tmp_path, extra=extra)) for extra in ("warm", "KV write included, warm")
    )
    beside = writes.beside.times(writes.case.workload, writes.case.hardware, writes.apart_s)
    seconds, roofline_s = (
        more - less for more, less in zip(times(writes, TWO), times(plain, TWO), strict=True)
    )
    assert (seconds, roofline_s) == (pytest.approx(beside[0]), pytest.approx(beside[1]))
    assert beside[0] > beside[1] > 0


def test_of_a_call_timed_without_a_graph_the_longer_of_host_and_gpu_counts(tmp_path):
    row = {"kernel": "vllm MLA vllm_triton_mla", "pass_": "decode", "seq_q": "1", "gpu": "L40S"}
    measured = measured_of(figure(tmp_path, **row))
    longer = replace(KERNEL, time_s=2 * measured.host_s)
    assert times(measured, TWO)[0] == measured.host_s > 300e-6
    assert times(measured, Simulated((longer,)))[0] > longer.time_s


@pytest.mark.parametrize(
    ("row", "quantity", "value"),
    [
        ({"metric": "time_us", "value": "7"}, TIME, 7e-6),
        ({"metric": "tflops", "value": "2"}, TIME, 4 * 8 * 512 * 512 * 64 / 2e12),
        ({"metric": "tflops", "value": "2", "causal": "1"}, TIME, 2 * 8 * 512 * 512 * 64 / 2e12),
        ({"metric": "gbps", "value": "3"}, TIME, 2 * 2 * 8 * 1024 * 64 / 3e9),
        ({"metric": "gbps", "value": "3", "extra": "DRAM 9% of peak"}, RATE, 3e9),
        ({"metric": "l2_hit_pct", "value": "25"}, HITS, 0.25),
        ({"metric": "l2_read_bytes", "value": "9"}, L2, 9),
        ({"metric": "dram_total_bytes", "value": "9"}, DRAM, 9),
    ],
)
def test_every_metric_is_a_quantity_in_si_units(tmp_path, row, quantity, value):
    assert quantity_of(figure(tmp_path, **row)) == (quantity, pytest.approx(value))


@pytest.mark.parametrize(
    ("metric", "predicted", "roofline"),
    [
        ("dram_read_bytes", 1200, None),
        ("dram_write_bytes", 400, None),
        ("dram_total_bytes", 1600, 1400),
        ("l2_read_bytes", 20e6, None),
        ("l2_hit_pct", 1200 / 2400, None),
    ],
)
def test_bytes_and_hits_are_those_of_all_kernels(tmp_path, metric, predicted, roofline):
    one = judged(tmp_path, metric=metric, value="50", extra="ncu")
    assert (one.predicted, one.roofline) == (pytest.approx(predicted), roofline)


def test_an_error_is_relative_and_of_hit_rates_a_difference(tmp_path):
    assert judged(tmp_path, value="200", extra="ncu").error == pytest.approx(-0.2)
    hits = judged(tmp_path, metric="l2_hit_pct", value="60", extra="ncu")
    assert hits.error == pytest.approx(-0.1)


def test_a_hit_rate_of_few_bytes_is_of_other_units_and_not_judged(tmp_path):
    few = Simulated((replace(KERNEL, l2_hit_bytes=0),))
    with pytest.raises(NotPredictedError, match="not asked for by its SMs"):
        judged(tmp_path, few, metric="l2_hit_pct", value="87.9", extra="ncu")
    assert judged(tmp_path, few, metric="l2_read_bytes", value="9", extra="ncu").error > 0


def test_of_no_bytes_there_is_no_relative_error(tmp_path):
    with pytest.raises(NotPredictedError, match="0 bytes were counted"):
        judged(tmp_path, metric="dram_write_bytes", value="0")


@pytest.mark.parametrize(
    ("row", "regime"),
    [
        ({}, "few, batch 1"),
        ({"seq_q": "4096", "seq_kv": "4096", "batch": "2"}, "middle, batch many"),
        (DECODE | {"seq_kv": "65536", "kernel": "flash_decoding"}, "long, batch 1"),
    ],
)
def test_the_regime_is_by_queries_in_prefill_and_by_keys_in_decoding(tmp_path, row, regime):
    assert judged(tmp_path, **{k + "_" * (k == "pass"): v for k, v in row.items()}).regime == regime


# --- scores ----------------------------------------------------------------------------------


def test_scores_are_by_family_device_split_and_regime_and_times_of_the_host_apart(tmp_path):
    values = ("200", "160", "100", "20")  # predicted: 160 and two gaps
    points = [judged(tmp_path, value=value) for value in values]
    launch = points[0].measured.case.hardware.calibration.launch
    gaps = 2 * (launch.gap + IN_A_STREAM_S) * 1e6
    whole, _, host, _ = scores(points, {})
    errors = [(160 + gaps) / value - 1 for value in (200, 160, 100)]
    assert (whole.family, whole.device, whole.regime) == ("flash2", "h100-sxm", ANY)
    assert (whole.points, host.points, whole.host, host.host) == (3, 1, False, True)
    assert whole.mean == pytest.approx(sum(map(abs, errors)) / 3)
    assert whole.median == pytest.approx(abs(errors[0]))
    assert whole.worst == pytest.approx(errors[2])
    assert whole.bias == pytest.approx(sum(errors) / 3)
    assert (whole.within_10, whole.within_20) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_the_best_constant_has_the_least_mean_error_and_rests_on_fit_rows_alone(tmp_path):
    fit = [judged(tmp_path, value=value, split="fit") for value in ("150", "200", "220", "900")]
    factors = constants(fit)

    def error(factor: float) -> float:
        return sum(abs(factor * 100e-6 / one.value - 1) for one in fit)

    assert all(error(factors["flash2"]) <= error(one.value / 100e-6) + 1e-12 for one in fit)
    for split in ("test", "transfer"):
        with pytest.raises(InputError, match=f'split = "{split}": nothing is fitted'):
            constants([*fit, judged(tmp_path, value="200", split=split)])
    (score, _) = scores([judged(tmp_path, value="400")], {"flash2": 2.0})
    assert (score.roofline, score.constant) == (pytest.approx(0.75), pytest.approx(0.5))


def test_the_faster_of_two_kernels_is_counted_where_they_differ(tmp_path):
    faster = Simulated((KERNEL,))
    first = judged(tmp_path, value="200", kernel="sglang triton")
    near = judged(tmp_path, value="190", kernel="sglang triton", simulated=faster)
    right = judged(tmp_path, value="100", kernel="flash2", simulated=faster)
    wrong = judged(tmp_path, value="300", kernel="flash2", simulated=faster)
    alike = judged(tmp_path, value="100", kernel="flash2")
    assert pairs([first, near]) == {}
    for other, right_count, alike_count in ((right, 1, 0), (wrong, 0, 0), (alike, 0, 1)):
        (count,) = pairs([first, other]).values()
        assert (count.total, count.right, count.alike) == (1, right_count, alike_count)


# --- many figures ----------------------------------------------------------------------------


def test_figures_of_one_launch_are_simulated_once_and_a_second_time_is_free(tmp_path):
    rows = ({"value": "20"}, {"value": "25", "split": "fit"}, {"kernel": "SDPA cuDNN"})
    figures = read_figures([write(tmp_path / "t.csv", *rows)])
    store = Store(tmp_path / "kept.sqlite")
    told = []
    first = measure_up(figures, store=store, progress=lambda *so_far: told.append(so_far))
    assert (len(first.judged), len(first.left), first.cases, first.simulated) == (2, 1, 1, 1)
    assert told[-1] == ("cases", 1, 1)
    again = measure_up(figures, store=Store(tmp_path / "kept.sqlite"))
    assert again.simulated == 0
    assert [one.predicted for one in again.judged] == [one.predicted for one in first.judged]


def test_a_split_is_judged_alone_and_fit_rows_still_give_the_constant(tmp_path):
    rows = ({"value": "100"}, {"value": "50", "split": "fit"}, {"split": "transfer"})
    figures = read_figures([write(tmp_path / "t.csv", *rows)])
    stick = measure_up(figures, "test")
    assert [one.split for one in stick.judged] == ["test"]
    (one,) = stick.judged
    assert stick.constants == {"flash2": pytest.approx(50e-6 / one.roofline)}


def test_what_the_simulator_refuses_is_left_out_with_its_reason(tmp_path):
    refused = figure(tmp_path, kernel="flash4")
    stick = measure_up([refused])
    (left,) = stick.left
    assert 'schedule flash4: hardware.arch = "sm90"' in left.reason


def test_a_window_s_few_keys_are_found_in_a_warm_l2_however_long_the_cache_is(tmp_path):
    row = {"kernel": "vllm vllm_flash_attn", "gpu": "L40S", "batch": 8, "kv_heads": 8}
    short, long = (
        simulate(measured_of(figure(tmp_path, seq_kv=keys, **row, extra="warm; window 128")).case)
        for keys in (1024, 65536)
    )
    assert long.kernels[0].dram_read_bytes == short.kernels[0].dram_read_bytes == 0


def test_a_warm_case_finds_more_in_l2_than_a_cold_one(tmp_path):
    cold, warm = (
        simulate(measured_of(figure(tmp_path, extra=extra)).case) for extra in ("cold", "warm")
    )
    assert warm.kernels[0].dram_read_bytes < cold.kernels[0].dram_read_bytes


def test_a_flushed_l2_full_of_dirty_lines_is_written_back_while_the_kernel_reads(tmp_path):
    row = {"seq_q": "1", "seq_kv": "16384", "batch": "4", "pass_": "decode", "head_dim": "128"}
    row |= {"kernel": "flash_decoding", "gpu": "A30"}
    clean, dirty = (
        simulate(measured_of(figure(tmp_path, **row, extra=extra)).case)
        for extra in ("cold", "zeroed between calls, cold")
    )
    ours, theirs = dirty.kernels[0], clean.kernels[0]
    assert ours.dram_read_bytes == theirs.dram_read_bytes
    written = ours.dram_write_bytes - theirs.dram_write_bytes
    hw = load_profile("a30")
    dirty_bytes = hw.l2.capacity / 2  # no more of it is ever dirty
    assert written == pytest.approx(dirty_bytes, rel=0.02)
    more_s = machine_of(hw).hbm_s(0, dirty_bytes)
    assert ours.time_s - theirs.time_s == pytest.approx(more_s, rel=0.3)


def test_what_a_profiler_leaves_dirty_is_counted_where_the_kernel_pushes_it_out(tmp_path):
    row = {"seq_q": "1", "head_dim": "128", "kernel": "flash_decoding", "pass_": "decode"}
    counted, longer = row | {"metric": "dram_write_bytes"}, {"seq_kv": "32768", "batch": "4"}
    short, long, timed = (
        simulate(measured_of(figure(tmp_path, **one, extra="ncu")).case).kernels[0]
        for one in (counted, counted | longer, row | longer)
    )
    assert short.dram_write_bytes == 0
    more = long.dram_write_bytes - timed.dram_write_bytes
    assert more == pytest.approx(2 * 1024**2, rel=0.01)
    assert long.dram_read_bytes == timed.dram_read_bytes


def test_an_address_is_of_all_that_a_prediction_rests_on(tmp_path):
    rows = (
        {},
        {"extra": "cold"},
        {"extra": "zeroed between calls, cold"},
        {"head_dim": "128"},
        {"gpu": "H200"},
        {"kernel": "naive"},
    )
    cases = [measured_of(figure(tmp_path, **row)).case for row in rows]
    assert len({address_of(one) for one in cases} | {address_of(cases[0], True)}) == 7
    same = measured_of(figure(tmp_path, value="7", source="another", split="fit")).case
    assert address_of(same) == address_of(cases[0])


# --- the command -----------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = ({}, {"split": "transfer", "gpu": "H200"}, {"kernel": "mine", "split": "fit"})
    return write(tmp_path / "mine.csv", *rows)


def test_a_table_of_ones_own_is_compared_with_one_command(table, tmp_path):
    done = called("validate", "compare", table, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "transfer: devices that nothing is fitted to" in done.stdout
    assert "Not judged: 1 of mine: no schedule stands for its kernel" in done.stdout
    assert "3 figures, 2 judged by 2 predictions, of which 2 were not kept" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "comparison.json", "tables.md", "regimes.md", "time.png",
    }  # fmt: skip
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [one["device"] for one in told["figures"]] == ["h100-sxm", "h200-sxm"]
    again = called("validate", "compare", table, "--device", "h200", cwd=tmp_path)
    assert "1 figures, 1 judged by 1 predictions, of which 0 were not kept" in again.stdout


def test_few_figures_are_told_row_by_row_and_a_page_shows_them_beside_their_predictions(
    table, tmp_path
):
    page = tmp_path / "page.html"
    done = called("validate", "compare", table, "--report", page, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = (line.split("  ") for line in done.stdout.splitlines() if "mine.csv, line 2" in line)
    _, _, time, measured, predicted, error, _ = [text for text in row if text.strip()][-7:]
    assert (time.strip(), float(measured.split()[0])) == ("time", 100)
    text = page.read_text(encoding="utf-8")
    (rows,) = re.findall(r'<table id="rows">.*?</table>', text, re.DOTALL)
    assert rows.count("<tr>") == 3
    for cell in (measured, predicted, error):
        assert f">{cell.strip()}</td>" in rows
    assert "Not judged: 1 of mine: no schedule stands for its kernel" in text
    assert re.search(r"Predicted times are \d+% off in the mean of 2, \d+% at most\.", text)


def test_what_compare_cannot_do_is_one_line(table, tmp_path):
    compare = ("validate", "compare")
    assert_one_line(
        called(*compare, table, "--kernel", "flash9", cwd=tmp_path), "no row has such a kernel"
    )
    assert_one_line(called(*compare, table, "published", cwd=tmp_path), "published: no table")
    assert_one_line(
        called(*compare, "published", "--split", "transfer", cwd=tmp_path), "are of tables"
    )
    assert_one_line(called(*compare, "published", cwd=tmp_path), "Give --profile")


def test_calibrating_has_nothing_of_a_table_without_rows_to_fit_to(table, tmp_path):
    profile = tmp_path / "p.toml"
    done = called("calibrate", table, "--profile", "h100-sxm", "--out", profile, cwd=tmp_path)
    assert_one_line(done, "nothing to calibrate on", 'of the split "fit"')
    assert not profile.exists()


def test_errors_stand_by_family_and_regime_over_devices(tmp_path):
    rows = ({}, {"gpu": "H200", "value": "50"}, {"seq_q": "2048", "seq_kv": "2048", "value": "400"})
    stick = measure_up(read_figures([write(tmp_path / "t.csv", *rows)]))
    few = [abs(one.error) for one in stick.judged if one.regime == "few, batch 1"]
    ((family, *cells),) = regime_rows(stick.scores, "test")
    assert family == "flash2"
    by_regime = dict(zip(REGIMES, cells, strict=True))
    assert by_regime["few, batch 1"] == f"{sum(few) / 2:.0%} (2)"
    assert by_regime["middle, batch 1"].endswith("% (1)")
    assert not any(
        by_regime[regime] for regime in REGIMES if regime not in ("few, batch 1", "middle, batch 1")
    )
    assert " | ".join(("family", *REGIMES)) in markdown(stick)
    assert regime_rows(stick.scores, "transfer") == []


def test_tables_are_told_in_markdown_and_json(tmp_path):
    figures = read_figures([write(tmp_path / "t.csv", {}, {"value": "20"})])
    stick = measure_up(figures)
    save_stick(stick, tmp_path)
    text = markdown(stick, by_regime=True)
    assert "| flash2 | h100-sxm | time | few, batch 1 | 1 |" in text
    assert "times that the host rules" in text
    assert json.loads(stick.json())["scores"][0]["regime"] == ANY


def test_a_profile_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(InputError, match="no such profile"):
        measure_up([figure(tmp_path, gpu="a card of mine")], profile="h100-smx")
