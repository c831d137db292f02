"""The reference engine: the semantics of `sim.engine.compiled.replay` as SimPy processes.

For reading, extending and checking: one process a worker, one object a thing of the machine. Every
counter equals the compiled engine's to the bit, every time to rounding.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import EventPriority

from sim import machine as mc
from sim.engine.compiled.l2 import DRAW_FACTOR, DRAW_MODULUS, FIRST_DRAW
from sim.engine.compiled.timeline import (
    HBM_BYTES,
    HBM_IN_FLIGHT,
    L2_BYTES,
    L2_HIT_BYTES,
    TENSOR_BUSY,
    add,
    new_timeline,
)
from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.machine import Machine
from sim.tile_program import (
    Action,
    Barrier,
    Chunking,
    Compute,
    Kernel,
    Load,
    Loop,
    Store,
    Stream,
    Tensor,
)

Path = NDArray[np.float64]  # critical time so far, by cause
Events = Generator[simpy.Event, Any, None]


class Wake(simpy.Event):
    """An event that wakes a worker; of two at the same time the lower rank is first."""

    def __init__(self, env: simpy.Environment, rank: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self.rank = rank

    def at(self, time_s: float) -> "Wake":
        """Let it happen at `time_s`."""
        # 1: SimPy starts processes with priority 0, before anything else of that moment.
        self.env.schedule(self, EventPriority(self.rank + 1), time_s - self.env.now)
        return self


@dataclass
class Pipe:
    """A FIFO server."""

    cause: int
    free_at_s: float = 0.0
    busy_s: float = 0.0
    path: Path = field(default_factory=lambda: np.zeros(mc.N_CAUSES))

    def reserve(self, now_s: float, service_s: float, path: Path) -> float:
        """Serve from `now_s` on; return when it is done. `path` is critical for who asks."""
        if self.free_at_s <= now_s:
            self.free_at_s = now_s
            self.path = path.copy()
        self.path[self.cause] += service_s
        self.busy_s += service_s
        self.free_at_s += service_s
        return self.free_at_s


@dataclass
class Chunk:
    """A chunk in L2."""

    number: int
    size: int
    dirty: bool
    used_at: int
    arrival_s: float = 0.0


class L2Cache:
    """Chunks, write-back; of a few drawn at random (`candidates`) the longest unused is evicted.

    Where more than `most_dirty` bytes are dirty, some drawn at random are written, and stay. `dies`
    are the caches below it, of copies that are clean.
    """

    def __init__(
        self, capacity_bytes: int, most_dirty: int, candidates: int, *die_bytes: int
    ) -> None:
        self.capacity_bytes, self.most_dirty = capacity_bytes, most_dirty
        self.candidates = candidates
        self.dies = [L2Cache(own_bytes, most_dirty, candidates) for own_bytes in die_bytes]
        self.used_bytes = self.dirty_bytes = self.touches = self.reread_bytes = 0
        self.draw = FIRST_DRAW
        self.lines: list[Chunk] = []
        self.chunks: dict[int, Chunk] = {}
        self.known: set[int] = set()  # chunks that were used before

    def touch(self, number: int, size: int, write: bool, fetch: bool) -> tuple[int, int]:
        """Use a chunk; return (bytes read from HBM, bytes written to HBM)."""
        self.touches += 1
        if number in self.chunks:
            self.chunks[number].used_at = self.touches
            return 0, self.dirtied(self.chunks[number]) if write else 0
        read = size if fetch else 0
        self.reread_bytes += read if number in self.known else 0
        self.known.add(number)
        if size > self.capacity_bytes:
            return read, (size if write else 0)
        written = 0
        while self.used_bytes + size > self.capacity_bytes:
            victim = self.remove(self.oldest())
            written += victim.size if victim.dirty else 0
        self.chunks[number] = Chunk(number, size, False, self.touches)
        self.lines.append(self.chunks[number])
        self.used_bytes += size
        return read, written + (self.dirtied(self.chunks[number]) if write else 0)

    def dirtied(self, chunk: Chunk) -> int:
        """HBM does not have it yet; return the bytes of those that are written for that."""
        if chunk.dirty:
            return 0
        chunk.dirty = True
        self.dirty_bytes += chunk.size
        written = 0
        while self.dirty_bytes > self.most_dirty:
            drawn = self.lines[self.drawn()]
            if drawn.dirty:
                drawn.dirty = False
                self.dirty_bytes -= drawn.size
                written += drawn.size
        return written

    def touch_from(
        self, die: int, number: int, size: int, write: bool, fetch: bool
    ) -> tuple[int, int, int]:
        """`touch` by way of the die's cache; return (HBM reads, writes, bytes past the die)."""
        if self.dies and write:
            for own in self.dies:
                if number in own.chunks:
                    own.remove(own.lines.index(own.chunks[number]))
        elif self.dies and not self.dies[die].touch(number, size, False, True)[0]:
            return 0, 0, 0
        return *self.touch(number, size, write, fetch), size

    def oldest(self) -> int:
        """The place of the candidate used longest ago."""
        drawn = [self.drawn() for _ in range(self.candidates)]
        return min(drawn, key=lambda line: self.lines[line].used_at)

    def remove(self, line: int) -> Chunk:
        """Take a line out; the last one takes its place."""
        victim, last = self.lines[line], self.lines[-1]
        self.lines[line] = last
        self.lines.pop()
        del self.chunks[victim.number]
        self.used_bytes -= victim.size
        self.dirty_bytes -= victim.size if victim.dirty else 0
        return victim

    def drawn(self) -> int:
        """The place of a line, each as likely as any other."""
        self.draw = self.draw * DRAW_FACTOR % DRAW_MODULUS
        return self.draw * len(self.lines) >> 31


