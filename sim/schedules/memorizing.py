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
from sim.schedules.base import QKVO, blocks, kv_matrix, qkvo
from sim.schedules.flash2 import flash_attention
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_schedule import FlashSchedule
from sim.schedules.parts.public_tiles import public_cta
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

INDEX_BYTES = 4
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
            self._attend(w, cta, q, k, v, found, local_o, o),
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
        rows = np.arange(0, down * tile.q, tile.q, dtype=np.int64)
        first = self.memory_of(w, rows)[0] // tile.kv
        end = -(-self.memory_of(w, np.minimum(rows + tile.q, w.seq_q) - 1)[1] // tile.kv)

        def q_tile(items: IntArray) -> IntArray:
            """Grid (blocks of query rows, matrices), the first fastest."""
            return items

        def k_base(items: IntArray) -> IntArray:
            return kv_matrix(w, items // down) * across + first[items % down]

        load_q = Load(Stream(q, tile.q, w.head_dim, q_tile))
        load_k = Load(Stream(k, tile.kv, w.head_dim, k_base, 1), 2 * cta.stages)
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
            ctas=q.groups * down,
            loops=(
                Loop(once, (load_q, Compute("wait for Q", (load_q,), sram_bytes=q_bytes))),
                Loop(lambda items: (end - first)[items % down], (load_k, rank)),
                Loop(once, (Store(Stream(found, tile.q, self.retrieve, q_tile)),)),
            ),
            footprint=Footprint(cta.sram_bytes(w), 32 * cta.warps, cta.registers_per_thread),
            tensor_path=cta.tensor_path,
        )

    def _attend(
        self,
        w: AttentionWorkload,
        cta: FlashCta,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        found: Tensor,
        local_o: Tensor,
        o: Tensor,
    ) -> Kernel:
        rows_a_tile = cta.tile.q
        down = blocks(w.seq_q, rows_a_tile)
        keys, starts = self.found_keys(w)
        ends = starts[np.minimum(np.arange(1, down + 1) * rows_a_tile, w.seq_q)]
        begins = starts[np.arange(down) * rows_a_tile]

        def q_tile(items: IntArray) -> IntArray:
            """Grid (blocks of query rows, matrices), the first fastest."""
            return items

        def of_q(tensor: Tensor) -> Load:
            return Load(Stream(tensor, rows_a_tile, tensor.cols, q_tile))

        def of_found(tensor: Tensor) -> Load:
            stream = Stream(
                tensor,
                1,
                w.head_dim,
                lambda items: kv_matrix(w, items // down) * w.seq_kv,
                table=keys,
                start=lambda items: begins[items % down],
            )
            return Load(stream, FOUND_STAGES)

        loads = (of_q(q), of_q(local_o), of_q(found))
        load_k, load_v = of_found(k), of_found(v)
        attend = Compute(
            "s = q k, o += p v",
            (load_k, load_v),
            vector_ops=2 * w.head_dim,
            exp_count=1,
        )
        gate = Compute("gate", vector_ops=2 * rows_a_tile * w.head_dim)
        return Kernel(
            name="attend, gate",
            ctas=q.groups * down,
            loops=(
                Loop(once, (*loads, Compute("wait", loads))),
                Loop(lambda items: (ends - begins)[items % down], (load_k, load_v, attend)),
                Loop(once, (gate, Store(Stream(o, rows_a_tile, w.head_dim, q_tile)))),
            ),
            footprint=Footprint(loads[0].stream.tile_bytes, 128, 128),
        )

    def found_keys(self, w: AttentionWorkload) -> tuple[IntArray, IntArray]:
        """The keys that each query row found, one row after the other, and where each row begins.

        A memory of fewer keys than `retrieve` is found whole.
        """
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
