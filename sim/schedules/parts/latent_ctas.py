"""How a CTA of each public kernel of latent attention's decoding works: tile, warps, buffers, SRAM.

    flashmla     deepseek-ai/FlashMLA, csrc/sm90/decode/dense: traits.h (64 x 64, 256 threads, two
                 buffers, P in SRAM), splitkv_mla.cuh (each warp group has half of V, and one is a
                 block behind the other); in 8 bits, as it was first (vllm-project/FlashMLA,
                 csrc/extension/sm90/dense_fp8): see trtllm
    fa3          Dao-AILab/flash-attention, hopper/: tile_size.h (headdim_v 512: 64 x 64, P in
                 SRAM), flash_fwd_launch_template.h (2 stages), mainloop_fwd_sm90_tma_gmma_ws.hpp
                 (LargeHeadDimV: one warp group has S and the softmax, both have half of V; no
                 overlap within a block), epilogue_fwd.hpp (store_O_direct: partial results leave
                 registers by 8 bytes a thread, 64 ST.E.64 each in sglang-kernel 0.4.4)
    trtllm       NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/kernels/flashMLA/flash_fwd_mla_kernel.h on
                 Hopper: FlashMLA as it was first, with one warp group for S, both for V, no overlap
                 within a block, and a CTA a row to combine; before Hopper `latent_slices`. On
                 Blackwell trtllm-gen: 16 heads a
                 CTA where they are up to 32 or a CTA has few keys, their matmuls turned round; 64
                 of 64 to 96, whose tcgen05 takes as long as of 128 rows; of 128 heads 64 each of a
                 pair of CTAs, which load half the keys each. flashinfer-ai/flashinfer,
                 include/flashinfer/trtllm/fmha/fmhaKernels.cuh (selectMlaGenerationKernel,
                 useSwapsMmaAbMlaGenKernel, computeCtaAndClusterConfig); shared memory and threads:
                 flashInferMetaInfo.h in flashinfer-cubin 0.6.13 (...HQk576HV512...ForGen). Of one
                 CTA 64 keys and two buffers stand for its ring of parts of 128 keys; that V is
                 loaded beside K, and that few CTAs share out V's columns, is not modelled
    flashinfer   flashinfer-ai/flashinfer, include/flashinfer/attention: mla_hopper.cuh on Hopper
                 (64 x 64, 2 stages, S of one warp group), elsewhere mla.cuh (8 warps by mma.sync;
                 DISPATCH_SMEM_CONFIG: keys and stages by an SM's SRAM; QK_SHARD: each 4 warps have
                 half the keys, without it each have all)
    triton       vllm-project/vllm, vllm/v1/attention/ops/triton_decode_attention.py, and sglang,
                 srt/layers/attention/triton_ops/decode_attention.py: _fwd_grouped_kernel_stage1
                 (16 heads, 32 keys, 4 warps, 2 stages). V is loaded beside K, though it is K's
                 first elements. Triton 3.9 compiles that to 255 registers and 89,088 bytes of SRAM,
                 one buffer each of K and V, filled anew when the trip is over and their pages'
                 numbers are there (sm_80, 89, 90). That newer versions take V from K is left out

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
from sim.schedules.parts.instructions import TENSOR_MEMORY_WAITS
from sim.schedules.parts.latent_parts import Combining
from sim.schedules.parts.operands import MMA_DEPTH
from sim.tile_program import Footprint, TensorPath

Implementation = Literal["flashmla", "fa3", "flashinfer", "trtllm", "triton", "sglang"]
WARP_GROUP = 128
COPY_BYTES = 16  # of one cp.async
# Lane operations of addresses for each: 284 LEA, LOP3, SHF, ISETP, IADD3 and PLOP3 in the loop of
# what Triton 3.9 compiles for sm_80, 34 copies a thread.
TRITON_OPS_A_COPY = 8
# In that loop's SASS a thread reads a page's number again before each copy, 16 of K three at a time
# and 16 of V two at a time: it waits so often for L1. Maxima, P and what O is rescaled by go to the
# other warps through SRAM: a write, a barrier and a read each. SGLang's has V from K (tl.trans).
TRITON_NUMBER_WAITS = {"triton": 5 + 8, "sglang": 5}
TRITON_SHARING_LATENCIES = 3 * 3
TURNED_AT_ONCE = 4
EIGHT_BITS = ("flashmla", "trtllm")
# tcgen05 of 64 rows uses half of the tensor core (SemiAnalysis, Dissecting Nvidia Blackwell, 2026:
# recalled, not re-read).
FULL_RATE_ROWS = 128
# csrc/smxx/decode/combine/combine.cu: a warp has a row, and the next part's O on its way.
ALL_COLUMNS, ROW_BY_ROW = Combining(), Combining(rows=1, threads=128)
# hopper/flash_api.cpp (run_mha_fwd_combine: kBlockK), flash_fwd_combine_kernel.h (kStages).
FA3_COMBINING = Combining(cols=128, at_once=4)
# flashinfer's csrc/fmhaReduction.cu: 512 threads of 16 bytes, by fours (UnrollSize).
TRTLLM_GEN_COMBINING = Combining(rows=8, threads=512, at_once=4)
TURNED_HEADS, MOST_TURNED_HEADS, FEW_KEYS = 16, 32, 1024  # of SwapsMmaAb
TURNED_STEP, STEP = 256, 128  # keys of a trip (mStepKv)
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
    which waits for the last. A copy of 16 bytes takes `ops_a_copy` of addresses, for which a trip
    reads its pages' numbers first and waits `number_waits` times more; only then K and V are
    loaded. Partial results have `partial_bytes` an element, and are made one by `combining` CTAs;
    if it `launches_combine`, there is that kernel even where nothing is to be made one.
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
    number_waits: int = 0
    softmax_waits: int = 0  # for results one after the other, beside the last
    p_in_sram: bool = True
    turns_v: bool = False
    statistics_in_sram: int = 0  # for each row
    partial_bytes: int = STATISTICS_BYTES
    stores_sectors: bool = False  # partial results, as they lie in registers
    launches_combine: bool = False
    padded_rows: int = 0  # that a matmul takes the time of, where more than the tile's
    shared_by: int = 1  # CTAs of a cluster, each of which loads its part of the keys for all
    combining: Combining = ALL_COLUMNS

    def sram_bytes(self, w: AttentionWorkload, tile: Tile) -> int:
        """Q, the buffers of the cache (and of V), P and what the warps tell each other of rows."""
        latent_dim = w.latent_dim or 0
        row_bytes = (latent_dim + w.rope_dim) * w.dtype_bytes
        of_its_own = self.loads_v or self.turns_v
        v_bytes = tile.kv * latent_dim * w.dtype_bytes if of_its_own else 0
        p_bytes = tile.q * tile.kv * w.dtype_bytes if self.p_in_sram else 0
        held = row_bytes * (tile.q + self.buffers * tile.kv // self.shared_by)
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
    if implementation == "fa3" and hw.arch != "sm90":
        raise InputError(
            f'schedule mla: implementation = "fa3": {hw.name} is {hw.arch}: its kernel runs on '
            "sm90 (Hopper)"
        )
    if implementation == "trtllm" and hw.arch == "sm100":
        return _trtllm_gen(w, hw)
    if implementation in TRITON_NUMBER_WAITS:
        width = (w.latent_dim or 0) + w.rope_dim
        return LatentCta(
            Tile(q=16, kv=32),
            WARP_GROUP,
            buffers=1,
            q_readers=4,
            loads_v=implementation == "triton",
            sum_steps=blocks(width, MMA_DEPTH),
            ops_a_copy=TRITON_OPS_A_COPY,
            number_waits=TRITON_NUMBER_WAITS[implementation],
            softmax_waits=TRITON_SHARING_LATENCIES,
            combining=ROW_BY_ROW,
        )
    cta = LatentCta(Tile(q=64, kv=64), turns_v=hw.arch == "sm90" and w.dtype_bytes == 1)
    if implementation == "fa3":
        threads, taken = 3 * WARP_GROUP, registers.FLASH3[2]
        cta = replace(cta, threads=threads, registers_per_thread=taken, tensor_path="native")
        return replace(cta, stores_sectors=True, combining=FA3_COMBINING)
    if implementation == "trtllm" or cta.turns_v:
        cta = replace(cta, launches_combine=True, combining=ROW_BY_ROW)
        return replace(cta, tensor_path="native")
    if implementation == "flashinfer":
        return replace(cta, tensor_path="native", p_in_sram=False, partial_bytes=2)
    path: TensorPath = "asynchronous" if hw.matmul_by_warp_group else "mma_sync"
    return replace(cta, chains=2, tensor_path=path, launches_combine=True)


def _trtllm_gen(w: AttentionWorkload, hw: HardwareProfile) -> LatentCta:
    """On Blackwell; half the heads of a pair of CTAs have the full rate."""
    cta = LatentCta(
        Tile(q=64, kv=64),
        3 * WARP_GROUP,
        chains=2,
        registers_per_thread=registers.FLASH3[2],
        tensor_path="asynchronous",
        softmax_waits=TENSOR_MEMORY_WAITS,
        p_in_sram=False,
        partial_bytes=2,
        combining=TRTLLM_GEN_COMBINING,
    )
    if turns_heads(w, hw.sm.count):
        return replace(cta, tile=Tile(q=TURNED_HEADS, kv=64))
    if w.heads % FULL_RATE_ROWS == 0:
        return replace(cta, tile=Tile(q=64, kv=128), shared_by=2)
    return replace(cta, padded_rows=FULL_RATE_ROWS)


def turns_heads(w: AttentionWorkload, sms: int) -> bool:
    """Whether trtllm-gen's keys are the rows of its matmuls, and few heads a CTA the columns."""
    ctas = w.batch * w.seq_q * blocks(w.heads, TURNED_HEADS)
    ranges = min(blocks(w.seq_kv, TURNED_STEP), max(1, sms // ctas))
    few = blocks(w.seq_kv, ranges) <= FEW_KEYS and ctas <= sms
    return w.heads <= MOST_TURNED_HEADS or few


def trtllm_gen_splits(w: AttentionWorkload, tile: Tile, sms: int) -> int:
    """Ranges of a sequence: as many as fill the SMs once, each of two trips at least."""
    step = TURNED_STEP if tile.q == TURNED_HEADS else STEP
    ctas = w.batch * w.seq_q * blocks(w.heads, tile.q)
    return min(blocks(w.seq_kv, 2 * step), max(1, sms // ctas))


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
