"""Latent attention's public kernels: tiles, grids, splits and bytes, each as its source has it."""

from dataclasses import replace
from math import ceil as up
from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.machine import ctas_per_sm, idle_cta_s
from sim.schedules import SCHEDULES, make_schedule
from sim.schedules.base import Tile
from sim.schedules.parts.latent_splits import (
    even_pieces,
    fa3_splits,
    flashinfer_pieces,
    triton_splits,
)
from sim.tile_program import Barrier, Compute, Kernel, Load
from tests.support.drawn import devices, lowered, of_one_query
from tests.support.formulas import ceil, run

H100, A100, L40S = (load_profile(name) for name in ("h100-sxm", "a100-sxm-80gb", "l40s"))
B200 = load_profile("b200")
ROW_BYTES, V_BYTES = 576 * 2, 512 * 2  # of DeepSeek's latents in 16 bits


def deepseek(**given) -> AttentionWorkload:
    table = {"model": "deepseek-v3", "phase": "decode", "dtype": "bf16", "seq_kv": 4096} | given
    return WorkloadTable(**table).workload()


def program(implementation: str, w: AttentionWorkload, hw: HardwareProfile, **options):
    table = {"name": "mla", "implementation": implementation, **options}
    return kernels_of(make_schedule(table, "a test").program(w, hw))


def split_kernel(implementation: str, w: AttentionWorkload, hw: HardwareProfile) -> Kernel:
    return next(k for k in program(implementation, w, hw) if k.name == "mla")


def stream_of(kernel: Kernel, tensor: str, cols: int | None = None):
    return next(
        s for s in kernel.streams if s.tensor.name == tensor and cols in (None, s.tile_cols)
    )


# --- what a CTA is: tile, threads, SRAM, registers -------------------------------------------


@pytest.mark.parametrize(
    ("implementation", "device", "tile", "threads", "sram_bytes"),
    [
        # Q, two blocks, P: traits.h
        ("flashmla", H100, (64, 64), 256, ROW_BYTES * (64 + 2 * 64) + 64 * 64 * 2),
        # and a producer warp group: mainloop_fwd_sm90_tma_gmma_ws.hpp
        ("fa3", H100, (64, 64), 384, ROW_BYTES * (64 + 2 * 64) + 64 * 64 * 2),
        ("trtllm", H100, (64, 64), 256, ROW_BYTES * (64 + 2 * 64) + 64 * 64 * 2),
        # P lies where the turned elements of K were: mla_hopper.cuh
        ("flashinfer", H100, (64, 64), 256, ROW_BYTES * (64 + 2 * 64)),
        # the very bytes that DISPATCH_SMEM_CONFIG of mla.cuh asks an SM for
        ("flashinfer", load_profile("b200"), (64, 64), 256, 221_696),
        ("flashinfer", A100, (64, 32), 256, 147_968),
        ("flashinfer", L40S, (64, 16), 256, 92_672),
        # as Triton 3.9 compiles vLLM's kernel for sm_80, sm_89 and sm_90
        ("triton", A100, (16, 32), 128, 89_088),
        ("triton", L40S, (16, 32), 128, 89_088),
        ("triton", H100, (16, 32), 128, 89_088),
    ],
)
def test_tiles_threads_and_sram_are_the_public_kernels(
    implementation, device, tile, threads, sram_bytes
):
    kernel = split_kernel(implementation, deepseek(), device)
    q, c = stream_of(kernel, "Q"), stream_of(kernel, "C")
    assert (q.tile_rows, c.tile_rows) == tile
    assert kernel.footprint.threads == threads
    assert kernel.footprint.sram_bytes == sram_bytes
    assert kernel.footprint.registers_per_thread * threads <= 65_536


@pytest.mark.parametrize(("device", "ctas"), [(A100, 1), (L40S, 1), (H100, 2)])
def test_of_tritons_kernel_an_sm_holds_one_before_hopper(device, ctas):
    assert ctas_per_sm(program("triton", deepseek(), device)[0].footprint, device) == ctas


