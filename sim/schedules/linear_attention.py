"""Linear attention in chunks, as RetNet's retention computes it too.

    for each matrix of K and V, each BLOCK x BLOCK tile of the state (one CTA of "chunk states"):
        H = 0
        for each chunk of `chunk` tokens:
            store H;  load K_c, V_c;  H = decay(H) + K_c^T V_c
    for each matrix of Q, chunk and BLOCK columns of V (one CTA of "chunk outputs"):
        for each BLOCK columns of K:
            load Q_c, K_c, H;  O += Q_c H;  A += Q_c K_c^T
        load V_c;  O += mask(A) V_c;  store O
    with `gate`, before them: G = running sum of g within each chunk (a CTA a chunk and head), which
        decays H and V_c there (exp of a chunk's G), O and A here (exp of chunk x chunk differences)
    decoding one token (one CTA a matrix and BLOCK columns of V):
        load H, k, v, q;  H = decay(H) + k v^T;  o = q H;  store H, o

Source: fla-org/flash-linear-attention, fla/ops/common/chunk_h.py, chunk_o.py, fused_recurrent.py,
ops/utils/cumsum.py: chunks of 64, blocks of 64 among those that its autotuner tries, 4 warps, 2
stages, states kept in the dtype of K (in fp32 when decoding); arXiv 2312.06635, section 4. RetNet
(arXiv 2307.08621) adds a fixed decay for each head, which costs the vector operations counted here
and no bytes. `gate` is simple gated linear attention (fla/ops/simple_gla), whose decay of each
token and head is Mamba-2's; g lies by tokens, so that a CTA reads a sector of 32 bytes for each of
its elements. The state has head_dim x head_dim elements for each KV head. Deviations: fla's
division by the running sum of K (`normalize`) is left out, and g when decoding.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Schedule, blocks, of_constant, qkvo
from sim.schedules.parts import registers
from sim.schedules.parts.fla_chunks import (
    BLOCK,
    FP32,
    STAGES,
    Chunked,
    cumsum_kernel,
    gates_of,
    outputs_kernel,
    sectors,
)
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


class LinearAttention(Schedule):
    """Linear attention, chunked forward and recurrent decoding; `chunk` is in tokens.

    With `gate` each token has a decay for each KV head.
    """

    name: Literal["linear_attention"] = "linear_attention"
    chunk: int = Field(default=64, ge=16, le=256, multiple_of=16)
    gate: bool = False

    summary = "chunks: attention within, a state of head_dim x head_dim between them"
    source = "arXiv 2312.06635, arXiv 2307.08621; fla-org/flash-linear-attention"
    of_other_models = True
    masks = ("causal",)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Two kernels, with a gate three or, for a token that is decoded, one."""
        if w.phase == "decode":
            return [_recurrent_kernel(w)]
        q, k, v, o = qkvo(w)
        chunks = blocks(w.seq_kv, self.chunk)
        states = Tensor("states", k.groups * chunks, w.head_dim, w.head_dim, w.dtype_bytes)
        gates, sums = gates_of(w.batch, w.seq_kv, w.kv_heads, w.dtype_bytes)
        of = Chunked(self.chunk, q, k, v, o, states, sums if self.gate else None)
        summing = [cumsum_kernel(self.chunk, gates, sums)] if self.gate else []
        return [*summing, _states_kernel(of), outputs_kernel(of)]

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        check_whole_sequence(self, w)


def check_whole_sequence(schedule: Schedule, w: AttentionWorkload) -> None:
    """Raises InputError unless all tokens are queries, or one is decoded: what a state allows."""
    if w.seq_q != (1 if w.phase == "decode" else w.seq_kv):
        raise InputError(
            f"schedule {schedule.name}: workload.seq_q = {w.seq_q}: its state takes the tokens in "
            f"order: seq_q = seq_kv = {w.seq_kv}, or decoding of one token"
        )


