"""How a CTA of FlashAttention-3 works: its tile, what the mask decides, and what it takes.

Source: Dao-AILab/flash-attention, hopper/: tile_size.h, mainloop_fwd_sm90_tma_gmma_ws.hpp,
flash_fwd_launch_template.h (2 stages, clusters), flash_fwd_kernel_sm90.h (SRAM, registers),
heuristics.h (PackGQA, num_splits_heuristic), flash_api.cpp (get_pack_gqa, get_pagedkv_tma,
get_num_splits); vllm-project/flash-attention, hopper/heuristics.h (use_one_mma_wg), which
sgl-project/sgl-flash-attn took over (pull request 34), for windows too (37: 64 rows in place of
192), and in 8 bits, as the kernels of sglang-kernel 0.4.4's wheel have it. TensorRT-LLM's kernel,
fmha_v2: see flash3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from sim.inputs.workload import AttentionWorkload, Mask
from sim.schedules.base import Tile, blocks
from sim.schedules.parts import registers
from sim.schedules.parts.combine import fewest_filling
from sim.schedules.parts.public_tiles import (
    FLASH3,
    FLASH3_192_128,
    FLASH3_192_128_PAGED,
    FLASH3_FORKS_64,
    FLASH3_PAGED,
    FLASH3_TWO_LEVEL,
    FMHA_V2,
    FMHA_V2_192_128,
)
from sim.schedules.parts.query_rows import O_ELEMENT_BYTES
from sim.tile_program import Footprint

WORKER_ROWS = 64  # of a warp group: wgmma is of 64 rows
MOST_WORKERS = 3
Q_SIDES = tuple(WORKER_ROWS * n for n in range(1, MOST_WORKERS + 1))
HEAD_DIMS = tuple(sorted({head_dim for head_dim, _ in FLASH3}))
OWN_VALUE_DIMS = {192: 128}  # columns of V beside such a K's (flash_api.cpp, mha_fwd)
STAGES = 2
PRODUCER_THREADS = 128
# Of vLLM's fork and SGLang's, by head_dim and bytes of an element, where they are not those of two
# workers.
ONE_WORKER_KEYS = {(64, 2): 192, (64, 1): 128, (128, 1): 96}
# Of sequences of one length; of any lengths; of any, whose K and V lie in pages smaller than a key
# block, as servers call it.
Call = Literal["batch", "varlen", "paged"]
Implementation = Literal["fa3", "vllm", "sglang", "trtllm"]
# Of heuristics.h, num_splits_heuristic.
MOST_SPLITS = 128
MOST_PLANNED, SPLIT_MARGIN = 992, 1.1  # flash_prepare_scheduler.cu
# vLLM 0.24: config/attention.py (flash_attn_max_num_splits_for_cuda_graph), config/vllm.py
# (max_cudagraph_capture_size), v1/attention/backends/flash_attn.py (max_num_splits).
CAPTURED_SPLITS, CAPTURED_TOKENS = 32, 512
UNSPLIT_BLOCKS = 4
SPLIT_L2_BYTES = 50 * 2**20


@dataclass(frozen=True)
class Flash3Cta:
    """How a CTA works: its tile, for a kernel of `head_dim`, and what the mask decides."""

    w: AttentionWorkload
    tile: Tile
    packed: int  # query heads that are rows of one matrix
    call: Call
    splits: int = 1  # of the keys
    implementation: Implementation = "fa3"

    @property
    def in_order(self) -> bool:
        """Whether a warp group waits for each matmul before it goes on (no IntraWGOverlap)."""
        narrow = self.head_dim == 64 and self.w.dtype_bytes == 2
        of_vllm = self.implementation == "vllm" and self.w.mask == "window"
        return self.implementation == "trtllm" or (of_vllm and narrow)

    @property
    def from_first_key(self) -> bool:
        """Whether key blocks are counted from the first key that a tile sees.

        vLLM's block.h (n_offset); sgl-project/sgl-flash-attn, pull request 37.
        """
        return self.implementation in ("vllm", "sglang") and self.w.mask == "window"

    @property
    def of_one_length(self) -> bool:
        """Whether the kernel knows the one length of all sequences."""
        return self.call == "batch" and self.implementation != "trtllm"

    @property
    def copies(self) -> bool:
        """Whether the producer's threads copy K and V, where no TMA does."""
        return self.call == "paged" and self.implementation != "trtllm"

    @property
    def sorted_masks(self) -> tuple[Mask, ...]:
        """Under which masks the longest tiles come first."""
        return ("causal",) if self.implementation == "trtllm" else ("causal", "window")

    @property
    def adds_apart(self) -> bool:
        """Whether P V is summed apart, waited for and then added to O."""
        return self.implementation == "vllm" and self.w.dtype_bytes == 1

    @property
    def takes_turns(self) -> bool:
        """Whether its warp groups multiply in turns, where each waits (UseSchedulerBarrier)."""
        return self.adds_apart and self.workers > 1 and self.head_dim >= 128

    @property
    def scores_a_thread(self) -> int:
        """Of a key block, of a warp group's 64 rows."""
        return self.tile.kv // 2

    @property
    def head_dim(self) -> int:
        """Of the kernel that runs: the next larger one, its tiles filled up with zeros."""
        return kernel_head_dim(self.w)

    @property
    def value_dim(self) -> int:
        """Of V and O: of its own where that is compiled, else as of K."""
        return value_dim(self.w)

    @property
    def workers(self) -> int:
        """Consumer warp groups."""
        return self.tile.q // WORKER_ROWS

    @property
    def p_in_sram(self) -> bool:
        """Whether P V reads P from SRAM, not from registers (MmaPV_is_RS)."""
        if self.w.dtype_bytes == 1 or self.in_order:
            return False
        if self.head_dim != 64:
            return self.head_dim == 96
        by_fork = {"vllm": "full", "sglang": "window"}
        if self.workers == 1 and self.implementation in by_fork:
            return False
        upstream = self.w.mask == "full" and self.call != "paged"
        return upstream or self.w.mask == by_fork.get(self.implementation)

    @property
    def begins_beside_pv(self) -> bool:
        """Whether the first exponentials of a trip run beside P V: as compiled not from pages.

        Not where all sequences have one length: `calibration.sm.async_issue_cycles` was fitted to
        that kernel as it was released in July 2024.
        """
        overlapped = not (self.in_order or self.adds_apart or self.of_one_length)
        return overlapped and not (self.copies or self.p_in_sram)

    @property
    def rescales_first(self) -> bool:
        """Whether O is rescaled before P V is issued, while Q K^T runs (RescaleOBeforeGemm)."""
        return self.head_dim > 128 and self.w.dtype_bytes == 2 and not self.in_order

    @property
    def shared_by(self) -> int:
        """CTAs of a cluster, which load a key block together and multicast it."""
        wide = self.head_dim >= 128 if self.w.dtype_bytes == 2 else self.head_dim == 192
        down = blocks(self.w.seq_q * self.packed, self.tile.q)
        alike = self.of_one_length and self.w.mask == "full" and self.splits == 1
        return 2 if wide and alike and down % 2 == 0 else 1

    @property
    def sram_bytes(self) -> int:
        """Q, the stages of K and V (V twice where it is transposed), P; O takes V's place."""
        element, d, d_v, tile = self.w.dtype_bytes, self.head_dim, self.value_dim, self.tile
        k, v = (STAGES * tile.kv * cols * element for cols in (d, d_v))
        transposed = v if element == 1 else 0
        p = tile.q * tile.kv * element if self.p_in_sram else 0
        beyond_v = max(0, tile.q * d_v * O_ELEMENT_BYTES - v)
        return tile.q * d * element + k + v + transposed + p + beyond_v

    @property
    def footprint(self) -> Footprint:
        """What a CTA takes of its SM."""
        threads = PRODUCER_THREADS + 128 * self.workers
        return Footprint(self.sram_bytes, threads, registers.FLASH3[self.workers], PRODUCER_THREADS)


