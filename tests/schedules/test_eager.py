"""Naive as eager PyTorch runs it: kernels against PyTorch's own operations, and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sim.device.program import kernels_of
from sim.device.run import run_on_device
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.schedules.naive import Naive
from sim.schedules.parts.elementwise import ELEMENTS_A_CTA
from sim.tile_program import Load, Store
from tests.support.commands import assert_one_line, attnsim
from tests.support.drawn import devices

EAGER = Naive(framework="pytorch")
HW = load_profile("h100-sxm")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LAUNCHED = ("clone", "baddbmm", "full", "triu", "_to_copy", "add", "_softmax", "bmm")
NOT_READ = 1  # of baddbmm's operands, with beta = 0


def self_attention(**given) -> AttentionWorkload:
    table = {"batch": 2, "heads": 3, "head_dim": 64, "seq_len": 130, "dtype": "fp16"}
    return WorkloadTable(**table | given).workload()


@st.composite
def workloads(draw):
    return self_attention(
        batch=draw(st.integers(1, 3)),
        heads=draw(st.integers(1, 3)),
        seq_len=draw(st.integers(2, 1100)),
        head_dim=draw(st.sampled_from((16, 40, 64, 128))),
        dtype=draw(st.sampled_from(tuple(DTYPES))),
        causal=draw(st.booleans()),
    )


class Operations(TorchDispatchMode):
    """What PyTorch launches: bytes of the operands read and of the result, operation by operation.

    Operations on views only launch nothing, and `empty` neither.
    """

    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **kwargs or {})
        name = op.overloadpacket.__name__
        if name in LAUNCHED:
            operands = [a for a in args if isinstance(a, torch.Tensor)]
            read = operands[NOT_READ:] if name == "baddbmm" else operands
            self.bytes.append((sorted(a.nbytes for a in read), result.nbytes))
        return result


def benchmarked(qkv, causal):
    """What FlashAttention's benchmark asks of PyTorch, operation by operation."""
    batch, tokens, _, heads, head_dim = qkv.shape
    q, k, v = qkv.unbind(2)
    q = q.permute(0, 2, 1, 3).reshape(batch * heads, tokens, head_dim)
    k = k.permute(0, 2, 3, 1).reshape(batch * heads, head_dim, tokens)
    scores = torch.empty(batch * heads, tokens, tokens, dtype=qkv.dtype)
    scores = torch.baddbmm(scores, q, k, beta=0, alpha=1 / math.sqrt(head_dim))
    scores = scores.view(batch, heads, tokens, tokens)
    if causal:
        scores = scores + torch.full((tokens, tokens), -1e4).triu(1).to(qkv.dtype)
    p = torch.nn.functional.dropout(scores.softmax(-1), 0.0)
    return torch.einsum("bhqk,bkhd->bqhd", p, v)


@given(workloads())
@settings(max_examples=40)
def test_the_kernels_are_the_operations_that_pytorch_launches_over_the_same_bytes(w):
    qkv = torch.zeros(w.batch, w.seq_q, 3, w.heads, w.head_dim, dtype=DTYPES[w.dtype])
    with Operations() as launched:
        benchmarked(qkv, w.causal)
    ours = []
    for kernel in kernels_of(EAGER.program(w, HW)):
        ops = [op for loop in kernel.loops for op in loop.ops]
        read = {op.stream.tensor for op in ops if isinstance(op, Load)}
        (written,) = {op.stream.tensor for op in ops if isinstance(op, Store)}
        ours.append((sorted(t.bytes for t in read), written.bytes))
    assert ours == launched.bytes


def moved(w, hw):
    """(HBM bytes read, written) of each kernel, by name."""
    kernels = EAGER.program(w, hw)
    ran = [k.run for k in run_on_device(kernels, hw, w.dtype, "replay", lambda _: None).kernels]
    return {run.kernel.name: (run.hbm_read_bytes, run.hbm_write_bytes) for run in ran}


@given(workloads(), devices(l2="0 B"))
@settings(max_examples=40)
def test_without_l2_passes_move_what_they_must(w, hw):
    runs = moved(w, hw)
    matrices, n, size = w.batch * w.heads, w.seq_q, w.dtype_bytes
    q_bytes, s_bytes = matrices * n * w.head_dim * size, matrices * n * n * size
    assert ("copy Q" in runs) == (w.batch > 1 and w.heads > 1)
    if "copy Q" in runs:
        assert runs["copy Q"] == runs["copy V"] == (q_bytes, q_bytes)
        columns = np.arange(w.head_dim)
        a_sector = 32 // size
        first = columns // a_sector * a_sector  # of the sector that a column's elements lie in
        sectors = (np.minimum(first + a_sector, w.head_dim) - first).sum()
        assert runs["copy K"] == (matrices * n * int(sectors) * size, q_bytes)
    assert ("mask" in runs) == w.causal
    if w.causal:
        assert runs["full"] == (0, 4 * n * n)
        assert runs["triu"] == (4 * kept_by_blocks(n), 4 * n * n)
        assert ("mask to dtype" in runs) == (size < 4)
        assert runs.get("mask to dtype", (4 * n * n, size * n * n)) == (4 * n * n, size * n * n)
        assert runs["mask"] == (2 * s_bytes, s_bytes)  # the mask, for each matrix anew
    assert runs["P = softmax(S)"][1] == s_bytes


def kept_by_blocks(n: int) -> int:
    """Elements of the CTAs' blocks that have any above the diagonal, of an n x n matrix."""
    rows = max(1, ELEMENTS_A_CTA // n)
    above = np.triu(np.ones((n, n), bool), 1)
    blocks = [
        above[top : top + rows, left : left + ELEMENTS_A_CTA]
        for top in range(0, n, rows)
        for left in range(0, n, ELEMENTS_A_CTA)
    ]
    return sum(block.size for block in blocks if block.any())


def test_l2_keeps_the_sectors_of_k_for_the_other_head_dimensions():
    w = self_attention(seq_len=1024)
    matrix_bytes = 2 * 3 * 1024 * 64 * 2
    assert moved(w, HW)["copy K"][0] == matrix_bytes


def test_a_mask_that_stays_in_l2_is_not_read_again_for_each_head():
    w = self_attention(batch=1, heads=32, seq_len=1024, causal=True)
    read, _ = moved(w, HW)["mask"]
    scores, mask = 32 * 1024 * 1024 * 2, 1024 * 1024 * 2
    assert read < scores + mask


@pytest.mark.parametrize(
    "workload",
    [
        "kv_heads = 2\nseq_len = 64",
        "window = 16\ncausal = true\nseq_len = 64",
        "phase = 'training'\nseq_len = 64",
        "phase = 'decode'\nseq_kv = 64",
        "seq_q = 8\nseq_kv = 64",
    ],
)
def test_what_the_benchmark_cannot_run_is_refused_in_one_line(tmp_path, workload):
    (tmp_path / "s.toml").write_text(
        f"""
[hardware]
profile = "h100-sxm"
[workload]
heads = 4
head_dim = 64
{workload}
[[schedule]]
name = "naive"
framework = "pytorch"
"""
    )
    done = attnsim("run", "s.toml", cwd=tmp_path)
    assert_one_line(done, 'schedule naive: framework = "pytorch": prefill with as many')
