"""What must live in HBM, held against published figures and the device's own allocations."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.device.memory import OutOfMemoryError, check_memory
from sim.device.run import run_on_device
from sim.inputs.files import InputError, find_toml, read_toml
from sim.inputs.hardware import load_profile
from sim.inputs.models import MODELS
from sim.inputs.shapes import ModelShape
from sim.schedules import SCHEDULES, make_schedule
from sim.whole_model.attention import attention_workload
from sim.whole_model.capacity import MOST_TOKENS, SPACING, longest, longest_context, memory
from sim.whole_model.fit import FitQuestion
from sim.whole_model.inference import cached_layer
from sim.whole_model.moments import USES
from sim.whole_model.setting import (
    Setting,
    cache_bytes_per_token,
    cached_tokens_of_layers,
    parameter_bytes,
)
from sim.whole_model.training import kept_bytes_per_token, trained_layer
from tests.support.commands import assert_one_line, called

H100 = load_profile("h100-sxm")


def gpt(name: str, layers: int, hidden: int, heads: int) -> ModelShape:
    """A GPT of the usual proportions."""
    return ModelShape(
        name=name,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        hidden=hidden,
        mlp=4 * hidden,
        vocab=51200,
        parameters=12 * layers * hidden**2 + 51200 * hidden,
        active_parameters=12 * layers * hidden**2 + 51200 * hidden,
        context=2048,
        window=None,
        source="a test",
        mlp_matrices=2,
        tied_embeddings=True,
    )


def setting(model: str | ModelShape, schedule: str | None = None, **changes) -> Setting:
    shape = MODELS[model] if isinstance(model, str) else model
    named = make_schedule({"name": schedule}, "a test") if schedule else None
    return Setting(shape, changes.pop("hardware", H100), named, **changes)


# Parameters ------------------------------------------------------------------------------------


def dense_parameters(m: ModelShape, biases: int) -> int:
    """Matrices, norms (GPT-2's have biases) and embeddings (GPT-2 learns its positions)."""
    attention = 2 * m.hidden * m.head_dim * (m.heads + m.kv_heads)
    matrices = attention + m.mlp_matrices * m.hidden * m.mlp
    if m.mlp_matrices == 2:
        return m.layers * (matrices + 13 * m.hidden) + (m.vocab + m.context + 2) * m.hidden
    tables = 1 if m.tied_embeddings else 2
    return m.layers * (matrices + 2 * m.hidden + biases) + (tables * m.vocab + 1) * m.hidden


COUNTED = (
    "gpt2",
    "gpt3",
    "llama",
    "mistral",
    "qwen2",
    "phi",
)  # others have norms of heads, or more


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(COUNTED)])
def test_a_dense_models_shape_adds_up_to_its_published_parameters(name):
    m = MODELS[name]
    biases = (m.heads + 2 * m.kv_heads) * m.head_dim if "qwen" in name else 0
    counted = dense_parameters(m, biases)
    assert counted == pytest.approx(m.parameters, rel=0 if "gpt3" not in name else 0.003)
    assert m.active_parameters == m.parameters


@pytest.mark.parametrize(
    ("name", "query_rank", "dense_layers", "dense_mlp", "routed", "shared"),
    [
        ("deepseek-v2-lite", None, 1, 10944, 64, 2),
        ("deepseek-v2", 1536, 1, 12288, 160, 2),
        ("deepseek-v3", 1536, 3, 18432, 256, 1),
    ],
)
def test_a_mixture_of_experts_adds_up_to_its_published_parameters(
    name, query_rank, dense_layers, dense_mlp, routed, shared
):
    """Their config.json; keys and values have 128 dimensions a head beside the rotary ones."""
    m = MODELS[name]
    queries = m.heads * m.head_dim
    attention = m.hidden * queries
    if query_rank:
        attention = m.hidden * query_rank + query_rank * queries
    attention += m.hidden * (m.latent_dim + m.rope_dim)
    attention += m.latent_dim * m.heads * 256 + m.heads * 128 * m.hidden
    expert = 3 * m.hidden * m.mlp

    def count(experts: int, embeddings: int) -> int:
        sparse = (m.layers - dense_layers) * (experts * expert + m.hidden * routed)
        dense = dense_layers * 3 * m.hidden * dense_mlp
        return m.layers * attention + sparse + dense + embeddings * m.vocab * m.hidden

    assert count(routed + shared, 2) == pytest.approx(m.parameters, rel=0.005)
    # A token looks its embedding up, but uses the whole projection to logits.
    assert count(m.experts_per_token, 1) == pytest.approx(m.active_parameters, rel=0.03)


