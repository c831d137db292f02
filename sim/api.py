"""The Python entry point: the tables of a scenario file as arguments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.engine.device import EngineName
from sim.result import Record
from sim.scenario import Scenario, load_scenario, make_scenario, run_scenario


def simulate(
    scenario: str | Path | None = None, *, engine: EngineName = "replay", **tables: Any
) -> list[Record]:
    """Run a scenario: a shipped name, a path, or its tables under the names that files use.

    `hardware` may be the name of a profile, a schedule its own name. Returns one record for each
    schedule on each point. Raises sim.InputError, with one line that says what is wrong.

    >>> from sim import simulate
    >>> naive, flash = simulate(
    ...     workload={"heads": 8, "head_dim": 64, "seq_len": 1024},
    ...     hardware="a100-sxm-80gb",
    ...     schedule=["naive", "flash2"],
    ... )
    >>> naive.hbm_bytes > 4 * flash.hbm_bytes
    True
    """
    if scenario is not None:
        if tables:
            raise TypeError("give a scenario or its tables, not both")
        return _records(load_scenario(str(scenario)), engine)
    if isinstance(tables.get("hardware"), str):
        tables["hardware"] = {"profile": tables["hardware"]}
    schedules = tables.get("schedule", [])
    if isinstance(schedules, str | Mapping):
        schedules = [schedules]
    tables["schedule"] = [{"name": s} if isinstance(s, str) else dict(s) for s in schedules]
    return _records(make_scenario(tables, "simulate", "simulate()"), engine)


def _records(scenario: Scenario, engine: EngineName) -> list[Record]:
    return [outcome.record for outcome in run_scenario(scenario, engine)]