def new_l2(chunkings: dict[Tensor, Chunking], hw: HardwareProfile) -> L2Cache:
    """A device's L2, empty."""
    machine, candidates = mc.machine_of(hw), hw.calibration.l2.candidates
    capacities = machine.l2_capacity_bytes, machine.l2_most_dirty_bytes
    return L2Cache(*capacities, candidates, *machine.die_capacities_bytes)


def chunks_of(stream: Stream, chunking: Chunking, tile: int) -> list[tuple[int, int]]:
    """Number and bytes of every chunk that a tile is made of."""
    tensor = stream.tensor
    rest, across = divmod(tile, stream.tiles_across)
    group, down = divmod(rest, stream.tiles_down)
    rows_there, cols_there = tensor.size_of(group)
    rows = range(down * stream.tile_rows, min((down + 1) * stream.tile_rows, rows_there))
    cols = range(across * stream.tile_cols, min((across + 1) * stream.tile_cols, cols_there))
    found = []
    for row in rows[:: chunking.rows]:
        for col in cols[:: chunking.cols]:
            line = group * chunking.down + row // chunking.rows
            number = chunking.first + line * chunking.across + col // chunking.cols
            height = min(chunking.rows, rows_there - row)
            width = min(chunking.cols, cols_there - col)
            found.append((number, height * width * tensor.element_bytes))
    return found


@dataclass
class Buffer:
    """Where one tile of a load waits in SRAM."""

    trip: int = -1
    arrival_s: float = 0.0
    released: int = 0
    path: Path = field(default_factory=lambda: np.zeros(mc.N_CAUSES))


