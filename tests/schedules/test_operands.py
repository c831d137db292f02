"""Operands that warps bring from SRAM themselves: those of a matmul's first step come before it."""

import pytest

from sim.device.program import kernels_of
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.machine import latency_s
from sim.schedules.flash2 import Flash2
from sim.schedules.paged import Paged
from sim.schedules.parts.operands import multiplied
from sim.tile_program import Compute, Footprint, Kernel, Loop, once
from tests.support.formulas import run

A100 = load_profile("a100-sxm-80gb")
ROW = 128 * 2  # bytes of head_dim 128


def test_a_matmul_moves_the_same_bytes_in_two_steps_as_in_one():
    first, rest = multiplied("S", (), 4096, 800, 128, written_bytes=50, other_ops=7)
    assert (first.sram_bytes, first.mma_flops, first.other_ops) == (100, 0, 0)
    assert (rest.sram_bytes, rest.mma_flops, rest.other_ops) == (750, 4096, 7)


def test_a_sum_of_one_step_reads_all_of_it_first():
    first, rest = multiplied("S", (), 4096, 800, 16)
    assert (first.sram_bytes, rest.sram_bytes) == (800, 0)


def test_what_reads_nothing_is_one_step():
    (alone,) = multiplied("O", (), 4096, 0, 128, written_bytes=50)
    assert alone.sram_bytes == 50


def cycles_a_trip(schedule, rows: int, keys: int, ctas: int) -> float:
    """Of all CTAs of an SM, K and V in L2, with power to spare."""
    hw = A100.model_copy(update={"power": None})

    def time_s(seq_kv: int) -> float:
        w = WorkloadTable(
            batch=1, heads=108 * ctas, kv_heads=4, seq_q=rows, seq_kv=seq_kv, head_dim=128
        ).workload()
        return run(kernels_of(schedule.program(w, hw)), hw, w)[0].time_s

    return (time_s(16 * keys) - time_s(8 * keys)) / 8 * hw.sm.clock


@pytest.mark.parametrize(
    ("schedule", "rows", "keys", "played"),
    [
        (Flash2(), 128, 64, (3192, 5278)),
        (Paged(splits=1), 64, 128, (4322, 6900)),
        (Paged(splits=1), 8, 128, (4322, 6900)),  # its tile of 64 is read whole all the same
    ],
    ids=["flash2", "paged", "paged, few queries"],
)
def test_a_trip_takes_as_long_as_its_machine_code_played_through(schedule, rows, keys, played):
    """FlashAttention-2's loops as vLLM 0.24.0's wheel has them for sm_80, played (machine_code)."""
    for ctas, cycles in enumerate(played, 1):
        assert cycles_a_trip(schedule, rows, keys, ctas) == pytest.approx(cycles, rel=0.06)


def waited_s(matmul: Compute, warps: int) -> float:
    """What its worker waits for operands."""
    kernel = Kernel("a matmul", 1, (Loop(once, (matmul,)),), Footprint(0, 32 * warps))
    return latency_s(matmul, kernel, A100, "bf16") - A100.calibration.sm.op_latency


def test_steps_wait_for_operands_that_take_longer_than_multiplying():
    """Seven steps after the first; of fewer bytes tensor cores are what is waited for."""
    slow, fast = (
        multiplied("S", (), 2 * 64 * 128 * 128, read_bytes, 128)[1] for read_bytes in (2**18, 2**12)
    )
    assert waited_s(slow, 4) == pytest.approx(7 * A100.calibration.sm.op_latency)
    assert waited_s(fast, 4) == 0


def test_a_warp_of_more_rows_multiplies_each_operand_again_while_the_next_come():
    _, matmul = multiplied("S", (), 2 * 128 * 128 * 128, 2**18, 128, rows_a_warp=32)
    assert waited_s(matmul, 4) == 0


def test_nothing_is_waited_for_while_a_ctas_other_warps_read():
    _, matmul = multiplied("S", (), 2 * 64 * 128 * 128, 2**18, 128)
    assert waited_s(matmul, 8) == 0
