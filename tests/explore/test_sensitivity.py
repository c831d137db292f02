"""Elasticities against what dimensions, bounds and runs of one's own say."""

import json
import os
from dataclasses import replace
from itertools import pairwise
from math import log
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

import sim.explore.sensitivity as module
from sim.explore.sensitivity import (
    Effect,
    ScheduleSensitivity,
    Sensitivity,
    effect,
    parameters,
    sensitivity,
)
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.units import Count
from sim.report.present import show
from sim.report.sensitivity import jumps, tornado
from sim.runs.cases import Case
from sim.runs.job import run_scenario
from sim.runs.scenario import Limits, Scenario, make_scenario
from tests.support.commands import assert_one_line, called
from tests.support.waiting import GUARD_S

H100 = load_profile("h100-sxm")
OPTIONS = {"ring": {"gpus": 2}}
# A time is 1 over a rate: doubling all rates and halving all latencies halves it.
# (Watts are a rate of joules, and the energies are as they were at twice the clock.)
RATES = (
    "hbm.bandwidth", "l2.bandwidth", "sm.clock", "tensor.fp16", "links.peer",
    "power.tdp", "energy.idle", "energy.clock",
)  # fmt: skip
LATENCIES = tuple(
    f"calibration.{name}"
    for name in (
        "hbm.latency",
        "l2.latency",
        "sm.op_latency",
        "sm.cta_start",
        "sm.cta_setup",
        "launch.latency",
        "launch.gap",
        "links.latency",
    )
)


def scenario(
    *names: str, sweep: Any = None, options: Any = None, hardware: Any = None, **workload: Any
) -> Scenario:
    return make_scenario(
        {
            "workload": {"heads": 4, "head_dim": 64, "seq_len": 512, **workload},
            "hardware": {"profile": "h100-sxm", **(hardware or {})},
            "schedule": [{"name": n, **OPTIONS.get(n, {}), **(options or {})} for n in names],
            "sweep": sweep or {},
        },
        "a test",
        "a test",
    )


def without(section: str, of: Scenario) -> Scenario:
    """The scenario on the device without a section of its profile."""
    (point,) = of.points
    hw = point.hardware.model_copy(update={section: None})
    return replace(of, points=(replace(point, hardware=hw),))


def asked(of: Scenario, shift: float = 0.05) -> Sensitivity:
    """The sensitivity of a scenario's schedules."""
    cases = [Case(point, schedule) for point in of.points for schedule in point.schedules]
    return sensitivity(cases, of.title, of.where, of.limits, shift=shift)


def effects(of: Scenario, shift: float = 0.05) -> dict[str, Effect]:
    (schedule,) = asked(of, shift).schedules
    return {effect.parameter.key: effect for effect in schedule.effects}


def numbers(section: Any, prefix: str = "") -> dict[str, float]:
    """Every number in a nested mapping, by its dotted key."""
    if isinstance(section, dict):
        found: dict[str, float] = {}
        for key, value in section.items():
            found |= numbers(value, f"{prefix}.{key}")
        return found
    is_number = isinstance(section, int | float) and section is not True
    return {prefix[1:]: section} if is_number else {}


@pytest.mark.parametrize("name", ["h100-sxm", "t4", "mi300x"])
def test_every_number_of_a_profile_is_a_parameter(name):
    hw = load_profile(name)
    assert {p.key: p.value for p in parameters(hw)} == {
        key: value for key, value in numbers(hw.model_dump()).items() if value
    }


def test_one_figure_moves_and_no_other():
    for parameter in parameters(H100):
        changed = numbers(H100.with_figures({parameter.key: 7}).model_dump())
        assert changed == {**numbers(H100.model_dump()), parameter.key: 7}


class Drawn(BaseModel):
    share: float = Field(gt=0, le=1)
    rate: float = Field(gt=0)
    count: Count


@given(st.floats(1e-6, 1), st.floats(1e-12, 1e18), st.integers(1, 10**6), st.floats(1e-4, 0.5))
def test_shifts_are_as_far_as_bounds_and_whole_numbers_let_them(share, rate, count, shift):
    drawn = Drawn(share=share, rate=rate, count=count)
    by_share, by_rate, by_count = parameters(drawn, shift)
    assert (by_rate.down, by_rate.up) == (rate / (1 + shift), rate * (1 + shift))
    assert by_share.down == share / (1 + shift)
    assert by_share.up == (None if share == 1 else min(1, share * (1 + shift)))
    assert isinstance(by_count.up, int)
    assert by_count.up - count == max(1, round(count * (1 + shift)) - count)
    if count == 1:
        assert by_count.down is None
    else:
        assert isinstance(by_count.down, int)
        assert 1 <= by_count.down < count
        Drawn(share=by_share.down, rate=by_rate.down, count=by_count.down)


