"""What kernels say of themselves: parts that are alike, who shares K and V, which kernel it is."""

import numpy as np
import pytest
from hypothesis import given, settings

from sim import simulate
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules import SCHEDULES, make_schedule
from sim.schedules.parts.grid import Grid
from sim.tile_program import IntArray, Kernel, Stream
from tests.support.drawn import cases, devices, lowered

H100, B200 = load_profile("h100-sxm"), load_profile("b200")
SCATTERED = ("paged", "mla", "infinite_hip", "quest", "nsa")  # a table of its own for each sequence
LIKE = [name for name in SCHEDULES if name not in SCATTERED]


def workload(**given):
    table = {"batch": 2, "heads": 8, "kv_heads": 2, "head_dim": 64, "seq_len": 512, "dtype": "bf16"}
    return WorkloadTable(**table | given).workload()


def touched(stream: Stream, items: IntArray, trip: IntArray) -> IntArray:
    """The tile of each item in that trip."""
    if stream.table is None:
        return stream.base(items) + stream.stride * trip
    return stream.base(items) + stream.table[stream.start(items) + trip]


@given(cases(*LIKE), devices())
@settings(max_examples=150)
def test_what_a_ctas_first_and_last_trips_touch_repeats_with_the_periods(case, hw):
    w, schedule = case
    for kernel in lowered(schedule, w, hw):
        if kernel.items_per_cta > 1:
            continue
        for trips, loop in zip(kernel.trips, kernel.loops, strict=True):
            runs = np.flatnonzero(trips > 0)
            for op in loop.ops:
                if not hasattr(op, "stream") or not len(runs):
                    continue
                for trip in (np.zeros_like(runs), trips[runs] - 1):
                    tiles = touched(op.stream, runs, trip).reshape(kernel.periods, -1)
                    apart = tiles - tiles[:, :1]
                    assert (apart == apart[0]).all()


def test_a_grid_counts_its_sides_the_first_fastest():
    grid = Grid(3, 2, 4)
    assert grid.size == 24
    assert [side.tolist() for side in grid.at(np.array([0, 4, 23]))] == [
        [0, 1, 2],
        [0, 1, 1],
        [0, 0, 3],
    ]


def kernels_of(name: str, hw=H100, options: dict | None = None, **given) -> list[Kernel]:
    return make_schedule({"name": name, **(options or {})}, "a test").lower(workload(**given), hw)


@pytest.mark.parametrize(
    ("name", "given", "periods", "sharing"),
    [
        ("flash2", {}, 16, 4),
        ("flash2", {"causal": True}, 16, 4),
        ("naive", {}, 16, 4),
        ("flash1", {}, 16, 4),
        ("block_sparse", {"causal": True}, 16, 4),
        ("flash_decoding", {"phase": "decode"}, 4, 1),
        ("decode", {"phase": "decode"}, 4, 1),
        ("flash3", {"batch": 64}, 512, 4),
        ("flash3", {"batch": 64, "causal": True}, 512, 4),
    ],
)
def test_heads_are_the_periods_of_a_grid_and_those_of_a_group_share_keys(
    name, given, periods, sharing
):
    kernel = kernels_of(name, **given)[0]
    assert (kernel.periods, kernel.sharing) == (periods, sharing)


def test_rotating_in_the_loop_leaves_who_shares_keys():
    (kernel,) = kernels_of("flash2", options={"rope": "fused"})
    assert (kernel.periods, kernel.sharing) == (16, 4)


@pytest.mark.parametrize(("rows", "periods"), [(8, 16), (8 * 16, 1)])
def test_a_mask_of_its_own_for_each_head_has_no_like_parts(tmp_path, rows, periods):
    path = tmp_path / "mask.npz"
    np.savez(path, indptr=np.arange(rows + 1), indices=np.zeros(rows, int), tile=[64, 64])
    (kernel,) = kernels_of("block_sparse", options={"mask_file": str(path)})
    assert kernel.periods == periods


