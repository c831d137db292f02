"""vLLM's write to the cache: what its kernel moves, how many CTAs share an SM, what each takes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.inputs.hardware import load_profile
from sim.machine import ctas_per_sm, idle_cta_s
from sim.tile_program import Compute
from tests.support.formulas import run, workload
from tests.support.same_runs import assert_engines_agree
from validate.beside import beside
from validate.cache_write import CacheWrite, time_s

H100, B200 = load_profile("h100-sxm"), load_profile("b200")


@pytest.mark.parametrize(
    ("hw", "heads", "cached_bytes", "ctas"),
    [
        (H100, 32, 2, 3),  # 512 threads of 40 registers
        (H100, 32, 1, 2),  # of 54
        (H100, 2, 1, 4),  # 256 threads
        (B200, 32, 2, 4),  # of 32
        (B200, 32, 1, 2),  # of 46
    ],
)
def test_registers_leave_room_for_so_many_ctas(hw, heads, cached_bytes, ctas):
    """reshape_and_cache_flash in the wheel of vLLM 0.24.0."""
    kernel = CacheWrite(4096, heads, 128, 2, cached_bytes).kernel(hw)
    assert kernel.ctas == 4096
    assert ctas_per_sm(kernel.footprint, hw) == ctas


def test_of_many_short_tokens_it_is_the_waves_times_what_a_cta_does_in_a_row():
    """A slot, K, V: three reads; 411, twice 241 cycles (470 more each in 8 bits) by play."""
    for cached_bytes, narrowing in ((2, 0), (1, 2 * 470)):
        write = CacheWrite(131072, 1, 64, 2, cached_bytes)
        ctas = ctas_per_sm(write.kernel(H100).footprint, H100)
        cycles = 411 + 2 * 241 + narrowing
        latency = H100.calibration.hbm.latency
        token_s = idle_cta_s(H100) + 3 * latency + cycles / H100.sm.clock
        expected_s = 131072 / (132 * ctas) * token_s
        assert time_s(write, H100) == pytest.approx(expected_s, rel=0.25)


def test_of_wide_tokens_hbm_says_how_long_16_bits_take():
    write = CacheWrite(65536, 32, 128, 2, 2)
    assert write.bytes == 2 * 65536 * 32 * 128 * 4
    streams_s = write.bytes / (H100.hbm.bandwidth * 0.875)  # shares of reads and of writes
    assert time_s(write, H100) == pytest.approx(streams_s, rel=0.02)
    # Two CTAs of an SM that each narrow what they move keep HBM waiting.
    narrowed = replace(write, cached_bytes=1)
    assert time_s(narrowed, H100) > time_s(write, H100) * 0.75 * 1.2


def test_a_head_s_tokens_together_are_a_warp_s_turn():
    """HND: 16 warps take 32 heads in two turns, of 16 lanes each."""
    apart, together = (CacheWrite(4096, 32, 128, 2, 1, by_heads) for by_heads in (False, True))
    for write, turns in ((apart, 1), (together, 2)):
        kernel = write.kernel(B200)
        assert set(kernel.trips[1]) == {turns}
        narrowed = [op for op in kernel.loops[1].ops if isinstance(op, Compute)]
        warps = write.heads_a_turn * 128 // (8 * (16 if write.by_heads else 32))
        assert {op.other_ops for op in narrowed} == {32 * warps * (61 + 122)}
    assert time_s(together, B200) > time_s(apart, B200)


@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.sampled_from((4, 64, 128)),
    st.sampled_from((1, 2)),
    st.booleans(),
)
def test_it_moves_each_element_once_and_both_engines_agree(tokens, heads, d, cached, by_heads):
    write = CacheWrite(tokens, heads, d, 2, cached, by_heads)
    kernel, hw = write.kernel(H100), H100.with_figures({"l2.capacity": 0.0})
    assert_engines_agree([kernel], hw, "bf16")
    (ran,) = run([kernel], hw, workload(seq_len=1, heads=1, head_dim=64, dtype="bf16"))
    elements = 2 * tokens * heads * d
    assert ran.hbm_read_bytes == elements * 2 + 8 * tokens
    assert ran.hbm_write_bytes == elements * cached


def test_a_call_s_write_is_a_launch_of_its_own():
    w = workload(heads=8, kv_heads=2, head_dim=128, seq_len=512, batch=4, dtype="bf16")
    written = beside("cache write", w, "bf16", "bf16")
    (write,) = written.writes
    seconds, roofline_s = written.times(w, H100)
    assert seconds == H100.calibration.launch.gap + time_s(write, H100)
    assert roofline_s == write.bytes / H100.hbm.bandwidth
