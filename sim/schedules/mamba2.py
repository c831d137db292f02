"""Mamba-2 (state-space duality) in chunks, for comparison with attention on the same axes.

    "chunk cumsum"   dt = softplus(dt);  a = running sum of dt A within each chunk
    "chunk states"   S_c = X_c^T (decay * B_c): what a chunk adds to the state
    "pass states"    H_c+1 = exp(a) H_c + S_c, chunk after chunk, in place of attention's reach
    "C B^T"          within each chunk, once a group of heads
    "chunk scan"     Y_c = decay * C_c H_c + (C B^T * decay) X_c
    decoding         h = exp(dt A) h + dt x b^T;  y = h c, the state in place

Source: arXiv 2405.21060, section 6; state-spaces/mamba, mamba_ssm/ops/triton/ssd_combined.py
(order of the kernels; C B^T and what chunks add in fp32), ssd_chunk_state.py, ssd_state_passing.py,
ssd_bmm.py, ssd_chunk_scan.py, selective_state_update.py. Block sizes are among those that the
autotuners there try. `heads` and `head_dim` of the workload are those of X; instead of K and Q
there are B and C of `state` columns, shared by all heads of a group; KV heads have no meaning here.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Schedule, blocks, of_constant
from sim.schedules.linear_attention import check_whole_sequence
from sim.schedules.parts import registers
from sim.schedules.parts.grid import Grid
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

FP32 = 4
HEADS_A_BLOCK = 16  # of the cumsum kernel
SLICE = 32  # tokens, or columns of B and C, that a matmul takes at once
STATE_ROWS, STATE_COLS = 64, 128  # of the chunk-states kernel
PASSED_ELEMENTS = 512  # of a state that one CTA passes on
SQUARE = 64  # of C B^T
SCAN_ROWS, SCAN_COLS = 128, 64
DEPTH = 128  # columns of C and of the state that the scan takes at once
STAGES = 4
UPDATED_ROWS = 8  # of a state that one CTA of the decoding kernel updates


class Mamba2(Schedule):
    """Mamba-2's chunked scan, and decoding of one token.

    `state` is the state's size for each of head_dim columns, `groups` how many B and C there are,
    `chunk` in tokens; defaults as in mamba_ssm/modules/mamba2.py.
    """

    name: Literal["mamba2"] = "mamba2"
    state: int = Field(default=128, ge=16, le=256, multiple_of=16)
    groups: Count = 1
    chunk: Literal[64, 128, 256] = 256

    summary = "state-space duality in chunks; a state that does not grow for a cache"
    source = "arXiv 2405.21060; state-spaces/mamba, mamba_ssm/ops/triton"
    of_other_models = True
    masks = ("causal",)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Five kernels or, for a token that is decoded, one."""
        if w.phase == "decode":
            return [_update_kernel(w, self)]
        scan = _Scan(w, self)
        return [scan.cumsum(), scan.states(), scan.passing(), scan.products(), scan.outputs()]

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        check_whole_sequence(self, w)


def _group_of(w: AttentionWorkload, groups: int, head: IntArray) -> IntArray:
    """The group of each head, as even as heads and groups allow."""
    return head * min(groups, w.heads) // w.heads


