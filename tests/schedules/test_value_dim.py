"""V of other columns than K: FLOPs and bytes by closed forms, tiles as the kernels have them."""

from dataclasses import replace

import pytest

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.schedules import make_schedule
from sim.tile_program import Compute, Kernel
from tests.support.formulas import run

A100, L40S, H100, B200 = (
    load_profile(name) for name in ("a100-sxm-80gb", "l40s", "h100-sxm", "b200")
)
TAKING = [
    ("flash2", "trtllm", A100),
    ("flash2", "trtllm", L40S),
    ("flash2", "sglang", L40S),
    ("flash3", "fa3", H100),
    ("flash3", "trtllm", H100),
    ("flash4", "trtllm-gen", B200),
    ("flash4", "fa4", B200),
]


def deepseek(**given) -> AttentionWorkload:
    sides = {"heads": 2, "head_dim": 192, "value_dim": 128, "seq_len": 768, "dtype": "bf16"}
    return WorkloadTable(**(sides | given)).workload()


def kernel_of(name: str, implementation: str, w: AttentionWorkload, hw, **options) -> Kernel:
    table = {"name": name, "implementation": implementation, **options}
    (kernel,) = kernels_of(make_schedule(table, "a test").program(w, hw))
    return kernel


def flops(kernel: Kernel) -> int:
    return sum(
        op.mma_flops * trips
        for loop, trips in zip(kernel.loops, kernel.trips.sum(axis=1).tolist(), strict=True)
        for op in loop.actions
        if isinstance(op, Compute)
    )


@pytest.mark.parametrize(("name", "implementation", "hw"), TAKING)
def test_scores_go_by_the_columns_of_k_and_o_by_those_of_v(name, implementation, hw):
    w = deepseek()
    kernel = kernel_of(name, implementation, w, hw)
    assert flops(kernel) == 2 * w.heads * 768 * 768 * (192 + 128)
    widths = {tensor.name: tensor.cols for tensor in kernel.tensors if tensor.name in "QKVO"}
    assert widths == {"Q": 192, "K": 192, "V": 128, "O": 128}


@pytest.mark.parametrize(("name", "implementation", "hw"), TAKING)
def test_with_an_endless_l2_each_is_read_and_written_once(name, implementation, hw):
    w = deepseek()
    endless = hw.with_figures({"l2.capacity": 1e12, "calibration.l2.effective_capacity": 1.0})
    (ran,) = run([kernel_of(name, implementation, w, endless)], endless, w)
    assert ran.hbm_read_bytes == 2 * w.heads * 768 * (192 + 192 + 128)


def test_tensorrt_llm_reads_q_with_every_block_of_keys():
    """fused_multihead_flash_attention_kernel_noloop_tiled.h, RELOAD_Q."""
    w, no_l2 = deepseek(), A100.with_figures({"l2.capacity": 0.0})
    (ran,) = run([kernel_of("flash2", "trtllm", w, no_l2)], no_l2, w)
    down, across = 768 // 64, 768 // 128
    q_bytes, kv_bytes = across * 768 * 192 * 2, down * 768 * (192 + 128) * 2
    assert ran.hbm_read_bytes == w.heads * (q_bytes + kv_bytes)


@pytest.mark.parametrize(
    ("name", "implementation", "hw", "options", "tile", "sram_bytes"),
    [
        # setup.py, enumerate_hgmma_flash_warpspec_kernels: 208 KiB
        ("flash3", "trtllm", H100, {}, (128, 128), 208 * 1024),
        # tile_size.h: Q, two stages of K and V
        ("flash3", "fa3", H100, {}, (128, 128), 2 * (128 * 192 + 2 * 128 * (192 + 128))),
        ("flash3", "sglang", H100, {"call": "paged"}, (128, 96), None),
        # traits.h, Traits_tile_size: two slices of Q and K, two halves of V
        ("flash2", "trtllm", L40S, {}, (64, 128), 2 * 2 * ((64 + 128) * 64 + 64 * 128)),
        # of the 199,296 that flashinfer-cubin states for ...HQk192HV128...: two buffers as K's
        ("flash4", "trtllm-gen", B200, {}, (256, 128), 2 * (256 * 192 + 2 * 128 * 192)),
    ],
)
def test_tiles_are_the_public_kernels(name, implementation, hw, options, tile, sram_bytes):
    kernel = kernel_of(name, implementation, deepseek(), hw, **options)
    rows = next(s.tile_rows for s in kernel.streams if s.tensor.name == "Q")
    keys = next(s.tile_rows for s in kernel.streams if s.tensor.name == "K")
    assert (rows, keys) == tile
    assert sram_bytes in (None, kernel.footprint.sram_bytes)


@pytest.mark.parametrize(
    ("hw", "head_dim", "tile"),
    [(A100, 64, (128, 128)), (A100, 128, (64, 128)), (L40S, 64, (64, 32))],
)
def test_tensorrt_llms_tiles_of_one_head_dim(hw, head_dim, tile):
    """setup.py, enumerate_hmma_flash_kernels_base, tiled_params_q_kv_step."""
    kernel = kernel_of("flash2", "trtllm", deepseek(head_dim=head_dim, value_dim=None), hw)
    rows, keys = (
        next(s.tile_rows for s in kernel.streams if s.tensor.name == name) for name in "QK"
    )
    assert (rows, keys) == tile


def test_partial_results_of_ranges_are_as_wide_as_v():
    w = replace(deepseek(), seq_q=64)
    table = {"name": "flash3", "splits": 3}
    split, combine = kernels_of(make_schedule(table, "a test").program(w, H100))
    assert {t.cols for t in split.tensors if t.name == "O of splits"} == {128}
    assert {t.cols for t in combine.tensors if t.name == "O"} == {128}


@pytest.mark.parametrize(
    ("name", "implementation", "hw", "given", "complaint"),
    [
        ("flash2", "cuda", A100, {}, "V as wide as K was expected, filled up by the caller"),
        ("flash2", "triton", A100, {}, 'implementation = "sglang" takes others'),
        ("flash2", "trtllm", A100, {"head_dim": 128, "value_dim": 64}, '"trtllm" 128 beside 192'),
        ("flash3", "fa3", H100, {"value_dim": 64}, "V as wide as K was expected, or 128 beside"),
        ("flash4", "cutlass", B200, {}, "fa4 and trtllm-gen 192 with value_dim = 128"),
        ("flash2", "trtllm", A100, {"phase": "training"}, 'workload.phase = "training"'),
    ],
)
def test_what_no_kernel_has_is_refused_in_a_line(name, implementation, hw, given, complaint):
    with pytest.raises(InputError, match=complaint):
        kernel_of(name, implementation, deepseek(**given), hw)


def test_a_model_with_latents_has_its_own_v_which_kernels_without_it_fill_up():
    """deepseek-ai/DeepSeek-V3, config.json: v_head_dim."""
    w = WorkloadTable(model="deepseek-v3", seq_len=1024, dtype="bf16").workload()
    assert (w.head_dim, w.value_dim) == (192, 128)
    wide = WorkloadTable(model="deepseek-v3", head_dim=192, seq_len=1024, dtype="bf16").workload()
    assert wide.value_dim is None
    for name, hw, columns in (("flash3", H100, 128), ("flash2", H100, 192), ("flash4", B200, 128)):
        kernel, *_ = kernels_of(make_schedule({"name": name}, "a test").program(w, hw))
        widths = {tensor.name: tensor.cols for tensor in kernel.tensors if tensor.name in "VO"}
        assert widths == {"V": columns, "O": columns}
