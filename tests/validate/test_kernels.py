"""The Triton kernels: right against float64, and moving the bytes that the simulator says."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim.device.program import kernels_of
from sim.device.run import run_on_device
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.schedules import make_schedule
from sim.schedules.hip import REPRESENTATIVE
from sim.schedules.parts.hip_search import search
from sim.tile_program import in_order
from tests.support.interpreted import DEVICE, INTERPRETED, counted_bytes
from validate.float64 import TOLERANCE, attend, relative_error
from validate.kernels.launch import DTYPES, place

HW = load_profile("h100-sxm", {"l2": {"capacity": "0 B"}}, "a test")
SMALL_SRAM = load_profile(
    "h100-sxm", {"l2": {"capacity": "0 B"}, "sram": {"capacity": "33 KiB"}}, "a test"
)
MOST_STEPS = 60  # the interpreter takes some 5 ms a tile step

TILE = {"q": 32, "kv": 32}
NAIVE = {"name": "naive", "mask": False}
TRITON = {"implementation": "triton", "tile": TILE}
SCHEDULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "flash2, causal": ({"name": "flash2", **TRITON}, {"seq_len": 100, "causal": True}),
    "flash2, grouped heads, ragged": (
        {"name": "flash2", **TRITON, "stages": 2},
        {"heads": 4, "kv_heads": 2, "batch": 2, "head_dim": 40, "seq_q": 50, "seq_kv": 90},
    ),
    "flash2, window": (
        {"name": "flash2", **TRITON},
        {"seq_len": 130, "causal": True, "window": 50},
    ),
    "flash2, window to both sides": (
        {"name": "flash2", **TRITON},
        {"seq_q": 90, "seq_kv": 130, "causal": False, "window": 30},
    ),
    "naive, window to both sides": (
        {**NAIVE, "tile": TILE},
        {"seq_len": 90, "causal": False, "window": 20},
    ),
    "flash2, whole tiles": ({"name": "flash2", **TRITON}, {"seq_len": 128, "causal": True}),
    "naive, causal": ({**NAIVE, "tile": TILE}, {"seq_len": 100, "causal": True}),
    "naive, grouped heads": (
        {**NAIVE, "tile": {"q": 64, "kv": 32}},
        {"heads": 4, "kv_heads": 2, "seq_q": 40, "seq_kv": 90, "head_dim": 128},
    ),
    "block_sparse": (
        {"name": "block_sparse", **TRITON, "sinks": 4, "keep_window": 40, "random_blocks": 1},
        {"seq_len": 200, "causal": True},
    ),
    "block_sparse, not causal": (
        {"name": "block_sparse", **TRITON, "sinks": 4, "keep_window": 20},
        {"seq_len": 150},
    ),
    "flash_decoding, split": (
        {"name": "flash_decoding", **TRITON, "splits": 3, "tile": {"q": 16, "kv": 32}},
        {"heads": 8, "kv_heads": 2, "batch": 2, "seq_kv": 200, "phase": "decode"},
    ),
    "flash_decoding, whole": (
        {"name": "flash_decoding", **TRITON, "splits": 1, "tile": {"q": 16, "kv": 32}},
        {"seq_kv": 70, "phase": "decode"},
    ),
    "hip": (
        {"name": "hip", **TRITON, "keep": 64, "sinks": 4, "keep_window": 40},
        {"batch": 2, "seq_len": 300, "causal": True},
    ),
}  # fmt: skip


def workload(**table: Any) -> AttentionWorkload:
    defaults = {"heads": 2, "head_dim": 64, "dtype": "fp32"}
    return WorkloadTable.model_validate(defaults | table).workload()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SCHEDULES)
def test_kernels_compute_attention_as_float64_does(case, dtype):
    schedule, table = SCHEDULES[case]
    attention = place(make_schedule(schedule, "a test"), workload(**table, dtype=dtype), HW, DEVICE)
    attention.run()
    assert relative_error(attention) < TOLERANCE[dtype]


@pytest.mark.parametrize("case", ["flash2, causal", "flash_decoding, split"])
def test_log_sum_exp_is_that_of_the_scores(case):
    schedule, table = SCHEDULES[case]
    w = workload(**table)
    attention = place(make_schedule(schedule, "a test"), w, HW, DEVICE)
    attention.run()
    q = attention.by_role("query").reshape(w.batch * w.heads, w.seq_q, w.head_dim).double()
    k = attention.by_role("key").repeat_interleave(w.heads // w.kv_heads, 0).double()
    scores = q @ k.transpose(1, 2) / w.head_dim**0.5
    if w.causal:
        hidden = torch.ones(w.seq_q, w.seq_kv, device=q.device).tril(w.seq_kv - w.seq_q) == 0
        scores = scores.masked_fill(hidden, -torch.inf)
    expected = scores.logsumexp(-1).ravel()
    torch.testing.assert_close(
        attention.by_role("statistics").ravel().double(), expected, atol=1e-5, rtol=0
    )


def test_an_unwritten_output_is_no_right_one():
    schedule, table = SCHEDULES["flash2, causal"]
    attention = place(make_schedule(schedule, "a test"), workload(**table), HW, DEVICE)
    attention.run()
    attention.by_role("result")[1, 99, 3] = torch.nan
    assert not relative_error(attention) < 1


def test_the_reference_is_torch_s_own():
    q, k, v = torch.randn(3, 50, 64, dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    torch.testing.assert_close(attend(q, k, v, torch.ones(50, 50, dtype=torch.bool)), expected)


@st.composite
def small_cases(draw):
    """Any schedule that has kernels, any mask, ragged lengths, of few tiles."""
    side = st.sampled_from((16, 32, 64))
    tile = {"q": draw(side), "kv": draw(side)}
    name = draw(st.sampled_from(("naive", "flash2", "block_sparse", "flash_decoding", "hip")))
    table: dict[str, Any] = {"name": name, "tile": tile}
    if name == "naive":
        table["mask"] = False
    else:
        table |= {"implementation": "triton", "stages": draw(st.integers(1, 3))}
    if name == "flash_decoding":
        table["splits"] = draw(st.integers(1, 5))
    if name == "block_sparse":
        table |= {
            "sinks": draw(st.integers(0, 40)),
            "keep_window": draw(st.none() | st.integers(1, 60)),
            "random_blocks": draw(st.integers(0, 2)),
        }
    if name == "hip":
        table |= {"keep": 64, "sinks": draw(st.integers(0, 40)), "keep_window": 16}
    kv_heads, seq_kv = draw(st.integers(1, 2)), draw(st.integers(1, 160))
    causal = name == "hip" or draw(st.booleans())
    seq_q = draw(st.integers(1, seq_kv if causal else 120))
    w = AttentionWorkload(
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        seq_q=seq_q,
        seq_kv=seq_kv,
        head_dim=draw(st.sampled_from((16, 40, 64))),
        dtype="fp32",
        causal=causal,
        window=draw(st.none() | st.integers(1, 100)) if causal and name != "hip" else None,
    )
    if name == "flash_decoding":
        w = replace(w, seq_q=1, phase="decode")
    if w.window is not None and name in ("naive", "flash2"):
        w = replace(w, causal=draw(st.booleans()))
    return make_schedule(table, "a test"), w


def assert_same_bytes(schedule, w, hw):
    """What the kernels' loads and stores issue is what the simulator, L2 off, moves.

    On a GPU, where the interpreter counts no bytes, the kernels only run.
    """
    attention = place(schedule, w, hw, DEVICE)
    runs = run_on_device(in_order(attention.kernels), hw, w.dtype, "replay", lambda _: None).kernels
    for launch, simulated in zip(attention.launches, runs, strict=True):
        if not INTERPRETED:
            launch()
            continue
        with counted_bytes(attention.tensors) as (loaded, stored):
            launch()
        for tensor, held in attention.tensors.items():
            if held.dtype == torch.int32:  # block tables are numbers to the simulator, not data
                del loaded[tensor]
        assert sum(loaded.values()) == simulated.run.hbm_read_bytes, launch.name
        assert sum(stored.values()) == simulated.run.hbm_write_bytes, launch.name
    return attention


@given(small_cases())
@settings(max_examples=30)  # Triton's interpreter is slow
def test_kernels_issue_exactly_the_bytes_that_the_simulator_predicts_without_l2(case):
    schedule, w = case
    kernels = kernels_of(schedule.program(w, HW))
    assume(sum(kernel.tile_steps for kernel in kernels) <= MOST_STEPS)
    assert relative_error(assert_same_bytes(schedule, w, HW)) < TOLERANCE["fp32"]


def test_rows_too_long_for_sram_are_read_three_times():
    w = workload(heads=1, seq_q=2, seq_kv=9300, head_dim=16)
    attention = assert_same_bytes(
        make_schedule({"name": "naive", "mask": False, "tile": {"q": 16, "kv": 64}}, "a test"),
        w,
        SMALL_SRAM,
    )
    assert len(attention.kernels[1].loops) == 3
    assert relative_error(attention) < TOLERANCE["fp32"]


def test_the_search_finds_what_the_schedule_s_search_finds_by_the_same_scores():
    table = {"name": "hip", **TRITON, "keep": 128, "sinks": 4, "keep_window": 40}
    schedule, w = (
        make_schedule(table, "a test"),
        workload(batch=2, kv_heads=1, seq_len=700, causal=True),
    )
    attention = place(schedule, w, HW, DEVICE)
    attention.launches[0]()
    q, k = (attention.by_role(role).cpu().double().numpy() for role in ("query", "key"))
    found = attention.key_tables[attention.kernels[1]].table.cpu().numpy()
    size, keep = TILE["kv"], 4
    width = len(found) // (4 * 22)
    for matrix in range(4):
        for number, (first, low, high, end) in enumerate(schedule.ranges(w, schedule.tile)):
            rows = q[matrix, number * 32 : number * 32 + 32]

            def score(chunks, low=low, rows=rows, keys=k[matrix // 2]):
                starts = (low + chunks) * size + size // REPRESENTATIVE // 2 * REPRESENTATIVE
                return np.array([(rows @ keys[s : s + REPRESENTATIVE].T).max() for s in starts])

            expected = low + search(high - low, keep, score)[1]
            start = (matrix * 22 + number) * width + (low - first) + (end - high)
            ours = found[start : start + keep]
            np.testing.assert_array_equal(
                ours, np.pad(expected, (0, keep - len(expected)), constant_values=-1)
            )


@pytest.mark.parametrize(
    ("schedule", "complaint"),
    [
        ({"name": "flash1"}, "no Triton kernel for 'flash1'"),
        ({"name": "naive", "scale": True}, "no Triton kernel for 'scale'"),
        ({"name": "flash2"}, 'implementation = "cuda"'),
    ],
)
def test_what_has_no_kernel_is_said(schedule, complaint):
    with pytest.raises(InputError, match=complaint):
        place(make_schedule(schedule, "a test"), workload(seq_len=64), HW, DEVICE)
