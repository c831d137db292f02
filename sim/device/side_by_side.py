"""Chains of replays side by side on threads: the compiled engine lets others run beside it.

A *chain* is an iterator that does a piece of work each time it is asked on: replays that follow
each other on one L2. Chains do not depend on each other, and what each comes to does not depend on
which thread did it, or when.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from heapq import heappop, heappush
from itertools import count
from threading import Condition
from typing import TypeVar

Result = TypeVar("Result")
WORD_S = 0.1  # between two words of progress to who waits


def cores() -> int:
    """How many threads of this process can run at a time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StoppedError(Exception):
    """Nobody waits for it any more."""


class SideBySide:
    """So many threads for chains; where there is one, who waits for a result does the work.

    `tell` is called now and then in the thread that waits; what it raises ends all work.
    """

    def __init__(self, threads: int, tell: Callable[[], None]) -> None:
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.tell, self.stopped = tell, False
        self.most, self.busy, self.turn = threads, 0, Condition()
        self.waiting: list[tuple[int, int, Iterator[None]]] = []  # of the most cost first
        self.order = count()

    def narrow(self, most: int) -> None:
        """From now on a chain begins only where fewer than so many are under way."""
        with self.turn:
            self.most = min(self.most, most)

    def start(self, chain: Iterator[None], cost: int) -> None:
        """Let a thread do the whole chain as soon as one is free: those that cost most go first.

        So all threads end at about the same time.
        """
        if self.pool is not None:
            with self.turn:
                heappush(self.waiting, (-cost, next(self.order), chain))
            self.pool.submit(self._do)

    def _do(self) -> None:
        with self.turn:
            self.turn.wait_for(lambda: self.busy < self.most)
            self.busy += 1
            _, _, chain = heappop(self.waiting)
        try:
            deque(chain, 0)
        finally:
            with self.turn:
                self.busy -= 1
                self.turn.notify_all()

    def go_on(self) -> None:
        """Called by the work itself now and then; raises where it is to end."""
        if self.stopped:
            raise StoppedError
        if self.pool is None:
            self.tell()

    def result(self, future: Future[Result], chain: Iterator[None]) -> Result:
        """What the chain leaves in the future, as soon as it is there."""
        while not future.done():
            if self.pool is None:
                next(chain)
            else:
                wait([future], WORD_S)
                self.tell()
        return future.result()

    def __enter__(self) -> "SideBySide":
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