@pytest.mark.parametrize(
    ("model", "weights", "gigabytes"),
    [
        ("llama-2-7b", "int4", 3.90),  # TheBloke/Llama-2-7B-GPTQ, gptq_model-4bit-128g
        ("llama-2-13b", "int4", 7.26),  # TheBloke/Llama-2-13B-GPTQ, gptq_model-4bit-128g
        ("llama-2-7b", "bf16", 13.48),  # two bytes for each of 6,738,415,616
        # gpt-oss model card (arXiv 2508.10925), Table 1: 12.8 and 60.8 GiB
        ("gpt-oss-20b", "mxfp4", 12.8 * 2**30 / 1e9),
        ("gpt-oss-120b", "mxfp4", 60.8 * 2**30 / 1e9),
    ],
)
def test_stored_parameters_are_as_large_as_published_checkpoints(model, weights, gigabytes):
    asked = setting(model, weights=weights)
    (share,) = asked.shares
    assert parameter_bytes(asked, share) / 1e9 == pytest.approx(gigabytes, rel=0.005)


def test_adam_takes_16_bytes_a_parameter():
    """ZeRO, arXiv 1910.02054, section 3.1: at least 24 GB for GPT-2's 1.5 billion."""
    parts = memory(setting("gpt2-xl"), "training", 1024).parts
    states = parts["parameters"] + parts["gradients"] + parts["optimiser"]
    assert states == pytest.approx(16 * MODELS["gpt2-xl"].parameters, rel=1e-9)
    assert states > 24e9


# KV cache --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "bytes_per_token"),
    [
        ("llama-2-7b", 512 * 1024),  # Llama-2's 32 layers of 32 heads of 128
        ("llama-3-8b", 128 * 1024),  # 256 MiB for 2,048 tokens, as llama.cpp allocates
        ("llama-3-70b", 320 * 1024),  # 640 MiB for 2,048 tokens, likewise
        ("qwen2.5-72b", 327_680),  # DeepSeek-V3's insights paper, arXiv 2505.09343, Table 1
        ("llama-3.1-405b", 516_096),  # the same
        ("deepseek-v3", 70_272),  # the same
    ],
)
def test_a_tokens_cache_is_as_large_as_published(model, bytes_per_token):
    asked = setting(model)
    assert asked.model.layers * cache_bytes_per_token(asked) == bytes_per_token


def test_llama_3_70b_caches_40_gib_at_128k_tokens():
    assert memory(setting("llama-3-70b"), "decode", 131072).parts["KV cache"] == 40 * 2**30


