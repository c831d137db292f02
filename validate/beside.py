"""What a serving framework's call does beside attention: passes over Q, K and V, and matmuls.

A table that times a framework's layer has these in its figure. Each is a launch of its own, before
or after attention's. By the `beside` of a measured operation:

    cache write    the new tokens' K and V are read and written to the cache (validate/cache_write)
    cache write by heads
                   the same, where a head's tokens lie together (HND, FlashInfer's on Blackwell)
    cache write by warps
                   the same, a warp a token, K and V cast first where the cache is narrower: SGLang,
                   mem_cache/memory_pool.py (set_kv_buffer) and jit_kernel's store_cache
    packed heads   the write, and where the heads of a KV head become rows of one tile, Q is copied
                   to lie so, and O back: vLLM's flash-attention, csrc/flash_attn/flash_api.cpp
                   (mha_varlen_fwd, seqlenq_ngroups_swapped)
    cache write and lengths
                   the write, and FlashAttention-3 counts each sequence's blocks before it begins;
                   Dao-AILab/flash-attention, hopper/flash_api.cpp (prepare_varlen_num_blocks)
    cache write, lengths ahead
                   the same, but that SGLang 0.5.14 counts them ahead of a step of decoding without
                   a window (flashattention_backend.py, _compute_scheduler_metadata), and casts Q, K
                   and V to a cache of 8 bits in three launches
    fp8 queries    the write, and Q is quantised by its own largest element: read, read again and
                   written: SGLang, layers/attention/trtllm_mha_backend.py (scaled_fp8_quant without
                   a scale)
    packed QKV     Q, K and V are read in one matrix, turned, and written, K and V to the cache,
                   once offsets and scales are made from lengths, unless a sequence has one query:
                   TensorRT-LLM, common/attentionOp.cpp (enqueueContext: invokeBuildDecoderInfo,
                   invokeQKVPreprocessing), xqaDispatcher.cpp (isBuildDecoderInfoKernelNeeded) and
                   kernels/unfusedAttentionKernels/unfusedAttentionKernels_2_template.h
                   (applyBiasRopeUpdateKVCacheV2). A thread has
                   16 bytes of a token's query head, and reads as much of K and V, its partner of Q
                   and of K and eight pairs of cosine and sine, 64 bytes from its neighbour's
    packed QKV in place
                   the same, and K is written back beside Q as well, where attention reads the
                   matrix and not the cache (STORE_QKV)
    MLA expanded   the new latents are written to the cache, all are multiplied up to K and V of
                   every head, the keys' turned part is put beside each and the results are copied
                   to where they are asked for: vllm/v1/attention/backends/mla/common.py
                   (_forward_prefill)
    MLA filled     the same, and V is filled up to K's width and the results are cut again (_pad_v;
                   flatten)
    MLA absorbed   the new latents are written to the cache, queries multiplied by each head's W_UK
                   and put beside their turned part, results by W_UV:
                   vllm/v1/attention/backends/mla/common.py (forward, _v_up_proj), cache_kernels.cu
                   (concat_and_cache_mla)
    MLA written    the new latents are written to the cache, cast first, part by part, where that is
                   narrower: SGLang, mem_cache/memory_pool.py (set_mla_kv_buffer)
    MLA joined     the same, and queries are put beside their turned part; for a cache in 8 bits one
                   kernel turns and quantises them in decoding, in prefill Q, K and V are cast:
                   SGLang, layers/attention/trtllm_mla_backend.py
    MLA turned     queries (of whole prompts keys too) are turned where they lie and the new latents
                   written, once offsets are made from lengths; for a cache in 8 bits what attention
                   reads is quantised: in decoding at once, in prefill by a kernel of its own.
                   TensorRT-LLM, kernels/mlaKernels.cu, common/attentionOp.cpp
"""

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal

from sim.device.run import run_on_device
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import DTYPE_BYTES, KV_BITS, AttentionWorkload
from sim.machine import LANES, machine_of
from sim.schedules.base import blocks
from sim.schedules.parts.eager import OF_TOKENS, eager_pass
from sim.tile_program import Tensor, in_order
from validate.cache_write import CacheWrite, time_s

