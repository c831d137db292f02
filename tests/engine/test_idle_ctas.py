"""CTAs and items that find nothing to do: what they cost."""

import numpy as np
import pytest

from sim.engine import reference
from sim.engine.compiled import replay
from sim.inputs.hardware import load_profile
from sim.machine import cta_start_s, idle_cta_s, item_setup_s
from sim.tile_program import Compute, Footprint, Kernel, Loop, chunk_tensors

HW = load_profile("l40s")
WHOLE_SM = Footprint(HW.sram.max_per_cta, 128, 128)
WORK = Compute("S", mma_flops=2**20)


def time_s(works, items_per_cta=1, *, sets_up_items=False, footprint=WHOLE_SM) -> float:
    """Of the items that `works` names; both engines agree on it."""
    there = np.array(works, np.int64)
    kernel = Kernel(
        "k",
        len(works) // items_per_cta,
        (Loop(lambda items: there[items], (WORK,)),),
        footprint,
        items_per_cta=items_per_cta,
        sets_up_items=sets_up_items,
    )
    times = []
    for engine in (replay, reference):
        chunkings = chunk_tensors([kernel])
        l2 = engine.new_l2(chunkings, HW)
        times.append(engine.run_kernel(kernel, chunkings, HW, l2, "fp16", lambda _: None).time_s)
    assert times[0] == pytest.approx(times[1], rel=1e-12)
    return times[0]


def test_a_cta_without_trips_ends_before_it_sets_anything_up():
    """Three waves of one CTA an SM, of which the first works."""
    sms = HW.sm.count
    alone_s = time_s([1] * sms)
    assert time_s([1] * sms + [0] * 2 * sms) == pytest.approx(alone_s + 2 * idle_cta_s(HW))
    assert time_s([0] * sms) == pytest.approx(idle_cta_s(HW))
    kernel = Kernel("k", 1, (Loop(np.ones_like, (WORK,)),), WHOLE_SM)
    assert idle_cta_s(HW) < cta_start_s(kernel, HW) / 2


def test_a_cta_that_ends_at_once_gives_its_place_to_the_next_wherever_it_was_placed():
    """Two CTAs an SM: of every other SM's the first is idle, of the others' the second."""
    pairs = HW.sm.count // 2
    two_an_sm = Footprint(WHOLE_SM.sram_bytes * 2 // 5, 128, 128)
    first, second = [0, 1] * pairs, [8, 0] * pairs
    # SMs take what is left in their order, so that the last even one has the most to do.
    rest = [n + 1 for n in range(2 * pairs)]
    alone_s = time_s([8 + 2 * pairs - 1], footprint=two_an_sm)
    assert time_s([*first, *second, *rest], footprint=two_an_sm) > 0.9 * alone_s


def test_an_item_without_trips_has_no_setup():
    kernel = Kernel("k", 1, (Loop(np.ones_like, (WORK,)),), WHOLE_SM, sets_up_items=True)
    one_s, with_idle_s, two_s = (
        time_s(works, len(works), sets_up_items=True) for works in ([1], [1, 0], [1, 1])
    )
    assert with_idle_s == pytest.approx(one_s)
    work_s = one_s - cta_start_s(kernel, HW)
    assert two_s == pytest.approx(one_s + item_setup_s(kernel, HW) + work_s)
