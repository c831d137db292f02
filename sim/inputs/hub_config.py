"""A model's `config.json`, as hubs have it, read as the shape of the model.

Parameters are counted as the family's code makes them of such a config (huggingface/transformers,
models/NAME/modeling_NAME.py): matrices, norms, biases. Of a model that sees images the language
model alone counts. Not read: how weights are quantised, layers that predict further tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from sim.inputs.files import InputError, checked, shown
from sim.inputs.shapes import ModelShape
from sim.inputs.units import Count, CountOrNone


@dataclass(frozen=True)
class Family:
    """What the configs of a `model_type` leave unsaid.

    A layer has `norms`, of `norm_vectors` as wide as the residual stream, and with `qk_norm` two as
    wide as a head. `biases` are attention's, or with "all" every matrix's. `tied` says whether one
    matrix embeds and projects where a config does not; `positions` whether those are embedded too.
    `defaults` are of keys that a config may leave out.
    """

    norms: int = 2
    norm_vectors: int = 1
    qk_norm: bool = False
    biases: Literal["", "qkv", "qkvo", "all"] = ""
    mlp_matrices: int = 3
    tied: bool = False
    positions: bool = False
    sinks: bool = False  # a logit a head that no key has
    defaults: Mapping[str, Any] = field(default_factory=dict)


_PLAIN, _BIASED, _QK_NORM = Family(), Family(biases="qkv"), Family(qk_norm=True)
FAMILIES: dict[str, Family] = {
    "gpt2": Family(norm_vectors=2, biases="all", mlp_matrices=2, tied=True, positions=True),
    "llama": _PLAIN,
    "mistral": _PLAIN,
    "mixtral": _PLAIN,
    "phi3": _PLAIN,
    "qwen2": _BIASED,
    "qwen2_moe": _BIASED,
    "qwen3": _QK_NORM,
    "qwen3_moe": _QK_NORM,
    "qwen3_vl_text": _QK_NORM,
    "qwen3_vl_moe_text": _QK_NORM,
    "gemma2": Family(norms=4, tied=True, defaults={"sliding_window_pattern": 2}),
    "gemma3_text": Family(
        norms=4,
        qk_norm=True,
        tied=True,
        defaults={  # Gemma3TextConfig's, on which that of the 4B model relies
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "sliding_window_pattern": 6,
        },
    ),
    "gpt_oss": Family(biases="all", sinks=True),
    "chatglm": _BIASED,
    "glm": _BIASED,
    "glm4": Family(norms=4, biases="qkv"),
    "glm4_moe": _BIASED,
    "deepseek_v2": _PLAIN,
    "deepseek_v3": _PLAIN,
    "kimi_k2": _PLAIN,
}
INNER = ("text_config", "llm_config", "language_config")  # of a model that sees images too


def _named(*names: str, default: Any = ...) -> Any:
    """A field by the names that families have for its key."""
    return Field(default, validation_alias=AliasChoices(*names))


class HubConfig(BaseModel):
    """What of a `config.json` tells a model's shape, by the keys of most families."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())
    model_type: str
    num_hidden_layers: Count = _named("num_hidden_layers", "n_layer", "num_layers")
    hidden_size: Count = _named("hidden_size", "n_embd")
    num_attention_heads: Count = _named("num_attention_heads", "n_head")
    num_key_value_heads: Count | None = _named(
        "num_key_value_heads", "multi_query_group_num", default=None
    )
    head_dim: Count | None = _named("head_dim", "kv_channels", default=None)
    intermediate_size: Count | None = _named(
        "intermediate_size", "n_inner", "ffn_hidden_size", default=None
    )
    vocab_size: Count = _named("vocab_size", "padded_vocab_size")
    max_position_embeddings: Count = _named("max_position_embeddings", "n_positions", "seq_length")
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    use_qk_norm: bool = False

    num_experts: CountOrNone = _named(
        "num_experts", "num_local_experts", "n_routed_experts", default=0
    )
    num_experts_per_tok: CountOrNone = _named("num_experts_per_tok", "experts_per_token", default=1)
    moe_intermediate_size: Count | None = None
    n_shared_experts: CountOrNone = 0
    shared_expert_intermediate_size: CountOrNone = 0
    first_k_dense_replace: CountOrNone = 0
    mlp_only_layers: list[int] = []

    kv_lora_rank: Count | None = None
    q_lora_rank: Count | None = None
    qk_nope_head_dim: CountOrNone = 0
    qk_rope_head_dim: CountOrNone = 0
    v_head_dim: CountOrNone = 0

    sliding_window: Count | None = None
    use_sliding_window: bool = True
    sliding_window_pattern: Count | None = _named(
        "sliding_window_pattern", "_sliding_window_pattern", default=None
    )
    max_window_layers: CountOrNone = 0
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None

    @model_validator(mode="after")
    def _shares_out(self) -> "HubConfig":
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads = {self.kv_heads}"
            )
        if self.num_experts_per_tok > max(1, self.num_experts):
            raise ValueError(
                f"num_experts_per_tok = {self.num_experts_per_tok} must not be above the experts, "
                f"{self.num_experts}"
            )
        return self

    @property
    def family(self) -> Family:
        """What it leaves unsaid."""
        return FAMILIES[self.model_type]

    @property
    def kv_heads(self) -> int:
        """Key and value heads of a layer."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Elements of a head's query and key."""
        if self.kv_lora_rank:
            return self.qk_nope_head_dim + self.qk_rope_head_dim
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def dense_width(self) -> int:
        """Width of the inside of an MLP without experts."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def expert_width(self) -> int:
        """Width of the inside of an expert, or of the MLP where there is none."""
        return (self.moe_intermediate_size if self.num_experts else None) or self.dense_width

    @property
    def shared_experts(self) -> int:
        """Experts that every token takes, in those of the width of the others."""
        width = self.shared_expert_intermediate_size
        return self.n_shared_experts + -(-width // self.expert_width)

    @property
    def is_tied(self) -> bool:
        """Whether one matrix embeds and projects."""
        stated = self.tie_word_embeddings
        return self.family.tied if stated is None else stated

    @property
    def local_layers(self) -> int:
        """Layers whose queries see the sliding window alone."""
        layers, pattern = self.num_hidden_layers, self.sliding_window_pattern
        window = self.sliding_window or self.max_position_embeddings
        if not self.use_sliding_window or window >= self.max_position_embeddings:
            return 0
        if self.layer_types is not None:
            return self.layer_types.count("sliding_attention")
        if pattern is not None:  # one in so many sees all
            return layers - layers // pattern
        return max(0, layers - self.max_window_layers)

    def shape(self, name: str, source: str) -> ModelShape:
        """The shape that it tells, under that name."""
        local = self.local_layers
        mixed = 0 < local < self.num_hidden_layers
        experts = self.num_experts_per_tok + self.shared_experts if self.num_experts else 1
        parameters = count_parameters(self)
        return ModelShape(
            name=name,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_width,
            hidden=self.hidden_size,
            mlp=self.expert_width,
            vocab=self.vocab_size,
            parameters=parameters,
            active_parameters=parameters - _left_out_by_a_token(self),
            context=self.max_position_embeddings,
            window=self.sliding_window if local and not mixed else None,
            local_layers=local if mixed else 0,
            local_window=self.sliding_window if mixed else None,
            source=source,
            latent_dim=self.kv_lora_rank,
            rope_dim=self.qk_rope_head_dim if self.kv_lora_rank else 0,
            value_dim=self.v_head_dim or None if self.kv_lora_rank else None,
            mlp_matrices=self.family.mlp_matrices,
            experts=self.num_experts or 1,
            experts_per_token=experts,
            shared_experts=self.shared_experts if self.num_experts else 0,
            tied_embeddings=self.is_tied,
        )


def count_parameters(config: HubConfig) -> int:
    """All parameters of such a model."""
    family, hidden = config.family, config.hidden_size
    norm = family.norm_vectors * hidden
    embedded = config.vocab_size * (1 if config.is_tied else 2)
    if family.positions:
        embedded += config.max_position_embeddings
    attention = _latent_attention(config) if config.kv_lora_rank else _attention(config)
    layer = attention + family.norms * norm
    dense = _dense_layers(config)
    sparse = config.num_hidden_layers - dense
    return (
        config.num_hidden_layers * layer
        + dense * _mlp(config, config.dense_width)
        + sparse * _experts(config)
        + embedded * hidden
        + norm
    )


def _dense_layers(config: HubConfig) -> int:
    """Layers whose MLP has no experts."""
    if not config.num_experts:
        return config.num_hidden_layers
    return config.first_k_dense_replace + len(config.mlp_only_layers)


def _attention(config: HubConfig) -> int:
    """Q, K, V and O of a layer, with biases and norms."""
    family, hidden = config.family, config.hidden_size
    queries = config.num_attention_heads * config.head_width
    keys_and_values = 2 * config.kv_heads * config.head_width
    stated = {None: family.biases, False: "", True: family.biases or "qkvo"}
    biases = stated[config.attention_bias]
    count = hidden * (2 * queries + keys_and_values)
    if biases:
        count += queries + keys_and_values
    if biases in ("qkvo", "all"):
        count += hidden
    if family.qk_norm or config.use_qk_norm:
        count += 2 * config.head_width
    return count + (config.num_attention_heads if family.sinks else 0)


def _latent_attention(config: HubConfig) -> int:
    """DeepSeek-V2's (arXiv 2405.04434, section 2.1): K and V of all heads made of a latent."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    latent, rank = config.kv_lora_rank or 0, config.q_lora_rank
    queries = heads * config.head_width
    made_q = hidden * queries if rank is None else rank * (hidden + queries + 1)
    made_latent = hidden * (latent + config.qk_rope_head_dim) + latent
    made_kv = latent * heads * (config.qk_nope_head_dim + config.v_head_dim)
    return made_q + made_latent + made_kv + heads * config.v_head_dim * hidden


