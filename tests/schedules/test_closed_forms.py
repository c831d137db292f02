"""Bytes and FLOPs against formulas written independently of the schedules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.device.program import kernels_of
from sim.device.run import run_on_device
from sim.engine.compiled.timeline import HBM_BYTES, L2_BYTES, L2_HIT_BYTES, TENSOR_BUSY
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.inputs.workload import WorkloadTable
from sim.machine import ISSUE, TENSOR, cta_start_s, machine_of, service_times_s
from sim.schedules import SCHEDULES
from sim.schedules.base import Tile
from sim.schedules.naive import Naive
from sim.schedules.parts.hip_search import search, search_rounds
from sim.tile_program import Compute, Kernel, Store
from tests.support.drawn import cases, devices, lowered, of_any_mask, schedules, workloads
from tests.support.formulas import (
    blocks_with_any,
    compulsory_bytes,
    kept_bytes,
    run,
    run_head_dim,
    tile_of,
    visible,
    visited,
)


@given(of_any_mask())
def test_visible_pairs_are_those_of_the_mask(w):
    assert w.visible_pairs == w.batch * visible(w).sum()


@given(of_any_mask(), devices(l2="0 B"), schedules("flash2"))
@settings(max_examples=60)
def test_flash2_without_l2_reads_k_and_v_once_a_visited_block(w, hw, schedule):
    kernels = lowered(schedule, w, hw)
    tile = tile_of(kernels)
    (ran,) = run(kernels, hw, w)
    keys = np.minimum(tile.kv, w.seq_kv - tile.kv * np.arange(-(-w.seq_kv // tile.kv)))
    kv_rows = int((visited(w, tile) * keys).sum())
    rows = w.seq_q + 2 * kv_rows
    assert ran.hbm_read_bytes == w.batch * w.heads * rows * w.head_dim * w.dtype_bytes
    lse_bytes = 4 * w.batch * w.heads * w.seq_q
    assert ran.hbm_write_bytes == compulsory_bytes(w)[1] + lse_bytes


@given(workloads(), devices(l2="0 B"), schedules("flash1"))
@settings(max_examples=60)
def test_flash1_without_l2_moves_what_algorithm_1_says(w, hw, schedule):
    kernels = lowered(schedule, w, hw)
    tile = tile_of(kernels)
    (ran,) = run(kernels, hw, w)
    pairs = visited(w, tile)
    rows = np.minimum(tile.q, w.seq_q - tile.q * np.arange(-(-w.seq_q // tile.q)))
    visits = int((pairs * rows[:, None]).sum())  # query rows, once for each key block
    again = visits - int((pairs.any(axis=1) * rows).sum())
    row_bytes, statistics = w.head_dim * w.dtype_bytes, 8
    matrices = w.batch * w.heads
    kv_bytes = matrices * 2 * w.seq_kv * row_bytes
    assert ran.hbm_read_bytes == kv_bytes + matrices * (
        visits * row_bytes + again * (row_bytes + statistics)
    )
    assert ran.hbm_write_bytes == matrices * visits * (row_bytes + statistics)


@given(of_any_mask(), devices(l2="0 B"), schedules("naive"))
@settings(max_examples=60)
def test_naive_without_l2_moves_what_algorithm_0_says(w, hw, schedule):
    kernels = lowered(schedule, w, hw)
    runs = dict(zip([k.name for k in kernels], run(kernels, hw, w), strict=True))
    matrices, row_bytes = w.batch * w.heads, w.head_dim * w.dtype_bytes
    scores = matrices * w.seq_q * w.seq_kv * w.dtype_bytes
    tile = kernels[0].loops[1].ops[0].stream
    down, across = -(-w.seq_q // tile.tile_rows), -(-w.seq_kv // tile.tile_cols)
    operands = matrices * row_bytes * (across * w.seq_q + down * w.seq_kv)
    assert runs["S = Q K^T"].hbm_read_bytes == operands
    assert runs["S = Q K^T"].hbm_write_bytes == scores
    for name in ("scale", "mask", "P = softmax(S)"):
        if name in runs:
            read = 2 * scores if name == "mask" else scores  # the mask, for each matrix anew
            read *= schedule.sweeps if "softmax" in name else 1
            assert (runs[name].hbm_read_bytes, runs[name].hbm_write_bytes) == (read, scores)
    if "dropout" in runs:
        assert runs["dropout"].hbm_write_bytes == scores + scores // w.dtype_bytes
    widths = -(-w.head_dim // tile.tile_cols)
    reads = scores * widths + matrices * down * w.seq_kv * row_bytes
    assert runs["O = P V"].hbm_read_bytes == reads
    assert runs["O = P V"].hbm_write_bytes == compulsory_bytes(w)[1]


@given(workloads(), devices(), schedules("flash1", "flash2"))
@settings(max_examples=60)
def test_flops_are_four_d_a_pair_of_the_visited_blocks(w, hw, schedule):
    kernels = lowered(schedule, w, hw)
    tile = tile_of(kernels)
    (ran,) = run(kernels, hw, w)
    pairs = int(visited(w, tile).sum()) * tile.q * tile.kv
    d = run_head_dim(w, schedule) if schedule.name == "flash2" else w.head_dim
    assert ran.executed("mma_flops") == 4 * d * pairs * w.batch * w.heads
    assert ran.executed("mma_flops") >= w.useful_flops


@given(workloads(), devices())
@settings(max_examples=40)
def test_block_sparse_that_keeps_everything_is_flash2(w, hw):
    tile = {"q": 32, "kv": 16}
    dense = SCHEDULES["flash2"].model_validate({"tile": tile})
    sparse = SCHEDULES["block_sparse"].model_validate({"tile": tile})
    (ours,), (theirs,) = (run(lowered(s, w, hw), hw, w) for s in (sparse, dense))
    assert ours.executed("mma_flops") == theirs.executed("mma_flops")
    assert ours.l2_read_bytes == theirs.l2_read_bytes


@given(workloads(), devices(l2="0 B"), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40)
def test_a_mask_file_is_read_block_by_block(tmp_path_factory, w, hw, seed, each_head):
    tile, rng = Tile(q=32, kv=16), np.random.default_rng(seed)
    seen = visited(w, tile)
    matrices = w.batch * w.heads
    masks = rng.random((matrices if each_head else 1, *seen.shape)) < 0.4
    path = tmp_path_factory.mktemp("mask") / "mask.npz"
    rows = masks.reshape(-1, seen.shape[1])
    np.savez(
        path,
        indptr=np.concatenate([[0], rows.sum(axis=1).cumsum()]),
        indices=np.nonzero(rows)[1],
        tile=[tile.q, tile.kv],
    )
    schedule = SCHEDULES["block_sparse"].model_validate({"mask_file": path})
    (ran,) = run(kernels_of(schedule.program(w, hw)), hw, w)
    expected = sum(kept_bytes(w, mask & seen, tile) for mask in masks)
    assert ran.hbm_read_bytes == expected * (1 if each_head else matrices)


@given(workloads(), devices(l2="0 B"), schedules("block_sparse"))
@settings(max_examples=60)
def test_block_sparse_keeps_window_sinks_and_so_many_random_blocks(w, hw, schedule):
    kernels = lowered(schedule, w, hw)
    tile = tile_of(kernels)
    seen = visited(w, tile)
    i = np.arange(w.seq_q)[:, None] + w.seq_kv - w.seq_q
    j = np.arange(w.seq_kv)[None, :]
    kept = np.broadcast_to(j < schedule.sinks, (w.seq_q, w.seq_kv)).copy()
    if schedule.keep_window is not None:
        kept |= (j > i - schedule.keep_window) & (j < i + (1 if w.causal else schedule.keep_window))
    elif not schedule.sinks and not schedule.random_blocks:
        kept[:] = True
    patterned = blocks_with_any(kept, tile) & seen
    rest = (seen & ~patterned).sum(axis=1)
    drawn = np.minimum(rest, schedule.random_blocks)
    expected = np.tile(patterned.sum(axis=1) + drawn, w.batch * w.heads)
    _, over_key_blocks, _ = kernels[0].trips
    np.testing.assert_array_equal(over_key_blocks, expected)


@given(of_any_mask(), devices(l2="64 MiB"), schedules("flash2", "naive"))
@settings(max_examples=60)
def test_infinite_l2_moves_each_input_once_and_writes_each_tensor_once(w, hw, schedule):
    kernels = lowered(schedule, w, hw)
    runs = run(kernels, hw, w)
    touched = sum(t.bytes for t in dict.fromkeys(t for k in kernels for t in k.tensors))
    if touched > machine_of(hw).l2_capacity_bytes:
        return
    reads = sum(r.hbm_read_bytes for r in runs)
    if w.mask == "full" or schedule.name == "naive":
        masked = any(kernel.name == "mask" for kernel in kernels)
        mask_bytes = w.seq_q * w.seq_kv * w.dtype_bytes if masked else 0
        assert reads == compulsory_bytes(w)[0] + mask_bytes
    else:
        assert reads <= compulsory_bytes(w)[0]
    written = sum(r.hbm_write_bytes for r in runs) + runs[-1].l2_dirty_bytes
    stored = {s.tensor for k in kernels for s in k.streams if s.tensor.lifetime != "input"}
    assert written == sum(t.bytes for t in stored)


@given(cases(), devices())
@settings(max_examples=100)
def test_l2_bytes_do_not_depend_on_the_l2_and_reads_cover_the_inputs(case, hw):
    w, schedule = case
    kernels = lowered(schedule, w, hw)
    runs = run(kernels, hw, w)
    none = hw.with_figures({"l2.capacity": 0.0, "l2.die_capacity": 0.0})
    without = run(kernels, none, w)
    for kernel, ran, bare in zip(kernels, runs, without, strict=True):
        adds = any(isinstance(step, Store) and step.atomic for step in kernel.actions)
        fetched_to_add = bare.hbm_read_bytes - bare.l2_read_bytes
        assert 0 < fetched_to_add < bare.l2_write_bytes if adds else fetched_to_add == 0
        assert ran.l2_read_bytes == bare.l2_read_bytes
        assert ran.l2_write_bytes == bare.l2_write_bytes == bare.hbm_write_bytes
        assert ran.hbm_read_bytes <= bare.hbm_read_bytes


@given(cases(), devices())
@settings(max_examples=40)
def test_what_is_not_read_again_is_what_an_infinite_l2_reads(case, hw):
    w, schedule = case
    kernels = lowered(schedule, w, hw)
    vast = hw.with_figures({"l2.capacity": 2.0**40})
    compulsory = sum(ran.hbm_read_bytes for ran in run(kernels, vast, w))
    for device in (vast, hw, hw.with_figures({"l2.capacity": 0.0, "l2.die_capacity": 0.0})):
        runs = run(kernels, device, w)
        assert sum(ran.hbm_read_bytes - ran.hbm_reread_bytes for ran in runs) == compulsory
        assert device is not vast or not any(ran.hbm_reread_bytes for ran in runs)


def longest_chain_s(kernel: Kernel, hw: HardwareProfile, dtype: str) -> float:
    """A CTA's computes one after the other, each taking as long as its slowest pipe."""
    machine = machine_of(hw)
    item_s = np.zeros(kernel.ctas * kernel.items_per_cta)
    for trips, loop in zip(kernel.trips, kernel.loops, strict=True):
        for step in loop.actions:
            if isinstance(step, Compute):
                service_s = service_times_s(step, kernel, hw, dtype).max()
                item_s += trips * (service_s + (machine.op_latency_s if service_s else 0.0))
    cta_s = item_s.reshape(kernel.ctas, kernel.items_per_cta).sum(axis=1)
    return cta_start_s(kernel, hw) + float(cta_s.max())


