"""What a row measured: its device, its schedule with options, and what else is in its time."""

from dataclasses import replace

import pytest

from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.machine import machine_of
from tests.support.tables_of_figures import DECODE, figure
from validate.beside import Beside
from validate.cache_write import CacheWrite
from validate.devices import at_clock, device_of
from validate.measured import (
    BETWEEN_GRAPHS_S,
    FIRST_GRAPH_S,
    IN_A_STREAM_S,
    Case,
    measured_of,
)
from validate.operations import OPERATIONS, operation_of
from validate.predict import NotPredictedError
from validate.simulated import simulate


def case(folder, **row) -> Case:
    return measured_of(figure(folder, **row)).case


def why(folder, **row) -> str:
    with pytest.raises(NotPredictedError) as caught:
        measured_of(figure(folder, **row))
    return str(caught.value)


# --- devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "extra", "profile", "clock_mhz"),
    [
        ("H100 80GB HBM3", "", "h100-sxm", None),
        ("B200 (2250 TF peak by MFU)", "", "b200", None),
        ("T4 (SM clock locked 585 MHz)", "", "t4", 585),
        ("A30", "ncu defaults: base clocks", "a30", 930),
        ("A30", "ncu --clock-control none", "a30", None),
        ("L4", "ncu default (base clocks ~0.84 GHz)", "l4", 840),
        ("rtx-4090", "", "rtx-4090", None),
    ],
)
def test_a_name_means_a_profile_at_the_clock_that_the_row_states(
    tmp_path, gpu, extra, profile, clock_mhz
):
    hw = device_of(figure(tmp_path, gpu=gpu, extra=extra))
    assert hw.name == profile
    expected = load_profile(profile).sm.clock if clock_mhz is None else clock_mhz * 1e6
    assert hw.sm.clock == pytest.approx(expected)


def test_a_device_that_begins_slowly_by_its_collections_own_matmuls_runs_at_that_clock(tmp_path):
    """The L40S of aiconfigurator's later collections; its HBM is as fast as ever."""
    nominal, collected = load_profile("l40s"), "ai-dynamo/aiconfigurator@1 systems/data/l40s"
    for source, slower in (
        (f"{collected}/attention/vllm/0.24.0/context_attention_perf.parquet", 1.12),
        (f"{collected}/mla/vllm/0.14.0/context_mla_perf.parquet", 1.0),
        ("my own table", 1.0),
    ):
        hw = device_of(figure(tmp_path, gpu="L40S", source=source))
        assert nominal.sm.clock / hw.sm.clock == pytest.approx(slower, rel=0.01)
        assert hw.hbm == nominal.hbm


def test_at_half_the_clock_what_takes_cycles_takes_twice_as_long_and_hbm_does_not():
    hw = load_profile("t4")
    slow = at_clock(hw, hw.sm.clock / 2)
    assert slow.tensor_flops_per_s("fp16") == pytest.approx(hw.tensor_flops_per_s("fp16") / 2)
    assert slow.l2.bandwidth == pytest.approx(hw.l2.bandwidth / 2)
    assert slow.calibration.l2.latency == pytest.approx(2 * hw.calibration.l2.latency)
    assert slow.hbm == hw.hbm


def test_a_device_that_is_a_guess_is_not_predicted_unless_a_profile_is_given(tmp_path):
    row = {"gpu": "H100 (assumed; README does not say)"}
    assert "its device is a guess" in why(tmp_path, **row)
    assert "it is no profile's device" in why(tmp_path, gpu="MI355X")
    given = measured_of(figure(tmp_path, **row), "h100-sxm")
    assert given.case.hardware.name == "h100-sxm"


