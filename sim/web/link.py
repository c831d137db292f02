"""The address of the page as it stands: what of it differs from its start, as a query.

Sliders of the device go by their dotted keys, at their positions; all else by its control's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

from sim.inputs.files import InputError
from sim.web.controls import FIGURES, SPAN
from sim.web.explorer import Explorer


@dataclass(frozen=True)
class Standing:
    """Where the page's controls stand: `figures` has positions by key, where not at the start."""

    choices: Mapping[str, Any]
    schedules: tuple[str, ...]
    figures: Mapping[str, float] = field(default_factory=dict)


def start(explorer: Explorer) -> Standing:
    """As the page is opened without a query."""
    choices = {name: values[0] for name, values in explorer.choices().items()}
    return Standing(choices, tuple(explorer.titles))


def now(explorer: Explorer, controls: Mapping[str, Any], look: str) -> Standing:
    """What the controls say, by the names of `Explorer.controls`, and into what one looks."""
    told = dict(controls)
    positions, workload = told.pop("positions"), dict(told.pop("workload"))
    workload["seq_len"] = explorer.lengths[workload["seq_len"]]
    workload["batch"] = explorer.batches[workload["batch"]]
    workload["causal"] = bool(workload["causal"])
    schedules = tuple(told.pop("schedules") or ())
    hw = explorer.desk.profile(told["profile"])
    figures = {
        figure.key: position
        for figure, position in zip(FIGURES, positions, strict=True)
        if position != figure.start(hw)
    }
    return Standing({**told, **workload, "look": look}, schedules, figures)


def query_of(explorer: Explorer, standing: Standing) -> str:
    """The query that restores it, "?" before it; nothing at the start."""
    first = start(explorer)
    pairs = [(n, str(v)) for n, v in standing.choices.items() if v != first.choices[n]]
    if standing.schedules != first.schedules:
        pairs += [("schedule", title) for title in standing.schedules or ("",)]
    pairs += [(key, f"{position:g}") for key, position in standing.figures.items()]
    return f"?{urlencode(pairs)}" if pairs else ""


def standing_of(explorer: Explorer, query: str) -> tuple[Standing, list[str]]:
    """What a query restores, and what of it cannot be, a text each."""
    first, known = start(explorer), explorer.choices()
    choices, titles, figures, odd = dict(first.choices), [], {}, []
    given = parse_qsl(query.removeprefix("?"), keep_blank_values=True)
    offered = known["look"][1:]
    for name, text in given:
        options = {str(value): value for value in known.get(name, ())}
        if text in options:
            choices[name] = options[text]
        elif name == "schedule" and text in ("", *offered):
            titles += [text] if text else []
        elif (position := _position(name, text)) is not None:
            figures[name] = position
        else:
            odd.append(f"{name}={text}")
    told = any(name == "schedule" for name, _ in given)
    schedules = tuple(dict.fromkeys(titles)) if told else first.schedules
    try:
        explorer.desk.profile(choices["profile"])
    except InputError as error:
        odd.append(str(error))
        choices["profile"] = first.choices["profile"]
    return Standing(choices, schedules, figures), odd


def _position(key: str, text: str) -> float | None:
    """Where a slider stands; None where there is no such."""
    figure = next((figure for figure in FIGURES if figure.key == key), None)
    try:
        position = float(text)
    except ValueError:
        return None
    low, high = (0.01, 1.0) if figure and figure.share else (-SPAN, SPAN)
    return position if figure and low <= position <= high else None
