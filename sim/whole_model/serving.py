"""The `[serving]` question: how many requests one GPU serves, and how fast, by load.

A file of this kind has a title, `[hardware]` (a profile, and `price_per_hour` of renting it) and

    [serving]
    model             whose shape it is
    requests_per_s    the loads to try: rates of a Poisson process
    prompt, output    lengths in tokens: { tokens = 512 }, or { median = 1730, p90 = 5696 } of a
                      lognormal distribution; pairs longer than `context` together are drawn again
    context           most tokens of prompt and output together; without it, the model's
    requests          how many arrive at each load
    seed              of lengths and arrivals: all loads have the same requests, closer or not
    prefill, decode   schedules of attention: names, or tables of a name and options
    max_batch         most requests at a time
    prefill_tokens    most tokens that one iteration prefills (a longer prompt alone)
    page_tokens       tokens of a page of the KV cache
    utilisation       of HBM, the share that the server may use

The KV cache has what HBM leaves beside parameters, a prefill's activations and the framework's
reserve (capacity.py). How requests are served is told in server.py, how long the server's
iterations take in iteration_times.py.

**Measured** over the middle half of each run's time, so that neither the empty start nor the last
requests' leaving count: throughput, batch, use of the cache. Latencies are of all requests.
**Saturation** is the highest throughput of all loads. It is the server's own where the highest load
brings at least a twentieth more, reckoned by the lowest, which counts as served in full.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import log
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.inputs.files import InputError, checked
from sim.inputs.lengths import Batch
from sim.inputs.models import ModelName, model_of
from sim.inputs.units import Count, Fraction, Length, whole
from sim.runs.job import Progress, naming
from sim.runs.scenario import Limits
from sim.whole_model.asked import (
    Hardware,
    ScheduleTable,
    answer_json,
    hardware_of,
    schedule_of,
)
from sim.whole_model.capacity import memory
from sim.whole_model.iteration_times import IterationTimes, ServedModel, iteration_times
from sim.whole_model.server import Request, Server, Service
from sim.whole_model.setting import Setting, cache_bytes_per_token

NORMAL_P90 = 1.2815515655446004  # the standard normal distribution's 90th percentile
DRAWS = 100  # of a pair of lengths, before the distribution counts as longer than the context
SATURATED = 1.05  # a load that brings so much more than is served
MOST_REQUESTS = 10**5  # at a load
MOST_PREFILLED = 2**20  # tokens at a time: their tiles are told one by one
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Lengths(BaseModel):
    """Lengths in tokens: all the same, or lognormal by median and 90th percentile."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tokens: Count | None = None
    median: Count | None = None
    p90: Count | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Lengths":
        lognormal = self.median is not None and self.p90 is not None
        if (self.tokens is None) != lognormal or (self.median is None) != (self.p90 is None):
            raise ValueError("give tokens, or median and p90")
        if self.median is not None and self.p90 is not None and self.p90 < self.median:
            raise ValueError(f"p90 = {self.p90} must not be below median = {self.median}")
        return self

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """So many lengths, at least one token each."""
        if self.median is None or self.p90 is None:
            return np.full(count, self.tokens, np.int64)
        sigma = log(self.p90 / self.median) / NORMAL_P90
        drawn = rng.lognormal(log(self.median), sigma, count)
        return np.maximum(1, np.rint(np.minimum(drawn, 2.0**40))).astype(np.int64)


class ServingTable(BaseModel):
    """The `[serving]` table."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: ModelName
    requests_per_s: list[Rate] = Field(min_length=1)
    prompt: Lengths
    output: Lengths
    context: Length | None = None
    requests: Annotated[Count, Field(ge=20, le=MOST_REQUESTS)] = 1000
    seed: Annotated[int, Field(ge=0), whole(0)] = 0
    prefill: ScheduleTable = "flash2"
    decode: ScheduleTable = "flash_decoding"
    max_batch: Batch = 256  # vLLM's max_num_seqs
    prefill_tokens: Annotated[Count, Field(le=MOST_PREFILLED)] = 8192
    page_tokens: Count = 16  # vLLM's block_size
    utilisation: Fraction = 1.0


class ServingFile(BaseModel):
    """The tables of a file of this kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str = ""
    hardware: dict[str, Any]
    serving: ServingTable
    limits: Limits = Limits()


