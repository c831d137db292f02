"""NSA as fla-org's kernels have it: a compressed key a block, the choice on line, no scores in HBM.

    "compress K", "compress V"      mean of each block
    "compressed attention"          for each position (one CTA): the flash loop over compressed keys
    "choose blocks"                 for each position (one CTA), for each 64 compressed keys:
                                        S = sum over heads of exp(Q K^T - LSE)
                                        merge with the best so far, by a bitonic network
    "selected attention"            for each position (one CTA): the flash loop over its blocks
    "window attention"              FlashAttention-2 (parts of nsa.py)
    "gate": O times its gate; O += O of a branch times its gate, twice      (PyTorch)

Source: fla-org/native-sparse-attention, native_sparse_attention/ops/parallel.py (parallel_nsa and
the kernels that it calls; positions run fastest in their grids). Warps are autotuned there from 1,
2 and 4: here 4, which leave an SM the most of them. What Triton 3.6 compiles for sm_80 and sm_90
(head_dim 128, groups of 16, blocks of 64) has, of each of 4 warps and trip, 412 to 424 instructions
for compressed attention, whose loads run ahead, 349 to 361 for selected attention, where a
condition keeps them from it, and 2,357 to 2,373 for the choice, 232 shuffles and 108 barriers among
them, with 128 registers. Waiting at these barriers is not modelled.
"""

from dataclasses import replace

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks
from sim.schedules.parts.elementwise import elementwise, in_order
from sim.schedules.parts.ends import begin
from sim.schedules.parts.flash_cta import FlashCta, triton_cta
from sim.schedules.parts.nsa_positions import Positions, Visited, positions_attention
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

WARPS, STAGES = 4, 3
# Of a warp and trip beside the softmax's own, which the rule for 16 rows and 64 keys has at 58;
# those by which warps share keys are among them.
COMPRESSED_FIXED, SELECTED_FIXED = 300, 237
# A warp alone takes 1,690 cycles of a trip of selected attention (Triton 3.2, sm_80 and sm_90; as
# nsa.py counts them), 376 of them for its instructions: so many results of 33 cycles, and two more.
LATENCIES = 38
REGISTERS = 128  # measured: 124 and 128
CHOICE_INSTRUCTIONS, CHOICE_REGISTERS = 2340, 128


def compressed_attention(
    w: AttentionWorkload, hw: HardwareProfile, of: NsaTensors, whole: IntArray
) -> Attention:
    """Over the compressed keys of each position, of which so many are whole."""
    tile = Tile(q=of.group_rows, kv=at_once(of))
    cta = triton_cta(w, hw, tile, WARPS, STAGES)
    cta = _counted(cta, COMPRESSED_FIXED)
    count = -(-whole // tile.kv)
    across = np.arange(blocks(of.k_cmp.rows, tile.kv))
    visited = Visited(count, np.zeros_like(count), across)
    at = Positions(w, by_head=True)
    return positions_attention("compressed attention", of, cta, at, visited, (of.k_cmp, of.v_cmp))


def selected_attention(
    w: AttentionWorkload, hw: HardwareProfile, of: NsaTensors, block: int, visited: Visited
) -> Attention:
    """Over the blocks of each position, one at a time."""
    tile = Tile(q=of.group_rows, kv=block)
    cta = triton_cta(w, hw, tile, WARPS, 1)
    cta = _counted(cta, SELECTED_FIXED)
    at = Positions(w, by_head=True)
    return positions_attention("selected attention", of, cta, at, visited, (of.k, of.v))


def _counted(cta: FlashCta, fixed: int) -> FlashCta:
    """With what was counted in place of Triton's usual figures."""
    return replace(
        cta,
        fixed_instructions=fixed,
        sharing_instructions=0,
        sharing_latencies=LATENCIES,
        registers_per_thread=REGISTERS,
    )


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
