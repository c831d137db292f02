"""Registers a thread of every kernel, once each, and what each count is known from.

*Measured* counts were read from machine code: of FlashAttention-2 as its authors compiled it (the
wheel of xformers 0.0.24), of Triton kernels as Triton 3.9 compiles them. A *bound* is what a
kernel's __launch_bounds__ leave of an SM's 65,536, which ptxas mostly uses up.
All others are estimates, each with its reason: 32 for a kernel that only passes through, 64 for one
that sums, 128 to 200 for one whose accumulators of a matmul are in registers.
"""

from sim.schedules.base import Tile, blocks

MOST = 255  # that a thread can have (CUDA C++ Programming Guide, "Compute Capabilities")

# Flash kernels
# Measured for sm_80: 240 to 255 where 4 warps have 128 query rows; fewer where a warp has fewer:
# 168 to 204 at 64 x 64 with head_dim 96 to 160, 184 to 246 for 8 warps with head_dim 160 to 256.
# 167 to 255 of split-KV. The most stands for all.
FLASH_CUDA = MOST
FMHA_V2_NARROW = 168  # measured: nvcc 13.0, sm_89, 64 x 32 at head_dim 64; 255 at 128
FMHA_V2_WINDOW = 193  # the same behind a window, which leaves room for two CTAs an SM, not three
FLASH1 = MOST  # estimate: as FlashAttention-2, whose loop it has inside out
FLASH_BACKWARD = MOST  # estimate: two accumulators of keys x head_dim, S and dP
BACKWARD_ROWS = 64  # estimate: a few rows of two tensors and a sum
# Bound: 256, 384 or 512 threads with 1 to 3 consumer warp groups. The kernel then deals them anew
# (setmaxnreg: 24 to 56 a producer thread, 160 to 256 a consumer's).
FLASH3 = {1: MOST, 2: 168, 3: 128}
FLASH4 = 128  # bound: 512 threads, whose 12 to 4 roles deal them anew
XQA = 56  # bound: 384 threads, three CTAs an SM
XQA_BY_WARP = 207  # measured: nvcc 13.0, 111 to 207 for sm_80, sm_89 and sm_90; the most for all
MLA = MOST  # bound: 256 threads, one CTA an SM (FlashMLA, csrc/sm90)

# Kernels beside them
COMBINE = 64  # estimate: a row's share of O, the weights of its splits
MERGE = 40  # FlashInfer's, cascade.cuh: by nvcc 13.0 for sm_89, sm_90 and sm_100, 48 at head_dim 64
COMPRESS = 64  # estimate: a row's share of a weighted sum
ELEMENTWISE = 32  # estimate: 8 elements a thread of each operand, and their addresses
SELECT = 32  # estimate: counts of digits are in SRAM
INDEX = 32  # estimate: where a thread stands in two sorted lists, and what it found there
LONG_ROWS = 32  # estimate: softmax of rows that are read piece after piece
UPDATE = 64  # estimate: a row of sums, an element of state, or what is found so far
PAGES = 80  # estimate: FlashInfer's decoding on CUDA cores, 8 elements of Q and of O a thread
BLOCK_SCORES = 80  # measured: Triton 3.6's of NSA for sm_80 and sm_90
# Measured: NSA's selected attention, Triton 3.0: 168 to 220 for sm_90, 99 to 158 for sm_80.
SELECTED = {True: 200, False: 120}
FOUND = 128  # estimate: a row of O in fp32 and 8 rows of keys and values on their way
INDEX_SCORES = 96  # bound: 640 threads (DeepGEMM, sm90_fp8_mqa_logits.cuh)
HIP_SEARCH = 72  # measured: Triton's for sm_90, bf16 (validate/kernels/hip.py): 68, rounded up
HIP_SCORES = 128  # estimate: its matmul is of 16 keys

# Matmuls; their accumulators are fp32
SCORES = 128  # estimate: 64 x 128 scores, 64 a thread
GROUP_SCORES = 200  # estimate: 128 x 128 scores with 256 threads, 64 a thread, and P of each head
SQUARE_PRODUCT = 96  # estimate: 64 x 64, 32 a thread
SOLVED_ROWS = 200  # estimate: a warp with ten blocks of 16 x 16 and what becomes of them
CHUNK_STATES = 128  # estimate: 64 a thread
CHUNK_OUTPUTS = 168  # estimate: O and the scores within the chunk


def triton_flash(tile: Tile, head_dim: int, warps: int) -> int:
    """Triton's flash kernel: O, S and P, and some for addresses.

    Fitted to what Triton 3.9 compiles for sm_90 (bf16, causal): 235 at 128 x 128 x 128 with 8
    warps, 125 at 64 x 64 x 64 with 4; tests/validate/test_compiled_kernels.py compiles, compares.
    """
    held = tile.q * head_dim + 1.5 * tile.q * tile.kv
    return min(MOST, int(1.25 * held / (32 * warps)) + 27)


def sglang_flash(warps: int) -> int:
    """SGLang's Triton kernel, whose two loops are one after the other.

    Measured: 245 and 255 as Triton 3.5 compiles it for sm_89, 214 for sm_90; the most stands for
    all, or what an SM's 65,536 leave so many warps.
    """
    return min(MOST, 65_536 // (32 * warps))


def mem_efficient(element_bytes: int, warps: int, before_sm80: bool) -> int:
    """PyTorch's memory-efficient kernel. Bound: 16 warps an SM in 16 bits from sm80 on, else 12.

    In fp32 two CTAs of 8 warps do not fit: 228 in xformers 0.0.24's wheel.
    """
    if element_bytes == 2 and not before_sm80:
        return 128
    return 168 if warps == 4 else 228


def gemm(elements: int) -> int:
    """A matmul of 128 threads with so many accumulators, and some 52 a thread beside them.

    So Triton 3.9 compiles the matmuls of validate/kernels/naive.py for sm_90, bf16: 180 registers
    for 128 x 128, 124 for 128 x 64; tests/validate/test_compiled_kernels.py compiles and compares.
    """
    return min(MOST, elements // 128 + 52)


def rows_by_warp(cols: int, tensors: int = 1) -> int:
    """PyTorch's softmax of short rows: a warp has a row of each of the tensors in fp32.

    Estimate: 32 beside it (PersistentSoftmax.cuh).
    """
    return ELEMENTWISE + tensors * blocks(cols, 32)


def rows_by_block(held: int) -> int:
    """PyTorch's softmax of a row by 1024 threads that hold so many elements each.

    Measured: 30 of 4 and 43 of 8 as nvcc 13.0 compiles it for sm_90.
    """
    return 17 + blocks(13 * held, 4)


def state_step(elements: int, threads: int = 128) -> int:
    """Threads that hold so many elements of a state. Estimate: 32 beside them."""
    return min(MOST, ELEMENTWISE + blocks(elements, threads))
