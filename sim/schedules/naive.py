"""Standard attention: scores and probabilities as whole matrices in HBM.

    S = Q K^T                      (batched matmul; writes S)
    S = S / sqrt(d)                (own pass with `scale`, else folded into the matmul)
    S = c tanh(S / c), S + bias    (own passes, with workload.softcap, workload.bias)
    S = mask(S)                    (own pass with `mask`)
    P = softmax(S)                 (reads S, writes P)
    P' = dropout(P)                (own pass, with dropout; also writes a byte of mask an element)
    O = P' V                       (batched matmul; reads P')

Backward, in training:

    dV = P'^T dO;  dP' = dO V^T    (batched matmuls; write dP')
    dP = dP' where kept            (own pass, with dropout)
    P dP                           (own pass: softmax backward takes the product)
    dS = P dP - P rowsum(P dP)     (softmax backward; reads P dP and P, writes dS)
    dS = dS / sqrt(d)              (own pass with `scale`)
    dQ = dS K;  dK = dS^T Q        (batched matmuls; read dS)
    sums of dK and dV over the heads that share a KV head, if any do

Source: Dao et al. 2022 (arXiv 2205.14135), Algorithms 0 and 3. The passes are those of eager
PyTorch (aten/src/ATen/native/cuda: SoftMax.cu, also softmax_backward_cuda_out,
PersistentSoftmax.cuh, CUDALoops.cuh, Dropout.cu). The mask is a matrix of the workload's dtype that
is added to the scores of every head and sequence, as FlashAttention's own benchmark of PyTorch has
it (benchmarks/benchmark_flash_attention.py, attention_pytorch) and eager attention in Transformers;
its gradient needs no pass. Heads that share a KV head read it in place, not from a copy. The
matmuls are those of parts/gemm.py; `depth`, `stages` and `sweeps` are for kernels that someone
wrote himself. With `framework = "pytorch"` the passes are all those that this benchmark's code
runs, copies among them; with "transformers" those of that library's eager attention, which copies K
and V for every query head: see eager.py; with "sdpa" those of PyTorch's
scaled_dot_product_attention where no fused kernel runs: see sdpa.py.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import whole
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, TiledSchedule, qkvo
from sim.schedules.parts.backward import gradients, of_backward, sums_over_groups
from sim.schedules.parts.eager import (
    copy,
    eager_pass,
    filled_where,
    repeated,
    transposed_copy,
    with_mask,
)
from sim.schedules.parts.eager_softmax import softmax_kernel
from sim.schedules.parts.gemm import (
    Gemm,
    output_kernel,
    scores_kernel,
    slices_of,
    transposed_kernel,
)
from sim.schedules.parts.rope import with_passes
from sim.schedules.parts.scores import bias_matrix, bias_tensor
from sim.schedules.parts.sdpa import causal_mask, narrowed, rows_without_keys, scaled_operands
from sim.schedules.parts.softmax_sweeps import softmax_backward_kernel, swept_softmax
from sim.tile_program import Kernel, Tensor


class GemmTile(Tile):
    """Rows and columns of a CTA's block: someone's own kernel may give it a single row."""

    q: int = Field(ge=1)
    kv: int = Field(ge=16, multiple_of=16)


class Naive(TiledSchedule):
    """Standard attention.

    `mask` adds the pass that masks the scores (by default where the workload is masked), those of
    Tensor.masked_fill where it is "fill"; `scale` a pass that scales them, `rope` those that rotate
    Q and K, as eager frameworks do. `framework` adds those around the algorithm that copy Q, K and
    V and make the mask. All of S is computed whatever the mask. `tile` is the block of S that one
    CTA of the first matmul makes, `depth` how many elements of a row of its operands it has at
    once, in each of `stages` buffers.
    "sdpa" is PyTorch's own call by its math backend, which by `upcast` has 16 bits in fp32.
    With `sweeps = 3` softmax reads each row three times: for its maximum, its sum and its result.
    `release` "2.3" is PyTorch until then, whose softmax of long rows had smaller blocks.
    """

    name: Literal["naive"] = "naive"
    tile: GemmTile | None = None
    scale: bool = False
    mask: bool | Literal["fill"] | None = None
    rope: Literal["pass"] | None = None
    framework: Literal["pytorch", "transformers", "sdpa"] | None = None
    upcast: bool = False
    depth: Annotated[int, Field(ge=8, le=128, multiple_of=8), whole(8, 128, 8)] | None = None
    stages: Annotated[int, Field(ge=1, le=8), whole(1, 8)] | None = None
    sweeps: Literal[1, 3] = 1
    release: Literal["2.3"] | None = None

    summary = "S and P as whole matrices in HBM, as eager frameworks do"
    source = "arXiv 2205.14135, Algorithms 0 and 3; PyTorch aten/src/ATen/native/cuda"
    phases = ("prefill", "decode", "training")
    takes = frozenset({"dropout", "append", "softcap", "bias", "two sides"})

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where Q, K and V of one tensor are asked for but cannot be."""
        super().check(w)
        if self.framework in ("transformers", "sdpa") and w.phase == "training":
            raise InputError(
                f'schedule {self.name}: framework = "{self.framework}": prefill or decode was '
                "expected"
            )
        if self.framework == "sdpa" and (w.softcap or w.bias):
            raise InputError(
                f'schedule {self.name}: framework = "sdpa": workload.softcap and workload.bias: '
                "none was expected"
            )
        if self.framework == "sdpa" and (w.dropout or self.rope):
            raise InputError(
                f'schedule {self.name}: framework = "sdpa": neither dropout nor rope was expected'
            )
        if self.upcast and (self.framework != "sdpa" or w.dtype != "fp32"):
            raise InputError(
                f'schedule {self.name}: upcast = true: framework = "sdpa" and workload.dtype = '
                '"fp32", in which it multiplies, were expected'
            )
        if self.release and self.sweeps > 1:
            raise InputError(
                f'schedule {self.name}: release = "{self.release}": sweeps = 1, as in PyTorch\'s '
                "softmax, was expected"
            )
        if self.framework == "pytorch" and not (
            w.phase == "prefill" and w.seq_q == w.seq_kv and w.window is None
        ):
            raise InputError(
                f'schedule {self.name}: framework = "{self.framework}": prefill with as many '
                "queries as keys and no window was expected"
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Three kernels, and one for each extra pass; in training those of backward after them."""
        depth, stages = slices_of(w, hw)
        gemm = Gemm(Tile(q=128, kv=128), self.depth or depth, self.stages or stages)
        gemm = replace(gemm, tile=self.fit_tile(gemm.tile, gemm.sram_bytes(w), w, hw))
        if self.framework == "transformers":
            kernels = self._of_transformers(w, hw, gemm)
            return with_passes(w, self.name, kernels) if self.rope else kernels
        if self.framework == "sdpa":
            return self._of_sdpa(w, hw, gemm)
        q, k, v, o = qkvo(w)
        scores, probabilities = _matrix(w, "S"), _matrix(w, "P")
        kernels = []
        if self.framework is not None and w.heads > w.kv_heads > 1:
            (repeat_k, k), (repeat_v, v) = repeated(w, k), repeated(w, v)
            kernels += [repeat_k, repeat_v]
        copies = self.framework is not None and min(w.batch, w.heads) > 1
        if copies:
            (copy_q, q), (copy_k, k) = copy(q), transposed_copy(w, k)
            kernels += [copy_q, copy_k]
        alone = replace(w, kv_heads=k.groups // w.batch)
        product = scores_kernel("S = Q K^T", alone, gemm, q, k, scores)
        kernels.append(replace(product, kind="scores"))
        if self.scale:
            kernels.append(eager_pass("scale", [scores], [scores]))
        kernels += _changes(w, scores)
        if w.mask != "full" if self.mask is None else self.mask:
            if self.framework:
                masked = _matrix(w, "S + mask")
                kernels += with_mask(w, scores, masked)
                scores = masked
            elif self.mask == "fill":
                kernels += filled_where(w, scores)
            else:
                mask = Tensor("mask", 1, w.seq_q, w.seq_kv, w.dtype_bytes, "input", "mask")
                kernels.append(eager_pass("mask", [scores, mask], [scores]))
        kernels.append(self._softmax_kernel(scores, probabilities, hw))
        dropped, kept = probabilities, _matrix(w, "dropout mask", element_bytes=1)
        if w.dropout:
            dropped = _matrix(w, "P'")
            kernels.append(eager_pass("dropout", [probabilities], [dropped, kept]))
        if copies:
            copy_v, v = copy(v) if v.groups == q.groups else repeated(w, v)
            kernels.append(copy_v)
        output = output_kernel("O = P V", alone, gemm, dropped, v, o)
        kernels.append(replace(output, kind="output"))
        if w.phase == "training":
            saved = _Saved(q, k, v, probabilities, dropped, kept)
            kernels += of_backward(self._backward(w, hw, gemm, saved))
        return with_passes(w, self.name, kernels) if self.rope else kernels

    def _of_sdpa(self, w: AttentionWorkload, hw: HardwareProfile, gemm: Gemm) -> list[Kernel]:
        """Every kernel of PyTorch's math backend, in order."""
        kernels, (q, k, v, o) = scaled_operands(w, upcast=self.upcast)
        scores, p = _matrix(w, "S"), _matrix(w, "P")
        alone = replace(w, kv_heads=w.heads)
        product = scores_kernel("S = Q K^T", alone, gemm, q, k, scores)
        kernels.append(replace(product, kind="scores"))
        if w.mask != "full":
            kernels += causal_mask(w, scores)
        kernels.append(self._softmax_kernel(scores, p, hw))
        checks, safe = rows_without_keys(scores, p)
        output = replace(output_kernel("O = P V", alone, gemm, safe, v, o), kind="output")
        if self.upcast:
            return [*kernels, *checks, narrowed(safe), output, narrowed(o)]
        return [*kernels, *checks, output]

    def _of_transformers(
        self, w: AttentionWorkload, hw: HardwareProfile, gemm: Gemm
    ) -> list[Kernel]:
        """Every kernel of eager_attention_forward, in order."""
        inputs = _for_matmuls(w)
        q, k, v = inputs.matrices
        scores, p = _matrix(w, "S"), _matrix(w, "P")
        alone = replace(w, kv_heads=k.groups // w.batch)
        product = scores_kernel("S = Q K^T", alone, gemm, q, k, scores)
        kernels = [*inputs.before_scores, replace(product, kind="scores")]
        kernels.append(eager_pass("scale", [scores], [scores]))
        kernels += _changes(w, scores)
        if w.mask != "full" if self.mask is None else self.mask:
            mask = Tensor("mask", 1, w.seq_q, w.seq_kv, w.dtype_bytes, "input", "mask")
            kernels.append(eager_pass("mask", [scores, mask], [scores]))
        if w.dtype == "fp32":
            kernels.append(self._softmax_kernel(scores, p, hw))
        else:
            wide = _matrix(w, "P in fp32", element_bytes=4)
            kernels.append(self._softmax_kernel(scores, wide, hw))
            kernels.append(eager_pass("P to dtype", [wide], [p]))
        if w.dropout:
            kept, dropped = _matrix(w, "dropout mask", element_bytes=1), _matrix(w, "P'")
            kernels.append(eager_pass("dropout", [p], [dropped, kept]))
            p = dropped
        *_, o = qkvo(w)
        by_head = replace(o, name="O by head", lifetime="workspace", role="other")
        by_tokens = min(w.heads, w.seq_q) == 1  # then O has that order already
        made = o if by_tokens else by_head
        output = replace(output_kernel("O = P V", alone, gemm, p, v, made), kind="output")
        last = [] if by_tokens else [eager_pass("copy O", [by_head], [o])]
        return [*kernels, *inputs.before_output, output, *last]

    def _softmax_kernel(self, scores: Tensor, p: Tensor, hw: HardwareProfile) -> Kernel:
        """PyTorch's, unless `sweeps` says that it is someone's own."""
        own = self.sweeps > 1
        kernel = None if own else softmax_kernel(scores, p, hw, self.release)
        return replace(kernel or swept_softmax(scores, p, hw, own=own), kind="softmax")

    def _backward(
        self, w: AttentionWorkload, hw: HardwareProfile, gemm: Gemm, saved: "_Saved"
    ) -> list[Kernel]:
        g, dp, ds = gradients(w), _matrix(w, "dP"), _matrix(w, "dS")
        dropped = _matrix(w, "dP'") if w.dropout else dp
        kernels = [
            transposed_kernel("dV = P^T dO", w, gemm, saved.dropped, g.do, g.dv_of_heads),
            scores_kernel("dP = dO V^T", w, gemm, g.do, saved.v, dropped),
        ]
        if w.dropout:
            kernels.append(eager_pass("dropout backward", [dropped, saved.kept], [dp]))
        product = _matrix(w, "P dP")
        kernels += [
            eager_pass("P dP", [dp, saved.p], [product]),
            softmax_backward_kernel(saved.p, product, ds, hw),
        ]
        if self.scale:
            kernels.append(eager_pass("scale backward", [ds], [ds]))
        return [
            *kernels,
            output_kernel("dQ = dS K", w, gemm, ds, saved.k, g.dq),
            transposed_kernel("dK = dS^T Q", w, gemm, ds, saved.q, g.dk_of_heads),
            *sums_over_groups(g),
        ]


@dataclass(frozen=True)
class _Saved:
    """What the forward pass leaves for backward; `dropped` is `p` without dropout."""

    q: Tensor
    k: Tensor
    v: Tensor
    p: Tensor
    dropped: Tensor
    kept: Tensor


@dataclass(frozen=True)
class _Matrices:
    """Q, K and V as Transformers' matmuls have them, and the kernels that copy them so."""

    matrices: tuple[Tensor, Tensor, Tensor]
    before_scores: list[Kernel]
    before_output: list[Kernel]


def _for_matmuls(w: AttentionWorkload) -> _Matrices:
    """A matrix for each query head: K and V repeated where heads share them.

    Else they, like Q, are copied from the order of tokens, unless there is one head or sequence
    (the matrices are then views), or one query (Q's are then, and K and V are a cache's). The one
    KV head of a sequence is such a view for all query heads; of more sequences, it is repeated by
    the matmuls.
    """
    q, k, v, _ = qkvo(w)
    strided = min(w.batch, w.heads) > 1 and w.seq_q > 1
    before: list[Kernel] = []
    after: list[Kernel] = []
    if w.heads > w.kv_heads > 1:
        (repeat_k, k), (repeat_v, v) = repeated(w, k), repeated(w, v)
        before += [repeat_k, repeat_v]
    if strided:
        copy_q, q = copy(q)
        before.append(copy_q)
    if w.heads > w.kv_heads == 1 < w.batch:
        (copy_k, k), (copy_v, v) = repeated(w, k), repeated(w, v)
        before.append(copy_k)
        after.append(copy_v)
    elif strided and w.heads == w.kv_heads:
        (copy_k, k), (copy_v, v) = transposed_copy(w, k), copy(v)
        before.append(copy_k)
        after.append(copy_v)
    return _Matrices((q, k, v), before, after)


def _changes(w: AttentionWorkload, scores: Tensor) -> list[Kernel]:
    """Passes that change scores: a softcap's three (divide, tanh, multiply), a bias added."""
    of_softcap = ("S / c", "tanh", "c S") if w.softcap else ()
    kernels = [eager_pass(name, [scores], [scores]) for name in of_softcap]
    if w.bias:
        added = [scores, bias_tensor(w)]
        kernels.append(eager_pass("bias", added, [scores], beside=lambda q: bias_matrix(w, q)))
    return kernels


def _matrix(w: AttentionWorkload, name: str, element_bytes: int | None = None) -> Tensor:
    """A matrix as large as the scores, of the workload's dtype unless told otherwise."""
    return Tensor(name, w.batch * w.heads, w.seq_q, w.seq_kv, element_bytes or w.dtype_bytes)
