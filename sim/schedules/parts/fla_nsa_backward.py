"""The backward pass of NSA as fla-org's kernels have it.

    of each branch, latest first (PyTorch): dO of the branch = dO times its gate;
                                            dO times O, summed to the gate's gradient
    of window attention                     FlashAttention-2's backward
    of selected and compressed attention:
        for each row of O (one CTA)         D = sum(dO O)
        for each position (one CTA):        dQ, over the blocks that it attends to
        dQ summed over its one part         (PyTorch: a copy)
        for each block of keys (one CTA):   dK, dV, over the positions that attend to it
        sum of two or three branches        (PyTorch)
    of compressed keys                      each block's gradient spread over its keys

Of selected attention a position's blocks are marked in a mask first (a CTA of 128 threads a mark),
and each block's CTA reads its mark at every later position, one after the other: T^2 / 128 reads of
L2 a head, whatever is marked. Compressed attention's is 64 compressed keys a CTA, few of them.

Source: fla-org/native-sparse-attention, native_sparse_attention/ops/parallel.py (parallel_nsa_bwd,
parallel_nsa_compression_bwd and their kernels; parallel_nsa for the gates). Warps are autotuned
there from 1, 2 and 4: here 4. Counted in what Triton 3.2 compiles for sm_90 and sm_80 at head_dim
128, groups of 16, blocks of 64: of a warp and trip, without matmuls, their loads and exponentials,
242 instructions for dQ, 300 for dK and dV with wgmma and 355 with mma.sync. Alone a warp takes
1,084 cycles for dQ, 1,237 and 3,475 for dK and dV, by ptxas's stall counts (as in nsa.py). Not
modelled: the host, which launches some 25 kernels, and rules below a thousand tokens.
"""

from dataclasses import dataclass, replace

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.machine import machine_of
from sim.schedules.base import blocks
from sim.schedules.parts import registers
from sim.schedules.parts.backward import gradients, of_backward
from sim.schedules.parts.eager import eager_pass
from sim.schedules.parts.elementwise import elementwise, in_order, rows_of
from sim.schedules.parts.ends import begin
from sim.schedules.parts.flash2_backward import Saved, backward_kernels
from sim.schedules.parts.flash_cta import power_of_two
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.nsa_positions import Positions, Visited
from sim.schedules.parts.nsa_tensors import NsaTensors
from sim.schedules.parts.public_tiles import public_backward_cta
from sim.schedules.parts.results import Result
from sim.tile_program import (
    Barrier,
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    Store,
    Stream,
    Tensor,
    once,
)

WARPS = 4
DQ_INSTRUCTIONS, DQ_LATENCIES, DQ_REGISTERS = 242, 22, 128
DKV_INSTRUCTIONS = {True: 300, False: 355}  # with wgmma, and without
DKV_LATENCIES = {True: 27, False: 88}
MARKS_A_TRIP = 64  # positions whose marks are read in a trip: so many reads, one after the other
MARK_LATENCIES = 1  # of a mark, beside its read: compare and branch
MARK_INSTRUCTIONS = 20  # a loop without an address that is known before: estimate
SECTOR_BYTES = 32  # of L2, that a mark is read in


@dataclass(frozen=True, eq=False)
class Branch:
    """Attention of each position over blocks of K and V, and what forward left of it.

    With `apart` a block's dK and dV go through all positions from that many times its number on,
    else through those that attend to it.
    """

    name: str
    k: Tensor
    v: Tensor
    result: Result
    visited: Visited
    keys: int  # of a block
    apart: int | None = None

    @property
    def across(self) -> int:
        """Blocks of a head."""
        return blocks(self.k.rows, self.keys)


