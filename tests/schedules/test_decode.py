"""Decoding: what each cache is read for, against formulas written independently of the code."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim import simulate
from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.models import MODELS
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.machine import cta_start_s
from sim.report.columns import columns_of
from sim.schedules import SCHEDULES, make_schedule
from sim.schedules.parts.latent_parts import cut_in_parts
from sim.schedules.parts.split_kv import splits_of
from sim.tile_program import Compute, Load
from tests.support.drawn import cases, devices, lowered, of_one_query
from tests.support.formulas import ceil, run, run_head_dim, visible

H100 = load_profile("h100-sxm", {"l2": {"capacity": "0 B"}}, "a test")
L40S = load_profile("l40s")


def cached_row_bytes(w: AttentionWorkload) -> int:
    """K or V of a token and head: fp8 with a scale a tensor, int with 4 bytes of scale and zero."""
    bits = {"fp8": 8, "int8": 8, "int4": 4, None: 8 * w.dtype_bytes}[w.kv_dtype]
    return ceil(w.head_dim * bits, 8) + (4 if w.kv_dtype in ("int8", "int4") else 0)


def tile_of(kernel, depth: int) -> tuple[int, int]:
    """Query rows and keys of a step, by its first matmul's FLOPs: 2 rows keys depth."""
    (q,) = (s for s in kernel.streams if s.tensor.name == "Q")
    multiply = next(s for s in kernel.actions if isinstance(s, Compute) and s.mma_flops)
    return q.tile_rows, multiply.mma_flops // (2 * q.tile_rows * depth)


def shown_keys(w: AttentionWorkload, tile_kv: int) -> tuple[int, int]:
    """(the first key of the first block that the mask shows, blocks from there on)."""
    first = np.flatnonzero(visible(w)[0])[0] // tile_kv
    return first * tile_kv, ceil(w.seq_kv, tile_kv) - first


def query_matrices(w: AttentionWorkload, schedule) -> int:
    """Matrices of query rows, each of which reads its KV head's cache: unpacked, the heads."""
    usual = w.window is None or schedule.implementation in ("triton", "sglang")
    packed = usual if schedule.pack_gqa is None else schedule.pack_gqa
    return w.batch * (w.kv_heads if packed else w.heads)


def ranges_seen(kernel, matrices: int) -> int:
    """Ranges of a matrix that have keys to see: only those load queries."""
    loading = int(kernel.trips[0].sum())
    assert loading == np.count_nonzero(kernel.trips[1:-1].sum(axis=0))
    return loading // matrices


def assert_moves_partials(kernels, runs, w, splits):
    """What a split kernel writes and a combine kernel moves."""
    o_bytes = w.batch * w.heads * w.head_dim * w.dtype_bytes
    statistics = 4 * w.batch * w.heads
    if splits == 1:
        assert [kernel.name for kernel in kernels].count("combine") == 0
        assert runs[0].hbm_write_bytes == o_bytes + statistics
    else:
        partial_bytes = splits * statistics * (w.head_dim + 1)
        assert runs[0].hbm_write_bytes == runs[1].hbm_read_bytes == partial_bytes
        assert runs[1].hbm_write_bytes == o_bytes + statistics


@given(of_one_query("flash_decoding", "decode"), devices(l2="0 B"))
@settings(max_examples=60)
def test_flash_decoding_without_l2_reads_the_cache_once_and_partials_in_fp32(case, hw):
    w, schedule = case
    kernels = lowered(schedule, w, hw)
    runs = run(kernels, hw, w)
    matrices = query_matrices(w, schedule)
    splits = kernels[0].ctas // matrices
    first, _ = shown_keys(w, tile_of(kernels[0], run_head_dim(w, schedule))[1])
    q_bytes = w.batch * w.heads * w.head_dim * w.dtype_bytes
    cache_bytes = 2 * matrices * (w.seq_kv - first) * cached_row_bytes(w)
    assert runs[0].hbm_read_bytes == ranges_seen(kernels[0], matrices) * q_bytes + cache_bytes
    assert_moves_partials(kernels, runs, w, splits)


