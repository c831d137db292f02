"""Campaign files: which points to measure, and on which of them a profile may be calibrated."""

import itertools
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sim.inputs.files import InputError, checked, find_toml, read_toml
from sim.inputs.workload import WorkloadTable
from sim.schedules import make_schedule
from validate.measurement import Runner, Shape, Split


class Group(BaseModel):
    """Points of one kernel: every case and every combination of what varies, by each schedule.

    `cases` are tables laid over `workload`, `vary` lists values of its keys. `schedules` are what
    runs (runner "attnsim") or what the simulator predicts another runner by (none: it cannot).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    family: str
    split: Split
    runner: Runner = "attnsim"
    schedules: list[dict[str, Any]] = Field(default_factory=list)
    workload: dict[str, Any]
    cases: list[dict[str, Any]] = Field(default=[{}], min_length=1)
    vary: dict[str, list[Any]] = Field(default_factory=dict)


class CampaignFile(BaseModel):
    """A campaign file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str = Field(min_length=1)
    group: list[Group] = Field(min_length=1)


class Campaign(BaseModel):
    """What to measure, in order."""

    model_config = ConfigDict(frozen=True)
    title: str
    points: list[Shape]


def load_campaign(name: str) -> Campaign:
    """The campaign of that name or path; raises InputError."""
    path = find_toml(name, "validate.campaigns", "campaign")
    where = str(path) if path.parent.name != "campaigns" else f"campaigns/{path.name}"
    tables = checked(CampaignFile, read_toml(path), where)
    points = [point for group in tables.group for point in _points(group, where)]
    seen: list[Shape] = []
    for point in points:
        if point in seen:
            raise InputError(
                f"{where}: group {point.family!r}: a point stands there twice: {point}"
            )
        seen.append(point)
    return Campaign(title=tables.title, points=points)


def _points(group: Group, where: str) -> list[Shape]:
    if group.runner == "attnsim" and not group.schedules:
        raise InputError(f"{where}: group {group.family!r}: schedules: at least one was expected")
    for schedule in group.schedules:
        make_schedule(schedule, f"{where}: group {group.family!r}")
    schedules: list[dict[str, Any] | None] = [*group.schedules] or [None]
    varied = [
        dict(zip(group.vary, v, strict=True)) for v in itertools.product(*group.vary.values())
    ]
    workloads = [
        checked(
            WorkloadTable,
            {**group.workload, **case, **values},
            f"{where}: group {group.family!r}",
            "workload",
        )
        for case in group.cases
        for values in varied
    ]
    return [
        Shape(
            runner=group.runner,
            family=group.family,
            split=group.split,
            workload=workload,
            schedule=schedule,
        )
        for workload in workloads
        for schedule in schedules
    ]
