"""Attention over a paged KV cache: the split-KV kernels of `flash_decoding` with a page table.

    for each KV head of each sequence, for each of `splits` ranges of its key blocks (one CTA):
        the loop of parts/paged_keys.py over the range
    combine the splits as `flash_decoding`

Several queries a sequence (chunks of a prompt over a cached prefix, drafts to verify, a whole
prompt) run the same kernel. vLLM's call (`varlen`: flash_api.cpp, mha_varlen_fwd) splits keys only
where it packs the query heads of a KV head as rows: of one query, of several heads a KV head, and
without a window (seqlenq_ngroups_swapped). Upstream's (`kvcache`: mha_fwd_kvcache) always may.

With `implementation` "flashinfer" it is FlashInfer's kernel (parts/flashinfer.py), which fits its
tile to the rows that the query heads of a KV head have, and splits the keys of any queries; where
its plan is for a `captured` graph, as frameworks decode by, all results are merged; with
"trtllm-gen" TensorRT-LLM's on Blackwell (parts/trtllm_gen.py), which does so too; with "xqa" it is
TensorRT-LLM's of one query elsewhere, one of two kernels (parts/xqa.py).

Source: vLLM's fork vllm-project/flash-attention, csrc/flash_attn/src: flash_fwd_kernel.h
(compute_attn_1rowblock_splitkv with block_table) and utils.h (resolve_thread_kv_page_slice_offset).
Pages: 16 tokens as vLLM's block_size; upstream FlashAttention-2 takes multiples of 256
(flash_api.cpp), FlashInfer any, often 1 or 16 (arXiv 2309.06180 evaluates 8 to 128, section 7.2).
"""

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload, Phase
from sim.schedules.base import check_arch
from sim.schedules.parts.combine_splits import Splits
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flashinfer import (
    PackedAttention,
    check_flashinfer,
    flashinfer_cta,
    range_tokens,
)
from sim.schedules.parts.instructions import FLASH2_PAGED_FIXED
from sim.schedules.parts.kv_cache import PageSize
from sim.schedules.parts.paged_keys import KeyRanges, loops_over_pages
from sim.schedules.parts.split_kv import SplitKeys, SplitKv, split_attention
from sim.schedules.parts.trtllm_gen import ClusterAttention, trtllm_gen_cta, trtllm_gen_range
from sim.schedules.parts.xqa import why_not
from sim.tile_program import IntArray, Kernel


