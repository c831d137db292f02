"""A schedule on real tensors: one Triton launch for each kernel that the simulator would replay.

Tile sizes, grid order, block tables, warps and buffers are read off the simulator's kernels, so
that both move the same data. Tensors have the shape (groups, rows, cols) that they have in
`sim.tile_program.Tensor`.
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
from sim.schedules.hip import Hip, chunks_a_load, search_rounds
from sim.tile_program import IntArray, Kernel, Load, Store, Stream, Tensor
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
class Attention:
    """A schedule's tensors, by their names, and its launches in order."""

    w: AttentionWorkload
    kernels: list[Kernel]
    device: str
    tensors: dict[str, torch.Tensor]
    launches: list[Launch] = field(default_factory=list)
    key_table: KeyTable | None = None

    def run(self) -> list[Any]:
        """Launch all kernels; returns what Triton compiled for each."""
        return [launch() for launch in self.launches]

    def int32(self, values: Any) -> torch.Tensor:
        """Integers on the device."""
        return torch.tensor(np.asarray(values, np.int32), device=self.device)

    def ctas(self, *columns: IntArray) -> torch.Tensor:
        """What each CTA of a kernel works on: a row of integers for each."""
        return self.int32(np.stack(columns, axis=1))

    def of(self, stream: Stream) -> torch.Tensor:
        """The tensor that a stream goes through."""
        return self.tensors[stream.tensor.name]


def place(
    schedule: Schedule, w: AttentionWorkload, hw: HardwareProfile, device: str, seed: int = 0
) -> Attention:
    """The schedule on normally distributed random inputs (outputs are NaN until it ran).

    Raises InputError where it has no Triton kernels here, torch.OutOfMemoryError where it does not
    fit the device.
    """
    if w.dtype not in DTYPES:
        raise InputError(f"workload.dtype = {w.dtype}: the kernels take {', '.join(DTYPES)}")
    if getattr(schedule, "implementation", "triton") != "triton":
        raise InputError(
            f'schedule {schedule.name}: implementation = "cuda": the kernels here are Triton\'s'
        )
    if getattr(schedule, "rope", None) is not None or w.dropout:
        raise InputError(f"schedule {schedule.title}: the kernels here have no rope or dropout")
    kernels = kernels_of(schedule.program(w, hw))
    for kernel in kernels:
        if kernel.name not in LAUNCHERS:
            raise InputError(f"schedule {schedule.title}: no Triton kernel for {kernel.name!r}")
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for tensor in dict.fromkeys(t for kernel in kernels for t in kernel.tensors):
        tensors[tensor.name] = _filled(tensor, w, device, generator)
    attention = Attention(w, kernels, device, tensors)
    for kernel in kernels:
        LAUNCHERS[kernel.name](attention, kernel, schedule)
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


def _loads_and_stores(kernel: Kernel, loop: int) -> tuple[list[Load], list[Store]]:
    ops = kernel.loops[loop].ops
    return kernel.loops[loop].loads, [op for op in ops if isinstance(op, Store)]


def _launch(attention: Attention, kernel: Kernel, entry: Any, **arguments: Any) -> None:
    arguments["num_warps"] = kernel.footprint.threads // 32
    attention.launches.append(Launch(kernel.name, entry, kernel.ctas, arguments))


