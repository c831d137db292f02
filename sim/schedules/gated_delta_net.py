"""Gated DeltaNet (Qwen3-Next's and Qwen3.5's linear layers) in chunks of 64 tokens.

    "normalise Q", "normalise K"   each row by its length
    "chunk cumsum"   G = running sum of g within each chunk
    "zero A"         torch.zeros, as the next kernel stores the lower triangle alone
    "solve A"        A = (I + lower(beta exp(G_i - G_j) K K^T))^-1, for each chunk of a head (a CTA)
    "W, U"           U = A (beta V);  W = A (beta exp(G) K), for each chunk of a head (a CTA)
    "chunk states"   for each head, some columns of V (a CTA): H = 0; for each chunk:
                         store H;  V' = U - W H;  store V';  H = decay(H) + K^T decay(V')
    "chunk outputs"  O = decay(Q H) + mask(Q K^T decay) V', as of gated linear attention
    decoding one token (a CTA a head and 8 columns of V):
        load H;  H = decay(H);  v' = beta (v - H k);  H = H + k v'^T;  o = H q;  store H

`solve A` multiplies the 10 blocks of 16 x 16 on and below the diagonal, inverts the 4 on it row by
row, each row after those above it, and makes the 6 others of these by 16 small matmuls. W and U are
the WY representation: with them a chunk changes the state by two matmuls.

`heads` of the workload are those of V, each with a state of head_dim x head_dim; `kv_heads` are
those of Q and K, each of which so many heads share (32 and 16 in Qwen3-Next).

Source: arXiv 2412.06464, section 3.3; fla-org/flash-linear-attention, fla/ops/gated_delta_rule/
chunk.py (the launches), chunk_fwd.py, wy_fast.py, gate.py, fused_recurrent.py; ops/common/
chunk_delta_h.py, chunk_o.py; modules/l2norm.py. The states' columns a CTA, 32 or 64, its autotuner
chooses; here 32 where CTAs of these run all at once, 64 else: an estimate. So are 4 warps of it
and of W and U, 1 of the solver, 2 stages, and the latencies in which a row is solved. Left out:
that the 16 small matmuls are in tf32, half as fast; the state at the end of a prefill, and one
that it begins with.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Schedule, blocks, of_constant
from sim.schedules.linear_attention import check_whole_sequence
from sim.schedules.parts import registers
from sim.schedules.parts.elementwise import elementwise, in_order, rows_of
from sim.schedules.parts.fla_chunks import (
    BLOCK,
    FP32,
    STAGES,
    Chunked,
    cumsum_kernel,
    gates_of,
    outputs_kernel,
    sectors,
)
from sim.schedules.parts.grid import Grid
from sim.tile_program import (
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

CHUNK = 64
MOST_HEAD_DIM = 256  # chunk_delta_h.py has the state in up to four blocks of 64 rows
SIDE = 16  # of the blocks in which A is solved
SIDES = CHUNK // SIDE
# Blocks of A on and below the diagonal, row by row, numbered as in a whole chunk.
LOWER = np.array([row * SIDES + col for row in range(SIDES) for col in range(row + 1)], np.int64)
MERGING_MATMULS = 16  # of SIDE x SIDE x SIDE, for the 6 blocks below the diagonal
SOLVED_ROWS = SIDES * (SIDE - 2)  # one after the other; the first two of a block are there
# Of a row: it is picked out and multiplied by those above, each a sum over SIDE rows (an operation
# and 4 shuffles), and turned from a row to a column through SRAM between them: an estimate.
LATENCIES_A_ROW = 2 * 5 + 2
OPS_A_SOLVED_ELEMENT = 4  # choose and add; multiply and add; choose where it is put
DECODED_COLUMNS = 8  # of V that a warp has
REDUCTION_LATENCIES = 6  # an operation and five shuffles


class GatedDeltaNet(Schedule):
    """Gated DeltaNet, chunked forward and recurrent decoding.

    `heads` are those of V and of the states, `kv_heads` those of Q and K.
    """

    name: Literal["gated_delta_net"] = "gated_delta_net"

    summary = "chunks by their WY representation; each token corrects the state"
    source = "arXiv 2412.06464; fla-org/flash-linear-attention, fla/ops/gated_delta_rule"
    of_other_models = True
    masks = ("causal",)

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        check_whole_sequence(self, w)
        if w.dtype == "fp8" or w.head_dim > MOST_HEAD_DIM:
            raise InputError(
                f'schedule {self.name}: workload.dtype = "{w.dtype}", head_dim = {w.head_dim}: '
                f"fp16, bf16 or fp32 and a head_dim of at most {MOST_HEAD_DIM} were expected"
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Eight kernels or, for a token that is decoded, one."""
        if w.phase == "decode":
            return [_recurrent_kernel(w)]
        of = _Tensors.of(w)
        return [
            *(_normalising(*pair) for pair in ((of.q, of.chunked.q), (of.k, of.chunked.k))),
            cumsum_kernel(CHUNK, of.gates, of.sums),
            elementwise("zero A", [], [in_order(of.a, rows_of(of.a))], vector_ops=0),
            _solving_kernel(of),
            _wy_kernel(of),
            _states_kernel(of, hw),
            outputs_kernel(of.chunked),
        ]


