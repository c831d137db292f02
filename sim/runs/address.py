"""Under which address a store keeps a record: a hash of all that its figures depend on."""

import json
import os
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from sim.code.sources import stamp_of
from sim.device.run import EngineName
from sim.inputs.hardware import HardwareProfile
from sim.runs.record import versions
from sim.runs.scenario import Limits, Point
from sim.schedules.base import Schedule
from sim.schedules.own import stamp_of_own


def address(point: Point, schedule: Schedule, engine: EngineName, limits: Limits) -> str:
    """A hash of what a record's figures depend on: canonical inputs, engine, code and versions."""
    inputs = {
        "workload": asdict(point.workload),
        "hardware": _figures(point.hardware),
        "schedule": schedule.model_dump(exclude={"label"}),
        "files": schedule.files,
        "engine": engine,
        "most_steps": limits.most_steps,
        "code": code_of(schedule),
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
    if isinstance(option, Path) and os.path.isfile(option):
        return sha256(option.read_bytes()).hexdigest()
    return str(option)


def code_of(*schedules: Schedule) -> str:
    """Hashes of the code that these schedules' figures come from: attnsim's, and one's own."""
    own = {stamp_of_own(type(schedule)) for schedule in schedules} - {""}
    return " ".join((fingerprint(), *sorted(own)))


@cache
def fingerprint() -> str:
    """A hash of the code that figures come from, and of the versions of what it runs on."""
    on = json.dumps(dict(versions()), sort_keys=True)
    return sha256(f"{stamp_of('sim.runs.job')} {on}".encode()).hexdigest()
