"""FlashAttention-3's library before Hopper: packed rows, its grid and what it refuses."""

import pytest

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules.flash2 import Flash2
from sim.schedules.flash_decoding import FlashDecoding
from sim.schedules.parts.flash3_sm8x import decoding_sm8x
from sim.tile_program import Compute
from tests.support.formulas import run
from tests.support.same_runs import assert_engines_agree

FA3 = Flash2(implementation="fa3")
A100, H100 = load_profile("a100-sxm-80gb"), load_profile("h100-sxm")


def workload(**given):
    table = {"batch": 3, "heads": 24, "kv_heads": 4, "head_dim": 128, "seq_len": 100}
    return WorkloadTable(**table | given).workload()


def kernel_of(w, hw=A100):
    (kernel,) = kernels_of(FA3.program(w, hw))
    return kernel


def test_the_queries_of_a_kv_heads_six_heads_fill_one_tile():
    one = workload(batch=128, seq_len=1, causal=True)
    assert kernel_of(one).ctas == 128 * 4  # FlashAttention-2 has one for each of 24 heads
    assert kernel_of(workload()).ctas == 3 * 4 * 5  # 600 packed rows of a KV head, 128 a CTA
    w = workload(kv_heads=24)
    plain = Flash2(tile={"q": 128, "kv": 64}, warps=4)
    (packed_none,), (alone,) = (run(kernels_of(s.program(w, A100)), A100, w) for s in (FA3, plain))
    assert packed_none.l2_read_bytes == alone.l2_read_bytes


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_tile_of_packed_rows_sees_the_keys_of_its_last_query(causal):
    w = workload(batch=1, seq_len=256, causal=causal)
    (ran,) = run([kernel_of(w)], A100, w)
    ends = [min(256, (128 * block + 127) // 6 + 1) if causal else 256 for block in range(12)]
    tiles = sum(-(-end // 64) for end in ends)
    assert ran.executed("mma_flops") == 4 * tiles * 4 * 128 * 64 * 128


@pytest.mark.parametrize(
    "given",
    [{"causal": True}, {"causal": True, "window": 40}, {"seq_q": 7}, {"seq_kv": [30, 100, 65]}],
    ids=str,
)
def test_both_engines_agree_on_it(given):
    w = workload(**{"seq_len": None, "seq_q": 20, "seq_kv": 100} | given)
    assert_engines_agree([kernel_of(w)], A100, w.dtype)


@pytest.mark.parametrize(
    ("given", "of_schedule", "hw", "named"),
    [
        ({}, {}, H100, "one of sm80, sm86, sm89"),
        ({"phase": "training"}, {}, A100, 'phase = "training"'),
        ({}, {"tile": {"q": 64, "kv": 64}}, A100, "its own tile"),
    ],
)
def test_what_it_has_no_kernel_for_is_refused(given, of_schedule, hw, named):
    with pytest.raises(InputError, match=named):
        Flash2(implementation="fa3", **of_schedule).program(workload(**given), hw)


DECODING = FlashDecoding(implementation="fa3")


@pytest.mark.parametrize(
    ("batch", "seq_kv", "tile_kv", "warps", "splits"),
    [
        (1, 512, 112, 8, 5),  # 5 blocks a head: a range each
        (1, 448, 64, 4, 1),  # of up to 4 blocks none
        (8, 16384, 112, 8, 7),  # 147 blocks of 8 x 2 heads and a tenth more, 24 an SM: 7 ranges
        (1000, 16384, 64, 4, 1),
    ],
)
def test_decoding_cuts_keys_as_it_finds_all_sms_busy(batch, seq_kv, tile_kv, warps, splits):
    w = workload(batch=batch, heads=16, kv_heads=2, seq_len=None, seq_kv=seq_kv, phase="decode")
    cta, ranges = decoding_sm8x(w, A100)
    assert (cta.tile.q, cta.tile.kv, cta.warps, ranges) == (128, tile_kv, warps, splits)
    split, *combine = kernels_of(DECODING.program(w, A100))
    assert split.ctas == batch * 2 * splits
    assert len(combine) == (splits > 1)


def test_eight_warps_keep_their_queries_in_registers():
    """hopper/tile_size.h, Q_in_regs: a trip then reads K and V alone."""
    read = {}
    for seq_kv in (448, 512):
        w = workload(batch=1, seq_len=None, seq_kv=seq_kv, phase="decode")
        split = kernels_of(DECODING.program(w, A100))[0]
        computes = [op for op in split.actions if isinstance(op, Compute)]
        read[seq_kv] = sum(op.sram_bytes for op in computes if op.name.startswith("S = Q K^T"))
    row = 128 * 2
    assert read[448] == (1 + 4) * 64 * row + 128 * row  # the whole tile, of six heads too
    assert read[512] == (1 + 8) * 112 * row


def test_decoding_takes_one_query_a_sequence():
    with pytest.raises(InputError, match="one query a sequence was expected"):
        DECODING.program(workload(seq_q=2, seq_len=None, seq_kv=64, phase="decode"), A100)
    with pytest.raises(InputError, match="one of sm80, sm86, sm89"):
        DECODING.program(workload(seq_len=None, seq_kv=64, phase="decode"), H100)
