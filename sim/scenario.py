"""Scenario files: a workload, a device, schedules, and what to vary."""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sim.design import design_of
from sim.engine.cache import l2_bytes
from sim.engine.device import (
    DeviceRun,
    EngineName,
    OutOfMemoryError,
    check_memory,
    kernels_of,
    replays_of,
    run_on_device,
)
from sim.engine.fast_forward import can_skip, replayed_steps
from sim.engine.machine import machine_of
from sim.engine.records import replay_bytes
from sim.files import InputError, checked, nearest, read_toml
from sim.hardware import HardwareProfile, find_toml, load_profile
from sim.result import Asked, Record, flat, record_of, record_of_oom
from sim.schedules import make_schedule
from sim.schedules.base import Schedule
from sim.tile_program import Step, chunk_tensors
from sim.units import Bytes, Count, show_binary
from sim.workload import AttentionWorkload, WorkloadTable


class Limits(BaseModel):
    """What one schedule on one point may take of this computer.

    Of a long kernel only about `replayed_steps` tile steps are replayed, which tell the rest
    (`sim.engine.fast_forward`), unless the replay is to be `exact`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tile_steps: Count = 2_000_000_000
    memory: Bytes = 8 * 2.0**30
    replayed_steps: Count = 9_000_000  # a second or so
    exact: bool = False

    @property
    def most_steps(self) -> int | None:
        """How much of a long kernel to replay; None for all of it."""
        return None if self.exact else self.replayed_steps


class ScenarioFile(BaseModel):
    """The tables of a scenario file, before its sweep is expanded."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str = ""
    workload: dict[str, Any]
    hardware: dict[str, Any]
    schedule: list[dict[str, Any]] = Field(min_length=1)
    sweep: dict[str, Any] = Field(default_factory=dict)
    limits: Limits = Limits()


@dataclass(frozen=True)
class Point:
    """One workload on one device, with the schedules to compare there."""

    values: dict[str, Any]  # the swept keys
    workload: AttentionWorkload
    hardware: HardwareProfile
    schedules: tuple[Schedule, ...]
    overrides: dict[str, Any] = field(default_factory=dict)  # of the profile, by dotted key

    def asked(self, schedule: Schedule) -> Asked:
        """What one of the schedules is asked here."""
        options = schedule.model_dump(mode="json", exclude={"label"}, exclude_unset=True)
        return Asked(schedule.title, options, self.values, self.hardware.name, self.overrides)


@dataclass(frozen=True)
class Scenario:
    """A question: the points at which to run which schedules."""

    name: str
    title: str
    points: tuple[Point, ...]
    limits: Limits
    where: str


@dataclass(frozen=True)
class ScenarioText:
    """What a scenario file says, before anything in it is understood."""

    data: dict[str, Any]
    name: str
    where: str
    folder: Path | None  # that relative paths in it start from


def read_scenario(name: str, settings: tuple[str, ...] = ()) -> ScenarioText:
    """The file of that name or path, with KEY=VALUE `settings` laid over it; raises InputError."""
    path = find_toml(name, "scenarios", "scenario")
    where = str(path) if path.parent.name != "scenarios" else f"scenarios/{path.name}"
    data = read_toml(path)
    for setting in settings:
        _set(data, *_split_setting(setting))
    return ScenarioText(data, path.stem, where, path.parent)


def load_scenario(name: str, settings: tuple[str, ...] = ()) -> Scenario:
    """The scenario of that name or path, with `settings` laid over it; raises InputError."""
    text = read_scenario(name, settings)
    return make_scenario(text.data, text.name, text.where, text.folder)


def make_scenario(
    data: Mapping[str, Any], name: str, where: str, folder: Path | None = None
) -> Scenario:
    """The scenario that `data` (the tables of a file) describes; raises InputError."""
    tables = checked(ScenarioFile, data, where)
    points = tuple(
        make_point(varied, swept, where, folder) for swept, varied in variations(data, where)
    )
    return Scenario(name, tables.title or name, points, tables.limits, where)


