"""What figures show on their axes."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim import plots
from sim.report import charts, swept_charts
from sim.report.axes import grid_of, log_ticks
from sim.report.figure import uncrowd
from sim.runs.record import Record, Timeline

TOKENS, CAPACITIES = [512, 1024, 2048], ["10 MiB", "40 MiB"]


def ran(point: dict[str, Any], time_s: float, schedule: str = "one") -> Record:
    return Record(
        schedule, point, {"dtype": "fp16"}, "h100-sxm", "ok", time_s=time_s,
        hbm_read_bytes=10**9, hbm_write_bytes=10**9,
    )  # fmt: skip


def grid() -> list[Record]:
    """Two schedules at six points, one of which one does not fit."""
    records = [
        ran({"workload.seq_len": n, "hardware.l2.capacity": c}, n * 1e-6, schedule)
        for n in TOKENS
        for c in CAPACITIES
        for schedule in ("one", "other")
    ]
    left = replace(records[-1], status="out of memory", time_s=None, reason="no room")
    return [*records[:-1], left]


@pytest.mark.parametrize("low", [1e-6, 0.75, 3.0, 800.0])
@pytest.mark.parametrize("times", [1.2, 2.25, 6.0, 40.0, 1e4, 1e9])
def test_ticks_are_round_few_and_on_the_axis(low, times):
    ticks = log_ticks(low, low * times)
    assert 3 <= len(ticks) <= 13
    assert ticks == sorted(set(ticks))
    assert low <= ticks[0]
    assert ticks[-1] <= low * times
    assert ticks == [float(f"{tick:.3g}") for tick in ticks]


def test_a_sweep_over_two_keys_is_a_heat_map_a_schedule():
    figure = plots.time(grid())
    one, other, bar = figure.axes
    assert [ax.get_title(loc="left") for ax in (one, other)] == ["one", "other"]
    assert [text.get_text() for text in one.texts] == ["512 µs", "1.02 ms", "2.05 ms"] * 2
    assert other.texts[-1].get_text() == "out of\nmemory"
    assert (other.get_xlabel(), one.get_ylabel()) == ("seq_len", "l2.capacity")
    assert [tick.get_text() for tick in one.get_xticklabels()] == ["512", "1,024", "2,048"]
    assert bar.get_ylabel() == "time, log scale"


def test_the_pages_heat_map_has_a_colour_bar_with_units_and_what_did_not_run():
    chart = swept_charts.swept_time(grid())
    one, other = chart["data"]
    assert one["text"] == [["512 µs", "1.02 ms", "2.05 ms"]] * 2
    assert other["text"][1] == ["512 µs", "1.02 ms", "out of memory"]
    assert other["z"][1][2] is None
    bar = chart["layout"]["coloraxis"]["colorbar"]
    assert bar["title"]["text"] == "log scale"
    assert set(bar["ticktext"]) <= {"500 µs", "700 µs", "1 ms", "1.5 ms", "2 ms"}
    assert len(bar["ticktext"]) >= 3


def test_a_sweep_that_is_no_grid_is_none():
    assert grid_of(grid()[:-2]) is None
    assert grid_of([record for record in grid() if record.point["workload.seq_len"] == 512]) is None
    assert grid_of([replace(record, point={}) for record in grid()]) is None


def test_devices_are_not_joined_by_a_line_and_lengths_are():
    devices = [ran({"hardware.profile": name}, 1e-3) for name in ("h100-sxm", "h200-sxm")]
    lengths = [ran({"workload.seq_len": n}, n * 1e-6) for n in TOKENS]
    for records, mode in ((devices, "markers"), (lengths, "lines+markers")):
        assert [trace["mode"] for trace in swept_charts.swept_time(records)["data"]] == [mode]
    assert {line.get_linestyle() for line in plots.time(devices).axes[0].lines} == {"None"}


def test_swept_values_stand_on_the_axis_as_they_were_written():
    records = [ran({"hardware.l2.capacity": c}, 1e-3) for c in ("10 MiB", "25 MiB", "100 MiB")]
    axis = swept_charts.swept_time(records)["layout"]["xaxis"]
    assert axis["ticktext"] == ["10 MiB", "25 MiB", "100 MiB"]
    assert axis["title"]["text"] == "hardware.l2.capacity, log scale"


def test_memory_is_in_the_units_of_traffic_and_says_what_the_card_is_called():
    changes = [{"time_s": 0.0, "in_use_bytes": 2 * 10**9, "what": "+ Q"}]
    record = replace(ran({}, 1e-3), memory=changes, hbm_capacity_bytes=80 * 2.0**30)
    (ax,) = plots.memory([record]).axes
    assert ax.get_ylabel() == "allocated, log scale"
    assert ax.yaxis.get_major_formatter()(2e9) == "2 GB"
    assert np.allclose(ax.lines[0].get_ydata(), 2e9)
    assert "capacity 85.9 GB (80 GiB)" in [text.get_text() for text in ax.texts]


def test_cells_that_are_too_narrow_for_their_figures_have_none():
    points = [{"workload.batch": n, "workload.heads": heads} for n in range(20) for heads in (1, 2)]
    figure = plots.time([ran(point, 1e-6 * (n + 1)) for n, point in enumerate(points)])
    assert len(figure.axes[0].texts) == 40
    uncrowd(figure)
    assert not figure.axes[0].texts
    few = plots.time(grid())
    uncrowd(few)
    assert len(few.axes[0].texts) == 6


def many_schedules():
    names = [f"schedule {number}" for number in range(12)]
    return [replace(ran({}, 1e-5 * (n + 1)), schedule=name) for n, name in enumerate(names)]


def test_a_legend_hides_nothing_however_many_the_schedules():
    lengths = [replace(r, point={"workload.seq_len": n}) for r in many_schedules() for n in TOKENS]
    figure = plots.time(lengths)
    height = figure.get_figheight()
    uncrowd(figure)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    legend = ax.get_legend().get_window_extent()
    assert not legend.overlaps(ax.bbox)
    assert not legend.overlaps(figure._suptitle.get_window_extent())
    assert figure.get_figheight() > height
    assert ax.bbox.height > 2 * figure.dpi


def test_a_short_legend_is_one_line_above_the_panel():
    lengths = [ran({"workload.seq_len": n}, 1e-6, name) for n in TOKENS for name in "abc"]
    figure = plots.time(lengths)
    uncrowd(figure)
    tops = {text.get_window_extent().y0 for text in figure.axes[0].get_legend().get_texts()}
    assert max(tops) - min(tops) < 3


def test_schedules_of_one_colour_have_markers_of_their_own():
    lines = plots.time(many_schedules()).axes[0].lines
    drawn = [(line.get_color(), line.get_marker()) for line in lines if len(line.get_xdata())]
    assert len(set(drawn)) == 12


def test_a_schedule_has_a_row_with_its_name_and_its_figure():
    figure = plots.time(many_schedules())
    uncrowd(figure)
    (ax,) = figure.axes
    assert [tick.get_text() for tick in ax.get_yticklabels()][:2] == ["schedule 0", "schedule 1"]
    assert [text.get_text() for text in ax.texts][:2] == ["10 µs", "20 µs"]
    assert ax.get_xlabel() == "time, log scale"


def test_a_name_as_long_as_a_line_leaves_room_for_what_is_drawn():
    records = [replace(r, schedule=50 * "long ") for r in many_schedules()]
    lengths = [replace(r, point={"workload.seq_len": n}) for r in records for n in TOKENS]
    for figure in (plots.time(records), plots.time(lengths)):
        uncrowd(figure)
        assert figure.axes[0].bbox.width > 3 * figure.dpi


def test_kernels_names_do_not_run_into_each_other():
    parts = [Timeline(f"kernel {n}", n * 1e-6, 1e-6, [0.5], [0.5], [], []) for n in range(40)]
    figure = plots.utilisation([replace(ran({}, 4e-5), timeline=parts)])
    uncrowd(figure)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) > 5
    assert not any(box.overlaps(other) for box, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(("times_s", "same"), [((4e-4, 1e-4), True), ((4e-4, 1e-6), False)])
def test_lengths_of_time_compare_where_the_shortest_can_be_read(times_s, same):
    parts = [Timeline("kernel", 0.0, 1e-6, [0.5], [0.5], [], [])]
    records = [replace(ran({}, time_s), schedule=str(time_s), timeline=parts) for time_s in times_s]
    one, other = (ax.get_xlim()[1] for ax in plots.utilisation(records).axes)
    assert bool(one == other) is same
    layout = charts.timeline(records)["layout"]
    assert (layout["xaxis"]["range"] == layout["xaxis2"]["range"]) is same
