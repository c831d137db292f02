"""Passes of eager PyTorch: elementwise kernels, and those that code around attention adds.

The code is FlashAttention's own benchmark of PyTorch (Dao-AILab/flash-attention,
benchmarks/benchmark_flash_attention.py, attention_pytorch), whose Q, K and V are one tensor of
(batch, tokens, 3, heads, head_dim). For the matmuls it makes a matrix a head:

    Q' = copy of Q, K' = copy of K transposed             (before Q K^T)
    M = full(-10000), triu(M), M in the workload's dtype  (if masked; on each call, from fp32)
    V' = copy of V                                        (before P V)

Of one sequence, or one head, the matrices are views that cuBLAS reads in place. `baddbmm` with
beta = 0 copies nothing, and dropout of probability 0 launches nothing. The benchmark has as many KV
heads as heads; where heads share some, K and V are repeated first, as the project's tests have it
(tests/test_flash_attn.py, attention_ref): a copy, but of a single KV head, which is a view.

Transformers' eager attention (huggingface/transformers, eager_attention_forward and repeat_kv in
src/transformers/models/llama/modeling_llama.py) has its K and V in heads that several query heads
share, and its softmax in fp32:

    K' = K, V' = V for every query head                   (repeat_kv, where heads share them)
    Q' = copy of Q, and of K and V that are not repeated  (as above, before the matmuls)
    S = S / sqrt(d);  S = S + mask                        (the mask is the model's, made once)
    P = softmax(S) in fp32;  P = P in the workload's dtype
    O' = copy of O                                        (by tokens: transpose, contiguous)

Elementwise kernels have 128 threads. They take 8 elements each, of operands that are not
contiguous 4, or 2 where these have 4 bytes (aten/src/ATen/native/cuda/CUDALoops.cuh,
gpu_kernel_impl_nocast), one after the other: each is loaded after the last is stored, as the result
might be what is read (elementwise_kernel's machine code has it so). A copy goes along the rows of
its result (TensorIterator.cpp, reorder_dimensions), and those of K' are head dimensions: a thread
reads an element from a sector of 32 bytes for itself, and the blocks of the sector's other elements
read it again. That L1 keeps none for them is an estimate: they run on other SMs. triu reads only
what it keeps (TriangularOps.cu).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import blocks, kv_matrix
from sim.schedules.parts.elementwise import (
    ELEMENTS_A_CTA,
    SIDE_BY_SIDE,
    THREADS,
    elementwise,
    in_order,
    one_by_one,
    rows_of,
)
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.kv_cache import SECTOR_BYTES
from sim.tile_program import Compute, IntArray, Kernel, Load, Loop, OfItem, Stream, Tensor

OPS_PER_ELEMENT = 2
# Where operands are not contiguous, each element's places are found by divisions, a dimension after
# the other: counted in elementwise_kernel of PyTorch 2.13's headers as nvcc 13.0 compiles them for
# sm_90. Dimensions are those that PyTorch does not join: a broadcast matrix and its heads; head
# dimension, tokens, heads and sequences.
INSTRUCTIONS_A_DIM, INSTRUCTIONS_ALONE = 14, 22
OF_BROADCAST, OF_TOKENS = 2, 4
STRIDED = SIDE_BY_SIDE * THREADS
# What a call of PyTorch that launches or allocates takes of the host, with the Python and the views
# around it, in launches (launch.latency): the nine calls of update_out_and_lse take 125 to 164 us,
# 141 in the mean of four (zhuzilin/ring-flash-attention, issue 60), where a launch takes some 3.
CALL_LAUNCHES = 141 / 9 / 3


def eager_pass(
    name: str,
    reads: Sequence[Tensor],
    writes: Sequence[Tensor],
    beside: OfItem = np.zeros_like,
    dims: int = 0,
) -> Kernel:
    """An elementwise kernel over matrices; a CTA has whole rows where they fit.

    Of a tensor of fewer groups `beside` says which goes with each of the others: one with all. Such
    are not contiguous, nor where `dims` says over how many dimensions they go.
    """
    if any(tensor.groups < writes[0].groups for tensor in reads):
        dims = max(dims, OF_BROADCAST)
    rows, cols = _shape(writes[0], STRIDED if dims else ELEMENTS_A_CTA)
    tiles = in_order(writes[0], rows, cols)
    a_matrix = tiles.tiles_down * tiles.tiles_across

    def of(tensor: Tensor) -> Stream:
        if tensor.groups < writes[0].groups:
            return Stream(
                tensor,
                rows,
                cols,
                lambda items: beside(items // a_matrix) * a_matrix + items % a_matrix,
            )
        return in_order(tensor, rows, cols)

    if dims:
        (write,) = writes
        streams = [replace(of(tensor), stride=1) for tensor in reads]
        return _strided(name, streams, replace(of(write), stride=1), a_matrix, dims)
    ops = OPS_PER_ELEMENT * rows * cols
    return elementwise(name, [*map(of, reads)], [*map(of, writes)], vector_ops=ops)


def with_mask(w: AttentionWorkload, scores: Tensor, masked: Tensor) -> list[Kernel]:
    """Make the causal mask and add it to the scores of every head: `masked`."""
    shape = (1, w.seq_q, w.seq_kv)
    filled, upper = (Tensor(name, *shape, 4, role="mask") for name in ("M", "triu(M)"))
    kernels = [eager_pass("full", [], [filled]), _upper(filled, upper)]
    mask = upper
    if w.dtype_bytes != upper.element_bytes:
        mask = Tensor("mask", *shape, w.dtype_bytes, role="mask")
        kernels.append(eager_pass("mask to dtype", [upper], [mask]))
    return [*kernels, eager_pass("mask", [scores, mask], [masked])]


def filled_where(w: AttentionWorkload, scores: Tensor) -> list[Kernel]:
    """Tensor.masked_fill: a copy, then a pass that reads a byte of mask an element."""
    mask = Tensor("mask", 1, w.seq_q, w.seq_kv, 1, "input", "mask")
    clone = eager_pass("clone", [scores], [scores])
    return [clone, eager_pass("masked_fill", [scores, mask], [scores])]


def _upper(matrix: Tensor, upper: Tensor) -> Kernel:
    """triu: a CTA whose tile has nothing above the diagonal reads nothing."""
    rows, cols = _shape(matrix, ELEMENTS_A_CTA)
    grid = Grid(blocks(matrix.cols, cols), blocks(matrix.rows, rows))

    def keeps_some(items: IntArray) -> IntArray:
        """Whether the tile's last column is beyond its first row."""
        across, down = grid.at(items)
        last_col = ((across + 1) * cols - 1).clip(max=matrix.cols - 1)
        kept: IntArray = (last_col > down * rows).astype(int)
        return kept

    load = Load(in_order(matrix, rows, cols))
    written = eager_pass("triu", [], [upper])
    read = Loop(keeps_some, (load, Compute("read", (load,))))
    return replace(written, loops=(read, *written.loops))