@dataclass(frozen=True)
class _Tensors:
    """What goes in, what is between, and in `chunked` what the outputs are made of.

    `a`, `w_matrix` and `u` are the WY representation; V of `chunked` is V'.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    sums: Tensor
    beta: Tensor
    a: Tensor
    w_matrix: Tensor
    u: Tensor
    chunked: Chunked

    @classmethod
    def of(cls, w: AttentionWorkload) -> "_Tensors":
        of_q, of_v = w.batch * w.kv_heads, w.batch * w.heads
        matrix = (w.seq_kv, w.head_dim, w.dtype_bytes)
        gates, sums = gates_of(w.batch, w.seq_kv, w.heads, w.dtype_bytes)
        chunks = blocks(w.seq_kv, CHUNK)
        return cls(
            Tensor("Q", of_q, *matrix, "input", "query"),
            Tensor("K", of_q, *matrix, "input", "key"),
            Tensor("V", of_v, *matrix, "input", "value"),
            gates,
            sums,
            Tensor("beta", w.batch, w.seq_kv, w.heads, w.dtype_bytes, "input"),
            Tensor("A", of_v, w.seq_kv, CHUNK, w.dtype_bytes),
            Tensor("W", of_v, *matrix),
            Tensor("U", of_v, *matrix),
            Chunked(
                CHUNK,
                Tensor("normalised Q", of_q, *matrix),
                Tensor("normalised K", of_q, *matrix),
                Tensor("V'", of_v, *matrix),
                Tensor("O", of_v, *matrix, "output", "result"),
                Tensor("states", of_v * chunks, w.head_dim, w.head_dim, w.dtype_bytes),
                sums,
            ),
        )

    @property
    def of_v(self) -> int:
        """Matrices of V: batch x heads."""
        return self.v.groups

    def chunk_grid(self) -> Grid:
        """A CTA a chunk of each matrix of V."""
        return Grid(self.chunked.chunks, self.of_v)

    def columns(self, grid: Grid) -> tuple[Load, Load]:
        """A head's beta and sums of g in a chunk of the grid."""
        beta, sums = (
            Load(sectors(CHUNK, one, lambda i: grid.at(i)[1], lambda i: grid.at(i)[0]))
            for one in (self.beta, self.sums)
        )
        return beta, sums

    def chunk_of_k(self, grid: Grid, items: IntArray) -> IntArray:
        """The chunk of K that goes with a CTA of the grid, counted over all matrices."""
        number, matrix = grid.at(items)
        return self.chunked.of(self.k, matrix) * self.chunked.chunks + number


def _normalising(given: Tensor, result: Tensor) -> Kernel:
    """A few rows a CTA; the length of each is kept for the backward pass."""
    lengths = Tensor(f"lengths of {given.name}", given.groups, given.rows, 1, FP32)
    rows = rows_of(given)
    return elementwise(
        f"normalise {given.name}",
        [in_order(given, rows)],
        [in_order(result, rows), in_order(lengths, rows)],
        vector_ops=2 * rows * given.cols,  # square and add, scale
    )