def kernel_head_dim(w: AttentionWorkload) -> int:
    """The head_dim of the kernel that runs (flash_api.cpp, round_up_headdim)."""
    return next(d for d in HEAD_DIMS if w.head_dim <= d)


def value_dim(w: AttentionWorkload) -> int:
    """V's columns in the kernel that runs (flash_api.cpp, round_up_headdimv)."""
    return kernel_head_dim(w) if w.value_dim is None else OWN_VALUE_DIMS[kernel_head_dim(w)]


def public_tile(
    w: AttentionWorkload, call: Call, packs: bool = False, implementation: Implementation = "fa3"
) -> tuple[Tile, int]:
    """The public kernel's tile, and how many query heads are rows of one matrix (PackGQA).

    All of a KV head are if it `packs` in any case, as with splits, and unless called on a batch.
    """
    head_dim = kernel_head_dim(w)
    if implementation == "trtllm":
        q, kv = FMHA_V2_192_128 if w.value_dim is not None else FMHA_V2[head_dim, w.dtype_bytes]
        return Tile(q=q, kv=kv), 1
    by_mask = (FLASH3_PAGED if call == "paged" else FLASH3)[head_dim, w.dtype_bytes]
    if implementation == "vllm" and w.dtype_bytes == 1:
        by_mask = FLASH3_TWO_LEVEL[head_dim]
    if w.value_dim is not None and w.dtype_bytes == 2:
        by_mask = FLASH3_192_128_PAGED if call == "paged" else FLASH3_192_128
    q, kv = by_mask[w.mask]
    if (head_dim, w.dtype_bytes) == (64, 2) and (call == "paged" or w.mask == "window"):
        q, kv = FLASH3_FORKS_64.get((implementation, w.mask), (q, kv))
    packs |= call != "batch"
    packed = w.heads // w.kv_heads if packs else packed_heads(w, q)
    by_fork = {"vllm": w.mask != "window", "sglang": True}  # use_one_mma_wg
    alone = w.head_dim in (64, 128) and w.seq_q * packed <= WORKER_ROWS
    if alone and by_fork.get(implementation, False):
        q, kv = WORKER_ROWS, ONE_WORKER_KEYS.get((w.head_dim, w.dtype_bytes), kv)
    return Tile(q=q, kv=kv), packed


