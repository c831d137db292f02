"""Sweeps: many points replayed side by side, each kept as soon as it is finished.

The main process reads the scenario, looks every schedule of every point up in a store by its
address (a hash of all that its figures depend on), hands what is missing to an executor, and alone
writes. Workers get a chunk of points and give back those that they finished in CHUNK_S; the rest
goes to the next free one. So small points cost little, and large ones wait for nobody.

Records are kept without `timeline` and `memory`, which take most of their room.
"""

import json
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import sha256
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sim.engine.device import EngineName
from sim.files import InputError, checked
from sim.hardware import HardwareProfile
from sim.result import KernelResult, Record, versions
from sim.scenario import (
    Job,
    Limits,
    LimitsError,
    Point,
    Progress,
    ScenarioFile,
    check_titles,
    lower,
    make_point,
    make_scenario,
    run_scenario,
    variations,
)
from sim.schedules.base import Schedule
from sim.store import Finished, Store

CHUNK_S = 0.1  # of work, before a worker gives back what it has
_CHUNK_POINTS = 64
CLUSTER_S = 20  # to wait for a cluster and its first worker


class WorkersLostError(Exception):
    """The executor is gone; the store has what was finished."""


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
class Asked:
    """What a sweep asks of one schedule on one point: a task, or why there is none."""

    values: dict[str, Any]
    title: str
    hardware: str
    task: Task | None
    problem: str = ""


@dataclass(frozen=True)
class Workers:
    """An executor, and how many tasks it runs at a time."""

    executor: Executor
    width: Callable[[], int]


@dataclass(frozen=True)
class Swept:
    """What a sweep came to: a record a schedule and point, in order, and how many were new."""

    records: list[Record]
    replayed: int


def sweep_points(
    data: Mapping[str, Any],
    where: str,
    folder: Path | None,
    store: Store,
    workers: Workers,
    engine: EngineName = "replay",
    progress: Progress = lambda *_: None,
) -> Swept:
    """Run the points of a scenario's tables that the store lacks.

    A point that cannot be is a record with its reason. Raises InputError where none can be or the
    tables as such are wrong, and WorkersLostError.
    """
    limits = checked(ScenarioFile, data, where).limits
    asked = list(_asked(data, where, folder, engine, limits))
    if not any(one.task for one in asked):
        raise InputError(asked[0].problem)
    tasks = {one.task.key: one.task for one in asked if one.task}
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

    def record_of(one: Asked) -> Record:
        if one.task is None:
            return Record(
                one.title, one.values, {}, one.hardware, "failed", one.problem, engine=engine
            )
        text = passing.get(one.task.key) or store.get(one.task.key, known)
        assert text is not None
        return _relabelled(json.loads(text), one)

    return Swept([record_of(one) for one in asked], replayed)


def _relabelled(fields: dict[str, Any], asked: Asked) -> Record:
    """The record under the names that are asked for: an address knows figures alone."""
    kernels = [KernelResult(**kernel) for kernel in fields.pop("kernels")]
    named = {"schedule": asked.title, "point": asked.values, "hardware": asked.hardware}
    return Record(**{**fields, **named}, kernels=kernels)


def _asked(
    data: Mapping[str, Any], where: str, folder: Path | None, engine: EngineName, limits: Limits
) -> Iterator[Asked]:
    """Every schedule of every point, in order; raises InputError for what is wrong in all."""
    tables = data["schedule"]
    check_titles([str(table.get("label") or table.get("name")) for table in tables], where)
    for swept, varied in variations(data, where):
        try:
            points = [make_point(varied, swept, where, folder)]
        except InputError:  # of one schedule alone, perhaps
            points = []
        for table in [] if points else varied["schedule"]:
            try:
                points.append(make_point({**varied, "schedule": [table]}, swept, where, folder))
            except InputError as error:
                title = str(table.get("label") or table.get("name"))
                profile = str(varied["hardware"].get("profile"))
                yield Asked(swept, title, profile, None, str(error))
        for point in points:
            for schedule in point.schedules:
                task = Task(address(point, schedule, engine, limits), point, schedule)
                yield Asked(swept, schedule.title, point.hardware.name, task)


