"""XQA's decoding, over an fp8 cache on Hopper and elsewhere: tiles, ranges, bytes and merge."""

from dataclasses import replace

import numpy as np
import pytest

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.schedules import make_schedule
from sim.schedules.parts.xqa import Played
from sim.tile_program import Compute
from tests.support.formulas import run
from tests.support.same_runs import assert_engines_agree

H100 = load_profile("h100-sxm")
NO_L2 = load_profile("h100-sxm", {"l2": {"capacity": "0 B"}}, "a test")


def decoding(**table) -> AttentionWorkload:
    usual = {"head_dim": 128, "phase": "decode", "kv_dtype": "fp8"}
    return WorkloadTable(**(usual | table)).workload()


def kernels(w, hw=H100, name="flash_decoding", **options):
    return kernels_of(make_schedule({"name": name} | options, "a test").program(w, hw))


def is_xqa(kernel) -> bool:
    return kernel.footprint.threads == 384


def test_three_ctas_fit_an_sm_each_with_two_buffers_of_64_keys_and_values():
    """35 KB and at most 56 registers (flashinfer-ai/flashinfer, pull request 4904; mha_sm90.cu)."""
    (kernel,) = kernels(decoding(heads=8, kv_heads=1, seq_kv=4096), splits=3)
    took = kernel.footprint
    assert took.sram_bytes == 4 * 64 * 128 + 16 * 128 * 2
    assert 65536 // (took.threads * took.registers_per_thread) == 3
    (load,) = {op for op in kernel.loops[1].loads if op.stream.tensor.name == "K"}
    assert (load.stages, load.stream.tile_rows) == (2, 64)


@pytest.mark.parametrize(
    ("changed", "options", "hw"),
    [
        ({}, {}, "a100-sxm-80gb"),
        ({"kv_dtype": "int8"}, {}, "h100-sxm"),
        ({"heads": 66, "kv_heads": 2}, {}, "h100-sxm"),
        ({"window": 100}, {}, "h100-sxm"),
        ({}, {"tile": {"q": 16, "kv": 128}}, "h100-sxm"),
    ],
)
def test_other_caches_devices_heads_and_tiles_have_other_kernels(changed, options, hw):
    w = decoding(**({"heads": 8, "kv_heads": 1, "seq_kv": 4096} | changed))
    assert not is_xqa(kernels(w, load_profile(hw), **options)[0])
    assert is_xqa(kernels(decoding(heads=8, kv_heads=1, seq_kv=4096))[0])


@pytest.mark.parametrize(
    ("batch", "kv_heads", "seq_kv", "ranges"),
    [(32, 1, 32768, 32), (1, 2, 4096, 16), (64, 2, 16384, 8), (512, 8, 1024, 1), (1, 1, 100, 1)],
)
def test_ranges_are_tensorrt_llm_s(batch, kv_heads, seq_kv, ranges):
    """computeMultiBlockCount: sqrt(8 n) at most of n ranges of 128 keys, and 8 waves."""
    w = decoding(batch=batch, heads=8 * kv_heads, kv_heads=kv_heads, seq_kv=seq_kv)
    (kernel,) = kernels(w)
    assert kernel.ctas == batch * kv_heads * ranges


@pytest.mark.parametrize("name", ["flash_decoding", "paged"])
def test_the_cache_is_read_once_and_partials_once_in_the_dtype_of_o(name):
    w = decoding(batch=2, heads=8, kv_heads=1, seq_kv=4096)
    (kernel,) = kernels(w, NO_L2, name, splits=4)
    (ran,) = run([kernel], NO_L2, w)
    o_bytes, lse_bytes = 2 * 8 * 128 * 2, 2 * 8 * 4
    cache_bytes, q_bytes = 2 * 2 * 4096 * 128, 2 * 8 * 128 * 2
    partial = 4 * (o_bytes + lse_bytes)
    assert ran.hbm_write_bytes == partial + o_bytes + lse_bytes
    read = ran.hbm_read_bytes - (cache_bytes + 4 * q_bytes + partial)
    assert read == 0 if name == "flash_decoding" else 0 < read < 64 * 1024  # page numbers
    merging = kernel.loops[-2].trips(np.arange(kernel.ctas))
    assert sorted(merging) == [0] * 6 + [4, 4]  # the last range's CTA of each sequence


def test_both_engines_agree():
    hw = load_profile("h100-sxm", {"sm": {"count": 2}}, "a test")
    w = decoding(batch=2, heads=8, kv_heads=1, seq_kv=1024)
    for name in ("flash_decoding", "paged"):
        assert_engines_agree(kernels(w, hw, name, splits=3), hw, w.dtype)


def test_nothing_of_the_cache_is_made_wider():
    w = decoding(heads=8, kv_heads=1, seq_kv=4096)
    (fp8,) = kernels(w, splits=1)
    names = [op.name for op in fp8.actions if isinstance(op, Compute)]
    assert not [name for name in names if "ready" in name]
    in_16_bits = kernels(replace(w, kv_dtype=None), splits=1)[0]
    assert fp8.footprint.sram_bytes < in_16_bits.footprint.sram_bytes


# --- the kernel of all others ------------------------------------------------------------------

L40S = load_profile("l40s")
SIXTEEN = {"kv_dtype": None, "heads": 16, "kv_heads": 2}


def xqa(w, hw=L40S, **options):
    return kernels(w, hw, "paged", implementation="xqa", page_size=64, **options)


