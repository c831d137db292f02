"""What the backward passes share: gradients, and what dropout costs beside them.

Backward gives dK and dV of each query head; where several share a KV head (grouped-query
attention), theirs are summed in a kernel of its own for each of the two. So does FlashAttention
(csrc/flash_attn/flash_api.cpp, mha_bwd: dk_expanded, dv_expanded, at::sum_out), and so does eager
PyTorch's backward of repeated K and V.

Philox, the random numbers of dropout, takes 7 rounds of two wide multiplications (counted as two
lane operations each) and two three-way exclusive-ors for 16 numbers of a byte, 42 / 16 a score; its
keys advance for all lanes alike and are not counted. Forward then compares and masks two scores at
a time (1.5 a score with the byte's conversion), backward takes the byte out, compares and sets a
sign (3). Counted by hand from FlashAttention's philox.cuh and dropout.h, rounded: an estimate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import blocks, of_constant
from sim.schedules.parts.combine import reduction
from sim.schedules.parts.elementwise import ELEMENTS_A_CTA, FOOTPRINT, in_order
from sim.schedules.parts.grid import Grid
from sim.tile_program import Compute, IntArray, Kernel, Load, Stream, Tensor

DROPOUT_OPS_PER_SCORE = 4
DROPOUT_BACKWARD_OPS_PER_SCORE = 6


@dataclass(frozen=True)
class Gradients:
    """The gradients in HBM; `dk_of_heads` and `dv_of_heads` are `dk` and `dv` without groups."""

    do: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dk_of_heads: Tensor
    dv_of_heads: Tensor


def gradients(w: AttentionWorkload) -> Gradients:
    """The gradients of Q, K, V and O: matrices as theirs, in the workload's dtype."""
    heads, kv_heads = w.batch * w.heads, w.batch * w.kv_heads
    shape = (w.head_dim, w.dtype_bytes)
    dk = Tensor("dK", kv_heads, w.seq_kv, *shape, "output", "key gradient")
    dv = Tensor("dV", kv_heads, w.seq_kv, *shape, "output")
    grouped = heads != kv_heads
    return Gradients(
        do=Tensor("dO", heads, w.seq_q, *shape, "input"),
        dq=Tensor("dQ", heads, w.seq_q, *shape, "output", "query gradient"),
        dk=dk,
        dv=dv,
        dk_of_heads=Tensor("dK of heads", heads, w.seq_kv, *shape) if grouped else dk,
        dv_of_heads=Tensor("dV of heads", heads, w.seq_kv, *shape) if grouped else dv,
    )


def of_backward(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels, as ones of the backward pass."""
    return [replace(kernel, backward=True) for kernel in kernels]


def sums_over_groups(g: Gradients, ranges: int = 1) -> list[Kernel]:
    """The kernels that sum dK and dV of the query heads that share a KV head; none without.

    A head has so many `ranges` of tokens, each a matrix.
    """
    pairs = ((g.dk_of_heads, g.dk), (g.dv_of_heads, g.dv))
    return [_sum_over_group(parts, whole, ranges) for parts, whole in pairs if parts is not whole]


def _sum_over_group(parts: Tensor, whole: Tensor, ranges: int) -> Kernel:
    """A CTA a block of rows; a trip a head of the group."""
    rows = max(1, ELEMENTS_A_CTA // whole.cols)
    heads, down = parts.groups // whole.groups, blocks(whole.rows, rows)
    a_head = ranges * down
    grid = Grid(a_head, whole.groups // ranges)

    def first_head(items: IntArray) -> IntArray:
        row, group = grid.at(items)
        return group * heads * a_head + row

    load = Load(Stream(parts, rows, parts.cols, first_head, a_head))
    add = Compute("add", (load,), vector_ops=rows * whole.cols)
    name = f"{whole.name} = sum over heads"
    return reduction(name, of_constant(heads), add, (in_order(whole, rows),), FOOTPRINT)