# --- which schedule --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "options"),
    [
        (
            {"kernel": "vllm vllm_flash_attn_fa3"},
            {"name": "flash3", "call": "paged", "implementation": "vllm"},
        ),
        (
            DECODE | {"kernel": "vllm vllm_flash_attn_fa3"},
            {"name": "flash3", "call": "paged", "implementation": "vllm"},
        ),
        (
            DECODE | {"kernel": "sglang fa3"},
            {"name": "flash3", "call": "paged", "implementation": "sglang"},
        ),
        (
            {"kernel": "sglang fa3"},
            {"name": "flash3", "call": "paged", "implementation": "sglang"},
        ),
        ({"kernel": "FlashAttention-3 (varlen)"}, {"name": "flash3", "call": "varlen"}),
        (
            {"kernel": "trtllm torch_flow", "gpu": "A100", "head_dim": "128"},
            {"name": "flash2", "implementation": "trtllm"},
        ),
        (
            {"kernel": "trtllm torch_flow", "gpu": "L40S"},
            {"name": "flash2", "implementation": "trtllm"},
        ),
        (
            {"kernel": "trtllm torch_flow", "gpu": "H200"},
            {"name": "flash3", "implementation": "trtllm"},
        ),
        (
            {"kernel": "vllm vllm_flash_attn_fa2", "gpu": "L40S"},
            {"name": "paged", "page_size": 64},
        ),
        (
            {"kernel": "flashinfer paged prefill", "extra": "page 16"},
            {"name": "paged", "page_size": 16, "implementation": "flashinfer"},
        ),
        (
            {"kernel": "sglang flashinfer", "gpu": "B200"},
            {"name": "flash4", "implementation": "cutlass"},
        ),
        (
            {"kernel": "trtllm torch_flow", "gpu": "B200"},
            {"name": "flash4", "implementation": "trtllm-gen"},
        ),
        (
            DECODE | {"kernel": "vllm vllm_flash_attn"},
            {"name": "paged", "page_size": 64},
        ),
        (
            DECODE | {"kernel": "flashinfer paged decode", "extra": "page 128; warm"},
            {"name": "paged", "page_size": 128, "implementation": "flashinfer"},
        ),
        (
            DECODE | {"kernel": "FlashInfer paged decode", "extra": "page 1; warm"},
            {"name": "paged", "page_size": 1, "implementation": "flashinfer"},
        ),
        (
            DECODE | {"kernel": "FlashAttention-2 2.8.3 split-KV", "extra": "7 splits; cold"},
            {"name": "flash_decoding", "splits": 7},
        ),
        (
            {"kernel": "sglang triton"},
            {"name": "flash2", "implementation": "sglang"},
        ),
        ({"kernel": "SDPA math"}, {"name": "naive", "framework": "sdpa"}),
        (
            {"kernel": "SDPA math fp32 (upcast)"},
            {"name": "naive", "framework": "sdpa"},
        ),
        (
            {"kernel": "SDPA efficient (mem-efficient)"},
            {"name": "flash2", "implementation": "mem-efficient"},
        ),
        ({"kernel": "flash2"}, {"name": "flash2"}),
        ({"kernel": "flex"}, {"name": "flex"}),
    ],
)
def test_the_kernels_name_pass_and_architecture_say_which_schedule(tmp_path, row, options):
    schedule = case(tmp_path, **{k + "_" * (k == "pass"): v for k, v in row.items()}).schedule
    assert schedule.model_dump(exclude_unset=True) == options


def test_every_pattern_of_the_table_is_of_a_schedule_or_says_why_there_is_none():
    for operation in OPERATIONS:
        assert (operation.schedule is None) == bool(operation.why)


def test_one_kernel_of_several_is_judged_alone(tmp_path):
    assert case(tmp_path, kernel="naive PV", metric="dram_total_bytes").launches == "O = P V"
    row = DECODE | {"kernel": "FlashAttention-2 2.8.3 splitkv combine", "extra": "ncu; cold"}
    row["pass_"] = row.pop("pass")
    assert case(tmp_path, **row).launches == "combine"


@pytest.mark.parametrize(
    ("row", "options"),
    [
        (
            {"kernel": "naive unfused kernel pv (S1)", "head_dim": "128", "gpu": "T4"},
            {"tile": {"q": 2, "kv": 128}, "depth": 8, "stages": 1},
        ),
        (
            {"kernel": "naive unfused kernel qk (S1)", "gpu": "T4"},
            {"tile": {"q": 1, "kv": 256}, "depth": 8, "stages": 1},
        ),
        ({"kernel": "naive softmax", "gpu": "L4"}, {"sweeps": 3}),
        ({"kernel": "fp32_fused_kernel"}, {"tile": {"q": 32, "kv": 16}}),
        (
            {"kernel": "FA2-order fused WMMA wmma (S4)", "extra": "Q tile rows 32", "gpu": "T4"},
            {"tile": {"q": 32, "kv": 32}},
        ),
        (DECODE | {"kernel": "splitkv merge"}, {"splits": 64}),
    ],
)
def test_an_authors_own_kernel_has_the_tile_of_its_source(tmp_path, row, options):
    given = {"metric": "l2_hit_pct", "dtype": "fp32", "kv_dtype": "fp32"} | row
    given = {k + "_" * (k == "pass"): v for k, v in given.items()}
    stated = case(tmp_path, **given).schedule.model_dump(exclude_unset=True)
    assert {key: stated[key] for key in options} == options


def test_of_an_authors_own_loop_bytes_are_judged_and_times_are_not(tmp_path):
    assert measured_of(figure(tmp_path, kernel="naive PV", metric="l2_hit_pct"))
    assert "own loop" in why(tmp_path, kernel="naive PV")


def test_an_fp8_cache_is_multiplied_in_fp8_where_the_kernel_does(tmp_path):
    fa3 = case(tmp_path, kernel="vllm vllm_flash_attn_fa3", kv_dtype="fp8").workload
    assert (fa3.dtype, fa3.kv_dtype) == ("fp8", None)
    gen = {"kernel": "vllm vllm_flashinfer_trtllmprefill", "gpu": "B200"}
    assert case(tmp_path, **gen, kv_dtype="fp8").workload.dtype == "fp8"
    assert case(tmp_path, **gen).workload.dtype == "bf16"
    row = DECODE | {"kernel": "vllm vllm_flashinfer_fidecode", "kv_dtype": "fp8", "gpu": "L40S"}
    row["pass_"] = row.pop("pass")
    decode = case(tmp_path, **row).workload
    assert (decode.dtype, decode.kv_dtype) == ("bf16", "fp8")


