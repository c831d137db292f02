"""Kernels that serving frameworks bring themselves: which options of which schedule they are.

TensorRT-LLM's decoding     XQA, but for as many KV heads as query heads: decoderXQAImplJIT/
before Blackwell            kernelUtils.cpp (supportConfigCommon); then masked_multihead_attention
                            on CUDA cores, whose nearest here is FlashAttention-2's split-KV kernel
FlashAttention-3 before     ranges of keys: hopper/flash_api.cpp (get_num_splits), heuristics.h and
Hopper                      flash_prepare_scheduler.cu
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import blocks
from sim.schedules.parts.combine import fewest_filling
from sim.schedules.parts.flash3_sm8x import ROWS, sm8x_cta
from sim.schedules.parts.split_kv import MOST_SPLITS

LEAST_SPLIT_BLOCKS, MOST_SPLIT_BATCH = 4, 992
TRTLLM_PAGE = 64  # tokens (aiconfigurator, collector/trtllm/collect_attn.py)


def trtllm_decode(w: AttentionWorkload, _: HardwareProfile) -> Mapping[str, Any]:
    """TensorRT-LLM's decoding before Blackwell."""
    paged = {"name": "paged", "page_size": TRTLLM_PAGE}
    if w.heads == w.kv_heads:
        return paged | {"call": "kvcache", "pack_gqa": True}
    return paged | {"implementation": "xqa", "pack_gqa": True}


def flash3_decode_before_hopper(w: AttentionWorkload, hw: HardwareProfile) -> Mapping[str, Any]:
    """FlashAttention-3's kernels for Ampere and Ada (SGLang), decoding: ranges cut when it runs.

    A range gets so many blocks that all SMs have one, and a tenth more; the host says how many
    there are at most, as if there were one sequence.
    """
    split = _sm8x(w, hw, split=True)
    low, high = w.visible_keys(0, 0)
    key_blocks = blocks(high - low, split["tile"]["kv"])
    tiles = w.kv_heads * blocks(w.heads // w.kv_heads, ROWS)
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
    cta = sm8x_cta(w, hw, split=split)
    return {"tile": {"q": cta.tile.q, "kv": cta.tile.kv}, "warps": cta.warps}
