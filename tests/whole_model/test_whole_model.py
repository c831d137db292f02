"""Whole models: their matrices by closed form, attention as replayed, the `[[model]]` question."""

import json
import tomllib
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import simulate
from sim.engine.power import large_matmul_flops_per_s
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.hub_config import config_of
from sim.inputs.models import MODELS
from sim.inputs.shapes import ModelShape
from sim.report.present import save, show
from sim.runs.scenario import Limits
from sim.schedules import make_schedule
from sim.whole_model.exchange import exchange_s
from sim.whole_model.model import ModelQuestion
from sim.whole_model.passes import Matrices, ModelPass, PassTime, model_pass, replay
from sim.whole_model.setting import Setting

H100 = load_profile("h100-sxm")
DENSE = [shape for shape in MODELS.values() if shape.parameters == shape.active_parameters]
SCENARIO = Path(__file__).parents[2] / "scenarios" / "context_windows.toml"


def schedule(name: str, **options: Any) -> Any:
    return make_schedule({"name": name, **options}, "a test")


def setting(name: str, of: Any = None, **changes: Any) -> Setting:
    return Setting(MODELS[name], changes.pop("hardware", H100), of, **changes)


def time_of(one: ModelPass) -> PassTime:
    ((_, time),) = replay([one], "a test", Limits(), lambda *_: None)
    assert time is not None
    return time


def layer_matrices(shape: ModelShape) -> int:
    """Weights of a layer's matrices by their shapes: Q, K, V, O and the MLP's."""
    q_and_o = 2 * shape.hidden * shape.heads * shape.head_dim
    k_and_v = 2 * shape.hidden * shape.kv_heads * shape.head_dim
    return q_and_o + k_and_v + shape.mlp_matrices * shape.hidden * shape.mlp


def roof_s(weights: int, rows: int) -> float:
    """Seconds of a matrix on an H100 in 16 bits, by its sustained rates."""
    sustained = large_matmul_flops_per_s(H100, "bf16")
    return max(2 * weights / (3.35e12 * 0.9), 2 * weights * rows / sustained)


@given(st.sampled_from(DENSE), st.integers(1, 300_000), st.integers(1, 300))
def test_matrices_take_their_bytes_or_their_flops(shape, tokens, sequences):
    layers_s = shape.layers * roof_s(layer_matrices(shape), tokens)
    head_s = roof_s(shape.vocab * shape.hidden, sequences)
    # Norms, biases and GPT-2's table of positions make a hundredth at the most.
    assert (
        1 <= Matrices(shape, H100, "bf16").time_s(tokens, sequences) / (layers_s + head_s) < 1.011
    )


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v2", "deepseek-v3"])
def test_of_experts_one_token_reads_the_active_weights_and_many_read_all(name):
    shape, hbm = MODELS[name], 3.35e12 * 0.9
    in_embedding = shape.vocab * shape.hidden  # read row by row, as an embedding
    one = Matrices(shape, H100, "bf16").time_s(1, 1) * hbm
    assert one == pytest.approx(2 * (shape.active_parameters - in_embedding), rel=1e-6)
    reads = [Matrices(shape, H100, "bf16").time_s(n, 1) * hbm for n in (1, 2, 8, 64, 256)]
    assert reads == sorted(reads)
    assert reads[1] < 2 * reads[0]
    assert reads[-1] <= 2 * (shape.parameters - in_embedding) * (1 + 1e-9)
    assert reads[-1] > 0.95 * 2 * (shape.parameters - in_embedding)


@given(st.sampled_from(list(MODELS.values())), st.integers(1, 10_000), st.integers(1, 64))
def test_more_tokens_never_take_less(shape, tokens, more):
    few, many = (Matrices(shape, H100, "bf16").time_s(n, 1) for n in (tokens, tokens + more))
    assert few <= many


def test_without_a_tensor_rate_the_matrices_take_the_fp32_lanes():
    shape = MODELS["gpt2"]
    lanes = large_matmul_flops_per_s(H100, "fp32") / 2
    assert lanes <= 132 * 128 * 1830e6 * 0.9
    weights = shape.layers * layer_matrices(shape)
    expected = weights * 10_000 / lanes + 4 * shape.vocab * shape.hidden / (3.35e12 * 0.9)
    assert 1 <= Matrices(shape, H100, "fp32").time_s(10_000, 1) / expected < 1.011


