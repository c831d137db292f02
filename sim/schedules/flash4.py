"""FlashAttention-4 on Blackwell, forward, and the kernels of others that are built alike.

    for two tiles of 128 query rows, side by side, each with a softmax warp group (a worker):
        load Q_i
        for each block of 128 keys that the mask shows, last to first:
            S = Q_i K_j^T                 (tcgen05, S, P and O stay in tensor memory)
            m = row maximum of S;  O_i is rescaled only where m has grown much
            P = exp(S - m), its sum
            O_i += P V_j                  (fa4: from three quarters of P on, trtllm-gen: a half)
        O_i = O_i / l_i;  store O_i through SRAM by TMA, and the log-sum-exp

P takes S's place in tensor memory, so a tile's next S follows its own P V: what overlaps is one
tile's softmax with the other's matmuls, and with the other's maxima, sums and masks. Each of the
four waits for the one before it by a barrier between warps, S's softmax for its load from tensor
memory too: `op_latency` of the device's calibration. One warp issues all matmuls, one all loads; a
correction warp group rescales O. `emulated` is the share of exponentials that are computed on the
FMA units instead, as 2^x by a polynomial of degree 3.

By `implementation` (parts/flash4_cta.py) tiles are dealt so:

    fa4          without a mask in turn to a CTA an SM, else a CTA a tile, the longest first
                 (SingleTileLPTScheduler)
    trtllm-gen   by cluster launch control (UGETNEXTWORKID in its machine code) in the order of the
                 grid: a head's blocks from the first, shortest one on, then head, then sequence
    cutlass      by a plan that is made before (plan.cuh, HostPrecomputedTileScheduler): head,
                 sequence, blocks from the last, longest one on, each to the CTA with least to do

Source: Dao-AILab/flash-attention, flash_attn/cute: flash_fwd_sm100.py (roles, tiles, buffers,
clusters, _TUNING_CONFIG), softmax.py (SoftmaxSm100, apply_exp2_convert), utils.py (ex2_emulation),
interface.py (pack_gqa, is_persistent), tile_scheduler.py. Paper: arXiv 2603.05451. Of trtllm-gen
the machine code in flashinfer-cubin 0.6.13: a softmax thread's 128 scores take 65 maxima of three,
64 packed FMAs, 128 exponentials, 64 conversions of two and 67 packed sums.

What differs: tensor memory has room and bandwidth enough; what of P V begins before all of P is
there is taken with the softmax from its first exponential on; fa4's and trtllm-gen's K and V have
rings of their own, where the kernels have one for both; of an odd number of blocks of query rows no
two CTAs of fa4 share keys, where the kernel adds an empty one; keys are not split for decoding; the
blocks that a mask cuts cost what they do in the mean over all trips; trtllm-gen, which goes through
the keys from the first on and stores O from registers, does neither here; matmuls of the kernel of
head_dim 256 and the softmax beside them are one step, as long as the slower of both. That one block
in ten rescales O is an estimate after fa4's authors' "avoid 90% of softmax rescaling"; trtllm-gen
does wherever a maximum of 32 rows has grown, beside the exponentials. Training
(parts/flash4_backward.py, of head_dim 256 parts/flash4_backward_256.py) packs no heads in forward
here; CUTLASS's fp8 is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import show_binary
from sim.inputs.workload import AttentionWorkload, Phase
from sim.schedules.base import QKVO, Schedule, check_arch, check_latest_keys
from sim.schedules.parts.dealing import (
    Dealt,
    dealt_by_plan,
    dealt_in_turn,
    dealt_on_demand,
    like_parts,
    ordered,
    section_of,
)
from sim.schedules.parts.ends import begin, finish
from sim.schedules.parts.flash2_backward import Saved
from sim.schedules.parts.flash4_backward import Flash4Backward
from sim.schedules.parts.flash4_backward_256 import Flash4Backward256
from sim.schedules.parts.flash4_cta import DEDICATED, Flash4Cta, Implementation
from sim.schedules.parts.instructions import TENSOR_MEMORY_WAITS
from sim.schedules.parts.query_rows import O_ELEMENT_BYTES, QueryRows
from sim.schedules.parts.traversal import Direction, GridOrder, KeyOrder, directions
from sim.tile_program import Compute, IntArray, Kernel, Load, Loop, Stream, Tensor

MOST_HEAD_DIM = 128
# Columns of K and of V beyond it (interface.py, _validate_head_dims; ...HQk192HV128...).
LARGER: dict[Implementation, tuple[tuple[int, int], ...]] = {
    "fa4": ((192, 128), (256, 256)),
    "trtllm-gen": ((192, 128),),
    "cutlass": (),
}
DTYPES: dict[Implementation, tuple[str, ...]] = {
    "fa4": ("fp16", "bf16", "fp8"),
    "trtllm-gen": ("fp16", "bf16", "fp8"),
    "cutlass": ("fp16", "bf16"),
}
L2_SECTION_BYTES = 50 * 2**20  # of K and V (SingleTileLPTScheduler)
# Of a score: scale and subtract (one FMA), sum; half a maximum of three in one, half a conversion.
FP32_OPS_A_SCORE, SCORES_A_MAXIMUM, SCORES_A_CONVERSION = 2, 2, 2
# Clamp, round down, subtract twice, three FMAs, shift and add of the exponent (ex2_emulation).
OPS_PER_EMULATED_EXP = 9
RESCALED_SHARE = 0.1


class Flash4(Schedule):
    """FlashAttention-4. `emulated`: the public kernel's share of exponentials unless given.

    `implementation` says whose kernel: its authors', TensorRT-LLM's or CUTLASS's. `grid_order` and
    `key_order` are the order of traversal (traversal.py); unless given, tiles come as it deals
    them, its authors' masked ones swizzled.
    """

    name: Literal["flash4"] = "flash4"
    implementation: Implementation = "fa4"
    emulated: Annotated[float, Field(ge=0, le=1)] | None = None
    grid_order: GridOrder | None = None
    key_order: KeyOrder = "descending"

    summary = "Blackwell: two tiles in turn, S and O in tensor memory, some exps emulated"
    source = "arXiv 2603.05451; Dao-AILab/flash-attention, flash_attn/cute/flash_fwd_sm100.py"
    phases: ClassVar[tuple[Phase, ...]] = ("prefill", "decode", "training")
    takes = frozenset({"append", "value_dim", "two sides"})

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        taken = DTYPES[self.implementation]
        if w.dtype not in taken:
            raise InputError(
                f'schedule flash4: workload.dtype = "{w.dtype}": implementation = '
                f'"{self.implementation}" takes {", ".join(taken)}'
            )
        if self.implementation != "fa4":
            check_latest_keys(f'schedule flash4: implementation = "{self.implementation}"', w)
        self._check_head_dims(w)
        if w.phase == "training":
            self._check_training(w)

    def _check_head_dims(self, w: AttentionWorkload) -> None:
        sides = (w.head_dim, w.value_columns)
        if max(sides) > MOST_HEAD_DIM and sides not in LARGER[self.implementation]:
            larger = "; fa4 and trtllm-gen 192 with value_dim = 128, fa4 256"
            raise InputError(
                f"schedule flash4: workload.head_dim = {w.head_dim}, V's {w.value_columns}: "
                f'implementation = "{self.implementation}" takes up to {MOST_HEAD_DIM}{larger}'
            )
        if w.head_dim == DEDICATED and (w.dtype == "fp8" or w.mask == "window"):
            key, given = ("dtype", w.dtype) if w.dtype == "fp8" else ("window", w.window)
            raise InputError(
                f"schedule flash4: workload.{key} = {given}: its kernel of head_dim = {DEDICATED} "
                "has 16 bits and no window"
            )

    def _check_training(self, w: AttentionWorkload) -> None:
        where = 'schedule flash4: workload.phase = "training": '
        if self.implementation != "fa4":
            raise InputError(f'{where}implementation = "fa4" alone has a backward pass here')
        if w.dtype == "fp8":
            raise InputError(f"{where}dtype = fp8: its backward pass has fp16 and bf16")

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel; in training those of backward after it."""
        check_arch(self.name, hw, "sm100")
        cta = Flash4Cta(w, self.implementation, hw.sram.max_per_cta)
        if cta.ring < 2:
            needed = cta.q_bytes + cta.o_bytes + cta.k_bytes + cta.v_bytes
            raise InputError(
                f"schedule flash4: Q, O and two blocks of keys need {show_binary(needed)} of SRAM, "
                f"{hw.name} has {show_binary(hw.sram.max_per_cta)} a CTA"
            )
        emulated = cta.emulated if self.emulated is None else self.emulated
        rows = _rows(cta)
        tensors = rows.tensors()
        forward = _forward_kernel(
            cta, rows, tensors, emulated, hw.sm.count, self.grid_order, self.key_order
        )
        if w.phase != "training":
            return [forward]
        (q, k, v, o), lse = tensors
        saved = Saved(q, k, v, o, lse)
        if cta.dedicated:
            every = np.arange(rows.down, dtype=np.int64)
            return [forward, *Flash4Backward256(w, saved, rows.key_blocks(every)).kernels()]
        return [forward, *Flash4Backward(w, saved, cta.head_dim, cta.value_dim).kernels()]


