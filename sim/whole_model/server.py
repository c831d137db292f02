"""A server of one GPU under load: continuous batching over a paged KV cache, in SimPy.

    requests arrive and wait, first come first served
    iteration after iteration, the GPU
        prefills waiting requests, as many as find pages, up to a budget of tokens; if none does,
        decodes one token of every running request; if none runs, waits for an arrival

A prefill makes a request's first token. A running request takes another page when the last is full.
Where none is free, the request that arrived last loses its pages and waits again at the front; its
next prefill is of its prompt and all tokens made so far (recompute).

That is the policy of vLLM without chunked prefill: Kwon et al. 2023 (arXiv 2309.06180), sections
4.2 and 4.5; vllm-project/vllm, vllm/core/scheduler.py, `_schedule_default` (prefills first, budget
of max_num_batched_tokens, at most max_num_seqs) and `_schedule_running` (whom it preempts).
Continuous batching is Orca's iteration-level scheduling (Yu et al., OSDI 2022, section 3.1), whose
word for one pass of a batch through the model is an iteration.

Left out: the host's own time, prefixes that prompts share, swapping to the host.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

# Free pages that an admission leaves to those who run, a share of all (vllm-project/vllm,
# vllm/core/block_manager.py: watermark).
WATERMARK = 0.01


@dataclass(frozen=True)
class Server:
    """What there is to serve with: pages of the KV cache, limits and times of iterations.

    `prefill_s` takes the lengths of the prompts that one iteration prefills. `decode_s` takes how
    many requests decode and the mean length of their caches with the new token. A prompt longer
    than `prefill_tokens` is prefilled alone.
    """

    pages: int
    page_tokens: int
    max_batch: int
    prefill_tokens: int
    prefill_s: Callable[[Sequence[int]], float]
    decode_s: Callable[[int, float], float]

    def pages_of(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.page_tokens)


@dataclass(eq=False)
class Request:
    """A prompt of so many tokens that is to be answered by so many; and how that went."""

    arrival_s: float
    prompt: int
    output: int
    made: int = 0  # tokens of the output so far
    first_s: float = -1.0  # when the first of them was there
    done_s: float = -1.0
    preempted: int = 0
    pages: int = 0  # held while it runs

    @property
    def tokens(self) -> int:
        """Tokens so far: a prefill takes them all, decoding caches the last of them."""
        return self.prompt + self.made

    @property
    def first_token_s(self) -> float:
        """From the arrival to the first token."""
        return self.first_s - self.arrival_s

    @property
    def per_token_s(self) -> float | None:
        """Mean time of the tokens after the first; None where there are none."""
        return (self.done_s - self.first_s) / (self.output - 1) if self.output > 1 else None


@dataclass(frozen=True)
class Iteration:
    """One pass of the GPU: it ended at `end_s` and made a token of each of `batch` requests.

    `running` requests had their first token before it; `pages` were in use during it.
    """

    start_s: float
    end_s: float
    prefill: bool
    batch: int
    running: int
    pages: int


@dataclass
class Service:
    """A run of a server: requests in order of arrival, and the iterations that served them."""

    server: Server
    requests: list[Request]
    iterations: list[Iteration] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.env = simpy.Environment()
        self.arrived = self.env.event()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of arrival
        self.free_pages = self.server.pages

    def run(self) -> None:
        """Serve all requests. Each must fit the cache alone, whole."""
        self.env.process(self._arrivals())
        self.env.run(self.env.process(self._gpu()))

    def _arrivals(self) -> Generator[simpy.Event, Any, None]:
        for request in self.requests:
            if request.arrival_s > self.env.now:
                yield self.env.timeout(request.arrival_s - self.env.now)
            self.waiting.append(request)
            self.arrived.succeed()
            self.arrived = self.env.event()

    def _gpu(self) -> Generator[simpy.Event, Any, None]:
        left = len(self.requests)
        while left:
            if admitted := self._admit():
                seconds = self.server.prefill_s([request.tokens for request in admitted])
                yield from self._iterate(admitted, seconds, prefill=True)
                self.running = sorted(self.running + admitted, key=lambda r: r.arrival_s)
            elif self.running:
                self._find_pages()
                batch = len(self.running)
                mean = sum(request.tokens for request in self.running) / batch
                seconds = self.server.decode_s(batch, mean)
                yield from self._iterate(self.running, seconds, prefill=False)
            else:
                yield self.arrived
            left -= self._leave()

    def _admit(self) -> list[Request]:
        """Requests that the next iteration prefills, with their pages."""
        server, admitted, tokens = self.server, list[Request](), 0
        while self.waiting and len(self.running) + len(admitted) < server.max_batch:
            request = self.waiting[0]
            pages = server.pages_of(request.tokens)
            kept = int(WATERMARK * server.pages) if self.running or admitted else 0
            if self.free_pages - pages < kept:
                break
            if admitted and tokens + request.tokens > server.prefill_tokens:
                break
            request.pages = pages
            self.free_pages -= pages
            tokens += request.tokens
            admitted.append(self.waiting.popleft())
        return admitted

    def _find_pages(self) -> None:
        """Pages for the tokens that running requests are about to cache, as many as can go on."""
        number = 0
        while number < len(self.running):
            request = self.running[number]
            missing = self.server.pages_of(request.tokens) - request.pages
            if missing > self.free_pages:
                self._preempt()
                continue
            request.pages += missing
            self.free_pages -= missing
            number += 1

    def _preempt(self) -> None:
        """The request that arrived last waits again, at the front."""
        request = self.running.pop()
        self.free_pages += request.pages
        request.preempted += 1
        self.waiting.appendleft(request)

    def _iterate(
        self, batch: list[Request], seconds: float, prefill: bool
    ) -> Generator[simpy.Event, Any, None]:
        """Takes its time, then each request of the batch has a token more."""
        start_s, running = self.env.now, len(self.running)
        used = self.server.pages - self.free_pages
        yield self.env.timeout(seconds)
        for request in batch:
            request.made += 1
            if request.made == 1:
                request.first_s = self.env.now
        end_s = self.env.now
        self.iterations.append(Iteration(start_s, end_s, prefill, len(batch), running, used))

    def _leave(self) -> int:
        """How many requests are done, and leave."""
        done = [request for request in self.running if request.made == request.output]
        for request in done:
            request.done_s = self.env.now
            self.free_pages += request.pages
        if done:
            self.running = [request for request in self.running if request.made < request.output]
        return len(done)
