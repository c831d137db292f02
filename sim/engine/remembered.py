"""An engine that remembers: the compiled one, which replays like kernels on like L2s once.

What a replay comes to depends on the kernel's records and on what is in L2, and that on the replays
before it. So a replay's *address* is a hash of the engine's code, of the records, and of the L2's
*history*: the address of the replay that left it, or of an empty one. What is known by its address
is not replayed; the L2 notes it, and catches up when something unknown follows.

Schedules, layers, steps of a ring and parts of a kernel share their replays without knowing it.
Threads may share one engine: of two that ask for the same replay one waits for the other.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from sim.code.sources import stamp_of
from sim.engine.compiled import replay
from sim.engine.compiled.l2 import L2Lines, new_l2
from sim.engine.compiled.records import new_replay
from sim.engine.kept import Disk, Values
from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.machine import machine_of
from sim.tile_program import Chunking, Kernel, Tensor

MEMORY_BYTES = 128 * 2**20  # of what one engine remembers in this process

# What a replay depends on beside L2; the other records are as long as these say, and begin empty.
TOLD_BY = ("limits", "streams", "base", "start", "table", "sizes", "trips", "loads", "loops", "ops")
NUMBERS = (
    *("time_s", "ctas_per_sm", "bin_width_s"),
    *("hbm_read_bytes", "hbm_write_bytes", "l2_read_bytes", "l2_write_bytes", "l2_hit_bytes"),
    *("l2_dirty_bytes", "die_hit_bytes", "hbm_reread_bytes"),
)
ARRAYS = ("busy_s", "path_s", "cta_sm", "cta_start_s", "cta_end_s", "bins")
COUNTS = "counts"  # in the order of the kernel's actions


@dataclass
class RememberedL2:
    """An L2, the address of what left it, and the replays that it has yet to catch up with."""

    lines: L2Lines
    history: bytes
    behind: list[Callable[[], KernelRun]] = field(default_factory=list)


class Remembered:
    """The compiled engine, with what it has replayed; a `disk` keeps that for other processes."""

    def __init__(self, disk: Disk | None = None) -> None:
        self.disk = disk
        self.replayed = 0  # kernels that were not known
        self._known: OrderedDict[bytes, Values] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._under_way: dict[bytes, threading.Event] = {}

    def forget(self) -> None:
        """Replay everything anew; what is on disk stays there."""
        with self._lock:
            self._known.clear()
            self._bytes = 0

    def new_l2(self, chunkings: dict[Tensor, Chunking], hw: HardwareProfile) -> RememberedL2:
        """The device's L2, empty, for the chunks of those tensors."""
        lines = new_l2(chunkings, hw)
        sizes = np.array([lines.line_of.size, lines.lines.size])
        return RememberedL2(lines, address(b"", [lines.level, sizes]))

    def run_kernel(
        self,
        kernel: Kernel,
        chunkings: dict[Tensor, Chunking],
        hw: HardwareProfile,
        l2: RememberedL2,
        dtype: str,
        progress: Callable[[int], None],
    ) -> KernelRun:
        """What the kernel takes on the L2: known, or replayed."""
        records = new_replay(kernel, chunkings, hw, machine_of(hw), l2.lines, dtype)
        key = address(l2.history, [getattr(records, name) for name in TOLD_BY])
        run = self._claimed(kernel, key, lambda: progress(0))
        if run is None:
            try:
                for earlier in l2.behind:
                    earlier()
                    progress(0)
                l2.behind.clear()
                run = replay.replayed(kernel, records, progress)
                self._remember(key, values_of(run))
                self.replayed += 1
            finally:
                self._under_way.pop(key).set()
        else:
            l2.behind.append(_again(kernel, chunkings, hw, l2.lines, dtype))
        l2.history = key
        return run

    def _claimed(self, kernel: Kernel, key: bytes, wait: Callable[[], None]) -> KernelRun | None:
        """What is known of it; None for who is to replay it, while others wait."""
        while True:
            with self._lock:
                values = self._found(key)
                if values is not None:
                    return run_of(kernel, values)
                other = self._under_way.get(key)
                if other is None:
                    self._under_way[key] = threading.Event()
                    return None
            other.wait(0.1)
            wait()

    def _found(self, key: bytes) -> Values | None:
        values = self._known.get(key)
        if values is not None:
            self._known.move_to_end(key)
        elif self.disk is not None:
            values = self.disk.get(key)
            if values is not None:
                self._hold(key, values)
        return values

    def _remember(self, key: bytes, values: Values) -> None:
        with self._lock:
            self._hold(key, values)
            if self.disk is not None:
                self.disk.put(key, values)

    def _hold(self, key: bytes, values: Values) -> None:
        """Hold it in memory, where the oldest make room."""
        self._known[key] = values
        self._bytes += _size(values)
        while self._bytes > MEMORY_BYTES:
            self._bytes -= _size(self._known.popitem(last=False)[1])


def address(history: bytes, arrays: Iterable[NDArray[Any]]) -> bytes:
    """A hash of the engine's code, what went before, and arrays with their shapes."""
    found = xxh3_128(_code() + history)
    for array in arrays:
        found.update(_form(array.dtype) + repr(array.shape).encode())
        found.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return found.digest()


@cache
def _form(dtype: np.dtype[Any]) -> bytes:
    """The fields of an array's records, as text."""
    return repr(dtype.descr).encode()


@cache
def _code() -> bytes:
    on = (stamp_of("sim.engine.remembered"), version("numba"), np.__version__)
    return repr(on).encode()


def _again(
    kernel: Kernel,
    chunkings: dict[Tensor, Chunking],
    hw: HardwareProfile,
    lines: L2Lines,
    dtype: str,
) -> Callable[[], KernelRun]:
    """A replay for what it leaves in L2."""

    def catch_up() -> KernelRun:
        return replay.run_kernel(kernel, chunkings, hw, lines, dtype, lambda _: None)

    return catch_up


def values_of(run: KernelRun) -> Values:
    """A run as arrays, without its kernel."""
    values = {name: np.array(getattr(run, name)) for name in (*NUMBERS, *ARRAYS)}
    values[COUNTS] = np.array(list(run.counts.values()), np.int64)
    for array in values.values():
        array.flags.writeable = False  # several runs share it
    return values


def run_of(kernel: Kernel, values: Values) -> KernelRun:
    """The run of a kernel again."""
    numbers = {name: values[name].item() for name in NUMBERS}
    arrays: dict[str, Any] = {name: values[name] for name in ARRAYS}
    counts = dict(zip(kernel.actions, values[COUNTS].tolist(), strict=True))
    return KernelRun(kernel=kernel, counts=counts, **numbers, **arrays)


def _size(values: Values) -> int:
    return sum(array.nbytes for array in values.values())
