"""What inference has in HBM beside the parameters: the moments of a forward pass."""

from dataclasses import dataclass

from sim.inputs.workload import Phase
from sim.whole_model.setting import (
    ELEMENT_BYTES,
    LOGIT_BYTES,
    Memory,
    Setting,
    Share,
    Use,
    attention_workload,
    bytes_of,
    cache_bytes_per_token,
    cached_tokens,
    exchanged_bytes,
    lowered_layer,
    parameter_bytes,
    tensors_of,
)

# What of a layer's tensors outlives its attention, under the names that the schedules give them.
CACHED = frozenset(
    {"K", "V", "C", "K cache", "V cache", "page table", "maxima of K", "minima of K", "A"}
)


@dataclass(frozen=True)
class Layer:
    """What the attention of one layer allocates by its schedule in inference.

    `peak_bytes` is the most in HBM, `cached_bytes` what of it belongs to the KV cache: 0 where the
    schedule reads a copy. `all_cached_bytes` is the layer's cache of all sequences.
    """

    peak_bytes: int
    cached_bytes: int
    all_cached_bytes: int


def attention_layer(setting: Setting, share: Share, phase: Phase, context: int) -> Layer:
    """What one layer's attention allocates in prefill or decode; raises InputError."""
    w = attention_workload(setting, share, phase, context)
    peak_bytes, kernels = lowered_layer(setting, w)
    cached = [tensor for tensor in tensors_of(kernels) if tensor.name in CACHED]
    held = cached_tokens(setting, share, context)
    of_latents = any(tensor.name == "C" for tensor in cached)
    if setting.kv_dtype != w.kv_dtype or (setting.model.latent_dim and not of_latents):
        in_all = setting.batch * held * cache_bytes_per_token(setting, share.ways)
        return Layer(peak_bytes, 0, in_all)
    # In prefill a window's last chunk adds keys that the rolling buffer does not hold on to.
    cached_bytes = bytes_of(cached) * held // w.seq_kv
    return Layer(peak_bytes, cached_bytes, cached_bytes * setting.batch // w.batch)


def inference(setting: Setting, share: Share, use: Use, context: int) -> list[Memory]:
    """The moments of a forward pass of a chunk, or of a token of each sequence."""
    phase: Phase = "prefill" if use == "prefill" else "decode"
    model, ways = setting.model, share.ways
    w = attention_workload(setting, share, phase, context)
    layer = attention_layer(setting, share, phase, context)
    lasting = {
        "parameters": parameter_bytes(setting, share),
        "KV cache": share.layers * layer.all_cached_bytes,
        "framework reserve": int(setting.reserve_bytes),
    }
    tokens, stream = w.batch * w.seq_q, 2 * model.hidden
    new = model.latent_dim + model.rope_dim if model.latent_dim else 2 * w.kv_heads * w.head_dim
    inside = model.experts_per_token * (model.mlp_matrices * model.mlp // ways + model.hidden)
    attention_bytes = layer.peak_bytes - layer.cached_bytes + exchanged_bytes(w, share)
    moments = [
        Memory(
            "attention",
            lasting
            | {"activations": tokens * (stream + new) * ELEMENT_BYTES}
            | {"attention": attention_bytes},
        ),
        Memory("MLP", lasting | {"activations": tokens * (stream + inside) * ELEMENT_BYTES}),
    ]
    if share.projects:
        activations = setting.batch * stream * ELEMENT_BYTES
        logits = setting.batch * model.vocab // ways * LOGIT_BYTES
        moments.append(Memory("logits", lasting | {"activations": activations, "logits": logits}))
    return moments
