"""The FlashAttention-2 loop over key blocks, as all schedules that are built on it have it.

    load Q_i                                            (the prologue; rotates Q if RoPE is fused)
    for each key block that the schedule visits:        (`key_loop`)
        load K_j, V_j
        S = Q_i K_j^T;  m, P = online softmax of S;  O_i = rescale(O_i) + P V_j
    O_i = O_i / l_i;  store O_i and the log-sum-exp     (the epilogue)

Source: Dao 2023 (arXiv 2307.08691), Algorithm 1; loop order as in Dao-AILab/flash-attention,
csrc/flash_attn/src/flash_fwd_kernel.h. Q, K and V have one buffer each there, so K_j-1 comes during
the softmax and the second matmul of j. Triton's compiler gives K and V as many buffers as the loop
has stages, and on Hopper wgmma.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import (
    STATISTICS_BYTES,
    VECTOR_OPS_PER_SCORE,
    SramBytes,
    Tile,
    TiledSchedule,
    blocks,
    kv_matrix,
    visible_blocks,
)
from sim.schedules.parts.backward import DROPOUT_OPS_PER_SCORE
from sim.schedules.parts.kv_cache import row_bytes
from sim.schedules.parts.rope import (
    ROPE_OPS_PER_ELEMENT,
    Angles,
    angles_of,
    check_fused,
    with_passes,
)
from sim.tile_program import (
    Command,
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    OfItem,
    Store,
    Stream,
    Tensor,
    TensorPath,
    in_order,
    once,
)

Implementation = Literal["cuda", "triton"]


@dataclass(frozen=True)
class Cta:
    """How a CTA of a flash kernel works: its tile, warps, buffers of K and of V, and matmuls."""

    tile: Tile
    warps: int
    stages: int = 1
    tensor_path: TensorPath = "mma_sync"
    registers_per_thread: int = 255
    kv_readers: int = 4  # of each key block in SRAM: the warps, or the warp groups with wgmma
    angles: Angles | None = None  # by which Q and K are rotated in the kernel

    def sram_bytes(self, w: AttentionWorkload) -> int:
        """Q's tile and the buffers of K and V."""
        return flash_sram_bytes(w, self.stages)(self.tile)


def flash_sram_bytes(w: AttentionWorkload, stages: int) -> SramBytes:
    """Q's tile and `stages` buffers of K and of V, as wide as they are in the cache."""
    q_row_bytes, kv_row_bytes = w.head_dim * w.dtype_bytes, row_bytes(w)
    return lambda tile: q_row_bytes * tile.q + 2 * stages * kv_row_bytes * tile.kv


def triton_registers(w: AttentionWorkload, tile: Tile, warps: int) -> int:
    """Registers a thread that Triton's flash kernel takes: O, S and P, and some for addresses.

    Fitted to what Triton 3.9 compiles for sm_90 (bf16, causal): 235 at 128 x 128 x 128 with 8
    warps, 125 at 64 x 64 x 64 with 4; tests/validate/test_compiled_kernels.py compiles, compares.
    """
    held = tile.q * w.head_dim + 1.5 * tile.q * tile.kv
    return min(255, int(1.25 * held / (32 * warps)) + 27)


