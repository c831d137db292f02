"""Micro-benchmarks: what a GPU sustains of one thing at a time.

What they cannot isolate (how far matmuls hold up other instructions, the latency of an op) is left
to a fit of whole kernels (`validate.calibrate`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, gcd
from statistics import median
from typing import Any, Protocol

from sim.inputs.hardware import HardwareProfile
from validate.measurement import Micro, Unit

BUSY_S = 1e-3  # how long a launch keeps the device busy: a thousand times the gap between launches
LAUNCHES = 5  # in one graph
EMPTY_LAUNCHES = 200  # so that the launch of the graph itself counts for little

BLOCK = 4096  # fp32 elements that a program streams at once
BLOCK_BYTES = 4 * BLOCK
STREAMS_OF_L2 = 32  # what is left of a tensor in L2 is at most a 32nd of it
CTAS_PER_SM = 4  # of 8 warps: as many as every GPU since Turing holds of kernels under 64 registers
LINE_BYTES = 128  # of a cache line

# (M, N, K, warps). A matmul of fewer than 64 rows is mma.sync on every device.
NATIVE_TILES = ((128, 128, 128, 8), (128, 128, 64, 8), (128, 128, 64, 4), (128, 64, 128, 4))
MMA_SYNC_TILES = ((32, 128, 64, 4), (32, 64, 64, 4))
MATMULS = {"native": 1, "mma_sync": 8}  # a trip; why: see `tensor_kernel`
TENSOR_CTAS_PER_SM = {"native": 2, "mma_sync": 4}
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}  # ours: torch's

ELEMENTS = 2048  # of a program of 8 warps: 8 independent chains a thread
FMAS = 16
SIDE = 64
START_THREADS = 1024
START_WAVES = (16, 64)


class Clock(Protocol):
    """Times work on a device."""

    device: str

    def time_s(self, work: Callable[[], object], repeats: int = 20) -> list[float]:
        """Device seconds of each repetition."""

    def graph_time_s(self, work: Callable[[], object], launches: int = 20) -> list[float]:
        """Seconds a launch, when so many of them are replayed as one CUDA graph."""


@dataclass(frozen=True)
class _Bench:
    """A device under test, and how long to keep it busy at the vendor's rates."""

    clock: Clock
    hw: HardwareProfile
    busy_s: float
    torch: Any
    kernels: Any

    def trips(self, per_s: float, amount: float) -> int:
        """How many trips of `amount` last `busy_s`."""
        return max(1, round(self.busy_s * per_s / amount))

    def launch_s(self, work: Callable[[], object], launches: int = LAUNCHES) -> list[float]:
        """Seconds a launch, one behind the other; compiled before, and its data in the caches."""
        work()
        return self.clock.graph_time_s(work, launches)

    def rate(
        self, name: str, unit: Unit, amount: float, work: Callable[[], object], **settings: Any
    ) -> Micro:
        """`amount` over the time of `work`."""
        samples = [amount / seconds for seconds in self.launch_s(work)]
        return Micro(name=name, settings=settings, unit=unit, samples=samples)

    def random(self, *shape: int) -> Any:
        """Normally distributed fp32 (a GPU multiplies zeros faster)."""
        return self.torch.randn(shape, device=self.clock.device)


def run_micro(clock: Clock, hw: HardwareProfile, busy_s: float = BUSY_S) -> Iterator[Micro]:
    """All micro-benchmarks of `hw`, one at a time. Needs torch and Triton."""
    import torch

    from validate.kernels import micro as kernels

    bench = _Bench(clock, hw, busy_s, torch, kernels)
    for part in (_hbm, _l2, _latency, _launch, _tensor, _vector, _exp, _sram):
        yield from part(bench)


def _read(bench: _Bench, name: str, x: Any, blocks: int, least_bytes: float) -> Micro:
    """All SMs read the first blocks of `x` round and round."""
    programs = bench.hw.sm.count * CTAS_PER_SM
    while gcd(blocks, programs) > 1:  # else a program meets the same few blocks again
        blocks -= 1
    trips = max(ceil(blocks / programs), ceil(least_bytes / (programs * BLOCK_BYTES)))
    out = bench.random(programs)
    return bench.rate(
        name,
        "B/s",
        programs * trips * BLOCK_BYTES,
        lambda: bench.kernels.read_kernel[(programs,)](x, out, blocks, trips, BLOCK, num_warps=8),
        working_set_bytes=blocks * BLOCK_BYTES,
    )


