"""MInference: sparse prefill along vertical and slash lines that the last queries point to.

    for each head of each sequence:
        S = Q_last K^T;  P = softmax(S)    the last block of 64 queries against all keys
        verticals = the `vertical` keys of highest column sums of P
        slashes = the `slash` distances (query - key) of highest diagonal sums of P
        build the index;  attend along the lines           (parts/vertical_slash.py)

Source: Jiang et al. 2024 (arXiv 2407.02490), Algorithm 2; microsoft/MInference:
minference/modules/minference_forward.py. Two searches of its configurations differ by head: for
Llama-3 8B (minference/configs/Llama_3_8B_Instruct_262k_kv_out_v32_fit_o_best_pattern.json) 473 of
1,024 heads have 1,000 verticals and 6,096 slashes, which are also what a head without a search has,
278 have 30 and 800, 153 have 100 and 800, 89 have 3,500 and 100, 31 have 500 and 700.

The public patch repeats K and V for every query head and goes head by head: some forty launches
each, most of them PyTorch's, among them copies of Q, K and V (padded to whole blocks, by none too)
and of O, and zeros for tables of as many key blocks as there are slashes (parts/last_queries.py;
vertical_slash_sparse_attention). `implementation` "minference" is that with its Triton kernel (64 x
64, 4 warps, 2 stages), "sglang" with FlashAttention-2's loop in CUDA, which it takes where SGLang
or vLLM is installed (sgl-project/sgl-flash-attn, csrc/flash_attn/src/
flash_fwd_sparse_launch_template.h: 64 x 64, 4 warps; K and V are not copied then). "triton" is a
port without PyTorch's detours: all heads in each launch, query heads of a group sharing K and V.

Which lines matter depends on data. The model here, the same for all heads: the first keys and the
least distances that the public code forces; the other verticals anywhere (drawn by `seed`); half of
the slashes the least distances, the other half in bands of BAND at distances anywhere. How far
slashes keep together decides what is saved: bands and halves are estimates.

The host takes its time for each launch (CALL_LAUNCHES), and waits twice a head until the GPU is
done: it copies zeros for the sums along diagonals, and the lengths of sequences, from its memory.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count, CountOrNone
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import (
    QKVO,
    Schedule,
    Tile,
    blocks,
    check_self_attention,
    check_triton_kernel,
    qkvo,
)
from sim.schedules.parts.eager import CALL_LAUNCHES, OPS_PER_ELEMENT, eager_pass, repeated
from sim.schedules.parts.elementwise import elementwise, rows_of
from sim.schedules.parts.flash_cta import FlashCta, triton_cta
from sim.schedules.parts.last_queries import LastQueries
from sim.schedules.parts.top_k import INDEX_BYTES
from sim.schedules.parts.vertical_slash import (
    BLOCK,
    FORCED,
    Heads,
    Lines,
    SparseAttention,
    index_kernel,
    index_tables,
)
from sim.tile_program import Command, Kernel, Role, Stream, Tensor, like

BAND = 64
TILE = Tile(q=BLOCK, kv=BLOCK)
# Of a warp and trip beside the softmax's own: Triton 3.9's for sm_80, bf16, head_dim 128 has 613
# instructions that are neither matmuls nor their loads, 101 more than the rule for its dense
# kernels (parts/instructions.py) says: addresses of rows that begin anywhere.
FIXED_INSTRUCTIONS = 381


class MInference(Schedule):
    """Vertical-slash sparse attention, forward, with `vertical` keys and `slash` distances a head.

    `implementation` is "minference", its authors' launches head by head, the same with SGLang's
    kernel, or a port ("triton").
    """

    name: Literal["minference"] = "minference"
    implementation: Literal["minference", "sglang", "triton"] = "minference"
    vertical: Count = 1000
    slash: Count = 6096
    seed: CountOrNone = 0

    summary = "prefill along the vertical and slash lines that the last queries point to"
    source = "arXiv 2407.02490; microsoft/MInference"
    phases = ("prefill",)
    masks = ("causal",)

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        check_self_attention(self, w)
        check_triton_kernel(self, w)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Estimation, choice of lines, index and sparse attention."""
        if self.implementation != "triton":
            works = dict.fromkeys(command.work for command in self.commands(w, hw))
            return [work for work in works if isinstance(work, Kernel)]
        lines, tensors = self.lines(w.seq_kv), qkvo(w)
        heads = Heads(w.batch * w.heads, sharing=w.heads // w.kv_heads)
        choice = LastQueries(w, heads, lines, tensors.q, tensors.k)
        index = index_kernel(
            hw, (choice.verticals, choice.slashes), lines, index_tables(w, lines, heads)
        )
        attention = SparseAttention(w, self.cta(w, hw), lines, heads).kernel(tensors)
        return [*choice.passes(), index, attention]

    def commands(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """What runs; head by head PyTorch's host takes its time, and waits."""
        if self.implementation == "triton":
            return super().commands(w, hw)
        copies, tensors = _for_every_head(w, qkvo(w))
        head = _HeadByHead(self, w, hw, self.lines(w.seq_kv), tensors)
        before_s = (CALL_LAUNCHES - 1) * hw.calibration.launch.latency
        commands = [Command(kernel, host_s=before_s) for kernel in copies]
        of_heads = [head.parts(number) for number in range(tensors.q.groups)]
        for parts in of_heads:
            for number, (part, first) in enumerate(zip(parts, of_heads[0], strict=True)):
                waits = [number > 0] + [False] * (len(part) - 1)
                commands += [
                    Command(like(*kernels), host_s=before_s, host_waits=host_waits)
                    for *kernels, host_waits in zip(first, part, waits, strict=True)
                ]
        return commands

    def cta(self, w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
        """How a CTA of the sparse attention works."""
        if self.implementation == "sglang":
            return FlashCta(TILE, warps=4)
        return replace(
            triton_cta(w, hw, TILE, warps=4, stages=2), fixed_instructions=FIXED_INSTRUCTIONS
        )

    def lines(self, length: int) -> Lines:
        """The verticals and slashes of a sequence of so many tokens, ascending."""
        rng = np.random.default_rng(self.seed)
        count = min(length, max(self.vertical, FORCED["verticals"]))
        forced = min(length, FORCED["verticals"])
        others = forced + rng.choice(length - forced, count - forced, replace=False)
        verticals = np.concatenate([np.arange(forced), np.sort(others)])
        count = min(length, max(self.slash, FORCED["slashes"]))
        near = min(count, blocks(max(self.slash // 2, FORCED["slashes"]), BAND) * BAND)
        bands = blocks(length - near, BAND)
        # One more than needed, as the farthest may be cut.
        drawn = rng.choice(bands, min(bands, blocks(count - near, BAND) + 1), replace=False)
        far = (near + drawn[:, None] * BAND + np.arange(BAND)).ravel()
        far = np.sort(far[far < length][: count - near])
        slashes = np.concatenate([np.arange(near), far])
        return Lines(verticals, slashes, blocks(length, BLOCK))


def _for_every_head(w: AttentionWorkload, tensors: QKVO) -> tuple[list[Kernel], QKVO]:
    """Copies of K and V for every query head, where heads share them."""
    if w.heads == w.kv_heads:
        return [], tensors
    (copy_k, k), (copy_v, v) = (repeated(w, tensor) for tensor in (tensors.k, tensors.v))
    return [copy_k, copy_v], tensors._replace(k=k, v=v)


class _HeadByHead:
    """The launches of one head after the other; what they keep lies where the last one's did."""

    def __init__(
        self,
        schedule: MInference,
        w: AttentionWorkload,
        hw: HardwareProfile,
        lines: Lines,
        tensors: QKVO,
    ) -> None:
        self.w, self.hw, self.lines, self.tensors = w, hw, lines, tensors
        self.by_triton = schedule.implementation == "minference"
        self.cta = schedule.cta(w, hw)
        one = Heads(1)
        self.choice = LastQueries(w, one, lines, tensors.q, tensors.k)
        self.own = QKVO(*map(_of_a_head, tensors))
        tables = index_tables(w, lines, one)
        counts = Tensor("counts", 1, tables[0].rows, 1, INDEX_BYTES)
        lists = (self.choice.verticals, self.choice.slashes)
        # These touch nothing but what heads have in common.
        self.index = [
            *(eager_pass(f"clear {t.name}", [], [t]) for t in (counts, counts, *tables)),
            index_kernel(hw, lists, lines, tables),
        ]
        if self.by_triton:
            self.index.append(eager_pass("clear O", [], [self.own.o]))

    def parts(self, number: int) -> list[list[Kernel]]:
        """All launches of a head of a sequence, in the parts between which the host waits."""
        whole, own = self.tensors, self.own
        copied, operands, heads = {whole.q: own.q, whole.k: own.k, whole.v: own.v}, own, Heads(1)
        if not self.by_triton:
            copied = {whole.q: own.q}
            operands, heads = own._replace(k=whole.k, v=whole.v), Heads(1, first_kv=number)
        chosen, sorted_lists = self.choice.launches(Heads(1, number, number))
        copies = [_copy(source, number, 0, target) for source, target in copied.items()]
        attention = SparseAttention(self.w, self.cta, self.lines, heads).kernel(operands)
        put_back = _copy(own.o, 0, number, whole.o)
        # The lengths of sequences are copied from the host before the index is built.
        return [chosen, [*sorted_lists, *copies], [*self.index, attention, put_back]]


def _of_a_head(tensor: Tensor) -> Tensor:
    """Room for a head's matrix of it; that of K and V is no cache."""
    role: Role = "query" if tensor.role == "query" else "other"
    name = f"{tensor.name} of a head"
    return replace(tensor, name=name, groups=1, lifetime="workspace", role=role)


def _copy(source: Tensor, from_matrix: int, to_matrix: int, target: Tensor) -> Kernel:
    """The kernel that copies a matrix of one to a matrix of the other."""
    rows = rows_of(source)
    down = blocks(source.rows, rows)

    def matrix(tensor: Tensor, number: int) -> Stream:
        return Stream(tensor, rows, tensor.cols, lambda items: number * down + items)

    reads, writes = [matrix(source, from_matrix)], [matrix(target, to_matrix)]
    kernel = elementwise(f"copy {source.name}", reads, writes, OPS_PER_ELEMENT * rows * source.cols)
    return replace(kernel, ctas=down, periods=1)
