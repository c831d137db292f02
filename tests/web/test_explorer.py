"""The explorer: its controls and its files, and its page in a real browser."""

import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import tomllib
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import expect

from sim.inputs.files import shipped_names
from sim.inputs.hardware import load_profile
from sim.inputs.units import show
from sim.report import one_sm
from sim.runs.job import LimitsError, run_scenario
from sim.runs.record import Record
from sim.runs.scenario import ScenarioText, load_scenario, make_scenario, read_scenario
from sim.web.app import serve
from sim.web.controls import (
    FIGURES,
    SPAN,
    STEP,
    Controls,
    changes,
    tables_of,
    write_files,
)
from sim.web.desk import AIM_S, MOMENT_S, REPLAYED, Desk, affordable, replay_s
from sim.web.explorer import NO_LOOK, OWN_OPTION, OWN_SHAPE, Explorer
from sim.web.link import Standing, query_of, standing_of
from sim.web.results import beneath, drawn
from tests.support.browser import Visit
from tests.support.commands import assert_one_line, called
from tests.support.full_disk import files_of_at_most
from tests.support.waiting import GUARD_S, until

QUESTION = """
title = "Two schedules"
[workload]
heads = 8
head_dim = 64
seq_len = 1024
[hardware]
profile = "a100-sxm-80gb"
l2.capacity = "30 MiB"
[[schedule]]
name = "naive"
[[schedule]]
name = "flash2"
label = "flash"
"""
STEPS = int(2 * SPAN / STEP)


def clock(time_s):
    """The desk's clock, by which a replay takes too long."""
    return SimpleNamespace(thread_time=time_s)


@pytest.fixture(scope="module", autouse=True)
def however_slow_this_computer_is():
    """No replay takes longer than a moment where a test does not say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.web.desk.time", clock(lambda: 0.0))
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("explored") / "question.toml"
    path.write_text(QUESTION)
    return read_scenario(str(path))


def hardware(text, controls):
    """The device that the page's tables describe."""
    base = Desk(text).profile(controls.profile)
    tables = tables_of(text.data, controls, changes(base, controls.figures))
    (point,) = make_scenario(tables, "explored", "here", text.folder).points
    return base, point.hardware


def figures(hw):
    """All figures of a profile, without names and sources."""

    def plain(table):
        return {
            key: plain(value) if isinstance(value, dict) else value
            for key, value in table.items()
            if key not in ("source", "name", "title")
        }

    return plain(hw.model_dump())


# Without a browser: what the positions of sliders mean.


positions = st.fixed_dictionaries(
    {},
    optional={
        figure.key: st.integers(1, 100).map(lambda n: n / 100)
        if figure.share
        else st.integers(0, STEPS).map(lambda n: n * STEP - SPAN)
        for figure in FIGURES
    },
)


@settings(max_examples=60)
@given(profile=st.sampled_from(shipped_names("hw_profiles")), moved=positions)
def test_every_position_of_the_sliders_is_a_device_with_those_figures(text, profile, moved):
    base, hw = hardware(text, Controls(profile, moved, {}, ("flash",)))
    for figure in FIGURES:
        if figure.key == "tensor":
            continue
        before, after = base.figure(figure.key), hw.figure(figure.key)
        position = moved.get(figure.key, figure.start(base))
        expected = position if figure.share else before * 2**position
        if figure.whole:
            assert after == max(1, round(expected))
        else:
            assert after == pytest.approx(expected, rel=1e-5)
    untouched = set(base.model_fields_set) - {"hbm", "l2", "sm", "sram", "tensor", "calibration"}
    assert all(getattr(hw, name) == getattr(base, name) for name in untouched - {"name"})


