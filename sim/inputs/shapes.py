"""Published model shapes: what makes attention workloads, and what else lives in a GPU's memory."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The shape of one published model.

    `layers` counts transformer layers; `heads` and `kv_heads` count query heads and key/value heads
    of one layer; `head_dim` is in elements. `context` is the published context length and `window`
    the sliding window, both in tokens; `window` is None unless every layer uses one. A model with
    latent attention caches `latent_dim` + `rope_dim` elements a token and layer, for all heads; its
    K have `head_dim` elements once made of them.

    `hidden` is the width of the residual stream, `mlp` that of the MLP's inside, of one expert
    where there are several, of which a token passes through `experts_per_token` (routed and
    shared). An MLP has `mlp_matrices` matrices of hidden x mlp: 3 where it is gated. `vocab` counts
    tokens; with `tied_embeddings` one matrix embeds and projects to logits. `parameters` counts all
    of them, `active_parameters` those that a token uses (all, unless there are experts).

    `source` says where the figures were published; hidden, mlp and vocab are in the config.json of
    the model's repository on Hugging Face. `parameters` is what that adds up to, as the checkpoint
    does, but for GPT-3 and DeepSeek the round figures of their papers.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    mlp: int
    vocab: int
    parameters: int
    active_parameters: int
    context: int
    window: int | None
    source: str
    latent_dim: int | None = None
    rope_dim: int = 0
    mlp_matrices: int = 3
    experts_per_token: int = 1
    tied_embeddings: bool = False


MODELS: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape(
            name="gpt2",
            layers=12,
            heads=12,
            kv_heads=12,
            head_dim=64,
            hidden=768,
            mlp=3072,
            vocab=50257,
            parameters=124_439_808,
            active_parameters=124_439_808,
            mlp_matrices=2,
            tied_embeddings=True,
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
            hidden=1024,
            mlp=4096,
            vocab=50257,
            parameters=354_823_168,
            active_parameters=354_823_168,
            mlp_matrices=2,
            tied_embeddings=True,
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
            hidden=1280,
            mlp=5120,
            vocab=50257,
            parameters=774_030_080,
            active_parameters=774_030_080,
            mlp_matrices=2,
            tied_embeddings=True,
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
            hidden=1600,
            mlp=6400,
            vocab=50257,
            parameters=1_557_611_200,
            active_parameters=1_557_611_200,
            mlp_matrices=2,
            tied_embeddings=True,
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
            hidden=12288,
            mlp=49152,
            vocab=50257,
            parameters=175_000_000_000,
            active_parameters=175_000_000_000,
            mlp_matrices=2,
            tied_embeddings=True,
            context=2048,
            window=None,
            source=(
                "Language Models are Few-Shot Learners (arXiv 2005.14165), Table 2.1; context from "
                "section 2.1, which also says that mlp is 4 hidden and some layers use locally "
                "banded sparse attention of a width not given; vocab is GPT-2's (section 2.3)"
            ),
        ),
        ModelShape(
            name="llama-2-7b",
            layers=32,
            heads=32,
            kv_heads=32,
            head_dim=128,
            hidden=4096,
            mlp=11008,
            vocab=32000,
            parameters=6_738_415_616,
            active_parameters=6_738_415_616,
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
            hidden=5120,
            mlp=13824,
            vocab=32000,
            parameters=13_015_864_320,
            active_parameters=13_015_864_320,
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
            hidden=8192,
            mlp=28672,
            vocab=32000,
            parameters=68_976_648_192,
            active_parameters=68_976_648_192,
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
            hidden=4096,
            mlp=14336,
            vocab=128256,
            parameters=8_030_261_248,
            active_parameters=8_030_261_248,
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
            hidden=8192,
            mlp=28672,
            vocab=128256,
            parameters=70_553_706_496,
            active_parameters=70_553_706_496,
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
            hidden=16384,
            mlp=53248,
            vocab=128256,
            parameters=405_853_388_800,
            active_parameters=405_853_388_800,
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
            hidden=4096,
            mlp=14336,
            vocab=32000,
            parameters=7_241_732_096,
            active_parameters=7_241_732_096,
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
            hidden=3584,
            mlp=18944,
            vocab=152064,
            parameters=7_615_616_512,
            active_parameters=7_615_616_512,
            context=131072,
            window=None,
            source=(
                "Qwen2.5 Technical Report (arXiv 2412.15115), Table 1; sizes from config.json "
                "of Qwen/Qwen2.5-7B (hidden_size 3584 / 28 heads)"
            ),
        ),
        ModelShape(
            name="qwen2.5-72b",
            layers=80,
            heads=64,
            kv_heads=8,
            head_dim=128,
            hidden=8192,
            mlp=29568,
            vocab=152064,
            parameters=72_706_203_648,
            active_parameters=72_706_203_648,
            context=131072,
            window=None,
            source=(
                "Qwen2.5 Technical Report (arXiv 2412.15115), Table 1; sizes from config.json "
                "of Qwen/Qwen2.5-72B (hidden_size 8192 / 64 heads)"
            ),
        ),
        ModelShape(
            name="deepseek-v2-lite",
            layers=27,
            heads=16,
            kv_heads=16,
            head_dim=192,
            hidden=2048,
            mlp=1408,
            vocab=102400,
            parameters=15_700_000_000,
            active_parameters=2_400_000_000,
            experts_per_token=8,
            context=32768,
            window=None,
            latent_dim=512,
            rope_dim=64,
            source=(
                "DeepSeek-V2 (arXiv 2405.04434), appendix B; head_dim is qk_nope_head_dim 128 + "
                "qk_rope_head_dim 64 in config.json of deepseek-ai/DeepSeek-V2-Lite, which has "
                "mlp (moe_intermediate_size) and vocab too; the first layer's MLP is dense, of "
                "10944"
            ),
        ),
        ModelShape(
            name="deepseek-v2",
            layers=60,
            heads=128,
            kv_heads=128,
            head_dim=192,
            hidden=5120,
            mlp=1536,
            vocab=102400,
            parameters=236_000_000_000,
            active_parameters=21_000_000_000,
            experts_per_token=8,
            context=131072,
            window=None,
            latent_dim=512,
            rope_dim=64,
            source=(
                "DeepSeek-V2 (arXiv 2405.04434), section 3.1.2; head_dim is qk_nope_head_dim 128 + "
                "qk_rope_head_dim 64 in config.json of deepseek-ai/DeepSeek-V2, which has mlp "
                "(moe_intermediate_size) and vocab too; the first layer's MLP is dense, of 12288"
            ),
        ),
        ModelShape(
            name="deepseek-v3",
            layers=61,
            heads=128,
            kv_heads=128,
            head_dim=192,
            hidden=7168,
            mlp=2048,
            vocab=129280,
            parameters=671_000_000_000,
            active_parameters=37_000_000_000,
            experts_per_token=9,
            context=131072,
            window=None,
            latent_dim=512,
            rope_dim=64,
            source=(
                "DeepSeek-V3 (arXiv 2412.19437), section 4.2; head_dim is qk_nope_head_dim 128 + "
                "qk_rope_head_dim 64 in config.json of deepseek-ai/DeepSeek-V3, which has mlp "
                "(moe_intermediate_size) and vocab too; the first 3 layers' MLPs are dense, of "
                "18432; without the multi-token prediction module"
            ),
        ),
    )
}
MODELS["llama-3-405b"] = MODELS["llama-3.1-405b"]  # the name that people often use
