"""Kernels that serving frameworks bring themselves: which tile of which schedule they are.

TensorRT-LLM's fmha_v2      on Ampere and Ada FlashAttention-2's loop in tiles of its own, on
                            Hopper of `flash3` the implementation "trtllm". cpp/kernels/fmha_v2/
                            setup.py (enumerate_hmma_flash_kernels_base, tiled_params_q_kv_step)
                            and which of them runs:
                            contextFusedMultiHeadAttention/fmhaRunner.cpp (granular_tiling)
FlashAttention-3 before     hopper/tile_size.h (tile_size_fwd_sm8x); ranges of keys: flash_api.cpp
Hopper                      (get_num_splits), heuristics.h and flash_prepare_scheduler.cu there
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import blocks
from sim.schedules.parts.combine import fewest_filling
from sim.schedules.parts.split_kv import MOST_SPLITS

ROWS_OF_FLASH3, LEAST_SPLIT_BLOCKS, MOST_SPLIT_BATCH = 128, 4, 992


def fmha_v2(w: AttentionWorkload, hw: HardwareProfile) -> Mapping[str, Any]:
    """TensorRT-LLM's prefill before Blackwell."""
    if hw.arch == "sm90":
        return {"name": "flash3", "implementation": "trtllm"}
    tiled = hw.arch == "sm80" and w.seq_kv > 64
    if tiled or w.head_dim >= 256:
        q, kv = (128, 128) if w.head_dim <= 64 else (64, 128)
    else:
        q, kv = 64, 64 if w.head_dim <= 32 else 32 if w.head_dim <= 128 else 16
    return {"name": "flash2", "tile": {"q": q, "kv": kv}, "warps": 4}


def flash3_before_hopper(w: AttentionWorkload, hw: HardwareProfile) -> Mapping[str, Any]:
    """FlashAttention-3's kernels for Ampere and Ada (SGLang), in 16 bits."""
    return {"name": "flash2"} | _sm8x(w, hw, split=False)


def flash3_decode_before_hopper(w: AttentionWorkload, hw: HardwareProfile) -> Mapping[str, Any]:
    """The same of one query a sequence: heads packed in its tile, ranges cut when it runs.

    A range gets so many blocks that all SMs have one, and a tenth more; the host says how many
    there are at most, as if there were one sequence.
    """
    split = _sm8x(w, hw, split=True)
    low, high = w.visible_keys(0, 0)
    key_blocks = blocks(high - low, split["tile"]["kv"])
    tiles = w.kv_heads * blocks(w.heads // w.kv_heads, ROWS_OF_FLASH3)
    most = 1
    if tiles < 0.8 * hw.sm.count and key_blocks > LEAST_SPLIT_BLOCKS:
        counts = range(1, min(MOST_SPLITS, hw.sm.count, key_blocks) + 1)
        most = fewest_filling(counts, tiles, hw.sm.count)
    options = {"name": "flash_decoding", "pack_gqa": True}
    if most == 1 or w.batch > MOST_SPLIT_BATCH:
        return options | _sm8x(w, hw, split=False) | {"splits": 1}
    an_sm = ceil(1.1 * w.batch * tiles * key_blocks / hw.sm.count)
    return options | split | {"splits": min(blocks(key_blocks, an_sm), most)}


def _sm8x(w: AttentionWorkload, hw: HardwareProfile, *, split: bool) -> dict[str, Any]:
    """Tile and warps, by whether keys may be split among CTAs."""
    small, local = hw.arch in ("sm86", "sm89"), w.mask == "window"
    if w.head_dim <= 64:
        kv, warps = 80 if split else 96 if local else 112, 4
    elif w.head_dim <= 96:
        kv, warps = 48 if split or local else 64, 4
    elif w.head_dim <= 128 and not small and not split:
        kv, warps = 48 if local else 64, 4
    elif w.head_dim <= 128:
        kv, warps = 96 if local else 112 if split else 128, 8
    elif w.head_dim <= 192:
        kv, warps = 64, 8
    else:
        kv, warps = ((48 if split or local else 64) if small else (64 if split or local else 96)), 8
    return {"tile": {"q": ROWS_OF_FLASH3, "kv": kv}, "warps": warps}
