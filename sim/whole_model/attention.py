"""One layer's attention on one GPU: its workload, and what its schedule has in HBM for it.

That is what the schedule's own program for one layer allocates on the device
(`sim.device.memory.check_memory`), had that room for anything.
"""

from sim.device.memory import check_memory
from sim.device.program import kernels_of
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload, Phase
from sim.schedules.base import STATISTICS_BYTES, blocks
from sim.tile_program import Kernel, Tensor
from sim.whole_model.setting import GpuShare, Setting


def attention_workload(
    setting: Setting, share: GpuShare, phase: Phase, context: int
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
    commands = setting.schedule_of(w.phase).program(w, setting.hardware)
    return check_memory(commands, roomy(setting.hardware)), kernels_of(commands)


def roomy(hw: HardwareProfile) -> HardwareProfile:
    """The device with HBM for anything."""
    return hw.with_figures({"hbm.capacity": 2.0**80})


def tensors_of(kernels: list[Kernel]) -> list[Tensor]:
    """Every tensor that the kernels touch, once each."""
    return list(dict.fromkeys(tensor for kernel in kernels for tensor in kernel.tensors))


def bytes_of(tensors: list[Tensor]) -> int:
    """Bytes of all of them."""
    return sum(tensor.bytes for tensor in tensors)


def exchanged_bytes(w: AttentionWorkload, share: GpuShare) -> int:
    """Buffers of context parallelism in one layer.

    Of `ring`: two for the K and V of another GPU, a turn's O beside the merged one in fp32, with
    its log-sum-exp, and what merging leaves between its operations (pointwise_merge), which is
    gone when backward has its buffers; backward sends dK and dV in fp32 round as well, two buffers
    beside the GPU's own sums (zhuzilin/ring-flash-attention, ring_flash_attn.py). Of
    `tree_decoding`: the merged result and a received one, in fp32.
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
    else:
        merged += rows * (3 * w.head_dim + 4) * STATISTICS_BYTES
    return received + rows * w.head_dim * w.dtype_bytes + merged
