"""Kernels of NSA with a CTA for each query position, which all heads of a KV head's group share.

    load the rows of all heads of the group
    the flash loop over the position's key blocks
    store O and the log-sum-exp

Source: XunhaoLai/native-sparse-attention-triton, ops/triton/topk_sparse_attention.py;
fla-org/native-sparse-attention, native_sparse_attention/ops/parallel.py.

Warps share out the keys of the group's 16 rows, so that maxima, sums and P go through SRAM, with 9
or 10 barriers a trip. A trip's counts are those of what Triton 3.0 (the former) and 3.2 (the
latter) compile for sm_80 and sm_90 at head_dim 64 and 128, blocks of 32 to 128 and 2 to 8 warps,
played through for one CTA and for two (sim/machine_code/played.py): by how many 16 bytes of K and V
each thread copies, within some 15%. Shared memory is held for 1,300 cycles a trip of 8 warps at
head_dim 128 and blocks of 64, half of them by what is no operand of a matmul.
"""

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.machine import LANES
from sim.schedules.base import blocks
from sim.schedules.parts.counted import Counted, CountedTrip
from sim.schedules.parts.ends import begin, finish
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import Operand, key_loop
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.nsa_tensors import NsaTensors
from sim.schedules.parts.results import Attention, Result
from sim.tile_program import IntArray, Kernel, Load, Loop, Stream, Tensor

COPY_BYTES, COPY_CYCLES = 16, 4  # of a thread, and in which a warp's pass shared memory


def counted_trip(
    w: AttentionWorkload, hw: HardwareProfile, cta: FlashCta, together: int
) -> FlashCta:
    """The CTA, of which so many share an SM, with a trip as counted in machine code.

    Of more than 16 rows it is as many times that. Without buffers keys pass through registers on
    their way to SRAM, and the number of the block is waited for before they are.
    """
    copies = 2 * cta.tile.kv * w.head_dim * w.dtype_bytes / (COPY_BYTES * LANES * cta.warps)
    accessed = cta.warps * (85 + 8.3 * copies)
    by_registers = 0 if cta.stages else COPY_CYCLES * cta.warps * copies
    a_trip = Counted(
        instructions=190 + 15 * copies,
        cycles=950 + 27 * copies + 0.75 * accessed,
        warps=cta.warps,
        beside=accessed - 200,
        l2_reads=0 if cta.stages else 1,
        sram_cycles=accessed + by_registers,
    )
    return replace(cta, counted=CountedTrip(a_trip.times(cta.tile.q / 16), hw, together))


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
    branch, result = position_branch(name, of, cta, at, visited, kv)
    return Attention([positions_kernel(name, of, cta, at, branch)], result)


def position_branch(
    name: str,
    of: NsaTensors,
    cta: FlashCta,
    at: Positions,
    visited: Visited,
    kv: tuple[Tensor, Tensor],
) -> tuple[tuple[Loop, Loop], Result]:
    """The loop over a position's key blocks and the store of what comes of it."""
    w, rows = of.w, cta.tile.q

    def block_count(items: IntArray) -> IntArray:
        return at.exists(items) * visited.count[at.position(items)]

    def block_of(tensor: Tensor) -> Operand:
        return Operand((at.visited_blocks(tensor, cta.tile.kv, visited),))

    result = of.result(f"O of {name}", f"LSE of {name}")
    q_bytes = rows * w.head_dim * w.dtype_bytes
    stored = finish(
        rows * w.head_dim,
        at.group_rows(result.o, of),
        at.group_rows(result.lse, of),
        trips=at.exists,
        sram_bytes=2 * q_bytes,
    )
    k, v = map(block_of, kv)
    return (key_loop(w, cta, block_count, q_bytes, k, v), stored), result


def positions_kernel(
    name: str, of: NsaTensors, cta: FlashCta, at: Positions, *branches: tuple[Loop, Loop]
) -> Kernel:
    """Those branches one after the other, of a CTA for each of the positions."""
    q_bytes = cta.tile.q * of.w.head_dim * of.w.dtype_bytes
    load_q = begin("Q", Load(at.group_rows(of.q, of)), trips=at.exists, sram_bytes=q_bytes)
    return Kernel(
        name=name,
        ctas=at.ctas,
        periods=at.periods,
        loops=(load_q, *chain.from_iterable(branches)),
        footprint=cta.footprint(of.w),
        tensor_path=cta.tensor_path,
        items_per_cta=at.each,
    )
