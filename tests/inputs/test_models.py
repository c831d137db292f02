"""Models by name, and by a hub's config.json."""

import json
import subprocess
import sys
from typing import Any

import pytest

from sim.inputs.files import InputError
from sim.inputs.hub_config import config_of, read_config
from sim.inputs.models import MODELS, model_of
from sim.runs.scenario import load_scenario
from tests.support.commands import assert_one_line, called

# Parameters as published: Qwen3's and Gemma 3's by keras-team/keras-hub (qwen3_presets.py and
# gemma3_presets.py, where Gemma's vocabulary has 262,144 tokens), Mixtral's 46.7 billion in arXiv
# 2401.04088, gpt-oss in arXiv 2508.10925 (Table 1), Kimi K2's 1.04 trillion in arXiv 2507.20534,
# GLM-4.5's in arXiv 2508.06471 (Table 1).
PARAMETERS = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_099_328 + 64 * 2560,
    "gemma-3-12b": 11_765_788_416 + 64 * 3840,
}
ROUNDED = {
    "mixtral-8x7b": (46.7e9, 0.001),
    "gpt-oss-20b": (20.91e9, 0.001),
    "gpt-oss-120b": (116.83e9, 0.001),
    "qwen3-30b-a3b": (30.5e9, 0.005),
    "qwen3-235b-a22b": (235e9, 0.005),
    "gemma-3-27b": (1.416e9 + 25.6e9, 0.005),
    "glm-4.5": (355e9, 0.01),
    "glm-4.5-air": (106e9, 0.01),
    "kimi-k2": (1.04e12, 0.015),
    "mistral-small-24b": (24e9, 0.02),
    "phi-4": (14e9, 0.05),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_models_config_adds_up_to_its_parameters(name):
    assert MODELS[name].parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_a_models_config_adds_up_to_what_its_paper_rounds(name):
    parameters, tolerance = ROUNDED[name]
    assert MODELS[name].parameters == pytest.approx(parameters, rel=tolerance)


@pytest.mark.parametrize(("name", "active"), [("gpt-oss-20b", 3.61e9), ("gpt-oss-120b", 5.13e9)])
def test_a_token_uses_the_published_parameters(name, active):
    """arXiv 2508.10925, Table 1, which leaves the embedding out."""
    shape = MODELS[name]
    used = shape.active_parameters - shape.vocab * shape.hidden
    assert used == pytest.approx(active, rel=0.001)


def test_deepseeks_config_adds_up_to_the_papers_figures():
    table = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 61,
        "hidden_size": 7168,
        "num_attention_heads": 128,
        "intermediate_size": 18432,
        "vocab_size": 129280,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
    shape = config_of(table, "a test").shape("mine", "a test")
    assert shape.parameters == pytest.approx(MODELS["deepseek-v3"].parameters, rel=0.001)
    assert shape.active_parameters == pytest.approx(37e9, rel=0.02)
    assert (shape.head_dim, shape.latent_dim, shape.rope_dim) == (192, 512, 64)
    assert shape.experts_per_token == 9


def test_every_model_says_where_it_was_published():
    for shape in MODELS.values():
        assert "config.json" in shape.source or "arXiv" in shape.source
        assert shape.heads % shape.kv_heads == 0


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Qwen3 8B", "qwen3-8b"),
        ("Qwen/Qwen3-8B", "qwen3-8b"),
        ("llama 3.2 1b", "llama-3.2-1b"),
        ("Kimi", "kimi-k2"),
        ("Llama-3-405B", "llama-3.1-405b"),
    ],
)
def test_a_model_is_found_by_its_words(written, meant):
    assert model_of(written) is MODELS[meant]


# A hub's config.json ----------------------------------------------------------------------------

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": None,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "rope_scaling": {"rope_type": "llama3"},
}


def shape_of(**keys: Any) -> Any:
    return config_of({**LLAMA, **keys}, "config.json").shape("mine", "a test")


def test_a_plain_config_is_read():
    shape = shape_of()
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (2, 8, 2, 32)
    assert (shape.hidden, shape.mlp, shape.vocab, shape.context) == (256, 512, 1000, 4096)
    layer = 2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 512 + 2 * 256
    assert shape.parameters == shape.active_parameters == 2 * layer + (2 * 1000 + 1) * 256


@pytest.mark.parametrize(
    ("keys", "window", "local"),
    [
        ({}, None, (0, None)),
        ({"sliding_window": 100}, 100, (0, None)),
        ({"sliding_window": 4096}, None, (0, None)),
        ({"sliding_window": 100, "use_sliding_window": False}, None, (0, None)),
        ({"sliding_window": 100, "max_window_layers": 2}, None, (0, None)),
        ({"sliding_window": 100, "sliding_window_pattern": 2}, None, (1, 100)),
        (
            {"sliding_window": 100, "layer_types": ["sliding_attention", "full_attention"]},
            None,
            (1, 100),
        ),
        ({"sliding_window": 100, "layer_types": ["sliding_attention"] * 2}, 100, (0, None)),
    ],
)
def test_windows_are_of_all_layers_or_of_some(keys, window, local):
    shape = shape_of(**keys)
    assert shape.window == window
    assert (shape.local_layers, shape.local_window) == local


