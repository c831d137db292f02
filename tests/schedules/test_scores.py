"""Changes of scores before the softmax: softcap, ALiBi, a bias tensor."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import simulate
from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import Bias
from sim.schedules import make_schedule
from sim.schedules.base import Tile
from sim.schedules.parts.public_tiles import public_split_kv_cta
from sim.schedules.parts.scores import masked
from tests.support.drawn import devices, lowered, schedules, workloads
from tests.support.formulas import run, tile_of, visited, workload

H100 = load_profile("h100-sxm")
MEM_EFFICIENT = {"name": "flash2", "implementation": "mem-efficient"}
TRITON = {"name": "flash2", "implementation": "triton"}
BIASES = st.sampled_from(get_args(Bias))


def kernels(table, w, hw=H100):
    return kernels_of(make_schedule(table, "a test").program(w, hw))


@given(workloads(), devices(l2="0 B"), schedules("flash2"), BIASES)
@settings(max_examples=40)
def test_without_l2_a_bias_is_read_once_a_head_where_blocks_are_visited(w, hw, schedule, bias):
    schedule = schedule.model_copy(update={"implementation": "triton"})
    plain = lowered(schedule, w, hw)
    added = lowered(schedule, replace(w, bias=bias), hw)
    tile = tile_of(plain)
    rows = np.minimum(tile.q, w.seq_q - tile.q * np.arange(-(-w.seq_q // tile.q)))
    keys = np.minimum(tile.kv, w.seq_kv - tile.kv * np.arange(-(-w.seq_kv // tile.kv)))
    elements = int((visited(w, tile) * rows[:, None] * keys).sum())
    reads = [run(one, hw, w)[0].hbm_read_bytes for one in (plain, added)]
    assert reads[1] - reads[0] == w.batch * w.heads * elements * w.dtype_bytes


@pytest.mark.parametrize("table", [TRITON, MEM_EFFICIENT, {"name": "naive"}])
@pytest.mark.parametrize(
    ("bias", "matrices"), [("one", 1), ("head", 4), ("sequence", 3), ("all", 12)]
)
def test_a_vast_l2_reads_each_matrix_of_a_bias_once(table, bias, matrices):
    hw = load_profile("h100-sxm", {"l2": {"capacity": "1 GiB"}}, "a test")
    w = workload(batch=3, heads=4, head_dim=64, seq_len=300, bias=bias)
    reads = [
        sum(ran.hbm_read_bytes for ran in run(kernels(table, one, hw), hw, one))
        for one in (replace(w, bias=None), w)
    ]
    assert reads[1] - reads[0] == matrices * 300 * 300 * 2


def executed(table, **workload_table):
    w = workload(**({"heads": 4, "head_dim": 128, "seq_len": 1024} | workload_table))
    return run(kernels(table, w), H100, w)[0]


@pytest.mark.parametrize("table", [{"name": "flash2"}, TRITON, {"name": "flash3"}])
@pytest.mark.parametrize("causal", [False, True])
def test_softcap_takes_a_second_exponential_and_a_product_a_score(table, causal):
    plain, capped = (executed(table, causal=causal, softcap=c) for c in (None, 50))
    scores = plain.executed("mma_flops") // (4 * 128)
    assert capped.executed("exp_count") - plain.executed("exp_count") == scores
    assert capped.executed("vector_ops") - plain.executed("vector_ops") == scores
    assert capped.hbm_read_bytes == plain.hbm_read_bytes


def test_alibi_by_column_takes_an_fma_a_score_and_next_to_no_time():
    """Dao-AILab/flash-attention, pull request 540: "almost no loss" on an A100, causal."""
    plain, alibi = (executed({"name": "flash2"}, causal=True, alibi=a) for a in (False, True))
    scores = plain.executed("mma_flops") // (4 * 128)
    assert alibi.executed("vector_ops") - plain.executed("vector_ops") == scores
    times_s = [
        simulate(
            workload={"heads": 16, "head_dim": 128, "seq_len": 4096, "causal": True}
            | {"batch": batch, "alibi": alibi},
            hardware="a100-sxm-80gb",
            schedule="flash2",
        )[0].time_s
        for alibi in (False, True)
        for batch in (2, 4, 8)  # how its last wave is filled is worth as much
    ]
    assert 1 < sum(times_s[3:]) / sum(times_s[:3]) < 1.03


def test_eager_attention_makes_three_passes_of_a_softcap():
    w = workload(heads=2, head_dim=64, seq_len=256, softcap=30)
    names = [kernel.name for kernel in kernels({"name": "naive"}, w)]
    assert names == ["S = Q K^T", "S / c", "tanh", "c S", "P = softmax(S)", "O = P V"]


@pytest.mark.parametrize(
    ("table", "change", "complaint"),
    [
        ({"name": "flash2"}, {"bias": "head"}, 'its kernel has softcap and alibi; "triton", "mem-'),
        (MEM_EFFICIENT, {"softcap": 50}, "workload.softcap = 50: its kernel has bias; "),
        ({"name": "flash3"}, {"alibi": True}, "workload.alibi = true: none was expected; "),
        ({"name": "naive"}, {"alibi": True}, 'or bias = "head", which eager code adds'),
        ({"name": "ring", "gpus": 2}, {"bias": "all"}, 'workload.bias = "all": none was expected'),
        (
            {"name": "flash2"},
            {"softcap": 50, "phase": "training"},
            'workload.softcap = 50: workload.phase = "training": prefill or decode was expected',
        ),
        ({"name": "flash2"}, {"softcap": 50, "dropout": True}, "no dropout was expected"),
        (
            {"name": "paged", "implementation": "xqa"},
            {"alibi": True, "phase": "decode"},
            "its kernel has none; ",
        ),
    ],
)
def test_what_has_no_kernel_is_one_line(table, change, complaint):
    w = workload(**({"heads": 4, "head_dim": 128, "seq_len": 1024} | change))
    with pytest.raises(InputError, match=complaint) as caught:
        kernels(table, w)
    assert "\n" not in str(caught.value)


def test_an_fp8_cache_of_a_model_with_a_softcap_is_not_read_by_xqa():
    w = workload(heads=8, kv_heads=1, head_dim=128, phase="decode", seq_kv=4096, kv_dtype="fp8")
    plain, capped = (
        kernels({"name": "flash_decoding"}, replace(w, softcap=c))[0] for c in (None, 50.0)
    )
    assert (plain.footprint.threads, capped.footprint.threads) == (384, 128)


def other_ops(w) -> float:
    """Of FlashAttention-2's kernel on 16 heads of 128 columns, of each score that it multiplies."""
    (ran,) = run(kernels({"name": "flash2"}, w), H100, w)
    return ran.executed("other_ops") / (ran.executed("mma_flops") / (4 * 128))


