"""The form to which every schedule lowers: what each CTA's tiles load, compute and store.

A kernel is a grid of CTAs. A CTA runs one or more *items* (usually one); an item runs the kernel's
loops one after the other, so that a prologue is a loop of one trip. A loop's ops are those of an
algorithm box:

    Load      brings a tile of a stream to one of the load's `stages` buffers once that is free
    Compute   waits for the loads that it reads, then takes the SM's pipes for its amounts
    Barrier   where all workers of the CTA wait for each other
    Store     writes a tile of a stream

The last compute of a trip that reads a load frees its buffer; the load of `stages` trips later is
issued then. So prefetching is nothing but buffers, as in the real kernel. A kernel without it has
loads of no stages, which a barrier issues.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd, prod
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Lifetime = Literal["input", "output", "workspace"]
# What a tensor is to attention, by which whoever needs it finds it. Of what outlives a token's
# attention, "key" and "value" are K and V, "cache" what else is kept of the tokens (latents, page
# tables, minima of K). "statistics" are a softmax's (log-sum-exp, maximum, sum), "partial" the
# results of part of the keys, "angles" RoPE's table, "spilled" registers in local memory.
Role = Literal[
    "query", "key", "value", "cache", "result", "statistics", "partial", "mask", "angles",
    "query gradient", "key gradient", "spilled", "other",
]  # fmt: skip
TensorPath = Literal["native", "mma_sync", "asynchronous", "waited"]
Kind = Literal["scores", "softmax", "output", "flash", "combine", "block search"]
OfItem = Callable[[IntArray], IntArray]  # an integer for each of the items asked for
COUNTED_ITEMS = 2**20  # of a larger grid so many items are looked at to count its trips


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor in HBM: `groups` (such as batch x heads) matrices of `rows` x `cols` elements.

    Inputs and outputs are there throughout, a workspace from the first kernel that touches it to
    the last. `role` is what it is to attention. Where matrices differ, as those of sequences of
    other lengths do, `sizes` has the rows and columns of each, shape (groups, 2), and `rows` and
    `cols` are the most of any; tiles are numbered as if all had these, and cut where theirs end.
    Where tiles do not begin at a matrix's first row, `rows_before`, shape (groups,), is how many
    lie before: they are none of its `rows`, and nothing touches them.
    """

    name: str
    groups: int
    rows: int
    cols: int
    element_bytes: int
    lifetime: Lifetime = "workspace"
    role: Role = "other"
    sizes: IntArray | None = None
    rows_before: IntArray | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor."""
        elements = self.groups * self.rows * self.cols
        if self.sizes is not None:
            elements = int(self.sizes.prod(axis=1).sum())
        if self.rows_before is not None:
            elements += int(self.rows_before.sum()) * self.cols
        return elements * self.element_bytes

    def size_of(self, group: int) -> tuple[int, int]:
        """Rows and columns of one of its matrices."""
        if self.sizes is None:
            return self.rows, self.cols
        return int(self.sizes[group, 0]), int(self.sizes[group, 1])


@dataclass(frozen=True, eq=False)
class Stream:
    """The tiles of a tensor that one op touches, trip after trip.

    Tiles of `tile_rows` x `tile_cols` cut each matrix, numbered row by row, group by group.
    Trip i of an item touches tile base(item) + stride * i or, with a table,
    base(item) + table[start(item) + i].
    """

    tensor: Tensor
    tile_rows: int
    tile_cols: int
    base: OfItem
    stride: int = 0
    table: IntArray | None = None
    start: OfItem = np.zeros_like

    @property
    def tiles_down(self) -> int:
        """Rows of tiles in one matrix."""
        return -(-self.tensor.rows // self.tile_rows)

    @property
    def tiles_across(self) -> int:
        """Columns of tiles in one matrix."""
        return -(-self.tensor.cols // self.tile_cols)

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile that no edge cuts."""
        rows, cols = (
            min(self.tile_rows, self.tensor.rows),
            min(self.tile_cols, self.tensor.cols),
        )
        return rows * cols * self.tensor.element_bytes

    def tile_of(self, item: int, trip: int) -> int:
        """The tile that a trip of an item touches."""
        asked = np.array([item])
        base = int(self.base(asked)[0])
        if self.table is None:
            return base + self.stride * trip
        return base + int(self.table[int(self.start(asked)[0]) + trip])


