"""Kernels of NSA with a CTA for each query position, which all heads of a KV head's group share.

    load the rows of all heads of the group
    the flash loop over the position's key blocks
    store O and the log-sum-exp

Source: XunhaoLai/native-sparse-attention-triton, ops/triton/topk_sparse_attention.py;
fla-org/native-sparse-attention, native_sparse_attention/ops/parallel.py.
"""

from dataclasses import dataclass

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import blocks
from sim.schedules.parts.ends import begin, finish
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import Operand, key_loop
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.nsa_tensors import NsaTensors
from sim.schedules.parts.results import Attention
from sim.tile_program import IntArray, Kernel, Load, Stream, Tensor


@dataclass(frozen=True, eq=False)
class Positions:
    """Grid of a CTA for each query position of each KV head, or for `each` of them.

    Sequences and KV heads run fastest, or where `by_head` the positions.
    """

    w: AttentionWorkload
    each: int = 1
    by_head: bool = False

    @property
    def items(self) -> Grid:
        """(positions of a CTA, sequences, KV heads, CTAs that have all positions of a head).

        Where `by_head`: (positions of a CTA, CTAs, KV heads, sequences).
        """
        across = blocks(self.w.seq_q, self.each)
        if self.by_head:
            return Grid(self.each, across, self.w.kv_heads, self.w.batch)
        return Grid(self.each, self.w.batch, self.w.kv_heads, across)

    @property
    def ctas(self) -> int:
        """How many CTAs there are."""
        return self.items.size // self.each

    @property
    def periods(self) -> int:
        """A single position is alike for all heads; of several the heads may interleave."""
        alike = self.by_head or self.w.seq_q == 1
        return self.w.batch * self.w.kv_heads if alike else 1

    def _number(self, items: IntArray) -> IntArray:
        nth, fast, _, slow = self.items.at(items)
        return (fast if self.by_head else slow) * self.each + nth

    def exists(self, items: IntArray) -> IntArray:
        """1 where there is such a position: a CTA behind the others may have fewer."""
        return np.where(self._number(items) < self.w.seq_q, 1, 0)

    def position(self, items: IntArray) -> IntArray:
        """The query position of each item, the last one where there is none."""
        return np.minimum(self._number(items), self.w.seq_q - 1)

    def matrix(self, items: IntArray) -> IntArray:
        """The K/V matrix of each item."""
        _, fast, head, slow = self.items.at(items)
        return (slow if self.by_head else fast) * self.w.kv_heads + head

    def visited_blocks(self, tensor: Tensor, keys: int, visited: "Visited") -> Stream:
        """Of K or V, the blocks of so many keys that each item's position visits."""
        across = blocks(tensor.rows, keys)
        return Stream(
            tensor,
            keys,
            self.w.head_dim,
            lambda items: self.matrix(items) * across,
            table=visited.chosen,
            start=lambda items: visited.starts[self.position(items)],
        )

    def group_rows(self, tensor: Tensor, of: NsaTensors) -> Stream:
        """Of a tensor of query rows, those of each item's position and KV head."""
        cols = tensor.cols // self.w.kv_heads
        return Stream(
            tensor, 1, cols, lambda items: of.group_tile(self.matrix(items), self.position(items))
        )


@dataclass(frozen=True, eq=False)
class Visited:
    """The key blocks of each position: chosen[starts[p] + i] for i < count[p]."""

    count: IntArray
    starts: IntArray
    chosen: IntArray


def positions_attention(
    name: str,
    of: NsaTensors,
    cta: FlashCta,
    at: Positions,
    visited: Visited,
    kv: tuple[Tensor, Tensor],
) -> Attention:
    """Attention of each position over its key blocks of K and V."""
    w, rows, size = of.w, cta.tile.q, cta.tile.kv

    def block_count(items: IntArray) -> IntArray:
        return at.exists(items) * visited.count[at.position(items)]

    def block_of(tensor: Tensor) -> Operand:
        return Operand((at.visited_blocks(tensor, size, visited),))

    def of_group(tensor: Tensor) -> Stream:
        return at.group_rows(tensor, of)

    result = of.result(f"O of {name}", f"LSE of {name}")
    q_bytes = rows * w.head_dim * w.dtype_bytes
    kernel = Kernel(
        name=name,
        ctas=at.ctas,
        periods=at.periods,
        loops=(
            begin("Q", Load(of_group(of.q)), trips=at.exists, sram_bytes=q_bytes),
            key_loop(w, cta, block_count, q_bytes, block_of(kv[0]), block_of(kv[1])),
            finish(
                rows * w.head_dim,
                of_group(result.o),
                of_group(result.lse),
                trips=at.exists,
                sram_bytes=2 * q_bytes,
            ),
        ),
        footprint=cta.footprint(w),
        tensor_path=cta.tensor_path,
        items_per_cta=at.each,
    )
    return Attention([kernel], result)
