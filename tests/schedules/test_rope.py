"""Rotary position embedding: the passes' bytes, and what rotating in the loop adds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim.api import simulate
from sim.device.program import kernels_of
from sim.device.run import run_on_device
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules import SCHEDULES
from sim.schedules.parts.flash_schedule import FlashSchedule
from tests.support.drawn import cases, devices
from tests.support.formulas import run, visited
from tests.support.same_runs import assert_same

FLASH = tuple(name for name, cls in SCHEDULES.items() if issubclass(cls, FlashSchedule))


def on_device(commands, hw, w, engine="replay"):
    return run_on_device(commands, hw, w.dtype, engine, lambda _: None).kernels


def with_rope(schedule, w, hw, rope):
    """The schedule's steps with rope, None where it says that it has none."""
    schedule = schedule.model_copy(update={"rope": rope})
    try:
        return schedule.program(w, hw)
    except InputError as error:
        if "rope" in str(error):
            return None
        if schedule.tile is None:
            raise
    return with_rope(schedule.model_copy(update={"tile": None}), w, hw, rope)


@given(cases("flash2", "block_sparse", "flash_decoding", "naive"), devices(l2="0 B"))
@settings(max_examples=60)
def test_the_passes_read_and_write_q_and_the_new_k_and_read_the_table(case, hw):
    w, schedule = case
    w = replace(w, seq_q=min(w.seq_q, w.seq_kv), kv_dtype=None)
    commands = with_rope(schedule, w, hw, "pass")
    assume(commands is not None)
    names = [command.work.name for command in commands]
    new = w.seq_kv if w.phase == "training" else w.seq_q
    key_name = "rope K" if new == w.seq_kv else "rope new K"
    ran = {name: r.run for name, r in zip(names, on_device(commands, hw, w), strict=True)}
    row_bytes = w.head_dim * w.dtype_bytes
    of_q, of_k = w.batch * w.heads * w.seq_q, w.batch * w.kv_heads * new
    for name, rows in (("rope Q", of_q), (key_name, of_k), ("rope dQ", of_q), ("rope dK", of_k)):
        if name in ("rope dQ", "rope dK") and w.phase != "training":
            assert name not in ran
            continue
        assert ran[name].hbm_write_bytes == rows * row_bytes
        if name != "rope Q" or schedule.name != "flash_decoding":  # its rows share a position
            assert ran[name].hbm_read_bytes == 2 * rows * row_bytes
    assert names[:2] == ["rope Q", key_name]


@given(cases("flash2"), devices(l2="0 B"))
@settings(max_examples=60)
def test_fused_reads_table_rows_once_with_each_tile_and_rotates_them(case, hw):
    w, schedule = case
    w = replace(w, seq_q=min(w.seq_q, w.seq_kv), phase="prefill")
    commands = with_rope(schedule, w, hw, "fused")
    assume(commands is not None)
    kernels = [command.work for command in commands]
    streams = {stream.tensor.name: stream for stream in kernels[0].streams}
    tile = schedule.tile.model_copy(
        update={"q": streams["Q"].tile_rows, "kv": streams["K"].tile_rows}
    )
    plain = kernels_of(schedule.model_copy(update={"tile": tile}).program(w, hw))
    (fused,), (bare,) = run(kernels, hw, w), run(plain, hw, w)
    seen = visited(w, tile)
    keys = np.minimum(tile.kv, w.seq_kv - tile.kv * np.arange(seen.shape[1]))
    rows = w.batch * w.heads * (w.seq_q + int((seen * keys).sum()))
    assert fused.hbm_read_bytes - bare.hbm_read_bytes == rows * w.head_dim * w.dtype_bytes
    assert fused.hbm_write_bytes == bare.hbm_write_bytes
    turned = w.batch * w.heads * (seen.shape[0] * tile.q + int(seen.sum()) * tile.kv)
    more = fused.executed("vector_ops") - bare.executed("vector_ops")
    assert more == 3 * w.head_dim * turned


@given(cases("block_sparse", "flash_decoding"), devices())
@settings(max_examples=60)
def test_the_table_s_tiles_are_those_of_the_keys_positions(case, hw):
    w, schedule = case
    w = replace(w, seq_q=min(w.seq_q, w.seq_kv))
    commands = with_rope(schedule, w, hw, "fused")
    assume(commands is not None)
    kernel = commands[0].work
    load_k, load_turn = (
        [load for loop in kernel.loops for load in loop.loads if load.stream.tensor.name == name]
        for name in ("K", "cos, sin")
    )
    k, turn = load_k[0].stream, load_turn[-1].stream
    items = np.repeat(kernel.items, kernel.trips[1])
    trips = np.concatenate([np.arange(n) for n in kernel.trips[1]])

    def tiles(stream):
        if stream.table is None:
            return stream.base(items) + stream.stride * trips
        return stream.base(items) + stream.table[stream.start(items) + trips]

    np.testing.assert_array_equal(tiles(turn), tiles(k) % k.tiles_down)


@given(cases(*FLASH, "naive"), devices(), st.sampled_from(("pass", "fused")))
@settings(max_examples=100)
def test_every_flash_schedule_rotates_or_says_that_it_does_not(case, hw, rope):
    w, schedule = case
    assume(schedule.name != "naive" or rope == "pass")
    w = replace(w, seq_q=min(w.seq_q, w.seq_kv))
    commands = with_rope(schedule, w, hw, rope)
    if commands is None:
        return
    tables = [
        s for command in commands for s in command.work.streams if s.tensor.name == "cos, sin"
    ]
    assert tables
    ours, theirs = on_device(commands, hw, w), on_device(commands, hw, w, "reference")
    for replayed, reference in zip(ours, theirs, strict=True):
        assert_same(replayed.run, reference.run)


@pytest.mark.parametrize(
    ("schedule", "workload", "complaint"),
    [
        ({"name": "flash2", "rope": "pass"}, {"seq_q": 128, "seq_kv": 64}, "seq_q = 128"),
        ({"name": "flash2", "rope": "fused"}, {"seq_q": 128, "seq_kv": 64}, "seq_q = 128"),
        ({"name": "hip", "rope": "fused"}, {"seq_len": 64, "causal": True}, "Q and K rotated"),
        ({"name": "flash1", "rope": "pass"}, {"seq_len": 64}, "rope"),
        ({"name": "naive", "rope": "fused"}, {"seq_len": 64}, "rope"),
    ],
)
def test_where_nothing_can_rotate_that_is_said(schedule, workload, complaint):
    with pytest.raises(InputError, match=complaint):
        simulate(
            workload={"heads": 2, "head_dim": 64} | workload,
            hardware="h100-sxm",
            schedule=[schedule],
        )


def test_fused_saves_the_passes_and_pays_in_lane_operations():
    hw = load_profile("h100-sxm", {"l2": {"capacity": "0 B"}}, "a test")
    w = WorkloadTable(heads=8, head_dim=128, seq_len=512).workload()
    passes, fused = (
        SCHEDULES["flash2"].model_validate({"rope": rope}).program(w, hw)
        for rope in ("pass", "fused")
    )
    assert [command.work.name for command in passes] == ["rope Q", "rope K", "flash2"]
    assert [command.work.name for command in fused] == ["flash2"]
    in_passes, in_loop = (
        sum(ran.run.executed("vector_ops") for ran in on_device(commands, hw, w))
        for commands in (passes, fused)
    )
    assert in_loop > in_passes
