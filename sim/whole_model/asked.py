"""What files of `[[fit]]`, `[[model]]` and `[serving]` share: models, hardware, schedules."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sim.inputs.files import InputError, checked
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.runs.record import versions
from sim.schedules import SCHEDULES, make_schedule
from sim.schedules.base import Schedule

Price = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _name_or_table(given: Any) -> Any:
    if not isinstance(given, str | Mapping):
        raise ValueError("the name of a schedule, or its table, was expected")
    return given


ScheduleTable = Annotated[str | dict[str, Any], BeforeValidator(_name_or_table)]


class PricedHardware(BaseModel):
    """What `[hardware]` says of money; the rest of the table is the profile's."""

    model_config = ConfigDict(frozen=True)
    price_per_hour: Price | None = None


class Hardware(NamedTuple):
    """A device, and what an hour of it costs."""

    profile: HardwareProfile
    price_per_hour: float | None

    def price_of_million(self, time_s: float, tokens: float) -> float | None:
        """What a million tokens cost where so many take so long."""
        if self.price_per_hour is None:
            return None
        return self.price_per_hour / 3600 * time_s / tokens * 1e6


def hardware_of(table: Mapping[str, Any], where: str) -> Hardware:
    """What a `[hardware]` table describes; raises InputError."""
    price = checked(PricedHardware, table, where, "hardware").price_per_hour
    overrides = {key: value for key, value in table.items() if key != "price_per_hour"}
    profile = overrides.pop("profile", None)
    if not isinstance(profile, str):
        raise InputError(f"{where}: hardware.profile: the name of a profile was expected")
    return Hardware(load_profile(profile, overrides, where), price)


def schedule_of(table: ScheduleTable, where: str) -> Schedule:
    """The attention of such models on one GPU that a name or a table means; raises InputError."""
    named = {"name": table} if isinstance(table, str) else table
    kind = SCHEDULES.get(str(named.get("name")), Schedule)
    if kind.on_several_gpus:
        raise InputError(
            f"{where}: schedule {named['name']}: a schedule of one GPU was expected, shared by "
            "gpus and parallel"
        )
    schedule = make_schedule(named, where)
    if schedule.of_other_models:
        raise InputError(f"{where}: schedule {schedule.name}: it is of models of another kind")
    return schedule


def answer_json(title: str, hardware: Hardware, results: Mapping[str, Any]) -> str:
    """An answer for a device as JSON, which ends with a newline."""
    head = {
        "title": title,
        "hardware": hardware.profile.name,
        "price_per_hour": hardware.price_per_hour,
    }
    return json.dumps({**head, **results, "versions": dict(versions())}, indent=1) + "\n"