@given(cases(), devices())
@settings(max_examples=100)
def test_time_is_at_least_every_roof_and_its_critical_path_adds_up(case, hw):
    w, schedule = case
    machine = machine_of(hw)
    for kernel, ran in zip(kernels := lowered(schedule, w, hw), run(kernels, hw, w), strict=True):
        roof_s = [
            machine.hbm_s(ran.hbm_read_bytes, ran.hbm_write_bytes),
            (ran.l2_read_bytes + ran.l2_write_bytes) / machine.l2_bytes_per_s,
            *(ran.busy_s[:6] / machine.sms),
        ]
        assert ran.time_s >= max(roof_s) * (1 - 1e-12)
        chain_s = longest_chain_s(kernel, hw, w.dtype)
        assert ran.time_s >= chain_s * (1 - 1e-12)
        assert np.isfinite(ran.time_s)
        assert ran.path_s.min() >= 0
        np.testing.assert_allclose(ran.path_s.sum(), ran.time_s, rtol=1e-9)
        totals = {
            HBM_BYTES: ran.hbm_read_bytes + ran.hbm_write_bytes,
            L2_BYTES: ran.l2_read_bytes + ran.l2_write_bytes,
            L2_HIT_BYTES: ran.l2_hit_bytes,
            TENSOR_BUSY: ran.busy_s[TENSOR],
        }
        for track, total in totals.items():
            np.testing.assert_allclose(ran.bins[track].sum(), total, rtol=1e-9)
        resident = ran.ctas_per_sm * (kernel.footprint.sram_bytes + hw.sram.reserved_per_cta)
        assert resident <= hw.sram.capacity


