"""The compiled replay: CTAs, pipes and L2 as one Numba loop over events.

SMs meet only at L2, HBM and the grid's queue of CTAs. So an event is *local* if it touches nothing
but its SM's own pipes, and *shared* otherwise. The loop takes the SM whose next event is earliest,
and lets it run on through its local events until a shared one comes up: the same order as one event
at a time, with a queue of SMs in place of a queue of events. Ties go to the lower SM, then to the
lower worker. `sim.engine.reference` states the same semantics as SimPy processes.

Only `begin` and `advance` are compiled and cached on their own; what they call is inlined.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sim.engine.compiled.jit import called, entry, inlined
from sim.engine.compiled.l2 import NO_LINE, SHARED, L2Lines, new_l2, touch, touch_by_die
from sim.engine.compiled.records import (
    ATOMIC,
    BARRIER,
    COMPUTE,
    DRAINING,
    IDLE,
    PASSED,
    RUNNING,
    START,
    STORING,
    WAITING,
    new_replay,
)
from sim.engine.compiled.timeline import (
    HBM_BYTES,
    HBM_IN_FLIGHT,
    L2_BYTES,
    L2_HIT_BYTES,
    TENSOR_BUSY,
    add,
)
from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.machine import (
    CTA_START,
    HBM,
    HBM_LATENCY,
    L2,
    L2_LATENCY,
    N_CAUSES,
    OP_LATENCY,
    PORT,
    SM_PIPES,
    TENSOR,
    machine_of,
)
from sim.tile_program import Chunking, Kernel, Tensor

__all__ = ["is_compiled", "new_l2", "run_kernel"]

INF = np.inf
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
    machine = machine_of(hw)
    replay = new_replay(kernel, chunkings, hw, machine, l2, dtype)
    begin(replay)
    while not advance(replay, EVENTS_A_SLICE):
        progress(int(replay.total["steps_done"][0]))
    total = replay.total[0]
    sm_busy_s = replay.pipes["busy_s"][:-2].reshape(machine.sms, SM_PIPES).sum(axis=0)
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
        l2_dirty_bytes=int(l2.level["dirty"][SHARED]),
        die_hit_bytes=int(total["die_hit_bytes"]),
        busy_s=np.concatenate([sm_busy_s, replay.pipes["busy_s"][-2:]]),
        path_s=total["path_s"].copy(),
        cta_sm=replay.ctas["sm"],
        cta_start_s=replay.ctas["start_s"],
        cta_end_s=replay.ctas["end_s"],
        bins=replay.bins,
        bin_width_s=1.0 / float(replay.bins_per_s[0]),
    )


assert N_CAUSES == 12, "set_path copies the causes one by one: write each new one there too"


@inlined
def set_path(target, source):
    """What is critical for `source` is now so for `target`."""
    a, b = target.path_s, source.path_s
    # All are read before any is written, which makes vectors of them.
    c = (b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11])
    a[0], a[1], a[2], a[3], a[4], a[5] = c[0], c[1], c[2], c[3], c[4], c[5]
    a[6], a[7], a[8], a[9], a[10], a[11] = c[6], c[7], c[8], c[9], c[10], c[11]


@inlined
def reserve(pipe, cause, worker, now_s, service_s):
    """Serve on a FIFO pipe from `now_s` on; return when it is done [s].

    The critical path behind it is the pipe's own where it was busy, else the worker's.
    """
    start_s = pipe.free_at_s
    if start_s <= now_s:
        start_s = now_s
        set_path(pipe, worker)
    pipe.path_s[cause] += service_s
    pipe.busy_s += service_s
    pipe.free_at_s = start_s + service_s
    return pipe.free_at_s


@inlined
def tile_at(r, number, item, trip):
    """The tile that a stream touches in a trip of an item."""
    stream = r.streams[number]
    base = r.base[number, item]
    if stream.table_at >= 0:
        return base + r.table[stream.table_at + r.start[number, item] + trip]
    return base + stream.stride * trip


@inlined
def size_of(sizes, stream, group):
    """Rows and columns of one of a tensor's matrices."""
    if stream.sizes_at < 0:
        return stream.rows, stream.cols
    return sizes[stream.sizes_at + group, 0], sizes[stream.sizes_at + group, 1]


