"""What a serving framework's call does beside attention: passes over Q, K and V, and matmuls.

A table that times a framework's layer has these in its figure. Each is a launch of its own, before
or after attention's. By the `beside` of a measured operation:

    cache write    the new tokens' K and V are read and written to the cache: vLLM,
                   csrc/cache_kernels.cu (reshape_and_cache_flash); SGLang,
                   mem_cache/memory_pool.py (set_kv_buffer)
    cache write and lengths    so, and FlashAttention-3 counts each sequence's blocks before it
                   begins, where nobody did ahead of the call: SGLang; Dao-AILab/flash-attention,
                   hopper/flash_api.cpp (prepare_varlen_num_blocks)
    packed QKV     Q, K and V are read in one matrix, turned, and written, K and V to the cache,
                   once offsets and scales are made from lengths: TensorRT-LLM,
                   common/attentionOp.cpp (enqueueContext: invokeBuildDecoderInfo,
                   invokeQKVPreprocessing)
    MLA expanded   the latents are multiplied up to K and V of every head, the keys' turned part is
                   put beside each, V is filled up to K's width and the results are cut again:
                   vllm/v1/attention/backends/mla/common.py (_forward_prefill, _pad_v)
"""

from dataclasses import dataclass
from typing import Literal

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import DTYPE_BYTES, KV_BITS, AttentionWorkload

Kind = Literal["", "cache write", "cache write and lengths", "packed QKV", "MLA expanded"]
LATENT, K_PLAIN, K_TURNED, V = 512, 128, 64, 128  # elements of DeepSeek-V2's and V3's heads


@dataclass(frozen=True)
class Beside:
    """Bytes that the other launches move, their FLOPs, and how many launches they are."""

    bytes: int = 0
    flops: int = 0
    launches: int = 0

    def times(self, w: AttentionWorkload, hw: HardwareProfile) -> tuple[float, float]:
        """Seconds that they take, gaps included, and that a roofline of the datasheet gives.

        What one writes the next finds in L2 where all of it fits there.
        """
        if not self.launches:
            return 0.0, 0.0
        calibration = hw.calibration
        flops_s = self.flops / hw.matmul_flops_per_s(w.dtype)
        in_l2 = self.bytes < hw.l2.capacity * calibration.l2.effective_capacity
        memory_s = (
            self.bytes / (hw.l2.bandwidth * calibration.l2.sustained)
            if in_l2
            else self.bytes / (hw.hbm.bandwidth * calibration.hbm.sustained)
        )
        fixed_s = calibration.launch.gap + calibration.sm.cta_start
        taken_s = self.launches * fixed_s + memory_s + flops_s / calibration.tensor.native
        return taken_s, max(self.bytes / hw.hbm.bandwidth, flops_s)


def beside(kind: Kind, w: AttentionWorkload, dtype: str, kv_dtype: str) -> Beside:
    """What is done beside attention on new tokens of `dtype`, whose cache has `kv_dtype`."""
    tokens, read_bytes, cached_bits = w.batch * w.seq_q, DTYPE_BYTES[dtype], KV_BITS[kv_dtype]
    kv, q = 2 * tokens * w.kv_heads * w.head_dim, tokens * w.heads * w.head_dim
    match kind:
        case "cache write":
            return Beside(kv * read_bytes + kv * cached_bits // 8, launches=1)
        case "cache write and lengths":
            return Beside(kv * read_bytes + kv * cached_bits // 8, launches=2)
        case "packed QKV":
            made = q * w.dtype_bytes + kv * cached_bits // 8
            return Beside((q + kv) * read_bytes + made, launches=2)
        case "MLA expanded":
            return _mla_expanded(tokens, w.heads, read_bytes)
    return Beside()


def _mla_expanded(tokens: int, heads: int, element_bytes: int) -> Beside:
    """A matmul, K put together, V filled up, the result cut: four launches."""
    k, rows = K_PLAIN + K_TURNED, tokens * heads
    made = LATENT * tokens + (K_PLAIN + V) * rows
    joined = (K_PLAIN + K_TURNED + k) * rows
    filled, cut = (V + k) * rows, (k + V) * rows
    return Beside(
        (made + joined + filled + cut) * element_bytes,
        flops=2 * LATENT * (K_PLAIN + V) * rows,
        launches=4,
    )