def test_latent_attention_decodes_from_one_cache(tmp_path):
    row = {"kernel": "vllm MLA vllm_flashmla", "pass_": "decode", "seq_q": "1", "head_dim": "576"}
    w = case(tmp_path, **row, kv_heads="1").workload
    assert (w.latent_dim, w.rope_dim, w.kv_heads) == (512, 64, 8)


@pytest.mark.parametrize(
    ("kernel", "gpu", "schedule", "sides", "dtype"),
    [
        # K and V of every head, by whose kernel; V filled up only for FlashAttention-2
        ("vllm MLA vllm_triton_mla", "A100", ("flash2", "cuda"), (192, 192, 8), "bf16"),
        ("vllm MLA vllm_flash_attn_mla", "H200", ("flash3", "vllm"), (192, 128, 8), "bf16"),
        ("vllm MLA vllm_flashmla", "H200", ("flash3", "vllm"), (192, 128, 8), "bf16"),
        ("trtllm MLA default", "L40S", ("flash2", "trtllm"), (192, 128, 8), "bf16"),
        ("trtllm MLA default", "H200", ("flash3", "trtllm"), (192, 128, 8), "fp8"),
        ("trtllm MLA default", "B200", ("flash4", "trtllm-gen"), (192, 128, 8), "fp8"),
        # what SGLang's collector calls: latents as they lie, on Blackwell K and V of one head
        ("sglang MLA triton", "L40S", ("flash2", "sglang"), (576, 512, 1), "bf16"),
        ("sglang MLA trtllm_mla", "B200", ("flash4", "trtllm-gen"), (192, 128, 1), "fp8"),
        ("sglang MLA flash_attention", "H200", ("mla", "fa3"), (128, 128, 8), "bf16"),
    ],
)
def test_each_framework_prefills_latents_by_its_own_kernel(
    tmp_path, kernel, gpu, schedule, sides, dtype
):
    """aiconfigurator, collector/{vllm,sglang,trtllm}/collect_mla.py."""
    own = case(tmp_path, kernel=kernel, gpu=gpu, head_dim="192", kv_heads="8", kv_dtype="fp8")
    w = own.workload
    assert (own.schedule.name, own.schedule.implementation) == schedule
    assert (w.head_dim, w.value_columns, w.kv_heads) == sides
    assert (w.dtype, w.latent_dim is not None) == (dtype, schedule[0] == "mla")


def test_when_a_collector_begins_to_time_and_how_long_is_known(tmp_path):
    """helper.py, benchmark_with_power: twice the calls to warm up, then those that are timed."""
    source = "ai-dynamo/aiconfigurator systems/data/a100_sxm/attention"
    row = {"gpu": "A100", "source": source}
    for kernel, calls in (
        ("vllm vllm_flash_attn", (6, 12)),
        ("vllm MLA vllm_triton_mla", (3, 9)),
        ("sglang flash_attention", (6, 26)),
    ):
        assert measured_of(figure(tmp_path, kernel=kernel, **row)).calls == calls
    assert measured_of(figure(tmp_path, kernel="vllm vllm_flash_attn", gpu="A100")).calls is None


@pytest.mark.parametrize(
    ("kernel", "graphs"),
    [("vllm vllm_flash_attn", 6), ("sglang flash_attention", 20), ("vllm MLA vllm_triton_mla", 0)],
)
def test_a_collector_s_call_is_a_graph_and_the_first_of_them_is_waited_for(
    tmp_path, kernel, graphs
):
    """ai-dynamo/aiconfigurator: repeat_n = 1; vLLM's latents are called one by one."""
    row = {"gpu": "A100", "kernel": kernel, "extra": "warm"}
    source = "ai-dynamo/aiconfigurator systems/data/a100_sxm/attention"
    collected, other = (
        measured_of(figure(tmp_path, **row, **more)) for more in ({"source": source}, {})
    )
    host_s = BETWEEN_GRAPHS_S + FIRST_GRAPH_S / graphs if graphs else 0.0
    assert collected.beside.host_s == pytest.approx(host_s)
    assert collected.apart_s == (0 if graphs else IN_A_STREAM_S)
    assert (other.beside.host_s, other.apart_s) == (0, IN_A_STREAM_S)


@pytest.mark.parametrize(("calls", "longer_us"), [(6, 6.8 - 4.5), (10, 3.9 - 2.6)])
def test_small_matmuls_alone_in_a_graph_take_longer_by_what_its_launch_costs(calls, longer_us):
    """Against six of them in a graph that is replayed six times: measured on a B200 and an H100."""
    in_six_s = BETWEEN_GRAPHS_S / 6 + FIRST_GRAPH_S / 36
    alone_s = BETWEEN_GRAPHS_S + FIRST_GRAPH_S / calls
    assert alone_s - in_six_s == pytest.approx(longer_us * 1e-6, rel=0.05)


