"""trtllm-gen's decoding on Blackwell: query heads packed as rows, a cluster of CTAs a sequence.

    for each KV head, sequence, tile of its packed query rows, range of its keys (one CTA):
        load Q_i: row r is query head r % group of token r / group
        the loop of parts/paged_keys.py over the range (the kernel goes through it first to last)
        of up to 16 ranges of at most 32 rows: CTAs of a cluster add up O through each other's SRAM
        else: store O and log-sum-exp; the last CTA of a sequence merges them
    of one range:  the next tile that no CTA has yet, by cluster launch control

The rows of a tile are the fewest of 8, 16, 32, 64 and 128 that hold a sequence's; below 64 the
matmuls are turned round, keys being the rows of tcgen05 (SwapsMmaAb). A CTA has two softmax warp
groups, each with every other block of 128 keys. There are as many ranges as fill the SMs once, of
at least 512 keys.

Source: flashinfer-ai/flashinfer, include/flashinfer/trtllm/fmha/fmhaKernels.cuh
(selectGqGenerationKernel, computeCtaAndClusterConfig), csrc/trtllm_fmha_kernel_launcher.cu; tiles,
steps, threads and shared memory of each kernel: flashInferMetaInfo.h in flashinfer-cubin 0.6.13
(...PagedKvCausalP64...ForGen). Differences: 16 rows stand for 8; where several queries are decoded
the kernel may take a smaller tile (selectTileSizeQForGqaGeneration); merging is a launch of its
own.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks
from sim.schedules.parts import registers
from sim.schedules.parts.dealing import Dealt, dealt_on_demand
from sim.schedules.parts.ends import finish
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flashinfer import PackedAttention
from sim.schedules.parts.instructions import TENSOR_MEMORY_WAITS
from sim.tile_program import IntArray, Kernel, Loop

TILE_ROWS = (16, 32, 64, 128)
KEYS, STEP_KEYS = 128, 256  # a block of keys, and those of both warp groups
LEAST_RANGE_KEYS = 2 * STEP_KEYS
BUFFER_BYTES = 144 * 2**10  # of K and V: four blocks of head_dim 128 in 16 bits
MOST_RANGES_A_CLUSTER, MOST_TURNED_ROWS = 16, 32


def trtllm_gen_cta(w: AttentionWorkload) -> FlashCta:
    """The tile by a sequence's packed rows, and as many buffers as there is room for."""
    rows = w.seq_q * (w.heads // w.kv_heads)
    tile = Tile(q=next((most for most in TILE_ROWS if rows <= most), TILE_ROWS[-1]), kv=STEP_KEYS)
    buffers = BUFFER_BYTES // (STEP_KEYS * w.head_dim * w.dtype_bytes)
    return FlashCta(
        tile,
        warps=8,
        stages=max(1, buffers // 2),
        tensor_path="asynchronous",
        registers_per_thread=registers.FLASH4,
        kv_readers=1,
        own_latencies=TENSOR_MEMORY_WAITS,
        meetings=0,  # each softmax group waits for its own block of S alone
        head_dim_of=lambda head_dim: head_dim,
    )


def trtllm_gen_range(
    w: AttentionWorkload, hw: HardwareProfile, cta: FlashCta, splits: int | None
) -> int:
    """Tokens of a range of keys, of `splits` ranges if given."""
    low, high = w.visible_keys(0, w.seq_q - 1)
    seen = high - low if w.window is None else min(high, w.window + STEP_KEYS - 1)
    tiles = w.batch * w.kv_heads * blocks(w.seq_q * (w.heads // w.kv_heads), cta.tile.q)
    public = min(blocks(seen, LEAST_RANGE_KEYS), max(1, hw.sm.count // tiles))
    return blocks(blocks(high - low, STEP_KEYS), splits or public) * STEP_KEYS


@dataclass(frozen=True, eq=False)
class ClusterAttention(PackedAttention):
    """The same, whose ranges a cluster of CTAs adds up where there are few enough.

    Of unsplit keys a CTA takes one tile after the other, as `dealt`.
    """

    dealt: Dealt | None = None

    @cached_property
    def ranges(self) -> IntArray:
        """Ranges of each sequence, of the keys that are seen."""
        low, high = self.shown
        return -(-(high - low) // self.range_tokens)

    def kernels(self, hw: HardwareProfile) -> list[Kernel]:
        """The kernel over all ranges; of more than a cluster has also the merge."""
        if self.splits == 1 and self.grid.size > hw.sm.count:
            return [self._persistent(hw.sm.count)]
        few = 1 < self.splits <= MOST_RANGES_A_CLUSTER
        if not few or self.cta.tile.q > MOST_TURNED_ROWS:
            return super().kernels(hw)
        kernel = self._attention(self._rows_of(self.o), self._rows_of(self.lse))
        return [replace(kernel, loops=(*kernel.loops[:-1], self._added_up()))]

    def _persistent(self, sms: int) -> Kernel:
        """The kernel of a CTA an SM, each of which takes the next tile that none has yet."""
        every = np.arange(self.grid.size, dtype=np.int64)
        dealt = dealt_on_demand(every, self._tiles(every), sms, self.cta.stages, early=True)
        of_dealt = replace(self, dealt=dealt)
        kernel = of_dealt._attention(of_dealt._rows_of(self.o), of_dealt._rows_of(self.lse))
        return replace(
            kernel,
            ctas=dealt.ctas,
            items_per_cta=dealt.items_per_cta,
            periods=1,
            dealt_tiles=dealt.dealt_tiles,
        )

    def _listed(self, items: IntArray) -> tuple[IntArray, ...]:
        return super()._listed(items if self.dealt is None else self.dealt.tile(items))

    def _has_tile(self, items: IntArray) -> IntArray:
        return super()._has_tile(items) if self.dealt is None else self.dealt.has_tile(items)

    def _added_up(self) -> Loop:
        """The first CTA of a cluster has read the others' O, and stores it."""
        elements = self.cta.tile.q * self.w.head_dim

        def is_first(items: IntArray) -> IntArray:
            return 1 - np.minimum(self._place(items)[2], 1)

        return finish(
            elements * self.splits,
            self._rows_of(self.o),
            self._rows_of(self.lse),
            trips=is_first,
            sram_bytes=2 * elements * self.splits * 4,
        )
