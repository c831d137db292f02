"""A loop played through: against its stalls, its pipes, and itself beside another CTA."""

from pathlib import Path

import pytest

from sim.machine_code.kernel import kernels_of_file
from sim.machine_code.loops import Loop
from sim.machine_code.played import plays_through, trip_played
from sim.machine_code.sass import Instruction
from sim.report.machine_code import take_apart
from tests.support.cubins import compiled_into, flash

NO_BOARDS = 7 << 5 | 7 << 8


def loop(*body: Instruction) -> Loop:
    return Loop(0, len(body) - 1, list(body))


def issued(opcode: str, stall: int = 1, writes: int = 7, waits: int = 0) -> Instruction:
    """An instruction that stalls its warp, frees a scoreboard and waits for some (a bit each)."""
    return Instruction("", opcode, "0x0", stall | writes << 5 | 7 << 8 | waits << 11)


@pytest.mark.parametrize("ctas", [1, 2, 3])
def test_ctas_share_issue_slots_and_pipes(ctas):
    floats = loop(*[issued("FADD")] * 100)
    assert trip_played(floats, 4, ctas) == pytest.approx(100 * ctas, rel=0.02)
    integers = loop(*[issued("LOP3")] * 100)  # 16 lanes a cycle
    assert trip_played(integers, 4, ctas) == pytest.approx(200 * ctas, rel=0.02)
    exps = loop(*[issued("MUFU.EX2")] * 100)  # 4 lanes
    assert trip_played(exps, 8, ctas) == pytest.approx(2 * 800 * ctas, rel=0.02)


def test_shared_memory_is_one_for_all_warps_of_an_sm():
    reads = loop(*[issued("LDSM.16.M88.4")] * 50)  # 512 bytes at 128 a cycle
    assert trip_played(reads, 4, 1) == pytest.approx(4 * 4 * 50, rel=0.02)
    assert trip_played(reads, 4, 2) == pytest.approx(2 * 4 * 4 * 50, rel=0.02)


def test_a_warp_waits_for_its_stalls_and_scoreboards_and_another_cta_fills_the_time():
    stalled = loop(issued("FADD", stall=10), *[issued("FADD")] * 9)
    assert trip_played(stalled, 4, 1) == pytest.approx(19, abs=0.5)
    assert trip_played(stalled, 4, 2) == pytest.approx(20, abs=2)
    chain = loop(issued("LDS", writes=0), issued("FADD", waits=1), *[issued("FADD")] * 8)
    assert trip_played(chain, 1, 1) == pytest.approx(30 + 9, abs=1)
    assert trip_played(chain, 4, 2) < 1.2 * trip_played(chain, 4, 1)


def test_warps_of_a_cta_meet_at_a_barrier_and_not_those_of_others():
    meeting = loop(issued("MUFU.EX2"), issued("BAR.SYNC"))
    # Of eight warps two share a sub-partition, so that all wait for the second's exponential.
    assert trip_played(meeting, 8, 1) == pytest.approx(8 + 8, abs=2)
    assert trip_played(meeting, 4, 1) == pytest.approx(1 + 8, abs=2)
    assert trip_played(meeting, 4, 2) < 2 * trip_played(meeting, 4, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cubins")
    compiled_into(folder, [flash(128, 64, 4, 64, 80), flash(128, 128, 8, 128, 90)])
    return folder


def test_a_compiled_loop_takes_its_stalls_at_least_and_hides_some_of_them_beside_another(folder):
    (kernel,) = kernels_of_file(folder / "0-0.cubin")
    assert len(kernel.code) % 16 == 0
    apart = take_apart(kernel)
    body = apart.main.loop.body
    alone, beside = apart.played
    assert alone >= sum(one.control & 15 for one in body) >= len(body)
    assert alone < beside < 2 * alone
    assert beside >= 2 * len(body)


def test_a_warp_group_s_matmuls_are_not_played(folder):
    (kernel,) = kernels_of_file(folder / "1-0.cubin")
    apart = take_apart(kernel)
    assert not plays_through(apart.main.loop)
    assert apart.played is None
