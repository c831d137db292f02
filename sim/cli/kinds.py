"""Kinds of files, told by the table that they have.

[[schedule]]   what do schedules move, and how long do they take? (scenarios)
[search]       which device and tiles are best for a schedule? (a scenario and a table more)
[[fit]]        does a model fit a device, and how long a context?
[[model]]      what does a whole model's prompt take?
[serving]      how many requests does a device serve, and how fast?
"""

from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any, Literal, Protocol

from sim.inputs.files import InputError
from sim.inputs.models import with_models_found
from sim.report.present import Answer
from sim.runs.job import Progress
from sim.runs.scenario import ScenarioText

Kind = Literal["scenario", "search", "fit", "model", "serving"]
WHOLE_MODEL: tuple[Kind, ...] = ("fit", "model", "serving")  # they ask about whole models

# What makes the question of a file about whole models; imported only where it is asked for.
_QUESTIONS = {
    "fit": ("sim.whole_model.fit", "FitQuestion"),
    "model": ("sim.whole_model.model", "ModelQuestion"),
    "serving": ("sim.whole_model.serving", "ServingQuestion"),
}


class Question(Protocol):
    """What is asked."""

    def answer(self, progress: Progress) -> Answer:
        """Work it out; raises InputError where it makes no sense together."""


def kind_of(data: Mapping[str, Any]) -> Kind:
    """What kind of file has these tables."""
    tables: tuple[Kind, ...] = ("search", *WHOLE_MODEL)
    return next((kind for kind in tables if kind in data), "scenario")


def refuse(text: ScenarioText, kinds: Collection[Kind], message: str) -> None:
    """Raises InputError with the file's name and the message if it is of one of the kinds."""
    if kind_of(text.data) in kinds:
        raise InputError(f"{text.where}: {message}")


def question_of(text: ScenarioText) -> Question:
    """The question of a file about whole models; raises InputError."""
    module, name = _QUESTIONS[kind_of(text.data)]
    tables = with_models_found(text.data, text.folder)
    question: Question = getattr(import_module(module), name).from_tables(
        tables, text.name, text.where
    )
    return question
