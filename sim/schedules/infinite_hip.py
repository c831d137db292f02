"""InfiniteHiP, decoding: the KV cache in host memory, a mask by stages, two caches on the GPU.

    for each token:
        for each stage i, every refresh_i tokens (stage 1 of all keys between sinks and window):
            cut the keys that the stage before kept in chunks of chunks_i keys
            fetch those of the keys below that the GPU's key cache lacks
            for each KV head of each sequence, for each 64 chunks (one CTA):
                load the query rows of all heads that share the KV head
                until a chunk is one key:
                    load the middle key of its left and of its right half; go on with the better
                store the chunks' best scores
            for each KV head of each sequence, keep the keep_i / chunks_i best (top_k.py)
        fetch those pages of the sinks, the kept chunks and the window that the GPU's cache lacks
        flash decoding over the pages, in 8 ranges, and a combine kernel

A page is a chunk of the last stage, aligned to pages from the start of the sequence. Source: Lee et
al. 2025 (arXiv 2502.08910): Section 4, Algorithms 1 to 4, and Appendix F for the stages;
DeepAuto-AI/hip-attention, v1_2: scan_stage.py (decode_chunk_controllable_sampling_mask_cuda; query
heads packed, which keys are loaded), attention_extend.py (chunks a CTA), attention_decode_bsa.py
(16 query rows x 16 keys, an eighth of the keys a range). No launch there names warps or stages, so
they are Triton's 4 and 3; registers are estimates.

There the kernels reach over PCIe for what misses, key by key; here a transfer before the kernel
brings it all at the link's sustained rate, which is a bound. In the paper the scores' maximum over
all heads decides, in the public code that over the query heads of a KV head; the bytes are the
same, and here all heads keep the same chunks.

What the stages keep depends on the data. The model here: a stage's refresh keeps each of its chunks
that the stage before still offers with probability `reuse`, and draws the rest evenly; likewise
with probability `reuse` a chunk's search ends at the key where it ended before. Both caches are LRU
and are replayed, from empty through refresh_1 tokens before the first that is simulated.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import model_validator

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import Count, CountOrNone, FractionBelowOne, show_binary
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Schedule, Tile, blocks, check_table
from sim.schedules.parts import registers
from sim.schedules.parts.elementwise import in_order
from sim.schedules.parts.ends import begin
from sim.schedules.parts.flash_cta import FlashCta, power_of_two
from sim.schedules.parts.flash_loop import Operand, key_loop
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.results import Attention
from sim.schedules.parts.split_kv import SplitKeys, split_attention
from sim.schedules.parts.top_k import INDEX_BYTES, top_k_kernel
from sim.tile_program import (
    Command,
    Compute,
    Footprint,
    IntArray,
    Kernel,
    Load,
    Loop,
    Role,
    Store,
    Stream,
    Tensor,
    Transfer,
    once,
)

CHUNKS_A_CTA = 64
KEYS_A_TRIP = 16  # the least that tensor cores take
RANGES = 8
SCORE_BYTES = 4
LOOK_UP = 16  # times what drawing an entry takes is what a cache takes to look one up


class InfiniteHip(Schedule):
    """Decoding with the cache in host memory and pruning in stages.

    Stage i cuts the keys in chunks of `chunks`[i] and keeps `keep`[i] keys, every `refresh`[i]
    tokens; `sinks` first and `keep_window` latest keys are always kept. On the GPU are
    `cache_tokens` keys and values for each KV head, and `mask_cache_tokens` keys that the stages
    read (defaults: the public launch for one 48 GB GPU, docs/USAGE.sglang.md). `reuse` is the
    model's share of what a refresh finds again; its default is fitted to Table 4, where attention
    after a refresh of the last stage, of two or of all hits 89, 68 and 51 to 59% (here 80, 69, 58).
    """

    name: Literal["infinite_hip"] = "infinite_hip"
    chunks: tuple[Count, ...] = (256, 32, 8)
    keep: tuple[Count, ...] = (32768, 8192, 2048)
    refresh: tuple[Count, ...] = (16, 8, 4)
    sinks: CountOrNone = 256
    keep_window: Count = 1024
    cache_tokens: Count = 5000
    mask_cache_tokens: Count = 64000
    reuse: FractionBelowOne = 0.6
    seed: CountOrNone = 0

    summary = "HiP in stages over a KV cache in host memory, with LRU caches on the GPU"
    source = "arXiv 2502.08910; DeepAuto-AI/hip-attention"
    phases = ("decode",)
    masks = ("full", "causal")

    @model_validator(mode="after")
    def _stages_fit(self) -> "InfiniteHip":
        if not len(self.chunks) == len(self.keep) == len(self.refresh) > 0:
            raise ValueError("chunks, keep and refresh have an entry for each stage")
        if any(size & (size - 1) for size in self.chunks) or min(self.chunks) < 2:
            raise ValueError(f"chunks = {list(self.chunks)}: powers of two from 2 on")
        for i in range(len(self.chunks)):
            if self.keep[i] % self.chunks[i]:
                raise ValueError(f"keep[{i}] = {self.keep[i]}: whole chunks of {self.chunks[i]}")
            if i and self.chunks[i - 1] <= self.chunks[i]:
                raise ValueError(f"chunks = {list(self.chunks)}: each below the one before")
            if i and self.refresh[i - 1] % self.refresh[i]:
                raise ValueError(f"refresh = {list(self.refresh)}: each divides the one before")
        if self.cache_tokens < self.page:
            raise ValueError(f"cache_tokens = {self.cache_tokens}: at least {self.page}, a page")
        return self

    @property
    def page(self) -> int:
        """Tokens of a page: a chunk of the last stage."""
        return self.chunks[-1]

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The kernels of the first token, which refreshes every stage."""
        commands = self.commands(replace(w, tokens=1), hw)
        return [command.work for command in commands if isinstance(command.work, Kernel)]

    def commands(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """Of each token the stages that are due, the attention, and before each what it fetches."""
        gpu = _Gpu(self, w, hw)
        commands: list[Command] = []

        def run(accessed: "Accessed", what: str, bytes_each: int, kernels: list[Kernel]) -> None:
            waits: tuple[Command, ...] = ()
            if accessed.misses:
                name = f"fetch {accessed.misses} of {accessed.touched} {what}"
                moved = accessed.misses * gpu.matrices * bytes_each
                fetch = Transfer(name, moved, to=0, from_host=True)
                waits = (Command(fetch, after=tuple(commands[-1:])),)
            commands.extend([*waits, Command(kernels[0], after=waits), *map(Command, kernels[1:])])

        for token in self.replay(w):
            q, attention = gpu.attention(token.pages)
            for stage, keys in token.stages.items():
                run(keys, f"keys, stage {stage + 1}", gpu.row_bytes, gpu.stage(stage, keys, q))
            run(token.pages, "pages", 2 * self.page * gpu.row_bytes, attention.kernels)
        return commands

    def replay(self, w: AttentionWorkload) -> "Iterator[Token]":
        """What each token touches and what of it misses, replayed over the tokens."""
        page = self.page
        end = blocks(w.seq_kv, page)
        low = min(blocks(self.sinks, page), end)
        high = max(low, (w.seq_kv - min(self.keep_window, w.seq_kv)) // page)
        searches = 1 + blocks(w.tokens, self.refresh[0])
        looked_up = blocks(w.seq_kv, self.chunks[0]) * 2 * self.chunks[0].bit_length() * searches
        check_table(self.name, LOOK_UP * looked_up)
        rng = np.random.default_rng(self.seed)
        stages = [
            _Stage(size, kept // size, low * page, high * page, self.reuse, rng)
            for size, kept in zip(self.chunks, self.keep, strict=True)
        ]
        keys_cached, pages_cached = Lru(self.mask_cache_tokens), Lru(self.cache_tokens // page)
        fixed = np.concatenate([np.arange(low), np.arange(high, end)])
        for number in range(-self.refresh[0], w.tokens):
            accessed: dict[int, Accessed] = {}
            kept, size = np.zeros(1, np.int64), stages[0].span  # one chunk of all there is
            for i, stage in enumerate(stages):
                if number % self.refresh[i] == 0:
                    candidates = stage.cut(kept, size)
                    if len(candidates) > stage.most:
                        accessed[i] = keys_cached.touch(stage.searched(candidates))
                    stage.choose(candidates)
                kept, size = stage.kept, stage.size
            pages = pages_cached.touch(np.concatenate([fixed, low + kept]))
            if number >= 0:
                yield Token(accessed, pages)


@dataclass(frozen=True)
class Accessed:
    """Where in a cache each access finds what it asks for; how many it asks for, and misses.

    `slots` has the shape of what was asked for.
    """

    slots: IntArray
    touched: int
    misses: int


@dataclass(frozen=True)
class Token:
    """The keys that each stage which is due reads, shape (loads, chunks), and the pages."""

    stages: dict[int, Accessed]
    pages: Accessed


class Lru:
    """A cache of `capacity` slots; who was asked for longest ago makes room."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.slot: OrderedDict[int, int] = OrderedDict()

    def touch(self, asked: IntArray) -> Accessed:
        """Bring in what is asked for, each once, in ascending order."""
        distinct, where = np.unique(asked, return_inverse=True)
        slots = np.empty(len(distinct), np.int64)
        misses = 0
        for n, one in enumerate(distinct.tolist()):
            if one in self.slot:
                self.slot.move_to_end(one)
            else:
                misses += 1
                full = len(self.slot) == self.capacity
                self.slot[one] = self.slot.popitem(last=False)[1] if full else len(self.slot)
            slots[n] = self.slot[one]
        return Accessed(slots[where].reshape(asked.shape), len(distinct), misses)


@dataclass
class _Stage:
    """A pruning stage and the model of what it finds. Keys low to high - 1 are searched.

    Chunks of `size` keys are numbered from `low` on; `kept` are those kept, ascending, at most
    `most`.
    """

    size: int
    most: int
    low: int
    high: int
    reuse: float
    rng: np.random.Generator
    kept: IntArray = field(init=False)
    leaf: IntArray = field(init=False)

    def __post_init__(self) -> None:
        self.kept = np.empty(0, np.int64)
        self.leaf = self.rng.integers(0, self.size, blocks(self.span, self.size))

    @property
    def span(self) -> int:
        """How many keys are searched."""
        return self.high - self.low

    def cut(self, kept: IntArray, size: int) -> IntArray:
        """The chunks that make up those of `size` keys that the stage before kept."""
        parts = kept[:, None] * size // self.size + np.arange(blocks(size, self.size))
        return parts[parts < len(self.leaf)]

    def choose(self, candidates: IntArray) -> None:
        """Keep the best of the candidates, by the model."""
        if len(candidates) <= self.most:
            self.kept = candidates
            return
        still = np.isin(candidates, self.kept) & (self.rng.random(len(candidates)) < self.reuse)
        others = np.flatnonzero(~still)
        still[self.rng.permutation(others)[: self.most - int(still.sum())]] = True
        self.kept = candidates[still]

    def searched(self, candidates: IntArray) -> IntArray:
        """The keys that the searches in the chunks load, in order: shape (loads, chunks)."""
        moved = candidates[self.rng.random(len(candidates)) >= self.reuse]
        self.leaf[moved] = self.rng.integers(0, self.size, len(moved))
        leaf = self.leaf[candidates]
        loads = []
        size = self.size
        while size > 1:
            start = self.low + candidates * self.size + leaf // size * size
            loads += [start + size // 4, start + size // 2 + size // 4]
            size //= 2
        return np.minimum(np.stack(loads), self.high - 1)


class _Gpu:
    """The kernels, and the caches that they read."""

    def __init__(self, schedule: InfiniteHip, w: AttentionWorkload, hw: HardwareProfile) -> None:
        self.schedule, self.w = schedule, w
        self.matrices, self.rows = w.batch * w.kv_heads, w.heads // w.kv_heads
        self.row_bytes = w.head_dim * w.dtype_bytes
        self.slots = schedule.cache_tokens // schedule.page
        tile = Tile(q=16 * blocks(self.rows, 16), kv=max(16, schedule.page))
        self.cta = FlashCta(
            tile,
            warps=4,
            stages=3,
            tensor_path="native",
            registers_per_thread=registers.triton_flash(tile, power_of_two(w.head_dim), 4),
            kv_readers=1 if hw.matmul_by_warp_group else 4,
            head_dim_of=power_of_two,
        )
        if self.cta.sram_bytes(w) > hw.sram.max_per_cta:
            raise InputError(
                f"schedule {schedule.name}: chunks = {list(schedule.chunks)}: pages of the last "
                f"size need {show_binary(self.cta.sram_bytes(w))} of SRAM, {hw.name} has "
                f"{show_binary(hw.sram.max_per_cta)} a CTA"
            )
        self.keys = self._cache("mask K", schedule.mask_cache_tokens, "other")
        self.k = self._cache("K", self.slots * schedule.page, "key")
        self.v = self._cache("V", self.slots * schedule.page, "value")

    def _cache(self, name: str, rows: int, role: Role) -> Tensor:
        """`rows` tokens of each KV head of each sequence."""
        shape = (self.matrices, rows, self.w.head_dim)
        return Tensor(f"{name} cache", *shape, self.w.dtype_bytes, "input", role)

    def attention(self, pages: Accessed) -> tuple[Tensor, Attention]:
        """Flash decoding over the pages, tiles of them made whole by the last one again; its Q."""
        a_tile = self.cta.tile.kv // self.schedule.page
        tiles = blocks(len(pages.slots), a_tile)
        slots = np.pad(pages.slots, (0, tiles * a_tile - len(pages.slots)), "edge")
        table = slots.reshape(tiles, a_tile)
        whole = (np.zeros(self.w.batch, np.int64), np.full(self.w.batch, tiles))
        splits = blocks(tiles, blocks(tiles, RANGES))
        keys = SplitKeys(self.w, self.cta, whole, whole, splits)

        def operand(cache: Tensor) -> Operand:
            return Operand(
                tuple(
                    Stream(
                        cache,
                        self.schedule.page,
                        self.w.head_dim,
                        lambda items: keys.matrix(items) * self.slots,
                        table=table[:, n],
                        start=lambda items: keys.ends(items)[0],
                    )
                    for n in range(a_tile)
                )
            )

        q_bytes = self.rows * self.row_bytes
        loop = key_loop(self.w, self.cta, keys.trips, q_bytes, operand(self.k), operand(self.v))
        return keys.q, split_attention("block sparse attention", keys, loop)

    def stage(self, number: int, keys: Accessed, q: Tensor) -> list[Kernel]:
        """The kernel that scores a stage's chunks, and the one that keeps the best."""
        chunks = keys.slots.shape[1]
        scores = Tensor(f"scores {number + 1}", self.matrices, 1, chunks, SCORE_BYTES)
        most = self.schedule.keep[number] // self.schedule.chunks[number]
        kept = Tensor(f"chunks kept {number + 1}", self.matrices, 1, most, INDEX_BYTES)
        choose = top_k_kernel(f"keep chunks, stage {number + 1}", scores, kept)
        return [self._score(number, keys, q, scores), choose]

    def _score(self, number: int, keys: Accessed, q: Tensor, scores: Tensor) -> Kernel:
        w, tile_q = self.w, self.cta.tile.q
        table, trips = _trips_of(keys.slots)
        starts = np.cumsum(trips) - trips
        grid = Grid(len(trips), self.matrices)  # groups of chunks, matrices

        def matrix(items: IntArray) -> IntArray:
            return grid.at(items)[1]

        load_q = Load(Stream(q, tile_q, w.head_dim, matrix))
        load_keys = tuple(
            Load(
                Stream(
                    self.keys,
                    1,
                    w.head_dim,
                    lambda items: matrix(items) * self.keys.rows,
                    table=table[:, n],
                    start=lambda items: starts[grid.at(items)[0]],
                ),
                CHUNKS_A_CTA // KEYS_A_TRIP,
            )
            for n in range(KEYS_A_TRIP)
        )
        pairs, key_bytes = tile_q * KEYS_A_TRIP, KEYS_A_TRIP * self.row_bytes
        q_bytes = tile_q * self.row_bytes
        score = Compute(
            "score the halves of chunks",
            load_keys,
            mma_flops=2 * pairs * w.head_dim,
            vector_ops=pairs,  # their maximum over query rows
            sram_bytes=2 * key_bytes + q_bytes,
        )
        return Kernel(
            name=f"score chunks, stage {number + 1}",
            ctas=grid.size,
            periods=self.matrices,
            loops=(
                begin("Q", load_q, sram_bytes=q_bytes),
                Loop(lambda items: trips[grid.at(items)[0]], (*load_keys, score)),
                Loop(once, (Store(in_order(scores, 1, CHUNKS_A_CTA)),)),
            ),
            footprint=Footprint(q_bytes + CHUNKS_A_CTA * self.row_bytes, 128, registers.HIP_SCORES),
        )


def _trips_of(slots: IntArray) -> tuple[IntArray, IntArray]:
    """What the trips load, shape (trips, KEYS_A_TRIP), and how many trips each CTA makes.

    `slots` are those of the keys that the searches load, shape (loads, chunks). A CTA makes the
    loads of CHUNKS_A_CTA chunks in order, the last one again until its trips are whole.
    """
    edges = np.arange(CHUNKS_A_CTA, slots.shape[1], CHUNKS_A_CTA)
    loads = [part.ravel() for part in np.split(slots, edges, 1)]
    trips = [blocks(len(part), KEYS_A_TRIP) for part in loads]
    whole = [
        np.pad(part, (0, KEYS_A_TRIP * count - len(part)), "edge")
        for part, count in zip(loads, trips, strict=True)
    ]
    return np.concatenate(whole).reshape(-1, KEYS_A_TRIP), np.array(trips, np.int64)
