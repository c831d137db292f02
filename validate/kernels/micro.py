"""Micro-benchmark kernels: each keeps one part of a GPU busy and leaves the others idle.

What a loop computes is stored and each trip needs the one before, so no compiler can drop a trip.
"""

import triton
import triton.language as tl


@triton.jit
def empty_kernel():
    """Nothing: what remains is the launch and the start of the CTAs."""


@triton.jit
def copy_kernel(X, Y, BLOCK: tl.constexpr):
    """Y = X, a block a program: 4 BLOCK bytes read and as many written."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Y + at, tl.load(X + at))


@triton.jit
def write_kernel(Y, value, BLOCK: tl.constexpr):
    """Y = value, a block a program: 4 BLOCK bytes written."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Y + at, tl.zeros([BLOCK], tl.float32) + value)


@triton.jit
def read_kernel(X, OUT, blocks, trips, BLOCK: tl.constexpr):
    """Sum of the blocks that a program meets on `trips` strides round X: 4 BLOCK bytes a trip.

    Loads bypass L1. Where `blocks` shares no factor with the programs, each program meets all.
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
    """Walk a cycle, one load after another, from where AT says, and leave there where it ends.

    NEXT holds at each place of the cycle the index of the next one. Loads bypass L1.
    """
    at = tl.load(AT)
    for _ in range(trips):
        at = tl.load(NEXT + at, cache_modifier=".cg")
    tl.store(AT, at)


@triton.jit
def tensor_kernel(
    A, B, OUT, trips, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, MATMULS: tl.constexpr
):
    """OUT = trips MATMULS A B, adding A B each time anew: 2 M N K FLOPs.

    wgmma takes A and B from SRAM, where they stay. mma.sync takes them from registers, and Triton
    fetches them from SRAM once a trip: 8 matmuls a trip keep that below the tensor cores' time.
    """
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
    """x = factor x + addend, FMAS times a trip, so that the loop's own instructions are few."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + at)
    for _ in range(trips):
        for _fma in tl.static_range(FMAS):
            x = tl.fma(x, factor, addend)
    tl.store(OUT + at, x)


@triton.jit
def transpose_kernel(X, OUT, trips, SIDE: tl.constexpr):
    """Transpose a tile `trips` times: 4 SIDE^2 bytes stored to SRAM and as many loaded, a trip.

    The loop carries the tile in one register layout, so each transpose goes through SRAM. With
    SIDE = 64 and 8 warps that is 16 st.shared.b32 and 16 ld.shared.b32 a thread, each of a warp's
    on 32 banks (checked by working out the addresses of the PTX of Triton 3.6 and 3.9).
    """
    down, right = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    at = tl.program_id(0) * SIDE * SIDE + down * SIDE + right
    x = tl.load(X + at)
    for _ in range(trips):
        x = tl.trans(x)
    tl.store(OUT + at, x)