def test_what_a_gemmas_config_leaves_out_is_its_familys():
    """google/gemma-3-4b-pt states hardly more of its language model."""
    inner = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "sliding_window": 1024,
    }
    outer = {"model_type": "gemma3", "text_config": inner, "vision_config": {"hidden_size": 1152}}
    named = MODELS["gemma-3-4b"]
    assert config_of(outer, "a test").shape(named.name, named.source) == named


def test_experts_that_every_token_takes_count_by_the_width_of_the_others():
    """As in Qwen2-MoE: one of four times the width."""
    keys = {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 128}
    shape = shape_of(model_type="qwen2_moe", shared_expert_intermediate_size=512, **keys)
    assert (shape.mlp, shape.experts_per_token) == (128, 8)
    left_out = shape.parameters - shape.active_parameters
    assert left_out == 2 * 56 * 3 * 256 * 128


def test_chatglms_keys_are_understood():
    keys = {
        "model_type": "chatglm",
        "num_layers": 40,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "multi_query_group_num": 2,
        "kv_channels": 128,
        "ffn_hidden_size": 13696,
        "padded_vocab_size": 151552,
        "seq_length": 131072,
    }
    named = MODELS["glm-4-9b"]
    assert config_of(keys, "a test").shape(named.name, named.source) == named


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "a model's config.json was expected"),
        ('{"hidden_size": 3}', "model_type = null: a family that is not understood"),
        (json.dumps({**LLAMA, "model_type": "mamba"}), 'model_type = "mamba": a family that is'),
        (json.dumps({**LLAMA, "model_type": {}}), "model_type = {}: a family that is"),
        (json.dumps({**LLAMA, "hidden_size": None}), "hidden_size: missing"),
        (json.dumps({**LLAMA, "hidden_size": "wide"}), 'hidden_size = "wide": a whole number'),
        (json.dumps({**LLAMA, "num_key_value_heads": 3}), "must be a multiple of num_key_value"),
        (json.dumps({**LLAMA, "num_experts": 2, "num_experts_per_tok": 3}), "num_experts_per_tok"),
        (json.dumps({**LLAMA, "layer_types": ["linear_attention"]}), "'sliding_attention' was"),
    ],
)
def test_what_is_not_understood_is_one_line(text, says, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def asked(tmp_path):
    """A folder with a model's config.json and a scenario about it."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8-sig")  # as on Windows
    (tmp_path / "layer.toml").write_text(
        '[workload]\nmodel = "my-model/config.json"\nphase = "decode"\n'
        '[hardware]\nprofile = "l4"\n[[schedule]]\nname = "decode"\n'
    )
    (tmp_path / "fit.toml").write_text(
        '[defaults]\nhardware = "l4"\n[[fit]]\nmodel = "./my-model/config.json"\n'
    )
    return tmp_path


def test_a_config_is_found_beside_the_file_that_names_it(asked, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    workload = load_scenario(str(asked / "layer.toml")).points[0].workload
    assert (workload.heads, workload.kv_heads, workload.seq_kv) == (8, 2, 4096)
    done = called("run", asked / "fit.toml", cwd=tmp_path_factory.mktemp("there"))
    assert done.returncode == 0, done.stderr
    assert "my-model" in done.stdout


def test_a_config_that_is_not_there_is_one_line(tmp_path):
    arguments = ["fit", "--model", "./config.json", "--hardware", "l4"]
    assert_one_line(called(*arguments, cwd=tmp_path), "attnsim: ", "No such file")


def test_the_list_has_every_model(tmp_path):
    printed = called("models", cwd=tmp_path).stdout
    assert all(shape.name in printed for shape in MODELS.values())
    assert all(shape.source.split()[0] in printed for shape in MODELS.values())
    assert "117 G parameters (5.71 G a token), 36 layers of 2,880, 64 heads of 64" in printed
    assert "72 KiB; 131,072 tokens, 128 in 18 of the layers" in printed


def test_who_asks_for_no_model_reads_none():
    code = (
        "import sys; from sim import simulate; "
        "simulate(workload={'heads': 1, 'head_dim': 64, 'seq_len': 64}, "
        "hardware={'profile': 'h100-sxm'}, schedule='flash2'); "
        "sys.exit('sim.inputs.hub_config' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_people_often_use_is_the_same_model():
    assert MODELS["llama-3-405b"] is MODELS["llama-3.1-405b"]
    assert {"llama-3-405b", "llama-3.1-405b"} < set(MODELS)
    assert len(MODELS) == len(set(MODELS))
    assert "llama-3-4b" not in MODELS
