"""Scenario files: a workload, a device, schedules, and what to vary."""

import tomllib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sim.inputs.axes import RANGE_KEYS, design_of
from sim.inputs.files import (
    DEEPEST,
    InputError,
    check_texts,
    checked,
    find_toml,
    nearest,
    read_toml,
    shown,
)
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.inputs.lengths import name_of, with_files_read
from sim.inputs.models import with_models_found
from sim.inputs.units import Bytes, Count
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.runs.record import Asked, flat
from sim.schedules import SCHEDULES, make_schedule, title_of
from sim.schedules.base import Schedule


class Limits(BaseModel):
    """What one schedule on one point may take of this computer.

    Of a long kernel only about `replayed_steps` tile steps are replayed, which tell the rest
    (`sim.engine.fast_forward`), unless the replay is to be `exact`. Chunks of L2 beyond a tile's
    first count as steps too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tile_steps: Count = 2_000_000_000
    memory: Bytes = 8 * 2.0**30
    replayed_steps: Count = 3_000_000  # a third of a second or so
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
    schedule: list[dict[str, Any]] = Field(min_length=1, max_length=1000)
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
    allow_code: bool = False  # whether code of schedules in files may run

    @property
    def title(self) -> str:
        """What answers to it are called."""
        return str(self.data.get("title") or self.name)

    def scenario(self) -> Scenario:
        """What it describes; raises InputError."""
        return make_scenario(self.data, self.name, self.where, self.folder, self.allow_code)


def read_scenario(
    name: str, settings: tuple[str, ...] = (), allow_code: bool = False
) -> ScenarioText:
    """The file of that name or path, with KEY=VALUE `settings` laid over it; raises InputError."""
    path = find_toml(name, "scenarios", "scenario")
    where = str(path) if path.parent.name != "scenarios" else f"scenarios/{path.name}"
    data = read_toml(path)
    for setting in settings:
        lay_over(data, *_split_setting(setting))
    return ScenarioText(data, path.stem, where, path.parent, allow_code)


def load_scenario(name: str, settings: tuple[str, ...] = ()) -> Scenario:
    """The scenario of that name or path, with `settings` laid over it; raises InputError."""
    return read_scenario(name, settings).scenario()


def make_scenario(
    data: Mapping[str, Any],
    name: str,
    where: str,
    folder: Path | None = None,
    allow_code: bool = False,
) -> Scenario:
    """The scenario that `data` (the tables of a file) describes; raises InputError."""
    tables = check_tables(data, where)
    points = tuple(
        make_point(varied, swept, where, folder, allow_code)
        for swept, varied in variations(data, where)
    )
    return Scenario(name, tables.title or name, points, tables.limits, where)


def check_tables(data: Mapping[str, Any], where: str) -> ScenarioFile:
    """The tables of a scenario, before its sweep is expanded; raises InputError."""
    _check_places(data, where)
    tables = checked(ScenarioFile, data, where)
    _check_titles([title_of(table) for table in tables.schedule], where)
    return tables


def variations(
    data: Mapping[str, Any], where: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The swept keys with their values, and the tables with these laid over, point by point."""
    fixed = {key: table for key, table in data.items() if key != "sweep"}
    for swept in design_of(_with_dots(data.get("sweep", {}), data, where), where):
        varied = deepcopy(fixed)
        for key, value in swept.items():
            lay_over(varied, key, value, f"{where}: sweep")
        yield {key: _named(value) for key, value in swept.items()}, varied