Kind = Literal[
    "",
    "cache write",
    "cache write by heads",
    "cache write by warps",
    "cache write and lengths",
    "cache write, lengths ahead",
    "packed heads",
    "fp8 queries",
    "packed QKV",
    "packed QKV in place",
    "MLA expanded",
    "MLA filled",
    "MLA absorbed",
    "MLA written",
    "MLA joined",
    "MLA turned",
]
# Of a warp of applyBiasRopeUpdateKVCacheV2: cycles of its SM's L1, one for 128 bytes in a row or
# for a sector alone. Five loads and a store of 512 bytes, eight loads of 16 sectors (the halves of
# a head share them). A sector a cycle is an estimate.
TURNING_CYCLES = 6 * 4 + 8 * 16
TURNING_BYTES = 512
# Of a warp alone, in a row: some 500 instructions, divisions of lengths and places among them. What
# the source does, written again, compiled by nvcc 13.0 and played through: 1,930 and 2,030 cycles
# on sm_90 (a cache of 16 bits, of 8), 1,640 and 1,900 on sm_89.
LONE_TURNING_CYCLES = 1_900
# And of the CTA that makes a sequence's offsets (computeSeqAndPaddingOffsets, gptKernels.cu): three
# sums over sequences, scales; then for each token, 256 at a time, where it belongs. Played through
# as well: 2,514 cycles at 256 tokens, 7,240 at 16,384.
OFFSETS_CYCLES, OFFSETS_A_TURN_CYCLES, OFFSETS_THREADS = 2_440, 75, 256
PROJECTED_BYTES = 2  # an element of Q, K and V as projections make them
CASTS = 3  # of Q, K and V
LOADS_IN_A_ROW = 2  # where a token goes, then what goes there
QUANTISING_LAUNCHES = 5  # the maximum set to zero, found, Q quantised; its scale times two others
LATENT, K_PLAIN, K_TURNED, V = 512, 128, 64, 128  # elements of DeepSeek-V2's and V3's heads
COPIED_BYTES = 2**26  # many waves of CTAs
STRIDED_DIMS = 2  # tokens' heads, which PyTorch joins, and columns
FEW_ROWS = 16


@dataclass(frozen=True)
class Beside:
    """Bytes that the other launches move, their FLOPs, how many they are; the host's time [s].

    `matmul_bytes` of the bytes move while matmuls run, `strided_bytes` by PyTorch's copies between
    tensors that are not contiguous, an element of a thread after the other, `turned_copies` of
    which turn two dimensions of heads. `sm_cycles` are those
    of the scarcest unit of an SM, of all SMs together. `threads` are those of all warps, each of
    which works on a token, `lone_cycles` in a row, and which take turns on the SMs. `writes` are
    launches of their own, played.
    """

    bytes: int = 0
    flops: int = 0
    matmul_bytes: int = 0
    strided_bytes: int = 0
    turned_copies: int = 0
    launches: int = 0
    sm_cycles: int = 0
    lone_cycles: int = 0
    threads: int = 0
    writes: tuple[CacheWrite, ...] = ()
    host_s: float = 0.0

    def and_also(self, other: "Beside") -> "Beside":
        """Both."""
        names = [one.name for one in fields(self)]
        return Beside(*(getattr(self, name) + getattr(other, name) for name in names))

    def times(
        self, w: AttentionWorkload, hw: HardwareProfile, apart_s: float = 0.0
    ) -> tuple[float, float]:
        """Seconds that all takes, gaps included, and that a roofline of the datasheet gives.

        Launches stand so much further apart than in a graph.
        What one writes the next finds in L2 where all of it fits there. As much is written as read.
        """
        calibration, gap_s = hw.calibration, hw.calibration.launch.gap + apart_s
        written_s = sum(gap_s + time_s(write, hw) for write in self.writes)
        written_roofline_s = sum(write.bytes for write in self.writes) / hw.hbm.bandwidth
        if not self.launches:
            return self.host_s + written_s, written_roofline_s
        flops_s = self.flops / hw.matmul_flops_per_s(w.dtype)
        in_l2 = self.bytes < hw.l2.capacity * calibration.l2.effective_capacity

        def memory_s(moved: int) -> float:
            if in_l2:
                return moved / (hw.l2.bandwidth * calibration.l2.sustained)
            return machine_of(hw).hbm_s(moved / 2, moved / 2)

        sm_s = self.sm_cycles / (hw.sm.count * hw.sm.clock)
        latency_s = calibration.l2.latency if in_l2 else calibration.hbm.latency
        fixed_s = calibration.sm.cta_start + LOADS_IN_A_ROW * latency_s
        further_s = self.lone_cycles / hw.sm.clock
        if self.turned_copies:
            usual_s = calibration.sm.cta_start + LOADS_IN_A_ROW * calibration.l2.latency
            further_s += self.turned_copies * (turned_copy_s(hw) - usual_s)
        token_s = fixed_s + further_s
        waves = self.threads / (hw.sm.count * hw.sm.max_threads)
        taken_s = self.launches * (gap_s + fixed_s) + further_s
        passes_s = memory_s(self.bytes - self.matmul_bytes - self.strided_bytes)
        if self.strided_bytes:
            copied_s = self.strided_bytes / strided_bytes_per_s(hw)
            passes_s += max(memory_s(self.strided_bytes), copied_s)
        taken_s += max(passes_s, sm_s, (waves - 1) * token_s)
        taken_s += max(flops_s / calibration.tensor.native, memory_s(self.matmul_bytes))
        roofline_s = max(self.bytes / hw.hbm.bandwidth, flops_s) + written_roofline_s
        return self.host_s + written_s + taken_s, roofline_s