@given(of_one_query("flash_decoding", "paged"), devices(l2="0 B"))
@settings(max_examples=40)
def test_combine_has_all_log_sum_exps_before_any_o_and_then_one_range_s_at_a_time(case, hw):
    w, schedule = case
    assume(schedule.implementation != "flashinfer")  # tests/schedules/test_flashinfer.py
    kernels = lowered(schedule, w, hw)
    if len(kernels) == 1:
        return
    combine = kernels[1]
    weights, add, _ = combine.loops
    splits = kernels[0].ctas // query_matrices(w, schedule)
    assert kernels[0].splits == splits
    assert [load.stream.tensor.name for load in weights.loads] == ["LSE of splits"]
    assert [load.stream.tensor.name for load in add.loads] == ["O of splits"]
    assert [load.stages for load in add.loads] == [1]
    assert combine.trips[0].tolist() == [1] * combine.ctas
    assert combine.trips[1].tolist() == [splits] * combine.ctas
    setup_s = hw.calibration.sm.cta_setup if schedule.implementation == "cuda" else 0.0
    assert cta_start_s(combine, hw) == hw.calibration.sm.cta_start + setup_s
    ran = run(kernels, hw, w)[1]
    d = run_head_dim(w, schedule)
    rows = 4 if d % 128 == 0 else 8 if d % 64 == 0 else 16
    assert ran.executed("exp_count") == 2 * splits * rows * combine.ctas
    assert ran.time_s >= splits * hw.calibration.hbm.latency


