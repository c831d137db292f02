"""Tiles and warps of public kernels, by head_dim, mask and device, with where each is published.

A table is read from the top: the first row counts that suits the workload and the device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TypeVar

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload, Mask
from sim.schedules.base import Tile
from sim.schedules.parts.flash2_backward import BackwardCta
from sim.schedules.parts.flash_cta import (
    FlashCta,
    power_of_two,
    sglang_columns,
    triton_buffers,
)
from sim.schedules.parts.flash_schedule import Implementation
from sim.schedules.parts.fmha_v2 import fmha_v2_cta
from sim.schedules.parts.instructions import (
    SGLANG,
    SGLANG_FIXED,
    SHARING_LATENCIES,
    TRITON_FIXED,
    TRITON_SHARING,
)

SM8X = ("sm86", "sm89")  # is_sm8x of flash_fwd_launch_template.h


@dataclass(frozen=True)
class Row:
    """Whom a row of a table is for.

    Head dimensions up to `head_dim`; devices of `archs` (of any, if there are none) whose CTAs can
    have so much SRAM and whose SMs have less than so much; workloads that are causal without a
    window (flash_api.cpp, set_params_fprop), or have dropout, or not (None: either).
    """

    head_dim: float
    archs: tuple[str, ...] = ()
    least_cta_kib: float = 0
    below_sm_kib: float = inf
    causal: bool | None = None
    dropout: bool | None = None

    def suits(self, w: AttentionWorkload, hw: HardwareProfile) -> bool:
        """Whether it is for this workload on this device."""
        return (
            w.head_dim <= self.head_dim
            and (not self.archs or hw.arch in self.archs)
            and hw.sram.max_per_cta >= self.least_cta_kib * 1024
            and hw.sram.capacity < self.below_sm_kib * 1024
            and self.causal in (None, w.mask == "causal")
            and self.dropout in (None, w.dropout)
        )


Cta = TypeVar("Cta", FlashCta, BackwardCta)
Table = Sequence[tuple[Row, Cta]]


def _cta(q: int, kv: int, warps: int, in_window: float = FlashCta.in_window) -> FlashCta:
    return FlashCta(Tile(q=q, kv=kv), warps, in_window=in_window)


def _triton(q: int, kv: int, warps: int, stages: int) -> FlashCta:
    return FlashCta(
        Tile(q=q, kv=kv),
        warps,
        stages,
        tensor_path="native",
        fixed_instructions=TRITON_FIXED,
        sharing_latencies=SHARING_LATENCIES,
        sharing_instructions=TRITON_SHARING,
        head_dim_of=power_of_two,
    )


def _sglang(q: int, kv: int, warps: int) -> FlashCta:
    """As Triton 3.9 compiles it: 72 HMMA a warp for S of 32 rows in 8 warps (head_dim 576), be it
    of 32 or of 64 keys."""
    like = _triton(q, kv, warps, stages=1)
    return replace(
        like,
        fixed_instructions=SGLANG_FIXED,
        a_score=SGLANG,
        shared_keys=16,
        head_dim_of=sglang_columns,
    )


# FlashAttention-2: flash_fwd_launch_template.h, run_mha_fwd_hdim*; the last two by SRAM, as
# run_mha_fwd_hdim256 (max_smem_per_block, max_smem_per_sm). Last, a window: what its loop takes
# longer than the dense one, played through (vLLM 0.24.0's wheel, sm_80; as many CTAs on an SM as
# fit). Where accumulators leave no registers for the comparisons' results it spills, and waits. The
# split-KV kernel of 64 rows has 3.6 instructions more and takes FlashCta's 5 cycles.
FLASH2: Table[FlashCta] = (
    (Row(32), _cta(128, 128, 4, 5.7)),
    (Row(64, dropout=True), _cta(128, 64, 4)),
    (Row(64), _cta(128, 128, 4, 13.8)),
    (Row(96, SM8X, causal=True), _cta(64, 64, 4)),
    (Row(96), _cta(128, 64, 4, 12.5)),
    (Row(128, dropout=True), _cta(128, 32, 4)),
    (Row(128, SM8X, causal=True), _cta(64, 64, 4)),
    (Row(128, SM8X), _cta(128, 32, 4, 3.9)),
    (Row(128), _cta(128, 64, 4, 12.0)),
    (Row(192, dropout=True), _cta(64, 64, 4)),
    (Row(192), _cta(128, 64, 8, 7.5)),
    (Row(inf, least_cta_kib=128, below_sm_kib=192), _cta(128, 64, 8, 4.1)),
    (Row(inf), _cta(64, 64, 4)),
)
# Until release 2.7.3 there were kernels of 160 and 224 too (the same file there,
# run_mha_fwd_hdim160 and run_mha_fwd_hdim224).
FLASH2_UNTIL_2_7_3: Table[FlashCta] = (
    (Row(160, SM8X, causal=True), _cta(64, 64, 4)),
    (Row(160, SM8X), _cta(128, 64, 8)),
    (Row(160), _cta(128, 32, 4)),
    (Row(192), _cta(128, 64, 8, 7.5)),
    (Row(224, least_cta_kib=112), _cta(128, 64, 8)),
    (Row(224), _cta(64, 64, 4)),
)

# Triton: from among those that its tutorial 06-fused-attention.py tries: BLOCK_M 64 or 128, BLOCK_N
# 32 to 128, 2 to 4 stages, 4 or 8 warps; the tutorial picks by timing. 128 keys in two stages of
# head_dim 128 take 160 KiB in 16 bits with Q.
TRITON: Table[FlashCta] = (
    (Row(64), _triton(128, 64, 4, 3)),
    (Row(128, least_cta_kib=160), _triton(128, 128, 8, 2)),
    (Row(128), _triton(128, 64, 8, 2)),
    (Row(inf), _triton(128, 32, 8, 2)),
)

# SGLang's Triton kernel: python/sglang/srt/layers/attention/triton_ops/extend_attention.py,
# _get_block_sizes_for_extend_attention; num_stages = 1.
SMALL_SM = ("sm86", "sm89", "sm120")
SGLANG_EXTEND: Table[FlashCta] = (
    (Row(64, SMALL_SM), _sglang(64, 128, 4)),
    (Row(128, SMALL_SM), _sglang(64, 128, 8)),
    (Row(256, (*SMALL_SM, "sm80")), _sglang(64, 64, 8)),
    (Row(inf, SMALL_SM), _sglang(32, 32, 8)),
    (Row(64, ("sm80",)), _sglang(128, 128, 4)),
    (Row(128, ("sm80",)), _sglang(128, 128, 8)),
    (Row(64, ("sm90", "sm100")), _sglang(128, 64, 4)),
    (Row(256, ("sm90", "sm100")), _sglang(128, 64, 8)),
    (Row(inf, ("sm80", "sm90", "sm100")), _sglang(32, 64, 8)),
    (Row(64), _sglang(64, 64, 4)),
    (Row(128), _sglang(64, 64, 8)),
    (Row(inf), _sglang(32, 32, 8)),
)
FORWARD = {"cuda": FLASH2, "triton": TRITON, "sglang": SGLANG_EXTEND}

# FlexAttention: pytorch/pytorch, torch/_inductor/template_heuristics/triton.py, CUDAConfigHeuristic
# (h100_, sm_100_, sm_120_ and a100_default_flex_config, get_flex_attn_fwd_configs), by architecture
# and bytes of an element, of the head_dims that it names.
FLEX: dict[tuple[str, int], dict[int, FlashCta]] = {
    ("sm90", 2): {
        64: _triton(128, 128, 4, 3),
        128: _triton(128, 64, 8, 3),
        256: _triton(64, 32, 4, 3),
    },
    ("sm80", 2): {
        64: _triton(128, 64, 4, 3),
        128: _triton(128, 64, 8, 3),
        256: _triton(32, 64, 4, 3),
    },
    ("sm120", 2): {
        64: _triton(128, 64, 4, 2),
        128: _triton(128, 64, 8, 2),
        256: _triton(32, 64, 4, 2),
    },
    ("sm90", 4): {
        64: _triton(128, 32, 4, 3),
        128: _triton(32, 64, 4, 3),
        256: _triton(32, 32, 4, 3),
    },
    ("sm80", 4): {
        64: _triton(128, 32, 4, 3),
        128: _triton(128, 32, 4, 3),
        256: _triton(64, 16, 4, 3),
    },
    ("sm120", 4): {
        64: _triton(128, 32, 4, 2),
        128: _triton(128, 32, 4, 2),
        256: _triton(64, 16, 4, 2),
    },
}
FLEX_LIKE = {"sm100": "sm90", "sm86": "sm80", "sm89": "sm80"}  # whose table another has
FLEX_UP_TO_256 = {2: _triton(128, 64, 4, 3), 4: _triton(64, 64, 4, 3)}
FLEX_LARGE = {2: _triton(64, 32, 4, 3), 4: _triton(32, 16, 4, 3)}  # beyond 256

# Split-KV: flash_fwd_launch_template.h, run_mha_fwd_splitkv_dispatch.
SPLIT_KV: Table[FlashCta] = (
    (Row(64), _cta(64, 256, 4)),
    (Row(128), _cta(64, 128, 4)),
    (Row(inf), _cta(64, 64, 4)),
)
# Triton's split-KV, an estimate: smaller tiles, in fewer stages where SRAM is short.
TRITON_SPLIT_KV = _triton(64, 64, 4, 3)
# SGLang's decoding of several heads a KV head: python/sglang/srt/layers/attention/triton_ops/
# decode_attention.py, _decode_grouped_att_m_fwd.
SGLANG_SPLIT_KV = _triton(16, 32, 4, 2)


def _backward(
    q: int, kv: int, down: tuple[int, int, int], v_in_registers: bool = False, q_stages: int = 2
) -> BackwardCta:
    return BackwardCta(Tile(q=q, kv=kv), down, v_in_registers, q_stages)


# FlashAttention-2, backward: flash_bwd_launch_template.h, run_mha_bwd_hdim*.
FLASH2_BACKWARD: Table[BackwardCta] = (
    (Row(32, least_cta_kib=104, dropout=True), _backward(128, 128, (4, 4, 4))),
    (Row(32), _backward(128, 128, (4, 4, 4), v_in_registers=True)),
    (Row(64, least_cta_kib=144), _backward(128, 128, (4, 4, 4))),
    (Row(64), _backward(64, 128, (2, 4, 4), v_in_registers=True)),
    (Row(96, least_cta_kib=116, dropout=True), _backward(64, 128, (2, 4, 4))),
    (Row(96), _backward(64, 128, (2, 4, 4), v_in_registers=True)),
    (Row(128, least_cta_kib=144), _backward(64, 128, (2, 4, 2))),
    (Row(128), _backward(64, 64, (4, 2, 2), v_in_registers=True)),
    (Row(192, least_cta_kib=136), _backward(64, 64, (4, 2, 2))),
    (Row(192), _backward(64, 64, (4, 2, 2), v_in_registers=True, q_stages=1)),
    (Row(256, least_cta_kib=176), _backward(64, 64, (4, 2, 2))),
    (Row(256, least_cta_kib=144), _backward(64, 64, (4, 2, 2), q_stages=1)),
    (Row(256, dropout=False), _backward(64, 32, (4, 1, 2), v_in_registers=True, q_stages=1)),
)

# FlashAttention-3: hopper/tile_size.h, tile_size_fwd_sm90: query rows and keys by head_dim of the
# kernel that runs and bytes an element; without mask, causal, with a window. From pages smaller
# than a key block some are smaller (paged_kv_non_TMA).
FLASH3: dict[tuple[int, int], dict[Mask, tuple[int, int]]] = {
    (64, 2): {"full": (192, 192), "causal": (192, 128), "window": (192, 128)},
    (96, 2): {"full": (192, 144), "causal": (192, 144), "window": (192, 128)},
    (128, 2): {"full": (128, 176), "causal": (128, 128), "window": (128, 128)},
    (192, 2): {"full": (128, 112), "causal": (128, 112), "window": (128, 96)},
    (256, 2): {"full": (128, 80), "causal": (128, 80), "window": (128, 64)},
    (64, 1): {"full": (192, 160), "causal": (192, 160), "window": (192, 160)},
    (96, 1): {"full": (192, 128), "causal": (192, 128), "window": (192, 128)},
    (128, 1): {"full": (128, 224), "causal": (128, 224), "window": (128, 224)},
    (192, 1): {"full": (128, 160), "causal": (128, 160), "window": (128, 160)},
    (256, 1): {"full": (128, 128), "causal": (128, 128), "window": (128, 64)},
}
FLASH3_PAGED: dict[tuple[int, int], dict[Mask, tuple[int, int]]] = FLASH3 | {
    (64, 2): {"full": (192, 128), "causal": (192, 128), "window": (192, 128)},
    (96, 2): {"full": (192, 128), "causal": (192, 128), "window": (192, 128)},
    (128, 2): {"full": (128, 128), "causal": (128, 128), "window": (128, 128)},
    (192, 2): {"full": (128, 96), "causal": (128, 96), "window": (128, 96)},
    (128, 1): {"full": (128, 160), "causal": (128, 160), "window": (128, 160)},
    (192, 1): {"full": (128, 160), "causal": (128, 160), "window": (128, 128)},
}

# Of K of 192 columns and V of 128, in 16 bits; in 8 bits as of 192.
FLASH3_192_128: dict[Mask, tuple[int, int]] = {
    "full": (128, 128),
    "causal": (128, 128),
    "window": (128, 96),
}
FLASH3_192_128_PAGED: dict[Mask, tuple[int, int]] = dict.fromkeys(FLASH3_192_128, (128, 96))
# vLLM's fork, of fp8 summed on two levels (vllm-project/flash-attention, hopper/tile_size.h).
FLASH3_TWO_LEVEL: dict[int, dict[Mask, tuple[int, int]]] = {
    64: dict.fromkeys(("full", "causal", "window"), (192, 128)),
    96: dict.fromkeys(("full", "causal", "window"), (128, 128)),
    128: dict.fromkeys(("full", "causal", "window"), (128, 192)),
    192: dict.fromkeys(("full", "causal", "window"), (128, 96)),
    256: {"full": (128, 128), "causal": (128, 128), "window": (128, 64)},
}
# Of 16 bits at head_dim 64, the forks' where they have their own (vLLM's tile_size.h;
# sglang-kernel 0.4.4's wheel): without a mask from pages alone.
FLASH3_FORKS_64: dict[tuple[str, Mask], tuple[int, int]] = {
    ("vllm", "full"): (192, 160),
    ("vllm", "window"): (192, 160),
    ("sglang", "window"): (192, 192),
}
# TensorRT-LLM's on Hopper: two warp groups of 64 rows each (names of its kernels, such as
# fmha_v2_flash_attention_e4m3_64_256_S_q_paged_kv_128_tma_ws_sm90).
FMHA_V2: dict[tuple[int, int], tuple[int, int]] = {
    (64, 2): (128, 256),
    (96, 2): (128, 128),
    (128, 2): (128, 128),
    (192, 2): (128, 64),
    (256, 2): (128, 64),
    (64, 1): (128, 256),
    (96, 1): (128, 256),
    (128, 1): (128, 256),
    (192, 1): (128, 128),
    (256, 1): (128, 128),
}
FMHA_V2_192_128 = (128, 128)  # setup.py, enumerate_hgmma_flash_warpspec_kernels, head_size_v


def _suiting(table: Table[Cta], w: AttentionWorkload, hw: HardwareProfile) -> Iterator[Cta]:
    return (cta for row, cta in table if row.suits(w, hw))


def public_cta(
    w: AttentionWorkload, hw: HardwareProfile, implementation: Implementation
) -> FlashCta:
    """What the implementation's forward kernel uses unless told otherwise."""
    if implementation == "trtllm":
        return fmha_v2_cta(w, hw)
    cta = next(_suiting(FORWARD[implementation], w, hw))
    return cta if implementation == "cuda" else _buffered(cta, hw)