def triton_cta(
    w: AttentionWorkload, hw: HardwareProfile, tile: Tile, warps: int, stages: int
) -> Cta:
    """A CTA of a Triton kernel of that tile, with as many of the stages as fit SRAM.

    wgmma takes 64 query rows a warp group; of fewer, a warp takes 16 by mma.sync, and warps that
    have no rows of their own share keys.
    """
    by_group = hw.matmul_by_warp_group and tile.q >= 64
    whole = Cta(
        tile,
        warps,
        stages,
        tensor_path="native" if by_group else "mma_sync",
        registers_per_thread=triton_registers(w, tile, warps),
        kv_readers=max(1, warps // 4) if by_group else min(warps, tile.q // 16),
    )
    fewer = (replace(whole, stages=count) for count in range(stages, 1, -1))
    fitting = (cta for cta in fewer if cta.sram_bytes(w) <= hw.sram.max_per_cta)
    return next(fitting, replace(whole, stages=1))


class FlashSchedule(TiledSchedule):
    """What all schedules built on the FlashAttention-2 loop take.

    `implementation` says whose kernel it is: FlashAttention's CUDA with its mma.sync, or Triton's
    with the device's best matmuls. `warps`, and `stages` of K and V buffers, are that
    kernel's unless given. `rope` rotates Q and K in kernels before (`pass`) or in the loop
    (`fused`), as rope.py tells.
    """

    implementation: Implementation = "cuda"
    warps: Literal[4, 8, 16] | None = None
    stages: Annotated[int, Field(ge=1, le=8)] | None = None
    rope: Literal["pass", "fused"] | None = None

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload, or no `rope`."""
        super().check(w)
        if self.rope and type(self).commands is not FlashSchedule.commands:
            raise InputError(
                f'schedule {self.name}: rope = "{self.rope}": it takes Q and K rotated (no rope)'
            )

    def commands(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """What runs: the kernels in order, with `rope`, for each token that is decoded."""
        kernels = self.lower(w, hw)
        if self.rope == "fused":
            check_fused(self.name, kernels)
        if self.rope == "pass":
            kernels = with_passes(w, self.name, kernels)
        return in_order(kernels * w.tokens)

    def cta(self, public: Cta, w: AttentionWorkload, hw: HardwareProfile) -> Cta:
        """The CTA asked for, else the public one if it fits, else with the largest tile that does.

        Raises InputError.
        """
        warps, stages = self.warps or public.warps, self.stages or public.stages
        sram_bytes = flash_sram_bytes(w, stages)
        tile = self.fit_tile(public.tile, sram_bytes, w, hw)
        triton = self.implementation == "triton"
        return replace(
            public,
            tile=tile,
            warps=warps,
            stages=stages,
            registers_per_thread=triton_registers(w, tile, warps) if triton else 255,
            # A warp has 16 rows; warps beyond the tile's rows share out the keys.
            kv_readers=warps // 4
            if triton and hw.matmul_by_warp_group
            else min(warps, tile.q // 16),
            angles=angles_of(w, self.name) if self.rope == "fused" else None,
        )


@dataclass(frozen=True)
class KeyBlocks:
    """The key blocks that each block of query rows visits, the same for all heads or by head.

    Row r visits first[r] + stride * i or, with a table, table[first[r] + i], for i < trips[r].
    """

    trips: IntArray
    first: IntArray
    stride: int = 0
    table: IntArray | None = None


def all_visible(w: AttentionWorkload, tile: Tile) -> KeyBlocks:
    """All key blocks that the mask shows, last first."""
    first, end = visible_blocks(w, tile)
    return KeyBlocks(trips=end - first, first=end - 1, stride=-1)


@dataclass(frozen=True)
class Operand:
    """K or V of a trip: its tiles, with whatever comes with them (a page table, angles).

    `vector_ops` are the lane operations that make a trip's tile ready for the matmul (such as
    rotating), which also write it to SRAM again. `register_ops` are those that every reader takes
    on its way from SRAM, where the tile lies as it was loaded (such as dequantising).
    """

    streams: tuple[Stream, ...]
    vector_ops: int = 0
    register_ops: int = 0

    def made_ready(
        self, name: str, loads: tuple[Load, ...], tile_bytes: int, readers: int
    ) -> list[Compute]:
        """The compute that makes a tile of so many bytes ready, if it needs one."""
        work = self.vector_ops + readers * self.register_ops
        if not work:
            return []
        loaded = sum(load.stream.tile_bytes for load in loads)
        moved = loaded + tile_bytes if self.vector_ops else 0
        return [Compute(f"make {name} ready", loads, 0, work, 0, moved)]


def forward_kernel(
    name: str,
    w: AttentionWorkload,
    cta: Cta,
    visits: KeyBlocks,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
) -> Kernel:
    """The FlashAttention-2 loop over the key blocks that `visits` names; `tensors`: Q, K, V, O."""
    q, k, v, o = tensors
    lse = Tensor("LSE", q.groups, w.seq_q, 1, STATISTICS_BYTES, "output", "statistics")
    tile = cta.tile
    down, across = blocks(w.seq_q, tile.q), blocks(w.seq_kv, tile.kv)
    shared = len(visits.trips) == down  # one list of blocks for all heads

    def q_matrix(items: IntArray) -> IntArray:
        """Grid (blocks of query rows, sequences, heads), the first fastest."""
        head, sequence = items // (down * w.batch), items // down % w.batch
        return sequence * w.heads + head

    def q_tile(items: IntArray) -> IntArray:
        return q_matrix(items) * down + items % down

    def row(items: IntArray) -> IntArray:
        return items % down if shared else q_tile(items)

    def kv_base(items: IntArray) -> IntArray:
        matrix = kv_matrix(w, q_matrix(items)) * across
        return matrix if visits.table is not None else matrix + visits.first[row(items)]

    def table_start(items: IntArray) -> IntArray:
        return visits.first[row(items)]

    def kv_stream(tensor: Tensor) -> Stream:
        stride, table = visits.stride, visits.table
        return Stream(tensor, tile.kv, w.head_dim, kv_base, stride, table, table_start)

    return flash_kernel(
        name,
        w,
        cta,
        ctas=q.groups * down,
        trips=lambda items: np.maximum(visits.trips[row(items)], 0),
        q=Stream(q, tile.q, w.head_dim, q_tile),
        k=Operand((kv_stream(k),)),
        v=Operand((kv_stream(v),)),
        o=Stream(o, tile.q, w.head_dim, q_tile),
        lse=Stream(lse, tile.q, 1, q_tile),
    )


def flash_kernel(
    name: str,
    w: AttentionWorkload,
    cta: Cta,
    *,
    ctas: int,
    trips: OfItem,
    q: Stream,
    k: Operand,
    v: Operand,
    o: Stream,
    lse: Stream,
) -> Kernel:
    """A flash kernel whose streams say which tiles a CTA takes: one of Q, `trips` of K and V."""
    loop = key_loop(w, cta, trips, q.tile_bytes, k, v)
    return around_key_loops(name, w, cta, (loop,), ctas=ctas, q=q, o=o, lse=lse)


def around_key_loops(
    name: str,
    w: AttentionWorkload,
    cta: Cta,
    key_loops: tuple[Loop, ...],
    *,
    ctas: int,
    q: Stream,
    o: Stream,
    lse: Stream,
) -> Kernel:
    """A flash kernel of those loops over key blocks: loads Q before, stores O after them."""
    loads: tuple[Load, ...] = (Load(q),)
    q_bytes, q_elements = q.tile_bytes, cta.tile.q * w.head_dim
    prepare = Compute("wait for Q", loads, sram_bytes=q_bytes)
    if cta.angles:
        loads += (Load(cta.angles.beside_q(q)),)
        work = ROPE_OPS_PER_ELEMENT * q_elements
        prepare = Compute("rotate Q", loads, vector_ops=work, sram_bytes=3 * q_bytes)
    prologue = Loop(once, (*loads, prepare))
    epilogue = Loop(
        once,
        (
            Compute("O / l", vector_ops=q_elements, sram_bytes=2 * q_bytes),
            Store(o),
            Store(lse),
        ),
    )
    return Kernel(
        name=name,
        ctas=ctas,
        loops=(prologue, *key_loops, epilogue),
        footprint=Footprint(cta.sram_bytes(w), 32 * cta.warps, cta.registers_per_thread),
        tensor_path=cta.tensor_path,
    )


def key_loop(
    w: AttentionWorkload, cta: Cta, trips: OfItem, q_bytes: int, k: Operand, v: Operand
) -> Loop:
    """The loop over key blocks, `q_bytes` being Q's tile in SRAM."""
    tile = cta.tile
    if cta.angles:
        turn, work = cta.angles.beside_k(k.streams[0]), ROPE_OPS_PER_ELEMENT * tile.kv * w.head_dim
        k = replace(k, streams=(*k.streams, turn), vector_ops=k.vector_ops + work)
    loads_k = tuple(Load(stream, cta.stages) for stream in k.streams)
    loads_v = tuple(Load(stream, cta.stages) for stream in v.streams)
    kv_bytes = tile.kv * row_bytes(w)
    q_elements, scores = tile.q * w.head_dim, tile.q * tile.kv
    matmul_flops = 2 * scores * w.head_dim
    dropout = DROPOUT_OPS_PER_SCORE * scores if w.dropout else 0
    # Written once by the copy, then read whole by every reader, each for its own query rows.
    kv_sram_bytes = (1 + cta.kv_readers) * kv_bytes
    return Loop(
        trips,
        (
            *loads_k,
            *loads_v,
            *k.made_ready("K", loads_k, kv_bytes, cta.kv_readers),
            Compute(
                "S = Q K^T",
                loads_k,
                mma_flops=matmul_flops,
                sram_bytes=q_bytes + kv_sram_bytes,
            ),
            Compute(
                "softmax",
                vector_ops=VECTOR_OPS_PER_SCORE * scores + q_elements + dropout,  # rescales O too
                exp_count=scores + tile.q,
            ),
            *v.made_ready("V", loads_v, kv_bytes, cta.kv_readers),
            Compute("O += P V", loads_v, mma_flops=matmul_flops, sram_bytes=kv_sram_bytes),
        ),
    )
