"""TensorRT-LLM's prefill before Hopper, fmha_v2: which tiles, and the kernel that comes in slices.

Of one head_dim it is FlashAttention-2's loop in tiles of its own, on sm80 in tiles of slices; of
DeepSeek's K of 192 columns and V of 128 the loop in slices (sliced_loop.py) on all: a CTA has 64
query rows of a head, blocks of a head go one after the other, keys from the first one on.

Source: NVIDIA/TensorRT-LLM, cpp/kernels/fmha_v2/setup.py (enumerate_hmma_flash_kernels_base,
tiled_params_q_kv_step) and which of them runs: cpp/tensorrt_llm/kernels/
contextFusedMultiHeadAttention/fmhaRunner.cpp (granular_tiling).
"""

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import QKVO, Tile, blocks, visible_blocks
from sim.schedules.parts.ends import finish
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import QueryBlocks, log_sum_exp
from sim.schedules.parts.results import Attention, Result
from sim.schedules.parts.sliced_loop import SLICE, SlicedCta
from sim.tile_program import IntArray, Kernel, Load, Loop, Stream

WIDTHS = (192, 128)  # columns of K and V that differ
SLICED_TILE = Tile(q=64, kv=128)


def fmha_v2_cta(w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
    """Of one head_dim."""
    tiled = hw.arch == "sm80" and w.seq_kv > 64
    if tiled or w.head_dim >= 256:
        q, kv = (128, 128) if w.head_dim <= 64 else (64, 128)
    else:
        q, kv = 64, 64 if w.head_dim <= 32 else 32 if w.head_dim <= 128 else 16
    return FlashCta(Tile(q=q, kv=kv), warps=4)


def sliced_attention(w: AttentionWorkload, tensors: QKVO) -> Attention:
    """The kernel in slices on Q, K, V and O; it makes the log-sum-exp."""
    q, k, v, o = tensors
    cta = SlicedCta.of(w, SLICED_TILE, w.value_columns, paged=False)
    tile, lse = cta.tile, log_sum_exp(q)
    grid = QueryBlocks(w, tile)
    rows = grid.tiles(q, o, lse)
    first, end = visible_blocks(w, tile)
    across = blocks(w.head_dim, SLICE)

    def trips(items: IntArray) -> IntArray:
        """How many key blocks the mask shows."""
        shown: IntArray = np.maximum(end - first, 0)[grid.row(items)]
        return shown

    def block(items: IntArray) -> IntArray:
        start: IntArray = grid.first_key_block(items) + first[grid.row(items)]
        return start

    def of_rows(number: int) -> Load:
        stream = Stream(q, tile.q, SLICE, lambda items: grid.tile_of(items) * across + number)
        return Load(stream, stages=int(number == 0))

    def of_keys(number: int) -> Load:
        stream = Stream(
            k, tile.kv, SLICE, lambda items: block(items) * across + number, stride=across
        )
        return Load(stream, stages=int(number == 0))

    def of_values(number: int) -> Load:
        def base(items: IntArray) -> IntArray:
            return block(items) * cta.parts + number

        return Load(Stream(v, cta.keys, w.value_columns, base, stride=cta.parts), 0)

    slices = [(of_rows(number), of_keys(number)) for number in range(across)]
    parts = [(of_values(number),) for number in range(cta.parts)]
    loads = [load for each in (*slices, *parts) for load in each]
    o_elements = tile.q * w.value_columns
    kernel = Kernel(
        name="fmha_v2",
        ctas=rows.ctas,
        loops=(
            Loop(trips, (*loads, *cta.trip(slices, parts, w.head_dim))),
            finish(o_elements, rows.o, rows.lse, sram_bytes=2 * o_elements * w.dtype_bytes),
        ),
        footprint=cta.footprint,
        tensor_path="mma_sync",
        periods=rows.periods,
        sharing=rows.sharing,
    )
    return Attention([kernel], Result(o, lse))
