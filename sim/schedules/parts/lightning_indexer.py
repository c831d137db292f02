"""DeepSeek-V3.2's lightning indexer: which keys each query attends to.

    "index scores"   a CTA an SM; for each of its blocks of queries (decoding: each of its ranges of
                     a sequence's keys):
                         load their index Q (all index heads) and weights
                         for each SCORED_KEYS keys that one of them sees:
                             load index K and a scale for each;  S = relu(K Q^T)
                             store the sum over the heads of S times weight, times scale
    "choose keys"    for each query (a CTA): count how many scores have each first 11 bits as fp16
                     in a pass over its row;  in another, write those above the bin of the k-th
                     and sort that bin's; a row of no more than k keys is not read

Scores are fp32, a row as long as the cache: where a framework scores some queries at a time to save
room, all are scored at once here.

Source: DeepSeek-V3.2-Exp (deepseek-ai, DeepSeek_V3_2.pdf, section 2); deepseek-ai/DeepGEMM:
csrc/apis/attention.hpp, csrc/jit_kernels/impls/sm90_fp8_mqa_logits.hpp (blocks, stages, threads),
deep_gemm/include/deep_gemm: impls/sm90_fp8_mqa_logits.cuh, sm90_fp8_paged_mqa_logits.cuh,
scheduler/sm90_paged_mqa_logits.cuh (as many ranges of 256 keys to each SM as to any other);
NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/kernels/indexerTopK.cu (threads, passes), which vLLM has too.
Estimates: lane operations of a score that is chosen from, and that the k-th's bin is sorted at
once. Left out: scores before a first key that is not a multiple of four, numbers of pages, that
rows of more than 200,000 scores are chosen from by several CTAs.
"""

from dataclasses import dataclass

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import blocks
from sim.schedules.parts import registers
from sim.schedules.parts.dealing import dealt_in_turn
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.ends import begin
from sim.schedules.parts.latent_parts import Ctas, parts_of
from sim.schedules.parts.latent_splits import Piece
from sim.schedules.parts.top_k import INDEX_BYTES
from sim.tile_program import (
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
    once,
)

SCORED_KEYS = 256  # of a step, 64 for each of four warp groups
SCORED_ROWS = 128  # query rows of a block: heads of so many queries
STAGES = 3  # of Q and of K
WARP_GROUPS, WARP_GROUP = 4, 128
SCORE_BYTES = 4
SHUFFLES = 2  # of a sum over heads that four threads have
SELECT_THREADS = 512
SELECT_PIECE = 8 * SELECT_THREADS  # scores that the CTA loads at once
SELECT_OPS = 8  # of a score and pass: to fp16, its sign turned, its bin, an addition there
SELECT_LATENCIES = 64  # four rounds of a sum over 512 bins


