"""A model, how it is stored, and the GPUs that share it: each one's parameters and KV cache.

**Several GPUs.** `tensor`: heads, matrices and vocabulary are shared out (arXiv 1909.08053); fewer
KV heads than GPUs are copied, latents too. `pipeline`: each has some of the layers. `context`: each
has its share of the tokens, and whole layers.

**A sliding window** caps the KV cache at its tokens (Mistral 7B, arXiv 2310.06825, rolling buffer).

Taken as equal: all layers (the mean of their parameters, so dense first layers of DeepSeek too).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.shapes import ModelShape
from sim.inputs.workload import AttentionWorkload, Dtype, KvDtype, Phase
from sim.schedules import make_schedule
from sim.schedules.base import Schedule, blocks
from sim.schedules.parts.kv_cache import row_bytes

Parallel = Literal["tensor", "pipeline", "context"]
Stored = Literal["fp16", "bf16", "fp8", "int8", "int4"]
Weights = Literal["fp16", "bf16", "fp8", "int8", "int4", "mxfp4"]

ELEMENT_BYTES = 2  # of activations, embeddings and whatever is not quantised
# Bits of 128 weights. int8 and int4 as GPTQ and AWQ store them, in groups of 128 with a scale of 16
# bits and a zero point as wide as a weight (AutoGPTQ, qlinear: qweight, qzeros, scales); fp8 has a
# scale a tensor. The embedding and the projection to logits stay in 16 bits in all of them, with
# mxfp4 all but the experts, 32 weights of which share a scale of 8 bits (gpt-oss model card, arXiv
# 2508.10925, section 2.1).
GROUP = 128
GROUP_BITS: dict[Weights, int] = {
    "fp16": 16 * GROUP,
    "bf16": 16 * GROUP,
    "fp8": 8 * GROUP,
    "int8": 8 * GROUP + 16 + 8,
    "int4": 4 * GROUP + 16 + 4,
    "mxfp4": 4 * GROUP + 4 * 8,
}
# An estimate. The driver keeps some (PyTorch finds 23.64 GiB on an RTX 4090's 24, in many reports
# of "a total capacity of"), the CUDA context with the kernels loaded takes some 0.3 to 0.4 GiB
# (pytorch/pytorch, issues 107667 and 109888), cuBLAS's and NCCL's workspaces the rest.
# vLLM logs what it takes beside tensors as non_torch_memory.
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
    `utilisation` is the share of a GPU's HBM that may be used, the framework's reserve included:
    vLLM's gpu_memory_utilization. Raises InputError where heads or layers do not share out.
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
    utilisation: float = 1.0
    dropout: bool = False

    def __post_init__(self) -> None:
        heads, kv_heads = self.model.heads, self.model.kv_heads
        who = f"gpus = {self.gpus}: {self.model.name} has"
        uneven = heads % self.gpus or (kv_heads % self.gpus and self.gpus % kv_heads)
        if self.parallel == "tensor" and uneven:
            raise InputError(
                f"{who} {heads} heads and {kv_heads} KV heads, which do not share out evenly"
            )
        if self.weights == "mxfp4" and not self.model.routed_parameters:
            raise InputError(
                f'weights = "mxfp4": it is of experts, of which {self.model.name} has none'
            )
        if self.parallel == "pipeline" and self.gpus > self.model.layers:
            raise InputError(f"{who} {self.model.layers} layers: no more stages than that")

    @property
    def dtype(self) -> Dtype:
        """The activations' dtype: of the two 16-bit ones that which the device has."""
        return "bf16" if self.hardware.tensor_flops_per_s("bf16") else "fp16"

    @property
    def usable_bytes(self) -> int:
        """What of each GPU's HBM may be used."""
        return int(self.hardware.hbm.capacity * self.utilisation)

    @cached_property
    def shares(self) -> list["GpuShare"]:
        """What each GPU has; of those that have the same only one."""
        layers = self.model.layers
        if self.parallel == "tensor":
            return [GpuShare(layers, ways=self.gpus)]
        if self.parallel == "context":
            return [GpuShare(layers, token_ways=self.gpus)]
        # vLLM's split (vllm-project/vllm, distributed/utils.py, get_pp_indices): what is left over
        # goes to the stages before the last.
        counts = [layers // self.gpus] * self.gpus
        for number in range(layers % self.gpus):
            counts[-2 - number] += 1
        last = self.gpus - 1
        return [
            GpuShare(count, embeds=i == 0, projects=i == last, in_flight=self.gpus - i)
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
class GpuShare:
    """What one GPU has: layers, their matrices and heads cut `ways`, tokens cut `token_ways`.

    `in_flight` micro-batches wait for their backward pass in training.
    """

    layers: int
    ways: int = 1
    token_ways: int = 1
    embeds: bool = True
    projects: bool = True
    in_flight: int = 1


def cache_dtype(stored: Stored) -> KvDtype | None:
    """The KV cache's dtype, where it is not that of the activations."""
    return None if stored in ("fp16", "bf16") else stored


def group_bits(weights: Weights, routed: float, others: float) -> float:
    """Bits of so many groups of the experts' weights, and of so many of the layers' others."""
    of_others: Weights = "bf16" if weights == "mxfp4" else weights
    return routed * GROUP_BITS[weights] + others * GROUP_BITS[of_others]


def parameter_bytes(setting: Setting, share: GpuShare) -> int:
    """A GPU's parameters. Norms count with the layers' matrices."""
    model = setting.model
    in_layers = share.layers * layer_parameters(model) // share.ways
    routed = share.layers * (model.routed_parameters // model.layers) // share.ways
    whole = (share.embeds + share.projects) * model.vocab * model.hidden // share.ways
    if model.tied_embeddings and share.embeds and share.projects:
        whole //= 2
    bits = int(group_bits(setting.weights, routed, in_layers - routed))
    return blocks(bits, 8 * GROUP) + whole * ELEMENT_BYTES


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


def cached_tokens(setting: Setting, share: GpuShare, context: int) -> int:
    """Tokens of each sequence that a GPU's KV cache holds."""
    window = setting.model.window
    return blocks(context if window is None else min(context, window), share.token_ways)


def cached_tokens_of_layers(setting: Setting, share: GpuShare, context: int) -> int:
    """The same of all its layers together: local ones hold their window, as vLLM's cache does."""
    model, every = setting.model, share.layers * cached_tokens(setting, share, context)
    if model.local_window is None:
        return every
    local = share.layers * model.local_layers // model.layers
    left_out = context - min(context, model.local_window)
    return every - local * (left_out // share.token_ways)
