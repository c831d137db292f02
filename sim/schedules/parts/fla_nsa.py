"""NSA as fla-org's kernels have it: a compressed key a block, the choice on line, no scores in HBM.

    "compress K", "compress V"      mean of each block
    "compressed attention"          for each position (one CTA): the flash loop over compressed keys
    "choose blocks"                 for each position (one CTA), for each 64 compressed keys:
                                        S = sum over heads of exp(Q K^T - LSE)
                                        merge with the best so far, by a bitonic network
    "selected attention"            for each position (one CTA): the flash loop over its blocks
    "window attention"              FlashAttention-2 (parts of nsa.py)
    "gate": O times its gate; O += O of a branch times its gate, twice      (PyTorch)

Until 14 March 2025 the window was in the kernel of the selected keys (`fused_window`):

    "selected and window attention" for each position (one CTA): the flash loop over its blocks;
                                    one trip over the latest keys, whose loads run ahead

Source: fla-org/native-sparse-attention, native_sparse_attention/ops/parallel.py (parallel_nsa and
the kernels that it calls; positions run fastest in their grids), commits bd67af5 and, fused,
5cda31d, which the README's figures were added with. Warps are autotuned there from 1, 2 and 4, and
8: here 4, which take least by their machine code. Trips are counted as in nsa_positions.py; loads
run ahead but for selected attention, where a condition keeps them from it. The choice has 2,357 to
2,373 instructions a trip (Triton 3.6), 232 shuffles and 108 barriers among them, with 128
registers. Waiting at these barriers is not modelled.
"""

from dataclasses import replace

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks
from sim.schedules.parts.counted import resident
from sim.schedules.parts.elementwise import elementwise, in_order
from sim.schedules.parts.ends import begin
from sim.schedules.parts.flash_cta import FlashCta, triton_cta
from sim.schedules.parts.nsa_positions import (
    Positions,
    Visited,
    counted_trip,
    position_branch,
    positions_attention,
    positions_kernel,
)
from sim.schedules.parts.nsa_tensors import NsaTensors
from sim.schedules.parts.results import Attention
from sim.schedules.parts.top_k import INDEX_BYTES
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

Parts = tuple[Visited, Visited]  # the selected blocks of each position, and its window's

WARPS, STAGES = 4, 3
REGISTERS, FUSED_REGISTERS = 128, 138  # measured: 124 and 128, 128 and 138
CHOICE_INSTRUCTIONS, CHOICE_REGISTERS = 2340, 128