class RunningCta:
    """A CTA on its SM: its buffers, and where its workers meet."""

    def __init__(self, replay: "ReferenceReplay", sm: int, slot: int, number: int) -> None:
        self.replay, self.sm, self.slot, self.number = replay, sm, slot, number
        self.start_s = replay.env.now
        self.item = number * replay.kernel.items_per_cta
        self.last_item = self.item + replay.kernel.items_per_cta - 1
        self.buffers = {
            load: [Buffer() for _ in range(load.buffers)]
            for loop in replay.kernel.loops
            for load in loop.loads
        }
        self.stored = Buffer()
        self.parked: list[Worker] = []
        self.starved: list[Worker] = []
        self.workers = [self.new_worker(k) for k in range(replay.kernel.footprint.workers)]

    def new_worker(self, number: int) -> "Worker":
        """One of its workers."""
        return Worker(self, number)

    def buffer(self, load: Load, trip: int) -> Buffer:
        """The buffer that the load's trip uses."""
        return self.buffers[load][trip % load.buffers]

    def issue(self, load: Load, trip: int, path: Path) -> None:
        """Bring the trip's tile to its buffer."""
        buffer = self.buffer(load, trip)
        tile = self.replay.tile(load.stream, self.item, trip)
        buffer.arrival_s, buffer.path = self.replay.load(self.sm, load, tile, path)
        buffer.trip, buffer.released = trip, 0

    def begin_item(self, path: Path) -> None:
        """All buffers are free: issue the first loads of every loop, trip by trip."""
        for loop in self.replay.kernel.loops:
            for load in loop.loads:
                self.buffers[load] = [Buffer() for _ in range(load.buffers)]
            deepest = max((load.stages for load in loop.loads), default=0)
            for trip in range(min(deepest, self.replay.trips(loop, self.item))):
                for load in loop.loads:
                    if trip < load.stages:
                        self.issue(load, trip, path)

    def release(self, load: Load, trip: int, trips: int, path: Path) -> bool:
        """One worker is done with a buffer; return whether it was the last and refilled it."""
        buffer = self.buffer(load, trip)
        buffer.released += 1
        if buffer.released < len(self.workers) or trip + load.stages >= trips:
            return False
        self.issue(load, trip + load.stages, path)
        return True

    def wake_starved(self) -> None:
        """Workers that waited for a load to be issued now know when it comes."""
        for worker in list(self.starved):
            latest = worker.awaited()
            if latest is not None:
                self.starved.remove(worker)
                worker.path = latest.path.copy()
                worker.wake.at(max(latest.arrival_s, self.replay.env.now))

    def wake_parked(self, path: Path, after_s: float = 0.0) -> None:
        """All workers are here: those that waited go on in `after_s`."""
        for worker in self.parked:
            worker.path = path.copy()
            worker.wake.at(self.replay.env.now + after_s)
        self.parked = []


