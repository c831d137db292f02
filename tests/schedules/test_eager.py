"""Naive as eager PyTorch runs it: kernels against PyTorch's own operations, and closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sim.device.program import kernels_of
from sim.device.run import run_on_device
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.schedules.base import qkvo
from sim.schedules.naive import Naive
from sim.schedules.parts.eager import eager_pass, repeated
from sim.schedules.parts.eager_softmax import softmax_kernel
from sim.schedules.parts.elementwise import ELEMENTS_A_CTA
from sim.tile_program import Load, Store, Tensor, in_order
from tests.support.commands import assert_one_line, called, scenario
from tests.support.drawn import devices
from tests.support.formulas import run
from tests.support.same_runs import assert_engines_agree

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

    def __init__(self, launched=LAUNCHED):
        super().__init__()
        self.launched, self.bytes = launched, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **kwargs or {})
        name = op.overloadpacket.__name__
        if name in self.launched:
            operands = [a for a in args if isinstance(a, torch.Tensor) and a.dim()]
            read = operands[NOT_READ:] if name == "baddbmm" else operands
            held = (
                min(a.nbytes, a.untyped_storage().nbytes()) for a in read
            )  # expanded views less
            self.bytes.append((sorted(held), result.nbytes))
        return result


def of_every_query_head(x, dim, heads):
    """K or V as einops.repeat and Transformers' repeat_kv make it: a view of a single KV head."""
    shape = list(x.shape)
    shape[dim : dim + 1] = [shape[dim], heads // shape[dim]]
    return x.unsqueeze(dim + 1).expand(shape).flatten(dim, dim + 1)


def benchmarked(q, k, v, causal):
    """What FlashAttention's benchmark asks of PyTorch, operation by operation."""
    batch, tokens, heads, head_dim = q.shape
    k, v = of_every_query_head(k, 2, heads), of_every_query_head(v, 2, heads)
    q = q.permute(0, 2, 1, 3).reshape(batch * heads, tokens, head_dim)
    k = k.permute(0, 2, 3, 1).reshape(batch * heads, head_dim, tokens)
    scores = torch.empty(batch * heads, tokens, tokens, dtype=q.dtype)
    scores = torch.baddbmm(scores, q, k, beta=0, alpha=1 / math.sqrt(head_dim))
    scores = scores.view(batch, heads, tokens, tokens)
    if causal:
        scores = scores + torch.full((tokens, tokens), -1e4).triu(1).to(q.dtype)
    p = torch.nn.functional.dropout(scores.softmax(-1), 0.0)
    return torch.einsum("bhqk,bkhd->bqhd", p, v)


def by_tokens(w: AttentionWorkload):
    """Q, K and V of zeros."""
    numbers = (w.heads, w.kv_heads, w.kv_heads)
    shapes = [(w.batch, w.seq_q, heads, w.head_dim) for heads in numbers]
    return [torch.zeros(shape, dtype=DTYPES[w.dtype]) for shape in shapes]


@given(workloads(), st.sampled_from((1, 2, 4)))
@settings(max_examples=40)
def test_the_kernels_are_the_operations_that_pytorch_launches_over_the_same_bytes(w, groups):
    w = replace(w, heads=w.heads * groups, kv_heads=w.heads)
    with Operations() as launched:
        benchmarked(*by_tokens(w), w.causal)
    assert operands(EAGER, w) == launched.bytes


def operands(schedule: Naive, w: AttentionWorkload):
    """Bytes of the tensors that each kernel reads and of the one that it writes."""
    ours = []
    for kernel in kernels_of(schedule.program(w, HW)):
        ops = [op for loop in kernel.loops for op in loop.ops]
        read = {op.stream.tensor for op in ops if isinstance(op, Load)}
        (written,) = {op.stream.tensor for op in ops if isinstance(op, Store)}
        ours.append((sorted(t.bytes for t in read), written.bytes))
    return ours


def of_transformers(q, k, v, mask):
    """What eager_attention_forward of Transformers' Llama asks of PyTorch; Q, K, V by tokens."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    k, v = of_every_query_head(k, 1, q.shape[1]), of_every_query_head(v, 1, q.shape[1])
    scores = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    p = torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    p = torch.nn.functional.dropout(p, 0.0, training=False)
    return torch.matmul(p, v).transpose(1, 2).contiguous()


TRANSFORMERS = Naive(framework="transformers")


@given(workloads(), st.sampled_from((1, 2, 4)))
@settings(max_examples=40)
def test_in_fp32_transformers_kernels_are_the_operations_that_its_eager_attention_launches(w, kv):
    """On a CPU a 16-bit softmax in fp32 converts first: there only fp32 is as on a GPU."""
    w = replace(w, heads=w.heads * kv, kv_heads=w.heads, dtype="fp32")
    q, k, v = by_tokens(w)
    mask = torch.zeros(1, 1, w.seq_q, w.seq_kv) if w.causal else None
    with Operations(("clone", "bmm", "mul", "add", "_softmax")) as launched:
        of_transformers(q, k, v, mask)
    assert operands(TRANSFORMERS, w) == launched.bytes


SDPA_LAUNCHED = ("_to_copy", "clone", "mul", "ones", "tril", "where", "bmm", "add", "_safe_softmax")


def safe_softmax(launched):
    """The operations, with _safe_softmax as what it is made of (attention.cpp)."""
    for read, written in launched:
        if written is None:
            (scores,) = read
            elements, rows = scores
            yield from (
                ([elements * 4], elements * 4),
                ([elements * 4], elements),
                ([elements], rows),
                ([elements * 4], elements * 4),
            )
        else:
            yield read, written


class Sdpa(Operations):
    """The same, with the softmax told by the elements and rows of its scores."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(op, types, args, kwargs)
        if op.overloadpacket.__name__ == "_safe_softmax":
            scores = args[0]
            self.bytes[-1] = ([(scores.numel(), scores.numel() // scores.shape[-1])], None)
        return result


@pytest.mark.parametrize("upcast", [False, True])
@given(workloads(), st.sampled_from((1, 2, 4)))
@settings(max_examples=20)
def test_the_math_backends_kernels_are_the_operations_that_pytorch_launches(upcast, w, groups):
    """On a CPU all_ and where are one operation below _safe_softmax: here by its source."""
    w = replace(w, heads=w.heads * groups, kv_heads=w.heads, dtype="fp32")
    dtype = torch.float16 if upcast else torch.float32
    q, k, v = (tensor.transpose(1, 2).contiguous().to(dtype) for tensor in by_tokens(w))
    with Sdpa(SDPA_LAUNCHED) as launched:
        torch.ops.aten._scaled_dot_product_attention_math(
            q, k, v, None, 0.0, w.causal, enable_gqa=groups > 1
        )
    theirs, ours = (
        list(safe_softmax(launched.bytes)),
        operands(Naive(framework="sdpa", upcast=upcast), w),
    )
    assert sorted(theirs) == sorted(ours)  # K is scaled once the mask is made
    assert [one for one in theirs if len(one[0]) == 2] == [one for one in ours if len(one[0]) == 2]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_transformers_repeats_k_and_v_for_every_query_head_and_has_p_in_fp32_too(phase):
    tokens = {"seq_len": 256} if phase == "prefill" else {"seq_kv": 256, "phase": "decode"}
    table = {"batch": 2, "heads": 8, "kv_heads": 2, "head_dim": 64, "dtype": "bf16"}
    w = WorkloadTable(**table, **tokens, causal=True).workload()
    by_name = dict(
        zip(
            [kernel.name for kernel in kernels_of(TRANSFORMERS.program(w, HW))],
            operands(TRANSFORMERS, w),
            strict=True,
        )
    )
    cache = 2 * 2 * 256 * 64 * 2
    assert by_name["repeat K"] == by_name["repeat V"] == ([cache], 4 * cache)
    s = 2 * 8 * w.seq_q * 256
    assert by_name["P = softmax(S)"] == ([2 * s], 4 * s)
    assert by_name["P to dtype"] == ([4 * s], 2 * s)
    assert ("copy Q" in by_name) == ("copy O" in by_name) == (phase == "prefill")


@given(workloads(), st.sampled_from((1, 4)))
@settings(max_examples=20)
def test_repeating_reads_a_matrix_once_for_each_of_its_query_heads_without_l2(w, groups):
    w = replace(w, heads=2 * w.heads * groups, kv_heads=w.heads)
    hw = load_profile("h100-sxm", {"l2": {"capacity": "0 B"}}, "a test")
    kernel, copied = repeated(w, qkvo(w)[1])
    (ran,) = run_on_device(in_order([kernel]), hw, w.dtype, "replay", lambda _: None).kernels
    assert ran.run.hbm_read_bytes == ran.run.hbm_write_bytes == copied.bytes


@given(workloads(), devices())
@settings(max_examples=5)
def test_both_engines_agree_on_transformers_eager_attention(w, hw):
    w = replace(w, heads=2 * w.heads, kv_heads=w.heads, seq_q=w.seq_q % 97, seq_kv=w.seq_q % 97)
    assume(w.seq_q > 0)
    assert_engines_agree(kernels_of(TRANSFORMERS.program(w, hw)), hw, w.dtype)


def refused(folder, schedule: str, workload: str = "seq_len = 64"):
    """What comes of asking for naive with such options and workload."""
    schedule, shape = f'name = "naive"\n{schedule}', f"heads = 4\nhead_dim = 64\n{workload}"
    return called("run", scenario(folder, schedule=schedule, workload=shape), cwd=folder)


def test_transformers_eager_attention_in_training_is_refused_in_one_line(tmp_path):
    done = refused(tmp_path, 'framework = "transformers"', 'seq_len = 64\nphase = "training"')
    assert_one_line(done, 'schedule naive: framework = "transformers": prefill or decode was')


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


def test_masked_fill_copies_the_scores_and_reads_a_byte_of_mask_for_each():
    w = self_attention(batch=1, heads=32, seq_len=1024, causal=True)
    hw = HW.with_figures({"l2.capacity": 0.0})
    kernels = kernels_of(Naive(mask="fill").program(w, hw))
    runs = {one.kernel.name: one for one in run(kernels, hw, w)}
    s_bytes = 32 * 1024 * 1024 * 2
    assert runs["clone"].hbm_read_bytes == runs["clone"].hbm_write_bytes == s_bytes
    assert runs["masked_fill"].hbm_read_bytes == s_bytes * 3 / 2
    assert runs["masked_fill"].hbm_write_bytes == s_bytes


def test_softmax_is_slower_than_hbm_and_slowest_where_a_block_has_just_taken_the_rows_over():
    """1,823 rows in fp32 on a B200 move 2.51, 1.61 and 2.42 TB/s (a public series, PyTorch 2.13).

    Of 2,048 columns a warp has a row, of more a block.
    """
    hw = load_profile("b200")
    tb_per_s = {}
    for cols in (2048, 2176, 4096):
        shape = {"batch": 1, "heads": 1, "head_dim": 64, "dtype": "fp32"}
        w = WorkloadTable(**shape, seq_q=1823, seq_kv=cols).workload()
        kernels = kernels_of(Naive(mask=False).program(w, hw))
        (softmax,) = run([one for one in kernels if one.kind == "softmax"], hw, w)
        tb_per_s[cols] = 2 * 1823 * cols * 4 / softmax.time_s / 1e12
    assert tb_per_s[2176] < min(tb_per_s[2048], tb_per_s[4096])
    assert tb_per_s == pytest.approx({2048: 2.51, 2176: 1.61, 4096: 2.42}, rel=0.1)


@pytest.mark.parametrize(
    ("cols", "element_bytes", "threads"),
    [
        (1024, 2, 128),
        (2048, 2, 128),
        (4096, 2, 256),
        (8192, 2, 512),
        (24576, 2, 512),
        (2048, 4, 256),
    ],
)
def test_until_2_3_a_block_has_two_accesses_a_thread_up_to_512_of_them(
    cols, element_bytes, threads
):
    scores = Tensor("S", 64, 64, cols, element_bytes)
    kernel = softmax_kernel(scores, scores, HW, "2.3")
    assert kernel.footprint.threads == threads
    assert kernel.ctas == (64 * 64 if cols > 1024 else 64 * 64 // 4)


def test_until_2_3_softmax_of_long_rows_was_the_faster_one():
    scores = Tensor("S", 64, 64, 8192, 2)
    w = self_attention()
    now, then = (
        run([softmax_kernel(scores, scores, HW, release)], HW, w)[0] for release in (None, "2.3")
    )
    assert then.time_s < 0.8 * now.time_s
    assert then.hbm_read_bytes == now.hbm_read_bytes


@pytest.mark.parametrize(
    ("seq_len", "tflops"), [(512, 14.52), (1024, 16.72), (2048, 15.5), (4096, 18.56)]
)
def test_eager_attention_of_february_2024_on_an_rtx_a5000_is_as_published(seq_len, tflops):
    """gpu-mode/ring-attention, issue 10: looked up when its kernels had been counted."""
    hw = load_profile("rtx-a5000")
    w = self_attention(batch=16384 // seq_len, heads=32, seq_len=seq_len)
    kernels = kernels_of(Naive(framework="pytorch", release="2.3").program(w, hw))
    time_s = sum(one.time_s for one in run(kernels, hw, w))
    flops = 4 * w.batch * w.heads * w.seq_q * w.seq_kv * w.head_dim
    assert flops / time_s / 1e12 == pytest.approx(tflops, rel=0.12)


def test_rows_of_more_than_48_kib_are_read_three_times():
    scores = Tensor("S", 64, 64, 24512, 2)
    assert softmax_kernel(scores, scores, HW, None)
    longer = replace(scores, cols=24513)
    assert softmax_kernel(longer, longer, HW, None) is None


def test_rows_that_l1_does_not_hold_are_read_three_times_until_2_3():
    scores = Tensor("S", 64, 64, 2**15, 4)
    assert softmax_kernel(scores, scores, HW, "2.3") is None


def test_a_pass_over_what_is_not_contiguous_waits_for_one_element_after_the_other():
    """Of a mask that is added to each head: a thread's 4 elements are 4 times HBM's latency."""
    w = self_attention(batch=1, heads=2, seq_len=32, causal=True)
    scores, mask = Tensor("S", 2, 32, 512, 2), Tensor("M", 1, 32, 512, 2)
    alone, beside = (
        run([eager_pass("mask", reads, [scores])], HW, w)[0]
        for reads in ([scores, scores], [scores, mask])
    )
    waits_s = beside.cta_end_s.max() - beside.cta_start_s.min()
    assert (
        waits_s > 4 * HW.calibration.hbm.latency > alone.cta_end_s.max() - alone.cta_start_s.min()
    )


def test_a_release_with_a_softmax_of_ones_own_is_refused_in_one_line(tmp_path):
    done = refused(tmp_path, 'release = "2.3"\nsweeps = 3')
    assert_one_line(done, 'schedule naive: release = "2.3": sweeps = 1')


@pytest.mark.parametrize(
    "workload",
    [
        "window = 16\ncausal = true\nseq_len = 64",
        "phase = 'training'\nseq_len = 64",
        "phase = 'decode'\nseq_kv = 64",
        "seq_q = 8\nseq_kv = 64",
    ],
)
def test_what_the_benchmark_cannot_run_is_refused_in_one_line(tmp_path, workload):
    done = refused(tmp_path, 'framework = "pytorch"', workload)
    assert_one_line(done, 'schedule naive: framework = "pytorch": prefill with as many')
