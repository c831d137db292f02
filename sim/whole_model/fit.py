"""Does it fit: how far a model's context goes on a GPU, as a question with its answer.

A file of this kind has `[[fit]]` tables, one a row of the answer:

    title = "How far do 24 GB go?"
    rule = 50_000                     # a context to hold the answers against; else all rows' one
    uses = ["prefill", "decode"]      # of all four, which to answer; all by default

    [defaults]                        # what all rows have unless they say otherwise
    hardware = "rtx-4090"

    [[fit]]
    model = "llama-3-8b"
    weights = "int4"

`hardware` may be a list: a row for each of its cards.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sim.inputs.files import InputError, checked
from sim.inputs.hardware import load_profile
from sim.inputs.lengths import Batch
from sim.inputs.models import ModelName, model_of
from sim.inputs.units import Bytes, Count, CountOrNone, Fraction, Length
from sim.runs.job import Progress, naming
from sim.schedules import SCHEDULES, make_schedule
from sim.schedules.base import Schedule
from sim.whole_model.asked import ScheduleTable
from sim.whole_model.capacity import MOST_TOKENS, longest_context, memory
from sim.whole_model.moments import USES, Memory, Use
from sim.whole_model.setting import (
    CHUNK,
    RESERVE_BYTES,
    Parallel,
    Setting,
    Stored,
    Weights,
    cache_dtype,
)


class FitRow(BaseModel):
    """A `[[fit]]` table.

    `schedule` is a name, or a table as of a scenario. `context` is where the parts are told, by
    default the model's own. `chunk`, `reserve` and `utilisation` are as `Setting` has them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: ModelName
    hardware: str
    label: str = ""
    schedule: ScheduleTable | None = None
    weights: Weights = "bf16"
    kv_dtype: Stored = "bf16"
    batch: Batch = 1
    context: Length | None = None
    gpus: Count = 1
    parallel: Parallel = "tensor"
    chunk: CountOrNone = CHUNK
    reserve: Bytes = RESERVE_BYTES
    utilisation: Fraction = 1.0
    dropout: bool = False

    @property
    def title(self) -> str:
        """What tables and figures call the row."""
        if self.label:
            return self.label
        named = self.schedule.get("name") if isinstance(self.schedule, dict) else self.schedule
        parts = [
            model_of(self.model).name,
            str(named or ""),
            "" if self.weights == "bf16" else self.weights,
        ]
        if cache_dtype(self.kv_dtype):
            parts.append(f"KV {self.kv_dtype}")
        if self.gpus > 1:
            parts.append(f"{self.gpus} GPUs, {self.parallel}")
        return ", ".join(filter(None, parts))

    def setting(self, where: str) -> Setting:
        """What the row asks about; raises InputError."""
        with naming(f"{where}: hardware"):
            hardware = load_profile(self.hardware)
        schedule = self._schedule(where)
        with naming(where):
            return Setting(
                model=model_of(self.model),
                hardware=hardware,
                schedule=schedule,
                weights=self.weights,
                kv_dtype=cache_dtype(self.kv_dtype),
                batch=self.batch,
                gpus=self.gpus,
                parallel=self.parallel,
                chunk=self.chunk,
                reserve_bytes=self.reserve,
                utilisation=self.utilisation,
                dropout=self.dropout,
            )

    def _schedule(self, where: str) -> Schedule | None:
        if self.schedule is None:
            return None
        table = {"name": self.schedule} if isinstance(self.schedule, str) else self.schedule
        kind = SCHEDULES.get(str(table.get("name")), Schedule)
        if kind.on_several_gpus:
            raise InputError(
                f"{where}: schedule = {table['name']}: gpus and parallel were expected instead"
            )
        if kind.of_other_models:
            known = [
                name
                for name, one in SCHEDULES.items()
                if not (one.on_several_gpus or one.of_other_models)
            ]
            raise InputError(
                f"{where}: schedule = {table['name']}: it is of models of another kind; known: "
                f"{', '.join(known)}"
            )
        return make_schedule(table, where)