def test_gpt2_medium_forward_bytes_without_l2_are_the_closed_form():
    """The paper's case (arXiv 2205.14135, Figure 2): S and P cross HBM four times, 2.1 GB each."""
    hw = load_profile("a100-sxm-40gb", {"l2": {"capacity": "0 B"}}, "a test")
    w = WorkloadTable(batch=64, heads=16, head_dim=64, seq_len=1024).workload()
    runs = run(kernels_of(SCHEDULES["naive"]().program(w, hw)), hw, w)
    scores = 64 * 16 * 1024 * 1024 * 2
    row_block = 64 * 16 * 1024 * 64 * 2  # Q, K, V or O once
    blocks = 1024 // 128
    moved = sum(r.hbm_read_bytes + r.hbm_write_bytes for r in runs)
    assert moved == 4 * scores + (2 * blocks + blocks + 1) * row_block


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_flash1_traffic_falls_as_sram_grows(share):
    """Theorem 2 of arXiv 2205.14135: HBM accesses go as N^2 d^2 / M."""
    w = WorkloadTable(heads=1, head_dim=64, seq_len=8192).workload()
    sizes = {}
    for part in (1.0, share):
        hw = load_profile(
            "h100-sxm",
            {"l2": {"capacity": "0 B"}, "sram": {"capacity": f"{int(256 * part)} KiB"}},
            "a test",
        )
        (ran,) = run(kernels_of(SCHEDULES["flash1"]().program(w, hw)), hw, w)
        sizes[part] = ran.hbm_read_bytes
    assert sizes[share] / sizes[1.0] == pytest.approx(1 / share, rel=0.1)


