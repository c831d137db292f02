"""The Python entry point: the tables of a scenario file as arguments."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.device.run import EngineName
from sim.runs.job import run_scenario
from sim.runs.record import Record
from sim.runs.scenario import ScenarioText, read_scenario

if TYPE_CHECKING:
    from pandas import DataFrame


def simulate(
    scenario: str | Path | None = None,
    *,
    engine: EngineName = "replay",
    allow_code: bool = False,
    **tables: Any,
) -> list[Record]:
    """Run a scenario: a shipped name, a path, or its tables under the names that files use.

    `hardware` may be the name of a profile, a schedule its own name. With `allow_code` that may be
    a class in a file, such as "two_pass.py:TwoPass". Returns one record for each schedule on each
    point. Raises sim.InputError, with one line that says what is wrong.

    >>> from sim import simulate
    >>> naive, flash = simulate(
    ...     workload={"heads": 8, "head_dim": 64, "seq_len": 1024},
    ...     hardware="a100-sxm-80gb",
    ...     schedule=["naive", "flash2"],
    ... )
    >>> naive.hbm_bytes > 4 * flash.hbm_bytes
    True
    """
    asked = _text(scenario, tables, "simulate", allow_code).scenario()
    return [outcome.record for outcome in run_scenario(asked, engine)]


def sweep(
    scenario: str | Path | None = None,
    *,
    engine: EngineName = "replay",
    workers: int | None = None,
    dask: str | None = None,
    store: str | Path | None = None,
    allow_code: bool = False,
    **tables: Any,
) -> "DataFrame":
    """Run the points of a scenario side by side; takes what `simulate` takes.

    On `workers` processes (as many as there are cores), or on the Dask cluster at the address
    `dask`. What is in the file `store` is not run again. Returns a pandas DataFrame with a row for
    each schedule on each point; one that cannot be has its reason there. Raises sim.InputError
    where none can be. A script that calls it needs `if __name__ == "__main__":`, as every script
    with worker processes.
    """
    from sim.report.frame import frame_of
    from sim.runs.store import Store
    from sim.runs.sweep import sweep_points
    from sim.runs.workers import cluster, processes

    text = _text(scenario, tables, "sweep", allow_code)
    kept = Store(Path(store) if store is not None else None)
    try:
        with cluster(dask) if dask else processes(workers) as found:
            swept = sweep_points(text, kept, found, engine)
    finally:
        kept.close()
    return frame_of(swept.records)


def _text(
    scenario: str | Path | None, tables: dict[str, Any], who: str, allow_code: bool
) -> ScenarioText:
    """What a scenario file says, or the tables that were given in its stead."""
    if scenario is not None:
        if tables:
            raise TypeError("give a scenario or its tables, not both")
        return read_scenario(str(scenario), allow_code=allow_code)
    if isinstance(tables.get("hardware"), str):
        tables["hardware"] = {"profile": tables["hardware"]}
    schedules = tables.get("schedule", [])
    if isinstance(schedules, str | Mapping):
        schedules = [schedules]
    tables["schedule"] = [{"name": s} if isinstance(s, str) else dict(s) for s in schedules]
    return ScenarioText(tables, who, f"{who}()", None, allow_code)
