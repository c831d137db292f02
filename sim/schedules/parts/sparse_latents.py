"""Attention of each query to the latents of the keys that were chosen for it: FlashMLA's.

    "sparse mla", for 64 heads of each query (a CTA), or of those of a part when decoding:
        load the query rows
        for each 64 of the keys chosen:
            load their numbers, and the latents of each from where it lies
            S = Q C^T;  m, P = online softmax of S;  O = rescale(O) + P C[:, :latent_dim]
        store O and the log-sum-exp; decoding of a sequence in several parts, partial ones
    decoding, for each 8 heads of a query in several parts (a CTA): combine them

Prefill reads a cache of 16 bits. Decoding reads one of 8, of 656 bytes a token: the latents in fp8
with a scale for each 128, RoPE's elements in bf16. A producer warp group makes them bf16; of 128
heads a pair of CTAs share the keys, of which each makes half ready and writes it to both. One warp
group has S and the softmax, two have half of O each.

Source: deepseek-ai/FlashMLA: csrc/sm90/prefill/sparse (config.h: B_H, B_TOPK, threads and buffers;
phase1.cuh: cp.async of 16 bytes, numbers of -1 are not read but multiplied), csrc/sm90/decode/
sparse_fp8 (config.h, splitkv_mla.cuh, components/dequant.h), csrc/api/sparse_decode.h (as many
parts as SMs for each 64 heads of each query), docs/20250929-hopper-fp8-sparse-deep-dive.md (what a
conversion takes: fp8 to half and half to fp32 64 a clock, fp32 to bf16 16, a product 256).

What differs: keys are loaded in pairs of neighbours, since a trip has no 64 loads, so chosen keys
are neighbours by two; the last block of a query with fewer is filled up with its first keys again,
where the kernel loads nothing; rows that are cut by sectors are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, VECTOR_OPS_PER_SCORE, blocks
from sim.schedules.parts import registers
from sim.schedules.parts.ends import begin, finish
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.latent_parts import Combining, Ctas, Parts, combine_of_parts
from sim.schedules.parts.results import Result
from sim.schedules.parts.top_k import INDEX_BYTES
from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Op,
    Stream,
    Tensor,
)

ROWS, KEYS, BUFFERS = 64, 64, 2
TOGETHER = 2  # neighbouring keys that one load brings
WARP_GROUP = 128
WIDE = 2  # bytes of an element that is multiplied
SCALE_TILE, SCALE_BYTES = 128, 4  # elements of a scale
COPY_OPS, COPY_BYTES = 3, 16  # the copy, its address and its row's; an estimate, as flash3_loops
# Of an element in 8 bits: two conversions at half the rate of an FMA and half a product; one at the
# exponentials' rate, whose unit it runs on.
MADE_READY_OPS, MADE_READY_SLOW = 4.5, 1
COMBINING = Combining(rows=8, threads=256)


@dataclass(frozen=True, eq=False)
class SparseLatents:
    """Tensors of attention to chosen keys; `found` has their numbers, a row a query.

    `pairs` are those keys by two, a row a query of a sequence: shape (seq_q, top / TOGETHER).
    """

    w: AttentionWorkload
    latent_dim: int
    cache: Tensor
    found: Tensor
    pairs: IntArray

    @property
    def width(self) -> int:
        """Elements of a row of Q."""
        return self.latent_dim + self.w.rope_dim

    @property
    def top(self) -> int:
        """Keys of each query, with those that are filled up."""
        return self.found.cols

    @property
    def head_blocks(self) -> int:
        """Blocks of a query's heads."""
        return blocks(self.w.heads, ROWS)

    def _query(self) -> Tensor:
        queries = self.w.batch * self.w.seq_q
        return Tensor("Q", queries, self.w.heads, self.width, WIDE, "input", "query")

    def _whole(self) -> Result:
        w, queries = self.w, self.w.batch * self.w.seq_q
        return Result(
            Tensor("O", queries, w.heads, self.latent_dim, WIDE, "output", "result"),
            Tensor("LSE", queries, w.heads, 1, STATISTICS_BYTES, "output", "statistics"),
        )

    def _loads(
        self, query: OfItem, first: OfItem, share: OfItem = np.zeros_like, shared_by: int = 1
    ) -> tuple[Load, ...]:
        """Numbers and latents of the keys of a trip: all, or a CTA's `share` of so many.

        `query` is of all sequences, `first` the first block of its keys.
        """
        w, steps = self.w, self.top // KEYS
        a_sequence = blocks(w.seq_kv, TOGETHER)
        numbers = Stream(self.found, 1, KEYS, lambda items: query(items) * steps + first(items), 1)

        def base(items: IntArray) -> IntArray:
            return query(items) // w.seq_q * a_sequence

        def start(items: IntArray) -> IntArray:
            own_steps: IntArray = query(items) % w.seq_q * steps + first(items)
            return share(items) * len(by_step) + own_steps

        by_step = self.pairs.reshape(w.seq_q * steps, KEYS // TOGETHER)
        # The table of a load has those of every share, one after the other.
        tables = by_step.T.reshape(shared_by, -1, len(by_step)).swapaxes(0, 1)
        rows = (
            Stream(self.cache, TOGETHER, self.cache.cols, base, 0, table.ravel(), start)
            for table in tables
        )
        return (Load(numbers, BUFFERS), *(Load(stream, BUFFERS) for stream in rows))

    def _trip(self, loads: Sequence[Load], producing: Compute) -> tuple[Op, ...]:
        """S, softmax and O of KEYS keys; `producing` has what the producer does meanwhile."""
        scores, outputs = ROWS * KEYS, ROWS * self.latent_dim
        q_bytes, c_bytes = ROWS * self.width * WIDE, KEYS * self.width * WIDE
        return (
            *loads,
            Compute(
                "S = Q C^T",
                tuple(loads),
                mma_flops=2 * scores * self.width,
                sram_bytes=q_bytes + 2 * c_bytes,
            ),
            Compute(
                "softmax",
                vector_ops=VECTOR_OPS_PER_SCORE * scores + outputs,
                exp_count=scores + ROWS,
                sram_bytes=2 * scores * WIDE,  # P to the other warp group
            ),
            Compute(
                "O += P C",
                tuple(loads),
                mma_flops=2 * scores * self.latent_dim,
                vector_ops=producing.vector_ops,
                exp_count=producing.exp_count,
                other_ops=producing.other_ops,
                sram_bytes=KEYS * self.latent_dim * WIDE,
            ),
        )

    def _footprint(self, workers: int) -> Footprint:
        """Q, two blocks of keys and P; warp groups beside `workers` follow them or load."""
        held = ROWS * self.width + BUFFERS * KEYS * self.width + ROWS * KEYS
        producers = (3 - workers) * WARP_GROUP
        return Footprint(held * WIDE, 3 * WARP_GROUP, registers.FLASH3[2], producers)

    def prefill(self, valid: IntArray) -> list[Kernel]:
        """A CTA 64 heads of a query; `valid` says how many keys each query of a sequence has."""
        w, steps = self.w, self.top // KEYS
        grid = Grid(self.head_blocks, w.batch * w.seq_q)  # blocks of heads, queries

        def query(items: IntArray) -> IntArray:
            return grid.at(items)[1]

        def loaded(items: IntArray) -> IntArray:
            return -(-valid[query(items) % w.seq_q] // KEYS)

        def rows_of(tensor: Tensor) -> Stream:
            return Stream(tensor, ROWS, tensor.cols, lambda items: items)

        whole, load_q = self._whole(), Load(rows_of(self._query()))
        maxima = Tensor("maxima", *_shape(whole.lse), "output", "statistics")
        loads = self._loads(query, np.zeros_like)
        copies = KEYS * self.width * WIDE // COPY_BYTES
        copying = Compute("copy", other_ops=COPY_OPS * copies)
        results = (rows_of(whole.o), rows_of(whole.lse), rows_of(maxima))
        kernel = Kernel(
            name="sparse mla",
            ctas=grid.size,
            loops=(
                begin("Q", load_q, sram_bytes=load_q.stream.tile_bytes),
                Loop(loaded, self._trip(loads, copying)),
                Loop(lambda items: steps - loaded(items), self._trip((), copying)),
                finish(ROWS * self.latent_dim, *results),
            ),
            footprint=self._footprint(workers=2),
            tensor_path="asynchronous",
        )
        return [kernel]

    def decoding(self, parts: Parts) -> list[Kernel]:
        """The kernel over all parts and, where a sequence is in several, the combine kernel."""
        w, shared_by = self.w, min(2, self.head_blocks)
        down = w.seq_q * self.head_blocks
        ctas = Ctas(parts, np.full((w.batch, down), self.top // KEYS, np.int64))

        def query(items: IntArray) -> IntArray:
            return ctas.sequence(items) * w.seq_q + ctas.row_block(items) // self.head_blocks

        whole, split = self._whole(), int(parts.splits.sum()) * w.seq_q
        partial = Result(
            Tensor(
                "O of splits", split, w.heads, self.latent_dim, STATISTICS_BYTES, role="partial"
            ),
            Tensor("LSE of splits", split, w.heads, 1, STATISTICS_BYTES, role="partial"),
        )
        load_q = Load(Stream(self._query(), ROWS, self.width, ctas.rows_of_sequence))

        def share(items: IntArray) -> IntArray:
            return ctas.row_block(items) % shared_by

        loads = self._loads(query, ctas.first, share, shared_by)
        made_ready = KEYS // shared_by * self.latent_dim
        making_ready = Compute(
            "make ready",
            vector_ops=int(MADE_READY_OPS * made_ready),
            exp_count=MADE_READY_SLOW * made_ready,
        )
        kernel = Kernel(
            name="sparse mla",
            ctas=ctas.grid.size // parts.slots,
            loops=(
                begin("Q", load_q, trips=ctas.has_keys, sram_bytes=load_q.stream.tile_bytes),
                Loop(ctas.count, self._trip(loads, making_ready)),
                *ctas.stores(whole, partial, ROWS),
            ),
            footprint=self._footprint(workers=1),
            items_per_cta=parts.slots,
            splits=int(parts.splits.max()),
        )
        if not parts.combined.any():
            return [kernel]
        combine = combine_of_parts(parts, whole, partial, COMBINING)
        return [kernel, combine]


def _shape(tensor: Tensor) -> tuple[int, int, int, int]:
    return tensor.groups, tensor.rows, tensor.cols, tensor.element_bytes


def narrow_row_bytes(latent_dim: int, rope_dim: int) -> int:
    """Bytes of a token in the cache of 8 bits."""
    return latent_dim + latent_dim // SCALE_TILE * SCALE_BYTES + rope_dim * WIDE


def numbers_of(w: AttentionWorkload, top: int) -> Tensor:
    """The numbers of the keys chosen for each query."""
    return Tensor("keys chosen", w.batch, w.seq_q, top, INDEX_BYTES)
