"""FlashAttention-3's library before Hopper: FlashAttention-2's loop over packed query heads.

    for each sequence, each KV head, each block of tile.q of its packed rows (one CTA)

The query heads of a KV head are rows of one matrix (PackGQA, always before Hopper), the heads of a
query together, so that few queries of many heads fill tiles. SGLang runs it on such devices.

Source: Dao-AILab/flash-attention, hopper/: flash_api.cpp (get_pack_gqa), tile_size.h
(tile_size_fwd_sm8x: one stage), flash_fwd_launch_template.h (SingleTileScheduler).
"""

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Tile
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import Operand, QueryTiles, flash_kernel, key_loop
from sim.schedules.parts.query_rows import QueryRows
from sim.tile_program import IntArray, Kernel, Stream, Tensor

ARCHS = ("sm80", "sm86", "sm89")
ROWS = 128


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
    return FlashCta(Tile(q=ROWS, kv=kv), warps)


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