def test_a_profiler_s_single_launch_is_one_call(tmp_path):
    assert measured_of(figure(tmp_path, extra="ncu, cold")).calls == (0, 1)


@pytest.mark.parametrize(
    ("kernel", "gpu", "implementation", "splits"),
    [
        ("vllm MLA vllm_flashmla", "H100 80GB HBM3", "flashmla", None),
        ("vllm MLA vllm_flash_attn_mla", "H100 80GB HBM3", "fa3", None),
        ("sglang MLA flash_attention", "H100 80GB HBM3", "fa3", None),
        ("vllm MLA vllm_triton_mla", "L40S", "triton", 4),
        ("sglang MLA triton", "L40S", "sglang", None),
        ("trtllm MLA default", "A100-SXM4-80GB", "trtllm", None),
        ("trtllm MLA default", "H100 80GB HBM3", "trtllm", None),
        ("trtllm MLA default", "B200", "trtllm", None),
        ("FlashInfer MLA decode", "H20", "flashinfer", None),
    ],
)
def test_each_framework_decodes_latents_by_its_own_kernel(
    tmp_path, kernel, gpu, implementation, splits
):
    row = {"kernel": kernel, "gpu": gpu, "pass_": "decode", "seq_q": "1", "head_dim": "576"}
    schedule = case(tmp_path, **row, kv_heads="1").schedule
    assert (schedule.implementation, schedule.splits) == (implementation, splits)


def test_sglangs_8_bit_latents_stay_in_the_cache_and_are_cast(tmp_path):
    row = {"pass_": "decode", "seq_q": "1", "head_dim": "576", "kv_dtype": "fp8"}
    w = case(tmp_path, **row, kernel="sglang MLA flash_attention").workload
    assert (w.dtype, w.kv_dtype) == ("bf16", "fp8")
    w = case(tmp_path, **row, kernel="trtllm MLA default").workload
    assert (w.dtype, w.kv_dtype) == ("fp8", None)


# --- what else the text says -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "causal", "window"),
    [
        ("window 128", "1", 128),
        ("window 4096", "1", None),
        ("window left 127 right 0", "1", 128),
        ("window left 1024 right 1024", "0", None),
        ("window left -1 right -1", "0", None),
    ],
)
def test_a_window_is_the_latest_keys_and_one_that_covers_all_is_none(
    tmp_path, extra, causal, window
):
    assert case(tmp_path, extra=extra, causal=causal).workload.window == window


def test_a_window_may_reach_to_both_sides_as_far_to_each(tmp_path):
    w = case(tmp_path, extra="window left 128 right 128", causal="0").workload
    assert (w.window, w.causal) == (129, False)
    assert "farther to one side" in why(tmp_path, extra="window left 128 right 64", causal="0")


@pytest.mark.parametrize(
    ("extra", "warm"),
    [
        ("CUDA graph replay mean, warm L2", True),
        ("events, warm (no flush)", True),
        ("nvbench cold (L2 flushed)", False),
        ("ncu", False),
        ("median of 100", True),
    ],
)
def test_l2_is_as_the_row_says_else_as_repetitions_leave_it(tmp_path, extra, warm):
    assert case(tmp_path, extra=extra).warm == warm


@pytest.mark.parametrize(
    ("extra", "dirty", "host_s"),
    [
        ("nvbench cold (L2 flushed)", True, 10e-6),
        ("events, 256 MB zeroed between calls (cold L2)", True, 0),
        ("nvbench batch (warm L2)", False, 0),
        ("ncu, cold L2", False, 0),
    ],
)
def test_a_flush_that_writes_leaves_l2_dirty_and_some_calls_have_their_host_part(
    tmp_path, extra, dirty, host_s
):
    row = DECODE | {"extra": extra}
    measured = measured_of(figure(tmp_path, **row | {"pass_": row.pop("pass")}))
    assert (measured.case.dirty, measured.beside.host_s) == (dirty, host_s)
    assert measured_of(figure(tmp_path, extra=extra)).beside.host_s == 0  # of a prompt


def test_vllm_copies_packed_heads_to_rows_and_back(tmp_path):
    row = {"kernel": "vllm vllm_flash_attn_fa2", "gpu": "L40S", "batch": "4"}
    row |= DECODE | {"heads": "8", "extra": "bf16/fp8 KV write included"}
    row["pass_"] = row.pop("pass")

    def beside_of(**changes):
        return measured_of(figure(tmp_path, **row | changes)).beside

    copy_bytes = 2 * (4 * 8 * 128 * 2)
    assert beside_of(kv_heads="2").bytes == 2 * copy_bytes
    assert beside_of(kv_heads="1").bytes == copy_bytes  # Q lies so already
    assert beside_of(kv_heads="8").launches == 0
    assert beside_of(kv_heads="2", extra="window 100, KV write included").launches == 0
    assert [one.bytes for one in beside_of(kv_heads="2").writes] == [2 * 2 * (2 * 4 * 128 * 2)]
    assert [beside_of(kv_heads=str(heads)).turned_copies for heads in (1, 2, 8)] == [1, 2, 0]


