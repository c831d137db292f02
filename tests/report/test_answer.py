"""The sentence that says what a run came to."""

import re
from dataclasses import replace
from typing import Any

import pytest

from sim import simulate
from sim.report.answer import answer
from sim.report.asked import workload_in_words
from sim.report.causes import losses, wave_text
from sim.report.columns import causes_of, columns_of
from sim.report.records import print_sweep
from tests.support.commands import printed_by

PREFILL = {"heads": 10, "head_dim": 128, "seq_len": 512, "dtype": "bf16"}
DECODE = {"heads": 8, "kv_heads": 1, "head_dim": 128, "phase": "decode", "batch": 8}


def said(schedule: Any, device: Any, workload: dict[str, Any], **sweep: list[Any]) -> str:
    tables = {"workload": workload, "hardware": device, "schedules": schedule, "sweep": sweep}
    return answer(simulate(**tables))


def test_one_sequence_more_that_needs_another_wave_is_told_by_its_waves():
    text = said("flash2", "a100-sxm-80gb", PREFILL, **{"workload.batch": [5, 6]})
    assert "on a100-sxm-80gb (10 heads of 128, 512 tokens, bf16)" in text
    assert "batch 6 takes 1.7" in text
    assert " times as long as 5: 1.11 waves of CTAs, the last 11% full, instead of 0.93" in text


def test_among_many_points_the_step_that_stands_out_is_told():
    batches = [2, 3, 4, 5, 6, 8]
    text = said("flash2", "a100-sxm-80gb", PREFILL, **{"workload.batch": batches})
    assert "The steepest step: batch 6 takes" in text


def test_narrower_operands_are_told_by_what_gets_faster():
    workload = PREFILL | {"seq_len": 4096}
    text = said("flash3", "h100-sxm", workload, **{"workload.dtype": ["bf16", "fp8"]})
    assert "bf16 takes 1." in text
    assert "tensor cores of 989 TFLOP/s instead of 1.98 PFLOP/s" in text
    assert "dtype" not in text  # which the sentence is about


def test_two_devices_are_told_apart_by_the_figure_that_holds_back():
    devices = ["h100-sxm", "h200-sxm"]
    workload = DECODE | {"seq_kv": 32768, "batch": 32}
    text = said("flash_decoding", "h100-sxm", workload, **{"hardware.profile": devices})
    assert "h100-sxm takes 1." in text
    assert "as long as h200-sxm: HBM of 3.35 TB/s instead of 4.8 TB/s" in text


def test_those_that_take_as_long_are_said_to():
    twins = [{"name": "flash2", "label": label} for label in "ab"]
    text = said(twins, "a100-sxm-80gb", PREFILL)
    assert text.startswith("a is fastest on a100-sxm-80gb")
    assert text.endswith("b is within 2% of it.")


def test_a_bad_choice_of_splits_is_told_by_waves_and_ranges():
    few, enough = ({"name": "flash_decoding", "splits": n, "label": f"{n}"} for n in (2, 16))
    text = said([few, enough], "h100-sxm", DECODE | {"seq_kv": 32768})
    assert text.startswith("16 is fastest on h100-sxm (batch 8, decode, 8 heads of 128, 1 KV head")
    assert "ranges of keys: 2 instead of 16" in text
    assert "0.06 waves of CTAs instead of 0.48" in text


def test_reads_beyond_the_compulsory_are_told_of_who_waits_for_hbm():
    text = said(["naive", "flash2"], "l4", PREFILL | {"seq_len": 4096})
    assert "naive takes" in text
    assert "of HBM reads are L2 misses beyond the compulsory instead of 0%" in text


def test_padding_and_power_are_told_of_one_record():
    (record,) = simulate(workload=PREFILL, hardware="a100-sxm-80gb", schedule="flash2")
    (kernel,) = record.kernels
    assert losses(record) == ["0.19 waves of CTAs"]
    padded = replace(kernel, waves=4.0, rows_used=0.25, clock_share=0.5)
    assert losses(replace(record, kernels=[padded])) == [
        "25% of tiles' rows used, the rest padding",
        "50% of the clock left by the power limit",
    ]


