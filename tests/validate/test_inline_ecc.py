"""What a profiler counts where ECC bits lie among the data."""

from dataclasses import replace

import pytest

from sim.device.run import run_on_device
from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import load_profile
from sim.schedules.parts.elementwise import FOOTPRINT
from sim.tile_program import Compute, Kernel, Load, Loop, Store, Stream, Tensor, in_order
from validate.inline_ecc import counted_dram_bytes

ROWS, COLS = 1024, 1024
T4 = load_profile("t4")


def pass_over(width: int) -> KernelRun:
    """A matrix of fp32 read in tiles of 64 rows and so many columns, and written by whole rows."""
    matrix, result = (Tensor(name, 1, ROWS, COLS, 4) for name in ("in", "out"))
    across = COLS // width
    load = Load(Stream(matrix, 64, width, lambda items: items * across, 1))
    rows = Stream(result, 64, COLS, lambda items: items)
    kernel = Kernel(
        "pass",
        ROWS // 64,
        (
            Loop(lambda items: items * 0 + across, (load, Compute("use", (load,)))),
            Loop(lambda items: items * 0 + 1, (Store(rows),)),
        ),
        FOOTPRINT,
    )
    return run_on_device(in_order([kernel]), T4, "fp16", "replay", lambda _: None).kernels[0].run


@pytest.mark.parametrize(("width", "more"), [(COLS, 1 / 8), (64, 1 / 8), (16, 1 / 2), (8, 1)])
def test_bits_of_a_run_come_by_whole_sectors(width, more):
    run = pass_over(width)
    read, written = counted_dram_bytes(run, T4)
    assert run.hbm_read_bytes == ROWS * COLS * 4
    assert read == pytest.approx(run.hbm_read_bytes * (1 + more))
    assert written == int(run.hbm_write_bytes * (1 + 1 / 8)) > 0


def test_hbm_keeps_them_elsewhere():
    run = pass_over(8)
    beside = T4.model_copy(update={"hbm": T4.hbm.model_copy(update={"inline_ecc": False})})
    for hw in (beside, load_profile("a30"), load_profile("rtx-5060-ti")):
        assert counted_dram_bytes(replace(run), hw) == (run.hbm_read_bytes, run.hbm_write_bytes)


def test_a_server_with_gddr_has_them_among_the_data():
    inline = {
        name
        for name in ("t4", "l4", "l40s", "l20", "a10g", "a40", "rtx-4090", "h100-sxm")
        if load_profile(name).hbm.inline_ecc
    }
    assert inline == {"t4", "l4", "l40s", "l20", "a10g", "a40"}
