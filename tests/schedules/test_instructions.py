"""The rule of a softmax's instructions, held against counts read from machine code.

instructions.csv has, for one warp and trip of the main loop, what the kernels of FlashAttention-2
(xformers 0.0.24's wheel, sm_80) and FlashAttention-3 (xformers 0.0.32.post2's, sm_90a, bf16)
execute: the wheels' fatbins disassembled by nvdisasm, the smallest loop that holds both an MMA and
a MUFU.EX2, a row for each head_dim and tile.
"""

import csv
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pytest

from sim.schedules.parts.fmha_v2 import FIXED, FIXED_FP8
from sim.schedules.parts.instructions import (
    FLASH2_FIXED,
    FLASH2_PAGED_FIXED,
    FLASH3_FIXED,
    FLASH3_SM8X_FIXED,
    FMHA_V2,
    FMHA_V2_FP8,
    LANES,
    SGLANG,
    SGLANG_FIXED,
    TRITON_SHARING,
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


class Sm80Loop(NamedTuple):
    """A warp's trip as nvcc 13.0 compiles it for sm_80, without what it jumps over (bf16)."""

    head_dim: int
    tile_q: int
    tile_kv: int
    warps: int
    instructions: int
    mma: int
    ldsm: int

    def beyond_the_rule(self) -> float:
        """Instructions that the rule does not have."""
        rule = online_softmax(self.tile_q, self.tile_kv, self.head_dim, self.warps, fixed=0)
        lane_ops = rule.fp32_ops + rule.exps + rule.other_ops
        return self.instructions - self.mma - self.ldsm - lane_ops / LANES / self.warps


# flash_fwd_splitkv_kernel of vLLM's fork at three head_dims and of FlashAttention's own, from
# pages; of their 914 to 1,301 instructions a trip jumps over 34, or 10.
PAGED = [
    Sm80Loop(64, 64, 256, 4, 1301 - 34, mma=256, ldsm=132),
    Sm80Loop(128, 64, 128, 4, 998 - 34, mma=256, ldsm=136),
    Sm80Loop(256, 64, 64, 4, 914 - 34, mma=256, ldsm=144),
    Sm80Loop(128, 64, 128, 4, 978 - 10, mma=256, ldsm=136),
]
# FlashAttention-3's (hopper/mainloop_fwd_sm80.hpp), from pages: unsplit, whose next K is asked for
# in a block beside the loop, and split.
SM8X = [
    Sm80Loop(128, 128, 64, 4, 898 + 64, mma=256, ldsm=80),
    Sm80Loop(128, 128, 112, 8, 892, mma=224, ldsm=112),
]


@pytest.mark.parametrize(
    ("compiled", "fixed"), [(PAGED, FLASH2_PAGED_FIXED), (SM8X, FLASH3_SM8X_FIXED)]
)
def test_what_kernels_execute_beside_the_rule_where_they_read_pages_numbers(compiled, fixed):
    assert fmean(loop.beyond_the_rule() for loop in compiled) == pytest.approx(fixed, rel=0.03)


class SglangLoop(NamedTuple):
    """A warp's trip of SGLang's extend_attention.py over a causal prompt, by Triton 3.9.

    `rest` is all but matmuls, LDSM, `fp32` and `mufu`.
    """

    arch: str
    head_dim: int
    tile_q: int
    tile_kv: int
    warps: int
    fp32: int
    mufu: int
    rest: int

    def beyond_the_rule(self) -> float:
        """Instructions that the rule does not have."""
        tile = (self.tile_q, self.tile_kv, self.head_dim, self.warps)
        rule = online_softmax(*tile, fixed=0, a_score=SGLANG)
        lane_ops = rule.fp32_ops + rule.exps + rule.other_ops
        return self.fp32 + self.mufu + self.rest - lane_ops / LANES / self.warps


OWN_ROWS = [
    SglangLoop("sm80", 128, 128, 128, 8, fp32=460, mufu=66, rest=856),
    SglangLoop("sm89", 64, 64, 128, 4, fp32=428, mufu=66, rest=792),
    SglangLoop("sm90", 128, 128, 64, 8, fp32=268, mufu=34, rest=448),
    SglangLoop("sm90", 64, 128, 64, 4, fp32=472, mufu=68, rest=694),
]
SHARED_KEYS = [
    SglangLoop("sm89", 128, 64, 128, 8, fp32=296, mufu=40, rest=662),
    SglangLoop("sm89", 256, 64, 64, 8, fp32=232, mufu=24, rest=598),
    SglangLoop("sm89", 512, 32, 32, 8, fp32=144, mufu=12, rest=365),
]


@pytest.mark.parametrize("loop", OWN_ROWS, ids=lambda loop: "-".join(map(str, loop[:5])))
def test_sglangs_arithmetic_follows_from_the_tile(loop):
    rule = online_softmax(loop.tile_q, loop.tile_kv, loop.head_dim, loop.warps, 0, SGLANG)
    assert rule.fp32_ops / LANES / loop.warps == pytest.approx(loop.fp32, rel=0.01)
    assert rule.exps / LANES / loop.warps == pytest.approx(loop.mufu, rel=0.06)


def test_what_else_sglangs_trip_executes_is_the_mean_of_its_loops():
    own_rows = fmean(loop.beyond_the_rule() for loop in OWN_ROWS)
    shared_keys = fmean(loop.beyond_the_rule() for loop in SHARED_KEYS)
    assert own_rows == pytest.approx(SGLANG_FIXED, rel=0.05)
    assert shared_keys == pytest.approx(SGLANG_FIXED + TRITON_SHARING, rel=0.02)


# A warp's unmasked trip of TensorRT-LLM's fmha_v2 (FlashInfer's copy of its source, nvcc 13.0 with
# -use_fast_math, the branches of the mask and of the first trip left out): head_dim, tile, LDSM,
# fp32; MUFU, minima, conversions and shuffles; the rest but for matmuls.
WHOLE = ((64, 64, 32, 16, 104, 54, 65), (128, 64, 32, 32, 136, 54, 117))  # sm_89
IN_SLICES = (128, 64, 128, 136, 328, 174, 306)  # sm_80
# The same in 8 bits (sm_89, FMHA_ENABLE_SM89_QMMA); of the first 377 are of spilled registers.
WHOLE_FP8 = ((64, 128, 128, 48, 724, 348, 661), (128, 64, 32, 24, 154, 54, 114))


@pytest.mark.parametrize("loop", [*WHOLE, *WHOLE_FP8, IN_SLICES], ids=str)
def test_tensorrt_llms_arithmetic_follows_from_the_tile(loop):
    head_dim, tile_q, tile_kv, _, fp32, others, _ = loop
    a_score = FMHA_V2_FP8 if loop in WHOLE_FP8 else FMHA_V2
    rule = online_softmax(tile_q, tile_kv, head_dim, 4, 0, a_score)
    assert rule.fp32_ops / LANES / 4 == pytest.approx(fp32, rel=0.03)
    assert (rule.exps + rule.other_ops) / LANES / 4 == pytest.approx(others, rel=0.03)


def test_what_else_tensorrt_llms_whole_trip_executes():
    assert {head_dim: rest for head_dim, *_, rest in WHOLE} == FIXED
    assert {head_dim: rest for head_dim, *_, rest in WHOLE_FP8} == FIXED_FP8
