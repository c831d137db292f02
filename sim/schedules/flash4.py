"""FlashAttention-4, forward on Blackwell.

    for two tiles of 128 query rows, side by side, each with a softmax warp group (a worker):
        load Q_i
        for each block of 128 keys that the mask shows, last to first:
            S = Q_i K_j^T                 (tcgen05, S, P and O stay in tensor memory)
            m, P = online softmax of S;  O_i is rescaled only where m has grown much
            O_i += P V_j
        O_i = O_i / l_i;  store O_i through SRAM by TMA, and the log-sum-exp

P takes S's place in tensor memory, so a tile's next S follows its own P V: what overlaps is one
tile's softmax with the other's matmuls. One warp issues all matmuls, one all loads; a correction
warp group rescales O. `emulated` is the share of exponentials that are computed on the FMA units
instead, as 2^x by a polynomial of degree 3.

Source: Dao-AILab/flash-attention, flash_attn/cute: flash_fwd_sm100.py (roles, tiles, buffers,
clusters, _TUNING_CONFIG), softmax.py (SoftmaxSm100, apply_exp2_convert), utils.py (ex2_emulation),
interface.py (pack_gqa, is_persistent), tile_scheduler.py. Paper: arXiv 2603.05451.

What differs: tensor memory has room and bandwidth enough; a tile's matmul starts when its softmax
is done, where the kernel starts it at three quarters; K and V have rings of their own, where the
kernel has one for both; of an odd number of blocks of query rows no two CTAs share keys, where the
kernel adds an empty one; keys are not split for decoding. That one block in ten rescales O is an
estimate after the authors' "avoid 90% of softmax rescaling". head_dim above 128 and fp8, which have
kernels or settings of their own, are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import show_binary
from sim.inputs.workload import AttentionWorkload, Phase
from sim.schedules.base import Schedule, Tile, blocks, check_arch
from sim.schedules.parts import registers
from sim.schedules.parts.dealing import (
    Dealt,
    dealt_in_turn,
    like_parts,
    ordered,
    section_of,
)
from sim.schedules.parts.ends import begin, finish
from sim.schedules.parts.query_rows import QueryRows
from sim.schedules.parts.traversal import Direction, GridOrder, KeyOrder, directions
from sim.tile_program import Compute, Footprint, IntArray, Kernel, Load, Loop, Stream, Tensor

TILE_ROWS, KEYS = 128, 128
MOST_HEAD_DIM = 128
THREADS = 512  # 16 warps of 12 to 4 roles
SRAM_BUDGET_BYTES = 224 * 2**10  # for Q, O and the ring of K and V
L2_SECTION_BYTES = 50 * 2**20  # of K and V (SingleTileLPTScheduler)
# fp32 lane operations a score: maximum of three in one, scale and subtract (one FMA), sum,
# conversion of P: counted in halves.
HALF_OPS_PER_SCORE = 7
# Clamp, round down, subtract twice, three FMAs, shift and add of the exponent (ex2_emulation).
OPS_PER_EMULATED_EXP = 9
RESCALED_SHARE = 0.1
FRAGMENT, EMULATED_AT_END = 32, 4  # apply_exp2_convert: frg_tile, ex2_emu_res


class Flash4(Schedule):
    """FlashAttention-4. `emulated`: the public kernel's share of exponentials unless given.

    `grid_order` and `key_order` are the order of traversal (traversal.py); unless given, tiles come
    as the scheduler deals them, masked ones swizzled.
    """

    name: Literal["flash4"] = "flash4"
    emulated: Annotated[float, Field(ge=0, le=1)] | None = None
    grid_order: GridOrder | None = None
    key_order: KeyOrder = "descending"

    summary = "Blackwell: two tiles in turn, S and O in tensor memory, some exps emulated"
    source = "arXiv 2603.05451; Dao-AILab/flash-attention, flash_attn/cute/flash_fwd_sm100.py"
    phases: ClassVar[tuple[Phase, ...]] = ("prefill", "decode")
    takes = frozenset({"append"})

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        if w.dtype not in ("fp16", "bf16"):
            raise InputError(f'schedule flash4: workload.dtype = "{w.dtype}": it takes fp16, bf16')
        if w.head_dim > MOST_HEAD_DIM:
            raise InputError(
                f"schedule flash4: workload.head_dim = {w.head_dim}: it takes up to {MOST_HEAD_DIM}"
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel; persistent without a mask, else a CTA two tiles, the longest first."""
        check_arch(self.name, hw, "sm100")
        cta = Flash4Cta(w, hw.sram.max_per_cta)
        if cta.ring < 2:
            raise InputError(
                f"schedule flash4: Q, O and two blocks of keys need "
                f"{show_binary(cta.q_o_bytes + 2 * cta.block_bytes)} of SRAM, {hw.name} has "
                f"{show_binary(hw.sram.max_per_cta)} a CTA"
            )
        emulated = cta.emulated if self.emulated is None else self.emulated
        return [_forward_kernel(cta, emulated, hw.sm.count, self.grid_order, self.key_order)]


