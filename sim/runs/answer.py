"""What a scenario of schedules came to, as data."""

from dataclasses import dataclass

from sim.runs.job import Outcome
from sim.runs.record import Record
from sim.runs.results_file import dumps


@dataclass(frozen=True)
class ScenarioAnswer:
    """The outcomes of a scenario, in the order of its points and schedules."""

    title: str
    outcomes: list[Outcome]

    @property
    def records(self) -> list[Record]:
        """What is said of each outcome."""
        return [outcome.record for outcome in self.outcomes]

    def json(self) -> str:
        """The records as JSON: a results.json."""
        return dumps(self.records)
