"""Published model shapes that make attention workloads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The attention shape of one published model.

    `layers` counts transformer layers; `heads` and `kv_heads` count query heads and key/value heads
    of one layer; `head_dim` is in elements. `context` is the published context length and `window`
    the sliding window, both in tokens; `window` is None unless every layer uses one. A model with
    latent attention caches `latent_dim` + `rope_dim` elements a token and layer, for all heads; its
    K have `head_dim` elements once made of them. `source` says where the figures were published.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    window: int | None
    source: str
    latent_dim: int | None = None
    rope_dim: int = 0


MODELS: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape(
            name="gpt2",
            layers=12,
            heads=12,
            kv_heads=12,
            head_dim=64,
            context=1024,
            window=None,
            source="config.json of openai-community/gpt2 (n_embd 768 / n_head 12)",
        ),
        ModelShape(
            name="gpt2-medium",
            layers=24,
            heads=16,
            kv_heads=16,
            head_dim=64,
            context=1024,
            window=None,
            source="config.json of openai-community/gpt2-medium (n_embd 1024 / n_head 16)",
        ),
        ModelShape(
            name="gpt2-large",
            layers=36,
            heads=20,
            kv_heads=20,
            head_dim=64,
            context=1024,
            window=None,
            source="config.json of openai-community/gpt2-large (n_embd 1280 / n_head 20)",
        ),
        ModelShape(
            name="gpt2-xl",
            layers=48,
            heads=25,
            kv_heads=25,
            head_dim=64,
            context=1024,
            window=None,
            source="config.json of openai-community/gpt2-xl (n_embd 1600 / n_head 25)",
        ),
        ModelShape(
            name="gpt3-175b",
            layers=96,
            heads=96,
            kv_heads=96,
            head_dim=128,
            context=2048,
            window=None,
            source=(
                "Language Models are Few-Shot Learners (arXiv 2005.14165), Table 2.1; context from "
                "section 2.1, which also says that some layers use locally banded sparse attention "
                "of a width not given"
            ),
        ),
        ModelShape(
            name="llama-2-7b",
            layers=32,
            heads=32,
            kv_heads=32,
            head_dim=128,
            context=4096,
            window=None,
            source=(
                "config.json of meta-llama/Llama-2-7b-hf; context also in Llama 2 "
                "(arXiv 2307.09288), Table 1"
            ),
        ),
        ModelShape(
            name="llama-2-13b",
            layers=40,
            heads=40,
            kv_heads=40,
            head_dim=128,
            context=4096,
            window=None,
            source=(
                "config.json of meta-llama/Llama-2-13b-hf; context also in Llama 2 "
                "(arXiv 2307.09288), Table 1"
            ),
        ),
        ModelShape(
            name="llama-2-70b",
            layers=80,
            heads=64,
            kv_heads=8,
            head_dim=128,
            context=4096,
            window=None,
            source=(
                "config.json of meta-llama/Llama-2-70b-hf; context also in Llama 2 "
                "(arXiv 2307.09288), Table 1"
            ),
        ),
        ModelShape(
            name="llama-3-8b",
            layers=32,
            heads=32,
            kv_heads=8,
            head_dim=128,
            context=8192,
            window=None,
            source=(
                "The Llama 3 Herd of Models (arXiv 2407.21783), Table 3; context from config.json "
                "of meta-llama/Meta-Llama-3-8B"
            ),
        ),
        ModelShape(
            name="llama-3-70b",
            layers=80,
            heads=64,
            kv_heads=8,
            head_dim=128,
            context=8192,
            window=None,
            source=(
                "The Llama 3 Herd of Models (arXiv 2407.21783), Table 3; context from config.json "
                "of meta-llama/Meta-Llama-3-70B"
            ),
        ),
        ModelShape(
            name="llama-3.1-405b",
            layers=126,
            heads=128,
            kv_heads=8,
            head_dim=128,
            context=131072,
            window=None,
            source=(
                "The Llama 3 Herd of Models (arXiv 2407.21783), Table 3; context from config.json "
                "of meta-llama/Llama-3.1-405B (early copies of it give 16 key/value heads)"
            ),
        ),
        ModelShape(
            name="mistral-7b",
            layers=32,
            heads=32,
            kv_heads=8,
            head_dim=128,
            context=8192,
            window=4096,
            source=(
                "Mistral 7B (arXiv 2310.06825), Table 1; config.json of mistralai/Mistral-7B-v0.1 "
                "agrees but for max_position_embeddings 32768"
            ),
        ),
        ModelShape(
            name="qwen2.5-7b",
            layers=28,
            heads=28,
            kv_heads=4,
            head_dim=128,
            context=131072,
            window=None,
            source=(
                "Qwen2.5 Technical Report (arXiv 2412.15115), Table 1; head_dim from config.json "
                "of Qwen/Qwen2.5-7B (hidden_size 3584 / 28 heads)"
            ),
        ),
        ModelShape(
            name="qwen2.5-72b",
            layers=80,
            heads=64,
            kv_heads=8,
            head_dim=128,
            context=131072,
            window=None,
            source=(
                "Qwen2.5 Technical Report (arXiv 2412.15115), Table 1; head_dim from config.json "
                "of Qwen/Qwen2.5-72B (hidden_size 8192 / 64 heads)"
            ),
        ),
        ModelShape(
            name="deepseek-v2-lite",
            layers=27,
            heads=16,
            kv_heads=16,
            head_dim=192,
            context=32768,
            window=None,
            latent_dim=512,
            rope_dim=64,
            source=(
                "DeepSeek-V2 (arXiv 2405.04434), appendix B; head_dim is qk_nope_head_dim 128 + "
                "qk_rope_head_dim 64 in config.json of deepseek-ai/DeepSeek-V2-Lite"
            ),
        ),
        ModelShape(
            name="deepseek-v2",
            layers=60,
            heads=128,
            kv_heads=128,
            head_dim=192,
            context=131072,
            window=None,
            latent_dim=512,
            rope_dim=64,
            source=(
                "DeepSeek-V2 (arXiv 2405.04434), section 3.1.2; head_dim is qk_nope_head_dim 128 + "
                "qk_rope_head_dim 64 in config.json of deepseek-ai/DeepSeek-V2"
            ),
        ),
        ModelShape(
            name="deepseek-v3",
            layers=61,
            heads=128,
            kv_heads=128,
            head_dim=192,
            context=131072,
            window=None,
            latent_dim=512,
            rope_dim=64,
            source=(
                "DeepSeek-V3 (arXiv 2412.19437), section 4.2; head_dim is qk_nope_head_dim 128 + "
                "qk_rope_head_dim 64 in config.json of deepseek-ai/DeepSeek-V3"
            ),
        ),
    )
}
MODELS["llama-3-405b"] = MODELS["llama-3.1-405b"]  # the name that people often use