@pytest.mark.parametrize(
    ("kv_dtype", "row_bytes"), [(None, 256), ("fp8", 128), ("int8", 132), ("int4", 68)]
)
def test_the_cache_that_a_kernel_reads_is_that_of_the_formula(kv_dtype, row_bytes):
    """A row of 128 elements, in int8 and int4 with a scale and a zero point of 16 bits."""
    asked = setting("llama-3-8b", kv_dtype=kv_dtype, batch=3)
    (share,) = asked.shares
    layer = cached_layer(asked, share, "decode", 5000)
    assert layer.cached_bytes == layer.all_cached_bytes == 3 * 5000 * 2 * 8 * row_bytes
    assert cache_bytes_per_token(asked) == 2 * 8 * row_bytes
    prefill = cached_layer(asked, share, "prefill", 5000)
    assert prefill.all_cached_bytes == layer.all_cached_bytes
    # Prefill reads one sequence; of a quantised cache a copy.
    assert prefill.cached_bytes == (0 if kv_dtype else layer.all_cached_bytes // 3)
    assert prefill.peak_bytes >= 2 * 8 * 5000 * 256


def test_a_sliding_window_caps_the_cache():
    for use in ("prefill", "decode"):
        cache = [memory(setting("mistral-7b"), use, n).parts["KV cache"] for n in (4096, 100_096)]
        assert cache == [4096 * 32 * 8 * 128 * 4] * 2
    asked = setting("mistral-7b")
    assert longest_context(asked, "decode") == MOST_TOKENS
    # The last chunk sees the window of its first query: its own keys and values come on top.
    layer = cached_layer(asked, asked.shares[0], "prefill", 100_096)
    keys_and_values, rows = 2 * 8 * 128 * 2048 * 2, 32 * 2048
    assert layer.peak_bytes - layer.cached_bytes == keys_and_values + rows * (2 * 128 * 2 + 4)


# Activations -----------------------------------------------------------------------------------

# arXiv 2205.05198, Table 3; MT-NLG's is 530B.
PAPER = {
    "22B": gpt("22B", layers=48, hidden=6144, heads=64),
    "175B": gpt("175B", layers=96, hidden=12288, heads=96),
    "530B": gpt("530B", layers=105, hidden=20480, heads=128),
    "1T": gpt("1T", layers=128, hidden=25600, heads=160),
}


def kept_of_layer(asked: Setting, context: int) -> int:
    share = asked.shares[0]
    linear = kept_bytes_per_token(asked, share.ways) * asked.batch * context
    return linear + trained_layer(asked, share, context).kept_bytes


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("ways", [1, 8])
def test_a_gpts_layer_keeps_what_the_paper_says(name, ways):
    """Equation 1 and, with tensor and sequence parallelism, equation 4: all divided by t."""
    m, s, b = PAPER[name], 2048, 2
    asked = setting(m, "naive", dropout=True, batch=b, gpus=ways)
    a, h = m.heads, m.hidden
    assert kept_of_layer(asked, s) == s * b * h * 34 // ways + 5 * a * s * s * b // ways


@pytest.mark.parametrize(("name", "saved"), [("175B", 0.70), ("530B", 0.65)])
def test_attention_is_the_published_share_of_what_is_kept(name, saved):
    """Section 5: not keeping attention's own saves 70% for GPT-3 and 65% for MT-NLG."""
    asked = setting(PAPER[name], "naive", dropout=True)
    attention = trained_layer(asked, asked.shares[0], 2048).kept_bytes
    assert attention / kept_of_layer(asked, 2048) == pytest.approx(saved, abs=0.006)


def test_flash_attention_keeps_a_number_a_row_instead():
    asked = setting(PAPER["22B"], "flash2", dropout=True)
    assert trained_layer(asked, asked.shares[0], 2048).kept_bytes == 4 * 64 * 2048


def test_kernels_around_attention_belong_to_the_pass_that_runs_them():
    """RoPE in kernels of its own keeps its table besides: half a row of cos and of sin a token."""
    rope = make_schedule({"name": "flash2", "rope": "pass"}, "a test")
    asked = replace(setting(PAPER["22B"]), schedule=rope)
    kept = trained_layer(asked, asked.shares[0], 2048).kept_bytes
    assert kept == 4 * 64 * 2048 + 2 * 2048 * 96


def test_checkpointing_keeps_the_layers_inputs_and_one_layer():
    m, s = replace(PAPER["22B"], vocab=16), 2048
    asked = setting(m, "flash2")
    parts = {use: memory(asked, use, s) for use in USES[2:]}
    assert {needed.moment for needed in parts.values()} == {"MLP"}
    all_kept, checkpointed = (needed.parts["activations"] for needed in parts.values())
    of_layer, stream = kept_of_layer(asked, s), 2 * s * m.hidden
    inside = 2 * 2 * s * m.mlp
    assert all_kept == 48 * of_layer + 2 * stream + inside
    assert checkpointed == 48 * stream + of_layer + 2 * stream + inside


def test_the_first_pipeline_stage_keeps_as_much_as_all_layers():
    """Section 4.2.3: p micro-batches of L / p layers."""
    m = replace(PAPER["22B"], vocab=16)
    whole, stages = setting(m), setting(m, gpus=8, parallel="pipeline")
    assert stages.shares[0].layers * stages.shares[0].in_flight == 48
    grown = [memory(asked, "training", 2048).parts["activations"] for asked in (whole, stages)]
    assert grown[0] == grown[1]


def test_a_gated_mlp_keeps_four_of_its_width():
    m = MODELS["llama-3-8b"]
    per_token = kept_bytes_per_token(setting(m))
    assert per_token == 2 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 4 * 14336)


