"""StreamingLLM: attention to the first few tokens (sinks) and the latest window only.

decode: the cache has min(seq_kv, sinks + keep_window) tokens of each KV head, a ring that a new
token enters where the oldest of the window leaves; nothing is copied:

    flash_decoding over those tokens;
        K is cached before its rotary embedding and rotated by its place in the cache each time

prefill: each query sees the sinks and its window: exactly `block_sparse` with both.

Source: Xiao et al. 2023 (arXiv 2309.17453), section 3.2; mit-han-lab/streaming-llm: 4 sinks and
2,000 recent tokens (examples/run_streaming_llama.py, start_size and recent_size), the rotation of
cached keys (pos_shift/modify_llama.py), here fused as rope.py tells. That code copies the cache
when it evicts (kv_cache.py) and runs a prompt densely; the mask of prefill here is the paper's
figure 1 (d).
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count, whole
from sim.inputs.workload import AttentionWorkload
from sim.schedules.block_sparse import BlockSparse
from sim.schedules.parts.combine_splits import Splits
from sim.schedules.parts.rope import angles_of
from sim.schedules.parts.split_kv import SplitKv, contiguous_attention
from sim.tile_program import Kernel


class StreamingLlm(SplitKv):
    """`sinks` first tokens and the latest `keep_window`, the query's own included."""

    name: Literal["streaming_llm"] = "streaming_llm"
    sinks: Annotated[int, Field(ge=0), whole(0)] = 4
    keep_window: Count = 2000
    splits: Splits | None = None
    rope: Literal["fused"] | None = "fused"

    summary = "sinks and the latest window: a cache of fixed size"
    source = "arXiv 2309.17453; mit-han-lab/streaming-llm"
    phases = ("prefill", "decode")
    masks = ("full", "causal")

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload, or no `rope`."""
        super().check(w)
        if self.rope:
            angles_of(w, self.name)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """In prefill one kernel, in decode the split kernel and combine."""
        if w.phase == "decode":
            kept = min(w.seq_kv, self.sinks + self.keep_window)
            keys = self.split(replace(w, seq_kv=kept), hw, self.splits)
            return contiguous_attention(keys).kernels
        masked = BlockSparse(
            sinks=self.sinks,
            keep_window=self.keep_window,
            tile=self.tile,
            implementation=self.implementation,
            warps=self.warps,
            stages=self.stages,
            registers=self.registers,
            rope=self.rope,
        )
        return masked.lower(replace(w, kv_dtype=None), hw)  # K and V are not the cache's yet
