"""Prefill kernels that serving frameworks bring themselves: which tile of which schedule they are.

TensorRT-LLM's fmha_v2      on Ampere and Ada FlashAttention-2's loop in tiles of its own, on
                            Hopper warp groups as FlashAttention-3's. cpp/kernels/fmha_v2/
                            setup.py (enumerate_hmma_flash_kernels_base, tiled_params_q_kv_step;
                            enumerate_hgmma_flash_warpspec_kernels) and which of them runs:
                            contextFusedMultiHeadAttention/fmhaRunner.cpp (granular_tiling)
FlashAttention-3 before     hopper/tile_size.h (tile_size_fwd_sm8x)
Hopper
"""

from collections.abc import Mapping
from typing import Any

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload

WARP_GROUPS_OF_HOPPER = 128  # query rows of two compute groups of 64 (NUM_COMPUTE_GROUPS)


def fmha_v2(w: AttentionWorkload, hw: HardwareProfile) -> Mapping[str, Any]:
    """TensorRT-LLM's prefill before Blackwell."""
    if hw.arch == "sm90":
        keys = 256 if w.head_dim <= 64 else 128 if w.head_dim <= 128 else 64
        return {"name": "flash3", "tile": {"q": WARP_GROUPS_OF_HOPPER, "kv": keys}}
    tiled = hw.arch == "sm80" and w.seq_kv > 64
    if tiled or w.head_dim >= 256:
        q, kv = (128, 128) if w.head_dim <= 64 else (64, 128)
    else:
        q, kv = 64, 64 if w.head_dim <= 32 else 32 if w.head_dim <= 128 else 16
    return {"name": "flash2", "tile": {"q": q, "kv": kv}, "warps": 4}


def flash3_before_hopper(w: AttentionWorkload, hw: HardwareProfile) -> Mapping[str, Any]:
    """FlashAttention-3's kernels for Ampere and Ada (SGLang), in 16 bits."""
    small, local = hw.arch in ("sm86", "sm89"), w.mask == "window"
    if w.head_dim <= 64:
        kv, warps = 96 if local else 112, 4
    elif w.head_dim <= 96:
        kv, warps = 48 if local else 64, 4
    elif w.head_dim <= 128:
        kv, warps = ((96 if local else 128), 8) if small else ((48 if local else 64), 4)
    elif w.head_dim <= 192:
        kv, warps = 64, 8
    else:
        kv, warps = ((48 if local else 64) if small else (64 if local else 96)), 8
    return {"name": "flash2", "tile": {"q": 128, "kv": kv}, "warps": warps}