@pytest.mark.parametrize(
    ("hw", "head_dim", "kv_dtype", "sram_bytes"),
    [
        # Q and P of 16 rows, two slices of 4 x 64 keys' 64 or 128 bytes and of 32 or 64 keys' V
        # for each 64 columns of four warps (mha.cu, SharedMem).
        ("l40s", 128, None, 2 * 16 * (128 + 256) + 2 * (256 * 64 + 2 * 32 * 256)),
        ("l40s", 64, "fp8", 2 * 16 * (64 + 256) + 2 * (256 * 64 + 4 * 32 * 64)),
        ("h100-sxm", 128, None, 2 * 16 * (128 + 256) + 2 * (256 * 128 + 2 * 64 * 256)),
    ],
)
def test_one_cta_fits_an_sm(hw, head_dim, kv_dtype, sram_bytes):
    hw = load_profile(hw)
    w = decoding(**SIXTEEN | {"head_dim": head_dim, "kv_dtype": kv_dtype}, seq_kv=4096)
    took = xqa(w, hw)[0].footprint
    assert (took.sram_bytes, took.threads) == (sram_bytes, 256)
    assert 2 * (took.sram_bytes + 1024) > hw.sram.capacity


@pytest.mark.parametrize(
    ("hw", "kv_dtype", "ranges"),
    [("l40s", None, 16), ("l40s", "fp8", 1), ("h100-sxm", "fp8", 16), ("a100-sxm-80gb", "fp8", 1)],
)
def test_an_fp8_cache_is_not_split_before_hopper(hw, kv_dtype, ranges):
    w = decoding(**SIXTEEN | {"kv_dtype": kv_dtype}, batch=2, seq_kv=4096)
    (kernel,) = xqa(w, load_profile(hw))
    assert kernel.ctas == 2 * 2 * ranges
    assert is_xqa(kernel) == (hw == "h100-sxm")  # three warp groups


def test_behind_a_window_as_many_ctas_begin_and_one_reads_whole_tiles():
    w = decoding(**SIXTEEN, batch=2, seq_kv=4096, window=200)
    (kernel,), (whole,) = xqa(w), xqa(replace(w, window=None))
    assert kernel.ctas == whole.ctas
    read = sum(
        loop.trips(np.arange(kernel.ctas)) * load.stream.tile_rows
        for loop in kernel.loops
        for load in loop.loads
        if load.stream.tensor.name == "K"
    )
    # 3,896 is the first key shown: in tile 15, of which all 256 keys are read.
    assert sorted(read) == [0] * (kernel.ctas - 4) + [256] * 4


@pytest.mark.parametrize(
    ("hw", "kv_dtype", "head_dim", "cycles", "last"),
    # Played through, as nvcc 13.0 compiles csrc/xqa/mha.cu: a tile, and its P V alone.
    [
        ("h100-sxm", None, 64, 2303, 1376),
        ("h100-sxm", None, 128, 3684, 2648),
        ("l40s", None, 64, 2855, 2258),
        ("l40s", None, 128, 5261, 4386),
        ("l40s", "fp8", 64, 4219, 3065),
        ("l40s", "fp8", 128, 8478, 6436),
    ],
)
def test_a_tile_and_its_last_matmul_take_what_their_code_does(hw, kv_dtype, head_dim, cycles, last):
    w = decoding(**SIXTEEN | {"kv_dtype": kv_dtype, "head_dim": head_dim}, seq_kv=1024)
    played = Played.of(w, load_profile(hw))
    assert (played.tile.cycles, played.last.cycles) == pytest.approx((cycles, last), rel=0.01)


def test_each_cta_finds_its_range_and_those_with_keys_wait_for_the_last_tile():
    w = decoding(**SIXTEEN, batch=2, seq_kv=4096, window=200)
    (kernel,) = xqa(w)
    trips = {
        op.name: loop.trips(np.arange(kernel.ctas)).sum()
        for loop in kernel.loops
        for op in loop.actions
        if isinstance(op, Compute)
    }
    assert not kernel.sets_up
    assert trips["find the range"] == kernel.ctas
    assert trips["O += P V of the last tile"] == 4  # of 2 sequences' 2 KV heads


def test_hoppers_kernel_cuts_what_a_window_shows():
    """nbTilesInUse (mha_sm90.cu): of 64 keys each, and other CTAs return."""
    whole, behind = (
        xqa(decoding(heads=8, kv_heads=1, batch=2, seq_kv=4096, **table), H100)[0]
        for table in ({}, {"window": 100})
    )
    assert (behind.ctas, whole.ctas) == (2 * 2, 2 * 16)


@pytest.mark.parametrize(
    ("changed", "options", "hw"),
    [
        ({"seq_q": 2}, {}, "l40s"),
        ({"head_dim": 96}, {}, "l40s"),
        ({"kv_dtype": "int8"}, {}, "l40s"),
        ({"heads": 66}, {}, "l40s"),
        ({}, {"tile": {"q": 16, "kv": 128}}, "l40s"),
        ({}, {"pack_gqa": False}, "l40s"),
        ({}, {}, "t4"),
    ],
)
def test_what_no_xqa_kernel_takes_is_refused(changed, options, hw):
    w = decoding(**SIXTEEN | {"dtype": "fp16", "seq_kv": 1024} | changed)
    with pytest.raises(InputError, match=r"xqa"):
        xqa(w, load_profile(hw), **options)


def test_both_engines_agree_on_the_other_kernel():
    hw = load_profile("l40s", {"sm": {"count": 2}}, "a test")
    for table in ({}, {"window": 100}, {"kv_dtype": "fp8"}):
        w = decoding(**SIXTEEN | table, batch=1, seq_kv=1000)
        assert_engines_agree(xqa(w, hw), hw, w.dtype)
