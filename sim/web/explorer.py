"""One scenario explored: what its page starts from, and what the page's controls ask."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sim.inputs.files import InputError, shipped_names
from sim.inputs.models import MODELS
from sim.runs.record import Record
from sim.runs.scenario import ScenarioText, make_scenario
from sim.schedules import SCHEDULES
from sim.web.controls import FIGURES, Controls, schedule_tables, write_files
from sim.web.desk import Desk

LENGTHS = [2**n for n in range(7, 21)]  # tokens
BATCHES = [2**n for n in range(9)]
PHASES = ["prefill", "decode", "training"]
HEADS = [2**n for n in range(8)]
TILES = {f"{q} × {kv}": {"q": q, "kv": kv} for q in (64, 128, 192) for kv in (32, 64, 128)}
STAGES = {str(stages): stages for stages in (1, 2, 3, 4)}
OWN_SHAPE = "as in the scenario"
OWN_OPTION = "as it is"
NO_LOOK = "into no schedule"
ITSELF = "the profile as it is"


class Explorer:
    """A scenario on the page; `out` is where it writes files."""

    def __init__(self, text: ScenarioText, out: Path) -> None:
        """Raises InputError for a scenario of several points, or one that cannot be."""
        scenario = make_scenario(text.data, text.name, text.where, text.folder)
        if len(scenario.points) != 1:
            raise InputError(
                f"{text.where}: sweep: the explorer starts from one point, and here are "
                f"{len(scenario.points)}: --set sweep={{}} takes the sweep away, another --set "
                "chooses the point"
            )
        (self.point,) = scenario.points
        self.text, self.title, self.out = text, scenario.title, out
        self.desk = Desk(text)
        self.own_profile = str(text.data["hardware"]["profile"])
        w = self.point.workload
        self.lengths = sorted({*LENGTHS, w.seq_kv})
        self.batches = sorted({*BATCHES, w.batch})
        self.titles = [schedule.title for schedule in self.point.schedules]
        self.profiles = list(dict.fromkeys([self.own_profile, *shipped_names("hw_profiles")]))

    def choices(self) -> dict[str, list[Any]]:
        """What each control but sliders of the device and schedules offers; first its start."""
        w = self.point.workload
        return {
            "profile": self.profiles,
            "beside": [ITSELF, *self.profiles],
            "model": [OWN_SHAPE, *MODELS],
            "seq_len": _from(w.seq_kv, self.lengths),
            "batch": _from(w.batch, self.batches),
            "phase": _from(w.phase, PHASES),
            "causal": _from(w.causal, [False, True]),
            "dtype": _from(w.dtype, ["fp16", "bf16", "fp8", "fp32"]),
            "heads": [OWN_SHAPE, *HEADS],
            "kv_heads": [OWN_SHAPE, *HEADS],
            "tile": [OWN_OPTION, *TILES],
            "stages": [OWN_OPTION, *STAGES],
            "look": [NO_LOOK, *schedule_tables(self.text.data)],
        }

    def start(self) -> Controls:
        """Everything as the scenario has it."""
        return Controls(self.own_profile, {}, {}, tuple(self.titles))

    def controls(
        self,
        profile: str,
        positions: list[float],
        workload: dict[str, Any],
        schedules: list[str] | None,
        tile: str = OWN_OPTION,
        stages: str = OWN_OPTION,
        beside: str = ITSELF,
    ) -> Controls:
        """What the page's controls say; `positions` are those of FIGURES."""
        hw = self.desk.profile(profile)
        figures = {
            figure.key: position
            for figure, position in zip(FIGURES, positions, strict=True)
            if position != figure.start(hw)
        }
        options = {"tile": TILES.get(tile), "stages": STAGES.get(stages)}
        chosen = {key: value for key, value in options.items() if value is not None}
        return Controls(
            profile,
            figures,
            self._differs(workload),
            tuple(schedules or ()),
            chosen,
            None if beside in (ITSELF, profile) else beside,
        )

    def workload(
        self,
        model: str,
        seq_len: int,
        batch: int,
        phase: str,
        causal: list[str],
        dtype: str,
        **heads: int | str,
    ) -> dict[str, Any]:
        """What the workload's controls say, as keys of a scenario; of `heads` those chosen."""
        chosen = {key: number for key, number in heads.items() if number != OWN_SHAPE}
        return {
            **chosen,
            "model": model,
            "seq_len": self.lengths[seq_len],
            "batch": self.batches[batch],
            "phase": phase,
            "causal": bool(causal),
            "dtype": dtype,
        }

    def _differs(self, controls: dict[str, Any]) -> dict[str, Any]:
        """Of those the keys that are not as in the scenario."""
        w = self.point.workload
        own = {**asdict(w), "model": OWN_SHAPE, "seq_len": w.seq_kv}
        told = self.workload(**controls)
        differs = {key: value for key, value in told.items() if value != own[key]}
        if {"model", "phase"} & differs.keys():  # so that lengths and mask are what is shown
            differs |= {"seq_len": told["seq_len"], "causal": told["causal"]}
        differs |= {key: told[key] for key in ("heads", "kv_heads") if key in told}
        if w.lengths is not None and {"seq_len", "batch"} & differs.keys():  # instead of its lists
            differs |= {"seq_len": told["seq_len"], "batch": told["batch"]}
        return differs

    def schedules(self, phase: str, chosen: list[str] | None) -> list[str]:
        """The titles that may be chosen: of schedules that take the phase, and what is chosen."""
        return [
            title
            for title, table in schedule_tables(self.text.data).items()
            if phase in SCHEDULES[table["name"]].phases or title in (chosen or ())
        ]

    def write(self, controls: Controls) -> str:
        """Write the files, and say where they are."""
        try:
            found = self.desk.answer(controls)
            ran = tuple(row.title for row in found.rows if isinstance(row.changed, Record))
            if not ran:
                raise InputError("nothing runs: choose another schedule first")
            hw = self.desk.profile(controls.profile)
            controls = replace(controls, schedules=ran)
            made = write_files(self.text.data, self.text.folder, hw, controls, self.out)
        except InputError as error:
            return str(error)
        return f"attnsim run {made / 'scenario.toml'}"


def _from(start: Any, values: list[Any]) -> list[Any]:
    """The values, the first that it starts with."""
    return [start, *(value for value in values if value != start)]
