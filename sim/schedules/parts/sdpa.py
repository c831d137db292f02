"""The passes of PyTorch's scaled_dot_product_attention by its math backend around the matmuls.

    Q, K, V in fp32                       (`upcast`: of 16 bits, unless told that these suffice)
    Q = Q c;  K = K c                     (c the root of the scale)
    K, V for every query head             (where heads share them: enable_gqa)
    M = tril(ones);  M = 0 or -inf        (if causal, made on each call: a byte, then an element)
    S = Q K^T;  S = S + M
    P = softmax(S);  E = (S = -inf);  R = all of a row of E;  P = 0 where R, else P
    P in Q's dtype                        (`upcast`: the call returns it)
    O = P V;  O in Q's dtype              (`upcast`)

Source: pytorch/pytorch, aten/src/ATen/native/transformers/attention.cpp
(_scaled_dot_product_attention_math, pre_process_group_query_attention_input, _safe_softmax,
convert_boolean_attn_mask), PyTorch 2.5 and later; tests hold it against what PyTorch launches. The
sum over a row that `all` is counts as an elementwise kernel.
"""

from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import QKVO, qkvo
from sim.schedules.parts.eager import OF_BROADCAST, OPS_PER_ELEMENT, eager_pass, repeated
from sim.schedules.parts.elementwise import elementwise, in_order, rows_of
from sim.tile_program import Kernel, Tensor

NARROW_BYTES = 2  # an element before `upcast`


def scaled_operands(w: AttentionWorkload, *, upcast: bool) -> tuple[list[Kernel], QKVO]:
    """Q, K and V in fp32, K and V for every query head, Q and K times the root of the scale."""
    q, k, v, o = qkvo(w)
    kernels = []
    if upcast:
        for tensor in (q, k, v):
            narrow = _like(tensor, f"{tensor.name} of 16 bits", NARROW_BYTES)
            kernels.append(eager_pass(f"{tensor.name} to fp32", [narrow], [tensor]))
    if w.heads > w.kv_heads:
        (repeat_k, k), (repeat_v, v) = repeated(w, k), repeated(w, v)
        kernels += [repeat_k, repeat_v]
    scaled_q, scaled_k = _like(q, "Q'"), _like(k, "K'")
    kernels += [eager_pass("scale Q", [q], [scaled_q]), eager_pass("scale K", [k], [scaled_k])]
    return kernels, QKVO(scaled_q, scaled_k, v, o)


def causal_mask(w: AttentionWorkload, scores: Tensor) -> list[Kernel]:
    """Make the mask and add it to the scores of every head."""
    seen, lower = (Tensor(name, 1, w.seq_q, w.seq_kv, 1, role="mask") for name in ("ones", "tril"))
    mask = Tensor("M", 1, w.seq_q, w.seq_kv, w.dtype_bytes, role="mask")
    return [
        eager_pass("ones", [], [seen]),
        eager_pass("tril", [seen], [lower]),
        eager_pass("-inf", [lower], [mask]),
        eager_pass("mask", [scores, mask], [scores]),
    ]


def rows_without_keys(scores: Tensor, p: Tensor) -> tuple[list[Kernel], Tensor]:
    """Zero where a row has no keys, as _safe_softmax has it: the passes, and P after them."""
    lost, safe = _like(scores, "E", 1), _like(p, "P'")
    rows = Tensor("R", p.groups, p.rows, 1, 1)
    height = rows_of(lost)
    reduced = elementwise(
        "all",
        [in_order(lost, height)],
        [in_order(rows, height)],
        OPS_PER_ELEMENT * height * lost.cols,
    )
    return [
        eager_pass("S = -inf", [scores], [lost]),
        reduced,
        eager_pass("0 where R", [p], [safe], dims=OF_BROADCAST),
    ], safe


def narrowed(tensor: Tensor) -> Kernel:
    """O or P as the call returns it, of 16 bits."""
    name = f"{tensor.name} of 16 bits"
    return eager_pass(name, [tensor], [_like(tensor, name, NARROW_BYTES)])


def _like(tensor: Tensor, name: str, element_bytes: int | None = None) -> Tensor:
    shape = (tensor.groups, tensor.rows, tensor.cols)
    return Tensor(name, *shape, element_bytes or tensor.element_bytes)
