"""DeepSeek Sparse Attention against formulas written apart from it, and what was published."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import simulate
from sim.device.program import kernels_of
from sim.device.run import run_on_device
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules import make_schedule
from tests.support.drawn import cases, devices, lowered
from tests.support.formulas import ceil, run
from tests.support.same_runs import assert_engines_agree

HOPPER = ("h100-sxm",)
H100 = load_profile("h100-sxm")
DSA = make_schedule({"name": "dsa"}, "a test")


def deepseek(**given):
    table = {"model": "deepseek-v3", "dtype": "bf16", **given}
    return WorkloadTable(**table).workload()


def seen_of(w):
    return np.arange(w.seq_q) + 1 + w.seq_kv - w.seq_q


def rows_read(w, schedule):
    """Keys that each query's heads read: pairs, cut at the end; in whole blocks of 64."""
    pairs = schedule.chosen_pairs(seen_of(w))
    steps = np.full(w.seq_q, schedule.top) if w.phase == "decode" else seen_of(w)
    read = -(-np.minimum(steps, schedule.top) // 64) * 32
    of_pair = np.minimum(2, w.seq_kv - 2 * pairs)
    return sum(int(own[:count].sum()) for own, count in zip(of_pair, read, strict=True))


@given(cases("dsa"), devices(l2="0 B", names=HOPPER))
@settings(max_examples=40)
def test_dsa_scores_all_that_is_seen_and_reads_what_it_chose(case, hw):
    w, schedule = case
    kernels = lowered(schedule, w, hw)
    ran = dict(zip((k.name for k in kernels), run(kernels, hw, w), strict=True))
    decoding, heads, dim = w.phase == "decode", schedule.index_heads, schedule.index_dim
    a_block = w.seq_q if decoding else 128 // heads
    ends = [min(first + a_block, w.seq_q) for first in range(0, w.seq_q, a_block)]
    seen = [int(seen_of(w)[end - 1]) for end in ends]
    steps = sum(ceil(end, 256) for end in seen)
    keys = sum(min(w.seq_kv, ceil(end, 256) * 256) for end in seen)
    scores = ran["index scores"]
    again = 1  # blocks of queries that are loaded, one more for each SM that shares a sequence
    if decoding:
        cuts = np.arange(1, hw.sm.count) * (w.batch * steps // hw.sm.count)
        more = w.batch * steps % hw.sm.count
        cuts += np.maximum(0, np.arange(1, hw.sm.count) - (hw.sm.count - more))
        inside = {int(cut) for cut in cuts if 0 < cut < w.batch * steps and cut % steps}
        again = 1 + len(inside) / w.batch
    of_q = w.seq_q * heads * (dim + 4)
    assert scores.hbm_read_bytes == w.batch * (again * of_q + keys * (dim + 4))
    stored = sum(
        min(a_block, end - start) * min(w.seq_kv, ceil(own, 256) * 256) * 4
        for start, end, own in zip([0, *ends], ends, seen, strict=False)
    )
    assert scores.hbm_write_bytes == w.batch * stored
    assert scores.executed("mma_flops") == w.batch * steps * 2 * a_block * heads * 256 * dim
    chosen = ran["choose keys"]
    long = seen_of(w)[seen_of(w) > schedule.top]
    pieces = np.minimum(-(-long // 4096) * 4096, w.seq_kv)
    assert chosen.hbm_read_bytes == w.batch * 2 * 4 * int(pieces.sum())
    assert chosen.hbm_write_bytes == w.batch * w.seq_q * schedule.top * 4
    row = 512 + 16 + 128 if decoding else 1152
    blocks = ceil(w.heads, 64)
    attention = ran["sparse mla"]
    if not decoding:
        queries = w.batch * w.seq_q
        loaded = -(-np.minimum(seen_of(w), schedule.top) // 64) * 64
        numbers = w.batch * blocks * int(loaded.sum()) * 4
        of_keys = w.batch * blocks * rows_read(w, schedule) * row
        assert attention.hbm_read_bytes == queries * w.heads * 1152 + numbers + of_keys
        assert attention.hbm_write_bytes == queries * w.heads * (1024 + 8)
    flops = w.batch * w.seq_q * blocks * schedule.top * 64 * 2 * (576 + 512)
    assert attention.executed("mma_flops") == flops
    if "widen C" in ran:
        wide = ran["widen C"]
        assert (wide.hbm_read_bytes, wide.hbm_write_bytes) == (
            w.batch * w.seq_kv * 656,
            w.batch * w.seq_kv * 1152,
        )


@given(st.integers(1, 4), st.integers(1, 2), st.sampled_from((64, 128)), st.integers(1, 12))
@settings(max_examples=30)
def test_decoding_reads_each_chosen_row_once_for_all_heads(batch, seq_q, heads, sms):
    """Two CTAs of 64 heads each load half the keys; partial results are read once."""
    w = deepseek(batch=batch, seq_q=seq_q, seq_kv=700, heads=heads, phase="decode", kv_dtype="fp8")
    hw = load_profile("h100-sxm", {"sm": {"count": sms}, "l2": {"capacity": "0 B"}}, "a test")
    schedule = make_schedule({"name": "dsa", "top": 256}, "a test")
    kernels = kernels_of(schedule.program(w, hw))
    ran = dict(zip((k.name for k in kernels), run(kernels, hw, w), strict=True))
    attention = ran["sparse mla"]
    items = int(kernels[2].trips[0].sum())  # that load a block of 64 query rows
    numbers = batch * seq_q * (heads // 64) * 256 * 4
    keys = batch * rows_read(w, schedule) * 656
    assert attention.hbm_read_bytes == items * 64 * 1152 + numbers + keys
    if "combine" in ran:
        partial = attention.hbm_write_bytes - ran["combine"].hbm_read_bytes
        whole = ran["combine"].hbm_write_bytes
        assert whole + partial == batch * seq_q * heads * (1024 + 4)
    else:
        assert attention.hbm_write_bytes == batch * seq_q * heads * (1024 + 4)


@pytest.mark.parametrize(("heads", "loads"), [(64, 32), (128, 16)])
def test_a_pair_of_ctas_loads_each_chosen_key_once(heads, loads):
    """All rows of a query's 64 heads, or of both blocks of 64 together, are those chosen."""
    w = deepseek(batch=2, seq_q=2, seq_kv=5000, heads=heads, phase="decode", kv_dtype="fp8")
    kernel = next(k for k in kernels_of(DSA.program(w, H100)) if k.name == "sparse mla")
    streams = [s for s in kernel.loops[1].streams if s.tensor.role == "cache"]
    assert len(streams) == loads
    read: dict[int, list[int]] = {}
    for stream in streams:
        bases, starts = stream.base(kernel.items), stream.start(kernel.items)
        for base, start, trips in zip(bases, starts, kernel.trips[1], strict=True):
            own = base + stream.table[start : start + trips]
            read.setdefault(int(base), []).extend(own.tolist())
    chosen = DSA.chosen_pairs(seen_of(w))
    for base, own in read.items():
        assert sorted(own) == sorted((base + chosen).ravel().tolist())


@given(cases("dsa"), devices(names=HOPPER))
@settings(max_examples=25)
def test_both_engines_agree_on_dsa(case, hw):
    w, schedule = case
    assert_engines_agree(lowered(schedule, w, hw), hw, w.dtype)


@given(st.integers(1, 3000), st.integers(1, 20))
@settings(max_examples=50)
def test_a_query_is_given_different_keys_all_of_which_it_sees(seq_kv, queries):
    seen = np.maximum(1, seq_kv - np.arange(queries))
    chosen = make_schedule({"name": "dsa", "top": 256}, "a test").chosen_pairs(seen)
    for own, keys in zip(chosen, seen.tolist(), strict=True):
        assert len(set(own.tolist())) == min(128, ceil(keys, 2))
        assert own.min() >= 0
        assert own.max() < ceil(keys, 2)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"dtype": "fp16"}, 'workload.dtype = "fp16": "bf16"'),
        ({"latent_dim": 256}, "workload.latent_dim = 256: 512"),
        ({"model": "llama-3-8b"}, "workload.latent_dim = 0: 512"),
        ({"heads": 256}, "workload.heads = 256: up to 128"),
        ({"phase": "decode"}, 'workload.kv_dtype = "bf16": "fp8"'),
        ({"kv_dtype": "int8"}, 'workload.kv_dtype = "int8": "fp8"'),
        ({"phase": "decode", "kv_dtype": "fp8", "seq_q": 3}, "workload.seq_q = 3: up to 2"),
        ({"phase": "training"}, 'phase = "training": prefill or decode was expected'),
    ],
)
def test_what_its_kernels_do_not_have_is_told_in_a_line(given, told):
    with pytest.raises(InputError, match=told) as refused:
        DSA.check(deepseek(**{"seq_kv": 1024, "seq_q": 1, **given}))
    assert "\n" not in str(refused.value)


def test_it_is_refused_before_hopper():
    with pytest.raises(InputError, match='"sm90" was expected'):
        DSA.program(deepseek(seq_len=1024), load_profile("a100-sxm-80gb"))


def attention_tflops(w):
    """TFLOP/s as FlashMLA's tests count them: 2,048 keys a query, 576 + 512 columns."""
    hw = load_profile("h800-sxm")
    ran = run_on_device(DSA.program(w, hw), hw, w.dtype, "replay", lambda _: None, most_steps=10**6)
    time_s = sum(one.run.time_s for one in ran.kernels if one.run.kernel.name == "sparse mla")
    return w.batch * w.seq_q * w.heads * 2048 * 2 * (576 + 512) / time_s / 1e12


def test_decoding_and_prefill_reach_what_flashmla_says_of_an_h800():
    """README: up to 640 TFLOP/s of sparse prefill, 410 of decoding 128 sequences of two queries."""
    decoding = deepseek(batch=128, seq_q=2, seq_kv=32768, phase="decode", kv_dtype="fp8")
    assert attention_tflops(decoding) == pytest.approx(410, rel=0.15)
    prefill = deepseek(seq_q=4096, seq_kv=32768)
    assert attention_tflops(prefill) == pytest.approx(640, rel=0.15)


def test_the_indexer_multiplies_in_fp8_and_its_share_of_the_peak_is_of_that():
    w = {"model": "deepseek-v3", "dtype": "bf16", "seq_q": 512, "seq_kv": 8192}
    (record,) = simulate(hardware="h100-sxm", workload=w, schedule="dsa")
    scores = record.kernels[0]
    fp8 = load_profile("h100-sxm").tensor_flops_per_s("fp8")
    assert scores.tensor_utilisation == pytest.approx(scores.flops / scores.time_s / fp8)
    assert record.tensor_utilisation * record.time_s == pytest.approx(
        sum(one.tensor_utilisation * one.time_s for one in record.kernels)
    )
