"""attnsim: what attention schedules move on a GPU memory hierarchy, how long it takes, and why."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.api import Records as Records
    from sim.api import simulate as simulate
    from sim.api import sweep as sweep
    from sim.inputs.files import InputError as InputError
    from sim.inputs.hardware import load_profile as load_profile
    from sim.report import plots as plots
    from sim.runs.record import Record as Record

__all__ = ["InputError", "Record", "Records", "load_profile", "plots", "simulate", "sweep"]
_HOME = {
    "simulate": "sim.api",
    "sweep": "sim.api",
    "Records": "sim.api",
    "plots": "sim.report",
    "InputError": "sim.inputs.files",
    "load_profile": "sim.inputs.hardware",
    "Record": "sim.runs.record",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that the command line starts at once."""
    if name not in _HOME:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    from importlib import import_module

    home = import_module(_HOME[name])
    return getattr(home, name, None) or import_module(f"{_HOME[name]}.{name}")
