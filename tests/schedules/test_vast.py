"""Lengths beyond any device's are answered or refused before they are lowered, in little time."""

from contextlib import suppress

import numpy as np
import pytest

from sim import simulate
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules import SCHEDULES, make_schedule
from tests.support.limits import memory_of_at_most, seconds_of_at_most

ON_SEVERAL = {name: {"gpus": 2} for name in ("ring", "tensor_parallel", "ulysses", "tree_decoding")}


@pytest.mark.parametrize("length", [10**7, 10**8])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_vast_lengths_lower_at_once_or_are_refused(name, phase, length):
    table = {"heads": 8, "head_dim": 64, "causal": True, "phase": phase, "seq_len": length}
    workload = WorkloadTable(**table).workload()
    schedule = make_schedule({"name": name} | ON_SEVERAL.get(name, {}), "here")
    hardware = load_profile("h100-sxm")
    with memory_of_at_most(2**30), seconds_of_at_most(10), suppress(InputError):
        schedule.program(workload, hardware)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("seq_len", 10**12, "at most 100,000,000 tokens"),
        ("seq_len", 10**400, "at most 100,000,000 tokens"),
        ("batch", 10**9, "it must be at most 65536"),
        ("tokens", 10**9, "it must be at most 16384"),
    ],
    ids=["length", "digits", "batch", "tokens"],
)
def test_what_no_plan_holds_is_refused(key, value, says):
    workload = {"heads": 2, "head_dim": 64, "seq_len": 512, "phase": "decode"} | {key: value}
    with pytest.raises(InputError) as error:
        simulate(workload=workload, hardware="h100-sxm", schedule="flash_decoding")
    assert key in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("causal", [True, False])
def test_ranges_of_many_rows_are_those_of_each(causal, window):
    if window and not causal:
        return
    table = {"heads": 1, "head_dim": 64, "causal": causal, "seq_q": 100, "seq_kv": 130}
    w = WorkloadTable(**table, window=window).workload()
    rows = np.arange(100)
    low, high = w.visible_ranges(rows, rows)
    for row in rows.tolist():
        position = row + 30
        last = position if causal else 129
        first = max(0, position + 1 - window) if window else 0
        assert (low[row], high[row]) == (first, last + 1)
