"""Queries over a cached prefix: bytes, FLOPs and what the mask shows, and the times measured."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules import SCHEDULES
from sim.schedules.base import Tile
from sim.tile_program import Compute
from tests.support.drawn import cases, devices, lowered
from tests.support.formulas import (
    blocks_with_any,
    ceil,
    run,
    run_head_dim,
    visible,
    visited,
    visits,
)

TAKING = sorted(name for name, kind in SCHEDULES.items() if "append" in kind.takes)


def split_tile(kernel, head_dim: int) -> Tile:
    """Query rows and keys of a step of a split-KV kernel of so many columns."""
    multiply = next(s for s in kernel.actions if isinstance(s, Compute) and s.name == "S = Q K^T")
    (q,) = (s for s in kernel.streams if s.tensor.name == "Q")
    return Tile(q=q.tile_rows, kv=multiply.mma_flops // (2 * q.tile_rows * head_dim))


@given(cases("flash_decoding", "paged"), devices(l2="0 B"))
@settings(max_examples=60)
def test_split_kv_of_several_queries_reads_what_each_block_of_them_sees(case, hw):
    w, schedule = case
    assume(getattr(schedule, "implementation", "cuda") != "flashinfer")  # test_flashinfer.py
    assume(w.seq_q > 1 and w.seq_q <= w.seq_kv)
    w = replace(w, kv_dtype=None)
    schedule = schedule.model_copy(update={"rope": None})
    kernels = lowered(schedule, w, hw)
    head_dim = run_head_dim(w, schedule)
    tile, runs = split_tile(kernels[0], head_dim), run(kernels, hw, w)
    heads, down = w.batch * w.heads, ceil(w.seq_q, tile.q)
    splits = kernels[0].ctas // (heads * down)
    pairs = visited(w, tile)
    flops = 4 * head_dim * int(pairs.sum()) * tile.q * tile.kv * heads
    assert runs[0].executed("mma_flops") == flops >= w.useful_flops
    row_bytes = w.head_dim * w.dtype_bytes
    q_bytes = heads * w.seq_q * row_bytes
    if schedule.name == "flash_decoding":
        keys = np.minimum(tile.kv, w.seq_kv - tile.kv * np.arange(pairs.shape[1]))
        cache_bytes = 2 * heads * int((pairs * keys).sum()) * row_bytes
        # A CTA that sees none of its range loads no queries.
        size = ceil(pairs.shape[1], splits)
        seen = sum(pairs[:, at : at + size].any(axis=1) for at in range(0, pairs.shape[1], size))
        rows = np.minimum(tile.q, w.seq_q - tile.q * np.arange(down))
        loaded_bytes = heads * int((seen * rows).sum()) * row_bytes
        assert runs[0].hbm_read_bytes == loaded_bytes + cache_bytes
    else:
        assert splits <= (schedule.splits or 1)
    written = [q_bytes + 4 * heads * w.seq_q]
    if splits > 1:
        written.insert(0, splits * 4 * heads * w.seq_q * (w.head_dim + 1))
        assert runs[1].hbm_read_bytes == written[0]
    assert [ran.hbm_write_bytes for ran in runs] == written


@given(cases("mla"), st.integers(1, 40), st.sampled_from(("flashmla", "fa3")), devices(l2="0 B"))
@settings(max_examples=60)
def test_mla_s_tokens_are_rows_that_share_the_latents(case, tokens, implementation, hw):
    assume(implementation == "flashmla" or hw.arch == "sm90")
    w = replace(case[0], dtype="bf16", seq_q=min(tokens, case[0].seq_kv))
    kernels = lowered(SCHEDULES["mla"](implementation=implementation, tile=case[1].tile), w, hw)
    split = next(kernel for kernel in kernels if kernel.name == "mla")
    ran = run([split], hw, w)[0]
    q, c = (next(s for s in split.streams if s.tensor.name == name) for name in "QC")
    # A matrix has the heads of a token, one token below the other.
    pairs = blocks_with_any(
        np.repeat(visible(w), w.heads, axis=0), Tile(q=q.tile_rows, kv=c.tile_rows)
    )
    shown = w.batch * int(pairs.sum())
    width = w.latent_dim + w.rope_dim
    scores = q.tile_rows * c.tile_rows
    assert ran.executed("mma_flops") == shown * 2 * scores * (width + w.latent_dim)


@given(cases("flash3"), devices(l2="0 B", names=("h100-sxm",)))
@settings(max_examples=60)
def test_flash3_s_splits_share_out_the_key_blocks_and_read_q_again(case, hw):
    w, schedule = case
    assume(schedule.implementation != "trtllm")  # which does not split
    for splits in (2, 3):
        kernel, combine = lowered(schedule.model_copy(update={"splits": splits}), w, hw)
        ran, combined = run([kernel, combine], hw, w)
        named = {stream.tensor.name: stream for stream in kernel.streams}
        q, o = named["Q"], named["O of splits"]
        multiply = next(s for s in kernel.actions if s.name == "S = Q K^T")
        shown = int(visits(w, kernel, schedule=schedule).sum()) * q.tensor.groups
        assert ran.executed("mma_flops") == 2 * multiply.mma_flops * shown
        assert o.tensor.groups == splits * q.tensor.groups == splits * w.batch * w.kv_heads
        rows = q.tensor.groups * q.tensor.rows
        assert combined.hbm_write_bytes == rows * (2 * w.head_dim + 4)
        assert combined.hbm_read_bytes == splits * rows * 4 * (w.head_dim + 1)
        assert ran.hbm_write_bytes <= combined.hbm_read_bytes


def test_every_schedule_says_whether_it_takes_several_queries_and_which_do():
    w = WorkloadTable(
        heads=4, head_dim=64, seq_q=3, seq_kv=256, phase="decode", causal=True
    ).workload()
    assert {"flash2", "flash3", "flash_decoding", "mla", "naive", "paged"} <= set(TAKING)
    for name, kind in SCHEDULES.items():
        if "decode" in kind.phases and name not in TAKING:
            schedule = kind.model_construct(name=name)
            with pytest.raises(InputError, match=f"seq_q = 3.*{', '.join(TAKING)} take") as caught:
                kind.check(schedule, w)
            assert "\n" not in str(caught.value)


def time_us(name: str, hw, **table) -> float:
    """What the kernels of a schedule take together."""
    w = WorkloadTable(**table).workload()
    return 1e6 * sum(ran.time_s for ran in run(kernels_of(SCHEDULES[name]().program(w, hw)), hw, w))


def test_splits_halve_the_time_of_few_queries_on_many_keys():
    """FlashAttention-3, 8 heads of 1 KV head, 10,000 keys, H100: 180 us unsplit, 85 us in 32."""
    hw = load_profile("h100-sxm")
    w = WorkloadTable(
        heads=8, kv_heads=1, head_dim=64, seq_q=128, seq_kv=10000, dtype="bf16"
    ).workload()
    unsplit, split, public = (
        sum(ran.time_s for ran in run(kernels_of(schedule.program(w, hw)), hw, w))
        for schedule in (SCHEDULES["flash3"](splits=n) for n in (1, 32, None))
    )
    assert split < unsplit / 2
    assert public < unsplit / 2


@pytest.mark.parametrize("implementation", ["flashinfer", "trtllm", "triton"])
def test_kernels_of_latents_whose_rows_are_one_token_s_heads_say_so(implementation):
    w = WorkloadTable(model="deepseek-v3", seq_q=2, seq_kv=4096, phase="decode").workload()
    with pytest.raises(InputError, match="decodes one query; flashmla, fa3 take more"):
        SCHEDULES["mla"](implementation=implementation).program(w, load_profile("h100-sxm"))


@pytest.mark.parametrize("heads", [16, 32])
def test_two_drafted_tokens_cost_mla_what_one_does(heads):
    """FlashMLA, batch 128, 4k, H100: 218 us for two, 215 for one: up to 64 rows are one tile."""
    hw = load_profile("h100-sxm")
    table = {"heads": heads, "kv_heads": 1, "head_dim": 128, "latent_dim": 512, "rope_dim": 64}
    one, two = (
        time_us("mla", hw, **table, batch=128, seq_kv=4096, seq_q=n, causal=True, phase="decode")
        for n in (1, 2)
    )
    assert two == pytest.approx(one, rel=0.03)


def test_vllm_s_kernel_does_not_split_the_keys_of_a_few_queries():
    """LLMServingSim, RTX 4090, Llama-3.1 8B: 519 us for 16 to 32 queries behind 16k tokens."""
    hw = load_profile("rtx-4090")
    w = WorkloadTable(model="llama-3-8b", seq_q=16, seq_kv=16400, phase="prefill").workload()
    (kernel,) = kernels_of(SCHEDULES["paged"]().program(w, hw))
    assert kernel.ctas == 32 < hw.sm.count
    (split, combine) = kernels_of(SCHEDULES["flash_decoding"]().program(w, hw))
    assert split.ctas > 128
    assert combine.kind == "combine"