def test_lists_of_lengths_stay_until_tokens_or_sequences_are_chosen(tmp_path):
    lists = QUESTION.replace("seq_len = 1024", "seq_len = [512, 1024]")
    data = tomllib.loads(lists.replace('name = "naive"', 'name = "flash2"\nlabel = "again"'))
    explorer = Explorer(ScenarioText(data, "question", "a test", tmp_path), tmp_path)
    as_it_is = {
        "model": OWN_SHAPE,
        "seq_len": explorer.lengths.index(1024),
        "batch": explorer.batches.index(2),
        "phase": "prefill",
        "causal": [],
        "dtype": "fp16",
    }
    positions = [figure.start(explorer.point.hardware) for figure in FIGURES]

    def workload(**chosen):
        controls = explorer.controls(explorer.own_profile, positions, as_it_is | chosen, None)
        return tables_of(data, replace(controls, schedules=("flash2",)), {})["workload"]

    assert workload()["seq_len"] == [512, 1024]
    other = workload(batch=explorer.batches.index(1))
    assert (other["seq_len"], other["batch"]) == (1024, 1)


def test_a_tile_and_stages_are_of_the_schedules_that_have_them(text):
    explorer = Explorer(text, text.folder)
    as_they_are = [figure.start(explorer.point.hardware) for figure in FIGURES]
    w = explorer.point.workload
    workload = {
        "model": OWN_SHAPE,
        "seq_len": explorer.lengths.index(w.seq_kv),
        "batch": explorer.batches.index(w.batch),
        "phase": w.phase,
        "causal": [],
        "dtype": w.dtype,
        "heads": 4,
        "kv_heads": 2,
    }
    device = (explorer.own_profile, as_they_are)
    asked = explorer.controls(*device, workload, ["mamba2", "flash"], "64 × 32", "2")
    tables = tables_of(text.data, asked, {})
    mamba, flash = tables["schedule"]
    assert mamba == {"name": "mamba2"}
    assert (flash["tile"], flash["stages"]) == ({"q": 64, "kv": 32}, 2)
    assert (tables["workload"]["heads"], tables["workload"]["kv_heads"]) == (4, 2)
    flash = explorer.desk.answer(asked).rows[1].changed
    assert (flash.workload["kv_heads"], flash.settings["schedule.flash2.tile.kv"]) == (2, 32)
    own = explorer.controls(*device, {**workload, "kv_heads": OWN_SHAPE}, ["flash"])
    assert explorer.desk.answer(own).ran[0].workload["kv_heads"] == 4
    assert tables_of(text.data, own, {})["schedule"] == [text.data["schedule"][1]]


def test_tensor_rates_follow_the_sms_and_their_clock(text):
    moved = {"sm.count": 1.0, "sm.clock": -0.5, "tensor": 0.25}
    base, hw = hardware(text, Controls("h100-sxm", moved, {}, ("flash",)))
    for dtype in ("fp16", "fp8"):
        expected = base.tensor_flops_per_s(dtype) * 2**0.75
        assert hw.tensor_flops_per_s(dtype) == pytest.approx(expected, rel=1e-5)


def test_a_figure_of_zero_stays_so(text):
    none = ScenarioText(
        text.data | {"hardware": {"profile": "t4", "l2": {"capacity": "0 B"}}},
        "no L2",
        "here",
        None,
    )
    base = Desk(none).profile("t4")
    assert changes(base, {"l2.capacity": 1.0}) == {"l2.capacity": 0.0}


def test_the_scenarios_own_overrides_hold_on_its_own_profile_alone(text):
    base, hw = hardware(text, Controls("a100-sxm-80gb", {"l2.bandwidth": 1.0}, {}, ("flash",)))
    assert base.l2.capacity == hw.l2.capacity == 30 * 2**20
    assert hw.l2.bandwidth == pytest.approx(2 * base.l2.bandwidth)
    base, _ = hardware(text, Controls("h100-sxm", {}, {}, ("flash",)))
    assert base.l2.capacity == load_profile("h100-sxm").l2.capacity