@dataclass(frozen=True, eq=False)
class Load:
    """Bring the trip's tile of `stream` to SRAM, up to `stages` trips ahead.

    Of 0 stages it is brought when a barrier of the trip issues it, to a buffer of its own. A
    producer that works on it before it brings anything else holds the SM's port so long, for
    `held_cycles` beyond what the bytes take, and for as many reads of L2, one after the other, as
    `held_reads` says.
    """

    stream: Stream
    stages: int = 1
    held_cycles: int = 0
    held_reads: int = 0

    @property
    def buffers(self) -> int:
        """How many tiles it has room for."""
        return max(1, self.stages)


@dataclass(frozen=True, eq=False)
class Compute:
    """Work of the whole CTA on its SM's pipes, all taken at once; done with the slowest.

    `vector_ops` are lane operations of the fp32 pipe (an FMA is one), `other_ops` those that only
    have to be issued (maxima, conversions, shuffles, addresses), `exp_count` exponentials and
    `sram_bytes` what is read from or written to shared memory. All amounts zero: only a wait for
    the loads it reads. Of its instructions so many `latencies` come one after the other, in which
    the worker waits for a result: that of the last, and those of a chain within. Of the
    exponentials `exps_beside` run while the worker's own matmul does, or another worker's
    instructions: for these nothing else waits. Of a matmul whose operands come step by step, each
    read beside the step before, `operand_waits` are its steps: where reading takes longer than
    multiplying, each waits a latency more. Matmuls of warp groups that take turns hold the tensor
    cores for `held_cycles` beyond what they take, all workers' together: then the turn is passed.
    """

    name: str
    reads: tuple[Load, ...] = ()
    mma_flops: int = 0
    vector_ops: int = 0
    exp_count: int = 0
    sram_bytes: int = 0
    other_ops: int = 0
    latencies: int = 1
    exps_beside: int = 0
    operand_waits: int = 0
    held_cycles: int = 0


@dataclass(frozen=True, eq=False)
class Barrier:
    """All workers of the CTA wait here for each other; then the loads in `issues` are issued.

    They go on after the latency of a dependent instruction. A store is such a place too. CTA-wide
    barriers in a loop's machine code (BAR.SYNC; `attnsim kernel` counts them) keep its warps from
    overlapping their softmax with each other's matmuls.
    """

    issues: tuple[Load, ...] = ()


@dataclass(frozen=True, eq=False)
class Store:
    """Write the trip's tile of `stream`; `atomic` adds to what is there instead."""

    stream: Stream
    atomic: bool = False


Action = Compute | Barrier | Store
Op = Load | Action


@dataclass(frozen=True, eq=False)
class Loop:
    """`trips(item)` times the ops, in order."""

    trips: OfItem
    ops: tuple[Op, ...]

    @property
    def loads(self) -> list[Load]:
        """The loop's loads, in program order."""
        return [op for op in self.ops if isinstance(op, Load)]

    @property
    def actions(self) -> list[Action]:
        """What the workers execute, in program order: all but the loads."""
        return [op for op in self.ops if not isinstance(op, Load)]

    @property
    def streams(self) -> list[Stream]:
        """The streams of its loads and stores, in program order."""
        return [op.stream for op in self.ops if isinstance(op, Load | Store)]


