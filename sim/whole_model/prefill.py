"""The `[[model]]` question: what whole models' prefills take at their context lengths.

A file of this kind has a title, `[hardware]` (a profile, and `price_per_hour` of renting it), and a
`[[model]]` table a row:

    model      whose shape it is
    seq_len    tokens of the prompt; without it, the model's context
    schedule   of its attention: a name, or a table of a name and options
    label      what tables and figures call the row
    proxy_of   a model whose shape is not published, for which this one stands

Times are one GPU's, had it the memory; `gpus` says how many of them hold weights and cache.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sim.inputs.files import checked
from sim.inputs.models import ModelName, model_of
from sim.inputs.units import Count
from sim.runs.job import Progress
from sim.runs.record import Record
from sim.runs.scenario import Limits
from sim.whole_model.asked import (
    Hardware,
    ScheduleTable,
    answer_json,
    hardware_of,
    schedule_of,
)
from sim.whole_model.passes import ModelPass, PassTime, prefill, replay
from sim.whole_model.setting import Setting, cache_bytes_per_token, cached_tokens, parameter_bytes


class ModelTable(BaseModel):
    """A `[[model]]` table."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: ModelName
    seq_len: Count | None = None
    schedule: ScheduleTable = "flash2"
    label: str | None = None
    proxy_of: str | None = None

    @property
    def title(self) -> str:
        """What tables and figures call the row."""
        return self.label or self.proxy_of or model_of(self.model).name


class ModelFile(BaseModel):
    """The tables of a file of this kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str = ""
    hardware: dict[str, Any]
    model: list[ModelTable] = Field(min_length=1)
    limits: Limits = Limits()


@dataclass(frozen=True)
class ModelRow:
    """What one model's prefill takes. Bytes of the cache are of all layers and tokens.

    `gpus` is how many hold weights and cache. Where one layer does not fit one GPU, the row has a
    `reason` and no times.
    """

    label: str
    model: str
    proxy_of: str | None
    seq_len: int
    schedule: str
    kv_bytes: int
    parameter_bytes: int
    gpus: int
    time: PassTime | None
    price_per_million_tokens: float | None
    reason: str | None


@dataclass(frozen=True)
class ModelAnswer:
    """The rows of a `[[model]]` question."""

    title: str
    hardware: Hardware
    rows: list[ModelRow]

    def json(self) -> str:
        """The rows, and what they rest on, as JSON."""
        return answer_json(
            self.title, self.hardware, {"models": [asdict(row) for row in self.rows]}
        )


@dataclass(frozen=True)
class ModelQuestion:
    """Which models to prefill on which device."""

    title: str
    hardware: Hardware
    tables: list[ModelTable]
    passes: list[ModelPass]
    limits: Limits
    where: str

    @classmethod
    def from_tables(cls, data: Mapping[str, Any], name: str, where: str) -> "ModelQuestion":
        """The question that the tables of a file pose; raises InputError."""
        tables = checked(ModelFile, data, where)
        hardware = hardware_of(tables.hardware, where)
        passes = []
        for table in tables.model:
            shape, schedule = model_of(table.model), schedule_of(table.schedule, where)
            tokens = table.seq_len or shape.context
            passes.append(prefill(shape, hardware.profile, schedule, tokens))
        return cls(tables.title or name, hardware, tables.model, passes, tables.limits, where)

    def answer(self, progress: Progress = lambda *_: None) -> ModelAnswer:
        """Run it; raises InputError for what cannot be run."""
        replays = replay(self.passes, self.where, self.limits, progress)
        rows = [
            self._row(table, one, *replayed)
            for table, one, replayed in zip(self.tables, self.passes, replays, strict=True)
        ]
        return ModelAnswer(self.title, self.hardware, rows)

    def _row(
        self, table: ModelTable, one: ModelPass, record: Record, time: PassTime | None
    ) -> ModelRow:
        tokens = one.workload.seq_q
        setting = Setting(one.shape, one.hardware)
        (share,) = setting.shares
        weights = parameter_bytes(setting, share)
        cached = cached_tokens(setting, share, tokens)
        cache = one.shape.layers * cached * cache_bytes_per_token(setting)
        price = self.hardware.price_of_million(time.time_s, tokens) if time else None
        return ModelRow(
            label=table.title,
            model=one.shape.name,
            proxy_of=table.proxy_of,
            seq_len=tokens,
            schedule=one.schedule.title,
            kv_bytes=cache,
            parameter_bytes=weights,
            gpus=ceil((weights + cache) / self.hardware.profile.hbm.capacity),
            time=time,
            price_per_million_tokens=price,
            reason=record.reason,
        )
