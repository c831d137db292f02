"""Quest: decoding over the pages of the cache that may hold the highest scores.

    "estimate"   for each head of each sequence (one CTA):
                     for each block of pages but the last: load their maxima and minima of K
                         score of a page = sum over d of max(q_d max_d, q_d min_d)
    "choose"     the `budget` / `page_size` - 1 pages of highest score, by radix selection
    "attention"  for each head, for each chunk of chosen pages, and one more for the last page
                 (one CTA):  for each page: load K, V;  s = q K^T;  O_c += exp(s - m) V
    "merge"      for each head (one CTA): O = sum over chunks of exp(lse_c - lse) O_c

A cache of no more pages than the budget is read whole, without estimate and choice. Source: Tang et
al. 2024 (arXiv 2406.10774), Algorithm 1; mit-han-lab/Quest: pages of 16 tokens, kernels/include/
decode/decode_attn.cuh (FlashInfer's kernels on CUDA cores: 128 threads, 2 stages; chunks by
PartitionPagedKVCacheBinarySearchMinNumPagePerBatch), quest/utils/controller.py (the budget counts
the last page, which is always read). scripts/ run budgets of 256 to 4,096 tokens; 2,048 at 32k is
that of the paper's 7.03 x (recalled, not re-read). The first two layers are left dense, which is
the model's affair: a simulation is of one layer. Keeping maxima and minima up to date (4 rows a
token and KV head beside K and V) is part of appending, which is not counted for any schedule.

Which pages score high depends on data: here any, drawn by `seed` for each query head. The public
kernels know no groups; here the heads of a group choose and read pages each for itself. A trip is a
page where the kernel takes tiles of two (head_dim 128). Lane operations are estimates.
"""

from typing import Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count, CountOrNone
from sim.inputs.workload import AttentionWorkload
from sim.machine import ctas_per_sm
from sim.schedules.base import (
    STATISTICS_BYTES,
    VECTOR_OPS_PER_SCORE,
    Schedule,
    blocks,
    check_self_attention,
    kv_matrix,
    of_constant,
    qkvo,
)
from sim.schedules.parts import registers
from sim.schedules.parts.combine import combine_kernel
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.ends import begin, finish
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.top_k import INDEX_BYTES, top_k_kernel
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

THREADS, STAGES = 128, 2
LEAST_CHUNK = 128  # tokens
ESTIMATE_OPS = 4  # of an element of a page: two products, the larger, the sum