def _with_dots(sweep: Mapping[str, Any], data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The axes of a `[sweep]` table by their keys with dots, with or without quotation marks.

    Raises InputError for a key without its table's name.
    """
    axes: dict[str, Any] = {}
    for key, given in sweep.items():
        first = key.split(".")[0]
        if key != "sample" and first not in ScenarioFile.model_fields:
            place = _place_of(first, data)
            hint = f"did you mean {place + key.removeprefix(first)!r}?" if place else _A_KEY
            raise InputError(f"{where}: sweep.{key}: unknown key; {hint}")
        axes |= {key: given} if key == "sample" else _unfolded(key, given)
    return axes


_A_KEY = 'a key of this file was expected, such as "workload.seq_len"'


def _unfolded(key: str, given: Any) -> dict[str, Any]:
    """`workload.seq_len = [1, 2]` as the key with a dot that TOML makes tables of."""
    if not isinstance(given, Mapping) or not given or set(given) & RANGE_KEYS:
        return {key: given}
    return {
        k: v for part, below in given.items() for k, v in _unfolded(f"{key}.{part}", below).items()
    }


def _named(value: Any) -> Any:
    """A swept value as points are told apart by it: a list, such as one of lengths, is text."""
    return name_of(value) if isinstance(value, list) else value


def _check_places(data: Mapping[str, Any], where: str) -> None:
    """Raises InputError where a table's key stands outside it: "l2" is one of `[hardware]`.

    Where no table of a question is there, the file is a profile.
    """
    if {"extends", "arch", *HardwareProfile.model_fields} >= data.keys() - {"title"} != set():
        raise InputError(
            f"{where}: a scenario was expected, and this is a profile of a device: in a scenario "
            f'hardware.profile = "{where}" names it'
        )
    if isinstance(data.get("hardware"), str):
        name = shown(data["hardware"])
        raise InputError(
            f"{where}: hardware = {name}: a table was expected: hardware.profile = {name}"
        )
    if isinstance(data.get("schedule"), Mapping):
        raise InputError(
            f"{where}: schedule: a list of tables was expected: [[schedule]], in two brackets, "
            "begins each"
        )
    for key in data.keys() - ScenarioFile.model_fields.keys():
        if place := _place_of(key, data):
            raise InputError(f"{where}: {key}: unknown key; did you mean {place!r}?")


def _place_of(key: str, data: Mapping[str, Any]) -> str | None:
    """Where in a scenario a key without its table's name may have been meant to stand."""
    tables: dict[str, Collection[str]] = {
        "hardware": {"profile", *HardwareProfile.model_fields} - {"title"},
        "workload": WorkloadTable.model_fields,
        "limits": Limits.model_fields,
    }
    schedules = data.get("schedule")
    for table in schedules if isinstance(schedules, list) else []:
        name = table.get("name") if isinstance(table, Mapping) else None
        if name == key:
            return f"schedule.{name}"
        if isinstance(name, str) and name in SCHEDULES:
            tables[f"schedule.{name}"] = SCHEDULES[name].model_fields
    return next((f"{table}.{key}" for table, keys in tables.items() if key in keys), None)


def _split_setting(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {setting}: KEY=VALUE was expected, such as workload.seq_len=4096")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, or a number of thousands of digits
        value = text.strip()
    try:
        check_texts([key, value])
    except ValueError as error:
        raise InputError(f"--set: {error}") from None
    return key.strip(), value


def lay_over(data: dict[str, Any], key: str, value: Any, where: str = "--set") -> None:
    """data[a][b] = value for the key "a.b"; "schedule.NAME.x" goes to the schedules called so.

    That is the one with that label, else all of that name. Raises InputError, naming `where`, for
    a schedule that is not there or a key of no table.
    """
    first, *rest = key.split(".")
    if len(rest) >= DEEPEST:
        raise InputError(f"{where}: {shown(key)}: a key of at most {DEEPEST} names was expected")
    if first == "schedule" and len(rest) >= 2:
        called = [
            str(table[key])
            for key in ("label", "name")
            for table in _schedules(data)
            if key in table
        ]
        # The name of a schedule in a file has a dot.
        name = next((name for name in called if key.startswith(f"schedule.{name}.")), rest[0])
        labelled = [table for table in _schedules(data) if table.get("label") == name]
        chosen = labelled or [table for table in _schedules(data) if table.get("name") == name]
        if not chosen:
            known = nearest(name, dict.fromkeys(called))
            raise InputError(f"{where}: {key}: no schedule is called so here; {known}")
        for table in chosen:
            path = key.removeprefix(f"schedule.{name}.").split(".")
            _set_in(table, path, value, key, where)
    elif first == "schedule" and rest:
        own = ", ".join(f"schedule.{table.get('name')}.{rest[0]}" for table in _schedules(data))
        raise InputError(f"{where}: {key}: which schedule's? {own or 'there is none'}")
    else:
        _set_in(data, [first, *rest], value, key, where)


def _schedules(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of schedules; what else may stand there is refused with the rest of the file."""
    given = data.get("schedule")
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def _set_in(table: dict[str, Any], path: list[str], value: Any, key: str, where: str) -> None:
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            rows = f"a row each of [[{part}]]: say it there" if isinstance(table, list) else ""
            raise InputError(f"{where}: {key}: {part} is {rows or 'not a table'}")
    table[path[-1]] = value


def make_point(
    data: Mapping[str, Any],
    swept: dict[str, Any],
    where: str,
    folder: Path | None,
    allow_code: bool,
) -> Point:
    """The point that `data` (the tables of a file, nothing swept) describes; raises InputError."""
    tables = checked(ScenarioFile, data, where)
    table = with_files_read(with_models_found(tables.workload, folder), where, folder)
    workload = checked(WorkloadTable, table, where, "workload").workload()
    overrides = dict(tables.hardware)
    profile = overrides.pop("profile", None)
    if type(profile) is int:  # --set hardware.profile=4090
        profile = str(profile)
    if not isinstance(profile, str):
        raise InputError(f"{where}: hardware.profile: the name of a profile was expected")
    try:
        hardware = load_profile(profile, overrides, where, folder)
    except InputError as error:
        if str(error).startswith("profile "):
            raise InputError(f"{where}: hardware.profile: {error}") from None
        raise
    schedules = tuple(make_schedule(table, where, folder, allow_code) for table in tables.schedule)
    _check_titles([schedule.title for schedule in schedules], where)
    if workload.dtype != "fp32" and hardware.tensor_flops_per_s(workload.dtype) is None:
        known = [d for d in ("fp16", "bf16", "fp8") if hardware.tensor_flops_per_s(d)]
        raise InputError(
            f'{where}: workload.dtype = "{workload.dtype}": {hardware.name} has no tensor rate for '
            f"it; accepted there: {', '.join(['fp32', *known])}"
        )
    return Point(swept, workload, hardware, schedules, flat(overrides))


def _check_titles(titles: list[str], where: str) -> None:
    """Raises InputError where two schedules could not be told apart."""
    for title, times in Counter(titles).items():
        if times > 1:
            raise InputError(f"{where}: schedule: {title!r} stands there twice; give each a label")
