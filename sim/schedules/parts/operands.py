"""A matmul whose warps bring its operands from SRAM to registers themselves (LDSM, mma.sync).

    read the operands of the first mma.sync:  nothing is multiplied yet
    for each 16 elements that it sums over:   mma.sync;  the next operands are read beside it

Before Hopper all matmuls are of that kind. Registers hold the operands of one step ahead. Where
SRAM takes longer to bring those than tensor cores to multiply, each step waits until they are there
(Compute.operand_waits), unless other warps of the CTA read meanwhile, or a warp has more than the
16 rows of one mma.sync, and so multiplies each operand again while the next come.

Played through, a trip takes so many cycles of an SM, of a lone CTA and of two, on an A100 (sm_80,
vLLM 0.24.0's wheel, from pages: split-KV):

    FlashAttention-2      played          here            without waits
    128 x 64              3,192, 5,278    3,190, 5,540    3,190, 5,540
    split-KV, 64 x 128    4,322, 6,900    4,240, 6,800    3,750, 6,310
"""

from sim.tile_program import Compute, Load

MMA_DEPTH, MMA_ROWS = 16, 16  # elements that one 16-bit mma.sync sums over, and its rows


def multiplied(
    name: str,
    reads: tuple[Load, ...],
    flops: int,
    read_bytes: int,
    summed: int,
    *,
    rows_a_warp: int = MMA_ROWS,
    written_bytes: int = 0,
    other_ops: int = 0,
) -> tuple[Compute, ...]:
    """The matmul, and before it the share of `read_bytes` that its first mma.sync needs.

    They go from SRAM to registers, for sums of `summed` products; what copies bring to SRAM
    meanwhile is `written_bytes`.
    """
    first = read_bytes * min(MMA_DEPTH, summed) // summed
    rest = read_bytes - first + written_bytes
    waits = -(-summed // MMA_DEPTH) - 1 if rows_a_warp <= MMA_ROWS else 0
    matmul = Compute(name, reads, flops, sram_bytes=rest, other_ops=other_ops, operand_waits=waits)
    if not first:
        return (matmul,)
    return Compute(f"{name}: first operands", reads, sram_bytes=first), matmul
