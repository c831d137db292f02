"""The Python entry point: the tables of a scenario file as arguments."""

from collections.abc import Mapping
from copy import deepcopy
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.device.run import EngineName
from sim.report.columns import Column, columns_of
from sim.report.notes import point_text
from sim.runs.job import run_what_can_be
from sim.runs.record import Record
from sim.runs.scenario import ScenarioText, lay_over, read_scenario

if TYPE_CHECKING:
    from pandas import DataFrame


class Records(list[Record]):
    """What `simulate` returns: a list of records that a notebook shows as a table."""

    def frame(self) -> "DataFrame":
        """A pandas DataFrame with a row a record; units are in the columns' names."""
        from sim.report.frame import frame_of

        return frame_of(self)

    def _repr_html_(self) -> str:
        columns = columns_of(self)
        heads = "".join(f"<th>{column.heading}</th>" for column in columns)
        rows = "".join(f"<tr>{_cells(record, columns)}</tr>" for record in self)
        return f"<table><tr>{heads}</tr>{rows}</table>"


def _cells(record: Record, columns: list[Column]) -> str:
    """A record's row in HTML; of one that did not run, why."""
    if record.status == "ok":
        return "".join(f"<td>{escape(column.of_record(record))}</td>" for column in columns)
    leading = [record.schedule, point_text(record)] if record.point else [record.schedule]
    why = f"{record.status}: {record.reason}"
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in leading)
    return f'{cells}<td colspan="{len(columns) - len(leading)}">{escape(why)}</td>'


def simulate(
    scenario: str | Path | None = None,
    *,
    engine: EngineName = "replay",
    allow_code: bool = False,
    **tables: Any,
) -> Records:
    """Run a scenario: a shipped name, a path, or its tables under the names that files use.

    `hardware` may be the name of a profile, a schedule its own name; `schedules` is a list of such,
    as `schedule` is. With `allow_code` a name may be a class in a file, "two_pass.py:TwoPass". Keys
    with dots are laid over a scenario or its tables, as `attnsim run --set` does; within a table
    they mean what they mean in a file. Returns one record for each schedule on each point, with its
    reason where it cannot be (a tile that does not fit, say). Raises sim.InputError, with one line
    that says what is wrong, where nothing can be.

    >>> from sim import simulate
    >>> naive, flash = simulate(
    ...     workload={"heads": 8, "head_dim": 64, "seq_len": 1024},
    ...     hardware={"profile": "a100-sxm-80gb", "sram.capacity": "328 KiB"},
    ...     schedules=["naive", {"name": "flash2", "stages": 3}],
    ... )
    >>> naive.hbm_bytes > 4 * flash.hbm_bytes
    True
    >>> changes = {"workload.seq_len": 512, "hardware.profile": "h100-sxm"}
    >>> [record.schedule for record in simulate("flash_vs_naive", **changes)]
    ['naive', 'flash2', 'pruned']
    """
    text = _text(scenario, tables, "simulate", allow_code)
    return Records(outcome.record for outcome in run_what_can_be(text, engine))


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
    scenario: str | Path | None, given: dict[str, Any], who: str, allow_code: bool
) -> ScenarioText:
    """What a scenario file says, or the tables that were given in its stead."""
    given = deepcopy(given)
    tables = {key: value for key, value in given.items() if "." not in key}
    if scenario is None:
        text = ScenarioText(_as_in_a_file(tables, who), who, f"{who}()", None, allow_code)
    elif tables:
        raise TypeError("give a scenario or its tables, not both; keys with dots go with both")
    else:
        text = read_scenario(str(scenario), allow_code=allow_code)
    for key, value in given.items():
        if "." in key:
            lay_over(text.data, key, value, text.where)
    return text


def _as_in_a_file(tables: dict[str, Any], who: str) -> dict[str, Any]:
    """Tables as a file has them: names where tables may be spelt out, keys with dots unfolded."""
    if "schedules" in tables:
        if "schedule" in tables:
            raise TypeError("give schedule or schedules, not both")
        tables["schedule"] = tables.pop("schedules")
    if isinstance(tables.get("hardware"), str):
        tables["hardware"] = {"profile": tables["hardware"]}
    schedules = tables.get("schedule", [])
    if isinstance(schedules, str | Mapping):
        schedules = [schedules]
    named = [{"name": one} if isinstance(one, str) else one for one in schedules]
    tables["schedule"] = [_unfolded(one, who) for one in named]
    for name in ("workload", "hardware", "limits"):
        if isinstance(tables.get(name), Mapping):
            tables[name] = _unfolded(tables[name], who)
    return tables


def _unfolded(table: Mapping[str, Any], who: str) -> dict[str, Any]:
    """{"l2.capacity": 1} as TOML reads l2.capacity = 1."""
    unfolded: dict[str, Any] = {}
    for key, value in table.items():
        lay_over(unfolded, key, value, f"{who}()")
    return unfolded