class Paged(SplitKv):
    """Attention over a cache in pages of `page_size` tokens, split among CTAs for one query."""

    name: Literal["paged"] = "paged"
    implementation: Literal["cuda", "triton", "flashinfer", "trtllm-gen", "xqa"] = "cuda"  # type: ignore[assignment]
    call: Literal["varlen", "kvcache"] = "varlen"
    splits: Splits | None = None
    captured: bool = False
    phases: ClassVar[tuple[Phase, ...]] = ("prefill", "decode")
    reads_by_xqa = True
    takes = SplitKv.takes | {"append", "lengths", "query lengths", "tree"}
    page_size: PageSize = 16

    summary = "split-KV attention over a paged cache, by a page table"
    source = "vllm-project/flash-attention, csrc/flash_attn (block_table)"

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        if w.tree and self.implementation != "flashinfer":
            raise InputError(
                f'schedule paged: implementation = "{self.implementation}": workload.tree = true: '
                'its kernel has no mask of a tree; "flashinfer" has one'
            )
        if self.captured and self.implementation != "flashinfer":
            raise InputError(
                f'schedule paged: implementation = "{self.implementation}": captured = true: a '
                'captured graph changes the plan of "flashinfer" alone; leave it out'
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The split kernel and, of more than one split, the combine kernel."""
        if self.implementation == "flashinfer":
            return self._flashinfer(w, hw)
        if self.implementation == "trtllm-gen":
            return self._trtllm_gen(w, hw)
        if self.implementation == "xqa":
            self._check_xqa(w, hw)
        if w.differ_in_queries and (self.splits or 1) > 1:
            raise InputError(
                f"schedule paged: splits = {self.splits}: of lists of workload.seq_q "
                "FlashAttention-2's kernel has none (mha_varlen_fwd); splits = 1 was expected"
            )
        may_split = self._may_split(w) and not w.differ_in_queries
        keys = self.split(w, hw, self.splits or (None if may_split else 1))
        tile_kv = self._checked_tile_kv(keys.cta)
        loops = loops_over_pages(w, self.page_size, tile_kv, _ranges(keys), keys.loop)
        return split_attention("paged", keys, *loops).kernels

    def public_cta(self, w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
        """FlashAttention-2's kernel reads its pages' numbers on every trip."""
        cta = super().public_cta(w, hw)
        if self.implementation != "cuda":
            return cta
        return replace(cta, fixed_instructions=FLASH2_PAGED_FIXED)

    def _may_split(self, w: AttentionWorkload) -> bool:
        """Whether the call leaves the number of splits to the heuristic."""
        if self.implementation == "cuda" and self.call == "varlen":
            return self.packs(w) and w.heads > w.kv_heads
        return self.call == "kvcache" or w.seq_q == 1

    def _flashinfer(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        check_flashinfer('schedule paged: implementation = "flashinfer"', w)
        cta = self.cta(flashinfer_cta(w, hw), w, hw)
        self._checked_tile_kv(cta)
        tokens = range_tokens(w, hw, cta.tile.q, self.page_size, self.splits)
        attention = PackedAttention(w, cta, self.page_size, tokens, captured=self.captured)
        return attention.kernels(hw)

    def _trtllm_gen(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        check_arch(f'{self.name}: implementation = "trtllm-gen"', hw, "sm100")
        if w.dtype == "fp32" or w.kv_dtype:
            key, given = ("kv_dtype", w.kv_dtype) if w.kv_dtype else ("dtype", w.dtype)
            raise InputError(
                f'schedule paged: implementation = "trtllm-gen": workload.{key} = "{given}": Q, K '
                "and V of one dtype were expected (workload.dtype): fp16, bf16 or fp8"
            )
        cta = self.cta(trtllm_gen_cta(w), w, hw)
        self._checked_tile_kv(cta)
        tokens = trtllm_gen_range(w, hw, cta, self.splits)
        return ClusterAttention(w, cta, self.page_size, tokens).kernels(hw)

    def _check_xqa(self, w: AttentionWorkload, hw: HardwareProfile) -> None:
        where = 'schedule paged: implementation = "xqa": '
        if hw.arch not in ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120"):
            raise InputError(f"{where}{hw.name} is {hw.arch}: sm80 or newer was expected")
        own = (self.tile, self.warps, self.registers, self.stages, self.machine_code, self.rope)
        if own != (None,) * len(own) or self.pack_gqa is False:
            raise InputError(f"{where}it has one tile, and packs heads: leave these options out")
        why = why_not(w)
        if why:
            raise InputError(where + why)

    def _checked_tile_kv(self, cta: FlashCta) -> int:
        """Keys of a tile; raises InputError unless pages cut it evenly, or it them."""
        tile_kv = cta.tile.kv
        if tile_kv & (tile_kv - 1):
            raise InputError(f"schedule paged: tile.kv = {tile_kv}: a power of two was expected")
        return tile_kv


def _ranges(keys: SplitKeys) -> KeyRanges:
    """The ranges of key blocks as ranges of keys."""
    tile_kv, size, (first_block, end_block) = keys.cta.tile.kv, keys.range_blocks, keys.cut

    def number(items: IntArray) -> IntArray:
        return keys.grid.at(items)[1]

    def start(items: IntArray) -> IntArray:
        return first_block[keys.sequence(items)] + size * number(items)

    return KeyRanges(
        low=first_block * tile_kv,
        high=np.minimum(end_block * tile_kv, keys.w.keys),
        length=size * tile_kv,
        number=number,
        matrix=keys.matrix,
        first=lambda items: keys.ends(items)[0] - start(items),
        end=lambda items: keys.ends(items)[1] - start(items),
    )
