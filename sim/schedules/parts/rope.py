"""Rotary position embedding (RoPE) of Q and K: in kernels of their own, or within the flash loop.

    x_1, x_2 = x_1 cos - x_2 sin, x_1 sin + x_2 cos        for each pair of elements of a row

Source: Su et al. 2021 (arXiv 2104.09864). cos and sin come from a table of head_dim / 2 elements
each a position, in the workload's dtype, as in Dao-AILab/flash-attention.

`pass`: a kernel for Q and one for K, each in place, before attention; in training dQ and dK are
rotated back after it (flash_attn/layers/rotary.py, ops/triton/rotary.py). Where the queries are the
last of a longer sequence, the earlier keys lie rotated in the cache, and the K of the new tokens is
a tensor of its own. A CTA takes 1,024 elements, as PyTorch's elementwise kernels do; the Triton
kernel there takes 4 rows.

`fused`: K lies unrotated in memory; Q is rotated in the prologue and each K tile in the loop, as
FlashInfer's attention does with pos_encoding_mode = "ROPE_LLAMA" (prefill.cuh,
k_frag_apply_llama_rope; it computes cos and sin instead). The table's rows go to registers, as in
flash-attention's copy_rotary (csrc/flash_attn/src/utils.h), so that no SRAM is set aside for them.

Three lane operations an element (two for the products, one for conversions) are an estimate.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sim.inputs.files import InputError
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import blocks
from sim.schedules.parts.backward import of_backward
from sim.schedules.parts.elementwise import elementwise, in_order, rows_of
from sim.tile_program import IntArray, Kernel, Stream, Tensor

ROPE_OPS_PER_ELEMENT = 3
TABLE = "cos, sin"


@dataclass(frozen=True)
class Angles:
    """The table's rows of the queries' and of the keys' positions, for a schedule of that name."""

    schedule: str
    of_q: Tensor
    of_k: Tensor

    def beside_q(self, tiles: Stream) -> Stream:
        """The table's tiles that go with those of Q, or of what has its rows; raises InputError."""
        return self._beside(self.of_q, tiles)

    def beside_k(self, tiles: Stream) -> Stream:
        """The table's tiles that go with those of K, or of what has its rows; raises InputError."""
        return self._beside(self.of_k, tiles)

    def _beside(self, table: Tensor, rotated: Stream) -> Stream:
        """Tiles of the same rows, or the table's only row (of heads that share a position)."""
        if table.rows not in (1, rotated.tensor.rows):
            raise InputError(
                f"schedule {self.schedule}: rope: matrices of {rotated.tensor.rows} rows of "
                f"{rotated.tensor.name} are not the {table.rows} positions in order"
            )
        tiles = blocks(table.rows, rotated.tile_rows)  # in one matrix, and of the table

        def tile(items: IntArray) -> IntArray:
            return rotated.base(items) % tiles

        among = None if rotated.table is None else rotated.table % tiles
        shape = (rotated.tile_rows, table.cols)
        return Stream(table, *shape, tile, rotated.stride, among, rotated.start)


def angles_of(w: AttentionWorkload, schedule: str) -> Angles:
    """The table's rows; one tensor where queries and keys stand at the same positions.

    Raises InputError where queries stand before the first key.
    """
    if w.seq_q > w.seq_kv:
        raise InputError(
            f"schedule {schedule}: rope: workload.seq_q = {w.seq_q}: the queries are the last of "
            f"the seq_kv = {w.seq_kv} tokens"
        )
    of_k = Tensor(TABLE, 1, w.seq_kv, w.head_dim, w.dtype_bytes, "input", "angles")
    if w.seq_q == w.seq_kv:
        return Angles(schedule, of_k, of_k)
    of_q = Tensor(TABLE, 1, w.seq_q, w.head_dim, w.dtype_bytes, "input", "angles")
    return Angles(schedule, of_q, of_k)


def with_passes(w: AttentionWorkload, schedule: str, kernels: list[Kernel]) -> list[Kernel]:
    """The kernels, with those around them that rotate Q and K and, in training, dQ and dK back.

    Raises InputError where no kernel reads Q.
    """
    by_role = {tensor.role: tensor for kernel in kernels for tensor in kernel.tensors}
    if "query" not in by_role:
        raise InputError(f'schedule {schedule}: rope = "pass": none of its kernels reads Q')
    angles = angles_of(w, schedule)
    whole = w.phase == "training" or w.seq_q == w.seq_kv
    k = by_role.get("key")
    if not whole or k is None or (k.rows, k.element_bytes) != (w.seq_kv, w.dtype_bytes):
        rotate_k = angles.beside_q
        k = Tensor("new K", w.batch * w.kv_heads, w.seq_q, w.head_dim, w.dtype_bytes, "input")
    else:
        rotate_k = angles.beside_k
    before = [_rotated(by_role["query"], angles.beside_q), _rotated(k, rotate_k)]
    if w.phase != "training":
        return [*before, *kernels]
    back = [
        _rotated(by_role["query gradient"], angles.beside_q),
        _rotated(by_role["key gradient"], angles.beside_k),
    ]
    return [*before, *kernels, *of_backward(back)]


def check_fused(schedule: str, kernels: list[Kernel]) -> None:
    """Raises InputError where a kernel takes Q or K unrotated, or rotates what has no position."""
    for kernel in kernels:
        read = [load.stream.tensor.role for loop in kernel.loops for load in loop.loads]
        if read.count("query") + read.count("key") != read.count("angles"):
            raise InputError(
                f'schedule {schedule}: rope = "fused": its kernel "{kernel.name}" rotates not just '
                'Q and K, each time it reads them; rope = "pass" was expected'
            )


def _rotated(tensor: Tensor, beside: Callable[[Stream], Stream]) -> Kernel:
    """Rotates a tensor in place, with the table's tiles beside its own."""
    rows = rows_of(tensor)
    tiles = in_order(tensor, rows)
    work = ROPE_OPS_PER_ELEMENT * rows * tensor.cols
    name = f"rope {tensor.name}"
    return elementwise(name, [tiles, beside(tiles)], [tiles], work)
