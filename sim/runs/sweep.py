"""Sweeps: many points replayed side by side, each kept as soon as it is finished.

The main process reads the scenario, looks every schedule of every point up in a store by its
address (a hash of all that its figures depend on), hands what is missing to an executor, and alone
writes. Workers get a chunk of points and give back those that they finished in CHUNK_S; the rest
goes to the next free one. So small points cost little, and large ones wait for nobody.

Records are kept without `timeline` and `memory`, which take most of their room.
"""

import json
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import asdict, dataclass, replace
from typing import Any

from sim.device.run import EngineName
from sim.inputs.files import InputError, checked
from sim.runs.address import address, code_of
from sim.runs.job import Job, LimitsError, Progress
from sim.runs.record import Asked, KernelResult, Record, flat, versions
from sim.runs.scenario import (
    Limits,
    Point,
    ScenarioFile,
    ScenarioText,
    check_titles,
    make_point,
    variations,
)
from sim.runs.store import Finished, Store
from sim.runs.workers import Workers, WorkersLostError
from sim.schedules import title_of
from sim.schedules.base import Schedule
from sim.schedules.own import CodeRefusedError

CHUNK_S = 0.1  # of work, before a worker gives back what it has
_CHUNK_POINTS = 64


@dataclass(frozen=True)
class Task:
    """One schedule on one point, under its address."""

    key: str
    point: Point
    schedule: Schedule


@dataclass(frozen=True)
class Done:
    """A finished task; `keep` unless another try may end otherwise."""

    finished: Finished
    keep: bool