@dataclass(frozen=True)
class _PairedRows(QueryRows):
    """Two blocks of query rows in a row visit what either does: they are multiplied together."""

    @cached_property
    def visited(self) -> tuple[IntArray, IntArray]:
        """The first key block that each tile has and the end."""
        first, end = self._visited_of(self.w, 1)
        pairs = np.arange(self.down) // 2
        last = np.minimum(2 * pairs + 1, self.down - 1)
        return first[0][2 * pairs], end[0][last]


def _rows(cta: Flash4Cta) -> QueryRows:
    kind = _PairedRows if cta.dedicated else QueryRows
    return kind(cta.w, cta.tile, cta.packed)


@dataclass(frozen=True)
class _Dealing:
    """Which CTA works on which tile, and the like parts that the grid goes through."""

    dealt: Dealt
    periods: int


def _dealing(cta: Flash4Cta, rows: QueryRows, sms: int, grid_order: GridOrder | None) -> _Dealing:
    tiles, section = rows.grid.size, section_of(rows, L2_SECTION_BYTES)
    every, ctas = np.arange(tiles, dtype=np.int64), min(sms, tiles)
    masked = cta.of_authors and not cta.dedicated and cta.w.mask != "full"
    chosen = grid_order or ("swizzled" if masked else "head_slow")
    order, periods = ordered(rows, chosen, section), like_parts(rows, chosen, section)
    if cta.dedicated:  # a CTA each, in order
        return _Dealing(Dealt(tiles, order), periods)
    if cta.implementation == "trtllm-gen":
        ahead = cta.ring // 2
        dealt = dealt_on_demand(order, rows.key_blocks(every), ctas, ahead, early=True)
        return _Dealing(dealt, periods)
    if cta.implementation == "cutlass":
        if grid_order is None:
            block, matrix = rows.grid.at(every)
            order = np.lexsort((-block, matrix // cta.w.heads, matrix % cta.w.heads))
        return _Dealing(dealt_by_plan(order, rows.key_blocks(every), ctas), periods)
    dealt = Dealt(tiles, order) if masked else dealt_in_turn(tiles, ctas).in_order(order)
    return _Dealing(dealt, periods)


def _forward_kernel(
    cta: Flash4Cta,
    rows: QueryRows,
    tensors: tuple[QKVO, Tensor],
    emulated: float,
    sms: int,
    grid_order: GridOrder | None,
    key_order: KeyOrder,
) -> Kernel:
    """The kernel, with that share of exponentials on the FMA units."""
    dealing = _dealing(cta, rows, sms, grid_order)
    dealt = dealing.dealt
    ways = directions(key_order, lambda items: dealt.turn(items, sms))
    as_it_is = grid_order is None and len(ways) == 1
    return Kernel(
        name="flash4" if cta.of_authors else cta.implementation,
        ctas=dealt.ctas,
        loops=_loops(cta, rows, tensors, dealt, emulated, ways),
        footprint=cta.footprint,
        tensor_path="asynchronous",
        items_per_cta=dealt.items_per_cta,
        periods=dealing.periods if len(ways) == 1 else 1,
        sharing=rows.sharing if as_it_is else 1,
        in_waves=not as_it_is,
        sets_up_items=True,
        dealt_tiles=dealt.dealt_tiles,
    )


def _loops(
    cta: Flash4Cta,
    rows: QueryRows,
    tensors: tuple[QKVO, Tensor],
    dealt: Dealt,
    emulated: float,
    ways: Sequence[Direction],
) -> tuple[Loop, ...]:
    """Prologue, key blocks and epilogue of each item that has a tile."""
    tile = cta.tile
    (q, k, v, o), lse = tensors
    o_elements = tile.q * cta.value_dim
    masked_share = rows.cut_share(cta.code.least_masked)

    def rows_of(tensor: Tensor) -> Stream:
        return Stream(tensor, tile.q, tensor.cols, dealt.tile)

    def keys_of(tensor: Tensor, way: Direction) -> Stream:
        return rows.keys_of(tensor, dealt.tile, 0, cta.shared_by, way)

    def key_blocks(items: IntArray) -> IntArray:
        return dealt.has_tile(items) * rows.key_blocks(dealt.tile(items))

    def loop(way: Direction) -> Loop:
        # Of a ring of three K's block is asked for once the last V is free, V's a matmul earlier.
        load_k = Load(keys_of(k, way), cta.ring // 2)
        load_v = Load(keys_of(v, way), -(-cta.ring // 2))
        each = _of_a_key_block(cta, load_k, load_v, emulated, masked_share)
        return Loop(way.trips(key_blocks), (load_k, load_v, *each))

    has_tile, results = dealt.has_tile, (rows_of(o), rows_of(lse))
    return (
        begin("Q", Load(rows_of(q)), trips=has_tile),
        *map(loop, ways),
        finish(
            o_elements,
            *results,
            trips=has_tile,
            sram_bytes=2 * o_elements * O_ELEMENT_BYTES,
            other_ops=cta.code.out_ops * o_elements,
        ),
    )


def _of_a_key_block(
    cta: Flash4Cta, load_k: Load, load_v: Load, emulated: float, masked_share: float
) -> tuple[Compute, ...]:
    """S, its maxima, the softmax and P V, of which such shares are emulated and masked."""
    scores, o_elements = cta.tile.q * cta.tile.kv, cta.tile.q * cta.value_dim
    # A part of a key block is written once by TMA, then read by the matmul of each tile.
    k_read_bytes, v_read_bytes = (cta.workers * part for part in (cta.k_bytes, cta.v_bytes))
    emulations = round(emulated * scores)
    exps = scores - emulations + cta.tile.q
    multiply = Compute(
        "S = Q K^T",
        (load_k,),
        2 * scores * cta.head_dim,
        sram_bytes=cta.q_bytes + k_read_bytes,
    )
    maximum = Compute(
        "mask S, row maximum",
        other_ops=scores // SCORES_A_MAXIMUM + round(cta.code.mask_ops * masked_share * scores),
        latencies=1 + TENSOR_MEMORY_WAITS,
    )
    softmax = Compute(
        "softmax",
        vector_ops=FP32_OPS_A_SCORE * scores
        + OPS_PER_EMULATED_EXP * emulations
        + round(RESCALED_SHARE * o_elements),
        exp_count=exps,
        sram_bytes=cta.k_bytes + cta.v_bytes,
        other_ops=scores // SCORES_A_CONVERSION,
        exps_beside=exps,
    )
    add = Compute("O += P V", (load_v,), 2 * scores * cta.value_dim, sram_bytes=v_read_bytes)
    if cta.dedicated:
        return (_together("S = Q K^T, softmax, O += P V", (multiply, maximum, softmax, add)),)
    if cta.code.p_ahead:
        return (multiply, maximum, *_overlapped(softmax, add, cta.code.p_ahead))
    return (multiply, maximum, softmax, add)


def _overlapped(softmax: Compute, add: Compute, share: float) -> tuple[Compute, Compute]:
    """The softmax beside so much of P V, then the rest of that."""
    flops, sram_bytes = round(share * add.mma_flops), round(share * add.sram_bytes)
    begun = replace(
        softmax,
        name="softmax, O += P V",
        reads=add.reads,
        mma_flops=flops,
        sram_bytes=softmax.sram_bytes + sram_bytes,
    )
    rest = replace(add, mma_flops=add.mma_flops - flops, sram_bytes=add.sram_bytes - sram_bytes)
    return begun, rest


def _together(name: str, ops: Sequence[Compute]) -> Compute:
    """One step of them all: each has its own key block, next to the others'."""
    return Compute(
        name,
        tuple(load for op in ops for load in op.reads),
        sum(op.mma_flops for op in ops),
        sum(op.vector_ops for op in ops),
        sum(op.exp_count for op in ops),
        sum(op.sram_bytes for op in ops),
        sum(op.other_ops for op in ops),
        latencies=2,  # of the maximum, and of what depends on it
    )
