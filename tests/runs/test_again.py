"""Points of a sweep whole again: what a store left out is replayed, of as many as are asked."""

from dataclasses import replace

from sim.runs.again import whole_points
from sim.runs.job import run_scenario
from sim.runs.scenario import ScenarioText, make_scenario

TABLES = {
    "workload": {"heads": 2, "head_dim": 64, "seq_len": 256},
    "hardware": {"profile": "t4"},
    "schedule": [{"name": "naive"}, {"name": "flash2"}],
    "sweep": {"hardware.sm.count": [4, 8, 16, 32, 40]},
}
TEXT = ScenarioText(TABLES, "again", "again.toml", None)


def test_points_evenly_spread_have_their_devices_and_timelines_again():
    whole = [outcome.record for outcome in run_scenario(make_scenario(TABLES, "again", "a test"))]
    stored = [replace(record, timeline=[], memory=[]) for record in whole]
    told: list[str] = []
    points = whole_points(TEXT, stored, 3, lambda what, *_: told.append(what))
    assert [point.values["hardware.sm.count"] for point in points] == [4, 16, 40]
    assert [point.hardware.sm.count for point in points] == [4, 16, 40]
    assert [record for point in points for record in point.records] == [
        record for record in whole if record.point["hardware.sm.count"] in (4, 16, 40)
    ]
    assert set(told) == {"naive", "flash2", "naive, one SM", "flash2, one SM"}
    assert [list(point.inside) for point in points] == [[], [], ["naive", "flash2"]]


def test_what_has_its_timeline_is_not_replayed_and_what_did_not_run_stands_as_it_is():
    records = [outcome.record for outcome in run_scenario(make_scenario(TABLES, "again", "a test"))]
    records[0] = replace(records[0], status="failed", reason="a test", time_s=None)
    told: list[str] = []
    points = whole_points(TEXT, records, 8, lambda what, *_: told.append(what))
    assert [record for point in points for record in point.records] == records
    assert told == ["naive, one SM", "flash2, one SM"]  # at the last point where both ran
