"""The device, driven by programs of a few commands: launches, links, memory, several GPUs.

Times are worked out by hand from the profile below, whose figures are round.
"""

import math
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.device.memory import OutOfMemoryError, check_memory
from sim.device.program import gpus_of
from sim.device.run import DeviceRun, run_on_device
from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.tile_program import (
    Command,
    Compute,
    Footprint,
    Kernel,
    Load,
    Loop,
    Store,
    Stream,
    Tensor,
    Transfer,
    once,
)
from tests.support.same_runs import assert_same

LAUNCH_S, GAP_S = 3e-6, 1e-6
HOST, PEER, NETWORK = 10e9, 100e9, 20e9  # bytes a second
LATENCY_S, NETWORK_LATENCY_S = 2e-6, 7e-6
MB = 10**6


def device(**sections: Any) -> HardwareProfile:
    """An H100 of round figures: nodes of two GPUs."""
    links = {"host": "10 GB/s", "peer": "100 GB/s", "network": "20 GB/s", "node_gpus": 2}
    calibration = {
        "launch": {"latency": "3 us", "gap": "1 us"},
        "links": {"sustained": 1.0, "latency": "2 us", "network_latency": "7 us"},
    }
    tables = {"links": links, "calibration": calibration, **sections}
    return load_profile("h100-sxm", tables, "a test")


HW = device()


def kernel(name: str = "k", rows: int = 64, role: Any = "input", out: Any = "output") -> Kernel:
    """One CTA that loads a tile of its own input, works on it and stores it."""
    source, target = (Tensor(f"{name} {what}", 1, rows, 64, 2, r) for what, r in
                      (("in", role), ("out", out)))  # fmt: skip
    load = Load(Stream(source, rows, 64, lambda items: items))
    work = Compute("work", (load,), vector_ops=rows * 10**4)
    store = Store(Stream(target, rows, 64, lambda items: items))
    return Kernel(name, 1, (Loop(once, (load, work, store)),), Footprint(1024))


def run(commands: list[Command], hw: HardwareProfile = HW, engine: Any = "replay") -> DeviceRun:
    return run_on_device(commands, hw, "fp16", engine, lambda _: None)


def time_s(one: Kernel) -> float:
    """How long a kernel takes alone."""
    return run([Command(one)]).kernels[0].run.time_s


def intervals(ran: DeviceRun) -> list[tuple[float, float]]:
    """When each transfer began and arrived, in order of their starts."""
    return [(sent.start_s, sent.end_s) for sent in ran.sent]


def with_a_kernel_each(gpus: int, commands: list[Command]) -> list[Command]:
    return [*(Command(kernel(), gpu) for gpu in range(gpus)), *commands]


def test_a_kernel_starts_when_its_launch_arrives_and_the_next_a_gap_later():
    a, b = kernel("a"), kernel("b")
    ran = run([Command(a), Command(b)])
    assert [k.start_s for k in ran.kernels] == [LAUNCH_S, LAUNCH_S + time_s(a) + GAP_S]
    last = ran.kernels[1]
    assert ran.time_s == last.start_s + last.run.time_s


def test_kernels_shorter_than_a_launch_wait_for_the_host():
    short = kernel("short", rows=1)
    assert time_s(short) + GAP_S < LAUNCH_S
    ran = run([Command(short) for _ in range(3)])
    starts = [LAUNCH_S] + [n * LAUNCH_S + GAP_S for n in (2, 3)]
    assert [k.start_s for k in ran.kernels] == pytest.approx(starts)


def test_a_host_that_waits_launches_once_all_before_is_done():
    a, b, c = (kernel(name) for name in "abc")
    ran = run([Command(a), Command(b, host_waits=True), Command(c)])
    launched_s = LAUNCH_S + time_s(a) + LAUNCH_S
    second_s = launched_s + GAP_S
    third_s = max(launched_s + LAUNCH_S, second_s + time_s(b)) + GAP_S
    assert [k.start_s for k in ran.kernels] == pytest.approx([LAUNCH_S, second_s, third_s])


def test_what_a_kernel_waits_for_arrives_over_the_link():
    a, b = kernel("a", 640), kernel("b")
    first = Command(a, 0)
    sent = Command(Transfer("x", 5 * MB, 1), 0, (first,))
    ran = run([first, sent, Command(b, 1, (sent,))])
    left_s = LAUNCH_S + time_s(a)
    arrived_s = left_s + 5 * MB / PEER + LATENCY_S
    assert intervals(ran) == [pytest.approx((left_s, arrived_s))]
    assert ran.kernels[1].start_s == pytest.approx(arrived_s)
    assert ran.kernels[1].waited_s == pytest.approx(arrived_s - LAUNCH_S)
    assert ran.time_s == pytest.approx(arrived_s + time_s(b))


