"""Answers the explorer's questions: what each schedule comes to, as changed and as it is."""

import json
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sim.explore.controls import Controls, changes, hardware_of, tables_of
from sim.files import InputError
from sim.hardware import HardwareProfile, load_profile
from sim.result import Record
from sim.scenario import LimitsError, ScenarioText, make_scenario, run_scenario

# Of a long kernel a tenth of a second's steps; what has more than seconds of them is not begun.
LIMITS = {"replayed_steps": 1_000_000, "tile_steps": 12_000_000}
MOMENT_S = 1.5  # then a replay is given up: some steps take longer than others
KEPT = 512  # answers
WHERE = "explorer"


class _TooLongError(Exception):
    """A replay takes longer than a page can wait."""


@dataclass(frozen=True)
class Row:
    """A schedule's record on the changed device and on the profile's, or why there is none."""

    title: str
    changed: Record | str
    shipped: Record | str


@dataclass(frozen=True)
class Answer:
    """What the page shows: `hardware` is the changed device."""

    hardware: HardwareProfile
    differs: bool
    rows: list[Row]

    @property
    def ran(self) -> list[Record]:
        """Records on the changed device."""
        return [row.changed for row in self.rows if isinstance(row.changed, Record)]


class Desk:
    """One scenario's questions. Of a page's questions only the newest is worked on."""

    def __init__(self, text: ScenarioText) -> None:
        """Nothing is replayed yet."""
        self.text = text
        self._workers = ThreadPoolExecutor()  # the compiled engine runs beside Python
        self._one_at_a_time = threading.Lock()
        self._newest: dict[str, object] = {}
        self._replayed = lru_cache(KEPT)(self._replay)

    def profile(self, name: str) -> HardwareProfile:
        """The profile of that name, as it is; raises InputError."""
        return self._load(hardware_of(self.text.data, name))

    def _load(self, tables: Mapping[str, Any]) -> HardwareProfile:
        overrides = {key: value for key, value in tables.items() if key != "profile"}
        return load_profile(tables["profile"], overrides, WHERE, self.text.folder)

    def ask(self, page: str, controls: Controls) -> Answer | None:
        """The answer, or None where `page` has asked another question before this one's turn."""
        mine = self._newest[page] = object()
        with self._one_at_a_time:
            return self.answer(controls) if self._newest[page] is mine else None

    def answer(self, controls: Controls) -> Answer:
        """Every schedule on the changed device and, for comparison, on the profile as it is.

        Raises InputError where the device or the workload cannot be.
        """
        changed = changes(self.profile(controls.profile), controls.figures)
        sides = [tables_of(self.text.data, controls, side) for side in (changed, {})]
        questions = [
            _of_schedule(side, n) for n in range(len(controls.schedules)) for side in sides
        ]
        different = list(dict.fromkeys(questions))
        found = dict(zip(different, self._workers.map(self._answered, different), strict=True))
        records = [found[question] for question in questions]
        rows = [
            Row(title, *both)
            for title, *both in zip(controls.schedules, records[::2], records[1::2], strict=True)
        ]
        return Answer(self._load(sides[0]["hardware"]), bool(changed), rows)

    def _answered(self, question: str) -> Record | str:
        """One schedule's record, or why there is none; the question is a scenario as JSON."""
        try:
            return self._replayed(question)
        except _TooLongError:
            return "takes longer to replay than a moment: attnsim run has time for it"

    def _replay(self, question: str) -> Record | str:
        """The same, unless it takes too long: that is not kept."""
        ends_s = time.monotonic() + MOMENT_S

        def in_time(*_: Any) -> None:
            if time.monotonic() > ends_s:
                raise _TooLongError

        try:
            scenario = make_scenario(json.loads(question), "explored", WHERE, self.text.folder)
            (outcome,) = run_scenario(scenario, progress=in_time)
        except LimitsError:
            raise _TooLongError from None
        except InputError as error:
            return str(error).removeprefix(f"{WHERE}: ")
        record = outcome.record
        return record if record.time_s else f"{record.status}: {record.reason}"


def _of_schedule(tables: Mapping[str, Any], number: int) -> str:
    """The scenario of one of its schedules, as JSON."""
    one = {**tables, "schedule": tables["schedule"][number : number + 1], "limits": LIMITS}
    return json.dumps(one, sort_keys=True)
