"""FlexAttention, forward: Triton's flash loop over a block mask, with what a score_mod inlines.

    block mask: for each 128 query rows, the blocks of 128 keys of which the mask shows some but
                not all pairs (partial), and those of which it shows all (full)
    for each block of tile.q query rows, of each head of each sequence (one CTA):
        load Q_i
        for each tile.kv keys of the partial blocks, first to last, then of the full ones:
            load K_j, V_j, and the number of the block that comes next
            S = Q_i K_j^T / sqrt(d);  S = score_mod(S);  S = mask_mod(S), of partial blocks
            m, P = online softmax of S;  O_i = rescale(O_i) + P V_j
        O_i = O_i / l_i;  store O_i and the log-sum-exp

A mask is paid for twice: blocks at its edge are computed whole, all tiles of them, and there each
score is compared. Without a mask there is no block mask, and one block that has all keys. The
workload says what score_mod does (softcap, ALiBi, a bias) and which mask there is; with `documents`
each sequence is so many documents of equal length, whose tokens see none of another.

Source: pytorch/pytorch, torch/_inductor/kernel/flex/templates/flex_attention.py.jinja and
common.py.jinja (the loops, forward_block_mn), torch/nn/attention/flex_attention.py (BLOCK_SIZE,
create_block_mask), torch/_inductor/template_heuristics/triton.py (tiles; parts/public_tiles.py).
Operations of a score are counted by hand there, mask_mod's too: estimates. Of fewer than 128
queries PyTorch takes FlexDecoding, unless FORCE_USE_FLEX_ATTENTION says not to: this is the kernel
that it says. Making the block mask is left out, as it is made once for all layers.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count
from sim.inputs.workload import AttentionWorkload, Mask
from sim.schedules.base import blocks, check_table, qkvo
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import QueryBlocks, flash_kernel, log_sum_exp
from sim.schedules.parts.flash_schedule import FlashSchedule
from sim.schedules.parts.instructions import FLEX, OpsAScore
from sim.schedules.parts.kv_cache import PAGE_NUMBER_BYTES, PAGE_NUMBERS_A_SECTOR
from sim.schedules.parts.masks import KeyBlocks, as_table, visiting_loop
from sim.schedules.parts.public_tiles import flex_cta
from sim.tile_program import IntArray, Kernel, Stream, Tensor

BLOCK = 128  # rows and keys of a block of the mask (_DEFAULT_SPARSE_BLOCK_SIZE)
# Lane operations of mask_mod and of putting it into effect: compare, select; a window is one more
# difference, comparison and conjunction, a document one more comparison and conjunction.
MASKED: dict[Mask, float] = {"full": 0, "causal": 2, "window": 5}
OF_DOCUMENTS = 2
OF_BOUNDS = (
    2  # keys beyond the last are compared on every trip, where lengths are no multiple of 128
)


class Flex(FlashSchedule):
    """FlexAttention forward, of sequences of `documents` documents each."""

    name: Literal["flex"] = "flex"
    implementation: Literal["triton"] = "triton"
    documents: Count = 1

    summary = "PyTorch's FlexAttention: a block mask, and a score_mod in Triton's loop"
    source = "arXiv 2412.05496; pytorch/pytorch, torch/_inductor/kernel/flex"
    phases = ("prefill",)
    takes = frozenset({"append", "softcap", "alibi", "bias", "two sides"})

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        if self.documents > 1 and w.seq_q != w.seq_kv:
            raise InputError(
                f"schedule flex: documents = {self.documents}: workload.seq_q = {w.seq_q}: as many "
                f"queries as keys (seq_kv = {w.seq_kv}) were expected"
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel: a CTA a block of query rows."""
        public = replace(flex_cta(w, hw), a_score=self._of_a_score(w))
        cta, tensors = self.cta(public, w, hw), qkvo(w)
        if BLOCK % cta.tile.q or BLOCK % cta.tile.kv:
            raise InputError(
                f"schedule flex: tile = {cta.tile}: parts of the block mask's blocks of {BLOCK} x "
                f"{BLOCK} were expected"
            )
        grid = QueryBlocks(w, cta.tile)
        rows = grid.tiles(tensors.q, tensors.o, log_sum_exp(tensors.q))
        loops = [
            visiting_loop(w, its_cta, visits, grid, tensors, named_by=named_by)
            for its_cta, visits, named_by in self._visits(w, cta, grid)
        ]
        return [flash_kernel("flex", w, cta, rows, *loops)]

    def _of_a_score(self, w: AttentionWorkload) -> OpsAScore:
        ragged = w.seq_q % BLOCK or w.seq_kv % BLOCK
        return FLEX + OpsAScore(0, OF_BOUNDS if ragged else 0, 0)

    def _visits(
        self, w: AttentionWorkload, cta: FlashCta, grid: QueryBlocks
    ) -> list[tuple[FlashCta, KeyBlocks, tuple[Stream, ...]]]:
        """The CTA, the key blocks and what names them, of the partial blocks and of the full."""
        if w.mask == "full" and self.documents == 1:
            every = np.arange(blocks(w.seq_kv, cta.tile.kv))
            return [(cta, as_table([every] * grid.down), ())]
        ops = MASKED[w.mask] + (OF_DOCUMENTS if self.documents > 1 else 0)
        masking = replace(cta, a_score=cta.a_score + OpsAScore(0, ops, 0))
        partial, full = (_in_tiles(w, cta, grid, own) for own in block_mask(w, self.documents))
        return [
            (masking, partial, (_numbers("KV_IDX", w, cta, grid, partial),)),
            (cta, full, (_numbers("FULL_KV_IDX", w, cta, grid, full),)),
        ]