def test_attention_is_every_layers_as_the_scenario_replays_it_but_for_the_first_launch():
    (record,) = simulate(
        workload={"model": "llama-3-8b", "seq_len": 2000, "dtype": "bf16"},
        hardware="h100-sxm",
        schedule="flash2",
    )
    time = time_of(model_pass(setting("llama-3-8b", schedule("flash2")), "prefill", 2000))
    assert time.attention_s == pytest.approx(32 * (record.time_s - 3e-6))
    assert time.attention_hbm_bytes == 32 * record.hbm_bytes
    assert time.time_s == time.attention_s + time.dense_s


def test_a_decode_pass_reads_the_whole_cache_once():
    batch, tokens = 8, 4096
    decoding = model_pass(setting("llama-3-8b", schedule("decode"), batch=batch), "decode", tokens)
    cache = 32 * 2 * 8 * 128 * 2 * batch * tokens
    rows = 32 * 2 * 32 * 128 * 2 * batch  # Q and O
    statistics = 32 * 32 * 4 * batch
    time = time_of(decoding)
    assert time.attention_hbm_bytes == cache + rows + statistics
    assert time.attention_s >= cache / (3.35e12 * 0.9)


def test_a_sliding_window_is_the_models_own():
    decoding = model_pass(setting("mistral-7b", schedule("decode"), batch=1), "decode", 8192)
    assert decoding.workload.window == 4096
    assert time_of(decoding).attention_hbm_bytes < 32 * 2 * 8 * 128 * 2 * 4300


def test_layers_of_a_window_and_others_are_replayed_once_each():
    """Gemma-3 27B: 52 of 62 layers see 1,024 tokens; gpt-oss: every second 128."""
    shape = MODELS["gemma-3-27b"]
    assert (shape.local_layers, shape.local_window) == (52, 1024)
    asked = {"heads": 32, "kv_heads": 16, "head_dim": 128, "causal": True, "dtype": "bf16"}
    every, local = (
        simulate(
            workload=asked | {"seq_len": 8192} | window, hardware="h100-sxm", schedule="flash3"
        )[0]
        for window in ({}, {"window": 1024})
    )
    time = time_of(model_pass(setting("gemma-3-27b", schedule("flash3")), "prefill", 8192))
    launch_s = 3e-6
    assert time.attention_s == pytest.approx(
        10 * (every.time_s - launch_s) + 52 * (local.time_s - launch_s)
    )
    assert time.attention_hbm_bytes == 10 * every.hbm_bytes + 52 * local.hbm_bytes
    short = model_pass(setting("gemma-3-27b", schedule("flash3")), "prefill", 1000)
    assert [count for _, count in short.layers] == [62]
    decoding = model_pass(setting("gpt-oss-20b", schedule("flash_decoding")), "decode", 65536)
    full = 12 * 2 * 8 * 64 * 2 * 65536
    # What a layer of a window reads is its 128 keys, in blocks of 256.
    assert full < time_of(decoding).attention_hbm_bytes < 1.05 * full


def test_of_a_million_tokens_a_part_is_replayed_and_the_error_told():
    one = model_pass(setting("llama-3-8b", schedule("flash3")), "prefill", 2**20)
    time = time_of(one)
    assert 0 < time.attention_error < 0.05
    short = time_of(model_pass(setting("llama-3-8b", schedule("flash3")), "prefill", 2**14))
    assert short.attention_error == 0
    assert time.attention_s == pytest.approx(64**2 * short.attention_s, rel=0.1)


def test_a_prompt_of_300k_tokens_takes_an_a100_what_was_measured_and_one_of_50k_less():
    """Asked in public: 142 s, and 7.5 to 9.6; docs/schedules.md, "Asked in public, and off"."""
    a100 = load_profile("a100-sxm-80gb")

    def total_s(tokens: int) -> float:
        asked = setting("llama-3-8b", schedule("flash2"), hardware=a100)
        return time_of(model_pass(asked, "prefill", tokens)).time_s

    assert total_s(300_000) == pytest.approx(142, rel=0.1)
    assert total_s(50_000) / 8.55 == pytest.approx(0.68, abs=0.05)


