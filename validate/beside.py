"""What a serving framework's call does beside attention: passes over Q, K and V, and matmuls.

A table that times a framework's layer has these in its figure. Each is a launch of its own, before
or after attention's. By the `beside` of a measured operation:

    cache write    the new tokens' K and V are read and written to the cache, a CTA a token: vLLM,
                   csrc/cache_kernels.cu (reshape_and_cache_flash: an element a thread, 512 at most;
                   V is read when K has come, as warps issue in order)
    cache write by warps
                   the same, a warp a token: SGLang, mem_cache/memory_pool.py (set_kv_buffer) and
                   jit_kernel's store_cache
    packed heads   the write, and where the heads of a KV head become rows of one tile, Q is copied
                   to lie so, and O back: vLLM's flash-attention, csrc/flash_attn/flash_api.cpp
                   (mha_varlen_fwd, seqlenq_ngroups_swapped)
    cache write and lengths
                   the write, and FlashAttention-3 counts each sequence's blocks before it begins,
                   where nobody did ahead of the call: SGLang; Dao-AILab/flash-attention,
                   hopper/flash_api.cpp (prepare_varlen_num_blocks)
    fp8 queries    the write, and Q is quantised by its own largest element: read, read again and
                   written: SGLang, layers/attention/trtllm_mha_backend.py (scaled_fp8_quant without
                   a scale)
    packed QKV     Q, K and V are read in one matrix, turned, and written, K and V to the cache,
                   once offsets and scales are made from lengths: TensorRT-LLM,
                   common/attentionOp.cpp (enqueueContext: invokeBuildDecoderInfo,
                   invokeQKVPreprocessing) and kernels/unfusedAttentionKernels/
                   unfusedAttentionKernels_2_template.h (applyBiasRopeUpdateKVCacheV2). A thread has
                   16 bytes of a token's query head, and reads as much of K and V, its partner of Q
                   and of K and eight pairs of cosine and sine, 64 bytes from its neighbour's
    MLA expanded   the latents are multiplied up to K and V of every head, the keys' turned part is
                   put beside each, V is filled up to K's width and the results are cut again:
                   vllm/v1/attention/backends/mla/common.py (_forward_prefill, _pad_v)
    MLA absorbed   the new latents are written to the cache, queries multiplied by each head's W_UK
                   and put beside their turned part, results by W_UV:
                   vllm/v1/attention/backends/mla/common.py (forward, _v_up_proj), cache_kernels.cu
                   (concat_and_cache_mla)
"""

from dataclasses import astuple, dataclass
from typing import Literal

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import DTYPE_BYTES, KV_BITS, AttentionWorkload
from sim.machine import LANES, machine_of

Kind = Literal[
    "",
    "cache write",
    "cache write by warps",
    "cache write and lengths",
    "packed heads",
    "fp8 queries",
    "packed QKV",
    "MLA expanded",
    "MLA absorbed",
]
# Of a warp of applyBiasRopeUpdateKVCacheV2: cycles of its SM's L1, one for 128 bytes in a row or
# for a sector alone. Five loads and a store of 512 bytes, eight loads of 16 sectors (the halves of
# a head share them). A sector a cycle is an estimate.
TURNING_CYCLES = 6 * 4 + 8 * 16
TURNING_BYTES = 512
PROJECTED_BYTES = 2  # an element of Q, K and V as projections make them
LOADS_IN_A_ROW = 2  # where a token goes, then what goes there: csrc/cache_kernels.cu of vLLM
WRITING_THREADS = 512  # the most of a token's CTA there
QUANTISING_LAUNCHES = 5  # the maximum set to zero, found, Q quantised; its scale times two others
LATENT, K_PLAIN, K_TURNED, V = 512, 128, 64, 128  # elements of DeepSeek-V2's and V3's heads


