"""TensorRT-LLM's prefill before Hopper, fmha_v2: two kernels, and which of them runs.

    in slices    (sliced_loop.py): on sm80, elsewhere of a head_dim of 256 and of DeepSeek's K of
                 192 columns and V of 128; a CTA has 64 query rows of a head
    whole        a trip has all of a block of K and V in registers before it multiplies, and their
                 place in SRAM fills up again meanwhile: 64 query rows, 32 keys up to head_dim 128;
                 in 8 bits, on sm89 and sm120, 128 of both up to 64, where registers spill

Blocks of a head go one after the other, keys from the first one on.

Source: NVIDIA/TensorRT-LLM, cpp/kernels/fmha_v2/setup.py (enumerate_hmma_flash_kernels_base,
enumerate_qmma_flash_kernels, tiled_params_q_kv_step),
src/fused_multihead_flash_attention_kernel_noloop.h and _noloop_tiled.h; which of them runs:
cpp/tensorrt_llm/kernels/contextFusedMultiHeadAttention/fmhaRunner.cpp (granular_tiling).
"""

from dataclasses import replace

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.machine import ctas_per_sm
from sim.schedules.base import QKVO, Tile, blocks
from sim.schedules.parts import registers
from sim.schedules.parts.ends import finish
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import QueryBlocks, log_sum_exp
from sim.schedules.parts.instructions import FMHA_V2, FMHA_V2_FP8
from sim.schedules.parts.results import Attention, Result
from sim.schedules.parts.scores import changes
from sim.schedules.parts.sliced_loop import SLICE, SlicedCta
from sim.schedules.parts.spilled import Spilled
from sim.tile_program import IntArray, Kernel, Load, Loop, Stream

WIDTHS = (192, 128)  # columns of K and V that differ
SLICED_TILE = Tile(q=64, kv=128)
TILED_FROM = 64  # keys, on sm80
# Of the kernel that is whole, beyond the rule, and its registers: machine code of 64 x 32 (nvcc
# 13.0, sm_89) at head_dim 64 and 128.
FIXED = {64: 65, 128: 117}
# In 8 bits, without what a trip jumps over, as TensorRT-LLM compiles it (FMHA_ENABLE_SM89_QMMA): V
# is turned (PRMT); the first with 377 accesses to spilled registers. Of each thread 196 words are
# written and 221 read, 150 of these from L2: the loop's accesses, of the eight warps of two CTAs in
# turn, played through an LRU of the 64 KiB that Ada's L1 has beside 64 of shared memory.
FIXED_FP8 = {64: 661, 128: 114}
SPILLED_WORDS = (196 + 150) / 2
FP8_ARCHS, MOST_FP8_COLUMNS = ("sm89", "sm120"), 128


def comes_in_slices(w: AttentionWorkload, hw: HardwareProfile) -> bool:
    """Whether the kernel does; of few columns a tile of slices is one slice, with Q in SRAM."""
    if w.dtype == "fp8":
        return False
    tiled = hw.arch == "sm80" and w.seq_kv > TILED_FROM
    return w.value_dim is not None or w.head_dim >= 256 or (tiled and w.head_dim > SLICE)


def fmha_v2_cta(w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
    """The kernel that does not."""
    if w.dtype == "fp8":
        return _fp8_cta(w, hw)
    if hw.arch == "sm80" and w.seq_kv > TILED_FROM:
        return FlashCta(Tile(q=128, kv=128), warps=4, a_score=FMHA_V2)
    kv = 64 if w.head_dim <= 32 else 32 if w.head_dim <= 128 else 16
    of_few = w.head_dim <= SLICE
    narrow = registers.FMHA_V2_WINDOW if w.mask == "window" else registers.FMHA_V2_NARROW
    return FlashCta(
        Tile(q=64, kv=kv),
        warps=4,
        registers_per_thread=narrow if of_few else registers.FLASH_CUDA,
        fixed_instructions=FIXED[64 if of_few else 128],
        a_score=FMHA_V2,
        operands_first=True,
    )


def _fp8_cta(w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
    """The kernel of QMMA; raises InputError where there is none, or none that was counted."""
    where = 'schedule flash2: implementation = "trtllm": workload.dtype = "fp8": '
    if hw.arch not in FP8_ARCHS:
        raise InputError(f"{where}it has kernels for {' and '.join(FP8_ARCHS)}, not {hw.arch}")
    if w.head_dim > MOST_FP8_COLUMNS or w.value_dim is not None:
        raise InputError(f"{where}K and V of up to {MOST_FP8_COLUMNS} columns were expected")
    of_few = w.head_dim <= SLICE
    cta = FlashCta(
        Tile(q=128, kv=128) if of_few else Tile(q=64, kv=32),
        warps=4,
        fixed_instructions=FIXED_FP8[64 if of_few else 128],
        a_score=FMHA_V2_FP8,
        operands_first=True,
    )
    if not of_few:
        return cta
    footprint = cta.footprint(w)
    resident = hw.sm.count * ctas_per_sm(footprint, hw)
    return replace(cta, spilled=Spilled(SPILLED_WORDS, footprint.threads, resident))


def sliced_attention(w: AttentionWorkload, tensors: QKVO) -> Attention:
    """The kernel in slices on Q, K, V and O; it makes the log-sum-exp."""
    q, k, v, o = tensors
    cta = SlicedCta.of(w, SLICED_TILE, w.value_columns, paged=False)
    cta = replace(cta, a_score=cta.a_score + changes(w, by_column=True))
    tile, lse = cta.tile, log_sum_exp(q)
    grid = QueryBlocks(w, tile)
    rows = grid.tiles(q, o, lse)
    across = blocks(w.head_dim, SLICE)

    def of_rows(number: int) -> Load:
        stream = Stream(q, tile.q, SLICE, lambda items: grid.tile_of(items) * across + number)
        return Load(stream, stages=int(number == 0))

    def of_keys(number: int) -> Load:
        def base(items: IntArray) -> IntArray:
            return grid.first_shown(items) * across + number

        return Load(Stream(k, tile.kv, SLICE, base, stride=across), stages=int(number == 0))

    def of_values(number: int) -> Load:
        def base(items: IntArray) -> IntArray:
            return grid.first_shown(items) * cta.parts + number

        return Load(Stream(v, cta.keys, w.value_columns, base, stride=cta.parts), 0)

    slices = [(of_rows(number), of_keys(number)) for number in range(across)]
    parts = [(of_values(number),) for number in range(cta.parts)]
    loads = [load for each in (*slices, *parts) for load in each]
    o_elements = tile.q * w.value_columns
    kernel = Kernel(
        name="fmha_v2",
        ctas=rows.ctas,
        loops=(
            Loop(grid.trips, (*loads, *cta.trip(slices, parts, w.head_dim))),
            finish(
                o_elements,
                rows.o,
                rows.lse,
                trips=rows.has_rows,
                sram_bytes=2 * o_elements * w.dtype_bytes,
            ),
        ),
        footprint=cta.footprint,
        tensor_path="mma_sync",
        periods=rows.periods if w.lengths is None else 1,
        sharing=rows.sharing if w.lengths is None else 1,
        irregular=w.lengths is not None,
    )
    return Attention([kernel], Result(o, lse))
