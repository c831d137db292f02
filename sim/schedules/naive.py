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
its gradient needs no pass. Heads that share a KV head read it in place, not from a copy. cuBLAS
chooses its tile unseen; profiles of Ampere often show 128 x 128 x 64 in 3 stages, by the kernel's
name (ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_64x3), of Turing the same tile without
stages (turing_fp16_s1688gemm_fp16_128x128_ldg8_f2f), in fp32 volta_sgemm_128x128. CUTLASS gives
that tile 4 warps (generator.py, GenerateSM80_TensorOp_16816). `depth`, `stages` and `sweeps` are
for kernels that someone wrote himself. With `framework = "pytorch"` the passes are all those that
this benchmark's code runs, copies among them; with "transformers" those of that library's eager
attention, which copies K and V for every query head: see eager.py; with "sdpa" those of PyTorch's
scaled_dot_product_attention where no fused kernel runs: see sdpa.py. Deviation: in fp32, on CUDA
cores, cuBLAS reaches half of an H100's peak and 57 to 73% of a T4's in such matmuls, less than the
pipes alone say.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import whole
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import (
    SramBytes,
    Tile,
    TiledSchedule,
    blocks,
    kv_matrix,
    of_constant,
    qkvo,
)
from sim.schedules.parts import registers
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
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.rope import with_passes
from sim.schedules.parts.scores import bias_matrix, bias_tensor
from sim.schedules.parts.sdpa import causal_mask, narrowed, rows_without_keys, scaled_operands
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