def test_a_copy_that_turns_heads_moves_one_element_of_a_thread_after_the_other():
    """Of four, each read of L2 waits for the store before: 2.4 us on an A100, two loads 1.0."""
    hw = load_profile("a100-sxm-80gb")
    w = WorkloadTable(seq_len=512, batch=1, heads=8, head_dim=128, dtype="bf16").workload()
    plain_s, turned_s = (
        Beside(2**12, launches=1, turned_copies=copies).times(w, hw)[0] for copies in (0, 1)
    )
    assert turned_s - plain_s > 2 * hw.calibration.l2.latency
    assert turned_s - hw.calibration.launch.gap == pytest.approx(2.4e-6, rel=0.05)


def test_the_cache_write_gaps_and_the_floor_come_from_the_text(tmp_path):
    row = {"kv_heads": "2", "batch": "3", "head_dim": "64"}
    plain = measured_of(figure(tmp_path, **row, extra="bf16/fp8 KV write included, warm L2"))
    written = 2 * 3 * 512 * 2 * 64 * 2  # K and V of 2 bytes, which are read too
    assert [one.bytes for one in plain.beside.writes] == [2 * written]
    assert (plain.has_gaps, plain.floor_us) == (True, 30)
    wrapper = measured_of(figure(tmp_path, extra="below some 40 us it is host time; warm L2"))
    assert (wrapper.beside.writes, wrapper.floor_us) == ((), 40)
    profiled = measured_of(figure(tmp_path, extra="CUPTI kernel time"))
    assert (profiled.has_gaps, profiled.floor_us) == (False, 0)
    row = {"kernel": "vllm MLA vllm_triton_mla", "pass_": "decode", "seq_q": "1"}
    assert measured_of(figure(tmp_path, **row, gpu="L40S")).floor_us == 450


def test_a_cache_with_room_for_more_is_cut_by_its_room_and_a_window_keeps_heads_apart(tmp_path):
    row = DECODE | {"kernel": "FlashAttention-2 C++ mha_fwd_kvcache", "gpu": "A30"}
    row |= {"pass_": row.pop("pass"), "extra": "page 256; nvbench cold (L2 flushed)"}
    schedule = case(tmp_path, **row).schedule
    assert (schedule.call, schedule.splits, schedule.pack_gqa) == ("kvcache", None, None)
    assert schedule.room_tokens == 2**20  # of one sequence
    wide = case(tmp_path, **row | {"extra": "window left 100000 right -1; page 256"})
    assert (wide.workload.window, wide.schedule.pack_gqa) == (None, False)
    xqa = {"kernel": "trtllm torch_flow", "extra": "window 128", "gpu": "L40S"}
    assert case(tmp_path, **row | xqa).schedule.pack_gqa is True
    triton = {"kernel": "sglang triton", "extra": "window 128", "gpu": "L40S"}
    assert case(tmp_path, **row | triton).schedule.pack_gqa is None


@pytest.mark.parametrize(("kv_heads", "implementation"), [("2", "xqa"), ("16", "cuda")])
def test_tensorrt_llm_decodes_by_xqa_unless_each_query_head_has_its_own_keys(
    tmp_path, kv_heads, implementation
):
    row = {"kernel": "trtllm torch_flow", "pass_": "decode", "seq_q": "1", "gpu": "L40S"}
    schedule = case(tmp_path, **row, heads="16", kv_heads=kv_heads).schedule
    assert (schedule.implementation, schedule.page_size) == (implementation, 64)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"batch": ""}, "its batch is not stated"),
        ({"causal": ""}, "whether it is causal is not stated"),
        ({"kernel": "SDPA cuDNN"}, "cuDNN's kernel is not public"),
        ({"kernel": "a kernel of mine"}, "no schedule stands for its kernel"),
        ({"pass_": "bwd", "kernel": "sglang fa3"}, "no schedule stands for its kernel"),
        ({"dtype": "mxfp8"}, "mxfp8 (cache: bf16) is no dtype here"),
        ({"gpu": "A100", "dtype": "fp8", "kv_dtype": "fp8"}, "a100-sxm-80gb has no tensor rate"),
        ({"extra": "KV shared across batch"}, "all sequences read one copy"),
        ({"extra": "random ragged lengths"}, "different lengths"),
        ({"heads": "8", "kv_heads": "3"}, "heads = 8 must be a multiple of kv_heads = 3"),
    ],
)
def test_a_row_that_cannot_be_predicted_says_why(tmp_path, row, reason):
    assert reason in why(tmp_path, **row)


def test_the_first_row_of_the_table_that_fits_counts(tmp_path):
    one = figure(tmp_path, kernel="vllm MLA vllm_triton_mla", head_dim="192", gpu="L40S")
    assert operation_of(one, load_profile("l40s")).head_dim == 192