@inlined
def corners(sizes, stream, tile):
    """A tile's matrix, and its rows and columns in it: (group, row, row_end, col, col_end)."""
    across = tile % stream.tiles_across
    rest = tile // stream.tiles_across
    group, down = rest // stream.tiles_down, rest % stream.tiles_down
    row, col = down * stream.tile_rows, across * stream.tile_cols
    rows, cols = size_of(sizes, stream, group)
    row_end = min(row + stream.tile_rows, rows)
    col_end = min(col + stream.tile_cols, cols)
    return group, row, row_end, col, col_end


@inlined
def chunk_at(stream, group, row):
    """The first chunk of the line of chunks that holds a matrix's row."""
    down = group * stream.chunks_down + row // stream.chunk_rows
    return stream.first_chunk + down * stream.chunks_across


@inlined
def touch_chunk(l2, die, chunk, size, write, fetch):
    """`touch_by_die`, of a device that is one die (which is 0 then) without it."""
    if die == SHARED:
        line, read, written = touch(l2, SHARED, chunk, size, write, fetch)
        return line, read, written, size
    return touch_by_die(l2, die, chunk, size, write, fetch)


@called
def touch_chunks(l2, die, sizes, stream, tile, write, fetch):
    """`touch_chunk` for all chunks of a tile.

    Returns (bytes, those past the die, HBM reads, HBM writes, when the last of those present
    arrives [s]).
    """
    size, passed, read, written, in_flight_s = 0, 0, 0, 0, 0.0
    group, row_at, row_end, col_at, col_end = corners(sizes, stream, tile)
    for row in range(row_at, row_end, stream.chunk_rows):
        height = min(stream.chunk_rows, row_end - row)  # whole chunks, but for the matrix's end
        first = chunk_at(stream, group, row)
        for col in range(col_at, col_end, stream.chunk_cols):
            bytes_ = height * min(stream.chunk_cols, col_end - col) * stream.element_bytes
            chunk = first + col // stream.chunk_cols
            line, fetched, evicted, past = touch_chunk(l2, die, chunk, bytes_, write, fetch)
            size += bytes_
            passed += past
            read += fetched
            written += evicted
            if fetched and not write:
                l2.lines[line].arrival_s = INF  # set_arrivals says when
            elif line != NO_LINE:
                in_flight_s = max(in_flight_s, l2.lines[line].arrival_s)
    return size, passed, read, written, in_flight_s