@pytest.mark.parametrize("device", [A100, L40S])
def test_tensorrt_llm_before_hopper_has_slices_of_q_and_k_and_half_of_o(device):
    """tiled_params_q_kv_step, CTA_P_TILE_K, CTA_O_TILE_K, CTA_O_TILE_N: 48 KiB in two buffers."""
    (kernel,) = program("trtllm", deepseek(batch=3), device)
    shapes = {
        (s.tensor.name, s.tile_rows, s.tile_cols) for s in kernel.streams if s.tensor.cols > 500
    }
    assert shapes == {("Q", 64, 64), ("C", 64, 64), ("C", 16, 256), ("O", 64, 256)}
    assert kernel.footprint.sram_bytes == 2 * 2 * (64 * 64 + 64 * 64 + 16 * 256)
    assert kernel.footprint.threads == 128
    assert kernel.ctas == 3 * (128 // 64) * (512 // 256)


# --- who works on what -----------------------------------------------------------------------


def lengths(longest: int):
    """Of one length, or of any."""
    own = st.integers(1, longest)
    alike = st.tuples(own, st.integers(1, 300)).map(lambda of: [of[0]] * of[1])
    return alike | st.lists(own, min_size=1, max_size=30)


@given(lengths(40_000), st.integers(1, 40), st.integers(1, 200), st.sampled_from([8, 256]))
@settings(max_examples=200)
def test_sglangs_ranges_are_those_of_its_kernel(keys, head_blocks, sms, most):
    """get_num_kv_splits_triton."""
    longest, shortest = max(keys), min(keys)
    if longest * 8 < shortest * 10:
        shortest = longest
    chunks = [up(longest / min(up(longest / shortest), most))]
    slots = int(sms * max(log2(longest / 64), 1.0))
    chunks.append(up(longest / min(up(slots / (len(keys) * head_blocks)), most)))
    device = load_profile("h100-sxm", {"sm": {"count": sms}}, "a test")
    published = [max(up(own / chunk) for chunk in chunks) for own in keys]
    assert triton_splits(keys, head_blocks, device, most) == published


def test_sglang_cuts_one_sequence_of_latents_in_as_many_ranges_as_blocks_of_keys_of_it_need():
    """_mla_decode_kv_splits_cap: 256 on 142 SMs, each of two blocks of 32 keys; vLLM up to 4."""
    kernel, _ = program("sglang", deepseek(batch=1, heads=64, seq_kv=16_384), L40S)
    assert kernel.ctas == 4 * 256
    assert set(kernel.trips[1].tolist()) == {2}
    assert [tensor.name for tensor in kernel.tensors].count("C") == 1
    loads = [op for loop in kernel.loops for op in loop.ops if isinstance(op, Load)]
    assert sum(load.stream.tensor.name == "C" for load in loads) == 1


def fa3_as_published(m_blocks: int, n_blocks: list[int], sms: int) -> list[int]:
    """num_splits_heuristic for the longest alone, then prepare_varlen_num_blocks_kernel."""

    def most(longest: int) -> int:
        if m_blocks >= 0.8 * sms or longest <= 4:
            return 1
        efficiency = []
        for splits in range(1, min(128, sms, longest) + 1):
            waves = m_blocks * splits / sms
            efficiency.append(waves / up(waves))
        return next(n for n, share in enumerate(efficiency, 1) if share >= 0.85 * max(efficiency))

    static = most(max(n_blocks))
    if static == 1:
        return [1] * len(n_blocks)
    per_sm = up(m_blocks * sum(n_blocks) * 1.1 / sms)
    return [max(min((own + per_sm - 1) // per_sm, static), 1) for own in n_blocks]


@given(lengths(600), st.integers(1, 4), st.integers(1, 200))
@settings(max_examples=200)
def test_fa3s_ranges_are_those_of_its_scheduler(n_blocks, m_blocks, sms):
    device = load_profile("h100-sxm", {"sm": {"count": sms}}, "a test")
    published = fa3_as_published(m_blocks, n_blocks, sms)
    assert list(fa3_splits(n_blocks, m_blocks, device)) == published


@given(st.integers(1, 60), st.integers(1, 2), st.integers(1, 20_000), st.integers(4, 150))
@settings(max_examples=150)
def test_flashinfers_plan_has_each_block_once_and_no_more_partials_than_it_allocates(
    sequences, head_blocks, seq_kv, sms
):
    tile = Tile(q=64, kv=64)
    parts = flashinfer_pieces([seq_kv] * sequences, head_blocks, tile, sms)
    clusters = sms // head_blocks
    assert len(parts) <= clusters
    pieces = [piece for part in parts for piece in part]
    visited = sorted((s, b) for s, first, count in pieces for b in range(first, first + count))
    blocks = ceil(seq_kv, 64)
    assert visited == [(s, b) for s in range(sequences) for b in range(blocks)]
    # MLAPlan: partial_o has room for two row tiles a cluster.
    if len(pieces) > sequences:
        assert len(pieces) <= 2 * clusters
    # Each went where least was to do (cost_function).
    costs = [[2 * 64 * head_blocks + count * 64 for _, _, count in part] for part in parts]
    loads = [sum(part) for part in costs] + [0] * (clusters - len(parts))
    assert max(loads) - min(loads) <= max(max(part) for part in costs)


@given(st.integers(1, 20), st.integers(1, 100), st.integers(1, 12))
def test_even_ranges_have_each_block_once_and_differ_by_the_last(sequences, key_blocks, splits):
    cut = [key_blocks] * sequences
    pieces = [piece for part in even_pieces(cut, [splits] * sequences) for piece in part]
    visited = [(s, b) for s, first, count in pieces for b in range(first, first + count)]
    assert visited == [(s, b) for s in range(sequences) for b in range(key_blocks)]
    sizes = {count for _, first, count in pieces if first + count < key_blocks}
    assert len(sizes) <= 1
    assert len(pieces) <= sequences * splits


def test_tritons_grid_is_sequences_then_blocks_of_heads_then_ranges():
    """vLLM's four ranges: (batch, cdiv(heads, 16), NUM_KV_SPLITS), the first fastest."""
    w = deepseek(batch=3, heads=32, kv_heads=32)
    kernel, combine = program("triton", w, A100, splits=4)
    assert kernel.ctas == 3 * 2 * 4
    rows = stream_of(kernel, "Q").base(kernel.items)  # sequence * 2 + block of heads
    once = [0, 2, 4, 1, 3, 5]
    assert rows.tolist() == once * 4
    assert combine.ctas == 3 * 32  # a CTA a row: _fwd_kernel_stage2
    assert combine.footprint.threads == 128


def test_tritons_copies_wait_for_the_numbers_of_their_pages():
    kernel = split_kernel("triton", deepseek(), A100)
    trip = kernel.loops[1].actions
    assert [type(action) for action in trip[:3]] == [Barrier, Compute, Barrier]
    numbers, addresses, copies = trip[:3]
    assert [load.stream.tensor.name for load in numbers.issues] == ["page table"]
    assert addresses.reads == numbers.issues
    assert [load.stream.tensor.name for load in copies.issues] == ["C", "C"]
    # An SM holds one such CTA: nothing hides what a trip of a range waits for.
    trips, latencies = kernel.trips[1].max(), sum(getattr(a, "latencies", 0) for a in trip)
    waits_s = 2 * A100.calibration.l2.latency + latencies * A100.calibration.sm.op_latency
    assert run([kernel], A100, deepseek())[0].time_s > trips * waits_s


def test_triton_combines_even_one_range_and_flash_mla_launches_a_kernel_that_does_nothing():
    """csrc/api/dense_decode.h launches it with every call, combine.cu returns of one split."""
    w = deepseek(batch=132, heads=16, kv_heads=16, seq_kv=64)
    moved = {}
    for implementation, options in {"triton": {"splits": 1}, "flashmla": {}, "fa3": {}}.items():
        kernels = program(implementation, w, H100, **options)
        moved[implementation] = {
            k.name: r.l2_read_bytes for k, r in zip(kernels, run(kernels, H100, w), strict=True)
        }
    assert moved["triton"]["combine"] == 132 * 16 * (512 + 1) * 4
    assert moved["flashmla"]["combine"] == 0
    assert "combine" not in moved["fa3"]


def test_who_decides_with_every_call_has_a_kernel_for_it_first():
    """TensorRT-LLM's single thread goes through all parts, and through all sequences."""
    w = deepseek(batch=64)
    names = {i: program(i, w, H100)[0].name for i in ("flashmla", "flashinfer", "triton")}
    assert set(names.values()) == {"mla"}
    fa3, trtllm = program("fa3", w, H100)[0], program("trtllm", w, H100)[0]
    assert [k.name for k in (fa3, trtllm)] == ["plan", "plan"]
    parts = split_kernel("trtllm", w, H100).ctas // 2
    assert trtllm.tile_steps - fa3.tile_steps == parts + 64 - 1
    assert next(k.name for k in program("trtllm", w, H100, plan=False)) == "mla"


@pytest.mark.parametrize(
    ("heads", "batch", "seq_kv", "tile", "splits", "shared_by"),
    [
        # selectMlaGenerationKernel: up to 32 heads are turned; 148 SMs, 512 keys a range at least
        (16, 8, 16384, (16, 64), 18, 1),
        (16, 128, 8192, (16, 64), 1, 1),
        (32, 1, 4096, (16, 64), 8, 1),
        # 64 are, of few keys a CTA: 4 x 4 CTAs, 9 ranges of 228 keys, of which 4 of 512 are left
        (64, 4, 2048, (16, 64), 4, 1),
        (64, 64, 8192, (64, 64), 2, 1),
        (128, 64, 4096, (64, 128), 1, 2),
        (128, 8, 8192, (64, 128), 8, 2),  # 9, each of 8 of 64 blocks: the last has none
    ],
)
def test_trtllm_gens_tiles_and_ranges_are_its_launchers(
    heads, batch, seq_kv, tile, splits, shared_by
):
    w = deepseek(batch=batch, heads=heads, kv_heads=heads, seq_kv=seq_kv)
    kernels = program("trtllm", w, B200)
    kernel = kernels[0]
    q, c = stream_of(kernel, "Q"), stream_of(kernel, "C")
    assert (q.tile_rows, c.tile_rows, c.tiles_across) == (*tile, shared_by)
    assert kernel.ctas == batch * ceil(heads, tile[0]) * splits
    assert [k.name for k in kernels] == (["mla", "combine"] if splits > 1 else ["mla"])
    assert kernel.footprint.sram_bytes <= 223_880  # the most of its kernels (...2CtaKeepsAbForGen)


def test_a_pair_of_ctas_loads_the_keys_once():
    """128 heads are two blocks of rows: each reads half of every row of the cache."""
    hw = load_profile("b200", {"l2": {"capacity": "0 B"}}, "a test")
    w = deepseek(batch=3, heads=128, kv_heads=128, seq_kv=8192)
    (kernel, _) = kernels = program("trtllm", w, hw)
    (split, _) = run(kernels, hw, w)
    queries = kernel.ctas // (3 * 2) * 3 * 128
    numbers = split.hbm_read_bytes - (queries + 3 * 8192) * ROW_BYTES
    assert 0 < numbers <= 2 * 3 * 8192 / 128 * 32  # of pages


def test_64_rows_take_tcgen05_as_long_as_128():
    flops = {
        heads: run(program("trtllm", w, B200), B200, w)[0].executed("mma_flops")
        for heads in (64, 128)
        for w in [deepseek(batch=64, heads=heads, kv_heads=heads, seq_kv=8192)]
    }
    assert flops[64] == flops[128] == 64 * 8192 * 128 * 2 * (576 + 512)


def test_flash_mla_with_its_plan_is_as_fast_as_people_measured():
    """16 heads, batch 128, 1k tokens, H100, asked in public: 71 to 84 us; within 15%."""
    w = deepseek(batch=128, heads=16, kv_heads=16, seq_kv=1024)
    runs = run(program("flashmla", w, H100, plan=True), H100, w)
    taken_s = sum(r.time_s + H100.calibration.launch.gap for r in runs)
    assert taken_s == pytest.approx(77.5e-6, rel=0.15)


# --- bytes and FLOPs -------------------------------------------------------------------------


@given(of_one_query("mla"), devices(l2="0 B"), st.none() | st.integers(1, 6))
@settings(max_examples=60)
def test_triton_reads_v_beside_k_for_each_16_heads(case, hw, splits):
    w = replace(case[0], dtype="bf16")
    schedule = SCHEDULES["mla"](implementation="triton", splits=splits)
    kernels = lowered(schedule, w, hw)
    runs = run(kernels, hw, w)
    width, down, blocks = w.latent_dim + w.rope_dim, ceil(w.heads, 16), ceil(w.seq_kv, 32)
    pieces = kernels[0].ctas // down
    cache_bytes = down * w.batch * blocks * (32 * (width + w.latent_dim) * 2 + 32)
    assert runs[0].hbm_read_bytes == cache_bytes + pieces * w.heads * width * 2
    partial_bytes = 4 * pieces * w.heads * (w.latent_dim + 1)
    assert runs[0].hbm_write_bytes == runs[1].hbm_read_bytes == partial_bytes
    flops = 2 * 16 * 32 * (width + w.latent_dim)
    assert runs[0].executed("mma_flops") == flops * down * w.batch * blocks


@given(of_one_query("mla"), devices(l2="0 B"))
@settings(max_examples=60)
def test_flashinfers_partials_are_16_bits_wide_and_small_sms_score_twice(case, hw):
    w = replace(case[0], dtype="bf16")
    kernels = lowered(SCHEDULES["mla"](implementation="flashinfer"), w, hw)
    ran = run(kernels, hw, w)[0]
    width, down = w.latent_dim + w.rope_dim, ceil(w.heads, 64)
    keys = {"sm90": 64, "sm80": 32, "sm89": 16}[hw.arch]
    blocks = ceil(w.seq_kv, keys)
    parts = flashinfer_pieces(w.keys, down, Tile(q=64, kv=keys), hw.sm.count)
    pieces = sum(map(len, parts))
    partial = pieces if pieces > w.batch else 0
    row, partial_row = 2 * w.latent_dim + 4, 2 * w.latent_dim + 4
    whole = 0 if partial else w.batch
    assert ran.hbm_write_bytes == w.heads * (whole * row + partial * partial_row)
    copies = 2 if hw.arch == "sm89" else 1
    flops = 2 * 64 * keys * (copies * width + w.latent_dim)
    assert ran.executed("mma_flops") == flops * down * w.batch * blocks


@given(of_one_query("mla"), devices(l2="0 B", names=("a100-sxm-40gb", "rtx-4090")))
@settings(max_examples=60)
def test_tensorrt_llm_before_hopper_reads_q_with_every_block_and_splits_nothing(case, hw):
    w = replace(case[0], dtype="bf16", latent_dim=512, rope_dim=64)
    (kernel,) = lowered(SCHEDULES["mla"](implementation="trtllm"), w, hw)
    ran = run([kernel], hw, w)[0]
    blocks, down = ceil(w.seq_kv, 64), ceil(w.heads, 64)
    visits = 2 * w.batch * blocks  # both halves of O
    q_bytes = visits * w.heads * 576 * 2
    k_bytes, v_bytes = visits * down * 64 * 576 * 2, visits * down * 64 * 256 * 2
    numbers = visits * down * 32  # with every page
    assert ran.hbm_read_bytes == q_bytes + k_bytes + v_bytes + numbers
    assert ran.hbm_write_bytes == w.batch * w.heads * 512 * 2
    assert ran.executed("mma_flops") == visits * down * 2 * 64 * 64 * (576 + 256)


def test_without_splits_a_sequence_takes_as_long_beside_others_as_alone():
    """A CTA has all keys: so it is on an A100 until its 108 SMs are full."""
    one, eight = (
        run(program("trtllm", deepseek(batch=batch), A100), A100, deepseek())[0].time_s
        for batch in (1, 8)
    )
    assert eight == pytest.approx(one, rel=0.05)
    assert one > 10 * sum(
        k.time_s for k in run(program("flashmla", deepseek(), A100), A100, deepseek())
    )


def test_an_8_bit_cache_is_cast_whole_before_fa3_reads_it():
    """SGLang, flashattention_backend.py: get_key_buffer(layer).to(q.dtype)."""
    no_l2 = load_profile("h100-sxm", {"l2": {"capacity": "0 B"}}, "a test")
    w = deepseek(batch=2, seq_kv=1024, kv_dtype="fp8")
    cast, _, split, *_ = program("fa3", w, no_l2)
    ran = run([cast, split], no_l2, w)
    elements = 2 * 1024 * 576
    assert (ran[0].hbm_read_bytes, ran[0].hbm_write_bytes) == (elements, 2 * elements)
    plain = run([split_kernel("fa3", replace(w, kv_dtype=None), no_l2)], no_l2, w)[0]
    assert ran[1].hbm_read_bytes == plain.hbm_read_bytes


def test_pytorch_casts_an_8_bit_cache_as_fast_as_measured():
    """Two `fit` rows of SGLang on an H100 agree on some 335 elements a nanosecond."""
    w = deepseek(batch=64, seq_kv=4096, kv_dtype="fp8")
    cast, *_ = program("fa3", w, H100)
    elements = 64 * 4096 * 576
    assert elements / run([cast], H100, w)[0].time_s == pytest.approx(335e9, rel=0.02)


def test_fa3_s_partial_results_leave_registers_a_sector_at_a_time():
    """hopper/epilogue_fwd.hpp, store_O_direct: eight rows of 32 bytes a warp, a cycle each."""

    def ending(implementation: str) -> list[int]:
        kernel = split_kernel(implementation, deepseek(batch=1, heads=64, seq_kv=16384), H100)
        return [op.sram_bytes for op in kernel.actions if op_name(op) == "O / l"]

    def op_name(op) -> str:
        return op.name if isinstance(op, Compute) else ""

    cycles = 64 * 512 * 4 // 32
    assert ending("fa3") == [0, 128 * (cycles - cycles // 2)]  # the port's cycles beside the L1's
    assert ending("flashmla") == [0, 0]


def test_in_8_bits_on_hopper_v_is_turned_in_sram_beside_itself():
    plain, turned = (
        split_kernel("trtllm", deepseek(dtype=dtype), H100) for dtype in ("bf16", "fp8")
    )

    def turning(kernel: Kernel) -> list[Compute]:
        return [op for op in kernel.actions if isinstance(op, Compute) and op.name == "turn V"]

    assert not turning(plain)
    (turn,) = turning(turned)
    assert turn.sram_bytes == 2 * 64 * 512
    held = 576 * (64 + 2 * 64) + 64 * 64
    assert turned.footprint.sram_bytes == held + 64 * 512


# --- what cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "workload", "device", "complaint"),
    [
        ({"implementation": "fa3"}, {}, "a100-sxm-80gb", "is sm80: its kernel runs on sm90"),
        ({"implementation": "flashinfer"}, {}, "t4", "needs 92672 bytes of SRAM"),
        ({"implementation": "fa3"}, {"dtype": "fp8"}, "h100-sxm", "it multiplies in 16 bits"),
        ({"splits": 4}, {}, "h100-sxm", 'splits = 4: implementation = "flashmla" has a rule'),
        ({"implementation": "triton", "plan": True}, {}, "h100-sxm", "has no kernel for it"),
        ({}, {"kv_dtype": "fp8"}, "h100-sxm", 'kv_dtype = "fp8": its K and V are of'),
        ({"implementation": "fa3"}, {"kv_dtype": "int8"}, "h100-sxm", 'kv_dtype = "int8"'),
        ({"implementation": "cuda"}, {}, "h100-sxm", "implementation"),
    ],
)
def test_what_no_kernel_does_is_said_in_one_line(options, workload, device, complaint):
    table = {"name": "mla", **options}
    w, device = deepseek(**workload), load_profile(device)
    with pytest.raises(InputError, match=complaint) as caught:
        make_schedule(table, "a test").program(w, device)
    assert "\n" not in str(caught.value)


def test_sglang_sets_up_latents_as_its_machine_code_does():
    """2,395 cycles and a read of L2, where the architecture's setup is 2.3 us."""
    w = deepseek(batch=1, heads=16, seq_kv=32)
    kernel = split_kernel("sglang", w, L40S)
    (own,), (usual,) = (run([one], L40S, w) for one in (kernel, replace(kernel, sets_up=None)))
    assert usual.time_s - own.time_s == pytest.approx(L40S.calibration.sm.cta_setup, rel=1e-9)
    setup = next(one for one in kernel.loops[0].ops if isinstance(one, Compute))
    waited_s = setup.latencies * L40S.calibration.sm.op_latency
    waited_s -= L40S.calibration.l2.latency
    assert waited_s * L40S.sm.clock + setup.other_ops / 32 / 4 == pytest.approx(2_395, rel=0.02)


def test_sglang_s_grid_has_all_ranges_that_there_may_be_and_idle_ones_cost_a_start():
    """triton_ops/decode_attention.py: grid (batch, blocks of heads, max_kv_splits)."""
    w, hw = deepseek(batch=64, seq_kv=1024), L40S.with_figures({"sm.clock": 2.22e9})
    kernel = split_kernel("sglang", w, hw)
    assert kernel.ctas == 64 * 8 * 256  # of 142 SMs
    assert kernel.irregular
    # Nearly all are idle, one an SM at a time.
    ran = run([kernel], hw, w)[0]
    assert ran.time_s > 64 * 8 * 256 / 142 * idle_cta_s(hw)
    assert ran.time_s == pytest.approx(690e-6, rel=0.1)  # measured, `fit`, less what is beside it


@pytest.mark.parametrize(
    ("implementation", "hw", "ctas_a_row_block", "least_s", "most_s"),
    [
        ("fa3", H100, 4, 3e-6, 7e-6),  # 86 parts by fours, columns apart
        ("flashmla", H100, 1, 10e-6, 20e-6),  # 52 one after the other
        ("trtllm", B200, 1, 3e-6, 7e-6),  # 32 by fours
    ],
)
def test_partial_results_are_on_their_way_as_many_at_a_time_as_a_kernel_asks_for(
    implementation, hw, ctas_a_row_block, least_s, most_s
):
    w = deepseek(batch=1, heads=64, seq_kv=16384)
    kernels = program(implementation, w, hw)
    combine = kernels[-1]
    assert combine.ctas == ctas_a_row_block * 64 // 8
    assert least_s < run(kernels, hw, w)[-1].time_s < most_s