def test_tensorrt_llms_pass_over_packed_qkv_reads_and_writes_all_three(tmp_path):
    row = {"kernel": "trtllm torch_flow", "head_dim": "128", "batch": "2", "kv_heads": "4"}
    measured = measured_of(figure(tmp_path, **row, kv_dtype="fp8", gpu="A100"))
    w = measured.case.workload
    q, kv = 2 * w.seq_q * w.heads * 128, 2 * 2 * w.seq_q * 4 * 128
    assert measured.beside.bytes == 2 * (q + kv) + 2 * q + kv + kv  # K again, where it was
    hopper = measured_of(figure(tmp_path, **row, kv_dtype="bf16", gpu="H100"))
    assert hopper.beside.bytes == 2 * (q + kv) + 2 * q + 2 * kv


@pytest.mark.parametrize("gpu", ["B200", "H100"])
def test_of_one_query_tensorrt_llms_pass_alone_is_launched(tmp_path, gpu):
    """xqaDispatcher.cpp: no offsets are made; the pass takes a lone warp 1,900 cycles."""
    row = DECODE | {"kernel": "trtllm torch_flow", "gpu": gpu, "heads": "32", "kv_heads": "8"}
    row |= {"kv_dtype": "fp8", "extra": "KV write included, warm L2"}
    own = measured_of(figure(tmp_path, **row)).beside
    assert (own.launches, own.lone_cycles) == (1, 1900)


def test_a_turned_query_head_reads_cosines_a_sector_at_a_time(tmp_path):
    """A warp has 512 bytes of Q: 6 accesses of as many, 8 of 16 sectors each.

    NVIDIA's aiconfigurator, a B200, 64 x 1,024 tokens, 64 heads on 8: 2.48 ms, of which attention
    takes some 1.4.
    """
    row = {"kernel": "trtllm torch_flow", "head_dim": "128", "heads": "64", "kv_heads": "8"}
    row |= {"batch": "64", "seq_q": "1024", "seq_kv": "1024", "gpu": "B200"}
    measured = measured_of(figure(tmp_path, **row))
    w, hw = measured.case.workload, measured.case.hardware
    warps = w.batch * w.seq_q * w.heads * 128 * 2 // 512
    assert measured.beside.sm_cycles == warps * (6 * 4 + 8 * 16)
    taken_s, roofline_s = measured.beside.times(w, hw)
    assert taken_s == pytest.approx(1.1e-3, rel=0.1)
    assert taken_s > 2 * roofline_s


def test_one_token_s_turning_takes_a_warp_s_instructions(tmp_path):
    """1,900 cycles in a row (validate/beside.py), 1.04 us on an H100, beside a launch and reads."""
    row = figure(tmp_path, **DECODE | {"kernel": "trtllm torch_flow", "batch": "1"})
    measured = measured_of(row)
    turned, hw = measured.beside, measured.case.hardware
    without = replace(turned, lone_cycles=0)
    w = measured.case.workload
    assert turned.times(w, hw)[0] - without.times(w, hw)[0] == pytest.approx(1900 / hw.sm.clock)


@pytest.mark.parametrize("tokens", [256, 4096])
def test_offsets_of_a_prefill_take_a_cta_a_turn_for_256_tokens(tmp_path, tokens):
    """75 cycles each, beside 2,440 (validate/beside.py), before the pass that turns Q and K."""
    row = {"kernel": "trtllm torch_flow", "head_dim": "128", "batch": "2"}
    row |= {"seq_q": str(tokens), "seq_kv": str(tokens)}
    beside = measured_of(figure(tmp_path, **row)).beside
    assert beside.launches == 2
    assert beside.lone_cycles == 1900 + 2440 + 75 * tokens // 256


def test_sglang_quantises_the_queries_of_fp8_by_their_own_maximum(tmp_path):
    row = {"kernel": "sglang trtllm_mha", "gpu": "B200", "extra": "KV write included, warm L2"}
    plain, fp8 = (
        measured_of(figure(tmp_path, **row, dtype=dtype, kv_dtype=dtype)).beside
        for dtype in ("bf16", "fp8")
    )
    w = measured_of(figure(tmp_path, **row)).case.workload
    q, kv = (w.batch * w.seq_q * heads * w.head_dim for heads in (w.heads, 2 * w.kv_heads))
    assert plain == Beside(bytes=4 * kv, launches=1, threads=32 * w.batch * w.seq_q)
    assert fp8 == Beside(bytes=(2 + 2 + 1) * q + (2 + 1) * kv, launches=6)


@pytest.mark.parametrize(
    ("kernel", "launches"),
    [("trtllm torch_flow", 2), ("sglang fa3", 2), ("vllm vllm_flash_attn_fa3", 1)],
)
def test_what_is_made_of_lengths_within_the_call_is_a_launch_more(tmp_path, kernel, launches):
    row = figure(tmp_path, kernel=kernel, extra="KV write included")
    beside = measured_of(row).beside
    assert beside.launches + len(beside.writes) == launches


