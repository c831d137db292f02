"""What inference has in HBM: the moments of a forward pass.

A forward pass goes through three moments, whose tensors take each other's place:

    attention   the residual stream and its norm, the new keys and values, and the attention itself
    MLP         the residual stream and its norm, the inside of the MLP and its output
    logits      the last token's logits in 16 bits and fp32 (of each sequence)

Beside them stay the parameters, the KV cache of all layers and the framework's reserve. Shared out
as tensors, heads and the insides are divided; the residual stream is whole on each GPU.

**Prefill** goes through one prompt after the other in chunks, as in vLLM; the last chunk, which
sees all keys, counts. A chunk of 0 is the whole prompt of all sequences at once, as in eager code.

**Attention** is what its schedule allocates for one layer, less the layer's part of the KV cache. A
schedule that cannot read the cache as it lies there (quantised, or latents outside `mla`) reads a
copy of one layer in the activations' dtype, as LMDeploy's prefill does (InternLM/lmdeploy,
flatten_kv_cache).
"""

from dataclasses import dataclass

from sim.inputs.workload import Phase
from sim.tile_program import Role
from sim.whole_model.attention import (
    attention_workload,
    bytes_of,
    exchanged_bytes,
    lowered_layer,
    tensors_of,
)
from sim.whole_model.moments import LOGIT_BYTES, Memory, Part, Use
from sim.whole_model.setting import (
    ELEMENT_BYTES,
    GpuShare,
    Setting,
    cache_bytes_per_token,
    cached_tokens,
    cached_tokens_of_layers,
    parameter_bytes,
)

CACHED: tuple[Role, ...] = ("key", "value", "cache")  # what of a layer outlives its attention


@dataclass(frozen=True)
class CachedLayer:
    """What the attention of one layer allocates by its schedule in inference.

    `peak_bytes` is the most in HBM, `cached_bytes` what of it belongs to the KV cache: 0 where the
    schedule reads a copy. `all_cached_bytes` is the layer's cache of all sequences.
    """

    peak_bytes: int
    cached_bytes: int
    all_cached_bytes: int


def inference(setting: Setting, share: GpuShare, use: Use, context: int) -> list[Memory]:
    """The moments of a forward pass of a chunk, or of a token of each sequence."""
    phase: Phase = "prefill" if use == "prefill" else "decode"
    model, ways = setting.model, share.ways
    w = attention_workload(setting, share, phase, context)
    layer = cached_layer(setting, share, phase, context)
    lasting: dict[Part, int] = {
        "parameters": parameter_bytes(setting, share),
        "KV cache": cached_bytes(setting, share, layer, context),
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


def cached_bytes(setting: Setting, share: GpuShare, layer: CachedLayer, context: int) -> int:
    """Bytes of the KV cache of all of a GPU's layers and all sequences."""
    held = cached_tokens_of_layers(setting, share, context)
    return held * layer.all_cached_bytes // cached_tokens(setting, share, context)


def cached_layer(setting: Setting, share: GpuShare, phase: Phase, context: int) -> CachedLayer:
    """What one layer's attention allocates in prefill or decode; raises InputError."""
    w = attention_workload(setting, share, phase, context)
    peak_bytes, kernels = lowered_layer(setting, w)
    cached = [tensor for tensor in tensors_of(kernels) if tensor.role in CACHED]
    held = cached_tokens(setting, share, context)
    takes_latents = "latents" in setting.schedule_of(phase).takes
    if setting.kv_dtype != w.kv_dtype or (setting.model.latent_dim and not takes_latents):
        in_all = setting.batch * held * cache_bytes_per_token(setting, share.ways)
        return CachedLayer(peak_bytes, 0, in_all)
    # In prefill a window's last chunk adds keys that the rolling buffer does not hold on to.
    cached_bytes = bytes_of(cached) * held // w.seq_kv
    return CachedLayer(peak_bytes, cached_bytes, cached_bytes * setting.batch // w.batch)
