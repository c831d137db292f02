"""What is said of records below a table."""

from dataclasses import replace

import pytest
from rich.console import Console

from sim import simulate
from sim.report.known_errors import MeasuredError
from sim.report.notes import notes
from sim.report.records import print_records

WORKLOAD = {"seq_len": 512, "batch": 1, "heads": 2, "head_dim": 64, "dtype": "fp16"}
MEASURED = MeasuredError("FA2", "h100-sxm", "few, batch 1", 9, 0.1, 0.2, 0.0, None, None)


def test_schedules_that_are_level_are_told_in_one_line_of_all_points(monkeypatch):
    """Whichever of them comes next."""
    monkeypatch.setattr("sim.report.notes.known_time_error", lambda *_: MEASURED)
    points = [[1.0, 1.01, 1.02], [1.0, 1.02, 1.01]]
    (record,) = simulate(workload=WORKLOAD, hardware="t4", schedule="flash2")
    told = notes(
        [
            replace(record, schedule=name, time_s=time_s, point={"workload.batch": number})
            for number, times in enumerate(points)
            for name, time_s in zip("abc", times, strict=True)
        ]
    )
    assert [line for line in told if "level" in line] == [
        "a batch 0 and 1 more: level with b, c, as far as errors are known"
    ]


def test_what_the_caches_of_dies_serve_is_said_where_there_are_any():
    apart, shared = (
        simulate(workload=WORKLOAD, hardware=device, schedule="flash2")
        for device in ("mi300x", "h100-sxm")
    )
    (line,) = (told for told in notes([*apart, *shared]) if "dies" in told)
    assert "the cache of their own die serves" in line
    assert "(8 dies; L2 is the cache that they share)" in line


def test_registers_that_spill_are_said_where_they_do():
    trtllm = {"name": "flash2", "implementation": "trtllm"}
    spills, fits = (
        simulate(workload=WORKLOAD | {"dtype": dtype}, hardware="l40s", schedule=trtllm)
        for dtype in ("fp8", "fp16")
    )
    (line,) = (told for told in notes([*spills, *fits]) if "spill" in told)
    assert line == "flash2: 5.67 MB of the 6.33 MB that L2 moves are registers that spill"


def test_a_changed_figure_that_leaves_others_as_they_were_is_noted_once():
    def told(**overrides):
        hardware = {"profile": "h100-sxm", **overrides}
        lines = notes(2 * simulate(workload=WORKLOAD, hardware=hardware, schedule="flash2"))
        return [line for line in lines if "is changed" in line]

    assert told() == []
    assert told(tensor={"fp16": "2048 FLOP/clock"}) == []
    assert told(hbm={"bandwidth": "8 TB/s"}) == [
        "hbm.bandwidth is changed; left as h100-sxm has it: l2.bandwidth"
    ]
    assert told(hbm={"bandwidth": "8 TB/s"}, l2={"bandwidth": "20 TB/s"}) == []
    assert told(sm={"count": 66}, power={"tdp": "350 W"}) == [
        "sm.count is changed; left as h100-sxm has it: l2.bandwidth"
    ]


def test_a_rough_answer_is_told_before_the_table(capsys):
    tables = {
        "workload": {"heads": 4, "head_dim": 128, "seq_len": 2**16, "causal": True},
        "hardware": "h100-sxm",
        "schedule": "flash2",
    }
    (record,) = simulate(**tables, limits={"replayed_steps": 100_000})
    for hbm_error, rough in ((0.25, True), (0.05, False)):
        errors = {**record.fast_forward, "time_error": 0.01, "hbm_error": hbm_error}
        print_records("a title", [replace(record, fast_forward=errors)])
        first = capsys.readouterr().out.splitlines()[0]
        assert first.startswith("flash2: rough: HBM bytes by 25% may be off") == rough


def test_schedules_nearer_than_their_known_errors_are_level(monkeypatch):
    (record,) = simulate(workload=WORKLOAD, hardware="h100-sxm", schedule="flash2")
    records = [
        replace(record, schedule=name, time_s=time_s)
        for name, time_s in (("one", 1.00), ("near", 1.10), ("far", 1.20))
    ]

    def told(mean_error):
        known = mean_error and replace(MEASURED, mean_error=mean_error)
        monkeypatch.setattr("sim.report.notes.measured_error", lambda _: known)
        return [line for line in notes(records) if "level with" in line]

    # 8% each are 11.3% together.
    assert told(0.08) == ["one: level with near, as far as errors are known"]
    assert told(0.15) == ["one: level with near, far, as far as errors are known"]
    assert told(0.05) == []
    assert told(None) == []


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("point", [{}, {"hardware.profile": "a100-sxm-80gb", "seq_len": 131072}])
def test_a_narrow_terminal_has_whole_figures_and_is_told_what_it_lacks(
    width, point, monkeypatch, capsys
):
    (record,) = simulate(workload=WORKLOAD, hardware="h100-sxm", schedule="flash2")
    monkeypatch.setattr("sim.report.table._console", lambda: Console(width=width))
    print_records("a title", [replace(record, point=point, time_s=3.57e-4)])
    table, said = capsys.readouterr().out.split("(no room for ")
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= width
    assert "357 µs" in table
    assert said.startswith("peak memory")


def test_notes_of_a_sweep_are_a_line_a_schedule_of_the_point_that_has_most():
    workload = {"heads": 16, "head_dim": 128, "seq_len": 2048, "dtype": "bf16"}
    sweep = {"hardware.power.tdp": ["300 W", "200 W", "250 W"]}
    records = simulate(workload=workload, hardware="a100-sxm-80gb", schedule="flash2", sweep=sweep)
    (line,) = (line for line in notes(records) if "held back by power" in line)
    assert line.startswith("flash2 power.tdp 200 W: ")
    assert line.endswith("(the most of 3 such points)")
    (line,) = (line for line in notes(records[:1]) if "held back by power" in line)
    assert line.endswith("as under a sustained load")


def test_the_same_reason_of_many_points_is_told_once(capsys):
    (record,) = simulate(workload=WORKLOAD, hardware="h100-sxm", schedule="flash2")
    failed = [
        replace(record, point={"seq_len": n}, status="out of memory", time_s=None, reason="64 GiB")
        for n in range(16)
    ]
    print_records("a title", [record, *failed])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "64 GiB" in line)
    assert line == "flash2 seq_len 0 and 15 more: out of memory: 64 GiB"
