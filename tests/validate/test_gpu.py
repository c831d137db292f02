"""The bench that is a GPU: what can be tried without one, and a kernel measured where there is."""

import json
from pathlib import Path

import pytest
import torch

from sim.inputs.files import InputError, shipped_names
from validate import counters, gpu
from validate.counters import NcuError
from validate.measure import DeviceLostError
from validate.measurement import Compiled, Counters, Measurement, Shape

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
POINT = {
    "family": "torch eager",
    "split": "test",
    "workload": {"heads": 2, "head_dim": 64, "seq_len": 64, "dtype": "fp32"},
    "schedule": {"name": "naive"},
}
EAGER = Shape(runner="torch_eager", **POINT)


class CountingClock:
    """Runs the work; says how often in place of how long."""

    device = "cpu"

    def time_s(self, work, repeats=20):
        for _ in range(repeats):
            work()
        return [1e-3] * repeats

    cold_time_s = time_s
    graph_time_s = time_s


@pytest.fixture
def bench():
    return gpu.GpuBench("h100-sxm", CountingClock())


def test_repetitions_fill_the_time_that_a_point_may_take(bench):
    point = bench.measure(EAGER)
    assert (point.status, point.shape) == ("ok", EAGER)
    assert len(point.cold_s) == gpu.MOST
    assert len(point.warm_s) == gpu.GRAPH_S / 1e-3


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "out of memory", "CUDA out of"),
        (gpu.WrongResultError("wrong result: 2"), "failed", "wrong result: 2"),
        (ValueError("no such\ntile"), "failed", "ValueError: no such"),
    ],
)
def test_a_point_that_fails_says_why_in_a_line(bench, monkeypatch, error, status, reason):
    def fail(*_):
        raise error

    monkeypatch.setattr(gpu, "torch_attention", fail)
    monkeypatch.setattr(bench, "_check_alive", lambda _: None)
    point = bench.measure(EAGER)
    assert point.status == status
    assert point.reason.startswith(reason)
    assert "\n" not in point.reason


def test_a_device_that_is_lost_ends_the_campaign(bench, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu, "torch_attention", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(DeviceLostError, match="no longer answers after: CUDA error"):
        bench.measure(EAGER)


def test_counted_launches_go_to_their_points_in_order(bench, monkeypatch):
    asked = []

    def profile(command):
        asked.append(json.loads(Path(command[-1]).read_text()))
        return [Counters(kernel=k, hbm_read_bytes=1, hbm_write_bytes=2) for k in "abc"]

    monkeypatch.setattr(counters, "profile", profile)
    points = [
        Measurement(
            runner="attnsim",
            **POINT,
            compiled=[
                Compiled(kernel=k, registers_per_thread=1, spills=0, sram_bytes=0) for k in kernels
            ],
        )
        for kernels in ("ab", "c")
    ]
    assert [[c.kernel for c in found] for found in bench.count(points)] == [["a", "b"], ["c"]]
    assert asked[0]["profile"] == "h100-sxm"
    assert [Shape.model_validate(p) for p in asked[0]["points"]] == [p.shape for p in points]
    with pytest.raises(NcuError, match="fewer launches"):
        bench.count([*points, points[0]])


@pytest.mark.parametrize(
    ("device", "profile"),
    [
        ("NVIDIA H20", "h20"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA B300 SXM6 AC", "b300"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40", "l40s"),
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_the_longest_beginning_of_its_name_finds_a_device(monkeypatch, device, profile):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: device)
    assert gpu.nearest_profile() == profile


def test_a_device_without_a_profile_is_not_guessed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GH200 144G HBM3e")
    with pytest.raises(InputError, match="no profile is known for NVIDIA GH200 144G HBM3e"):
        gpu.nearest_profile()


def test_devices_are_given_profiles_that_are_shipped():
    assert set(gpu.PROFILES.values()) <= set(shipped_names("hw_profiles"))


@needs_gpu
@pytest.mark.parametrize("name", ["flash2", "naive"])
def test_a_kernel_is_checked_and_timed_on_the_device(name):
    schedule = {"name": "naive", "mask": False} if name == "naive" else {"name": name}
    if name != "naive":
        schedule["implementation"] = "triton"
    shape = Shape(
        runner="attnsim",
        family=name,
        split="test",
        workload={"heads": 8, "head_dim": 64, "seq_len": 1024, "causal": True},
        schedule=schedule,
    )
    point = gpu.GpuBench(gpu.nearest_profile()).measure(shape)
    assert point.status == "ok", point.reason
    assert 0 < min(point.warm_s) <= max(point.cold_s) < 1
    assert all(c.spills == 0 for c in point.compiled)
