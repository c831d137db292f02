"""What people run today, measured beside our kernels: PyTorch's eager and fused attention."""

from collections.abc import Callable
from math import inf, sqrt

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sim.inputs.workload import AttentionWorkload
from validate.kernels.launch import DTYPES
from validate.measurement import Runner

BACKENDS = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def torch_attention(
    runner: Runner, w: AttentionWorkload, device: str, seed: int = 0
) -> Callable[[], torch.Tensor]:
    """PyTorch's attention on random inputs; returns O (batch, heads, seq_q, head_dim).

    Raises RuntimeError where the backend does not take the workload.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def random(heads: int, rows: int) -> torch.Tensor:
        shape = (w.batch, heads, rows, w.head_dim)
        return torch.randn(shape, device=device, dtype=DTYPES[w.dtype], generator=generator)

    q, k, v = random(w.heads, w.seq_q), random(w.kv_heads, w.seq_kv), random(w.kv_heads, w.seq_kv)
    causal = w.causal and w.seq_q > 1
    if runner == "torch_eager":
        return _eager(q, k, v, causal)
    grouped = w.heads != w.kv_heads

    def fused() -> torch.Tensor:
        with sdpa_kernel(BACKENDS[runner]):
            return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)

    return fused


def _eager(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
) -> Callable[[], torch.Tensor]:
    """Scores, scale (folded into Q), mask, softmax and output as operations of their own."""
    q = q / sqrt(q.shape[-1])
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    mask = torch.full((q.shape[2], k.shape[2]), -inf, device=q.device, dtype=q.dtype)
    mask = mask.triu(1 + k.shape[2] - q.shape[2])

    def eager() -> torch.Tensor:
        scores = q @ k.transpose(-2, -1)
        if causal:
            scores += mask
        return scores.softmax(dim=-1) @ v

    return eager
