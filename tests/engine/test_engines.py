"""The compiled engine against the SimPy reference."""

import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.device.program import kernels_of
from sim.engine.compiled.l2 import new_l2
from sim.engine.compiled.records import gone_through, new_replay
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.machine import machine_of
from sim.schedules import make_schedule
from sim.tile_program import chunk_tensors
from tests.support.drawn import cases, devices, kernel_sequences, lowered
from tests.support.same_runs import assert_engines_agree


@given(cases(), devices())
@settings(max_examples=300)
def test_both_engines_agree_on_every_counter_and_time(case, hw):
    w, schedule = case
    assert_engines_agree(lowered(schedule, w, hw), hw, w.dtype)


@given(kernel_sequences(), devices())
@settings(max_examples=150)
def test_both_engines_agree_on_kernels_of_any_form(kernels, hw):
    assert_engines_agree(kernels, hw, "fp16")


def test_a_13th_cause_cannot_be_lost():
    a_13th = "import sim.machine as m; m.CAUSES += ('new',); m.N_CAUSES = len(m.CAUSES)"
    code = f"{a_13th}; import sim.engine.compiled.replay"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "AssertionError: set_path copies the causes one by one" in done.stderr


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(0, 59), st.integers(0, 20)), min_size=1, max_size=8),
)
def test_what_items_touch_of_a_table_is_theirs_wherever_it_begins(table, items):
    table = np.array(table)
    starts, trips = np.array(items).T
    trips = np.clip(trips, 0, np.maximum(len(table) - starts, 0))
    touched, begins = gone_through(table, starts, trips)
    assert len(touched) <= max(len(table), 1)
    for start, begin, count in zip(starts, begins, trips, strict=True):
        assert touched[begin : begin + count].tolist() == table[start : start + count].tolist()


def test_streams_that_go_through_a_table_alike_have_it_once():
    hw = load_profile("h100-sxm")
    w = WorkloadTable(heads=2, kv_heads=1, head_dim=64, causal=True, seq_len=2048).workload()
    (kernel,) = kernels_of(make_schedule({"name": "block_sparse"}, "a test").program(w, hw))
    chunkings = chunk_tensors([kernel])
    l2 = new_l2(chunkings, hw)
    replay = new_replay(kernel, chunkings, hw, machine_of(hw), l2, w.dtype)
    of_k_and_v = [stream["table_at"] for stream in replay.streams if stream["table_at"] >= 0]
    assert of_k_and_v == [0, 0]
    (table,) = {id(s.table): s.table for s in kernel.streams if s.table is not None}.values()
    assert replay.table.tolist() == table.tolist()
