"""FIFO pipes, and the path that is critical for whoever waits for one, compiled."""

from sim.engine.compiled.jit import inlined
from sim.machine import N_CAUSES

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
