"""Which kernels of a program are replayed whole, which are told by a part, and what that costs.

A replay's time goes to what workers execute in tile steps and to the chunks of L2 that they touch.
Kernels that are replayed whole share one L2, so where one of them reads by rows what another writes
in square tiles, both touch many small chunks a step. A kernel told by a part has an L2, and chunks,
of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Chunking, Kernel, Loop, Stream, Tensor, chunk_tensors

LONG = 2.0  # times the tile steps that are replayed in part: cheaper kernels are replayed whole
FEW_TRIPS = 16  # of an item
FEWER = 6  # times fewer steps tell as much of a pass whose items have the same few trips
MANY_FILLINGS = 16  # of L2
STEPS_A_CTA = 8  # that placing it, its setup and its end take as long as
ACTIONS_A_STEP = 4  # that a step of a flash loop takes: two matmuls, a softmax and a wait
LOADS_A_STEP = 2  # K and V: each tile more takes as long as a step


def replay_cost(kernel: Kernel, chunkings: Mapping[Tensor, Chunking]) -> int:
    """What replaying all of it takes, in steps of a flash loop whose tiles are one chunk each.

    Each chunk beyond a tile's first counts as one such step: of naive attention, where nearly all
    time goes to touches that evict, the two take about as long.
    """
    workers = kernel.footprint.workers
    return kernel.ctas * STEPS_A_CTA + sum(
        trips * (_steps_of(loop, workers) + _chunks_beyond(loop, chunkings))
        for loop, trips in zip(kernel.loops, kernel.loop_trips, strict=True)
    )


def own_cost(kernel: Kernel) -> int:
    """`replay_cost` in an L2 of its own."""
    return replay_cost(kernel, chunk_tensors([kernel]))


def _steps_of(loop: Loop, workers: int) -> int:
    """As many steps of a flash loop have as much to execute and to load as a trip."""
    executed = max(1, len(loop.actions) * workers // ACTIONS_A_STEP)
    return executed + max(0, len(loop.loads) - LOADS_A_STEP)


def _chunks_beyond(loop: Loop, chunkings: Mapping[Tensor, Chunking]) -> int:
    """Chunks that a trip touches beyond one a tile."""
    return sum(_chunks_of(stream, chunkings[stream.tensor]) - 1 for stream in loop.streams)


def _chunks_of(stream: Stream, chunking: Chunking) -> int:
    """Chunks of a tile that no edge cuts."""
    rows = min(stream.tile_rows, stream.tensor.rows)
    cols = min(stream.tile_cols, stream.tensor.cols)
    return -(-rows // chunking.rows) * -(-cols // chunking.cols)


@dataclass(frozen=True)
class Choice:
    """What is replayed of a program's kernels.

    `in_part` are those told by a part, with about what that costs at most; `cost` is what each
    one's replay takes, as `replay_cost` counts it; `chunkings` are the L2's of those that are
    replayed whole. More than `most` are too many to replay.
    """

    most: float
    in_part: dict[Kernel, int]
    cost: dict[Kernel, int]
    chunkings: dict[Tensor, Chunking]

    @classmethod
    def of(cls, kernels: Iterable[Kernel], hw: HardwareProfile, most_steps: int | None) -> "Choice":
        """Kernels that cost over LONG times `most_steps` are told by a part that costs about that.

        First those that do by themselves, then those that do beside others: the costliest first, as
        without it the rest may have larger chunks. Of an irregular kernel no part tells of the
        rest; without `most_steps` all are replayed whole.
        """
        own = {kernel: own_cost(kernel) for kernel in kernels}
        part = {
            kernel: inf
            if most_steps is None or kernel.irregular
            else most_steps // (FEWER if _by_few_waves(kernel, hw) else 1)
            for kernel in own
        }
        whole = [kernel for kernel in own if own[kernel] <= LONG * part[kernel]]
        while True:
            chunkings = chunk_tensors(whole)
            cost = {kernel: replay_cost(kernel, chunkings) for kernel in whole}
            costly = [kernel for kernel in whole if cost[kernel] > LONG * part[kernel]]
            if not costly:
                break
            costliest = max(costly, key=lambda kernel: cost[kernel])
            whole.remove(costliest)
        in_part = {kernel: int(part[kernel]) for kernel in own if kernel not in cost}
        cost |= {kernel: min(own[kernel], most) for kernel, most in in_part.items()}
        return cls(inf if most_steps is None else LONG * most_steps, in_part, cost, chunkings)


def _by_few_waves(kernel: Kernel, hw: HardwareProfile) -> bool:
    """Whether it is a pass whose waves are short and all alike, through far more than L2 holds."""
    touched_bytes = sum(tensor.bytes for tensor in kernel.tensors)
    short = kernel.is_uniform and kernel.most_trips <= FEW_TRIPS and not kernel.multiplies
    return short and touched_bytes >= MANY_FILLINGS * hw.l2.capacity
