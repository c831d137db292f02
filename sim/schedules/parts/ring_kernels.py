"""The attention kernels of a ring's turn: a GPU's queries on the keys that it has then.

What a causal mask leaves of a turn is one of a few parts. A GPU's tokens are one range, or two that
are matrices of their own (zigzag), through which blocks of rows and of keys are counted; every
block of query rows visits key blocks from the first one on.

Source: zhuzilin/ring-flash-attention, ring_flash_attn.py, stripe_flash_attn.py,
zigzag_ring_flash_attn.py: forward and backward of each turn, and what they skip; NVIDIA/
TransformerEngine, pytorch/attention/dot_product_attention/context_parallel.py runs
FlashAttention-3 so. Deviations: the two ranges of a zigzag are cut into tiles each for itself, also
where one kernel runs over both; below the diagonal backward runs the causal kernel;
FlashAttention-3 packs no heads here, which it does of short sequences alone.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import QKVO, STATISTICS_BYTES, Tile, blocks, kv_matrix
from sim.schedules.parts.backward import Gradients, of_backward
from sim.schedules.parts.flash2_backward import BackwardCta, Saved, Seen, backward_kernels
from sim.schedules.parts.flash3_cta import Flash3Cta
from sim.schedules.parts.flash3_kernels import forward_kernel
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import Operand, QueryTiles, flash_kernel, key_loop
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.query_rows import QueryRows
from sim.schedules.parts.results import Result
from sim.schedules.parts.several_gpus import rows_kernel
from sim.tile_program import IntArray, Kernel, Stream, Tensor, some_of

# What a GPU's queries see of the keys of a turn.
Part = Literal["all", "causal", "below diagonal", "earlier keys", "later queries"]


@dataclass(frozen=True)
class Held:
    """A GPU's tokens, in `chunks` ranges that are matrices of their own, and a turn's result."""

    chunks: int
    q: Tensor
    k: Tensor
    v: Tensor
    part: Result


def of_part(w: AttentionWorkload, part: Part) -> AttentionWorkload:
    """The workload with the mask that a turn has."""
    return replace(w, causal=part in ("causal", "below diagonal"))


def key_blocks(part: Part, held: Held, tile: Tile) -> tuple[int, IntArray]:
    """The first block of query rows that takes part, and how many key blocks each visits.

    All visit a range from the first key block on; blocks count through the chunks.
    """
    down, across = blocks(held.q.rows, tile.q), blocks(held.k.rows, tile.kv)
    row_blocks = np.arange(held.chunks * down)
    chunk, end_row = row_blocks // down, np.minimum((row_blocks % down + 1) * tile.q, held.q.rows)
    if part in ("causal", "below diagonal"):
        end_key = end_row - (part == "below diagonal")
        return 0, chunk * across + -(-end_key // tile.kv)
    first = down if part == "later queries" else 0
    visited = across if part == "earlier keys" else held.chunks * across
    return first, np.full(held.chunks * down - first, visited)


def flash2_kernel(part: Part, w: AttentionWorkload, held: Held, cta: FlashCta) -> Kernel:
    """FlashAttention-2 of a GPU's queries on the keys of a turn."""
    tile, chunks = cta.tile, held.chunks
    first, visited = key_blocks(part, held, tile)
    down, across = blocks(held.q.rows, tile.q), blocks(held.k.rows, tile.kv)
    grid = Grid(len(visited), w.batch, w.heads)  # blocks of query rows, sequences, heads

    def q_matrix(items: IntArray) -> IntArray:
        _, sequence, head = grid.at(items)
        return sequence * w.heads + head

    def q_tile(items: IntArray) -> IntArray:
        return q_matrix(items) * chunks * down + first + grid.at(items)[0]

    def trips(items: IntArray) -> IntArray:
        return visited[grid.at(items)[0]]

    def last_key_block(items: IntArray) -> IntArray:
        return kv_matrix(w, q_matrix(items)) * chunks * across + trips(items) - 1

    def last_to_first(tensor: Tensor) -> Operand:
        return Operand((Stream(tensor, tile.kv, w.head_dim, last_key_block, -1),))

    rows = QueryTiles(
        ctas=grid.size,
        q=Stream(held.q, tile.q, w.head_dim, q_tile),
        o=Stream(held.part.o, tile.q, w.head_dim, q_tile),
        lse=Stream(held.part.lse, tile.q, 1, q_tile),
        periods=w.batch * w.heads,
        sharing=w.heads // w.kv_heads,
    )
    k, v = last_to_first(held.k), last_to_first(held.v)
    loop = key_loop(of_part(w, part), cta, trips, rows.q.tile_bytes, k, v)
    return flash_kernel(f"flash2, {part}", of_part(w, part), cta, rows, loop)


def flash3_kernel(part: Part, w: AttentionWorkload, held: Held, cta: Flash3Cta, sms: int) -> Kernel:
    """FlashAttention-3 of the same."""
    first, visited = key_blocks(part, held, cta.tile)
    across = held.chunks * blocks(held.k.rows, cta.tile.kv)
    # As many blocks as there are through all ranges.
    counted = replace(
        of_part(w, part), seq_q=len(visited) * cta.tile.q, seq_kv=across * cta.tile.kv
    )
    rows = _HeldRows(counted, cta.tile, 1, held=held, first=first, shown=visited)
    kernel = forward_kernel(replace(cta, w=counted, packed=1), rows, sms)
    return replace(kernel, name=f"flash3, {part}")


