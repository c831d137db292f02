"""FlashAttention-3 against formulas written independently of it, and what it promises."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.machine import EXP, ISSUE, TENSOR, ctas_per_sm, held_s, service_times_s
from sim.schedules import make_schedule
from sim.schedules.base import Tile
from sim.schedules.parts.instructions import FLASH3_FIXED, online_softmax
from sim.tile_program import Compute
from tests.support.drawn import cases, devices, lowered
from tests.support.formulas import keys_before, run, tile_of, visible, visits, workload
from tests.support.same_runs import assert_engines_agree

HOPPER = ("h100-sxm",)
WIDER = st.sampled_from((None, 96, 192, 256))  # than the head_dims that are drawn
H100 = load_profile("h100-sxm")
FLASH3 = make_schedule({"name": "flash3", "splits": 1}, "a test")
UNSPLIT = cases("flash3").map(lambda case: (case[0], case[1].model_copy(update={"splits": 1})))


def kernel_head_dim(w) -> int:
    return min(d for d in (64, 96, 128, 192, 256) if d >= w.head_dim)


@given(UNSPLIT, WIDER, devices(l2="0 B", names=HOPPER))
@settings(max_examples=60)
def test_without_l2_k_and_v_are_read_once_a_visited_block_of_a_cluster(case, head_dim, hw):
    w, schedule = case
    w = replace(w, head_dim=head_dim or w.head_dim)
    kernel, *_ = kernels = lowered(schedule, w, hw)
    ran, *_ = run(kernels, hw, w)
    seen, tile, q = visits(w, kernel, schedule=schedule), tile_of(kernels), kernel.tensors[0]
    down, across = seen.shape
    before = keys_before(w, visible(w), schedule, tile, down) if down == 1 else 0
    keys = np.minimum(tile.kv, w.seq_kv - before - tile.kv * np.arange(across))
    wide = kernel_head_dim(w) == 192 or (kernel_head_dim(w) >= 128 and w.dtype != "fp8")
    in_pairs = schedule.call == "batch" and w.mask == "full" and wide and down % 2 == 0
    kv_rows = 2 * q.groups * int((seen * keys).sum()) // (2 if in_pairs else 1)
    query_rows = w.batch * w.heads * w.seq_q
    assert ran.hbm_read_bytes == (query_rows + kv_rows) * w.head_dim * w.dtype_bytes
    assert ran.hbm_write_bytes == query_rows * (2 * w.head_dim + 4)


@given(UNSPLIT, WIDER, devices(names=HOPPER))
@settings(max_examples=60)
def test_flops_and_exps_are_those_of_the_visited_blocks(case, head_dim, hw):
    w, schedule = case
    w = replace(w, head_dim=head_dim or w.head_dim)
    kernel, *_ = kernels = lowered(schedule, w, hw)
    ran, *_ = run(kernels, hw, w)
    seen, tile = visits(w, kernel, schedule=schedule), tile_of(kernels)
    matrices = kernel.tensors[0].groups
    steps = matrices * int(seen.sum())
    assert ran.executed("mma_flops") == 4 * kernel_head_dim(w) * steps * tile.q * tile.kv
    # A row's sum is rescaled by one exponential a step, but for the peeled first one.
    rescales = steps - matrices * len(seen)
    assert ran.executed("exp_count") == steps * tile.q * tile.kv + rescales * tile.q
    ops = ran.executed("vector_ops") + ran.executed("other_ops")
    assert ops >= 3.5 * steps * tile.q * tile.kv


@given(UNSPLIT, devices(names=HOPPER))
@settings(max_examples=60)
def test_every_block_of_query_rows_is_one_cta_s_item(case, hw):
    w, schedule = case
    kernel, *_ = lowered(schedule, w, hw)
    (has_tile,) = np.nonzero(kernel.trips[0])
    q = kernel.streams[0]
    dealt = np.sort(q.base(kernel.items[has_tile]))
    np.testing.assert_array_equal(dealt, np.arange(q.tensor.groups * q.tiles_down))
    assert kernel.ctas <= hw.sm.count
    assert not kernel.trips[:, kernel.trips[0] == 0].any()


@given(cases("flash3"), devices(names=HOPPER))
@settings(max_examples=60)
def test_both_engines_agree(case, hw):
    w, schedule = case
    assert_engines_agree(lowered(schedule, w, hw), hw, w.dtype)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "shared"),
    [("fp16", 96, False), ("fp16", 128, True), ("bf16", 256, True), ("fp8", 192, True)],
)
def test_two_ctas_of_a_cluster_read_a_key_block_once(dtype, head_dim, shared):
    """flash_fwd_launch_template.h, Enable_cluster: an even number of blocks of query rows."""
    hw = load_profile("h100-sxm", {"l2": {"capacity": "0 B"}}, "a test")
    rows = 192 if head_dim == 96 else 128
    for blocks in (3, 4):
        w = workload(heads=3, head_dim=head_dim, seq_q=blocks * rows, seq_kv=700, dtype=dtype)
        (ran,) = run(kernels_of(FLASH3.program(w, hw)), hw, w)
        times = blocks / 2 if shared and blocks == 4 else blocks
        rows_read = 3 * (blocks * rows + 2 * 700 * times)
        assert ran.hbm_read_bytes == rows_read * head_dim * w.dtype_bytes


# hopper/tile_size.h, tile_size_fwd_sm90: keys without mask, causal and with a window.
@pytest.mark.parametrize(
    ("dtype", "head_dim", "rows", "keys"),
    [
        ("fp16", 64, 192, (192, 128, 128)),
        ("bf16", 80, 192, (144, 144, 128)),
        ("fp16", 128, 128, (176, 128, 128)),
        ("fp16", 192, 128, (112, 112, 96)),
        ("bf16", 256, 128, (80, 80, 64)),
        ("fp8", 64, 192, (160, 160, 160)),
        ("fp8", 96, 192, (128, 128, 128)),
        ("fp8", 128, 128, (224, 224, 224)),
        ("fp8", 160, 128, (160, 160, 160)),
        ("fp8", 256, 128, (128, 128, 64)),
    ],
)
def test_the_public_tiles_fill_an_sm_with_one_cta(dtype, head_dim, rows, keys):
    masks = ({"causal": False}, {"causal": True}, {"causal": True, "window": 512})
    for mask, kv in zip(masks, keys, strict=True):
        w = workload(heads=4, head_dim=head_dim, seq_len=2048, dtype=dtype, **mask)
        (kernel,) = kernels_of(FLASH3.program(w, H100))
        assert tile_of([kernel]) == Tile(q=rows, kv=kv)
        assert kernel.footprint.workers == rows // 64
        assert kernel.footprint.sram_bytes <= H100.sram.max_per_cta
        assert ctas_per_sm(kernel.footprint, H100) == 1


# The same with paged_kv_non_TMA.
@pytest.mark.parametrize(
    ("dtype", "head_dim", "rows", "keys"),
    [
        ("fp16", 64, 192, (128, 128, 128)),
        ("bf16", 80, 192, (128, 128, 128)),
        ("fp16", 128, 128, (128, 128, 128)),
        ("fp16", 192, 128, (96, 96, 96)),
        ("fp8", 128, 128, (160, 160, 160)),
        ("fp8", 192, 128, (160, 160, 128)),
    ],
)
def test_from_small_pages_tiles_are_smaller_and_heads_packed(dtype, head_dim, rows, keys):
    """flash_api.cpp: get_pack_gqa; flash_fwd_launch_template.h: no cluster with varlen."""
    paged = make_schedule({"name": "flash3", "call": "paged"}, "a test")
    masks = ({"causal": False}, {"causal": True}, {"causal": True, "window": 512})
    for mask, kv in zip(masks, keys, strict=True):
        table = {"heads": 8, "kv_heads": 2, "head_dim": head_dim, "seq_len": 2048, "dtype": dtype}
        (kernel,) = kernels_of(paged.program(workload(**table, **mask), H100))
        assert tile_of([kernel]) == Tile(q=rows, kv=kv)
        q, k = (next(s for s in kernel.streams if s.tensor.name == name) for name in ("Q", "K"))
        assert (q.tensor.groups, q.tensor.rows) == (2, 4 * 2048)
        assert k.tile_cols == head_dim


def test_the_producer_s_copies_are_counted_where_no_tma_makes_them():
    """Three lane operations for 16 bytes of K and of V, a trip."""
    shape = {"heads": 4, "head_dim": 128, "seq_len": 2048, "causal": True}
    ops = {}
    for call in ("varlen", "paged"):
        schedule = make_schedule({"name": "flash3", "call": call}, "a test")
        (kernel,) = kernels_of(schedule.program(workload(**shape), H100))
        ops[call] = sum(op.other_ops for op in kernel.loops[1].actions)
    assert ops["paged"] - ops["varlen"] == 2 * 3 * 128 * 128 * 2 // 16


@given(UNSPLIT, devices(names=HOPPER))
@settings(max_examples=40)
def test_a_key_block_is_masked_where_an_edge_cuts_it_and_first(case, hw):
    """mask.h: a comparison with each edge and a selection, of every score of such a block."""
    w, schedule = case
    kernel, *_ = kernels = lowered(schedule, w, hw)
    ran, *_ = run(kernels, hw, w)
    tile, packed = tile_of(kernels), w.batch * w.heads // kernel.tensors[0].groups
    shown, seen = np.repeat(visible(w), packed, axis=0), visits(w, kernel, schedule=schedule)
    masked = 0
    for number, blocks in enumerate(seen):
        rows = shown[number * tile.q : (number + 1) * tile.q]
        rows = rows[:, keys_before(w, rows, schedule, tile, len(seen)) :]
        uncut = [rows[:, tile.kv * b : tile.kv * (b + 1)].all() for b in np.flatnonzero(blocks)]
        masked += len(uncut) - sum(uncut[:-1])
    scores, d, groups = tile.q * tile.kv, kernel_head_dim(w), kernel.tensors[0].groups
    steps = int(seen.sum())
    softmax = online_softmax(tile.q, tile.kv, d, 4 * kernel.footprint.workers, FLASH3_FIXED)
    a_step = softmax.other_ops + (tile.kv * d // 4 if w.dtype == "fp8" else 0)
    apart = schedule.implementation == "vllm" and w.dtype == "fp8"
    added = tile.q * d if apart else 0  # a sum of two levels, then set to zero
    a_step += added
    if schedule.call == "paged" and schedule.implementation != "trtllm":
        a_step += 2 * 3 * tile.kv * d * w.dtype_bytes // 16
    per_score = 2
    if w.window is not None:  # as compiled
        per_score = {"fa3": 6, "sglang": 6, "vllm": 4, "trtllm": 7}[schedule.implementation]
    expected = groups * (steps * a_step + per_score * masked * scores)
    assert ran.executed("other_ops") == pytest.approx(expected, rel=1e-4)
    # O is rescaled each step but the first, and divided at last.
    assert ran.executed("vector_ops") == groups * steps * (softmax.fp32_ops + added)


def test_what_fills_sram_is_what_the_source_says_hits_its_limit():
    """tile_size.h: 128 x 112 at head_dim 192 and 128 x 80 at 256 are the most that fit."""
    for head_dim, kv in ((192, 112), (256, 80)):
        w = workload(heads=4, head_dim=head_dim, seq_len=2048)
        FLASH3.program(w, H100)
        larger = make_schedule({"name": "flash3", "tile": {"q": 128, "kv": kv + 16}}, "a test")
        with pytest.raises(InputError, match="of SRAM"):
            larger.program(w, H100)


@given(st.integers(1, 40), st.integers(1, 3000), st.sampled_from((64, 128)))
@settings(max_examples=40)
def test_no_cta_has_more_than_its_last_tile_beyond_the_mean(heads, seq_len, head_dim):
    """A tile goes to who asks first, and one asks when two key blocks of the last are left."""
    w = workload(heads=heads, head_dim=head_dim, seq_len=seq_len, causal=True)
    (kernel,) = kernels_of(FLASH3.program(w, H100))
    steps = kernel.trips[1:].sum(axis=0) + 1
    by_cta = (steps * kernel.trips[0]).reshape(kernel.ctas, -1).sum(axis=1)
    assert by_cta.max() <= by_cta.mean() + steps.max() + 2


@pytest.mark.parametrize(("heads", "seq_len"), [(16, 2048), (32, 1024), (32, 4096), (8, 8192)])
def test_a_few_tiles_a_cta_are_dealt_evenly(heads, seq_len):
    """Dealt when a CTA began its last tile, the longest was up to 1.47 times the mean."""
    w = workload(heads=heads, head_dim=128, seq_len=seq_len, causal=True)
    (kernel,) = kernels_of(FLASH3.program(w, H100))
    steps = kernel.trips[1:].sum(axis=0) + 1
    by_cta = (steps * kernel.trips[0]).reshape(kernel.ctas, -1).sum(axis=1)
    assert by_cta.max() <= 1.05 * by_cta.mean()


def test_causal_blocks_go_longest_first_within_what_32_mib_of_l2_hold():
    """tile_scheduler.hpp: sections of as many heads, a power of two, as fit with their K and V."""
    w = workload(heads=24, head_dim=128, seq_len=4096, causal=True)  # 2 MiB of K and V a head
    (kernel,) = kernels_of(FLASH3.program(w, H100))
    q, down = kernel.streams[0], 4096 // 128
    first = q.base(np.arange(kernel.ctas) * kernel.items_per_cta)
    np.testing.assert_array_equal(first[:16], np.arange(16) * down + down - 1)
    np.testing.assert_array_equal(first[16:32], np.arange(16) * down + down - 2)
    assert first.max() < 16 * down
    full = workload(heads=24, head_dim=128, seq_len=4096)
    (kernel,) = kernels_of(FLASH3.program(full, H100))
    first = kernel.streams[0].base(np.arange(kernel.ctas) * kernel.items_per_cta)
    np.testing.assert_array_equal(first, np.arange(kernel.ctas))


def test_softmax_hides_behind_matmuls_as_far_as_these_leave_issue_slots():
    w = workload(heads=16, head_dim=128, seq_len=8192)
    h100 = H100.model_copy(update={"power": None})
    free = h100.with_figures({"calibration.sm.async_issue_cycles": 0.0})
    (hidden,) = run(kernels_of(FLASH3.program(w, free)), free, w)
    tensor_s, exp_s = (float(hidden.busy_s[pipe]) / free.sm.count for pipe in (TENSOR, EXP))
    assert exp_s > 0.3 * tensor_s
    assert hidden.time_s < 1.1 * tensor_s
    (ran,) = run(kernels_of(FLASH3.program(w, h100)), h100, w)
    assert ran.time_s > 1.1 * hidden.time_s
    (flash2,) = run(
        kernels_of(make_schedule({"name": "flash2"}, "a test").program(w, h100)), h100, w
    )
    assert ran.time_s < 0.7 * flash2.time_s


@pytest.mark.parametrize(
    ("options", "table", "share"),
    [
        ({"call": "varlen"}, {"causal": True}, 0.25),
        ({"call": "varlen"}, {}, 0.25),
        ({"call": "batch"}, {}, 0),
        ({"call": "paged"}, {}, 0),
        ({"call": "varlen"}, {"head_dim": 64}, 0),  # P goes through SRAM
        ({"call": "varlen", "implementation": "vllm"}, {"dtype": "fp8"}, 0),
        ({"implementation": "trtllm"}, {}, 0),
    ],
)
def test_as_compiled_a_trip_s_first_exponentials_run_beside_p_v_where_no_pages_are_copied(
    options, table, share
):
    """Wheels of xformers 0.0.32.post2, sgl-kernel 0.3.21 and vLLM 0.33.0: MUFU before the wait."""
    schedule = make_schedule({"name": "flash3", **options}, "a test")
    w = workload(**{"heads": 4, "head_dim": 128, "seq_len": 2048} | table)
    (kernel,) = kernels_of(schedule.program(w, H100))
    trip = [op for op in kernel.loops[1].actions if isinstance(op, Compute)]
    exps, beside = (sum(getattr(op, name) for op in trip) for name in ("exp_count", "exps_beside"))
    assert beside == pytest.approx(share * exps, rel=1e-3)
    assert all(op.mma_flops for op in trip if op.exps_beside)


@pytest.mark.parametrize(
    ("implementation", "dtype", "packed", "tile", "blocks"),
    [
        ("fa3", "bf16", 8, (192, 128), 2),  # 24 queries see 151 keys, counted from 0
        ("vllm", "bf16", 8, (192, 160), 1),
        ("sglang", "bf16", 8, (192, 192), 1),
        ("vllm", "bf16", 1, (192, 160), 2),  # 192 queries see 319
        ("sglang", "fp8", 8, (192, 160), 1),
    ],
)
def test_forks_count_key_blocks_from_the_first_key_that_a_tile_sees(
    implementation, dtype, packed, tile, blocks
):
    """Head_dim 64 behind a window of 128: vLLM 0.24.0's and sglang-kernel 0.4.4's wheels."""
    options = {"name": "flash3", "call": "paged", "implementation": implementation}
    table = {"heads": 8, "kv_heads": 8 // packed, "head_dim": 64, "seq_len": 4096}
    w = workload(**table, window=128, causal=True, dtype=dtype)
    kernels = kernels_of(make_schedule(options, "a test").program(w, H100))
    assert (tile_of(kernels).q, tile_of(kernels).kv) == tile
    trips = kernels[0].trips[:2].sum(axis=0)[kernels[0].trips[0] > 0]
    assert np.median(trips) == blocks


@pytest.mark.parametrize(
    ("implementation", "call", "window", "tile", "in_sram"),
    [
        ("fa3", "paged", None, (192, 128), False),
        ("vllm", "paged", None, (192, 160), True),
        ("vllm", "varlen", None, (192, 192), True),
        ("vllm", "paged", 128, (192, 160), False),
        ("sglang", "paged", None, (192, 128), False),
        ("sglang", "paged", 128, (192, 192), True),
        ("fa3", "batch", None, (192, 192), True),
    ],
)
def test_where_p_goes_at_head_dim_64_hangs_on_who_compiled_it(
    implementation, call, window, tile, in_sram
):
    """MmaPV_is_RS in the names of the wheels' kernels: vLLM 0.24.0, sglang-kernel 0.4.4."""
    w = workload(heads=4, head_dim=64, seq_len=2048, window=window, dtype="bf16")
    options = {"name": "flash3", "call": call, "implementation": implementation}
    cta = make_schedule(options, "a test").cta(w, H100)
    assert (cta.tile.q, cta.tile.kv) == tile
    assert cta.p_in_sram == in_sram