@pytest.mark.parametrize(
    ("changed", "launches"),
    [({}, 1), ({"extra": "KV write included; window 128"}, 2), ({"kv_dtype": "fp8"}, 4)],
)
def test_sglang_counts_blocks_of_decoding_ahead_of_the_call_but_behind_windows(
    tmp_path, changed, launches
):
    """flashattention_backend.py, forward_decode; to a cache of 8 bits Q, K and V are cast first."""
    row = {"kernel": "sglang fa3", "pass": "decode", "extra": "KV write included", "seq_q": "1"}
    assert measured_of(figure(tmp_path, **row | changed)).beside.launches == launches


def test_a_cache_of_fp8_is_multiplied_in_fp8_on_hopper_alone(tmp_path):
    row = {"kernel": "trtllm torch_flow", "kv_dtype": "fp8"}
    assert case(tmp_path, **row, gpu="H200").workload.dtype == "fp8"
    assert case(tmp_path, **row, gpu="L40S").workload.dtype == "bf16"


def test_latents_are_expanded_by_a_matmul_within_vllms_prefill(tmp_path):
    row = {"kernel": "vllm MLA vllm_triton_mla", "head_dim": "192", "gpu": "A100"}
    measured = measured_of(figure(tmp_path, **row))
    w = measured.case.workload
    rows = w.batch * w.seq_q * w.heads
    assert measured.beside.flops == 2 * 512 * 256 * rows
    written = 2 * w.batch * w.seq_q * 576
    multiplied, joined = w.batch * w.seq_q * 512 + 256 * rows, (128 + 192) * rows
    zeros, filled, cut, copied_out = (192 * rows, *(3 * (2 * 128 * rows,)))
    passes = zeros + filled + cut + copied_out
    assert measured.beside.bytes == 2 * (written + multiplied + joined + passes)
    assert measured.beside.strided_bytes == 2 * (joined + filled + cut)
    assert (measured.beside.launches, measured.floor_us) == (8, 450)
    hopper = measured_of(
        figure(tmp_path, **row | {"kernel": "vllm MLA vllm_flashmla", "gpu": "H100"})
    )
    assert hopper.beside.bytes == 2 * (written + multiplied + joined + copied_out)
    assert hopper.beside.strided_bytes == 2 * joined


@pytest.mark.parametrize(
    ("kernel", "gpu", "multiplied"),
    [
        ("vllm MLA vllm_triton_mla", "L40S", 64 / (192 + 192)),
        ("vllm MLA vllm_flashmla", "H200", 64 / (192 + 128)),
        ("sglang MLA triton", "L40S", 1),
        ("vllm vllm_flash_attn", "L40S", 1),
    ],
)
def test_matmuls_of_zeros_draw_nothing(tmp_path, kernel, gpu, multiplied):
    """aiconfigurator, collector/vllm/collect_mla.py: nothing fills the weights of K and V."""
    row = figure(tmp_path, kernel=kernel, gpu=gpu, head_dim="192")
    own, usual = measured_of(row).case.hardware, device_of(row)
    for key in ("tensor_per_flop", "sram_per_byte", "l2_per_byte"):
        drawn, usually = (hw.figure(f"energy.{key}") for hw in (own, usual))
        assert drawn == pytest.approx(multiplied * usually)
    assert own.energy.lane_op == usual.energy.lane_op


@pytest.mark.parametrize(
    ("profile", "times"),
    [("a100-sxm-80gb", 1.5), ("h100-sxm", 1.9), ("h200-sxm", 2.6), ("l40s", 1)],
)
def test_copies_of_what_is_not_contiguous_go_element_by_element(profile, times):
    hw, w = load_profile(profile), WorkloadTable(heads=1, head_dim=64, seq_len=64).workload()
    plain_s, strided_s = (
        Beside(2**28, strided_bytes=strided, launches=1).times(w, hw)[0] for strided in (0, 2**28)
    )
    streamed_s = machine_of(hw).hbm_s(2**27, 2**27)
    assert 1 + (strided_s - plain_s) / streamed_s == pytest.approx(times, rel=0.05)


@pytest.mark.parametrize(
    ("kernel", "gpu", "elements", "launches"),
    [
        # latents read and written; 8 bits in two casts first
        ("sglang MLA flash_attention", "H100", (2, 1 + 1 + 1, 0, 0), 3),
        # and a query's 576 elements, turned and quantised in one
        ("sglang MLA trtllm_mla", "B200", (2, 1 + 1 + 1, 2, 1), 4),
        ("trtllm MLA default", "H100", (2, 1, 2, 1), 1),
    ],
)
def test_decoding_holds_the_write_of_the_new_latents_and_what_is_done_to_queries(
    tmp_path, kernel, gpu, elements, launches
):
    row = {"kernel": kernel, "gpu": gpu, "pass_": "decode", "seq_q": "1", "head_dim": "576"}
    own = measured_of(figure(tmp_path, **row, kv_heads="1", kv_dtype="fp8"))
    w, (read, written, q_read, q_written) = own.case.workload, elements
    expected = (read + written) * w.batch * 576 + (q_read + q_written) * w.batch * w.heads * 576
    assert (own.beside.bytes, own.beside.launches) == (expected, launches)


