"""How a CTA of each public kernel of latent attention's decoding works: tile, warps, buffers, SRAM.

    flashmla     deepseek-ai/FlashMLA, csrc/sm90/decode/dense: traits.h (64 x 64, 256 threads, two
                 buffers, P in SRAM), splitkv_mla.cuh (each warp group has half of V, and one is a
                 block behind the other); in 8 bits, as it was first (vllm-project/FlashMLA,
                 csrc/extension/sm90/dense_fp8): see trtllm
    fa3          Dao-AILab/flash-attention, hopper/: tile_size.h (headdim_v 512: 64 x 64, P in
                 SRAM), flash_fwd_launch_template.h (2 stages), mainloop_fwd_sm90_tma_gmma_ws.hpp
                 (LargeHeadDimV: one warp group has S and the softmax, both have half of V; no
                 overlap within a block)
    trtllm       NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/kernels/flashMLA/flash_fwd_mla_kernel.h on
                 Hopper: FlashMLA as it was first, with one warp group for S, both for V, no overlap
                 within a block; before Hopper `latent_slices`; on Blackwell it is not public
    flashinfer   flashinfer-ai/flashinfer, include/flashinfer/attention: mla_hopper.cuh on Hopper
                 (64 x 64, 2 stages, S of one warp group), elsewhere mla.cuh (8 warps by mma.sync;
                 DISPATCH_SMEM_CONFIG: keys and stages by an SM's SRAM; QK_SHARD: each 4 warps have
                 half the keys, without it each have all)
    triton       vllm-project/vllm, vllm/v1/attention/ops/triton_decode_attention.py, and sglang,
                 srt/layers/attention/triton_ops/decode_attention.py: _fwd_grouped_kernel_stage1
                 (16 heads, 32 keys, 4 warps, 2 stages). V is loaded beside K, though it is K's
                 first elements. Triton 3.9 compiles that to 255 registers and 89,088 bytes of SRAM,
                 one buffer each of K and V, filled anew when the trip is over (sm_80, 89, 90).

wgmma takes V in 8 bits only with its keys beside each other: those kernels turn it in SRAM first
(TensorRT-LLM's fp8_transpose_v.h: PRMT on four elements at a time).
"""

from dataclasses import dataclass, replace
from typing import Literal

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, Tile, blocks
from sim.schedules.parts import registers
from sim.tile_program import Footprint, TensorPath

Implementation = Literal["flashmla", "fa3", "flashinfer", "trtllm", "triton"]
WARP_GROUP = 128
COPY_BYTES = 16  # of one cp.async
# Lane operations of addresses for each: 284 LEA, LOP3, SHF, ISETP, IADD3 and PLOP3 in the loop of
# what Triton 3.9 compiles for sm_80, 34 copies a thread.
TRITON_OPS_A_COPY = 8
TURNED_AT_ONCE = 4
MMA_DEPTH = 16  # elements that one 16-bit mma.sync sums over
EIGHT_BITS = ("flashmla", "trtllm")
NOT_PUBLIC = "trtllm-gen's kernels are not public; flashmla stands nearest"
# mla.cuh, DISPATCH_SMEM_CONFIG: bytes that an SM has at least; keys of a block, stages, QK_SHARD.
FLASHINFER = ((221_696, 64, 2, True), (147_968, 32, 2, True), (92_672, 16, 1, False))


