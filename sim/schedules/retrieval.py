"""Retrieval: a vector search over the whole context, then attention over the chunks it found.

    "vector search"  for each block of VECTORS chunks' embeddings (one CTA):
                         load them and the questions' embeddings, slice by slice;  store the scores
    "choose chunks"  for each question (one CTA): load all scores;  keep the `top` best
    then FlashAttention-2 (or, decoding, its split-KV decoding) over top * chunk_tokens tokens

The search is an exact one over a flat index, as faiss's IndexFlatIP does (Johnson et al. 2017,
arXiv 1702.08734, section 5), one question a sequence of the batch; the index has one embedding for
each chunk_tokens tokens of the workload's seq_kv and is the same for all sequences. Lewis et al.
2020 (arXiv 2005.11401) is the model that answers from what was found. Chunks of 512 tokens, 8 of
them and embeddings of 1,024 elements are usual settings, not a source's. What embeds question and
chunks is a model of its own and not counted.
"""

from dataclasses import replace
from typing import Literal

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks, of_constant, qkvo
from sim.schedules.flash2 import Flash2
from sim.schedules.flash_decoding import FlashDecoding
from sim.schedules.parts import registers
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.flash_schedule import FlashSchedule
from sim.schedules.parts.grid import Grid
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

# Of the search's matmul, as `naive`'s: estimates.
VECTORS, QUESTIONS, SLICE, STAGES = 128, 64, 64, 3
SCORE_BYTES = 4


class Retrieval(FlashSchedule):
    """Vector search over the context, then attention over `top` chunks of `chunk_tokens`."""

    name: Literal["retrieval"] = "retrieval"
    chunk_tokens: Count = 512
    top: Count = 8
    embedding_dim: Count = 1024

    summary = "vector search over the context, then attention over a few chunks of it"
    source = "arXiv 2005.11401; exact search as in arXiv 1702.08734"
    of_other_models = True
    masks = ("full", "causal")

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """Search, choice, and attention over what was found."""
        chunks = blocks(w.seq_kv, self.chunk_tokens)
        index = Tensor("embeddings", 1, chunks, self.embedding_dim, w.dtype_bytes, "input")
        questions = Tensor("questions", 1, w.batch, self.embedding_dim, w.dtype_bytes, "input")
        scores = Tensor("scores", 1, w.batch, chunks, SCORE_BYTES)
        found = Tensor("chunks found", 1, w.batch, self.top, INDEX_BYTES)
        return [
            _search_kernel(index, questions, scores),
            _choice_kernel(scores, found),
            *self._attention(w, hw).kernels,
        ]

    def _attention(self, w: AttentionWorkload, hw: HardwareProfile) -> Attention:
        context = min(w.seq_kv, self.top * self.chunk_tokens)
        if w.phase == "decode":
            return self.like(FlashDecoding).attention(replace(w, seq_kv=context), hw)
        prompt = replace(w, seq_q=context, seq_kv=context)
        return self.like(Flash2).attention(prompt, hw, qkvo(prompt))


def _search_kernel(index: Tensor, questions: Tensor, scores: Tensor) -> Kernel:
    tile, trips = Tile(q=QUESTIONS, kv=VECTORS), blocks(index.cols, SLICE)
    across = blocks(index.rows, tile.kv)
    grid = Grid(across, blocks(questions.rows, tile.q))  # blocks of vectors, of questions

    def q_slice(items: IntArray) -> IntArray:
        return grid.at(items)[1] * trips

    def v_slice(items: IntArray) -> IntArray:
        return grid.at(items)[0] * trips

    load_q = Load(Stream(questions, tile.q, SLICE, q_slice, 1), STAGES)
    load_v = Load(Stream(index, tile.kv, SLICE, v_slice, 1), STAGES)
    operands = load_q.stream.tile_bytes + load_v.stream.tile_bytes
    multiply = Compute("q . v", (load_q, load_v), 2 * tile.q * tile.kv * SLICE, 0, 0, 3 * operands)
    return Kernel(
        name="vector search",
        ctas=grid.size,
        loops=(
            Loop(of_constant(trips), (load_q, load_v, multiply)),
            Loop(once, (Store(in_order(scores, tile.q, tile.kv)),)),
        ),
        footprint=Footprint(STAGES * operands, 128, registers.SCORES),
    )


def _choice_kernel(scores: Tensor, found: Tensor) -> Kernel:
    width = min(scores.cols, 8 * VECTORS)
    across = blocks(scores.cols, width)
    load = Load(Stream(scores, 1, width, lambda items: items * across, 1))
    compare = Compute("compare with the least that is kept", (load,), vector_ops=2 * width)
    return Kernel(
        name="choose chunks",
        ctas=scores.rows,
        loops=(
            Loop(of_constant(across), (load, compare)),
            Loop(once, (Store(in_order(found, 1)),)),
        ),
        footprint=Footprint(0, threads=256, registers_per_thread=registers.UPDATE),
    )
