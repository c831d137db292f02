"""Kernels that serving frameworks bring themselves: which options of which schedule they are.

TensorRT-LLM's decoding     XQA, but for as many KV heads as query heads: decoderXQAImplJIT/
before Blackwell            kernelUtils.cpp (supportConfigCommon); then masked_multihead_attention
                            on CUDA cores, whose nearest here is FlashAttention-2's split-KV kernel
"""

from collections.abc import Mapping
from typing import Any

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload

TRTLLM_PAGE = 64  # tokens (aiconfigurator, collector/trtllm/collect_attn.py)


def trtllm_decode(w: AttentionWorkload, _: HardwareProfile) -> Mapping[str, Any]:
    """TensorRT-LLM's decoding before Blackwell."""
    paged = {"name": "paged", "page_size": TRTLLM_PAGE}
    if w.heads == w.kv_heads:
        return paged | {"call": "kvcache", "pack_gqa": True}
    return paged | {"implementation": "xqa", "pack_gqa": True}
