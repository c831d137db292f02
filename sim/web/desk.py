"""Answers the explorer's questions: what each schedule comes to, as changed and as it is."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from sim.device.memory import OutOfMemoryError, check_memory
from sim.device.program import kernels_of, replays_of
from sim.engine.fast_forward.choice import Choice
from sim.engine.watched import Watched
from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.runs.inside import inside_of
from sim.runs.job import LimitsError, run_scenario
from sim.runs.record import Record
from sim.runs.scenario import Limits, ScenarioText, make_scenario
from sim.tile_program import Command
from sim.web.controls import Controls, changes, hardware_of, tables_of

AIM_S = 0.5  # for the replay of a schedule
MOMENT_S = 1.5  # then it is given up, or not even begun
REPLAYED = tuple(1 << n for n in range(20, 13, -1))  # tile steps of a long kernel, at choice
# What a tile step takes the compiled engine, as `replay_cost` counts them: 55 to 104 ns of a naive
# schedule, 90 of a flash loop on a 2-core machine, and half again for one that is busy.
STEP_S = 130e-9
STALE_S = 0.02  # at most, that a question waits which is not the newest
KEPT, LOOKS = 512, 8  # answers, and looks inside, which are large
WHERE = "explorer"
Found = TypeVar("Found")


class _TooLongError(Exception):
    """A replay takes longer than a page can wait."""


@dataclass(frozen=True)
class Row:
    """A schedule's record on the changed device and on the one beside, or why there is none."""

    title: str
    changed: Record | str
    beside: Record | str


@dataclass(frozen=True)
class Answer:
    """What the page shows of the changed device and of the one beside, and what it calls these."""

    hardware: HardwareProfile
    beside: HardwareProfile
    names: tuple[str, str]
    rows: list[Row]

    @property
    def differs(self) -> bool:
        """Whether they are two."""
        return self.names[0] != self.names[1]

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
        self._looked = lru_cache(LOOKS)(self._look)

    def profile(self, name: str) -> HardwareProfile:
        """The profile of that name, as it is; raises InputError."""
        return self._load(hardware_of(self.text.data, name))

    def _load(self, tables: Mapping[str, Any]) -> HardwareProfile:
        overrides = {key: value for key, value in tables.items() if key != "profile"}
        return load_profile(tables["profile"], overrides, WHERE, self.text.folder)

    def ask(self, page: str, controls: Controls) -> Answer | None:
        """The answer, or None where `page` has asked another question before this one's turn."""
        return self._in_turn(page, lambda: self.answer(controls))

    def look(self, page: str, controls: Controls, title: str) -> Watched | str | None:
        """What is watched of a schedule on the changed device, or why it cannot be; None as above.

        Raises InputError where the device or the workload cannot be.
        """
        return self._in_turn(f"{page}, inside", lambda: self._looked(self._asked(controls, title)))

    def _asked(self, controls: Controls, title: str) -> str:
        """A schedule on the changed device, as a question."""
        changed = changes(self.profile(controls.profile), controls.figures)
        tables = tables_of(self.text.data, controls, changed)
        return _of_schedule(tables, controls.schedules.index(title))

    def _in_turn(self, asker: str, answer: Callable[[], Found]) -> Found | None:
        """The answer, unless its asker has another question before this one's turn."""
        mine = self._newest[asker] = object()
        while not self._one_at_a_time.acquire(timeout=STALE_S):
            if self._newest[asker] is not mine:  # else the browser has no connection for others
                return None
        try:
            return answer() if self._newest[asker] is mine else None
        finally:
            self._one_at_a_time.release()

    def answer(self, controls: Controls) -> Answer:
        """Every schedule on the changed device and, for comparison, on the one beside.

        Raises InputError where the device or the workload cannot be.
        """
        changed = changes(self.profile(controls.profile), controls.figures)
        other = replace(controls, profile=controls.beside or controls.profile)
        sides = [tables_of(self.text.data, *side) for side in ((controls, changed), (other, {}))]
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
        own, beside = (self._load(side["hardware"]) for side in sides)
        return Answer(own, beside, (_name(controls, bool(changed)), other.profile), rows)

    def _answered(self, question: str) -> Record | str:
        """One schedule's record, or why there is none; the question is a scenario as JSON."""
        try:
            return self._replayed(question)
        except _TooLongError:
            return "takes longer to replay than a moment: attnsim run has time for it"

    def _look(self, question: str) -> Watched | str:
        """What is watched of a schedule, or why it does not run."""
        answer = self._answered(question)
        if isinstance(answer, str):
            return answer
        scenario = make_scenario(json.loads(question), "explored", WHERE, self.text.folder)
        return inside_of(*scenario.points)

    def _replay(self, question: str) -> Record | str:
        """The same, unless it takes too long: that is not kept."""
        ends_s = time.thread_time() + MOMENT_S  # of its own work: others may run beside it

        def in_time(_: str, done: int, of: int) -> None:
            if done < of and time.thread_time() > ends_s:
                raise _TooLongError

        try:
            scenario = make_scenario(json.loads(question), "explored", WHERE, self.text.folder)
            (point,) = scenario.points
            (schedule,) = point.schedules
            program = schedule.program(point.workload, point.hardware)
            limits = Limits(replayed_steps=affordable(program, point.hardware))
            (outcome,) = run_scenario(replace(scenario, limits=limits), progress=in_time, threads=1)
        except LimitsError:
            raise _TooLongError from None
        except InputError as error:
            return str(error).removeprefix(f"{WHERE}: ")
        record = outcome.record
        return record if record.time_s else f"{record.status}: {record.reason}"


def _name(controls: Controls, changed: bool) -> str:
    """What the changed device is called beside the other."""
    if not changed:
        return controls.profile
    return "changed" if controls.beside is None else f"{controls.profile}, changed"


def _of_schedule(tables: Mapping[str, Any], number: int) -> str:
    """The scenario of one of its schedules, as JSON."""
    one = {**tables, "schedule": tables["schedule"][number : number + 1]}
    return json.dumps(one, sort_keys=True)


def affordable(commands: list[Command], hw: HardwareProfile) -> int:
    """How many tile steps of each long kernel to replay: the most that AIM_S has time for.

    Else the fewest; raises LimitsError where these would take longer than a moment.
    """
    try:
        check_memory(commands, hw)
    except OutOfMemoryError:  # nothing will be replayed
        return REPLAYED[-1]
    for most in REPLAYED:
        takes_s = replay_s(commands, hw, most)
        if takes_s <= AIM_S:
            return most
    if takes_s > MOMENT_S:
        raise LimitsError(f"the replay would take some {takes_s:.1f} s")
    return REPLAYED[-1]


def replay_s(commands: list[Command], hw: HardwareProfile, most_steps: int) -> float:
    """About what the replay takes."""
    choice = Choice.of(kernels_of(commands), hw, most_steps)
    return STEP_S * sum(choice.cost[kernel] for kernel in replays_of(commands, choice))