@dataclass(frozen=True, eq=False)
class Backward:
    """The backward pass of all branches."""

    w: AttentionWorkload
    hw: HardwareProfile
    of: NsaTensors
    window: Result
    near: AttentionWorkload  # with the window
    block: int  # keys that a compressed one stands for

    def kernels(self, selected: Branch, compressed: Branch) -> list[Kernel]:
        """All launches, in order."""
        of, w = self.of, self.w
        do = replace(of.q, name="dO", role="other")
        total = [
            replace(of.q, name="dQ", lifetime="output", role="query gradient"),
            replace(of.k, name="dK", lifetime="output", role="key gradient"),
            replace(of.v, name="dV", lifetime="output", role="other"),
        ]
        kernels = [*self._gate("window", do, self.window.o)]
        g = gradients(w)
        near = replace(
            g,
            do=self._branch_do("window"),
            dq=replace(g.dq, name="dQ of window", lifetime="workspace", role="other"),
            dk=replace(g.dk, name="dK of window", lifetime="workspace", role="other"),
            dv=replace(g.dv, name="dV of window", lifetime="workspace", role="other"),
        )
        if g.dk is g.dk_of_heads:
            near = replace(near, dk_of_heads=near.dk, dv_of_heads=near.dv)
        saved = Saved(of.q, of.k, of.v, self.window.o, self.window.lse)
        cta = public_backward_cta(self.near, self.hw)
        kernels += backward_kernels(self.near, cta, saved, near)
        sums = [near.dq, near.dk, near.dv]
        for branch in (compressed, selected):
            kernels += self._gate(branch.name, do, branch.result.o)
            made = self._of_branch(branch, marks=branch is selected)
            kernels += made.kernels
            grads = list(made.gradients)
            if branch is compressed:
                for n in (1, 2):
                    whole = replace(near.dk if n == 1 else near.dv, name=f"{grads[n].name}, spread")
                    kernels.append(self._spread(grads[n], whole))
                    grads[n] = whole
            last = branch is selected
            targets = total if last else [replace(s, name=f"{s.name} and more") for s in sums]
            kernels += [
                self._add(one, grad, target)
                for one, grad, target in zip(sums, grads, targets, strict=True)
            ]
            sums = targets
        return of_backward(kernels)

    def _spread(self, compressed: Tensor, whole: Tensor) -> Kernel:
        """A CTA a block, whose keys all have their share; what is less than a block has none."""
        down = blocks(whole.rows, self.block)

        def row(items: IntArray) -> IntArray:
            matrix, block = items // down, items % down
            return matrix * compressed.rows + np.minimum(block, compressed.rows - 1)

        width = whole.cols
        read = Stream(compressed, 1, width, row)
        name = f"spread {compressed.name}"
        return elementwise(name, [read], [in_order(whole, self.block)], self.block * width)

    def _add(self, one: Tensor, other: Tensor, total: Tensor) -> Kernel:
        """Heads lie side by side in rows of dQ, but not in FlashAttention-2's."""
        name = f"add {other.name}"
        if one.cols == other.cols:
            return eager_pass(name, [one, other], [total])
        width = self.w.head_dim
        rows = rows_of(one)
        grid = Grid(blocks(one.rows, rows), one.groups)  # blocks of rows, heads

        def of_head(tensor: Tensor) -> Stream:
            def tile(items: IntArray) -> IntArray:
                block, head = grid.at(items)
                return self.of.head_tile(head, block, rows)

            return Stream(tensor, rows, width, tile)

        reads = [in_order(one, rows), of_head(other)]
        return elementwise(name, reads, [of_head(total)], rows * width)

    def _branch_do(self, name: str) -> Tensor:
        return replace(self.of.q, name=f"dO of {name}", lifetime="workspace", role="other")

    def _gate(self, name: str, do: Tensor, o: Tensor) -> list[Kernel]:
        """Of O times a gate: two products, and the sums of the second over head_dim."""
        w = self.w
        product = replace(do, name=f"dO times O of {name}", lifetime="workspace")
        gate = Tensor(f"gradient of gate, {name}", w.batch, w.seq_q, w.heads, w.dtype_bytes)
        width, heads = self.of.group * w.head_dim, self.of.group
        add = elementwise(
            gate.name,
            [in_order(product, 1, width)],
            [in_order(gate, 1, heads)],
            vector_ops=width,
        )
        return [
            eager_pass(f"dO of {name}", [do], [self._branch_do(name)]),
            eager_pass(product.name, [do, o], [product]),
            add,
        ]

    def _of_branch(self, branch: Branch, marks: bool) -> "_Made":
        of, w = self.of, self.w
        do = self._branch_do(branch.name)
        sums = replace(branch.result.lse, name=f"D of {branch.name}")
        dq = replace(of.q, name=f"dQ of {branch.name}, a part", lifetime="workspace", role="other")
        dq_sum = replace(dq, name=f"dQ of {branch.name}")
        dk, dv = (
            replace(x, name=f"d{x.name} of {branch.name}", lifetime="workspace", role="other")
            for x in (branch.k, branch.v)
        )
        d = elementwise(
            sums.name,
            [in_order(branch.result.o, 1, w.head_dim), in_order(do, 1, w.head_dim)],
            [in_order(sums, 1, 1)],
            vector_ops=2 * w.head_dim,
        )
        mask = Tensor("marks", of.k.groups, w.seq_q, branch.across, 1)
        rows = _Rows(of.q, do, branch.result.lse, sums)
        kernels = [d, self._dq(branch, rows, dq), eager_pass(dq_sum.name, [dq], [dq_sum])]
        if marks:
            kernels += [eager_pass("clear marks", [], [mask]), self._mark(branch, mask)]
        kernels.append(self._dkv(branch, rows, (dk, dv), mask if marks else None))
        return _Made(kernels, (dq_sum, dk, dv))

    def _dq(self, branch: Branch, rows: "_Rows", dq: Tensor) -> Kernel:
        """A CTA a position; K and V are waited for on every trip."""
        w, of, at = self.w, self.of, Positions(self.w, by_head=True)
        visited, keys = branch.visited, branch.keys
        group_rows, width = of.group_rows, w.dtype_bytes * power_of_two(w.head_dim)
        q_bytes, kv_bytes = group_rows * width, keys * width

        def of_group(tensor: Tensor) -> Stream:
            return at.group_rows(tensor, of)

        def block_of(tensor: Tensor) -> Load:
            return Load(at.visited_blocks(tensor, keys, visited), stages=0)

        loads = tuple(map(block_of, (branch.k, branch.v)))
        scores = group_rows * keys
        work = Compute(
            "S, P, dP, dS, dQ += dS K",
            loads,
            mma_flops=3 * 2 * scores * power_of_two(w.head_dim),
            other_ops=32 * WARPS * DQ_INSTRUCTIONS,
            exp_count=scores,
            # K and V are written, K read twice, V once; Q, dO and dS by all warps.
            sram_bytes=5 * kv_bytes + 2 * WARPS * q_bytes + (1 + WARPS) * scores * w.dtype_bytes,
            latencies=DQ_LATENCIES,
        )
        return Kernel(
            name=dq.name,
            ctas=at.ctas,
            periods=at.periods,
            loops=(
                begin("Q, dO", *(Load(of_group(tensor)) for tensor in rows.all)),
                Loop(
                    lambda items: visited.count[at.position(items)],
                    (*loads, Barrier(loads), work),
                ),
                Loop(once, (Store(of_group(dq)),)),
            ),
            footprint=Footprint(2 * kv_bytes + 2 * q_bytes, 32 * WARPS, DQ_REGISTERS),
            tensor_path="mma_sync",
        )

    def _mark(self, branch: Branch, mask: Tensor) -> Kernel:
        """A CTA a chosen block of each position, which writes a byte; those not used too."""
        w, visited = self.w, branch.visited
        chosen = max(1, int(visited.count.max()))
        across = blocks(mask.cols, SECTOR_BYTES)
        grid = Grid(w.seq_q, w.batch, w.kv_heads, chosen)

        def mark(items: IntArray) -> IntArray:
            position, sequence, head, nth = grid.at(items)
            entry = visited.starts[position] + np.minimum(nth, visited.count[position] - 1)
            row = (sequence * w.kv_heads + head) * w.seq_q + position
            return row * across + visited.chosen[entry] // SECTOR_BYTES

        written = Stream(mask, 1, min(SECTOR_BYTES, mask.cols), mark)
        return Kernel(
            name="mark blocks",
            ctas=grid.size,
            periods=1,
            loops=(Loop(once, (Compute("is it chosen", other_ops=128 * 40), Store(written))),),
            footprint=Footprint(0, 32 * WARPS, registers.ELEMENTWISE),
        )

    def _dkv(
        self, branch: Branch, rows: "_Rows", grads: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Kernel:
        """A CTA a block of keys: all later positions' marks, and the positions that are marked."""
        w, of = self.w, self.of
        grid = Grid(branch.across, of.k.groups)  # blocks of keys, matrices
        count, starts, positions = _attending(branch)
        by_group = self.hw.matmul_by_warp_group and branch.keys >= 64
        width = w.dtype_bytes * power_of_two(w.head_dim)
        q_bytes, kv_bytes = of.group_rows * width, branch.keys * width
        scores = of.group_rows * branch.keys

        def own(tensor: Tensor) -> Stream:
            return Stream(tensor, branch.keys, w.head_dim, lambda items: items)

        def row_of(tensor: Tensor) -> Load:
            def first(items: IntArray) -> IntArray:
                matrix = grid.at(items)[1]
                return matrix // w.kv_heads * w.seq_q * w.kv_heads + matrix % w.kv_heads

            return Load(
                Stream(
                    tensor,
                    1,
                    tensor.cols // w.kv_heads,
                    first,
                    table=positions * w.kv_heads,
                    start=lambda items: starts[grid.at(items)[0]],
                ),
                stages=0,
            )

        loads = tuple(map(row_of, rows.all))
        readers = 1 if by_group else WARPS
        work = Compute(
            "S, P, dV += P dO, dP, dS, dK += dS Q",
            loads,
            mma_flops=4 * 2 * scores * power_of_two(w.head_dim),
            other_ops=32 * WARPS * DKV_INSTRUCTIONS[by_group],
            exp_count=scores,
            sram_bytes=2 * kv_bytes + (2 + 4 * readers) * q_bytes,
            latencies=DKV_LATENCIES[by_group],
        )
        looked: tuple[Loop, ...] = ()
        if mask is not None:
            looked = (self._marks_of(branch, mask, grid),)
        dk, dv = grads
        return Kernel(
            name=f"{dk.name}, {dv.name}",
            ctas=grid.size,
            periods=of.k.groups,
            loops=(
                begin("K, V", Load(own(branch.k)), Load(own(branch.v)), sram_bytes=2 * kv_bytes),
                *looked,
                Loop(lambda items: count[grid.at(items)[0]], (*loads, Barrier(loads), work)),
                Loop(once, (Store(own(dk)), Store(own(dv)))),
            ),
            footprint=Footprint(2 * kv_bytes + 2 * q_bytes, 32 * WARPS, registers.MOST),
            tensor_path="native" if by_group else "mma_sync",
        )

    def _marks_of(self, branch: Branch, mask: Tensor, grid: Grid) -> Loop:
        """The marks of all positions from a block's first key on, a read after the other."""
        w, machine = self.w, machine_of(self.hw)
        cols = min(SECTOR_BYTES, mask.cols)
        across = blocks(mask.cols, cols)
        down = blocks(w.seq_q, MARKS_A_TRIP)
        trips_of = down - np.arange(branch.across) * branch.keys // MARKS_A_TRIP

        def first(items: IntArray) -> IntArray:
            block, matrix = grid.at(items)
            row = matrix * down + block * branch.keys // MARKS_A_TRIP
            return row * across + block // cols

        load = Load(Stream(mask, MARKS_A_TRIP, cols, first, across))
        a_read = machine.l2_latency_s / machine.op_latency_s + MARK_LATENCIES
        look = Compute(
            "look for positions",
            (load,),
            other_ops=32 * WARPS * MARKS_A_TRIP * MARK_INSTRUCTIONS,
            latencies=round(MARKS_A_TRIP * a_read),
        )
        return Loop(lambda items: np.maximum(0, trips_of[grid.at(items)[0]]), (load, look))


@dataclass(frozen=True)
class _Rows:
    """What a position has for all heads of a KV head."""

    q: Tensor
    do: Tensor
    lse: Tensor
    sums: Tensor

    @property
    def all(self) -> tuple[Tensor, ...]:
        return (self.q, self.do, self.lse, self.sums)


@dataclass(frozen=True)
class _Made:
    """Kernels, and the gradients of Q, K and V that they leave."""

    kernels: list[Kernel]
    gradients: tuple[Tensor, Tensor, Tensor]


def _attending(branch: Branch) -> tuple[IntArray, IntArray, IntArray]:
    """How many positions attend to each block, where theirs begin, and the positions."""
    visited = branch.visited
    if branch.apart is not None:
        first = np.arange(branch.across) * branch.apart
        return np.maximum(0, len(visited.count) - first), first, np.arange(len(visited.count))
    row = np.repeat(np.arange(len(visited.count)), visited.count)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(visited.count) - visited.count, visited.count)
    block = visited.chosen[visited.starts[row] + nth]
    order = np.argsort(block, kind="stable")
    count = np.bincount(block, minlength=branch.across)
    return count, np.cumsum(count) - count, row[order]
