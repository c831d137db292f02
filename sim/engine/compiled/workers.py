"""A worker walks its CTA's program: what its next event does, and what it then waits for."""

from sim.engine.compiled.ctas import (
    begin_item,
    end_cta,
    end_item,
    set_time,
    wait_for_store,
    wake_others,
)
from sim.engine.compiled.jit import at, called, inlined
from sim.engine.compiled.pipes import reserve, set_path
from sim.engine.compiled.records import (
    ATOMIC,
    BARRIER,
    COMPUTE,
    DRAINING,
    INF,
    PASSED,
    RUNNING,
    START,
    STORING,
    WAITING,
)
from sim.engine.compiled.tiles import tile_at, touch_tile
from sim.engine.compiled.timeline import TENSOR_BUSY, add
from sim.engine.compiled.transfers import cross, issue_load
from sim.machine import OP_LATENCY, SM_PIPES, TENSOR


@inlined
def enter_loop(r, slot, worker, loop):
    """To the first op of the first loop, from `loop` on, that has trips; past the end if none."""
    item = at(r.slots, slot).item
    while loop < r.limits[0].loops and r.trips[loop, item] == 0:
        loop += 1
    worker.loop, worker.trip = loop, 0
    if loop < r.limits[0].loops:
        worker.op, worker.trips = at(r.loops, loop).op_at, r.trips[loop, item]


@inlined
def to_next_op(r, slot, worker):
    """To the next op: of the trip, of the next trip, or of the next loop that has trips."""
    if not at(r.ops, worker.op).last:
        worker.op += 1
        return
    worker.trip += 1
    worker.op = at(r.loops, worker.loop).op_at
    if worker.trip == worker.trips:
        enter_loop(r, slot, worker, worker.loop + 1)


@inlined
def awaited(r, slot, worker):
    """The buffer, of those that the worker's op reads, that fills last, and when [s].

    INF where a load has not been issued yet.
    """
    reads, number = at(r.ops, worker.op).reads, at(r.loops, worker.loop).load_at
    first, latest, ready_s = slot * r.limits[0].buffers, 0, 0.0
    while reads:
        if reads & 1:
            load = at(r.loads, number)
            row = first + load.ring_at + (worker.trip & load.ring_mask)
            if at(r.buffers, row).trip != worker.trip:
                return row, INF
            if at(r.buffers, row).arrival_s > ready_s:
                ready_s, latest = at(r.buffers, row).arrival_s, row
        reads >>= 1
        number += 1
    return latest, ready_s


@inlined
def release(r, sm, slot, worker, now_s):
    """The worker is done with the buffers that its op frees; the CTA's last one refills them."""
    frees, number = at(r.ops, worker.op).frees, at(r.loops, worker.loop).load_at
    first, workers = slot * r.limits[0].buffers, r.limits[0].workers
    refilled = False
    while frees:
        if frees & 1:
            load = at(r.loads, number)
            row = first + load.ring_at + (worker.trip & load.ring_mask)
            buffer = at(r.buffers, row)
            buffer.released += 1
            following = worker.trip + load.stages
            if buffer.released == workers and following < worker.trips:
                issue_load(r, sm, slot, worker, now_s, number, following)
                refilled = True
        frees >>= 1
        number += 1
    if refilled and workers > 1:
        for k in range(slot * workers, (slot + 1) * workers):
            other = at(r.workers, k)
            if other.status == WAITING and at(r.due, k).time_s == INF:
                row, ready_s = awaited(r, slot, other)
                if ready_s < INF:
                    set_time(r, k, now_s, max(ready_s, now_s))
                    set_path(other, at(r.buffers, row))


@inlined
def compute(r, sm, number, now_s):
    """Take the SM's pipes for the worker's op, all at once; it runs until the slowest is done."""
    worker = at(r.workers, number)
    op = at(r.ops, worker.op)
    done_s, slowest = now_s, -1
    for k in range(SM_PIPES - 1):  # all but the port
        service_s = op.service_s[k]
        if service_s > 0.0:
            pipe_done_s = reserve(at(r.pipes, sm * SM_PIPES + k), k, worker, now_s, service_s)
            if k == TENSOR:
                start_s = pipe_done_s - service_s
                add(r.bins, r.bins_per_s, TENSOR_BUSY, start_s, pipe_done_s, service_s)
            if pipe_done_s > done_s:
                done_s, slowest = pipe_done_s, k
    if slowest >= 0:
        set_path(worker, at(r.pipes, sm * SM_PIPES + slowest))
        worker.path_s[OP_LATENCY] += op.latency_s
        done_s += op.latency_s
    op.count += 1
    worker.status = RUNNING
    set_time(r, number, now_s, done_s)


