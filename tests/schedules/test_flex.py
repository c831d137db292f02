"""FlexAttention: its block mask against the whole mask, bytes by hand, and measured times."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import simulate
from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.schedules import make_schedule
from sim.schedules.base import Tile
from sim.schedules.flex import block_mask
from tests.support.drawn import devices, lowered, schedules, workloads
from tests.support.formulas import blocks_with_any, ceil, run, tile_of, visible, workload


def shown(w, documents: int) -> np.ndarray:
    """The whole mask, of sequences of so many documents of equal length."""
    row, key = (np.arange(n) // ceil(w.seq_kv, documents) for n in (w.seq_q, w.seq_kv))
    together = row[:, None] == key[None, :] if documents > 1 else True
    return visible(w) & together


@given(workloads(), st.integers(1, 4))
@settings(max_examples=150)
def test_a_block_of_the_mask_is_full_where_it_shows_all_and_partial_where_some(w, documents):
    if documents > 1:
        w = replace(w, seq_q=w.seq_kv)
    mask = shown(w, documents)
    filled = np.zeros([ceil(side, 128) * 128 for side in mask.shape], bool)
    filled[: w.seq_q, : w.seq_kv] = mask
    some, hidden = (blocks_with_any(each, Tile(q=128, kv=128)) for each in (filled, ~filled))
    partial, full = block_mask(w, documents)
    for row, (of_some, of_hidden) in enumerate(zip(some, hidden, strict=True)):
        assert partial[row].tolist() == np.flatnonzero(of_some & of_hidden).tolist()
        assert full[row].tolist() == np.flatnonzero(of_some & ~of_hidden).tolist()


@given(workloads(), devices(l2="0 B"), schedules("flex"))
@settings(max_examples=60)
def test_without_l2_it_reads_the_tiles_of_whole_blocks_of_the_mask(w, hw, schedule):
    if schedule.documents > 1:
        w = replace(w, seq_q=w.seq_kv)
    kernels = lowered(schedule, w, hw)
    tile = tile_of(kernels)
    visited = blocks_with_any(shown(w, schedule.documents), Tile(q=128, kv=128))
    down, across = ceil(w.seq_q, tile.q), ceil(w.seq_kv, tile.kv)
    visited = np.repeat(np.repeat(visited, 128 // tile.q, 0), 128 // tile.kv, 1)[:down, :across]
    keys = np.minimum(tile.kv, w.seq_kv - tile.kv * np.arange(across))
    rows = w.seq_q + 2 * int((visited * keys).sum())
    (ran,) = run(kernels, hw, w)
    matrices = w.batch * w.heads
    numbers = ran.hbm_read_bytes - matrices * rows * w.head_dim * w.dtype_bytes
    if w.mask == "full" and schedule.documents == 1:
        assert numbers == 0
    else:  # a sector at a time, with each tile
        assert 0 < numbers <= matrices * 32 * int(visited.sum())
        assert numbers % 32 == 0
    assert ran.hbm_write_bytes == matrices * w.seq_q * (w.head_dim * w.dtype_bytes + 4)
    taken = ran.executed("mma_flops")
    assert taken >= 4 * w.head_dim * matrices * tile.q * tile.kv * int(visited.sum())


def test_only_partial_blocks_compare_their_scores():
    """Causal, 1,024 tokens: each 128 rows have one partial block, two tiles of 64 keys."""
    w = workload(heads=1, head_dim=128, seq_len=1024, causal=True)
    hw = load_profile("h100-sxm")
    (kernel,) = kernels_of(make_schedule({"name": "flex"}, "a test").program(w, hw))
    _, partial, full, _ = kernel.loops
    assert kernel.trips[1].tolist() == [2] * 8
    assert kernel.trips[2].tolist() == [2 * row for row in range(8)]
    compared, free = (
        next(op for op in loop.actions if getattr(op, "name", "") == "softmax").other_ops
        for loop in (partial, full)
    )
    assert compared - free == 2 * 128 * 64


@pytest.mark.parametrize(
    ("workload", "measured_us"),
    [
        # pytorch/benchmark, pull request 2443, whose FlashAttention-2 is as fast as on an H100
        ({"batch": 32, "seq_len": 512}, 258),
        ({"batch": 16, "seq_len": 1024}, 419),
        ({"batch": 8, "seq_len": 2048}, 743.7),
        ({"batch": 4, "seq_len": 4096}, 1404),
        ({"batch": 32, "seq_len": 512, "causal": True}, 201.6),
        ({"batch": 16, "seq_len": 1024, "causal": True}, 289.1),
        # meta-pytorch/tritonbench, pull request 292
        ({"batch": 8, "seq_len": 1024, "causal": True}, 156.8),
        ({"batch": 8, "seq_len": 1024, "causal": True, "alibi": True}, 163.9),
    ],
)
def test_it_takes_what_was_measured(workload, measured_us):
    (record,) = simulate(
        workload={"heads": 16, "head_dim": 128, "dtype": "bf16"} | workload,
        hardware="h100-sxm",
        schedule="flex",
    )
    assert record.time_s == pytest.approx(measured_us * 1e-6, rel=0.12)


def test_documents_cost_what_they_hold():
    """Of 16 documents a sequence's pairs are a sixteenth; the blocks at their edges come whole."""
    one, sixteen = simulate(
        workload={"heads": 16, "head_dim": 128, "seq_len": 16384, "causal": True},
        hardware="h100-sxm",
        schedule=[{"name": "flex"}, {"name": "flex", "documents": 16, "label": "documents"}],
    )
    flops = [record.kernels[0].flops for record in (one, sixteen)]
    # 128 rows of blocks: 1 to 128 of them visited; in documents of 8 rows, 1 to 8.
    assert flops[0] / flops[1] == 128 * 129 / (16 * 8 * 9)
    assert 9 < one.time_s / sixteen.time_s < flops[0] / flops[1]


@pytest.mark.parametrize(
    ("options", "table", "complaint"),
    [
        ({"documents": 2}, {"seq_q": 128, "seq_kv": 256}, "as many queries as keys"),
        ({"tile": {"q": 128, "kv": 48}}, {"seq_len": 256}, "parts of the block mask's blocks"),
        ({}, {"seq_len": 256, "dropout": True}, "dropout = true"),
    ],
)
def test_what_it_has_no_kernel_for_is_one_line(options, table, complaint):
    w = workload(heads=2, head_dim=64, **table)
    with pytest.raises(InputError, match=complaint):
        make_schedule({"name": "flex"} | options, "a test").program(w, load_profile("h100-sxm"))
