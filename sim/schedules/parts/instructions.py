"""What the softmax of a trip executes beside its matmuls, as machine code has it.

    a score             scale and subtract the maximum (one FMA), sum; maximum; half a conversion of
                        P, which packs two; an exponential
    an element of O     a product with what the maximum has grown by
    a query row         that factor's exponential, sums, and maxima and sums shuffled between the
                        four lanes that share a row
    a warp              addresses, barriers, branches, copies: fixed, by implementation

The rule is exact in all but the last for FlashAttention-2 and -3 at every head_dim and tile that is
compiled (tests/schedules/test_instructions.py holds it against counts read from their machine code:
xformers 0.0.24's and 0.0.32.post2's wheels, disassembled). Of a tile that nobody compiled it
extrapolates. LDSM goes by the bytes of SRAM that are read, 512 each.
"""

from dataclasses import dataclass

LANES = 32
FP32_OPS_A_SCORE, OTHER_OPS_A_SCORE = 2, 1.5
FP32_OPS_A_ROW, EXPS_A_ROW = 20, 1
OTHER_OPS_A_ROW = 27  # 8 of maxima, 16 of shuffles, the factor by three more lanes
# Fixed warp instructions a trip: the mean over FlashAttention-2's dense kernels (27 to 121) and
# -3's (95 to 120); Triton 3.9's for 128 x 128 x 128 in 8 warps on sm_90 beyond the rule.
FLASH2_FIXED, FLASH3_FIXED, TRITON_FIXED = 48, 102, 280


@dataclass(frozen=True)
class Softmax:
    """Lane operations of a CTA's trip, by the pipe that they take."""

    fp32_ops: int
    other_ops: int
    exps: int


def online_softmax(rows: int, keys: int, head_dim: int, warps: int, fixed: int) -> Softmax:
    """Of `rows` x `keys` scores and an O of `head_dim` columns, `fixed` instructions a warp."""
    scores = rows * keys
    return Softmax(
        fp32_ops=FP32_OPS_A_SCORE * scores + rows * head_dim + FP32_OPS_A_ROW * rows,
        other_ops=int(OTHER_OPS_A_SCORE * scores) + OTHER_OPS_A_ROW * rows + fixed * LANES * warps,
        exps=scores + EXPS_A_ROW * rows,
    )
