"""Passes of eager PyTorch: elementwise kernels, and those that code around attention adds.

The code is FlashAttention's own benchmark of PyTorch (Dao-AILab/flash-attention,
benchmarks/benchmark_flash_attention.py, attention_pytorch), whose Q, K and V are one tensor of
(batch, tokens, 3, heads, head_dim). For the matmuls it makes a matrix a head:

    Q' = copy of Q, K' = copy of K transposed             (before Q K^T)
    M = full(-10000), triu(M), M in the workload's dtype  (if masked; on each call, from fp32)
    V' = copy of V                                        (before P V)

Of one sequence, or one head, the matrices are views that cuBLAS reads in place. `baddbmm` with
beta = 0 copies nothing, and dropout of probability 0 launches nothing.

Elementwise kernels have 128 threads. They take 8 elements each, of operands that are not
contiguous 4, or 2 where these have 4 bytes (aten/src/ATen/native/cuda/CUDALoops.cuh,
gpu_kernel_impl_nocast). A copy goes along the rows of its result (TensorIterator.cpp,
reorder_dimensions), and those of K' are head dimensions: a thread reads an element from a sector of
32 bytes for itself, and the blocks of the sector's other elements read it again. That L1 keeps none
for them is an estimate: they run on other SMs. triu reads only what it keeps (TriangularOps.cu).
"""

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import blocks
from sim.schedules.parts.backward import ELEMENTS_A_BLOCK
from sim.schedules.parts.kv_cache import SECTOR_BYTES
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
    once,
)

THREADS = 128
OPS_PER_ELEMENT = 2
FOOTPRINT = Footprint(0, THREADS, registers_per_thread=32)


def elementwise(
    name: str,
    reads: list[Tensor],
    writes: list[Tensor],
    elements: int = ELEMENTS_A_BLOCK,
    needed: OfItem = once,
) -> Kernel:
    """A kernel in whole rows, `elements` a CTA; a tensor of one group goes with all of the others.

    `needed` is 0 for the CTAs that read nothing.
    """
    matrix = writes[0]
    rows, cols = _shape(matrix, elements)
    tiles = blocks(matrix.rows, rows) * blocks(matrix.cols, cols)

    def of(tensor: Tensor) -> Stream:
        if tensor.groups == 1:
            return Stream(tensor, rows, cols, lambda items: items % tiles)
        return Stream(tensor, rows, cols, lambda items: items)

    loads = tuple(Load(of(tensor)) for tensor in reads)
    stores = tuple(Store(of(tensor)) for tensor in writes)
    work = OPS_PER_ELEMENT * rows * cols
    if needed is once:
        loops = [Loop(once, (*loads, Compute(name, loads, 0, work), *stores))]
    else:
        loops = [
            Loop(needed, (*loads, Compute("read", loads))),
            Loop(once, (Compute(name, (), 0, work), *stores)),
        ]
    return Kernel(name, matrix.groups * tiles, tuple(loops), FOOTPRINT)


def with_mask(w: AttentionWorkload, scores: Tensor, masked: Tensor) -> list[Kernel]:
    """Make the causal mask and add it to the scores of every head: `masked`."""
    shape = (1, w.seq_q, w.seq_kv)
    filled, upper = (Tensor(name, *shape, 4, role="mask") for name in ("M", "triu(M)"))
    rows, cols = _shape(filled, ELEMENTS_A_BLOCK)
    across = blocks(w.seq_kv, cols)

    def keeps_some(items: IntArray) -> IntArray:
        """Whether a CTA's last column is beyond its first row."""
        last_col = (items % across + 1) * cols - 1
        kept: IntArray = (last_col.clip(max=w.seq_kv - 1) > items // across * rows).astype(int)
        return kept

    kernels = [
        elementwise("full", [], [filled]),
        elementwise("triu", [filled], [upper], needed=keeps_some),
    ]
    mask = upper
    if w.dtype_bytes != upper.element_bytes:
        mask = Tensor("mask", *shape, w.dtype_bytes, role="mask")
        kernels.append(elementwise("mask to dtype", [upper], [mask]))
    return [*kernels, elementwise("mask", [scores, mask], [masked], _strided(w))]


def copy(w: AttentionWorkload, source: Tensor) -> tuple[Kernel, Tensor]:
    """The kernel that copies the rows of each head to a matrix of their own, and its result."""
    copied = _copy_of(source)
    return elementwise(f"copy {source.name}", [source], [copied], _strided(w)), copied


def transposed_copy(w: AttentionWorkload, k: Tensor) -> tuple[Kernel, Tensor]:
    """The same with a matrix's columns one after the other in memory.

    A CTA writes a piece of a column, and reads the sectors that have its elements. The result is
    numbered as K is: a matmul reads the same elements of it.
    """
    copied = _copy_of(k)
    rows = min(k.rows, _strided(w))
    width = SECTOR_BYTES // k.element_bytes  # columns in a sector
    down, across = blocks(k.rows, rows), blocks(k.cols, width)

    def piece(items: IntArray) -> IntArray:
        """Grid (pieces of a column, columns, matrices), the first fastest."""
        matrix, column = items // (down * k.cols), items // down % k.cols
        return (matrix * down + items % down) * k.cols + column

    def sectors(items: IntArray) -> IntArray:
        matrix, column = items // (down * k.cols), items // down % k.cols
        return (matrix * down + items % down) * across + column // width

    load = Load(Stream(k, rows, width, sectors))
    work = Compute("copy", (load,), 0, OPS_PER_ELEMENT * rows)
    body = (load, work, Store(Stream(copied, rows, 1, piece)))
    return Kernel("copy K", k.groups * k.cols * down, (Loop(once, body),), FOOTPRINT), copied


def _copy_of(tensor: Tensor) -> Tensor:
    shape = (tensor.groups, tensor.rows, tensor.cols)
    return Tensor(f"{tensor.name}'", *shape, tensor.element_bytes)


def _shape(matrix: Tensor, elements: int) -> tuple[int, int]:
    """Rows and columns of so many elements of a matrix, whole rows if they fit."""
    return min(matrix.rows, max(1, elements // matrix.cols)), min(matrix.cols, elements)


def _strided(w: AttentionWorkload) -> int:
    """Elements a CTA takes of operands that are not contiguous."""
    return THREADS * (2 if w.dtype_bytes >= 4 else 4)
