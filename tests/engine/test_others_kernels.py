"""Bytes of others' kernels, matmuls and passes too: what L2 keeps, and what it does not.

Their counters are of an RTX A6000, by Nsight Compute from a cold L2 (fmh66/kernel-opt-skill,
demo/*/ncu_summary.md, of May 2026): bytes that DRAM is read for a byte that loads ask for, that it
is written for one that is stored, and hits, as the ratios of the rates stated. Tiles, grids and
launches are as in the sources beside them, CTAs an SM as counted. They were looked up to try the
simulator as it was. Of these figures one was then read off: how much of L2 softmaxes leave dirty.
"""

from collections.abc import Callable

import numpy as np
import pytest

from sim.device.run import run_on_device
from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import load_profile
from sim.tile_program import (
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Store,
    Stream,
    Tensor,
    in_order,
    once,
)
from validate.simulated import PROFILERS_BYTES

FP32 = 4  # bytes


def times(trips: int) -> OfItem:
    """So many trips of every item."""
    return lambda items: np.full_like(items, trips)


def matmul(
    size: int, tile: tuple[int, int, int], of: Callable[[IntArray], tuple[IntArray, IntArray]],
    footprint: Footprint, stages: int = 1,
) -> Kernel:  # fmt: skip
    """C = A B of fp32 squares; `of` says which rows and which columns of C a CTA has."""
    rows, cols, depth = tile
    across, deep = size // cols, size // depth
    a, b, c = (Tensor(name, 1, size, size, FP32, "input") for name in "ABC")
    of_a = Load(Stream(a, rows, depth, lambda i: of(i)[0] * deep, 1), stages)
    of_b = Load(Stream(b, depth, cols, lambda i: of(i)[1], across), stages)
    to_c = Store(Stream(c, rows, cols, lambda i: of(i)[0] * across + of(i)[1]))
    step = Compute("multiply", (of_a, of_b), vector_ops=rows * cols * depth)
    loops = Loop(times(deep), (of_a, of_b, step)), Loop(once, (to_c,))
    return Kernel("matmul", (size // rows) * across, loops, footprint)


def by_rows(across: int) -> Callable[[IntArray], tuple[IntArray, IntArray]]:
    """One row of tiles after the other."""
    return lambda items: (items // across, items % across)


def grouped(down: int, across: int, group: int) -> Callable[[IntArray], tuple[IntArray, IntArray]]:
    """Triton's tutorial on matmuls: down the rows of a group of tiles, column after column."""

    def of(items: IntArray) -> tuple[IntArray, IntArray]:
        first = items // (group * across) * group
        of_group = np.minimum(down - first, group)
        return first + items % (group * across) % of_group, items % (group * across) // of_group

    return of


def attention(heads: int, queries: int, footprint: Footprint) -> Kernel:
    """1,024 tokens of head_dim 64, 64 keys a trip; CTAs side by side have the same queries."""
    q, k, v, o = (Tensor(name, heads, 1024, 64, FP32, "input") for name in "QKVO")
    down = 1024 // queries
    own = [Stream(t, queries, 64, lambda i: i % heads * down + i // heads) for t in (q, o)]
    keys = [Load(Stream(t, 64, 64, lambda i: i % heads * 16, 1)) for t in (k, v)]
    query = Load(own[0])
    step = Compute("step", tuple(keys), vector_ops=2 * queries * 64 * 64)
    loops = (
        Loop(once, (query, Compute("wait", (query,)))),
        Loop(times(16), (*keys, step)),
        Loop(once, (Store(own[1]),)),
    )
    return Kernel("attention", heads * down, loops, footprint)


def softmax(rows: int, threads: int) -> Kernel:
    """Of 10,240 rows of 1,024."""
    x, y = (Tensor(name, 1, 10240, 1024, FP32, "input") for name in "xy")
    load = Load(Stream(x, rows, 1024, lambda i: i))
    step = Compute("step", (load,), vector_ops=4 * rows * 1024)
    loop = Loop(once, (load, step, Store(Stream(y, rows, 1024, lambda i: i))))
    return Kernel("softmax", 10240 // rows, (loop,), Footprint(16, threads, 32))


def counted(kernel: Kernel) -> KernelRun:
    """The kernel's run as a profiler starts it: of its own bytes some are dirty in L2."""
    a6000 = load_profile("rtx-a6000")
    before = Tensor("before", 1, PROFILERS_BYTES // 4096, 1024, FP32)
    wrote = Loop(once, (Store(Stream(before, 1, 1024, lambda i: i)),))
    kernels = [Kernel("before", before.rows, (wrote,), Footprint(0, 128, 32)), kernel]
    ran = run_on_device(in_order(kernels), a6000, "fp32", "replay", lambda _: None)
    return ran.kernels[-1].run


@pytest.mark.parametrize(
    ("kernel", "read", "written", "hits"),
    [
        # demo/cuda/gemm v1, demo/triton/mha v2 and v3, demo/cuda/mha v4 and v5
        (matmul(4096, (32, 32, 32), by_rows(128), Footprint(8192, 1024, 38)), 0.5096, 1.028, 0.491),
        (attention(16, 32, Footprint(81920, 128, 255)), 0.2107, 1.373, 0.793),
        (attention(16, 64, Footprint(81920, 128, 144)), 0.2212, 1.202, 0.786),
        (attention(8, 1, Footprint(17280, 64, 128)), 0.0015, 1.513, 0.998),
        (attention(8, 2, Footprint(17792, 128, 64)), 0.0029, 1.546, 0.997),
        # demo/triton/softmax v0 and v2, demo/cuda/softmax v3
        (softmax(1, 128), 1.0, 0.974, 0.502),
        (softmax(2, 128), 1.0, 0.971, 0.502),
        (softmax(1, 256), 1.0, 0.982, 0.501),
    ],
)
def test_bytes_and_hits_of_an_a6000_come_out_as_counted(kernel, read, written, hits):
    ran = counted(kernel)
    assert ran.hbm_read_bytes / ran.l2_read_bytes == pytest.approx(read, rel=0.03)
    off_by = 0.01 if kernel.name == "softmax" else 0.1
    assert ran.hbm_write_bytes / ran.l2_write_bytes == pytest.approx(written, rel=off_by)
    asked = ran.l2_read_bytes + ran.l2_write_bytes
    assert (ran.l2_hit_bytes + ran.l2_write_bytes) / asked == pytest.approx(hits, abs=0.005)


@pytest.mark.parametrize(
    ("kernel", "read"),
    [
        # demo/triton/gemm v2, demo/cuda/gemm v3, demo/triton/mha v1
        (
            matmul(10240, (128, 128, 32), grouped(80, 80, 8), Footprint(65536, 128, 241), 2),
            0.311,
        ),
        (matmul(4096, (64, 64, 16), by_rows(64), Footprint(8256, 128, 122)), 0.486),
        (attention(16, 1, Footprint(1024, 128, 63)), 0.233),
    ],
)
def test_what_ctas_find_in_l2_only_in_step_is_read_once_here_and_oftener_there(kernel, read):
    """Here CTAs that begin together end together; real ones drift apart (docs/model.md)."""
    ran = counted(kernel)
    assert 0.05 * read < ran.hbm_read_bytes / ran.l2_read_bytes < 0.5 * read