@lru_cache
def strided_bytes_per_s(hw: HardwareProfile) -> float:
    """What PyTorch's copies of 16-bit elements between tensors that are not contiguous move."""
    read, written = (
        Tensor(name, 1, COPIED_BYTES // (2 * LATENT), LATENT, 2) for name in ("K", "copy of K")
    )
    copy = eager_pass("copy K", [read], [written], dims=STRIDED_DIMS)
    (launched,) = run_on_device(in_order([copy]), hw, "bf16", "replay", lambda _: None).kernels
    return (read.bytes + written.bytes) / launched.run.time_s


@lru_cache
def turned_copy_s(hw: HardwareProfile) -> float:
    """What such a copy of a few heads takes whose operands are in L2, element after element."""
    heads = [Tensor(name, 1, FEW_ROWS, K_PLAIN, 2) for name in ("Q", "Q by KV heads")]
    copy = eager_pass("copy Q", heads[:1], heads[1:], dims=OF_TOKENS)
    run = run_on_device(in_order([copy, copy]), hw, "bf16", "replay", lambda _: None)
    return float(run.kernels[-1].run.time_s)


def beside(kind: Kind, w: AttentionWorkload, dtype: str, kv_dtype: str) -> Beside:
    """What is done beside attention on new tokens of `dtype`, whose cache has `kv_dtype`."""
    tokens, read_bytes, cached_bits = w.batch * w.seq_q, DTYPE_BYTES[dtype], KV_BITS[kv_dtype]
    kv, q = 2 * tokens * w.kv_heads * w.head_dim, tokens * w.heads * w.head_dim
    match kind:
        case "cache write" | "cache write by heads":
            by_heads, narrowed = kind == "cache write by heads", cached_bits // 8
            write = CacheWrite(tokens, w.kv_heads, w.head_dim, read_bytes, narrowed, by_heads)
            return Beside(writes=(write,))
        case "cache write by warps":
            stored = kv * cached_bits // 8
            copied = Beside(2 * stored, launches=1, threads=tokens * LANES)
            return copied.and_also(_narrowed(kv, read_bytes, cached_bits // 8))
        case "cache write and lengths":
            moved = kv * read_bytes + kv * cached_bits // 8
            return Beside(moved, launches=2, threads=tokens * LANES)
        case "cache write, lengths ahead":
            launches = 1 + (w.window is not None) + CASTS * (cached_bits // 8 < read_bytes)
            return replace(beside("cache write and lengths", w, dtype, kv_dtype), launches=launches)
        case "packed heads":
            # Of one KV head Q lies so already; of one query head there is nothing to pack.
            times = 0 if w.heads == w.kv_heads else 1 if w.kv_heads == 1 else 2
            moved = times * 2 * q * read_bytes
            copies = Beside(moved, strided_bytes=moved, turned_copies=times, launches=times)
            return copies.and_also(beside("cache write", w, dtype, kv_dtype))
        case "fp8 queries":
            quantised = q * (2 * PROJECTED_BYTES + w.dtype_bytes)
            written = kv * PROJECTED_BYTES + kv * cached_bits // 8
            return Beside(quantised + written, launches=1 + QUANTISING_LAUNCHES)
        case "packed QKV":
            made = q * w.dtype_bytes + kv * cached_bits // 8
            turning = TURNING_CYCLES * q * PROJECTED_BYTES // TURNING_BYTES
            turned = Beside(
                (q + kv) * PROJECTED_BYTES + made,
                launches=1,
                sm_cycles=turning,
                lone_cycles=LONE_TURNING_CYCLES,
            )
            return turned.and_also(_offsets(w)) if w.seq_q > 1 else turned
        case "packed QKV in place":
            k_again = Beside(kv // 2 * w.dtype_bytes)
            return beside("packed QKV", w, dtype, kv_dtype).and_also(k_again)
        case "MLA expanded" | "MLA filled":
            expanded = _mla_expanded(tokens, w.heads, read_bytes, cached_bits)
            return expanded.and_also(_mla_filled(tokens, w.heads, read_bytes, kind))
        case "MLA written":
            return _mla_written(tokens, read_bytes, cached_bits)
        case "MLA joined":
            joined = _mla_joined(w, read_bytes)
            return joined.and_also(_mla_written(tokens, read_bytes, cached_bits))
        case "MLA turned":
            return _mla_turned(w, read_bytes, cached_bits)
        case "MLA absorbed":
            return _mla_absorbed(tokens, w.heads, read_bytes, cached_bits)
    return Beside()


def _narrowed(elements: int, from_bytes: int, to_bytes: int) -> Beside:
    """So many elements of K and V cast, a launch each, where they are to be narrower."""
    if from_bytes == to_bytes:
        return Beside()
    return Beside(elements * (from_bytes + to_bytes), launches=2)


def _mla_expanded(tokens: int, heads: int, element_bytes: int, cached_bits: int) -> Beside:
    """The write, a matmul, K put together in two copies, the result copied out: five launches."""
    latents, rows = tokens * (LATENT + K_TURNED), tokens * heads
    written = latents * element_bytes + latents * cached_bits // 8
    made = (LATENT * tokens + (K_PLAIN + V) * rows) * element_bytes
    joined = (K_PLAIN + K_PLAIN + K_TURNED) * rows * element_bytes  # one turned part for all heads
    copied_out = 2 * V * rows * element_bytes
    return Beside(
        written + made + joined + copied_out,
        flops=2 * LATENT * (K_PLAIN + V) * rows,
        matmul_bytes=made,
        strided_bytes=joined,
        launches=5,
    )


def _mla_filled(tokens: int, heads: int, element_bytes: int, kind: Kind) -> Beside:
    """V filled up, zeros first (ATen/native/PadNd.cpp), the result cut: three launches."""
    if kind != "MLA filled":
        return Beside()
    row_bytes = tokens * heads * element_bytes
    zeros, filled, cut = K_PLAIN + K_TURNED, 2 * V, 2 * V
    return Beside(
        (zeros + filled + cut) * row_bytes, strided_bytes=(filled + cut) * row_bytes, launches=3
    )


def _mla_written(tokens: int, element_bytes: int, cached_bits: int) -> Beside:
    """The write, after two casts where the cache is narrower."""
    latents, cached_bytes = tokens * (LATENT + K_TURNED), cached_bits // 8
    if cached_bytes == element_bytes:
        return Beside(2 * latents * element_bytes, launches=1)
    return Beside(latents * (element_bytes + 3 * cached_bytes), launches=3)


def _mla_joined(w: AttentionWorkload, element_bytes: int) -> Beside:
    """Queries beside their turned part, and what is cast."""
    tokens = w.batch * w.seq_q
    q = tokens * w.heads * (w.head_dim if w.latent_dim is None else LATENT + K_TURNED)
    cast = w.dtype_bytes < element_bytes
    if w.latent_dim is not None:
        return Beside(q * (element_bytes + w.dtype_bytes), launches=1)
    k, v = (tokens * w.kv_heads * cols for cols in (w.head_dim, w.value_columns))
    narrowed = (q + k + v) * (element_bytes + w.dtype_bytes) if cast else 0
    return Beside(2 * (q + k) * element_bytes + narrowed, launches=2 + 3 * cast)


def _mla_turned(w: AttentionWorkload, element_bytes: int, cached_bits: int) -> Beside:
    """What is turned, the write, what is quantised."""
    tokens, rows = w.batch * w.seq_q, w.batch * w.seq_q * w.heads
    latents = tokens * (LATENT + K_TURNED)
    written = latents * element_bytes + latents * cached_bits // 8
    narrowed_bytes = element_bytes + w.dtype_bytes if w.dtype_bytes < element_bytes else 0
    if w.latent_dim is not None:
        turned = 2 * K_TURNED * rows * element_bytes
        quantised = (LATENT + K_TURNED) * rows * narrowed_bytes
        return Beside(written + (quantised or turned), launches=1)
    turned = (2 + 1) * K_TURNED * rows * element_bytes  # the keys' one part becomes every head's
    quantised = (2 * w.head_dim + w.value_columns) * rows * narrowed_bytes
    passes = Beside(written + turned + quantised, launches=1 + (quantised > 0))
    return passes.and_also(_offsets(w))


def _offsets(w: AttentionWorkload) -> Beside:
    """TensorRT-LLM's launch that makes offsets from lengths, a CTA a sequence."""
    turns = blocks(w.seq_q, OFFSETS_THREADS)
    return Beside(launches=1, lone_cycles=OFFSETS_CYCLES + turns * OFFSETS_A_TURN_CYCLES)


def _mla_absorbed(tokens: int, heads: int, element_bytes: int, cached_bits: int) -> Beside:
    """The write, a matmul before, Q put together, a matmul behind: four launches."""
    cached, rows = tokens * (LATENT + K_TURNED), tokens * heads
    written = cached * element_bytes + cached * cached_bits // 8
    weights = heads * LATENT * (K_PLAIN + V)
    absorbed, joined = (K_PLAIN + LATENT) * rows, 2 * (LATENT + K_TURNED) * rows
    expanded = (LATENT + V) * rows
    multiplied = (weights + absorbed + expanded) * element_bytes
    return Beside(
        written + multiplied + joined * element_bytes,
        flops=2 * LATENT * (K_PLAIN + V) * rows,
        matmul_bytes=multiplied,
        launches=4,
    )