def copy(source: Tensor) -> tuple[Kernel, Tensor]:
    """The kernel that copies the rows of each head to a matrix of their own, and its result."""
    copied = _copy_of(source)
    return eager_pass(f"copy {source.name}", [source], [copied], dims=OF_TOKENS), copied


def repeated(w: AttentionWorkload, source: Tensor) -> tuple[Kernel, Tensor]:
    """The kernel that copies K or V once for every query head, and its result."""
    copied = replace(_copy_of(source), groups=w.batch * w.heads)
    rows, cols = _shape(copied, STRIDED)
    written = replace(in_order(copied, rows, cols), stride=1)
    a_matrix = written.tiles_down * written.tiles_across

    def shared(items: IntArray) -> IntArray:
        return kv_matrix(w, items // a_matrix) * a_matrix + items % a_matrix

    read = Stream(source, rows, cols, shared, stride=1)
    kernel = _strided(f"repeat {source.name}", [read], written, a_matrix, OF_TOKENS)
    return replace(kernel, sharing=w.heads // w.kv_heads), copied


def transposed_copy(w: AttentionWorkload, k: Tensor) -> tuple[Kernel, Tensor]:
    """A matrix for every query head, its columns one after the other in memory.

    A CTA writes a piece of a column, and reads the sectors that have its elements. The result is
    numbered as K is: a matmul reads the same elements of it.
    """
    copied = replace(_copy_of(k), groups=w.batch * w.heads)
    heads = w.heads * w.batch // k.groups  # that share a matrix
    rows = min(k.rows, STRIDED)
    width = SECTOR_BYTES // k.element_bytes  # columns in a sector
    down, across = blocks(k.rows, rows), blocks(k.cols, width)
    grid = Grid(down, k.cols, copied.groups)  # pieces of a column, columns, matrices

    def piece(items: IntArray) -> IntArray:
        number, column, matrix = grid.at(items)
        return (matrix * down + number) * k.cols + column

    def sectors(items: IntArray) -> IntArray:
        number, column, matrix = grid.at(items)
        return (matrix // heads * down + number) * across + column // width

    read, written = Stream(k, rows, width, sectors, across), Stream(copied, rows, 1, piece, k.cols)
    kernel = _strided("copy K", [read], written, down, OF_TOKENS)
    return replace(kernel, sharing=heads), copied


def _strided(name: str, reads: Sequence[Stream], write: Stream, line: int, dims: int) -> Kernel:
    """A pass over operands that are not contiguous, by whose streams' strides a `line` goes."""
    elements = write.tile_rows * write.tile_cols
    return one_by_one(
        name,
        reads,
        write,
        2 if write.tensor.element_bytes >= 4 else 4,
        line,
        vector_ops=OPS_PER_ELEMENT * elements,
        other_ops=(INSTRUCTIONS_A_DIM * dims + INSTRUCTIONS_ALONE) * elements,
    )


def _copy_of(tensor: Tensor) -> Tensor:
    shape = (tensor.groups, tensor.rows, tensor.cols)
    return Tensor(f"{tensor.name}'", *shape, tensor.element_bytes)


def _shape(matrix: Tensor, elements: int) -> tuple[int, int]:
    """Rows and columns of so many elements of a matrix, whole rows if they fit."""
    return rows_of(matrix, elements), min(matrix.cols, elements)
