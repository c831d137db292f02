"""Ring Attention: each GPU holds a share of the tokens, and K and V go round.

    on each of P GPUs, which holds seq / P tokens' Q, K and V:
        for each turn s = 0 .. P - 1 (the papers' steps):
            send the K and V of this turn to the next GPU, receive those of turn s + 1
            O_s, LSE_s = flash attention of Q on the K and V of this turn
            O, LSE = merge(O, LSE; O_s, LSE_s)

At turn s GPU g has the keys of GPU g - s. `balance` says which tokens a GPU holds, and so what a
causal mask leaves between its queries and those keys:

    contiguous   one range in P       s = 0: causal    s <= g: all            s > g: nothing
    striped      every P-th token     s <= g: causal                          s > g: below diagonal
    zigzag       ranges g and         s = 0: causal    s <= g: earlier keys   s > g: later queries
                 2P - 1 - g of 2P

Without its diagonal, a token wide, a causal turn mostly visits the same tiles; then it is the same
kernel here. K and V are received in two buffers in turn; one is overwritten once the kernel that
reads it is done and it is sent on. In decoding every GPU has the query, and all keys come to it.

With `framework = "pytorch"` merging is nine kernels a turn (several_gpus.py) and two more where a
part of the queries is a slice, which is put back: later queries of a zigzag, and of stripes those
below the diagonal. The host makes these calls, each as long as CALL_LAUNCHES launches, and one for
each kernel of merging:

    exchange     2 buffers allocated, 4 sends and receives, 1 launch of their group, 1 wait
    attention    O, LSE and 2 small tensors allocated, 1 launch

so that a turn takes some 0.37 ms at least, however short its sequences are. The exchange's own
kernel takes no SM here. With `framework = "jax"`, the papers' own, all turns are one compiled
program: merging is one kernel, and the host is ahead. So is decoding, whose source is in JAX.

Source: Liu et al. 2023 (arXiv 2310.01889), Algorithm 1; Brandon et al. 2023 (arXiv 2311.09431) for
stripes; the kernels of a turn, and what they skip, as in zhuzilin/ring-flash-attention
(ring_flash_attn.py, stripe_flash_attn.py, zigzag_ring_flash_attn.py), decoding as in
Zyphra/tree_attention (ring_shard_test.py). Deviation: the two ranges of a zigzag are cut into
tiles each for itself, also where one kernel runs over both.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, Tile, blocks, kv_matrix
from sim.schedules.flash_decoding import FlashDecoding
from sim.schedules.parts.eager import CALL_LAUNCHES
from sim.schedules.parts.flash_loop import Operand, QueryTiles, flash_kernel, key_loop
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.public_tiles import public_cta
from sim.schedules.parts.results import Result
from sim.schedules.parts.several_gpus import (
    SeveralGpus,
    finish_kernel,
    merge_kernel,
    merged_like,
    pointwise_merge,
    run_kernels,
    start_kernel,
)
from sim.tile_program import Command, IntArray, Kernel, Stream, Tensor, Transfer

# Calls of the host in a turn: RingComm.send_recv_kv and wait; flash_api.cpp, mha_fwd.
EXCHANGE_CALLS, ATTENTION_CALLS = 8, 5

# What a GPU's queries see of the keys of a turn.
Part = Literal["all", "causal", "below diagonal", "earlier keys", "later queries"]


@dataclass(frozen=True)
class RingKernels:
    """Attention and merging by what a turn's part of the mask is; the first and last kernels."""

    attention: dict[Part, list[Kernel]]
    merge: dict[Part, list[Kernel]]
    start: Kernel
    finish: Kernel


@dataclass(frozen=True)
class Held:
    """A GPU's tokens, in `chunks` ranges that are matrices of their own, and a turn's result."""

    chunks: int
    q: Tensor
    k: Tensor
    v: Tensor
    part: Result