def test_a_transfer_that_nothing_waits_for_overlaps_and_counts_to_the_end():
    a = kernel("a")
    ran = run([Command(a), Command(Transfer("x", 50 * MB, 1), 0)])
    assert ran.kernels[0].waited_s == 0
    assert ran.time_s == pytest.approx(50 * MB / PEER + LATENCY_S)
    assert ran.time_s > 2 * (LAUNCH_S + time_s(a))


def test_a_port_out_serves_transfers_one_after_the_other_in_order():
    transfers = [Command(Transfer(str(n), n * MB, 1), 0) for n in (3, 1, 2)]
    ran = run(with_a_kernel_each(1, transfers))
    assert [sent.transfer.name for sent in ran.sent] == ["3", "1", "2"]
    ms = MB / PEER
    assert intervals(ran) == [
        pytest.approx((0, 3 * ms + LATENCY_S)),
        pytest.approx((3 * ms, 4 * ms + LATENCY_S)),
        pytest.approx((4 * ms, 6 * ms + LATENCY_S)),
    ]


def test_a_port_in_serves_one_sender_at_a_time():
    hw = device(links={"peer": "100 GB/s", "node_gpus": 8})
    ran = run(with_a_kernel_each(1, [Command(Transfer("x", MB, 2), gpu) for gpu in (0, 1)]), hw)
    assert [sent.start_s for sent in ran.sent] == [0, pytest.approx(MB / PEER)]


def test_both_directions_of_a_link_and_other_links_are_free():
    commands = [
        Command(Transfer("there", MB, 1), 0),
        Command(Transfer("back", MB, 0), 1),
        Command(Transfer("beyond", MB, 2), 0),
        Command(Transfer("to host", MB, "host"), 0),
        Command(Transfer("from host", MB, "host", from_host=True), 0),
    ]
    ran = run(with_a_kernel_each(3, commands))
    assert [sent.start_s for sent in ran.sent] == [0] * 5
    ends_s = {sent.transfer.name: sent.end_s for sent in ran.sent}
    assert ends_s["there"] == ends_s["back"] == pytest.approx(MB / PEER + LATENCY_S)
    assert ends_s["beyond"] == pytest.approx(MB / NETWORK + NETWORK_LATENCY_S)
    assert ends_s["to host"] == ends_s["from host"] == pytest.approx(MB / HOST + LATENCY_S)


@pytest.mark.parametrize(("to", "kind"), [(1, "network"), (3, "peer"), (4, "network")])
def test_the_network_joins_nodes(to, kind):
    commands = [Command(kernel()), Command(Transfer("x", MB, to), 2)]
    assert gpus_of(commands) == max(3, to + 1)
    (sent,) = run(commands).sent
    assert sent.kind == kind


def test_the_sustained_share_is_of_every_link():
    hw = device(calibration={"links": {"sustained": 0.5, "latency": "0 us"}})
    (sent,) = run([Command(kernel()), Command(Transfer("x", MB, 1), 0)], hw).sent
    assert sent.end_s == pytest.approx(MB / (PEER / 2))


@pytest.mark.parametrize(
    ("profile", "transfer", "complaint"),
    [
        ("rtx-4090", Transfer("x", 1, 1), "rtx-4090 has no links.peer: the link to other GPUs"),
        ("v100-sxm-32gb", Transfer("x", 1, 9), None),  # no node_gpus: all are peers
    ],
)
def test_a_link_that_is_not_there_is_one_line(profile, transfer, complaint):
    commands = [Command(kernel()), Command(transfer, 0)]
    if complaint is None:
        run(commands, load_profile(profile))
        return
    with pytest.raises(InputError, match=re.escape(complaint)):
        run(commands, load_profile(profile))


def test_a_node_without_a_network_ends_at_its_last_gpu():
    hw = load_profile("rtx-3090", {"links": {"node_gpus": 2}}, "a test")
    run([Command(kernel()), Command(Transfer("x", 1, 1), 0)], hw)
    with pytest.raises(InputError, match=r"has no links\.network"):
        run([Command(kernel()), Command(Transfer("x", 1, 2), 0)], hw)


