"""Where the workers of a flash kernel's CTA meet, and what a loop without stages loads when."""

import pytest

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.machine import ctas_per_sm
from sim.schedules import make_schedule
from sim.schedules.parts.flash_cta import triton_kv_readers
from sim.tile_program import Barrier, Compute, Kernel
from tests.support.formulas import run, workload

H100, A100, L40S = map(load_profile, ("h100-sxm", "a100-sxm-80gb", "l40s"))


def kernel_of(hw, head_dim=128, **options) -> Kernel:
    w = workload(heads=2, head_dim=head_dim, seq_len=2048, causal=True)
    (kernel,) = kernels_of(make_schedule({"name": "flash2", **options}, "a test").program(w, hw))
    return kernel


def trip_of(kernel: Kernel) -> list[str]:
    """What the workers do in a trip: the computes' names, "meet", and what that loads."""
    told = []
    for action in kernel.loops[1].actions:
        if isinstance(action, Barrier):
            told.append(" ".join(["meet", *(load.stream.tensor.name for load in action.issues)]))
        elif isinstance(action, Compute):
            told.append(action.name)
    return told


S, SOFTMAX, PV = "S = Q K^T", "softmax", "O += P V"
# Of FlashAttention-2's warps, which bring operands themselves (operands.py).
BY_WARP_S, BY_WARP_PV = ([f"{name}: first operands", name] for name in (S, PV))


@pytest.mark.parametrize(
    ("hw", "head_dim", "options", "trip"),
    [
        pytest.param(
            H100, 128, {}, [*BY_WARP_S, SOFTMAX, *BY_WARP_PV], id="four warps run together"
        ),
        pytest.param(
            A100,
            192,
            {},
            ["meet", *BY_WARP_S, "meet", SOFTMAX, *BY_WARP_PV],
            id="eight of FA2",
        ),
        pytest.param(
            H100,
            128,
            {"implementation": "triton"},
            ["meet", S, "meet", SOFTMAX, "meet", PV],
            id="Triton's on Hopper",
        ),
        pytest.param(
            A100, 128, {"implementation": "triton"}, ["meet", S, SOFTMAX, PV], id="before Hopper"
        ),
        pytest.param(
            L40S,
            64,
            {"implementation": "sglang"},
            ["meet K", S, "meet V", SOFTMAX, PV],
            id="one stage",
        ),
        pytest.param(
            L40S,
            128,
            {"implementation": "sglang"},
            ["meet K", S, "meet", SOFTMAX, "meet V", PV],
            id="one stage, warps that share keys",
        ),
    ],
)
def test_workers_meet_where_the_machine_code_has_barriers(hw, head_dim, options, trip):
    assert trip_of(kernel_of(hw, head_dim, **options)) == trip


def test_tritons_one_stage_is_a_loop_that_loads_nothing_ahead_and_gives_v_the_place_of_k():
    options = {"implementation": "triton", "tile": {"q": 128, "kv": 64}, "warps": 4}
    one, two = (kernel_of(A100, 64, stages=stages, **options) for stages in (1, 2))
    assert [load.stages for load in one.loops[1].loads] == [0, 0]
    assert [load.stages for load in two.loops[1].loads] == [1, 1]
    # Q, and one tile of keys; the compiler says 24 KiB of SGLang's with 64 x 128 too.
    assert one.footprint.sram_bytes == (128 + 64) * 64 * 2


@pytest.mark.parametrize(
    ("hw", "head_dim", "compiled"),
    [
        (A100, 64, {2: 32_768, 3: 49_152, 4: 65_536}),
        (H100, 128, {2: 98_304, 3: 131_072}),
    ],
)
def test_a_stage_of_tritons_is_a_buffer_with_wgmma_and_one_fewer_without(hw, head_dim, compiled):
    """SRAM as Triton 3.9 compiles 128 x 64 for sm_80 (4 warps) and sm_90 (8)."""
    warps = 8 if hw is H100 else 4
    options = {"implementation": "triton", "tile": {"q": 128, "kv": 64}, "warps": warps}
    for stages, sram_bytes in compiled.items():
        kernel = kernel_of(hw, head_dim, stages=stages, **options)
        assert kernel.footprint.sram_bytes == sram_bytes


def test_flashattentions_one_buffer_is_filled_while_the_softmax_runs():
    assert [load.stages for load in kernel_of(A100, stages=1).loops[1].loads] == [1, 1]


def test_without_prefetch_triton_takes_longer():
    w = workload(heads=2, head_dim=64, seq_len=2048, causal=True)
    kernels = [kernel_of(A100, 64, implementation="triton", stages=stages) for stages in (1, 2)]
    (one,), (two,) = (run([kernel], A100, w) for kernel in kernels)
    assert one.time_s > 1.1 * two.time_s


def test_sglangs_registers_leave_an_sm_one_cta_of_eight_warps_and_two_of_four():
    ctas = {d: kernel_of(L40S, d, implementation="sglang").footprint for d in (64, 128)}
    assert ctas_per_sm(ctas[64], L40S) == 2
    assert ctas_per_sm(ctas[128], L40S) == 1


def test_sglangs_kernel_is_of_prefill_alone():
    schedule = make_schedule({"name": "flash2", "implementation": "sglang"}, "a test")
    w = workload(heads=2, head_dim=64, seq_len=512, phase="training")
    with pytest.raises(InputError, match=r'"sglang": workload\.phase = "training"'):
        schedule.program(w, A100)


@pytest.mark.parametrize(
    ("device", "rows", "readers"), [("b200", 128, 1), ("b200", 256, 2), ("h100-sxm", 128, 2)]
)
def test_tcgen05_reads_keys_once_for_128_rows_and_wgmma_once_a_warp_group(device, rows, readers):
    assert triton_kv_readers(load_profile(device), rows, warps=8) == readers


def test_tritons_attention_on_a_b200_reads_as_much_sram_as_its_tcgen05():
    """Q and K, K's copy, V and its copy: 5 blocks of 128 x 128 a trip, no second reading."""
    kernel = kernel_of(load_profile("b200"), implementation="triton")
    matmuls = [op for op in kernel.loops[1].ops if isinstance(op, Compute) and op.mma_flops]
    assert sum(op.sram_bytes for op in matmuls) == 5 * 128 * 128 * 2
