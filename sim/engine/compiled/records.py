"""A kernel as arrays of records, the form in which the compiled replay takes it."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.engine.compiled.jit import aligned
from sim.engine.compiled.l2 import L2Lines
from sim.engine.compiled.timeline import new_timeline
from sim.inputs.hardware import HardwareProfile
from sim.machine import (
    N_CAUSES,
    SM_PIPES,
    Machine,
    cta_start_s,
    ctas_per_sm,
    held_s,
    idle_cta_s,
    item_setup_s,
    latency_s,
    service_times_s,
)
from sim.tile_program import (
    Action,
    Barrier,
    Chunking,
    Compute,
    IntArray,
    Kernel,
    Load,
    Loop,
    Store,
    Stream,
    Tensor,
)

INF = np.inf
NEVER = int(np.float64(INF).view(np.int64))  # when that is due
COMPUTE, STORE, ATOMIC, BARRIER = range(4)  # kinds of op
# What a worker's next event is.
START, WAITING, RUNNING, STORING, PASSED, DRAINING, IDLE = range(7)


def _int64(names: str) -> list[tuple[str, str]]:
    return [(name, "i8") for name in names.split()]


def _float64(names: str) -> list[tuple[str, str]]:
    return [(name, "f8") for name in names.split()]


PATH = ("path_s", "f8", (N_CAUSES,))  # critical time so far, by cause

# `rows` and `cols` are of one of the tensor's matrices. `whole_bytes` is the size of any tile where
# each is one whole chunk, else 0. `table_at` is where its table begins in Replay.table, or -1,
# `sizes_at` where those of its tensor's matrices do in Replay.sizes, or -1 if they are all alike.
STREAM = aligned(
    _int64("rows cols element_bytes tile_rows tile_cols tiles_down tiles_across")
    + _int64("chunk_rows chunk_cols chunks_down chunks_across first_chunk whole_bytes")
    + _int64("stride table_at sizes_at")
)
# A load has a ring of buffers from `ring_at` on among its CTA's. A trip's place in it is
# trip & ring_mask: a ring is a power of two long, for speed, though no more than `stages` are used.
LOAD = aligned(_int64("stream stages ring_at ring_mask") + _float64("held_s"))
LOOP = aligned(_int64("load_at load_end op_at"))
# An op is an action. Bit masks of the loop's loads: `reads`, those that a compute waits for or a
# barrier issues, and `frees`. `shared` says whether what comes after it may touch more than the SM,
# `last` whether it is its trip's last one, `count` how often it ran.
# `service_s` is of one worker's share, `latency_s` what passes once that is served.
OP = aligned(
    [
        *_int64("kind stream reads frees shared last count"),
        *_float64("latency_s"),
        ("service_s", "f8", (SM_PIPES,)),
    ]
)
# `buffers` is how many a CTA has: those of its loads, and last the one that stores leave by.
LIMITS = aligned(
    _int64("sms ctas_per_sm workers buffers loops items_per_cta leaves dies")
    + _float64("port_bytes_per_s l2_bytes_per_s hbm_read_bytes_per_s hbm_write_bytes_per_s")
    + _float64("l2_latency_s hbm_latency_s op_latency_s cta_start_s idle_cta_s item_setup_s")
)
# When a worker's next event is: beside those of its SM, of which the earliest is looked for.
DUE = aligned(_float64("time_s"))
WORKER = aligned([*_int64("slot status loop trip trips op"), PATH])
SLOT = aligned(_int64("cta item last_item arrived"))
BUFFER = aligned([*_float64("arrival_s"), *_int64("trip released"), PATH])
PIPE = aligned([*_float64("free_at_s busy_s"), PATH])
# `due` is when, as the whole number of the same bits: such numbers are in the order of the times,
# and one comparison says who is earlier and who wins a tie.
MATCH = aligned(_int64("due winner"))
CTA = aligned([*_int64("sm"), *_float64("start_s end_s")])
TOTAL = aligned(
    [
        *_int64("hbm_read_bytes hbm_write_bytes l2_read_bytes l2_write_bytes l2_hit_bytes"),
        *_int64("die_hit_bytes steps_done"),
        *_float64("end_s"),
        PATH,
    ]
)


Fields = tuple[Any, ...]


def _record(dtype: np.dtype[np.void], **values: Any) -> Fields:
    """A record's fields in their order; those that are not given are 0.

    An array is made of many records at once: to join arrays of one takes NumPy ten times as long.
    """
    return tuple(values.get(name, 0) for name in dtype.names or ())


class Replay(NamedTuple):
    """A kernel as arrays of records, and how far it has come.

    `base` and `start` have shape (streams, items), `sizes` (matrices, 2), `trips` (loops, items).
    `pipes` holds SM_PIPES an SM, then L2 and HBM. `matches` is a tournament of SMs as a binary
    tree: the root is 1, below n are 2n and 2n + 1, SM k is at `leaves` + k; each node holds its
    winner and when that is due.
    `limits` and `total` are one record each. `queues` has the next CTA of each die: they are dealt
    to dies in turn.
    """

    limits: NDArray[np.void]
    streams: NDArray[np.void]
    base: NDArray[np.int64]
    start: NDArray[np.int64]
    table: NDArray[np.int64]
    sizes: NDArray[np.int64]
    trips: NDArray[np.int64]
    loads: NDArray[np.void]
    loops: NDArray[np.void]
    ops: NDArray[np.void]
    due: NDArray[np.void]
    workers: NDArray[np.void]
    slots: NDArray[np.void]
    buffers: NDArray[np.void]
    pipes: NDArray[np.void]
    matches: NDArray[np.void]
    ctas: NDArray[np.void]
    queues: NDArray[np.int64]
    total: NDArray[np.void]
    bins: NDArray[np.float64]
    bins_per_s: NDArray[np.float64]
    l2: L2Lines


def frees_of(loads: list[Load], actions: list[Action]) -> list[int]:
    """For each action the bit mask of the loads that it is the last to read, and so brings anew.

    Loads of no stages wait for their barrier.
    """
    frees = [0] * len(actions)
    for k, load in enumerate(loads):
        readers = [n for n, a in enumerate(actions) if isinstance(a, Compute) and load in a.reads]
        if load.stages:
            frees[readers[-1]] |= 1 << k
    return frees


def before_shared(actions: list[Action], position: int) -> bool:
    """Whether an action comes before a store or a load that is issued, with no compute between."""
    for action in (*actions[position + 1 :], *actions[: position + 1]):
        if isinstance(action, Compute):
            return False
        if isinstance(action, Store) or action.issues:
            return True
    return False


class _Program:
    """A kernel's loops, loads, ops and streams, collected as records."""

    def __init__(
        self, kernel: Kernel, chunkings: dict[Tensor, Chunking], hw: HardwareProfile, dtype: str
    ) -> None:
        self.kernel, self.chunkings, self.hw, self.dtype = kernel, chunkings, hw, dtype
        self.streams: list[Fields] = []
        self.bases: list[NDArray[np.int64]] = []
        self.starts: list[NDArray[np.int64]] = []
        self.tables: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        # Through a table, from where for how many trips; where what is touched of it begins among
        # `tables`, and where in that each item starts.
        self.ways: list[tuple[IntArray, tuple[IntArray, IntArray], int, IntArray]] = []
        self.sizes: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
        self.loads: list[Fields] = []
        self.ops: list[Fields] = []
        self.loops: list[Fields] = []
        self.buffers = 0
        for loop in kernel.loops:
            self.add_loop(loop)

    def add_loop(self, loop: Loop) -> None:
        """Collect a loop."""
        loads, ops = len(self.loads), len(self.ops)
        trips = loop.trips(self.kernel.items)
        for load in loop.loads:
            self.add_load(load, trips)
        for position, frees in enumerate(frees_of(loop.loads, loop.actions)):
            self.add_op(loop, position, frees, trips)
        self.loops.append(_record(LOOP, load_at=loads, load_end=len(self.loads), op_at=ops))

    def add_load(self, load: Load, trips: NDArray[np.int64]) -> None:
        """Collect a load, with its ring of buffers."""
        length = 1 << (load.buffers - 1).bit_length()
        self.loads.append(
            _record(
                LOAD,
                stream=self.add_stream(load.stream, trips),
                stages=load.stages,
                ring_at=self.buffers,
                ring_mask=length - 1,
                held_s=held_s(load, self.hw),
            )
        )
        self.buffers += length

    def add_op(self, loop: Loop, position: int, frees: int, trips: NDArray[np.int64]) -> None:
        """Collect an action of a loop."""
        action = loop.actions[position]

        def mask(loads: tuple[Load, ...]) -> int:
            return sum(1 << loop.loads.index(load) for load in loads)

        fields: dict[str, Any] = {
            "stream": -1,
            "shared": before_shared(loop.actions, position),
            "last": position + 1 == len(loop.actions),
        }
        if isinstance(action, Store):
            fields |= {
                "kind": ATOMIC if action.atomic else STORE,
                "stream": self.add_stream(action.stream, trips),
                "shared": True,
            }
        elif isinstance(action, Barrier):
            fields |= {"kind": BARRIER, "reads": mask(action.issues)}
        else:
            fields |= {
                "kind": COMPUTE,
                "reads": mask(action.reads),
                "frees": frees,
                "shared": bool(frees) or fields["shared"],
                "service_s": service_times_s(action, self.kernel, self.hw, self.dtype),
                "latency_s": latency_s(action, self.kernel, self.hw, self.dtype),
            }
        self.ops.append(_record(OP, **fields))

    def add_stream(self, stream: Stream, trips: NDArray[np.int64]) -> int:
        """Collect a stream of a loop of so many trips in each item; returns its number."""
        tensor, chunking = stream.tensor, self.chunkings[stream.tensor]
        rows, cols = min(stream.tile_rows, tensor.rows), min(stream.tile_cols, tensor.cols)
        whole = (
            (rows, cols) == (chunking.rows, chunking.cols)
            and tensor.rows % rows == 0
            and tensor.cols % cols == 0
            and tensor.sizes is None
        )
        table_at, starts = -1, stream.start(self.kernel.items)
        if stream.table is not None:
            table_at, starts = self.add_table(stream.table, starts, trips)
        sizes_at = -1
        if tensor.sizes is not None:
            sizes_at = sum(len(sizes) for sizes in self.sizes)
            self.sizes.append(tensor.sizes)
        self.streams.append(
            _record(
                STREAM,
                rows=tensor.rows,
                cols=tensor.cols,
                element_bytes=tensor.element_bytes,
                tile_rows=rows,
                tile_cols=cols,
                tiles_down=stream.tiles_down,
                tiles_across=stream.tiles_across,
                chunk_rows=chunking.rows,
                chunk_cols=chunking.cols,
                chunks_down=chunking.down,
                chunks_across=chunking.across,
                first_chunk=chunking.first,
                whole_bytes=rows * cols * tensor.element_bytes if whole else 0,
                stride=stream.stride,
                table_at=table_at,
                sizes_at=sizes_at,
            )
        )
        self.bases.append(stream.base(self.kernel.items))
        self.starts.append(starts)
        return len(self.bases) - 1

    def add_table(self, table: IntArray, starts: IntArray, trips: IntArray) -> tuple[int, IntArray]:
        """Collect what items touch of a table, once for streams that go through it alike, as K, V.

        Returns where it begins among the tables, and where in it each item starts.
        """
        way = starts, trips
        for known, its_way, at, touched_at in self.ways:
            if known is table and all(map(np.array_equal, its_way, way)):
                return at, touched_at
        at = sum(len(touched) for touched in self.tables)
        touched, touched_at = gone_through(table, starts, trips)
        self.tables.append(touched)
        self.ways.append((table, way, at, touched_at))
        return at, touched_at