def test_logits_are_of_all_tokens_in_training_and_of_the_last_ones_in_inference():
    """In 16 bits and fp32: 6 bytes."""
    asked = setting("gpt2", batch=4)
    assert memory(asked, "training with checkpointing", 1000).parts["logits"] == 6 * 4000 * 50257
    decoding = memory(asked, "decode", 1000)
    assert decoding.moment == "logits"
    assert decoding.parts["logits"] == 6 * 4 * 50257
    assert decoding.parts["activations"] == 2 * 4 * 2 * 768


def test_prefill_goes_through_an_mlp_chunk_by_chunk():
    """Residual stream, its norm and the MLP's output; gate, up and their product."""
    for chunk, tokens in ((512, 512), (0, 2 * 3000)):
        asked = setting("llama-3-8b", batch=2, chunk=chunk)
        needed = memory(asked, "prefill", 3000)
        assert needed.moment == "MLP"
        assert needed.parts["activations"] == 2 * tokens * (3 * 4096 + 3 * 14336)


def test_latents_are_read_as_keys_and_values_of_all_heads_in_prefill():
    asked = setting("deepseek-v3")
    layer = cached_layer(asked, asked.shares[0], "prefill", 8192)
    assert layer.cached_bytes == 0
    assert layer.all_cached_bytes == 8192 * (512 + 64) * 2
    keys_and_values, rows = 2 * 128 * 192 * 8192 * 2, 128 * 2048
    assert layer.peak_bytes == keys_and_values + 2 * rows * 192 * 2 + rows * 4  # Q, O, LSE


def test_a_mixture_of_experts_keeps_latents_and_each_experts_input():
    m = MODELS["deepseek-v3"]
    heads = 2 * 192 * (128 + 128)  # Q and O, K and V, padded alike
    experts = 9 * (4 * 2048 + 7168)
    assert kept_bytes_per_token(setting(m)) == 2 * (4 * 7168 + heads + 512 + 64 + experts)


# Against the device ----------------------------------------------------------------------------


@st.composite
def small_models(draw) -> ModelShape:
    """Models whose MLP and logits are so small that attention is the fullest moment."""
    kv_heads = draw(st.sampled_from((1, 2)))
    heads = kv_heads * draw(st.sampled_from((1, 2, 4)))
    return replace(
        gpt("small", draw(st.integers(1, 4)), 16, 1),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=64,
        mlp=16,
        vocab=16,
        window=draw(st.sampled_from((None, None, 300))),
        parameters=10**6,
    )


@given(
    small_models(),
    st.sampled_from(("naive", "flash2", "flash_decoding", "hip")),
    st.sampled_from(USES[:3]),
    st.integers(1, 2),
    st.sampled_from((0, 256)),
    st.integers(1, 1200),
)
@settings(max_examples=40)
def test_what_the_device_allocates_is_what_the_model_says(
    model, schedule, use, batch, chunk, context
):
    asked = setting(model, schedule, batch=batch, chunk=chunk)
    (share,) = asked.shares
    try:
        needed = memory(asked, use, context)
    except InputError:
        return  # the schedule does not take the use
    w = attention_workload(asked, share, use, context)
    commands = asked.schedule.program(w, H100)
    run = run_on_device(commands, H100, w.dtype, "replay", lambda _: None)
    allocated = max(change.in_use_bytes for change in run.memory)
    assert needed.moment == "attention"
    parts = needed.parts
    if use == "training":
        # Q, K, V, O and what attention keeps are of one layer's activations.
        activations = parts["activations"] - (model.layers - 1) * kept_of_layer(asked, context)
        beside = 2 * batch * context * (4 * 16 + 2 * 16)  # streams and the MLP's inside
        beside += 2 * 2 * batch * context * 16  # the gradients that flow
        assert activations + parts["attention"] == allocated + beside
    else:
        # The one sequence that a chunk is of, or all.
        cache = parts["KV cache"] // model.layers * w.batch // batch
        assert parts["attention"] + cache == allocated
        new = 2 * w.kv_heads * w.head_dim
        assert parts["activations"] == 2 * w.batch * w.seq_q * (2 * 16 + new)


