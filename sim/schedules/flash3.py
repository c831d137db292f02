"""FlashAttention-3, forward on Hopper.

    each persistent CTA: a producer warp group that loads by TMA, and a worker (consumer warp group)
    for every 64 of the tile.q query rows; for each block of query rows that it is given:
        load Q_i;  S_n = Q_i K_n^T;  P_n = softmax of S_n
        for each key block j = n-1 .. 1 that the mask shows, last to first:
            S_j = Q_i K_j^T                              (wgmma, waited for)
            O_i += P_j+1 V_j+1  while  P_j = online softmax of S_j
            convert P_j;  rescale O_i
        O_i += P_1 V_1;  O_i = O_i / l_i;  store O_i through SRAM by TMA, and the log-sum-exp

A worker's softmax runs while the tensor pipe serves its own second matmul and the other workers'
matmuls: the paper's overlap within a warp group, and its ping-pong between them. Where the public
kernel has no overlap within (a window at head_dim 64) each trip is S, softmax, O.

Source: Shah et al. 2024 (arXiv 2407.08608), Algorithm 2; Dao-AILab/flash-attention, hopper/:
tile_size.h (tile_size_fwd_sm90), mainloop_fwd_sm90_tma_gmma_ws.hpp (mma, RescaleOBeforeGemm),
flash_fwd_launch_template.h (2 stages, clusters), flash_fwd_kernel_sm90.h (SRAM, registers),
tile_scheduler.hpp, heuristics.h (PackGQA, one consumer warp group).

What differs: a CTA's next block of query rows is loaded when the one before is done, where the
producer runs ahead; K_n and V_1 have buffers of their own besides the two stages; keys are not
split for decoding (num_splits = 1); masking costs nothing.
"""

from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heapreplace
from sys import maxsize
from typing import ClassVar, Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload, Mask, Phase
from sim.schedules.base import STATISTICS_BYTES, SramBytes, Tile, TiledSchedule, blocks, kv_matrix
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
)

WORKER_ROWS = 64  # of a warp group: wgmma is of 64 rows
MOST_WORKERS = 3
STAGES = 2
O_ELEMENT_BYTES = 2  # O of fp8 inputs is bf16
PRODUCER_THREADS = 128
# What ptxas may give each thread of 256, 384 or 512 of an SM's 65,536 (__launch_bounds__); the
# kernel then deals them anew (setmaxnreg: 24 to 56 a producer thread, 160 to 256 a consumer's).
REGISTERS = {1: 255, 2: 168, 3: 128}
# fp32 lane operations a score: maximum, scale and subtract (one FMA), sum; and conversion of P
# once O += P V is done (softmax.h; convert_type_out in the main loop).
SOFTMAX_OPS, CONVERT_OPS = 3, 1
L2_SECTION_BYTES = 32 * 2**20  # of K and V (tile_scheduler.hpp, DynamicPersistentTileScheduler)

# tile_size_fwd_sm90: (query rows, keys) without mask, causal, with a window; by head_dim of the
# kernel that runs, and bytes an element.
_TILES: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {
    (64, 2): ((192, 192), (192, 128), (192, 160)),
    (96, 2): ((192, 144), (192, 144), (192, 128)),
    (128, 2): ((128, 176), (128, 128), (128, 128)),
    (192, 2): ((128, 112), (128, 112), (128, 96)),
    (256, 2): ((128, 80), (128, 80), (128, 64)),
    (64, 1): ((192, 160), (192, 160), (192, 160)),
    (96, 1): ((192, 128), (192, 128), (192, 128)),
    (128, 1): ((128, 224), (128, 224), (128, 224)),
    (192, 1): ((128, 160), (128, 160), (128, 160)),
    (256, 1): ((128, 128), (128, 128), (128, 64)),
}
_HEAD_DIMS = (64, 96, 128, 192, 256)
_MASKS: tuple[Mask, ...] = ("full", "causal", "window")
_ONE_WORKER_KEYS_FP8 = 96  # of head_dim 128