def address(point: Point, schedule: Schedule, engine: EngineName, limits: Limits) -> str:
    """A hash of what a record's figures depend on: canonical inputs, engine, code and versions."""
    inputs = {
        "workload": asdict(point.workload),
        "hardware": _figures(point.hardware),
        "schedule": schedule.model_dump(exclude={"label"}),
        "engine": engine,
        "most_steps": limits.most_steps,
        "code": fingerprint(),
    }
    return sha256(json.dumps(inputs, sort_keys=True, default=_file_content).encode()).hexdigest()


def _figures(hw: HardwareProfile) -> dict[str, Any]:
    """What a profile says, without its names and where its figures come from."""

    def without(table: dict[str, Any]) -> dict[str, Any]:
        return {
            key: without(value) if isinstance(value, dict) else value
            for key, value in table.items()
            if key not in ("name", "title", "source")
        }

    return without(hw.model_dump())


def _file_content(option: Any) -> str:
    """A file that a schedule reads counts by what is in it."""
    if isinstance(option, Path) and option.is_file():
        return sha256(option.read_bytes()).hexdigest()
    return str(option)


@cache
def fingerprint() -> str:
    """A hash of the sources that figures come from, and of the versions of what they run on."""
    home = Path(__file__).parent
    sources = sorted(p for f in (".", "engine", "schedules") for p in (home / f).glob("*.py"))
    stamp = sha256(json.dumps(dict(versions()), sort_keys=True).encode())
    for path in sources:
        stamp.update(path.read_bytes())
    return stamp.hexdigest()


def _replayed(
    tasks: list[Task], workers: Workers, limits: Limits, engine: EngineName
) -> Iterator[list[Done]]:
    """Chunks as they are finished."""
    queue = deque(tasks)
    running: dict[Future[list[Done]], list[Task]] = {}

    def start(chunk: list[Task]) -> None:
        running[workers.executor.submit(work, chunk, limits, engine, fingerprint())] = chunk

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
    if code != fingerprint():
        raise InputError(
            f"the worker on {socket.gethostname()} has another attnsim, Python, numba or numpy "
            "than this one: install the same there"
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
        steps = lower(task.point, task.schedule)
        job = Job.of(task.point, task.schedule, steps, limits)
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
    w, hw = task.point.workload, task.point.hardware
    record = Record(
        task.schedule.title,
        task.point.values,
        asdict(w),
        hw.name,
        "failed",
        reason,
        engine=engine,
        useful_flops=w.useful_flops,
        versions=dict(versions()),
    )
    return Finished(task.key, _text(record))


def _text(record: Record) -> str:
    return json.dumps(asdict(replace(record, timeline=[], memory=[])), allow_nan=False)


@contextmanager
def processes(workers: int | None = None) -> Iterator[Workers]:
    """So many worker processes here, as many as there are cores by default.

    They come from a fork server, which has no threads and imports attnsim once for all of them.
    They die with this process, however it ends.
    """
    count = workers or len(os.sched_getaffinity(0))
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    context.set_forkserver_preload(["sim.sweeps"])
    compile_engine()
    lifeline, alive = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(count, context, _live_on, (lifeline,))
    try:
        yield Workers(executor, lambda: count)
    except BaseException:
        alive.close()  # ends them in the middle of what they do
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        alive.close()
        lifeline.close()


def compile_engine() -> None:
    """Let the compiled engine lie on disk, so that workers read it instead of compiling it each."""
    tables = {
        "workload": {"heads": 1, "head_dim": 64, "seq_len": 64},
        "hardware": {"profile": "h100-sxm"},
        "schedule": [{"name": "flash2"}],
    }
    list(run_scenario(make_scenario(tables, "compile", "compile")))


def _live_on(lifeline: Connection) -> None:
    """Of a worker: leave Ctrl-C to the main process, and end when its end of the pipe closes."""

    def watch() -> None:
        lifeline.poll(None)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def cluster(address: str) -> Iterator[Workers]:
    """The workers of a Dask cluster; raises InputError where it cannot be reached."""
    try:
        from dask.distributed import Client
    except ImportError:
        raise InputError("--dask needs dask.distributed: pip install 'attnsim[cluster]'") from None
    try:
        client = Client(address, timeout=CLUSTER_S)
        client.wait_for_workers(1, timeout=CLUSTER_S)
    except (OSError, ValueError, TimeoutError) as error:
        problem = str(error).splitlines()[0]
        raise InputError(f"--dask {address}: no cluster with workers there: {problem}") from None
    with client:
        # The same point twice is another try, not the result of the first.
        executor = client.get_executor(pure=False)
        yield Workers(executor, lambda: max(1, sum(client.nthreads().values())))
