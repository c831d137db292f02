"""What a CTA of the flash kernels for Blackwell takes, by whose kernel it is.

fa4          FlashAttention-4: query heads of a KV head packed as rows, pairs of CTAs that share
             key blocks at head_dim 128, some exponentials on the FMA units. Dao-AILab/
             flash-attention, flash_attn/cute: flash_fwd_sm100.py (kv_stage, use_2cta_instrs,
             _TUNING_CONFIG), softmax.py (apply_exp2_convert), interface.py (pack_gqa)
trtllm-gen   TensorRT-LLM's, which vLLM, SGLang and FlashInfer launch too: a head's rows by
             themselves, three buffers of keys or values, fp8 too. Published as machine code:
             flashinfer-cubin 0.6.13, fmhaSm100fKernel_...PersistentContext, its metadata
             (tile 128 x 128, 256 rows a step, 512 threads, bytes of shared memory) and
             flashinfer-ai/flashinfer, include/flashinfer/trtllm/fmha/fmhaKernels.cuh
cutlass      CUTLASS's example 77 as FlashInfer has it: as trtllm-gen in 16 bits.
             flashinfer-ai/flashinfer, include/flashinfer/attention/blackwell/collective/
             sm100_fmha_fwd_mainloop_tma_warpspecialized.hpp (StageCountQ, StageCountKV)
"""

from dataclasses import dataclass
from typing import Literal

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks
from sim.schedules.parts import registers
from sim.tile_program import Footprint

Implementation = Literal["fa4", "trtllm-gen", "cutlass"]

TILE_ROWS, KEYS = 128, 128
THREADS = 512  # 16 warps: 4 of softmax a tile, 4 that rescale O, others that issue and wait
SRAM_BUDGET_BYTES = 224 * 2**10  # fa4's, for Q, O and the ring of K and V
BUFFERS = 3  # of trtllm-gen and CUTLASS, each a block of K or of V
COMPILED_HEAD_DIMS = (64, 128)  # of trtllm-gen and CUTLASS
FRAGMENT, EMULATED_AT_END = 32, 4  # apply_exp2_convert: frg_tile, ex2_emu_res


@dataclass(frozen=True)
class Flash4Cta:
    """How a CTA works on a workload, with so much SRAM at most."""

    w: AttentionWorkload
    implementation: Implementation
    most_sram_bytes: float

    @property
    def of_authors(self) -> bool:
        """Whether it is FlashAttention-4's own kernel."""
        return self.implementation == "fa4"

    @property
    def packed(self) -> int:
        """Query heads that are rows of one matrix: all of a KV head, or one."""
        return self.w.heads // self.w.kv_heads if self.of_authors else 1

    @property
    def head_dim(self) -> int:
        """Filled up with zeros: to a multiple of 16, or to a size that is compiled."""
        if self.of_authors:
            return blocks(self.w.head_dim, 16) * 16
        return next(size for size in COMPILED_HEAD_DIMS if self.w.head_dim <= size)

    @property
    def workers(self) -> int:
        """Tiles, and softmax warp groups (fa4: q_stage)."""
        return 1 if self.of_authors and self.w.seq_q * self.packed <= TILE_ROWS else 2

    @property
    def tile(self) -> Tile:
        """All query rows of the CTA, and keys."""
        return Tile(q=self.workers * TILE_ROWS, kv=KEYS)

    @property
    def shared_by(self) -> int:
        """CTAs whose matmuls read each other's half of a key block (use_2cta_instrs)."""
        if not self.of_authors or self.head_dim != 128 or self.w.mask != "full":
            return 1
        rows = self.w.seq_q * self.packed
        fits = TILE_ROWS % self.packed == 0 and rows > 2 * TILE_ROWS
        return 2 if fits and blocks(rows, self.tile.q) % 2 == 0 else 1

    @property
    def emulated(self) -> float:
        """The share of exponentials that fa4 emulates (apply_exp2_convert); others do none.

        Of each `often` scores the last 4, pairs at a time, but for a row's first and last fragment.
        """
        if not self.of_authors:
            return 0.0
        packs = self.packed > 1 and self.head_dim > 64 and self.w.mask == "full"
        often = 10 if packs or self.shared_by > 1 else 16
        pairs = range(0, FRAGMENT, 2)
        emulated = sum(k % often >= often - EMULATED_AT_END for k in pairs) / len(pairs)
        fragments = KEYS // FRAGMENT
        return emulated * (fragments - 2) / fragments

    @property
    def q_bytes(self) -> int:
        """SRAM of Q's tiles."""
        return self.tile.q * self.head_dim * self.w.dtype_bytes

    @property
    def o_bytes(self) -> int:
        """SRAM of O's tiles of its own: fa4's; CUTLASS has them in Q's, trtllm-gen none."""
        return self.q_bytes if self.of_authors else 0

    @property
    def block_bytes(self) -> int:
        """SRAM of a CTA's part of a block of K, or of V."""
        return KEYS * self.head_dim * self.w.dtype_bytes // self.shared_by

    @property
    def ring(self) -> int:
        """Buffers of K and V together (fa4: kv_stage)."""
        room = self.most_sram_bytes - self.q_bytes - self.o_bytes
        if not self.of_authors:
            return min(BUFFERS, int(room // self.block_bytes))
        room = min(room, SRAM_BUDGET_BYTES - self.q_bytes - self.o_bytes)
        return max(0, int(room // self.block_bytes))

    @property
    def footprint(self) -> Footprint:
        """What a CTA takes of its SM; all but the softmax warp groups only issue and wait."""
        sram_bytes = self.q_bytes + self.o_bytes + self.ring * self.block_bytes
        return Footprint(sram_bytes, THREADS, registers.FLASH4, THREADS - 128 * self.workers)
