"""What the explorer's page lets one change, and the scenario that comes of it.

A figure of the device stands at a power of two of the profile's own (0: as it is, 1: twice that), a
share at itself. What an SM does in a clock, on its tensor cores too, comes with more or faster SMs;
nothing else follows.
"""

import itertools
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from sim.inputs.files import InputError, file_of, find_toml, save_texts
from sim.inputs.hardware import HardwareProfile, variation_toml
from sim.inputs.lengths import LENGTH_KEYS
from sim.inputs.models import MODELS
from sim.inputs.units import show, show_binary
from sim.report.table import unit_of
from sim.schedules import SCHEDULES, title_of

SPAN = 3.0  # powers of two, either way
STEP = 0.125
SHAPE = ("model", "heads", "kv_heads", "head_dim", "window", "latent_dim", "rope_dim")  # a model's


@dataclass(frozen=True)
class Figure:
    """A figure of a profile that has a slider: its dotted key, its name, and what it is."""

    key: str
    label: str
    share: bool = False  # of one, not a power of two
    whole: bool = False

    def start(self, hw: HardwareProfile) -> float:
        """Where the slider stands for the profile as it is."""
        return hw.figure(self.key) if self.share else 0.0


FIGURES = (
    Figure("hbm.bandwidth", "HBM bandwidth"),
    Figure("hbm.capacity", "HBM capacity"),
    Figure("l2.bandwidth", "L2 bandwidth"),
    Figure("l2.capacity", "L2 capacity"),
    Figure("sm.count", "SMs", whole=True),
    Figure("sm.clock", "SM clock"),
    Figure("sram.capacity", "SRAM of an SM"),
    Figure("tensor", "tensor cores of an SM"),
    Figure("sm.fp32_lanes", "fp32 lanes of an SM", whole=True),
    Figure("sm.exp_per_clock", "exponentials of an SM a clock", whole=True),
    Figure("calibration.sm.mma_issue_cycles", "issue cycles of a matmul"),
    Figure("calibration.hbm.read", "HBM bandwidth sustained, reads", share=True),
    Figure("calibration.hbm.write", "HBM bandwidth sustained, writes", share=True),
    Figure("calibration.hbm.latency", "HBM latency"),
    Figure("calibration.l2.latency", "L2 latency"),
    Figure("calibration.sm.op_latency", "latency of an instruction"),
    Figure("calibration.sm.cta_start", "start of a CTA"),
    Figure("calibration.sm.cta_setup", "setup of a CTA of matmuls"),
)


@dataclass(frozen=True)
class Controls:
    """Where everything on the page stands; `figures` has positions by key, if not at the start.

    `beside` is the profile to compare with: the same as it is, where there is none.
    """

    profile: str
    figures: Mapping[str, float] = field(default_factory=dict)
    workload: Mapping[str, Any] = field(default_factory=dict)  # keys that replace the scenario's
    schedules: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # of every schedule that has such
    beside: str | None = None


