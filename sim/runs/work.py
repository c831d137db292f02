"""What a worker of a sweep does: it replays tasks, and gives back what the store keeps of them.

Records are kept without `timeline` and `memory`, which take most of their room.
"""

import json
import socket
import time
from dataclasses import asdict, dataclass, replace
from typing import Self

from sim.device.run import EngineName
from sim.inputs.files import InputError
from sim.runs.address import address, code_of
from sim.runs.cases import Case
from sim.runs.job import LimitsError, run_case
from sim.runs.record import Record
from sim.runs.scenario import Limits
from sim.runs.store import Entry

CHUNK_S = 0.1  # of work, before a worker gives back what it has


@dataclass(frozen=True)
class Task:
    """A case to be replayed, and the address of its record."""

    key: str
    case: Case

    @classmethod
    def of(cls, case: Case, engine: EngineName, limits: Limits) -> Self:
        """That of a case."""
        return cls(address(case.point, case.schedule, engine, limits), case)


@dataclass(frozen=True)
class Done:
    """What a task came to; `keep` it unless another try may end otherwise."""

    entry: Entry
    keep: bool


def work(tasks: list[Task], limits: Limits, engine: EngineName, code: str) -> list[Done]:
    """Do the first of the tasks and, until CHUNK_S are over, those behind it.

    Raises InputError where `code` is not that of the tasks' schedules here.
    """
    if code != code_of(*(task.case.schedule for task in tasks)):
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
        record = run_case(task.case, limits, engine).record
    except LimitsError as error:
        known = limits.model_dump_json()
        return Done(failed(task, error, engine)._replace(limits=known), keep=True)
    except InputError as error:
        return Done(failed(task, error, engine), keep=True)
    except Exception as error:  # the other points go on
        return Done(failed(task, problem_of(error), engine), keep=False)
    return Done(Entry(task.key, _text(record)), keep=True)


def failed(task: Task, why: InputError, engine: EngineName) -> Entry:
    """What is kept of a task that ended in an error."""
    return Entry(task.key, _text(task.case.refused(why).record(engine)))


def problem_of(error: Exception) -> InputError:
    """An error that nobody foresaw as what is said of a task."""
    return InputError(f"{type(error).__name__}: {error}")


def _text(record: Record) -> str:
    return json.dumps(asdict(replace(record, timeline=[], memory=[])), allow_nan=False)