class FitFile(BaseModel):
    """The tables of a file with `[[fit]]`, before defaults are laid under its rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str = ""
    rule: Count | None = None
    uses: tuple[Use, ...] = Field(default=USES, min_length=1)
    defaults: dict[str, Any] = Field(default_factory=dict)
    fit: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class UseAnswer:
    """How far one use goes, and what it needs at the row's context.

    `longest_tokens` is MOST_TOKENS where nothing limits it, 0 where nothing fits. Both are None
    where the use cannot be, and `refused` says why.
    """

    longest_tokens: int | None
    at_context: Memory | None
    refused: str = ""

    @property
    def unlimited(self) -> bool:
        """Whether the memory needed stops growing before it fills the GPU."""
        return self.longest_tokens == MOST_TOKENS


@dataclass(frozen=True)
class RowAnswer:
    """The answers to a row, by use."""

    title: str
    row: FitRow
    setting: Setting
    context: int
    uses: dict[Use, UseAnswer]

    @property
    def capacity_bytes(self) -> int:
        """What may be used of one of the GPUs' HBM."""
        return self.setting.usable_bytes


@dataclass(frozen=True)
class FitAnswer:
    """The answers to all rows."""

    title: str
    rule: int | None
    rows: list[RowAnswer]

    @property
    def uses(self) -> list[Use]:
        """The uses asked about."""
        return list(self.rows[0].uses)

    def json(self) -> str:
        """The answers as JSON, which ends with a newline."""
        rows = [
            {
                "label": row.title,
                "asked": row.row.model_dump(exclude={"label"}),
                "capacity_bytes": row.capacity_bytes,
                "context": row.context,
                "uses": {use: _use_json(answer, row) for use, answer in row.uses.items()},
            }
            for row in self.rows
        ]
        return json.dumps({"title": self.title, "rule": self.rule, "rows": rows}, indent=1) + "\n"


def _use_json(answer: UseAnswer, row: RowAnswer) -> dict[str, Any]:
    if answer.at_context is None:
        return {"refused": answer.refused}
    needed = answer.at_context
    return {
        "longest_tokens": answer.longest_tokens,
        "unlimited": answer.unlimited,
        "at_context": asdict(needed)
        | {"bytes": needed.bytes, "fits": needed.bytes <= row.capacity_bytes},
    }


@dataclass(frozen=True)
class FitQuestion:
    """Which settings to answer for which uses."""

    title: str
    rule: int | None
    uses: tuple[Use, ...]
    rows: list[tuple[FitRow, Setting]]
    where: str

    @staticmethod
    def from_tables(data: Mapping[str, Any], name: str, where: str) -> "FitQuestion":
        """The question that the tables of the file `where` ask; raises InputError."""
        tables = checked(FitFile, data, where)
        rows = []
        for number, table in enumerate(tables.fit, 1):
            at = where if len(tables.fit) == 1 else f"{where}: fit {number}"
            for one in _one_a_card({**tables.defaults, **table}, at):
                row = checked(FitRow, one, at)
                rows.append((row, row.setting(at)))
        contexts = {row.context for row, _ in rows}
        rule = tables.rule or (contexts.pop() if len(contexts) == 1 else None)
        return FitQuestion(tables.title or name, rule, tables.uses, rows, where)

    def answer(self, progress: Progress = lambda *_: None) -> FitAnswer:
        """The answers; raises InputError where no row has one."""
        answers = []
        for number, (title, (row, setting)) in enumerate(zip(self._titles, self.rows, strict=True)):
            progress(title, number, len(self.rows))
            context = row.context or setting.model.context
            uses = {use: _answer(setting, use, context) for use in self.uses}
            answers.append(RowAnswer(title, row, setting, context, uses))
        progress("", len(self.rows), len(self.rows))
        refusals = [use.refused for answer in answers for use in answer.uses.values()]
        if all(refusals):
            raise InputError(f"{self.where}: {'; '.join(dict.fromkeys(refusals))}")
        return FitAnswer(self.title, self.rule, answers)

    @property
    def _titles(self) -> list[str]:
        """What rows are called; those of one name are told apart by their card."""
        named = Counter(row.title for row, _ in self.rows)
        return [
            row.title if named[row.title] == 1 else f"{row.title}, {setting.hardware.name}"
            for row, setting in self.rows
        ]


def _one_a_card(table: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """The row's table, once for each card that `hardware` lists; raises InputError."""
    cards = table.get("hardware")
    if not isinstance(cards, list):
        return [table]
    if not cards:
        raise InputError(f"{where}: hardware = []: a profile, or a list of them, was expected")
    return [{**table, "hardware": card} for card in cards]


def _answer(setting: Setting, use: Use, context: int) -> UseAnswer:
    try:
        return UseAnswer(longest_context(setting, use), memory(setting, use, context))
    except InputError as error:
        return UseAnswer(None, None, str(error))