def changes(hw: HardwareProfile, figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of the profile that come out otherwise, by dotted key, in SI."""
    changed: dict[str, float] = {}
    for figure in FIGURES:
        position = figures.get(figure.key, figure.start(hw))
        if position == figure.start(hw):
            continue
        if figure.share:
            changed[figure.key] = position
        elif figure.key != "tensor":
            value = hw.figure(figure.key) * 2.0**position
            changed[figure.key] = max(1, round(value)) if figure.whole else value
    rate = 2.0 ** figures.get("tensor", 0.0)
    for dtype in ("fp16", "bf16", "fp8"):
        if rate != 1.0 and (own := getattr(hw.tensor, dtype)) is not None:
            changed[f"tensor.{dtype}"] = own * rate
    return changed


def written(key: str, value: float) -> str | float | int:
    """A figure as a profile file has it, with six digits and its unit."""
    unit = unit_of(key)
    if unit is None:
        return value
    return show_binary(value, 6) if unit == "B" else show(value, unit, 6)


def nested(changed: Mapping[str, float]) -> dict[str, Any]:
    """The changed figures as a profile's tables."""
    tables: dict[str, Any] = {}
    for key, value in changed.items():
        *path, last = key.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[last] = written(key, value)
    return tables


def schedule_tables(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What one may choose, by title: the scenario's schedules, then others that need no options."""
    own = {title_of(table): dict(table) for table in data["schedule"]}
    as_they_are = {
        name: {"name": name}
        for name, schedule in SCHEDULES.items()
        if name not in own and not any(f.is_required() for f in schedule.model_fields.values())
    }
    return own | as_they_are


def workload_of(data: Mapping[str, Any], controls: Controls) -> dict[str, Any]:
    """The scenario's workload with what the page says laid over it."""
    table = dict(data["workload"])
    chosen = dict(controls.workload)
    if chosen.get("model") in MODELS:
        table = {key: value for key, value in table.items() if key not in SHAPE}
    else:
        chosen.pop("model", None)
    if "seq_len" in chosen:
        table = {key: value for key, value in table.items() if key not in ("seq_q", "seq_kv")}
    if "heads" in chosen:
        table.pop("kv_heads", None)
    return table | chosen


def hardware_of(data: Mapping[str, Any], profile: str) -> dict[str, Any]:
    """The scenario's device, with its overrides, or another profile as it is."""
    own: dict[str, Any] = deepcopy(data["hardware"])
    return own if own["profile"] == profile else {"profile": profile}


def tables_of(
    data: Mapping[str, Any], controls: Controls, changed: Mapping[str, float]
) -> dict[str, Any]:
    """The tables of the scenario that the page asks, on the device with `changed` figures."""
    known = schedule_tables(data)
    return {
        "title": f"Explored from: {data.get('title') or 'a scenario'}",
        "workload": workload_of(data, controls),
        "hardware": _laid_over(hardware_of(data, controls.profile), nested(changed)),
        "schedule": [_optioned(known[title], controls.options) for title in controls.schedules],
    }


def _optioned(table: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule's table with those of the options that it has."""
    known = SCHEDULES[table["name"]].model_fields
    return deepcopy(table) | {key: value for key, value in options.items() if key in known}


def _laid_over(tables: dict[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """The tables with those in `changed` laid over them."""
    return tables | {
        key: _laid_over(tables.get(key, {}), value) if isinstance(value, Mapping) else value
        for key, value in changed.items()
    }


def write_files(
    data: Mapping[str, Any], folder: Path | None, hw: HardwareProfile, controls: Controls, out: Path
) -> Path:
    """Write what the page asks as profile.toml and scenario.toml into a new folder in `out`.

    `hw` is the profile before its changes, `folder` where the scenario's own paths start from.
    Returns the new folder; raises InputError where it cannot be made.
    """
    scenario = tables_of(data, controls, changes(hw, controls.figures))
    hardware = scenario["hardware"]
    scenario["hardware"] = {"profile": "./profile.toml"}
    if "limits" in data:
        scenario["limits"] = data["limits"]
    scenario["workload"] = _with_paths(scenario["workload"], folder, LENGTH_KEYS)
    scenario["schedule"] = [
        _with_paths(table, folder, ("mask_file", "machine_code")) for table in scenario["schedule"]
    ]
    parent = find_toml(hardware.pop("profile"), "hw_profiles", "profile", folder)
    try:
        made = _new_folder(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written to: {error.strerror}") from None
    try:
        profile = variation_toml(f"{hw.title}, explored", parent, made, hardware, _source)
        save_texts({"profile.toml": profile, "scenario.toml": tomli_w.dumps(scenario)}, made)
    except InputError:
        made.rmdir()  # nothing is in it
        raise
    return made


def _new_folder(out: Path) -> Path:
    """explored-1, or the first number that is free."""
    for number in itertools.count(1):
        made = out / f"explored-{number}"
        try:
            made.mkdir(parents=True)
        except FileExistsError:
            continue
        break
    return made


def _source(_: str, figures: list[str]) -> str:
    return f"{', '.join(figures)}: set in the explorer, or in the scenario that it started from"


def _with_paths(
    table: Mapping[str, Any], folder: Path | None, keys: tuple[str, ...]
) -> dict[str, Any]:
    """A table, the files that these keys name by where they are."""
    names = {key for key in keys if folder is not None and isinstance(table.get(key), str)}
    here = {key: str(file_of(table[key], folder).resolve()) for key in names}
    return {**table, **here}
