"""How a CTA of a flash kernel works: its tile, warps, buffers of K and V, and matmuls.

A kernel is compiled for a few head_dims. A workload between two of them runs the larger one: its
tiles in SRAM and registers are filled up with zeros and multiplied whole, while what lies beyond
the workload's own head_dim is neither loaded nor stored (flash_fwd_kernel.h, Is_even_K).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import SramBytes, Tile
from sim.schedules.parts import registers
from sim.schedules.parts.instructions import FLASH2_FIXED, TRITON_FIXED
from sim.schedules.parts.kv_cache import row_bytes
from sim.schedules.parts.own_kernel import OwnTrip
from sim.schedules.parts.rope import Angles
from sim.tile_program import Footprint, TensorPath

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


@dataclass(frozen=True)
class FlashCta:
    """How a CTA of a flash kernel works."""

    tile: Tile
    warps: int
    stages: int = 1  # buffers of K and of V
    tensor_path: TensorPath = "mma_sync"
    registers_per_thread: int = registers.FLASH_CUDA
    kv_readers: int = 4  # of each key block in SRAM: the warps, or the warp groups with wgmma
    fixed_instructions: int = FLASH2_FIXED  # of a warp and trip, beside the softmax's own
    angles: Angles | None = None  # by which Q and K are rotated in the kernel
    head_dim_of: Callable[[int], int] = compiled_head_dim  # of the kernel that runs, by the own one
    own: OwnTrip | None = None  # of machine code, in place of what the rest says

    def filled(self, w: AttentionWorkload) -> AttentionWorkload:
        """The workload with the kernel's head_dim, as it fills SRAM and matmuls."""
        return replace(w, head_dim=self.head_dim_of(w.head_dim))

    def sram_bytes(self, w: AttentionWorkload) -> int:
        """Q's tile and the buffers of K and V."""
        return flash_sram_bytes(self.filled(w), self.stages)(self.tile)

    def footprint(self, w: AttentionWorkload) -> Footprint:
        """What a CTA takes of its SM."""
        if self.own:
            return self.own.footprint
        return Footprint(self.sram_bytes(w), 32 * self.warps, self.registers_per_thread)


def flash_sram_bytes(w: AttentionWorkload, stages: int) -> SramBytes:
    """Q's tile and `stages` buffers of K and of V, as wide as they are in the cache."""
    q_row_bytes, kv_row_bytes = w.head_dim * w.dtype_bytes, row_bytes(w)
    return lambda tile: q_row_bytes * tile.q + 2 * stages * kv_row_bytes * tile.kv


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
        stages,
        tensor_path="native" if by_group else "mma_sync",
        registers_per_thread=registers.triton_flash(tile, power_of_two(w.head_dim), warps),
        kv_readers=max(1, warps // 4) if by_group else min(warps, tile.q // 16),
        fixed_instructions=TRITON_FIXED,
        head_dim_of=power_of_two,
    )
    fewer = (replace(whole, stages=count) for count in range(stages, 1, -1))
    fitting = (cta for cta in fewer if cta.sram_bytes(w) <= hw.sram.max_per_cta)
    return next(fitting, replace(whole, stages=1))