@dataclass(frozen=True)
class LatentCta:
    """How a CTA works on a block of heads.

    Of its threads `chains` warp groups go through the blocks of keys at their own pace; where there
    are more they wait for each other in every block, which makes them one. `q_readers`, `k_readers`
    and `v_readers` say how often a tile is read from SRAM. If `loads_v`, V has a load of its own,
    and its buffer and K's are free when the trip is over; if `turns_v`, V is turned in SRAM, beside
    itself. `scored_by` groups of warps have all of S each. S is summed in `sum_steps`, each of
    which waits for the last. A copy of 16 bytes takes `ops_a_copy` of addresses. Partial results
    have `partial_bytes` an element, and are made one even where there is one if it
    `always_combines`, by CTAs of `combined_rows` and `combining_threads`.
    """

    tile: Tile
    threads: int = 2 * WARP_GROUP
    chains: int = 1
    registers_per_thread: int = registers.MLA
    tensor_path: TensorPath = "mma_sync"
    buffers: int = 2
    q_readers: int = 1
    k_readers: int = 1
    v_readers: int = 1
    loads_v: bool = False
    scored_by: int = 1
    sum_steps: int = 1
    ops_a_copy: int = 0
    p_in_sram: bool = True
    turns_v: bool = False
    statistics_in_sram: int = 0  # for each row
    partial_bytes: int = STATISTICS_BYTES
    always_combines: bool = False
    combined_rows: int = 8
    combining_threads: int = 256

    def sram_bytes(self, w: AttentionWorkload, tile: Tile) -> int:
        """Q, the buffers of the cache (and of V), P and what the warps tell each other of rows."""
        latent_dim = w.latent_dim or 0
        row_bytes = (latent_dim + w.rope_dim) * w.dtype_bytes
        of_its_own = self.loads_v or self.turns_v
        v_bytes = tile.kv * latent_dim * w.dtype_bytes if of_its_own else 0
        p_bytes = tile.q * tile.kv * w.dtype_bytes if self.p_in_sram else 0
        held = row_bytes * (tile.q + self.buffers * tile.kv)
        return held + v_bytes + p_bytes + tile.q * self.statistics_in_sram * STATISTICS_BYTES

    def footprint(self, w: AttentionWorkload) -> Footprint:
        """What a CTA takes of its SM; threads of no chain of their own count as producers."""
        followers = self.threads - WARP_GROUP * self.chains
        sram_bytes = self.sram_bytes(w, self.tile)
        return Footprint(sram_bytes, self.threads, self.registers_per_thread, followers)


def public_latent_cta(
    implementation: Implementation, w: AttentionWorkload, hw: HardwareProfile
) -> LatentCta:
    """What the public kernel uses; raises InputError where there is none for dtype or device."""
    if w.dtype_bytes == 1 and implementation not in EIGHT_BITS:
        raise InputError(
            f'schedule mla: implementation = "{implementation}": workload.dtype = "{w.dtype}": it '
            f"multiplies in 16 bits; in 8 do {', '.join(EIGHT_BITS)}"
        )
    if implementation == "flashinfer" and hw.arch != "sm90":
        return _flashinfer(hw)
    if implementation in ("fa3", "trtllm") and hw.arch != "sm90":
        raise InputError(
            f'schedule mla: implementation = "{implementation}": {hw.name} is {hw.arch}: '
            f"{'its kernel runs on sm90 (Hopper)' if implementation == 'fa3' else NOT_PUBLIC}"
        )
    if implementation == "triton":
        width = (w.latent_dim or 0) + w.rope_dim
        return LatentCta(
            Tile(q=16, kv=32),
            WARP_GROUP,
            buffers=1,
            q_readers=4,
            loads_v=True,
            sum_steps=blocks(width, MMA_DEPTH),
            ops_a_copy=TRITON_OPS_A_COPY,
            always_combines=True,
            combined_rows=1,
            combining_threads=128,
        )
    cta = LatentCta(Tile(q=64, kv=64), turns_v=hw.arch == "sm90" and w.dtype_bytes == 1)
    if implementation == "fa3":
        threads, taken = 3 * WARP_GROUP, registers.FLASH3[2]
        return replace(cta, threads=threads, registers_per_thread=taken, tensor_path="native")
    if implementation == "trtllm" or cta.turns_v:
        return replace(cta, tensor_path="native")
    if implementation == "flashinfer":
        return replace(cta, tensor_path="native", p_in_sram=False, partial_bytes=2)
    path: TensorPath = "asynchronous" if hw.matmul_by_warp_group else "mma_sync"
    return replace(cta, chains=2, tensor_path=path)


def _flashinfer(hw: HardwareProfile) -> LatentCta:
    for needed_bytes, keys, stages, shard in FLASHINFER:
        if hw.sram.capacity >= needed_bytes:
            return LatentCta(
                Tile(q=64, kv=keys),
                buffers=stages,
                q_readers=2,
                k_readers=4 if shard else 8,
                v_readers=4,
                scored_by=1 if shard else 2,
                p_in_sram=False,
                statistics_in_sram=2,
                partial_bytes=2,
            )
    raise InputError(
        f'schedule mla: implementation = "flashinfer": its smallest tile needs '
        f"{FLASHINFER[-1][0]} bytes of SRAM, {hw.name} has {int(hw.sram.capacity)} an SM"
    )
