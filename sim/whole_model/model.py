"""The `[[model]]` question: what passes of whole models take: prompts, tokens, training steps.

A file of this kind has a title, `[hardware]` (a profile, and `price_per_hour` of renting it), and a
`[[model]]` table a row:

    model      whose shape it is: a name, or the path of a config.json
    phase      "prefill" (which it is without one), "decode" or "training"
    seq_len    tokens of each prompt, or of each cache with the token that is made; without it, the
               model's context
    batch      sequences
    schedule   of its attention: a name, or a table of a name and options; without one, that of a
               usual library
    weights, kv_dtype, gpus, parallel    as in a `[[fit]]` table, but "context"
    logits     of the "last" token of each sequence, or of "all" tokens, as always in training
    checkpointing    whether training keeps the layers' inputs alone, and goes forward twice
    label      what tables and figures call the row
    proxy_of   a model whose shape is not published, for which this one stands

Times are those of GPUs that had the memory; `gpus_needed` says how many hold weights and cache, or
all that training has, were it shared out evenly.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sim.inputs.files import checked
from sim.inputs.lengths import Batch
from sim.inputs.models import ModelName, model_of
from sim.inputs.units import Count, Length
from sim.inputs.workload import Phase
from sim.runs.job import Progress, naming
from sim.runs.record import Record
from sim.runs.scenario import Limits
from sim.whole_model.asked import Hardware, ScheduleTable, answer_json, hardware_of, schedule_of
from sim.whole_model.capacity import memory
from sim.whole_model.exchange import check_links
from sim.whole_model.inference import cached_bytes, cached_layer
from sim.whole_model.moments import Use
from sim.whole_model.passes import Logits, ModelPass, PassTime, model_pass, replay
from sim.whole_model.setting import (
    Parallel,
    Setting,
    Stored,
    Weights,
    cache_dtype,
    parameter_bytes,
)


class ModelTable(BaseModel):
    """A `[[model]]` table."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: ModelName
    phase: Phase = "prefill"
    seq_len: Length | None = None
    batch: Batch = 1
    schedule: ScheduleTable | None = None
    weights: Weights = "bf16"
    kv_dtype: Stored = "bf16"
    gpus: Count = 1
    parallel: Literal["tensor", "pipeline"] = "tensor"
    logits: Logits = "last"
    checkpointing: bool = False
    label: str | None = None
    proxy_of: str | None = None

    @property
    def title(self) -> str:
        """What tables and figures call the row."""
        return self.label or self.proxy_of or model_of(self.model).name

    def asked(self, hardware: Hardware, where: str) -> ModelPass:
        """The pass; raises InputError."""
        model = model_of(self.model)
        schedule = None if self.schedule is None else schedule_of(self.schedule, where)
        with naming(where):
            setting = Setting(
                model,
                hardware.profile,
                schedule,
                weights=self.weights,
                kv_dtype=cache_dtype(self.kv_dtype),
                batch=self.batch,
                gpus=self.gpus,
                parallel=self.parallel,
            )
            check_links(setting)
        tokens = self.seq_len or model.context
        return model_pass(setting, self.phase, tokens, self.logits, self.checkpointing)


class ModelFile(BaseModel):
    """The tables of a file of this kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str = ""
    hardware: dict[str, Any]
    model: list[ModelTable] = Field(min_length=1)
    limits: Limits = Limits()


@dataclass(frozen=True)
class ModelRow:
    """What one model's pass takes. Bytes of the cache are of all layers and tokens.

    `gpus_needed` is how many hold weights and cache, or what training has. Where one layer does not
    fit or cannot be, as `status` says, the row has a `reason` and no times. `tokens` go through the
    pass: those of the prompts, or one a sequence.
    """

    label: str
    model: str
    proxy_of: str | None
    phase: Phase
    batch: int
    seq_len: int
    tokens: int
    schedule: str
    gpus: int
    parallel: Parallel
    kv_bytes: int
    parameter_bytes: int
    gpus_needed: int
    time: PassTime | None
    price_per_million_tokens: float | None
    status: Literal["ok", "out of memory", "failed"]
    reason: str | None

    @property
    def tokens_per_s(self) -> float | None:
        """Of the prompts, or made."""
        return self.tokens / self.time.time_s if self.time else None


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
    """Which models' passes to time on which device."""

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
        passes = [table.asked(hardware, where) for table in tables.model]
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
        setting, seq_len = one.setting, one.workload.seq_kv
        alone = replace(setting, gpus=1)
        (whole,) = alone.shares
        weights = parameter_bytes(alone, whole)
        if one.is_training:
            use: Use = "training with checkpointing" if one.checkpointing else "training"
            cache, needed = 0, memory(alone, use, seq_len).bytes
        elif record.status == "failed":  # what cannot be caches nothing
            cache, needed = 0, weights
        else:
            layer = cached_layer(alone, whole, one.workload.phase, seq_len)
            cache = cached_bytes(alone, whole, layer, seq_len)
            needed = weights + cache
        gpus_s = time.time_s * setting.gpus if time else 0.0
        price = self.hardware.price_of_million(gpus_s, one.tokens) if time else None
        return ModelRow(
            label=table.title,
            model=setting.model.name,
            proxy_of=table.proxy_of,
            phase=one.workload.phase,
            batch=setting.batch,
            seq_len=seq_len,
            tokens=one.tokens,
            schedule=one.schedule.title,
            gpus=setting.gpus,
            parallel=setting.parallel,
            kv_bytes=cache,
            parameter_bytes=weights,
            gpus_needed=ceil(needed / setting.hardware.hbm.capacity),
            time=time,
            price_per_million_tokens=price,
            status=record.status,
            reason=record.reason,
        )