@pytest.mark.parametrize("causal", [True, False])
def test_flash2_compares_every_score_with_its_window_s_edges(causal):
    """Its kernel of 128 x 64 spills in its loop: 12 a score, 8 on the two trips before it."""
    w = workload(heads=16, head_dim=128, seq_len=2048)
    windowed = replace(w, window=256, causal=causal)
    trips = visited(windowed, Tile(q=128, kv=64)).sum(axis=1)
    expected = 12 - (12 - 8) * 2 * len(trips) / trips.sum()
    assert other_ops(windowed) - other_ops(w) == pytest.approx(expected, rel=1e-4)


def test_split_kv_compares_a_score_in_five_cycles_behind_a_window():
    """Its kernel of 64 x 128 has registers left: 3.6 instructions, 5 cycles when played through."""
    w = workload(heads=16, head_dim=128, seq_len=2048, window=256, causal=True)
    cta = public_split_kv_cta(w, H100, "cuda")
    assert masked(w, cta.tile, cta.in_window).other == 5


@pytest.mark.parametrize(("seq_len", "share"), [(128, 1), (2048, 2 * 16 / (16 * 17))])
def test_flash2_masks_the_trips_that_the_diagonal_crosses(seq_len, share):
    """Two of 64 keys for each block of 128 rows, of 2, 4, ... trips."""
    w = workload(heads=16, head_dim=128, seq_len=seq_len)
    assert other_ops(replace(w, causal=True)) - other_ops(w) == pytest.approx(6 * share, rel=1e-3)