@settings(max_examples=15)
@given(profile=st.sampled_from(["a100-sxm-80gb", "rtx-4090", "mi300x"]), moved=positions)
def test_the_files_are_the_page(text, tmp_path_factory, profile, moved):
    out = tmp_path_factory.mktemp("out")
    controls = Controls(profile, moved, {"seq_len": 512, "batch": 2}, ("naive", "flash"))
    base, hw = hardware(text, controls)
    made = write_files(text.data, text.folder, base, controls, out)
    scenario = load_scenario(str(made / "scenario.toml"))
    (point,) = scenario.points
    assert figures(point.hardware) == figures(hw)
    assert (point.workload.seq_kv, point.workload.batch) == (512, 2)
    assert [schedule.title for schedule in point.schedules] == ["naive", "flash"]
    again = write_files(text.data, text.folder, base, controls, out)
    assert again != made


def test_the_files_ask_with_the_limits_and_the_mask_file_of_the_scenario(tmp_path):
    (tmp_path / "block_sparse").touch()  # a file of an option's name is none of its business
    asked = {"name": "block_sparse", "mask_file": "mine.npz"}
    limited = QUESTION + "[limits]\nexact = true\n"
    data = tomllib.loads(limited) | {"schedule": [asked]}
    controls = Controls("a100-sxm-80gb", {}, {}, ("block_sparse",))
    base = Desk(ScenarioText(data, "masked", "here", tmp_path)).profile("a100-sxm-80gb")
    made = write_files(data, tmp_path, base, controls, tmp_path / "out")
    written = tomllib.loads((made / "scenario.toml").read_text())
    assert written["schedule"] == [asked | {"mask_file": str(tmp_path / "mine.npz")}]
    assert written["limits"] == {"exact": True}


def test_of_a_pages_questions_only_the_newest_is_answered(text, monkeypatch):
    """Asked one after the other, all while the first has its turn."""
    desk = Desk(text)
    begun, free = threading.Event(), threading.Event()
    answered = desk.answer

    def slowly(controls):
        begun.set()
        assert free.wait(GUARD_S)
        return answered(controls)

    def ask(page):
        before = desk._newest.get(page)
        question = pool.submit(desk.ask, page, Controls("a100-sxm-80gb", {}, {}, ("flash",)))
        until(lambda: desk._newest.get(page) is not before)
        return question

    monkeypatch.setattr(desk, "answer", slowly)
    with ThreadPoolExecutor(4) as pool:
        try:
            first = ask("page")
            assert begun.wait(GUARD_S)
            stale, other, newest = ask("page"), ask("another page"), ask("page")
            assert stale.result(GUARD_S) is None  # at once, for the browser's few connections
            assert not any(question.done() for question in (first, other, newest))
        finally:
            free.set()
        assert first.result().rows[0].title == "flash"  # it had its turn
        assert newest.result() is not None
        assert other.result() is not None


def test_a_schedule_that_cannot_run_says_why_and_the_others_run(text):
    asked = Controls("a100-sxm-80gb", {}, {"phase": "training"}, ("flash", "flash_decoding"))
    yes, no = Desk(text).answer(asked).rows
    assert isinstance(yes.changed, Record)
    assert 'workload.phase = "training"' in no.changed


def test_what_takes_long_is_told_at_once_or_left_to_run(text, monkeypatch):
    asked = Controls("h100-sxm", {}, {"seq_len": 2**17, "heads": 32}, ("flash", "block_sparse"))
    desk = Desk(text)
    flash, _ = desk.answer(asked).rows
    assert flash.changed.fast_forward["time_error"] < 0.1
    monkeypatch.setattr("sim.web.desk.MOMENT_S", 0)
    looks = count()  # at the clock, a second apart
    monkeypatch.setattr("sim.web.desk.time", clock(lambda: float(next(looks))))
    asked = replace(asked, figures={"hbm.bandwidth": 1.0})
    flash, _ = desk.answer(asked).rows
    assert flash.changed == "takes longer to replay than a moment: attnsim run has time for it"
    assert isinstance(flash.beside, Record)  # known from before
    monkeypatch.undo()
    assert isinstance(desk.answer(asked).rows[0].changed, Record)  # giving up is not kept