def _mlp(config: HubConfig, width: int) -> int:
    """One of that width."""
    family, hidden = config.family, config.hidden_size
    biases = (family.mlp_matrices - 1) * width + hidden if family.biases == "all" else 0
    return family.mlp_matrices * hidden * width + biases


def _experts(config: HubConfig) -> int:
    """A layer's experts and what chooses among them."""
    experts = config.num_experts + config.shared_experts
    router = config.num_experts * (config.hidden_size + (config.family.biases == "all"))
    return experts * _mlp(config, config.expert_width) + router


def _left_out_by_a_token(config: HubConfig) -> int:
    """Parameters of the experts that a token does not take."""
    if not config.num_experts:
        return 0
    sparse = config.num_hidden_layers - _dense_layers(config)
    others = config.num_experts - config.num_experts_per_tok
    return sparse * others * _mlp(config, config.expert_width)


def config_of(tables: Mapping[str, Any], where: str) -> HubConfig:
    """The config whose keys these are, of the file `where`; raises InputError.

    What is null counts as left out.
    """
    inner: Mapping[str, Any] = next(
        (tables[key] for key in INNER if isinstance(tables.get(key), Mapping)), {}
    )
    stated = {key: value for key, value in {**tables, **inner}.items() if value is not None}
    family = stated.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(
            f"{where}: model_type = {shown(family)}: a family that is not understood; those that "
            f"are: {', '.join(FAMILIES)}"
        )
    return checked(HubConfig, {**FAMILIES[family].defaults, **stated}, where)


def read_config(path: Path) -> ModelShape:
    """The shape that a `config.json` tells, named after its folder; raises InputError."""
    try:
        tables = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(tables, Mapping):
        raise InputError(f"{path}: a model's config.json was expected, which is an object")
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return config_of(tables, str(path)).shape(name, str(path))
