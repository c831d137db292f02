"""The kernels of FlashAttention-3's kind: the persistent one, and the one of ranges of the keys.

Source: Dao-AILab/flash-attention, hopper/tile_scheduler.hpp, flash_prepare_scheduler.cu,
flash_api.cpp (mha_fwd: combine, and the counter where metadata was made before the call).
"""

from dataclasses import replace

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.parts.combine_splits import FLASH3_COMBINE, combine_of_splits
from sim.schedules.parts.dealing import (
    Dealt,
    by_sequence,
    dealt_in_turn,
    dealt_on_demand,
    like_parts,
    like_sections,
    ordered,
    section_of,
    varlen_section,
)
from sim.schedules.parts.elementwise import elementwise, in_order
from sim.schedules.parts.flash3_cta import STAGES, Flash3Cta
from sim.schedules.parts.flash3_loops import Work, loops
from sim.schedules.parts.query_rows import QueryRows
from sim.schedules.parts.results import Result
from sim.schedules.parts.traversal import GridOrder, KeyOrder, directions
from sim.tile_program import IntArray, Kernel, Tensor

COUNTER_BYTES = 4
FMHA_V2_L2_BYTES = 50 * 2**20  # that a Hopper states as its L2's
L2_SECTION_BYTES = 32 * 2**20  # of K and V (tile_scheduler.hpp, DynamicPersistentTileScheduler)


def forward_kernel(
    cta: Flash3Cta,
    rows: QueryRows,
    sms: int,
    grid_order: GridOrder | None = None,
    key_order: KeyOrder = "descending",
) -> Kernel:
    """The persistent kernel: masked tiles longest first on demand, others in turn."""
    periods, sharing = rows.matrices, rows.sharing
    every, section = np.arange(rows.grid.size, dtype=np.int64), _section(cta, rows)
    if grid_order:
        order, parts = ordered(rows, grid_order, section), like_parts(rows, grid_order, section)
    else:
        order, parts = _own_order(cta, rows)
    if cta.of_one_length and cta.w.mask == "full":
        dealt = dealt_in_turn(rows.grid.size, min(sms, rows.grid.size)).in_order(order)
    else:
        dealt = dealt_on_demand(order, rows.key_blocks(every), min(sms, len(order)), STAGES)
        if dealt.items_per_cta == 1:  # else long and short tiles of all heads are dealt in turn
            periods, sharing = parts, 1
    if grid_order:
        periods, sharing = parts, 1
    ways = directions(key_order, lambda items: dealt.turn(items, sms))
    if len(ways) > 1:
        periods, sharing = 1, 1
    work = Work(cta, rows, dealt)
    kernel = _kernel([work.going(way) for way in ways], periods, sharing)
    return replace(kernel, in_waves=grid_order == "head_fast" or len(ways) > 1)


def _own_order(cta: Flash3Cta, rows: QueryRows) -> tuple[IntArray, int]:
    """All tiles as the kernel's scheduler takes them, and the like parts that they fall into."""
    section, among = _section(cta, rows), rows.matrices
    if cta.implementation == "trtllm" and not _is_balanced(cta.w):
        return ordered(rows, "head_slow", section), among
    order = ordered(rows, "swizzled" if cta.w.mask in cta.sorted_masks else "head_slow", section)
    if not cta.of_one_length and cta.implementation != "trtllm":
        order, among = by_sequence(rows), rows.of_a_sequence
    return order, like_sections(rows, section, among)


def _is_balanced(w: AttentionWorkload) -> bool:
    """Whether TensorRT-LLM's causal tiles come longest first: where K and V fit L2.

    They count as a copy for every query head, as wide as K (fused_multihead_attention_v2.cpp,
    use_balanced_scheduling).
    """
    held = 2 * w.batch * w.heads * w.seq_kv * w.head_dim * w.dtype_bytes
    return w.mask == "causal" and held <= FMHA_V2_L2_BYTES


def _section(cta: Flash3Cta, rows: QueryRows) -> int:
    """Matrices whose longest tiles go before all shorter ones; with varlen of one sequence."""
    if cta.implementation == "trtllm":
        return rows.matrices
    if cta.of_one_length:
        return section_of(rows, L2_SECTION_BYTES)
    return varlen_section(rows, cta.w.seq_kv)


def split_kernels(cta: Flash3Cta, splits: tuple[int, ...]) -> list[Kernel]:
    """The kernel over all ranges, a CTA each, and combine."""
    rows = QueryRows(cta.w, cta.tile, cta.packed, splits, cta.from_first_key)
    order = np.arange(rows.grid.size) if rows.are_alike else by_sequence(rows)
    work = Work(cta, rows, Dealt(len(order), order))
    whole = Result(work.tensors.o, work.lse)
    each = None if rows.are_alike else np.array(splits).repeat(rows.of_a_sequence)
    kernel = _kernel([work], rows.matrices, rows.sharing)
    return [kernel, combine_of_splits(work.partial, whole, each, FLASH3_COMBINE)]


def combine_of_none(cta: Flash3Cta, forward: Kernel) -> Kernel:
    """Combine behind a kernel of which no sequence is split: each of its CTAs ends at once."""
    rows = QueryRows(cta.w, cta.tile, cta.packed)
    by_role = {tensor.role: tensor for tensor in forward.tensors}
    each = np.ones(rows.matrices, np.int64)
    whole = Result(by_role["result"], by_role["statistics"])
    return combine_of_splits(rows.partial(), whole, each, FLASH3_COMBINE)


def counter_set_to_zero() -> Kernel:
    """What PyTorch sets the scheduler's counter back with."""
    counter = Tensor("tiles taken", 1, 1, 1, COUNTER_BYTES)
    return elementwise("zero", (), (in_order(counter, 1),), vector_ops=0)


def _kernel(works: list[Work], periods: int, sharing: int) -> Kernel:
    """The kernel of the loops of each way through the keys."""
    work = works[0]
    return Kernel(
        name="flash3",
        ctas=work.dealt.ctas,
        loops=tuple(loop for one in works for loop in loops(one)),
        footprint=work.cta.footprint,
        tensor_path="waited" if work.cta.adds_apart else "asynchronous",
        items_per_cta=work.dealt.items_per_cta,
        periods=periods if work.rows.are_alike else 1,
        sharing=sharing if work.rows.are_alike else 1,
        irregular=not work.rows.are_alike,
        sets_up_items=not work.cta.of_one_length,
        splits=work.rows.splits,
        dealt_tiles=work.dealt.dealt_tiles,
    )
