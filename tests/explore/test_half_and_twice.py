"""What FlashAttention-2 does on an H100 with half and twice its tensor rate: docs/model.md."""

import pytest

from sim import simulate
from sim.inputs.hardware import load_profile
from sim.runs.record import Record

H100 = load_profile("h100-sxm")
RATES = ("2048 FLOP/clock", "4096 FLOP/clock", "8192 FLOP/clock")


def record(tokens: int, rate: str) -> Record:
    """flash2 of 16k tokens in all, 8 heads, where an SM does so much."""
    (found,) = simulate(
        workload={
            "heads": 8,
            "head_dim": 128,
            "seq_len": tokens,
            "batch": 16384 // tokens,
            "dtype": "bf16",
        },
        hardware={"profile": "h100-sxm", "tensor": {"bf16": rate}},
        schedule={"name": "flash2"},
    )
    return found


@pytest.mark.parametrize("tokens", [2048, 16384])
def test_half_the_tensor_rate_binds_and_twice_the_rate_gives_nothing(tokens):
    half, as_is, twice = (record(tokens, rate) for rate in RATES)
    # What is issued does not change, and at the H100's own rate it is what holds flash2 back.
    assert as_is.bottleneck == twice.bottleneck == "issue"
    assert half.kernels[0].issue_filled_by == as_is.kernels[0].issue_filled_by
    assert twice.kernels[0].issue_filled_by == as_is.kernels[0].issue_filled_by
    assert next(iter(as_is.kernels[0].issue_filled_by)) == "matmuls"
    assert twice.time_s == pytest.approx(as_is.time_s, rel=0.01)
    # At half the rate the tensor cores bind: more than as it is, less than twice that.
    assert half.bottleneck == "tensor"
    assert 1.05 * as_is.time_s < half.time_s < 1.5 * as_is.time_s
    rate = H100.tensor_flops_per_s("bf16") / 2 * H100.calibration.tensor.mma_sync
    assert half.time_s > half.flops / rate


def test_a_total_asks_the_same_as_an_sms_rate():
    total = H100.tensor_flops_per_s("bf16") / 2e12
    by_rate, by_total = (record(2048, rate) for rate in (RATES[0], f"{total!r} TFLOP/s"))
    assert by_total.time_s == pytest.approx(by_rate.time_s, rel=1e-9)
