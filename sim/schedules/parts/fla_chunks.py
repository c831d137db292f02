"""What the chunked kernels of flash-linear-attention share: gates, and outputs from states.

    "chunk cumsum", for each chunk of each head (a CTA):
        store the running sum of g within the chunk
    "chunk outputs", for each matrix of O, chunk and BLOCK columns of V (a CTA):
        for each BLOCK columns of K:
            load Q_c, K_c, H;  O += Q_c H;  A += Q_c K_c^T
        load V_c;  O += mask(A) V_c;  store O
        where there are gates, exp of a chunk's sums decays O, exp of their differences A

H is the state that the chunk begins with. Gates lie by tokens, so that a CTA reads a sector of 32
bytes for each of its elements.

Source: fla-org/flash-linear-attention, fla/ops/utils/cumsum.py, fla/ops/common/chunk_o.py: blocks
of 64 and 4 warps are among those that its autotuner tries.
"""

from dataclasses import dataclass

from sim.schedules.base import blocks, of_constant
from sim.schedules.parts import registers
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.grid import Grid
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

BLOCK = 64
STAGES = 2
FP32 = 4  # of a gate's sums, and of a state while decoding


@dataclass(frozen=True)
class Chunked:
    """What the outputs are made of, in chunks of `chunk` tokens.

    `states` has a matrix for each chunk of each matrix of V, and `sums` of the gates (batch,
    tokens, heads) a column; without gates there are none. Q and K may have fewer heads than V, or
    K, V and states fewer than Q: a matrix then goes with several of O in a row.
    """

    chunk: int
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    states: Tensor
    sums: Tensor | None

    @property
    def chunks(self) -> int:
        """Chunks of a sequence."""
        return blocks(self.k.rows, self.chunk)

    @property
    def across(self) -> int:
        """Blocks of columns of Q, K and V."""
        return blocks(self.k.cols, BLOCK)

    def of(self, tensor: Tensor, matrix: IntArray) -> IntArray:
        """The tensor's matrix that goes with each matrix of O."""
        return matrix // (self.o.groups // tensor.groups)


def sectors(chunk: int, tensor: Tensor, matrix: OfItem, number: OfItem, stride: int = 0) -> Stream:
    """The sectors with a head's column in a chunk; `stride` chunks from trip to trip.

    The tensor is (batch, tokens, heads), `matrix` one of batch x heads.
    """
    heads = tensor.cols
    cols = min(heads, SECTOR_BYTES // tensor.element_bytes)
    across, chunks = blocks(heads, cols), blocks(tensor.rows, chunk)

    def tile(items: IntArray) -> IntArray:
        sequence, head = matrix(items) // heads, matrix(items) % heads
        found: IntArray = (sequence * chunks + number(items)) * across + head // cols
        return found

    return Stream(tensor, chunk, cols, tile, stride * across)


def cumsum_kernel(chunk: int, gates: Tensor, sums: Tensor) -> Kernel:
    """A CTA a chunk of a head; a warp, as its autotuner may choose: an estimate."""
    grid = Grid(blocks(gates.rows, chunk), gates.groups * gates.cols)  # chunks, matrices

    def number(items: IntArray) -> IntArray:
        return grid.at(items)[0]

    def matrix(items: IntArray) -> IntArray:
        return grid.at(items)[1]

    load = Load(sectors(chunk, gates, matrix, number))
    add = Compute("running sum", (load,), vector_ops=chunk * (chunk - 1).bit_length())
    store = Store(sectors(chunk, sums, matrix, number))
    return Kernel(
        name="chunk cumsum",
        ctas=grid.size,
        periods=gates.groups * gates.cols,
        loops=(Loop(once, (load, add, store)),),
        footprint=Footprint(0, 32, registers.UPDATE),
    )


def outputs_kernel(of: Chunked) -> Kernel:
    """A CTA BLOCK columns of V in a chunk of a matrix of O."""
    chunk, chunks, across = of.chunk, of.chunks, of.across
    grid = Grid(across, chunks, of.o.groups)  # blocks of V's columns, chunks, matrices of O

    def chunk_of(tensor: Tensor, items: IntArray) -> IntArray:
        _, number, matrix = grid.at(items)
        return of.of(tensor, matrix) * chunks + number

    def q_tile(items: IntArray) -> IntArray:
        return chunk_of(of.q, items) * across

    def k_tile(items: IntArray) -> IntArray:
        return chunk_of(of.k, items) * across

    def v_tile(items: IntArray) -> IntArray:
        return chunk_of(of.v, items) * across + grid.at(items)[0]

    def state_tile(items: IntArray) -> IntArray:
        return chunk_of(of.v, items) * across**2 + grid.at(items)[0]

    load_q = Load(Stream(of.q, chunk, BLOCK, q_tile, 1), STAGES)
    load_k = Load(Stream(of.k, chunk, BLOCK, k_tile, 1), STAGES)
    load_h = Load(Stream(of.states, BLOCK, BLOCK, state_tile, across), STAGES)
    load_v = Load(Stream(of.v, chunk, BLOCK, v_tile))
    slices = (load_q, load_k, load_h)
    slice_bytes = sum(load.stream.tile_bytes for load in slices)
    from_state = Compute(
        "O += Q H, A += Q K^T",
        slices,
        mma_flops=2 * chunk * BLOCK * (BLOCK + chunk),
        sram_bytes=3 * slice_bytes,
    )
    gates: tuple[Load, ...] = ()
    if of.sums:

        def matrix(items: IntArray) -> IntArray:
            return of.of(of.v, grid.at(items)[2])

        def number(items: IntArray) -> IntArray:
            return grid.at(items)[1]

        gates = (Load(sectors(chunk, of.sums, matrix, number)),)
    differences = chunk * chunk if gates else 0
    within = Compute(
        "O += mask(A) V",
        (load_v, *gates),
        mma_flops=2 * chunk * chunk * BLOCK,
        # Mask, decay, convert; scale O.
        vector_ops=3 * chunk * chunk + 2 * chunk * BLOCK + differences,
        exp_count=chunk * (chunk + 1) if gates else 0,
        sram_bytes=3 * load_v.stream.tile_bytes,
    )
    return Kernel(
        name="chunk outputs",
        ctas=grid.size,
        periods=of.o.groups,
        sharing=of.o.groups // of.k.groups,
        loops=(
            Loop(of_constant(across), (*slices, from_state)),
            Loop(once, (load_v, *gates, within, Store(in_order(of.o, chunk, BLOCK)))),
        ),
        footprint=Footprint(STAGES * slice_bytes, 128, registers.CHUNK_OUTPUTS),
    )


def gates_of(batch: int, tokens: int, heads: int, element_bytes: int) -> tuple[Tensor, Tensor]:
    """The gate of each token and head, and its running sums."""
    shape = (batch, tokens, heads)
    return Tensor("g", *shape, element_bytes, "input"), Tensor("sums of g", *shape, FP32)
