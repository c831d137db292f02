"""Linear-time kin of attention: bytes and FLOPs against formulas, and what does not grow."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.device.program import kernels_of
from sim.device.run import run_on_device
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules import SCHEDULES
from tests.support.drawn import cases, devices, lowered
from tests.support.formulas import ceil, run
from tests.support.same_runs import assert_engines_agree

LINEAR = ("linear_attention", "gated_delta_net", "mamba2")


def prefill(case):
    """The drawn case with all tokens as queries."""
    w, schedule = case
    return replace(w, seq_q=w.seq_kv, phase="prefill"), schedule


def column_bytes(w, width, count=None):
    """Each head's column of (tokens, heads) elements, in the sectors of 32 bytes it lies in."""
    count = count or w.kv_heads
    heads = np.arange(count)
    a_sector = 32 // width
    first = heads // a_sector * a_sector
    elements = (np.minimum(first + a_sector, count) - first).sum()
    return w.batch * w.seq_kv * width * int(elements)


@given(cases("linear_attention"), devices(l2="0 B"))
@settings(max_examples=40)
def test_linear_attention_moves_its_states_once_and_its_chunks_once_a_block(case, hw):
    w, schedule = prefill(case)
    *cumsum, states, outputs = run(lowered(schedule, w, hw), hw, w)
    chunks, across = ceil(w.seq_kv, schedule.chunk), ceil(w.head_dim, 64)
    sums = column_bytes(w, 4) if schedule.gate else 0
    assert len(cumsum) == schedule.gate
    for kernel in cumsum:
        assert kernel.hbm_read_bytes == column_bytes(w, w.dtype_bytes)
        assert kernel.hbm_write_bytes == sums
    kv, q, size = w.batch * w.kv_heads, w.batch * w.heads, w.dtype_bytes
    matrix = w.seq_kv * w.head_dim * size
    of_states = chunks * w.head_dim**2 * size
    assert states.hbm_read_bytes == kv * 2 * across * matrix + across**2 * sums
    assert states.hbm_write_bytes == kv * of_states
    whole = q * (across * 2 * matrix + of_states + matrix)
    assert outputs.hbm_read_bytes == whole + q // kv * across * sums
    assert outputs.hbm_write_bytes == q * matrix
    cube = 64 * 64 * schedule.chunk
    assert states.executed("mma_flops") == kv * chunks * across**2 * 2 * cube
    square = schedule.chunk**2 * 64
    assert outputs.executed("mma_flops") == (
        q * chunks * (across**2 * 2 * (cube + square) + across * 2 * square)
    )


