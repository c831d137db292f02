"""Registers that spill: TensorRT-LLM's prefill in 8 bits on Ada, at a head_dim of 64."""

import pytest

from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.schedules import SCHEDULES
from sim.schedules.parts.fmha_v2 import SPILLED_WORDS
from tests.support.formulas import run, workload
from tests.support.same_runs import assert_engines_agree

L40S = load_profile("l40s")
TRTLLM = SCHEDULES["flash2"].model_validate({"implementation": "trtllm"})


def prefill(head_dim: int, dtype: str, tokens: int = 4096, **more):
    return workload(
        heads=8, head_dim=head_dim, seq_len=tokens, causal=True, dtype=dtype, batch=8, **more
    )


def ran(w):
    (one,) = run(TRTLLM.lower(w, L40S), L40S, w)
    return one


def test_what_spills_goes_through_l2_twice_a_trip_and_stays_there():
    w = prefill(64, "fp8")
    one, tiles = ran(w), w.seq_q // 128
    trips = w.batch * w.heads * tiles * (tiles + 1) // 2
    spilled_bytes = trips * 128 * round(4 * SPILLED_WORDS)
    q_bytes = w.batch * w.heads * w.seq_q * w.head_dim
    assert one.spilled_bytes == 2 * spilled_bytes
    assert one.l2_read_bytes == q_bytes + trips * 2 * 128 * w.head_dim + spilled_bytes
    written = one.l2_write_bytes - spilled_bytes
    assert written < 3 * q_bytes  # O in 16 bits and the log-sum-exps
    assert one.hbm_read_bytes == 3 * q_bytes
    assert one.hbm_write_bytes + one.l2_dirty_bytes < 3 * q_bytes + 142 * 2 * 128 * 4 * 256


def test_a_wider_tile_in_8_bits_takes_longer_than_in_16_where_registers_spill():
    """TensorRT-LLM 1.3.0rc20 on an L40S, 8 x 32 heads of 64 on 8, 16,384 tokens, the pass over Q, K
    and V within: 78.1 ms in fp8, 59.8 in bf16 (ai-dynamo/aiconfigurator, systems/data/l40s)."""
    times_s = {
        (head_dim, dtype): ran(prefill(head_dim, dtype)).time_s
        for head_dim in (64, 128)
        for dtype in ("fp8", "bf16")
    }
    assert times_s[64, "fp8"] / times_s[64, "bf16"] == pytest.approx(78.1 / 59.8, rel=0.2)
    assert ran(prefill(128, "fp8")).spilled_bytes == 0
    assert times_s[128, "fp8"] < 0.8 * times_s[128, "bf16"]


@pytest.mark.parametrize("head_dim", [64, 128])
def test_both_engines_agree(head_dim):
    w = prefill(head_dim, "fp8", tokens=512)
    hw = load_profile("l40s", {"sm": {"count": 4}}, "a test")
    assert_engines_agree(TRTLLM.lower(w, hw), hw, w.dtype)


@pytest.mark.parametrize(
    ("profile", "head_dim", "message"),
    [
        ("h100-sxm", 64, "it has kernels for sm89 and sm120, not sm90"),
        ("l40s", 160, "K and V of up to 128 columns were expected"),
    ],
)
def test_kernels_that_are_not_there_or_were_not_counted_are_refused(profile, head_dim, message):
    w = prefill(head_dim, "fp8")
    with pytest.raises(InputError, match=message):
        TRTLLM.lower(w, load_profile(profile))