def gone_through(
    table: NDArray[np.int64], starts: NDArray[np.int64], trips: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What items touch of a table, one after the other, and where in it each begins.

    The table itself where that is no longer.
    """
    if len(table) <= trips.sum():
        return table, starts
    at = np.cumsum(trips) - trips
    touched = np.repeat(starts - at, trips) + np.arange(trips.sum())
    return table[touched], at


def _limits_of(
    kernel: Kernel, buffers: int, hw: HardwareProfile, machine: Machine
) -> NDArray[np.void]:
    limits = _record(
        LIMITS,
        sms=machine.sms,
        ctas_per_sm=ctas_per_sm(kernel.footprint, hw),
        workers=kernel.footprint.workers,
        buffers=buffers,
        loops=len(kernel.loops),
        items_per_cta=kernel.items_per_cta,
        leaves=1 << max(0, machine.sms - 1).bit_length(),
        dies=machine.dies,
        port_bytes_per_s=machine.port_bytes_per_s,
        l2_bytes_per_s=machine.l2_bytes_per_s,
        hbm_read_bytes_per_s=machine.hbm_read_bytes_per_s,
        hbm_write_bytes_per_s=machine.hbm_write_bytes_per_s,
        l2_latency_s=machine.l2_latency_s,
        hbm_latency_s=machine.hbm_latency_s,
        op_latency_s=machine.op_latency_s,
        cta_start_s=cta_start_s(kernel, hw),
        idle_cta_s=idle_cta_s(hw),
        item_setup_s=item_setup_s(kernel, hw),
    )
    return np.array([limits], LIMITS)


def _idle(slots: int, workers: int) -> NDArray[np.void]:
    """So many workers in each slot, with nothing to do yet."""
    idle = np.zeros(slots * workers, WORKER)
    idle["status"] = IDLE
    idle["slot"] = np.arange(slots).repeat(workers)
    return idle


def new_replay(
    kernel: Kernel,
    chunkings: dict[Tensor, Chunking],
    hw: HardwareProfile,
    machine: Machine,
    l2: L2Lines,
    dtype: str,
) -> Replay:
    """`kernel` ready to begin on the machine, with the L2 as its predecessor left it."""
    program = _Program(kernel, chunkings, hw, dtype)
    limits = _limits_of(kernel, program.buffers + 1, hw, machine)
    slots = machine.sms * int(limits["ctas_per_sm"][0])
    matches = np.zeros(2 * int(limits["leaves"][0]), MATCH)
    matches["due"] = NEVER
    bins, bins_per_s = new_timeline()
    return Replay(
        limits=limits,
        streams=np.array(program.streams, STREAM),
        base=np.array(program.bases, np.int64).reshape(-1, len(kernel.items)),
        start=np.array(program.starts, np.int64).reshape(-1, len(kernel.items)),
        table=np.concatenate(program.tables),
        sizes=np.concatenate(program.sizes),
        trips=kernel.trips,
        loads=np.array(program.loads, LOAD),
        loops=np.array(program.loops, LOOP),
        ops=np.array(program.ops, OP),
        due=np.full(slots * kernel.footprint.workers, INF).view(DUE),
        workers=_idle(slots, kernel.footprint.workers),
        slots=np.zeros(slots, SLOT),
        buffers=np.zeros(slots * int(limits["buffers"][0]), BUFFER),
        pipes=np.zeros(machine.sms * SM_PIPES + 2, PIPE),
        matches=matches,
        ctas=np.zeros(kernel.ctas, CTA),
        queues=np.arange(machine.dies),
        total=np.zeros(1, TOTAL),
        bins=bins,
        bins_per_s=bins_per_s,
        l2=l2,
    )


def replay_bytes(kernel: Kernel, hw: HardwareProfile) -> int:
    """What `new_replay` takes of this computer's memory, nearly, the L2 apart."""
    workers = kernel.footprint.workers
    buffers = 1 + sum(2 * load.buffers for loop in kernel.loops for load in loop.loads)
    slot = SLOT.itemsize + workers * (DUE.itemsize + WORKER.itemsize) + buffers * BUFFER.itemsize
    sm = SM_PIPES * PIPE.itemsize + 4 * MATCH.itemsize + ctas_per_sm(kernel.footprint, hw) * slot
    an_item = 8 * (len(kernel.loops) + 2 * len(kernel.streams))
    items = kernel.ctas * kernel.items_per_cta
    return hw.sm.count * sm + kernel.ctas * CTA.itemsize + items * an_item