@pytest.mark.parametrize(
    "scenario", ["gpt2_medium_a100", "half_the_sram", "million_tokens", "pruned_long"]
)
def test_of_long_kernels_so_much_is_replayed_as_there_is_time_for(scenario):
    text = read_scenario(scenario, ("sweep={}",))
    (point,) = make_scenario(text.data, "", "", text.folder).points
    for schedule in point.schedules:
        steps = schedule.program(point.workload, point.hardware)
        try:
            most = affordable(steps, point.hardware)
        except LimitsError:  # MInference's launches, head by head
            assert replay_s(steps, point.hardware, REPLAYED[-1]) > MOMENT_S
            continue
        takes_s = replay_s(steps, point.hardware, most)
        assert takes_s <= MOMENT_S
        assert takes_s <= AIM_S or most == REPLAYED[-1]
        if most < REPLAYED[0]:  # more would take longer
            assert replay_s(steps, point.hardware, 2 * most) > AIM_S


def test_what_is_replayed_in_part_is_as_far_off_as_it_says():
    text = read_scenario("flash_vs_naive", ("workload.seq_len=8192",))
    (naive,) = Desk(text).answer(Controls("h100-sxm", {}, {}, ("naive",))).rows
    data = text.data | {"schedule": [{"name": "naive"}], "limits": {"exact": True}}
    (exact,) = run_scenario(make_scenario(data, "", "", text.folder))
    off = naive.changed.time_s / exact.record.time_s - 1
    # The mask's pass, in an L2 of its own, is 3% off: in one with the rest its chunks are smaller.
    assert 0 < abs(off) < max(naive.changed.fast_forward["time_error"], 0.015)


def test_a_replay_that_is_done_is_not_given_up(text, monkeypatch):
    times_s = iter([0.0] * 3)  # before, as it starts and as its kernel does; then it is late
    monkeypatch.setattr("sim.web.desk.time", clock(lambda: next(times_s, 1e9)))
    short = Controls("a100-sxm-80gb", {}, {"seq_len": 1024}, ("flash",))  # no word in between
    (flash,) = Desk(text).answer(short).rows
    assert isinstance(flash.changed, Record)


def test_what_does_not_fit_is_said_without_counting_its_steps(text, monkeypatch):
    monkeypatch.setattr("sim.web.desk.replay_s", lambda *_: pytest.fail("counted"))
    asked = Controls("a100-sxm-80gb", {"hbm.capacity": -3.0}, {"seq_len": 2**17}, ("naive",))
    (naive,) = Desk(text).answer(asked).rows
    assert naive.changed.startswith("out of memory: ")


# The page.


@pytest.fixture(scope="module")
def explored(text, tmp_path_factory):
    """The page's address, and the folder that it writes into."""
    out = tmp_path_factory.mktemp("written")
    ready = queue.Queue()
    server = threading.Thread(target=serve, args=(Explorer(text, out), 0, ready.put), daemon=True)
    server.start()
    return ready.get(timeout=GUARD_S), out


@pytest.fixture
def opened(browser, explored):
    """The page, freshly opened; at the end it has talked to this computer alone."""
    address, _ = explored
    visit = Visit(browser)
    visit.page.goto(address)
    visit.page.wait_for_selector("#time .textpoint")
    wait_for_answers(visit.page)
    yield visit.page
    assert visit.complaints == []
    assert all(url.startswith((address, "data:", "blob:")) for url in visit.requests)
    visit.context.close()


def wait_for_answers(page):
    """Until all that the page has asked is answered, and shown but for the charts.

    Between what a test does: of two questions under way either may be answered last.
    """
    page.wait_for_function("!window.store.getState().isLoading")


def press(page, key, times=1):
    for _ in range(times):
        page.keyboard.press(key)
        wait_for_answers(page)


def slider(page, key):
    return page.locator(f"[id*='figure'][id*='\"{key}\"'] [role=slider]")


def text_beside(page, key):
    """What stands beside a slider."""
    return page.locator(f"[id*='text'][id*='\"{key}\"']")


def cells(page):
    """The table's rows."""
    return [row.split("\t") for row in page.locator("#table tbody tr").all_inner_texts()]


def first_time(page):
    """The time in the table's first row."""
    return page.locator("#table tbody tr").first.locator("td").nth(1)


