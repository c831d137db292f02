"""Sequences of several lengths: a batch of equal ones again, closed forms, what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.fast_forward.choice import Choice
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.schedules import SCHEDULES
from tests.support.drawn import cases, devices, lowered
from tests.support.formulas import run, run_head_dim, tile_of, visited, visits, workload
from tests.support.same_runs import assert_engines_agree

TAKING = sorted(name for name, kind in SCHEDULES.items() if "lengths" in kind.takes)
OF_QUERIES = sorted(name for name in TAKING if "query lengths" in SCHEDULES[name].takes)
FIGURES = (
    "time_s", "busy_s", "path_s", "cta_start_s", "cta_end_s", "hbm_read_bytes", "hbm_write_bytes",
    "l2_read_bytes", "l2_write_bytes", "l2_hit_bytes",
)  # fmt: skip


def of_lists(case: Any) -> Any:
    """The case with no option that goes against lists."""
    w, schedule = case
    phase = "prefill" if w.phase == "training" else w.phase
    against = ("rope", "grid_order", "key_order")
    fields = type(schedule).model_fields
    changed = {key: fields[key].default for key in against if key in fields}
    if schedule.name == "flash3":
        changed["call"] = "varlen" if schedule.call == "batch" else schedule.call
        if schedule.implementation == "trtllm":
            changed["implementation"] = fields["implementation"].default
    return replace(w, phase=phase), schedule.model_copy(update=changed)


def takers(*names: str) -> Any:
    """Cases of schedules that take lists, of one length yet."""
    return cases(*(names or TAKING)).map(of_lists)


@st.composite
def ragged(draw: Any, *names: str) -> Any:
    """Cases of one to four sequences of several lengths."""
    w, schedule = draw(takers(*names))
    keys = draw(st.lists(st.integers(1, 400), min_size=1, max_size=4))
    queries = [min(w.seq_q, min(keys)) if w.causal or w.phase == "decode" else w.seq_q] * len(keys)
    splits = getattr(schedule, "splits", None) or 1
    free = splits == 1 or getattr(schedule, "implementation", "cuda") == "flashinfer"
    if schedule.name in OF_QUERIES and (free or schedule.name == "flash3"):
        most = (lambda own: own) if w.causal or w.phase == "decode" else (lambda own: 400)
        queries = [draw(st.integers(1, min(most(own), 60))) for own in keys]
    keys = [w.shared_prefix + own for own in keys]
    lengths = tuple(zip(queries, keys, strict=True))
    window = None if getattr(schedule, "implementation", "") == "flashinfer" else w.window
    return replace(
        w, batch=len(keys), seq_q=max(queries), seq_kv=max(keys), lengths=lengths, window=window
    ), schedule


@given(takers(), devices())
@settings(max_examples=150)
def test_a_list_of_equal_lengths_is_a_batch_of_as_many_sequences(case, hw):
    w, schedule = case
    listed = replace(w, lengths=((w.seq_q, w.seq_kv),) * w.batch)
    of_batch, of_list = (run(lowered(schedule, each, hw), hw, w) for each in (w, listed))
    for ours, theirs in zip(of_list, of_batch, strict=True):
        for name in FIGURES:
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
        assert ours.kernel.tile_steps == theirs.kernel.tile_steps
        assert ours.executed("mma_flops") == theirs.executed("mma_flops")


@given(ragged(), devices())
@settings(max_examples=150)
def test_both_engines_agree_on_sequences_of_several_lengths(case, hw):
    w, schedule = case
    assert_engines_agree(lowered(schedule, w, hw), hw, w.dtype)


def test_a_combine_kernel_that_finds_no_range_runs():
    """vLLM launches it though its sequences are too short to be split: they have no partial O."""
    w = workload(heads=1, head_dim=64, dtype="fp16", phase="decode", seq_kv=[2, 3])
    schedule = SCHEDULES["flash3"].model_validate({"implementation": "vllm", "call": "varlen"})
    hw = load_profile("h100-sxm")
    combine = run(lowered(schedule, w, hw), hw, w)[-1]
    assert combine.kernel.name == "combine"
    assert combine.l2_read_bytes == 0


@given(ragged(*(name for name in TAKING if name not in ("mla", "cascade"))), devices(l2="64 MiB"))
@settings(max_examples=100)
def test_an_infinite_l2_leaves_each_sequence_s_own_tokens(case, hw):
    """Q, and K and V from the first block that a query sees, are read; O and log-sum-exps written.

    Of a paged cache some of the page table too. A cache of latents is of whole pages.
    """
    w, schedule = case
    runs = run(lowered(schedule, w, hw), hw, w)
    streams = runs[0].kernel.streams
    k = next(stream for stream in streams if stream.tensor.role == "key")
    shown = [one.visible_keys(0, one.seq_q - 1) for one in w.sequences]
    keys = w.kv_heads * sum(high - low // k.tile_rows * k.tile_rows for low, high in shown)
    queries = w.heads * sum(w.queries)
    row_bytes = w.head_dim * w.dtype_bytes
    read = queries * row_bytes + 2 * keys * k.tensor.cols * k.tensor.element_bytes
    table = sum(stream.tensor.bytes for stream in streams if stream.tensor.role == "cache")
    assert read <= runs[0].hbm_read_bytes <= read + table
    if len(runs) == 1:
        o_bytes = 2 if schedule.name == "flash3" else w.dtype_bytes
        written = runs[0].hbm_write_bytes + runs[0].l2_dirty_bytes
        assert written == queries * (w.head_dim * o_bytes + 4)


@given(ragged("flash2", "flash3"), devices())
@settings(max_examples=100)
def test_flops_are_those_of_each_sequence_alone(case, hw):
    w, schedule = case
    schedule = schedule.model_copy(update={"splits": 1}) if schedule.name == "flash3" else schedule
    kernel = lowered(schedule, w, hw)[0]
    ran = run([kernel], hw, w)[0]
    if schedule.name == "flash2":
        tile, d = tile_of([kernel]), run_head_dim(w, schedule)
        pairs = sum(int(visited(one, tile).sum()) for one in w.sequences)
        assert ran.executed("mma_flops") == 4 * d * pairs * tile.q * tile.kv * w.heads
    else:
        multiply = next(s for s in kernel.actions if s.name == "S = Q K^T")
        groups = kernel.tensors[0].groups // w.batch
        packed = w.heads // groups
        shown = (
            sum(int(visits(one, kernel, packed, schedule).sum()) for one in w.sequences) * groups
        )
        assert ran.executed("mma_flops") == 2 * multiply.mma_flops * shown
    assert ran.executed("mma_flops") >= w.useful_flops


@given(
    ragged("flash2", "flash_decoding", "decode", "paged", "flash3"), devices(l2="0 B"), st.data()
)
@settings(max_examples=100)
def test_bytes_and_flops_do_not_depend_on_the_order_of_sequences(case, hw, data):
    w, schedule = case
    mixed = replace(w, lengths=tuple(data.draw(st.permutations(w.lengths))))
    runs = [run(lowered(schedule, each, hw), hw, w) for each in (w, mixed)]
    for ours, theirs in zip(*runs, strict=True):
        for name in ("hbm_read_bytes", "hbm_write_bytes", "l2_read_bytes", "l2_write_bytes"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.executed("mma_flops") == theirs.executed("mma_flops")


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - set(TAKING)))
def test_a_schedule_that_takes_no_lists_says_which_do(name):
    phase = SCHEDULES[name].phases[0]
    lengths = {"seq_kv": [64, 128]} if phase == "decode" else {"seq_len": [64, 128]}
    kind = SCHEDULES[name]
    w = workload(heads=4, head_dim=64, phase=phase, causal="causal" in kind.masks, **lengths)
    with pytest.raises(InputError, match=", ".join(TAKING)) as caught:
        kind.check(kind.model_construct(name=name), w)
    assert "2 sequences of 64 to 128" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(set(TAKING) - set(OF_QUERIES) - {"decode"}))
def test_kernels_that_take_as_many_queries_of_each_say_which_take_lists_of_them(name):
    w = workload(heads=4, head_dim=64, latent_dim=64, phase="decode", seq_q=[1, 3], seq_kv=128)
    kind = SCHEDULES[name]
    with pytest.raises(InputError, match=f"seq_q.*{', '.join(OF_QUERIES)} take such lists"):
        kind.check(kind.model_construct(name=name, implementation="flashmla"), w)


@pytest.mark.parametrize(
    "options",
    [{"name": "flash3"}, {"name": "flash2", "rope": "pass"}, {"name": "paged", "splits": 2}],
)
def test_options_that_go_against_lists_are_refused(options):
    w = workload(heads=4, head_dim=64, phase="decode", dtype="bf16", seq_q=[1, 3], seq_kv=128)
    schedule = SCHEDULES[options["name"]].model_validate(options)
    with pytest.raises(InputError, match=options["name"]):
        schedule.program(w, load_profile("h100-sxm"))


def times_us(lengths: list[int], *schedules: dict[str, Any]) -> list[float]:
    """What decoding them takes on an H100, of Llama 3 8B."""
    hw = load_profile("h100-sxm")
    w = workload(heads=32, kv_heads=8, head_dim=128, dtype="bf16", phase="decode", seq_kv=lengths)
    made = (SCHEDULES[options["name"]].model_validate(options) for options in schedules)
    return [sum(1e6 * ran.time_s for ran in run(lowered(one, w, hw), hw, w)) for one in made]


def test_one_long_sequence_holds_up_splits_by_the_longest_but_no_plan():
    """16 sequences of 8 KV heads come in two ranges each by FA2's rule, be one of them of 64k."""
    fa2, flashinfer, fa3 = (
        {"name": "flash_decoding"},
        {"name": "paged", "implementation": "flashinfer"},
        {"name": "flash3", "call": "paged"},
    )
    mixed = times_us([65_536, *[1024] * 15], fa2, flashinfer, fa3)
    even = times_us([5056] * 16, fa2, flashinfer, fa3)
    assert mixed[0] > 2 * even[0]
    assert mixed[1] < 1.2 * even[1]
    assert mixed[2] < 1.2 * even[2]