def variations(
    data: Mapping[str, Any], where: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The swept keys with their values, and the tables with these laid over, point by point."""
    fixed = {key: table for key, table in data.items() if key != "sweep"}
    for swept in design_of(data.get("sweep", {}), where):
        varied = deepcopy(fixed)
        for key, value in swept.items():
            _set(varied, key, value, f"{where}: sweep")
        yield swept, varied


def _split_setting(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {setting}: KEY=VALUE was expected, such as workload.seq_len=4096")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return key.strip(), value


def _set(data: dict[str, Any], key: str, value: Any, where: str = "--set") -> None:
    """data[a][b] = value for the key "a.b"; "schedule.NAME.x" goes to schedules of that name."""
    first, *rest = key.split(".")
    if first == "schedule" and len(rest) >= 2:
        chosen = [table for table in data.get("schedule", []) if table.get("name") == rest[0]]
        if not chosen:
            names = [str(table.get("name")) for table in data.get("schedule", [])]
            raise InputError(f"{where}: {key}: no such schedule here; {nearest(rest[0], names)}")
        for table in chosen:
            _set_in(table, rest[1:], value, key, where)
    else:
        _set_in(data, [first, *rest], value, key, where)


def _set_in(table: dict[str, Any], path: list[str], value: Any, key: str, where: str) -> None:
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError(f"{where}: {key}: {part} is not a table")
    table[path[-1]] = value


def make_point(
    data: Mapping[str, Any], swept: dict[str, Any], where: str, folder: Path | None
) -> Point:
    """The point that `data` (the tables of a file, nothing swept) describes; raises InputError."""
    tables = checked(ScenarioFile, data, where)
    workload = checked(WorkloadTable, tables.workload, where, "workload").workload()
    overrides = dict(tables.hardware)
    profile = overrides.pop("profile", None)
    if not isinstance(profile, str):
        raise InputError(f"{where}: hardware.profile: the name of a profile was expected")
    try:
        hardware = load_profile(profile, overrides, where, folder)
    except InputError as error:
        if str(error).startswith("profile "):
            raise InputError(f"{where}: hardware.profile: {error}") from None
        raise
    schedules = tuple(make_schedule(table, where, folder) for table in tables.schedule)
    check_titles([schedule.title for schedule in schedules], where)
    if workload.dtype != "fp32" and hardware.tensor_flops_per_s(workload.dtype) is None:
        known = [d for d in ("fp16", "bf16", "fp8") if hardware.tensor_flops_per_s(d)]
        raise InputError(
            f'{where}: workload.dtype = "{workload.dtype}": {hardware.name} has no tensor rate for '
            f"it; accepted there: {', '.join(['fp32', *known])}"
        )
    return Point(swept, workload, hardware, schedules, flat(overrides))


def check_titles(titles: list[str], where: str) -> None:
    """Raises InputError where two schedules could not be told apart."""
    for title in titles:
        if titles.count(title) > 1:
            raise InputError(f"{where}: schedule: {title!r} stands there twice; give each a label")


def lower_all(scenario: Scenario) -> list[tuple[Point, Schedule, list[Step]]]:
    """Every schedule of every point with its steps; raises InputError for what cannot be."""
    lowered = []
    for point in scenario.points:
        for schedule in point.schedules:
            with naming(scenario.where):
                lowered.append((point, schedule, lower(point, schedule)))
    return lowered


@contextmanager
def naming(where: str) -> Iterator[None]:
    """InputErrors from within name the file."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{where}: {error}") from None


def lower(point: Point, schedule: Schedule) -> list[Step]:
    """The schedule's steps on a point; raises InputError for what cannot be."""
    schedule.check(point.workload)
    return schedule.steps(point.workload, point.hardware)


class LimitsError(InputError):
    """A replay would take more of this computer than the limits allow."""


def check_limits(limits: Limits, point: Point, schedule: Schedule, steps: list[Step]) -> int:
    """Tile steps to replay; raises LimitsError where they or their arrays exceed the limits."""
    who = f"schedule {schedule.title}"
    advice = "shorten workload.seq_len, lower batch or heads, or raise"
    l2_capacity_bytes = machine_of(point.hardware).l2_capacity_bytes
    most_steps = limits.most_steps
    kernels = [
        kernel
        for kernel in kernels_of(steps)
        if most_steps is None or not can_skip(kernel, most_steps)
    ]
    memory = l2_bytes(chunk_tensors(kernels), l2_capacity_bytes) if kernels else 0
    memory += max((replay_bytes(kernel, point.hardware) for kernel in kernels), default=0)
    if memory > limits.memory:
        raise LimitsError(
            f"{who}: the replay would need about {show_binary(memory)} of memory, limits.memory is "
            f"{show_binary(limits.memory)}: {advice} limits.memory"
        )
    tile_steps = sum(replayed_steps(kernel, most_steps) for kernel in replays_of(steps))
    if tile_steps > limits.tile_steps:
        raise LimitsError(
            f"{who}: the replay would take {tile_steps:.3g} tile steps, limits.tile_steps is "
            f"{limits.tile_steps:.3g}: {advice} limits.tile_steps"
        )
    return tile_steps


Progress = Callable[[str, int, int], None]  # what runs, tile steps done, of how many


@dataclass(frozen=True)
class Outcome:
    """What one schedule on one point came to: its record, and the run itself if it fitted."""

    point: Point
    record: Record
    run: DeviceRun | None


@dataclass(frozen=True)
class Job:
    """One schedule on one point, lowered: to be replayed, unless it does not fit."""

    point: Point
    schedule: Schedule
    steps: list[Step]
    tile_steps: int
    oom: OutOfMemoryError | None
    most_steps: int | None

    @classmethod
    def of(cls, point: Point, schedule: Schedule, steps: list[Step], limits: Limits) -> "Job":
        """Raises LimitsError."""
        try:
            check_memory(steps, point.hardware)
        except OutOfMemoryError as error:
            return cls(point, schedule, steps, 0, error, limits.most_steps)
        tile_steps = check_limits(limits, point, schedule, steps)
        return cls(point, schedule, steps, tile_steps, None, limits.most_steps)

    def run(self, engine: EngineName, progress: Callable[[int], None]) -> Outcome:
        """Replay it; raises InputError where a transfer needs a link that there is not."""
        point = self.point
        facts = (point.asked(self.schedule), point.workload, point.hardware)
        if self.oom is not None:
            return Outcome(point, record_of_oom(*facts, self.oom, engine), None)
        try:
            run = run_on_device(
                self.steps,
                point.hardware,
                point.workload.dtype,
                engine,
                progress,
                most_steps=self.most_steps,
            )
        except InputError as error:
            raise InputError(f"schedule {self.schedule.title}: {error}") from None
        return Outcome(point, record_of(*facts, run, engine), run)


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