def wait_for_a_device(page, *, changed):
    """Until the table is of a changed device, or of a profile as it is."""
    table = expect(page.locator("#table"))
    (table.to_contain_text if changed else table.not_to_contain_text)("beside")


def test_the_page_opens_with_the_scenario_as_it_is(opened, text):
    records = [
        outcome.record for outcome in run_scenario(make_scenario(text.data, "", "", text.folder))
    ]
    assert opened.locator("h1").inner_text() == "Explored from: Two schedules"
    assert [row[:2] for row in cells(opened)] == [
        [record.schedule, show(record.time_s, "s")] for record in records
    ]
    expect(text_beside(opened, "l2.capacity")).to_have_text("30 MiB")
    expect(text_beside(opened, "hbm.bandwidth")).to_have_text("2.04 TB/s")


def test_a_slider_that_is_moved_changes_figures_table_and_charts(opened, text):
    twice = Controls("a100-sxm-80gb", {"hbm.bandwidth": 1.0}, {}, ("naive",))
    (row,) = Desk(text).answer(twice).rows
    bars = opened.locator("#time .textpoint")
    expect(bars).to_have_count(2)
    before = bars.all_text_contents()
    slider(opened, "hbm.bandwidth").focus()
    press(opened, "ArrowRight", times=8)
    expect(text_beside(opened, "hbm.bandwidth")).to_have_text("4.08 TB/s (×2)")
    expect(first_time(opened)).to_have_text(show(row.changed.time_s, "s"))
    naive = cells(opened)[0]
    assert naive[2].startswith("−")
    expect(bars).to_have_count(4)
    expect(bars.nth(0)).to_have_text(before[0])  # the profile's own
    expect(bars.nth(1)).to_have_text(naive[1])
    assert naive[1] != before[0].strip()


def test_a_slider_is_dragged_with_the_mouse(opened):
    box = slider(opened, "sm.count").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.mouse.move(x, y)
    opened.mouse.down()
    for step in range(1, 6):
        opened.mouse.move(x - 10 * step, y)
        wait_for_answers(opened)
    opened.mouse.up()
    wait_for_a_device(opened, changed=True)
    expect(text_beside(opened, "sm.count")).to_have_text(re.compile(r"^\d+ \(×0\.\d+\)$"))
    expect(text_beside(opened, "tensor")).to_have_text("2048 FLOP/clock")  # of an SM
    opened.click("#reset")
    wait_for_a_device(opened, changed=False)
    expect(text_beside(opened, "sm.count")).to_have_text("108")


def choose(page, name, option):
    page.click(f"#{name}")
    page.get_by_role("option", name=option, exact=True).click()


def test_a_tile_that_is_chosen_is_another_time(opened):
    flash = opened.locator("#table tbody tr").nth(1)
    before = flash.text_content()
    choose(opened, "tile", "64 × 32")
    expect(flash).not_to_have_text(before)
    choose(opened, "tile", OWN_OPTION)
    expect(flash).to_have_text(before)


def test_one_can_look_into_a_schedule_as_the_sliders_move(opened, text):
    assert opened.locator("#sm").count() == 0
    choose(opened, "look", "flash")
    said = opened.locator("#inside p").first
    expect(said).to_contain_text("flash2, replayed event by event")
    opened.locator("#walk .main-svg").first.wait_for()
    slider(opened, "hbm.bandwidth").focus()
    press(opened, "ArrowLeft", times=2)  # each draws all of the look anew
    asked = Controls("a100-sxm-80gb", {"hbm.bandwidth": -2 * STEP}, {}, ("flash",))
    slower = Desk(text).look("page", asked, "flash")
    expect(said).to_have_text(one_sm.said(slower))
    choose(opened, "look", NO_LOOK)
    expect(opened.locator("#sm")).to_have_count(0)


def test_what_does_not_run_is_not_looked_into(text):
    asked = Controls("a100-sxm-80gb", {}, {"phase": "training"}, ("flash_decoding",))
    why = Desk(text).look("page", asked, "flash_decoding")
    assert 'workload.phase = "training"' in why


