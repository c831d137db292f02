"""Decoding one token with the KV cache split among CTAs, FlashAttention-2's split-KV kernels.

    for each KV head of each sequence, for each of `splits` ranges of its key blocks (one CTA):
        load the query rows of all heads that share the KV head
        O_s, log-sum-exp_s = the FlashAttention-2 loop over the range
    for each few rows of O (one CTA of the combine kernel):
        O = sum over s of exp(lse_s - lse) O_s

Source: Dao-AILab/flash-attention, csrc/flash_attn: tiles 64 x 256, 128 or 64 by head_dim
(flash_fwd_launch_template.h, run_mha_fwd_splitkv_dispatch), the number of splits
(flash_api.cpp, num_splits_heuristic, set_params_splitkv), query heads packed as rows of one matrix
(mha_fwd_kvcache, seqlenq_ngroups_swapped), rows a CTA of the combine kernel
(run_flash_splitkv_fwd). Without splits there is no combine kernel.

Plain decoding is that kernel with one split (`decode`; flash_attn_with_kvcache, num_splits = 1): a
CTA a KV head. A CTA a query head, each reading the KV head's cache, is `flash2` with phase =
"decode"; eager attention is `naive`.

A quantised cache, which those kernels do not take, is read as FlashInfer does
(include/flashinfer/attention/prefill.cuh, get_num_warps_q): up to 16 query heads of a KV head are
one warp's rows and the 4 warps share out the keys, so that each is made ready once, in registers.
One of fp8 on a Hopper is XQA's, whose kernel merges its ranges itself (parts/xqa.py).
"""

from typing import ClassVar, Literal

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload, Phase
from sim.schedules.parts.combine_splits import Splits
from sim.schedules.parts.results import Attention
from sim.schedules.parts.split_kv import SplitKv, contiguous_attention
from sim.tile_program import Kernel


class FlashDecoding(SplitKv):
    """Split-KV attention over a cache. `splits`: as the public heuristic unless given.

    `implementation` "sglang" is SGLang's decoding in Triton, of up to 16 query heads a KV head: 32
    keys a trip, up to 8 ranges (srt/layers/attention/triton_ops/decode_attention.py). "fa3" is
    FlashAttention-3's library before Hopper (parts/flash3_sm8x.py).
    """

    name: Literal["flash_decoding"] = "flash_decoding"
    implementation: Literal["cuda", "triton", "sglang", "fa3"] = "cuda"  # type: ignore[assignment]
    splits: Splits | None = None
    phases: ClassVar[tuple[Phase, ...]] = ("prefill", "decode")
    reads_by_xqa = True
    takes = SplitKv.takes | {"append", "lengths"}

    summary = "split-KV decoding: a CTA a range of the cache, then a combine kernel"
    source = "Dao-AILab/flash-attention, csrc/flash_attn (flash_fwd_splitkv_kernel)"

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The split kernel and, of more than one split, the combine kernel."""
        return self.attention(w, hw).kernels

    def attention(self, w: AttentionWorkload, hw: HardwareProfile) -> Attention:
        """The same kernels with their result; raises InputError as `lower` does."""
        return contiguous_attention(self.split(w, hw, self.splits))


class Decode(SplitKv):
    """Plain decoding: the split-KV kernel with one range, a CTA a KV head of a sequence."""

    name: Literal["decode"] = "decode"
    takes = SplitKv.takes | {"lengths"}

    summary = "plain decoding: a CTA a KV head reads its whole cache"
    source = "Dao-AILab/flash-attention, flash_attn_with_kvcache with num_splits = 1"

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The split kernel alone."""
        return contiguous_attention(self.split(w, hw, splits=1)).kernels
