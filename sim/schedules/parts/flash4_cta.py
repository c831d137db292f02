"""What a CTA of the flash kernels for Blackwell takes, by whose kernel it is.

fa4          FlashAttention-4: query heads of a KV head packed as rows, pairs of CTAs that share
             key blocks at head_dim 128 and 192, some exponentials on the FMA units. Dao-AILab/
             flash-attention, flash_attn/cute: flash_fwd_sm100.py (kv_stage, uneven_kv_smem,
             use_2cta_instrs, _TUNING_CONFIG, _FP8_TUNING_CONFIG), softmax.py (apply_exp2_convert),
             interface.py (pack_gqa). Of head_dim 256 it is another kernel, whose CTAs have a tile
             each and are always pairs: sm100_hd256_2cta_fmha_forward.py
trtllm-gen   TensorRT-LLM's, which vLLM, SGLang and FlashInfer launch too: a head's rows by
             themselves, three buffers of keys or values (two beside Q of 192 columns: its
             199,296 bytes of shared memory), fp8 too. Published as machine code:
             flashinfer-cubin 0.6.13, fmhaSm100fKernel_...PersistentContext, its metadata
             (tile 128 x 128, 256 rows a step, 512 threads, bytes of shared memory) and
             flashinfer-ai/flashinfer, include/flashinfer/trtllm/fmha/fmhaKernels.cuh
cutlass      CUTLASS's example 77 as FlashInfer has it: as trtllm-gen in 16 bits, but two buffers of
             keys and two of values, P V after all of P, masks by comparing each score's place, of
             three blocks at least, and O that goes out with its addresses one by one and spills.
             flashinfer-ai/flashinfer, include/flashinfer/attention/blackwell/collective/
             sm100_fmha_fwd_mainloop_tma_warpspecialized.hpp (StageCountQ, StageCountKV,
             softmax_step, correction_epilogue), fmha_fusion.hpp (get_masked_trip_count)
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks
from sim.schedules.parts import registers
from sim.schedules.parts.query_rows import O_ELEMENT_BYTES
from sim.tile_program import Footprint

Implementation = Literal["fa4", "trtllm-gen", "cutlass"]

TILE_ROWS, KEYS = 128, 128
THREADS = 512  # 16 warps: 4 of softmax a tile, 4 that rescale O, others that issue and wait
DEDICATED, DEDICATED_THREADS = 256, 384  # the head_dim that has a kernel of its own
SRAM_BUDGET_BYTES = 224 * 2**10  # fa4's, for Q, O and the ring of K and V
# Of trtllm-gen and CUTLASS, each a block of K or of V.
BUFFERS: dict[Implementation, int] = {"trtllm-gen": 3, "cutlass": 4}
COMPILED_HEAD_DIMS = (64, 128, 192)  # of trtllm-gen and CUTLASS; 192 of trtllm-gen's K
FRAGMENT = 32  # scores of a row (apply_exp2_convert: frg_tile)


class Code(NamedTuple):
    """What an implementation's code does otherwise than others'.

    P V begins when so much of P is there (`p_ahead`). A score of a block of keys that a mask's edge
    cuts takes `mask_ops`, and so many of a tile's blocks are taken to be cut at least; an element
    of O that goes out `out_ops` beside its division. What holds its pipe for two cycles, as
    selections and comparisons do, counts twice.
    """

    p_ahead: float
    mask_ops: float
    least_masked: int = 0
    out_ops: int = 0


# fa4: flash_fwd_sm100.py (split_P_arrive), mask.py (mask_r2p_lambda: bits in a register, as
# trtllm-gen). Machine code of a softmax thread's 128 masked scores: trtllm-gen 128 selections, 16
# comparisons, 16 times eight bits to predicates; cutlass (nvcc 13.0) 256 comparisons, 256
# selections, 128 sums, and of what sends 256 rows of O out 2,100 instructions a warp, 420 spills.
CODE: dict[Implementation, Code] = {
    "fa4": Code(0.75, 3.5),
    "trtllm-gen": Code(0.5, 3.5),
    "cutlass": Code(0, 10, least_masked=3, out_ops=8),
}


class Emulation(NamedTuple):
    """Of each `often` scores the last `ending` are emulated, from fragment `start` of a row on."""

    often: int
    ending: int = 4
    start: int = 1


# By whether CTAs are pairs, the mask is causal, and head_dim.
EMULATED = {
    (True, False, 192): Emulation(16, start=0),
    (False, True, 192): Emulation(32),
    (True, False, 256): Emulation(14, 6, 0),
    (True, True, 256): Emulation(14, 6, 0),
}
EMULATED_FP8 = {(False, True, 128): Emulation(8)}
PACKED_OR_PAIRED, OTHERS, MOST_OTHERS = Emulation(10), Emulation(16), 128


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
    def dedicated(self) -> bool:
        """Whether it is the kernel of head_dim 256: a tile a CTA, in pairs."""
        return self.of_authors and self.w.head_dim == DEDICATED

    @property
    def code(self) -> Code:
        """What its code does otherwise than others'."""
        return CODE[self.implementation]

    @property
    def packed(self) -> int:
        """Query heads that are rows of one matrix: all of a KV head, or one.

        In training one here, as backward takes a head's rows alone.
        """
        packs = self.of_authors and not self.dedicated and self.w.phase != "training"
        return self.w.heads // self.w.kv_heads if packs else 1

    @property
    def head_dim(self) -> int:
        """Of Q and K, filled up with zeros: to a multiple of 16, or to a size that is compiled."""
        return self._filled(self.w.head_dim)

    @property
    def value_dim(self) -> int:
        """Of V and O, filled up as K."""
        return self._filled(self.w.value_columns)

    def _filled(self, cols: int) -> int:
        if self.of_authors:
            return blocks(cols, 16) * 16
        return next(size for size in COMPILED_HEAD_DIMS if cols <= size)

    @property
    def workers(self) -> int:
        """Tiles, and softmax warp groups (fa4: q_stage)."""
        few = self.w.seq_q * self.packed <= TILE_ROWS
        return 1 if self.dedicated or (self.of_authors and few) else 2

    @property
    def tile(self) -> Tile:
        """All query rows of the CTA, and keys."""
        return Tile(q=self.workers * TILE_ROWS, kv=KEYS)

    @property
    def shared_by(self) -> int:
        """CTAs whose matmuls read each other's half of a key block (use_2cta_instrs)."""
        rows = self.w.seq_q * self.packed
        even = blocks(rows, self.tile.q) % 2 == 0
        if self.dedicated:
            return 2 if even else 1
        sides = (self.head_dim, self.value_dim)
        if not self.of_authors or sides not in ((128, 128), (192, 128)) or self.w.mask != "full":
            return 1
        fits = TILE_ROWS % self.packed == 0 and rows > 2 * TILE_ROWS
        return 2 if fits and even else 1

    @property
    def emulation(self) -> Emulation | None:
        """Which exponentials fa4 emulates; none of other kernels."""
        if not self.of_authors:
            return None
        paired, causal = self.shared_by > 1 or self.dedicated, self.w.mask == "causal"
        key = (paired, causal, self.head_dim)
        tuned = EMULATED_FP8.get(key) if self.w.dtype_bytes == 1 else EMULATED.get(key)
        packs = self.packed > 1 and self.head_dim > 64 and self.w.mask == "full"
        usual = PACKED_OR_PAIRED if packs or paired else OTHERS
        return tuned or (usual if self.head_dim <= MOST_OTHERS else None)

    @property
    def emulated(self) -> float:
        """The share of exponentials that are emulated (apply_exp2_convert).

        Pairs at a time, but for a row's first fragments and its last.
        """
        if self.emulation is None:
            return 0.0
        often, ending, start = self.emulation
        pairs = range(0, FRAGMENT, 2)
        emulated = sum(k % often >= often - ending for k in pairs) / len(pairs)
        fragments = KEYS // FRAGMENT
        return emulated * (fragments - 1 - start) / fragments

    @property
    def q_bytes(self) -> int:
        """SRAM of Q's tiles."""
        return self.tile.q * self.head_dim * self.w.dtype_bytes

    @property
    def o_bytes(self) -> int:
        """SRAM of O's tiles of its own: fa4's up to 128; others have them in Q's, or none."""
        if not self.of_authors or self.head_dim > MOST_OTHERS:
            return 0
        return self.tile.q * self.value_dim * O_ELEMENT_BYTES

    @property
    def k_bytes(self) -> int:
        """SRAM of a CTA's part of a block of K."""
        return KEYS * self.head_dim * self.w.dtype_bytes // self.shared_by

    @property
    def v_bytes(self) -> int:
        """SRAM of a CTA's part of a block of V."""
        return KEYS * self.value_dim * self.w.dtype_bytes // self.shared_by

    @property
    def ring(self) -> int:
        """Buffers of K and V together (fa4: kv_stage).

        Of head_dim 192 two of K and one of V have room where two as large as K's have.
        """
        room = self.most_sram_bytes - self.q_bytes - self.o_bytes
        if not self.of_authors:
            return min(BUFFERS[self.implementation], int(room // self.k_bytes))
        if self.dedicated:
            return min(2, int(room // self.k_bytes))  # four of half the columns
        room = min(room, SRAM_BUDGET_BYTES - self.q_bytes - self.o_bytes)
        whole = max(0, int(room // self.k_bytes))
        return 3 if whole == 2 and self._ring_bytes(3) <= room else whole

    def _ring_bytes(self, buffers: int) -> int:
        """Of that many: fa4's, every other of K; others' as large as K's."""
        if not self.of_authors:
            return buffers * self.k_bytes
        return -(-buffers // 2) * self.k_bytes + buffers // 2 * self.v_bytes

    @property
    def footprint(self) -> Footprint:
        """What a CTA takes of its SM; all but the softmax warp groups only issue and wait."""
        held = self.q_bytes + self.o_bytes + self._ring_bytes(self.ring)
        threads = DEDICATED_THREADS if self.dedicated else THREADS
        taken = registers.FLASH3[2] if self.dedicated else registers.FLASH4
        return Footprint(held, threads, taken, threads - 128 * self.workers)
