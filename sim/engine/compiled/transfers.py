"""Loads and stores between an SM's SRAM and where their tile is, L2 or HBM, compiled."""

from sim.engine.compiled.jit import at, inlined
from sim.engine.compiled.pipes import reserve, set_path
from sim.engine.compiled.tiles import set_arrivals, tile_at, touch_tile
from sim.engine.compiled.timeline import HBM_BYTES, HBM_IN_FLIGHT, L2_BYTES, L2_HIT_BYTES, add
from sim.machine import HBM, HBM_LATENCY, L2, L2_LATENCY, PORT, SM_PIPES


@inlined
def cross(r, sm, worker, now_s, size, held_s, passed, read, written, buffer):
    """Reserve every pipe between an SM and where a tile is; `buffer` takes the slowest's path.

    The port is held for `held_s` beyond what the bytes take; L2 serves those that passed the die's
    cache. Returns when all are done, and when L2 is [s].
    """
    limits = r.limits[0]
    slowest = at(r.pipes, sm * SM_PIPES + PORT)
    done_s = reserve(slowest, PORT, worker, now_s, size / limits.port_bytes_per_s + held_s)
    service_s, l2_done_s = 0.0, done_s
    if passed:
        l2, service_s = at(r.pipes, limits.sms * SM_PIPES), passed / limits.l2_bytes_per_s
        l2_done_s = reserve(l2, L2, worker, now_s, service_s)
        if l2_done_s > done_s:
            done_s, slowest = l2_done_s, l2
    add(r.bins, r.bins_per_s, L2_BYTES, l2_done_s - service_s, l2_done_s, size)
    if read or written:
        hbm = at(r.pipes, limits.sms * SM_PIPES + 1)
        service_s = read / limits.hbm_read_bytes_per_s + written / limits.hbm_write_bytes_per_s
        hbm_done_s = reserve(hbm, HBM, worker, now_s, service_s)
        add(r.bins, r.bins_per_s, HBM_BYTES, hbm_done_s - service_s, hbm_done_s, read + written)
        if hbm_done_s > done_s:
            done_s, slowest = hbm_done_s, hbm
    set_path(buffer, slowest)
    return done_s, l2_done_s


@inlined
def load_tile(r, sm, worker, now_s, stream, tile, held_s, buffer):
    """Load a tile, with the latency of the farthest level; `buffer` learns when it arrives."""
    limits, total = r.limits[0], r.total[0]
    size, passed, read, written, in_flight_s, line = touch_tile(r, sm, stream, tile, False, True)
    done_s, l2_done_s = cross(r, sm, worker, now_s, size, held_s, passed, read, written, buffer)
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
            at(r.l2.lines, line).arrival_s = done_s
        else:
            set_arrivals(r.l2, r.sizes, stream, tile, done_s)
        add(r.bins, r.bins_per_s, HBM_IN_FLIGHT, now_s, done_s, read * (done_s - now_s))
    buffer.arrival_s = done_s


@inlined
def issue_load(r, sm, slot, worker, now_s, number, trip):
    """Issue a load's tile of `trip` into the buffer that trip uses."""
    load, item = at(r.loads, number), at(r.slots, slot).item
    buffer = at(r.buffers, slot * r.limits[0].buffers + load.ring_at + (trip & load.ring_mask))
    tile = tile_at(r, load.stream, item, trip)
    load_tile(r, sm, worker, now_s, at(r.streams, load.stream), tile, load.held_s, buffer)
    buffer.trip = trip
    buffer.released = 0