def test_where_no_fact_explains_it_is_told_what_holds_the_slower_one_back_for_longer():
    triton = {"name": "flash2", "implementation": "triton", "label": "triton"}
    workload = {"heads": 16, "head_dim": 64, "seq_len": 4096}
    text = said(["flash2", triton], "h100-sxm", workload)
    slower, _, cause = text.rpartition(" as long: ")
    assert slower.endswith(" times")
    assert re.fullmatch(r"held back by [a-z ]+ for \S+ µs instead of .*s\.", cause)


def test_kernels_that_both_have_are_compared_with_one_another():
    workload = DECODE | {"heads": 4, "batch": 1, "seq_kv": 65536}
    few, many = ({"name": "flash_decoding", "splits": n, "label": f"{n}"} for n in (64, 128))
    records = simulate(workload=workload, hardware="h200-sxm", schedules=[few, many])
    assert [record.longest_kernel.name for record in records] == ["flash_decoding", "combine"]
    assert " in 1 " not in answer(records)
    assert answer(records).endswith(
        "as long: held back by L2 latency for 19.2 µs instead of 9.6 µs."
    )


def test_a_sweep_of_several_schedules_is_told_why_the_others_are_behind_where_they_are_most():
    text = said(["naive", "flash2"], "l4", PREFILL, **{"workload.seq_len": [512, 4096]})
    assert "At seq_len 4,096 naive takes " in text
    assert "through HBM instead of" in text


def test_of_a_sweep_who_wins_most_is_told_and_where_it_is_far_behind():
    """A batch that one long sequence holds up: fastest by little where all are of one length."""
    names, times_s = ("first", "second"), ((1.0, 1.01), (5.0, 1.0), (1.0, 1.01))
    (record,) = simulate(workload=PREFILL, hardware="l4", schedule="flash2")
    records = [
        replace(record, schedule=name, point={"workload.batch": batch}, time_s=time_s)
        for batch, both in enumerate(times_s, 1)
        for name, time_s in zip(names, both, strict=True)
    ]
    text = answer(records[2:] + records[:2])
    assert text.startswith("first is fastest at 2 of 3 points, second at 1 ")
    assert "It is 0.2 to 1.01 times as fast as second. At batch 2 first takes 5 times as " in text
    assert "as long as second" in text


def test_a_lead_that_is_the_same_at_all_points_is_told_once():
    text = said(["flash2", "flash3"], "h100-sxm", PREFILL, **{"workload.softcap": [30, 50]})
    assert re.search(r"It is [\d.]+ times as fast as flash2\.", text)


def test_the_neighbours_between_which_the_l2_gets_too_small_are_told():
    lengths, head = {"workload.seq_len": [8192, 16384, 32768, 65536]}, {"heads": 1, "head_dim": 64}
    small = said("flash2", {"profile": "gb10", "l2.capacity": "16 MB"}, head, **lengths)
    told = re.search(r"seq_len ([\d,]+) moves (\S+) times the HBM bytes of ([\d,]+): ", small)
    assert told is not None
    assert told.group(1, 3) == ("65,536", "32,768")  # K and V of 16.8 MB and of 8.4 MB
    assert float(told[2]) > 4
    assert "are L2 misses beyond the compulsory instead of 0%." in small
    assert "moves" not in said("flash2", "gb10", head, **lengths)


def test_the_one_point_of_a_sweep_that_ran_is_told_as_one_and_the_other_by_its_place():
    text = said("flash2", "l20", PREFILL, **{"workload.dtype": ["fp16", "fp8"]})
    assert text.startswith("flash2 takes ")
    assert text.endswith("1 of 2 did not run (flash2 dtype fp8: failed).")


def test_a_grid_of_a_few_ctas_has_waves_too():
    (record,) = simulate(workload=PREFILL, hardware="a100-sxm-80gb", schedule="flash2")
    (kernel,) = record.kernels
    assert wave_text(replace(kernel, waves=0.00187)) == "0.002"


def test_the_clock_is_no_cause_of_what_waits_for_hbm():
    (record,) = simulate(workload=PREFILL, hardware="a100-sxm-80gb", schedule="flash2")
    (kernel,) = record.kernels
    slowed = replace(record, kernels=[replace(kernel, clock_share=0.5)])
    assert "50% of the clock left by the power limit" in losses(slowed)
    assert losses(replace(slowed, bottleneck_shares={"hbm": 1.0})) == ["0.19 waves of CTAs"]