@dataclass(frozen=True)
class _HeldRows(QueryRows):
    """The query rows that take part, from block `first` on, and the key blocks each is `shown`."""

    held: Held = field(kw_only=True)
    first: int = field(kw_only=True)
    shown: IntArray = field(kw_only=True)

    def q_tile(self, tiles: IntArray) -> IntArray:
        """The tile of Q, and of O, of each of these tiles."""
        row, matrix = self.grid.at(tiles)
        a_matrix = self.held.chunks * blocks(self.held.q.rows, self.tile.q)
        return matrix * a_matrix + self.first + row

    @cached_property
    def visited(self) -> tuple[IntArray, IntArray]:
        """The first key block that each tile has and the end."""
        return np.zeros_like(self.shown), self.shown

    @cached_property
    def masked_share(self) -> float:
        """Of the visited key blocks, but for each tile's first, those that the diagonal cuts."""
        if not self.w.causal:
            return 0.0
        down, across = (
            blocks(side.rows, size)
            for side, size in ((self.held.q, self.tile.q), (self.held.k, self.tile.kv))
        )
        chunk, block = np.divmod(np.arange(len(self.shown)), down)
        trips = self.shown - 1
        uncut = np.minimum(chunk * across + (block * self.tile.q + 1) // self.tile.kv, trips)
        return float((trips - uncut).sum() / max(1, trips.sum()))

    def tensors(self) -> tuple[QKVO, Tensor]:
        """Q, K and V that the GPU has, and a turn's O and log-sum-exp."""
        held = self.held
        return QKVO(held.q, held.k, held.v, held.part.o), held.part.lse


@dataclass(frozen=True)
class Backward:
    """Kernels of a part's backward: of attention, of adding dQ, and of adding dK and dV."""

    attention: list[Kernel]
    add_dq: list[Kernel]
    add_dkv: list[Kernel]


class BackwardOfTurns:
    """The backward pass: a turn's gradients, and the sums of all turns in fp32.

    dQ stays where Q is; dK and dV go round with their K and V.
    """

    def __init__(self, held: Held, o: Tensor, lse: Tensor) -> None:
        self.held, self.saved = held, Saved(held.q, held.k, held.v, o, lse)
        dk, dv = _like(held.k, "dK of a turn"), _like(held.v, "dV of a turn")
        heads = replace(held.k, groups=held.q.groups)
        grouped = held.q.groups != held.k.groups
        self.of_turn = Gradients(
            do=_like(held.q, "dO", lifetime="input"),
            dq=_like(held.q, "dQ of a turn", role="query gradient"),
            dk=dk,
            dv=dv,
            dk_of_heads=_like(heads, "dK of heads") if grouped else dk,
            dv_of_heads=_like(heads, "dV of heads") if grouped else dv,
        )
        self.turn = {"dQ": self.of_turn.dq, "dK": dk, "dV": dv}
        self.sums = {
            name: _like(one, f"{name} of all turns", element_bytes=STATISTICS_BYTES)
            for name, one in self.turn.items()
        }

    def kernels(self, part: Part, w: AttentionWorkload, cta: BackwardCta) -> Backward:
        """Of a turn's part: what is not in it is neither computed nor added."""
        held, chunks = self.held, self.held.chunks
        shown: Part = "causal" if part == "below diagonal" else part
        first, visited = key_blocks(shown, held, cta.tile)
        down, across = (
            chunks * blocks(side.rows, size)
            for side, size in ((held.q, cta.tile.q), (held.k, cta.tile.kv))
        )
        seen_from = first + np.searchsorted(visited, np.arange(across), side="right")
        seen = Seen(down, seen_from, np.full_like(seen_from, down), chunks)
        before, main, after, *over_heads = backward_kernels(
            of_part(w, shown), cta, self.saved, self.of_turn, seen
        )
        add_dq, *add_dkv = (
            rows_kernel(f"{name} +=", [to, self.turn[name]], [to], 1)
            for name, to in self.sums.items()
        )
        if part == "later queries":
            before, after, add_dq = (
                _of_chunk(one, held.q, chunks, 1) for one in (before, after, add_dq)
            )
        if part == "earlier keys":
            own = across // chunks
            main = some_of(main, main.ctas // chunks, lambda i: i // own * across + i % own)
            over_heads = [_of_chunk(one, held.k, chunks, 0) for one in over_heads]
            add_dkv = [_of_chunk(one, held.k, chunks, 0) for one in add_dkv]
        attention = [before, main, after, *over_heads]
        return Backward(attention, of_backward([add_dq]), of_backward(add_dkv))

    def start(self) -> list[Kernel]:
        """The first turn's gradients become the sums."""
        return of_backward(
            [
                rows_kernel(f"{name} to fp32", [self.turn[name]], [to], 1)
                for name, to in self.sums.items()
            ]
        )

    def finish(self) -> list[Kernel]:
        """The sums in the workload's dtype."""
        results = {name: _like(one, name, lifetime="output") for name, one in self.turn.items()}
        return of_backward(
            [
                rows_kernel(f"{name} to dtype", [one], [results[name]], 1)
                for name, one in self.sums.items()
            ]
        )


def _like(tensor: Tensor, name: str, **other: Any) -> Tensor:
    """Room for a tensor of that shape."""
    shape = (tensor.groups, tensor.rows, tensor.cols, tensor.element_bytes)
    return replace(Tensor(name, *shape), **other)


def _of_chunk(kernel: Kernel, tensor: Tensor, chunks: int, chunk: int) -> Kernel:
    """The kernel, of which each CTA has rows of one matrix, on one of the ranges of each head."""
    down = kernel.ctas // tensor.groups

    def number(items: IntArray) -> IntArray:
        return (items // down * chunks + chunk) * down + items % down

    return replace(some_of(kernel, kernel.ctas // chunks, number), periods=kernel.periods // chunks)