def block_mask(w: AttentionWorkload, documents: int = 1) -> tuple[list[IntArray], list[IntArray]]:
    """The partial and the full key blocks of each 128 query rows, first to last.

    A query sees one range of keys, the ends of which do not go back from one query to the next.
    """
    check_table("flex", blocks(w.seq_q, BLOCK) * blocks(w.seq_kv, BLOCK))
    row = np.arange(w.seq_q) + w.seq_kv - w.seq_q
    length = blocks(w.seq_kv, documents)
    low, high = row // length * length, np.minimum(w.seq_kv, (row // length + 1) * length)
    if documents == 1:
        low, high = np.zeros_like(row), np.full_like(row, w.seq_kv)
    if w.causal:
        high = np.clip(row + 1, 0, high)
    if w.window is not None:
        low = np.maximum(low, row + 1 - w.window)
        high = np.clip(row + w.window, 0, high)
    first_key = BLOCK * np.arange(blocks(w.seq_kv, BLOCK), dtype=np.int64)
    partial, full = [], []
    for top in range(0, w.seq_q, BLOCK):
        lows, highs = low[top : top + BLOCK], high[top : top + BLOCK]
        some = (first_key < highs.max()) & (first_key + BLOCK > lows.min())
        every = (first_key >= lows.max()) & (first_key + BLOCK <= highs.min())
        every &= len(lows) == BLOCK  # of fewer rows the rest count as masked
        partial.append(np.flatnonzero(some & ~every))
        full.append(np.flatnonzero(every))
    return partial, full


def _in_tiles(
    w: AttentionWorkload, cta: FlashCta, grid: QueryBlocks, listed: list[IntArray]
) -> KeyBlocks:
    """The tiles of the listed blocks, for each block of tile.q rows."""
    a_block, across = BLOCK // cta.tile.kv, blocks(w.seq_kv, cta.tile.kv)
    tiles = [(own[:, None] * a_block + np.arange(a_block)).ravel() for own in listed]
    there = [own[own < across] for own in tiles]
    return as_table([there[row * cta.tile.q // BLOCK] for row in range(grid.down)])


def _numbers(
    name: str, w: AttentionWorkload, cta: FlashCta, grid: QueryBlocks, visits: KeyBlocks
) -> Stream:
    """The sectors of the block mask that hold the numbers of each trip's block."""
    sectors = blocks(blocks(w.seq_kv, BLOCK), PAGE_NUMBERS_A_SECTOR)
    shape = (blocks(w.seq_q, BLOCK), sectors * PAGE_NUMBERS_A_SECTOR)
    table = Tensor(name, 1, *shape, PAGE_NUMBER_BYTES, "input", "mask")
    a_sector = PAGE_NUMBERS_A_SECTOR * BLOCK // cta.tile.kv  # trips
    places = np.arange(len(visits.table)) - np.repeat(visits.first, visits.trips)

    def of_row(items: IntArray) -> IntArray:
        return grid.row(items) * cta.tile.q // BLOCK * sectors

    return Stream(
        table,
        1,
        PAGE_NUMBERS_A_SECTOR,
        of_row,
        table=places // a_sector,
        start=lambda items: visits.first[grid.row(items)],
    )
