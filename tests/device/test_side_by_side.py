"""Chains of replays stand side by side, while what follows is lowered."""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from threading import Event

from sim.device.run import REMEMBERED
from sim.device.side_by_side import SideBySide
from sim.runs import job
from sim.runs.scenario import make_scenario

TABLES = {
    "workload": {"heads": 1, "head_dim": 64, "seq_len": 256},
    "hardware": {"profile": "h100-sxm"},
    "schedule": [{"name": "flash2"}, {"name": "naive"}],
}


def test_the_first_is_replayed_while_the_next_is_lowered(monkeypatch):
    replayed, lowered = Event(), []
    run_kernel, job_of = REMEMBERED.run_kernel, job.job_of

    def telling(*arguments):
        replayed.set()
        return run_kernel(*arguments)

    def after_the_first(case, *arguments):
        lowered.append(case)
        assert len(lowered) == 1 or replayed.wait(60)
        return job_of(case, *arguments)

    monkeypatch.setattr(REMEMBERED, "run_kernel", telling)
    monkeypatch.setattr(job, "job_of", after_the_first)
    outcomes = list(job.run_scenario(make_scenario(TABLES, "", "a test"), threads=2))
    assert [outcome.record.schedule for outcome in outcomes] == ["flash2", "naive"]


def test_what_is_narrowed_begins_one_after_the_other():
    order: list[tuple[int, str]] = []
    ended: list[Future[None]] = [Future() for _ in range(4)]

    def chain(number: int) -> Iterator[None]:
        order.append((number, "begins"))
        time.sleep(0.01)  # in which others would begin
        yield
        order.append((number, "ends"))
        ended[number].set_result(None)

    with SideBySide(4, lambda: None) as beside:
        beside.narrow(1)
        chains = [chain(number) for number in range(4)]
        for one in chains:
            beside.start(one, cost=1)
        for future, one in zip(ended, chains, strict=True):
            beside.result(future, one)
    of_each = [number for number, _ in order]
    assert of_each[::2] == of_each[1::2]
    assert sorted(of_each[::2]) == [0, 1, 2, 3]


def test_of_those_that_wait_the_costliest_is_next():
    order: list[int] = []
    begun, all_wait = Event(), Event()
    ended: Future[None] = Future()

    def chain(cost: int) -> Iterator[None]:
        begun.set()
        assert all_wait.wait(60)
        order.append(cost)
        if len(order) == 5:
            ended.set_result(None)
        yield

    with SideBySide(2, lambda: None) as beside:
        beside.narrow(1)
        beside.start(chain(1), 1)
        assert begun.wait(60)
        for cost in (2, 5, 3, 4):
            beside.start(chain(cost), cost)
        all_wait.set()
        beside.result(ended, chain(0))
    assert order == [1, 5, 4, 3, 2]