@given(workloads(), devices(), schedules("flash2"))
@settings(max_examples=30)
def test_flash2_takes_one_exp_a_score_and_one_a_row_of_each_visited_block(w, hw, schedule):
    kernels = lowered(schedule, w, hw)
    tile = tile_of(kernels)
    (ran,) = run(kernels, hw, w)
    blocks = int(visited(w, tile).sum()) * w.batch * w.heads
    assert ran.executed("exp_count") == blocks * (tile.q * tile.kv + tile.q)
    assert ran.executed("vector_ops") >= blocks * tile.q * tile.kv


def test_softmax_of_rows_beyond_sram_takes_every_exp_twice():
    hw = load_profile("h100-sxm", {"sram": {"capacity": "64 KiB"}}, "a test")
    w = WorkloadTable(heads=1, head_dim=16, seq_q=2, seq_kv=40_000).workload()
    softmax = run(kernels_of(SCHEDULES["naive"]().program(w, hw)), hw, w)[1]
    assert softmax.executed("exp_count") >= 2 * 2 * 40_000
    assert softmax.l2_read_bytes == 3 * 2 * 40_000 * 2


def test_a_kernel_starts_when_it_is_launched_and_the_one_before_is_over():
    hw = load_profile("h100-sxm")
    w = WorkloadTable(heads=2, head_dim=64, seq_len=512).workload()
    ran = run_on_device(SCHEDULES["naive"]().program(w, hw), hw, w.dtype, "replay", lambda _: None)
    launch, over_s = hw.calibration.launch, 0.0
    for number, kernel in enumerate(ran.kernels):
        gap_s = launch.gap if number else 0.0
        start_s = max(over_s, (number + 1) * launch.latency) + gap_s
        assert kernel.start_s == pytest.approx(start_s, rel=1e-12)
        over_s = start_s + kernel.run.time_s
    assert ran.time_s == pytest.approx(over_s, rel=1e-12)


@pytest.mark.parametrize("rate", ["248 TFLOP/s", "989.4 TFLOP/s", "4000 TFLOP/s"])
def test_a_matmul_holds_issue_slots_whatever_the_tensor_rate(rate):
    hw = load_profile("h100-sxm", {"tensor": {"fp16": rate}}, "a test")
    w = WorkloadTable(heads=1, head_dim=64, seq_len=512).workload()
    (kernel,) = kernels_of(SCHEDULES["flash2"]().program(w, hw))
    (matmul,) = [s for s in kernel.actions if isinstance(s, Compute) and s.name == "O += P V"]
    service_s = service_times_s(matmul, kernel, hw, "fp16")
    instructions = matmul.mma_flops / 4096
    held = instructions * hw.calibration.sm.mma_issue_cycles
    loads = matmul.sram_bytes / 512
    assert service_s[ISSUE] == pytest.approx((held + loads) / 4 / hw.sm.clock)
    tensor_s = matmul.mma_flops / (hw.tensor.fp16 * hw.sm.clock)
    assert service_s[TENSOR] == pytest.approx(tensor_s / hw.calibration.tensor.mma_sync)


