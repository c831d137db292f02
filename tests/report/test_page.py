"""The report page, in a real browser that is offline."""

import json
import re
import sqlite3
from contextlib import contextmanager
from functools import partial
from html import escape

import pytest
from playwright.sync_api import expect

from sim.inputs.units import show
from sim.machine import CAUSES
from sim.report import swept_charts
from sim.report.answer import answer
from sim.report.chart import CAUSES as CHARTED
from sim.report.known_errors import known_errors
from sim.report.notes import CAUSES_IN_WORDS
from sim.runs.record import Record
from sim.runs.results_file import load
from tests.support.browser import Visit
from tests.support.commands import called, printed_by

QUESTION = """
title = "Two schedules"
[workload]
heads = 16
head_dim = 64
seq_len = 1024
[hardware]
profile = "a100-sxm-80gb"
[[schedule]]
name = "naive"
[[schedule]]
name = "flash2"
"""
SMALL_HBM = ("--set", "hardware.hbm.capacity=30 MB")  # naive's scores take 33.6 MB
SWEEP = (
    QUESTION
    + '[sweep]\n"workload.seq_len" = [512, 1024]\n"hardware.l2.capacity" = ["20 MB", "40 MB"]\n'
)


def ran(folder, text, *more, command="run"):
    """Writes a scenario, runs it, and gives the page's path and the records."""
    path, report = folder / "question.toml", folder / "report.html"
    path.write_text(text)
    into = ["--store", folder / "s.sqlite"] if command == "sweep" else ["--out", folder]
    printed_by(command, path, "--report", report, *into, *more)
    return report, load(folder / "results.json") if command == "run" else None


@pytest.fixture
def written(tmp_path):
    """Runs scenarios in the test's folder."""
    return partial(ran, tmp_path)


@contextmanager
def pages(browser):
    """Opens a page offline; at the end nothing was asked for, and nothing complained of."""
    visits = []

    def open_page(path):
        visit = Visit(browser, offline=True)
        visits.append((visit, path))
        page = visit.open_file(path)
        for chart in page.locator(".chart").all():
            chart.locator(".main-svg").first.wait_for()
        return page

    yield open_page
    for visit, path in visits:
        assert visit.requests == [path.resolve().as_uri()]
        assert visit.complaints == []
        visit.context.close()


@pytest.fixture
def opened(browser):
    """Opens pages for a test."""
    with pages(browser) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def of_two(browser, tmp_path_factory):
    """The page of the question, opened once for those who look at different parts of it."""
    path, records = ran(tmp_path_factory.mktemp("two"), QUESTION)
    with pages(browser) as open_page:
        yield open_page(path), records


def totals(page):
    """What stands at the ends of the bars of time."""
    return page.locator("#time .textpoint")


def bars(page, chart):
    """Lengths of a chart's bars in pixels, trace by trace."""
    paths = page.locator(f"#{chart} .bars path")
    paths.first.wait_for()
    return paths.evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")


def test_the_page_of_a_run_tells_what_the_records_say(of_two):
    page, (naive, flash) = of_two
    assert page.title() == "Two schedules"
    said = page.locator("#answer").inner_text()
    assert said.startswith("flash2 is fastest on a100-sxm-80gb (16 heads of 64, 1,024 tokens,")
    assert f": {show(flash.time_s, 's')} and" in said
    assert f"naive takes {naive.time_s / flash.time_s:.3g} times as long: " in said
    rows = page.locator("#results tbody tr").all_inner_texts()
    assert len(rows) == 2 + len(naive.kernels)
    assert page.locator("#causes tbody tr").count() == len(rows)
    assert page.locator("#causes th").all_inner_texts()[1:3] == ["waves", "last wave full"]
    assert rows[0].split("\t")[:2] == ["naive", show(naive.time_s, "s")]
    assert rows[-1].split("\t")[:3] == [
        "flash2",
        show(flash.time_s, "s"),
        show(flash.hbm_read_bytes, "B"),
    ]
    read_naive, read_flash, *_ = bars(page, "traffic")
    assert read_naive / read_flash == pytest.approx(
        naive.hbm_read_bytes / flash.hbm_read_bytes, rel=0.1
    )
    expect(totals(page)).to_have_text([show(naive.time_s, "s"), show(flash.time_s, "s")])
    expect(page.locator("#roofline .points path")).to_have_count(3)  # naive's matmuls, flash2
    assert "a100-sxm-80gb" in page.locator("#scenario").inner_text()
    assert "numba" in page.locator("footer").inner_text()