@dataclass(frozen=True)
class Footprint:
    """What one CTA takes of its SM. A worker is one warp on each sub-partition (4 warps).

    `producer_threads` of the threads only issue loads: they take room, but no share of the work.
    """

    sram_bytes: int
    threads: int = 128
    registers_per_thread: int = 255
    producer_threads: int = 0

    @property
    def workers(self) -> int:
        """Warp groups that run the CTA's computes, each its share."""
        return max(1, (self.threads - self.producer_threads) // 128)


def spread_over(number: int, most: int) -> IntArray:
    """The numbers below `number`, or `most` of them, evenly spread."""
    most = min(most, number)
    return np.linspace(0, number, most, endpoint=False).astype(np.int64)


def once(items: IntArray) -> IntArray:
    """Trips of a prologue or an epilogue."""
    return np.ones_like(items)


class _Trips(NamedTuple):
    """Trips of each loop over all items and the most in one, of all in the shortest and longest."""

    of_loops: list[int]
    most_of_loops: list[int]
    shortest: int
    longest: int


@dataclass(frozen=True)
class CompiledFrom:
    """The machine code that a kernel's counts are of, and the architecture that it is asked about.

    `sha256` is of its file, `function` its name there, `arch` what it was compiled for, `matmul`
    the instruction of its matmuls ("mma.sync"), `device_arch` the device's.
    """

    sha256: str
    function: str
    arch: str
    matmul: str
    device_arch: str


@dataclass(frozen=True, eq=False)
class Kernel:
    """A launch: `ctas` CTAs in grid order, each running `items_per_cta` items one after the other.

    CTA c runs items c * items_per_cta and those that follow. Items are numbers here; what they
    touch is computed only when the kernel runs, so that lowering costs nothing. `tensor_path` is
    how its matmuls are issued: `mma_sync` by the warp, `native` by the device's best instruction,
    waited for before anything else; `asynchronous` is native, and leaves other
    workers' instructions more of the issue slots meanwhile (both as a profile's calibration says);
    `waited` is native too, each part of a matmul waited for, which leaves them all.

    The grid goes through `periods` like parts one after the other, such as the heads of all
    sequences; `sharing` of them in a row read the same K and V. Of an `irregular` one, as of
    sequences of several lengths, no part tells of the rest. `in_waves` says that only whole waves
    of it stand for others: left without some of its CTAs, a wave would find other things in L2.
    `kind` says which real kernel it is, for whoever launches those; `backward` that it is one of
    the backward pass; `compiled_from` the machine code whose counts it has, where it has any. A CTA
    that `sets_up` begins with its architecture's setup, one of a kernel that multiplies unless that
    says no: its loops then tell their own. With `sets_up_items` every item does.
    `splits` is how many ranges the keys of a sequence are cut in, the most of any; `dealt_tiles`
    how many tiles the CTAs of a persistent kernel take one after the other (0: each CTA has its
    own). `matmul_dtype` is that of its matmuls where it is not the workload's. `like` is the first
    of the kernels that do the same, each to other matrices.
    """

    name: str
    ctas: int
    loops: tuple[Loop, ...]
    footprint: Footprint
    tensor_path: TensorPath = "native"
    items_per_cta: int = 1
    periods: int = 1
    sharing: int = 1
    irregular: bool = False
    in_waves: bool = False
    kind: Kind | None = None
    backward: bool = False
    compiled_from: CompiledFrom | None = None
    sets_up: bool | None = None
    sets_up_items: bool = False
    splits: int = 1
    dealt_tiles: int = 0
    matmul_dtype: str | None = None
    like: "Kernel | None" = None

    @property
    def first_like(self) -> "Kernel":
        """The first of the kernels that do the same."""
        return self.like or self

    @property
    def items(self) -> IntArray:
        """Every item's number."""
        return np.arange(self.ctas * self.items_per_cta, dtype=np.int64)

    @cached_property
    def trips(self) -> IntArray:
        """Trips of every loop in every item: shape (loops, items)."""
        return self.trips_of(self.items)

    def trips_of(self, items: IntArray) -> IntArray:
        """Trips of every loop in these items: shape (loops, items)."""
        return np.array([loop.trips(items) for loop in self.loops], np.int64)

    @property
    def loop_trips(self) -> list[int]:
        """Trips of each loop over all items: of a vast grid by items spread evenly over it."""
        return self._counted.of_loops

    @property
    def most_trips(self) -> int:
        """Trips of all loops in the longest of the items that are looked at."""
        return self._counted.longest

    @property
    def most_loop_trips(self) -> list[int]:
        """The most trips of each loop in any of them."""
        return self._counted.most_of_loops

    @property
    def is_uniform(self) -> bool:
        """Whether all items that do anything have the same trips."""
        return self._counted.shortest == self._counted.longest

    @cached_property
    def _counted(self) -> _Trips:
        number = self.ctas * self.items_per_cta
        looked_at = spread_over(number, COUNTED_ITEMS)
        trips = self.trips_of(looked_at)
        of_items = trips.sum(axis=0)
        shortest = int(of_items[of_items > 0].min(initial=of_items.max()))
        loop_trips = [int(count) * number // len(looked_at) for count in trips.sum(axis=1)]
        return _Trips(loop_trips, trips.max(axis=1).tolist(), shortest, int(of_items.max()))

    @property
    def rows_used(self) -> float | None:
        """Share of the query rows that its tiles multiply which are there: the rest is padding.

        None of a kernel that multiplies no queries.
        """
        if not any(isinstance(op, Compute) and op.mma_flops for op in self.actions):
            return None
        q = next((one for one in self.streams if one.tensor.role == "query"), None)
        if q is None:
            return None
        rows = np.array([q.tensor.rows]) if q.tensor.sizes is None else q.tensor.sizes[:, 0]
        return float(rows.sum() / (-(-rows // q.tile_rows) * q.tile_rows).sum())

    @property
    def tile_steps(self) -> int:
        """Trips over all loops and items."""
        return sum(self.loop_trips)

    @property
    def actions(self) -> list[Action]:
        """What the workers execute, over all loops."""
        return [action for loop in self.loops for action in loop.actions]

    @property
    def multiplies(self) -> bool:
        """Whether any of its computes has matmuls."""
        return any(isinstance(action, Compute) and action.mma_flops for action in self.actions)

    @property
    def streams(self) -> list[Stream]:
        """Every stream that an op of the kernel touches."""
        return [stream for loop in self.loops for stream in loop.streams]

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor that the kernel touches, once each, in program order."""
        return list(dict.fromkeys(stream.tensor for stream in self.streams))


@dataclass(frozen=True, eq=False)
class Transfer:
    """`bytes` sent over a link: to GPU `to`, or from or to the host's memory.

    `buffer` is where they arrive, in the receiver's HBM for as long as the program runs.
    """

    name: str
    bytes: int
    to: int | Literal["host"]
    from_host: bool = False
    buffer: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Command:
    """A kernel that GPU `gpu` runs or a transfer that it makes, once those in `after` are done.

    The kernels of one GPU run in the order in which they are listed. `host_s` is what its host does
    before it launches the kernel, once it has launched the one before; with `host_waits` (as where
    it copied from its own memory) only once all kernels before are done.
    """

    work: Kernel | Transfer
    gpu: int = 0
    after: tuple["Command", ...] = ()
    host_s: float = 0.0
    host_waits: bool = False


def like(first: Kernel, kernel: Kernel) -> Kernel:
    """The kernel, which says that it does what the first one does, to other matrices."""
    return kernel if kernel is first else replace(kernel, like=first)


def some_of(kernel: Kernel, ctas: int, number: OfItem) -> Kernel:
    """The kernel with so many of its CTAs, of which `number` says which each one is.

    It is for kernels of one item a CTA.
    """

    def taken(of_item: OfItem) -> OfItem:
        return lambda items: of_item(number(items))

    def of(stream: Stream) -> Stream:
        return replace(stream, base=taken(stream.base), start=taken(stream.start))

    def ops(loop: Loop) -> tuple[Op, ...]:
        loads = {load: replace(load, stream=of(load.stream)) for load in loop.loads}

        def same(op: Op) -> Op:
            if isinstance(op, Load):
                return loads[op]
            if isinstance(op, Store):
                return replace(op, stream=of(op.stream))
            if isinstance(op, Barrier):
                return Barrier(tuple(loads[load] for load in op.issues))
            return replace(op, reads=tuple(loads[load] for load in op.reads))

        return tuple(map(same, loop.ops))

    loops = tuple(Loop(taken(loop.trips), ops(loop)) for loop in kernel.loops)
    return replace(kernel, ctas=ctas, loops=loops)


def in_order(kernels: list[Kernel]) -> list[Command]:
    """The kernels one after the other on one GPU."""
    return [Command(kernel) for kernel in kernels]


@dataclass(frozen=True)
class Chunking:
    """How the L2 cuts a tensor: the largest chunk that every kernel's tiles are made of."""

    rows: int
    cols: int
    first: int
    down: int
    across: int


def chunk_tensors(kernels: list[Kernel]) -> dict[Tensor, Chunking]:
    """The chunks of all tensors of a schedule, numbered through from 0.

    A tile that spans a whole side of its tensor is made of any chunks and so constrains none.
    """
    tiles: dict[Tensor, list[Stream]] = {}
    for kernel in kernels:
        for stream in kernel.streams:
            tiles.setdefault(stream.tensor, []).append(stream)
    chunkings: dict[Tensor, Chunking] = {}
    first = 0
    for tensor, streams in tiles.items():
        rows = gcd(*(s.tile_rows for s in streams if s.tile_rows < tensor.rows)) or tensor.rows
        cols = gcd(*(s.tile_cols for s in streams if s.tile_cols < tensor.cols)) or tensor.cols
        down, across = -(-tensor.rows // rows), -(-tensor.cols // cols)
        chunkings[tensor] = Chunking(rows, cols, first, down, across)
        first += prod((tensor.groups, down, across))
    return chunkings
