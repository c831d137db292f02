"""Any answer, shown on a terminal or saved into a folder.

Answers are data and draw nothing. The module that draws one registers how, by `show.register` and
`save.register`. Those of attnsim's own answers are imported when the first such answer comes, so
that no command loads what it does not draw with.
"""

from collections.abc import Callable
from functools import singledispatch
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from sim.report.sheet import AS_DRAWN, Sheet

# By the module of an answer's class: what draws it.
DRAWN_BY = {
    "sim.runs.answer": "sim.report.records",
    "sim.runs.difference": "sim.report.difference",
    "sim.whole_model.fit": "sim.report.fit",
    "sim.whole_model.model": "sim.report.model",
    "sim.whole_model.serving": "sim.report.serving",
    "sim.explore.search": "sim.report.search",
    "sim.explore.sensitivity": "sim.report.sensitivity",
}


class Answer(Protocol):
    """What a question came to."""

    def json(self) -> str:
        """All of it as JSON, which ends with a newline."""


@singledispatch
def show(answer: Any, **how: Any) -> None:
    """Print an answer: its tables, and what is to be said of them.

    What draws such an answer says `how` else it can be shown.
    """
    _registered(show, answer)(answer, **how)


@singledispatch
def save(answer: Any, out: Path, sheet: Sheet = AS_DRAWN) -> None:
    """Leave an answer's results.json and its figures, as the sheet says, in the folder `out`."""
    _registered(save, answer)(answer, out, sheet)


def _registered(how: Any, answer: Any) -> Callable[..., None]:
    """What draws such an answer, imported; raises TypeError where nothing does."""
    kind = type(answer)
    if kind.__module__ in DRAWN_BY:
        import_module(DRAWN_BY[kind.__module__])
    draws: Callable[..., None] = how.dispatch(kind)
    if draws is how.dispatch(object):
        raise TypeError(f"{how.__name__}: nothing draws a {kind.__module__}.{kind.__qualname__}")
    return draws