@dataclass(frozen=True)
class QueryRows:
    """The query rows as a kernel cuts them, and the key blocks that each block of them visits.

    With `packed` > 1 (PackGQA) so many query heads, those of a KV head, are rows of one matrix,
    the heads of a query together. Tiles are numbered block by block, then head, then sequence.
    """

    w: AttentionWorkload
    tile: Tile
    packed: int

    @property
    def matrices(self) -> int:
        """Matrices of query rows."""
        return self.w.batch * self.w.heads // self.packed

    @property
    def rows(self) -> int:
        """Query rows of a matrix."""
        return self.w.seq_q * self.packed

    @property
    def down(self) -> int:
        """Blocks of query rows of a matrix."""
        return blocks(self.rows, self.tile.q)

    @property
    def tiles(self) -> int:
        """Blocks of query rows of all matrices."""
        return self.matrices * self.down

    @cached_property
    def visited(self) -> tuple[IntArray, IntArray]:
        """For each block of a matrix, the first key block that the mask shows and the end."""
        top = range(0, self.rows, self.tile.q)
        ranges = [
            self.w.visible_keys(
                row // self.packed, (min(row + self.tile.q, self.rows) - 1) // self.packed
            )
            for row in top
        ]
        low, high = np.array(ranges, np.int64).T
        return low // self.tile.kv, -(-high // self.tile.kv)

    def key_blocks(self, tiles: IntArray) -> IntArray:
        """How many key blocks each of these tiles visits."""
        first, end = self.visited
        trips: IntArray = np.maximum(end - first, 0)
        return trips[tiles % self.down]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Q, K, V, O and the log-sum-exp in HBM."""
        w, matrices, rows = self.w, self.matrices, self.rows
        kv_matrices = w.batch * w.kv_heads
        return (
            Tensor("Q", matrices, rows, w.head_dim, w.dtype_bytes, "input", "query"),
            Tensor("K", kv_matrices, w.seq_kv, w.head_dim, w.dtype_bytes, "input", "key"),
            Tensor("V", kv_matrices, w.seq_kv, w.head_dim, w.dtype_bytes, "input", "value"),
            Tensor("O", matrices, rows, w.head_dim, O_ELEMENT_BYTES, "output", "result"),
            Tensor("LSE", matrices, rows, 1, STATISTICS_BYTES, "output", "statistics"),
        )

    def keys_of(self, tensor: Tensor, tiles: OfItem, behind_last: int, shared_by: int) -> Stream:
        """K's or V's blocks that each item's tile visits, from so many before the last on.

        A block that a cluster of CTAs shares comes in as many parts, one by each: here by columns.
        """
        across = blocks(self.w.seq_kv, self.tile.kv)

        def part(items: IntArray) -> IntArray:
            tile = tiles(items)
            matrix = kv_matrix(self.w, tile // self.down * self.packed)
            block = matrix * across + self.visited[1][tile % self.down] - 1 - behind_last
            return block * shared_by + tile % shared_by

        cols = blocks(self.w.head_dim, shared_by)
        return Stream(tensor, self.tile.kv, cols, part, -shared_by)


def longest_first(rows: QueryRows, section: int) -> IntArray:
    """All tiles, `section` matrices after the other, in each the longest blocks of all first."""
    tile = np.arange(rows.tiles, dtype=np.int64)
    matrix, block = tile // rows.down, tile % rows.down
    return np.lexsort((matrix, -block, matrix // section))


def section_of(rows: QueryRows, l2_bytes: int) -> int:
    """Matrices whose K and V fit so much L2, a power of two of KV heads (tile_scheduler.hpp)."""
    w = rows.w
    fitting = l2_bytes // (2 * w.seq_kv * w.head_dim * w.dtype_bytes)
    heads = 1 << (fitting.bit_length() - 1) if fitting else 1
    return heads * (w.heads // w.kv_heads // rows.packed)


def dealt_in_turn(tiles: int, ctas: int) -> IntArray:
    """CTA c takes tiles c, c + ctas, ...: the tile of each item, -1 where there is none left."""
    rounds = blocks(tiles, ctas)
    numbers = np.arange(rounds * ctas, dtype=np.int64)
    numbers[tiles:] = -1
    return numbers.reshape(rounds, ctas).T.ravel()


def dealt_on_demand(order: IntArray, key_blocks: IntArray, ctas: int) -> IntArray:
    """Each CTA takes the next tile in `order` when it starts the one before, as the producer does.

    A tile is taken to last as long as its key blocks and one more (an estimate). Returns the tile
    of each item, -1 where a CTA has fewer than another.
    """
    lasts = (key_blocks + 1).tolist()
    given: list[list[int]] = [[tile] for tile in order[:ctas].tolist()]
    queue = [(0, cta, given[cta][0]) for cta in range(len(given))]  # by the start of their latest
    heapify(queue)
    for tile in order[ctas:].tolist():
        start, cta, latest = queue[0]
        given[cta].append(tile)
        heapreplace(queue, (start + lasts[latest], cta, tile))
    items = np.full((len(given), max(map(len, given))), -1, np.int64)
    for row, own in zip(items, given, strict=True):
        row[: len(own)] = own
    return items.ravel()


@dataclass(frozen=True)
class Cta:
    """How a CTA works: its tile, for a kernel of `head_dim`, and what the mask decides."""

    w: AttentionWorkload
    tile: Tile
    packed: int  # query heads that are rows of one matrix

    @property
    def head_dim(self) -> int:
        """Of the kernel that runs: the next larger one, its tiles filled up with zeros."""
        return kernel_head_dim(self.w)

    @property
    def workers(self) -> int:
        """Consumer warp groups."""
        return self.tile.q // WORKER_ROWS

    @property
    def p_in_sram(self) -> bool:
        """Whether P V reads P from SRAM, not from registers (MmaPV_is_RS)."""
        full_64 = self.head_dim == 64 and self.w.mask == "full"
        return self.w.dtype_bytes == 2 and (self.head_dim == 96 or full_64)

    @property
    def overlaps(self) -> bool:
        """Whether P V runs while the next block's softmax does (IntraWGOverlap)."""
        return self.w.dtype_bytes == 1 or self.head_dim > 64 or self.w.mask != "window"

    @property
    def rescales_first(self) -> bool:
        """Whether O is rescaled before P V is issued, while Q K^T runs (RescaleOBeforeGemm)."""
        return self.head_dim > 128 and self.w.dtype_bytes == 2 and self.overlaps

    @property
    def shared_by(self) -> int:
        """CTAs of a cluster, which load a key block together and multicast it."""
        wide = self.head_dim >= 128 if self.w.dtype_bytes == 2 else self.head_dim == 192
        down = blocks(self.w.seq_q * self.packed, self.tile.q)
        return 2 if wide and self.w.mask == "full" and down % 2 == 0 else 1

    @property
    def sram_bytes(self) -> int:
        """Q, the stages of K and V (V twice where it is transposed), P; O takes V's place."""
        element, d, tile = self.w.dtype_bytes, self.head_dim, self.tile
        v = STAGES * tile.kv * d * element
        transposed = v if element == 1 else 0
        p = tile.q * tile.kv * element if self.p_in_sram else 0
        beyond_v = max(0, tile.q * d * O_ELEMENT_BYTES - v)
        return tile.q * d * element + 2 * v + transposed + p + beyond_v

    @property
    def footprint(self) -> Footprint:
        """What a CTA takes of its SM."""
        threads = PRODUCER_THREADS + 128 * self.workers
        return Footprint(self.sram_bytes, threads, REGISTERS[self.workers], PRODUCER_THREADS)


