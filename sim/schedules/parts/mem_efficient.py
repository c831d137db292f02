"""PyTorch's and xFormers' memory-efficient attention, forward: two CUTLASS matmuls a key block.

    for each block of query rows (one CTA), for each block of keys, first to last:
        for each slice of 32 columns:  load Q_i's and K_j's slice;  S += Q_i K_j^T of the slice
        m, P = online softmax of S, row by row through SRAM;  O_i = rescale(O_i);  P to SRAM
        for each slice of 32 keys:     load V_j's slice;  O_i += P V_j of the slice
    O_i = O_i / l_i;  store O_i and the log-sum-exp

A bias comes tile by tile through SRAM once S is there. A warp has 32 x 32 scores, so that warps
share rows and keys: each reads its part of both operands from SRAM. Q is not kept: its slices come
again with every key block. A slice is loaded while the one before is multiplied, and waited for
after it; the first of a matmul by itself. Warps meet wherever a slice is loaded.

Tiles, rows x keys, with O in registers: 64 x 64 up to head_dim 64, beyond 64 x 128 from sm80 on,
else 32 x 128. Beyond head_dim 128 O is summed in HBM, which is left out.

Source: pytorch/pytorch, aten/src/ATen/native/transformers/cuda/mem_eff_attention/:
kernel_forward.h (attention_kernel, iterative_softmax, getWarpsPerSmFw), gemm_kernel_utils.h
(DefaultGemmType: ThreadK), kernels/generate_kernels.py (which tiles are compiled).

What differs: in fp32 on sm80 and later the kernel multiplies three times in TF32, here FMAs do it;
from sm80 on 16-bit slices come three ahead, not one; V's slices are as large, but cut by columns.
Masks cost nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.machine import MATMUL_OPERAND_BYTES
from sim.schedules.base import QKVO, Tile, blocks
from sim.schedules.parts import registers
from sim.schedules.parts.counted import Counted, resident
from sim.schedules.parts.ends import finish
from sim.schedules.parts.flash_loop import QueryBlocks, log_sum_exp
from sim.schedules.parts.results import Attention, Result
from sim.schedules.parts.scores import bias_matrix, bias_tensor
from sim.tile_program import (
    Barrier,
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    Op,
    Stream,
    Tensor,
    once,
)

MOST_HEAD_DIM = 128
SLICE = 32  # ThreadK: columns of Q and K, keys of P and V
LANES_SLICE = 8  # of matmuls without tensor cores, which take four for one of SLICE
SLICE_BUFFERS = 2
WARP_SIDE = 32  # rows and keys of a warp's scores
BEFORE_SM80 = ("sm70", "sm75")


@dataclass(frozen=True)
class Trip:
    """What a CTA executes for a key block: a slice of either matmul, and all that is not one."""

    slice: Counted
    rest: Counted


# By the machine code in xformers 0.0.24's wheel (_C.so, head_dim 32 to 128), played through for one
# to three CTAs (sim/machine_code/played.py), without what is skipped where no bias, dropout and
# mask is. Turing's shared memory takes 64 bytes a clock, what is loaded to registers among them.
# By bytes of an element: on Turing; from sm80 on, where also by warps. There FMAs, which stand for
# matmuls in TF32, take the slots of all that a slice executes.
ON_TURING = {
    2: Trip(
        slice=Counted(58, 594, beside=470, sram_cycles=472, multiplied=256),
        rest=Counted(730, 2230, beside=180, sram_cycles=600),
    ),
    4: Trip(
        slice=Counted(410, 3000, beside=2110, sram_cycles=1970, multiplied=1024),
        rest=Counted(510, 2140, beside=645, sram_cycles=750),
    ),
}
FROM_SM80_ON = {
    (2, 4): Trip(
        slice=Counted(25, 228, beside=69, sram_cycles=128, multiplied=128),
        rest=Counted(736, 2164, beside=535, sram_cycles=536),
    ),
    (2, 8): Trip(
        slice=Counted(25, 304, 8, beside=279, sram_cycles=256, multiplied=128),
        rest=Counted(772, 3244, 8, beside=1160, sram_cycles=1360),
    ),
    (4, 4): Trip(
        slice=Counted(0, 1723, beside=409, sram_cycles=456, multiplied=1024),
        rest=Counted(1073, 2499, beside=862, sram_cycles=772),
    ),
    (4, 8): Trip(
        slice=Counted(0, 1817, 8, beside=1563, sram_cycles=776, multiplied=1024),
        rest=Counted(940, 3370, 8, beside=90, sram_cycles=184),
    ),
}
FP32_A_SCORE, EXPS_A_SCORE = 170 / 32, 33 / 32  # of rest's; on Turing as many conversions as exps


def mem_efficient_tile(w: AttentionWorkload, hw: HardwareProfile) -> Tile:
    """The public kernel's rows and keys."""
    if w.head_dim <= 64:
        return Tile(q=64, kv=64)
    return Tile(q=32 if hw.arch in BEFORE_SM80 else 64, kv=128)


