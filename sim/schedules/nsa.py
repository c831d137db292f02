"""NSA, native sparse attention: compressed, selected and near keys, attended apart and gated.

    "compress K", "compress V"
                       for each `compress_stride` keys (one CTA): pool `compress_block` rows
    "compressed attention"
                       O = 0; the flash loop over compressed keys, 128 x 128
    scores and choice  for each query: the first block, its own and the one before, and of the
                       others those of highest score, `top` in all       (parts/nsa_choice.py)
    "selected attention"
                       O = 0; for each query position, of each KV head (one CTA):
                           load the rows of all heads of the group
                           the flash loop over the position's blocks     (parts/nsa_positions.py)
    "window attention" FlashAttention-2 over the latest `keep_window` keys
    "gate"             O = sum of the three O, each times its gate

Decoding is the same with one query; compressed and window attention are then split-KV decoding, and
compression, due once in `compress_stride` tokens, is not counted.

Source: Yuan et al. 2025 (arXiv 2502.11089), section 3.3 and, for l = 32, d = 16, l' = 64, n = 16
(1 initial and 2 local blocks) and w = 512, section 4.1 (recalled, not re-read). `implementation`
"nsa_triton" has the kernels, tiles, warps and stages of XunhaoLai/native-sparse-attention-triton,
ops/triton (weighted_pool.py, compressed_attention.py, topk_sparse_attention.py, utils.py): its
weighted pool compresses, the paper an MLP; one kernel for the gate is an estimate (eager PyTorch:
five passes). "fla" has those of fla-org/native-sparse-attention (parts/fla_nsa.py), which make one
compressed key of each block.

Which blocks score high depends on data: here one of each of as many equal parts of the others,
drawn by `seed` for each query position, the same for all heads. Neighbours in a text agree more,
which L2 would see. With `fewest` a position attends to the first of its blocks, how many drawn
evenly from so many to `top`, as fla's benchmark has it.
"""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count, CountOrNone, whole
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import (
    Schedule,
    Tile,
    blocks,
    check_self_attention,
    check_table,
    check_triton_kernel,
    of_constant,
    visible_blocks,
)
from sim.schedules.flash_decoding import FlashDecoding
from sim.schedules.parts import fla_nsa, registers
from sim.schedules.parts.counted import resident
from sim.schedules.parts.eager import eager_pass
from sim.schedules.parts.elementwise import elementwise, in_order
from sim.schedules.parts.fla_nsa_backward import Backward, Branch
from sim.schedules.parts.flash_cta import triton_cta
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.nsa_choice import choice
from sim.schedules.parts.nsa_positions import (
    Positions,
    Visited,
    counted_trip,
    positions_attention,
)
from sim.schedules.parts.nsa_tensors import NsaTensors
from sim.schedules.parts.public_tiles import public_cta
from sim.schedules.parts.results import Attention
from sim.schedules.parts.split_kv import contiguous, split_attention
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
# Of a warp and trip beside the softmax's own, with wgmma or without: Triton 3.6 at head_dim 128 has
# 1,139 and 1,307 instructions that are neither matmuls nor their loads, where the rule for its
# dense kernels (parts/instructions.py) says 656: every score is masked by its key's position.
COMPRESSED_FIXED = {True: 763, False: 931}
POSITIONS_AT_ONCE = 65536  # whose choices are drawn
QUERIES_A_LOOP = 32768  # with more, a CTA takes several positions one after the other


