"""Which tasks of a sweep go to a worker next: decisions alone, which `sweep` carries out.

Each worker has one chunk in work and one that waits. Chunks are small beside what is left, so that
all workers end together: small points cost little, and large ones wait for nobody.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from sim.runs.work import Task

CHUNK_TASKS = 64  # at most


class Dealer:
    """The tasks that no worker has."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.waiting = deque(tasks)

    def deal(self, running: int, width: int) -> Iterator[list[Task]]:
        """The chunks to start now, where so many run and `width` tasks are replayed at a time."""
        for _ in range(running, 2 * width):
            if not self.waiting:
                return
            size = max(1, min(CHUNK_TASKS, len(self.waiting) // (4 * width)))
            yield [self.waiting.popleft() for _ in range(size)]

    def came_back(self, chunk: list[Task], done: int) -> None:
        """A worker did the first tasks of a chunk: the others are next."""
        self.waiting.extendleft(reversed(chunk[done:]))

    def broke(self, chunk: list[Task]) -> list[list[Task]]:
        """The chunks to start instead of one that broke its worker: its tasks, each alone.

        Empty for a task that was alone: it is the one that breaks.
        """
        return [[task] for task in chunk] if len(chunk) > 1 else []