@dataclass(frozen=True)
class Wanted:
    """One record that a sweep is to give: from a task, or with the problem why there is none."""

    asked: Asked
    task: Task | None
    problem: str = ""


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

    A point that cannot be is a record with its reason. Raises InputError where none can be or the
    tables as such are wrong, and WorkersLostError.
    """
    limits = checked(ScenarioFile, text.data, text.where).limits
    wanted = list(_wanted(text, engine, limits))
    if not any(one.task for one in wanted):
        raise InputError(wanted[0].problem)
    tasks = {one.task.key: one.task for one in wanted if one.task}
    known = limits.model_dump_json()
    missing = [task for key, task in tasks.items() if store.get(key, known) is None]
    passing: dict[str, str] = {}  # records that are not kept
    replayed = 0
    start_s = time.monotonic()
    progress("", 0, len(missing))
    for done in _replayed(missing, workers, limits, engine):
        store.put(one.finished for one in done if one.keep)
        passing |= {one.finished.key: one.finished.record for one in done if not one.keep}
        replayed += len(done)
        rate = replayed / (time.monotonic() - start_s)
        progress(f"{replayed:,} of {len(missing):,}, {rate:.3g}/s", replayed, len(missing))

    def record_of(one: Wanted) -> Record:
        if one.task is None:
            return Record(
                **vars(one.asked), workload={}, status="failed", reason=one.problem, engine=engine
            )
        text = passing.get(one.task.key) or store.get(one.task.key, known)
        assert text is not None
        return _renamed(json.loads(text), one.asked)

    return Swept([record_of(one) for one in wanted], replayed)


def _renamed(fields: dict[str, Any], asked: Asked) -> Record:
    """The record in the words that it is asked for in: an address knows figures alone."""
    kernels = [KernelResult(**kernel) for kernel in fields.pop("kernels")]
    return Record(**{**fields, **vars(asked)}, kernels=kernels)


def _wanted(text: ScenarioText, engine: EngineName, limits: Limits) -> Iterator[Wanted]:
    """Every schedule of every point, in order; raises InputError for what is wrong in all."""

    def point_of(tables: Mapping[str, Any], swept: dict[str, Any]) -> Point:
        return make_point(tables, swept, text.where, text.folder, text.allow_code)

    check_titles([title_of(table) for table in text.data["schedule"]], text.where)
    for swept, varied in variations(text.data, text.where):
        try:
            points = [point_of(varied, swept)]
        except InputError:  # of one schedule alone, perhaps
            points = []
        for table in [] if points else varied["schedule"]:
            try:
                points.append(point_of({**varied, "schedule": [table]}, swept))
            except CodeRefusedError:
                raise
            except InputError as error:
                yield Wanted(_as_written(table, varied["hardware"], swept), None, str(error))
        for point in points:
            for schedule in point.schedules:
                task = Task(address(point, schedule, engine, limits), point, schedule)
                yield Wanted(point.asked(schedule), task)


def _as_written(
    schedule: Mapping[str, Any], hardware: Mapping[str, Any], swept: dict[str, Any]
) -> Asked:
    """What tables ask that cannot be."""
    options, overrides = dict(schedule), dict(hardware)
    options.pop("label", None)
    profile = overrides.pop("profile", None)
    return Asked(title_of(schedule), options, swept, str(profile), flat(overrides))


def _replayed(
    tasks: list[Task], workers: Workers, limits: Limits, engine: EngineName
) -> Iterator[list[Done]]:
    """Chunks as they are finished."""
    queue = deque(tasks)
    running: dict[Future[list[Done]], list[Task]] = {}

    def start(chunk: list[Task]) -> None:
        code = code_of(*(task.schedule for task in chunk))
        running[workers.executor.submit(work, chunk, limits, engine, code)] = chunk

    try:
        while queue or running:
            width = workers.width()
            while queue and len(running) < 2 * width:
                points = max(1, min(_CHUNK_POINTS, len(queue) // (4 * width)))
                start([queue.popleft() for _ in range(points)])
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                chunk = running.pop(future)
                try:
                    done = future.result()
                except (InputError, BrokenExecutor, CancelledError):
                    raise
                except Exception as error:  # such as Dask's for what took several workers with it
                    if len(chunk) > 1:
                        for task in chunk:
                            start([task])
                        continue
                    reason = f"{type(error).__name__}: {error}"
                    done = [Done(_failed(chunk[0], reason, engine), keep=False)]
                queue.extendleft(reversed(chunk[len(done) :]))
                yield done
    except BrokenExecutor:
        raise WorkersLostError(
            "a worker process died: killed, or out of this computer's memory (fewer --workers)"
        ) from None
    except CancelledError:
        raise WorkersLostError("the cluster's scheduler was lost") from None


def work(tasks: list[Task], limits: Limits, engine: EngineName, code: str) -> list[Done]:
    """What a worker does: the first of the tasks and, until CHUNK_S are over, those behind it."""
    if code != code_of(*(task.schedule for task in tasks)):
        raise InputError(
            f"the worker on {socket.gethostname()} has another attnsim, Python, numba, numpy or "
            "a schedule's package than this one: install the same there"
        )
    end_s = time.monotonic() + CHUNK_S
    done = []
    for task in tasks:
        done.append(_done(task, limits, engine))
        if time.monotonic() > end_s:
            break
    return done


def _done(task: Task, limits: Limits, engine: EngineName) -> Done:
    try:
        commands = task.schedule.program(task.point.workload, task.point.hardware)
        job = Job.of(task.point, task.schedule, commands, limits)
        record = job.run(engine, lambda _: None).record
    except LimitsError as error:
        known = limits.model_dump_json()
        return Done(_failed(task, str(error), engine)._replace(limits=known), keep=True)
    except InputError as error:
        return Done(_failed(task, str(error), engine), keep=True)
    except Exception as error:  # the other points go on
        return Done(_failed(task, f"{type(error).__name__}: {error}", engine), keep=False)
    return Done(Finished(task.key, _text(record)), keep=True)


def _failed(task: Task, reason: str, engine: EngineName) -> Finished:
    w = task.point.workload
    record = Record(
        **vars(task.point.asked(task.schedule)),
        workload=asdict(w),
        status="failed",
        reason=reason,
        engine=engine,
        useful_flops=w.useful_flops,
        versions=dict(versions()),
    )
    return Finished(task.key, _text(record))


def _text(record: Record) -> str:
    return json.dumps(asdict(replace(record, timeline=[], memory=[])), allow_nan=False)