class Worker:
    """A warp group: walks its CTA's program; SimPy gives it the time it takes."""

    def __init__(self, cta: RunningCta, number: int) -> None:
        self.cta, self.number = cta, number
        self.env, self.replay = cta.replay.env, cta.replay
        self.rank = cta.slot * cta.replay.kernel.footprint.workers + number
        self.path: Path = cta.replay.slot_paths[cta.slot].copy()
        self.wake = Wake(self.env, self.rank)
        self.reads: tuple[Load, ...] = ()
        self.trip = 0

    def until(self, time_s: float) -> simpy.Event:
        """An event at `time_s`, with the worker's rank."""
        return Wake(self.env, self.rank).at(time_s)

    def sleep(self) -> simpy.Event:
        """An event that another worker will time."""
        self.wake = Wake(self.env, self.rank)
        return self.wake

    def run(self) -> Events:
        """The whole life of the worker."""
        cta, start_s = self.cta, self.replay.start_s(self.cta.number)
        self.path[mc.CTA_START] += start_s
        yield self.until(self.env.now + start_s)
        while True:
            if self.number == 0:
                cta.begin_item(self.path)
            for loop in self.replay.kernel.loops:
                for trip in range(self.replay.trips(loop, cta.item)):
                    yield from self.run_trip(loop, trip)
            if len(cta.parked) < len(cta.workers) - 1:
                finished = cta.item == cta.last_item
                cta.parked.append(self)
                yield self.sleep()
                if finished:
                    return
                continue
            self.replay.tile_steps += sum(
                self.replay.trips(loop, cta.item) for loop in self.replay.kernel.loops
            )
            if cta.item == cta.last_item:
                yield from self.wait_for_store()
                cta.wake_parked(self.path)
                self.replay.end_cta(cta, self.path)
                return
            cta.item += 1
            setup_s = self.replay.setup_s(cta.item)
            self.path[mc.CTA_START] += setup_s
            cta.wake_parked(self.path, setup_s)
            yield self.until(self.env.now + setup_s)

    def run_trip(self, loop: Loop, trip: int) -> Events:
        """The ops of one trip, in order."""
        self.trip = trip
        last_reader = {
            load: action
            for action in loop.actions
            if isinstance(action, Compute)
            for load in action.reads
            if load.stages
        }
        for action in loop.actions:
            if isinstance(action, Store):
                yield from self.store(action)
                continue
            if isinstance(action, Barrier):
                yield from self.meet(action)
                continue
            yield from self.wait_for_loads(action.reads)
            yield from self.compute(action)
            refilled = [
                self.cta.release(load, trip, self.replay.trips(loop, self.cta.item), self.path)
                for load in loop.loads
                if last_reader.get(load) is action
            ]
            if any(refilled):
                self.cta.wake_starved()

    def awaited(self) -> Buffer | None:
        """The buffer that fills last of those read; None where a load is not issued yet."""
        latest = Buffer()
        for load in self.reads:
            buffer = self.cta.buffer(load, self.trip)
            if buffer.trip != self.trip:
                return None
            if buffer.arrival_s > latest.arrival_s:
                latest = buffer
        return latest

    def wait_for_loads(self, reads: tuple[Load, ...]) -> Events:
        """Until all tiles that the op reads are in SRAM."""
        self.reads = tuple(sorted(reads, key=list(self.cta.buffers).index))
        latest = self.awaited()
        if latest is None:
            self.cta.starved.append(self)
            self.cta.starved.sort(key=lambda worker: worker.number)
            yield self.sleep()
        elif latest.arrival_s > self.env.now:
            self.path = latest.path.copy()
            yield self.until(latest.arrival_s)

    def compute(self, op: Compute) -> Events:
        """Take the SM's pipes, all at once, and wait for the slowest."""
        self.replay.op_count[op] = self.replay.op_count.get(op, 0) + 1
        now_s = done_s = self.env.now
        slowest: Pipe | None = None
        for pipe, service_s in zip(
            self.replay.sm_pipes[self.cta.sm], self.replay.service_s[op], strict=True
        ):
            if service_s > 0:
                pipe_done_s = pipe.reserve(now_s, float(service_s), self.path)
                if pipe.cause == mc.TENSOR:
                    self.replay.record(TENSOR_BUSY, pipe_done_s - service_s, pipe_done_s, service_s)
                if pipe_done_s > done_s:
                    done_s, slowest = pipe_done_s, pipe
        if slowest is not None:
            self.path = slowest.path.copy()
            latency_s = self.replay.latency_s[op]
            self.path[mc.OP_LATENCY] += latency_s
            done_s += latency_s
        yield self.until(done_s)

    def meet(self, op: Barrier) -> Events:
        """Wait for the CTA's other workers; the last one issues what the barrier issues."""
        cta = self.cta
        if len(cta.parked) < len(cta.workers) - 1:
            cta.parked.append(self)
            yield self.sleep()
            return
        for load in cta.buffers:
            if load in op.issues:
                cta.issue(load, self.trip, self.path)
        self.replay.op_count[op] = self.replay.op_count.get(op, 0) + 1
        latency_s = self.replay.machine.op_latency_s
        self.path[mc.OP_LATENCY] += latency_s
        cta.wake_parked(self.path, latency_s)
        yield self.until(self.env.now + latency_s)

    def store(self, op: Store) -> Events:
        """All workers hand their parts to the store; the last one issues it."""
        cta = self.cta
        if len(cta.parked) < len(cta.workers) - 1:
            cta.parked.append(self)
            yield self.sleep()
            return
        yield from self.wait_for_store()
        tile = self.replay.tile(op.stream, cta.item, self.trip)
        cta.stored.arrival_s, cta.stored.path = self.replay.store(cta.sm, op, tile, self.path)
        self.replay.op_count[op] = self.replay.op_count.get(op, 0) + 1
        cta.wake_parked(self.path)

    def wait_for_store(self) -> Events:
        """Until the CTA's last store has left its buffer."""
        if self.cta.stored.arrival_s > self.env.now:
            self.path = self.cta.stored.path.copy()
            yield self.until(self.cta.stored.arrival_s)