@dataclass(frozen=True)
class Beside:
    """Bytes that the other launches move, their FLOPs, how many they are; the host's time [s].

    `l1_cycles` are those of an SM's L1, of all SMs together. `threads` work on a token each CTA, or
    warp, and take turns on the SMs; it waits for `further_loads` beyond the usual ones.
    """

    bytes: int = 0
    flops: int = 0
    launches: int = 0
    l1_cycles: int = 0
    threads: int = 0
    further_loads: int = 0
    host_s: float = 0.0

    def and_also(self, other: "Beside") -> "Beside":
        """Both."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Beside(*(ours + theirs for ours, theirs in pairs))

    def times(self, w: AttentionWorkload, hw: HardwareProfile) -> tuple[float, float]:
        """Seconds that all takes, gaps included, and that a roofline of the datasheet gives.

        What one writes the next finds in L2 where all of it fits there. As much is written as read.
        """
        if not self.launches:
            return self.host_s, 0.0
        calibration = hw.calibration
        flops_s = self.flops / hw.matmul_flops_per_s(w.dtype)
        in_l2 = self.bytes < hw.l2.capacity * calibration.l2.effective_capacity
        memory_s = (
            self.bytes / (hw.l2.bandwidth * calibration.l2.sustained)
            if in_l2
            else machine_of(hw).hbm_s(self.bytes / 2, self.bytes / 2)
        )
        l1_s = self.l1_cycles / (hw.sm.count * hw.sm.clock)
        latency_s = calibration.l2.latency if in_l2 else calibration.hbm.latency
        fixed_s = calibration.sm.cta_start + LOADS_IN_A_ROW * latency_s
        token_s = fixed_s + self.further_loads * latency_s
        waves = self.threads / (hw.sm.count * hw.sm.max_threads)
        taken_s = (
            self.launches * (calibration.launch.gap + fixed_s) + self.further_loads * latency_s
        )
        taken_s += max(memory_s, l1_s, (waves - 1) * token_s)
        taken_s += flops_s / calibration.tensor.native
        return self.host_s + taken_s, max(self.bytes / hw.hbm.bandwidth, flops_s)


def beside(kind: Kind, w: AttentionWorkload, dtype: str, kv_dtype: str) -> Beside:
    """What is done beside attention on new tokens of `dtype`, whose cache has `kv_dtype`."""
    tokens, read_bytes, cached_bits = w.batch * w.seq_q, DTYPE_BYTES[dtype], KV_BITS[kv_dtype]
    kv, q = 2 * tokens * w.kv_heads * w.head_dim, tokens * w.heads * w.head_dim
    match kind:
        case "cache write" | "cache write by warps":
            moved, by_cta = kv * read_bytes + kv * cached_bits // 8, kind == "cache write"
            row = min(w.kv_heads * w.head_dim, WRITING_THREADS) if by_cta else LANES
            return Beside(moved, launches=1, threads=tokens * row, further_loads=int(by_cta))
        case "cache write and lengths":
            lengths = Beside(launches=1)
            return beside("cache write by warps", w, dtype, kv_dtype).and_also(lengths)
        case "packed heads":
            # Of one KV head Q lies so already; of one query head there is nothing to pack.
            times = 0 if w.heads == w.kv_heads else 1 if w.kv_heads == 1 else 2
            copies = Beside(times * 2 * q * read_bytes, launches=times)
            return copies.and_also(beside("cache write", w, dtype, kv_dtype))
        case "fp8 queries":
            quantised = q * (2 * PROJECTED_BYTES + w.dtype_bytes)
            written = kv * PROJECTED_BYTES + kv * cached_bits // 8
            return Beside(quantised + written, launches=1 + QUANTISING_LAUNCHES)
        case "packed QKV":
            made = q * w.dtype_bytes + kv * cached_bits // 8
            turning = TURNING_CYCLES * q * PROJECTED_BYTES // TURNING_BYTES
            return Beside((q + kv) * PROJECTED_BYTES + made, launches=2, l1_cycles=turning)
        case "MLA expanded":
            return _mla_expanded(tokens, w.heads, read_bytes)
        case "MLA absorbed":
            return _mla_absorbed(tokens, w.heads, read_bytes, cached_bits)
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


def _mla_absorbed(tokens: int, heads: int, element_bytes: int, cached_bits: int) -> Beside:
    """The write, a matmul before, Q put together, a matmul behind: four launches."""
    cached, rows = tokens * (LATENT + K_TURNED), tokens * heads
    written = cached * element_bytes + cached * cached_bits // 8
    weights = heads * LATENT * (K_PLAIN + V)
    absorbed, joined = (K_PLAIN + LATENT) * rows, 2 * (LATENT + K_TURNED) * rows
    expanded = (LATENT + V) * rows
    return Beside(
        written + (weights + absorbed + joined + expanded) * element_bytes,
        flops=2 * LATENT * (K_PLAIN + V) * rows,
        launches=4,
    )
