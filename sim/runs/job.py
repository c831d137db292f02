"""One schedule on one point: lowered, checked against memory and limits, run, recorded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sim.device.memory import OutOfMemoryError, check_memory
from sim.device.program import kernels_of, replays_of
from sim.device.run import DeviceRun, EngineName, run_on_device
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
    oom: OutOfMemoryError | None
    most_steps: int | None

    @classmethod
    def of(cls, point: Point, schedule: Schedule, commands: list[Command], limits: Limits) -> "Job":
        """Raises LimitsError."""
        try:
            check_memory(commands, point.hardware)
        except OutOfMemoryError as error:
            return cls(point, schedule, commands, 0, error, limits.most_steps)
        tile_steps = check_limits(limits, point, schedule, commands)
        return cls(point, schedule, commands, tile_steps, None, limits.most_steps)

    def run(self, engine: EngineName, progress: Callable[[int], None]) -> Outcome:
        """Replay it; raises InputError where a transfer needs a link that there is not."""
        point = self.point
        facts = (point.asked(self.schedule), point.workload, point.hardware)
        if self.oom is not None:
            return Outcome(point, record_of_oom(*facts, self.oom, engine), None)
        try:
            run = run_on_device(
                self.commands,
                point.hardware,
                point.workload.dtype,
                engine,
                progress,
                most_steps=self.most_steps,
            )
        except InputError as error:
            raise InputError(f"schedule {self.schedule.title}: {error}") from None
        return Outcome(point, record_of(*facts, run, engine), run)


class LimitsError(InputError):
    """A replay would take more of this computer than the limits allow."""


def check_limits(limits: Limits, point: Point, schedule: Schedule, commands: list[Command]) -> int:
    """What the replay costs in tile steps, chunks of L2 among them (`replay_cost`).

    Raises LimitsError where they or the replay's arrays exceed the limits.
    """
    who = f"schedule {schedule.title}"
    advice = "shorten workload.seq_len, lower batch or heads, or raise"
    choice = Choice.of(kernels_of(commands), limits.most_steps)
    whole = [kernel for kernel in choice.cost if kernel not in choice.in_part]
    memory = l2_bytes(choice.chunkings, point.hardware) if whole else 0
    memory += max((replay_bytes(kernel, point.hardware) for kernel in whole), default=0)
    if memory > limits.memory:
        raise LimitsError(
            f"{who}: the replay would need about {show_binary(memory)} of memory, limits.memory is "
            f"{show_binary(limits.memory)}: {advice} limits.memory"
        )
    tile_steps = sum(choice.cost[kernel] for kernel in replays_of(commands))
    if tile_steps > limits.tile_steps:
        raise LimitsError(
            f"{who}: the replay would take {tile_steps:.3g} tile steps, limits.tile_steps is "
            f"{limits.tile_steps:.3g}: {advice} limits.tile_steps"
        )
    return tile_steps


def run_scenario(
    scenario: Scenario, engine: EngineName = "replay", progress: Progress = lambda *_: None
) -> Iterator[Outcome]:
    """Outcomes as they are finished; bad input raises InputError before the first one runs."""
    lowered = lower_all(scenario)
    with naming(scenario.where):
        jobs = [Job.of(*of_schedule, scenario.limits) for of_schedule in lowered]
    total, done = sum(job.tile_steps for job in jobs), 0
    for job in jobs:

        def so_far(n: int, title: str = job.schedule.title, before: int = done) -> None:
            progress(title, before + n, total)

        so_far(0)
        with naming(scenario.where):
            outcome = job.run(engine, so_far)
        done += job.tile_steps
        so_far(job.tile_steps)
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