@pytest.mark.parametrize("name", ["naive", "flash2", "ring"])
def test_twice_all_rates_and_half_all_latencies_is_half_the_time(name):
    of = scenario(name)
    (point,) = of.points
    hw = point.hardware
    for keys, factor in ((RATES, 2), (LATENCIES, 0.5)):
        for key in keys:
            hw = hw.with_figures({key: numbers(hw.model_dump())[key] * factor})
    (base,) = run_scenario(of)
    (fast,) = run_scenario(replace(of, points=(replace(point, hardware=hw),)))
    assert fast.record.time_s == pytest.approx(base.record.time_s / 2, rel=1e-12)
    assert fast.record.hbm_bytes == base.record.hbm_bytes


@pytest.mark.parametrize("name", ["naive", "flash2", "ring"])
def test_rates_less_latencies_sum_to_minus_one(name):
    """By dimensional analysis (Euler's theorem on homogeneous functions)."""
    by_key = effects(scenario(name), shift=1e-4)
    total = sum(by_key[key].time.central for key in RATES if key in by_key)
    total -= sum(by_key[key].time.central for key in LATENCIES if key in by_key)
    assert total == pytest.approx(-1, abs=5e-3)
    assert (name == "ring") == ("links.peer" in by_key)


def test_a_decode_that_waits_for_hbm_takes_as_long_as_its_bandwidth_says():
    of = scenario(
        "flash_decoding",
        phase="decode",
        seq_len=262144,
        causal=True,
        hardware={"hbm": {"bandwidth": "200 GB/s"}},
    )
    by_key = effects(of)
    for key in ("hbm.bandwidth", "calibration.hbm.read"):
        assert by_key[key].time.central == pytest.approx(-1, abs=0.03)
        assert by_key[key].hbm_bytes.central == pytest.approx(0, abs=1e-3)
    assert abs(by_key["tensor.fp16"].time.central) < 0.01


def test_a_prefill_that_waits_for_tensor_cores_follows_their_rate():
    by_key = effects(scenario("flash2", seq_len=2048, hardware={"tensor": {"fp16": "15 TFLOP/s"}}))
    assert by_key["tensor.fp16"].time.central == pytest.approx(-1, abs=0.03)
    assert by_key["calibration.tensor.mma_sync"].time.central == pytest.approx(
        by_key["tensor.fp16"].time.central, abs=1e-9
    )
    assert "tensor.bf16" not in by_key


def test_an_elasticity_is_what_two_runs_of_ones_own_give():
    def time_s(bandwidth: float) -> float:
        hardware = {"hbm": {"bandwidth": f"{bandwidth!r} B/s"}}
        (outcome,) = run_scenario(scenario("naive", hardware=hardware))
        return outcome.record.time_s or 0

    bandwidth = H100.hbm.bandwidth
    down, here, up = map(time_s, (bandwidth / 1.05, bandwidth, bandwidth * 1.05))
    found = effects(scenario("naive"))["hbm.bandwidth"].time
    assert found.central == pytest.approx(log(up / down) / log(1.05**2))
    assert found.down == pytest.approx(log(here / down) / log(1.05))
    assert found.up == pytest.approx(log(up / here) / log(1.05))


def test_all_cores_say_what_one_says(monkeypatch):
    """Side by side: of the first two shifts neither goes on before the other has begun."""
    of = scenario("naive", "flash2", "ring")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    alone = asked(of).json()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    first_two = [Barrier(2)] * 2

    def side_by_side(*asked):
        if first_two:
            first_two.pop().wait(timeout=GUARD_S)
        return shifted(*asked)

    shifted = module._shifted
    monkeypatch.setattr(module, "_shifted", side_by_side)
    assert asked(of).json() == alone
    assert not first_two


