"""SGLang's prefill in Triton: which blocks a trip is for, and what a trip takes."""

import numpy as np
import pytest

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.schedules import make_schedule
from sim.tile_program import Kernel
from tests.support.formulas import run

L40S, A100, H100 = (load_profile(name) for name in ("l40s", "a100-sxm-80gb", "h100-sxm"))
Q, KV = 64, 128  # extend_attention.py on sm89


def prompt(**table) -> AttentionWorkload:
    sides = {"heads": 1, "head_dim": 64, "dtype": "bf16", "causal": True}
    sides |= {} if "seq_q" in table else {"seq_len": 4096}
    return WorkloadTable(**(sides | table)).workload()


def kernel_of(w: AttentionWorkload, hw=L40S, **options) -> Kernel:
    table = {"name": "flash2", "implementation": "sglang", **options}
    (kernel,) = kernels_of(make_schedule(table, "a test").program(w, hw))
    return kernel


def test_behind_a_window_every_block_up_to_the_diagonal_is_a_trip_hidden_or_seen():
    """SKIP_TILE leaves out the rest of a trip, not the trip."""
    whole, windowed = kernel_of(prompt()), kernel_of(prompt(window=128))
    _, all_blocks, _ = whole.trips
    _, hidden, seen, _ = windowed.trips
    assert (hidden + seen == all_blocks).all()
    rows = np.arange(4096 // Q)
    assert hidden.tolist() == (np.maximum(0, rows * Q - 127) // KV).tolist()


def test_all_heads_of_a_block_of_rows_go_before_the_next_and_the_longest_last():
    kernel = kernel_of(prompt(heads=3, batch=2, seq_len=512))
    assert kernel.trips[1].tolist() == [blocks for row in range(8) for blocks in 6 * [row // 2 + 1]]


def test_another_order_is_refused():
    with pytest.raises(InputError, match="its own grid_order and key_order"):
        kernel_of(prompt(), grid_order="swizzled")


@pytest.mark.parametrize(
    ("dtype", "window", "cycles"),
    # Of a lone CTA, played: a block that is seen, in either dtype; a hidden one.
    [("bf16", None, 7_032), ("fp8", None, 4_407), ("bf16", 128, 3_739)],
)
def test_a_lone_ctas_trip_takes_what_its_machine_code_does_when_played(dtype, window, cycles):
    """The tensor cores at their datasheet's rate, and no wait for memory, as when it was played."""
    figures = {"calibration.l2.latency": 0.0, "calibration.hbm.latency": 0.0}
    figures |= {"calibration.tensor.native": 1.0, "calibration.sm.op_latency": 1e-9}
    hw = L40S.with_figures(figures)
    took = {}
    for length in (8192, 16384):
        w = prompt(seq_q=Q, seq_kv=length, window=window, dtype=dtype)
        took[length] = run([kernel_of(w, hw)], hw, w)[0].time_s
    trips = 8192 // KV
    assert (took[16384] - took[8192]) / trips * hw.sm.clock == pytest.approx(cycles, rel=0.05)


def test_warps_of_a_warp_groups_matmul_and_those_that_share_keys_are_left_as_they_were():
    for hw, head_dim in ((H100, 64), (L40S, 128), (A100, 128)):
        kernel = kernel_of(prompt(head_dim=head_dim), hw)
        (softmax,) = (op for op in kernel.loops[1].ops if getattr(op, "name", "") == "softmax")
        assert softmax.latencies < 20
