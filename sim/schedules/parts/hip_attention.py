"""HiP's kernels as its authors publish them: what searches the mask, launch by launch.

    initialise chunks        every query block's k chunks, evenly over its keys
    score first chunks       their scores; 256 keys a CTA (the search never reads them)
    estimate mask            a CTA a query block; each round, until a chunk is one block:
        for each PROGRAM_KEYS keys of the 2 k halves:
            gather the keys, score them by every second query row; chunks and scores go to L2
        sigmoid;  bitonic argsort of all 2 k;  gather the best k
    scale, sort, gather      PyTorch: block numbers to keys, ascending, their scores likewise

Source: DeepAuto-AI/hip-attention, src/hip_attn/v1_1/attention2_draft_prefetch.py: HiPAttentionArgs
(64 query rows, every second one scored, key blocks of 2, both keys loaded, 4 warps),
masking_iteration_draft (the launches, BLOCK_BK), masking_iteration_draft_cuda_fused (the rounds),
block_sparse_attention (32 keys a step); utils/triton_argsort.py.

Sixteen keys that are read together here stand for eight of its chunks of two keys: as many keys a
round and as many rounds, but eight places of the cache are taken for one.

Work is what Triton 3.2 compiles these kernels to for sm_89 and sm_90 (fp16, head_dim 64 and 128,
mask_k 256, 512 and 1024), straight through every loop and call, its cycles by playing the code
through for one CTA and for two (as sim/machine_code/played.py). The search has 255 registers, and
64 KiB of SRAM at head_dim 128: one CTA an SM of an RTX 4090, two of an H100. It reads tables, and
keys four or so at a time into the registers that are left, from L2 and waits for them: 65 times a
round. Triton 3.0 and 3.1 have 25% more instructions, and wait for every key's 16 bytes apart: 170
times.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks, kv_matrix
from sim.schedules.parts import registers
from sim.schedules.parts.counted import Counted, CountedTrip, resident
from sim.schedules.parts.elementwise import elementwise, in_order, rows_of
from sim.schedules.parts.ends import begin
from sim.schedules.parts.flash_cta import FlashCta, triton_cta
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.masks import KeyBlocks
from sim.schedules.parts.top_k import sort_kernel
from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Store,
    Stream,
    Tensor,
    once,
)

KEYS = 16  # read together: eight chunks of two
CHUNK_KEYS = 2  # block_size_k
PROGRAM_KEYS = 256  # scored at once: BLOCK_BK = 64 chunks, both halves, two keys of each
ROW_STRIDE = 2  # block_stride_q
ATTEND_KEYS = 32
THREADS = 128
INDEX_BYTES = 4
POSITION_BYTES = 8  # of torch.sort's and gather's int64
SCORE_BYTES = 2  # bf16


def scoring(head_dim: int, rows: int) -> Counted:
    """256 keys scored: 2,680 and 1,910 instructions at head_dim 128 and 64, matmuls among them.

    That is by 32 query rows; by 16 a warp alone takes two thirds as long.
    """
    by_32 = Counted(
        instructions=1150 + 10.9 * head_dim,
        cycles=2693 + 33.5 * head_dim,
        beside=845 + 16.7 * head_dim,
        l2_reads=4.4 + 0.087 * head_dim,
        sram_cycles=888 + 18.8 * head_dim,
    )
    return by_32 if rows > 16 else by_32.times(2 / 3)


def choosing(chunks: int) -> Counted:
    """Sigmoid, argsort, gather of all halves: 3,380 instructions of 512, 448 of them shuffles."""
    return Counted(
        instructions=430 + 5.8 * chunks,
        cycles=1900 + 9.7 * chunks,
        beside=max(0.0, 6.9 * chunks - 1000),
        l2_reads=5,
        sram_cycles=5.8 * chunks,
    )


def attending(head_dim: int, by_wgmma: bool) -> Counted:
    """32 keys gathered and attended to: the mean of 16 steps of found keys and 9 of others.

    Of found keys 1,139 and 780 instructions at head_dim 128 and 64, of sinks and window 876 and
    467; by wgmma 1,123 and 839, 729 and 558.
    """
    if by_wgmma:
        return Counted(
            instructions=495 + 3.8 * head_dim,
            cycles=1272 + 13.8 * head_dim,
            beside=202 + 3.2 * head_dim,
            l2_reads=2.9,
            sram_cycles=175 + 4.5 * head_dim,
        )
    return Counted(
        instructions=290 + 5.4 * head_dim,
        cycles=max(0.0, 36.8 * head_dim - 115),
        beside=307 + 5.6 * head_dim,
        l2_reads=2.4,
        sram_cycles=max(0.0, 19.1 * head_dim - 533),
    )


def attention_cta(w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
    """How a CTA of the block-sparse attention works: 4 warps, 64 query rows.

    A tile has half a step's keys, of which two are on their way; waits for them are in the counts.
    """
    cta = triton_cta(w, hw, Tile(q=64, kv=KEYS), 4, 2)
    return replace(cta, stages=2, registers_per_thread=registers.MOST)


def counted_trip(w: AttentionWorkload, hw: HardwareProfile, cta: FlashCta) -> CountedTrip:
    """A trip of the block-sparse attention; fewer rows and keys have their share of the work."""
    ctas = w.batch * w.heads * blocks(w.seq_q, cta.tile.q)
    share = cta.tile.kv / ATTEND_KEYS * cta.tile.q / 64
    counted = attending(w.head_dim, cta.tensor_path == "native").times(share)
    return CountedTrip(counted, hw, resident(cta.footprint(w), ctas, hw))


@dataclass(frozen=True, eq=False)
class Search:
    """The search of a mask of `found` x tile.kv keys; `seen` are the chunks' centre blocks."""

    w: AttentionWorkload
    hw: HardwareProfile
    tile: Tile
    found: int
    seen: KeyBlocks
    q: Tensor
    k: Tensor

    @property
    def grid(self) -> Grid:
        """A CTA a block of query rows of each head of each sequence."""
        return Grid(blocks(self.w.seq_q, self.tile.q), self.q.groups)

    @property
    def chunks(self) -> int:
        """Chunks of two keys that a query block keeps a round."""
        return max(1, self.found * KEYS // CHUNK_KEYS)

    @property
    def together(self) -> int:
        """Loads of KEYS keys that are scored at once: half as many until they fit SRAM."""
        together = gcd(PROGRAM_KEYS // KEYS, 2 * self.found)
        room = self.hw.sram.max_per_cta // (KEYS * self.w.head_dim * self.w.dtype_bytes)
        while together > max(1, room):
            together //= 2
        return together

    def table(self, name: str, element_bytes: int) -> Tensor:
        """A row of one element a chunk for each query block."""
        return Tensor(name, self.q.groups, self.grid.sides[0], self.chunks, element_bytes)

    def kernels(self) -> list[Kernel]:
        """All launches, in order."""
        indices, scores = self.table("chunks", INDEX_BYTES), self.table("scores", SCORE_BYTES)
        first = elementwise("initialise chunks", (), (in_order(indices, 1),), 0)
        return [
            first,
            self._score_first(scores),
            self._estimate(indices, scores),
            *self._ordered(indices, scores),
        ]

    @cached_property
    def _tiles(self) -> IntArray:
        """The tiles of KEYS keys at the chunks' centres; loads take views of it."""
        a_block = self.tile.kv // KEYS
        return self.seen.table * a_block + a_block // 2 if a_block > 1 else self.seen.table

    def _keys(self, tables: Sequence[IntArray], row: OfItem, start: OfItem) -> tuple[Load, ...]:
        """A load of each of these parts of the table of tiles.

        `row` is the block of query rows, of all matrices, of an item; `start` where it begins.
        """
        w, down = self.w, self.grid.sides[0]
        across = blocks(w.seq_kv, KEYS)

        def base(items: IntArray) -> IntArray:
            return kv_matrix(w, row(items) // down) * across

        return tuple(
            Load(Stream(self.k, KEYS, w.head_dim, base, table=tiles, start=start))
            for tiles in tables
        )

    def _load_q(self, programs: int = 1) -> Load:
        stride = min(ROW_STRIDE, self.tile.q // 16)
        rows = self.tile.q // max(1, stride)
        down, across = self.grid.sides[0], blocks(self.w.seq_q, rows)

        def tile_of(items: IntArray) -> IntArray:
            items = items // programs
            return items // down * across + items % down * max(1, stride)

        return Load(Stream(self.q, rows, self.w.head_dim, tile_of))

    def _score(self, loads: tuple[Load, ...], rows: int) -> Compute:
        """A program: the loads' keys by the query rows."""
        w, keys = self.w, KEYS * len(loads)
        flops = 2 * max(16, rows) * keys * w.head_dim
        counted = scoring(w.head_dim, rows).times(keys / PROGRAM_KEYS)
        return counted.compute("score chunks", loads, self.hw, self._resident, flops)

    @property
    def footprint(self) -> Footprint:
        """The keys of a program are in SRAM, the rest in registers."""
        a_key = self.w.head_dim * self.w.dtype_bytes
        return Footprint(self.together * KEYS * a_key, THREADS, registers.MOST)

    @property
    def _resident(self) -> int:
        return resident(self.footprint, self.grid.size, self.hw)

    def _score_first(self, scores: Tensor) -> Kernel:
        """Every second chunk of the first round stands for the chunks that it halves."""
        w, seen, down = self.w, self.seen, self.grid.sides[0]
        together = gcd(self.together, self.found)
        programs = self.found // together

        def row(items: IntArray) -> IntArray:
            return items // programs

        def searches(items: IntArray) -> IntArray:
            return np.minimum(seen.trips[row(items) % down], 1)

        def start(items: IntArray) -> IntArray:
            return seen.first[row(items) % down] // 2 + items % programs * together

        halved = self._tiles[::2]
        loads = self._keys([halved[nth:] for nth in range(together)], row, start)
        load_q = self._load_q(programs)
        written = Stream(scores, 1, max(1, self.chunks // programs), lambda items: items)
        return Kernel(
            name="score first chunks",
            ctas=programs * self.grid.size,
            periods=self.q.groups,
            sharing=w.heads // w.kv_heads,
            loops=(
                begin("Q", load_q, trips=searches, sram_bytes=load_q.stream.tile_bytes),
                Loop(searches, (*loads, self._score(loads, load_q.stream.tile_rows))),
                Loop(once, (Store(written),)),
            ),
            footprint=self.footprint,
            tensor_path="mma_sync",
        )

    def _estimate(self, indices: Tensor, scores: Tensor) -> Kernel:
        """The rounds: a trip scores a program's keys and has its share of the choice."""
        seen, grid, together = self.seen, self.grid, self.together
        programs = 2 * self.found // together  # a round

        def start(items: IntArray) -> IntArray:
            return seen.first[grid.at(items)[0]] // together

        parts = [self._tiles[nth::together] for nth in range(together)]
        loads = self._keys(parts, lambda items: items, start)
        load_q = self._load_q()
        score = self._score(loads, load_q.stream.tile_rows)
        a_part = choosing(2 * self.chunks).times(1 / programs)
        choose = a_part.compute("choose the best chunks", (), self.hw, self._resident)
        return Kernel(
            name="estimate mask",
            ctas=grid.size,
            periods=self.q.groups,
            sharing=self.w.heads // self.w.kv_heads,
            loops=(
                begin("Q", load_q, sram_bytes=load_q.stream.tile_bytes),
                Loop(
                    lambda items: seen.trips[grid.at(items)[0]] // together,
                    (*loads, score, choose),
                ),
                Loop(once, (Store(in_order(indices, 1)), Store(in_order(scores, 1)))),
            ),
            footprint=self.footprint,
            tensor_path="mma_sync",
        )

    def _ordered(self, indices: Tensor, scores: Tensor) -> list[Kernel]:
        """What PyTorch does then: indices to keys, sorted, and their scores in that order."""
        rows = rows_of(indices)
        moved = in_order(indices, rows)
        order = self.table("positions", POSITION_BYTES)
        positions = in_order(order, rows)
        kept = in_order(self.table("kept scores", SCORE_BYTES), rows)
        elements = rows * self.chunks
        return [
            elementwise("scale block numbers", (moved,), (moved,), elements),
            sort_kernel("sort blocks", indices, order),
            elementwise("order scores", (in_order(scores, rows), positions), (kept,), elements),
        ]