def public_splits(
    w: AttentionWorkload, call: Call, sms: int, implementation: Implementation
) -> tuple[int, ...]:
    """Ranges that the keys of each sequence are split in.

    On a batch as many for all (flash_api.cpp, get_num_splits). Of sequences of any lengths that
    says, as of the longest alone, how many at most (`planned_splits`).
    """
    if call == "batch":
        return (most_splits(w, call, sms, implementation),) * w.batch
    most = most_of_any(w, call, sms, implementation)
    tile, packed = public_tile(w, call, packs=True, implementation=implementation)
    key_blocks = [blocks(keys, tile.kv) for keys in w.keys]
    down = [blocks(queries * packed, tile.q) for queries in w.queries]
    return planned_splits(key_blocks, down, w.kv_heads, most, sms)


def most_of_any(w: AttentionWorkload, call: Call, sms: int, implementation: Implementation) -> int:
    """Ranges that a call on sequences of any lengths has room for: as of the longest alone.

    Of very many none is split (flash_prepare_scheduler.cu). vLLM captures steps of decoding as
    graphs, in which any lengths are to find room.
    """
    if w.batch > MOST_PLANNED:
        return 1
    captured = w.phase == "decode" and sum(w.queries) <= CAPTURED_TOKENS
    if implementation == "vllm" and captured:
        return CAPTURED_SPLITS
    return most_splits(replace(w, batch=1, lengths=None), call, sms, implementation)


def planned_splits(
    key_blocks: Sequence[int], row_blocks: Sequence[int], heads: int, most: int, sms: int
) -> tuple[int, ...]:
    """Ranges of each sequence, `most` at most, of so many blocks of keys and rows for each head.

    As many as all have equally many key blocks an SM, with a margin of 10%; of very many sequences
    none is split (flash_prepare_scheduler.cu).
    """
    if len(key_blocks) > MOST_PLANNED:
        return (1,) * len(key_blocks)
    total = sum(rows * keys for rows, keys in zip(row_blocks, key_blocks, strict=True))
    blocks_an_sm = ceil(total * SPLIT_MARGIN * heads / sms)
    return tuple(max(1, min(blocks(keys, blocks_an_sm), most)) for keys in key_blocks)


def most_splits(w: AttentionWorkload, call: Call, sms: int, implementation: Implementation) -> int:
    """Ranges that the keys of each block of rows are split in (heuristics.h, num_splits_heuristic).

    Of more than fill 80% of the SMs none is split, but where K and V of a head exceed the L2.
    """
    tile, packed = public_tile(w, call, packs=True, implementation=implementation)
    down = blocks(w.seq_q * packed, tile.q)
    loaded = w.seq_kv if w.window is None else min(w.seq_kv, w.window + tile.q)
    key_blocks = blocks(loaded, tile.kv)
    tiles = w.batch * w.kv_heads * down
    head_bytes = w.seq_kv * (w.head_dim + w.value_columns) * w.dtype_bytes
    if _fill(tiles, sms) and head_bytes > SPLIT_L2_BYTES and down >= 2 * sms and w.mask == "full":
        return min(blocks(head_bytes, SPLIT_L2_BYTES), MOST_SPLITS)
    return splits_to_fill(tiles, key_blocks, sms)


def splits_to_fill(tiles: int, key_blocks: int, sms: int) -> int:
    """Ranges of each tile's key blocks that fill the SMs: none of so many that do, or of few."""
    if _fill(tiles, sms) or key_blocks <= UNSPLIT_BLOCKS:
        return 1
    return fewest_filling(range(1, min(MOST_SPLITS, sms, key_blocks) + 1), tiles, sms)


def _fill(tiles: int, sms: int) -> bool:
    return tiles >= 0.8 * sms


def packed_heads(w: AttentionWorkload, q: int) -> int:
    """heuristics.h, should_pack_gqa: where blocks of q rows are filled better by more than 10%."""
    group = w.heads // w.kv_heads

    def filled(rows: int) -> float:
        return rows / (blocks(rows, q) * q)

    return group if filled(w.seq_q) < 0.9 * filled(w.seq_q * group) else 1