@called
def set_arrivals(l2, sizes, stream, tile, arrival_s):
    """The chunks of the tile that were fetched arrive then."""
    group, row_at, row_end, col_at, col_end = corners(sizes, stream, tile)
    for row in range(row_at, row_end, stream.chunk_rows):
        first = chunk_at(stream, group, row)
        for col in range(col_at, col_end, stream.chunk_cols):
            line = l2.line_of[first + col // stream.chunk_cols]
            if l2.lines[line].arrival_s == INF:
                l2.lines[line].arrival_s = arrival_s


@inlined
def touch_tile(r, sm, stream, tile, write, fetch):
    """`touch_chunk` for a tile, be it a single chunk or many.

    Returns (bytes, those past the die, HBM reads, HBM writes, when the last of those present
    arrives [s], the line of a single chunk).
    """
    line, dies = NO_LINE, r.limits[0].dies
    die = SHARED if dies == 1 else SHARED + 1 + sm % dies
    if stream.whole_bytes:
        size, chunk = stream.whole_bytes, stream.first_chunk + tile
        line, read, written, passed = touch_chunk(r.l2, die, chunk, size, write, fetch)
        in_flight_s = 0.0 if read or line == NO_LINE else r.l2.lines[line].arrival_s
    else:
        size, passed, read, written, in_flight_s = touch_chunks(
            r.l2, die, r.sizes, stream, tile, write, fetch
        )
    r.total[0].hbm_read_bytes += read
    r.total[0].hbm_write_bytes += written
    return size, passed, read, written, in_flight_s, line


@inlined
def cross(r, sm, worker, now_s, size, passed, read, written, buffer):
    """Reserve every pipe between an SM and where a tile is; `buffer` takes the slowest's path.

    L2 serves the bytes that passed the die's cache. Returns when all are done, and when L2 is [s].
    """
    limits = r.limits[0]
    slowest = r.pipes[sm * SM_PIPES + PORT]
    done_s = reserve(slowest, PORT, worker, now_s, size / limits.port_bytes_per_s)
    service_s, l2_done_s = 0.0, done_s
    if passed:
        l2, service_s = r.pipes[limits.sms * SM_PIPES], passed / limits.l2_bytes_per_s
        l2_done_s = reserve(l2, L2, worker, now_s, service_s)
        if l2_done_s > done_s:
            done_s, slowest = l2_done_s, l2
    add(r.bins, r.bins_per_s, L2_BYTES, l2_done_s - service_s, l2_done_s, size)
    if read or written:
        hbm = r.pipes[limits.sms * SM_PIPES + 1]
        service_s = read / limits.hbm_read_bytes_per_s + written / limits.hbm_write_bytes_per_s
        hbm_done_s = reserve(hbm, HBM, worker, now_s, service_s)
        add(r.bins, r.bins_per_s, HBM_BYTES, hbm_done_s - service_s, hbm_done_s, read + written)
        if hbm_done_s > done_s:
            done_s, slowest = hbm_done_s, hbm
    set_path(buffer, slowest)
    return done_s, l2_done_s


@inlined
def load_tile(r, sm, worker, now_s, stream, tile, buffer):
    """Load a tile, with the latency of the farthest level; `buffer` learns when it arrives."""
    limits, total = r.limits[0], r.total[0]
    size, passed, read, written, in_flight_s, line = touch_tile(r, sm, stream, tile, False, True)
    done_s, l2_done_s = cross(r, sm, worker, now_s, size, passed, read, written, buffer)
    total.l2_read_bytes += size
    total.die_hit_bytes += size - passed
    total.l2_hit_bytes += size - read
    add(r.bins, r.bins_per_s, L2_HIT_BYTES, l2_done_s, l2_done_s, size - read)
    if read:
        done_s += limits.hbm_latency_s
        buffer.path_s[HBM_LATENCY] += limits.hbm_latency_s
    else:
        done_s += limits.l2_latency_s
        buffer.path_s[L2_LATENCY] += limits.l2_latency_s
    if in_flight_s > done_s:  # another load brings it
        buffer.path_s[HBM_LATENCY] += in_flight_s - done_s
        done_s = in_flight_s
    if read:
        if stream.whole_bytes:
            r.l2.lines[line].arrival_s = done_s
        else:
            set_arrivals(r.l2, r.sizes, stream, tile, done_s)
        add(r.bins, r.bins_per_s, HBM_IN_FLIGHT, now_s, done_s, read * (done_s - now_s))
    buffer.arrival_s = done_s


@inlined
def issue_load(r, sm, slot, worker, now_s, number, trip):
    """Issue a load's tile of `trip` into the buffer that trip uses."""
    load, item = r.loads[number], r.slots[slot].item
    buffer = r.buffers[slot * r.limits[0].buffers + load.ring_at + (trip & load.ring_mask)]
    tile = tile_at(r, load.stream, item, trip)
    load_tile(r, sm, worker, now_s, r.streams[load.stream], tile, buffer)
    buffer.trip = trip
    buffer.released = 0


@called
def begin_item(r, sm, slot, worker, now_s):
    """All buffers are free: issue the first loads of every loop, trip by trip."""
    for k in range(r.limits[0].loops):
        loop, trips = r.loops[k], r.trips[k, r.slots[slot].item]
        deepest = 0
        for number in range(loop.load_at, loop.load_end):
            for trip in range(r.loads[number].ring_mask + 1):
                row = slot * r.limits[0].buffers + r.loads[number].ring_at + trip
                r.buffers[row].trip = -1
            deepest = max(deepest, r.loads[number].stages)
        for trip in range(min(deepest, trips)):
            for number in range(loop.load_at, loop.load_end):
                if trip < r.loads[number].stages:
                    issue_load(r, sm, slot, worker, now_s, number, trip)


@inlined
def set_time(worker, now_s, target_s):
    """The worker's next event is at `target_s` (summed as SimPy's clock does, to the same bit)."""
    worker.time_s = now_s + (target_s - now_s)


@inlined
def awaited(r, slot, worker):
    """The buffer, of those that the worker's op reads, that fills last, and when [s].

    INF where a load has not been issued yet.
    """
    reads, number = r.ops[worker.op].reads, r.loops[worker.loop].load_at
    first, latest, ready_s = slot * r.limits[0].buffers, 0, 0.0
    while reads:
        if reads & 1:
            load = r.loads[number]
            row = first + load.ring_at + (worker.trip & load.ring_mask)
            if r.buffers[row].trip != worker.trip:
                return row, INF
            if r.buffers[row].arrival_s > ready_s:
                ready_s, latest = r.buffers[row].arrival_s, row
        reads >>= 1
        number += 1
    return latest, ready_s


@inlined
def release(r, sm, slot, worker, now_s):
    """The worker is done with the buffers that its op frees; the CTA's last one refills them."""
    frees, number = r.ops[worker.op].frees, r.loops[worker.loop].load_at
    workers = r.limits[0].workers
    refilled = False
    while frees:
        if frees & 1:
            load = r.loads[number]
            at = load.ring_at + (worker.trip & load.ring_mask)
            buffer = r.buffers[slot * r.limits[0].buffers + at]
            buffer.released += 1
            following = worker.trip + load.stages
            if buffer.released == workers and following < worker.trips:
                issue_load(r, sm, slot, worker, now_s, number, following)
                refilled = True
        frees >>= 1
        number += 1
    if refilled and workers > 1:
        for k in range(slot * workers, (slot + 1) * workers):
            other = r.workers[k]
            if other.status == WAITING and other.time_s == INF:
                row, ready_s = awaited(r, slot, other)
                if ready_s < INF:
                    set_time(other, now_s, max(ready_s, now_s))
                    set_path(other, r.buffers[row])


@called
def wake_others(r, slot, worker_number, time_s, status):
    """All other workers of the CTA go on at `time_s`; what they waited for is this one's path."""
    workers = r.limits[0].workers
    for k in range(slot * workers, (slot + 1) * workers):
        if k != worker_number:
            other = r.workers[k]
            other.status, other.time_s = status, time_s
            set_path(other, r.workers[worker_number])
    r.slots[slot].arrived = 0


@called
def issue_store(r, sm, slot, worker_number, now_s):
    """Issue the store that all the CTA's workers have reached, and let the others go on."""
    worker = r.workers[worker_number]
    op = r.ops[worker.op]
    buffer = r.buffers[(slot + 1) * r.limits[0].buffers - 1]
    tile = tile_at(r, op.stream, r.slots[slot].item, worker.trip)
    fetch = op.kind == ATOMIC
    size, _, read, written, _, _ = touch_tile(r, sm, r.streams[op.stream], tile, True, fetch)
    buffer.arrival_s, _ = cross(r, sm, worker, now_s, size, size, read, written, buffer)
    r.total[0].l2_write_bytes += size
    op.count += 1
    wake_others(r, slot, worker_number, now_s, PASSED)


@called
def pass_barrier(r, sm, slot, worker_number, now_s):
    """All the CTA's workers are at a barrier: what it issues is loaded, and all go on."""
    worker, latency_s = r.workers[worker_number], r.limits[0].op_latency_s
    op = r.ops[worker.op]
    issues, number = op.reads, r.loops[worker.loop].load_at
    while issues:
        if issues & 1:
            issue_load(r, sm, slot, worker, now_s, number, worker.trip)
        issues >>= 1
        number += 1
    op.count += 1
    worker.status = PASSED
    worker.path_s[OP_LATENCY] += latency_s
    set_time(worker, now_s, now_s + latency_s)
    wake_others(r, slot, worker_number, worker.time_s, PASSED)


@inlined
def wait_for_store(r, slot, worker, now_s, status):
    """Return whether the CTA's last store has left its buffer; else wait for that."""
    buffer = r.buffers[(slot + 1) * r.limits[0].buffers - 1]
    if buffer.arrival_s <= now_s:
        return True
    worker.status = status
    set_time(worker, now_s, buffer.arrival_s)
    set_path(worker, buffer)
    return False


@inlined
def compute(r, sm, worker, now_s):
    """Take the SM's pipes for the worker's op, all at once; it runs until the slowest is done."""
    op = r.ops[worker.op]
    done_s, slowest = now_s, -1
    for k in range(SM_PIPES - 1):  # all but the port
        service_s = op.service_s[k]
        if service_s > 0.0:
            pipe_done_s = reserve(r.pipes[sm * SM_PIPES + k], k, worker, now_s, service_s)
            if k == TENSOR:
                start_s = pipe_done_s - service_s
                add(r.bins, r.bins_per_s, TENSOR_BUSY, start_s, pipe_done_s, service_s)
            if pipe_done_s > done_s:
                done_s, slowest = pipe_done_s, k
    if slowest >= 0:
        set_path(worker, r.pipes[sm * SM_PIPES + slowest])
        worker.path_s[OP_LATENCY] += op.latency_s
        done_s += op.latency_s
    op.count += 1
    worker.status = RUNNING
    set_time(worker, now_s, done_s)


@called
def place(r, sm, slot, now_s):
    """Give a free slot the next CTA of its die, if there is one left."""
    limits = r.limits[0]
    die = sm % limits.dies
    cta = r.queues[die]
    placed = cta < r.ctas.shape[0]
    if placed:
        r.queues[die] += limits.dies
        record = r.slots[slot]
        record.cta, record.arrived = cta, 0
        record.item = cta * limits.items_per_cta
        record.last_item = record.item + limits.items_per_cta - 1
        r.buffers[(slot + 1) * limits.buffers - 1].arrival_s = 0.0
        r.ctas[cta].sm, r.ctas[cta].start_s = sm, now_s
    for k in range(slot * limits.workers, (slot + 1) * limits.workers):
        worker = r.workers[k]
        worker.status, worker.time_s = IDLE, INF
        if placed:
            worker.status = START
            worker.path_s[CTA_START] += limits.cta_start_s
            set_time(worker, now_s, now_s + limits.cta_start_s)


@called
def end_cta(r, sm, slot, worker_number, now_s):
    """The CTA is over: its slot takes the next one."""
    total = r.total[0]
    r.ctas[r.slots[slot].cta].end_s = now_s
    total.ctas_done += 1
    if now_s >= total.end_s:
        total.end_s = now_s
        set_path(total, r.workers[worker_number])
    wake_others(r, slot, worker_number, now_s, START)
    place(r, sm, slot, now_s)


@called
def end_item(r, sm, slot, worker_number, now_s):
    """A worker has done its share of the item; the CTA's last one goes on to the next, or ends."""
    record, worker = r.slots[slot], r.workers[worker_number]
    worker.status, worker.time_s = START, INF
    record.arrived += 1
    if record.arrived < r.limits[0].workers:
        return
    for loop in range(r.limits[0].loops):
        r.total[0].steps_done += r.trips[loop, record.item]
    if record.item < record.last_item:
        record.item += 1
        setup_s = r.limits[0].item_setup_s
        worker.path_s[CTA_START] += setup_s
        set_time(worker, now_s, now_s + setup_s)
        wake_others(r, slot, worker_number, worker.time_s, START)
    elif wait_for_store(r, slot, worker, now_s, DRAINING):
        end_cta(r, sm, slot, worker_number, now_s)


@inlined
def enter_loop(r, slot, worker, loop):
    """To the first op of the first loop, from `loop` on, that has trips; past the end if none."""
    item = r.slots[slot].item
    while loop < r.limits[0].loops and r.trips[loop, item] == 0:
        loop += 1
    worker.loop, worker.trip = loop, 0
    if loop < r.limits[0].loops:
        worker.op, worker.trips = r.loops[loop].op_at, r.trips[loop, item]


@inlined
def to_next_op(r, slot, worker):
    """To the next op: of the trip, of the next trip, or of the next loop that has trips."""
    worker.op += 1
    if worker.op < r.loops[worker.loop].op_end:
        return
    worker.trip += 1
    worker.op = r.loops[worker.loop].op_at
    if worker.trip == worker.trips:
        enter_loop(r, slot, worker, worker.loop + 1)


@inlined
def go_on(r, sm, slot, worker_number, now_s):
    """Run the worker from its op on until it has to wait for something."""
    worker, record = r.workers[worker_number], r.slots[slot]
    while worker.loop < r.limits[0].loops:
        if r.ops[worker.op].kind == COMPUTE:
            row, ready_s = awaited(r, slot, worker)
            if ready_s <= now_s:
                compute(r, sm, worker, now_s)
                return
            worker.status, worker.time_s = WAITING, INF
            if ready_s < INF:
                set_time(worker, now_s, ready_s)
                set_path(worker, r.buffers[row])
            return
        record.arrived += 1
        if record.arrived < r.limits[0].workers:
            worker.status, worker.time_s = PASSED, INF
            return
        if r.ops[worker.op].kind == BARRIER:
            pass_barrier(r, sm, slot, worker_number, now_s)
            return
        if not wait_for_store(r, slot, worker, now_s, STORING):
            return
        issue_store(r, sm, slot, worker_number, now_s)
        to_next_op(r, slot, worker)
    end_item(r, sm, slot, worker_number, now_s)


@inlined
def happen(r, sm, slot, worker_number, now_s):
    """The worker's next event."""
    worker = r.workers[worker_number]
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
    if (worker.status != RUNNING and worker.status != PASSED) or r.ops[worker.op].shared:
        return True
    last_op = worker.op + 1 == r.loops[worker.loop].op_end
    return last_op and worker.trip + 1 == worker.trips


@inlined
def run_sm(r, sm):
    """The SM's shared event that is due, then its local ones up to the next shared one."""
    per_sm = r.limits[0].ctas_per_sm * r.limits[0].workers
    first = sm * per_sm
    due = True
    while True:
        number, now_s = first, r.workers[first].time_s
        for k in range(first + 1, first + per_sm):
            if r.workers[k].time_s < now_s:
                number, now_s = k, r.workers[k].time_s
        if now_s == INF or (not due and is_shared(r, r.workers[number])):
            return now_s
        due = False
        happen(r, sm, r.workers[number].slot, number, now_s)


@inlined
def play_off(matches, leaves, sm, next_s):
    """Replay the tournament's matches of one SM; the lower SM wins a tie."""
    node, winner = leaves + sm, sm
    matches[node].next_s = next_s
    while node > 1:
        rival = matches[node ^ 1]
        beaten = rival.next_s < next_s or (rival.next_s == next_s and node & 1)
        next_s = rival.next_s if beaten else next_s
        winner = rival.winner if beaten else winner
        node >>= 1
        matches[node].next_s, matches[node].winner = next_s, winner


@entry
def begin(r):
    """Place the grid's first CTAs, one on every SM before a second one on any."""
    limits = r.limits[0]
    for leaf in range(limits.leaves):
        r.matches[limits.leaves + leaf].winner = leaf
    for level in range(limits.ctas_per_sm):
        for sm in range(limits.sms):
            slot = sm * limits.ctas_per_sm + level
            place(r, sm, slot, 0.0)
            if level == 0:
                next_s = r.workers[slot * limits.workers].time_s
                play_off(r.matches, limits.leaves, sm, next_s)


@entry
def advance(r, events):
    """Run up to `events` shared events; return whether the kernel is over."""
    leaves = r.limits[0].leaves
    for _ in range(events):
        if r.matches[1].next_s == INF:
            return True
        sm = r.matches[1].winner
        play_off(r.matches, leaves, sm, run_sm(r, sm))
    return False


def is_compiled() -> bool:
    """Whether the compiled engine lies on disk already."""
    folder = Path(advance.stats.cache_path)
    return any(folder.glob("replay.advance-*.nbc"))
