"""trtllm-gen's decoding: its tile, ranges and bytes, told anew from its launcher."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.schedules import make_schedule
from sim.tile_program import Barrier, Compute
from tests.support.formulas import ceil, run
from tests.support.same_runs import assert_engines_agree

B200 = load_profile("b200")
NO_L2 = load_profile("b200", {"l2": {"capacity": "0 B"}}, "a test")


def decoding(**table) -> AttentionWorkload:
    return WorkloadTable(**({"head_dim": 128, "phase": "decode"} | table)).workload()


def kernels(w, hw=B200, **options):
    table = {"name": "paged", "implementation": "trtllm-gen", "page_size": 64}
    return kernels_of(make_schedule(table | options, "a test").program(w, hw))


@pytest.mark.parametrize(
    ("group", "seq_q", "rows"),
    [(1, 1, 16), (8, 1, 16), (16, 1, 16), (17, 1, 32), (64, 1, 64), (8, 9, 128), (8, 40, 128)],
)
def test_the_tile_has_the_fewest_rows_that_hold_a_sequences(group, seq_q, rows):
    """selectGqGenerationKernel; 8 rows are 16 here."""
    w = decoding(heads=2 * group, kv_heads=2, seq_q=seq_q, seq_kv=4096, causal=True)
    q = next(s for s in kernels(w)[0].streams if s.tensor.name == "Q")
    assert q.tile_rows == rows


@pytest.mark.parametrize(
    ("dtype", "head_dim", "blocks_of_128"), [("bf16", 128, 4), ("bf16", 64, 8), ("fp8", 128, 8)]
)
def test_shared_memory_is_the_kernels(dtype, head_dim, blocks_of_128):
    """The metadata says 140,896, 155,312 and 153,264 bytes, barriers and an odd ninth included."""
    w = decoding(heads=16, kv_heads=2, seq_kv=4096, head_dim=head_dim, dtype=dtype)
    kernel = kernels(w)[0]
    element_bytes = 1 if dtype == "fp8" else 2
    held = (16 + blocks_of_128 * 128) * head_dim * element_bytes
    assert kernel.footprint.sram_bytes == held <= 155_312
    assert kernel.footprint.workers == 2


@pytest.mark.parametrize(
    ("batch", "kv_heads", "seq_kv", "ranges"),
    [(1, 2, 16384, 32), (8, 8, 4096, 2), (64, 2, 16384, 1), (1, 1, 600, 2), (1, 1, 512, 1)],
)
def test_ranges_fill_the_sms_once_with_512_keys_at_least(batch, kv_heads, seq_kv, ranges):
    """computeCtaAndClusterConfig: min(ceil(keys / 512), SMs / CTAs)."""
    w = decoding(batch=batch, heads=8 * kv_heads, kv_heads=kv_heads, seq_kv=seq_kv)
    assert ranges == min(ceil(seq_kv, 512), max(1, 148 // (batch * kv_heads)))
    names = [kernel.name for kernel in kernels(w)]
    assert kernels(w)[0].ctas == batch * kv_heads * ranges
    assert len(names) == (2 if ranges > 16 else 1)  # a cluster has at most 16 CTAs


@given(
    st.integers(1, 3), st.sampled_from((1, 4, 8)), st.integers(1, 3000), st.sampled_from((64, 128))
)
@settings(max_examples=40)
def test_a_cluster_reads_each_key_once_and_writes_the_result_alone(batch, group, seq_kv, head_dim):
    w = decoding(
        batch=batch, heads=2 * group, kv_heads=2, seq_kv=seq_kv, head_dim=head_dim, dtype="fp16"
    )
    (kernel,) = kernels(w, NO_L2, splits=min(8, ceil(seq_kv, 256)))
    (ran,) = run([kernel], NO_L2, w)
    ranges = kernel.ctas // (batch * 2)
    keys, rows = 2 * batch * 2 * seq_kv * head_dim * 2, batch * 2 * group
    numbers = ran.hbm_read_bytes - keys - ranges * rows * head_dim * 2
    assert 0 < numbers <= 2 * batch * (ranges + ceil(seq_kv, 256)) * 32
    assert ran.hbm_write_bytes == rows * (head_dim * 2 + 4)
    assert_engines_agree([kernel], NO_L2, w.dtype)


@given(st.integers(75, 120), st.integers(1, 700))
@settings(max_examples=10)
def test_unsplit_tiles_are_taken_one_after_the_other_by_ctas_that_set_up_once(batch, seq_kv):
    """Cluster launch control (UGETNEXTWORKID in its machine code): tiles beyond 148 wait for it."""
    w = decoding(batch=batch, heads=8, kv_heads=2, seq_kv=seq_kv, head_dim=64, dtype="fp16")
    (kernel,) = kernels(w, NO_L2)
    assert (kernel.ctas, kernel.dealt_tiles, kernel.splits) == (148, 2 * batch, 1)
    assert not kernel.sets_up_items
    (ran,) = run([kernel], NO_L2, w)
    keys, queries = 2 * batch * 2 * seq_kv * 64 * 2, batch * 8 * 64 * 2
    numbers = ran.hbm_read_bytes - keys - queries
    assert 0 < numbers <= 2 * batch * (1 + ceil(seq_kv, 256)) * 32
    assert ran.hbm_write_bytes == queries + batch * 8 * 4
    assert_engines_agree([kernel], NO_L2, w.dtype)


def test_its_matmuls_read_each_tile_once_and_softmax_groups_wait_for_no_page_number():
    trip = kernels(decoding(heads=16, kv_heads=2, seq_kv=4096, batch=64))[0].loops[1]
    assert not any(isinstance(action, Barrier) for action in trip.actions)  # nor for each other
    scores, softmax, sums = (action for action in trip.actions if isinstance(action, Compute))
    keys, rows, row_bytes = 256, 8, 128 * 2
    assert scores.sram_bytes == rows * row_bytes + 2 * keys * row_bytes
    assert sums.sram_bytes == 2 * keys * row_bytes
    assert not softmax.reads


def test_a_long_cache_is_read_at_what_hbm_sustains():
    """8 x 16,384 tokens, 32 heads: 309 us on a B200 (NVIDIA's aiconfigurator, SGLang 0.5.14)."""
    w = decoding(batch=8, heads=32, kv_heads=32, seq_kv=16384, dtype="bf16")
    (ran,) = run(kernels(w), B200, w)
    assert ran.time_s == pytest.approx(309e-6, rel=0.05)


@pytest.mark.parametrize(
    ("table", "device", "complaint"),
    [
        ({}, "h100-sxm", 'hardware.arch = "sm90"'),
        ({"kv_dtype": "fp8"}, "b200", 'workload.kv_dtype = "fp8": Q, K and V of one dtype'),
        ({"dtype": "fp32"}, "b200", 'workload.dtype = "fp32"'),
    ],
)
def test_what_it_does_not_take_is_one_line(table, device, complaint):
    with pytest.raises(InputError, match=complaint) as raised:
        kernels(decoding(heads=8, seq_kv=512, **table), load_profile(device))
    assert "\n" not in str(raised.value)