@pytest.mark.parametrize(
    ("head_dim", "rows", "waits"), [(64, 192, 6), (96, 128, 7), (64, 64, 6), (128, 64, 7)]
)
def test_sums_apart_are_waited_for_matmul_by_matmul(head_dim, rows, waits):
    """WARPGROUP.DEPBAR in the loops of vLLM 0.24.0's wheel, sm_90a: one for each QGMMA."""
    _, kernel = vllm_s_fp8(head_dim, rows)
    trip = [op for op in kernel.loops[1].actions if isinstance(op, Compute) and op.mma_flops]
    assert kernel.tensor_path == "waited"
    waited_s = sum(op.latencies for op in trip) * H100.calibration.sm.op_latency
    assert waited_s * H100.sm.clock == pytest.approx(60 * waits, rel=0.05)
    assert not any(op.held_cycles for op in trip)


@pytest.mark.parametrize("head_dim", [128, 192, 256])
def test_in_turns_a_warp_group_holds_the_tensor_cores_until_it_has_its_maxima(head_dim):
    """UseSchedulerBarrier; a wait for each matmul (of 32 columns), 9 cycles a score of a thread."""
    _, kernel = vllm_s_fp8(head_dim, rows=128)
    (turn,) = (op for op in kernel.loops[1].actions if isinstance(op, Compute) and op.mma_flops)
    kv = tile_of([kernel]).kv
    assert turn.held_cycles == 2 * ((head_dim + kv) // 32 * 60 + 9 * kv // 2)
    assert {load.stream.tensor.name for load in turn.reads} == {"K", "V"}
    pipes_s = service_times_s(turn, kernel, H100, "fp8")
    multiplied_s = service_times_s(replace(turn, held_cycles=0), kernel, H100, "fp8")[TENSOR]
    held_s = turn.held_cycles / 2 / H100.sm.clock
    assert pipes_s[TENSOR] == pytest.approx(multiplied_s + held_s)
    assert pipes_s[ISSUE] < pipes_s[TENSOR]


@pytest.mark.parametrize(("head_dim", "cycles"), [(64, 2_450), (128, 4_580)])
def test_a_trip_of_vllm_s_fp8_takes_what_its_machine_code_does(head_dim, cycles):
    """Played through: all warp groups of a CTA, whose wgmma are waited for 60 cycles each."""
    times = []
    for seq_len in (4096, 8192):
        w, kernel = vllm_s_fp8(head_dim, 192 if head_dim == 64 else 128, seq_len, heads=132)
        tiles, trips = kernel.trips[0].sum() / 132, kernel.trips[1].sum() / 132
        times.append((run([kernel], H100, w)[0].time_s, tiles, trips))
    (short_s, *a), (long_s, *b) = times
    _, trip_s = np.linalg.solve([a, b], [short_s, long_s])
    assert trip_s * H100.sm.clock == pytest.approx(cycles, rel=0.05)


def vllm_s_fp8(head_dim, rows, seq_len=2048, heads=4):
    """Its kernel of so many rows of fp8, without a mask."""
    options = {"name": "flash3", "call": "paged", "implementation": "vllm"}
    w = workload(heads=heads, kv_heads=4, head_dim=head_dim, seq_len=seq_len, dtype="fp8")
    if rows == 64:
        w = replace(w, seq_q=1, phase="decode")
        options |= {"splits": 1}
    kernel, *_ = kernels_of(make_schedule(options, "a test").program(w, H100))
    assert tile_of([kernel]).q == rows
    return w, kernel


def test_exponentials_beside_a_matmul_take_their_unit_and_hold_up_nothing_else():
    w = workload(heads=4, head_dim=128, seq_len=2048)
    (kernel,) = kernels_of(FLASH3.program(w, H100))
    op = Compute("O += P V", mma_flops=10**6, exp_count=10**5)
    beside = replace(op, exps_beside=4 * 10**4)
    alone, with_beside, fewer = (
        service_times_s(one, kernel, H100, "bf16")
        for one in (op, beside, replace(op, exp_count=6 * 10**4))
    )
    assert with_beside[EXP] == alone[EXP]
    assert with_beside[ISSUE] == pytest.approx(fewer[ISSUE])
    assert with_beside[ISSUE] < alone[ISSUE]


@pytest.mark.parametrize(("implementation", "splits"), [("vllm", 2), ("sglang", 1)])
def test_vllm_s_captured_steps_are_split_by_whole_lengths_behind_windows_too(
    implementation, splits
):
    """flash_prepare_scheduler.cu: 8 heads of 8 x 8 blocks and a tenth are 5 blocks an SM of 132."""
    table = {"name": "flash3", "call": "paged", "implementation": implementation}
    shape = {"heads": 64, "kv_heads": 8, "head_dim": 128, "batch": 8, "seq_kv": 1024}
    w = workload(dtype="bf16", window=128, phase="decode", causal=True, **shape)
    kernel, *_ = kernels_of(make_schedule(table, "a test").program(w, H100))
    assert kernel.splits == splits


@pytest.mark.parametrize("implementation", ["vllm", "sglang"])
@pytest.mark.parametrize("seq_kv", [100, 8192, 8193, 4000, [4000, 100, 129]])
def test_a_fork_s_decoding_reads_what_a_window_shows_and_no_more(implementation, seq_kv):
    """hopper/block.h, n_offset; sgl-project/sgl-flash-attn, pull request 37."""
    table = {"name": "flash3", "call": "paged", "splits": 1, "implementation": implementation}
    shape = {"heads": 16, "kv_heads": 2, "head_dim": 64, "seq_kv": seq_kv}
    w = workload(window=128, causal=True, phase="decode", dtype="bf16", **shape)
    kernel, *_ = kernels = kernels_of(make_schedule(table, "a test").program(w, H100))
    ran, *_ = run(kernels, H100, w)
    shown = sum(min(keys, 128) for keys in w.keys)
    assert ran.hbm_read_bytes == (w.batch * 16 + 2 * 2 * shown) * 64 * 2
    kept = sum(tensor.bytes for tensor in kernel.tensors if tensor.role in ("key", "value"))
    assert kept == 2 * 2 * sum(w.keys) * 64 * 2
    assert_engines_agree([kernel], H100, w.dtype)


@pytest.mark.parametrize("implementation", ["vllm", "sglang"])
def test_a_chunk_in_a_fork_s_batch_leaves_the_others_what_their_windows_show(implementation):
    table = {"name": "flash3", "call": "paged", "splits": 1, "implementation": implementation}
    shape = {"heads": 16, "kv_heads": 2, "head_dim": 64, "window": 128, "causal": True}
    read = []
    for queries, keys in (([64], [8074]), ([1, 1, 64], [8000, 8037, 8074])):
        w = workload(seq_q=queries, seq_kv=keys, dtype="bf16", **shape)
        kernels = kernels_of(make_schedule(table, "a test").program(w, H100))
        ran, *_ = run(kernels, H100, w)
        read.append(ran.hbm_read_bytes)
    chunk, together = read
    assert together - chunk == 2 * (16 + 2 * 2 * 128) * 64 * 2


@pytest.mark.parametrize(("implementation", "workers"), [("fa3", 2), ("vllm", 1)])
def test_decoding_packs_the_query_heads_that_share_a_cache(implementation, workers):
    """heuristics.h, should_pack_gqa, and in vLLM's fork use_one_mma_wg."""
    hw = load_profile("h100-sxm", {"l2": {"capacity": "0 B"}}, "a test")
    w = workload(heads=32, kv_heads=8, head_dim=128, seq_kv=4096, phase="decode")
    decoding = make_schedule(
        {"name": "flash3", "splits": 1, "implementation": implementation}, "a test"
    )
    (kernel,) = kernels = kernels_of(decoding.program(w, hw))
    assert tile_of(kernels).q == 64 * workers
    assert kernel.footprint.workers == workers
    (ran,) = run(kernels, hw, w)
    assert ran.hbm_read_bytes == (32 + 2 * 8 * 4096) * 128 * 2
    long = workload(heads=32, kv_heads=8, head_dim=128, seq_len=4096)
    assert kernels_of(FLASH3.program(long, hw))[0].tensors[0].groups == 32


# vllm-project/flash-attention, hopper/tile_size.h, with two-level accumulation: rows and keys of a
# prompt, keys of up to 64 rows.
@pytest.mark.parametrize(
    ("dtype", "head_dim", "tile", "few"),
    [
        ("fp8", 64, (192, 128), 128),
        ("fp8", 96, (128, 128), None),
        ("fp8", 128, (128, 192), 96),
        ("fp8", 192, (128, 96), None),
        ("fp8", 256, (128, 128), None),
        ("bf16", 64, (192, 128), 192),
        ("bf16", 128, (128, 128), 128),
    ],
)
def test_vllm_s_fork_has_tiles_of_its_own(dtype, head_dim, tile, few):
    vllm = make_schedule({"name": "flash3", "call": "paged", "implementation": "vllm"}, "a test")
    shape = {"heads": 8, "head_dim": head_dim, "dtype": dtype}
    prompt = kernels_of(vllm.program(workload(seq_len=2048, causal=True, **shape), H100))
    assert tile_of(prompt) == Tile(q=tile[0], kv=tile[1])
    decode = workload(seq_kv=2048, phase="decode", **shape)
    tile_of_decode = tile_of(kernels_of(vllm.program(decode, H100)))
    assert (tile_of_decode.kv if tile_of_decode.q == 64 else None) == few


@pytest.mark.parametrize(
    ("implementation", "changed", "q"),
    [
        ("sglang", {}, 64),
        ("sglang", {"window": 100}, 64),  # sgl-project/sgl-flash-attn, pull request 37
        ("vllm", {"window": 100}, 192),
        ("sglang", {"dtype": "fp8"}, 64),  # of sglang-kernel 0.4.4's wheel
        ("sglang", {"heads": 130, "kv_heads": 2}, 192),
        ("fa3", {}, 192),
    ],
)
def test_sglang_s_fork_gives_up_to_64_rows_one_warp_group_behind_windows_too(
    implementation, changed, q
):
    table = {"name": "flash3", "call": "paged", "implementation": implementation}
    usual = {"heads": 16, "kv_heads": 2, "head_dim": 64, "seq_kv": 4096, "phase": "decode"}
    w = workload(**(usual | changed))
    assert tile_of(kernels_of(make_schedule(table, "a test").program(w, H100))).q == q


def test_sums_of_two_levels_are_waited_for_and_added():
    """hopper/utils.h, gemm: sums from zeros (a move each), then one addition for each of O."""
    table = {"name": "flash3", "call": "paged", "tile": {"q": 128, "kv": 128}}
    w = workload(heads=4, head_dim=128, seq_len=2048, dtype="fp8", causal=True)
    trips = []
    for implementation in ("fa3", "vllm"):
        schedule = make_schedule(table | {"implementation": implementation}, "a test")
        kernel, *_ = kernels_of(schedule.program(w, H100))
        trips.append([op for op in kernel.loops[1].actions if isinstance(op, Compute)])
    overlapped, apart = trips
    assert [bool(op.mma_flops and op.exp_count) for op in overlapped] == [False, True, False]
    assert not any(op.mma_flops and op.exp_count for op in apart)
    for amount in ("vector_ops", "other_ops"):
        whole, added = (sum(getattr(op, amount) for op in trip) for trip in (overlapped, apart))
        assert added - whole == 128 * 128


# Names of kernels, such as fmha_v2_flash_attention_e4m3_64_256_S_q_paged_kv_128_tma_ws_sm90.
@pytest.mark.parametrize(
    ("dtype", "head_dim", "keys"),
    [
        ("bf16", 64, 256),
        ("bf16", 128, 128),
        ("bf16", 256, 64),
        ("fp8", 64, 256),
        ("fp8", 128, 256),
        ("fp8", 256, 128),
    ],
)
def test_tensorrt_llm_s_warp_groups_wait_for_every_matmul(dtype, head_dim, keys):
    trtllm = make_schedule({"name": "flash3", "implementation": "trtllm"}, "a test")
    w = workload(heads=8, kv_heads=2, head_dim=head_dim, seq_len=2048, dtype=dtype, causal=True)
    (kernel,) = kernels_of(trtllm.program(w, H100))
    assert tile_of([kernel]) == Tile(q=128, kv=keys)
    assert kernel.tensors[0].groups == 8
    assert ctas_per_sm(kernel.footprint, H100) == 1
    first, trip, _ = kernel.loops
    for loop in (first, trip):
        matmuls = [bool(op.mma_flops) for op in loop.actions]
        assert matmuls == [True, *[False] * (len(matmuls) - 2), True]
        assert not any(op.mma_flops and op.exp_count for op in loop.actions)


def test_tensorrt_llm_s_causal_tiles_come_longest_first_over_all_sequences():
    """dma.h, balanced dynamic scheduling; with a window in the order of their numbers.

    So too where K and V of all query heads are more than the 50 MiB that a Hopper states as its L2
    (fused_multihead_attention_v2.cpp, use_balanced_scheduling).
    """
    trtllm = make_schedule({"name": "flash3", "implementation": "trtllm"}, "a test")
    shape = {"batch": 2, "head_dim": 128, "seq_len": 1024, "causal": True}

    def first(**given):
        (kernel,) = kernels_of(trtllm.program(workload(**shape, **given), H100))
        q = next(stream for stream in kernel.streams if stream.tensor.name == "Q")
        return q.base(np.arange(kernel.ctas) * kernel.items_per_cta)[:8]

    np.testing.assert_array_equal(first(heads=4), 8 * np.arange(8) + 7)
    np.testing.assert_array_equal(first(heads=4, window=100), np.arange(8))
    # 2 x 50 heads x 1024 keys x 128 x 2 tensors x 2 bytes are 50 MiB
    np.testing.assert_array_equal(first(heads=50, kv_heads=1), 8 * np.arange(8) + 7)
    np.testing.assert_array_equal(first(heads=51, kv_heads=1), np.arange(8))


@pytest.mark.parametrize(("call", "sets_up"), [("batch", False), ("varlen", True), ("paged", True)])
def test_each_tile_of_any_lengths_begins_as_a_cta_does(call, sets_up):
    schedule = make_schedule({"name": "flash3", "call": call}, "a test")
    w = workload(batch=4, heads=32, head_dim=128, seq_len=1024, causal=True)
    times = []
    for setup_s in (0.0, 1e-6):
        hw = H100.with_figures({"calibration.sm.cta_setup": setup_s})
        (kernel,) = kernels = kernels_of(schedule.program(w, hw))
        (ran,) = run(kernels, hw, w)
        times.append(ran.time_s)
    assert kernel.items_per_cta >= 7
    begun = kernel.items_per_cta if sets_up else 1
    # Less than all of it: while some CTAs set up, power leaves the others a higher clock.
    assert 0.4 * begun < (times[1] - times[0]) / 1e-6 < 1.1 * begun


def test_fp8_transposes_v_and_writes_bf16():
    shape = {"heads": 4, "head_dim": 128, "seq_len": 2048}
    work = {}
    for dtype in ("fp16", "fp8"):
        table = {"name": "flash3", "tile": {"q": 128, "kv": 128}}
        (kernel,) = kernels_of(
            make_schedule(table, "a test").program(workload(dtype=dtype, **shape), H100)
        )
        work[dtype] = [s for s in kernel.loops[1].actions if isinstance(s, Compute)]
        assert kernel.tensors[3].bytes == 4 * 2048 * 128 * 2
    assert sum(s.mma_flops for s in work["fp8"]) == sum(s.mma_flops for s in work["fp16"])
    assert work["fp8"][1].other_ops - work["fp16"][1].other_ops == 128 * 128 // 4
    # Half the bytes of K and V for two readers and TMA, and V read and written once more.
    half = (128 * 128) * (1 + 2)
    assert work["fp16"][1].sram_bytes - work["fp8"][1].sram_bytes == half - 2 * 128 * 128


@pytest.mark.parametrize(
    ("implementation", "call", "dtype", "cycles", "reads"),
    [
        ("vllm", "paged", "fp8", 450 + 46 * 24 - 35, 1),
        ("sglang", "paged", "fp8", 1090 + 46 * 20 - 35, 1),
        ("sglang", "varlen", "fp8", 1090 + 46 * 28, 0),
        ("trtllm", "paged", "fp8", 1310 + 46 * 32, 0),
        ("sglang", "paged", "bf16", 0, 0),
    ],
)
def test_a_producer_that_transposes_v_copies_nothing_meanwhile(
    implementation, call, dtype, cycles, reads
):
    """128 columns of 192, 160, 224 and 256 keys (copy_Vt_to_V; fmha_v2, warpspec/dma.h), and where
    it copies pages their numbers are read from L2, not in the 35 cycles that play took."""
    table = {"name": "flash3", "call": call, "implementation": implementation}
    w = workload(dtype=dtype, heads=4, head_dim=128, seq_len=4096, causal=True)
    kernel, *_ = kernels_of(make_schedule(table, "a test").program(w, H100))
    loads = [load for loop in kernel.loops for load in loop.loads]
    held = {load.stream.tensor.name: (load.held_cycles, load.held_reads) for load in loads}
    assert held == {"Q": (0, 0), "K": (0, 0), "V": (cycles, reads)}
    seconds = {load.stream.tensor.name: held_s(load, H100) for load in loads}
    assert seconds["V"] == cycles / H100.sm.clock + reads * H100.calibration.l2.latency


@pytest.mark.parametrize(
    ("table", "profile", "options", "complaint"),
    [
        ({}, "a100-sxm-80gb", {}, 'hardware.arch = "sm80"'),
        ({"dtype": "fp32"}, "h100-sxm", {}, 'workload.dtype = "fp32"'),
        ({"head_dim": 320}, "h100-sxm", {}, "workload.head_dim = 320: it takes up to 256"),
        ({}, "h100-sxm", {"tile": {"q": 32, "kv": 64}}, "tile.q = 32: 64, 128 or 192"),
        ({}, "h100-sxm", {"tile": {"q": 192, "kv": 512}}, "the largest that fits is"),
        ({}, "h100-sxm", {"implementation": "trtllm", "splits": 2}, "splits = 2: TensorRT-LLM's"),
    ],
)
def test_what_it_cannot_do_is_one_line(table, profile, options, complaint):
    w = workload(**{"heads": 2, "head_dim": 64, "seq_len": 256, **table})
    with pytest.raises(InputError, match=re.escape(complaint)) as raised:
        make_schedule({"name": "flash3", **options}, "a test").program(w, load_profile(profile))
    assert "\n" not in str(raised.value)


def test_a_combine_kernel_with_nothing_to_do_has_the_results_of_the_kernel_before():
    table = {"name": "flash3", "call": "paged", "implementation": "sglang"}
    shape = {"heads": 64, "kv_heads": 64, "head_dim": 128, "batch": 64, "seq_kv": 1024}
    w = workload(phase="decode", dtype="bf16", **shape)
    forward, combine = kernels_of(make_schedule(table, "a test").program(w, H100))
    assert (forward.splits, combine.name) == (1, "combine")
    written = [t for t in combine.tensors if t.lifetime == "output"]
    assert written == [t for t in forward.tensors if t.lifetime == "output"]


def test_its_combine_kernel_has_four_ranges_on_their_way_and_flash2s_one():
    """hopper/flash_fwd_combine_kernel.h (kStages), flash_fwd_combine_launch_template.h."""
    w = WorkloadTable(heads=4, head_dim=128, kv_heads=1, seq_kv=65536, phase="decode").workload()
    took = {}
    for name in ("flash3", "flash_decoding"):
        schedule = make_schedule({"name": name, "splits": 128}, "a test")
        combine = kernels_of(schedule.program(w, H100))[-1]
        took[name] = combine.footprint
        assert [load.stages for load in combine.loops[1].loads] == [4 if name == "flash3" else 1]
    assert took["flash3"].threads == 256
    assert took["flash3"].sram_bytes == 8 * 128 * 4 + 4 * 8 * 128 * 4
    assert took["flash_decoding"].threads == 128


def test_a_whole_o_goes_out_through_sram_and_one_of_a_range_as_it_lies_in_registers():
    """hopper/epilogue_fwd.hpp: store_O, store_O_direct (a sector of each of eight rows a warp)."""

    def sram_bytes(splits: int) -> list[int]:
        w = WorkloadTable(heads=4, head_dim=128, kv_heads=1, seq_kv=65536, phase="decode")
        schedule = make_schedule({"name": "flash3", "splits": splits}, "a test")
        kernel, *_ = kernels_of(schedule.program(w.workload(), H100))
        computes = (op for op in kernel.actions if isinstance(op, Compute))
        return [op.sram_bytes for op in computes if op.name == "O / l"]

    assert sram_bytes(1) == [2 * 128 * 128 * 2]  # a tile's, written and read in 16 bits
    assert sram_bytes(8) == [2 * 4 * 128 * 4]  # four rows in fp32: a sector as long as four


@pytest.mark.parametrize(
    ("implementation", "changed", "behind"),
    [
        ("vllm", {}, ["combine"]),
        ("sglang", {}, ["combine"]),
        ("vllm", {"seq_kv": 512}, ["combine"]),  # of a captured step there is room for 32 ranges
        ("vllm", {"seq_kv": 512, "batch": 600}, ["zero"]),  # else 4 key blocks are never split
        ("sglang", {"seq_kv": 512}, ["zero"]),
        ("sglang", {"seq_kv": 512, "window": 128}, []),  # planned in the call, which sets it to 0
        ("vllm", {"batch": 1000}, ["zero"]),  # nor are more sequences than one CTA plans
        ("trtllm", {}, []),
    ],
)
def test_combine_is_launched_for_what_might_be_split(implementation, changed, behind):
    """flash_api.cpp, mha_fwd: num_splits is the longest's alone; 64 sequences fill the SMs."""
    schedule = make_schedule(
        {"name": "flash3", "call": "paged", "implementation": implementation}, "a test"
    )
    usual = {"heads": 16, "kv_heads": 2, "head_dim": 128, "batch": 64, "seq_kv": 4096}
    w = workload(**(usual | {"phase": "decode"} | changed))
    _, *others = kernels = kernels_of(schedule.program(w, H100))
    assert [kernel.name for kernel in others] == behind
    for kernel, ran in zip(others, run(kernels, H100, w)[1:], strict=True):
        assert ran.time_s < 1e-6, kernel.name