def test_energy_is_a_sum_of_its_constants_so_that_their_elasticities_sum_to_one():
    by_key = effects(scenario("flash2"))
    clock = by_key.pop("energy.clock")  # for which the others stand
    own = [effect for key, effect in by_key.items() if key.startswith("energy.")]
    assert len(own) == 6
    assert -2 < clock.energy.central < 0
    assert sum(effect.energy.central for effect in own) == pytest.approx(1, abs=1e-3)
    assert {effect.time.central for effect in own} == {0}
    assert {effect.hbm_bytes.central for effect in own} == {0}


def test_a_profile_without_energy_has_none_and_no_effect_of_its_power_limit():
    bare = effects(without("energy", scenario("flash2")))
    assert all(effect.energy is None for effect in bare.values())
    assert "power.tdp" not in bare


def test_where_power_holds_a_kernel_back_the_limit_and_the_energies_move_its_time():
    warm = scenario("flash2", hardware={"power": {"tdp": "150 W"}}, heads=32, seq_len=1024)
    by_key = effects(warm)
    assert by_key["power.tdp"].time.central < -0.1
    assert by_key["energy.tensor_per_flop"].time.central > 0.02
    assert by_key["energy.lane_op"].time.central > 0


def test_energies_of_a_device_without_a_power_limit_move_no_time():
    by_key = effects(without("power", scenario("flash2")))
    assert {by_key[key].time.central for key in by_key if key.startswith("energy.")} == {0}


def test_a_tile_that_just_fits_is_shifted_one_way():
    """128 x 64 in fp16 with head_dim 64 needs 16 KiB of Q and 2 x 8 KiB of K and V."""
    fitting = {"sram": {"capacity": "33 KiB"}}
    tile = {"tile": {"q": 128, "kv": 64}, "implementation": "cuda"}
    found = effects(scenario("flash2", hardware=fitting, options=tile))["sram.capacity"].time
    assert found.down is None
    assert found.central == found.up


def test_a_share_of_one_is_shifted_down():
    whole = {"calibration": {"hbm": {"read": 1.0}}}
    by_key = effects(scenario("naive", hardware=whole, heads=16, head_dim=128, seq_len=2048))
    found = by_key["calibration.hbm.read"]
    assert found.parameter.value == 1
    assert found.parameter.up is None
    assert found.time.up is None
    assert found.time.central == found.time.down < 0


def test_what_jumps_is_told_from_what_slopes():
    """132 CTAs on 132 SMs: one SM less and a second wave begins."""
    by_key = effects(scenario("flash2", heads=11, seq_len=128 * 12, causal=False))
    count = by_key["sm.count"].time
    assert jumps(count)
    assert count.down < -5
    assert not jumps(by_key["tensor.fp16"].time)


def fast_forwarded(record, error: float):
    errors = {"steps_skipped": 1e8, "time_error": error, "hbm_error": error / 2}
    errors["energy_error"] = error / 4
    return replace(record, fast_forward=errors)


def test_slopes_say_what_fast_forwarding_may_have_made_of_them(capsys):
    answer = asked(scenario("flash2"))
    (of,) = answer.schedules
    bandwidth = next(e.parameter for e in of.effects if e.parameter.key == "hbm.bandwidth")
    base = of.record
    assert base.time_s is not None
    down = replace(base, time_s=base.time_s * 1.01)  # a slope of -0.1
    exact = effect(bandwidth, base, down, base)
    assert (exact.time.noise, exact.hbm_bytes.noise) == (0, 0)
    for error, told in ((0.004, "−0.10"), (0.006, "±0.12")):
        sides = [fast_forwarded(record, error) for record in (base, down, base)]
        found = effect(bandwidth, *sides)
        assert found.time.central == exact.time.central
        assert found.time.noise == pytest.approx(2 * error / log(1.05**2))
        assert found.hbm_bytes.noise == pytest.approx(found.time.noise / 2)
        assert found.energy.noise == pytest.approx(found.time.noise / 4)
        own = replace(bandwidth, key="energy.hbm_per_byte")  # of the same run
        assert effect(own, *sides).energy.noise == 0
        shown = replace(found, energy=replace(exact.energy, central=-0.3))
        one = replace(answer, schedules=[ScheduleSensitivity(sides[0], [shown])])
        show(one)
        said = capsys.readouterr().out
        assert told in said
        assert f"fast-forwarded, with an estimated error of {error:.2%} of time" in said


