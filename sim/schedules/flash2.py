"""FlashAttention-2, forward.

    for each block of tile.q query rows, of each head of each sequence (one CTA):
        load Q_i
        for each block of tile.kv keys that the mask shows, last to first:
            load K_j, V_j
            S = Q_i K_j^T;  m, P = online softmax of S;  O_i = rescale(O_i) + P V_j
        O_i = O_i / l_i;  store O_i and the log-sum-exp

Source: Dao 2023 (arXiv 2307.08691), Algorithm 1; tiles, grid order and loop order as in
Dao-AILab/flash-attention, csrc/flash_attn/src/flash_fwd_launch_template.h and flash_fwd_kernel.h.
Sequences of several lengths are flash_attn_varlen_func's (mha_varlen_fwd): see QueryBlocks.
What one step of the loop does is in parts/flash_loop.py, as many schedules have it; other orders of
CTAs and of keys are in parts/traversal.py; the backward pass of training is in
parts/flash2_backward.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.machine import ctas_per_sm
from sim.schedules.base import QKVO, blocks, check_latest_keys, qkvo
from sim.schedules.parts.flash2_backward import Saved, backward_kernels
from sim.schedules.parts.flash3_sm8x import check_sm8x, packed_attention, sm8x_cta
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import (
    Operand,
    QueryBlocks,
    flash_kernel,
    key_loop,
    log_sum_exp,
    query_blocks,
)
from sim.schedules.parts.flash_schedule import FlashSchedule, Implementation
from sim.schedules.parts.fmha_v2 import WIDTHS, comes_in_slices, sliced_attention
from sim.schedules.parts.mem_efficient import MOST_HEAD_DIM, mem_efficient_attention
from sim.schedules.parts.public_tiles import (
    cta_until_2_7_3,
    public_backward_cta,
    public_cta,
)
from sim.schedules.parts.results import Attention, Result
from sim.schedules.parts.scores import bias_matrix, bias_tensor
from sim.schedules.parts.sglang_extend import hidden_blocks, waiting
from sim.schedules.parts.traversal import (
    LAST_TO_FIRST,
    Direction,
    GridOrder,
    KeyOrder,
    check_one_length,
    directions,
)
from sim.tile_program import IntArray, Kernel, Kind, Loop, Stream, Tensor

OPTIONS_OF_A_LOOP = ("tile", "warps", "registers", "stages", "rope")


class Flash2(FlashSchedule):
    """FlashAttention-2. A tile, or warps, that are given hold for backward too.

    `grid_order` and `key_order` are the forward kernel's order of traversal (traversal.py).
    "sglang" is SGLang's prefill in Triton, which loads nothing ahead; "fa3" FlashAttention-3's
    library before Hopper (flash3_sm8x.py), "mem-efficient" PyTorch's memory-efficient kernel
    (mem_efficient.py), "trtllm" TensorRT-LLM's fmha_v2 before Hopper (fmha_v2.py): their tile,
    warps and order of traversal are their own, SGLang's order too. V has columns of its own in
    "sglang" and, 128 beside 192, in "trtllm"; FlashAttention-2's caller fills it up. `release`
    "2.7.3" is the last that has kernels of head_dim 160 and 224 too.
    """

    name: Literal["flash2"] = "flash2"
    implementation: Implementation = "cuda"  # type: ignore[assignment]
    grid_order: GridOrder = "head_slow"
    key_order: KeyOrder = "descending"
    release: Literal["2.7.3"] | None = None

    summary = "a CTA a block of query rows; O stays in registers"
    source = "arXiv 2307.08691; Dao-AILab/flash-attention, csrc/flash_attn"
    phases = ("prefill", "decode", "training")
    takes = frozenset({
        "dropout", "append", "lengths", "query lengths", "softcap", "alibi", "bias", "value_dim",
        "two sides",
    })  # fmt: skip

    @property
    def multiplies_fp8(self) -> bool:
        """TensorRT-LLM's does."""
        return self.implementation == "trtllm"

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        check_one_length(self.name, w, self.grid_order, self.key_order, own="head_slow")
        if w.softcap is not None and w.dropout:
            raise InputError(
                f"schedule flash2: workload.softcap = {w.softcap:g}: no dropout was expected"
            )
        if self.release and (self.implementation != "cuda" or w.phase == "training"):
            raise InputError(
                f'schedule flash2: release = "{self.release}": it is of the forward kernel of '
                'implementation = "cuda": none was expected'
            )
        if self.implementation in ("fa3", "mem-efficient", "trtllm"):
            self._check_of_its_own(w)
        if self.implementation not in ("cuda", "triton"):
            check_latest_keys(f'schedule flash2: implementation = "{self.implementation}"', w)
        if w.value_dim is not None:
            self._check_value_dim(w)
        if self.implementation == "sglang" and not self._is_usual:
            raise InputError(
                'schedule flash2: implementation = "sglang": it has its own grid_order and '
                "key_order: none was expected"
            )
        if self.compiled_by_triton and (w.dropout or w.phase == "training"):
            key = "dropout = true" if w.dropout else 'phase = "training"'
            raise InputError(
                f'schedule flash2: implementation = "{self.implementation}": workload.{key}: '
                '"cuda" was expected'
            )

    def narrows_v(self, w: AttentionWorkload) -> bool:
        """Whether V and O may have other columns than Q and K."""
        sides = (w.head_dim, w.value_dim)
        sliced = self.implementation == "trtllm" and sides == WIDTHS and w.lengths is None
        given = self.tile or self.warps or self.stages or self.rope or self.machine_code
        return (sliced or self.implementation == "sglang") and not given

    def _check_value_dim(self, w: AttentionWorkload) -> None:
        if not self.narrows_v(w):
            raise InputError(
                f'schedule flash2: implementation = "{self.implementation}": workload.value_dim = '
                f"{w.value_dim}: V as wide as K was expected, filled up by the caller; "
                'implementation = "sglang" takes others, "trtllm" 128 beside 192, by its own tile'
            )

    @property
    def _is_usual(self) -> bool:
        """Whether no order of traversal is given, or FlashAttention-2's."""
        return (self.grid_order, self.key_order) == ("head_slow", "descending")

    def _check_of_its_own(self, w: AttentionWorkload) -> None:
        where = f'schedule flash2: implementation = "{self.implementation}": '
        given = {key: getattr(self, key) for key in OPTIONS_OF_A_LOOP}
        own = [key for key, value in given.items() if value is not None]
        if self.machine_code or not self._is_usual:
            own.append("machine_code, grid_order and key_order")
        if own:
            raise InputError(f"{where}it has its own {', '.join(own)}: none was expected")
        any_of = self.implementation != "mem-efficient"
        for key, given_one, is_taken, expected in (
            ("dropout", w.dropout, not w.dropout, "none"),
            ("phase", w.phase, w.phase != "training", "prefill or decode"),
            (
                "head_dim",
                w.head_dim,
                any_of or w.head_dim <= MOST_HEAD_DIM,
                f"up to {MOST_HEAD_DIM}",
            ),
            ("window", w.window, any_of or w.window is None, "none"),
            ("lengths", "several", any_of or w.lengths is None, "sequences of one length"),
        ):
            if not is_taken:
                shown = f'"{given_one}"' if key == "phase" else given_one
                raise InputError(f"{where}workload.{key} = {shown}: {expected} was expected")

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel, a CTA a block of query rows; in training those of backward after it."""
        if self.implementation == "fa3":
            check_sm8x(self.name, hw)
            return [packed_attention(w, self.cta(sm8x_cta(w, hw), w, hw))]
        tensors = qkvo(w)
        forward = self.attention(w, hw, tensors)
        if w.phase != "training":
            return forward.kernels
        public = public_backward_cta(w, hw)
        tile = self.fit_tile(public.tile, public.sram_bytes(w), w, hw)
        cta = replace(public, tile=tile, warps=self.warps or public.warps)
        saved = Saved(*tensors, forward.result.lse)
        return [*forward.kernels, *backward_kernels(w, cta, saved)]

    def attention(self, w: AttentionWorkload, hw: HardwareProfile, tensors: QKVO) -> Attention:
        """The forward kernel on Q, K, V and O; raises InputError as `lower` does."""
        if self.implementation == "mem-efficient":
            return mem_efficient_attention(w, hw, tensors)
        if self.implementation == "trtllm" and comes_in_slices(w, hw):
            return sliced_attention(w, tensors)
        public = cta_until_2_7_3(w, hw) if self.release else public_cta(w, hw, self.implementation)
        cta = self.cta(public, w, hw)
        order, keys = self._traversal(w)
        hidden: tuple[Loop, ...] = ()
        grid = query_blocks(w, cta.tile, order, hw)
        if self.implementation == "sglang":
            cta = waiting(cta, w, hw)
            hidden = hidden_blocks(w, cta, grid, hw)

        def wave(items: IntArray) -> IntArray:
            return items // (hw.sm.count * ctas_per_sm(cta.footprint(w), hw))

        ways = directions(keys, wave)
        kind: Kind | None = "flash" if w.lengths is None else None
        return flash_attention("flash2", w, cta, tensors, kind, grid, ways, hidden)

    def _traversal(self, w: AttentionWorkload) -> tuple[GridOrder, KeyOrder]:
        """The kernel's own where it has one: SGLang's grid has blocks of rows slowest."""
        if self.implementation == "trtllm":
            return "head_slow", "ascending"
        if self.implementation == "sglang" and w.lengths is None:
            return "head_fast", "ascending"
        return self.grid_order, self.key_order


def flash_attention(
    name: str,
    w: AttentionWorkload,
    cta: FlashCta,
    tensors: QKVO,
    kind: Kind | None = None,
    grid: QueryBlocks | None = None,
    ways: Sequence[Direction] = (LAST_TO_FIRST,),
    before: Sequence[Loop] = (),
) -> Attention:
    """The forward kernel on Q, K, V and O, by that name; it makes the log-sum-exp.

    `grid` and `ways` are its order of traversal, FlashAttention-2's own unless given, `before` the
    loops that it runs before those over keys.
    """
    q, k, v, o = tensors
    lse = log_sum_exp(q)
    grid = grid or QueryBlocks(w, cta.tile)
    rows = grid.tiles(q, o, lse)
    added = bias_tensor(w) if w.bias else None

    def loop(way: Direction) -> Loop:
        begin = way.first_visited(*grid.shown)

        def keys(tensor: Tensor) -> Operand:
            return Operand((Stream(tensor, cta.tile.kv, tensor.cols, base, way.stride),))

        def of_bias(items: IntArray) -> IntArray:
            row, across = grid.row(items), blocks(w.seq_kv, cta.tile.kv)
            matrix = bias_matrix(w, grid.matrix(items))
            return (matrix * grid.down + row) * across + begin[row]

        def base(items: IntArray) -> IntArray:
            return grid.first_key_block(items) + begin[grid.row(items)]

        bias = Stream(added, cta.tile.q, cta.tile.kv, of_bias, way.stride) if added else None
        return key_loop(w, cta, way.trips(grid.trips), rows.q.tile_bytes, keys(k), keys(v), bias)

    kernel = flash_kernel(name, w, cta, rows, *before, *map(loop, ways))
    if len(ways) > 1:  # waves alternate, heads do not; and no launcher has such a kernel
        kernel, kind = replace(kernel, periods=1, sharing=1, in_waves=True), None
    return Attention([replace(kernel, kind=kind)], Result(o, lse))