class Nsa(Schedule):
    """Native sparse attention, forward; by implementation "fla" backward too.

    `compress_block` keys make a compressed one, every `compress_stride`: 32 and 16 unless given, by
    `implementation` "fla" always `block`. With `fused_window` its kernel of selected attention
    attends to the window too, as until March 2025.
    """

    name: Literal["nsa"] = "nsa"
    implementation: Literal["nsa_triton", "fla"] = "nsa_triton"
    compress_block: Count | None = None
    compress_stride: Count | None = None
    block: Annotated[int, Field(ge=16, multiple_of=16), whole(16, multiple_of=16)] = 64
    top: Annotated[int, Field(ge=FORCED), whole(FORCED)] = 16
    fewest: Count | None = None
    drawn: Literal["before", "anywhere"] = "before"
    keep_window: Count = 512
    fused_window: bool = False
    seed: CountOrNone = 0

    summary = "compressed, selected and near keys, attended apart and gated"
    source = "arXiv 2502.11089; XunhaoLai/native-sparse-attention-triton; fla-org"
    phases = ("prefill", "decode", "training")
    masks = ("causal",)

    @model_validator(mode="after")
    def _whole_strides(self) -> "Nsa":
        length, stride = self.pooled
        if self.implementation == "fla" and (length, stride) != (self.block, self.block):
            raise ValueError(
                f"compress_block = {length}, compress_stride = {stride}: fla's kernels compress "
                f"each block of {self.block} (`block`) to a key"
            )
        if self.fused_window and self.implementation != "fla":
            raise ValueError('fused_window: implementation = "fla" was expected, which had it')
        if length % stride or self.block % stride:
            raise ValueError(
                f"compress_stride = {stride}: a divisor of compress_block = {length} and of block "
                f"= {self.block} was expected"
            )
        if self.fewest and self.fewest > self.top:
            raise ValueError(f"fewest = {self.fewest}: at most top = {self.top} was expected")
        return self

    @property
    def pooled(self) -> tuple[int, int]:
        """Keys that make a compressed one, and from how many to how many."""
        ours = (self.block, self.block) if self.implementation == "fla" else (32, 16)
        return self.compress_block or ours[0], self.compress_stride or ours[1]

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        check_self_attention(self, w)
        check_triton_kernel(self, w)
        if w.phase == "training" and self.implementation != "fla":
            raise InputError(
                f'schedule nsa: implementation = "{self.implementation}": workload.phase = '
                '"training": "fla" was expected, whose backward pass it has'
            )
        if w.phase == "training" and self.fused_window:
            raise InputError(
                'schedule nsa: fused_window: workload.phase = "prefill" or "decode" was expected: '
                "of the backward pass with a window in its kernels nothing is here"
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The three branches, with compression and selection, and the gate."""
        of = NsaTensors(w, max(1, int(self.compressed_keys(np.array(w.seq_kv)))))
        compression = []
        if w.phase != "decode":
            compression = [self._compress(w, of.k, of.k_cmp), self._compress(w, of.v, of.v_cmp)]
        choices = blocks(w.seq_kv, self.block)
        top = min(self.top, choices)
        if self.implementation == "fla":
            position = np.arange(w.seq_kv - w.seq_q, w.seq_kv)
            whole = self.compressed_keys(position + 1)
            at_once = fla_nsa.at_once(of)
            steps = np.arange(blocks(of.k_cmp.rows, at_once))
            compressed = fla_nsa.compressed_attention(w, hw, of, whole)
            lse, own = compressed.result.lse, position // self.block
            chosen = [fla_nsa.choice_kernel(w, of, lse, own, top)]
            visited = self._visited(w)
            if self.fused_window:
                parts = visited, self._latest(position)
                selected, window = fla_nsa.both_attentions(w, hw, of, self.block, parts)
            else:
                selected = fla_nsa.selected_attention(w, hw, of, self.block, visited)
                window = self._window_attention(w, hw, of)
            results = [branch.result.o for branch in (selected, compressed, window)]
            gates = fla_nsa.gate_kernels(of, results)
            if w.phase == "training":
                seen = Visited(-(-whole // at_once), np.zeros_like(whole), steps)
                gates += Backward(w, hw, of, window.result, self._near(w), self.block).kernels(
                    Branch("selected", of.k, of.v, selected.result, visited, self.block),
                    Branch(
                        "compressed",
                        of.k_cmp,
                        of.v_cmp,
                        compressed.result,
                        seen,
                        at_once,
                        apart=at_once * self.block,
                    ),
                )
        else:
            compressed = self._compressed_attention(w, hw, of)
            keys_a_block = self.block // self.pooled[1]
            chosen = choice(w, hw, of, compressed.result.lse, keys_a_block, (choices, top))
            selected = self._selected_attention(w, hw, of)
            window = self._window_attention(w, hw, of)
            results = [branch.result.o for branch in (compressed, selected, window)]
            gates = [_gate_kernel(w, of, results)]
            if w.phase != "decode":
                compressed, selected = map(_cleared, (compressed, selected))
        return [
            *compression,
            *compressed.kernels,
            *chosen,
            *selected.kernels,
            *window.kernels,
            *gates,
        ]

    def compressed_keys(self, tokens: IntArray) -> IntArray:
        """How many compressed keys so many tokens make; of fewer than a block, none."""
        length, stride = self.pooled
        return np.maximum(0, (tokens - length) // stride + 1)

    def selected(self, first: int, positions: int) -> tuple[IntArray, IntArray]:
        """The blocks of so many positions from `first` on, ascending, and where each's begin."""
        own = np.arange(first, first + positions) // self.block
        starts = np.concatenate([[0], np.cumsum(np.minimum(self.top, own + 1))]).astype(np.int64)
        rng = np.random.default_rng(self.seed)
        parts = np.array_split(own, blocks(positions, POSITIONS_AT_ONCE))
        return np.concatenate([self._chosen(part, rng) for part in parts]), starts

    def _chosen(self, own: IntArray, rng: np.random.Generator) -> IntArray:
        """The blocks of positions in these blocks, one position's after the other."""
        own, number = own[:, None], np.arange(self.top)
        count = np.minimum(self.top, own + 1)
        drawn = np.maximum(1, count - FORCED)  # of the blocks 1 to own - 2
        others = np.maximum(1, own - 2)
        low, high = (1 + others * (number - 1 + end) // drawn for end in (0, 1))
        at_random = low + (rng.random(low.shape) * np.maximum(high - low, 1)).astype(np.int64)
        local = own - (count - 1 - number)
        chosen = np.where(number > count - FORCED, local, at_random)
        chosen[:, 0] = 0
        return chosen[number < count]

    def _compress(self, w: AttentionWorkload, source: Tensor, target: Tensor) -> Kernel:
        length, stride = self.pooled
        down = blocks(w.seq_kv, stride)
        grid = Grid(target.rows, target.groups)  # compressed keys, matrices

        def first_rows(items: IntArray) -> IntArray:
            row, matrix = grid.at(items)
            return matrix * down + row

        load = Load(Stream(source, stride, w.head_dim, first_rows, 1), stages=2)
        pool = Compute("add weighted rows", (load,), vector_ops=stride * w.head_dim)
        trips = min(down, length // stride)
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
        self, w: AttentionWorkload, hw: HardwareProfile, of: "NsaTensors"
    ) -> Attention:
        name = "compressed attention"
        if w.phase == "decode":
            return _decode(name, replace(w, seq_kv=of.k_cmp.rows), hw, (of.k_cmp, of.v_cmp))
        cta = replace(
            triton_cta(w, hw, FLASH_TILE, *_warps_stages(w, hw, FLASH_TILE.q)),
            fixed_instructions=COMPRESSED_FIXED[hw.matmul_by_warp_group],
        )
        last = np.minimum(np.arange(1, blocks(w.seq_q, cta.tile.q) + 1) * cta.tile.q, w.seq_q)
        end = -(-self.compressed_keys(last) // cta.tile.kv)
        return of.flash(name, w, cta, (of.k_cmp, of.v_cmp), (np.zeros_like(end), end))

    def _near(self, w: AttentionWorkload) -> AttentionWorkload:
        return replace(w, window=self.keep_window)

    def _window_attention(
        self, w: AttentionWorkload, hw: HardwareProfile, of: "NsaTensors"
    ) -> Attention:
        near = self._near(w)
        if w.phase == "decode":
            return _decode("window attention", near, hw, (of.k, of.v))
        cta = public_cta(near, hw, "cuda")
        visible = visible_blocks(near, cta.tile)
        return of.flash("window attention", near, cta, (of.k, of.v), visible)

    def _selected_attention(
        self, w: AttentionWorkload, hw: HardwareProfile, of: "NsaTensors"
    ) -> Attention:
        rows = of.group_rows
        at = Positions(w, w.seq_q // QUERIES_A_LOOP + 1)
        cta = triton_cta(w, hw, Tile(q=rows, kv=self.block), *_warps_stages(w, hw, self.block))
        cta = replace(cta, registers_per_thread=registers.SELECTED[hw.matmul_by_warp_group])
        cta = counted_trip(w, hw, cta, resident(cta.footprint(w), at.ctas, hw))
        visited = self._visited(w)
        return positions_attention("selected attention", of, cta, at, visited, (of.k, of.v))

    def _latest(self, position: IntArray) -> Visited:
        """The blocks of each position that its window takes, the latest last."""
        count = -(-np.minimum(position + 1, self.keep_window) // self.block)
        starts = np.cumsum(count) - count
        nth = np.arange(count.sum()) - np.repeat(starts, count)
        return Visited(count, starts, np.repeat(position // self.block - count + 1, count) + nth)

    def _visited(self, w: AttentionWorkload) -> Visited:
        """The blocks that each position attends to: all chosen, or the first of them."""
        check_table(self.name, w.seq_q * self.top)
        if self.drawn == "anywhere":
            return self._drawn_anywhere(w)
        chosen, starts = self.selected(w.seq_kv - w.seq_q, w.seq_q)
        count = np.diff(starts)
        if self.fewest:
            rng = np.random.default_rng(self.seed)
            count = np.minimum(count, rng.integers(self.fewest, self.top + 1, len(count)))
        return Visited(count, starts, chosen)

    def _drawn_anywhere(self, w: AttentionWorkload) -> Visited:
        """The first block and, of others drawn from all of the sequence, those before a position.

        So the benchmark of nsa_triton has it (test/test_topk_sparse_attention.py,
        generate_topk_idx_example).
        """
        own = np.arange(w.seq_kv - w.seq_q, w.seq_kv) // self.block
        choices = blocks(w.seq_kv, self.block)
        top = min(self.top, choices)
        rng = np.random.default_rng(self.seed)
        parts = (np.arange(top) + rng.random((len(own), top))) * choices / top  # ascending
        chosen = parts.astype(np.int64)
        chosen[:, 0] = 0
        there = chosen <= own[:, None]
        count = there.sum(1)
        return Visited(count, np.cumsum(count) - count, chosen[there])


def _warps_stages(w: AttentionWorkload, hw: HardwareProfile, block: int) -> tuple[int, int]:
    """Warps and stages of a kernel (ops/triton/utils.py, get_num_warps_stages)."""
    large = (w.head_dim > 64) + (block > 64)
    if not large:
        return 2, 2
    return (8 if large == 2 or not hw.matmul_by_warp_group else 4), 3


def _cleared(branch: Attention) -> Attention:
    """With what it writes set to zero before (torch.zeros_like)."""
    o = branch.result.o
    return replace(branch, kernels=[eager_pass(f"clear {o.name}", [], [o]), *branch.kernels])


def _decode(
    name: str, w: AttentionWorkload, hw: HardwareProfile, kv: tuple[Tensor, Tensor]
) -> Attention:
    """Split-KV decoding over K and V."""
    keys = FlashDecoding().split(w, hw, None)
    return split_attention(name, keys, keys.loop(keys.trips, *contiguous(keys, kv)))


def _gate_kernel(w: AttentionWorkload, of: NsaTensors, branches: list[Tensor]) -> Kernel:
    """A CTA a position and group of heads; a gate a branch, head and token."""
    gates = Tensor("gates", w.batch, w.seq_q, 3 * w.heads, w.dtype_bytes, "input")

    def of_group(tensor: Tensor) -> Stream:
        """Decoding's combine kernel lays heads out as rows."""
        by_row = tensor.cols == w.head_dim
        return in_order(tensor, of.group) if by_row else in_order(tensor, 1, width)

    width = of.group * w.head_dim
    reads = [*map(of_group, branches), in_order(gates, 1, 3 * of.group)]
    return elementwise("gate", reads, [of_group(of.o)], vector_ops=3 * width)