def test_the_error_of_energy_is_that_of_its_parts(monkeypatch):
    monkeypatch.setattr("sim.engine.fast_forward.choice.LONG", 1.1)
    long = scenario("flash2", heads=1536, seq_len=2048, causal=True)
    (outcome,) = run_scenario(replace(long, limits=Limits(replayed_steps=9_000)))
    record, figures = outcome.record, H100.energy
    errors = record.fast_forward
    hbm_j = record.hbm_bytes * figures.hbm_per_byte
    idle_j = record.time_s * figures.idle
    assert errors["time_error"] > 0
    assert errors["hbm_error"] > 0
    expected = (errors["hbm_error"] * hbm_j + errors["time_error"] * idle_j) / record.energy_j
    assert errors["energy_error"] == pytest.approx(expected)


def test_figures_without_effect_by_nature_are_left_out():
    left = set(effects(scenario("flash2")))
    assert not left & {"hbm.capacity", "tensor.fp8", "links.peer", "links.host"}
    assert {"l2.capacity", "sram.capacity", "calibration.sm.op_latency"} <= left


def test_effects_and_bars_are_in_order():
    answer = asked(scenario("naive", "flash2"))
    for of in answer.schedules:
        sizes = [abs(effect.time.central or 0) for effect in of.effects]
        assert all(a >= b for a, b in pairwise(sizes))
    figure = tornado(answer)
    assert [ax.get_title(loc="left").split(":")[0] for ax in figure.axes] == ["naive", "flash2"]
    for ax, of in zip(figure.axes, answer.schedules, strict=True):
        first = of.effects[0]
        assert ax.get_yticklabels()[0].get_text() == first.parameter.key
        assert ax.patches[0].get_width() == pytest.approx(first.time.central)
        low, high = ax.get_ylim()
        assert low > high  # the first on top


FILE = """
title = "Which figures matter?"
[workload]
heads = 4
head_dim = 64
seq_len = 512
[hardware]
profile = "h100-sxm"
[[schedule]]
name = "flash2"
"""


def test_the_command_prints_saves_and_gives_json(tmp_path):
    (tmp_path / "mine.toml").write_text(FILE)
    command = ("explore", "sensitivity", tmp_path / "mine.toml")
    done = called(*command, "--out", tmp_path / "out")
    said = done.stdout
    assert done.returncode == 0
    assert "calibration.sm.mma_issue_cycles" in said
    assert "5% more" in said
    assert (tmp_path / "out/sensitivity.png").stat().st_size > 10_000
    told = json.loads((tmp_path / "out/results.json").read_text())
    assert told["step"] == 0.05
    assert told["overrides"] == {}
    assert told["schedules"][0]["options"] == {"name": "flash2"}
    assert told["schedules"][0]["effects"][0]["parameter"]["key"] in said
    assert json.loads(called(*command, "--json").stdout) == told


def test_a_swept_scenario_is_refused_in_one_line_unless_one_point_remains(tmp_path):
    (tmp_path / "mine.toml").write_text(FILE + '[sweep]\n"workload.seq_len" = [256, 512]\n')
    command = ("explore", "sensitivity", tmp_path / "mine.toml", "--json")
    said = "sweep: sensitivity is of one point, and here are 2: --set sweep={}"
    assert_one_line(called(*command), said)
    done = called(*command, "--set", "sweep={}", "--set", "workload.seq_len=256")
    assert done.returncode == 0
    assert json.loads(done.stdout)["schedules"][0]["effects"]


def test_what_can_be_asked_is_answered_beside_what_cannot(tmp_path):
    (tmp_path / "mine.toml").write_text(FILE + '[[schedule]]\nname = "flash4"\n')
    done = called("explore", "sensitivity", tmp_path / "mine.toml", "--json")
    assert done.returncode == 0, done.stderr
    flash2, flash4 = json.loads(done.stdout)["schedules"]
    assert flash2["effects"]
    assert (flash4["status"], flash4["effects"]) == ("failed", [])
    assert "flash4" in flash4["reason"]


def test_another_question_is_refused_in_one_line():
    done = called("explore", "sensitivity", "consumer_24gb")
    assert_one_line(done, "schedule: sensitivity is of [[schedule]] tables\n")


def test_what_does_not_fit_has_no_effects(capsys):
    answer = asked(scenario("naive", seq_len=262144))
    (of,) = answer.schedules
    assert of.effects == []
    show(answer)
    assert "naive: out of memory: S needs" in capsys.readouterr().out


def test_what_cannot_be_asked_raises():
    with pytest.raises(InputError, match="flash3"):
        asked(scenario("flash3", hardware={"profile": "t4"}))