def test_two_devices_stand_side_by_side(opened, text):
    choose(opened, "beside", "h100-sxm")
    wait_for_a_device(opened, changed=True)
    asked = Controls("a100-sxm-80gb", {}, {}, ("naive", "flash"), beside="h100-sxm")
    found = Desk(text).answer(asked)
    assert found.names == ("a100-sxm-80gb", "h100-sxm")
    times_s = [record.time_s for row in found.rows for record in (row.beside, row.changed)]
    bars = opened.locator("#time .textpoint")
    expect(bars).to_have_text([re.compile(show(time_s, "s")) for time_s in times_s])
    expect(opened.locator("#roofline .legendtext")).to_contain_text(
        ["roof of NVIDIA H100", "roof of NVIDIA A100"]
    )
    naive, _ = found.rows
    times = naive.changed.time_s / naive.beside.time_s
    expect(opened.locator("#answer")).to_contain_text(
        f"In units of the time on h100-sxm: naive {times:.3g}, "
    )
    slider(opened, "hbm.bandwidth").focus()
    press(opened, "ArrowRight")
    expect(opened.locator("#time .ytick").first).to_have_text("flash,a100-sxm-80gb,changed")


def test_what_does_not_run_on_the_other_device_says_so(text):
    asked = Controls("h100-sxm", {}, {"dtype": "fp8"}, ("naive",), beside="a100-sxm-80gb")
    found = Desk(text).answer(asked)
    told = [line.children for line in beneath(found)]
    assert any(line.startswith("naive, a100-sxm-80gb: ") for line in told)
    assert len(drawn(found)[0]["data"][0]["y"]) == 1


def settle(page):
    """Until the address says what the controls do."""
    wait_for_answers(page)
    page.wait_for_timeout(50)


def test_the_address_holds_all_that_is_set(browser, opened, explored):
    slider(opened, "l2.capacity").focus()
    press(opened, "ArrowLeft", times=2)
    choose(opened, "profile", "h100-sxm")  # its sliders start anew
    wait_for_answers(opened)
    slider(opened, "hbm.bandwidth").focus()
    press(opened, "ArrowRight", times=3)
    choose(opened, "beside", "rtx-4090")
    choose(opened, "tile", "64 × 32")
    choose(opened, "look", "flash")
    opened.get_by_label("causal").check()
    opened.locator("#inside p").first.wait_for()
    settle(opened)
    told = parse_qs(urlsplit(opened.url).query)
    assert told == {
        "profile": ["h100-sxm"],
        "beside": ["rtx-4090"],
        "tile": ["64 × 32"],
        "look": ["flash"],
        "causal": ["True"],
        "hbm.bandwidth": ["0.375"],
    }
    again = Visit(browser)
    again.page.goto(opened.url)
    again.page.locator("#inside p").first.wait_for()
    settle(again.page)
    assert again.page.url == opened.url
    for part in ("#answer", "#table", "#inside", "#controls"):
        expect(again.page.locator(part)).to_have_text(opened.locator(part).text_content())
    assert again.complaints == []
    again.context.close()


def test_an_address_of_something_else_says_what_it_has_not(browser, explored):
    address, _ = explored
    visit = Visit(browser)
    visit.page.goto(f"{address}?tile=7&hbm.bandwidth=99&batch=2&<b>=1")
    odd = visit.page.locator(".odd")
    expect(odd).to_have_text(
        [
            f"Of the address this page has no {one}."
            for one in ("tile=7", "hbm.bandwidth=99", "<b>=1")
        ]
    )
    expect(visit.page.locator("#batch_text")).to_have_text("2")
    visit.page.wait_for_selector("#time .textpoint")
    assert visit.complaints == []
    visit.context.close()


@pytest.fixture(scope="module")
def page(text):
    return Explorer(text, text.folder)