class Flash3(TiledSchedule):
    """FlashAttention-3. A `tile` that is given has 64, 128 or 192 query rows: a worker each 64."""

    name: Literal["flash3"] = "flash3"

    summary = "Hopper: warp groups that take turns at softmax and matmul, fed by TMA"
    source = "arXiv 2407.08608; Dao-AILab/flash-attention, hopper/"
    phases: ClassVar[tuple[Phase, ...]] = ("prefill", "decode")

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload, or such a tile."""
        super().check(w)
        if w.dtype == "fp32":
            raise InputError(
                'schedule flash3: workload.dtype = "fp32": it takes fp16, bf16 and fp8'
            )
        if w.head_dim > _HEAD_DIMS[-1]:
            raise InputError(
                f"schedule flash3: workload.head_dim = {w.head_dim}: it takes up to "
                f"{_HEAD_DIMS[-1]}"
            )
        if self.tile and self.tile.q not in _Q_SIDES:
            raise InputError(
                f"schedule flash3: tile.q = {self.tile.q}: 64, 128 or 192 query rows were expected"
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel of at most a CTA an SM."""
        self.check(w)
        check_arch(self.name, hw, "sm90")
        default, packed = public_tile(w)
        sram_bytes = _sram_bytes(w, packed)
        cta = Cta(w, self.fit_tile(default, sram_bytes, w, hw), packed)
        return [forward_kernel(cta, hw.sm.count)]