def test_latents_stay_as_they_are_and_queries_are_multiplied_within_vllms_decoding(tmp_path):
    row = {"kernel": "vllm MLA vllm_triton_mla", "pass_": "decode", "seq_q": "1", "gpu": "A100"}
    measured = measured_of(figure(tmp_path, **row, head_dim="576", kv_heads="1"))
    w = measured.case.workload
    assert measured.beside.flops == 2 * 512 * 256 * w.batch * w.heads
    assert measured.beside.bytes > w.heads * 512 * 256 * 2  # W_UK and W_UV, whatever the batch
    assert measured.beside.launches == 4


def test_what_stays_in_l2_between_launches_is_not_fetched_from_hbm():
    hw = load_profile("a100-sxm-80gb")
    w = WorkloadTable(
        seq_len=512, batch=1, heads=8, head_dim=128, dtype="bf16", causal=True
    ).workload()
    small, large = Beside(2**20, launches=1), Beside(2**30, launches=1)
    fixed_s = hw.calibration.launch.gap + hw.calibration.sm.cta_start
    # Two loads one after the other: where a token goes, and what goes there.
    l2_s = 2**20 / (hw.l2.bandwidth * hw.calibration.l2.sustained) + 2 * hw.calibration.l2.latency
    hbm_s = machine_of(hw).hbm_s(2**29, 2**29) + 2 * hw.calibration.hbm.latency
    assert small.times(w, hw)[0] == pytest.approx(fixed_s + l2_s)
    assert large.times(w, hw)[0] == pytest.approx(fixed_s + hbm_s)
    assert Beside().times(w, hw) == (0.0, 0.0)


@pytest.mark.parametrize("kernel", ["sglang triton", "sglang flashinfer"])
def test_sglang_casts_k_and_v_for_a_narrower_cache(tmp_path, kernel):
    """mem_cache/memory_pool.py, MHATokenToKVPool.set_kv_buffer: a launch each."""
    row = {"kernel": kernel, "gpu": "L40S", "extra": "KV write included, warm L2"}
    same, narrower = (
        measured_of(figure(tmp_path, **row, kv_dtype=kv_dtype)).beside
        for kv_dtype in ("bf16", "fp8")
    )
    assert (same.launches, narrower.launches) == (1, 1 + 2)
    # Of bf16 two bytes are read and two written; cast, two and one, then one and one.
    assert narrower.bytes == same.bytes // 4 * (2 + 1 + 1 + 1)


def test_vllm_writes_the_cache_a_cta_a_token_and_sglang_a_warp(tmp_path):
    row = {"gpu": "H100", "kv_heads": "2", "batch": "64", "extra": "KV write included, warm L2"}
    row |= {"seq_q": "1024", "seq_kv": "1024", "head_dim": "128", "pass": "fwd"}
    vllm, sglang = (
        measured_of(figure(tmp_path, kernel=kernel, **row))
        for kernel in ("vllm vllm_flash_attn_fa3", "sglang triton")
    )
    w, hw = vllm.case.workload, vllm.case.hardware
    assert vllm.beside.writes == (CacheWrite(65536, 2, 128, 2, 2),)
    assert sglang.beside.threads == 65536 * 32
    assert sglang.beside.times(w, hw)[0] < vllm.beside.times(w, hw)[0] / 2


@pytest.mark.parametrize(
    ("seq_kv", "measured_us"), [(32, 21.1), (64, 23.0), (128, 28.8), (256, 43.6)]
)
def test_short_caches_take_a_launch_and_what_the_flush_before_them_left_dirty(
    tmp_path, seq_kv, measured_us
):
    """microsoft/onnxruntime, pull request 21414: FlashAttention-2 on an H100, in nvbench."""
    row = {"heads": 64, "kv_heads": 8, "head_dim": 128, "batch": 64, "seq_kv": seq_kv}
    kernel = "FlashAttention-2 C++ mha_fwd_kvcache"
    asked = case(
        tmp_path,
        **DECODE | row,
        gpu="H100 80GB HBM3",
        kernel=kernel,
        extra="page 256; cold, zeroed between calls",
    )
    times_s = [one.time_s for one in simulate(asked).kernels]
    launch = asked.hardware.calibration.launch
    assert sum(times_s) + launch.latency == pytest.approx(measured_us * 1e-6, rel=0.2)


def test_of_ten_calls_timed_together_the_gpu_waits_for_the_first_to_be_asked_for(tmp_path):
    """InferSim's benchmark: the host's part of one call in ten stands before the kernels."""
    row = {"kernel": "FlashInfer paged decode", "gpu": "H20", "pass_": "decode", "seq_q": "1"}
    apart, together = (
        measured_of(figure(tmp_path, **row, extra=extra)) for extra in ("warm", "torch Timer; warm")
    )
    assert together.beside.host_s - apart.beside.host_s == pytest.approx(apart.floor_us * 1e-7)
