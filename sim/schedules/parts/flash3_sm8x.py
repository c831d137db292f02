"""FlashAttention-3's library before Hopper: FlashAttention-2's loop over packed query heads.

    for each sequence, each KV head, each block of tile.q of its packed rows (one CTA)

The query heads of a KV head are rows of one matrix (PackGQA, always before Hopper), the heads of a
query together, so that few queries of many heads fill tiles. SGLang runs it on such devices.

Decoding it cuts keys when it runs: a range gets so many blocks that all SMs have one, and a tenth
more. The host says how many there are at most, as if there were one sequence, and with that which
kernel runs.

Source: Dao-AILab/flash-attention, hopper/: flash_api.cpp (get_pack_gqa, get_num_splits),
heuristics.h, flash_prepare_scheduler.cu, tile_size.h (tile_size_fwd_sm8x: one stage),
flash_fwd_launch_template.h (SingleTileScheduler).
"""

from math import ceil

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile, blocks
from sim.schedules.parts.combine import fewest_filling
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import Operand, QueryTiles, flash_kernel, key_loop
from sim.schedules.parts.instructions import FLASH3_SM8X_FIXED
from sim.schedules.parts.query_rows import QueryRows
from sim.tile_program import IntArray, Kernel, Stream, Tensor

ARCHS = ("sm80", "sm86", "sm89")
ROWS = 128
MOST_RANGES, LEAST_CUT_BLOCKS, MOST_CUT_BATCH = 128, 4, 992


def check_sm8x(name: str, hw: HardwareProfile) -> None:
    """Raises InputError on devices for which it is not compiled; on Hopper it is `flash3`."""
    if hw.arch not in ARCHS:
        raise InputError(
            f'schedule {name}: implementation = "fa3": hardware.arch = "{hw.arch}" ({hw.name}): '
            f"one of {', '.join(ARCHS)} was expected"
        )


def sm8x_cta(w: AttentionWorkload, hw: HardwareProfile, *, split: bool = False) -> FlashCta:
    """Tile and warps, by whether keys may be split among CTAs."""
    small, local = hw.arch in ("sm86", "sm89"), w.mask == "window"
    if w.head_dim <= 64:
        kv, warps = 80 if split else 96 if local else 112, 4
    elif w.head_dim <= 96:
        kv, warps = 48 if split or local else 64, 4
    elif w.head_dim <= 128 and not small and not split:
        kv, warps = 48 if local else 64, 4
    elif w.head_dim <= 128:
        kv, warps = 96 if local else 112 if split else 128, 8
    elif w.head_dim <= 192:
        kv, warps = 64, 8
    else:
        kv, warps = ((48 if split or local else 64) if small else (64 if split or local else 96)), 8
    in_registers = warps == 8 and (w.head_dim <= 128 or (small and w.head_dim > 192))
    return FlashCta(
        Tile(q=ROWS, kv=kv),
        warps,
        q_in_registers=in_registers,
        fixed_instructions=FLASH3_SM8X_FIXED,
    )


def decoding_sm8x(w: AttentionWorkload, hw: HardwareProfile) -> tuple[FlashCta, int]:
    """The CTA that decodes, and in how many ranges the keys are cut."""
    cta = sm8x_cta(w, hw, split=True)
    low, high = w.visible_keys(0, 0)
    key_blocks = blocks(high - low, cta.tile.kv)
    tiles = w.kv_heads * blocks(w.heads // w.kv_heads, ROWS)
    most = 1
    if tiles < 0.8 * hw.sm.count and key_blocks > LEAST_CUT_BLOCKS:
        counts = range(1, min(MOST_RANGES, hw.sm.count, key_blocks) + 1)
        most = fewest_filling(counts, tiles, hw.sm.count)
    if most == 1 or w.batch > MOST_CUT_BATCH:
        return sm8x_cta(w, hw), 1
    an_sm = ceil(1.1 * w.batch * tiles * key_blocks / hw.sm.count)
    return cta, min(blocks(key_blocks, an_sm), most)


def packed_attention(w: AttentionWorkload, cta: FlashCta) -> Kernel:
    """The kernel, a CTA a block of packed query rows."""
    rows = QueryRows(w, cta.tile, w.heads // w.kv_heads)
    (q, k, v, o), lse = rows.tensors()

    def own(items: IntArray) -> IntArray:
        return items

    def has_rows(items: IntArray) -> IntArray:
        there: IntArray = rows.is_there[rows.place(items)].astype(int)
        return there

    def keys(tensor: Tensor) -> Operand:
        return Operand((rows.keys_of(tensor, own, skipped=0, shared_by=1),))

    tiles = QueryTiles(
        ctas=rows.grid.size,
        q=Stream(q, cta.tile.q, w.head_dim, rows.q_tile),
        o=Stream(o, cta.tile.q, w.head_dim, rows.q_tile),
        lse=Stream(lse, cta.tile.q, 1, rows.q_tile),
        periods=rows.matrices,
        sharing=rows.sharing,
        has_rows=has_rows,
    )
    loop = key_loop(w, cta, rows.key_blocks, tiles.q.tile_bytes, keys(k), keys(v))
    return flash_kernel("flash3_sm8x", w, cta, tiles, loop)