@given(cases("gated_delta_net"), devices(l2="0 B"))
@settings(max_examples=40)
def test_gated_delta_net_moves_what_each_of_its_eight_kernels_must(case, hw):
    w, schedule = prefill(case)
    n, d, width = w.seq_kv, w.head_dim, w.dtype_bytes
    of_q, of_v = w.batch * w.kv_heads, w.batch * w.heads
    chunks, across, matrix = ceil(n, 64), ceil(d, 64), n * d * width
    normal_q, normal_k, cumsum, zero, solve, wy, states, outputs = run(
        lowered(schedule, w, hw), hw, w
    )
    for kernel in (normal_q, normal_k):
        assert kernel.hbm_read_bytes == of_q * matrix
        assert kernel.hbm_write_bytes == of_q * (matrix + 4 * n)
    beta, sums = column_bytes(w, width, w.heads), column_bytes(w, 4, w.heads)
    assert (cumsum.hbm_read_bytes, cumsum.hbm_write_bytes) == (beta, sums)
    assert (zero.hbm_read_bytes, zero.hbm_write_bytes) == (0, of_v * n * 64 * width)
    assert solve.hbm_read_bytes == of_v * matrix + beta + sums
    own_end = (np.arange(n) // 16 % 4 + 1) * 16  # columns up to a row's own block of 16
    assert solve.hbm_write_bytes == of_v * int(own_end.sum()) * width
    assert solve.executed("mma_flops") == of_v * chunks * 2 * (
        10 * 16**2 * 64 * across + 16 * 16**3
    )
    assert wy.hbm_read_bytes == of_v * (n * 64 * width + 2 * matrix) + beta + sums
    assert wy.hbm_write_bytes == of_v * 2 * matrix
    assert wy.executed("mma_flops") == of_v * chunks * 2 * across * 2 * 64**3
    columns = 32 if of_v * ceil(d, 32) <= hw.sm.count else 64
    of_states, walks = of_v * chunks * d * d * width, ceil(d, columns)
    assert states.hbm_read_bytes == of_v * (2 * walks + 1) * matrix + walks * sums
    assert states.hbm_write_bytes == of_states + of_v * matrix
    assert states.executed("mma_flops") == (
        of_v * chunks * walks * 2 * 2 * 64 * (64 * across) * columns
    )
    assert outputs.hbm_read_bytes == of_v * (2 * across + 1) * matrix + of_states + across * sums
    assert outputs.hbm_write_bytes == of_v * matrix


@given(cases("mamba2"), devices(l2="0 B"))
@settings(max_examples=40)
def test_mamba2_moves_what_each_of_its_five_kernels_must(case, hw):
    w, schedule = prefill(case)
    cumsum, added, passed, products, scan = run(lowered(schedule, w, hw), hw, w)
    n, size, state, chunk = w.seq_kv, w.head_dim, schedule.state, schedule.chunk
    heads, groups = w.batch * w.heads, w.batch * min(schedule.groups, w.heads)
    chunks, width = ceil(n, chunk), w.dtype_bytes
    assert cumsum.hbm_read_bytes == heads * n * width
    assert cumsum.hbm_write_bytes == 2 * heads * n * 4
    down, across = ceil(size, 64), ceil(state, 128)
    x_bytes, b_bytes, sums = n * size * width, n * state * width, 2 * n * 4
    assert added.hbm_read_bytes == heads * (
        across * x_bytes + down * b_bytes + down * across * sums
    )
    states = heads * chunks * size * state
    assert added.hbm_write_bytes == passed.hbm_read_bytes == 4 * states
    assert passed.hbm_write_bytes == width * states
    # C and B once for each block of 64 of the other that the chunk has.
    tokens = [min(chunk, n - start) for start in range(0, n, chunk)]
    rows = sum(length * ceil(length, 64) for length in tokens)
    assert products.hbm_read_bytes == groups * 2 * rows * state * width
    assert products.hbm_write_bytes == groups * chunks * chunk**2 * 4
    rows = min(128, chunk)
    slices = squares = 0  # tokens of X, and elements of C B^T, up to each block's diagonal
    for length in tokens:
        for start in range(0, length, rows):
            seen = min(start + rows, ceil(length, 32) * 32)
            slices += min(seen, length)
            squares += rows * seen
    blocks = sum(ceil(length, rows) for length in tokens)
    assert scan.hbm_read_bytes == heads * (
        down * (b_bytes + 4 * squares + 2 * 4 * slices)
        + blocks * size * state * width
        + slices * size * width
    )
    assert scan.hbm_write_bytes == heads * x_bytes


@given(cases(*LINEAR), devices(l2="0 B"), st.integers(1, 50))
@settings(max_examples=30)
def test_decoding_reads_and_writes_the_state_whatever_the_context(case, hw, more):
    w, schedule = case
    w = replace(w, seq_q=1, phase="decode")
    (ran,) = run(lowered(schedule, w, hw), hw, w)
    longer = replace(w, seq_kv=w.seq_kv + more)
    (again,) = run(lowered(schedule, longer, hw), hw, longer)
    assert (ran.hbm_read_bytes, ran.time_s) == (again.hbm_read_bytes, again.time_s)
    if schedule.name == "mamba2":
        state = w.batch * w.heads * w.head_dim * schedule.state * w.dtype_bytes
        out = w.batch * w.heads * w.head_dim * w.dtype_bytes
    else:
        own = w.heads if schedule.name == "gated_delta_net" else w.kv_heads
        state = w.batch * own * w.head_dim**2 * 4
        out = w.batch * w.heads * w.head_dim * w.dtype_bytes
    assert ran.hbm_write_bytes == state + out
    assert ran.hbm_read_bytes > state


@pytest.mark.parametrize("name", LINEAR)
def test_work_grows_with_the_length_where_attention_s_grows_with_its_square(name):
    hw = load_profile("h100-sxm")
    flops = {}
    for schedule in (name, "flash2"):
        for length in (4096, 8192):
            w = WorkloadTable(heads=2, head_dim=64, seq_len=length, causal=True).workload()
            runs = run(kernels_of(SCHEDULES[schedule]().program(w, hw)), hw, w)
            flops[schedule, length] = sum(ran.executed("mma_flops") for ran in runs)
    assert flops[name, 8192] == 2 * flops[name, 4096]
    assert flops["flash2", 8192] > 3.9 * flops["flash2", 4096]


@pytest.mark.parametrize("name", LINEAR)
def test_a_state_takes_no_part_of_a_sequence(name):
    w = WorkloadTable(heads=2, head_dim=64, seq_q=5, seq_kv=10, causal=True).workload()
    with pytest.raises(InputError, match="seq_q = seq_kv = 10"):
        SCHEDULES[name]().check(w)


@given(cases("gated_delta_net"), devices())
@settings(max_examples=30)
def test_both_engines_agree_on_gated_delta_net(case, hw):
    w, schedule = case
    assert_engines_agree(lowered(schedule, w, hw), hw, w.dtype)


@pytest.mark.parametrize(
    ("workload", "told"),
    [
        ({"dtype": "fp8", "head_dim": 64}, 'workload.dtype = "fp8"'),
        ({"head_dim": 512}, "head_dim of at most 256"),
        (
            {"head_dim": 64, "phase": "training"},
            'phase = "training": prefill or decode was',
        ),
        (
            {"head_dim": 64, "causal": False},
            "causal = false: causal = true, without a window, was",
        ),
    ],
)
def test_gated_delta_net_says_what_its_kernels_take(workload, told):
    table = {"heads": 2, "seq_len": 64, "causal": True, **workload}
    with pytest.raises(InputError, match=told):
        SCHEDULES["gated_delta_net"]().check(WorkloadTable(**table).workload())


@given(cases("memorizing"), devices(l2="0 B"))
@settings(max_examples=40)
def test_memorizing_searches_its_memory_and_reads_what_it_found_by_rows(case, hw):
    w, schedule = case
    kernels = lowered(schedule, w, hw)
    _, search, attend = run(kernels, hw, w)
    q_rows = kernels[1].streams[0].tile_rows
    key_rows = kernels[1].streams[1].tile_rows
    matrices, row_bytes = w.batch * w.heads, w.head_dim * w.dtype_bytes
    position = np.arange(w.seq_q) + w.seq_kv - w.seq_q
    end = np.maximum(0, position + 1 - schedule.keep_window)
    first = np.maximum(0, end - schedule.memory)
    keys = 0
    for start in range(0, w.seq_q, q_rows):
        low = first[start] // key_rows * key_rows
        high = ceil(int(end[start : start + q_rows].max()), key_rows) * key_rows
        keys += max(0, min(high, w.seq_kv) - low)
    assert search.hbm_read_bytes == matrices * (w.seq_q + keys) * row_bytes
    assert search.hbm_write_bytes == matrices * w.seq_q * schedule.retrieve * 4
    found = int(np.minimum(end - first, schedule.retrieve).sum())
    assert attend.hbm_read_bytes == matrices * (
        (2 * w.seq_q + 2 * found) * row_bytes + w.seq_q * schedule.retrieve * 4
    )
    assert attend.hbm_write_bytes == matrices * w.seq_q * row_bytes
    numbers, starts = schedule.found_keys(w)
    for row in range(w.seq_q):
        own = numbers[starts[row] : starts[row + 1]]
        assert len(set(own)) == len(own) == min(end[row] - first[row], schedule.retrieve)
        assert all((own >= first[row]) & (own < end[row]))


@given(cases("lm2"), devices(l2="0 B"))
@settings(max_examples=30)
def test_lm2_is_flash2_and_an_unmasked_one_over_the_slots_and_two_passes(case, hw):
    w, schedule = case
    kernels = lowered(schedule, w, hw)
    attention, read, gate, write = run(kernels, hw, w)
    q_rows = kernels[1].streams[0].tile_rows
    matrices, row_bytes = w.batch * w.heads, w.head_dim * w.dtype_bytes
    blocks = ceil(w.seq_q, q_rows)
    assert read.hbm_read_bytes == matrices * (w.seq_q + blocks * 2 * schedule.slots) * row_bytes
    assert gate.hbm_read_bytes == 2 * gate.hbm_write_bytes == 2 * matrices * w.seq_q * row_bytes
    bank = matrices * schedule.slots * row_bytes
    assert (write.hbm_read_bytes, write.hbm_write_bytes) == (2 * bank, bank)
    assert attention.executed("mma_flops") >= w.useful_flops


@given(cases("retrieval"), devices(l2="0 B"))
@settings(max_examples=30)
def test_retrieval_reads_the_index_once_and_attends_to_a_context_of_fixed_length(case, hw):
    w, schedule = case
    search, choice, *attention = run(lowered(schedule, w, hw), hw, w)
    chunks, width = ceil(w.seq_kv, schedule.chunk_tokens), w.dtype_bytes
    vectors = ceil(chunks, 128) * w.batch + chunks  # batch is below a block of questions
    assert search.hbm_read_bytes == vectors * schedule.embedding_dim * width
    assert search.hbm_write_bytes == choice.hbm_read_bytes == w.batch * chunks * 4
    assert choice.hbm_write_bytes == w.batch * schedule.top * 4
    context = min(w.seq_kv, schedule.top * schedule.chunk_tokens)
    short = replace(w, seq_kv=context, seq_q=1 if w.phase == "decode" else context)
    alone = SCHEDULES["flash_decoding" if w.phase == "decode" else "flash2"].model_validate(
        schedule.model_dump(include={"tile", "implementation", "stages", "warps"})
    )
    expected = run(lowered(alone, short, hw), hw, short)
    assert sum(ran.hbm_read_bytes for ran in attention) == sum(r.hbm_read_bytes for r in expected)


# pytorch/helion, examples/fla/BENCHMARKS.md (commit fea89d20): fla's chunk_linear_attn on an H100,
# forward, bf16, ms. Its two small shapes take what a call takes of the host (0.14); with 32
# matrices the serial kernel of the states is 0.16 short here.
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "head_dim", "measured_ms"),
    [(1, 8192, 96, 128, 0.726), (4, 4096, 64, 128, 0.950), (8, 2048, 32, 256, 1.338)],
)
def test_linear_attention_takes_what_fla_s_kernels_do_on_an_h100(
    batch, tokens, heads, head_dim, measured_ms
):
    table = {"batch": batch, "heads": heads, "head_dim": head_dim, "seq_len": tokens}
    w = WorkloadTable(**table, dtype="bf16", causal=True).workload()
    assert time_s("linear_attention", w, "h100-sxm") == pytest.approx(1e-3 * measured_ms, rel=0.1)