@given(cases("hip"), devices(l2="0 B"))
@settings(max_examples=60)
def test_hip_reads_sixteen_keys_a_chunk_then_sinks_found_blocks_and_window(case, hw):
    w, schedule = case
    schedule = schedule.model_copy(update={"implementation": "triton"})
    kernels = lowered(schedule, w, hw)
    tile = Tile(q=kernels[0].streams[0].tile_rows, kv=kernels[1].streams[1].tile_rows)
    estimation, _ = run(kernels, hw, w)
    matrices, row_bytes = w.batch * w.heads, w.head_dim * w.dtype_bytes
    seen = visited(w, tile)
    chunks = visits = 0
    for number, row in enumerate(seen):
        shown = np.flatnonzero(row)
        position = w.seq_kv - w.seq_q + number * tile.q  # of the row's first query
        in_window = shown * tile.kv + tile.kv > max(0, position + 1 - schedule.keep_window)
        is_sink = shown * tile.kv < schedule.sinks
        middle = len(shown[~in_window & ~is_sink])
        found = schedule.keep // tile.kv
        size, rounds = -(-middle // (2 * found)), 1
        while size > 1:
            size, rounds = -(-size // 2), rounds + 1
        chunks += 2 * found * rounds if middle > found else 0
        visits += len(shown) - middle + min(middle, found)
    assert estimation.hbm_read_bytes == matrices * row_bytes * (w.seq_q + 16 * chunks)
    assert int(kernels[1].trips[1].sum()) == matrices * visits


@given(st.integers(0, 300), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_search_descends_into_the_best_halves(count, keep, seed):
    score = np.random.default_rng(seed).random(max(count, 1))
    centres, found = search(count, keep, lambda blocks: score[blocks])
    assert len(centres) == 2 * keep * search_rounds(count, keep)
    assert len(set(found)) == len(found) == min(count, keep)
    if count <= 2 * keep:
        np.testing.assert_array_equal(found, np.sort(np.argsort(-score[:count])[:keep]))
        return
    chunks = [(count * c // (2 * keep), count * (c + 1) // (2 * keep)) for c in range(2 * keep)]
    while True:
        chunks.sort(key=lambda c: -score[(c[0] + c[1]) // 2] if c[1] > c[0] else 1)
        chunks = chunks[:keep]
        if len(centres) == 2 * keep:
            break
        centres = centres[2 * keep :]
        cut = [(a, (a + b + 1) // 2, b) for a, b in chunks]
        chunks = [half for a, m, b in cut for half in ((a, m), (m, b))]
    np.testing.assert_array_equal(found, sorted(a for a, b in chunks))


def test_three_sweeps_of_softmax_find_two_thirds_of_their_rows_in_l2():
    """yashpatil582/fused-attention-cuda, src/stage2_tiled.cu on a T4: 67.6% of them hit."""
    t4 = load_profile("t4")
    w = WorkloadTable(batch=2, heads=8, head_dim=64, seq_len=2048, dtype="fp32").workload()
    softmax = run(kernels_of(Naive(mask=False, sweeps=3).program(w, t4)), t4, w)[1]
    assert softmax.l2_hit_bytes / softmax.l2_read_bytes == pytest.approx(0.676, abs=0.02)


@pytest.mark.parametrize(("head_dim", "hits"), [(64, 0.479), (128, 0.683)])
def test_a_tiled_p_v_finds_v_in_l2_and_p_for_its_second_columns(head_dim, hits):
    """The same file: CTAs of 64 x 64 outputs, 16 keys at a time, without a second buffer."""
    t4 = load_profile("t4")
    table = {"batch": 2, "heads": 8, "head_dim": head_dim, "seq_len": 2048, "dtype": "fp32"}
    w = WorkloadTable(**table).workload()
    naive = Naive(mask=False, tile={"q": 64, "kv": 64}, depth=16, stages=1)
    *_, output = run(kernels_of(naive.program(w, t4)), t4, w)
    assert output.l2_hit_bytes / output.l2_read_bytes == pytest.approx(hits, abs=0.06)