def mem_efficient_attention(w: AttentionWorkload, hw: HardwareProfile, tensors: QKVO) -> Attention:
    """The kernel on Q, K, V and O; it makes the log-sum-exp."""
    q, k, v, o = tensors
    tile, lse = mem_efficient_tile(w, hw), log_sum_exp(q)
    grid = QueryBlocks(w, tile)
    rows = grid.tiles(q, o, lse)
    across = blocks(w.head_dim, SLICE)

    def of_rows(number: int) -> Load:
        stream = Stream(q, tile.q, SLICE, lambda items: grid.tile_of(items) * across + number)
        return Load(stream, 0)

    def of_keys(tensor: Tensor, number: int) -> Load:
        def base(items: IntArray) -> IntArray:
            return grid.first_shown(items) * across + number

        return Load(Stream(tensor, tile.kv, SLICE, base, stride=across), 0)

    slices_of_s = [(of_rows(number), of_keys(k, number)) for number in range(across)]
    slices_of_o = [(of_keys(v, number),) for number in range(across)]

    def of_bias(items: IntArray) -> IntArray:
        row = grid.row(items)
        block: IntArray = bias_matrix(w, grid.matrix(items)) * grid.down + row
        return block * blocks(w.seq_kv, tile.kv) + grid.shown[0][row]

    bias = (Load(Stream(bias_tensor(w), tile.q, tile.kv, of_bias, 1), 0),) if w.bias else ()
    loads = [load for each in (*slices_of_s, bias, *slices_of_o) for load in each]
    footprint = _footprint(w, hw, tile)
    on = _Sm(hw, resident(footprint, rows.ctas, hw), _code(w, hw, tile))
    loop = Loop(grid.trips, (*loads, *_trip(w, tile, on, slices_of_s, slices_of_o, bias)))
    o_bytes = 2 * tile.q * w.head_dim * w.dtype_bytes
    kernel = Kernel(
        name="mem_efficient",
        ctas=rows.ctas,
        loops=(loop, finish(tile.q * w.head_dim, rows.o, rows.lse, trips=once, sram_bytes=o_bytes)),
        footprint=footprint,
        tensor_path="mma_sync",
        periods=rows.periods,
        sharing=rows.sharing,
    )
    return Attention([kernel], Result(o, lse))


@dataclass(frozen=True)
class _Sm:
    """An SM that so many CTAs share, each of which executes `trip` for a key block."""

    hw: HardwareProfile
    resident: int
    trip: Trip

    def sliced(self, name: str, slices: Sequence[tuple[Load, ...]], mma_flops: int) -> Iterator[Op]:
        """A matmul whose next slice is on its way while one is multiplied."""
        yield Barrier(slices[0])
        for number, loads in enumerate(slices):
            yield Barrier(slices[number + 1] if number + 1 < len(slices) else ())
            yield self.trip.slice.compute(name, loads, self.hw, self.resident, mma_flops)

    def softmax(self, scores: int) -> Compute:
        """All that is no matmul, with so many scores."""
        counted = self.trip.rest.compute("softmax", (), self.hw, self.resident)
        by_the_unit = 2 if self.hw.arch in BEFORE_SM80 else 1
        vector_ops = round(FP32_A_SCORE * scores)
        exps = round(by_the_unit * EXPS_A_SCORE * scores)
        others = max(0, counted.other_ops - vector_ops - exps)
        return replace(counted, vector_ops=vector_ops, exp_count=exps, other_ops=others)


def _code(w: AttentionWorkload, hw: HardwareProfile, tile: Tile) -> Trip:
    if hw.arch in BEFORE_SM80:
        return ON_TURING[w.dtype_bytes]
    return FROM_SM80_ON[w.dtype_bytes, _warps(tile)]


def _warps(tile: Tile) -> int:
    return tile.q * tile.kv // WARP_SIDE**2


def _trip(
    w: AttentionWorkload,
    tile: Tile,
    on: _Sm,
    slices_of_s: Sequence[tuple[Load, ...]],
    slices_of_o: Sequence[tuple[Load, ...]],
    bias: tuple[Load, ...],
) -> Iterator[Op]:
    """S slice after slice, its softmax, O slice after slice."""
    scores = tile.q * tile.kv
    yield from on.sliced("S += Q K^T", slices_of_s, 2 * scores * SLICE)
    if bias:
        yield Barrier(bias)
        bias_bytes = 2 * scores * w.dtype_bytes
        yield Compute("S += bias", bias, vector_ops=scores, sram_bytes=bias_bytes)
    yield on.softmax(scores)
    # O has as many columns as there are keys.
    yield from on.sliced("O += P V", slices_of_o, 2 * scores * tile.kv // len(slices_of_o))


def _footprint(w: AttentionWorkload, hw: HardwareProfile, tile: Tile) -> Footprint:
    """Slices of Q and K, then P and slices of V in the same place."""
    by_lanes = w.dtype_bytes > MATMUL_OPERAND_BYTES and hw.arch in BEFORE_SM80
    depth = LANES_SLICE if by_lanes else SLICE
    of_s = SLICE_BUFFERS * (tile.q + tile.kv) * depth
    of_o = tile.q * tile.kv + SLICE_BUFFERS * depth * tile.kv
    taken = registers.mem_efficient(w.dtype_bytes, _warps(tile), hw.arch in BEFORE_SM80)
    return Footprint(max(of_s, of_o) * w.dtype_bytes, 32 * _warps(tile), taken)