def _solving_kernel(of: _Tensors) -> Kernel:
    across, k = of.chunked.across, of.chunked.k
    grid = of.chunk_grid()
    down = blocks(of.a.rows, SIDE)
    load_k = Load(
        Stream(k, CHUNK, BLOCK, lambda items: of.chunk_of_k(grid, items) * across, 1), STAGES
    )
    block_bytes = load_k.stream.tile_bytes
    multiply = Compute(
        "K K^T",
        (load_k,),
        mma_flops=2 * len(LOWER) * SIDE * SIDE * BLOCK,
        sram_bytes=3 * block_bytes,
    )
    beta, sums = of.columns(grid)
    elements = len(LOWER) * SIDE * SIDE
    decay = Compute("decay", (beta, sums), vector_ops=3 * elements, exp_count=elements)
    solve = Compute(
        "solve rows",
        vector_ops=OPS_A_SOLVED_ELEMENT * SOLVED_ROWS * SIDE * SIDE,
        latencies=SOLVED_ROWS * LATENCIES_A_ROW,
    )
    merge = Compute(
        "merge blocks",
        mma_flops=2 * MERGING_MATMULS * SIDE**3,
        vector_ops=elements,  # to the dtype of A
        latencies=SIDES,
    )

    def first_block(items: IntArray) -> IntArray:
        number, matrix = grid.at(items)
        return (matrix * down + number * SIDES) * SIDES

    def stored(items: IntArray) -> IntArray:
        """Blocks of the rows that a chunk has: of the last one, fewer."""
        rows = np.minimum(down - grid.at(items)[0] * SIDES, SIDES)
        trips: IntArray = rows * (rows + 1) // 2
        return trips

    store = Store(Stream(of.a, SIDE, SIDE, first_block, 0, LOWER))
    return Kernel(
        name="solve A",
        ctas=grid.size,
        periods=of.of_v,
        sharing=of.of_v // of.k.groups,
        loops=(
            Loop(of_constant(across), (load_k, multiply)),
            Loop(once, (beta, sums, decay, solve, merge)),
            Loop(stored, (store,)),
        ),
        footprint=Footprint(STAGES * block_bytes, 32, registers.SOLVED_ROWS),
    )


def _wy_kernel(of: _Tensors) -> Kernel:
    across, k = of.chunked.across, of.chunked.k
    grid = of.chunk_grid()

    def of_matrix(items: IntArray) -> IntArray:
        return items * across

    load_a = Load(in_order(of.a, CHUNK))
    beta, sums = of.columns(grid)
    load_v = Load(Stream(of.v, CHUNK, BLOCK, of_matrix, 1), STAGES)
    load_k = Load(
        Stream(k, CHUNK, BLOCK, lambda items: of.chunk_of_k(grid, items) * across, 1), STAGES
    )
    elements = CHUNK * BLOCK
    block_bytes = load_v.stream.tile_bytes

    def multiply(name: str, load: Load, scaled: int) -> Compute:
        return Compute(
            name,
            (load,),
            mma_flops=2 * CHUNK * elements,
            vector_ops=(scaled + 1) * elements,  # and conversion of the result
            sram_bytes=4 * block_bytes,  # scaled, it goes through SRAM again
        )

    return Kernel(
        name="W, U",
        ctas=grid.size,
        periods=of.of_v,
        sharing=of.of_v // of.k.groups,
        loops=(
            Loop(once, (load_a, beta, sums, Compute("exp", (load_a, beta, sums), 0, 0, CHUNK))),
            Loop(
                of_constant(across),
                (
                    load_v,
                    multiply("U = A (beta V)", load_v, 1),
                    Store(Stream(of.u, CHUNK, BLOCK, of_matrix, 1)),
                ),
            ),
            Loop(
                of_constant(across),
                (
                    load_k,
                    multiply("W = A (beta exp(G) K)", load_k, 2),
                    Store(Stream(of.w_matrix, CHUNK, BLOCK, of_matrix, 1)),
                ),
            ),
        ),
        footprint=Footprint(
            load_a.stream.tile_bytes + STAGES * block_bytes, 128, registers.SQUARE_PRODUCT
        ),
    )


