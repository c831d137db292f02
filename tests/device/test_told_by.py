"""Kernels that others tell: which, by which, and how near that is."""

import pytest

from sim.device.program import kernels_of, replays_of, told_by
from sim.device.run import run_on_device
from sim.engine.fast_forward.choice import Choice
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules import make_schedule

H100 = load_profile("h100-sxm")
# Head after head, the launches of each alike but for the matrices that they touch.
HEADS = 8
W = WorkloadTable.model_validate(
    {"heads": HEADS, "seq_len": 32768, "head_dim": 128, "causal": True}
).workload()
COMMANDS = make_schedule({"name": "minference"}, "a test").program(W, H100)


def choice_of(most_steps):
    return Choice.of(kernels_of(COMMANDS), H100, most_steps)


def test_where_all_can_be_replayed_nothing_is_told():
    assert not told_by(COMMANDS, choice_of(None))
    assert replays_of(COMMANDS, choice_of(None)) == [command.work for command in COMMANDS]


def test_of_too_many_the_second_alike_tells_the_third_and_those_after():
    a_head = len(COMMANDS) // HEADS
    choice = choice_of(3_000_000)  # all of a kernel, but not all of all heads
    assert not choice.in_part
    told = told_by(COMMANDS, choice)
    # The first launch of the first head follows nothing, of the second one the last of a head.
    assert len(told) == (HEADS - 2) * a_head - 1
    for command, (second, first) in told.items():
        assert COMMANDS.index(first) < COMMANDS.index(second) < COMMANDS.index(command)
        assert command.work.first_like is second.work.first_like is first.work.first_like
        assert command.work.name == second.work.name == first.work.name
        assert second not in told
        assert first not in told


def test_what_is_told_is_as_if_it_were_replayed():
    whole, ours = (
        run_on_device(COMMANDS, H100, W.dtype, "replay", lambda _: None, most_steps=most)
        for most in (None, 3_000_000)
    )
    assert ours.time_s == pytest.approx(whole.time_s, rel=0.003)
    for exact, told in zip(whole.kernels, ours.kernels, strict=True):
        assert told.run.kernel is exact.run.kernel
        assert told.run.counts == exact.run.counts
        assert told.run.l2_read_bytes == exact.run.l2_read_bytes
    written = [sum(k.run.hbm_write_bytes for k in run.kernels) for run in (whole, ours)]
    assert written[1] == pytest.approx(written[0], rel=0.02)
    told_last = ours.kernels[-1].run.fast_forward
    assert told_last.method == "repeated"
    assert told_last.steps_skipped == ours.kernels[-1].run.kernel.tile_steps
