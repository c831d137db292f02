"""Standard attention: scores and probabilities as whole matrices in HBM.

    S = Q K^T                      (batched matmul; writes S)
    S = S / sqrt(d)                (own pass with `scale`, else folded into the matmul)
    S = mask(S)                    (own pass with `mask`)
    P = softmax(S)                 (reads S, writes P)
    P = dropout(P)                 (own pass, with dropout; also writes a byte of mask an element)
    O = P V                        (batched matmul; reads P)

Source: Dao et al. 2022 (arXiv 2205.14135), Algorithm 0. The passes are those of eager PyTorch
(aten/src/ATen/native/cuda: SoftMax.cu, PersistentSoftmax.cuh, CUDALoops.cuh, Dropout.cu). cuBLAS
chooses its tile unseen; profiles of Ampere often show 128 x 128 x 64 in 3 stages, by the kernel's
name (ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_64x3). CUTLASS gives that tile 4 warps
(generator.py, GenerateSM80_TensorOp_16816).
"""

from typing import Literal

from sim.hardware import HardwareProfile
from sim.schedules.base import (
    VECTOR_OPS_PER_SCORE,
    SramBytes,
    Tile,
    TiledSchedule,
    blocks,
    kv_matrix,
    of_constant,
    qkvo,
)
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
from sim.workload import AttentionWorkload

GEMM_DEPTH = 64
GEMM_STAGES = 3
# SoftMax.cu, host_softmax: up to here one warp a row, 4 rows a block of 128 threads
# (PersistentSoftmax.cuh), its row in fp32 registers; above, a block of 1024 threads a row.
SOFTMAX_WARP_COLS, SOFTMAX_WARP_BYTES = 2048, 8192
ELEMENTS_A_BLOCK = 1024  # CUDALoops.cuh: 128 threads of 8 elements


class Naive(TiledSchedule):
    """Standard attention, forward.

    `mask` adds the pass that masks the scores (by default where the workload is masked), `scale` a
    pass that scales them, as eager frameworks do. All of S is computed whatever the mask. `tile` is
    the block of S that one CTA of the first matmul makes.
    """

    name: Literal["naive"] = "naive"
    scale: bool = False
    mask: bool | None = None

    summary = "S and P as whole matrices in HBM, as eager frameworks do"
    source = "arXiv 2205.14135, Algorithm 0; PyTorch aten/src/ATen/native/cuda"
    takes = frozenset({"dropout"})

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Three kernels, and one for each extra pass."""
        tile = self.fit_tile(Tile(q=128, kv=128), _gemm_sram_bytes(w), w, hw)
        q, k, v, o = qkvo(w)
        scores = Tensor("S", q.groups, w.seq_q, w.seq_kv, w.dtype_bytes)
        probabilities = Tensor("P", q.groups, w.seq_q, w.seq_kv, w.dtype_bytes)
        kernels = [_scores_kernel(w, tile, q, k, scores)]
        if self.scale:
            kernels.append(_pass("scale", scores, scores, hw))
        if w.mask != "full" if self.mask is None else self.mask:
            kernels.append(_pass("mask", scores, scores, hw))
        kernels.append(_softmax_kernel(scores, probabilities, hw))
        if w.dropout:
            kept = Tensor("dropout mask", q.groups, w.seq_q, w.seq_kv, 1)
            kernels.append(_pass("dropout", probabilities, probabilities, hw, kept))
        kernels.append(_output_kernel(w, tile, probabilities, v, o))
        return kernels


def _gemm_sram_bytes(w: AttentionWorkload) -> SramBytes:
    """SRAM of the larger of the two matmuls: the stages of both operands' slices."""

    def bytes_of(tile: Tile) -> int:
        scores = min(GEMM_DEPTH, w.head_dim) * (tile.q + tile.kv)
        output = GEMM_DEPTH * (tile.q + min(tile.kv, w.head_dim))
        return GEMM_STAGES * w.dtype_bytes * max(scores, output)

    return bytes_of


