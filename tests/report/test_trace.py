"""The trace, opened by Perfetto's own trace processor."""

import pytest

from sim.report.trace import save_trace
from sim.runs.job import run_scenario
from sim.runs.scenario import make_scenario
from tests.support.trace_processor import TraceProcessor


@pytest.fixture(scope="module")
def outcomes():
    tables = {
        "workload": {"heads": 4, "head_dim": 64, "seq_len": 512, "causal": True},
        "hardware": {"profile": "a100-sxm-40gb"},
        "schedule": [{"name": "naive"}, {"name": "flash2"}],
    }
    return list(run_scenario(make_scenario(tables, "trace", "a test")))


@pytest.fixture(scope="module", params=["trace.json", "trace.json.gz"])
def trace(request, outcomes, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / request.param
    save_trace(outcomes, path)
    return TraceProcessor(path)


def test_perfetto_finds_nothing_wrong_with_the_trace(trace):
    bad = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"
    assert trace.query(bad) == []


def test_every_cta_and_every_kernel_is_a_slice(trace, outcomes):
    kernels = [launched for outcome in outcomes for launched in outcome.run.kernels]
    ctas = sum(launched.run.kernel.ctas for launched in kernels)
    (row,) = trace.query("select count(*) n from slice where name like 'CTA %'")
    assert row["n"] == ctas
    rows = trace.query(
        "select s.name, s.dur from slice s join thread_track t on s.track_id = t.id "
        "join thread using (utid) where thread.name = 'kernels' order by s.ts"
    )
    assert sorted(r["name"] for r in rows) == sorted(k.run.kernel.name for k in kernels)
    expected = sorted(round(k.run.time_s * 1e9) for k in kernels)
    assert sorted(r["dur"] for r in rows) == pytest.approx(expected, abs=1)


def test_counters_tell_pipes_bytes_in_flight_hit_rate_and_memory(trace):
    names = {row["name"] for row in trace.query("select distinct name from counter_track")}
    assert {
        "HBM bandwidth in use share",
        "tensor rate in use share",
        "L2 hit rate share",
        "HBM bytes in flight bytes",
        "HBM allocated bytes",
    } <= names
    (row,) = trace.query(
        "select max(value) most from counter join counter_track t on track_id = t.id "
        "where t.name = 'HBM bytes in flight bytes'"
    )
    assert row["most"] > 0
