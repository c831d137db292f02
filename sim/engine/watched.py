"""A kernel's beginning watched: what one SM did when, and which level served every load.

The SimPy reference with its classes looked over the shoulder: what is told is what it did, and its
times are those of the compiled replay. It is slow, so that only so many events are watched, from an
empty L2 on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from sim import machine as mc
from sim.engine.reference import (
    Buffer,
    Events,
    Path,
    ReferenceReplay,
    RunningCta,
    Touched,
    Worker,
    new_l2,
)
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Compute, Kernel, Load, Stream, Tensor, chunk_tensors

MOST_EVENTS = 2**15  # of the whole device: a second or two
# Where a load's tile was: in L2, in HBM, or on its way from HBM by another CTA's load.
Served = Literal["L2", "HBM", "on its way"]
Interval = tuple[float, float]
# What a worker does: a compute on its slowest pipe, or that one's latency; else what it waits for.
# A pipe is waited for while it serves other workers, a buffer while others still read it.
Doing = Literal["runs", "latency", "pipe", "load", "buffer", "workers", "store", "starts"]


@dataclass
class Fetch:
    """A load's tile on its way to a buffer, and when that was free again (None: not yet).

    `slow` is what took the longest of its way.
    """

    sm: int
    slot: int
    cta: int
    item: int
    load: Load
    trip: int
    tile: int
    issued_s: float
    arrival_s: float
    served: Served
    slow: str
    freed_s: float | None = None

    @property
    def tensor(self) -> Tensor:
        """Whose tile it is."""
        return self.load.stream.tensor


@dataclass(frozen=True)
class Span:
    """What a worker of the watched SM did from when to when.

    `what` is the op, or the tensor that is waited for; `why` the pipe, or what was slow.
    """

    slot: int
    worker: int
    cta: int
    start_s: float
    end_s: float
    doing: Doing
    what: str
    why: str = ""
    trip: int = 0


@dataclass
class Watched:
    """A kernel's beginning, up to `until_s`: its end, where it is `whole`.

    `spans` and `ctas` (their lives by number, the end None where it is not reached) are of SM `sm`,
    `own` says when each pipe served it, by its cause; `all_sms` when L2 and HBM served any.
    `fetches` are of all SMs, in the order of their issue.
    """

    kernel: Kernel
    sm: int
    ctas_per_sm: int
    until_s: float = 0.0
    whole: bool = False
    ctas: dict[int, tuple[float, float | None]] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    own: dict[str, list[Interval]] = field(default_factory=dict)
    all_sms: dict[str, list[Interval]] = field(default_factory=dict)
    fetches: list[Fetch] = field(default_factory=list)


def watch(
    kernel: Kernel, hw: HardwareProfile, dtype: str, most_events: int = MOST_EVENTS
) -> Watched:
    """Run the kernel from an empty L2 until so many events have happened, and say what did.

    The SM is the one whose first CTA has the most trips. Raises InputError where no CTA fits one.
    """
    # No more CTAs can begin: the rest of a vast grid need not even be counted.
    slots = hw.sm.count * mc.ctas_per_sm(kernel.footprint, hw)
    begun = replace(kernel, ctas=min(kernel.ctas, slots + most_events))
    replay = _WatchedReplay(begun, hw, dtype)
    replay.begin()
    for _ in range(most_events):
        if replay.env.peek() == float("inf"):
            replay.seen.whole = True
            break
        replay.env.step()
    seen = replay.seen
    seen.kernel, seen.until_s = kernel, float(replay.env.now)
    seen.spans = sorted([*seen.spans, *_gaps(seen)], key=lambda span: span.start_s)
    return seen


def _gaps(seen: Watched) -> Iterator[Span]:
    """Where a worker does nothing that is told, it waits for the others of its CTA."""
    last: dict[tuple[int, int, int], Span] = {}
    for span in sorted(seen.spans, key=lambda span: span.start_s):
        row = (span.slot, span.worker, span.cta)
        before = last.get(row)
        if before and span.start_s > before.end_s:
            yield Span(*row, before.end_s, span.start_s, "workers", "the CTA's other workers")
        last[row] = span
    for row, span in last.items():
        end_s = seen.ctas[span.cta][1]
        if end_s is not None and end_s > span.end_s:
            yield Span(*row, span.end_s, end_s, "workers", "the CTA's other workers")


class _WatchedReplay(ReferenceReplay):
    """A replay whose CTAs tell what they do."""

    def __init__(self, kernel: Kernel, hw: HardwareProfile, dtype: str) -> None:
        chunkings = chunk_tensors([kernel])
        super().__init__(kernel, chunkings, hw, mc.machine_of(hw), new_l2(chunkings, hw), dtype)
        first = kernel.trips.sum(axis=0).reshape(kernel.ctas, -1).sum(axis=1)[: self.machine.sms]
        self.seen = Watched(kernel, int(first.argmax()), self.ctas_per_sm)
        self.slow = ""
        self.served: Served = "L2"
        self.parts_s: dict[str, float] = {}

    def new_cta(self, sm: int, slot: int, number: int) -> RunningCta:
        """A CTA that tells what it does."""
        if sm == self.seen.sm:
            self.seen.ctas[number] = (float(self.env.now), None)
        return _WatchedCta(self, sm, slot, number)

    def end_cta(self, cta: RunningCta, path: Path) -> None:
        """The CTA is over, and its buffers are free."""
        assert isinstance(cta, _WatchedCta)
        cta.free_all()
        if cta.sm == self.seen.sm:
            self.seen.ctas[cta.number] = (cta.start_s, float(self.env.now))
        super().end_cta(cta, path)

    def serves(self, cause: int, interval: Interval) -> None:
        """A pipe serves the watched SM."""
        self.seen.own.setdefault(mc.CAUSES[cause], []).append(interval)

    def cross(
        self, sm: int, tile: Touched, path: Path, held_s: float = 0.0
    ) -> tuple[float, float, Path]:
        """As it is, told when each pipe served, and what took the longest."""
        pipes = [self.sm_pipes[sm][mc.PORT]]
        pipes += [self.l2_pipe] if tile.passed else []
        pipes += [self.hbm_pipe] if tile.reads or tile.writes else []
        now_s = float(self.env.now)
        starts_s = [max(now_s, pipe.free_at_s) for pipe in pipes]
        crossed = super().cross(sm, tile, path, held_s)
        for pipe, start_s in zip(pipes, starts_s, strict=True):
            interval = (start_s, pipe.free_at_s)
            if pipe.cause != mc.PORT:
                _extend(self.seen.all_sms.setdefault(mc.CAUSES[pipe.cause], []), interval)
            if sm == self.seen.sm:
                self.serves(pipe.cause, interval)
        slowest = max(range(len(pipes)), key=lambda number: pipes[number].free_at_s)
        name = mc.CAUSES[pipes[slowest].cause]
        waited_s, served_s = starts_s[slowest] - now_s, pipes[slowest].free_at_s - starts_s[slowest]
        self.parts_s = {f"{name} in use": waited_s, name: served_s}
        return crossed

    def touch(self, sm: int, stream: Stream, tile: int, write: bool, fetch: bool) -> Touched:
        """As it is, kept for `load`."""
        self.touched = super().touch(sm, stream, tile, write, fetch)
        return self.touched

    def load(self, sm: int, load: Load, tile: int, path: Path) -> tuple[float, Path]:
        """As it is, told where the tile was, and what took the longest."""
        done_s, path = super().load(sm, load, tile, path)
        reads, in_flight_s = self.touched.reads, self.touched.in_flight_s
        machine, parts_s = self.machine, self.parts_s
        if reads:
            parts_s["hbm_latency"] = machine.hbm_latency_s
        else:
            parts_s["l2_latency"] = machine.l2_latency_s
        alone_s = self.env.now + sum(parts_s.values())
        self.served = "HBM" if reads else "on its way" if in_flight_s > alone_s else "L2"
        if in_flight_s > alone_s:
            parts_s["another load brings it"] = in_flight_s - alone_s
        self.slow = max(parts_s, key=lambda part: parts_s[part])
        return done_s, path


def _extend(intervals: list[Interval], last: Interval) -> None:
    """Add an interval to those of a pipe, which serves without a gap where it has to."""
    if intervals and intervals[-1][1] >= last[0]:
        last = (intervals.pop()[0], last[1])
    intervals.append(last)


class _WatchedCta(RunningCta):
    """A CTA that tells of its loads and buffers."""

    def __init__(self, replay: _WatchedReplay, sm: int, slot: int, number: int) -> None:
        super().__init__(replay, sm, slot, number)
        self.watching = replay
        self.held: dict[tuple[Load, int], Fetch] = {}

    def new_worker(self, number: int) -> Worker:
        """One that tells what it does, on the watched SM."""
        assert isinstance(self.replay, _WatchedReplay)
        watched = self.sm == self.replay.seen.sm
        return _WatchedWorker(self, number) if watched else Worker(self, number)

    def issue(self, load: Load, trip: int, path: Path) -> None:
        """As it is, told."""
        super().issue(load, trip, path)
        replay, now_s = self.watching, float(self.replay.env.now)
        tile = replay.tile(load.stream, self.item, trip)
        arrival_s = float(self.buffer(load, trip).arrival_s)
        where = (self.sm, self.slot, self.number, self.item)
        fetch = Fetch(*where, load, trip, tile, now_s, arrival_s, replay.served, replay.slow)
        place = (load, trip % load.buffers)
        if place in self.held and self.held[place].freed_s is None:  # a barrier's load
            self.held[place].freed_s = now_s
        self.held[place] = fetch
        replay.seen.fetches.append(fetch)

    def release(self, load: Load, trip: int, trips: int, path: Path) -> bool:
        """As it is; of the last worker, told."""
        if self.buffer(load, trip).released + 1 == len(self.workers):
            self.held[load, trip % load.buffers].freed_s = float(self.replay.env.now)
        return super().release(load, trip, trips, path)

    def begin_item(self, path: Path) -> None:
        """As it is: what no op freed is free now."""
        self.free_all()
        super().begin_item(path)

    def free_all(self) -> None:
        """The item is over."""
        for fetch in self.held.values():
            if fetch.freed_s is None:
                fetch.freed_s = float(self.replay.env.now)
        self.held = {}


class _WatchedWorker(Worker):
    """A worker that tells what it does, and what it waits for."""

    def __init__(self, cta: _WatchedCta, number: int) -> None:
        super().__init__(cta, number)
        self.own_cta = cta

    def tell(
        self, start_s: float, end_s: float, doing: Doing, what: str, why: str = "", trip: int = 0
    ) -> None:
        """Something took a while."""
        if end_s > start_s:
            row = (self.cta.slot, self.number, self.cta.number)
            self.own_cta.watching.seen.spans.append(
                Span(*row, float(start_s), float(end_s), doing, what, why, trip)
            )

    def run(self) -> Events:
        """As it is, from the start of its CTA on."""
        now_s = self.env.now
        self.tell(now_s, now_s + self.replay.start_s(self.cta.number), "starts", "CTA")
        yield from super().run()

    def wait_for_loads(self, reads: tuple[Load, ...]) -> Events:
        """As it is, told by the load that came last: its buffer's wait, and its own."""
        began_s = self.env.now
        yield from super().wait_for_loads(reads)
        if self.env.now == began_s:
            return
        latest = self.awaited()
        load = next(load for load in reads if self._buffer(load) is latest)
        fetch = self.own_cta.held[load, self.trip % load.buffers]
        name, issued_s = load.stream.tensor.name, max(began_s, fetch.issued_s)
        self.tell(began_s, issued_s, "buffer", name, trip=self.trip)
        self.tell(issued_s, self.env.now, "load", name, fetch.slow, self.trip)

    def _buffer(self, load: Load) -> Buffer:
        return self.cta.buffer(load, self.trip)

    def compute(self, op: Compute) -> Events:
        """As it is, told by its slowest pipe: the wait for it, its service and the latency."""
        now_s, rest = self.env.now, super().compute(op)
        first = next(rest)
        slowest_s, cause, start_s = now_s, None, now_s
        service_s = self.replay.service_s[op]
        for pipe in self.replay.sm_pipes[self.cta.sm]:
            if service_s[pipe.cause] > 0:
                from_s = pipe.free_at_s - float(service_s[pipe.cause])
                self.own_cta.watching.serves(pipe.cause, (from_s, pipe.free_at_s))
                if pipe.free_at_s > slowest_s:
                    slowest_s, cause, start_s = pipe.free_at_s, mc.CAUSES[pipe.cause], from_s
        yield first
        yield from rest
        if cause is not None:
            self.tell(now_s, start_s, "pipe", op.name, cause, self.trip)
            self.tell(max(now_s, start_s), slowest_s, "runs", op.name, cause, self.trip)
            self.tell(slowest_s, self.env.now, "latency", op.name, trip=self.trip)

    def wait_for_store(self) -> Events:
        """As it is, told."""
        began_s = self.env.now
        yield from super().wait_for_store()
        self.tell(began_s, self.env.now, "store", "the CTA's last store")
