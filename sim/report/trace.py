"""A trace that ui.perfetto.dev opens: CTAs on their SMs and what the device did, over time.

Format: Chrome's JSON trace events ("X" slices, "C" counters, "M" names), in microseconds. Each
schedule is one process; a name that ends in .gz is compressed. A GPU has a lane of kernels and one
for each kind of link that it sends over, while a transfer holds its ports. Of several GPUs, a
kernel's CTAs are shown at its first launch.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sim.device.run import Launched
from sim.inputs.files import whole_file
from sim.machine import LinkKind
from sim.runs.job import Outcome
from sim.runs.record import Timeline
from sim.runs.recorded import distinct

MOST_SLICES = 200_000  # CTAs shown of one kernel: beyond it only those of the first SMs
# Threads are numbered through all processes, as an operating system does.
THREADS_A_SCHEDULE = 100_000
LANES_AN_SM = 64
FIRST_GPU_LANE, FIRST_LINK_LANE = 80_000, 90_000
LINKS: tuple[LinkKind, ...] = get_args(LinkKind)


def save_trace(outcomes: list[Outcome], path: Path) -> None:
    """Write the trace of all schedules that ran, whole or not at all."""
    events: list[dict[str, Any]] = []
    for number, outcome in enumerate(outcomes):
        if outcome.run is not None:
            events.extend(_schedule_events(number + 1, outcome))
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}, separators=(",", ":"))
    data = text.encode()
    with whole_file(path) as partial:
        partial.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def _schedule_events(pid: int, outcome: Outcome) -> Iterator[dict[str, Any]]:
    record, run = outcome.record, outcome.run
    assert run is not None
    title = " ".join([record.schedule, *(f"{k}={v}" for k, v in record.point.items())])
    kernels = pid * THREADS_A_SCHEDULE
    yield _name("process_name", pid, kernels, title)
    lanes: dict[int, str] = {}
    for launched in run.kernels:
        lane = kernels + FIRST_GPU_LANE + launched.gpu
        lanes[lane] = f"GPU {launched.gpu:03d} kernels" if run.gpus > 1 else "kernels"
        yield _slice(pid, lane, launched.run.kernel.name, launched.start_s, launched.run.time_s)
    for sent in run.sent:
        lane = kernels + FIRST_LINK_LANE + sent.gpu * len(LINKS) + LINKS.index(sent.kind)
        lanes[lane] = f"GPU {sent.gpu:03d} link: {sent.kind}"
        yield _slice(pid, lane, sent.transfer.name, sent.start_s, sent.free_s - sent.start_s)
    for timeline in record.timeline:
        yield from _counters(pid, timeline)
    for launched, _ in distinct(run):
        yield from _ctas(pid, launched, lanes)
    for change in run.memory:
        yield _counter(pid, "HBM allocated", change.time_s, "bytes", change.in_use_bytes)
    for tid, name in sorted(lanes.items()):
        yield _name("thread_name", pid, tid, name)


def _ctas(pid: int, launched: Launched, lanes: dict[int, str]) -> Iterator[dict[str, Any]]:
    """A slice a CTA, on one of the lanes of its SM; CTAs of one lane do not overlap."""
    run = launched.run
    per_sm = run.ctas_per_sm
    sms = int(run.cta_sm.max()) + 1
    shown_sms = (
        sms if len(run.cta_sm) <= MOST_SLICES else max(1, MOST_SLICES * sms // len(run.cta_sm))
    )
    free_at_s = np.zeros((sms, per_sm))
    for cta in np.argsort(run.cta_start_s, kind="stable"):
        sm = int(run.cta_sm[cta])
        if sm >= shown_sms:
            continue
        start_s, end_s = float(run.cta_start_s[cta]), float(run.cta_end_s[cta])
        lane = int(np.argmax(free_at_s[sm] <= start_s))
        free_at_s[sm, lane] = end_s
        tid = pid * THREADS_A_SCHEDULE + 1 + sm * LANES_AN_SM + lane
        lanes[tid] = f"SM {sm:03d} slot {lane}"
        yield _slice(pid, tid, f"CTA {cta}", launched.start_s + start_s, end_s - start_s)


def _counters(pid: int, timeline: Timeline) -> Iterator[dict[str, Any]]:
    tracks = {
        ("HBM bandwidth in use", "share"): timeline.hbm_utilisation,
        ("tensor rate in use", "share"): timeline.tensor_utilisation,
        ("L2 hit rate", "share"): timeline.l2_hit_rate,
        ("HBM bytes in flight", "bytes"): timeline.hbm_bytes_in_flight,
    }
    for (name, unit), values in tracks.items():
        for k, value in enumerate(values):
            yield _counter(pid, name, timeline.start_s + k * timeline.bin_width_s, unit, value)
        end_s = timeline.start_s + len(values) * timeline.bin_width_s
        yield _counter(pid, name, end_s, unit, 0)


def _slice(pid: int, tid: int, name: str, start_s: float, time_s: float) -> dict[str, Any]:
    # Rounded to the nanoseconds that the trace processor keeps, ends as well as starts, so that
    # slices of one lane do not come to overlap.
    start_ns, end_ns = round(start_s * 1e9), round((start_s + time_s) * 1e9)
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": name,
        "ts": start_ns / 1e3,
        "dur": (end_ns - start_ns) / 1e3,
    }


def _counter(pid: int, name: str, time_s: float, unit: str, value: float) -> dict[str, Any]:
    return {"ph": "C", "pid": pid, "name": name, "ts": time_s * 1e6, "args": {unit: value}}


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"name": name}}