@dataclass(frozen=True)
class Touched:
    """A tile's bytes: all, those past the die's cache, what HBM reads and writes for it.

    `in_flight_s` is the last arrival of its chunks that are present, `fetched` numbers the others.
    """

    size: int
    passed: int
    reads: int
    writes: int
    in_flight_s: float
    fetched: list[int]


class ReferenceReplay:
    """One kernel on the machine: its pipes, its L2, and the grid's queue of CTAs."""

    def __init__(
        self,
        kernel: Kernel,
        chunkings: dict[Tensor, Chunking],
        hw: HardwareProfile,
        machine: Machine,
        l2: L2Cache,
        dtype: str,
    ) -> None:
        self.env = simpy.Environment()
        self.kernel, self.chunkings, self.machine, self.l2 = kernel, chunkings, machine, l2
        self.cta_start_s, self.idle_cta_s = mc.cta_start_s(kernel, hw), mc.idle_cta_s(hw)
        self.item_setup_s = mc.item_setup_s(kernel, hw)
        self.sm_pipes = [[Pipe(k) for k in range(mc.SM_PIPES)] for _ in range(machine.sms)]
        self.l2_pipe, self.hbm_pipe = Pipe(mc.L2), Pipe(mc.HBM)
        computes = [op for loop in kernel.loops for op in loop.actions if isinstance(op, Compute)]
        self.service_s = {op: mc.service_times_s(op, kernel, hw, dtype) for op in computes}
        self.latency_s = {op: mc.latency_s(op, kernel, hw, dtype) for op in computes}
        self.held_s = {load: mc.held_s(load, hw) for loop in kernel.loops for load in loop.loads}
        self.ctas_per_sm = mc.ctas_per_sm(kernel.footprint, hw)
        self.slot_paths = [np.zeros(mc.N_CAUSES) for _ in range(machine.sms * self.ctas_per_sm)]
        self.bases = {stream: stream.base(kernel.items) for stream in kernel.streams}
        self.starts = {stream: stream.start(kernel.items) for stream in kernel.streams}
        self.op_count: dict[Action, int] = {}
        self.hbm_read_bytes = self.hbm_write_bytes = 0
        self.l2_read_bytes = self.l2_write_bytes = self.l2_hit_bytes = self.die_hit_bytes = 0
        self.queues = list(range(machine.dies))  # the next CTA of each die
        self.tile_steps = 0
        self.bins, self.bins_per_s = new_timeline()
        self.ctas = [(0, 0.0, 0.0)] * kernel.ctas
        self.end_s = 0.0
        self.path: Path = np.zeros(mc.N_CAUSES)

    def start_s(self, cta: int) -> float:
        """From a free slot to the first load of a CTA, or to the end of one without trips."""
        each = self.kernel.items_per_cta
        works = self.kernel.trips[:, cta * each : (cta + 1) * each].any()
        return self.cta_start_s if works else self.idle_cta_s

    def setup_s(self, item: int) -> float:
        """What an item of a CTA but its first begins with."""
        return self.item_setup_s if self.kernel.trips[:, item].any() else 0.0

    def trips(self, loop: Loop, item: int) -> int:
        """How often the loop runs in the item."""
        return int(self.kernel.trips[self.kernel.loops.index(loop), item])

    def tile(self, stream: Stream, item: int, trip: int) -> int:
        """The tile that a stream touches in a trip of an item."""
        base = int(self.bases[stream][item])
        if stream.table is not None:
            return base + int(stream.table[self.starts[stream][item] + trip])
        return base + stream.stride * trip

    def run(self) -> None:
        """Place the grid's first CTAs, and run."""
        self.begin()
        self.env.run()

    def begin(self) -> None:
        """Place the grid's first CTAs, one on every SM before a second one on any."""
        for level in range(self.ctas_per_sm):
            for sm in range(self.machine.sms):
                self.place(sm, sm * self.ctas_per_sm + level)

    def record(self, track: int, start_s: float, end_s: float, amount: float) -> None:
        """Spread `amount` over a stretch of the timeline."""
        add(self.bins, self.bins_per_s, track, start_s, end_s, float(amount))

    def place(self, sm: int, slot: int) -> None:
        """Give a free slot the next CTA of its die, if there is one left."""
        die = sm % self.machine.dies
        if self.queues[die] < self.kernel.ctas:
            cta = self.new_cta(sm, slot, self.queues[die])
            self.queues[die] += self.machine.dies
            for worker in cta.workers:
                self.env.process(worker.run())

    def new_cta(self, sm: int, slot: int, number: int) -> RunningCta:
        """A CTA on its SM."""
        return RunningCta(self, sm, slot, number)

    def end_cta(self, cta: RunningCta, path: Path) -> None:
        """The CTA is over: its slot takes the next one."""
        if self.env.now >= self.end_s:
            self.end_s, self.path = self.env.now, path.copy()
        self.ctas[cta.number] = (cta.sm, cta.start_s, self.env.now)
        self.slot_paths[cta.slot] = path
        self.place(cta.sm, cta.slot)

    def cross(
        self, sm: int, tile: Touched, path: Path, held_s: float = 0.0
    ) -> tuple[float, float, Path]:
        """Reserve every pipe between an SM and where the tile is.

        The port is held for `held_s` beyond what the bytes take; L2 serves those that passed the
        die's cache. Returns when the slowest is done, when L2 is, and the critical path.
        """
        now_s, machine = self.env.now, self.machine
        slowest = self.sm_pipes[sm][mc.PORT]
        port_s = tile.size / machine.port_bytes_per_s + held_s
        l2_done_s, service_s = slowest.reserve(now_s, port_s, path), 0.0
        if tile.passed:
            service_s = tile.passed / machine.l2_bytes_per_s
            l2_done_s = self.l2_pipe.reserve(now_s, service_s, path)
            if self.l2_pipe.free_at_s > slowest.free_at_s:
                slowest = self.l2_pipe
        self.record(L2_BYTES, l2_done_s - service_s, l2_done_s, tile.size)
        if moved := tile.reads + tile.writes:
            service_s = machine.hbm_s(tile.reads, tile.writes)
            done_s = self.hbm_pipe.reserve(now_s, service_s, path)
            self.record(HBM_BYTES, done_s - service_s, done_s, moved)
            if self.hbm_pipe.free_at_s > slowest.free_at_s:
                slowest = self.hbm_pipe
        return slowest.free_at_s, l2_done_s, slowest.path.copy()

    def touch(self, sm: int, stream: Stream, tile: int, write: bool, fetch: bool) -> Touched:
        """Touch a tile's chunks; what is written passes the die's cache."""
        size = passed = reads = writes = 0
        die = sm % self.machine.dies
        in_flight_s, fetched = 0.0, []
        for number, chunk_bytes in chunks_of(stream, self.chunkings[stream.tensor], tile):
            read, written, past = self.l2.touch_from(die, number, chunk_bytes, write, fetch)
            size, reads, writes = size + chunk_bytes, reads + read, writes + written
            passed += chunk_bytes if write else past
            if read:
                fetched.append(number)
            elif number in self.l2.chunks:
                in_flight_s = max(in_flight_s, self.l2.chunks[number].arrival_s)
        self.hbm_read_bytes += reads
        self.hbm_write_bytes += writes
        return Touched(size, passed, reads, writes, in_flight_s, fetched)

    def load(self, sm: int, load: Load, tile: int, path: Path) -> tuple[float, Path]:
        """Load a tile; return when it is in SRAM, and the critical path of that."""
        touched = self.touch(sm, load.stream, tile, False, True)
        done_s, l2_done_s, path = self.cross(sm, touched, path, self.held_s[load])
        size, reads = touched.size, touched.reads
        self.l2_read_bytes += size
        self.l2_hit_bytes += size - reads
        self.die_hit_bytes += size - touched.passed
        self.record(L2_HIT_BYTES, l2_done_s, l2_done_s, size - reads)
        latency_s = self.machine.hbm_latency_s if reads else self.machine.l2_latency_s
        done_s += latency_s
        path[mc.HBM_LATENCY if reads else mc.L2_LATENCY] += latency_s
        if touched.in_flight_s > done_s:
            path[mc.HBM_LATENCY] += touched.in_flight_s - done_s
            done_s = touched.in_flight_s
        if reads:
            now_s = self.env.now
            self.record(HBM_IN_FLIGHT, now_s, done_s, reads * (done_s - now_s))
        for number in touched.fetched:
            if number in self.l2.chunks:
                self.l2.chunks[number].arrival_s = done_s
        return done_s, path

    def store(self, sm: int, op: Store, tile: int, path: Path) -> tuple[float, Path]:
        """Store a tile; return when it has left the SM, and the critical path of that."""
        touched = self.touch(sm, op.stream, tile, True, op.atomic)
        self.l2_write_bytes += touched.size
        done_s, _, path = self.cross(sm, touched, path)
        return done_s, path


