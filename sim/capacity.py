"""What must live in a GPU's HBM for a model to run at a context, and the longest that fits.

All figures are of the fullest GPU at its fullest moment. In inference a forward pass goes through
three moments, whose tensors take each other's place; the largest counts:

    attention   the residual stream and its norm, the new keys and values, and the attention itself
    MLP         the residual stream and its norm, the inside of the MLP and its output
    logits      the last token's logits in 16 bits and fp32 (of each sequence)

Beside them stay the parameters, the KV cache of all layers and the framework's reserve.

**Attention** is what the schedule's own steps for one layer allocate on the device
(`sim.engine.device.check_memory`), less the layer's part of the KV cache. A schedule that cannot
read the cache as it lies there (quantised, or latents outside `mla`) reads a copy of one layer in
the activations' dtype, as LMDeploy's prefill does (InternLM/lmdeploy, flatten_kv_cache).

**Prefill** goes through one prompt after the other in chunks, as in vLLM; the last chunk, which
sees all keys, counts. A chunk of 0 is the whole prompt of all sequences at once, as in eager code.
**A sliding window** caps the cache at its tokens (Mistral 7B, arXiv 2310.06825, rolling buffer).

**Training** keeps of each layer, a token, in 16 bits (Korthikanti et al. 2022, arXiv 2205.05198,
section 4.1; for GPT it comes to their s b h (34 + 5 a s / h)):

    both norms' inputs and outputs               4 hidden
    Q, K, V and the projection's input           2 heads head_dim + 2 kv_heads head_dim
    the MLP's inside                             2 mlp; if gated 4 (gate, SiLU(gate), up, product)
    with dropout, its two masks                  2 hidden of one byte
    what attention keeps beyond Q, K, V and O    the tensors that both passes of the schedule touch

or with checkpointing only the layer's input and, of the layer whose backward pass runs, all of that
(the paper's full recomputation: 2 s b h). Beside them are parameters, gradients and the states of
Adam in mixed precision, 16 bytes a parameter in all (ZeRO, arXiv 1910.02054, section 3.1), and the
logits of all tokens.

**Several GPUs.** `tensor`: heads, matrices and vocabulary are shared out (arXiv 1909.08053);
fewer KV heads than GPUs are copied, latents too; the residual stream is whole on each, but in
training shared out by tokens (sequence parallelism, arXiv 2205.05198, section 4.2.2: all divided).
`pipeline`: each has some of the layers; in training stage i of p keeps the activations of p - i
micro-batches (1F1B, section 4.2.3 there). `context`: each has its share of the tokens, K and V go
round (`ring`) and decoding merges partial results (`tree_decoding`); parameters are whole on each,
but in training shared out as in ZeRO-3, of which one layer is gathered at a time.

Taken as equal: all layers (the mean of their parameters, so dense first layers of DeepSeek too).
Not counted: fragmentation of the allocator, CUDA graphs, data parallelism.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from sim.engine.device import check_memory, kernels_of
from sim.files import InputError
from sim.hardware import HardwareProfile
from sim.models import ModelShape
from sim.schedules import make_schedule
from sim.schedules.base import STATISTICS_BYTES, Schedule, blocks
from sim.schedules.kv_cache import row_bytes
from sim.tile_program import Kernel, Tensor
from sim.workload import AttentionWorkload, Dtype, KvDtype, Phase

Use = Literal["prefill", "decode", "training", "training with checkpointing"]
USES: tuple[Use, ...] = ("prefill", "decode", "training", "training with checkpointing")
Parallel = Literal["tensor", "pipeline", "context"]
Weights = Literal["fp16", "bf16", "fp8", "int8", "int4"]

ELEMENT_BYTES = 2  # of activations, embeddings and whatever is not quantised
LOGIT_BYTES = 2 + 4  # as the matmul makes them (in training, their gradient), and in fp32
OPTIMISER_BYTES = 12  # a parameter: its copy, momentum and variance in fp32
# Bits of 128 weights. int8 and int4 as GPTQ and AWQ store them, in groups of 128 with a scale of 16
# bits and a zero point as wide as a weight (AutoGPTQ, qlinear: qweight, qzeros, scales); fp8 has a
# scale a tensor. The embedding and the projection to logits stay in 16 bits in all of them.
GROUP = 128
GROUP_BITS: dict[Weights, int] = {
    "fp16": 16 * GROUP,
    "bf16": 16 * GROUP,
    "fp8": 8 * GROUP,
    "int8": 8 * GROUP + 16 + 8,
    "int4": 4 * GROUP + 16 + 4,
}
# An estimate. The driver keeps some (PyTorch finds 23.64 GiB on an RTX 4090's 24, in many reports
# of "a total capacity of"), the CUDA context with the kernels loaded takes some 0.3 to 0.4 GiB
# (pytorch/pytorch, issues 107667 and 109888), cuBLAS's and NCCL's workspaces the rest.
RESERVE_BYTES = 2.0**30
# Tokens of a prefill chunk: max_num_batched_tokens of vLLM's server on most GPUs
# (vllm-project/vllm, engine/arg_utils.py: 8192 on those of 70 GiB and more that are no A100).
CHUNK = 2048
# Between contexts so many tokens apart the memory grows: nearer ones may be split in more or fewer
# partial results (`flash_decoding`), which are far less than so many tokens' keys and values.
STEP = 256
MOST_TOKENS = 2**24  # beyond, a context counts as without limit
# What of a layer's tensors outlives its attention, under the names that the schedules give them.
CACHED = frozenset(
    {"K", "V", "C", "K cache", "V cache", "page table", "maxima of K", "minima of K", "A"}
)


@dataclass(frozen=True)
class Setting:
    """A model, how it is stored, and the GPUs that it is to run on.

    `kv_dtype` is the cache's where it is not that of the activations. `schedule` is the attention
    of all uses; without one it is that of a usual library: `flash2`, and in decoding
    `flash_decoding` or for latent attention `mla`. `chunk` is in tokens, 0 the whole prompt.
    Raises InputError where heads or layers do not share out.
    """

    model: ModelShape
    hardware: HardwareProfile
    schedule: Schedule | None = None
    weights: Weights = "bf16"
    kv_dtype: KvDtype | None = None
    batch: int = 1
    gpus: int = 1
    parallel: Parallel = "tensor"
    chunk: int = CHUNK
    reserve_bytes: float = RESERVE_BYTES
    dropout: bool = False

    def __post_init__(self) -> None:
        heads, kv_heads = self.model.heads, self.model.kv_heads
        who = f"gpus = {self.gpus}: {self.model.name} has"
        uneven = heads % self.gpus or (kv_heads % self.gpus and self.gpus % kv_heads)
        if self.parallel == "tensor" and uneven:
            raise InputError(
                f"{who} {heads} heads and {kv_heads} KV heads, which do not share out evenly"
            )
        if self.parallel == "pipeline" and self.gpus > self.model.layers:
            raise InputError(f"{who} {self.model.layers} layers: no more stages than that")

    @property
    def dtype(self) -> Dtype:
        """The activations' dtype: of the two 16-bit ones that which the device has."""
        return "bf16" if self.hardware.tensor_flops_per_s("bf16") else "fp16"

    @cached_property
    def shares(self) -> list["Share"]:
        """What each GPU has; of those that have the same only one."""
        layers = self.model.layers
        if self.parallel == "tensor":
            return [Share(layers, ways=self.gpus)]
        if self.parallel == "context":
            return [Share(layers, token_ways=self.gpus)]
        # vLLM's split (vllm-project/vllm, distributed/utils.py, get_pp_indices): what is left over
        # goes to the stages before the last.
        counts = [layers // self.gpus] * self.gpus
        for number in range(layers % self.gpus):
            counts[-2 - number] += 1
        last = self.gpus - 1
        return [
            Share(count, embeds=i == 0, projects=i == last, in_flight=self.gpus - i)
            for i, count in enumerate(counts)
        ]

    def schedule_of(self, phase: Phase) -> Schedule:
        """The attention's schedule in a phase."""
        if self.schedule is not None:
            return self.schedule
        if phase != "decode":
            return make_schedule({"name": "flash2"}, "")
        return make_schedule({"name": "mla" if self.model.latent_dim else "flash_decoding"}, "")


@dataclass(frozen=True)
class Share:
    """What one GPU has: layers, their matrices and heads cut `ways`, tokens cut `token_ways`.

    `in_flight` micro-batches wait for their backward pass in training.
    """

    layers: int
    ways: int = 1
    token_ways: int = 1
    embeds: bool = True
    projects: bool = True
    in_flight: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes in the fullest GPU's HBM at its fullest moment, by what they are for."""

    moment: str
    parts: dict[str, int]

    @property
    def bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Layer:
    """What the attention of one layer allocates by its schedule in inference.

    `peak_bytes` is the most in HBM, `cached_bytes` what of it belongs to the KV cache: 0 where the
    schedule reads a copy. `all_cached_bytes` is the layer's cache of all sequences.
    """

    peak_bytes: int
    cached_bytes: int
    all_cached_bytes: int


@dataclass(frozen=True)
class TrainedLayer:
    """What the attention of one layer allocates by its schedule in training.

    `kept_bytes` is what backward finds beside Q, K, V and O, `passing_bytes` what is in HBM
    at the most beside both.
    """

    kept_bytes: int
    passing_bytes: int


def memory(setting: Setting, use: Use, context: int) -> Memory:
    """What lives in HBM at a context of so many tokens, on the fullest GPU at its fullest moment.

    Raises InputError where the schedule does not take the use.
    """
    of_use = _training if use.startswith("training") else _inference
    found = [memory for share in setting.shares for memory in of_use(setting, share, use, context)]
    return max(found, key=lambda memory: memory.bytes)


def longest_context(setting: Setting, use: Use) -> int:
    """Tokens of the longest context that fits, a multiple of STEP; 0 if none does.

    MOST_TOKENS stands for no limit. Raises InputError as `memory` does.
    """
    capacity_bytes = setting.hardware.hbm.capacity
    steps = longest(
        lambda n: memory(setting, use, n * STEP).bytes <= capacity_bytes, MOST_TOKENS // STEP
    )
    return steps * STEP


def longest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, by bisection; 0 if none does.

    Whatever is smaller than one that fits must fit too.
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def parameter_bytes(setting: Setting, share: Share) -> int:
    """A GPU's parameters. Norms count with the layers' matrices."""
    model = setting.model
    in_layers = share.layers * _layer_parameters(model) // share.ways
    whole = (share.embeds + share.projects) * model.vocab * model.hidden // share.ways
    if model.tied_embeddings and share.embeds and share.projects:
        whole //= 2
    return blocks(in_layers * GROUP_BITS[setting.weights], 8 * GROUP) + whole * ELEMENT_BYTES


def _layer_parameters(model: ModelShape) -> int:
    """Parameters of a layer, on average."""
    embeddings = (1 if model.tied_embeddings else 2) * model.vocab * model.hidden
    return (model.parameters - embeddings) // model.layers


def cache_bytes_per_token(setting: Setting, ways: int = 1) -> int:
    """Bytes of the KV cache of one token in one layer, with the KV heads cut `ways`."""
    model = setting.model
    width = model.latent_dim + model.rope_dim if model.latent_dim else model.head_dim
    w = AttentionWorkload(1, 1, 1, 1, 1, width, setting.dtype, kv_dtype=setting.kv_dtype)
    return row_bytes(w) * (1 if model.latent_dim else 2 * max(1, model.kv_heads // ways))


def cached_tokens(setting: Setting, share: Share, context: int) -> int:
    """Tokens of each sequence that a GPU's KV cache holds."""
    window = setting.model.window
    return blocks(context if window is None else min(context, window), share.token_ways)


def attention_workload(
    setting: Setting, share: Share, phase: Phase, context: int
) -> AttentionWorkload:
    """The attention of one layer of a GPU's share: in prefill of the last chunk of a sequence.

    The whole prompt at once is that of all sequences. Of a sliding window only the keys that a
    query of the chunk sees are there. Where the schedule does not read the cache as it lies there,
    keys and values are of the activations' dtype.
    """
    model, window = setting.model, setting.model.window
    chunked = phase == "prefill" and setting.chunk > 0
    queries = 1 if phase == "decode" else min(setting.chunk, context) if chunked else context
    keys = context
    if window is not None and phase != "training":
        keys = min(context, window if phase == "decode" else window + queries)
    seen = blocks(keys, share.token_ways)
    takes_cache = phase == "decode" and "kv_dtype" in setting.schedule_of(phase).takes
    return AttentionWorkload(
        batch=1 if chunked else setting.batch,
        heads=model.heads // share.ways,
        kv_heads=max(1, model.kv_heads // share.ways),
        seq_q=queries if phase == "decode" else blocks(queries, share.token_ways),
        seq_kv=seen,
        head_dim=model.head_dim,
        dtype=setting.dtype,
        causal=True,
        window=window if window is not None and window < seen else None,
        phase=phase,
        dropout=setting.dropout and phase == "training",
        kv_dtype=setting.kv_dtype if takes_cache else None,
        latent_dim=model.latent_dim,
        rope_dim=model.rope_dim,
    )


def attention_layer(setting: Setting, share: Share, phase: Phase, context: int) -> Layer:
    """What one layer's attention allocates in prefill or decode; raises InputError."""
    w = attention_workload(setting, share, phase, context)
    peak_bytes, kernels = _lowered(setting, w)
    cached = [tensor for tensor in _tensors(kernels) if tensor.name in CACHED]
    held = cached_tokens(setting, share, context)
    of_latents = any(tensor.name == "C" for tensor in cached)
    if setting.kv_dtype != w.kv_dtype or (setting.model.latent_dim and not of_latents):
        in_all = setting.batch * held * cache_bytes_per_token(setting, share.ways)
        return Layer(peak_bytes, 0, in_all)
    # In prefill a window's last chunk adds keys that the rolling buffer does not hold on to.
    cached_bytes = _bytes(cached) * held // w.seq_kv
    return Layer(peak_bytes, cached_bytes, cached_bytes * setting.batch // w.batch)


def trained_layer(setting: Setting, share: Share, context: int) -> TrainedLayer:
    """What one layer's attention allocates in training; raises InputError."""
    w = attention_workload(setting, share, "training", context)
    peak_bytes, kernels = _lowered(setting, w)
    forward_only = replace(w, phase="prefill")
    split = len(setting.schedule_of("training").lower(forward_only, setting.hardware))
    forward, backward = _tensors(kernels[:split]), _tensors(kernels[split:])
    qkvo = [tensor for tensor in forward if tensor.name in ("Q", "K", "V", "O")]
    kept = [tensor for tensor in forward if tensor in backward and tensor not in qkvo]
    return TrainedLayer(_bytes(kept), peak_bytes - _bytes(qkvo) - _bytes(kept))


def _lowered(setting: Setting, w: AttentionWorkload) -> tuple[int, list[Kernel]]:
    """Peak bytes of a layer's attention, however large, and its kernels; raises InputError."""
    schedule, hw = setting.schedule_of(w.phase), setting.hardware
    schedule.check(w)
    steps = schedule.steps(w, hw)
    roomy = hw.hbm.model_copy(update={"capacity": 2**80})
    return check_memory(steps, hw.model_copy(update={"hbm": roomy})), kernels_of(steps)


def _tensors(kernels: list[Kernel]) -> list[Tensor]:
    return list(dict.fromkeys(tensor for kernel in kernels for tensor in kernel.tensors))


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.bytes for tensor in tensors)


def _inference(setting: Setting, share: Share, use: Use, context: int) -> list[Memory]:
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
    attention_bytes = layer.peak_bytes - layer.cached_bytes + _exchanged(w, share)
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


def _exchanged(w: AttentionWorkload, share: Share) -> int:
    """Buffers of context parallelism in one layer.

    Of `ring`: two for the K and V of another GPU, a step's O beside the merged one in fp32, with
    its log-sum-exp; backward sends dK and dV in fp32 round as well, two buffers beside the GPU's
    own sums (zhuzilin/ring-flash-attention, ring_flash_attn.py). Of `tree_decoding`: the merged
    result and a received one, in fp32.
    """
    if share.token_ways == 1:
        return 0
    rows = w.batch * w.heads * w.seq_q
    merged = rows * (w.head_dim + 1) * STATISTICS_BYTES
    if w.phase == "decode":
        return 2 * merged
    keys_and_values = 2 * w.batch * w.kv_heads * w.seq_kv * w.head_dim
    received = 2 * keys_and_values * w.dtype_bytes
    if w.phase == "training":
        received += 3 * keys_and_values * STATISTICS_BYTES
    return received + rows * w.head_dim * w.dtype_bytes + merged


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


def _training(setting: Setting, share: Share, use: Use, context: int) -> list[Memory]:
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
            | {"attention": layer.passing_bytes + _exchanged(w, share)},
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
    gathered = _layer_parameters(setting.model) * ELEMENT_BYTES if ways > 1 else 0
    return {
        "parameters": whole // ways + gathered,
        "gradients": whole // ways,
        "optimiser": whole // ELEMENT_BYTES * OPTIMISER_BYTES // ways,
        "framework reserve": int(setting.reserve_bytes),
    }
