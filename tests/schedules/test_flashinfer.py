"""FlashInfer's paged attention: its tile, ranges and bytes, told anew from its source."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.machine import SRAM_BYTES_AN_INSTRUCTION
from sim.schedules import make_schedule
from sim.schedules.parts.flashinfer import flashinfer_cta, range_tokens
from sim.tile_program import Barrier, Compute
from tests.support.formulas import ceil, run

H100 = load_profile("h100-sxm", {"l2": {"capacity": "0 B"}}, "a test")
FLASHINFER = {"name": "paged", "implementation": "flashinfer"}


def decoding(**table) -> AttentionWorkload:
    return WorkloadTable(**({"head_dim": 128, "phase": "decode"} | table)).workload()


def kernels(w, hw=H100, **options):
    return kernels_of(make_schedule(FLASHINFER | options, "a test").program(w, hw))


@pytest.mark.parametrize(
    ("device", "group", "seq_q", "head_dim", "kv_dtype", "tile"),
    [
        # 4 KiB of Q; 16 keys for each of 4 warps are 32 KiB of K and V, of 114 for a CTA.
        ("h100-sxm", 4, 1, 128, None, (16, 128)),
        ("h100-sxm", 16, 1, 128, None, (16, 128)),
        ("h100-sxm", 4, 1, 128, "fp8", (16, 256)),
        ("h100-sxm", 16, 1, 256, None, (16, 64)),
        # 4 warps of 16 rows: 8 KiB for 16 keys, 8 of which are the most.
        ("h100-sxm", 17, 1, 128, None, (64, 128)),
        ("h100-sxm", 4, 16, 128, None, (64, 128)),
        # 4 warps of 32 rows: 4 of which are the most.
        ("h100-sxm", 8, 9, 128, None, (128, 64)),
        ("h100-sxm", 128, 1, 128, None, (128, 64)),
        ("h100-sxm", 128, 1, 256, None, (64, 64)),
        ("a100-sxm-80gb", 4, 1, 128, None, (16, 128)),
        ("rtx-4090", 4, 1, 128, None, (16, 64)),  # 100 KiB an SM
        ("rtx-4090", 4, 1, 64, None, (16, 128)),
        ("t4", 4, 1, 64, None, (64, 64)),  # 64 KiB: 24 beside Q for 4 KiB each, 6, of which 4
    ],
)
def test_the_tile_fits_the_packed_rows_and_the_sram(device, group, seq_q, head_dim, kv_dtype, tile):
    w = decoding(
        heads=2 * group,
        kv_heads=2,
        seq_q=seq_q,
        seq_kv=4096,
        head_dim=head_dim,
        kv_dtype=kv_dtype,
        causal=True,
    )
    cta = flashinfer_cta(w, load_profile(device))
    assert (cta.tile.q, cta.tile.kv, cta.warps) == (*tile, 4)


def chunk_as_published(most: int, tiles: list[int], pages: list[int], least: int) -> int:
    """PrefillBinarySearchKVChunkSize, in pages."""
    low, high = least, max(1, *pages)
    while low < high:
        middle = (low + high) // 2
        ctas = sum(t * ceil(max(p, 1), middle) for t, p in zip(tiles, pages, strict=True))
        if ctas > most:
            low = middle + 1
        else:
            high = middle
    return low


@given(
    st.integers(1, 300),
    st.integers(1, 9),
    st.integers(1, 16),
    st.integers(1, 200_000),
    st.sampled_from((1, 16, 64, 256)),
)
@settings(max_examples=200)
def test_ranges_are_those_of_flashinfer_s_plan(batch, kv_heads, group, seq_kv, page):
    w = decoding(batch=batch, heads=kv_heads * group, kv_heads=kv_heads, seq_kv=seq_kv)
    pages, least = ceil(seq_kv, page), max(128 // page, 1)
    chunk = chunk_as_published(264 // kv_heads, [1] * batch, [pages] * batch, least)
    assert range_tokens(w, H100, 16, page, None) == chunk * page


def test_a_plan_has_as_many_ctas_as_two_an_sm_and_whole_pages():
    w = decoding(heads=32, kv_heads=8, seq_kv=32768)
    (split, merge) = kernels(w, page_size=16)
    # 264 // 8 = 33 ranges; 2048 pages in 33 ranges are 63 pages each, of which 33 are needed.
    assert (split.ctas, range_tokens(w, H100, 16, 16, None)) == (33 * 8, 63 * 16)
    assert merge.ctas == 32
    assert len(kernels(decoding(heads=32, kv_heads=8, seq_kv=128))) == 1
    assert len(kernels(decoding(heads=32, kv_heads=8, seq_kv=32768, batch=40))) == 1


def test_behind_a_window_the_plan_counts_a_tile_of_queries_and_may_leave_a_range_empty():
    """128 keys and 15 more in pages of 64: three, cut in two and one; no key is in the last."""
    w = decoding(heads=16, kv_heads=2, seq_kv=4096, batch=64, window=128)
    split, merge = kernels(w, page_size=64)
    assert (split.ctas, split.splits, merge.ctas) == (64 * 2 * 2, 2, 64 * 16)
    keys = np.array([loop.trips(np.arange(split.ctas)) for loop in split.loops[1:-1]]).sum(axis=0)
    assert keys.tolist() == [1, 0] * 128
    runs = run([split, merge], H100, w)
    assert runs[1].hbm_read_bytes == runs[0].hbm_write_bytes == 2 * 64 * 16 * (128 * 2 + 4)


@pytest.mark.parametrize("seq_kv", [333, 500, 8192])
@pytest.mark.parametrize(
    ("implementation", "profile"), [("flashinfer", "h100-sxm"), ("trtllm-gen", "b200")]
)
def test_behind_a_window_all_of_the_cache_is_held(implementation, profile, seq_kv):
    w = decoding(heads=16, kv_heads=2, seq_kv=seq_kv, batch=4, window=128, dtype="bf16")
    first, *_ = kernels(w, load_profile(profile), implementation=implementation)
    held = sum(tensor.bytes for tensor in first.tensors if tensor.role in ("key", "value"))
    assert held == 4 * 2 * seq_kv * 128 * 2 * 2


def test_a_captured_graph_has_the_results_of_one_range_merged_too():
    w = decoding(heads=8, kv_heads=8, seq_kv=512, batch=64)
    (alone,), (split, merge) = kernels(w), kernels(w, captured=True)
    assert (alone.ctas, split.ctas, split.splits, merge.ctas) == (512, 512, 1, 512)
    assert [tensor.role for tensor in split.tensors[-2:]] == ["partial", "partial"]
    with pytest.raises(InputError, match=r'"cuda": captured = true: .* "flashinfer" alone'):
        make_schedule({"name": "paged", "captured": True}, "a test").program(w, H100)


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 3000),
    st.sampled_from((1, 16, 64)),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(1, 2000),
)
@settings(max_examples=80, deadline=None)
def test_it_reads_each_token_that_is_seen_once_and_keeps_partials_in_16_bits(
    batch, kv_heads, group, seq_kv, page, splits, window
):
    w = decoding(
        batch=batch, heads=kv_heads * group, kv_heads=kv_heads, seq_kv=seq_kv, window=window
    )
    both = kernels(w, page_size=page, splits=splits)
    runs = run(both, H100, w)
    matrices, heads, seen = batch * kv_heads, w.batch * w.heads, min(window or seq_kv, seq_kv)
    down = ceil(group, 64) if group > 16 else 1
    count = both[0].ctas // matrices // down
    o_bytes, partial_bytes = heads * (128 * 2 + 4), count * heads * (128 * 2 + 4)
    cache_bytes = 2 * matrices * seen * 256
    read = runs[0].hbm_read_bytes - cache_bytes - count * heads * 256
    # Numbers come in sectors: those of 64 to 128 keys a tile, of some tiles one sector more.
    tiles = matrices * (ceil(seen, 64) + 2 * count)
    assert matrices * ceil(seen, page) * 4 - 64 * tiles <= read <= tiles * max(32, 4 * 128 // page)
    assert (count == 1) == (len(both) == 1)
    if count == 1:
        assert runs[0].hbm_write_bytes == o_bytes
    else:
        assert runs[0].hbm_write_bytes == runs[1].hbm_read_bytes == partial_bytes
        assert runs[1].hbm_write_bytes == o_bytes


def test_few_query_heads_multiply_16_rows_where_flash_attention_multiplies_64():
    hw = load_profile("h20")
    w = decoding(heads=32, kv_heads=8, seq_kv=8192, batch=64, dtype="bf16")
    ran = {
        name: run(kernels_of(make_schedule(table, "a test").program(w, hw)), hw, w)[0]
        for name, table in (("flashinfer", FLASHINFER), ("cuda", {"name": "paged"}))
    }
    assert ran["cuda"].executed("mma_flops") == 4 * ran["flashinfer"].executed("mma_flops")
    assert ran["flashinfer"].time_s < 0.5 * ran["cuda"].time_s


@pytest.mark.parametrize(
    ("group", "head_dim", "kv_dtype", "counted"),
    [
        # What a warp's trip executes beside its matmuls: include/flashinfer/attention/prefill.cuh
        # of v0.3.1, compiled by nvcc 13.5 for sm_90a and read by `attnsim kernel`.
        (8, 128, None, 693 - 66),
        (64, 128, None, 1312 - 264),
        (128, 128, None, 1117 - 264),
        (16, 256, None, 577 - 65),
        (8, 128, "fp8", 3026 - 132),
        (8, 64, "fp8", 3160 - 136),  # by nvcc 13.0 for sm_90
    ],
)
def test_a_trip_has_about_the_instructions_of_the_compiled_loop(group, head_dim, kv_dtype, counted):
    w = decoding(
        heads=2 * group, kv_heads=2, seq_kv=4096, batch=64, head_dim=head_dim, kv_dtype=kv_dtype
    )
    trip = [op for op in kernels(w)[0].loops[1].actions if isinstance(op, Compute)]
    lane_ops = sum(op.vector_ops + op.other_ops + op.exp_count for op in trip)
    sram_bytes = sum(op.sram_bytes for op in trip)
    warps, lanes = 4, 32
    a_warp = lane_ops / lanes / warps + sram_bytes / SRAM_BYTES_AN_INSTRUCTION / warps
    assert a_warp == pytest.approx(counted, rel=0.15)


def test_a_trip_waits_for_page_numbers_first_and_holds_k_until_its_softmax_is_done():
    trip = kernels(decoding(heads=16, kv_heads=2, seq_kv=4096, batch=64))[0].loops[1]
    numbers, addresses, *rest = trip.actions
    assert isinstance(numbers, Barrier)
    assert [load.stream.tensor.name for load in numbers.issues] == ["page table"]
    assert addresses.reads == numbers.issues
    k = next(load for load in trip.loads if load.stream.tensor.name == "K")
    reading = [op.name for op in rest if k in op.reads]
    assert reading == ["S = Q K^T: first operands", "S = Q K^T", "softmax"]


def test_queries_after_a_cached_prefix_are_packed_and_see_no_later_key():
    w = decoding(heads=32, kv_heads=8, seq_q=40, seq_kv=4096, causal=True)
    (split, merge) = kernels(w, page_size=16)
    cta = flashinfer_cta(w, H100)
    assert (cta.tile.q, merge.ctas) == (128, 40 * 32)
    down = ceil(40 * 4, 128)
    count = split.ctas // 8 // down
    steps = 0
    for row in range(down):
        last = (min((row + 1) * 128, 160) - 1) // 4
        for at in range(count):
            first = at * range_tokens(w, H100, 128, 16, None)
            end = min(first + range_tokens(w, H100, 128, 16, None), 4096 - 40 + last + 1)
            steps += 8 * ceil(max(0, end - first), cta.tile.kv)
    flops = 4 * 128 * cta.tile.q * cta.tile.kv
    assert run([split], H100, w)[0].executed("mma_flops") == steps * flops
    whole = replace(w, causal=False)
    assert np.all(kernels(whole, page_size=16)[0].trips >= split.trips)


@pytest.mark.parametrize("seq_kv", [1024, 4096])
def test_queries_behind_a_window_have_ranges_of_their_own_window(seq_kv):
    """A tile of 128 rows is 16 queries: by the plan 255 keys in pages of 64, of two."""
    w = decoding(heads=16, kv_heads=2, seq_q=1024, seq_kv=seq_kv, window=128, causal=True)
    split, merge = kernels(w, page_size=64)
    tiles = 1024 // 16
    assert range_tokens(w, H100, 128, 64, None) == 128
    assert (split.ctas, split.splits, merge.items.size >= 1024 * 16) == (tiles * 2 * 2, 2, True)
    trips = np.array([loop.trips(np.arange(split.ctas)) for loop in split.loops[1:-1]]).sum(axis=0)
    for cta, visited in enumerate(trips[: 2 * tiles].tolist()):
        first = seq_kv - 1024 + cta // 2 * 16
        begin, number = max(0, first - 127), cta % 2
        end = min(first + 16, begin + (number + 1) * 128)
        assert visited == ceil(max(0, end - begin - number * 128), 64)


def test_merging_has_four_loads_of_eight_ranges_on_their_way():
    """So a turn takes its instructions' cycles, no load's latency: cascade.cuh, num_smem_stages."""
    hw = load_profile("h100-sxm")
    took = {}
    for splits in (8, 32, 128):
        w = decoding(heads=8, kv_heads=1, seq_kv=32768)
        merge = kernels(w, hw, splits=splits)[1]
        assert merge.trips[1].tolist() == [splits // 8] * 8
        took[splits] = run([merge], hw, w)[0].time_s
    turn_s = (took[128] - took[32]) / 12
    assert turn_s * hw.sm.clock == pytest.approx(430, rel=0.1)
    assert turn_s < hw.calibration.l2.latency + hw.calibration.hbm.latency


@pytest.mark.parametrize(
    ("head_dim", "instructions", "cycles"),
    [
        # Of a row of one turn, the mean of sm_89's and sm_90's: cascade.cuh of 0.6.12, by nvcc
        # 13.0, those of a warp and the cycles of a CTA alone, played through.
        (64, 782, 1977),
        (128, 516, 1595),
        (256, 383, 1322),
    ],
)
def test_a_row_is_merged_by_the_instructions_of_the_compiled_kernel(head_dim, instructions, cycles):
    hw, w = load_profile("h100-sxm"), decoding(heads=1, kv_heads=1, seq_kv=512, head_dim=head_dim)
    (merge,) = kernels(w, hw, splits=4)[1:]
    computes = [op for op in merge.actions if isinstance(op, Compute)]
    warps, lanes = 4, 32
    issued = sum(op.other_ops for op in computes) / lanes / warps
    waited = sum(op.latencies for op in computes) * hw.calibration.sm.op_latency * hw.sm.clock
    assert issued == pytest.approx(instructions, rel=0.05)
    assert issued + waited == pytest.approx(cycles, rel=0.1)


def test_rows_are_merged_by_as_many_ctas_as_the_sms_have_room_for_one_after_the_other():
    w = decoding(heads=256, kv_heads=2, seq_kv=8192, batch=16)
    merge = kernels(w)[1]
    assert (merge.ctas, merge.items_per_cta) == (12 * 132, ceil(256 * 16, 12 * 132))
    assert merge.dealt_tiles == int(merge.trips[0].sum()) == 256 * 16


@pytest.mark.parametrize(
    ("workload", "options", "complaint"),
    [
        ({"dtype": "fp32"}, {}, 'workload.dtype = "fp32": fp16 or bf16 was expected'),
        ({"kv_dtype": "int8"}, {}, 'workload.kv_dtype = "int8": fp8, or workload.dtype, was'),
        ({}, {"tile": {"q": 16, "kv": 48}}, "tile.kv = 48: a power of two"),
    ],
)
def test_what_it_has_no_kernel_for_is_said_in_one_line(workload, options, complaint):
    w = decoding(heads=8, kv_heads=2, seq_kv=4096, **workload)
    with pytest.raises(InputError, match=complaint) as caught:
        kernels(w, **options)
    assert "\n" not in str(caught.value)


def test_of_several_queries_behind_a_window_a_tile_visits_the_keys_that_any_of_its_sees():
    """prefill.cuh, kv_start_idx."""
    w = decoding(heads=8, kv_heads=1, seq_kv=1024, seq_q=1024, window=128)
    (kernel,) = kernels(w, splits=1)
    trips = kernel.trips[1].tolist()
    queries = 128 // 8
    for row, visited in enumerate(trips):
        low, high = w.visible_keys(row * queries, row * queries + queries - 1)
        assert visited == ceil(high - low, 64)