@dataclass(frozen=True)
class Index:
    """The indexer's tensors for `queries` at a time."""

    w: AttentionWorkload
    heads: int
    dim: int
    top: int

    @property
    def queries(self) -> int:
        """Queries of a block: decoding, all of a sequence."""
        return self.w.seq_q if self.w.phase == "decode" else SCORED_ROWS // self.heads

    @property
    def scores(self) -> Tensor:
        """A row for each query."""
        w = self.w
        return Tensor("index scores", w.batch, w.seq_q, w.seq_kv, SCORE_BYTES)

    def seen(self, query: IntArray) -> IntArray:
        """Keys that each query of a sequence sees."""
        return query + 1 + self.w.seq_kv - self.w.seq_q

    def kernels(self, hw: HardwareProfile, found: Tensor) -> list[Kernel]:
        """Scores of all that each query sees, and the choice of the best."""
        walk = self._ranges(hw) if self.w.phase == "decode" else self._blocks(hw)
        scores = self.scores
        return [self._scores_kernel(walk, scores), self._select_kernel(scores, found)]

    def _blocks(self, hw: HardwareProfile) -> "_Walk":
        """Blocks of queries, dealt in turn; each goes through all keys that its last one sees."""
        down = blocks(self.w.seq_q, self.queries)
        tiles = self.w.batch * down
        dealt = dealt_in_turn(tiles, min(hw.sm.count, tiles))
        last = np.minimum(np.arange(1, down + 1) * self.queries, self.w.seq_q) - 1
        steps = -(-self.seen(last) // SCORED_KEYS)
        return _Walk(
            dealt.ctas,
            dealt.items_per_cta,
            dealt.has_tile,
            dealt.tile,
            np.zeros_like,
            lambda items: dealt.has_tile(items) * steps[dealt.tile(items) % down],
            dealt.dealt_tiles,
        )

    def _ranges(self, hw: HardwareProfile) -> "_Walk":
        """Ranges of the steps of all sequences, one after the other; the last SMs have one more."""
        steps, sms = blocks(self.w.seq_kv, SCORED_KEYS), hw.sm.count
        edges = np.arange(sms + 1) * (self.w.batch * steps // sms)
        edges += np.maximum(0, np.arange(sms + 1) - sms + self.w.batch * steps % sms)
        pieces: list[list[Piece]] = []
        for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            own = []
            while start < end:
                sequence, first = divmod(start, steps)
                own.append((sequence, first, min(steps - first, end - start)))
                start += own[-1][2]
            pieces.append(own)
        parts = parts_of(pieces, self.w.batch)
        ctas = Ctas(parts, np.full((self.w.batch, 1), steps, np.int64))
        return _Walk(sms, parts.slots, ctas.has_keys, ctas.sequence, ctas.first, ctas.count)

    def _scores_kernel(self, walk: "_Walk", scores: Tensor) -> Kernel:
        w, rows = self.w, self.queries * self.heads
        down, across = blocks(w.seq_q, self.queries), blocks(w.seq_kv, SCORED_KEYS)
        q = Tensor("index Q", w.batch, w.seq_q * self.heads, self.dim, 1, "input", "query")
        weights = Tensor("index weights", w.batch, w.seq_q, self.heads, SCORE_BYTES, "input")
        k = Tensor("index K", w.batch, w.seq_kv, self.dim, 1, "input", "cache")
        scales = Tensor("scales of index K", w.batch, w.seq_kv, 1, SCORE_BYTES, "input", "cache")

        def keys(items: IntArray) -> IntArray:
            return walk.q_block(items) // down * across + walk.first(items)

        def score_tile(items: IntArray) -> IntArray:
            return walk.q_block(items) * across + walk.first(items)

        load_q = Load(Stream(q, rows, self.dim, walk.q_block))
        load_weights = Load(Stream(weights, self.queries, self.heads, walk.q_block))
        load_k = Load(Stream(k, SCORED_KEYS, self.dim, keys, 1), STAGES)
        load_scales = Load(Stream(scales, SCORED_KEYS, 1, keys, 1), STAGES)
        q_bytes, k_bytes = rows * self.dim, SCORED_KEYS * self.dim
        elements, sums = rows * SCORED_KEYS, self.queries * SCORED_KEYS
        multiply = Compute(
            "S = K Q^T",
            (load_k,),
            mma_flops=2 * elements * self.dim,
            sram_bytes=2 * k_bytes + WARP_GROUPS * q_bytes,
        )
        weigh = Compute(
            "sum of weight relu(S)",
            (load_scales,),
            vector_ops=elements + sums,
            other_ops=elements + 4 * SHUFFLES * sums,  # maxima with zero; four threads a sum
        )
        held = q_bytes + k_bytes + SCORE_BYTES * (rows + SCORED_KEYS)
        return Kernel(
            name="index scores",
            ctas=walk.ctas,
            loops=(
                begin("index Q", load_q, load_weights, trips=walk.has_block, sram_bytes=q_bytes),
                Loop(
                    walk.steps,
                    (
                        load_k,
                        load_scales,
                        multiply,
                        weigh,
                        Store(Stream(scores, self.queries, SCORED_KEYS, score_tile, 1)),
                    ),
                ),
            ),
            footprint=Footprint(
                STAGES * held,
                (WARP_GROUPS + 1) * WARP_GROUP,
                registers.INDEX_SCORES,
                producer_threads=WARP_GROUP,
            ),
            tensor_path="asynchronous",
            items_per_cta=walk.slots,
            dealt_tiles=walk.dealt_tiles,
            matmul_dtype="fp8",
        )

    def _select_kernel(self, scores: Tensor, found: Tensor) -> Kernel:
        across = blocks(scores.cols, SELECT_PIECE)

        def pieces(items: IntArray) -> IntArray:
            seen = self.seen(items % self.w.seq_q)
            return np.where(seen > self.top, -(-seen // SELECT_PIECE), 0)

        def reading(name: str) -> Loop:
            stream = Stream(scores, 1, SELECT_PIECE, lambda items: items * across, 1)
            load = Load(stream, stages=2)
            work = Compute(
                name, (load,), other_ops=SELECT_OPS * SELECT_PIECE, sram_bytes=4 * SELECT_PIECE
            )
            return Loop(pieces, (load, work))

        return Kernel(
            name="choose keys",
            ctas=scores.groups * scores.rows,
            periods=1,
            loops=(
                reading("count bins"),
                Loop(
                    lambda items: np.minimum(pieces(items), 1),
                    (Compute("find the bin of the k-th", latencies=SELECT_LATENCIES),),
                ),
                reading("gather"),
                Loop(once, (Store(in_order(found, 1)),)),
            ),
            footprint=Footprint(self.top * INDEX_BYTES, SELECT_THREADS, registers.SELECT),
        )


@dataclass(frozen=True)
class _Walk:
    """The block of queries of each item, and the steps through their sequence's keys.

    `slots` are the items of a CTA, `has_block` says whether one is there.
    """

    ctas: int
    slots: int
    has_block: OfItem
    q_block: OfItem
    first: OfItem
    steps: OfItem
    dealt_tiles: int = 0
