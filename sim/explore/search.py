"""Which device, or which tile, to choose: a search over what a scenario leaves open, by Optuna.

A search file is a scenario with one schedule and a table more:

    [search]
    objectives = ["time", "price"]        # of time, energy, area, price, hbm_bytes; all the less
    trials = 200                          # the better
    seed = 1

    [search.space]
    "hardware.l2.capacity" = { from = "25 MiB", to = "200 MiB", log = true }
    "hardware.sm.count" = { from = 66, to = 264, step = 6 }
    "schedule.flash2.tile.q" = [64, 128, 192]

Ranges are those of a sweep (sim/inputs/axes.py); without `steps` or `step` they hold whatever lies
between their ends. A space of no more designs than trials is tried whole. In a larger one the
tree-structured Parzen estimator for several objectives (Ozaki et al., GECCO 2020;
optuna.samplers.TPESampler) chooses from what the trials before came to: BATCH of them at a time,
which are replayed side by side, each chosen away from those that have no values yet
(`constant_liar`). It starts each trial from a seed of that trial's own, so that a search that was
interrupted goes on as if it had not been, on however many cores: the study is in memory, and each
trial that has ended in a store. What cannot be built or does not fit its memory is counted with the
reason, and has no values.
"""

import itertools
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.explore.cost import COUNTED, die_area_mm2, die_of, price_dollars
from sim.inputs.axes import Axis, Range, axis_of, values_of
from sim.inputs.files import InputError, checked, find_toml, shown
from sim.inputs.hardware import variation_toml
from sim.inputs.units import Count
from sim.runs.cases import Case
from sim.runs.job import Progress, run_each
from sim.runs.record import Record
from sim.runs.scenario import Point, Scenario, ScenarioText, check_tables, make_scenario
from sim.runs.store import Entry, Store
from sim.schedules.own import stamp_of_own

Objective = Literal["time", "energy", "area", "price", "hbm_bytes"]
Choice = bool | int | float | str
Design = dict[str, Choice]  # a value for every key of the space
Values = tuple[float, ...] | str  # a design's objectives in the file's order, or why it has none


