"""Campaigns and measurement files: saved as they come, resumed, refused where not theirs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from tests.support.commands import assert_one_line, attnsim, called
from tests.support.simulated_bench import SimulatedBench
from validate.campaign import load_campaign
from validate.counters import NcuError
from validate.measure import DeviceLostError, run_campaign
from validate.measurement import Measurement, Micro, load_measurements, save_measurements

CAMPAIGN = """
title = "a small campaign"
[[group]]
family = "flash2"
split = "train"
schedules = [{ name = "flash2", implementation = "triton" }]
workload = { heads = 4, head_dim = 64 }
vary = { seq_len = [256, 512], causal = [false, true] }
[[group]]
family = "naive"
split = "test"
schedules = [{ name = "naive", mask = false }]
workload = { heads = 4, head_dim = 64 }
cases = [{ seq_len = 384 }, { seq_len = 640, batch = 2 }]
"""
HW = load_profile("h100-sxm")
MICRO = [Micro(name="launch_graph", unit="s", samples=[2e-6, 3e-6])]


@pytest.fixture
def campaign(tmp_path):
    path = tmp_path / "campaign.toml"
    path.write_text(CAMPAIGN)
    return load_campaign(str(path))


def test_a_campaign_is_every_case_and_combination_by_every_schedule(campaign):
    lengths = [(p.family, p.split, p.workload.seq_len, p.workload.causal) for p in campaign.points]
    assert lengths == [
        ("flash2", "train", 256, False),
        ("flash2", "train", 256, True),
        ("flash2", "train", 512, False),
        ("flash2", "train", 512, True),
        ("naive", "test", 384, None),
        ("naive", "test", 640, None),
    ]


def test_the_shipped_campaign_covers_what_it_promises():
    points = load_campaign("h100").points
    workloads = [p.workload.workload() for p in points]
    prefill = [w for w in workloads if w.phase == "prefill"]
    assert len(points) >= 150
    assert {p.split for p in points} == {"train", "test"}
    assert sum(p.split == "test" for p in points) >= sum(p.split == "train" for p in points)
    assert {w.seq_q for w in prefill} >= {512, 2048, 8192, 32768}
    assert max(w.seq_kv for w in workloads) == 524288
    assert {w.head_dim for w in workloads} == {64, 128}
    assert {w.batch * w.heads for w in workloads} >= {8, 512}
    assert {w.heads // w.kv_heads for w in workloads} == {1, 8}
    assert {w.dtype for w in workloads} == {"fp16", "bf16"}
    train = {(p.family, w) for p, w in zip(points, workloads, strict=True) if p.split == "train"}
    test = {(p.family, w) for p, w in zip(points, workloads, strict=True) if p.split == "test"}
    assert not train & test  # no shape is on both sides
    hw = load_profile("h100-sxm")
    for point, w in zip(points, workloads, strict=True):
        schedule = point.parsed_schedule("a test")
        assert schedule is None or kernels_of(schedule.program(w, hw))


def test_a_finished_file_says_all_again(campaign, tmp_path):
    out = tmp_path / "m.json"
    measured = run_campaign(campaign, out, SimulatedBench(HW, MICRO), lambda _: None)
    assert load_measurements(out) == measured
    assert [p.shape for p in measured.points] == campaign.points
    assert all(p.counters and p.cold_s and p.warm_s for p in measured.points)
    assert measured.micro == MICRO


@pytest.mark.parametrize("kind", [KeyboardInterrupt, DeviceLostError])
def test_what_was_measured_before_an_end_is_kept_and_not_measured_again(campaign, tmp_path, kind):
    class Interrupted(SimulatedBench):
        def measure(self, shape):
            if len(self.measured) == 3:
                raise kind("the end")
            return super().measure(shape)

    out = tmp_path / "m.json"
    with pytest.raises(kind):
        run_campaign(campaign, out, Interrupted(HW, MICRO), lambda _: None)
    assert len(load_measurements(out).points) == 3
    again, told = SimulatedBench(HW), []
    whole = run_campaign(campaign, out, again, told.append)
    assert [p.shape for p in whole.points] == campaign.points
    assert again.measured == campaign.points[3:]
    assert told[0] == f"3 of 6 points are in {out} already"
    assert whole.micro == MICRO


def test_a_killed_process_leaves_a_whole_file(tmp_path):
    (tmp_path / "campaign.toml").write_text(CAMPAIGN)
    program = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from sim.inputs.hardware import load_profile\n"
        "from tests.support.simulated_bench import SimulatedBench\n"
        "from validate.campaign import load_campaign\n"
        "from validate.measure import run_campaign\n"
        "def tell(line):\n"
        "    if '[2/6' in line:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"campaign = load_campaign({str(tmp_path / 'campaign.toml')!r})\n"
        f"out = Path({str(tmp_path / 'm.json')!r})\n"
        "run_campaign(campaign, out, SimulatedBench(load_profile('h100-sxm')), tell)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == -9
    assert len(load_measurements(tmp_path / "m.json").points) == 2


def test_a_point_out_of_memory_is_a_result_and_the_rest_goes_on(campaign, tmp_path):
    class Small(SimulatedBench):
        def measure(self, shape):
            if shape.family == "naive":
                facts = shape.model_dump()
                return Measurement(**facts, status="out of memory", reason="8 GB asked for")
            return super().measure(shape)

    measured = run_campaign(campaign, tmp_path / "m.json", Small(HW), lambda _: None)
    assert [p.status for p in measured.points] == ["ok"] * 4 + ["out of memory"] * 2


def test_without_nsight_compute_times_stand_alone_and_a_note_says_so(campaign, tmp_path):
    class Blind(SimulatedBench):
        def count(self, points):
            raise NcuError("ncu was not found")

    told: list[str] = []
    measured = run_campaign(campaign, tmp_path / "m.json", Blind(HW), told.append)
    assert measured.notes == ["bytes are not counted: ncu was not found"] == told[-1:]
    assert all(p.cold_s and not p.counters for p in measured.points)
    counted = run_campaign(campaign, tmp_path / "m.json", SimulatedBench(HW), told.append)
    assert all(p.counters for p in counted.points)


def test_a_file_of_another_campaign_or_device_is_left_as_it_is(campaign, tmp_path):
    out = tmp_path / "m.json"
    measured = run_campaign(campaign, out, SimulatedBench(HW), lambda _: None)
    other = campaign.model_copy(update={"title": "another"})
    with pytest.raises(InputError, match='holds another campaign, "a small campaign"'):
        run_campaign(other, out, SimulatedBench(HW), lambda _: None)

    class Another(SimulatedBench):
        def describe(self):
            device, versions = super().describe()
            return device.model_copy(update={"name": "another card"}), versions

    with pytest.raises(InputError, match="measured on simulated, this is another card"):
        run_campaign(campaign, out, Another(HW), lambda _: None)
    assert load_measurements(out) == measured


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON, or cut short"),
        ("[]", 'no format; "attnsim measurements 1" was expected'),
        ('{"format": "other 2"}', 'format = "other 2"'),
        ('{"format": "attnsim measurements 1"}', "title: missing"),
        ("\udcff", "not UTF-8 text"),
    ],
)
def test_a_corrupt_or_foreign_file_is_one_line(text, complaint, tmp_path):
    (tmp_path / "m.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    for command in (["validate", "compare"], ["calibrate"]):
        out = ["--out", "c.toml"] if command == ["calibrate"] else []
        done = called(*command, "m.json", "--profile", "h100-sxm", *out, cwd=tmp_path)
        assert_one_line(done, "m.json", complaint)
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


def test_a_truncated_file_is_one_line(campaign, tmp_path):
    measured = run_campaign(campaign, tmp_path / "m.json", SimulatedBench(HW), lambda _: None)
    text = (tmp_path / "m.json").read_text()
    (tmp_path / "m.json").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="cut short"):
        load_measurements(tmp_path / "m.json")
    save_measurements(measured, tmp_path / "m.json")
    assert load_measurements(tmp_path / "m.json") == measured


def test_a_wrong_figure_names_its_key(campaign, tmp_path):
    run_campaign(campaign, tmp_path / "m.json", SimulatedBench(HW), lambda _: None)
    data = json.loads((tmp_path / "m.json").read_text())
    data["points"][1]["cold_s"][0] = -1
    (tmp_path / "m.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"points\.1\.cold_s\.0 = -1.*must be above 0"):
        load_measurements(tmp_path / "m.json")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('split = "train"', 'split = "trian"'), 'group.0.split = "trian"'),
        (('name = "flash2"', 'name = "flash3x"'), "no such schedule"),
        (("heads = 4, head_dim = 64 }\nvary", "heads = 0, head_dim = 64 }\nvary"), "heads = 0"),
        (("seq_len = 384", "seq_len = 640, batch = 2"), "twice"),
        (('schedules = [{ name = "naive", mask = false }]\n', ""), "schedules: at least one"),
    ],
)
def test_a_bad_campaign_is_one_line(change, complaint, tmp_path):
    (tmp_path / "c.toml").write_text(CAMPAIGN.replace(*change))
    done = attnsim("validate", "measure", "--campaign", "c.toml", "--out", "m.json", cwd=tmp_path)
    assert_one_line(done, "c.toml", complaint)


def test_measuring_without_a_gpu_or_without_triton_says_what_is_missing(tmp_path):
    hidden = "import sys; sys.modules['triton'] = None\nfrom sim.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden, "validate", "measure", "--out", "m.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert_one_line(done, "needs triton, which is not installed", "attnsim[validate]")
    environment_without_gpu = attnsim("validate", "measure", "--out", "m.json", cwd=tmp_path)
    if environment_without_gpu.returncode:  # there may be one
        assert_one_line(environment_without_gpu, "needs a CUDA device")
