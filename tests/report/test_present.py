"""Any answer is shown and saved by what draws it, which is imported when it comes."""

import subprocess
import sys
from importlib import import_module

import pytest

from sim.explore.search import SearchAnswer
from sim.explore.sensitivity import Sensitivity
from sim.report.present import DRAWN_BY, save, show
from sim.runs.answer import ScenarioAnswer
from sim.runs.difference import Comparison
from sim.whole_model.fit import FitAnswer
from sim.whole_model.model import ModelAnswer
from sim.whole_model.serving import ServingAnswer

SAVED = (ScenarioAnswer, FitAnswer, ModelAnswer, ServingAnswer, SearchAnswer, Sensitivity)


@pytest.mark.parametrize("kind", [*SAVED, Comparison])
def test_every_answer_has_what_shows_it_and_saves_it(kind):
    import_module(DRAWN_BY[kind.__module__])
    assert show.dispatch(kind) is not show.dispatch(object)
    assert (save.dispatch(kind) is not save.dispatch(object)) == (kind in SAVED)


def test_nothing_else_is_drawn(tmp_path):
    with pytest.raises(TypeError, match=r"show: nothing draws a builtins\.int"):
        show(3)
    comparison = Comparison("a.json", "b.json", ("1", "1"), [], [])
    show(comparison)
    with pytest.raises(TypeError, match=r"save: nothing draws a sim\.runs\.difference\.Comparison"):
        save(comparison, tmp_path)


def test_a_comparison_is_shown_without_what_draws_figures_or_searches():
    script = (
        "import sys; from sim.report.present import show; "
        "from sim.runs.difference import Comparison; "
        "show(Comparison('a.json', 'b.json', ('1', '1'), [], [])); "
        "known = ('matplotlib', 'optuna', 'plotly', 'torch'); "
        "print(*(name for name in known if name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
