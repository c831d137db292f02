"""The rule of a softmax's instructions, held against counts read from machine code.

instructions.csv has, for one warp and trip of the main loop, what the kernels of FlashAttention-2
(xformers 0.0.24's wheel, sm_80) and FlashAttention-3 (xformers 0.0.32.post2's, sm_90a, bf16)
execute: the wheels' fatbins disassembled by nvdisasm, the smallest loop that holds both an MMA and
a MUFU.EX2, a row for each head_dim and tile.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import pytest

from sim.schedules.parts.instructions import (
    FLASH2_FIXED,
    FLASH3_FIXED,
    LANES,
    Softmax,
    online_softmax,
)


class Loop(NamedTuple):
    kernel: str
    head_dim: int
    tile_q: int
    tile_kv: int
    warps: int
    mma: int
    fp32: int
    mufu: int
    minmax: int
    convert: int
    shuffle: int
    ldsm: int
    rest: int

    @property
    def rule(self) -> Softmax:
        """Of the whole CTA, without fixed instructions."""
        return online_softmax(self.tile_q, self.tile_kv, self.head_dim, self.warps, fixed=0)

    def a_warp(self, lane_ops: int) -> float:
        return lane_ops / LANES / self.warps


def loops() -> list[Loop]:
    with (Path(__file__).parent / "instructions.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    return [Loop(row[0], *map(int, row[1:])) for row in rows]


@pytest.mark.parametrize("loop", loops(), ids=lambda loop: "-".join(map(str, loop[:5])))
def test_a_warps_arithmetic_follows_from_the_tile(loop):
    assert loop.a_warp(loop.rule.fp32_ops) == pytest.approx(loop.fp32, rel=0.03)
    counted = loop.mufu + loop.minmax + loop.convert + loop.shuffle
    assert loop.a_warp(loop.rule.exps + loop.rule.other_ops) == pytest.approx(counted, rel=0.07)


@pytest.mark.parametrize(
    ("kernel", "fixed"), [("FlashAttention-2", FLASH2_FIXED), ("FlashAttention-3", FLASH3_FIXED)]
)
def test_what_is_fixed_is_the_mean_of_the_rest(kernel, fixed):
    rest = [loop.rest for loop in loops() if loop.kernel == kernel]
    assert sum(rest) / len(rest) == pytest.approx(fixed, rel=0.15)


def test_flash2s_warps_load_512_bytes_of_sram_an_instruction():
    """K and V whole, and the warp's own rows of Q."""
    for loop in loops():
        if loop.kernel == "FlashAttention-2":
            read = 2 * (2 * loop.tile_kv + loop.tile_q // loop.warps) * loop.head_dim
            assert loop.ldsm == read / 512
