"""FlashAttention-4 against formulas written independently of it, and what it promises."""

import re

import numpy as np
import pytest
from hypothesis import given, settings

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.machine import ctas_per_sm
from sim.schedules import make_schedule
from tests.support.drawn import cases, devices, lowered
from tests.support.formulas import blocks_with_any, run, tile_of, visits, workload
from tests.support.same_runs import assert_engines_agree

BLACKWELL = ("b200",)
B200 = load_profile("b200")
FLASH4 = make_schedule({"name": "flash4"}, "a test")


@given(cases("flash4"), devices(l2="0 B", names=BLACKWELL))
@settings(max_examples=60)
def test_without_l2_k_and_v_are_read_once_a_visited_block_of_two_ctas(case, hw):
    w, schedule = case
    (kernel,) = kernels = lowered(schedule, w, hw)
    (ran,) = run(kernels, hw, w)
    seen, tile, q = visits(w, kernel), tile_of(kernels), kernel.tensors[0]
    assert q.groups == w.batch * w.kv_heads
    assert (tile.q, tile.kv) == (256 if q.rows > 128 else 128, 128)
    keys = np.minimum(128, w.seq_kv - 128 * np.arange(seen.shape[1]))
    pairs = w.mask == "full" and w.head_dim == 128 and 128 % (w.heads // w.kv_heads) == 0
    pairs = pairs and tile.q == 256 and seen.shape[0] % 2 == 0
    kv_rows = 2 * q.groups * int((seen * keys).sum()) // (2 if pairs else 1)
    query_rows = w.batch * w.heads * w.seq_q
    assert ran.hbm_read_bytes == (query_rows + kv_rows) * w.head_dim * 2
    assert ran.hbm_write_bytes == query_rows * (2 * w.head_dim + 4)


@given(cases("flash4"), devices(names=BLACKWELL))
@settings(max_examples=60)
def test_flops_and_exps_are_those_of_the_visited_blocks(case, hw):
    w, schedule = case
    (kernel,) = kernels = lowered(schedule, w, hw)
    (ran,) = run(kernels, hw, w)
    tile = tile_of(kernels)
    steps = kernel.tensors[0].groups * int(visits(w, kernel).sum())
    scores, head_dim = tile.q * tile.kv, -(-w.head_dim // 16) * 16
    assert ran.executed("mma_flops") == 4 * head_dim * steps * scores
    (none,) = run(kernels_of(schedule.model_copy(update={"emulated": 0.0}).program(w, hw)), hw, w)
    assert none.executed("exp_count") == steps * (scores + tile.q)
    emulated = none.executed("exp_count") - ran.executed("exp_count")
    assert ran.executed("vector_ops") - none.executed("vector_ops") == 9 * emulated
    if schedule.emulated is not None:
        assert emulated == pytest.approx(schedule.emulated * steps * scores, abs=steps)


@given(cases("flash4"), devices(names=BLACKWELL))
@settings(max_examples=60)
def test_both_engines_agree(case, hw):
    w, schedule = case
    assert_engines_agree(lowered(schedule, w, hw), hw, w.dtype)


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_an_sm_holds_one_cta_of_16_warps(head_dim, causal):
    w = workload(heads=8, head_dim=head_dim, seq_len=4096, causal=causal)
    (kernel,) = kernels_of(FLASH4.program(w, B200))
    assert kernel.footprint.sram_bytes <= 224 * 1024
    assert (kernel.footprint.threads, kernel.footprint.workers) == (512, 2)
    assert ctas_per_sm(kernel.footprint, B200) == 1
    assert kernel.ctas == (8 * 16 if causal else min(B200.sm.count, 8 * 16))


def test_the_public_share_of_emulated_exponentials():
    """apply_exp2_convert told pair by pair: (freq 10 or 16, from fragment 1, not in the last)."""

    def share(often):
        emulated = [
            not (k % often < often - 4 or fragment >= 3 or fragment < 1)
            for fragment in range(4)
            for k in range(0, 32, 2)
        ]
        return sum(emulated) / len(emulated)

    for table, often in (({"causal": False}, 10), ({"causal": True}, 16)):
        w = workload(heads=8, head_dim=128, seq_len=4096, **table)
        (kernel,) = kernels_of(FLASH4.program(w, B200))
        (softmax,) = [s for s in kernel.loops[1].actions if s.name == "softmax"]
        scores = 256 * 128
        assert scores + 256 - softmax.exp_count == pytest.approx(share(often) * scores)


def test_emulation_pays_where_exponentials_hold_back():
    """head_dim 64 has two exponentials for the FLOPs of one at 128."""
    w = workload(heads=32, head_dim=64, seq_len=16384)
    times = {}
    for emulated in (0.0, 0.25, 1.0):
        schedule = make_schedule({"name": "flash4", "emulated": emulated}, "a test")
        (ran,) = run(kernels_of(schedule.program(w, B200)), B200, w)
        times[emulated] = ran.time_s
    assert times[0.25] < 0.9 * times[0.0]
    assert times[1.0] > times[0.25]


def test_two_tiles_take_turns():
    """One tile's softmax runs during the other's matmuls: far less than their sum."""
    w = workload(heads=37, head_dim=128, seq_len=8192)  # 8 items for each of 148 SMs
    (ran,) = run(kernels_of(FLASH4.program(w, B200)), B200, w)
    busy_s = ran.busy_s[:3] / B200.sm.count  # tensor, vector, exp
    assert busy_s[0] + busy_s[2] > 1.4 * ran.time_s
    assert ran.time_s < 1.15 * busy_s[0]


def test_causal_tiles_are_launched_longest_first():
    w = workload(heads=4, head_dim=64, seq_len=4096, causal=True)
    (kernel,) = kernels_of(FLASH4.program(w, B200))
    steps = kernel.trips[1]
    assert np.all(np.diff(steps) <= 0)
    seen = blocks_with_any(np.tri(4096, dtype=bool), tile_of([kernel])).sum(axis=1)
    np.testing.assert_array_equal(np.unique(steps), np.unique(seen))


@pytest.mark.parametrize(
    ("table", "profile", "overrides", "complaint"),
    [
        ({}, "h100-sxm", {}, 'hardware.arch = "sm90"'),
        ({"dtype": "fp8"}, "b200", {}, 'workload.dtype = "fp8"'),
        ({"head_dim": 256}, "b200", {}, "workload.head_dim = 256: it takes up to 128"),
        ({}, "b200", {"sram": {"capacity": "64 KiB"}}, "Q, O and two blocks of keys need"),
    ],
)
def test_what_it_cannot_do_is_one_line(table, profile, overrides, complaint):
    w = workload(**{"heads": 2, "head_dim": 64, "seq_len": 512, **table})
    with pytest.raises(InputError, match=re.escape(complaint)) as raised:
        FLASH4.program(w, load_profile(profile, overrides, "a test"))
    assert "\n" not in str(raised.value)