def test_values_that_change_nothing_are_told_as_that():
    text = said("flash2", "h100-sxm", PREFILL, **{"hardware.hbm.capacity": ["80 GB", "90 GB"]})
    assert "hbm.capacity 80 GB and hbm.capacity 90 GB are within 2% of one another." in text


def test_records_of_earlier_versions_have_an_answer_without_facts_of_their_kernels():
    (record,) = simulate(workload=PREFILL, hardware="h100-sxm", schedule="flash2")
    (kernel,) = record.kernels
    old = replace(
        kernel, waves=None, splits=None, rows_used=None, ctas_limited_by=None, hbm_reread_bytes=None
    )
    sweep = [replace(record, kernels=[old], point={"workload.batch": n}, time_s=n) for n in (1, 2)]
    assert "batch 2 takes 2 times as long as 1: held back by issue slots for" in answer(sweep)
    assert all(column.of_record(sweep[0]) is not None for column in causes_of(sweep))


def test_the_table_of_causes_has_those_of_the_longest_kernel():
    records = simulate(workload=PREFILL, hardware="a100-sxm-80gb", schedule="flash2")
    of_record = {c.heading: c.of_record(records[0]) for c in causes_of(records)}
    told = {"waves": "0.19", "last wave full": "19%", "CTAs an SM": "2 (SRAM and registers)"}
    told |= {"splits": "1", "read again": "0%", "clock": "100%", "rows used": "100%"}
    assert told.items() <= of_record.items()
    assert not told.keys() & {column.heading for column in columns_of(records)}


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ({"heads": 1, "seq_len": 1024}, "1 head of 64, 1,024 tokens, fp16"),
        (
            {"heads": 8, "kv_heads": 2, "seq_q": 16, "seq_kv": 4096, "causal": True},
            "8 heads of 64, 2 KV heads, 16 queries on 4,096 keys, causal, fp16",
        ),
        (
            {"heads": 8, "phase": "decode", "seq_kv": [100, 200], "kv_dtype": "fp8"},
            "batch 2, decode, 8 heads of 64, [100, 200] keys, fp16, fp8 cache",
        ),
    ],
)
def test_a_workload_in_words(workload, words):
    (record,) = simulate(
        workload={"head_dim": 64, "dtype": "fp16", **workload},
        hardware="h100-sxm",
        schedule="paged" if "kv_dtype" in workload else "flash2",
    )
    assert workload_in_words([record.workload]) == words


def test_what_differs_among_records_is_left_out_of_their_workload():
    workloads = [{"heads": 4, "head_dim": 64, "dtype": dtype} for dtype in ("bf16", "fp8")]
    assert workload_in_words(workloads) == "4 heads of 64"


def test_a_long_sweep_is_told_by_its_answer_alone(capsys):
    (record,) = simulate(workload=PREFILL, hardware="h100-sxm", schedule="flash2")
    records = [replace(record, point={"workload.batch": n}, time_s=n * 1e-6) for n in range(1, 60)]
    print_sweep("a title", records, 3, wide=False)
    title, said, counts = capsys.readouterr().out.splitlines()
    assert (title, counts) == ("a title", "59 records: 59 ok; 3 of them replayed now")
    assert said.startswith("flash2 takes from 1 µs to 59 µs over 59 points on h100-sxm")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ((), ["gemma-3-1b: one of its 4 layers that see all tokens; 22 see 512 (workload.window)"]),
        (("workload.window=512",), []),
        (('sweep={"workload.model"=["gpt2","gpt-oss-20b"]}',), ["gpt-oss-20b: one of its 12"]),
    ],
)
def test_of_a_model_whose_layers_differ_it_is_told_which_was_simulated(tmp_path, changes, told):
    path = tmp_path / "question.toml"
    path.write_text(
        'hardware.profile = "h100-sxm"\nworkload = { model = "gemma-3-1b", seq_len = 1024 }\n'
        '[[schedule]]\nname = "flash2"\n'
    )
    printed = printed_by("run", path, *(word for one in changes for word in ("--set", one)))
    lines = [line for line in printed.splitlines() if "layers that see all tokens" in line]
    assert [line[: len(start)] for line, start in zip(lines, told, strict=True)] == told
