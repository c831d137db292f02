"""The explorer's page as it is opened: its controls on the left, room for answers on the right."""

import uuid
from collections.abc import Mapping
from typing import Any

from dash import dcc, html

from sim.inputs.hardware import HardwareProfile
from sim.report.chart import CONFIG
from sim.report.table import figure_text
from sim.web.controls import FIGURES, SPAN, STEP, Controls, Figure, changes
from sim.web.explorer import NO_LOOK, PHASES, Explorer
from sim.web.link import Standing, standing_of
from sim.web.results import CHARTS


def opening() -> html.Div:
    """What the browser gets first: the page is made once it has told its address's query."""
    return html.Div([dcc.Store(id="query"), dcc.Store(id="link"), html.Div(id="whole")])


def page_of(explorer: Explorer, query: str = "") -> html.Div:
    """The page as it is when it is opened at an address with that query."""
    standing, odd = standing_of(explorer, query)
    return html.Div(
        [
            dcc.Store(id="page", data=uuid.uuid4().hex),
            html.Div(_sidebar(explorer, standing), id="controls"),
            html.Div(_results(explorer, standing, odd), id="results"),
        ],
        id="explorer",
    )


def _sidebar(explorer: Explorer, standing: Standing) -> list[Any]:
    hw = explorer.desk.profile(standing.choices["profile"])
    device = [figure for figure in FIGURES if not figure.key.startswith("calibration")]
    sustained = [figure for figure in FIGURES if figure.key.startswith("calibration")]
    known, at = explorer.choices(), standing.choices

    def choice(name: str) -> dcc.Dropdown:
        return _dropdown(name, known[name], at[name])

    def slider(figure: Figure) -> html.Div:
        return _slider(figure, hw, standing.figures)

    return [
        html.H2("Device"),
        choice("profile"),
        _labelled("beside", choice("beside")),
        *map(slider, device),
        html.P("The tensor rate follows SMs and clock.", className="hint"),
        html.Details([html.Summary("What kernels reach"), *map(slider, sustained)]),
        html.Button("Back to the profile", id="reset"),
        html.H2("Workload"),
        choice("model"),
        _choice("seq_len", "tokens", explorer.lengths, at["seq_len"]),
        _choice("batch", "batch", explorer.batches, at["batch"]),
        dcc.RadioItems(PHASES, at["phase"], id="phase", inline=True),
        dcc.Checklist(["causal"], ["causal"] if at["causal"] else [], id="causal"),
        choice("dtype"),
        _labelled("heads", choice("heads")),
        _labelled("KV heads", choice("kv_heads")),
        html.H2("Schedules"),
        _dropdown(
            "schedules",
            explorer.schedules(at["phase"], list(standing.schedules)),
            list(standing.schedules),
            multi=True,
        ),
        _labelled("tile, queries × keys", choice("tile")),
        _labelled("stages", choice("stages")),
    ]


def _results(explorer: Explorer, standing: Standing, odd: list[str]) -> list[Any]:
    look = standing.choices["look"]
    looks = list(dict.fromkeys([NO_LOOK, *standing.schedules, look]))
    lost = [html.P(f"Of the address this page has no {one}.", className="odd") for one in odd]
    return [
        html.Div(
            [
                html.H1(f"Explored from: {explorer.title}"),
                html.Span(id="wrote"),
                html.Button("Write profile and scenario", id="write"),
            ],
            id="head",
        ),
        *lost,
        html.P(id="answer"),
        html.Div(id="table"),
        html.P("The page's address holds all that is set here.", className="hint"),
        html.Div(
            [dcc.Graph(id=name, config=CONFIG, className="chart") for name in CHARTS],
            id="charts",
        ),
        html.H2("Inside one SM"),
        html.Div(_labelled("look", _dropdown("look", looks, look)), className="short"),
        html.Div(id="inside"),
    ]


def _labelled(label: str, control: Any) -> html.Div:
    return html.Div([html.Label(label), control], className="slider")


def _dropdown(name: str, options: list[Any], value: Any, multi: bool = False) -> dcc.Dropdown:
    return dcc.Dropdown(options, value, id=name, clearable=False, multi=multi)


def _slider(figure: Figure, hw: HardwareProfile, moved: Mapping[str, float]) -> html.Div:
    low, high, step = (0.01, 1.0, 0.01) if figure.share else (-SPAN, SPAN, STEP)
    slider = dcc.Slider(
        low,
        high,
        step,
        value=moved.get(figure.key, figure.start(hw)),
        marks=None,
        updatemode="drag",
        allow_direct_input=False,
        id={"figure": figure.key},
    )
    told = _figure_text(figure, hw, changes(hw, moved))
    text = html.Span(told, id={"text": figure.key}, className="value")
    return html.Div([html.Label([figure.label, text]), slider], className="slider")


def _choice(name: str, label: str, values: list[int], start: int) -> html.Div:
    """A slider over the values, which stand in order."""
    slider = dcc.Slider(
        0,
        len(values) - 1,
        1,
        value=values.index(start),
        marks=None,
        updatemode="drag",
        allow_direct_input=False,
        id=name,
    )
    text = html.Span(f"{start:,}", id=f"{name}_text", className="value")
    return html.Div([html.Label([label, text]), slider], className="slider")


def texts_of(explorer: Explorer, controls: Controls) -> list[str | html.Mark]:
    """What stands beside the sliders of the device's figures."""
    hw = explorer.desk.profile(controls.profile)
    changed = changes(hw, controls.figures)
    return [_figure_text(figure, hw, changed) for figure in FIGURES]


def _figure_text(figure: Figure, hw: HardwareProfile, changed: dict[str, float]) -> str | html.Mark:
    """A figure's value and, where it differs, marked, how many times the profile's it is."""
    key = figure.key
    if key == "tensor":
        rates = ["fp16", "bf16", "fp8"]
        key = next((f"tensor.{d}" for d in rates if getattr(hw.tensor, d) is not None), "")
        if not key:
            return "none"
    before = hw.figure(key)
    value = changed.get(key, before)
    text = figure_text(key, value)
    if value == before:
        return text
    return html.Mark(text if figure.share else f"{text} (×{value / before:.3g})")