def test_the_longest_context_runs_on_the_device_and_the_next_does_not():
    hw = load_profile("h100-sxm", {"hbm": {"capacity": "100 MiB"}}, "a test")
    model = replace(gpt("small", 2, 256, 4), mlp=256, vocab=16)
    asked = setting(model, "naive", chunk=0, hardware=hw, reserve_bytes=0)
    (share,) = asked.shares
    tokens = longest_context(asked, "prefill")

    def run(context: int) -> None:
        """The layer's attention in what all else leaves of HBM."""
        needed = memory(asked, "prefill", context)
        layer = cached_layer(asked, share, "prefill", context)
        beside = needed.bytes - needed.parts["attention"] - layer.cached_bytes
        free = hw.hbm.model_copy(update={"capacity": hw.hbm.capacity - beside})
        left = hw.model_copy(update={"hbm": free})
        w = attention_workload(asked, share, "prefill", context)
        run_on_device(asked.schedule.program(w, left), left, w.dtype, "replay", lambda _: None)

    assert tokens > 4 * SPACING
    run(tokens)
    with pytest.raises(OutOfMemoryError):
        run(tokens + SPACING)


@pytest.mark.parametrize(("schedule", "use"), [("ring", "prefill"), ("tree_decoding", "decode")])
def test_context_parallelism_allocates_what_its_schedules_do(schedule, use):
    model = replace(gpt("small", 2, 16, 1), heads=8, kv_heads=2, head_dim=64, mlp=16, vocab=16)
    asked = setting(model, gpus=4, parallel="context", chunk=0)
    (share,) = asked.shares
    context = 4096
    whole = attention_workload(replace(asked, gpus=1), replace(share, token_ways=1), use, context)
    commands = make_schedule({"name": schedule, "gpus": 4}, "a test").program(whole, H100)
    parts = memory(asked, use, context).parts
    counted, allocated = parts["attention"] + parts["KV cache"] // 2, check_memory(commands, H100)
    if use == "prefill":
        assert counted == allocated
    else:  # partial and merged results are counted as if all were there at once
        assert allocated <= counted <= 1.01 * allocated


def test_ring_attention_backward_sends_gradients_round_in_fp32():
    model = replace(gpt("small", 2, 16, 1), heads=8, kv_heads=2, head_dim=64, mlp=16, vocab=16)
    asked = setting(model, gpus=4, parallel="context")
    (share,) = asked.shares
    rows, keys = 8 * 1024, 2 * 1024
    alone = trained_layer(asked, share, 4096).passing_bytes
    received = 2 * 2 * keys * 64 * 2 + 3 * 2 * keys * 64 * 4
    merged = rows * 64 * (2 + 4) + rows * 4
    attention = memory(asked, "training", 4096).parts["attention"]
    assert attention == alone + received + merged


# Against a server's own account ------------------------------------------------------------------

# vLLM's "Memory profiling results" of Llama-3.1-8B-Instruct on an RTX 3090 with prefills of so many
# tokens (vllm-project/vllm, issue 10517): GiB in all, beside tensors, and left for the KV cache.
VLLM = [("rtx-3090", 20_000, 23.58, 0.35, 3.81), ("rtx-3090", 29_000, 23.58, 0.35, 2.89)]


@pytest.mark.parametrize(("device", "chunk", "capacity", "reserve", "cache"), VLLM)
def test_the_cache_that_a_server_finds_room_for_is_what_is_left(
    device, chunk, capacity, reserve, cache
):
    hw = load_profile(device).with_figures({"hbm.capacity": capacity * 2**30})
    reserve_bytes = reserve * 2**30
    changes = {"chunk": chunk, "reserve_bytes": reserve_bytes, "utilisation": 0.9}
    asked = setting("llama-3-8b", hardware=hw, **changes)
    assert asked.usable_bytes == int(0.9 * hw.hbm.capacity)
    needed = memory(asked, "prefill", chunk)
    left_bytes = asked.usable_bytes - needed.bytes + needed.parts["KV cache"]
    assert left_bytes / 2**30 == pytest.approx(cache, abs=0.06)