class _Scan:
    """The tensors of the chunked scan and its five kernels. Matrices of B and C: batch x groups."""

    def __init__(self, w: AttentionWorkload, schedule: Mamba2) -> None:
        self.w, self.chunk, self.groups = w, schedule.chunk, min(schedule.groups, w.heads)
        self.length, self.size, self.state = w.seq_kv, w.head_dim, schedule.state
        self.chunks = blocks(self.length, self.chunk)
        heads, width = w.batch * w.heads, w.dtype_bytes
        self.x = Tensor("X", heads, self.length, self.size, width, "input")
        self.y = Tensor("Y", heads, self.length, self.size, width, "output")
        matrices = w.batch * self.groups
        self.b, self.c = (
            Tensor(name, matrices, self.length, self.state, width, "input") for name in "BC"
        )
        self.dt_in = Tensor("dt", w.batch, self.length, w.heads, width, "input")
        self.dt = Tensor("softplus dt", heads, self.length, 1, FP32)
        self.sums = Tensor("sums of dt A", heads, self.length, 1, FP32)
        states = heads * self.chunks
        self.added = Tensor("what chunks add", states, self.size, self.state, FP32)
        self.passed = Tensor("states", states, self.size, self.state, width)
        self.cb = Tensor("C B^T", matrices * self.chunks, self.chunk, self.chunk, FP32)

    @property
    def parts(self) -> int:
        """Like parts of a matrix: its chunks, unless the last one is shorter."""
        return 1 if self.length % self.chunk else self.chunks

    @property
    def sharing(self) -> int:
        """Like parts in a row that read one matrix of B and C."""
        return self.parts * (self.w.heads // self.groups)

    def slices(self, chunk_number: IntArray) -> IntArray:
        """Slices of SLICE tokens in each of those chunks."""
        left = self.length - chunk_number * self.chunk
        return -(-left.clip(max=self.chunk) // SLICE)

    def first_slice(self, matrix: IntArray, chunk_number: IntArray) -> IntArray:
        """The first slice of a chunk of a matrix, counted over all matrices."""
        a_matrix = blocks(self.length, SLICE)
        return matrix * a_matrix + chunk_number * (self.chunk // SLICE)

    def of_group(self, head: IntArray) -> IntArray:
        """The matrix of B and C that goes with each matrix of X (batch x head)."""
        sequence = head // self.w.heads
        return sequence * self.groups + _group_of(self.w, self.groups, head % self.w.heads)

    def cumsum(self) -> Kernel:
        """A CTA a chunk of HEADS_A_BLOCK heads."""
        across = blocks(self.w.heads, HEADS_A_BLOCK)
        heads = min(HEADS_A_BLOCK, self.w.heads)
        grid = Grid(across, self.chunks, self.w.batch)  # blocks of heads, chunks, sequences

        def first(items: IntArray) -> IntArray:
            block, chunk_number, sequence = grid.at(items)
            head = sequence * self.w.heads + block * HEADS_A_BLOCK
            return head * self.chunks + chunk_number

        def heads_of(items: IntArray) -> IntArray:
            block, _, _ = grid.at(items)
            return (self.w.heads - block * HEADS_A_BLOCK).clip(max=HEADS_A_BLOCK)

        load = Load(Stream(self.dt_in, self.chunk, HEADS_A_BLOCK, lambda items: items))
        elements = self.chunk * heads
        stores = tuple(
            Store(Stream(tensor, self.chunk, 1, first, self.chunks))
            for tensor in (self.dt, self.sums)
        )
        softplus = Compute("softplus, running sum", (load,), 0, 4 * elements, 2 * elements)
        return Kernel(
            name="chunk cumsum",
            ctas=grid.size,
            periods=self.w.batch,
            loops=(Loop(once, (load, softplus)), Loop(heads_of, stores)),
            footprint=Footprint(0, 128, registers.UPDATE),
        )

    def states(self) -> Kernel:
        """A CTA a STATE_ROWS x STATE_COLS tile of what a chunk adds."""
        down, across = blocks(self.size, STATE_ROWS), blocks(self.state, STATE_COLS)
        # Tiles across and down, chunks, matrices of X.
        grid = Grid(across, down, self.chunks, self.x.groups)

        def first(items: IntArray) -> IntArray:
            _, _, chunk_number, matrix = grid.at(items)
            return self.first_slice(matrix, chunk_number)

        def x_tile(items: IntArray) -> IntArray:
            return first(items) * down + grid.at(items)[1]

        def b_tile(items: IntArray) -> IntArray:
            column, _, chunk_number, matrix = grid.at(items)
            return self.first_slice(self.of_group(matrix), chunk_number) * across + column

        def slices(items: IntArray) -> IntArray:
            return self.slices(grid.at(items)[2])

        load_x = Load(Stream(self.x, SLICE, STATE_ROWS, x_tile, down), STAGES)
        load_b = Load(Stream(self.b, SLICE, STATE_COLS, b_tile, across), STAGES)
        decays = (self._column(self.dt, first), self._column(self.sums, first))
        operands = load_x.stream.tile_bytes + load_b.stream.tile_bytes
        rows, cols = min(STATE_ROWS, self.size), min(STATE_COLS, self.state)
        add = Compute(
            "S += X^T (decay * B)",
            (load_x, load_b, *decays),
            mma_flops=2 * rows * cols * SLICE,
            vector_ops=SLICE * cols,
            exp_count=SLICE,
            sram_bytes=3 * operands,
        )
        store = Store(Stream(self.added, STATE_ROWS, STATE_COLS, lambda items: items))
        return Kernel(
            name="chunk states",
            ctas=grid.size,
            periods=self.x.groups * self.parts,
            sharing=self.sharing,
            loops=(
                Loop(slices, (load_x, load_b, *decays, add)),
                Loop(once, (store,)),
            ),
            footprint=Footprint(STAGES * operands, 128, registers.CHUNK_STATES),
        )

    def _column(self, tensor: Tensor, first: OfItem) -> Load:
        return Load(Stream(tensor, SLICE, 1, first, 1), STAGES)

    def passing(self) -> Kernel:
        """A CTA PASSED_ELEMENTS of a head's state, over all chunks in order.

        The one decay a chunk that it reads, 4 bytes, is left out.
        """
        rows = max(1, PASSED_ELEMENTS // self.state)
        down = blocks(self.size, rows)
        grid = Grid(down, self.x.groups)  # parts of the state, matrices of X

        def tile(items: IntArray) -> IntArray:
            part, matrix = grid.at(items)
            return matrix * self.chunks * down + part

        load = Load(Stream(self.added, rows, self.state, tile, down))
        store = Store(Stream(self.passed, rows, self.state, tile, down))
        elements = min(rows, self.size) * self.state
        update = Compute("H = exp(a) H + S", (load,), 0, 2 * elements, 1)
        return Kernel(
            name="pass states",
            ctas=grid.size,
            periods=self.x.groups,
            loops=(Loop(of_constant(self.chunks), (load, store, update)),),
            footprint=Footprint(0, 128, registers.ELEMENTWISE),
        )

    def products(self) -> Kernel:
        """A CTA a SQUARE x SQUARE tile of a chunk's C B^T, whole, whatever the mask."""
        side, deep = self.chunk // SQUARE, blocks(self.state, SLICE)
        a_matrix = blocks(self.length, SQUARE)

        # Tiles across (of B) and down (of C), chunks, matrices of B and C.
        grid = Grid(side, side, self.chunks, self.b.groups)

        def of_b(items: IntArray) -> IntArray:
            across, _, chunk_number, matrix = grid.at(items)
            return (matrix * a_matrix + chunk_number * side + across) * deep

        def of_c(items: IntArray) -> IntArray:
            _, down, chunk_number, matrix = grid.at(items)
            return (matrix * a_matrix + chunk_number * side + down) * deep

        def trips(items: IntArray) -> IntArray:
            """None where rows or columns lie beyond the sequence: there is nothing to load."""
            across, down, chunk_number, _ = grid.at(items)
            last = chunk_number * side + np.maximum(across, down)
            return np.where(last < a_matrix, deep, 0)

        load_c = Load(Stream(self.c, SQUARE, SLICE, of_c, 1), STAGES)
        load_b = Load(Stream(self.b, SQUARE, SLICE, of_b, 1), STAGES)
        operands = load_c.stream.tile_bytes + load_b.stream.tile_bytes
        depth = min(SLICE, self.state)
        multiply = Compute("C B^T", (load_c, load_b), 2 * SQUARE**2 * depth, 0, 0, 3 * operands)
        store = Store(Stream(self.cb, SQUARE, SQUARE, lambda items: items))
        return Kernel(
            name="C B^T",
            ctas=grid.size,
            periods=self.b.groups * self.parts,
            loops=(Loop(trips, (load_c, load_b, multiply)), Loop(once, (store,))),
            footprint=Footprint(STAGES * operands, 128, registers.SQUARE_PRODUCT),
        )

    def outputs(self) -> Kernel:
        """A CTA SCAN_ROWS tokens of a chunk and SCAN_COLS columns of a head."""
        grid = _OutputGrid(self)
        rows, cols, depth = grid.rows, min(SCAN_COLS, self.size), min(DEPTH, self.state)
        load_c = Load(Stream(self.c, rows, DEPTH, grid.c_tile, 1))
        load_h = Load(Stream(self.passed, SCAN_COLS, DEPTH, grid.state_tile, 1))
        head_bytes = load_c.stream.tile_bytes + load_h.stream.tile_bytes
        from_state = Compute(
            "Y = decay * C H",
            (load_c, load_h),
            mma_flops=2 * rows * cols * depth,
            vector_ops=rows * cols,
            exp_count=rows,
            sram_bytes=3 * head_bytes,
        )
        load_cb = Load(Stream(self.cb, rows, SLICE, grid.cb_tile, 1), STAGES)
        load_x = Load(Stream(self.x, SLICE, SCAN_COLS, grid.x_tile, grid.across), STAGES)
        decays = (self._column(self.dt, grid.first), self._column(self.sums, grid.first))
        operands = load_cb.stream.tile_bytes + load_x.stream.tile_bytes
        within = Compute(
            "Y += (C B^T * decay) X",
            (load_cb, load_x, *decays),
            mma_flops=2 * rows * cols * SLICE,
            vector_ops=5 * rows * SLICE,  # subtract, decay, dt, mask, convert
            exp_count=rows * SLICE,
            sram_bytes=3 * operands,
        )
        return Kernel(
            name="chunk scan",
            ctas=grid.ctas.size,
            periods=self.x.groups * self.parts,
            sharing=self.sharing,
            loops=(
                Loop(lambda items: grid.starts(items) * grid.deep, (load_c, load_h, from_state)),
                Loop(grid.slices, (load_cb, load_x, *decays, within)),
                Loop(grid.starts, (Store(Stream(self.y, rows, SCAN_COLS, grid.y_tile)),)),
            ),
            footprint=Footprint(max(head_bytes, STAGES * operands), 128, registers.CHUNK_OUTPUTS),
        )


class _OutputGrid:
    """Grid of "chunk scan": columns and rows of a chunk's outputs, chunks, matrices of X."""

    def __init__(self, scan: _Scan) -> None:
        self.scan, self.rows = scan, min(SCAN_ROWS, scan.chunk)
        self.down, self.across = scan.chunk // self.rows, blocks(scan.size, SCAN_COLS)
        self.deep = blocks(scan.state, DEPTH)
        self.ctas = Grid(self.across, self.down, scan.chunks, scan.x.groups)

    def starts(self, items: IntArray) -> IntArray:
        """1 where a CTA has tokens: of the last chunk some may have none."""
        _, block, chunk_number, _ = self.ctas.at(items)
        first_row = chunk_number * self.scan.chunk + block * self.rows
        return np.where(first_row < self.scan.length, 1, 0)

    def _row_block(self, matrix: IntArray, items: IntArray) -> IntArray:
        _, block, chunk_number, _ = self.ctas.at(items)
        a_matrix = blocks(self.scan.length, self.rows)
        within: IntArray = np.minimum(chunk_number * self.down + block, a_matrix - 1)
        return matrix * a_matrix + within

    def c_tile(self, items: IntArray) -> IntArray:
        """The first slice of C."""
        matrix = self.ctas.at(items)[3]
        return self._row_block(self.scan.of_group(matrix), items) * self.deep

    def state_tile(self, items: IntArray) -> IntArray:
        """The first slice of the state that the chunk begins with."""
        column, _, chunk_number, matrix = self.ctas.at(items)
        state = matrix * self.scan.chunks + chunk_number
        return (state * self.across + column) * self.deep

    def cb_tile(self, items: IntArray) -> IntArray:
        """The first slice of C B^T."""
        _, block, chunk_number, matrix = self.ctas.at(items)
        square = self.scan.of_group(matrix) * self.scan.chunks + chunk_number
        return (square * self.down + block) * (self.scan.chunk // SLICE)

    def first(self, items: IntArray) -> IntArray:
        """The chunk's first slice of tokens."""
        _, _, chunk_number, matrix = self.ctas.at(items)
        return self.scan.first_slice(matrix, chunk_number)

    def x_tile(self, items: IntArray) -> IntArray:
        """The first slice of X."""
        return self.first(items) * self.across + self.ctas.at(items)[0]

    def slices(self, items: IntArray) -> IntArray:
        """Slices up to the diagonal and the end of the sequence."""
        _, block, chunk_number, _ = self.ctas.at(items)
        seen = np.minimum((block + 1) * self.rows // SLICE, self.scan.slices(chunk_number))
        return np.where(self.starts(items), seen, 0)

    def y_tile(self, items: IntArray) -> IntArray:
        """The tile of Y."""
        column, _, _, matrix = self.ctas.at(items)
        return self._row_block(matrix, items) * self.across + column


def _update_kernel(w: AttentionWorkload, schedule: Mamba2) -> Kernel:
    """A CTA UPDATED_ROWS rows of a head's state, which is kept in the model's dtype."""
    groups, heads, width = min(schedule.groups, w.heads), w.batch * w.heads, w.dtype_bytes
    down = blocks(w.head_dim, UPDATED_ROWS)
    state = Tensor("state", heads, w.head_dim, schedule.state, width, "input")
    x = Tensor("X", heads, w.head_dim, 1, width, "input")
    y = Tensor("Y", heads, w.head_dim, 1, width, "output")
    b, c = (Tensor(n, w.batch * groups, 1, schedule.state, width, "input") for n in "BC")
    dt = Tensor("dt", heads, 1, 1, width, "input")
    grid = Grid(down, heads)  # blocks of rows, heads

    def rows(items: IntArray) -> IntArray:
        return items

    def head(items: IntArray) -> IntArray:
        return grid.at(items)[1]

    def group(items: IntArray) -> IntArray:
        sequence, number = head(items) // w.heads, head(items) % w.heads
        return sequence * groups + _group_of(w, groups, number)

    loads = (
        Load(Stream(state, UPDATED_ROWS, schedule.state, rows)),
        Load(Stream(x, UPDATED_ROWS, 1, rows)),
        Load(Stream(b, 1, schedule.state, group)),
        Load(Stream(c, 1, schedule.state, group)),
        Load(Stream(dt, 1, 1, head)),
    )
    elements = min(UPDATED_ROWS, w.head_dim) * schedule.state
    update = Compute("h = exp(dt A) h + dt x b^T, y = h c", loads, 0, 4 * elements, elements)
    stores = (
        Store(Stream(state, UPDATED_ROWS, schedule.state, rows)),
        Store(Stream(y, UPDATED_ROWS, 1, rows)),
    )
    return Kernel(
        name="state update",
        ctas=grid.size,
        periods=heads,
        sharing=w.heads // groups,
        loops=(Loop(once, (*loads, update, *stores)),),
        footprint=Footprint(0, 128, registers.UPDATE),
    )
