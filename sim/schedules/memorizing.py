"""Memorizing Transformers: a local window, and the nearest keys of a memory for each query.

    "local attention"  the FlashAttention-2 loop over the latest `keep_window` keys
    "search memory"    for each block of tile.q query rows, of each head (one CTA):
                           load Q_i
                           for each block of tile.kv keys of the memory:
                               load K_j;  S = Q_i K_j^T;  keep the `retrieve` best of each row
                           store their numbers
    "attend, gate"     for each block of tile.q query rows (one CTA):
                           load Q_i and the local O_i
                           for each row and each key found: load it and its value, one row each
                           O_i = gate * (attention over what was found) + (1 - gate) * O_i

Source: Wu et al. 2022 (arXiv 2203.08913), section 3: 32 neighbours of each head's own memory of up
to 262,144 keys, 512 tokens of local context. The paper searches approximately on a TPU; here the
search is exact, which is what reading all keys of the memory costs. The tiles are those of
`flash2`. Which keys are found depends on data: here any of the memory, drawn by `seed`, the same
for all heads.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count, CountOrNone
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import QKVO, blocks, check_table, kv_matrix, qkvo
from sim.schedules.flash2 import flash_attention
from sim.schedules.parts import registers
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.ends import begin
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_schedule import FlashSchedule
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.public_tiles import public_cta
from sim.schedules.parts.top_k import INDEX_BYTES
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
    once,
)

FOUND_STAGES = 8  # keys and values, a row each, that are on their way at once: an estimate


class Memorizing(FlashSchedule):
    """Local attention and `retrieve` keys of a memory of the `memory` tokens before the window."""

    name: Literal["memorizing"] = "memorizing"
    memory: Count = 65536
    retrieve: Count = 32
    keep_window: Count = 512
    seed: CountOrNone = 0

    summary = "a local window, and the nearest 32 keys of a memory for each query"
    source = "arXiv 2203.08913"
    of_other_models = True
    masks = ("causal",)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Local attention, search, and attention over what was found."""
        cta = self.cta(public_cta(w, hw, self.implementation), w, hw)
        q, k, v, o = qkvo(w)
        local_o = Tensor("local O", q.groups, w.seq_q, w.head_dim, w.dtype_bytes)
        found = Tensor("keys found", q.groups, w.seq_q, self.retrieve, INDEX_BYTES)
        local = replace(w, window=self.keep_window)
        return [
            *flash_attention("local attention", local, cta, QKVO(q, k, v, local_o)).kernels,
            self._search(w, cta, q, k, found),
            self._attend(w, cta.tile.q, (q, local_o, found), (k, v), o),
        ]

    def memory_of(self, w: AttentionWorkload, row: IntArray) -> tuple[IntArray, IntArray]:
        """The first key and the end of the memory that query rows see: what left the window."""
        end = np.maximum(0, w.seq_kv - w.seq_q + row + 1 - self.keep_window)
        return np.maximum(0, end - self.memory), end

    def _search(
        self, w: AttentionWorkload, cta: FlashCta, q: Tensor, k: Tensor, found: Tensor
    ) -> Kernel:
        tile = cta.tile
        down, across = blocks(w.seq_q, tile.q), blocks(w.seq_kv, tile.kv)
        grid = Grid(down, q.groups)  # blocks of query rows, matrices
        rows = np.arange(0, down * tile.q, tile.q, dtype=np.int64)
        first = self.memory_of(w, rows)[0] // tile.kv
        end = -(-self.memory_of(w, np.minimum(rows + tile.q, w.seq_q) - 1)[1] // tile.kv)

        def k_base(items: IntArray) -> IntArray:
            row, matrix = grid.at(items)
            return kv_matrix(w, matrix) * across + first[row]

        load_q = Load(in_order(q, tile.q))
        load_k = Load(Stream(k, tile.kv, w.head_dim, k_base, 1), max(1, 2 * cta.stages))
        q_bytes, k_bytes = load_q.stream.tile_bytes, load_k.stream.tile_bytes
        scores = tile.q * tile.kv
        rank = Compute(
            "S = Q K^T, keep the best",
            (load_k,),
            mma_flops=2 * scores * w.head_dim,
            vector_ops=2 * scores,  # scale, and compare with the least that is kept
            sram_bytes=q_bytes + (1 + cta.kv_readers) * k_bytes,
        )
        return Kernel(
            name="search memory",
            ctas=grid.size,
            periods=q.groups,
            sharing=w.heads // w.kv_heads,
            loops=(
                begin("Q", load_q, sram_bytes=q_bytes),
                Loop(lambda items: (end - first)[grid.at(items)[0]], (load_k, rank)),
                Loop(once, (Store(in_order(found, tile.q)),)),
            ),
            footprint=cta.footprint(w),
            tensor_path=cta.tensor_path,
        )

    def _attend(
        self,
        w: AttentionWorkload,
        tile_rows: int,
        of_rows: tuple[Tensor, Tensor, Tensor],
        memory: tuple[Tensor, Tensor],
        o: Tensor,
    ) -> Kernel:
        """A CTA so many rows of Q, the local O and the keys found, and of O."""
        down = blocks(w.seq_q, tile_rows)
        grid = Grid(down, o.groups)  # blocks of query rows, matrices
        keys, starts = self.found_keys(w)
        ends = starts[np.minimum(np.arange(1, down + 1) * tile_rows, w.seq_q)]
        begins = starts[np.arange(down) * tile_rows]

        def of_found(tensor: Tensor) -> Load:
            stream = Stream(
                tensor,
                1,
                w.head_dim,
                lambda items: kv_matrix(w, grid.at(items)[1]) * w.seq_kv,
                table=keys,
                start=lambda items: begins[grid.at(items)[0]],
            )
            return Load(stream, FOUND_STAGES)

        loads = tuple(Load(in_order(tensor, tile_rows)) for tensor in of_rows)
        rows_found = tuple(map(of_found, memory))
        attend = Compute("s = q k, o += p v", rows_found, vector_ops=2 * w.head_dim, exp_count=1)
        gate = Compute("gate", vector_ops=2 * tile_rows * w.head_dim)
        return Kernel(
            name="attend, gate",
            ctas=grid.size,
            periods=o.groups,
            sharing=w.heads // w.kv_heads,
            loops=(
                begin("Q, local O, found", *loads),
                Loop(lambda items: (ends - begins)[grid.at(items)[0]], (*rows_found, attend)),
                Loop(once, (gate, Store(in_order(o, tile_rows)))),
            ),
            footprint=Footprint(loads[0].stream.tile_bytes, 128, registers.FOUND),
        )

    def found_keys(self, w: AttentionWorkload) -> tuple[IntArray, IntArray]:
        """The keys that each query row found, one row after the other, and where each row begins.

        A memory of fewer keys than `retrieve` is found whole.
        """
        check_table(self.name, w.seq_q * self.retrieve)
        first, end = self.memory_of(w, np.arange(w.seq_q, dtype=np.int64))
        count = np.minimum(end - first, self.retrieve)
        starts = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        row = np.repeat(np.arange(w.seq_q), count)
        number = np.arange(starts[-1]) - starts[row]
        # One key of each of `count` equal parts of the memory, so that none is found twice.
        low = first[row] + (end - first)[row] * number // count[row]
        high = first[row] + (end - first)[row] * (number + 1) // count[row]
        keys: IntArray = np.random.default_rng(self.seed).integers(low, high, dtype=np.int64)
        return keys, starts
