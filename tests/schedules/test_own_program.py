"""What a schedule of one's own lowers to is looked over before an engine, which trusts it, runs."""

import numpy as np
import pytest

from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules import SCHEDULES
from sim.schedules.base import Schedule
from sim.schedules.own_program import looked_over
from sim.tile_program import (
    Barrier,
    Compute,
    Footprint,
    Kernel,
    Load,
    Loop,
    Store,
    Stream,
    Tensor,
    once,
)

Q = Tensor("Q", 2, 256, 64, 2, "input", "query")
O = Tensor("O", 2, 256, 64, 2, "output", "result")  # noqa: E741
ROWS = 16  # of a tile; 16 tiles of each of two heads, a CTA each
CTAS = 32


def rows_of(tensor, base=lambda items: items, **options):
    return Stream(tensor, ROWS, 64, base, **options)


def kernel(
    stream=None, *, trips=once, stages=1, to=None, ops=None, footprint=None, ctas=CTAS, **amounts
):
    load = Load(stream or rows_of(Q), stages)
    work = Compute("work", (load,), **{"vector_ops": 64, **amounts})
    stored = Loop(once, (Store(to or rows_of(O)),))
    loops = (Loop(trips, ops(load, work) if ops else (load, work)), stored)
    return Kernel("a kernel", ctas, loops, footprint or Footprint(4096))


def program(made):
    class Mine(Schedule):
        name: str = "mine"
        summary = "a test's"
        source = "a test"

        def lower(self, w, hw):
            return made()

    workload = WorkloadTable(heads=2, head_dim=64, seq_len=256).workload()
    return Mine().program(workload, load_profile("t4"))


def tabled(table, start):
    return rows_of(Q, np.zeros_like, table=np.array(table), start=start)


WRONG = {
    "a tile beyond": (
        lambda: kernel(rows_of(Q, lambda items: items + 1)),
        "loop 0: load of Q: item 31 touches tile 32 of 32",
    ),
    "a tile beyond, trips on": (
        lambda: kernel(rows_of(Q, stride=1), trips=lambda items: 2 * np.ones_like(items)),
        "loop 0: load of Q: item 31 touches tile 32 of 32",
    ),
    "a tile before": (
        lambda: kernel(rows_of(Q, stride=-1), trips=lambda items: 2 * np.ones_like(items)),
        "load of Q: item 0 touches tile -1 of 32",
    ),
    "a tile beyond that is stored": (
        lambda: kernel(to=rows_of(O, lambda items: items * 2)),
        "loop 1: store of O: item 16 touches tile 32 of 32",
    ),
    "a table that ends": (
        lambda: kernel(tabled([0, 1], lambda items: items)),
        "load of Q: item 31 reads 31 to 32 of 2 in the table",
    ),
    "a table of other tiles": (
        lambda: kernel(tabled([5, 99], lambda items: items % 2)),
        "load of Q: item 1 touches tile 99 of 32",
    ),
    "fewer than no trips": (
        lambda: kernel(trips=lambda items: items - 3),
        "loop 0: trips: item 0 has -3",
    ),
    "parts of trips": (
        lambda: kernel(trips=lambda items: items / 2),
        "loop 0: trips: a whole number for each of 32 items was expected, not float64",
    ),
    "a load that is not there": (
        lambda: kernel(ops=lambda load, work: (work,)),
        "loop 0: a load of Q is used that is none of its ops",
    ),
    "a load that nothing reads": (
        lambda: kernel(ops=lambda load, work: (load,)),
        "loop 0: no compute reads the load of Q",
    ),
    "a load that nothing issues": (
        lambda: kernel(stages=0),
        "a load of Q has no stages, and no barrier issues it",
    ),
    "an amount below zero": (lambda: kernel(mma_flops=-1), "compute 'work': mma_flops = -1"),
    "no amount": (lambda: kernel(exp_count=float("nan")), "compute 'work': exp_count = nan"),
    "no CTA": (lambda: kernel(ctas=0), "ctas = 0: at least 1 was expected"),
    "no thread": (
        lambda: kernel(footprint=Footprint(0, threads=0)),
        "threads = 0: at least 1 was expected",
    ),
    "no tile": (
        lambda: kernel(Stream(Q, 0, 64, lambda items: items)),
        "load of Q: tiles of 0 x 64",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_no_engine_could_run_is_told_by_its_kernel(wrong):
    made, says = WRONG[wrong]
    with pytest.raises(InputError) as error:
        program(lambda: [made()])
    assert str(error.value).startswith("schedule mine: kernel 'a kernel': ")
    assert says in str(error.value)


@pytest.mark.parametrize("made", [list, lambda: [1]])
def test_no_kernels_are_told(made):
    with pytest.raises(InputError, match=r"^schedule mine: kernels were expected of lower\(\)"):
        program(made)


def test_an_error_in_it_is_told_by_its_line():
    line = test_an_error_in_it_is_told_by_its_line.__code__.co_firstlineno + 4

    def made():
        return [][0]

    with pytest.raises(InputError) as error:
        program(made)
    assert (
        str(error.value) == f"schedule mine: {__file__}:{line}: IndexError: list index out of range"
    )


def test_what_an_engine_can_run_is_left_as_it_is():
    one = kernel(
        tabled([3, 7], lambda items: items % 2),
        stages=0,
        ops=lambda load, work: (load, Barrier((load,)), work),
    )
    (command,) = program(lambda: [one])
    assert command.work is one


@pytest.mark.parametrize("name", ["naive", "flash2", "block_sparse", "hip", "flash_decoding"])
def test_attnsims_own_would_pass(name):
    phase = "decode" if name == "flash_decoding" else "prefill"
    table = WorkloadTable(heads=4, kv_heads=2, head_dim=64, seq_len=512, causal=True, phase=phase)
    w, hw = table.workload(), load_profile("a100-sxm-80gb")
    commands = SCHEDULES[name]().program(w, hw)
    assert looked_over(lambda: commands, "a test", None) is commands