@pytest.mark.parametrize("vast", ["tile", "indptr", "indices"])
def test_a_small_mask_file_that_holds_vast_arrays_is_refused_before_they_are_read(tmp_path, vast):
    path, numbers = tmp_path / "mask.npz", np.zeros(2**22, np.int64)
    arrays = {"indptr": np.arange(9), "indices": np.zeros(8, int), "tile": np.array([64, 64])}
    np.savez_compressed(path, **{**arrays, vast: numbers})
    assert path.stat().st_size < numbers.nbytes / 500
    with pytest.raises(InputError, match=f"array '{vast}' has more numbers than"):
        kernels_of("block_sparse", options={"mask_file": str(path)})


def test_flash4_goes_through_masked_heads_section_by_section():
    """50 MiB of L2 hold K and V of 2 KV heads of 50,000 tokens: 8 heads are 4 sections."""
    given = {"batch": 1, "heads": 32, "kv_heads": 8, "seq_len": 50_000, "causal": True}
    (kernel,) = kernels_of("flash4", B200, **given, head_dim=128)
    assert kernel.periods == 8 // 2


def test_kernels_that_are_launched_say_their_kind():
    def kinds(name, **given):
        return [kernel.kind for kernel in kernels_of(name, **given)]

    assert kinds("naive") == ["scores", "softmax", "output"]
    assert kinds("flash2") == kinds("block_sparse") == ["flash"]
    decoding = {"batch": 1, "seq_len": 8192, "phase": "decode"}
    assert kinds("flash_decoding", **decoding) == ["flash", "combine"]
    assert kinds("flash_decoding", **decoding, kv_dtype="int8") == [None, "combine"]
    assert kinds("paged", **decoding) == [None, "combine"]


@pytest.mark.parametrize("name", ["naive", "flash1", "flash2"])
def test_the_kernels_after_forward_are_of_the_backward_pass(name):
    forward = len(kernels_of(name))
    kernels = kernels_of(name, phase="training")
    assert [kernel.backward for kernel in kernels] == [False] * forward + [True] * (
        len(kernels) - forward
    )


def test_rotating_gradients_back_is_of_the_backward_pass():
    schedule = make_schedule({"name": "flash2", "rope": "pass"}, "a test")
    ran = [command.work for command in schedule.program(workload(phase="training"), H100)]
    assert {
        kernel.name for kernel in ran if kernel.name.startswith("rope") and kernel.backward
    } == {
        "rope dQ",
        "rope dK",
    }


def with_registers(**options: object):
    """The kernel of FlashAttention-2 at head_dim 64 on an A100."""
    (record,) = simulate(
        workload={"heads": 32, "head_dim": 64, "seq_len": 2048, "dtype": "bf16"},
        hardware="a100-sxm-80gb",
        schedule=[{"name": "flash2", **options}],
    )
    return record.kernels[0]


def test_registers_of_a_thread_are_an_option_and_fewer_let_more_ctas_share_an_sm():
    usual, fewer = with_registers(), with_registers(registers=128)
    assert (usual.ctas_per_sm, usual.ctas_limited_by) == (2, "registers")
    assert (fewer.ctas_per_sm, fewer.ctas_limited_by) == (3, "SRAM")
    assert with_registers(registers=255) == usual


@pytest.mark.parametrize("implementation", ["mem-efficient", "trtllm"])
def test_registers_of_a_kernel_that_has_its_own_are_refused(implementation):
    with pytest.raises(InputError, match="it has its own registers: none was expected"):
        with_registers(implementation=implementation, registers=40)


@pytest.mark.parametrize(("window", "ctas"), [(None, 3), (128, 2)])
def test_masks_of_a_window_take_registers_of_tensorrt_llms_narrow_kernel(window, ctas):
    """168 and 193 a thread: FlashInfer's copy of fmha_v2, by nvcc 13.0 for sm_89."""
    (record,) = simulate(
        workload={"heads": 8, "head_dim": 64, "seq_len": 2048, "dtype": "bf16", "causal": True}
        | ({"window": window} if window else {}),
        hardware="l40s",
        schedule=[{"name": "flash2", "implementation": "trtllm"}],
    )
    assert record.kernels[0].ctas_per_sm == ctas
