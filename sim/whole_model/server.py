"""A server of one GPU under load: continuous batching over a paged KV cache.

    requests arrive and wait, first come first served
    iteration after iteration, the GPU
        prefills waiting requests, as many as find pages, up to a budget of tokens; if none does,
        decodes one token of every running request; if none runs, waits for an arrival

Who decodes changes only when one of them is done, a page is missing or, where nobody waits, at an
arrival. The iterations up to there are told at once: their caches grow by a token each.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.tile_program import IntArray

# Free pages that an admission leaves to those who run, a share of all (vllm-project/vllm,
# vllm/core/block_manager.py: watermark).
WATERMARK = 0.01


@dataclass(frozen=True)
class Server:
    """What there is to serve with: pages of the KV cache, limits and times of iterations.

    `prefill_s` takes the lengths of the prompts that one iteration prefills. `decode_s` takes how
    many requests decode and the mean lengths of their caches with the new token, of one iteration
    after the other, and gives the time of each. A prompt longer than `prefill_tokens` is prefilled
    alone.
    """

    pages: int
    page_tokens: int
    max_batch: int
    prefill_tokens: int
    prefill_s: Callable[[Sequence[int]], float]
    decode_s: Callable[[int, NDArray[np.float64]], NDArray[np.float64]]

    def pages_of(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.page_tokens)


@dataclass(eq=False)
class Request:
    """A prompt of so many tokens that is to be answered by so many; and how that went."""

    arrival_s: float
    prompt: int
    output: int
    made: int = 0  # tokens of the output so far; while it runs, when it began to
    first_s: float = -1.0  # when the first of them was there
    done_s: float = -1.0
    preempted: int = 0

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


# One pass of the GPU: it ended at `end_s` and made a token of each of `batch` requests. `running`
# requests had their first token before it; `pages` were in use during it.
ITERATION = np.dtype(
    [
        *(("start_s", np.float64), ("end_s", np.float64), ("prefill", np.bool_)),
        *(("batch", np.int64), ("running", np.int64), ("pages", np.int64)),
    ]
)


@dataclass
class Service:
    """A run of a server: requests in order of arrival, and the ITERATIONs that served them.

    Of those that run, in order of arrival: `cached`, the tokens in the cache, for which each has
    pages (all but the last), and `left`, those that it is yet to make.
    """

    server: Server
    requests: list[Request]

    def __post_init__(self) -> None:
        self.told: list[NDArray[Any]] = []  # iterations, in blocks told at once
        self.now_s = 0.0
        self.coming = deque(self.requests)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.cached: IntArray = np.empty(0, np.int64)
        self.left: IntArray = np.empty(0, np.int64)
        self.free_pages = self.server.pages

    @property
    def iterations(self) -> "np.recarray[Any, Any]":
        """All so far, one after the other."""
        told = [np.empty(0, ITERATION), *self.told]
        # Told their type, NumPy does not work out a common one for each block of them.
        return np.concatenate(told, dtype=ITERATION).view(np.recarray)

    def run(self) -> None:
        """Serve all requests. Each must fit the cache alone, whole."""
        while self.coming or self.waiting or self.running:
            self._arrive()
            if admitted := self._admit():
                self._prefill(admitted)
            elif self.running:
                self._find_pages()
                self._decode()
            else:
                self.now_s = self.coming[0].arrival_s
            self._leave()

    def _arrive(self) -> None:
        """Who has come by now waits."""
        while self.coming and self.coming[0].arrival_s <= self.now_s:
            self.waiting.append(self.coming.popleft())

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
            self.free_pages -= pages
            tokens += request.tokens
            admitted.append(self.waiting.popleft())
        return admitted

    def _prefill(self, admitted: list[Request]) -> None:
        """One iteration that makes a token of each of them; they run from then on."""
        seconds = self.server.prefill_s([request.tokens for request in admitted])
        ends_s, pages = np.array([self.now_s + seconds]), np.zeros(1, np.int64)
        self._iterate(len(admitted), ends_s, pages, prefill=True)
        for request in admitted:
            if request.made == 0:
                request.first_s = self.now_s
            request.made += 1
        # All who wait came after those who run: whoever is preempted came last.
        self.running += admitted
        self.cached = np.append(self.cached, [request.tokens - 1 for request in admitted])
        self.left = np.append(self.left, [request.output - request.made for request in admitted])

    def _find_pages(self) -> None:
        """Pages for the tokens that running requests are about to cache, as many as can go on."""
        while (wanted := self._full()) > self.free_pages:
            self._preempt()
        self.free_pages -= wanted

    def _full(self) -> int:
        """How many running requests have filled their last page."""
        return int(np.count_nonzero(self.cached % self.server.page_tokens == 0))

    def _preempt(self) -> None:
        """The request that arrived last waits again, at the front."""
        request = self.running.pop()
        self.free_pages += self.server.pages_of(int(self.cached[-1]))
        request.made = request.output - int(self.left[-1])
        request.preempted += 1
        self.cached, self.left = self.cached[:-1], self.left[:-1]
        self.waiting.appendleft(request)

    def _decode(self) -> None:
        """Iterations of those who run, up to the first after which others may."""
        pages = self._pages_to_come()
        batch = len(self.running)
        mean_length = (int(self.cached.sum()) + batch) / batch
        mean_lengths = mean_length + np.arange(len(pages), dtype=np.float64)
        seconds = self.server.decode_s(batch, mean_lengths)
        ends_s = np.cumsum(np.concatenate(([self.now_s], seconds)))[1:]
        if self.coming and not self.waiting:
            ends_s = ends_s[: 1 + int(np.searchsorted(ends_s, self.coming[0].arrival_s))]
        self._iterate(batch, ends_s, pages[: len(ends_s)], prefill=False)
        self.cached = self.cached + len(ends_s)
        self.left = self.left - len(ends_s)

    def _pages_to_come(self) -> IntArray:
        """Pages that those who run take beyond their present ones, iteration by iteration.

        Up to the first that makes one of them whole, or for which pages are missing. Each takes its
        next page when it has filled the last, every `page_tokens` iterations.
        """
        size = self.server.page_tokens
        filled = np.bincount(self.cached % size, minlength=size)
        pages: IntArray = np.cumsum(filled[-np.arange(self.left.min()) % size]) - filled[0]
        return pages[pages <= self.free_pages]

    def _iterate(
        self, batch: int, ends_s: NDArray[np.float64], more: IntArray, prefill: bool
    ) -> None:
        """Iterations that end so, with so many pages more: each makes all of a batch a token."""
        block = np.empty(len(ends_s), ITERATION)
        block["start_s"][0], block["start_s"][1:], block["end_s"] = self.now_s, ends_s[:-1], ends_s
        block["prefill"], block["batch"], block["running"] = prefill, batch, len(self.running)
        block["pages"] = self.server.pages - self.free_pages + more
        self.told.append(block)
        self.free_pages -= int(more[-1])
        self.now_s = float(ends_s[-1])

    def _leave(self) -> None:
        """Requests that are done leave."""
        go_on = self.left > 0
        if go_on.all():
            return
        for number in np.flatnonzero(~go_on):
            request = self.running[number]
            request.made, request.done_s = request.output, self.now_s
            self.free_pages += self.server.pages_of(int(self.cached[number]))
        self.running = list(compress(self.running, go_on))
        self.cached, self.left = self.cached[go_on], self.left[go_on]
