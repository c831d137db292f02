"""Results of parts made one.

for each tile of the result (one CTA):
    load the log-sum-exps of all parts, where a kernel has them before anything else
    for each of its parts:
        load what it adds: O_s and, unless it is there, log-sum-exp_s; or the gradient of a head
        O += exp(lse_s - lse) O_s
    store O and, where it is kept, the log-sum-exp
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import numpy as np

from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Kind,
    Load,
    Loop,
    OfItem,
    Store,
    Stream,
)


def fewest_filling(counts: Sequence[int], ctas: int, slots: int) -> int:
    """The least of these numbers of splits whose waves are 85% as full as the fullest, or more.

    `ctas` run without splits, `slots` at once. Source: Dao-AILab/flash-attention, csrc/flash_attn/
    flash_api.cpp and hopper/heuristics.h, num_splits_heuristic.
    """
    waves = {n: ctas * n / slots for n in counts}
    fullness = {n: waves[n] / ceil(waves[n]) for n in counts}
    return next(n for n in counts if fullness[n] >= 0.85 * max(fullness.values()))


def reduction(
    name: str,
    parts: OfItem,
    add: Compute,
    results: tuple[Stream, ...],
    footprint: Footprint,
    before: Compute | None = None,
) -> Kernel:
    """A CTA for each tile of the first result, with a trip for each of so many parts.

    `add` reads the loads of a part, in the order in which they are issued, `before` what is needed
    of all parts first. A CTA that has no parts stores nothing.
    """

    def has_parts(items: IntArray) -> IntArray:
        return np.minimum(parts(items), 1)

    result = results[0]
    first = (Loop(has_parts, (*before.reads, before)),) if before else ()
    return Kernel(
        name=name,
        ctas=result.tensor.groups * result.tiles_down * result.tiles_across,
        loops=(
            *first,
            Loop(parts, (*add.reads, add)),
            Loop(has_parts, tuple(map(Store, results))),
        ),
        footprint=footprint,
        periods=result.tensor.groups,
    )


def combine_kernel(
    name: str,
    parts: OfItem,
    loads: tuple[Load, ...],
    results: tuple[Stream, ...],
    footprint: Footprint,
    *,
    ops_per_element: int = 1,
    kind: Kind | None = None,
) -> Kernel:
    """Attention over parts of the keys made one: O of each, weighed by its log-sum-exp.

    `loads` bring a part's O and its log-sum-exp, in the order in which they are issued. `results`
    are O and, where it is kept, the log-sum-exp. An element takes `ops_per_element` a part.
    """
    o = results[0]
    weigh = Compute(
        "O += exp(lse_s - lse) O_s",
        loads,
        vector_ops=ops_per_element * o.tile_rows * o.tile_cols,
        exp_count=o.tile_rows,
    )
    return replace(reduction(name, parts, weigh, results, footprint), kind=kind)
