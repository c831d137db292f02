"""What a kernel's output should be: attention in float64, row block by row block."""

from math import inf, sqrt

import numpy as np
import torch

from sim.inputs.workload import AttentionWorkload
from validate.kernels.launch import Attention

# Relative error (Frobenius norm) that rounding explains: of inputs, P and outputs in the dtype.
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1.5e-2}


def relative_error(attention: Attention, most_blocks: int | None = None) -> float:
    """||O - reference|| / ||reference|| after a run; NaN where an output was never written.

    All blocks of query rows are looked at or, with `most_blocks`, so many spread over all matrices.
    """
    w = attention.w
    matrices = (w.batch * w.heads, w.seq_q, w.head_dim)
    q, o = (attention.tensors[name].reshape(matrices) for name in ("Q", "O"))
    k, v = (attention.tensors[name] for name in ("K", "V"))
    size = attention.kernels[-1].streams[0].tile_rows if attention.key_table else 128
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
        if attention.key_table:
            shown &= kept(attention, number)[None, :]
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
    return shown


def kept(attention: Attention, q_tile: int) -> torch.Tensor:
    """Which keys stand in the blocks that the CTA of a tile of Q visits: (seq_kv,) booleans."""
    keys, kernel = attention.key_table, attention.kernels[-1]
    assert keys is not None
    (item,) = np.flatnonzero(kernel.streams[0].base(kernel.items) == q_tile)
    first, trips = int(keys.start[item]), int(keys.trips[item])
    size = kernel.streams[1].tile_rows
    blocks = torch.zeros(-(-attention.w.seq_kv // size), dtype=torch.bool, device=keys.table.device)
    blocks[keys.table[first : first + trips].long()] = True
    return blocks.repeat_interleave(size)[: attention.w.seq_kv]
