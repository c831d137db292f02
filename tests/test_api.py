"""What Python is given: how a question is asked there, and how its answer shows itself."""

import re
from dataclasses import replace

import pytest

from sim import InputError, Records, plots, simulate

WORKLOAD = {"heads": 4, "head_dim": 64, "seq_len": 512}
DRAWN = (plots.traffic, plots.time, plots.roofline, plots.utilisation, plots.memory)


def asked(**more):
    return simulate(**{"workload": WORKLOAD, "hardware": "t4", "schedules": ["flash2"]} | more)


@pytest.fixture(scope="module")
def swept():
    """Two schedules at three lengths, at the last of which one does not fit."""
    return asked(
        workload=WORKLOAD | {"batch": 64},
        schedules=["naive", "flash2"],
        sweep={"workload.seq_len": [256, 512, 32768]},
        limits={"replayed_steps": 20_000},
    )


def test_keys_with_dots_mean_within_a_table_what_they_mean_in_a_file():
    nested = asked(hardware={"profile": "t4", "l2": {"capacity": "1 MiB"}})
    assert asked(hardware={"profile": "t4", "l2.capacity": "1 MiB"}) == nested
    assert nested[0].overrides == {"l2.capacity": "1 MiB"}
    (record,) = asked(schedules=[{"name": "flash2", "tile.q": 64, "tile.kv": 32}])
    assert record.settings["schedule.flash2.tile.q"] == 64


def test_keys_with_dots_are_laid_over_tables_and_scenarios_that_stay_as_they_are():
    tables = {"workload": {**WORKLOAD}, "hardware": {"profile": "t4", "l2": {"capacity": "1 MiB"}}}
    (record,) = asked(**tables, **{"workload.batch": 2, "hardware.l2.capacity": "2 MiB"})
    assert (record.workload["batch"], record.overrides["l2.capacity"]) == (2, "2 MiB")
    assert tables["workload"] == WORKLOAD
    assert tables["hardware"]["l2"] == {"capacity": "1 MiB"}
    records = simulate("flash_vs_naive", **{"workload.seq_len": 256, "schedule.flash2.stages": 1})
    assert {record.workload["seq_kv"] for record in records} == {256}
    assert [r.options.get("stages") for r in records if r.options["name"] == "flash2"] == [1]
    with pytest.raises(InputError, match=r"schedule\.flash9\.stages: no schedule is called so"):
        simulate("flash_vs_naive", **{"schedule.flash9.stages": 1})


def test_a_question_is_asked_in_one_way():
    with pytest.raises(TypeError, match="not both"):
        asked(schedule="naive")
    with pytest.raises(TypeError, match="not both"):
        simulate("flash_vs_naive", workload=WORKLOAD)


def test_a_record_shows_itself_in_three_lines(swept):
    fits, does_not = swept[0], swept[4]
    answer, what, figures = repr(fits).splitlines()
    assert re.match(
        r"naive on t4, workload\.seq_len = 256: [\d.]+ µs, held back by \w+ \d+%", answer
    )
    assert "heads 4" in what
    assert f"L2 hits {fits.l2_hit_rate:.0%}" in figures
    assert fits._repr_html_().replace("<br>", "\n").replace("<b>", "").replace("</b>", "") == (
        repr(fits)
    )
    assert repr(does_not).splitlines()[0].endswith("out of memory")
    assert repr(does_not).splitlines()[2] == does_not.reason


def test_records_are_a_table_and_a_frame(swept):
    assert isinstance(swept, Records)
    frame = swept.frame()
    assert list(frame.time_s.dropna()) == [r.time_s for r in swept if r.time_s]
    html = swept._repr_html_()
    widths = [
        sum(int(span or 1) for span in re.findall(r"<t[dh](?: colspan=\"(\d+)\")?>", row))
        for row in re.findall(r"<tr>(.*?)</tr>", html)
    ]
    assert widths == [widths[0]] * 7
    assert html.count("out of memory") == 1


def test_what_a_notebook_shows_is_no_markup():
    record, *_ = records = asked(schedules=[{"name": "flash2", "label": "<b>&"}])
    for html in (record._repr_html_(), records._repr_html_()):
        assert "&lt;b&gt;&amp;" in html


@pytest.mark.parametrize("draw", DRAWN)
def test_figures_are_drawn_of_records_alone(swept, draw):
    figure = draw(swept, "a title")
    assert figure.get_suptitle().endswith("\na title")
    assert len(draw(swept).get_suptitle().splitlines()) == 1


def test_figures_over_time_are_of_the_last_point_where_most_ran(swept):
    drawn = [ax.get_title(loc="left").split(":")[0] for ax in plots.utilisation(swept).axes]
    assert drawn == ["naive", "flash2"]
    assert "seq_len 512" in plots.memory(swept).get_suptitle()


def test_a_roofline_has_the_roofs_of_its_records(swept):
    (ax,) = plots.roofline(swept).axes
    texts = {text.get_text() for text in ax.texts}
    assert {"65 TFLOP/s fp16", "HBM 0.32 TB/s"} <= texts


@pytest.mark.parametrize("draw", DRAWN[2:])
def test_figures_of_what_ran_say_so_where_nothing_did(swept, draw):
    with pytest.raises(ValueError, match="none of these records ran"):
        draw([swept[4]])


def test_a_rate_that_devices_share_is_named_once(swept):
    devices = ["h100-sxm", "h200-sxm", "a100-sxm-80gb"]
    records = simulate(
        workload={"heads": 2, "head_dim": 64, "seq_len": 256},
        hardware="t4",
        schedule="flash2",
        sweep={"hardware.profile": devices},
    )
    (ax,) = plots.roofline(records).axes
    texts = [text.get_text() for text in ax.texts]
    assert sorted(t for t in texts if "TFLOP" in t) == ["312 TFLOP/s fp16", "989 TFLOP/s fp16"]
    assert sum("HBM" in text for text in texts) == len(devices)


def test_short_names_of_rows_leave_their_room_to_the_figure(swept):
    once = [record for record in swept if record.status == "ok"][:1]
    (ax,) = plots.time([replace(one, point={}) for one in once]).axes
    assert ax.get_position().x0 < 0.15
