"""Records of a store replayed, for the timelines that a store leaves out."""

from dataclasses import replace
from typing import Any

from sim.inputs.hardware import HardwareProfile
from sim.runs.job import Progress, run_scenario
from sim.runs.record import Record
from sim.runs.scenario import ScenarioText


def replayed_again(
    record: Record, tables: dict[str, Any], text: ScenarioText, progress: Progress
) -> tuple[Record, HardwareProfile]:
    """The record with its timeline, and its device; `tables` are those of its schedule alone."""
    scenario = replace(text, data=tables).scenario()
    if not record.timeline:
        (outcome,) = run_scenario(scenario, record.engine, progress)
        record = replace(outcome.record, point=record.point)
    return record, scenario.points[0].hardware
