"""Sweeps: many points replayed side by side, each kept as soon as it is finished.

The main process knows what is asked (`cases`), looks it up in a store by its address (a hash of
all that its figures depend on), hands what is missing to an executor in chunks (`dealer`), and
alone writes. A worker gives back what it finished of a chunk in a moment (`work`); the rest goes to
the next free one.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import dataclass
from typing import Any

from sim.device.run import EngineName
from sim.inputs.files import InputError
from sim.runs.address import code_of
from sim.runs.cases import Refusal, cases_of
from sim.runs.dealer import Dealer
from sim.runs.job import Progress
from sim.runs.record import Asked, KernelResult, Record
from sim.runs.scenario import Limits, ScenarioText, check_tables
from sim.runs.store import Store
from sim.runs.work import Done, Task, failed, problem_of, work
from sim.runs.workers import Workers, WorkersLostError


@dataclass(frozen=True)
class Swept:
    """What a sweep came to: a record a schedule and point, in order, and how many were new."""

    records: list[Record]
    replayed: int


def sweep_points(
    text: ScenarioText,
    store: Store,
    workers: Workers,
    engine: EngineName = "replay",
    progress: Progress = lambda *_: None,
) -> Swept:
    """Run the points of a scenario that the store lacks.

    What cannot be is a record with its reason. Raises InputError where no tables can (`cases_of`),
    and WorkersLostError.
    """
    limits = check_tables(text.data, text.where).limits
    wanted = [
        one if isinstance(one, Refusal) else Task.of(one, engine, limits) for one in cases_of(text)
    ]
    tasks = {one.key: one for one in wanted if isinstance(one, Task)}
    known = limits.model_dump_json()
    missing = [task for key, task in tasks.items() if store.get(key, known) is None]
    missing.sort(key=_flops, reverse=True)  # so that workers end together
    passing: dict[str, str] = {}  # records that are not kept
    replayed = 0
    progress(f"0 of {len(missing):,} points", 0, len(missing))
    for done in _replayed(missing, workers, limits, engine):
        store.put(one.entry for one in done if one.keep)
        passing |= {one.entry.key: one.entry.record for one in done if not one.keep}
        replayed += len(done)
        progress(f"{replayed:,} of {len(missing):,} points", replayed, len(missing))

    def record_of(one: Task | Refusal) -> Record:
        if isinstance(one, Refusal):
            return one.record(engine)
        found = passing.get(one.key) or store.get(one.key, known)
        assert found is not None
        return _renamed(json.loads(found), one.case.asked)

    return Swept([record_of(one) for one in wanted], replayed)


def _flops(task: Task) -> int:
    """What its attention computes, if nothing of that is left out."""
    return task.case.point.workload.useful_flops


def _renamed(fields: dict[str, Any], asked: Asked) -> Record:
    """The record in the words that it is asked for in: an address knows figures alone."""
    kernels = [KernelResult(**kernel) for kernel in fields.pop("kernels")]
    return Record(**{**fields, **vars(asked)}, kernels=kernels)


def _replayed(
    tasks: list[Task], workers: Workers, limits: Limits, engine: EngineName
) -> Iterator[list[Done]]:
    """What workers did of the tasks, as it comes."""
    dealer = Dealer(tasks)
    running: dict[Future[list[Done]], list[Task]] = {}

    def start(chunks: Iterable[list[Task]]) -> None:
        for chunk in chunks:
            code = code_of(*(task.case.schedule for task in chunk))
            running[workers.executor.submit(work, chunk, limits, engine, code)] = chunk

    try:
        while dealer.waiting or running:
            start(dealer.deal(len(running), workers.width()))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                chunk = running.pop(future)
                try:
                    done = future.result()
                except (InputError, BrokenExecutor, CancelledError):
                    raise
                except Exception as error:  # such as Dask's for what took several workers with it
                    if parts := dealer.broke(chunk):
                        start(parts)
                        continue
                    done = [Done(failed(chunk[0], problem_of(error), engine), keep=False)]
                dealer.came_back(chunk, len(done))
                yield done
    except BrokenExecutor:
        raise WorkersLostError(
            "a worker process died: killed, or out of this computer's memory (fewer --workers)"
        ) from None
    except CancelledError:
        raise WorkersLostError("the cluster's scheduler was lost") from None