# Several GPUs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [2, 8])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_of_tensor_parallelism_each_gpu_has_its_share(phase, gpus):
    one = model_pass(setting("llama-3-8b"), phase, 4096)
    shared = model_pass(setting("llama-3-8b", gpus=gpus), phase, 4096)
    assert (shared.workload.heads, shared.workload.kv_heads) == (32 // gpus, 8 // gpus)
    assert shared.dense_s == pytest.approx(one.dense_s / gpus)
    assert one.exchange_s == 0 < shared.exchange_s
    alone, together = time_of(one), time_of(shared)
    assert together.attention_hbm_bytes == pytest.approx(alone.attention_hbm_bytes, rel=0.02)
    assert together.attention_s < alone.attention_s


def test_an_all_reduce_takes_what_the_schedules_transfers_do():
    """Of the attention's projected result, as `tensor_parallel` has it on four GPUs."""
    workload = {"heads": 32, "kv_heads": 8, "head_dim": 128, "seq_len": 2048, "causal": True}
    workload["dtype"] = "bf16"
    (both,) = simulate(
        workload=workload, hardware="h100-sxm", schedule={"name": "tensor_parallel", "gpus": 4}
    )
    workload |= {"heads": 8, "kv_heads": 2}
    (alone,) = simulate(workload=workload, hardware="h100-sxm", schedule="flash2")
    asked = setting("llama-3-8b", gpus=4)
    in_model = exchange_s(asked, 2048)
    assert in_model / (32 * 2) == pytest.approx(both.time_s - alone.time_s, rel=0.01)


def test_what_is_small_is_summed_in_one_shot():
    """A token's 8 kB on eight GPUs: seven times the bytes, but one latency where a ring has 14."""
    links = H100.calibration.links
    shot_s = 7 * 8192 / (H100.links.peer * links.sustained) + links.latency
    assert exchange_s(setting("llama-3-8b", gpus=8), 1) == pytest.approx(64 * shot_s)


def test_a_pipeline_takes_as_long_as_one_gpu_and_the_ways_between():
    one = model_pass(setting("llama-3-8b"), "decode", 4096)
    stages = model_pass(setting("llama-3-8b", gpus=3, parallel="pipeline"), "decode", 4096)
    assert stages.workload == one.workload
    assert stages.dense_s == one.dense_s
    links = H100.calibration.links
    hop_s = 4096 * 2 / (H100.links.peer * links.sustained) + links.latency
    assert stages.exchange_s == pytest.approx(2 * hop_s)


def test_beyond_a_node_the_ring_waits_for_the_network():
    nodes = {"links.node_gpus": 8, "links.network": 50e9}
    far = H100.with_figures(nodes)
    within, beyond = (
        exchange_s(setting("llama-3.1-405b", hardware=far, gpus=gpus), 8192) for gpus in (8, 16)
    )
    assert beyond > 3 * within


# How it is stored ------------------------------------------------------------------------------


def test_a_token_takes_the_bytes_of_the_weights_as_they_are_stored():
    """16 bits of the LM head, and of 128 other weights 4 bits each and a scale and zero point."""
    shape = MODELS["llama-3-8b"]
    head = shape.vocab * shape.hidden
    layers = shape.parameters - 2 * head
    bits = {"bf16": 16, "fp8": 8, "int8": 8 + 24 / 128, "int4": 4 + 20 / 128}
    for weights, of_weight in bits.items():
        one = model_pass(setting("llama-3-8b", weights=weights), "decode", 1000)
        assert one.dense_s == pytest.approx((layers * of_weight / 8 + 2 * head) / (3.35e12 * 0.9))


def test_many_tokens_are_multiplied_in_fp8_only_where_weights_are_stored_so():
    times = {
        weights: model_pass(setting("llama-3-8b", weights=weights), "prefill", 8192).dense_s
        for weights in ("bf16", "fp8", "int4")
    }
    assert times["int4"] == times["bf16"]
    assert 0.4 * times["bf16"] < times["fp8"] < 0.8 * times["bf16"]


def test_logits_of_all_tokens_multiply_the_head_by_each():
    last, every = (
        model_pass(setting("llama-3-8b"), "prefill", 8192, logits) for logits in ("last", "all")
    )
    head = 128256 * 4096
    more_s = roof_s(head, 8192) - roof_s(head, 1)
    assert every.dense_s - last.dense_s == pytest.approx(more_s)
    decoding = setting("llama-3-8b", batch=16)
    assert (
        model_pass(decoding, "decode", 100, "all").dense_s
        == model_pass(decoding, "decode", 100).dense_s
    )


@given(st.integers(1, 500))
def test_experts_are_missed_by_chance(tokens):
    """Of 128 a token goes to 4, so that T tokens miss the share (1 - 4 / 128)^T."""
    shape = MODELS["gpt-oss-120b"]
    experts = 36 * 128 * (3 * 2880 * 2880 + 3 * 2880)
    assert shape.routed_parameters == experts
    expected = experts * (1 - (1 - 4 / 128) ** tokens)
    assert shape.routed_parameters_used(tokens) == pytest.approx(expected)
    assert MODELS["llama-3-8b"].routed_parameters_used(tokens) == 0


def test_experts_in_mxfp4_are_read_as_such_and_nothing_else():
    shape = MODELS["gpt-oss-120b"]
    in_bf16, in_mxfp4 = (
        model_pass(setting("gpt-oss-120b", weights=weights, batch=4), "decode", 1000).dense_s
        for weights in ("bf16", "mxfp4")
    )
    saved = shape.routed_parameters_used(4) * (16 - 4.25) / 8
    assert in_bf16 - in_mxfp4 == pytest.approx(saved / (3.35e12 * 0.9))


# Training ---------------------------------------------------------------------------------------


def test_a_training_step_is_three_passes_forward_and_the_optimisers():
    """Backward has twice the FLOPs; of each parameter 28 bytes are read and written."""
    shape = MODELS["gpt2-xl"]
    step = model_pass(setting("gpt2-xl", batch=4), "training", 1024)
    forward = model_pass(setting("gpt2-xl", batch=4), "prefill", 1024, "all")
    assert step.dense_s == pytest.approx(3 * forward.dense_s)
    assert step.update_s == pytest.approx(28 * shape.parameters / (3.35e12 * 0.9))
    shared = model_pass(setting("llama-3-8b", gpus=4), "training", 1024)
    assert shared.update_s == pytest.approx(
        model_pass(setting("llama-3-8b"), "training", 1024).update_s / 4
    )
    assert shared.exchange_s == pytest.approx(2 * exchange_s(shared.setting, 1024))


def test_checkpointing_goes_forward_once_more():
    asked = setting("gpt2-xl", batch=4)
    kept, again = (
        model_pass(asked, "training", 1024, checkpointing=which) for which in (False, True)
    )
    forward = model_pass(asked, "prefill", 1024, "last")
    head_s = roof_s(50257 * 1600, 1)
    assert again.dense_s - kept.dense_s == pytest.approx(forward.dense_s - 4 * head_s, rel=0.01)
    times = [time_of(one) for one in (kept, again, forward)]
    more_s = times[1].attention_s - times[0].attention_s
    assert more_s == pytest.approx(times[2].attention_s, rel=0.1)


def test_a_published_training_rate_is_below_what_is_simulated_and_not_far():
    """225 TFLOP/s for each A100, the most of FlashAttention-2 (arXiv 2307.08691, abstract).

    That is of GPT3-2.7B at 8k tokens (Table 1), by the formula of section 4.2. What is left out
    here (norms, GELU, the exchange of data parallelism) takes time there.
    """
    table = {
        "model_type": "gpt2",
        "n_layer": 32,
        "n_embd": 2560,
        "n_head": 20,
        "vocab_size": 50257,
        "n_positions": 8192,
    }
    shape = config_of(table, "a test").shape("gpt3-2.7b", "a test")
    assert shape.parameters == pytest.approx(2.7e9, rel=0.03)
    step = model_pass(Setting(shape, load_profile("a100-sxm-80gb")), "training", 8192)
    flops = 6 * 8192 * shape.parameters + 12 * 32 * 2560 * 8192**2
    assert 1.0 < flops / time_of(step).time_s / 225e12 < 1.25


# The question ----------------------------------------------------------------------------------


def tables(**row: Any) -> dict[str, Any]:
    return {
        "title": "a test",
        "hardware": {"profile": "h100-sxm", "price_per_hour": 3.6},
        "model": [{"model": "gpt2", **row}],
    }


def question(data: dict[str, Any]) -> ModelQuestion:
    return ModelQuestion.from_tables(data, "mine", "mine.toml")


def test_an_answer_says_what_a_prefill_takes_and_costs(tmp_path, capsys):
    data = tables()
    data["model"].append({"model": "gpt3-175b", "proxy_of": "a closed one", "seq_len": 512})
    answer = question(data).answer()
    own, proxy = answer.rows
    assert (own.seq_len, own.schedule, own.gpus_needed) == (1024, "flash2", 1)
    assert own.kv_bytes == 12 * 2 * 12 * 64 * 2 * 1024
    assert own.parameter_bytes == pytest.approx(2 * 124.4e6, rel=0.01)
    assert own.time is not None
    assert own.price_per_million_tokens == pytest.approx(1e-3 * own.time.time_s / 1024 * 1e6)
    assert (proxy.label, proxy.model) == ("a closed one", "gpt3-175b")
    assert proxy.gpus_needed == ceil((proxy.parameter_bytes + proxy.kv_bytes) / (80 * 2**30)) == 5
    show(answer)
    printed = capsys.readouterr().out
    assert "gpt3-175b, a proxy" in printed
    assert "$" in printed
    save(answer, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "passes.png"}
    saved = (tmp_path / "results.json").read_text()
    assert saved == answer.json() == question(data).answer().json()
    first = json.loads(saved)["models"][0]
    assert first["time"]["attention_s"] == own.time.attention_s


def test_decoding_on_several_gpus_is_a_row_like_any_other(tmp_path, capsys):
    row = {"model": "llama-3-70b", "phase": "decode", "batch": 8, "seq_len": 4096}
    rows = [{**row, "gpus": gpus, "label": f"{gpus} GPUs"} for gpus in (1, 4)]
    rows.append({**row, "weights": "int4", "kv_dtype": "fp8", "label": "int4"})
    answer = question({**tables(), "model": rows}).answer()
    one, four, int4 = answer.rows
    assert (one.tokens, one.gpus_needed, int4.gpus_needed) == (8, 2, 1)
    assert one.kv_bytes == four.kv_bytes == 2 * int4.kv_bytes == 8 * 4096 * 80 * 2 * 8 * 128 * 2
    assert one.schedule == "flash_decoding"
    for row in answer.rows:
        assert row.tokens_per_s == pytest.approx(8 / row.time.time_s)
        price = 1e-3 * row.gpus * row.time.time_s / 8 * 1e6
        assert row.price_per_million_tokens == pytest.approx(price)
    assert one.time.time_s / 4 < four.time.time_s < one.time.time_s / 2
    show(answer)
    printed = capsys.readouterr().out
    for part in ("decode", "exchanges", "4, tensor", "tokens/s"):
        assert part in printed
    save(answer, tmp_path)
    saved = json.loads((tmp_path / "results.json").read_text())["models"]
    assert saved[1]["time"]["exchange_s"] == four.time.exchange_s


def test_training_is_a_row_like_any_other(tmp_path, capsys):
    step = {"model": "gpt2-xl", "phase": "training", "batch": 2}
    rows = [{**step, "checkpointing": checkpointing} for checkpointing in (False, True)]
    answer = question({**tables(), "model": rows}).answer()
    kept, again = answer.rows
    assert (kept.tokens, kept.kv_bytes, kept.gpus_needed) == (2048, 0, 1)
    assert again.time.time_s > kept.time.time_s
    show(answer)
    assert "optimiser" in capsys.readouterr().out
    save(answer, tmp_path)


def test_latent_attention_decodes_by_its_own_schedule():
    (row,) = question(tables(model="kimi-k2", phase="decode", seq_len=4096)).answer().rows
    assert row.schedule == "mla"
    assert row.kv_bytes == 61 * (4096 * 576 * 2 + 64 * 4)  # latents, and the numbers of 64 pages
    assert row.time is not None


def test_a_cache_is_what_its_schedule_keeps_of_the_tokens():
    data = tables(model="deepseek-v3", phase="decode", seq_len=4096, kv_dtype="fp8")
    data["model"][0]["schedule"] = {"name": "dsa"}
    (row,) = question(data).answer().rows
    # Latents of 512 in fp8 with four scales and 64 of RoPE in 16 bits; the indexer's K and scale.
    assert row.kv_bytes == 61 * 4096 * (512 + 4 * 4 + 2 * 64 + 128 + 4)


def test_the_longer_the_context_the_more_of_the_time_is_attention():
    shares = []
    for tokens in (512, 2048, 8192, 32768):
        time = time_of(model_pass(setting("llama-3-8b", schedule("flash2")), "prefill", tokens))
        shares.append(time.attention_share)
    assert shares == sorted(shares)


def test_without_a_price_there_is_none(capsys):
    data = tables()
    del data["hardware"]["price_per_hour"]
    answer = question(data).answer()
    assert answer.rows[0].price_per_million_tokens is None
    show(answer)
    assert "million tokens" not in capsys.readouterr().out


def test_a_layer_that_does_not_fit_is_a_result(capsys, tmp_path):
    data = tables(schedule="naive", seq_len=60_000)
    answer = question(data).answer()
    (row,) = answer.rows
    assert row.time is None
    assert row.reason is not None
    show(answer)
    assert "out of memory: " in capsys.readouterr().out
    save(answer, tmp_path)


def test_a_model_whose_schedule_cannot_be_does_not_stop_the_others(capsys):
    data = tables()
    data["model"].append({"model": "gpt2", "schedule": "flash4", "label": "on a Hopper"})
    ran, refused = question(data).answer().rows
    assert (ran.status, refused.status) == ("ok", "failed")
    show(question(data).answer())
    printed = capsys.readouterr().out
    assert "on a Hopper: failed: schedule flash4: hardware.arch" in printed
    assert "published times of such passes were 1.0 to 1.5 times as long" in printed
    del data["model"][0]
    with pytest.raises(InputError, match=r"mine\.toml: schedule flash4: hardware\.arch"):
        question(data).answer()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"model": "gpt22"}, ["mine.toml: model.0.model", "did you mean 'gpt2'?"]),
        ({"tokens": 3}, ["model.0.tokens: unknown key; known: batch, checkpointing, gpus"]),
        ({"logit": "all"}, ["model.0.logit: unknown key; did you mean 'logits'?"]),
        ({"phase": "train"}, ['model.0.phase = "train"', "'training'"]),
        ({"phase": "training", "schedule": "flash3"}, ["schedule flash3: workload.phase"]),
        ({"gpus": 5}, ["gpus = 5: gpt2 has 12 heads"]),
        ({"gpus": 2, "parallel": "context"}, ['model.0.parallel = "context"', "'pipeline'"]),
        ({"logits": "none"}, ["model.0.logits", "'last' or 'all'"]),
        ({"seq_len": 0}, ["model.0.seq_len = 0"]),
        ({"schedule": "flash9"}, ["no such schedule", "did you mean"]),
        (
            {"schedule": True},
            ["model.0.schedule = true: the name of a schedule, or its"],
        ),
        ({"schedule": {"name": "ring", "gpus": 2}}, ["a schedule of one GPU was expected"]),
        (
            {"schedule": "ring"},
            ["schedule ring: a schedule of one GPU was expected, shared by gpus"],
        ),
        ({"schedule": {"name": "mamba2"}}, ["models of another kind"]),
        ({"schedule": "decode"}, ["schedule decode: workload.phase"]),
        ({"schedule": {"name": "flash2", "tile": {"q": 1024, "kv": 1024}}}, ["needs"]),
    ],
)
def test_a_bad_row_is_one_line(change, parts):
    with pytest.raises(InputError) as error:
        question(tables(**change)).answer()
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("mine.toml: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("hardware", "part"),
    [
        ({}, "hardware.profile"),
        ({"profile": "h100-smx"}, "did you mean 'h100-sxm'?"),
        ({"profile": "h100-sxm", "price_per_hour": -1}, "hardware.price_per_hour = -1"),
        ({"profile": "h100-sxm", "price": 1}, "hardware.price: unknown key"),
    ],
)
def test_bad_hardware_is_one_line(hardware, part):
    with pytest.raises(InputError, match=r"\A[^\n]*\Z") as error:
        question({**tables(), "hardware": hardware})
    assert part in str(error.value)


def test_the_shipped_question_names_every_proxy_and_runs_in_its_limits():
    data = tomllib.loads(SCENARIO.read_text())
    asked = question(data)
    lengths = [one.workload.seq_q for one in asked.passes]
    assert lengths[:4] == [1024, 2048, 4096, 8192]
    assert lengths == sorted(lengths)
    proxies = {table.proxy_of: table.model for table in asked.tables if table.proxy_of}
    assert set(proxies) == {"GPT-4 32k", "GPT-4 Turbo", "Claude 2.1", "Gemini 1.5"}