def test_kernels_of_several_lengths_are_replayed_whole():
    """Which part of them would tell of the rest?"""
    for name in TAKING:
        options = {"flash3": {"call": "varlen"}}.get(name, {})
        lengths = {"phase": "decode", "seq_kv": [40_000, 64, 3000]}
        if "shared prefix" in SCHEDULES[name].takes:
            lengths["shared_prefix"] = 50
        w = workload(heads=8, head_dim=64, dtype="bf16", latent_dim=64, **lengths)
        kernels = lowered(SCHEDULES[name](**options), w, load_profile("h100-sxm"))
        assert kernels[0].tile_steps > 300
        assert kernels[0] not in Choice.of(kernels, load_profile("h100-sxm"), 10).in_part
        alike = replace(w, lengths=None)
        kernels = lowered(SCHEDULES[name](**options), alike, load_profile("h100-sxm"))
        assert kernels[0] in Choice.of(kernels, load_profile("h100-sxm"), 10).in_part


def test_ctas_behind_a_sequence_s_end_only_start():
    """FlashAttention-2's grid is as large as the longest needs for each."""
    w = workload(heads=2, head_dim=64, seq_len=[1024, 128, 128])
    (kernel,) = lowered(SCHEDULES["flash2"](), w, load_profile("a100-sxm-80gb"))
    assert kernel.ctas == 2 * 3 * 1024 // 128
    assert (kernel.trips.sum(axis=0) > 0).sum() == 2 * (8 + 1 + 1)


def test_fa3_deals_only_tiles_that_are_there_the_longest_sequence_first():
    w = workload(heads=2, head_dim=128, dtype="bf16", seq_len=[256, 1280, 128])
    schedule = SCHEDULES["flash3"](call="varlen")
    (kernel,) = lowered(schedule, w, load_profile("h100-sxm"))
    assert kernel.ctas == 2 * (2 + 10 + 1)
    assert kernel.trips[1].tolist() == [7] * 20 + [1] * 4 + [0] * 2  # key blocks but the first


def test_flashinfers_plan_has_ranges_of_one_length_for_all():
    """PrefillBinarySearchKVChunkSize: 33 work items fit 264 CTAs of 8 KV heads."""
    w = workload(
        heads=32, kv_heads=8, head_dim=128, dtype="bf16", phase="decode", seq_kv=[16_384, 512, 100]
    )
    schedule = SCHEDULES["paged"](implementation="flashinfer")
    kernel, _ = lowered(schedule, w, load_profile("h100-sxm"))
    pages = next(n for n in range(8, 1024) if -(-1024 // n) + -(-32 // n) + -(-7 // n) <= 33)
    assert kernel.ctas == 8 * sum(-(-own // pages) for own in (1024, 32, 7))