class Ring(SeveralGpus):
    """Ring Attention, forward. `balance`: which tokens a GPU holds where the mask is causal.

    `framework`: whose kernels merge the turns, and what its host does between launches.
    """

    name: Literal["ring"] = "ring"
    balance: Literal["contiguous", "striped", "zigzag"] = "contiguous"
    framework: Literal["pytorch", "jax"] = "pytorch"

    summary = "several GPUs, each its tokens; K and V go round"
    source = "arXiv 2310.01889, 2311.09431; zhuzilin/ring-flash-attention"
    masks = ("full", "causal")

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The kernels of every part of the mask, and of merging."""
        kernels = self._kernels(w, hw)
        attention = dict.fromkeys(k for part in kernels.attention.values() for k in part)
        merging = dict.fromkeys(k for part in kernels.merge.values() for k in part)
        return [*attention, kernels.start, *merging, kernels.finish]

    def commands(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """All GPUs' kernels and transfers, for each token that is decoded."""
        self.check_links(hw)
        kernels = self._kernels(w, hw)
        commands: list[Command] = []
        ready: list[tuple[Command, ...]] = [()] * self.gpus
        for _ in range(w.tokens):
            commands += self._round(w, hw, kernels, ready)
            finished = [Command(kernels.finish, gpu) for gpu in range(self.gpus)]
            commands += finished
            ready = [(command,) for command in finished]
        return commands

    def _round(
        self,
        w: AttentionWorkload,
        hw: HardwareProfile,
        kernels: RingKernels,
        ready: list[tuple[Command, ...]],
    ) -> list[Command]:
        """K and V once round; each GPU begins after its `ready`."""
        rows = self.share("seq_kv", w.seq_kv)
        matrices = 2 * w.batch * w.kv_heads
        buffers = [
            Tensor(f"received K, V ({number})", matrices, rows, w.head_dim, w.dtype_bytes)
            for number in (0, 1)
        ]
        gpus = range(self.gpus)
        calls = (0, 0) if self._is_compiled(w) else (EXCHANGE_CALLS + ATTENTION_CALLS, 1)
        call_s = CALL_LAUNCHES * hw.calibration.launch.latency
        calls_s = (calls[0] * call_s, calls[1] * call_s)
        ran: list[list[list[Command]]] = []  # by turn and GPU
        sent: list[list[Command]] = []
        for s in gpus:
            arrived = [(sent[s - 1][gpu - 1],) if s else ready[gpu] for gpu in gpus]
            before_s = calls_s if s else (0.0, calls_s[1])  # a run begins with its first launch
            ran.append(
                [
                    run_kernels(self._of_turn(w, kernels, g, s), g, arrived[g], before_s)
                    for g in gpus
                ]
            )
            if s < self.gpus - 1:
                # The buffer held what came two turns ago: the first kernel that read it, and the
                # transfer that sent it on, are done.
                free = [(*ran[s - 1][g][:1], sent[s - 1][g]) if s > 1 else ready[g] for g in gpus]
                sent.append(self._hop(buffers[s % 2], arrived, free))
        of_all = [command for of_turn in ran for of_gpu in of_turn for command in of_gpu]
        return of_all + [command for of_turn in sent for command in of_turn]

    def _hop(
        self,
        buffer: Tensor,
        arrived: list[tuple[Command, ...]],
        free: list[tuple[Command, ...]],
    ) -> list[Command]:
        """K and V of all GPUs to the next, once they have arrived and the buffer there is free."""
        return [
            Command(
                Transfer("K, V", buffer.bytes, to, buffer=buffer),
                gpu,
                (*arrived[gpu], *free[to]),
            )
            for gpu, to in ((gpu, (gpu + 1) % self.gpus) for gpu in range(self.gpus))
        ]

    def _of_turn(
        self, w: AttentionWorkload, kernels: RingKernels, gpu: int, s: int
    ) -> list[Kernel]:
        """What a GPU runs in a turn."""
        part = self._part(w, gpu, s)
        if part is None:
            return []
        return [*kernels.attention[part], *(kernels.merge[part] if s else [kernels.start])]

    def _is_compiled(self, w: AttentionWorkload) -> bool:
        """Whether all turns are one program, which the host launches without calls between."""
        return self.framework == "jax" or w.phase == "decode"

    def _part(self, w: AttentionWorkload, gpu: int, s: int) -> Part | None:
        """What the mask leaves of a turn of a GPU."""
        if not w.causal or w.phase == "decode":
            return "all"
        if self.balance == "striped":
            return "causal" if s <= gpu else "below diagonal"
        if s == 0:
            return "causal"
        if self.balance == "zigzag":
            return "earlier keys" if s <= gpu else "later queries"
        return "all" if s <= gpu else None

    def _kernels(self, w: AttentionWorkload, hw: HardwareProfile) -> RingKernels:
        """One kernel for each that differs, so that each is replayed once."""
        gpus = range(self.gpus)
        parts = {part: None for s in gpus for gpu in gpus if (part := self._part(w, gpu, s))}
        if w.phase == "decode":
            local = replace(w, seq_kv=self.share("seq_kv", w.seq_kv), causal=False)
            decoding = self.like(FlashDecoding).attention(local, hw)
            attention = dict.fromkeys(parts, decoding.kernels)
            chunks, result = 1, decoding.result
        else:
            held = self._held(w)
            flash = {part: self._kernel(part, w, hw, held) for part in parts}
            if "below diagonal" in flash and np.array_equal(
                flash["below diagonal"].trips, flash["causal"].trips
            ):
                flash["below diagonal"] = flash["causal"]
            attention = {part: [kernel] for part, kernel in flash.items()}
            chunks, result = held.chunks, held.part
        merged = merged_like(result)
        o = replace(result.o, name="O", lifetime="output", role="result")
        fused = self._is_compiled(w)
        merges: dict[tuple[int, bool], list[Kernel]] = {}  # one for each that differs
        merge: dict[Part, list[Kernel]] = {}
        for part in parts:
            first = chunks - 1 if part == "later queries" else 0
            sliced = part in ("later queries", "below diagonal") and not fused
            merge[part] = merges.setdefault(
                (first, sliced),
                [merge_kernel(result, merged, chunks, first)]
                if fused
                else pointwise_merge(result, merged, chunks, first, sliced=sliced),
            )
        start, finish = start_kernel(result, merged), finish_kernel(merged, o)
        return RingKernels(attention, merge, start, finish)

    def _held(self, w: AttentionWorkload) -> Held:
        """A GPU's Q, K and V, and room for a turn's O; raises InputError where they do not fit."""
        if w.causal and w.seq_q != w.seq_kv:
            raise InputError(
                f"schedule {self.name}: workload.seq_q = {w.seq_q}: causal, it takes as many "
                f"queries as keys ({w.seq_kv})"
            )
        chunks = 2 if w.causal and self.balance == "zigzag" else 1
        queries = self.share("seq_q", w.seq_q, chunks * self.gpus)
        keys = self.share("seq_kv", w.seq_kv, chunks * self.gpus)
        heads, kv_heads = (w.batch * count * chunks for count in (w.heads, w.kv_heads))
        return Held(
            chunks,
            Tensor("Q", heads, queries, w.head_dim, w.dtype_bytes, "input", "query"),
            Tensor("K", kv_heads, keys, w.head_dim, w.dtype_bytes, "input", "key"),
            Tensor("V", kv_heads, keys, w.head_dim, w.dtype_bytes, "input", "value"),
            Result(
                Tensor("O of a step", heads, queries, w.head_dim, w.dtype_bytes, role="partial"),
                Tensor("LSE of a step", heads, queries, 1, STATISTICS_BYTES, role="partial"),
            ),
        )

    def _kernel(self, part: Part, w: AttentionWorkload, hw: HardwareProfile, held: Held) -> Kernel:
        """FlashAttention-2 of a GPU's queries on the keys of a turn."""
        local = replace(w, causal=part in ("causal", "below diagonal"))
        cta = self.cta(public_cta(local, hw, self.implementation), local, hw)
        tile, chunks = cta.tile, held.chunks
        first, visited = _key_blocks(part, held, tile)
        down, across = blocks(held.q.rows, tile.q), blocks(held.k.rows, tile.kv)
        grid = Grid(len(visited), w.batch, w.heads)  # blocks of query rows, sequences, heads

        def q_matrix(items: IntArray) -> IntArray:
            _, sequence, head = grid.at(items)
            return sequence * w.heads + head

        def q_tile(items: IntArray) -> IntArray:
            return q_matrix(items) * chunks * down + first + grid.at(items)[0]

        def trips(items: IntArray) -> IntArray:
            return visited[grid.at(items)[0]]

        def last_key_block(items: IntArray) -> IntArray:
            return kv_matrix(w, q_matrix(items)) * chunks * across + trips(items) - 1

        def last_to_first(tensor: Tensor) -> Operand:
            return Operand((Stream(tensor, tile.kv, w.head_dim, last_key_block, -1),))

        rows = QueryTiles(
            ctas=grid.size,
            q=Stream(held.q, tile.q, w.head_dim, q_tile),
            o=Stream(held.part.o, tile.q, w.head_dim, q_tile),
            lse=Stream(held.part.lse, tile.q, 1, q_tile),
            periods=w.batch * w.heads,
            sharing=w.heads // w.kv_heads,
        )
        k, v = last_to_first(held.k), last_to_first(held.v)
        loop = key_loop(local, cta, trips, rows.q.tile_bytes, k, v)
        return flash_kernel(f"flash2, {part}", local, cta, rows, loop)


def _key_blocks(part: Part, held: Held, tile: Tile) -> tuple[int, IntArray]:
    """The first block of query rows that takes part, and how many key blocks each visits.

    All visit a range from the first key block on; blocks count through the chunks.
    """
    down, across = blocks(held.q.rows, tile.q), blocks(held.k.rows, tile.kv)
    row_blocks = np.arange(held.chunks * down)
    chunk, end_row = row_blocks // down, np.minimum((row_blocks % down + 1) * tile.q, held.q.rows)
    if part in ("causal", "below diagonal"):
        end_key = end_row - (part == "below diagonal")
        return 0, chunk * across + -(-end_key // tile.kv)
    first = down if part == "later queries" else 0
    visited = across if part == "earlier keys" else held.chunks * across
    return first, np.full(held.chunks * down - first, visited)
