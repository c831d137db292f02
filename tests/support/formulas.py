"""What formulas of bytes and FLOPs are made of: masks as matrices, and runs to hold them to."""

import numpy as np

from sim.device.run import run_on_device
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.schedules.base import Tile
from sim.tile_program import in_order


def workload(**table) -> AttentionWorkload:
    """The workload of that table of a scenario."""
    return WorkloadTable.model_validate(table).workload()


def run(kernels, hw, w):
    """The kernels' runs, one after the other on one device."""
    return [
        k.run
        for k in run_on_device(in_order(kernels), hw, w.dtype, "replay", lambda _: None).kernels
    ]


def ceil(length: int, size: int) -> int:
    """How many of a size it takes to cover a length."""
    return -(-length // size)


def visible(w: AttentionWorkload) -> np.ndarray:
    """The mask as a whole matrix: (seq_q, seq_kv) booleans."""
    i = np.arange(w.seq_q)[:, None] + w.seq_kv - w.seq_q
    j = np.arange(w.seq_kv)[None, :]
    shown = np.ones((w.seq_q, w.seq_kv), bool)
    if w.causal:
        shown &= j <= i
    if w.window is not None:
        shown &= j > i - w.window
        if not w.causal:
            shown &= j < i + w.window
    return shown


def run_head_dim(w: AttentionWorkload, schedule=None, implementation="cuda") -> int:
    """Of the kernel that runs: FlashAttention-2's (static_switch.h), or Triton's powers of two."""
    triton = getattr(schedule, "implementation", implementation) == "triton"
    sizes = (16, 32, 64, 128, 256, 512) if triton else (32, 64, 96, 128, 192, 256)
    return min(size for size in sizes if w.head_dim <= size)


def tile_of(kernels) -> Tile:
    """The tile of a flash kernel, read off its streams."""
    streams = {stream.tensor.name: stream for stream in kernels[0].streams}
    return Tile(q=streams["Q"].tile_rows, kv=streams["K"].tile_rows)


def visited(w: AttentionWorkload, tile: Tile) -> np.ndarray:
    """Which (query block, key block) pairs hold a visible (query, key) pair."""
    return blocks_with_any(visible(w), tile)


def blocks_with_any(shown: np.ndarray, tile: Tile) -> np.ndarray:
    """Which blocks of the matrix `shown` hold a true element."""
    down, across = -(-shown.shape[0] // tile.q), -(-shown.shape[1] // tile.kv)
    return np.array(
        [
            [
                shown[i * tile.q : (i + 1) * tile.q, j * tile.kv : (j + 1) * tile.kv].any()
                for j in range(across)
            ]
            for i in range(down)
        ]
    )


def visits(w, kernel, packed: int | None = None, schedule=None) -> np.ndarray:
    """Which key blocks each block of query rows of one matrix visits, heads packed as the kernel's.

    A packed matrix has the heads of a query one below the other. Key blocks of a fork of
    FlashAttention-3 are counted from `keys_before` on.
    """
    packed = packed or w.batch * w.heads // kernel.tensors[0].groups
    shown, tile = np.repeat(visible(w), packed, axis=0), tile_of([kernel])
    found = blocks_with_any(shown, tile)
    for number, blocks in enumerate(found):
        rows = shown[number * tile.q : (number + 1) * tile.q]
        beyond = keys_before(w, rows, schedule, tile, len(found))
        if beyond:
            counted = blocks_with_any(rows[:, beyond:], tile)[0]
            blocks[:] = False
            blocks[: len(counted)] = counted
    return found


def keys_before(w: AttentionWorkload, rows: np.ndarray, schedule, tile: Tile, down: int) -> int:
    """How many keys lie before the key blocks of a tile's rows, of so many blocks of rows.

    Those of FlashAttention-3's forks begin, behind a window, at the first key that the rows see; of
    several blocks of rows each is told to begin less than a key block before.
    """
    forked = getattr(schedule, "implementation", None) in ("vllm", "sglang")
    if not forked or w.window is None or not rows.any():
        return 0
    first = int(np.flatnonzero(rows.any(axis=0))[0])
    return first if down == 1 else first % tile.kv


def compulsory_bytes(w: AttentionWorkload) -> tuple[int, int]:
    """(Q, K and V once, O once) in bytes: Dao et al. 2022 (arXiv 2205.14135), Section 3.2."""
    row = w.batch * w.head_dim * w.dtype_bytes
    return row * (w.heads * w.seq_q + 2 * w.kv_heads * w.seq_kv), row * w.heads * w.seq_q


def kept_bytes(w: AttentionWorkload, pairs: np.ndarray, tile: Tile) -> int:
    """What reading Q once and K and V for each kept block takes; `pairs` is a head's mask."""
    keys = np.minimum(tile.kv, w.seq_kv - tile.kv * np.arange(pairs.shape[1]))
    return (w.seq_q + 2 * int((pairs * keys).sum())) * w.head_dim * w.dtype_bytes