@dataclass(frozen=True)
class Traffic:
    """Requests before a load is chosen: times of arrival at one a second, and their lengths."""

    arrivals_s: NDArray[np.float64]
    prompts: NDArray[np.int64]
    outputs: NDArray[np.int64]

    def at(self, requests_per_s: float) -> list[Request]:
        """The requests as they arrive at that load."""
        arrivals_s = self.arrivals_s / requests_per_s
        columns = (arrivals_s.tolist(), self.prompts.tolist(), self.outputs.tolist())
        return [Request(*row) for row in zip(*columns, strict=True)]

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its output."""
        return int((self.prompts + self.outputs).max())


def draw_traffic(table: ServingTable, context: int, where: str) -> Traffic:
    """The requests that a table describes; raises InputError where hardly any fits the context."""
    rng = np.random.default_rng(table.seed)
    arrivals_s = np.cumsum(rng.exponential(size=table.requests))
    prompts, outputs = (np.full(table.requests, context, np.int64) for _ in range(2))
    for _ in range(DRAWS):
        again = prompts + outputs > context
        if not again.any():
            return Traffic(arrivals_s, prompts, outputs)
        prompts[again] = table.prompt.draw(rng, int(again.sum()))
        outputs[again] = table.output.draw(rng, int(again.sum()))
    raise InputError(
        f"{where}: serving.context = {context}: prompts and outputs are longer together; shorten "
        "them or raise serving.context"
    )


def kv_pages(served: ServedModel, table: ServingTable) -> int:
    """Pages of KV cache that fit in HBM beside all else; not above zero where none does.

    The rest is what a prefill of `prefill_tokens` takes but for its cache.
    """
    shape, tokens = served.shape, table.prefill_tokens
    setting = Setting(
        shape, served.hardware, served.prefill, chunk=tokens, utilisation=table.utilisation
    )
    moment = memory(setting, "prefill", tokens)
    free_bytes = setting.usable_bytes - (moment.bytes - moment.parts["KV cache"])
    page_bytes = table.page_tokens * shape.layers * cache_bytes_per_token(setting)
    return free_bytes // page_bytes


@dataclass(frozen=True)
class LoadResult:
    """What came of one load.

    `ttft` is the time to first token, `tpot` the mean time of a request's tokens after it. `batch`
    is the mean of decoding; `cache_use` (mean) and `most_cache_use` are shares of the KV cache.
    """

    requests_per_s: float
    tokens_per_s: float
    ttft_median_s: float
    ttft_p95_s: float
    tpot_median_s: float
    tpot_p95_s: float
    batch: float
    cache_use: float
    most_cache_use: float
    preemptions: int
    price_per_million_tokens: float | None


@dataclass(frozen=True)
class ServingAnswer:
    """Loads from low to high, and how many tokens the KV cache holds."""

    title: str
    hardware: Hardware
    model: str
    cache_tokens: int
    loads: list[LoadResult]

    @property
    def saturation_tokens_per_s(self) -> float:
        """Output tokens a second at the best load."""
        return max(load.tokens_per_s for load in self.loads)

    @property
    def saturation_requests_per_s(self) -> float | None:
        """The load that so many tokens a second serve; None where no load was beyond it."""
        lowest = self.loads[0]
        served = self.saturation_tokens_per_s / lowest.tokens_per_s * lowest.requests_per_s
        return served if self.loads[-1].requests_per_s >= SATURATED * served else None

    def json(self) -> str:
        """The loads, and what they rest on, as JSON."""
        results = {
            "model": self.model,
            "cache_tokens": self.cache_tokens,
            "saturation_tokens_per_s": self.saturation_tokens_per_s,
            "saturation_requests_per_s": self.saturation_requests_per_s,
            "loads": [asdict(load) for load in self.loads],
        }
        return answer_json(self.title, self.hardware, results)


@dataclass(frozen=True)
class ServingQuestion:
    """Which requests, at which loads, for which model on which device."""

    title: str
    hardware: Hardware
    table: ServingTable
    served: ServedModel
    traffic: Traffic
    pages: int
    limits: Limits
    where: str

    @classmethod
    def from_tables(cls, data: Mapping[str, Any], name: str, where: str) -> "ServingQuestion":
        """The question that the tables of a file pose; raises InputError."""
        tables = checked(ServingFile, data, where)
        table, shape = tables.serving, model_of(tables.serving.model)
        hardware = hardware_of(tables.hardware, where)
        schedules = schedule_of(table.prefill, where), schedule_of(table.decode, where)
        served = ServedModel(shape, hardware.profile, *schedules)
        traffic = draw_traffic(table, table.context or shape.context, where)
        with naming(where):
            pages = kv_pages(served, table)
        if pages * table.page_tokens < traffic.longest:
            raise InputError(
                f"{where}: serving.model = {shape.name!r}: {hardware.profile.name} has room for "
                f"{max(0, pages * table.page_tokens)} tokens of KV cache beside it, the longest "
                f"request has {traffic.longest}"
            )
        title = tables.title or name
        return cls(title, hardware, table, served, traffic, pages, tables.limits, where)

    def answer(self, progress: Progress = lambda *_: None) -> ServingAnswer:
        """Run it; raises InputError for what cannot be run."""
        table, longest = self.table, self.traffic.longest
        server = self.server(
            iteration_times(
                self.served, longest, table.max_batch, self.where, self.limits, progress
            )
        )
        loads = []
        for number, rate in enumerate(sorted(table.requests_per_s)):
            progress(f"{rate:g} requests/s", number, len(table.requests_per_s))
            service = Service(server, self.traffic.at(rate))
            service.run()
            loads.append(load_of(rate, service, self.hardware))
        cache_tokens = self.pages * table.page_tokens
        return ServingAnswer(self.title, self.hardware, table.model, cache_tokens, loads)

    def server(self, times: IterationTimes) -> Server:
        """The server, with iterations that take so long."""
        table = self.table
        return Server(
            pages=self.pages,
            page_tokens=table.page_tokens,
            max_batch=table.max_batch,
            prefill_tokens=table.prefill_tokens,
            prefill_s=times.prefill_s,
            decode_s=times.decode_s,
        )


def load_of(requests_per_s: float, service: Service, hardware: Hardware) -> LoadResult:
    """What is said of one load."""
    requests, iterations = service.requests, service.iterations
    measured = middle_half(iterations)
    decoding = measured[~measured["prefill"]]
    seconds = measured["end_s"] - measured["start_s"]
    elapsed_s = float(measured["end_s"][-1] - measured["start_s"][0])
    tokens_per_s = int(measured["batch"].sum()) / elapsed_s
    first_s = [request.first_token_s for request in requests]
    per_token_s = [r.per_token_s for r in requests if r.per_token_s is not None] or [0.0]
    return LoadResult(
        requests_per_s=requests_per_s,
        tokens_per_s=tokens_per_s,
        ttft_median_s=float(np.median(first_s)),
        ttft_p95_s=float(np.percentile(first_s, 95)),
        tpot_median_s=float(np.median(per_token_s)),
        tpot_p95_s=float(np.percentile(per_token_s, 95)),
        batch=float(decoding["batch"].mean()) if len(decoding) else 0.0,
        cache_use=float(measured["pages"] @ seconds) / elapsed_s / service.server.pages,
        most_cache_use=int(iterations["pages"].max()) / service.server.pages,
        preemptions=sum(request.preempted for request in requests),
        price_per_million_tokens=hardware.price_of_million(1.0, tokens_per_s),
    )


def middle_half(iterations: NDArray[Any]) -> NDArray[Any]:
    """Those that end in the middle half of the time; all, where none does."""
    ends_s = iterations["end_s"]
    start_s, end_s = iterations["start_s"][0], ends_s[-1]
    quarter_s = (end_s - start_s) / 4
    chosen = (start_s + quarter_s < ends_s) & (ends_s <= end_s - quarter_s)
    return iterations[chosen] if chosen.any() else iterations
