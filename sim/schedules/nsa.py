"""NSA, native sparse attention: compressed, selected and near keys, attended apart and gated.

    "compress K", "compress V"
                       for each `compress_stride` keys (one CTA): pool `compress_block` rows
    "compressed attention"
                       the flash loop over compressed keys, 128 x 128
    "scores"           for each 128 queries and 128 compressed keys, of each KV head (one CTA):
                           S = sum over the heads of the group of exp(Q K^T - LSE), in fp32
    "block scores"     sum the scores of the compressed keys of each block of `block` keys
    "choose blocks"    for each query: the first, its own and the one before, and of the others
                       those of highest score, `top` in all
    "selected attention"
                       for each query position, of each KV head (one CTA):
                           load the rows of all heads of the group
                           the flash loop over the position's blocks
    "window attention" FlashAttention-2 over the latest `keep_window` keys
    "gate"             O = sum of the three O, each times its gate

Decoding is the same with one query; compressed and window attention are then split-KV decoding, and
compression, due once in `compress_stride` tokens, is not counted.

Source: Yuan et al. 2025 (arXiv 2502.11089), section 3.3 and, for l = 32, d = 16, l' = 64, n = 16
(1 initial and 2 local blocks) and w = 512, section 4.1 (recalled, not re-read). Kernels, tiles,
warps and stages: XunhaoLai/native-sparse-attention-triton, ops/triton/weighted_pool.py,
compressed_attention.py (which scores all blocks whatever the mask) and topk_sparse_attention.py;
fla-org/native-sparse-attention has a CTA a query position too. The paper compresses by an MLP; here
it is the first repository's weighted pool. Above 32,768 tokens that makes its scores head by head,
for memory; here always at once. One kernel for the gate is an estimate (eager PyTorch: five
passes).

Which blocks score high depends on data: here one of each of as many equal parts of the others,
drawn by `seed` for each query position, the same for all heads. Neighbours in a text agree more,
which L2 would see.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count, CountOrNone
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import (
    STATISTICS_BYTES,
    Schedule,
    Tile,
    blocks,
    check_self_attention,
    check_triton_kernel,
    kv_matrix,
    of_constant,
    visible_blocks,
)
from sim.schedules.flash_decoding import FlashDecoding
from sim.schedules.parts import registers
from sim.schedules.parts.elementwise import elementwise, in_order
from sim.schedules.parts.ends import begin, finish
from sim.schedules.parts.flash_cta import FlashCta, triton_cta
from sim.schedules.parts.flash_loop import Operand, QueryTiles, flash_kernel, key_loop
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.public_tiles import public_cta
from sim.schedules.parts.results import Attention, Result
from sim.schedules.parts.split_kv import contiguous, split_attention
from sim.schedules.parts.top_k import INDEX_BYTES, top_k_kernel
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

FORCED = 3  # the first block, a query's own and the one before
FLASH_TILE = Tile(q=128, kv=128)
BLOCK_SCORES_ROWS, BLOCK_SCORES_COLS = 8, 128
QUERIES_A_LOOP = 32768  # with more, a CTA takes several positions one after the other


class Nsa(Schedule):
    """Native sparse attention, forward."""

    name: Literal["nsa"] = "nsa"
    compress_block: Count = 32
    compress_stride: Count = 16
    block: Annotated[int, Field(ge=16, multiple_of=16)] = 64
    top: Annotated[int, Field(ge=FORCED)] = 16
    keep_window: Count = 512
    seed: CountOrNone = 0

    summary = "compressed, selected and near keys, attended apart and gated"
    source = "arXiv 2502.11089; XunhaoLai/native-sparse-attention-triton"
    masks = ("causal",)

    @model_validator(mode="after")
    def _whole_strides(self) -> "Nsa":
        if self.compress_block % self.compress_stride or self.block % self.compress_stride:
            raise ValueError(
                f"compress_stride = {self.compress_stride}: a divisor of compress_block = "
                f"{self.compress_block} and of block = {self.block} was expected"
            )
        return self

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        check_self_attention(self, w)
        check_triton_kernel(self, w)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The three branches, with compression and selection, and the gate."""
        of = _Tensors(w, max(1, int(self.compressed_keys(np.array(w.seq_kv)))))
        compression = []
        if w.phase != "decode":
            compression = [self._compress(w, of.k, of.k_cmp), self._compress(w, of.v, of.v_cmp)]
        compressed = self._compressed_attention(w, hw, of)
        selected = self._selected_attention(w, hw, of)
        window = self._window_attention(w, hw, of)
        scores = Tensor("scores", of.k.groups, w.seq_q, of.k_cmp.rows, STATISTICS_BYTES)
        choices = blocks(w.seq_kv, self.block)
        sums = Tensor("block scores", of.k.groups, w.seq_q, choices, STATISTICS_BYTES)
        found = Tensor("blocks chosen", of.k.groups, w.seq_q, min(self.top, choices), INDEX_BYTES)
        branches = [branch.result.o for branch in (compressed, selected, window)]
        return [
            *compression,
            *compressed.kernels,
            _scores_kernel(w, of, compressed.result.lse, scores),
            _block_scores_kernel(scores, sums, self.block // self.compress_stride),
            top_k_kernel("choose blocks", sums, found),
            *selected.kernels,
            *window.kernels,
            _gate_kernel(w, of, branches),
        ]

    def compressed_keys(self, tokens: IntArray) -> IntArray:
        """How many compressed keys so many tokens make; of fewer than a block, none."""
        return np.maximum(0, (tokens - self.compress_block) // self.compress_stride + 1)

    def selected(self, first: int, positions: int) -> tuple[IntArray, IntArray]:
        """The blocks of so many positions from `first` on, ascending, and where each's begin."""
        own = np.arange(first, first + positions) // self.block
        count = np.minimum(self.top, own + 1)
        starts = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        row = np.repeat(np.arange(positions), count)
        number = np.arange(starts[-1]) - starts[row]
        drawn = np.maximum(1, count - FORCED)[row]  # of the blocks 1 to own - 2
        others = np.maximum(1, own - 2)[row]
        low, high = (1 + others * (number - 1 + end) // drawn for end in (0, 1))
        at_random = np.random.default_rng(self.seed).integers(low, np.maximum(high, low + 1))
        local = own[row] - (count[row] - 1 - number)
        chosen = np.where(number > count[row] - FORCED, local, at_random)
        return np.where(number == 0, 0, chosen).astype(np.int64), starts

    def _compress(self, w: AttentionWorkload, source: Tensor, target: Tensor) -> Kernel:
        stride = self.compress_stride
        down = blocks(w.seq_kv, stride)
        grid = Grid(target.rows, target.groups)  # compressed keys, matrices

        def first_rows(items: IntArray) -> IntArray:
            row, matrix = grid.at(items)
            return matrix * down + row

        load = Load(Stream(source, stride, w.head_dim, first_rows, 1), stages=2)
        pool = Compute("add weighted rows", (load,), vector_ops=stride * w.head_dim)
        trips = min(down, self.compress_block // stride)
        return Kernel(
            name=f"compress {source.name}",
            ctas=grid.size,
            periods=target.groups,
            loops=(
                Loop(of_constant(trips), (load, pool)),
                Loop(once, (Store(in_order(target, 1)),)),
            ),
            footprint=Footprint(0, threads=128, registers_per_thread=registers.COMPRESS),
        )

    def _compressed_attention(
        self, w: AttentionWorkload, hw: HardwareProfile, of: "_Tensors"
    ) -> Attention:
        name = "compressed attention"
        if w.phase == "decode":
            return _decode(name, replace(w, seq_kv=of.k_cmp.rows), hw, (of.k_cmp, of.v_cmp))
        cta = triton_cta(w, hw, FLASH_TILE, warps=8 if w.head_dim > 64 else 4, stages=3)
        last = np.minimum(np.arange(1, blocks(w.seq_q, cta.tile.q) + 1) * cta.tile.q, w.seq_q)
        end = -(-self.compressed_keys(last) // cta.tile.kv)
        return of.flash(name, w, cta, (of.k_cmp, of.v_cmp), (np.zeros_like(end), end))

    def _window_attention(
        self, w: AttentionWorkload, hw: HardwareProfile, of: "_Tensors"
    ) -> Attention:
        near = replace(w, window=self.keep_window)
        if w.phase == "decode":
            return _decode("window attention", near, hw, (of.k, of.v))
        cta = public_cta(near, hw, "cuda")
        visible = visible_blocks(near, cta.tile)
        return of.flash("window attention", near, cta, (of.k, of.v), visible)

    def _selected_attention(
        self, w: AttentionWorkload, hw: HardwareProfile, of: "_Tensors"
    ) -> Attention:
        rows = of.group_rows
        warps = 8 if w.head_dim > 64 else 4
        cta = triton_cta(w, hw, Tile(q=rows, kv=self.block), warps, stages=3)
        at = _Positions(w, w.seq_q // QUERIES_A_LOOP + 1)
        chosen, starts = self.selected(w.seq_kv - w.seq_q, w.seq_q)
        across = blocks(w.seq_kv, self.block)

        def group_tile(items: IntArray) -> IntArray:
            return of.group_tile(at.matrix(items), at.position(items))

        def block_count(items: IntArray) -> IntArray:
            return at.exists(items) * np.diff(starts)[at.position(items)]

        def block_of(tensor: Tensor) -> Operand:
            stream = Stream(
                tensor,
                self.block,
                w.head_dim,
                lambda items: at.matrix(items) * across,
                table=chosen,
                start=lambda items: starts[at.position(items)],
            )
            return Operand((stream,))

        def of_group(tensor: Tensor) -> Stream:
            return Stream(tensor, 1, tensor.cols // w.kv_heads, group_tile)

        result = of.result("selected O", "selected LSE")
        q_bytes = rows * w.head_dim * w.dtype_bytes
        kernel = Kernel(
            name="selected attention",
            ctas=at.ctas,
            periods=at.periods,
            loops=(
                begin("Q", Load(of_group(of.q)), trips=at.exists, sram_bytes=q_bytes),
                key_loop(w, cta, block_count, q_bytes, block_of(of.k), block_of(of.v)),
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


@dataclass(frozen=True, eq=False)
class _Positions:
    """Grid of "selected attention": (sequences, KV heads, positions), of these `each` a CTA."""

    w: AttentionWorkload
    each: int

    @property
    def items(self) -> Grid:
        """(positions of a CTA, sequences, KV heads, CTAs that have all positions of a head)."""
        return Grid(self.each, self.w.batch, self.w.kv_heads, blocks(self.w.seq_q, self.each))

    @property
    def ctas(self) -> int:
        """How many CTAs there are."""
        return self.items.size // self.each

    @property
    def periods(self) -> int:
        """A single position is alike for all heads; of several the heads interleave."""
        return self.w.batch * self.w.kv_heads if self.w.seq_q == 1 else 1

    def _number(self, items: IntArray) -> IntArray:
        nth, _, _, cta = self.items.at(items)
        return cta * self.each + nth

    def exists(self, items: IntArray) -> IntArray:
        """1 where there is such a position: a CTA behind the others may have fewer."""
        return np.where(self._number(items) < self.w.seq_q, 1, 0)

    def position(self, items: IntArray) -> IntArray:
        """The query position of each item, the last one where there is none."""
        return np.minimum(self._number(items), self.w.seq_q - 1)

    def matrix(self, items: IntArray) -> IntArray:
        """The K/V matrix of each item."""
        _, sequence, head, _ = self.items.at(items)
        return sequence * self.w.kv_heads + head


class _Tensors:
    """What the kernels share: all heads of a token lie side by side in Q and O, K and V by head."""

    def __init__(self, w: AttentionWorkload, compressed: int) -> None:
        self.w, self.group = w, w.heads // w.kv_heads
        matrices, width = w.batch * w.kv_heads, w.heads * w.head_dim
        kept: Literal["input", "workspace"] = "input" if w.phase == "decode" else "workspace"
        self.q = Tensor("Q", w.batch, w.seq_q, width, w.dtype_bytes, "input", "query")
        shape = (matrices, w.seq_kv, w.head_dim)
        self.k = Tensor("K", *shape, w.dtype_bytes, "input", "key")
        self.v = Tensor("V", *shape, w.dtype_bytes, "input", "value")
        self.k_cmp, self.v_cmp = (
            replace(
                tensor,
                name=f"compressed {tensor.name}",
                rows=compressed,
                lifetime=kept,
                role="other",
            )
            for tensor in (self.k, self.v)
        )
        self.o = replace(self.q, name="O", lifetime="output", role="result")

    @property
    def group_rows(self) -> int:
        """Rows of a tile that holds the heads of a group: 16 or the next power of two."""
        return max(16, 1 << (self.group - 1).bit_length())

    @property
    def scores_tile(self) -> Tile:
        """Queries and compressed keys that a CTA scores; its rows for decoding are an estimate."""
        return Tile(q=self.group_rows if self.w.phase == "decode" else 128, kv=128)

    def group_tile(self, matrix: IntArray, position: IntArray) -> IntArray:
        """The tile of one position that the heads of a KV head's group share, in Q or an O."""
        w = self.w
        row = matrix // w.kv_heads * w.seq_q + position
        return row * w.kv_heads + matrix % w.kv_heads

    def head_tile(self, head: IntArray, block: IntArray, rows: int) -> IntArray:
        """The tile of a block of rows of one head of one sequence, in Q, an O or an LSE."""
        w = self.w
        row = head // w.heads * blocks(w.seq_q, rows) + block
        return row * w.heads + head % w.heads

    def result(self, o_name: str, lse_name: str) -> Result:
        """Room for what a branch of prefill finds, or the selected one of decoding."""
        return Result(
            replace(self.q, name=o_name, lifetime="workspace", role="partial"),
            Tensor(lse_name, self.w.batch, self.w.seq_q, self.w.heads, STATISTICS_BYTES),
        )

    def flash(
        self,
        name: str,
        w: AttentionWorkload,
        cta: FlashCta,
        kv: tuple[Tensor, Tensor],
        visible: tuple[IntArray, IntArray],
    ) -> Attention:
        """The flash loop over the key blocks from a first to an end, of each block of rows."""
        first, end = visible
        count: IntArray = np.maximum(0, end - first)
        rows, across = cta.tile.q, blocks(kv[0].rows, cta.tile.kv)
        grid = Grid(blocks(w.seq_q, rows), w.batch * w.heads)  # blocks of query rows, heads
        result = self.result(f"O of {name}", f"LSE of {name}")

        def q_tile(items: IntArray) -> IntArray:
            block, head = grid.at(items)
            return self.head_tile(head, block, rows)

        def of_head(tensor: Tensor) -> Stream:
            return Stream(tensor, rows, tensor.cols // w.heads, q_tile)

        def first_key_block(items: IntArray) -> IntArray:
            block, head = grid.at(items)
            return kv_matrix(w, head) * across + first[block]

        def trips(items: IntArray) -> IntArray:
            return count[grid.at(items)[0]]

        tiles = QueryTiles(
            ctas=grid.size,
            q=of_head(self.q),
            o=of_head(result.o),
            lse=of_head(result.lse),
            periods=w.batch * w.heads,
            sharing=self.group,
        )
        k, v = (
            Operand((Stream(tensor, cta.tile.kv, w.head_dim, first_key_block, 1),)) for tensor in kv
        )
        loop = key_loop(w, cta, trips, tiles.q.tile_bytes, k, v)
        return Attention([flash_kernel(name, w, cta, tiles, loop)], result)


def _decode(
    name: str, w: AttentionWorkload, hw: HardwareProfile, kv: tuple[Tensor, Tensor]
) -> Attention:
    """Split-KV decoding over K and V."""
    keys = FlashDecoding().split(w, hw, None)
    return split_attention(name, keys, keys.loop(keys.trips, *contiguous(keys, kv)))


def _scores_kernel(w: AttentionWorkload, of: _Tensors, lse: Tensor, scores: Tensor) -> Kernel:
    """A head a trip; decoding, the heads of the group are rows of one tile."""
    tile = of.scores_tile
    down, across = blocks(scores.rows, tile.q), blocks(scores.cols, tile.kv)
    # Matrices, blocks of query rows, blocks of compressed keys: parts of all matrices interleave.
    grid = Grid(of.k.groups, down, across)

    def k_tile(items: IntArray) -> IntArray:
        matrix, _, keys = grid.at(items)
        return matrix * across + keys

    def first_head(items: IntArray) -> IntArray:
        matrix, row, _ = grid.at(items)
        head = matrix // w.kv_heads * w.heads + matrix % w.kv_heads * of.group
        return of.head_tile(head, row, tile.q)

    def score_tile(items: IntArray) -> IntArray:
        matrix, row, keys = grid.at(items)
        return (matrix * down + row) * across + keys

    if w.phase == "decode":
        trips = 1
        q_stream = Stream(of.q, 1, of.group * w.head_dim, lambda items: grid.at(items)[0])
        lse_stream = Stream(lse, of.group, 1, lambda items: grid.at(items)[0])
    else:
        trips = of.group
        q_stream = Stream(of.q, tile.q, w.head_dim, first_head, 1)
        lse_stream = Stream(lse, tile.q, 1, first_head, 1)
    load_k = Load(Stream(of.k_cmp, tile.kv, w.head_dim, k_tile))
    load_q, load_lse = Load(q_stream), Load(lse_stream)
    elements = tile.q * tile.kv
    q_bytes, k_bytes = (side * w.head_dim * w.dtype_bytes for side in (tile.q, tile.kv))
    add = Compute(
        "S += exp(Q K^T - LSE)",
        (load_q, load_lse),
        mma_flops=2 * elements * w.head_dim,
        vector_ops=3 * elements,
        exp_count=elements,
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
        footprint=Footprint(k_bytes + q_bytes, 256, registers.GROUP_SCORES),
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
    add = Compute("add scores", (load,), vector_ops=2 * rows * cols * (keys_a_block + 1))
    return Kernel(
        name="block scores",
        ctas=grid.size,
        periods=sums.groups,
        loops=(
            Loop(scored, (load, add)),
            Loop(once, (Store(in_order(sums, rows, cols)),)),
        ),
        footprint=Footprint(0, threads=256, registers_per_thread=registers.COMPRESS),
    )


def _gate_kernel(w: AttentionWorkload, of: _Tensors, branches: list[Tensor]) -> Kernel:
    """A CTA a position and group of heads; a gate a branch, head and token."""
    gates = Tensor("gates", w.batch, w.seq_q, 3 * w.heads, w.dtype_bytes, "input")

    def of_group(tensor: Tensor) -> Stream:
        """Decoding's combine kernel lays heads out as rows."""
        by_row = tensor.cols == w.head_dim
        return in_order(tensor, of.group) if by_row else in_order(tensor, 1, width)

    width = of.group * w.head_dim
    reads = [*map(of_group, branches), in_order(gates, 1, 3 * of.group)]
    return elementwise("gate", reads, [of_group(of.o)], vector_ops=3 * width)