def _hbm(bench: _Bench) -> Iterator[Micro]:
    wanted = min(STREAMS_OF_L2 * bench.hw.l2.capacity, bench.hw.hbm.capacity / 8)
    blocks = max(1, int(wanted // BLOCK_BYTES))
    size = blocks * BLOCK_BYTES
    x, y = bench.random(blocks * BLOCK), bench.random(blocks * BLOCK)

    def copy() -> None:
        bench.kernels.copy_kernel[(blocks,)](x, y, BLOCK, num_warps=8)

    def write() -> None:
        bench.kernels.write_kernel[(blocks,)](y, 0.5, BLOCK, num_warps=8)

    yield bench.rate("hbm_copy", "B/s", 2 * size, copy, working_set_bytes=2 * size)
    yield _read(bench, "hbm_read", x, blocks, 0)
    yield bench.rate("hbm_write", "B/s", size, write, working_set_bytes=size)


def _l2(bench: _Bench) -> Iterator[Micro]:
    """From a 16th of L2 to four times it, in quarters of an octave."""
    sizes = [bench.hw.l2.capacity * 2 ** (quarter / 4) for quarter in range(-16, 9)]
    counts = [max(1, int(size // BLOCK_BYTES)) for size in sizes]
    x = bench.random(max(counts) * BLOCK)
    for blocks in counts:
        yield _read(bench, "l2_read", x, blocks, bench.busy_s * bench.hw.l2.bandwidth)


def random_cycle(lines: int, device: str) -> Any:
    """A random cycle through the first int32 of each cache line, as `chase_kernel` walks it."""
    import torch

    ints = LINE_BYTES // 4
    order = torch.randperm(lines, device=device) * ints
    cycle = torch.zeros(lines * ints, dtype=torch.int32, device=device)
    cycle[order] = order.roll(-1).to(torch.int32)
    return cycle


def _latency(bench: _Bench) -> Iterator[Micro]:
    """An eighth of L2, which is in it, and four times L2, of which nothing is."""
    capacity, calibration = bench.hw.l2.capacity, bench.hw.calibration
    yield _walk(bench, capacity / 8, calibration.l2.latency)
    yield _walk(bench, capacity * 4, calibration.hbm.latency)


def _walk(bench: _Bench, working_set_bytes: float, expected_s: float) -> Micro:
    """A walk goes on where the last one ended, so it comes back to a line after all others."""
    lines = max(2, int(working_set_bytes // LINE_BYTES))
    cycle = random_cycle(lines, bench.clock.device)
    at = bench.torch.zeros(1, dtype=bench.torch.int32, device=bench.clock.device)
    trips = bench.trips(1 / expected_s, 1)
    fits = working_set_bytes < bench.hw.l2.capacity
    (cycle if fits else bench.torch.zeros_like(cycle)).sum()  # what is read last is in L2
    seconds = bench.launch_s(
        lambda: bench.kernels.chase_kernel[(1,)](cycle, at, trips, num_warps=1)
    )
    settings: dict[str, int | float | str] = {"working_set_bytes": lines * LINE_BYTES}
    return Micro(name="latency", settings=settings, unit="s", samples=[s / trips for s in seconds])


def _launch(bench: _Bench) -> Iterator[Micro]:
    """A kernel that does nothing: launched, replayed in a graph, and in waves of CTAs.

    In an empty kernel each slot of an SM does nothing but start CTAs and see them end:
        cta_start = (time of many CTAs - time of few) / (many - few) x slots,
    where slots = SMs x the CTAs of 1,024 threads that an SM holds.
    """

    def empty() -> None:
        bench.kernels.empty_kernel[(1,)](num_warps=4)

    graph_s = bench.launch_s(empty, EMPTY_LAUNCHES)
    yield Micro(name="launch_plain", unit="s", samples=bench.clock.time_s(empty))
    yield Micro(name="launch_graph", unit="s", samples=graph_s)

    per_sm = max(1, bench.hw.sm.max_threads // START_THREADS)
    slots = bench.hw.sm.count * per_sm

    def seconds(waves: int) -> list[float]:
        return bench.launch_s(
            lambda: bench.kernels.empty_kernel[(waves * slots,)](num_warps=START_THREADS // 32)
        )

    few, many = START_WAVES
    few_s = median(seconds(few))
    slopes_s = [(many_s - few_s) / (many - few) for many_s in seconds(many)]
    settings = {"threads": START_THREADS, "ctas_per_sm": per_sm}
    if samples := [slope_s for slope_s in slopes_s if slope_s > 0]:  # a slope lost in noise is none
        yield Micro(name="cta_start", settings=settings, unit="s", samples=samples)


def _tensor(bench: _Bench) -> Iterator[Micro]:
    """Matmuls on operands that stay on chip, by the device's own instruction and by mma.sync."""
    tiles = [("mma_sync", tile) for tile in MMA_SYNC_TILES]
    if bench.hw.matmul_by_warp_group:  # elsewhere mma.sync is the device's own
        tiles = [*(("native", tile) for tile in NATIVE_TILES), *tiles]
    for dtype in DTYPES:
        if (rate := bench.hw.tensor_flops_per_s(dtype)) is not None:
            for path, tile in tiles:
                yield _matmuls(bench, dtype, path, tile, rate)


def _matmuls(
    bench: _Bench, dtype: str, path: str, tile: tuple[int, int, int, int], rate: float
) -> Micro:
    m, n, k, warps = tile
    ctas, matmuls = bench.hw.sm.count * TENSOR_CTAS_PER_SM[path], MATMULS[path]
    flops_a_trip = ctas * matmuls * 2 * m * n * k
    trips = bench.trips(rate, flops_a_trip)
    torch_dtype = getattr(bench.torch, DTYPES[dtype])
    a, b = bench.random(m, k).to(torch_dtype), bench.random(k, n).to(torch_dtype)
    out = bench.random(ctas, m, n)
    return bench.rate(
        "tensor",
        "FLOP/s",
        flops_a_trip * trips,
        lambda: bench.kernels.tensor_kernel[(ctas,)](
            a, b, out, trips, m, n, k, matmuls, num_warps=warps
        ),
        **{"dtype": dtype, "m": m, "n": n, "k": k, "warps": warps, "path": path},
    )


def _vector(bench: _Bench) -> Iterator[Micro]:
    ctas = bench.hw.sm.count * CTAS_PER_SM
    x = bench.random(ctas, ELEMENTS)
    ops_a_trip = ctas * ELEMENTS * FMAS
    trips = bench.trips(bench.hw.vector_ops_per_s, ops_a_trip)

    def fmas() -> None:
        bench.kernels.fma_kernel[(ctas,)](x, x, 0.5, 1.0, trips, ELEMENTS, FMAS, num_warps=8)

    yield bench.rate("vector", "op/s", ops_a_trip * trips, fmas)


def _exp(bench: _Bench) -> Iterator[Micro]:
    ctas = bench.hw.sm.count * CTAS_PER_SM
    x = bench.random(ctas, ELEMENTS)
    trips = bench.trips(bench.hw.exps_per_s, ctas * ELEMENTS)

    def exps() -> None:
        bench.kernels.exp_kernel[(ctas,)](x, x, trips, ELEMENTS, num_warps=8)

    yield bench.rate("exp", "op/s", ctas * ELEMENTS * trips, exps)


def _sram(bench: _Bench) -> Iterator[Micro]:
    """Bytes stored to SRAM and loaded from it; see `transpose_kernel`."""
    ctas = bench.hw.sm.count * CTAS_PER_SM
    x = bench.random(ctas, SIDE, SIDE)
    bytes_a_trip = ctas * 2 * 4 * SIDE**2
    trips = bench.trips(bench.hw.sram_bytes_per_s, bytes_a_trip)

    def transposes() -> None:
        bench.kernels.transpose_kernel[(ctas,)](x, x, trips, SIDE, num_warps=8)

    yield bench.rate("sram", "B/s", bytes_a_trip * trips, transposes)
