"""Multi-head latent attention, decoding in its absorbed form, as DeepSeek's FlashMLA.

The cache has latent_dim + rope_dim elements a token, for all heads: K is the whole row, V its first
latent_dim elements, so that one load serves both.

    for each part of the key blocks of all sequences, for each 64 query rows (one CTA):
        for each sequence of the part (one item):
            load the query rows
            for each page of its keys:
                S = Q C^T;  m, P = online softmax of S;  O = rescale(O) + P C[:, :latent_dim]
            store O, or where the sequence is in several parts the partial O and log-sum-exp
    for each 8 rows of O of each sequence in several parts (one CTA): combine them

Source: deepseek-ai/FlashMLA, csrc/sm90/kernels: tile 64 x 64 and a page the same, two buffers of C
and two warp groups (traits.h), as many parts as SMs for each 64 rows, cut so that each has equally
many blocks with 5 for starting a sequence (get_mla_metadata.cu, flash_api.cpp), the combine kernel
(mla_combine.cu), launched where no sequence is in several parts, too (csrc/api/dense_decode.h). A
page is read whole, with the 32-byte sector that has its number. FlashMLA runs on Hopper; elsewhere
its loop runs with the tile that fits. The heads of several query tokens (of drafts to verify) are
rows one token after the other, and share what is loaded of the cache; rows that a causal mask shows
less end earlier (dense_decode.h, splitkv_mla.cuh, get_mask_len). All of
these rules take sequences of any lengths.

Frameworks have kernels of their own (`implementation`): FlashAttention-3's, FlashInfer's,
TensorRT-LLM's and the Triton kernels of vLLM and of SGLang, which has V from K and up to as many
ranges as SMs, rounded up to a power of two (srt/layers/attention/triton_backend.py,
_mla_decode_kv_splits_cap; its grid has all of them, of which those without keys end at once).
Their CTAs are told in `parts.latent_ctas`, who works on what in `parts.latent_splits`;
TensorRT-LLM's before Hopper has a loop of its own, in `parts.latent_slices`. FlashInfer combines at
the end of its only launch, which here is a launch more. That a page cannot be loaded before its
number is there is not modelled.

The matmuls by W_UK and W_UV are left out as all projections are: DeepSeek-V2 (arXiv 2405.04434,
section 2.1.2) absorbs them in those that make the queries and take the output. Prefill is `flash2`
on K and V made of the latents.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, VECTOR_OPS_PER_SCORE, TiledSchedule, blocks
from sim.schedules.parts.combine_splits import Splits
from sim.schedules.parts.elementwise import elementwise, in_order, rows_of
from sim.schedules.parts.ends import begin
from sim.schedules.parts.flash_cta import power_of_two
from sim.schedules.parts.kv_cache import scattered
from sim.schedules.parts.latent_ctas import (
    COPY_BYTES,
    TURNED_AT_ONCE,
    Implementation,
    LatentCta,
    public_latent_cta,
    trtllm_gen_splits,
)
from sim.schedules.parts.latent_parts import (
    Ctas,
    Parts,
    combine_of_parts,
    cut_in_parts,
    parts_of,
)
from sim.schedules.parts.latent_slices import TILE, sliced_kernel
from sim.schedules.parts.latent_splits import (
    MOST_TRITON_SPLITS,
    Piece,
    even_pieces,
    fa3_splits,
    flashinfer_pieces,
    plan_kernel,
    triton_splits,
)
from sim.schedules.parts.results import Result
from sim.schedules.parts.sglang_decode import begun_by, own_setup
from sim.schedules.parts.sliced_loop import SlicedCta
from sim.tile_program import (
    Barrier,
    Compute,
    Kernel,
    Load,
    Loop,
    Stream,
    Tensor,
)

PAGES_SEED = 0
BY_TRITON = ("triton", "sglang")
# Who has a kernel that decides who works on what, and whether it runs with every call.
PLAN_ON_DEVICE = {"flashmla": False, "fa3": True, "trtllm": True}
# Whose rows are the heads of several queries, one query after the other.
SEVERAL_QUERIES = ("flashmla", "fa3")
# Lane operations of an element that PyTorch casts from 8 bits: it is fetched by a switch over
# dtypes (c10/core/DynamicCast.h) and taken apart bit by bit (c10/util/Float8_e4m3fn.h). Fitted to
# two rows of the split `fit` (SGLang on an H100), which agree on some 335 elements a nanosecond.
CAST_OPS = 83


class Mla(TiledSchedule):
    """Multi-head latent attention of a few queries a sequence; a page has tile.kv tokens.

    `implementation` says whose kernel it is. Triton's cuts each sequence in so many `splits`, by
    SGLang's rule unless given; vLLM has 4. Whether a call has a kernel before that decides who
    works on what (`plan`) goes by the implementation unless given: with FlashMLA one call decides
    for all layers.
    """

    name: Literal["mla"] = "mla"
    implementation: Implementation = "flashmla"
    splits: Splits | None = None
    plan: bool | None = None

    summary = "multi-head latent attention, absorbed: one latent cache for all heads"
    source = "deepseek-ai/FlashMLA, csrc/sm90; arXiv 2405.04434"
    phases = ("decode",)
    masks = ("full", "causal")
    takes = frozenset({"latents", "append", "lengths"})

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload.

        `fa3` takes a cache of fp8, which it casts whole.
        """
        casts = self.implementation == "fa3" and w.kv_dtype == "fp8"
        super().check(replace(w, kv_dtype=None) if casts else w)
        if w.seq_q > 1 and self.implementation not in SEVERAL_QUERIES:
            raise InputError(
                f"schedule mla: workload.seq_q = {w.seq_q}: implementation = "
                f'"{self.implementation}" decodes one query; {", ".join(SEVERAL_QUERIES)} take more'
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The split kernel and, where a sequence is in several parts, the combine kernel.

        TensorRT-LLM's before Hopper is one; a cache that is cast has that kernel first.
        """
        if w.latent_dim is None:
            raise InputError(
                "schedule mla: workload.latent_dim is missing: a model with latent attention was "
                "expected, such as deepseek-v3"
            )
        self._check_options()
        if self.implementation == "trtllm" and not hw.matmul_by_warp_group:
            sliced = SlicedCta.of(w, TILE, w.latent_dim, paged=True)
            tile = self.fit_tile(sliced.tile, sliced.sram_bytes, w, hw)
            return [sliced_kernel(w, replace(sliced, tile=tile), PAGES_SEED)]
        cta = public_latent_cta(self.implementation, w, hw)
        tile = self.fit_tile(cta.tile, lambda tile: cta.sram_bytes(w, tile), w, hw)
        cta = replace(cta, tile=tile)
        latents = _Latents(w, w.latent_dim, cta, self._parts(w, cta, hw))
        casting = [latents.cast_kernel()] if w.kv_dtype else []
        combines = cta.launches_combine or latents.parts.combined.any()
        combining = [latents.combine_kernel()] if combines else []
        split = latents.split_kernel()
        if self.implementation == "sglang":
            split = begun_by(own_setup(w, hw, split.footprint, split.ctas), split)
        return [*casting, *self._plan(latents.parts, hw), split, *combining]

    def _check_options(self) -> None:
        if self.splits is not None and self.implementation not in BY_TRITON:
            raise InputError(
                f'schedule mla: splits = {self.splits}: implementation = "{self.implementation}" '
                "has a rule of its own; triton's kernel takes them"
            )
        if self.plan and self.implementation not in PLAN_ON_DEVICE:
            raise InputError(
                f'schedule mla: plan = true: implementation = "{self.implementation}" has no '
                f"kernel for it; {', '.join(PLAN_ON_DEVICE)} have"
            )

    def _plan(self, parts: Parts, hw: HardwareProfile) -> list[Kernel]:
        """The kernel that decides who works on what, where every call has one."""
        usual = PLAN_ON_DEVICE.get(self.implementation, False) and hw.arch != "sm100"
        if not (usual if self.plan is None else self.plan):
            return []
        sequences, number = len(parts.splits), len(parts.count) // parts.slots
        turns = 1 if self.implementation == "fa3" else number + sequences
        return [plan_kernel(sequences, number, turns)]

    def _parts(self, w: AttentionWorkload, cta: LatentCta, hw: HardwareProfile) -> Parts:
        """Who works on what, by the kernel's own rule."""
        tile, sms = cta.tile, hw.sm.count
        key_blocks = [blocks(keys, tile.kv) for keys in w.keys]
        down = blocks(w.seq_q * w.heads, tile.q)
        if self.implementation in BY_TRITON:
            of_sglang = self.implementation == "sglang"
            most = power_of_two(sms) if of_sglang else MOST_TRITON_SPLITS
            splits = triton_splits(w.keys, down, hw, most)
            if self.splits:
                splits = [self.splits] * w.batch
            # SGLang's grid has as many ranges as there may be, whatever its rule says.
            grid_ranges = most if of_sglang and not self.splits else 1
            return parts_of(
                _range_by_range(even_pieces(key_blocks, splits), w.batch, grid_ranges),
                w.batch,
                together=w.batch,
                always=True,
            )
        if self.implementation == "fa3":
            return parts_of(even_pieces(key_blocks, fa3_splits(key_blocks, down, hw)), w.batch)
        if self.implementation == "flashinfer":
            return parts_of(flashinfer_pieces(w.keys, down, tile, sms), w.batch)
        if self.implementation == "trtllm" and hw.arch == "sm100":
            splits = [trtllm_gen_splits(w, tile, sms)] * w.batch
            return parts_of(even_pieces(key_blocks, splits), w.batch)
        return cut_in_parts(key_blocks, max(1, sms // down))


def _range_by_range(pieces: list[list[Piece]], sequences: int, at_least: int) -> list[list[Piece]]:
    """The first range of each sequence, then the second, as Triton's grid has them.

    It is (sequences, blocks of heads, ranges), the first running fastest; a sequence without such a
    range has a part that does nothing. There are so many ranges `at_least`.
    """
    own: list[list[list[Piece]]] = [[] for _ in range(sequences)]
    for part in pieces:
        own[part[0][0]].append(part)
    ranges = max(at_least, max(map(len, own)))
    return [parts[n] if n < len(parts) else [] for n in range(ranges) for parts in own]


class _Latents:
    """Attention over the latent cache: its tensors, and the kernels that go through them."""

    def __init__(self, w: AttentionWorkload, latent_dim: int, cta: LatentCta, parts: Parts) -> None:
        self.w, self.latent_dim, self.cta, self.parts = w, latent_dim, cta, parts
        self.tile = tile = cta.tile
        self.width, self.rows = latent_dim + w.rope_dim, w.seq_q * w.heads
        partials = int(parts.splits.sum())
        self.pages = scattered(w.keys, tile.kv, PAGES_SEED)
        self.key_blocks = blocks(w.seq_kv, tile.kv)
        self.q = Tensor("Q", w.batch, self.rows, self.width, w.dtype_bytes, "input", "query")
        pool = (1, self.pages.pool_rows, self.width)
        self.cache = Tensor("C", *pool, w.dtype_bytes, "input", "cache")
        self.stored = self.cache
        if w.kv_dtype:
            self.stored = Tensor(f"C, {w.kv_dtype}", *pool, 1, "input", "cache")
            self.cache = Tensor("C", *pool, w.dtype_bytes, role="cache")
        self.whole = Result(
            Tensor("O", w.batch, self.rows, latent_dim, w.dtype_bytes, "output", "result"),
            Tensor("LSE", w.batch, self.rows, 1, STATISTICS_BYTES, "output", "statistics"),
        )
        self.partial = Result(
            Tensor(
                "O of splits", partials, self.rows, latent_dim, cta.partial_bytes, role="partial"
            ),
            Tensor("LSE of splits", partials, self.rows, 1, STATISTICS_BYTES, role="partial"),
        )

    def cast_kernel(self) -> Kernel:
        """The whole cache in the queries' dtype, as PyTorch casts a tensor."""
        rows = rows_of(self.cache)
        read, write = in_order(self.stored, rows), in_order(self.cache, rows)
        return elementwise("cast C", (read,), (write,), vector_ops=CAST_OPS * rows * self.width)

    def split_kernel(self) -> Kernel:
        """The kernel over all parts."""
        w, tile, latent_dim = self.w, self.tile, self.latent_dim
        last_rows = np.minimum(np.arange(tile.q, self.rows + tile.q, tile.q), self.rows) - 1
        tokens = (last_rows // w.heads).tolist()
        shown = [[one.visible_keys(0, token)[1] for token in tokens] for one in w.sequences]
        ctas = Ctas(self.parts, -(-np.array(shown, np.int64) // tile.kv))
        load_q = Load(Stream(self.q, tile.q, self.width, ctas.rows_of_sequence))
        buffers = 0 if self.cta.ops_a_copy else self.cta.buffers
        load_numbers, load_c = Load(self._numbers(ctas), buffers), Load(self._keys(ctas), buffers)
        loads = [load_numbers, load_c]
        if self.cta.loads_v:
            loads.append(Load(self._keys(ctas, latent_dim), buffers))
        q_bytes = tile.q * self.width * w.dtype_bytes

        return Kernel(
            name="mla",
            ctas=ctas.grid.size // self.parts.slots,
            loops=(
                begin("Q", load_q, trips=ctas.has_keys, sram_bytes=q_bytes),
                Loop(ctas.count, (*loads, *self._trip(*loads))),
                *ctas.stores(self.whole, self.partial, tile.q, self.cta.stores_sectors),
            ),
            footprint=self.cta.footprint(w),
            tensor_path=self.cta.tensor_path,
            items_per_cta=self.parts.slots,
            irregular=w.lengths is not None or self.parts.some_are_idle,
            splits=int(self.parts.splits.max()),
        )

    def _numbers(self, ctas: Ctas) -> Stream:
        """The sectors of the page table that have the numbers of each item's pages."""
        table, entries = self.pages.tensor, self.pages.entries_a_load(self.tile.kv)
        sectors = blocks(table.cols, entries)
        return Stream(
            table,
            1,
            entries,
            base=lambda items: ctas.sequence(items) * sectors,
            table=self.pages.sectors(self.tile.kv, self.key_blocks),
            start=ctas.first,
        )

    def _keys(self, ctas: Ctas, cols: int | None = None) -> Stream:
        """Each item's pages of the cache: whole rows, a CTA's part or the first `cols` elements."""
        shared_by = self.cta.shared_by
        cols = cols or blocks(self.width, shared_by)
        across = blocks(self.width, cols)
        return Stream(
            self.cache,
            self.tile.kv,
            cols,
            base=lambda items: ctas.row_block(items) % shared_by,
            table=self.pages.table.ravel() * across,
            start=lambda items: ctas.sequence(items) * self.key_blocks + ctas.first(items),
        )

    def _trip(
        self, load_numbers: Load, load_c: Load, *load_v: Load
    ) -> tuple[Barrier | Compute, ...]:
        """The matmuls and the softmax of one block of the cache.

        S is summed in as many steps as the CTA has it. A trip's buffers are free when O is summed
        or, where V has one of its own, all at once then. Of several buffers one is written while
        another is multiplied, in S and in O: half each.
        """
        tile, cta, element_bytes = self.tile, self.cta, self.w.dtype_bytes
        q_bytes = tile.q * self.width * element_bytes
        own_rows = tile.kv // cta.shared_by  # of its keys: a matmul reads the other CTAs' there
        c_bytes = own_rows * self.width * element_bytes
        v_bytes = own_rows * self.latent_dim * element_bytes
        arrives_late = c_bytes // 2 if cta.buffers > 1 else 0
        scores, outputs = tile.q * tile.kv * cta.scored_by, tile.q * self.latent_dim
        padding = max(1, cta.padded_rows // tile.q)
        steps = cta.sum_steps
        sum_a_step = Compute(
            "S = Q C^T",
            (load_numbers, load_c),
            mma_flops=2 * padding * scores * self.width // steps,
            sram_bytes=(cta.q_readers * q_bytes + (1 + cta.k_readers) * c_bytes - arrives_late)
            // steps,
        )
        return (
            *self._addressed(load_numbers, load_c, *load_v),
            *(replace(sum_a_step) for _ in range(steps)),
            Compute(
                "softmax",
                vector_ops=VECTOR_OPS_PER_SCORE * scores + outputs,
                exp_count=scores + tile.q,
                sram_bytes=2 * tile.q * tile.kv * element_bytes,  # P to the other warps
                latencies=1 + cta.softmax_waits,
            ),
            *self._turned(v_bytes),
            Compute(
                "O += P C",
                (load_c, *load_v),
                mma_flops=2 * padding * tile.q * tile.kv * self.latent_dim,
                sram_bytes=(len(load_v) + cta.v_readers) * v_bytes + arrives_late,
            ),
        )

    def _addressed(self, load_numbers: Load, *copied: Load) -> tuple[Barrier | Compute, ...]:
        """Page numbers, the addresses made of them and then the copies, where a CTA waits so."""
        if not self.cta.ops_a_copy:
            return ()
        copies = sum(load.stream.tile_bytes for load in copied) // COPY_BYTES
        addresses = Compute(
            "addresses",
            (load_numbers,),
            vector_ops=self.cta.ops_a_copy * copies,
            latencies=1 + self.cta.number_waits,
        )
        return Barrier((load_numbers,)), addresses, Barrier(copied)

    def _turned(self, v_bytes: int) -> tuple[Compute, ...]:
        """V read, turned and written again where the CTA does that."""
        if not self.cta.turns_v:
            return ()
        turned = v_bytes // self.w.dtype_bytes // TURNED_AT_ONCE
        return (Compute("turn V", vector_ops=turned, sram_bytes=2 * v_bytes),)

    def combine_kernel(self) -> Kernel:
        """A CTA for a few rows of a sequence; of one in a single part it ends at once."""
        return combine_of_parts(self.parts, self.whole, self.partial, self.cta.combining)
