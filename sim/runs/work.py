"""What a worker of a sweep does: it replays tasks, and gives back what the store keeps of them.

Records are kept without `timeline` and `memory`, which take most of their room.
"""

import json
import socket
import time
from dataclasses import asdict, dataclass, replace

from sim.device.run import EngineName
from sim.inputs.files import InputError
from sim.runs.address import code_of
from sim.runs.job import Job, LimitsError
from sim.runs.record import Record
from sim.runs.recorded import record_of_none
from sim.runs.scenario import Limits
from sim.runs.store import Entry
from sim.runs.wanted import Task

CHUNK_S = 0.1  # of work, before a worker gives back what it has


@dataclass(frozen=True)
class Done:
    """What a task came to; `keep` it unless another try may end otherwise."""

    entry: Entry
    keep: bool


def work(tasks: list[Task], limits: Limits, engine: EngineName, code: str) -> list[Done]:
    """Do the first of the tasks and, until CHUNK_S are over, those behind it.

    Raises InputError where `code` is not that of the tasks' schedules here.
    """
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
        return Done(failed(task, str(error), engine)._replace(limits=known), keep=True)
    except InputError as error:
        return Done(failed(task, str(error), engine), keep=True)
    except Exception as error:  # the other points go on
        return Done(failed(task, f"{type(error).__name__}: {error}", engine), keep=False)
    return Done(Entry(task.key, _text(record)), keep=True)


def failed(task: Task, reason: str, engine: EngineName) -> Entry:
    """What is kept of a task that ended in an error."""
    asked, w = task.point.asked(task.schedule), task.point.workload
    return Entry(task.key, _text(record_of_none(asked, w, "failed", reason, engine)))


def _text(record: Record) -> str:
    return json.dumps(asdict(replace(record, timeline=[], memory=[])), allow_nan=False)