# Depth of a slice and its buffers: by cp.async; through registers, before sm80; of fp32 on CUDA
# cores, of which the names tell the tile alone: two slices of eight as in CUTLASS's SIMT matmuls
# (NVIDIA/cutlass, include/cutlass/gemm/device/default_gemm_configuration.h).
GEMM_SLICES, SLICES_BEFORE_SM80, SIMT_SLICES = (64, 3), (32, 2), (8, 2)
# SoftMax.cu, host_softmax_backward: up to so many columns and bytes one warp a row, 4 rows a block
# of 128 threads, its row in fp32 registers; above, a block of 1024 threads a row.
SOFTMAX_BACKWARD_WARP = (1024, 4096)
LONG_ROW_COLS = 4096  # of a pass over a row that does not fit a CTA: an estimate


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
        depth, stages = _slices(w, hw)
        gemm = _Gemm(Tile(q=128, kv=128), self.depth or depth, self.stages or stages)
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
        product = _scores_kernel("S = Q K^T", alone, gemm, q, k, scores)
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
        output = _output_kernel("O = P V", alone, gemm, dropped, v, o)
        kernels.append(replace(output, kind="output"))
        if w.phase == "training":
            saved = _Saved(q, k, v, probabilities, dropped, kept)
            kernels += of_backward(self._backward(w, hw, gemm, saved))
        return with_passes(w, self.name, kernels) if self.rope else kernels

    def _of_sdpa(self, w: AttentionWorkload, hw: HardwareProfile, gemm: "_Gemm") -> list[Kernel]:
        """Every kernel of PyTorch's math backend, in order."""
        kernels, (q, k, v, o) = scaled_operands(w, upcast=self.upcast)
        scores, p = _matrix(w, "S"), _matrix(w, "P")
        alone = replace(w, kv_heads=w.heads)
        product = _scores_kernel("S = Q K^T", alone, gemm, q, k, scores)
        kernels.append(replace(product, kind="scores"))
        if w.mask != "full":
            kernels += causal_mask(w, scores)
        kernels.append(self._softmax_kernel(scores, p, hw))
        checks, safe = rows_without_keys(scores, p)
        output = replace(_output_kernel("O = P V", alone, gemm, safe, v, o), kind="output")
        if self.upcast:
            return [*kernels, *checks, narrowed(safe), output, narrowed(o)]
        return [*kernels, *checks, output]

    def _of_transformers(
        self, w: AttentionWorkload, hw: HardwareProfile, gemm: "_Gemm"
    ) -> list[Kernel]:
        """Every kernel of eager_attention_forward, in order."""
        inputs = _for_matmuls(w)
        q, k, v = inputs.matrices
        scores, p = _matrix(w, "S"), _matrix(w, "P")
        alone = replace(w, kv_heads=k.groups // w.batch)
        product = _scores_kernel("S = Q K^T", alone, gemm, q, k, scores)
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
        output = replace(_output_kernel("O = P V", alone, gemm, p, v, made), kind="output")
        last = [] if by_tokens else [eager_pass("copy O", [by_head], [o])]
        return [*kernels, *inputs.before_output, output, *last]

    def _softmax_kernel(self, scores: Tensor, p: Tensor, hw: HardwareProfile) -> Kernel:
        """PyTorch's; of long rows, which are read three times, a block of 1024 threads has one.

        Where `sweeps` says three times of all, a block of 256 threads has a row.
        """
        kernel = softmax_kernel(scores, p, hw, self.release) if self.sweeps == 1 else None
        if kernel is None:
            of, read = _ByRows.of(scores, hw, (0, 0)), (scores,)
            if self.sweeps > 1:
                of = _ByRows(scores, 1, False, Footprint(0, 256, registers.LONG_ROWS))
            kernel = of.kernel(
                "P = softmax(S)",
                of.sweep("row maximum", read, 1, 0),
                of.sweep("row sum", read, 2, 1),
                of.sweep("normalise", read, 2, 1, p),
            )
        return replace(kernel, kind="softmax")

    def _backward(
        self, w: AttentionWorkload, hw: HardwareProfile, gemm: "_Gemm", saved: "_Saved"
    ) -> list[Kernel]:
        g, dp, ds = gradients(w), _matrix(w, "dP"), _matrix(w, "dS")
        dropped = _matrix(w, "dP'") if w.dropout else dp
        kernels = [
            _transposed_kernel("dV = P^T dO", w, gemm, saved.dropped, g.do, g.dv_of_heads),
            _scores_kernel("dP = dO V^T", w, gemm, g.do, saved.v, dropped),
        ]
        if w.dropout:
            kernels.append(eager_pass("dropout backward", [dropped, saved.kept], [dp]))
        product = _matrix(w, "P dP")
        kernels += [
            eager_pass("P dP", [dp, saved.p], [product]),
            _softmax_backward_kernel(saved.p, product, ds, hw),
        ]
        if self.scale:
            kernels.append(eager_pass("scale backward", [ds], [ds]))
        return [
            *kernels,
            _output_kernel("dQ = dS K", w, gemm, ds, saved.k, g.dq),
            _transposed_kernel("dK = dS^T Q", w, gemm, ds, saved.q, g.dk_of_heads),
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


def _slices(w: AttentionWorkload, hw: HardwareProfile) -> tuple[int, int]:
    """How deep cuBLAS's slices are, and in how many buffers."""
    if hw.tensor_flops_per_s(w.dtype) is None:
        return SIMT_SLICES
    return SLICES_BEFORE_SM80 if hw.arch in ("sm70", "sm75") else GEMM_SLICES


@dataclass(frozen=True)
class _Gemm:
    """How a CTA multiplies: its tile, the depth of a slice of both operands, buffers of it."""

    tile: Tile
    depth: int
    stages: int

    def sram_bytes(self, w: AttentionWorkload) -> SramBytes:
        """SRAM of the larger of the two matmuls: the stages of both operands' slices."""

        def bytes_of(tile: Tile) -> int:
            scores = min(self.depth, w.head_dim) * (tile.q + tile.kv)
            output = self.depth * (tile.q + min(tile.kv, w.head_dim))
            return self.stages * w.dtype_bytes * max(scores, output)

        return bytes_of


def _gemm_footprint(sram_bytes: int, elements: int) -> Footprint:
    """4 warps, so many accumulators in registers."""
    return Footprint(sram_bytes, 128, registers.gemm(elements))


def _matmul(name: str, rows: int, cols: int, depth: int, a: Load, b: Load) -> Compute:
    """rows x cols += (rows x depth)(depth x cols); 2 x 2 warps read each operand twice."""
    operand_bytes = a.stream.tile_bytes + b.stream.tile_bytes
    return Compute(name, (a, b), mma_flops=2 * rows * cols * depth, sram_bytes=3 * operand_bytes)


def _scores_kernel(
    name: str, w: AttentionWorkload, gemm: _Gemm, q: Tensor, k: Tensor, scores: Tensor
) -> Kernel:
    """`scores` = Q K^T of every head, or what stands in for Q and K."""
    tile = gemm.tile
    down, across = blocks(w.seq_q, tile.q), blocks(w.seq_kv, tile.kv)
    grid = Grid(across, down, q.groups)  # key blocks, blocks of query rows, matrices
    depth = min(gemm.depth, w.head_dim)
    slices = blocks(w.head_dim, depth)

    def q_slice(items: IntArray) -> IntArray:
        _, row, matrix = grid.at(items)
        return (matrix * down + row) * slices

    def k_slice(items: IntArray) -> IntArray:
        col, _, matrix = grid.at(items)
        return (kv_matrix(w, matrix) * across + col) * slices

    a = Load(Stream(q, tile.q, depth, q_slice, 1), gemm.stages)
    b = Load(Stream(k, tile.kv, depth, k_slice, 1), gemm.stages)
    return Kernel(
        name=name,
        ctas=grid.size,
        loops=(
            Loop(
                of_constant(slices),
                (a, b, _matmul(name, tile.q, tile.kv, depth, a, b)),
            ),
            Loop(once, (Store(in_order(scores, tile.q, tile.kv)),)),
        ),
        footprint=_gemm_footprint(gemm.sram_bytes(w)(tile), tile.q * tile.kv),
        periods=q.groups,
        sharing=w.heads // w.kv_heads,
    )


def _output_kernel(
    name: str, w: AttentionWorkload, gemm: _Gemm, p: Tensor, v: Tensor, o: Tensor
) -> Kernel:
    """`o` = P V of every head, or what stands in for P and V."""
    tile = gemm.tile
    down, steps = blocks(w.seq_q, tile.q), blocks(w.seq_kv, gemm.depth)
    across = blocks(w.head_dim, tile.kv)
    width = min(tile.kv, w.head_dim)
    grid = Grid(across, down, p.groups)  # blocks of head_dim, blocks of query rows, matrices

    def p_slice(items: IntArray) -> IntArray:
        _, row, matrix = grid.at(items)
        return (matrix * down + row) * steps

    def v_slice(items: IntArray) -> IntArray:
        col, _, matrix = grid.at(items)
        return kv_matrix(w, matrix) * steps * across + col

    a = Load(Stream(p, tile.q, gemm.depth, p_slice, 1), gemm.stages)
    b = Load(Stream(v, gemm.depth, width, v_slice, across), gemm.stages)
    kernel = _tall_kernel(name, gemm, steps, a, b, in_order(o, tile.q, width))
    return replace(kernel, sharing=w.heads // w.kv_heads)


def _transposed_kernel(
    name: str, w: AttentionWorkload, gemm: _Gemm, p: Tensor, do: Tensor, dv: Tensor
) -> Kernel:
    """`dv` = P^T dO of every head, or what stands in for P and dO."""
    tile = gemm.tile
    down, steps = blocks(w.seq_kv, tile.q), blocks(w.seq_q, gemm.depth)
    across = blocks(w.head_dim, tile.kv)
    width = min(tile.kv, w.head_dim)
    grid = Grid(across, down, p.groups)  # blocks of head_dim, blocks of keys, matrices

    def p_slice(items: IntArray) -> IntArray:
        _, row, matrix = grid.at(items)
        return matrix * steps * down + row

    def do_slice(items: IntArray) -> IntArray:
        col, _, matrix = grid.at(items)
        return matrix * steps * across + col

    a = Load(Stream(p, gemm.depth, tile.q, p_slice, down), gemm.stages)
    b = Load(Stream(do, gemm.depth, width, do_slice, across), gemm.stages)
    return _tall_kernel(name, gemm, steps, a, b, in_order(dv, tile.q, width))


def _tall_kernel(name: str, gemm: _Gemm, steps: int, a: Load, b: Load, result: Stream) -> Kernel:
    """A CTA a tile of the result, in `steps` slices of the depth."""
    rows, width, tensor = result.tile_rows, result.tile_cols, result.tensor
    return Kernel(
        name=name,
        ctas=tensor.groups * result.tiles_down * result.tiles_across,
        loops=(
            Loop(of_constant(steps), (a, b, _matmul(name, rows, width, gemm.depth, a, b))),
            Loop(once, (Store(result),)),
        ),
        footprint=_gemm_footprint(
            gemm.stages * (a.stream.tile_bytes + b.stream.tile_bytes), rows * width
        ),
        periods=tensor.groups,
    )


@dataclass(frozen=True)
class _ByRows:
    """How eager softmax goes through matrices: so many rows a CTA, whole if they fit it."""

    matrix: Tensor
    rows: int
    whole: bool
    footprint: Footprint

    @classmethod
    def of(
        cls, matrix: Tensor, hw: HardwareProfile, most: tuple[int, int], tensors: int = 1
    ) -> "_ByRows":
        """A warp a row of up to so many columns and bytes, which holds it of so many tensors.

        Above that a block a row, which has it in SRAM if it fits.
        """
        cols, row_bytes = matrix.cols, matrix.cols * matrix.element_bytes
        if cols <= most[0] and row_bytes <= most[1]:
            taken = registers.rows_by_warp(cols, tensors)
            return cls(matrix, 4, True, Footprint(0, 128, taken))
        fits = row_bytes <= hw.sram.max_per_cta
        footprint = Footprint(row_bytes if fits else 0, 1024, registers.LONG_ROWS)
        return cls(matrix, 1, fits, footprint)

    @property
    def width(self) -> int:
        """Columns of a trip."""
        return self.matrix.cols if self.whole else LONG_ROW_COLS

    @property
    def across(self) -> int:
        """Trips of a sweep over the CTA's rows."""
        return blocks(self.matrix.cols, self.width)

    def stream(self, tensor: Tensor) -> Stream:
        """A sweep over the CTA's rows of a tensor of that shape."""
        return Stream(tensor, self.rows, self.width, lambda items: items * self.across, 1)

    def sweep(self, name: str, reads: tuple[Tensor, ...], ops: int, exps: int, *to: Tensor) -> Loop:
        """A loop over the rows, with so many operations an element, that stores `to`."""
        loads = tuple(Load(self.stream(tensor)) for tensor in reads)
        elements = self.rows * self.width
        work = Compute(name, loads, vector_ops=ops * elements, exp_count=exps * elements)
        stores = (Store(self.stream(tensor)) for tensor in to)
        return Loop(of_constant(self.across), (*loads, work, *stores))

    def kernel(self, name: str, *sweeps: Loop) -> Kernel:
        """The kernel of these sweeps."""
        return Kernel(
            name=name,
            ctas=self.matrix.groups * blocks(self.matrix.rows, self.rows),
            loops=sweeps,
            footprint=self.footprint,
            periods=self.matrix.groups,
        )


def _softmax_backward_kernel(p: Tensor, product: Tensor, ds: Tensor, hw: HardwareProfile) -> Kernel:
    """dS = P dP - P rowsum(P dP): whole rows as in forward, else P dP is read a second time."""
    of = _ByRows.of(p, hw, SOFTMAX_BACKWARD_WARP, tensors=2)
    # Sum; multiply and subtract (one FMA), convert.
    sweeps = [of.sweep("dS", (p, product), 3 if of.whole else 2, 0, ds)]
    if not of.whole:
        sweeps.insert(0, of.sweep("row sum", (product,), 1, 0))
    return of.kernel("dS = softmax backward", *sweeps)
