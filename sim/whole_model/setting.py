"""A model, how it is stored, and the GPUs that share it: what of it lives in HBM whatever runs."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sim.device.memory import check_memory
from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.shapes import ModelShape
from sim.inputs.workload import AttentionWorkload, Dtype, KvDtype, Phase
from sim.schedules import make_schedule
from sim.schedules.base import STATISTICS_BYTES, Schedule, blocks
from sim.schedules.parts.kv_cache import row_bytes
from sim.tile_program import Kernel, Tensor

Use = Literal["prefill", "decode", "training", "training with checkpointing"]
USES: tuple[Use, ...] = ("prefill", "decode", "training", "training with checkpointing")
Parallel = Literal["tensor", "pipeline", "context"]
Weights = Literal["fp16", "bf16", "fp8", "int8", "int4"]

ELEMENT_BYTES = 2  # of activations, embeddings and whatever is not quantised
LOGIT_BYTES = 2 + 4  # as the matmul makes them (in training, their gradient), and in fp32
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


def parameter_bytes(setting: Setting, share: Share) -> int:
    """A GPU's parameters. Norms count with the layers' matrices."""
    model = setting.model
    in_layers = share.layers * layer_parameters(model) // share.ways
    whole = (share.embeds + share.projects) * model.vocab * model.hidden // share.ways
    if model.tied_embeddings and share.embeds and share.projects:
        whole //= 2
    return blocks(in_layers * GROUP_BITS[setting.weights], 8 * GROUP) + whole * ELEMENT_BYTES


def layer_parameters(model: ModelShape) -> int:
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


def lowered_layer(setting: Setting, w: AttentionWorkload) -> tuple[int, list[Kernel]]:
    """Peak bytes of a layer's attention, however large, and its kernels; raises InputError."""
    schedule, hw = setting.schedule_of(w.phase), setting.hardware
    commands = schedule.program(w, hw)
    return check_memory(commands, roomy(hw)), kernels_of(commands)


def roomy(hw: HardwareProfile) -> HardwareProfile:
    """The device with HBM for anything."""
    return hw.with_figures({"hbm.capacity": 2.0**80})


def tensors_of(kernels: list[Kernel]) -> list[Tensor]:
    """Every tensor that the kernels touch, once each."""
    return list(dict.fromkeys(tensor for kernel in kernels for tensor in kernel.tensors))


def bytes_of(tensors: list[Tensor]) -> int:
    """Bytes of all of them."""
    return sum(tensor.bytes for tensor in tensors)


def exchanged_bytes(w: AttentionWorkload, share: Share) -> int:
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