def test_charts_answer_the_mouse(of_two):
    page, _ = of_two
    page.hover("#traffic .bars path >> nth=0", force=True)
    tip = page.locator("#traffic .hoverlayer .hovertext").first
    assert "naive" in tip.text_content()
    assert page.locator(".modebar-btn[data-title*=Zoom]").count() > 1
    assert page.locator(".modebar-btn[data-title*=Share]").count() == 0  # it would upload
    lines = page.locator("#timeline .scatterlayer .trace")
    expect(lines).to_have_count(4)
    page.locator("#timeline .legendtoggle").nth(2).click()
    expect(lines).to_have_count(6)


def test_one_can_look_into_each_schedule(of_two):
    page, (naive, flash) = of_two
    assert flash.time_s < naive.time_s
    expect(page.locator("#schedule option:checked")).to_have_text("flash2")  # the fastest
    expect(page.locator("#inside_said")).to_contain_text("flash2, replayed event by event")
    expect(page.locator("#walked")).to_contain_text("loads of V")
    assert len(bars(page, "sm")) > 50
    hatched = "waits for issue slots in use by others"
    assert hatched in page.locator("#inside_said").inner_text()
    page.select_option("#schedule", label="naive")
    expect(page.locator("#inside_said")).to_contain_text("S = Q K^T, replayed event by event")
    expect(page.locator("#walk_beside .gtitle")).to_have_text(re.compile("Loads of Q"))
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")


def test_the_device_is_shown_with_its_sources(written, opened):
    path, _ = written(QUESTION, "--set", "hardware.l2.capacity=12 MiB")
    page = opened(path)
    device = page.locator("details.device")
    assert device.count() == 1
    device.locator("summary").click()
    text = device.inner_text()
    assert "capacity = 12 MiB" in text
    assert "datasheet" in text


def test_the_errors_of_earlier_predictions_are_those_that_are_shipped(written):
    path, _ = written(QUESTION + '[[schedule]]\nname = "bigbird"\nlabel = "bird"\n')
    page = path.read_text(encoding="utf-8")
    (table,) = re.findall(r'<table id="errors">.*?</table>', page, re.DOTALL)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")]
    known = known_errors({"name": "flash2"}, "a100-sxm-80gb")
    flash = [row for row in rows if row[:1] == ["flash2"]]
    assert [row[1] for row in flash] == [one.profile for one in known]
    assert flash[0][1] == "a100-sxm-80gb"
    assert flash[0][3:5] == [str(known[0].points), f"{known[0].mean_error:.1%}"]
    assert "bird: no measurement of such a kernel is known" in page


def test_a_sweep_has_all_points_and_charts_of_the_chosen_one(written, opened, tmp_path):
    path, _ = written(SWEEP, command="sweep")
    page = opened(path)
    assert page.locator("#results tbody tr").count() == 8
    assert "fastest at 4 of 4 points" in page.locator("#answer").inner_text()
    cells = page.locator("#swept_time .hm text").all_text_contents()
    assert [cell[-1] for cell in cells] == ["s"] * 8
    chosen = page.locator("#point option")
    assert chosen.count() == 4
    expect(totals(page)).to_have_count(2)
    before = [text.strip() for text in totals(page).all_text_contents()]
    page.select_option("#point", index=0)
    with sqlite3.connect(tmp_path / "s.sqlite") as store:
        kept = [json.loads(row) for (row,) in store.execute("SELECT record FROM records")]
    times = [
        show(record["time_s"], "s")
        for schedule in ("naive", "flash2")
        for record in kept
        if record["schedule"] == schedule
        and record["point"] == {"workload.seq_len": 512, "hardware.l2.capacity": "20 MB"}
    ]
    assert before != times
    expect(totals(page)).to_have_text(times)
    expect(page.locator("#timeline .scatterlayer .trace")).to_have_count(4)


def test_a_sweep_in_which_one_schedule_cannot_be_has_its_page(written, opened):
    options = '[sweep]\n"schedule.flash2.tile" = [{ q = 7, kv = 64 }, { q = 64, kv = 64 }]\n'
    path, _ = written(QUESTION + options.replace("q = 7,", "q = 4096,"), command="sweep")
    page = opened(path)
    assert page.locator("#results tr.failed").count() == 1
    assert page.locator("#point option").count() == 2
    page.select_option("#point", index=0)
    expect(totals(page)).to_have_count(1)
    assert "numba" in page.locator("footer").inner_text()


