"""One SM over time and the tile walk, drawn from what was watched."""

import numpy as np
import pytest
from hypothesis import given, settings

from sim.engine.watched import watch
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload
from sim.report import one_sm, tile_walk
from sim.runs.inside import attention_of
from sim.schedules import SCHEDULES
from sim.schedules.base import TiledSchedule
from tests.support.drawn import cases, devices, lowered

TILE = 64


def seen(name="flash2", events=10**6, hardware=None, options=(), **workload):
    """A schedule watched: two heads of 512 tokens on an H100, unless it is said otherwise."""
    hw = load_profile("h100-sxm", hardware or {}, "a test")
    asked = {"batch": 1, "heads": 2, "kv_heads": 2, "head_dim": 64, "seq_q": 512, "seq_kv": 512}
    w = AttentionWorkload(**{**asked, "dtype": "fp16", **workload})
    tiled = issubclass(SCHEDULES[name], TiledSchedule)
    options = {"name": name, **dict(options)} | ({"tile": {"q": TILE, "kv": TILE}} if tiled else {})
    kernels = lowered(SCHEDULES[name].model_validate(options), w, hw)
    return watch(attention_of(kernels), hw, w.dtype, events)


def levels(chart):
    """What served each cell, "" where no load came; of the first head, 8 x 8."""
    (walk, _) = chart["data"]
    return np.array(walk["text"])[:8]


@given(cases(), devices())
@settings(max_examples=40)
def test_whatever_is_watched_can_be_drawn(case, hw):
    w, schedule = case
    told = watch(attention_of(lowered(schedule, w, hw)), hw, w.dtype, 2_000)
    chart = one_sm.one_sm(told)
    first, last = chart["layout"]["xaxis"]["range"]
    assert 0 <= first < last
    rows = chart["layout"]["yaxis"]["categoryarray"]
    assert {row for trace in chart["data"] for row in trace["y"]} == set(rows)
    assert told.kernel.name in one_sm.said(told)
    walks = tile_walk.tile_walk(told)
    assert bool(walks) == bool(tile_walk.said(told))
    for walk in walks.values():
        cells = np.array(walk["data"][0]["text"])
        assert (cells != "").any()
        assert cells.shape[1] <= tile_walk.COLUMNS


def test_the_masks_shape_is_that_of_the_walk():
    causal = levels(tile_walk.tile_walk(seen(causal=True))["walk"])
    assert ((causal != "") == np.tril(np.ones((8, 8), bool))).all()
    window = levels(tile_walk.tile_walk(seen(causal=True, window=TILE))["walk"])
    near = np.tril(np.ones((8, 8), bool)) & ~np.tril(np.ones((8, 8), bool), -2)
    assert ((window != "") == near).all()
    pruned = seen("block_sparse", options={"keep_window": TILE, "sinks": 1}, causal=True)
    with_sinks = near.copy()
    with_sinks[:, 0] = True
    assert ((levels(tile_walk.tile_walk(pruned)["walk"]) != "") == with_sinks).all()


def test_misses_and_hits_are_those_of_the_replay():
    one_sm_alone = {"sm": {"count": 1}, "sram": {"capacity": "40 KiB"}}
    told = seen(hardware=one_sm_alone)
    assert told.ctas_per_sm == 1
    walk = levels(tile_walk.tile_walk(told)["walk"])
    assert set(walk[0]) == {"HBM"}  # the first tile of queries brings all keys
    assert set(walk[1:].ravel()) == {"L2"}
    none = levels(tile_walk.tile_walk(seen(hardware={"l2": {"capacity": "0 B"}}))["walk"])
    assert set(none.ravel()) == {"HBM"}
    shared = tile_walk.tile_walk(seen(kv_heads=1, hardware=one_sm_alone))["walk"]["data"][0]
    assert set(np.array(shared["text"])[8:].ravel()) == {"L2"}  # another head, the same keys
    assert tile_walk.said(told).startswith("128 loads of K: 88% from L2, 12% from HBM; 128 loads")


def test_the_order_is_that_of_the_loads():
    told = seen(hardware={"sm": {"count": 1}}, causal=True)
    walk, arrows = tile_walk.tile_walk(told)["walk"]["data"]
    keys = [f for f in told.fetches if f.tensor.name == "K"]
    first = {}  # by head and tile of queries: FlashAttention-2 starts at the diagonal
    for fetch in keys:
        first.setdefault(fetch.item, fetch.issued_s)
    for row in range(8):
        numbers = [cell[1] for cell in walk["customdata"][row][: row + 1]]
        assert numbers == sorted(numbers, reverse=True)
    assert arrows["x"][0] > arrows["x"][1]  # from right to left
    times_s = [cell[2] for row in walk["customdata"] for cell in row if cell[1] == 1]
    assert keys[0].issued_s in times_s


def test_of_a_backward_pass_the_queries_walk():
    told = seen("flash1", phase="training")
    assert [t.role for t in tile_walk.moving(told.kernel)] == ["query"]
    (only,) = tile_walk.tile_walk(told).values()
    assert (levels(only) != "").all()


def test_a_part_is_told_as_such():
    told = seen(events=200)
    assert "for its first" in one_sm.said(told)
    assert " of 128 loads of K" in tile_walk.said(told)
    whole = seen()
    assert "to its end" in one_sm.said(whole)


def test_what_has_no_scores_has_no_walk():
    told = seen("mamba2", causal=True)
    assert tile_walk.tile_walk(told) == {}
    assert tile_walk.said(told) == ""


def test_a_row_says_what_it_waits_for():
    slow = seen(hardware={"hbm": {"bandwidth": "10 GB/s"}})
    chart = one_sm.one_sm(slow)
    waits = next(trace for trace in chart["data"] if trace["name"] == "waits: HBM")
    assert "waits for K (HBM bandwidth in use)" in {
        tip.split(", ", 1)[1].split(": ")[-1] for tip, _ in waits["customdata"]
    }
    shares = one_sm.said(slow)
    assert "waits for K (HBM bandwidth in use)" in shares


def test_a_chart_of_very_much_is_cut(monkeypatch):
    told = seen()
    monkeypatch.setattr(one_sm, "MOST_BARS", 100)
    bars = one_sm.one_sm(told)["data"]
    assert sum(len(trace["y"]) for trace in bars) == 100
    last_s = max(b + x for trace in bars for b, x in zip(trace["base"], trace["x"], strict=True))
    assert last_s < told.until_s


@pytest.mark.parametrize(
    ("name", "workload", "kernel"),
    [("naive", {}, "S = Q K^T"), ("quest", {"phase": "decode", "seq_q": 1}, "attention")],
)
def test_the_kernel_that_is_looked_into_brings_queries_and_keys_together(name, workload, kernel):
    assert seen(name, events=10, **workload).kernel.name == kernel