# fla-org/flash-linear-attention, pull request 50: batch 16, 8 heads of 128, chunks of 64, ms. Its
# card is not named; both kernels move their bytes at 0.87 to 0.90 TB/s, as an RTX 4090's do.
@pytest.mark.parametrize(
    ("tokens", "gated_ms", "mamba2_ms"),
    [(2048, 0.776, 1.596), (4096, 1.527, 3.160), (16384, 6.221, 12.453)],
)
def test_mamba2_and_gated_linear_attention_take_what_was_measured_on_a_card_of_1_tb_a_second(
    tokens, gated_ms, mamba2_ms
):
    table = {"batch": 16, "heads": 8, "head_dim": 128, "seq_len": tokens}
    w = WorkloadTable(**table, dtype="bf16", causal=True).workload()
    gated = time_s("linear_attention", w, "rtx-4090", gate=True)
    mamba2 = time_s("mamba2", w, "rtx-4090", chunk=64, groups=8)
    assert gated == pytest.approx(1e-3 * gated_ms, rel=0.1)
    assert mamba2 == pytest.approx(1e-3 * mamba2_ms, rel=0.1)


# PaddlePaddle/flash-attention, pull request 133: fla's chunk_gdn, forward, bf16, on an H800, ms.
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "measured_ms"), [(1, 8192, 96, 2.033), (2, 16384, 16, 1.342)]
)
def test_gated_delta_net_takes_what_fla_s_kernels_do_on_an_h800(batch, tokens, heads, measured_ms):
    table = {"batch": batch, "heads": heads, "head_dim": 128, "seq_len": tokens}
    w = WorkloadTable(**table, dtype="bf16", causal=True).workload()
    assert time_s("gated_delta_net", w, "h800-sxm") == pytest.approx(1e-3 * measured_ms, rel=0.16)


def time_s(name, w, profile, **options):
    """Simulated seconds; of long kernels a part is replayed."""
    hw = load_profile(profile)
    program = SCHEDULES[name](**options).program(w, hw)
    ran = run_on_device(program, hw, w.dtype, "replay", lambda _: None, most_steps=10**6)
    return ran.time_s