# Several GPUs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_shares_add_up_to_the_whole(gpus):
    one = memory(setting("llama-3-70b"), "decode", 8192).parts
    for parallel in ("tensor", "pipeline", "context"):
        asked = setting("llama-3-70b", gpus=gpus, parallel=parallel)
        parts = memory(asked, "decode", 8192).parts
        assert parts["KV cache"] * gpus == one["KV cache"]
        held = sum(parameter_bytes(asked, share) for share in asked.shares)
        copies = gpus if parallel == "tensor" else 1
        assert held * copies == pytest.approx(one["parameters"], rel=1e-6)
    assert (
        sum(
            share.layers
            for share in setting("llama-3.1-405b", gpus=gpus, parallel="pipeline").shares
        )
        == 126
    )


def test_context_parallel_training_shares_out_the_states_and_gathers_a_layer():
    m = MODELS["llama-3-8b"]
    asked = setting(m, gpus=8, parallel="context")
    parts = memory(asked, "training", 8192).parts
    states = parts["parameters"] + parts["gradients"] + parts["optimiser"]
    layer = (m.parameters - 2 * m.vocab * m.hidden) // 32
    assert states == pytest.approx(16 * m.parameters / 8 + 2 * layer, rel=1e-6)


def test_fewer_kv_heads_than_gpus_are_copied_and_latents_always():
    assert cache_bytes_per_token(setting("llama-3-8b", gpus=32), 32) == 2 * 128 * 2
    assert cache_bytes_per_token(setting("deepseek-v3", gpus=8), 8) == (512 + 64) * 2


# Longest contexts ------------------------------------------------------------------------------


@given(st.integers(0, 3000), st.integers(1, 2000))
def test_bisection_finds_what_a_search_one_by_one_finds(limit, most):
    def fits(number: int) -> bool:
        return number <= limit

    expected = 0
    while expected < most and fits(expected + 1):
        expected += 1
    assert longest(fits, most) == expected


@given(
    st.sampled_from([name for name in MODELS if name != "gpt2"]),
    st.sampled_from((None, "naive", "decode", "hip", "paged", "mla")),
    st.sampled_from(("bf16", "int4")),
    st.sampled_from((None, "int4", "fp8")),
    st.sampled_from((1, 7)),
    st.sampled_from((("tensor", 1), ("tensor", 4), ("pipeline", 5), ("context", 3))),
    st.sampled_from((0, 2048)),
    st.sampled_from(USES),
    st.integers(1, 200),
    st.integers(1, 8),
)
@settings(max_examples=150)
def test_memory_grows_with_the_context(
    model, schedule, weights, kv_dtype, batch, split, chunk, use, commands, more
):
    parallel, gpus = split
    changes = {"weights": weights, "kv_dtype": kv_dtype, "batch": batch, "chunk": chunk}
    try:
        asked = setting(model, schedule, gpus=gpus, parallel=parallel, **changes)
        shorter = memory(asked, use, commands * SPACING)
    except InputError:
        return  # heads do not share out, or the schedule does not take the use
    assert memory(asked, use, (commands + more) * SPACING).bytes >= shorter.bytes


@pytest.mark.parametrize("use", USES[:2])
def test_the_longest_context_fits_and_the_next_does_not(use):
    asked = setting("llama-3-8b", hardware=load_profile("rtx-4090"))
    tokens = longest_context(asked, use)
    free = 24 * 2**30 - 2**30 - 2 * 8_030_261_248
    assert tokens == pytest.approx(free / 2**17, rel=0.03)  # 128 KiB a token, activations aside
    assert memory(asked, use, tokens).bytes <= 24 * 2**30
    assert memory(asked, use, tokens + SPACING).bytes > 24 * 2**30
    in_part = replace(asked, utilisation=0.9)
    tokens = longest_context(in_part, use)
    assert memory(asked, use, tokens).bytes <= 0.9 * 24 * 2**30
    assert memory(asked, use, tokens + SPACING).bytes > 0.9 * 24 * 2**30


def test_naive_prefill_ends_where_its_score_matrices_do():
    """S and P of 32 heads and the mask, in 16 bits, beside the parameters and the cache."""
    asked = setting("llama-3-8b", "naive", chunk=0, hardware=load_profile("rtx-4090"))
    free = 24 * 2**30 - 2**30 - 2 * 8_030_261_248
    tokens = longest_context(asked, "prefill")
    assert 2 * 65 * tokens**2 < free < 2 * 65 * (tokens * 1.1) ** 2


