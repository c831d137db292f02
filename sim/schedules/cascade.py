"""Cascade attention, as FlashInfer has it: a prefix that all sequences share is read once for all.

    P = keys of the prefix; each sequence has keys of its own behind it

    O, log-sum-exp   = attention of each sequence's queries over its own keys
    O', log-sum-exp' = attention of all sequences' queries, as those of one, over the prefix
    for each query (one CTA), for each KV head, all on their way at once:
        load O, O' and their log-sum-exps of the query heads
        O = (exp(lse) O + exp(lse') O') / (exp(lse) + exp(lse'));  store O, log-sum-exp in place

Both levels are the kernels of parts/flashinfer.py over pages, each with a plan of its own: a tile
of up to 128 rows and short ranges for the prefix, of as few rows as there are for a sequence's own
keys. No query is masked in the prefix. Partial results are in the dtype of O.

Source: flashinfer-ai/flashinfer, flashinfer/cascade.py (MultiLevelCascadeAttentionWrapper: levels,
their order, which is causal), include/flashinfer/attention/cascade.cuh (MergeStateInPlaceKernel,
its CTA); Ye et al. 2024, "Cascade Inference". Difference: each level has a copy of Q here, which
the second level of the kernels finds in L2.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Schedule
from sim.schedules.parts import registers
from sim.schedules.parts.flashinfer import (
    PackedAttention,
    check_flashinfer,
    flashinfer_cta,
    range_tokens,
)
from sim.schedules.parts.kv_cache import PageSize
from sim.schedules.parts.scores import changes
from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    Store,
    Stream,
    Tensor,
)

MOST_THREADS = 1024  # of a CTA (CUDA C++ Programming Guide, "Compute Capabilities")


class Cascade(Schedule):
    """Attention over a shared prefix and over what follows it, merged; `page_size` as `paged`."""

    name: Literal["cascade"] = "cascade"
    page_size: PageSize = 16

    summary = "a prefix that sequences share is read once for all of them"
    source = "flashinfer-ai/flashinfer, flashinfer/cascade.py, attention/cascade.cuh"
    masks = ("full", "causal")
    takes = frozenset(
        {"kv_dtype", "append", "lengths", "query lengths", "shared prefix", "softcap"}
    )

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        check_flashinfer("schedule cascade", w)
        if not w.shared_prefix:
            raise InputError(
                "schedule cascade: workload.shared_prefix = 0: the tokens that all sequences have "
                "in common were expected; of none, paged is the same"
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Own keys, the prefix, each with a merge kernel if split; then both made one."""
        own = self._level(_behind_prefix(w), hw)
        prefix = self._level(_of_prefix(w), hw, "prefix")
        attention, *merge = own.kernels(hw)
        attention = replace(attention, name="own keys")
        return [attention, *merge, *prefix.kernels(hw), merge_in_place(own, prefix)]

    def _level(self, w: AttentionWorkload, hw: HardwareProfile, part: str = "") -> PackedAttention:
        public = flashinfer_cta(w, hw)
        cta = replace(public, a_score=public.a_score + changes(w, by_column=False))
        tokens = range_tokens(w, hw, cta.tile.q, self.page_size, splits=None)
        return PackedAttention(w, cta, self.page_size, tokens, part)


def _of_prefix(w: AttentionWorkload) -> AttentionWorkload:
    """The queries of all sequences as those of one, which has the prefix's keys."""
    return replace(
        w,
        batch=1,
        seq_q=sum(w.queries),
        seq_kv=w.shared_prefix,
        causal=False,
        shared_prefix=0,
        lengths=None,
    )


def _behind_prefix(w: AttentionWorkload) -> AttentionWorkload:
    """The sequences without the prefix's keys."""
    lengths = w.lengths and tuple((q, kv - w.shared_prefix) for q, kv in w.lengths)
    return replace(w, seq_kv=w.seq_kv - w.shared_prefix, shared_prefix=0, lengths=lengths)


def merge_in_place(own: PackedAttention, prefix: PackedAttention) -> Kernel:
    """A CTA a query, of which those of a KV head are a trip: what both levels found made one."""
    w, group = own.w, own.group
    queries = np.array(w.queries, np.int64)
    sequence = np.repeat(np.arange(w.batch), queries)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(queries) - queries, queries)
    in_sequence = sequence * w.kv_heads * w.seq_q + number  # of its first KV head

    def of_own(tensor: Tensor) -> Stream:
        return Stream(tensor, group, tensor.cols, lambda items: in_sequence[items], w.seq_q)

    def of_prefix(tensor: Tensor) -> Stream:
        return Stream(tensor, group, tensor.cols, lambda items: items, len(sequence))

    def heads(items: IntArray) -> IntArray:
        return np.full_like(items, w.kv_heads)

    results = (of_own(own.o), of_own(own.lse))
    parts = (*results, of_prefix(prefix.o), of_prefix(prefix.lse))
    loads = tuple(Load(part, w.kv_heads) for part in parts)
    elements = group * w.head_dim
    lanes = w.head_dim // max(16 // w.dtype_bytes, w.head_dim // 32)  # of a query head
    merge = Compute("O + O'", loads, vector_ops=2 * elements, exp_count=2 * group * lanes)
    threads = min(MOST_THREADS, lanes * w.heads)
    return Kernel(
        name="merge levels",
        ctas=len(sequence),
        loops=(Loop(heads, (*loads, merge, *map(Store, results))),),
        footprint=Footprint(0, threads=threads, registers_per_thread=registers.COMBINE),
        periods=1 if w.lengths else len(sequence),
        irregular=w.lengths is not None,
    )
