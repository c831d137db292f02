"""How kernels of latent attention share out the blocks of keys among CTAs: who works on what.

A *piece* is (sequence, its first block of keys there, how many); a part, which is a CTA for each
block of heads, has one or more of them. FlashMLA's own rule is in `mla`.

What decides so is a kernel of one CTA: FlashMLA's (get_decoding_sched_meta.cu, which TensorRT-LLM
runs with every call: kernels/flashMLA/flash_fwd_mla_metadata.cu) has one thread go through all
parts and sequences; FlashAttention-3's (hopper/flash_prepare_scheduler.cu) has a thread a sequence.
That a turn of the former is two dependent instructions long, a load from SRAM and what comes of it,
is an estimate. FlashInfer plans on the host.
"""

import heapq
from collections.abc import Sequence
from math import log2

from sim.inputs.hardware import HardwareProfile
from sim.schedules.base import Tile, blocks, of_constant
from sim.schedules.parts import registers
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.flash3_cta import planned_splits, splits_to_fill
from sim.tile_program import Compute, Footprint, Kernel, Load, Loop, Store, Tensor, once

Piece = tuple[int, int, int]
MOST_TRITON_SPLITS = 8
TOKENS_A_STEP = 64
LENGTH_BYTES = 4
PLANNED = 8  # numbers of a part (TileSchedulerMetaDataSize)
WARP = 32


def even_pieces(key_blocks: Sequence[int], splits: Sequence[int]) -> list[list[Piece]]:
    """Each sequence cut in so many ranges of equally many blocks, sequence by sequence.

    A part each; there are fewer where ranges of that size need fewer.
    """
    pieces = []
    for sequence, (own, number) in enumerate(zip(key_blocks, splits, strict=True)):
        size = blocks(own, number)
        pieces += [[(sequence, first, min(size, own - first))] for first in range(0, own, size)]
    return pieces


def triton_splits(
    keys: Sequence[int], head_blocks: int, hw: HardwareProfile, most: int = MOST_TRITON_SPLITS
) -> list[int]:
    """Ranges of each sequence in SGLang, at most so many.

    Source: sgl-project/sglang, srt/layers/attention/triton_backend.py, get_num_kv_splits_triton,
    of keys and values with triton_attention_num_kv_splits = 8; as many as SMs can hold, and more
    the longer they are, or as many as the longest has of ranges as long as the shortest, if that is
    much shorter.
    """
    longest, shortest = max(keys), min(keys)
    if 8 * longest < 10 * shortest:
        shortest = longest
    slots = int(hw.sm.count * max(1.0, log2(longest / TOKENS_A_STEP)))
    of_lengths = min(blocks(longest, shortest), most)
    of_slots = min(blocks(slots, len(keys) * head_blocks), most)
    sizes = [blocks(longest, count) for count in (of_lengths, of_slots)]
    return [max(blocks(own, size) for size in sizes) for own in keys]


def fa3_splits(key_blocks: Sequence[int], head_blocks: int, hw: HardwareProfile) -> tuple[int, ...]:
    """Ranges of each sequence in FlashAttention-3, called with lengths of their own.

    Source: Dao-AILab/flash-attention, hopper/: heuristics.h (num_splits_heuristic, here for the
    longest sequence alone) says how many at most, flash_prepare_scheduler.cu how many.
    """
    most = splits_to_fill(head_blocks, max(key_blocks), hw.sm.count)
    rows = [head_blocks] * len(key_blocks)
    return planned_splits(key_blocks, rows, 1, most, hw.sm.count)


def flashinfer_pieces(
    keys: Sequence[int], head_blocks: int, tile: Tile, sms: int
) -> list[list[Piece]]:
    """FlashInfer's plan: ranges of at most so many keys, each to the cluster that has least to do.

    Source: flashinfer-ai/flashinfer, include/flashinfer/attention/scheduler.cuh, MLAPlan and
    cost_function. A cluster has a CTA for each block of heads, as there for up to 128 heads. Where
    several have equally much to do it is the first's; heap.h leaves that to std::pop_heap.
    """
    clusters = max(1, sms // head_blocks)
    limit = _flashinfer_limit(blocks(sum(keys), clusters))
    size = max(1, limit // tile.kv)
    free = [(0, number) for number in range(clusters)]
    pieces: list[list[Piece]] = [[] for _ in range(clusters)]
    for sequence, own in enumerate(keys):
        key_blocks = blocks(own, tile.kv)
        for first in range(0, key_blocks, size):
            count = min(size, key_blocks - first)
            cost, number = heapq.heappop(free)
            rows = tile.q * head_blocks
            heapq.heappush(free, (cost + 2 * rows + count * tile.kv, number))
            pieces[number].append((sequence, first, count))
    return [part for part in pieces if part]


def _flashinfer_limit(keys: int) -> int:
    for most, limit in ((8, 32), (16, 64), (32, 128), (64, 192)):
        if keys <= most:
            return limit
    return blocks(keys, 256) * 256


def plan_kernel(sequences: int, parts: int, turns: int) -> Kernel:
    """One CTA reads all lengths, decides in so many turns, writes each part's piece."""
    lengths = Tensor("lengths", 1, 1, sequences, LENGTH_BYTES, "input")
    plan = Tensor("plan", 1, parts, PLANNED, LENGTH_BYTES)
    load = Load(in_order(lengths, 1))
    decide = (
        Compute("look at a sequence", vector_ops=WARP),
        Compute("place it", vector_ops=WARP),
    )
    return Kernel(
        name="plan",
        ctas=1,
        loops=(
            Loop(once, (load, Compute("add up", (load,), vector_ops=sequences))),
            Loop(of_constant(turns), decide),
            Loop(once, (Store(in_order(plan, parts)),)),
        ),
        footprint=Footprint(2 * LENGTH_BYTES * sequences, WARP, registers.UPDATE),
    )