@pytest.mark.parametrize("model", ["llama-3-8b", "deepseek-v3"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_any_schedule_answers_or_says_why_not_in_one_line(name, model):
    tables = {"fit": [{"model": model, "hardware": "h100-sxm", "schedule": name}]}
    tables["uses"] = ["prefill", "decode"]
    refused, rows = "", []
    try:
        rows = FitQuestion.from_tables(tables, "mine", "mine").answer().rows
    except InputError as error:
        refused = str(error)
    assert refused.startswith("mine: ") if not rows else not refused
    assert "\n" not in refused
    for use in (use for row in rows for use in row.uses.values()):
        assert use.refused or use.longest_tokens > 0 or model == "deepseek-v3"


# The question and its answer -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "holds", "fails"),
    [
        ("consumer_24gb", ["llama-3-8b", "llama-2-7b, int4, KV int4"], ["llama-2-7b, int4"]),
        ("professional_80gb", ["llama-3-8b", "llama-3-70b, int4, KV fp8"], ["llama-3-70b, int4"]),
    ],
)
def test_the_often_read_rule_holds_for_some_and_not_for_others(name, holds, fails):
    path = find_toml(name, "scenarios", "scenario")
    answer = FitQuestion.from_tables(read_toml(path), name, path.name).answer()
    reached = {
        row.title: min(use.longest_tokens for use in row.uses.values()) for row in answer.rows
    }
    assert all(reached[title] >= answer.rule for title in holds)
    assert all(reached[title] < answer.rule for title in fails)


def test_checkpointing_trains_several_times_the_context():
    path = find_toml("training_memory", "scenarios", "scenario")
    answer = FitQuestion.from_tables(read_toml(path), "training_memory", path.name).answer()
    for row in answer.rows:
        kept, checkpointed = (use.longest_tokens for use in row.uses.values())
        assert checkpointed > 3 * kept > 0


LLAMA = ["fit", "--model", "llama-3-8b", "--hardware", "rtx-4090"]


def test_fit_answers_on_the_terminal_and_in_files(tmp_path):
    done = called(*LLAMA, "--context", 50_000, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("64,000", "parameters", "14.96 GiB", "does not fit"):
        assert part in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "memory.png"}
    printed = called(*LLAMA, "--context", 50_000, "--json", cwd=tmp_path).stdout
    assert printed == (tmp_path / "out/results.json").read_text()
    (row,) = json.loads(printed)["rows"]
    prefill = row["uses"]["prefill"]
    assert prefill["at_context"]["bytes"] == sum(prefill["at_context"]["parts"].values())
    assert prefill["at_context"]["fits"]
    assert row["uses"]["training"]["longest_tokens"] == 0


def test_several_cards_stand_side_by_side(tmp_path):
    """200,000 tokens take 40.6 GiB, which 0.9 of an L40S holds and of an RTX 4090 not."""
    cards = ["fit", "--model", "llama-3-8b", "--hardware", "b200,rtx-4090,l40s"]
    asked = [*cards, "--context", 200_000, "--utilisation", 0.9]
    done = called(*asked, "--uses", "prefill,decode", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0.9 of 48 GiB" in done.stdout
    told = "200,000 tokens in prefill, decode: the smallest is llama-3-8b, l40s\n"
    assert told in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.json",
        "memory.png",
        "longest_context.png",
    }
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert [row["asked"]["hardware"] for row in rows] == ["b200", "rtx-4090", "l40s"]
    assert [row["uses"]["decode"]["at_context"]["fits"] for row in rows] == [True, False, True]
    assert len({row["label"] for row in rows}) == 3
    done = called(*asked, cwd=tmp_path)
    assert f"{told}200,000 tokens in training, training with checkpointing: none" in done.stdout


def test_a_card_that_has_no_answer_leaves_the_others_theirs():
    tables = {"uses": ["prefill"], "defaults": {"model": "llama-3-8b", "schedule": "flash4"}}
    tables["fit"] = [{"hardware": ["h100-sxm", "b200"]}]
    hopper, blackwell = FitQuestion.from_tables(tables, "mine", "mine").answer().rows
    assert "flash4" in hopper.uses["prefill"].refused
    assert blackwell.uses["prefill"].longest_tokens > 0


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"utilisation": 90}, ["utilisation = 90", "at most 1"]),
        ({"hardware": []}, ["hardware = []", "a list"]),
        ({"hardware": ["l4", "l44"]}, ["no such profile; did you mean 'l4'?"]),
        ({"weights": "mxfp4"}, ['weights = "mxfp4"', "llama-3-8b has none"]),
        ({"kv_dtype": "mxfp4"}, ['kv_dtype = "mxfp4"']),
        ({"weights": "int5"}, ['weights = "int5"', "int4"]),
        ({"kv_dtype": "fp32"}, ['kv_dtype = "fp32"', "int8"]),
        ({"gpus": "3"}, ["gpus = 3", "32 heads"]),
        ({"gpus": "many"}, ['gpus = "many"', "whole number"]),
        ({"batch": "0"}, ['batch = "0"', "must be above 0"]),
        ({"gpus": 40, "parallel": "pipeline"}, ["gpus = 40", "32 layers"]),
        ({"parallel": "data"}, ['parallel = "data"', "context"]),
        ({"schedule": "falsh2"}, ["did you mean 'flash2'?"]),
        ({"schedule": {"name": "hip", "kept": 3}}, ["kept: unknown key"]),
        ({"schedule": "ring"}, ["schedule = ring", "gpus and parallel"]),
        ({"schedule": "mamba2"}, ["schedule = mamba2", "known: naive"]),
        ({"schedule": "mla"}, ["schedule mla", "latent_dim is missing"]),
        ({"reserve": 2}, ["reserve = 2", "no unit"]),
        ({"model": "llama-3"}, ["there are llama-3-8b, llama-3-70b"]),
        ({"hardware": "rtx-409"}, ["did you mean 'rtx-4090'?"]),
    ],
)
def test_bad_input_is_one_line(changes, parts):
    row = {"model": "llama-3-8b", "hardware": "rtx-4090", **changes}
    with pytest.raises(InputError) as error:
        FitQuestion.from_tables({"fit": [row]}, "mine", "mine.toml").answer()
    message = str(error.value)
    assert message.startswith("mine.toml: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["--gpus", "many"], 'gpus = "many"'), (["--out", "/proc/nowhere"], "--out /proc/nowhere")],
)
def test_bad_input_on_the_command_line_is_one_line_and_exit_code_2(arguments, part, tmp_path):
    assert_one_line(called(*LLAMA, *arguments, cwd=tmp_path), "attnsim: ", part)


