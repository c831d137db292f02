"""Tasks dealt to workers: whatever these do with their chunks, each task comes to one end."""

from hypothesis import given
from hypothesis import strategies as st

from sim.runs.dealer import CHUNK_TASKS, Dealer


@given(st.data(), st.integers(0, 300), st.integers(1, 5))
def test_every_task_is_done_once_though_workers_stop_early_and_break(data, count, width):
    dealer = Dealer(range(count))
    running, done, broken = [], [], []
    while dealer.waiting or running:
        dealt = list(dealer.deal(len(running), width))
        assert all(1 <= len(chunk) <= CHUNK_TASKS for chunk in dealt)
        running += dealt
        assert running
        chunk = running.pop(data.draw(st.integers(0, len(running) - 1)))
        if data.draw(st.integers(0, 9)) == 0:
            parts = dealer.broke(chunk)
            running += parts
            broken += [] if parts else chunk
            continue
        finished = data.draw(st.integers(1, len(chunk)))
        done += chunk[:finished]
        dealer.came_back(chunk, finished)
    assert sorted(done + broken) == list(range(count))


def test_each_worker_has_one_chunk_in_work_and_one_that_waits():
    dealer = Dealer(range(1000))
    assert [len(list(dealer.deal(running, 2))) for running in (0, 4, 3, 9)] == [4, 0, 1, 0]


def test_what_a_worker_left_is_next_and_chunks_get_smaller():
    dealer = Dealer(range(40))
    chunk, *others = dealer.deal(0, 1)
    assert (chunk, others) == (list(range(10)), [list(range(10, 17))])
    dealer.came_back(chunk, 4)
    assert next(dealer.deal(1, 1))[:6] == [4, 5, 6, 7, 8, 9]
