"""What a kernel's output should be: attention in float64, row block by row block."""

from math import inf, sqrt

import numpy as np
import torch

from sim.inputs.workload import AttentionWorkload
from sim.tile_program import Kernel
from validate.kernels.launch import Placed, load_of

# Relative error (Frobenius norm) that rounding explains: of inputs, P and outputs in the dtype.
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1.5e-2}


def relative_error(attention: Placed, most_blocks: int | None = None) -> float:
    """||O - reference|| / ||reference|| after a run; NaN where an output was never written.

    All blocks of query rows are looked at or, with `most_blocks`, so many spread over all matrices.
    """
    w = attention.w
    matrices = (w.batch * w.heads, w.seq_q, w.head_dim)
    q, o = (attention.by_role(role).reshape(matrices) for role in ("query", "result"))
    k, v = attention.by_role("key"), attention.by_role("value")
    last = attention.kernels[-1]  # leaves O
    sparse = last in attention.key_tables
    size = load_of(last, "query").stream.tile_rows if sparse else 128
    down = -(-w.seq_q // size)
    numbers = np.arange(matrices[0] * down)
    if most_blocks is not None:
        numbers = np.unique(np.linspace(0, len(numbers) - 1, most_blocks).astype(int))
    wrong = right = 0.0
    for number in numbers.tolist():
        matrix, block = divmod(number, down)
        rows = slice(block * size, min((block + 1) * size, w.seq_q))
        kv = matrix // w.heads * w.kv_heads + matrix % w.heads // (w.heads // w.kv_heads)
        shown = visible(w, rows, q.device)
        if sparse:
            shown &= kept(attention, last, number)[None, :]
        expected = attend(q[matrix, rows], k[kv], v[kv], shown)
        wrong += float((o[matrix, rows].double() - expected).square().sum())
        right += float(expected.square().sum())
    return sqrt(wrong / right) if right else sqrt(wrong)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Attention of q (rows, d) over k and v (keys, d) where `shown` (rows, keys); none gives 0."""
    scores = q.double() @ k.double().T / sqrt(q.shape[-1])
    probabilities = scores.masked_fill(~shown, -inf).softmax(dim=-1)
    return probabilities.nan_to_num(0.0) @ v.double()


def visible(w: AttentionWorkload, rows: slice, device: torch.device) -> torch.Tensor:
    """Which keys the query rows may see by the workload's mask: (rows, seq_kv) booleans."""
    position = torch.arange(rows.start, rows.stop, device=device)[:, None] + w.seq_kv - w.seq_q
    key = torch.arange(w.seq_kv, device=device)[None, :]
    shown = torch.ones(len(position), w.seq_kv, dtype=torch.bool, device=device)
    if w.causal:
        shown &= key <= position
    if w.window is not None:
        shown &= key > position - w.window
        if not w.causal:
            shown &= key < position + w.window
    return shown


def kept(attention: Placed, kernel: Kernel, q_tile: int) -> torch.Tensor:
    """Which keys stand in the blocks that a tile of Q meets in a sparse kernel: (seq_kv,)."""
    keys = attention.key_tables[kernel]
    q, k = (load_of(kernel, role).stream for role in ("query", "key"))
    (item,) = np.flatnonzero(q.base(kernel.items) == q_tile)
    first, trips = int(keys.start[item]), int(keys.trips[item])
    blocks = torch.zeros(k.tiles_down, dtype=torch.bool, device=keys.table.device)
    blocks[keys.table[first : first + trips].long()] = True
    return blocks.repeat_interleave(k.tile_rows)[: attention.w.seq_kv]
