"""How NSA chooses blocks: scores of all heads of a group, summed by block, the best of each query.

    "clear block scores"
    "scores"           for each 128 queries and 128 compressed keys, of each KV head (one CTA):
                           S = sum over the heads of the group of exp(Q K^T - LSE), in fp32
    "block scores"     sum the scores of the compressed keys of each block of keys
    "choose blocks"    PyTorch's topk of each query's row; then these in order of scores, in order
                       of blocks, those beyond the query masked, as int32

Source: XunhaoLai/native-sparse-attention-triton, ops/triton/compressed_attention.py
(compressed_attention: above PARALLEL_TOKENS one KV head after the other; all blocks are scored
whatever the mask). Work is what Triton 3.6 compiles these kernels to at head_dim 128, groups of 16:
of a warp and head of the group "scores" has 229 instructions beside matmuls, FMAs and exponentials
on sm_90, 273 on sm_80; "block scores" has 848 to 880 a warp, and no loop.
"""

from dataclasses import dataclass

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, blocks, of_constant
from sim.schedules.parts import registers
from sim.schedules.parts.eager import eager_pass
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.ends import begin
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.nsa_tensors import NsaTensors
from sim.schedules.parts.row_select import row_select_kernels
from sim.schedules.parts.top_k import INDEX_BYTES, sort_kernel
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
    like,
    once,
)

PARALLEL_TOKENS = 32768
BLOCK_SCORES_ROWS, BLOCK_SCORES_COLS = 8, 128
BLOCK_SCORES_INSTRUCTIONS = 864
SCORE_INSTRUCTIONS = {True: 229, False: 273}  # of a thread, with wgmma or without
POSITION_BYTES = 8  # of torch.topk's int64
THREADS = 256
SCORE_STAGES = 3  # of Q in "scores"; one fewer where they do not fit


@dataclass(frozen=True)
class Matrices:
    """The KV heads of sequences that a launch scores: `count` of them, `step` apart."""

    count: int
    first: int = 0
    step: int = 1

    def number(self, nth: IntArray) -> IntArray:
        """Of all KV heads of all sequences, which the launch's n-th is."""
        return self.first + nth * self.step


def choice(
    w: AttentionWorkload,
    hw: HardwareProfile,
    of: NsaTensors,
    lse: Tensor,
    keys_a_block: int,
    blocks_of: tuple[int, int],
) -> list[Kernel]:
    """All launches: how many blocks there are and are chosen, each of so many compressed keys."""
    parts = [Matrices(of.k.groups)]
    if w.batch * w.seq_q > PARALLEL_TOKENS:
        parts = [Matrices(w.batch, head, w.kv_heads) for head in range(w.kv_heads)]
    count = parts[0].count
    choices, top = blocks_of
    scores = Tensor("scores", count, w.seq_q, of.k_cmp.rows, STATISTICS_BYTES)
    sums = Tensor("block scores", count, w.seq_q, choices, STATISTICS_BYTES)
    found = Tensor("positions chosen", count, w.seq_q, top, POSITION_BYTES)
    chosen = Tensor("blocks chosen", count, w.seq_q, top, INDEX_BYTES)
    # These touch nothing but what the parts have in common.
    after_scores = [
        eager_pass("clear block scores", [], [sums]),
        _block_scores_kernel(scores, sums, keys_a_block),
        *row_select_kernels("choose blocks", hw, sums, found),
        sort_kernel("choose blocks: in order", found),
        eager_pass("blocks beyond the query", [found], [found]),
        eager_pass("mask blocks", [found], [found]),
        eager_pass("blocks to int32", [found], [chosen]),
    ]
    scored = [_scores_kernel(w, hw, of, part, lse, scores) for part in parts]
    return [kernel for one in scored for kernel in (like(scored[0], one), *after_scores)]


