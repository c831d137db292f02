"""A CTA on its SM: placed, begun item by item, and over; where its workers meet. Compiled."""

from sim.engine.compiled.jit import at, called, inlined
from sim.engine.compiled.pipes import set_path
from sim.engine.compiled.records import DRAINING, IDLE, INF, START
from sim.engine.compiled.transfers import issue_load
from sim.machine import CTA_START


@inlined
def set_time(r, number, now_s, target_s):
    """A worker's next event is at `target_s` (summed as SimPy's clock does, to the same bit)."""
    at(r.due, number).time_s = now_s + (target_s - now_s)


@called
def wake_others(r, slot, worker_number, time_s, status):
    """All other workers of the CTA go on at `time_s`; what they waited for is this one's path."""
    workers = r.limits[0].workers
    for k in range(slot * workers, (slot + 1) * workers):
        if k != worker_number:
            other = at(r.workers, k)
            other.status, at(r.due, k).time_s = status, time_s
            set_path(other, at(r.workers, worker_number))
    at(r.slots, slot).arrived = 0


@inlined
def wait_for_store(r, slot, number, now_s, status):
    """Return whether the CTA's last store has left its buffer; else wait for that."""
    buffer = at(r.buffers, (slot + 1) * r.limits[0].buffers - 1)
    if buffer.arrival_s <= now_s:
        return True
    worker = at(r.workers, number)
    worker.status = status
    set_time(r, number, now_s, buffer.arrival_s)
    set_path(worker, buffer)
    return False


@called
def begin_item(r, sm, slot, worker, now_s):
    """All buffers are free: issue the first loads of every loop, trip by trip."""
    for k in range(r.limits[0].loops):
        loop, trips = at(r.loops, k), r.trips[k, at(r.slots, slot).item]
        deepest = 0
        for number in range(loop.load_at, loop.load_end):
            for trip in range(at(r.loads, number).ring_mask + 1):
                row = slot * r.limits[0].buffers + at(r.loads, number).ring_at + trip
                at(r.buffers, row).trip = -1
            deepest = max(deepest, at(r.loads, number).stages)
        for trip in range(min(deepest, trips)):
            for number in range(loop.load_at, loop.load_end):
                if trip < at(r.loads, number).stages:
                    issue_load(r, sm, slot, worker, now_s, number, trip)


@called
def has_trips(r, first_item, last_item):
    """Whether any of these items does anything."""
    for item in range(first_item, last_item + 1):
        for loop in range(r.limits[0].loops):
            if r.trips[loop, item]:
                return True
    return False


@called
def place(r, sm, slot, now_s):
    """Give a free slot the next CTA of its die, if there is one left."""
    limits = r.limits[0]
    die = sm % limits.dies
    cta = r.queues[die]
    placed = cta < r.ctas.shape[0]
    start_s = 0.0
    if placed:
        r.queues[die] += limits.dies
        record = at(r.slots, slot)
        record.cta, record.arrived = cta, 0
        record.item = cta * limits.items_per_cta
        record.last_item = record.item + limits.items_per_cta - 1
        at(r.buffers, (slot + 1) * limits.buffers - 1).arrival_s = 0.0
        at(r.ctas, cta).sm, at(r.ctas, cta).start_s = sm, now_s
        works = has_trips(r, record.item, record.last_item)
        start_s = limits.cta_start_s if works else limits.idle_cta_s
    for k in range(slot * limits.workers, (slot + 1) * limits.workers):
        worker = at(r.workers, k)
        worker.status, at(r.due, k).time_s = IDLE, INF
        if placed:
            worker.status = START
            worker.path_s[CTA_START] += start_s
            set_time(r, k, now_s, now_s + start_s)


@called
def end_cta(r, sm, slot, worker_number, now_s):
    """The CTA is over: its slot takes the next one."""
    total = r.total[0]
    at(r.ctas, at(r.slots, slot).cta).end_s = now_s
    if now_s >= total.end_s:
        total.end_s = now_s
        set_path(total, at(r.workers, worker_number))
    wake_others(r, slot, worker_number, now_s, START)
    place(r, sm, slot, now_s)


@called
def end_item(r, sm, slot, worker_number, now_s):
    """A worker has done its share of the item; the CTA's last one goes on to the next, or ends."""
    record, worker = at(r.slots, slot), at(r.workers, worker_number)
    worker.status, at(r.due, worker_number).time_s = START, INF
    record.arrived += 1
    if record.arrived < r.limits[0].workers:
        return
    for loop in range(r.limits[0].loops):
        r.total[0].steps_done += r.trips[loop, record.item]
    if record.item < record.last_item:
        record.item += 1
        setup_s = r.limits[0].item_setup_s if has_trips(r, record.item, record.item) else 0.0
        worker.path_s[CTA_START] += setup_s
        set_time(r, worker_number, now_s, now_s + setup_s)
        wake_others(r, slot, worker_number, at(r.due, worker_number).time_s, START)
    elif wait_for_store(r, slot, worker_number, now_s, DRAINING):
        end_cta(r, sm, slot, worker_number, now_s)
