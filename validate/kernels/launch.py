"""A schedule on real tensors: one Triton launch for each kernel that the simulator would replay.

A kernel's kind says which Triton kernel it is; tile sizes, grid order, block tables, warps and
buffers are read off its loads and stores, so that both move the same data. Tensors have the shape
(groups, rows, cols) that they have in `sim.tile_program.Tensor`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import torch

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Schedule, Tile
from sim.schedules.hip import Hip, chunks_a_load
from sim.schedules.parts.hip_search import search_rounds
from sim.tile_program import IntArray, Kernel, Kind, Load, Role, Store, Stream, Tensor
from validate.kernels.flash import combine_kernel, flash_kernel
from validate.kernels.hip import estimate_kernel
from validate.kernels.naive import matmul_kernel, softmax_kernel

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Launch:
    """A Triton kernel with its grid and arguments."""

    name: str  # of the simulator's kernel
    entry: Any
    ctas: int
    arguments: dict[str, Any]

    def __call__(self) -> Any:
        """Launch it; returns Triton's compiled kernel (None in the interpreter)."""
        return self.entry[(self.ctas,)](**self.arguments)


@dataclass(frozen=True)
class KeyTable:
    """Which key blocks the CTAs of a sparse kernel visit: item i, table[start[i] + trip]."""

    table: torch.Tensor  # int32
    start: IntArray
    trips: IntArray


@dataclass
class Placed:
    """A schedule on a device: its tensors, its launches in order, and what sparse kernels visit."""

    w: AttentionWorkload
    schedule: Schedule
    kernels: list[Kernel]
    device: str
    tensors: dict[Tensor, torch.Tensor]
    launches: list[Launch] = field(default_factory=list)
    key_tables: dict[Kernel, KeyTable] = field(default_factory=dict)

    def run(self) -> list[Any]:
        """Launch all kernels; returns what Triton compiled for each."""
        return [launch() for launch in self.launches]

    def launch(self, kernel: Kernel, entry: Any, **arguments: Any) -> None:
        """Add a launch of the Triton kernel `entry` on the grid and warps of `kernel`."""
        arguments["num_warps"] = kernel.footprint.threads // 32
        self.launches.append(Launch(kernel.name, entry, kernel.ctas, arguments))

    def int32(self, values: Any) -> torch.Tensor:
        """Integers on the device."""
        return torch.tensor(np.asarray(values, np.int32), device=self.device)

    def ctas(self, *columns: IntArray) -> torch.Tensor:
        """What each CTA of a kernel works on: a row of integers for each."""
        return self.int32(np.stack(columns, axis=1))

    def of(self, stream: Stream) -> torch.Tensor:
        """The tensor that a stream goes through."""
        return self.tensors[stream.tensor]

    def by_role(self, role: Role) -> torch.Tensor:
        """The one tensor that has this role."""
        (found,) = [held for tensor, held in self.tensors.items() if tensor.role == role]
        return found


def place(
    schedule: Schedule, w: AttentionWorkload, hw: HardwareProfile, device: str, seed: int = 0
) -> Placed:
    """The schedule on normally distributed random inputs (outputs are NaN until it ran).

    Raises InputError where it has no Triton kernels here, torch.OutOfMemoryError where it does not
    fit the device.
    """
    if w.dtype not in DTYPES:
        raise InputError(f"workload.dtype = {w.dtype}: the kernels take {', '.join(DTYPES)}")
    implementation = getattr(schedule, "implementation", "triton")
    if implementation != "triton":
        raise InputError(
            f'schedule {schedule.name}: implementation = "{implementation}": the kernels here are '
            "Triton's"
        )
    if getattr(schedule, "rope", None) is not None or w.dropout:
        raise InputError(f"schedule {schedule.title}: the kernels here have no rope or dropout")
    kernels = kernels_of(schedule.program(w, hw))
    for kernel in kernels:
        if kernel.kind is None:
            raise InputError(f"schedule {schedule.title}: no Triton kernel for {kernel.name!r}")
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for tensor in dict.fromkeys(t for kernel in kernels for t in kernel.tensors):
        tensors[tensor] = _filled(tensor, w, device, generator)
    attention = Placed(w, schedule, kernels, device, tensors)
    for kernel in kernels:
        assert kernel.kind is not None
        LAUNCHERS[kernel.kind](attention, kernel)
    return attention


def _filled(
    tensor: Tensor, w: AttentionWorkload, device: str, generator: torch.Generator
) -> torch.Tensor:
    shape = (tensor.groups, tensor.rows, tensor.cols)
    dtype = DTYPES[w.dtype] if tensor.element_bytes == w.dtype_bytes else torch.float32
    if tensor.lifetime == "input":
        return torch.randn(shape, device=device, dtype=dtype, generator=generator)
    return torch.full(shape, float("nan"), device=device, dtype=dtype)


