"""The order of traversal: which CTA comes after which, and which way each goes through its keys.

`grid_order`, of the blocks of query rows of all heads:

    head_slow     all blocks of a head, then those of the next; sequences before heads
    head_fast     a block of all sequences and heads, then the next block
    swizzled      heads in sections whose K and V fit L2, section after section; in each the last
                  block, under a causal mask the longest, of all heads first

`key_order`, of the key blocks that a block of query rows sees:

    descending    the last one first
    ascending     the first one first
    alternating   descending, in every second wave of CTAs (of a persistent kernel: in every second
                  tile of each CTA) ascending: what was read last is read first

Who does which:

    head_slow     FlashAttention-2 (flash_fwd_launch_template.h: blocks, sequences, heads), Triton's
                  tutorial 06-fused-attention.py
    head_fast     vLLM's Triton prefill (vllm/attention/ops/prefix_prefill.py: sequences, heads,
                  blocks); "block-first" of arXiv 2511.02132
    swizzled      FlashAttention-3 and -4 with a mask (dealing.py)
    descending    FlashAttention-2, -3, -4
    ascending     Triton's tutorial, vLLM's Triton prefill, FlashInfer
    alternating   a CUDA and a CuTile kernel on a GB10 ("sawtooth", arXiv 2601.16032)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.workload import AttentionWorkload
from sim.tile_program import IntArray, OfItem

GridOrder = Literal["head_slow", "head_fast", "swizzled"]
KeyOrder = Literal["descending", "ascending", "alternating"]


@dataclass(frozen=True, eq=False)
class Direction:
    """A way through the keys; `goes` is 1 for the items that go it."""

    ascends: bool
    goes: OfItem

    def first_visited(self, first: IntArray, end: IntArray) -> IntArray:
        """Of key blocks first .. end - 1 the one to begin with."""
        return first if self.ascends else end - 1

    @property
    def stride(self) -> int:
        """From one key block to the next."""
        return 1 if self.ascends else -1

    def trips(self, of: OfItem) -> OfItem:
        """So many trips for the items that go this way, none for the others."""
        return lambda items: self.goes(items) * of(items)


LAST_TO_FIRST = Direction(False, np.ones_like)


def directions(order: KeyOrder, turn: Callable[[IntArray], IntArray]) -> tuple[Direction, ...]:
    """The ways that a kernel's items go; `turn` is the number of an item's wave."""
    if order != "alternating":
        return (Direction(order == "ascending", np.ones_like),)
    return (
        Direction(False, lambda items: 1 - turn(items) % 2),
        Direction(True, lambda items: turn(items) % 2),
    )


def kv_heads_in(w: AttentionWorkload, l2_bytes: float, seq_kv: int | None = None) -> int:
    """KV heads whose K and V fit so much L2: a power of two, at least one (tile_scheduler.hpp).

    Of so many keys; of the longest sequence's unless given.
    """
    row = (w.head_dim + w.value_columns) * w.dtype_bytes
    fitting = int(l2_bytes // ((seq_kv or w.seq_kv) * row))
    return 1 << (fitting.bit_length() - 1) if fitting else 1


def check_one_length(
    schedule: str,
    w: AttentionWorkload,
    grid_order: GridOrder | None,
    key_order: KeyOrder,
    own: GridOrder | None = None,
) -> None:
    """Raises InputError where sequences differ in length and an order is not the kernel's own."""
    if w.lengths is None:
        return
    asked = {"grid_order": (grid_order, own), "key_order": (key_order, "descending")}
    for key, (given, usual) in asked.items():
        if given != usual:
            raise InputError(
                f'schedule {schedule}: {key} = "{given}": sequences of one length were expected; '
                f"of lists of lengths it has its own order (no {key})"
            )


def swizzled(items: IntArray, down: int, matrices: int, section: int) -> tuple[IntArray, IntArray]:
    """The block and the matrix of each item, `section` matrices going together.

    >>> block, matrix = swizzled(np.arange(6), down=2, matrices=3, section=2)
    >>> block.tolist(), matrix.tolist()
    ([1, 1, 0, 0, 1, 0], [0, 1, 0, 1, 2, 2])
    """
    number, within = np.divmod(items, section * down)
    together = np.minimum(section, matrices - number * section)
    return down - 1 - within // together, number * section + within % together