def cta_until_2_7_3(w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
    """What FlashAttention-2's forward kernel used until that release."""
    if not 128 < w.head_dim <= 224 or w.dropout:
        return public_cta(w, hw, "cuda")
    cta = next(_suiting(FLASH2_UNTIL_2_7_3, w, hw))
    return replace(cta, head_dim_of=lambda head_dim: -(-head_dim // 32) * 32)


def flex_cta(w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
    """What FlexAttention compiles to unless it tunes itself."""
    element = max(2, w.dtype_bytes)
    if w.head_dim > 256:
        return _buffered(FLEX_LARGE[element], hw)
    table = FLEX.get((FLEX_LIKE.get(hw.arch, hw.arch), element), {})
    return _buffered(table.get(w.head_dim, FLEX_UP_TO_256[element]), hw)


def _buffered(cta: FlashCta, hw: HardwareProfile) -> FlashCta:
    """A CTA of Triton's with buffers in place of stages."""
    return replace(cta, stages=triton_buffers(cta.stages, hw.matmul_by_warp_group))


def public_backward_cta(w: AttentionWorkload, hw: HardwareProfile) -> BackwardCta:
    """What FlashAttention-2's backward kernel uses; raises InputError where there is none."""
    cta = next(_suiting(FLASH2_BACKWARD, w, hw), None)
    if cta is None:
        with_dropout = " with dropout" if w.dropout else ""
        raise InputError(
            f"schedule flash2: workload.head_dim = {w.head_dim}: FlashAttention-2 has no backward "
            f"kernel for it{with_dropout} on {hw.name}"
        )
    return cta


def public_split_kv_cta(
    w: AttentionWorkload, hw: HardwareProfile, implementation: Implementation
) -> FlashCta:
    """What the split-KV kernels use: rows for all query heads of a KV head.

    Of a quantised cache up to 16 rows as FlashInfer has them (CTA_TILE_Q).
    """
    if implementation == "sglang":
        return _buffered(SGLANG_SPLIT_KV, hw)
    if implementation == "triton":
        cta = _buffered(TRITON_SPLIT_KV, hw)
        fits = cta.sram_bytes(w) <= hw.sram.max_per_cta
        return cta if fits else _buffered(replace(TRITON_SPLIT_KV, stages=2), hw)
    shared = w.heads // w.kv_heads
    cta = next(_suiting(SPLIT_KV, w, hw))
    rows = 16 if w.kv_dtype and shared <= 16 else max(cta.tile.q, -(-shared // 16) * 16)
    return replace(cta, tile=Tile(q=rows, kv=cta.tile.kv))
