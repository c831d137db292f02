"""What is done to scores before the softmax, and what it costs: softcap, ALiBi, a bias tensor.

    S = c tanh(S / c)         a product, and tanh.approx, which the unit of exponentials has; the
                              second product is the softmax's scale
    S = S - slope |i - j|     causal, FlashAttention-2's CUDA adds slope j, of which a thread makes
                              one for its four rows; else the distance for each score
    S = S + bias_ij           an add; the matrix is read from HBM tile by tile, with K
    S = S where seen          FlashAttention-2's: on every trip where there is a window, else on
                              those that the causal diagonal may cross
    S = S where mask_ij       of a tree, a bit each: its place in 64 bits (4), the byte, its shift
                              and test (4), the select, and whether query and key are there (3)

Source: Dao-AILab/flash-attention, csrc/flash_attn/src/utils.h (calculate_dtanh, apply_softcap) and
mask.h (Has_alibi); pytorch/pytorch, torch/_inductor/kernel/flex (score_mod is inlined; its loads
feed no matmul, so that Triton issues them in the trip that needs them). flashinfer-ai/flashinfer,
include/flashinfer/attention/variants.cuh (use_custom_mask; prefill.cuh applies it on every trip).
Operations of ALiBi and of a tree are counted by hand: estimates. Of a masked score of
FlashAttention-2: the machine code of its kernel of 128 x 64 and head_dim 128 (nvcc 13.0, sm_80),
6.1 beyond the dense loop's on a causal trip. What a window costs is of each kernel's own loop
(public_tiles.py).
"""

import numpy as np

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks, visible_blocks
from sim.schedules.parts.instructions import OpsAScore
from sim.tile_program import IntArray, Tensor

UNCHANGED = OpsAScore(fp32=0, other=0, exps=0)
SOFTCAP = OpsAScore(fp32=1, other=0, exps=1)
ALIBI_BY_COLUMN = OpsAScore(fp32=1, other=0.5, exps=0)  # a conversion and its index for four rows
ALIBI_BY_SCORE = OpsAScore(fp32=1, other=3, exps=0)  # difference, absolute value, conversion
BIAS = OpsAScore(fp32=1, other=0, exps=0)
TREE = OpsAScore(fp32=0, other=12, exps=0)
BY_DIAGONAL = 6  # operations of a score that is compared with the causal edge
BEFORE_THE_LOOP = 8  # at most, with a window's, on the first trips, which are unrolled


def changes(w: AttentionWorkload, by_column: bool) -> OpsAScore:
    """Lane operations that the workload's changes take of a score.

    Causal ALiBi goes `by_column` in kernels that know that rows only shift it.
    """
    ops = UNCHANGED
    if w.softcap is not None:
        ops += SOFTCAP
    if w.alibi:
        ops += ALIBI_BY_COLUMN if w.causal and by_column else ALIBI_BY_SCORE
    if w.bias is not None:
        ops += BIAS
    if w.tree:
        ops += TREE
    return ops


def masked(w: AttentionWorkload, tile: Tile, in_window: float) -> OpsAScore:
    """FlashAttention-2's lane operations of a score, over all trips, that hide what is not seen.

    Behind a window its loop takes `in_window` for them.
    Source: csrc/flash_attn/src/flash_fwd_kernel.h (n_masking_steps, apply_mask) and mask.h.
    """
    if w.mask == "full":
        return UNCHANGED
    first, end = visible_blocks(w, tile)
    trips = np.maximum(end - first, 0)
    crossed = float(np.minimum(trips, blocks(tile.q, tile.kv)).sum() / max(trips.sum(), 1))
    if w.mask == "causal":
        return OpsAScore(fp32=0, other=BY_DIAGONAL * crossed, exps=0)
    ops = min(in_window, BEFORE_THE_LOOP) * crossed + in_window * (1 - crossed)
    return OpsAScore(fp32=0, other=ops, exps=0)


def tree_mask(w: AttentionWorkload) -> Tensor:
    """The mask of each sequence's tree, a bit for each of its queries and keys."""
    sizes = None
    if w.lengths is not None:
        sizes = np.array([(q, -(-kv // 8)) for q, kv in w.lengths], np.int64)
    return Tensor("tree", w.batch, w.seq_q, -(-w.seq_kv // 8), 1, "input", "mask", sizes)


def bias_tensor(w: AttentionWorkload) -> Tensor:
    """The matrices that are added to scores."""
    groups = {"one": 1, "head": w.heads, "sequence": w.batch, "all": w.batch * w.heads}
    shape = (w.seq_q, w.seq_kv, w.dtype_bytes)
    return Tensor("bias", groups[w.bias or "one"], *shape, "input", "mask")


def bias_matrix(w: AttentionWorkload, q_matrix: IntArray) -> IntArray:
    """The one that goes with each matrix of queries (batch x head)."""
    if w.bias == "head":
        return q_matrix % w.heads
    if w.bias == "sequence":
        return q_matrix // w.heads
    return q_matrix if w.bias == "all" else np.zeros_like(q_matrix)