def _scores_kernel(
    w: AttentionWorkload,
    hw: HardwareProfile,
    of: NsaTensors,
    part: Matrices,
    lse: Tensor,
    scores: Tensor,
) -> Kernel:
    """A head a trip; decoding, the heads of the group are rows of one tile."""
    tile = of.scores_tile
    down, across = blocks(scores.rows, tile.q), blocks(scores.cols, tile.kv)
    # Matrices, blocks of query rows, blocks of compressed keys: parts of all matrices interleave.
    grid = Grid(part.count, down, across)

    def k_tile(items: IntArray) -> IntArray:
        nth, _, keys = grid.at(items)
        return part.number(nth) * across + keys

    def first_head(items: IntArray) -> IntArray:
        nth, row, _ = grid.at(items)
        matrix = part.number(nth)
        head = matrix // w.kv_heads * w.heads + matrix % w.kv_heads * of.group
        return of.head_tile(head, row, tile.q)

    def score_tile(items: IntArray) -> IntArray:
        nth, row, keys = grid.at(items)
        return (nth * down + row) * across + keys

    def group_of_heads(items: IntArray) -> IntArray:
        return part.number(grid.at(items)[0])

    if w.phase == "decode":
        trips = 1
        q_stream = Stream(of.q, 1, of.group * w.head_dim, group_of_heads)
        lse_stream = Stream(lse, of.group, 1, group_of_heads)
    else:
        trips = of.group
        q_stream = Stream(of.q, tile.q, w.head_dim, first_head, 1)
        lse_stream = Stream(lse, tile.q, 1, first_head, 1)
    load_k = Load(Stream(of.k_cmp, tile.kv, w.head_dim, k_tile))
    stages = SCORE_STAGES if hw.matmul_by_warp_group else SCORE_STAGES - 1
    load_q, load_lse = Load(q_stream, stages), Load(lse_stream, stages)
    elements = tile.q * tile.kv
    q_bytes, k_bytes = (side * w.head_dim * w.dtype_bytes for side in (tile.q, tile.kv))
    add = Compute(
        "S += exp(Q K^T - LSE)",
        (load_q, load_lse),
        mma_flops=2 * elements * w.head_dim,
        vector_ops=3 * elements,
        exp_count=elements,
        other_ops=THREADS * SCORE_INSTRUCTIONS[hw.matmul_by_warp_group] * elements // 128**2,
        sram_bytes=2 * q_bytes + k_bytes,
    )
    return Kernel(
        name="scores",
        ctas=grid.size,
        loops=(
            begin("K", load_k, sram_bytes=k_bytes),
            Loop(of_constant(trips), (load_q, load_lse, add)),
            Loop(once, (Store(Stream(scores, tile.q, tile.kv, score_tile)),)),
        ),
        footprint=Footprint(k_bytes + stages * q_bytes, THREADS, registers.GROUP_SCORES),
        tensor_path="native" if tile.q >= 64 else "mma_sync",
    )


def _block_scores_kernel(scores: Tensor, sums: Tensor, keys_a_block: int) -> Kernel:
    """Those compressed keys that reach over a CTA's last block are not read twice here."""
    rows, cols = BLOCK_SCORES_ROWS, BLOCK_SCORES_COLS
    down, across = blocks(sums.rows, rows), blocks(sums.cols, cols)
    loaded = blocks(scores.cols, cols * keys_a_block)
    grid = Grid(across, down * sums.groups)  # groups of blocks, query rows of all matrices

    def scored(items: IntArray) -> IntArray:
        return np.where(grid.at(items)[0] < loaded, 1, 0)

    def score_tile(items: IntArray) -> IntArray:
        column, row = grid.at(items)
        return row * loaded + column

    load = Load(Stream(scores, rows, cols * keys_a_block, score_tile))
    work = THREADS * BLOCK_SCORES_INSTRUCTIONS
    add = Compute("add scores", (load,), other_ops=work)
    return Kernel(
        name="block scores",
        ctas=grid.size,
        periods=sums.groups,
        loops=(
            Loop(scored, (load, add)),
            Loop(once, (Store(in_order(sums, rows, cols)),)),
        ),
        footprint=Footprint(0, THREADS, registers.BLOCK_SCORES),
    )