@dataclass(frozen=True)
class Flash4Cta:
    """How a CTA works on a workload, with so much SRAM at most."""

    w: AttentionWorkload
    most_sram_bytes: float

    @property
    def packed(self) -> int:
        """Query heads that are rows of one matrix: all of a KV head (interface.py, pack_gqa)."""
        return self.w.heads // self.w.kv_heads

    @property
    def head_dim(self) -> int:
        """Filled up with zeros to a multiple of 16."""
        return blocks(self.w.head_dim, 16) * 16

    @property
    def workers(self) -> int:
        """Tiles, and softmax warp groups (q_stage)."""
        return 2 if self.w.seq_q * self.packed > TILE_ROWS else 1

    @property
    def tile(self) -> Tile:
        """All query rows of the CTA, and keys."""
        return Tile(q=self.workers * TILE_ROWS, kv=KEYS)

    @property
    def shared_by(self) -> int:
        """CTAs whose matmuls read each other's half of a key block (use_2cta_instrs)."""
        rows = self.w.seq_q * self.packed
        fits = TILE_ROWS % self.packed == 0 and rows > 2 * TILE_ROWS
        pairs = blocks(rows, self.tile.q) % 2 == 0
        return 2 if self.head_dim == 128 and self.w.mask == "full" and fits and pairs else 1

    @property
    def emulated(self) -> float:
        """The share of exponentials that the public kernel emulates (apply_exp2_convert).

        Of each `often` scores the last 4, pairs at a time, but for a row's first and last fragment.
        """
        packs = self.packed > 1 and self.head_dim > 64 and self.w.mask == "full"
        often = 10 if packs or self.shared_by > 1 else 16
        pairs = range(0, FRAGMENT, 2)
        emulated = sum(k % often >= often - EMULATED_AT_END for k in pairs) / len(pairs)
        fragments = KEYS // FRAGMENT
        return emulated * (fragments - 2) / fragments

    @property
    def q_o_bytes(self) -> int:
        """SRAM of Q's tiles and O's."""
        return 2 * self.tile.q * self.head_dim * self.w.dtype_bytes

    @property
    def block_bytes(self) -> int:
        """SRAM of a CTA's part of a block of K, or of V."""
        return KEYS * self.head_dim * self.w.dtype_bytes // self.shared_by

    @property
    def ring(self) -> int:
        """Buffers of K and V together (kv_stage)."""
        room = min(SRAM_BUDGET_BYTES, self.most_sram_bytes) - self.q_o_bytes
        return max(0, int(room // self.block_bytes))

    @property
    def footprint(self) -> Footprint:
        """What a CTA takes of its SM; all but the softmax warp groups only issue and wait."""
        sram_bytes = self.q_o_bytes + self.ring * self.block_bytes
        return Footprint(sram_bytes, THREADS, registers.FLASH4, THREADS - 128 * self.workers)


def _forward_kernel(
    cta: Flash4Cta, emulated: float, sms: int, grid_order: GridOrder | None, key_order: KeyOrder
) -> Kernel:
    """The kernel, with that share of exponentials on the FMA units."""
    rows = QueryRows(cta.w, cta.tile, cta.packed)
    tiles, sharing, section = rows.grid.size, rows.sharing, section_of(rows, L2_SECTION_BYTES)
    chosen = grid_order or ("head_slow" if cta.w.mask == "full" else "swizzled")
    order, periods = ordered(rows, chosen, section), like_parts(rows, chosen, section)
    if cta.w.mask == "full":
        dealt = dealt_in_turn(tiles, min(sms, tiles)).in_order(order)
    else:
        dealt = Dealt(tiles, order)
    ways = directions(key_order, lambda items: dealt.turn(items, sms))
    if grid_order or len(ways) > 1:
        periods, sharing = (1 if len(ways) > 1 else periods), 1
    return Kernel(
        name="flash4",
        ctas=dealt.ctas,
        loops=_loops(cta, rows, dealt, emulated, ways),
        footprint=cta.footprint,
        tensor_path="asynchronous",
        items_per_cta=dealt.items_per_cta,
        periods=periods,
        sharing=sharing,
        in_waves=grid_order is not None or len(ways) > 1,
    )


def _loops(
    cta: Flash4Cta, rows: QueryRows, dealt: Dealt, emulated: float, ways: Sequence[Direction]
) -> tuple[Loop, ...]:
    """Prologue, key blocks and epilogue of each item that has a tile."""
    tile, d = cta.tile, cta.head_dim
    (q, k, v, o), lse = rows.tensors()
    q_elements, scores = tile.q * d, tile.q * tile.kv
    q_bytes = q_elements * cta.w.dtype_bytes
    # A part of a key block is written once by TMA, then read by the matmul of each tile.
    kv_sram_bytes = (1 + cta.workers) * cta.block_bytes
    emulations = round(emulated * scores)

    def rows_of(tensor: Tensor) -> Stream:
        return Stream(tensor, tile.q, tensor.cols, dealt.tile)

    def keys_of(tensor: Tensor, way: Direction) -> Stream:
        return rows.keys_of(tensor, dealt.tile, 0, cta.shared_by, way)

    def key_blocks(items: IntArray) -> IntArray:
        return dealt.has_tile(items) * rows.key_blocks(dealt.tile(items))

    flops = 2 * scores * d

    def loop(way: Direction) -> Loop:
        load_k, load_v = (
            Load(keys_of(k, way), -(-cta.ring // 2)),
            Load(keys_of(v, way), cta.ring // 2),
        )
        softmax = Compute(
            "softmax",
            vector_ops=HALF_OPS_PER_SCORE * scores // 2
            + OPS_PER_EMULATED_EXP * emulations
            + round(RESCALED_SHARE * q_elements),
            exp_count=scores - emulations + tile.q,
        )
        trip = (
            load_k,
            load_v,
            Compute("S = Q K^T", (load_k,), flops, sram_bytes=q_bytes + kv_sram_bytes),
            softmax,
            Compute("O += P V", (load_v,), flops, sram_bytes=kv_sram_bytes),
        )
        return Loop(way.trips(key_blocks), trip)

    has_tile, results = dealt.has_tile, (rows_of(o), rows_of(lse))
    return (
        begin("Q", Load(rows_of(q)), trips=has_tile),
        *map(loop, ways),
        finish(q_elements, *results, trips=has_tile, sram_bytes=2 * q_bytes),
    )
