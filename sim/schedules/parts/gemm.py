"""Batched matmuls of whole matrices, as cuBLAS runs those of eager attention.

    for each tile of the result of each matrix (one CTA):
        for each slice of the depth:  load it of both operands, `stages` ahead; multiply
        store the tile

cuBLAS chooses its tile unseen; profiles of Ampere often show 128 x 128 x 64 in 3 stages, by the
kernel's name (ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_64x3), of Turing the same tile
without stages (turing_fp16_s1688gemm_fp16_128x128_ldg8_f2f), in fp32 volta_sgemm_128x128. CUTLASS
gives that tile 4 warps (NVIDIA/cutlass, generator.py, GenerateSM80_TensorOp_16816). Deviation: in
fp32, on CUDA cores, cuBLAS reaches half of an H100's peak and 57 to 73% of a T4's, less than the
pipes alone say.
"""

from dataclasses import dataclass, replace

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import SramBytes, Tile, blocks, kv_matrix, of_constant
from sim.schedules.parts import registers
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.grid import Grid
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


def slices_of(w: AttentionWorkload, hw: HardwareProfile) -> tuple[int, int]:
    """How deep cuBLAS's slices are, and in how many buffers."""
    if hw.tensor_flops_per_s(w.dtype) is None:
        return SIMT_SLICES
    return SLICES_BEFORE_SM80 if hw.arch in ("sm70", "sm75") else GEMM_SLICES


@dataclass(frozen=True)
class Gemm:
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


def scores_kernel(
    name: str, w: AttentionWorkload, gemm: Gemm, q: Tensor, k: Tensor, scores: Tensor
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


def output_kernel(
    name: str, w: AttentionWorkload, gemm: Gemm, p: Tensor, v: Tensor, o: Tensor
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


def transposed_kernel(
    name: str, w: AttentionWorkload, gemm: Gemm, p: Tensor, do: Tensor, dv: Tensor
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


def _tall_kernel(name: str, gemm: Gemm, steps: int, a: Load, b: Load, result: Stream) -> Kernel:
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
