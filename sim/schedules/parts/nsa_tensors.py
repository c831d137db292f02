"""What NSA's kernels share: Q and O with all heads of a token side by side, K and V by head.

Source: XunhaoLai/native-sparse-attention-triton and fla-org/native-sparse-attention, whose
tensors are of (tokens, heads, head_dim).
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, Tile, blocks, kv_matrix
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import Operand, QueryTiles, flash_kernel, key_loop
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.results import Attention, Result
from sim.tile_program import IntArray, Stream, Tensor


class NsaTensors:
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
