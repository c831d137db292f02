"""Scenario files that ask something else than what schedules move: told by the table they have.

[[fit]]      does a model fit a device, and how long a context?
[[model]]    what does a whole model's prompt take?
[serving]    how many requests does a device serve, and how fast?
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from sim.runs.job import Progress


class Answer(Protocol):
    """What a question came to."""

    def show(self) -> None:
        """Print it as a table."""

    def json(self) -> str:
        """The same as JSON."""

    def save(self, out: Path) -> None:
        """Write it, and figures, into the folder `out`."""


class Question(Protocol):
    """What is asked."""

    def answer(self, progress: Progress) -> Answer:
        """Work it out; raises InputError where it makes no sense together."""


# Imported only where they are asked for.
_KINDS = {
    "fit": ("sim.whole_model.fit", "FitQuestion"),
    "model": ("sim.whole_model.prefill", "ModelQuestion"),
    "serving": ("sim.whole_model.serving", "ServingQuestion"),
}


def question_in(
    data: Mapping[str, Any],
) -> Callable[[Mapping[str, Any], str, str], Question] | None:
    """What makes the question of (tables, name, where), or None for a scenario of schedules."""
    for table, (module, kind) in _KINDS.items():
        if table in data:
            make: Callable[[Mapping[str, Any], str, str], Question]
            make = getattr(import_module(module), kind).from_tables
            return make
    return None