_Q_SIDES = tuple(WORKER_ROWS * n for n in range(1, MOST_WORKERS + 1))


def _sram_bytes(w: AttentionWorkload, packed: int) -> SramBytes:
    """Of a tile; of one with other query rows than warp groups have, more than any device has."""
    return lambda tile: Cta(w, tile, packed).sram_bytes if tile.q in _Q_SIDES else maxsize


def check_arch(name: str, hw: HardwareProfile, arch: str) -> None:
    """Raises InputError on a device that is not of the architecture."""
    if hw.arch != arch:
        raise InputError(
            f'schedule {name}: hardware.arch = "{hw.arch}" ({hw.name}): "{arch}" was expected'
        )


def kernel_head_dim(w: AttentionWorkload) -> int:
    """The head_dim of the kernel that runs (flash_api.cpp, round_up_headdim)."""
    return next(d for d in _HEAD_DIMS if w.head_dim <= d)


def public_tile(w: AttentionWorkload) -> tuple[Tile, int]:
    """The public kernel's tile, and how many query heads are rows of one matrix (PackGQA)."""
    d = kernel_head_dim(w)
    q, kv = _TILES[d, w.dtype_bytes][_MASKS.index(w.mask)]
    packed = packed_heads(w, q)
    if w.head_dim == 128 and w.seq_q * packed <= WORKER_ROWS:  # use_one_mma_wg
        q, kv = WORKER_ROWS, kv if w.dtype_bytes == 2 else _ONE_WORKER_KEYS_FP8
    return Tile(q=q, kv=kv), packed


def packed_heads(w: AttentionWorkload, q: int) -> int:
    """heuristics.h, should_pack_gqa: where blocks of q rows are filled better by more than 10%."""
    group = w.heads // w.kv_heads

    def filled(rows: int) -> float:
        return rows / (blocks(rows, q) * q)

    return group if filled(w.seq_q) < 0.9 * filled(w.seq_q * group) else 1


def forward_kernel(cta: Cta, sms: int) -> Kernel:
    """The persistent kernel: masked tiles longest first on demand, others in turn."""
    w, tile = cta.w, cta.tile
    rows = QueryRows(w, tile, cta.packed)
    ctas = min(sms, rows.tiles)
    if w.mask == "full":
        tile_of_item = dealt_in_turn(rows.tiles, ctas)
    else:
        order = longest_first(rows, section_of(rows, L2_SECTION_BYTES))
        every = np.arange(rows.tiles, dtype=np.int64)
        tile_of_item = dealt_on_demand(order, rows.key_blocks(every), ctas)

    def tiles(items: IntArray) -> IntArray:
        return np.maximum(tile_of_item[items], 0)

    def has_tile(items: IntArray) -> IntArray:
        return (tile_of_item[items] >= 0).astype(np.int64)

    return Kernel(
        name="flash3",
        ctas=ctas,
        loops=_loops(cta, rows, tiles, has_tile),
        footprint=cta.footprint,
        tensor_path="asynchronous",
        items_per_cta=len(tile_of_item) // ctas,
    )