def test_a_files_rows_are_named_where_they_are_wrong():
    good = {"model": "gpt2", "hardware": "t4"}
    for tables, complaint in (
        ({"fit": []}, "mine.toml: fit = "),
        ({"fit": [good], "rules": 3}, "mine.toml: rules: unknown key; did you mean 'rule'?"),
        ({"fit": [good, {**good, "weight": "int4"}]}, "mine.toml: fit 2: weight: unknown key"),
        ({"fit": [{"model": "gpt2"}]}, "mine.toml: hardware: missing"),
        ({"defaults": good, "fit": [{"context": -1}]}, "mine.toml: context = -1"),
    ):
        with pytest.raises(InputError) as error:
            FitQuestion.from_tables(tables, "mine", "mine.toml")
        assert str(error.value).startswith(complaint)
    (row,) = FitQuestion.from_tables({"defaults": good, "fit": [{}]}, "mine", "m").answer().rows
    assert row.context == 1024


def test_layers_of_a_window_hold_that_window_s_tokens():
    """gpt-oss-20b: 12 layers hold all tokens and 12 their 128; 8 KV heads of 64."""
    asked = setting("gpt-oss-20b")
    (share,) = asked.shares
    assert cached_tokens_of_layers(asked, share, 65536) == 12 * 65536 + 12 * 128
    assert cached_tokens_of_layers(asked, share, 100) == 24 * 100
    cache = memory(asked, "decode", 65536).parts["KV cache"]
    assert cache == (12 * 65536 + 12 * 128) * 2 * 8 * 64 * 2