def _states_kernel(of: _Tensors, hw: HardwareProfile) -> Kernel:
    chunks, size, k, states = of.chunked.chunks, of.k.cols, of.chunked.k, of.chunked.states
    few = of.of_v * blocks(size, BLOCK // 2) <= hw.sm.count
    cols = BLOCK // 2 if few else BLOCK
    grid = Grid(blocks(size, cols), of.of_v)  # blocks of V's columns, matrices

    def first_rows(items: IntArray) -> IntArray:
        return grid.at(items)[1] * chunks

    def first_k(items: IntArray) -> IntArray:
        return of.chunked.of(of.k, grid.at(items)[1]) * chunks

    def first_tile(items: IntArray) -> IntArray:
        column, matrix = grid.at(items)
        return matrix * chunks * grid.sides[0] + column

    def columns_of(tensor: Tensor, rows: int) -> Stream:
        return Stream(tensor, rows, cols, first_tile, grid.sides[0])

    load_w = Load(Stream(of.w_matrix, CHUNK, size, first_rows, 1), STAGES)
    load_u = Load(columns_of(of.u, CHUNK), STAGES)
    load_k = Load(Stream(k, CHUNK, size, first_k, 1), STAGES)
    sums = Load(sectors(CHUNK, of.sums, lambda items: grid.at(items)[1], np.zeros_like, 1), STAGES)
    state, corrected = of.chunked.across * BLOCK * cols, CHUNK * cols
    w_bytes, u_bytes = load_w.stream.tile_bytes, load_u.stream.tile_bytes
    flops = 2 * CHUNK * state
    trip = (
        load_w,
        load_u,
        load_k,
        sums,
        Store(columns_of(states, size)),
        Compute(
            "V' = U - W H",
            (load_w, load_u),
            mma_flops=flops,
            vector_ops=state + 2 * corrected,  # H and V' to their dtype, the difference
            sram_bytes=3 * w_bytes + 2 * u_bytes,
        ),
        Store(columns_of(of.chunked.v, CHUNK)),
        Compute(
            "H = decay(H) + K^T V'",
            (load_k, sums),
            mma_flops=flops,
            vector_ops=state + 2 * corrected,  # decays of H and V', its conversion
            exp_count=CHUNK + 1,
            sram_bytes=3 * w_bytes,
        ),
    )
    return Kernel(
        name="chunk states",
        ctas=grid.size,
        periods=of.of_v,
        sharing=of.of_v // of.k.groups,
        loops=(Loop(of_constant(chunks), trip),),
        footprint=Footprint(STAGES * (2 * w_bytes + u_bytes), 128, registers.CHUNK_STATES),
    )


def _recurrent_kernel(w: AttentionWorkload) -> Kernel:
    """One token. The state is there before and after: it is read and written in place."""
    heads, size = w.batch * w.heads, w.head_dim
    of_q_heads = w.batch * w.kv_heads
    q = Tensor("Q", of_q_heads, 1, size, w.dtype_bytes, "input", "query")
    k = Tensor("K", of_q_heads, 1, size, w.dtype_bytes, "input", "key")
    v = Tensor("V", heads, 1, size, w.dtype_bytes, "input", "value")
    o = Tensor("O", heads, 1, size, w.dtype_bytes, "output", "result")
    state = Tensor("state", heads, size, size, FP32, "input")
    g, beta = (Tensor(name, w.batch, 1, w.heads, w.dtype_bytes, "input") for name in ("g", "beta"))
    grid = Grid(blocks(size, DECODED_COLUMNS), heads)  # blocks of V's columns, heads

    def head(items: IntArray) -> IntArray:
        return grid.at(items)[1]

    def of_q(items: IntArray) -> IntArray:
        return head(items) // (w.heads // w.kv_heads)

    def columns(tensor: Tensor) -> Stream:
        return Stream(tensor, tensor.rows, DECODED_COLUMNS, lambda items: items)

    loads = (
        Load(columns(state)),
        *(Load(Stream(tensor, 1, size, of_q)) for tensor in (q, k)),
        Load(columns(v)),
        *(Load(sectors(1, tensor, head, np.zeros_like)) for tensor in (g, beta)),
    )
    elements = size * DECODED_COLUMNS
    update = Compute(
        "H = decay(H) + k v'^T, o = H q",
        loads,
        vector_ops=4 * elements + 4 * size,  # decay and three products; lengths of q and k
        exp_count=2,
        latencies=3 * REDUCTION_LATENCIES,  # lengths, H k, H q
    )
    return Kernel(
        name="recurrent step",
        ctas=grid.size,
        periods=heads,
        sharing=w.heads // w.kv_heads,
        loops=(Loop(once, (*loads, update, Store(columns(state)), Store(columns(o)))),),
        footprint=Footprint(0, 32, registers.state_step(elements, threads=32)),
    )