def splits_as_published(batch_nheads_mblocks: int, num_sms: int, num_n_blocks: int) -> int:
    """Told as in flash_api.cpp: efficiencies of the eligible counts, then the first good one."""
    if batch_nheads_mblocks >= 0.8 * num_sms:
        return 1
    best, efficiency = 0.0, {}
    for n in range(1, min(128, num_sms, num_n_blocks) + 1):
        if n > 1 and -(-num_n_blocks // n) == -(-num_n_blocks // (n - 1)):
            continue
        waves = batch_nheads_mblocks * n / num_sms
        efficiency[n] = waves / np.ceil(waves)
        best = max(best, efficiency[n])
    return min(n for n, e in efficiency.items() if e >= 0.85 * best)


@given(st.integers(1, 300), st.integers(1, 200_000))
def test_the_number_of_splits_is_the_published_heuristic_s(kv_heads, seq_kv):
    w = WorkloadTable(heads=kv_heads, head_dim=128, seq_kv=seq_kv, phase="decode").workload()
    key_blocks = -(-seq_kv // 128)
    assert splits_of(w, H100, key_blocks) == splits_as_published(kv_heads, 264, key_blocks)


def page_table_bytes(w: AttentionWorkload, page: int, tile_kv: int) -> int:
    """Sectors of 8 numbers that hold those of each block of keys, for one KV head."""
    sectors = 0
    for block in range(shown_keys(w, tile_kv)[0] // tile_kv, ceil(w.seq_kv, tile_kv)):
        first = block * tile_kv // page // 8
        # Of more than 8 pages a block, as many sectors as it would fill, if there are.
        sectors += min(max(1, tile_kv // page // 8), ceil(ceil(w.seq_kv, page), 8) - first)
    return 32 * sectors


@given(of_one_query("paged"), devices(l2="0 B"))
@settings(max_examples=80)
def test_paged_reads_each_token_once_and_the_sectors_of_its_pages_numbers(case, hw):
    w, schedule = case
    assume(schedule.implementation != "flashinfer")  # tests/schedules/test_flashinfer.py
    kernels = lowered(schedule, w, hw)
    runs = run(kernels, hw, w)
    matrices, page = query_matrices(w, schedule), schedule.page_size
    _, tile_kv = tile_of(kernels[0], run_head_dim(w, schedule))
    splits = kernels[0].ctas // matrices
    q_bytes = w.batch * w.heads * w.head_dim * w.dtype_bytes
    rows = matrices * (w.seq_kv - shown_keys(w, tile_kv)[0])
    numbers = matrices * page_table_bytes(w, page, tile_kv)
    cache_bytes = 2 * rows * cached_row_bytes(w)
    q_bytes *= ranges_seen(kernels[0], matrices)
    assert runs[0].hbm_read_bytes == q_bytes + cache_bytes + numbers
    assert_moves_partials(kernels, runs, w, splits)


@pytest.mark.parametrize("implementation", ["cuda", "triton"])
@pytest.mark.parametrize("seq_kv", [32, 64, 200])
@pytest.mark.parametrize(
    "table", [{"name": "decode"}, {"name": "flash_decoding"}, {"name": "paged", "page_size": 256}]
)
def test_a_short_cache_is_read_for_the_tokens_that_it_has(table, seq_kv, implementation):
    w = WorkloadTable(
        heads=64, kv_heads=8, head_dim=128, batch=4, seq_kv=seq_kv, phase="decode"
    ).workload()
    schedule = make_schedule(table | {"implementation": implementation}, "a test")
    kernels = kernels_of(schedule.program(w, H100))
    ran = run(kernels, H100, w)[0]
    cache_bytes = 2 * 4 * 8 * seq_kv * 128 * 2
    q_bytes = kernels[0].ctas // (4 * 8) * 4 * 64 * 128 * 2
    numbers = 4 * 8 * ceil(seq_kv, 64) * 32  # a sector a tile at most
    assert cache_bytes <= ran.hbm_read_bytes - q_bytes <= cache_bytes + numbers


def tokens_read(kernel, name: str) -> np.ndarray:
    """How many tokens of a tensor each item loads."""
    tokens = np.zeros(kernel.ctas * kernel.items_per_cta, np.int64)
    for loop, trips in zip(kernel.loops, kernel.trips, strict=True):
        for load in (op for op in loop.ops if isinstance(op, Load)):
            stream = load.stream
            if stream.tensor.name == name:
                base, down = stream.base(kernel.items), stream.tiles_down
                for item, count in enumerate(trips):
                    row = (base[item] + stream.stride * np.arange(count)) % down
                    last = row == down - 1
                    cut = stream.tensor.rows - (down - 1) * stream.tile_rows
                    tokens[item] += np.where(last, cut, stream.tile_rows).sum()
    return tokens


@given(of_one_query("paged"), devices())
@settings(max_examples=60)
def test_the_ctas_of_a_kv_head_read_each_of_its_tokens_once_whatever_the_page(case, hw):
    w, schedule = case
    assume(schedule.implementation != "flashinfer")  # tests/schedules/test_flashinfer.py
    (kernel, *_) = lowered(schedule, w, hw)
    matrices = query_matrices(w, schedule)
    keys = tile_of(kernel, run_head_dim(w, schedule))[1]
    shown = w.seq_kv - shown_keys(w, keys)[0]
    for name in "KV":
        read = tokens_read(kernel, name).reshape(matrices, -1).sum(axis=1)
        assert (read == shown).all()


def test_a_page_is_of_any_power_of_two_from_one_on():
    w = WorkloadTable(heads=8, kv_heads=2, head_dim=128, seq_kv=5000, phase="decode").workload()
    read = {}
    for page in (1, 16, 256):
        kernels = kernels_of(SCHEDULES["paged"](page_size=page).program(w, H100))
        read[page] = run(kernels, H100, w)[0]
    numbers = 2 * 4 * (5000 - 320)  # 5,000 numbers of 4 bytes for each head, where 16 have one
    assert read[1].hbm_read_bytes - read[16].hbm_read_bytes == pytest.approx(numbers, rel=0.3)
    assert read[1].time_s == pytest.approx(read[256].time_s, rel=0.02)


def readers(schedule, rows: int, hw) -> int:
    """Who makes each element ready: warps of 16 rows each, or the warp groups of wgmma."""
    warps = schedule.warps or 4
    if schedule.implementation == "cuda":
        return min(warps, rows // 16)
    return warps // 4 if hw.arch == "sm90" else min(warps, rows // 16)


@given(of_one_query("flash_decoding", "paged"), devices())
@settings(max_examples=60)
def test_decoding_takes_four_d_flops_a_row_and_key_and_makes_each_element_ready(case, hw):
    w, schedule = case
    assume(schedule.implementation != "flashinfer")  # tests/schedules/test_flashinfer.py
    kernels = lowered(schedule, w, hw)
    d = run_head_dim(w, schedule)
    rows, keys = tile_of(kernels[0], d)
    matrices = query_matrices(w, schedule)
    steps = matrices * shown_keys(w, keys)[1]
    ran = run(kernels, hw, w)[0]
    assert ran.executed("mma_flops") == 4 * d * rows * keys * steps
    assert ran.executed("exp_count") == steps * rows * (keys + 1)
    softmax = steps * rows * (2 * keys + 20 + d) + kernels[0].ctas * rows * d
    operations = {"fp8": 1, "int8": 2, "int4": 2, None: 0}[w.kv_dtype] * readers(schedule, rows, hw)
    assert ran.executed("vector_ops") == softmax + 2 * steps * keys * w.head_dim * operations


@pytest.mark.parametrize("name", ["flash_decoding", "paged", "decode"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 2), (8, 1)])
@pytest.mark.parametrize("window", [None, 1000])
def test_decoding_reads_the_cache_of_its_kv_heads_as_far_as_the_window_reaches(
    name, heads, kv_heads, window
):
    w = WorkloadTable(
        heads=heads, kv_heads=kv_heads, head_dim=128, seq_kv=8192, window=window, phase="decode"
    ).workload()
    kernels = kernels_of(SCHEDULES[name]().program(w, H100))
    ran = run(kernels, H100, w)[0]
    matrices = heads if window else kv_heads  # behind a window each head reads for itself
    splits = kernels[0].ctas // matrices
    keys = (window or 8192) + 128  # and the block that the window cuts
    least = 2 * matrices * (window or 8192) * 256
    most = 2 * matrices * keys * 256 + splits * heads * 256 + matrices * ceil(keys, 128) * 32
    assert least <= ran.hbm_read_bytes <= most


@pytest.mark.parametrize("name", ["flash_decoding", "paged"])
def test_ranges_are_cut_of_the_room_and_empty_ones_are_combined_too(name):
    w = WorkloadTable(heads=32, kv_heads=8, head_dim=128, seq_kv=1024, phase="decode").workload()
    hw = load_profile("a30")
    kernels = kernels_of(
        make_schedule({"name": name, "room_tokens": 2**20}, "a test").program(w, hw)
    )
    splits = splits_as_published(8, 2 * 56, 2**20 // 128)
    assert kernels[0].ctas == 8 * splits
    assert ranges_seen(kernels[0], 8) == 1  # a range has room for 74,898 keys
    assert kernels[0].trips[1:-1].sum() == 8 * 1024 // 128
    ran = run(kernels, hw, w)
    assert ran[1].l2_read_bytes == splits * 32 * 4 * (128 + 1)
    alone = kernels_of(make_schedule({"name": name, "splits": 1}, "a test").program(w, hw))
    assert ran[0].time_s > run(alone, hw, w)[0].time_s


def test_room_for_fewer_keys_than_there_are_is_refused():
    w = WorkloadTable(model="llama-3-8b", seq_kv=5000, phase="decode").workload()
    with pytest.raises(InputError, match="room_tokens = 4999: room for the 5000 keys"):
        SCHEDULES["flash_decoding"](room_tokens=4999).program(w, H100)


@pytest.mark.parametrize(
    ("options", "heads", "window", "splits"),
    [
        ({}, 8, None, True),
        ({}, 2, None, False),  # no heads to pack
        ({}, 8, 1000, False),
        ({"pack_gqa": False}, 8, None, False),
        ({"pack_gqa": True}, 8, 1000, True),
        ({"call": "kvcache"}, 2, None, True),
        ({"call": "kvcache"}, 8, 1000, True),
        ({"implementation": "triton"}, 2, None, True),
    ],
)
def test_vllm_s_call_splits_keys_where_it_packs_heads(options, heads, window, splits):
    w = WorkloadTable(
        heads=heads, kv_heads=2, head_dim=128, seq_kv=16384, window=window, phase="decode"
    ).workload()
    kernels = kernels_of(make_schedule({"name": "paged"} | options, "a test").program(w, H100))
    assert (len(kernels) == 2) == splits


@pytest.mark.parametrize(
    ("batch", "seq_kv", "window", "splits"),
    [
        (8, 16384, None, 8),  # the most
        (64, 1024, None, 5),  # 142 SMs, four steps of length: 568 slots for 128 KV heads
        (8, 16384, 128, 4),  # 8 asked for, of 32 keys at least
    ],
)
def test_sglang_decodes_16_rows_and_32_keys_in_as_many_ranges_as_it_reckons(
    batch, seq_kv, window, splits
):
    w = WorkloadTable(
        batch=batch,
        heads=16,
        kv_heads=2,
        head_dim=64,
        seq_kv=seq_kv,
        window=window,
        phase="decode",
    ).workload()
    schedule = make_schedule({"name": "flash_decoding", "implementation": "sglang"}, "a test")
    split, _ = kernels_of(schedule.program(w, L40S))
    assert split.ctas == batch * 2 * splits
    # One buffer each of K and V of 32 keys, and 16 rows of Q.
    assert split.footprint.sram_bytes == (16 + 2 * 32) * 64 * 2


@pytest.mark.parametrize(("heads", "cycles"), [(1, 2660), (2 * 108, 3745)], ids=["lone", "two"])
def test_flash_attention_2s_split_kernel_sets_up_what_its_machine_code_does(heads, cycles):
    """2,660 cycles of a lone CTA, 3,745 beside another, where the architecture's are 5,800."""
    hw = load_profile("a100-sxm-80gb")
    w = WorkloadTable(heads=heads, head_dim=128, seq_kv=128, phase="decode").workload()
    (kernel,) = kernels_of(make_schedule({"name": "decode"}, "a test").program(w, hw))
    assert not kernel.sets_up
    setup = kernel.loops[0].ops[0]
    waited_s = setup.latencies * hw.calibration.sm.op_latency - 2 * hw.calibration.l2.latency
    issued = setup.other_ops / 32 / 4  # of a warp on each sub-partition
    assert waited_s * hw.sm.clock + issued == pytest.approx(cycles, rel=0.02)


def test_sglangs_decoding_sets_up_what_its_machine_code_does():
    """Half a microsecond and a read of L2, where the architecture's setup takes 2.3."""
    w = WorkloadTable(heads=8, kv_heads=1, head_dim=64, seq_kv=32, phase="decode").workload()
    schedule = make_schedule({"name": "flash_decoding", "implementation": "sglang"}, "a test")
    (kernel,) = kernels_of(schedule.program(w, L40S))
    (own,), (usual,) = (run([one], L40S, w) for one in (kernel, replace(kernel, sets_up=None)))
    assert usual.time_s - own.time_s == pytest.approx(L40S.calibration.sm.cta_setup, rel=1e-9)
    setup = next(one for one in kernel.loops[0].ops if isinstance(one, Compute))
    waited_s = setup.latencies * L40S.calibration.sm.op_latency
    cycles = (waited_s - L40S.calibration.l2.latency) * L40S.sm.clock
    issued = setup.other_ops / 32 / 4  # of a warp on each sub-partition
    assert cycles + issued == pytest.approx(925, rel=0.1)


def test_sglangs_decoding_is_of_one_query():
    w = WorkloadTable(heads=2, head_dim=64, seq_q=4, seq_kv=512, phase="prefill").workload()
    schedule = make_schedule({"name": "flash_decoding", "implementation": "sglang"}, "a test")
    with pytest.raises(InputError, match=r'"sglang": workload\.seq_q = 4: one query'):
        schedule.program(w, L40S)


def test_decode_is_the_split_kernel_unsplit():
    w = WorkloadTable(model="llama-3-8b", seq_kv=5000, phase="decode", batch=2).workload()
    (plain,), (split,) = (
        run(kernels_of(make_schedule(table, "a test").program(w, H100)), H100, w)
        for table in ({"name": "decode"}, {"name": "flash_decoding", "splits": 1})
    )
    assert plain.time_s == split.time_s
    assert plain.hbm_read_bytes == split.hbm_read_bytes
    # A CTA a query head, as flash2 has it, reads a KV head's cache for each of its four.
    (unpacked,) = run(kernels_of(SCHEDULES["flash2"]().program(w, H100)), H100, w)
    cache_bytes = 2 * 2 * 8 * 5000 * 256
    assert unpacked.hbm_read_bytes - plain.hbm_read_bytes == 3 * cache_bytes


@given(of_one_query("flash_decoding", "paged", "h2o"), devices())
@settings(max_examples=40)
def test_a_quantised_cache_lies_in_sram_as_narrow_as_in_hbm(case, hw):
    w, schedule = case
    assume(schedule.implementation != "flashinfer")  # tests/schedules/test_flashinfer.py
    w = replace(w, kv_dtype="int8")
    (kernel, *_) = lowered(schedule, w, hw)
    d = run_head_dim(w, schedule)
    rows, keys = tile_of(kernel, d)
    stages = next(loop.loads[0].stages for loop in kernel.loops[1:] if loop.loads)
    buffers = max(1, 2 * stages)  # nothing ahead: V takes K's place
    q_bytes = rows * d * w.dtype_bytes
    assert kernel.footprint.sram_bytes == q_bytes + buffers * keys * (d + 4)


def test_a_quantised_cache_is_read_in_less_time_by_about_its_width():
    hw = load_profile("h100-sxm")
    w = WorkloadTable(model="llama-3-8b", seq_kv=131072, batch=4, phase="decode").workload()

    def time_s(kv_dtype):
        quantised = replace(w, kv_dtype=kv_dtype)
        return run(kernels_of(SCHEDULES["paged"]().program(quantised, hw)), hw, quantised)[0].time_s

    assert time_s(None) / time_s("fp8") == pytest.approx(2, rel=0.05)
    assert time_s(None) / time_s("int8") == pytest.approx(256 / 132, rel=0.05)
    assert 3 < time_s(None) / time_s("int4") < 256 / 68


@given(cases("streaming_llm"), devices(l2="0 B"))
@settings(max_examples=60)
def test_streaming_llm_decodes_from_sinks_and_window_only(case, hw):
    w, schedule = case
    w = replace(w, phase="decode", seq_q=1)
    kernels = lowered(schedule, w, hw)
    runs = run(kernels, hw, w)
    kept = min(w.seq_kv, schedule.sinks + schedule.keep_window)
    matrices = w.batch * w.kv_heads
    splits = kernels[0].ctas // matrices
    q_bytes = w.batch * w.heads * w.head_dim * w.dtype_bytes
    angles = matrices * (splits + kept) * w.head_dim * w.dtype_bytes  # of the query, of each key
    cache_bytes = 2 * matrices * kept * cached_row_bytes(w)
    assert runs[0].hbm_read_bytes == splits * q_bytes + cache_bytes + angles
    assert_moves_partials(kernels, runs, w, splits)


def test_streaming_llm_s_decoding_does_not_grow_with_length_and_rotates_keys():
    ran = {}
    for seq_kv in (4096, 1_000_000):
        w = WorkloadTable(model="llama-3-8b", seq_kv=seq_kv, phase="decode").workload()
        ran[seq_kv] = run(kernels_of(SCHEDULES["streaming_llm"]().program(w, H100)), H100, w)[0]
    assert ran[4096].time_s == ran[1_000_000].time_s
    short = replace(w, seq_kv=2004)
    kernels = kernels_of(SCHEDULES["flash_decoding"]().program(short, H100))
    unrotated = run(kernels, H100, short)[0]
    elements = (8 * ceil(2004, 128) * 128 + kernels[0].ctas * 64) * 128
    rotated = ran[4096].executed("vector_ops") - unrotated.executed("vector_ops")
    assert rotated == 3 * elements


def test_streaming_llm_says_by_its_own_name_that_queries_are_the_last_tokens():
    w = WorkloadTable(heads=8, head_dim=128, seq_q=2048, seq_kv=512).workload()
    with pytest.raises(InputError, match=r"schedule streaming_llm: rope: workload\.seq_q = 2048"):
        SCHEDULES["streaming_llm"]().program(w, H100)


@given(cases("streaming_llm"), devices())
@settings(max_examples=20)
def test_streaming_llm_s_prefill_is_block_sparse_with_window_and_sinks(case, hw):
    w, schedule = case
    w = replace(w, phase="prefill")
    options = schedule.model_dump(exclude={"name", "splits"}, exclude_none=True)
    same = make_schedule({"name": "block_sparse", **options}, "a test")
    in_float = replace(w, kv_dtype=None)
    ours = run(lowered(schedule, w, hw), hw, w)[0]
    theirs = run(lowered(same, in_float, hw), hw, w)[0]
    assert ours.hbm_read_bytes == theirs.hbm_read_bytes
    assert ours.time_s == theirs.time_s


@given(cases("h2o"), devices(l2="0 B"))
@settings(max_examples=60)
def test_h2o_reads_its_budget_and_adds_each_probability_to_its_key(case, hw):
    w, schedule = case
    kernels = lowered(schedule, w, hw)
    *attention, update, evict = run(kernels, hw, w)
    tenths = [max(1, int(share * w.seq_kv)) for share in (schedule.heavy, schedule.recent)]
    kept, matrices = min(w.seq_kv, sum(tenths)), w.batch * w.kv_heads
    splits = kernels[0].ctas // matrices
    q_bytes = w.batch * w.heads * w.head_dim * w.dtype_bytes
    cache_bytes = 2 * matrices * kept * cached_row_bytes(w)
    scores = w.batch * w.heads * kept * w.dtype_bytes
    accumulated = matrices * kept * w.dtype_bytes
    statistics = 4 * w.batch * w.heads
    assert attention[0].hbm_read_bytes == splits * q_bytes + cache_bytes
    out = q_bytes + statistics if splits == 1 else splits * statistics * (w.head_dim + 1)
    assert attention[0].hbm_write_bytes == scores + out
    steps = ceil(kept, 1024)
    assert update.hbm_read_bytes == scores + accumulated + steps * statistics
    assert update.hbm_write_bytes == accumulated + 8 * matrices * steps
    assert (evict.hbm_read_bytes, evict.hbm_write_bytes) == (8 * matrices * steps, 4 * matrices)
    assert update.executed("exp_count") >= w.batch * w.heads * kept


def test_h2o_keeps_a_fifth_of_the_tokens_unless_told_otherwise():
    w = WorkloadTable(model="llama-2-7b", seq_kv=4000, phase="decode").workload()
    kernels = kernels_of(SCHEDULES["h2o"]().program(w, H100))
    (k,) = {s.tensor for s in kernels[0].streams if s.tensor.name == "K"}
    assert k.rows == 800


# --- multi-head latent attention


def schedule_as_published(
    seqlens: list[int], num_sm_parts: int
) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    """get_mla_metadata.cu: (begin sequence, begin block, end sequence, end block) of each part."""
    fixed, blocks = 5, [ceil(n, 64) for n in seqlens]
    payload = max(ceil(sum(b + fixed for b in blocks), num_sm_parts) + fixed, 2 * fixed)
    now, block, split, parts, splits = 0, 0, 0, [], [0] * len(seqlens)
    for _ in range(num_sm_parts):
        begin, remain = (now, block), payload
        while now < len(seqlens):
            left = blocks[now] - block
            if remain >= left + fixed:
                splits[now] = split + 1
                remain -= left + fixed
                now, block, split = now + 1, 0, 0
            else:
                if remain - fixed > 0:
                    block += remain - fixed
                    split += 1
                break
        end = (now, block) if block > 0 else (now - 1, blocks[now - 1])
        parts.append((*begin, *end))
    assert now == len(seqlens)
    return parts, splits


@given(
    st.lists(st.integers(1, 20_000), min_size=1, max_size=30)
    | st.tuples(st.integers(1, 20_000), st.integers(1, 200)).map(lambda of: [of[0]] * of[1]),
    st.integers(1, 132),
)
@settings(max_examples=200)
def test_parts_are_those_of_flash_mla_s_scheduler(lengths, num_sm_parts):
    sequences, key_blocks = len(lengths), [ceil(length, 64) for length in lengths]
    ours = cut_in_parts(key_blocks, num_sm_parts)
    published, splits = schedule_as_published(lengths, num_sm_parts)
    every = [(s, b) for s in range(sequences) for b in range(key_blocks[s])]
    before = [sum(key_blocks[:s]) for s in range(sequences + 1)]
    assert ours.splits.tolist() == splits
    work = ours.count.reshape(-1, ours.slots)
    for part, (sequence, block, end, end_block) in enumerate(published):
        if sequence == sequences:  # nothing left
            assert part >= len(work)
            continue
        visited = [
            (ours.sequence[at], b)
            for at in range(part * ours.slots, (part + 1) * ours.slots)
            for b in range(ours.first[at], ours.first[at] + ours.count[at])
        ]
        assert visited == every[before[sequence] + block : before[end] + end_block]


@given(of_one_query("mla"), devices(l2="0 B"))
@settings(max_examples=40)
def test_mla_reads_the_latent_cache_once_for_each_block_of_heads(case, hw):
    w, schedule = case
    kernels = lowered(SCHEDULES["mla"](tile=schedule.tile), w, hw)
    runs = run(kernels, hw, w)
    tile_q, tile_kv = tile_of(kernels[0], w.latent_dim + w.rope_dim)
    width, size = w.latent_dim + w.rope_dim, w.dtype_bytes
    down, pages = ceil(w.heads, tile_q), ceil(w.seq_kv, tile_kv)
    parts = cut_in_parts([pages] * w.batch, max(1, hw.sm.count // down))
    pieces = int((parts.count > 0).sum())
    split = int(parts.splits[parts.splits > 1].sum())
    cache_bytes = down * w.batch * pages * tile_kv * width * size
    numbers = down * w.batch * pages * 32
    assert runs[0].hbm_read_bytes == cache_bytes + numbers + pieces * w.heads * width * size
    row = w.latent_dim * size + 4
    partial_row = 4 * (w.latent_dim + 1)
    whole = pieces - split
    assert runs[0].hbm_write_bytes == w.heads * (whole * row + split * partial_row)
    flops = 2 * tile_q * tile_kv * (width + w.latent_dim)
    assert runs[0].executed("mma_flops") == flops * down * w.batch * pages
    assert runs[1].hbm_read_bytes == w.heads * split * partial_row
    assert runs[1].hbm_write_bytes == w.heads * (w.batch - whole) * row


def test_mla_on_deepseek_v3_is_flash_mla_s_kernel():
    """128 heads are two blocks of 64; 576 elements a token, once each, whatever the heads."""
    w = WorkloadTable(model="deepseek-v3", seq_kv=8192, batch=4, phase="decode").workload()
    (kernel, _) = kernels_of(SCHEDULES["mla"]().program(w, H100))
    assert tile_of(kernel, 576) == (64, 64)
    published, _ = schedule_as_published([8192] * 4, 132 // 2)
    assert kernel.ctas == 2 * sum(sequence < 4 for sequence, *_ in published)
    assert kernel.footprint.threads == 256
    (cache,) = {s.tensor for s in kernel.streams if s.tensor.name == "C"}
    assert cache.bytes == 4 * 8192 * 576 * 2
    with_l2 = load_profile("h100-sxm")
    ran = run([kernel], with_l2, w)[0]
    q_bytes = 4 * 128 * 576 * 2
    assert cache.bytes + q_bytes <= ran.hbm_read_bytes < 1.05 * cache.bytes + q_bytes


def cache_bytes_a_token(name: str) -> int:
    """What all layers read of a token, in 16 bits: `mla` where a model has latents."""
    shape = MODELS[name]
    w = WorkloadTable(model=name, seq_kv=4096, phase="decode").workload()
    schedule = "mla" if shape.latent_dim else "flash_decoding"
    kernels = kernels_of(SCHEDULES[schedule]().program(w, H100))
    cached = {s.tensor for s in kernels[0].streams if s.tensor.name in ("K", "V", "C")}
    return shape.layers * sum(tensor.bytes for tensor in cached) // 4096


def test_the_latent_cache_is_as_small_as_deepseek_v2_says():
    """arXiv 2405.04434: as GQA with 2.25 groups (table 1); 93.3% below DeepSeek 67B (abstract).

    DeepSeek 67B has 95 layers with 8 KV heads of 128 (arXiv 2401.02954, table 2). V2's deployed
    cache has 6 bits an element on average (section 3.2.3), which the 93.3% include.
    """
    v2 = cache_bytes_a_token("deepseek-v2")
    assert v2 == 60 * 2.25 * 2 * 128 * 2
    deepseek_67b = 95 * 2 * 8 * 128 * 2
    assert 1 - v2 / deepseek_67b == pytest.approx(0.822, abs=5e-4)
    assert 1 - v2 * 6 / 16 / deepseek_67b == pytest.approx(0.933, abs=5e-4)
    assert cache_bytes_a_token("llama-3-8b") == 32 * 2 * 8 * 128 * 2


@pytest.mark.parametrize(
    ("schedule", "workload", "complaint"),
    [
        ({"name": "mla"}, {"model": "llama-3-8b"}, "latent_dim is missing"),
        ({"name": "h2o"}, {"model": "llama-3-8b", "seq_q": 2}, "seq_q = 2: it decodes one.*paged"),
        (
            {"name": "paged", "tile": {"q": 64, "kv": 48}},
            {"model": "llama-3-8b"},
            "tile.kv = 48: a power of two",
        ),
        ({"name": "paged", "page_size": 24}, {"model": "llama-3-8b"}, "page_size.*power of two"),
        (
            {"name": "flash_decoding"},
            {"model": "llama-3-8b", "kv_dtype": "fp32"},
            'kv_dtype = "fp32": fp8, int8, int4',
        ),
        ({"name": "flash2"}, {"model": "llama-3-8b", "kv_dtype": "int8"}, "kv_dtype"),
        (
            {"name": "streaming_llm"},
            {"model": "mistral-7b"},
            "workload.window = 4096: causal = false or causal = true, w",
        ),
        ({"name": "h2o", "heavy": 0}, {"model": "llama-3-8b"}, "heavy"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(schedule, workload, complaint):
    w = WorkloadTable(phase="decode", **workload).workload()
    with pytest.raises(InputError, match=complaint) as caught:
        make_schedule(schedule, "a test").program(w, H100)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "used"),
    [
        ({"name": "decode"}, 4 / 64),
        ({"name": "flash_decoding"}, 4 / 64),
        ({"name": "paged"}, 4 / 64),
        ({"name": "paged", "implementation": "flashinfer"}, 4 / 16),
        ({"name": "h2o"}, 4 / 64),
        ({"name": "flash2"}, 1 / 128),  # a CTA a query head
    ],
)
def test_decoding_says_how_many_rows_of_its_tile_are_no_padding(schedule, used):
    w = WorkloadTable(model="llama-3-8b", seq_kv=4096, phase="decode").workload()
    kernels = kernels_of(make_schedule(schedule, "a test").program(w, H100))
    assert kernels[0].rows_used == used
    assert all(kernel.rows_used is None for kernel in kernels[1:])  # combine, merge, ...


def test_a_record_says_how_many_rows_are_used_and_its_table_where_tokens_are_decoded():
    of = {}
    for phase in ("decode", "prefill"):
        workload = {"model": "llama-3-8b", "seq_len": 1000, "phase": phase}
        (of[phase],) = simulate(workload=workload, hardware="h100-sxm", schedule="flash2")
    assert of["decode"].rows_used == of["decode"].kernels[0].rows_used == 1 / 128
    assert of["prefill"].rows_used == 1000 / 1024
    assert "rows used" in [column.heading for column in columns_of([of["decode"]])]
    assert "rows used" not in [column.heading for column in columns_of([of["prefill"]])]
