"""Micro-benchmark kernels: each keeps one part of a GPU busy and leaves the others idle.

A loop's result is stored, so that no compiler drops it, and each trip needs the one before.
"""

import triton
import triton.language as tl

LINE_INTS = tl.constexpr(32)  # int32 in a cache line of 128 bytes


@triton.jit
def empty_kernel():
    """Nothing: what remains is the launch and the start of the CTAs."""


@triton.jit
def copy_kernel(X, Y, BLOCK: tl.constexpr):
    """Y = X, a block a program: 2 x 4 x BLOCK bytes of HBM each."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Y + at, tl.load(X + at))


@triton.jit
def write_kernel(Y, value, BLOCK: tl.constexpr):
    """Y = value, a block a program: 4 x BLOCK bytes of HBM each."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Y + at, tl.zeros([BLOCK], tl.float32) + value)


@triton.jit
def read_kernel(X, OUT, blocks, trips, BLOCK: tl.constexpr):
    """Sum of the blocks that a program meets in `trips` strides around X: 4 x BLOCK bytes a trip.

    The strides go round and round where X has fewer blocks than that; loads bypass L1.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    within = tl.arange(0, BLOCK)
    block = program % blocks
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(trips):
        total += tl.load(X + block.to(tl.int64) * BLOCK + within, cache_modifier=".cg")
        block = (block + programs) % blocks
    tl.store(OUT + program, tl.sum(total, 0))


@triton.jit
def chase_kernel(NEXT, AT, trips):
    """Walk the cycle of NEXT from where AT says, one load after another, and note where it ends.

    NEXT[LINE_INTS * i] is the line after line i; only L2 and HBM serve the loads.
    """
    line = tl.load(AT)
    for _ in range(trips):
        line = tl.load(NEXT + line * LINE_INTS, cache_modifier=".cg")
    tl.store(AT, line)


@triton.jit
def tensor_kernel(
    A, B, OUT, trips, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, MATMULS: tl.constexpr
):
    """OUT = trips x A B, by one matmul a trip on the same operands: 2 M N K FLOPs each."""
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    a = tl.load(A + m * K + k[None, :])
    b = tl.load(B + k[:, None] * N + n)
    acc = tl.zeros([M, N], tl.float32)
    for _ in range(trips):
        for _matmul in tl.static_range(MATMULS):
            acc = tl.dot(a, b, acc)
    tl.store(OUT + tl.program_id(0) * M * N + m * N + n, acc)


@triton.jit
def exp_kernel(X, OUT, trips, BLOCK: tl.constexpr):
    """x = 2^-x, `trips` times: one exp2 an element a trip; x tends to 0.6412."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + at)
    for _ in range(trips):
        x = tl.exp2(-x)
    tl.store(OUT + at, x)


@triton.jit
def fma_kernel(X, OUT, factor, addend, trips, BLOCK: tl.constexpr, FMAS: tl.constexpr):
    """x = factor x + addend, `trips` times: one FMA an element a trip."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + at)
    for _ in range(trips):
        for _fma in tl.static_range(FMAS):
            x = tl.fma(x, factor, addend)
    tl.store(OUT + at, x)


@triton.jit
def transpose_kernel(X, OUT, trips, SIDE: tl.constexpr):
    """Transpose a tile of fp32 `trips` times."""
    down, right = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    at = tl.program_id(0) * SIDE * SIDE + down * SIDE + right
    x = tl.load(X + at)
    for _ in range(trips):
        x = tl.trans(x)
    tl.store(OUT + at, x)