def test_buffers_inputs_and_outputs_stay_and_workspace_comes_and_goes():
    buffer = Tensor("buffer", 1, 1000, 1000, 2)
    a, b = kernel("a", 64, "workspace", "workspace"), kernel("b", 32)
    commands = [
        Command(a, 1),
        Command(b, 1),
        *(Command(Transfer("x", MB, 1, buffer=buffer), 0) for _ in range(3)),
        Command(
            Transfer("in", MB, "host", from_host=True, buffer=Tensor("fetched", 1, 9, 1, 1)), 1
        ),
    ]
    always = buffer.bytes + 9 + 2 * 32 * 64 * 2
    of_a = 2 * 64 * 64 * 2
    assert check_memory(commands, HW) == always + of_a
    ran = run(commands)
    assert ran.memory[-1].in_use_bytes == always
    assert max(change.in_use_bytes for change in ran.memory) == always + of_a
    freed_s = [change.time_s for change in ran.memory if change.what == "- a in"]
    assert freed_s == [LAUNCH_S + time_s(a)]


def test_one_gpu_that_is_full_stops_the_run():
    big = Tensor("the large one", 1, 1, 90 * 10**9, 1)
    commands = [Command(kernel(), 0), Command(Transfer("x", MB, 1, buffer=big), 0)]
    for fails in (run, lambda commands: check_memory(commands, HW)):
        with pytest.raises(OutOfMemoryError) as error:
            fails(commands)
        assert error.value.tensor is big
    roomy = device(hbm={"capacity": "100 GB"})
    assert max(c.in_use_bytes for c in run(commands, roomy).memory) == big.bytes


def test_of_several_gpus_a_kernel_is_replayed_once_and_starts_from_an_empty_l2():
    one = kernel()
    ran = run([Command(one, gpu) for gpu in (0, 1, 1)])
    assert len({id(k.run) for k in ran.kernels}) == 1
    again = run([Command(one) for _ in range(2)])
    assert [k.run.hbm_read_bytes for k in again.kernels] == [64 * 64 * 2, 0]
    assert ran.kernels[0].run.hbm_read_bytes == 64 * 64 * 2


@st.composite
def programs(draw: Any) -> list[Command]:
    """Kernels and transfers on up to five GPUs, each after some of those before it."""
    shared = [kernel(str(n), draw(st.integers(1, 64))) for n in range(3)]
    gpus = st.integers(0, 4)
    commands: list[Command] = []
    for _ in range(draw(st.integers(1, 12))):
        after = tuple(command for command in commands if draw(st.booleans()))[:3]
        gpu, to = draw(gpus), draw(gpus)
        if draw(st.booleans()):
            commands.append(Command(draw(st.sampled_from(shared)), gpu, after))
        else:
            way = draw(st.sampled_from(("peer", "to host", "from host")))
            work = Transfer("x", draw(st.integers(0, 10**6)), "host", from_host=way == "from host")
            if way == "peer" and gpu != to:
                work = Transfer("x", work.bytes, to)
            commands.append(Command(work, gpu, after))
    return commands


@given(programs())
def test_whatever_the_program_ports_are_fifo_and_nothing_starts_before_what_it_waits_for(commands):
    ran = run(commands)
    assert len(ran.kernels) + len(ran.sent) == len(commands)
    spans: dict[Command, tuple[float, float]] = {}
    for gpu in range(5):
        own = [k for k in ran.kernels if k.gpu == gpu]
        listed = [s for s in commands if s.gpu == gpu and isinstance(s.work, Kernel)]
        assert [k.run.kernel for k in own] == [s.work for s in listed]
        for command, k in zip(listed, own, strict=True):
            spans[command] = k.start_s, k.start_s + k.run.time_s
        for before, after in pairwise(own):
            assert after.start_s >= before.start_s + before.run.time_s + GAP_S - 1e-15
    for sent in ran.sent:
        (command,) = (s for s in commands if s.work is sent.transfer)
        spans[command] = sent.start_s, sent.end_s
    for command in commands:
        for earlier in command.after:
            assert spans[command][0] >= spans[earlier][1]
    for end in ("gpu", "to"):
        ports: dict[Any, list[tuple[float, float]]] = {}
        for sent in ran.sent:
            owner = sent.gpu if end == "gpu" or sent.transfer.to == "host" else sent.transfer.to
            ports.setdefault((sent.kind, owner), []).append((sent.start_s, sent.free_s))
        for spans_of_port in ports.values():
            for before, after in pairwise(sorted(spans_of_port)):
                assert after[0] >= before[1]
    assert math.isclose(ran.time_s, max(end for _, end in spans.values()))


@given(programs())
def test_both_engines_agree_on_any_program(commands):
    replay, reference = run(commands), run(commands, engine="reference")
    assert replay.time_s == pytest.approx(reference.time_s, rel=1e-9)
    for ours, theirs in zip(replay.kernels, reference.kernels, strict=True):
        assert ours.gpu == theirs.gpu
        assert_same(ours.run, theirs.run)