def _whole(*streams: Stream) -> bool:
    """Whether no tile of the streams is cut by an edge or padded in registers."""
    sides = [
        (side, length)
        for s in streams
        for side, length in ((s.tile_rows, s.tensor.rows), (s.tile_cols, s.tensor.cols))
    ]
    return all(length % side == 0 and side & (side - 1) == 0 for side, length in sides)


def loads_of(kernel: Kernel) -> list[Load]:
    """A kernel's loads, in program order."""
    return [load for loop in kernel.loops for load in loop.loads]


def load_of(kernel: Kernel, role: Role) -> Load:
    """The first load of the tensor that has this role."""
    return next(load for load in loads_of(kernel) if load.stream.tensor.role == role)


def stores_of(kernel: Kernel) -> list[Stream]:
    """The streams that a kernel stores, in program order."""
    return [op.stream for op in kernel.actions if isinstance(op, Store)]


def trips_of(kernel: Kernel, load: Load) -> IntArray:
    """How often each item makes a load: trips of the loop in which it stands."""
    return next(
        trips for loop, trips in zip(kernel.loops, kernel.trips, strict=True) if load in loop.ops
    )


def _matmul(attention: Placed, kernel: Kernel) -> None:
    a, b = loads_of(kernel)
    (c,) = stores_of(kernel)
    items, transposed = kernel.items, kernel.kind == "scores"
    attention.launch(
        kernel,
        matmul_kernel,
        A=attention.of(a.stream),
        B=attention.of(b.stream),
        C=attention.of(c),
        ctas=attention.ctas(a.stream.base(items), b.stream.base(items), c.base(items)),
        trips=int(trips_of(kernel, a)[0]),
        a_rows=a.stream.tensor.rows,
        a_cols=a.stream.tensor.cols,
        b_rows=b.stream.tensor.rows,
        b_cols=b.stream.tensor.cols,
        c_cols=c.tensor.cols,
        b_stride=b.stream.stride,
        scale=1 / sqrt(attention.w.head_dim) if transposed else 1.0,
        TILE_ROWS=a.stream.tile_rows,
        TILE_COLS=b.stream.tile_rows if transposed else b.stream.tile_cols,
        DEPTH=a.stream.tile_cols,
        TRANSPOSED=transposed,
        WHOLE=_whole(a.stream, b.stream),
        STAGES=a.stages,
    )


def _softmax(attention: Placed, kernel: Kernel) -> None:
    w = attention.w
    scores, *_ = loads_of(kernel)
    (probabilities,) = stores_of(kernel)
    attention.launch(
        kernel,
        softmax_kernel,
        S=attention.of(scores.stream),
        P=attention.of(probabilities),
        rows=w.seq_q,
        cols=w.seq_kv,
        first_position=w.seq_kv - w.seq_q,
        SWEEP=len(loads_of(kernel)) > 1,
        TILE_ROWS=probabilities.tile_rows,
        TILE_COLS=probabilities.tile_cols,
        CAUSAL=w.causal,
        WINDOW=w.window or 0,
    )


def _flash(attention: Placed, kernel: Kernel) -> None:
    w, items = attention.w, kernel.items
    load_k = load_of(kernel, "key")
    q, k, v = load_of(kernel, "query").stream, load_k.stream, load_of(kernel, "value").stream
    o, lse = stores_of(kernel)
    trips = trips_of(kernel, load_k)
    keys = attention.key_tables.get(kernel)
    if keys is None and k.table is not None:
        keys = KeyTable(attention.int32(k.table), k.start(items), trips)
        attention.key_tables[kernel] = keys
    attention.launch(
        kernel,
        flash_kernel,
        Q=attention.of(q),
        K=attention.of(k),
        V=attention.of(v),
        O=attention.of(o),
        LSE=attention.of(lse),
        ctas=attention.ctas(
            q.base(items),
            k.base(items),
            keys.start if keys else np.zeros_like(items),
            trips,
            masked_trips(w, q, k, items, trips),
            o.base(items),
        ),
        table=keys.table if keys else attention.int32([0]),
        q_rows=q.tensor.rows,
        kv_rows=w.seq_kv,
        o_rows=o.tensor.rows,
        first_position=w.seq_kv - w.seq_q,
        stride=k.stride,
        scale=1 / sqrt(w.head_dim),
        HEAD_DIM=w.head_dim,
        TILE_Q=q.tile_rows,
        TILE_KV=k.tile_rows,
        TILE_O=o.tile_rows,
        ROWS_A_POSITION=q.tensor.rows // w.seq_q,
        TABLE=keys is not None,
        CAUSAL=w.causal,
        WINDOW=w.window or 0,
        WHOLE=_whole(k),
        STAGES=load_k.buffers,
    )


