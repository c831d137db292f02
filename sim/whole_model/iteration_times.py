"""How long a server's iterations take on a device: replays at a grid of sizes, and in between.

Attention is replayed (passes.py) for single prompts of 16, 32, 64 ... tokens and for decoding of 1,
2, 4 ... requests with caches of 16, 32, 64 ... tokens. Between them its time is interpolated on
logarithmic axes, which has powers right: a line for short prompts, a square for long ones. Halfway
between grid points a pass so told is within 4% of its own replay (held by tests/whole_model/
test_serving.py, at five sizes of prompts and batches). The matrices' closed form is taken as it is.

Two things are approximations. Prompts that one iteration prefills attend one after the other.
Requests that decode together count as all of their mean length; what is read is the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.shapes import ModelShape
from sim.inputs.workload import Dtype
from sim.runs.job import Progress
from sim.runs.scenario import Limits
from sim.schedules.base import Schedule
from sim.whole_model.attention import roomy
from sim.whole_model.passes import Matrices, model_pass, replay
from sim.whole_model.setting import Setting

SHORTEST = 16  # tokens; whatever is shorter takes as long


@dataclass(frozen=True)
class ServedModel:
    """A model on the device that serves it, and the schedules of its attention."""

    shape: ModelShape
    hardware: HardwareProfile
    prefill: Schedule
    decode: Schedule


@dataclass(frozen=True, eq=False)
class IterationTimes:
    """Times of iterations that serve a model.

    `prefill_attention_s` has a time for each of `lengths`, `decode_attention_s` for each of
    `batches` and `lengths`: shape (batches, lengths).
    """

    served: ServedModel
    dtype: Dtype
    lengths: list[int]
    batches: list[int]
    prefill_attention_s: NDArray[np.float64]
    decode_attention_s: NDArray[np.float64]

    @cached_property
    def _matrices(self) -> Matrices:
        return Matrices(self.served.shape, self.served.hardware, self.dtype)

    @cached_property
    def _log_lengths(self) -> NDArray[np.float64]:
        return np.log(self.lengths)

    @cached_property
    def _log_prefill_s(self) -> NDArray[np.float64]:
        return np.log(self.prefill_attention_s)

    @cached_property
    def _log_decode_s(self) -> NDArray[np.float64]:
        return np.log(self.decode_attention_s)

    def prefill_s(self, prompts: Sequence[int]) -> float:
        """Seconds of an iteration that prefills prompts of so many tokens."""
        attention_s = sum(self._prompt_attention_s(tokens) for tokens in prompts)
        return attention_s + self._matrices.time_s(sum(prompts), len(prompts))

    def decode_s(self, batch: int, mean_lengths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of iterations that decode a token of each of `batch` requests.

        `mean_lengths` are of their caches, in one iteration after the other; a time for each.
        """
        at_lengths, matrices_s = self._of_batch(batch)
        attention_s = np.exp(np.interp(np.log(mean_lengths), self._log_lengths, at_lengths))
        return attention_s + matrices_s

    @cached_property
    def _of_batch(self) -> Callable[[int], tuple[NDArray[np.float64], float]]:
        """`_told_of_batch`, once each: a server decodes the same batches over and over."""
        return cache(self._told_of_batch)

    def _told_of_batch(self, batch: int) -> tuple[NDArray[np.float64], float]:
        """Of so many requests attention's log time at each of `lengths`, and the matrices' time."""
        row = float(np.interp(log(batch), np.log(self.batches), np.arange(len(self.batches))))
        lower = min(int(row), len(self.batches) - 2)
        low, high = self._log_decode_s[lower], self._log_decode_s[lower + 1]
        return low + (row - lower) * (high - low), self._matrices.time_s(batch, batch)

    def _prompt_attention_s(self, tokens: int) -> float:
        return exp(np.interp(log(tokens), self._log_lengths, self._log_prefill_s))


def iteration_times(
    served: ServedModel,
    longest: int,
    max_batch: int,
    where: str,
    limits: Limits,
    progress: Progress = lambda *_: None,
) -> IterationTimes:
    """Replay the grid, up to so many tokens and requests; raises InputError.

    Corners of the grid need not fit the device: the server sees to that.
    """
    lengths, batches = doublings(SHORTEST, longest), doublings(1, max_batch)
    shape, large = served.shape, roomy(served.hardware)
    prompt = Setting(shape, large, served.prefill)
    passes = [model_pass(prompt, "prefill", tokens) for tokens in lengths] + [
        model_pass(Setting(shape, large, served.decode, batch=batch), "decode", tokens)
        for batch in batches
        for tokens in lengths
    ]
    times = []
    for record, time in replay(passes, where, limits, progress):
        if time is None:
            raise InputError(f"{where}: {record.reason}")
        times.append(time.attention_s)
    return IterationTimes(
        served,
        passes[0].workload.dtype,
        lengths,
        batches,
        np.array(times[: len(lengths)]),
        np.reshape(times[len(lengths) :], (len(batches), len(lengths))),
    )


def doublings(first: int, most: int) -> list[int]:
    """first, 2 first, 4 first ... up to the first not below `most`; at least two."""
    sizes = [first, 2 * first]
    while sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    return sizes
