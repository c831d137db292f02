"""Split-KV's combine kernel: ranges of the keys made one.

    for each few rows of O (one CTA):
        load log-sum-exp_s of all ranges s;  lse of all,  w_s = exp(lse_s - lse)
        for each s:  load O_s;  O += w_s O_s
        store O and lse

O_s is fp32. Source: Dao-AILab/flash-attention, csrc/flash_attn: rows a CTA
(flash_fwd_launch_template.h, run_flash_splitkv_fwd), its order (flash_fwd_kernel.h,
combine_attn_seqk_parallel). One O_s is on its way at a time: the loads do not depend on each other,
but as compiled (the wheel of xformers 0.0.24, sm_90) each goes into the registers of the one
before, after it was added.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from sim.inputs.units import whole
from sim.schedules.base import STATISTICS_BYTES, blocks
from sim.schedules.parts import registers
from sim.schedules.parts.combine import reduction
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.flash_cta import compiled_head_dim
from sim.schedules.parts.results import Result
from sim.tile_program import Compute, Footprint, IntArray, Kernel, Load, Stream

MOST_SPLITS = 128
VECTOR_OPS_PER_WEIGHT = 4  # running maximum, difference, sum; difference from their log-sum-exp
Splits = Annotated[int, Field(ge=1, le=MOST_SPLITS), whole(1, MOST_SPLITS)]


@dataclass(frozen=True)
class CombineCta:
    """A CTA of a combine kernel: threads, and a tile of O that each reads 16 bytes of.

    Of so many ranges at a time O_s is on its way, of more than one to SRAM.
    """

    threads: int
    ranges_at_once: int


# csrc/flash_attn/src/flash_fwd_kernel.h, combine_attn_seqk_parallel: its loads do not depend on
# each other, but in machine code (nvcc 13.0, sm_90) each goes to the registers of the one before.
FLASH2_COMBINE = CombineCta(threads=128, ranges_at_once=1)
# hopper/flash_fwd_combine_launch_template.h, flash_fwd_combine_kernel.h (kStages).
FLASH3_COMBINE = CombineCta(threads=256, ranges_at_once=4)


def combine_of_splits(
    parts: Result,
    whole: Result,
    each: IntArray | None = None,
    cta: CombineCta = FLASH2_COMBINE,
) -> Kernel:
    """The combine kernel; of each range O lies like the whole, of each row all log-sum-exps.

    `each` is how many ranges each matrix is in, where they differ: a CTA of one that is whole ends
    at once (flash_fwd_combine_kernel.h, num_splits_dynamic_ptr). 4, 8 or 16 rows a CTA of 128
    threads, by head_dim (run_flash_splitkv_fwd).
    """
    splits, head_dim = parts.lse.rows, compiled_head_dim(whole.o.cols)
    rows = (4 if head_dim % 128 == 0 else 8 if head_dim % 64 == 0 else 16) * cta.threads // 128
    weights, tiles = splits * rows, whole.o.groups * blocks(whole.o.rows, rows)
    weigh = Compute(
        "w_s = exp(lse_s - lse)",
        (Load(Stream(parts.lse, splits, rows, lambda items: items)),),
        vector_ops=VECTOR_OPS_PER_WEIGHT * weights,
        exp_count=2 * weights,  # for their sum, then for the weights
        sram_bytes=3 * STATISTICS_BYTES * weights,  # they come in, are transposed, go back
    )
    at_once = cta.ranges_at_once
    o = Load(Stream(parts.o, rows, head_dim, lambda items: items, stride=tiles), at_once)
    o_bytes = rows * head_dim * STATISTICS_BYTES if at_once > 1 else 0  # in SRAM, of a range
    add = Compute("O += w_s O_s", (o,), vector_ops=rows * head_dim, sram_bytes=2 * o_bytes)
    down = blocks(whole.o.rows, rows)

    def several(items: IntArray) -> IntArray:
        """Ranges of each CTA's matrix."""
        if each is None:
            return np.full_like(items, splits)
        matrix, row = items // down, items % down
        there = (
            row * rows < np.array([whole.o.size_of(n)[0] for n in range(whole.o.groups)])[matrix]
        )
        return np.where(there & (each[matrix] > 1), each[matrix], 0)

    kernel = reduction(
        "combine",
        several,
        add,
        (in_order(whole.o, rows), in_order(whole.lse, rows)),
        Footprint(
            rows * STATISTICS_BYTES * MOST_SPLITS + at_once * o_bytes,
            threads=cta.threads,
            registers_per_thread=registers.COMBINE,
        ),
        before=weigh,
    )
    if each is not None:
        kernel = replace(kernel, periods=1, irregular=True)
    return replace(kernel, kind="combine")
