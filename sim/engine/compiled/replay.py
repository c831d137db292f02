"""The compiled replay: CTAs, pipes and L2 as one Numba loop over events.

SMs meet only at L2, HBM and the grid's queue of CTAs. So an event is *local* if it touches nothing
but its SM's own pipes, and *shared* otherwise. The loop takes the SM whose next event is earliest,
and lets it run on through its local events until a shared one comes up: the same order as one event
at a time, with a queue of SMs in place of a queue of events. Ties go to the lower SM, then to the
lower worker. `sim.engine.reference` states the same semantics as SimPy processes.

What an event does is told from below: `pipes`, `tiles` and their chunks in `l2`, `transfers` of
them, `ctas`, `workers`.

Only `begin` and `advance` are compiled and cached on their own; what they call is inlined.
"""

from collections.abc import Callable

import numpy as np

from sim.code.jit import entry
from sim.engine.compiled.ctas import place
from sim.engine.compiled.jit import at, inlined
from sim.engine.compiled.l2 import SHARED, L2Lines, let_arrive, new_l2
from sim.engine.compiled.records import INF, NEVER, Replay, new_replay
from sim.engine.compiled.workers import happen, is_shared
from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.machine import SM_PIPES, machine_of
from sim.tile_program import Chunking, Kernel, Tensor

__all__ = ["new_l2", "run_kernel"]

EVENTS_A_SLICE = 200_000  # between two words of progress


def run_kernel(
    kernel: Kernel,
    chunkings: dict[Tensor, Chunking],
    hw: HardwareProfile,
    l2: L2Lines,
    dtype: str,
    progress: Callable[[int], None],
) -> KernelRun:
    """Replay `kernel`; `progress` is told now and then how many tile steps are done."""
    records = new_replay(kernel, chunkings, hw, machine_of(hw), l2, dtype)
    return replayed(kernel, records, progress)


def replayed(kernel: Kernel, replay: Replay, progress: Callable[[int], None]) -> KernelRun:
    """What the kernel takes whose records these are; they are used up, and their L2 changed."""
    let_arrive(replay.l2)
    level = replay.l2.level[SHARED]
    reread_bytes = int(level["reread"])
    begin(replay)
    while not advance(replay, EVENTS_A_SLICE):
        progress(int(replay.total["steps_done"][0]))
    total = replay.total[0]
    sm_busy_s = replay.pipes["busy_s"][:-2].reshape(-1, SM_PIPES).sum(axis=0)
    counts = dict(zip(kernel.actions, replay.ops["count"].tolist(), strict=True))
    return KernelRun(
        kernel=kernel,
        time_s=float(total["end_s"]),
        ctas_per_sm=int(replay.limits["ctas_per_sm"][0]),
        counts=counts,
        hbm_read_bytes=int(total["hbm_read_bytes"]),
        hbm_write_bytes=int(total["hbm_write_bytes"]),
        l2_read_bytes=int(total["l2_read_bytes"]),
        l2_write_bytes=int(total["l2_write_bytes"]),
        l2_hit_bytes=int(total["l2_hit_bytes"]),
        l2_dirty_bytes=int(level["dirty"]),
        die_hit_bytes=int(total["die_hit_bytes"]),
        hbm_reread_bytes=int(level["reread"]) - reread_bytes,
        busy_s=np.concatenate([sm_busy_s, replay.pipes["busy_s"][-2:]]),
        path_s=total["path_s"].copy(),
        cta_sm=replay.ctas["sm"],
        cta_start_s=replay.ctas["start_s"],
        cta_end_s=replay.ctas["end_s"],
        bins=replay.bins,
        bin_width_s=1.0 / float(replay.bins_per_s[0]),
    )


@inlined
def run_sm(r, sm):
    """The SM's shared event that is due, then its local ones up to the next shared one."""
    per_sm = r.limits[0].ctas_per_sm * r.limits[0].workers
    first = sm * per_sm
    due = True
    while True:
        number, now_s = first, at(r.due, first).time_s
        for k in range(first + 1, first + per_sm):
            if at(r.due, k).time_s < now_s:
                number, now_s = k, at(r.due, k).time_s
        if now_s == INF or (not due and is_shared(r, at(r.workers, number))):
            return now_s
        due = False
        happen(r, sm, at(r.workers, number).slot, number, now_s)


@inlined
def play_off(matches, leaves, sm, next_s):
    """Replay the tournament's matches of one SM; the lower SM wins a tie."""
    node, winner, due = leaves + sm, sm, np.float64(next_s).view(np.int64)
    at(matches, node).due = due
    while node > 1:
        rival = at(matches, node ^ 1)
        if rival.due < due + (node & 1):
            due, winner = rival.due, rival.winner
        node >>= 1
        at(matches, node).due, at(matches, node).winner = due, winner


@entry
def begin(r):
    """Place the grid's first CTAs, one on every SM before a second one on any."""
    limits = r.limits[0]
    for leaf in range(limits.leaves):
        at(r.matches, limits.leaves + leaf).winner = leaf
    for level in range(limits.ctas_per_sm):
        for sm in range(limits.sms):
            place(r, sm, sm * limits.ctas_per_sm + level, 0.0)
    per_sm = limits.ctas_per_sm * limits.workers
    for sm in range(limits.sms):
        next_s = INF
        for k in range(sm * per_sm, (sm + 1) * per_sm):
            next_s = min(next_s, at(r.due, k).time_s)
        play_off(r.matches, limits.leaves, sm, next_s)


@entry
def advance(r, events):
    """Run up to `events` shared events; return whether the kernel is over."""
    leaves = r.limits[0].leaves
    for _ in range(events):
        if r.matches[1].due == NEVER:
            return True
        sm = r.matches[1].winner
        play_off(r.matches, leaves, sm, run_sm(r, sm))
    return False