class Quest(Schedule):
    """Query-aware decoding of one token over `budget` tokens of the cache, in pages."""

    name: Literal["quest"] = "quest"
    budget: Count = 2048
    page_size: Count = 16
    seed: CountOrNone = 0

    summary = "decoding over the pages whose K may score highest, by its minima and maxima"
    source = "arXiv 2406.10774; mit-han-lab/Quest"
    phases = ("decode",)
    masks = ("full", "causal")

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        check_self_attention(self, w)
        if self.budget < 2 * self.page_size:
            raise InputError(
                f"schedule quest: budget = {self.budget}: at least two pages of page_size = "
                f"{self.page_size} tokens, the last and a chosen one, were expected"
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Estimate and choice where there is one, attention, and merge of its chunks."""
        others = blocks(w.seq_kv, self.page_size) - 1  # all but the last
        chosen = min(others, self.budget // self.page_size - 1)
        heads = w.batch * w.heads
        q, k, v, o = qkvo(w)
        selection: list[Kernel] = []
        if chosen < others:
            scores = Tensor("page scores", heads, 1, others, w.dtype_bytes)
            found = Tensor("pages chosen", heads, 1, chosen, INDEX_BYTES)
            selection = [
                _estimate_kernel(w, q, scores),
                top_k_kernel("choose pages", scores, found),
            ]
        pages, edges = self.pages(heads, others, chosen), self.chunks(w, hw, chosen + 1)
        parts = len(edges) - 1
        if parts == 1:
            return [*selection, self._attention_kernel(w, pages, edges, (q, k, v), (o,))]
        partial = (
            Tensor("O of chunks", heads, parts, w.head_dim, w.dtype_bytes, role="partial"),
            Tensor("LSE of chunks", heads, parts, 1, STATISTICS_BYTES, role="partial"),
        )
        attention = self._attention_kernel(w, pages, edges, (q, k, v), partial)
        return [*selection, attention, _merge_kernel(*partial, o)]

    def pages(self, heads: int, others: int, chosen: int) -> IntArray:
        """The pages that each head reads, the last one last: shape (heads, chosen + 1)."""
        rng = np.random.default_rng(self.seed)
        pages = np.full((heads, chosen + 1), others, np.int64)
        for row in pages:
            row[:-1] = rng.choice(others, chosen, replace=False)
        return pages

    def chunks(self, w: AttentionWorkload, hw: HardwareProfile, read: int) -> IntArray:
        """Where the chunks of so many pages begin, and their end; the last page is one by itself.

        FlashInfer: the smallest chunks of which all heads' fit the device at once.
        """
        slots = max(1, ctas_per_sm(_footprint(w), hw) * hw.sm.count // (w.batch * w.heads))
        size = max(1, LEAST_CHUNK // self.page_size, blocks(read - 1, slots))
        return np.append(np.arange(0, read - 1, size), [read - 1, read])

    def _attention_kernel(
        self,
        w: AttentionWorkload,
        pages: IntArray,
        edges: IntArray,
        qkv: tuple[Tensor, Tensor, Tensor],
        results: tuple[Tensor, ...],
    ) -> Kernel:
        """A CTA a head and chunk; it stores a row of each of `results`."""
        q, k, v = qkv
        heads, read = pages.shape
        grid = Grid(len(edges) - 1, heads)  # chunks, heads
        across = blocks(w.seq_kv, self.page_size)

        def head(items: IntArray) -> IntArray:
            return grid.at(items)[1]

        def trips(items: IntArray) -> IntArray:
            return np.diff(edges)[grid.at(items)[0]]

        def start(items: IntArray) -> IntArray:
            chunk, of_head = grid.at(items)
            begins: IntArray = of_head * read + edges[chunk]
            return begins

        def of_pages(tensor: Tensor) -> Load:
            stream = Stream(
                tensor,
                self.page_size,
                w.head_dim,
                lambda items: kv_matrix(w, head(items)) * across,
                table=pages.ravel(),
                start=start,
            )
            return Load(stream, max(1, STAGES * _tile_rows(w) // self.page_size))

        load_q = Load(Stream(q, 1, w.head_dim, head))
        load_k, load_v = of_pages(k), of_pages(v)
        keys, elements = self.page_size, self.page_size * w.head_dim
        page_bytes = load_k.stream.tile_bytes
        score = Compute(
            "s = q K^T",
            (load_k,),
            vector_ops=elements + VECTOR_OPS_PER_SCORE * keys + w.head_dim,
            exp_count=keys + 1,
            sram_bytes=2 * page_bytes,
        )
        add = Compute("o += p V", (load_v,), vector_ops=elements, sram_bytes=2 * page_bytes)
        return Kernel(
            name="attention",
            ctas=grid.size,
            periods=heads,
            sharing=w.heads // w.kv_heads,
            loops=(
                begin("q", load_q),
                Loop(trips, (load_k, load_v, score, add)),
                finish(w.head_dim, *(in_order(tensor, 1) for tensor in results)),
            ),
            footprint=_footprint(w),
        )


def _tile_rows(w: AttentionWorkload) -> int:
    """Rows of a stage: 4 for each bdx threads that hold a row in 16 bytes (or d / 32) each."""
    vector = max(16 // w.dtype_bytes, w.head_dim // 32)
    return max(1, 4 * THREADS * vector // w.head_dim)


def _footprint(w: AttentionWorkload) -> Footprint:
    """Two tensors' stages, and a pointer for each row that a thread has."""
    rows_bytes = 2 * STAGES * _tile_rows(w) * w.head_dim * w.dtype_bytes
    return Footprint(rows_bytes + 4 * THREADS * 8, THREADS, registers.PAGES)


def _estimate_kernel(w: AttentionWorkload, q: Tensor, scores: Tensor) -> Kernel:
    rows, pages = _tile_rows(w), scores.cols
    trips = blocks(pages, rows)

    def of_pages(name: str) -> Load:
        shape = (w.batch * w.kv_heads, pages, w.head_dim)
        tensor = Tensor(name, *shape, w.dtype_bytes, "input", "cache")
        first = Stream(tensor, rows, w.head_dim, lambda items: kv_matrix(w, items) * trips, 1)
        return Load(first, STAGES)

    load_q = Load(in_order(q, 1))
    loads = (of_pages("maxima of K"), of_pages("minima of K"))
    score = Compute(
        "score pages",
        loads,
        vector_ops=ESTIMATE_OPS * rows * w.head_dim,
        sram_bytes=4 * loads[0].stream.tile_bytes,
    )
    store = Store(Stream(scores, 1, rows, lambda items: items * trips, 1))
    return Kernel(
        name="estimate",
        ctas=scores.groups,
        periods=scores.groups,
        sharing=w.heads // w.kv_heads,
        loops=(
            begin("q", load_q),
            Loop(of_constant(trips), (*loads, score, store)),
        ),
        footprint=_footprint(w),
    )


def _merge_kernel(partial_o: Tensor, partial_lse: Tensor, o: Tensor) -> Kernel:
    """FlashInfer's VariableLengthMergeStates: a CTA of 128 threads a head, 4 stages."""
    parts = partial_o.rows
    load_o, load_lse = (
        Load(Stream(tensor, 1, tensor.cols, lambda items: items * parts, 1), stages=4)
        for tensor in (partial_o, partial_lse)
    )
    return combine_kernel(
        "merge",
        of_constant(parts),
        (load_o, load_lse),
        (in_order(o, 1),),
        Footprint(4 * 8 * o.cols * o.element_bytes, THREADS, registers.COMBINE),
        ops_per_element=2,
    )
