"""One schedule on one point: lowered, checked against memory and limits, run, recorded."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sim.device.links import check_links
from sim.device.memory import OutOfMemoryError, check_memory
from sim.device.program import kernels_of, replays_of
from sim.device.replays import Replays
from sim.device.run import ENGINES, DeviceRun, EngineName, run_of
from sim.device.side_by_side import SideBySide, cores
from sim.engine.compiled.l2 import l2_bytes
from sim.engine.compiled.records import replay_bytes
from sim.engine.fast_forward.choice import Choice
from sim.inputs.files import InputError
from sim.inputs.units import show_binary
from sim.runs.cases import Case, Refusal, cases_of
from sim.runs.record import Record
from sim.runs.recorded import record_of, record_of_oom
from sim.runs.scenario import Limits, Point, Scenario, ScenarioText, check_tables
from sim.schedules.base import Schedule
from sim.tile_program import Command

# Is told what is worked on, how much is done, and of how much in all (0: not known).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What one schedule on one point came to: its record and, if it ran, the run itself.

    Figures and traces show more of the run than the record says.
    """

    record: Record
    run: DeviceRun | None


@dataclass(frozen=True)
class Job:
    """One schedule on one point, lowered, that fits: to be replayed."""

    case: Case
    engine: EngineName
    commands: list[Command]
    tile_steps: int
    memory: int  # bytes of this computer that its replay takes
    most_steps: int | None

    def start(self, beside: SideBySide) -> Replays[Any]:
        """Begin to replay its kernels."""
        hw, dtype = self.case.point.hardware, self.case.point.workload.dtype
        return Replays(self.commands, hw, dtype, ENGINES[self.engine], beside, self.most_steps)

    def outcome(self, replays: Replays[Any]) -> Outcome:
        """What it comes to."""
        point = self.case.point
        run = run_of(self.commands, point.hardware, replays)
        record = record_of(self.case.asked, point.workload, point.hardware, run, self.engine)
        return Outcome(record, run)


def job_of(case: Case, limits: Limits, engine: EngineName) -> Job | Outcome:
    """A case lowered; what does not fit in HBM has its outcome at once.

    Raises InputError where it cannot be, of which LimitsError is one.
    """
    point, schedule = case.point, case.schedule
    commands = schedule.program(point.workload, point.hardware)
    try:
        check_links(commands, point.hardware)
        check_memory(commands, point.hardware)
    except InputError as error:
        raise InputError(f"schedule {schedule.title}: {error}") from None
    except OutOfMemoryError as error:
        record = record_of_oom(case.asked, point.workload, point.hardware, error, engine)
        return Outcome(record, None)
    tile_steps, memory = check_limits(limits, point, schedule, commands)
    return Job(case, engine, commands, tile_steps, memory, limits.most_steps)


class LimitsError(InputError):
    """A replay would take more of this computer than the limits allow."""


def check_limits(
    limits: Limits, point: Point, schedule: Schedule, commands: list[Command]
) -> tuple[int, int]:
    """What the replay costs in tile steps, chunks of L2 among them (`replay_cost`), and in bytes.

    Raises LimitsError where they or the replay's arrays exceed the limits.
    """
    who = f"schedule {schedule.title}"
    advice = "shorten workload.seq_len, lower batch or heads, or raise"
    choice = Choice.of(kernels_of(commands), point.hardware, limits.most_steps)
    whole = [kernel for kernel in choice.cost if kernel not in choice.in_part]
    memory = l2_bytes(choice.chunkings, point.hardware) if whole else 0
    memory += max((replay_bytes(kernel, point.hardware) for kernel in whole), default=0)
    if memory > limits.memory:
        raise LimitsError(
            f"{who}: the replay would need about {show_binary(memory)} of memory, limits.memory is "
            f"{show_binary(limits.memory)}: {advice} limits.memory"
        )
    tile_steps = sum(choice.cost[kernel] for kernel in replays_of(commands, choice))
    if tile_steps > limits.tile_steps:
        raise LimitsError(
            f"{who}: the replay would take {tile_steps:.3g} tile steps, limits.tile_steps is "
            f"{limits.tile_steps:.3g}: {advice} limits.tile_steps"
        )
    return tile_steps, memory


