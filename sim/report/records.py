"""What a scenario of schedules came to: a table on a terminal, a results.json and figures."""

from pathlib import Path

from sim.inputs.files import save_text
from sim.report import present
from sim.report.plots import save_figures
from sim.report.table import print_records
from sim.runs.answer import ScenarioAnswer


@present.show.register
def show_records(answer: ScenarioAnswer) -> None:
    """Print a row a schedule and point."""
    print_records(answer.title, answer.records)


@present.save.register
def save_records(answer: ScenarioAnswer, out: Path) -> None:
    """Leave results.json and the figures of a run in the folder `out`."""
    save_text(answer.json(), out / "results.json")
    save_figures(answer.outcomes, answer.title, out)
