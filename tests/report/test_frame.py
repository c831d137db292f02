"""Records as a table: what its rows and columns are, and that files have them."""

from dataclasses import replace

import pandas as pd

import sim
from sim.inputs.axes import design_of
from sim.report.frame import export_frame, frame_of
from sim.runs.scenario import read_scenario


def test_the_frame_has_a_row_a_record_and_exports_as_it_is(tmp_path):
    tables = {
        "workload": {"heads": 16, "head_dim": 64, "seq_len": 1024, "causal": True},
        "hardware": {"profile": "t4"},
        "schedule": [{"name": "naive"}],
        "sweep": {"workload.seq_len": [512, 100_000], "workload.causal": [True, False]},
    }
    frame = sim.sweep(**tables, workers=1)
    records = sim.simulate(**tables)
    assert list(frame.status) == ["ok", "ok", "out of memory", "out of memory"]
    for row, record in zip(frame.to_dict("records"), records, strict=True):
        assert row["workload.seq_len"] == record.point["workload.seq_len"]
        if record.status == "ok":
            assert row["hbm_read_bytes"] == record.hbm_read_bytes
            assert row["time_s"] == record.time_s
            assert row["share.hbm"] == record.bottleneck_shares["hbm"]
            assert row["schedule.name"] == row["schedule"] == "naive"
    assert str(frame.hbm_read_bytes.dtype) == "Int64"
    for name, read in (("a.parquet", pd.read_parquet), ("a.csv", pd.read_csv)):
        kept = [replace(record, timeline=[], memory=[]) for record in records]
        export_frame(kept, tmp_path / name)
        exported = read(tmp_path / name)
        assert list(exported.columns) == list(frame.columns)
        assert list(exported.hbm_read_bytes.dropna()) == list(frame.hbm_read_bytes.dropna())
        assert list(exported.time_s.dropna()) == list(frame.time_s.dropna())


def test_the_frame_of_a_shipped_scenario_names_every_swept_key():
    text = read_scenario("sweep_l2")
    points = list(design_of(text.data["sweep"], text.where))
    assert len(points) == 18
    assert {"workload.seq_len", "hardware.l2.capacity"} == set(points[0])
    assert frame_of([]).empty
