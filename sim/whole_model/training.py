"""What training has in HBM: states of the optimiser, what backward needs, and its moments.

A layer keeps of a token, in 16 bits (Korthikanti et al. 2022, arXiv 2205.05198, section 4.1; for
GPT it comes to their s b h (34 + 5 a s / h)):

    both norms' inputs and outputs               4 hidden
    Q, K, V and the projection's input           2 heads head_dim + 2 kv_heads head_dim
    the MLP's inside                             2 mlp; if gated 4 (gate, SiLU(gate), up, product)
    with dropout, its two masks                  2 hidden of one byte
    what attention keeps beyond Q, K, V and O    the tensors that both passes of the schedule touch

or with checkpointing only the layer's input and, of the layer whose backward pass runs, all of that
(the paper's full recomputation: 2 s b h). Beside them are parameters, gradients and the states of
Adam in mixed precision, 16 bytes a parameter in all (ZeRO, arXiv 1910.02054, section 3.1), and the
logits of all tokens.

**Several GPUs.** `tensor`: the residual stream is shared out by tokens (sequence parallelism, arXiv
2205.05198, section 4.2.2: all divided). `pipeline`: stage i of p keeps the activations of p - i
micro-batches (1F1B, section 4.2.3 there). `context`: the states are shared out as in ZeRO-3, of
which one layer's parameters are gathered at a time.
"""

from dataclasses import dataclass

from sim.inputs.files import InputError
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
    GROUP,
    GROUP_BITS,
    GpuShare,
    Setting,
    layer_parameters,
    parameter_bytes,
)

OPTIMISER_BYTES = 12  # a parameter: its copy, momentum and variance in fp32
QKVO: tuple[Role, ...] = ("query", "key", "value", "result")


@dataclass(frozen=True)
class TrainedLayer:
    """What the attention of one layer allocates by its schedule in training.

    `kept_bytes` is what backward finds beside Q, K, V and O, `passing_bytes` what is in HBM
    at the most beside both.
    """

    kept_bytes: int
    passing_bytes: int


def training(setting: Setting, share: GpuShare, use: Use, context: int) -> list[Memory]:
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
    lasting = training_states(setting, share)
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


def trained_layer(setting: Setting, share: GpuShare, context: int) -> TrainedLayer:
    """What one layer's attention allocates in training; raises InputError."""
    w = attention_workload(setting, share, "training", context)
    peak_bytes, kernels = lowered_layer(setting, w)
    forward = tensors_of([kernel for kernel in kernels if not kernel.backward])
    backward = tensors_of([kernel for kernel in kernels if kernel.backward])
    qkvo = [tensor for tensor in forward if tensor.role in QKVO]
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


def training_states(setting: Setting, share: GpuShare) -> dict[Part, int]:
    """Parameters, gradients and Adam's states; sharded by ZeRO-3 where the tokens are cut."""
    ways, whole = share.token_ways, parameter_bytes(setting, share)
    gathered = layer_parameters(setting.model) * ELEMENT_BYTES if ways > 1 else 0
    return {
        "parameters": whole // ways + gathered,
        "gradients": whole // ways,
        "optimiser": whole // ELEMENT_BYTES * OPTIMISER_BYTES // ways,
        "framework reserve": int(setting.reserve_bytes),
    }
