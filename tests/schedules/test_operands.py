"""Operands that warps bring from SRAM themselves: those of a matmul's first step come before it."""

import pytest

from sim.device.program import kernels_of
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules.flash2 import Flash2
from sim.schedules.paged import Paged
from sim.schedules.parts.operands import multiplied
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
    [(Flash2(), 128, 64, (3192, 5292)), (Paged(splits=1), 64, 128, (4180, 6660))],
    ids=["flash2", "paged"],
)
def test_a_trip_takes_as_long_as_its_machine_code_played_through(schedule, rows, keys, played):
    """FlashAttention-2's loops as nvcc 13.0 compiles them for sm_80, played (machine_code)."""
    for ctas, cycles in enumerate(played, 1):
        assert cycles_a_trip(schedule, rows, keys, ctas) == pytest.approx(cycles, rel=0.12)
