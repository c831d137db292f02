"""Tiles and warps of public kernels, by head_dim, mask and device, with where each is published."""

from dataclasses import dataclass

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile
from sim.schedules.parts.flash_loop import Cta, Implementation


@dataclass(frozen=True)
class PublicCta:
    """What a public kernel uses up to a head_dim."""

    head_dim: int
    cta: Cta


def _ctas(*rows: tuple[int, int, int, int]) -> tuple[PublicCta, ...]:
    return tuple(PublicCta(d, Cta(Tile(q=q, kv=kv), warps)) for d, q, kv, warps in rows)


# flash_fwd_launch_template.h, run_mha_fwd_hdim*, without dropout and with:
# (head_dim, kBlockM, kBlockN, warps). head_dim 160 and 224 run the next larger kernel.
_SM80 = _ctas(
    (32, 128, 128, 4),
    (64, 128, 128, 4),
    (96, 128, 64, 4),
    (128, 128, 64, 4),
    (192, 128, 64, 8),
)
_SM8X = _ctas(
    (32, 128, 128, 4),
    (64, 128, 128, 4),
    (96, 128, 64, 4),
    (128, 128, 32, 4),
    (192, 128, 64, 8),
)
_SM8X_CAUSAL = _ctas(
    (32, 128, 128, 4),
    (64, 128, 128, 4),
    (96, 64, 64, 4),
    (128, 64, 64, 4),
    (192, 128, 64, 8),
)
_DROPOUT = _ctas(
    (32, 128, 128, 4),
    (64, 128, 64, 4),
    (96, 128, 64, 4),
    (128, 128, 32, 4),
    (192, 64, 64, 4),
)
_DROPOUT_SM8X_CAUSAL = _ctas(
    (32, 128, 128, 4),
    (64, 128, 64, 4),
    (96, 64, 64, 4),
    (128, 128, 32, 4),
    (192, 64, 64, 4),
)


def public_cta(w: AttentionWorkload, hw: HardwareProfile, implementation: Implementation) -> Cta:
    """What the implementation uses unless told otherwise.

    Triton's are from among those that its tutorial 06-fused-attention.py tries: BLOCK_M 64 or 128,
    BLOCK_N 32 to 128, 2 to 4 stages, 4 or 8 warps; the tutorial picks by timing.
    """
    if implementation == "triton":
        if w.head_dim <= 64:
            return Cta(Tile(q=128, kv=64), 4, stages=3, tensor_path="native")
        roomy = hw.sram.max_per_cta >= 160 * 1024
        kv = 128 if roomy and w.head_dim <= 128 else 64 if w.head_dim <= 128 else 32
        return Cta(Tile(q=128, kv=kv), 8, stages=2, tensor_path="native")
    sm8x = hw.arch in ("sm86", "sm89")
    table = _SM80
    if w.dropout:
        table = _DROPOUT_SM8X_CAUSAL if sm8x and w.causal else _DROPOUT
    elif sm8x:
        table = _SM8X_CAUSAL if w.causal else _SM8X
    for row in table:
        if w.head_dim <= row.head_dim:
            return row.cta
    # By SRAM, as run_mha_fwd_hdim256.
    roomy = hw.sram.max_per_cta >= 128 * 1024 and hw.sram.capacity < 192 * 1024
    return Cta(Tile(q=128 if roomy else 64, kv=64), 8 if roomy else 4)