def _matmul(attention: Attention, kernel: Kernel, _: Schedule) -> None:
    (a, b), _stores = _loads_and_stores(kernel, 0)
    c = _loads_and_stores(kernel, 1)[1][0].stream
    items, transposed = kernel.items, a.stream.tensor.name == "Q"
    _launch(
        attention,
        kernel,
        matmul_kernel,
        A=attention.of(a.stream),
        B=attention.of(b.stream),
        C=attention.of(c),
        ctas=attention.ctas(a.stream.base(items), b.stream.base(items), c.base(items)),
        trips=int(kernel.trips[0, 0]),
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


def _softmax(attention: Attention, kernel: Kernel, _: Schedule) -> None:
    w = attention.w
    scores = kernel.streams[0]
    _launch(
        attention,
        kernel,
        softmax_kernel,
        S=attention.tensors["S"],
        P=attention.tensors["P"],
        rows=w.seq_q,
        cols=w.seq_kv,
        first_position=w.seq_kv - w.seq_q,
        SWEEP=len(kernel.loops) > 1,
        TILE_ROWS=scores.tile_rows,
        TILE_COLS=scores.tile_cols,
        CAUSAL=w.causal,
        WINDOW=w.window or 0,
    )


def _flash(attention: Attention, kernel: Kernel, schedule: Schedule) -> None:
    w, items, trips = attention.w, kernel.items, kernel.trips[1]
    (load_q,), _ = _loads_and_stores(kernel, 0)
    (load_k, load_v), _ = _loads_and_stores(kernel, 1)
    o, lse = (store.stream for store in _loads_and_stores(kernel, 2)[1])
    q, k = load_q.stream, load_k.stream
    if k.table is not None and attention.key_table is None:
        attention.key_table = KeyTable(attention.int32(k.table), k.start(items), trips)
    keys = attention.key_table
    _launch(
        attention,
        kernel,
        flash_kernel,
        Q=attention.of(q),
        K=attention.of(k),
        V=attention.of(load_v.stream),
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
        STAGES=load_k.stages,
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


def _combine(attention: Attention, kernel: Kernel, _: Schedule) -> None:
    o, lse = (store.stream for store in _loads_and_stores(kernel, 1)[1])
    _launch(
        attention,
        kernel,
        combine_kernel,
        PARTIAL_O=attention.tensors["O of splits"],
        PARTIAL_LSE=attention.tensors["LSE of splits"],
        O=attention.of(o),
        LSE=attention.of(lse),
        o_rows=o.tensor.rows,
        SPLITS=int(kernel.trips[0, 0]),
        HEAD_DIM=attention.w.head_dim,
        TILE_O=o.tile_rows,
    )


def _estimate(attention: Attention, kernel: Kernel, schedule: Schedule) -> None:
    """Launches the search, and lays out the table that it completes for the sparse kernel."""
    assert isinstance(schedule, Hip)
    w, items = attention.w, kernel.items
    (load_q,), _ = _loads_and_stores(kernel, 0)
    (load_k,), _ = _loads_and_stores(kernel, 1)
    sparse_k = attention.kernels[1].streams[1]
    tile = Tile(q=load_q.stream.tile_rows, kv=sparse_k.tile_rows)
    keep = schedule.keep // tile.kv
    ranges = schedule.ranges(w, tile)
    rows = [
        np.concatenate([np.arange(high, end)[::-1], np.arange(first, low)[::-1]])
        for first, low, high, end in ranges
    ]
    width = max(len(row) for row in rows) + keep
    table = np.full((len(items), width), -1, np.int32)
    down = load_q.stream.tiles_down
    for number, row in enumerate(rows):
        table[number::down, : len(row)] = row
    row_of = items % down
    low = np.array([low for _, low, _, _ in ranges])
    count = np.array([high - low for _, low, high, _ in ranges])
    known = np.array([len(row) for row in rows])
    rounds = np.array([search_rounds(int(blocks_between), keep) for blocks_between in count])
    sparse = attention.kernels[1]
    start = sparse.streams[0].base(sparse.items) * width  # its grid has another order
    attention.key_table = KeyTable(attention.int32(table.ravel()), start, sparse.trips[1])
    attention.tensors["blocks found"] = attention.key_table.table
    _launch(
        attention,
        kernel,
        estimate_kernel,
        Q=attention.of(load_q.stream),
        K=attention.of(load_k.stream),
        TABLE=attention.key_table.table,
        ctas=attention.ctas(
            items,
            load_k.stream.base(items) // load_k.stream.tiles_down,
            low[row_of],
            count[row_of],
            rounds[row_of],
            items * width + known[row_of],
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


LAUNCHERS: dict[str, Callable[[Attention, Kernel, Schedule], None]] = {
    "S = Q K^T": _matmul,
    "P = softmax(S)": _softmax,
    "O = P V": _matmul,
    "flash2": _flash,
    "block_sparse": _flash,
    "flash_decoding": _flash,
    "combine": _combine,
    "estimate mask": _estimate,
    "hip": _flash,
}