def run_kernel(
    kernel: Kernel,
    chunkings: dict[Tensor, Chunking],
    hw: HardwareProfile,
    l2: L2Cache,
    dtype: str,
    progress: Callable[[int], None],
) -> KernelRun:
    """Run `kernel` as SimPy processes; `progress` is told at the end alone."""
    for chunk in l2.lines:  # what the last kernel left has arrived; times start anew
        chunk.arrival_s = 0.0
    replay = ReferenceReplay(kernel, chunkings, hw, mc.machine_of(hw), l2, dtype)
    reread_bytes = l2.reread_bytes
    replay.run()
    progress(replay.tile_steps)
    busy_s = [sum(pipes[k].busy_s for pipes in replay.sm_pipes) for k in range(mc.SM_PIPES)]
    sms, starts, ends = zip(*replay.ctas, strict=True)
    return KernelRun(
        kernel=kernel,
        time_s=replay.end_s,
        ctas_per_sm=replay.ctas_per_sm,
        counts={action: replay.op_count.get(action, 0) for action in kernel.actions},
        hbm_read_bytes=replay.hbm_read_bytes,
        hbm_write_bytes=replay.hbm_write_bytes,
        l2_read_bytes=replay.l2_read_bytes,
        l2_write_bytes=replay.l2_write_bytes,
        l2_hit_bytes=replay.l2_hit_bytes,
        l2_dirty_bytes=l2.dirty_bytes,
        die_hit_bytes=replay.die_hit_bytes,
        hbm_reread_bytes=l2.reread_bytes - reread_bytes,
        busy_s=np.array([*busy_s, replay.l2_pipe.busy_s, replay.hbm_pipe.busy_s]),
        path_s=replay.path,
        cta_sm=np.array(sms),
        cta_start_s=np.array(starts),
        cta_end_s=np.array(ends),
        bins=replay.bins,
        bin_width_s=1.0 / float(replay.bins_per_s[0]),
    )
