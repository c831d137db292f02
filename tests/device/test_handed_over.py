"""What kernels replayed apart may have found of each other's in L2: told, and enough."""

from dataclasses import replace

import pytest

from sim import simulate
from sim.device.handed_over import HandedOver
from sim.device.run import run_on_device
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.machine import machine_of
from sim.schedules import make_schedule

H100 = load_profile("h100-sxm")
L2_BYTES = machine_of(H100).l2_capacity_bytes


def runs_of(name, **workload):
    w = WorkloadTable.model_validate({"head_dim": 128, **workload}).workload()
    commands = make_schedule({"name": name}, "a test").program(w, H100)
    run = run_on_device(commands, H100, w.dtype, "replay", lambda _: None)
    return [launched.run for launched in run.kernels]


SCORES, SOFTMAX, *_ = runs_of("naive", heads=1, seq_len=2048)


def scores_bytes():
    (scores,) = set(SCORES.kernel.tensors) & set(SOFTMAX.kernel.tensors)
    return scores.bytes


def test_the_first_kernel_finds_nothing_and_those_of_one_l2_are_sure():
    handed = HandedOver(H100)
    for run in (SCORES, SOFTMAX, SOFTMAX):
        assert handed.unsure_bytes_of_next(run, in_part=False) == 0


def test_what_a_part_does_not_know_of_is_unsure():
    handed = HandedOver(H100)
    assert handed.unsure_bytes_of_next(SCORES, in_part=True) == 0
    assert handed.unsure_bytes_of_next(SOFTMAX, in_part=True) == scores_bytes()  # 8 MiB of 50 MB


def test_what_a_part_took_the_place_of_is_unsure_to_those_of_the_shared_l2():
    handed = HandedOver(H100)
    handed.unsure_bytes_of_next(SCORES, in_part=False)
    between = replace(SCORES, kernel=replace(SCORES.kernel, loops=()), l2_write_bytes=10 * L2_BYTES)
    handed.unsure_bytes_of_next(between, in_part=True)
    assert handed.unsure_bytes_of_next(SOFTMAX, in_part=False) == pytest.approx(
        scores_bytes(), rel=1e-3
    )


def test_it_is_no_more_than_l2_holds_and_than_is_read():
    handed = HandedOver(H100)
    handed.unsure_bytes_of_next(SCORES, in_part=True)
    little = replace(SOFTMAX, l2_read_bytes=1000)
    assert handed.unsure_bytes_of_next(little, in_part=True) == 1000
    large = runs_of("naive", heads=16, seq_len=2048)  # S has 134 MB
    for run in large[:1]:
        handed.unsure_bytes_of_next(replace(run, hbm_read_bytes=0, l2_write_bytes=0), in_part=True)
    assert handed.unsure_bytes_of_next(large[1], in_part=True) == L2_BYTES


def test_where_there_is_no_l2_nothing_is_handed_over():
    handed = HandedOver(load_profile("h100-sxm", {"l2": {"capacity": "0 B"}}, "a test"))
    for run in (SCORES, SOFTMAX):
        assert handed.unsure_bytes_of_next(run, in_part=True) == 0


@pytest.mark.parametrize(
    ("name", "heads", "kv_heads", "steps"),
    [("nsa", 32, 2, 20_000), ("mamba2", 8, 8, 5_000), ("hip", 16, 4, 20_000)],
)
def test_a_record_of_kernels_replayed_apart_says_how_far_it_may_be_off(
    name, heads, kv_heads, steps
):
    tables = {
        "workload": {"heads": heads, "kv_heads": kv_heads, "seq_len": 4096, "head_dim": 128},
        "hardware": "rtx-4090",
        "schedule": name,
    }
    tables["workload"]["causal"] = True
    (told,) = simulate(**tables, limits={"replayed_steps": steps})
    (exact,) = simulate(**tables, limits={"exact": True})
    assert exact.fast_forward is None
    told_bytes, exact_bytes = (r.hbm_read_bytes + r.hbm_write_bytes for r in (told, exact))
    assert told_bytes != exact_bytes
    assert abs(exact_bytes / told_bytes - 1) < told.fast_forward["hbm_error"]