def masked_trips(
    w: AttentionWorkload, q: Stream, k: Stream, items: IntArray, trips: IntArray
) -> IntArray:
    """How many of each item's trips, the first ones, hold all key blocks that the mask cuts.

    Blocks that a search finds are unknown here, but only a window's far edge could cut them.
    """
    if w.window is not None:
        return trips
    item = np.repeat(np.arange(len(items)), trips)
    trip = np.arange(len(item)) - np.repeat(np.cumsum(trips) - trips, trips)
    if k.table is None:
        key_block = (k.base(items)[item] + k.stride * trip) % k.tiles_down
    else:
        key_block = k.table[k.start(items)[item] + trip]
    visible = np.full(len(items), w.seq_kv)  # to the first row of the item's tile
    if w.causal:
        first_row = q.base(items) % q.tiles_down * q.tile_rows
        first_row //= q.tensor.rows // w.seq_q
        visible = w.seq_kv - w.seq_q + first_row + 1
    cut = (key_block + 1) * k.tile_rows > visible[item]
    masked = np.zeros_like(trips)
    np.maximum.at(masked, item[cut], trip[cut] + 1)
    return masked


def _combine(attention: Placed, kernel: Kernel) -> None:
    load_lse, load_o = loads_of(kernel)
    o, lse = stores_of(kernel)
    attention.launch(
        kernel,
        combine_kernel,
        PARTIAL_O=attention.of(load_o.stream),
        PARTIAL_LSE=attention.of(load_lse.stream),
        O=attention.of(o),
        LSE=attention.of(lse),
        o_rows=o.tensor.rows,
        SPLITS=int(trips_of(kernel, load_o)[0]),
        HEAD_DIM=attention.w.head_dim,
        TILE_O=o.tile_rows,
    )


def _search(attention: Placed, kernel: Kernel) -> None:
    """Launches HiP's search, and lays out the table that it completes for the sparse kernel."""
    hip, w, items = attention.schedule, attention.w, kernel.items
    assert isinstance(hip, Hip)
    load_k = load_of(kernel, "key")
    q, k = load_of(kernel, "query").stream, load_k.stream
    (found,) = stores_of(kernel)
    later = attention.kernels[attention.kernels.index(kernel) :]
    sparse = next(after for after in later if after.kind == "flash")
    sparse_k = load_of(sparse, "key")
    tile = Tile(q=q.tile_rows, kv=sparse_k.stream.tile_rows)
    keep = hip.keep // tile.kv
    ranges = hip.ranges(w, tile)
    known, rows = _kept_without_search(ranges, keep)
    number = items % q.tiles_down
    width = rows.shape[1]
    table = attention.int32(rows[number].ravel())
    start = load_of(sparse, "query").stream.base(sparse.items) * width  # its grid has another order
    attention.key_tables[sparse] = KeyTable(table, start, trips_of(sparse, sparse_k))
    attention.tensors[found.tensor] = table
    _, low, high, _ = ranges[number].T
    attention.launch(
        kernel,
        estimate_kernel,
        Q=attention.of(q),
        K=attention.of(k),
        TABLE=table,
        ctas=attention.ctas(
            items,
            k.base(items) // k.tiles_down,
            low,
            high - low,
            search_rounds(high - low, keep),
            items * width + known[number],
        ),
        q_rows=w.seq_q,
        kv_rows=w.seq_kv,
        HEAD_DIM=w.head_dim,
        TILE_Q=tile.q,
        TILE_KV=tile.kv,
        KEEP=keep,
        GROUP=chunks_a_load(keep),
        STAGES=load_k.stages // chunks_a_load(keep),
    )


def _kept_without_search(ranges: IntArray, keep: int) -> tuple[IntArray, IntArray]:
    """What blocks of query rows visit whatever a search finds: window and sinks, last first.

    `ranges` are those of `Hip.ranges`. Returns how many key blocks that are, and their numbers, a
    row each, with room behind them for the `keep` that are found (-1: none).
    """
    kept = [
        np.concatenate([np.arange(high, end)[::-1], np.arange(first, low)[::-1]])
        for first, low, high, end in ranges
    ]
    count = np.array([len(blocks) for blocks in kept])
    rows = np.full((len(kept), count.max() + keep), -1)
    for row, blocks in zip(rows, kept, strict=True):
        row[: len(blocks)] = blocks
    return count, rows


LAUNCHERS: dict[Kind, Callable[[Placed, Kernel], None]] = {
    "scores": _matmul,
    "softmax": _softmax,
    "output": _matmul,
    "flash": _flash,
    "combine": _combine,
    "block search": _search,
}