def compressed_attention(
    w: AttentionWorkload, hw: HardwareProfile, of: NsaTensors, whole: IntArray
) -> Attention:
    """Over the compressed keys of each position, of which so many are whole."""
    tile = Tile(q=of.group_rows, kv=at_once(of))
    at = Positions(w, by_head=True)
    cta = _cta(w, hw, tile, STAGES)
    cta = counted_trip(w, hw, cta, resident(cta.footprint(w), at.ctas, hw))
    count = -(-whole // tile.kv)
    across = np.arange(blocks(of.k_cmp.rows, tile.kv))
    visited = Visited(count, np.zeros_like(count), across)
    return positions_attention("compressed attention", of, cta, at, visited, (of.k_cmp, of.v_cmp))


def selected_attention(
    w: AttentionWorkload, hw: HardwareProfile, of: NsaTensors, block: int, visited: Visited
) -> Attention:
    """Over the blocks of each position, one at a time."""
    at, tile = Positions(w, by_head=True), Tile(q=of.group_rows, kv=block)
    cta = _cta(w, hw, tile, 1)
    cta = counted_trip(w, hw, cta, resident(cta.footprint(w), at.ctas, hw))
    return positions_attention("selected attention", of, cta, at, visited, (of.k, of.v))


def both_attentions(
    w: AttentionWorkload, hw: HardwareProfile, of: NsaTensors, block: int, parts: Parts
) -> tuple[Attention, Attention]:
    """Selected and window attention, the latter without a kernel: it is in the former's.

    Buffers are those of the window's loop; its blocks are taken to begin where K's do.
    """
    at, tile, kv = Positions(w, by_head=True), Tile(q=of.group_rows, kv=block), (of.k, of.v)
    ahead = replace(_cta(w, hw, tile, STAGES), registers_per_thread=FUSED_REGISTERS)
    together = resident(ahead.footprint(w), at.ctas, hw)
    near, far = (counted_trip(w, hw, cta, together) for cta in (ahead, replace(ahead, stages=0)))
    selected, found = position_branch("selected attention", of, far, at, parts[0], kv)
    window, latest = position_branch("window attention", of, near, at, parts[1], kv)
    name = "selected and window attention"
    kernel = positions_kernel(name, of, near, at, selected, window)
    return Attention([kernel], found), Attention([], latest)


def _cta(w: AttentionWorkload, hw: HardwareProfile, tile: Tile, stages: int) -> FlashCta:
    cta = triton_cta(w, hw, tile, WARPS, stages)
    return replace(cta, registers_per_thread=REGISTERS)


def choice_kernel(
    w: AttentionWorkload, of: NsaTensors, lse: Tensor, own_block: IntArray, top: int
) -> Kernel:
    """The blocks up to each position's own are scored, and `top` of them written."""
    at, keys, rows = Positions(w, by_head=True), at_once(of), of.group_rows
    found = Tensor("blocks chosen", of.k.groups, w.seq_q, top, INDEX_BYTES)
    across = blocks(of.k_cmp.rows, keys)

    def group_tile(items: IntArray) -> IntArray:
        return of.group_tile(at.matrix(items), at.position(items))

    def of_group(tensor: Tensor) -> Load:
        return Load(Stream(tensor, 1, tensor.cols // w.kv_heads, group_tile))

    def trips(items: IntArray) -> IntArray:
        return np.minimum(own_block[at.position(items)] // keys + 1, across)

    def written(items: IntArray) -> IntArray:
        return at.matrix(items) * w.seq_q + at.position(items)

    k = Load(Stream(of.k_cmp, keys, w.head_dim, lambda items: at.matrix(items) * across, 1))
    k_bytes = k.stream.tile_bytes
    score = Compute(
        "score and merge",
        (k,),
        mma_flops=2 * rows * keys * w.head_dim,
        exp_count=rows * keys,
        other_ops=32 * WARPS * CHOICE_INSTRUCTIONS * rows * keys // (16 * 64),
        sram_bytes=(1 + WARPS) * k_bytes,
    )
    return Kernel(
        name="choose blocks",
        ctas=at.ctas,
        periods=at.periods,
        loops=(
            begin("Q", of_group(of.q), of_group(lse)),
            Loop(trips, (k, score)),
            Loop(once, (Store(Stream(found, 1, top, written)),)),
        ),
        footprint=Footprint(k_bytes * 2, 32 * WARPS, CHOICE_REGISTERS),
        tensor_path="mma_sync",
    )


def gate_kernels(of: NsaTensors, branches: list[Tensor]) -> list[Kernel]:
    """PyTorch's: the first branch times its gate, then each other added."""
    summed = replace(of.o, name="gated O", lifetime="workspace", role="partial")
    width = of.group * of.w.head_dim

    def of_group(tensor: Tensor) -> Stream:
        """Decoding's combine kernel lays heads out as rows."""
        by_row = tensor.cols == of.w.head_dim
        return in_order(tensor, of.group) if by_row else in_order(tensor, 1, width)

    def added(name: str, reads: list[Tensor], target: Tensor) -> Kernel:
        return elementwise(name, [*map(of_group, reads)], [of_group(target)], 2 * width)

    first, *others = branches
    kernels = [added("gate", [first], summed)]
    for number, branch in enumerate(others, 1):
        target = of.o if number == len(others) else summed
        kernels.append(added(f"add gated {branch.name}", [summed, branch], target))
    return kernels


def at_once(of: NsaTensors) -> int:
    """Compressed keys of a step: 64, of fewer the least that a matmul takes."""
    return min(64, 16 * blocks(of.k_cmp.rows, 16))
