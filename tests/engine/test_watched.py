"""What is watched of a kernel is what its replay did."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine import reference
from sim.engine.compiled import replay
from sim.engine.watched import watch
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload
from sim.machine import CAUSES, SM_PIPES
from sim.schedules import SCHEDULES
from sim.tile_program import chunk_tensors
from tests.support.drawn import cases, devices, kernel_sequences, lowered

ALL = 10**7  # events


def assert_watched_as_replayed(kernel, hw, dtype):
    chunkings = chunk_tensors([kernel])
    l2 = replay.new_l2(chunkings, hw)
    run = replay.run_kernel(kernel, chunkings, hw, l2, dtype, lambda _: None)
    seen = watch(kernel, hw, dtype, ALL)
    assert seen.whole
    assert seen.until_s == pytest.approx(run.time_s, rel=1e-9)
    assert seen.ctas.keys() == set(np.flatnonzero(run.cta_sm == seen.sm))
    for cta, (start_s, end_s) in seen.ctas.items():
        assert (start_s, end_s) == pytest.approx((run.cta_start_s[cta], run.cta_end_s[cta]))
    sizes = [
        sum(size for _, size in reference.chunks_of(f.load.stream, chunkings[f.tensor], f.tile))
        for f in seen.fetches
    ]
    assert sum(sizes) == run.l2_read_bytes
    hits = [size for f, size in zip(seen.fetches, sizes, strict=True) if f.served != "HBM"]
    assert sum(hits) <= run.l2_hit_bytes  # a tile of which a chunk is missing is a miss
    if all(
        len(reference.chunks_of(f.load.stream, chunkings[f.tensor], f.tile)) == 1
        for f in seen.fetches
    ):
        assert sum(hits) == run.l2_hit_bytes
    if hw.sm.count == 1:
        for cause in CAUSES[:SM_PIPES]:
            own_s = sum(end_s - start_s for start_s, end_s in seen.own.get(cause, ()))
            assert own_s == pytest.approx(run.busy_s[CAUSES.index(cause)], abs=1e-12)
    return seen


def assert_workers_are_told_without_a_gap(seen):
    for cta, life in seen.ctas.items():
        for worker in range(seen.kernel.footprint.workers):
            own = [s for s in seen.spans if (s.cta, s.worker) == (cta, worker)]
            ends = [life[0], *(span.end_s for span in own)]
            starts = [*(span.start_s for span in own), life[1]]
            assert ends == pytest.approx(starts, rel=1e-9, abs=1e-15)


@given(cases(), devices())
@settings(max_examples=60)
def test_what_is_watched_is_what_the_compiled_engine_replays(case, hw):
    w, schedule = case
    kernel = lowered(schedule, w, hw)[0]
    seen = assert_watched_as_replayed(kernel, hw, w.dtype)
    assert_workers_are_told_without_a_gap(seen)


@given(kernel_sequences(), devices())
@settings(max_examples=60)
def test_kernels_of_any_form_are_told_without_a_gap(kernels, hw):
    seen = assert_watched_as_replayed(kernels[0], hw, "fp16")
    assert_workers_are_told_without_a_gap(seen)


@given(cases("flash2", "naive", "paged"), devices(), st.integers(1, 300))
@settings(max_examples=30)
def test_a_part_is_how_the_whole_begins(case, hw, events):
    w, schedule = case
    kernel = lowered(schedule, w, hw)[0]
    part, whole = watch(kernel, hw, w.dtype, events), watch(kernel, hw, w.dtype, ALL)
    told = [[(f.cta, f.tile, f.issued_s, f.served) for f in seen.fetches] for seen in (part, whole)]
    assert told[0] == told[1][: len(told[0])]
    assert part.until_s <= whole.until_s


@given(cases(), devices())
@settings(max_examples=30)
def test_a_tile_is_in_its_buffer_until_the_next_one_is_asked_for(case, hw):
    w, schedule = case
    seen = watch(lowered(schedule, w, hw)[0], hw, w.dtype, ALL)
    last = {}
    for fetch in seen.fetches:
        buffer = (fetch.sm, fetch.slot, fetch.load, fetch.trip % fetch.load.buffers)
        if fetch.load.stages and buffer in last:
            assert last[buffer].freed_s <= fetch.issued_s
        assert fetch.issued_s <= fetch.arrival_s <= fetch.freed_s
        last[buffer] = fetch


def test_what_is_slow_is_named():
    """Of one SM with little to do latency, of a slow HBM that; without an L2 all is from HBM."""

    def loads_of_k(**changes):
        hw = load_profile("h100-sxm", {"sm": {"count": 1}, **changes}, "a test")
        w = AttentionWorkload(
            batch=1, heads=2, kv_heads=2, head_dim=64, seq_q=256, seq_kv=256, dtype="fp16"
        )
        schedule = SCHEDULES["flash2"].model_validate({"name": "flash2"})
        seen = watch(lowered(schedule, w, hw)[0], hw, w.dtype, ALL)
        return [(f.served, f.slow) for f in seen.fetches if f.tensor.name == "K"]

    first, *_, last = loads_of_k()
    assert first == ("HBM", "hbm_latency")
    assert last == ("L2", "l2_latency")
    assert loads_of_k(hbm={"bandwidth": "1 GB/s"})[0] == ("HBM", "hbm in use")  # by Q's tile
    assert {served for served, _ in loads_of_k(l2={"capacity": "0 B"})} == {"HBM"}
