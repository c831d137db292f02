"""How a CTA of a flash kernel works: its tile, warps, buffers of K and V, and matmuls.

A kernel is compiled for a few head_dims. A workload between two of them runs the larger one: its
tiles in SRAM and registers are filled up with zeros and multiplied whole, while what lies beyond
the workload's own head_dim is neither loaded nor stored (flash_fwd_kernel.h, Is_even_K).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sim.inputs.hardware import NATIVE_MATMUL, HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import SramBytes, Tile, blocks
from sim.schedules.parts import registers
from sim.schedules.parts.counted import CountedTrip
from sim.schedules.parts.instructions import (
    FLASH2_FIXED,
    PLAIN,
    SHARING_LATENCIES,
    TRITON_FIXED,
    TRITON_SHARING,
    OpsAScore,
)
from sim.schedules.parts.kv_cache import row_bytes
from sim.schedules.parts.own_kernel import OwnTrip
from sim.schedules.parts.rope import Angles
from sim.schedules.parts.spilled import Spilled
from sim.tile_program import Footprint, TensorPath

TCGEN05_ROWS = 128
# FlashAttention-2's (csrc/flash_attn/src/static_switch.h, HEADDIM_SWITCH); 160 and 224 until 2.7.4.
FLASH2_HEAD_DIMS = (32, 64, 96, 128, 192, 256)


def compiled_head_dim(head_dim: int) -> int:
    """Of FlashAttention-2's kernel that runs; beyond the largest, of a like one of just that."""
    return next((d for d in FLASH2_HEAD_DIMS if head_dim <= d), head_dim)


def power_of_two(head_dim: int) -> int:
    """BLOCK_DMODEL of Triton's kernels: the sides of a block are powers of two (triton.language).

    Source: vllm-project/vllm, vllm/attention/ops/prefix_prefill.py (Lk_padded).
    """
    return max(16, 1 << (head_dim - 1).bit_length())


# Columns of K that SGLang's Triton kernel has in two blocks, the rotated ones in one of their own
# (extend_attention.py, BLOCK_DPE).
SGLANG_LATENTS = (192, 288, 576)


def sglang_columns(cols: int) -> int:
    """Columns of K, or of V, in SGLang's Triton kernels."""
    return cols if cols in SGLANG_LATENTS else power_of_two(cols)


@dataclass(frozen=True)
class FlashCta:
    """How a CTA of a flash kernel works."""

    tile: Tile
    warps: int
    stages: int = 1  # buffers of K and of V; 0: nothing is loaded ahead, V takes K's place
    tensor_path: TensorPath = "mma_sync"
    registers_per_thread: int = registers.FLASH_CUDA
    k_until_softmax: bool = False  # is K held, instead of until S is there
    q_in_registers: bool = False  # throughout, so that a trip reads none of it from SRAM
    operands_first: bool = False  # are K and V read to registers whole before S
    sums_apart: bool = False  # each warp that shares keys, so that P need not go to the others
    kv_readers: int = 4  # of each key block in SRAM: the warps, or the warp groups with wgmma
    fixed_instructions: int = FLASH2_FIXED  # of a warp and trip, beside the softmax's own
    meetings: int = 2  # a trip, of more than four warps: before S, after it, after the softmax
    sharing_latencies: int = 0  # in the softmax of warps that share keys
    own_latencies: int = 0  # there, of results that each warp waits for one after the other
    address_instructions: int = 0  # of a warp, once the numbers of its pages are there
    sharing_instructions: int = 0  # beside those, of a warp that shares keys
    shared_keys: int = 1  # that S is multiplied for, of a warp that shares them: so many or more
    a_score: OpsAScore = PLAIN
    in_window: float = 5  # cycles of a warp a score that is compared with a window's edges
    angles: Angles | None = None  # by which Q and K are rotated in the kernel
    head_dim_of: Callable[[int], int] = compiled_head_dim  # of the kernel that runs, by the own one
    producer_threads: int = 0  # beside the warps, which take room but no share of the work
    own: OwnTrip | None = None  # of machine code, in place of what the rest says
    counted: CountedTrip | None = None  # in place of what the rest says of a trip's computes
    spilled: Spilled | None = None  # of each trip

    @property
    def shares_keys(self) -> bool:
        """Whether there are warps without 16 query rows of their own: those share out the keys.

        Operands of an asynchronous matmul are the tensor core's to read.
        """
        return self.tensor_path != "asynchronous" and 16 * self.warps > self.tile.q

    @property
    def sharers(self) -> int:
        """Warps that share the keys of 16 query rows: each reads those rows of Q, and of P."""
        return blocks(16 * self.warps, self.tile.q) if self.shares_keys else 1

    @property
    def scored_keys(self) -> int:
        """Keys that S is multiplied for."""
        return max(self.tile.kv, self.shared_keys * self.sharers)

    @property
    def softmax_latencies(self) -> int:
        """Results that a warp waits for in the softmax: its own, and others' where they share keys.

        Those it has by way of SRAM, in a write, a barrier and a read each.
        """
        return 1 + self.own_latencies + self.shares_keys * self.sharing_latencies

    @property
    def instructions(self) -> int:
        """Of a warp and trip, beside the softmax's own."""
        return self.fixed_instructions + self.shares_keys * self.sharing_instructions

    def filled(self, w: AttentionWorkload) -> AttentionWorkload:
        """The workload with the kernel's columns, as they fill SRAM and matmuls."""
        value_dim = w.value_dim and self.head_dim_of(w.value_dim)
        return replace(w, head_dim=self.head_dim_of(w.head_dim), value_dim=value_dim)

    def sram_bytes(self, w: AttentionWorkload) -> int:
        """Q's tile and the buffers of K and V."""
        return flash_sram_bytes(self.filled(w), self.stages)(self.tile)

    def footprint(self, w: AttentionWorkload) -> Footprint:
        """What a CTA takes of its SM."""
        if self.own:
            return self.own.footprint
        threads, idle = 32 * self.warps + self.producer_threads, self.producer_threads
        return Footprint(self.sram_bytes(w), threads, self.registers_per_thread, idle)


