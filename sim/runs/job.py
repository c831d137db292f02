"""One schedule on one point: lowered, checked against memory and limits, run, recorded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
from sim.runs.record import Record
from sim.runs.recorded import record_of, record_of_oom
from sim.runs.scenario import Limits, Point, Scenario
from sim.schedules.base import Schedule
from sim.tile_program import Command

# Is told what is worked on, how much is done, and of how much in all (0: not known).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What one schedule on one point came to: its record and, if it fitted, the run itself.

    Figures and traces show more of the run than the record says.
    """

    point: Point
    record: Record
    run: DeviceRun | None


@dataclass(frozen=True)
class Job:
    """One schedule on one point, lowered: to be replayed, unless it does not fit."""

    point: Point
    schedule: Schedule
    commands: list[Command]
    tile_steps: int
    memory: int  # bytes of this computer that its replay takes
    oom: OutOfMemoryError | None
    most_steps: int | None

    @classmethod
    def of(cls, point: Point, schedule: Schedule, commands: list[Command], limits: Limits) -> "Job":
        """Raises LimitsError."""
        try:
            check_memory(commands, point.hardware)
        except OutOfMemoryError as error:
            return cls(point, schedule, commands, 0, 0, error, limits.most_steps)
        tile_steps, memory = check_limits(limits, point, schedule, commands)
        return cls(point, schedule, commands, tile_steps, memory, None, limits.most_steps)

    def run(self, engine: EngineName, progress: Callable[[int], None]) -> Outcome:
        """Replay it in this thread; raises as `outcome` does."""
        with SideBySide(1, lambda: progress(0)) as alone:
            return self.outcome(engine, self.start(engine, alone))

    def start(self, engine: EngineName, beside: SideBySide) -> Replays[Any] | None:
        """Begin to replay its kernels; None where it does not fit."""
        if self.oom is not None:
            return None
        hw, dtype = self.point.hardware, self.point.workload.dtype
        return Replays(self.commands, hw, dtype, ENGINES[engine], beside, self.most_steps)

    def outcome(self, engine: EngineName, replays: Replays[Any] | None) -> Outcome:
        """What it comes to; raises InputError where a transfer needs a link that there is not."""
        point = self.point
        facts = (point.asked(self.schedule), point.workload, point.hardware)
        if replays is None:
            assert self.oom is not None
            return Outcome(point, record_of_oom(*facts, self.oom, engine), None)
        try:
            run = run_of(self.commands, point.hardware, replays)
        except InputError as error:
            raise InputError(f"schedule {self.schedule.title}: {error}") from None
        return Outcome(point, record_of(*facts, run, engine), run)


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
    """Outcomes in order; bad input raises InputError before the first one runs.

    All are replayed side by side on so many threads, as many as there are cores by default: fewer
    where their arrays would take more than limits.memory. Of one thread it is the caller's.
    """
    lowered = lower_all(scenario)
    with naming(scenario.where):
        jobs = [Job.of(*of_schedule, scenario.limits) for of_schedule in lowered]
    total, done, title = sum(job.tile_steps for job in jobs), 0, ""
    replays: list[Replays[Any] | None] = []

    def tell() -> None:
        begun = sum(one.cost_done for one in replays if one is not None)
        progress(title, min(done + begun, total), total)

    largest = max((job.memory for job in jobs), default=0)
    fit = int(scenario.limits.memory) // max(largest, 1)
    with SideBySide(max(1, min(threads or cores(), fit)), tell) as beside:
        replays += [job.start(engine, beside) for job in jobs]
        for number, job in enumerate(jobs):
            title = job.schedule.title
            tell()
            with naming(scenario.where):
                outcome = job.outcome(engine, replays[number])
            replays[number] = None
            done += job.tile_steps
            tell()
            yield outcome


def lower_all(scenario: Scenario) -> list[tuple[Point, Schedule, list[Command]]]:
    """Every schedule of every point with its program; raises InputError for what cannot be."""
    lowered = []
    for point in scenario.points:
        for schedule in point.schedules:
            with naming(scenario.where):
                program = schedule.program(point.workload, point.hardware)
            lowered.append((point, schedule, program))
    return lowered


@contextmanager
def naming(where: str) -> Iterator[None]:
    """InputErrors from within name the file."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{where}: {error}") from None