def run_scenario(
    scenario: Scenario,
    engine: EngineName = "replay",
    progress: Progress = lambda *_: None,
    threads: int | None = None,
) -> Iterator[Outcome]:
    """Outcomes in order; bad input raises InputError before the first one."""
    cases = [Case(point, schedule) for point in scenario.points for schedule in point.schedules]

    def jobs() -> Iterator[Job | Outcome]:
        with naming(scenario.where):
            yield from (job_of(case, scenario.limits, engine) for case in cases)

    return _side_by_side(jobs(), scenario.limits, progress, threads)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """InputErrors from within name the file."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{where}: {error}") from None


def run_what_can_be(
    text: ScenarioText,
    engine: EngineName = "replay",
    progress: Progress = lambda *_: None,
) -> Iterator[Outcome]:
    """Outcomes of a file's cases, as `run_cases` has them."""
    limits = check_tables(text.data, text.where).limits
    return run_cases(cases_of(text), text.where, limits, engine, progress)


def run_cases(
    cases: Sequence[Case | Refusal],
    where: str,
    limits: Limits,
    engine: EngineName = "replay",
    progress: Progress = lambda *_: None,
) -> Iterator[Outcome]:
    """Outcomes in order; what cannot be has a record with its reason, and does not stop the others.

    Raises InputError, naming the file `where`, where nothing can be.
    """

    def jobs() -> Iterator[Job | Outcome]:
        refusals = []
        for case in cases:
            job = _job_or_refusal(case, limits, engine)
            if isinstance(job, Refusal):
                refusals.append(job)
                yield Outcome(job.record(engine), None)
            else:
                yield job
        if len(refusals) == len(cases):  # of which tables are right
            first = next(one for one in refusals if one.workload is not None)
            raise InputError(f"{where}: {first.message}")

    return _side_by_side(jobs(), limits, progress)


def run_each(
    cases: Sequence[Case], limits: Limits, engine: EngineName = "replay"
) -> Iterator[Outcome]:
    """Outcomes in order; what cannot be, were it all of them, has a record with its reason."""

    def jobs() -> Iterator[Job | Outcome]:
        for case in cases:
            job = _job_or_refusal(case, limits, engine)
            yield Outcome(job.record(engine), None) if isinstance(job, Refusal) else job

    return _side_by_side(jobs(), limits, lambda *_: None)


def _job_or_refusal(
    case: Case | Refusal, limits: Limits, engine: EngineName
) -> Job | Outcome | Refusal:
    if isinstance(case, Refusal):
        return case
    try:
        return job_of(case, limits, engine)
    except InputError as error:
        return case.refused(error)


def run_case(case: Case, limits: Limits, engine: EngineName) -> Outcome:
    """One case, replayed in this thread; raises InputError where it cannot be."""
    (outcome,) = _side_by_side([job_of(case, limits, engine)], limits, lambda *_: None, 1)
    return outcome


def _side_by_side(
    lowered: Iterable[Job | Outcome],
    limits: Limits,
    progress: Progress,
    threads: int | None = None,
) -> Iterator[Outcome]:
    """All are replayed on so many threads, as many as there are cores by default.

    Each from when it is lowered on, while the next ones are; the first outcome comes when all are.
    Fewer threads where their arrays would take more than limits.memory. Of one thread it is the
    caller's.
    """
    jobs: list[Job | Outcome] = []
    replays: list[Replays[Any] | None] = []
    total, done, title = 0, 0, ""

    def tell() -> None:
        begun = sum(one.cost_done for one in replays if one is not None)
        progress(title, min(done + begun, total), total)

    with SideBySide(threads or cores(), tell) as beside:
        for job in lowered:
            jobs.append(job)
            if isinstance(job, Outcome):
                replays.append(None)
                continue
            total += job.tile_steps
            beside.narrow(int(limits.memory) // max(job.memory, 1))
            replays.append(job.start(beside))
        for number, job in enumerate(jobs):
            if isinstance(job, Outcome):
                yield job
                continue
            title = job.case.schedule.title
            tell()
            started = replays[number]
            assert started is not None
            outcome = job.outcome(started)
            replays[number] = started = None
            done += job.tile_steps
            tell()
            yield outcome