def test_the_answer_of_a_sweep_names_losses_too():
    def record(schedule, tokens, time_s):
        return Record(schedule, {"workload.seq_len": tokens}, {}, "h100-sxm", "ok", time_s=time_s)

    times = [(1, 2), (1, 2), (4, 1)]
    records = [
        record(schedule, tokens, time_s)
        for tokens, both in enumerate(times)
        for schedule, time_s in zip(("new", "old"), both, strict=True)
    ]
    said = answer(records)
    assert said.startswith("new is fastest at 2 of 3 points, old at 1 on h100-sxm.")
    assert "It is 0.25 to 2 times as fast as old." in said


def test_a_menu_chooses_the_swept_key(written, opened):
    path, _ = written(SWEEP + '"workload.heads" = [8, 16]\n')
    page = opened(path)
    title = page.locator("#swept_time .xtitle")
    expect(title).to_have_text("workload.seq_len")
    page.locator("#swept_time .updatemenu-header").click()
    page.locator("#swept_time .updatemenu-item-text", has_text="hardware.l2.capacity").last.click()
    expect(title).to_have_text("hardware.l2.capacity")
    ticks = page.locator("#swept_time .xtick text").all_text_contents()
    assert ticks == ["20 MB", "40 MB"]


def test_what_does_not_run_is_said(written):
    path, _ = written(QUESTION, *SMALL_HBM, "--set", "schedule.naive.label=eager")
    text = path.read_text()
    assert "out of memory: S needs" in text
    assert "1 of 2 did not run (eager: out of memory)" in text


def test_a_run_of_which_nothing_fits_is_a_page_too(written, browser):
    path, _ = written(QUESTION.replace('[[schedule]]\nname = "flash2"\n', ""), *SMALL_HBM)
    visit = Visit(browser, offline=True)
    page = visit.open_file(path)
    assert (
        page.locator("#answer")
        .inner_text()
        .startswith("Nothing ran: naive: out of memory: S needs")
    )
    assert visit.complaints == []


def test_texts_cannot_become_markup(written, opened):
    evil = "</script><script>window.broken = 1</script><b>"
    path, _ = written(QUESTION.replace("Two schedules", evil) + f'label = "{evil}"\n')
    page = opened(path)
    assert page.evaluate("window.broken") is None
    assert page.locator("h1").inner_text() == evil
    assert escape(evil) in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "flash_vs_naive", "--report", "nowhere/report.html"), "--report nowhere"),
        (("sweep", "sweep_l2", "--report", "nowhere/report.html"), "--report nowhere"),
        (
            ("run", "serving", "--report", "report.html"),
            "--report, --trace, --export, --engine and --wide go with",
        ),
    ],
)
def test_a_report_that_cannot_be_is_one_line(arguments, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = called(*arguments)
    assert done.returncode == 2
    assert re.fullmatch(rf"attnsim: .*{re.escape(said)}.*\n", done.stderr)
    assert not list(tmp_path.iterdir())


def test_a_long_label_costs_no_chart(written, opened):
    label = "a label that goes on and on and on " * 4
    path, _ = written(QUESTION.replace('name = "flash2"', f'name = "flash2"\nlabel = "{label}"'))
    page = opened(path)
    for chart in ("time", "traffic", "timeline", "roofline", "memory"):
        assert page.locator(f"#{chart} .main-svg").count() >= 1
    assert sum(bars(page, "traffic")) > 150
    assert page.evaluate("document.body.scrollWidth") <= 1280


@pytest.mark.parametrize("span", [(145e-6, 186e-6), (2e-6, 5e-6), (1e-6, 3e-3), (1e-9, 1e3)])
def test_an_axis_has_ticks_with_units_however_narrow_its_span(span):
    records = [
        Record("one", {"workload.seq_len": n}, {}, "h100-sxm", "ok", time_s=time_s)
        for n, time_s in enumerate(span)
    ]
    ticks = swept_charts.swept_time(records)["layout"]["yaxis"]["ticktext"]
    assert 3 <= len(ticks) <= 14
    assert all(tick.endswith("s") for tick in ticks)
    assert len(set(ticks)) == len(ticks)


def test_every_cause_has_words_and_one_place_in_the_chart():
    causes = [*CAUSES, "power", "launch", "link", "idle"]
    told = [cause for _, own in CHARTED.values() for cause in own]
    assert sorted(told) == sorted(causes) == sorted(CAUSES_IN_WORDS)


def test_the_answer_of_one_schedule_names_no_rival(written):
    _, (record,) = written(QUESTION.replace('[[schedule]]\nname = "naive"\n', ""))
    assert answer([record]).startswith(f"flash2 takes {show(record.time_s, 's')} and ")
