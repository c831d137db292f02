"""XQA's decoding over an fp8 cache on Hopper: its tile, ranges, bytes and merge."""

from dataclasses import replace

import numpy as np
import pytest

from sim.device.program import kernels_of
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.schedules import make_schedule
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