def _gemm_footprint(sram_bytes: int, elements: int) -> Footprint:
    """4 warps; the accumulators in registers, and some 52 a thread beside them.

    So Triton 3.9 compiles the matmuls of validate/kernels/naive.py for sm_90, bf16: 180 registers
    for 128 x 128, 124 for 128 x 64; tests/test_compiled_kernels.py compiles and compares.
    """
    return Footprint(sram_bytes, 128, min(255, elements // 128 + 52))


def _matmul(name: str, rows: int, cols: int, depth: int, a: Load, b: Load) -> Compute:
    """rows x cols += (rows x depth)(depth x cols); 2 x 2 warps read each operand twice."""
    operand_bytes = a.stream.tile_bytes + b.stream.tile_bytes
    return Compute(name, (a, b), mma_flops=2 * rows * cols * depth, sram_bytes=3 * operand_bytes)


def _scores_kernel(
    w: AttentionWorkload, tile: Tile, q: Tensor, k: Tensor, scores: Tensor
) -> Kernel:
    down, across = blocks(w.seq_q, tile.q), blocks(w.seq_kv, tile.kv)
    depth = min(GEMM_DEPTH, w.head_dim)
    slices = blocks(w.head_dim, depth)

    def q_slice(items: IntArray) -> IntArray:
        """Grid (key blocks, blocks of query rows, matrices), the first fastest."""
        return items // across * slices

    def k_slice(items: IntArray) -> IntArray:
        matrix = kv_matrix(w, items // (across * down))
        return (matrix * across + items % across) * slices

    a = Load(Stream(q, tile.q, depth, q_slice, 1), GEMM_STAGES)
    b = Load(Stream(k, tile.kv, depth, k_slice, 1), GEMM_STAGES)
    return Kernel(
        name="S = Q K^T",
        ctas=q.groups * down * across,
        loops=(
            Loop(
                of_constant(slices),
                (a, b, _matmul("S += Q K^T", tile.q, tile.kv, depth, a, b)),
            ),
            Loop(once, (Store(Stream(scores, tile.q, tile.kv, lambda items: items)),)),
        ),
        footprint=_gemm_footprint(_gemm_sram_bytes(w)(tile), tile.q * tile.kv),
    )


def _output_kernel(w: AttentionWorkload, tile: Tile, p: Tensor, v: Tensor, o: Tensor) -> Kernel:
    down, steps = blocks(w.seq_q, tile.q), blocks(w.seq_kv, GEMM_DEPTH)
    across = blocks(w.head_dim, tile.kv)
    width = min(tile.kv, w.head_dim)

    def p_slice(items: IntArray) -> IntArray:
        """Grid (blocks of head_dim, blocks of query rows, matrices), the first fastest."""
        return items // across * steps

    def v_slice(items: IntArray) -> IntArray:
        return kv_matrix(w, items // (across * down)) * steps * across + items % across

    a = Load(Stream(p, tile.q, GEMM_DEPTH, p_slice, 1), GEMM_STAGES)
    b = Load(Stream(v, GEMM_DEPTH, width, v_slice, across), GEMM_STAGES)
    return Kernel(
        name="O = P V",
        ctas=p.groups * down * across,
        loops=(
            Loop(
                of_constant(steps),
                (a, b, _matmul("O += P V", tile.q, width, GEMM_DEPTH, a, b)),
            ),
            Loop(once, (Store(Stream(o, tile.q, width, lambda items: items)),)),
        ),
        footprint=_gemm_footprint(
            GEMM_STAGES * (a.stream.tile_bytes + b.stream.tile_bytes), tile.q * width
        ),
    )


def _pass(
    name: str,
    source: Tensor,
    target: Tensor,
    hw: HardwareProfile,
    also: Tensor | None = None,
) -> Kernel:
    """An elementwise kernel: reads `source`, writes `target` (and `also`), in whole rows."""
    rows = min(source.rows, max(1, ELEMENTS_A_BLOCK // source.cols))
    cols = min(source.cols, ELEMENTS_A_BLOCK)
    down, across = blocks(source.rows, rows), blocks(source.cols, cols)
    load = Load(Stream(source, rows, cols, lambda items: items))
    targets = [target, *([also] if also else [])]
    return Kernel(
        name=name,
        ctas=source.groups * down * across,
        loops=(
            Loop(
                once,
                (
                    load,
                    Compute(name, (load,), vector_ops=2 * rows * cols),
                    *(Store(Stream(tensor, rows, cols, lambda items: items)) for tensor in targets),
                ),
            ),
        ),
        footprint=Footprint(0, threads=128, registers_per_thread=32),
    )


def _softmax_kernel(scores: Tensor, probabilities: Tensor, hw: HardwareProfile) -> Kernel:
    """Whole rows, a warp's in registers or a block's in SRAM if they fit, else read three times."""
    cols = scores.cols
    row_bytes = cols * scores.element_bytes
    by_warp = cols <= SOFTMAX_WARP_COLS and row_bytes <= SOFTMAX_WARP_BYTES
    rows, threads = (4, 128) if by_warp else (1, 1024)
    resident = by_warp or row_bytes <= hw.sram.max_per_cta
    width = cols if resident else 4096  # of a pass over a longer row
    down, across = blocks(scores.rows, rows), blocks(cols, width)

    def tiles(items: IntArray) -> IntArray:
        return items * across

    def sweep(name: str, exps: int, ops: int, store: bool) -> Loop:
        load = Load(Stream(scores, rows, width, tiles, 1))
        amounts = rows * width
        body = Compute(name, (load,), vector_ops=ops * amounts, exp_count=exps * amounts)
        stores = (Store(Stream(probabilities, rows, width, tiles, 1)),) if store else ()
        return Loop(of_constant(across), (load, body, *stores))

    if resident:
        loops: tuple[Loop, ...] = (sweep("softmax", 1, VECTOR_OPS_PER_SCORE, True),)
    else:
        loops = (
            sweep("row maximum", 0, 1, False),
            sweep("row sum", 1, 2, False),
            sweep("normalise", 1, 2, True),
        )
    return Kernel(
        name="P = softmax(S)",
        ctas=scores.groups * down,
        loops=loops,
        footprint=Footprint(
            0 if by_warp or not resident else row_bytes,
            threads,
            registers_per_thread=32 + (blocks(cols, 32) if by_warp else 0),
        ),
    )
