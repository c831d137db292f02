"""The loop of TensorRT-LLM's kernels that come in slices (fmha_v2, granular tiling).

    for each block of keys (a trip):
        for each 64 columns of Q and K:  load both slices;  S += Q K^T of the slice
        m, P = online softmax of S;  O = rescale(O)
        for each few keys:               load their part of V;  O += P V of the part

Q comes anew for each block of keys, as its slices are not kept. Of two buffers one is filled while
the other is multiplied; the next trip's first slice comes beside the last part of V. Warps have 16
rows each and all of K and V, and meet before a slice is multiplied and after it.

Source: NVIDIA/TensorRT-LLM, cpp/kernels/fmha_v2/src/: fmha/traits.h (Traits_tile_size: slices of
64 columns; V in parts of 64 keys, of 32 beyond 128 columns, of 16 beyond 256, where a CTA has 256
of them: the columns of O of several CTAs), fused_multihead_flash_attention_kernel_noloop_tiled.h.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile
from sim.schedules.parts import registers
from sim.schedules.parts.instructions import FMHA_V2, LANES, OpsAScore, online_softmax
from sim.schedules.parts.operands import multiplied
from sim.tile_program import Barrier, Compute, Footprint, Load, Op

SLICE = 64  # columns of Q and K
MOST_COLUMNS = 256  # of O
BUFFERS = 2
WARPS = 4
# A warp's instructions of a slice of S and of a part of O beside HMMA and LDSM: addresses, copies,
# barriers. By machine code (FlashInfer's copy of these kernels as nvcc 13.0 compiles it for sm_80;
# sm_89's differs by a few), 576 x 512 with keys in pages and 192 x 128 with keys in rows.
PAGED_OPS, ROWS_OPS = (221, 108), (105, 60)


@dataclass(frozen=True)
class SlicedCta:
    """How a CTA works: its tile, columns of O, keys of a part of V, and operations of a score."""

    tile: Tile
    columns: int
    keys: int
    element_bytes: int
    paged: bool
    a_score: OpsAScore = FMHA_V2

    @staticmethod
    def of(w: AttentionWorkload, tile: Tile, value_columns: int, *, paged: bool) -> "SlicedCta":
        """Of so many columns of V."""
        keys = 64 if value_columns <= 128 else 32 if value_columns <= MOST_COLUMNS else 16
        return SlicedCta(tile, min(value_columns, MOST_COLUMNS), keys, w.dtype_bytes, paged)

    @property
    def parts(self) -> int:
        """Of a block of V."""
        return max(1, self.tile.kv // self.keys)

    def sram_bytes(self, tile: Tile) -> int:
        """Two buffers of a slice each of Q, K and V."""
        elements = (tile.q + tile.kv) * SLICE + min(self.keys, tile.kv) * self.columns
        return BUFFERS * elements * self.element_bytes

    @property
    def footprint(self) -> Footprint:
        """What a CTA takes of its SM."""
        return Footprint(self.sram_bytes(self.tile), 32 * WARPS, registers.FLASH_CUDA)

    def trip(
        self, slices: Sequence[tuple[Load, ...]], parts: Sequence[tuple[Load, ...]], width: int
    ) -> Iterator[Op]:
        """S of `width` columns slice after slice, its softmax, O part after part.

        The first slices have a buffer, the other loads are issued here.
        """
        tile, element = self.tile, self.element_bytes
        scores = tile.q * tile.kv
        q_bytes, k_bytes = (rows * SLICE * element for rows in (tile.q, tile.kv))
        v_bytes = min(self.keys, tile.kv) * self.columns * element
        s_flops, o_flops = 2 * scores * min(SLICE, width), 2 * scores * self.columns
        softmax = online_softmax(tile.q, tile.kv, self.columns, WARPS, 0, self.a_score)
        of_slice, of_part = PAGED_OPS if self.paged else ROWS_OPS
        of_q_and_k, written = q_bytes + WARPS * k_bytes, q_bytes + k_bytes
        following = iter([*slices[1:], *parts, ()])
        for reads in slices:
            yield Barrier(next(following))
            yield from multiplied(
                "S += Q K^T",
                reads,
                s_flops,
                of_q_and_k,
                SLICE,
                written_bytes=written,
                other_ops=of_slice * LANES * WARPS,
            )
        yield Compute(
            "softmax",
            vector_ops=softmax.fp32_ops,
            exp_count=softmax.exps,
            other_ops=softmax.other_ops,
        )
        flops = o_flops // len(parts)
        for reads in parts:
            yield Barrier(next(following))
            yield from multiplied(
                "O += P V",
                reads,
                flops,
                WARPS * v_bytes,
                self.keys,
                written_bytes=v_bytes,
                other_ops=of_part * LANES * WARPS,
            )