def _states_kernel(of: Chunked) -> Kernel:
    k, v, states = of.k, of.v, of.states
    chunk, chunks, across = of.chunk, of.chunks, of.across
    grid = Grid(across, across, k.groups)  # blocks of K's columns, of V's columns, matrices

    def k_tile(items: IntArray) -> IntArray:
        of_k, _, matrix = grid.at(items)
        return matrix * chunks * across + of_k

    def v_tile(items: IntArray) -> IntArray:
        _, of_v, matrix = grid.at(items)
        return matrix * chunks * across + of_v

    def state_tile(items: IntArray) -> IntArray:
        of_k, of_v, matrix = grid.at(items)
        return (matrix * chunks * across + of_k) * across + of_v

    load_k = Load(Stream(k, chunk, BLOCK, k_tile, across), STAGES)
    load_v = Load(Stream(v, chunk, BLOCK, v_tile, across), STAGES)
    block_bytes = load_k.stream.tile_bytes + load_v.stream.tile_bytes
    gates: tuple[Load, ...] = ()
    if of.sums:
        sums = sectors(chunk, of.sums, lambda items: grid.at(items)[2], np.zeros_like, 1)
        gates = (Load(sums, STAGES),)
    decayed = chunk * (2 + BLOCK) if gates else 0  # differences and scaling of V, conversion
    update = Compute(
        "H = decay(H) + K^T V",
        (load_k, load_v, *gates),
        mma_flops=2 * BLOCK * BLOCK * chunk,
        vector_ops=2 * BLOCK * BLOCK + decayed,  # decay, and conversion of H for the store
        exp_count=chunk + 1 if gates else 0,
        sram_bytes=3 * block_bytes,
    )
    store = Store(Stream(states, BLOCK, BLOCK, state_tile, across**2))
    return Kernel(
        name="chunk states",
        ctas=grid.size,
        periods=k.groups,
        loops=(Loop(of_constant(chunks), (load_k, load_v, *gates, store, update)),),
        footprint=Footprint(STAGES * block_bytes, 128, registers.CHUNK_STATES),
    )


def _recurrent_kernel(w: AttentionWorkload) -> Kernel:
    """One token. The state is there before and after: it is read and written in place."""
    kv_matrices, rows = w.batch * w.kv_heads, w.heads // w.kv_heads
    across = blocks(w.head_dim, BLOCK)
    size, dtype_bytes = w.head_dim, w.dtype_bytes
    q = Tensor("Q", kv_matrices, rows, size, dtype_bytes, "input", "query")
    k = Tensor("K", kv_matrices, 1, size, dtype_bytes, "input", "key")
    v = Tensor("V", kv_matrices, 1, size, dtype_bytes, "input", "value")
    o = Tensor("O", kv_matrices, rows, size, dtype_bytes, "output", "result")
    state = Tensor("state", kv_matrices, size, size, FP32, "input")
    grid = Grid(across, kv_matrices)  # blocks of V's columns, matrices

    def matrix(items: IntArray) -> IntArray:
        return grid.at(items)[1]

    def columns(items: IntArray) -> IntArray:
        return items

    loads = (
        Load(Stream(state, size, BLOCK, columns)),
        Load(Stream(q, rows, size, matrix)),
        Load(Stream(k, 1, size, matrix)),
        Load(Stream(v, 1, BLOCK, columns)),
    )
    update = Compute("H = decay(H) + k v^T, o = q H", loads, vector_ops=(2 + rows) * size * BLOCK)
    return Kernel(
        name="recurrent step",
        ctas=grid.size,
        periods=kv_matrices,
        loops=(
            Loop(
                once,
                (
                    *loads,
                    update,
                    Store(Stream(state, size, BLOCK, columns)),
                    Store(Stream(o, rows, BLOCK, columns)),
                ),
            ),
        ),
        footprint=Footprint(0, 128, registers.state_step(size * BLOCK)),
    )
