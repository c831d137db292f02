"""How a CTA of a flash kernel works: its tile, warps, buffers of K and V, and matmuls."""

from dataclasses import dataclass, replace

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import SramBytes, Tile
from sim.schedules.parts import registers
from sim.schedules.parts.kv_cache import row_bytes
from sim.schedules.parts.rope import Angles
from sim.tile_program import Footprint, TensorPath


@dataclass(frozen=True)
class FlashCta:
    """How a CTA of a flash kernel works."""

    tile: Tile
    warps: int
    stages: int = 1  # buffers of K and of V
    tensor_path: TensorPath = "mma_sync"
    registers_per_thread: int = registers.FLASH_CUDA
    kv_readers: int = 4  # of each key block in SRAM: the warps, or the warp groups with wgmma
    around: tuple[int, int] = (0, 0)  # warp instructions before the first matmul, after the last
    angles: Angles | None = None  # by which Q and K are rotated in the kernel

    def sram_bytes(self, w: AttentionWorkload) -> int:
        """Q's tile and the buffers of K and V."""
        return flash_sram_bytes(w, self.stages)(self.tile)

    def footprint(self, w: AttentionWorkload) -> Footprint:
        """What a CTA takes of its SM."""
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
        registers_per_thread=registers.triton_flash(tile, w.head_dim, warps),
        kv_readers=max(1, warps // 4) if by_group else min(warps, tile.q // 16),
    )
    fewer = (replace(whole, stages=count) for count in range(stages, 1, -1))
    fitting = (cta for cta in fewer if cta.sram_bytes(w) <= hw.sram.max_per_cta)
    return next(fitting, replace(whole, stages=1))