def flash_sram_bytes(w: AttentionWorkload, stages: int) -> SramBytes:
    """Q's tile and `stages` buffers of K and of V, or one for both, as wide as in the cache."""
    q_row_bytes, k_row_bytes = w.head_dim * w.dtype_bytes, row_bytes(w)
    v_row_bytes = row_bytes(w, w.value_columns)
    kv_row_bytes = stages * (k_row_bytes + v_row_bytes) or max(k_row_bytes, v_row_bytes)
    return lambda tile: q_row_bytes * tile.q + kv_row_bytes * tile.kv


def triton_buffers(stages: int, by_group: bool) -> int:
    """Buffers that Triton gives K and V in a loop of so many stages: one stage has no pipeline.

    A tile is copied into its buffer when that has been read; wgmma reads it for a trip longer than
    mma.sync, so it takes one buffer more. Measured: SRAM of what Triton 3.6 and 3.9 compile for
    sm_80 and sm_90 in 2 to 4 stages.
    """
    return 0 if stages == 1 else stages if by_group else stages - 1


def triton_meetings(hw: HardwareProfile) -> int:
    """Where all warps meet in a trip of Triton's: `meetings` of a CTA with a pipeline.

    With wgmma they begin the softmax together, share the pipes turn by turn and so end it together,
    each with a fence before its second matmul. By mma.sync they meet between trips alone, and
    exponentials stand between the matmuls in a warp's code.
    """
    return 3 if hw.matmul_by_warp_group else 1


def triton_kv_readers(hw: HardwareProfile, rows: int, warps: int) -> int:
    """How often a key block in SRAM is read by a trip of Triton's, of so many query rows.

    By each warp group's wgmma, or once: tcgen05 takes up to 128 rows at a time (PTX ISA,
    tcgen05.mma, shapes), and so does Triton's code for sm_100.
    """
    if NATIVE_MATMUL[hw.arch] == "tcgen05":
        return blocks(rows, TCGEN05_ROWS)
    return max(1, warps // 4)


def triton_cta(
    w: AttentionWorkload, hw: HardwareProfile, tile: Tile, warps: int, stages: int
) -> FlashCta:
    """A CTA of a Triton kernel of that tile, with as many of the stages as fit SRAM.

    wgmma takes 64 query rows a warp group; of fewer, a warp takes 16 by mma.sync, and warps that
    have no rows of their own share keys.
    """
    by_group = hw.matmul_by_warp_group and tile.q >= 64
    whole = FlashCta(
        tile,
        warps,
        tensor_path="native" if by_group else "mma_sync",
        registers_per_thread=registers.triton_flash(tile, power_of_two(w.head_dim), warps),
        meetings=triton_meetings(hw) if by_group else 1,
        kv_readers=triton_kv_readers(hw, tile.q, warps) if by_group else min(warps, tile.q // 16),
        fixed_instructions=TRITON_FIXED,
        sharing_latencies=SHARING_LATENCIES,
        sharing_instructions=TRITON_SHARING,
        head_dim_of=power_of_two,
    )
    fewer = (triton_buffers(count, by_group) for count in range(stages, 0, -1))
    ctas = [replace(whole, stages=count) for count in fewer]
    return next((cta for cta in ctas if cta.sram_bytes(w) <= hw.sram.max_per_cta), ctas[-1])