@given(data=st.data())
@settings(max_examples=40)
def test_whatever_stands_on_the_page_comes_back_by_its_address(page, data):
    choices = {
        name: data.draw(st.sampled_from(values), name) for name, values in page.choices().items()
    }
    titles = page.choices()["look"][1:]
    schedules = data.draw(st.lists(st.sampled_from(titles), unique=True, max_size=4))
    hw = page.desk.profile(choices["profile"])
    moved = data.draw(positions)
    figures = {f.key: moved[f.key] for f in FIGURES if moved.get(f.key, f.start(hw)) != f.start(hw)}
    standing = Standing(choices, tuple(schedules), figures)
    assert standing_of(page, query_of(page, standing)) == (standing, [])


@given(query=st.text() | st.text("?&=%._+-e0123456789abchtmls"))
@settings(max_examples=200)
def test_an_address_of_any_form_is_the_page_but_for_what_it_has_not(page, query):
    standing, _ = standing_of(page, query)
    assert standing_of(page, query_of(page, standing)) == (standing, [])


def test_at_390_pixels_bars_are_to_be_seen_and_nothing_is_wider(opened):
    opened.set_viewport_size({"width": 390, "height": 800})
    choose(opened, "beside", "h100-sxm")
    wait_for_a_device(opened, changed=True)
    opened.wait_for_function(
        """[...document.querySelectorAll('.chart')].every(
            chart => chart.querySelector('.main-svg').clientWidth === chart.clientWidth)"""
    )
    bars = opened.locator("#time .barlayer .point path").all()
    assert min(bar.bounding_box()["height"] for bar in bars) > 15
    opened.evaluate("window.scrollTo(0, 0)")
    assert opened.locator("#answer").bounding_box()["y"] < 800  # beside the controls, not after
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390


def test_another_profile_is_another_device(opened, text):
    slider(opened, "l2.capacity").focus()
    press(opened, "ArrowRight")
    wait_for_a_device(opened, changed=True)
    choose(opened, "profile", "rtx-4090")
    wait_for_a_device(opened, changed=False)
    expect(text_beside(opened, "hbm.bandwidth")).to_have_text("1.01 TB/s")
    (outcome, _) = run_scenario(
        make_scenario(text.data | {"hardware": {"profile": "rtx-4090"}}, "", "")
    )
    expect(first_time(opened)).to_have_text(show(outcome.record.time_s, "s"))
    assert cells(opened)[0][0] == "naive"


def offered(page, one_of_them):
    """The schedules that one may choose, once `one_of_them` is."""
    option = page.get_by_role("option", name=one_of_them, exact=True)
    page.click("#schedules")
    option.wait_for()
    options = page.get_by_role("option").all_inner_texts()
    page.keyboard.press("Escape")
    option.wait_for(state="hidden")
    return options


def test_the_schedules_that_one_may_choose_take_the_phase(opened):
    prefill = offered(opened, "flash1")
    assert {"naive", "flash", "flash1"} <= set(prefill)
    assert "quest" not in prefill
    opened.get_by_label("decode").check()
    assert "quest" in offered(opened, "quest")


@pytest.mark.parametrize("width", [1100, 1440])
def test_the_answer_and_the_table_are_seen_without_scrolling(opened, width):
    slider(opened, "hbm.bandwidth").focus()
    press(opened, "ArrowRight")
    wait_for_a_device(opened, changed=True)
    expect(opened.locator("mark")).to_have_count(1)
    opened.set_viewport_size({"width": width, "height": 800})
    marked = opened.locator("mark").all_inner_texts()
    assert [text.split(" (")[1] for text in marked] == ["×1.09)"]
    box = opened.locator("#table table").bounding_box()
    assert box["x"] + box["width"] <= width
    assert box["y"] + box["height"] <= 800
    opened.wait_for_function(
        """[...document.querySelectorAll('.chart')].every(
            chart => chart.querySelector('.main-svg').clientWidth === chart.clientWidth)"""
    )
    charts = [chart.bounding_box() for chart in opened.locator(".chart").all()]
    assert min(chart["height"] for chart in charts) > 200
    assert opened.evaluate("document.querySelector('#charts').offsetHeight") > 1000


