"""PyTorch's memory-efficient kernel: its tiles, what it loads, what it refuses."""

import pytest

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules.base import blocks
from sim.schedules.flash2 import Flash2
from tests.support.formulas import run
from tests.support.same_runs import assert_engines_agree

MEM_EFFICIENT = Flash2(implementation="mem-efficient")
T4, H100 = load_profile("t4"), load_profile("h100-sxm")


def workload(**given):
    table = {"batch": 1, "heads": 2, "head_dim": 64, "seq_len": 300, "dtype": "fp16"}
    return WorkloadTable(**table | given).workload()


def rows_and_ctas(w, hw):
    (kernel,) = kernels_of(MEM_EFFICIENT.program(w, hw))
    q = next(stream for stream in kernel.streams if stream.tensor.role == "query")
    return q.tile_rows, kernel.footprint.threads, kernel.ctas


def test_the_tile_goes_by_head_dim_and_from_sm80_on_has_twice_the_rows():
    wide = workload(head_dim=128)
    assert rows_and_ctas(workload(), T4) == (64, 128, 2 * 5)
    assert rows_and_ctas(wide, T4) == (32, 128, 2 * 10)
    assert rows_and_ctas(wide, H100) == (64, 256, 2 * 5)
    assert rows_and_ctas(workload(head_dim=128, dtype="fp32"), H100) == (64, 256, 2 * 5)


@pytest.mark.parametrize("causal", [False, True])
def test_q_is_loaded_again_with_every_block_of_keys_that_the_mask_shows(causal):
    w = workload(seq_len=256, causal=causal)
    (kernel,) = run(kernels_of(MEM_EFFICIENT.program(w, T4)), T4, w)
    down = blocks(256, 64)
    seen = down * (down + 1) // 2 if causal else down**2
    assert kernel.l2_read_bytes == 2 * seen * 3 * 64 * 64 * 2


def test_both_engines_agree_on_it():
    w = workload(causal=True)
    assert_engines_agree(kernels_of(MEM_EFFICIENT.program(w, T4)), T4, w.dtype)


@pytest.mark.parametrize(
    ("given", "of_schedule", "named"),
    [
        ({"head_dim": 160}, {}, "head_dim = 160"),
        ({"window": 64, "causal": True}, {}, "window = 64"),
        ({"phase": "training"}, {}, 'phase = "training"'),
        ({}, {"warps": 8}, "its own warps"),
    ],
)
def test_what_it_has_no_kernel_for_is_refused(given, of_schedule, named):
    schedule = Flash2(implementation="mem-efficient", **of_schedule)
    with pytest.raises(InputError, match=named):
        schedule.program(workload(**given), T4)
