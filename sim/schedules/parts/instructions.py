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

SGLang's Triton kernel (extend_attention.py, as Triton 3.9 compiles it) scales its scores apart,
takes exp and not exp2, whose range it widens by two products, and compares and selects every score
on every trip, masked or not.
"""

from dataclasses import dataclass

LANES = 32
FP32_OPS_A_ROW, EXPS_A_ROW = 20, 1
OTHER_OPS_A_ROW = 27  # 8 of maxima, 16 of shuffles, the factor by three more lanes
# Fixed warp instructions a trip: the mean over FlashAttention-2's dense kernels (27 to 121) and
# -3's (95 to 120); Triton 3.9's for 128 x 128 x 128 in 8 warps on sm_90 beyond the rule.
FLASH2_FIXED, FLASH3_FIXED, TRITON_FIXED = 48, 102, 280
# FlashAttention-2's split-KV kernels from pages, whose numbers each thread reads and divides for on
# every trip: 247, 196 and 184 at head_dim 64, 128 and 256 (vLLM's fork), 200 upstream at 128. Its
# library before Hopper from FlashAttention-3's source: 163 of one split, 216 of several. As nvcc
# 13.0 compiles them for sm_80, without what a trip jumps over.
FLASH2_PAGED_FIXED, FLASH3_SM8X_FIXED = 207, 190
# SGLang's beyond its own rule: the mean of 155 to 330 on sm_80, sm_89 and sm_90 where nothing is
# spilled (head_dim 64 and 128).
SGLANG_FIXED = 232
# What a Triton kernel adds where warps have no 16 rows of their own and so share keys: maxima, sums
# and P go through SRAM. The mean over SGLang's at 64 x 128, 64 x 64 and 32 x 32 in 8 warps (392 to
# 538 beyond the rule) less those 232.
TRITON_SHARING = 236
# Of the 10 to 18 barriers in those trips 3 are of K, S and V. Between the others, 11 in the mean,
# one value after the other goes to the other warps: a write, a barrier and a read for two barriers
# (the second frees the place), each with the latency of a dependent instruction.
SHARING_LATENCIES = 3 * 11 // 2
# What a softmax of scores that tcgen05 made waits for beside the barrier that tells that they are
# there: their load from tensor memory (LDTM).
TENSOR_MEMORY_WAITS = 1


@dataclass(frozen=True)
class OpsAScore:
    """Lane operations of a score."""

    fp32: float
    other: float
    exps: float = 1

    def __add__(self, more: "OpsAScore") -> "OpsAScore":
        """Both one after the other."""
        return OpsAScore(self.fp32 + more.fp32, self.other + more.other, self.exps + more.exps)


PLAIN = OpsAScore(fp32=2, other=1.5)
SGLANG = OpsAScore(fp32=6, other=8)
# TensorRT-LLM's fmha_v2, compiled with -use_fast_math as its Makefile does (nvcc 13.0, FlashInfer's
# copy of its source): scaled apart, the maximum subtracted, to base 2, and summed.
FMHA_V2 = OpsAScore(fp32=4, other=1.5)
FMHA_V2_FP8 = OpsAScore(fp32=5, other=1.5)  # P is scaled before it is converted
# FlexAttention's: scaled apart before what is done to them, and to base 2 after it (PRESCALE_QK is
# off), then the maximum subtracted, and summed.
FLEX = OpsAScore(fp32=4, other=1.5)


@dataclass(frozen=True)
class Softmax:
    """Lane operations of a CTA's trip, by the pipe that they take."""

    fp32_ops: int
    other_ops: int
    exps: int


def online_softmax(
    rows: int, keys: int, columns: int, warps: int, fixed: int, a_score: OpsAScore = PLAIN
) -> Softmax:
    """Of `rows` x `keys` scores and an O of so many columns, `fixed` instructions a warp."""
    scores = rows * keys
    return Softmax(
        fp32_ops=int(a_score.fp32 * scores) + rows * columns + FP32_OPS_A_ROW * rows,
        other_ops=int(a_score.other * scores) + OTHER_OPS_A_ROW * rows + fixed * LANES * warps,
        exps=int(a_score.exps * scores) + EXPS_A_ROW * rows,
    )