def test_what_cannot_run_says_so_in_its_row(opened):
    choose(opened, "dtype", "fp8")
    expect(opened.locator("#table")).to_contain_text("no tensor rate")
    assert [row[0] for row in cells(opened)] == ["naive", "flash"]
    assert all("a100-sxm-80gb has no tensor rate for it" in row[1] for row in cells(opened))
    expect(opened.locator("#answer")).to_have_text("None of these schedules runs here.")


def test_the_button_writes_files_that_run_to_the_same_times(opened, explored):
    _, out = explored
    for key in ("sram.capacity", "calibration.sm.op_latency"):
        if key.startswith("calibration"):
            opened.locator("summary").click()
        slider(opened, key).focus()
        press(opened, "ArrowLeft", times=2)
    opened.click("#write")
    opened.wait_for_selector("#wrote:not(:empty)")
    path = opened.locator("#wrote").inner_text().removeprefix("attnsim run ")
    assert path.startswith(str(out))
    for outcome in run_scenario(load_scenario(path)):
        opened.get_by_role("cell", name=show(outcome.record.time_s, "s"), exact=True).wait_for()


def test_what_cannot_run_is_not_written(explored, text):
    _, out = explored
    page = Explorer(text, out)
    asked = Controls("a100-sxm-80gb", {}, {"phase": "training"}, ("flash", "flash_decoding"))
    said = page.write(asked)
    scenario = load_scenario(said.removeprefix("attnsim run "))
    assert [schedule.title for schedule in scenario.points[0].schedules] == ["flash"]
    assert page.write(replace(asked, schedules=("flash_decoding",))).startswith("nothing runs")


def test_on_a_full_disk_nothing_is_left_of_what_it_writes(explored, text, tmp_path):
    page = Explorer(text, tmp_path)
    asked = Controls("a100-sxm-80gb", {}, {}, ("flash",))
    with files_of_at_most(50):
        assert ": cannot be written: " in page.write(asked)
    assert not [*tmp_path.iterdir()]


# The server.


def status(address, **headers):
    ask = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(ask) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_this_computers_own_page_is_answered(explored):
    address, _ = explored
    port = int(address.rsplit(":", 1)[1].strip("/"))
    assert status(address) == 200
    assert status(address, Host=f"attacker.example:{port}") == 403
    assert status(address, Origin="http://attacker.example") == 403
    with socket.socket() as elsewhere, pytest.raises(ConnectionRefusedError):
        elsewhere.connect(("127.0.0.2", port))  # loopback too, but not where it listens


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sweep_l2",), "the explorer starts from one point"),
        (("serving",), "the explorer is of [[schedule]] tables"),
        (("search_tiles",), "the explorer is of [[schedule]] tables"),
        (("nothing",), "no such scenario"),
        (("flash_vs_naive", "--port", "TAKEN"), "cannot be listened on"),
        (("flash_vs_naive", "--port", "99999"), "cannot be listened on"),
    ],
)
def test_what_cannot_be_explored_is_one_line(arguments, said, explored):
    port = explored[0].rsplit(":", 1)[1].strip("/")
    told = [port if argument == "TAKEN" else argument for argument in arguments]
    done = called("explore", "serve", *told)
    assert done.returncode == 2
    assert re.fullmatch(rf"attnsim: .*{re.escape(said)}.*\n", done.stderr)


def test_without_dash_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dash", None)
    monkeypatch.delitem(sys.modules, "sim.web.app")
    assert_one_line(called("explore", "serve"), "pip install 'attnsim[explore]'")


def test_the_command_tells_its_address_and_ctrl_c_ends_it():
    command = [sys.executable, "-m", "sim.cli.app", "explore", "serve", "--port", "0"]
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        command,
        env=buffered,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert select.select([server.stdout], [], [], GUARD_S)[0], "has not told its address"
        said = server.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", said)[0]
        assert status(address) == 200
        server.send_signal(signal.SIGINT)
        try:
            assert server.wait(GUARD_S) == 0
        finally:
            server.kill()
        assert server.stderr.read() == ""