class SearchTable(BaseModel):
    """The `[search]` table."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    objectives: list[Objective] = Field(min_length=1)
    trials: Count = 100
    seed: int = Field(default=0, ge=0)
    space: dict[str, Any] = Field(min_length=1)

    @model_validator(mode="after")
    def _once(self) -> "SearchTable":
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives: each was expected once")
        return self


def _axis(key: str, given: Any, where: str) -> Axis:
    """What a key of the space may be; raises InputError."""
    here = f"search.space.{key}"
    if re.match(r"schedule\.[^.]+\..|hardware\.[^.]+\..", key) is None:
        raise InputError(
            f"{where}: {here}: a figure of the hardware or an option of the schedule was expected, "
            "such as hardware.l2.capacity or schedule.flash2.tile.q"
        )
    axis = axis_of(given, where, here)
    if isinstance(axis, list) and not all(isinstance(v, bool | int | float | str) for v in axis):
        raise InputError(
            f"{where}: {here} = {shown(given)}: numbers, texts or true and false were expected"
        )
    return axis


def _distribution(axis: Axis) -> BaseDistribution:
    """Of what the sampler draws: values of a list, numbers of steps, or a share of a range."""
    if isinstance(axis, list):
        return CategoricalDistribution(axis)
    if axis.values is None:
        return FloatDistribution(0.0, 1.0)
    return IntDistribution(0, len(axis.values) - 1)


def _chosen(axis: Axis, drawn: Any) -> Choice:
    """The value that was drawn, as it is written in a file."""
    if isinstance(axis, list):
        return cast(Choice, drawn)
    return cast(Choice, axis.at(drawn) if axis.values is None else axis.values[drawn])


@dataclass(frozen=True)
class Trial:
    """A design that was tried, and its objectives in the order of the file (SI, mm2, dollars)."""

    number: int
    design: Design
    values: tuple[float, ...]


@dataclass(frozen=True)
class Infeasible:
    """How many designs could not be for one reason, as the first of them says it."""

    count: int
    reason: str


@dataclass(frozen=True)
class SearchAnswer:
    """What a search came to: `front` is the trials that no other trial beats in everything.

    `base` holds the objectives of the device and schedule as the file has them, or why they have
    none. `profiles` are profile files by their names, where the search changes the device.
    """

    title: str
    hardware: str
    objectives: list[Objective]
    base: Values
    trials: list[Trial]
    front: list[Trial]
    infeasible: list[Infeasible]
    profiles: dict[str, str]

    def json(self) -> str:
        """All but the profiles as JSON."""
        data = asdict(self)
        del data["profiles"]
        return json.dumps(data, indent=1, allow_nan=False) + "\n"


KEPT = "trials.sqlite"  # where trials are kept, in the folder that is given
BATCH = 8  # trials that are chosen by the same ones before


class Search:
    """A search file, understood.

    Raises InputError for what makes no sense: a key that is unknown, a space without values, an
    objective that the device's profile has no figures for, or a figure that would cost nothing.
    """

    def __init__(self, text: ScenarioText) -> None:
        self.where, self.folder, self.allow_code = text.where, text.folder, text.allow_code
        self.data = {key: value for key, value in text.data.items() if key != "search"}
        if "search" not in text.data:
            raise InputError(f"{self.where}: search: missing: a table with objectives and a space")
        if "sweep" in self.data:
            raise InputError(f"{self.where}: sweep: a search varies what search.space says alone")
        table = checked(SearchTable, text.data["search"], self.where, "search")
        self.objectives, self.trials, self.seed = table.objectives, table.trials, table.seed
        self.title = text.title
        self.axes = {key: _axis(key, given, self.where) for key, given in table.space.items()}
        (point,) = self._scenario({}).points
        if len(point.schedules) != 1:
            raise InputError(f"{self.where}: schedule: a search takes one, not several")
        self.hardware = point.hardware
        self.own_code = stamp_of_own(type(point.schedules[0]))
        self._check_objectives()
        self._check_keys()

    def _check_objectives(self) -> None:
        here = f"{self.where}: search.objectives"
        if "energy" in self.objectives and self.hardware.energy is None:
            raise InputError(f'{here}: "energy": {self.hardware.name} has no [energy] figures')
        for objective in self.objectives:
            if objective not in ("area", "price"):
                continue
            try:
                die_of(self.hardware)
            except InputError as error:
                raise InputError(f'{here}: "{objective}": {error}') from None
            for key in self.axes:
                section, _, figure = key.partition(".")
                if section == "hardware" and figure not in COUNTED:
                    raise InputError(
                        f"{self.where}: search.space.{key}: would be free, as the {objective} "
                        f"follows from {', '.join(COUNTED)} only"
                    )

    def _check_keys(self) -> None:
        """Every value that a file names can be read, the other keys being at their first."""
        named = {
            key: [a.first, a.last] if isinstance(a, Range) else a for key, a in self.axes.items()
        }
        first: Design = {key: values[0] for key, values in named.items()}
        for key, values in named.items():
            for value in values:
                self._scenario({**first, key: value})

    def _scenario(self, design: Design) -> Scenario:
        data = deepcopy(self.data)
        if design:
            data["sweep"] = {key: [value] for key, value in design.items()}
        return make_scenario(data, self.title, self.where, self.folder, self.allow_code)

    def evaluate(self, designs: Sequence[Design]) -> Iterator[Values]:
        """The objectives of each design, or why it has none, in order."""
        cases = [self._case(design) for design in designs]
        possible = [case for case in cases if isinstance(case, Case)]
        outcomes = run_each(possible, check_tables(self.data, self.where).limits)
        for case in cases:
            yield case if isinstance(case, str) else self._values(case.point, next(outcomes).record)

    def _case(self, design: Design) -> Case | str:
        """The schedule on the design, or why it cannot be."""
        try:
            (point,) = self._scenario(design).points
        except InputError as error:
            return self._reason(error)
        return Case(point, *point.schedules)

    def _values(self, point: Point, record: Record) -> Values:
        if record.status == "failed":
            return self._reason(record.reason)
        if record.status != "ok":
            return f"{record.status}: {record.reason}"
        values: dict[Objective, float | None] = {
            "time": record.time_s,
            "energy": record.energy_j,
            "hbm_bytes": record.hbm_bytes,
        }
        if {"area", "price"} & set(self.objectives):
            device = point.hardware, point.workload.dtype
            try:
                values |= {"area": die_area_mm2(*device), "price": price_dollars(*device)}
            except InputError as error:
                return self._reason(error)
        return tuple(float(values[objective] or 0.0) for objective in self.objectives)

    def _reason(self, why: object) -> str:
        """It without the file's name."""
        return str(why).removeprefix(f"{self.where}: ")

    @cached_property
    def designs(self) -> list[dict[str, Choice]] | None:
        """All designs, where the space has no more of them than there are trials."""
        values = [values_of(axis) for axis in self.axes.values()]
        listed = [v for v in values if v is not None]
        if len(listed) < len(values) or math.prod(map(len, listed)) > self.trials:
            return None
        return [dict(zip(self.axes, v, strict=True)) for v in itertools.product(*listed)]

    def run(self, out: Path | None = None, progress: Progress = lambda *_: None) -> SearchAnswer:
        """Try what is left to try; with a folder `out`, trials are kept there and resumed.

        Raises InputError where `out` holds another search, or trials cannot be kept in it.
        """
        store = Store(out / KEPT if out else None)
        try:
            self._check_kept(store)
            study = self._study(store, progress)
        finally:
            store.close()
        return self._answer(study, out)

    def _study(self, store: Store, progress: Progress) -> optuna.Study:
        """A study of the trials that have ended, and those left to try.

        What ended of a batch that did not is chosen again, but not replayed.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(directions=["minimize"] * len(self.objectives))
        kept = self._kept(store)
        known = {_key(trial): _values_of(trial) for trial in reversed(kept)}
        total = self.trials if self.designs is None else len(self.designs)
        ended = len(kept) if len(kept) >= total else len(kept) // BATCH * BATCH
        study.add_trials(kept[:ended])
        for first in range(ended, total, BATCH):
            self._try(study, range(first, min(first + BATCH, total)), known, store, progress, total)
        return study

    def _try(
        self,
        study: optuna.Study,
        numbers: range,
        known: dict[str, Values],
        store: Store,
        progress: Progress,
        total: int,
    ) -> None:
        """Try a batch, whose trials end in order; what is known of a design is not replayed."""
        progress(f"trial {numbers[0]}", numbers[0], total)
        trials = []
        for number in numbers:
            study.sampler = _sampler(self.seed, number)
            trial = study.ask(self._distributions)
            trial.set_user_attr("design", self._design(trial, number))
            trials.append(trial)
        new = {_key(trial): trial.user_attrs["design"] for trial in trials}
        new = {key: design for key, design in new.items() if key not in known}
        evaluated = zip(new, self.evaluate(list(new.values())), strict=True)
        for number, trial in zip(numbers, trials, strict=True):
            progress(f"trial {number}", number, total)
            while (key := _key(trial)) not in known:
                known.update([next(evaluated)])
            values = known[key]
            if isinstance(values, str):
                trial.set_user_attr("reason", values)
                ended = study.tell(trial, state=TrialState.PRUNED)
            else:
                ended = study.tell(trial, values)
            store.put([Entry(str(number), _text(ended))])

    @cached_property
    def _distributions(self) -> dict[str, BaseDistribution]:
        """What the sampler draws for each trial: nothing where all designs are tried."""
        if self.designs is not None:
            return {}
        return {key: _distribution(axis) for key, axis in self.axes.items()}

    def _design(self, trial: optuna.Trial, number: int) -> Design:
        """What the trial is to try."""
        if self.designs is not None:
            return self.designs[number]
        return {key: _chosen(axis, trial.params[key]) for key, axis in self.axes.items()}

    def _check_kept(self, store: Store) -> None:
        """Raises InputError where the store is that of another search."""
        asked = {
            "tables": self.data,
            "objectives": self.objectives,
            "seed": self.seed,
            "space": {
                k: a.model_dump() if isinstance(a, Range) else a for k, a in self.axes.items()
            },
            "whole": self.designs is not None,
            "hardware": self.hardware.model_dump(),
        }
        if self.own_code:
            asked["code"] = self.own_code
        text = json.dumps(asked, sort_keys=True, default=str)
        if store.claim(Entry("search", text)) != text:
            raise InputError(f"{store.where}: holds another search: choose another folder")

    def _kept(self, store: Store) -> list[FrozenTrial]:
        """The trials that have ended."""
        kept: list[FrozenTrial] = []
        while (one := store.get(str(len(kept)), "")) is not None:
            kept.append(self._ended(json.loads(one)))
        return kept

    def _ended(self, kept: dict[str, Any]) -> FrozenTrial:
        """A trial as `_text` has it."""
        state = TrialState.PRUNED if kept["values"] is None else TrialState.COMPLETE
        return create_trial(state=state, distributions=self._distributions, **kept)

    def _answer(self, study: optuna.Study, out: Path | None) -> SearchAnswer:
        reasons: dict[str, list[str]] = {}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)):
            reason = trial.user_attrs["reason"]
            reasons.setdefault(re.sub(r"[\d.]+", "#", reason), []).append(reason)
        trials = [_trial(t) for t in study.get_trials(states=(TrialState.COMPLETE,))]
        best = {trial.values: trial for trial in map(_trial, reversed(study.best_trials))}
        front = sorted(best.values(), key=lambda trial: trial.values)
        (base,) = self.evaluate([{}])
        return SearchAnswer(
            title=self.title,
            hardware=self.hardware.name,
            objectives=self.objectives,
            base=base,
            trials=trials,
            front=front,
            infeasible=[Infeasible(len(same), same[0]) for same in reasons.values()],
            profiles=self._profiles(front, out),
        )

    def _profiles(self, front: list[Trial], out: Path | None) -> dict[str, str]:
        if out is None or not any(key.startswith("hardware.") for key in self.axes):
            return {}
        return {f"trial_{t.number}.toml": self.profile_toml(t, out / "front") for t in front}

    def profile_toml(self, trial: Trial, folder: Path) -> str:
        """A profile file, to stand in `folder`, of the device that a trial chose."""
        changed: dict[str, Any] = deepcopy(self.data["hardware"])
        parent = find_toml(changed.pop("profile"), "hw_profiles", "profile", self.folder)
        for key, value in trial.design.items():
            *tables, figure = key.split(".")
            if tables[0] == "hardware":
                table = changed
                for name in tables[1:]:
                    table = table.setdefault(name, {})
                table[figure] = value
        chosen = [f"# {key} = {json.dumps(value)}\n" for key, value in trial.design.items()]
        source = f"search of {self.where}, trial {trial.number}"
        title = f"{self.hardware.title}, as trial {trial.number} has it"
        profile = variation_toml(title, parent, folder, changed, lambda *_: source)
        return "".join([*chosen, profile])


def _sampler(seed: int, number: int) -> TPESampler:
    """The sampler of one trial, of which it alone draws."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        own_seed = hash((seed, number)) % 2**32
        return TPESampler(seed=own_seed, multivariate=True, constant_liar=True)


def _key(trial: optuna.Trial | FrozenTrial) -> str:
    return json.dumps(trial.user_attrs["design"])


def _values_of(trial: FrozenTrial) -> Values:
    """What a trial that has ended came to."""
    pruned = trial.state == TrialState.PRUNED
    return str(trial.user_attrs["reason"]) if pruned else tuple(trial.values)


def _text(trial: FrozenTrial) -> str:
    """What is kept of a trial that has ended."""
    kept = {"params": trial.params, "values": trial.values, "user_attrs": trial.user_attrs}
    return json.dumps(kept)


def _trial(trial: FrozenTrial) -> Trial:
    return Trial(trial.number, trial.user_attrs["design"], tuple(trial.values))
