"""StreamingLLM: attention to the first few tokens (sinks) and the latest window only.

decode: the cache has min(seq_kv, sinks + keep_window) tokens of each KV head, a ring that a new
token enters where the oldest of the window leaves; nothing is copied:

    flash_decoding over those tokens;
        K is cached before its rotary embedding and rotated by its place in the cache each time

prefill: each query sees the sinks and its window: exactly `block_sparse` with both.

Source: Xiao et al. 2023 (arXiv 2309.17453), section 3.2; mit-han-lab/streaming-llm: 4 sinks and
2,000 recent tokens (examples/run_streaming_llama.py, start_size and recent_size), the rotation of
cached keys by tables of cos and sin (pos_shift/modify_llama.py; a row of both has head_dim
elements). That code copies the cache when it evicts (kv_cache.py); TensorRT-LLM's ring does not.
The repository runs a prompt densely; its Lambda-shaped mask is the paper's figure 1 (d).
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from sim.hardware import HardwareProfile
from sim.schedules.block_sparse import BlockSparse
from sim.schedules.flash_decoding import SplitKv, Splits, contiguous, split_kernels
from sim.tile_program import Kernel, Stream, Tensor
from sim.units import Count
from sim.workload import AttentionWorkload

ROTATION_OPS = 2  # an element: times cos, and one FMA with its pair's times sin


class StreamingLlm(SplitKv):
    """`sinks` first tokens and the latest `keep_window`, the query's own included."""

    name: Literal["streaming_llm"] = "streaming_llm"
    sinks: Annotated[int, Field(ge=0)] = 4
    keep_window: Count = 2000
    splits: Splits | None = None

    summary = "sinks and the latest window: a cache of fixed size"
    source = "arXiv 2309.17453; mit-han-lab/streaming-llm"
    phases = ("prefill", "decode")
    masks = ("full", "causal")

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """In prefill one kernel, in decode the split kernel and combine."""
        if w.phase == "prefill":
            return self._prefill(w, hw)
        kept = min(w.seq_kv, self.sinks + self.keep_window)
        keys = self.split(replace(w, seq_kv=kept), hw, self.splits)
        rows = keys.cta.tile.kv
        k, v = contiguous("K", keys), contiguous("V", keys)
        rotations = Tensor("cos and sin", 1, kept, w.head_dim, w.dtype_bytes, "input")
        by_place = Stream(
            rotations,
            rows,
            w.head_dim,
            base=lambda items: keys.ends(items)[1] - 1,
            stride=-1,
        )
        rotated = replace(
            k,
            streams=(*k.streams, by_place),
            vector_ops=k.vector_ops + ROTATION_OPS * rows * w.head_dim,
        )
        return split_kernels("streaming_llm", keys, keys.loop(keys.trips, rotated, v))

    def _prefill(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """As `block_sparse`: whole key blocks that hold sinks or a key of the window."""
        masked = BlockSparse(
            sinks=self.sinks,
            keep_window=self.keep_window,
            tile=self.tile,
            implementation=self.implementation,
            warps=self.warps,
            stages=self.stages,
        )
        return masked.lower(w, hw)
