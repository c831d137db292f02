"""A matmul whose warps bring its operands from SRAM to registers themselves (LDSM, mma.sync).

    read the operands of the first mma.sync:  nothing is multiplied yet
    for each 16 elements that it sums over:   mma.sync;  the next operands are read beside it

Before Hopper all matmuls are of that kind. Played through, a trip of FlashAttention-2's (128 x 64,
head_dim 128) takes 3,192 cycles of an SM alone and 5,292 of two CTAs, one of its split-KV kernel's
(64 x 128) 4,170 and 6,660; with the first operands read beside the rest 2,880, 5,440, 3,670 and
5,970 came out, with them apart 3,190, 5,540, 3,740 and 6,300.
"""

from sim.tile_program import Compute, Load

MMA_DEPTH = 16  # elements that one 16-bit mma.sync sums over


def multiplied(
    name: str,
    reads: tuple[Load, ...],
    flops: int,
    read_bytes: int,
    summed: int,
    *,
    written_bytes: int = 0,
    other_ops: int = 0,
) -> tuple[Compute, ...]:
    """The matmul, and before it the share of `read_bytes` that its first mma.sync needs.

    They go from SRAM to registers, for sums of `summed` products; what copies bring to SRAM
    meanwhile is `written_bytes`.
    """
    first = read_bytes * min(MMA_DEPTH, summed) // summed
    rest = read_bytes - first + written_bytes
    matmul = Compute(name, reads, flops, sram_bytes=rest, other_ops=other_ops)
    if not first:
        return (matmul,)
    return Compute(f"{name}: first operands", reads, sram_bytes=first), matmul