@called
def issue_store(r, sm, slot, worker_number, now_s):
    """Issue the store that all the CTA's workers have reached, and let the others go on."""
    worker = at(r.workers, worker_number)
    op = at(r.ops, worker.op)
    buffer = at(r.buffers, (slot + 1) * r.limits[0].buffers - 1)
    tile = tile_at(r, op.stream, at(r.slots, slot).item, worker.trip)
    fetch = op.kind == ATOMIC
    size, _, read, written, _, _ = touch_tile(r, sm, at(r.streams, op.stream), tile, True, fetch)
    buffer.arrival_s, _ = cross(r, sm, worker, now_s, size, 0.0, size, read, written, buffer)
    r.total[0].l2_write_bytes += size
    op.count += 1
    wake_others(r, slot, worker_number, now_s, PASSED)


@called
def pass_barrier(r, sm, slot, worker_number, now_s):
    """All the CTA's workers are at a barrier: what it issues is loaded, and all go on."""
    worker, latency_s = at(r.workers, worker_number), r.limits[0].op_latency_s
    op = at(r.ops, worker.op)
    issues, number = op.reads, at(r.loops, worker.loop).load_at
    while issues:
        if issues & 1:
            issue_load(r, sm, slot, worker, now_s, number, worker.trip)
        issues >>= 1
        number += 1
    op.count += 1
    worker.status = PASSED
    worker.path_s[OP_LATENCY] += latency_s
    set_time(r, worker_number, now_s, now_s + latency_s)
    wake_others(r, slot, worker_number, at(r.due, worker_number).time_s, PASSED)


@inlined
def go_on(r, sm, slot, worker_number, now_s):
    """Run the worker from its op on until it has to wait for something."""
    worker, record = at(r.workers, worker_number), at(r.slots, slot)
    while worker.loop < r.limits[0].loops:
        if at(r.ops, worker.op).kind == COMPUTE:
            row, ready_s = awaited(r, slot, worker)
            if ready_s <= now_s:
                compute(r, sm, worker_number, now_s)
                return
            worker.status, at(r.due, worker_number).time_s = WAITING, INF
            if ready_s < INF:
                set_time(r, worker_number, now_s, ready_s)
                set_path(worker, at(r.buffers, row))
            return
        record.arrived += 1
        if record.arrived < r.limits[0].workers:
            worker.status, at(r.due, worker_number).time_s = PASSED, INF
            return
        if at(r.ops, worker.op).kind == BARRIER:
            pass_barrier(r, sm, slot, worker_number, now_s)
            return
        if not wait_for_store(r, slot, worker_number, now_s, STORING):
            return
        issue_store(r, sm, slot, worker_number, now_s)
        to_next_op(r, slot, worker)
    end_item(r, sm, slot, worker_number, now_s)


@inlined
def happen(r, sm, slot, worker_number, now_s):
    """The worker's next event."""
    worker = at(r.workers, worker_number)
    status = worker.status
    if status == DRAINING:
        end_cta(r, sm, slot, worker_number, now_s)
        return
    if status == START:
        if worker_number == slot * r.limits[0].workers:
            begin_item(r, sm, slot, worker, now_s)
        enter_loop(r, slot, worker, 0)
    elif status != WAITING:
        if status == RUNNING:
            release(r, sm, slot, worker, now_s)
        elif status == STORING:
            issue_store(r, sm, slot, worker_number, now_s)
        to_next_op(r, slot, worker)
    go_on(r, sm, slot, worker_number, now_s)


@inlined
def is_shared(r, worker):
    """Whether the worker's next event may touch more than its SM's own pipes."""
    if worker.status == WAITING:
        return False
    op = at(r.ops, worker.op)
    if (worker.status != RUNNING and worker.status != PASSED) or op.shared:
        return True
    return op.last and worker.trip + 1 == worker.trips
