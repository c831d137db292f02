"""What training has in HBM: states of the optimiser, what backward needs, and its moments."""

from dataclasses import dataclass, replace

from sim.inputs.files import InputError
from sim.whole_model.setting import (
    ELEMENT_BYTES,
    GROUP,
    GROUP_BITS,
    LOGIT_BYTES,
    Memory,
    Setting,
    Share,
    Use,
    attention_workload,
    bytes_of,
    exchanged_bytes,
    layer_parameters,
    lowered_layer,
    parameter_bytes,
    tensors_of,
)

OPTIMISER_BYTES = 12  # a parameter: its copy, momentum and variance in fp32


@dataclass(frozen=True)
class TrainedLayer:
    """What the attention of one layer allocates by its schedule in training.

    `kept_bytes` is what backward finds beside Q, K, V and O, `passing_bytes` what is in HBM
    at the most beside both.
    """

    kept_bytes: int
    passing_bytes: int


def trained_layer(setting: Setting, share: Share, context: int) -> TrainedLayer:
    """What one layer's attention allocates in training; raises InputError."""
    w = attention_workload(setting, share, "training", context)
    peak_bytes, kernels = lowered_layer(setting, w)
    forward_only = replace(w, phase="prefill")
    split = len(setting.schedule_of("training").lower(forward_only, setting.hardware))
    forward, backward = tensors_of(kernels[:split]), tensors_of(kernels[split:])
    qkvo = [tensor for tensor in forward if tensor.name in ("Q", "K", "V", "O")]
    kept = [tensor for tensor in forward if tensor in backward and tensor not in qkvo]
    return TrainedLayer(bytes_of(kept), peak_bytes - bytes_of(qkvo) - bytes_of(kept))


def kept_bytes_per_token(setting: Setting, ways: int = 1) -> int:
    """Bytes that a layer keeps of a token for its backward pass, but for attention's own."""
    model = setting.model
    kv_heads = max(1, model.kv_heads // ways)
    attention = 2 * model.head_dim * (model.heads // ways + kv_heads)
    if model.latent_dim:
        attention += model.latent_dim + model.rope_dim
    inside = {2: 2, 3: 4}[model.mlp_matrices] * model.mlp // ways
    copies = model.hidden // ways if model.experts_per_token > 1 else 0  # an expert's input
    stream = 4 * model.hidden // ways
    elements = stream + attention + model.experts_per_token * (inside + copies)
    return elements * ELEMENT_BYTES + (2 * model.hidden // ways if setting.dropout else 0)


def training(setting: Setting, share: Share, use: Use, context: int) -> list[Memory]:
    """The moments of the backward pass: of a layer's attention, its MLP, and of the logits."""
    if GROUP_BITS[setting.weights] != 16 * GROUP:
        raise InputError(f'weights = "{setting.weights}": training takes fp16 or bf16')
    model, ways = setting.model, share.ways
    w = attention_workload(setting, share, "training", context)
    layer = trained_layer(setting, share, context)
    tokens = w.batch * w.seq_q
    stream_bytes = tokens * model.hidden // ways * ELEMENT_BYTES
    of_layer = tokens * kept_bytes_per_token(setting, ways) + layer.kept_bytes
    checkpointed = use == "training with checkpointing"
    kept = share.layers * share.in_flight * (stream_bytes if checkpointed else of_layer)
    flowing = 2 * stream_bytes  # the gradient that comes into a layer and the one that goes out
    in_backward = kept + flowing + (of_layer if checkpointed else 0)
    inside = model.experts_per_token * model.mlp_matrices * model.mlp // ways
    lasting = _training_states(setting, share)
    moments = [
        Memory(
            "attention",
            lasting
            | {"activations": in_backward}
            | {"attention": layer.passing_bytes + exchanged_bytes(w, share)},
        ),
        Memory("MLP", lasting | {"activations": in_backward + tokens * inside * ELEMENT_BYTES}),
    ]
    if share.projects:
        logits = tokens * model.vocab // ways * LOGIT_BYTES
        moments.append(
            Memory("logits", lasting | {"activations": kept + flowing, "logits": logits})
        )
    return moments


def _training_states(setting: Setting, share: Share) -> dict[str, int]:
    """Parameters, gradients and Adam's states; sharded by ZeRO-3 where the tokens are cut."""
    ways, whole = share.token_ways, parameter_bytes(setting, share)
    gathered = layer_parameters(setting.model) * ELEMENT_BYTES if ways > 1 else 0
    return {
        "parameters": whole // ways + gathered,
        "gradients": whole // ways,
        "optimiser": whole // ELEMENT_BYTES * OPTIMISER_BYTES // ways,
        "framework reserve": int(setting.reserve_bytes),
    }