def _loops(cta: Cta, rows: QueryRows, tiles: OfItem, has_tile: OfItem) -> tuple[Loop, ...]:
    """Prologue, key blocks and epilogue of each item that has a tile."""
    w, tile, d, shared_by = cta.w, cta.tile, cta.head_dim, cta.shared_by
    q, k, v, o, lse = rows.tensors()
    q_elements, scores = tile.q * d, tile.q * tile.kv
    q_bytes, kv_bytes = q_elements * w.dtype_bytes, tile.kv * d * w.dtype_bytes
    flops = 2 * scores * d
    # Written once by TMA, then read whole by every warp group; Q's rows are read again each time.
    kv_sram_bytes = (1 + cta.workers) * kv_bytes
    qk_sram_bytes = q_bytes + kv_sram_bytes
    pv_sram_bytes = kv_sram_bytes + (2 * scores * w.dtype_bytes if cta.p_in_sram else 0)
    transpose_ops = 0
    if w.dtype_bytes == 1:
        # The producer transposes V, by LDSM.T and STSM with a permutation of bytes for every 4. Its
        # amounts are taken with those of the matmul that it works ahead of.
        transpose_ops, pv_sram_bytes = tile.kv * d // 4, pv_sram_bytes + 2 * kv_bytes

    load_q = Load(Stream(q, tile.q, w.head_dim, tiles))

    def keys(tensor: Tensor, behind_last: int = 0, stages: int = STAGES) -> Load:
        return Load(rows.keys_of(tensor, tiles, behind_last, shared_by), stages)

    def scored(*reads: Load, vector_ops: int = 0) -> Compute:
        return Compute("S = Q K^T", reads, flops, vector_ops, sram_bytes=qk_sram_bytes)

    def accumulated(*reads: Load) -> Compute:
        return Compute("O += P V", reads, flops, transpose_ops, sram_bytes=pv_sram_bytes)

    finish = (
        Compute("O / l", vector_ops=q_elements, sram_bytes=2 * tile.q * d * O_ELEMENT_BYTES),
        Store(Stream(o, tile.q, w.head_dim, tiles)),
        Store(Stream(lse, tile.q, 1, tiles)),
    )
    if not cta.overlaps:
        load_k, load_v = keys(k), keys(v)
        work = (SOFTMAX_OPS + CONVERT_OPS) * scores + q_elements  # rescales O too
        softmax = Compute("softmax", (), 0, work, scores + tile.q)
        trip = (load_k, load_v, scored(load_k), softmax, accumulated(load_v))
        return (
            Loop(has_tile, (load_q, Compute("wait for Q", (load_q,)))),
            Loop(lambda items: has_tile(items) * rows.key_blocks(tiles(items)), trip),
            Loop(has_tile, finish),
        )

    def of_last(tensor: Tensor) -> Load:
        """The block that is visited last."""

        def base(items: IntArray) -> IntArray:
            trips = rows.key_blocks(tiles(items)) - 1
            return visited.base(items) + visited.stride * trips

        visited = rows.keys_of(tensor, tiles, 0, shared_by)
        return Load(Stream(tensor, visited.tile_rows, visited.tile_cols, base))

    rescale_first, rescale_after = (q_elements, 0) if cta.rescales_first else (0, q_elements)
    first_k, load_k, load_v, last_v = keys(k, 0, 1), keys(k, 1), keys(v), of_last(v)
    prologue = (
        load_q,
        first_k,
        scored(load_q, first_k),
        Compute("softmax", (), 0, (SOFTMAX_OPS + CONVERT_OPS) * scores, scores),
    )
    trip = (
        load_k,
        load_v,
        scored(load_k, vector_ops=rescale_first),
        Compute(
            "O += P V, softmax",
            (load_v,),
            flops,
            SOFTMAX_OPS * scores + transpose_ops,
            scores + tile.q,
            pv_sram_bytes,
        ),
        Compute("convert P, rescale O", vector_ops=CONVERT_OPS * scores + rescale_after),
    )
    epilogue = (last_v, accumulated(last_v), *finish)
    return (
        Loop(has_tile, prologue),
        Loop(lambda items: has_tile(items) * (rows.key_blocks(tiles(items)) - 1), trip),
        Loop(has_tile, epilogue),
    )
